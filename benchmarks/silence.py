"""Cures for silent neurons compared: do networks that start silent learn?

Command: `python benchmarks/silence.py > silence.md`; `--help` lists what can be
changed. Three minutes on two cores.

A 5-120-3 network learns YinYang as in `configs/yinyang.py`, but from weights so small
that hardly a neuron fires: in one case in both layers, in the other in the output layer
alone. A row is one cure. Everything else is the same for all rows.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsnn import losses
from jaxsnn.coding import encode_latency, first_spike_times
from jaxsnn.cures import bump_silent, pseudo_times, threshold_gap
from jaxsnn.datasets.yin_yang import SPLITS, generate
from jaxsnn.layers import LIF, Network, spread_normal

TAUS = {"tau_mem": 20e-3, "tau_syn": 10e-3}
T_SILENT = 60e-3  # s, stands for a silent output in the loss.
T_PSEUDO, TAU_PSEUDO = 30e-3, 30e-3  # s: pseudo-spikes come up to T_SILENT.
BATCH, CLIP, LEARNING_RATE = 50, 0.5, 1e-2

# Factors of the weights of configs/yinyang.py, which make each neuron fire.
STARTS = {"both layers silent": (0.15, 0.15), "outputs silent": (1.0, 0.05)}


class Seen(NamedTuple):
    """What a loss may look at, of one batch."""

    params: Any
    inputs: Any
    hidden: Any
    times: jax.Array
    counts: dict[str, jax.Array]


class Cure(NamedTuple):
    """A cure, as what it adds to a training step.

    Attributes:
      term: added to the loss.
      times: first spike times that the loss is told.
      step: follows the optimizer.
    """

    term: Callable[[Seen], Any] = lambda seen: 0.0
    times: Callable[[Seen], jax.Array] = lambda seen: seen.times
    step: optax.GradientTransformation = optax.identity()


def network(hidden: float = 1.0, output: float = 1.0) -> Network:
    """The network of configs/yinyang.py, weights scaled layer by layer."""
    first = spread_normal(15.0 * hidden, 3.6 * hidden)
    last = spread_normal(60.0 * output, 8.8 * output)
    return Network(
        [
            LIF(120, kernel_init=first, name="hidden", **TAUS),
            LIF(3, kernel_init=last, name="output", **TAUS),
        ]
    )


def bump_term(seen: Seen) -> jax.Array:
    """Of configs/yinyang.py."""
    bump = losses.silence_bump
    return 3e-2 * sum(
        bump(seen.params[name]["kernel"], count) for name, count in seen.counts.items()
    )


def gap_of_hidden(seen: Seen) -> jax.Array:
    """Asks as `bump_term` does: of each neuron in every sample."""
    neuron = network().layers[0].neuron
    gap = threshold_gap(neuron, seen.params["hidden"]["kernel"], seen.inputs)
    return gap.mean(axis=0).sum()


def gap_of_both(seen: Seen) -> jax.Array:
    """The same of the outputs too."""
    neuron = network().layers[1].neuron
    gap = threshold_gap(neuron, seen.params["output"]["kernel"], seen.hidden)
    return gap_of_hidden(seen) + gap.mean(axis=0).sum()


def pseudo(seen: Seen) -> jax.Array:
    """Pseudo-spikes of silent outputs."""
    neuron, kernel = network().layers[1].neuron, seen.params["output"]["kernel"]
    return pseudo_times(
        seen.times, neuron, kernel, seen.hidden, tau=TAU_PSEUDO, t_silent=T_PSEUDO
    )


CURES = {
    "none": Cure(),
    "`losses.silence_bump`": Cure(term=bump_term),
    "`cures.bump_silent`": Cure(step=bump_silent(1e-2, fraction=0.5)),
    "`cures.threshold_gap`": Cure(term=gap_of_both),
    "`cures.pseudo_times` of outputs": Cure(times=pseudo),
    "`pseudo_times`, `threshold_gap` of hidden": Cure(gap_of_hidden, pseudo),
}


def load(split: str) -> tuple[jax.Array, jax.Array]:
    """Features and labels."""
    features, labels = generate(*SPLITS[split])
    return jnp.asarray(features, jnp.float32), jnp.asarray(labels)


def run(model: Network, params: Any, features: jax.Array) -> Seen:
    """One forward pass."""
    inputs = encode_latency(features, t_early=1.5e-3, t_late=20e-3, bias=9e-3)
    outputs, state = model.apply(
        {"params": params}, inputs, mutable=["events", "intermediates"]
    )
    hidden = state["intermediates"]["hidden"]["spikes"][0]
    counts = {name: layer["count"] for name, layer in state["events"].items()}
    return Seen(params, inputs, hidden, first_spike_times(outputs), counts)


def trainer(cure: Cure, epochs: int) -> Callable:
    """Compiles the training of one network and its evaluation."""
    model = network()
    features, labels = load("train")
    steps = len(labels) // BATCH
    schedule = optax.cosine_decay_schedule(LEARNING_RATE, epochs * steps)
    clip = optax.clip_by_global_norm(CLIP)
    tx = optax.chain(clip, optax.adam(schedule), cure.step)
    tx = optax.with_extra_args_support(tx)

    def loss(params: Any, chosen: jax.Array) -> tuple[jax.Array, Any]:
        seen = run(model, params, features[chosen])
        times = cure.times(seen)
        told = {"labels": labels[chosen], "t_silent": T_SILENT}
        value = losses.ttfs_cross_entropy(times, tau=0.5e-3, **told)
        late = losses.earliness(times, tau=TAUS["tau_syn"], **told)
        return (value + 3e-3 * late).mean() + cure.term(seen), seen.counts

    def step(carry: tuple, chosen: jax.Array) -> tuple[tuple, None]:
        params, state = carry
        grads, counts = jax.grad(loss, has_aux=True)(params, chosen)
        updates, state = tx.update(grads, state, params, counts=counts)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def train(params: Any, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        keys = jax.random.split(key, epochs)
        order = jax.vmap(lambda key: jax.random.permutation(key, len(labels)))(keys)
        order = order[:, : steps * BATCH].reshape(-1, BATCH)
        params, _ = jax.lax.scan(step, (params, tx.init(params)), order)[0]
        return evaluate(model, params)

    return train


def evaluate(model: Network, params: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Fractions of silent hidden and output neurons, and accuracy, on validation."""
    features, labels = load("validation")
    seen = run(model, params, features)
    spoke = jnp.isfinite(seen.times).any(axis=-1)
    right = spoke & (jnp.argmin(seen.times, axis=-1) == labels)
    silent = {name: jnp.mean(count == 0) for name, count in seen.counts.items()}
    return silent["hidden"], silent["output"], jnp.mean(right)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    began = time.perf_counter()

    def start(scale: tuple[float, float], seed: int) -> Any:
        model, features = network(*scale), load("train")[0][:1]
        inputs = encode_latency(features, t_late=20e-3, bias=9e-3)
        return model.init(jax.random.key(seed), inputs)["params"]

    columns = "| {} | silent hidden | silent outputs | validation accuracy |"
    rows: dict[str, list[str]] = {case: [] for case in STARTS}

    def report(case: str, name: str, results: list) -> None:
        percent = 100 * np.array(results)
        mean, spread = percent.mean(axis=0), percent.std(axis=0)
        cells = f"{mean[0]:.1f} % | {mean[1]:.1f} % | {mean[2]:.1f} ± {spread[2]:.1f} %"
        rows[case].append(f"| {name} | {cells} |")

    untrained = jax.jit(lambda params: evaluate(network(), params))
    for case, scale in STARTS.items():
        results = [untrained(start(scale, seed)) for seed in range(args.seeds)]
        report(case, "(before training)", results)
    for name, cure in CURES.items():
        train = trainer(cure, args.epochs)
        for case, scale in STARTS.items():
            seeds = range(args.seeds)
            keys = [jax.random.key(1000 + seed) for seed in seeds]
            results = [
                train(start(scale, seed), key)
                for seed, key in zip(seeds, keys, strict=True)
            ]
            report(case, name, results)
    for case, lines in rows.items():
        print(columns.format(case), "|---|---|---|---|", *lines, "", sep="\n")
    print(
        f"After {args.epochs} epochs, {args.seeds} seeds,"
        f" {time.perf_counter() - began:.0f} s in all."
    )


if __name__ == "__main__":
    main()
