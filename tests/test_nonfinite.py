"""Numbers that go wrong in training: NaN, Inf, large gradients, silent layers."""

from __future__ import annotations

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import training_dummy
from test_training import (
    STEPS_PER_EPOCH,
    make_config,
    rows,
    stand_in,  # noqa: F401 - a fixture
)

from jaxsnn import datasets, training
from jaxsnn.training import experiment, loop, steps

CHANGES = {"num_epochs": 2, "log_every_epochs": 1}
BAD_EXAMPLE = 7


@pytest.fixture
def bad_data(monkeypatch):
    """One training example is NaN."""
    monkeypatch.setattr(datasets, "load", training_dummy.load_with_nan(BAD_EXAMPLE))


def step_by_step(config, until):
    """States and losses of a run, one step after the other; bad steps are left out.

    Returns also the step, counted from 1, in which the bad example came up first.
    """
    setup = loop._set_up(config)
    # Not the function itself, whose compiled versions another test counts.
    step = jax.jit(lambda state, batch: training.train_step(state, batch))
    state, losses, found = setup.state, [], None
    for number in range(until):
        indices, keys = steps.epoch_batches(
            number, setup.train, setup.train_key, config.batch_size
        )
        i = number % STEPS_PER_EPOCH
        if BAD_EXAMPLE in indices[i]:
            found = found or number + 1
            if config.nonfinite == "stop":
                break
            state, losses = state.replace(step=state.step + 1), [*losses, None]
            continue
        state, metrics = step(state, steps.take(setup.train, indices[i], keys[i]))
        losses.append(metrics.loss.compute().item())
    return state, losses, found


