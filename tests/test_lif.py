"""What a LIF layer must do, whatever computes it.

Every expected value has its own source: algebra done by hand, an independent
integration, finite differences, differentiation through the crossing, or a symmetry of
the equations. None is a number that the code under test once printed.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import euler, psp, spike_train

from jaxsnn import Spikes
from jaxsnn.analytic import analytic
from jaxsnn.dynamics import Neuron
from jaxsnn.eventprop import eventprop
from jaxsnn.hardware import SimulatedChip
from jaxsnn.layers import LIF, Network
from jaxsnn.simulate import simulate

RATIOS = [0.5, 1.0, 1 - 1e-6, 1 + 1e-6, 1.5, 2.0, 4.0, 10.0]
METHODS = [eventprop, analytic]


def random_problem(seed, n_in=8, n_out=12, batch=2, strength=3.0):
    """Weights and one input time per source; strong enough for several spikes."""
    rng = np.random.default_rng(seed)
    kernel = rng.normal(strength, 3.0, (n_in, n_out))
    time = rng.uniform(1e-3, 20e-3, (batch, n_in))
    return jnp.array(kernel), jnp.array(time)


@functools.partial(jax.jit, static_argnames=[*vars(Neuron()), "max_spikes", "gradient"])
def layer_times(kernel, time, until=jnp.inf, **attributes):
    """Output times [batch, neurons, max_spikes] of a layer, from its public face."""
    layer = LIF(kernel.shape[1], **attributes)
    inputs = Spikes.from_times(time[..., None])
    spikes = layer.apply({"params": {"kernel": kernel}}, inputs, until)
    return spikes.times(layer.max_spikes)


@functools.partial(jax.jit, static_argnums=0)
def run_window(layer, variables, inputs, until=jnp.inf):
    """Spikes and state of a layer after one window."""
    return layer.apply(variables, inputs, until, mutable=["events"])


def difference(f, h=1e-6):
    """Derivative of `f` at 0, by central differences of fourth order."""
    return (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)


def smooth_loss(times):
    """Some loss in which every finite spike time has its own weight."""
    weight = 1 + jnp.arange(times.size, dtype=times.dtype).reshape(times.shape) % 7
    safe = jnp.where(jnp.isfinite(times), times, 0)
    return jnp.sum(jnp.where(jnp.isfinite(times), weight * jnp.sin(200 * safe), 0))


# One input, one neuron: by hand. With x = exp(-(t - t0) / tau_mem) and tau_mem = 2
# tau_syn the voltage is w (x - x^2), which meets 1 at x = (1 + sqrt(1 - 4 / w)) / 2.


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("weight", [4.5, 6.0, 50.0])
@pytest.mark.parametrize("gradient", METHODS)
def test_one_spike_and_its_gradient_are_what_algebra_says(weight, gradient):
    x = (1 + np.sqrt(1 - 4 / weight)) / 2

    def first(w):
        time = jnp.array([[3e-3]])
        return layer_times(jnp.array([[w]]), time, gradient=gradient)[0, 0, 0]

    value, slope = jax.value_and_grad(first)(jnp.array(weight))
    np.testing.assert_allclose(value, 3e-3 - 10e-3 * np.log(x), rtol=1e-12)
    np.testing.assert_allclose(
        slope, -10e-3 / (weight**2 * x * (2 * x - 1)), rtol=1e-12
    )


@pytest.mark.usefixtures("x64")
def test_equal_time_constants_against_the_lambert_function():
    # w (t / tau) exp(-t / tau) = 1 at t = -tau W0(-1 / w); for w = 2 e^(1/2) that is
    # t = tau / 2, since (1/2) e^(-1/2) w = 1.
    kernel = jnp.array([[2 * np.exp(0.5)]])
    times = layer_times(kernel, jnp.array([[0.0]]), tau_mem=8e-3, tau_syn=8e-3)
    np.testing.assert_allclose(times[0, 0, 0], 4e-3, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_leak_over_threshold_fires_without_input():
    # V = v_leak + (v_reset - v_leak) exp(-t / tau_mem) meets 1 every
    # tau_mem log((v_leak - v_reset) / (v_leak - 1)).
    layer = LIF(1, v_leak=3.0, v_reset=-1.0, max_spikes=3)
    nothing = Spikes(jnp.full((1, 2), jnp.inf), jnp.full((1, 2), -1), 1)
    out = layer.apply({"params": {"kernel": jnp.ones((1, 1))}}, nothing)
    period = 10e-3 * np.log(4 / 2)
    np.testing.assert_allclose(out.time[0], period * np.arange(1, 4), rtol=1e-12)


# Many inputs, several spikes: against integrations that know nothing of the package.


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize(
    ("v_leak", "v_reset", "max_spikes"),
    [(0.0, 0.0, 1), (1.5, -0.2, 6), (-0.2, 0.4, 20)],
)
def test_spike_times_match_a_dense_scan(ratio, v_leak, v_reset, max_spikes):
    neuron = Neuron(10e-3, 10e-3 / ratio, 1.0, v_leak, v_reset)
    kernel, time = random_problem(0)
    until = 40e-3
    attributes = vars(neuron) | {"max_spikes": max_spikes}
    times = np.asarray(layer_times(kernel, time, until, **attributes))
    spikes = 0
    for b in range(time.shape[0]):
        for n in range(kernel.shape[1]):
            expected = spike_train(
                neuron, kernel[:, n], time[b], range(8), until, max_spikes
            )
            found = times[b, n][np.isfinite(times[b, n])]
            np.testing.assert_allclose(found, expected, rtol=1e-11)
            spikes += len(expected)
    assert spikes > 12  # A silent network would prove nothing.


@pytest.mark.usefixtures("x64")
def test_spike_times_match_small_euler_steps():
    neuron = Neuron(10e-3, 4e-3, 1.0, 0.1, -0.3)
    kernel, time = random_problem(1, n_out=3)
    times = layer_times(kernel, time, 40e-3, **vars(neuron), max_spikes=4)
    for n in range(3):
        found = times[0, n][jnp.isfinite(times[0, n])]
        expected = euler(neuron, kernel[:, n], time[0], range(8), 40e-3, 2e-7, 4)
        np.testing.assert_allclose(found, expected, atol=2e-6)  # Euler's own error.


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("max_spikes", [1, 5])
@pytest.mark.parametrize("ratio", [1.5, 2.0])
def test_the_chunk_changes_speed_only(max_spikes, ratio):
    kernel, time = random_problem(2)
    inputs = Spikes.from_times(time[..., None])
    neuron = Neuron(10e-3, 10e-3 / ratio, v_reset=-0.2)
    whole, *others = (
        simulate(neuron, kernel, inputs, max_spikes=max_spikes, chunk=chunk).times
        for chunk in (8, 1, 3, 5)
    )
    assert jnp.isfinite(whole).sum() > 20
    for other in others:
        np.testing.assert_allclose(other, whole, rtol=1e-12)


# Gradients: finite differences, and two methods that share no code.


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize(
    ("max_spikes", "v_leak", "v_reset"), [(1, 0.0, 0.0), (5, 1.3, -0.4)]
)
def test_gradients_match_finite_differences_and_each_other(
    ratio, max_spikes, v_leak, v_reset
):
    kernel, time = random_problem(3)

    def loss(gradient, kernel, time):
        times = layer_times(
            kernel, time, 40e-3, tau_syn=10e-3 / ratio, v_leak=v_leak, v_reset=v_reset,
            max_spikes=max_spikes, gradient=gradient,
        )  # fmt: skip
        return smooth_loss(times)

    grads = [
        jax.jit(jax.grad(loss, argnums=(1, 2)), static_argnums=0)(m, kernel, time)
        for m in METHODS
    ]
    for by_eventprop, by_crossing in zip(*grads, strict=True):
        scale = jnp.abs(by_crossing).max()
        assert scale > 0
        np.testing.assert_allclose(
            by_eventprop, by_crossing, rtol=1e-9, atol=1e-9 * scale
        )

    rng = np.random.default_rng(4)
    f = jax.jit(lambda k, t: loss(eventprop, k, t))
    for _ in range(3):
        dk, dt = rng.normal(size=kernel.shape), 1e-3 * rng.normal(size=time.shape)
        along = jnp.sum(grads[0][0] * dk) + jnp.sum(grads[0][1] * dt)
        expected = difference(lambda h, dk=dk, dt=dt: f(kernel + h * dk, time + h * dt))
        np.testing.assert_allclose(along, expected, rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_higher_derivatives_and_forward_mode_of_analytic():
    # By hand, for w (x - x^2) = 1: t(w) = -tau log x, x' = 1 / (w^2 (2x - 1)), so
    # t' = -tau x' / x and t'' = -tau (x'' / x - x'^2 / x^2), with
    # x'' = -2 x' (1 / w + x' / (2x - 1)).
    w, tau = 6.0, 10e-3
    x = (1 + np.sqrt(1 - 4 / w)) / 2
    dx = 1 / (w**2 * (2 * x - 1))
    ddx = -2 * dx * (1 / w + dx / (2 * x - 1))

    def first(w):
        time = jnp.array([[0.0]])
        return layer_times(w.reshape(1, 1), time, gradient=analytic)[0, 0, 0]

    w = jnp.array(w)
    forward = jax.jacfwd(first)(w)
    np.testing.assert_allclose(forward, -tau * dx / x, rtol=1e-12)
    second = -tau * (ddx / x - dx**2 / x**2)
    np.testing.assert_allclose(jax.hessian(first)(w), second, rtol=1e-11)
    np.testing.assert_allclose(jax.grad(jax.grad(first))(w), second, rtol=1e-11)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("gradient", METHODS)
def test_two_layers_of_bursts_match_finite_differences(gradient):
    kernel, time = random_problem(5, n_in=5, n_out=6)
    output, _ = random_problem(6, n_in=6, n_out=3, strength=1.0)
    network = Network(
        [
            LIF(6, max_spikes=3, gradient=gradient, name="hidden"),
            LIF(3, tau_syn=3e-3, max_spikes=2, gradient=gradient, name="output"),
        ]
    )

    @jax.jit
    def loss(kernel, output, time):
        params = {"hidden": {"kernel": kernel}, "output": {"kernel": output}}
        spikes = network.apply({"params": params}, Spikes.from_times(time[..., None]))
        return smooth_loss(spikes.times(2))

    arguments = (kernel, output, time)
    grads = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*arguments)
    for n, (argument, grad) in enumerate(zip(arguments, grads, strict=True)):
        direction = np.random.default_rng(n).normal(size=argument.shape)
        direction *= 1e-3 if n == 2 else 1.0  # Times are milliseconds.

        def moved(h, n=n, direction=direction):
            return loss(
                *arguments[:n], arguments[n] + h * direction, *arguments[n + 1 :]
            )

        expected = difference(moved)
        np.testing.assert_allclose(jnp.sum(grad * direction), expected, rtol=1e-6)


@pytest.mark.parametrize("gradient", METHODS)
@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0, 4.0])
def test_float32_is_close_to_float64(gradient, ratio):
    # A seed without a grazing spike, whose slope is itself a rounding error.
    with jax.enable_x64(True):
        kernel, time = random_problem(8, n_in=5, n_out=20, batch=4)

    def both(kernel, time):
        def loss(k):
            return smooth_loss(
                layer_times(k, time, tau_syn=10e-3 / ratio, gradient=gradient)
            )

        times = layer_times(kernel, time, tau_syn=10e-3 / ratio, gradient=gradient)
        return times, jax.jit(jax.grad(loss))(kernel)

    with jax.enable_x64(True):
        exact_times, exact_grad = both(kernel, time)
    times, grad = both(kernel.astype(jnp.float32), time.astype(jnp.float32))
    assert times.dtype == grad.dtype == jnp.float32
    np.testing.assert_allclose(times, exact_times, rtol=1e-4)
    scale = np.abs(exact_grad).max()
    np.testing.assert_allclose(grad, exact_grad, atol=1e-4 * scale)


# What the equations cannot tell apart.


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("gradient", METHODS)
@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0, 4.0])
def test_delaying_every_input_delays_every_output(gradient, ratio):
    kernel, time = random_problem(8)

    def run(time):
        return layer_times(
            kernel, time, tau_syn=10e-3 / ratio, v_reset=-0.3, max_spikes=4,
            gradient=gradient,
        )  # fmt: skip

    times = run(time)
    finite = jnp.isfinite(times)
    assert finite.sum() > 30
    np.testing.assert_allclose(run(time + 7e-3), times + 7e-3, rtol=1e-12)
    # So the gradients by the input times sum to those by the output times.
    weight = jnp.cos(jnp.arange(times.size, dtype=times.dtype)).reshape(times.shape)
    weight = jnp.where(finite, weight, 0)

    def loss(time):
        return jnp.sum(jnp.where(finite, run(time), 0) * weight)

    np.testing.assert_allclose(
        jax.jit(jax.grad(loss))(time).sum(), weight.sum(), rtol=1e-9
    )


@pytest.mark.usefixtures("x64")
def test_permuting_neurons_and_scaling_time():
    kernel, time = random_problem(9)
    order = np.random.default_rng(0).permutation(kernel.shape[1])
    times = layer_times(kernel, time, max_spikes=3)
    np.testing.assert_array_equal(
        layer_times(kernel[:, order], time, max_spikes=3), times[:, order]
    )
    slow = layer_times(kernel, 3 * time, tau_mem=30e-3, tau_syn=15e-3, max_spikes=3)
    np.testing.assert_allclose(slow, 3 * times, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_a_batch_is_its_samples_and_jit_and_vmap_change_nothing():
    kernel, time = random_problem(10, batch=3)
    grad = jax.jit(jax.value_and_grad(lambda k, t: smooth_loss(layer_times(k, t))))
    whole = layer_times(kernel, time)
    for b in range(3):
        np.testing.assert_allclose(layer_times(kernel, time[b]), whole[b], rtol=1e-12)
    vmapped = jax.vmap(lambda t: layer_times(kernel, t))(time)
    np.testing.assert_allclose(vmapped, whole, rtol=1e-12)
    kernels = jnp.stack([kernel, 1.1 * kernel])
    together = jax.jit(jax.vmap(grad, in_axes=(0, None)))(kernels, time)
    for n in range(2):
        value, slope = grad(kernels[n], time)
        np.testing.assert_allclose(together[0][n], value, rtol=1e-12)
        np.testing.assert_allclose(together[1][n], slope, rtol=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("gradient", METHODS)
def test_events_and_times_per_source_are_the_same_inputs(gradient):
    kernel, time = random_problem(11)
    size = time.shape[-1]
    index = jnp.broadcast_to(jnp.arange(size), time.shape)

    def loss(kernel, time, as_events):
        if as_events:
            inputs = Spikes.from_events(time, index, size)
        else:
            inputs = Spikes.from_times(time[..., None])
        layer = LIF(kernel.shape[1], max_spikes=3, gradient=gradient)
        return smooth_loss(layer.apply({"params": {"kernel": kernel}}, inputs).times(3))

    grad = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=2)
    for one, other in zip(
        grad(kernel, time, True), grad(kernel, time, False), strict=True
    ):
        scale = jnp.abs(one).max()
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12 * scale)


# Silence, grazing, ties.


@pytest.mark.parametrize("gradient", METHODS)
def test_silent_neurons_have_zero_gradient(gradient):
    kernel = jnp.array([[0.1, 8.0]])

    def loss(kernel, time):
        times = layer_times(kernel, time, gradient=gradient)
        return jnp.sum(jnp.sin(times))  # NaN at inf: gradients must survive even that.

    by_kernel, by_time = jax.grad(loss, argnums=(0, 1))(kernel, jnp.array([[1e-3]]))
    assert by_kernel[0, 0] == 0
    assert by_kernel[0, 1] != 0
    assert jnp.isfinite(by_time).all()
    silent = jax.grad(loss)(0 * kernel, jnp.array([[1e-3]]))
    np.testing.assert_array_equal(silent, 0)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("ratio", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("gradient", METHODS)
def test_touching_the_threshold_is_not_crossing_it(ratio, gradient):
    # The peak of one post-synaptic potential is the smallest threshold not crossed.
    t = np.linspace(0, 50e-3, 2_000_001)
    top = psp(10e-3, 10e-3 / ratio, t).max()
    first = jax.jit(
        lambda w: layer_times(
            w.reshape(1, 1),
            jnp.array([[0.0]]),
            tau_syn=10e-3 / ratio,
            gradient=gradient,
        )[0, 0, 0]
    )
    assert not jnp.isfinite(first(jnp.array((1 - 1e-9) / top)))
    near = jnp.array((1 + 1e-9) / top)
    np.testing.assert_allclose(
        first(near), t[psp(10e-3, 10e-3 / ratio, t).argmax()], rtol=1e-3
    )
    slope = jax.grad(first)(near)
    assert jnp.isfinite(slope)
    assert slope < -1  # Huge, and honest: dt/dw diverges at the peak.


def test_exactly_at_the_peak_nothing_is_nan():
    # w = 4 at ratio 2 touches the threshold exactly: V = 4 (x - x^2) <= 1.
    grad = jax.grad(
        lambda w: jnp.where(
            jnp.isfinite(t := layer_times(w, jnp.zeros((1, 1)))), t, 0
        ).sum()
    )
    assert jnp.isfinite(grad(jnp.array([[4.0]]))).all()
    assert not jnp.isfinite(layer_times(jnp.array([[4.0]]), jnp.zeros((1, 1)))).any()


@pytest.mark.usefixtures("x64")
def test_simultaneous_inputs_add_and_simultaneous_outputs_all_fire():
    kernel = jnp.full((2, 4), 3.0)
    times = layer_times(kernel, jnp.array([[1e-3, 1e-3]]))
    alone = layer_times(jnp.array([[6.0]]), jnp.array([[1e-3]]))
    np.testing.assert_allclose(times[0, :, 0], jnp.full(4, alone[0, 0, 0]), rtol=1e-12)
    layer = LIF(4)
    out = layer.apply(
        {"params": {"kernel": kernel}}, Spikes.from_times(jnp.full((1, 2, 1), 1e-3))
    )
    np.testing.assert_array_equal(out.index[0], [0, 1, 2, 3])  # Ties by index.


def test_an_input_at_the_time_of_a_spike_acts_first():
    # The membrane touches 1 at x = 1/2 with w = 4, without a spike; the same instant
    # an excitatory input arrives, so it spikes there and then.
    t = np.float32(10e-3) * np.float32(np.log(2.0))
    kernel = jnp.array([[4.0], [5.0]])
    times = layer_times(kernel, jnp.array([[0.0, t]]))
    np.testing.assert_allclose(times[0, 0, 0], t, rtol=1e-3)
    inhibited = layer_times(jnp.array([[4.0], [-5.0]]), jnp.array([[0.0, t]]))
    assert not jnp.isfinite(inhibited).any()


# Windows and state.


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("ratio", [1.0, 2.0, 4.0])
@pytest.mark.parametrize(("max_spikes", "v_leak"), [(1, 0.0), (3, 0.2), (30, 1.3)])
def test_two_windows_are_one(ratio, max_spikes, v_leak):
    kernel, time = random_problem(12)
    inputs = Spikes.from_times(time[..., None])
    layer = LIF(
        kernel.shape[1], tau_syn=10e-3 / ratio, v_leak=v_leak, v_reset=-0.2,
        max_spikes=max_spikes,
    )  # fmt: skip
    params = {"params": {"kernel": kernel}}

    whole, end = run_window(layer, params, inputs, 40e-3)
    cut = 9e-3
    first, state = run_window(layer, params, inputs.window(0.0, cut), cut)
    rest = inputs.window(cut, jnp.inf)
    second, state = run_window(layer, params | state, rest, 40e-3)
    assert first.count().sum() > 0
    assert second.count().sum() > 0
    joined = jnp.sort(jnp.concatenate([first.time, second.time], axis=-1), axis=-1)
    np.testing.assert_allclose(joined[:, : whole.time.shape[1]], whole.time, rtol=1e-11)
    assert not jnp.isfinite(joined[:, whole.time.shape[1] :]).any()
    for name in ("v", "i", "time", "count"):
        np.testing.assert_allclose(
            state["events"][name], end["events"][name], rtol=1e-9, atol=1e-12
        )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("gradient", METHODS)
def test_gradients_flow_through_the_state(gradient):
    kernel, time = random_problem(13)
    inputs = Spikes.from_times(time[..., None])
    layer = LIF(kernel.shape[1], max_spikes=3, v_reset=-0.2, gradient=gradient)

    def run(kernel, cuts):
        variables, total, start = {"params": {"kernel": kernel}}, 0.0, 0.0
        for stop in [*cuts, 40e-3]:
            part = inputs.window(start, stop)
            out, state = run_window(layer, variables, part, stop)
            variables = {**variables, **state}
            finite = jnp.isfinite(out.time)
            total += jnp.sum(jnp.where(finite, jnp.where(finite, out.time, 0) ** 2, 0))
            start = stop
        return total

    grad = jax.jit(jax.grad(run), static_argnums=1)
    whole, parts = grad(kernel, ()), grad(kernel, (7e-3, 11e-3))
    np.testing.assert_allclose(
        parts, whole, rtol=1e-8, atol=1e-12 * jnp.abs(whole).max()
    )


@pytest.mark.usefixtures("x64")
def test_the_state_is_the_voltage_that_integration_gives():
    kernel, time = random_problem(14, batch=1)
    inputs = Spikes.from_times(time[..., None])
    layer = LIF(kernel.shape[1], tau_syn=4e-3, v_leak=0.1, v_reset=-0.3, max_spikes=9)
    variables = {"params": {"kernel": kernel}}
    until = 15e-3
    out, state = run_window(layer, variables, inputs, until)
    # A sum over events by hand, from the spike times that another test confirms.
    for n in range(kernel.shape[1]):
        v = 0.1
        for j, t in enumerate(time[0]):
            if t < until:
                v += kernel[j, n] * psp(10e-3, 4e-3, until - t)
        for t in np.asarray(out.times(9)[0, n]):
            if np.isfinite(t):
                v -= 1.3 * np.exp(-(until - t) / 10e-3)
        np.testing.assert_allclose(state["events"]["v"][0, n], v, rtol=1e-10)


def test_a_plain_apply_writes_nothing_and_init_leaves_no_state():
    inputs = Spikes.from_times(jnp.array([[[1e-3]]]))
    layer = LIF(3)
    variables = layer.init(jax.random.key(0), inputs)
    assert set(variables) == {"params"}
    assert isinstance(layer.apply(variables, inputs), Spikes)


def test_late_inputs_are_counted():
    layer = LIF(2)
    variables = {"params": {"kernel": jnp.ones((1, 2))}}
    first = Spikes.from_times(jnp.array([[[1e-3]]]))
    _, state = run_window(layer, variables, first, 5e-3)
    _, state = run_window(layer, variables | state, first, 9e-3)
    np.testing.assert_array_equal(state["events"]["late"], [1])


# Capacity.


def test_the_earliest_spikes_find_a_slot_and_the_rest_is_counted():
    kernel, time = random_problem(15, n_out=10)
    kernel, time = kernel.astype(jnp.float32), time.astype(jnp.float32)
    inputs = Spikes.from_times(time[..., None])
    variables = {"params": {"kernel": kernel}}
    everything, _ = run_window(LIF(10), variables, inputs)
    few, state = run_window(LIF(10, slots=4), variables, inputs)
    np.testing.assert_array_equal(few.time, everything.time[:, :4])
    np.testing.assert_array_equal(few.index, everything.index[:, :4])
    total = jnp.isfinite(everything.time).sum(-1)
    assert (total > 4).all()
    np.testing.assert_array_equal(state["events"]["dropped"], total - 4)
    # What is dropped is gone for every reader.
    np.testing.assert_array_equal(few.count().sum(-1), 4)
    np.testing.assert_array_equal(jnp.isfinite(few.first()).sum(-1), 4)


# Bad input.


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"tau_mem": -1e-3}, "tau_mem is -0.001"),
        ({"tau_syn": 0.0}, "tau_syn is 0.0"),
        ({"v_reset": 1.0}, "v_reset must be below v_th"),
        ({"v_th": float("nan")}, "v_th is nan"),
        ({"max_spikes": 0}, "max_spikes is 0"),
        ({"slots": 0}, "slots is 0"),
        ({"gradient": "eventprop"}, "expected the function itself"),
    ],
)
def test_bad_attributes_are_refused_at_once(attributes, message):
    with pytest.raises(ValueError, match=message):
        LIF(**{"features": 3} | attributes)


def test_a_wrong_number_of_sources_names_the_expected_one():
    layer = LIF(3)
    two = Spikes.from_times(jnp.zeros((1, 2, 1)))
    variables = layer.init(jax.random.key(0), two)
    with pytest.raises(
        ValueError, match=r"expected spikes of 2 sources.*got spikes of 5"
    ):
        layer.apply(variables, Spikes.from_times(jnp.zeros((1, 5, 1))))
    with pytest.raises(TypeError, match=r"takes jaxsnn\.Spikes, not ndarray"):
        layer.apply(variables, np.zeros((1, 2)))


def test_a_state_of_another_batch_is_refused():
    layer = LIF(2)
    variables = {"params": {"kernel": jnp.ones((1, 2))}}
    one = Spikes.from_times(jnp.zeros((1, 1, 1)))
    _, state = run_window(layer, variables, one, 5e-3)
    with pytest.raises(ValueError, match="only be continued with the batch"):
        layer.apply(variables | state, Spikes.from_times(jnp.zeros((3, 1, 1))), 9e-3)


def test_eventprop_refuses_what_it_cannot_do():
    def first(w):
        return layer_times(w.reshape(1, 1), jnp.zeros((1, 1)))[0, 0, 0]

    with pytest.raises(TypeError, match=r"first derivatives only.*analytic"):
        jax.grad(jax.grad(first))(jnp.array(6.0))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jacfwd(first)(jnp.array(6.0))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("gradient", METHODS)
def test_an_input_at_the_start_of_a_run_has_its_whole_gradient(gradient):
    def first(t):
        kernel = jnp.array([[8.0]])
        return layer_times(kernel, t, v_leak=1.5, gradient=gradient)[0, 0, 0]

    grad = jax.grad(first)
    at_start, after = grad(jnp.array([[0.0]])), grad(jnp.array([[1e-9]]))
    np.testing.assert_allclose(at_start, after, rtol=1e-6)


def test_long_waits_keep_their_digits_in_float32():
    # After a strong inhibition at t0 the leak overcomes the current late: with x =
    # exp(-t / tau_mem), V = 1.5 (1 - x) + w (x - x^2) = 1 from rest at V = 0.
    w = -1e6
    roots = np.roots([-w, w - 1.5, 0.5])
    small = roots[(roots > 0) & (roots < 0.5)][0]
    times = layer_times(jnp.array([[w]], jnp.float32), jnp.zeros((1, 1)), v_leak=1.5)
    np.testing.assert_allclose(times[0, 0, 0], -10e-3 * np.log(small), rtol=1e-5)


def test_misuse_is_refused():
    inputs = Spikes.from_times(jnp.zeros((2, 1, 1)))
    variables = {"params": {"kernel": jnp.full((1, 3), 8.0)}}
    layer = LIF(3)
    with pytest.raises(ValueError, match="NaN or inf"):
        layer.apply({"params": {"kernel": jnp.array([[1, jnp.nan, 1]])}}, inputs)
    with pytest.raises(ValueError, match="expected one time for the batch"):
        layer.apply(variables, inputs, jnp.array([1.0, 2.0]))
    _, endless = run_window(layer, variables, inputs)
    with pytest.raises(ValueError, match="a run that had no end"):
        layer.apply(variables | endless, inputs)
    _, state = run_window(layer, variables, inputs, 1e-3)
    on_chip = LIF(3, backend=SimulatedChip())
    with pytest.raises(ValueError, match="devices start every run from rest"):
        on_chip.apply(variables | state, inputs, 2e-3)
    with pytest.raises(ValueError, match="backend is 'simulated_chip'"):
        LIF(3, backend="simulated_chip")
    with pytest.raises(ValueError, match="no layers"):
        Network([]).init(jax.random.key(0), inputs)


def test_no_input_events_at_all():
    nothing = Spikes(jnp.zeros((2, 0)), jnp.zeros((2, 0), jnp.int32), 3)
    layer = LIF(4)
    variables = layer.init(jax.random.key(0), nothing)
    out, state = run_window(layer, variables, nothing, 1e-2)
    np.testing.assert_array_equal(out.count(), np.zeros((2, 4)))
    np.testing.assert_array_equal(state["events"]["v"], np.zeros((2, 4)))
    grad = jax.grad(lambda v: jnp.sum(layer.apply(v, nothing).first()))(variables)
    np.testing.assert_array_equal(grad["params"]["kernel"], np.zeros((3, 4)))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("ratio", [2.0, 2.0002])  # With a closed form, and without.
def test_an_inhibited_neuron_that_recovers_does_not_fire(ratio):
    # Weak excitation ends a deep inhibition: the voltage rises, but not beyond rest.
    # All of it at once, without the inhibition, reaches 4 * 0.2 / 4.
    rng = np.random.default_rng(16)
    kernel = jnp.array([[-1.0]] * 4 + [[0.2]] * 4)
    time = jnp.array(rng.uniform(0, 60e-3, (200, 8)))
    times = layer_times(kernel, time, tau_syn=10e-3 / ratio, max_spikes=3)
    assert not np.isfinite(times).any()
