"""Silent neurons: initial weights, the report, and the cures.

Expected values are sums of the textbook's response on dense grids in NumPy,
differences, and what the weights were chosen to be; a neuron that is silent for a known
reason is built, not found.
"""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from oracles import psp

from jaxsnn import Spikes, why_silent
from jaxsnn.backend import Observation
from jaxsnn.cures import bump_silent, pseudo_times, threshold_gap
from jaxsnn.dynamics import Neuron
from jaxsnn.hardware import SimulatedChip
from jaxsnn.layers import LIF, Connection, Graph, Network, Population
from jaxsnn.layers.initializers import first_spike_normal, fluctuation_normal
from jaxsnn.losses import silence_bump

RATIOS = [1.0, 2.0, 4.0]
TAU_MEM, V_TH, V_LEAK = 12e-3, 0.9, -0.2


def random_problem(seed, n_in=6, n_out=8, batch=4):
    """Weights of both signs with which some neurons fire, and input times."""
    rng = np.random.default_rng(seed)
    kernel = rng.normal(0.9, 2.0, (n_in, n_out))
    return kernel, rng.uniform(1e-3, 30e-3, (batch, n_in))


def neuron_of(ratio):
    return Neuron(TAU_MEM, TAU_MEM / ratio, V_TH, V_LEAK, V_LEAK)


def highest(kernel, time, ratio, until):
    """Maxima of the voltage without a threshold, and their times, on a dense grid."""
    # Voltages turn at events too, and the end counts as the limit that it is.
    grid = np.sort(np.concatenate([np.linspace(0, until, 40_001), time.ravel()]))
    grid = grid[grid <= until]
    since = grid - time[:, :, None]
    response = psp(TAU_MEM, TAU_MEM / ratio, np.maximum(since, 0))
    voltage = V_LEAK + np.einsum("bjt,jn->bnt", response, kernel)
    return voltage.max(-1), grid[voltage.argmax(-1)]


def differences(function, x, step=1e-7):
    """Central differences of a scalar, entry by entry."""
    grads = np.zeros(x.shape)
    for place in np.ndindex(x.shape):
        shift = np.zeros(x.shape)
        shift[place] = step
        grads[place] = (function(x + shift) - function(x - shift)) / (2 * step)
    return grads


@functools.partial(jax.jit, static_argnames="ratio")
def gap_and_first(kernel, time, ratio, until, pull):
    """Gaps, the gradients of their weighted sum, and first spikes of the layer."""
    neuron = neuron_of(ratio)

    def scalar(kernel, time):
        inputs = Spikes.from_times(time[..., None])
        gap = threshold_gap(neuron, kernel, inputs, until)
        return jnp.sum(pull * gap), gap

    grads, gap = jax.grad(scalar, argnums=(0, 1), has_aux=True)(kernel, time)
    layer = LIF(kernel.shape[1], *(TAU_MEM, TAU_MEM / ratio, V_TH, V_LEAK, V_LEAK))
    inputs = Spikes.from_times(time[..., None])
    spikes = layer.apply({"params": {"kernel": kernel}}, inputs, until)
    return gap, grads, spikes.first()


# The gap to the threshold.


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("until", [12e-3, 100e-3])
def test_the_gap_is_that_of_a_dense_grid_and_is_positive_if_and_only_if_silent(
    ratio, until
):
    kernel, time = random_problem(0)
    gap, _, first = gap_and_first(kernel, time, ratio, until, np.ones((4, 8)))
    expected = (V_TH - highest(kernel, time, ratio, until)[0]) / (V_TH - V_LEAK)
    np.testing.assert_allclose(gap, np.maximum(expected, 0), atol=1e-6)
    silent = np.isinf(first)
    np.testing.assert_array_equal(gap > 0, silent)
    assert 0 < silent.sum() < silent.size
    assert gap.max() <= 1


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("ratio", RATIOS)
def test_gradients_of_the_gap_are_those_of_differences(ratio):
    kernel, time = random_problem(1)
    pull = np.random.default_rng(2).normal(size=(4, 8))
    ask = functools.partial(gap_and_first, ratio=ratio, until=100e-3, pull=pull)
    _, grads, _ = ask(kernel, time)
    scale = np.abs(grads[0]).max()
    assert scale > 0.1
    by_kernel = differences(lambda x: np.sum(pull * ask(x, time)[0]), kernel)
    np.testing.assert_allclose(grads[0], by_kernel, atol=1e-6 * scale)
    by_time = differences(lambda x: np.sum(pull * ask(kernel, x)[0]), time, 1e-9)
    scale = np.abs(grads[1]).max()
    np.testing.assert_allclose(grads[1], by_time, atol=1e-6 * scale)


