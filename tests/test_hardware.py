"""The seam: gradients do not ask who ran the neurons; devices report what they did."""

import functools
import gc
import re
import subprocess
import sys
import threading
import time as clock
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from jaxsnn import Spikes
from jaxsnn.analytic import analytic
from jaxsnn.backend import Population, Projection
from jaxsnn.coding import encode_latency
from jaxsnn.dynamics import Neuron
from jaxsnn.eventprop import eventprop
from jaxsnn.hardware import (
    BRAINSCALES2,
    DeviceError,
    DeviceTimeout,
    HostBackend,
    Limits,
    LinkError,
    Nest,
    Observed,
    Replay,
    typed_errors,
)
from jaxsnn.layers import LI, LIF, Bounded, Connection, Delay, Graph, Network
from jaxsnn.layers import Population as GraphPopulation

UNTIL = 60e-3


class Device(HostBackend):
    """A device that answers what a function says, and keeps what it was asked."""

    limits = Limits(name="bench", delays=True, recurrent=True)

    def __init__(self, answer, **attributes):
        super().__init__(**attributes)
        self.answer = answer
        self.compiled, self.runs, self.threads = [], [], []

    def compile(self, network, inputs, until):
        self.threads.append(threading.get_ident())
        self.network = network
        self.compiled.append(SimpleNamespace(network=network, size=inputs, until=until))

    def run(self, inputs, weights, seed):
        self.threads.append(threading.get_ident())
        self.runs.append(SimpleNamespace(inputs=inputs, weights=weights, seed=seed))
        return self.answer(self, inputs, weights)

    def disconnect(self):
        self.threads.append(threading.get_ident())


def listed(trains):
    """Times ``[batch, neurons, n]`` in reverse, as a device may return them."""
    time = np.asarray(trains)[:, ::-1, ::-1].reshape(len(trains), -1)
    neurons, n = trains.shape[1:]
    index = np.repeat(np.arange(neurons)[::-1], n)
    return Observed(time, np.where(np.isfinite(time), index, -1))


def of(population, n):
    """Parameters of one neuron."""
    return SimpleNamespace(**{k: v[n] for k, v in population.neuron.items()})


def exact(device, inputs, weights):
    """The exact solution, in NumPy, by bisection: forward, each layer to the next."""
    time, index, found = inputs.time, inputs.index, []
    for population, (kernel, *_) in zip(device.network, weights, strict=True):
        delay = np.broadcast_to(population.projections[0].delay, kernel.shape)
        shape = (len(time), population.size, population.max_spikes)
        trains = np.full(shape, np.inf)
        for b, n in np.ndindex(shape[:2]):
            real = index[b] >= 0
            at = time[b][real] + delay[index[b][real], n]
            given = of(population, n), kernel[:, n], at, index[b][real]
            train = oracles.spike_train(*given, UNTIL, shape[2])
            trains[b, n, : len(train)] = train
        found.append(listed(trains))
        time, index = found[-1].time, found[-1].index
    return found


def exact_recurrent(device, inputs, weights):
    """The same of one recurrent layer, whose inputs spike once each."""
    (population,), ((kernel, lateral),) = device.network, weights
    delay = population.projections[1].delay
    trains = []
    for time, index in zip(inputs.time, inputs.index, strict=True):
        given = of(population, 0), kernel, time[np.argsort(index)], lateral, delay
        trains.append(
            oracles.recurrent_trains(*given, UNTIL, max_spikes=population.max_spikes)
        )
    return [listed(np.array(trains))]


def silent(device, inputs, weights):
    nothing = np.full((len(inputs.time), 0), np.inf)
    return [Observed(nothing, nothing.astype(int)) for _ in device.network]


def network(backend=None, **attributes):
    layers = [LIF(12, name="hidden", **attributes), LIF(3, name="output", **attributes)]
    return Network(layers, backend=backend)


@pytest.fixture(scope="module")
def problem():
    x = jax.random.uniform(jax.random.key(1), (4, 4))
    inputs = encode_latency(x, t_late=10e-3, bias=0.0)
    variables = jax.jit(network().init)(jax.random.key(0), inputs)
    kernel = variables["params"]["output"]["kernel"]
    variables["params"]["output"]["kernel"] = 4 * kernel
    return variables, inputs


@pytest.fixture
def one():
    """A layer of three neurons, its weights and one sample of two inputs."""
    inputs = Spikes.from_times(jnp.array([[[1e-3], [2e-3]]]))
    kernel = jnp.array([[3.0, 1.0, -2.0], [2.0, 4.0, 0.5]])
    return {"params": {"kernel": kernel}}, inputs


def finite_sum(times):
    return jnp.sum(jnp.where(jnp.isfinite(times), times, 0) ** 2)


def loss(model, variables, inputs, n=1):
    return finite_sum(model.apply(variables, inputs, UNTIL).times(n))


def ready(model, variables, inputs, until=UNTIL, **options):
    """What a model returns, compiled at once and waited for."""
    run = jax.jit(lambda v: model.apply(v, inputs, until, **options))
    return jax.block_until_ready(run(variables))


