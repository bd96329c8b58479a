"""From a config of plain values to the objects that training is made of."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax import Array

from jaxsnn import losses
from jaxsnn.analytic import analytic
from jaxsnn.coding import encode_latency, first_spike_times, perturb
from jaxsnn.eventprop import eventprop
from jaxsnn.grid import check_dt
from jaxsnn.layers import (
    LI,
    LIF,
    Bounded,
    GridNetwork,
    Network,
    grid_twin,
    spread_normal,
)
from jaxsnn.readout import Trace
from jaxsnn.spikes import NO_TIME, Spikes
from jaxsnn.surrogate import sigmoid, superspike, triangular
from jaxsnn.training.errors import TrainingError
from jaxsnn.training.hardware import create_backend
from jaxsnn.training.options import choose

Schedule = Callable[[int], Any]

GRADIENTS = {"eventprop": eventprop, "analytic": analytic}
SURROGATES = {"superspike": superspike, "sigmoid": sigmoid, "triangular": triangular}
LOSSES: dict[str, Callable[[ml_collections.ConfigDict], Callable[..., Array]]] = {
    "ttfs_cross_entropy": lambda loss: functools.partial(
        losses.ttfs_cross_entropy, tau=loss.tau, t_silent=loss.t_silent
    ),
    "ttfs_mse": lambda loss: functools.partial(
        losses.ttfs_mse,
        t_correct=loss.t_correct,
        t_wrong=loss.t_wrong,
        tau=loss.tau,
        t_silent=loss.t_silent,
    ),
}
VOLTAGE_LOSSES: dict[str, Callable[[ml_collections.ConfigDict], Callable[..., Array]]]
VOLTAGE_LOSSES = {
    "mot_cross_entropy": lambda loss: functools.partial(
        losses.mot_cross_entropy, scale=loss.scale
    ),
}


class Experiment(NamedTuple):
    """What training needs to know of a model and its task.

    Attributes:
      model: the network; ``apply`` takes what `encode` returns.
      encode: features ``[batch, features]`` to the network's inputs; bytes are pixels,
        the brighter the earlier.
      loss: ``(readings, labels, params, events)`` to the loss of each example.
      predict: readings to labels ``[batch]``, -1 where no output neuron of the spiking
        readout fired.
      optimizer: steps per epoch to the optimizer and its learning rate per step.
      read: the network's outputs to the readings that `loss` and `predict` share, such
        as maxima of voltages, which are found once; by default the outputs themselves.
      clip_norm: norm above which the optimizer clips the gradient.
      perturb: ``(inputs, key)`` to inputs with noise, in training; None for no noise.
    """

    model: Network | GridNetwork
    encode: Callable[[Array], Spikes]
    loss: Callable[[Any, Array, Mapping, Mapping], Array]
    predict: Callable[[Any], Array]
    optimizer: Callable[[int], tuple[optax.GradientTransformation, Schedule]]
    read: Callable[[Any], Any] = lambda outputs: outputs
    clip_norm: float = math.inf
    perturb: Callable[[Spikes, Array], Spikes] | None = None


def create_experiment(config: ml_collections.ConfigDict) -> Experiment:
    """Builds the experiment that `config` describes; see `configs/yinyang.py`.

    Raises:
      TrainingError: a value that names nothing, or is out of its range.
    """
    try:
        model = _model(config)
    except ValueError as error:
        raise TrainingError(f"config.model: {error}") from error
    readout = choose("model.readout", config.model.readout, READOUTS)
    loss_fn = readout.loss(config)
    if config.recurrent_learning_rate is not None and not config.model.recurrent:
        raise TrainingError(
            f"config.recurrent_learning_rate is {config.recurrent_learning_rate}, but"
            " no layer is recurrent; leave it at None, or set config.model.recurrent."
        )

    def encode(features: Array) -> Spikes:
        if jnp.issubdtype(features.dtype, jnp.integer):
            features = 1 - features / jnp.float32(255)  # Bright pixels come first.
        return encode_latency(features, **config.encoding)

    def loss(readings: Any, labels: Array, params: Mapping, events: Mapping) -> Array:
        # A constant to each example, so that the mean over examples has it once.
        bump = sum(
            losses.silence_bump(params[name]["kernel"], state["count"])
            for name, state in events.items()
            if "count" in state  # A GridLI that comes first has none.
        )
        total = loss_fn(readings, labels) + config.loss.bump * bump
        if readout.layer is LI:
            # The maximum of an output that never rises from rest has no gradient.
            right = labels[..., None] == jnp.arange(config.model.outputs)
            rises = (readings > LI.v_leak) | ~right
            kernel = params["output"]["kernel"]
            total += config.loss.lift * losses.silence_bump(kernel, rises)
        return total

    def optimizer(steps: int) -> tuple[optax.GradientTransformation, Schedule]:
        def adam(rate: float) -> tuple[optax.GradientTransformation, Schedule]:
            schedule = optax.cosine_decay_schedule(rate, steps * config.num_epochs)
            return optax.adam(schedule), schedule

        tx, schedule = adam(config.learning_rate)
        if config.recurrent_learning_rate is not None:
            slower, _ = adam(config.recurrent_learning_rate)
            tx = optax.partition({True: slower, False: tx}, _recurrent)
        return optax.chain(optax.clip_by_global_norm(config.clip_norm), tx), schedule

    return Experiment(
        model,
        encode,
        loss,
        readout.predict,
        optimizer,
        readout.read,
        config.clip_norm,
        _noise(config),
    )


def _recurrent(params: Any) -> Any:
    """Which parameters are weights of a layer with itself."""
    return jax.tree.map_with_path(
        lambda path, _: path[-1].key == "recurrent_kernel", params
    )


def _noise(
    config: ml_collections.ConfigDict,
) -> Callable[[Spikes, Array], Spikes] | None:
    if not any(config.noise.values()):
        return None
    noisy = functools.partial(perturb, **config.noise)
    example = Spikes.from_times(jnp.zeros((1, 1)))
    try:  # Now, not in the first step.
        jax.eval_shape(noisy, example, jax.random.key(0))
    except (TypeError, ValueError) as error:
        raise TrainingError(f"config.noise: {error}") from error
    return noisy


def predict_first(times: Array) -> Array:
    """The neuron that fires first, int32, ``[batch]``; -1 if none does."""
    first = jnp.argmin(times, axis=-1).astype(jnp.int32)
    return jnp.where(jnp.min(times, axis=-1) < NO_TIME, first, -1)


def predict_highest(maxima: Array) -> Array:
    """The neuron of the highest voltage, the first of equals, int32, ``[batch]``."""
    return jnp.argmax(maxima, axis=-1).astype(jnp.int32)


def _maxima(outputs: Trace | Array) -> Array:
    """Maxima over time, ``[batch, neurons]``; on a grid over the ends of its steps."""
    if isinstance(outputs, Trace):
        return outputs.maximum().value
    return jnp.max(outputs, axis=-2)


def _first_spike_loss(config: ml_collections.ConfigDict) -> Callable[..., Array]:
    loss_fn = choose("loss.name", config.loss.name, LOSSES)(config.loss)

    def loss(times: Array, labels: Array) -> Array:
        return loss_fn(times, labels) + config.loss.early * losses.earliness(
            times, labels, tau=config.model.tau_syn, t_silent=config.loss.t_silent
        )

    return loss


def _voltage_loss(config: ml_collections.ConfigDict) -> Callable[..., Array]:
    return choose("loss.name", config.loss.name, VOLTAGE_LOSSES)(config.loss)


class Readout(NamedTuple):
    """What is made of the last layer's outputs.

    Attributes:
      layer: which layer is the last.
      read: its outputs to one number per neuron, ``[batch, neurons]``.
      loss: from a config, a function of these and labels.
      predict: these to labels.
    """

    layer: type[LIF] | type[LI]
    read: Callable[[Any], Array]
    loss: Callable[[ml_collections.ConfigDict], Callable[..., Array]]
    predict: Callable[[Any], Array]


READOUTS = {
    "lif": Readout(LIF, first_spike_times, _first_spike_loss, predict_first),
    "li": Readout(LI, _maxima, _voltage_loss, predict_highest),
}


def _model(config: ml_collections.ConfigDict) -> Network | GridNetwork:
    model = config.model
    surrogate = choose("model.surrogate", model.surrogate, SURROGATES)(model.beta)
    dt, steps = model.dt, model.steps
    if dt is None:
        return _network(config)
    if config.hardware:
        raise TrainingError(
            f"config.hardware is {config.hardware!r} and config.model.dt {dt}, but a"
            " device has no time grid; leave config.model.dt at None on hardware."
        )
    if model.slots is not None:
        raise TrainingError(
            f"config.model.slots is {model.slots} and config.model.dt {dt}, but"
            " a time grid has room for all spikes; leave config.model.slots at None."
        )
    if steps is None:
        check_dt(dt)  # Before it divides.
        # Spikes from `t_silent` on are silence. Rounded: 63e-3 / 0.3e-3 is above 210.
        steps = math.ceil(round(config.loss.t_silent / dt, 6))
    if steps < 1:
        raise TrainingError(
            f"config.model.steps is {steps}, expected 1 or more, or None for as many as"
            " reach config.loss.t_silent."
        )
    return grid_twin(_network(config), dt, steps, surrogate)


def _network(config: ml_collections.ConfigDict) -> Network:
    model = config.model
    shared = {
        "tau_mem": model.tau_mem,
        "tau_syn": model.tau_syn,
        "param_dtype": jnp.dtype(model.dtype),
    }
    spiking = {
        "v_th": model.v_th,
        "gradient": choose("model.gradient", model.gradient, GRADIENTS),
    }
    if model.max_delay is not None:
        spiking["delay"] = Bounded(0.0, model.max_delay)
    hidden = [
        LIF(
            features,
            max_spikes=model.max_spikes,
            slots=model.slots,
            kernel_init=spread_normal(*model.hidden_init),
            recurrent=model.recurrent,
            recurrent_init=spread_normal(*model.recurrent_init),
            recurrent_delay=model.recurrent_delay,
            name="hidden" if len(model.hidden) == 1 else f"hidden_{n}",
            **shared,
            **spiking,
        )
        for n, features in enumerate(model.hidden)
    ]
    layer = choose("model.readout", model.readout, READOUTS).layer
    output = layer(
        model.outputs,
        kernel_init=spread_normal(*model.output_init),
        name="output",
        **shared,
        **(spiking if layer is LIF else {}),
    )
    return Network([*hidden, output], backend=create_backend(config))
