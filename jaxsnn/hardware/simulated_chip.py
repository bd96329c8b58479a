"""A model of the BrainScaleS-2 chip, with its errors."""

import dataclasses
import functools
import graphlib
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxsnn.backend import Observation, Population, Samples
from jaxsnn.dynamics import Neuron, Time
from jaxsnn.hardware.limits import BRAINSCALES2, quantize, saturation
from jaxsnn.readout import Trace
from jaxsnn.record import Recurrent
from jaxsnn.recurrent import quicker_way, simulate_recurrent
from jaxsnn.simulate import simulate
from jaxsnn.spikes import NO_TIME, Spikes, _traced, argsort_times, concatenate

PROFILES: dict[str, dict[str, Any]] = {
    "ideal": {
        "gain_spread": 0.0,
        "threshold_spread": 0.0,
        "tau_mem_spread": 0.0,
        "tau_syn_spread": 0.0,
        "leak_spread": 0.0,
        "reset_spread": 0.0,
        "latency": 0.0,
        "trial_threshold": 0.0,
        "jitter": 0.0,
        "queue": None,
    },
    "calibrated": {},
    "delgrad": {
        "scale": 78.0,
        "gain_spread": 0.0,
        "threshold_mean": 1.05,
        "threshold_spread": 0.031,
        "tau_mem_spread": 0.0,
        "tau_syn_spread": 0.0,
        "leak_spread": 0.0,
        "reset_spread": 0.0,
        "latency": 0.0,
        "queue": None,
    },
    "uncalibrated": {
        "threshold_spread": 0.18,
        "tau_mem_spread": 0.15,
        "tau_syn_spread": 0.12,
        "leak_spread": 0.09,
        "reset_spread": 0.09,
    },
    "lossy": {"loss": 0.02},
}

# What a number of the fixed pattern is for.
_GAIN, _THRESHOLD, _TAU_MEM, _TAU_SYN, _LEAK, _RESET = range(6)


