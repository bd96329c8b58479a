"""Neurons whose parameters are arrays, or learned.

Expected gradients are central differences of fourth order. Neurons of a layer do not
see each other, so that moving a parameter of all of them at once gives the derivative
for each by itself.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from oracles import spike_train

from jaxsnn import Spikes
from jaxsnn.analytic import analytic
from jaxsnn.dynamics import Neuron
from jaxsnn.eventprop import eventprop
from jaxsnn.layers import LI, LIF, Bounded

NAMES = ["tau_mem", "tau_syn", "v_th", "v_leak", "v_reset"]
UNTIL = 40e-3
SPIKES = 4
# One neuron for each: every ratio of time constants, 1 exactly and from both sides, all
# below and above their leak, some silent.
RATIO = np.array([0.5, 1.0, 1.0, 1 - 1e-9, 1 + 1e-6, 2.0, 4.0, 10.0, 1.0, 2.0, 2.0])
LEAKY, SILENT = [2, 6, 8], [9, 10]


def given(values):
    """An initializer that returns these values."""
    return lambda key, shape, dtype: jnp.broadcast_to(jnp.asarray(values, dtype), shape)


def random_problem(seed=0, n_in=6, batch=2):
    """Parameters of each neuron, a kernel and input times."""
    rng = np.random.default_rng(seed)
    n = len(RATIO)
    tau_mem = 10e-3 * rng.uniform(0.8, 1.2, n)
    neurons = {
        "tau_mem": tau_mem,
        "tau_syn": tau_mem / RATIO,
        "v_th": rng.uniform(0.9, 1.1, n),
        "v_leak": rng.uniform(-0.3, 0.3, n),
        "v_reset": rng.uniform(-0.3, 0.3, n),
    }
    neurons["v_leak"][LEAKY] = 1.3
    kernel = rng.normal(4.0, 3.0, (n_in, n))
    kernel[:, RATIO == 10] *= 2
    kernel[:, SILENT] = -1.0
    return neurons, kernel, rng.uniform(1e-3, 20e-3, (batch, n_in))


def bounded(name, values):
    """A range around the values, in which none of them is in the middle."""
    span = np.ptp(values) + 0.1 * np.abs(values).max()
    low = 1e-4 if "tau" in name else np.min(values) - 0.2 * span
    return Bounded(float(low), float(np.max(values) + 0.5 * span), init=given(values))


def attributes(neurons, form):
    """The parameters of the neurons, as attributes of a layer."""
    if form == "learned":
        return {k: given(v) for k, v in neurons.items()}
    if form == "learned below a threshold":
        free = {k: given(v) for k, v in neurons.items()}
        return free | {"v_th": tuple(neurons["v_th"])}
    shift = {"v_reset": neurons["v_reset"] - 1.0}  # So that the ranges are disjoint.
    return {k: bounded(k, v) for k, v in (neurons | shift).items()}


def differences(f, h):
    """Derivative of `f` at 0, by central differences of fourth order."""
    return (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)


def neurons_of(layer, params):
    return layer.bind({"params": params}).neuron


NAMES_OF = {
    "learned": ["log_tau_mem", "log_tau_syn", "log_v_th", "v_leak", "v_reset"],
    "learned below a threshold": [
        "log_tau_mem", "log_tau_syn", "log_v_reset", "v_leak",
    ],
    "bounded": [f"logit_{name}" for name in NAMES],
}  # fmt: skip


@pytest.mark.usefixtures("x64")
def test_gradients_are_those_of_differences():
    neurons, kernel, time = random_problem()
    layer = LIF(
        len(RATIO),
        **attributes(neurons, "learned"),
        max_spikes=SPIKES,
        kernel_init=given(kernel),
        param_dtype=jnp.float64,
    )
    inputs = Spikes.from_times(jnp.asarray(time)[..., None])
    params = layer.init(jax.random.key(0), inputs)["params"]

    def losses(params, time, gradient):
        """One for each neuron, in which every spike has a weight of its own."""
        inputs = Spikes.from_times(time[..., None])
        spikes = layer.clone(gradient=gradient).apply({"params": params}, inputs, UNTIL)
        times = spikes.times(SPIKES)
        weight = np.cos(np.arange(times.size)).reshape(times.shape)
        fired = jnp.isfinite(times)
        value = weight * jnp.sin(200 * jnp.where(fired, times, 0))
        return jnp.sum(jnp.where(fired, value, 0), axis=(0, 2)), jnp.sum(fired, -1)

    def grad(gradient):
        def total(params, time):
            each, number = losses(params, time, gradient)
            return jnp.sum(each), (each, number)

        return jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))

    run = grad(eventprop)
    found, (_, number) = run(params, time)
    assert (number[:, SILENT] == 0).all()
    assert (number.max(0)[:9] > 1).all()  # The coupling of own spikes matters.
    other = grad(analytic)(params, time)[0]
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(
            x, y, rtol=1e-9, atol=1e-9 * np.abs(y).max()
        ),
        found,
        other,
    )
    way = np.random.default_rng(1).normal(size=kernel.shape)
    for name, value in params.items():
        step = way if name == "kernel" else np.ones(value.shape)

        def along(h, name=name, value=value, step=step):
            return run({**params, name: value + h * step}, time)[1][0]

        expected = differences(along, 1e-5)
        each = step * found[0][name]
        each = each.sum(0) if name == "kernel" else each
        scale = 1e-6 * np.abs(expected).max()
        np.testing.assert_allclose(each, expected, rtol=1e-6, atol=scale, err_msg=name)
        np.testing.assert_array_equal(each[np.array(SILENT)], 0)
        assert (np.abs(each[:9]) > 0).any()
    way = np.random.default_rng(2).normal(size=time.shape)
    expected = differences(lambda h: run(params, time + h * way)[1][0].sum(), 1e-7)
    np.testing.assert_allclose(np.sum(way * found[1]), expected, rtol=1e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("form", NAMES_OF)
def test_neurons_start_as_asked_and_move_as_their_parameters_do(form):
    neurons = random_problem()[0]
    fields = attributes(neurons, form)
    if form == "bounded":
        neurons["v_reset"] = neurons["v_reset"] - 1.0
    layer = LIF(len(RATIO), **fields, param_dtype=jnp.float64)
    inputs = Spikes.from_times(jnp.ones((1, 2, 1)))
    params = layer.init(jax.random.key(0), inputs)["params"]
    assert set(params) == {"kernel", *NAMES_OF[form]}
    started = neurons_of(layer, params)
    for name, values in neurons.items():
        np.testing.assert_allclose(getattr(started, name), values, rtol=1e-12)

    def field(name, params):
        return getattr(neurons_of(layer, params), name)

    for name in NAMES:
        total = lambda p, name=name: jnp.sum(field(name, p))  # noqa: E731
        found = jax.grad(total)(params)
        for key, value in params.items():

            def along(h, name=name, key=key, value=value):
                return field(name, params | {key: value + h})

            if key != "kernel":
                expected = np.broadcast_to(differences(along, 1e-3), value.shape)
                np.testing.assert_allclose(found[key], expected, rtol=1e-8, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_each_neuron_spikes_as_the_oracle_with_its_parameters():
    neurons, kernel, time = random_problem(3, batch=1)
    layer = LIF(
        len(RATIO),
        **{k: tuple(v) for k, v in neurons.items()},
        max_spikes=SPIKES,
        param_dtype=jnp.float64,
    )
    inputs = Spikes.from_times(jnp.asarray(time)[..., None])
    variables = {"params": {"kernel": jnp.asarray(kernel)}}
    times = layer.apply(variables, inputs, UNTIL).times(SPIKES)[0]
    for n in range(len(RATIO)):
        one = Neuron(**{k: float(v[n]) for k, v in neurons.items()})
        expected = spike_train(one, kernel[:, n], time[0], range(6), UNTIL, SPIKES)
        found = times[n][jnp.isfinite(times[n])]
        np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("ratio", [0.7, 1.0, 2.0])
def test_equal_arrays_are_the_number_in_every_form(ratio):
    _, kernel, time = random_problem(4)
    numbers = Neuron(10e-3, 10e-3 / ratio, 1.1, 0.2, -0.3)
    inputs = Spikes.from_times(jnp.asarray(time)[..., None])

    def times(**parameters):
        layer = LIF(
            len(RATIO),
            **parameters,
            max_spikes=SPIKES,
            kernel_init=given(kernel),
            param_dtype=jnp.float64,
        )
        outputs, _ = layer.init_with_output(jax.random.key(0), inputs, UNTIL)
        return outputs.times(SPIKES)

    expected = times(**vars(numbers))
    assert jnp.isfinite(expected).any()
    shape = (len(RATIO),)
    for form in (
        lambda x: np.full(shape, x),
        lambda x: jnp.full(shape, x),
        lambda x: (x,) * len(RATIO),
        jnp.asarray,
        nn.initializers.constant,
    ):
        fields = {k: form(getattr(numbers, k)) for k in NAMES}
        np.testing.assert_allclose(times(**fields), expected, rtol=1e-11)
    if ratio != 2:
        return  # One of them alone, beside numbers, takes a program of its own.
    mixed = vars(numbers) | {"tau_syn": fields["tau_syn"]}
    np.testing.assert_allclose(times(**mixed), expected, rtol=1e-11)


LEARNED = {
    "tau_mem": nn.initializers.constant(10e-3),
    "tau_syn": nn.initializers.constant(5e-3),
    "v_th": nn.initializers.constant(1.0),
    "v_reset": nn.initializers.constant(-0.2),
}
IN_A_RANGE = {
    "tau_mem": Bounded(5e-3, 20e-3),
    "tau_syn": Bounded(1e-3, 10e-3),
    "v_th": Bounded(0.5, 1.5),
    "v_reset": Bounded(-0.5, 0.25),
}


@pytest.mark.parametrize("parameters", [LEARNED, IN_A_RANGE])
def test_no_step_of_an_optimizer_leaves_the_range(parameters):
    inputs = Spikes.from_times(jnp.array([[[1e-3], [4e-3]], [[2e-3], [jnp.inf]]]))
    layer = LIF(5, **parameters, max_spikes=3)
    params = layer.init(jax.random.key(0), inputs)["params"]

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        out = layer.apply({"params": params}, inputs, UNTIL).times(3)
        return jnp.sum(jnp.where(jnp.isfinite(out), out, 0))

    for step in (-1e4, -12.0, 12.0, 1e4):
        moved = {
            k: v if k == "kernel" else v + step * (-1) ** i
            for i, (k, v) in enumerate(sorted(params.items()))
        }
        neuron = neurons_of(layer, moved)
        assert (neuron.tau_mem > 0).all()
        assert (neuron.tau_syn > 0).all()
        assert (neuron.v_reset < neuron.v_th).all()
        for name, value in parameters.items():
            if isinstance(value, Bounded):
                found = getattr(neuron, name)
                np.testing.assert_array_equal(
                    found, jnp.clip(found, value.low, value.high)
                )
        for leaf in jax.tree.leaves(loss(moved)):
            assert not jnp.isnan(leaf).any()


def test_a_grid_has_the_values_that_it_has():
    inputs = Spikes.from_times(jnp.array([[[1e-3]]]))
    layer = LIF(40, v_th=Bounded(0.75, 2.0, step=0.25), v_leak=Bounded(-1.0, 0.0, 0.5))
    params = layer.init(jax.random.key(0), inputs)["params"]
    neuron = neurons_of(layer, params)
    assert set(neuron.v_th.tolist()) == {0.75, 1.0, 1.25, 1.5, 1.75, 2.0}
    assert set(neuron.v_leak.tolist()) == {-1.0, -0.5, 0.0}
    # Straight-through: as if nothing had been rounded.
    slope = jax.grad(lambda p: neurons_of(layer, params | p).v_th.sum())
    found = slope({"logit_v_th": params["logit_v_th"]})["logit_v_th"]
    s = 1 / (1 + np.exp(-np.asarray(params["logit_v_th"])))
    np.testing.assert_allclose(found, 1.25 * s * (1 - s), rtol=1e-5)


def test_first_values_are_those_asked_for():
    inputs = Spikes.from_times(jnp.array([[[1e-3]]]))

    def first(bounds):
        layer = LIF(200, v_leak=bounds)
        params = layer.init(jax.random.key(0), inputs)["params"]
        return neurons_of(layer, params).v_leak

    everywhere = first(Bounded(-2.0, 0.0))
    assert everywhere.min() < -1.9
    assert everywhere.max() > -0.1
    np.testing.assert_allclose(first(Bounded(-2.0, 0.0, init=-0.5)), -0.5, rtol=1e-6)
    draw = nn.initializers.uniform(0.25)
    drawn = first(Bounded(-2.0, 0.5, init=draw))
    assert drawn.min() >= 0
    assert drawn.max() <= 0.25
    # At the edge itself the gradient would be zero.
    np.testing.assert_allclose(first(Bounded(-2.0, 0.0, init=0.0)), -2e-3, rtol=1e-3)
    np.testing.assert_array_equal(first(Bounded(-2.0, 0.0, 0.5, init=0.0)), 0)


@pytest.mark.usefixtures("x64")
def test_a_batch_of_parameters():
    # vmap over parameters, as for an ensemble, under jit, is one after the other.
    neurons, kernel, time = random_problem(5)
    layer = LIF(
        len(RATIO),
        **attributes(neurons, "learned"),
        kernel_init=given(kernel),
        param_dtype=jnp.float64,
    )
    inputs = Spikes.from_times(jnp.asarray(time)[..., None])
    params = layer.init(jax.random.key(0), inputs)["params"]
    members = [jax.tree.map(lambda x, k=k: x + 0.02 * k, params) for k in range(3)]

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        first = layer.apply({"params": params}, inputs).first()
        return jnp.sum(jnp.where(jnp.isfinite(first), first, 0))

    together = jax.jit(jax.vmap(loss))(jax.tree.map(lambda *x: jnp.stack(x), *members))
    for k, member in enumerate(members):
        one = jax.tree.map(lambda x, k=k: x[k], together)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-13),
            one,
            loss(member),
        )


def test_they_are_in_the_table_of_a_model():
    inputs = Spikes.from_times(jnp.array([[[1e-3]]]))
    layer = LIF(3, tau_mem=LEARNED["tau_mem"], delay=Bounded(0.0, 5e-3))
    table = layer.tabulate(jax.random.key(0), inputs, console_kwargs={"width": 200})
    for line in ("log_tau_mem: float32[3]", "logit_delay: float32[1,3]"):
        assert line in "".join(c for c in table if c != "\x1b").replace(
            "[2m", ""
        ).replace("[0m", "")


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"tau_mem": (10e-3, -1e-3, 10e-3)}, r"tau_mem is \["),
        ({"v_reset": (0.0, 0.0, 1.5)}, "v_reset must be below v_th"),
        ({"v_leak": "rest"}, "v_leak is 'rest', expected a finite number"),
        ({"tau_syn": Bounded(0.0, 10e-3)}, "tau_syn is 0.0"),
        ({"v_reset": Bounded(0.0, 1.0)}, "v_reset is 1.0 and v_th is 1.0"),
        ({"v_th": Bounded(-1.0, 1.0)}, r"v_reset is 0.0 and v_th is -1\.0"),
        ({"delay": Bounded(-1e-3, 1e-3)}, r"LIF\.delay is Bounded.* it was sent"),
        ({"recurrent_delay": Bounded(-1e-3, 1e-3)}, r"LIF\.recurrent_delay is Bounded"),
    ],
)  # fmt: skip
def test_constants_and_bounds_are_checked_at_once(attributes, message):
    with pytest.raises(ValueError, match=message):
        LIF(3, **attributes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"low": 1.0, "high": 1.0}, "low is 1.0 and high is 1.0, expected two finite"),
        ({"low": 0.0, "high": np.inf}, "high is inf"),
        ({"low": np.nan, "high": 1.0}, "low is nan"),
        ({"low": 0.0, "high": 1.0, "step": 0.3}, "step is 0.3, expected a whole"),
        ({"low": 0.0, "high": 1.0, "step": -0.5}, "step is -0.5"),
        ({"low": 0.0, "high": 1.0, "step": 4.0}, "step is 4.0"),
        ({"low": 0.0, "high": 1.0, "init": 2.0}, "init is 2.0, expected a value"),
    ],
)  # fmt: skip
def test_bad_bounds_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Bounded(**arguments)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (LIF(3, tau_mem=(10e-3, 10e-3)), r"LIF\.tau_mem is .*array that fits \(3,\)"),
        (
            LIF(3, tau_syn=nn.initializers.zeros, name="hidden"),
            r"LIF 'hidden'\.tau_syn returns 0\.0, expected values above 0\.0",
        ),
        (
            LI(3, tau_mem=nn.initializers.constant(np.nan)),
            r"initializer of LI\.tau_mem returns nan",
        ),
        (LIF(3, v_leak=nn.initializers.constant(np.inf)), r"v_leak returns inf"),
        (
            LIF(3, v_reset=nn.initializers.constant(1.5)),
            r"v_reset returns 1\.5, expected values below 1\.0",
        ),
        (
            LIF(3, v_th=nn.initializers.constant(-1.0)),
            r"v_th returns -1\.0, expected values above 0\.0",
        ),
        (
            LIF(3, v_leak=Bounded(0.0, 0.5, init=nn.initializers.constant(-0.25))),
            r"v_leak returns -0\.25, expected values from 0\.0 to 0\.5",
        ),
    ],
)  # fmt: skip
def test_bad_first_values_and_shapes_are_refused(layer, message):
    inputs = Spikes.from_times(jnp.array([[[1e-3]]]))
    with pytest.raises(ValueError, match=message):
        layer.init(jax.random.key(0), inputs)


def test_parameters_of_another_layer_are_refused():
    inputs = Spikes.from_times(jnp.array([[[1e-3]]]))
    layer = LIF(3, tau_mem=LEARNED["tau_mem"])
    params = layer.init(jax.random.key(0), inputs)["params"]
    params = params | {"log_tau_mem": jnp.zeros(2)}
    with pytest.raises(
        ValueError, match=r"log_tau_mem of shape \(2,\), expected \(3,\)"
    ):
        layer.apply({"params": params}, inputs)
