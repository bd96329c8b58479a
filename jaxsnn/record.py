r"""The record of a layer's events, and all that follows from it in closed form.

Once the spike times :math:`t_s` of a neuron are known, its state at any time is a sum
over events, linear in the weights:

.. math::
    I(t) = \sum_{t_j \le t} w_j e^{-(t - t_j)/\tau_s}, \qquad
    V(t) = v_\mathrm{leak} + \sum_{t_j \le t} w_j k(t - t_j)
           - (v_\mathrm{th} - v_\mathrm{reset})
             \sum_{t_s < t} e^{-(t - t_s)/\tau_m},

because a reset subtracts a known amount. It does not matter who found the spikes: the
simulation, another simulator, or a chip.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsnn.dynamics import Neuron, Parameter, Time, drive, psp, psp_slope
from jaxsnn.spikes import NO_TIME, Spikes


class State(NamedTuple):
    """What a layer carries from one window to the next.

    Attributes:
      v: membrane voltages, ``[batch, neurons]``.
      i: synaptic currents, ``[batch, neurons]``.
      time: when `v` and `i` hold, ``[batch]``.
      count: spikes of each neuron since the start of the run, ``[batch, neurons]``.
    """

    v: Array
    i: Array
    time: Array
    count: Array  # type: ignore[assignment]  # Hides tuple.count, which nobody needs.


class Record(NamedTuple):
    """What happened in a layer: all that a gradient needs besides the inputs.

    Attributes:
      times: spike times of each neuron, ascending, then ``+inf``,
        ``[batch, neurons, max_spikes]``.
      slope: of the voltage at those times; ``inf`` where there is no spike, or none
        that the model can explain, so that dividing by it switches a gradient off.
    """

    times: Array
    slope: Array


class Recurrent(NamedTuple):
    """Connections of a layer with itself.

    Attributes:
      kernel: weights from each neuron (first axis) to each, ``[neurons, neurons]``.
      delay: time that a spike takes to arrive, in seconds, not negative: of all
        connections, ``[]``, of each source, ``[neurons, 1]``, of each target,
        ``[1, neurons]``, or of each pair, ``[neurons, neurons]``.
    """

    kernel: Array
    delay: Array


def start_of_run(
    neuron: Neuron, start: State | None, batch: int, neurons: int, dtype
) -> State | None:
    """State at the beginning: `start`, rest at time 0, or None for nothing to tell.

    A neuron that rests below its threshold does nothing before its first input, so
    that the time at which its run begins does not matter, and no work is spent on it.
    """
    if start is not None or not neuron.fires_unprompted:
        return start
    return at_rest(neuron, batch, neurons, dtype)


def at_rest(neuron: Neuron, batch: int, neurons: int, dtype) -> State:
    """State at the beginning of a run, at time 0."""
    shape = (batch, neurons)
    return State(
        v=jnp.broadcast_to(jnp.asarray(neuron.v_start, dtype), shape),
        i=jnp.zeros(shape, dtype),
        time=jnp.zeros(batch, dtype),
        count=jnp.zeros(shape, jnp.int32),
    )


def slope_at_threshold(neuron: Neuron, i: Array) -> Array:
    """Slope of the voltage at a spike, from the current, in 1 / s.

    It cannot be resolved below the rounding error of the difference that it is; that
    error is what a grazing spike gets, so that its gradient is huge but finite.
    """
    slope = drive(neuron, jnp.asarray(neuron.v_th, i.dtype), i)
    scale = jnp.abs(i) + jnp.abs(neuron.v_th - neuron.v_leak)
    error = jnp.finfo(i.dtype).eps * scale
    return jnp.maximum(slope, error) / neuron.tau_mem


class Places(NamedTuple):
    """Input events as the sums above run over them, in whichever order is known.

    Attributes:
      time: time of each event, ``inf`` for none, ``[batch, places]``.
      source: source of each event, ``[batch, places]``, or ``[places]`` if every
        sample has the same.
    """

    time: Array
    source: Array

    @classmethod
    def of(cls, inputs: Spikes) -> Self:
        """Lists the input events; by source if known, which spares a gather."""
        if inputs.by_source is None:
            return cls(inputs.time, inputs.index)
        batch, size, n = inputs.by_source.shape
        source = jnp.arange(size * n) // n
        return cls(inputs.by_source.reshape(batch, size * n), source)

    def weights(self, kernel: Array) -> Array:
        """Weights of each event, ``[batch or 1, places, neurons]``."""
        if self.source.ndim == 2:
            return kernel[self.source]
        # Not a gather, whose transpose would be a slow scatter.
        repeats = self.source.shape[0] // max(kernel.shape[0], 1)
        return jnp.repeat(kernel, repeats, axis=0)[None]

    def per_source(self, values: Array, size: int) -> Array:
        """Adds up values of the events of each source, ``[batch, size]``."""
        if self.source.ndim == 1:
            n = values.shape[1] // max(size, 1)
            return jnp.sum(values.reshape(values.shape[0], size, n), axis=-1)
        rows = jnp.arange(values.shape[0])[:, None]
        zeros = jnp.zeros((values.shape[0], size), values.dtype)
        return zeros.at[rows, self.source].add(values)  # Empty places add 0.


def elapsed(at: Array, since: Array) -> tuple[Array, Array]:
    """Time from `since` to `at` where both exist in that order, else 0; and where."""
    after = (at >= since) & (at < NO_TIME)
    return jnp.where(after, at - jnp.where(after, since, 0), 0), after


def respond(
    response: Callable[[Array], Array],
    kernel: Array,
    inputs: Spikes,
    at: Array,
    since: Array | None = None,
) -> Array:
    """Sums a response to each input event over the inputs, at the neurons' own times.

    Args:
      response: of a neuron to a unit event, as a function of the time since.
      kernel: weights, ``[inputs.size, neurons]``.
      inputs: spikes, ``[batch, slots]``.
      at: times of interest, ``[batch, neurons, n]``.
      since: times of the same shape; only events after them count.

    Returns:
      The sums, ``[batch, neurons, n]``.
    """
    places = Places.of(inputs)
    at = jnp.moveaxis(at, -1, 0)[:, :, None, :]  # [n, batch, places, neurons]
    dt, after = elapsed(at, places.time[:, :, None])
    if since is not None:
        since = jnp.moveaxis(since, -1, 0)[:, :, None, :]
        after &= places.time[:, :, None] > since
        dt = jnp.where(after, dt, 0)
    total = places.weights(kernel) * jnp.where(after, response(dt), 0)
    # As a product with ones: on a CPU, a sum over this axis takes five times as long.
    ones = jnp.ones(total.shape[2], total.dtype)
    sums = jnp.einsum("nbkm,k->nbm", total, ones, precision=lax.Precision.HIGHEST)
    return jnp.moveaxis(sums, 0, -1)


def synaptic_decay(neuron: Neuron, dt: Array) -> Array:
    """Current `dt` after a unit jump of it."""
    return jnp.exp(-dt / neuron.tau_syn)


def current(
    neuron: Neuron, kernel: Array, inputs: Spikes, start: State | None, at: Array
) -> Array:
    """Synaptic current at the neurons' own times, ``[batch, neurons, n]``."""
    total = respond(lambda dt: synaptic_decay(neuron, dt), kernel, inputs, at)
    if start is None:
        return total
    dt, after = elapsed(at, start.time[:, None, None])
    decayed = start.i[..., None] * synaptic_decay(neuron.over(-1), dt)
    return total + jnp.where(after, decayed, 0)


