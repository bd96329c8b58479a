"""The refractory period: against algebra, a dense scan, and central differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxsnn import Spikes, check_gradients
from jaxsnn.analytic import analytic
from jaxsnn.eventprop import eventprop
from jaxsnn.layers import LIF, Network, grid_twin

N_IN, N, BATCH, SPIKES, UNTIL = 5, 6, 3, 5, 40e-3
RNG = np.random.default_rng(0)
TIME = RNG.uniform(1e-3, 20e-3, (BATCH, N_IN))
KERNEL = RNG.normal(0.0, 14.0, (N_IN, N))
LATERAL = RNG.normal(0.0, 1.0, (N, N))
T_REF = RNG.uniform(1e-3, 4e-3, N)
TAU_MEM = RNG.uniform(8e-3, 13e-3, N)
DELAY = RNG.uniform(1e-3, 4e-3, (N_IN, N))
LATERAL_DELAY = RNG.uniform(0.5e-3, 2e-3, (N, N))


def given(values):
    """An initializer that returns these values."""
    return lambda key, shape, dtype: jnp.broadcast_to(jnp.asarray(values, dtype), shape)


def scan(inputs, lateral, t_ref, tau_mem=10e-3, v_leak=0.0, v_reset=0.0, spikes=SPIKES):
    """Spike times of one sample, [neurons, spikes]: dense scan, then bisection.

    Both `inputs` and, for each neuron, what its spike sends, `lateral`, are lists of
    (time or delay, weights to all neurons).
    """
    tau_syn, now, events = 5e-3, 0.0, sorted(inputs, key=lambda e: e[0])
    neurons = len(events[0][1])
    v = np.full(neurons, v_reset if v_leak > 1 else v_leak)
    i, release = np.zeros(neurons), np.zeros(neurons)
    count, found = np.zeros(neurons, int), np.full((neurons, spikes), np.inf)

    def at(t):
        """Voltages and currents at times t, [..., 1]."""
        free = np.clip(t - np.maximum(release, now), 0, None)
        i_free = i * np.exp(-(t - now - free) / tau_syn)
        slow, fast = np.exp(-free / tau_mem), np.exp(-free / tau_syn)
        gain = tau_syn / (tau_mem - tau_syn)
        rest = v_leak + (v - v_leak) * slow
        return rest + gain * i_free * (slow - fast), i_free * fast

    def over(t):
        return (at(t)[0] > 1) & (t > release) & (count < spikes)

    while True:
        stop = min(events[0][0], UNTIL) if events else UNTIL
        grid = np.linspace(now, stop, 2001)[:, None]
        crossed = np.nonzero(over(grid).any(-1))[0]
        if crossed.size:
            low, high = grid[crossed[0] - 1], grid[crossed[0]]
            for _ in range(60):
                middle = (low + high) / 2
                low, high = (low, middle) if over(middle).any() else (middle, high)
            who = int(np.argmax(over(high)))
            (v, i), now = at(high), float(high[0])
            found[who, count[who]] = now
            count[who] += 1
            v[who], release[who] = v_reset, now + np.broadcast_to(t_ref, neurons)[who]
            events += [(now + delay, weights) for delay, weights in lateral[who]]
            events.sort(key=lambda e: e[0])
        elif stop < UNTIL:
            (v, i), now = at(np.array([stop])), stop
            i = i + events.pop(0)[1]
        else:
            return found


def one_to_all(times, kernel):
    return list(zip(times, kernel, strict=True))


def one_to_one(times, kernel):
    """Events of their own for each target: times and kernel are [sources, targets]."""
    eye = np.eye(kernel.shape[1])
    pairs = [(s, t) for s in range(kernel.shape[0]) for t in range(kernel.shape[1])]
    return [(times[s, t], kernel[s, t] * eye[t]) for s, t in pairs]


NONE = [[]] * N
ALL = [one_to_all([1e-3], LATERAL[n : n + 1]) for n in range(N)]
AT_ONCE = [one_to_all([0.0], LATERAL[n : n + 1]) for n in range(N)]
EACH = [one_to_one(LATERAL_DELAY[n : n + 1], LATERAL[n : n + 1]) for n in range(N)]
RECURRENT = {"recurrent": True, "recurrent_init": given(LATERAL)}
# Attributes of the layer; how its neurons hear of each other, and how they differ
# from the standard ones.
CASES = {
    "longer than intervals": ({"t_ref": 6e-3}, NONE, {"t_ref": 6e-3}),
    "shorter than intervals": ({"t_ref": 0.3e-3}, NONE, {"t_ref": 0.3e-3}),
    "learned": (
        {"t_ref": given(T_REF), "tau_mem": given(TAU_MEM), "v_reset": given(-0.2)},
        NONE,
        {"t_ref": T_REF, "tau_mem": TAU_MEM, "v_reset": -0.2},
    ),
    "leak over threshold": (
        {"t_ref": 2e-3, "v_leak": 1.3},
        NONE,
        {"t_ref": 2e-3, "v_leak": 1.3},
    ),
    "delay of each synapse": (
        {"t_ref": 2e-3, "delay": given(DELAY)},
        NONE,
        {"t_ref": 2e-3},
    ),
    "recurrent by window": (
        RECURRENT | {"t_ref": 2e-3, "recurrent_delay": 1e-3, "recurrent_by": "window"},
        ALL,
        {"t_ref": 2e-3},
    ),
    "recurrent at once": (RECURRENT | {"t_ref": 2e-3}, AT_ONCE, {"t_ref": 2e-3}),
    "recurrent, learned": (
        RECURRENT | {"t_ref": given(T_REF), "recurrent_delay": given(LATERAL_DELAY)},
        EACH,
        {"t_ref": T_REF},
    ),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", CASES)
def test_times_match_a_dense_scan_and_gradients_differences(case):
    attributes, lateral, neuron = CASES[case]
    layer = LIF(
        N,
        **attributes,
        max_spikes=SPIKES,
        kernel_init=given(KERNEL),
        param_dtype=jnp.float64,
    )
    time = jnp.asarray(TIME)[..., None]
    params = jax.jit(layer.init)(jax.random.key(0), Spikes.from_times(time))

    def loss(gradient):
        def loss(arguments):
            params, time = arguments
            method = layer.clone(gradient=gradient)
            times = method.apply(params, Spikes.from_times(time), UNTIL).times(SPIKES)
            fired = jnp.isfinite(times)
            weight = 1 + jnp.arange(times.size).reshape(times.shape) % 7
            value = weight * jnp.sin(200 * jnp.where(fired, times, 0))
            return jnp.sum(jnp.where(fired, value, 0)), times

        return jax.jit(jax.value_and_grad(loss, has_aux=True))

    run = loss(eventprop)
    (_, times), grad = run((params, time))
    found = np.asarray(times)
    for sample, at in zip(found, TIME, strict=True):
        if "delay" in attributes:
            inputs = one_to_one(at[:, None] + DELAY, KERNEL)
        else:
            inputs = one_to_all(at, KERNEL)
        np.testing.assert_allclose(
            sample, scan(inputs, lateral, **neuron), rtol=1e-11, atol=1e-14
        )
    with np.errstate(invalid="ignore"):
        intervals = np.diff(found)  # Of no spikes, NaN or inf.
    shortest = np.broadcast_to(neuron["t_ref"], N)[:, None]
    assert not (intervals <= shortest).any()
    assert (np.isfinite(intervals).sum((0, 2)) > 0).sum() > N / 2

    (_, other_times), other = loss(analytic)((params, time))
    np.testing.assert_array_equal(other_times, times)
    leaves, tree = jax.tree.flatten((params, time))
    rng = np.random.default_rng(1)
    pairs = zip(jax.tree.leaves(grad), jax.tree.leaves(other), strict=True)
    for k, (by_eventprop, by_analytic) in enumerate(pairs):
        scale = np.abs(by_analytic).max()
        assert scale > 0
        np.testing.assert_allclose(
            by_eventprop, by_analytic, rtol=1e-9, atol=1e-9 * scale
        )
        way = rng.normal(size=leaves[k].shape)
        way *= 1e-3 if k == len(leaves) - 1 else 0.3  # Times are milliseconds.

        def along(h, k=k, way=way):
            moved = [*leaves[:k], leaves[k] + h * way, *leaves[k + 1 :]]
            return run(jax.tree.unflatten(tree, moved))[0][0]

        h = 1e-5
        expected = 8 * (along(h) - along(-h)) - (along(2 * h) - along(-2 * h))
        np.testing.assert_allclose(
            jnp.sum(by_eventprop * way), expected / (12 * h), rtol=1e-6
        )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("gradient", [eventprop, analytic])
def test_the_period_of_a_neuron_without_input_is_what_algebra_says(gradient):
    # From reset, V = 3 - 4 exp(-t / tau_mem) meets 1 after tau_mem log 2. So spike n
    # is at n tau_mem log 2 + (n - 1) t_ref: with t_ref = e^p, dt/dp = (n - 1) t_ref.
    layer = LIF(1, v_leak=3.0, v_reset=-1.0, t_ref=given(2e-3), max_spikes=4)
    layer = layer.clone(gradient=gradient, param_dtype=jnp.float64)
    nothing = Spikes(jnp.full((1, 2), jnp.inf), jnp.full((1, 2), -1), 1)
    params = jax.jit(layer.init)(jax.random.key(0), nothing)
    n = np.arange(1, 5)

    @jax.jit
    @jax.value_and_grad
    def total(params):
        return jnp.sum(layer.apply(params, nothing).time[0] * 10.0**n)

    expected = n * 10e-3 * np.log(2) + (n - 1) * 2e-3
    value, grad = total(params)
    np.testing.assert_allclose(value, np.sum(expected * 10.0**n), rtol=1e-12)
    np.testing.assert_allclose(
        grad["params"]["log_t_ref"], [np.sum((n - 1) * 2e-3 * 10.0**n)], rtol=1e-12
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("batch", "neurons", "by"),
    [(12, 3, ""), (3, 12, ""), (12, 3, "window"), (3, 12, "window"), (3, 12, "event")],
)
def test_many_inputs_and_both_orders_of_the_lanes(batch, neurons, by):
    # 40 inputs are several chunks; samples are the last axis inside if they are more.
    rng = np.random.default_rng(2)
    kernel = rng.normal(1.0, 4.0, (40, neurons))
    lateral = rng.normal(0.0, 1.0, (neurons, neurons))
    time = rng.uniform(0, 38e-3, (batch, 40))
    t_ref = rng.uniform(0.5e-3, 4e-3, neurons)
    layer = LIF(
        neurons,
        t_ref=tuple(t_ref),
        v_reset=-0.2,
        max_spikes=SPIKES,
        recurrent=bool(by),
        recurrent_delay=1e-3 if by else 0.0,
        recurrent_by=by or "auto",
        param_dtype=jnp.float64,
    )
    params = {"kernel": kernel} | ({"recurrent_kernel": lateral} if by else {})
    inputs = Spikes.from_times(jnp.asarray(time)[..., None])
    found = jax.jit(layer.apply)({"params": params}, inputs, UNTIL).times(SPIKES)
    heard = [one_to_all([1e-3], row[None]) if by else [] for row in lateral]
    for sample, at in zip(found, time, strict=True):
        expected = scan(one_to_all(at, kernel), heard, t_ref, v_reset=-0.2)
        np.testing.assert_allclose(sample, expected, rtol=1e-11)
    assert np.isfinite(found).sum() > 2 * batch * neurons


@functools.cache
def outcome(t_ref, gradient=eventprop, dtype="float64"):
    """Spike times of a layer, and the gradient of their sum by kernel and inputs."""
    attributes = {} if t_ref is None else {"t_ref": t_ref}
    with jax.enable_x64(dtype == "float64"):
        layer = LIF(
            N,
            max_spikes=SPIKES,
            gradient=gradient,
            param_dtype=jnp.dtype(dtype),
            **attributes,
        )

        @jax.jit
        def total(kernel, time):
            inputs = Spikes.from_times(time[..., None])
            spikes = layer.apply({"params": {"kernel": kernel}}, inputs, UNTIL)
            times = spikes.times(SPIKES)
            return jnp.sum(jnp.where(times < jnp.inf, times, 0)), times

        arguments = jnp.asarray(KERNEL, dtype), jnp.asarray(TIME, dtype)
        grads, times = jax.grad(total, (0, 1), has_aux=True)(*arguments)
        return np.asarray(times), *map(np.asarray, grads)


def test_a_period_of_zero_is_none():
    for zero, none in zip(outcome(0), outcome(None), strict=True):
        np.testing.assert_array_equal(zero, none)


def test_some_neurons_have_a_period_and_others_none():
    # One is as good as none: it is lost in the rounding of any spike time.
    times, by_kernel, _ = outcome((0.0, 3e-3, 1e-20) * 2)
    for period, neurons in [(None, [0, 2, 3, 5]), (3e-3, [1, 4])]:
        alone = outcome(period)
        np.testing.assert_allclose(times[:, neurons], alone[0][:, neurons], rtol=1e-12)
        np.testing.assert_allclose(
            by_kernel[:, neurons], alone[1][:, neurons], rtol=1e-9, atol=1e-12
        )
        assert np.isfinite(times[:, neurons, 1]).any()


def test_a_period_as_long_as_the_window_leaves_one_spike():
    long, without = outcome(UNTIL)[0], outcome(None)[0]
    np.testing.assert_allclose(long[..., 0], without[..., 0], rtol=1e-12)
    assert not np.isfinite(long[..., 1:]).any()


@pytest.mark.parametrize("gradient", [eventprop, analytic])
def test_float32_is_close_to_float64(gradient):
    times, *grads = outcome(3e-3, gradient, "float32")
    exact_times, *exact_grads = outcome(3e-3)
    np.testing.assert_allclose(times, exact_times, rtol=1e-4)
    for grad, exact in zip(grads, exact_grads, strict=True):
        assert grad.dtype == np.float32
        scale = np.abs(exact).max()
        np.testing.assert_allclose(grad, exact, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.usefixtures("x64")
def test_the_time_grid_converges_to_it():
    network = Network([LIF(N, t_ref=3e-3, max_spikes=SPIKES, name="layer")])
    params = {"params": {"layer": {"kernel": jnp.asarray(KERNEL)}}}
    inputs = Spikes.from_times(jnp.asarray(TIME)[..., None])
    exact = outcome(3e-3)[0]
    fired = np.isfinite(exact)

    def worst(dt):
        twin = grid_twin(network, dt, round(UNTIL / dt))
        found = np.asarray(jax.jit(twin.apply)(params, inputs).times(SPIKES))
        np.testing.assert_array_equal(np.isfinite(found), fired)
        return np.abs(found[fired] - exact[fired]).max()

    coarse, fine = worst(20e-6), worst(5e-6)
    assert fine < coarse / 2 < 100e-6


def test_misuse_is_refused():
    with pytest.raises(ValueError, match=r"t_ref is -0\.001, expected a time"):
        LIF(3, t_ref=-1e-3)
    inputs = Spikes.from_times(jnp.full((1, 2, 1), 1e-3))
    layer = LIF(3, t_ref=2e-3, name="layer")
    variables = jax.jit(layer.init)(jax.random.key(0), inputs)
    with pytest.raises(ValueError, match=r"t_ref of LIF 'layer' is 0\.002, longer"):
        layer.apply(variables, inputs, 1e-3)

    _, state = layer.apply(variables, inputs, UNTIL, mutable=["events"])
    assert set(state["events"]) == {"count", "dropped", "late"}
    with pytest.raises(ValueError, match="starts every run from rest"):
        layer.apply(variables | state, inputs, UNTIL)


def test_a_learned_period_starts_above_zero():
    layer = LIF(3, t_ref=nn.initializers.zeros)
    with pytest.raises(ValueError, match=r"t_ref returns 0\.0, expected"):
        layer.init(jax.random.key(0), Spikes.from_times(jnp.zeros((1, 2, 1))))


@pytest.mark.usefixtures("x64")
def test_an_own_spike_may_arrive_at_the_very_end_of_the_period():
    rng = np.random.default_rng(0)
    inputs = Spikes.from_times(jnp.array(rng.uniform(0, 10e-3, (2, 5, 2))))
    times = {"recurrent_delay": 2e-3, "t_ref": 2e-3}
    layer = LIF(4, recurrent=True, **times, max_spikes=5, param_dtype=jnp.float64)
    kernel, lateral = rng.normal(4, 1, (5, 4)), rng.normal(0.5, 1, (4, 4))
    params = {"kernel": jnp.array(kernel), "recurrent_kernel": jnp.array(lateral)}
    report = check_gradients(layer, {"params": params}, inputs)
    assert report.ok, report  # It compares with central differences.
    assert report.layers[0].spikes > 20
