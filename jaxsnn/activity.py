"""What a model did on a batch: spikes, voltages and counts of every layer, in one call.

The layers are looked at from outside (`jaxsnn.watch`), so that no model has to be
written for it, and described as devices see them (`jaxsnn.backend`): neurons, and what
is connected to them.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn  # noqa: TID251  # For annotations; models are Linen's.
from jax import Array

from jaxsnn.backend import Observation, Population, Projection, Samples
from jaxsnn.capacity import table
from jaxsnn.dynamics import Neuron, Time
from jaxsnn.grid import spikes_from_raster
from jaxsnn.layers import LI, LIF, Delay, Graph, GridLI, GridLIF, Network
from jaxsnn.readout import Trace
from jaxsnn.record import Mismatch, State
from jaxsnn.spikes import Spikes, _traced, concatenate
from jaxsnn.voltage import voltage_at
from jaxsnn.watch import changed, name_of, returned, watch

_KINDS = (LIF, LI, Delay, Graph, GridLIF, GridLI, Network)
# What layers keep in `events` besides their counters: their state, and the spikes of
# each neuron, which are known from the spikes themselves.
_NOT_COUNTERS = {*State._fields, "dropped", "at_limit"}

#: What counters mean; each but `saturated` should be 0.
COUNTERS = {
    "overflow": "spikes found no slot: raise LIF.slots",
    "late": "inputs were older than the state",
    "under_way": "spikes had not arrived at the end of the window",
    "outside": "input spikes were outside of the grid",
    "lost": "spikes were lost on the device",
    "extra": "spikes acted on the device and were not read",
    "unexplained": "observed spikes that the model cannot explain have no gradient",
    "retried": "runs of the device were repeated",
    "saturated": "of the weights were cut to what the device can hold",
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Connection:
    """What acts on a layer.

    Attributes:
      kernel: weights that acted, ``[sources, neurons]``: on a device, those that it
        really had.
      own: weights among the parameters, of the same shape.
      spikes: of the sources, ``[samples, slots]``; None on a time grid.
      delay: time in seconds that a spike takes: a number, or an array that fits the
        weights.
    """

    kernel: Array
    own: Array
    spikes: Spikes | None = None
    delay: Time = 0.0


_static: Any = functools.partial(dataclasses.field, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class LayerActivity:
    """What one layer did on a batch.

    Attributes:
      name: path of the layer in its model; of a population of a `Graph`, with its name.
      kind: name of the layer's class.
      size: number of samples.
      neurons: number of neurons, or of what a `Delay` delays.
      neuron: parameters of the neurons, a `Neuron`; None of a `Delay`.
      connections: what acts on them.
      spikes: spikes that found a slot, ``[samples, slots]``; None of integrators.
      times: all spikes, ``[samples, neurons, n]``, ascending, then ``inf``; or None.
      max_spikes: how often a neuron may fire; None where there is no limit.
      slots: spikes that find a slot; None for all.
      delay: of a `Delay`, its times in seconds.
      dt: step of a time grid in seconds; None for events.
      trace: of integrators, their voltages as a function of time, a `Trace`.
      samples: voltages of integrators that a device or a time grid took, `Samples`.
      counters: what else was counted, for each sample, by name; see `COUNTERS`.
      mismatch: how first spikes on a device differ from the model's, a `Mismatch`; None
        without a device.
      start: state at the beginning; None for rest.
    """

    name: str = _static()
    kind: str = _static()
    size: int = _static()
    neurons: int = _static()
    neuron: Any = None
    connections: tuple[Connection, ...] = ()
    spikes: Spikes | None = None
    times: Any = None
    max_spikes: int | None = _static(default=None)
    slots: int | None = _static(default=None)
    delay: Time = 0.0
    dt: float | None = _static(default=None)
    trace: Any = None
    samples: Any = None
    counters: dict[str, Any] = dataclasses.field(default_factory=dict)
    mismatch: Any = None
    start: State | None = None

    @property
    def count(self) -> Any:
        """Spikes of each neuron, ``[samples, neurons]``; None of integrators."""
        return None if self.times is None else np.sum(np.isfinite(self.times), axis=-1)

    @property
    def never(self) -> Any:
        """Whether each neuron fired in no sample, ``[neurons]``; or None."""
        return None if self.count is None else ~self.count.any(axis=0)

    @property
    def first(self) -> Any:
        """First spike of each neuron in seconds, ``inf`` for none, or None."""
        return None if self.times is None else np.asarray(self.times)[..., 0]

    @property
    def saturated(self) -> float:
        """Part of the neurons, over samples, that fired as often as they may."""
        if self.count is None or self.max_spikes is None:
            return 0.0
        return float((self.count >= self.max_spikes).mean())

    def voltage(
        self,
        at: Time,
        sample: int | None = None,
        neurons: Any = None,
        side: str = "left",
    ) -> Array:
        """Voltages at any times, exact to rounding; see `voltage_at` for spikes.

        On a device they are those of the model, with the weights of the device, set
        back at the spikes that were observed.

        Args:
          at: one time in seconds, or times ``[T]``.
          sample: which one; all if None.
          neurons: numbers of the neurons that are wanted, a list; all if None.
          side: ``"left"`` or ``"right"``, before or after a spike.

        Returns:
          ``[samples, neurons, T]``, without the axes of what was one only.

        Raises:
          ValueError: a layer without voltages between events.
        """
        if self.neuron is None or self.dt is not None:
            what = "is a delay" if self.neuron is None else "is on a time grid"
            raise ValueError(
                f"layer '{self.name}' {what}: it has no voltage between its events."
            )
        some = slice(None) if neurons is None else np.asarray(neurons)
        one = slice(None) if sample is None else slice(sample, sample + 1)
        if sample is not None and not 0 <= sample < self.size:
            raise ValueError(f"sample is {sample}, expected one of {self.size}.")

        def chosen(tree: Any) -> Any:
            return jax.tree.map(lambda x: x[one], tree)

        sources = [chosen(c.spikes) for c in self.connections]
        inputs = concatenate(*sources) if len(sources) > 1 else sources[0]
        kernel = jnp.concatenate([c.kernel[:, some] for c in self.connections])
        delay = jnp.concatenate(
            [
                jnp.broadcast_to(c.delay, c.kernel.shape)[:, some]
                for c in self.connections
            ]
        )
        neuron = jax.tree.map(lambda x: x[some] if jnp.ndim(x) else x, self.neuron)
        if self.times is None:  # Integrators never spike.
            times = jnp.zeros(
                (*inputs.time.shape[:-1], kernel.shape[1], 0), kernel.dtype
            )
        else:
            times = self.times[one][:, some]
        start = self.start
        if start is not None:
            v, i, time, count = chosen(start)
            start = State(v[:, some], i[:, some], time, count[:, some])
        found = voltage_at(
            neuron, kernel, inputs, times, at, delay=delay, start=start, side=side
        )
        return found if sample is None else found[0]


@dataclasses.dataclass(frozen=True)
class Activity:
    """What a model did on a batch; prints as a table.

    Attributes:
      inputs: spikes that the model was given, ``[samples, slots]``.
      layers: what each layer did, in the order in which they ran. One that ran several
        times is there as often, the second time as ``name (2)``.
      outputs: what the model returned.
    """

    inputs: Spikes
    layers: tuple[LayerActivity, ...]
    outputs: Any

    def __getitem__(self, name: str) -> LayerActivity:
        """The layer of that name."""
        found = {layer.name: layer for layer in self.layers}
        if name not in found:
            raise KeyError(f"there is no layer {name!r}, only {', '.join(found)}")
        return found[name]

    @property
    def latency(self) -> Any:
        """First spike of the last layer in seconds, ``[samples]``, ``inf`` for none.

        That is when the model has decided; None if its last layer does not spike.
        """
        first = self.layers[-1].first
        return None if first is None else first.min(axis=-1)

    def __str__(self) -> str:
        samples = self.inputs.time.shape[0]
        given = np.sum(np.isfinite(self.inputs.time), axis=-1).mean()
        head = ["layer", "neurons", "spikes", "per neuron", "silent", "never fire"]
        head += ["at max_spikes", "first spike", "lost"]
        rows = [["inputs", str(self.inputs.size), f"{given:.1f}"]]
        rows[0] += [f"{given / self.inputs.size:.2f}", *[""] * 5]
        rows += [_row(layer) for layer in self.layers]
        lines = [f"{samples} samples; spikes per sample", table([head, *rows])]
        latency = self.latency
        if latency is not None and np.isfinite(latency).any():
            some = 1e3 * latency[np.isfinite(latency)]
            low, middle, high = np.percentile(some, [5, 50, 95])
            lines.append(
                f"latency to the first spike of '{self.layers[-1].name}': median"
                f" {middle:.2f} ms, 5 % to 95 % {low:.2f} to {high:.2f} ms;"
                f" {len(latency) - len(some)} samples without one"
            )
        for layer in self.layers:
            lines += [f"  {layer.name}: {text}" for text in troubles(layer)]
        return "\n".join(lines)


def summary(
    model: nn.Module, variables: Mapping[str, Any], spikes: Spikes, **options: Any
) -> Activity:
    """Runs a model on a batch and says what its layers did.

    Spikes per neuron, neurons that are silent or fire as often as they may, spikes that
    were lost, latencies: printed as a table. What is printed, and more, can be asked
    for: spikes and first spikes of each layer, and exact voltages at any time.

    The model is compiled and runs once, as with ``mutable=["events", "mismatch"]``; on
    a device, if it has one. Everything is kept, so give it a batch and
    not a data set: `suggest_capacity` and evaluations take those. Layers that it knows
    are those of `jaxsnn.layers` and subclasses of them.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> import jaxsnn
      >>> from jaxsnn.coding import encode_latency
      >>> from jaxsnn.layers import LIF, Network
      >>> model = Network([LIF(40, name="hidden"), LIF(3, name="output")])
      >>> features = jax.random.uniform(jax.random.key(0), (8, 6))
      >>> spikes = encode_latency(features, t_late=10e-3)
      >>> variables = model.init(jax.random.key(1), spikes)
      >>> activity = jaxsnn.summary(model, variables, spikes)
      >>> activity["hidden"].count.shape
      (8, 40)
      >>> activity["hidden"].voltage(jnp.array([5e-3, 6e-3]), sample=0).shape
      (40, 2)
      >>> print(str(activity).splitlines()[0])
      8 samples; spikes per sample

    Args:
      model: any module from `Spikes`.
      variables: of the model.
      spikes: inputs, ``[*batch, slots]``.
      **options: passed on to ``model.apply``, such as ``until=40e-3`` or ``rngs``.

    Raises:
      ValueError: no layer of `jaxsnn.layers` in the model, one inside a lifted
        transform (``nn.scan``, ``nn.vmap``), or an empty batch.
      TypeError: traced values.
    """
    _check(variables, spikes)

    @jax.jit
    def run(variables: Mapping[str, Any], spikes: Spikes) -> tuple:
        return _look(model, variables, spikes, options)

    try:
        outputs, layers = run(variables, spikes)
    except jax.errors.UnexpectedTracerError:
        raise ValueError(
            f"what the layers of {type(model).__name__} did cannot be seen from"
            " outside: one runs in a lifted transform such as nn.scan or nn.vmap."
        ) from None
    layers = tuple(map(_trimmed, layers))
    return Activity(spikes.reshape_batch(-1), layers, outputs)


def tabulate(
    model: nn.Module, variables: Mapping[str, Any], spikes: Spikes, **options: Any
) -> str:
    """Lists the layers of a model: neurons, synapses, time constants, delays, limits.

    What `flax.linen.tabulate` cannot know of spiking layers. Times are in ms; of values
    that differ between neurons or synapses the smallest and the largest are given, and
    what is learned has a star. The model is traced and nothing runs.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> import jaxsnn
      >>> from jaxsnn.layers import LI, LIF, Network
      >>> model = Network([LIF(40, name="hidden"), LI(3, name="output")])
      >>> spikes = jaxsnn.Spikes.from_times(jnp.array([[[1e-3], [2e-3]]]))
      >>> variables = model.init(jax.random.key(0), spikes)
      >>> print(jaxsnn.tabulate(model, variables, spikes))
      layer   kind  neurons  synapses  tau_mem/ms  tau_syn/ms  v_th  max_spikes  slots
      hidden   LIF       40        80          10           5     1           1    all
      output    LI        3       120          10           5
      total              43       200  200 parameters

    Args:
      model: any module from `Spikes`.
      variables: of the model.
      spikes: inputs, ``[*batch, slots]``.
      **options: passed on to ``model.apply``, such as ``until=40e-3``.

    Raises:
      ValueError, TypeError: as `summary`.
    """
    _check(variables, spikes)
    met: dict[str, tuple[Any, int]] = {}

    def look(module: Any, run: Callable, args: tuple, kwargs: dict) -> Any:
        software = {"backend": None} if hasattr(module, "backend") else {}
        if not isinstance(module, Network):
            size = getattr(_arguments(args, kwargs)["inputs"], "size", 0)
            met.setdefault(
                name_of(module), (module.clone(parent=None, name=None), size)
            )
            paths.setdefault(name_of(module), module.path)
        with changed(module, **software):
            return run(*args, **kwargs)

    paths: dict[str, tuple[str, ...]] = {}
    kinds = _KINDS
    jax.eval_shape(
        lambda x: watch(model, variables, x, options, look, kinds, ())[0], spikes
    )
    rows: list[dict[str, str]] = []
    for name, (module, size) in met.items():
        params = variables.get("params", {})
        for part in paths[name]:
            params = params.get(part, {})
        rows += _described(name, module.bind({"params": params}), size)
    if not rows:
        raise _nothing(model)
    used = [key for key in _COLUMNS if any(row.get(key) for row in rows)]
    lines = [[row.get(key, "") for key in used] for row in rows]
    number = sum(jnp.size(x) for x in jax.tree.leaves(variables.get("params", {})))
    total = {"layer": "total"}
    for key in ("neurons", "synapses"):
        total[key] = str(sum([int(row[key] or 0) for row in rows]))
    text = table([used, *lines, [total.get(key, "") for key in used]])
    return f"{text}  {number} parameters"


_COLUMNS = ["layer", "kind", "neurons", "synapses", "tau_mem/ms", "tau_syn/ms", "v_th"]
_COLUMNS += ("v_leak", "v_reset", "t_ref/ms", "delay/ms", "max_spikes", "slots")


def _described(name: str, module: Any, size: int) -> Iterator[dict[str, str]]:
    """Rows of `tabulate` of a layer, bound to its parameters, with inputs of a size."""
    row = {"layer": name, "kind": type(module).__name__}
    if isinstance(module, Delay):
        delays = _shown(module.delays(size), 1e3, module.delay)
        yield {**row, "neurons": "", "synapses": "", "delay/ms": delays}
    elif isinstance(module, Graph):
        path = f"{name}/" if name != row["kind"] else ""
        for population in module._network(size):
            spec, own = module.populations[population.name], population.projections
            asked: Any = [c.delay for c in module._into(population.name)]
            own_row = {**row, "layer": path + population.name}
            yield own_row | _facts(spec, population.neuron, own, asked)
    elif isinstance(module, LIF | LI):
        population = module.population()
        asked = [getattr(module, n, None) for n in ("delay", "recurrent_delay")]
        yield row | _facts(module, population.neuron, population.projections, asked)
    else:
        kernels = module.variables["params"].values()
        each = [Projection(0, nn.meta.unbox(kernel)) for kernel in kernels]
        yield row | _facts(module, module.neuron, each, ())


def _facts(
    spec: Any, neuron: Neuron, own: Sequence[Projection], asked: Sequence[Any]
) -> dict[str, str]:
    """Columns of neurons and of what is connected to them; `spec` has attributes."""
    row = {"neurons": str(spec.features)}
    row["synapses"] = str(sum(jnp.size(p.kernel) for p in own))
    for column in ("tau_mem/ms", "tau_syn/ms", "v_th", "v_leak", "v_reset", "t_ref/ms"):
        name, _, unit = column.partition("/")
        value = getattr(neuron, name)
        usual = column in ("v_leak", "v_reset", "t_ref/ms") and not np.any(value)
        if hasattr(spec, name) and not usual:
            row[column] = _shown(value, 1e3 if unit else 1, getattr(spec, name))
    delays = np.concatenate([np.ravel(p.delay) for p in own])
    if delays.any():
        row["delay/ms"] = _shown(delays, 1e3, next(filter(callable, asked), None))
    if hasattr(spec, "max_spikes"):
        limit, slots = spec.max_spikes, getattr(spec, "slots", None)
        row["max_spikes"] = "any" if limit is None else str(limit)
        row["slots"] = "all" if slots is None else str(slots)
    return row


def _shown(value: Any, scale: float, asked: Any) -> str:
    """A value, or the least and the largest, with a star if it is learned."""
    low, high = scale * np.min(value), scale * np.max(value)
    text = f"{low:.4g}" if low == high else f"{low:.4g}..{high:.4g}"
    return text + "*" * callable(asked)


def troubles(layer: LayerActivity) -> Iterator[str]:
    """What was counted and should not have been, in words."""
    for name, values in layer.counters.items():
        if name == "saturated" and np.any(values):
            yield f"{np.mean(values):.1%} {COUNTERS[name]}"
        elif np.any(values):
            yield f"{np.sum(values):g} {COUNTERS.get(name, name)}"


def _row(layer: LayerActivity) -> list[str]:
    """A row of the table of an `Activity`."""
    if layer.count is None:
        return [layer.name, str(layer.neurons), "-", "-", "-", "-", "-", "-", ""]
    count, first = layer.count, layer.first
    early = first[np.isfinite(first)]
    lost = sum(np.sum(layer.counters.get(name, 0)) for name in ("overflow", "lost"))
    limit = "" if layer.max_spikes is None else f" (of {layer.max_spikes})"
    return [
        layer.name,
        str(layer.neurons),
        f"{count.sum(-1).mean():.1f}",
        f"{count.mean():.2f}",
        f"{(count == 0).mean():.1%}",
        str(int(layer.never.sum())),
        f"{layer.saturated:.1%}{limit}" if limit else "",
        f"{1e3 * early.mean():.2f} ms" if early.size else "none",
        f"{lost:g}",
    ]


class _Recorder:
    """A backend that keeps what it observed."""

    def __init__(self, backend: Any) -> None:
        self.backend, self.seen = backend, ()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def __call__(self, *args: Any) -> Any:
        self.seen = self.backend(*args)
        return self.seen


def _check(variables: Mapping[str, Any], spikes: Spikes) -> None:
    """Raises for what cannot be run."""
    if not isinstance(spikes, Spikes):
        raise TypeError(f"expected jaxsnn.Spikes, not {type(spikes).__name__}.")
    if _traced(*jax.tree.leaves((variables, spikes))):
        raise TypeError("values are needed: call this outside of jax.jit.")
    if 0 in spikes.time.shape[:-1]:
        raise ValueError(f"spikes has shape {spikes.time.shape}: there is no sample.")


def _nothing(model: nn.Module) -> ValueError:
    return ValueError(
        f"{type(model).__name__} ran no layer of jaxsnn.layers, so there is nothing to"
        " look at."
    )


def _arguments(args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a layer by name; a raster counts as inputs."""
    given = dict(zip(("inputs", "until", "observation"), args, strict=False))
    return {"inputs": kwargs.get("raster"), **given, **kwargs}


