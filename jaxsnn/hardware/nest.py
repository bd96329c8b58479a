"""NEST as a device: an independent simulator that finds the spikes."""

import contextlib
import ctypes
import dataclasses
import itertools
import math
import os
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from jaxsnn.backend import Population
from jaxsnn.dynamics import Time
from jaxsnn.hardware.host import Events, HostBackend, HostPopulation, Observed, known
from jaxsnn.hardware.limits import Limits
from jaxsnn.spikes import _traced

NEVER = 1e300  # A threshold that is not reached.
ROUNDING = 2.0**-23  # Of a time that was written down in float32.
LONGEST_LEAD = 20.0  # Of a clock, in time constants, before rounding matters.


@dataclasses.dataclass(eq=False, kw_only=True)
class Nest(HostBackend):
    r"""Runs networks on `NEST <https://www.nest-simulator.org>`_.

    Its model ``iaf_psc_exp_ps`` is the neuron of this package,

    .. math::
        \tau_m \dot V = -(V - v_\mathrm{leak}) + I, \qquad \tau_s \dot I = -I,

    with spike times that are not bound to NEST's grid, so that spikes agree with those
    of the exact simulation to rounding. The gradient of what NEST did is exact too. Any
    populations and projections are possible, with parameters of each neuron.

    One copy of the network is built per batch, and the samples run in it one after the
    other, each from rest. What NEST cannot do is refused:

    - Delays and refractory periods are whole multiples of `resolution`. (NEST itself
      rounds others silently.)
    - A spike takes `resolution` at least. From layer to layer this is taken back, for
      each layer has a clock of its own, that much late; but in a loop the delays must
      add up to it, in a recurrent layer each.
    - A neuron that may fire again needs a refractory period. One with ``max_spikes=1``
      gets one that lasts to the end of the window: it is silent then.

    With ``max_spikes > 1`` a neuron goes on beyond that number. Those spikes do act on
    others, and are counted in `extra`. A neuron that is over its threshold for less
    than a fraction of a step, between two events, may be missed; the shorter the step,
    the rarer.

    NEST is one simulator per process, which every run resets: networks that were built
    in it by hand do not outlive that, and a program that uses it by hand must import it
    first. Several of these backends take turns. It is installed by ``pip install
    nest-simulator``, imported in the first run, and licensed as GPL.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> from jaxsnn import Spikes
      >>> from jaxsnn.hardware import Nest
      >>> from jaxsnn.layers import LIF, Network
      >>> inputs = Spikes.from_times(jnp.array([[[1e-3], [2e-3]]]))
      >>> network = Network([LIF(8), LIF(3)], backend=Nest())
      >>> variables = network.init(jax.random.key(0), inputs, until=60e-3)
      >>> layer = LIF(4, t_ref=0.17e-3, max_spikes=2, backend=Nest())
      >>> layer.init(jax.random.key(0), inputs, 60e-3)  # doctest: +ELLIPSIS
      Traceback (most recent call last):
        ...
      ValueError: NEST: layer 'LIF' has t_ref = 0.00017 s, ... Write 0.0001 or 0.0002...

    Attributes:
      resolution: NEST's step in seconds, a multiple of 1 us. It changes what delays and
        refractory periods are possible, and speed, not accuracy.

    The model is that of Hanuschkin et al., `A general and efficient method for
    incorporating precise spike times in globally time-driven simulations
    <https://doi.org/10.3389/fninf.2010.00113>`_ (2010).
    """

    resolution: float = 1e-4

    one_thread: ClassVar[bool] = True  # NEST is one per process.
    limits: ClassVar[Limits] = Limits(
        name="NEST", delays=True, recurrent=True, longest=1e9
    )

    def __post_init__(self) -> None:
        """Checks the attributes."""
        super().__post_init__()
        ticks = self.resolution * 1e6
        if not (ticks > 0.5 and abs(ticks - round(ticks)) < 1e-6 * ticks):
            raise ValueError(
                f"Nest.resolution is {self.resolution!r}, expected a multiple of 1e-6:"
                " it is in seconds."
            )

    def check(self, populations: Sequence[Population], until: Time) -> None:
        """Raises for a network that NEST cannot run."""
        super().check(populations, until)
        network = known(populations, self.time_scale)
        if network is not None and not _traced(until):
            _plan(network, float(until) * self.time_scale, self.resolution)

    def compile(
        self, network: Sequence[HostPopulation], inputs: int, until: float
    ) -> None:
        """Lays out the network on NEST's grid."""
        _nest()
        self._plan = _plan(network, until, self.resolution)
        self._network, self._sources, self._until = network, inputs, until

    def run(
        self, inputs: Events, weights: Sequence[Sequence[np.ndarray]], seed: int
    ) -> Sequence[Observed]:
        """Builds the network and runs the samples one after the other."""
        del seed  # Nothing is random.
        nest = _nest()
        plan, step = self._plan, 1e3 * self.resolution  # NEST counts in ms.
        batch = len(inputs.time)
        nest.ResetKernel()
        nest.verbosity = nest.VerbosityLevel.ERROR
        nest.resolution = step
        sources = nest.Create("spike_generator", self._sources, {"precise_times": True})
        neurons = nest.Create(
            "iaf_psc_exp_ps", len(plan.parameters["t_ref"]), plan.parameters
        )
        recorder = nest.Create("spike_recorder", {"time_in_steps": True})
        parts = [sources, *(neurons[part] for part in plan.parts)]
        for target, population in enumerate(self._network):
            for k, projection in enumerate(population.projections):
                # NEST's order is target, source.
                synapse = {
                    "weight": np.asarray(weights[target][k], float).T,
                    "delay": step * plan.delays[target][k].T,
                }
                pair = parts[projection.source], parts[target + 1]
                nest.Connect(*pair, "all_to_all", synapse)
        nest.Connect(neurons, recorder, syn_spec={"delay": step})

        real = inputs.index >= 0
        begin = step * (plan.length * np.arange(batch) + plan.late[0])[:, None]
        time, source = (1e3 * inputs.time + begin)[real], inputs.index[real]
        order = np.argsort(source, kind="stable")
        ends = np.searchsorted(source[order], np.arange(1, self._sources))
        trains = np.split(time[order], ends)
        sources.set([{"spike_times": train} for train in trains])
        for _ in range(batch):
            neurons.set(plan.rest)
            nest.Simulate(step * plan.window)
            neurons.set(V_th=NEVER)
            nest.Simulate(step * (plan.length - plan.window))

        events = recorder.events
        # Step n ends at n; a spike in it came an offset earlier.
        sample, at = np.divmod(events["times"] - 1, plan.length)
        at = step * (at + 1).astype(float)
        neuron = events["senders"] - neurons[0].global_id
        found = []
        for k, part in enumerate(plan.parts, start=1):
            time = 1e-3 * ((at - step * plan.late[k]) - events["offsets"])
            own = (neuron >= part.start) & (neuron < part.stop)
            own &= (time >= 0) & (time < self._until)
            place = neuron[own] - part.start
            found.append(Observed.from_list(batch, sample[own], time[own], place))
        return found


