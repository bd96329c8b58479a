"""The BrainScaleS-2 chip, driven through its vendor's PyNN interface."""

import contextlib
import dataclasses
import importlib
import importlib.util
import json
import math
import os
import pathlib
import warnings
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsnn.backend import Population, Projection
from jaxsnn.dynamics import Neuron, Time, psp
from jaxsnn.hardware.errors import LinkError
from jaxsnn.hardware.host import (
    Events,
    HostBackend,
    HostPopulation,
    Observed,
    known,
)
from jaxsnn.hardware.limits import BRAINSCALES2, _known
from jaxsnn.spikes import NO_INDEX, Spikes

_TICK = 8e-9  # Seconds; the clock of the FPGA runs at 125 MHz.

# Neurons of PyNN are single circuits. A run's clock has 32 bits.
_LIMITS = dataclasses.replace(
    BRAINSCALES2, joins=False, samples=False, longest=2**32 * _TICK
)

_SHORTEST_T_REF = 40e-9

# Voltages that a neuron can be calibrated to, in steps of the chip's ADC.
_LEVELS = {
    "v_rest": ("v_leak", 50, 160),
    "v_reset": ("v_reset", 50, 160),
    "v_thresh": ("v_th", 50, 220),
}

_NO_STACK = (
    "BrainScaleS2 needs the vendor's package pynn_brainscales, which is not on PyPI:"
    " it is part of the EBRAINS software (Jupyter kernels, spack) and of the"
    " containers of Electronic Vision(s). Run there, or use"
    " jaxsnn.hardware.SimulatedChip, a model of the chip."
)

_NO_CONNECTION = (
    "the vendor's software found no chip to connect to. It looks for one in the"
    " environment: QUIGGELDY_ENABLED=1 with QUIGGELDY_IP and QUIGGELDY_PORT (a chip"
    " shared over the network, as on EBRAINS), SLURM_FPGA_IPS (a chip of one's own,"
    " set by the allocation of a job), FLANGE_SIMULATION_RCF_HOST and _PORT (a"
    " simulation), or HXCOMM_ENABLE_ZERO_MOCK=1 (no chip: every run returns nothing)."
)

# The vendor's package is one session per process: setup() by one backend would make
# what another has built invalid. Whoever called setup() last, by the package's id.
_sessions: dict[int, weakref.ref] = {}


# Units. The chip counts ticks, PyNN takes and gives times of events in ms, a neuron's
# parameters are in us, and everything else here is in seconds.


def _ms(ticks: np.ndarray | int) -> Any:
    """Ticks in ms, a bit late: the vendor's conversion back to ticks rounds down."""
    return (ticks + 0.25) * (_TICK * 1e3)


def _ticks(ms: np.ndarray) -> np.ndarray:
    """Times of events in ms in ticks, which they are whole multiples of."""
    return np.round(np.asarray(ms, float) / (_TICK * 1e3)).astype(np.int64)