def _trimmed(layer: LayerActivity) -> LayerActivity:
    """Without room for spikes that there are not, where no limit is known."""
    if layer.times is None or layer.max_spikes is not None:
        return layer
    most = max(1, int(layer.count.max(initial=0)))
    return dataclasses.replace(layer, times=layer.times[..., :most])


def _look(
    model: nn.Module,
    variables: Mapping[str, Any],
    spikes: Spikes,
    options: Mapping[str, Any],
) -> tuple[Any, list[LayerActivity]]:
    """The outputs, and what the layers did; works under `jax.jit`."""
    layers: list[LayerActivity] = []

    def add(**facts: Any) -> None:
        name = facts.pop("name")
        again = sum(layer.name.partition(" (")[0] == name for layer in layers)
        name = f"{name} ({again + 1})" if again else name
        layers.append(LayerActivity(name=name, **facts))

    def look(module: Any, run: Callable, args: tuple, kwargs: dict) -> Any:
        given = _arguments(args, kwargs)
        inputs = given["inputs"]
        kind = next(kind for kind in _KINDS if isinstance(module, kind))
        recorder = _Recorder(getattr(module, "backend", None))
        changes: dict[str, Any] = {}
        if recorder.backend is not None:
            changes["backend"] = recorder
        if kind is LIF:
            start = _start_of(module)
            changes["slots"] = None  # Spikes without one did reset their neurons.
        if kind is Graph:
            changes["outputs"] = tuple(module.populations)
        with changed(module, **changes):
            found = run(*args, **kwargs)
        there = given.get("observation")
        seen = recorder.seen if there is None else (there,)
        if kind is Graph:
            sources, network = [inputs, *found.values()], module._network(inputs.size)
            for k, population in enumerate(network):
                spec = module.populations[population.name]
                path = f"{name_of(module)}/" if module.path else ""
                facts = _neurons(population, sources, seen[k : k + 1])
                facts |= _spikes(found[population.name], spec.max_spikes)
                facts |= _reports(module, population.name)
                add(name=path + population.name, kind="Graph", **facts)
            return returned(module, found)
        facts = {"name": name_of(module), "kind": type(module).__name__}
        facts |= _reports(module)
        if kind is LIF:
            facts |= _neurons(module.population(), [inputs, found], seen)
            facts |= _spikes(found, module.max_spikes)
            facts |= {"start": start, "slots": module.slots}
            if module.slots is not None:
                found, dropped = found.keep(module.slots)
                facts["spikes"] = found.reshape_batch(-1)
                facts["counters"]["overflow"] = jnp.ravel(dropped)
        elif kind is LI:
            facts |= _neurons(module.population(), [inputs], seen)
            facts |= _voltages(found)
        elif kind is Delay:
            facts |= _spikes(found, None)
            facts |= {"neurons": found.size, "delay": module.delays(inputs.size)}
        else:
            facts |= _grid(module, found)
        add(**facts)
        return found

    mutable = ("events", "mismatch")
    kinds = _KINDS[:-1]
    outputs, state = watch(model, variables, spikes, options, look, kinds, mutable)
    if not layers:
        raise _nothing(model)
    for layer in layers:  # It is put there last of all.
        if layer.dt is not None:
            own: Any = state.get("events", {})
            for part in layer.name.split("/"):
                own = own.get(part, {})
            if "outside" in own:
                layer.counters["outside"] = jnp.ravel(own["outside"])
    return outputs, layers


