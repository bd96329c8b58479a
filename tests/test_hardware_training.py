"""Training with a device in the loop: faults, and what is reported.

The device is a stand-in; see `training_dummy.Bench`.
"""

from __future__ import annotations

import logging
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import training_dummy
from test_training import assert_identical, rows, tensorboard_steps
from training_dummy import Bench, error, hang, lose_link

from jaxsnn import datasets, training
from jaxsnn.hardware import DeviceError, DeviceTimeout, SimulatedChip
from jaxsnn.training import experiment, hardware, loop, metrics

CONFIGS = Path(__file__).parent.parent / "configs"
UNTIL = 60e-3


def make_config(**changes):
    config = runpy.run_path(str(CONFIGS / "yinyang.py"))["get_config"]()
    config.num_epochs = 4
    config.batch_size = 16
    config.model.hidden = (6,)
    config.log_every_epochs = 2  # Runs of an epoch: 4, and 2 of every second one more.
    config.hardware = "bench"
    config.until = UNTIL
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module", autouse=True)
def settings():
    before = {
        name: getattr(jax.config, name)
        for name in ("jax_enable_x64", "jax_numpy_dtype_promotion")
    }
    jax.config.update("jax_enable_x64", False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load", training_dummy.load)
        yield
    for name, value in before.items():
        jax.config.update(name, value)


def train(device, workdir, quick=True, **changes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(hardware.HARDWARE, "bench", lambda config: device)
        if quick:
            patch.setattr(
                experiment, "create_experiment", training_dummy.device_experiment
            )
        return training.train_and_evaluate(make_config(**changes), workdir)


def measured(workdir):
    """What was logged, without the clock."""
    return [
        {k: v for k, v in row.items() if not k.endswith("run_seconds")}
        for row in rows(workdir)
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted run: its workdir, its final state, and its device."""
    workdir, device = tmp_path_factory.mktemp("finished"), Bench(scale=5.0)
    return workdir, train(device, workdir), device


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """The workdir of a network of neurons that was trained on a device."""
    workdir = tmp_path_factory.mktemp("network")
    train(Bench(scale=5.0), workdir, quick=False)
    return workdir


# Faults


@pytest.mark.parametrize(
    ("call", "action", "expected", "saved"),
    [
        (1, error, (DeviceError, "run 1: OSError: burnt out"), 0),
        (15, hang, (DeviceTimeout, "run 15: no answer within"), 3),
        (19, lose_link, (DeviceError, r"run 19: .*no carrier \(tried 1 times\)"), 3),
        (21, error, (DeviceError, "run 21: OSError: burnt out"), 4),
    ],
    ids=["first epoch", "epoch", "validation", "test"],
)
def test_fault_saves_and_stops(
    finished, tmp_path, call, action, expected, saved, tried
):
    kind, message = expected
    device = Bench(scale=5.0, faults={call: action}, retries=0)
    if action is hang:
        device.timeout = 2.0
    with pytest.raises(kind, match=f"bench, {message}") as caught:
        train(device, tmp_path)
    steps = [int(p.name) for p in (tmp_path / "checkpoints").iterdir()]
    assert steps == ([4 * saved] if saved else [])
    (note,) = caught.value.__notes__
    assert note == (
        f"The state after epoch {saved} is saved; the same command continues."
        if saved
        else "Nothing was trained yet; the same command starts again."
    )
    assert device.closed == (action is not hang)

    workdir, state, _ = finished
    assert_identical(train(Bench(scale=5.0), tmp_path), state)
    assert measured(tmp_path) == measured(workdir)
    assert tensorboard_steps(tmp_path, "train/loss") == [8, 16]
    tried(
        "device that fails, hangs, or loses its link",
        1,
        "saved after the last whole epoch, the error names device, run and layer; "
        "ends bit-identical",
    )


def test_fault_with_a_full_disk_names_both(tmp_path, monkeypatch):
    def save(self, *args):
        raise training.TrainingError("no space left")

    monkeypatch.setattr(training.loop.Checkpoints, "save", save)
    device = Bench(scale=5.0, faults={5: error})
    with pytest.raises(DeviceError, match="burnt out") as caught:
        train(device, tmp_path)
    assert caught.value.__notes__ == ["no space left"]


def test_device_is_released_and_passing_faults_are_counted(finished, tmp_path, caplog):
    _, state, device = finished
    assert device.closed == 1
    device = Bench(scale=5.0, faults={2: lose_link, 3: lose_link, 11: lose_link})
    with caplog.at_level(logging.INFO, "jaxsnn"):
        assert_identical(train(device, tmp_path), state)
    written = rows(tmp_path)
    assert [row.get("events/_retried") for row in written] == [2, 0, None]
    assert written[0]["validation/events/_retried"] == 1
    assert "3 runs were repeated" in caplog.text


def test_fault_in_evaluation_comes_out_typed(finished):
    device = Bench(scale=5.0, faults={1: error})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(hardware.HARDWARE, "bench", lambda config: device)
        patch.setattr(experiment, "create_experiment", training_dummy.device_experiment)
        with pytest.raises(DeviceError, match="run 1: OSError: burnt out"):
            training.evaluate(make_config(), finished[0])
    assert device.closed == 1


# What is reported


def test_counters_of_a_device_are_reported(network):
    for row in rows(network)[:2]:
        assert row["events/hidden_lost"] == row["events/output_lost"] == 8
        assert row["validation/events/hidden_lost"] == 2
        assert row["events/hidden_extra"] == row["events/hidden_retried"] == 0
        assert 0 < row["events/hidden_run_seconds"] < 60
        assert row["events/hidden_unexplained"] >= 0
        # The device holds 63 / 5; the weights are 3 +- 1.6 and 10 +- 3.6 at first.
        assert row["events/hidden_saturated"] == 0
        assert 0 < row["events/output_saturated"] < 1
    assert tensorboard_steps(network, "events/hidden_lost") == [8, 16]


def test_mismatch_is_reported_in_evaluation_only(network):
    names = {
        f"mismatch/{layer}_{name}"
        for layer in ("hidden", "output")
        for name in ("time_mean", "time_std", "identity")
    }
    first, _, last = rows(network)
    assert {k for k in first if "mismatch" in k} == {f"validation/{n}" for n in names}
    assert {k for k in last if "mismatch" in k} == {f"test/{n}" for n in names}
    assert tensorboard_steps(network, "validation/mismatch/hidden_identity") == [8, 16]


def test_mismatch_is_that_of_the_device():
    config, device = make_config(), Bench(scale=5.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(hardware.HARDWARE, "bench", lambda config: device)
        setup = loop._set_up(config)
    evaluate_on = loop._evaluator(config, setup)

    def evaluated(shift, jitter):
        device.shift, device.jitter = shift, jitter
        found = metrics.to_scalars(evaluate_on(setup.state, setup.train))
        names = "time_mean", "time_std", "identity"
        return [found[f"mismatch/hidden_{name}"] for name in names]

    # An exact device, but for its grid, is late by half a step of it in the mean.
    step = UNTIL / 1999
    mean, std, identity = evaluated(0.0, 0.0)
    assert mean == pytest.approx(step / 2, rel=0.3)
    assert std == pytest.approx(step / np.sqrt(12), rel=0.3)
    later, same, larger = evaluated(300e-6, 0.0)
    assert later - mean == pytest.approx(300e-6, rel=0.01)
    assert same == pytest.approx(std, rel=0.1)
    assert larger > 3 * identity
    # Spikes that were drawn too early for the model are compared as well.
    assert evaluated(0.0, 100e-6)[1] == pytest.approx(100e-6, rel=0.2)


def test_mismatch_of_batches_is_that_of_all_examples():
    rng = np.random.default_rng(0)
    time = rng.normal(1e-3, 2e-3, (6, 4)).astype(np.float32)
    identity = rng.normal(0, 1, (6, 4)).astype(np.float32)
    time[1, 2] = identity[1, 2] = identity[3, 0] = np.nan
    mask = np.array([True] * 5 + [False])
    parts = [
        metrics.Mismatch.from_model_output(
            {"hidden": {"time": time[s], "identity": identity[s]}}, mask=mask[s]
        )
        for s in (slice(0, 3), slice(3, 6))
    ]
    found = parts[0].merge(parts[1]).compute()
    assert {k: float(v) for k, v in found.items()} == {
        "hidden_time_mean": pytest.approx(np.nanmean(time[:5]), rel=1e-5),
        "hidden_time_std": pytest.approx(np.nanstd(time[:5]), rel=1e-5),
        "hidden_identity": pytest.approx(np.nanmean(np.abs(identity[:5])), rel=1e-5),
    }


@pytest.mark.filterwarnings("error")
def test_mismatch_of_nothing_is_nan():
    silent = np.full((2, 3), np.nan, np.float32)
    found = metrics.Mismatch.from_model_output(
        {"out": {"time": silent, "identity": silent}}
    )
    assert np.isnan(list(jax.device_get(found).compute().values())).all()
    assert metrics.Mismatch.from_model_output({}).compute() == {}


# What a config says


def test_weights_keep_to_what_a_device_can_hold(finished):
    params = {"a": {"kernel": jnp.array([-0.9, 0.5, 3.0]), "v_leak": jnp.array(0.0)}}
    tx = optax.chain(optax.sgd(1.0), hardware.keep_within(1.0))
    grads = {"a": {"kernel": jnp.array([0.5, -0.25, 0.0]), "v_leak": jnp.array(-7.0)}}
    updates, _ = tx.update(grads, tx.init(params), params)
    kept = optax.apply_updates(params, updates)["a"]
    np.testing.assert_allclose(kept["kernel"], [-1.0, 0.75, 1.0], rtol=1e-6)
    assert kept["v_leak"] == 7.0


def chosen(**changes):
    return hardware.create_backend(make_config(**changes))


def test_devices_are_made_from_the_config():
    assert chosen(hardware="") is None
    config = make_config(hardware="simulated_chip")
    config.chip.update(profile="ideal", chip_seed=3, time_scale=1e-4, scale=40.0)
    expected = SimulatedChip.profile("ideal", chip_seed=3, time_scale=1e-4, scale=40.0)
    assert hardware.create_backend(config) == expected
    assert chosen(hardware="nest", **{"nest.timeout": 5.0}).timeout == 5.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hardware": "chip"},
            "'chip', expected one of '', 'simulated_chip', 'nest', ",
        ),
        ({"hardware": "simulated_chip", "chip.profile": "best"}, "best.*calibrated"),
        ({"hardware": "simulated_chip", "chip.time_scale": -1.0}, "time_scale is -1.0"),
    ],
)
def test_unknown_devices_and_values_are_refused(changes, message):
    with pytest.raises(training.TrainingError, match=message):
        chosen(**changes)


def test_network_that_a_device_cannot_run_is_refused(tmp_path):
    changes = {"hardware": "simulated_chip", "model.tau_mem": 20.0}
    with pytest.raises(training.TrainingError, match="tau_mem = 20 s"):
        train(None, tmp_path, quick=False, **changes)
    changes = {"hardware": "", "model.dt": 1e-3}
    with pytest.raises(training.TrainingError, match=r"until is 0\.06 and config"):
        train(None, tmp_path, quick=False, **changes)
