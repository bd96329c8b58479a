"""A stand-in for an experiment and its data, small enough to compile in a moment.

Run as a program it is `train.py` on this stand-in. With `--config.hardware=bench` it is
another one, on a device that is a stand-in, too; `FAULT=run` in the environment makes
that fail.
"""

from __future__ import annotations

import dataclasses
import os
import runpy
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import oracles

from jaxsnn import Spikes, datasets
from jaxsnn.backend import Population, Projection, straight_through
from jaxsnn.dynamics import Neuron
from jaxsnn.hardware import HostBackend, Limits, LinkError, Observed
from jaxsnn.training import TrainState, experiment, hardware

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
    clip_norm: float = float("inf")
    perturb: Any = None


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


@dataclasses.dataclass(eq=False, kw_only=True)
class Bench(HostBackend):
    """A device in NumPy that finds first spikes on a fine grid.

    A spike is seen `shift` late, give or take `jitter`.

    Attributes:
      faults: what happens in which call of `run`.
    """

    limits: ClassVar[Limits] = Limits(name="bench", w_max=63, tick=0.0, stochastic=True)

    shift: float = 0.0
    jitter: float = 20e-6
    faults: dict = dataclasses.field(default_factory=dict)
    calls: int = 0
    closed: int = 0

    def compile(self, network, inputs, until):
        self.network, self.inputs, self.until = network, inputs, until

    def run(self, inputs, weights, seed):
        call, self.calls = self.calls, self.calls + 1
        if call in self.faults:
            self.faults[call]()
        rng = np.random.default_rng(seed)
        batch = len(inputs.time)
        times = np.full((batch, self.inputs), np.inf)
        row, slot = np.nonzero(inputs.index >= 0)
        times[row, inputs.index[row, slot]] = inputs.time[row, slot]
        observed = []
        for population, (w,) in zip(self.network, weights, strict=True):
            assert w.dtype == np.int32
            times = self.first(population, times, w / self.scale)
            times += self.shift + self.jitter * rng.standard_normal(times.shape)
            times = np.where((times >= 0) & (times < self.until), times, np.inf)
            index = np.broadcast_to(np.arange(population.size), times.shape)
            index = np.where(times < np.inf, index, -1)
            observed.append(Observed(times, index, lost=1))
        return observed

    def first(self, population, times, weights):
        grid = np.linspace(0, self.until, 2000)
        tau_mem, tau_syn = (population.neuron[n][0] for n in ("tau_mem", "tau_syn"))
        dt = grid[:, None, None] - np.where(np.isinf(times), 1e9, times)
        k = np.where(dt > 0, oracles.psp(tau_mem, tau_syn, np.maximum(dt, 0)), 0)
        over = k @ weights > population.neuron["v_th"]  # [grid, batch, neurons]
        return np.where(over.any(0), grid[over.argmax(0)], np.inf)

    def disconnect(self):
        self.closed += 1


def error():
    raise OSError("burnt out")


def hang():
    threading.Event().wait()


def lose_link():
    raise LinkError("no carrier")


class OnDevice(nn.Module):
    """One layer on a device, with a gradient that is made up: compiled in a moment."""

    backend: Bench

    @nn.compact
    def __call__(self, x, until):
        kernel = self.param("kernel", nn.initializers.constant(8.0), (x.shape[-1], 3))
        if self.is_initializing():
            return x @ kernel
        population = Population("output", 3, Neuron(), 1, (Projection(0, kernel),))
        spikes = Spikes.from_times(10e-3 * x[..., None])
        key = self.make_rng("hardware")
        (seen,) = self.backend([population], spikes, until, key)
        for name, value in seen.counters.items():
            self.put_variable("events", name, value)
        return straight_through(x @ kernel, -100 * jnp.minimum(seen.times[..., 0], 0.1))


def device_experiment(config: ml_collections.ConfigDict) -> Experiment:
    parts = create_experiment(config)
    device = hardware.create_backend(config)

    def loss(outputs, labels, params, events):
        return optax.softmax_cross_entropy_with_integer_labels(outputs, labels)

    return dataclasses.replace(
        parts, model=OnDevice(device), encode=lambda features: features, loss=loss
    )


def load(name: str, split: str, data_dir: str | None = None) -> dict[str, np.ndarray]:
    del name, data_dir
    rng = np.random.default_rng(list(SIZES).index(split))
    features = rng.random((SIZES[split], 4))
    label = (features[:, 0] + features[:, 1] * 2).astype(np.int64)
    return {"features": features, "label": label}


def load_with_nan(example: int) -> Any:
    """As `load`, but the features of one training example are NaN."""

    def load_it(name: str, split: str, data_dir: str | None = None) -> Any:
        data = load(name, split, data_dir)
        if split == "train":
            data["features"][example] = np.nan
        return data

    return load_it


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


def set_up() -> None:
    """Puts the stand-ins in their places."""
    on_device = "--config.hardware=bench" in sys.argv
    experiment.create_experiment = device_experiment if on_device else create_experiment
    faults = {int(os.environ["FAULT"]): error} if os.environ.get("FAULT") else {}
    hardware.HARDWARE["bench"] = lambda config: Bench(scale=5.0, faults=faults)
    datasets.load = load


if __name__ == "__main__":
    set_up()
    train = Path(__file__).parent.parent / "train.py"
    runpy.run_path(str(train), run_name="__main__")
