"""NIR: networks and spikes there and back, and files that other tools wrote."""

import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxsnn import Spikes
from jaxsnn.coding import decode_recordings, encode_recordings
from jaxsnn.exchange import from_nir, from_nir_data, to_nir, to_nir_data
from jaxsnn.layers import (
    LI,
    LIF,
    Bounded,
    Connection,
    Delay,
    Graph,
    GridNetwork,
    Network,
    Population,
    grid_twin,
)

nir = pytest.importorskip("nir")

FILES = Path(__file__).parent / "files"
UNTIL = 40e-3
INPUTS = Spikes.from_times(jnp.array([[0.5e-3, 9e-3], [2e-3, 11e-3], [4e-3, jnp.inf]]))


def learned(low, high):
    """An initializer of values that differ from neuron to neuron."""
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, low, high)


NETWORKS = {
    "learned": Network(
        [
            LIF(
                4,
                tau_mem=learned(8e-3, 12e-3),
                tau_syn=learned(3e-3, 6e-3),
                v_th=learned(0.8, 1.2),
                v_reset=learned(-0.3, -0.1),
                v_leak=(0.1, 0.0, -0.1, 0.05),
                max_spikes=3,
                slots=9,
                name="hidden",
            ),
            Delay(learned(0.5e-3, 2e-3), name="axons"),
            LIF(2, max_spikes=4, name="output"),
            Delay(1e-3),
        ]
    ),
    "voltages": Network(
        [
            LIF(3, delay=Bounded(0.0, 3e-3), max_spikes=2),
            Delay((1e-3, 0.0, 2e-3)),
            LI(2, v_leak=0.2),
        ]
    ),
    "recurrent": LIF(
        3,
        max_spikes=3,
        t_ref=(1e-3, 2e-3, 0.5e-3),
        recurrent=True,
        recurrent_delay=learned(1e-3, 3e-3),
        delay=0.5e-3,
    ),
    "graph": Graph(
        populations={
            "b": Population(3, max_spikes=3, tau_mem=learned(8e-3, 12e-3)),
            "a": Population(2, max_spikes=3, v_reset=-0.2),
            "aside": Population(1),
        },
        connections=[
            Connection("input", "b", delay=((1e-3,), (0.0,), (2e-3,))),
            Connection("b", "a", delay=learned(1e-3, 2e-3)),
            Connection("a", "b", delay=1e-3),
            Connection("input", "a"),
            Connection("b", "aside"),
        ],
        outputs=["b", "a"],
    ),
}
CONVENTIONS = {
    "learned": {},
    "voltages": {"pulse": 1e-4, "voltage_unit": 1 / 15e-3},
    "recurrent": {"pulse": "jump", "time_unit": 1e-6},
    "graph": {"pulse": 1e-4, "time_unit": 1e-3, "voltage_unit": 2.0},
}


def quietly(*args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return to_nir(*args, **kwargs)


def times(outputs):
    """All that a network says, as an array."""
    if isinstance(outputs, dict):
        return np.concatenate([times(outputs[name]) for name in sorted(outputs)])
    if isinstance(outputs, Spikes):
        return np.asarray(outputs.times(4))
    return np.asarray(outputs.voltage(jnp.linspace(0.0, UNTIL, 9)))


def run(network, variables):
    """All that a network says of the inputs of this file."""
    return times(jax.jit(network.apply)(variables, INPUTS, UNTIL))


@pytest.fixture(scope="module")
def trained():
    """Variables of a network, and its outputs."""

    def make(name, known={}):  # noqa: B006  # Computed once.
        if name not in known:
            network = NETWORKS[name]
            shapes = jax.eval_shape(lambda: INPUTS)
            variables = network.lazy_init(jax.random.key(3), shapes, UNTIL)
            known[name] = variables, run(network, variables)
        return known[name]

    return make


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_comes_back_from_a_file_as_it_was(tmp_path, trained, name):
    network, (variables, before) = NETWORKS[name], trained(name)
    nir.write(tmp_path / "net.nir", quietly(network, variables, **CONVENTIONS[name]))
    again, same = from_nir(tmp_path / "net.nir")
    assert type(again) is type(network)
    fresh = jax.eval_shape(again.init, jax.random.key(0), INPUTS, UNTIL)
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, same)
    after = run(again, same)
    assert np.isfinite(before).sum() >= 4
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-8)


