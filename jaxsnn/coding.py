"""Numbers to spike times, and back; rasters and recordings to spike times.

An encoder whose result has room for a limited number of spikes returns the spikes and
the number of those that found no room, for each sample: nothing is lost silently.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxsnn.spikes import NO_INDEX, NO_TIME, Spikes, _traced, concatenate


def encode_latency(
    values: Array,
    *,
    t_early: float = 0.0,
    t_late: float,
    bias: float | None = None,
    copies: int = 1,
    cutoff: float | None = None,
) -> Spikes:
    r"""Encodes each value as the latency of one spike.

    .. math:: t = t_\mathrm{early} + (t_\mathrm{late} - t_\mathrm{early})\, x

    Differentiable in the values. Source :math:`c F + f` is copy :math:`c` of feature
    :math:`f`; a bias is one feature more, whose spike never moves.

    Example::

      >>> import jax.numpy as jnp
      >>> x = jnp.array([[0.5, 0.25]])
      >>> encode_latency(x, t_late=10e-3, bias=0.0).index
      Array([[2, 1, 0]], dtype=int32)

    Args:
      values: numbers, meant for [0, 1], ``[*batch, features]``.
      t_early: spike time in seconds of the value 0.
      t_late: spike time in seconds of the value 1.
      bias: spike time in seconds of an additional source; none if left out.
      copies: sources per value, for devices whose single weights are weak.
      cutoff: values from here on have no spike, such as 1 for the background of images
        whose darkness is encoded. By default all have.

    Raises:
      ValueError: NaN among the values, or `copies` below 1.
    """
    values = jnp.asarray(values)
    if copies < 1:
        raise ValueError(f"copies is {copies}, expected at least 1.")
    if not _traced(values) and np.isnan(np.asarray(values)).any():
        raise ValueError("values contains NaN, which has no latency.")
    times = t_early + (t_late - t_early) * values
    if cutoff is not None:
        times = jnp.where(values < cutoff, times, NO_TIME)
    if bias is not None:
        pad = [(0, 0)] * (times.ndim - 1) + [(0, 1)]
        times = jnp.pad(times, pad, constant_values=bias)
    times = jnp.concatenate([times] * copies, axis=-1)
    return Spikes.from_times(times[..., None])


def encode_population(
    values: Array,
    *,
    neurons: int,
    t_early: float = 0.0,
    t_late: float,
    width: float | None = None,
    cutoff: float = 0.1,
) -> Spikes:
    r"""Encodes each value by a population of sources with Gaussian tuning curves.

    .. math:: r_j = e^{-(x - c_j)^2 / 2 \sigma^2}, \qquad
        t_j = t_\mathrm{late} - (t_\mathrm{late} - t_\mathrm{early})\,
        \frac{r_j - \theta}{1 - \theta}

    The centres :math:`c_j` divide [0, 1] evenly, both ends included. A source at its
    centre spikes at `t_early`, one at the cutoff :math:`\theta` at `t_late`, and a
    weaker one not at all. Differentiable in the values, as far as there are spikes.
    Source :math:`f N + j` is source :math:`j` of feature :math:`f`.

    Bohte et al., `Error-backpropagation in temporally encoded networks of spiking
    neurons <https://doi.org/10.1016/S0925-2312(01)00658-0>`_, Neurocomputing 48 (2002).

    Example::

      >>> import jax.numpy as jnp
      >>> spikes = encode_population(jnp.array([0.5]), neurons=3, t_late=10e-3)
      >>> print(jnp.round(spikes.first() * 1e3, 2))  # ms
      [9.61 0.   9.61]

    Args:
      values: numbers, meant for [0, 1], ``[*batch, features]``.
      neurons: sources per value, 2 or more.
      t_early: time in seconds of the strongest response.
      t_late: time in seconds of the weakest response that makes a spike.
      width: standard deviation of the tuning curves; by default half the distance of
        their centres.
      cutoff: weakest response that makes a spike, in [0, 1).

    Raises:
      ValueError: NaN among the values, or an argument out of its range.
    """
    values = _checked("values", values)
    if neurons < 2:
        raise ValueError(f"neurons is {neurons}, expected at least 2.")
    if not 0 <= cutoff < 1:
        raise ValueError(f"cutoff is {cutoff}, expected a number in [0, 1).")
    width = 0.5 / (neurons - 1) if width is None else width
    if width <= 0:
        raise ValueError(f"width is {width}, expected a positive number.")
    centres = jnp.linspace(0, 1, neurons, dtype=values.dtype)
    response = jnp.exp(-0.5 * ((values[..., None] - centres) / width) ** 2)
    times = t_late - (t_late - t_early) * (response - cutoff) / (1 - cutoff)
    times = jnp.where(response >= cutoff, times, NO_TIME)
    return Spikes.from_times(times.reshape(*values.shape[:-1], -1)[..., None])


def encode_poisson(
    key: Array, rates: Array, *, duration: float, max_spikes: int
) -> tuple[Spikes, Array]:
    r"""Encodes each rate as a Poisson process, exactly.

    The intervals between spikes are drawn from :math:`p(\Delta) = r e^{-r \Delta}`, in
    continuous time: no time step bounds the rate. The earliest `max_spikes` spikes of a
    source are kept. How many more there would have been is drawn from the distribution
    that it has, so that the count of the dropped ones is right as well.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> spikes, dropped = encode_poisson(
      ...     jax.random.key(0), jnp.array([0.0, 50.0]), duration=1.0, max_spikes=100
      ... )
      >>> bool(spikes.count()[0] == 0), int(dropped)
      (True, 0)

    Args:
      key: randomness.
      rates: in hertz, 0 or more, ``[*batch, sources]``.
      duration: of the process in seconds, which begins at 0.
      max_spikes: room for the spikes of each source.

    Returns:
      The spikes, and the number of spikes without room, int32, ``[*batch]``.

    Raises:
      ValueError: NaN or negative rates, or an argument out of its range.
    """
    rates = _checked_rates(rates, duration, max_spikes)
    key, more = jax.random.split(key)
    shape = (*rates.shape, max_spikes)
    intervals = jax.random.exponential(key, shape, rates.dtype)
    times = jnp.cumsum(intervals, axis=-1) / _positive(rates)[..., None]
    times = jnp.where((rates > 0)[..., None] & (times < duration), times, NO_TIME)
    last = times[..., -1]  # If there is one: the process has no memory of it.
    left = jnp.where(last < NO_TIME, duration - jnp.where(last < NO_TIME, last, 0), 0)
    dropped = jax.random.poisson(more, jax.lax.stop_gradient(rates * left))
    return Spikes.from_times(times), jnp.sum(dropped, axis=-1, dtype=jnp.int32)


def encode_regular(
    rates: Array, *, duration: float, max_spikes: int, key: Array | None = None
) -> tuple[Spikes, Array]:
    r"""Encodes each rate as a train of spikes at equal intervals.

    .. math:: t_k = (k + \varphi) / r, \qquad k = 0, 1, \dots

    as long as :math:`t_k` is before the end. Differentiable in the rates.

    Example::

      >>> import jax.numpy as jnp
      >>> rates = jnp.array([40.0])
      >>> spikes, dropped = encode_regular(rates, duration=0.1, max_spikes=3)
      >>> spikes.time, int(dropped)
      (Array([0.   , 0.025, 0.05 ], dtype=float32), 1)

    Args:
      rates: in hertz, 0 or more, ``[*batch, sources]``.
      duration: of the trains in seconds, which begin at 0.
      max_spikes: room for the spikes of each source. The earliest are kept.
      key: randomness of the phases :math:`\varphi`, one per source, uniform in [0, 1);
        if left out, they are 0.

    Returns:
      The spikes, and the number of spikes without room, int32, ``[*batch]``.

    Raises:
      ValueError: NaN or negative rates, or an argument out of its range.
    """
    rates = _checked_rates(rates, duration, max_spikes)
    phase = jnp.zeros_like(rates)
    if key is not None:
        phase = jax.random.uniform(key, rates.shape, rates.dtype)
    periods = duration * rates - phase
    # A whole number of periods must not count as one more by a rounding error.
    rounding = 4 * jnp.finfo(rates.dtype).eps * jnp.abs(periods)
    count = jnp.where(rates > 0, jnp.ceil(periods - rounding), 0).astype(jnp.int32)
    number = jnp.arange(max_spikes)
    times = (number + phase[..., None]) / _positive(rates)[..., None]
    times = jnp.where(number < count[..., None], times, NO_TIME)
    dropped = jnp.sum(jnp.maximum(count - max_spikes, 0), axis=-1, dtype=jnp.int32)
    return Spikes.from_times(times), dropped


def encode_raster(
    raster: ArrayLike, *, dt: float, slots: int | None = None
) -> tuple[Spikes, Array]:
    """Encodes a raster of spike counts; step `k` happens at time ``k * dt``.

    A count of two becomes two simultaneous spikes.

    Example::

      >>> import jax.numpy as jnp
      >>> raster = jnp.array([[0, 1], [0, 0], [2, 0]])  # [steps, sources]
      >>> spikes, dropped = encode_raster(raster, dt=1e-3)
      >>> spikes.time, spikes.index
      (Array([0.   , 0.002, 0.002], dtype=float32), Array([1, 0, 0], dtype=int32))

    Args:
      raster: whole numbers, 0 or more, of any dtype, ``[*batch, steps, sources]``.
      dt: length of a step in seconds.
      slots: room for the spikes of a sample. The earliest are kept. By default as many
        as the fullest sample needs; under `jax.jit` that is not known and has to be
        said.

    Returns:
      The spikes, ``[*batch, slots]``, and the number of spikes without room, int32,
      ``[*batch]``.

    Raises:
      ValueError: counts that are negative or not whole, or an argument out of range.
    """
    if np.ndim(raster) < 2 or np.shape(raster)[-1] == 0:
        raise ValueError(
            f"raster has shape {np.shape(raster)}, expected [*batch, steps, sources]."
        )
    if dt <= 0:
        raise ValueError(f"dt is {dt}, expected a positive time in seconds.")
    if slots is not None and slots < 1:
        raise ValueError(f"slots is {slots}, expected at least 1.")
    *batch, steps, sources = np.shape(raster)
    if not _traced(raster):
        concrete = np.asarray(raster)
        whole = np.isfinite(concrete) & (concrete == np.round(concrete))
        if not (whole & (concrete >= 0)).all():
            raise ValueError("raster has entries that are not whole numbers of spikes.")
        if slots is None:
            slots = max(1, int(np.sum(concrete, axis=(-2, -1)).max(initial=0)))
    if slots is None:
        raise ValueError("under jax.jit, encode_raster needs to be told the slots.")
    # Bins in the order of events: by time, ties by source.
    counts = jnp.asarray(raster).astype(jnp.int32)
    counts = counts.reshape(math.prod(batch), steps * sources)
    total = jnp.cumsum(counts, axis=-1)
    slot = jnp.arange(slots)
    find = jax.vmap(lambda total: jnp.searchsorted(total, slot, side="right"))
    bins = find(total)
    filled = bins < steps * sources
    time = jnp.where(filled, bins // sources * jnp.asarray(dt, float), NO_TIME)
    index = jnp.where(filled, bins % sources, NO_INDEX).astype(jnp.int32)
    dropped = jnp.maximum(jnp.sum(counts, axis=-1) - slots, 0)
    spikes = Spikes._known_good(time, index, sources).reshape_batch(*batch)
    return spikes, dropped.reshape(batch)


def encode_recordings(
    recordings: Sequence,
    *,
    size: int | tuple[int, int, int],
    slots: int | None = None,
    unit: float = 1e-6,
) -> tuple[Spikes, Array]:
    """Makes one batch of recorded spikes, padded to a common number of slots.

    A recording is a pair of times in seconds and source indices, in any order; or a
    structured array with the fields `t`, `x` and possibly `y` and `p`, as `tonic`
    returns them. There, source :math:`(p H + y) W + x` of a sensor of size
    :math:`(W, H, P)` is a pixel and polarity; fields along which the sensor has size 1
    are not read. Runs in NumPy, before any `jax.jit`.

    Example::

      >>> import numpy as np
      >>> events = np.array([(1000, 2), (3000, 0)], dtype=[("t", int), ("x", int)])
      >>> spikes, dropped = encode_recordings([events, events[:1]], size=(3, 1, 1))
      >>> spikes.index, spikes.size
      (Array([[ 2,  0],
             [ 2, -1]], dtype=int32), 3)

    Args:
      recordings: one of each sample.
      size: number of sources, or size of the sensor ``(W, H, P)``.
      slots: room for the spikes of a sample. The earliest are kept. By default as many
        as the longest recording needs.
      unit: of the field `t`, in seconds; microseconds by default.

    Returns:
      The spikes, ``[samples, slots]``, and the number of spikes without room, int32,
      ``[samples]``.

    Raises:
      ValueError: a recording without the fields, with times that are not finite, or
        with sources that the sensor does not have; its number is named.
    """
    if not len(recordings):
        raise ValueError("recordings is empty, expected one recording at least.")
    sensor = (int(size), 1, 1) if isinstance(size, int | np.integer) else tuple(size)
    if len(sensor) != 3 or min(sensor) < 1:
        raise ValueError(
            f"size is {size!r}, expected a number of sources or (W, H, P)."
        )
    trains = [_events(n, one, sensor, unit) for n, one in enumerate(recordings)]
    longest = max(1, *(len(time) for time, _ in trains))
    shape = (len(trains), longest)
    time, index = np.full(shape, NO_TIME), np.full(shape, NO_INDEX)
    for n, (at, source) in enumerate(trains):
        time[n, : len(at)], index[n, : len(at)] = at, source
    sources = math.prod(sensor)
    spikes = Spikes.from_events(jnp.asarray(time), jnp.asarray(index), sources)
    return spikes.keep(longest if slots is None else slots)


def decode_recordings(
    spikes: Spikes, *, size: tuple[int, int, int] | None = None, unit: float = 1e-6
) -> list[np.ndarray]:
    """Makes structured arrays of events, as `tonic` has them, one of each sample.

    The inverse of `encode_recordings`: the fields are `t`, int64, in units of `unit`,
    rounded, and for a sensor `x`, `y` and `p`, else the source as `x`. Events are in
    the order of the spikes. Runs in NumPy.

    Spikes in float32 tell microseconds apart up to 16 s; for longer recordings use
    ``jax.enable_x64(True)``.

    Example::

      >>> import jax.numpy as jnp
      >>> spikes = Spikes.from_times(jnp.array([[[3e-3], [jnp.inf], [1e-3]]]))
      >>> (events,) = decode_recordings(spikes)
      >>> events["t"].tolist(), events["x"].tolist()
      ([1000, 3000], [2, 0])

    Args:
      spikes: ``[*batch, slots]``; batch axes become one.
      size: of the sensor, ``(W, H, P)``.
      unit: of the field `t`, in seconds; microseconds by default.

    Raises:
      ValueError: a sensor of another number of sources; times that are as late as
        floats of that precision cannot tell units apart.
    """
    if size is not None and math.prod(size) != spikes.size:
        raise ValueError(
            f"size is {size}, a sensor of {math.prod(size)} sources, but the spikes are"
            f" of {spikes.size}."
        )
    names = ["x"] if size is None else ["x", "y", "p"]
    width, height, _ = (spikes.size, 1, 1) if size is None else size
    recordings = []
    flat = spikes.reshape_batch(-1)
    for time, source in zip(np.asarray(flat.time), np.asarray(flat.index), strict=True):
        there = source != NO_INDEX
        time, source = time[there], source[there]
        if time.size and np.spacing(np.abs(time).max()) > unit:
            raise ValueError(
                f"a spike is at {np.abs(time).max()} s, where {time.dtype} does not"
                f" tell times of {unit} s apart; use float64, or a longer unit."
            )
        kinds = [("t", np.int64), *((name, np.int32) for name in names)]
        events = np.empty(time.size, kinds)
        events["t"] = np.rint(time.astype(float) / unit)
        rest = source
        for name, length in zip(names, (width, height, spikes.size), strict=False):
            rest, events[name] = np.divmod(rest, length)
        recordings.append(events)
    return recordings


def repeat(
    spikes: Spikes, *, delays: Sequence[float] = (0.0,), copies: int = 1
) -> Spikes:
    """Repeats every spike at stated delays, and every source a number of times.

    Several spikes for one value, several sources for one: the cure where single spikes
    or single weights are weak. Differentiable in the times of the spikes. Source
    ``c * size + s`` is copy `c` of source `s`.

    Example::

      >>> import jax.numpy as jnp
      >>> value = encode_latency(jnp.array([0.5]), t_late=10e-3)
      >>> repeat(value, delays=(0.0, 2e-3)).time
      Array([0.005, 0.007], dtype=float32)

    Args:
      spikes: ``[*batch, slots]``.
      delays: in seconds; 0 for the spike itself, which is not kept otherwise.
      copies: sources for each source.

    Returns:
      Spikes of ``copies * spikes.size`` sources; none is lost.

    Raises:
      ValueError: no delay, or `copies` below 1.
    """
    if not len(delays) or not np.isfinite(np.asarray(delays, float)).all():
        raise ValueError(f"delays is {delays!r}, expected one finite time or more.")
    if copies < 1:
        raise ValueError(f"copies is {copies}, expected at least 1.")
    shifts = jnp.asarray(delays, spikes.time.dtype)

    def spread(times: Array) -> Array:
        times = times[..., None] + shifts
        return times.reshape(*times.shape[:-2], -1)

    if spikes.by_source is not None:
        repeated = Spikes.from_times(spread(spikes.by_source))
    else:
        index = jnp.repeat(spikes.index, len(delays), axis=-1)
        repeated = Spikes.from_events(spread(spikes.time), index, spikes.size)
    return concatenate(*[repeated] * copies)


def perturb(
    spikes: Spikes, key: Array, *, jitter: float = 0.0, loss: float = 0.0
) -> Spikes:
    r"""Moves every spike by chance and leaves some out: against learning by heart.

    .. math:: t \mapsto \max(t + \sigma \xi, 0), \qquad \xi \sim \mathcal{N}(0, 1)

    Differentiable in the times of the spikes. Goeltz et al., `Fast and energy-efficient
    neuromorphic deep learning with first-spike times
    <https://doi.org/10.1038/s42256-021-00388-x>`_, Nat. Mach. Intell. 3 (2021), train
    with such noise on the inputs.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> spikes = encode_latency(jnp.full((1, 1000), 0.5), t_late=10e-3)
      >>> noisy = perturb(spikes, jax.random.key(1), jitter=1e-3, loss=0.1)
      >>> times = noisy.time[noisy.index >= 0] * 1e3
      >>> print(f"{len(times)} spikes at {times.mean():.2f} +- {times.std():.2f} ms")
      904 spikes at 4.94 +- 1.00 ms

    Args:
      spikes: ``[*batch, slots]``.
      key: randomness.
      jitter: standard deviation :math:`\sigma` in seconds.
      loss: probability that a spike is left out.

    Raises:
      ValueError: a negative `jitter`, or a `loss` that is no probability.
    """
    if not jitter >= 0:
        raise ValueError(f"jitter is {jitter}, expected a time in seconds, 0 or more.")
    if not 0 <= loss <= 1:
        raise ValueError(f"loss is {loss}, expected a probability, from 0 to 1.")

    def change(times: Array) -> Array:
        moving, leaving = jax.random.split(key)
        noise = jax.random.normal(moving, times.shape, times.dtype)
        lost = jax.random.bernoulli(leaving, loss, times.shape)
        return jnp.where(lost, NO_TIME, jnp.maximum(times + jitter * noise, 0))

    if spikes.by_source is not None:
        return Spikes.from_times(change(spikes.by_source))
    return Spikes.from_events(change(spikes.time), spikes.index, spikes.size)


def first_spike_times(spikes: Spikes) -> Array:
    """First spike time of each neuron, ``inf`` if it is silent, ``[*batch, size]``."""
    return spikes.first()


def spike_counts(spikes: Spikes) -> Array:
    """Number of spikes of each neuron, int32, ``[*batch, size]``."""
    return spikes.count()


def _checked(name: str, values: ArrayLike) -> Array:
    """The values as an array of floats; raises if there is NaN among known ones."""
    values = jnp.asarray(values)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        values = values.astype(float)
    if not _traced(values) and np.isnan(np.asarray(values)).any():
        raise ValueError(f"{name} contains NaN.")
    return values


def _checked_rates(rates: ArrayLike, duration: float, max_spikes: int) -> Array:
    rates = _checked("rates", rates)
    if not _traced(rates):
        known = np.asarray(rates)
        if not ((known >= 0) & np.isfinite(known)).all():
            raise ValueError(
                "rates contains negative numbers or inf, expected 0 Hz or more."
            )
    if not 0 < duration < NO_TIME:
        raise ValueError(f"duration is {duration}, expected a positive, finite time.")
    if max_spikes < 1:
        raise ValueError(f"max_spikes is {max_spikes}, expected at least 1.")
    return rates


def _positive(rates: Array) -> Array:
    """The rates, with something harmless to divide by where they are 0."""
    return jnp.where(rates > 0, rates, 1)


def _events(
    number: int, recording, sensor: tuple[int, int, int], unit: float
) -> tuple[np.ndarray, np.ndarray]:
    """Times in seconds and sources of one recording, checked."""
    label = f"recording {number}"
    names = getattr(getattr(recording, "dtype", None), "names", None)
    if names is None:
        if len(recording) != 2:
            raise ValueError(
                f"{label} is neither a pair (times, sources) nor a structured array."
            )
        time, x = (np.asarray(one) for one in recording)
        fields = {"x": x}
        sensor = (math.prod(sensor), 1, 1)
    else:
        used = [f for f, n in zip("xyp", sensor, strict=True) if n > 1 or f == "x"]
        missing = [name for name in ["t", *used] if name not in names]
        if missing:
            raise ValueError(
                f"{label} has the fields {', '.join(names)}, but not"
                f" {', '.join(missing)}, which a sensor of size {sensor} has."
            )
        time = np.asarray(recording["t"]) * unit
        fields = {name: np.asarray(recording[name]) for name in used}
    source, stride = np.zeros(np.shape(time), np.int64), 1
    for name, length in zip("xyp", sensor, strict=True):
        if name in fields:
            found = fields[name]
            if found.shape != time.shape or time.ndim != 1:
                raise ValueError(
                    f"{label} has times of shape {time.shape} and {name} of shape"
                    f" {found.shape}, expected both to be [spikes]."
                )
            if found.size and (found.min() < 0 or found.max() >= length):
                raise ValueError(
                    f"{label} has {name} from {found.min()} to {found.max()}, expected"
                    f" whole numbers in [0, {length})."
                )
            if found.size and (found != found.astype(np.int64)).any():
                raise ValueError(f"{label} has {name} that are not whole numbers.")
            source += stride * found.astype(np.int64)
        stride *= length
    if not np.isfinite(time).all():
        raise ValueError(f"{label} has times that are not finite.")
    return time, source
