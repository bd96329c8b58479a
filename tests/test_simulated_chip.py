"""The simulated chip: each error by itself has the stated size, the others are off."""

import dataclasses
import functools
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax.linen.initializers import constant

from jaxsnn import Spikes
from jaxsnn.coding import encode_latency
from jaxsnn.hardware import SimulatedChip
from jaxsnn.hardware.simulated_chip import PROFILES, one_at_a_time, share_outputs
from jaxsnn.layers import LI, LIF, Bounded, Delay, Network
from jaxsnn.layers.graph import Connection, Graph, Population
from jaxsnn.readout import Trace

UNTIL = 40e-3
TICK = 8e-6  # 8 ns, in the model's seconds.
# Weights and clocks so fine that they are real numbers.
FINE = {"scale": None, "w_max": 2**22, "tick": 1e-15}


QUIET = {"scale": None, "jitter": 0.0, "trial_threshold": 0.0}


def fine(**changes):
    """A chip with nothing but the errors that are named."""
    return SimulatedChip.profile("ideal", **{**FINE, **changes})


def network(backend=None, hidden=20, outputs=3, **attributes):
    layers = [
        LIF(hidden, name="hidden", **attributes),
        LIF(outputs, name="output", **attributes),
    ]
    return Network(layers, backend=backend)


@pytest.fixture(scope="module")
def problem():
    x = jax.random.uniform(jax.random.key(1), (8, 4))
    inputs = encode_latency(x, t_late=10e-3)
    variables = jax.jit(network().init)(jax.random.key(0), inputs)
    kernel = variables["params"]["output"]["kernel"]
    variables["params"]["output"]["kernel"] = 4 * kernel
    return variables, inputs


@pytest.fixture(scope="module")
def exact(problem):
    return applied(network(), *problem)


def loss(model, variables, inputs):
    times = model.apply(variables, inputs, UNTIL).first()
    return jnp.sum(jnp.where(jnp.isfinite(times), times, 0) ** 2)


def close(found, expected, **tolerance):
    np.testing.assert_array_equal(found.index, expected.index)
    np.testing.assert_allclose(found.time, expected.time, **tolerance)


def applied(model, variables, inputs, key=0, **options):
    """A model's output, compiled as one: that takes less time than op by op."""
    rngs = {} if key is None else {"hardware": jax.random.key(key)}
    run = jax.jit(lambda v, x, rngs: model.apply(v, x, UNTIL, rngs=rngs, **options))
    return run(variables, inputs, rngs)


@functools.cache
def layer_runner(chip, neurons, **attributes):
    layer = LIF(neurons, backend=chip, **attributes)

    def run(kernel, inputs, rngs):
        variables = {"params": {"kernel": kernel}}
        options = {"rngs": rngs, "mutable": ["events"]}
        out, state = layer.apply(variables, inputs, UNTIL, **options)
        return out.times(layer.max_spikes), state["events"]

    return jax.jit(run)


def layer_times(chip, kernel, inputs, key=0, **attributes):
    """Spike times of one layer, ``[batch, neurons, n]``, and what it reports."""
    rngs = {} if key is None else {"hardware": jax.random.key(key)}
    kernel = jnp.asarray(kernel)
    run = layer_runner(chip, kernel.shape[1], **attributes)
    times, events = run(kernel, inputs, rngs)
    return np.asarray(times), events


def at(*times, batch=1):
    """Inputs that spike once each, at those times."""
    return Spikes.from_times(jnp.tile(jnp.asarray(times)[None, :, None], (batch, 1, 1)))


# No error at all.


def test_an_ideal_chip_with_fine_weights_is_the_simulation(problem, exact):
    close(applied(network(fine()), *problem), exact, rtol=1e-4)