def free_voltage(
    neuron: Neuron, kernel: Array, inputs: Spikes, start: State | None, at: Array
) -> Array:
    """Voltage at the neurons' own times, as if they did not spike after `start`."""
    total = respond(lambda dt: psp(neuron, dt), kernel, inputs, at)
    each = neuron.over(-1)
    if start is not None:
        dt, after = elapsed(at, start.time[:, None, None])
        v = (start.v[..., None] - each.v_leak) * jnp.exp(-dt / each.tau_mem)
        total += jnp.where(after, v + start.i[..., None] * psp(each, dt), 0)
    return each.v_leak + total


def feedback(
    response: Callable[[Neuron, Array], Array],
    neuron: Neuron,
    recurrent: Recurrent,
    times: Array,
    at: Array,
    since: Array | None = None,
) -> Array:
    """Sums a response to the layer's own spikes, at the neurons' own times after them.

    One source after the other, which bounds the memory, that of a gradient too.

    Args:
      response: of a neuron to a unit event, as a function of the time since.
      neuron: parameters.
      recurrent: connections of the layer with itself.
      times: spikes of the layer, ``[batch, neurons, n]``.
      at: times of interest, ``[batch, neurons, n]``.
      since: times of the same shape; only arrivals then or later count.

    Returns:
      The sums, ``[batch, neurons, n]``.
    """
    neurons, n = times.shape[1:]
    delay = jnp.broadcast_to(recurrent.delay, recurrent.kernel.shape)
    # [n, batch, neurons]: on a CPU, a short last axis takes ten times as long.
    at = jnp.moveaxis(at, -1, 0)
    since = None if since is None else jnp.moveaxis(since, -1, 0)

    @jax.checkpoint
    def add(total: Array, source: tuple[Array, ...]) -> tuple[Array, None]:
        sent, weights, delay = source  # [batch], [neurons], [neurons]
        dt, after = arrived(at, sent[:, None], delay)
        if since is not None:
            after &= sent[:, None] + delay >= since
            dt = jnp.where(after, dt, 0)
        return total + weights * jnp.where(after, response(neuron, dt), 0), None

    sources = (
        jnp.moveaxis(times.reshape(-1, neurons * n), 1, 0),
        jnp.repeat(recurrent.kernel, n, axis=0),
        jnp.repeat(delay, n, axis=0),
    )
    total, _ = lax.scan(add, jnp.zeros_like(at), sources)
    return jnp.moveaxis(total, 0, -1)


