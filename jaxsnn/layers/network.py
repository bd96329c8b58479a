"""A network whose layers run together."""

from collections.abc import Sequence
from typing import Any, ClassVar

from flax import linen as nn

from jaxsnn.backend import Backend, Population
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
        observations: Sequence = [None] * len(self.layers)
        if self.backend is not None and not self.is_initializing():
            populations = self._populations(self.backend, inputs.size)
            flat = inputs.reshape_batch(-1)
            found = self.backend(populations, flat, until, device_key(self))
            there = iter(found)
            observations = [
                next(there) if self._runs(self.backend, layer) else None
                for layer in self.layers
            ]
        spikes: Any = inputs
        for layer, observation in zip(self.layers, observations, strict=True):
            observed = {} if observation is None else {"observation": observation}
            spikes = layer(spikes, until=until, **observed)
        if self.backend is not None and self.is_initializing():
            self.backend.check(self._populations(self.backend, inputs.size), until)
        return spikes

    def _populations(self, backend: Backend, size: int) -> list[Population]:
        """The layers that the device runs, as it sees them; `size` is of the inputs."""
        populations: list[Population] = []
        wait: Any = 0.0
        for layer in self.layers:
            if isinstance(layer, Delay):
                wait = wait + layer.delays(size)[:, None]
            elif not isinstance(layer, Delay) and self._runs(backend, layer):
                population = layer.population(len(populations))
                first, *own = population.projections
                first = first._replace(delay=first.delay + wait)
                population = population._replace(projections=(first, *own))
                populations.append(population)
                size, wait = layer.features, 0.0
        return populations

    @staticmethod
    def _runs(backend: Backend, layer: LIF | LI | Delay) -> bool:
        """Whether a device runs a layer as neurons of its own."""
        return isinstance(layer, LIF) or (isinstance(layer, LI) and backend.samples)

    def _check_layers(self) -> None:
        """Raises if a network with an `LI` or a `Delay` is to continue from a state."""
        for layer in self.layers:
            if not isinstance(layer, LIF) and self.variables.get("events"):
                raise ValueError(
                    f"the network is given states to continue from, but {label(layer)}"
                    " starts every run from rest; leave out the collection 'events'."
                )
