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
import numbers
from collections.abc import Iterable
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Time = Array | float
Parameter = Array | float


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class Neuron:
    r"""Parameters of a leaky integrate-and-fire neuron with exponential synapses.

    A number is a constant, known when a program is compiled: closed forms that hold at
    some ratios only can be chosen then. An array, of one entry per neuron or of none,
    is a variable, to which gradients flow; arrays are the leaves of this pytree.

    Attributes:
      tau_mem: membrane time constant in seconds.
      tau_syn: synaptic time constant in seconds. Any ratio ``tau_mem / tau_syn``.
      v_th: threshold. Voltages, currents and weights share one arbitrary unit.
      v_leak: resting voltage. Above `v_th` the neuron fires without any input.
      v_reset: voltage right after a spike, below `v_th`.
      t_ref: absolute refractory period in seconds: for so long after a spike the
        voltage stays at `v_reset`, while the current goes on.
    """

    tau_mem: Parameter = 10e-3
    tau_syn: Parameter = 5e-3
    v_th: Parameter = 1.0
    v_leak: Parameter = 0.0
    v_reset: Parameter = 0.0
    t_ref: Parameter = 0.0

    def __post_init__(self) -> None:
        """Checks the ranges of what is known."""
        known = {
            name: np.asarray(value)
            for name, value in vars(self).items()
            if not isinstance(value, jax.core.Tracer)
        }
        for name, value in known.items():
            if value.dtype.kind not in "fiu" or not np.isfinite(value).all():
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, expected a finite number, or"
                    " an array of one per neuron."
                )
        for name in ("tau_mem", "tau_syn"):
            if name in known and (known[name] <= 0).any():
                raise ValueError(
                    f"{name} is {getattr(self, name)}, expected a positive time in"
                    " seconds, such as 10e-3."
                )
        if "t_ref" in known and (known["t_ref"] < 0).any():
            raise ValueError(
                f"t_ref is {self.t_ref}, expected a time in seconds, 0 or more."
            )
        if {"v_reset", "v_th"} <= known.keys() and (
            known["v_reset"] >= known["v_th"]
        ).any():
            raise ValueError(
                f"v_reset is {self.v_reset} and v_th is {self.v_th}; v_reset must be"
                " below v_th, or a spike would never end."
            )

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[tuple[str, Any], ...]]:
        """Arrays are leaves; numbers are static."""
        fields = vars(self).items()
        static = tuple((n, float(v) if _constant(v) else None) for n, v in fields)
        return tuple(v for _, v in fields if not _constant(v)), static

    @classmethod
    def tree_unflatten(cls, static, leaves: Iterable[Any]) -> Self:
        """Rebuilds unchecked: JAX passes placeholders too."""
        self, leaves = object.__new__(cls), iter(leaves)
        for name, value in static:
            object.__setattr__(self, name, next(leaves) if value is None else value)
        return self

    def over(self, *axes: int) -> Self:
        """Inserts axes into the arrays, to meet values that have others as well."""
        return jax.tree.map(lambda x: jnp.expand_dims(x, axes) if x.ndim else x, self)

    @property
    def twofold(self) -> bool:
        """Whether ``tau_mem = 2 tau_syn``, where spike times are closed forms."""
        tau_mem, tau_syn = self.tau_mem, self.tau_syn
        constant = _constant(tau_mem) and _constant(tau_syn)
        return constant and bool(tau_mem == 2 * tau_syn)

    @property
    def uniform(self) -> bool:
        """Whether all neurons have the same time constants, known beforehand."""
        return _constant(self.tau_mem) and _constant(self.tau_syn)

    @property
    def refractory(self) -> bool:
        """Whether a spike is followed by a time without voltage."""
        return not (_constant(self.t_ref) and self.t_ref == 0)

    @property
    def fires_unprompted(self) -> bool:
        """Whether the leak alone may drive a neuron over its threshold."""
        if any(isinstance(v, jax.core.Tracer) for v in (self.v_leak, self.v_th)):
            return True
        return bool(np.any(np.asarray(self.v_leak) > np.asarray(self.v_th)))

    @property
    def v_start(self) -> Parameter:
        """Voltage at the start of a run: at rest, or just reset if rest is firing."""
        if _constant(self.v_leak) and _constant(self.v_th):
            return self.v_reset if self.v_leak > self.v_th else self.v_leak
        return jnp.where(self.v_leak > self.v_th, self.v_reset, self.v_leak)


