"""Populations connected in any way: forward, skipping, backward, with themselves."""

import dataclasses
import graphlib
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from jaxsnn.backend import (
    Backend,
    GradientMethod,
    Observation,
    Projection,
    straight_through,
)
from jaxsnn.backend import Population as DevicePopulation
from jaxsnn.dynamics import Neuron, Parameter, Time
from jaxsnn.eventprop import eventprop
from jaxsnn.layers.initializers import spread_normal
from jaxsnn.layers.parameters import (
    PerTarget,
    Value,
    check_delay,
    check_neuron,
    check_t_ref,
    check_until,
    check_whole,
    neuron_of,
    param,
    positive,
    shortest_delay,
)
from jaxsnn.layers.run import Found, at_limit, device_key, show_slope, spikes_of
from jaxsnn.record import Recurrent, start_of_run, unexplained
from jaxsnn.recurrent import quicker_way
from jaxsnn.spikes import NO_TIME, Spikes, concatenate

INPUT = "input"
DEFAULT_INIT = spread_normal(15.0, 3.6)


@dataclasses.dataclass(frozen=True)
class Population:
    """Neurons of one kind; the attributes are those of `LIF`."""

    features: int
    tau_mem: Value = Neuron.tau_mem
    tau_syn: Value = Neuron.tau_syn
    v_th: Value = Neuron.v_th
    v_leak: Value = Neuron.v_leak
    v_reset: Value = Neuron.v_reset
    t_ref: Value = Neuron.t_ref
    max_spikes: int = 1

    def __post_init__(self) -> None:
        """Checks the attributes."""
        for name in ("features", "max_spikes"):
            check_whole(f"Population.{name}", getattr(self, name))
        check_neuron(self)


@dataclasses.dataclass(frozen=True)
class Connection:
    """All spikes of a population go to all neurons of another, or its own.

    Attributes:
      source: name of a population, or ``"input"``.
      target: name of a population.
      kernel_init: initializer of its weights, ``[source size, target size]``.
      delay: time in seconds that a spike takes; see `LIF.delay` for what it may be. Of
        connections that are part of no loop: one number, or one for each source,
        ``[source size, 1]``.
    """

    source: str
    target: str
    kernel_init: nn.initializers.Initializer = DEFAULT_INIT
    delay: Value = 0.0

    def __post_init__(self) -> None:
        """Checks the delay."""
        check_delay(f"delay of {self.name}", self.delay)

    @property
    def name(self) -> str:
        """Name of its weights among the parameters."""
        return f"{self.source}_to_{self.target}"


