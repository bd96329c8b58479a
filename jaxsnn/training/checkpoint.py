"""Checkpoints that are verified when read, and the rules for continuing from one."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import logging
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp

from jaxsnn.training import devices
from jaxsnn.training.errors import TrainingError
from jaxsnn.training.steps import TrainState

_VERSION = 2

# Fields, or groups of them. All others decide the numbers: changing one makes another
# run. A device decides them, too; but to go on elsewhere is what devices are for.
MAY_CHANGE = frozenset(
    {
        "bss2",
        "checkpoint_every_epochs",
        "chip",
        "data_dir",
        "distributed",
        "eval_split",
        "hardware",
        "keep_checkpoints",
        "log_every_epochs",
        "mesh",
        "nest",
        "nonfinite",
        "num_epochs",
        "plot_every_epochs",
        "until",
    }
)

# Of the time, saving may take this much. An epoch can be shorter than a save, which is
# some 50 ms however small the state is.
_SHARE = 0.03

logger = logging.getLogger(__name__)

Found = TypeVar("Found")


class Checkpoint(NamedTuple):
    """What was read back.

    Attributes:
      state: the state, on the device of the state it replaces.
      progress: the values given to `Checkpoints.save`.
      config: the fields of the config it was trained with, by dotted name.
    """

    state: TrainState
    progress: dict[str, Any]
    config: dict[str, Any]


class Parameters(NamedTuple):
    """Parameters that were read back without a state.

    Attributes:
      params: arrays of NumPy.
      progress: the values given to `Checkpoints.save`.
      config: the config it was trained with, nested.
    """

    params: dict[str, Any]
    progress: dict[str, Any]
    config: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, in `checkpoints` below its workdir.

    Saves are asynchronous and atomic: a process killed at any time leaves whole
    checkpoints, and at most a temporary directory that the next one removes.

    Args:
      workdir: directory of the run.
      keep: how many of the newest checkpoints are kept.
      read_only: whether to leave the directory as it is.
    """

    def __init__(self, workdir: Path, keep: int = 1, *, read_only: bool = False):
        self.directory = workdir / "checkpoints"
        self._read_only = read_only
        self._saved: int | None = None
        self._began, self._cost = -math.inf, 0.0  # Of the last save, in seconds.
        if read_only:
            options = ocp.CheckpointManagerOptions(
                read_only=True, create=False, save_interval_steps=0
            )
        else:
            options = ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                cleanup_tmp_directories=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._ended),
            )
        with _quiet():
            self._manager = ocp.CheckpointManager(self.directory, options=options)

    def affordable(self) -> bool:
        """Whether to save now keeps saving below a share of the time, 3 %.

        It depends on the clock, and is the same in all processes of a run, which all
        have to ask. The first save is affordable, and none is while one is under way.

        Raises:
          TrainingError: the last save failed.
        """
        with self._saving():
            self._manager.check_for_errors()
        due = time.perf_counter() > self._began + self._cost / _SHARE
        return bool(devices.largest(due))

    def save(
        self,
        state: TrainState,
        progress: Mapping[str, Any],
        config: ml_collections.ConfigDict,
    ) -> None:
        """Starts to save `state` under its step, unless that step is saved already.

        The buffers of `state` may be donated as soon as this returns.

        Args:
          state: the state; its parameters are finite.
          progress: where the run is and on which data, as plain values.
          config: the config of the run.

        Raises:
          TrainingError: this save or the one before it failed, as on a full disk.
        """
        step = int(state.step)
        if step == self._saved:
            return
        self._began, self._cost = time.perf_counter(), math.inf
        content = {
            **progress,
            "version": _VERSION,
            "state_digest": _digest(state),
            "params_digest": _digest(state.params),
        }
        fields = json.loads(config.to_json())
        seal = _seal(content, fields)
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            progress=ocp.args.JsonSave({**content, "seal": seal}),
            config=ocp.args.JsonSave(fields),
        )
        with self._saving():
            # Orbax declines, without a word, a step below one that is there.
            if not self._manager.save(step, args=items):
                raise ValueError(f"step {step} is not above those that are there")
        self._saved = step

    def _ended(self) -> None:
        self._cost = time.perf_counter() - self._began

    def wait(self) -> None:
        """Blocks until the last save is complete on disk.

        Raises:
          TrainingError: it failed.
        """
        with self._saving():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save and ends the threads; never raises."""
        with contextlib.suppress(Exception), _quiet():
            self._manager.close()

    def last_good(self) -> str:
        """Says in words where the newest checkpoint is."""
        step = self._manager.latest_step()
        if step is None:
            return "No checkpoint was saved."
        return f"The last good checkpoint is step {step} in {self.directory}."

    def restore(
        self, state: TrainState, config: ml_collections.ConfigDict, **data: Any
    ) -> Checkpoint | None:
        """Reads the newest checkpoint that is whole.

        Damaged ones are named in a warning; they are moved to `damaged` below the
        workdir, where they are not in the way of later saves.

        Args:
          state: a state of the same structure and on the wanted device.
          config: the config of this run.
          **data: facts about the data that must equal those in the saved progress.

        Returns:
          The checkpoint, or None where there is none at all.

        Raises:
          TrainingError: the checkpoints are of another run, or all of them are damaged.
        """

        def read(step: int) -> Checkpoint:
            progress, fields = self._read_facts(step)
            self._check_same_run(progress, fields, config, data)
            target = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
            found = self._read_state(step, target)
            # Orbax has no checksum on the values of arrays above 1 KiB: flipped bits
            # would go unseen.
            _check_digest(found, progress["state_digest"])
            return Checkpoint(found, progress, fields)

        return self._newest(read)

    def restore_params(self, state: TrainState) -> Checkpoint | None:
        """Reads parameters alone, of any run with the same; all else stays as it is.

        Args:
          state: the state that gets them.

        Returns:
          As `restore`.

        Raises:
          TrainingError: the parameters have other names or shapes, or all checkpoints
            are damaged.
        """

        def read(step: int) -> Checkpoint:
            progress, fields = self._read_facts(step)
            with ocp.StandardCheckpointer() as reader:
                metadata = reader.metadata(self.directory / str(step) / "state")
            saved = metadata.item_metadata.tree
            self._check_same_shapes(saved["params"], state.params)
            # Only them: the rest belongs to an optimizer that may be another.
            target = jax.tree.map(
                lambda x, own: jax.ShapeDtypeStruct(
                    x.shape, x.dtype, sharding=own.sharding
                ),
                saved["params"],
                state.params,
            )
            with ocp.PyTreeCheckpointer() as reader:
                params = reader.restore(
                    self.directory / str(step) / "state",
                    args=ocp.args.PyTreeRestore(
                        {"params": target},
                        ocp.checkpoint_utils.construct_restore_args({"params": target}),
                        partial_restore=True,
                    ),
                )["params"]
            _check_digest(params, progress["params_digest"])
            params = jax.tree.map(
                lambda own, x: x.astype(own.dtype), state.params, params
            )
            return Checkpoint(state.replace(params=params), progress, fields)

        return self._newest(read)

    def read_params(self) -> Parameters | None:
        """Reads parameters alone, of any run, as they are.

        Returns:
          They, or None where there is no checkpoint at all.

        Raises:
          TrainingError: all checkpoints are damaged.
        """

        def read(step: int) -> Parameters:
            progress, _ = self._read_facts(step)
            fields = self._manager.restore(
                step, args=ocp.args.Composite(config=ocp.args.JsonRestore())
            )["config"]
            folder = self.directory / str(step) / "state"
            with ocp.PyTreeCheckpointer() as reader:
                tree = reader.metadata(folder).item_metadata.tree["params"]
                here = jax.tree.map(
                    lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree
                )
                params = reader.restore(
                    folder,
                    args=ocp.args.PyTreeRestore(
                        {"params": tree}, {"params": here}, partial_restore=True
                    ),
                )["params"]
            _check_digest(params, progress["params_digest"])
            return Parameters(params, progress, fields)

        return self._newest(read)

    def _newest(self, read: Callable[[int], Found]) -> Found | None:
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            reason = None
            with _quiet():
                try:
                    found = read(step)
                except TrainingError:
                    raise
                except Exception as error:  # Orbax reports damage in many types.
                    reason = _one_line(error)
                    error.__traceback__ = None
                    _settle()
            if reason is None:
                self._set_aside(damaged)
                self._saved = step
                return found
            damaged[step] = reason
            logger.warning(
                "warning: checkpoint %s is damaged and not used (%s)",
                self.directory / str(step),
                reason,
            )
        if damaged:
            raise TrainingError(
                f"All checkpoints in {self.directory} are damaged (steps "
                f"{', '.join(map(str, sorted(damaged)))}); nothing was changed. Put "
                "back a copy, or move the directory away to start anew."
            )
        return None

    def _read_facts(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Progress and config, by dotted name, verified."""
        json_item = ocp.args.JsonRestore()
        items = self._manager.restore(
            step, args=ocp.args.Composite(progress=json_item, config=json_item)
        )
        progress, fields = items["progress"], items["config"]
        # Before anything else: one flipped bit makes seed 1 a seed 3.
        if progress.pop("seal") != _seal(progress, fields):
            raise ValueError("progress and config do not have their checksum")
        if progress["version"] != _VERSION:
            raise TrainingError(
                f"Checkpoint {step} in {self.directory} has format version "
                f"{progress['version']}; this code reads version {_VERSION}."
            )
        return progress, flatten(fields)

    def _read_state(self, step: int, target: Any) -> Any:
        items = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target))
        )
        return items["state"]

    def _check_same_shapes(self, saved: Any, own: Any) -> None:
        there, here = (
            {
                jax.tree_util.keystr(path, simple=True, separator="/"): tuple(x.shape)
                for path, x in jax.tree_util.tree_leaves_with_path(params)
            }
            for params in (saved, own)
        )
        differing = [
            f"  {name}: {there.get(name, 'absent')} there, {here.get(name, 'absent')}"
            " here"
            for name in sorted(there.keys() | here.keys())
            if there.get(name) != here.get(name)
        ]
        if differing:
            raise TrainingError(
                f"The parameters in {self.directory} are of another model:\n"
                + "\n".join(differing)
                + "\nSet config.model and config.encoding as they were there, or leave "
                "config.init_from empty."
            )

    def _check_same_run(
        self,
        progress: Mapping[str, Any],
        fields: Mapping[str, Any],
        config: ml_collections.ConfigDict,
        data: Mapping[str, Any],
    ) -> None:
        saved = {**fields, **{f"data {name}": progress[name] for name in data}}
        current = {
            **flatten(json.loads(config.to_json())),
            **{f"data {name}": value for name, value in data.items()},
        }
        if not config.init_from:  # What a run began with need not be said again.
            saved.pop("init_from", None)
            current.pop("init_from")
        differing = [
            f"  {name}: {saved.get(name, 'absent')!r} in the checkpoint, "
            f"{current.get(name, 'absent')!r} now"
            for name in sorted(saved.keys() | current.keys())
            if saved.get(name) != current.get(name)
            and name.partition(".")[0] not in MAY_CHANGE
        ]
        if differing:
            raise TrainingError(
                f"The checkpoints in {self.directory} are of another run:\n"
                + "\n".join(differing)
                + "\nChoose another --workdir, or restore these values to continue."
            )

    def _set_aside(self, damaged: Mapping[int, str]) -> None:
        if self._read_only or not damaged:
            return
        stamp = time.strftime("%Y%m%dT%H%M%S")
        aside = self.directory.parent / "damaged"
        aside.mkdir(exist_ok=True)
        for step in damaged:
            shutil.move(self.directory / str(step), aside / f"{step}-{stamp}")
        self._manager.reload()

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        with _quiet():
            try:
                yield
            except Exception as error:  # Orbax reports a full disk as ValueError.
                _settle()
                # What is there of it would keep the disk full until the next start.
                for part in self.directory.glob("*.orbax-checkpoint-tmp"):
                    shutil.rmtree(part, ignore_errors=True)
                raise TrainingError(
                    f"Cannot save a checkpoint in {self.directory}: {_one_line(error)}."
                    " Those saved before are whole; the same command continues from the"
                    " newest once the cause is gone."
                ) from error


