r"""What a leaky integrator without a threshold shows, in closed form.

Its voltage is a sum over the input events, linear in the weights,

.. math::
    V(t) = v_\mathrm{leak} + \sum_{t_j \le t} w_j k(t - t_j),

so that its value at a time and its integral are sums as well. Its maximum lies where
the voltage peaks between two events, where it is still rising as an inhibitory event
turns it, or at the end of the window. A pass over the events finds the place; the value
there is :math:`V(t^*)` again. At a peak :math:`\dot V(t^*) = 0`, so that the gradient
of the maximum does not need to know how :math:`t^*` moves (the envelope theorem); at an
event, :math:`t^*` moves with that event, and at the end not at all.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsnn.backend import Samples, straight_through
from jaxsnn.dynamics import Neuron, Time, drive, flow, peak_phase, psp
from jaxsnn.record import Places, free_voltage, synaptic_decay
from jaxsnn.spikes import NO_TIME, Spikes


class Maximum(NamedTuple):
    """The highest voltage in a window.

    Attributes:
      value: the voltage, ``[*batch, neurons]``. Differentiable.
      time: when, in seconds, the first time if it is reached twice. No gradient.
    """

    value: Array
    time: Array


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["neuron", "kernel", "inputs", "until", "samples"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Trace:
    """Voltages of leaky integrators, as a function of time that can be asked.

    The integrators rest at `v_leak` until their first input. Inputs are meant to be at
    times of 0 or later. What the methods return is exact to rounding and differentiable
    with respect to the kernel, the times of the inputs and the arrays in `neuron`.
    Under `jax.vmap`, ask inside the mapped function.

    Example::

      >>> import jax.numpy as jnp
      >>> from jaxsnn import Spikes
      >>> from jaxsnn.dynamics import Neuron
      >>> inputs = Spikes.from_times(jnp.array([[1e-3], [2e-3]]))
      >>> kernel = jnp.array([[2.0], [2.0]])
      >>> trace = Trace(Neuron(10e-3, 5e-3), kernel, inputs)
      >>> value, time = trace.maximum()
      >>> print(f"{value[0]:.3f} at {time[0] * 1e3:.2f} ms")
      0.998 at 8.47 ms
      >>> trace.voltage(jnp.array([0.0, 2e-3, 8e-3])).shape
      (1, 3)

    Attributes:
      neuron: parameters; thresholds and resets do not matter.
      kernel: weights, ``[inputs.size, neurons]``.
      inputs: spikes, ``[*batch, slots]``.
      until: end of the window in seconds, where `maximum` and `integral` end if not
        told otherwise. One time for the batch.
      samples: voltages that a device measured. The maximum then is that of the samples;
        its gradient is that of the model's voltage at the time of it.
    """

    neuron: Neuron
    kernel: Array
    inputs: Spikes
    until: Time = NO_TIME
    samples: Samples | None = None

    def voltage(self, at: Time) -> Array:
        """Voltage at any times in seconds.

        Args:
          at: one time, times ``[T]``, or times of each sample ``[*batch, T]``.

        Returns:
          ``[*batch, neurons]`` for one time, else ``[*batch, neurons, T]``. At ``inf``
          the neurons have come to rest.
        """
        total = self._sum(functools.partial(psp, self.neuron), at)
        leak = jnp.asarray(self.neuron.v_leak, total.dtype)
        return total + (leak if jnp.ndim(at) == 0 else leak.reshape(-1, 1))

    def current(self, at: Time) -> Array:
        """Synaptic current; an event at exactly the time has acted. As `voltage`."""
        return self._sum(functools.partial(synaptic_decay, self.neuron), at)

    def integral(self, until: Time | None = None) -> Array:
        r"""Integral of the voltage from 0 to the end of the window, in V s.

        .. math::
            \int_0^T V\,dt = v_\mathrm{leak} T + \sum_{t_j < T} w_j
                \left[\tau_s \left(1 - e^{-(T - t_j)/\tau_s}\right)
                - \tau_m k(T - t_j)\right]

        for every ratio of the time constants, as the differential equation says: what
        the membrane does not keep of the current, it has lost.

        Args:
          until: end of the window; by default that of the trace. An endless integral
            is finite only if `v_leak` is 0.

        Returns:
          ``[*batch, neurons]``.
        """
        neuron = self.neuron
        end = self._end(until)

        def area(dt: Array) -> Array:
            kept = neuron.tau_mem * psp(neuron, dt)
            return -neuron.tau_syn * jnp.expm1(-dt / neuron.tau_syn) - kept

        leak = jnp.asarray(neuron.v_leak, end.dtype)
        endless = jnp.isinf(end)  # Where 0 * inf would be NaN.
        drift = jnp.where(leak > 0, jnp.inf, jnp.where(leak < 0, -jnp.inf, 0))
        rest = jnp.where(endless, drift, leak * jnp.where(endless, 0, end))
        return self._sum(area, end) + rest

    def maximum(self, until: Time | None = None) -> Maximum:
        """The exact maximum over the window from 0 to `until`, and its time.

        At the end of the window it is the least upper bound: the end itself, where the
        voltage may still rise, is not inside. Neurons without input, or with nothing
        but inhibition, have their maximum at rest, at time 0. Where two places are
        equally high the maximum has a kink, and the gradient is that of the first. Of
        the derivatives only the first is right: a second one would have to know how
        the peak moves. A gradient needs memory for each pair of event and neuron.

        Args:
          until: end of the window; by default that of the trace.

        Returns:
          `value` and `time`, each ``[*batch, neurons]``.
        """
        batch = self.inputs.time.shape[:-1]
        end = self._end(until)
        # An event at the very end would have no part in the value, but in its slope.
        inputs = self.inputs.reshape_batch(-1).window(-NO_TIME, end)
        if self.samples is not None:
            return self._sampled(self.samples, inputs, end)
        fixed = lax.stop_gradient((self.neuron, self.kernel, inputs, end))
        peak, place = find_maximum(*fixed)
        moving = jnp.pad(inputs.time, ((0, 0), (0, 1))).at[:, -1].set(end)
        moving = jnp.take_along_axis(moving, jnp.maximum(place, 0), axis=-1)
        time = jnp.where(place >= 0, moving, lax.stop_gradient(peak))
        value = free_voltage(self.neuron, self.kernel, inputs, None, time[..., None])
        shape = (*batch, self.kernel.shape[1])
        return Maximum(value.reshape(shape), lax.stop_gradient(time).reshape(shape))

    def _sampled(self, samples: Samples, inputs: Spikes, end: Array) -> Maximum:
        """The highest sample before the end, at rest if there is none."""
        shape = samples.voltage.shape[:-1]
        inside = samples.time < end
        rest = jnp.broadcast_to(self.neuron.over(-1).v_leak, (*shape, 1))
        voltage = jnp.where(inside, samples.voltage, -jnp.inf)
        voltage = jnp.concatenate([rest.astype(voltage.dtype), voltage], axis=-1)
        times = jnp.pad(samples.time.astype(voltage.dtype), (1, 0))
        place = jnp.argmax(voltage, axis=-1)
        time = times[place].reshape(-1, shape[-1])
        model = free_voltage(self.neuron, self.kernel, inputs, None, time[..., None])
        found = jnp.max(voltage, axis=-1)
        value = straight_through(model.reshape(shape), found)
        return Maximum(value, lax.stop_gradient(times[place]))

    def _end(self, until: Time | None) -> Array:
        """End of the window; by default that of the trace."""
        return jnp.asarray(self.until if until is None else until, self._dtype)

    @property
    def _dtype(self) -> jnp.dtype:
        return jnp.result_type(self.kernel, self.inputs.time)

    def _sum(self, response: Callable[[Array], Array], at: Time) -> Array:
        """Sums a response to the input events, at times that the neurons share."""
        batch = self.inputs.time.shape[:-1]
        at = jnp.asarray(at, self._dtype)
        times = at if at.ndim else at[None]
        times = jnp.broadcast_to(times, (*batch, times.shape[-1]))
        inputs = self.inputs.reshape_batch(-1)
        times = times.reshape(inputs.time.shape[0], times.shape[-1])

        places = Places.of(inputs)
        since = places.time[:, :, None]
        after = (times[:, None] >= since) & (since < NO_TIME)
        dt = jnp.where(after, times[:, None] - jnp.where(after, since, 0), 0)
        if self.neuron.uniform:
            responses = jnp.where(after, response(dt), 0)  # [batch, places, T]
            per_source = functools.partial(places.per_source, size=inputs.size)
            per_source = jax.vmap(per_source, in_axes=-1, out_axes=-1)
            total = jnp.einsum("bjt,jn->bnt", per_source(responses), self.kernel)
        else:  # Each neuron has a response of its own.
            # At inf, derivatives by time constants would be inf * 0.
            slowest = jnp.maximum(self.neuron.tau_mem, self.neuron.tau_syn)
            dt = jnp.minimum(dt[..., None], lax.stop_gradient(800 * slowest))
            responses = jnp.where(after[..., None], response(dt), 0)
            weights = places.weights(self.kernel)[:, :, None]
            total = jnp.moveaxis(jnp.sum(weights * responses, axis=1), -1, 1)
        total = total.reshape(*batch, *total.shape[1:])
        return total if at.ndim else total[..., 0]


def find_maximum(
    neuron: Neuron, kernel: Array, inputs: Spikes, end: Array
) -> tuple[Array, Array]:
    """Finds where each voltage is highest. Not differentiable.

    Args:
      neuron: parameters.
      kernel: weights, ``[inputs.size, neurons]``.
      inputs: spikes before `end`, ``[batch, slots]``.
      end: of the window, a scalar.

    Returns:
      The time of the maximum, ``[batch, neurons]``, where that is rest or a peak
      between events; and its place: -1 there, else the slot of the event that turns
      the voltage, or the number of slots for the end of the window.
    """
    batch, slots = inputs.time.shape
    # NO_INDEX reads the last row.
    kernel = jnp.pad(kernel, ((0, 1), (0, 0)))
    bounds = jnp.pad(inputs.time, ((0, 0), (0, 1)), constant_values=NO_TIME)
    bounds = jnp.minimum(bounds, end)
    left, right = bounds[:, :-1, None], bounds[:, 1:, None]
    per_event = (left, right, inputs.index, inputs.time[..., None] < NO_TIME)
    events = (jnp.arange(slots), *(jnp.moveaxis(x, 1, 0) for x in per_event))

    def step(carry: tuple, event: tuple) -> tuple[tuple, None]:
        v, i, highest, time, place = carry
        slot, left, right, source, exists = event
        i += kernel[source]
        rise = drive(neuron, v, i)
        turns = exists & (rise <= 0) & (v > highest)
        highest = jnp.where(turns, v, highest)
        place = jnp.where(turns, slot, place)

        phase = peak_phase(neuron, v, i)
        top = neuron.v_leak + i * jnp.exp(-phase)  # Leak and current cancel.
        at = left + neuron.tau_syn * phase
        # A peak that rounds to the next event is that event's, whose time moves. What
        # `peak_phase` says of i <= 0 has no meaning, but is no higher than rest.
        peaks = (rise > 0) & (at < right) & (top > highest)
        highest = jnp.where(peaks, top, highest)
        time = jnp.where(peaks, at, time)
        place = jnp.where(peaks, -1, place)

        # Between empty slots, inf - inf would be the length of an interval.
        v, i = flow(neuron, v, i, jnp.where(right > left, right - left, 0))
        return (v, i, highest, time, place), None

    zeros = jnp.zeros((batch, kernel.shape[1]), jnp.result_type(kernel, left))
    rest = zeros + neuron.v_leak
    carry = (rest, zeros, rest, zeros, jnp.full(zeros.shape, -1))
    (v, _, highest, time, place), _ = lax.scan(step, carry, events)
    return time, jnp.where(v > highest, slots, place)
