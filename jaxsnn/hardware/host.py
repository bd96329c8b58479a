"""Devices behind a host callback: a chip, a foreign simulator."""

import abc
import dataclasses
import functools
import pickle
import queue
import threading
import time as clock
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import io_callback

from jaxsnn.backend import Observation, Population
from jaxsnn.dynamics import Time
from jaxsnn.hardware.errors import DeviceError, DeviceTimeout, LinkError, remember
from jaxsnn.hardware.limits import Limits, quantize, saturation
from jaxsnn.spikes import NO_INDEX, NO_TIME, Spikes, _traced


@dataclasses.dataclass(frozen=True, eq=False)
class Events:
    """Events of a batch, in NumPy.

    Attributes:
      time: in seconds on the device, ``inf`` in empty slots, ``[batch, slots]``.
      index: which source or neuron, -1 in empty slots.
    """

    time: np.ndarray
    index: np.ndarray


class HostProjection(NamedTuple):
    """As `jaxsnn.backend.Projection`, in NumPy, without weights.

    Attributes:
      source: 0 for the inputs, k for the k-th population.
      shape: ``(source size, neurons)``.
      delay: in seconds on the device, of a shape that can be broadcast to that.
    """

    source: int
    shape: tuple[int, int]
    delay: np.ndarray