class Graph(nn.Module):
    """Populations of leaky integrate-and-fire neurons, connected in any way.

    Populations that do not act on each other in a circle run one after the other. Those
    that do run as one recurrent layer, whose spikes are found in their exact order,
    also where they take no time to arrive; see `jaxsnn.recurrent`. Gradients are exact
    with respect to all weights, delays and learned parameters. The order in which
    populations and connections are listed changes names and nothing else.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> from jaxsnn import Spikes
      >>> from jaxsnn.layers import Connection, Graph, Population
      >>> graph = Graph(
      ...     populations={
      ...         "excitatory": Population(8, max_spikes=4),
      ...         "inhibitory": Population(2, max_spikes=4),
      ...         "output": Population(3),
      ...     },
      ...     connections=[
      ...         Connection("input", "excitatory"),
      ...         Connection("excitatory", "inhibitory"),
      ...         Connection("inhibitory", "excitatory", delay=1e-3),
      ...         Connection("excitatory", "output"),
      ...         Connection("input", "output"),
      ...     ],
      ...     outputs="output",
      ... )
      >>> inputs = Spikes.from_times(jnp.array([[[1e-3], [2e-3]]]))
      >>> variables = graph.init(jax.random.key(0), inputs, until=50e-3)
      >>> variables["params"]["input_to_output"].shape
      (2, 3)
      >>> graph.apply(variables, inputs, until=50e-3).size
      3

    With ``mutable=["events"]``, that collection has the `count` of each population, and
    for those in a loop how many neurons fired `max_spikes` times (`at_limit`), which is
    what ends a cascade that would go on. A run is one window from rest.

    Attributes:
      populations: by name. Those in a loop have one `max_spikes`.
      connections: between them, at most one from one to another.
      outputs: name of the population whose spikes are returned, or several names, whose
        spikes are returned by name.
      by: how populations in a loop run: ``"event"``, ``"window"``, or ``"auto"``.
      gradient: the method itself; see `LIF`.
      backend: what finds the spikes of all populations; see `LIF`.
      param_dtype: dtype of the parameters.
    """

    populations: Mapping[str, Population]
    connections: Sequence[Connection]
    outputs: str | Sequence[str]
    by: str = "auto"
    gradient: GradientMethod = eventprop
    backend: Backend | None = None
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        """Checks names and loops before any work."""
        super().__post_init__()
        if self.by not in ("auto", "event", "window"):
            raise ValueError(
                f"Graph.by is {self.by!r}, expected 'auto', 'event' or 'window'."
            )
        known = list(self.populations)
        if INPUT in known:
            raise ValueError(f"no population can be called {INPUT!r}: the inputs are.")
        seen = set()
        for c in self.connections:
            for name in (c.source, c.target):
                if name not in known and not (name == INPUT and name != c.target):
                    raise ValueError(
                        f"{c.name} connects {name!r}, expected one of {known}"
                        + (f" or {INPUT!r}." if name == c.source else ".")
                    )
            if c.name in seen:
                raise ValueError(f"there are two connections {c.name}; make it one.")
            seen.add(c.name)
        for name in self._outputs():
            if name not in known:
                raise ValueError(f"outputs names {name!r}, expected one of {known}.")
        for name in known:
            if all(c.target != name for c in self.connections):
                raise ValueError(f"nothing is connected to population {name!r}.")
        for loop in self.order():
            self._check_loop(loop)

    @nn.nowrap
    def order(self) -> list[list[str]]:
        """Groups of populations in the order in which they run; a group is a loop."""
        names = list(self.populations)
        reaches = np.eye(len(names), dtype=bool)
        for c in self.connections:
            if c.source != INPUT:
                reaches[names.index(c.source), names.index(c.target)] = True
        for k in range(len(names)):  # Warshall: now also by way of k.
            reaches |= np.outer(reaches[:, k], reaches[k])
        loop = (reaches & reaches.T).argmax(axis=1)  # Its first population.
        before = {
            g: {loop[i] for i in np.flatnonzero(reaches[:, g])} - {g} for g in {*loop}
        }
        order = graphlib.TopologicalSorter(before).static_order()
        return [[x for x, g in zip(names, loop, strict=True) if g == n] for n in order]

    @nn.compact
    def __call__(
        self, inputs: Spikes, until: Time = NO_TIME
    ) -> Spikes | dict[str, Spikes]:
        """Runs all populations through one window, from rest.

        Args:
          inputs: spikes, ``[*batch, slots]``.
          until: end of the window in seconds. Only events before it count.
        """
        if not isinstance(inputs, Spikes):
            raise TypeError(f"Graph takes jaxsnn.Spikes, not {type(inputs).__name__}.")
        check_until(until)
        batch = inputs.time.shape[:-1]
        spikes = {INPUT: inputs.reshape_batch(-1)}
        slope: dict[str, Array] = {}
        observed: dict[str, Observation] = {}
        if self.backend is not None and not self.is_initializing():
            network = self._network(inputs.size)
            key = device_key(self)
            there = self.backend(network, spikes[INPUT], until, key)
            observed = dict(zip(self.populations, there, strict=True))
        for group in self.order():
            all_found = self._run(group, spikes, until, observed)
            start = 0
            for name in group:
                features = self.populations[name].features
                part = slice(start, start + features)
                found = jax.tree.map(lambda x, part=part: x[:, part], all_found)
                start += features
                times = found.record.times
                spikes[name] = Spikes.from_times(times)
                slope[name] = found.record.slope
                if found.mismatch is not None:
                    self._report("mismatch", name, found.mismatch._asdict(), batch)
                if self.is_mutable_collection("events") and not self.is_initializing():
                    fired = times < NO_TIME
                    counters = {"count": jnp.sum(fired, axis=-1, dtype=jnp.int32)}
                    if self._inside(group):
                        counters["at_limit"] = at_limit(times)
                    if observed:
                        counters["unexplained"] = unexplained(found.record).sum(axis=-1)
                        counters |= observed[name].counters
                    self._report("events", name, counters, batch)
        if self.backend is not None and self.is_initializing():
            self.backend.check(self._network(inputs.size), until)
        show_slope(self, slope)
        outputs = {name: spikes[name].reshape_batch(*batch) for name in self._outputs()}
        self.sow("intermediates", "spikes", outputs)
        return outputs[self.outputs] if isinstance(self.outputs, str) else outputs

    def _report(
        self,
        collection: str,
        name: str,
        values: Mapping[str, Array],
        batch: tuple[int, ...],
    ) -> None:
        report: Any = self.variable(collection, name, dict)
        report.value = {
            key: x.reshape(*batch, *x.shape[1:]) for key, x in values.items()
        }

    def _network(self, size: int) -> list[DevicePopulation]:
        """The populations as a device sees them; `size` is that of the inputs."""
        sizes = {INPUT: size, **{n: p.features for n, p in self.populations.items()}}
        number = {name: k for k, name in enumerate(sizes)}
        loop = {name: k for k, group in enumerate(self.order()) for name in group}
        found = []
        for name, population in self.populations.items():
            projections = []
            for c in self._into(name):
                rows, columns = sizes[c.source], sizes[name]
                kernel = self._kernel(c, rows, columns)
                inside = loop.get(c.source) == loop[name]
                delay = self._given_delay(c, (rows, columns if inside else 1))
                projections.append(Projection(number[c.source], kernel, delay))
            neuron, limit = self.neuron(name), population.max_spikes
            found.append(
                DevicePopulation(name, sizes[name], neuron, limit, tuple(projections))
            )
        return found

    def _into(self, name: str) -> list[Connection]:
        return [c for c in self.connections if c.target == name]

    def _run(
        self,
        group: Sequence[str],
        spikes: Mapping[str, Spikes],
        until: Time,
        observed: Mapping[str, Observation],
    ) -> Found:
        """What is known of the spikes of a group."""
        sizes = {name: self.populations[name].features for name in group}
        neurons = {name: self.neuron(name) for name in group}
        for name, one in neurons.items():
            check_t_ref(f"population {name!r}", one.t_ref, until)
        neuron = _joined(list(neurons.values()), list(sizes.values()))
        outside = [
            c for c in self.connections if c.target in sizes and c.source not in sizes
        ]
        arriving, kernels = [], []
        for c in outside:
            arriving.append(self._delayed(spikes[c.source], c))
            size = arriving[-1].size
            row: dict[str, Array]
            row = {n: jnp.zeros((size, sizes[n]), self.param_dtype) for n in sizes}
            row[c.target] = self._kernel(c, size, sizes[c.target], observed)
            kernels.append(jnp.concatenate(list(row.values()), axis=1))
        inputs = concatenate(*arriving) if len(arriving) > 1 else arriving[0]
        kernel = jnp.concatenate(kernels)
        recurrent = self._recurrent(sizes, observed)
        n, dtype = inputs.time.shape[0], jnp.result_type(kernel, inputs.time)
        start = start_of_run(neuron, None, n, kernel.shape[1], dtype)
        if start is not None:
            inputs, _ = inputs.not_before(start.time)
        tau_mem = [self.populations[name].tau_mem for name in group]
        by = quicker_way(self.by, self._shortest(group), tau_mem)
        max_spikes = self.populations[group[0]].max_spikes
        there = [observed[name].times for name in group if observed]
        times = jnp.concatenate(there, axis=1) if there else None
        given = neuron, kernel, inputs, start, recurrent
        compare = self.is_mutable_collection("mismatch")
        return spikes_of(self.gradient, given, (max_spikes, until, by), times, compare)

    def _recurrent(
        self, sizes: Mapping[str, int], observed: Mapping[str, Observation]
    ) -> Recurrent | None:
        """Connections among the populations of a loop; None for no loop."""
        inside = {
            (c.source, c.target): c
            for c in self.connections
            if c.source in sizes and c.target in sizes
        }
        if not inside:
            return None
        by_source = self._by_source(list(sizes))
        weights, delays = [], []
        for source, rows in sizes.items():
            own = [inside.get((source, target)) for target in sizes]
            shapes = [(rows, columns) for columns in sizes.values()]
            pairs = list(zip(own, shapes, strict=True))
            weights.append(
                [
                    jnp.zeros(s, self.param_dtype)
                    if c is None
                    else self._kernel(c, *s, observed)
                    for c, s in pairs
                ]
            )
            if by_source:
                first = next(c for c in own if c is not None)
                delays.append([self._delay(first, (rows, 1))])
            else:  # What is not connected never arrives.
                delays.append(
                    [
                        jnp.full(s, NO_TIME) if c is None else self._delay(c, s)
                        for c, s in pairs
                    ]
                )
        kernel = jnp.block(weights)
        return Recurrent(kernel, jnp.block(delays).astype(kernel.dtype))

    @nn.nowrap
    def _check_loop(self, group: Sequence[str]) -> None:
        """Raises for a loop that cannot run as asked."""
        if all(c.source in group for c in self.connections if c.target in group):
            raise ValueError(
                f"nothing outside of the loop of {', '.join(group)} is connected to it."
            )
        limits = {name: self.populations[name].max_spikes for name in group}
        if len(set(limits.values())) > 1:
            raise ValueError(
                f"populations in a loop run as one, with one max_spikes, but got"
                f" {limits}."
            )
        if self.by == "window" and not self._shortest(group):
            inside = [c.name for c in self._inside(group)]
            raise ValueError(
                f"by='window' takes positive delays, for each source the same to all"
                f" targets, in the loop of {', '.join(inside)}. Write by='event'."
            )

    @nn.nowrap
    def _inside(self, group: Sequence[str]) -> list[Connection]:
        return [c for c in self.connections if c.source in group and c.target in group]

    @nn.nowrap
    def _by_source(self, group: Sequence[str]) -> bool:
        """Whether delays in a loop depend on the source only."""
        delays: dict[str, set[Any]] = {}
        for c in self._inside(group):
            delay: Any = c.delay
            constant = not callable(delay)
            if not (constant and (np.ndim(delay) == 0 or _is_column(delay))):
                return False
            delays.setdefault(c.source, set()).add(tuple(np.ravel(delay)))
        return all(len(values) == 1 for values in delays.values())

    @nn.nowrap
    def _shortest(self, group: Sequence[str]) -> float | None:
        """Shortest delay in a loop, or no loop, that can run window by window."""
        if not self._by_source(group):
            return None
        return shortest_delay(c.delay for c in self._inside(group))

    @nn.nowrap
    def _delayed(self, spikes: Spikes, connection: Connection) -> Spikes:
        """Spikes of a source when they arrive."""
        delay = connection.delay
        if isinstance(delay, numbers.Real) and delay == 0:
            return spikes
        learned = callable(delay) and not isinstance(delay, PerTarget)
        if not (learned or isinstance(delay, numbers.Real) or _is_column(delay)):
            raise ValueError(
                f"delay of {connection.name} is {delay!r}, expected a number,"
                f" [{spikes.size}, 1], or one learned of each source: it is not part"
                " of a loop."
            )
        return spikes.delayed(self._delay(connection, (spikes.size, 1))[:, 0])

    @nn.nowrap
    def _given_delay(self, connection: Connection, shape: tuple[int, int]) -> Parameter:
        """A number, or an array that fits the shape."""
        return positive(self, f"{connection.name}_delay", connection.delay, shape)

    @nn.nowrap
    def _delay(self, connection: Connection, shape: tuple[int, int]) -> Array:
        value = self._given_delay(connection, shape)
        return jnp.broadcast_to(jnp.asarray(value), shape)  # As exact as it is.

    @nn.nowrap
    def _kernel(
        self,
        connection: Connection,
        rows: int,
        columns: int,
        observed: Mapping[str, Observation] | None = None,
    ) -> Array:
        """Weights of a connection, those of the device where it was observed."""
        kernel = param(self, connection.name, connection.kernel_init, (rows, columns))
        if not observed:
            return kernel
        target = connection.target
        there = observed[target].kernels[self._into(target).index(connection)]
        return straight_through(kernel, there)

    def neuron(self, name: str) -> Neuron:
        """Parameters of the neurons of a population."""
        return neuron_of(_Population(self, name))

    @nn.nowrap
    def _outputs(self) -> list[str]:
        return [self.outputs] if isinstance(self.outputs, str) else list(self.outputs)