def test_latency_is_subtracted_unless_the_model_has_it(problem, exact):
    variables, inputs = problem
    latency, chip = 0.2e-3, fine(latency=0.2e-6)
    close(applied(network(chip), variables, inputs), exact, rtol=1e-4)
    layers = []
    for layer in network().layers:
        layers += [Delay(latency, name=f"to_{layer.name}"), layer]
    found = applied(Network(layers, backend=chip), variables, inputs)
    np.testing.assert_array_equal(found.index, exact.index)
    np.testing.assert_allclose(found.time, exact.time + 2 * latency, rtol=1e-4)

    kernel, inputs = np.full((1, 2), 9.0), at(1e-3)
    first, _ = layer_times(None, kernel, inputs)
    raw, _ = layer_times(fine(latency=0.2e-6, correction=0.05e-6), kernel, inputs)
    np.testing.assert_allclose(raw, first + 0.15e-3, rtol=1e-4)


@pytest.mark.parametrize(("latency", "delay"), [(0.0, 0.0), (0.5e-6, 0.5e-3)])
def test_a_recurrent_layer_on_an_ideal_chip_is_the_simulation(latency, delay):
    layer = LIF(6, recurrent=True, recurrent_delay=delay, max_spikes=3)
    inputs = encode_latency(
        jax.random.uniform(jax.random.key(2), (4, 5)), t_late=10e-3, bias=0.0
    )
    variables = jax.jit(layer.init)(jax.random.key(3), inputs)
    exact = applied(layer, variables, inputs)
    assert 20 < exact.count().sum() <= 72
    chip = layer.clone(backend=fine(latency=latency))
    out, state = applied(chip, variables, inputs, mutable=["events"])
    close(out, exact, rtol=1e-4)
    assert state["events"]["unexplained"].sum() == 0


def graph(delay, loop=False, backend=None):
    """With a skip and a feedback of one; the first population is the last to run."""
    init = LIF(1).kernel_init
    connections = [
        Connection("input", "hidden", init, delay=delay),
        Connection("hidden", "output", init, delay=delay),
        Connection("input", "output", init, delay=delay),
        Connection("hidden", "hidden", LIF(1).recurrent_init, delay=delay),
    ]
    if loop:
        connections += [Connection("output", "hidden", init, delay=delay)]
    populations = {"output": Population(3), "hidden": Population(7)}
    return Graph(populations, connections, outputs="output", backend=backend)


def test_skips_and_feedback_on_an_ideal_chip_are_the_simulation():
    latency, delay = 0.5e-6, 0.5e-3
    inputs = encode_latency(
        jax.random.uniform(jax.random.key(2), (4, 5)), t_late=10e-3, bias=0.0
    )
    variables = jax.jit(graph(delay).init)(jax.random.key(3), inputs)
    exact = applied(graph(delay), variables, inputs)
    chip = fine(latency=latency)
    close(applied(graph(delay, backend=chip), variables, inputs), exact, rtol=1e-4)


def test_loops_over_several_populations_are_refused(problem):
    _, inputs = problem
    with pytest.raises(ValueError, match=r"in a loop, '\w+' -> .*LIF\(recurrent=True"):
        graph(0.0, loop=True, backend=fine()).init(jax.random.key(0), inputs)


def test_jit_vmap_and_float64_change_nothing(problem):
    variables, inputs = problem
    # Jitter is drawn for each sample, all else for the run.
    layer = LIF(20, backend=SimulatedChip(scale=None, jitter=0.0))
    params = {"params": variables["params"]["hidden"]}
    rngs = {"hardware": jax.random.key(0)}

    def run(params, inputs):
        return layer.apply(params, inputs, UNTIL, rngs=rngs).first()

    expected = np.asarray(jax.jit(run)(params, inputs))
    assert np.isfinite(expected).sum() > 10
    # Rounding may move a spike to the next tick.
    tolerance = {"rtol": 1e-5, "atol": TICK * 1.01}
    np.testing.assert_allclose(run(params, inputs), expected, **tolerance)
    mapped = jax.jit(jax.vmap(run, (None, 0)))(params, inputs)
    np.testing.assert_allclose(mapped, expected, **tolerance)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
        given = Spikes(inputs.time.astype(jnp.float64), inputs.index, inputs.size)
        layer = layer.clone(backend=SimulatedChip(**QUIET))
        found = np.asarray(jax.jit(run)(wide, given))
    assert found.dtype == np.float64
    expected = np.asarray(jax.jit(lambda *given: run(*given))(params, inputs))
    np.testing.assert_allclose(found, expected, **tolerance)