@dataclasses.dataclass(frozen=True)
class SimulatedChip:
    r"""The BrainScaleS-2 chip: integer weights, clocks, mismatch, noise, latency, loss.

    .. math::
        w \to \frac{g}{s}\,\mathrm{clip}(\lfloor s\,w \rceil, -63, 63), \qquad
        v_\mathrm{th} \to f\,v_\mathrm{th}, \qquad
        t \to \Delta \left\lfloor \frac{t + \xi}{\Delta} \right\rceil

    and more of the kind. A run goes through these steps:

    1. Weights become integers (`scale`, `w_max`).
    2. Input times are cut to the clock (`tick`) and sent one per tick, in their order:
       what is simultaneous comes one after the other.
    3. Every synapse has a gain of its own, one for excitation and another for
       inhibition (`gain_spread`).
    4. Every neuron has a threshold (`threshold_mean`, `threshold_spread`), time
       constants (`tau_mem_spread`, `tau_syn_spread`; one synaptic time constant for
       both signs) and voltages of rest and reset (`leak_spread`, `reset_spread`) of its
       own.
    5. An event takes its time to arrive (`latency`), from the inputs and from
       population to population, and from a population to itself.
    6. Spikes are found exactly, by `jaxsnn.simulate`, with all of these numbers.
    7. Thresholds differ a little from run to run (`trial_threshold`), and spikes
       scatter (`jitter`).
    8. Some events are lost (`loss`). The neurons share outputs, `output_neurons` in a
       row of each population one of them, which takes one event per tick: others wait,
       up to `queue` ticks. The spikes as they are then, at whole ticks, are what the
       next population receives and what is read out.
    9. The window is cut at its end. What is left is reported, less the latency that is
       known (`correction`), the earliest ``max_spikes`` of each neuron.
    10. Voltages of neurons without a threshold are sampled (`cadc`).

    Steps 3 and 4 are the chip, and differ from chip to chip: they follow from
    `chip_seed`, the number of the population, and the numbers of the neuron and of the
    synapse, and from nothing else. Steps 7 and 8 are drawn anew in each run, from its
    key: that of the rng stream ``hardware`` where there is one, or of `seed`. One batch
    is one run.

    The software is told the integer weights and not what the errors make of them, as on
    the chip. Its gradients are those of the model at the spikes that were observed.

    A population may act on itself. The loop then has all errors but those of spikes on
    their way: within it they do not scatter and are not lost. Loops over several
    populations are refused. Delays are refused but for the latency itself: a projection
    with ``delay = latency / time_scale`` is one whose latency the model knows, so that
    nothing is subtracted for it. Recurrent connections should have it, since there it
    cannot be subtracted.

    Not modelled: the rounding of refractory periods, bandwidth of the links, spikes of
    neurons beyond ``max_spikes`` (a chip goes on; see `extra_spikes`), drift.

    Each layer reports in its `events` the fraction of weights that were cut,
    `saturated`, the number of spikes that were `lost`, and with `extra_spikes` the
    number of spikes that acted and were not read, `extra`.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> from jaxsnn.coding import encode_latency
      >>> from jaxsnn.layers import LIF, spread_normal
      >>> inputs = encode_latency(jnp.full((1, 30), 0.5), t_late=10e-3)
      >>> weights = spread_normal(15.0, 1.0)
      >>> variables = LIF(2, kernel_init=weights).init(jax.random.key(0), inputs)
      >>> one, other = (LIF(2, backend=SimulatedChip(chip_seed=n)) for n in (0, 1))
      >>> bool((one.apply(variables, inputs).time == inputs.time[0, 0]).any())
      False
      >>> first = one.apply(variables, inputs).first()
      >>> bool((first != other.apply(variables, inputs).first()).all())
      True

    Attributes:
      time_scale: seconds on the chip per second of the model. The chip runs 1000 times
        as fast as the ms time constants that models are written with; 1 if the model is
        written in chip time already. All other times here are seconds on the chip.
      scale: integers per unit of weight; None fits the largest weight of each
        projection to `w_max`. The default is that of thresholds 1 above rest: a single
        synapse cannot be stronger than ``63 / 57``. With a threshold of 2.6, it is
        ``57 / 2.6``.
      w_max: largest integer weight.
      tick: period of the clock.
      gain_spread: standard deviation of a synapse's strength, a fraction of it.
      threshold_mean: mean distance of threshold from rest, a fraction of what was asked
        for.
      threshold_spread: its standard deviation over neurons, a fraction.
      tau_mem_spread: standard deviation of the logarithm of `tau_mem` over neurons.
      tau_syn_spread: the same of `tau_syn`.
      leak_spread: standard deviation of the resting voltage over neurons, a fraction of
        the distance from rest to threshold; of 1 without a threshold.
      reset_spread: the same of the reset voltage.
      latency: time from an event to its effect.
      correction: time subtracted per hop from what is reported, in whole ticks; None
        for the latency. Time before 0 is 0.
      trial_threshold: standard deviation of thresholds from run to run, a fraction.
      jitter: standard deviation of spike times.
      loss: probability that a spike is lost.
      queue: ticks that an event waits for an output; one that would wait longer is
        lost. None for outputs that take any number of events at once.
      output_neurons: neurons that share an output.
      extra_spikes: spikes beyond ``max_spikes`` after which a neuron is silent, and not
        before; they act on other populations but are not read. A chip is like that,
        with no end. By default neurons are silent after ``max_spikes``, as users of the
        chip make them with long refractory periods.
      cadc: time between samples of a voltage; at least 1.7e-6 on BrainScaleS-2. None
        for no samples: then software computes the voltages.
      cadc_scale: steps of the converter per unit of voltage, for thresholds of 1 above
        rest.
      cadc_rest: its value at rest, of 0 to 255.
      cadc_noise: standard deviation of a sample, in its steps.
      seed: of the noise of runs that bring no key of their own.
      chip_seed: which chip it is.

    The numbers are those of the profile ``"calibrated"``; see `profile`. Sources:
    weights, clock, ranges and converter from the published code of BrainScaleS-2
    (grenade, calix, hxtorch, PyNN.brainscales2); time stamps, threshold spread, trial
    noise and jitter from Goeltz et al., DelGrad, `Nat. Commun. (2025)
    <https://arxiv.org/abs/2404.19165>`_, and its recordings. For the spread of synapses
    and time constants and the depth of the queues there is no published figure; those
    here are estimates.
    """

    time_scale: float = 1e-3
    scale: float | None = 57.0
    w_max: int = 63
    tick: float = 8e-9
    gain_spread: float = 0.15
    threshold_mean: float = 1.0
    threshold_spread: float = 0.06
    tau_mem_spread: float = 0.05
    tau_syn_spread: float = 0.04
    leak_spread: float = 0.03
    reset_spread: float = 0.03
    latency: float = 0.16e-6
    correction: float | None = None
    trial_threshold: float = 0.015
    jitter: float = 60e-9
    loss: float = 0.0
    queue: int | None = 128
    output_neurons: int = 64
    extra_spikes: int = 0
    cadc: float | None = None
    cadc_scale: float = 70.0
    cadc_rest: float = 80.0
    cadc_noise: float = 1.5
    seed: int = 0
    chip_seed: int = 0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        positive = ("time_scale", "w_max", "tick", "threshold_mean", "output_neurons")
        for name in (*positive, "scale", "cadc_scale"):
            self._expect(name, lambda x: x > 0, "above 0")
        spreads = [field.name for field in dataclasses.fields(self)]
        spreads = [name for name in spreads if name.endswith("_spread")]
        times = ("latency", "correction", "trial_threshold", "jitter", "queue")
        for name in (*spreads, *times, "extra_spikes", "cadc_noise", "chip_seed"):
            self._expect(name, lambda x: x >= 0, "0 or more")
        self._expect("loss", lambda x: 0 <= x < 1, "a probability below 1")
        self._expect("cadc_rest", lambda x: 0 <= x <= 255, "0 to 255")
        self._expect(
            "cadc",
            lambda x: x >= 1.7e-6 * (1 - 1e-6),
            "seconds on the chip, 1.7e-6 or more, the converter's shortest period",
        )

    def _expect(self, name: str, holds, expected: str) -> None:
        value = getattr(self, name)
        if value is None and "None" in str(self.__dataclass_fields__[name].type):
            return
        number = isinstance(value, int | float) and math.isfinite(value)
        if not (number and holds(value)):
            raise ValueError(f"SimulatedChip.{name} is {value!r}, expected {expected}.")

    @classmethod
    def profile(cls, name: str, **changes: Any) -> Self:
        """A chip with a set of numbers that has a name.

        Example::

          >>> SimulatedChip.profile("ideal", jitter=30e-9).gain_spread
          0.0
          >>> SimulatedChip.profile("calibrated") == SimulatedChip()
          True

        Args:
          name: ``"ideal"``: integer weights and clocks only. ``"calibrated"``: the
            default. ``"delgrad"``: the numbers with which Goeltz et al. simulate the
            chip, thresholds and jitter only. ``"uncalibrated"``: as calibrated, with
            three times the spread of what calibration sets, that is, of all but the
            synapses. ``"lossy"``: as calibrated, and 2 % of the spikes are lost.
          **changes: attributes that differ.
        """
        if name not in PROFILES:
            known = ", ".join(repr(each) for each in PROFILES)
            raise ValueError(f"there is no profile {name!r}, expected one of {known}.")
        return cls(**{**PROFILES[name], **changes})

    @property
    def samples(self) -> bool:
        """Whether voltages of neurons without a threshold are sampled."""
        return self.cadc is not None

    def check(self, populations: Sequence[Population], until: Time) -> None:
        """Raises for a network that the chip cannot run.

        Warns where more than 5 % of a projection's weights are cut; see also
        `jaxsnn.hardware.Limits.check`.
        """
        limits = dataclasses.replace(
            BRAINSCALES2, latency=self.latency, samples=self.samples
        )
        limits.check(populations, until, self.time_scale)
        _order(populations)
        for population in populations:
            if not population.max_spikes:
                self._samples(until)
            for projection in population.projections:
                self._warn_saturated(population.name, projection.kernel)

    def __call__(
        self,
        populations: Sequence[Population],
        inputs: Spikes,
        until: Time,
        key: Array | None,
    ) -> list[Observation]:
        """Runs the network; see `jaxsnn.backend.Backend`."""
        self.check(populations, until)
        key = jax.random.key(self.seed) if key is None else key
        populations, inputs, until = _constant((populations, inputs, until))
        # Of the inputs and of each population, in the chip's time; and how much later
        # that is than the model's.
        spikes, lag = {0: self._sent(inputs)}, {0: jnp.zeros(())}
        observed: dict[int, Observation] = {}
        for k in _order(populations):
            population, trial = populations[k - 1], jax.random.fold_in(key, k)
            outside = [p for p in population.projections if p.source != k]
            behind = [
                lag[p.source] + self._known_latency - jnp.max(jnp.asarray(p.delay))
                for p in outside
            ]
            lag[k] = jnp.max(jnp.stack(behind)) if behind else jnp.zeros(())
            observed[k], spikes[k] = self._run(
                k, population, spikes, lag[k], until, trial
            )
        return [observed[k] for k in range(1, len(populations) + 1)]

    # The steps.

    def _run(
        self,
        k: int,
        population: Population,
        spikes: Mapping[int, Spikes],
        lag: Array,
        until: Time,
        key: Array,
    ) -> tuple[Observation, Spikes]:
        """What is observed of one population, and what others receive from it."""
        threshold, jitter, lost, noise = jax.random.split(key, 4)
        reported, acting, cut = self._weights(k, population)
        sources = [p.source for p in population.projections]
        own = [w for source, w in zip(sources, acting, strict=True) if source == k]
        kernels = [w for source, w in zip(sources, acting, strict=True) if source != k]
        arriving = [self._later(spikes[source]) for source in sources if source != k]
        if not arriving:  # Driven by its leak alone; inputs without weight do nothing.
            arriving = [spikes[0]]
            kernels = [jnp.zeros((spikes[0].size, population.size), own[0].dtype)]
        given = concatenate(*arriving) if len(arriving) > 1 else arriving[0]
        kernel = jnp.concatenate(kernels)
        dtype = jnp.result_type(kernel, given.time)
        batch = given.time.shape[0]
        counters = {"saturated": jnp.broadcast_to(cut, batch)}
        neuron = self._neuron(k, population, threshold, dtype)
        if not population.max_spikes:
            nominal = population.neuron
            samples = self._sample(neuron, nominal, kernel, given, until, lag, noise)
            times = jnp.full((batch, population.size, 0), NO_TIME, dtype)
            seen = Observation(times, reported, samples, counters)
            return seen, Spikes.from_times(times)
        limits: dict[str, Any] = {
            "max_spikes": population.max_spikes + self.extra_spikes,
            "until": until,
        }
        if own:
            wait = self.latency / self.time_scale
            recurrent = Recurrent(sum(own[1:], own[0]), jnp.asarray(wait, dtype))
            by = quicker_way("auto", wait, [population.neuron.tau_mem])
            record = simulate_recurrent(
                neuron, kernel, given, recurrent, by=by, **limits
            )
        else:
            record = simulate(neuron, kernel, given, **limits)
        ticks, counters["lost"] = self._sending(record.times, until, jitter, lost)
        tick = self.tick / self.time_scale
        read = ticks[..., : population.max_spikes]
        if self.extra_spikes:
            extra = ticks[..., population.max_spikes :] < NO_TIME
            counters["extra"] = jnp.sum(extra, axis=(1, 2), dtype=jnp.int32)
        correction = jnp.round(lag / tick).astype(dtype)
        times = jnp.maximum(read - correction, 0) * tick
        seen = Observation(times, reported, counters=counters)
        return seen, Spikes.from_times(ticks * tick)

    def _sent(self, inputs: Spikes) -> Spikes:
        """The inputs as they are sent: at whole ticks, one at a time."""
        tick = self.tick / self.time_scale
        # What is at a tick but for rounding is there.
        rounding = 1 + 4 * float(jnp.finfo(inputs.time.dtype).eps)
        ticks = jnp.floor(inputs.time / tick * rounding)
        return Spikes._known_good(
            one_at_a_time(ticks) * tick, inputs.index, inputs.size
        )

    def _later(self, spikes: Spikes) -> Spikes:
        """Events when they arrive."""
        if not self.latency:
            return spikes
        wait = self.latency / self.time_scale
        real = jnp.floating
        return jax.tree.map(
            lambda x: x + wait if jnp.issubdtype(x.dtype, real) else x, spikes
        )

    @property
    def _known_latency(self) -> float:
        """Latency per hop that users know of, in the model's seconds."""
        known = self.latency if self.correction is None else self.correction
        return known / self.time_scale

    def _weights(
        self, k: int, population: Population
    ) -> tuple[tuple[Array, ...], list[Array], Array]:
        """Weights that the chip has, what they act like, and the fraction cut."""
        reported, acting, cut = [], [], []
        for source, kernel, _ in population.projections:
            steps, scale = quantize(kernel, self.scale, self.w_max)
            cut.append(saturation(kernel, scale, self.w_max))
            weights = steps / scale
            reported.append(weights)
            if self.gain_spread:
                rows, columns = kernel.shape
                pattern = self._pattern(k, _GAIN, source, (rows, 2, columns))
                # A synapse that does nothing is the worst: it does not change sign.
                gain = np.maximum(1 + self.gain_spread * pattern, 0)
                gain = gain.astype(kernel.dtype)
                weights = weights * jnp.where(weights < 0, gain[:, 1], gain[:, 0])
            acting.append(weights)
        return tuple(reported), acting, jnp.mean(jnp.stack(cut))

    def _neuron(self, k: int, population: Population, key: Array, dtype) -> Neuron:
        """Parameters of the neurons that the chip has.

        Numbers stay numbers where there is no spread: the simulation is faster then.
        """
        nominal, n = population.neuron, population.size
        changes: dict[str, Any] = {}

        def pattern(what: int) -> np.ndarray:
            return self._pattern(k, what, 0, (n,))

        for name, what, spread in (
            ("tau_mem", _TAU_MEM, self.tau_mem_spread),
            ("tau_syn", _TAU_SYN, self.tau_syn_spread),
        ):
            if spread:
                stretch = jnp.asarray(np.exp(spread * pattern(what)), dtype)
                changes[name] = getattr(nominal, name) * stretch
        v_th, v_leak, v_reset = nominal.v_th, nominal.v_leak, nominal.v_reset
        swing = jnp.abs(jnp.asarray(v_th - v_leak, dtype))
        if not population.max_spikes:
            swing = jnp.ones((), dtype)
        if self.leak_spread:
            offset = (self.leak_spread * pattern(_LEAK)).astype(dtype)
            changes["v_leak"] = v_leak + swing * offset
        if not population.max_spikes:
            return dataclasses.replace(nominal, **changes)
        factor = self.threshold_mean * (1 + self.threshold_spread * pattern(_THRESHOLD))
        there = jnp.asarray(factor, dtype)
        if self.trial_threshold:
            noise = jax.random.normal(key, (n,), dtype)
            there *= 1 + self.trial_threshold * noise
        if self.threshold_spread or self.trial_threshold or self.threshold_mean != 1:
            # Far in the tail of a wide spread, it stays a threshold.
            v_th = v_leak + (v_th - v_leak) * jnp.maximum(there, 0.1)
            changes["v_th"] = v_th
        if self.reset_spread:
            offset = (self.reset_spread * pattern(_RESET)).astype(dtype)
            v_reset = v_reset + swing * offset
        if self.reset_spread or "v_th" in changes:
            room = 0.05 * (nominal.v_th - nominal.v_reset)
            changes["v_reset"] = jnp.minimum(v_reset, v_th - room)
        return dataclasses.replace(nominal, **changes)

    def _pattern(
        self, k: int, what: int, source: int, shape: tuple[int, ...]
    ) -> np.ndarray:
        """Normal numbers of the chip itself: constants to the compiler."""
        return _fixed_pattern(self.chip_seed, k, what, source + 1, shape)

    def _sending(
        self, times: Array, until: Time, jitter: Array, lost: Array
    ) -> tuple[Array, Array]:
        """Ticks at which spikes leave, in order, and how many are lost, ``[batch]``."""
        tick = self.tick / self.time_scale
        if self.jitter:
            noise = jax.random.normal(jitter, times.shape, times.dtype)
            times = times + noise * (self.jitter / self.time_scale)
        ticks = jnp.maximum(jnp.round(times / tick), 0)
        found = jnp.sum(ticks < NO_TIME, axis=(1, 2), dtype=jnp.int32)
        if self.loss:
            gone = jax.random.bernoulli(lost, self.loss, ticks.shape)
            ticks = jnp.where(gone, NO_TIME, ticks)
        if self.queue is not None:
            ticks = share_outputs(ticks, self.output_neurons, self.queue)
        left = jnp.sum(ticks < NO_TIME, axis=(1, 2), dtype=jnp.int32)
        ticks = jnp.where(ticks * tick < until, ticks, NO_TIME)
        return jnp.sort(ticks, axis=-1), found - left

    def _sample(
        self,
        neuron: Neuron,
        nominal: Neuron,
        kernel: Array,
        inputs: Spikes,
        until: Time,
        lag: Array,
        key: Array,
    ) -> Samples:
        """Voltages as the converter sees them."""
        at = jnp.asarray(self._samples(until), jnp.result_type(kernel, inputs.time))
        voltage = Trace(neuron, kernel, inputs).voltage(at)
        rest = jnp.asarray(nominal.v_leak, at.dtype).reshape(-1, 1)
        steps = self.cadc_rest + self.cadc_scale * (voltage - rest)
        steps += self.cadc_noise * jax.random.normal(key, steps.shape, steps.dtype)
        steps = jnp.clip(jnp.round(steps), 0, 255)
        time = jnp.maximum(at - lag.astype(at.dtype), 0)
        return Samples(time, rest + (steps - self.cadc_rest) / self.cadc_scale)

    def _samples(self, until: Time) -> np.ndarray:
        """When samples are taken, in the model's seconds."""
        period = 0.0 if self.cadc is None else self.cadc / self.time_scale
        if _traced(until) or not float(until) < NO_TIME:
            raise ValueError(
                f"{BRAINSCALES2.name}: until is {until}; to sample voltages, a run"
                " needs an end that is known. Pass until=, in seconds, as a number."
            )
        return period * np.arange(math.ceil(float(until) / period * (1 - 1e-9)))

    def _warn_saturated(self, name: str, kernel: Array) -> None:
        if self.scale is None or _traced(kernel) or not kernel.size:
            return
        weights = np.abs(np.asarray(kernel, np.float64))
        cut = np.mean(np.round(self.scale * weights) > self.w_max)
        if cut > 0.05:
            warnings.warn(
                f"{BRAINSCALES2.name}: {cut:.0%} of the weights to layer '{name}' are"
                f" cut to {self.w_max / self.scale:.3g}, that is"
                f" {self.w_max} / {self.scale:g}; the largest is {weights.max():.3g}."
                " Use smaller weights, with several sources for each input if need be,"
                f" a scale of at most {self.w_max / weights.max():.3g}, or scale=None.",
                stacklevel=3,
            )