class _Plan(NamedTuple):
    """A network as NEST runs it; times are in steps.

    Attributes:
      parameters: of all neurons, by NEST's names.
      rest: their state at the beginning of a window, with their thresholds.
      parts: which neurons are whose.
      delays: for each population, of each projection, ``[source size, neurons]``.
      late: by how much the clock of the inputs, and of each population, is late.
      window: how long a sample runs.
      length: that and a pause, after which no neuron is refractory and no spike is
        under way.
    """

    parameters: dict[str, Any]
    rest: dict[str, Any]
    parts: list[slice]
    delays: list[list[np.ndarray]]
    late: list[int]
    window: int
    length: int


def _plan(network: Sequence[HostPopulation], until: float, resolution: float) -> _Plan:
    """Lays out a network on NEST's grid; raises for what is not on it."""
    own = [
        [
            np.broadcast_to(_steps("a delay", p, q.delay, resolution), q.shape)
            for q in p.projections
        ]
        for p in network
    ]
    late = _late(network, own, resolution)
    window = math.ceil(until / resolution) + max(late)
    delays = [
        [
            steps + late[k] - late[q.source]
            for steps, q in zip(row, p.projections, strict=True)
        ]
        for k, (row, p) in enumerate(zip(own, network, strict=True), start=1)
    ]
    t_ref = np.concatenate([_rest_period(p, window, resolution) for p in network])
    under_way = [steps.max(initial=0) for row in delays for steps in row]
    pause = max(t_ref.max(), *under_way) + 1

    def column(name: str) -> np.ndarray:
        return np.concatenate([p.neuron[name] for p in network])

    sizes = [p.size for p in network]
    tau_mem, tau_syn = 1e3 * column("tau_mem"), 1e3 * column("tau_syn")
    v_th, v_leak, v_reset = column("v_th"), column("v_leak"), column("v_reset")
    # Neurons that fire without input begin at the reset voltage when their clock does.
    # Before that they are where they come from to it.
    before = 1e3 * resolution * np.repeat(late[1:], sizes) / tau_mem
    unprompted = v_leak > v_th
    if (before[unprompted] > LONGEST_LEAD).any():
        raise ValueError(
            f"NEST: v_leak is above v_th where tau_mem is only"
            f" {1e-3 * tau_mem[unprompted].min():g} s; choose Nest(resolution=...) in"
            " proportion to it."
        )
    lead = np.exp(np.where(unprompted, before, 0))
    ends = np.cumsum([0, *sizes])
    return _Plan(
        parameters={
            "C_m": tau_mem,  # With this, a weight in pA is one in mV.
            "tau_m": tau_mem,
            "tau_syn_ex": tau_syn,
            "tau_syn_in": tau_syn,
            "E_L": v_leak,
            "V_reset": v_reset,
            "V_th": v_th,
            "I_e": np.zeros(len(v_th)),
            "t_ref": 1e3 * resolution * t_ref,
        },
        rest={
            "V_th": v_th,
            "V_m": np.where(unprompted, v_leak + (v_reset - v_leak) * lead, v_leak),
            "I_syn_ex": 0.0,
            "I_syn_in": 0.0,
        },
        parts=[slice(a, b) for a, b in itertools.pairwise(ends.tolist())],
        delays=delays,
        late=late,
        window=window,
        length=int(window + pause),
    )


