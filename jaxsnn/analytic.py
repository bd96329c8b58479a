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
    Recurrent,
    State,
    arrival_pull,
    arrived,
    current,
    elapsed,
    feedback,
    release_pull,
    releases,
    slope_at_threshold,
    start_of_run,
    synaptic_decay,
    threshold_residual,
)
from jaxsnn.spikes import NO_TIME, Spikes, argsort_times


def analytic(
    neuron: Neuron,
    kernel: Array,
    inputs: Spikes,
    start: State | None,
    record: Record,
    recurrent: Recurrent | None = None,
) -> Array:
    """Returns the record's spike times, with derivatives of every order attached.

    Same arguments and same promise as `jaxsnn.eventprop.eventprop`.
    """
    record = lax.stop_gradient(record)
    return _attach(neuron, kernel, inputs, start, recurrent, record)


@jax.custom_jvp
def _attach(neuron, kernel, inputs, start, recurrent, record):
    del neuron, kernel, inputs, start, recurrent
    return record.times


@_attach.defjvp
def _attach_jvp(primals, tangents):
    neuron, _, _, _, recurrent, record = primals
    times = _attach(*primals)  # Differentiable, for the next order.

    def gap(neuron, kernel, inputs, start, recurrent):
        opening = start_of_run(neuron, start, *times.shape[:2], kernel.dtype)
        return threshold_residual(neuron, kernel, inputs, opening, times, recurrent)

    _, change = jax.jvp(gap, primals[:5], tangents[:5])
    slope = _attach_slope(*primals[:5], times, record.slope)
    solve = _solve_own if recurrent is None else _solve_coupled
    release = None
    if neuron.refractory:
        release = release_pull(*primals[:5], times=times)
    dt = solve(neuron, times, change, slope, release, recurrent)
    # The mask also keeps out what a loss may return for a time of inf.
    return times, jnp.where(times < NO_TIME, dt, 0)


def _solve_own(neuron, times, change, slope, release, recurrent):
    """Changes of the spike times, where a neuron's spikes depend on its own only."""
    del recurrent
    jump = (neuron.v_th - neuron.v_reset) / neuron.tau_mem
    wait, both = elapsed(times[..., 1:], times[..., :-1])
    decay = jnp.where(both, jnp.exp(-wait / neuron.over(-1).tau_mem), 0)
    if release is not None:  # Then a spike acts on the next one only.
        decay, jump = release[..., 1:], 1.0
    decay = jnp.concatenate([jnp.zeros_like(times[..., :1]), decay], axis=-1)

    def step(earlier: Array, spike: tuple[Array, ...]) -> tuple[Array, Array]:
        change, slope, decay = spike
        own = earlier * decay
        dt = (jump * own - change) / slope
        return (dt if release is not None else own + dt), dt

    spikes = tuple(jnp.moveaxis(x, -1, 0) for x in (change, slope, decay))
    _, dt = lax.scan(step, jnp.zeros_like(times[..., 0]), spikes)
    return jnp.moveaxis(dt, 0, -1)


def _solve_coupled(neuron, times, change, slope, release, recurrent):
    """Changes of the spike times, one spike after the other, first to last."""
    batch, neurons, n = times.shape
    rows = jnp.arange(batch)
    delay = jnp.broadcast_to(recurrent.delay, recurrent.kernel.shape)
    tau_mem, tau_syn, jump = (
        jnp.broadcast_to(jnp.asarray(x, times.dtype), (neurons,))
        for x in (neuron.tau_mem, neuron.tau_syn, neuron.v_th - neuron.v_reset)
    )

    held = releases(neuron, times)

    def step(changes: Array, place: Array) -> tuple[Array, None]:
        target, slot = jnp.divmod(place, n)
        at = times[rows, target, slot]
        since = delay[:, target].T[..., None]
        one = neuron
        if jax.tree.leaves(neuron):
            one = Neuron(tau_mem[target][:, None, None], tau_syn[target][:, None, None])
        if release is None:
            own_release = None
            dt, after = arrived(at[:, None], times[rows, target], 0.0)
            decay = jnp.where(after, jnp.exp(-dt / tau_mem[target][:, None]), 0)
            own = jnp.sum(changes[rows, target] * decay, axis=-1)
            own *= (jump / tau_mem)[target]
        else:
            own_release = held[rows, target, slot][:, None, None]
            before = changes[rows, target, jnp.maximum(slot - 1, 0)]
            own = jnp.where(slot > 0, before * release[rows, target, slot], 0)
        heard = arrival_pull(one, at[:, None, None], times, since, own_release)
        heard = recurrent.kernel[:, target].T[..., None] * heard * changes
        heard = jnp.sum(heard, axis=(1, 2))
        each = heard + own - change[rows, target, slot]
        each = each / slope[rows, target, slot]
        each = jnp.where(at < NO_TIME, each, 0)
        return changes.at[rows, target, slot].add(each), None

    order = argsort_times(times.reshape(batch, neurons * n))
    return lax.scan(step, jnp.zeros_like(times), order.T)[0]


@jax.custom_jvp
def _attach_slope(neuron, kernel, inputs, start, recurrent, times, slope):
    """The record's slopes, with the derivative of the current attached.

    The value is the record's, since a rounded spike time may coincide with an input
    that came after it.
    """
    del neuron, kernel, inputs, start, recurrent, times
    return slope


@_attach_slope.defjvp
def _attach_slope_jvp(primals, tangents):
    slope = primals[6]

    def at_threshold(neuron, kernel, inputs, start, recurrent, times):
        opening = start_of_run(neuron, start, *times.shape[:2], kernel.dtype)
        i = current(neuron, kernel, inputs, opening, times)
        if recurrent is not None:
            i += feedback(synaptic_decay, neuron, recurrent, times, times)
        return slope_at_threshold(neuron.over(-1), i)

    _, change = jax.jvp(at_threshold, primals[:6], tangents[:6])
    return _attach_slope(*primals), jnp.where(slope < jnp.inf, change, 0)
