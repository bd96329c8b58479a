"""Recurrent layers: both ways to run them, both gradients, and their public face.

Spike times are compared with a dense scan in NumPy that knows nothing of the package,
and with algebra; gradients with algebra and with central differences of those times.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import recurrent_trains

import jaxsnn.recurrent
from jaxsnn import Spikes
from jaxsnn.analytic import analytic
from jaxsnn.dynamics import Neuron
from jaxsnn.eventprop import eventprop
from jaxsnn.layers import LIF, Bounded, PerSource, PerTarget
from jaxsnn.record import Recurrent
from jaxsnn.recurrent import simulate_recurrent

METHODS = [eventprop, analytic]
N_IN, N, BATCH, SPIKES, UNTIL = 5, 6, 2, 5, 35e-3
RNG = np.random.default_rng(1)
TIME = RNG.uniform(1e-3, 20e-3, (BATCH, N_IN))
KERNEL = RNG.normal(3.0, 3.0, (N_IN, N))
LATERAL = RNG.normal(0.0, 1.5, (N, N))  # With connections to oneself.
KERNEL[:, 5] = -1.0
LATERAL[:, 5] -= 4.0  # One neuron is silent.
# Two populations, of 2 and of 4 neurons, each of which excites the other only.
OTHER = np.arange(N) < 2
LOOP = np.where(OTHER[:, None] != OTHER, np.abs(LATERAL), 0.0)
DELAYS = {
    "zero": np.zeros(()),
    "scalar": np.array(1.3e-3),
    "source": RNG.uniform(0.5e-3, 3e-3, (N, 1)),
    "target": RNG.uniform(0.5e-3, 3e-3, (1, N)),
    "pair": RNG.uniform(0.5e-3, 3e-3, (N, N)),
}
LEARNED = {  # One of each neuron; such a layer solves spike times by iteration.
    "tau_mem": RNG.uniform(8e-3, 12e-3, N),
    "tau_syn": RNG.uniform(3e-3, 6e-3, N),
    "v_th": RNG.uniform(0.9, 1.1, N),
    "v_leak": RNG.uniform(-0.1, 0.1, N),
    "v_reset": RNG.uniform(-0.3, 0.3, N),
}


def scan(neuron, kernel, time, lateral, delay, max_spikes=SPIKES):
    """Spike times of one sample, [neurons, max_spikes]."""
    return recurrent_trains(neuron, kernel, time, lateral, delay, UNTIL, max_spikes)


@functools.partial(jax.jit, static_argnames=("by", "max_spikes"))
def run(
    neuron, kernel, time, lateral, delay, until=UNTIL, by="event", max_spikes=SPIKES
):
    """Spike times, [batch, neurons, max_spikes], of inputs that spike once."""
    inputs = Spikes.from_times(time[..., None])
    recurrent = Recurrent(lateral, delay)
    return simulate_recurrent(
        neuron, kernel, inputs, recurrent, max_spikes=max_spikes, until=until, by=by
    ).times


def weighted(times):
    """A smooth loss in which every spike has its own weight."""
    spiked = jnp.isfinite(times)
    weight = 1 + jnp.arange(times.size, dtype=times.dtype).reshape(times.shape) % 7
    safe = jnp.where(spiked, times, 0)
    return jnp.sum(jnp.where(spiked, weight * jnp.sin(200 * safe), 0))


def assert_same_spikes(found, expected, rtol=1e-11):
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
    np.testing.assert_allclose(found, expected, rtol=rtol)


# Spike times.


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("ratio", "kind", "v_leak", "v_reset", "lateral"),
    [
        (0.7, "pair", 0.0, 0.0, LATERAL),
        (0.7, "source", 0.0, 0.0, LATERAL),
        (1.0, "pair", 0.0, 0.2, LATERAL),
        (1.0, "source", 0.0, 0.2, LATERAL),
        (2.0, "zero", 0.0, 0.0, LATERAL),
        (2.0, "scalar", 0.0, 0.0, LATERAL),
        (2.0, "source", 0.0, 0.0, LATERAL),
        (2.0, "target", 0.0, 0.0, LATERAL),
        (2.0, "pair", 0.0, 0.0, LOOP),
        (2.0, "zero", 0.0, 0.0, LOOP),
        (2.0, "scalar", 1.3, -0.4, LATERAL),
        (4.0, "pair", 0.1, 0.5, LATERAL),
        (4.0, "source", 0.1, 0.5, LATERAL),
    ],
)
def test_spike_times_match_a_dense_scan(ratio, kind, v_leak, v_reset, lateral):
    neuron = Neuron(10e-3, 10e-3 / ratio, 1.0, v_leak, v_reset)
    delay = DELAYS[kind]
    expected = [scan(neuron, KERNEL, t, lateral, delay) for t in TIME]
    counts = np.isfinite(expected).sum(-1)
    assert counts.max() >= 3
    assert counts.sum() > 20  # A silent layer would prove nothing.
    arguments = neuron, *map(jnp.array, (KERNEL, TIME, lateral, delay))
    ways = ["event"] + ["window"] * (kind in ("scalar", "source"))
    for by in ways:
        assert_same_spikes(run(*arguments, by=by), expected)
    alone = run(*arguments[:3], 0 * arguments[3], arguments[4])
    assert not np.allclose(alone, expected, rtol=1e-2)  # The connections matter.


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("room", [1, 3])
def test_windows_are_cut_where_more_arrives_than_they_hold(room, monkeypatch):
    monkeypatch.setattr(jaxsnn.recurrent, "ARRIVALS_PER_WINDOW", room)
    time = TIME.copy()
    time[0] = 5e-3  # All at once, more than a window holds.
    arguments = KERNEL, jnp.array(time), LATERAL
    neuron, delay = Neuron(), jnp.array(6e-3)  # Sources spike more than once in it.
    expected = [scan(neuron, KERNEL, t, LATERAL, 6e-3) for t in time]
    # By itself, not to meet what was compiled with the true number.
    found = jax.jit(
        lambda: (
            simulate_recurrent.__wrapped__(
                neuron,
                jnp.array(KERNEL),
                Spikes.from_times(arguments[1][..., None]),
                Recurrent(jnp.array(LATERAL), delay),
                max_spikes=SPIKES,
                until=UNTIL,
                by="window",
            ).times
        )
    )()
    gaps = np.diff(np.where(np.isfinite(expected), expected, np.nan), axis=-1)
    assert np.nanmin(gaps) < 6e-3
    assert_same_spikes(found, expected)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("by", ["event", "window"])
def test_spikes_before_the_end_do_not_depend_on_it(by):
    arguments = Neuron(), *map(jnp.array, (KERNEL, TIME, LATERAL, DELAYS["source"]))
    whole = run(*arguments, until=jnp.inf, by=by)
    end = 14e-3
    found = run(*arguments, until=end, by=by)
    assert 5 < jnp.isfinite(found).sum() < jnp.isfinite(whole).sum()
    assert_same_spikes(found, jnp.where(whole < end, whole, jnp.inf))
    assert jnp.isinf(run(*arguments, until=0.0, by=by)).all()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("by", ["event", "window"])
def test_symmetries(by):
    neuron, kind = Neuron(), "source"
    given = [jnp.array(x) for x in (KERNEL, TIME, LATERAL, DELAYS[kind])]
    kernel, time, lateral, delay = given
    times = run(neuron, *given, by=by)
    # The neurons have no order.
    p = np.random.default_rng(0).permutation(N)
    found = run(neuron, kernel[:, p], time, lateral[p][:, p], delay[p], by=by)
    assert_same_spikes(found, times[:, p])
    # Nor have the samples, which know nothing of each other.
    found = run(neuron, kernel, time[::-1].at[0].set(1e-3), lateral, delay, by=by)
    assert_same_spikes(found[1], times[0])
    # The clock may start anywhere.
    found = run(neuron, kernel, time + 7e-3, lateral, delay, until=UNTIL + 7e-3, by=by)
    assert_same_spikes(found, times + 7e-3)
    # A unit of voltage is a name.
    found = run(Neuron(v_th=3.0), 3 * kernel, time, 3 * lateral, delay, by=by)
    assert_same_spikes(found, times)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("by", ["event", "window"])
def test_vmap_is_a_loop(by):
    given = [jnp.array(x) for x in (KERNEL, TIME, LATERAL, DELAYS["source"])]

    def one(strength, delay):
        return run(Neuron(), *given[:2], strength * given[2], delay, by=by)

    strengths, delays = jnp.array([0.5, 1.0]), jnp.stack([given[3], 2 * given[3]])
    both = jax.vmap(one)(strengths, delays)
    for k in range(2):
        assert_same_spikes(both[k], one(strengths[k], delays[k]))
    assert not np.array_equal(both[0], both[1])


@pytest.mark.parametrize("by", ["event", "window"])
def test_float32_rounds_and_does_no_more(by):
    neuron, delay = Neuron(), DELAYS["source"]
    given = [jnp.array(x, jnp.float32) for x in (KERNEL, TIME, LATERAL, delay)]
    found = run(neuron, *given, by=by)
    assert found.dtype == jnp.float32
    expected = [scan(neuron, KERNEL, t, LATERAL, delay) for t in TIME]
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("by", ["event", "window"])
def test_float32_stays_what_it_is_where_there_is_float64(by):
    given = [jnp.array(x, jnp.float32) for x in (KERNEL, TIME, LATERAL)]
    found = run(Neuron(), *given, jnp.full((N, 1), 1.3e-3, jnp.float32), by=by)
    assert found.dtype == jnp.float32
    expected = [scan(Neuron(), KERNEL, t, LATERAL, 1.3e-3) for t in TIME]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


# Algebra: a chain in which each neuron wakes the next. With tau_mem = 2 tau_syn a
# weight w lifts the voltage to w (x - x^2), x = exp(-t / tau_mem), which meets 1 at
# x = (1 + sqrt(1 - 4 / w)) / 2; see test_lif.py.


def latency(w):
    """Time from an arrival to the spike, and its derivative by the weight."""
    x = (1 + np.sqrt(1 - 4 / w)) / 2
    return -10e-3 * np.log(x), -10e-3 / (w**2 * x * (2 * x - 1))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("gradient", METHODS)
@pytest.mark.parametrize("by", ["event", "window"])
def test_a_chain_is_what_algebra_says(by, gradient):
    neurons, begin, into, on, delay = 7, 2e-3, 6.0, 5.0, 1.5e-3
    layer = LIF(
        neurons,
        recurrent=True,
        recurrent_delay=delay,
        recurrent_by=by,
        gradient=gradient,
        param_dtype=jnp.float64,
    )
    chain = jnp.eye(neurons, k=1)

    def times(into, on, begin):
        params = {
            "kernel": jnp.zeros((1, neurons)).at[0, 0].set(into),
            "recurrent_kernel": on * chain,
        }
        inputs = Spikes.from_times(begin.reshape(1, 1, 1))
        return layer.apply({"params": params}, inputs).first()[0]

    point = jnp.array(into), jnp.array(on), jnp.array(begin)
    found, by_all = jax.jit(lambda p: (times(*p), jax.jacrev(lambda p: times(*p))(p)))(
        point
    )
    k = np.arange(neurons)
    expected = begin + latency(into)[0] + k * (delay + latency(on)[0])
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    slopes = latency(into)[1] + 0 * k, k * latency(on)[1], 1 + 0 * k
    for one, other in zip(by_all, slopes, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-15)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", ["zero", "scalar"])
def test_neurons_that_spike_together_all_do(kind):
    # All are the same, so each hears of all, itself included: one neuron by itself.
    delay = DELAYS[kind]
    kernel, lateral = np.full((1, N), 7.0), np.full((N, N), 0.4)
    one = scan(
        Neuron(), kernel[:, :1], [2e-3], np.array([[0.4 * N]]), delay, max_spikes=3
    )
    assert np.isfinite(one).all()
    arguments = kernel, np.array([[2e-3]]), lateral, delay
    for by in ["event"] + ["window"] * (kind == "scalar"):
        found = run(Neuron(), *map(jnp.array, arguments), by=by, max_spikes=3)
        # (In the order of their numbers, an earlier one's spike comes first; at delay
        # 0 a spike that is only rounding later has heard of it, which is no change.)
        np.testing.assert_allclose(found[0], np.repeat(one, N, 0), rtol=1e-11)


# Gradients.


CASES = {
    "pairs": ("pair", "event", LATERAL, Neuron(10e-3, 10e-3)),
    "targets, bursts": ("target", "event", LATERAL, Neuron(v_reset=0.6)),
    "loop of two": ("zero", "event", LOOP, Neuron()),
    "windows, learned": ("source", "window", LATERAL, LEARNED),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", CASES)
def test_gradients_match_each_other_and_differences(case):
    kind, by, lateral, neuron = CASES[case]
    learned = neuron is LEARNED
    point = {
        "kernel": KERNEL,
        "time": TIME,
        "lateral": lateral,
        "delay": DELAYS[kind],
        **(LEARNED if learned else {}),
    }
    point = jax.tree.map(jnp.array, point)

    def loss(p, gradient):
        own = Neuron(**{k: p[k] for k in LEARNED}) if learned else neuron
        inputs = Spikes.from_times(p["time"][..., None])
        recurrent = Recurrent(p["lateral"], p["delay"])
        fixed = jax.lax.stop_gradient((own, p["kernel"], inputs, recurrent))
        record = simulate_recurrent(*fixed, max_spikes=SPIKES, until=UNTIL, by=by)
        times = gradient(own, p["kernel"], inputs, None, record, recurrent)
        return weighted(times), times

    one, other = (
        jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)(point, m)
        for m in METHODS
    )
    counts = np.isfinite(one[0][1]).sum(-1)
    assert (counts.min() == 0) == (lateral is LATERAL)
    assert counts.max() >= 3
    value = jax.jit(lambda p: loss(p, eventprop)[0])
    rng = np.random.default_rng(0)
    for name, x in point.items():
        a, b = one[1][name], other[1][name]
        np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-9 * np.abs(a).max())
        if name == "delay" and kind == "zero":
            continue  # Not to be made less.
        way = rng.normal(size=x.shape) * np.abs(x).mean()
        h = 1e-6

        def along(h, name=name, x=x, way=way):
            return value({**point, name: x + h * way})

        slope = 8 * (along(h) - along(-h)) - (along(2 * h) - along(-2 * h))
        expected = np.sum(a * way)
        assert abs(expected) > 1e-6
        np.testing.assert_allclose(slope / (12 * h), expected, rtol=1e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("gradient", METHODS)
def test_later_inputs_make_later_spikes(gradient):
    # Shifting all inputs shifts all outputs, so the derivatives by input times add up
    # to the number of output times; recurrent spikes must take part for that.
    layer = LIF(
        N,
        max_spikes=SPIKES,
        recurrent=True,
        recurrent_delay=1e-3,
        gradient=gradient,
        param_dtype=jnp.float64,
    )
    params = {"kernel": jnp.array(KERNEL), "recurrent_kernel": jnp.array(LATERAL)}

    def total(time):
        times = layer.apply({"params": params}, Spikes.from_times(time[..., None]))
        times = times.times(SPIKES)
        spiked = jnp.isfinite(times)
        return jnp.sum(jnp.where(spiked, times, 0), axis=(1, 2)), spiked.sum((1, 2))

    pulled, spikes = jax.jit(
        lambda time: (jax.grad(lambda t: total(t)[0].sum())(time), total(time)[1])
    )(jnp.array(TIME))
    assert (spikes > 5).all()
    np.testing.assert_allclose(pulled.sum(axis=1), spikes, rtol=1e-10)


@pytest.mark.parametrize("gradient", METHODS)
def test_a_cascade_ends_and_the_counts_tell(gradient):
    # Each spike wakes all neurons at once: what ends it is the number allowed.
    layer = LIF(N, max_spikes=4, recurrent=True, gradient=gradient)
    inputs = Spikes.from_times(jnp.array([[[1e-3]], [[jnp.inf]]]))
    kernel = jnp.zeros((1, N)).at[0, 0].set(50.0)
    variables = {
        "params": {"kernel": kernel, "recurrent_kernel": jnp.full((N, N), 99.0)}
    }

    @jax.jit
    def run(params):
        out, state = layer.apply({"params": params}, inputs, mutable=["events"])
        times = out.times(4)
        return jnp.sum(jnp.where(times < jnp.inf, times, 0)), (state["events"], times)

    grads, (events, times) = jax.grad(run, has_aux=True)(variables["params"])
    np.testing.assert_array_equal(events["count"], [[4] * N, [0] * N])
    np.testing.assert_array_equal(events["at_limit"], [N, 0])
    np.testing.assert_array_equal(events["dropped"], [0, 0])
    assert (times[0] < 2e-3).all()
    assert jnp.isinf(times[1]).all()  # The other sample did nothing meanwhile.
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("gradient", METHODS)
def test_silent_layers_have_a_gradient_of_zero(gradient):
    layer = LIF(
        3, max_spikes=2, recurrent=True, recurrent_delay=1e-3, gradient=gradient
    )
    inputs = Spikes.from_times(jnp.array([[[1e-3], [jnp.inf]]]))
    params = {"kernel": jnp.ones((2, 3)), "recurrent_kernel": jnp.ones((3, 3))}

    def loss(params):
        times = layer.apply({"params": params}, inputs).times(2)
        return jnp.sum(jnp.minimum(times, 1.0))

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    assert value == 6
    for grad in jax.tree.leaves(grads):
        np.testing.assert_array_equal(grad, 0)


# The layer.


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("form", ["by source", "events"])
def test_inputs_arrive_later_at_each_neuron_of_a_recurrent_layer(form):
    late = np.random.default_rng(2).uniform(0, 5e-3, (N_IN, N))
    layer = LIF(
        N,
        max_spikes=SPIKES,
        delay=late,
        recurrent=True,
        recurrent_delay=1.3e-3,
        param_dtype=jnp.float64,
    )
    params = {"kernel": jnp.array(KERNEL), "recurrent_kernel": jnp.array(LATERAL)}
    inputs = Spikes.from_times(jnp.array(TIME)[..., None])
    if form == "events":
        empty = jnp.full((BATCH, 1), jnp.inf), jnp.full((BATCH, 1), -1)
        events = zip((inputs.time, inputs.index), empty, strict=True)
        inputs = Spikes.from_events(*map(jnp.hstack, events), N_IN)
    found = layer.apply({"params": params}, inputs, UNTIL).times(SPIKES)
    for b in range(BATCH):
        # Source (j, n) spikes when the spike of j arrives at n, and acts on n alone.
        arrival = (TIME[b][:, None] + late).ravel()
        wide = (KERNEL[:, :, None] * np.eye(N)).reshape(-1, N)
        expected = scan(Neuron(), wide, arrival, LATERAL, DELAYS["scalar"])
        np.testing.assert_allclose(found[b], expected, rtol=1e-9)


def test_init_makes_both_kernels_and_auto_is_one_of_the_ways():
    inputs = Spikes.from_times(jnp.array(TIME, jnp.float32)[..., None])
    shared = {"max_spikes": 3, "recurrent": True, "recurrent_delay": 1e-3}
    variables = LIF(N, **shared).init(jax.random.key(0), inputs)
    shapes = jax.tree.map(jnp.shape, variables["params"])
    assert shapes == {"kernel": (N_IN, N), "recurrent_kernel": (N, N)}
    out = [
        LIF(N, **shared, recurrent_by=by).apply(variables, inputs, UNTIL)
        for by in ("auto", "event", "window")
    ]
    assert out[0].count().sum() > N
    np.testing.assert_array_equal(out[0].index, out[1].index)
    np.testing.assert_array_equal(out[0].index, out[2].index)
    np.testing.assert_allclose(out[1].time, out[2].time, rtol=1e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", ["source", "target"])
def test_learned_delays_of_sources_and_targets_are_those_of_pairs_that_are_equal(kind):
    per, axis = (PerSource, 1) if kind == "source" else (PerTarget, 0)
    inputs = Spikes.from_times(jnp.array(TIME)[..., None])
    shared = {"max_spikes": 3, "recurrent": True, "param_dtype": jnp.float64}

    def first(_, shape, dtype):
        return jnp.broadcast_to(jnp.asarray(DELAYS[kind], dtype), shape)

    def grads(params, **attributes):
        layer = LIF(N, **shared, **attributes)

        def loss(params):
            out = layer.apply({"params": params}, inputs, UNTIL)
            return weighted(out.time), out.time

        (_, times), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        return times, grads

    layer = LIF(N, **shared, recurrent_delay=per(first))
    params = layer.init(jax.random.key(0), inputs)["params"]
    params |= {"kernel": jnp.array(KERNEL), "recurrent_kernel": jnp.array(LATERAL)}
    logarithm = params["log_recurrent_delay"]
    np.testing.assert_allclose(jnp.exp(logarithm), DELAYS[kind])
    times, one = grads(params, recurrent_delay=per(first))
    pairs = params | {"log_recurrent_delay": jnp.broadcast_to(logarithm, (N, N))}
    expected, each = grads(pairs, recurrent_delay=first)
    np.testing.assert_array_equal(times, expected)
    total = each["log_recurrent_delay"].sum(axis, keepdims=True)
    assert np.abs(total).max() > 0
    np.testing.assert_allclose(one["log_recurrent_delay"], total, rtol=1e-9)
    if kind == "source":
        windows, same = grads(params, recurrent_delay=per(first), recurrent_by="window")
        np.testing.assert_allclose(windows, times, rtol=1e-11)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-7), same, one)


def test_what_is_learned_of_synapses_is_nothing_else():
    inputs = Spikes.from_times(jnp.zeros((1, 2, 1)))
    with pytest.raises(ValueError, match="it is no property of synapses"):
        LIF(2, tau_mem=PerSource(lambda *_: 10e-3)).init(jax.random.key(0), inputs)
    with pytest.raises(ValueError, match=r"takes an initializer.*shape \[1, targets\]"):
        PerTarget(1e-3)
    with pytest.raises(ValueError, match="but the layer is not recurrent"):
        LIF(2, recurrent_delay=1e-3)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"recurrent_delay": -1e-3}, r"recurrent_delay is -0\.001.*0 or more"),
        ({"recurrent_delay": np.array([[1e-3], [np.nan]])}, "recurrent_delay is"),
        ({"recurrent_by": "window"}, r"recurrent_delay is 0\.0;.*positive"),
        (
            {"recurrent_by": "window", "recurrent_delay": np.full((1, 2), 1e-3)},
            "do not depend on the target",
        ),
        (
            {"recurrent_by": "window", "recurrent_delay": np.full((2, 2), 1e-3)},
            "recurrent_by='event'",
        ),
        (
            {"recurrent_by": "window", "recurrent_delay": np.array([[1e-3], [0.0]])},
            "positive delays",
        ),
        (
            {
                "recurrent_by": "window",
                "recurrent_delay": PerSource(Bounded(0.0, 1e-3)),
            },
            "positive delays",
        ),
        ({"recurrent_by": "windows"}, "recurrent_by is 'windows'"),
        ({"recurrent_init": 3.0}, r"recurrent_init is 3\.0"),
    ],
)
def test_bad_attributes_are_refused(attributes, message):
    with pytest.raises(ValueError, match=message):
        LIF(2, recurrent=True, **attributes)


def test_what_a_recurrent_layer_cannot_do_is_refused():
    inputs = Spikes.from_times(jnp.zeros((1, 1, 1)))
    params = {"kernel": jnp.ones((1, 2)), "recurrent_kernel": jnp.ones((2, 2))}
    layer = LIF(2, recurrent=True, name="loop")
    _, state = layer.apply({"params": params}, inputs, 5e-3, mutable=["events"])
    assert "v" not in state["events"]  # Nothing that invites to continue.
    with pytest.raises(ValueError, match=r"'loop' has recurrent .* starts every run"):
        layer.apply({"params": params, **state}, inputs)
    wrong = LIF(2, recurrent=True, recurrent_delay=np.full((3, 1), 1e-3))
    with pytest.raises(ValueError, match="recurrent_delay"):
        wrong.apply({"params": params}, inputs)
