# %% [markdown]
# # Delays that recognise an order
#
# Three sources spike one after the other, first to last or last to first. All weights
# are equal and stay so: what a neuron can learn is how long each spike takes to reach
# it. It fires early when its inputs arrive together, so that delays which undo the
# order of a pattern make a detector of that pattern.

# %%
import jax
import jax.numpy as jnp
import optax

from jaxsnn import Spikes
from jaxsnn.coding import first_spike_times
from jaxsnn.layers import LIF, Bounded
from jaxsnn.losses import ttfs_cross_entropy

steps = jnp.array([1e-3, 5e-3, 9e-3])
patterns = Spikes.from_times(jnp.stack([steps, steps[::-1]])[..., None])
labels = jnp.array([0, 1])

# %% [markdown]
# `Bounded` keeps a learned value in a range, here what a device could realise. Delays
# start in the middle, all the same but for a little noise.


# %%
def start(key, shape, dtype):
    return 5e-3 + 2e-4 * jax.random.normal(key, shape, dtype)


layer = LIF(
    2,
    tau_mem=4e-3,
    tau_syn=2e-3,
    kernel_init=jax.nn.initializers.constant(4.0),
    delay=Bounded(0.0, 10e-3, init=start),
)
params = layer.init(jax.random.key(0), patterns)["params"]
print(
    "first spikes before, ms:\n",
    layer.apply({"params": params}, patterns).first() * 1e3,
)

# %% [markdown]
# Only the delays are trained. Their gradient is exact: by how much a spike moves when
# one of its causes arrives later.


# %%
def loss(params):
    times = first_spike_times(layer.apply({"params": params}, patterns))
    return ttfs_cross_entropy(times, labels, tau=1e-3, t_silent=30e-3).mean()


kinds = {"kernel": "fixed", "logit_delay": "learned"}
tx = optax.multi_transform(
    {"fixed": optax.set_to_zero(), "learned": optax.adam(0.1)}, kinds
)


@jax.jit
def step(carry, _):
    params, state = carry
    value, grads = jax.value_and_grad(loss)(params)
    updates, state = tx.update(grads, state, params)
    return (optax.apply_updates(params, updates), state), value


(params, _), losses = jax.lax.scan(step, (params, tx.init(params)), length=200)
print(f"loss: {losses[0]:.3f} -> {losses[-1]:.5f}")

# %% [markdown]
# In the pattern of a neuron, the first source and the last one now arrive together; in
# the other pattern they are further apart than ever, and the neuron fires late. The
# source in between comes at the same time in both patterns, so it tells nothing, and
# was put off.

# %%
delays = Bounded(0.0, 10e-3).value(params["logit_delay"])
times = layer.apply({"params": params}, patterns).first()
print("delays, ms, a row for each source:\n", delays * 1e3)
print("first spikes after, ms:\n", times * 1e3)
assert (jnp.argmin(times, axis=-1) == labels).all()
