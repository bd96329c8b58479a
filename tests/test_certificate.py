"""What the certificate and the capacity report must find out about a model.

Gradients that are wrong on purpose are the source of what is expected here: by how
much, and in which layer, is known because the test put the mistake there.
"""

import functools
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxsnn
from jaxsnn import Spikes, check_gradients, require_no_overflow, suggest_capacity
from jaxsnn.analytic import analytic
from jaxsnn.capacity import SlotsExceededError, observe
from jaxsnn.eventprop import eventprop
from jaxsnn.hardware import SimulatedChip
from jaxsnn.layers import LI, LIF, Connection, Graph, Network, Population


def random_inputs(seed=0, batch=3, size=5):
    time = np.random.default_rng(seed).uniform(1e-3, 15e-3, (batch, size, 1))
    return Spikes.from_times(jnp.asarray(time, jnp.float32))


def changed_by(factor, times):
    """The same times, with `factor` of their gradient added to it."""
    moving = jnp.where(jnp.isfinite(times), times - jax.lax.stop_gradient(times), 0)
    return times + jnp.asarray(factor, times.dtype) * moving


def scaled(neuron, kernel, inputs, start, record):
    """1 % too large."""
    return changed_by(0.01, eventprop(neuron, kernel, inputs, start, record))


def coarse_in_float32(neuron, kernel, inputs, start, record):
    """Right in float64, 1e-3 too large in float32."""
    times = eventprop(neuron, kernel, inputs, start, record)
    return changed_by(1e-3 if times.dtype == jnp.float32 else 0.0, times)


def without_parameters(neuron, kernel, inputs, start, record, *recurrent):
    """Forgets that parameters of the neurons are learned."""
    fixed = jax.lax.stop_gradient(neuron)
    return eventprop(fixed, kernel, inputs, start, record, *recurrent)


def without_resets(neuron, kernel, inputs, start, record):
    """Forgets that a spike that moves takes the later ones of its neuron along."""
    each = [
        eventprop(neuron, kernel, inputs, start, type(record)(times, slope))
        for times, slope in zip(
            *(jnp.split(x, x.shape[-1], axis=-1) for x in record), strict=True
        )
    ]
    return jnp.concatenate(each, axis=-1)


