"""The seam between a layer and whatever finds its spikes.

Two roles, each a function that is handed in where it is used: a `GradientMethod` gives
a record of spikes its gradient, and a `Backend` runs a network somewhere and reports
the spikes it observed. Neither knows the other.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from jax import Array, lax

from jaxsnn.dynamics import Neuron, Time
from jaxsnn.record import Record, Recurrent, State
from jaxsnn.spikes import Spikes


class GradientMethod(Protocol):
    """Returns ``record.times`` with their gradient attached."""

    def __call__(
        self,
        neuron: Neuron,
        kernel: Array,
        inputs: Spikes,
        start: State | None,
        record: Record,
        recurrent: Recurrent | None = None,
    ) -> Array:
        """See `jaxsnn.eventprop.eventprop`, the default."""
        ...


class Projection(NamedTuple):
    """All spikes of one population go to all neurons of another, or its own.

    Attributes:
      source: 0 for the inputs, k for the k-th population of the network.
      kernel: weights, ``[source size, neurons]``.
      delay: time in seconds that a spike takes: for all, of each source,
        ``[source size, 1]``, or of each synapse.
    """

    source: int
    kernel: Array
    delay: Time = 0.0


class Population(NamedTuple):
    """One layer as a device sees it.

    Attributes:
      name: of the layer, for messages.
      size: number of neurons.
      neuron: parameters of its neurons.
      max_spikes: spikes to observe per neuron; 0 for neurons without a threshold, whose
        voltages are to be sampled.
      projections: what acts on it.
    """

    name: str
    size: int
    neuron: Neuron
    max_spikes: int
    projections: tuple[Projection, ...]


class Samples(NamedTuple):
    """Voltages that a device measured, in the unit of the weights.

    Attributes:
      time: when, in seconds, ascending, ``[samples]``.
      voltage: ``[batch, neurons, samples]``.
    """

    time: Array
    voltage: Array


class Observation(NamedTuple):
    """What a device reports of one layer.

    Attributes:
      times: spike times of each neuron in seconds, ascending, then ``inf``,
        ``[batch, neurons, max_spikes]``.
      kernels: weights that the device really had, in the unit of the parameters, of
        each projection.
      samples: voltages of neurons without a threshold.
      counters: more to report, by name, each ``[batch]``: integers are added up by the
        training loop, floats averaged.
    """

    times: Array
    kernels: tuple[Array, ...]
    samples: Samples | None = None
    counters: Mapping[str, Array] = {}


class Backend(Protocol):
    """Runs a network on a batch, in one call."""

    @property
    def samples(self) -> bool:
        """Whether it can report voltages of neurons without a threshold."""
        ...

    def check(self, populations: Sequence[Population], until: Time) -> None:
        """Raises for a network that the device cannot run; called by `init`.

        Only shapes and constants can be checked: learned values may be tracers.
        """
        ...

    def __call__(
        self,
        populations: Sequence[Population],
        inputs: Spikes,
        until: Time,
        key: Array | None,
    ) -> Sequence[Observation]:
        """Runs the network.

        Args:
          populations: the layers, first to last.
          inputs: spikes of the sources, ``[batch, slots]``.
          until: end of the window in seconds.
          key: randomness of this run; None if the caller has none to give.

        Returns:
          One observation per layer. Never differentiated.
        """
        ...


def straight_through(own: Array, there: Array) -> Array:
    """The weights that a device had, with the gradient of the parameters."""
    return own + lax.stop_gradient(there - own)
