"""A network whose layers run together."""

from collections.abc import Sequence
from typing import Any, ClassVar

from flax import linen as nn

from jaxsnn.backend import Backend
from jaxsnn.dynamics import Time
from jaxsnn.layers.delay import Delay
from jaxsnn.layers.li import LI
from jaxsnn.layers.lif import LIF, device_key
from jaxsnn.layers.parameters import check_inputs, label
from jaxsnn.readout import Trace
from jaxsnn.spikes import NO_TIME, Spikes


class Network(nn.Module):
    """Spiking layers in a row, run by the simulation or, as one, by a device.

    On a device a network is one run per batch: the hidden spikes travel on the device
    and are read out afterwards. Then every layer computes its gradient from what was
    observed of it and of the layer before.

    The last layer may be an `LI`; the network then returns its `Trace`. Such a network
    runs one window from rest, and on no backend as a whole: what a device reports is
    spikes. Give the backend to the `LIF` layers one by one. The same holds for networks
    with a `Delay` between layers.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> from jaxsnn.coding import encode_latency
      >>> from jaxsnn.hardware import SimulatedChip
      >>> from jaxsnn.layers import LIF, Network
      >>> inputs = encode_latency(jnp.array([[0.2, 0.7]]), t_late=10e-3, bias=0.0)
      >>> network = Network([LIF(8, name="hidden"), LIF(3, name="output")])
      >>> variables = network.init(jax.random.key(0), inputs)
      >>> network.apply(variables, inputs).size
      3
      >>> on_chip = network.clone(backend=SimulatedChip())
      >>> on_chip.apply(variables, inputs).size
      3

    Attributes:
      layers: the layers, first to last.
      backend: what finds the spikes of all layers; by default each layer's own.
    """

    layers: Sequence[LIF | LI | Delay]
    backend: Backend | None = None
    # Layers keep the names they were given; unnamed ones are layers_0, layers_1, ...
    preserve_adopted_names: ClassVar[bool] = True

    def __call__(self, inputs: Spikes, until: Time = NO_TIME) -> Spikes | Trace:
        """Runs all layers through one window and returns what the last one does."""
        if not self.layers:
            raise ValueError("Network has no layers.")
        self._check_layers()
        check_inputs(self.layers[0], inputs)  # No method: nn.tabulate lists calls.
        observations: Sequence = [None] * len(self.layers)
        if self.backend is not None and not self.is_initializing():
            populations = [layer.population() for layer in self.layers]
            flat = inputs.reshape_batch(-1)
            observations = self.backend(populations, flat, until, device_key(self))
        spikes: Any = inputs
        for layer, observation in zip(self.layers, observations, strict=True):
            observed = {} if observation is None else {"observation": observation}
            spikes = layer(spikes, until=until, **observed)
        return spikes

    def _check_layers(self) -> None:
        """Raises if an `LI` or a `Delay` is asked for what only a `LIF` can do."""
        for layer in self.layers:
            if isinstance(layer, LIF):
                continue
            if self.backend is not None:
                lacks = "no spikes" if isinstance(layer, LI) else "no neurons"
                raise ValueError(
                    f"Network.backend is set, but {label(layer)} has {lacks}, and a"
                    " device reports spikes of neurons. Leave the backend out here and"
                    " give it to each LIF: LIF(..., backend=...)."
                )
            if self.variables.get("events"):
                raise ValueError(
                    f"the network is given states to continue from, but {label(layer)}"
                    " starts every run from rest; leave out the collection 'events'."
                )
