"""Against NEST, a simulator in C++ that shares no code with this package.

Its model `iaf_psc_exp_ps` is the same neuron, solved in continuous time. Two things
differ. A connection delays by one step at least, so our inputs are that much later. And
after a spike its membrane rests at the reset voltage for a refractory time, one step at
least, while the current goes on. So the first spikes compare as they are; every later
one compares with the layer continued from the state at the end of that rest, which is
known by hand: reset voltage, and the sum of the inputs' decayed currents. A recurrent
network has a refractory period itself, and is compared as a whole.

At the end, NEST as a device that finds the spikes of our layers: `hardware.Nest`.
"""

import functools
import os
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

os.environ.setdefault("PYNEST_QUIET", "1")  # No banner.
nest = pytest.importorskip("nest")

from jaxsnn import Spikes  # noqa: E402
from jaxsnn.hardware import DeviceError, Nest, typed_errors  # noqa: E402
from jaxsnn.layers import LIF, Connection, Graph, Network, Population  # noqa: E402

STEP = 0.01  # ms; delay and refractory time. Shorter ones cost time, not accuracy.
UNTIL = 60.0  # ms
N_IN, NEURONS = 8, 6


def run_nest(layer, kernel, time, until, lateral=None, delay=None):
    """Sorted spike times of each neuron of a layer; all times in ms.

    Args:
      layer: whose neurons these are, but that they rest for one step at least.
      kernel: weights of the inputs.
      time: of the inputs, ``[inputs, ...]``; they act one step later.
      until: when the run ends.
      lateral: weights within the layer.
      delay: of the spikes of each neuron within the layer.
    """
    nest.ResetKernel()
    if hasattr(nest, "VerbosityLevel"):
        nest.verbosity = nest.VerbosityLevel.ERROR
    else:
        nest.set_verbosity("M_ERROR")
    nest.resolution = STEP
    fires_unprompted = layer.v_leak > layer.v_th
    tau_mem, tau_syn = 1e3 * layer.tau_mem, 1e3 * layer.tau_syn
    neurons = nest.Create(
        "iaf_psc_exp_ps",
        kernel.shape[1],
        {
            "C_m": tau_mem,  # With this, a weight in pA is one in mV.
            "tau_m": tau_mem,
            "tau_syn_ex": tau_syn,
            "tau_syn_in": tau_syn,
            "V_th": layer.v_th,
            "E_L": layer.v_leak,
            "V_reset": layer.v_reset,
            "V_m": layer.v_reset if fires_unprompted else layer.v_leak,
            "I_e": 0.0,
            "t_ref": max(STEP, 1e3 * layer.t_ref),
        },
    )
    sources = nest.Create(
        "spike_generator",
        len(time),
        [{"spike_times": np.atleast_1d(t), "precise_times": True} for t in time],
    )
    recorder = nest.Create("spike_recorder")
    synapse = {"weight": kernel.T, "delay": STEP}
    nest.Connect(sources, neurons, "all_to_all", synapse)
    if lateral is not None:
        # NEST's order is target, source.
        delays = np.broadcast_to(delay, lateral.shape)
        synapse = {"weight": lateral.T, "delay": delays}
        nest.Connect(neurons, neurons, "all_to_all", synapse)
    nest.Connect(neurons, recorder)
    nest.Simulate(until)
    events = recorder.events
    return [np.sort(events["times"][events["senders"] == n]) for n in neurons.tolist()]