def _late(network, delays, resolution: float) -> list[int]:
    """The least by which clocks can be late so that each delay is a step at least.

    A spike of a source arrives, by the clocks, with the delay that it should have.
    """
    late = [1] + [0] * len(network)  # An input at 0 is in the first step then.
    for _ in range(len(network) + 1):
        changed = None
        for k, (p, row) in enumerate(zip(network, delays, strict=True), start=1):
            for q, steps in zip(p.projections, row, strict=True):
                needed = late[q.source] + 1 - int(steps.min(initial=1))
                if needed > late[k]:
                    late[k], changed = needed, p.name
        if changed is None:
            return late
    raise ValueError(
        f"NEST: layer '{changed}' is part of a loop with too short delays: on the way"
        f" around, each connection takes {resolution:g} s, the resolution, at least."
        " Give recurrent connections a delay, or choose another Nest(resolution=...)."
    )


def _rest_period(population: HostPopulation, window: int, resolution: float):
    """Refractory period of each neuron, in steps."""
    t_ref = population.neuron["t_ref"]
    if population.max_spikes == 1:
        return np.full(population.size, window)
    if (t_ref < resolution / 2).any():
        raise ValueError(
            f"NEST: layer '{population.name}' has max_spikes = {population.max_spikes}"
            f" and t_ref = {t_ref.min():g} s, but a neuron of NEST is refractory for"
            f" {resolution:g} s, the resolution, at least. Write t_ref={resolution:g},"
            " or max_spikes=1."
        )
    return _steps("t_ref", population, t_ref, resolution)


def _steps(what: str, population: HostPopulation, value, resolution: float):
    """Times in steps; raises for one that is no whole number of them."""
    exact = np.asarray(value) / resolution
    steps = np.round(exact)
    off = np.abs(exact - steps) > ROUNDING * exact
    if off.any():
        bad = float(exact[off].flat[0])
        near = [f"{n * resolution:.9g}" for n in (np.floor(bad), np.ceil(bad))]
        raise ValueError(
            f"NEST: layer '{population.name}' has {what} = {bad * resolution:.9g} s,"
            f" which is no multiple of its resolution, {resolution:g} s. Write"
            f" {near[0]} or {near[1]}, or choose another Nest(resolution=...)."
        )
    return steps.astype(int)


def _nest() -> Any:
    """The module, without its banner, ready for the thread that asks."""
    os.environ.setdefault("PYNEST_QUIET", "1")
    try:
        import nest
        from nest import nestkernel_api
    except ImportError as error:
        raise ImportError(
            "Nest runs networks on NEST, which is not installed. Write: pip install"
            " 'nest-simulator>=3.10'."
        ) from error
    # NEST tells OpenMP the number of its threads when it is imported, which holds for
    # the thread that did so; in any other there would be more than NEST knows of, and
    # it would crash.
    with contextlib.suppress(AttributeError):  # Built without OpenMP.
        ctypes.CDLL(nestkernel_api.__file__).omp_set_num_threads(1)
    return nest
