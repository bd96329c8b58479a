"""Graphs of populations: what they are must not depend on how they are written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxsnn.analytic import analytic
from jaxsnn.eventprop import eventprop
from jaxsnn.layers import LIF, Connection, Graph, Population
from jaxsnn.spikes import Spikes, concatenate

UNTIL = 40e-3
normal = nn.initializers.normal


def inputs(batch=2, size=4, seed=0):
    time = np.random.default_rng(seed).uniform(1e-3, 20e-3, (batch, size, 1))
    return Spikes.from_times(jnp.array(time))


def loop(**options):
    """Two populations that excite and inhibit each other, and one that listens."""
    delay = options.pop("delay", 0.0)
    populations = {
        "e": Population(5, max_spikes=3),
        "i": Population(3, tau_mem=7e-3, max_spikes=3),
        "out": Population(2, max_spikes=3),
    }
    connections = [
        Connection("input", "e", normal(10.0)),
        Connection("e", "i", normal(8.0), delay),
        Connection("i", "e", normal(4.0), delay),
        Connection("e", "e", normal(2.0), delay),
        Connection("e", "out", normal(8.0)),
        Connection("input", "out", normal(3.0)),
    ]
    if options.pop("turned", False):
        populations = dict(reversed(populations.items()))
        connections = connections[::-1]
    options = {"outputs": ["e", "i", "out"], "param_dtype": jnp.float64, **options}
    return Graph(populations, connections, **options)


def times(spikes):
    return {name: x.times(3) for name, x in spikes.items()}


@pytest.mark.usefixtures("x64")
def test_a_forward_graph_with_a_skip_is_a_stack_of_layers():
    graph = Graph(
        {"hidden": Population(6, max_spikes=2), "out": Population(2)},
        [
            Connection("input", "hidden", normal(10.0)),
            Connection("hidden", "out", normal(8.0), delay=1e-3),
            Connection("input", "out", normal(8.0)),
        ],
        outputs="out",
        param_dtype=jnp.float64,
    )
    x = inputs()
    variables = graph.init(jax.random.key(0), x, UNTIL)
    p = variables["params"]
    hidden = LIF(6, max_spikes=2).apply(
        {"params": {"kernel": p["input_to_hidden"]}}, x, UNTIL
    )
    later = Spikes.from_times(hidden.times(2) + 1e-3)
    both = jnp.concatenate([p["hidden_to_out"], p["input_to_out"]])
    expected = LIF(2).apply({"params": {"kernel": both}}, concatenate(later, x), UNTIL)
    found = graph.apply(variables, x, UNTIL)
    assert np.isfinite(expected.time).any()
    np.testing.assert_allclose(found.time, expected.time, rtol=1e-12)
    np.testing.assert_array_equal(found.index, expected.index)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("delay", [0.0, 1e-3])
def test_a_loop_is_one_recurrent_layer(delay):
    graph = loop(delay=delay)
    x = inputs()
    variables = graph.init(jax.random.key(3), x, UNTIL)
    p = variables["params"]
    kernel = jnp.concatenate([p["input_to_e"], jnp.zeros((4, 3))], axis=1)
    back = jnp.block(
        [[p["e_to_e"], p["e_to_i"]], [p["i_to_e"], jnp.zeros((3, 3))]],
    )
    layer = LIF(
        8,
        tau_mem=(10e-3,) * 5 + (7e-3,) * 3,
        max_spikes=3,
        recurrent=True,
        recurrent_delay=delay,
        param_dtype=jnp.float64,
    )
    expected = layer.apply(
        {"params": {"kernel": kernel, "recurrent_kernel": back}}, x, UNTIL
    ).times(3)
    found = times(graph.apply(variables, x, UNTIL))
    np.testing.assert_allclose(found["e"], expected[:, :5], rtol=1e-12)
    np.testing.assert_allclose(found["i"], expected[:, 5:], rtol=1e-12)
    assert np.isfinite(found["i"]).sum() > 3


@pytest.mark.usefixtures("x64")
def test_the_order_of_the_lists_changes_nothing():
    x = inputs()
    variables = loop().init(jax.random.key(3), x, UNTIL)
    found = times(loop().apply(variables, x, UNTIL))
    turned = times(loop(turned=True).apply(variables, x, UNTIL))
    for name, value in found.items():
        np.testing.assert_allclose(turned[name], value, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_gradients_of_a_graph_match_finite_differences_and_each_other():
    x = inputs()
    graph = loop(delay=nn.initializers.constant(1e-3))
    variables = graph.init(jax.random.key(3), x, UNTIL)

    def loss(params, gradient):
        out = times(graph.clone(gradient=gradient).apply({"params": params}, x, UNTIL))
        total = 0.0
        for n, name in enumerate(sorted(out)):
            t = jnp.where(out[name] < jnp.inf, out[name], 0)
            weight = 1 + n + jnp.arange(t.size).reshape(t.shape) % 5
            total += jnp.sum(weight * jnp.sin(200 * t))
        return total

    params = variables["params"]
    first = jax.jit(jax.grad(lambda p: loss(p, eventprop)))(params)
    second = jax.jit(jax.grad(lambda p: loss(p, analytic)))(params)
    value = jax.jit(lambda p: loss(p, eventprop))
    assert {"e_to_i_delay", "i_to_e_delay"} <= {k.removeprefix("log_") for k in params}
    for name, grad in first.items():
        np.testing.assert_allclose(grad, second[name], rtol=1e-9, atol=1e-12)
        rng = np.random.default_rng(len(name))
        direction = jnp.array(rng.normal(size=grad.shape))

        def moved(h, name=name, direction=direction):
            return value({**params, name: params[name] + h * direction})

        h = 1e-5
        expected = 8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))
        np.testing.assert_allclose(
            jnp.sum(grad * direction), expected / (12 * h), rtol=1e-6, atol=1e-7
        )


@pytest.mark.usefixtures("x64")
def test_d9_populations_that_excite_each_other_without_delay_come_to_an_end():
    graph = Graph(
        {"a": Population(2, max_spikes=5), "b": Population(2, max_spikes=5)},
        [
            Connection("input", "a", nn.initializers.constant(9.0)),
            Connection("a", "b", nn.initializers.constant(30.0)),
            Connection("b", "a", nn.initializers.constant(30.0)),
        ],
        outputs=["a", "b"],
    )
    x = inputs(batch=1)
    variables = graph.init(jax.random.key(0), x)
    out, state = graph.apply(variables, x, mutable=["events"])
    # Every spike causes more: only max_spikes ends it, and the counts say so.
    assert (state["events"]["a"]["count"] == 5).all()
    assert (state["events"]["b"]["count"] == 5).all()
    assert (state["events"]["b"]["at_limit"] == 2).all()
    assert np.isfinite(out["a"].time).sum() == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"connections": [Connection("x", "a")]}, "'x'"),
        ({"connections": [Connection("a", "input")]}, "'input'"),
        ({"connections": [Connection("input", "a")] * 2}, "two connections"),
        ({"connections": []}, "nothing is connected"),
        ({"outputs": "b"}, "outputs names 'b'"),
        ({"by": "event-by-event"}, "by is"),
        (
            {
                "by": "window",
                "connections": [Connection("input", "a"), Connection("a", "a")],
            },
            "a_to_a",
        ),
    ],
)
def test_what_cannot_be_a_graph_is_refused_at_once(change, message):
    good = {
        "populations": {"a": Population(2)},
        "connections": [Connection("input", "a")],
        "outputs": "a",
    }
    Graph(**good)
    with pytest.raises(ValueError, match=message):
        Graph(**{**good, **change})


def test_bad_populations_and_delays_are_refused():
    with pytest.raises(ValueError, match=r"features is 0"):
        Population(0)
    with pytest.raises(ValueError, match="arrive before it was sent"):
        Connection("a", "b", delay=-1e-3)
    with pytest.raises(ValueError, match="one max_spikes"):
        Graph(
            {"a": Population(1, max_spikes=2), "b": Population(1)},
            [
                Connection("input", "a"),
                Connection("a", "b"),
                Connection("b", "a"),
            ],
            outputs="a",
        )
    with pytest.raises(ValueError, match="nothing outside of the loop of a, b is"):
        Graph(
            {"a": Population(1), "b": Population(1)},
            [Connection("a", "b"), Connection("b", "a")],
            outputs="a",
        )


def test_bad_values_are_refused_before_the_run():
    x = inputs()

    def init(**attributes):
        populations = {"a": Population(2, **attributes)}
        connections = [Connection("input", "a"), Connection("a", "a")]
        graph = Graph(populations, connections, outputs="a")
        return graph, graph.init(jax.random.key(0), x, UNTIL)["params"]

    graph, params = init()
    for name in params:
        wrong = params | {name: params[name].at[0, 0].set(jnp.nan)}
        with pytest.raises(ValueError, match=f"the {name} of Graph has entries that"):
            graph.apply({"params": wrong}, x, UNTIL)
    with pytest.raises(ValueError, match=r"t_ref of population 'a' is 0\.1, longer"):
        init(t_ref=0.1)
    with pytest.raises(ValueError, match=r"Population 'a'\.tau_mem is .*fits \(2,\)"):
        init(tau_mem=np.full(3, 10e-3))


def test_a_graph_is_one_row_of_a_table_with_its_parameters():
    wide = {"width": 250, "force_terminal": False}
    graph = loop(param_dtype=jnp.float32)
    table = graph.tabulate(jax.random.key(0), inputs(), console_kwargs=wide)
    sizes = {"input": 4, "e": 5, "i": 3, "out": 2}
    for c in graph.connections:
        shape = f"[{sizes[c.source]},{sizes[c.target]}]"
        assert f"{c.name}: float32{shape}" in table
    assert table.count("│ Graph ") == 1


@pytest.mark.usefixtures("x64")
def test_single_precision_in_a_program_that_has_double():
    # Weights that are not there, times, and parameters each have a dtype.
    x = inputs()
    graph = loop(param_dtype=jnp.float32, delay=nn.initializers.constant(1e-3))
    params = graph.init(jax.random.key(3), x, UNTIL)["params"]

    @jax.jit
    @jax.grad
    def grad(params):
        out = graph.apply({"params": params}, x, UNTIL)["i"].first()
        return jnp.sum(jnp.where(out < jnp.inf, out, 0))

    found, expected = grad(params), grad(jax.tree.map(jnp.float64, params))
    for name, value in found.items():
        assert value.dtype == jnp.float32
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(value, expected[name], rtol=1e-3, atol=1e-3 * scale)
