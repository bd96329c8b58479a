"""The adapter to BrainScaleS-2, against a stand-in for the vendor's package."""

import importlib.util
import json
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from pynn_stand_in import TICK, StandIn, differences

from jaxsnn import Spikes
from jaxsnn.coding import encode_latency, first_spike_times
from jaxsnn.dynamics import Neuron
from jaxsnn.hardware import DeviceError, DeviceTimeout, typed_errors
from jaxsnn.hardware.brainscales2 import BrainScaleS2, Measurement, _ms, _ticks
from jaxsnn.layers import LIF, Network
from jaxsnn.losses import ttfs_cross_entropy

SCALE, UNTIL = 57.0, 30e-3
BATCH, INPUTS, HIDDEN, OUTPUT = 4, 10, 8, 2
STEP = 8e-6  # A tick in seconds of the model.


@pytest.fixture
def chip():
    chip = StandIn()
    yield chip
    chip.hung.set()


def backend(chip, **changes):
    return BrainScaleS2(**{"scale": SCALE, "latency": 0.0, "pynn": chip} | changes)


def network(backend=None, **attributes):
    layers = [
        LIF(HIDDEN, name="hidden", **attributes),
        LIF(OUTPUT, name="output", **attributes),
    ]
    return Network(layers, backend=backend)


def whole(kernel):
    """Weights that the chip can hold."""
    return jnp.clip(jnp.round(kernel * SCALE), -63, 63) / SCALE


@pytest.fixture
def problem():
    """Variables and inputs that the chip can represent: integers, whole ticks."""
    x = jax.random.uniform(jax.random.key(1), (BATCH, INPUTS))
    spikes = encode_latency(x, t_late=10e-3, bias=None)
    ticks = jnp.round(spikes.times(1) / STEP) * STEP
    inputs = Spikes.from_times(ticks)
    rng = np.random.default_rng(2)
    hidden = rng.uniform(-0.1, 1.1, (INPUTS, HIDDEN))
    output = rng.uniform(0.4, 1.1, (HIDDEN, OUTPUT))
    params = {
        "hidden": {"kernel": whole(jnp.asarray(hidden, jnp.float32))},
        "output": {"kernel": whole(jnp.asarray(output, jnp.float32))},
    }
    return {"params": params}, inputs


def apply(model, variables, inputs, until=UNTIL, **more):
    out = model.apply(variables, inputs, until=until, **more)
    return jax.block_until_ready(out)


def observed(model, variables, inputs, until=UNTIL):
    """Spike times of both layers, and what they report."""
    out, state = apply(
        model, variables, inputs, until, mutable=["events", "intermediates"]
    )
    del out
    times = [
        np.asarray(state["intermediates"][name]["spikes"][0].first())
        for name in ("hidden", "output")
    ]
    return times, state["events"]


def loss(model, variables, inputs):
    times = model.apply(variables, inputs, until=UNTIL).first()
    return jnp.sum(jnp.where(jnp.isfinite(times), times, UNTIL) ** 2) * 1e4


def close(found, expected, ticks=1.0):
    """The same spikes, up to the clock."""
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.isfinite(a), np.isfinite(b))
        real = np.isfinite(a)
        np.testing.assert_allclose(a[real], b[real], atol=ticks * STEP, rtol=0)


def test_spikes_are_those_of_the_software_on_the_clock(chip, problem):
    variables, inputs = problem
    found, events = observed(network(backend(chip)), variables, inputs)
    expected, _ = observed(network(), variables, inputs)
    # A hidden spike half a tick off moves the next by that, at most a few times it.
    close(found, expected, 2)
    for times in found:
        real = times[np.isfinite(times)]
        assert real.size > 4
        ticks = real / STEP
        np.testing.assert_allclose(ticks, np.round(ticks), atol=1e-3)
    for own in events.values():
        assert not np.any(own["lost"])
        assert not np.any(own["extra"])
        assert not np.any(own["saturated"])