def gradient_of(model, variables, inputs, backend=None, n=1):
    model = model.clone(backend=backend)
    return jax.jit(jax.grad(lambda v: loss(model, v, inputs, n)))(variables)


def assert_trees_close(found, expected, tolerance=2e-4):
    scale = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    assert scale > 0
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale)


# Gradients are those of the software where a device is exact.


@pytest.mark.parametrize("gradient", [eventprop, analytic])
def test_gradients_do_not_ask_who_ran_the_neurons(problem, gradient):
    variables, inputs = problem
    model = network(gradient=gradient)

    @jax.jit
    def run(variables):
        _, state = model.apply(variables, inputs, UNTIL, mutable=["intermediates"])
        spikes = [state["intermediates"][n]["spikes"][0] for n in ("hidden", "output")]
        expected = jax.grad(lambda v: loss(model, v, inputs))(variables)
        return expected, tuple(s.times(1) for s in spikes)

    expected, spikes = run(variables)
    device = Device(exact)
    for backend in (Replay(spikes), device):
        assert_trees_close(gradient_of(model, variables, inputs, backend), expected)
    # The whole network, the whole batch, in one run.
    assert [run.inputs.time.shape for run in device.runs] == [inputs.time.shape]
    assert [c.size for c in device.compiled] == [inputs.size]


def layers_on_devices():
    rng = np.random.default_rng(0)
    delay = rng.uniform(0, 3e-3, (4, 5))
    kernel = rng.normal(3.0, 2.0, (4, 5))
    lateral = rng.normal(0.0, 2.0, (5, 5))
    later = rng.uniform(0.5e-3, 2e-3, (5, 1))
    return {
        "delays of synapses": (LIF(5, delay=delay), {"kernel": kernel}, exact),
        "recurrence": (
            LIF(5, recurrent=True, recurrent_delay=later, max_spikes=2),
            {"kernel": kernel, "recurrent_kernel": lateral},
            exact_recurrent,
        ),
    }


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", layers_on_devices())
def test_delays_and_recurrence_are_observed_and_differentiated(case):
    layer, params, answer = layers_on_devices()[case]
    layer = layer.clone(param_dtype=jnp.float64)
    params = {"params": jax.tree.map(jnp.array, params)}
    times = jnp.array(np.random.default_rng(1).uniform(0, 10e-3, (3, 4, 1)))

    def gradient(layer):
        def run(params, times):
            return loss(layer, params, Spikes.from_times(times), layer.max_spikes)

        return jax.jit(jax.value_and_grad(run, argnums=(0, 1)))(params, times)

    expected = gradient(layer)
    found = gradient(layer.clone(backend=Device(answer)))
    assert_trees_close(found, expected, 1e-9)


def test_what_stands_between_and_behind_layers_runs_with_a_device(problem):
    variables, inputs = problem
    layers = [LIF(12, name="hidden"), Delay(2e-3, name="wait"), LIF(3, name="output")]
    device = Device(exact)
    expected = gradient_of(Network(layers), variables, inputs)
    found = gradient_of(Network(layers), variables, inputs, device)
    assert_trees_close(found, expected)
    # The device ran two layers, the second behind the delay.
    waits = [p.projections[0].delay for p in device.network]
    np.testing.assert_allclose(waits[1], 2e-3, rtol=1e-6)
    assert np.all(waits[0] == 0)
    assert [p.projections[0].source for p in device.network] == [0, 1]

    # An integrator behind it is computed from the spikes that were observed.
    layers[1:] = [LI(3, name="output")]

    def voltage(backend):
        model = Network(layers, backend=backend)
        trace = lambda v: model.apply(v, inputs, UNTIL)  # noqa: E731
        run = jax.jit(jax.grad(lambda v: jnp.sum(trace(v).voltage(20e-3) ** 2)))
        return run(variables)

    assert_trees_close(voltage(device), voltage(None))
    assert len(device.network) == 1


