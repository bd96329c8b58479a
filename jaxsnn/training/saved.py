"""Trained models as callables: from a run, from a folder, into a folder or a file."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import traverse_util

from jaxsnn import __version__, datasets
from jaxsnn import export as exporting
from jaxsnn.layers import GridNetwork, Network
from jaxsnn.spikes import Spikes
from jaxsnn.training import checkpoint, writers
from jaxsnn.training.checkpoint import Checkpoints
from jaxsnn.training.errors import TrainingError
from jaxsnn.training.experiment import Experiment, create_experiment

logger = logging.getLogger(__name__)

_VERSION = 1
_MODEL, _PARAMS = "model.json", "params.npz"
FILE = "inference.zip"  # What the command line exports, in the workdir.


class Prediction(NamedTuple):
    """What a model says of a batch.

    Attributes:
      label: int32, ``[batch]``; -1 where no output neuron of a spiking readout fired.
      reading: what it follows from, ``[batch, outputs]``: first spike times in
        seconds, or maxima of voltages.
    """

    label: jax.Array
    reading: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A trained network with its encoding and readout; call it with a batch.

    Attributes:
      config: what it was trained with, as `configs/yinyang.py` describes it.
      params: its parameters.
    """

    config: ml_collections.ConfigDict
    params: Mapping[str, Any]

    def __call__(self, inputs: Any) -> Prediction:
        """Predicts the labels of a batch.

        Args:
          inputs: features as the data set has them, ``[batch, features]``, whole
            numbers for bytes of images; or spikes, ``[batch, slots]``, for the network
            itself.
        """
        if not isinstance(inputs, Spikes):
            inputs = jnp.asarray(inputs)
            if inputs.ndim != 2 or inputs.shape[1] != self.num_features:
                raise ValueError(
                    f"the features have shape {inputs.shape}, expected [batch,"
                    f" {self.num_features}]."
                )
        return Prediction(**self._compiled(inputs))

    @functools.cached_property
    def experiment(self) -> Experiment:
        """The network, as `experiment.model`, and what is around it."""
        return create_experiment(self.config)

    @property
    def network(self) -> Network | GridNetwork:
        """The network itself."""
        return self.experiment.model

    @property
    def variables(self) -> dict[str, Any]:
        """What ``network.apply`` takes."""
        return {"params": self.params}

    @property
    def num_features(self) -> int:
        """Features of a sample, before they are encoded."""
        first = self.network.layers[0]
        name = first.name or "layers_0"
        sources = jnp.shape(self.params[name]["kernel"])[0]
        encoding = self.config.encoding
        return sources // encoding.copies - (encoding.bias is not None)

    def export(self, path: str | os.PathLike[str], *, dtype: Any = np.float32) -> None:
        """Writes the model as a file that runs without Flax; see `jaxsnn.export`.

        ``jaxsnn.export.load(path)(features)`` then is a dictionary of what `Prediction`
        has, bit for bit the same on the same device.

        Args:
          path: the file.
          dtype: of the features: floats, or bytes for images.

        Raises:
          ValueError: a device that is driven from Python, which no file can hold; load
            the model with ``hardware=""``.
        """
        features = jax.ShapeDtypeStruct((1, self.num_features), np.dtype(dtype))
        exporting.export(path, self._predict, features)

    def _predict(self, inputs: Any) -> dict[str, jax.Array]:
        parts = self.experiment
        spikes = inputs if isinstance(inputs, Spikes) else parts.encode(inputs)
        window = {} if self.config.until is None else {"until": self.config.until}
        reading = parts.read(parts.model.apply(self.variables, spikes, **window))
        return {"label": parts.predict(reading), "reading": reading}

    @functools.cached_property
    def _compiled(self) -> Any:
        return jax.jit(self._predict)