def test_gradients_are_those_of_the_software(chip, problem):
    variables, inputs = problem
    expected = jax.grad(lambda v: loss(network(), v, inputs))(variables)
    on_chip = network(backend(chip))
    found = jax.jit(jax.grad(lambda v: loss(on_chip, v, inputs)))(variables)
    scale = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    assert scale > 0
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=5e-3 * scale),
        found,
        expected,
    )


def test_training_in_the_loop_reduces_the_loss(problem):
    variables, inputs = problem
    chip = StandIn(latency=0.16, scale=55.0, spread=0.05)
    model = network(backend(chip, latency=0.16e-6))
    labels = jnp.arange(BATCH) % OUTPUT
    optimizer = optax.adam(2e-2)

    def cost(variables):
        times = first_spike_times(model.apply(variables, inputs, until=UNTIL))
        return ttfs_cross_entropy(times, labels, tau=1e-3, t_silent=UNTIL).mean()

    @jax.jit
    def step(variables, state):
        value, grads = jax.value_and_grad(cost)(variables)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(variables, updates), state, value

    state, values = optimizer.init(variables), []
    for _ in range(17):
        variables, state, value = step(variables, state)
        values.append(float(value))
    assert np.isfinite(values).all()
    assert min(values[-3:]) < 0.8 * values[0]
    # One setup and one run to build, then one run for each batch and no more.
    assert (chip.count("setup"), chip.count("run"), chip.count("end")) == (1, 18, 0)


def test_calls_their_order_and_their_units(chip, problem):
    variables, inputs = problem
    t_ref = 4e-3
    attributes = {"max_spikes": 3, "t_ref": t_ref}
    device = backend(chip, settle=2.0, setup={"neuronPermutation": [3, 4]})
    apply(network(device, **attributes), variables, inputs)
    device.close()
    names = [name for name, _ in chip.calls]
    assert names == [
        "setup",
        *["Population"] * 3,
        *["Projection"] * 4,
        "run",
        "reset",
        *["Projection.set"] * 4,
        "Population.set",
        "run",
        "reset",
        "end",
    ]
    # Everything in one thread, which is not this one.
    assert len(chip.threads) == 1
    assert threading.get_ident() not in chip.threads
    calls = [arguments for _, arguments in chip.calls]
    assert calls[0] == {"neuronPermutation": [3, 4]}
    assert [call["size"] for call in calls[1:4]] == [INPUTS, HIDDEN, OUTPUT]
    cell = calls[2]["cell"].parameters
    # ms of the model are us of the chip: 10 ms, 5 ms, 4 ms.
    expected = {"tau_m": 10, "tau_syn_E": 5, "tau_syn_I": 5, "tau_refrac": 4}
    for name, value in expected.items():
        np.testing.assert_allclose(cell[name], np.full(HIDDEN, value), rtol=1e-6)
    for name, value in {"v_rest": 80, "v_reset": 80, "v_thresh": 150}.items():
        np.testing.assert_array_equal(cell[name], np.full(HIDDEN, value))
    # Excitatory and inhibitory weights are the parts of one matrix of integers.
    parts = [call for name, call in chip.calls if name == "Projection.set"]
    assert [p["receptor"] for p in parts] == ["excitatory", "inhibitory"] * 2
    kernel = np.asarray(variables["params"]["hidden"]["kernel"])
    both = parts[0]["weight"] + parts[1]["weight"]
    np.testing.assert_array_equal(both, np.round(kernel * SCALE).astype(int))
    assert (both < 0).any()
    assert not np.any(parts[0]["weight"] * parts[1]["weight"])
    # Sample b begins b periods later. 30 us + 2 * 10 us are 6250 ticks of 8 ns.
    sent = chip.calls[names.index("Population.set")][1]["spike_times"]
    runtime = [call["runtime"] for name, call in chip.calls if name == "run"][1]
    assert int(runtime * 125_000) == BATCH * 6250
    expected = np.round(np.asarray(inputs.times(1))[..., 0] / STEP).astype(int)
    expected = expected.T + np.arange(BATCH) * 6250  # [inputs, batch]
    for train, ticks in zip(sent, expected, strict=True):
        # The vendor cuts; rounding, another way to do it, must agree.
        np.testing.assert_array_equal([int(t * 125_000) for t in train], ticks)
        np.testing.assert_array_equal(np.round(train * 125_000), ticks)


