"""What the time-grid twins must do.

Expected values come from algebra, from NumPy sums over events, from the event-driven
layers (which other tests confirm), and from differences; none is what the code under
test once printed.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from oracles import psp

from jaxsnn import Spikes
from jaxsnn.coding import encode_latency
from jaxsnn.grid import rasterize, spikes_from_raster
from jaxsnn.layers import (
    LI,
    LIF,
    GridLI,
    GridLIF,
    GridNetwork,
    LICell,
    LIFCell,
    Network,
    grid_twin,
)
from jaxsnn.losses import ttfs_cross_entropy
from jaxsnn.surrogate import sigmoid, superspike, triangular

DT = 0.5e-3


def random_raster(seed, batch=2, steps=40, inputs=5):
    rng = np.random.default_rng(seed)
    return jnp.array(rng.poisson(0.05, (batch, steps, inputs)), jnp.float32)


def voltage_by_hand(layer, kernel, raster):
    """Voltages at the ends of the steps, as a sum over all input spikes."""
    *_, steps, _ = raster.shape
    ends = layer.dt * np.arange(1, steps + 1)
    starts = layer.dt * np.arange(steps)
    since = ends[:, None] - starts
    k = np.where(since > 0, psp(layer.tau_mem, layer.tau_syn, np.abs(since)), 0)
    return layer.v_leak + k @ (np.asarray(raster, float) @ np.asarray(kernel, float))


# Surrogates.


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("surrogate", "bump"),
    [
        (superspike(7.0), lambda x: (1 + 7 * np.abs(x)) ** -2),
        # 4 s (1 - s) of the logistic function s is 1 / cosh^2 of half the argument.
        (sigmoid(7.0), lambda x: np.cosh(3.5 * x) ** -2),
        (triangular(2.0), lambda x: np.interp(x, [-0.5, 0, 0.5], [0, 1, 0])),
    ],
)
def test_a_surrogate_is_a_step_with_the_stated_derivative(surrogate, bump):
    x = jnp.linspace(-2, 2, 41)  # Zero, where the step must not have been taken yet.
    np.testing.assert_array_equal(surrogate(x), np.where(np.asarray(x) > 0, 1.0, 0.0))
    slope = jax.jit(jax.vmap(jax.grad(surrogate)))(x)
    np.testing.assert_allclose(slope, bump(np.asarray(x)), rtol=1e-12, atol=1e-12)
    _, forward = jax.jvp(surrogate, (x,), (2 * jnp.ones_like(x),))
    np.testing.assert_allclose(forward, 2 * slope, rtol=1e-12)
    assert jax.grad(surrogate)(jnp.float32(1e30)) == 0  # Not NaN.
    assert surrogate(jnp.float32(1)).dtype == jnp.float32


def test_equal_surrogates_are_one_and_bad_ones_are_refused():
    assert superspike(5) is superspike(5.0)
    assert superspike(5.0) is not sigmoid(5.0)
    for bad in (0.0, -1.0, float("nan"), float("inf"), "10"):
        with pytest.raises(ValueError, match="expected a positive number"):
            triangular(bad)


# Conversions.


@pytest.mark.parametrize("dt", [1e-3, 0.1e-3, 1 / 3000, 7e-5])
def test_a_raster_survives_the_way_through_spikes(dt):
    # Quotients such as 3 * 0.1e-3 / 0.1e-3 round below 3; long grids have many.
    raster = random_raster(0, steps=300)
    assert raster.max() > 1  # Several spikes of one source in one step.
    spikes, dropped = spikes_from_raster(raster, dt)
    back, outside = rasterize(spikes, dt, 300)
    np.testing.assert_array_equal(back, raster)
    np.testing.assert_array_equal(dropped, [0, 0])
    np.testing.assert_array_equal(outside, [0, 0])
    np.testing.assert_array_equal(spikes.count(), raster.sum(-2))
    as_integers, _ = spikes_from_raster(raster.astype(jnp.uint8), dt)
    np.testing.assert_array_equal(as_integers.time, spikes.time)


@pytest.mark.usefixtures("x64")
def test_a_step_has_its_start_and_not_its_end_and_nothing_is_lost():
    dt = 0.25  # Exact in binary.
    time = jnp.array([[-0.25, 0.0, 0.2499, 0.25, 0.7499, 0.75, 9.0, jnp.inf]])
    spikes = Spikes.from_events(time, jnp.array([[0, 1, 1, 0, 1, 1, 0, -1]]), 2)
    raster, outside = jax.jit(rasterize, static_argnums=(1, 2))(spikes, dt, 3)
    np.testing.assert_array_equal(raster[0], [[0, 2], [1, 0], [0, 1]])
    np.testing.assert_array_equal(outside, [3])
    assert raster.dtype == jnp.float64


def test_the_earliest_spikes_are_kept_and_the_rest_is_counted():
    raster = jnp.zeros((1, 6, 2)).at[0, :, 0].set(jnp.array([0, 1, 0, 2, 1, 0]))
    spikes, dropped = jax.jit(lambda r: spikes_from_raster(r, 1.0, 2))(raster)
    np.testing.assert_array_equal(spikes.times(2)[0], [[1, 3], [np.inf, np.inf]])
    np.testing.assert_array_equal(dropped, [2])


@pytest.mark.usefixtures("x64")
def test_the_derivative_of_spike_times_is_the_effect_of_one_more_spike():
    raster = jnp.array([[0.0], [1], [0], [0], [1], [0], [1], [0], [1], [0]])

    def times(raster):
        found = spikes_from_raster(raster, 2.0, 3)[0].times(3)[0]
        return jnp.where(jnp.isfinite(found), found, 0)

    slope = jax.jacrev(times)(raster)
    assert (slope != 0).sum() > 7
    for s in range(10):
        change = times(raster.at[s].add(1)) - times(raster)
        np.testing.assert_array_equal(slope[:, s, 0], change)


# Dynamics.


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("ratio", [0.5, 1.0, 1 + 1e-6, 2.0, 5.0])
def test_without_spikes_the_voltage_is_the_closed_form(ratio):
    raster = random_raster(1).astype(jnp.float64)
    kernel = jnp.array(np.random.default_rng(2).normal(0, 3, (5, 4)))
    layer = GridLI(4, DT, tau_syn=10e-3 / ratio, v_leak=1.2)
    v = jax.jit(layer.apply)({"params": {"kernel": kernel}}, raster)
    expected = voltage_by_hand(layer, kernel, raster)
    np.testing.assert_allclose(v, expected, rtol=0, atol=1e-13)
    cell = LICell(4, DT, tau_syn=10e-3 / ratio, v_leak=1.2, param_dtype=jnp.float64)
    stepped = nn.RNN(cell).apply({"params": {"cell": {"kernel": kernel}}}, raster)
    np.testing.assert_allclose(stepped, expected, rtol=0, atol=1e-13)


@pytest.mark.usefixtures("x64")
def test_the_gradient_of_what_does_not_spike_is_that_of_differences():
    raster = random_raster(4).astype(jnp.float64)
    kernel = jnp.array(np.random.default_rng(5).normal(0, 3, (5, 4)))

    @jax.jit
    def loss(kernel, raster):
        v = GridLI(4, DT).apply({"params": {"kernel": kernel}}, raster)
        return jnp.sum(jnp.sin(v) * jnp.cos(jnp.arange(v.size).reshape(v.shape)))

    for n, x in enumerate((kernel, raster)):
        along = jnp.array(np.random.default_rng(6).normal(size=x.shape))

        def moved(h, n=n, x=x, along=along):
            return (
                loss(x + h * along, raster) if n == 0 else loss(kernel, x + h * along)
            )

        h = 1e-5
        expected = (moved(h) - moved(-h)) / (2 * h)
        found = jnp.vdot(jax.grad(loss, argnums=n)(kernel, raster), along)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def lif_by_hand(layer, kernel, raster):
    """Spikes of one sample: restart the closed form from each reset, in NumPy."""
    steps = raster.shape[0]
    free = voltage_by_hand(layer, kernel, raster) - layer.v_leak
    spikes = np.zeros_like(free)
    ends = layer.dt * np.arange(1, steps + 1)
    wait = round(layer.t_ref / layer.dt)
    for n in range(layer.features):
        base, last = np.zeros(steps), None
        for s in range(steps):
            if last is not None and s <= last + wait:
                # The clamp is an impulse that puts the voltage where it has to be.
                decay = np.exp(-(ends - ends[s]) / layer.tau_mem)
                base[s:] += (layer.v_reset - layer.v_leak - base[s] - free[s, n]) * (
                    decay[s:]
                )
                continue
            fired = spikes[:, n].sum()
            allowed = layer.max_spikes is None or fired < layer.max_spikes
            if allowed and layer.v_leak + free[s, n] + base[s] > layer.v_th:
                spikes[s, n], last = 1, s
                decay = np.exp(-(ends - ends[s]) / layer.tau_mem)
                base[s:] += (layer.v_reset - layer.v_leak - base[s] - free[s, n]) * (
                    decay[s:]
                )
    return spikes


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("max_spikes", [1, 3, None])
@pytest.mark.parametrize("t_ref", [0.0, 3.2e-3])
def test_spikes_resets_and_the_refractory_period_are_what_numpy_finds(
    max_spikes, t_ref
):
    raster = random_raster(7, steps=60).astype(jnp.float64)
    kernel = jnp.array(np.random.default_rng(8).normal(6, 3, (5, 4)))
    layer = GridLIF(
        4, DT, tau_syn=4e-3, v_leak=0.1, v_reset=-0.3, t_ref=t_ref,
        max_spikes=max_spikes,
    )  # fmt: skip
    variables = {"params": {"kernel": kernel}}
    out, events = layer.apply(variables, raster, mutable=["events"])
    expected = np.stack([lif_by_hand(layer, kernel, np.asarray(r)) for r in raster])
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(events["events"]["count"], expected.sum(-2))
    assert expected.sum() >= 6 if max_spikes == 1 else expected.sum() > 16
    if t_ref > 0:  # Six steps, at the least, in between.
        for train in np.moveaxis(expected, -2, -1).reshape(-1, 60):
            assert (np.diff(np.nonzero(train)[0]) > 6).all()


def test_neurons_whose_rest_is_above_threshold_fire_in_the_period_of_algebra():
    # V = 3 - 4 exp(-t / 10 ms) from -1 is above 1 from t = 10 ms log 2 = 6.93 ms on:
    # seen at the end of the 14th step of 0.5 ms, and every 14 steps thereafter.
    layer = GridLIF(1, DT, v_leak=3.0, v_reset=-1.0, max_spikes=None)
    out = layer.apply({"params": {"kernel": jnp.ones((1, 1))}}, jnp.zeros((50, 1)))
    np.testing.assert_array_equal(np.nonzero(out[:, 0])[0], [13, 27, 41])


def test_recurrent_spikes_act_one_step_later():
    # An input makes neuron 0 fire in its own step, which makes neuron 1 fire, which
    # inhibits nobody; 50 k(0.5 ms) > 1 by far.
    layer = GridLIF(2, DT, recurrent=True, max_spikes=None)
    raster = jnp.zeros((6, 1)).at[2].set(1)
    variables = layer.init(jax.random.key(0), raster)
    assert {k: v.shape for k, v in variables["params"].items()} == {
        "kernel": (1, 2),
        "recurrent_kernel": (2, 2),
    }
    # -w e^(-dt / tau_syn) takes back what is left of the current a step later.
    left = -50 * np.exp(-DT / 5e-3)
    params = {
        "kernel": jnp.array([[50.0, 0.0]]),
        "recurrent_kernel": jnp.array([[left, 50.0], [0.0, -100.0]]),
    }
    out = layer.apply({"params": params}, raster)
    np.testing.assert_array_equal(out, [[0, 0], [0, 0], [1, 0], [0, 1], [0, 0], [0, 0]])
    grads = jax.grad(lambda p: layer.apply({"params": p}, raster)[4:].sum())(params)
    assert grads["recurrent_kernel"][0, 1] != 0


def test_the_cells_are_flax_cells_and_do_what_the_layers_do():
    raster = random_raster(9)
    kernel = jnp.array(np.random.default_rng(10).normal(6, 3, (5, 4)), jnp.float32)
    cell = LIFCell(4, DT, max_spikes=3, t_ref=1e-3)
    assert cell.num_feature_axes == 1
    rnn = nn.RNN(cell, return_carry=True)
    variables = rnn.init(jax.random.key(0), raster)
    assert jax.tree.map(jnp.shape, variables) == {
        "params": {"cell": {"kernel": (5, 4)}}
    }
    variables = {"params": {"cell": {"kernel": kernel}}}
    carry, out = rnn.apply(variables, raster)
    layer = GridLIF(4, DT, max_spikes=3, t_ref=1e-3)
    whole = layer.apply({"params": {"kernel": kernel}}, raster)
    np.testing.assert_array_equal(out, whole)
    assert out.sum() > 10
    # In two parts, the second from the carry of the first.
    carry, first = rnn.apply(variables, raster[:, :17])
    _, second = rnn.apply(variables, raster[:, 17:], initial_carry=carry)
    np.testing.assert_array_equal(jnp.concatenate([first, second], -2), whole)
    # The other conventions of nn.RNN.
    swapped = jnp.swapaxes(raster, 0, 1)
    _, out = rnn.apply(variables, swapped, time_major=True)
    np.testing.assert_array_equal(out, jnp.swapaxes(whole, 0, 1))


# Twins.


def initialize(network, inputs, seed=0):
    return jax.jit(network.init)(jax.random.key(seed), inputs)


def two_layers(**attributes):
    return Network(
        [LIF(9, name="hidden", **attributes), LIF(3, tau_syn=4e-3, name="output")]
    )


def features(n=6):
    return jnp.array(np.random.default_rng(11).uniform(0, 1, (n, 4)))


def test_parameters_are_interchangeable():
    network = two_layers(max_spikes=2, v_leak=0.1, slots=7)
    inputs = encode_latency(features().astype(jnp.float32), t_late=10e-3, bias=0.0)
    variables = initialize(network, inputs)
    twin = grid_twin(network, DT, 60, triangular(0.5))
    # Name by name and, from one key, bit by bit: so each network takes the other's.
    jax.tree.map(np.testing.assert_array_equal, initialize(twin, inputs), variables)
    assert isinstance(jax.jit(twin.apply)(variables, inputs), Spikes)
    hidden, output = twin.layers
    assert (hidden.max_spikes, hidden.v_leak) == (2, 0.1)
    assert hidden.surrogate is triangular(0.5)
    assert (output.tau_syn, output.name, output.dt) == (4e-3, "output", DT)
    unnamed = Network([LIF(9), LIF(3)])
    # By their defaults too, also where only one of both was written down.
    expected = initialize(LIF(4, recurrent=True), inputs)
    found = initialize(GridLIF(4, DT, recurrent=True), jnp.zeros((1, 5, 5)))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert initialize(grid_twin(unnamed, DT, 60), inputs)["params"].keys() == (
        initialize(unnamed, inputs)["params"].keys()
    )


def test_what_neurons_learn_is_interchangeable_too():
    def learned(low, high):
        def init(key, shape, dtype):
            return jax.random.uniform(key, shape, dtype, low, high)

        return init

    values = {
        "tau_mem": learned(8e-3, 12e-3),
        "tau_syn": learned(3e-3, 6e-3),
        "v_th": learned(0.9, 1.1),
        "v_leak": learned(-0.1, 0.1),
        "v_reset": learned(-0.3, 0.3),
    }
    hidden = LIF(6, max_spikes=3, t_ref=1e-3, name="hidden", **values)
    network = Network([hidden, LI(2, tau_mem=learned(8e-3, 12e-3), name="output")])
    inputs = encode_latency(features().astype(jnp.float32), t_late=10e-3, bias=0.0)
    variables = initialize(network, inputs)
    twin = grid_twin(network, DT, 60)
    jax.tree.map(np.testing.assert_array_equal, initialize(twin, inputs), variables)

    bound = network.bind(variables)
    constants = [
        {name: np.asarray(getattr(layer.neuron, name)) for name in names}
        for layer, names in zip(bound.layers, (values, ("tau_mem",)), strict=True)
    ]
    same = Network(
        [
            LIF(6, max_spikes=3, t_ref=1e-3, name="hidden", **constants[0]),
            LI(2, name="output", **constants[1]),
        ]
    )
    kernels = {
        name: {"kernel": layer["kernel"]} for name, layer in variables["params"].items()
    }
    found = jax.jit(twin.apply)(variables, inputs)
    expected = jax.jit(grid_twin(same, DT, 60).apply)({"params": kernels}, inputs)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("x64")
def test_integrators_learn_their_time_constants_exactly():
    init = nn.initializers.constant
    layer = GridLI(
        3,
        DT,
        tau_mem=init(9e-3),
        tau_syn=init(4e-3),
        v_leak=init(0.1),
        param_dtype=jnp.float64,
    )
    raster = random_raster(4).astype(jnp.float64)
    params = layer.init(jax.random.key(0), raster)["params"]

    @jax.jit
    def loss(params):
        voltage = layer.apply({"params": params}, raster)
        return jnp.sum(jnp.sin(3 * voltage) * jnp.arange(3))

    grads = jax.grad(loss)(params)
    assert params.keys() == {"kernel", "log_tau_mem", "log_tau_syn", "v_leak"}
    for name, x in params.items():
        way = np.random.default_rng(1).normal(size=x.shape)
        h = 1e-5
        up, down = (loss(params | {name: x + s * h * way}) for s in (1, -1))
        slope = jnp.vdot(grads[name], way)
        np.testing.assert_allclose(slope, (up - down) / (2 * h), rtol=1e-6)


def test_a_cell_learns_all_but_where_it_starts():
    init, raster = nn.initializers.constant, random_raster(2)
    cell = LIFCell(4, DT, tau_mem=init(9e-3), max_spikes=None)
    layer = nn.RNN(cell)
    variables = jax.jit(layer.init)(jax.random.key(0), raster)
    assert variables["params"]["cell"].keys() == {"kernel", "log_tau_mem"}
    twin = GridLIF(4, DT, tau_mem=init(9e-3), max_spikes=None)
    expected = twin.apply({"params": variables["params"]["cell"]}, raster)
    assert expected.sum() > 10
    np.testing.assert_array_equal(layer.apply(variables, raster), expected)
    with pytest.raises(
        ValueError, match=r"LIFCell 'cell' learns v_leak, .* or use GridLIF"
    ):
        nn.RNN(LIFCell(4, DT, v_leak=init(0.1))).init(jax.random.key(0), raster)
    with pytest.raises(ValueError, match="whole number of steps"):
        GridLIF(4, DT, t_ref=init(1e-3))
    with pytest.raises(TypeError, match="not LIF"):
        grid_twin(LIF(3), DT, 10)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("depth", [1, 2])
def test_the_grid_tends_to_the_events_in_first_order(depth):
    many = LIF(30, max_spikes=4, v_leak=0.2, v_reset=-0.2, name="only")
    network = Network([many]) if depth == 1 else two_layers()
    inputs = encode_latency(features(40), t_late=10e-3, bias=0.0)
    variables = initialize(network, inputs, depth)
    most = network.layers[-1].max_spikes
    exact = jax.jit(network.apply)(variables, inputs).times(most)
    errors = []
    for steps in (400, 800):
        dt = 40e-3 / steps
        twin = grid_twin(network, dt, steps)
        found = jax.jit(twin.apply)(variables, inputs).times(most)
        both = jnp.isfinite(exact) & jnp.isfinite(found)
        assert (jnp.isfinite(exact) == jnp.isfinite(found)).mean() > 0.95
        assert (both.sum((0, 1)) > 60).all()
        early = exact - found
        # Rounding down moves by half a step in the mean: once the inputs, and once the
        # first spikes of each layer. As many spikes as here have a mean that close.
        first = jnp.mean(early[..., 0], where=both[..., 0]) / dt
        np.testing.assert_allclose(first, (depth + 1) / 2, atol=0.25)
        errors.append(jnp.mean(jnp.abs(early), where=both))
    np.testing.assert_allclose(errors[0] / errors[1], 2, rtol=0.15)


def test_a_readout_without_threshold_gives_voltages():
    network = Network([LIF(9, name="hidden"), LI(3, tau_mem=8e-3, name="output")])
    twin = grid_twin(network, DT, 60)
    assert isinstance(twin.layers[1], GridLI)
    inputs = encode_latency(features().astype(jnp.float32), t_late=10e-3, bias=0.0)
    variables = initialize(network, inputs)
    v, events = twin.apply(variables, inputs, mutable=["events"])
    assert v.shape == (6, 60, 3)
    assert events["events"].keys() == {"hidden"}
    raster, _ = rasterize(inputs, DT, 60)
    spikes = GridLIF(9, DT).apply({"params": variables["params"]["hidden"]}, raster)
    assert spikes.sum() > 20
    expected = voltage_by_hand(
        twin.layers[1], variables["params"]["output"]["kernel"], spikes
    )
    np.testing.assert_allclose(v, expected, rtol=0, atol=1e-5)


def test_inputs_outside_of_the_grid_are_reported():
    network = two_layers()
    inputs = Spikes.from_times(jnp.array([[[1e-3], [2e-3]], [[5.1e-3], [9e-3]]]))
    variables = initialize(grid_twin(network, DT, 10), inputs)
    _, events = jax.jit(
        lambda v, x: grid_twin(network, DT, 10).apply(v, x, mutable=["events"])
    )(variables, inputs)
    np.testing.assert_array_equal(events["events"]["hidden"]["outside"], [0, 2])


# Composition.


@pytest.mark.usefixtures("x64")
def test_jit_vmap_grad_and_both_precisions_agree():
    twin = grid_twin(two_layers(), 0.2e-3, 100)
    x, labels = features(3), jnp.arange(3)

    @jax.jit
    def grad(variables, x, labels):
        def loss(variables):
            inputs = encode_latency(x, t_late=10e-3, bias=0.0)
            times = twin.apply(variables, inputs).first()
            return ttfs_cross_entropy(times, labels, tau=1e-3, t_silent=30e-3).mean()

        return jax.value_and_grad(loss)(variables)

    inputs = encode_latency(x, t_late=10e-3, bias=0.0)
    variables = initialize(twin, inputs)
    variables = jax.tree.map(lambda w: w.astype(jnp.float64), variables)
    value, slope = grad(variables, x, labels)
    assert min(jnp.abs(g).max() for g in jax.tree.leaves(slope)) > 1e-3
    each = jax.vmap(grad, in_axes=(None, 0, 0))(variables, x[:, None], labels[:, None])
    mapped = jax.tree.map(lambda v: v.mean(0), each)
    single = jax.tree.map(lambda v: v.astype(jnp.float32), (variables, x))
    single = grad(*single, labels)
    assert single[0].dtype == jnp.float32
    for other, rtol in ((mapped, 1e-9), (single, 1e-3)):
        np.testing.assert_allclose(other[0], value, rtol=rtol)
        for a, b in zip(jax.tree.leaves(other[1]), jax.tree.leaves(slope), strict=True):
            np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())


def test_silent_neurons_have_a_gradient_and_no_nan():
    raster = jnp.zeros((20, 1)).at[3].set(1)

    def lateness(w):
        out = GridLIF(1, DT).apply({"params": {"kernel": w.reshape(1, 1)}}, raster)
        return out.sum()

    assert lateness(jnp.float32(3.5)) == 0  # 4 is needed; see test_lif.py.
    assert jax.grad(lateness)(jnp.float32(3.5)) > 0
    assert jnp.isfinite(jax.grad(lateness)(jnp.float32(1e30)))


# Bad input.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GridLIF(3, 0.0), "dt is 0.0"),
        (lambda: GridLIF(0, DT), "GridLIF.features is 0"),
        (lambda: GridLIF(3, DT, max_spikes=0), "GridLIF.max_spikes is 0"),
        (lambda: GridLIF(3, DT, t_ref=-1e-3), "t_ref is -0.001"),
        (lambda: GridLIF(3, DT, v_reset=2.0), "v_reset must be below v_th"),
        (lambda: GridLIF(3, DT, surrogate="superspike"), "the function itself"),
        (lambda: LICell(3, DT, tau_mem=0.0), "tau_mem is 0.0"),
        (lambda: GridLI(3, DT, kernel_init=3), "kernel_init is 3"),
    ],
)
def test_bad_attributes_are_refused_at_once(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_misuse_is_refused():
    spikes = Spikes.from_times(jnp.ones((1, 2, 1)))
    raster = jnp.zeros((1, 5, 2))
    layer = GridLIF(3, DT)
    variables = layer.init(jax.random.key(0), raster)
    with pytest.raises(TypeError, match=r"takes a raster, not Spikes.*rasterize"):
        layer.apply(variables, spikes)
    with pytest.raises(ValueError, match=r"shape \(5,\), expected \[\*batch, steps"):
        layer.apply(variables, raster[0, :, 0])
    with pytest.raises(ValueError, match=r"rasters of 2 sources.*got rasters of 4"):
        layer.apply(variables, jnp.zeros((1, 5, 4)))
    with pytest.raises(ValueError, match="NaN or inf"):
        layer.apply(variables, raster.at[0, 0, 0].set(jnp.nan))
    wrong = {"kernel": jnp.ones((2, 3)), "recurrent_kernel": jnp.full((3, 3), jnp.nan)}
    with pytest.raises(ValueError, match="the recurrent_kernel of GridLIF has entries"):
        GridLIF(3, DT, recurrent=True).apply({"params": wrong}, raster)
    with pytest.raises(ValueError, match=r"t_ref of GridLIF is 1\.0, longer than the"):
        GridLIF(3, DT, t_ref=1.0).apply(variables, raster)
    with pytest.raises(TypeError, match=r"takes jaxsnn\.Spikes"):
        rasterize(raster, DT, 5)
    with pytest.raises(ValueError, match="steps is 0"):
        rasterize(spikes, DT, 0)
    with pytest.raises(ValueError, match="dt is -1"):
        rasterize(spikes, -1, 5)
    with pytest.raises(ValueError, match="no spike counts"):
        spikes_from_raster(raster + 0.5, DT)
    with pytest.raises(ValueError, match=r"expected \[\*batch, steps, size\]"):
        spikes_from_raster(jnp.zeros(3), DT)
    with pytest.raises(ValueError, match="max_spikes is 0"):
        spikes_from_raster(raster, DT, 0)
    with pytest.raises(ValueError, match=r"not known under jax\.jit"):
        jax.jit(lambda r: spikes_from_raster(r, DT)[0])(raster)
    with pytest.raises(ValueError, match="no layers"):
        GridNetwork([], 5).init(jax.random.key(0), spikes)
    with pytest.raises(ValueError, match="they must be equal"):
        GridNetwork([layer, GridLIF(2, 2 * DT)], 5).init(jax.random.key(0), spikes)
    with pytest.raises(ValueError, match="only the last layer may be"):
        GridNetwork([GridLI(3, DT), layer], 5).init(jax.random.key(0), spikes)


def test_a_property_that_the_grid_does_not_have_is_refused():
    class Delayed(LI):
        delay: float = 0.0

    grid_twin(Network([Delayed(3)]), DT, 5)
    with pytest.raises(ValueError, match=r"Delayed.delay is 0.001, which a time grid"):
        grid_twin(Network([Delayed(3, delay=1e-3)]), DT, 5)
