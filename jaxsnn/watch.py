"""A model looked at from outside: its layers, met while it runs.

No model has to be written for it: wherever in a model a layer is, and however it got
there, its call is seen. Linen's interceptors do that.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flax import linen as nn  # noqa: TID251  # Interceptors are Linen's.

from jaxsnn.backend import Population
from jaxsnn.layers import LIF, Graph
from jaxsnn.spikes import Spikes

#: Modules that spike, event by event.
SPIKING = (LIF, Graph)

# Of a module, what it would do, and its arguments: to what is returned instead.
Look = Callable[[Any, Callable[..., Any], tuple, dict], Any]


def watch(
    model: nn.Module,
    variables: Mapping[str, Any],
    spikes: Spikes,
    options: Mapping[str, Any],
    look: Look,
    kinds: tuple[type, ...],
    mutable: tuple[str, ...],
) -> tuple[Any, Mapping[str, Any]]:
    """Applies a model, and hands each call of a layer to `look`.

    Args:
      model: any module.
      variables: of the model.
      spikes: inputs.
      options: passed on to ``model.apply``.
      look: called in place of each layer with the layer, what it would have done, and
        its arguments. What it returns goes on through the model.
      kinds: the modules to look at. One within another of them is not missed, but a
        subclass that calls the ``__call__`` of its parent is met only once.
      mutable: collections that are returned.

    Returns:
      The outputs, and the collections.
    """
    active: set[int] = set()

    def intercept(run: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        module = context.module
        called = context.method_name == "__call__" and id(module) not in active
        if not called or not isinstance(module, kinds):
            return run(*args, **kwargs)
        active.add(id(module))
        try:
            return look(module, run, args, kwargs)
        finally:
            active.remove(id(module))

    with nn.intercept_methods(intercept):
        return model.apply(variables, spikes, mutable=list(mutable), **options)


def name_of(module: nn.Module, population: str = "") -> str:
    """Path of a layer in its model, or of one of its populations."""
    return "/".join(filter(None, (*module.path, population))) or type(module).__name__


def loops(module: LIF | Graph) -> list[list[str]]:
    """Names of a layer's populations in the order in which they run, loop by loop.

    A `LIF` is one population, whose name is empty.
    """
    return module.order() if isinstance(module, Graph) else [[""]]


def every_spike(
    module: LIF | Graph, run: Callable, args: tuple, kwargs: dict, **attributes: Any
) -> dict[str, Spikes]:
    """Runs a layer with other attributes, and returns the spikes of each population.

    In the order in which a layer lists them, with those that find no slot.
    """
    if isinstance(module, Graph):
        with changed(module, outputs=tuple(module.populations), **attributes):
            return run(*args, **kwargs)
    with changed(module, slots=None, **attributes):
        return {"": run(*args, **kwargs)}


def with_a_slot(
    module: LIF | Graph, spikes: Mapping[str, Spikes]
) -> Mapping[str, Spikes]:
    """Those of the spikes that find a slot. In a `Graph` there is one for each."""
    slots = None if isinstance(module, Graph) else module.slots
    if slots is None:
        return spikes
    return {name: found.keep(slots)[0] for name, found in spikes.items()}


def returned(
    module: LIF | Graph, spikes: Mapping[str, Spikes]
) -> Spikes | dict[str, Spikes]:
    """What a layer returns of the spikes of its populations."""
    names = module.outputs if isinstance(module, Graph) else ""
    return spikes[names] if isinstance(names, str) else {n: spikes[n] for n in names}


def described(module: LIF | Graph, size: int) -> list[Population]:
    """A layer's populations as devices see them; `size` is that of the inputs."""
    if isinstance(module, Graph):
        return module._network(size)
    return [module.population()]


@contextlib.contextmanager
def changed(module: nn.Module, **attributes: Any) -> Iterator[None]:
    """Gives a module other attributes for the duration of a call."""
    before = {name: getattr(module, name) for name in attributes}
    try:
        for name, value in attributes.items():
            object.__setattr__(module, name, value)  # Modules are frozen.
        yield
    finally:
        for name, value in before.items():
            object.__setattr__(module, name, value)


def sown(state: Mapping[str, Any], collection: str, path: tuple[str, ...]) -> Any:
    """What a layer of that path sowed into a collection while it ran.

    Raises:
      ValueError: nothing arrived, as from inside a lifted transform.
    """
    found: Any = state.get(collection, {})
    for part in path:
        found = found.get(part, {})
    if not found:
        raise unseen(collection, path)
    return found


def unseen(collection: str, path: tuple[str, ...]) -> ValueError:
    """The error of a layer that nothing can be seen of."""
    return ValueError(
        f"what layer '{'/'.join(path)}' did cannot be seen from outside: it runs in"
        " a lifted transform (nn.scan, nn.vmap) that does not hand the collection"
        f' "{collection}" through; add it to variable_axes.'
    )


def nothing_to_look_at(model: nn.Module) -> ValueError:
    """The error of a model without any layer that is known."""
    return ValueError(
        f"{type(model).__name__} ran no jaxsnn.layers.LIF or Graph, so there is nothing"
        " to look at; its spiking layers must be these or subclasses of them."
    )