def test_weights_and_limits_survive_to_the_last_bit(trained):
    (variables, _), network = trained("learned"), NETWORKS["learned"]
    again, same = from_nir(quietly(network, variables))
    for name in ("hidden", "output"):
        kernel = variables["params"][name]["kernel"]
        np.testing.assert_array_equal(same["params"][name]["kernel"], kernel)
    hidden, axons, output, late = again.layers
    assert (hidden.max_spikes, hidden.slots, output.max_spikes) == (3, 9, 4)
    tau = jnp.exp(variables["params"]["hidden"]["log_tau_mem"])
    np.testing.assert_array_equal(np.float32(hidden.tau_mem), tau)
    wait = jnp.exp(variables["params"]["axons"]["log_delay"])
    np.testing.assert_array_equal(np.float32(axons.delay), wait)
    assert np.float32(late.delay) == np.float32(1e-3)


def test_delays_of_synapses_are_nodes_that_need_no_metadata():
    network = Network(
        [
            LIF(3, delay=Bounded(0.0, 3e-3), max_spikes=2),  # All of them differ.
            LIF(2, delay=((1e-3, 2e-3),), max_spikes=2),  # Of the targets only.
        ]
    )
    shapes = jax.eval_shape(lambda: INPUTS)
    variables = network.lazy_init(jax.random.key(3), shapes)
    graph = quietly(network, variables)
    assert "input_to_layers_0_copies" in graph.nodes
    assert "layers_0_to_layers_1_copies" not in graph.nodes
    with_metadata, _ = from_nir(graph)
    for node in [graph, *graph.nodes.values()]:
        node.metadata = {}
    again, same = from_nir(graph, pulse="dirac", max_spikes=2)
    assert again == with_metadata
    wait = 3e-3 * jax.nn.sigmoid(variables["params"]["layers_0"]["logit_delay"])
    np.testing.assert_allclose(again.layers[0].delay, wait, rtol=1e-6)
    np.testing.assert_allclose(again.layers[1].delay, [[1e-3, 2e-3]], rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, same, kernels(variables))


def kernels(variables):
    """What is left of parameters when values that are learned become constants."""
    return {
        "params": {
            name: {key: value for key, value in layer.items() if "kernel" in key}
            for name, layer in variables["params"].items()
        }
    }


def test_the_three_ways_to_write_a_spike():
    layer = LIF(2, tau_mem=(10e-3, 12e-3), tau_syn=4e-3)
    weight = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    variables = {"params": {"kernel": weight}}

    def written(**convention):
        nodes = quietly(layer, variables, **convention).nodes
        return nodes["LIF"], nodes["input_to_LIF"].weight

    node, matrix = written(time_unit=1e-3)
    np.testing.assert_allclose(node.w_in, [4.0, 4.0])  # tau_syn, in its unit.
    np.testing.assert_array_equal(node.r, [1.0, 1.0])
    np.testing.assert_array_equal(matrix, weight.T)
    node, matrix = written(pulse="jump")
    np.testing.assert_array_equal([node.r, node.w_in], np.ones((2, 2)))
    np.testing.assert_array_equal(matrix, weight.T)
    # What snnTorch asks of a file: a step adds weights to currents, and these to
    # voltages.
    node, matrix = written(pulse=1e-4)
    np.testing.assert_allclose(node.r * 1e-4 / node.tau_mem, 1.0)
    np.testing.assert_allclose(node.w_in * 1e-4 / node.tau_syn, 1.0)
    np.testing.assert_allclose(matrix.T, weight / np.array([100.0, 120.0]), rtol=1e-6)


def test_what_nir_has_no_field_for_is_said(trained):
    variables, _ = trained("recurrent")
    with pytest.warns(UserWarning, match=r"max_spikes of LIF \(3\), t_ref of LIF \(0"):
        to_nir(NETWORKS["recurrent"], variables)


def test_the_package_itself_finds_the_graph_sound(tmp_path, trained):
    variables, _ = trained("learned")
    nir.write(tmp_path / "net.nir", quietly(NETWORKS["learned"], variables))
    graph = nir.read(tmp_path / "net.nir")  # With its own check of types.
    assert graph.nodes["hidden"].tau_mem.shape == (4,)
    assert graph.nodes["input_to_hidden"].weight.shape == (4, 3)
    assert isinstance(graph.nodes["hidden_to_output_delay"], nir.Delay)