def test_a_neuron_that_never_rises_has_a_gap_of_one_and_no_gradient():
    kernel = jnp.array([[0.0, -3.0]])
    for times in (jnp.array([[1e-3]]), jnp.array([[jnp.inf]])):
        gap, grads, _ = gap_and_first(kernel, times, 2.0, 0.1, jnp.ones((1, 2)))
        np.testing.assert_array_equal(gap, [[1.0, 1.0]])
        assert jnp.isfinite(grads[0]).all()
        assert jnp.isfinite(grads[1]).all()
        np.testing.assert_array_equal(grads[0][0, 1], 0)


@pytest.mark.usefixtures("x64")
def test_descending_the_gap_makes_a_silent_neuron_fire_and_then_stops():
    kernel, time = jnp.full((6, 8), 0.1), random_problem(3)[1]
    for _ in range(200):
        gap, (grad, _), first = gap_and_first(kernel, time, 2.0, 1.0, jnp.ones((4, 8)))
        kernel = kernel - 2 * grad
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(gap, 0)
    np.testing.assert_array_equal(grad, 0)


@pytest.mark.usefixtures("x64")
def test_gradients_of_the_gap_by_the_neurons_own_parameters():
    kernel, time = random_problem(1)
    inputs = Spikes.from_times(jnp.asarray(time)[..., None])

    @jax.jit
    def total(parameters):
        neuron = Neuron(*parameters, parameters[-1] - 0.5)
        return threshold_gap(neuron, jnp.asarray(kernel), inputs).sum()

    at = np.outer([12e-3, 5e-3, 0.9, -0.2], np.linspace(0.9, 1.1, 8))
    grads = jax.jit(jax.grad(total))(jnp.asarray(at))
    for row, grad in enumerate(grads):

        def along(x, row=row):
            parameters = at.copy()
            parameters[row] = x
            return total(jnp.asarray(parameters))

        expected = differences(along, at[row], 1e-6 * np.abs(at[row]).max())
        np.testing.assert_allclose(grad, expected, atol=1e-6 * np.abs(expected).max())


# Pseudo-spikes.


@functools.partial(jax.jit, static_argnames=("tau", "t_silent"))
def pseudo(kernel, time, tau, t_silent, pull):
    """Times of a layer with pseudo-spikes, and gradients of their weighted sum."""

    def scalar(kernel, time):
        inputs = Spikes.from_times(time[..., None])
        layer = LIF(kernel.shape[1], *(TAU_MEM, TAU_MEM / 2, V_TH, V_LEAK, V_LEAK))
        first = layer.apply({"params": {"kernel": kernel}}, inputs).first()
        times = pseudo_times(
            first, neuron_of(2.0), kernel, inputs, tau=tau, t_silent=t_silent
        )
        heard = jnp.isfinite(times)
        total = jnp.sum(jnp.where(heard, pull * jnp.where(heard, times, 0), 0))
        return total, (times, first)

    grads, (times, first) = jax.grad(scalar, (0, 1), has_aux=True)(kernel, time)
    return times, first, grads


@pytest.mark.usefixtures("x64")
def test_pseudo_spikes_come_where_they_are_promised_and_spikes_stay():
    kernel, time = random_problem(4)
    kernel[:, 0] = -1.0  # Never rises.
    top, peak = highest(kernel, time, 2.0, 0.2)
    gap = (V_TH - top) / (V_TH - V_LEAK)
    ones = np.ones(top.shape)
    late, first, _ = pseudo(kernel, time, 8e-3, 50e-3, ones)
    silent = np.isinf(first)
    assert 0 < silent[:, 1:].sum() < silent[:, 1:].size
    np.testing.assert_array_equal(late[~silent], first[~silent])
    assert np.isinf(late[:, 0]).all()
    silent[:, 0] = False
    np.testing.assert_allclose(late[silent], 50e-3 + 8e-3 * gap[silent], atol=1e-8)
    assert (late[silent] <= 58e-3).all()
    at_peak, *_ = pseudo(kernel, time, 8e-3, None, ones)
    # A dense grid does not know a flat top's time better than this.
    expected = peak[silent] + 8e-3 * gap[silent]
    np.testing.assert_allclose(at_peak[silent], expected, atol=1e-5)