# Weights and clocks.


def test_weights_are_integers_and_times_on_the_clock(problem):
    variables, inputs = problem
    chip = SimulatedChip(scale=20.0)
    warnings.simplefilter("ignore")  # Many are cut on purpose.
    layers = variables["params"]
    observed = chip(
        [*network().bind(variables)._network(chip, 4).values()], inputs, UNTIL, None
    )
    for observation, name in zip(observed, ("hidden", "output"), strict=True):
        steps = np.round(np.asarray(layers[name]["kernel"], np.float64) * 20)
        (kernel,) = observation.kernels  # Without the gains: nobody knows them.
        np.testing.assert_allclose(kernel, np.clip(steps, -63, 63) / 20, rtol=1e-6)
        fraction = observation.counters["saturated"]
        np.testing.assert_allclose(fraction, np.full(8, np.mean(abs(steps) > 63)))
        times = np.asarray(observation.times)
        ticks = times[np.isfinite(times)].astype(np.float64) / TICK
        assert ticks.size > 10
        np.testing.assert_allclose(ticks, np.round(ticks), atol=1e-2)


def test_inputs_are_cut_to_the_clock_and_sent_one_by_one():
    # A neuron for each input, so that its spike tells when the input came.
    times = np.array([3.2, 3.7, 3.0, 3.9, 10.5, 11.0, 11.2]) * TICK
    kernel = 9.0 * np.eye(7, dtype=np.float32)
    exact, _ = layer_times(None, kernel, at(*times))
    wait = exact[0, :, 0] - times  # The same for all.
    # At tick 3 there are four, in the order of their times; 10.5 is before 11.
    sent = np.array([4, 5, 3, 6, 10, 11, 12])
    chip = SimulatedChip.profile("ideal", scale=None)
    found, _ = layer_times(chip, kernel, at(*times))
    ticks = np.round((sent * TICK + wait) / TICK)
    np.testing.assert_array_equal(np.round(found[0, :, 0] / TICK), ticks)


def test_one_at_a_time_is_a_loop():
    rng = np.random.default_rng(0)
    ticks = np.sort(rng.integers(0, 40, (3, 30)), -1).astype(np.float32)
    expected = ticks.copy()
    for row in expected:
        for k in range(1, 30):
            row[k] = max(row[k], row[k - 1] + 1)
    np.testing.assert_array_equal(one_at_a_time(jnp.asarray(ticks)), expected)


@pytest.mark.parametrize("depth", [1000, 2, 0])
def test_shared_outputs_are_a_loop(depth):
    rng = np.random.default_rng(1)
    ticks = rng.integers(0, 6, (4, 10, 2)).astype(np.float32)
    ticks[rng.random(ticks.shape) < 0.2] = np.inf
    expected = np.full(ticks.shape, np.inf, np.float32)
    for b in range(4):
        for first in range(0, 10, 4):  # 4, 4 and 2 neurons share.
            events = [
                (ticks[b, n, s], n, s)
                for n in range(first, min(first + 4, 10))
                for s in range(2)
                if np.isfinite(ticks[b, n, s])
            ]
            free = 0
            for come, n, s in sorted(events):
                leave = max(come, free)
                if leave - come <= depth:
                    expected[b, n, s], free = leave, leave + 1
    found = np.asarray(share_outputs(jnp.asarray(ticks), 4, depth))
    np.testing.assert_array_equal(found, expected)
    lost = np.isfinite(ticks) & ~np.isfinite(found)
    assert lost.any() == (depth < 1000)