def _start_of(module: LIF) -> State | None:
    """The state from which a layer goes on."""
    if not module.has_variable("events", "v"):
        return None
    v, i, time, count = (_variable(module, "events", n) for n in State._fields)
    n = module.features
    return State(v.reshape(-1, n), i.reshape(-1, n), time.ravel(), count.reshape(-1, n))


def _variable(module: nn.Module, collection: str, name: str) -> Any:
    return module.get_variable(collection, name)


def _neurons(
    population: Population, sources: Sequence[Spikes], seen: Sequence[Observation]
) -> dict[str, Any]:
    """Neurons and what is connected to them, as far as a device shows it."""
    flat = [source.reshape_batch(-1) for source in sources]
    own = [projection.kernel for projection in population.projections]
    acting = seen[0].kernels if seen else own
    return {
        "size": flat[0].time.shape[0],
        "neurons": population.size,
        "neuron": population.neuron,
        "connections": tuple(
            Connection(
                there, projection.kernel, flat[projection.source], projection.delay
            )
            for projection, there in zip(population.projections, acting, strict=True)
        ),
    }


def _spikes(found: Spikes, max_spikes: int | None) -> dict[str, Any]:
    flat = found.reshape_batch(-1)
    # How many there are is not known while a program is compiled.
    room = flat.time if flat.by_source is None else flat.by_source
    most = max_spikes or max(1, room.shape[-1])
    facts = {"size": flat.time.shape[0], "spikes": flat, "times": flat.times(most)}
    return {**facts, "max_spikes": max_spikes}


