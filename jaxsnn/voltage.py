r"""The membrane voltage of neurons that spike, at any time, from what is recorded.

Between two of its own spikes a neuron is linear, so its voltage follows from where it
started, :math:`r`, from its current there and from what arrived since,

.. math::
    V(t) = v_\mathrm{leak} + (V(r) - v_\mathrm{leak}) e^{-(t - r)/\tau_m}
        + I(r) k(t - r) + \sum_{r < t_j \le t} w_j k(t - t_j),

where :math:`r` is the end of the last refractory period and :math:`V(r)` the reset
voltage, or the start of the run. It does not matter who found the spikes.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsnn.dynamics import Neuron, Time, psp
from jaxsnn.record import (
    Places,
    Recurrent,
    State,
    elapsed,
    start_of_run,
    synaptic_decay,
)
from jaxsnn.spikes import NO_TIME, Spikes, concatenate


def voltage_at(
    neuron: Neuron,
    kernel: Array,
    inputs: Spikes,
    times: Array,
    at: Time,
    *,
    delay: Time = 0.0,
    recurrent: Recurrent | None = None,
    start: State | None = None,
    side: str = "left",
) -> Array:
    r"""Voltage of each neuron of a layer at any times, exact to rounding.

    At a spike the voltage jumps. ``side="left"`` is the voltage before the jump,
    :math:`v_\mathrm{th}` for a spike that the model explains, ``"right"`` that after
    it, :math:`v_\mathrm{reset}`. For a refractory period after a spike it is
    :math:`v_\mathrm{reset}`. An input makes no jump: it acts on the current.

    A neuron that has fired as often as it may goes on without a threshold, so that its
    voltage can be above `v_th`. Of spikes that a device observed, each starts the
    voltage of the model anew, whatever that was before. Inputs from the end of a window
    on are not known to be such: ask for times before it.

    Example::

      >>> import jax.numpy as jnp
      >>> from jaxsnn import Spikes
      >>> from jaxsnn.dynamics import Neuron
      >>> from jaxsnn.simulate import simulate
      >>> inputs = Spikes.from_times(jnp.array([[[1e-3], [2e-3]]]))
      >>> neuron, kernel = Neuron(10e-3, 5e-3), jnp.array([[3.0], [3.0]])
      >>> record = simulate(neuron, kernel, inputs, max_spikes=2)
      >>> first = record.times[0, 0, 0]
      >>> given = neuron, kernel, inputs, record.times, first
      >>> before = voltage_at(*given)[0, 0]
      >>> after = voltage_at(*given, side="right")[0, 0]
      >>> print(f"{before:.3f}, then {after:.3f}")
      1.000, then 0.000

    Args:
      neuron: parameters.
      kernel: weights, ``[inputs.size, neurons]``.
      inputs: spikes, ``[*batch, slots]``.
      times: spikes of the layer, ascending, then ``inf``, ``[*batch, neurons, n]``:
        ``record.times``, or what a device observed. All, also those without a slot.
      at: times in seconds: one, ``[T]``, or each neuron's own,
        ``[*batch, neurons, T]``.
      delay: time in seconds that an input takes: a number, of each source,
        ``[inputs.size, 1]``, or of each synapse.
      recurrent: connections of the layer with itself.
      start: state at the beginning, of shapes ``[*batch, ...]``; at rest if None.
        Before its time the voltage is that of the state.
      side: ``"left"`` or ``"right"``; see above.

    Returns:
      ``[*batch, neurons]`` for one time, else ``[*batch, neurons, T]``.

    Raises:
      ValueError: another `side`.
    """
    if side not in ("left", "right"):
        raise ValueError(f"side is {side!r}, expected 'left' or 'right'.")
    *batch, neurons, n = times.shape
    dtype = jnp.result_type(kernel, times)
    size = math.prod(batch)
    inputs, times = inputs.reshape_batch(-1), times.reshape(size, neurons, n)
    delay = jnp.broadcast_to(jnp.asarray(delay, dtype), kernel.shape)
    if recurrent is not None:
        inputs = concatenate(inputs, Spikes.from_times(times))
        kernel = jnp.concatenate([kernel, recurrent.kernel])
        own = jnp.broadcast_to(recurrent.delay, recurrent.kernel.shape)
        delay = jnp.concatenate([delay, own])
    if start is not None:
        start = State(*(x.reshape(size, *x.shape[len(batch) :]) for x in start))
    opening = start_of_run(neuron, start, size, neurons, dtype)
    at = jnp.asarray(at, dtype)
    shape = at.shape[-1:]
    if at.ndim < 2:
        at = jnp.broadcast_to(at, (size, neurons, *(shape or (1,))))
    found = _voltages(
        neuron,
        kernel,
        inputs,
        times,
        at.reshape(size, neurons, -1),
        delay,
        opening,
        side == "right",
    )
    return found.reshape(*batch, neurons, *shape)


@jax.jit
def _voltages(neuron, kernel, inputs, times, at, delay, opening, right) -> Array:
    """As `voltage_at`; one neuron after the other, which bounds the memory."""
    places = Places.of(inputs)
    # What follows is [batch, places, T]: T times, or n ends of refractory periods.
    each = jax.tree.map(lambda x: jnp.broadcast_to(x, kernel.shape[1:]), neuron)
    state = None if opening is None else (opening.v.T, opening.i.T)
    by_neuron = (each, kernel.T, delay.T, *(jnp.moveaxis(x, 1, 0) for x in (times, at)))

    def one(given: tuple) -> Array:
        (neuron, weights, delay, own, at), state = given
        arrival = places.time + delay[places.source]
        weight = weights[places.source][..., :, None]
        if opening is not None:
            begin = opening.time[:, None]
            arrival, at = jnp.maximum(arrival, begin), jnp.maximum(at, begin)

        def current(at: Array) -> Array:
            dt, after = elapsed(at[:, None], arrival[..., None])
            decay = jnp.where(after, synaptic_decay(neuron, dt), 0)
            return jnp.sum(weight * decay, axis=1)

        # Where each stretch between own spikes begins: none at first, or the start.
        released = own + neuron.t_ref
        v = jnp.broadcast_to(jnp.asarray(neuron.v_reset, at.dtype), own.shape)
        i = current(released)
        first: Any
        if opening is None:
            first = jnp.full((own.shape[0], 1), -NO_TIME, at.dtype), 0.0, 0.0
        else:
            dt, after = elapsed(released, begin)
            left = state[1][:, None]
            i += jnp.where(after, left * synaptic_decay(neuron, dt), 0)
            first = begin, state[0][:, None], left + current(begin)
        starts, v, i = (
            jnp.concatenate([jnp.broadcast_to(x, (own.shape[0], 1)), y], axis=1)
            for x, y in zip(first, (released, v, i), strict=True)
        )

        same = (own[:, :, None] == at[:, None]) & (own < NO_TIME)[:, :, None]
        earlier = (own[:, :, None] < at[:, None]) | (same & right)
        stretch = jnp.sum(earlier, axis=1)
        begin, v, i = (jnp.take_along_axis(x, stretch, axis=1) for x in (starts, v, i))
        held = at <= begin
        begun = begin > -NO_TIME
        dt = jnp.where(held | ~begun, 0, at - jnp.where(begun, begin, 0))
        moved = (v - neuron.v_leak) * jnp.exp(-dt / neuron.tau_mem) + i * psp(
            neuron, dt
        )
        dt, after = elapsed(at[:, None], arrival[..., None])
        after &= arrival[..., None] > begin[:, None]
        pulls = jnp.where(after, psp(neuron, jnp.where(after, dt, 0)), 0)
        total = jnp.sum(weight * pulls, axis=1)
        return neuron.v_leak + jnp.where(begun, moved, 0) + total

    return jnp.moveaxis(lax.map(one, (by_neuron, state)), 0, 1)