def test_a_full_queue_loses_spikes_and_says_so():
    chip = SimulatedChip.profile("ideal", scale=None, queue=10)
    found, events = layer_times(chip, np.full((1, 100), 9.0), at(1e-3))
    # 64 and 36 neurons fire at once; of both groups, 1 + 10 leave.
    ticks = np.round(found[0, :, 0] / TICK)
    for group in (ticks[:64], ticks[64:]):
        np.testing.assert_array_equal(group[:11], group[0] + np.arange(11))
        assert np.isinf(group[11:]).all()
    np.testing.assert_array_equal(events["lost"], [100 - 22])
    assert events["lost"].dtype == jnp.int32


# Errors that belong to a chip.


def threshold(times, weight, t0):
    """What a neuron's voltage was at its spike, by the textbook."""
    return weight * oracles.psp(10e-3, 5e-3, times - t0)


def has_spread(sample, spread, mean=0.0):
    n = len(sample)
    assert abs(np.mean(sample) - mean) < 5 * spread / math.sqrt(n)
    assert abs(np.std(sample) - spread) < 5 * spread / math.sqrt(2 * n)


@pytest.mark.usefixtures("x64")
def test_fixed_errors_have_the_stated_sizes():
    n, t0, w = 500, 1e-3, 9.0
    kernel, inputs = np.full((1, n), w), at(t0)

    def first(**changes):
        return layer_times(fine(**changes), kernel, inputs)[0][0, :, 0]

    times = first(threshold_spread=0.05, threshold_mean=1.1)
    has_spread(threshold(times, w, t0), 1.1 * 0.05, 1.1)
    times = first(trial_threshold=0.02)
    has_spread(threshold(times, w, t0), 0.02, 1.0)
    times = first(gain_spread=0.1)
    has_spread(1 / threshold(times, w, t0), 0.1, 1.0)
    times = first(leak_spread=0.04)
    has_spread(1 - threshold(times, w, t0), 0.04)

    def fits(tau_mem, tau_syn):
        """The factor of a time constant with which the spike is where it is."""
        low, high = np.full(n, 0.5), np.full(n, 2.0)
        for _ in range(60):
            middle = np.sqrt(low * high)
            at_spike = [
                w * oracles.psp(10e-3 * m**tau_mem, 5e-3 * m**tau_syn, t - t0)
                for m, t in zip(middle, times, strict=True)
            ]
            # A slower membrane charges less, a slower synapse more.
            more = (np.array(at_spike) < 1) == (tau_syn > 0)
            low, high = np.where(more, middle, low), np.where(more, high, middle)
        return np.log(low)

    times = first(tau_mem_spread=0.05)
    has_spread(fits(1, 0), 0.05)
    times = first(tau_syn_spread=0.04)
    has_spread(fits(0, 1), 0.04)

    found, _ = layer_times(fine(reset_spread=0.03), kernel, inputs, max_spikes=2)
    one, two = np.moveaxis(found[0], -1, 0)
    current = w * np.exp(-(one - t0) / 5e-3)
    gained = current * oracles.psp(10e-3, 5e-3, two - one)
    has_spread((1 - gained) * np.exp((two - one) / 10e-3), 0.03)


@pytest.mark.usefixtures("x64")
def test_excitation_and_inhibition_have_gains_of_their_own():
    n, t0 = 500, 1e-3
    chip = fine(gain_spread=0.1)

    def total(first, second):
        kernel = np.array([[first], [second]]) * np.ones((2, n))
        times = layer_times(chip, kernel, at(t0, t0))[0][0, :, 0]
        return 1 / oracles.psp(10e-3, 5e-3, times - t0)

    both, alone = total(9.0, 9.0), total(9.0, 0.0)
    second = both / 9 - alone / 9  # Gains.
    first = alone / 9
    has_spread(first, 0.1, 1.0)
    has_spread(second, 0.1, 1.0)
    inhibited = (total(40.0, -9.0) - 40 * first) / -9
    has_spread(inhibited, 0.1, 1.0)
    pairs = [(first, second), (second, inhibited)]
    for a, b in pairs:  # Correlations of 500 pairs are within 5 / sqrt(500) of 0.
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(n)