def arrived(at: Array, sent: Array, delay: Time) -> tuple[Array, Array]:
    """Time from the arrival of an own spike to `at`, where that is later; and where.

    Not where it is the same time: spikes of a layer that happen together do not hear
    of each other.
    """
    both = (at < NO_TIME) & (sent < NO_TIME)
    arrival = jnp.where(both, sent, 0) + delay
    after = both & (at > arrival)
    return jnp.where(after, jnp.where(both, at, 0) - arrival, 0), after


def arrival_pull(
    neuron: Neuron, at: Array, sent: Array, delay: Array, release: Array | None
) -> Array:
    """How much earlier arrival of an own spike lifts the voltage at a later time.

    Per time and unit weight; 0 where it arrives later. What arrives before a release
    acts through the current there.
    """
    dt, after = arrived(at, sent, delay)
    pull = jnp.where(after, psp_slope(neuron, dt), 0)
    if release is None:
        return pull
    held = after & (release > sent + delay)
    wait = jnp.where(held, release - (sent + delay), 0)
    rest = jnp.where(held, at - release, 0)
    early = -synaptic_decay(neuron, wait) / neuron.tau_syn * psp(neuron, rest)
    return jnp.where(held, early, pull)


def threshold_residual(
    neuron: Neuron,
    kernel: Array,
    inputs: Spikes,
    start: State | None,
    times: Array,
    recurrent: Recurrent | None = None,
    previous: Array | None = None,
) -> Array:
    r"""Voltage over threshold at the neurons' own spikes, were each not to spike there.

    It is 0 by definition. What matters are its derivatives by all but the times: those
    of the voltage at a spike while all spikes stay where they are. After a refractory
    period, which forgets the voltage, that starts from the release
    :math:`t_r = t_{s-1} + t_\mathrm{ref}`:

    .. math::
        V(t) = v_\mathrm{leak}
            + (v_\mathrm{reset} - v_\mathrm{leak}) e^{-(t - t_r)/\tau_m}
            + I(t_r) k(t - t_r) + \sum_{t_r < t_j \le t} w_j k(t - t_j).

    Args:
      neuron: parameters.
      kernel: weights, ``[inputs.size, neurons]``.
      inputs: spikes, ``[batch, slots]``.
      start: state at the beginning; at rest if None.
      times: the layer's spikes, ``[batch, neurons, n]``.
      recurrent: connections of the layer with itself, if any.
      previous: spikes before those, of the same shape, -inf for none; an argument of
        its own for a derivative of its own. Used with a refractory period only.
    """
    if neuron.refractory:
        return _gap_after_release(
            neuron, kernel, inputs, start, times, recurrent, previous
        )
    gap = free_voltage(neuron, kernel, inputs, start, times)
    if recurrent is not None:
        gap += feedback(psp, neuron, recurrent, times, times)
    if not jax.tree.leaves(neuron):
        return gap  # Short of a constant.
    each = neuron.over(-1)
    dt, after = elapsed(times[..., :, None], times[..., None, :])
    after &= jnp.tri(times.shape[-1], k=-1, dtype=bool)
    decay = jnp.where(after, jnp.exp(-dt / each.over(-1).tau_mem), 0)
    resets = (each.v_th - each.v_reset) * jnp.sum(decay, axis=-1)
    return gap - resets - each.v_th