@pytest.mark.usefixtures("x64")
def test_late_pseudo_spikes_have_the_gradient_of_their_value():
    kernel, time = random_problem(5)
    pull = np.random.default_rng(6).normal(size=(4, 8))
    ask = functools.partial(pseudo, tau=8e-3, t_silent=50e-3)
    times, first, _ = ask(kernel, time, pull=pull)
    pull = np.where(np.isinf(first) & np.isfinite(times), pull, 0)
    grads = ask(kernel, time, pull=pull)[2]

    def total(kernel, time):
        times = ask(kernel, time, pull=pull)[0]
        return np.sum(np.where(pull != 0, pull * times, 0))

    for place, (x, step) in enumerate([(kernel, 1e-6), (time, 1e-8)]):
        args = [kernel, time]

        def at(x, args=args, place=place):
            return total(*args[:place], x, *args[place + 1 :])

        expected = differences(at, x, step)
        atol = 1e-6 * np.abs(expected).max()
        np.testing.assert_allclose(grads[place], expected, atol=atol)


@pytest.mark.usefixtures("x64")
def test_pseudo_spikes_at_the_peak_have_the_gradient_of_the_documented_slope():
    # One neuron: V - v_leak = sum w k, the gradient is -k(t* - t_j) tau / height.
    kernel, time = np.array([[1.5], [1.0]]), np.array([[2e-3, 5e-3]])
    _, first, (grad, _) = pseudo(kernel, time, 8e-3, None, np.ones((1, 1)))
    assert np.isinf(first).all()
    peak = highest(kernel, time, 2.0, 0.2)[1][0, 0]
    expected = -psp(TAU_MEM, TAU_MEM / 2, peak - time[0]) * 8e-3 / (V_TH - V_LEAK)
    np.testing.assert_allclose(grad[:, 0], expected, rtol=1e-3)


@pytest.mark.usefixtures("x64")
def test_pseudo_spikes_at_the_peak_are_continuous_where_a_spike_appears():
    # Alone, k peaks at 1/4 after tau_mem log 2.
    touching = 4 * (V_TH - V_LEAK)
    kernel = touching * np.array([[1 - 1e-9, 1 + 1e-9]])
    times, first, _ = pseudo(kernel, np.array([[1e-3]]), 8e-3, None, np.ones((1, 2)))
    np.testing.assert_array_equal(np.isfinite(first), [[False, True]])
    np.testing.assert_allclose(times, 1e-3 + TAU_MEM * np.log(2), rtol=1e-4)


# The step of the optimizer.


def two_layers():
    return {
        "hidden": {"kernel": jnp.zeros((2, 3))},
        "output": {"kernel": jnp.ones((3, 2))},
    }


def test_a_bump_follows_the_optimizer_and_lifts_the_silent_alone():
    params = two_layers()
    grads = jax.tree.map(jnp.ones_like, params)
    counts = {"hidden": jnp.array([[0, 0, 1], [0, 1, 1], [0, 0, 4]])}
    tx = optax.chain(optax.sgd(0.5), bump_silent(0.25, fraction=2 / 3))
    update = jax.jit(tx.update)
    updates, _ = update(grads, tx.init(params), params, counts=counts)
    expected = np.array([[-0.25, -0.5, -0.5]] * 2)  # 2 of 3 are no more than 2/3.
    np.testing.assert_array_equal(updates["hidden"]["kernel"], expected)
    np.testing.assert_array_equal(updates["output"]["kernel"], np.full((3, 2), -0.5))
    tx = bump_silent(0.25)
    updates, _ = tx.update(grads, tx.init(params), params, counts=counts)
    expected = np.array([[1.25, 1.25, 1.0]] * 2)
    np.testing.assert_array_equal(updates["hidden"]["kernel"], expected)


def test_a_bump_points_where_the_loss_does():
    counts = jnp.array([[0, 0, 1], [0, 1, 1]])
    grad = jax.grad(silence_bump)(jnp.ones((2, 3)), counts)
    tx = bump_silent(1.0)
    params = {"hidden": {"kernel": jnp.zeros((2, 3))}}
    updates, _ = tx.update(params, tx.init(params), counts={"hidden": counts})
    np.testing.assert_array_equal(updates["hidden"]["kernel"], -np.sign(grad))