def one_at_a_time(ticks: Array) -> Array:
    r"""When events leave that come at `ticks` in ascending order, one per tick.

    .. math:: d_k = \max(t_k, d_{k-1} + 1) = k + \max_{j \le k} (t_j - j)
    """
    k = jnp.arange(ticks.shape[-1], dtype=ticks.dtype)
    return k + lax.cummax(ticks - k, axis=ticks.ndim - 1)


def share_outputs(ticks: Array, neurons: int, depth: int) -> Array:
    """When spikes leave if some neurons share an output for one spike per tick.

    Simultaneous spikes leave in the order of their neurons.

    Args:
      ticks: when spikes happen, in whole ticks, ``inf`` for none,
        ``[batch, neurons, n]``.
      neurons: how many share an output, one after the other.
      depth: ticks that a spike can wait; if it had to wait longer, it is lost.

    Returns:
      When they leave, of the same shape, ``inf`` for those lost.
    """
    _, size, n = ticks.shape
    shared = min(neurons, size)
    padding = ((0, 0), (0, -size % shared), (0, 0))
    groups = jnp.pad(ticks, padding, constant_values=NO_TIME)
    shape = groups.shape
    groups = groups.reshape(-1, shared * n)
    order = argsort_times(groups)
    come = jnp.take_along_axis(groups, order, -1)
    leave = one_at_a_time(come)
    if shared * n > depth + 1:  # Else, no queue can be full.
        wait = jnp.where(come < NO_TIME, leave - come, 0)
        leave = lax.cond(
            jnp.any(wait > depth),
            functools.partial(_full_queues, depth),
            lambda _: leave,
            come,
        )
    rows = jnp.arange(groups.shape[0])[:, None]
    left = jnp.zeros_like(groups).at[rows, order].set(leave)
    return left.reshape(shape)[:, :size]