def test_times_survive_the_rounding_of_the_vendor():
    ticks = np.arange(300_000)
    # To whole ticks by cutting, after two products; times come back in ms.
    cut = (_ms(ticks) * 1000.0 * 125).astype(int)
    np.testing.assert_array_equal(cut, ticks)
    # Far from where cutting or rounding would decide otherwise.
    beyond = _ms(ticks) * 125_000 - ticks
    assert ((beyond > 0.1) & (beyond < 0.4)).all()
    assert ((ticks * 8e-6 * 1000.0 * 125).astype(int) != ticks).any()
    np.testing.assert_array_equal(_ticks(ticks * 8e-6), ticks)


def test_a_pause_lasts_as_long_as_a_refractory_period(chip, problem):
    variables, inputs = problem
    apply(network(backend(chip, settle=1.0)), variables, inputs)
    runtime = [call["runtime"] for name, call in chip.calls if name == "run"][1]
    # max_spikes=1: 32 us, the longest that the chip can; 30 us of window.
    cell = next(call["cell"] for name, call in chip.calls[2:] if name == "Population")
    np.testing.assert_allclose(cell.parameters["tau_refrac"], 32)
    assert int(runtime * 125_000) == BATCH * round(62 / 8e-3)


def test_weights_that_stay_are_not_written_again(chip, problem):
    variables, inputs = problem
    model = network(backend(chip))
    apply(model, variables, inputs)
    apply(model, variables, inputs)
    assert chip.count("Projection.set") == 4
    other = jax.tree.map(lambda x: x, variables)
    other["params"]["output"]["kernel"] = 0.5 * variables["params"]["output"]["kernel"]
    apply(model, other, inputs)
    assert chip.count("Projection.set") == 6
    assert chip.count("setup") == 1
    # Nor does the vendor's cache keep what was read.
    assert all(len(population.cache) <= 1 for population in chip.populations)


def test_latency_is_subtracted_once_per_hop(problem):
    variables, inputs = problem
    expected, _ = observed(network(), variables, inputs)
    chip = StandIn(latency=0.4)
    found, events = observed(network(backend(chip, latency=0.4e-6)), variables, inputs)
    close(found, expected, 2)
    assert not any(np.any(own["lost"]) for own in events.values())
    chip = StandIn(latency=0.4)
    late, _ = observed(network(backend(chip)), variables, inputs)
    for hop, (a, b) in enumerate(zip(late, expected, strict=True), start=1):
        real = np.isfinite(b)
        np.testing.assert_allclose(a[real] - b[real], hop * 0.4e-3, atol=2 * STEP)


def test_a_recurrent_layer_hears_itself_when_the_chip_lets_it(problem):
    variables, inputs = problem
    latency = 0.4e-3  # In seconds of the model, which then knows of it.
    rng = np.random.default_rng(5)
    lateral = whole(jnp.asarray(rng.uniform(-1, 1, (HIDDEN, HIDDEN)), jnp.float32))
    params = {**variables["params"]["hidden"], "recurrent_kernel": lateral}
    arguments = {"recurrent": True, "recurrent_delay": latency, "delay": latency}
    chip = StandIn(latency=0.4)
    device = backend(chip, latency=0.4e-6)
    found = LIF(HIDDEN, backend=device, **arguments).apply(
        {"params": params}, inputs, until=UNTIL
    )
    expected = LIF(HIDDEN, **arguments).apply({"params": params}, inputs, until=UNTIL)
    close([np.asarray(found.first())], [np.asarray(expected.first())], 2)
    assert chip.count("Projection") == 4
    alone = LIF(HIDDEN, delay=latency).apply(
        {"params": variables["params"]["hidden"]}, inputs, until=UNTIL
    )
    assert np.abs(np.nan_to_num(alone.first() - found.first())).max() > 4 * STEP


