"""A network whose layers run together."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from flax import linen as nn

from jaxsnn.backend import Backend, Observation, Population
from jaxsnn.dynamics import Time
from jaxsnn.layers.delay import Delay
from jaxsnn.layers.li import LI
from jaxsnn.layers.lif import LIF
from jaxsnn.layers.parameters import check_inputs, label
from jaxsnn.layers.run import device_key
from jaxsnn.readout import Trace
from jaxsnn.spikes import NO_TIME, Spikes


class Network(nn.Module):
    """Spiking layers in a row, run by the simulation or, as one, by a device.

    On a device a network is one run per batch: the hidden spikes travel on the device
    and are read out afterwards. Then every layer computes its gradient from what was
    observed of it and of the layer before.

    The last layer may be an `LI`; the network then returns its `Trace`. A device that
    samples voltages runs it too; otherwise the software computes it from the spikes
    observed of the layer before. A `Delay` between layers becomes a delay of the next
    one. A network with either runs one window from rest.

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
      >>> on_chip = network.clone(backend=SimulatedChip(scale=None))
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
        observed: dict[int, Observation] = {}
        if self.backend is not None and not self.is_initializing():
            network = self._network(self.backend, inputs.size)
            flat, key = inputs.reshape_batch(-1), device_key(self)
            found = self.backend(list(network.values()), flat, until, key)
            observed = dict(zip(network, found, strict=True))
        spikes: Any = inputs
        for k, layer in enumerate(self.layers):
            seen = {"observation": observed[k]} if k in observed else {}
            spikes = layer(spikes, until=until, **seen)
        if self.backend is not None and self.is_initializing():
            network = self._network(self.backend, inputs.size)
            self.backend.check(list(network.values()), until)
        return spikes

    def _network(self, backend: Backend, size: int) -> dict[int, Population]:
        """The layers that the device runs, by place; `size` is of the inputs."""
        network: dict[int, Population] = {}
        wait: Any = 0.0
        for k, layer in enumerate(self.layers):
            if isinstance(layer, Delay):
                delay: Any = layer.delays(size)
                wait = wait + (delay[:, None] if np.ndim(delay) else delay)
            elif isinstance(layer, LIF) or backend.samples:
                population = layer.population(len(network))
                first, *own = population.projections
                first = first._replace(delay=first.delay + wait)
                network[k] = population._replace(projections=(first, *own))
                size, wait = layer.features, 0.0
        return network

    def _check_layers(self) -> None:
        """Raises if a network with an `LI` or a `Delay` is to continue from a state."""
        for layer in self.layers:
            if not isinstance(layer, LIF) and self.variables.get("events"):
                raise ValueError(
                    f"the network is given states to continue from, but {label(layer)}"
                    " starts every run from rest; leave out the collection 'events'."
                )
