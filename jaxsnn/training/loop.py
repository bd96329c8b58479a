"""The host's part of training: data in, progress out, checkpoints, signals."""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import logging
import os
import signal
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import filelock
import jax
import ml_collections
import numpy as np
import optax
from clu import parameter_overview

from jaxsnn import datasets
from jaxsnn.hardware import DeviceError
from jaxsnn.training import (
    checkpoint,
    devices,
    ensemble,
    experiment,
    figures,
    hardware,
    nonfinite,
    writers,
)
from jaxsnn.training.checkpoint import Checkpoints
from jaxsnn.training.ensemble import Ensemble
from jaxsnn.training.errors import Interrupted, NonFiniteError, TrainingError
from jaxsnn.training.metrics import EvalMetrics, Window, to_scalars
from jaxsnn.training.options import choose
from jaxsnn.training.steps import (
    Batch,
    Health,
    TrainState,
    create_train_state,
    epoch_batches,
    evaluate_split,
    take,
    train_epoch,
)

# What becomes of a step in which something is NaN or Inf: whether it is skipped.
_NONFINITE = {"stop": False, "skip": True}

logger = logging.getLogger(__name__)


class _Setup(NamedTuple):
    """What training and evaluation share: all that a config alone determines."""

    state: TrainState
    device: Any  # What finds the spikes; None for the simulation.
    ensemble: Ensemble  # Whose state and keys these are.
    learning_rate: Callable[[int], Any]
    train: Batch
    train_key: jax.Array
    eval_key: jax.Array
    steps_per_epoch: int
    num_examples: int