def test_ways_of_different_latency_are_pointed_out(chip, problem):
    _, inputs = problem
    device = backend(chip, latency=0.4e-6)
    layer = LIF(HIDDEN, recurrent=True, backend=device)
    with pytest.warns(UserWarning, match=r"differs by 0.4 us .* delays of 0.0004 s"):
        layer.init(jax.random.key(0), inputs, until=UNTIL)
    assert chip.calls == []


def test_neurons_of_a_file_keep_their_parameters(chip, problem, tmp_path):
    variables, inputs = problem
    file = tmp_path / "spiking2_cocolist.pbin"
    file.write_bytes(b"calibration")
    # That of the stand-in has 6 us for both, and a refractory period of 2 us.
    same = {"tau_mem": 6e-3, "tau_syn": 6e-3, "t_ref": 2e-3, "max_spikes": 4}
    model = network(backend(chip, calibration=file), **same)
    found, _ = observed(model, variables, inputs)
    close(found, observed(network(**same), variables, inputs)[0], 2)
    assert chip.calls[0] == ("chip_from_file", {"path": str(file)})
    assert chip.calls[1][1]["initial_config"]["tau_m"] == 6
    with pytest.raises(FileNotFoundError, match="Leave it out to calibrate"):
        backend(chip, calibration=tmp_path / "none.pbin")


# Faults.


def test_a_fault_of_the_link_is_tried_again(chip, problem):
    variables, inputs = problem
    model = network(backend(chip))
    expected, _ = observed(model, variables, inputs)
    chip.faults = ["link", "link"]
    found, events = observed(model, variables, inputs)
    close(found, expected, 0)
    assert np.sum(events["hidden"]["retried"]) == 2
    # Each failed run was reset, or the next one would have been refused.
    assert chip.count("run") == chip.count("reset") == 1 + 1 + 3


def test_a_fault_that_stays_is_an_error_and_the_next_run_works(chip, problem):
    variables, inputs = problem
    model = network(backend(chip, retries=1))
    expected, _ = observed(model, variables, inputs)
    chip.faults = ["link", "link"]
    with (
        pytest.raises(DeviceError, match=r"BrainScaleS-2, run 1: .* HostARQ") as caught,
        typed_errors(),
    ):
        observed(model, variables, inputs)
    assert caught.value.run == 1
    close(observed(model, variables, inputs)[0], expected, 0)


def test_a_mistake_is_not_tried_again(chip, problem):
    variables, inputs = problem
    chip.faults = ["bug", "bug"]
    with pytest.raises(DeviceError, match="TypeError: unsupported"), typed_errors():
        apply(network(backend(chip)), variables, inputs)
    assert chip.faults == ["bug"]


def test_a_run_that_hangs_is_given_up_on(chip, problem):
    variables, inputs = problem
    model = network(backend(chip, timeout=0.5))
    expected, _ = observed(model, variables, inputs)
    chip.faults = ["hang"]
    with pytest.raises(DeviceTimeout, match="no answer within"), typed_errors():
        apply(model, variables, inputs)
    # The session is ended and set up anew; what comes back late disturbs nothing.
    close(observed(model, variables, inputs)[0], expected, 0)
    assert (chip.count("setup"), chip.count("end")) == (2, 1)
    calls = len(chip.calls)
    chip.hung.set()
    close(observed(model, variables, inputs)[0], expected, 0)
    assert [name for name, _ in chip.calls[calls:]] == [
        "Population.set",
        "run",
        "reset",
    ]


