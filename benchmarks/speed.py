"""Speed of a training step and of inference of a feed-forward spiking network.

    python benchmarks/speed.py --inputs 5 --hidden 120 --outputs 3 --batch 64 --json

Every input spikes once, at a random time. A training step is encoding, forward pass,
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
import optax

from jaxsnn.analytic import analytic
from jaxsnn.eventprop import eventprop
from jaxsnn.layers import LIF, Network, spread_normal
from jaxsnn.losses import ttfs_cross_entropy
from jaxsnn.spikes import Spikes

METHODS = {"eventprop": eventprop, "analytic": analytic}
EXAMPLES = 4096


def main() -> None:
    """Parses the command line, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--inputs", type=int, default=5)
    parser.add_argument("--hidden", type=int, default=120)
    parser.add_argument("--outputs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--spikes-per-neuron", type=int, default=1)
    parser.add_argument("--method", choices=METHODS, default="eventprop")
    parser.add_argument("--ratio", type=float, default=2.0, help="tau_mem / tau_syn")
    parser.add_argument("--steps", type=int, default=0, help="steps per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one JSON object, no more")
    options = parser.parse_args()
    result = measure(options)
    if options.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:20} {value}")


def measure(options: argparse.Namespace) -> dict[str, float | int | str]:
    """Measures one network; see the module."""
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
                kernel_init=spread_normal(15.0, 3.6),
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
    times = 10e-3 * jax.random.uniform(keys[0], (EXAMPLES, options.inputs))
    labels = jax.random.randint(keys[1], (EXAMPLES,), 0, options.outputs)
    params = network.init(keys[2], Spikes.from_times(times[:1, :, None]))["params"]
    optimizer = optax.adam(1e-5)  # Slow: the network stays what it is while measured.

    def loss(params, times, labels):
        spikes = Spikes.from_times(times[..., None])
        out = network.apply({"params": params}, spikes).first()
        return ttfs_cross_entropy(out, labels, tau=1e-3, t_silent=50e-3).mean()

    def train_step(carry, index):
        params, state = carry
        grads = jax.grad(loss)(params, times[index], labels[index])
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    def infer_step(params, index):
        spikes = Spikes.from_times(times[index][..., None])
        out = network.apply({"params": params}, spikes).first()
        return params, jnp.argmin(out, axis=-1)

    steps = options.steps or max(4, 40_000_000 // (work(options) * options.batch))
    index = jnp.arange(steps * options.batch).reshape(steps, -1) % EXAMPLES
    carry = (params, optimizer.init(params))
    train = jax.jit(lambda carry, index: jax.lax.scan(train_step, carry, index)[0])
    infer = jax.jit(lambda params, index: jax.lax.scan(infer_step, params, index)[1])
    compile_s, train_s = clock(train, options.rounds, carry, index)
    _, infer_s = clock(infer, options.rounds, params, index)
    _, state = network.apply(
        {"params": params},
        Spikes.from_times(times[: options.batch, :, None]),
        mutable=["events"],
    )
    hidden = state["events"]["hidden"]["count"]
    samples = steps * options.batch
    return {
        "train_samples_per_s": round(samples / train_s),
        "infer_samples_per_s": round(samples / infer_s),
        "compile_s": round(compile_s, 2),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "hidden_spikes_per_neuron": round(float(hidden.mean()), 2),
        **{k: v for k, v in vars(options).items() if k not in ("json", "rounds")},
        "steps": steps,
    }


def work(options: argparse.Namespace) -> int:
    """Pairs of an event and a neuron that see each other, per sample."""
    hidden = options.hidden * options.spikes_per_neuron
    return options.inputs * options.hidden + hidden * options.outputs


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