def _constant(value: Any) -> bool:
    return isinstance(value, numbers.Real)


def psp(neuron: Neuron, dt: Time) -> Array:
    """Post-synaptic potential `k`: voltage `dt` after a unit jump of the current.

    Accurate for every ratio of the time constants, also close to and at 1, where the
    textbook difference of exponentials cancels. Never overflows; ``k(inf) = 0``.
    """
    tau_mem, tau_syn = neuron.tau_mem, neuron.tau_syn
    if neuron.twofold:  # The commonest ratio costs one exponential.
        decay = jnp.exp(-dt / tau_mem)
        return decay - decay * decay
    if not neuron.uniform:
        # Symmetric in both rates, and smooth where they are equal.
        longest = jnp.maximum(tau_mem, tau_syn)
        dt = jnp.minimum(dt, 800 * longest)  # inf * exp(-inf) would be NaN.
        late = dt / longest
        extra = dt / jnp.minimum(tau_mem, tau_syn) - late
        return dt / tau_mem * jnp.exp(-late) * _mean_decay(extra)
    if tau_mem == tau_syn:
        phase = jnp.minimum(dt / tau_mem, 800.0)  # inf * exp(-inf) would be NaN.
        return phase * jnp.exp(-phase)
    slow, fast = max(tau_mem, tau_syn), min(tau_mem, tau_syn)
    gain = tau_syn / (slow - fast)
    return -gain * jnp.exp(-dt / slow) * jnp.expm1(-dt * ((slow - fast) / slow / fast))


@jax.custom_jvp
def _mean_decay(x: Array) -> Array:
    r"""Mean of :math:`e^{-s}` over :math:`s \in [0, x]`, with all its derivatives."""
    x = jnp.maximum(x, jnp.finfo(x.dtype).tiny)
    return -jnp.expm1(-x) / x


@_mean_decay.defjvp
def _mean_decay_jvp(primals, tangents):
    return _mean_decay(*primals), jax.jvp(_smooth_mean_decay, primals, tangents)[1]


def _smooth_mean_decay(x: Array) -> Array:
    """As `_mean_decay`, in a form that can be differentiated, and costs twice as much.

    The quotient's derivative cancels for small x; there, the Taylor series.
    """
    small = x < 0.5
    near, far = jnp.where(small, x, 0), jnp.where(small, 1, x)
    series = jnp.ones_like(x)
    for n in range(16, 1, -1):
        series = 1 - near / n * series
    return jnp.where(small, series, -jnp.expm1(-far) / far)


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
        if neuron.twofold:
            return cls(decay, decay - decay * decay, decay * decay)
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
    if neuron.twofold:  # q^2 = (1 + u)^2 / 4
        total = i + (v - neuron.v_leak)  # Negative: it rises to rest, not beyond.
        return (total > 0) & (total * total > 4 * needed * i)
    return i * jnp.exp(-peak_phase(neuron, v, i)) > needed


def peak_phase(neuron: Neuron, v: Array, i: Array) -> Array:
    r"""Time of the maximum of `peaks_above`, in units of :math:`\tau_s`."""
    rise = drive(neuron, v, i) / jnp.where(i > 0, i, 1)  # 1 - u, positive if rising
    epsilon = 1 - neuron.tau_syn / neuron.tau_mem
    if neuron.uniform and epsilon == 0:
        return rise
    safe = jnp.where(epsilon == 0, 1, epsilon)
    return jnp.where(
        epsilon == 0, rise, -jnp.log1p(jnp.maximum(-epsilon * rise, -1)) / safe
    )