def train_and_evaluate(
    config: ml_collections.ConfigDict, workdir: str | os.PathLike[str]
) -> TrainState:
    """Trains to `config.num_epochs`, then evaluates the test split once.

    Continues from the newest whole checkpoint in `workdir`, bit for bit as if it had
    never stopped. A run that is finished already is reported and not repeated. A new
    one starts with the parameters of the run in `config.init_from`, if that is given.

    Args:
      config: the experiment, as `configs/yinyang.py` describes it.
      workdir: directory for checkpoints, metrics and TensorBoard files; it is created.

    Returns:
      The state after the last step.

    Raises:
      TrainingError: the run cannot go on; the message says what to do.
      Interrupted: SIGTERM or SIGINT; the state was saved after the epoch in progress.
      DeviceError: the device failed; the state was saved as it was before the epoch in
        progress. Its `__notes__` say so.
    """
    began = time.perf_counter()
    directory = Path(workdir).absolute()
    with contextlib.ExitStack() as stack:
        # First: it has a handler of SIGTERM, which ours replaces.
        stack.enter_context(devices.connected(config))
        stop = stack.enter_context(_stop_on_signal())
        with writers.writing_to(directory):
            if devices.is_first():
                directory.mkdir(parents=True, exist_ok=True)
                stack.enter_context(_only_process(directory))
            devices.wait_for_all()
            devices.check_equal(f"directory {directory}", directory.is_dir())
            checkpoints = Checkpoints(directory, config.keep_checkpoints)

        @stack.push
        def close(kind: Any, error: BaseException | None, trace: Any) -> None:
            # Alone it would wait for the others' part of a save.
            if not devices.is_alone(error):
                checkpoints.close()

        figures.check(config)
        setup = _set_up(config)
        stack.enter_context(hardware.released(setup.device))
        state, window = setup.state, Window()
        found = checkpoints.restore(state, config, num_examples=setup.num_examples)
        if found:
            state = found.state
            window = Window(found.progress["window"])
            changed = checkpoint.changes(found.config, config)
            logger.info(
                "continuing from step %d (epoch %d)%s",
                state.step,
                found.progress["epoch"],
                f", with {', '.join(changed)}" if changed else "",
            )
        elif config.init_from:
            state = _pretrained(state, config)
        epoch = int(state.step) // setup.steps_per_epoch
        devices.check_equal("newest checkpoint", epoch)
        if epoch >= config.num_epochs:
            rows = writers.read_metrics(directory)
            results = [row for row in rows if "test/accuracy" in row]
            finished = results and results[-1]["step"] == state.step
            devices.check_equal("metrics.jsonl", bool(finished))
            if finished:
                _log_result("This run is finished", results[-1], epoch)
                logger.info(
                    "Raise config.num_epochs to train on, or choose another --workdir "
                    "to train anew; this one is %s",
                    directory,
                )
                return state

        kind = writers.MetricWriter if devices.is_first() else writers.NoWriter
        writer = kind(directory, int(state.step))
        stack.callback(writer.close)
        writer.write_config(config.to_json(indent=2))
        if not found:
            writer.write_texts(0, {"config": f"```\n{config}```"})

        def save() -> str:
            """Saves the state after the last whole epoch, and says so."""
            if not epoch:
                return "Nothing was trained yet; the same command starts again."
            if pace.epochs:
                progress = _progress(config, setup, epoch, window)
                checkpoints.save(state, progress, config)
                checkpoints.wait()
            return (
                f"The state after epoch {epoch} is saved; the same command continues."
            )

        evaluate_on = _evaluator(config, setup)
        compile_seconds = 0.0
        if epoch < config.num_epochs:
            validation = _load(config, "validation", setup.ensemble)
            logger.info("compiling ...")
            tic = time.perf_counter()
            run_epoch = _compile(setup, state, config)
            if setup.device is None:  # Which would have to run all of it.
                # The first call compiles; its result is not wanted.
                jax.block_until_ready(evaluate_on(state, validation))
            compile_seconds = time.perf_counter() - tic
            logger.info("compiled in %.1f s", compile_seconds)
        samples_per_epoch = setup.steps_per_epoch * config.batch_size * config.ensemble
        seeds = setup.ensemble.seeds
        pace = _Pace()

        while True:
            signum = devices.largest(stop.signum or 0)  # All stop at the same step.
            if signum:
                save()
                logger.info(
                    "%s: stopped at step %d (epoch %d); the same command continues",
                    signal.Signals(signum).name,
                    state.step,
                    epoch,
                )
                raise Interrupted(signum)
            if epoch >= config.num_epochs:
                break
            # An epoch counts when all of it is done, its evaluation as well.
            with _on_fault(save):
                tic = time.perf_counter()
                trained, metrics, steps = run_epoch(state, setup.train, setup.train_key)
                metrics, steps = jax.device_get((metrics, steps))
                seconds = time.perf_counter() - tic
                _check_finite(
                    steps, trained, setup, config, epoch, directory, checkpoints
                )
                last = epoch + 1 == config.num_epochs
                log = last or (epoch + 1) % config.log_every_epochs == 0
                validated = (
                    to_scalars(evaluate_on(trained, validation), seeds) if log else {}
                )
            state, epoch = trained, epoch + 1
            window.add(metrics, samples_per_epoch, seconds)
            pace.add(samples_per_epoch, seconds)
            if log:
                step = epoch * setup.steps_per_epoch
                row = {
                    "epoch": epoch,
                    **window.scalars(seeds),
                    # Schedules count from 0: this is the rate of the step just taken.
                    "learning_rate": float(setup.learning_rate(step - 1)),
                    **_prefix("validation", validated),
                }
                writer.write_scalars(step, row)
                _log_progress(step, row, config.num_epochs, pace)
                window = Window()
            if figures.due(config, epoch):
                shown = figures.images(config, setup.ensemble, state, validation)
                writer.write_images(epoch * setup.steps_per_epoch, shown)
            # After the log: a killed run is cut back to the step it continues from, and
            # what was logged up to that step must be there.
            due = epoch % config.checkpoint_every_epochs == 0
            if last or (due and checkpoints.affordable()):
                progress = _progress(config, setup, epoch, window)
                checkpoints.save(state, progress, config)

        with _on_fault(save):
            test = _load(config, "test", setup.ensemble)
            tested = to_scalars(evaluate_on(state, test), seeds)
        result = _prefix("test", tested)
        checkpoints.wait()
        # Last of all: this line is what marks a run as finished.
        writer.write_scalars(int(state.step), {"epoch": epoch, **result})
        _log_result("done", result, epoch)
        if pace.epochs:
            logger.info(
                "training: %.0f samples/s (%d samples in the %.1f s spent in epochs; "
                "compilation, evaluation and checkpoints not counted)",
                pace.samples / pace.seconds,
                pace.samples,
                pace.seconds,
            )
        logger.info(
            "total wall time of this call: %.1f s, %.1f s of it compilation",
            time.perf_counter() - began,
            compile_seconds,
        )
        logger.info(
            "files: metrics.jsonl, config.json, checkpoints, TensorBoard events in %s",
            directory,
        )
        return state


