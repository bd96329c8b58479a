"""A stand-in for an experiment and its data, small enough to compile in a moment.

Run as a program it is `train.py` on this stand-in; `KILL=function:step:signal` in the
environment sends itself that signal at the end of a function of the training loop.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from jaxsnn.training import TrainState

SIZES = {"train": 70, "validation": 25, "test": 33}


class Model(nn.Module):
    """Two dense layers."""

    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return Layer(3, name="output")(nn.relu(Layer(self.hidden, name="hidden")(x)))


class Layer(nn.Module):
    """A dense layer that reports events as a spiking one does."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(self.features)(x)
        values = {
            "v": x,
            "count": (x > 0.5).astype(jnp.int32),
            "dropped": (x > 1.5).sum(axis=-1, dtype=jnp.int32),
            "unexplained": (x < -1.5).sum(axis=-1, dtype=jnp.int32),
        }
        if self.is_mutable_collection("events"):
            for name, value in values.items():
                self.variable("events", name, jnp.zeros_like, value).value = value
        return x


@dataclasses.dataclass
class Experiment:
    model: nn.Module
    encode: Callable[..., Any]
    loss: Callable[..., jax.Array]
    predict: Callable[..., jax.Array]
    optimizer: Callable[..., Any]
    read: Callable[..., Any] = lambda outputs: outputs


def create_experiment(config: ml_collections.ConfigDict) -> Experiment:
    def encode(features):
        return features * 2 - 1

    def loss(outputs, labels, params, events):
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs, labels)
        active = sum(layer["count"].mean(axis=-1) for layer in events.values())
        return losses + 1e-4 * optax.tree.norm(params, squared=True) + 0.01 * active

    def optimizer(steps_per_epoch):
        schedule = optax.exponential_decay(config.learning_rate, steps_per_epoch, 0.95)
        return optax.adam(schedule), schedule

    return Experiment(
        Model(config.model.hidden[0]),
        encode,
        loss,
        lambda outputs: outputs.argmax(-1).astype(jnp.int32),
        optimizer,
    )


def load(name: str, split: str, data_dir: str | None = None) -> dict[str, np.ndarray]:
    del name, data_dir
    rng = np.random.default_rng(list(SIZES).index(split))
    features = rng.random((SIZES[split], 4))
    label = (features[:, 0] + features[:, 1] * 2).astype(np.int64)
    return {"features": features, "label": label}


def make_state(**fields: Any) -> TrainState:
    """A state for tests that bring their own functions."""
    defaults = {
        "params": {},
        "tx": optax.identity(),
        "collections": {},
        "encode_fn": lambda features: features,
    }
    state = TrainState.create(**{**defaults, **fields})
    return state.replace(step=jnp.zeros((), jnp.int32))


def main() -> None:
    from jaxsnn import datasets
    from jaxsnn.training import checkpoint, experiment, writers

    experiment.create_experiment = create_experiment
    datasets.load = load
    if os.environ.get("KILL"):
        name, step, signum = os.environ["KILL"].split(":")
        owner = {
            "save": checkpoint.Checkpoints,
            "write_scalars": writers.MetricWriter,
        }[name]
        original = getattr(owner, name)

        @functools.wraps(original)
        def killing(self, first, *args):
            original(self, first, *args)
            if int(getattr(first, "step", first)) == int(step):
                os.kill(os.getpid(), int(signum))

        setattr(owner, name, killing)
    train = Path(__file__).parent.parent / "train.py"
    runpy.run_path(str(train), run_name="__main__")


if __name__ == "__main__":
    main()