def assert_close(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("bad_data")
def test_batch_that_stopped_a_run_is_kept_with_the_state_before_it(tmp_path, tried):
    config = make_config(**CHANGES)
    expected, _, number = step_by_step(config, 2 * STEPS_PER_EPOCH)
    path = tmp_path / "nonfinite" / f"step-{number}-seed-0.npz"
    message = f"step {number} .*: the loss is nan, 703 values of the gradient and 703"
    with pytest.raises(training.NonFiniteError, match=message) as error:
        training.train_and_evaluate(config, tmp_path)
    assert f"The batch, and the state before it, are in {path}." in str(error.value)
    # By hand: relu, and its gradient, are 0 at NaN, and so is the hidden bias'.
    where = (
        "(hidden/Dense_0/kernel 400, output/Dense_0/bias 3, output/Dense_0/kernel 300)"
    )
    assert where in str(error.value)

    state, batch = training.reproduce(config, path)
    assert int(state.step) == number - 1
    assert_close((state.params, state.opt_state), (expected.params, expected.opt_state))
    with np.load(path, allow_pickle=False) as file:
        indices = file["indices"]
    assert BAD_EXAMPLE in indices
    bad = np.isnan(batch["features"]).all(axis=1)
    np.testing.assert_array_equal(bad, indices == BAD_EXAMPLE)
    *_, health = jax.jit(training.checked_step)(state, batch)
    assert np.isnan(health.loss)
    assert not health.sound()
    sane = {**batch, "features": jnp.nan_to_num(batch["features"])}
    assert jax.jit(training.checked_step)(state, sane)[-1].sound()

    other = make_config(**{"model.hidden": (7,)})
    with pytest.raises(training.TrainingError, match="of another model or optimizer"):
        training.reproduce(other, path)
    with pytest.raises(training.TrainingError, match="No such file"):
        training.reproduce(config, tmp_path / "none.npz")
    tried("NaN in a step", 1, "stops and names step and layer; keeps batch and state")


@pytest.mark.usefixtures("bad_data")
def test_skipped_steps_change_nothing_and_are_counted(tmp_path, caplog):
    config = make_config(nonfinite="skip", **CHANGES)
    expected, losses, _ = step_by_step(config, 2 * STEPS_PER_EPOCH)
    with caplog.at_level(logging.INFO, "jaxsnn"):
        state = training.train_and_evaluate(config, tmp_path)
    assert int(state.step) == 2 * STEPS_PER_EPOCH
    assert_close(state.params, expected.params)
    for row, first in zip(rows(tmp_path), (0, STEPS_PER_EPOCH), strict=False):
        epoch = losses[first : first + STEPS_PER_EPOCH]
        sound = [loss for loss in epoch if loss is not None]
        assert row["train/skipped"] == STEPS_PER_EPOCH - len(sound)
        assert row["train/loss"] == pytest.approx(np.mean(sound), rel=1e-5)
        assert np.isfinite(row["train/grad_norm"])
    assert losses.count(None) > 0
    assert "1 steps with NaN or Inf were skipped" in caplog.text
    # To skip them is how to go on after a stop.
    assert "nonfinite" in loop.checkpoint.MAY_CHANGE


def test_run_without_a_sound_step_ends(tmp_path, monkeypatch):
    def create_experiment(config):
        parts = training_dummy.create_experiment(config)
        loss = parts.loss
        parts.loss = lambda *args: (
            loss(*args) + jnp.sqrt(0 * jnp.sum(args[2]["hidden"]["Dense_0"]["bias"]))
        )
        return parts

    monkeypatch.setattr(experiment, "create_experiment", create_experiment)
    message = (
        r"step 1 \(epoch 1\): the loss is 1\.\d+, 100 values of the gradient and 100 "
        r"of the updated parameters are NaN or Inf \(hidden/Dense_0/bias 100\), and so "
        "in all steps after it"
    )
    with pytest.raises(training.NonFiniteError, match=message):
        training.train_and_evaluate(make_config(nonfinite="skip"), tmp_path)
    config = make_config(nonfinite="ignore")
    with pytest.raises(training.TrainingError, match="nonfinite is 'ignore', expected"):
        training.train_and_evaluate(config, tmp_path)


def test_batch_is_named_even_if_it_cannot_be_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(training_dummy, "SIZES", {**training_dummy.SIZES, "train": 16})
    (tmp_path / "nonfinite").touch()
    load = training_dummy.load
    monkeypatch.setattr(
        datasets,
        "load",
        lambda *a, **k: {**load(*a), "features": np.full((16, 4), np.inf)},
    )
    with pytest.raises(training.NonFiniteError, match="not kept: Cannot write to"):
        training.train_and_evaluate(make_config(), tmp_path)


def test_gradient_norms_and_clipped_steps_are_those_of_the_gradient(tmp_path):
    # Features x, loss w.x: the gradient is the mean of x.
    features = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    norms = [np.linalg.norm(features[i : i + 8].mean(axis=0)) for i in range(0, 40, 8)]
    limit = float(np.sort(norms)[3:].mean())  # One of five is above.
    state = training_dummy.make_state(
        params={"w": jnp.zeros(3)},
        tx=optax.chain(optax.clip_by_global_norm(limit), optax.sgd(1.0)),
        apply_fn=lambda variables, x, **_: (x @ variables["params"]["w"], {}),
        loss_fn=lambda outputs, labels, params, events: outputs,
        predict_fn=lambda outputs: jnp.zeros(len(outputs), jnp.int32),
        clip_norm=limit,
    )
    found = []
    for i in range(0, 40, 8):
        batch = {"features": features[i : i + 8], "label": jnp.zeros(8, jnp.int32)}
        before, (state, metrics) = state, training.train_step(state, batch)
        found.append(metrics)
        moved = np.linalg.norm(state.params["w"] - before.params["w"])
        assert moved == pytest.approx(min(norms[i // 8], limit), rel=1e-5)
    merged = found[0]
    for metrics in found[1:]:
        merged = merged.merge(metrics)
    values = merged.compute()
    assert float(values["grad_norm"]) == pytest.approx(np.mean(norms), rel=1e-5)
    assert float(values["clipped"]) == pytest.approx(1 / 5)


def test_silent_layer_is_named(tmp_path, monkeypatch, caplog):
    def create_experiment(config):
        parts = training_dummy.create_experiment(config)
        parts.encode = lambda features: jnp.zeros_like(features)  # And no biases yet.
        return parts

    monkeypatch.setattr(experiment, "create_experiment", create_experiment)
    with caplog.at_level(logging.INFO, "jaxsnn"):
        training.train_and_evaluate(make_config(num_epochs=1), tmp_path)
    assert json.loads((tmp_path / "metrics.jsonl").read_text().split("\n")[0])[
        "events/hidden_silent"
    ] == pytest.approx(1)
    assert "  hidden is silent" in caplog.text