def evaluate(
    config: ml_collections.ConfigDict, workdir: str | os.PathLike[str]
) -> dict[str, float | int]:
    """Evaluates the newest whole checkpoint on `config.eval_split`; writes nothing.

    Args:
      config: the config of the run; `hardware` may be another than in training.
      workdir: directory of the run.

    Returns:
      `loss`, `accuracy`, what the layers report as `events/...`, and how spikes on a
      device differ from the model's as `mismatch/...`.

    Raises:
      TrainingError: there is no whole checkpoint, or it is of another run.
      DeviceError: the device failed.
    """
    with devices.connected(config):
        return _evaluate(config, Path(workdir).absolute())


def _evaluate(
    config: ml_collections.ConfigDict, directory: Path
) -> dict[str, float | int]:
    setup, found = restored(config, directory)
    if found.config["hardware"] != config.hardware:
        logger.info(
            "trained on hardware %r, evaluated on %r",
            found.config["hardware"],
            config.hardware,
        )
    result = evaluated(config, setup, found.state)
    logger.info(
        "step %d (epoch %d) on %s: %s",
        found.state.step,
        found.progress["epoch"],
        config.eval_split,
        ", ".join(f"{name} {value:.4g}" for name, value in result.items()),
    )
    return result


def restored(
    config: ml_collections.ConfigDict, directory: Path
) -> tuple[_Setup, checkpoint.Checkpoint]:
    """The newest whole checkpoint of a run, with what its config determines.

    Raises:
      TrainingError: there is none, or it is of another run.
    """
    found = None
    if (directory / "checkpoints").is_dir():
        setup = _set_up(config)
        checkpoints = Checkpoints(directory, read_only=True)
        with contextlib.closing(checkpoints):
            found = checkpoints.restore(
                setup.state, config, num_examples=setup.num_examples
            )
    if found is None:
        raise TrainingError(
            f"There is no checkpoint in {directory}. Train first, or name the "
            "directory of a run with --workdir."
        )
    return setup, found


def evaluated(
    config: ml_collections.ConfigDict, setup: _Setup, state: TrainState
) -> dict[str, float | int]:
    """Evaluates a state on `config.eval_split`."""
    evaluate_on = _evaluator(config, setup)
    with hardware.released(setup.device), hardware.faults():
        split = _load(config, config.eval_split, setup.ensemble)
        return to_scalars(evaluate_on(state, split), setup.ensemble.seeds)


def reproduce(
    config: ml_collections.ConfigDict, path: str | os.PathLike[str]
) -> tuple[TrainState, Batch]:
    """Reads back what a run met in which something became NaN or Inf.

    `checked_step(*reproduce(config, path))` is that step again, unless a device does
    not repeat itself.

    Args:
      config: the config of the run.
      path: the .npz file, in `nonfinite` below its workdir.

    Returns:
      The state before the step, and its batch.

    Raises:
      TrainingError: there is no such file, or it is of another model.
    """
    config = config.copy_and_resolve_references()
    config.ensemble = 1  # The file is of one member.
    setup = _set_up(config)
    state, batch = nonfinite.load(Path(path), setup.state)
    return devices.place(state, setup.ensemble.sharding), batch


