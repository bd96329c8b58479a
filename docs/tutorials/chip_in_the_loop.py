# %% [markdown]
# # A chip in the loop
#
# A network that was trained in software meets a chip whose synapses and neurons are all
# a little off, loses some of its accuracy, and gets it back by training on with the
# chip in the loop. Nobody measures the errors: the gradient is taken at the spikes that
# the chip shows.

# %%
import functools

import jax
import jax.numpy as jnp
import optax

from jaxsnn.coding import encode_latency, first_spike_times
from jaxsnn.datasets.yin_yang import generate
from jaxsnn.hardware import SimulatedChip
from jaxsnn.layers import LIF, Network, spread_normal
from jaxsnn.losses import silence_bump, ttfs_cross_entropy

features, labels = generate(1000, seed=42)
features, labels = jnp.asarray(features, jnp.float32), jnp.asarray(labels)


def encode(features):
    """Five sources for each value: a single synapse of the chip is weak."""
    return encode_latency(features, t_early=1e-3, t_late=20e-3, bias=9e-3, copies=5)


model = Network(
    [
        LIF(60, 20e-3, 10e-3, kernel_init=spread_normal(15.0, 3.6), name="hidden"),
        LIF(3, 20e-3, 10e-3, kernel_init=spread_normal(30.0, 6.0), name="output"),
    ]
)
on_chip = model.clone(backend=SimulatedChip(chip_seed=1, scale=None))

# %% [markdown]
# Training is the same function for both. The chip wants randomness, its noise from run
# to run, which is an rng stream named `hardware`; the software ignores it.

# %%
tx = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(5e-3))


def loss_fn(params, model, rows, key):
    outputs, state = model.apply(
        {"params": params},
        encode(features[rows]),
        until=60e-3,
        mutable=["events"],
        rngs={"hardware": key},
    )
    times = first_spike_times(outputs)
    loss = ttfs_cross_entropy(times, labels[rows], tau=0.5e-3, t_silent=60e-3).mean()
    for layer, seen in state["events"].items():
        loss += 3e-2 * silence_bump(params[layer]["kernel"], seen["count"])
    return loss, (jnp.argmin(times, axis=-1) == labels[rows]).mean()


def trained(model, params, epochs):
    @jax.jit
    def epoch(carry, key):
        def step(carry, given):
            params, state = carry
            rows, key = given
            grads, accuracy = jax.grad(loss_fn, has_aux=True)(params, model, rows, key)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), accuracy

        order, noise = jax.random.split(key)
        rows = jax.random.permutation(order, len(labels)).reshape(20, 50)
        return jax.lax.scan(step, carry, (rows, jax.random.split(noise, 20)))

    carry = params, tx.init(params)
    for number in range(epochs):
        carry, _ = epoch(carry, jax.random.key(number))
    return carry[0]


@functools.partial(jax.jit, static_argnames="chip")
def accuracy(params, chip):
    rows = jnp.arange(len(labels))
    network = on_chip if chip else model
    return loss_fn(params, network, rows, jax.random.key(99))[1]


# %%
params = model.init(jax.random.key(0), encode(features[:1]))["params"]
params = trained(model, params, epochs=15)
print(f"trained in software, run in software: {accuracy(params, chip=False):.3f}")
before = accuracy(params, chip=True)
print(f"trained in software, run on the chip: {before:.3f}")
params = trained(on_chip, params, epochs=6)
after = accuracy(params, chip=True)
print(f"trained on in the loop:               {after:.3f}")
assert after > before

# %% [markdown]
# On the training set, and with a small network, to be quick: `benchmarks/chips.py` does
# this properly, with five chips, and `configs/yinyang_chip.py` is the experiment.
