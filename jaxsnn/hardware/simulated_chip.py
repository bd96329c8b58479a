"""A first model of a neuromorphic chip."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsnn.backend import Observation, Population
from jaxsnn.dynamics import Time
from jaxsnn.hardware.limits import BRAINSCALES2
from jaxsnn.simulate import simulate
from jaxsnn.spikes import NO_TIME, Spikes


@dataclasses.dataclass(frozen=True)
class SimulatedChip:
    r"""A chip with integer weights, a clock for time stamps, and spike-time jitter.

    .. math::
        w \to \frac{1}{s}\,\mathrm{round}\,\mathrm{clip}(s\,w, -63, 63), \qquad
        t \to \Delta \left\lfloor \frac{t + \xi}{\Delta} \right\rceil, \quad
        \xi \sim \mathcal{N}(0, \sigma^2)

    The numbers are those of BrainScaleS-2: 6-bit weights with a sign, time stamps every
    8 ns, jitter of 60 ns (Goeltz et al., DelGrad, `Nat. Commun. (2025)
    <https://arxiv.org/abs/2404.19165>`_). The jittered, rounded spikes of a layer are
    what the next one receives. Mismatch between neurons, latency and loss of events
    are not modelled here.

    Attributes:
      time_scale: seconds on the chip per second of the model. BrainScaleS-2 runs 1000
        times as fast as the ms time constants that models are written with; 1 if the
        model is written in chip time already.
      scale: integers per unit of weight, the same in all layers; None fits each
        layer's largest weight to the largest integer, so that nothing saturates.
      w_max: largest integer weight.
      tick: period of the clock of time stamps, in seconds on the chip.
      jitter: standard deviation of spike times, in seconds on the chip.
      seed: of the jitter, for runs that bring no key of their own.
    """

    time_scale: float = 1e-3
    scale: float | None = None
    w_max: int = 63
    tick: float = 8e-9
    jitter: float = 60e-9
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name in ("time_scale", "w_max", "tick"):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"SimulatedChip.{name} is {getattr(self, name)}, expected a"
                    " positive number."
                )
        if self.scale is not None and not self.scale > 0:
            raise ValueError(f"SimulatedChip.scale is {self.scale}, expected above 0.")
        if self.jitter < 0:
            raise ValueError(f"SimulatedChip.jitter is {self.jitter}, expected >= 0.")

    samples: ClassVar[bool] = False

    def check(self, populations: Sequence[Population], until: Time) -> None:
        """Raises for a network that the chip cannot run."""
        BRAINSCALES2.check(populations, until, self.time_scale)

    def __call__(
        self,
        populations: Sequence[Population],
        inputs: Spikes,
        until: Time,
        key: Array | None,
    ) -> list[Observation]:
        """Runs the network; see `jaxsnn.backend.Backend`."""
        key = jax.random.key(self.seed) if key is None else key
        spikes = lax.stop_gradient(inputs)
        observations = []
        for population in populations:
            key, trial = jax.random.split(key)
            (projection,) = population.projections
            kernel, saturated = self.quantize(lax.stop_gradient(projection.kernel))
            record = simulate(
                population.neuron,
                kernel,
                spikes,
                max_spikes=population.max_spikes,
                until=until,
            )
            times = self._stamp(record.times, until, trial)
            spikes = Spikes.from_times(times)
            fraction = jnp.broadcast_to(jnp.mean(saturated), times.shape[:1])
            counters = {"saturated": fraction.astype(times.dtype)}
            observations.append(Observation(times, (kernel,), counters=counters))
        return observations

    def quantize(self, kernel: Array) -> tuple[Array, Array]:
        """Weights that the chip can hold, and which ones had to be cut to size."""
        largest = jnp.max(jnp.abs(kernel))
        fitted = self.w_max / jnp.where(largest > 0, largest, 1)
        scale = fitted if self.scale is None else self.scale
        steps = jnp.round(scale * kernel)
        saturated = jnp.abs(steps) > self.w_max
        return jnp.clip(steps, -self.w_max, self.w_max) / scale, saturated

    def _stamp(self, times: Array, until: Time, key: Array) -> Array:
        """Jitters spike times and rounds them to the clock, in the model's seconds."""
        noise = jax.random.normal(key, times.shape, times.dtype)
        jittered = times + noise * (self.jitter / self.time_scale)
        tick = self.tick / self.time_scale
        stamped = jnp.maximum(jnp.round(jittered / tick) * tick, 0)
        inside = (times < NO_TIME) & (stamped < until)
        return jnp.sort(jnp.where(inside, stamped, NO_TIME), axis=-1)
