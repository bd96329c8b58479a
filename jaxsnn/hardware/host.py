"""Devices behind a host callback: a chip, a foreign simulator."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import io_callback

from jaxsnn.backend import Observation, Population
from jaxsnn.dynamics import Neuron, Time
from jaxsnn.spikes import Spikes


class HostDevice(Protocol):
    """A device as the host drives it, in NumPy. It must not call JAX: that hangs."""

    def run(
        self,
        neurons: Sequence[Neuron],
        kernels: Sequence[np.ndarray],
        max_spikes: Sequence[int],
        time: np.ndarray,
        index: np.ndarray,
        until: float,
        seed: int,
    ) -> Sequence[np.ndarray]:
        """Runs the whole network on the whole batch.

        Args:
          neurons: parameters of each layer.
          kernels: weights of each layer, ``[size before, neurons]``.
          max_spikes: spikes to report per neuron, for each layer.
          time: input spike times in seconds, ascending, then ``inf``,
            ``[batch, slots]``.
          index: their sources, -1 in empty slots.
          until: end of the window in seconds.
          seed: of the run's randomness, if it is simulated.

        Returns:
          For each layer the spike times of its neurons in seconds, in any order, then
          ``inf``, ``[batch, neurons, max_spikes]``.
        """
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class HostBackend:
    """Runs a network on a `HostDevice`: one callback per batch, whatever its depth.

    Under `jax.vmap` there is one per element: give the layers the whole batch instead.

    The callback is an effect to the compiler: it happens once per run, is never merged
    with another, and does not happen in `init`. What the device returns is checked on
    the host. Of spikes without a time between 0 and the end of the window, none is
    accepted.

    Attributes:
      device: what runs the network.
      seed: of runs that bring no key of their own.
    """

    device: HostDevice
    seed: int = 0

    def __call__(
        self,
        populations: Sequence[Population],
        inputs: Spikes,
        until: Time,
        key: Array | None,
    ) -> list[Observation]:
        """Runs the network; see `jaxsnn.backend.Backend`."""
        key = jax.random.key(self.seed) if key is None else key
        seed = jax.random.randint(key, (), 0, jnp.iinfo(jnp.int32).max)
        kernels = [lax.stop_gradient(p.kernel) for p in populations]
        batch = inputs.time.shape[0]
        shapes = [
            jax.ShapeDtypeStruct(
                (batch, p.kernel.shape[1], p.max_spikes), inputs.time.dtype
            )
            for p in populations
        ]
        arguments = (kernels, lax.stop_gradient(inputs.time), inputs.index, until, seed)

        def call(kernels, time, index, until, seed):
            times = self.device.run(
                [p.neuron for p in populations],
                [np.asarray(kernel) for kernel in kernels],
                [p.max_spikes for p in populations],
                np.asarray(time),
                np.asarray(index),
                float(until),
                int(seed),
            )
            return self._checked(times, shapes, populations, float(until))

        observed = io_callback(call, shapes, *arguments)
        return [
            Observation(times, kernel)
            for times, kernel in zip(observed, kernels, strict=True)
        ]

    def _checked(self, times, shapes, populations, until: float) -> list[np.ndarray]:
        name = type(self.device).__name__
        if len(times) != len(shapes):
            raise ValueError(
                f"{name} returned {len(times)} layers, the network has {len(shapes)}."
            )
        checked = []
        for array, expected, population in zip(times, shapes, populations, strict=True):
            array = np.sort(np.asarray(array, expected.dtype), axis=-1)
            if array.shape != expected.shape:
                raise ValueError(
                    f"{name} returned spikes of shape {array.shape} for layer"
                    f" '{population.name}', expected {expected.shape}."
                )
            spikes = array[array != np.inf]
            if not ((spikes >= 0) & (spikes <= until)).all():
                raise ValueError(
                    f"{name} returned spike times of layer '{population.name}' outside"
                    f" of [0, {until}], or NaN."
                )
            checked.append(array)
        return checked
