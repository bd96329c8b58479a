"""The training loop on a small stand-in; `test_train_cli.py` has the whole program."""

from __future__ import annotations

import io
import json
import logging
import runpy
import shutil
import signal
import struct
from pathlib import Path

import filelock
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import training_dummy
from tensorboardX.proto.event_pb2 import Event

from jaxsnn import datasets, training
from jaxsnn.training import experiment, loop, metrics, steps, writers
from jaxsnn.training.checkpoint import Checkpoints

CONFIGS = Path(__file__).parent.parent / "configs"
STEPS_PER_EPOCH = 4  # 70 examples in batches of 16; 6 are left over.


@pytest.fixture(scope="module", autouse=True)
def stand_in(tmp_path_factory):
    settings = {
        # As users run it: optax and clu rely on promotion.
        "jax_enable_x64": False,
        "jax_numpy_dtype_promotion": "standard",
        "jax_numpy_rank_promotion": "allow",
        # The same small program is compiled again and again.
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("cache")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "create_experiment", training_dummy.create_experiment)
        patch.setattr(datasets, "load", training_dummy.load)
        # Epochs here are far shorter than a save; each is to be saved.
        patch.setattr(Checkpoints, "affordable", lambda self: True)
        yield
    for name, value in before.items():
        jax.config.update(name, value)


def make_config(**changes):
    config = runpy.run_path(str(CONFIGS / "yinyang.py"))["get_config"]()
    config.num_epochs = 5
    config.batch_size = 16
    config.learning_rate = 5e-3
    config.model.hidden = (100,)
    config.checkpoint_every_epochs = 1
    # The last window is a short one, and the second is cut by the checkpoints.
    config.log_every_epochs = 2
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted run: its workdir and its final state."""
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, training.train_and_evaluate(make_config(), workdir)


def assert_identical(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    for x, y in pairs:
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def rows(workdir):
    """What `metrics.jsonl` holds, without the wall clock."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if k != "train/samples_per_s"}
        for line in lines
    ]


def tensorboard_values(workdir):
    """What TensorBoard shows: steps and values of each scalar."""
    found = []
    for path in sorted(workdir.glob("events.out.tfevents.*")):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            if len(content) < 16 + length:
                break  # Cut short by a full disk.
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            if event.HasField("session_log"):
                found = [(tag, step, v) for tag, step, v in found if step < event.step]
            found += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
    values = {}
    for tag, step, value in found:
        values.setdefault(tag, []).append((step, value))
    return values


def tensorboard_steps(workdir, tag):
    """The steps of one scalar as TensorBoard shows them."""
    return [step for step, _ in tensorboard_values(workdir)[tag]]


