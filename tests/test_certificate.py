"""What the certificate and the capacity report must find out about a model.

Gradients that are wrong on purpose are the source of what is expected here: by how
much, and in which layer, is known because the test put the mistake there.
"""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxsnn
from jaxsnn import Spikes, check_gradients, require_no_overflow, suggest_capacity
from jaxsnn.analytic import analytic
from jaxsnn.capacity import SlotsExceededError
from jaxsnn.eventprop import eventprop
from jaxsnn.hardware import SimulatedChip
from jaxsnn.layers import LIF, Network


def random_inputs(seed=0, batch=3, size=5):
    time = np.random.default_rng(seed).uniform(1e-3, 15e-3, (batch, size, 1))
    return Spikes.from_times(jnp.asarray(time, jnp.float32))


def scaled(neuron, kernel, inputs, start, record):
    """Right times, 1 % too large a gradient."""
    times = eventprop(neuron, kernel, inputs, start, record)
    return jax.lax.stop_gradient(times) - 0.01 * jax.lax.stop_gradient(times) + (
        1.01 * times - jax.lax.stop_gradient(times)
    )


def without_resets(neuron, kernel, inputs, start, record):
    """Forgets that a spike that moves takes the later ones of its neuron along."""
    parts = [
        eventprop(neuron, kernel, inputs, start, jax.tree.map(one, record))
        for n in range(record.times.shape[-1])
        for one in [lambda x, n=n: x[..., n : n + 1]]
    ]
    return jnp.concatenate(parts, axis=-1)


def coarse_in_float32(neuron, kernel, inputs, start, record):
    """Right in float64 and 1e-3 off in float32, without a change of the times."""
    times = eventprop(neuron, kernel, inputs, start, record)
    if times.dtype == jnp.float64:
        return times
    moving = jnp.where(jnp.isfinite(times), times - jax.lax.stop_gradient(times), 0)
    return times + jnp.float32(1e-3) * moving


class Nested(nn.Module):
    """A user's module: layers in setup, one used twice, and a bias at a fixed time."""

    def setup(self):
        self.first = LIF(8, max_spikes=3, slots=10, v_reset=-0.2, gradient=analytic)
        self.shared = LIF(8, tau_syn=4e-3)

    @nn.compact
    def __call__(self, spikes):
        hidden = self.shared(self.shared(self.first(spikes)))
        bias = Spikes.from_times(jnp.full((*spikes.time.shape[:-1], 1, 1), 2e-3))
        return LIF(2, name="readout")(jaxsnn.concatenate(hidden, bias))
