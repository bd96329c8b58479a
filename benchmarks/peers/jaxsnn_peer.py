"""The package `jaxsnn` on PyPI, by Electronic Vision(s), gradient by its EventProp.

Environment variable ``SLOTS``: the events that its two layers have room for, those of
their inputs included, as ``HIDDEN,OUTPUT``. By default there is room for all.
"""

import itertools
import os

import harness
import jax
import jax.numpy as jnp
from jaxsnn.event.loss import first_spike
from jaxsnn.event.modules import LIF, Linear, Source
from jaxsnn.event.modules.lif.lif import LIFParameters
from jaxsnn.event.topology import Topology
from jaxsnn.event.types import Spike

problem = harness.load()
(inputs, hidden), outputs = problem["hidden"].shape, problem["output"].shape[1]
room = f"{inputs + hidden},{hidden + outputs}"
slots = [int(n) for n in os.environ.get("SLOTS", room).split(",")]
neuron = LIFParameters(
    **{name: problem[name] for name in ("tau_mem", "tau_syn", "v_th")},
    v_reset=-1000.0,  # Its way to say one spike per neuron.
)
builder = Topology(t_max=problem["t_silent"], backprop_method="eventprop")
builder.add(
    {
        "inputs": Source(inputs),
        "to_hidden": Linear(),
        "hidden": LIF(hidden, slots[0], neuron),
        "to_output": Linear(),
        "output": LIF(outputs, slots[1], neuron),
    }
)
chain = ["inputs", "to_hidden", "hidden", "to_output", "output"]
builder.connect(list(itertools.pairwise(chain)))
init, apply = builder.done()
weights = init(jax.random.key(0))


def run(params, times):
    """Events of every population."""
    order = jnp.argsort(times, axis=-1)
    times = jnp.take_along_axis(times, order, axis=-1)
    spikes = Spike(
        time=times,
        idx=order,
        current=jnp.zeros_like(times),
        layer_idx=jnp.zeros_like(order),
        internal=jnp.ones_like(order, dtype=bool),
    )
    named = dict(weights, to_hidden=params[0], to_output=params[1])
    return apply({"inputs": spikes}, named)


def first_spikes(params, times):
    """First-spike times; it marks an empty slot with `t_max`, which is `t_silent`."""
    output = run(params, times)["output"]
    return jax.vmap(lambda spikes: first_spike(spikes, outputs))(output)


def hidden_spikes(params, times):
    """Their number in each sample."""
    events = run(params, times)["hidden"]
    return (events.internal & (events.idx >= 0)).sum(-1)


harness.serve_times(problem, first_spikes, steps=4, hidden_spikes=hidden_spikes)
