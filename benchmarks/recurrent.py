"""Speed of a recurrent layer, event by event and window by window.

    python benchmarks/recurrent.py --neurons 500 --batch 32 --json

A balanced random network: four fifths of the neurons excite, one fifth inhibits so much
more that the mean recurrent weight is 0; every pair is connected with one probability,
and as many sources as neurons, over four, spike at random times over the run. What is
measured is the forward pass alone, in float32.

An *event* is a spike, or an arrival of a spike at the layer, be it of an input or of
the layer itself; each acts on all neurons. Both ways find the same spikes, so both have
the same number of events, and `ratio` is that of their speeds.
"""

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np
from speed import clock

from jaxsnn.dynamics import Neuron
from jaxsnn.record import Recurrent
from jaxsnn.recurrent import simulate_recurrent
from jaxsnn.spikes import NO_TIME, Spikes

SWEEP = (100, 200, 500, 1000, 2000)


def main() -> None:
    """Parses the command line, measures, prints."""
    options = arguments().parse_args()
    sizes = SWEEP if options.sweep else (options.neurons,)
    for neurons in sizes:
        options.neurons = neurons
        result = measure(options)
        if options.json or options.sweep:
            print(json.dumps(result), flush=True)
        else:
            for name, value in result.items():
                print(f"{name:20} {value}")


def arguments() -> argparse.ArgumentParser:
    """What can be measured; `measure` takes the parsed options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--neurons", type=int, default=500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--delay", type=float, default=1e-3, help="seconds")
    parser.add_argument("--until", type=float, default=100e-3, help="seconds")
    parser.add_argument("--rate", type=float, default=20.0, help="of an input, in Hz")
    parser.add_argument(
        "--strength", type=float, default=2.0, help="spread of the recurrent weights"
    )
    parser.add_argument("--drive", type=float, default=1.0, help="mean input current")
    parser.add_argument("--max-spikes", type=int, default=32, help="per neuron")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sweep", action="store_true", help=f"neurons {SWEEP}")
    parser.add_argument("--json", action="store_true", help="one JSON object, no more")
    return parser


def network(
    options: argparse.Namespace,
) -> tuple[Neuron, np.ndarray, Spikes, Recurrent]:
    """Arguments of `simulate_recurrent`; see the module."""
    rng = np.random.default_rng(0)
    neuron = Neuron()
    neurons, sources = options.neurons, options.neurons // 4
    recurrent = np.where(np.arange(neurons) % 5 == 4, -4.0, 1.0)[:, None]
    connected = rng.random((neurons, neurons)) < 0.1
    recurrent = recurrent * connected * options.strength / np.sqrt(0.1 * neurons * 4)
    # Of `sources` inputs at `rate`, each event's charge decays over tau_syn.
    weight = options.drive / (sources * options.rate * neuron.tau_syn)
    kernel = weight * rng.gamma(1.0, 1.0, (sources, neurons))
    counts = rng.poisson(options.rate * options.until, (options.batch, sources))
    slots = int(counts.max())
    times = rng.uniform(0, options.until, (options.batch, sources, slots))
    times = np.where(np.arange(slots) < counts[..., None], times, NO_TIME)
    inputs = Spikes.from_times(jnp.array(times, jnp.float32))
    # As many slots as events, and no more.
    inputs = inputs.keep(int(counts.sum(axis=1).max()))[0]
    return (
        neuron,
        jnp.array(kernel, jnp.float32),
        Spikes(inputs.time, inputs.index, sources),
        Recurrent(jnp.array(recurrent, jnp.float32), jnp.float32(options.delay)),
    )


def measure(options: argparse.Namespace) -> dict[str, float | int | str]:
    """Measures one network; see the module."""
    problem = network(options)
    result: dict[str, float | int | str] = {}
    for by in ("window", "event"):

        def run(problem, by=by):
            return simulate_recurrent(
                *problem, max_spikes=options.max_spikes, until=options.until, by=by
            ).times

        compile_s, seconds = clock(jax.jit(run), options.rounds, problem)
        times = np.asarray(jax.jit(run)(problem))
        spikes = np.sum(np.isfinite(times))
        arrivals = np.sum(problem[2].time < options.until)
        arrivals += np.sum(times + np.float32(options.delay) < options.until)
        result[f"{by}_events_per_s"] = round(float(spikes + arrivals) / seconds)
        result[f"{by}_s"] = round(seconds, 3)
        result[f"{by}_compile_s"] = round(compile_s, 2)
    window, event = result["window_events_per_s"], result["event_events_per_s"]
    per_neuron = spikes / times[..., 0].size
    left_out = ("json", "rounds", "sweep")
    return {
        **result,
        "ratio": round(window / event, 2),
        "spikes_per_neuron": round(float(per_neuron), 2),
        "rate_hz": round(float(per_neuron) / options.until, 1),
        "arrivals": int(arrivals),
        "most_spikes": int(np.isfinite(times).sum(-1).max()),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        **{k: v for k, v in vars(options).items() if k not in left_out},
    }


if __name__ == "__main__":
    main()
