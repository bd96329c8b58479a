"""What the layers share when they run: spikes with their gradient, reports."""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from jaxsnn.backend import GradientMethod
from jaxsnn.dynamics import Neuron, Time
from jaxsnn.record import Mismatch, Record, Recurrent, State, mismatch
from jaxsnn.recurrent import find_spikes
from jaxsnn.spikes import NO_TIME, Spikes

#: Collection in which layers show what only an observer wants; see `jaxsnn.capacity`.
OBSERVED = "observed"


class Found(NamedTuple):
    """What is known of a layer's spikes.

    Attributes:
      record: of them, the times with their gradient.
      mismatch: how observed spikes differ from the model's, if that was asked for.
    """

    record: Record
    mismatch: Mismatch | None


def spikes_of(
    gradient: GradientMethod,
    given: tuple[Neuron, Array, Spikes, State | None, Recurrent | None],
    limits: tuple[int, Time, str],
    observed: Array | None,
    compare: bool,
) -> Found:
    """Finds the spikes of a layer, or takes the observed ones, with their gradient.

    Args:
      gradient: the method.
      given: neurons, weights, inputs, state at the beginning, recurrent connections.
      limits: spikes per neuron, end of the window, way of running; see `find_spikes`.
      observed: spike times that a device saw.
      compare: whether to compare these with the model's, which costs a simulation.
    """
    find = functools.partial(find_spikes, *given, *limits)
    record = find(observed)
    neuron, kernel, inputs, start, recurrent = given
    # A method that knows no recurrence does for all other layers.
    own = () if recurrent is None else (recurrent,)
    times = gradient(neuron, kernel, inputs, start, record, *own)
    difference = None
    if observed is not None and compare:
        neuron, kernel, inputs, start, recurrent = lax.stop_gradient(given)
        expected = find(None).times
        difference = mismatch(
            neuron, kernel, inputs, start, expected, record, recurrent
        )
    return Found(Record(times, record.slope), difference)


def at_limit(times: Array) -> Array:
    """How many neurons fired as often as they may, which may have ended a cascade."""
    return jnp.sum(times[..., -1] < NO_TIME, axis=-1, dtype=jnp.int32)


def show_slope(module: nn.Module, slope: Mapping[str, Array]) -> None:
    """Shows an observer the slopes of a `Record`, of each population of a layer."""
    if not module.is_initializing():
        module.sow(OBSERVED, "slope", slope)


def device_key(module: nn.Module) -> Array | None:
    """Randomness for one run of a device: the rng stream ``hardware``, if given."""
    return module.make_rng("hardware") if module.has_rng("hardware") else None
