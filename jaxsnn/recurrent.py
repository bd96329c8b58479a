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
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsnn.crossing import crosses, crossing_time
from jaxsnn.dynamics import Neuron, Time, flow
from jaxsnn.record import (
    Record,
    Recurrent,
    State,
    at_rest,
    explain,
    slope_at_threshold,
)
from jaxsnn.simulate import Lockstep, longer_axis_last, simulate
from jaxsnn.spikes import NO_INDEX, NO_TIME, Spikes, argsort_times

ARRIVALS_PER_WINDOW = 128


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


def find_spikes(
    neuron: Neuron,
    kernel: Array,
    inputs: Spikes,
    start: State | None,
    recurrent: Recurrent | None,
    max_spikes: int,
    until: Time,
    by: str,
    observed: Array | None = None,
) -> Record:
    """Finds the spikes of a layer, or explains those that a device observed.

    The record is a constant: nothing is differentiated here.

    Args:
      neuron: parameters.
      kernel: weights of the inputs, ``[inputs.size, neurons]``.
      inputs: spikes, ``[batch, slots]``.
      start: state at the beginning; at rest if None.
      recurrent: connections of the layer with itself; None for none.
      max_spikes: spikes per neuron; it is silent then.
      until: end of the window. Only events before it count.
      by: ``"event"`` or ``"window"``; see `simulate_recurrent`.
      observed: spike times to explain instead, ``[batch, neurons, max_spikes]``.
    """
    given = (neuron, kernel, inputs, start, recurrent)
    neuron, kernel, inputs, start, recurrent = lax.stop_gradient(given)
    if observed is not None:
        return explain(neuron, kernel, inputs, start, observed, recurrent)
    limits: dict[str, Any] = {"max_spikes": max_spikes, "until": until}
    if recurrent is None:
        return simulate(neuron, kernel, inputs, start=start, **limits)
    return simulate_recurrent(neuron, kernel, inputs, recurrent, by=by, **limits)


def quicker_way(by: str, shortest: float | None, tau_mem: Iterable[Any]) -> str:
    """What ``"auto"`` stands for: windows, unless they would be very many.

    Args:
      by: ``"event"``, ``"window"`` or ``"auto"``.
      shortest: delay in seconds, if windows are possible.
      tau_mem: membrane time constants; only numbers count.
    """
    if by != "auto":
        return by
    longest = max((x for x in tau_mem if isinstance(x, int | float)), default=0.0)
    return "window" if shortest and shortest >= 0.01 * longest else "event"


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

    def hold(release: Array, now: Array, dt: Array) -> Array:
        """Refractory part of the next `dt`."""
        if not neuron.refractory:
            return jnp.zeros((), dtype)
        return jnp.clip(release - now[:, None], 0, dt[:, None])

    def step(carry: tuple) -> tuple:
        v, i, now, cursor, count, release, mail, record, _ = carry
        arrival = _next_arrival(inputs, kernel.shape[0], cursor, mail, neurons)
        stop = jnp.minimum(arrival.time, until)
        total = jnp.where(stop > now, stop - now, 0)
        # A neuron that is refractory begins later.
        held = hold(release, now, total)
        dt = total[:, None] - held
        i_free = i * jnp.exp(-held / neuron.tau_syn)
        may = (count < max_spikes) & (dt > 0)
        found = crosses(neuron, v, i_free, *flow(neuron, v, i_free, dt)) & may
        wait = crossing_time(neuron, jnp.where(found, v, neuron.v_th), i_free, dt)
        wait = jnp.where(found, held + wait, NO_TIME)
        first = jnp.argmin(wait, axis=1).astype(jnp.int32)
        fires = jnp.any(found, axis=1)
        wait = jnp.where(fires, jnp.min(wait, axis=1), total)
        arrives = ~fires & (arrival.time < until)
        going = fires | arrives
        # A sample that has come to its end stays where it is.
        wait = jnp.where(going, wait, 0)
        held = hold(release, now, wait)
        i_free = i * jnp.exp(-held / neuron.tau_syn)
        v_next, i_next = flow(neuron, v, i_free, wait[:, None] - held)
        now = jnp.where(arrives, stop, jnp.where(fires, now + wait, now))

        here = fires[:, None] & (jnp.arange(neurons) == first[:, None])
        slot = jnp.where(fires, count[rows, first], max_spikes)
        slope = slope_at_threshold(neuron, i_next)[rows, first]
        record = Record(
            record.times.at[rows, first, slot].set(now, mode="drop"),
            record.slope.at[rows, first, slot].set(slope, mode="drop"),
        )
        v_next = jnp.where(here, neuron.v_reset, v_next)
        release = jnp.where(here, now[:, None] + neuron.t_ref, release)
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
        return v_next, i_next, now, cursor, count, release, mail, record, going

    release = jnp.full_like(rest.v, -NO_TIME)
    state = (rest.v, rest.i, rest.time, cursor, rest.count, release)
    carry = (*state, mail, Record(nothing, nothing), jnp.ones(batch, bool))
    return lax.while_loop(going, step, carry)[-2]


