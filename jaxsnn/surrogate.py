r"""Surrogate gradients: a threshold with a derivative that it does not have.

On a time grid a spike is :math:`\Theta(x)` of the voltage above threshold,
:math:`x = V - v_\mathrm{th}`, whose derivative is zero wherever it exists. A surrogate
gradient puts a bump :math:`h(x)` in its place, in the backward pass only:

.. math::
    \Theta(x) = \begin{cases} 1 & x > 0 \\ 0 & x \le 0 \end{cases}, \qquad
    \mathrm{d}\Theta := h(x)\, \mathrm{d}x .

That is a heuristic, not a gradient of the loss: descending along it usually helps, and
nothing more is promised. All bumps here are scaled to :math:`h(0) = 1`, so that they
differ in shape but not in strength, and get narrower as :math:`\beta` grows. Neftci,
Mostafa & Zenke, `Surrogate gradient learning in spiking neural networks
<https://doi.org/10.1109/MSP.2019.2931595>`_ (2019), review the idea; Zenke & Vogels,
`The remarkable robustness of surrogate gradient learning
<https://doi.org/10.1162/neco_a_01367>`_ (2021), compare these three shapes.
"""

import functools
import math
import numbers
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

Surrogate = Callable[[Array], Array]


def superspike(beta: float = 10.0) -> Surrogate:
    r"""A threshold with the derivative of a fast sigmoid.

    .. math:: h(x) = \frac{1}{(1 + \beta |x|)^2}

    Its tails reach far, so that neurons well below threshold learn too. Zenke &
    Ganguli, `SuperSpike <https://doi.org/10.1162/neco_a_01086>`_ (2018).

    Example::

      >>> import jax, jax.numpy as jnp
      >>> spike = superspike(beta=10.0)
      >>> spike(jnp.array([-0.1, 0.0, 0.1]))
      Array([0., 0., 1.], dtype=float32)
      >>> print(jax.grad(spike)(-0.1))
      0.25

    Args:
      beta: sharpness, per unit of voltage.

    Raises:
      ValueError: `beta` is not a positive number.
    """
    return _threshold(_superspike, _checked(beta))


def sigmoid(beta: float = 10.0) -> Surrogate:
    r"""A threshold with the derivative of the logistic function :math:`\sigma`.

    .. math:: h(x) = 4\, \sigma(\beta x)\, (1 - \sigma(\beta x))

    Its tails fall off exponentially. The factor 4 makes :math:`h(0) = 1`. Zenke &
    Vogels (2021).

    Args:
      beta: sharpness, per unit of voltage.

    Raises:
      ValueError: `beta` is not a positive number.
    """
    return _threshold(_sigmoid, _checked(beta))


def triangular(beta: float = 1.0) -> Surrogate:
    r"""A threshold with a piecewise linear derivative.

    .. math:: h(x) = \max(0, 1 - \beta |x|)

    Neurons further than :math:`1 / \beta` from threshold get no gradient at all. Esser
    et al., `Convolutional networks for fast, energy-efficient neuromorphic computing
    <https://doi.org/10.1073/pnas.1604850113>`_ (2016).

    Args:
      beta: sharpness, per unit of voltage.

    Raises:
      ValueError: `beta` is not a positive number.
    """
    return _threshold(_triangular, _checked(beta))


def _superspike(beta: float, x: Array) -> Array:
    return 1 / (1 + beta * jnp.abs(x)) ** 2


def _sigmoid(beta: float, x: Array) -> Array:
    # The product of both tails: 1 - sigmoid(x) would cancel where x is large.
    return 4 * jax.nn.sigmoid(beta * x) * jax.nn.sigmoid(-beta * x)


def _triangular(beta: float, x: Array) -> Array:
    return jnp.maximum(0, 1 - beta * jnp.abs(x))


# Equal surrogates are one object, so that modules that hold them compare equal and
# `jax.jit` does not compile them twice.
@functools.cache
def _threshold(bump: Callable[[float, Array], Array], beta: float) -> Surrogate:
    @jax.custom_jvp
    def spike(x: Array) -> Array:
        return jnp.asarray(x > 0, jnp.result_type(x))

    @spike.defjvp
    def spike_jvp(primals, tangents):
        (x,), (dx,) = primals, tangents
        return spike(x), bump(beta, x) * dx

    return spike


def _checked(beta: float) -> float:
    if not isinstance(beta, numbers.Real) or not 0 < beta < math.inf:
        raise ValueError(
            f"beta is {beta!r}, expected a positive number, such as 10.0; it is the"
            " sharpness of the surrogate per unit of voltage."
        )
    return float(beta)