def test_a_graph_replays():
    populations = {
        "excitatory": GraphPopulation(4, max_spikes=2),
        "inhibitory": GraphPopulation(2, max_spikes=2),
        "output": GraphPopulation(3),
    }
    connections = [
        Connection("input", "excitatory"),
        Connection("excitatory", "inhibitory", delay=1e-3),
        Connection("inhibitory", "excitatory", delay=1e-3),
        Connection("excitatory", "output", delay=Bounded(0.0, 2e-3)),
        Connection("input", "output"),
    ]
    seen = []

    class Looks(Replay):
        def check(self, populations, until):
            seen.extend(populations)

    graph = Graph(populations, connections, list(populations), backend=Looks(()))
    inputs = Spikes.from_times(jax.random.uniform(jax.random.key(0), (3, 6, 1)) * 1e-2)
    shapes = jax.eval_shape(graph.init, jax.random.key(1), inputs, UNTIL)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: jnp.array(rng.normal(4, 2, x.shape)), shapes)
    # Who acts on whom, as a device is told.
    assert [p.name for p in seen] == list(populations)
    found = [[(p.source, p.kernel.shape) for p in q.projections] for q in seen]
    excitatory, inhibitory = [(0, (6, 4)), (2, (2, 4))], [(1, (4, 2))]
    assert found == [excitatory, inhibitory, [(1, (4, 3)), (0, (6, 3))]]
    assert seen[2].projections[0].delay.shape == (4, 1)

    def gradient(backend):
        model = graph.clone(backend=backend)

        def run(variables):
            spikes = model.apply(variables, inputs, UNTIL)
            trains = [
                spikes[name].times(p.max_spikes) for name, p in populations.items()
            ]
            return finite_sum(trains[-1]), tuple(trains)

        return jax.jit(jax.grad(run, has_aux=True))(variables)

    expected, trains = gradient(None)
    found, _ = gradient(Replay(trains))
    assert_trees_close(found, expected, 1e-5)
    # The last population acts on no other: later, it differs from the model by that.
    shifted = [*trains[:-1], trains[-1] + 0.5e-3]
    model = graph.clone(backend=Replay(tuple(shifted)))
    _, state = jax.jit(lambda v: model.apply(v, inputs, UNTIL, mutable=["mismatch"]))(
        variables
    )
    for name, train, shift in zip(populations, trains, (0, 0, 0.5e-3), strict=True):
        first = train[..., 0]
        late = jnp.where(jnp.isfinite(first), shift, jnp.nan)
        np.testing.assert_allclose(state["mismatch"][name]["time"], late, atol=1e-8)
        assert jnp.isfinite(late).any()


# When a device is called.


def test_init_never_runs_a_device_and_parameters_are_the_same(problem):
    _, inputs = problem
    device = Device(silent)
    on_device, in_software = (
        jax.jit(network(backend).init)(jax.random.key(0), inputs)
        for backend in (device, None)
    )
    assert device.compiled == device.runs == []
    jax.tree.map(np.testing.assert_array_equal, on_device, in_software)


def test_init_says_what_a_device_cannot_do(problem):
    _, inputs = problem
    device = Device(silent)
    device.limits = Limits(name="bench", circuits=14)
    with pytest.raises(ValueError, match="needs 15 neuron circuits"):
        network(device).init(jax.random.key(0), inputs)
    assert device.runs == []


def test_each_run_gets_its_own_seed_from_the_caller(one):
    variables, inputs = one
    device = Device(silent)
    layer = LIF(3, backend=device)
    run = jax.jit(lambda key: layer.apply(variables, inputs, rngs={"hardware": key}))
    for n in (0, 1, 0):
        jax.block_until_ready(run(jax.random.key(n)))
    seeds = [run.seed for run in device.runs]
    assert seeds[0] == seeds[2] != seeds[1]
    # Or that of the device, where the caller has none.
    devices = [Device(silent, seed=n) for n in (1, 1, 2)]
    for device in devices:
        ready(LIF(3, backend=device), variables, inputs)
    seeds = [device.runs[0].seed for device in devices]
    assert seeds[0] == seeds[1] != seeds[2]


def test_a_run_is_an_effect(one):
    # Neither merged with an equal one nor left out for want of a reader.
    variables, inputs = one
    device = Device(silent)
    layer = LIF(3, backend=device)

    @jax.jit
    def run(variables):
        layer.apply(variables, inputs)
        return layer.apply(variables, inputs).time + layer.apply(variables, inputs).time

    jax.block_until_ready(run(variables))
    assert len(device.runs) == 3
    assert len(device.compiled) == 1  # The network was the same.