@pytest.mark.parametrize("fault", ["late", "early"])
def test_spikes_outside_of_the_windows_are_counted(chip, problem, fault):
    variables, inputs = problem
    model = network(backend(chip))
    expected, _ = observed(model, variables, inputs)
    chip.faults = [fault]
    found, events = observed(model, variables, inputs)
    for name, times, before in zip(events, found, expected, strict=True):
        fired = np.isfinite(before).sum(axis=1)
        # Moved by more than the window, or before its beginning, into a pause.
        moved = before + {"late": 31e-3, "early": -20e-3}[fault]
        kept = (moved >= 0) & (moved < UNTIL)
        np.testing.assert_array_equal(np.isfinite(times).sum(axis=1), kept.sum(axis=1))
        assert np.sum(events[name]["lost"]) == np.sum(fired - kept.sum(axis=1))
    assert np.sum(events["hidden"]["lost"]) > 4


def test_events_that_never_arrive_leave_a_silence(chip, problem):
    variables, inputs = problem
    chip.faults = ["lost"]
    model = network(backend(chip))
    value, grads = jax.value_and_grad(lambda v: loss(model, v, inputs))(variables)
    # Every output is silent: its time is the end of the window, its gradient 0.
    np.testing.assert_allclose(value, BATCH * OUTPUT * UNTIL**2 * 1e4, rtol=1e-5)
    jax.tree.map(lambda g: np.testing.assert_array_equal(g, 0), grads)


def test_a_second_spike_within_the_window_is_counted(chip, problem):
    variables, inputs = problem
    wide = jnp.concatenate([inputs.times(1), inputs.times(1) + 45e-3], axis=-1)
    with pytest.warns(UserWarning, match=r"for 32 us; the window is 80 us"):
        _, events = observed(
            network(backend(chip)), variables, Spikes.from_times(wide), until=80e-3
        )
    assert np.sum(events["hidden"]["extra"]) >= BATCH


def test_no_connection_names_the_variables(chip, problem):
    variables, inputs = problem
    chip.connects = False
    model = network(backend(chip))
    message = r"QUIGGELDY_ENABLED.*SLURM_FPGA_IPS"
    with pytest.raises(DeviceError, match=message), typed_errors():
        apply(model, variables, inputs)
    assert not chip.ready  # Let go of.
    chip.connects = True
    apply(model, variables, inputs)


def test_one_session_per_process(chip, problem):
    variables, inputs = problem
    first, second = backend(chip), backend(chip)
    apply(network(first), variables, inputs)
    message = r"another BrainScaleS2 .* close\(\)"
    with pytest.raises(DeviceError, match=message), typed_errors():
        apply(network(second), variables, inputs)
    first.close()
    apply(network(second), variables, inputs)
    assert (chip.count("setup"), chip.count("end")) == (2, 1)


# What is refused, before any call.


@pytest.mark.skipif(
    importlib.util.find_spec("pynn_brainscales") is not None, reason="is installed"
)
def test_a_missing_package_says_where_it_is_from(problem):
    _, inputs = problem
    with pytest.raises(ModuleNotFoundError, match=r"EBRAINS .*SimulatedChip"):
        network(BrainScaleS2()).init(jax.random.key(0), inputs, until=UNTIL)


@pytest.mark.parametrize(
    ("layer", "until", "message"),
    [
        ({}, jnp.inf, "until is inf s"),
        ({}, 35e3, r"a run there takes more\s+than 0 and at most 34.36 s"),
        ({"tau_mem": 20.0}, UNTIL, "tau_mem = 20 s, which is 20 ms on the device"),
        ({"v_th": 3.0}, UNTIL, r"v_th = 3, which is step 290 .* possible is 50 to 220"),
        ({"v_reset": -1.0}, UNTIL, "v_reset = -1, which is step 10"),
        ({"delay": 1e-3}, UNTIL, "cannot delay spikes"),
        ({"t_ref": 40e-3}, 50e-3, "possible is 0 s to 32 us"),
        ({"features": 600}, UNTIL, r"needs 600 neuron circuits .* the device has 512"),
    ],
)
def test_networks_that_do_not_fit_are_refused(chip, problem, layer, until, message):
    _, inputs = problem
    model = LIF(**{"features": 4} | layer, backend=backend(chip))
    with pytest.raises(ValueError, match=message):
        model.init(jax.random.key(0), inputs, until=until)
    assert chip.calls == []


