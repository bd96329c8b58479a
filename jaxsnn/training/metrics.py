"""Metrics of a batch, merged on the device into those of an epoch.

No `from __future__ import annotations` here: clu reads the annotations of a collection
as classes.
"""

from collections.abc import Mapping, Sequence
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
class Spread(metrics.Metric):
    """Mean and standard deviation of what a mask lets through; NaN of nothing.

    Merged by Chan, Golub & LeVeque (1983), which loses nothing to cancellation. (The
    `Std` of clu 0.0.12 does, and fails with JAX 0.10.)
    """

    count: jax.Array
    mean: jax.Array
    squares: jax.Array  # Sum of squared distances from the mean.

    @classmethod
    def from_model_output(
        cls, values: jax.Array, mask: jax.Array, **_: Any
    ) -> "Spread":
        """Reads `values` where the `mask`, of their shape, is true."""
        count = jnp.sum(mask, dtype=jnp.int32)
        mean = jnp.sum(jnp.where(mask, values, 0)) / jnp.maximum(count, 1)
        return cls(count, mean, jnp.sum(jnp.where(mask, values - mean, 0) ** 2))

    def merge(self, other: "Spread") -> "Spread":
        """Returns that of both."""
        count = self.count + other.count
        share = other.count / jnp.maximum(count, 1)
        step = other.mean - self.mean
        between = step**2 * self.count * share
        squares = self.squares + other.squares + between
        return type(self)(count, self.mean + step * share, squares)

    def compute(self) -> tuple[jax.Array, jax.Array]:
        """Returns both."""
        deviation = jnp.sqrt(self.squares / jnp.maximum(self.count, 1))
        return (
            jnp.where(self.count > 0, self.mean, jnp.nan),
            jnp.where(self.count > 0, deviation, jnp.nan),
        )


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
class Mismatch(metrics.Metric):
    """How first spikes on a device differ from the model's, in all neurons of a layer.

    A layer holds `time` and `identity` [B, N] of `jaxsnn.record.Mismatch`, NaN where
    there is nothing to compare.

    Attributes:
      time: of each layer; empty without a device.
      identity: of each layer, without its sign.
    """

    time: dict[str, Spread]
    identity: dict[str, Spread]

    @classmethod
    def from_model_output(
        cls, mismatch: Mapping[str, Any], mask: jax.Array | None = None, **_: Any
    ) -> "Mismatch":
        """Reads one batch; a `mask` [B] leaves out examples that are padding."""
        found: dict[str, dict[str, Spread]] = {"time": {}, "identity": {}}
        for (*path, name), value in traverse_util.flatten_dict(dict(mismatch)).items():
            there = ~jnp.isnan(value)
            if mask is not None:
                there &= mask[:, None]
            value = jnp.abs(value) if name == "identity" else value
            found[name]["/".join(path)] = Spread.from_model_output(value, there)
        return cls(**found)

    def merge(self, other: "Mismatch") -> "Mismatch":
        """Merges layer by layer."""
        return type(self)(
            time={k: v.merge(other.time[k]) for k, v in self.time.items()},
            identity={k: v.merge(other.identity[k]) for k, v in self.identity.items()},
        )

    def compute(self) -> dict[str, jax.Array]:  # type: ignore[override]
        """Returns three numbers for each layer, NaN where nothing could be compared.

        `<layer>_time_mean` and `<layer>_time_std` are of observed minus expected time,
        in the model's seconds; `<layer>_identity` is the mean violation of the delay
        identity, without its sign.
        """
        found = {}
        for layer, time in self.time.items():
            found[f"{layer}_time_mean"], found[f"{layer}_time_std"] = time.compute()
            found[f"{layer}_identity"] = self.identity[layer].compute()[0]
        return found


@struct.dataclass
class TrainMetrics(metrics.Collection):
    """Metrics of training; loss and accuracy are those before each step.

    `grad_norm` is the mean over steps of the gradient's norm before it is clipped,
    `clipped` the fraction of steps in which it was, `skipped` how many were left out
    because of NaN or Inf.
    """

    loss: metrics.Average.from_output("loss")  # type: ignore[valid-type]
    accuracy: metrics.Average.from_output("correct")  # type: ignore[valid-type]
    events: Events
    grad_norm: metrics.Average.from_output("grad_norm")  # type: ignore[valid-type]
    clipped: metrics.Average.from_output("clipped")  # type: ignore[valid-type]
    skipped: Total.from_output("skipped")  # type: ignore[valid-type]


@struct.dataclass
class EvalMetrics(metrics.Collection):
    """Metrics of an evaluation, each example weighted equally."""

    loss: metrics.Average.from_output("loss")  # type: ignore[valid-type]
    accuracy: metrics.Average.from_output("correct")  # type: ignore[valid-type]
    events: Events
    mismatch: Mismatch


_OF_STEPS = ("grad_norm", "clipped", "skipped")


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

    def scalars(self, seeds: Sequence[int] = (0,)) -> dict[str, float | int]:
        """Returns the metrics of training, named as in the log; see `to_scalars`."""
        scalars = to_scalars(self._metrics, seeds)
        return {
            "train/loss": scalars["loss"],
            "train/accuracy": scalars["accuracy"],
            **{f"train/{name}": scalars[name] for name in _OF_STEPS},
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


def to_scalars(
    collection: metrics.Collection, seeds: Sequence[int] = (0,)
) -> dict[str, float | int]:
    """Computes `collection`; what the layers report is `events/` and `mismatch/...`.

    Args:
      collection: the metrics; of several seeds, with a leading axis of them.
      seeds: whose they are. Of several, integers are added up and all else is averaged;
        `accuracy/seed_<n>` is that of one of them.
    """
    if len(seeds) > 1:
        host = jax.device_get(collection)
        members = [
            to_scalars(jax.tree.map(lambda x, n=n: x[n], host))
            for n in range(len(seeds))
        ]
        scalars: dict[str, float | int] = {}
        for name, first in members[0].items():
            found = [member[name] for member in members]
            counted = isinstance(first, int)
            scalars[name] = sum(found) if counted else sum(found) / len(found)
        each = zip(seeds, members, strict=True)
        scalars |= {f"accuracy/seed_{seed}": m["accuracy"] for seed, m in each}
        return scalars
    values = dict(jax.device_get(collection).compute())
    for group in ("events", "mismatch"):
        for name, value in values.pop(group, {}).items():
            values[f"{group}/{name}"] = value
    return {name: value.item() for name, value in values.items()}
