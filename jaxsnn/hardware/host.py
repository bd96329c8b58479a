"""Devices behind a host callback: a chip, a foreign simulator."""

import abc
import dataclasses
import functools
import pickle
import queue
import threading
import time as clock
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import io_callback

from jaxsnn.backend import Observation, Population
from jaxsnn.dynamics import Time
from jaxsnn.hardware.errors import DeviceError, DeviceTimeout, LinkError, remember
from jaxsnn.hardware.limits import Limits, quantize, saturation
from jaxsnn.spikes import NO_INDEX, NO_TIME, Spikes


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
        """Lets go of the device."""
        if self._worker is not None:
            self._do(self.disconnect, self.timeout)
            self._compiled = None

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
        seed = jax.random.randint(key, (), 0, jnp.iinfo(jnp.int32).max)
        weights, kernels, cut = zip(
            *[self._weights([p.kernel for p in q.projections]) for q in populations],
            strict=True,
        )
        batch, dtype = inputs.time.shape[0], inputs.time.dtype
        trains = [(batch, p.size, p.max_spikes) for p in populations]
        counts = jax.ShapeDtypeStruct((len(trains), batch), jnp.int32)
        shapes = (
            [jax.ShapeDtypeStruct(shape, dtype) for shape in trains],
            {"lost": counts, "extra": counts},
            jax.ShapeDtypeStruct((batch,), jnp.int32),
            jax.ShapeDtypeStruct((batch,), dtype),
        )
        neurons = [p.neuron for p in populations]
        delays = [[p.delay for p in q.projections] for q in populations]
        call = functools.partial(self._call, populations, inputs.size)
        given = neurons, delays, weights, inputs.time, inputs.index, until, seed
        times, counted, retried, seconds = io_callback(
            call, shapes, *lax.stop_gradient(given)
        )
        observations = []
        for k, (own, fraction) in enumerate(zip(kernels, cut, strict=True)):
            counters = {name: value[k] for name, value in counted.items()}
            if fraction is not None:
                counters["saturated"] = jnp.broadcast_to(fraction, batch)
            if k == 0:
                counters |= {"retried": retried, "run_seconds": seconds}
            observations.append(Observation(times[k], own, counters=counters))
        return observations

    def _weights(self, kernels: Sequence[Array]) -> tuple[Any, Any, Array | None]:
        """What a device gets, what it has then, and the fraction cut to size."""
        kernels = lax.stop_gradient(tuple(kernels))
        w_max = self.limits.w_max
        if w_max is None:
            return kernels, kernels, None
        steps = [quantize(kernel, self.scale, w_max) for kernel in kernels]
        cut = [
            saturation(kernel, scale, w_max)
            for kernel, (_, scale) in zip(kernels, steps, strict=True)
        ]
        integers = tuple(w.astype(jnp.int32) for w, _ in steps)
        there = tuple(w / scale for w, scale in steps)
        return integers, there, jnp.mean(jnp.stack(cut))

    # On the host.

    def _call(
        self, populations, sources, neurons, delays, weights, time, index, until, seed
    ):
        """One run; every error leaves as a `DeviceError`, which is remembered."""
        number, self._runs = self._runs, self._runs + 1
        name = self.limits.name
        try:
            network = self._describe(populations, neurons, delays)
            end = float(until) * self.time_scale
            at = np.asarray(time, np.float64) * self.time_scale
            inputs = Events(at, np.asarray(index))
            weights = jax.tree.map(np.asarray, weights)
            began = clock.perf_counter()
            self._prepare(network, sources, end)
            observed, retried = self._try(inputs, weights, int(seed))
            seconds = clock.perf_counter() - began
            dtype = np.asarray(time).dtype
            times, counted = self._read(network, observed, end, len(at), dtype)
            repeated = np.zeros(len(at), np.int32)
            repeated[:1] = retried
            return times, counted, repeated, np.full(len(at), seconds, dtype)
        except TimeoutError as error:
            self._worker = self._compiled = None  # It may never return.
            found: DeviceError = DeviceTimeout(str(error), device=name, run=number)
        except _BadObservation as error:
            found = DeviceError(str(error), device=name, run=number, layer=error.layer)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            found = DeviceError(text, device=name, run=number)
            found.__cause__ = error
        raise remember(found)

    def _describe(self, populations, neurons, delays) -> tuple[HostPopulation, ...]:
        """The network in NumPy, in the device's seconds."""
        found = []
        for p, neuron, waits in zip(populations, neurons, delays, strict=True):
            values = {}
            for field in dataclasses.fields(neuron):
                value = np.asarray(getattr(neuron, field.name), np.float64)
                unit = self.time_scale if field.name in _TIMES else 1.0
                values[field.name] = np.broadcast_to(value * unit, (p.size,))
            projections = tuple(
                HostProjection(
                    q.source,
                    q.kernel.shape,
                    np.asarray(wait, np.float64) * self.time_scale,
                )
                for q, wait in zip(p.projections, waits, strict=True)
            )
            found.append(
                HostPopulation(p.name, p.size, values, p.max_spikes, projections)
            )
        return tuple(found)

    def _prepare(self, network, sources: int, end: float) -> None:
        wanted = pickle.dumps((network, sources, end))
        if wanted != self._compiled:
            self._do(lambda: self.compile(network, sources, end), self.compile_timeout)
            self._compiled = wanted

    def _try(self, inputs, weights, seed) -> tuple[Sequence[Observed], int]:
        for attempt in range(self.retries + 1):
            try:
                run = functools.partial(self.run, inputs, weights, seed)
                return self._do(run, self.timeout), attempt
            except LinkError as error:
                last = error
        raise ConnectionError(f"{last} (tried {self.retries + 1} times)") from last

    def _do(self, function: Callable[[], Any], timeout: float | None) -> Any:
        if self._worker is None:
            self._worker = _Worker(self.limits.name)
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


_TIMES = ("tau_mem", "tau_syn", "t_ref")


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
    if not ((time[real] >= 0) & (time[real] <= end)).all():
        bad = time[real][~((time[real] >= 0) & (time[real] <= end))][0]
        raise _BadObservation(
            f"returned a spike at {bad} s, outside of the window from 0 to {end} s.",
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
    return times.reshape(batch, size, limit), lost, extra


class _Worker:
    """One thread that does everything with a device, and can be given up on."""

    def __init__(self, name: str):
        self._tasks: queue.SimpleQueue = queue.SimpleQueue()
        # A daemon: a device that never answers must not keep the process alive.
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def do(self, function: Callable[[], Any], timeout: float | None) -> Any:
        """Calls a function in the thread; TimeoutError if it takes too long."""
        answer: queue.SimpleQueue = queue.SimpleQueue()
        self._tasks.put((function, answer))
        try:
            result, error = answer.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError(f"no answer within {timeout:g} s") from None
        if error is not None:
            raise error
        return result

    def _work(self) -> None:
        while True:
            function, answer = self._tasks.get()
            try:
                answer.put((function(), None))
            except BaseException as error:
                answer.put((None, error))
