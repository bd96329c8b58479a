"""This project's layers."""

import harness
import jax

from jaxsnn.layers import LIF, Network
from jaxsnn.spikes import Spikes

problem = harness.load()
shared = {name: problem[name] for name in ("tau_mem", "tau_syn", "v_th")}
hidden, output = problem["hidden"].shape[1], problem["output"].shape[1]
network = Network(
    [LIF(hidden, name="hidden", **shared), LIF(output, name="output", **shared)]
)


def run(params, times, **options):
    """Applies the network to one spike time per input."""
    variables = {"hidden": {"kernel": params[0]}, "output": {"kernel": params[1]}}
    spikes = Spikes.from_times(times[..., None])
    return network.apply({"params": variables}, spikes, **options)


params = harness.kernels(problem)
first = jax.numpy.asarray(problem["times"][: problem["batch"]])
_, state = jax.jit(lambda: run(params, first, mutable=["events"]))()
harness.serve(
    problem,
    harness.latency(problem, lambda params, times: run(params, times).first()),
    params,
    steps=64,
    exact=True,
    hidden_spikes=float(state["events"]["hidden"]["count"].sum(-1).mean()),
)