def previous_spikes(times: Array) -> Array:
    """The own spike before each, ``-inf`` for none, ``[batch, neurons, n]``."""
    none = jnp.full_like(times[..., :1], -NO_TIME)
    return jnp.concatenate([none, times[..., :-1]], axis=-1)


def releases(neuron: Neuron, times: Array) -> Array | None:
    """End of the refractory period before each spike, ``-inf`` for none."""
    if not neuron.refractory:
        return None
    return previous_spikes(times) + neuron.over(-1).t_ref


def release_pull(*given: Any, times: Array) -> Array:
    """How much an earlier own spike before lifts the voltage at each, per time.

    Args:
      *given: as for `threshold_residual`, first without times and recurrent
        connections.
      times: the layer's spikes.
    """
    neuron, kernel, inputs, start, recurrent = given
    previous = previous_spikes(times)

    def gap(previous: Array) -> Array:
        return threshold_residual(
            neuron, kernel, inputs, start, times, recurrent, previous
        )

    one = jnp.where(previous > -NO_TIME, jnp.ones_like(times), 0)
    return -jax.jvp(gap, (previous,), (one,))[1]


def _gap_after_release(
    neuron: Neuron,
    kernel: Array,
    inputs: Spikes,
    start: State | None,
    times: Array,
    recurrent: Recurrent | None,
    previous: Array | None,
) -> Array:
    """`threshold_residual` from the end of the last refractory period."""
    each = neuron.over(-1)
    previous = previous_spikes(times) if previous is None else previous
    again = (previous > -NO_TIME) & (times < NO_TIME)
    release = jnp.where(again, previous + each.t_ref, 0)
    at = jnp.where(again, times, 0)
    i = current(neuron, kernel, inputs, start, release)
    v = respond(lambda dt: psp(neuron, dt), kernel, inputs, at, release)
    first = free_voltage(neuron, kernel, inputs, start, times)
    if recurrent is not None:
        i += feedback(synaptic_decay, neuron, recurrent, times, release)
        v += feedback(psp, neuron, recurrent, times, at, release)
        first += feedback(psp, neuron, recurrent, times, times)
    dt = at - release
    v += i * psp(each, dt)
    v += each.v_leak + (each.v_reset - each.v_leak) * jnp.exp(-dt / each.tau_mem)
    return jnp.where(again, v, first) - each.v_th


def state_after(
    neuron: Neuron,
    kernel: Array,
    inputs: Spikes,
    start: State | None,
    times: Array,
    until: Time,
) -> State:
    """State of a layer at the end of its window, differentiable in all arguments.

    Args:
      neuron: parameters.
      kernel: weights, ``[inputs.size, neurons]``.
      inputs: spikes, ``[batch, slots]``; those at or after `until` do not count.
      start: state at the beginning; at rest if None.
      times: the layer's spike times since then, ``[batch, neurons, n]``.
      until: end of the window; at ``inf`` the neurons have come to rest.
    """
    batch, neurons, _ = times.shape
    start = at_rest(neuron, batch, neurons, times.dtype) if start is None else start
    end = jnp.maximum(jnp.asarray(until, times.dtype), start.time)

    def remains(tau: Parameter, since: Array) -> Array:
        before = since < _like(end, since)
        dt = jnp.where(before, _like(end, since) - jnp.where(before, since, 0), 0)
        return jnp.where(before, jnp.exp(-dt / tau), 0)

    if neuron.uniform:
        places = Places.of(inputs)
        arrived = places.time < end[:, None]
        dt = jnp.where(arrived, end[:, None] - jnp.where(arrived, places.time, 0), 0)
        size = kernel.shape[0]
        to_i = places.per_source(remains(neuron.tau_syn, places.time), size)
        to_v = places.per_source(jnp.where(arrived, psp(neuron, dt), 0), size)
        dt = jnp.maximum(end - start.time, 0)[:, None]
        i = to_i @ kernel + start.i * jnp.exp(-dt / neuron.tau_syn)
        v = to_v @ kernel + (start.v - neuron.v_leak) * jnp.exp(-dt / neuron.tau_mem)
        v += neuron.v_leak + start.i * psp(neuron, dt)
    else:
        at = jnp.broadcast_to(end[:, None, None], (batch, neurons, 1))
        before = inputs.window(-NO_TIME, end[:, None])
        i = current(neuron, kernel, before, start, at)[..., 0]
        v = free_voltage(neuron, kernel, before, start, at)[..., 0]
    resets = jnp.sum(remains(neuron.over(-1).tau_mem, times), axis=-1)
    v -= (neuron.v_th - neuron.v_reset) * resets
    spikes = jnp.sum(times < NO_TIME, axis=-1, dtype=jnp.int32)
    return State(v, i, end, start.count + spikes)


