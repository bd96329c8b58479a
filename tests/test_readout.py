"""What a leaky integrator shows, against dense sampling, algebra and differences.

The references are NumPy sums of the textbook's response; nothing is printed by the code
under test first.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import psp

from jaxsnn import Spikes
from jaxsnn.backend import Samples
from jaxsnn.dynamics import Neuron
from jaxsnn.layers import LI, LIF, Network
from jaxsnn.readout import Trace

RATIOS = [0.5, 1.0, 1 + 1e-6, 2.0, 5.0]
TAU_SYN, V_LEAK, UNTIL = 5e-3, -0.2, 25e-3


def random_problem(seed, n_in=6, n_out=5, batch=3):
    """Weights of both signs and one input time per source, some after `UNTIL`."""
    rng = np.random.default_rng(seed)
    kernel = rng.normal(0.3, 2.0, (n_in, n_out))
    return kernel, rng.uniform(1e-3, 30e-3, (batch, n_in))


def trace_of(kernel, time, ratio=2.0, until=jnp.inf, v_leak=V_LEAK):
    layer = LI(kernel.shape[1], ratio * TAU_SYN, TAU_SYN, v_leak)
    inputs = Spikes.from_times(jnp.asarray(time)[..., None])
    return layer.apply({"params": {"kernel": jnp.asarray(kernel)}}, inputs, until)


@functools.partial(jax.jit, static_argnames="ratio")
def ask(kernel, time, ratio, until, at):
    """All that a trace can be asked, compiled once per ratio."""
    trace = trace_of(kernel, time, ratio, until)
    return *trace.maximum(), trace.integral(), trace.voltage(at), trace.current(at)


@functools.partial(jax.jit, static_argnames="ratio")
def maxima(kernel, time, ratio, until, pull):
    """Maxima, and the gradients of their sum weighted by `pull`."""

    def scalar(*args):
        value = trace_of(args[0], args[1], ratio, args[2]).maximum().value
        return jnp.sum(pull * value), value

    grad = jax.grad(scalar, argnums=(0, 1, 2), has_aux=True)
    grads, value = grad(kernel, time, jnp.asarray(until, kernel.dtype))
    return value, grads


def sampled(kernel, time, ratio, grid):
    """Voltages by the sum over events in NumPy, [batch, neurons, grid]."""
    since = grid - time[:, :, None]
    response = psp(ratio * TAU_SYN, TAU_SYN, np.maximum(since, 0))
    return V_LEAK + np.einsum("bjt,jn->bnt", response, kernel)


def differences(function, x, step):
    """Central differences of fourth order, entry by entry."""
    grads = np.zeros(x.shape)
    for place in np.ndindex(x.shape):
        shift = np.zeros(x.shape)
        shift[place] = step
        near = function(x + shift) - function(x - shift)
        far = function(x + 2 * shift) - function(x - 2 * shift)
        grads[place] = (8 * near - far) / (12 * step)
    return grads


@pytest.mark.parametrize("ratio", RATIOS)
def test_against_a_sum_and_a_dense_grid(x64, ratio):
    kernel, time = random_problem(0)
    early = np.where(time < UNTIL, time, np.inf)
    assert np.isinf(early).any()
    # All event times are on the grid: a voltage may turn there.
    grid = np.sort(np.concatenate([np.linspace(0, UNTIL, 40_001), time.ravel()]))
    grid = grid[grid <= UNTIL]
    at = jnp.array([0.0, 7e-3, UNTIL, 60e-3])
    value, when, integral, voltage, current = ask(kernel, time, ratio, UNTIL, at)

    dense = sampled(kernel, early, ratio, grid)
    assert (value >= dense.max(-1) - 1e-12).all()
    np.testing.assert_allclose(value, dense.max(-1), atol=1e-6)
    # The voltage there is the maximum; near a flat top the time itself is not sharp.
    for b, n in np.ndindex(value.shape):
        there = sampled(kernel, early, ratio, np.array([when[b, n]]))[b, n, 0]
        np.testing.assert_allclose(there, value[b, n], atol=1e-9)
    area = np.trapezoid(dense, grid, axis=-1)
    np.testing.assert_allclose(integral, area, atol=1e-8)
    exact = sampled(kernel, early, ratio, np.asarray(at))
    np.testing.assert_allclose(voltage, exact, atol=1e-9)
    since = np.asarray(at) - early[:, :, None]
    decay = np.where(since >= 0, np.exp(-np.maximum(since, 0) / TAU_SYN), 0)
    expected = np.einsum("bjt,jn->bnt", decay, kernel)
    np.testing.assert_allclose(current, expected, atol=1e-12)


@pytest.mark.parametrize("ratio", RATIOS)
def test_gradients_of_the_maximum_are_those_of_differences(x64, ratio):
    kernel, time = random_problem(1)
    pull = np.random.default_rng(2).normal(size=(3, 5))

    def total(kernel, time, until):
        return np.sum(pull * maxima(kernel, time, ratio, until, pull)[0])

    by_kernel, by_time, by_end = maxima(kernel, time, ratio, UNTIL, pull)[1]
    expected = differences(lambda x: total(x, time, UNTIL), kernel, 1e-4)
    np.testing.assert_allclose(by_kernel, expected, rtol=1e-6, atol=1e-8)
    expected = differences(lambda x: total(kernel, x, UNTIL), time, 1e-6)
    np.testing.assert_allclose(by_time, expected, rtol=1e-6, atol=1e-5)
    expected = differences(lambda x: total(kernel, time, x), np.array(UNTIL), 1e-6)
    assert expected != 0
    np.testing.assert_allclose(by_end, expected, rtol=1e-6)


def test_the_places_of_the_maximum_all_occur_above():
    # The tests above are worth what the problems contain: peaks, kinks, ends, rest.
    with jax.enable_x64(True):
        places = set()
        for seed in (0, 1):
            kernel, time = random_problem(seed)
            _, when, *_ = ask(kernel, time, 2.0, UNTIL, jnp.zeros(4))
            for b, n in np.ndindex(when.shape):
                kink = np.isclose(when[b, n], time[b]).any()
                named = {0.0: "rest", UNTIL: "end"}
                place = "kink" if kink else named.get(float(when[b, n]), "peak")
                places.add(place)
        assert places == {"rest", "end", "kink", "peak"}


EACH = [0.5, 1.0, 1 + 1e-6, 2.0, 5.0]  # A ratio for each of the five neurons.


def learned_problem():
    """Parameters of each neuron, a kernel and input times."""
    kernel, time = random_problem(1)
    rng = np.random.default_rng(9)
    tau_syn = TAU_SYN * rng.uniform(0.8, 1.2, 5)
    leak = rng.uniform(-0.3, 0.3, 5)
    params = {"tau_mem": tau_syn * EACH, "tau_syn": tau_syn, "v_leak": leak}
    return params | {"kernel": kernel, "time": time}


@jax.jit
def ask_each(params):
    """All that a trace can be asked, [batch, neurons, values], of arrays."""
    names = ("tau_mem", "tau_syn", "v_leak")
    layer = LI(5, **{k: params[k] for k in names}, param_dtype=jnp.float64)
    inputs = Spikes.from_times(params["time"][..., None])
    trace = layer.apply({"params": {"kernel": params["kernel"]}}, inputs, UNTIL)
    at = jnp.array([3e-3, UNTIL])
    scalars = jnp.stack([trace.maximum().value, trace.integral()], axis=-1)
    return jnp.concatenate([scalars, trace.voltage(at), trace.current(at)], axis=-1)


def test_neurons_with_parameters_of_their_own_against_a_sum(x64):
    given = learned_problem()
    found = ask_each(given)
    time = np.where(given["time"] < UNTIL, given["time"], np.inf)
    grid = np.sort(np.concatenate([np.linspace(0, UNTIL, 20_001), time.ravel()]))
    grid = grid[grid <= UNTIL]
    for n in range(5):
        tau_mem, tau_syn, leak = (given[k][n] for k in ("tau_mem", "tau_syn", "v_leak"))
        weights = given["kernel"][:, n]

        def voltage(at, tau_mem=tau_mem, tau_syn=tau_syn, leak=leak, weights=weights):
            response = psp(tau_mem, tau_syn, np.maximum(at - time[:, :, None], 0))
            return leak + np.einsum("bjt,j->bt", response, weights)

        dense = voltage(grid)
        np.testing.assert_allclose(found[:, n, 0], dense.max(-1), atol=1e-6)
        area = np.trapezoid(dense, grid, axis=-1)
        np.testing.assert_allclose(found[:, n, 1], area, atol=1e-8)
        at = np.array([3e-3, UNTIL])
        np.testing.assert_allclose(found[:, n, 2:4], voltage(at), atol=1e-9)
        since = at - time[:, :, None]
        decay = np.where(since >= 0, np.exp(-np.maximum(since, 0) / tau_syn), 0)
        expected = np.einsum("bjt,j->bt", decay, weights)
        np.testing.assert_allclose(found[:, n, 4:], expected, atol=1e-12)


@pytest.mark.parametrize("mode", [jax.jacfwd, jax.jacrev])
def test_gradients_by_learned_parameters_are_those_of_differences(x64, mode):
    given = jax.tree.map(jnp.asarray, learned_problem())
    found = jax.jit(mode(lambda x: ask_each(x).sum((0, 1))))(given)
    for name, value in given.items():
        step = (1e-4 if name == "kernel" else 1e-5) * jnp.abs(value)
        # All neurons move at once: they do not see each other.
        way = np.random.default_rng(3).normal(size=value.shape)

        def along(h, name=name, value=value, step=step * way):
            return ask_each(given | {name: value + h * step}).sum((0, 1))

        expected = (8 * (along(1) - along(-1)) - (along(2) - along(-2))) / 12
        axes = tuple(range(1, value.ndim + 1))
        each = jnp.sum(found[name] * step * way, axis=axes)
        np.testing.assert_allclose(each, expected, rtol=1e-6, atol=1e-13)
        assert jnp.abs(each[:2]).min() > 0


def test_learned_parameters_of_an_endless_run_are_finite(x64):
    # The integral is the charge, w tau_syn, if the leak is 0; its derivative by
    # log tau_syn is itself, by log tau_mem zero. At inf all that remains is the leak.
    kernel, time = random_problem(3)
    layer = LI(
        5,
        tau_mem=jax.nn.initializers.constant(12e-3),
        tau_syn=jax.nn.initializers.constant(TAU_SYN),
        kernel_init=lambda *_: jnp.asarray(kernel),
        param_dtype=jnp.float64,
    )
    inputs = Spikes.from_times(jnp.asarray(time)[..., None])
    variables = layer.init(jax.random.key(0), inputs)

    def shown(variables):
        trace = layer.apply(variables, inputs)
        both = (trace.integral().sum(), trace.voltage(jnp.inf).sum())
        return both, both

    grads, (value, rest) = jax.jit(jax.jacrev(shown, has_aux=True))(variables)
    np.testing.assert_allclose(value, 3 * kernel.sum() * TAU_SYN, rtol=1e-12)
    assert rest == 0
    by_charge, by_rest = grads
    charge = 3 * kernel.sum(0) * TAU_SYN
    np.testing.assert_allclose(by_charge["params"]["log_tau_syn"], charge, rtol=1e-10)
    np.testing.assert_allclose(by_charge["params"]["log_tau_mem"], 0, atol=1e-15)
    for leaf in jax.tree.leaves(by_rest):
        np.testing.assert_array_equal(leaf, 0)


@pytest.mark.parametrize("ratio", [1.0, 2.0, 3.0])
def test_a_maximum_at_an_inhibitory_event_moves_with_it(x64, ratio):
    # Excitation at 0 peaks long after 2 ms, when strong inhibition turns it down:
    # the maximum is w k(2 ms), its derivative by the time of inhibition w k'(2 ms).
    kernel, time = np.array([[3.0], [-50.0]]), np.array([[0.0, 2e-3]])
    tau_mem, dt = ratio * TAU_SYN, 2e-3
    value, grads = maxima(kernel, time, ratio, jnp.inf, np.ones((1, 1)))
    k = psp(tau_mem, TAU_SYN, dt)
    np.testing.assert_allclose(value, [[V_LEAK + 3 * k]], rtol=1e-12)
    by_kernel, by_time, _ = grads
    slope = 3 * (np.exp(-dt / TAU_SYN) - k) / tau_mem
    np.testing.assert_allclose(by_kernel, [[k], [0]], rtol=1e-12)
    np.testing.assert_allclose(by_time, [[-slope, slope]], rtol=1e-12)


def test_a_maximum_at_the_end_moves_with_the_end(x64):
    kernel, time = np.array([[3.0]]), np.array([[1e-3]])

    def end_at(until):
        value, grads = maxima(kernel, time, 2.0, until, np.ones((1, 1)))
        return value[0, 0], grads[2]

    dt = 2e-3
    k = psp(10e-3, 5e-3, dt)
    slope = 3 * (np.exp(-dt / 5e-3) - k) / 10e-3
    np.testing.assert_allclose(end_at(3e-3), (V_LEAK + 3 * k, slope), rtol=1e-9)
    assert end_at(1.0)[1] == 0  # Far behind the peak.


def test_a_window_may_end_when_asked(x64):
    # Other events follow behind the end, one right at it.
    kernel, time = random_problem(0)
    time[0, 0] = UNTIL

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def asked(kernel, time, until_before, until_when):
        trace = trace_of(kernel, time, 2.0, until_before)
        shown = (trace.maximum(until_when).value, trace.integral(until_when))
        return jnp.sum(shown[0]) + jnp.sum(shown[1]), shown

    early = asked(kernel, time, UNTIL, UNTIL)
    when = asked(kernel, time, jnp.inf, UNTIL)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12), when, early)
    # An end before the first event: rest.
    np.testing.assert_array_equal(trace_of(kernel, time).maximum(0.5e-3).value, V_LEAK)


def test_one_peak_by_hand(x64):
    # tau_mem = 2 tau_syn: V = w (x - x^2) with x = exp(-t / tau_mem), so x = 1/2.
    value, time, *_ = ask(np.array([[4.0]]), np.array([[3e-3]]), 2.0, jnp.inf, 0.0)
    np.testing.assert_allclose(value, [[V_LEAK + 1.0]], rtol=1e-14)
    np.testing.assert_allclose(time, [[3e-3 + 10e-3 * np.log(2)]], rtol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "ratio"), [("float32", 1.0), ("float32", 2.0), ("float64", 0.5)]
)
def test_rest_and_silence(dtype, ratio):
    with jax.enable_x64(dtype == "float64"):
        kernel = jnp.array([[-1.0, 2.0], [-3.0, 0.0]], dtype)
        time = jnp.array([[2e-3, 1e-3], [jnp.inf, jnp.inf]], dtype)
        value, when, integral, *_ = ask(kernel, time, ratio, jnp.inf, 0.0)
        assert value.dtype == integral.dtype == dtype
        # Inhibition only, and no input at all.
        np.testing.assert_array_equal(value[:, 0], np.full(2, V_LEAK, dtype))
        np.testing.assert_array_equal(when[:, 0], 0)
        np.testing.assert_array_equal(value[1], np.full(2, V_LEAK, dtype))
        np.testing.assert_array_equal(integral, -np.inf)  # It rests below 0.
        pull = jnp.ones((2, 2), dtype)
        by_kernel, by_time, _ = maxima(kernel, time, ratio, jnp.inf, pull)[1]
        assert np.isfinite(by_kernel).all()
        assert np.isfinite(by_time).all()
        np.testing.assert_array_equal(by_kernel[:, 0], 0)
        np.testing.assert_array_equal(by_time[1], 0)


def test_an_endless_integral_is_the_charge(x64):
    # All that the current brings, w tau_syn, leaks away again through the membrane.
    kernel, time = random_problem(3)
    integral = trace_of(kernel, time, v_leak=0.0).integral()
    expected = np.broadcast_to(kernel.sum(0) * TAU_SYN, (3, 5))
    np.testing.assert_allclose(integral, expected, rtol=1e-12)


def test_it_does_not_matter_how_the_events_are_listed(x64):
    # Sorted by source as an encoder leaves them, or as a bare list, also padded.
    kernel, time = random_problem(4)
    known = Spikes.from_times(jnp.asarray(time)[..., None])
    pad = [(0, 0), (0, 2)]
    padded = Spikes(
        jnp.pad(known.time, pad, constant_values=jnp.inf),
        jnp.pad(known.index, pad, constant_values=-1),
        known.size,
    )
    layer = LI(5)

    @jax.jit
    @jax.value_and_grad
    def total(kernel, inputs):
        trace = layer.apply({"params": {"kernel": kernel}}, inputs, UNTIL)
        at = jnp.array([3e-3, 9e-3])
        shown = (trace.maximum().value, trace.integral(), trace.voltage(at))
        return sum(jnp.sum(x) for x in shown)

    value, grad = total(jnp.asarray(kernel), known)
    again, regrad = total(jnp.asarray(kernel), padded)
    np.testing.assert_allclose(again, value, rtol=1e-12)
    np.testing.assert_allclose(regrad, grad, rtol=1e-10)


def test_batch_axes_and_vmap(x64):
    kernel, time = random_problem(5, batch=4)
    at = jnp.linspace(0, 20e-3, 3)

    @jax.jit
    def shown(time, at):
        trace = trace_of(kernel, time)
        return trace, trace.maximum().value, trace.voltage(at), trace.voltage(at[1])

    trace, value, voltage, one = jax.vmap(shown, (0, None))(time, at)
    np.testing.assert_allclose(voltage[..., 1], one, rtol=1e-12)
    time = time.reshape(2, 2, -1)
    trace, *both = shown(time, at)
    np.testing.assert_allclose(both[0], value.reshape(2, 2, 5), rtol=1e-12)
    np.testing.assert_allclose(both[1], voltage.reshape(2, 2, 5, 3), rtol=1e-12)
    np.testing.assert_allclose(both[2], one.reshape(2, 2, 5), rtol=1e-12)
    # What left a jitted function can still be asked, at times of each sample too.
    each = trace.voltage(jnp.broadcast_to(at, (2, 2, 3)))
    np.testing.assert_allclose(each, both[1], rtol=1e-12)


def test_a_li_is_a_lif_below_its_threshold(x64):
    kernel, time = random_problem(6)
    inputs = Spikes.from_times(jnp.asarray(time)[..., None])
    variables = {"params": {"kernel": jnp.asarray(kernel)}}
    high = LIF(5, v_th=100.0, v_leak=V_LEAK)
    spikes, state = high.apply(variables, inputs, UNTIL, mutable=["events"])
    assert spikes.count().sum() == 0
    trace = LI(5, v_leak=V_LEAK).apply(variables, inputs, UNTIL)
    np.testing.assert_allclose(trace.voltage(UNTIL), state["events"]["v"], rtol=1e-12)
    np.testing.assert_allclose(trace.current(UNTIL), state["events"]["i"], rtol=1e-12)
    # A threshold below the maximum is reached, one above is not.
    top = float(trace.maximum().value.max())
    for v_th, number in ((top * (1 - 1e-9), 1), (top * (1 + 1e-9), 0)):
        low = LIF(5, v_th=v_th, v_leak=V_LEAK, v_reset=V_LEAK)
        assert low.apply(variables, inputs, UNTIL).count().sum() == number


def test_a_network_ends_in_a_li_and_learns_through_spikes(x64):
    network = Network([LIF(8, name="hidden"), LI(2, name="output")])
    time = jnp.asarray(random_problem(7, n_in=4)[1])

    def total(params, time):
        inputs = Spikes.from_times(time[..., None])
        return network.apply({"params": params}, inputs).maximum().value.sum()

    inputs = Spikes.from_times(time[..., None])
    params = network.init(jax.random.key(0), inputs)["params"]
    assert set(params) == {"hidden", "output"}
    grads = jax.jit(jax.grad(total))(params, time)
    value = jax.jit(total)
    kernel = params["hidden"]["kernel"]
    direction = jnp.asarray(np.random.default_rng(8).normal(size=kernel.shape))

    def along(step):
        moved = {**params, "hidden": {"kernel": kernel + step * direction}}
        return value(moved, time)

    expected = (along(1e-5) - along(-1e-5)) / 2e-5
    found = jnp.sum(grads["hidden"]["kernel"] * direction)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found != 0


def test_what_is_not_possible_is_said():
    inputs = Spikes.from_times(jnp.zeros((1, 3, 1)))
    with pytest.raises(ValueError, match=r"LI\.features is 0"):
        LI(0)
    with pytest.raises(ValueError, match="tau_mem is -1"):
        LI(2, tau_mem=-1.0)
    layer = LI(2, name="readout")
    variables = layer.init(jax.random.key(0), inputs)
    with pytest.raises(ValueError, match=r"LI 'readout' has a kernel .* of 5 sources"):
        layer.apply(variables, Spikes.from_times(jnp.zeros((1, 5, 1))))
    with pytest.raises(TypeError, match=r"LI 'readout' takes jaxsnn\.Spikes"):
        layer.apply(variables, jnp.zeros(3))
    with pytest.raises(ValueError, match="until is nan"):
        layer.apply(variables, inputs, jnp.nan)

    network = Network([LIF(4, name="hidden"), LI(2, name="output")])
    variables = network.init(jax.random.key(0), inputs)
    _, events = network.apply(variables, inputs, 1e-2, mutable=["events"])
    with pytest.raises(ValueError, match="LI 'output' starts every run from rest"):
        network.apply({**variables, **events}, inputs)


@pytest.mark.usefixtures("x64")
def test_the_maximum_of_samples_is_theirs_and_its_gradient_the_models():
    inputs = Spikes.from_times(jnp.array([[[1e-3], [4e-3]], [[2e-3], [jnp.inf]]]))
    kernel = jnp.array([[1.0, -1.0], [2.0, -0.5]])
    at = jnp.array([3e-3, 8e-3, 30e-3])
    model = Trace(Neuron(), kernel, inputs).voltage(at)
    error = jnp.array([[0.0, 0.3, 9.0], [0.0, 0.0, 0.0]])
    samples = Samples(at, model + error)

    def highest(kernel):
        found = Trace(Neuron(), kernel, inputs, 20e-3, samples).maximum()
        return found.value, found.time

    value, time = highest(kernel)
    # The last sample lies after the end, and the inhibited neuron peaks at rest.
    np.testing.assert_array_equal(time, [[8e-3, 0.0], [8e-3, 0.0]])
    np.testing.assert_allclose(value[:, 0], model[:, 0, 1] + 0.3, rtol=1e-12)
    np.testing.assert_array_equal(value[:, 1], 0)
    found = jax.jacobian(lambda w: highest(w)[0])(kernel)
    expected = jax.jacobian(lambda w: Trace(Neuron(), w, inputs).voltage(8e-3))(kernel)
    np.testing.assert_allclose(found[:, 0], expected[:, 0], rtol=1e-12)
    np.testing.assert_array_equal(found[:, 1], 0)
