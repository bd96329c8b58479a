"""Draws the figures of the documentation: `python docs/figures.py`."""

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt

from jaxsnn import Spikes
from jaxsnn.layers import LIF

IMAGES = Path(__file__).parent / "images"
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"  # Okabe and Ito.
TAUS = {"tau_mem": 10e-3, "tau_syn": 5e-3}


def trace() -> plt.Figure:
    """The voltage of a neuron, from state to state of a layer that is continued."""
    times = np.array([2e-3, 6e-3, 9e-3, 14e-3, 22e-3, 24e-3, 26e-3])
    weights = np.array([1.6, 1.5, 1.8, -1.2, 1.7, 1.8, 1.2])
    layer = LIF(1, max_spikes=5, **TAUS)
    inputs = Spikes.from_times(jnp.array(times)[None, :, None])
    params = {"params": {"kernel": jnp.array(weights)[:, None]}}

    @jax.vmap
    def voltage(until):
        _, state = layer.apply(params, inputs, until=until, mutable=["events"])
        return state["events"]["v"][0, 0]

    at = np.linspace(1e-5, 40e-3, 1600)
    v = np.array(voltage(jnp.array(at)))
    spikes = np.asarray(layer.apply(params, inputs).times(5)).ravel()
    spikes = spikes[np.isfinite(spikes)]
    v[np.searchsorted(at, spikes)] = np.nan  # Not a line from threshold to reset.
    figure, axis = plt.subplots(figsize=(7, 2.8), layout="constrained")
    axis.plot(at * 1e3, v, color=BLUE)
    axis.axhline(1.0, color=GREY, linewidth=1, linestyle=":")
    axis.text(40, 1.02, "threshold", ha="right", va="bottom", color=GREY)
    axis.vlines(spikes * 1e3, 0, 1.0, color=ORANGE, linestyle="--", linewidth=1.2)
    for time, weight in zip(times, weights, strict=True):
        begin, end = (-0.75, -0.5) if weight > 0 else (-0.5, -0.75)
        axis.annotate(
            "",
            (time * 1e3, end),
            (time * 1e3, begin),
            arrowprops={"arrowstyle": "->", "color": GREY},
        )
    axis.set(xlabel="time / ms", ylabel="voltage / threshold", ylim=(-0.85, 1.25))
    return figure


def tangent() -> plt.Figure:
    """The first spike over one weight, with its gradients."""
    inputs = Spikes.from_times(jnp.array([[[0.0], [4e-3]]]))

    def first(weight):
        kernel = jnp.stack([jnp.asarray(2.5), weight])[:, None]
        out = LIF(1, **TAUS).apply({"params": {"kernel": kernel}}, inputs)
        return out.first()[0, 0]

    weights = np.linspace(1.0, 5.0, 800)
    times = np.asarray(jax.vmap(first)(jnp.array(weights)))
    figure, axis = plt.subplots(figsize=(7, 2.8), layout="constrained")
    axis.plot(weights, np.where(np.isfinite(times), times, np.nan) * 1e3, color=BLUE)
    silent = weights[~np.isfinite(times)].max()
    axis.axvspan(weights[0], silent, color=GREY, alpha=0.15, linewidth=0)
    axis.text((weights[0] + silent) / 2, 7, "silent", ha="center", color=GREY)
    for weight in (silent + 0.15, silent + 0.8, silent + 2.0):
        time, slope = jax.value_and_grad(first)(jnp.float32(weight))
        near = np.array([-0.35, 0.35])
        axis.plot(weight + near, (time + slope * near) * 1e3, color=ORANGE)
        axis.plot(weight, time * 1e3, "o", color=ORANGE)
    axis.set(xlabel="weight", ylabel="first spike / ms", xlim=(weights[0], weights[-1]))
    return figure


def main() -> None:
    """Draws all of them."""
    IMAGES.mkdir(exist_ok=True)
    mpl.rcParams["svg.hashsalt"] = "jaxsnn"  # The same bytes each time.
    for draw in (trace, tangent):
        draw().savefig(IMAGES / f"{draw.__name__}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
