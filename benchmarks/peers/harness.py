"""What the runners share: the problem, the training step, the clock, the protocol.

A runner is a script that one library's environment executes,

    python benchmarks/peers/NAME.py PROBLEM.npz [GRADIENT.npz]

and that builds the problem's network with that library. It prints one JSON object of
facts, then one of speeds for every line it reads: `peers.py` asks several runners in
turn, each compiled once. By hand: `echo | python benchmarks/peers/ours.py problem.npz`.

This file imports nothing but JAX, NumPy and optax, which every library brings along.
"""

import json
import os
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

SECONDS = float(os.environ.get("BENCHMARK_SECONDS", "0.5"))  # Of one measurement.


def load() -> dict:
    """Reads the problem that `peers.py` wrote: arrays and numbers by name."""
    with np.load(sys.argv[1]) as file:
        problem = {name: file[name] for name in file.files}
    floats = np.float64 if jax.config.jax_enable_x64 else np.float32
    for name, value in problem.items():
        if value.ndim == 0:
            problem[name] = value.item()
        elif value.dtype.kind == "f":
            problem[name] = value.astype(floats)
    return problem


def latency(problem: dict, first_spikes):
    """Turns first-spike times into the logits of the problem's cross entropy.

    Args:
      problem: see `load`.
      first_spikes: a function of the kernels and input times, ``[batch, inputs]``, that
        returns times in seconds, ``inf`` for silence, ``[batch, outputs]``.
    """

    def logits(params, times):
        out = first_spikes(params, times)
        heard = out < problem["t_silent"]
        safe = jnp.where(jnp.isfinite(out), out, 0)
        return -jnp.where(heard, safe, problem["t_silent"]) / problem["tau"]

    return logits


def kernels(problem: dict) -> tuple:
    """The problem's weights as parameters: hidden and output kernel."""
    return jnp.asarray(problem["hidden"]), jnp.asarray(problem["output"])


def serve(problem: dict, logits, params, *, steps: int, exact: bool, **facts) -> None:
    """Compiles the training and inference loops, reports, measures when asked.

    Args:
      problem: see `load`.
      logits: a function of parameters and input times, ``[batch, inputs]``.
      params: its first argument; `kernels` if `exact`.
      steps: training steps per call of the compiled loop, enough to hide the call.
      exact: whether the library computes the problem's own loss, so that its gradient
        is to be compared.
      **facts: what else to report: ``hidden_spikes`` per sample, or instead
        what the table is to say about lost spikes, ``dropped``, and about the
        gradient, ``no_gradient``.
    """
    batch = problem["batch"]
    times = jnp.asarray(problem["times"])
    labels = jnp.asarray(problem["labels"])
    optimizer = optax.adam(1e-5)  # Slow: the network stays what it is while measured.

    def loss(params, times, labels):
        values = optax.softmax_cross_entropy_with_integer_labels(
            logits(params, times), labels
        )
        return values.mean()

    def train_step(carry, index):
        params, state = carry
        grads = jax.grad(loss)(params, times[index], labels[index])
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    def infer_step(params, index):
        return params, jnp.argmax(logits(params, times[index]), axis=-1)

    index = jnp.arange(steps * batch).reshape(steps, batch) % len(labels)
    carry = (params, optimizer.init(params))
    start = time.perf_counter()
    train = jax.jit(lambda carry, i: jax.lax.scan(train_step, carry, i)[0])
    train = train.lower(carry, index).compile()
    compile_s = time.perf_counter() - start
    infer = jax.jit(lambda params, i: jax.lax.scan(infer_step, params, i)[1])
    infer = infer.lower(params, index).compile()

    if exact and len(sys.argv) > 2:
        grads = jax.jit(jax.grad(loss))(params, times[:batch], labels[:batch])
        np.savez(sys.argv[2], hidden=grads[0], output=grads[1])

    def speeds() -> dict:
        samples = steps * batch
        return {
            "train_samples_per_s": rate(lambda: train(carry, index), samples),
            "infer_samples_per_s": rate(lambda: infer(params, index), samples),
        }

    facts = {"compile_s": round(compile_s, 1), "jax": jax.__version__, **facts}
    answer(facts, speeds)


def rate(call, samples: int) -> float:
    """Samples per second of a call, repeated for `SECONDS` after a first one."""
    jax.block_until_ready(call())
    calls, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < SECONDS or calls == 0:
        jax.block_until_ready(call())
        calls += 1
    return calls * samples / elapsed


def answer(facts: dict, speeds) -> None:
    """The protocol: facts first, then speeds for every line of standard input."""
    facts["python"] = sys.version.split()[0]
    facts["runner"] = pathlib.Path(sys.argv[0]).stem
    print(json.dumps(facts), flush=True)
    for _ in sys.stdin:
        print(json.dumps(speeds()), flush=True)