def files(directory):
    return {
        path.relative_to(directory): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


# What a run reports


def test_metrics_file_has_the_expected_steps_and_keys(finished):
    workdir, state = finished
    written = rows(workdir)
    assert [(row["step"], row["epoch"]) for row in written] == [
        (8, 2),
        (16, 4),
        (20, 5),
        (20, 5),
    ]
    assert {
        "train/loss",
        "train/accuracy",
        "learning_rate",
        "events/hidden_overflow",
        "events/hidden_spikes",
        "events/hidden_silent",
        "events/hidden_unexplained",
        "validation/loss",
        "validation/accuracy",
    } <= written[0].keys()
    assert {"test/loss", "test/accuracy"} <= written[-1].keys()
    assert "train/loss" not in written[-1]
    assert tensorboard_steps(workdir, "train/loss") == [8, 16, 20]
    assert tensorboard_steps(workdir, "test/accuracy") == [20]
    # Of the schedule of the stand-in, at the last step taken.
    assert written[2]["learning_rate"] == pytest.approx(5e-3 * 0.95 ** (19 / 4))
    assert int(state.step) == 20
    assert json.loads((workdir / "config.json").read_text())["batch_size"] == 16


def test_nothing_is_compiled_twice(tmp_path, monkeypatch):
    traced, evaluators = [], []

    def create_experiment(config):
        parts = training_dummy.create_experiment(config)
        loss = parts.loss
        parts.loss = lambda *args: traced.append(1) or loss(*args)
        return parts

    def evaluator(*args):
        evaluators.append(make_evaluator(*args))
        return evaluators[-1]

    make_evaluator = loop._evaluator
    monkeypatch.setattr(loop, "_evaluator", evaluator)
    monkeypatch.setattr(experiment, "create_experiment", create_experiment)
    monkeypatch.setitem(
        training_dummy.SIZES, "test", training_dummy.SIZES["validation"]
    )
    for num_epochs in (2, 4):
        traced.clear()
        training.train_and_evaluate(make_config(num_epochs=num_epochs), tmp_path)
        assert len(traced) == 2  # Training and evaluation, restored or not.
    # Of the state as initialized, as restored, and as trained.
    assert [evaluator._cache_size() for evaluator in evaluators] == [1, 1]


def test_train_step_is_compiled_once():
    config = make_config()
    parts = training_dummy.create_experiment(config)
    tx, _ = parts.optimizer(STEPS_PER_EPOCH)
    data = training_dummy.load("", "train")
    batch = {"features": jnp.float32(data["features"]), "label": data["label"]}
    state = training.create_train_state(
        parts, tx, jax.random.key(0), batch["features"][:1]
    )
    train_step = jax.jit(training.train_step)
    first = None
    for _ in range(3):
        state, batch_metrics = train_step(state, batch)
        first = first or batch_metrics
    assert train_step._cache_size() == 1
    assert state.step == 3
    assert batch_metrics.compute()["loss"] < first.compute()["loss"]


def test_each_epoch_trains_each_example_once_in_another_order():
    # Example i has the loss weight[i]: its weight counts how often it was seen.
    data = {"features": jnp.arange(70), "label": jnp.zeros(70, jnp.int32)}
    state = training_dummy.make_state(
        params={"weight": jnp.zeros(70)},
        tx=optax.sgd(16.0),
        apply_fn=lambda variables, x, **_: (variables["params"]["weight"][x], {}),
        loss_fn=lambda outputs, labels, params, events: outputs,
        predict_fn=lambda outputs: jnp.zeros(len(outputs), jnp.int32),
    )
    seen = []
    for _ in range(2):
        state, *_ = steps.train_epoch(state, data, jax.random.key(0), batch_size=16)
        seen.append(-np.asarray(state.params["weight"]))
    for count in (seen[0], seen[1] - seen[0]):
        assert sorted(count) == [0] * 6 + [1] * 64
        assert count[:64].sum() < 64, "the data are not shuffled"
    assert (seen[1] - seen[0] != seen[0]).any(), "each epoch has the same order"


def test_each_step_brings_a_device_its_own_randomness():
    def draw(variables, x, rngs, mutable):
        return jnp.full(len(x), jax.random.uniform(rngs["hardware"])), {}

    state = training_dummy.make_state(
        apply_fn=draw,
        loss_fn=lambda outputs, labels, params, events: outputs,
        predict_fn=lambda outputs: jnp.zeros(len(outputs), jnp.int32),
    )
    data = {"features": jnp.arange(70), "label": jnp.zeros(70, jnp.int32)}
    drawn = []
    for _ in range(2):
        state, _, each = steps.train_epoch(
            state, data, jax.random.key(0), batch_size=16
        )
        drawn += each.loss.tolist()
    assert len(set(drawn)) == 2 * STEPS_PER_EPOCH


def test_evaluation_weights_each_example_equally():
    # Small integers: sums are exact in float32, so the padding must be too.
    losses = np.arange(33) % 7
    labels = np.arange(33) % 3
    state = training_dummy.make_state(
        apply_fn=lambda variables, x, **_: (x, {"events": report(x)}),
        loss_fn=lambda outputs, labels, params, events: outputs[:, 0],
        predict_fn=lambda outputs: jnp.ones(len(outputs), jnp.int32),
    )

    def report(x):
        count = jnp.stack([x[:, 0] > 5, x[:, 0] < 0], axis=1).astype(jnp.int32)
        return {"hidden": {"count": count, "dropped": x[:, 0].astype(jnp.int32)}}

    data = {"features": jnp.float32(losses)[:, None], "label": jnp.int32(labels)}
    result = steps.evaluate_split(state, data, jax.random.key(0), batch_size=16)
    scalars = metrics.to_scalars(result)
    assert scalars == {
        "loss": losses.sum() / 33,
        "accuracy": (labels == 1).sum() / 33,
        "events/hidden_overflow": losses.sum(),
        "events/hidden_spikes": (losses > 5).sum() / 33,
        "events/hidden_silent": 0.5,
    }


@pytest.mark.parametrize("read", [{}, {"read_fn": lambda outputs: outputs["v"]}])
def test_loss_and_prediction_take_what_is_read(read):
    def apply(variables, x, **_):
        v = x * variables["params"]["weight"]
        return ({"v": v} if read else v), {}

    state = training_dummy.make_state(
        params={"weight": jnp.ones(())},
        tx=optax.sgd(1.0),
        apply_fn=apply,
        loss_fn=lambda readings, labels, params, events: readings**2,
        predict_fn=lambda readings: jnp.int32(readings),
        **read,
    )
    batch = {
        "features": jnp.array([1.0, 2.0]),
        "label": jnp.array([1, 1]),
        "mask": jnp.array([True, True]),
    }
    new_state, of_training = steps.train_step(state, batch)
    assert (
        new_state.params["weight"] == 1 - (2 * 1 + 2 * 4) / 2
    )  # By the readings' gradient.
    for found in (of_training, steps.eval_step(state, batch)):
        scalars = metrics.to_scalars(found)
        assert (scalars["loss"], scalars["accuracy"]) == (2.5, 0.5)


def test_events_metric_merges_batches():
    def batch(count, dropped):
        events = {
            "hidden": {
                "count": np.int32(count),
                "dropped": np.int32(dropped),
                "saturated": np.float32(dropped) / 2,
                "v": np.ones((2, 3), np.float32),
                "time": np.float32([np.inf, np.inf]),
            }
        }
        return metrics.Events.from_model_output(events=events)

    merged = batch([[0, 2, 0], [0, 1, 0]], [4, 0]).merge(
        batch([[0, 0, 1], [0, 0, 0]], [0, 1])
    )
    assert {k: float(v) for k, v in merged.compute().items()} == {
        "hidden_overflow": 5,
        "hidden_saturated": 5 / 2 / 4,
        "hidden_spikes": 1.0,  # 4 spikes in 4 samples
        "hidden_silent": pytest.approx(1 / 3),  # the first of 3 neurons
    }


class Counting(nn.Module):
    """A model with a state collection of its own."""

    @nn.compact
    def __call__(self, x):
        runs = self.variable("chip", "runs", lambda: jnp.zeros((), jnp.int32))
        if self.is_mutable_collection("chip") and not self.is_initializing():
            runs.value += 1
        return nn.Dense(3)(x)


def test_state_collections_are_carried_and_restored(tmp_path, monkeypatch):
    def create_experiment(config):
        parts = training_dummy.create_experiment(config)
        parts.model = Counting()
        return parts

    monkeypatch.setattr(experiment, "create_experiment", create_experiment)
    for num_epochs in (1, 3):
        state = training.train_and_evaluate(
            make_config(num_epochs=num_epochs), tmp_path
        )
        assert state.collections["chip"]["runs"] == num_epochs * STEPS_PER_EPOCH


# Starting from another run


def test_new_run_starts_with_the_parameters_of_another(finished, tmp_path, caplog):
    workdir, pretrained = finished
    before = files(workdir)
    changes = {"init_from": str(workdir), "num_epochs": 2, "hardware": "other"}
    with caplog.at_level(logging.INFO, "jaxsnn"):
        state = training.train_and_evaluate(
            make_config(learning_rate=0.0, **changes), tmp_path
        )
    assert f"parameters of step 20 (epoch 5) in {workdir}, with hardware ''" in (
        caplog.text
    )
    # At a learning rate of 0 they stay; the epochs and the optimizer begin anew.
    assert_identical(state.params, pretrained.params)
    assert int(state.step) == 8
    assert files(workdir) == before
    # What it goes on from is its own, whatever became of the other, which need not be
    # named again; but a third would be another run.
    more = make_config(learning_rate=0.0, num_epochs=3, hardware="other")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_pretrained", None)
        assert int(training.train_and_evaluate(more, tmp_path).step) == 12
    message = "another run:\n  init_from: '' in the checkpoint, 'third' now"
    with pytest.raises(training.TrainingError, match=message):
        training.train_and_evaluate(
            make_config(learning_rate=0.0, init_from="third"), tmp_path
        )


def test_parameters_of_another_model_are_refused(finished, tmp_path):
    workdir, _ = finished
    message = (
        r"another model:\n  hidden/Dense_0/bias: \(100,\) there, \(7,\) here\n"
        r"  hidden/Dense_0/kernel: \(4, 100\) there, \(4, 7\) here\n"
    )
    config = make_config(init_from=str(workdir), **{"model.hidden": (7,)})
    with pytest.raises(training.TrainingError, match=message):
        training.train_and_evaluate(config, tmp_path)
    config = make_config(init_from=str(tmp_path / "nothing"))
    with pytest.raises(
        training.TrainingError, match=r"no checkpoint in .*nothing, which"
    ):
        training.train_and_evaluate(config, tmp_path)


# Continuing


class Crash(Exception):
    pass


def fail_at(patch, owner, name, step, action):
    """Lets `action` happen at the end of a method that gets a step or a state."""
    original = getattr(owner, name)

    def failing(self, first, *args):
        original(self, first, *args)
        if int(getattr(first, "step", first)) == step:
            action()

    patch.setattr(owner, name, failing)


def crash():
    raise Crash


@pytest.mark.parametrize(
    ("owner", "name", "step"),
    [
        (Checkpoints, "save", 12),  # inside a window of the log
        (writers.MetricWriter, "write_scalars", 16),  # logged, not saved
    ],
)
def test_continuation_is_bit_identical(finished, tmp_path, owner, name, step):
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, owner, name, step, crash)
        with pytest.raises(Crash):
            training.train_and_evaluate(make_config(), tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1')
    state = training.train_and_evaluate(make_config(), tmp_path)
    workdir, expected = finished
    assert_identical(state, expected)
    assert rows(tmp_path) == rows(workdir)
    assert tensorboard_steps(tmp_path, "train/loss") == [8, 16, 20]


def test_more_epochs_continue_a_finished_run(finished, tmp_path):
    training.train_and_evaluate(make_config(num_epochs=2), tmp_path)
    changed = make_config(hardware="other", keep_checkpoints=1)
    state = training.train_and_evaluate(changed, tmp_path)
    workdir, expected = finished
    assert_identical(state, expected)
    kept, result = rows(tmp_path), rows(workdir)
    assert "test/loss" in kept.pop(1)
    assert kept == result
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["20"]


@pytest.mark.parametrize(
    ("signum", "checkpoint_every_epochs"), [(signal.SIGTERM, 4), (signal.SIGINT, 2)]
)
def test_signal_saves_and_stops(tmp_path, signum, checkpoint_every_epochs):
    before = signal.getsignal(signum)
    with pytest.MonkeyPatch.context() as patch:
        fail_at(
            patch,
            writers.MetricWriter,
            "write_scalars",
            8,
            lambda: signal.raise_signal(signum),
        )
        config = make_config(checkpoint_every_epochs=checkpoint_every_epochs)
        with pytest.raises(training.Interrupted) as interruption:
            training.train_and_evaluate(config, tmp_path)
    assert interruption.value.signum == signum
    assert signal.getsignal(signum) == before
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["8"]


def test_finished_run_is_not_repeated(finished, tmp_path, monkeypatch, caplog):
    workdir, expected = finished
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    before = files(tmp_path)
    monkeypatch.setattr(loop, "evaluate_split", None)
    monkeypatch.setattr(loop, "train_epoch", None)
    with caplog.at_level(logging.INFO, "jaxsnn"):
        state = training.train_and_evaluate(make_config(), tmp_path)
    assert_identical(state, expected)
    assert files(tmp_path) == before
    accuracy = rows(workdir)[-1]["test/accuracy"]
    assert f"finished: test accuracy {accuracy:.4f}" in caplog.text


def test_missing_result_is_made_up_for(finished, tmp_path, monkeypatch):
    workdir, _ = finished
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
    monkeypatch.setattr(loop, "train_epoch", None)
    training.train_and_evaluate(make_config(), tmp_path)
    assert rows(tmp_path) == rows(workdir)


def test_other_number_of_examples_is_refused(finished, monkeypatch):
    monkeypatch.setitem(training_dummy.SIZES, "train", 71)
    with pytest.raises(training.TrainingError, match=r"num_examples: 70 .* 71 now"):
        training.train_and_evaluate(make_config(), finished[0])


# What stops a run


def test_nan_in_the_data_stops_at_its_step(tmp_path, monkeypatch):
    training.train_and_evaluate(make_config(num_epochs=2), tmp_path)
    config = make_config()
    _, train_key, _ = jax.random.split(jax.random.key(0), 3)
    order_key, _ = jax.random.split(jax.random.fold_in(train_key, 2))
    order = jax.random.permutation(order_key, 70)
    step_in_epoch, example = 2, order[2 * 16 + 5]

    monkeypatch.setattr(datasets, "load", training_dummy.load_with_nan(example))
    step = 2 * STEPS_PER_EPOCH + step_in_epoch + 1
    message = rf"step {step} \(epoch 3\): the loss is nan.* last good .* step 8 in"
    with pytest.raises(training.NonFiniteError, match=message):
        training.train_and_evaluate(config, tmp_path)
    assert [row["step"] for row in rows(tmp_path)] == [8, 8]
    names = [p.name for p in (tmp_path / "checkpoints").iterdir()]
    assert sorted(names) == ["4", "8"]


def sqrt_of_zero(params):
    """Zero, with a gradient of 0 * inf."""
    return jnp.sqrt(0 * sum(jnp.sum(x) for x in jax.tree.leaves(params)))


@pytest.mark.parametrize(
    ("term", "scale", "message"),
    [
        (sqrt_of_zero, 1e-3, r"step 1 \(epoch 1\): the loss is 1\.\d+, 803 values"),
        (lambda params: 0.0, jnp.inf, r"loss is 1\.\d+, 0 values .* and 803 of the"),
    ],
)
def test_nonfinite_update_stops(tmp_path, monkeypatch, term, scale, message):
    def create_experiment(config):
        parts = training_dummy.create_experiment(config)
        loss = parts.loss
        parts.loss = lambda *args: loss(*args) + term(args[2])
        parts.optimizer = lambda steps_per_epoch: (optax.sgd(scale), lambda step: scale)
        return parts

    monkeypatch.setattr(experiment, "create_experiment", create_experiment)
    with pytest.raises(training.NonFiniteError, match=message) as error:
        training.train_and_evaluate(make_config(), tmp_path)
    assert "No checkpoint was saved" in str(error.value)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_second_process_is_refused(tmp_path):
    with (
        filelock.FileLock(tmp_path / ".lock"),
        pytest.raises(training.TrainingError, match="Another process is training"),
    ):
        training.train_and_evaluate(make_config(), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 71}, "batch_size is 71, more than the 70 training examples"),
        ({"log_every_epochs": 0}, "log_every_epochs must be 1 or more, and is 0"),
    ],
)
def test_impossible_numbers_are_refused(tmp_path, changes, message):
    with pytest.raises(training.TrainingError, match=message):
        training.train_and_evaluate(make_config(**changes), tmp_path)


