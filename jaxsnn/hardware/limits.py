"""What a device can run: its numbers, and the messages when they do not suffice."""

import dataclasses
import math
import warnings
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsnn.backend import Population
from jaxsnn.dynamics import Parameter, Time
from jaxsnn.spikes import _traced

Range = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Limits:
    """Capabilities of a device. Times are in seconds on the device.

    Attributes:
      name: of the device, for messages.
      circuits: neuron circuits; None for any number. Likewise below.
      fan_in: signed inputs of a circuit. A neuron with more takes several circuits.
      joins: whether circuits can be joined to one neuron for that.
      w_max: largest integer weight; None for weights that are real numbers.
      tick: period of the clock of time stamps.
      tau_mem: shortest and longest possible time constant.
      tau_syn: the same for synapses.
      t_ref: the same for refractory periods; 0 is always possible if it is in the
        range.
      usual_tau_mem: outside of which calibration is poor.
      usual_tau_syn: the same for synapses.
      longest: run that is possible.
      delays: whether spikes can be told to take time.
      latency: time that every spike takes, so that a delay of just this is possible.
      recurrent: whether populations can act on themselves or on earlier ones.
      samples: whether voltages of neurons without a threshold can be read.
      stochastic: whether two runs on the same inputs may differ.
    """

    name: str
    circuits: int | None = None
    fan_in: int | None = None
    joins: bool = False
    w_max: int | None = None
    tick: float | None = None
    tau_mem: Range = (0.0, math.inf)
    tau_syn: Range = (0.0, math.inf)
    t_ref: Range = (0.0, math.inf)
    usual_tau_mem: Range = (0.0, math.inf)
    usual_tau_syn: Range = (0.0, math.inf)
    longest: float = math.inf
    delays: bool = False
    latency: float = 0.0
    recurrent: bool = False
    samples: bool = False
    stochastic: bool = False

    def check(
        self,
        populations: Sequence[Population],
        until: Time,
        time_scale: float = 1.0,
    ) -> None:
        """Raises for a network that the device cannot run, before any work.

        Learned values are not known in a compiled function: there, time constants that
        are learned are not checked, and delays that are learned are refused.

        Args:
          populations: the network.
          until: end of the window, in the model's seconds.
          time_scale: seconds on the device per second of the model.

        Raises:
          ValueError: too many neurons or inputs, a time constant out of range, delays
            or recurrent connections where the device has none.

        Warns:
          UserWarning: a time constant for which calibration is poor.
        """
        self._check_end(until, time_scale)
        self._check_size(populations)
        for k, population in enumerate(populations, start=1):
            where = f"{self.name}: layer '{population.name}'"
            if population.max_spikes == 0 and not self.samples:
                raise ValueError(
                    f"{where} has no threshold, and this device reports spikes only."
                )
            self._check_times(where, population, time_scale)
            for projection in population.projections:
                if projection.source >= k and not self.recurrent:
                    raise ValueError(
                        f"{where} has recurrent connections, which this device does not"
                        " have. Use a feed-forward network."
                    )
                self._check_delay(where, projection.delay, time_scale)

    def _check_end(self, until: Time, time_scale: float) -> None:
        end = _known(until)
        if end is not None and not 0 < end[0] * time_scale <= self.longest:
            raise ValueError(
                f"{self.name}: until is {end[0]} s, which is"
                f" {_time(end[0] * time_scale)} on the device; a run there takes more"
                f" than 0 and at most {_time(self.longest)}. Pass until=, the end of"
                " the window in seconds."
            )

    def _check_size(self, populations: Sequence[Population]) -> None:
        needed = []
        for population in populations:
            inputs = sum(p.kernel.shape[0] for p in population.projections)
            each = 1 if self.fan_in is None else max(1, math.ceil(inputs / self.fan_in))
            if each > 1 and not self.joins:
                raise ValueError(
                    f"{self.name}: layer '{population.name}' has {inputs} signed inputs"
                    f" per neuron, one circuit has {self.fan_in}. Use fewer"
                    f" inputs; {each} circuits cannot be joined to a neuron here."
                )
            needed.append((population.name, population.size, each))
        total = sum(size * each for _, size, each in needed)
        if self.circuits is not None and total > self.circuits:
            detail = ", ".join(
                f"'{name}': {size} x {each}" for name, size, each in needed
            )
            largest = max(needed, key=lambda row: row[1] * row[2])[0]
            raise ValueError(
                f"{self.name}: the network needs {total} neuron circuits ({detail}),"
                f" the device has {self.circuits}. Reduce layer '{largest}'."
            )

    def _check_times(
        self, where: str, population: Population, time_scale: float
    ) -> None:
        for name in ("tau_mem", "tau_syn", "t_ref"):
            value = _known(getattr(population.neuron, name))
            if value is None or (name == "t_ref" and not population.max_spikes):
                continue
            there = value * time_scale
            low, high = getattr(self, name)
            bad = there[~((there >= low) & (there <= high))]
            if bad.size:
                raise ValueError(
                    f"{where} has {name} = {_time(bad[0] / time_scale)}, which is"
                    f" {_time(bad[0])} on the device (time_scale={time_scale:g}),"
                    f" possible is {_time(low)} to {_time(high)}. Times are in seconds;"
                    " time_scale is seconds on the device per second of the model."
                )
            low, high = getattr(self, f"usual_{name}", (0.0, math.inf))
            bad = there[~((there >= low) & (there <= high))]
            if bad.size:
                warnings.warn(
                    f"{where} has {name} = {_time(bad[0])} on the device, outside of"
                    f" the range {_time(low)} to {_time(high)} in which it can be"
                    " calibrated well.",
                    stacklevel=2,
                )

    def _check_delay(self, where: str, delay: Time, time_scale: float) -> None:
        if self.delays:
            return
        value = _known(delay)
        if value is None:
            raise ValueError(
                f"{where} has learned delays, and the device cannot delay spikes. Leave"
                " the delays out."
            )
        there = value * time_scale
        if np.any((there != 0) & ~np.isclose(there, self.latency, rtol=1e-3)):
            worst = float(np.max(there))
            raise ValueError(
                f"{where} has delays of up to {_time(worst)} on the device, which"
                " cannot delay spikes. Leave the delays out"
                + (
                    f", or write {_time(self.latency / time_scale)}, which is what"
                    " every spike takes there."
                    if self.latency
                    else "."
                )
            )