def test_what_belongs_to_a_chip_depends_on_its_seed_and_on_nothing_else(problem):
    variables, inputs = problem
    chip = SimulatedChip(**QUIET)
    kernel = variables["params"]["hidden"]["kernel"]
    expected, _ = layer_times(chip, kernel, inputs)
    again, _ = layer_times(chip, kernel, inputs, 1)
    np.testing.assert_array_equal(again, expected)
    # Another batch, more sources that are silent.
    fewer = Spikes(inputs.time[:2], inputs.index[:2], 6)
    found, _ = layer_times(chip, jnp.pad(kernel, ((0, 2), (0, 0))), fewer)
    np.testing.assert_array_equal(found, expected[:2])
    # A layer behind it.
    _, state = applied(network(chip), variables, inputs, mutable=["intermediates"])
    hidden = state["intermediates"]["hidden"]["spikes"][0].times(1)
    np.testing.assert_array_equal(hidden, expected)
    other, _ = layer_times(SimulatedChip(**QUIET, chip_seed=1), kernel, inputs)
    assert (other != expected).mean() > 0.5


# Errors that belong to a run.


def test_a_key_changes_the_noise_of_the_run_only():
    kernel, inputs = np.full((1, 400), 9.0), at(1e-3)
    chip = fine(threshold_spread=0.05, trial_threshold=0.01)
    runs = [layer_times(chip, kernel, inputs, key)[0][0, :, 0] for key in (0, 1, 0)]
    np.testing.assert_array_equal(runs[0], runs[2])
    first, second = (threshold(run, 9.0, 1e-3) for run in runs[:2])
    # What both runs have in common is the chip's.
    has_spread(np.log(first / second), 0.01 * math.sqrt(2))
    assert np.corrcoef(first, second)[0, 1] > 0.9
    # One run is one batch: its samples have the same thresholds.
    batch, _ = layer_times(chip, kernel, at(1e-3, batch=3), 0)
    np.testing.assert_array_equal(batch[1], batch[0])


def test_jitter_has_the_stated_size_and_comes_from_the_seed():
    kernel, inputs = np.full((1, 400), 9.0), at(1e-3, batch=20)
    exact, _ = layer_times(None, kernel, inputs)

    def run(chip, key=None):
        return layer_times(chip, kernel, inputs, key)[0]

    chip = fine(jitter=1e-6)
    has_spread(((run(chip) - exact) * 1e-3).ravel(), 1e-6)  # Seconds on the chip.
    np.testing.assert_array_equal(run(chip), run(chip))
    assert (run(chip) != run(fine(jitter=1e-6, seed=1))).any()
    assert (run(chip, 0) != run(chip, 1)).any()


def test_jittered_spikes_are_what_the_next_layer_receives(problem, exact):
    variables, inputs = problem
    model = network(fine(jitter=1e-6))
    _, state = applied(model, variables, inputs, mutable=["intermediates"])
    hidden = state["intermediates"]["hidden"]["spikes"][0]
    params = {"params": variables["params"]["output"]}
    expected = applied(LIF(3), params, hidden).first()
    found = state["intermediates"]["output"]["spikes"][0].first()
    both = np.isfinite(found) & np.isfinite(expected)
    assert both.sum() > 10
    off = (np.asarray(found) - np.asarray(expected))[both] * 1e-3
    assert np.std(off) < 1e-6 * (1 + 5 / math.sqrt(2 * both.sum()))
    assert (np.abs(expected - exact.first())[both] > 1e-7).mean() > 0.5


