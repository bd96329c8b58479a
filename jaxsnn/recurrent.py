r"""A layer whose neurons excite and inhibit each other, run exactly.

With lateral connections a neuron's events are the inputs and the spikes of its own
layer, which nobody knows beforehand. There are two ways to go on exactly:

* **event by event**: the next event of a sample is its earliest input, delivery or
  threshold crossing; find it, take all neurons there, repeat. Works always.
* **window by window**: if every spike takes at least :math:`d_\min > 0` to arrive, then
  all that arrives in a window of that length is known at its beginning, and in it the
  layer is a feed-forward one, whose neurons go in lockstep; see `jaxsnn.simulate`.

Both find the same spikes. Samples do not wait for each other: each has its own time.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsnn.crossing import crosses, crossing_time
from jaxsnn.dynamics import Neuron, Time, flow
from jaxsnn.record import Record, Recurrent, at_rest, slope_at_threshold
from jaxsnn.simulate import Lockstep, Walkers
from jaxsnn.spikes import NO_INDEX, NO_TIME, Spikes

ARRIVALS_PER_WINDOW = 64


class _Mail(NamedTuple):
    """Spikes under way, first in first out for each source.

    Attributes:
      due: when the earliest undelivered spike of each source arrives, ``inf`` for none,
        ``[batch, neurons]``, or ``[batch, neurons * neurons]`` for pairs.
      delivered: spikes of each source that have arrived, of the same shape.
    """

    due: Array
    delivered: Array


class _Arrival(NamedTuple):
    """The next event that comes to the neurons of each sample, ``[batch]`` each."""

    time: Array
    row: Array  # Of the input weights with the recurrent ones below.
    is_input: Array
    source: Array  # Entry of the mail.


@functools.partial(jax.jit, static_argnames=("max_spikes", "by"))
def simulate_recurrent(
    neuron: Neuron,
    kernel: Array,
    inputs: Spikes,
    recurrent: Recurrent,
    *,
    max_spikes: int,
    until: Time = NO_TIME,
    by: str = "event",
) -> Record:
    """Finds the spikes of a recurrent layer, exactly. Not differentiable.

    Neurons that cross at the same time fire in the order of their numbers; a delivery
    at exactly the time of a spike acts first. A delay of 0 is one: the event arrives
    right after the spike that caused it.

    Args:
      neuron: parameters.
      kernel: weights of the inputs, ``[inputs.size, neurons]``.
      inputs: spikes, ``[batch, slots]``.
      recurrent: connections of the layer with itself.
      max_spikes: spikes per neuron; it is silent then, which ends every cascade.
      until: end of the window. Only events before it count.
      by: ``"event"``, or ``"window"``, which needs positive delays that do not depend
        on the target.

    Returns:
      The record of the layer's spikes.
    """
    run = {"event": _by_event, "window": _by_window}[by]
    return run(neuron, kernel, inputs, recurrent, max_spikes, until)


def _by_event(neuron, kernel, inputs, recurrent, max_spikes, until) -> Record:
    batch, neurons = inputs.time.shape[0], kernel.shape[1]
    dtype = jnp.result_type(kernel, inputs.time)
    until = jnp.asarray(until, dtype)
    delay = _delays(recurrent, dtype)
    pairs = delay.size > neurons
    table = jnp.concatenate([kernel, recurrent.kernel])
    mail = _no_mail(batch, delay)
    rows = jnp.arange(batch)
    rest = at_rest(neuron, batch, neurons, dtype)
    nothing = jnp.full((batch, neurons, max_spikes), NO_TIME, dtype)
    cursor = jnp.zeros(batch, jnp.int32)

    def going(carry: tuple) -> Array:
        return jnp.any(carry[-1])

    def step(carry: tuple) -> tuple:
        v, i, now, cursor, count, mail, record, _ = carry
        arrival = _next_arrival(inputs, kernel.shape[0], cursor, mail, neurons)
        stop = jnp.minimum(arrival.time, until)
        dt = jnp.where(stop > now, stop - now, 0)[:, None]
        may = (count < max_spikes) & (dt > 0)
        found = crosses(neuron, v, i, *flow(neuron, v, i, dt)) & may
        wait = crossing_time(neuron, jnp.where(found, v, neuron.v_th), i, dt)
        wait = jnp.where(found, wait, NO_TIME)
        first = jnp.argmin(wait, axis=1).astype(jnp.int32)
        fires = jnp.any(found, axis=1)
        wait = jnp.where(fires, jnp.min(wait, axis=1), dt[:, 0])
        arrives = ~fires & (arrival.time < until)
        going = fires | arrives
        # A sample that has come to its end stays where it is.
        v_next, i_next = flow(neuron, v, i, jnp.where(going, wait, 0)[:, None])
        now = jnp.where(arrives, stop, jnp.where(fires, now + wait, now))

        here = fires[:, None] & (jnp.arange(neurons) == first[:, None])
        slot = jnp.where(fires, count[rows, first], max_spikes)
        slope = slope_at_threshold(neuron, i_next)[rows, first]
        record = Record(
            record.times.at[rows, first, slot].set(now, mode="drop"),
            record.slope.at[rows, first, slot].set(slope, mode="drop"),
        )
        v_next = jnp.where(here, neuron.v_reset, v_next)
        count += here.astype(count.dtype)

        weights = table[arrival.row]
        if pairs:
            target = jnp.arange(neurons) == (arrival.source % neurons)[:, None]
            weights = jnp.where(arrival.is_input[:, None] | target, weights, 0)
        i_next = jnp.where(arrives[:, None], i_next + weights, i_next)
        cursor += (arrives & arrival.is_input).astype(jnp.int32)
        taken = arrives & ~arrival.is_input
        mail = _take(mail, taken, arrival.source, delay, record.times)
        sent = jnp.repeat(here, neurons, axis=1) if pairs else here
        mail = _post(mail, sent, now[:, None] + delay)
        return v_next, i_next, now, cursor, count, mail, record, going

    carry = (rest.v, rest.i, rest.time, cursor, rest.count, mail)
    carry += (Record(nothing, nothing), jnp.ones(batch, bool))
    return lax.while_loop(going, step, carry)[-2]


def _by_window(neuron, kernel, inputs, recurrent, max_spikes, until) -> Record:
    batch, neurons = inputs.time.shape[0], kernel.shape[1]
    dtype = jnp.result_type(kernel, inputs.time)
    until = jnp.asarray(until, dtype)
    delay = _delays(recurrent, dtype)
    shortest = jnp.min(delay)
    wide = neurons >= batch
    # The last row is that of an event that carries nothing.
    table = jnp.pad(jnp.concatenate([kernel, recurrent.kernel]), ((0, 1), (0, 0)))
    rest = at_rest(neuron, batch, neurons, dtype)
    shape = (batch, neurons) if wide else (neurons, batch)
    nothing = jnp.full((max_spikes, *shape), NO_TIME, dtype)
    room = ARRIVALS_PER_WINDOW

    def lanes(x: Array) -> Array:
        return x if wide else x.T

    def by_neuron(times: Array) -> Array:
        return jnp.transpose(times, (1, 2, 0) if wide else (2, 1, 0))

    def following(cursor: Array, mail: _Mail) -> _Arrival:
        return _next_arrival(inputs, kernel.shape[0], cursor, mail, neurons)

    def collect(end: Array, cursor: Array, mail: _Mail, times: Array) -> tuple:
        """Lists what arrives before `end`, which is moved forward if it is too much."""
        empty = (
            jnp.full((batch, room), NO_TIME, dtype),
            jnp.full((batch, room), NO_INDEX, jnp.int32),
        )

        def coming(carry: tuple) -> Array:
            k, _, _, _, _, arrival = carry
            return (k < room) & jnp.any(arrival.time < end)

        def take(carry: tuple) -> tuple:
            k, time, row, cursor, mail, arrival = carry
            arrives = arrival.time < end
            time = time.at[:, k].set(jnp.where(arrives, arrival.time, NO_TIME))
            row = row.at[:, k].set(jnp.where(arrives, arrival.row, NO_INDEX))
            cursor += (arrives & arrival.is_input).astype(jnp.int32)
            taken = arrives & ~arrival.is_input
            mail = _take(mail, taken, arrival.source, delay, by_neuron(times))
            return k + 1, time, row, cursor, mail, following(cursor, mail)

        carry = (jnp.int32(0), *empty, cursor, mail, following(cursor, mail))
        k, time, row, cursor, mail, arrival = lax.while_loop(coming, take, carry)
        return k, time, row, cursor, mail, jnp.minimum(end, arrival.time)

    def window(carry: tuple) -> tuple:
        v, i, now, cursor, count, mail, record, _ = carry
        # Where no neuron is about to fire, the window begins with the next arrival.
        active = count < max_spikes
        rising = jnp.any(crosses(neuron, v, i, neuron.v_leak, 0 * i) & active, axis=1)
        begin = jnp.where(rising, now, jnp.maximum(now, following(cursor, mail).time))
        end = jnp.minimum(begin + shortest, until)
        number, time, row, cursor, mail, end = collect(end, cursor, mail, record.times)

        # An event that carries nothing opens the first interval.
        time = jnp.minimum(jnp.concatenate([now[:, None], time], 1), end[:, None])
        row = jnp.pad(row, ((0, 0), (1, 0)), constant_values=NO_INDEX)
        bounds = jnp.concatenate([time, end[:, None]], axis=1)
        step = Lockstep(neuron, table, row, bounds, max_spikes, wide)
        walkers, record = step.advance(
            jnp.int32(0), number + 1, step.place(v, i, count), record
        )
        v, i, after = (lanes(x) for x in (walkers.v, walkers.i, walkers.count))
        # The first spike that is not yet posted is the first of this window.
        fired = after > count
        slot = lanes(jnp.minimum(count, max_spikes - 1))[None]
        earliest = lanes(jnp.take_along_axis(record.times, slot, axis=0)[0])
        mail = _post(mail, fired, earliest + delay)
        # Without arrivals and without a neuron about to fire, nothing will happen.
        going = (end < until) & (rising | (begin < NO_TIME))
        return v, i, end, cursor, after, mail, record, going

    carry = (rest.v, rest.i, rest.time, jnp.zeros(batch, jnp.int32), rest.count)
    carry += (_no_mail(batch, delay), Record(nothing, nothing), jnp.ones(batch, bool))
    record = lax.while_loop(lambda c: jnp.any(c[-1]), window, carry)[-2]
    return Record(by_neuron(record.times), by_neuron(record.slope))


def _delays(recurrent: Recurrent, dtype) -> Array:
    """Delays of each source, ``[neurons]``, or of each pair, ``[neurons ** 2]``."""
    neurons = recurrent.kernel.shape[0]
    delay = jnp.asarray(recurrent.delay, dtype)
    if delay.ndim == 2 and delay.shape[1] > 1:
        return jnp.broadcast_to(delay, (neurons, neurons)).reshape(-1)
    return jnp.broadcast_to(delay.reshape(-1), (neurons,))


def _no_mail(batch: int, delay: Array) -> _Mail:
    shape = (batch, delay.size)
    return _Mail(jnp.full(shape, NO_TIME, delay.dtype), jnp.zeros(shape, jnp.int32))


def _next_arrival(inputs, sources, cursor, mail, neurons) -> _Arrival:
    """The earliest of the inputs and of the mail; inputs first."""
    slots = inputs.time.shape[1]
    batch = cursor.shape[0]
    if slots == 0:
        time = jnp.full(batch, NO_TIME, mail.due.dtype)
        index = jnp.zeros(batch, jnp.int32)
    else:
        at = jnp.minimum(cursor, slots - 1)[:, None]
        time = jnp.take_along_axis(inputs.time, at, 1)[:, 0].astype(mail.due.dtype)
        time = jnp.where(cursor < slots, time, NO_TIME)
        index = jnp.take_along_axis(inputs.index, at, 1)[:, 0]
    source = jnp.argmin(mail.due, axis=1).astype(jnp.int32)
    due = jnp.min(mail.due, axis=1)
    is_input = time <= due
    neuron = source // (mail.due.shape[1] // neurons)
    row = jnp.where(is_input, index, sources + neuron)
    return _Arrival(jnp.minimum(time, due), row, is_input, source)


def _take(mail: _Mail, taken, source, delay, times) -> _Mail:
    """Delivers one spike of `source` where `taken`; its next one is due then."""
    rows = jnp.arange(source.shape[0])
    number = mail.delivered[rows, source] + taken.astype(jnp.int32)
    neuron = source // (mail.due.shape[1] // times.shape[1])
    slot = jnp.minimum(number, times.shape[2] - 1)
    due = jnp.where(number < times.shape[2], times[rows, neuron, slot], NO_TIME)
    due = jnp.where(taken, due + delay[source], mail.due[rows, source])
    return _Mail(
        mail.due.at[rows, source].set(due),
        mail.delivered.at[rows, source].set(number),
    )


def _post(mail: _Mail, fired: Array, due: Array) -> _Mail:
    """Puts new spikes into the mail, where no earlier one of their source is left."""
    idle = fired & (mail.due == NO_TIME)
    return mail._replace(due=jnp.where(idle, due, mail.due))
