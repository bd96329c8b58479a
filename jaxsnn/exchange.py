r"""Networks and spikes from and to NIR, the format that simulators and chips share.

The `Neuromorphic Intermediate Representation <https://github.com/neuromorphs/NIR>`_
describes neurons by differential equations. Of its ``CubaLIF`` they are

.. math::
    \tau_s \dot I_n = -I_n + w_n \sum_j W_{nj} S_j, \qquad
    \tau_m \dot v_n = -(v_n - v_\mathrm{leak}) + R_n I_n,

with :math:`w` for ``w_in``, and a reset to ``v_reset`` where :math:`v` exceeds
``v_threshold``. What a spike is in :math:`S_j(t)` is not written in a file, and tools
differ. It has to be said, as `pulse`:

- ``"dirac"``: a pulse :math:`\delta(t - t_j)`, whose area is 1 in the file's unit of
  time. This is what the equations themselves ask for. The current jumps by
  :math:`c_n w_n W_{nj}` with :math:`c_n = 1 / \tau_s`.
- a number :math:`\Delta`, in seconds: :math:`S_j` is 1 for one time step of that
  length, as in snnTorch, whose step is 1e-4. For a short step,
  :math:`c_n = \Delta / \tau_s`.
- ``"jump"``: the current jumps by :math:`w_n W_{nj}`, so :math:`c_n = 1`, which
  is what Norse writes.

In `jaxsnn.layers` the resistance is part of the current, which a spike of :math:`j`
lifts by a weight. So a file is read as

.. math:: W^\mathrm{layer}_{jn} = R_n\, c_n\, w_n\, W_{nj},

with all other parameters as they are, and written as

=============  ==================  ===================  =============================
`pulse`        :math:`R_n`         :math:`w_n`          :math:`W_{nj}`
=============  ==================  ===================  =============================
``"dirac"``    1                   :math:`\tau_s`       :math:`W^\mathrm{layer}_{jn}`
a number       :math:`\tau_m /     :math:`\tau_s /      :math:`W^\mathrm{layer}_{jn}
               \Delta`             \Delta`              \Delta / \tau_m`
``"jump"``     1                   1                    :math:`W^\mathrm{layer}_{jn}`
=============  ==================  ===================  =============================

NIR has no field for a limit on the number of spikes, for slots, or for a refractory
period. They are written as metadata, which this library reads back and others ignore;
`to_nir` warns of it. Delays of each synapse are written as nodes, one delay per
synapse between two linear maps, which every tool can run.

Needs the package ``nir``.
"""

from __future__ import annotations

import dataclasses
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn  # noqa: TID251  # To bind modules and annotate them.

from jaxsnn.backend import Population as Neurons
from jaxsnn.coding import encode_raster
from jaxsnn.layers import LI, LIF, Connection, Delay, Graph, Network, Population
from jaxsnn.spikes import NO_INDEX, Spikes

if TYPE_CHECKING:
    import nir

_META = "jaxsnn"  # Key of what this library adds to the metadata of nodes and graph.
_INPUT = "input"
_MOST_COPIES = 10**8  # Entries of the map that makes a source of each synapse.


