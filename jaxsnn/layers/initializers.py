"""Initial weights that make spiking neurons fire."""

import jax
import jax.numpy as jnp
from flax import linen as nn


def spread_normal(total: float, spread: float) -> nn.initializers.Initializer:
    r"""Normal weights whose sum over the inputs has a given mean and deviation.

    .. math:: w \sim \mathcal{N}(m / n, s^2 / n)

    for :math:`n` inputs, so that the summed drive of a neuron is
    :math:`\mathcal{N}(m, s^2)` whatever their number. A threshold unit has to add up
    something: unlike an initializer of zero mean, this one can make neurons fire.

    Args:
      total: mean :math:`m` of the sum of a neuron's weights, in units of voltage.
      spread: standard deviation :math:`s` of that sum.
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
        n = shape[0]
        noise = jax.random.normal(key, shape, dtype)
        return (total / n + spread / n**0.5 * noise).astype(dtype)

    return init