def test_lost_spikes_are_counted_and_act_on_nobody():
    n, batch, p = 400, 10, 0.1
    kernel, inputs = np.full((1, n), 9.0), at(1e-3, batch=batch)
    found, events = layer_times(fine(loss=p), kernel, inputs)
    lost = np.asarray(events["lost"])
    np.testing.assert_array_equal(np.isinf(found).sum(axis=(1, 2)), lost)
    total = n * batch
    assert abs(lost.sum() - p * total) < 5 * math.sqrt(total * p * (1 - p))
    lossy = SimulatedChip.profile("lossy", scale=None, loss=0.999999)
    layers = Network([LIF(3, name="a"), LIF(2, name="b")], backend=lossy)
    params = {"a": {"kernel": jnp.full((1, 3), 9.0)}}
    params["b"] = {"kernel": jnp.full((3, 2), 9.0)}
    out, state = applied(layers, {"params": params}, inputs, mutable=["events"])
    assert out.count().sum() == 0
    np.testing.assert_array_equal(state["events"]["a"]["lost"], np.full(batch, 3))
    np.testing.assert_array_equal(state["events"]["b"]["lost"], np.zeros(batch))


def test_the_window_is_cut_on_the_chips_clock():
    kernel, inputs = np.full((1, 1), 9.0), at(0.0)
    exact = layer_times(None, kernel, inputs)[0].item()
    params = {"params": {"kernel": jnp.asarray(kernel)}}
    tick = exact / 10.7 * 1e-3  # The spike's time stamp is 11.
    late = fine(latency=0.1e-6)
    coarse = SimulatedChip.profile("ideal", scale=None, tick=tick)
    for chip, cases in (
        (late, ((exact + 0.05e-3, 0), (exact + 0.15e-3, 1))),
        (coarse, ((10.9 * tick * 1e3, 0), (11.1 * tick * 1e3, 1))),
    ):
        layer = LIF(1, backend=chip)
        run = jax.jit(lambda t, m=layer: m.apply(params, inputs, t).count().sum())
        for until, seen in cases:
            assert run(until) == seen


def test_spikes_beyond_those_that_are_read_act_and_are_counted():
    kernel = {"hidden": jnp.full((1, 2), 12.0), "output": jnp.full((2, 1), 1.2)}
    params = {"params": {name: {"kernel": w} for name, w in kernel.items()}}
    inputs = at(1e-3)

    def run(chip, spikes):
        layers = [
            LIF(2, name="hidden", max_spikes=spikes),
            LIF(1, name="output", max_spikes=1),
        ]
        model = Network(layers, backend=chip)
        return applied(model, params, inputs, mutable=["events", "intermediates"])

    exact, state = run(None, 4)
    fired = int(state["intermediates"]["hidden"]["spikes"][0].count().sum())
    assert fired > 2
    assert exact.count().sum() == 1
    assert run(None, 1)[0].count().sum() == 0
    found, state = run(fine(extra_spikes=3), 1)
    np.testing.assert_allclose(found.time, exact.time, rtol=1e-4)
    assert state["intermediates"]["hidden"]["spikes"][0].count().sum() == 2
    np.testing.assert_array_equal(state["events"]["hidden"]["extra"], [fired - 2])


# Voltages.


