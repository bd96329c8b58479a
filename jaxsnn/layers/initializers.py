"""Initial weights that make spiking neurons fire."""

import math
import statistics

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxsnn.dynamics import Neuron
from jaxsnn.spikes import _traced


def spread_normal(
    total: float | np.ndarray, spread: float | np.ndarray
) -> nn.initializers.Initializer:
    r"""Normal weights whose sum over the inputs has a given mean and deviation.

    .. math:: w \sim \mathcal{N}(m / n, s^2 / n)

    for :math:`n` inputs, so that the summed drive of a neuron is
    :math:`\mathcal{N}(m, s^2)` whatever their number. A threshold unit has to add up
    something: unlike an initializer of zero mean, this one can make neurons fire.

    Args:
      total: mean :math:`m` of the sum of a neuron's weights, in units of voltage; one
        number, or one for each neuron.
      spread: standard deviation :math:`s` of that sum.
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
        n = shape[0]
        noise = jax.random.normal(key, shape, dtype)
        return (total / n + spread / n**0.5 * noise).astype(dtype)

    return init


def fluctuation_normal(
    neuron: Neuron, *, rate: float, mean: float = 0.0, xi: float = 1.0
) -> nn.initializers.Initializer:
    r"""Normal weights that put the fluctuating voltage a given way below threshold.

    For :math:`n` inputs that are independent Poisson processes of rate :math:`\nu`,
    Campbell's theorem gives mean and variance in time of the voltage without a
    threshold,

    .. math::
        \mu_V = n \nu \mu_w \int k\,dt, \qquad
        \sigma_V^2 = n \nu (\sigma_w^2 + \mu_w^2) \int k^2\,dt,

    above rest, where for every ratio of the time constants

    .. math::
        \int_0^\infty k\,dt = \tau_s, \qquad
        \int_0^\infty k^2\,dt = \frac{\tau_s^2}{2 (\tau_m + \tau_s)}.

    The weights :math:`w \sim \mathcal{N}(\mu_w, \sigma_w^2)` solve this for
    :math:`\mu_V` = `mean` and a threshold that lies :math:`\xi` standard deviations
    higher, :math:`\sigma_V = (v_\mathrm{th} - v_\mathrm{leak} - \mu_V) / \xi`.

    Promised are :math:`\mu_V` and :math:`\sigma_V^2` in the mean over neurons, once a
    run is a few time constants old. Nothing is said of the rate of the neuron's own
    spikes: `xi` of 1 to 3 makes them rare and irregular. For runs with a few spikes per
    neuron there is `first_spike_normal`.

    Rossbroich, Gygax & Zenke, `Fluctuation-driven initialization for spiking neural
    network training <https://doi.org/10.1088/2634-4386/ac97bb>`_ (2022).

    Example::

      >>> import jax
      >>> from jaxsnn.dynamics import Neuron
      >>> from jaxsnn.layers import LIF
      >>> from jaxsnn.layers.initializers import fluctuation_normal
      >>> neuron = Neuron(tau_mem=20e-3, tau_syn=5e-3)
      >>> init = fluctuation_normal(neuron, rate=10.0, xi=2.0)  # Hz
      >>> layer = LIF(30, tau_mem=20e-3, tau_syn=5e-3, max_spikes=20, kernel_init=init)
      >>> init(jax.random.key(0), (200, 30)).shape
      (200, 30)

    Args:
      neuron: parameters of the layer; arrays give each neuron its own weights.
      rate: :math:`\nu`, spikes per second of each input. Of inputs with :math:`N`
        spikes in a window of length :math:`T`, :math:`N / T`.
      mean: :math:`\mu_V`, in the unit of the weights, above rest and below threshold.
      xi: :math:`\xi`, from mean to threshold in standard deviations.

    Raises:
      ValueError: an argument out of range, a neuron that rests at its threshold; from
        the initializer, so few input spikes that weights of that mean alone make the
        voltage fluctuate more.
    """
    _check_positive("rate", rate, "a rate in hertz, such as 10.0")
    _check_positive("xi", xi, "a number, such as 1.0")
    height = _height(neuron)
    if not (mean < height).all():
        raise ValueError(
            f"mean is {mean} and the threshold {height} above rest; the mean must be"
            " below it."
        )
    tau_mem, tau_syn = np.asarray(neuron.tau_mem), np.asarray(neuron.tau_syn)
    area, square = tau_syn, tau_syn**2 / (2 * (tau_mem + tau_syn))

    def init(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
        n = shape[0]
        weight = mean / (n * rate * area)
        variance = ((height - mean) / xi) ** 2 / (n * rate * square) - weight**2
        if not (variance >= 0).all():
            needed = np.max((mean * xi / (height - mean) / area) ** 2 * square)
            raise ValueError(
                f"{n} inputs of rate {rate} make {n * rate:g} spikes per second, too"
                f" few for mean={mean} with xi={xi}: that needs {needed:.4g} at least."
                " Lower the mean, or xi."
            )
        total, spread = n * weight, np.sqrt(n * variance)
        return spread_normal(total, spread)(key, shape, dtype)

    return init


def first_spike_normal(
    neuron: Neuron,
    *,
    t_early: float = 0.0,
    t_late: float,
    until: float | None = None,
    fraction: float = 0.5,
    active: float = 1.0,
    spread: float = 0.24,
) -> nn.initializers.Initializer:
    r"""`spread_normal` with a total that makes a given fraction of the neurons fire.

    Each of :math:`n` inputs spikes once, with probability :math:`a`, at a time that is
    uniform between `t_early` and `t_late`. With weights of `spread_normal`,
    :math:`s = c\,m`, the voltage above rest at a time :math:`t` is a sum of :math:`n`
    independent terms, so about normal over neurons and samples, with

    .. math::
        \mu(t) = m\, a K_1, \qquad
        \sigma^2(t) = m^2 \left[\left(c^2 + \tfrac1n\right) a K_2
            - \tfrac1n a^2 K_1^2\right], \qquad
        K_p(t) = \frac{1}{t_\mathrm{late} - t_\mathrm{early}}
            \int_{t_\mathrm{early}}^{t_\mathrm{late}} k^p(t - u)\,du .

    Both scale with :math:`m`. That is chosen such that at the best time before `until`
    the fraction :math:`f` is above threshold,

    .. math:: m = \frac{v_\mathrm{th} - v_\mathrm{leak}}
        {\max_t \left(\mu(t) - z_f\, \sigma(t)\right) / m}, \qquad \Phi(z_f) = f.

    Whoever is above threshold at one time has fired by then, and some fire who are
    above it at other times only: up to the normal approximation, `fraction` is a lower
    bound on the neurons that fire. It is close for small `spread`.

    Example::

      >>> import jax
      >>> from jaxsnn.dynamics import Neuron
      >>> from jaxsnn.layers import LIF
      >>> from jaxsnn.layers.initializers import first_spike_normal
      >>> init = first_spike_normal(Neuron(10e-3, 5e-3), t_late=10e-3, fraction=0.8)
      >>> layer = LIF(30, tau_mem=10e-3, tau_syn=5e-3, kernel_init=init)
      >>> init(jax.random.key(0), (5, 30)).shape
      (5, 30)

    Args:
      neuron: parameters of the layer; arrays give each neuron its own weights.
      t_early: earliest input spike in seconds.
      t_late: latest input spike in seconds.
      until: end of the window in seconds; none if left out.
      fraction: :math:`f`, of neurons times samples that shall fire, between 0 and 1.
      active: :math:`a`, the fraction of inputs that spike, such as the `fraction` of
        the layer before.
      spread: :math:`c`, deviation of a neuron's summed weights relative to their mean.

    Raises:
      ValueError: an argument out of range, a neuron that rests at its threshold; from
        the initializer, a `fraction` that weights of that `spread` never reach.
    """
    if not t_early < t_late < math.inf:
        raise ValueError(
            f"t_early is {t_early} and t_late is {t_late}, expected times in seconds in"
            " that order."
        )
    if until is not None and not until > t_early:
        raise ValueError(
            f"until is {until}, expected a time in seconds after t_early={t_early}."
        )
    if not 0 < fraction < 1:
        raise ValueError(f"fraction is {fraction}, expected a number between 0 and 1.")
    if not 0 < active <= 1:
        raise ValueError(f"active is {active}, expected a number above 0, at most 1.")
    if not spread >= 0:
        raise ValueError(f"spread is {spread}, expected 0 or more, such as 0.24.")
    height = _height(neuron)
    # After the last input a voltage peaks within a few of the longer time constants.
    longest = max(np.max(neuron.tau_mem), np.max(neuron.tau_syn))
    end = t_late + 10 * longest if until is None else min(until, t_late + 10 * longest)
    first, second = _mean_psp(neuron, np.linspace(t_early, end, 2001), t_early, t_late)
    z = statistics.NormalDist().inv_cdf(fraction)

    def init(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
        n = shape[0]
        variance = (spread**2 + 1 / n) * active * second - (active * first) ** 2 / n
        reach = active * first - z * np.sqrt(np.maximum(variance, 0))
        reach = reach.max(axis=-1)
        if not (reach > 0).all():
            raise ValueError(
                f"no total makes {fraction:.0%} of the neurons fire with {n} inputs and"
                f" spread={spread}: too many neurons get a negative drive. Lower the"
                " spread or the fraction."
            )
        total = height / reach
        return spread_normal(total, spread * total)(key, shape, dtype)

    return init


def _mean_psp(
    neuron: Neuron, at: np.ndarray, t_early: float, t_late: float
) -> tuple[np.ndarray, np.ndarray]:
    """Means of k and k^2 over a uniform input time, ``[(neurons,) times]``."""
    tau_mem = np.asarray(neuron.tau_mem, float)[..., None]
    tau_syn = np.asarray(neuron.tau_syn, float)[..., None]
    since = np.linspace(0, at[-1] - t_early, 20_001)
    # For equal time constants the difference of exponentials is 0/0; this is not.
    rate = 1 / tau_syn - 1 / tau_mem
    flat = np.abs(rate * since) < 1e-6
    growth = np.where(flat, since, -np.expm1(-rate * since) / np.where(flat, 1, rate))
    response = np.exp(-since / tau_mem) * growth / tau_mem
    step = since[1]

    def mean(values: np.ndarray) -> np.ndarray:
        areas = (values[..., 1:] + values[..., :-1]) * step / 2
        areas = np.concatenate([0 * values[..., :1], np.cumsum(areas, -1)], axis=-1)

        def until(t: np.ndarray) -> np.ndarray:
            flat = areas.reshape(-1, areas.shape[-1])
            found = [np.interp(t, since, row) for row in flat]
            return np.reshape(found, (*areas.shape[:-1], -1))

        return (until(at - t_early) - until(at - t_late)) / (t_late - t_early)

    return mean(response), mean(response**2)


def _height(neuron: Neuron) -> np.ndarray:
    """From rest to the threshold; the neuron has to be known."""
    if _traced(*jax.tree.leaves(neuron)):
        raise TypeError("an initializer needs to know the neuron outside of jax.jit.")
    height = np.asarray(neuron.v_th) - np.asarray(neuron.v_leak)
    if not (height > 0).all():
        raise ValueError(
            f"v_leak is {neuron.v_leak} and v_th is {neuron.v_th}; a neuron that rests"
            " at its threshold or above fires without input, whatever its weights."
        )
    return height


def _check_positive(name: str, value: float, expected: str) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} is {value}, expected {expected}.")