def restarts(layer, kernel, time, trains):
    """State of a layer at the start, and at the end of each rest after a spike.

    Each is a sample of its own, so that all next spikes are found in one run.
    """
    samples = []
    for n, train in enumerate(trains):
        begins = [0.0, *(train + STEP)]
        ends = [*train, np.inf]
        for k, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            if begin >= UNTIL - STEP:
                continue
            fresh = k == 0 and layer.v_leak <= layer.v_th
            before = (time <= begin) & (k > 0)
            decay = np.where(before, np.exp(-(begin - time) / (1e3 * layer.tau_syn)), 0)
            samples.append(
                {
                    "v": np.full(NEURONS, layer.v_leak if fresh else layer.v_reset),
                    "i": decay @ kernel,
                    "time": begin,
                    "inputs": np.where(before, np.inf, time),
                    "neuron": n,
                    "next": end,
                }
            )
    columns = {name: np.array([s[name] for s in samples]) for name in samples[0]}
    return SimpleNamespace(**columns)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize(
    ("v_leak", "v_reset", "strength"),
    [(0.0, 0.0, 3.0), (0.2, 0.6, 6.0), (2.0, -0.3, 0.0)],
    ids=["plain", "bursts", "leak over threshold"],
)
def test_spike_times_match_nest(ratio, v_leak, v_reset, strength):
    rng = np.random.default_rng(int(10 * ratio))
    # In proportion to what one input needs; about 0 is much inhibition.
    lowest = {0.5: 2.0, 1.0: np.e, 2.0: 4.0, 4.0: 4 ** (4 / 3)}[ratio]
    kernel = lowest / 4 * rng.normal(strength, 4.0, (N_IN, NEURONS))
    time = np.sort(rng.uniform(1.0, 40.0, N_IN))
    time[3] = time[2]  # Simultaneous inputs.
    layer = LIF(
        NEURONS, tau_mem=10e-3, tau_syn=10e-3 / ratio, v_leak=v_leak, v_reset=v_reset
    )
    trains = run_nest(layer, kernel, time, UNTIL)
    assert sum(map(len, trains)) > 20
    arrival = time + STEP
    starts = restarts(layer, kernel, arrival, trains)

    @jax.jit
    def next_spikes():
        batch = len(starts.time)
        state = {
            "v": jnp.array(starts.v),
            "i": jnp.array(starts.i),
            "time": jnp.array(1e-3 * starts.time),
            "count": jnp.zeros((batch, NEURONS), jnp.int32),
        }
        variables = {"params": {"kernel": jnp.array(kernel)}, "events": state}
        inputs = Spikes.from_times(jnp.array(1e-3 * starts.inputs)[..., None])
        times = layer.apply(variables, inputs, 1e-3 * UNTIL).first()
        return times[jnp.arange(batch), starts.neuron]

    # Same spikes, one after the other, and after the last one none: same counts.
    np.testing.assert_allclose(1e3 * next_spikes(), starts.next, rtol=1e-9)


SIZES = [(100, "event"), (100, "window"), (1000, "window")]


@functools.cache
def nest_network(neurons):
    """A random network and its spikes by NEST: arguments, times [neurons, spikes]."""
    rng = np.random.default_rng(neurons)
    sources, until = 40, 100.0
    # A fifth inhibits as much as the others excite. The coupling is moderate on
    # purpose: what the one simulator rounds otherwise than the other must not grow, as
    # it would in chaos, where after some time no two programs have the same spikes.
    sign = np.where(np.arange(neurons) % 5 == 4, -4.0, 1.0)
    connected = rng.random((neurons, neurons)) < 0.1
    lateral = 0.4 * sign[:, None] * connected / np.sqrt(0.1 * neurons)
    kernel = 25 / sources * rng.gamma(1.0, 1.0, (sources, neurons))
    time = np.sort(rng.uniform(0, until, (sources, 10)))
    delay = STEP * rng.integers(50, 200, neurons)  # Of each source, 0.5 to 2 ms.
    layer = LIF(neurons, t_ref=1e-3)
    trains = run_nest(layer, kernel, time, until, lateral, delay)
    most = max(map(len, trains))
    times = np.full((neurons, most), np.inf)
    for n, train in enumerate(trains):
        times[n, : len(train)] = train
    return SimpleNamespace(
        layer=layer,
        kernel=kernel,
        lateral=lateral,
        arrival=time + STEP,
        delay=delay,
        until=until,
        times=times,
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("neurons", "by"), SIZES)
def test_a_recurrent_network_matches_nest(neurons, by):
    network = nest_network(neurons)
    expected = network.times
    layer = network.layer.clone(
        max_spikes=expected.shape[1] + 1,  # One more than needed would be seen.
        recurrent=True,
        recurrent_delay=1e-3 * network.delay[:, None],
        recurrent_by=by,
        param_dtype=jnp.float64,
    )
    params = {"kernel": network.kernel, "recurrent_kernel": network.lateral}

    def run(lateral):
        inputs = Spikes.from_times(jnp.array(1e-3 * network.arrival)[None])
        weights = {**params, "recurrent_kernel": lateral}
        out = layer.apply({"params": weights}, inputs, 1e-3 * network.until)
        return out.times(layer.max_spikes)[0]

    run = jax.jit(run)
    found = 1e3 * np.asarray(run(jnp.array(network.lateral)))
    assert np.isfinite(expected).sum() > 1000
    assert np.isinf(found[:, -1]).all()
    np.testing.assert_allclose(found[:, :-1], expected, rtol=1e-9)
    # The connections matter: without them hardly a spike is where it was.
    alone = 1e3 * np.asarray(run(jnp.zeros((neurons, neurons))))[:, :-1]
    same = np.isclose(alone, expected, rtol=1e-6) & np.isfinite(expected)
    assert same.sum() < 0.1 * np.isfinite(expected).sum()