def integrate(node, weight, delay, events, pulse, until, step):
    """Spikes of NIR's equations as they are written, by small Euler steps.

    `events` are (time, source); `pulse` is the length of a spike, whose height is 1, or
    None for a pulse of one step with area 1. Everything is in the file's units.
    """
    steps = round(until / step)
    signal = np.zeros((steps + 1, weight.shape[1]))
    for time, source in events:
        first = round((time + delay[source]) / step)
        if pulse is None:
            signal[first, source] += 1 / step
        else:
            signal[first : first + round(pulse / step), source] += 1
    v, i = node.v_leak.copy(), np.zeros_like(node.v_leak)
    found = [[] for _ in v]
    for k in range(steps):
        i_next = i + step / node.tau_syn * (-i + node.w_in * (weight @ signal[k]))
        v_next = v + step / node.tau_mem * (node.v_leak - v + node.r * i_next)
        for n in np.flatnonzero(v_next > node.v_threshold):
            part = (node.v_threshold[n] - v[n]) / (v_next[n] - v[n])
            found[n].append((k + part) * step)
            v_next[n] = node.v_reset[n]
        v, i = v_next, i_next
    return found


def test_neurons_follow_the_equations_of_nir(x64):
    fields = {
        "tau_mem": np.array([10.0, 14.0]),  # ms
        "tau_syn": np.array([5.0, 3.0]),
        "r": np.array([2.0, 0.5]),
        "v_leak": np.array([0.5, -1.0]),  # mV
        "v_threshold": np.array([15.0, 12.0]),
        "v_reset": np.array([-2.0, 0.0]),
    }
    weight, delay = np.array([[40.0, 55.0], [120.0, 90.0]]), np.array([1.0, 0.0])
    events = [(1.0, 0), (2.0, 1), (12.0, 1), (13.0, 0)]  # ms
    read, expected = [], []
    for pulse, length, area in [("dirac", None, 1.0), (20e-6, 0.02, 0.02)]:
        node = nir.CubaLIF(**fields, w_in=np.array([3.0, 4.0]) / area)
        graph = graph_of(
            nir.Affine(2 * weight, np.zeros(2)),
            [("in", "wait"), ("wait", "w"), ("w", "x"), ("x", "n"), ("n", "out")],
            w=nir.Scale(np.array([0.5, 0.5])),
            wait=nir.Delay(delay),
            n=node,
        )
        said = {"time_unit": 1e-3, "voltage_unit": 1 / 15, "max_spikes": 10}
        read.append(from_nir(graph, pulse=pulse, **said))
        expected.append(integrate(node, weight, delay, events, length, 40.0, 1e-3))
        assert [len(x) for x in expected[-1]] == [5, 3]
    (module, variables), (same, also) = read
    assert module == same  # So that one run is enough.
    jax.tree.map(np.testing.assert_allclose, variables, also)
    time, source = (jnp.array(x) for x in zip(*events, strict=True))
    spikes = Spikes.from_events(time * 1e-3, source, 2)
    found = np.asarray(jax.jit(module.apply)(variables, spikes, 40e-3).times(10))
    for theirs, error in zip(expected, [2e-3, 0.02], strict=True):
        for own, other in zip(found, theirs, strict=True):
            assert np.isfinite(own).sum() == len(other)
            np.testing.assert_allclose(
                1e3 * own[: len(other)], other, atol=error, rtol=0
            )


# How far a time step moves spikes, and how much of it adds up from spike to spike.
TOOLS = {
    "norse": ({"pulse": "jump", "time_unit": 1 / 1e-5}, 1e-5, {"1": "1"}, 8),
    "snntorch": ({"pulse": 1e-4}, 1e-4, {"1": "1", "3": "3"}, 3),
    "snntorch_recurrent": ({"pulse": 1e-4}, 1e-4, {"1": "1_lif", "3": "3"}, 1),
}


@pytest.mark.parametrize("name", TOOLS)
def test_a_file_of_another_tool_gives_the_spikes_of_that_tool(name):
    said, dt, layers, number = TOOLS[name]
    network, variables = from_nir(FILES / f"{name}.nir", max_spikes=40, **said)
    theirs = from_nir_data(FILES / f"{name}.events.nir")

    @jax.jit
    def apply(variables, spikes):
        return network.apply(variables, spikes, 60e-3, mutable=["intermediates"])

    _, found = apply(variables, theirs["input"])
    for node, layer in layers.items():
        (own,) = found["intermediates"][layer]["spikes"]
        a, b = own.times(number)[0], theirs[node].times(number)[0]
        np.testing.assert_array_equal(np.isfinite(a), np.isfinite(b))
        assert np.isfinite(b).sum() >= number
        assert np.abs(a - b)[np.isfinite(b)].max() < 5 * dt