def _set_up(config: ml_collections.ConfigDict) -> _Setup:
    for name in (
        "batch_size",
        "num_epochs",
        "log_every_epochs",
        "checkpoint_every_epochs",
        "keep_checkpoints",
    ):
        if config[name] < 1:
            raise TrainingError(
                f"config.{name} must be 1 or more, and is {config[name]}."
            )
    choose("nonfinite", config.nonfinite, _NONFINITE)
    members = ensemble.create_ensemble(config)
    mesh = members.mesh
    logger.info(
        "device %s (%s)%s, jax %s",
        mesh.devices[0].platform,
        mesh.devices[0].device_kind,
        f", {mesh.size} of them share "
        f"{f'{config.ensemble} seeds' if members.several else 'a batch'}"
        if mesh.size > 1
        else "",
        jax.__version__,
    )
    fields = checkpoint.flatten(json.loads(config.to_json()))
    summary = "config " + ", ".join(f"{name}={value}" for name, value in fields.items())
    logger.info("%s", textwrap.fill(summary, 88, subsequent_indent="  "))

    train = _load(config, "train", members)
    num_examples = train["label"].shape[0]
    steps_per_epoch = num_examples // config.batch_size
    if not steps_per_epoch:
        raise TrainingError(
            f"config.batch_size is {config.batch_size}, more than the {num_examples} "
            f"training examples of {config.dataset}."
        )
    if config.until is not None and config.model.dt is not None:
        raise TrainingError(
            f"config.until is {config.until} and config.model.dt {config.model.dt}, but"
            " a time grid ends with its steps; leave config.until at None."
        )
    parts = experiment.create_experiment(config)
    tx, learning_rate = parts.optimizer(steps_per_epoch)
    if config.max_weight is not None:
        tx = optax.chain(tx, hardware.keep_within(config.max_weight))
    device = getattr(parts.model, "backend", None)
    example = np.asarray(train["features"].addressable_data(0)[:1])

    def begin(seed: Any) -> tuple[TrainState, tuple[jax.Array, jax.Array]]:
        init_key, *keys = jax.random.split(jax.random.key(seed), 3)
        state = create_train_state(parts, tx, init_key, example, config.until)
        return ensemble.share(state, members, device), tuple(keys)

    try:
        # Committed like a restored state; otherwise the two would be compiled apart.
        state, (train_key, eval_key) = members.create(begin)
    except (ImportError, ValueError) as error:  # As from a device that cannot run it.
        raise TrainingError(str(error)) from error
    _, one = next(members.members(state))
    logger.info(
        "%s",
        parameter_overview.get_parameter_overview(one.params, include_stats=False),
    )
    return _Setup(
        state=state,
        device=device,
        ensemble=members,
        learning_rate=learning_rate,
        train=train,
        train_key=train_key,
        eval_key=eval_key,
        steps_per_epoch=steps_per_epoch,
        num_examples=num_examples,
    )


def _load(config: ml_collections.ConfigDict, split: str, members: Ensemble) -> Batch:
    try:
        data = datasets.load(config.dataset, split, data_dir=config.data_dir or None)
    except (ValueError, datasets.DatasetError) as error:
        raise TrainingError(str(error)) from error
    logger.info("%s: %d %s examples", config.dataset, len(data["label"]), split)
    features = np.asarray(data["features"])
    arrays = {
        # Images stay bytes, a quarter of the memory.
        "features": features if features.dtype == np.uint8 else np.float32(features),
        "label": np.asarray(data["label"], np.int32),
    }
    for name, array in arrays.items():
        devices.check_equal(f"{name} of the {split} split", array.tobytes())
    return devices.place(arrays, devices.replicated(members.mesh))


