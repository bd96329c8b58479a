"""`sparx.learn.spike_times` of the package `sparxml`; its unit of time is the ms."""

import harness
import jax.numpy as jnp
from sparx.learn import EventLIF, spike_times

problem = harness.load()
neuron = EventLIF(1e3 * problem["tau_mem"], 1e3 * problem["tau_syn"], problem["v_th"])


def run(params, times):
    """First spikes of both layers in ms, ``[batch, neurons, 1]``.

    It has no neuron that fires once: later spikes are simulated, but not kept.
    """
    spikes, horizon = 1e3 * times[..., None], 1e3 * problem["t_silent"]
    hidden, _ = spike_times(spikes, params[0], neuron, horizon, 1)
    output, _ = spike_times(hidden, params[1], neuron, horizon, 1)
    return hidden, output


def first_spikes(params, times):
    """First-spike times in seconds."""
    return 1e-3 * run(params, times)[1][..., 0]


def hidden_spikes(params, times):
    """Their number in each sample."""
    return jnp.isfinite(run(params, times)[0]).sum((1, 2))


harness.serve_times(problem, first_spikes, steps=4, hidden_spikes=hidden_spikes)