def _full_queues(depth: int, come: Array) -> Array:
    """As `one_at_a_time`, where events that would wait more than `depth` are lost."""

    def event(free: Array, come: Array) -> tuple[Array, Array]:
        leave = jnp.maximum(come, free)
        stays = (come < NO_TIME) & (leave - jnp.where(come < NO_TIME, come, 0) <= depth)
        return jnp.where(stays, leave + 1, free), jnp.where(stays, leave, NO_TIME)

    free = jnp.full(come.shape[:-1], -NO_TIME, come.dtype)
    return jnp.moveaxis(lax.scan(event, free, jnp.moveaxis(come, -1, 0))[1], 0, -1)


def _constant(tree: Any) -> Any:
    """The same without derivatives; numbers stay numbers, names names."""
    return jax.tree.map(
        lambda x: lax.stop_gradient(x) if isinstance(x, Array) else x, tree
    )


def _order(populations: Sequence[Population]) -> list[int]:
    """Numbers of the populations, each after those that act on it."""
    sources = {
        k: {p.source for p in population.projections} - {0, k}
        for k, population in enumerate(populations, start=1)
    }
    try:
        return list(graphlib.TopologicalSorter(sources).static_order())
    except graphlib.CycleError as error:
        names = " -> ".join(repr(populations[k - 1].name) for k in error.args[1])
        raise ValueError(
            f"{BRAINSCALES2.name}: populations act on each other in a loop, {names};"
            " the simulated chip runs loops within one population only. Join them in"
            " one LIF(recurrent=True)."
        ) from None


@functools.lru_cache(maxsize=256)
def _fixed_pattern(*place: Any) -> np.ndarray:
    """Normal numbers that follow from a place, and the shape that comes last.

    Those of a shape with fewer rows are the first of those with more.
    """
    *entropy, shape = place
    numbers = np.random.default_rng(entropy).standard_normal(shape)
    numbers.setflags(write=False)
    return numbers
