"""Every defect of the peer, with the right outcome.

The peer is the library `jaxsnn` of Electronic Vision(s) on PyPI, version 0.3.0, and its
development head 5e9bb86. Test names carry the numbers under which its defects were
listed. Expected values are algebra, the dense scan in
`oracles`, or its finite differences; none comes from the code under test.
"""

import functools
import os
import pathlib
import subprocess
import sys

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import recurrent_trains, spike_train

from jaxsnn import Spikes, concatenate
from jaxsnn.analytic import analytic
from jaxsnn.dynamics import Neuron
from jaxsnn.eventprop import eventprop
from jaxsnn.hardware import Replay
from jaxsnn.layers import LIF, Network
from jaxsnn.losses import silence_bump, ttfs_cross_entropy

METHODS = [eventprop, analytic]
ROOT = pathlib.Path(__file__).resolve().parents[1]
TAU = 10e-3  # Of the membrane, in every test.
TIME = np.array([1e-3, 4e-3, 7e-3])
KERNEL = np.array([12.0, 10.0, -2.0])
UNTIL = 30e-3


@functools.partial(jax.jit, static_argnums=0)
def apply(layer, kernel, inputs, until=jnp.inf):
    return layer.apply({"params": {"kernel": kernel}}, inputs, until)


def train(neuron, max_spikes, kernel=KERNEL, time=TIME):
    return spike_train(neuron, kernel, time, range(3), UNTIL, max_spikes)


def by_differences(f, x, h):
    """Gradient of a NumPy function, by central differences of fourth order."""
    grad = np.zeros(x.shape)
    for n in range(x.size):
        step = np.zeros(x.shape)
        step.flat[n] = h
        grad.flat[n] = (
            8 * (f(x + step) - f(x - step)) - f(x + 2 * step) + f(x - 2 * step)
        ) / (12 * h)
    return grad


def check_gradients(neuron, max_spikes, gradient):
    """Times and gradients of a burst against the dense scan and its differences."""
    expected = train(neuron, max_spikes)
    spikes = len(expected)
    assert spikes >= 3  # The coupling of a neuron's own spikes must matter.
    weight = np.cos(np.arange(spikes))
    layer = LIF(1, **vars(neuron), max_spikes=max_spikes, gradient=gradient)

    @jax.jit
    def loss(kernel, time):
        inputs = Spikes.from_times(time[None, :, None])
        out = layer.apply({"params": {"kernel": kernel[:, None]}}, inputs, UNTIL)
        times = out.times(spikes)[0, 0]
        return jnp.sum(weight * times), times

    (_, times), grads = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(
        jnp.array(KERNEL), jnp.array(TIME)
    )
    np.testing.assert_allclose(times, expected, rtol=1e-11)
    by_kernel = by_differences(
        lambda k: np.sum(weight * train(neuron, spikes, kernel=k)), KERNEL, 1e-4
    )
    by_time = by_differences(
        lambda t: np.sum(weight * train(neuron, spikes, time=t)), TIME, 1e-7
    )
    for found, exact in zip(grads, (by_kernel, by_time), strict=True):
        np.testing.assert_allclose(
            found, exact, rtol=1e-6, atol=1e-6 * abs(exact).max()
        )