def random_kernel(n_in, n_out):
    return jnp.asarray(
        np.random.default_rng(7).normal(3, 0.7, (n_in, n_out)), "float32"
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def run(model, mutable, variables, inputs, *until):
    return model.apply(variables, inputs, *until, mutable=list(mutable))


class Nested(nn.Module):
    """A user's module: layers in setup, one used twice, and a bias at a fixed time."""

    def setup(self):
        self.first = LIF(4, max_spikes=3, slots=7, v_reset=-0.2, gradient=analytic)
        self.shared = LIF(4)

    def __call__(self, spikes):
        bias = Spikes.from_times(jnp.full((*spikes.time.shape[:-1], 1, 1), 2e-3))
        hidden = self.first(jaxsnn.concatenate(spikes, bias))
        return self.shared(self.shared(hidden))


def test_a_right_model_passes_whatever_it_is_made_of():
    # Compiled once for all that is asked about one model: several calls of a layer,
    # several spikes, slots that overflow, unequal methods, a batch of two axes.
    inputs = random_inputs(batch=6).reshape_batch(2, 3)
    model = Nested()
    variables = jax.jit(model.init)(jax.random.key(0), inputs)
    before = jax.tree.map(np.array, variables)
    report = check_gradients(model, variables, inputs, directions=1)
    assert report.ok, str(report)

    layers = {layer.name: layer for layer in report.layers}
    assert list(layers) == ["first", "shared"]
    assert [layer.method for layer in report.layers] == ["analytic", "eventprop"]
    _, state = run(model, ("intermediates",), variables, inputs)
    found = state["intermediates"]["first"]["spikes"][0]
    _, state = run(model, ("events",), variables, inputs)
    dropped = np.asarray(state["events"]["first"]["dropped"])
    assert (dropped > 0).any()
    assert layers["first"].dropped == dropped.sum()
    assert report.overflow == {"first": dropped.sum()}
    assert layers["first"].needed == 7 + dropped.max()
    assert layers["first"].spikes == np.isfinite(found.time).sum() + dropped.sum()

    names = [leaf.name for leaf in report.leaves]
    assert names == ["first/kernel", "shared/kernel", "input times"]
    for leaf in report.leaves:
        assert leaf.norm > 0
        assert leaf.own <= 1e-9
        assert leaf.eventprop <= 1e-9
        assert leaf.differences <= 1e-6
        assert 0 < leaf.dtype < 1e-4  # Exactly 0 would be float64 against itself.
    # The bias does not move with the inputs.
    assert np.isnan(report.delay)
    assert "depend on absolute time" in " ".join(report.undecided)

    text = str(report)
    for part in ("Gradients: ok", "shared/kernel", "tolerance", "overflow", "slots="):
        assert part in text
    jax.tree.map(np.testing.assert_array_equal, before, variables)


def test_a_wrong_layer_is_named_and_a_right_one_is_not():
    inputs = random_inputs(1)
    model = Network([LIF(3, name="hidden"), LIF(2, name="output", gradient=scaled)])
    variables = jax.jit(model.init)(jax.random.key(0), inputs)
    report = check_gradients(model, variables, inputs, directions=1)
    assert not report.ok
    hidden, output = report.layers
    np.testing.assert_allclose(output.own, 0.01, rtol=1e-6)
    assert output.eventprop <= 1e-9
    assert hidden.own <= 1e-9
    assert output.method == "scaled"
    assert "layer 'output' by scaled is 1.0e-02 off" in str(report)
    assert "layer 'hidden'" not in str(report)
    # The mistake is behind all of the network, so no gradient is right.
    for leaf in report.leaves:
        np.testing.assert_allclose(leaf.own, 0.01, rtol=1e-6)
        assert leaf.differences > 1e-4
        assert leaf.eventprop <= 1e-9
    assert report.delay > 1e-4


def test_forgotten_resets_are_found():
    inputs = random_inputs(2)
    layer = LIF(4, max_spikes=3, gradient=without_resets)
    variables = {"params": {"kernel": random_kernel(inputs.size, layer.features)}}
    report = check_gradients(layer, variables, inputs, directions=1)
    assert report.layers[0].spikes > 20
    assert not report.ok
    assert report.layers[0].own > 1e-2
    assert report.leaves[0].differences > 1e-2
    assert report.leaves[0].name == "kernel"
    assert "layer 'LIF' by without_resets" in str(report)


def test_a_mistake_in_float32_alone_is_found_and_a_backend_is_ignored():
    inputs = random_inputs(3)
    layer = LIF(4, gradient=coarse_in_float32, backend=SimulatedChip())
    variables = {"params": {"kernel": random_kernel(inputs.size, layer.features)}}
    report = check_gradients(layer, variables, inputs, directions=1)
    for leaf in report.leaves:
        np.testing.assert_allclose(leaf.dtype, 1e-3, rtol=1e-2)
        assert leaf.own <= 1e-9
        assert leaf.differences <= 1e-6
    assert len(report.failures) == 2
    assert all("in float32 is 1.0e-03 off float64" in x for x in report.failures)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("then", ["silence", "a later spike"])
def test_a_grazing_neuron_is_no_wrong_gradient(then):
    # At tau_mem = 2 tau_syn one input of weight 4 touches the threshold and no more. A
    # strong one later takes the place of the spike that is lost, at the same count.
    later = 0.0 if then == "silence" else 50.0
    weight = 4.0 if then == "silence" else 4 * (1 + 1e-12)
    variables = {"params": {"kernel": jnp.array([[weight], [later]])}}
    inputs = Spikes.from_times(jnp.array([[[1e-3], [30e-3]]]))
    report = check_gradients(LIF(1), variables, inputs, directions=1)
    assert report.ok, str(report)
    kernel = report.leaves[0]
    assert np.isnan(kernel.differences)
    assert kernel.jumps == 6  # Every step size.
    (reason,) = [x for x in report.undecided if x.startswith("kernel")]
    assert "spike appeared/disappeared" in reason
    if then == "silence":
        assert report.layers[0].spikes == 0
        assert report.layers[0].silent == 1
        assert "1 appeared and 0 disappeared in layer 'LIF'" in reason
        assert "no spike acts on the outputs" in report.undecided[0]
    else:
        assert report.layers[0].spikes == 1
        assert report.layers[0].slope < 1e-5
        assert "spike times jump" in reason


def test_events_without_a_table_by_source_and_a_window():
    time, index = jnp.array([1e-3, 2e-3, 2e-3, 4e-3]), jnp.array([1, 0, 2, 0])
    inputs = Spikes.from_events(time, index, 3)
    layer = LIF(2, v_leak=1.5, max_spikes=2)
    variables = {"params": {"kernel": jnp.array([[1.0, 2.0], [3.0, 1.0], [2.0, 4.0]])}}
    report = check_gradients(layer, variables, inputs, directions=1, until=20e-3)
    assert report.ok, str(report)
    assert report.layers[0].spikes == 4
    assert report.leaves[-1].norm > 0
    assert np.isnan(report.delay)  # Over the threshold, a run begins at time 0.


class WithGraph(nn.Module):
    """Two populations that act on each other, and one that listens."""

    @nn.compact
    def __call__(self, spikes):
        constant, normal = nn.initializers.constant, nn.initializers.normal
        populations = {
            "out": Population(2, max_spikes=3),
            "e": Population(3, v_th=constant(1.0), t_ref=1e-3, max_spikes=3),
            "i": Population(2, max_spikes=3),
        }
        connections = [
            Connection("input", "e", normal(10.0)),
            Connection("e", "i", normal(12.0), constant(1e-3)),
            Connection("i", "e", normal(4.0)),
            Connection("e", "out", normal(10.0), constant(2e-3)),
            Connection("input", "out", normal(6.0)),
        ]
        options = {"outputs": ("i", "out"), "gradient": without_parameters}
        body = Graph(populations, connections, **options, name="body")
        found = body(spikes, until=60e-3)
        assert list(found) == ["i", "out"]  # Also while it is looked at.
        return found


def test_populations_of_a_graph_are_layers_and_a_wrong_loop_is_named():
    inputs, model = random_inputs(6, size=4), WithGraph()
    variables = jax.jit(model.init)(jax.random.key(3), inputs)
    report = check_gradients(model, variables, inputs, directions=1)
    # Those of a loop stay together, and before whom they act on.
    e, i, out = report.layers
    names = [layer.name for layer in report.layers]
    assert names == ["body/e", "body/i", "body/out"]
    _, state = run(model, ("events",), variables, inputs)
    counts = {
        f"body/{name}": np.asarray(x["count"])
        for name, x in state["events"]["body"].items()
    }
    for layer in report.layers:
        assert layer.spikes == counts[layer.name].sum() > 0
        assert layer.silent == (counts[layer.name] == 0).mean()
        assert (layer.dropped, layer.slots) == (0, None)
        assert layer.eventprop <= 1e-9

    # Wrong is what the loop says of the one parameter, and nothing else.
    assert e.own == i.own > 1e-3
    assert out.own <= 1e-9
    assert not report.undecided  # Also learned delays are as exact as float64.
    *loop, methods, differences = report.failures
    assert ["'body/e'" in loop[0], "'body/i'" in loop[1], len(loop)] == [1, 1, 2]
    for failure in (methods, differences):
        assert failure.startswith("the gradient by body/e_log_v_th ")
    leaves = {leaf.name: leaf for leaf in report.leaves}
    assert leaves.pop("body/e_log_v_th").norm == 0
    assert len(leaves) == 8
    for leaf in leaves.values():
        assert leaf.norm > 0
        assert max(leaf.own, leaf.eventprop) <= 1e-9
        assert leaf.differences <= 1e-6
    assert report.delay <= 1e-9

    capacity = suggest_capacity(model, variables, [inputs], headroom=0.0)
    assert [layer.name for layer in capacity.layers] == names
    for layer in capacity.layers:
        total = counts[layer.name].sum(-1)
        assert layer.slots == layer.most == total.max()
        assert layer.mean == pytest.approx(total.mean())


def test_a_graph_of_one_population_is_seen_as_the_layer_that_it_is():
    inputs = random_inputs(7, size=3)
    own = {"max_spikes": 2, "v_reset": -0.1}
    connections = [Connection("input", "a"), Connection("a", "a")]
    graph = Graph({"a": Population(3, **own)}, connections, outputs="a")
    layer = LIF(3, recurrent=True, **own)
    kernel, back = random_kernel(3, 3), random_kernel(3, 3) - 2

    def seen(model, name, **params):
        layers = {}

        @jax.jit
        def look(variables):
            return observe(model, variables, inputs, {}, layers)

        outputs, calls = look({"params": params})
        assert list(layers) == list(calls) == [name]
        (call,) = calls[name]
        assert call.slope < np.inf
        return outputs, call, layers[name].features, layers[name].max_spikes

    of_layer = seen(layer, "LIF", kernel=kernel, recurrent_kernel=back)
    of_graph = seen(graph, "a", input_to_a=kernel, a_to_a=back)
    assert of_layer[0].count().sum() > 10
    jax.tree.map(np.testing.assert_array_equal, of_layer, of_graph)


def test_the_slope_is_the_least_of_each_population():
    # At x = exp(-t / tau_mem) an input of weight w has taken neurons to w (x - x^2).
    weights = {"a": [6.0, 9.0], "b": [8.0], "c": [7.0, 5.0]}
    connections = [Connection("input", name) for name in weights]
    connections += [Connection("a", "b"), Connection("b", "a"), Connection("b", "c")]
    populations = {name: Population(len(own)) for name, own in weights.items()}
    graph = Graph(populations, connections, outputs="c")
    params = {f"input_to_{name}": jnp.array([own]) for name, own in weights.items()}
    for c in connections[3:]:
        params[c.name] = jnp.zeros((len(weights[c.source]), len(weights[c.target])))
    asked = []

    def gradient(layer):
        asked.append(layer.name)
        return layer.gradient

    @jax.jit
    def look(inputs):
        options = {"gradient": gradient}
        _, calls = observe(graph, {"params": params}, inputs, {}, {}, **options)
        return {name: call.slope for name, (call,) in calls.items()}

    found = look(Spikes.from_times(jnp.array([[[1e-3]]])))
    assert asked == ["a", "c"]  # Once for a loop.
    for name, own in weights.items():
        x = (1 + np.sqrt(1 - 4 / min(own))) / 2
        expected = min(own) * (2 * x * x - x)
        assert found[name] == pytest.approx(expected, rel=1e-5)


def test_delays_of_single_synapses_are_checked_too():
    late = np.random.default_rng(8).uniform(0, 3e-3, (3, 3))
    layer = LIF(3, delay=late, max_spikes=2)
    variables = {"params": {"kernel": random_kernel(3, 3)}}
    inputs = random_inputs(8, size=3)
    report = check_gradients(layer, variables, inputs, directions=1)
    assert report.ok, str(report)
    assert not report.undecided
    assert report.layers[0].spikes > 5
    assert 0 < report.layers[0].slope < np.inf


def test_a_readout_of_voltages_is_checked_too():
    inputs = random_inputs(4)
    hidden = LIF(6, max_spikes=2, name="hidden")
    model = Network([hidden, LI(2, name="output")])
    variables = jax.jit(model.init)(jax.random.key(0), inputs)
    report = check_gradients(model, variables, inputs, directions=1)
    assert report.ok, str(report)
    assert not report.undecided
    assert [layer.name for layer in report.layers] == ["hidden"]
    names = [leaf.name for leaf in report.leaves]
    assert names == ["hidden/kernel", "output/kernel", "input times"]
    for leaf in report.leaves:
        assert leaf.norm > 0
        assert leaf.differences <= 1e-6
    assert report.delay <= 1e-9  # A delay is no change.

    wrong = Network([hidden.clone(gradient=without_resets), model.layers[1]])
    maxima = {"read": lambda trace: trace.maximum().value}
    report = check_gradients(wrong, variables, inputs, directions=1, **maxima)
    before, after, times = report.leaves
    for leaf in (before, times):
        assert leaf.own > 1e-2
        assert leaf.differences > 1e-3
    assert after.own <= 1e-9
    assert after.differences <= 1e-6
    assert report.delay > 1e-3


def test_a_wrong_reading_is_seen_by_differences_alone():
    class FirstTimes(nn.Module):
        @nn.compact
        def __call__(self, spikes):
            return LIF(4)(spikes).first()

    inputs = random_inputs(5)
    kernel = random_kernel(inputs.size, 4).at[:, 3].set(0)  # Silent: inf.
    variables = {"params": {"LIF_0": {"kernel": kernel}}}
    for factor in (0.0, 0.01):
        report = check_gradients(
            FirstTimes(),
            variables,
            inputs,
            read=functools.partial(changed_by, factor),
            directions=1,
        )
        assert report.ok == (factor == 0), str(report)
        assert report.leaves[0].own <= 1e-9
        error = {leaf.name: leaf.differences for leaf in report.leaves}
        assert (min(error.values()) > 1e-4) == (factor > 0)
        # One per cent more on one side: 0.01 / 2.01 of both.
        np.testing.assert_allclose(report.delay, factor / (2 + factor), atol=1e-9)


def test_what_cannot_be_checked_is_refused():
    inputs, layer = random_inputs(), LIF(2)
    variables = {"params": {"kernel": random_kernel(inputs.size, layer.features)}}

    class Pair(nn.Module):
        @nn.compact
        def __call__(self, spikes):
            return spikes, LIF(2)(spikes)

    class NoLayer(nn.Module):
        @nn.compact
        def __call__(self, spikes):
            return spikes

    with pytest.raises(ValueError, match='variables has no "params"'):
        check_gradients(layer, variables["params"], inputs)
    wrapped = {"params": {"LIF_0": variables["params"]}}
    with pytest.raises(TypeError, match=r"Pair returned tuple, read as tuple, expec"):
        check_gradients(Pair(), wrapped, inputs)
    with pytest.raises(TypeError, match=r"Pair returned tuple, read as Spikes, expec"):
        check_gradients(Pair(), wrapped, inputs, read=lambda outputs: outputs[1])
    with pytest.raises(
        ValueError, match=r"NoLayer ran no jaxsnn\.layers\.LIF or Graph"
    ):
        check_gradients(NoLayer(), variables, inputs)
    with pytest.raises(ValueError, match="directions is 0"):
        check_gradients(layer, variables, inputs, directions=0)


# Capacity.


def test_capacities_are_measured_with_a_slot_for_every_spike():
    batches = [random_inputs(seed) for seed in range(3)]
    layers = [LIF(9, max_spikes=4, name="hidden"), LIF(4, max_spikes=2, name="output")]
    free = Network(tuple(layers))
    variables = jax.jit(free.init)(jax.random.key(0), batches[0])
    # The first layer's slots would starve the second, were they in force.
    tight = Network([layers[0].clone(slots=2), layers[1]])
    report = suggest_capacity(tight, variables, iter(batches), headroom=0.0)

    states = [run(free, ("events",), variables, x)[1]["events"] for x in batches]
    for layer in report.layers:
        counts = np.concatenate([state[layer.name]["count"] for state in states])
        total = counts.sum(-1)
        assert layer.samples == 9
        assert layer.most == layer.slots == total.max() > 2
        np.testing.assert_allclose(layer.mean, total.mean())
        assert layer.silent == (counts == 0).mean()
        assert layer.saturated == (counts == layer.max_spikes).mean()
    assert [layer.current for layer in report.layers] == [2, None]
    assert [layer.overflowing for layer in report.layers] == [9, 0]
    assert list(report.slots) == ["hidden", "output"]
    assert "hidden" in str(report)

    # What is proposed suffices, and one less does not.
    def apply(slots):
        model = Network((layers[0].clone(slots=slots), layers[1]))
        for batch in batches:
            _, state = run(model, ("events",), variables, batch)
            require_no_overflow(state["events"])

    apply(report.slots["hidden"])
    with pytest.raises(SlotsExceededError, match="layer 'hidden'") as caught:
        apply(report.slots["hidden"] - 1)
    assert caught.value.slots == {"hidden": report.slots["hidden"]}
    assert list(caught.value.dropped) == ["hidden"]


def test_headroom_never_exceeds_what_a_layer_can_fire():
    kernel = jnp.full((5, 10), 9.0)
    variables = {"params": {"kernel": kernel}}
    batches = [random_inputs()]
    for headroom, expected in ((0.0, 10), (0.1, 10), (0.5, 10)):
        report = suggest_capacity(LIF(10), variables, batches, headroom=headroom)
        assert report.slots == {"LIF": expected}
    bursting = LIF(10, max_spikes=50)
    report = suggest_capacity(bursting, variables, batches, headroom=0.1)
    most = report.layers[0].most
    assert report.slots == {"LIF": -(-11 * most // 10)}  # Rounded up.
    with pytest.raises(ValueError, match="batches is empty"):
        suggest_capacity(LIF(10), variables, [])
    with pytest.raises(ValueError, match="headroom is -1"):
        suggest_capacity(LIF(10), variables, batches, headroom=-1)


def test_strict_mode_counts_one_window_and_needs_values():
    layer = LIF(3, slots=1, max_spikes=40)
    variables = {"params": {"kernel": jnp.full((5, 3), 9.0)}}
    inputs = Spikes.from_times(jnp.array([[[1e-3], [2e-3], [3e-3], [12e-3], [13e-3]]]))
    part = inputs.window(0, 8e-3)
    _, first = run(layer, ("events",), variables, part, 8e-3)
    rest = inputs.window(8e-3, jnp.inf)
    _, second = run(layer, ("events",), variables | first, rest, 40e-3)
    before, after = first["events"], second["events"]
    with pytest.raises(SlotsExceededError) as caught:
        require_no_overflow(after, before)
    dropped = np.asarray(after["dropped"])
    assert caught.value.dropped == {"LIF": dropped.sum()}
    assert caught.value.slots == {"LIF": 1 + dropped.max()}
    with pytest.raises(SlotsExceededError) as whole:
        require_no_overflow(after)
    assert whole.value.slots["LIF"] > caught.value.slots["LIF"]

    require_no_overflow({"LIF_0": before | {"dropped": jnp.zeros(1, int)}})
    with pytest.raises(TypeError, match=r"inside jax\.jit"):
        jax.jit(require_no_overflow)(after)
    with pytest.raises(ValueError, match="holds no layer's counters"):
        require_no_overflow({})


def test_the_package_offers_them_without_importing_flax():
    code = """
import sys, jaxsnn
assert "flax" not in sys.modules
assert jaxsnn.check_gradients.__module__ == "jaxsnn.certificate"
assert jaxsnn.suggest_capacity.__module__ == "jaxsnn.capacity"
assert "flax" in sys.modules
assert not hasattr(jaxsnn, "nothing")
"""
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
