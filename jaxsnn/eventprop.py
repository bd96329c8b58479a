r"""EventProp: exact gradients of spike times by an adjoint pass over the events.

Spike :math:`s` of a neuron happens when :math:`V(t_s) = v_\mathrm{th}`, with :math:`V`
the closed form of `jaxsnn.record`. Let :math:`g_s` be the derivative of the loss by
that output time alone. Own resets couple a neuron's spikes, so its total derivative is

.. math::
    h_s = g_s + \frac{v_\mathrm{th} - v_\mathrm{reset}}{\tau_m}
          \sum_{r > s} \mu_r e^{-(t_r - t_s)/\tau_m}, \qquad
    \mu_s = h_s / \dot V(t_s^-),

one decaying accumulator that runs backwards in time. The adjoint of the synaptic
current, :math:`\lambda_j = -\sum_{t_s \ge t_j} \mu_s k(t_s - t_j)`, then gives

.. math::
    \frac{\partial L}{\partial w_{jn}} = \sum_{t_j} \lambda_{jn}, \qquad
    \frac{\partial L}{\partial t_j} = -\sum_n w_{jn} \dot\lambda_{jn}.

More general neurons change the multipliers only. Where spikes act on others of the
layer, :math:`h_s` also has what they did there; where a refractory period forgets the
voltage, spike :math:`s` acts on the next one only. By any other parameter
:math:`\theta`, the gradient is :math:`-\sum_s \mu_s \partial_\theta V(t_s)`.

Wunderlich & Pehle, `Event-based backpropagation can compute exact gradients for
spiking neural networks <https://doi.org/10.1038/s41598-021-91786-z>`_, Sci. Rep. 11,
12829 (2021), state it with adjoint ODEs; for this neuron those have the solution above.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsnn.dynamics import Neuron, psp, psp_slope
from jaxsnn.record import (
    Places,
    Record,
    Recurrent,
    State,
    arrival_pull,
    arrived,
    elapsed,
    release_pull,
    releases,
    start_of_run,
    threshold_residual,
)
from jaxsnn.spikes import NO_TIME, Spikes, argsort_times


def eventprop(
    neuron: Neuron,
    kernel: Array,
    inputs: Spikes,
    start: State | None,
    record: Record,
    recurrent: Recurrent | None = None,
) -> Array:
    """Returns the record's spike times, with their exact gradient attached.

    Gradients flow to the kernel, to the times of the inputs, to the voltage and current
    of `start`, the arrays in `neuron`, and the weights and delays of `recurrent`. They
    are those of the spikes that did occur: that a spike appears or disappears as a
    weight changes is a jump that no gradient sees. Silent neurons get a gradient of
    zero. The backward pass keeps events, not voltages; only by arrays in `neuron`, and
    with a refractory period, it needs memory for pairs of events, as `analytic` does.
    Reverse mode, first order; `jaxsnn.analytic.analytic` has the rest.

    Args:
      neuron: parameters.
      kernel: weights, ``[inputs.size, neurons]``.
      inputs: spikes, ``[batch, slots]``.
      start: state at the beginning of the window; at rest if None.
      record: what happened, whoever found out. Taken as given, not differentiated.
      recurrent: connections of the layer with itself, if any. The backward pass takes
        time for each pair of its spikes then.

    Returns:
      ``record.times``.
    """
    return _attach(neuron, kernel, inputs, start, lax.stop_gradient(record), recurrent)


@jax.custom_vjp
def _attach(neuron, kernel, inputs, start, record, recurrent):
    del neuron, kernel, inputs, start, recurrent
    return record.times


def _attach_fwd(*arguments):
    return arguments[4].times, arguments


def _attach_bwd(residuals, grad_times):
    neuron, kernel, inputs, start, record, recurrent = residuals

    def gap(neuron, kernel, inputs, start, recurrent):
        opening = start_of_run(neuron, start, *record.times.shape[:2], kernel.dtype)
        return threshold_residual(
            neuron, kernel, inputs, opening, record.times, recurrent
        )

    given = (neuron, kernel, inputs, start, recurrent)
    release = release_pull(*given, times=record.times) if neuron.refractory else None
    if recurrent is None:
        mu = _multipliers(neuron, record, grad_times, release)
    else:
        mu = _coupled_multipliers(neuron, record, grad_times, release, recurrent)
    if neuron.refractory:
        # What came before a release acts through the current there: no plain sum.
        *grads, grad_recurrent = jax.vjp(gap, *given)[1](-mu)
        grads = jax.tree.map(_first_order, (*grads, None, grad_recurrent))
        return tuple(grads)
    grad_neuron = neuron
    if jax.tree.leaves(neuron):

        def by_neuron(neuron: Neuron) -> Array:
            return gap(neuron, kernel, inputs, start, recurrent)

        (grad_neuron,) = jax.vjp(by_neuron, neuron)[1](-mu)
    # [n, batch, neurons]: the spikes of each neuron, against the inputs' events.
    times, mu = jnp.moveaxis(record.times, -1, 0), jnp.moveaxis(mu, -1, 0)
    places = Places.of(inputs)
    grad_kernel, grad_time = _pull_back(neuron, kernel, places, times, mu)
    grad_time = grad_time.astype(inputs.time.dtype)
    if inputs.by_source is None:
        grad_inputs = Spikes._known_good(grad_time, None, inputs.size)
    else:
        grad_time = grad_time.reshape(inputs.by_source.shape)
        grad_inputs = Spikes._known_good(None, None, inputs.size, grad_time)
    grad_recurrent = None
    if recurrent is not None:
        grad_recurrent = _pull_back_own(neuron, recurrent, times, mu)

    grad_start = None
    if start is not None:
        dt, after = elapsed(times, start.time[:, None])
        to_v = jnp.where(after, -mu * jnp.exp(-dt / neuron.tau_mem), 0)
        to_i = jnp.where(after, -mu * psp(neuron, dt), 0)
        grad_start = State(jnp.sum(to_v, 0), jnp.sum(to_i, 0), None, None)
    grads = (grad_neuron, grad_kernel.astype(kernel.dtype), grad_inputs, grad_start)
    *grads, grad_recurrent = jax.tree.map(_first_order, (*grads, grad_recurrent))
    return *grads, None, grad_recurrent


_attach.defvjp(_attach_fwd, _attach_bwd)


@jax.custom_jvp
def _first_order(grad: Array) -> Array:
    """The identity; refuses to be differentiated, instead of returning a wrong 0."""
    return grad


@_first_order.defjvp
def _refuse(primals, tangents):
    del primals, tangents
    raise TypeError(
        "eventprop has first derivatives only; for higher ones use"
        " LIF(gradient=jaxsnn.analytic.analytic)."
    )


def _pull_back(
    neuron: Neuron, kernel: Array, places: Places, times: Array, mu: Array
) -> tuple[Array, Array]:
    r"""Sums :math:`\lambda_j` over samples, :math:`w_j \dot\lambda_j` over neurons.

    A loop bounds the memory, and its body compiles to one pass over its lanes, several
    times faster on a CPU than all pairs of events in one expression.

    Args:
      neuron: parameters.
      kernel: weights, ``[size, neurons]``.
      places: input events.
      times: spikes of each neuron, ``[n, batch, neurons]``.
      mu: their multipliers.

    Returns:
      Gradients of the kernel and of the times of `places`, ``[batch, places]``.
    """
    _, batch, neurons = times.shape
    count = places.time.shape[-1]
    by_source = places.source.ndim == 1

    def adjoint(
        time: Array, times: Array, mu: Array, neuron: Neuron = neuron
    ) -> tuple[Array, Array]:
        """The adjoint current at an event, and its derivative."""
        dt, after = elapsed(times, time)
        at_event = jnp.where(after, -mu * psp(neuron, dt), 0)
        return at_event, jnp.where(after, mu * psp_slope(neuron, dt), 0)

    if by_source and batch <= count and count * neurons <= 2**14:
        # Few neurons: one sample after the other, its events side by side.
        weights = places.weights(kernel)[0].T

        def sample(total: Array, each: tuple[Array, ...]) -> tuple[Array, Array]:
            time, times, mu = each
            at_event, slope = adjoint(
                time, times[..., None], mu[..., None], neuron.over(-1)
            )
            pull = jnp.sum(weights * jnp.sum(slope, axis=0), axis=0)
            return total + jnp.sum(at_event, axis=0), pull

        each = places.time, jnp.moveaxis(times, 1, 0), jnp.moveaxis(mu, 1, 0)
        start = jnp.zeros((neurons, count), mu.dtype)
        rows, pull = lax.scan(sample, start, each)
        return jnp.sum(rows.T.reshape(kernel.shape[0], -1, neurons), axis=1), pull

    # One event after the other, all neurons of all samples side by side.
    def event(time: Array) -> Array:
        return jnp.sum(adjoint(time[:, None], times, mu)[0], axis=0)

    if by_source:
        _, rows = lax.scan(
            lambda _, time: (None, jnp.sum(event(time), axis=0)), None, places.time.T
        )
        total = jnp.sum(rows.reshape(kernel.shape[0], -1, neurons), axis=1)
    else:

        def add(total: Array, place: tuple[Array, Array]) -> tuple[Array, None]:
            time, source = place
            return total.at[source].add(event(time)), None

        start = jnp.zeros(kernel.shape, mu.dtype)
        total, _ = lax.scan(add, start, (places.time.T, places.source.T))
    # Apart, so that it costs nothing where no one asks for it, as in a first layer.
    _, slope = adjoint(places.time[:, :, None], times[:, :, None], mu[:, :, None])
    return total, jnp.sum(places.weights(kernel) * jnp.sum(slope, axis=0), axis=-1)


def _multipliers(
    neuron: Neuron, record: Record, grad_times: Array, release: Array | None
) -> Array:
    r"""The multipliers :math:`\mu_s`, 0 where there is no spike.

    With a refractory period, a spike acts on the next one only: by its `release`.
    """
    spiked = record.times < NO_TIME
    grad = jnp.where(spiked, grad_times, 0)
    inverse = jnp.where(spiked, 1 / record.slope, 0)
    if grad.shape[-1] == 1:
        return grad * inverse
    jump = (neuron.v_th - neuron.v_reset) / neuron.tau_mem
    wait, both = elapsed(record.times[..., 1:], record.times[..., :-1])
    decay = jnp.where(both, jnp.exp(-wait / neuron.over(-1).tau_mem), 0)
    if release is not None:
        decay, jump = release[..., 1:], 1.0
    decay = jnp.concatenate([decay, jnp.zeros_like(decay[..., :1])], axis=-1)

    def step(later: Array, spike: tuple[Array, ...]) -> tuple[Array, Array]:
        grad, inverse, decay = spike
        own = later * decay
        mu = (grad + jump * own) * inverse
        return (mu if release is not None else own + mu), mu

    spikes = tuple(jnp.moveaxis(x, -1, 0) for x in (grad, inverse, decay))
    _, mu = lax.scan(step, jnp.zeros_like(grad[..., 0]), spikes, reverse=True)
    return jnp.moveaxis(mu, 0, -1)


def _pull_back_own(
    neuron: Neuron, recurrent: Recurrent, times: Array, mu: Array
) -> Recurrent:
    """As `_pull_back`, for the connections of the layer with itself.

    Their times are those of the layer, whose share is in `mu`; see
    `_coupled_multipliers`.
    """
    n, batch, neurons = times.shape
    delay, sum_up = jax.vjp(
        lambda delay: jnp.broadcast_to(delay, recurrent.kernel.shape), recurrent.delay
    )
    sent = jnp.moveaxis(times, -1, 0).reshape(neurons * n, batch)
    sources = (sent, jnp.repeat(delay, n, axis=0))

    def rows(response: Callable[[Neuron, Array], Array]) -> Array:
        """Sums over samples, ``[neurons, neurons]``."""

        def source(_: None, source: tuple[Array, Array]) -> tuple[None, Array]:
            sent, delay = source
            dt, after = arrived(times, sent[:, None], delay)
            return None, jnp.sum(jnp.where(after, mu * response(neuron, dt), 0), (0, 1))

        total = lax.scan(source, None, sources)[1]
        return jnp.sum(total.reshape(neurons, n, neurons), axis=1)

    # Apart, so that that of the delays costs nothing where no one asks for it.
    grad_delay = recurrent.kernel * rows(psp_slope)
    (grad_delay,) = sum_up(grad_delay.astype(recurrent.delay.dtype))
    return Recurrent(-rows(psp).astype(recurrent.kernel.dtype), grad_delay)


def _coupled_multipliers(
    neuron: Neuron,
    record: Record,
    grad_times: Array,
    release: Array | None,
    recurrent: Recurrent,
) -> Array:
    r"""The multipliers where spikes act on other neurons of the layer as well.

    Then :math:`h_s` also has what spike :math:`s` did to later ones,
    :math:`\sum_m w_{nm} \sum_{t_r > t_s + d_{nm}} \mu_r \dot k(t_r - t_s - d_{nm})`.
    All that is later is known if spikes are taken from the last to the first.
    """
    # [n, batch, neurons]: on a CPU, a short last axis takes five times as long.
    times, slope, grad = (
        jnp.moveaxis(x, -1, 0) for x in (record.times, record.slope, grad_times)
    )
    n, batch, neurons = times.shape
    rows = jnp.arange(batch)
    spiked = times < NO_TIME
    grad = jnp.where(spiked, grad, 0)
    inverse = jnp.where(spiked, 1 / slope, 0)
    delay = jnp.broadcast_to(recurrent.delay, recurrent.kernel.shape)
    tau_mem = jnp.broadcast_to(jnp.asarray(neuron.tau_mem, times.dtype), (neurons,))
    jump = jnp.broadcast_to(neuron.v_th - neuron.v_reset, (neurons,)) / tau_mem
    held = releases(neuron, record.times)
    if held is not None and release is not None:
        held, release = jnp.moveaxis(held, -1, 0), jnp.moveaxis(release, -1, 0)
    order = argsort_times(record.times.reshape(batch, neurons * n))
    total = jnp.max(jnp.sum(spiked, axis=(0, 2)), initial=0)

    def own(mu: Array, slot: Array, source: Array, sent: Array) -> Array:
        if release is not None:
            after = jnp.minimum(slot + 1, n - 1)
            next_one = mu[after, rows, source] * release[after, rows, source]
            return jnp.where(slot + 1 < n, next_one, 0)
        dt, after = arrived(times[:, rows, source], sent, 0.0)
        decay = jnp.where(after, jnp.exp(-dt / tau_mem[source]), 0)
        return jump[source] * jnp.sum(mu[:, rows, source] * decay, axis=0)

    def step(k: Array, mu: Array) -> Array:
        source, slot = jnp.divmod(order[:, total - 1 - k], n)
        here = slot, rows, source
        sent = times[here]
        pull = arrival_pull(neuron, times, sent[:, None], delay[source], held)
        pull = jnp.sum(recurrent.kernel[source] * mu * pull, axis=(0, 2))
        h = grad[here] + own(mu, slot, source, sent) + pull
        return mu.at[here].set(h * inverse[here])

    mu = lax.fori_loop(0, total, step, jnp.zeros_like(grad))
    return jnp.moveaxis(mu, 0, -1)
