"""The package `spyx`: the same sizes on a grid of 100 steps, surrogate gradients.

Another model, and another loss: current-based neurons that may fire in every step, a
leaky readout, and the cross entropy of its summed voltage. A spike's time is that of
its step.
"""

import harness
import jax.numpy as jnp
import spyx.axn
import spyx.nn
from flax import nnx

STEPS = 100
problem = harness.load()
(inputs, hidden), outputs = problem["hidden"].shape, problem["output"].shape[1]
dt = 2 * problem["times"].max() / STEPS  # As long again after the last input.
alpha = float(jnp.exp(-dt / problem["tau_syn"]))
beta = float(jnp.exp(-dt / problem["tau_mem"]))
rngs = nnx.Rngs(0)
model = spyx.nn.Sequential(
    nnx.Linear(inputs, hidden, use_bias=False, rngs=rngs),
    spyx.nn.CuBaLIF(
        (hidden,), alpha=alpha, beta=beta, activation=spyx.axn.superspike(), rngs=rngs
    ),
    nnx.Linear(hidden, outputs, use_bias=False, rngs=rngs),
    spyx.nn.LI((outputs,), beta=beta, rngs=rngs),
)
scale = dt / problem["tau_mem"]  # Its current is not divided by the time constant.
model.layers[0].kernel.value = scale * jnp.asarray(problem["hidden"])
model.layers[2].kernel.value = scale * jnp.asarray(problem["output"])
graph, params = nnx.split(model)


def logits(params, times):
    """Summed voltage of the readout."""
    step = jnp.minimum(times / dt, STEPS - 1).astype(jnp.int32)
    spikes = (step == jnp.arange(STEPS)[:, None, None]).astype(times.dtype)
    voltage, _ = spyx.nn.run(nnx.merge(graph, params), spikes)
    return voltage.sum(0)


harness.serve(
    problem,
    logits,
    params,
    steps=8,
    no_gradient="n/a: another model and loss",
    dropped="n/a: a grid",
)