@pytest.mark.usefixtures("x64")
def test_d1_overflow_is_counted():
    neuron = Neuron()
    expected = train(neuron, 9)
    assert len(expected) > 4
    layer = LIF(1, max_spikes=9, slots=2)
    kernel = jnp.array(KERNEL)[:, None]
    inputs = Spikes.from_times(jnp.array(TIME)[None, :, None])
    out, state = jax.jit(
        lambda: layer.apply(
            {"params": {"kernel": kernel}}, inputs, UNTIL, mutable=["events"]
        )
    )()
    np.testing.assert_allclose(out.time[0], expected[:2], rtol=1e-11)
    np.testing.assert_array_equal(state["events"]["dropped"], [len(expected) - 2])
    np.testing.assert_array_equal(state["events"]["count"], [[len(expected)]])
    # No input was dropped with them: all of them are in the current at the end.
    current = np.sum(KERNEL * np.exp(-(UNTIL - TIME) / neuron.tau_syn))
    np.testing.assert_allclose(state["events"]["i"], [[current]], rtol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("gradient", METHODS)
@pytest.mark.parametrize("v_reset", [-0.5, 0.4])
def test_d2_the_gradient_knows_the_reset_voltage(v_reset, gradient):
    check_gradients(Neuron(v_reset=v_reset), 3, gradient)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("gradient", METHODS)
@pytest.mark.parametrize("ratio", [1.0, 2.0])
@pytest.mark.parametrize("v_leak", [0.3, -0.3, 1.5])
def test_d3_the_gradient_knows_the_leak(v_leak, ratio, gradient):
    check_gradients(Neuron(TAU, TAU / ratio, v_leak=v_leak), 3, gradient)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("ratio", [1.0, 2.0, 3.0])
def test_d4_leak_over_threshold_fires_regularly(ratio):
    # V = 1.5 (1 - exp(-t / tau)) meets 1 every tau log 3, eight times in 90 ms.
    layer = LIF(2, tau_syn=TAU / ratio, v_leak=1.5, max_spikes=20)
    nothing = Spikes(jnp.full((1, 1), jnp.inf), jnp.full((1, 1), -1), 1)
    times = apply(layer, jnp.ones((1, 2)), nothing, 90e-3).times(20)
    expected = np.full((1, 2, 20), np.inf)
    expected[..., :8] = TAU * np.log(3) * np.arange(1, 9)
    np.testing.assert_allclose(times, expected, rtol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("ratio", [0.5, 1.6, 3.0])
def test_d5_any_ratio_of_time_constants(ratio):
    # One post-synaptic potential peaks at rho^(1 / (1 - rho)), rho = 1 / ratio.
    rho = 1 / ratio
    lowest = rho ** (-1 / (1 - rho))
    kernel = np.array([[0.999 * lowest, 1.001 * lowest, 2 * lowest]])
    inputs = Spikes.from_times(jnp.array([[[2e-3]]]))
    layer = LIF(3, tau_syn=TAU / ratio)
    times = apply(layer, jnp.array(kernel), inputs).first()[0]
    assert jnp.isinf(times[0])
    for n in (1, 2):
        neuron = Neuron(TAU, TAU / ratio)
        (expected,) = spike_train(neuron, kernel[:, n], [2e-3], [0], 0.1, 1)
        np.testing.assert_allclose(times[n], expected, rtol=1e-11)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("ratio", [1.0, 2.0, 4.0])
def test_d6_simultaneous_spikes_all_happen(ratio):
    # Half the weight from each of two simultaneous inputs, at four equal neurons.
    neuron = Neuron(TAU, TAU / ratio)
    inputs = Spikes.from_times(jnp.full((1, 2, 1), 1e-3))
    layer = LIF(4, tau_syn=TAU / ratio)
    out = apply(layer, jnp.full((2, 4), 10.0), inputs)
    (expected,) = spike_train(neuron, [20.0], [1e-3], [0], 0.1, 1)
    np.testing.assert_allclose(out.time, np.full((1, 4), expected), rtol=1e-11)
    np.testing.assert_array_equal(out.index, [[0, 1, 2, 3]])
    # The next layer gets all four.
    after = apply(LIF(1, tau_syn=TAU / ratio), jnp.full((4, 1), 5.0), out)
    np.testing.assert_allclose(after.time[0, 0], 2 * expected - 1e-3, rtol=1e-11)


HASHED = """
import hashlib, jax, numpy as np
from jaxsnn import Spikes
from jaxsnn.layers import Connection, Graph, Population, spread_normal
names = ["red", "green", "blue"]
weak = spread_normal(9.0, 9.0)
graph = Graph(
    {name: Population(n + 2, max_spikes=3) for n, name in enumerate(names)},
    [Connection("input", name, weak) for name in names]
    + [Connection(a, b, weak) for a in names for b in names],
    outputs=names,
)
inputs = Spikes.from_times(np.linspace(1e-3, 9e-3, 4, dtype=np.float32)[None, :, None])
variables = graph.init(jax.random.key(0), inputs, 30e-3)
outputs = graph.apply(variables, inputs, 30e-3)
leaves = jax.tree_util.tree_flatten_with_path((variables, outputs))[0]
told = [(jax.tree_util.keystr(path), np.asarray(x).tobytes()) for path, x in leaves]
print(sum(int(x.count().sum()) for x in outputs.values()))
print(hashlib.sha256(repr(told).encode()).hexdigest())
"""


def test_d7_weights_and_spikes_do_not_depend_on_the_seed_of_hashes():
    # Three populations, each connected with all: one component, with nine projections.
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", HASHED],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("0", "2")
    ]
    first, second = (run.communicate()[0].split() for run in runs)
    assert int(first[0]) > 10
    assert first == second


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("gradient", METHODS)
def test_d8_each_of_two_sources_gets_its_own_gradient(gradient):
    # With x = exp(-t / tau), A = sum w_j e^(t_j / tau) and B = sum w_j e^(2 t_j / tau),
    # the voltage is A x - B x^2; differentiating A x - B x^2 = 1 gives the gradient.
    time, weights = np.array([1e-3, 2e-3]), np.array([4.0, 5.0])
    a = np.exp(time / TAU)
    total, square = np.sum(weights * a), np.sum(weights * a**2)
    x = (total + np.sqrt(total**2 - 4 * square)) / (2 * square)
    dx = -(a * x - (a * x) ** 2) / (total - 2 * square * x)
    layer = LIF(1, gradient=gradient)

    @jax.jit
    def first(first_weight, second_weight):
        inputs = concatenate(*(Spikes.from_times(jnp.full((1, 1, 1), t)) for t in time))
        kernel = jnp.array([[first_weight], [second_weight]])
        return layer.apply({"params": {"kernel": kernel}}, inputs).time[0, 0]

    value, grads = jax.value_and_grad(first, argnums=(0, 1))(*weights)
    np.testing.assert_allclose(value, -TAU * np.log(x), rtol=1e-12)
    np.testing.assert_allclose(grads, -TAU * dx / x, rtol=1e-11)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("gradient", METHODS)
def test_d8_so_it_does_through_a_recurrent_connection(gradient):
    # Neuron 0 hears both sources, and wakes neuron 1, whose spike is as much later as
    # the connection says; so both have the same gradient, which is that of neuron 0 in
    # a layer of its own, and of all times later together.
    time, weights, delay = jnp.array([1e-3, 2e-3]), jnp.array([4.0, 5.0]), 0.7e-3
    shared = {"gradient": gradient, "param_dtype": jnp.float64}
    loop = LIF(2, recurrent=True, recurrent_delay=delay, **shared)

    def woken(weights):
        inputs = concatenate(*(Spikes.from_times(jnp.full((1, 1, 1), t)) for t in time))
        kernel = jnp.stack([weights, jnp.zeros(2)], axis=1)
        back = jnp.array([[0.0, 6.0], [0.0, 0.0]])
        params = {"kernel": kernel, "recurrent_kernel": back}
        return loop.apply({"params": params}, inputs).first()[0]

    times, grads = jax.jit(lambda w: (woken(w), jax.jacrev(woken)(w)))(weights)
    expected = spike_train(Neuron(), weights, time, range(2), UNTIL, 1)
    (later,) = spike_train(Neuron(), [6.0], [0.0], [0], UNTIL, 1)
    wanted = np.array([expected[0], expected[0] + delay + later])
    np.testing.assert_allclose(times, wanted, rtol=1e-11)
    by_weight = by_differences(
        lambda w: spike_train(Neuron(), w, time, range(2), UNTIL, 1)[0],
        np.asarray(weights),
        1e-4,
    )
    assert (abs(by_weight) > 1e-5).all()  # Of the second source, too.
    np.testing.assert_allclose(grads, [by_weight] * 2, rtol=1e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("delay", [0.0, 0.1e-3, 1e-3])
def test_d9_populations_that_hear_each_other_do_not_wait_for_each_other(delay):
    # Two populations of two neurons; inputs 7.5 ms apart, many times any delay here.
    time, kernel = np.array([0.5e-3, 8e-3]), np.zeros((2, 4))
    kernel[0, :2], kernel[1, 2:] = [9.0, 7.0], [8.0, 6.0]
    other = np.arange(4) < 2
    lateral = np.where(other[:, None] != other, 2.0, 0.0)
    expected = recurrent_trains(Neuron(), kernel, time, lateral, delay, 20e-3, 9)
    spikes = np.isfinite(expected).sum(axis=1)
    assert (spikes >= 2).all()  # All neurons, some of which hear no early input.
    by = "window" if delay else "event"
    layer = LIF(
        4, max_spikes=9, recurrent=True, recurrent_delay=delay, recurrent_by=by
    ).clone(param_dtype=jnp.float64)
    params = {"kernel": jnp.array(kernel), "recurrent_kernel": jnp.array(lateral)}
    inputs = Spikes.from_times(jnp.array(time)[None, :, None])
    found = jax.jit(lambda: layer.apply({"params": params}, inputs, 20e-3).times(9))()
    np.testing.assert_array_equal(np.isfinite(found[0]), np.isfinite(expected))
    np.testing.assert_allclose(found[0], expected, rtol=1e-10)


@pytest.mark.parametrize("gradient", METHODS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("v_reset", [0.0, -1000.0])
def test_d10_equal_time_constants_have_finite_gradients(v_reset, dtype, gradient):
    # By hand: w = 2 e^(1/2) makes t = tau / 2, where V' = 1 / tau and k = 1 / w, so
    # that dt/dw = -tau / w. Neurons 1 and 2 are silent.
    with jax.enable_x64(dtype == jnp.float64):
        w = 2 * np.exp(0.5)
        kernel = jnp.array([[w, 2.7, -5.0]], dtype)
        inputs = Spikes.from_times(jnp.zeros((1, 1, 1), dtype))
        layer = LIF(3, tau_syn=TAU, v_reset=v_reset, max_spikes=2, gradient=gradient)

        @jax.jit
        def loss(kernel):
            times = layer.apply({"params": {"kernel": kernel}}, inputs).first()
            return jnp.sum(jnp.where(jnp.isfinite(times), times, 0))

        value, grad = jax.value_and_grad(loss)(kernel)
        rtol = 1e-5 if dtype == jnp.float32 else 1e-11
        np.testing.assert_allclose(value, TAU / 2, rtol=rtol)
        np.testing.assert_allclose(grad, [[-TAU / w, 0, 0]], rtol=rtol)


def test_d11_the_loss_falls_as_the_right_neuron_leads():
    def loss(times):
        return ttfs_cross_entropy(times, jnp.array(0), tau=1e-3, t_silent=30e-3)

    leads, trails = jnp.array([5e-3, 6e-3]), jnp.array([6e-3, 5e-3])
    np.testing.assert_allclose(loss(leads), np.log1p(np.exp(-1)), rtol=1e-4)
    np.testing.assert_allclose(loss(trails), np.log1p(np.exp(1)), rtol=1e-4)
    # dL/dt_c = (1 - p_c) / tau is positive: descent makes the right one earlier.
    wrong = 1 / (1 + np.exp(1))
    np.testing.assert_allclose(
        jax.grad(loss)(leads), [wrong / 1e-3, -wrong / 1e-3], rtol=1e-4
    )


@pytest.mark.usefixtures("x64")
def test_d12_unsorted_inputs_are_sorted_or_refused():
    time, index = jnp.array([[9e-3, 1e-3, 5e-3]]), jnp.array([[0, 1, 2]])
    with pytest.raises(ValueError, match="not ascending"):
        Spikes(time, index, 3)
    layer = LIF(1, max_spikes=9)
    kernel = np.array([6.0, 5.0, 4.0])
    inputs = Spikes.from_events(time, index, 3)
    times = apply(layer, jnp.array(kernel)[:, None], inputs, UNTIL).times(9)[0, 0]
    expected = spike_train(Neuron(), kernel, time[0], index[0], UNTIL, 9)
    assert expected[-1] > 9e-3  # The last input, first in the list, had its effect.
    np.testing.assert_allclose(times[: len(expected)], expected, rtol=1e-11)
    assert jnp.isinf(times[len(expected) :]).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LIF(1, gradient="evntprop"), "LIF.gradient is 'evntprop'"),
        (lambda: LIF(1, tau_mem=-10e-3), "tau_mem is -0.01"),
        (lambda: LIF(1, tau_syn=-5e-3), "tau_syn is -0.005"),
        (lambda: Spikes(jnp.array([jnp.nan]), jnp.array([0]), 1), "contains NaN"),
        (lambda: Spikes.from_times(jnp.array([[jnp.nan]])), "contains NaN"),
        (lambda: Spikes(jnp.array([1e-3]), jnp.array([2]), 2), r"\[0, 2\)"),
    ],
)
def test_d13_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_d13_duplicate_names_are_refused():
    network = Network([LIF(2, name="same"), LIF(1, name="same")])
    inputs = Spikes.from_times(jnp.zeros((1, 1, 1)))
    with pytest.raises(flax.errors.NameInUseError, match="same"):
        network.init(jax.random.key(0), inputs)


