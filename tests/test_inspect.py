"""Voltages at any time against an integration, and what a summary says of a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from oracles import voltages

import jaxsnn
from jaxsnn import Spikes
from jaxsnn.hardware import SimulatedChip
from jaxsnn.layers import (
    LI,
    LIF,
    Bounded,
    Connection,
    Delay,
    Graph,
    Network,
    Population,
    grid_twin,
)
from jaxsnn.record import Recurrent, State
from jaxsnn.voltage import voltage_at

RNG = np.random.default_rng(0)
SAMPLES, N_IN, N = 2, 4, 5
INPUTS = RNG.uniform(1e-3, 12e-3, (SAMPLES, N_IN, 2))
UNTIL = 30e-3


def given(values):
    """An initializer that returns these values."""
    return lambda key, shape, dtype: jnp.broadcast_to(jnp.asarray(values, dtype), shape)


def of_neuron(neuron, n):
    names = ("tau_mem", "tau_syn", "v_leak", "v_reset", "t_ref")
    return {k: float(np.broadcast_to(getattr(neuron, k), N)[n]) for k in names}


def layer(**changes):
    wanted = {
        "tau_mem": np.linspace(8e-3, 14e-3, N),
        "t_ref": 1.5e-3,
        "v_leak": 0.1,
        "v_reset": -0.2,
        "max_spikes": 4,
        "delay": Bounded(0.0, 4e-3),
        "recurrent": True,
        "recurrent_delay": RNG.uniform(0.5e-3, 2e-3, (N, N)),
        "kernel_init": given(RNG.normal(4.0, 3.0, (N_IN, N))),
        "recurrent_init": given(RNG.normal(0.0, 2.0, (N, N))),
        "param_dtype": jnp.float64,
    }
    return LIF(N, **{**wanted, **changes}, name="layer")


def test_voltages_are_those_of_an_integration_with_delays_loops_and_rest(x64):
    model, spikes = layer(), Spikes.from_times(jnp.asarray(INPUTS))
    variables = model.init(jax.random.key(0), spikes)
    activity = jaxsnn.summary(model, variables, spikes, until=UNTIL).layers[0]
    assert activity.count.sum() > 15
    kernels = [np.asarray(c.kernel) for c in activity.connections]
    delays = [np.broadcast_to(c.delay, c.kernel.shape) for c in activity.connections]
    for sample, n in [(0, 0), (1, 2), (0, 4)]:
        own = np.asarray(activity.times[sample])
        arrivals = [
            (t + delays[0][j, n], kernels[0][j, n])
            for j in range(N_IN)
            for t in INPUTS[sample, j]
        ]
        arrivals += [
            (t + delays[1][m, n], kernels[1][m, n])
            for m in range(N)
            for t in own[m][np.isfinite(own[m])]
        ]
        mine = own[n][np.isfinite(own[n])]
        assert len(mine)
        at = np.sort(np.r_[np.linspace(0, UNTIL, 60), mine, mine + 1e-5, mine + 1.5e-3])
        neuron = of_neuron(activity.neuron, n)
        expected = voltages(neuron, arrivals, mine, at)
        found = activity.voltage(at, sample, [n])[0]
        np.testing.assert_allclose(found, expected, atol=1e-9)
        # The threshold before a spike, the reset after it and for a while.
        np.testing.assert_allclose(activity.voltage(mine, sample, [n])[0], 1, atol=1e-9)
        for later in (0, 1e-3):
            after = activity.voltage(mine + later, sample, [n], side="right")[0]
            np.testing.assert_allclose(after, -0.2, atol=1e-12)


def test_voltages_go_on_from_a_state_and_rest_above_threshold(x64):
    """A run in two windows, of neurons that fire by their leak alone."""
    plain = {
        "t_ref": 0.0,
        "delay": None,
        "recurrent": False,
        "recurrent_delay": 0.0,
        "v_leak": 1.3,
    }
    model, spikes = layer(**plain, max_spikes=9), Spikes.from_times(jnp.asarray(INPUTS))
    variables = model.init(jax.random.key(0), spikes)
    whole = jaxsnn.summary(model, variables, spikes, until=UNTIL).layers[0]
    half = 6e-3
    _, state = model.apply(variables, spikes, until=half, mutable=["events"])
    rest = spikes.window(half, UNTIL)
    second = jaxsnn.summary(model, {**variables, **state}, rest, until=UNTIL).layers[0]
    assert second.start is not None
    at = np.linspace(half, UNTIL, 40)[1:-1]
    np.testing.assert_allclose(second.voltage(at), whole.voltage(at), atol=1e-9)
    neuron, kernel = of_neuron(whole.neuron, 1), whole.connections[0].kernel
    own = np.asarray(whole.times[0, 1])
    arrivals = [(t, kernel[j, 1]) for j in range(N_IN) for t in INPUTS[0, j]]
    begin = {"v": -0.2, "begin": 0.0}
    expected = voltages(neuron, arrivals, own[np.isfinite(own)], at, **begin)
    np.testing.assert_allclose(whole.voltage(at, 0, [1])[0], expected, atol=1e-9)


def test_one_spike_by_hand(x64):
    """One neuron, one input of weight 4 at 1 ms, twice as slow a membrane.

    With q = exp(-(t - 1 ms) / 10 ms), V = 4 (q - q^2), which is 1 at q = 1/2 as it
    only touches; with 6.25 it is 1 at q = 4/5. From there V = 6.25 * 0.64 (p - p^2).
    """
    times = 1e-3 + 10e-3 * np.log(5 / 4)
    given = jaxsnn.dynamics.Neuron(10e-3, 5e-3), jnp.array([[6.25]])
    inputs = Spikes.from_times(jnp.array([[1e-3]]))
    at = np.array([0.0, 1e-3, times, times + 10e-3 * np.log(2)])
    found = voltage_at(*given, inputs, jnp.array([[times]]), at)
    np.testing.assert_allclose(found[0], [0, 0, 1, 1.0], atol=1e-12)
    # The axes of what is asked are those of the answer.
    assert voltage_at(*given, inputs, jnp.array([[times]]), 2e-3).shape == (1,)
    own = voltage_at(*given, inputs, jnp.array([[times]]), at[None, :])
    np.testing.assert_array_equal(own, found)
    with pytest.raises(ValueError, match="side is 'both', expected 'left' or 'right'"):
        voltage_at(*given, inputs, jnp.array([[times]]), at, side="both")
    # A connection of the neuron with itself, and a state.
    again = Recurrent(jnp.array([[2.0]]), jnp.array(3e-3))
    start = State(jnp.array([0.5]), jnp.array([0.0]), jnp.array(0.5e-3), jnp.array([0]))
    found = voltage_at(
        *given, inputs, jnp.array([[times]]), at, recurrent=again, start=start
    )
    expected = 4 * (np.exp(-np.log(2)) - np.exp(-2 * np.log(2)))
    q = np.exp(-(at[3] - times - 3e-3) / 10e-3)
    np.testing.assert_allclose(found[0, 3], expected + 2 * (q - q * q), atol=1e-12)
    np.testing.assert_allclose(found[0, 1], 0.5 * np.exp(-0.05), atol=1e-12)


@pytest.fixture(scope="module")
def network():
    """Four hidden neurons, of which one hears nothing and one spike finds no slot."""
    kernel = jnp.array([[9.0, 9.0, 9.0, 0.0], [0.0, 9.0, 9.0, 0.0]])
    hidden = LIF(4, max_spikes=2, slots=2, kernel_init=given(kernel), name="hidden")
    output = LIF(2, kernel_init=given(30.0), name="output")
    spikes = Spikes.from_times(jnp.array([[[1e-3], [2e-3]], [[1e-3], [jnp.inf]]]))
    model = Network([hidden, output])
    return model, model.init(jax.random.key(0), spikes), spikes


def test_a_summary_counts(network):
    model, variables, spikes = network
    activity = jaxsnn.summary(model, variables, spikes)
    hidden, output = activity.layers
    unlimited = Network([model.layers[0].clone(slots=None), model.layers[1]])
    _, state = unlimited.apply(variables, spikes, mutable=["events"])
    count = np.asarray(state["events"]["hidden"]["count"])
    np.testing.assert_array_equal(hidden.count, count)
    np.testing.assert_array_equal(hidden.counters["overflow"], count.sum(-1) - 2)
    np.testing.assert_array_equal(hidden.never, [False, False, False, True])
    assert hidden.saturated == (count == 2).mean()
    np.testing.assert_array_equal(hidden.spikes.time.shape, (2, 2))
    first = model.apply(variables, spikes).first()
    np.testing.assert_array_equal(output.first, first)
    np.testing.assert_array_equal(activity.latency, first.min(-1))
    np.testing.assert_array_equal(activity.outputs.first(), first)
    text = str(activity)
    lost = int(count.sum() - 4)
    assert f"hidden: {lost} spikes found no slot" in text
    row = next(line for line in text.splitlines() if line.startswith("hidden")).split()
    assert row[1] == "4"
    assert row[2] == f"{count.sum(-1).mean():.1f}"
    with pytest.raises(KeyError, match="there is no layer 'none', only hidden, output"):
        activity["none"]
    with pytest.raises(ValueError, match="sample is 2, expected one of 2"):
        hidden.voltage(1e-3, 2)


def test_every_kind_of_layer_is_seen(network):
    _, _, spikes = network
    learned = nn.initializers.constant(8e-3)
    body = Network([LIF(3, tau_mem=learned, name="a"), Delay(1e-3, name="wait")])

    class Model(nn.Module):
        @nn.compact
        def __call__(self, inputs, until=jnp.inf):
            return LI(2, name="readout")(body.copy(name="body")(inputs, until), until)

    model = Model()
    variables = model.init(jax.random.key(0), spikes)
    activity = jaxsnn.summary(model, variables, spikes)
    assert [x.name for x in activity.layers] == ["body/a", "body/wait", "readout"]
    assert activity.latency is None
    sent, arrived = (activity[f"body/{name}"].spikes for name in ("a", "wait"))
    np.testing.assert_allclose(arrived.first(), sent.first() + 1e-3, rtol=1e-6)
    trace, at = activity.outputs, jnp.array([2e-3, 20e-3])
    found = activity["readout"].voltage(at)
    np.testing.assert_allclose(found, trace.voltage(at), atol=1e-6)
    with pytest.raises(ValueError, match="layer 'body/wait' is a delay"):
        activity["body/wait"].voltage(1e-3)

    text = jaxsnn.tabulate(model, variables, spikes)
    rows = {line.split()[0]: line.split() for line in text.splitlines()}
    assert rows["body/a"][1:6] == ["LIF", "3", "6", "8*", "5"]
    assert rows["body/wait"][-1] == "1"
    assert rows["readout"][1:4] == ["LI", "2", "6"]
    assert text.splitlines()[-1].split() == ["total", "5", "12", "15", "parameters"]


def test_populations_of_a_graph_and_a_time_grid(network):
    _, _, spikes = network
    graph = Graph(
        {"a": Population(3, max_spikes=3), "b": Population(2, max_spikes=3)},
        [
            Connection("input", "a"),
            Connection("a", "b"),
            Connection("b", "a", delay=1e-3),
        ],
        outputs="b",
    )
    variables = graph.init(jax.random.key(0), spikes, until=UNTIL)
    activity = jaxsnn.summary(graph, variables, spikes, until=UNTIL)
    assert [x.name for x in activity.layers] == ["a", "b"]
    found = graph.apply(variables, spikes, until=UNTIL)
    np.testing.assert_array_equal(activity.outputs.time, found.time)
    for layer in activity.layers:  # At each spike, the voltage is the threshold.
        own = np.asarray(layer.times)
        sample, n, k = np.argwhere(np.isfinite(own))[-1]
        v = layer.voltage(own[sample, n, k], int(sample), [int(n)])
        np.testing.assert_allclose(v, 1, atol=1e-4)

    network = Network([LIF(4, name="hidden"), LI(2, name="output")])
    twin = grid_twin(network, 1e-3, 1)  # One step, in which only some inputs are.
    variables = network.init(jax.random.key(0), spikes)
    activity = jaxsnn.summary(twin, variables, spikes)
    assert activity["hidden"].counters["outside"].sum() == 3
    assert activity["output"].samples.voltage.shape == (2, 2, 1)
    with pytest.raises(ValueError, match="layer 'hidden' is on a time grid"):
        activity["hidden"].voltage(1e-3)


def test_a_device_is_seen_with_its_weights_and_errors():
    chip = SimulatedChip(scale=None, queue=None, loss=0.3)
    spikes = Spikes.from_times(jnp.asarray(INPUTS[:, :, :1], jnp.float32))
    alone = LIF(6, name="layer", backend=chip)
    together = Network([alone.clone(backend=None)], backend=chip)
    variables = together.init(jax.random.key(0), spikes)
    found = jaxsnn.summary(together, variables, spikes, until=UNTIL).layers[0]
    key = {"mutable": ["events", "mismatch"]}
    outputs, state = together.apply(variables, spikes, until=UNTIL, **key)
    np.testing.assert_array_equal(found.first, outputs.first())
    there = state["mismatch"]["layer"]
    np.testing.assert_allclose(found.mismatch.time, there["time"], atol=1e-8)
    assert found.counters["lost"].sum() == there_lost(state) > 0
    (connection,) = found.connections
    weights = np.asarray(connection.kernel, float)
    assert len(np.unique(np.abs(weights))) <= 64  # Integers.
    gap = np.abs(weights - connection.own).max()
    assert 0 < gap < 0.51 * np.abs(connection.own).max() / 63
    single = jaxsnn.summary(
        alone, {"params": variables["params"]["layer"]}, spikes, until=UNTIL
    )
    np.testing.assert_array_equal(single.layers[0].connections[0].kernel, weights)
    assert "spikes were lost on the device" in str(single)


def there_lost(state):
    return np.sum(state["events"]["layer"]["lost"])


def test_what_cannot_be_summarised_is_said(network):
    model, variables, spikes = network
    with pytest.raises(TypeError, match=r"outside of jax\.jit"):
        jax.jit(lambda x: str(jaxsnn.summary(model, variables, x)))(spikes)
    with pytest.raises(ValueError, match=r"Wrapped ran no layer of jaxsnn\.layers"):
        jaxsnn.summary(Wrapped(), Wrapped().init(jax.random.key(0), spikes), spikes)
    mapped = nn.vmap(LIF, variable_axes={"params": None}, split_rngs={"params": False})
    mapped = mapped(2)
    with pytest.raises(ValueError, match="cannot be seen from outside"):
        jaxsnn.summary(mapped, mapped.init(jax.random.key(0), spikes), spikes)


class Wrapped(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(2)(inputs.first())