def load(
    path: str | os.PathLike[str],
    *,
    hardware: str | None = None,
    seed: int | None = None,
) -> Any:
    """Turns what was saved into a callable.

    Args:
      path: the workdir of a run, whose newest whole checkpoint is read; a folder of
        `save`; or a file of `jaxsnn.export`, for which the other arguments have no
        meaning.
      hardware: what finds the spikes; by default what did in training, ``""`` for the
        exact simulation.
      seed: which member of a run with several.

    Returns:
      A `Model`; for a file, a `jaxsnn.export.Program`.

    Raises:
      TrainingError: there is nothing of that kind, or it is damaged.
    """
    path = Path(path)
    if path.is_file():
        return exporting.load(path)
    if (path / _MODEL).is_file():
        config, params = _read(path)
    elif (path / "checkpoints").is_dir():
        checkpoints = Checkpoints(path.absolute(), read_only=True)
        with contextlib.closing(checkpoints):
            found = checkpoints.read_params()
        if found is None:
            raise TrainingError(f"There is no checkpoint in {path}. Train first.")
        config, params = ml_collections.ConfigDict(found.config), found.params
    else:
        raise TrainingError(
            f"There is no model in {path}: neither checkpoints of a run, nor"
            f" {_MODEL}, which jaxsnn.save writes."
        )
    params = _member(config, params, seed)
    with config.unlocked():
        config.ensemble = 1
        config.hardware = config.hardware if hardware is None else hardware
    model = Model(config, jax.tree.map(jnp.asarray, params))
    _ = model.experiment  # So that a wrong config is found now.
    return model


def save(path: str | os.PathLike[str], model: Model) -> None:
    """Saves a model as a folder of data: its config, and its parameters as arrays.

    Example::

        jaxsnn.save("yinyang", jaxsnn.load("runs/yinyang"))
        labels, times = jaxsnn.load("yinyang")(features)

    Args:
      path: the folder, which is made; a model in it is replaced.
      model: the model.

    Raises:
      TrainingError: the folder cannot be written.
    """
    path = Path(path)
    params = jax.device_get(dict(model.params))
    arrays = io.BytesIO()
    np.savez(arrays, **traverse_util.flatten_dict(params, sep="/"))
    about = {
        "format": _VERSION,
        "jaxsnn": __version__,
        "config": json.loads(model.config.to_json()),
        "params_digest": checkpoint._digest(params),
    }
    with writers.writing_to(path):
        path.mkdir(parents=True, exist_ok=True)
        (path / _MODEL).unlink(missing_ok=True)  # Never one model's with another's.
        (path / _PARAMS).write_bytes(arrays.getvalue())
        writers.write_atomically(path / _MODEL, json.dumps(about, indent=2) + "\n")


def export_run(
    config: ml_collections.ConfigDict, workdir: str | os.PathLike[str]
) -> Path:
    """Exports the newest whole checkpoint of a run to `FILE` in its workdir.

    Args:
      config: of the run; its `hardware` and `dataset` are used.
      workdir: directory of the run.

    Returns:
      The file.

    Raises:
      TrainingError: there is no whole checkpoint, or a device that no file can hold.
    """
    model = load(workdir, hardware=config.hardware)
    data_dir = config.data_dir or None
    features = datasets.load(config.dataset, config.eval_split, data_dir=data_dir)
    kind = np.asarray(features["features"]).dtype
    path = Path(workdir) / FILE
    try:
        with writers.writing_to(Path(workdir)):
            model.export(path, dtype=kind if kind == np.uint8 else np.float32)
    except (ImportError, ValueError) as error:
        raise TrainingError(str(error)) from error
    logger.info(
        "wrote %s (%d bytes); jaxsnn.export.load makes a function of it",
        path,
        path.stat().st_size,
    )
    return path


def _member(
    config: ml_collections.ConfigDict, params: Any, seed: int | None
) -> dict[str, Any]:
    """Parameters of one member of a run."""
    number = config.get("ensemble", 1)
    if number == 1:
        return params
    seeds = range(config.seed, config.seed + number)
    if seed is None or seed not in seeds:
        raise TrainingError(
            f"The run has the seeds {seeds.start} to {seeds.stop - 1}, and seed is"
            f" {seed}; name the member to load."
        )
    return jax.tree.map(lambda x: x[seeds.index(seed)], params)


def _read(path: Path) -> tuple[ml_collections.ConfigDict, dict[str, Any]]:
    try:
        about = json.loads((path / _MODEL).read_text())
        with np.load(path / _PARAMS, allow_pickle=False) as arrays:
            params = traverse_util.unflatten_dict(dict(arrays), sep="/")
        checkpoint._check_digest(params, about["params_digest"])
        version = about["format"]
    except Exception as error:  # Damage has many types.
        raise TrainingError(f"The model in {path} is damaged: {error}") from error
    if version != _VERSION:
        raise TrainingError(
            f"The model in {path} has format {version}; this code reads {_VERSION}."
        )
    return ml_collections.ConfigDict(about["config"]), params
