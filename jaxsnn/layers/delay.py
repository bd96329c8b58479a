"""Delays of spikes on their way from one layer to the next."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxsnn.dynamics import Parameter, Time
from jaxsnn.layers.parameters import (
    Value,
    check_delay,
    check_inputs,
    check_until,
    label,
    positive,
)
from jaxsnn.spikes import NO_TIME, Spikes


class Delay(nn.Module):
    r"""Delays the spikes of each source by a time of its own.

    .. math:: t_j \mapsto t_j + d_j

    Between two layers these are delays of axons: each source has one, the same to all
    of its targets. To delay the inputs of a neuron and to delay its spikes is the same
    (if its leak alone does not make it fire), so that they are delays of dendrites of
    the layer before as well. Delays of each pair are `LIF.delay`; those cost one run of
    the simulation for each neuron, these next to nothing.

    Gradients with respect to delays and input times are exact. With ``mutable=
    ["events"]`` the layer returns in that collection how many spikes of each sample are
    still `under_way` at the end of the window. They are lost: a run with delays is one
    window, from rest.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> from flax import linen as nn
      >>> from jaxsnn import Spikes
      >>> from jaxsnn.layers import LIF, Delay, Network
      >>> inputs = Spikes.from_times(jnp.array([[1e-3], [2e-3]]))
      >>> Delay((4e-3, 0.0)).apply({}, inputs).index
      Array([1, 0], dtype=int32)
      >>> learned = Delay(nn.initializers.constant(1e-3), name="axons")
      >>> network = Network([LIF(8, name="hidden"), learned, LIF(3, name="output")])
      >>> params = network.init(jax.random.key(0), inputs)["params"]
      >>> params["axons"]["log_delay"].shape
      (8,)

    Attributes:
      delay: times in seconds, 0 or more: a number; an array, one for each source; or
        an initializer: then there is one for each source, and they are learned, as
        ``log_delay``, or, in a range and on a grid, as `Bounded`.
      param_dtype: dtype of delays that are an array or learned.
    """

    delay: Value
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        """Checks the delay before any work."""
        super().__post_init__()
        check_delay("Delay.delay", self.delay)

    @nn.compact
    def __call__(self, inputs: Spikes, until: Time = NO_TIME) -> Spikes:
        """Delays spikes.

        Args:
          inputs: spikes, ``[*batch, slots]``.
          until: end of the window in seconds. Spikes that would arrive then or later
            do not arrive.

        Returns:
          The spikes as they arrive, of the same shape.

        Raises:
          TypeError: inputs that are no `Spikes`.
          ValueError: delays of another number of sources, or a state to continue from.
        """
        self.check_inputs(inputs)
        check_until(until)
        delays = jnp.broadcast_to(self.delays(inputs.size), (inputs.size,))
        delayed = inputs.delayed(delays)
        # It also stops gradients where there is no spike, such as NaN from inf.
        arrived = delayed.window(-NO_TIME, until)
        if self.is_mutable_collection("events") and not self.is_initializing():
            sent = jnp.sum(inputs.time < until, axis=-1, dtype=jnp.int32)
            number = sent - jnp.sum(arrived.time < NO_TIME, axis=-1, dtype=jnp.int32)
            self.put_variable("events", "under_way", number)
        self.sow("intermediates", "spikes", arrived)
        return arrived

    def delays(self, size: int) -> Parameter:
        """Delays of that many sources in seconds: a number, or an array that fits."""
        return positive(self, "delay", self.delay, (size,))

    def check_inputs(self, inputs: Spikes) -> None:
        """Raises if the inputs are no spikes, or a run is to be continued."""
        check_inputs(self, inputs)
        if self.has_variable("events", "under_way"):
            raise ValueError(
                f"{label(self)} starts every run from rest, since spikes under way"
                " would be lost; leave out the collection 'events'."
            )
