r"""When does a neuron left alone reach its threshold?

Between events the voltage has at most one maximum, and on the flank that rises to the
threshold it is a smooth function of

.. math:: y = 1 - e^{-t/\tau_m} \in [0, 1), \qquad
    V(y) = V_0 + s\,y - \tfrac{r}{2} I_0\,y^2 + O(y^3), \quad
    s = \tau_m \dot V_0,\ r = \tau_m / \tau_s.

At :math:`r = 2` the parabola is exact, so that its root is the spike time in closed
form. At every other ratio the parabola is renewed at the point it led to: an iteration
of third order, which unlike Newton's is at home near a grazing maximum. It runs inside
a bracket, and bisects if a step would leave it.
"""

import jax.numpy as jnp
from jax import Array, lax

from jaxsnn.dynamics import Neuron, Time, drive, flow, peak_phase, peaks_above


def crosses(neuron: Neuron, v: Array, i: Array, v_end: Array, i_end: Array) -> Array:
    """Tells whether the voltage exceeds the threshold between two states of a flow.

    Decided by signs alone. To touch the threshold is not to cross it.

    Args:
      neuron: parameters.
      v: voltage at the start, at most ``v_th``.
      i: current at the start.
      v_end: voltage at the end, from `flow`.
      i_end: current at the end, from `flow`.
    """
    # After many time constants the drive has decayed to 0 and not below.
    rises_then_falls = (drive(neuron, v, i) > 0) & (drive(neuron, v_end, i_end) <= 0)
    over_the_top = rises_then_falls & (i > 0) & peaks_above(neuron, v, i)
    return (v_end > neuron.v_th) | over_the_top


def crossing_time(neuron: Neuron, v: Array, i: Array, dt: Time) -> Array:
    """Time until the voltage first reaches the threshold, where it `crosses`.

    Args:
      neuron: parameters.
      v: voltage at the start, at most ``v_th``.
      i: current at the start.
      dt: length of the interval, possibly ``inf``.

    Returns:
      The time in ``[0, dt]``; without meaning where the voltage does not cross.
    """
    if neuron.twofold:
        wait = -neuron.tau_mem * jnp.log1p(-_parabola(neuron, v, i))
        if neuron.fires_unprompted:
            # Long waits, for the leak to overcome the current: x = 1 - y is tiny, and
            # its own quadratic, i x^2 - above x + gap = 0, keeps all its digits.
            above, gap = i + (v - neuron.v_leak), neuron.v_th - neuron.v_leak
            root = jnp.sqrt(jnp.maximum(above * above - 4 * i * gap, 0))
            x = 2 * gap / jnp.where(above < 0, above - root, -1)
            wait = jnp.where(above < 0, -neuron.tau_mem * jnp.log(x), wait)
        return jnp.clip(wait, 0, dt)
    return _iterate(neuron, v, i, dt)


def _parabola(neuron: Neuron, v: Array, i: Array) -> Array:
    """Smallest `y` where the parabola meets the threshold, or else its vertex."""
    rise = drive(neuron, v, i)
    gap = neuron.v_th - v
    bend = neuron.tau_mem / neuron.tau_syn * i
    # Each branch adds numbers of one sign, so that nothing cancels.
    root = jnp.sqrt(jnp.maximum(rise * rise - 2 * bend * gap, 0))
    rising = 2 * gap / jnp.where(rise > 0, rise + root, 1)
    falling = (rise - root) / jnp.where(bend < 0, bend, -1)
    y = jnp.where(rise > 0, rising, falling)
    return jnp.minimum(y, 1 - jnp.finfo(y.dtype).epsneg)


def _iterate(neuron: Neuron, v: Array, i: Array, dt: Time) -> Array:
    """Repeats `_parabola` to convergence, inside a bracket of the crossing."""
    tau_mem, tau_syn = neuron.tau_mem, neuron.tau_syn
    dtype = jnp.result_type(v, i)
    fast = jnp.minimum(tau_mem, tau_syn)
    # A parabola's step of h leaves an error of order h^3, over the distance to the
    # peak; a bisection's, of order h.
    eps = float(jnp.finfo(dtype).eps)
    enough, exact = 0.2 * fast * eps**0.5, 4 * fast * eps
    # The crossing is before the end and, if there is a peak, before the peak. Should
    # the interval be endless, 200 time constants outlast every float.
    longest = 200 * jnp.maximum(tau_mem, tau_syn)
    high = jnp.minimum(jnp.asarray(dt, dtype), longest)
    has_peak = (drive(neuron, v, i) > 0) & (i > 0)
    phase = peak_phase(neuron, v, i)
    high = jnp.where(has_peak, jnp.minimum(high, tau_syn * phase), high)
    high = jnp.broadcast_to(high, v.shape)
    low = jnp.zeros_like(high)
    # The parabola that has the same peak and the same start is a good first guess.
    peak = neuron.v_leak + i * jnp.exp(-phase)
    share = (peak - neuron.v_th) / jnp.where(peak > v, peak - v, 1)
    guess = tau_syn * phase * (1 - jnp.sqrt(jnp.clip(share, 0, 1)))
    concave = has_peak & (neuron.v_leak <= neuron.v_th)
    first = jnp.where(concave, jnp.minimum(guess, high), jnp.zeros_like(high))

    def advance(carry: tuple) -> tuple:
        count, low, high, t, _ = carry
        v_t, i_t = flow(neuron, v, i, t)
        below = v_t < neuron.v_th
        low, high = jnp.where(below, t, low), jnp.where(below, high, t)
        step = -tau_mem * jnp.log1p(-_parabola(neuron, v_t, i_t))
        target = jnp.clip(t + step, low, high)
        # Rounding may put a step of almost nothing outside. And a parabola that needs
        # long converges linearly; bisection bounds the worst.
        smooth = (jnp.abs(t + step - target) <= enough) & (count < 40)
        target = jnp.where(smooth, target, 0.5 * (low + high))
        change = jnp.abs(target - t)
        done = jnp.all(change <= jnp.where(smooth, enough, exact + 4 * eps * t))
        return count + 1, low, high, target, done

    def more(carry: tuple) -> Array:
        return (carry[0] < 120) & ~carry[-1]

    start = (jnp.int32(0), low, high, first, jnp.bool_(False))
    return lax.while_loop(more, advance, start)[3]