def test_layers_inside_of_modules_and_whole_variables_are_found_by_name():
    params = {"params": {"encoder": two_layers()}}
    tx = bump_silent(1.0)
    counts = {"encoder/output": jnp.array([[[0, 1]]])}  # Any batch axes.
    updates, _ = tx.update(params, tx.init(params), counts=counts)
    inner = updates["params"]["encoder"]
    np.testing.assert_array_equal(inner["output"]["kernel"], [[2, 1]] * 3)
    np.testing.assert_array_equal(inner["hidden"]["kernel"], np.zeros((2, 3)))


def test_bumps_alone_make_a_silent_network_fire():
    inputs = Spikes.from_times(
        jnp.asarray(random_problem(7)[1], jnp.float32)[..., None]
    )
    small = nn.initializers.constant(0.05)
    model = Network([LIF(n, kernel_init=small, name=name) for n, name in
                     ((8, "hidden"), (2, "output"))])  # fmt: skip
    params = model.init(jax.random.key(0), inputs)["params"]
    tx = bump_silent(0.2)

    @jax.jit
    def step(params):
        _, state = model.apply({"params": params}, inputs, mutable=["events"])
        counts = {name: layer["count"] for name, layer in state["events"].items()}
        zeros = jax.tree.map(jnp.zeros_like, params)
        updates, _ = tx.update(zeros, tx.init(params), params, counts=counts)
        return optax.apply_updates(params, updates), counts

    _, counts = step(params)
    assert sum(count.sum() for count in counts.values()) == 0
    for _ in range(60):
        params, counts = step(params)
    assert all((count > 0).all() for count in counts.values())
    after, _ = step(params)
    jax.tree.map(np.testing.assert_array_equal, after, params)


# The report. Six inputs at 1 ms; at ratio 2, k peaks at 1/4 after 10 ms log 2.


def reasons_of(kernel, time=1e-3, until=np.inf, **attributes):
    kernel = jnp.asarray(kernel, jnp.float32)
    inputs = Spikes.from_times(jnp.full((2, kernel.shape[0], 1), time))
    layer = LIF(kernel.shape[1], **attributes)
    report = why_silent(layer, {"params": {"kernel": kernel}}, inputs, until=until)
    return report["LIF"]


def test_every_reason_is_told_from_the_others():
    kernel = np.zeros((3, 6))
    kernel[:, 0] = [8.0, 0.0, 0.0]  # Fires.
    kernel[:, 1] = [2.0, 0.5, 0.0]  # Too weak: reaches 2.5 / 4.
    kernel[:, 2] = [8.0, -6.0, 0.0]  # Inhibited: reaches 2 / 4, could 8 / 4.
    kernel[:, 3] = [-1.0, 0.0, -1.0]  # Inhibited alone.
    kernel[:, 4] = [2.0, 5.0, -4.0]  # Inhibited: 3 / 4.
    kernel[:, 5] = [1.0, -0.5, 1.0]  # Too weak, with some inhibition: 1.5 / 4.
    layer = reasons_of(kernel)
    expected = ("", "weak", "inhibited", "inhibited", "inhibited", "weak")
    assert layer.reasons == expected
    np.testing.assert_allclose(layer.reach, [2, 0.625, 0.5, 0, 0.75, 0.375], rtol=1e-6)
    assert layer.silent == pytest.approx(5 / 6)
    assert layer.saturated == pytest.approx(1 / 6)
    assert (layer.samples, layer.inputs) == (2, 3.0)
    text = str(layer)
    assert "5 of 6 neurons never fire" in text
    assert "2 (weak)" in text
    assert "3 (inhibited)" in text
    assert "times 1.8" in text  # The median of 1.6, 2, 4/3 and 8/3.
    assert "times 2.67" in text


def test_windows_slots_devices_and_missing_input():
    fires = np.array([[8.0, 8.0, 8.0]])
    assert reasons_of(fires, until=1.5e-3).reasons == ("window",) * 3
    assert reasons_of(fires, time=5e-3, until=2e-3).reasons == ("window",) * 3
    assert reasons_of(fires, time=np.inf).reasons == ("no input",) * 3
    assert reasons_of(fires / 8, time=5e-3, until=2e-3).reasons == ("no input",) * 3
    assert reasons_of(fires, slots=1).reasons == ("", "no slot", "no slot")

    def deaf(populations, inputs, until, key):
        times = jnp.full((2, 3, 1), jnp.inf)
        return [Observation(times, (fires,))]

    assert reasons_of(fires, backend=deaf).reasons == ("device",) * 3


