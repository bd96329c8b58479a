"""Long windows, many events, many neurons, small and large batches, in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles

from jaxsnn.dynamics import Neuron
from jaxsnn.eventprop import eventprop
from jaxsnn.simulate import simulate
from jaxsnn.spikes import Spikes

NEURON = Neuron()


def one_by_one(kernel, time, max_spikes):
    """Float64 spike times of one neuron after the other, in NumPy."""
    index = np.arange(len(time))
    until = float(np.max(time)) + 100e-3
    found = np.full((kernel.shape[1], max_spikes), np.inf)
    for n, weights in enumerate(np.asarray(kernel, np.float64).T):
        spikes = oracles.spike_train(
            NEURON, weights, np.asarray(time, np.float64), index, until, max_spikes
        )
        found[n, : len(spikes)] = spikes
    return found


def test_a_window_of_1e5_time_constants_neither_overflows_nor_drifts():
    # 40 volleys over 500 s = 1e5 tau_syn. The error of a spike is that of writing down
    # its time, however late it is. (The third event of a volley carries nothing: it is
    # there for the oracle, which looks at as many points of each interval.)
    rng = np.random.default_rng(0)
    start = np.sort(rng.uniform(0, 1e5 * NEURON.tau_syn, 40)).astype(np.float32)
    after = np.float32([0, 2e-3, 60e-3])
    time = (start + after[:, None]).ravel()
    strength = np.repeat(np.float32([3, 2, 0]), 40)
    kernel = jnp.array(np.outer(strength, np.float32([1.0, 1.2, 1.5])))
    inputs = Spikes.from_times(jnp.array(time)[None, :, None])
    record = simulate(NEURON, kernel, inputs, max_spikes=120)
    expected = one_by_one(kernel, time, 120)
    assert (np.isfinite(expected).sum(axis=1) >= 40).all()
    # Inputs are exact in float32; a sum with them rounds to half a unit, twice.
    np.testing.assert_allclose(record.times[0], expected, rtol=2e-7)

    def loss(kernel):
        t = eventprop(NEURON, kernel, inputs, None, record)
        return jnp.sum(jnp.where(t < jnp.inf, t, 0))

    grad = jax.grad(loss)(kernel)
    assert np.isfinite(grad).all()
    assert (np.abs(grad).max(axis=0) > 0).all()


def test_ten_thousand_events_and_two_thousand_neurons():
    rng = np.random.default_rng(1)
    time = rng.uniform(0, 1.0, 10_000).astype(np.float32)
    kernel = rng.normal(0.02, 0.15, (10_000, 2_000)).astype(np.float32)
    inputs = Spikes.from_times(jnp.array(time)[None, :, None])
    record = simulate(NEURON, jnp.array(kernel), inputs)
    assert np.isfinite(record.times).mean() > 0.5
    some = [0, 7, 1999]
    expected = one_by_one(kernel[:, some], time, 1)
    np.testing.assert_allclose(record.times[0, some], expected, rtol=1e-5)


def test_a_batch_of_4096_is_its_samples_and_so_is_a_batch_of_1():
    rng = np.random.default_rng(2)
    time = jnp.array(rng.uniform(0, 10e-3, (4096, 5, 1)), jnp.float32)
    kernel = jnp.array(rng.normal(3.0, 2.0, (5, 12)), jnp.float32)
    run = jax.jit(
        lambda x: simulate(NEURON, kernel, Spikes.from_times(x), max_spikes=3)
    )
    together = run(time).times
    for n in (0, 4095):
        np.testing.assert_allclose(
            run(time[n : n + 1]).times[0], together[n], rtol=1e-6
        )
