"""The package `eventax`, which solves an ODE between events; times in ms.

Its defaults but for the step: Euler, here of a hundredth of tau_mem, Newton's root
finding, gradients through the solver. Neurons are reset so far down that each fires
once. Its simulation ends when all outputs have fired, and it raises where a buffer
would overflow.
"""

import equinox as eqx
import harness
import jax
import jax.numpy as jnp
from eventax.evnn import FFEvNN
from eventax.neuron_models import LIF

problem = harness.load()
(inputs, hidden), outputs = problem["hidden"].shape, problem["output"].shape[1]
model = FFEvNN(
    layers=[hidden, outputs],
    in_size=inputs,
    neuron_model=LIF,
    max_solver_time=1e3 * problem["t_silent"],
    solver_stepsize=1e3 * problem["tau_mem"] / 100,
    max_event_steps=2 * (inputs + hidden + outputs) + 2,
    output_no_spike_value=jnp.inf,
    key=jax.random.key(0),
    thresh=problem["v_th"],
    tmem=1e3 * problem["tau_mem"],
    tsyn=1e3 * problem["tau_syn"],
    vreset=-1000.0,
    wlim=1.0,
    init_bias=0.0,
)


def first_spikes(params, times):
    """First-spike times in seconds."""
    # Rows of its one matrix are hidden, output and input neurons.
    weights = jnp.zeros_like(model.neuron_model.weights)
    weights = weights.at[:hidden, hidden:].set(params[1])
    weights = weights.at[hidden + outputs :, :hidden].set(params[0])
    weighted = eqx.tree_at(lambda m: m.neuron_model.weights, model, weights)
    return 1e-3 * jax.vmap(weighted.ttfs)(1e3 * times[..., None])


harness.serve_times(problem, first_spikes, steps=1, dropped="none, it raises")
