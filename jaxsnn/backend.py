"""The seam between a layer and whatever finds its spikes.

Two roles, each a function that is handed in where it is used: a `GradientMethod` gives
a record of spikes its gradient, and a `Backend` runs a network somewhere and reports
the spikes it observed. Neither knows the other.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from jax import Array

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


class Population(NamedTuple):
    """One layer as a device sees it.

    Attributes:
      name: of the layer, for messages.
      neuron: parameters of its neurons.
      kernel: weights from the population before, ``[size before, neurons]``.
      max_spikes: spikes to observe per neuron.
    """

    name: str | None
    neuron: Neuron
    kernel: Array
    max_spikes: int


class Observation(NamedTuple):
    """What a device reports of one layer.

    Attributes:
      times: spike times of each neuron in seconds, ascending, then ``inf``,
        ``[batch, neurons, max_spikes]``.
      kernel: weights that the device really had, in the unit of the parameters.
      counters: more to report, by name, each ``[batch]``: integers are added up by the
        training loop, floats averaged.
    """

    times: Array
    kernel: Array
    counters: Mapping[str, Array] = {}


class Backend(Protocol):
    """Runs a feed-forward network on a batch, in one call."""

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
