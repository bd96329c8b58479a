r"""What makes a silent neuron fire: cures to choose, none applied unasked.

The gradient of a spike that did not happen is zero. There are four ways to put
something in its place. `jaxsnn.losses.silence_bump` is a term of the loss that pulls at
the weights of silent neurons; the others are here:

- `threshold_gap` is a loss with an exact gradient. How far the highest voltage stayed
  below the threshold is a continuous function of weights and input times, so it tells
  each weight its part. It needs a neuron that rises above rest at all.
- `pseudo_times` gives silent neurons a spike time that depends on their weights. Its
  gradient is not that of any spike.
- `bump_silent` is a step of the optimizer: silent neurons get larger weights, at a rate
  that neither clipping nor Adam's normalization changes. It always ends the silence of
  a neuron that hears anything, and knows nothing about which weight matters.
"""

import numbers
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxsnn.dynamics import Neuron, Parameter, Time
from jaxsnn.readout import Trace
from jaxsnn.spikes import NO_TIME, Spikes, _traced


def threshold_gap(
    neuron: Neuron, kernel: Array, inputs: Spikes, until: Time = NO_TIME
) -> Array:
    r"""How far the voltage of each neuron stayed below its threshold: a loss.

    .. math:: g = \left(\frac{v_\mathrm{th} - \max_{t < T} V(t)}
        {v_\mathrm{th} - v_\mathrm{leak}}\right)_+

    with :math:`V` the voltage without a threshold, from rest. The gap is 1 if that
    never rises above rest, shrinks continuously to 0 where the first spike appears, and
    is 0 for a neuron that fires: unlike spike times, it knows how near a silent neuron
    is to firing. Its gradient is exact, by the kernel, the input times and the neuron's
    arrays: at a peak :math:`\dot V = 0`, so that it does not matter how the peak moves
    (the envelope theorem), and

    .. math:: \frac{\partial g}{\partial w_j} =
        -\frac{k(t^* - t_j)}{v_\mathrm{th} - v_\mathrm{leak}} .

    A neuron that never rose above rest has a gradient of 0, and needs a bump instead.
    First derivatives only, as in `Trace.maximum`.

    Its mean over a batch asks every neuron to fire in every sample. To ask for one
    sample only, take the least over the batch first: ``gap.min(axis=0).sum()``.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> from jaxsnn import Spikes
      >>> from jaxsnn.dynamics import Neuron
      >>> inputs = Spikes.from_times(jnp.array([[[1e-3]]]))
      >>> kernel = jnp.array([[1.0, 3.0, 5.0, -1.0]])  # The third one fires.
      >>> print(threshold_gap(Neuron(10e-3, 5e-3), kernel, inputs))  # k peaks at 1/4.
      [[0.75 0.25 0.   1.  ]]
      >>> loss = lambda kernel: threshold_gap(Neuron(10e-3, 5e-3), kernel, inputs).sum()
      >>> print(jax.grad(loss)(kernel)[0, :2])
      [-0.25 -0.25]

    Args:
      neuron: parameters, such as ``layer.neuron`` of a `LIF`.
      kernel: its weights, ``[inputs.size, neurons]``.
      inputs: what the layer heard, ``[*batch, slots]``. Of a layer inside of a network,
        that is what the layer before sowed: ``apply(..., mutable=["intermediates"])``
        and ``state["intermediates"][name]["spikes"][0]``.
      until: end of the window in seconds.

    Returns:
      The gap, ``[*batch, neurons]``, from 0 to 1.

    Raises:
      ValueError: a neuron that rests at its threshold or above.
    """
    return _gap(neuron, Trace(neuron, kernel, inputs, until).maximum().value)