def to_nir(
    module: nn.Module,
    variables: Mapping[str, Any],
    *,
    pulse: str | float = "dirac",
    time_unit: float = 1.0,
    voltage_unit: float = 1.0,
) -> nir.NIRGraph:
    """Describes a network as a NIR graph; ``nir.write(path, graph)`` saves it.

    A layer becomes a node of its name, ``CubaLIF`` or ``CubaLI``, behind a ``Linear``
    called ``<source>_to_<layer>``; delays become ``Delay`` nodes. What is learned is
    written as the value that it has, and numbers as arrays of one entry per neuron.
    Not part of the graph are the gradient, the `backend`, and how loops are run.

    Example::

      >>> import warnings
      >>> import jax, jax.numpy as jnp
      >>> from jaxsnn import Spikes
      >>> from jaxsnn.exchange import from_nir, to_nir
      >>> from jaxsnn.layers import LI, LIF, Network
      >>> network = Network([LIF(8, name="hidden"), LI(3, name="readout")])
      >>> spikes = Spikes.from_times(jnp.array([[1e-3], [2e-3]]))
      >>> variables = network.init(jax.random.key(0), spikes)
      >>> with warnings.catch_warnings():  # What NIR has no field for; see above.
      ...     warnings.simplefilter("ignore")
      ...     graph = to_nir(network, variables)
      >>> sorted(graph.nodes)
      ['hidden', 'hidden_to_readout', 'input', 'input_to_hidden', 'output', 'readout']
      >>> again, same = from_nir(graph)
      >>> [type(layer).__name__ for layer in again.layers]
      ['LIF', 'LI']

    Args:
      module: a `Network`, a `Graph`, a `LIF` or an `LI`.
      variables: its variables.
      pulse: what readers of the file take a spike for; see `jaxsnn.exchange`.
      time_unit: the file's unit of time in seconds, such as 1e-3.
      voltage_unit: the file's unit of voltage in that of the layers: of volts, if 1.0
        stands for 15 mV, ``1 / 15e-3``.

    Raises:
      TypeError: a module that is none of these.
      ValueError: a network without neurons, two nodes of one name, or arguments out of
        their range.
    """
    nir = _require_nir()
    units = _Units.checked(pulse, time_unit, voltage_unit)
    if not isinstance(module, Network | Graph | LIF | LI):
        raise TypeError(
            f"to_nir takes a Network, a Graph, a LIF or an LI, not"
            f" {type(module).__name__}. Of a time-grid network, take the event-driven"
            " one with the same parameters."
        )
    found = nn.apply(_describe, module)(variables)
    nodes: dict[str, Any] = {}
    edges: list[tuple[str, str]] = []

    def add(key: str, node: Any, source: str | None) -> str:
        if key in nodes:
            raise ValueError(f"two nodes would be called {key!r}; rename a layer.")
        nodes[key] = node
        if source is not None:
            edges.append((source, key))
        return key

    names = [p.name for p in found.populations]
    size: dict[str, int] = {p.name: p.size for p in found.populations}
    keys = [add(_other(_INPUT, names), nir.Input([found.size]), None), *names]
    for p in found.populations:
        add(p.name, units.node(nir, p, found.slots.get(p.name)), None)
    for p in found.populations:
        factor = units.factor(nodes[p.name])
        for projection in p.projections:
            last = keys[projection.source]
            name = f"{last}_to_{p.name}"
            kernel = np.asarray(projection.kernel)
            weight = (kernel.astype(float) / factor).T
            delay = np.asarray(projection.delay, float) / time_unit
            for key, node in _synapses(nir, name, weight.astype(kernel.dtype), delay):
                last = add(key, node, last)
            edges.append((last, p.name))
    outputs = [found.outputs] if isinstance(found.outputs, str) else found.outputs
    for name in outputs:
        last = name
        if np.any(found.wait):
            wait = np.broadcast_to(np.asarray(found.wait, float), (size[name],))
            last = add(f"{name}_delay", nir.Delay(wait / time_unit), name)
        key = "output" if len(outputs) == 1 else f"{name}_output"
        add(_other(key, [*nodes]), nir.Output([size[name]]), last)
    _warn_of_metadata(nodes)
    meta = {
        "module": type(module).__name__,
        "outputs": found.outputs
        if isinstance(found.outputs, str)
        else ",".join([*outputs, ""]),
        **units._asdict(),
    }
    # The check that the constructor makes adds outputs to populations without targets.
    graph = nir.NIRGraph(nodes, edges, {_META: meta}, type_check=False)
    graph.check_types()
    return graph


