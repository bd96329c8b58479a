"""Metrics of a batch, merged on the device into those of an epoch.

No `from __future__ import annotations` here: clu reads the annotations of a collection
as classes.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics
from flax import struct, traverse_util

Collection = TypeVar("Collection", bound=metrics.Collection)


@struct.dataclass
class Total(metrics.Metric):
    """The sum of a batch's integers, exact up to 2**31."""

    total: jax.Array

    @classmethod
    def from_model_output(cls, values: jax.Array, **_: Any) -> "Total":
        """Adds up `values`."""
        return cls(total=jnp.sum(values, dtype=jnp.int32))

    def merge(self, other: "Total") -> "Total":
        """Adds both totals."""
        return type(self)(total=self.total + other.total)

    def compute(self) -> jax.Array:
        """Returns the sum."""
        return self.total


@struct.dataclass
class Events(metrics.Metric):
    """What the spiking layers report in the model's `events` collection.

    A layer holds its spike counts, `count` [B, N], and what else it counts in each
    sample [B]: integers are added up, floats averaged. Its state is not reported.

    Attributes:
      fired: for each layer, which of its neurons spiked at all [N].
      counters: what is computed for each layer; `dropped` spikes are its `overflow`.
    """

    fired: dict[str, jax.Array]
    counters: dict[str, metrics.Metric]

    @classmethod
    def from_model_output(
        cls, events: Mapping[str, Any], mask: jax.Array | None = None, **_: Any
    ) -> "Events":
        """Reads one batch; a `mask` [B] leaves out examples that are padding."""
        fired, counters = {}, {}
        for (*path, name), value in traverse_util.flatten_dict(dict(events)).items():
            layer = "/".join(path)
            integer = jnp.issubdtype(value.dtype, jnp.integer)
            if integer and mask is not None:
                value = jnp.where(mask.reshape(-1, *[1] * (value.ndim - 1)), value, 0)
            if name == "count":
                fired[layer] = (value > 0).any(axis=0)
                counters[f"{layer}_spikes"] = metrics.Average.from_model_output(
                    value.sum(axis=-1).astype(jnp.float32), mask=mask
                )
            elif value.ndim == 1 and name != "time":
                name = "overflow" if name == "dropped" else name
                kind = Total if integer else metrics.Average
                counters[f"{layer}_{name}"] = kind.from_model_output(value, mask=mask)
        return cls(fired=fired, counters=counters)

    def merge(self, other: "Events") -> "Events":
        """Merges layer by layer, counter by counter."""
        return type(self)(
            fired={k: v | other.fired[k] for k, v in self.fired.items()},
            counters={k: v.merge(other.counters[k]) for k, v in self.counters.items()},
        )

    def compute(self) -> dict[str, jax.Array]:  # type: ignore[override]
        """Returns `<layer>_<counter>`, and for each layer two more numbers.

        `<layer>_spikes` is the mean number of spikes of a sample; `<layer>_silent` the
        fraction of neurons that spiked in none of the samples merged so far.
        """
        return {
            **{k: v.compute() for k, v in self.counters.items()},
            **{f"{k}_silent": 1 - v.mean() for k, v in self.fired.items()},
        }


@struct.dataclass
class TrainMetrics(metrics.Collection):
    """Metrics of training; loss and accuracy are those before each step."""

    loss: metrics.Average.from_output("loss")  # type: ignore[valid-type]
    accuracy: metrics.Average.from_output("correct")  # type: ignore[valid-type]
    events: Events
    nonfinite_grads: Total.from_output("nonfinite_grads")  # type: ignore[valid-type]
    nonfinite_params: Total.from_output("nonfinite_params")  # type: ignore[valid-type]


@struct.dataclass
class EvalMetrics(metrics.Collection):
    """Metrics of an evaluation, each example weighted equally."""

    loss: metrics.Average.from_output("loss")  # type: ignore[valid-type]
    accuracy: metrics.Average.from_output("correct")  # type: ignore[valid-type]
    events: Events


class Window:
    """The metrics since the last line of the log, on the host.

    Args:
      leaves: those of an unfinished window, as `leaves` returned them.
    """

    def __init__(self, leaves: list[Any] | None = None):
        self._metrics: TrainMetrics | None = None
        self._restored = leaves
        self._samples, self._seconds = 0, 0.0

    def add(self, metrics: TrainMetrics, samples: int, seconds: float) -> None:
        """Merges the metrics of `samples` trained in `seconds`."""
        if self._restored is not None:
            leaves, structure = jax.tree.flatten(metrics)
            saved = [np.asarray(leaf) for leaf in self._restored]
            # Other hardware may report other events; what it cannot continue is lost.
            if [x.shape for x in saved] == [x.shape for x in leaves]:
                pairs = zip(saved, leaves, strict=True)
                values = [value.astype(leaf.dtype) for value, leaf in pairs]
                self._metrics = jax.tree.unflatten(structure, values)
            self._restored = None
        self._metrics = self._metrics.merge(metrics) if self._metrics else metrics
        self._samples += samples
        self._seconds += seconds

    def leaves(self) -> list[Any] | None:
        """Returns the merged metrics as plain values, exactly; None when empty."""
        if self._metrics is None:
            return self._restored
        return [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(self._metrics)]

    def scalars(self) -> dict[str, float | int]:
        """Returns the metrics of training, named as in the log."""
        scalars = to_scalars(self._metrics)
        return {
            "train/loss": scalars["loss"],
            "train/accuracy": scalars["accuracy"],
            "train/samples_per_s": self._samples / self._seconds,
            **{k: v for k, v in scalars.items() if k.startswith("events/")},
        }


def merge_steps(steps: Collection) -> Collection:
    """Merges metrics that have a leading axis, one element for each step."""
    # `Collection.reduce` scans over each metric alone, which needs an array in each: a
    # model without `events` has none there.
    first = jax.tree.map(lambda x: x[0], steps)
    others = jax.tree.map(lambda x: x[1:], steps)
    return jax.lax.scan(lambda merged, new: (merged.merge(new), None), first, others)[0]


def to_scalars(collection: metrics.Collection) -> dict[str, float | int]:
    """Computes `collection`; what the layers report is named `events/...`."""
    values = dict(jax.device_get(collection).compute())
    events = values.pop("events")
    values.update({f"events/{name}": value for name, value in events.items()})
    return {name: value.item() for name, value in values.items()}
