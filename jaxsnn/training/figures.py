"""Pictures of a run: what its model does with examples, and with the whole plane."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from jaxsnn import datasets
from jaxsnn.activity import Activity, summary
from jaxsnn.hardware import HostBackend
from jaxsnn.training import devices, experiment
from jaxsnn.training.ensemble import Ensemble
from jaxsnn.training.errors import TrainingError
from jaxsnn.training.steps import TrainState

MAP_SIZE = 120  # Points of a decision map along each axis.


class Decided(NamedTuple):
    """What a model makes of examples.

    Attributes:
      labels: its decisions, -1 for none, ``[n]``.
      readings: one number for each output, first spike times or maxima, ``[n, m]``.
    """

    labels: np.ndarray
    readings: np.ndarray


class Pictures:
    """A trained model, as pictures need it: alone on one device, on the host.

    Args:
      config: of the run.
      state: of the run; of an ensemble, that of one member.
      software: whether to leave a device out that is not a model of one.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        state: TrainState,
        *,
        software: bool = False,
    ):
        self.config = config
        self.experiment = experiment.create_experiment(config)
        self.model: Any = self.experiment.model
        self.device = getattr(self.model, "backend", None)
        if software and isinstance(self.device, HostBackend):
            self.model, self.device = self.model.clone(backend=None), None
        self.classes = class_names(config)
        self.window = {} if config.until is None else {"until": config.until}
        self.variables = jax.device_get({"params": state.params, **state.collections})
        self._key = jax.random.key(0)
        apply_fn = functools.partial(self.model.apply, **self.window)
        params = self.variables["params"]
        self.state = state.replace(apply_fn=apply_fn, params=params)

    def decide(self, features: np.ndarray) -> Decided:
        """Runs the model on any number of examples."""
        return decide(self.state, features, self._key, MAP_SIZE)

    def activity(self, features: np.ndarray, simulated: bool = False) -> Activity:
        """What the layers do with a batch; without the device if asked to."""
        model, options = self.model, dict(self.window)
        if self.device is not None:
            options["rngs"] = {"hardware": self._key}
            model = model.clone(backend=None) if simulated else model
        spikes = self.experiment.encode(jax.numpy.asarray(features))
        return summary(model, self.variables, spikes, **options)

    @property
    def has_plane(self) -> bool:
        """Whether the examples are points of the plane, so that there are maps."""
        return self.config.dataset == "yin_yang"


def class_names(config: ml_collections.ConfigDict) -> Sequence[str]:
    """Names of the outputs: those of the classes, or their numbers."""
    names = datasets.class_names(config.dataset)
    number = config.model.outputs
    return names if len(names) == number else [f"{n}" for n in range(number)]


def decide(
    state: TrainState, features: np.ndarray, key: jax.Array, batch_size: int
) -> Decided:
    """Runs a model on any number of examples.

    Args:
      state: of the model.
      features: ``[n, features]``.
      key: of what is random on a device, split for the batches.
      batch_size: examples at a time.
    """
    n = len(features)
    # The last batch is filled up with the last example.
    chosen = np.minimum(np.arange(-(-n // batch_size) * batch_size), n - 1)
    batches = features[chosen].reshape(-1, batch_size, *features.shape[1:])
    keys = jax.random.split(key, len(batches))
    found = [
        jax.device_get(_decide(state, *each))
        for each in zip(batches, keys, strict=True)
    ]
    return Decided(*(np.concatenate(x)[:n] for x in zip(*found, strict=True)))


@jax.jit
def _decide(
    state: TrainState, features: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    outputs = state.apply_fn(
        {"params": state.params, **state.collections},
        state.encode_fn(features),
        rngs={"hardware": key},
    )
    readings = state.read_fn(outputs)
    return state.predict_fn(readings), readings


def plane(size: int = MAP_SIZE) -> tuple[np.ndarray, np.ndarray]:
    """The unit square as YinYang has it: what is known of each point, and the disc.

    Returns:
      Features ``(x, y, 1 - x, 1 - y)``, ``[size * size, 4]``, row after row, and which
      points are in the disc, ``[size, size]``.
    """
    line = (np.arange(size) + 0.5) / size
    y, x = np.meshgrid(line, line, indexing="ij")
    points = np.stack([x.ravel(), y.ravel()], axis=-1)
    inside = ((points - 0.5) ** 2).sum(-1) < 0.25
    points = points.astype(np.float32)
    return np.concatenate([points, 1 - points], axis=-1), inside.reshape(size, size)


def plotting() -> ModuleType:
    """`jaxsnn.plot`.

    Raises:
      TrainingError: matplotlib is not there.
    """
    try:
        from jaxsnn import plot
    except ImportError as error:
        raise TrainingError(str(error)) from error
    return plot


def check(config: ml_collections.ConfigDict) -> None:
    """Raises if there are to be pictures and there cannot be any.

    Raises:
      TrainingError: `config.plot_every_epochs` is below 1, or matplotlib is missing.
    """
    every = config.plot_every_epochs
    if every is not None:
        if every < 1:
            raise TrainingError(
                f"config.plot_every_epochs must be 1 or more, or None, and is {every}."
            )
        plotting()


def due(config: ml_collections.ConfigDict, epoch: int) -> bool:
    """Whether this process has to make pictures after an epoch."""
    every = config.plot_every_epochs
    return every is not None and devices.is_first() and epoch % every == 0


def images(
    config: ml_collections.ConfigDict,
    members: Ensemble,
    state: TrainState,
    examples: Mapping[str, Any],
) -> dict[str, bytes]:
    """Pictures for TensorBoard, as PNG files by name: those of the first member.

    A device that is not a model of one trains meanwhile, so that it is left out.

    Args:
      config: of the run.
      members: of the run.
      state: of the run.
      examples: `features` and `label` of a split; the first example is shown.
    """
    _, first = next(members.members(state))
    return dict(_images(config, first, examples))


def _images(
    config: ml_collections.ConfigDict, state: TrainState, examples: Mapping[str, Any]
) -> Iterator[tuple[str, bytes]]:
    plot, pictures = plotting(), Pictures(config, state, software=True)
    features, label = (np.asarray(examples[n][:100]) for n in ("features", "label"))
    activity = pictures.activity(features)
    names = {"classes": pictures.classes}
    yield "raster", plot.png(plot.raster(activity, label=int(label[0]), **names), 100)
    yield "weights", plot.png(plot.weights(activity), 100)
    if pictures.has_plane:
        features, inside = plane()
        labels = pictures.decide(features).labels.reshape(inside.shape)
        figure = plot.decision_map(labels, inside=inside, **names)
        yield "decisions", plot.png(figure, 100)
