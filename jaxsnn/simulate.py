"""The forward pass of a layer: from event to event, all neurons in lockstep.

Neurons of one layer do not see each other, so the sequential axis is the layer's input
events, not its own spikes as well. All neurons of all samples take an input event
together; between events, a test of signs tells which neurons spike. The spike times
are then solved for all those neurons at once, only every `chunk` events: a neuron that
is found to spike waits, frozen, for the end of the chunk, has its spikes solved, and
catches up with the others in another pass over the chunk.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsnn.crossing import crosses, crossing_time
from jaxsnn.dynamics import Flow, Neuron, Time, flow
from jaxsnn.record import Record, State, at_rest, slope_at_threshold, start_of_run
from jaxsnn.spikes import NO_INDEX, NO_TIME, Spikes

T = TypeVar("T")


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

    def run(wide: bool) -> Record:
        step = Lockstep(neuron, kernel, index, bounds, max_spikes, wide)
        free = jnp.full_like(start.v, -NO_TIME)  # A refractory layer starts from rest.
        walkers = step.place(start.v, start.i, start.count, free)
        nothing = jnp.full((max_spikes, *walkers.v.shape), NO_TIME, dtype)
        record = Record(nothing, nothing)

        def run_chunk(number: Array, carry: tuple) -> tuple:
            return step.advance(number * chunk, (number + 1) * chunk, *carry)

        if chunk == slots:
            _, record = run_chunk(jnp.int32(0), (walkers, record))
        else:
            _, record = lax.fori_loop(0, slots // chunk, run_chunk, (walkers, record))
        axes = (1, 2, 0) if wide else (2, 1, 0)
        return Record(*(jnp.transpose(x, axes) for x in record))

    return longer_axis_last(run, batch, neurons)


def longer_axis_last(run: Callable[[bool], T], batch: int, neurons: int) -> T:
    """Runs neurons as the last axis inside if they are as many as samples, or more.

    Both are lanes alike, and vector units want the longer axis last. An exported
    function has both ways, and takes that of the batch with which it is called.
    """
    if isinstance(batch, int):
        return run(neurons >= batch)
    few = neurons >= jnp.asarray(batch)
    return lax.cond(few, lambda: run(True), lambda: run(False))


class Walkers(NamedTuple):
    """Neurons of all samples on their way through their input events.

    The axes are ``[batch, neurons]`` if `Lockstep.wide`, else ``[neurons, batch]``.

    Attributes:
      v: voltage where the neuron stands.
      i: current there.
      resume: number of the event that the neuron takes next. Of one that waits for its
        spike to be solved, plus `Lockstep.waiting`; of one that is done, out of reach.
      since: time from which the voltage of a neuron that waits goes on, if that is
        later than its event: of the last own spike, or the end of its refractory
        period.
      release: end of the last refractory period, -inf if there was none.
      count: spikes so far.
    """

    v: Array
    i: Array
    resume: Array
    since: Array
    release: Array
    count: Array  # type: ignore[assignment]


class Lockstep:
    """Takes all neurons through a list of input events together."""

    def __init__(
        self,
        neuron: Neuron,
        kernel: Array,
        index: Array,
        bounds: Array,
        max_spikes: int,
        wide: bool,
    ):
        """Prepares the list.

        Args:
          neuron: parameters.
          kernel: weights, ``[size, neurons]``.
          index: sources of the events, ``[batch, slots]``; -1 reads the last row.
          bounds: times of the events and the end, ascending, ``[batch, slots + 1]``.
          max_spikes: spikes after which a neuron is done.
          wide: whether neurons are the last axis inside, or else samples.
        """
        self.slots = index.shape[1]
        self.wide, self.max_spikes = wide, max_spikes
        self.neuron = neuron if wide else neuron.over(-1)
        self.weights = kernel if wide else kernel.T
        self.waiting, self.never = self.slots + 1, 3 * self.slots + 3
        # Between empty slots, inf - inf would be the length of an interval.
        self.left, self.right = bounds[:, :-1], bounds[:, 1:]
        length = jnp.where(self.right > self.left, self.right - self.left, 0)
        self.index, self.length = index.T, length.T
        # All that transcendental functions have to do is done before the loop. (With a
        # time constant of its own for each neuron, that is not possible.)
        self.interval = Flow.over(neuron, self.length) if neuron.uniform else None

    def place(self, v: Array, i: Array, count: Array, release: Array) -> Walkers:
        """Puts neurons, ``[batch, neurons]``, before the first event."""
        v, i, count, release = (self._lanes(x) for x in (v, i, count, release))
        resume = jnp.where(count < self.max_spikes, 0, self.never).astype(jnp.int32)
        since = jnp.full_like(v, -NO_TIME)
        return Walkers(v, i, resume, since, release, count)

    def advance(
        self, first: Array, stop: Array, walkers: Walkers, record: Record
    ) -> tuple[Walkers, Record]:
        """Takes the neurons from event `first` to before event `stop`.

        Args:
          first: number of an event that all neurons are at or behind.
          stop: number of the event where all neurons are to be.
          walkers: the neurons.
          record: spikes so far, ``[max_spikes, *axes of the walkers]``.
        """

        def behind(carry: tuple[Walkers, Record]) -> Array:
            resume = carry[0].resume
            waits = (resume >= self.waiting) & (resume < self.never)
            return jnp.any((resume < stop) | waits)

        def walking(carry: tuple) -> Array:
            return (carry[0] < stop) & jnp.any(carry[3] < stop)

        def catch_up(carry: tuple[Walkers, Record]) -> tuple[Walkers, Record]:
            walkers, record = carry
            start = jnp.maximum(first, jnp.min(walkers.resume, initial=self.never))
            walk = (start, *walkers[:3])
            pass_over = functools.partial(self._pass_over, walkers.release)
            _, v, i, resume = lax.while_loop(walking, pass_over, walk)
            walkers = walkers._replace(v=v, i=i, resume=resume)
            return self._settle(walkers, record, stop)

        return lax.while_loop(behind, catch_up, (walkers, record))

    def _lanes(self, x: Array) -> Array:
        """From ``[batch, neurons]`` to the order of axes inside, or back."""
        return x if self.wide else x.T

    def _per_sample(self, x: Array) -> Array:
        """Spreads ``[batch]`` over the lanes."""
        return x[:, None] if self.wide else x[None, :]

    def _at(self, table: Array, place: Array) -> Array:
        """Looks up every neuron's own event, in a table ``[batch, slots]``."""
        return self._lanes(jnp.take_along_axis(table, self._lanes(place), 1))

    def _pass_over(self, release: Array, carry: tuple) -> tuple:
        """Takes the neurons that walk through one event and the interval after it."""
        k, v, i, resume = carry
        neuron, row, length = self.neuron, self.index[k], self.length[k]
        weights = self.weights[row] if self.wide else self.weights[:, row]
        if self.interval is None:
            over = Flow.over(neuron, self._per_sample(length))
        else:
            over = Flow(*(self._per_sample(factor[k]) for factor in self.interval))
        i = jnp.where(resume <= k, i + weights, i)
        v_end, i_end = over.advance(neuron, v, i)
        lasts = self._per_sample(length > 0)
        stops = crosses(neuron, v, i, v_end, i_end) & lasts
        if neuron.refractory:
            held = release > self._per_sample(self.left.T[k])
            v_end = jnp.where(held, v, v_end)
            freed = held & (release < self._per_sample(self.right.T[k])) & lasts
            stops = jnp.where(held, freed, stops)
        resume = jnp.where((resume <= k) & stops, self.waiting + k, resume)
        # In this form, all of it compiles to one pass over the lanes.
        return (
            k + 1,
            jnp.where(resume <= k, v_end, v),
            (jnp.where(resume <= k, i_end, i)),
            resume,
        )

    def _settle(
        self, walkers: Walkers, record: Record, stop: Array
    ) -> tuple[Walkers, Record]:
        """Emits one spike of every neuron that waits."""
        v, i, resume, since, release, count = walkers
        neuron = self.neuron
        waits = (resume >= self.waiting) & (resume < self.never)
        place = jnp.clip(resume - self.waiting, 0, self.slots - 1)
        # Past a spike inside the interval, the neuron stands there.
        begin = jnp.where(waits, jnp.maximum(since, self._at(self.left, place)), 0)
        end = self._at(self.right, place)
        dt = jnp.where(waits, end - begin, 0)
        # A neuron that waits for its release is not one that fires.
        fires = waits & (release <= begin) if neuron.refractory else waits
        # The others are put on the threshold, where the solver is done at once.
        wait = crossing_time(neuron, jnp.where(fires, v, neuron.v_th), i, dt)
        if neuron.refractory:
            wait = jnp.where(fires, wait, jnp.where(waits, release - begin, 0))
        i_at = i * jnp.exp(-wait / neuron.tau_syn)
        spike = Record(begin + wait, slope_at_threshold(neuron, i_at))
        record = _write(record, count, fires, spike)
        since = jnp.where(waits, begin + wait, since)
        count += fires.astype(count.dtype)
        resume = jnp.where(waits, resume, jnp.maximum(resume, stop))
        if self.max_spikes == 1:  # All that were waiting are done now.
            resume = jnp.where(waits, self.never, resume)
            return Walkers(v, i, resume, since, release, count), record
        dt = jnp.where(dt > wait, dt - wait, 0)
        v_reset = jnp.asarray(neuron.v_reset, v.dtype)
        v_end, i_end = flow(neuron, v_reset, i_at, dt)
        again = (dt > 0) & crosses(neuron, v_reset, i_at, v_end, i_end)
        if neuron.refractory:
            release = jnp.where(fires, since + neuron.t_ref, release)
            held = fires & (release > since)  # Not by a period lost in rounding.
            again = jnp.where(held, release < end, again)  # It waits for its release.
            v_end = jnp.where(held, v_reset, v_end)
        v = jnp.where(waits, jnp.where(again, v_reset, v_end), v)
        i = jnp.where(waits, jnp.where(again, i_at, i_end), i)
        resume = jnp.where(waits & ~again, place + 1, resume)
        resume = jnp.where(count < self.max_spikes, resume, self.never)
        return Walkers(v, i, resume, since, release, count), record


def _write(record: Record, slot: Array, where: Array, spike: Record) -> Record:
    """Puts spikes into their slots, ``[max_spikes, *lanes]``, rows in use only."""
    if record.times.shape[0] == 1:
        return Record(
            *(
                jnp.where(where, x, y[0])[None]
                for x, y in zip(spike, record, strict=True)
            )
        )
    last = jnp.max(jnp.where(where, slot, -1), initial=-1)
    none = record.times.shape[0]
    first = jnp.min(jnp.where(where, slot, none), initial=none)

    def write(carry: tuple[Array, Record]) -> tuple[Array, Record]:
        row, record = carry
        here = where & (slot == row)
        return row + 1, Record(
            *(
                y.at[row].set(jnp.where(here, x, y[row]))
                for x, y in zip(spike, record, strict=True)
            )
        )

    return lax.while_loop(lambda carry: carry[0] <= last, write, (first, record))[1]


def _default_chunk(slots: int, max_spikes: int) -> int:
    """Events per solution: all for single spikes, else a balance found by measuring."""
    return slots if max_spikes == 1 else min(slots, 16)