# Evaluating


def test_evaluate_repeats_the_result(finished, caplog):
    workdir, _ = finished
    before = files(workdir)
    config = make_config(hardware="other")
    with caplog.at_level(logging.INFO, "jaxsnn"):
        result = training.evaluate(config, workdir)
    assert files(workdir) == before
    expected = rows(workdir)[-1]
    assert {f"test/{name}": value for name, value in result.items()} == {
        k: v for k, v in expected.items() if k.startswith("test/")
    }
    assert "trained on hardware '', evaluated on 'other'" in caplog.text


def test_evaluate_needs_a_checkpoint(tmp_path):
    with pytest.raises(training.TrainingError, match="There is no checkpoint in"):
        training.evaluate(make_config(), tmp_path / "none")
    assert not (tmp_path / "none").exists()


# The console


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "shown"),
    [
        (io.StringIO(), "epoch 1\nepoch 2\nkept\n"),
        (Terminal(), "\r\x1b[Kepoch 1\r\x1b[Kepoch 2\r\x1b[Kkept\n"),
    ],
)
def test_progress_line_is_overwritten_on_a_terminal_only(stream, shown):
    console = writers._Console(stream)
    for message, transient in [("epoch 1", True), ("epoch 2", True), ("kept", False)]:
        record = logging.makeLogRecord({"msg": message, "levelno": logging.INFO})
        record.transient = transient
        console.emit(record)
    assert stream.getvalue() == shown
