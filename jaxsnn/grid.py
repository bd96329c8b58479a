r"""The same neurons on a time grid, and the way there and back.

Row :math:`s` of a raster stands for the interval :math:`[s\,dt, (s + 1)\,dt)`: it holds
how often each source spikes there. Three things are on the grid, and nothing else is
approximate:

- an input spike acts at the start of its step,
- the threshold is tested at the end of a step, so that a voltage which rises above it
  and falls back within one step goes unnoticed,
- a neuron that spikes is reset at the end of the step, not at its crossing.

In between, voltage and current advance exactly, by `jaxsnn.dynamics.Flow`, for any
step and any ratio of the time constants. A spike found at the end of step :math:`s` is
in row :math:`s`: that is the row of the interval in which the threshold was crossed,
and a feed-forward layer adds no delay. Spike times read back are the starts of their
rows. So the inputs are moved ahead by less than :math:`dt`, and so are the spikes of
each layer; the error vanishes in proportion to :math:`dt`, but for spikes that hardly
cross the threshold, which may be missing.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxsnn.dynamics import Flow, Neuron
from jaxsnn.spikes import NO_TIME, Spikes, _traced


class LIState(NamedTuple):
    """What a leaky integrator carries from step to step.

    Attributes:
      v: voltages, ``[*batch, neurons]``.
      i: synaptic currents, ``[*batch, neurons]``.
    """

    v: Array
    i: Array

    @classmethod
    def at_rest(cls, neuron: Neuron, shape: tuple[int, ...], dtype: Any) -> "LIState":
        """The state before the first step."""
        v = jnp.broadcast_to(jnp.asarray(neuron.v_leak, dtype), shape)
        return cls(v, jnp.zeros(shape, dtype))


class LIFState(NamedTuple):
    """What a spiking neuron carries from step to step.

    Attributes:
      v: voltages, ``[*batch, neurons]``.
      i: synaptic currents, ``[*batch, neurons]``.
      spikes: the spikes of the step before, 0 or 1, ``[*batch, neurons]``.
      wait: steps left of the refractory period, int32, ``[*batch, neurons]``.
      count: spikes so far, int32, ``[*batch, neurons]``.
    """

    v: Array
    i: Array
    spikes: Array
    wait: Array
    count: Array  # type: ignore[assignment]  # Hides tuple.count, which nobody needs.

    @classmethod
    def at_rest(cls, neuron: Neuron, shape: tuple[int, ...], dtype: Any) -> "LIFState":
        """The state before the first step; just reset if rest is above threshold."""
        v = jnp.broadcast_to(jnp.asarray(neuron.v_start, dtype), shape)
        none, zero = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, dtype)
        return cls(v, zero, zero, none, none)


def li_step(
    neuron: Neuron, over: Flow, state: LIState, jump: Array
) -> tuple[LIState, Array]:
    """Takes a leaky integrator through one step, exactly.

    Args:
      neuron: parameters; threshold and reset are not used.
      over: ``Flow.over(neuron, dt)``.
      state: at the start of the step.
      jump: what the step's input spikes add to the current at its start.

    Returns:
      The state at the end of the step, and its voltage.
    """
    state = LIState(*over.advance(neuron, state.v, state.i + jump))
    return state, state.v


def lif_step(
    neuron: Neuron,
    over: Flow,
    state: LIFState,
    jump: Array,
    *,
    surrogate: Callable[[Array], Array],
    wait: Any = 0,
    max_spikes: int | None = None,
) -> tuple[LIFState, Array]:
    """Takes a spiking neuron through one step.

    No gradient flows through the reset itself, neither by the spike nor by the voltage
    that it wipes out: Zenke & Vogels (2021) find that this trains better.

    Args:
      neuron: parameters.
      over: ``Flow.over(neuron, dt)``.
      state: at the start of the step.
      jump: what the step's input spikes add to the current at its start.
      surrogate: voltage above threshold to spike, from `jaxsnn.surrogate`.
      wait: refractory steps after a spike, during which the voltage stays at
        ``v_reset`` while the current goes on.
      max_spikes: spikes after which a neuron stays silent; None for no limit.

    Returns:
      The state at the end of the step, and the spikes found there, 0 or 1.
    """
    v, i = over.advance(neuron, state.v, state.i + jump)
    v = jnp.where(state.wait > 0, neuron.v_reset, v)
    may_spike = state.wait == 0
    if max_spikes is not None:
        may_spike &= state.count < max_spikes
    spikes = jnp.where(may_spike, surrogate(v - neuron.v_th), 0)
    spiked = spikes > 0
    state = LIFState(
        v=jnp.where(spiked, neuron.v_reset, v),
        i=i,
        spikes=spikes,
        wait=jnp.where(spiked, wait, jnp.maximum(state.wait - 1, 0)),
        count=state.count + spiked,
    )
    return state, spikes


def rasterize(spikes: Spikes, dt: float, steps: int) -> tuple[Array, Array]:
    """Counts spikes on a time grid; those that it does not cover are counted apart.

    Row ``s`` holds the spikes with ``s * dt <= time < (s + 1) * dt``. No gradient flows
    to the spike times: on a grid they have none.

    Example::

      >>> import jax.numpy as jnp
      >>> from jaxsnn import Spikes
      >>> spikes = Spikes.from_times(jnp.array([[0.5e-3, 1.0e-3], [1.7e-3, 9e-3]]))
      >>> raster, outside = rasterize(spikes, dt=1e-3, steps=3)
      >>> print(raster)
      [[1. 0.]
       [1. 1.]
       [0. 0.]]
      >>> print(outside)
      1

    Args:
      spikes: of `size` sources, ``[*batch, slots]``.
      dt: length of a step in seconds.
      steps: number of steps.

    Returns:
      The counts in the dtype of the times, ``[*batch, steps, size]``, and the number of
      spikes before time 0 or after the grid's end, int32, ``[*batch]``.

    Raises:
      TypeError: `spikes` are no `Spikes`.
      ValueError: `dt` is no positive time, or `steps` below 1.
    """
    if not isinstance(spikes, Spikes):
        raise TypeError(f"rasterize takes jaxsnn.Spikes, not {type(spikes).__name__}.")
    check_dt(dt)
    if not isinstance(steps, int | np.integer) or steps < 1:
        raise ValueError(f"steps is {steps!r}, expected a whole number, 1 or more.")
    batch, slots = spikes.time.shape[:-1], spikes.time.shape[-1]
    time = lax.stop_gradient(spikes.time.reshape(-1, slots))
    index = spikes.index.reshape(-1, slots)
    row = jnp.floor(time / dt)
    # The quotient is rounded; the products are what `spikes_from_raster` returns.
    row = jnp.where((row + 1) * dt <= time, row + 1, row)
    row = jnp.where(row * dt > time, row - 1, row)
    inside = (row >= 0) & (row < steps)
    row = jnp.where(inside, row, steps).astype(jnp.int32)  # That row is dropped.
    raster = jnp.zeros((time.shape[0], steps, spikes.size), time.dtype)
    sample = jnp.arange(time.shape[0])[:, None]
    raster = raster.at[sample, row, index].add(1, mode="drop")
    outside = jnp.sum(~inside & (time < NO_TIME), axis=-1, dtype=jnp.int32)
    return raster.reshape(*batch, steps, spikes.size), outside.reshape(batch)


def spikes_from_raster(
    raster: Array, dt: float, max_spikes: int | None = None
) -> tuple[Spikes, Array]:
    r"""Reads a raster as spikes at the starts of their steps; inverts `rasterize`.

    With :math:`C_s` the number of spikes of a source up to and including step
    :math:`s`, its :math:`k`-th spike is at

    .. math:: t_k = dt\, \sum_s [C_s < k] .

    The times are differentiable in the raster, so that losses on spike times can train
    a grid: the derivative by an entry is the change of :math:`t_k` if that entry got
    one spike more. It is exact as a difference, but it is not a derivative of anything,
    and becomes a surrogate gradient as it goes on through `jaxsnn.surrogate`.

    Example::

      >>> import jax.numpy as jnp
      >>> raster = jnp.array([[0, 1], [0, 0], [2, 1]])
      >>> spikes, dropped = spikes_from_raster(raster, dt=1e-3)
      >>> print(spikes.index, int(dropped))
      [1 0 0 1] 0

    Args:
      raster: spike counts, ``[*batch, steps, size]``.
      dt: length of a step in seconds.
      max_spikes: spikes per source to find, the earliest. By default all of them,
        which has to be known under `jax.jit`: a raster of 0 and 1 has at most `steps`.

    Returns:
      The spikes, with `max_spikes` slots per source, and the number of those left out,
      int32, ``[*batch]``.

    Raises:
      ValueError: a raster that does not hold counts, or `max_spikes` below 1 or left
        out under `jax.jit`.
    """
    check_dt(dt)
    raster = jnp.asarray(raster)
    if raster.ndim < 2 or 0 in raster.shape[-2:]:
        raise ValueError(
            f"raster has shape {raster.shape}, expected [*batch, steps, size]."
        )
    if not _traced(raster):
        counts = np.asarray(raster)
        if not ((counts >= 0) & (counts == np.floor(counts))).all():
            raise ValueError(
                "raster has entries that are no spike counts; expected 0, 1, 2, ..."
            )
        if max_spikes is None:
            max_spikes = max(1, int(counts.sum(axis=-2).max(initial=0)))
    elif max_spikes is None:
        raise ValueError(
            "how many spikes a raster holds is not known under jax.jit; pass"
            " max_spikes, such as the number of steps if entries are 0 or 1."
        )
    if not isinstance(max_spikes, int | np.integer) or max_spikes < 1:
        raise ValueError(
            f"max_spikes is {max_spikes!r}, expected a whole number, 1 or more."
        )
    is_float = jnp.issubdtype(raster.dtype, jnp.floating)
    dtype = raster.dtype if is_float else jnp.result_type(float)
    so_far = jnp.cumsum(raster.astype(dtype), axis=-2)
    # Below zero before spike k - 1, zero until spike k: there one spike more counts.
    ahead = so_far[..., None] - jnp.arange(max_spikes, dtype=dtype)
    before = jnp.where(ahead == 0, 1 - ahead, ahead < 0)
    times = dt * jnp.sum(before, axis=-3)
    total = so_far[..., -1, :]
    found = total[..., None] > jnp.arange(max_spikes, dtype=dtype)
    dropped = jnp.sum(jnp.maximum(total - max_spikes, 0), axis=-1).astype(jnp.int32)
    return Spikes.from_times(jnp.where(found, times, NO_TIME)), dropped


def check_dt(dt: Any) -> None:
    """Raises if `dt` is no positive time."""
    if not isinstance(dt, int | float | np.number) or not 0 < dt < math.inf:
        raise ValueError(
            f"dt is {dt!r}, expected a positive time in seconds, such as 0.5e-3."
        )