def _us(seconds: np.ndarray) -> np.ndarray:
    """Seconds in us."""
    return seconds * 1e6


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What a chip was measured to do; see `BrainScaleS2.measure`.

    Attributes:
      scale: integers per unit of weight; median over the neurons.
      latency: seconds on the chip that a spike takes per hop; median.
      scale_spread: standard deviation over the neurons, relative to `scale`.
      latency_spread: the same of the latency, in seconds.
      first_weight: median of the smallest integer weight that makes a neuron fire.
      neurons: how many neurons could be used.
      unusable: how many never fired, or at every weight.
      inputs: how many inputs spiked at once.
      tau_mem: of the neurons, in seconds of the model. Likewise below.
      tau_syn: of the neurons.
      time_scale: of the backend. Likewise below.
      zero: of the backend.
      unit: of the backend.
      calibration: of the backend.
    """

    scale: float
    latency: float
    scale_spread: float
    latency_spread: float
    first_weight: float
    neurons: int
    unusable: int
    inputs: int
    tau_mem: float
    tau_syn: float
    time_scale: float
    zero: float
    unit: float
    calibration: str | None

    def save(self, path: str | os.PathLike) -> None:
        """Writes a JSON file, whole or not at all."""
        path = pathlib.Path(path)
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")
        part.replace(path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Self:
        """Reads a file of `save`; ValueError if it is not one, or not all of one."""
        names = {field.name for field in dataclasses.fields(cls)}
        try:
            found = json.loads(pathlib.Path(path).read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{path} is not the JSON of a measurement, or was cut short ({error})."
                " Measure again: BrainScaleS2(...).measure(path=...)."
            ) from error
        if not isinstance(found, dict) or found.keys() != names:
            wrong = sorted(names ^ set(found)) if isinstance(found, dict) else found
            raise ValueError(
                f"{path} is not a measurement: missing or unknown are {wrong}."
                " Measure again: BrainScaleS2(...).measure(path=...)."
            )
        return cls(**found)


class _Built(NamedTuple):
    """A network on the chip.

    Attributes:
      pynn: the vendor's package.
      sources: number of inputs.
      inputs: their population.
      populations: those of the layers.
      projections: of each layer, for each of its projections the excitatory and the
        inhibitory one.
      shifts: how much later than in the model each layer fires, in ticks.
      until: end of a sample's window, in ticks.
      period: from one sample to the next, in ticks.
      written: the weights that the projections have.
    """

    pynn: Any
    sources: int
    inputs: Any
    populations: list[Any]
    projections: list[list[tuple[Any, Any]]]
    shifts: np.ndarray
    until: float
    period: int
    written: dict[tuple[int, int], np.ndarray]


@dataclasses.dataclass(eq=False, kw_only=True)
class BrainScaleS2(HostBackend):
    r"""The BrainScaleS-2 chip.

    Written against pynn-brainscales fd4f926 (2026-07-31), and exercised against a
    stand-in with the same interface; it has not yet been run on a chip.

    The samples of a batch run one after the other, in one run of the chip, sample
    :math:`b` from :math:`b P` on: the period :math:`P` is the window plus a pause in
    which the neurons come to rest, rounded up to the clock of 8 ns. What is observed in
    sample :math:`b` of a layer :math:`h` hops from the inputs is reported at

    .. math:: t = t_\mathrm{chip} - b P - h \cdot \mathrm{latency}.

    Weights are integers from -63 to 63, positive ones on excitatory synapses and
    negative ones on inhibitory ones, so that a neuron has at most 128 signed inputs.
    An integer on the chip has a strength of its own: `scale` is measured, not chosen.

    Neurons are calibrated for the network when it first runs, which takes about five
    minutes, or come from a file. Without a file, a model's voltage :math:`V` is
    :math:`\mathrm{zero} + \mathrm{unit} \cdot V` steps of the chip's ADC. A layer with
    ``max_spikes=1`` gets the longest refractory period, 32 us; in a longer window its
    neurons may fire again, which is counted as `extra`, but acts on the next layer.
    Other layers get the model's `t_ref`, or the shortest possible, 40 ns.

    Spikes outside of every window, before it began or in the pause, are counted as
    `lost`. Events that never reach the host are not known to it: the interface does not
    report them, and a neuron is then silent in that sample. Inputs of the same time
    leave one after the other, one each 8 ns, which the model does not know about.
    Voltages cannot be read; an `LI` layer is computed from the spikes before it.

    A `RuntimeError` out of a run, which is how the vendor's software reports a fault of
    the link, is tried again `retries` times. The software is one session per process:
    `close` a backend before another one runs.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> from jaxsnn.coding import encode_latency
      >>> from jaxsnn.hardware.brainscales2 import BrainScaleS2
      >>> from jaxsnn.layers import LIF, Network
      >>> network = Network([LIF(8, name="hidden"), LIF(3, name="output")])
      >>> inputs = encode_latency(jnp.array([[0.2, 0.7]]), t_late=10e-3, bias=0.0)
      >>> variables = network.init(jax.random.key(0), inputs)
      >>> on_chip = network.clone(backend=BrainScaleS2(scale=58.0, latency=80e-9))
      >>> # on_chip.apply(variables, inputs, until=30e-3), where there is a chip.

    Attributes:
      time_scale: seconds on the chip per second of the model.
      scale: integers per unit of weight. The default is that of chips calibrated to 70
        steps from rest to threshold; `measure` gives that of yours.
      latency: seconds on the chip from a spike to its effect on the next layer. (0.08
        to 0.4 us were used for chips before.) A delay of just this time in the model
        means that the model knows of it; it is then not subtracted.
      zero: step of the chip's ADC for a voltage of 0.
      unit: steps per unit of voltage.
      settle: length of the pause, in the longest time constant.
      calibration: file of a calibrated chip (``*.pbin``) whose neurons have the time
        constants, thresholds and refractory periods of the model, which cannot be
        checked. By default they are calibrated for the network.
      cell: more parameters of all neurons, by the vendor's names, such as
        ``{"i_synin_gm_E": 500, "i_synin_gm_I": 500, "synapse_dac_bias": 600}``.
      setup: more arguments of the vendor's ``setup``, such as ``neuronPermutation`` or
        ``calibration_cache``.
      pynn: the vendor's package, or what is to take its place; imported by default.
    """

    time_scale: float = 1e-3
    scale: float | None = 57.0
    latency: float = 0.16e-6
    zero: float = 80.0
    unit: float = 70.0
    settle: float = 10.0
    calibration: str | os.PathLike | None = None
    cell: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    setup: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    pynn: Any = dataclasses.field(default=None, repr=False)

    limits = _LIMITS

    def __post_init__(self) -> None:
        """Checks the attributes."""
        super().__post_init__()
        if self.scale is None:
            raise ValueError(
                "BrainScaleS2.scale is None, but an integer weight on the chip has a"
                " strength of its own. Write the integers per unit of weight, about 57,"
                " or measure them: BrainScaleS2(...).measure(path=...)."
            )
        for name in ("unit", "settle"):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"BrainScaleS2.{name} is {getattr(self, name)!r}, expected above 0."
                )
        if not abs(self.latency) < 1e-3:
            raise ValueError(
                f"BrainScaleS2.latency is {self.latency!r}, expected seconds on the"
                " chip, such as 0.16e-6."
            )
        if self.calibration is not None and not os.path.exists(self.calibration):
            raise FileNotFoundError(
                f"BrainScaleS2.calibration is {str(self.calibration)!r}, which is no"
                " file. Leave it out to calibrate for the network."
            )
        self.limits = dataclasses.replace(_LIMITS, latency=self.latency)  # type: ignore[misc]
        self._built: _Built | None = None

    @classmethod
    def from_measurement(cls, path: str | os.PathLike, **changes: Any) -> Self:
        """A backend with the numbers that `measure` found and wrote to a file.

        Args:
          path: of the file.
          **changes: other attributes, or others than measured.

        Raises:
          ValueError: the file is not a measurement, or was cut short.
        """
        found = Measurement.load(path)
        names = ("scale", "latency", "time_scale", "zero", "unit", "calibration")
        return cls(**{name: getattr(found, name) for name in names} | changes)

    # What the layers see.

    def check(self, populations: Sequence[Population], until: Time) -> None:
        """Raises for a network that the chip cannot run, before any call to it.

        Raises:
          ValueError: see `jaxsnn.hardware.Limits.check`; or a voltage out of range.
          ModuleNotFoundError: the vendor's package is missing.

        Warns:
          UserWarning: a window in which a neuron can fire more often than it may, or a
            layer that spikes reach over ways of different latency.
        """
        super().check(populations, until)
        network = known(populations, self.time_scale)
        if network is not None:
            self._check_once(network, _known(until))
            self._check_ways(network)
            if self.calibration is None:
                for population in network:
                    self._levels(population)
        if self.pynn is None and importlib.util.find_spec("pynn_brainscales") is None:
            raise ModuleNotFoundError(_NO_STACK)

    def _check_once(
        self, network: Sequence[HostPopulation], end: np.ndarray | None
    ) -> None:
        """Warns if neurons that are to fire once may fire again in the window."""
        once = [p.name for p in network if p.max_spikes == 1]
        longest = self.limits.t_ref[1]
        if once and end is not None and end[0] * self.time_scale > longest:
            warnings.warn(
                f"{self.limits.name}: layer '{once[0]}' is to fire once (max_spikes=1),"
                f" which its refractory period ensures for {longest * 1e6:g} us; the"
                f" window is {end[0] * self.time_scale * 1e6:g} us. Later spikes are"
                " counted as 'extra', but act on the next layer. Write"
                f" until={longest / self.time_scale:g} or less, or a larger"
                " max_spikes.",
                stacklevel=3,
            )

    def _check_ways(self, network: Sequence[HostPopulation]) -> None:
        """Warns if one shift of a layer cannot make up for the latency of all ways."""
        shifts = _shifts(network, self.latency)
        off = [
            (float(np.max(np.abs(ahead - shifts[k]))), population.name)
            for k, population in enumerate(network, start=1)
            for q in population.projections
            for ahead in [shifts[q.source] + self.latency - q.delay]
        ]
        worst, name = max(off, default=(0.0, ""))
        if worst > _TICK:
            warnings.warn(
                f"{self.limits.name}: spikes reach layer '{name}' by ways whose latency"
                f" differs by {worst * 1e6:.3g} us from what is subtracted from its"
                " times, as recurrent and skip connections do. Write delays of"
                f" {self.latency / self.time_scale:g} s into the model, so that it"
                " knows of them.",
                stacklevel=3,
            )

    # What the worker thread does; NumPy only.

    def compile(
        self, network: Sequence[HostPopulation], inputs: int, until: float
    ) -> None:
        """Builds and calibrates the network; see `HostBackend.compile`."""
        pynn = self._open()
        try:
            self._built = self._build(pynn, network, inputs, until)
        except Exception as error:
            with contextlib.suppress(Exception):  # Report the first error, not this.
                self.disconnect()
            if "No executor backend" in str(error):
                raise ConnectionError(_NO_CONNECTION) from error
            raise

    def run(
        self,
        inputs: Events,
        weights: Sequence[Sequence[np.ndarray]],
        seed: int,
    ) -> list[Observed]:
        """Runs a batch; see `HostBackend.run`."""
        del seed  # A chip draws its own noise.
        built, batch = self._built, len(inputs.time)
        if built is None:
            raise RuntimeError("no network was built; the last attempt failed.")
        pynn, duration = built.pynn, batch * built.period
        if duration * _TICK > self.limits.longest:
            raise ValueError(
                f"a batch of {batch} takes {duration * _TICK:.4g} s on the chip, a run"
                f" there at most {self.limits.longest:.4g} s. Use smaller batches."
            )
        self._write(built, weights)
        trains = _trains(inputs, built.sources, built.period)
        built.inputs.set(spike_times=[_ms(train) for train in trains])
        try:
            pynn.run(_ms(duration))
            if self._built is not built:
                # Given up on long ago; the session belongs to another thread now.
                raise LinkError("the run came back after it had been given up on.")
            observed = [
                _observe(population, shift, built, batch)
                for population, shift in zip(
                    built.populations, built.shifts, strict=True
                )
            ]
        except Exception as error:
            if self._built is built:
                with contextlib.suppress(Exception):
                    pynn.reset()  # Else the next run would be refused.
            if isinstance(error, RuntimeError | OSError):
                raise LinkError(f"{type(error).__name__}: {error}") from error
            raise
        pynn.reset()
        return observed

    def disconnect(self) -> None:
        """Ends the session; see `HostBackend.disconnect`."""
        self._built = None
        pynn = self._package()
        session = _sessions.get(id(pynn))
        if session is not None and session() is self:
            del _sessions[id(pynn)]
            pynn.end()

    def _package(self) -> Any:
        if self.pynn is not None:
            return self.pynn
        try:
            return importlib.import_module("pynn_brainscales.brainscales2")
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"{_NO_STACK} ({error})") from error

    def _open(self) -> Any:
        """The vendor's package, with this backend as its only user."""
        pynn = self._package()
        session = _sessions.get(id(pynn))
        if session is not None:
            holder = session()
            if holder is not None and holder is not self:
                raise RuntimeError(
                    "another BrainScaleS2 holds the chip, and the vendor's software is"
                    " one session per process. Call its close() first."
                )
            with contextlib.suppress(Exception):  # It may be in any state by now.
                pynn.end()
        _sessions[id(pynn)] = weakref.ref(self)
        return pynn

    def _build(
        self, pynn: Any, network: Sequence[HostPopulation], inputs: int, until: float
    ) -> _Built:
        config: dict[str, Any] = {}
        if self.calibration is not None:
            chip = pynn.helper.chip_from_file(os.fspath(self.calibration))
            config["initial_config"] = chip
        pynn.setup(**config, **self.setup)
        sources = pynn.Population(inputs, pynn.cells.SpikeSourceArray())
        populations = []
        for p in network:
            population = pynn.Population(p.size, self._cell(pynn, p))
            population.record(["spikes"])
            populations.append(population)
        pre = [sources, *populations]
        projections = [
            [
                (
                    _connect(pynn, pre[q.source], population, "excitatory"),
                    _connect(pynn, pre[q.source], population, "inhibitory"),
                )
                for q in p.projections
            ]
            for p, population in zip(network, populations, strict=True)
        ]
        # Routes, calibrates and connects, so that no later run has to.
        pynn.run(_ms(round(10e-6 / _TICK)))
        pynn.reset()
        shifts = _shifts(network, self.latency)
        slowest = max(
            max(p.neuron["tau_mem"].max(), p.neuron["tau_syn"].max()) for p in network
        )
        longest = max(self._t_ref(p).max() for p in network)
        pause = max(self.settle * slowest, longest) + max(shifts)
        return _Built(
            pynn,
            inputs,
            sources,
            populations,
            projections,
            # Not by a rounding error off the clock, or spikes at a window's start are.
            np.round(np.array(shifts[1:]) / _TICK, 6),
            np.round(until / _TICK, 6),
            math.ceil((until + pause) / _TICK),
            {},
        )

    def _cell(self, pynn: Any, population: HostPopulation) -> Any:
        """Neurons with the parameters of the model, or of the calibration file."""
        if self.calibration is not None:
            return pynn.cells.HXNeuron(**self.cell)
        neuron = population.neuron
        return pynn.cells.CalibHXNeuronCuba(
            **self._levels(population),
            tau_m=_us(neuron["tau_mem"]),
            tau_syn_E=_us(neuron["tau_syn"]),
            tau_syn_I=_us(neuron["tau_syn"]),
            tau_refrac=_us(self._t_ref(population)),
            **self.cell,
        )

    def _t_ref(self, population: HostPopulation) -> np.ndarray:
        """Refractory periods in seconds."""
        if population.max_spikes == 1:
            return np.full(population.size, self.limits.t_ref[1])
        return np.maximum(population.neuron["t_ref"], _SHORTEST_T_REF)

    def _levels(self, population: HostPopulation) -> dict[str, np.ndarray]:
        """Voltages in steps of the ADC, by the vendor's names."""
        levels, neuron = {}, population.neuron
        for parameter, (field, low, high) in _LEVELS.items():
            level = np.round(self.zero + self.unit * neuron[field])
            bad = ~((level >= low) & (level <= high))
            if bad.any():
                raise ValueError(
                    f"{self.limits.name}: layer '{population.name}' has {field} ="
                    f" {neuron[field][bad][0]:g}, which is step {level[bad][0]:g} of"
                    f" the chip's ADC (zero={self.zero:g} + unit={self.unit:g} *"
                    f" {field}); possible is {low} to {high}. Change the voltage, zero"
                    " or unit."
                )
            levels[parameter] = level
        return levels

    @staticmethod
    def _write(built: _Built, weights: Sequence[Sequence[np.ndarray]]) -> None:
        """Sets weights that changed: the vendor's `set` takes its time."""
        for k, own in enumerate(weights):
            for j, given in enumerate(own):
                there = built.written.get((k, j))
                if there is not None and np.array_equal(there, given):
                    continue
                excitatory, inhibitory = built.projections[k][j]
                excitatory.set(weight=np.maximum(given, 0))
                inhibitory.set(weight=np.minimum(given, 0))
                built.written[k, j] = np.array(given)

    # What a chip is like.

    def measure(
        self,
        neuron: Neuron | None = None,
        *,
        neurons: int = 16,
        inputs: int = 10,
        repeats: int = 4,
        path: str | os.PathLike | None = None,
    ) -> Measurement:
        r"""Finds the strength of an integer weight, and the latency of a hop.

        `inputs` sources spike at once, with the same integer weight :math:`W`, which is
        swept from 1 to 63. In the model a neuron then fires if
        :math:`n W k_\mathrm{max} > s\,(v_\mathrm{th} - v_\mathrm{leak})` for `n`
        inputs and a scale of `s`, after the time at which the response :math:`k` gets
        there. The first weight that makes it fire brackets `s`; within the bracket, the
        times at all weights fit it, and the latency with it.

        Args:
          neuron: parameters, numbers; by default those of a layer.
          neurons: how many to measure. Their spread is the chip's mismatch.
          inputs: number of sources. More let a neuron fire at smaller weights.
          repeats: how often each weight is tried; times are averaged.
          path: where to write the result, for `from_measurement`.

        Returns:
          The result, for weights and neurons calibrated as here. The backend itself
          does not change.

        Raises:
          ValueError: no neuron fired, or all did at any weight.
        """
        neuron = Neuron() if neuron is None else neuron
        weights = np.arange(1, 64)
        unit = jnp.ones((inputs, neurons)) / self.scale  # type: ignore[operator]
        slowest = max(float(neuron.tau_mem), float(neuron.tau_syn))
        dt = np.linspace(0, 10 * slowest, 100_001)
        response = np.asarray(psp(neuron, jnp.asarray(dt)), float)
        dt = dt[: np.argmax(response) + 1]
        # Rounding makes it waver where it is flat.
        response = np.maximum.accumulate(response[: len(dt)])
        needed = (float(neuron.v_th) - float(neuron.v_leak)) / inputs

        begin = 1e-6 / self.time_scale  # Later, so that nothing is before the window.
        at_once = Spikes.from_times(jnp.full((repeats, inputs, 1), begin))
        until = begin + float(dt[-1]) + slowest

        @jax.jit
        def first_spikes(weight: Array) -> Array:
            projection = Projection(0, weight * unit)
            population = Population("measure", neurons, neuron, 1, (projection,))
            (observation,) = self([population], at_once, until, None)
            return observation.times[..., 0] - begin

        trains = np.array([first_spikes(w) for w in weights], float)
        fits = [
            fit
            for own in np.moveaxis(trains, -1, 0)
            if (fit := _fit(weights, own, needed, dt, response)) is not None
        ]
        if not fits:
            wrong = (
                f"the neurons that fired did so at weight {weights[0]} already; measure"
                " with fewer inputs"
                if np.isfinite(trains).any()
                else f"none fired at weight {weights[-1]}; measure with more inputs"
            )
            raise ValueError(
                f"{self.limits.name}: of {neurons} neurons with {inputs} inputs,"
                f" {wrong}."
            )
        scales, latencies, first = np.array(fits).T
        latencies = latencies * self.time_scale + self.latency
        scale = float(np.median(scales))
        measured = Measurement(
            scale=scale,
            latency=float(np.median(latencies)),
            scale_spread=float(np.std(scales) / scale),
            latency_spread=float(np.std(latencies)),
            first_weight=float(np.median(first)),
            neurons=len(fits),
            unusable=neurons - len(fits),
            inputs=inputs,
            tau_mem=float(neuron.tau_mem),
            tau_syn=float(neuron.tau_syn),
            time_scale=self.time_scale,
            zero=self.zero,
            unit=self.unit,
            calibration=None
            if self.calibration is None
            else os.fspath(self.calibration),
        )
        if path is not None:
            measured.save(path)
        return measured