def test_d14_errors_name_what_is_wrong():
    inputs = Spikes.from_times(jnp.zeros((1, 2, 1)))
    network = Network([LIF(3, name="hidden"), LIF(1, name="output")])
    with pytest.raises(TypeError, match=r"LIF 'hidden' takes jaxsnn\.Spikes"):
        network.init(jax.random.key(0), jnp.zeros((1, 2)))
    kernels = {"hidden": {"kernel": jnp.ones((2, 3))}}
    with pytest.raises(flax.errors.FlaxError, match=r'"kernel".*"/output"'):
        network.apply({"params": kernels}, inputs)
    kernels["output"] = {"kernel": jnp.ones((4, 1))}
    with pytest.raises(ValueError, match=r"'output' .* spikes of 4 sources"):
        network.apply({"params": kernels}, inputs)
    kernels["output"] = {"kernel": jnp.ones((3, 1))}
    recorded = network.clone(backend=Replay((jnp.zeros((1, 3, 1)),)))
    with pytest.raises(ValueError, match="holds 1 layers, the network has 2"):
        recorded.apply({"params": kernels}, inputs)


def test_d15_dead_neurons_have_a_cure():
    inputs = Spikes.from_times(jnp.full((4, 2, 1), 1e-3))
    kernel = jnp.array([[0.1, 4.0], [0.1, 4.0]])

    def loss(kernel, rate):
        out = LIF(2).apply({"params": {"kernel": kernel}}, inputs)
        times, counts = out.first(), out.count()
        value = ttfs_cross_entropy(
            times, jnp.zeros(4, jnp.int32), tau=1e-3, t_silent=20e-3
        ).mean()
        return value + rate * silence_bump(kernel, counts)

    grad = jax.jit(jax.grad(loss))
    plain, cured = grad(kernel, 0.0), grad(kernel, 0.1)
    np.testing.assert_array_equal(plain[:, 0], 0)  # Defined, and zero.
    assert (jnp.abs(plain[:, 1]) > 0).all()
    # Silent in all samples: -rate for every weight, so that descent lifts them.
    np.testing.assert_allclose(cured[:, 0], [-0.1, -0.1], rtol=1e-6)
    np.testing.assert_array_equal(cured[:, 1], plain[:, 1])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("gradient", METHODS)