def test_samples_are_the_voltage_within_a_step(problem):
    _, inputs = problem
    init = LIF(1).kernel_init
    layers = [
        LIF(20, name="hidden"),
        LI(2, name="output", v_leak=0.2, kernel_init=init),
    ]
    chip = SimulatedChip.profile("ideal", scale=None, cadc=2e-6, cadc_noise=0.0)
    model = Network(layers, backend=chip)
    variables = model.init(jax.random.key(0), inputs, UNTIL)
    trace, state = applied(model, variables, inputs, mutable=["intermediates"])
    np.testing.assert_allclose(trace.samples.time, np.arange(20) * 2e-3, atol=1e-9)
    hidden = state["intermediates"]["hidden"]["spikes"][0]
    own = trace.kernel  # The integers' values.
    expected = Trace(model.layers[1].neuron, own, hidden).voltage(trace.samples.time)
    expected = np.clip(expected, 0.2 - 80 / 70, 0.2 + 175 / 70)  # Of 8 bits.
    found = np.asarray(trace.samples.voltage)
    assert np.abs(expected - 0.2).max() > 0.3
    # Half a step is rounding; the clock of the events is worth less than the rest.
    np.testing.assert_allclose(found, expected, atol=1 / 70)
    steps = (found - 0.2) * 70
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)

    # The latency that is known is taken off their times.
    late = chip.profile("ideal", scale=None, cadc=2e-6, cadc_noise=0.0, latency=0.4e-6)
    model = Network(layers, backend=late)
    samples = applied(model, variables, inputs).samples
    np.testing.assert_allclose(
        samples.time, np.maximum(np.arange(20) * 2e-3 - 0.8e-3, 0), atol=1e-8
    )
    expected = np.clip(trace.voltage(samples.time), 0.2 - 80 / 70, 0.2 + 175 / 70)
    np.testing.assert_allclose(samples.voltage, expected, atol=1.2 / 70)


def test_samples_have_noise_and_end_where_the_converter_does():
    kernel = jnp.array([[0.0] * 500 + [40.0, -40.0]])
    chip = SimulatedChip.profile(
        "ideal", scale=None, cadc=4e-6, cadc_noise=3.0, cadc_rest=100.0, leak_spread=0.1
    )
    network = Network([LI(502, name="output")], backend=chip)
    params = {"params": {"output": {"kernel": kernel}}}
    found = np.asarray(applied(network, params, at(1e-3)).samples.voltage)[0]
    noise = found[:500] * 70
    # Rounding adds the variance of a uniform step.
    within, own = noise.std(axis=1, ddof=1), noise.mean(axis=1)
    has = math.sqrt(np.mean(within**2))
    assert abs(has - math.sqrt(9 + 1 / 12)) < 5 * 3 / math.sqrt(2 * 500 * 9)
    has_spread(own, math.sqrt(49 + (9 + 1 / 12) / 10))
    assert found.max() * 70 == pytest.approx(155)
    assert found.min() * 70 == pytest.approx(-100)


def test_samples_are_off_by_default_and_need_an_end(problem):
    _, inputs = problem
    layers = [LIF(20, name="hidden"), LI(2, name="output")]
    assert not SimulatedChip().samples
    software = Network(layers, backend=SimulatedChip(scale=None))
    variables = software.init(jax.random.key(0), inputs, UNTIL)
    assert applied(software, variables, inputs).samples is None
    sampled = Network(layers, backend=SimulatedChip(cadc=1.7e-6, scale=None))
    with pytest.raises(ValueError, match="until is inf; to sample"):
        sampled.init(jax.random.key(0), inputs)
    with pytest.raises(ValueError, match=r"to sample .* as a number"):
        jax.jit(sampled.apply)(variables, inputs, UNTIL)


# Gradients.


def test_gradients_on_chip_are_straight_through(problem):
    variables, inputs = problem
    chip = SimulatedChip.profile("ideal", scale=20.0, tick=1e-15)
    grads = jax.jit(jax.grad(lambda v: loss(network(chip), v, inputs)))(variables)
    # Those of the exact network with the weights that the chip really has.
    there = jax.tree.map(lambda w: jnp.clip(jnp.round(20 * w), -63, 63) / 20, variables)
    expected = jax.jit(jax.grad(lambda v: loss(network(), v, inputs)))(there)
    for name in ("hidden", "output"):
        a, b = (g["params"][name]["kernel"] for g in (grads, expected))
        np.testing.assert_allclose(a, b, atol=2e-2 * float(jnp.abs(b).max()))
        assert jnp.abs(a).max() > 0


