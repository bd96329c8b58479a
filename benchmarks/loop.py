"""The loops that are measured, of this project's networks and of others'.

Other libraries run this too: it imports what all of them bring along, and no more.
"""

import jax
import jax.numpy as jnp
import optax


def loops(loss, predict, params, times, labels, *, steps: int, batch: int) -> tuple:
    """Training and inference, `steps` batches per call, over and over the examples.

    Args:
      loss: a function of parameters, times and labels, for Adam to descend.
      predict: a function of parameters and times.
      params: what both have as their first argument.
      times: input times of all examples, ``[examples, ...]``.
      labels: their labels, ``[examples]``.
      steps: batches per call.
      batch: examples per batch.

    Returns:
      Two jitted functions, `train` and `infer`, and the arguments of both.
    """
    optimizer = optax.adam(1e-5)  # Slow: the network stays what it is while measured.

    def train_step(carry, index):
        params, state = carry
        grads = jax.grad(loss)(params, times[index], labels[index])
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    def infer_step(carry, index):
        return carry, predict(carry[0], times[index])

    index = jnp.arange(steps * batch).reshape(steps, batch) % len(labels)
    train = jax.jit(lambda carry, index: jax.lax.scan(train_step, carry, index)[0])
    infer = jax.jit(lambda carry, index: jax.lax.scan(infer_step, carry, index)[1])
    return train, infer, ((params, optimizer.init(params)), index)