def from_nir(
    graph: nir.NIRGraph | str | os.PathLike[str],
    *,
    max_spikes: int | None = None,
    pulse: str | float | None = None,
    time_unit: float | None = None,
    voltage_unit: float | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Reads a network from a NIR graph.

    Read are ``Input``, ``Output``, ``CubaLIF``, ``CubaLI``, ``Linear``, ``Affine``
    without bias, ``Scale``, ``Delay``, ``Flatten`` and graphs of these within the
    graph. Linear nodes and delays between two populations are combined to one kernel
    and the delays that its synapses need.

    Populations in a row become a `Network`, all others a `Graph`, and a graph of
    `to_nir` what it was. Layers are called as their nodes, with ``_`` for characters
    that names cannot have; parameters of neurons are constants, one number where all
    neurons have the same. Kernels are as precise as in the file if JAX allows it.

    Args:
      graph: a graph, or the path of a file.
      max_spikes: spikes that a neuron may fire in a run. NIR knows no limit; this
        library takes one. Graphs of `to_nir` say it themselves.
      pulse: what a spike is; see `jaxsnn.exchange`. As with the units, graphs of
        `to_nir` say it themselves.
      time_unit: the file's unit of time in seconds; 1.0 if nobody says it.
      voltage_unit: the file's unit of voltage in that of the layers, as in `to_nir`;
        1.0 if nobody says it.

    Returns:
      The module and its variables: ``module.apply(variables, spikes)``.

    Raises:
      ValueError: a node that cannot be represented, by name and with the reason; what
        has to be said and is not; or arguments out of their range.
    """
    nir = _require_nir()
    if not isinstance(graph, nir.NIRGraph):
        graph = nir.read(graph, type_check=False)
    meta = _meta(graph)
    pulse = meta.get("pulse") if pulse is None else pulse
    if pulse is None:
        raise ValueError(
            "the file does not say what a spike is, and tools differ by factors of a"
            " thousand. Write pulse='dirac' if spikes are pulses of area 1 as in NIR's"
            " equations, pulse=1e-4 (the time step in seconds) for snnTorch,"
            " pulse='jump' for Norse; see jaxsnn.exchange."
        )
    said = meta.get("time_unit", 1.0) if time_unit is None else time_unit
    volts = meta.get("voltage_unit", 1.0) if voltage_unit is None else voltage_unit
    units = _Units.checked(pulse, said, volts)
    read = _Reader(nir, graph, units, max_spikes)
    if time_unit is None and "time_unit" not in meta:
        _check_plausible(read.neurons)
    if meta.get("module") != "Graph" and (chain := read.chain()):
        return read.network(chain, meta.get("module"))
    return read.graph(meta.get("outputs"))


def to_nir_data(
    spikes: Mapping[str, Spikes], *, until: float, time_unit: float = 1.0
) -> nir.NIRGraphData:
    """Puts spikes into NIR's container of events; ``nir.write_data`` saves it.

    Example::

      >>> import jax.numpy as jnp
      >>> from jaxsnn import Spikes
      >>> from jaxsnn.exchange import from_nir_data, to_nir_data
      >>> spikes = Spikes.from_times(jnp.array([[[2e-3], [jnp.inf]]]))
      >>> data = to_nir_data({"hidden": spikes}, until=10e-3)
      >>> data.nodes["hidden"].observables["spikes"].idx
      array([[ 0, -1]], dtype=int32)
      >>> from_nir_data(data)["hidden"].size
      2

    Args:
      spikes: of each node, by its name in the graph. Batch axes become one.
      until: end of the recording in seconds; all spikes are before it.
      time_unit: the unit of time to write, in seconds.

    Raises:
      ValueError: spikes at `until` or later.
    """
    nir = _require_nir()
    _check_unit("time_unit", time_unit)
    nodes = {}
    for name, one in spikes.items():
        flat = one.reshape_batch(-1)
        time, index = np.asarray(flat.time, float), np.asarray(flat.index)
        late = np.isfinite(time) & (time >= until)
        if late.any():
            raise ValueError(
                f"{name} has a spike at {time[late].min()}, but until is {until}."
            )
        events = nir.EventData(index, time / time_unit, one.size, until / time_unit)
        nodes[name] = nir.NIRNodeData({"spikes": events})
    return nir.NIRGraphData(nodes)


def from_nir_data(
    data: nir.NIRGraphData | str | os.PathLike[str],
    *,
    observable: str = "spikes",
    time_unit: float = 1.0,
) -> dict[str, Spikes]:
    """Takes spikes from NIR's container of events.

    A time grid of booleans becomes spikes at the starts of its steps. Nodes without
    that observable have no entry; graphs within the graph are named as in `from_nir`.

    Args:
      data: the container, or the path of a file.
      observable: name of the spikes among a node's observables.
      time_unit: the unit of time that was written, in seconds.

    Returns:
      Spikes of each node, ``[samples, slots]``, in float64 if JAX allows it.

    Raises:
      ValueError: no node has that observable; events with values other than 1, which
        spikes do not have; indices or times that are none. The node is named.
    """
    nir = _require_nir()
    _check_unit("time_unit", time_unit)
    if not isinstance(data, nir.NIRGraphData):
        data = nir.read_data(data)
    found = {}
    for name, node in _nodes_of(nir, data):
        if observable in node.observables:
            try:
                found[name] = _spikes(nir, node.observables[observable], time_unit)
            except ValueError as error:
                raise ValueError(f"{observable} of node {name!r}: {error}") from error
    if not found:
        there = {n: sorted(node.observables) for n, node in _nodes_of(nir, data)}
        raise ValueError(f"no node has an observable {observable!r}, only {there}.")
    return found


class _Units(NamedTuple):
    """How quantities are written in a file; see the top of this module."""

    pulse: str | float
    time_unit: float
    voltage_unit: float

    @classmethod
    def checked(cls, pulse: Any, time_unit: Any, voltage_unit: Any) -> _Units:
        if isinstance(pulse, str):
            if pulse not in ("dirac", "jump"):
                raise ValueError(
                    f"pulse is {pulse!r}, expected 'dirac', 'jump', or the length of a"
                    " time step in seconds."
                )
        else:
            _check_unit("pulse", pulse)
            pulse = float(pulse)
        _check_unit("time_unit", time_unit)
        _check_unit("voltage_unit", voltage_unit)
        return cls(pulse, float(time_unit), float(voltage_unit))

    def factor(self, node: Any) -> np.ndarray:
        """What the weights of a neuron node are multiplied with, ``[neurons]``."""
        # Tools that are written for PyTorch put its tensors into graphs.
        r, w_in, tau_syn = (
            np.asarray(x, float) for x in (node.r, node.w_in, node.tau_syn)
        )
        jump = r * w_in * self.voltage_unit
        if self.pulse == "jump":
            return jump
        area = 1.0 if isinstance(self.pulse, str) else self.pulse / self.time_unit
        return jump * area / tau_syn

    def node(self, nir: Any, population: Neurons, slots: int | None) -> Any:
        """The node of a population."""
        neuron = population.neuron

        def spread(value: Any, unit: float) -> np.ndarray:
            full = np.broadcast_to(np.asarray(value, float), (population.size,))
            return full / unit

        tau_mem = spread(neuron.tau_mem, self.time_unit)
        tau_syn = spread(neuron.tau_syn, self.time_unit)
        r = w_in = np.ones(population.size)
        if self.pulse == "dirac":
            w_in = tau_syn
        elif not isinstance(self.pulse, str):
            step = self.pulse / self.time_unit
            r, w_in = tau_mem / step, tau_syn / step
        fields = {
            "tau_mem": tau_mem,
            "tau_syn": tau_syn,
            "r": r,
            "w_in": w_in,
            "v_leak": spread(neuron.v_leak, self.voltage_unit),
        }
        if not population.max_spikes:
            return nir.CubaLI(**fields)
        fields["v_threshold"] = spread(neuron.v_th, self.voltage_unit)
        fields["v_reset"] = spread(neuron.v_reset, self.voltage_unit)
        meta: dict[str, Any] = {"max_spikes": population.max_spikes}
        if slots is not None:
            meta["slots"] = slots
        if neuron.refractory:
            meta["t_ref"] = spread(neuron.t_ref, 1.0)
        return nir.CubaLIF(**fields, metadata={_META: meta})


class _Description(NamedTuple):
    """A network as devices see it, and what they need not know.

    Attributes:
      size: number of inputs.
      populations: in the order in which projections number them.
      slots: of layers that have a limit, by name.
      outputs: names of populations, or one name.
      wait: delay between the last population and the output.
    """

    size: int
    populations: list[Neurons]
    slots: dict[str, int]
    outputs: str | Sequence[str]
    wait: Any = 0.0


class _Everything:
    """A device that runs all layers, so that all are described."""

    samples = True


def _describe(module: Any) -> _Description:
    """Describes a module that is bound to its variables."""
    if isinstance(module, Graph):
        first = [c for c in module.connections if c.source == _INPUT]
        if not first:
            raise ValueError("no population of the graph is connected to the input.")
        (size, _) = jnp.shape(module.get_variable("params", first[0].name))
        return _Description(size, module._network(size), {}, module.outputs)
    layers = module.layers if isinstance(module, Network) else [module]
    neurons = [layer for layer in layers if not isinstance(layer, Delay)]
    if not neurons:
        raise ValueError("a network without neurons has no sizes that NIR could write.")
    size, _ = jnp.shape(neurons[0].get_variable("params", "kernel"))
    if isinstance(module, Network):
        everything: Any = _Everything()
        populations = list(module._network(everything, size).values())
    else:
        populations = [module.population()]
    slots = {
        p.name: layer.slots
        for p, layer in zip(populations, neurons, strict=True)
        if isinstance(layer, LIF) and layer.slots is not None
    }
    last = populations[-1]
    tail = layers[layers.index(neurons[-1]) + 1 :]
    wait = sum(np.asarray(layer.delays(last.size), float) for layer in tail)
    return _Description(size, populations, slots, last.name, wait)


def _synapses(
    nir: Any, name: str, weight: np.ndarray, delay: np.ndarray
) -> Iterator[tuple[str, Any]]:
    """Nodes in a row for weights ``[targets, sources]`` and delays that fit ``.T``."""
    targets, sources = weight.shape
    each = np.broadcast_to(delay, (sources, targets))
    linear = nir.Linear(weight)
    if not each.any():
        yield name, linear
    elif (each == each[:, :1]).all():
        yield f"{name}_delay", nir.Delay(each[:, 0].copy())
        yield name, linear
    elif (each == each[:1]).all():
        yield name, linear
        yield f"{name}_delay", nir.Delay(each[0].copy())
    else:
        copies = sources * targets
        if copies * max(sources, targets) > _MOST_COPIES:
            raise ValueError(
                f"{name} has {copies} delays of its own; NIR delays sources or targets,"
                " and a source for each synapse would take more than"
                f" {_MOST_COPIES} weights."
            )
        source, target = np.divmod(np.arange(copies), targets)
        spread = np.zeros((copies, sources), weight.dtype)
        spread[np.arange(copies), source] = 1
        gather = np.zeros((targets, copies), weight.dtype)
        gather[target, np.arange(copies)] = weight[target, source]
        yield f"{name}_copies", nir.Linear(spread)
        yield f"{name}_delay", nir.Delay(each.reshape(-1))
        yield name, nir.Linear(gather)


def _warn_of_metadata(nodes: Mapping[str, Any]) -> None:
    """Says what other tools will not know of the network."""
    notes = []
    for key, node in nodes.items():
        meta = dict(_meta(node))
        if "t_ref" in meta:
            meta["t_ref"] = (
                f"{np.min(meta['t_ref']):g} s to {np.max(meta['t_ref']):g} s"
            )
        notes += [f"{name} of {key} ({value})" for name, value in meta.items()]
    if notes:
        warnings.warn(
            f"NIR has no field for {', '.join(notes)}; it is metadata, which from_nir"
            " reads and other tools ignore.",
            stacklevel=3,
        )


@dataclasses.dataclass(frozen=True)
class _Paths:
    r"""How spikes of one source reach a place, and when.

    .. math:: y_n(t) = \sum_j W_{nj}\, x_j(t - D_{nj})

    Attributes:
      weight: ``[n, sources]``; None for the identity.
      delay: in the file's unit, fits ``[n, sources]``; NaN where there is no weight.
      dtype: of the weights on the way.
    """

    weight: np.ndarray | None = None
    delay: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((1, 1)))
    dtype: Any = None

    def scaled(self, scale: np.ndarray) -> _Paths:
        weight = np.diag(scale) if self.weight is None else scale[:, None] * self.weight
        return dataclasses.replace(self, weight=weight)

    def delayed(self, delay: np.ndarray) -> _Paths:
        more = delay[None] if self.weight is None else delay[:, None]
        return dataclasses.replace(self, delay=self.delay + more)

    def through(self, matrix: np.ndarray) -> _Paths:
        dtype = np.result_type(matrix, self.dtype or matrix)
        matrix = matrix.astype(float)
        if self.weight is None:
            return _Paths(matrix, self.delay, dtype)
        if self.weight.shape[0] != matrix.shape[1]:
            raise ValueError(
                f"it takes {matrix.shape[1]} values, but gets {self.weight.shape[0]}."
            )
        if self.delay.shape[0] == 1:
            return _Paths(matrix @ self.weight, self.delay, dtype)
        rows, sources = matrix.shape[0], self.weight.shape[1]
        each = np.broadcast_to(self.delay, self.weight.shape)
        weight, delay = np.zeros((rows, sources)), np.full((rows, sources), np.nan)
        for j in range(sources):
            on_the_way = np.flatnonzero(self.weight[:, j])
            part = matrix[:, on_the_way] * self.weight[on_the_way, j]
            wait = np.where(part != 0, each[on_the_way, j], np.nan)
            weight[:, j] = part.sum(axis=1)
            delay[:, j] = _the_only(wait)
        return _Paths(weight, delay, dtype)

    def beside(self, other: _Paths, size: int) -> _Paths:
        """Both, from the same source of that size."""
        pairs = [
            (np.eye(size) if p.weight is None else p.weight, p) for p in (self, other)
        ]
        waits = [
            np.where(w != 0, np.broadcast_to(p.delay, w.shape), np.nan)
            for w, p in pairs
        ]
        delay = _the_only(np.stack(waits, axis=-1))
        dtype = np.result_type(*[p.dtype for _, p in pairs if p.dtype] or [np.float32])
        return _Paths(pairs[0][0] + pairs[1][0], delay, dtype)


def _the_only(waits: np.ndarray) -> np.ndarray:
    """The one delay on the last axis besides NaN; NaN if there is none."""
    high = np.max(np.nan_to_num(waits, nan=-np.inf), axis=-1, initial=-np.inf)
    low = np.min(np.nan_to_num(waits, nan=np.inf), axis=-1, initial=np.inf)
    if (high > low).any():
        raise ValueError(
            "one neuron is reached by one source on two ways that take different"
            " times; here a synapse has one delay."
        )
    return np.where(np.isfinite(high), high, np.nan)


class _Reader:
    """Populations of a graph and the synapses between them."""

    def __init__(self, nir: Any, graph: Any, units: _Units, max_spikes: int | None):
        self._nir, self._units, self._max_spikes = nir, units, max_spikes
        self._nodes, edges = _flat(nir, graph)
        self._before: dict[str, list[str]] = {key: [] for key in self._nodes}
        for source, target in edges:
            self._before[target].append(source)
        self._entries = [k for k, n in graph.nodes.items() if isinstance(n, nir.Input)]
        self._exits = [k for k, n in graph.nodes.items() if isinstance(n, nir.Output)]
        self._check_nodes()
        spiking = nir.CubaLIF, nir.CubaLI
        self.neurons = {k: n for k, n in self._nodes.items() if isinstance(n, spiking)}
        if not self.neurons:
            raise ValueError("the graph has no CubaLIF or CubaLI node.")
        self._name = _names(self.neurons)
        entry = self._nodes[self._entries[0]]
        self._size = {_INPUT: int(np.prod(entry.input_type["input"]))}
        self._size |= {k: np.ravel(n.tau_mem).size for k, n in self.neurons.items()}
        self._leaving: dict[str, dict[str, _Paths]] = {}
        self._arriving = {key: self._arrivals(key, ()) for key in self.neurons}
        for key, paths in self._arriving.items():  # Fields of one entry hold for all.
            if self._size[key] == 1:
                rows = [
                    p.weight.shape[0] for p in paths.values() if p.weight is not None
                ]
                self._size[key] = max(rows, default=1)
        self._check_sizes()

    def chain(self) -> list[str] | None:
        """The populations in a row from the input to the only output, if they are."""
        after: dict[str, list[str]] = {_INPUT: []}
        for key, paths in self._arriving.items():
            others = [source for source in paths if source != key]
            if len(others) != 1:
                return None
            after.setdefault(others[0], []).append(key)
        row = [_INPUT]
        while len(after.get(row[-1], ())) == 1:
            row += after[row[-1]]
        complete = len(row) == 1 + len(self.neurons) and row[-1] not in after
        ends = complete and [source for source, _ in self._ends()] == row[-1:]
        # A network may have integrators at its end only.
        spiking = all(self._spikes(key) for key in row[1:-1])
        own = row[-1] in self._arriving.get(row[-1], {}) and not self._spikes(row[-1])
        return row[1:] if ends and spiking and not own else None

    def network(self, chain: Sequence[str], kind: str | None) -> tuple[Any, dict]:
        """Populations in a row as a `Network`, or as the one layer that they were."""
        layers: list[Any] = []
        params: dict[str, Any] = {}
        ((_, tail),) = self._ends()
        bare = kind in ("LIF", "LI") and len(chain) == 1 and tail == 0
        taken = list(self._name.values())  # A Delay has no parameters, but a name.
        for source, key in zip([_INPUT, *chain], chain, strict=False):
            name, size = self._name[key], self._size[key]
            kernel, delay = self._synapses(source, key)
            params[name] = {"kernel": kernel}
            fields = self._fields(key) | {"features": size, "param_dtype": kernel.dtype}
            by_source = not isinstance(delay, tuple) or len(delay[0]) == 1
            if not self._spikes(key):
                if not by_source:
                    raise self._refusal(
                        key,
                        "an LI has no delays of its synapses; they are not those"
                        " of the sources alone",
                    )
            elif not by_source or (bare and delay != 0):
                fields["delay"], delay = delay, 0.0
            if delay != 0:
                flat = tuple(d for (d,) in delay) if isinstance(delay, tuple) else delay
                taken.append(_other(f"{name}_delay", taken))
                layers.append(Delay(flat, param_dtype=kernel.dtype, name=taken[-1]))
            if key in self._arriving[key]:
                own, wait = self._synapses(key, key)
                params[name]["recurrent_kernel"] = own
                fields |= {"recurrent": True, "recurrent_delay": wait}
            layer = LIF if self._spikes(key) else LI
            fields |= {} if bare else {"name": name}
            layers.append(self._made(key, layer, fields))
        if bare:
            return layers[-1], {"params": params[name]}
        if tail != 0:
            name = _other("output_delay", taken)
            layers.append(Delay(tail, param_dtype=kernel.dtype, name=name))
        return Network(layers), {"params": params}

    def graph(self, outputs: str | None) -> tuple[Graph, dict]:
        """Populations connected in any way as a `Graph`."""
        populations, connections, params = {}, [], {}
        names = {_INPUT: _INPUT, **self._name}
        for key, name in self._name.items():
            if not self._spikes(key):
                raise self._refusal(
                    key,
                    "integrators can be the last layer of populations in a row, not"
                    " part of a Graph",
                )
            fields = self._fields(key) | {"features": self._size[key]}
            if "slots" in fields:
                raise self._refusal(key, "populations of a Graph have no slots")
            populations[name] = self._made(key, Population, fields)
        for key, paths in self._arriving.items():
            for source in paths:
                kernel, delay = self._synapses(source, key)
                c = Connection(names[source], names[key], delay=delay)
                connections.append(c)
                params[c.name] = kernel
        ends = self._ends()
        for key, wait in ends:
            if wait != 0:
                raise self._refusal(
                    key, "a Graph has no delays between populations and outputs"
                )
        found: Any = [self._name[key] for key, _ in ends]
        if outputs is not None:  # As the graph was before it was written.
            many = "," in outputs
            found = [name for name in outputs.split(",") if name] if many else outputs
        elif len(found) == 1:
            (found,) = found
        dtype = jnp.result_type(*params.values())
        try:
            module = Graph(populations, connections, found, param_dtype=dtype)
        except ValueError as error:
            raise ValueError(f"the NIR graph: {error}") from error
        loop = {name: k for k, group in enumerate(module.order()) for name in group}
        for c in connections:
            inside = loop.get(c.source) == loop[c.target]
            each: Any = c.delay
            if isinstance(each, tuple) and len(each[0]) > 1 and not inside:
                raise ValueError(
                    f"the delays from {c.source!r} to {c.target!r} depend on the"
                    " target, which a Graph can have in loops only."
                )
        return module, {"params": params}

    def _check_nodes(self) -> None:
        """Raises for what cannot be read."""
        nir = self._nir
        current = "it has no synaptic time constant, so that spikes would move voltages"
        reasons = {
            nir.LIF: f"{current} at once; CubaLIF can be read",
            nir.LI: f"{current} at once; CubaLI can be read",
            nir.IF: "it has no leak and no synaptic time constant; CubaLIF can be read",
            nir.I: "it has no leak and no synaptic time constant; CubaLI can be read",
            nir.Threshold: "a threshold is read as part of a CubaLIF only",
            nir.Conv1d: "there are no convolutions; write it as a Linear node",
            nir.Conv2d: "there are no convolutions; write it as a Linear node",
            nir.SumPool2d: "there is no pooling; write it as a Linear node",
            nir.AvgPool2d: "there is no pooling; write it as a Linear node",
        }
        known = (
            nir.Input, nir.Output, nir.CubaLIF, nir.CubaLI, nir.Linear, nir.Affine,
            nir.Scale, nir.Delay, nir.Flatten,
        )  # fmt: skip
        for key, node in self._nodes.items():
            if not isinstance(node, known):
                raise self._refusal(key, reasons.get(type(node), "it is not known"))
            if isinstance(node, nir.Affine) and np.any(np.asarray(node.bias)):
                raise self._refusal(
                    key,
                    "its bias is a current that never ends, which neurons here do not"
                    " have; add r * w_in * bias to v_leak of the neurons behind it if"
                    " its onset does not matter",
                )
            if isinstance(node, nir.Affine | nir.Linear) and node.weight.ndim != 2:
                raise self._refusal(key, f"its weight has shape {node.weight.shape}")
        if len(self._entries) != 1:
            raise ValueError(
                f"the graph has {len(self._entries)} Input nodes, expected one;"
                " jaxsnn.concatenate makes one population of several."
            )
        if not self._exits:
            raise ValueError("the graph has no Output node.")

    def _check_sizes(self) -> None:
        for key, paths in self._arriving.items():
            for source, p in paths.items():
                here, there = self._size[key], self._size[source]
                shape = (there, there) if p.weight is None else p.weight.shape
                if shape != (here, there) or np.ravel(self.neurons[key].r).size > here:
                    raise self._refusal(
                        key,
                        f"it has {here} neurons, but weights of shape {shape} come"
                        f" from {there} sources",
                    )

    def _arrivals(self, key: str, way: tuple[str, ...]) -> dict[str, _Paths]:
        """What reaches a node, by the population that it comes from."""
        found: dict[str, _Paths] = {}
        for before in self._before[key]:
            for source, paths in self._departures(before, way).items():
                if source in found:
                    try:
                        paths = found[source].beside(paths, self._size[source])
                    except ValueError as error:
                        raise self._refusal(key, str(error)) from error
                found[source] = paths
        return found

    def _departures(self, key: str, way: tuple[str, ...]) -> dict[str, _Paths]:
        """What leaves a node, by the population that it comes from."""
        nir, node = self._nir, self._nodes[key]
        if key in self._entries:
            return {_INPUT: _Paths()}
        if key in self.neurons:
            if not self._spikes(key):
                raise self._refusal(key, "its voltage acts on other nodes")
            return {key: _Paths()}
        if key in way:
            raise self._refusal(key, "it acts on itself without a neuron in between")
        if key not in self._leaving:
            found = self._arrivals(key, (*way, key))
            try:
                if isinstance(node, nir.Linear | nir.Affine):
                    weight = np.asarray(node.weight)
                    found = {s: p.through(weight) for s, p in found.items()}
                elif isinstance(node, nir.Scale):
                    found = {
                        s: p.scaled(np.ravel(node.scale)) for s, p in found.items()
                    }
                elif isinstance(node, nir.Delay):
                    wait = np.ravel(node.delay).astype(float)
                    found = {s: p.delayed(wait) for s, p in found.items()}
            except ValueError as error:
                raise self._refusal(key, str(error)) from error
            self._leaving[key] = found
        return self._leaving[key]

    def _ends(self) -> list[tuple[str, Any]]:
        """The populations that are read out, and the delays on the way there."""
        found: list[tuple[str, Any]] = []
        for key in self._exits:
            direct = self._before[key]
            if len(direct) == 1 and direct[0] in self.neurons:
                found.append((direct[0], 0.0))  # Also voltages, which nothing else has.
                continue
            arriving = self._arrivals(key, ())
            if len(arriving) != 1:
                raise self._refusal(key, "it is not the spikes of one population")
            ((source, paths),) = arriving.items()
            unit = np.eye(self._size[source])
            if source == _INPUT or not (
                paths.weight is None or np.array_equal(paths.weight, unit)
            ):
                raise self._refusal(key, "it is not the spikes of one population")
            diagonal = np.broadcast_to(paths.delay, unit.shape).diagonal()
            found.append((source, _value(diagonal * self._units.time_unit)))
        return found

    def _synapses(self, source: str, target: str) -> tuple[jax.Array, Any]:
        """Kernel ``[sources, targets]`` and its delays in the simplest form."""
        paths = self._arriving[target][source]
        weight = np.eye(self._size[source]) if paths.weight is None else paths.weight
        factor = np.broadcast_to(
            self._units.factor(self.neurons[target]), weight.shape[:1]
        )
        dtype = np.result_type(paths.dtype or np.float32)
        kernel = (weight * factor[:, None]).T
        wait = np.broadcast_to(paths.delay, weight.shape).T * self._units.time_unit
        return jnp.asarray(kernel, jax.dtypes.canonicalize_dtype(dtype)), _simplest(
            wait
        )

    def _fields(self, key: str) -> dict[str, Any]:
        """Attributes of a layer of these neurons."""
        node, units = self.neurons[key], self._units
        fields = {
            "tau_mem": _value(np.ravel(node.tau_mem) * units.time_unit),
            "tau_syn": _value(np.ravel(node.tau_syn) * units.time_unit),
            "v_leak": _value(np.ravel(node.v_leak) * units.voltage_unit),
        }
        if not self._spikes(key):
            return fields
        fields["v_th"] = _value(np.ravel(node.v_threshold) * units.voltage_unit)
        fields["v_reset"] = _value(np.ravel(node.v_reset) * units.voltage_unit)
        meta = _meta(node)
        limit = meta.get("max_spikes") if self._max_spikes is None else self._max_spikes
        if limit is None:
            raise ValueError(
                f"NIR has no limit on the spikes of node {key!r}, but its layer needs"
                " one; write max_spikes=, as many as a neuron may fire in a run."
            )
        fields["max_spikes"] = int(limit)
        if "slots" in meta:
            fields["slots"] = int(meta["slots"])
        if "t_ref" in meta:
            fields["t_ref"] = _value(np.ravel(meta["t_ref"]))
        return fields

    def _made(self, key: str, kind: Any, fields: Mapping[str, Any]) -> Any:
        try:
            return kind(**fields)
        except ValueError as error:
            raise self._refusal(key, str(error)) from error

    def _spikes(self, key: str) -> bool:
        return isinstance(self.neurons[key], self._nir.CubaLIF)

    def _refusal(self, key: str, reason: str) -> ValueError:
        kind = type(self._nodes[key]).__name__
        return ValueError(
            f"NIR node {key!r} ({kind}) cannot be represented: {reason.rstrip('.')}."
        )


def _flat(nir: Any, graph: Any, prefix: str = "") -> tuple[dict[str, Any], list]:
    """Nodes and edges with those of graphs within the graph, as ``graph.node``."""
    nodes: dict[str, Any] = {}
    edges: list[tuple[str, str]] = []
    gates: dict[str, tuple[str, str]] = {}
    for key, node in graph.nodes.items():
        name = prefix + key
        if not isinstance(node, nir.NIRGraph):
            nodes[name] = node
            continue
        inner, between = _flat(nir, node, f"{name}.")
        nodes |= inner
        edges += between
        ends = [
            [f"{name}.{k}" for k, n in node.nodes.items() if isinstance(n, kind)]
            for kind in (nir.Input, nir.Output)
        ]
        if [len(end) for end in ends] != [1, 1]:
            raise ValueError(
                f"NIR node {name!r} (NIRGraph) cannot be represented: it has"
                f" {len(ends[0])} Input and {len(ends[1])} Output nodes, expected one"
                " of each."
            )
        gates[name] = ends[0][0], ends[1][0]
    for ends in graph.edges:
        source, target = (prefix + str(end) for end in ends)
        source = gates[source][1] if source in gates else source
        target = gates[target][0] if target in gates else target
        edges.append((source, target))
    unknown = {key for edge in edges for key in edge} - nodes.keys()
    if unknown:
        raise ValueError(f"edges of the NIR graph name {sorted(unknown)}, no node.")
    return nodes, edges


def _names(keys: Mapping[str, Any]) -> dict[str, str]:
    """Names of layers for nodes: letters, digits and underscores, all different."""
    names: dict[str, str] = {}
    for key in keys:
        names[key] = _other(re.sub(r"\W", "_", key), [_INPUT, *names.values()])
    return names


def _other(name: str, taken: Sequence[str]) -> str:
    """The name, or one like it that is free."""
    while name in taken:
        name += "_"
    return name


def _value(array: np.ndarray) -> float | tuple[float, ...]:
    """A number if all entries are the same: then closed forms can be compiled in."""
    return float(array[0]) if (array == array[0]).all() else tuple(array.tolist())


def _simplest(wait: np.ndarray) -> Any:
    """Delays ``[sources, targets]``, NaN for any, as a number or nested tuples."""
    low = np.where(np.isnan(wait), np.inf, wait)
    high = np.where(np.isnan(wait), -np.inf, wait)
    for axis in (None, 1, 0):
        least = low.min(axis=axis, keepdims=True)
        if not (high.max(axis=axis, keepdims=True) > least).any():
            wait = np.where(np.isinf(least), 0.0, least)
            break
    wait = np.nan_to_num(wait)
    return float(wait[0, 0]) if wait.size == 1 else tuple(map(tuple, wait.tolist()))


def _meta(node: Any) -> Mapping[str, Any]:
    """What this library wrote into the metadata of a node."""
    metadata = node.metadata if isinstance(node.metadata, Mapping) else {}
    return metadata.get(_META, {})


def _check_unit(name: str, value: Any) -> None:
    if not (np.ndim(value) == 0 and np.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value!r}, expected a positive number.")


def _check_plausible(neurons: Mapping[str, Any]) -> None:
    for key, node in neurons.items():
        longest = np.max([np.max(np.asarray(x)) for x in (node.tau_mem, node.tau_syn)])
        if longest > 1:
            raise ValueError(
                f"node {key!r} has a time constant of {longest:g}. If the file is in"
                " milliseconds, write time_unit=1e-3; if in seconds, time_unit=1.0."
            )


def _nodes_of(nir: Any, data: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nodes of a data container, with those of containers in it."""
    for key, node in data.nodes.items():
        if isinstance(node, nir.NIRGraphData):
            yield from _nodes_of(nir, node, f"{prefix}{key}.")
        else:
            yield prefix + key, node


def _spikes(nir: Any, data: Any, time_unit: float) -> Spikes:
    if isinstance(data, nir.TimeGriddedData):
        if data.data.dtype != bool:
            raise ValueError("a time grid that is not of booleans has no spikes.")
        return encode_raster(data.data, dt=data.dt * time_unit)[0]
    there = np.asarray(data.idx) != NO_INDEX
    if isinstance(data, nir.ValuedEventData) and (data.value[there] != 1).any():
        raise ValueError("its events have values other than 1, and spikes have none.")
    time = np.asarray(data.time, float) * time_unit
    return Spikes.from_events(  # A slot with the index -1 is empty, whatever its time.
        jnp.asarray(time), jnp.asarray(data.idx, jnp.int32), int(data.n_neurons)
    )


def _require_nir() -> Any:
    try:
        import nir
    except ImportError as error:
        raise ImportError(
            "NIR graphs need the package nir: pip install nir."
        ) from error
    return nir
