r"""Leaky integrate-and-fire dynamics between events, in closed form.

Between events a neuron is two exponential filters in series,

.. math::
    \tau_m \dot V = -(V - v_\mathrm{leak}) + I, \qquad \tau_s \dot I = -I.

Everything here follows from the response of :math:`V` to a unit jump of :math:`I`,

.. math::
    k(t) = \kappa \left(e^{-t/\tau_m} - e^{-t/\tau_s}\right), \qquad
    \kappa = \frac{\tau_s}{\tau_m - \tau_s}, \qquad
    \lim_{\tau_s \to \tau_m} k(t) = \frac{t}{\tau_m} e^{-t/\tau_m}.

The adjoint of a jump of :math:`I` is the same :math:`k`, read backwards in time, and
that of an input's time is its derivative :math:`\dot k`; see `jaxsnn.eventprop`.
"""

import dataclasses
import math
import numbers
from typing import NamedTuple, Self

import jax.numpy as jnp
from jax import Array

Time = Array | float


@dataclasses.dataclass(frozen=True)
class Neuron:
    r"""Parameters of a leaky integrate-and-fire neuron with exponential synapses.

    Attributes:
      tau_mem: membrane time constant in seconds.
      tau_syn: synaptic time constant in seconds. Any ratio ``tau_mem / tau_syn``.
      v_th: threshold. Voltages, currents and weights share one arbitrary unit.
      v_leak: resting voltage. Above `v_th` the neuron fires without any input.
      v_reset: voltage right after a spike, below `v_th`.
    """

    tau_mem: float = 10e-3
    tau_syn: float = 5e-3
    v_th: float = 1.0
    v_leak: float = 0.0
    v_reset: float = 0.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, numbers.Real) or not math.isfinite(value):
                raise ValueError(
                    f"{field.name} is {value!r}, expected a finite number. (It is a"
                    " constant; gradients do not flow to it.)"
                )
        for name in ("tau_mem", "tau_syn"):
            if getattr(self, name) <= 0:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, expected a positive time in"
                    " seconds, such as 10e-3."
                )
        if self.v_reset >= self.v_th:
            raise ValueError(
                f"v_reset is {self.v_reset} and v_th is {self.v_th}; v_reset must be"
                " below v_th, or a spike would never end."
            )

    @property
    def fires_unprompted(self) -> bool:
        """Whether the leak alone drives the neuron over its threshold."""
        return self.v_leak > self.v_th

    @property
    def v_start(self) -> float:
        """Voltage at the start of a run: at rest, or just reset if rest is firing."""
        return self.v_reset if self.fires_unprompted else self.v_leak


def psp(neuron: Neuron, dt: Time) -> Array:
    """Post-synaptic potential `k`: voltage `dt` after a unit jump of the current.

    Accurate for every ratio of the time constants, also close to and at 1, where the
    textbook difference of exponentials cancels. Never overflows; ``k(inf) = 0``.
    """
    tau_mem, tau_syn = neuron.tau_mem, neuron.tau_syn
    if tau_mem == 2 * tau_syn:  # The commonest ratio costs one exponential.
        decay = jnp.exp(-dt / tau_mem)
        return decay - decay * decay
    if tau_mem == tau_syn:
        phase = jnp.minimum(dt / tau_mem, 800.0)  # inf * exp(-inf) would be NaN.
        return phase * jnp.exp(-phase)
    slow, fast = max(tau_mem, tau_syn), min(tau_mem, tau_syn)
    gain = tau_syn / (slow - fast)
    return -gain * jnp.exp(-dt / slow) * jnp.expm1(-dt * ((slow - fast) / slow / fast))


def psp_slope(neuron: Neuron, dt: Time) -> Array:
    r"""Time derivative of `psp`, from the differential equation itself."""
    return (jnp.exp(-dt / neuron.tau_syn) - psp(neuron, dt)) / neuron.tau_mem


class Flow(NamedTuple):
    """What an interval does to voltage and current, whatever they are.

    Attributes:
      v_to_v: what remains of the voltage above rest.
      i_to_v: voltage per current, `psp`.
      i_to_i: what remains of the current.
    """

    v_to_v: Array
    i_to_v: Array
    i_to_i: Array

    @classmethod
    def over(cls, neuron: Neuron, dt: Time) -> Self:
        """The flow over an interval of length `dt`."""
        decay = jnp.exp(-dt / neuron.tau_mem)
        return cls(decay, psp(neuron, dt), jnp.exp(-dt / neuron.tau_syn))

    def advance(self, neuron: Neuron, v: Array, i: Array) -> tuple[Array, Array]:
        """Takes voltage and current to the end of the interval, exactly."""
        v = neuron.v_leak + (v - neuron.v_leak) * self.v_to_v + i * self.i_to_v
        return v, i * self.i_to_i


def flow(neuron: Neuron, v: Array, i: Array, dt: Time) -> tuple[Array, Array]:
    """Advances voltage and current by `dt`, exactly."""
    return Flow.over(neuron, dt).advance(neuron, v, i)


def drive(neuron: Neuron, v: Array, i: Array) -> Array:
    r"""Slope of the voltage times its time constant, :math:`\tau_m \dot V`."""
    return i - (v - neuron.v_leak)


def peaks_above(neuron: Neuron, v: Array, i: Array) -> Array:
    r"""Whether the maximum of a rising neuron left alone is above the threshold.

    With :math:`u = (V - v_\mathrm{leak}) / I` and :math:`\rho = \tau_s / \tau_m`, the
    voltage peaks when the current has decayed by
    :math:`q^{1/(1-\rho)}, q = 1 - (1 - u)(1 - \rho)`, at
    :math:`V = v_\mathrm{leak} + I q^{1/(1-\rho)}`, because at a peak leak and current
    cancel. Meaningful only where ``drive > 0`` and ``i > 0``.
    """
    needed = neuron.v_th - neuron.v_leak
    if neuron.tau_mem == 2 * neuron.tau_syn:  # q^2 = (1 + u)^2 / 4
        total = i + (v - neuron.v_leak)
        return total * total > 4 * needed * i
    return i * jnp.exp(-peak_phase(neuron, v, i)) > needed


def peak_phase(neuron: Neuron, v: Array, i: Array) -> Array:
    r"""Time of the maximum of `peaks_above`, in units of :math:`\tau_s`."""
    rise = drive(neuron, v, i) / jnp.where(i > 0, i, 1)  # 1 - u, positive if rising
    epsilon = 1 - neuron.tau_syn / neuron.tau_mem
    if epsilon == 0:
        return rise
    return -jnp.log1p(jnp.maximum(-epsilon * rise, -1)) / epsilon
