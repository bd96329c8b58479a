"""The part of training that runs on the device: one step, and a scan over an epoch."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from flax.training import train_state

from jaxsnn.training.metrics import EvalMetrics, Total, TrainMetrics, merge_steps

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
      clip_norm: norm above which `tx` clips the gradient; here it is only counted.
    """

    collections: Mapping[str, Any]
    encode_fn: Callable[..., Any] = struct.field(pytree_node=False)
    loss_fn: Callable[..., jax.Array] = struct.field(pytree_node=False)
    predict_fn: Callable[..., jax.Array] = struct.field(pytree_node=False)
    read_fn: Callable[..., Any] = struct.field(
        pytree_node=False, default=lambda outputs: outputs
    )
    clip_norm: float = struct.field(pytree_node=False, default=math.inf)


class Health(NamedTuple):
    """What tells whether a step was sound.

    Attributes:
      loss: mean loss of the batch.
      grads: how many values are NaN or Inf, for each leaf of the gradient, int32.
      params: the same of the parameters after the step.
    """

    loss: jax.Array
    grads: Any
    params: Any

    def sound(self) -> jax.Array:
        """Whether all numbers are finite, bool."""
        counts = jax.tree.leaves((self.grads, self.params))
        return jnp.isfinite(self.loss) & (sum(counts) == 0)


def create_train_state(
    experiment: Experiment,
    tx: optax.GradientTransformation,
    key: jax.Array,
    features: jax.Array | np.ndarray,
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
        apply_fn=_perturbed(
            functools.partial(experiment.model.apply, **window), experiment
        ),
        params=variables.pop("params"),
        tx=tx,
        collections=variables,
        encode_fn=experiment.encode,
        loss_fn=experiment.loss,
        predict_fn=experiment.predict,
        read_fn=experiment.read,
        clip_norm=experiment.clip_norm,
    )
    # Flax starts with a Python int, whose type changes, and recompiles, at step 2.
    return state.replace(step=jnp.zeros((), jnp.int32))


def _perturbed(apply: Callable[..., Any], experiment: Experiment) -> Callable[..., Any]:
    """The model, on inputs with noise where there is a key for it: in training."""
    if experiment.perturb is None:
        return apply
    perturb = experiment.perturb

    def run(variables: Any, inputs: Any, *, rngs: Any = None, **options: Any) -> Any:
        if rngs and "noise" in rngs:
            inputs = perturb(inputs, rngs["noise"])
        return apply(variables, inputs, rngs=rngs, **options)

    return run


def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, TrainMetrics]:
    """Takes one optimizer step; the metrics are those of `batch` before it."""
    state, metrics, _ = checked_step(state, batch)
    return state, metrics


def checked_step(
    state: TrainState, batch: Batch
) -> tuple[TrainState, TrainMetrics, Health]:
    """As `train_step`; says as well whether the step was sound."""
    labels = batch["label"]

    def mean_loss(params: Any) -> tuple[jax.Array, Any]:
        outputs, updates = state.apply_fn(
            {"params": params, **state.collections},
            state.encode_fn(batch["features"]),
            mutable=["events", *state.collections],
            rngs=_rngs(batch, training=True),
        )
        readings, events = state.read_fn(outputs), updates.get("events", {})
        losses = state.loss_fn(readings, labels, params, events)
        return losses.mean(), (losses, readings, updates)

    grads, (losses, readings, updates) = jax.grad(mean_loss, has_aux=True)(state.params)
    new_state = state.apply_gradients(
        grads=grads, collections={name: updates[name] for name in state.collections}
    )
    grad_norm = optax.tree.norm(grads)
    metrics = TrainMetrics.single_from_model_output(
        loss=losses,
        correct=state.predict_fn(readings) == labels,
        events=updates.get("events", {}),
        grad_norm=grad_norm,
        clipped=grad_norm > state.clip_norm,
        skipped=jnp.zeros((), jnp.int32),
    )
    health = Health(
        metrics.loss.compute(),
        _count_nonfinite(grads),
        _count_nonfinite(new_state.params),
    )
    return new_state, metrics, health


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
    state: TrainState,
    data: Batch,
    key: jax.Array,
    *,
    batch_size: int,
    skip_nonfinite: bool = False,
) -> tuple[TrainState, TrainMetrics, Health]:
    """Trains on every example of `data` once, in whole batches.

    A step whose loss, gradient or parameters are NaN or Inf changes nothing but `step`:
    either the state stays what it was before it, to the end of the epoch, or that step
    alone is skipped. It is in no metric but `skipped`.

    Args:
      state: the state; its `step` is that of the start of an epoch.
      data: the examples.
      key: the order depends on this and the epoch alone, and the epoch on `state.step`,
        so that a restored state goes on as the uninterrupted one would.
      batch_size: examples in a step. The rest that fills no batch differs from epoch to
        epoch.
      skip_nonfinite: whether to go on after a step that was not sound.

    Returns:
      The state, the metrics of the epoch, and the health of each step [S].
    """
    batches = epoch_batches(state.step, data, key, batch_size)

    def step(carry: Any, chosen: Any) -> tuple[Any, Any]:
        state, halted = carry
        new_state, metrics, health = checked_step(state, take(data, *chosen))
        sound = health.sound() & ~halted
        kept = jax.tree.map(
            lambda new, old: jnp.where(sound, new, old), new_state, state
        )
        halted |= ~sound & (not skip_nonfinite)
        return (kept.replace(step=new_state.step), halted), (metrics, health)

    carry = (state, jnp.zeros((), bool))
    (state, _), (metrics, steps) = jax.lax.scan(step, carry, batches)
    return (
        state,
        merge_steps(_leave_out(metrics, ~jax.vmap(Health.sound)(steps))),
        steps,
    )


def epoch_batches(
    step: jax.Array | int, data: Batch, key: jax.Array, batch_size: int
) -> tuple[jax.Array, jax.Array]:
    """The examples [S, B] and the key of a device [S] of each step of an epoch.

    Args:
      step: any step of the epoch, counted from 0.
      data: the examples.
      key: randomness of the run's order.
      batch_size: examples in a step.
    """
    size = data["label"].shape[0]
    num_steps = size // batch_size
    epoch = step // num_steps
    order_key, device_key = jax.random.split(jax.random.fold_in(key, epoch))
    order = jax.random.permutation(order_key, size)[: num_steps * batch_size]
    keys = jax.random.split(device_key, num_steps)
    return order.reshape(num_steps, batch_size), keys


def take(data: Batch, indices: jax.Array, key: jax.Array) -> Batch:
    """The batch of these examples."""
    return {**{name: x[indices] for name, x in data.items()}, "key": key}


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


def _rngs(batch: Batch, training: bool = False) -> dict[str, jax.Array] | None:
    if "key" not in batch:
        return None
    rngs = {"hardware": batch["key"]}
    if training:
        rngs["noise"] = jax.random.fold_in(batch["key"], 1)
    return rngs


def _count_nonfinite(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.sum(~jnp.isfinite(x), dtype=jnp.int32), tree)


def _leave_out(metrics: TrainMetrics, bad: jax.Array) -> TrainMetrics:
    """The metrics of steps [S], empty where a step is `bad`, which is counted."""

    def empty(x: jax.Array) -> jax.Array:
        where = bad.reshape(-1, *[1] * (x.ndim - 1))
        return jnp.where(where, jnp.zeros_like(x), x)

    return jax.tree.map(empty, metrics).replace(skipped=Total(bad.astype(jnp.int32)))
