r"""Losses on spike times and voltages, each with a defined value for silence.

A silent output has no spike time. Every loss on first spikes reads it as a spike at
`t_silent`, a constant: the value is defined, its gradient is zero. What makes a silent
neuron fire again is a choice of its own, `silence_bump` or `rate_bump`.
"""

import jax
import jax.numpy as jnp
import optax
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


def first_spike_band(times: Array, *, early: float, late: float, tau: float) -> Array:
    r"""Penalty on first spikes outside of a band of time, to add to a loss.

    .. math:: L = \frac{1}{N} \sum_n \left[
        \left(\frac{t_\mathrm{early} - t_n}{\tau}\right)_+^2
        + \left(\frac{t_n - t_\mathrm{late}}{\tau}\right)_+^2 \right]

    It keeps a layer from answering before it has heard enough, and from drifting late
    until it ceases. A silent neuron contributes nothing; `silence_bump` is for those.

    Args:
      times: first spike times in seconds, ``inf`` for silence, ``[*batch, neurons]``.
      early: earliest spike time in seconds that costs nothing.
      late: latest spike time in seconds that costs nothing.
      tau: unit in which distances are counted, in seconds.

    Returns:
      The penalty of each example, ``[*batch]``.
    """
    spiked = times < NO_TIME
    times = jnp.where(spiked, times, early)
    off = jax.nn.relu(early - times) + jax.nn.relu(times - late)
    return jnp.mean(jnp.where(spiked, off / tau, 0) ** 2, axis=-1)


def mot_cross_entropy(maxima: Array, labels: Array, *, scale: float = 1.0) -> Array:
    r"""Cross entropy of the softmax over the maxima of voltages over time.

    .. math:: L = -\log \frac{e^{\beta \hat V_c}}{\sum_j e^{\beta \hat V_j}}, \qquad
        \hat V_j = \max_t V_j(t)

    Cramer et al., `The Heidelberg Spiking Data Sets for the Systematic Evaluation of
    Spiking Neural Networks <https://doi.org/10.1109/TNNLS.2020.3044364>`_ (2020).

    Example::

      >>> import jax.numpy as jnp
      >>> loss = mot_cross_entropy(jnp.array([[2.0, 1.0]]), jnp.array([0]))
      >>> print(f"{loss[0]:.4f}")  # log(1 + 1 / e)
      0.3133

    Args:
      maxima: of `jaxsnn.readout.Trace.maximum`, ``[*batch, classes]``.
      labels: index of the right class, ``[*batch]``.
      scale: :math:`\beta`, the inverse of the voltage by which a neuron must lead to be
        e times as probable.

    Returns:
      The loss of each example, ``[*batch]``.
    """
    return optax.softmax_cross_entropy_with_integer_labels(scale * maxima, labels)


def soft_counts(times: Array, *, until: float, tau: float) -> Array:
    r"""Spike counts with a gradient: spikes near the end count in part.

    .. math:: n = \sum_s \sigma\left(\frac{T - t_s}{\tau}\right)

    A count of exact spikes is a step function of the weights, and its gradient is zero
    wherever it exists. Here a spike counts the less the later it is, so that pulling
    spikes into the window raises the count. That is a different function from the
    count: it approaches it as `tau` goes to 0, and its gradient vanishes with that. A
    spike that does not exist has no time to pull: see `rate_bump`.

    Example::

      >>> import jax.numpy as jnp
      >>> times = jnp.array([[1e-3, 10e-3, jnp.inf]])
      >>> print(soft_counts(times, until=10e-3, tau=0.1e-3))
      [1.5]

    Args:
      times: spike times in seconds, ``inf`` for none, ``[*batch, neurons, n]``, from
        `Spikes.times`.
      until: time in seconds at which a spike counts one half.
      tau: width of the soft end in seconds.

    Returns:
      The counts, ``[*batch, neurons]``.
    """
    spiked = times < NO_TIME
    early = (until - jnp.where(spiked, times, 0)) / tau
    return jnp.sum(jnp.where(spiked, jax.nn.sigmoid(early), 0), axis=-1)


def count_cross_entropy(
    times: Array, labels: Array, *, until: float, tau: float, scale: float = 1.0
) -> Array:
    """Cross entropy of the softmax over `soft_counts`.

    Args:
      times: spike times in seconds, ``inf`` for none, ``[*batch, classes, n]``.
      labels: index of the right class, ``[*batch]``.
      until: see `soft_counts`.
      tau: see `soft_counts`.
      scale: logits per spike.

    Returns:
      The loss of each example, ``[*batch]``.
    """
    counts = soft_counts(times, until=until, tau=tau)
    return optax.softmax_cross_entropy_with_integer_labels(scale * counts, labels)


