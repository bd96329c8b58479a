"""Delays of synapses and of axons.

A delayed spike is a spike at a later time: references are layers without delays, on
inputs that were delayed in NumPy, the scan of `oracles`, and central differences.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from oracles import spike_train

from jaxsnn import Spikes
from jaxsnn.analytic import analytic
from jaxsnn.dynamics import Neuron
from jaxsnn.eventprop import eventprop
from jaxsnn.hardware import SimulatedChip
from jaxsnn.layers import LI, LIF, Bounded, Delay, Network

METHODS = [eventprop, analytic]
N_IN, N_OUT, SPIKES, UNTIL = 6, 4, 3, 40e-3


def random_problem(seed=0, batch=2):
    """A kernel, delays of each pair, and input times."""
    rng = np.random.default_rng(seed)
    kernel = rng.normal(4.0, 3.0, (N_IN, N_OUT))
    delay = rng.uniform(0.0, 10e-3, (N_IN, N_OUT))
    return kernel, delay, rng.uniform(1e-3, 20e-3, (batch, N_IN))


def inputs_of(time, form="by source"):
    if form == "by source":
        return Spikes.from_times(jnp.asarray(time)[..., None])
    index = jnp.broadcast_to(jnp.arange(time.shape[-1]), time.shape)
    return Spikes.from_events(jnp.asarray(time), index, time.shape[-1])


@functools.partial(jax.jit, static_argnames=("gradient", "form", "max_spikes"))
def run(kernel, delay, time, until=UNTIL, gradient=eventprop, form="by source",
        max_spikes=SPIKES):  # fmt: skip
    """Spike times of a layer with constant delays, [batch, neurons, max_spikes]."""
    layer = LIF(
        kernel.shape[1],
        delay=delay,
        max_spikes=max_spikes,
        gradient=gradient,
        param_dtype=jnp.float64,
    )
    params = {"params": {"kernel": kernel}}
    return layer.apply(params, inputs_of(time, form), until).times(max_spikes)


def differences(f, h):
    """Derivative of `f` at 0, by central differences of fourth order."""
    return (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)


def weighed(times):
    """A loss in which every spike has a weight of its own."""
    weight = np.cos(np.arange(times.size)).reshape(times.shape)
    fired = jnp.isfinite(times)
    return jnp.sum(jnp.where(fired, weight * jnp.sin(200 * times), 0))


# Of synapses: LIF.delay.


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("form", ["by source", "events"])
def test_inputs_arrive_later_at_each_neuron(form):
    kernel, delay, time = random_problem()
    times = run(kernel, delay, time, form=form)
    for b, n in np.ndindex(2, N_OUT):
        at = time[b] + delay[:, n]
        expected = spike_train(Neuron(), kernel[:, n], at, range(N_IN), UNTIL, SPIKES)
        found = times[b, n][jnp.isfinite(times[b, n])]
        np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert jnp.isfinite(times).sum() > 2 * N_OUT


@pytest.mark.usefixtures("x64")
def test_a_window_ends_for_what_arrives():
    # What arrives after the end does nothing, though it was sent before.
    kernel, delay, time = random_problem()
    whole = run(kernel, delay, time)
    until = float(np.sort(np.asarray(whole[jnp.isfinite(whole)]))[5]) + 1e-9
    times = run(kernel, delay, time, until)
    np.testing.assert_allclose(times, np.where(whole < until, whole, np.inf), 1e-12)
    late = run(kernel, np.full((N_IN, N_OUT), UNTIL), time)
    assert not jnp.isfinite(late).any()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("gradient", METHODS)
def test_it_is_a_layer_with_a_source_for_each_synapse(gradient):
    kernel, delay, time = random_problem(1)

    def dense(kernel, delay, time):
        # Source (j, n) spikes when the spike of j arrives at n, and acts on n alone.
        arrival = (time[:, :, None] + delay).reshape(len(time), -1)
        wide = (kernel[:, :, None] * jnp.eye(N_OUT)).reshape(-1, N_OUT)
        return run(wide, None, arrival, gradient=gradient)

    def sparse(*arguments):
        return run(*arguments, gradient=gradient)

    def loss(function):
        with_times = lambda *x: (weighed(t := function(*x)), t)  # noqa: E731
        return jax.jit(jax.grad(with_times, argnums=(0, 1, 2), has_aux=True))

    grads, times = loss(sparse)(kernel, delay, time)
    expected, expected_times = loss(dense)(kernel, delay, time)
    np.testing.assert_allclose(times, expected_times, rtol=1e-11)
    for one, other in zip(grads, expected, strict=True):
        scale = 1e-9 * jnp.abs(other).max()
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=scale)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("gradient", "form"), [(eventprop, "events"), (analytic, "by source")]
)
def test_gradients_of_a_layer_are_those_of_differences(gradient, form):
    given = dict(zip(("kernel", "delay", "time"), random_problem(2), strict=True))
    given = jax.tree.map(jnp.asarray, given)

    @jax.jit
    @jax.value_and_grad
    def loss(given):
        return weighed(run(**given, gradient=gradient, form=form))

    _, found = loss(given)
    rng = np.random.default_rng(3)
    for name, value in given.items():
        way = rng.normal(size=value.shape) * (1 if name == "kernel" else 1e-3)

        def along(h, name=name, value=value, way=way):
            return loss(given | {name: value + h * way})[0]

        expected = differences(along, 1e-5)
        np.testing.assert_allclose(jnp.sum(found[name] * way), expected, rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_no_delay_is_a_delay_of_zero():
    kernel, _, time = random_problem(3)
    expected = run(kernel, None, time)
    np.testing.assert_allclose(run(kernel, 0.0, time), expected, rtol=1e-12)
    # The same one for all moves everything.
    later = run(kernel, 2e-3, time, until=UNTIL + 2e-3)
    np.testing.assert_allclose(later, expected + 2e-3, rtol=1e-11)


@pytest.mark.usefixtures("x64")
def test_delays_are_learned_one_for_each_synapse():
    kernel, _, time = random_problem(4)
    learned = {
        "log_delay": nn.initializers.constant(2e-3),
        "logit_delay": Bounded(0.0, 4e-3, step=0.5e-3, init=2.1e-3),
    }
    expected = run(kernel, 2e-3, time)
    for name, delay in learned.items():
        layer = LIF(N_OUT, delay=delay, max_spikes=SPIKES, param_dtype=jnp.float64)
        params = layer.init(jax.random.key(0), inputs_of(time))["params"]
        assert params[name].shape == (N_IN, N_OUT)
        variables = {"params": params | {"kernel": jnp.asarray(kernel)}}
        times = layer.apply(variables, inputs_of(time), UNTIL).times(SPIKES)
        np.testing.assert_allclose(times, expected, rtol=1e-11)


@pytest.mark.parametrize("layer", [Delay, functools.partial(LIF, 3)])
@pytest.mark.parametrize(
    ("delay", "message"),
    [
        (-1e-3, r"delay is -0\.001, expected times in seconds, 0 or more"),
        ((1e-3, np.nan, 0.0), "cannot arrive before it was sent"),
        (Bounded(-1e-3, 1e-3), "cannot arrive before it was sent"),
    ],
)
def test_delays_are_not_negative(layer, delay, message):
    with pytest.raises(ValueError, match=message):
        layer(delay=delay)


# Of axons: Delay.


@pytest.mark.parametrize("form", ["by source", "events"])
def test_spikes_are_delayed_and_sorted_again(form):
    time = np.array([[1e-3, 2e-3, 3e-3, np.inf], [4e-3, 1e-3, np.inf, np.inf]])
    layer = Delay((3e-3, 2e-3, 0.0, 1e-3))
    out = layer.apply({}, inputs_of(time, form))
    # In the first sample sources 0 and 1 arrive together: ties by source.
    np.testing.assert_array_equal(out.index, [[2, 0, 1, -1], [1, 0, -1, -1]])
    expected = np.array([[3e-3, 4e-3, 4e-3, np.inf], [3e-3, 7e-3, np.inf, np.inf]])
    np.testing.assert_allclose(out.time, expected, rtol=1e-6)
    np.testing.assert_array_equal(out.count(), np.isfinite(time))
    again = Spikes(out.time, out.index, out.size)  # Checks order, ties, empty slots.
    np.testing.assert_array_equal(again.times(1), out.times(1))


def test_several_spikes_of_a_source_and_any_batch_axes():
    times = np.array([[1e-3, 5e-3], [2e-3, np.inf]]) + np.zeros((2, 3, 1, 1))
    layer = Delay((4e-3, 0.0))
    out = layer.apply({}, Spikes.from_times(jnp.asarray(times, jnp.float32)))
    assert out.time.shape == (2, 3, 4)
    expected = np.array([[5e-3, 9e-3], [2e-3, np.inf]]) + np.zeros((2, 3, 1, 1))
    np.testing.assert_allclose(out.times(2), expected, rtol=1e-6)
    one = jax.vmap(lambda x: layer.apply({}, x))(Spikes.from_times(jnp.asarray(times)))
    np.testing.assert_array_equal(one.index, out.index)


def test_no_spikes_at_all():
    nothing = Spikes(jnp.zeros((2, 0)), jnp.zeros((2, 0), jnp.int32), 3)
    layer = Delay(nn.initializers.constant(1e-3))
    variables = layer.init(jax.random.key(0), nothing)
    out = layer.apply(variables, nothing)
    assert out.time.shape == (2, 0)
    assert out.size == 3
    silent = Spikes.from_times(jnp.full((2, 3, 1), jnp.inf))

    def careless(variables):  # The derivative of sin at inf is NaN.
        return jnp.sum(jnp.sin(layer.apply(variables, silent).time))

    grad = jax.grad(careless)(variables)["params"]["log_delay"]
    np.testing.assert_array_equal(grad, 0)


@pytest.mark.usefixtures("x64")
def test_dendrites_are_axons_of_the_layer_before():
    # To delay all inputs of a neuron by the same time delays its spikes.
    kernel, delay, time = random_problem(5)
    inputs_late = run(kernel, np.broadcast_to(delay[0], delay.shape), time, jnp.inf)
    spikes = Spikes.from_times(run(kernel, None, time, jnp.inf))
    outputs_late = Delay(delay[0], param_dtype=jnp.float64).apply({}, spikes)
    np.testing.assert_allclose(outputs_late.times(SPIKES), inputs_late, rtol=1e-11)


@pytest.mark.usefixtures("x64")
def test_gradients_of_a_network_with_delays_are_those_of_differences():
    # The first delay gets a list of events, the second one times by source.
    time = random_problem(6)[2]
    layers = [
        LIF(8, name="hidden", max_spikes=2, param_dtype=jnp.float64),
        Delay(nn.initializers.uniform(5e-3), name="axons", param_dtype=jnp.float64),
        LI(3, name="output", param_dtype=jnp.float64),
    ]
    network = Network([Delay(2e-3, name="start"), *layers])
    params = network.init(jax.random.key(1), inputs_of(time))["params"]
    assert set(params) == {"hidden", "axons", "output"}
    given = {"params": params, "time": jnp.asarray(time)}

    @jax.jit
    @jax.value_and_grad
    def loss(given):
        inputs = inputs_of(given["time"], "events")
        trace = network.apply({"params": given["params"]}, inputs, UNTIL)
        return jnp.sum(jnp.sin(3 * trace.maximum().value))

    _, found = loss(given)
    rng = np.random.default_rng(3)
    leaves, structure = jax.tree.flatten(given)
    for n, leaf in enumerate(leaves):
        way = rng.normal(size=leaf.shape) * (1e-3 if leaf is leaves[-1] else 1)

        def along(h, n=n, leaf=leaf, way=way):
            moved = [*leaves[:n], leaf + h * way, *leaves[n + 1 :]]
            return loss(jax.tree.unflatten(structure, moved))[0]

        expected = differences(along, 1e-5)
        each = jnp.sum(jax.tree.leaves(found)[n] * way)
        np.testing.assert_allclose(each, expected, rtol=1e-6)
        assert each != 0


@pytest.mark.usefixtures("x64")
def test_a_grid_has_the_gradient_at_the_rounded_delay():
    # By hand: dL/dd at the rounded delay, times dx/dp of the one without rounding.
    time = jnp.array([[1e-3, 2e-3]])
    bounds = Bounded(0.0, 8e-3, step=1e-3, init=lambda *_: jnp.array([2.4e-3, 6.6e-3]))
    layer = Delay(bounds, param_dtype=jnp.float64)
    params = layer.init(jax.random.key(0), inputs_of(time))

    def loss(params):
        times = layer.apply(params, inputs_of(time)).times(1)[0, :, 0]
        return jnp.sum(times**2), times

    found, times = jax.grad(loss, has_aux=True)(params)
    arrival = np.array([3e-3, 9e-3])
    np.testing.assert_allclose(times, arrival, rtol=1e-12)
    share = np.array([0.3, 0.825])
    expected = 2 * arrival * 8e-3 * share * (1 - share)
    np.testing.assert_allclose(found["params"]["logit_delay"], expected, rtol=1e-10)


def test_what_is_under_way_at_the_end_is_counted():
    time = np.array([[1e-3, 2e-3, 3e-3], [1e-3, 9e-3, np.inf]])
    network = Network([Delay(3e-3, name="axons"), LIF(2, name="output")])
    variables = network.init(jax.random.key(0), inputs_of(time))
    out, state = Delay(3e-3).apply({}, inputs_of(time), 5e-3, mutable=["events"])
    np.testing.assert_array_equal(out.count(), [[1, 0, 0], [1, 0, 0]])
    # Sent and not arrived; one more was never sent before the end.
    np.testing.assert_array_equal(state["events"]["under_way"], [2, 0])
    with pytest.raises(ValueError, match=r"Delay starts every run from rest"):
        Delay(3e-3).apply(state, inputs_of(time))
    _, state = network.apply(variables, inputs_of(time), 5e-3, mutable=["events"])
    assert set(state["events"]) == {"axons", "output"}
    with pytest.raises(ValueError, match="Delay 'axons' starts every run from rest"):
        network.apply({**variables, **state}, inputs_of(time))
    rest = {"events": {"output": state["events"]["output"]}}
    with pytest.raises(ValueError, match="Delay 'axons' starts every run from rest"):
        network.apply({**variables, **rest}, inputs_of(time))


def test_misuse_of_a_delay_is_said():
    inputs = inputs_of(np.array([[1e-3, 2e-3]]))
    with pytest.raises(TypeError, match=r"Delay takes jaxsnn\.Spikes, not ndarray"):
        Delay(1e-3).apply({}, np.zeros(2))
    with pytest.raises(ValueError, match=r"Delay\.delay is .*array that fits \(2,\)"):
        Delay((1e-3, 1e-3, 1e-3)).apply({}, inputs)
    with pytest.raises(ValueError, match="until is nan"):
        Delay(1e-3).apply({}, inputs, jnp.nan)
    layers = [Delay(1e-3, name="axons"), LIF(2, name="targets")]
    network = Network(layers, backend=SimulatedChip())
    with pytest.raises(ValueError, match="'targets' has delays of up to 1 us on the"):
        network.init(jax.random.key(0), inputs)
