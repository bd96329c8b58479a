"""How many spikes a model emits, and how many slots they need.

A layer's `slots` decide how many spikes the next layer has to work through, so they are
worth choosing; what does not fit is lost, so they are worth measuring. Everything here
looks at layers from outside: no model has to be written for it.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn  # noqa: TID251  # For annotations; models are Linen's.
from jax import Array

from jaxsnn.dynamics import Neuron
from jaxsnn.layers import LIF, Graph, Network
from jaxsnn.layers.run import OBSERVED
from jaxsnn.spikes import Spikes, _traced
from jaxsnn.watch import (
    SPIKING,
    changed,
    every_spike,
    loops,
    name_of,
    nothing_to_look_at,
    returned,
    sown,
    unseen,
    watch,
    with_a_slot,
)


class SlotsExceededError(RuntimeError):
    """Spikes found no slot.

    Attributes:
      dropped: number of lost spikes, by layer.
      slots: what would have sufficed, by layer.
    """

    def __init__(self, dropped: Mapping[str, int], slots: Mapping[str, int]) -> None:
        self.dropped, self.slots = dict(dropped), dict(slots)
        lost = "; ".join(
            f"{count} spikes of layer '{name}' found no slot, slots={slots[name]}"
            " would have sufficed"
            for name, count in dropped.items()
        )
        super().__init__(
            f"{lost}. Raise LIF.slots, or leave it out so that every spike finds one;"
            " jaxsnn.suggest_capacity measures a whole data set."
        )


@dataclasses.dataclass(frozen=True)
class LayerCapacity:
    """What one layer emitted over a data set, with a slot for every spike.

    Attributes:
      name: path of the layer in its model; of a population of a `Graph`, with its name.
      samples: number of samples, or of windows if the layer runs several times.
      mean: spikes of the layer per sample.
      most: spikes of the layer in the sample that has most.
      slots: proposal for `LIF.slots`: `most` plus headroom, never more than needed. A
        population of a `Graph` needs none: it has a slot for every spike.
      current: `LIF.slots` as it is; None if every spike finds a slot.
      overflowing: samples with more than `current` spikes.
      max_spikes: `LIF.max_spikes`, which is part of the model and left alone.
      saturated: fraction of neurons, over samples, that reached `max_spikes` and may
        have had more to say.
      silent: fraction of neurons, over samples, that did not fire.
    """

    name: str
    samples: int
    mean: float
    most: int
    slots: int
    current: int | None
    overflowing: int
    max_spikes: int
    saturated: float
    silent: float


@dataclasses.dataclass(frozen=True)
class CapacityReport:
    """What `suggest_capacity` found; prints as a table.

    Attributes:
      layers: one entry per layer, in the order in which they run.
      headroom: fraction by which the proposal exceeds what was found.
    """

    layers: tuple[LayerCapacity, ...]
    headroom: float

    @property
    def slots(self) -> dict[str, int]:
        """Proposed `LIF.slots` by layer; see `LayerCapacity.slots`."""
        return {layer.name: layer.slots for layer in self.layers}

    def __str__(self) -> str:
        head = ["layer", "samples", "spikes: mean", "most"]
        head += [f"slots (+{self.headroom:.0%})", "slots now", "overflowing"]
        head += ["silent", "at max_spikes"]
        rows = [
            [
                layer.name,
                str(layer.samples),
                f"{layer.mean:.1f}",
                str(layer.most),
                str(layer.slots),
                "all" if layer.current is None else str(layer.current),
                str(layer.overflowing),
                f"{layer.silent:.1%}",
                f"{layer.saturated:.1%} (of {layer.max_spikes})",
            ]
            for layer in self.layers
        ]
        return table([head, *rows])


def suggest_capacity(
    model: nn.Module,
    variables: Mapping[str, Any],
    batches: Iterable[Spikes],
    *,
    headroom: float = 0.1,
    **options: Any,
) -> CapacityReport:
    """Measures how many spikes each layer emits, and proposes `LIF.slots`.

    The model runs with a slot for every spike in every layer, so what is measured does
    not depend on the slots it has. For the samples that were measured the proposal
    loses nothing; for others nothing is promised, hence the headroom, and weights
    change in training: `events/<layer>_overflow` and `require_no_overflow` tell.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> from jaxsnn import suggest_capacity
      >>> from jaxsnn.coding import encode_latency
      >>> from jaxsnn.layers import LIF, Network
      >>> model = Network([LIF(40, name="hidden", slots=5), LIF(3, name="output")])
      >>> features = jax.random.uniform(jax.random.key(0), (4, 8, 6))
      >>> batches = [encode_latency(batch, t_late=10e-3) for batch in features]
      >>> variables = model.init(jax.random.key(1), batches[0])
      >>> report = suggest_capacity(model, variables, batches)
      >>> [layer.name for layer in report.layers]
      ['hidden', 'output']
      >>> 5 < report.slots["hidden"] <= 40
      True

    Args:
      model: a `Network`, a `LIF`, or any module from `Spikes` whose spiking layers are
        `LIF` or `Graph`.
      variables: of the model.
      batches: input spikes, a batch at a time; batches of one shape compile once.
      headroom: fraction to add to the largest number of spikes found.
      **options: passed on to ``model.apply``, such as ``until=40e-3`` or ``rngs``.

    Raises:
      ValueError: no batch, no `LIF` or `Graph` in the model, or a negative headroom.
    """
    if not headroom >= 0:
        raise ValueError(f"headroom is {headroom}, expected 0 or more, such as 0.1.")
    layers: dict[str, Layer] = {}

    @jax.jit
    def count(variables: Mapping[str, Any], spikes: Spikes) -> dict[str, list[Array]]:
        found = observe(model, variables, spikes, options, layers, unlimited=True)[1]
        return {n: [x.spikes.count() for x in calls] for n, calls in found.items()}

    counts: dict[str, list[np.ndarray]] = {}
    for spikes in batches:
        for name, calls in count(variables, spikes).items():
            flat = [np.asarray(call).reshape(-1, call.shape[-1]) for call in calls]
            counts.setdefault(name, []).extend(flat)
    if not counts:
        raise ValueError("batches is empty; suggest_capacity needs some to measure.")
    return CapacityReport(
        tuple(
            _capacity(layer, np.concatenate(counts[name]), headroom)
            for name, layer in layers.items()
        ),
        headroom,
    )


def require_no_overflow(
    events: Mapping[str, Any], before: Mapping[str, Any] | None = None
) -> None:
    """Raises if a layer lost spikes for want of slots: a strict mode, on the host.

    Values are needed, so this cannot raise inside `jax.jit`: return the collection from
    the jitted function, and check it there. For the price of the transfer.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> from jaxsnn import Spikes, require_no_overflow
      >>> from jaxsnn.layers import LIF
      >>> layer = LIF(3, slots=2, kernel_init=jax.nn.initializers.constant(9.0))
      >>> inputs = Spikes.from_times(jnp.array([[[1e-3]]]))
      >>> variables = layer.init(jax.random.key(0), inputs)
      >>> outputs, state = layer.apply(variables, inputs, mutable=["events"])
      >>> require_no_overflow(state["events"])
      Traceback (most recent call last):
        ...
      jaxsnn.capacity.SlotsExceededError: 1 spikes of layer 'LIF' found no slot, ...

    Args:
      events: the collection ``events`` that ``apply(..., mutable=["events"])`` returns.
      before: the collection that the window continued from, if it did. Without it the
        slots in the message are those for all spikes since the start of the run: they
        suffice, but fewer may.

    Raises:
      SlotsExceededError: naming each such layer, the number of spikes that it lost, and
        the slots that would have sufficed.
      ValueError: a collection without any layer's counters.
      TypeError: traced values.
    """
    layers = dict(_counters(events, ()))
    if not layers:
        raise ValueError(
            "events holds no layer's counters; expected what a layer stores with"
            f' mutable=["events"], that is state["events"], got keys {sorted(events)}.'
        )
    earlier = {} if before is None else dict(_counters(before, ()))
    lost, enough = {}, {}
    for name, state in layers.items():
        if _traced(state["dropped"], state["count"]):
            raise TypeError(
                "require_no_overflow needs values, but was called inside jax.jit, grad"
                " or vmap; return the collection from there and check it outside."
            )
        dropped, count = np.asarray(state["dropped"]), np.asarray(state["count"])
        if name in earlier:
            count = count - np.asarray(earlier[name]["count"])
        if dropped.any():
            lost[name] = int(dropped.sum())
            enough[name] = int(count.sum(-1)[dropped > 0].max())
    if lost:
        raise SlotsExceededError(lost, enough)


@dataclasses.dataclass(frozen=True)
class Layer:
    """A `LIF`, or a population of a `Graph`, as it was met: what is static about it.

    Populations in a loop run as one, so they have their gradient by one method; `loop`
    is the name of the first of them.
    """

    name: str
    loop: str
    population: str
    path: tuple[str, ...]
    module: LIF | Graph
    features: int
    max_spikes: int
    slots: int | None
    gradient: Callable[..., Array]

    @classmethod
    def of(cls, module: LIF | Graph) -> "list[Layer]":
        """Those that a module is made of, in the order in which they run."""
        specs = module.populations if isinstance(module, Graph) else {"": module}
        return [
            cls(
                name_of(module, population),
                name_of(module, loop[0]),
                population,
                module.path,
                module.clone(parent=None, name=None),
                specs[population].features,
                specs[population].max_spikes,
                getattr(module, "slots", None),
                module.gradient,
            )
            for loop in loops(module)
            for population in loop
        ]

    def neuron(self, variables: Mapping[str, Any]) -> Neuron:
        """The layer's neurons, with the parameters that the model has for them."""
        params = variables.get("params", {})
        for key in self.path:
            params = params.get(key, {})
        return self.neuron_in(self.module.bind({"params": params}))

    def neuron_in(self, module: Any) -> Neuron:
        """The layer's neurons in a module that has its variables."""
        return module.neuron(self.population) if self.population else module.neuron