def _by_window(neuron, kernel, inputs, recurrent, max_spikes, until) -> Record:
    given = neuron, kernel, inputs, recurrent, max_spikes, until
    run = functools.partial(_window_by_window, *given)
    return longer_axis_last(run, inputs.time.shape[0], kernel.shape[1])


def _window_by_window(
    neuron, kernel, inputs, recurrent, max_spikes, until, wide
) -> Record:
    batch, neurons = inputs.time.shape[0], kernel.shape[1]
    dtype = jnp.result_type(kernel, inputs.time)
    until = jnp.asarray(until, dtype)
    delay = _delays(recurrent, dtype)
    shortest = jnp.min(delay)
    # The last row is that of an event that carries nothing.
    table = jnp.pad(jnp.concatenate([kernel, recurrent.kernel]), ((0, 1), (0, 0)))
    rest = at_rest(neuron, batch, neurons, dtype)
    room = ARRIVALS_PER_WINDOW
    ahead = jnp.arange(room + 1)  # One more input, to know what a full window leaves.
    pad = ((0, 0), (0, room + 1))
    input_time = jnp.pad(inputs.time.astype(dtype), pad, constant_values=NO_TIME)
    input_row = jnp.pad(inputs.index, pad, constant_values=NO_INDEX)
    shape = (batch, neurons) if wide else (neurons, batch)
    nothing = jnp.full((max_spikes, *shape), NO_TIME, dtype)
    rows = jnp.arange(batch)[:, None]
    spike_row = jnp.broadcast_to(kernel.shape[0] + jnp.arange(neurons), rest.v.shape)

    def lanes(x: Array) -> Array:
        return x if wide else x.T

    def due(times: Array, number: Array) -> Array:
        """When spike `number` of each source arrives, ``[batch, neurons]``."""
        slot = lanes(jnp.minimum(number, max_spikes - 1))[None]
        sent = lanes(jnp.take_along_axis(times, slot, axis=0)[0])
        return jnp.where(number < max_spikes, sent, NO_TIME) + delay

    def window(carry: tuple) -> tuple:
        v, i, now, cursor, count, release, delivered, record, _ = carry
        # What comes next: inputs, and of each source the next spike under way.
        coming = cursor[:, None] + ahead
        time = jnp.take_along_axis(input_time, coming, 1)
        row = jnp.take_along_axis(input_row, coming, 1)
        time = jnp.concatenate([time, due(record.times, delivered)], axis=1)
        row = jnp.concatenate([row, spike_row], axis=1)

        # Where no neuron is about to fire, the window begins with the next arrival. It
        # ends before another spike of the same source arrives, or too many.
        active = count < max_spikes
        rising = jnp.any(crosses(neuron, v, i, neuron.v_leak, 0 * i) & active, axis=1)
        begin = jnp.where(rising, now, jnp.maximum(now, jnp.min(time, axis=1)))
        # A delay lost in rounding is as long as can be.
        end = jnp.maximum(begin + shortest, jnp.nextafter(begin, NO_TIME))
        end = jnp.minimum(end, until)
        second = jnp.min(due(record.times, delivered + 1), axis=1)
        soon = (time < end[:, None]) & (time <= second[:, None])
        time, place, beyond = _earliest(jnp.where(soon, time, NO_TIME), room)
        arrives = time < NO_TIME
        end = jnp.minimum(end, jnp.minimum(second, beyond))
        is_input = place < ahead.size
        cursor += jnp.sum(arrives & is_input, axis=1, dtype=jnp.int32)
        source = jnp.where(is_input, neurons, place - ahead.size)
        delivered = delivered.at[rows, source].add(
            arrives.astype(jnp.int32), mode="drop"
        )
        row = jnp.where(arrives, jnp.take_along_axis(row, place, 1), NO_INDEX)
        number = jnp.max(jnp.sum(arrives, axis=1, dtype=jnp.int32), initial=0)

        # An event that carries nothing opens the first interval.
        row = jnp.pad(row, ((0, 0), (1, 0)), constant_values=NO_INDEX)
        bounds = jnp.concatenate([now[:, None], time, end[:, None]], axis=1)
        bounds = jnp.minimum(bounds, end[:, None])
        step = Lockstep(neuron, table, row, bounds, max_spikes, wide)
        walkers, record = step.advance(
            jnp.int32(0), number + 1, step.place(v, i, count, release), record
        )
        v, i, count = (lanes(x) for x in (walkers.v, walkers.i, walkers.count))
        release = lanes(walkers.release)
        # Without arrivals and without a neuron about to fire, nothing will happen.
        going = (end < until) & (rising | (begin < NO_TIME))
        return v, i, end, cursor, count, release, delivered, record, going

    free = jnp.full_like(rest.v, -NO_TIME)
    state = (rest.v, rest.i, rest.time, jnp.zeros(batch, jnp.int32), rest.count, free)
    delivered = jnp.zeros_like(rest.count)
    carry = (*state, delivered, Record(nothing, nothing), jnp.ones(batch, bool))
    record = lax.while_loop(lambda c: jnp.any(c[-1]), window, carry)[-2]
    axes = (1, 2, 0) if wide else (2, 1, 0)
    return Record(*(jnp.transpose(x, axes) for x in record))