@pytest.mark.parametrize("delay", [None, 2e-3, ((2e-3, 2e-3), (2e-3, 2e-3))])
def test_neurons_hear_their_own_layer_and_what_is_delayed(delay):
    # A weight w takes a neuron to w / 4. The first one alone would fire, at once.
    layer = LIF(2, recurrent=True, recurrent_delay=1e-3, delay=delay)
    inputs = Spikes.from_times(jnp.array([[[0.0], [5e-3]]]))

    def second(own, across, until=50e-3):
        params = {
            "kernel": jnp.array([[9.0, 0.0], [0.0, own]]),
            "recurrent_kernel": jnp.array([[0.0, across], [0.0, 0.0]]),
        }
        report = why_silent(layer, {"params": params}, inputs, until=until)["LIF"]
        assert report.reasons[0] == ""
        assert report.inputs == (until > 5e-3) + 1
        return report.reasons[1], report.reach[1]

    assert second(0.0, 2.0) == ("weak", pytest.approx(0.5, rel=1e-6))
    assert second(6.0, -30.0) == ("inhibited", 0)
    assert second(6.0, 0.0, until=4.5e-3)[0] == "window"


def test_delays_may_be_longer_than_the_window():
    # By input 0 in a run of its own, for delays that the target has a part in.
    late = np.array([[0.0, 60e-3]])
    layer = reasons_of(np.array([[8.0, 8.0]]), until=50e-3, delay=late)
    assert layer.reasons == ("", "window")


def test_populations_of_a_loop_hear_each_other():
    # As above, "a" fires and "b" has but what it is given.
    graph = Graph(
        {"b": Population(2), "a": Population(1)},
        [
            Connection("a", "b", delay=((1e-3, 1e-3),)),
            Connection("b", "a", delay=1e-3),
            Connection("input", "a"),
            Connection("input", "b", delay=2e-3),
        ],
        outputs="b",
    )
    inputs = Spikes.from_times(jnp.array([[[0.0], [5e-3]]]))

    def of_b(own, across, until=50e-3):
        params = {
            "input_to_a": jnp.array([[9.0], [0.0]]),
            "input_to_b": jnp.array([[0.0, 0.0], [own, 2.0]]),
            "a_to_b": jnp.array([[across, 0.0]]),
            "b_to_a": jnp.zeros((2, 1)),
        }
        report = why_silent(graph, {"params": params}, inputs, until=until)
        assert [layer.name for layer in report.layers] == ["b", "a"]
        assert report["a"].reasons == ("",)
        assert report["a"].inputs == (until > 5e-3) + 1  # And none of "b".
        assert report["b"].inputs == (until > 5e-3) + 2
        assert report["b"].reach[1] == pytest.approx(0.5 * (until > 8e-3), rel=1e-6)
        return report["b"].reasons[0], report["b"].reach[0]

    assert of_b(0.0, 2.0) == ("weak", pytest.approx(0.5, rel=1e-6))
    assert of_b(6.0, -30.0) == ("inhibited", 0)
    assert of_b(6.0, 0.0, until=6.5e-3)[0] == "window"


@pytest.mark.usefixtures("x64")
def test_a_population_is_as_silent_as_the_layer_that_it_is():
    kernel, time = random_problem(9, n_in=5, n_out=7)
    kernel, inputs = (
        jnp.asarray(kernel),
        Spikes.from_times(jnp.asarray(time)[..., None]),
    )
    back = jnp.asarray(np.random.default_rng(9).normal(-0.2, 1.5, (7, 7)))
    late = np.random.default_rng(8).uniform(1e-3, 4e-3, (7, 7))
    own = {"v_leak": V_LEAK, "t_ref": 2e-3, "max_spikes": 2}
    layer = LIF(7, recurrent=True, recurrent_delay=late, **own)
    params = {"kernel": kernel, "recurrent_kernel": back}
    expected = why_silent(layer, {"params": params}, inputs, until=40e-3)["LIF"]

    class Model(nn.Module):
        @nn.compact
        def __call__(self, spikes, until):
            populations = {"next": Population(3), "a": Population(7, **own)}
            connections = [
                Connection("a", "next", delay=np.full((7, 1), 1e-3)),
                Connection("input", "a"),
                Connection("a", "a", delay=late),
            ]
            body = Graph(populations, connections, "next", name="body")
            found = body(spikes, until)
            assert found.size == 3  # Also while it is looked at.
            return found

    params = {"input_to_a": kernel, "a_to_a": back, "a_to_next": jnp.full((7, 3), 0.1)}
    params = {"params": {"body": params}}
    report = why_silent(Model(), params, inputs, until=40e-3)
    found, after = report.layers
    assert (found.name, after.name) == ("body/a", "body/next")
    assert after.reasons == ("weak",) * 3
    assert 0 < found.never.sum() < 7
    assert found.reasons == expected.reasons
    np.testing.assert_allclose(found.reach, expected.reach, rtol=1e-12)
    for name in ("samples", "inputs", "silent", "saturated"):
        assert getattr(found, name) == getattr(expected, name)