def test_vmap_is_one_run_for_each_element(one):
    variables, _ = one
    device = Device(exact)
    layer = LIF(3, backend=device)
    times = jnp.array([[[[1e-3], [2e-3]]], [[[3e-3], [1e-3]]]])
    gain = jnp.array([1.0, 2.0])
    members = {
        "params": {"kernel": gain[:, None, None] * variables["params"]["kernel"]}
    }

    def first(layer, variables, times):
        return layer.apply(variables, Spikes.from_times(times), UNTIL).first()

    # An ensemble, each member on inputs of its own.
    found, expected = (
        jax.jit(jax.vmap(functools.partial(first, model)))(members, times)
        for model in (layer, LIF(3))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert np.isfinite(expected).any()
    assert [run.inputs.time.shape for run in device.runs] == [(1, 2)] * 2


def test_training_steps_in_a_scan(one):
    variables, inputs = one
    device = Device(exact)

    def train(layer, variables):
        def step(variables, _):
            value, grads = jax.value_and_grad(lambda v: loss(layer, v, inputs))(
                variables
            )
            return jax.tree.map(lambda v, g: v - 1e4 * g, variables, grads), value

        return jax.lax.scan(step, variables, length=3)[1]

    found, expected = (
        jax.jit(functools.partial(train, layer))(variables)
        for layer in (LIF(3, backend=device), LIF(3))
    )
    assert np.ptp(expected) > 1e-3 * np.max(expected)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    kernels = [run.weights[0][0] for run in device.runs]
    assert len(kernels) == 3
    assert not np.array_equal(kernels[0], kernels[1])


def test_a_device_has_one_thread_and_lets_go(one):
    variables, inputs = one
    device = Device(silent)
    layer = LIF(3, backend=device)
    run = jax.jit(lambda v: layer.apply(v, inputs).time)
    for _ in range(2):
        jax.block_until_ready(run(variables))
    device.close()
    device.close()  # Twice is no harm.
    assert len(device.threads) == 4  # compile, run, run, disconnect
    assert len({*device.threads, threading.get_ident()}) == 2
    jax.block_until_ready(run(variables))
    assert len(device.compiled) == 2


def test_a_device_that_nobody_needs_takes_its_thread_along(one):
    variables, inputs = one

    def threads():
        return [t for t in threading.enumerate() if t.name == "lonely"]

    device = Device(silent)
    device.limits = Limits(name="lonely")
    ready(LIF(3, backend=device), variables, inputs)
    (thread,) = threads()
    del device
    jax.clear_caches()
    gc.collect()
    thread.join(timeout=20)
    assert not threads()


def test_networks_on_one_device_do_not_mix():
    # Two threads, two networks: what runs is what was prepared last.
    def slowly(device, inputs, weights):
        network = device.network
        clock.sleep(0.01)
        assert device.network is network
        assert [w.shape[1] for (w,) in weights] == [p.size for p in network]
        return silent(device, inputs, weights)

    device = Device(slowly)
    inputs = Spikes.from_times(jnp.array([[[1e-3]]]))
    failed = []

    def work(size):
        layer = LIF(size, backend=device)
        variables = {"params": {"kernel": jnp.ones((1, size))}}
        run = jax.jit(lambda v: layer.apply(v, inputs).time)
        try:
            for _ in range(5):
                jax.block_until_ready(run(variables))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in (2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(device.runs) == 10


# What goes over the seam.


def test_a_device_gets_its_own_seconds_and_no_inputs_after_the_end(one):
    variables, _ = one
    times = jnp.array([[[1e-3], [30e-3]], [[jnp.inf], [2e-3]]])
    device = Device(silent, time_scale=1e-3)
    neuron = {"tau_mem": 20e-3, "tau_syn": jnp.array([5e-3, 6e-3, 7e-3])}
    layer = LIF(3, t_ref=1e-3, max_spikes=2, delay=4e-3, **neuron, backend=device)
    ready(layer, variables, Spikes.from_times(times), 30e-3)
    (compiled,), (run,) = device.compiled, device.runs
    np.testing.assert_allclose(compiled.until, 30e-6, rtol=1e-6)
    np.testing.assert_allclose(run.inputs.time, [[1e-6, np.inf], [2e-6, np.inf]])
    np.testing.assert_array_equal(run.inputs.index, [[0, -1], [1, -1]])
    (population,) = compiled.network
    expected = {
        "tau_mem": [20e-6] * 3,
        "tau_syn": [5e-6, 6e-6, 7e-6],
        "v_th": [1] * 3,
        "v_leak": [0] * 3,
        "v_reset": [0] * 3,
        "t_ref": [1e-6] * 3,
    }
    assert population.neuron.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(population.neuron[name], values, rtol=1e-6)
    np.testing.assert_allclose(population.projections[0].delay, 4e-6, rtol=1e-6)
    assert (population.name, population.size, population.max_spikes) == ("LIF", 3, 2)


@pytest.mark.usefixtures("x64")
def test_float64_passes_the_seam_whole():
    # Callbacks have threads of their own, in which JAX may be set to 32 bits.
    seen, third = np.float64(1e-3) / 3, np.float64(1e-2) / 3
    device = Device(returns([[third]]))
    taus = jnp.array([third, 1e-2, 2e-2])
    layer = LIF(3, tau_mem=taus, backend=device, param_dtype=jnp.float64)
    variables = {"params": {"kernel": jnp.full((1, 3), seen)}}
    inputs = Spikes.from_times(jnp.array([[[seen]]]))
    run = jax.jit(lambda v: layer.apply(v, inputs, UNTIL).time).lower(variables)
    run = run.compile()
    with jax.enable_x64(False):  # As if it ran in another thread.
        times = jax.block_until_ready(run(variables))
    assert times[0, 0] == third
    (run,), (population,) = device.runs, device.network
    assert run.inputs.time[0, 0] == seen
    assert run.weights[0][0][0, 0] == seen
    assert population.neuron["tau_mem"][0] == third


def test_spikes_come_back_in_order_and_what_was_not_read_is_counted(one):
    variables, _ = one
    inputs = Spikes.from_times(jnp.full((2, 2, 1), 1e-3))

    def answer(device, inputs, weights):
        time = np.array([[5, 9, 3, 1, 7], [4, np.inf, 2, np.inf, 6]]) * 1e-6
        index = np.array([[0, 0, 0, 2, 0], [1, -1, 0, -1, 1]])
        return [Observed(time, index, lost=device.lost)]

    device = Device(answer, time_scale=1e-3)
    layer = LIF(3, max_spikes=2, backend=device)
    for device.lost, lost in ((3, 3), (np.array([1, 4]), 5)):
        out, state = ready(layer, variables, inputs, 10e-3, mutable=["events"])
        inf = np.inf
        expected = [[[3, 5], [inf, inf], [1, inf]], [[2, inf], [4, 6], [inf, inf]]]
        np.testing.assert_allclose(1e3 * out.times(2), expected, rtol=1e-6)
        counters = state["events"]
        np.testing.assert_array_equal(counters["extra"], [2, 0])
        assert counters["lost"].sum() == lost
        assert counters["retried"].sum() == 0
        assert (counters["run_seconds"] > 0).all()
    np.testing.assert_array_equal(counters["lost"], [1, 4])


def test_where_weights_are_integers_the_gradient_is_that_of_what_was_there(one):
    _, inputs = one
    kernel = jnp.array([[3.04, 1.0, -2.0], [2.0, 4.02, 0.5]])

    def real(device, inputs, weights):
        return exact(device, inputs, [[w / 10 for w in row] for row in weights])

    device = Device(real, scale=10.0)
    device.limits = Limits(name="bench", w_max=35)

    def gradient(kernel, layer):
        def run(kernel):
            variables = {"params": {"kernel": kernel}}
            out, state = layer.apply(variables, inputs, UNTIL, mutable=["events"])
            return finite_sum(out.first()), state["events"]

        return jax.jit(jax.value_and_grad(run, has_aux=True))(kernel)

    (value, counters), found = gradient(kernel, LIF(3, backend=device))
    integers = np.array([[30, 10, -20], [20, 35, 5]])
    (sent,) = device.runs[0].weights[0]
    assert sent.dtype.kind == "i"
    np.testing.assert_array_equal(sent, integers)
    np.testing.assert_allclose(counters["saturated"], [1 / 6], rtol=1e-6)
    (expected, _), there = gradient(jnp.array(integers / 10, jnp.float32), LIF(3))
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    assert_trees_close(found, there)

    # By default the largest weight is the largest integer.
    device = Device(silent)
    device.limits = Limits(name="bench", w_max=35)
    (_, counters), _ = gradient(kernel, LIF(3, backend=device))
    np.testing.assert_array_equal(
        device.runs[0].weights[0][0], np.round(kernel * (35 / 4.02))
    )
    assert counters["saturated"] == 0


def test_saturation_is_a_fraction_of_all_weights():
    device = Device(silent, scale=1.0)
    device.limits = Limits(name="bench", w_max=3, recurrent=True)
    layer = LIF(2, recurrent=True, backend=device)
    # One of 2 weights of the inputs, none of 4 recurrent ones.
    params = {"kernel": jnp.array([[9.0, 1.0]]), "recurrent_kernel": jnp.ones((2, 2))}
    inputs = Spikes.from_times(jnp.array([[[1e-3]]]))
    _, state = ready(layer, {"params": params}, inputs, mutable=["events"])
    np.testing.assert_allclose(state["events"]["saturated"], [1 / 6], rtol=1e-6)


# What goes wrong.


def refuse(device, one, until=UNTIL):
    """Runs a layer of three neurons; the error that it ends with."""
    variables, inputs = one
    layer = LIF(3, name="hidden", backend=device)
    with pytest.raises(DeviceError) as caught, typed_errors():
        ready(layer, variables, inputs, until)
    return caught.value


def returns(time, index=None, lost=0):
    time = np.array(time, float)
    index = np.zeros(time.shape, int) if index is None else np.array(index)
    return lambda device, inputs, weights: [Observed(time, index, lost)]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda *_: [], "returned 0 layers, the network has 1"),
        (lambda *_: None, "'NoneType' has no len"),
        (returns([[1e-3]] * 2), r"times of shape \(2, 1\) .* expected \[1, slots\]"),
        (returns([[1e-3]], [[0, 1]]), r"indices of shape \(1, 2\), expected"),
        (returns([[np.nan]]), "a spike at nan s, outside of the window"),
        (returns([[-1.0]]), "a spike at -1 s, outside of the window from 0 to 0.06"),
        (returns([[1.0]]), "a spike at 1 s, outside of the window"),
        (returns([[np.inf]]), "a spike at inf s, outside of the window"),
        (returns([[1e-3]], [[-1]]), "a spike at 0.001 s of no neuron"),
        (returns([[1e-3]], [[3]]), "returned neuron 3, the layer has 3"),
        (returns([[1e-3]], lost=np.zeros(2)), r"returned \(2,\) numbers of lost"),
    ],
)
def test_what_a_device_returns_is_checked(one, answer, message):
    error = refuse(Device(answer), one)
    assert re.search(message, str(error))
    assert (error.device, error.run) == ("bench", 0)
    about_a_layer = "layers" not in message and "NoneType" not in message
    assert error.layer == ("hidden" if about_a_layer else None)
    assert str(error).startswith("bench, run 0")