def changes(saved: Mapping[str, Any], config: ml_collections.ConfigDict) -> list[str]:
    """Names the fields that differ from those saved, each with both values."""
    current = flatten(json.loads(config.to_json()))
    return [
        f"{name} {saved.get(name)!r} -> {current.get(name)!r}"
        for name in sorted(saved.keys() | current.keys())
        if saved.get(name) != current.get(name)
    ]


def flatten(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Gives nested fields dotted names."""
    flat = {}
    for name, value in fields.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def _seal(*content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest(tree: Any) -> str:
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(tree)):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        digest.update(
            f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode()
        )
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _check_digest(tree: Any, expected: str) -> None:
    if _digest(tree) != expected:
        raise ValueError("the state does not have its checksum")


def _one_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [""])[0]
    if len(line) > 200:  # Orbax begins with the operation and ends with the cause.
        line = f"{line[:80]} ... {line[-115:]}"
    return f"{type(error).__name__}: {line}"


def _settle() -> None:
    """Waits for the complaints about what was given up, to be called in `_quiet`.

    Reads and writes still under way complain when they end, and coroutines that were
    never awaited when they are collected.
    """
    time.sleep(0.2)
    gc.collect()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps back the pages that Orbax prints about what it cannot read or write.

    The exception itself still reaches the caller.
    """
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in loggers]
    hooks = sys.unraisablehook, sys.excepthook  # The threads of TensorStore use both.
    for noisy in loggers:
        noisy.setLevel(logging.CRITICAL + 1)
    sys.unraisablehook = lambda _: None
    sys.excepthook = lambda *_: None
    try:
        yield
    finally:
        for noisy, level in zip(loggers, levels, strict=True):
            noisy.setLevel(level)
        sys.unraisablehook, sys.excepthook = hooks