def _fit(
    weights: np.ndarray,
    trains: np.ndarray,
    needed: float,
    dt: np.ndarray,
    response: np.ndarray,
) -> tuple[float, float, float] | None:
    """Scale, latency and first firing weight of a neuron; None if it has no first one.

    Args:
      weights: integers that were tried.
      trains: time from the inputs to the first spike, ``[weights, repeats]``.
      needed: response at which a neuron fires, per unit of weight.
      dt: times at which the response is known, up to its peak.
      response: voltage at those times after an input of weight 1.
    """
    fired = np.mean(np.isfinite(trains), axis=-1) > 0.5
    if fired[0] or not fired.any():
        return None
    first = weights[fired][0]
    times = np.mean(trains[fired], axis=-1, where=np.isfinite(trains[fired]))
    # It fires at the first weight, and did not at the one before.
    scales = response[-1] / needed * np.linspace(first - 1, first, 401)[1:-1]
    reached = scales[:, None] * needed / weights[fired]
    late = times - np.interp(reached, response, dt)
    best = len(scales) // 2 if len(times) == 1 else np.argmin(late.std(axis=-1))
    return scales[best], late[best].mean(), first


def _shifts(network: Sequence[HostPopulation], latency: float) -> list[float]:
    """How much later than in the model each population fires, inputs first, in seconds.

    That of the longest way from the inputs; a delay that the model knows of is none.
    """
    shifts = [0.0]
    for k, population in enumerate(network, start=1):
        ahead = [
            float(np.max(shifts[q.source] + latency - q.delay))
            for q in population.projections
            if q.source < k
        ]
        shifts.append(max(ahead, default=0.0))
    return shifts