def test_more_inputs_than_a_neuron_has_are_refused(chip):
    inputs = Spikes.from_times(jnp.zeros((1, 129, 1)))
    with pytest.raises(ValueError, match="129 signed inputs per neuron"):
        LIF(4, backend=backend(chip)).init(jax.random.key(0), inputs, until=UNTIL)
    assert chip.calls == []


def test_a_batch_that_takes_too_long_is_refused(chip, problem):
    variables, inputs = problem
    # 4 windows of 12 s are more than the 34 s of a run.
    model = network(backend(chip))
    message = "a batch of 4 takes 48 s"
    with (
        pytest.warns(UserWarning, match="window is"),
        pytest.raises(DeviceError, match=message),
        typed_errors(),
    ):
        apply(model, variables, inputs, until=12e3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": None}, "a\\s+strength of its own"),
        ({"unit": 0.0}, "unit is 0.0, expected above 0"),
        ({"settle": -1.0}, "settle is -1.0"),
        ({"latency": 0.4}, "seconds on the chip, such as"),
        ({"time_scale": 0.0}, "time_scale is 0.0"),
    ],
)
def test_attributes_are_checked(chip, changes, message):
    with pytest.raises(ValueError, match=message):
        backend(chip, **changes)


# Measuring a chip.


def test_measuring_finds_strength_and_latency(tmp_path):
    true, latency = 51.3, 0.23
    chip = StandIn(latency=latency, scale=true)
    file = tmp_path / "chip.json"
    found = backend(chip, latency=0.1e-6).measure(neurons=2, repeats=2, path=file)
    np.testing.assert_allclose(found.scale, true, rtol=2e-3)
    np.testing.assert_allclose(found.latency, latency * 1e-6, atol=TICK * 1e-6)
    # 10 W k_max > 51.3 with k_max = 1/4 for a ratio of 2: W > 20.52.
    assert (found.first_weight, found.neurons, found.unusable) == (21, 2, 0)
    assert Measurement.load(file) == found
    again = BrainScaleS2.from_measurement(file, pynn=chip, retries=7)
    assert (again.scale, again.latency, again.retries) == (
        found.scale,
        found.latency,
        7,
    )
    assert not file.with_name("chip.json.part").exists()


def test_measuring_finds_the_spread_of_thresholds():
    chip, spread = StandIn(spread=0.06, seed=3), 0.06
    found = backend(chip).measure(
        Neuron(tau_mem=6e-3, tau_syn=6e-3), neurons=6, repeats=1
    )
    noise = 1 + spread * np.random.default_rng(3).normal(size=6)
    # A threshold higher by a fraction is a weight weaker by it.
    np.testing.assert_allclose(found.scale, SCALE * np.median(noise), rtol=3e-3)
    np.testing.assert_allclose(
        found.scale_spread, np.std(noise) / np.median(noise), rtol=3e-2
    )


@pytest.mark.parametrize(
    ("scale", "inputs", "message"),
    [
        (57.0, 1, r"none fired at weight 63.* more inputs"),
        (2.0, 60, "fewer inputs"),
    ],
)
def test_measuring_says_what_it_needs(scale, inputs, message):
    device = backend(StandIn(scale=scale))
    with pytest.raises(ValueError, match=message):
        device.measure(neurons=2, repeats=1, inputs=inputs)


