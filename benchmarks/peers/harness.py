"""What the runners share: the problem, the training step, the clock, the protocol.

A runner is a script that one library's environment executes,

    python benchmarks/peers/NAME.py PROBLEM.npz [GRADIENT.npz]

and that builds the problem's network with that library. It prints one JSON object of
facts, then one of speeds for every line it reads: `peers.py` asks several runners in
turn, each compiled once. By hand: `echo | python benchmarks/peers/ours.py problem.npz`.

Nothing but JAX, NumPy and optax is imported: every library brings those along.
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

# Last, so that nothing here hides a package of a library.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
from loop import loops

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


def serve_times(problem: dict, first_spikes, *, steps, hidden_spikes=None, **facts):
    """Serves a library whose first-spike times are differentiable; see `serve`.

    Args:
      problem: see `load`.
      first_spikes: a function of the kernels, hidden and output, and of input times,
        ``[batch, inputs]``, that returns times in seconds, ``inf`` for silence,
        ``[batch, outputs]``.
      steps: see `serve`.
      hidden_spikes: a function of the same that counts them, ``[batch]``.
      **facts: see `serve`.
    """

    def logits(params, times):
        out = first_spikes(params, times)
        heard = out < problem["t_silent"]
        safe = jnp.where(jnp.isfinite(out), out, 0)
        return -jnp.where(heard, safe, problem["t_silent"]) / problem["tau"]

    params = jnp.asarray(problem["hidden"]), jnp.asarray(problem["output"])
    if hidden_spikes is not None:
        batch = jnp.asarray(problem["times"][: problem["batch"]])
        facts["hidden_spikes"] = float(jax.jit(hidden_spikes)(params, batch).mean())
    serve(problem, logits, params, steps=steps, **facts)


def serve(problem: dict, logits, params, *, steps: int, **facts) -> None:
    """Compiles the training and inference loops, reports, measures when asked.

    Args:
      problem: see `load`.
      logits: a function of parameters and input times, ``[batch, inputs]``.
      params: its first argument; both kernels, unless there is `no_gradient`.
      steps: training steps per call of the compiled loop, enough to hide the call.
      **facts: what else to report: ``hidden_spikes`` per sample, or instead what the
        table is to say about lost spikes, ``dropped``; and what it is to say instead of
        the gradient's error, ``no_gradient``, if the loss is not the problem's own.
    """
    batch = problem["batch"]
    times = jnp.asarray(problem["times"])
    labels = jnp.asarray(problem["labels"])

    def loss(params, times, labels):
        values = optax.softmax_cross_entropy_with_integer_labels(
            logits(params, times), labels
        )
        return values.mean()

    def predict(params, times):
        return jnp.argmax(logits(params, times), axis=-1)

    train, infer, start = loops(
        loss, predict, params, times, labels, steps=steps, batch=batch
    )
    begin = time.perf_counter()
    train = train.lower(*start).compile()
    compile_s = time.perf_counter() - begin
    infer = infer.lower(*start).compile()

    if "no_gradient" not in facts and len(sys.argv) > 2:
        grads = jax.jit(jax.grad(loss))(params, times[:batch], labels[:batch])
        np.savez(sys.argv[2], hidden=grads[0], output=grads[1])

    def speeds() -> dict:
        samples = steps * batch
        return {
            "train_samples_per_s": rate(lambda: train(*start), samples),
            "infer_samples_per_s": rate(lambda: infer(*start), samples),
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