def test_neurons_hear_also_what_found_no_slot():
    # The second neuron's spike has none, and alone would make the third one fire.
    layer = LIF(3, recurrent=True, recurrent_delay=1e-3, slots=1)
    kernel = jnp.array([[9.0, 8.0, 0.0]])
    back = jnp.zeros((3, 3)).at[1, 2].set(2.0)
    inputs = Spikes.from_times(jnp.array([[[1e-3]]]))
    params = {"kernel": kernel, "recurrent_kernel": back}
    report = why_silent(layer, {"params": params}, inputs)["LIF"]
    assert report.reasons == ("", "no slot", "weak")
    assert report.reach[2] == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("ratio", RATIOS)
def test_the_factor_is_exactly_what_takes_a_neuron_to_its_threshold(x64, ratio):
    kernel, time = random_problem(8)
    kernel = 0.4 * kernel
    inputs = Spikes.from_times(jnp.asarray(time)[..., None])
    layer = LIF(8, TAU_MEM, TAU_MEM / ratio, V_TH, V_LEAK, V_LEAK)
    report = why_silent(layer, {"params": {"kernel": jnp.asarray(kernel)}}, inputs)
    factor = report["LIF"].factor
    assert report["LIF"].never.any()
    assert np.isfinite(factor).all()
    run = jax.jit(lambda k: layer.apply({"params": {"kernel": k}}, inputs).count())
    for slightly, fires in ((1 - 1e-6, False), (1 + 1e-6, True)):
        count = run(jnp.asarray(kernel * factor * slightly))
        np.testing.assert_array_equal((count > 0).any(axis=0), fires)


class Nested(nn.Module):
    loudness: float

    @nn.compact
    def __call__(self, spikes, until=jnp.inf):
        for name in ("second", "third"):
            init = nn.initializers.constant(self.loudness)
            spikes = LIF(3, kernel_init=init, name=name)(spikes, until)
        return spikes


def test_a_silent_layer_is_named_as_the_reason_of_the_next():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, spikes, until=jnp.inf):
            init = nn.initializers.constant(9.0)
            first = LIF(3, kernel_init=init, name="first")(spikes, until)
            return Nested(0.1, name="rest")(first, until)

    inputs = Spikes.from_times(jnp.full((2, 3, 1), 1e-3))
    variables = Model().init(jax.random.key(0), inputs)
    report = why_silent(Model(), variables, inputs)
    names = ["first", "rest/second", "rest/third"]
    assert [layer.name for layer in report.layers] == names
    found = [set(layer.reasons) for layer in report.layers]
    assert found == [{""}, {"weak"}, {"no input"}]
    text = str(report)
    assert "first: every neuron fires" in text
    for line in text.splitlines()[:4]:
        assert line.split()[0] in ("layer", *names)


def test_layers_on_a_device_are_judged_by_the_model():
    inputs = Spikes.from_times(jnp.full((2, 1, 1), 1e-3))
    loud = nn.initializers.constant(9.0)
    chip = SimulatedChip.profile("ideal", scale=None)
    model = Network([LIF(3, kernel_init=loud, name="hidden")], backend=chip)
    variables = model.init(jax.random.key(0), inputs)
    rngs = {"hardware": jax.random.key(1)}
    assert set(why_silent(model, variables, inputs, rngs=rngs)["hidden"].reasons) == {
        ""
    }