def test_a_broken_measurement_is_recognised(tmp_path):
    file = tmp_path / "chip.json"
    file.write_text('{"scale": 57.0, "laten')
    with pytest.raises(ValueError, match=r"cut short.*Measure again"):
        BrainScaleS2.from_measurement(file)
    file.write_text(json.dumps({"scale": 57.0}))
    with pytest.raises(ValueError, match=r"missing or unknown are .*'latency'"):
        BrainScaleS2.from_measurement(file)
    file.write_text("[1, 2]")
    with pytest.raises(ValueError, match="is not a measurement"):
        BrainScaleS2.from_measurement(file)


# The stand-in.


def connected(chip, sources, receptor_type, **cell):
    """Sources, a neuron that is recorded, and what connects them."""
    chip.setup()
    pre = chip.Population(sources, chip.cells.SpikeSourceArray())
    post = chip.Population(1, chip.cells.CalibHXNeuronCuba(**cell))
    post.record(["spikes"])
    projection = chip.Projection(
        pre,
        post,
        chip.AllToAllConnector(),
        synapse_type=chip.synapses.StaticSynapse(weight=0),
        receptor_type=receptor_type,
    )
    return pre, post, projection


def test_the_stand_in_enforces_the_rules(chip):
    with pytest.raises(AssertionError, match="before setup"):
        chip.Population(1, chip.cells.SpikeSourceArray())
    *_, projection = connected(chip, 1, "inhibitory")
    with pytest.raises(ValueError, match="negative for inhibitory"):
        projection.set(weight=np.array([[1]]))
    with pytest.raises(AssertionError, match="whole numbers"):
        projection.set(weight=np.array([[-1.0]]))
    with pytest.raises(ValueError, match="delay unequal 0"):
        chip.synapses.StaticSynapse(delay=1.0)
    chip.run(0.01)
    with pytest.raises(RuntimeError, match=r"Call `pynn.reset\(\)`"):
        chip.run(0.01)
    chip.reset()
    chip.run(0.01)


def test_the_stand_in_solves_a_neuron_exactly(chip):
    from oracles import spike_train

    cell = {"v_rest": 80, "v_reset": 80, "v_thresh": 150}
    taus = {"tau_m": 10, "tau_syn_E": 5, "tau_syn_I": 5}
    pre, post, projection = connected(chip, 3, "excitatory", **cell, **taus)
    projection.set(weight=np.array([[60], [63], [50]]))
    times = [[0.001, 0.0021, 0.05], [0.0015, 0.003, 0.052], [0.002, 0.051]]
    pre.set(spike_times=[np.array(t) for t in times])
    chip.run(0.1)
    (train,) = post.get_data("spikes").segments[-1].spiketrains
    # In us; until the first spike, after which the neuron is refractory.
    events = [(t * 1e3, j) for j, own in enumerate(times) for t in own if t < 0.02]
    neuron, weights = Neuron(tau_mem=10.0, tau_syn=5.0), np.array([60, 63, 50]) / 57
    expected = spike_train(neuron, weights, *zip(*events, strict=True), 20.0, 1)
    assert len(expected) == 1
    np.testing.assert_allclose(train[0] * 1e3, expected[0], atol=TICK)


@pytest.mark.skipif(
    importlib.util.find_spec("pynn_brainscales") is None,
    reason="the vendor's package is not installed",
)
def test_the_stand_in_takes_what_the_vendor_takes():
    import pynn_brainscales.brainscales2 as vendor

    assert differences(vendor) == []


def test_differences_of_signatures_are_found(chip):
    assert differences(chip_like()) == []
    other = chip_like()
    other.run = lambda duration: None
    assert differences(other) == [
        "run(runtime)",
        "run(command=<RunCommand.EXECUTE: 3>)",
    ]


def chip_like():
    import pynn_stand_in

    other = StandIn()
    other.Population = pynn_stand_in.Population
    other.Projection = pynn_stand_in.Projection
    return other
