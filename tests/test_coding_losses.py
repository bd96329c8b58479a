"""Numbers to spikes and spikes to losses; expected values by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsnn import Spikes, losses
from jaxsnn.coding import encode_latency, first_spike_times, spike_counts

TIMES = jnp.array([[2e-3, 4e-3, jnp.inf]])
LABEL = jnp.array([1])


def test_latency_is_linear_and_the_bias_stays():
    x = jnp.array([[0.0, 0.5, 1.0]])
    spikes = encode_latency(x, t_early=1e-3, t_late=5e-3, bias=2e-3)
    assert spikes.size == 4
    np.testing.assert_allclose(spikes.first()[0], [1e-3, 3e-3, 5e-3, 2e-3], rtol=1e-6)
    slope = jax.grad(lambda x: encode_latency(x, t_late=5e-3).first().sum())(x)
    np.testing.assert_allclose(slope, np.full((1, 3), 5e-3), rtol=1e-6)


def test_copies_are_separate_sources():
    spikes = encode_latency(jnp.array([[0.5]]), t_late=1.0, bias=0.0, copies=3)
    assert spikes.size == 6
    np.testing.assert_array_equal(spikes.first()[0], [0.5, 0, 0.5, 0, 0.5, 0])


def test_bad_values_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        encode_latency(jnp.array([jnp.nan]), t_late=1.0)
    with pytest.raises(ValueError, match="copies is 0"):
        encode_latency(jnp.zeros(1), t_late=1.0, copies=0)


def test_decoding():
    spikes = Spikes.from_times(jnp.array([[[3.0, 5.0], [jnp.inf, jnp.inf]]]))
    np.testing.assert_array_equal(first_spike_times(spikes), [[3, jnp.inf]])
    np.testing.assert_array_equal(spike_counts(spikes), [[2, 0]])


def test_cross_entropy_by_hand():
    # Logits -2, -4 and, for the silent neuron, -10.
    loss = losses.ttfs_cross_entropy(TIMES, LABEL, tau=1e-3, t_silent=10e-3)
    expected = np.log(np.exp(-2) + np.exp(-4) + np.exp(-10)) + 4
    np.testing.assert_allclose(loss, [expected], rtol=1e-5)


def test_cross_entropy_falls_as_the_right_neuron_fires_earlier():
    def loss(times):
        return losses.ttfs_cross_entropy(times, LABEL, tau=1e-3, t_silent=10e-3)[0]

    grad = jax.grad(loss)(TIMES)[0]
    assert grad[1] > 0 > grad[0]
    assert grad[2] == 0  # Silence has no time to move.
    assert loss(TIMES.at[0, 1].set(1e-3)) < loss(TIMES)


def test_squared_error_by_hand():
    options = {"t_correct": 3e-3, "t_wrong": 6e-3, "tau": 1e-3, "t_silent": 10e-3}
    loss = losses.ttfs_mse(TIMES, LABEL, **options)
    np.testing.assert_allclose(
        loss, [(2 - 6) ** 2 + (4 - 3) ** 2 + (10 - 6) ** 2], rtol=1e-6
    )
    grad = jax.grad(lambda t: losses.ttfs_mse(t, LABEL, **options)[0])(TIMES)[0]
    np.testing.assert_allclose(grad, [-8e3, 2e3, 0], rtol=1e-5)


def test_earliness_by_hand():
    value = losses.earliness(TIMES, LABEL, tau=2e-3, t_silent=10e-3)
    np.testing.assert_allclose(value, [np.exp(2) - 1], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_all_silent_is_finite_with_zero_gradient(dtype):
    with jax.enable_x64(dtype == "float64"):
        times = jnp.full((2, 3), jnp.inf, dtype)
        labels = jnp.array([0, 2])
        for loss in (
            lambda t: losses.ttfs_cross_entropy(t, labels, tau=1e-3, t_silent=1e-2),
            lambda t: losses.ttfs_mse(
                t, labels, t_correct=1e-3, t_wrong=2e-3, tau=1e-3, t_silent=1e-2
            ),
            lambda t: losses.earliness(t, labels, tau=1e-3, t_silent=1e-2),
        ):
            value, grad = jax.value_and_grad(lambda t, f=loss: f(t).sum())(times)
            assert value.dtype == dtype
            assert jnp.isfinite(value)
            np.testing.assert_array_equal(grad, 0)


def test_the_bump_lifts_the_weights_of_silent_neurons_only():
    kernel = jnp.zeros((2, 3))
    counts = jnp.array([[0, 1, 0], [0, 2, 1]])
    grad = jax.grad(losses.silence_bump)(kernel, counts)
    np.testing.assert_allclose(grad, [[-1, 0, -0.5]] * 2)