class _Population:
    """A population as `neuron_of` sees a layer: its attributes, parameters by name."""

    def __init__(self, graph: Graph, name: str):
        self._graph, self._spec, self.name = graph, graph.populations[name], name
        self.param_dtype = graph.param_dtype

    def __getattr__(self, name: str) -> Any:
        return getattr(self._spec, name)

    def has_variable(self, collection: str, name: str) -> bool:
        return self._graph.has_variable(collection, f"{self.name}_{name}")

    def get_variable(self, collection: str, name: str) -> Any:
        return self._graph.get_variable(collection, f"{self.name}_{name}")

    def param(self, name: str, *arguments: Any) -> Any:
        return self._graph.param(f"{self.name}_{name}", *arguments)


def _joined(neurons: Sequence[Neuron], sizes: Sequence[int]) -> Neuron:
    """Neurons of several populations as one; numbers stay numbers where all agree."""
    fields = {}
    for field in dataclasses.fields(Neuron):
        values = [getattr(neuron, field.name) for neuron in neurons]
        if all(isinstance(v, numbers.Real) and v == values[0] for v in values):
            fields[field.name] = values[0]
        else:
            parts = zip(values, sizes, strict=True)
            fields[field.name] = jnp.concatenate(
                [jnp.broadcast_to(jnp.asarray(v), (size,)) for v, size in parts]
            )
    return Neuron(**fields)


def _is_column(delay: Any) -> bool:
    return np.ndim(delay) == 2 and np.shape(delay)[1] == 1