def count_mse(
    times: Array,
    labels: Array,
    *,
    correct: float,
    wrong: float,
    until: float,
    tau: float,
) -> Array:
    r"""Squared distance of `soft_counts` to a target count per class.

    .. math:: L = \sum_j (n_j - n^*_j)^2, \qquad
        n^*_j = n_\mathrm{correct} \text{ if } j = c, \text{ else } n_\mathrm{wrong}

    Args:
      times: spike times in seconds, ``inf`` for none, ``[*batch, classes, n]``.
      labels: index of the right class, ``[*batch]``.
      correct: target count of the label's neuron.
      wrong: target count of the other neurons.
      until: see `soft_counts`.
      tau: see `soft_counts`.

    Returns:
      The loss of each example, ``[*batch]``.
    """
    counts = soft_counts(times, until=until, tau=tau)
    right = jax.nn.one_hot(labels, counts.shape[-1], dtype=jnp.bool_)
    target = jnp.where(right, correct, wrong).astype(counts.dtype)
    return jnp.sum(optax.squared_error(counts, target), axis=-1)


def van_rossum(times: Array, targets: Array, *, tau: float) -> Array:
    r"""Squared van Rossum distance of spike trains to target spike trains.

    .. math:: D^2 = \frac{1}{\tau} \int_{-\infty}^\infty (f - g)^2\,dt
        = \tfrac12 \sum_{i,j} e^{-|t_i - t_j|/\tau}
        + \tfrac12 \sum_{k,l} e^{-|u_k - u_l|/\tau}
        - \sum_{i,k} e^{-|t_i - u_k|/\tau}

    with :math:`f(t) = \sum_{t_i \le t} e^{-(t - t_i)/\tau}` and :math:`g` the same of
    the targets: no time grid. A spike too many costs 1/2. Where two spikes coincide the
    distance has a kink, and they do not pull at each other.

    van Rossum, `A novel spike distance <https://doi.org/10.1162/089976601300014321>`_,
    Neural Computation 13 (2001).

    Example::

      >>> import jax.numpy as jnp
      >>> spike, silence = jnp.array([[5e-3]]), jnp.array([[jnp.inf]])
      >>> print(van_rossum(spike, silence, tau=10e-3))
      [0.5]

    Args:
      times: spike times in seconds, ``inf`` for none, ``[*batch, neurons, n]``.
      targets: the same, ``[*batch, neurons, m]``.
      tau: time constant of the comparison in seconds: short ones compare times, long
        ones counts.

    Returns:
      The squared distance of each neuron, ``[*batch, neurons]``.
    """
    spikes = jnp.concatenate([times, targets], axis=-1)
    sign = jnp.concatenate([jnp.ones_like(times), -jnp.ones_like(targets)], axis=-1)
    spiked = spikes < NO_TIME
    sign = jnp.where(spiked, sign, 0)
    spikes = jnp.where(spiked, spikes, 0)
    gap = jnp.abs(spikes[..., :, None] - spikes[..., None, :])
    total = jnp.einsum("...i,...ij,...j->...", sign, jnp.exp(-gap / tau), sign)
    return 0.5 * total


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
    return rate_bump(kernel, counts, low=1)


def rate_bump(
    kernel: Array, counts: Array, *, low: float = 0, high: float = float("inf")
) -> Array:
    r"""Lifts the weights of neurons that fire too little, lowers those of the others.

    .. math:: L = \sum_n (q_n - p_n) \sum_j w_{jn}

    with :math:`p_n` the fraction of samples in which neuron :math:`n` fired less than
    `low` times, and :math:`q_n` more than `high` times. It generalizes `silence_bump`,
    and like that is not the gradient of any spike: exact spike times cannot tell how
    far a spike that did not happen was from happening, nor how to undo one. It tells
    all weights of a neuron alike which way to go, so it is never added unasked.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> counts = jnp.array([[0, 2, 9]])
      >>> jax.grad(rate_bump)(jnp.zeros((1, 3)), counts, low=1, high=5)
      Array([[-1.,  0.,  1.]], dtype=float32)

    Args:
      kernel: weights of a layer, ``[inputs, neurons]``.
      counts: spikes of its neurons, ``[batch, neurons]``.
      low: spikes in a window that are enough.
      high: spikes in a window that are not too many.

    Returns:
      A scalar.

    Raises:
      ValueError: `low` above `high`.
    """
    if low > high:
        raise ValueError(f"low is {low} and high is {high}; low must not exceed high.")
    below = jnp.mean((counts < low).astype(kernel.dtype), axis=0)
    above = jnp.mean((counts > high).astype(kernel.dtype), axis=0)
    return jnp.sum((above - below) * jnp.sum(kernel, axis=0))


def _heard(times: Array, t_silent: float) -> Array:
    """Spike times up to `t_silent`, at which the silent and the late are put."""
    return jnp.where(times < t_silent, jnp.where(times < NO_TIME, times, 0), t_silent)
