"""Numbers to spike times, and back: two readings of one convention."""

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsnn.spikes import Spikes, _traced


def encode_latency(
    values: Array,
    *,
    t_early: float = 0.0,
    t_late: float,
    bias: float | None = None,
    copies: int = 1,
) -> Spikes:
    r"""Encodes each value as the latency of one spike.

    .. math:: t = t_\mathrm{early} + (t_\mathrm{late} - t_\mathrm{early})\, x

    Differentiable in the values. Source :math:`c F + f` is copy :math:`c` of feature
    :math:`f`; a bias is one feature more, whose spike never moves.

    Example::

      >>> import jax.numpy as jnp
      >>> x = jnp.array([[0.5, 0.25]])
      >>> encode_latency(x, t_late=10e-3, bias=0.0).index
      Array([[2, 1, 0]], dtype=int32)

    Args:
      values: numbers, meant for [0, 1], ``[*batch, features]``.
      t_early: spike time in seconds of the value 0.
      t_late: spike time in seconds of the value 1.
      bias: spike time in seconds of an additional source; none if left out.
      copies: sources per value, for devices whose single weights are weak.

    Raises:
      ValueError: NaN among the values, or `copies` below 1.
    """
    values = jnp.asarray(values)
    if copies < 1:
        raise ValueError(f"copies is {copies}, expected at least 1.")
    if not _traced(values) and np.isnan(np.asarray(values)).any():
        raise ValueError("values contains NaN, which has no latency.")
    times = t_early + (t_late - t_early) * values
    if bias is not None:
        pad = [(0, 0)] * (times.ndim - 1) + [(0, 1)]
        times = jnp.pad(times, pad, constant_values=bias)
    times = jnp.concatenate([times] * copies, axis=-1)
    return Spikes.from_times(times[..., None])


def first_spike_times(spikes: Spikes) -> Array:
    """First spike time of each neuron, ``inf`` if it is silent, ``[*batch, size]``."""
    return spikes.first()


def spike_counts(spikes: Spikes) -> Array:
    """Number of spikes of each neuron, int32, ``[*batch, size]``."""
    return spikes.count()
