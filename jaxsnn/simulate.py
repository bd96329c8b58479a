"""The forward pass of a layer: from event to event, all neurons in lockstep.

Neurons of one layer do not see each other, so the sequential axis is the layer's input
events, not its own spikes as well. All neurons of all samples take an input event
together; between events, a test of signs tells which neurons spike. The spike times
are then solved for all those neurons at once, only every `chunk` events: a neuron that
is found to spike waits, frozen, for the end of the chunk, has its spikes solved, and
catches up with the others in another pass over the chunk.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsnn.crossing import crosses, crossing_time
from jaxsnn.dynamics import Flow, Neuron, Time, flow
from jaxsnn.record import Record, State, at_rest, slope_at_threshold, start_of_run
from jaxsnn.spikes import NO_INDEX, NO_TIME, Spikes


@functools.partial(jax.jit, static_argnames=("max_spikes", "chunk"))
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
    ordinal = jnp.arange(max_spikes, dtype=jnp.int32)[:, None, None]

    # Neurons and samples are lanes alike; vector units want the longer axis last.
    wide = neurons >= batch
    each = neuron if wide else neuron.over(-1)
    columns = kernel.T

    def lanes(x: Array) -> Array:
        """From ``[batch, neurons]`` to the order of axes inside, or back."""
        return x if wide else x.T

    def per_sample(x: Array) -> Array:
        """Spreads ``[batch]`` over the lanes."""
        return x[:, None] if wide else x[None, :]

    def at_place(table: Array, place: Array) -> Array:
        """Looks up every lane's own event of its sample."""
        return lanes(jnp.take_along_axis(table, lanes(place), 1))

    def spread_rows(row: Array) -> Array:
        """Weights of one event of each sample."""
        return kernel[row] if wide else columns[:, row]

    # All that transcendental functions have to do here is done before the loop.
    # (With a time constant of its own for each neuron, that is not possible.)
    interval = Flow.over(neuron, length.T) if neuron.uniform else None
    length_t = length.T
    lasts = length_t > 0
    index_t = index.T
    count_before = lanes(start.count)
    # A neuron walks from event number `resume` on. One that waits for its spike to be
    # solved has `waiting` added to the number; one that is done never resumes.
    waiting, never = slots + 1, 3 * slots + 3

    def pass_over(carry: tuple) -> tuple:
        """Takes the neurons that walk through one event and the interval after it."""
        k, v, i, resume = carry
        row = index_t[k]
        if interval is None:
            over = Flow.over(each, per_sample(length_t[k]))
        else:
            over = Flow(*(per_sample(factor[k]) for factor in interval))
        i = jnp.where(resume <= k, i + spread_rows(row), i)
        v_end, i_end = over.advance(each, v, i)
        stops = crosses(each, v, i, v_end, i_end) & per_sample(lasts[k])
        resume = jnp.where((resume <= k) & stops, waiting + k, resume)
        # In this form, all of it compiles to one pass over the lanes.
        return (
            k + 1,
            jnp.where(resume <= k, v_end, v),
            (jnp.where(resume <= k, i_end, i)),
            resume,
        )

    def settle(number, v, i, resume, begin, count, times, slope, stop: Array) -> tuple:
        """Emits one spike of every neuron that waits."""
        waits = (resume >= waiting) & (resume < never)
        place = jnp.clip(resume - waiting, 0, slots - 1)
        # Past a spike inside the interval, `begin` is later than the interval's.
        begin = jnp.where(waits, jnp.maximum(begin, at_place(left, place)), 0)
        dt = jnp.where(waits, at_place(right, place) - begin, 0)
        # The others are put on the threshold, where the solver is done at once.
        wait = crossing_time(each, jnp.where(waits, v, each.v_th), i, dt)
        i_at = i * jnp.exp(-wait / each.tau_syn)
        rising = slope_at_threshold(each, i_at)
        begin += wait
        if chunk == slots:  # Every neuron that waits does so for this same spike.
            times = times.at[number].set(jnp.where(waits, begin, NO_TIME))
            slope = slope.at[number].set(jnp.where(waits, rising, NO_TIME))
        else:
            slot = waits & (count - count_before == ordinal)
            times = jnp.where(slot, begin, times)
            slope = jnp.where(slot, rising, slope)
        count += waits.astype(count.dtype)
        resume = jnp.where(waits, resume, jnp.maximum(resume, stop))
        if max_spikes == 1:  # All that were waiting are done now.
            return v, i, jnp.where(waits, never, resume), begin, count, times, slope
        dt = jnp.where(dt > wait, dt - wait, 0)
        v_reset = jnp.asarray(each.v_reset, dtype)
        v_end, i_end = flow(each, v_reset, i_at, dt)
        again = (dt > 0) & crosses(each, v_reset, i_at, v_end, i_end)
        v = jnp.where(waits, jnp.where(again, v_reset, v_end), v)
        i = jnp.where(waits, jnp.where(again, i_at, i_end), i)
        resume = jnp.where(waits & ~again, place + 1, resume)
        resume = jnp.where(count < max_spikes, resume, never)
        return v, i, resume, begin, count, times, slope

    def run_chunk(number: Array, carry: tuple) -> tuple:
        stop = (number + 1) * chunk

        def unfinished(resume: Array) -> Array:
            return (resume < stop) | ((resume >= waiting) & (resume < never))

        def behind(carry: tuple) -> Array:
            return jnp.any(unfinished(carry[3]))

        def catch_up(carry: tuple) -> tuple:
            round, v, i, resume, begin, count, times, slope = carry

            def walking(carry: tuple) -> Array:
                return (carry[0] < stop) & jnp.any(carry[3] < stop)

            first = jnp.maximum(number * chunk, jnp.min(resume))
            walk = (first, v, i, resume)
            _, v, i, resume = lax.while_loop(walking, pass_over, walk)
            return (
                round + 1,
                *settle(round, v, i, resume, begin, count, times, slope, stop),
            )

        return lax.while_loop(behind, catch_up, (jnp.int32(0), *carry))[1:]

    resume = jnp.where(count_before < max_spikes, 0, never).astype(jnp.int32)
    nothing = jnp.full((max_spikes, *resume.shape), NO_TIME, dtype)
    begin = jnp.zeros(resume.shape, dtype)
    carry = (lanes(start.v), lanes(start.i), resume, begin, count_before)
    carry += (nothing, nothing)
    if chunk == slots:
        carry = run_chunk(jnp.int32(0), carry)
    else:
        carry = lax.fori_loop(0, slots // chunk, run_chunk, carry)
    axes = (1, 2, 0) if wide else (2, 1, 0)
    return Record(*(jnp.transpose(x, axes) for x in carry[-2:]))


def _default_chunk(slots: int, max_spikes: int) -> int:
    """Events per solution: all for single spikes, else a balance found by measuring."""
    return slots if max_spikes == 1 else min(slots, 16)