class Call(NamedTuple):
    """What a layer did in one call.

    Attributes:
      spikes: all that it found.
      kept: those with a slot.
      slope: that of the spike that came closest to grazing, in units of the threshold
        per membrane time constant.
    """

    spikes: Spikes
    kept: Spikes
    slope: Array


def observe(
    model: nn.Module,
    variables: Mapping[str, Any],
    spikes: Spikes,
    options: Mapping[str, Any],
    layers: dict[str, Layer],
    *,
    unlimited: bool = False,
    simulated: bool = False,
    gradient: Callable[[Layer], Callable[..., Array]] | None = None,
) -> tuple[Any, dict[str, list[Call]]]:
    """Runs a model and returns what its layers did; works under `jit` and `grad`.

    Layers are changed while they are called and not by cloning the model, so that it
    does not matter where in the model they are or how they got there.

    Args:
      model: any module.
      variables: of the model.
      spikes: inputs.
      options: passed on to ``model.apply``.
      layers: filled, while tracing, with the layers in the order of their first call.
      unlimited: passes every spike on to the next layer, not only those with a slot.
      simulated: ignores backends.
      gradient: what to use as a layer's gradient method instead of its own; asked for
        once for each loop.

    Returns:
      The outputs, and for each layer its calls.
    """

    def look(module: Any, run: Callable, args: tuple, kwargs: dict) -> Any:
        changes: dict[str, Any] = {"backend": None} if simulated else {}
        if isinstance(module, Network):
            with changed(module, **changes):
                return run(*args, **kwargs)
        met = Layer.of(module)
        layers.update({x.name: x for x in met if x.name not in layers})
        if gradient is not None:  # Asked for once for each loop, in their order.
            methods = itertools.cycle([gradient(x) for x in met if x.name == x.loop])
            changes["gradient"] = lambda *given: next(methods)(*given)
        if not module.is_mutable_collection(OBSERVED):
            raise unseen(OBSERVED, module.path)
        found = every_spike(module, run, args, kwargs, **changes)
        kept = with_a_slot(module, found)
        slope = module.get_variable(OBSERVED, "slope")[-1]
        seen = {}
        for x in met:
            name, each = x.population, x.neuron_in(module).over(-1)
            scale = each.tau_mem / (each.v_th - each.v_reset)
            least = jnp.min(slope[name] * scale)
            seen[name] = Call(found[name], kept[name], least)
        module.sow(OBSERVED, "calls", seen)
        return returned(module, found if unlimited else kept)

    kinds, mutable = (*SPIKING, Network), (OBSERVED,)
    outputs, state = watch(model, variables, spikes, options, look, kinds, mutable)
    if not layers:
        raise nothing_to_look_at(model)
    return outputs, {
        name: [call[x.population] for call in sown(state, OBSERVED, x.path)["calls"]]
        for name, x in layers.items()
    }


