"""The part of training that runs on the device: one step, and a scan over an epoch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from flax.training import train_state

from jaxsnn.training.metrics import EvalMetrics, TrainMetrics, merge_steps

if TYPE_CHECKING:
    from jaxsnn.training.experiment import Experiment

# `features` [B, F] and `label` [B]; in evaluation also `mask` [B], false for padding. A
# `key`, where there is one, is the randomness of a device.
Batch = Mapping[str, jax.Array]


class TrainState(train_state.TrainState):
    """Flax's train state, with what a spiking model adds to it.

    Attributes:
      collections: the model's state collections, carried from step to step. Not among
        them is `events`: each sample starts from rest.
      encode_fn: turns features [B, F] into the model's inputs.
      loss_fn: `(readings, labels, params, events)` to the loss of each example [B].
      predict_fn: turns readings into labels [B].
      read_fn: turns the model's outputs into the readings that loss and prediction
        share, once per batch; by default they are the outputs.
    """

    collections: Mapping[str, Any]
    encode_fn: Callable[..., Any] = struct.field(pytree_node=False)
    loss_fn: Callable[..., jax.Array] = struct.field(pytree_node=False)
    predict_fn: Callable[..., jax.Array] = struct.field(pytree_node=False)
    read_fn: Callable[..., Any] = struct.field(
        pytree_node=False, default=lambda outputs: outputs
    )


def create_train_state(
    experiment: Experiment,
    tx: optax.GradientTransformation,
    key: jax.Array,
    features: jax.Array,
    until: float | None = None,
) -> TrainState:
    """Initializes model and optimizer.

    Args:
      experiment: the model and its task.
      tx: the optimizer.
      key: randomness of the parameters.
      features: of which only the shape [B, F] matters.
      until: end of the model's window in seconds; None leaves it to the model.
    """
    window: dict[str, Any] = {} if until is None else {"until": until}

    @jax.jit
    def init(key: jax.Array, features: jax.Array) -> dict[str, Any]:
        return dict(experiment.model.init(key, experiment.encode(features), **window))

    variables = init(key, features)
    variables.pop("events", None)
    state = TrainState.create(
        apply_fn=functools.partial(experiment.model.apply, **window),
        params=variables.pop("params"),
        tx=tx,
        collections=variables,
        encode_fn=experiment.encode,
        loss_fn=experiment.loss,
        predict_fn=experiment.predict,
        read_fn=experiment.read,
    )
    # Flax starts with a Python int, whose type changes, and recompiles, at step 2.
    return state.replace(step=jnp.zeros((), jnp.int32))


def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, TrainMetrics]:
    """Takes one optimizer step; the metrics are those of `batch` before it."""
    labels = batch["label"]

    def mean_loss(params: Any) -> tuple[jax.Array, Any]:
        outputs, updates = state.apply_fn(
            {"params": params, **state.collections},
            state.encode_fn(batch["features"]),
            mutable=["events", *state.collections],
            rngs=_rngs(batch),
        )
        readings, events = state.read_fn(outputs), updates.get("events", {})
        losses = state.loss_fn(readings, labels, params, events)
        return losses.mean(), (losses, readings, updates)

    grads, (losses, readings, updates) = jax.grad(mean_loss, has_aux=True)(state.params)
    new_state = state.apply_gradients(
        grads=grads, collections={name: updates[name] for name in state.collections}
    )
    metrics = TrainMetrics.single_from_model_output(
        loss=losses,
        correct=state.predict_fn(readings) == labels,
        events=updates.get("events", {}),
        nonfinite_grads=_count_nonfinite(grads),
        nonfinite_params=_count_nonfinite(new_state.params),
    )
    return new_state, metrics


def eval_step(state: TrainState, batch: Batch) -> EvalMetrics:
    """Evaluates a batch; examples whose `mask` is false are padding.

    What a device observed is compared with the model, which costs a simulation.
    """
    outputs, updates = state.apply_fn(
        {"params": state.params, **state.collections},
        state.encode_fn(batch["features"]),
        mutable=["events", "mismatch"],
        rngs=_rngs(batch),
    )
    readings = state.read_fn(outputs)
    labels, events = batch["label"], updates.get("events", {})
    return EvalMetrics.single_from_model_output(
        loss=state.loss_fn(readings, labels, state.params, events),
        correct=state.predict_fn(readings) == labels,
        events=events,
        mismatch=updates.get("mismatch", {}),
        mask=batch["mask"],
    )


def train_epoch(
    state: TrainState, data: Batch, key: jax.Array, *, batch_size: int
) -> tuple[TrainState, TrainMetrics, dict[str, jax.Array]]:
    """Trains on every example of `data` once, in whole batches.

    The order depends on `key` and the epoch alone, and the epoch on `state.step`, so
    that a restored state goes on as the uninterrupted one would. The rest that fills no
    batch differs from epoch to epoch.

    Returns:
      The state, the metrics of the epoch, and for each step [S] what tells whether it
      was sound: `loss`, `nonfinite_grads`, `nonfinite_params`.
    """
    size = data["label"].shape[0]
    num_steps = size // batch_size
    epoch = state.step // num_steps
    order_key, device_key = jax.random.split(jax.random.fold_in(key, epoch))
    order = jax.random.permutation(order_key, size)[: num_steps * batch_size]

    def step(state: TrainState, chosen: Any) -> tuple[TrainState, TrainMetrics]:
        indices, key = chosen
        batch = {name: x[indices] for name, x in data.items()}
        return train_step(state, {**batch, "key": key})

    batches = order.reshape(num_steps, batch_size)
    keys = jax.random.split(device_key, num_steps)
    state, metrics = jax.lax.scan(step, state, (batches, keys))
    steps = {
        "loss": metrics.loss.compute(),
        "nonfinite_grads": metrics.nonfinite_grads.compute(),
        "nonfinite_params": metrics.nonfinite_params.compute(),
    }
    return state, merge_steps(metrics), steps


def evaluate_split(
    state: TrainState, data: Batch, key: jax.Array, *, batch_size: int
) -> EvalMetrics:
    """Evaluates every example of `data` once."""
    size = data["label"].shape[0]
    # The last batch is padded: a smaller one would be compiled a second time.
    indices = jnp.arange(-(-size // batch_size) * batch_size).reshape(-1, batch_size)

    def step(_: None, chosen: Any) -> tuple[None, EvalMetrics]:
        indices, key = chosen
        batch = {name: x[jnp.minimum(indices, size - 1)] for name, x in data.items()}
        return None, eval_step(state, {**batch, "mask": indices < size, "key": key})

    keys = jax.random.split(key, indices.shape[0])
    return merge_steps(jax.lax.scan(step, None, (indices, keys))[1])


def _rngs(batch: Batch) -> dict[str, jax.Array] | None:
    return {"hardware": batch["key"]} if "key" in batch else None


def _count_nonfinite(tree: Any) -> jax.Array:
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    counts = [jnp.sum(~jnp.isfinite(x), dtype=jnp.int32) for x in leaves]
    return sum(counts, jnp.zeros((), jnp.int32))
