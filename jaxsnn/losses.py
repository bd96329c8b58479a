r"""Losses on first-spike times, each with a defined value and gradient for silence.

A silent output has no spike time. Every loss here reads it as a spike at `t_silent`,
a constant: the value is defined, its gradient is zero. What makes a silent neuron fire
again is a choice of its own, `silence_bump`.
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxsnn.spikes import NO_TIME


def ttfs_cross_entropy(
    times: Array, labels: Array, *, tau: float, t_silent: float
) -> Array:
    r"""Cross entropy of the softmax over negative first-spike times.

    .. math:: L = -\log \frac{e^{-t_c / \tau}}{\sum_j e^{-t_j / \tau}}

    It falls as the label's neuron fires earlier and the others later. Goeltz et al.,
    `Fast and energy-efficient neuromorphic deep learning with first-spike times
    <https://doi.org/10.1038/s42256-021-00388-x>`_, Nat. Mach. Intell. 3 (2021), eq. 3.

    Example::

      >>> import jax.numpy as jnp
      >>> times = jnp.array([[8e-3, jnp.inf, 9e-3]])
      >>> loss = ttfs_cross_entropy(times, jnp.array([0]), tau=1e-3, t_silent=20e-3)
      >>> print(f"{loss[0]:.4f}")  # log(1 + 1 / e)
      0.3133

    Args:
      times: first spike times in seconds, ``inf`` for silence, ``[*batch, classes]``.
      labels: index of the right class, ``[*batch]``.
      tau: time in seconds by which a spike must lead to be e times as probable.
      t_silent: spike time in seconds that stands for silence; also bounds `times`.

    Returns:
      The loss of each example, ``[*batch]``.
    """
    logits = -_heard(times, t_silent) / tau
    picked = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


def ttfs_mse(
    times: Array,
    labels: Array,
    *,
    t_correct: float,
    t_wrong: float,
    tau: float,
    t_silent: float,
) -> Array:
    r"""Squared distance of first-spike times to a target time per class.

    .. math:: L = \sum_j \left(\frac{t_j - t^*_j}{\tau}\right)^2, \qquad
        t^*_j = t_\mathrm{correct} \text{ if } j = c, \text{ else } t_\mathrm{wrong}

    Mueller et al., `jaxsnn: Event-driven Gradient Estimation for Analog Neuromorphic
    Hardware <https://arxiv.org/abs/2401.16841>`_ (2024).

    Args:
      times: first spike times in seconds, ``inf`` for silence, ``[*batch, classes]``.
      labels: index of the right class, ``[*batch]``.
      t_correct: target time in seconds of the label's neuron.
      t_wrong: target time in seconds of the other neurons.
      tau: unit in which distances are counted, in seconds.
      t_silent: spike time in seconds that stands for silence; also bounds `times`.

    Returns:
      The loss of each example, ``[*batch]``.
    """
    correct = jax.nn.one_hot(labels, times.shape[-1], dtype=jnp.bool_)
    target = jnp.where(correct, t_correct, t_wrong)
    return jnp.sum(((_heard(times, t_silent) - target) / tau) ** 2, axis=-1)


def earliness(times: Array, labels: Array, *, tau: float, t_silent: float) -> Array:
    r"""Penalty on a late spike of the right neuron, to add to a cross entropy.

    .. math:: L = e^{t_c / \tau} - 1

    A cross entropy sees differences of times only, so that all outputs may drift late
    together, until they cease. Goeltz et al. (2021), eq. 3, second term.

    Args:
      times: first spike times in seconds, ``inf`` for silence, ``[*batch, classes]``.
      labels: index of the right class, ``[*batch]``.
      tau: time constant in seconds.
      t_silent: spike time in seconds that stands for silence; also bounds `times`.

    Returns:
      The penalty of each example, ``[*batch]``.
    """
    picked = jnp.take_along_axis(times, labels[..., None], axis=-1)[..., 0]
    return jnp.expm1(_heard(picked, t_silent) / tau)


def silence_bump(kernel: Array, counts: Array) -> Array:
    r"""Lifts the weights of silent neurons: add it to a loss, times a small rate.

    .. math:: L = -\sum_n p_n \sum_j w_{jn}

    with :math:`p_n` the fraction of samples in which neuron :math:`n` was silent. Its
    gradient is :math:`-p_n` for every weight of the neuron, the cure known as weight
    bumping (Goeltz et al. 2021, supplement). It is not the gradient of any spike, so
    it is never added unasked.

    Args:
      kernel: weights of a layer, ``[inputs, neurons]``.
      counts: spikes of its neurons, ``[batch, neurons]``.

    Returns:
      A scalar.
    """
    silent = jnp.mean((counts == 0).astype(kernel.dtype), axis=0)
    return -jnp.sum(silent * jnp.sum(kernel, axis=0))


def _heard(times: Array, t_silent: float) -> Array:
    """Spike times up to `t_silent`, at which the silent and the late are put."""
    return jnp.where(times < t_silent, jnp.where(times < NO_TIME, times, 0), t_silent)