def _earliest(time: Array, n: int) -> tuple[Array, Array, Array]:
    """The first `n` of each row's finite times in order, ties by place.

    Returns:
      Those times, ``inf`` for none, and their places, ``[batch, n]``, and the next
      time, ``[batch]``.
    """
    batch, places = time.shape
    rows = jnp.arange(batch)[:, None]
    finite = time < NO_TIME
    number = jnp.cumsum(finite, axis=1, dtype=jnp.int32)

    def few() -> tuple[Array, Array, Array]:
        """Closes up before it sorts, which is many times faster on a CPU."""
        slot = jnp.where(finite, number - 1, n)
        place = jnp.zeros((batch, n), jnp.int32)
        place = place.at[rows, slot].set(
            jnp.arange(places, dtype=jnp.int32), mode="drop"
        )
        found = jnp.arange(n) < number[:, -1:]
        times = jnp.where(found, jnp.take_along_axis(time, place, 1), NO_TIME)
        order = argsort_times(times)
        times = jnp.take_along_axis(times, order, 1)
        place = jnp.take_along_axis(place, order, 1)
        return times, place, jnp.full(batch, NO_TIME, time.dtype)

    def many() -> tuple[Array, Array, Array]:
        times, place = lax.top_k(-time, n + 1)  # Of equal ones, the first.
        return -times[:, :-1], place[:, :-1], -times[:, -1]

    return lax.cond(jnp.any(number[:, -1] > n), many, few)


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