def _compile(
    setup: _Setup, state: TrainState, config: ml_collections.ConfigDict
) -> Callable[..., Any]:
    one = functools.partial(
        train_epoch,
        batch_size=config.batch_size,
        skip_nonfinite=_NONFINITE[config.nonfinite],
    )
    places = jax.tree.map(lambda x: x.sharding, state)
    epoch = jax.jit(
        setup.ensemble.each(one),
        # A device may fail: then the state before is what is left.
        donate_argnums=0 if setup.device is None else (),
        out_shardings=(places, setup.ensemble.sharding, setup.ensemble.sharding),
    )
    return epoch.lower(state, setup.train, setup.train_key).compile()


def _pretrained(state: TrainState, config: ml_collections.ConfigDict) -> TrainState:
    """The state with the parameters of another run."""
    source = Path(config.init_from).absolute()
    found = None
    if (source / "checkpoints").is_dir():
        checkpoints = Checkpoints(source, read_only=True)
        with contextlib.closing(checkpoints):
            found = checkpoints.restore_params(state)
    if found is None:
        raise TrainingError(
            f"There is no checkpoint in {source}, which config.init_from names. Train "
            "there first, or leave it empty."
        )
    changed = checkpoint.changes(found.config, config)
    logger.info(
        "starting from the parameters of step %d (epoch %d) in %s%s",
        found.progress["step"],
        found.progress["epoch"],
        source,
        f", with {', '.join(changed)}" if changed else "",
    )
    return found.state


@contextlib.contextmanager
def _on_fault(save: Callable[[], str]) -> Iterator[None]:
    """Saves what there is when a device fails; the error gets a note of that."""
    try:
        with hardware.faults():
            yield
    except DeviceError as error:
        try:
            error.add_note(save())
        except TrainingError as failure:
            error.add_note(str(failure))
        raise


def _evaluator(
    config: ml_collections.ConfigDict, setup: _Setup
) -> Callable[[TrainState, Batch], EvalMetrics]:
    # One key for all: on a device with noise, too, evaluations can be compared.
    one = functools.partial(evaluate_split, batch_size=config.batch_size)
    every = setup.ensemble.each(one)
    return jax.jit(
        lambda state, data: every(state, data, setup.eval_key),
        out_shardings=setup.ensemble.sharding,
    )


def _progress(
    config: ml_collections.ConfigDict, setup: _Setup, epoch: int, window: Window
) -> dict[str, Any]:
    """Where a run is, next to its state."""
    return {
        "step": epoch * setup.steps_per_epoch,
        "epoch": epoch,
        "seed": config.seed,
        "batch_size": config.batch_size,
        "num_examples": setup.num_examples,
        "window": window.leaves(),
    }


class _Pace:
    """How fast this process trains."""

    def __init__(self) -> None:
        self.epochs, self.samples, self.seconds = 0, 0, 0.0
        self._began = time.perf_counter()

    def add(self, samples: int, seconds: float) -> None:
        self.epochs += 1
        self.samples += samples
        self.seconds += seconds

    def time_for(self, epochs: int) -> datetime.timedelta:
        """Estimates from all that an epoch costs: evaluation and saving as well."""
        elapsed = time.perf_counter() - self._began
        return datetime.timedelta(seconds=round(elapsed / self.epochs * epochs))