# Initial weights.


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0, 5.0])
def test_integrals_of_the_response_are_those_of_campbells_theorem(ratio):
    tau_syn = 5e-3
    tau_mem = ratio * tau_syn
    time = np.linspace(0, 50 * max(tau_mem, tau_syn), 400_001)
    response = psp(tau_mem, tau_syn, time)
    assert np.trapezoid(response, time) == pytest.approx(tau_syn, rel=1e-6)
    square = tau_syn**2 / (2 * (tau_mem + tau_syn))
    assert np.trapezoid(response**2, time) == pytest.approx(square, rel=1e-6)
    # From which the weights follow.
    n, rate, mean, xi = 400, 20.0, 0.3, 2.0
    neuron = Neuron(tau_mem, tau_syn, v_th=1.2, v_leak=0.1)
    init = fluctuation_normal(neuron, rate=rate, mean=mean, xi=xi)
    kernel = np.asarray(init(jax.random.key(0), (n, 1000)), np.float64)
    area, square = np.trapezoid(response, time), np.trapezoid(response**2, time)
    voltage = n * rate * kernel.mean() * area
    variance = n * rate * np.mean(kernel**2) * square
    assert voltage == pytest.approx(mean, rel=0.05)
    assert np.sqrt(variance) == pytest.approx((1.1 - mean) / xi, rel=0.01)


def test_poisson_inputs_make_the_voltage_fluctuate_as_promised():
    tau_mem, tau_syn, n, rate, mean, xi = 10e-3, 5e-3, 60, 30.0, 0.2, 1.5
    neuron = Neuron(tau_mem, tau_syn)
    init = fluctuation_normal(neuron, rate=rate, mean=mean, xi=xi)
    kernel = np.asarray(init(jax.random.key(1), (n, 400)))
    rng, dt, steps = np.random.default_rng(0), 0.25e-3, 8000
    events = rng.poisson(rate * dt, (steps, n)) @ kernel
    response = psp(tau_mem, tau_syn, dt * np.arange(400))  # 100 ms, then nothing.
    size = steps + 400
    spectrum = np.fft.rfft(response, size)[:, None] * np.fft.rfft(events, size, axis=0)
    voltage = np.fft.irfft(spectrum, size, axis=0)[400:steps]
    assert voltage.mean() == pytest.approx(mean, abs=0.1)  # 400 neurons differ.
    expected = rate * tau_syn * kernel.sum(axis=0).mean()
    assert voltage.mean() == pytest.approx(expected, abs=0.02)
    deviation = np.sqrt(voltage.var(axis=0).mean())
    assert deviation == pytest.approx((1 - mean) / xi, rel=0.05)


@pytest.mark.parametrize(
    ("n", "ratio", "fraction", "active", "spread", "until"),
    [
        (40, 2.0, 0.5, 1.0, 0.24, None),
        (20, 1.0, 0.8, 0.6, 0.24, None),
        (40, 2.0, 0.3, 1.0, 1.0, 9e-3),
    ],
)
def test_the_asked_fraction_fires(n, ratio, fraction, active, spread, until):
    tau_syn, t_late = 5e-3, 10e-3
    neuron = Neuron(ratio * tau_syn, tau_syn, v_th=1.3, v_leak=0.2)
    init = first_spike_normal(
        neuron, t_early=1e-3, t_late=t_late, until=until, fraction=fraction,
        active=active, spread=spread,
    )  # fmt: skip
    kernel = np.asarray(init(jax.random.key(2), (n, 500)))
    total = kernel.sum(axis=0)
    assert total.std() / total.mean() == pytest.approx(spread, rel=0.15)

    rng = np.random.default_rng(1)
    time = rng.uniform(1e-3, t_late, (100, n))
    time[rng.uniform(size=time.shape) > active] = 1.0
    grid = np.linspace(0, until or 50e-3, 200)
    since = grid - time[:, :, None]
    response = psp(ratio * tau_syn, tau_syn, np.maximum(since, 0))
    above = 0.2 + np.einsum("bjt,jn->tbn", response, kernel) > 1.3
    assert above.mean(axis=(1, 2)).max() == pytest.approx(fraction, abs=0.04)
    assert above.any(axis=0).mean() > fraction - 0.04


