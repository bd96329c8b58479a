"""Numbers that went wrong: where, and what it takes to see it happen again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxsnn.training.errors import TrainingError
from jaxsnn.training.steps import Batch, Health, TrainState


def bad_steps(steps: Health) -> np.ndarray:
    """Which steps [S] were not sound, bool."""
    counts = jax.tree.leaves((steps.grads, steps.params))
    return ~np.isfinite(steps.loss) | (sum(counts, np.zeros(1, np.int32)) > 0)


def describe(steps: Health, step: int) -> str:
    """Says in words what was NaN or Inf in one of the steps, and of which layer."""
    grads, params = (
        {
            _name(path): int(count[step])
            for path, count in jax.tree_util.tree_leaves_with_path(counts)
        }
        for counts in (steps.grads, steps.params)
    )
    # The step spoils the parameters wherever the gradient was bad.
    first = grads if any(grads.values()) else params
    where = ", ".join(f"{name} {count}" for name, count in first.items() if count)
    return (
        f"the loss is {steps.loss[step]}, {sum(grads.values())} values of the gradient "
        f"and {sum(params.values())} of the updated parameters are NaN or Inf"
        f"{f' ({where})' if where else ''}"
    )


def save(path: Path, state: TrainState, batch: Batch, indices: np.ndarray) -> None:
    """Writes a state and the batch that it met as arrays: an .npz without pickles.

    Args:
      path: the file; its directory is created.
      state: the state before the step.
      batch: the examples, and the key of a device.
      indices: which examples of the training split they are, ``[B]``.
    """
    arrays = {
        **{f"batch/{name}": x for name, x in batch.items()},
        "indices": indices,
        **_named(state),
    }
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        plain: dict[str, Any] = {name: _plain(x) for name, x in arrays.items()}
        np.savez(file, **plain)


def load(path: Path, state: TrainState) -> tuple[TrainState, Batch]:
    """Reads what `save` wrote.

    Args:
      path: the file.
      state: a state of the same model and optimizer; its numbers are replaced.

    Returns:
      The state and the batch.

    Raises:
      TrainingError: there is no such file, or it is of another model.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError) as error:
        raise TrainingError(f"Cannot read {path}: {error}.") from error
    own = _named(state)
    there = {name for name in arrays if name.startswith("state/")}
    differing = own.keys() ^ there
    differing |= {
        k for k in own.keys() & there if _plain(own[k]).shape != arrays[k].shape
    }
    if differing:
        raise TrainingError(
            f"{path} is of another model or optimizer, which differ in "
            f"{', '.join(sorted(differing))}. Use the config of that run."
        )
    leaves = [_like(x, arrays[name]) for name, x in own.items()]
    batch: dict[str, Any] = {
        name.removeprefix("batch/"): jax.numpy.asarray(x)
        for name, x in arrays.items()
        if name.startswith("batch/")
    }
    batch["key"] = jax.random.wrap_key_data(batch["key"])
    return jax.tree.unflatten(jax.tree.structure(state), leaves), batch


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _named(state: TrainState) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {f"state/{_name(path)}": x for path, x in leaves}


def _is_key(x: Any) -> bool:
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _plain(x: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(x) if _is_key(x) else x)


def _like(x: Any, array: np.ndarray) -> Any:
    if _is_key(x):
        return jax.random.wrap_key_data(
            jax.numpy.asarray(array), impl=jax.random.key_impl(x)
        )
    return jax.numpy.asarray(array, x.dtype)