# NEST as a device.

F64 = {"param_dtype": jnp.float64}
END = 60e-3


def uniform_inputs(shape):
    rng = np.random.default_rng(0)
    return Spikes.from_times(jnp.array(rng.uniform(0, 20e-3, shape)))


def pair(**attributes):
    """A network of two layers whose neurons all differ."""
    rng = np.random.default_rng(1)
    layers = []
    for name, size in (("hidden", 9), ("output", 4)):
        varied = {
            "tau_mem": rng.uniform(6e-3, 14e-3, size),
            "tau_syn": rng.uniform(3e-3, 9e-3, size),
            "v_th": rng.uniform(0.8, 1.2, size),
            "v_reset": rng.uniform(-0.3, 0.3, size),
        }
        layers.append(LIF(size, name=name, **{**varied, **attributes}, **F64))
    return Network(layers)


def several(**attributes):
    return LIF(12, name="neurons", max_spikes=50, t_ref=1e-3, **attributes, **F64)


def loop():
    """Excitation, inhibition and a shortcut; by time in steps 10, 5, 3, 0, 2."""
    kinds = {
        "excitatory": Population(8, max_spikes=50, t_ref=2e-3),
        "inhibitory": Population(3, tau_mem=8e-3, max_spikes=50, t_ref=1e-3),
        "output": Population(4),
    }
    connections = [
        Connection("input", "excitatory", delay=1e-3),
        Connection("excitatory", "inhibitory", delay=0.5e-3),
        Connection("inhibitory", "excitatory", delay=0.3e-3),
        Connection("excitatory", "output"),
        Connection("input", "output", delay=0.2e-3),
    ]
    return Graph(kinds, connections, outputs=list(kinds), **F64)


RECURRENT = {
    "recurrent": True,
    "recurrent_delay": 1e-3 * np.arange(1, 13)[:, None] / 10,
}
MODELS = {
    "silent after one": (pair(), {}),
    "leak over threshold": (pair(v_leak=1.4), {}),
    "several, refractory": (several(), {}),
    "several, leak over threshold": (several(v_leak=1.4), {"resolution": 1e-5}),
    "recurrent": (several(**RECURRENT), {}),
    "recurrent, one spike": (several(**RECURRENT).clone(max_spikes=1, t_ref=0.0), {}),
    "delays": (
        several(delay=3e-4 * np.arange(60).reshape(5, 12)),
        {"resolution": 3e-4},
    ),
    "loop": (loop(), {}),
    "other units": (several(), {"time_scale": 0.1, "resolution": 1e-5}),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", MODELS)
def test_a_device_finds_the_spikes_of_the_exact_simulation(case):
    model, attributes = MODELS[case]
    if case == "delays":
        model = model.clone(t_ref=9e-4)
    inputs = uniform_inputs((3, 5, 2))
    on_nest = model.clone(backend=Nest(**attributes))
    shapes = jax.eval_shape(model.init, jax.random.key(0), inputs, END)["params"]
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda x: jnp.array(rng.normal(2.0, 2.0, x.shape)), shapes)
    if "recurrent_kernel" in params:
        params["recurrent_kernel"] = 0.3 * (params["recurrent_kernel"] - 2.0)

    collections = ["intermediates", "events"]

    def run(model, params):
        _, state = model.apply({"params": params}, inputs, END, mutable=collections)
        return state

    expected, found = (
        jax.jit(functools.partial(run, m))(params) for m in (model, on_nest)
    )
    trains = jax.tree.leaves(expected["intermediates"], is_leaf=is_spikes)
    others = jax.tree.leaves(found["intermediates"], is_leaf=is_spikes)
    assert sum(int(jnp.isfinite(t.time).sum()) for t in trains) > 20
    for train, other in zip(trains, others, strict=True):
        np.testing.assert_array_equal(other.index, train.index)
        np.testing.assert_allclose(other.time, train.time, rtol=1e-9)
    counters = jax.tree_util.tree_leaves_with_path(found.get("events"))
    for path, value in counters:
        if path[-1].key in ("lost", "extra", "unexplained", "retried"):
            assert value.sum() == 0


def is_spikes(x):
    return isinstance(x, Spikes)