def pseudo_times(
    times: Array,
    neuron: Neuron,
    kernel: Array,
    inputs: Spikes,
    *,
    tau: float,
    t_silent: Time | None = None,
    until: Time = NO_TIME,
) -> Array:
    r"""Gives silent neurons the spike time that a fixed slope would lead to.

    .. math:: t = t_0 + \tau g, \qquad
        \frac{\partial t}{\partial w_j} = -\frac{k(t^* - t_j)}{\dot V_0}, \qquad
        \dot V_0 = \frac{v_\mathrm{th} - v_\mathrm{leak}}{\tau}

    with :math:`g` of `threshold_gap` and :math:`t^*` the time of the highest voltage.
    The gradient is that of a spike at :math:`t^*` whose voltage crosses the threshold
    with slope :math:`\dot V_0`, which no spike has: it is a choice, not exact, and
    `tau` is its size. By default :math:`t_0 = t^*`, so that the time is continuous
    where a grazing spike appears, but the way in which :math:`t^*` depends on the
    weights is left out of the gradient. With `t_silent` all pseudo-spikes come after
    it, so that they never win against a spike, and the gradient is that of the value.

    A neuron that never rose above rest stays silent. Spikes pass through unchanged. Use
    it in a loss and not in a prediction, and give the loss a ``t_silent`` of its own
    that is later, by at least `tau`: what is later than that has no gradient.

    Pseudo-spikes that make the spike times of a silent neuron depend on its weights go
    back to `Klos & Memmesheimer <https://arxiv.org/abs/2309.14523>`_
    (2023), who mainly use other neurons, for which the result is smooth.

    Example::

      >>> import jax.numpy as jnp
      >>> from jaxsnn import Spikes
      >>> from jaxsnn.dynamics import Neuron
      >>> inputs = Spikes.from_times(jnp.array([[[0.0]]]))
      >>> neuron, kernel = Neuron(10e-3, 5e-3), jnp.array([[3.0, -1.0]])
      >>> silent = jnp.array([[jnp.inf, jnp.inf]])
      >>> times = pseudo_times(
      ...     silent, neuron, kernel, inputs, tau=10e-3, t_silent=50e-3
      ... )
      >>> print(jnp.round(times * 1e3, 1))  # ms
      [[52.5  inf]]

    Args:
      times: first spike times in seconds, ``inf`` for silence, ``[*batch, neurons]``.
      neuron: parameters of the layer.
      kernel: its weights, ``[inputs.size, neurons]``.
      inputs: what the layer heard, ``[*batch, slots]``.
      tau: delay in seconds of a pseudo-spike per unit of gap.
      t_silent: time in seconds after which pseudo-spikes come; by default the peak of
        each neuron.
      until: end of the window in seconds.

    Returns:
      Spike times, ``[*batch, neurons]``.

    Raises:
      ValueError: `tau` that is not positive, times of another shape, or a neuron that
        rests at its threshold or above.
    """
    if not _traced(tau) and not tau > 0:
        raise ValueError(f"tau is {tau}, expected a positive time, such as 10e-3.")
    shape = (*inputs.time.shape[:-1], kernel.shape[1])
    if times.shape != shape:
        raise ValueError(
            f"times has shape {times.shape}, expected first spike times {shape}, as"
            " jaxsnn.coding.first_spike_times gives them."
        )
    value, peak = Trace(neuron, kernel, inputs, until).maximum()
    gap = _gap(neuron, value)
    start = peak if t_silent is None else t_silent
    heard = value > neuron.v_leak
    return jnp.where((times == NO_TIME) & heard, start + tau * gap, times)


