"""Layers inside the transformations and modules of Flax and JAX.

Expected values are those of the same layers applied one by one, or differences.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from jaxsnn import Spikes
from jaxsnn.analytic import analytic
from jaxsnn.coding import encode_latency
from jaxsnn.layers import LI, LIF, Network

pytestmark = pytest.mark.usefixtures("x64")
KEY = 0
UNTIL = 30e-3


def make_inputs(batch=3, seed=0):
    values = np.random.default_rng(seed).uniform(0, 1, (batch, 4))
    return encode_latency(jnp.asarray(values), t_late=10e-3, bias=0.0)  # 5 sources.


def lif(features, **attributes):
    return LIF(features, param_dtype=jnp.float64, **attributes)


def network(**attributes):
    return Network([lif(6, name="hidden", **attributes), lif(3, name="output")])


def init(module, *arguments):
    """Variables, with no run of the simulation to be compiled."""
    return jax.jit(module.init)(jax.random.key(KEY), *arguments)


def summed(times):
    """Some loss in which every spike has a weight of its own."""
    weight = jnp.cos(jnp.arange(times.size)).reshape(times.shape)
    fired = jnp.isfinite(times)
    return jnp.sum(jnp.where(fired, weight * jnp.where(fired, times, 0), 0)) / 1e-3


def assert_close(found, expected, rtol=1e-10):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(
            x, y, rtol=rtol, atol=rtol * np.abs(y[np.isfinite(y)]).max()
        ),
        found,
        jax.tree.map(np.asarray, expected),
    )


def assert_matches_differences(loss, params, rtol=1e-6):
    """The gradient along a random direction of each parameter."""
    loss = jax.jit(jax.value_and_grad(loss))
    _, grad = loss(params)
    leaves, tree = jax.tree.flatten(params)
    for k, by in enumerate(jax.tree.leaves(grad)):
        way, h = np.random.default_rng(k).normal(size=by.shape), 1e-5

        def along(h, k=k, way=way):
            moved = [*leaves[:k], leaves[k] + h * way, *leaves[k + 1 :]]
            return loss(jax.tree.unflatten(tree, moved))[0]

        expected = 8 * (along(h) - along(-h)) - (along(2 * h) - along(-2 * h))
        assert np.abs(by).max() > 0
        np.testing.assert_allclose(jnp.sum(by * way), expected / (12 * h), rtol=rtol)


# Containers.


def test_sequential_is_one_layer_after_the_other():
    inputs, stack = make_inputs(), nn.Sequential([lif(6), lif(3), LI(2), voltage])
    variables = init(stack, inputs)

    def by_hand(variables):
        parts = [{"params": variables["params"][f"layers_{k}"]} for k in range(3)]
        hidden = lif(6).apply(parts[0], inputs)
        return voltage(LI(2).apply(parts[2], lif(3).apply(parts[1], hidden)))

    found = jax.jit(lambda v: stack.apply(v, inputs))(variables)
    assert found.shape == (3, 2)
    assert_close(found, jax.jit(by_hand)(variables))


def voltage(trace):
    return trace.voltage(12e-3)


class TimesToClasses(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        first = lif(6)(inputs).first()
        read = jnp.where(jnp.isfinite(first), first, 20e-3) / 10e-3
        return nn.softmax(nn.Dense(2, param_dtype=jnp.float64)(read))


class VoltagesToClasses(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        trace = LI(4, param_dtype=jnp.float64)(lif(6)(inputs))
        read = jnp.concatenate([voltage(trace), trace.maximum().value], axis=-1)
        return nn.softmax(nn.Dense(2, param_dtype=jnp.float64)(read))


@pytest.mark.parametrize("head", [TimesToClasses, VoltagesToClasses])
def test_a_dense_head_on_times_or_voltages(head):
    inputs, labels = make_inputs(), jnp.array([0, 1, 1])
    model = head()

    def loss(params):
        chosen = model.apply({"params": params}, inputs)[jnp.arange(3), labels]
        return -jnp.mean(jnp.log(chosen))

    assert_matches_differences(loss, init(model, inputs)["params"])


class Twice(nn.Module):
    """The same layer on two windows, or on two inputs."""

    @nn.compact
    def __call__(self, first, second, stops=(jnp.inf, jnp.inf)):
        layer = lif(4, max_spikes=3, name="shared")
        return layer(first, stops[0]), layer(second, stops[1])


def test_a_layer_used_twice_has_the_sum_of_both_gradients():
    inputs = make_inputs(seed=1), make_inputs(seed=2)
    params = init(Twice(), *inputs)["params"]

    def shared(kernel):
        found = Twice().apply({"params": {"shared": {"kernel": kernel}}}, *inputs)
        return sum(summed(spikes.times(3)) for spikes in found)

    def apart(one, other):
        layer = lif(4, max_spikes=3)
        found = [
            layer.apply({"params": {"kernel": kernel}}, x)
            for kernel, x in zip((one, other), inputs, strict=True)
        ]
        return sum(summed(spikes.times(3)) for spikes in found)

    kernel = params["shared"]["kernel"]
    value, grad = jax.jit(jax.value_and_grad(shared))(kernel)
    expected, grads = jax.jit(jax.value_and_grad(apart, (0, 1)))(kernel, kernel)
    assert_close(value, expected)
    assert_close(grad, grads[0] + grads[1])


def test_with_its_state_a_layer_used_twice_goes_on():
    inputs, stops = make_inputs(), (4e-3, UNTIL)
    windows = inputs.window(0.0, 4e-3), inputs.window(4e-3, UNTIL)
    variables = init(Twice(), *windows)

    @jax.jit
    def run(variables):
        parts, _ = Twice().apply(variables, *windows, stops, mutable=["events"])
        alone = {"params": variables["params"]["shared"]}
        whole = lif(4, max_spikes=3).apply(alone, inputs, UNTIL)
        return [part.count() for part in parts], whole.count()

    parts, whole = run(variables)
    assert (np.asarray(parts).sum((1, 2)) > 0).all()
    np.testing.assert_array_equal(parts[0] + parts[1], whole)
    with pytest.raises(ValueError, match="a run that had no end"):
        Twice().apply(variables, *windows, mutable=["events"])


# Transformations of Flax.


def test_an_ensemble_by_vmap_has_members_of_its_own():
    inputs = make_inputs()
    ensemble = nn.vmap(
        Network,
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True},
        in_axes=None,
        axis_size=4,
    )([lif(6, name="hidden"), lif(3, name="output")])
    variables = init(ensemble, inputs)
    kernels = variables["params"]["hidden"]["kernel"]
    assert kernels.shape == (4, 5, 6)
    assert len(np.unique(kernels)) == kernels.size
    found = jax.jit(ensemble.apply)(variables, inputs).first()
    alone = jax.jit(network().apply)
    for member in range(4):
        one = jax.tree.map(lambda x, member=member: x[member], variables)
        assert_close(found[member], alone(one, inputs).first())


def test_vmap_over_samples_is_a_batch():
    inputs, plain = make_inputs(), lif(6)
    mapped = nn.vmap(LIF, variable_axes={"params": None}, split_rngs={"params": False})
    mapped = mapped(6, param_dtype=jnp.float64)
    variables = init(plain, inputs)
    assert_close(
        jax.jit(mapped.apply)(variables, inputs).time,
        jax.jit(plain.apply)(variables, inputs).time,
    )


def test_remat_changes_no_gradient():
    inputs, plain = make_inputs(), network()
    layers = [nn.remat(LIF)(6, param_dtype=jnp.float64, name="hidden"), lif(3)]
    variables = init(plain, inputs)

    def grad(model):
        def loss(variables):
            return summed(model.apply(variables, inputs, UNTIL).first())

        return jax.jit(jax.grad(loss))(variables)

    layers[1] = layers[1].clone(name="output")
    expected = grad(plain)
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(expected))
    assert_close(grad(Network(layers)), expected)
    assert_close(grad(nn.remat(Network)(plain.layers)), expected)


def test_equal_layers_in_a_row_by_scan():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, spikes, _):
            return lif(5, name="lif")(spikes), None

    stack = nn.scan(
        Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
    )()
    inputs = make_inputs()
    variables = init(stack, inputs, None)
    kernels = variables["params"]["lif"]["kernel"]
    assert kernels.shape == (3, 5, 5)
    expected = inputs
    for kernel in kernels:
        expected = jax.jit(lif(5).apply)({"params": {"kernel": kernel}}, expected)
    assert np.isfinite(expected.time).any()
    assert_close(jax.jit(stack.apply)(variables, inputs, None)[0].time, expected.time)


def test_tabulate_lists_every_layer_and_parameter():
    learned = nn.initializers.constant(10e-3)
    model = Network(
        [
            lif(6, tau_mem=learned, t_ref=nn.initializers.constant(1e-3), name="one"),
            lif(3, recurrent=True, delay=learned, name="two"),
            LI(2, v_leak=nn.initializers.zeros, name="three"),
        ]
    )
    wide = {"width": 250, "force_terminal": False}
    table = model.tabulate(jax.random.key(KEY), make_inputs(), console_kwargs=wide)
    rows = {
        "one": ["kernel: float64[5,6]", "log_tau_mem: float64[6]", "log_t_ref"],
        "two": ["recurrent_kernel: float64[3,3]", "log_delay: float64[6,3]"],
        "three": ["kernel: float32[3,2]", "v_leak: float32[2]"],
    }
    for name, parameters in rows.items():
        row = next(r for r in table.split("├") if f"│ {name} " in r)
        assert all(parameter in row for parameter in parameters), row
        assert "time: float64[3," in row  # What goes in, and comes out.
    total = (30 + 6 + 6) + (18 + 9 + 18) + (6 + 2)
    assert f"Total Parameters: {total} " in table
    assert "check_inputs" not in table


def test_spikes_and_traces_are_sown():
    inputs = make_inputs()
    model = Network([lif(6, name="hidden"), LI(2, name="output")])
    variables = init(model, inputs)
    assert set(variables) == {"params"}
    run = jax.jit(lambda v: model.apply(v, inputs, mutable=["intermediates"]))
    trace, sown = run(variables)
    (spikes,) = sown["intermediates"]["hidden"]["spikes"]
    (same,) = sown["intermediates"]["output"]["trace"]
    hidden = {"params": variables["params"]["hidden"]}
    assert_close(spikes.time, jax.jit(lif(6).apply)(hidden, inputs).time)
    np.testing.assert_array_equal(voltage(same), voltage(trace))


def test_a_network_as_an_nnx_module():
    inputs, linen = make_inputs(), network()
    model = nnx.bridge.ToNNX(linen, rngs=nnx.Rngs(KEY)).lazy_init(inputs)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))

    @nnx.jit
    def step(model):
        return nnx.value_and_grad(lambda model: summed(model(inputs).first()))(model)

    @jax.jit
    @jax.value_and_grad
    def expected(params):
        return summed(linen.apply({"params": params}, inputs).first())

    value, grad = step(model)
    expected_value, expected_grad = expected(params)
    assert_close(value, expected_value)
    assert_close(nnx.to_pure_dict(grad), expected_grad)


# Transformations of JAX.


def test_gradients_sample_by_sample_add_up():
    inputs, model = make_inputs(), network(max_spikes=2)
    variables = init(model, inputs)

    def loss(variables, inputs):
        times = model.apply(variables, inputs).first()
        return jnp.sum(jnp.where(jnp.isfinite(times), times, 0)) / 1e-3

    each = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(variables, inputs)
    whole = jax.jit(jax.grad(loss))(variables, inputs)
    assert_close(jax.tree.map(lambda x: x.sum(0), each), whole)


def test_training_by_scan_is_training_by_a_loop():
    model, optimizer = network(), optax.adam(1e-2)
    batches = [make_inputs(seed=seed) for seed in range(4)]
    params = init(model, batches[0])

    def step(carry, inputs):
        params, state = carry

        def loss(params):
            times = model.apply(params, inputs).first()
            return jnp.sum(jnp.where(times < UNTIL, times, UNTIL))

        value, grad = jax.value_and_grad(loss)(params)
        update, state = optimizer.update(grad, state)
        return (optax.apply_updates(params, update), state), value

    carry = start = params, optimizer.init(params)
    values, one = [], jax.jit(step)
    for batch in batches:
        carry, value = one(carry, batch)
        values.append(value)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *batches)
    (found, _), scanned = jax.jit(lambda *x: jax.lax.scan(step, *x))(start, stacked)
    assert_close(scanned, np.array(values))
    assert_close(found, carry[0])


def test_windows_by_scan_are_one_run():
    inputs, layer = make_inputs(), lif(6, max_spikes=3)
    variables = init(layer, inputs)
    stops = jnp.array([0.0, 2e-3, 5e-3, 9e-3, UNTIL])

    @jax.jit
    def run(variables):
        def window(state, edges):
            part = inputs.window(*edges)
            out, state = layer.apply(
                variables | state, part, edges[1], mutable="events"
            )
            return state, out.count()

        _, start = layer.apply(variables, inputs.window(0, 0), 0.0, mutable="events")
        edges = jnp.stack([stops[:-1], stops[1:]], axis=1)
        state, counts = jax.lax.scan(window, start, edges)
        out, end = layer.apply(variables, inputs, UNTIL, mutable="events")
        return state, counts, out.count(), end

    state, counts, whole, end = run(variables)
    assert (counts.sum((1, 2)) > 0).sum() > 1
    np.testing.assert_array_equal(counts.sum(0), whole)
    assert_close(state["events"]["v"], end["events"]["v"], rtol=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_dtype_from_inputs_to_gradients(dtype):
    # Both in a program that has float64: nothing is promoted by the way.
    inputs = make_inputs()
    inputs = jax.tree.map(
        lambda x: x.astype(dtype) if x.dtype == jnp.float64 else x, inputs
    )
    attributes = {"param_dtype": jnp.dtype(dtype)}
    learned = nn.initializers.constant(10e-3)
    model = Network(
        [
            LIF(6, tau_mem=learned, max_spikes=2, **attributes),
            LIF(4, recurrent=True, t_ref=1e-3, **attributes),
            LI(3, **attributes),
        ]
    )
    variables = init(model, inputs)

    def loss(variables, time):
        moved = encode_latency(time, t_late=1.0)
        trace = model.apply(variables, moved)
        return jnp.sum(voltage(trace) + trace.maximum().value)

    times = inputs.first()
    value, grads = jax.jit(jax.value_and_grad(loss, (0, 1)))(variables, times)
    leaves = jax.tree.leaves((variables, value, grads))
    assert {leaf.dtype.name for leaf in leaves} == {dtype}
    assert all(np.isfinite(leaf).all() for leaf in leaves)


@pytest.mark.parametrize(
    "layer",
    [
        LIF(3, max_spikes=2),
        LIF(3, max_spikes=2, gradient=analytic, t_ref=1e-3),
        LIF(3, recurrent=True),
        LIF(3, recurrent=True, recurrent_delay=1e-3),
        LIF(3, delay=1e-3),
        Network([LIF(3, name="hidden"), LI(3, name="output")]),
    ],
)
def test_a_batch_may_be_empty(layer):
    inputs = Spikes.from_times(jnp.ones((0, 2, 1)))
    params = jax.jit(layer.init)(jax.random.key(0), inputs)["params"]

    def total(params):
        outputs, state = layer.apply({"params": params}, inputs, mutable=["events"])
        found = outputs.maximum().value if isinstance(layer, Network) else outputs.time
        assert found.shape[0] == 0
        assert all(x.shape[0] == 0 for x in jax.tree.leaves(state))
        return jnp.sum(found)

    for gradient in jax.tree.leaves(jax.jit(jax.grad(total))(params)):
        np.testing.assert_array_equal(gradient, 0)