class HostPopulation(NamedTuple):
    """As `jaxsnn.backend.Population`, in NumPy.

    Attributes:
      name: of the layer.
      size: number of neurons.
      neuron: parameters by name, each ``[size]``; times in seconds on the device.
      max_spikes: spikes per neuron that are of interest.
      projections: what acts on it.
    """

    name: str
    size: int
    neuron: Mapping[str, np.ndarray]
    max_spikes: int
    projections: tuple[HostProjection, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Observed:
    """What a device saw of one population.

    Attributes:
      time: of its spikes, in seconds on the device, ``inf`` in empty slots,
        ``[batch, slots]``, in any order.
      index: which neuron, -1 in empty slots.
      lost: spikes that it knows to have lost, in all or of each sample, ``[batch]``.
    """

    time: np.ndarray
    index: np.ndarray
    lost: Any = 0

    @classmethod
    def from_list(
        cls, batch: int, sample: np.ndarray, time: np.ndarray, index: np.ndarray
    ) -> Self:
        """From spikes in any order, ``[n]`` each: of which sample, when, of whom."""
        order = np.argsort(sample, kind="stable")
        sample = sample[order]
        place = np.arange(len(sample)) - np.searchsorted(sample, sample)
        slots = int(place.max(initial=-1)) + 1
        times = np.full((batch, slots), NO_TIME)
        neurons = np.full((batch, slots), NO_INDEX)
        times[sample, place] = time[order]
        neurons[sample, place] = index[order]
        return cls(times, neurons)


@dataclasses.dataclass(eq=False, kw_only=True)
class HostBackend(abc.ABC):
    """A device that the host drives, in NumPy: the base class of those.

    A device says what it can do, `limits`, and has three methods: `compile`, `run` and
    `disconnect`. All of them are called by one thread of their own, one at a time. A
    batch is one run, whatever the depth of the network: hidden spikes stay on the
    device. Inside of them JAX must not be used: that hangs.

    The callback is an effect to the compiler: it happens once per run, is never merged
    with another, and does not happen in `init`. Under `jax.vmap` there is one for each
    element: give the layers the whole batch instead. What the device returns is checked
    on the host and brought into the order of time. Nothing on a device keeps a neuron
    from firing more than `max_spikes` times: the earliest are read, the others counted.

    Whatever goes wrong becomes a `DeviceError`, which `typed_errors` brings to the
    caller; the next run prepares the device again. A device that does not answer within
    its time is given up on, with its thread, and does not keep the process alive.

    Each layer reports in its `events` how many spikes a device lost (`lost`) and how
    many were not read (`extra`), and with integer weights the fraction that was cut
    (`saturated`); the first layer also how many runs were repeated (`retried`) and the
    seconds of each run on the host's clock (`run_seconds`).

    Attributes:
      time_scale: seconds on the device per second of the model.
      scale: integers per unit of weight, where weights are integers; None fits the
        largest weight of each projection to the largest integer.
      seed: of runs that bring no key of their own.
      timeout: seconds that a run may take on the host's clock; None for any. The first
        run of a network may take `compile_timeout` more.
      compile_timeout: seconds to prepare a network, with a calibration.
      retries: how often a run is tried again after a `LinkError`.
    """

    time_scale: float = 1.0
    scale: float | None = None
    seed: int = 0
    timeout: float | None = 60.0
    compile_timeout: float | None = 600.0
    retries: int = 2

    limits: ClassVar[Limits]
    # Whether all devices of the class have one thread of the process: what a library
    # with a state of its own needs. It cannot be given up on, only waited for.
    one_thread: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Checks the attributes."""
        for name in ("time_scale", "scale", "timeout", "compile_timeout"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(
                    f"{type(self).__name__}.{name} is {value!r}, expected above 0."
                )
        if self.retries < 0:
            raise ValueError(
                f"{type(self).__name__}.retries is {self.retries}, expected 0 or more."
            )
        self._worker: _Worker | None = None
        self._compiled: Any = None
        self._runs = 0
        self._one_run = threading.Lock()  # XLA may make several callbacks at once.

    # What a device is.

    @abc.abstractmethod
    def compile(
        self, network: Sequence[HostPopulation], inputs: int, until: float
    ) -> None:
        """Prepares a network; called before its first run, and when it changes.

        Args:
          network: the populations, which may act on each other.
          inputs: number of sources.
          until: end of the window in seconds on the device.
        """

    @abc.abstractmethod
    def run(
        self,
        inputs: Events,
        weights: Sequence[Sequence[np.ndarray]],
        seed: int,
    ) -> Sequence[Observed]:
        """Runs the network on a batch.

        Args:
          inputs: in ascending order of time.
          weights: for each population, of each projection, ``[source size, neurons]``;
            integers if `limits.w_max` is set.
          seed: of the run's randomness, if it is simulated.

        Returns:
          What was observed of each population, in any order of events.

        Raises:
          LinkError: a fault that may pass.
        """

    def disconnect(self) -> None:  # noqa: B027
        """Lets go of the device; a run after that prepares everything again."""

    def close(self) -> None:
        """Lets go of the device, after the run that is under way."""
        with self._one_run:
            worker, self._worker, self._compiled = self._worker, None, None
            if worker is not None:
                worker.do(self.disconnect, self.timeout)
                if not self.one_thread:
                    worker.stop()

    # What the layers see: `jaxsnn.backend.Backend`.

    @property
    def samples(self) -> bool:
        """Whether it can report voltages of neurons without a threshold."""
        return self.limits.samples

    def check(self, populations: Sequence[Population], until: Time) -> None:
        """Raises for a network that the device cannot run; see `Limits.check`."""
        self.limits.check(populations, until, self.time_scale)

    def __call__(
        self,
        populations: Sequence[Population],
        inputs: Spikes,
        until: Time,
        key: Array | None,
    ) -> list[Observation]:
        """Runs the network; see `jaxsnn.backend.Backend`."""
        self.check(populations, until)
        key = jax.random.key(self.seed) if key is None else key
        seed = jax.random.randint(key, (), 0, jnp.iinfo(jnp.int32).max, jnp.int32)
        weights, kernels, cut = zip(
            *[self._weights([p.kernel for p in q.projections]) for q in populations],
            strict=True,
        )
        batch, dtype = inputs.time.shape[0], inputs.time.dtype
        layout = _layout(populations)
        nothing = [jnp.zeros((batch, p.size, p.max_spikes), dtype) for p in layout]
        counts = jnp.zeros((len(layout), batch), jnp.int32)
        shapes = jax.eval_shape(
            lambda: (
                _to_bits(nothing),
                {"lost": counts, "extra": counts},
                jnp.zeros(batch, jnp.int32),
                jnp.zeros(batch, jnp.float32),
            )
        )
        call = functools.partial(self._call, layout, inputs.size)
        values = _values(populations)
        given = values, weights, inputs.time, inputs.index, until, seed
        bits, counted, retried, seconds = io_callback(
            call, shapes, *_to_bits(lax.stop_gradient(given))
        )
        times = _from_bits(bits, lax.bitcast_convert_type)
        observations = []
        for k, (own, fraction) in enumerate(zip(kernels, cut, strict=True)):
            counters = {name: value[k] for name, value in counted.items()}
            if fraction is not None:
                counters["saturated"] = jnp.broadcast_to(fraction, batch)
            if k == 0:
                counters |= {"retried": retried, "run_seconds": seconds}
            observations.append(Observation(times[k], own, counters=counters))
        return observations

    def _weights(self, kernels: Sequence[Array]) -> tuple[Any, Any, Any]:
        """What a device gets, what it has then, and the fraction cut to size."""
        kernels = lax.stop_gradient(tuple(kernels))
        w_max = self.limits.w_max
        if w_max is None:
            return kernels, kernels, None
        steps = [quantize(kernel, self.scale, w_max) for kernel in kernels]
        cut = [
            saturation(kernel, scale, w_max) * kernel.size
            for kernel, (_, scale) in zip(kernels, steps, strict=True)
        ]
        integers = tuple(w.astype(jnp.int32) for w, _ in steps)
        there = tuple(w / scale for w, scale in steps)
        return integers, there, sum(cut) / sum(kernel.size for kernel in kernels)

    # On the host.

    def _call(self, layout, sources, *given):
        """One run; every error leaves as a `DeviceError`, which is remembered."""
        given = _from_bits(jax.tree.map(np.asarray, given), _view)
        values, weights, time, index, until, seed = given
        with self._one_run:
            number, self._runs = self._runs, self._runs + 1
            try:
                network = _describe(layout, values, self.time_scale)
                end = float(until) * self.time_scale
                inputs = self._inputs(time, index, float(until))
                began = clock.perf_counter()
                observed, retried = self._try(
                    network, sources, end, inputs, weights, int(seed)
                )
                seconds = clock.perf_counter() - began
                batch = len(inputs.time)
                times, counted = self._read(network, observed, end, batch, time.dtype)
                repeated = np.zeros(batch, np.int32)
                repeated[:1] = retried
                took = np.full(batch, seconds, np.float32)
                return _to_bits(times, _view), counted, repeated, took
            except Exception as error:
                self._compiled = None  # In what state the device is, nobody knows.
                raise remember(self._typed(error, number)) from error

    def _typed(self, error: Exception, number: int) -> DeviceError:
        where: dict[str, Any] = {"device": self.limits.name, "run": number}
        if isinstance(error, _NoAnswer):
            self._worker = None  # It may never return.
        if isinstance(error, TimeoutError):
            return DeviceTimeout(str(error), **where)
        if isinstance(error, _BadObservation):
            return DeviceError(str(error), layer=error.layer, **where)
        return DeviceError(f"{type(error).__name__}: {error}", **where)

    def _inputs(self, time, index, until: float) -> Events:
        """Inputs in the device's seconds; those at or after the end do not count."""
        at = np.asarray(time, np.float64)
        if not (at >= 0).all():
            raise ValueError(f"an input at {at.min():g} s; a run begins at 0.")
        before = at < until
        at = np.where(before, at, NO_TIME) * self.time_scale
        return Events(at, np.where(before, index, NO_INDEX))

    def _try(self, network, sources, end, inputs, weights, seed):
        """What was observed, and how many attempts at it failed."""
        wanted = pickle.dumps((network, sources, end))
        for attempt in range(self.retries + 1):
            try:
                if wanted != self._compiled:
                    compile = functools.partial(self.compile, network, sources, end)
                    self._do(compile, self.compile_timeout)
                    self._compiled = wanted
                run = functools.partial(self.run, inputs, weights, seed)
                return self._do(run, self.timeout), attempt
            except LinkError as error:
                last = error
        raise LinkError(f"{last} (tried {self.retries + 1} times)") from last

    def _do(self, function: Callable[[], Any], timeout: float | None) -> Any:
        if self._worker is None:
            shared = type(self) if self.one_thread else None
            self._worker = _Worker.of(self.limits.name, shared)
            if shared is None:
                weakref.finalize(self, self._worker.stop)
        return self._worker.do(function, timeout)

    def _read(self, network, observed, end, batch, dtype):
        """Spike trains and counts of each population, checked."""
        if len(observed) != len(network):
            raise _BadObservation(
                f"returned {len(observed)} layers, the network has {len(network)}."
            )
        found = [
            _trains(p, o, end, batch) for p, o in zip(network, observed, strict=True)
        ]
        times = [(t / self.time_scale).astype(dtype) for t, _, _ in found]
        counted = {
            "lost": np.stack([lost for _, lost, _ in found]).astype(np.int32),
            "extra": np.stack([extra for _, _, extra in found]).astype(np.int32),
        }
        return times, counted


# Whether JAX has 64 bits may differ between threads, and callbacks have threads of
# their own: float64 passes them as pairs of uint32, of which there are no others.


def _to_bits(tree: Any, cast: Callable = lax.bitcast_convert_type) -> Any:
    """Makes float64 to ``uint32[..., 2]``."""

    def convert(x: Any) -> Any:
        x = x if isinstance(x, np.ndarray) else jnp.asarray(x)
        return cast(x, np.uint32) if x.dtype == np.float64 else x

    return jax.tree.map(convert, tree)


def _from_bits(tree: Any, cast: Callable) -> Any:
    return jax.tree.map(
        lambda x: cast(x, np.float64) if x.dtype == np.uint32 else x, tree
    )


def _view(x: np.ndarray, dtype: Any) -> np.ndarray:
    """`lax.bitcast_convert_type` in NumPy."""
    if dtype == np.uint32:
        return np.ascontiguousarray(x)[..., None].view(dtype)
    return np.ascontiguousarray(x).view(dtype)[..., 0]


def known(
    populations: Sequence[Population], time_scale: float
) -> tuple[HostPopulation, ...] | None:
    """A network as a device sees it; None while a compiler does not know its values."""
    values = _values(populations)
    if _traced(*jax.tree.leaves(values)):
        return None
    return _describe(_layout(populations), values, time_scale)


def _layout(populations: Sequence[Population]) -> tuple[HostPopulation, ...]:
    """What is known of a network when it is compiled: all but values."""
    return tuple(
        HostPopulation(
            p.name,
            p.size,
            {},
            p.max_spikes,
            tuple(
                HostProjection(q.source, (q.kernel.shape[0], p.size), np.zeros(()))
                for q in p.projections
            ),
        )
        for p in populations
    )


def _values(populations: Sequence[Population]) -> Any:
    """The rest of it, but for the weights."""
    return [(p.neuron, [q.delay for q in p.projections]) for p in populations]


def _describe(layout, values, time_scale: float) -> tuple[HostPopulation, ...]:
    """Both, in NumPy and the device's seconds."""
    found = []
    for population, (neuron, delays) in zip(layout, values, strict=True):
        parameters = {}
        for field in dataclasses.fields(neuron):
            value = np.asarray(getattr(neuron, field.name), np.float64)
            unit = time_scale if field.name in _TIMES else 1.0
            parameters[field.name] = np.broadcast_to(value * unit, population.size)
        projections = tuple(
            p._replace(delay=np.asarray(delay, np.float64) * time_scale)
            for p, delay in zip(population.projections, delays, strict=True)
        )
        found.append(population._replace(neuron=parameters, projections=projections))
    return tuple(found)


_TIMES = ("tau_mem", "tau_syn", "t_ref")


class _NoAnswer(TimeoutError):
    """A device takes too long."""


class _BadObservation(Exception):
    """A device returned what cannot be."""

    def __init__(self, message: str, layer: str | None = None):
        super().__init__(message)
        self.layer = layer


def _trains(population: HostPopulation, observed: Observed, end: float, batch: int):
    """Spike times ``[batch, neurons, max_spikes]``, and how many were lost, and extra.

    The earliest spikes of each neuron are kept.
    """
    name, size, limit = population.name, population.size, population.max_spikes
    time, index = np.asarray(observed.time, np.float64), np.asarray(observed.index)
    if time.shape != index.shape or time.ndim != 2 or len(time) != batch:
        raise _BadObservation(
            f"returned times of shape {time.shape} and indices of shape {index.shape},"
            f" expected [{batch}, slots] both.",
            name,
        )
    real = index >= 0
    if not ((index[real] < size).all() and (index >= NO_INDEX).all()):
        raise _BadObservation(
            f"returned neuron {index.max()}, the layer has {size}.", name
        )
    if (time[~real] != NO_TIME).any():
        raise _BadObservation(
            f"returned a spike at {time[~real].min():g} s of no neuron.", name
        )
    inside = (time[real] >= 0) & (time[real] <= end) & (time[real] < NO_TIME)
    if not inside.all():
        raise _BadObservation(
            f"returned a spike at {time[real][~inside][0]:g} s, outside of the window"
            f" from 0 to {end:g} s.",
            name,
        )
    sample = np.nonzero(real)[0]
    time, neuron = time[real], index[real]
    order = np.lexsort((time, neuron, sample))
    time, train = time[order], (sample * size + neuron)[order]
    first = np.searchsorted(train, train)  # Where the train of each spike begins.
    rank = np.arange(len(train)) - first
    read = rank < limit
    times = np.full((batch * size, limit), NO_TIME)
    times[train[read], rank[read]] = time[read]
    extra = np.bincount(train[~read] // size, minlength=batch)
    lost = np.asarray(observed.lost)
    if not lost.ndim:  # Of which samples is not known; the sum is what counts.
        lost = np.bincount([0], [lost], minlength=batch)
    if lost.shape != (batch,):
        raise _BadObservation(
            f"returned {lost.shape} numbers of lost spikes, expected one or {batch}.",
            name,
        )
    return times.reshape(batch, size, limit), lost, extra


class _Worker:
    """One thread that does everything with a device, and can be given up on."""

    _shared: ClassVar[dict[type, Self]] = {}
    _lock = threading.Lock()

    def __init__(self, name: str):
        self._tasks: queue.SimpleQueue = queue.SimpleQueue()
        # A daemon: a device that never answers must not keep the process alive.
        threading.Thread(target=self._work, name=name, daemon=True).start()

    @classmethod
    def of(cls, name: str, kind: type | None) -> Self:
        """A new one, or the one of all devices of a class."""
        with cls._lock:
            if kind is None:
                return cls(name)
            return cls._shared.get(kind) or cls._shared.setdefault(kind, cls(name))

    def do(self, function: Callable[[], Any], timeout: float | None) -> Any:
        """Calls a function in the thread; `_NoAnswer` if it takes too long."""
        answer: queue.SimpleQueue = queue.SimpleQueue()
        given_up = threading.Event()
        self._tasks.put((function, answer, given_up))
        try:
            result, error = answer.get(timeout=timeout)
        except queue.Empty:
            given_up.set()
            raise _NoAnswer(f"no answer within {timeout:g} s.") from None
        if error is not None:
            raise error
        return result

    def stop(self) -> None:
        """Ends the thread when it has done what it was given."""
        self._tasks.put(None)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            function, answer, given_up = task
            if given_up.is_set():
                continue
            try:
                answer.put((function(), None))
            except BaseException as error:
                answer.put((None, error))
            del task, function, answer  # Or they keep the device until the next task.