BRAINSCALES2 = Limits(
    name="BrainScaleS-2",
    circuits=512,
    fan_in=128,
    joins=True,
    w_max=63,
    tick=8e-9,
    tau_mem=(0.1e-6, 2000e-6),
    tau_syn=(0.1e-6, 100e-6),
    t_ref=(0.0, 32e-6),
    usual_tau_mem=(0.5e-6, 60e-6),
    usual_tau_syn=(0.3e-6, 30e-6),
    recurrent=True,
    samples=True,
    stochastic=True,
)


def quantize(kernel: Array, scale: float | None, w_max: int) -> tuple[Array, Array]:
    """Integer weights and the integers per unit of weight.

    Args:
      kernel: weights.
      scale: integers per unit of weight; None fits the largest weight to `w_max`.
      w_max: largest integer.

    Returns:
      Whole numbers in ``[-w_max, w_max]`` as an array of the kernel's dtype, and the
      scale. Where ``scale * kernel`` was rounded beyond `w_max`, the weight is cut.
    """
    largest = jnp.max(jnp.abs(kernel), initial=0)
    fitted = w_max / jnp.where(largest > 0, largest, 1)
    used = jnp.asarray(fitted if scale is None else scale, kernel.dtype)
    return jnp.clip(jnp.round(used * kernel), -w_max, w_max), used


def saturation(kernel: Array, scale: Array, w_max: int) -> Array:
    """Fraction of the weights that were cut to `w_max`."""
    return jnp.mean(jnp.abs(jnp.round(scale * kernel)) > w_max, dtype=kernel.dtype)


def _known(value: Parameter | Time) -> np.ndarray | None:
    """A value in NumPy, or None for one that a compiled function does not know."""
    return None if _traced(value) else np.atleast_1d(np.asarray(value, float)).ravel()


def _time(seconds: float) -> str:
    """Formats a time with a unit that makes it readable."""
    for unit, factor in (("s", 1), ("ms", 1e3), ("us", 1e6)):
        if abs(seconds) * factor >= 1 or seconds == 0:
            return f"{seconds * factor:.4g} {unit}"
    return f"{seconds * 1e9:.4g} ns"