def test_gradients_are_finite_with_all_errors(problem):
    variables, inputs = problem
    chip = SimulatedChip.profile("uncalibrated", scale=None, loss=0.02, queue=1)
    model = network(chip, max_spikes=2)
    grads = jax.jit(jax.grad(lambda v: loss(model, v, inputs)))(variables)
    for grad in jax.tree.leaves(grads):
        assert jnp.isfinite(grad).all()
        assert jnp.abs(grad).max() > 0


# Names, checks, messages.


def test_profiles_have_names():
    assert SimulatedChip.profile("calibrated") == SimulatedChip()
    for name in PROFILES:
        assert SimulatedChip.profile(name, seed=3).seed == 3
    with pytest.raises(ValueError, match="profile 'idael', expected one of") as caught:
        SimulatedChip.profile("idael")
    for name in ("ideal", "calibrated", "delgrad", "uncalibrated", "lossy"):
        assert repr(name) in str(caught.value)


@pytest.mark.parametrize(
    "attributes",
    [
        {"tick": 0.0},
        {"scale": -1.0},
        {"jitter": -1e-9},
        {"w_max": 0},
        {"loss": 1.0},
        {"cadc": 1e-6},
        {"cadc_rest": 256.0},
        {"queue": -1},
        {"gain_spread": float("nan")},
        {"time_scale": None},
        {"chip_seed": -1},
    ],
)
def test_bad_chips_are_refused(attributes):
    (name,) = attributes
    with pytest.raises(ValueError, match=f"SimulatedChip.{name} is"):
        SimulatedChip(**attributes)


def test_weights_beyond_the_largest_are_warned_of(problem):
    _, inputs = problem
    layer = LIF(2, kernel_init=lambda *_: jnp.full((4, 2), 2.1), name="loud")
    message = r"100% of the weights to layer 'loud' are cut to 1\.11, .* most 30, or"
    with pytest.warns(UserWarning, match=message):
        layer.clone(backend=SimulatedChip()).init(jax.random.key(0), inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for scale in (30.0, None):
            chip = SimulatedChip(scale=scale)
            layer.clone(backend=chip).init(jax.random.key(0), inputs)


def test_delays_other_than_the_latency_are_refused(problem):
    _, inputs = problem
    chip = SimulatedChip(scale=None)
    for delay, fits in ((0.16e-3, True), (1e-3, False)):
        layer = LIF(2, recurrent=True, recurrent_delay=delay, backend=chip, name="loop")
        if fits:
            layer.init(jax.random.key(0), inputs)
            continue
        with pytest.raises(ValueError, match=r"'loop' has delays of up to 1 us .* 160"):
            layer.init(jax.random.key(0), inputs)


CONNECTIONS = [Connection("input", "hidden"), Connection("hidden", "hidden")]


@pytest.mark.parametrize(
    ("delay", "message"),
    [
        (constant(1e-3), "learned delays"),
        (Bounded(0.0, 5e-3), "learned delays"),
        (np.full((4, 1), 1e-3), "delays of up to 1 us"),
        (1e-3, "delays of up to 1 us"),
    ],
)
@pytest.mark.parametrize("where", ["synapses", "recurrent", "axons", "graph"])
def test_delays_are_refused_in_a_compiled_init_as_well(problem, where, delay, message):
    _, inputs = problem
    chip, output = SimulatedChip(), LIF(4, name="output")
    axons = delay[:, 0] if isinstance(delay, np.ndarray) else delay
    loop = {"recurrent": True, "recurrent_delay": delay}
    connections = [dataclasses.replace(c, delay=delay) for c in CONNECTIONS]
    model = {
        "synapses": Network([LIF(4, delay=delay), output], backend=chip),
        "recurrent": Network([LIF(4, **loop), output], backend=chip),
        "axons": Network([LIF(4), Delay(axons), output], backend=chip),
        "graph": Graph({"hidden": Population(4)}, connections, "hidden", backend=chip),
    }[where]
    with pytest.raises(ValueError, match=message):
        jax.jit(model.init)(jax.random.key(0), inputs, UNTIL)