def _connect(pynn: Any, pre: Any, post: Any, receptor: str) -> Any:
    # Weight 0 reserves synapses for up to 63: later weights need no new routing.
    return pynn.Projection(
        pre,
        post,
        pynn.AllToAllConnector(),
        synapse_type=pynn.synapses.StaticSynapse(weight=0),
        receptor_type=receptor,
    )


def _trains(inputs: Events, sources: int, period: int) -> list[np.ndarray]:
    """Times of each source over all samples, in ticks."""
    real = inputs.index != NO_INDEX
    at = np.round(inputs.time[real] / _TICK).astype(np.int64)
    at += np.nonzero(real)[0] * period
    order = np.argsort(at, kind="stable")
    at, index = at[order], inputs.index[real][order]
    return [at[index == source] for source in range(sources)]


def _observe(population: Any, shift: float, built: _Built, batch: int) -> Observed:
    """Spikes of a population in the windows of the samples; the others are lost."""
    # Cleared, because the vendor's cache would keep every run.
    segment = population.get_data("spikes", clear=True).segments[-1]
    trains = [_ticks(t.rescale("ms").magnitude) for t in segment.spiketrains]
    neurons = [int(t.annotations["source_index"]) for t in segment.spiketrains]
    neuron = np.repeat(np.array(neurons, int), [len(t) for t in trains])
    ticks = np.concatenate([np.zeros(0), *trains]) - shift
    sample = np.floor(ticks / built.period).astype(int)
    ticks = ticks - sample * built.period
    inside = (sample >= 0) & (sample < batch) & (ticks < built.until)
    lost = np.bincount(np.clip(sample[~inside], 0, batch - 1), minlength=batch)
    found = sample[inside], ticks[inside] * _TICK, neuron[inside]
    return dataclasses.replace(Observed.from_list(batch, *found), lost=lost)