def _voltages(trace: Trace) -> dict[str, Any]:
    samples = trace.samples
    if samples is not None:
        voltage = samples.voltage
        samples = Samples(samples.time, voltage.reshape(-1, *voltage.shape[-2:]))
    inputs = trace.inputs.reshape_batch(-1)
    return {
        "trace": dataclasses.replace(trace, inputs=inputs, samples=samples),
        "samples": samples,
    }


def _grid(module: GridLIF | GridLI, found: Array) -> dict[str, Any]:
    """What a layer on a time grid did; its raster as spikes."""
    *_, steps, features = found.shape
    flat = found.reshape(-1, steps, features)
    params = nn.meta.unbox(module.variables["params"])
    facts = {
        "neurons": features,
        "neuron": module.neuron,
        "dt": module.dt,
        "size": len(flat),
        "connections": tuple(Connection(params[n], params[n]) for n in sorted(params)),
    }
    if isinstance(module, GridLI):
        time = module.dt * jnp.arange(1, steps + 1)
        return {**facts, "samples": Samples(time, jnp.moveaxis(flat, 1, 2))}
    most = module.max_spikes or steps
    spikes = _spikes(spikes_from_raster(flat, module.dt, most)[0], most)
    return {**facts, **spikes, "max_spikes": module.max_spikes}


def _reports(module: nn.Module, *path: str) -> dict[str, Any]:
    """What a layer put into its collections."""

    def put(collection: str) -> Mapping[str, Any]:
        found: Any = module.variables.get(collection, {})
        for part in path:
            found = found.get(part, {})
        return found

    counters = {
        name: jnp.ravel(value)
        for name, value in put("events").items()
        if name not in _NOT_COUNTERS
    }
    difference = put("mismatch")
    if not difference:
        return {"counters": counters}
    flat = {n: x.reshape(-1, x.shape[-1]) for n, x in difference.items()}
    return {"counters": counters, "mismatch": Mismatch(**flat)}
