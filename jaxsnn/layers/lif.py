"""The leaky integrate-and-fire layer."""

import math
import numbers
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax

from jaxsnn.backend import Backend, GradientMethod, Observation, Population
from jaxsnn.dynamics import Neuron, Time
from jaxsnn.eventprop import eventprop
from jaxsnn.layers.initializers import spread_normal
from jaxsnn.record import State, explain, start_of_run, state_after
from jaxsnn.simulate import simulate
from jaxsnn.spikes import NO_TIME, Spikes, _traced


class LIF(nn.Module):
    r"""A fully connected layer of leaky integrate-and-fire neurons.

    Between events, neuron :math:`n` follows

    .. math::
        \tau_m \dot V_n = -(V_n - v_\mathrm{leak}) + I_n, \qquad
        \tau_s \dot I_n = -I_n .

    A spike of input :math:`j` adds :math:`W_{jn}` to :math:`I_n`. When :math:`V_n`
    rises through :math:`v_\mathrm{th}` the neuron spikes and :math:`V_n` becomes
    :math:`v_\mathrm{reset}`; :math:`I_n` is left alone. The layer computes from event
    to event, never by a time step, so spike times are exact to rounding, for any ratio
    of the time constants. An input at exactly the time of an own spike acts first. To
    touch the threshold is not to cross it.

    Gradients are exact too, with respect to the kernel and to the input times. They
    are those of the spikes that did occur: a spike that appears or disappears as
    weights change is a jump that no gradient sees, and a silent neuron gets zero.

    With ``mutable=["events"]`` the layer returns, in that collection, its state at the
    end of the window (`v`, `i`, and the `time` they hold for), the `count` of spikes
    of each neuron since the start of the run, and, for this window, the number of
    spikes that found no slot (`dropped`) and of inputs older than the state (`late`).
    Given that collection back, it continues the run. A plain ``apply`` starts from
    rest at time 0 and writes nothing.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> from jaxsnn import Spikes
      >>> from jaxsnn.layers import LIF
      >>> inputs = Spikes(
      ...     time=jnp.array([[0.0, 3e-3, 5e-3]]), index=jnp.array([[0, 1, 0]]), size=2
      ... )
      >>> layer = LIF(features=4)
      >>> variables = layer.init(jax.random.key(0), inputs)
      >>> variables["params"]["kernel"].shape
      (2, 4)
      >>> outputs = layer.apply(variables, inputs)
      >>> outputs.time.shape, outputs.size
      ((1, 4), 4)

    Attributes:
      features: number of neurons.
      tau_mem: membrane time constant in seconds.
      tau_syn: synaptic time constant in seconds.
      v_th: threshold, in the unit of the weights.
      v_leak: resting voltage; above `v_th` the neurons fire without input.
      v_reset: voltage right after a spike, below `v_th`.
      max_spikes: spikes per neuron and run. Having fired that often, a neuron stays
        silent; 1 is the convention of time-to-first-spike coding.
      slots: spikes of the layer per window and sample. The earliest are kept, the
        others counted in `dropped`. By default every spike finds a slot.
      kernel_init: initializer of the kernel, of shape ``[inputs.size, features]``.
      gradient: the method itself: `jaxsnn.eventprop.eventprop`, or
        `jaxsnn.analytic.analytic` for forward mode and higher derivatives.
      backend: what finds the spikes. By default the exact simulation; otherwise a
        device such as `jaxsnn.hardware.SimulatedChip`, from whose observed spikes the
        gradient is computed. `init` never calls it.
      param_dtype: dtype of the kernel.

    Neftci et al. review the model: `Surrogate gradient learning in spiking neural
    networks <https://doi.org/10.1109/MSP.2019.2931595>`_ (2019); the gradient is that
    of `Wunderlich & Pehle (2021) <https://doi.org/10.1038/s41598-021-91786-z>`_.
    """

    features: int
    tau_mem: float = 10e-3
    tau_syn: float = 5e-3
    v_th: float = 1.0
    v_leak: float = 0.0
    v_reset: float = 0.0
    max_spikes: int = 1
    slots: int | None = None
    kernel_init: nn.initializers.Initializer = spread_normal(15.0, 3.6)
    gradient: GradientMethod = eventprop
    backend: Backend | None = None
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        """Checks the attributes before any work."""
        super().__post_init__()
        for name in ("features", "max_spikes", "slots"):
            value = getattr(self, name)
            if name == "slots" and value is None:
                continue
            whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
            if not (whole and value >= 1):
                raise ValueError(
                    f"LIF.{name} is {value!r}, expected a whole number, 1 or more."
                )
        for name in ("gradient", "kernel_init", "backend"):
            if name == "backend" and self.backend is None:
                continue
            if not callable(getattr(self, name)):
                raise ValueError(
                    f"LIF.{name} is {getattr(self, name)!r}, expected the function"
                    " itself, such as jaxsnn.eventprop.eventprop."
                )
        _ = self.neuron

    @property
    def neuron(self) -> Neuron:
        """Parameters of the layer's neurons."""
        return Neuron(self.tau_mem, self.tau_syn, self.v_th, self.v_leak, self.v_reset)

    @nn.compact
    def __call__(
        self,
        inputs: Spikes,
        until: Time = NO_TIME,
        observation: Observation | None = None,
    ) -> Spikes:
        """Runs the layer through one window.

        Args:
          inputs: spikes of the layer before, ``[*batch, n]``.
          until: end of the window in seconds. Only inputs and spikes before it count.
          observation: the layer's spikes if they were observed already, as part of a
            network that ran elsewhere; see `Network`.

        Returns:
          Spikes of this layer, ``[*batch, slots]``.

        Raises:
          ValueError: spikes of another number of sources than the kernel is for, or a
            state of another batch shape.
        """
        self.check_inputs(inputs)
        if jnp.ndim(until) != 0 or (not _traced(until) and math.isnan(until)):
            raise ValueError(f"until is {until!r}, expected one time for the batch.")
        neuron = self.neuron
        shape = (inputs.size, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        if not _traced(kernel) and not np.isfinite(np.asarray(kernel)).all():
            raise ValueError(
                f"the kernel of {self._label} has entries that are NaN or inf."
            )
        batch = inputs.time.shape[:-1]
        inputs = inputs.reshape_batch(-1)
        n = inputs.time.shape[0]
        dtype = jnp.result_type(kernel, inputs.time)

        start = self._given_state(n)
        opening = start_of_run(neuron, start, n, self.features, dtype)
        late = jnp.zeros(n, jnp.int32)
        if opening is not None:
            inputs, late = inputs.not_before(opening.time)

        backend = None if self.is_initializing() else self.backend
        if start is not None and (observation is not None or backend is not None):
            raise ValueError(
                f"{self._label} is given a state to continue from, but devices start"
                " every run from rest; leave out the collection 'events'."
            )
        if observation is None and backend is not None:
            population = Population(self.name or "LIF", neuron, kernel, self.max_spikes)
            (observation,) = backend([population], inputs, until, device_key(self))
        counters = {}
        if observation is None:
            fixed = lax.stop_gradient((kernel, inputs, opening))
            record = simulate(
                neuron,
                fixed[0],
                fixed[1],
                start=fixed[2],
                max_spikes=self.max_spikes,
                until=until,
            )
        else:
            # Straight-through: the device's weights, the parameters' gradient.
            kernel = kernel + lax.stop_gradient(observation.kernel - kernel)
            record, unexplained = explain(
                neuron, *lax.stop_gradient((kernel, inputs, opening)), observation.times
            )
            counters = {"unexplained": unexplained, **observation.counters}
        times = self.gradient(neuron, kernel, inputs, opening, record)
        spikes, dropped = Spikes.from_times(times).keep(
            self.features * self.max_spikes if self.slots is None else self.slots
        )
        counters = {"dropped": dropped, "late": late, **counters}

        if self.is_mutable_collection("events") and not self.is_initializing():
            state = state_after(neuron, kernel, inputs, opening, times, until)
            for name, value in {**state._asdict(), **counters}.items():
                value = value.reshape(*batch, *value.shape[1:])
                self.variable("events", name, lambda: None).value = value
        spikes = spikes.reshape_batch(*batch)
        self.sow("intermediates", "spikes", spikes)
        return spikes

    def _given_state(self, batch: int) -> State | None:
        """State to continue from, if one was given."""
        if not self.has_variable("events", "v"):
            return None
        state = State(*(self.get_variable("events", name) for name in State._fields))
        if not _traced(state.time) and not np.isfinite(np.asarray(state.time)).all():
            raise ValueError(
                f"{self._label} cannot continue from a run that had no end: pass"
                " `until` to the window before."
            )
        found = state.v.shape
        if found[-1] != self.features or state.v.size != batch * self.features:
            raise ValueError(
                f"{self._label} is given the state of {found} neurons, but the"
                f" inputs are {batch} samples for {self.features} neurons; a state can"
                " only be continued with the batch that it came from."
            )
        return State(
            state.v.reshape(batch, -1),
            state.i.reshape(batch, -1),
            state.time.reshape(batch),
            state.count.reshape(batch, -1),
        )

    @property
    def _label(self) -> str:
        return f"LIF '{self.name}'" if self.name else "LIF"

    def check_inputs(self, inputs: Spikes) -> None:
        """Raises if the inputs are no spikes, or not those of as many sources."""
        if not isinstance(inputs, Spikes):
            raise TypeError(
                f"{self._label} takes jaxsnn.Spikes, not {type(inputs).__name__};"
                " jaxsnn.coding.encode_latency makes them from numbers."
            )
        if self.has_variable("params", "kernel"):
            expected = jnp.shape(self.get_variable("params", "kernel"))
            if expected != (inputs.size, self.features):
                raise ValueError(
                    f"{self._label} has a kernel of shape {expected}: expected"
                    f" spikes of {expected[0]} sources and features={expected[1]}, got"
                    f" spikes of {inputs.size} sources and features={self.features}."
                )


def device_key(module: nn.Module) -> Array | None:
    """Randomness for one run of a device: the rng stream ``hardware``, if given."""
    return module.make_rng("hardware") if module.has_rng("hardware") else None