def test_d16_traced_parameters_have_their_gradient(gradient):
    neuron = Neuron(v_leak=0.2, v_reset=-0.3)
    point = {k: float(v) for k, v in vars(neuron).items() if k != "t_ref"}

    @jax.jit
    def first(parameters, kernel, time):
        layer = LIF(1, **parameters, gradient=gradient, param_dtype=jnp.float64)
        inputs = Spikes.from_times(time[None, :, None])
        return layer.apply({"params": {"kernel": kernel[:, None]}}, inputs).time[0, 0]

    value, (found, by_kernel, by_time) = jax.value_and_grad(first, argnums=(0, 1, 2))(
        point, jnp.array(KERNEL), jnp.array(TIME)
    )
    for name, at in point.items():
        h = 1e-4 * abs(at)
        (expected,) = by_differences(
            lambda x, k=name: train(Neuron(**point | {k: float(x[0])}), 1)[0],
            np.array([at]),
            h,
        )
        np.testing.assert_allclose(found[name], expected, rtol=1e-6, atol=1e-12)
    # Times do not depend on the unit of voltages, and scale with the time constants.
    volts = [point[k] * found[k] for k in ("v_th", "v_leak", "v_reset")]
    np.testing.assert_allclose(sum(volts), -jnp.sum(KERNEL * by_kernel), rtol=1e-10)
    seconds = [point[k] * found[k] for k in ("tau_mem", "tau_syn")]
    scaled = value - jnp.sum(TIME * by_time)
    np.testing.assert_allclose(sum(seconds), scaled, rtol=1e-10)
