"""From a config to an experiment: every name it may contain, and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import yinyang, yinyang_analytic, yinyang_chip, yinyang_mot
from jaxsnn import Spikes, losses
from jaxsnn.analytic import analytic
from jaxsnn.eventprop import eventprop
from jaxsnn.hardware import SimulatedChip
from jaxsnn.training import TrainingError
from jaxsnn.training.experiment import (
    GRADIENTS,
    HARDWARE,
    LOSSES,
    READOUTS,
    create_experiment,
)


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
        labels = jnp.array([1])
        return experiment.loss(outputs, labels, params, state["events"]).mean()

    value, grads = loss(variables["params"])
    assert jnp.isfinite(value)
    for kernel in jax.tree.leaves(grads):
        assert jnp.isfinite(kernel).all()
        assert (kernel != 0).any()


def test_a_silent_output_layer_predicts_nothing():
    experiment = create_experiment(yinyang.get_config())
    times = jnp.array([[[3.0], [2.0], [jnp.inf]], [[jnp.inf]] * 3])
    outputs = Spikes.from_times(times)
    np.testing.assert_array_equal(experiment.predict(outputs), [1, -1])


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
        each = experiment.loss(outputs, jnp.array([1]), params, state["events"])
        count = state["events"]["hidden"]["count"]
        return each.mean(), (outputs, count, experiment.predict(outputs))

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

    # Outputs that all rest are equal: the first of them, by convention.
    silence = Spikes.from_times(jnp.full((1, 5, 1), jnp.inf))
    outputs = experiment.model.apply({"params": params}, silence)
    np.testing.assert_array_equal(experiment.predict(outputs), [0])
    config.hardware = "simulated_chip"
    with pytest.raises(TrainingError, match="a device reports spikes only"):
        create_experiment(config)


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("loss.name", LOSSES),
        ("model.gradient", GRADIENTS),
        ("model.readout", READOUTS),
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
