"""The leaky integrator, a readout that does not spike."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxsnn.backend import (
    Observation,
    Population,
    Projection,
    Samples,
    straight_through,
)
from jaxsnn.dynamics import Neuron, Time
from jaxsnn.layers.initializers import spread_normal
from jaxsnn.layers.parameters import (
    Value,
    check_callable,
    check_inputs,
    check_neuron,
    check_until,
    check_whole,
    kernel_of,
    neuron_of,
)
from jaxsnn.readout import Trace
from jaxsnn.spikes import NO_TIME, Spikes, _traced


class LI(nn.Module):
    r"""A fully connected layer of leaky integrators: voltages instead of spikes.

    Neuron :math:`n` follows

    .. math::
        \tau_m \dot V_n = -(V_n - v_\mathrm{leak}) + I_n, \qquad
        \tau_s \dot I_n = -I_n,

    and a spike of input :math:`j` adds :math:`W_{jn}` to :math:`I_n`. There is no
    threshold. It is what a `LIF` of the same attributes does as long as it is silent.

    The layer computes nothing until asked: it returns a `jaxsnn.readout.Trace`, whose
    `voltage`, `current`, `maximum` and `integral` are exact to rounding, for any ratio
    of the time constants, and have exact gradients, in forward and reverse mode, with
    respect to the kernel, the times of the inputs, and what is learned of the neurons.
    A run is one window: unlike a `LIF`, the layer does not continue from a state.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> from jaxsnn import Spikes
      >>> from jaxsnn.layers import LI
      >>> inputs = Spikes(
      ...     time=jnp.array([[0.0, 3e-3, 5e-3]]), index=jnp.array([[0, 1, 0]]), size=2
      ... )
      >>> layer = LI(features=4)
      >>> variables = layer.init(jax.random.key(0), inputs)
      >>> variables["params"]["kernel"].shape
      (2, 4)
      >>> trace = layer.apply(variables, inputs)
      >>> trace.maximum().value.shape, trace.voltage(1e-3).shape
      ((1, 4), (1, 4))

    Attributes:
      features: number of neurons.
      tau_mem: membrane time constant in seconds. Like the next two, a number, an array
        (a constant for each neuron), or an initializer such as
        ``nn.initializers.constant(10e-3)``: then it is learned, see
        `jaxsnn.layers.parameters`. Numbers are faster: one sum serves all neurons.
      tau_syn: synaptic time constant in seconds.
      v_leak: resting voltage, in the unit of the weights.
      kernel_init: initializer of the kernel, of shape ``[inputs.size, features]``.
      param_dtype: dtype of the kernel.
    """

    features: int
    tau_mem: Value = Neuron.tau_mem
    tau_syn: Value = Neuron.tau_syn
    v_leak: Value = Neuron.v_leak
    kernel_init: nn.initializers.Initializer = spread_normal(0.0, 1.0)
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        """Checks the attributes before any work."""
        super().__post_init__()
        check_whole("LI.features", self.features)
        example = "jaxsnn.layers.spread_normal(0.0, 1.0)"
        check_callable("LI.kernel_init", self.kernel_init, example)
        check_neuron(self)

    @property
    def neuron(self) -> Neuron:
        """Parameters of the layer's neurons, whose threshold has no meaning."""
        return neuron_of(self)

    @nn.compact
    def __call__(
        self,
        inputs: Spikes,
        until: Time = NO_TIME,
        observation: Observation | None = None,
    ) -> Trace:
        """Returns the voltages as a function of time.

        Args:
          inputs: spikes of the layer before, ``[*batch, slots]``.
          until: end of the window in seconds. Only inputs before it count, and maxima
            and integrals end there if not told otherwise.
          observation: samples of the voltages if a device took them; see `Network`.

        Raises:
          TypeError: inputs that are no `Spikes`.
          ValueError: spikes of another number of sources than the kernel is for.
        """
        self.check_inputs(inputs)
        check_until(until)
        kernel = kernel_of(self, inputs.size)
        if _traced(until) or until < NO_TIME:
            inputs = inputs.window(-NO_TIME, until)
        samples = None
        if observation is not None:
            kernel = straight_through(kernel, observation.kernels[0])
            batch = inputs.time.shape[:-1]
            if observation.samples is not None:
                time, voltage = observation.samples
                samples = Samples(time, voltage.reshape(*batch, *voltage.shape[1:]))
            if self.is_mutable_collection("events"):
                for name, value in observation.counters.items():
                    self.put_variable("events", name, value.reshape(batch))
        trace = Trace(self.neuron, kernel, inputs, until, samples)
        self.sow("intermediates", "trace", trace)
        return trace

    def population(self, source: int = 0) -> Population:
        """The layer as a device sees it, behind the population of that number."""
        kernel: Any = nn.meta.unbox(self.get_variable("params", "kernel"))
        projection = Projection(source, kernel)
        return Population(
            self.name or "LI", self.features, self.neuron, 0, (projection,)
        )

    def check_inputs(self, inputs: Spikes) -> None:
        """Raises if the inputs are no spikes, or not those of as many sources."""
        check_inputs(self, inputs)