def test_a_spike_at_no_time_is_refused_also_where_a_run_has_no_end(one):
    error = refuse(Device(returns([[np.inf]])), one, until=np.inf)
    assert "a spike at inf s, outside of the window" in str(error)


def test_after_an_error_the_next_run_prepares_the_device_again(one):
    variables, inputs = one

    def at_times(device, inputs, weights):
        if len(device.runs) == 2:
            raise KeyError("a cable")
        return exact(device, inputs, weights)

    device = Device(at_times)
    layer = LIF(3, backend=device)
    run = jax.jit(lambda v: layer.apply(v, inputs, UNTIL).first())
    expected = run(variables)
    with pytest.raises(DeviceError) as caught, typed_errors():
        jax.block_until_ready(run(variables))
    assert str(caught.value) == "bench, run 1: KeyError: 'a cable'"
    assert isinstance(caught.value.__cause__, KeyError)
    assert len(device.compiled) == 1
    np.testing.assert_array_equal(run(variables), expected)
    assert len(device.compiled) == 2
    # Other errors stay what they are, also after one of a device.
    with pytest.raises(ZeroDivisionError), typed_errors():
        1 / 0  # noqa: B018


def test_an_input_before_the_run_is_refused(one):
    variables, _ = one
    inputs = Spikes.from_times(jnp.array([[[-1e-3], [2e-3]]]))
    error = refuse(Device(exact), (variables, inputs))
    assert "an input at -0.001" in str(error)


