"""The seam: gradients do not ask who ran the neurons; devices report what they did."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsnn import Spikes
from jaxsnn.analytic import analytic
from jaxsnn.coding import encode_latency
from jaxsnn.dynamics import Neuron
from jaxsnn.eventprop import eventprop
from jaxsnn.hardware import HostBackend, Replay, SimulatedChip
from jaxsnn.layers import LIF, Network
from jaxsnn.simulate import simulate


def network(backend=None, **attributes):
    layers = [LIF(20, name="hidden", **attributes), LIF(3, name="output", **attributes)]
    return Network(layers, backend=backend)


@pytest.fixture
def problem():
    x = jax.random.uniform(jax.random.key(1), (8, 4))
    inputs = encode_latency(x, t_late=10e-3, bias=0.0)
    variables = network().init(jax.random.key(0), inputs)
    kernel = variables["params"]["output"]["kernel"]
    variables["params"]["output"]["kernel"] = 4 * kernel
    return variables, inputs


def loss(model, variables, inputs):
    times = model.apply(variables, inputs).first()
    return jnp.sum(jnp.where(jnp.isfinite(times), times, 0) ** 2)


class Simulator:
    """A device on the host: the exact solution, in NumPy, by bisection."""

    def __init__(self):
        self.calls = []

    def run(self, neurons, kernels, max_spikes, time, index, until, seed):
        from oracles import spike_train

        self.calls.append((time.shape, seed))
        results = []
        for neuron, kernel, limit in zip(neurons, kernels, max_spikes, strict=True):
            out = np.full((len(time), kernel.shape[1], limit), np.inf, np.float32)
            for b in range(len(time)):
                real = index[b] >= 0
                for n in range(kernel.shape[1]):
                    train = spike_train(
                        neuron, kernel[:, n], time[b][real], index[b][real], 0.1, limit
                    )
                    out[b, n, : len(train)] = train
            results.append(out)
            order = np.argsort(out.reshape(len(time), -1), axis=-1, kind="stable")
            time = np.take_along_axis(out.reshape(len(time), -1), order, -1)
            index = np.where(np.isfinite(time), order // limit, -1)
        return results


@pytest.mark.parametrize("gradient", [eventprop, analytic])
def test_gradients_do_not_ask_who_ran_the_neurons(problem, gradient):
    variables, inputs = problem
    exact = network(gradient=gradient)
    _, state = exact.apply(variables, inputs, mutable=["intermediates"])
    spikes = [state["intermediates"][n]["spikes"][0] for n in ("hidden", "output")]
    replay = Replay(tuple(s.times(1) for s in spikes))
    device = Simulator()
    expected = jax.grad(lambda v: loss(exact, v, inputs))(variables)
    scale = max(jnp.abs(x).max() for x in jax.tree.leaves(expected))
    for backend in (replay, HostBackend(device)):
        model = network(backend, gradient=gradient)
        run = jax.jit(jax.grad(lambda v, m=model: loss(m, v, inputs)))
        found = run(variables)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4 * scale),
            found,
            expected,
        )
    # The whole network, the whole batch, in one call.
    assert [shape for shape, _ in device.calls] == [inputs.time.shape]


def test_init_never_touches_a_device_and_parameters_are_the_same(problem):
    _, inputs = problem
    device = Simulator()
    on_device = network(HostBackend(device)).init(jax.random.key(0), inputs)
    in_software = network().init(jax.random.key(0), inputs)
    assert device.calls == []
    jax.tree.map(np.testing.assert_array_equal, on_device, in_software)


def test_a_single_layer_is_a_network_of_one(problem):
    variables, inputs = problem
    device = Simulator()
    alone = {"params": variables["params"]["hidden"]}
    exact = LIF(20).apply(alone, inputs)
    observed = LIF(20, backend=HostBackend(device)).apply(alone, inputs)
    assert len(device.calls) == 1
    np.testing.assert_allclose(observed.time, exact.time, rtol=1e-4)


def test_each_run_gets_its_own_seed_from_the_caller(problem):
    variables, inputs = problem
    device = Simulator()
    model = network(HostBackend(device))
    run = jax.jit(lambda key: model.apply(variables, inputs, rngs={"hardware": key}))
    for n in (0, 1, 0):
        jax.block_until_ready(run(jax.random.key(n)).time)
    seeds = [seed for _, seed in device.calls]
    assert seeds[0] == seeds[2] != seeds[1]


class Broken:
    def __init__(self, returns):
        self.returns = returns

    def run(self, neurons, kernels, max_spikes, time, *_):
        return self.returns(len(time))


@pytest.mark.parametrize(
    ("returns", "message"),
    [
        (lambda b: [], "returned 0 layers, the network has 1"),
        (lambda b: [np.zeros((b, 2, 1))], r"of shape .* expected \(8, 20, 1\)"),
        (lambda b: [np.full((b, 20, 1), np.nan)], "or NaN"),
        (lambda b: [np.full((b, 20, 1), -1.0)], "outside"),
    ],
)
def test_what_a_device_returns_is_checked(problem, returns, message):
    variables, inputs = problem
    layer = LIF(20, name="hidden", backend=HostBackend(Broken(returns)))
    with pytest.raises(Exception, match=message):
        jax.block_until_ready(
            layer.apply({"params": variables["params"]["hidden"]}, inputs).time
        )


def test_replay_refuses_other_shapes(problem):
    variables, inputs = problem
    with pytest.raises(ValueError, match="holds 1 layers, the network has 2"):
        network(Replay((jnp.zeros((8, 20, 1)),))).apply(variables, inputs)
    wrong = Replay((jnp.zeros((8, 20, 1)), jnp.zeros((4, 3, 1))))
    with pytest.raises(ValueError, match=r"layer\s+'output', expected \(8, 3, 1\)"):
        network(wrong).apply(variables, inputs)


def test_unexplained_spikes_are_counted_and_masked():
    # An inhibitory neuron cannot fire; a device that says so is not believed.
    inputs = Spikes.from_times(jnp.array([[[1e-3]]]))
    kernel = jnp.array([[-5.0, 8.0]])
    times = jnp.array([[[3e-3], [2e-3]]])
    layer = LIF(2, backend=Replay((times,)))

    def run(kernel):
        out, state = layer.apply(
            {"params": {"kernel": kernel}}, inputs, mutable=["events"]
        )
        return jnp.sum(out.first()), state["events"]["unexplained"]

    grad, unexplained = jax.grad(run, has_aux=True)(kernel)
    np.testing.assert_array_equal(unexplained, [1])
    assert grad[0, 0] == 0
    assert grad[0, 1] < 0


# The simulated chip.


def test_an_ideal_chip_is_the_simulation(problem):
    variables, inputs = problem
    ideal = SimulatedChip(w_max=2**22, tick=1e-15, jitter=0.0)
    exact = network().apply(variables, inputs)
    on_chip = network(ideal).apply(variables, inputs)
    np.testing.assert_array_equal(on_chip.index, exact.index)
    np.testing.assert_allclose(on_chip.time, exact.time, rtol=1e-4)


def test_chip_times_are_on_the_clock_and_weights_are_integers(problem):
    variables, inputs = problem
    chip = SimulatedChip(time_scale=1e-3, scale=20.0)
    kernel, saturated = chip.quantize(variables["params"]["hidden"]["kernel"])
    steps = np.asarray(kernel, np.float64) * 20
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-5)
    assert np.abs(steps).max() <= 63 + 1e-4
    raw = np.abs(np.round(np.asarray(variables["params"]["hidden"]["kernel"]) * 20))
    np.testing.assert_array_equal(saturated, raw > 63)
    out, state = network(chip).apply(variables, inputs, mutable=["events"])
    ticks = np.asarray(out.time[np.isfinite(out.time)], np.float64) / 8e-6
    np.testing.assert_allclose(ticks, np.round(ticks), atol=1e-2)  # float32 seconds.
    fraction = state["events"]["hidden"]["saturated"]
    np.testing.assert_allclose(fraction, np.full(8, np.mean(raw > 63)), rtol=1e-6)


def test_jitter_has_the_stated_size_and_comes_from_the_seed():
    kernel = jnp.full((1, 400), 8.0)
    inputs = Spikes.from_times(jnp.full((20, 1, 1), 1e-3))
    exact = simulate(Neuron(), kernel, inputs).times

    def run(chip, key=None):
        rngs = None if key is None else {"hardware": jax.random.key(key)}
        layer = LIF(400, backend=chip)
        return layer.apply({"params": {"kernel": kernel}}, inputs, rngs=rngs).first()

    chip = SimulatedChip(jitter=1e-6, w_max=8 * 7)
    deviation = (run(chip) - exact[..., 0]) * 1e-3  # Seconds on the chip.
    # 8000 draws: the sample deviation is within 5 sigma = 5 / sqrt(16000) of its mean.
    np.testing.assert_allclose(np.std(deviation), 1e-6, rtol=0.04)
    np.testing.assert_array_equal(run(chip), run(chip))
    assert (run(chip) != run(SimulatedChip(jitter=1e-6, w_max=56, seed=1))).any()
    assert (run(chip, 0) != run(chip, 1)).any()


def test_gradients_on_chip_are_straight_through(problem):
    variables, inputs = problem
    chip = SimulatedChip(jitter=0.0, scale=20.0)
    grads = jax.jit(jax.grad(lambda v: loss(network(chip), v, inputs)))(variables)
    # Those of the exact network with the weights that the chip really has.
    quantized = {
        "params": {
            name: {"kernel": chip.quantize(layer["kernel"])[0]}
            for name, layer in variables["params"].items()
        }
    }
    expected = jax.grad(lambda v: loss(network(), v, inputs))(quantized)
    for name in ("hidden", "output"):
        a, b = (g["params"][name]["kernel"] for g in (grads, expected))
        np.testing.assert_allclose(a, b, atol=2e-2 * float(jnp.abs(b).max()))
        assert jnp.abs(a).max() > 0


@pytest.mark.parametrize(
    "attributes", [{"tick": 0.0}, {"scale": -1.0}, {"jitter": -1e-9}, {"w_max": 0}]
)
def test_bad_chips_are_refused(attributes):
    (name,) = attributes
    with pytest.raises(ValueError, match=f"SimulatedChip.{name} is"):
        SimulatedChip(**attributes)
