"""The forward pass of a layer: from event to event, all neurons in lockstep.

Neurons of one layer do not see each other, so the sequential axis is the layer's input
events, not its own spikes as well. All neurons of all samples take an input event
together; between events, a test of signs tells which neurons spike. The spike times
are then solved for all those neurons at once, only every `chunk` events: a neuron that
is found to spike waits, frozen, for the end of the chunk, has its spikes solved, and
catches up with the others in another pass over the chunk.
"""

import jax.numpy as jnp
from jax import Array, lax

from jaxsnn.crossing import crosses, crossing_time
from jaxsnn.dynamics import Neuron, Time, flow
from jaxsnn.record import Record, State, at_rest, slope_at_threshold, start_of_run
from jaxsnn.spikes import NO_INDEX, NO_TIME, Spikes


def simulate(
    neuron: Neuron,
    kernel: Array,
    inputs: Spikes,
    *,
    max_spikes: int = 1,
    start: State | None = None,
    until: Time = NO_TIME,
    chunk: int | None = None,
) -> Record:
    """Finds the spikes of a layer, exactly. Not differentiable: see `eventprop`.

    Args:
      neuron: parameters.
      kernel: weights, ``[inputs.size, neurons]``.
      inputs: spikes, ``[batch, slots]``. Those before ``start.time`` act at once.
      max_spikes: spikes per neuron, since the start of the run. Later ones are not
        emitted: the neuron stays silent.
      start: state to continue from; at rest at time 0 if left out.
      until: end of the window. Only inputs and spikes before it count.
      chunk: input events per solution of spike times. Changes speed, not results.

    Returns:
      The record of the layer's spikes.
    """
    batch, slots = inputs.time.shape
    neurons = kernel.shape[1]
    dtype = jnp.result_type(kernel, inputs.time)
    opening = start_of_run(neuron, start, batch, neurons, dtype)
    start = at_rest(neuron, batch, neurons, dtype) if opening is None else opening

    time, index = jnp.minimum(inputs.time, until).astype(dtype), inputs.index
    if opening is not None:  # An event that carries nothing opens the first interval.
        begin = start.time[:, None]
        time = jnp.concatenate([begin, jnp.maximum(time, begin)], axis=1)
        index = jnp.pad(index, ((0, 0), (1, 0)), constant_values=NO_INDEX)
        kernel = jnp.pad(kernel, ((0, 1), (0, 0)))  # NO_INDEX reads this last row.
        slots += 1
    if slots == 0:
        nothing = jnp.full((batch, neurons, max_spikes), NO_TIME, dtype)
        return Record(nothing, nothing)
    chunk = _default_chunk(slots, max_spikes) if chunk is None else min(chunk, slots)
    padding = -slots % chunk
    slots += padding
    bounds = jnp.pad(
        time, ((0, 0), (0, padding + 1)), mode="constant", constant_values=until
    )
    index = jnp.pad(index, ((0, 0), (0, padding)), constant_values=NO_INDEX)
    # Between empty slots, inf - inf would be the length of an interval.
    left, right = bounds[:, :-1], bounds[:, 1:]
    length = jnp.where(right > left, right - left, 0)
    events = (jnp.arange(slots, dtype=jnp.int32), index.T, length.T)
    ordinal = jnp.arange(max_spikes, dtype=jnp.int32)[:, None, None]

    def pass_over(lanes: tuple, event: tuple) -> tuple:
        """Takes each neuron whose turn it is through one event and its interval."""
        v, i, at = lanes
        k, row, dt = event
        dt = dt[:, None]
        turn = at == k
        i_in = i + kernel[row]
        v_end, i_end = flow(neuron, v, i_in, dt)
        waits = crosses(neuron, v, i_in, v_end, i_end) & (dt > 0)
        moves = turn & ~waits
        v = jnp.where(moves, v_end, v)
        i = jnp.where(moves, i_end, jnp.where(turn, i_in, i))
        return (v, i, at + moves.astype(at.dtype)), None

    def spike(carry: tuple) -> tuple:
        """Emits one spike of every pending neuron."""
        v, i, now, dt, count, times, slope, pending = carry
        # The others are put on the threshold, where the solver is done at once.
        wait = crossing_time(neuron, jnp.where(pending, v, neuron.v_th), i, dt)
        i_at = i * jnp.exp(-wait / neuron.tau_syn)
        slot = pending & (count - start.count == ordinal)
        times = jnp.where(slot, now + wait, times)
        slope = jnp.where(slot, slope_at_threshold(neuron, i_at), slope)
        v = jnp.where(pending, neuron.v_reset, v)
        i = jnp.where(pending, i_at, i)
        now = jnp.where(pending, now + wait, now)
        dt = jnp.where(pending & (dt > wait), dt - wait, jnp.where(pending, 0, dt))
        count += pending.astype(count.dtype)
        again = crosses(neuron, v, i, *flow(neuron, v, i, dt)) & (dt > 0)
        return (
            v,
            i,
            now,
            dt,
            count,
            times,
            slope,
            pending & again & (count < max_spikes),
        )

    def settle(lanes: tuple, count, times, slope, stuck: Array) -> tuple:
        """Emits the spikes of the stuck neurons and takes them past their interval."""
        v, i, at = lanes
        now = jnp.take_along_axis(left, jnp.minimum(at, slots - 1), 1)
        dt = jnp.take_along_axis(length, jnp.minimum(at, slots - 1), 1)
        carry = (v, i, now, dt, count, times, slope, stuck)
        if max_spikes == 1:
            carry = spike(carry)
        else:
            carry = lax.while_loop(lambda carry: jnp.any(carry[-1]), spike, carry)
        v, i, _, dt, count, times, slope, _ = carry
        v_end, i_end = flow(neuron, v, i, dt)
        v, i = jnp.where(stuck, v_end, v), jnp.where(stuck, i_end, i)
        at = jnp.where(count < max_spikes, at + stuck.astype(at.dtype), slots)
        return (v, i, at), count, times, slope

    def run_chunk(carry: tuple, first: Array) -> tuple:
        stop = first + chunk
        part = tuple(lax.dynamic_slice_in_dim(event, first, chunk) for event in events)

        def catch_up(carry: tuple) -> tuple:
            lanes, count, times, slope = carry
            lanes, _ = lax.scan(pass_over, lanes, part)
            return settle(lanes, count, times, slope, lanes[-1] < stop)

        def behind(carry: tuple) -> Array:
            return jnp.any(carry[0][-1] < stop)

        return lax.while_loop(behind, catch_up, carry), None

    at = jnp.where(start.count < max_spikes, 0, slots).astype(jnp.int32)
    nothing = jnp.full((max_spikes, batch, neurons), NO_TIME, dtype)
    carry = ((start.v, start.i, at), start.count, nothing, nothing)
    carry, _ = lax.scan(run_chunk, carry, jnp.arange(0, slots, chunk, dtype=jnp.int32))
    times, slope = (jnp.moveaxis(x, 0, -1) for x in carry[2:])
    return Record(times, slope)


def _default_chunk(slots: int, max_spikes: int) -> int:
    """Events per solution: all for single spikes, else a balance found by measuring."""
    return slots if max_spikes == 1 else min(slots, 16)