def _check_finite(
    steps: Health,
    trained: TrainState,
    setup: _Setup,
    config: ml_collections.ConfigDict,
    epoch: int,
    directory: Path,
    checkpoints: Checkpoints,
) -> None:
    """Ends a run with NaN or Inf, unless such steps are skipped and some were sound."""
    skip = _NONFINITE[config.nonfinite]

    def ends(steps: Health) -> bool:
        bad = nonfinite.bad_steps(steps)
        return bool((bad.all(axis=-1) if skip else bad).any())

    if not ends(steps):
        return
    members = setup.ensemble.members((steps, trained, setup.train_key))
    seed, (steps, state, key) = next(m for m in members if ends(m[1][0]))
    i = int(np.argmax(nonfinite.bad_steps(steps)))
    step = epoch * setup.steps_per_epoch + i

    @functools.partial(jax.jit, out_shardings=devices.replicated(setup.ensemble.mesh))
    def offending(data: Batch, key: jax.Array) -> tuple[Batch, jax.Array]:
        batches = epoch_batches(step, data, key, config.batch_size)
        indices, key = jax.tree.map(lambda x: x[i], batches)
        return take(data, indices, key), indices

    batch, indices = offending(setup.train, key)
    path = directory / "nonfinite" / f"step-{step + 1}-seed-{seed}.npz"
    kept = f"The batch, and the state before it, are in {path}."
    if devices.is_first():
        try:
            with writers.writing_to(path):
                # Nothing else has changed since: the state is that before the step.
                nonfinite.save(path, state.replace(step=np.int32(step)), batch, indices)
        except TrainingError as error:
            kept = f"The batch was not kept: {error}"
    raise NonFiniteError(
        f"Training stopped at step {step + 1} (epoch {epoch + 1}"
        f"{f', seed {seed}' * setup.ensemble.several}): {nonfinite.describe(steps, i)}"
        f"{', and so in all steps after it' * skip}. {kept} {checkpoints.last_good()}"
    )


def _log_result(what: str, result: dict[str, Any], epoch: int) -> None:
    loss = result["test/loss"]  # None in the file where it was not finite.
    logger.info(
        "%s: test accuracy %.4f, test loss %.4f after %d epochs",
        what,
        result["test/accuracy"],
        np.nan if loss is None else loss,
        epoch,
    )


def _prefix(split: str, scalars: dict[str, float | int]) -> dict[str, float | int]:
    return {f"{split}/{name}": value for name, value in scalars.items()}


# Counted in the layers' events, and never to be overlooked.
_TROUBLE = {
    "train/skipped": "steps with NaN or Inf were skipped",
    "_overflow": "spikes found no slot",
    "_lost": "spikes were lost on the device",
    "_retried": "runs were repeated",
}


def _log_progress(
    step: int, row: dict[str, float | int], num_epochs: int, pace: _Pace
) -> None:
    epoch = int(row["epoch"])
    trouble = [
        f"  {total} {what}"
        for counter, what in _TROUBLE.items()
        if (total := sum(v for name, v in row.items() if name.endswith(counter)))
    ]
    trouble += [
        f"  {name.removeprefix('events/').removesuffix('_silent')} is silent"
        for name, fraction in row.items()
        if name.startswith("events/") and name.endswith("_silent") and fraction == 1
    ]
    logger.info(
        "epoch %*d/%d  step %d  loss %.4f  accuracy %.4f train, %.4f validation  "
        "%.0f samples/s  ETA %s%s",
        len(str(num_epochs)),
        epoch,
        num_epochs,
        step,
        row["train/loss"],
        row["train/accuracy"],
        row["validation/accuracy"],
        row["train/samples_per_s"],
        pace.time_for(num_epochs - epoch),
        "".join(trouble),
        extra={"transient": epoch % max(1, num_epochs // 10) and epoch < num_epochs},
    )


@contextlib.contextmanager
def _only_process(directory: Path) -> Iterator[None]:
    """Holds the run for this process; a killed one gives it back by itself."""
    lock = filelock.FileLock(directory / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise TrainingError(
            f"Another process is training in {directory}. Wait for it, or choose "
            "another --workdir."
        ) from None
    try:
        yield
    finally:
        lock.release()


class _Stop:
    signum: int | None = None


@contextlib.contextmanager
def _stop_on_signal() -> Iterator[_Stop]:
    """Notes SIGTERM and SIGINT instead of dying; a second SIGINT is not waited for."""
    stop = _Stop()

    def note(signum: int, frame: FrameType | None) -> None:
        del frame
        if signum == signal.SIGINT == stop.signum:
            raise KeyboardInterrupt
        stop.signum = signum

    # Python lets only the main thread handle signals.
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {s: signal.signal(s, note) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