def cuba(kind=None, size=2, **fields):
    ones = np.ones(size)
    kind = kind or nir.CubaLIF
    if kind is nir.CubaLIF:
        fields = {"v_threshold": ones, **fields}
    shared = {"tau_mem": 1e-2 * ones, "tau_syn": 5e-3 * ones, "r": ones, "v_leak": ones}
    return kind(**{**shared, "v_leak": 0 * ones, **fields})


def graph_of(middle, edges=(("in", "w"), ("w", "x"), ("x", "n"), ("n", "out")), **more):
    nodes = {
        "in": nir.Input([2]),
        "w": nir.Linear(np.eye(2)),
        "x": middle,
        "n": cuba(),
        "out": nir.Output([2]),
        **more,
    }
    return nir.NIRGraph(nodes, list(edges), type_check=False)


ONES = np.ones(2)


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (lambda: graph_of(nir.LIF(ONES, ONES, ONES, ONES)), r"'x' \(LIF\).*synaptic"),
        (lambda: graph_of(nir.LI(ONES, ONES, ONES)), r"'x' \(LI\).*synaptic"),
        (lambda: graph_of(nir.IF(ONES, ONES)), r"'x' \(IF\).*leak"),
        (lambda: graph_of(nir.Threshold(ONES)), r"'x' \(Threshold\)"),
        (
            lambda: graph_of(nir.Conv1d(2, np.ones((1, 1, 1)), 1, 0, 1, 1, ONES)),
            r"'x' \(Conv1d\).*convolutions",
        ),
        (lambda: graph_of(nir.Affine(np.eye(2), ONES)), r"'x' \(Affine\).*bias"),
        (lambda: graph_of(nir.Linear(np.ones((3, 3)))), r"'x' \(Linear\).*gets 2"),
        (lambda: graph_of(cuba(nir.CubaLI)), r"'x' \(CubaLI\).*acts on"),
        (lambda: graph_of(cuba(tau_syn=-ONES)), r"'x' \(CubaLIF\).*tau_syn"),
        (
            lambda: graph_of(
                nir.Scale(ONES),
                [("in", "x"), ("x", "w"), ("w", "x"), ("x", "n"), ("n", "out")],
            ),
            "acts on itself",
        ),
        (
            lambda: graph_of(
                nir.Delay(ONES),
                [("in", "w"), ("w", "n"), ("w", "x"), ("x", "n"), ("n", "out")],
            ),
            r"'n' \(CubaLIF\).*different\s+times",
        ),
        (lambda: graph_of(nir.Scale(ONES), other=nir.Input([2])), "2 Input nodes"),
        (
            lambda: graph_of(
                nir.Scale(ONES), [("in", "w"), ("w", "n"), ("n", "x"), ("x", "gone")]
            ),
            "gone",
        ),
        (
            lambda: graph_of(
                nir.Scale(2 * ONES), [("in", "w"), ("w", "n"), ("n", "x"), ("x", "out")]
            ),
            r"'out' \(Output\).*spikes of one population",
        ),
        (
            lambda: graph_of(
                cuba(nir.CubaLI),
                [("in", "w"), ("w", "n"), ("w", "x"), ("n", "out")],
            ),
            r"'x' \(CubaLI\).*Graph",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_represented_is_named(graph, words):
    with pytest.raises(ValueError, match=words):
        from_nir(graph(), pulse="dirac", max_spikes=3)


def test_what_a_file_does_not_say_has_to_be_said(trained):
    graph = graph_of(nir.Scale(ONES))
    with pytest.raises(ValueError, match="pulse='dirac'"):
        from_nir(graph, max_spikes=3)
    with pytest.raises(ValueError, match=r"'n'.*max_spikes="):
        from_nir(graph, pulse="dirac")
    slow = graph_of(nir.Scale(ONES), n=cuba(tau_mem=10 * ONES))
    with pytest.raises(ValueError, match=r"time_unit=1e-3"):
        from_nir(slow, pulse="dirac", max_spikes=3)
    assert from_nir(slow, pulse="dirac", max_spikes=3, time_unit=1.0)
    for wrong in ({"pulse": "spike"}, {"pulse": 0.0}, {"time_unit": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            from_nir(graph, **{"pulse": "dirac", "max_spikes": 3, **wrong})
    network = Network([LIF(2)])
    variables = network.init(jax.random.key(0), INPUTS)
    twin = grid_twin(network, dt=1e-3, steps=5)
    assert isinstance(twin, GridNetwork)
    with pytest.raises(TypeError, match="GridNetwork"):
        to_nir(twin, variables)
    with pytest.raises(TypeError, match="Dense"):
        to_nir(nn.Dense(3), variables)


def test_spikes_come_back_from_a_container_of_events(tmp_path):
    spikes = {
        "input": Spikes.from_times(jnp.array([[[1e-3], [jnp.inf]], [[2e-3], [2e-3]]])),
        "hidden": Spikes.from_events(
            jnp.full((2, 3), jnp.inf), jnp.full((2, 3), -1), 5
        ),
    }
    data = to_nir_data(spikes, until=10e-3, time_unit=1e-3)
    np.testing.assert_allclose(
        data.nodes["input"].observables["spikes"].time, [[1.0, np.inf], [2.0, 2.0]]
    )
    nir.write_data(tmp_path / "data.nir", data)
    again = from_nir_data(tmp_path / "data.nir", time_unit=1e-3)
    for name, one in spikes.items():
        assert again[name].size == one.size
        np.testing.assert_array_equal(again[name].index, one.index)
        np.testing.assert_allclose(again[name].time, one.time, rtol=1e-6)
    with pytest.raises(ValueError, match=r"input.*until is 0.002"):
        to_nir_data(spikes, until=2e-3)


def test_grids_and_values_of_a_container():
    grid = np.zeros((1, 4, 2), bool)
    grid[0, 3, 1] = True
    index, time = np.array([[1, -1]]), np.array([[0.5, 20.0]])
    inner = nir.NIRNodeData({"spikes": nir.TimeGriddedData(grid, 1e-3)})
    one = nir.ValuedEventData(index, time, 2, 10.0, np.array([[1.0, 7.0]]))
    found = from_nir_data(
        nir.NIRGraphData(
            {
                "sub": nir.NIRGraphData({"lif": inner}),
                "valued": nir.NIRNodeData({"spikes": one, "v": one}),
                "only": nir.NIRNodeData({"v": one}),
            }
        )
    )
    assert sorted(found) == ["sub.lif", "valued"]
    np.testing.assert_allclose(found["sub.lif"].time, [[3e-3]], rtol=1e-6)
    # Whatever time a slot without an event has, the slot is empty.
    np.testing.assert_array_equal(found["valued"].time, [[0.5, np.inf]])
    two = nir.ValuedEventData(index, time, 2, 10.0, np.array([[2.0, 0.0]]))
    volts = nir.TimeGriddedData(np.zeros((1, 2, 2)), 1e-3)
    far = nir.EventData(np.array([[5]]), np.array([[1.0]]), 2, 10.0)
    for wrong, words in [(two, "values"), (volts, "boolean"), (far, "index")]:
        data = nir.NIRGraphData({"x": nir.NIRNodeData({"spikes": wrong})})
        with pytest.raises(ValueError, match=f"'x'.*{words}"):
            from_nir_data(data)
    with pytest.raises(ValueError, match="no node has an observable 'rates'"):
        from_nir_data(data, observable="rates")


def test_recorded_events_come_back():
    kind = [("x", np.int16), ("y", np.int16), ("t", np.int64), ("p", np.int8)]
    rng = np.random.default_rng(0)
    recordings = []
    for length in (7, 0, 3):
        events = np.zeros(length, kind)
        for name, high in [("x", 4), ("y", 3), ("p", 2)]:
            events[name] = rng.integers(0, high, length)
        # Up to 15 s, where float32 has just room for microseconds.
        events["t"] = np.sort(rng.choice(15_000_000, length, replace=False))
        recordings.append(events)
    spikes, dropped = encode_recordings(recordings, size=(4, 3, 2))
    assert spikes.time.shape == (3, 7)
    assert not dropped.any()
    again = decode_recordings(spikes, size=(4, 3, 2))
    for one, other in zip(recordings, again, strict=True):
        for name in "xytp":
            np.testing.assert_array_equal(one[name], other[name])
    with pytest.raises(ValueError, match="24 sources, but the spikes are of 5"):
        decode_recordings(Spikes.from_times(jnp.ones((5, 1))), size=(4, 3, 2))
    with pytest.raises(ValueError, match=r"at 20\.0 s, where float32"):
        decode_recordings(Spikes.from_times(jnp.full((1, 1), 20.0)))
    (shift,) = decode_recordings(Spikes.from_times(jnp.full((2, 1), 20.0)), unit=1e-3)
    assert shift["t"].tolist() == [20_000, 20_000]
    assert shift["x"].tolist() == [0, 1]
