"""`Spikes`: the one data type that flows between layers."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

# The one sentinel of an empty slot: time NO_TIME and index NO_INDEX, never one of them.
NO_TIME = float("inf")
NO_INDEX = -1


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, eq=False)
class Spikes:
    r"""Spike trains of `size` sources, as one list of events sorted by time.

    Slot :math:`k` holds the event that source ``index[k]`` spikes at ``time[k]``.
    Events are ordered by time, simultaneous ones by source index. Slots that hold no
    event come last; there, and only there, ``time`` is ``+inf`` and ``index`` is -1.

    The constructor checks shapes and dtypes always, and values (NaN, order, range of
    the indices) whenever they are known, that is, outside of `jax.jit`. Use
    `from_events` for unsorted events and `from_times` for times per source.

    Example::

      >>> import jax.numpy as jnp
      >>> from jaxsnn import Spikes
      >>> spikes = Spikes.from_events(
      ...     time=jnp.array([5e-3, 1e-3, 2e-3]), index=jnp.array([0, 2, 0]), size=3
      ... )
      >>> spikes.index
      Array([2, 0, 0], dtype=int32)
      >>> spikes.count()
      Array([2, 0, 1], dtype=int32)

    Attributes:
      time: when each event happens, in seconds, ascending, ``[*batch, slots]``.
      index: which source spikes, int32, ``[*batch, slots]``.
      size: number of sources. Static, so that a layer can infer its kernel's shape.
      by_source: the same events sorted by source, ``[*batch, size, n]``, padded with
        ``+inf``, if they are known that way; kept because adjoints and losses read
        events by source and need no sort then. Never needed from users.
    """

    time: Array
    index: Array
    size: int
    # Not an argument: a copy with other times must not keep it.
    by_source: Array | None = dataclasses.field(default=None, init=False)

    def __post_init__(self) -> None:
        """Checks what can be checked."""
        _check(self.time, self.index, self.size)
        if not _traced(self.time, self.index):
            _check_values(np.asarray(self.time), np.asarray(self.index), self.size)
        object.__setattr__(self, "time", jnp.asarray(self.time))
        object.__setattr__(self, "index", jnp.asarray(self.index, jnp.int32))

    @classmethod
    def _known_good(cls, time, index, size: int, by_source=None) -> Self:
        """Builds without checks: values may be tracers, or not arrays at all."""
        self = object.__new__(cls)
        fields = {"time": time, "index": index, "size": size, "by_source": by_source}
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        return self

    def tree_flatten_with_keys(self) -> tuple[tuple[Any, ...], int]:
        """Lists the leaves for JAX; `size` is static."""
        names = ("time", "index", "by_source")
        children = tuple((jax.tree_util.GetAttrKey(n), getattr(self, n)) for n in names)
        return children, self.size

    @classmethod
    def tree_unflatten(cls, size: int, children: Sequence[Any]) -> Self:
        """Rebuilds from the leaves, unchecked: JAX passes placeholders too."""
        time, index, by_source = children
        return cls._known_good(time, index, size, by_source)

    @classmethod
    def from_events(cls, time: Array, index: Array, size: int) -> Self:
        """Sorts events; ``time`` of ``+inf`` or ``index`` of ``-1`` marks empty slots.

        Args:
          time: times in seconds, ``[*batch, slots]``, in any order.
          index: source of each event, ``[*batch, slots]``.
          size: number of sources.

        Raises:
          ValueError: wrong shapes, NaN, or an index that is not in ``[-1, size)``.
        """
        time, index = jnp.asarray(time), jnp.asarray(index)
        _check(time, index, size)
        if not _traced(time, index):
            _check_entries(np.asarray(time), np.asarray(index), size)
        index = index.astype(jnp.int32)
        time = jnp.where(index == NO_INDEX, NO_TIME, time)
        index = jnp.where(time == NO_TIME, NO_INDEX, index)
        # Sorting by index first lets the stable sort by time break ties by index.
        index, time = lax.sort((index, time), num_keys=1, is_stable=True)
        order = argsort_times(time)
        return cls._known_good(
            jnp.take_along_axis(time, order, -1),
            jnp.take_along_axis(index, order, -1),
            size,
        )

    @classmethod
    def from_times(cls, times: Array) -> Self:
        """Merges the spike trains of all sources; no spike is lost.

        Args:
          times: in seconds, ``+inf`` for none, ``[*batch, size, n]`` for up to ``n``
            spikes per source, in any order.

        Raises:
          ValueError: fewer than two axes, or NaN.
        """
        times = jnp.asarray(times)
        _check_float("times", times)
        if times.ndim < 2:
            raise ValueError(
                f"times has shape {times.shape}, expected [*batch, size, n]; write"
                " times[..., None] for one spike per source."
            )
        if not _traced(times) and not (np.asarray(times) > -np.inf).all():
            raise ValueError("times contains NaN or -inf; mark missing ones with +inf.")
        *batch, size, n = times.shape
        if size == 0:
            raise ValueError("times has no source: its shape is " + str(times.shape))
        flat = times.reshape(*batch, size * n)
        order = argsort_times(flat)
        time = jnp.take_along_axis(flat, order, -1)
        index = jnp.where(time == NO_TIME, NO_INDEX, order // max(n, 1))
        return cls._known_good(time, index.astype(jnp.int32), size, times)

    def times(self, n: int) -> Array:
        """Returns the first `n` spike times of each source, ``[*batch, size, n]``.

        Later ones are left out on purpose; `count` says how many there are. Missing
        ones are ``+inf``. The inverse of `from_times`.
        """
        if self.by_source is None:
            times = _times_by_source(self.time, self.index, self.size, n)
        else:
            times = self.by_source
            if times.shape[-1] > 1:
                times = jnp.sort(times, axis=-1)[..., :n]
        short = n - times.shape[-1]
        pad = [(0, 0)] * (times.ndim - 1) + [(0, short)]
        return jnp.pad(times, pad, constant_values=NO_TIME)

    def first(self) -> Array:
        """First spike time of each source, ``+inf`` for none, ``[*batch, size]``."""
        return self.times(1)[..., 0]

    def count(self) -> Array:
        """Counts the spikes of each source, int32, ``[*batch, size]``."""
        if self.by_source is not None:
            return jnp.sum(self.by_source < NO_TIME, axis=-1, dtype=jnp.int32)
        sources = jnp.arange(self.size, dtype=jnp.int32)
        same = self.index[..., :, None] == sources
        return jnp.sum(same, axis=-2, dtype=jnp.int32)

    def keep(self, slots: int) -> tuple[Self, Array]:
        """Keeps the earliest `slots` spikes; returns them and how many were dropped.

        Returns:
          The spikes, ``[*batch, slots]`` or fewer slots if there are fewer, and the
          number of dropped ones, int32, ``[*batch]``.
        """
        if slots < 1:
            raise ValueError(f"slots is {slots}, expected at least 1.")
        total = self.time.shape[-1]
        if slots >= total:
            return self, jnp.zeros(self.time.shape[:-1], jnp.int32)
        dropped = jnp.sum(self.time[..., slots:] < NO_TIME, axis=-1, dtype=jnp.int32)
        time, index = self.time[..., :slots], self.index[..., :slots]
        by_source = self.by_source
        if by_source is not None:
            last_time = time[..., -1, None, None]
            last_index = index[..., -1, None, None]
            sources = jnp.arange(self.size, dtype=jnp.int32)[:, None]
            same = by_source == last_time
            # Of a source's own simultaneous spikes, as many as found a slot.
            twin = same & (sources == last_index)
            last = (time == time[..., -1:]) & (index == index[..., -1:])
            room = jnp.sum(last, axis=-1, dtype=jnp.int32)[..., None, None]
            twin &= jnp.cumsum(twin, axis=-1) <= room
            kept = (by_source < last_time) | (same & (sources < last_index)) | twin
            by_source = jnp.where(kept, by_source, NO_TIME)
        return self._known_good(time, index, self.size, by_source), dropped

    def not_before(self, start: Array) -> tuple[Self, Array]:
        """Moves earlier spikes to `start`, ``[*batch]``; also counts them."""
        edge = start[..., None]
        late = jnp.sum(self.time < edge, axis=-1, dtype=jnp.int32)
        by_source = self.by_source
        if by_source is not None:
            by_source = _not_below(by_source, edge[..., None])
        time = _not_below(self.time, edge)
        return self._known_good(time, self.index, self.size, by_source), late

    def delayed(self, delay: Array) -> Self:
        """Delays the spikes of each source by a time of its own, and sorts again.

        Args:
          delay: in seconds, ``[*targets, size]``: of each source, to each target if
            targets get them at different times.

        Returns:
          The spikes as they arrive, ``[*targets, *batch, slots]``.
        """
        targets, batch = delay.shape[:-1], self.time.shape[:-1]
        if self.by_source is not None:
            ones = (1,) * len(batch)
            each = delay.reshape(*targets, *ones, self.size, 1)
            return self.from_times(self.by_source + each)
        index = jnp.broadcast_to(self.index, (*targets, *self.index.shape))
        time = self.time + delay[..., self.index]  # An empty slot, -1, stays at inf.
        return self.from_events(time, index, self.size)

    def reshape_batch(self, *batch: int) -> Self:
        """Gives the batch axes another shape; -1 alone makes them one axis."""
        slots = self.time.shape[-1]
        if batch == (-1,):  # Not to be inferred by division if there are no slots.
            batch = (math.prod(self.time.shape[:-1]),)
        time = self.time.reshape(*batch, slots)
        index = self.index.reshape(*batch, slots)
        by_source = self.by_source
        if by_source is not None:
            by_source = by_source.reshape(*batch, *by_source.shape[-2:])
        return self._known_good(time, index, self.size, by_source)

    def window(self, start: Array | float, stop: Array | float) -> Self:
        """Selects the spikes with ``start <= time < stop``; slots and times stay.

        Args:
          start: in seconds, for all, or of each sample, ``[*batch, 1]``.
          stop: the same.
        """
        inside = (self.time >= start) & (self.time < stop)
        # Spikes before the window leave a gap at the front, which a roll closes.
        shift = jnp.sum(self.time < start, axis=-1, keepdims=True, dtype=jnp.int32)
        slots = self.time.shape[-1]
        where = (jnp.arange(slots, dtype=jnp.int32) + shift) % max(slots, 1)
        time = jnp.where(inside, self.time, NO_TIME)
        index = jnp.where(inside, self.index, NO_INDEX)
        by_source = self.by_source
        if by_source is not None:
            first, last = (jnp.asarray(x)[..., None] for x in (start, stop))
            inside = (by_source >= first) & (by_source < last)
            by_source = jnp.where(inside, by_source, NO_TIME)
        return self._known_good(
            jnp.take_along_axis(time, where, -1),
            jnp.take_along_axis(index, where, -1),
            self.size,
            by_source,
        )


def concatenate(*populations: Spikes) -> Spikes:
    """Merges populations into one whose sources are numbered through.

    Source ``i`` of the second population becomes ``i + first.size``, and so on: a bias
    source, a skip connection.

    Example::

      >>> a = Spikes.from_times(jnp.array([[2e-3], [1e-3]]))
      >>> b = Spikes.from_times(jnp.array([[0.0]]))
      >>> concatenate(a, b).index
      Array([2, 1, 0], dtype=int32)
    """
    if not populations:
        raise ValueError("concatenate needs at least one population.")
    batch = populations[0].time.shape[:-1]
    for other in populations:
        if other.time.shape[:-1] != batch:
            raise ValueError(
                f"populations have batch shapes {batch} and {other.time.shape[:-1]}; "
                "they must be equal."
            )
    tables = [p.by_source for p in populations if p.by_source is not None]
    if len(tables) == len(populations):
        n = max(table.shape[-1] for table in tables)
        padded = [p.times(n) for p in populations]
        return Spikes.from_times(jnp.concatenate(padded, axis=-2))
    offsets = np.cumsum([0] + [p.size for p in populations])
    index = [
        jnp.where(p.index == NO_INDEX, NO_INDEX, p.index + int(offset))
        for p, offset in zip(populations, offsets[:-1], strict=True)
    ]
    time = [p.time for p in populations]
    return Spikes.from_events(
        jnp.concatenate(time, -1), jnp.concatenate(index, -1), int(offsets[-1])
    )


@jax.jit
def argsort_times(time: Array) -> Array:
    """Sorts exactly, ties by position; several times faster on CPU than `jnp.argsort`.

    A sort of single integers is much cheaper than a sort of pairs. So the time is
    rounded (monotonically) to the bits that the position leaves free in one integer,
    those integers are sorted, and the rare pairs that rounding made equal are put in
    order by exchanging neighbours. Should a few exchanges not do, pairs are sorted.

    Args:
      time: floats without NaN, ``[..., n]``.

    Returns:
      The permutation that sorts the last axis, int32.
    """
    time = lax.stop_gradient(time)
    n = time.shape[-1]
    if n < 2:
        return jnp.zeros(time.shape, jnp.int32)
    word, mantissa = (jnp.int64, 52) if time.dtype == jnp.float64 else (jnp.int32, 24)
    position_bits = (n - 1).bit_length()
    free = min(jnp.iinfo(word).bits - 1 - position_bits, mantissa)
    position = lax.broadcasted_iota(word, time.shape, time.ndim - 1)

    def sort_pairs(_: Array) -> Array:
        pair = (time, position.astype(jnp.int32))
        return lax.sort(pair, num_keys=1, is_stable=True)[1]

    if free < 8:
        return sort_pairs(time)

    finite = jnp.isfinite(time)
    low = jnp.min(time, axis=-1, keepdims=True, where=finite, initial=jnp.inf)
    high = jnp.max(time, axis=-1, keepdims=True, where=finite, initial=-jnp.inf)
    span = jnp.maximum(high - low, jnp.finfo(time.dtype).tiny)
    level = (time - low) / span * (2**free - 2)
    level = jnp.where(finite, level, jnp.where(time > 0, 2**free - 1, 0))
    key = (level.astype(word) << position_bits) | position
    order = (_sort_keys(key.reshape(-1, n).T) & (2**position_bits - 1)).astype(
        jnp.int32
    )
    values = jnp.take_along_axis(time.reshape(-1, n).T, order, 0)

    def unsorted(values: Array) -> Array:
        return jnp.any(values[1:] < values[:-1])

    def go_on(carry: tuple[Array, Array, Array]) -> Array:
        return (carry[0] < 4) & unsorted(carry[1])

    def exchange(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        count, values, order = carry
        return count + 1, *_exchange(*_exchange(values, order, 0), 1)

    _, values, order = lax.while_loop(go_on, exchange, (jnp.int32(0), values, order))
    order = order.T.reshape(time.shape)
    return lax.cond(unsorted(values), sort_pairs, lambda _: order, time)


def _sort_keys(key: Array) -> Array:
    """Sorts integers along the first axis.

    On a CPU a sort of one column after the other is slow for its branches. A network
    makes the same comparisons in all columns, with none, which vector units do at once.
    """
    n, columns = key.shape
    # Of an exported function the batch is not known.
    if (isinstance(columns, int) and columns < 16) or n > 4096:
        return jnp.sort(key, axis=0)

    def network(key: Array) -> Array:
        def stage(key: Array, pairs: tuple[Array, Array]) -> tuple[Array, None]:
            partner, is_low = pairs
            other = key[partner]
            low, high = jnp.minimum(key, other), jnp.maximum(key, other)
            return jnp.where(is_low[:, None], low, high), None

        partners, lows = _merge_exchange(n)
        pairs = jnp.asarray(partners), jnp.asarray(lows)
        return lax.scan(stage, key, pairs)[0]

    return lax.platform_dependent(
        key, cpu=network, default=functools.partial(jnp.sort, axis=0)
    )


@functools.lru_cache(maxsize=64)
def _merge_exchange(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Batcher's odd-even merge sort of `n` values, as stages of compared pairs.

    Returns:
      The partner of each position, itself if it has none, and whether the position
      keeps the smaller of the two, both ``[stages, n]``. Batcher, Sorting networks and
      their applications, AFIPS 1968.
    """
    i = np.arange(n)
    partners, lows = [], []
    run = 1
    while run < n:
        step = run
        while step >= 1:
            offset = step % run
            is_low = (i >= offset) & ((i - offset) // step % 2 == 0) & (i + step < n)
            is_low &= i // (2 * run) == (i + step) // (2 * run)
            partner = i.copy()
            partner[is_low], partner[i[is_low] + step] = i[is_low] + step, i[is_low]
            partners.append(partner)
            lows.append(is_low)
            step //= 2
        run *= 2
    return np.array(partners, np.int32), np.array(lows)


def _exchange(time: Array, order: Array, parity: int) -> tuple[Array, Array]:
    """Swaps the rows (parity, parity + 1), (parity + 2, ...) where out of order."""
    n = time.shape[0]
    position = np.arange(n)
    left = (position % 2 == parity) & (position + 1 < n)
    paired = left | ((position % 2 != parity) & (position >= 1 + parity))
    partner = np.where(paired, np.where(left, position + 1, position - 1), position)
    other_time, other_order = time[partner], order[partner]
    # Ties by position, so that an exchange never turns equal times around.
    later = (time > other_time) | ((time == other_time) & (order > other_order))
    earlier = (time < other_time) | ((time == other_time) & (order < other_order))
    swap = paired[:, None] & jnp.where(left[:, None], later, earlier)
    return jnp.where(swap, other_time, time), jnp.where(swap, other_order, order)


def _times_by_source(time: Array, index: Array, size: int, n: int) -> Array:
    """Scatters events to ``[*batch, size, n]``; leaves out what does not fit."""
    batch, slots = time.shape[:-1], time.shape[-1]
    if slots == 0:
        return jnp.full((*batch, size, n), NO_TIME, time.dtype)
    time, index = time.reshape(-1, slots), index.reshape(-1, slots)
    rows = jnp.arange(time.shape[0])[:, None]

    # The rank of an event among those of its source, from a stable sort by source.
    order = jnp.argsort(index, axis=-1, stable=True)
    sources = jnp.take_along_axis(index, order, -1)
    start = jax.vmap(jnp.searchsorted)(sources, sources)
    rank = jnp.arange(slots) - start
    valid = (sources != NO_INDEX) & (rank < n)
    row = jnp.where(valid, sources, size)
    table = jnp.full((time.shape[0], size, n), NO_TIME, time.dtype)
    table = table.at[rows, row, jnp.where(valid, rank, n)].set(
        jnp.take_along_axis(time, order, -1), mode="drop"
    )
    return table.reshape(*batch, size, n)


def _not_below(time: Array, edge: Array) -> Array:
    """The later of both; unlike `jnp.maximum`, ties keep the whole derivative."""
    return jnp.where(time < edge, edge, time)


def _traced(*arrays: Any) -> bool:
    return any(isinstance(a, jax.core.Tracer) for a in arrays)


def _check_float(name: str, array: Any) -> None:
    if array.dtype not in (jnp.float32, jnp.float64):
        raise ValueError(
            f"{name} has dtype {array.dtype}, expected float32 or float64."
        )


def _check(time: Any, index: Any, size: int) -> None:
    time, index = (a if _traced(a) else np.asarray(a) for a in (time, index))
    _check_float("time", time)
    if not np.issubdtype(index.dtype, np.integer):
        raise ValueError(f"index has dtype {index.dtype}, expected an integer.")
    if time.ndim < 1 or time.shape != index.shape:
        raise ValueError(
            f"time has shape {time.shape} and index {index.shape}, expected both to be"
            " [*batch, slots]."
        )
    if not isinstance(size, int) or size < 1:
        raise ValueError(
            f"size is {size!r}, expected the number of sources, 1 or more."
        )


def _check_entries(time: np.ndarray, index: np.ndarray, size: int) -> None:
    if np.isnan(time).any():
        raise ValueError("time contains NaN; mark empty slots with +inf.")
    if np.isneginf(time).any():
        raise ValueError("time contains -inf; mark empty slots with +inf.")
    if index.size and not (index.min() >= NO_INDEX and index.max() < size):
        raise ValueError(
            f"index runs from {index.min()} to {index.max()}, expected sources in"
            f" [0, {size}) and -1 in empty slots."
        )


def _check_values(time: np.ndarray, index: np.ndarray, size: int) -> None:
    _check_entries(time, index, size)
    if ((time == NO_TIME) != (index == NO_INDEX)).any():
        raise ValueError(
            "an empty slot has time +inf and index -1, but some slots have only one of"
            " them; Spikes.from_events repairs that."
        )
    # +inf equals +inf, so this also finds spikes behind an empty slot.
    later, earlier = time[..., 1:], time[..., :-1]
    if (later < earlier).any():
        raise ValueError("time is not ascending; use Spikes.from_events to sort.")
    if ((later == earlier) & (index[..., 1:] < index[..., :-1])).any():
        raise ValueError(
            "simultaneous events are not ordered by index; use Spikes.from_events."
        )