def faulty(failures):
    def answer(device, inputs, weights):
        if len(device.runs) <= failures:
            raise LinkError("checksum")
        return exact(device, inputs, weights)

    return answer


def test_a_fault_of_the_link_is_tried_again_and_counted(one):
    variables, inputs = one
    device = Device(faulty(2), retries=2)
    layer = LIF(3, backend=device)
    out, state = ready(layer, variables, inputs, mutable=["events"])
    assert state["events"]["retried"].sum() == 2
    assert len(device.runs) == 3
    assert len({run.seed for run in device.runs}) == 1
    expected = ready(LIF(3), variables, inputs)
    np.testing.assert_allclose(out.first(), expected.first(), rtol=1e-4)
    error = refuse(Device(faulty(2), retries=1), one)
    assert "LinkError: checksum (tried 2 times)" in str(error)


def waits_at_first(event):
    """A device whose first run waits for that event."""

    def answer(device, inputs, weights):
        if len(device.runs) == 1:
            event.wait()
        return exact(device, inputs, weights)

    return answer


def test_a_device_that_does_not_answer_is_given_up_on(one):
    variables, inputs = one
    forever = threading.Event()
    device = Device(waits_at_first(forever), timeout=0.2)
    error = refuse(device, one)
    assert isinstance(error, DeviceTimeout)
    assert "no answer within 0.2 s" in str(error)
    device.timeout = 60.0
    out = ready(LIF(3, backend=device), variables, inputs)
    assert np.isfinite(out.time).any()
    assert len({*device.threads}) == 2  # Another thread: the first never came back.
    forever.set()


def test_one_thread_of_a_library_is_waited_for(one):
    variables, inputs = one
    go_on = threading.Event()

    class Library(Device):
        one_thread = True

    device = Library(waits_at_first(go_on), timeout=0.2, compile_timeout=0.2)
    other = Library(exact)
    assert isinstance(refuse(device, one), DeviceTimeout)
    assert isinstance(refuse(device, one), DeviceTimeout)
    go_on.set()
    for backend in (device, other):
        backend.timeout = backend.compile_timeout = 60.0
        out = ready(LIF(3, backend=backend), variables, inputs)
        assert np.isfinite(out.time).any()
    assert len({*device.threads, *other.threads}) == 1
    assert len(device.compiled) == 2  # What nobody waits for any more is not begun.
    device.close()  # Leaves the thread to the others.
    ready(LIF(3, backend=other), variables, inputs)
    assert len(other.runs) == 2


HANGS = """
import threading
import jax, jax.numpy as jnp, numpy as np
from jaxsnn import Spikes
from jaxsnn.hardware import DeviceTimeout, HostBackend, Limits, Observed, typed_errors
from jaxsnn.layers import LIF

class Device(HostBackend):
    limits = Limits(name="bench")
    hangs = False

    def compile(self, network, inputs, until):
        pass

    def run(self, inputs, weights, seed):
        if self.hangs:
            threading.Event().wait()
        assert weights[0][0].sum() == 300 * 300
        nothing = np.full((len(inputs.time), 0), np.inf)
        return [Observed(nothing, nothing.astype(int))]

device = Device(timeout=100.0)
layer = LIF(300, backend=device)
run = jax.jit(lambda v, x: layer.apply(v, Spikes.from_times(x)).time)
given = {"params": {"kernel": jnp.ones((300, 300))}}, jnp.full((300, 300, 1), 1e-3)
jax.block_until_ready(run(*given))
print("large arrays passed")
device.hangs, device.timeout = True, 0.2
try:
    with typed_errors():
        jax.block_until_ready(run(*given))
except DeviceTimeout:
    print("timed out")
"""


