"""`train.py` in processes of their own, which a fault ends at a chosen place.

The processes are forked from one that has imported all and not yet used JAX, and share
what was compiled: to start one more takes a second.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import resource
import runpy
import signal
import sys
import time
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
CONTEXT = multiprocessing.get_context("forkserver")

_SMALL = (
    "--config.num_epochs=30",
    "--config.checkpoint_every_epochs=1",
    # Not every checkpoint is logged, and the last window is a shorter one.
    "--config.log_every_epochs=4",
)
_STAND_IN = (
    f"--config={ROOT}/configs/yinyang.py",
    *_SMALL,
    "--config.batch_size=16",
    "--config.model.hidden=100",
)
# What is trained. The first two are `training_dummy`, which has a device of its own.
CONFIGS = {
    "stand-in": _STAND_IN,
    "device": (*_STAND_IN, "--config.hardware=bench", "--config.until=60e-3"),
    "software": (
        f"--config={ROOT}/configs/yinyang.py",
        *_SMALL,
        "--config.batch_size=250",
        "--config.model.hidden=10",
    ),
    "chip": (
        f"--config={ROOT}/configs/yinyang_chip.py",
        *_SMALL,
        "--config.batch_size=500",
        "--config.model.hidden=6",
        "--config.chip.chip_seed=3",
    ),
}


class Kill(NamedTuple):
    """A process sends itself a signal at the n-th event that an audit hook sees.

    Python audits what touches files, as ("os.rename", source, target), and those are
    the moments at which a kill can leave something half done. `_mark` adds others.
    """

    event: str
    text: str = ""  # Somewhere in the arguments of the event.
    nth: int = 1
    signum: int = signal.SIGKILL


def start_server(cache: Path) -> None:
    """Starts the process that all others are forked from.

    Args:
      cache: where it keeps what was compiled.
    """
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        CONTEXT.set_forkserver_preload(["faulty_training"])
        forkserver.ensure_running()
    finally:
        for name in environment:
            os.environ.pop(name)
        os.environ.update(before)


class Run:
    """A process that trains in a directory.

    Args:
      workdir: of the run.
      config: what is trained, one of `CONFIGS`.
      *arguments: what is added to those of `train.py`.
      kill: where it ends; None: nowhere.
      logs: where a file with what it prints is kept; None: beside `workdir`.
      **environment: what is added to that of the process.
    """

    def __init__(
        self,
        workdir: Path,
        config: str,
        *arguments: str,
        kill: Kill | None = None,
        logs: Path | None = None,
        **environment: str,
    ):
        self._log = (logs or workdir.parent) / f"{workdir.name}.log"
        self._log.unlink(missing_ok=True)
        arguments = (*CONFIGS[config], *arguments, f"--workdir={workdir}")
        self._process = CONTEXT.Process(
            target=_train, args=(config, arguments, str(self._log), kill, environment)
        )
        self._process.start()

    def wait(self, seconds: float = 120) -> int:
        """Returns the exit code; minus the number of a signal that ended it."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            self._process.kill()
            raise TimeoutError(self.output)
        return self._process.exitcode

    def kill(self, signum: int, text: str, seconds: float) -> int:
        """Sends a signal some time after `text` was printed; as `wait`."""
        deadline = time.monotonic() + 60
        while text not in self.output and self._process.is_alive():
            assert time.monotonic() < deadline, self.output
            time.sleep(0.005)
        time.sleep(seconds)
        if self._process.is_alive():
            os.kill(self._process.pid, signum)
        return self.wait()

    @property
    def output(self) -> str:
        """What was printed so far, and the errors."""
        return self._log.read_text() if self._log.exists() else ""


def _train(
    config: str,
    arguments: tuple[str, ...],
    log: str,
    kill: Kill | None,
    environment: dict[str, str],
) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(environment)
    if largest_file := os.environ.get("LARGEST_FILE"):  # In bytes.
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(largest_file),) * 2)
    checkpoint.Checkpoints.affordable = lambda self: True  # Epochs here are short.
    sys.argv = ["train.py", *arguments]
    _mark()
    if config in ("stand-in", "device"):
        training_dummy.set_up()
    if kill:
        seen = itertools.count(1)

        def hook(event: str, found: tuple[Any, ...]) -> None:
            if (
                event == kill.event
                and kill.text in " ".join(map(str, found))
                and next(seen) == kill.nth
            ):
                os.kill(os.getpid(), kill.signum)

        sys.addaudithook(hook)
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


def _mark() -> None:
    """Adds events where no file is touched, or none that Python sees."""

    def mark(owner: Any, name: str, event: str, *, after: bool = False) -> None:
        original = getattr(owner, name)

        def marked(*args: Any, **kwargs: Any) -> Any:
            if not after:
                sys.audit(event)
            result = original(*args, **kwargs)
            if after:
                sys.audit(event)
            return result

        setattr(owner, name, marked)

    mark(loop, "to_scalars", "evaluating")  # Dispatched, and still computed.
    mark(writers.MetricWriter, "_write_event", "event written", after=True)
    mark(writers.MetricWriter, "write_scalars", "logged", after=True)
    mark(checkpoint.Checkpoints, "save", "saving", after=True)  # In other threads.
    mark(checkpoint.Checkpoints, "restore", "restored", after=True)
    mark(yin_yang, "classify", "preparing")


# Imported by the process that all others are forked from. None of it starts JAX.
import training_dummy  # noqa: E402

from jaxsnn.datasets import yin_yang  # noqa: E402
from jaxsnn.training import checkpoint, loop, writers  # noqa: E402
