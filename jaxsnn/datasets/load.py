"""Prepares a tfds data set on first use and loads its splits into memory."""

import contextlib
import io
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from filelock import FileLock

# Far above what preparing takes; reached only when the process in front is stuck.
_LOCK_SECONDS = 600


class DatasetError(RuntimeError):
    """A data set cannot be prepared or read; the message says what to do."""


def load(
    name: str, split: str, data_dir: str | os.PathLike[str] | None = None
) -> dict[str, np.ndarray]:
    """Loads a whole split into memory, preparing the data set when it is not there.

    Several processes may call this at once on an empty directory: one prepares, the
    others wait. What was stored is returned bit by bit, in the order on disk; it is
    checked for damage, never repaired. Turns the progress bars of tfds off.

    Args:
      name: Name of a registered tfds builder, such as `yin_yang`.
      split: Name of one of its splits, such as `train`.
      data_dir: Where prepared sets are kept. Default: the environment variable
        `TFDS_DATA_DIR` as it is now, else `~/tensorflow_datasets`, as in tfds.

    Returns:
      One array for each feature, with the samples along the first axis.

    Raises:
      ValueError: There is no such data set or split.
      DatasetError: The set cannot be prepared (read-only directory, full disk), or what
        was prepared is damaged.
    """
    try:
        name = tfds.builder_cls(name).name
    except ValueError:  # Its message is the whole catalogue of tfds.
        raise ValueError(
            f"There is no tfds data set {name!r}. Use one of jaxsnn.datasets, such as "
            "'yin_yang', or import the module that defines yours first."
        ) from None
    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    root = Path(data_dir).expanduser().absolute()
    with _quiet():
        with _reading(root / name):
            builder = _builder(name, root)
        # tfds moves a set into its place when complete: readers need no lock.
        if not builder.data_path.exists():
            _prepare(name, root)
        with _reading(root / name):
            builder = _builder(name, root)
            splits = builder.info.splits
            if not splits:
                raise ValueError("dataset_info.json is missing or names no split")
        if split not in splits:
            raise ValueError(
                f"{name} has no split {split!r}; its splits are {', '.join(splits)}."
            )
        with _reading(root / name):
            return _read(builder, split)


def class_names(name: str) -> tuple[str, ...]:
    """Names of the classes of a data set; none if it has no `label` with names."""
    with tempfile.TemporaryDirectory() as nowhere:  # tfds wants a directory.
        features = _builder(name, Path(nowhere)).info.features
    return tuple(getattr(dict(features.items()).get("label"), "names", None) or ())


def _builder(name: str, root: Path) -> Any:  # tfds' annotations are too narrow.
    return tfds.builder(name, data_dir=root, file_format="array_record")


def _prepare(name: str, root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{name}.lock", timeout=_LOCK_SECONDS):
            # Made again: an older builder does not see what others prepared since.
            builder = _builder(name, root)
            for killed in builder.data_path.parent.glob("incomplete.*"):
                shutil.rmtree(killed, ignore_errors=True)
            tfds.disable_progress_bar()
            with contextlib.redirect_stdout(io.StringIO()):
                builder.download_and_prepare()
    except (OSError, RuntimeError) as error:
        raise DatasetError(
            f"Cannot prepare {name} in {root} ({_one_line(error)}). Make the directory "
            "writable, free some space, end the process that holds its lock, or choose "
            "another directory with data_dir or TFDS_DATA_DIR."
        ) from error


def _read(builder: Any, split: str) -> dict[str, np.ndarray]:
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    source = builder.as_data_source(split, deserialize_method=raw)
    records = source.__getitems__(list(range(len(source))))
    # The records carry their own hashes, dataset_info.json does not.
    found, expected = sum(map(len, records)), builder.info.splits[split].num_bytes
    if found != expected:
        raise ValueError(f"{split} holds {found} bytes instead of {expected}")
    features = builder.info.features
    examples = [features.deserialize_example_np(record) for record in records]
    return {key: np.stack([e[key] for e in examples]) for key in features}


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    # Damage surfaces in tfds as many types: ParseError, KeyError, RuntimeError, ...
    try:
        yield
    except Exception as error:
        raise DatasetError(
            f"The prepared data in {folder} cannot be read ({_one_line(error)}). "
            "Delete this directory and run again: it will be prepared anew."
        ) from error


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drops what tfds logs below warnings; other loggers are left alone."""

    def keep(record: logging.LogRecord) -> bool:
        from_tfds = "tensorflow_datasets" in record.pathname
        return record.levelno >= logging.WARNING or not from_tfds

    logger = logging.getLogger("absl")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