def explain(
    neuron: Neuron,
    kernel: Array,
    inputs: Spikes,
    start: State | None,
    times: Array,
    recurrent: Recurrent | None = None,
) -> Record:
    """Completes spike times that were observed elsewhere to a record.

    A spike can be explained if its neuron's voltage, by the model, was rising when it
    met the threshold, and its refractory period was over. Others get an infinite slope,
    which takes them out of the gradient; see `unexplained`.

    Args:
      neuron: parameters.
      kernel: weights that the device really had, ``[inputs.size, neurons]``.
      inputs: spikes, ``[batch, slots]``.
      start: state at the beginning; at rest if None.
      times: observed spike times, ``[batch, neurons, max_spikes]``, ``inf`` for none.
      recurrent: connections of the layer with itself, with the device's weights.
    """
    start = start_of_run(neuron, start, times.shape[0], times.shape[1], times.dtype)
    i = current(neuron, kernel, inputs, start, times)
    if recurrent is not None:
        i += feedback(synaptic_decay, neuron, recurrent, times, times)
    each = neuron.over(-1)
    spiked = times < NO_TIME
    explained = spiked & (i > each.v_th - each.v_leak)
    if neuron.refractory:
        explained &= times >= previous_spikes(times) + each.t_ref
    slope = jnp.where(explained, slope_at_threshold(each, i), jnp.inf)
    return Record(times, slope)


def unexplained(record: Record) -> Array:
    """How many spikes of each neuron the model cannot explain, ``[batch, neurons]``."""
    without = (record.times < NO_TIME) & (record.slope == jnp.inf)
    return jnp.sum(without, axis=-1, dtype=jnp.int32)


class Mismatch(NamedTuple):
    r"""How the first spikes of a device differ from the model; NaN where there is none.

    Attributes:
      time: observed minus expected time in seconds, ``[batch, neurons]``; expected is
        the spike of the model on the same inputs with the same weights.
      identity: by how much the delay identity fails, ``[batch, neurons]``. Inputs later
        by :math:`d` make a spike later by :math:`d`, so that the derivatives of its
        time by those of its inputs add up to 1. For a spike that was observed where the
        model has the voltage :math:`V`, they add up to
        :math:`1 + (v_\mathrm{th} - V) / (\tau_m \dot V)`.
    """

    time: Array
    identity: Array


def mismatch(
    neuron: Neuron,
    kernel: Array,
    inputs: Spikes,
    start: State | None,
    expected: Array,
    record: Record,
    recurrent: Recurrent | None = None,
) -> Mismatch:
    """Compares observed spikes with those of the model.

    Args:
      neuron: parameters.
      kernel: weights that the device really had, ``[inputs.size, neurons]``.
      inputs: spikes, ``[batch, slots]``.
      start: state at the beginning; at rest if None.
      expected: spike times of the model, ``[batch, neurons, max_spikes]``.
      record: what `explain` made of the observed ones.
      recurrent: connections of the layer with itself, with the device's weights.
    """
    batch, neurons, _ = expected.shape
    start = start_of_run(neuron, start, batch, neurons, expected.dtype)
    first, other = record.times[..., 0], expected[..., 0]
    both = (first < NO_TIME) & (other < NO_TIME)
    time = jnp.where(both, first, 0) - jnp.where(both, other, 0)
    v = free_voltage(neuron, kernel, inputs, start, record.times)
    if recurrent is not None:
        v += feedback(psp, neuron, recurrent, record.times, record.times)
    slope = record.slope[..., 0]
    explained = (first < NO_TIME) & (slope < NO_TIME)
    missing = jnp.where(explained, neuron.v_th - v[..., 0], 0)
    failure = missing / (neuron.tau_mem * jnp.where(explained, slope, 1))
    return Mismatch(
        jnp.where(both, time, jnp.nan), jnp.where(explained, failure, jnp.nan)
    )


def _like(per_sample: Array, other: Array) -> Array:
    """Gives a ``[batch]`` array the number of axes of another."""
    return per_sample.reshape(per_sample.shape + (1,) * (other.ndim - 1))
