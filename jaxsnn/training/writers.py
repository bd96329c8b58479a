"""Where a run reports to: `metrics.jsonl`, TensorBoard, and the terminal."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import shutil
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import text

from jaxsnn.training.errors import TrainingError


class MetricWriter:
    """Writes to `metrics.jsonl` and to TensorBoard event files, named as in clu.

    All that is written is handed to the operating system before a method returns, so
    that a killed process loses nothing that a later checkpoint counts as logged.

    Args:
      workdir: directory of the run.
      step: the step from which the run goes on; what was logged after it is cut off.
    """

    def __init__(self, workdir: Path, step: int):
        self._path = workdir / "metrics.jsonl"
        with writing_to(workdir):
            kept = [row for row in read_metrics(workdir) if row["step"] <= step]
            write_atomically(self._path, "".join(map(_json_line, kept)))
            self._file = self._path.open("a", encoding="utf-8")
            # tensorboardX's own SummaryWriter queues events for a thread: a kill loses
            # them, and a full disk ends the thread and then blocks the caller for ever.
            # The time is added because two starts within a second share a file name.
            self._events = EventsWriter(str(workdir / "events"), f".{time.time_ns()}")
            start = SessionLog(status=SessionLog.START)
            purge_step = step + 1 if step else 0
            self._write_event(Event(step=purge_step, session_log=start))

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes one line and one event that hold all `scalars` of this step."""
        values = [Summary.Value(tag=k, simple_value=v) for k, v in scalars.items()]
        with writing_to(self._path.parent):
            self._write_event(Event(step=step, summary=Summary(value=values)))
            self._file.write(_json_line({"step": step, **scalars}))
            self._file.flush()

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes Markdown texts to TensorBoard."""
        with writing_to(self._path.parent):
            for tag, value in texts.items():
                self._write_event(Event(step=step, summary=text(tag, value)))

    def write_images(self, step: int, images: Mapping[str, bytes]) -> None:
        """Writes pictures, PNG files, to TensorBoard."""
        values = []
        for tag, png in images.items():
            width, height = struct.unpack(">II", png[16:24])  # As every PNG begins.
            form = {"width": width, "height": height, "colorspace": 4}
            image = Summary.Image(**form, encoded_image_string=png)
            values.append(Summary.Value(tag=tag, image=image))
        with writing_to(self._path.parent):
            self._write_event(Event(step=step, summary=Summary(value=values)))

    def write_config(self, config: str) -> None:
        """Replaces `config.json`."""
        with writing_to(self._path.parent):
            write_atomically(self._path.parent / "config.json", config + "\n")

    def close(self) -> None:
        """Closes the files; never raises, for everything was flushed when written."""
        for file in (self._file, self._events):
            with contextlib.suppress(OSError):
                file.close()

    def _write_event(self, event: Event) -> None:
        event.wall_time = time.time()
        self._events.write_event(event)
        self._events.flush()


class NoWriter:
    """Stands for a `MetricWriter` where another process writes."""

    def __init__(self, workdir: Path, step: int):
        del workdir, step

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Does nothing."""

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Does nothing."""

    def write_images(self, step: int, images: Mapping[str, bytes]) -> None:
        """Does nothing."""

    def write_config(self, config: str) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Reads `metrics.jsonl`; a line cut short, by a kill or a full disk, is no line."""
    rows = []
    with contextlib.suppress(FileNotFoundError):
        for line in (workdir / "metrics.jsonl").read_bytes().splitlines():
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict) and isinstance(row.get("step"), int):
                    rows.append(row)
    return rows


@contextlib.contextmanager
def writing_to(directory: Path) -> Iterator[None]:
    """Turns what the file system refuses into an error that names the place."""
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"Cannot write to {error.filename or directory}: "
            f"{error.strerror or error}. Choose another --workdir, or make it writable "
            "and free some space."
        ) from error


def write_atomically(path: Path, content: str) -> None:
    """Replaces the file, so that a kill leaves the old or the new content."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(content, encoding="utf-8")
    temporary.replace(path)


def log_to_console() -> logging.Handler:
    """Shows what this library logs on standard output, plainly and at level INFO.

    Other libraries keep their own handlers and levels.

    Returns:
      The handler; close it before something else is written to the terminal.
    """
    console = _Console(sys.stdout)
    library = logging.getLogger("jaxsnn")
    library.setLevel(logging.INFO)
    library.handlers = [console]
    library.propagate = False
    return console


class _Console(logging.StreamHandler):
    """On a terminal, a record with `transient=True` gives way to the next one."""

    _pending = False

    def emit(self, record: logging.LogRecord) -> None:
        if not self.stream.isatty():
            super().emit(record)
            return
        message, end = self.format(record), "\n"
        transient = getattr(record, "transient", False)
        if transient:
            # A wrapped line could not be overwritten.
            message, end = message[: shutil.get_terminal_size().columns - 1], ""
        # An error is not part of the progress: it must not overwrite it.
        if self._pending and record.levelno > logging.INFO:
            self.stream.write("\n")
        self.stream.write(f"\r\x1b[K{message}{end}")
        self.flush()
        self._pending = transient

    def close(self) -> None:
        if self._pending:
            self.stream.write("\n")
            self.flush()
            self._pending = False
        super().close()


def _json_line(row: Mapping[str, Any]) -> str:
    # JSON knows neither NaN nor Infinity.
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"
