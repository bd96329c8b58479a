"""This project's layers."""

import harness

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


def hidden_spikes(params, times):
    """Their number in each sample."""
    _, state = run(params, times, mutable=["events"])
    return state["events"]["hidden"]["count"].sum(-1)


harness.serve_times(
    problem,
    lambda params, times: run(params, times).first(),
    steps=64,
    hidden_spikes=hidden_spikes,
)