def table(rows: Iterable[list[str]]) -> str:
    """Aligns columns: the first to the left, the others to the right."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        [row[0].ljust(widths[0])]
        + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        for row in rows
    )
    return "\n".join("  ".join(line).rstrip() for line in lines)


def _capacity(layer: Layer, count: np.ndarray, headroom: float) -> LayerCapacity:
    total = count.sum(-1)
    most = int(total.max(initial=0))
    # Rounded, or 10 * 1.1 would be a little more than 11.
    with_headroom = max(1, math.ceil(round(most * (1 + headroom), 6)))
    return LayerCapacity(
        name=layer.name,
        samples=len(total),
        mean=float(total.mean()),
        most=most,
        slots=min(with_headroom, layer.features * layer.max_spikes),
        current=layer.slots,
        overflowing=0 if layer.slots is None else int((total > layer.slots).sum()),
        max_spikes=layer.max_spikes,
        saturated=float((count >= layer.max_spikes).mean()),
        silent=float((count == 0).mean()),
    )


def _counters(
    events: Mapping[str, Any], path: tuple[str, ...]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Finds the layers in a collection, which is nested as the modules are."""
    if "dropped" in events and not isinstance(events["dropped"], Mapping):
        yield "/".join(path) or "LIF", events
        return
    for name, inner in events.items():
        if isinstance(inner, Mapping):
            yield from _counters(inner, (*path, name))