def bump_silent(
    rate: float, *, fraction: float = 0.0
) -> optax.GradientTransformationExtraArgs:
    r"""Lifts the weights of silent neurons after the optimizer's own step.

    .. math:: w_{jn} \leftarrow w_{jn} + \eta \text{ for all } j \text{, if } p_n > f

    with :math:`p_n` the fraction of samples in which neuron :math:`n` was silent. The
    same direction as that of `jaxsnn.losses.silence_bump`, which a loss adds to its
    gradient; that goes through clipping, momentum and normalization, so that under
    Adam it competes with the rest of the loss for one step size. Here, last in a
    chain, the step is `rate`, in units of the weights, and it ends at once with the
    silence. Not a gradient of anything (Goeltz et al., `Fast and energy-efficient
    neuromorphic deep learning <https://doi.org/10.1038/s42256-021-00388-x>`_, 2021).

    Every weight is lifted, also inhibitory ones, those of inputs that do not spike, and
    those of a layer whose input layer is silent; see `jaxsnn.silence.why_silent`.

    Example::

      >>> import jax, jax.numpy as jnp, optax
      >>> params = {"hidden": {"kernel": jnp.zeros((1, 3))}}
      >>> tx = optax.chain(optax.adam(1e-3), bump_silent(0.5, fraction=0.9))
      >>> counts = {"hidden": jnp.array([[0, 2, 0], [0, 0, 0]])}  # [batch, neurons]
      >>> grads = jax.tree.map(jnp.zeros_like, params)
      >>> updates, _ = tx.update(grads, tx.init(params), params, counts=counts)
      >>> print(updates["hidden"]["kernel"])
      [[0.5 0.  0.5]]

    Args:
      rate: what is added to each weight of a silent neuron in a step.
      fraction: of the samples in which a neuron may be silent without being lifted,
        from 0 to below 1. The default asks every neuron to fire in every sample.

    Returns:
      A transformation whose ``update`` takes a keyword ``counts``: spikes by layer,
      ``{name: [*batch, neurons]}``, for the layers that are to be lifted, such as
      ``{name: state["count"] for name, state in events.items()}``. A layer inside of
      other modules is named by its path, ``"encoder/hidden"``.

    Raises:
      ValueError: `rate` or `fraction` out of range; in ``update``, `counts` that is
        missing, names no layer, or is for another number of neurons.
    """
    if not (isinstance(rate, numbers.Real) and rate >= 0):
        raise ValueError(f"rate is {rate!r}, expected a number, 0 or more.")
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction is {fraction}, expected a number in [0, 1).")

    def init(params: Any) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(
        updates: Any,
        state: optax.EmptyState,
        params: Any = None,
        *,
        counts: Mapping[str, Array] | None = None,
        **others: Any,
    ) -> tuple[Any, optax.EmptyState]:
        del params, others
        if counts is None:
            raise ValueError(
                "bump_silent needs the spikes of the step: tx.update(grads, state,"
                ' params, counts={"hidden": events["hidden"]["count"]}).'
            )
        leaves, structure = jax.tree_util.tree_flatten_with_path(updates)
        kernels = {}
        for place, (path, _) in enumerate(leaves):
            *layer, name = (_key(part) for part in path)
            if name == "kernel":
                layer = layer[1:] if layer[:1] == ["params"] else layer
                kernels["/".join(layer) or "LIF"] = place
        values = [value for _, value in leaves]
        for name, count in counts.items():
            if name not in kernels:
                raise ValueError(
                    f"counts names '{name}', which has no kernel; expected some of"
                    f" {sorted(kernels)}."
                )
            values[kernels[name]] += lift(name, count, values[kernels[name]])
        return structure.unflatten(values), state

    def lift(name: str, count: Array, kernel: Array) -> Array:
        if jnp.shape(count)[-1:] != kernel.shape[-1:]:
            raise ValueError(
                f"counts['{name}'] has shape {jnp.shape(count)}, expected [*batch,"
                f" {kernel.shape[-1]}]."
            )
        silent = (count == 0).reshape(-1, kernel.shape[-1])
        often = jnp.sum(silent, axis=0) > fraction * silent.shape[0]
        return jnp.where(often, rate, 0).astype(kernel.dtype)

    return optax.GradientTransformationExtraArgs(init, update)


def distance(neuron: Neuron) -> Parameter:
    """From rest to the threshold, which has to be above, as far as that is known.

    Raises:
      ValueError: it is not.
    """
    above = neuron.v_th - neuron.v_leak
    if not _traced(above) and not (np.asarray(above) > 0).all():
        raise ValueError(
            f"v_leak is {neuron.v_leak} and v_th is {neuron.v_th}; a neuron that rests"
            " at its threshold or above fires without input, so how far it stays below"
            " says nothing."
        )
    return above


def _gap(neuron: Neuron, highest: Array) -> Array:
    return jax.nn.relu((neuron.v_th - highest) / distance(neuron))


def _key(part: Any) -> str:
    """Name of one step of a path, in a dict or an object."""
    return str(getattr(part, "key", getattr(part, "name", part)))