@pytest.mark.usefixtures("x64")
def test_a_training_step_on_nest_is_that_of_the_software():
    # Of the usual size, with a batch whose samples follow each other in one run.
    inputs = uniform_inputs((64, 25, 1))
    layers = [LIF(100, name="hidden", **F64), LIF(3, name="output", **F64)]
    rng = np.random.default_rng(3)
    params = {
        "hidden": {"kernel": jnp.array(rng.normal(1.0, 1.0, (25, 100)))},
        "output": {"kernel": jnp.array(rng.normal(0.3, 0.3, (100, 3)))},
    }

    def step(model, params):
        times = model.apply({"params": params}, inputs, END).first()
        return jnp.sum(jnp.where(times < jnp.inf, times, END) ** 2)

    expected, found = (
        jax.jit(jax.value_and_grad(functools.partial(step, model)))(params)
        for model in (Network(layers), Network(layers, backend=Nest()))
    )
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-12)
    for name, layer in expected[1].items():
        scale = np.abs(layer["kernel"]).max()
        assert scale > 0
        difference = found[1][name]["kernel"] - layer["kernel"]
        assert np.abs(difference).max() < 1e-6 * scale


def test_more_spikes_than_asked_for_are_counted():
    # By a leak of 2 every tau ln 2 + t_ref: 7.93 ms, that is 7 times in 60 ms.
    layer = LIF(1, v_leak=2.0, max_spikes=2, t_ref=1e-3, backend=Nest())
    inputs = Spikes.from_times(jnp.full((2, 1, 1), jnp.inf))
    variables = {"params": {"kernel": jnp.zeros((1, 1))}}
    run = jax.jit(lambda v: layer.apply(v, inputs, END, mutable=["events"]))
    out, state = run(variables)
    first = 10e-3 * np.log(2)
    expected = [[[first, 2 * first + 1e-3]]] * 2
    np.testing.assert_allclose(out.times(2), expected, rtol=1e-6)
    np.testing.assert_array_equal(state["events"]["extra"], [5, 5])


@pytest.mark.parametrize(
    ("model", "until", "message"),
    [
        (
            LIF(2, t_ref=0.17e-3, max_spikes=2),
            END,
            r"'LIF' has t_ref = 0.00017 s, .* Write 0.0001 or 0.0002, or choose",
        ),
        (
            LIF(2, delay=np.array([[0.2e-3, 0.3e-3], [0.0, 1.24e-3]])),
            END,
            r"'LIF' has a delay = 0.00124\d* s, .* Write 0.0012 or 0.0013, or choose",
        ),
        (
            LIF(2, max_spikes=2),
            END,
            r"'LIF' has max_spikes = 2 and t_ref = 0 s, .* Write t_ref=0.0001",
        ),
        (LIF(2, recurrent=True), END, "'LIF' is part of a loop with too short delays"),
        (
            Graph(
                {"a": Population(2), "b": Population(2)},
                [
                    Connection("input", "a"),
                    Connection("a", "b"),
                    Connection("b", "a", delay=0.1e-3),
                ],
                outputs="b",
            ),
            END,
            "is part of a loop with too short delays",
        ),
        (LIF(2), float("inf"), "until is inf s"),
    ],
)
def test_what_nest_would_round_or_cannot_do_is_refused_by_init(model, until, message):
    inputs = Spikes.from_times(jnp.array([[[1e-3], [2e-3]]]))
    on_nest = model.clone(backend=Nest())
    with pytest.raises(ValueError, match=message):
        on_nest.init(jax.random.key(0), inputs, until)


def test_learned_times_that_are_not_on_the_grid_are_refused_by_the_run():
    inputs = Spikes.from_times(jnp.array([[[1e-3]]]))
    layer = LIF(2, max_spikes=2, backend=Nest(), t_ref=lambda *_: jnp.array(1.23e-3))
    params = {"kernel": jnp.ones((1, 2)), "log_t_ref": jnp.log(jnp.full(2, 1.23e-3))}
    run = jax.jit(lambda p: layer.apply({"params": p}, inputs, END).time)
    with pytest.raises(DeviceError, match=r"t_ref = 0\.0012"), typed_errors():
        jax.block_until_ready(run(params))


@pytest.mark.parametrize("resolution", [0.0, 1.5e-6, -1e-4])
def test_a_resolution_that_nest_does_not_have_is_refused(resolution):
    with pytest.raises(ValueError, match=r"Nest\.resolution is"):
        Nest(resolution=resolution)
