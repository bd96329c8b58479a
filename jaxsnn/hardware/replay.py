"""Stored events as a backend."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax.numpy as jnp
from jax import Array

from jaxsnn.backend import Observation, Population
from jaxsnn.dynamics import Time
from jaxsnn.spikes import Spikes


@dataclasses.dataclass(frozen=True, eq=False)
class Replay:
    """Reports spikes that were recorded before, whatever the weights are now.

    The gradient is then that of the recorded run: what a training step would have done
    with it, reproducible without the device.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> from jaxsnn.coding import encode_latency
      >>> from jaxsnn.layers import LIF
      >>> inputs = encode_latency(jnp.array([[0.2, 0.7]]), t_late=10e-3)
      >>> recorded = jnp.array([[[4e-3], [jnp.inf]]])
      >>> layer = LIF(2, backend=Replay((recorded,)))
      >>> layer.apply(layer.init(jax.random.key(0), inputs), inputs).first()
      Array([[0.004,   inf]], dtype=float32)

    Attributes:
      times: for each layer the spike times of its neurons in seconds, ``inf`` for none,
        ``[batch, neurons, max_spikes]``.
    """

    times: tuple[Array, ...]
    samples: ClassVar[bool] = False

    def check(self, populations: Sequence[Population], until: Time) -> None:
        """Any network can be replayed."""

    def __call__(
        self,
        populations: Sequence[Population],
        inputs: Spikes,
        until: Time,
        key: Array | None,
    ) -> list[Observation]:
        """Returns the recorded spikes; see `jaxsnn.backend.Backend`."""
        del until, key
        if len(self.times) != len(populations):
            raise ValueError(
                f"Replay holds {len(self.times)} layers, the network has"
                f" {len(populations)}."
            )
        observations = []
        for times, population in zip(self.times, populations, strict=True):
            times = jnp.asarray(times)
            expected = (inputs.time.shape[0], population.size, population.max_spikes)
            if times.shape != expected:
                raise ValueError(
                    f"Replay holds spikes of shape {times.shape} for layer"
                    f" '{population.name}', expected {expected}: [batch, neurons,"
                    " max_spikes]."
                )
            kernels = tuple(p.kernel for p in population.projections)
            observations.append(Observation(jnp.sort(times, -1), kernels))
        return observations
