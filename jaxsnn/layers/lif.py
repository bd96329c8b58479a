"""The leaky integrate-and-fire layer."""

import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from jaxsnn.backend import (
    Backend,
    GradientMethod,
    Observation,
    Population,
    Projection,
    straight_through,
)
from jaxsnn.dynamics import Neuron, Parameter, Time
from jaxsnn.eventprop import eventprop
from jaxsnn.layers.initializers import spread_normal
from jaxsnn.layers.parameters import (
    Value,
    check_callable,
    check_delay,
    check_inputs,
    check_neuron,
    check_t_ref,
    check_until,
    check_whole,
    kernel_of,
    label,
    neuron_of,
    param,
    positive,
    shortest_delay,
)
from jaxsnn.layers.run import Found, at_limit, device_key, show_slope, spikes_of
from jaxsnn.record import (
    Recurrent,
    State,
    start_of_run,
    state_after,
    unexplained,
)
from jaxsnn.recurrent import quicker_way
from jaxsnn.spikes import NO_INDEX, NO_TIME, Spikes, _traced


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

    With ``recurrent=True`` a spike of neuron :math:`n` also adds row :math:`n` of the
    parameter ``recurrent_kernel`` to the layer's currents, after `recurrent_delay`.
    With `delay`, spikes of the inputs take their time to arrive.

    Gradients are exact too, with respect to the kernels, to the input times, to delays
    and to all parameters of the neuron that are learned. They are those of the spikes
    that did occur: a spike that appears or disappears as weights change is a jump that
    no gradient sees, and a silent neuron gets zero.

    With ``mutable=["events"]`` the layer returns, in that collection, its state at the
    end of the window (`v`, `i`, and the `time` they hold for), the `count` of spikes
    of each neuron since the start of the run, and, for this window, the number of
    spikes that found no slot (`dropped`) and of inputs older than the state (`late`).
    Given that collection back, it continues the run. A plain ``apply`` starts from
    rest at time 0 and writes nothing. (With delays, recurrent connections or a
    refractory period, more than that is under way at the end; such a layer reports
    counts, and always starts from rest. With recurrent connections it also reports how
    many neurons fired `max_spikes` times, `at_limit`: what ends a cascade that would
    go on.)

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
      tau_mem: membrane time constant in seconds. Like the next four and the delays, a
        number, an array (a constant for each neuron), or an initializer such as
        ``nn.initializers.constant(10e-3)``: then it is learned, as a parameter whose
        form keeps it in its range; see `jaxsnn.layers.parameters`.
      tau_syn: synaptic time constant in seconds.
      v_th: threshold, in the unit of the weights.
      v_leak: resting voltage; above `v_th` the neurons fire without input.
      v_reset: voltage right after a spike, below `v_th`.
      t_ref: absolute refractory period in seconds, in which the voltage stays at
        `v_reset` and the current goes on.
      max_spikes: spikes per neuron and run. Having fired that often, a neuron stays
        silent; 1 is the convention of time-to-first-spike coding.
      slots: spikes of the layer per window and sample. The earliest are kept, the
        others counted in `dropped`. By default every spike finds a slot.
      kernel_init: initializer of the kernel, of shape ``[inputs.size, features]``.
      delay: time in seconds that a spike takes from an input to a neuron, for all, or
        ``[inputs.size, features]``; learned as ``log_delay``. For delays that do not
        depend on the target, or not on the source, `Delay` is cheaper, and much so
        before a recurrent layer, for which every synapse then is a source.
      recurrent: whether the neurons are connected with each other and themselves.
      recurrent_init: initializer of ``recurrent_kernel``, ``[features, features]``.
      recurrent_delay: time in seconds that a spike takes within the layer, for all, of
        each source, ``[features, 1]``, or of each pair. Learned, it is one of each
        pair, or as `PerSource` or `PerTarget` say.
      recurrent_by: ``"event"``, ``"window"``, or ``"auto"``, window by window where
        that is possible and delays are at least a hundredth of `tau_mem`; see
        `jaxsnn.recurrent`. Changes speed, not results.
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
    tau_mem: Value = Neuron.tau_mem
    tau_syn: Value = Neuron.tau_syn
    v_th: Value = Neuron.v_th
    v_leak: Value = Neuron.v_leak
    v_reset: Value = Neuron.v_reset
    t_ref: Value = Neuron.t_ref
    max_spikes: int = 1
    slots: int | None = None
    kernel_init: nn.initializers.Initializer = spread_normal(15.0, 3.6)
    delay: Value | None = None
    recurrent: bool = False
    recurrent_init: nn.initializers.Initializer = spread_normal(0.0, 3.6)
    recurrent_delay: Value = 0.0
    recurrent_by: str = "auto"
    gradient: GradientMethod = eventprop
    backend: Backend | None = None
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        """Checks the attributes before any work."""
        super().__post_init__()
        for name in ("features", "max_spikes", "slots"):
            if name != "slots" or self.slots is not None:
                check_whole(f"LIF.{name}", getattr(self, name))
        for name in ("gradient", "kernel_init", "recurrent_init", "backend"):
            if name != "backend" or self.backend is not None:
                example = "jaxsnn.eventprop.eventprop"
                check_callable(f"LIF.{name}", getattr(self, name), example)
        if self.recurrent_by not in ("auto", "event", "window"):
            raise ValueError(
                f"LIF.recurrent_by is {self.recurrent_by!r}, expected 'auto', 'event'"
                " or 'window'."
            )
        for name in ("delay", "recurrent_delay"):
            check_delay(f"LIF.{name}", getattr(self, name))
        check_neuron(self)
        own = self.recurrent_delay
        if not self.recurrent and not (isinstance(own, numbers.Real) and own == 0):
            raise ValueError(
                f"LIF.recurrent_delay is {own!r}, but the layer is not recurrent; leave"
                " it out, or set recurrent=True."
            )
        if self.recurrent_by == "window" and self.recurrent and not self._shortest:
            raise ValueError(
                f"LIF.recurrent_delay is {self.recurrent_delay!r}; to run window by"
                " window takes positive delays that do not depend on the target: a"
                " number, an array [features, 1], or PerSource. Write"
                " recurrent_by='event'."
            )

    @property
    def neuron(self) -> Neuron:
        """Parameters of the layer's neurons."""
        return neuron_of(self)

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
        check_until(until)
        kernel = kernel_of(self, inputs.size)
        neuron = neuron_of(self)
        delay, recurrent = self._delay(inputs.size), self._recurrent()
        check_t_ref(self._label, neuron.t_ref, until)
        batch = inputs.time.shape[:-1]
        inputs = inputs.reshape_batch(-1)
        n = inputs.time.shape[0]
        dtype = jnp.result_type(kernel, inputs.time)

        start = self._given_state(n)
        opening = start_of_run(neuron, start, n, self.features, dtype)
        late = jnp.zeros(n, jnp.int32)
        if opening is not None:
            inputs, late = inputs.not_before(opening.time)

        if self.backend is not None and observation is None:
            network = [self.population()]
            if self.is_initializing():
                self.backend.check(network, until)
            else:
                key = device_key(self)
                (observation,) = self.backend(network, inputs, until, key)
        if observation is not None:
            if start is not None:
                raise ValueError(
                    f"{self._label} is given a state to continue from, but devices"
                    " start every run from rest; leave out the collection 'events'."
                )
            kernel = straight_through(kernel, observation.kernels[0])
            if recurrent is not None:
                there = straight_through(recurrent.kernel, observation.kernels[1])
                recurrent = recurrent._replace(kernel=there)
        observed = None if observation is None else observation.times
        if delay is not None and recurrent is not None:
            inputs, kernel = self._by_synapse(inputs, kernel, delay)
            delay = None
        if delay is None:
            found = self._run(
                neuron, kernel, inputs, opening, recurrent, until, observed
            )
        else:
            found = self._one_by_one(
                neuron, kernel, inputs.delayed(delay.T), opening, until, observed
            )
        record, difference = found
        times = record.times
        show_slope(self, {"": record.slope})
        spikes, dropped = Spikes.from_times(times).keep(
            self.features * self.max_spikes if self.slots is None else self.slots
        )
        counters: dict[str, Any] = {"dropped": dropped, "late": late}
        if recurrent is not None:
            counters["at_limit"] = at_limit(times)
        if observation is not None:
            counters |= {
                "unexplained": unexplained(record).sum(-1),
                **observation.counters,
            }

        if difference is not None:
            for name, value in difference._asdict().items():
                self.put_variable("mismatch", name, value.reshape(*batch, -1))
        if self.is_mutable_collection("events") and not self.is_initializing():
            if self._continues:
                state = state_after(neuron, kernel, inputs, opening, times, until)
                counters |= state._asdict()
            else:
                counters["count"] = jnp.sum(times < NO_TIME, axis=-1, dtype=jnp.int32)
            for name, value in counters.items():
                value = value.reshape(*batch, *value.shape[1:])
                self.variable("events", name, lambda: None).value = value
        spikes = spikes.reshape_batch(*batch)
        self.sow("intermediates", "spikes", spikes)
        return spikes

    def population(self, source: int = 0) -> Population:
        """The layer as a device sees it, behind the population of that number."""
        kernel: Any = nn.meta.unbox(self.get_variable("params", "kernel"))
        delay = 0.0 if self.delay is None else self._delays("delay", *kernel.shape)
        projections = [Projection(source, kernel, delay)]
        if self.recurrent:
            delay = self._delays("recurrent_delay", self.features, self.features)
            own = Projection(source + 1, self._recurrent_kernel(), delay)
            projections.append(own)
        return Population(
            self.name or "LIF",
            self.features,
            self.neuron,
            self.max_spikes,
            tuple(projections),
        )

    def check_inputs(self, inputs: Spikes) -> None:
        """Raises if the inputs are no spikes, or not those of as many sources."""
        check_inputs(self, inputs)

    def _run(
        self, neuron, kernel, inputs, opening, recurrent, until, observed
    ) -> Found:
        by = quicker_way(self.recurrent_by, self._shortest, [self.tau_mem])
        given = neuron, kernel, inputs, opening, recurrent
        compare = self.is_mutable_collection("mismatch")
        limits = self.max_spikes, until, by
        return spikes_of(self.gradient, given, limits, observed, compare)

    def _one_by_one(self, neuron, kernel, inputs, opening, until, observed) -> Found:
        """As `_run`, for inputs ``[neurons, batch, n]`` of each neuron alone."""
        neuron = jax.tree.map(lambda x: jnp.broadcast_to(x, (self.features,)), neuron)
        if opening is not None:
            v, i, count = (
                x.T[..., None] for x in (opening.v, opening.i, opening.count)
            )
            time = jnp.broadcast_to(opening.time, (self.features, *opening.time.shape))
            opening = State(v, i, time, count)
        if observed is not None:
            observed = jnp.moveaxis(observed, 1, 0)[:, :, None]

        def one(neuron, weights, inputs, opening, observed):
            given = neuron, weights[:, None], inputs, opening, None
            return jax.tree.map(lambda x: x[:, 0], self._run(*given, until, observed))

        run = jax.vmap(one, out_axes=1)
        return run(neuron, kernel.T, inputs, opening, observed)

    @staticmethod
    def _by_synapse(inputs, kernel, delay) -> tuple[Spikes, Array]:
        """Inputs in which each synapse is a source, with the weights that fit them."""
        size, features = kernel.shape
        targets = jnp.arange(features)
        source = inputs.index[..., None]
        index = jnp.where(source == NO_INDEX, source, source * features + targets)
        time = inputs.time[..., None] + delay[inputs.index]
        flat = (*inputs.index.shape[:-1], -1)
        events = time.reshape(flat), index.reshape(flat)
        single = jnp.zeros((size, features, features), kernel.dtype)
        kernel = single.at[:, targets, targets].set(kernel)
        return Spikes.from_events(*events, size * features), kernel.reshape(
            -1, features
        )

    def _delays(self, name: str, rows: int, columns: int) -> Parameter:
        """The delays of that name: a number, or an array that fits these synapses."""
        return positive(self, name, getattr(self, name), (rows, columns))

    def _delay(self, size: int) -> Array | None:
        """Delays of the inputs, ``[size, features]``; None for none."""
        if self.delay is None:
            return None
        shape = (size, self.features)
        return jnp.broadcast_to(self._delays("delay", *shape), shape)

    def _recurrent(self) -> Recurrent | None:
        """Connections of the layer with itself; None for none."""
        if not self.recurrent:
            return None
        kernel = self._recurrent_kernel()
        delay = self._delays("recurrent_delay", *kernel.shape)
        return Recurrent(kernel, jnp.asarray(delay, kernel.dtype))

    def _recurrent_kernel(self) -> Array:
        shape = (self.features, self.features)
        return param(self, "recurrent_kernel", self.recurrent_init, shape)

    @property
    def _shortest(self) -> float | None:
        """Shortest recurrent delay if the layer can run window by window."""
        return shortest_delay([self.recurrent_delay])

    @property
    def _continues(self) -> bool:
        """Whether a run can be continued: spikes under way are not part of a state."""
        refractory = not (isinstance(self.t_ref, int | float) and self.t_ref == 0)
        return not self.recurrent and self.delay is None and not refractory

    def _given_state(self, batch: int) -> State | None:
        """State to continue from, if one was given."""
        if not self._continues and self.has_variable("events", "count"):
            raise ValueError(
                f"{self._label} has recurrent connections, delays or a refractory"
                " period and starts every run from rest, since spikes under way would"
                " be lost; leave out the collection 'events'."
            )
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
        return label(self)