def test_neither_large_arrays_nor_a_hung_device_hang_the_process():
    # JAX in a callback hangs with arrays of this size, though not with small ones.
    done = subprocess.run(
        [sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=100
    )
    assert done.stdout.split("\n")[:2] == ["large arrays passed", "timed out"]
    assert done.returncode == 0


def test_nest_is_optional(one, monkeypatch):
    monkeypatch.setitem(sys.modules, "nest", None)
    error = refuse(Nest(), one)
    assert "pip install 'nest-simulator" in str(error)


@pytest.mark.parametrize(
    "attributes",
    [{"time_scale": 0.0}, {"scale": -1.0}, {"timeout": 0}, {"retries": -1}],
)
def test_bad_attributes_are_refused(attributes):
    (name,) = attributes
    with pytest.raises(ValueError, match=f"Device.{name} is"):
        Device(silent, **attributes)


def test_replay_refuses_other_shapes(problem):
    variables, inputs = problem
    with pytest.raises(ValueError, match="holds 1 layers, the network has 2"):
        network(Replay((jnp.zeros((4, 12, 1)),))).apply(variables, inputs)
    wrong = Replay((jnp.zeros((4, 12, 1)), jnp.zeros((5, 3, 1))))
    with pytest.raises(ValueError, match=r"layer\s+'output', expected \(4, 3, 1\)"):
        network(wrong).apply(variables, inputs)


# What the model can explain, and by how much a device differs from it.


def test_unexplained_spikes_are_counted_and_masked():
    # An inhibitory neuron cannot fire; a device that says so is not believed.
    inputs = Spikes.from_times(jnp.array([[[1e-3]]]))
    kernel = jnp.array([[-5.0, 8.0]])
    times = jnp.array([[[3e-3], [2e-3]]])
    layer = LIF(2, backend=Replay((times,)))

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradient(kernel):
        out, state = layer.apply(
            {"params": {"kernel": kernel}}, inputs, mutable=["events"]
        )
        return jnp.sum(out.first()), state["events"]["unexplained"]

    grad, unexplained = gradient(kernel)
    np.testing.assert_array_equal(unexplained, [1])
    assert grad[0, 0] == 0
    assert grad[0, 1] < 0


def test_spikes_are_explained_by_recurrence_and_not_while_refractory():
    # Neuron 1 hears neuron 0 alone, 2 ms after it; neuron 0 is refractory for 5 ms.
    params = {
        "kernel": jnp.array([[9.0, 0.0]]),
        "recurrent_kernel": jnp.array([[0.0, 9.0], [0.0, 0.0]]),
    }
    inputs = Spikes.from_times(jnp.array([[[1e-3]]]))
    inf = jnp.inf

    def ms(times):
        return 1e-3 * jnp.array([times])

    def run(params, times):
        layer = LIF(
            2,
            max_spikes=2,
            t_ref=5e-3,
            recurrent=True,
            recurrent_delay=2e-3,
            backend=Replay((times,)),
        )
        out, state = layer.apply({"params": params}, inputs, mutable=["events"])
        return finite_sum(out.times(2)), state["events"]["unexplained"][0]

    gradient = jax.jit(jax.grad(run, has_aux=True))
    grads, unexplained = gradient(params, ms([[2.0, 7.5], [5.0, inf]]))
    assert unexplained == 0
    assert grads["recurrent_kernel"][0, 1] < 0
    # Before anything arrived; before the refractory period was over.
    grads, unexplained = gradient(params, ms([[2.0, inf], [3.5, inf]]))
    assert unexplained == 1
    assert grads["recurrent_kernel"][0, 1] == 0
    _, unexplained = gradient(params, ms([[2.0, 6.5], [5.0, inf]]))
    assert unexplained == 1


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("recurrent", [False, True])
def test_the_mismatch_of_an_exact_device_is_zero_and_a_shift_is_found(recurrent):
    rng = np.random.default_rng(3)
    times = jnp.array(rng.uniform(0, 10e-3, (2, 4, 1)))
    loop = {"recurrent": True, "recurrent_delay": 1e-3} if recurrent else {}
    layer = LIF(3, **loop, param_dtype=jnp.float64)
    params = {"kernel": jnp.array(rng.normal(3.0, 1.0, (4, 3)))}
    if recurrent:
        params["recurrent_kernel"] = jnp.array(rng.normal(0.0, 1.0, (3, 3)))
    observed = ready(layer, {"params": params}, Spikes.from_times(times)).times(1)
    assert np.isfinite(observed).all()

    @jax.jit
    def run(times, shift):
        device = layer.clone(backend=Replay((observed + shift,)))
        out, state = device.apply(
            {"params": params}, Spikes.from_times(times), mutable=["mismatch"]
        )
        return out.times(1)[..., 0], state["mismatch"]

    _, found = run(times, 0.0)
    np.testing.assert_allclose(found["time"], 0, atol=1e-15)
    np.testing.assert_allclose(found["identity"], 0, atol=1e-9)
    shift = 1e-3 * jnp.array([[[0.2], [-0.1], [0.3]], [[0.0], [0.1], [-0.2]]])
    _, found = run(times, shift)
    np.testing.assert_allclose(found["time"], shift[..., 0], atol=1e-15)
    assert found["identity"].shape == (2, 3)
    # All inputs later by d make the spike later by (1 + identity) d.
    if not recurrent:
        jacobian = jax.jacrev(lambda t: run(t, shift)[0])(times)
        sums = np.einsum("bnbjs->bn", jacobian)
        np.testing.assert_allclose(found["identity"], sums - 1, rtol=1e-9, atol=1e-14)
        # And by algebra: V and its slope from the responses to the inputs.
        dt = np.asarray(observed + shift)[:, None, :, 0] - np.asarray(times)
        after = np.maximum(dt, 0)
        weights = np.where(dt > 0, params["kernel"], 0)
        v = np.sum(weights * oracles.psp(10e-3, 5e-3, after), axis=1)
        i = np.sum(weights * np.exp(-after / 5e-3), axis=1)
        np.testing.assert_allclose(found["identity"], (1 - v) / (i - 1), atol=1e-13)


def test_what_one_of_both_did_not_see_has_no_mismatch(one):
    variables, inputs = one
    # Neuron 0 fires in the model alone, neuron 2, inhibited, on the device alone.
    times = jnp.array([[[jnp.inf], [8e-3], [5e-3]]])
    layer = LIF(3, backend=Replay((times,)))
    _, state = ready(layer, variables, inputs, mutable=["mismatch"])
    assert np.isnan(state["mismatch"]["time"][0, [0, 2]]).all()
    assert np.isnan(state["mismatch"]["identity"][0, [0, 2]]).all()
    assert np.isfinite(ready(LIF(3), variables, inputs).first()[0, 0])


# What does not fit on a device.


def population(name="hidden", inputs=4, size=3, **projection):
    neuron = Neuron(**projection.pop("neuron", {}))
    projection = Projection(
        projection.pop("source", 0), jnp.zeros((inputs, size)), **projection
    )
    return Population(name, size, neuron, 1, (projection,))


CHIP = {"time_scale": 1e-3}  # From ms to us.


@pytest.mark.parametrize(
    ("populations", "message"),
    [
        (
            [population("a", 200, 100), population("b", 100, 400, source=1)],
            r"needs 600 neuron circuits \('a': 100 x 2, 'b': 400 x 1\), the device has"
            r" 512\. Reduce layer 'b'",
        ),
        (
            [population(neuron={"tau_mem": 20.0})],
            r"'hidden' has tau_mem = 20 s, which is 20 ms on the device"
            r" \(time_scale=0.001\), possible is 100 ns to 2 ms\. Times are in seconds",
        ),
        (
            [population(neuron={"tau_syn": 10e-6})],
            "'hidden' has tau_syn = 10 us, which is 10 ns on the device",
        ),
        (
            [population(neuron={"t_ref": 40e-3})],
            "'hidden' has t_ref = 40 ms, .* possible is 0 s to 32 us",
        ),
        (
            [population(delay=jnp.array([[0.0], [1e-3], [2e-3], [0.0]]))],
            "'hidden' has delays of up to 2 us on the device, which cannot delay",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_what_to_do(populations, message):
    BRAINSCALES2.check([population()], UNTIL, **CHIP)
    with pytest.raises(ValueError, match="BrainScaleS-2: .*" + message):
        BRAINSCALES2.check(populations, UNTIL, **CHIP)


@pytest.mark.parametrize(
    ("limits", "populations", "message"),
    [
        (
            {"fan_in": 3},
            [population()],
            "'hidden' has 4 signed inputs per neuron, one circuit has 3. Use fewer",
        ),
        (
            {},
            [population(source=1, inputs=3)],
            "'hidden' has recurrent connections, which this device does not have",
        ),
        (
            {"latency": 1e-6},
            [population(delay=2e-6)],
            r"cannot delay spikes\. Leave the delays out, or write 1 us",
        ),
        (
            {},
            [population()._replace(max_spikes=0)],
            "'hidden' has no threshold, and this device reports spikes only",
        ),
        (
            {"longest": 0.05},
            [population()],
            "until is 0.06 s, which is 60 ms on the device; a run there takes more than"
            " 0 and at most 50 ms",
        ),
    ],
)
def test_each_limit_has_its_message(limits, populations, message):
    with pytest.raises(ValueError, match=message):
        Limits(name="bench", **limits).check(populations, UNTIL)


def test_what_is_possible_but_poor_is_warned_of_and_tracers_are_not_looked_at():
    poor = [population(neuron={"tau_mem": 70e-3})]
    with pytest.warns(UserWarning, match="tau_mem = 70 us on the device, outside of"):
        BRAINSCALES2.check(poor, UNTIL, **CHIP)

    @jax.jit
    def learned(tau):
        BRAINSCALES2.check([population(neuron={"tau_mem": tau})], UNTIL, **CHIP)
        return tau

    assert learned(20.0) == 20.0
    exact = Limits(name="bench", latency=1e-6)
    exact.check([population(delay=1e-6)], UNTIL)
