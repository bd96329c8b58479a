"""Speed of a training step and of inference of a feed-forward spiking network.

    python benchmarks/speed.py --inputs 5 --hidden 120 --outputs 3 --batch 64 --json

Every input spikes once, or as often as `--events-per-input` says, at random times in
the first 10 ms. A training step is encoding, forward pass,
exact gradient, and Adam; steps are dispatched together, as `train.py` does. Reported
are medians over rounds, compilation apart.
"""

import argparse
import json
import resource
import statistics
import time

import jax
import jax.numpy as jnp
from loop import loops

from jaxsnn.analytic import analytic
from jaxsnn.eventprop import eventprop
from jaxsnn.layers import LIF, Network, spread_normal
from jaxsnn.losses import ttfs_cross_entropy
from jaxsnn.spikes import Spikes

METHODS = {"eventprop": eventprop, "analytic": analytic}
EXAMPLES = 4096


def main() -> None:
    """Parses the command line, measures, prints."""
    options = arguments().parse_args()
    result = measure(options)
    if options.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:20} {value}")


def arguments() -> argparse.ArgumentParser:
    """What can be measured; `measure` takes the parsed options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--inputs", type=int, default=5)
    parser.add_argument("--hidden", type=int, default=120)
    parser.add_argument("--outputs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--events-per-input", type=int, default=1)
    parser.add_argument("--spikes-per-neuron", type=int, default=1)
    parser.add_argument(
        "--drive", type=float, default=15.0, help="mean total weight of a neuron"
    )
    parser.add_argument("--method", choices=METHODS, default="eventprop")
    parser.add_argument("--ratio", type=float, default=2.0, help="tau_mem / tau_syn")
    parser.add_argument("--steps", type=int, default=0, help="steps per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--train-only", action="store_true", help="no inference")
    parser.add_argument("--json", action="store_true", help="one JSON object, no more")
    return parser


def measure(options: argparse.Namespace) -> dict[str, float | int | str]:
    """Measures one network; see the module."""
    events = options.events_per_input
    tau_syn = 5e-3
    shared = {
        "tau_mem": options.ratio * tau_syn,
        "tau_syn": tau_syn,
        "gradient": METHODS[options.method],
    }
    network = Network(
        [
            LIF(
                options.hidden,
                max_spikes=options.spikes_per_neuron,
                # As much input in all, however many events it comes in.
                kernel_init=spread_normal(options.drive / events, 3.6 / events),
                name="hidden",
                **shared,
            ),
            LIF(
                options.outputs,
                kernel_init=spread_normal(60.0, 8.8),
                name="output",
                **shared,
            ),
        ]
    )
    keys = jax.random.split(jax.random.key(0), 3)
    steps = options.steps or max(4, 40_000_000 // (work(options) * options.batch))
    examples = min(EXAMPLES, steps * options.batch)
    times = jax.random.uniform(keys[0], (examples, options.inputs, events))
    times = 10e-3 * times
    labels = jax.random.randint(keys[1], (examples,), 0, options.outputs)
    params = network.init(keys[2], Spikes.from_times(times[:1]))["params"]

    def first_spikes(params, times):
        return network.apply({"params": params}, Spikes.from_times(times)).first()

    def loss(params, times, labels):
        out = first_spikes(params, times)
        return ttfs_cross_entropy(out, labels, tau=1e-3, t_silent=50e-3).mean()

    def predict(params, times):
        return jnp.argmin(first_spikes(params, times), axis=-1)

    train, infer, start = loops(
        loss, predict, params, times, labels, steps=steps, batch=options.batch
    )
    samples = steps * options.batch
    compile_s, train_s = clock(train, options.rounds, *start)
    speeds = {"train_samples_per_s": round(samples / train_s)}
    if not options.train_only:
        _, infer_s = clock(infer, options.rounds, *start)
        speeds["infer_samples_per_s"] = round(samples / infer_s)
    _, state = network.apply(
        {"params": params},
        Spikes.from_times(times[: options.batch]),
        mutable=["events"],
    )
    hidden = state["events"]["hidden"]["count"]
    left_out = ("json", "rounds", "train_only")
    return {
        **speeds,
        "compile_s": round(compile_s, 2),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "hidden_spikes_per_neuron": round(float(hidden.mean()), 2),
        **{k: v for k, v in vars(options).items() if k not in left_out},
        "steps": steps,
    }


def work(options: argparse.Namespace) -> int:
    """Pairs of an event and a neuron that see each other, per sample."""
    hidden = options.hidden * options.spikes_per_neuron
    events = options.inputs * options.events_per_input
    return events * options.hidden + hidden * options.outputs


def clock(function, rounds: int, *arguments) -> tuple[float, float]:
    """Seconds that compilation takes, and the median of the calls after it."""
    start = time.perf_counter()
    compiled = function.lower(*arguments).compile()
    compile_s = time.perf_counter() - start
    jax.block_until_ready(compiled(*arguments))
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - start)
    return compile_s, statistics.median(seconds)


if __name__ == "__main__":
    main()
