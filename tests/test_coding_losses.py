"""Numbers to spikes and spikes to losses; expected values by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsnn import Spikes, losses
from jaxsnn.coding import (
    encode_latency,
    encode_poisson,
    encode_population,
    encode_raster,
    encode_recordings,
    encode_regular,
    first_spike_times,
    perturb,
    repeat,
    spike_counts,
)

TIMES = jnp.array([[2e-3, 4e-3, jnp.inf]])
LABEL = jnp.array([1])


def test_latency_is_linear_and_the_bias_stays():
    x = jnp.array([[0.0, 0.5, 1.0]])
    spikes = encode_latency(x, t_early=1e-3, t_late=5e-3, bias=2e-3)
    assert spikes.size == 4
    np.testing.assert_allclose(spikes.first()[0], [1e-3, 3e-3, 5e-3, 2e-3], rtol=1e-6)
    slope = jax.grad(lambda x: encode_latency(x, t_late=5e-3).first().sum())(x)
    np.testing.assert_allclose(slope, np.full((1, 3), 5e-3), rtol=1e-6)


def test_values_from_the_cutoff_on_are_silent():
    darkness = jnp.array([[0.0, 0.5, 1.0]])
    spikes = encode_latency(darkness, t_late=4e-3, cutoff=1.0, bias=3e-3, copies=2)
    once = [0.0, 2e-3, np.inf, 3e-3]
    np.testing.assert_allclose(spikes.first()[0], once + once, rtol=1e-6)
    slope = jax.grad(
        lambda x: jnp.sum(encode_latency(x, t_late=4e-3, cutoff=1.0).first()[0, :2])
    )(darkness)
    np.testing.assert_allclose(slope, [[4e-3, 4e-3, 0]], rtol=1e-6)


def test_copies_are_separate_sources():
    spikes = encode_latency(jnp.array([[0.5]]), t_late=1.0, bias=0.0, copies=3)
    assert spikes.size == 6
    np.testing.assert_array_equal(spikes.first()[0], [0.5, 0, 0.5, 0, 0.5, 0])


def test_bad_values_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        encode_latency(jnp.array([jnp.nan]), t_late=1.0)
    with pytest.raises(ValueError, match="copies is 0"):
        encode_latency(jnp.zeros(1), t_late=1.0, copies=0)


def test_a_population_responds_around_the_value(x64):
    # Centres 0, 1/2, 1 and width 1/4: responses exp(-1/2 (4 (x - c))^2).
    x = jnp.array([[0.4, 1.0]])
    options = {"neurons": 3, "t_early": 1e-3, "t_late": 9e-3, "cutoff": 0.1}
    times = encode_population(x, **options).first()[0]
    response = np.exp(-0.5 * (4 * (np.array([[0.4], [1.0]]) - [0, 0.5, 1])) ** 2)
    expected = 9e-3 - 8e-3 * (response - 0.1) / 0.9
    expected = np.where(response >= 0.1, expected, np.inf).ravel()
    assert np.isinf(expected).sum() == 2
    np.testing.assert_allclose(times, expected, rtol=1e-12)
    assert encode_population(x, **options).size == 6

    def total(x):
        times = encode_population(x, **options).first()
        return jnp.sum(jnp.where(jnp.isfinite(times), times, 0))

    step = 1e-6
    both = [(total(x.at[0, 0].add(h))) for h in (step, -step)]
    grad = jax.grad(total)(x)
    np.testing.assert_allclose(grad[0, 0], (both[0] - both[1]) / (2 * step), rtol=1e-6)
    assert np.isfinite(grad).all()


def test_poisson_counts_and_intervals_have_the_moments_of_the_process():
    rate, duration, samples = 40.0, 0.5, 2000
    rates = jnp.broadcast_to(jnp.array([rate, 0.0]), (samples, 2))
    spikes, dropped = encode_poisson(
        jax.random.key(1), rates, duration=duration, max_spikes=60
    )
    assert dropped.sum() == 0  # 20 expected: 60 are nine deviations away.
    counts = np.asarray(spikes.count()[:, 0])
    np.testing.assert_array_equal(spikes.count()[:, 1], 0)
    mean = rate * duration
    # Five standard errors: of the mean, and of the variance m of a Poisson count,
    # whose own variance is (m + 2 m^2) / samples.
    assert abs(counts.mean() - mean) < 5 * np.sqrt(mean / samples)
    error = 5 * np.sqrt((mean + 2 * mean**2) / samples)
    assert abs(counts.var() - mean) < error
    # Given their number, the times are uniform: mean T/2, variance T^2/12.
    times = np.asarray(spikes.time[spikes.time < np.inf])
    assert times.max() < duration
    assert abs(times.mean() - duration / 2) < 5 * duration / np.sqrt(12 * times.size)
    # The first interval is exponential: P(t > 1/r) = 1/e.
    first = np.asarray(spikes.first()[:, 0])
    error = 5 * np.sqrt(np.exp(-1) * (1 - np.exp(-1)) / samples)
    assert abs((first > 1 / rate).mean() - np.exp(-1)) < error


def test_poisson_spikes_without_room_are_counted_as_often_as_they_happen():
    rates = jnp.full((2000, 1), 40.0)
    spikes, dropped = encode_poisson(
        jax.random.key(2), rates, duration=0.5, max_spikes=5
    )
    assert (spikes.count() <= 5).all()
    total = np.asarray(spikes.count()[:, 0] + dropped)
    assert abs(total.mean() - 20) < 5 * np.sqrt(20 / 2000)
    assert abs(total.var() - 20) < 5 * np.sqrt((20 + 2 * 20**2) / 2000)
    assert dropped.shape == (2000,)


def test_regular_trains_are_exact():
    rates = jnp.array([[100.0, 30.0, 0.0]])
    spikes, dropped = encode_regular(rates, duration=0.1, max_spikes=10)
    # 10 of 10 ms each, the last at 90 ms; 0, 33 and 67 ms; none.
    np.testing.assert_array_equal(spikes.count(), [[10, 3, 0]])
    np.testing.assert_allclose(spikes.times(10)[0, 0], np.arange(10) / 100, rtol=1e-6)
    np.testing.assert_allclose(spikes.times(3)[0, 1], np.arange(3) / 30, rtol=1e-6)
    np.testing.assert_array_equal(dropped, [0])
    few, dropped = encode_regular(rates, duration=0.1, max_spikes=2)
    np.testing.assert_array_equal(few.count(), [[2, 2, 0]])
    np.testing.assert_array_equal(dropped, [8 + 1])

    spikes, _ = encode_regular(
        jnp.full(500, 50.0), duration=0.1, max_spikes=6, key=jax.random.key(0)
    )
    np.testing.assert_array_equal(spikes.count(), 5)
    first = np.asarray(spikes.first())
    assert 0 <= first.min() < first.max() < 0.02
    assert abs(first.mean() - 0.01) < 5 * 0.02 / np.sqrt(12 * 500)
    intervals = np.diff(spikes.times(5), axis=-1)
    np.testing.assert_allclose(intervals, 0.02, rtol=1e-4)


def test_rates_out_of_range_are_refused():
    with pytest.raises(ValueError, match="negative"):
        encode_regular(jnp.array([-1.0]), duration=1.0, max_spikes=1)
    with pytest.raises(ValueError, match="NaN"):
        encode_regular(jnp.array([jnp.nan]), duration=1.0, max_spikes=1)
    with pytest.raises(ValueError, match="or inf"):  # Else all were lost, uncounted.
        encode_regular(jnp.array([jnp.inf]), duration=1.0, max_spikes=1)
    with pytest.raises(ValueError, match="duration is inf"):
        encode_regular(jnp.ones(1), duration=jnp.inf, max_spikes=1)
    with pytest.raises(ValueError, match="max_spikes is 0"):
        encode_poisson(jax.random.key(0), jnp.ones(1), duration=1.0, max_spikes=0)


@pytest.mark.parametrize("known_by_source", [True, False])
def test_repeated_spikes(known_by_source):
    spikes = Spikes.from_times(jnp.array([[1e-3], [4e-3]]))
    if not known_by_source:
        spikes = Spikes(spikes.time, spikes.index, spikes.size)
    repeated = repeat(spikes, delays=(0.0, 5e-3), copies=2)
    assert repeated.size == 4
    np.testing.assert_allclose(
        repeated.times(3) * 1e3, [[1, 6, np.inf], [4, 9, np.inf]] * 2, rtol=1e-6
    )

    def total(time):
        train = Spikes.from_times(time[:, None])
        return repeat(train, delays=(0.0, 5e-3), copies=2).times(2).sum()

    # Two copies of two spikes.
    np.testing.assert_allclose(jax.grad(total)(jnp.array([1e-3, 4e-3])), [4, 4])
    with pytest.raises(ValueError, match="delays is"):
        repeat(spikes, delays=())


def test_a_raster_round_trip():
    raster = np.random.default_rng(0).poisson(0.7, (2, 3, 20, 4))
    spikes, dropped = encode_raster(raster, dt=1e-3)
    assert spikes.time.shape == (2, 3, raster.sum((-1, -2)).max())
    Spikes(spikes.time, spikes.index, spikes.size)  # Well-formed: order, sentinels.
    np.testing.assert_array_equal(dropped, np.zeros((2, 3)))
    back = np.zeros(raster.shape, int)
    for place in np.ndindex(2, 3):
        index = np.asarray(spikes.index[place])
        step = np.rint(np.asarray(spikes.time[place])[index >= 0] / 1e-3).astype(int)
        np.add.at(back[place], (step, index[index >= 0]), 1)
    np.testing.assert_array_equal(back, raster)

    jitted = jax.jit(lambda raster: encode_raster(raster, dt=1e-3, slots=10))
    few, dropped = jitted(raster)
    np.testing.assert_array_equal(few.time, spikes.time[..., :10])
    np.testing.assert_array_equal(few.index, spikes.index[..., :10])
    np.testing.assert_array_equal(dropped, np.maximum(raster.sum((-1, -2)) - 10, 0))
    with pytest.raises(ValueError, match="needs to be told the slots"):
        jax.jit(lambda raster: encode_raster(raster, dt=1e-3))(raster)
    with pytest.raises(ValueError, match="not whole"):
        encode_raster(np.array([[0.5]]), dt=1e-3)
    with pytest.raises(ValueError, match="not whole"):
        encode_raster(np.array([[np.inf]]), dt=1e-3)
    with pytest.raises(ValueError, match=r"shape \(3, 0\), expected"):
        encode_raster(np.zeros((3, 0)), dt=1e-3)
    nothing, dropped = encode_raster(np.zeros((2, 0, 3)), dt=1e-3)
    assert (nothing.size, dropped.tolist()) == (3, [0, 0])
    assert (nothing.index == -1).all()
    binary, _ = encode_raster(np.array([[False, True]]), dt=1e-3)
    np.testing.assert_array_equal(binary.index, [1])


def test_recordings_are_padded_to_the_longest_and_sorted():
    pairs = [
        (np.array([3e-3, 1e-3, 3e-3]), np.array([2, 0, 1])),
        (np.array([]), np.array([], int)),
    ]
    spikes, dropped = encode_recordings(pairs, size=np.int64(3))
    assert spikes.size == 3
    np.testing.assert_array_equal(spikes.index, [[0, 1, 2], [-1, -1, -1]])
    np.testing.assert_allclose(spikes.time[0] * 1e3, [1, 3, 3], rtol=1e-6)
    np.testing.assert_array_equal(dropped, [0, 0])
    # The earliest are kept.
    spikes, dropped = encode_recordings(pairs, size=3, slots=2)
    np.testing.assert_array_equal(spikes.index, [[0, 1], [-1, -1]])
    np.testing.assert_array_equal(dropped, [1, 0])


def test_recordings_of_a_sensor_have_its_pixels_and_polarities():
    fields = [("x", "i2"), ("y", "i2"), ("t", "i8"), ("p", "?")]
    events = np.array([(3, 1, 2000, 1), (0, 2, 500, 0)], dtype=fields)
    spikes, _ = encode_recordings([events], size=(4, 3, 2))
    assert spikes.size == 24
    # As a frame [P, H, W] is flattened.
    frame = np.arange(24).reshape(2, 3, 4)
    np.testing.assert_array_equal(spikes.index, [[frame[0, 2, 0], frame[1, 1, 3]]])
    np.testing.assert_allclose(spikes.time, [[0.5e-3, 2e-3]], rtol=1e-6)
    # Channels of sound: no y, and a polarity that means nothing.
    sound = np.array([(7, 1_000_000, 1)], dtype=[("x", int), ("t", int), ("p", int)])
    spikes, _ = encode_recordings([sound], size=(700, 1, 1))
    np.testing.assert_array_equal(spikes.index, [[7]])
    np.testing.assert_allclose(spikes.time, [[1.0]])


@pytest.mark.parametrize(
    ("recording", "message"),
    [
        ((np.zeros(1), np.array([3])), r"recording 1 has x from 3 to 3.*\[0, 3\)"),
        ((np.zeros(1), np.array([0.5])), "recording 1 has x that are not whole"),
        ((np.array([np.nan]), np.zeros(1, int)), "recording 1 has times that are not"),
        ((np.zeros(2), np.zeros(1, int)), r"shape \(2,\) and x of shape \(1,\)"),
        (np.zeros(1, [("x", int)]), "recording 1 has the fields x, but not t"),
        (np.zeros(3), "recording 1 is neither a pair"),
    ],
)
def test_recordings_that_do_not_fit_are_refused(recording, message):
    good = (np.zeros(1), np.zeros(1, int))
    with pytest.raises(ValueError, match=message):
        encode_recordings([good, recording], size=3)


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


def test_the_rate_bump_generalizes_the_silence_bump():
    kernel = jnp.arange(6.0).reshape(2, 3)
    counts = jnp.array([[0, 1, 7], [0, 2, 3]])
    np.testing.assert_array_equal(
        losses.rate_bump(kernel, counts, low=1), losses.silence_bump(kernel, counts)
    )
    grad = jax.grad(losses.rate_bump)(kernel, counts, low=2, high=5)
    np.testing.assert_allclose(grad, [[-1, -0.5, 0.5]] * 2)
    with pytest.raises(ValueError, match="low is 3 and high is 2"):
        losses.rate_bump(kernel, counts, low=3, high=2)


def test_the_band_of_first_spikes_by_hand():
    def loss(times):
        return losses.first_spike_band(times, early=3e-3, late=5e-3, tau=1e-3)

    times = jnp.array([[2e-3, 4e-3, 7e-3, jnp.inf]])
    np.testing.assert_allclose(loss(times), [(1 + 0 + 4 + 0) / 4], rtol=1e-5)
    grad = jax.grad(lambda times: loss(times)[0])(times)
    np.testing.assert_allclose(grad, [[-500, 0, 1000, 0]], rtol=1e-5)


def test_the_maximum_over_time_by_hand():
    maxima, labels = jnp.array([[1.0, 3.0], [0.0, 0.0]]), jnp.array([0, 1])
    loss = losses.mot_cross_entropy(maxima, labels, scale=0.5)
    np.testing.assert_allclose(loss, np.log([1 + np.e, 2]), rtol=1e-6)


def test_soft_counts_approach_the_counts_and_pull_at_the_border():
    times = jnp.array([[[1e-3, 10e-3, jnp.inf], [2e-3, 3e-3, 15e-3]]])
    counts = losses.soft_counts(times, until=10e-3, tau=1e-6)
    np.testing.assert_allclose(counts, [[1.5, 2]], rtol=1e-6)

    def total(times):
        return losses.soft_counts(times, until=10e-3, tau=2e-3).sum()

    # A spike at the border counts less the later it is: slope -1 / (4 tau).
    grad = jax.grad(total)(times)
    np.testing.assert_allclose(grad[0, 0, 1], -1 / 8e-3, rtol=1e-5)
    assert grad[0, 0, 2] == 0
    assert (grad <= 0).all()


def test_losses_on_counts_by_hand():
    times = jnp.array([[[1e-3, 2e-3], [3e-3, jnp.inf], [jnp.inf, jnp.inf]]])
    label = jnp.array([1])
    options = {"until": 10e-3, "tau": 1e-6}
    loss = losses.count_cross_entropy(times, label, scale=0.5, **options)
    expected = np.log(np.exp(1) + np.exp(0.5) + 1) - 0.5
    np.testing.assert_allclose(loss, [expected], rtol=1e-6)
    loss = losses.count_mse(times, label, correct=4, wrong=1, **options)
    np.testing.assert_allclose(loss, [(2 - 1) ** 2 + (1 - 4) ** 2 + 1], rtol=1e-6)


def test_van_rossum_is_the_integral_of_the_filtered_difference(x64):
    rng = np.random.default_rng(0)
    times, targets, tau = rng.uniform(0, 50e-3, 4), rng.uniform(0, 50e-3, 3), 10e-3
    times[1] = targets[1] = np.inf
    # The midpoints of a fine grid; the jumps cost an error of the order of its step.
    dt = 1e-6
    grid = np.arange(0, 0.5, dt) + dt / 2

    def filtered(train):
        since = np.subtract.outer(grid, train[np.isfinite(train)])
        return np.where(since > 0, np.exp(-np.maximum(since, 0) / tau), 0).sum(-1)

    expected = np.sum((filtered(times) - filtered(targets)) ** 2) * dt / tau

    def distance(times):
        return losses.van_rossum(times[None], jnp.asarray(targets)[None], tau=tau)[0]

    times = jnp.asarray(times)
    np.testing.assert_allclose(distance(times), expected, rtol=1e-3)
    grad = jax.grad(distance)(times)
    for n in (0, 2, 3):
        step = 1e-7
        moved = [distance(times.at[n].add(h)) for h in (step, -step)]
        np.testing.assert_allclose(
            grad[n], (moved[0] - moved[1]) / (2 * step), rtol=1e-6
        )
    assert grad[1] == 0
    # A distance: none to itself, and symmetric.
    assert losses.van_rossum(times, times, tau=tau) == 0
    back = losses.van_rossum(jnp.asarray(targets), times, tau=tau)
    np.testing.assert_allclose(back, distance(times), rtol=1e-12)


def by_events(spikes):
    return Spikes.from_events(spikes.time, spikes.index, spikes.size)


@pytest.mark.parametrize("form", [lambda spikes: spikes, by_events])
def test_perturbed_spikes_are_moved_and_left_out_as_often_as_stated(form):
    times = jnp.linspace(2e-3, 9e-3, 4000).reshape(4, 1000, 1)
    spikes = form(Spikes.from_times(jnp.where(times < 8e-3, times, jnp.inf)))
    noisy = perturb(spikes, jax.random.key(1), jitter=0.1e-3, loss=0.2)
    assert (noisy.time[:, 1:] >= noisy.time[:, :-1]).all()
    before, after = spikes.first(), noisy.first()
    there, left = np.isfinite(before), np.isfinite(after)
    assert not (left & ~there).any()  # Nothing comes of an empty slot.
    n = there.sum()
    lost = n - left.sum()
    assert abs(lost - 0.2 * n) < 4 * np.sqrt(0.2 * 0.8 * n)
    moved = np.asarray(after - before)[left] / 0.1e-3
    assert abs(moved.mean()) < 4 / np.sqrt(n)
    assert abs(moved.std() - 1) < 4 / np.sqrt(2 * n)
    # Some would come before time 0.
    early = perturb(spikes, jax.random.key(2), jitter=10e-3)
    assert 0.05 < np.mean(early.time == 0) < 0.5
    assert early.time.min() == 0


def test_perturbing_by_nothing_changes_nothing_and_is_differentiable():
    times = jnp.array([[[3e-3], [1e-3]]])
    same = perturb(Spikes.from_times(times), jax.random.key(0))
    np.testing.assert_array_equal(same.first(), times[..., 0])

    def total(times):
        noisy = perturb(Spikes.from_times(times), jax.random.key(0), jitter=1e-4)
        return jnp.sum(noisy.first())

    np.testing.assert_allclose(jax.grad(total)(times), 1.0)


def test_bad_perturbations_are_refused():
    spikes = Spikes.from_times(jnp.ones((1, 1)))
    with pytest.raises(ValueError, match="jitter is -1"):
        perturb(spikes, jax.random.key(0), jitter=-1)
    with pytest.raises(ValueError, match=r"loss is 1\.5"):
        perturb(spikes, jax.random.key(0), loss=1.5)