def test_parameters_per_neuron_are_taken_one_by_one():
    both = types.SimpleNamespace(
        tau_mem=10e-3,
        tau_syn=np.array([5e-3, 5e-3]),
        v_th=np.array([1.0, 3.0]),
        v_leak=0,
    )
    for init in (
        fluctuation_normal(both, rate=20.0),
        first_spike_normal(both, t_late=10e-3),
    ):
        kernel = init(jax.random.key(0), (500, 2))
        # Voltages are linear in the weights: thrice the threshold, thrice the weights.
        ratio = kernel[:, 1].std() / kernel[:, 0].std()
        assert ratio == pytest.approx(3, rel=0.15)


# Bad input.


class Deaf(nn.Module):
    def __call__(self, spikes):
        return spikes


def test_misuse_is_refused():
    inputs = Spikes.from_times(jnp.zeros((2, 1, 1)))
    layer, variables = LIF(2), {"params": {"kernel": jnp.ones((1, 2))}}
    kernel = variables["params"]["kernel"]
    firing = Neuron(v_leak=1.0)
    refused = functools.partial(pytest.raises, ValueError)
    with refused(match="fires without input"):
        threshold_gap(firing, kernel, inputs)
    with refused(match="fires without input"):
        why_silent(layer.clone(v_leak=1.5), variables, inputs)
    with refused(match="tau is 0"):
        pseudo_times(jnp.zeros((2, 2)), Neuron(), kernel, inputs, tau=0)
    with refused(match=r"times has shape \(2, 3\)"):
        pseudo_times(jnp.zeros((2, 3)), Neuron(), kernel, inputs, tau=1e-3)
    with refused(match="begin at rest"):
        why_silent(layer, variables | {"events": {"v": 0}}, inputs)
    with refused(match=r"ran no jaxsnn\.layers\.LIF or Graph"):
        why_silent(Deaf(), {}, inputs)
    with refused(match="needs samples and slots"):
        why_silent(
            layer, variables, Spikes(jnp.zeros((2, 0)), jnp.zeros((2, 0), int), 1)
        )
    with pytest.raises(TypeError, match=r"outside of jax\.jit"):
        jax.jit(lambda v: why_silent(layer, v, inputs))(variables)


def test_misuse_of_the_bump_is_refused():
    refused = functools.partial(pytest.raises, ValueError)
    for arguments, message in (
        ((-1.0,), "rate is -1.0"),
        ((1.0, 1.0), "fraction is 1"),
    ):
        with refused(match=message):
            bump_silent(
                arguments[0], **dict(zip(["fraction"], arguments[1:], strict=False))
            )
    params, tx = two_layers(), bump_silent(1.0)
    state = tx.init(params)
    with refused(match="needs the spikes of the step"):
        tx.update(params, state)
    with refused(match=r"names 'hiden'.*\['hidden', 'output'\]"):
        tx.update(params, state, counts={"hiden": jnp.zeros((1, 3))})
    with refused(match=r"\(1, 4\), expected \[\*batch, 3\]"):
        tx.update(params, state, counts={"hidden": jnp.zeros((1, 4))})


def test_misuse_of_initial_weights_is_refused():
    refused = functools.partial(pytest.raises, ValueError)
    for arguments, message in (
        ({"rate": 0.0}, "rate is 0.0"),
        ({"rate": 1.0, "xi": -1.0}, "xi is -1.0"),
        ({"rate": 1.0, "mean": 1.0}, "the mean must be"),
    ):
        with refused(match=message):
            fluctuation_normal(Neuron(), **arguments)
    crowded = fluctuation_normal(Neuron(), rate=10.0, mean=0.9, xi=3.0)
    # 400 of variance ratio: (0.9 * 3 / 0.1)^2 / (2 * 15e-3) spikes per second.
    with refused(match=r"100 spikes per second, too.*2\.43e\+04 at least"):
        crowded(jax.random.key(0), (10, 2))
    crowded(jax.random.key(0), (2431, 2))
    for arguments, message in (
        ({"t_late": 0.0}, "t_late is 0.0"),
        ({"t_late": 1e-2, "until": -1.0}, "until is -1.0"),
        ({"t_late": 1e-2, "fraction": 1.0}, "fraction is 1.0"),
        ({"t_late": 1e-2, "active": 0.0}, "active is 0.0"),
        ({"t_late": 1e-2, "spread": -1.0}, "spread is -1.0"),
    ):
        with refused(match=message):
            first_spike_normal(Neuron(), **arguments)
    wide = first_spike_normal(Neuron(), t_late=1e-2, spread=5.0, fraction=0.9)
    with refused(match="no total makes 90% of the neurons fire"):
        wide(jax.random.key(0), (10, 2))
