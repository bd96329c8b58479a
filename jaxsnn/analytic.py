r"""Exact gradients of spike times by differentiating the threshold crossing itself.

The implicit function theorem, applied to :math:`V(t_s; \theta) = v_\mathrm{th}`:

.. math::
    \dot V(t_s)\, dt_s = -\frac{\partial V}{\partial \theta} d\theta
        + \frac{v_\mathrm{th} - v_\mathrm{reset}}{\tau_m}
          \sum_{r < s} e^{-(t_s - t_r)/\tau_m} dt_r .

This is Fast & Deep (Goeltz et al., `Nat. Mach. Intell. 3, 823 (2021)
<https://doi.org/10.1038/s42256-021-00388-x>`_) for any ratio of time constants and any
number of spikes. It is written as a derivative rule whose result is differentiable in
turn, so forward mode and higher derivatives work; the price is memory proportional to
input events times output spikes, where EventProp keeps events only.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsnn.dynamics import Neuron
from jaxsnn.record import (
    Record,
    State,
    current,
    elapsed,
    slope_at_threshold,
    start_of_run,
    threshold_gap,
)
from jaxsnn.spikes import NO_TIME, Spikes


def analytic(
    neuron: Neuron,
    kernel: Array,
    inputs: Spikes,
    start: State | None,
    record: Record,
) -> Array:
    """Returns the record's spike times, with derivatives of every order attached.

    Same arguments and same promise as `jaxsnn.eventprop.eventprop`.
    """
    return _attach(neuron, kernel, inputs, start, lax.stop_gradient(record))


@jax.custom_jvp
def _attach(neuron, kernel, inputs, start, record):
    del neuron, kernel, inputs, start
    return record.times


@_attach.defjvp
def _attach_jvp(primals, tangents):
    neuron, kernel, inputs, start, record = primals
    times = _attach(*primals)  # Differentiable, for the next order.

    def gap(neuron, kernel, inputs, start):
        opening = start_of_run(neuron, start, *times.shape[:2], kernel.dtype)
        return threshold_gap(neuron, kernel, inputs, opening, times)

    _, change = jax.jvp(gap, primals[:4], tangents[:4])
    spiked = times < NO_TIME
    slope = _attach_slope(neuron, kernel, inputs, start, times, record.slope)
    jump = (neuron.v_th - neuron.v_reset) / neuron.tau_mem
    wait, both = elapsed(times[..., 1:], times[..., :-1])
    decay = jnp.where(both, jnp.exp(-wait / neuron.over(-1).tau_mem), 0)
    decay = jnp.concatenate([jnp.zeros_like(times[..., :1]), decay], axis=-1)

    def step(earlier: Array, spike: tuple[Array, ...]) -> tuple[Array, Array]:
        change, slope, decay = spike
        own = earlier * decay
        dt = (jump * own - change) / slope
        return own + dt, dt

    spikes = tuple(jnp.moveaxis(x, -1, 0) for x in (change, slope, decay))
    _, dt = lax.scan(step, jnp.zeros_like(times[..., 0]), spikes)
    # The mask also keeps out what a loss may return for a time of inf.
    return times, jnp.where(spiked, jnp.moveaxis(dt, 0, -1), 0)


@jax.custom_jvp
def _attach_slope(neuron, kernel, inputs, start, times, slope):
    """The record's slopes, with the derivative of the current attached.

    The value is the record's, since a rounded spike time may coincide with an input
    that came after it.
    """
    del neuron, kernel, inputs, start, times
    return slope


@_attach_slope.defjvp
def _attach_slope_jvp(primals, tangents):
    slope = primals[5]

    def at_threshold(neuron, kernel, inputs, start, times):
        opening = start_of_run(neuron, start, *times.shape[:2], kernel.dtype)
        i = current(neuron, kernel, inputs, opening, times)
        return slope_at_threshold(neuron.over(-1), i)

    _, change = jax.jvp(at_threshold, primals[:5], tangents[:5])
    return _attach_slope(*primals), jnp.where(slope < jnp.inf, change, 0)
