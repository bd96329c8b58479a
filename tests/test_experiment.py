"""From a config to an experiment: every name it may contain, and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import (
    fashion_mnist,
    yinyang,
    yinyang_5_delays,
    yinyang_30_delays,
    yinyang_200,
    yinyang_analytic,
    yinyang_chip,
    yinyang_grid,
    yinyang_mot,
    yinyang_recurrent,
    yinyang_sweep,
)
from jaxsnn import Spikes, losses, readout
from jaxsnn.analytic import analytic
from jaxsnn.eventprop import eventprop
from jaxsnn.hardware import SimulatedChip
from jaxsnn.layers import Bounded, GridLI, GridLIF, GridNetwork
from jaxsnn.surrogate import superspike, triangular
from jaxsnn.training import TrainingError, create_train_state, eval_step, train_step
from jaxsnn.training.experiment import (
    GRADIENTS,
    LOSSES,
    READOUTS,
    SURROGATES,
    create_experiment,
)
from jaxsnn.training.hardware import HARDWARE


def test_the_configs_change_one_thing():
    gradient = {
        config: create_experiment(config.get_config()).model.layers[0].gradient
        for config in (yinyang, yinyang_analytic, yinyang_chip)
    }
    assert gradient[yinyang] is gradient[yinyang_chip] is eventprop
    assert gradient[yinyang_analytic] is analytic
    assert create_experiment(yinyang.get_config()).model.backend is None
    chip = create_experiment(yinyang_chip.get_config()).model.backend
    assert isinstance(chip, SimulatedChip)


def test_a_sweep_has_every_point_of_its_grid_once():
    grid = yinyang_sweep.GRID
    points = [
        yinyang_sweep.get_config(str(n)) for n in range(len(yinyang_sweep.POINTS))
    ]
    found = {(point.learning_rate, point.loss.tau) for point in points}
    assert found == {(x, y) for x in grid["learning_rate"] for y in grid["loss.tau"]}
    assert len(points) == len(found)
    rest = yinyang.get_config()
    for point in points:
        point.learning_rate, point.loss.tau = rest.learning_rate, rest.loss.tau
        assert point.to_dict() == rest.to_dict()
    for wrong in (None, "smoke", str(len(points))):
        with pytest.raises(ValueError, match="a number from 0 to 8"):
            yinyang_sweep.get_config(wrong)


@pytest.mark.parametrize(
    ("config", "shapes"),
    [
        (yinyang_200, {"hidden": {"kernel": (5, 200)}, "output": {"kernel": (200, 3)}}),
        (
            yinyang_5_delays,
            {
                "hidden": {"kernel": (5, 5), "logit_delay": (5, 5)},
                "output": {"kernel": (5, 3), "logit_delay": (5, 3)},
            },
        ),
        (
            yinyang_recurrent,
            {
                "hidden": {"kernel": (5, 100), "recurrent_kernel": (100, 100)},
                "output": {"kernel": (100, 3)},
            },
        ),
    ],
)
def test_all_that_a_config_adds_is_learned(config, shapes):
    config = config.get_config()
    experiment = create_experiment(config)
    features = jax.random.uniform(jax.random.key(1), (4, 4))
    inputs = experiment.encode(features)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def loss(params):
        outputs, state = experiment.model.apply(
            {"params": params}, inputs, mutable=["events"]
        )
        readings, labels = experiment.read(outputs), jnp.arange(4) % 3
        each = experiment.loss(readings, labels, params, state["events"])
        return each.mean(), readings

    params = experiment.model.init(jax.random.key(0), inputs)["params"]
    assert jax.tree.map(jnp.shape, params) == shapes
    grads, _ = loss(params)
    for parameter in jax.tree.leaves(grads):
        assert jnp.isfinite(parameter).all()
        assert (parameter != 0).any()


def test_recurrent_weights_learn_at_their_own_rate():
    config = yinyang_recurrent.get_config()
    config.learning_rate, config.recurrent_learning_rate = 1e-2, 3e-4
    optimizer, _ = create_experiment(config).optimizer(10)
    params = {
        "hidden": {"kernel": jnp.zeros(2), "recurrent_kernel": jnp.zeros(2)},
        "output": {"kernel": jnp.zeros(2)},
    }
    grads = jax.tree.map(lambda x: x + jnp.array([0.1, -0.2]), params)
    steps, _ = optimizer.update(grads, optimizer.init(params), params)
    sign = np.array([-1.0, 1.0])  # The first step of Adam is that of the sign.
    np.testing.assert_allclose(steps["hidden"]["kernel"], 1e-2 * sign, rtol=1e-5)
    np.testing.assert_allclose(steps["output"]["kernel"], 1e-2 * sign, rtol=1e-5)
    recurrent = steps["hidden"]["recurrent_kernel"]
    np.testing.assert_allclose(recurrent, 3e-4 * sign, rtol=1e-5)
    config.model.recurrent, config.model.recurrent_delay = False, 0.0
    with pytest.raises(TrainingError, match=r"recurrent_learning_rate is 0\.0003"):
        create_experiment(config)


def test_a_bound_on_delays_reaches_both_layers():
    config = yinyang_30_delays.get_config()
    layers = create_experiment(config).model.layers
    bound = Bounded(0.0, config.model.max_delay)
    assert [layer.delay for layer in layers] == [bound, bound]
    config.model.readout, config.loss = "li", yinyang_mot.get_config().loss
    hidden, output = create_experiment(config).model.layers  # Of spikes only.
    assert hidden.delay == bound
    assert not hasattr(output, "delay")
    config.model.max_delay = None
    config.model.recurrent, config.model.recurrent_delay = True, 3e-3
    hidden, _ = create_experiment(config).model.layers
    assert hidden.delay is None
    assert hidden.recurrent
    assert hidden.recurrent_delay == 3e-3


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_finite_and_has_a_gradient(name):
    config = yinyang.get_config()
    config.loss.name = name
    experiment = create_experiment(config)
    inputs = experiment.encode(jnp.array([[0.1, 0.6, 0.9, 0.4]]))
    variables = experiment.model.init(jax.random.key(0), inputs)

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        outputs, state = experiment.model.apply(
            {"params": params}, inputs, mutable=["events"]
        )
        readings, labels = experiment.read(outputs), jnp.array([1])
        return experiment.loss(readings, labels, params, state["events"]).mean()

    value, grads = loss(variables["params"])
    assert jnp.isfinite(value)
    for kernel in jax.tree.leaves(grads):
        assert jnp.isfinite(kernel).all()
        assert (kernel != 0).any()


def test_a_silent_output_layer_predicts_nothing():
    experiment = create_experiment(yinyang.get_config())
    times = jnp.array([[[3.0], [2.0], [jnp.inf]], [[jnp.inf]] * 3])
    readings = experiment.read(Spikes.from_times(times))
    np.testing.assert_array_equal(experiment.predict(readings), [1, -1])


def test_maxima_of_voltages_decide_and_teach():
    config = yinyang_mot.get_config()
    experiment = create_experiment(config)
    inputs = experiment.encode(jnp.array([[0.1, 0.6, 0.9, 0.4]]))
    params = experiment.model.init(jax.random.key(0), inputs)["params"]

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params):
        outputs, state = experiment.model.apply(
            {"params": params}, inputs, mutable=["events"]
        )
        readings = experiment.read(outputs)
        each = experiment.loss(readings, jnp.array([1]), params, state["events"])
        count = state["events"]["hidden"]["count"]
        return each.mean(), (outputs, count, experiment.predict(readings))

    (value, (outputs, count, predicted)), grads = loss(params)
    # At each time in turn, not by the maximum under test.
    grid = jnp.linspace(0, 0.2, 20_001)
    peaks = outputs.voltage(grid).max(-1)
    assert predicted == peaks.argmax()
    expected = -jax.nn.log_softmax(config.loss.scale * peaks)[0, 1]
    bump = losses.silence_bump(params["hidden"]["kernel"], count)
    np.testing.assert_allclose(value, expected + config.loss.bump * bump, rtol=1e-4)
    for kernel in jax.tree.leaves(grads):
        assert jnp.isfinite(kernel).all()
        assert (kernel != 0).any()

    # The right output never rises: its weights have no gradient but the lift.
    kernel = params["output"]["kernel"].at[:, 1].set(-1.0)
    _, grads = loss(params | {"output": {"kernel": kernel}})
    np.testing.assert_allclose(grads["output"]["kernel"][:, 1], -config.loss.lift)
    kernel = params["output"]["kernel"].at[:, 2].set(-1.0)  # Nor does a wrong one.
    _, grads = loss(params | {"output": {"kernel": kernel}})
    np.testing.assert_array_equal(grads["output"]["kernel"][:, 2], 0)

    # Outputs that all rest are equal: the first of them, by convention.
    silence = Spikes.from_times(jnp.full((1, 5, 1), jnp.inf))
    readings = experiment.read(experiment.model.apply({"params": params}, silence))
    np.testing.assert_array_equal(experiment.predict(readings), [0])
    # A device that samples no voltages leaves them to the software.
    config.hardware = "simulated_chip"
    assert isinstance(create_experiment(config).model.backend, SimulatedChip)


@pytest.mark.parametrize("step", [train_step, eval_step])
def test_a_step_searches_the_maxima_once(step, monkeypatch):
    experiment = create_experiment(yinyang_mot.get_config())
    tx, _ = experiment.optimizer(1)
    features = jnp.zeros((2, 4))
    state = create_train_state(experiment, tx, jax.random.key(0), features)
    searches, search = [], readout.find_maximum
    monkeypatch.setattr(
        readout, "find_maximum", lambda *args: searches.append(1) or search(*args)
    )
    labels, mask = jnp.array([0, 1]), jnp.array([True, True])
    batch = {"features": features, "label": labels, "mask": mask}
    jax.eval_shape(step, state, batch)
    assert len(searches) == 1


@pytest.mark.parametrize("name", [*LOSSES, "mot_cross_entropy"])
def test_a_time_grid_is_one_attribute_of_the_same_experiment(name):
    config = (yinyang if name in LOSSES else yinyang_mot).get_config()
    config.model.hidden = (30,)
    config.loss.name = name
    exact = create_experiment(config)
    config.model.dt = 0.05e-3
    on_grid = create_experiment(config)
    features = jax.random.uniform(jax.random.key(1), (6, 4))
    labels = jnp.array([0, 1, 2, 0, 1, 2])
    inputs = exact.encode(features)
    key, same = jax.random.key(0), np.testing.assert_array_equal
    jax.tree.map(same, on_grid.encode(features), inputs)
    params = exact.model.init(key, inputs)["params"]
    jax.tree.map(same, on_grid.model.init(key, inputs)["params"], params)

    def run(experiment):
        @jax.jit
        @functools.partial(jax.grad, has_aux=True)
        def loss(params):
            outputs, state = experiment.model.apply(
                {"params": params}, inputs, mutable=["events"]
            )
            readings = experiment.read(outputs)
            each = experiment.loss(readings, labels, params, state["events"])
            return each.mean(), (each, experiment.predict(readings))

        return loss(params)

    _, (expected, predicted) = run(exact)
    grads, (each, found) = run(on_grid)
    np.testing.assert_allclose(each, expected, rtol=0.1)
    same(found, predicted)
    for kernel in jax.tree.leaves(grads):
        assert jnp.isfinite(kernel).all()
        assert (kernel != 0).any()


def test_the_grid_is_what_the_config_says():
    config = yinyang_grid.get_config()
    model = create_experiment(config).model
    assert isinstance(model, GridNetwork)
    hidden, output = model.layers
    assert isinstance(hidden, GridLIF)
    assert isinstance(output, GridLI)
    assert hidden.dt == output.dt == 0.25e-3
    assert hidden.surrogate is superspike(5.0)
    assert model.steps * hidden.dt > config.encoding.t_late
    assert yinyang_grid.get_config("smoke").num_epochs == 2

    config.model.steps = None  # As many as reach t_silent.
    config.loss.t_silent, config.model.dt = 63e-3, 0.3e-3
    config.model.surrogate, config.model.beta = "triangular", 0.5
    config.model.hidden = ()
    config.loss.bump = 0.0
    experiment = create_experiment(config)
    assert experiment.model.steps == 210
    config.model.readout, config.loss.name = "lif", "ttfs_mse"
    (layer,) = create_experiment(config).model.layers
    assert layer.surrogate is triangular(0.5)
    inputs = experiment.encode(jnp.zeros((2, 4)))
    variables = experiment.model.init(jax.random.key(0), inputs)
    outputs, state = experiment.model.apply(variables, inputs, mutable=["events"])
    assert outputs.shape == (2, 210, 3)
    readings, labels = experiment.read(outputs), jnp.array([0, 1])
    loss = experiment.loss(readings, labels, variables["params"], state["events"])
    expected = losses.mot_cross_entropy(outputs.max(1), labels)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hardware": "simulated_chip", "model.readout": "lif"}, "has no time grid"),
        ({"hardware": "simulated_chip"}, "has no time grid"),
        ({"model.slots": 50}, "room for all spikes; leave config.model.slots at None"),
        ({"model.steps": 0}, "config.model.steps is 0, expected 1 or more"),
        ({"model.steps": None, "model.dt": 0.0}, r"config\.model: dt is 0.0, expected"),
        ({"model.dt": -1e-3}, r"config\.model: dt is -0.001, expected"),
        ({"model.beta": 0.0}, r"config\.model: beta is 0.0, expected"),
        ({"model.max_delay": 1e-3}, r"config\.model: .*delay"),
        ({"model.max_delay": 0.0}, r"config\.model: low is 0.0 and high is 0.0"),
        (
            {"model.recurrent_delay": -1.0, "model.dt": None},
            r"config\.model: LIF.recurrent_delay is -1",
        ),
    ],
)
def test_a_grid_that_cannot_be_is_refused(change, message):
    config = yinyang_grid.get_config()
    config.update_from_flattened_dict(change)
    with pytest.raises(TrainingError, match=message):
        create_experiment(config)


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("loss.name", LOSSES),
        ("model.gradient", GRADIENTS),
        ("model.readout", READOUTS),
        ("model.surrogate", SURROGATES),
        ("hardware", HARDWARE),
    ],
)
def test_an_unknown_name_lists_the_known_ones(field, options):
    config = yinyang.get_config()
    config.update_from_flattened_dict({field: "nonsense"})
    with pytest.raises(TrainingError, match=f"config.{field} is 'nonsense'") as caught:
        create_experiment(config)
    for name in options:
        assert repr(name) in str(caught.value)


def test_a_value_out_of_range_names_the_field():
    config = yinyang.get_config()
    config.model.tau_mem = -1.0
    with pytest.raises(TrainingError, match=r"config\.model: tau_mem is -1"):
        create_experiment(config)


def test_of_bytes_the_brightest_come_first_and_black_is_silent():
    config = fashion_mnist.get_config()
    config.model.hidden = (3,)
    config.encoding.t_late = 20e-3
    encode = create_experiment(config).encode
    spikes = encode(jnp.array([[255, 0, 51]], jnp.uint8))
    # A fifth of the brightness, four fifths of the way from 0 to 20 ms; and the bias.
    expected = [0, np.inf, 16e-3, 0]
    np.testing.assert_allclose(spikes.first()[0], expected, rtol=1e-6)


def test_noise_on_the_inputs_is_in_training_only():
    config = yinyang.get_config()
    features, labels = jax.random.uniform(jax.random.key(0), (8, 4)), jnp.zeros(8, int)
    batch = {"features": features, "label": labels, "key": jax.random.key(1)}

    def losses_of(config, batch):
        experiment = create_experiment(config)
        tx, _ = experiment.optimizer(1)
        state = create_train_state(experiment, tx, jax.random.key(2), features[:1])
        _, trained = jax.jit(train_step)(state, batch)
        every = {**batch, "mask": jnp.ones(8, bool)}
        return [m.loss.compute() for m in (trained, jax.jit(eval_step)(state, every))]

    plain, evaluated = losses_of(config, batch)
    config.noise.jitter, config.noise.loss = 2e-3, 0.3
    noisy, same = losses_of(config, batch)
    assert same == evaluated
    assert abs(noisy - plain) > 1e-2
    again, _ = losses_of(config, batch)
    assert again == noisy
    other, _ = losses_of(config, {**batch, "key": jax.random.key(3)})
    assert abs(other - noisy) > 1e-3


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        ({"jitter": -1e-3}, "config.noise: jitter is -0.001"),
        ({"loss": 2.0}, "loss is 2"),
    ],
)
def test_impossible_noise_is_refused_before_any_work(noise, message):
    config = yinyang.get_config()
    config.noise.update(noise)
    with pytest.raises(TrainingError, match=message):
        create_experiment(config)
