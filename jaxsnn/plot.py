"""Pictures of what a model did and learned, with matplotlib.

Each function draws into the `ax`, or `figure`, that it is given, or makes a figure of
its own, and returns the figure. No global state of matplotlib is touched: no window, no
`pyplot`, no style that stays. ``figure.savefig("name.png")`` stores a picture; in a
notebook, import `matplotlib.pyplot` once and figures show by themselves. What is drawn
by colour is told apart by those who do not see all of them as well: the colours are
those of Okabe and Ito, maps are viridis.

Example::

  >>> import jax, jax.numpy as jnp
  >>> import jaxsnn, jaxsnn.plot
  >>> from jaxsnn.coding import encode_latency
  >>> from jaxsnn.layers import LIF, Network
  >>> model = Network([LIF(40, name="hidden"), LIF(3, name="output")])
  >>> spikes = encode_latency(jnp.array([[0.1, 0.5, 0.9]]), t_late=10e-3, bias=0.0)
  >>> variables = model.init(jax.random.key(1), spikes)
  >>> activity = jaxsnn.summary(model, variables, spikes)
  >>> figure = jaxsnn.plot.raster(activity)
  >>> [ax.get_ylabel().partition(",")[0] for ax in figure.axes]
  ['output', 'hidden', 'inputs']
  >>> figure = jaxsnn.plot.voltages(activity["output"])
  >>> figure.axes[0].get_xlabel()
  'time, ms'
"""

import functools
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

try:
    import matplotlib as mpl
except ImportError as error:
    raise ImportError(
        "jaxsnn.plot draws with matplotlib, which is not installed: pip install"
        " matplotlib, or this package with its extra 'plot'."
    ) from error
from cycler import cycler
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from jaxsnn.activity import Activity, LayerActivity

#: Blue, orange, green, vermilion, sky blue, purple, black, of Okabe and Ito.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000")
SILENT = "#D9D9D9"
_GREY = "#666666"

_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=COLORS),
    "image.cmap": "viridis",
    "lines.linewidth": 1.3,
}


def _styled(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Draws in this module's style and leaves the user's as it is."""

    @functools.wraps(draw)
    def styled(*args: Any, **kwargs: Any) -> Any:
        with mpl.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return styled


@_styled
def png(figure: Figure, dpi: int = 150) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi, format="png", metadata={"Software": None})
    return buffer.getvalue()


@_styled
def raster(
    activity: Activity,
    sample: int = 0,
    *,
    classes: Sequence[str] | None = None,
    label: int | None = None,
    figure: Any = None,
) -> Figure:
    """Spikes of all layers in one sample, the last layer on top.

    In the last layer each neuron has the colour of its class, its first spike a ring,
    and a line through all layers marks the earliest of them: the decision. An
    integrator is drawn as `voltages`, with the line where the highest maximum is.

    Args:
      activity: what `jaxsnn.summary` returned.
      sample: number of the sample.
      classes: names of the neurons of the last layer.
      label: the right class, for the title.
      figure: a figure or subfigure to draw into.
    """
    layers = [x for x in activity.layers if x.neuron is not None]
    # In inches; there is room for a name at each of a few neurons.
    heights = [1.5 if x.neurons > 20 else 0.6 + 0.15 * x.neurons for x in layers[::-1]]
    heights = [*heights, 0.9]
    figure = _new(figure, (7.5, 0.8 + sum(heights)))
    axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    end, decision = _end(activity, sample), None
    for ax, layer in zip(axes, reversed(layers), strict=False):
        last = layer is layers[-1]
        if layer.times is None:
            _voltage_lines(layer, None, sample, ax, end, classes if last else None)
            if last:
                decision = _highest(layer, sample)
            ax.set_ylabel(f"{layer.name}, voltage")
            continue
        times = np.asarray(layer.times[sample])
        for n, own in enumerate(times):
            own = own[np.isfinite(own)]
            color = COLORS[n % len(COLORS)] if last else COLORS[0]
            mark = {"marker": "|", "ms": 9 if last else 4, "mew": 1.3 if last else 1}
            ax.plot(1e3 * own, np.full(len(own), n), ls="", color=color, **mark)
            if last and len(own):
                ring = {"marker": "o", "ms": 9, "mfc": "none", "mew": 1.3}
                ax.plot(1e3 * own[:1], [n], ls="", color=color, **ring)
        if last:
            first = times[:, 0] if times.size else np.array([np.inf])
            if np.isfinite(first).any():
                decision = float(first.min()), int(first.argmin())
            names = _names(classes, layer.neurons)
            if layer.neurons <= 20:
                ax.set_yticks(range(layer.neurons), names)
        _rows(ax, layer.name, layer.neurons, named=last and layer.neurons <= 20)
    ax = axes[-1]
    given = _finite(activity.inputs.time[sample])
    index = np.asarray(activity.inputs.index[sample])[: len(given)]
    ax.plot(1e3 * given, index, ls="", marker="|", ms=5, mew=1.2, color="black")
    _rows(ax, "inputs", activity.inputs.size)
    ax.set(xlabel="time, ms", xlim=(-0.02e3 * end, 1e3 * end))
    title = f"sample {sample}"
    if label is not None:
        title += f", of class {_name(classes, label)}"
    if decision is None:
        title += ": no decision"
    else:
        time, winner = decision
        title += f": {_name(classes, winner)} after {1e3 * time:.2f} ms"
        for ax in axes:
            ax.axvline(1e3 * time, color=_GREY, lw=1, ls="--", zorder=0)
    axes[0].set_title(title)
    figure.align_ylabels(axes)
    return figure


@_styled
def voltages(
    layer: LayerActivity,
    neurons: Sequence[int] | None = None,
    sample: int = 0,
    *,
    classes: Sequence[str] | None = None,
    until: float | None = None,
    ax: Any = None,
) -> Figure:
    """Membrane voltages over time, exact at every point that is drawn.

    They are computed between the events in closed form, resets and refractory periods
    as they are, with every event among the points: no simulation on a grid. Triangles
    are spikes; dots are what a device or a time grid sampled.

    Args:
      layer: of an `Activity`.
      neurons: which ones; by default all of a few, or one that fires early, one in
        the middle, one late, and one that is silent.
      sample: number of the sample.
      classes: names of the layer's neurons.
      until: end of the picture in seconds; by default after the last event.
      ax: an axis to draw into.
    """
    figure, ax = _axis(ax, (7.5, 2.8))
    end = _end_of(layer, sample) if until is None else until
    _voltage_lines(layer, neurons, sample, ax, end, classes)
    ax.set(xlabel="time, ms", ylabel="voltage, unit of the weights")
    ax.set_title(f"layer {layer.name}, sample {sample}")
    return figure


@_styled
def decision_map(
    labels: np.ndarray,
    *,
    classes: Sequence[str] | None = None,
    inside: np.ndarray | None = None,
    ax: Any = None,
) -> Figure:
    """What a model decides, over two features from 0 to 1.

    Args:
      labels: of points on a grid, ``[y, x]``; -1 for no decision.
      classes: their names.
      inside: of which points, ``[y, x]``; others are left white.
      ax: an axis to draw into.
    """
    figure, ax = _axis(ax, (4.6, 3.4))
    labels = np.asarray(labels)
    number = max(int(labels.max()) + 1, len(classes or ()), 1)
    palette = [COLORS[n % len(COLORS)] for n in range(number)]
    ax.imshow(
        _masked(labels, inside),
        cmap=ListedColormap([SILENT, *palette]),
        norm=BoundaryNorm(np.arange(-1.5, number), number + 1),
        **_PLANE,
    )
    patches = [Patch(color=c, label=_name(classes, n)) for n, c in enumerate(palette)]
    seen = labels if inside is None else labels[inside]
    if (seen < 0).any():
        patches.append(Patch(color=SILENT, label="no decision"))
    ax.legend(handles=patches, loc="center left", bbox_to_anchor=(1, 0.5))
    _plane(ax, "decision")
    return figure


@_styled
def first_spike_maps(
    times: np.ndarray,
    *,
    classes: Sequence[str] | None = None,
    inside: np.ndarray | None = None,
    figure: Any = None,
) -> Figure:
    """When each output first spikes, over two features from 0 to 1.

    Args:
      times: in seconds, of points on a grid, ``[y, x, outputs]``, ``inf`` for none.
      classes: names of the outputs.
      inside: of which points, ``[y, x]``; others are left white.
      figure: a figure or subfigure to draw into.
    """
    times = np.where(np.isfinite(times), 1e3 * np.asarray(times, float), np.nan)
    return _maps(times, classes, inside, figure, "first spike, ms", "silent")


@_styled
def maximum_maps(
    voltages: np.ndarray,
    *,
    classes: Sequence[str] | None = None,
    inside: np.ndarray | None = None,
    figure: Any = None,
) -> Figure:
    """The highest voltage of each output; as `first_spike_maps`."""
    label = "maximum, unit of the weights"
    return _maps(np.asarray(voltages, float), classes, inside, figure, label, "")


@_styled
def training_curves(rows: Sequence[Mapping[str, Any]], *, figure: Any = None) -> Figure:
    """Loss, error, silent neurons and learning rate over epochs.

    Args:
      rows: of `metrics.jsonl`, as `jaxsnn.training.writers.read_metrics` returns them.
      figure: a figure or subfigure to draw into.

    Raises:
      ValueError: no row of an epoch is among them.
    """
    epochs = [row for row in rows if "train/loss" in row]
    if not epochs:
        raise ValueError("rows hold no epoch: none of them has 'train/loss'.")
    x = [row.get("epoch", n + 1) for n, row in enumerate(epochs)]

    def curve(name: str) -> np.ndarray:
        return np.array(
            [np.nan if row.get(name) is None else row[name] for row in epochs]
        )

    last = epochs[-1]
    splits = [
        (s, COLORS[n], ls)
        for n, (s, ls) in enumerate((("train", "-"), ("validation", "--")))
    ]
    figure = _new(figure, (7.5, 4.6))
    (loss, error), (silent, rate) = figure.subplots(2, 2, sharex=True)
    alone = {"marker": "o"} if len(x) == 1 else {}  # No line goes through one point.
    for split, color, style in splits:
        if f"{split}/loss" not in last:
            continue
        form = {"color": color, "ls": style, "label": split, **alone}
        loss.plot(x, curve(f"{split}/loss"), **form)
        error.plot(x, 100 * (1 - curve(f"{split}/accuracy")), **form)
    for row in rows:
        if row.get("test/accuracy") is not None and row.get("test/loss") is not None:
            mark = {"marker": "D", "ms": 5, "ls": "", "color": COLORS[3], "zorder": 3}
            at = [row.get("epoch", x[-1])]
            loss.plot(at, [row["test/loss"]], label="test", **mark)
            error.plot(at, [100 * (1 - row["test/accuracy"])], label="test", **mark)
    names = [n for n in last if n.startswith("events/") and n.endswith("_silent")]
    for n, name in enumerate(names):
        layer = name.removeprefix("events/").removesuffix("_silent")
        form = {"label": layer, "ls": ("-", "--", ":")[n % 3], "color": COLORS[n % 7]}
        silent.plot(x, 100 * curve(name), **form, **alone)
    rate.plot(x, curve("learning_rate"), color=COLORS[0], **alone)
    for ax in (loss, error):
        drawn = np.concatenate([np.ravel(line.get_ydata()) for line in ax.lines])
        if np.nanmin(drawn, initial=np.inf) > 0:
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.minorticks_off()
    loss.set(ylabel="loss")
    error.set(ylabel="error, %")
    silent.set(ylabel="neurons that never fired, %", xlabel="epoch")
    silent.set_ylim(-0.5, max(10, 1.1 * silent.dataLim.y1))
    rate.set(ylabel="learning rate", ylim=(0, None), xlabel="epoch")
    rate.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    if alone:
        rate.set_xlim(x[0] - 1, x[0] + 1)
    for ax in (loss, error, silent):
        if ax.lines:
            ax.legend()
    return figure


@_styled
def weights(activity: Activity, *, figure: Any = None) -> Figure:
    """Histograms of the weights of every layer: in software, and on the device.

    Where a device quantised or cut the weights, the histogram of those that it had is
    beside that of the parameters.

    Args:
      activity: what `jaxsnn.summary` returned.
      figure: a figure or subfigure to draw into.
    """
    found = {
        f"{layer.name}{' (recurrent)' if n and layer.kind != 'Graph' else ''}": c
        for layer in activity.layers
        for n, c in enumerate(layer.connections)
    }
    pairs = {
        name: (np.ravel(c.own), None if _same(c) else np.ravel(c.kernel))
        for name, c in found.items()
    }
    return _histograms(pairs, "weight", "synapses", figure)


@_styled
def spike_times(
    software: Activity, device: Activity | None = None, *, figure: Any = None
) -> Figure:
    """Histograms of the spike times of every layer, in software and on a device.

    Args:
      software: what `jaxsnn.summary` returned.
      device: the same of the model on its device.
      figure: a figure or subfigure to draw into.
    """
    pairs = {}
    for layer in software.layers:
        if layer.times is None:
            continue
        there = None if device is None else _finite(1e3 * device[layer.name].times)
        pairs[layer.name] = _finite(1e3 * layer.times), there
    return _histograms(pairs, "spike time, ms", "spikes", figure)


@_styled
def mismatch(activity: Activity, *, figure: Any = None) -> Figure:
    """How first spikes on a device differ from the model's, layer by layer.

    On top the distribution over samples and neurons; below, mean and deviation of each
    neuron: an error that stays is one of the chip, one that does not is noise.

    Args:
      activity: what `jaxsnn.summary` returned of a model with a backend.
      figure: a figure or subfigure to draw into.

    Raises:
      ValueError: no layer of it ran on a device.
    """
    layers = [x for x in activity.layers if x.mismatch is not None]
    if not layers:
        raise ValueError("no layer ran on a device, so there is no mismatch to draw.")
    figure = _new(figure, (3.75 * max(2, len(layers)), 4.6))
    axes = figure.subplots(2, len(layers), squeeze=False)
    for (top, bottom), layer in zip(axes.T, layers, strict=True):
        late = 1e3 * np.asarray(layer.mismatch.time, float)
        known = _finite(late)
        top.hist(known, bins=_bins(known), color=COLORS[0])
        top.axvline(0, color="black", lw=1)
        title = f"{layer.name}: no spike to compare"
        if known.size:
            title = f"{layer.name}: {known.mean():+.3f} ± {known.std():.3f} ms"
        top.set(title=title, ylabel="first spikes", xlabel="observed - expected, ms")
        there = np.isfinite(late).any(axis=0)
        n = np.flatnonzero(there)
        form = {"fmt": "o", "ms": 3, "lw": 0.8, "color": COLORS[0]}
        some = late[:, there]
        if n.size:
            error = np.nanstd(some, axis=0)
            bottom.errorbar(n, np.nanmean(some, axis=0), error, **form)
        bottom.axhline(0, color="black", lw=1)
        bottom.set(xlabel="neuron", ylabel="observed - expected, ms")
        bottom.set_xlim(-1, layer.neurons)
        if layer.neurons <= 12:
            bottom.set_xticks(range(layer.neurons))
    return figure


@_styled
def confusion(
    matrix: np.ndarray, *, classes: Sequence[str] | None = None, ax: Any = None
) -> Figure:
    """A confusion matrix.

    Args:
      matrix: numbers of samples, ``[classes, decisions]``; a further column is of those
        without a decision.
      classes: names of the classes.
      ax: an axis to draw into.
    """
    matrix = np.asarray(matrix)
    rows, columns = matrix.shape
    size = max(3.4, 0.42 * columns + 1.6)
    figure, ax = _axis(ax, (size, size * 0.85))
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    ax.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i in range(rows):
        for j in range(columns):
            color = "white" if share[i, j] > 0.5 else "black"
            small = {"fontsize": 9 if columns <= 5 else 7}
            text = str(matrix[i, j])
            ax.text(j, i, text, ha="center", va="center", color=color, **small)
    names = _names(classes, rows)
    decisions = [*names, *["none"] * (columns - rows)]
    turned = {"rotation": 45, "ha": "right"} if max(map(len, decisions)) > 4 else {}
    ax.set_xticks(range(columns), decisions, **turned)
    ax.set_yticks(range(rows), names)
    ax.set(xlabel="decision", ylabel="class", title="samples")
    for side in ax.spines.values():
        side.set_visible(False)
    ax.tick_params(length=0)
    return figure


@_styled
def latency(
    times: np.ndarray, correct: np.ndarray | None = None, *, ax: Any = None
) -> Figure:
    """Distribution of the times of decisions: of the first output spikes.

    Args:
      times: in seconds, ``[samples]``; ``inf`` for none.
      correct: whether each decision was right, ``[samples]``.
      ax: an axis to draw into.
    """
    figure, ax = _axis(ax, (4.6, 3.0))
    times = 1e3 * np.asarray(times, float)
    known = np.isfinite(times)
    bins = _bins(times[known])
    if correct is None:
        ax.hist(times[known], bins=bins, color=COLORS[0])
    else:
        right = np.asarray(correct, bool)
        parts = [times[known & right], times[known & ~right]]
        names = [f"right, {len(parts[0])}", f"wrong, {len(parts[1])}"]
        colors = [COLORS[0], COLORS[1]]
        ax.hist(parts, bins=bins, color=colors, label=names, stacked=True)
        ax.legend()
    ax.set(xlabel="first output spike, ms", ylabel="samples")
    silent = int((~known).sum())
    ax.set_title(
        "no output spike in any sample"
        if not known.any()
        else f"median {np.median(times[known]):.2f} ms, {silent} without a decision"
    )
    return figure


@_styled
def spike_counts(activity: Activity, *, figure: Any = None) -> Figure:
    """Distribution of the spikes of a sample, of every layer.

    Args:
      activity: what `jaxsnn.summary` returned.
      figure: a figure or subfigure to draw into.
    """
    pairs = {}
    for layer in activity.layers:
        if layer.count is not None and layer.neuron is not None:
            total = layer.count.sum(axis=-1)
            title = f"{layer.name}, {layer.neurons} neurons: {total.mean():.1f}"
            pairs[title] = total, None
    return _histograms(pairs, "spikes of a sample", "samples", figure)


_PLANE: dict[str, Any] = {
    "origin": "lower",
    "extent": (0, 1, 0, 1),
    "interpolation": "nearest",
}


def _plane(ax: Any, title: str) -> None:
    ax.set(xlabel="x", ylabel="y", title=title, xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))


def _maps(values, classes, inside, figure, label: str, missing: str) -> Figure:
    number = values.shape[-1]
    columns = min(number, 3)
    rows = -(-number // columns)
    figure = _new(figure, (2.35 * columns + 0.9, 2.4 * rows + 0.2))
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    shown = values if inside is None else values[inside]
    known = shown[np.isfinite(shown)]
    low, high = (known.min(), known.max()) if known.size else (0, 1)
    cmap = mpl.colormaps["viridis"].with_extremes(bad=(1, 1, 1, 0))
    image = None
    for n, ax in enumerate(axes.flat):
        if n >= number:
            ax.set_axis_off()
            continue
        own = values[..., n]
        hole = np.isnan(own) if inside is None else np.isnan(own) & inside
        ax.imshow(
            np.ma.masked_array(np.ones(own.shape), ~hole),
            cmap=ListedColormap([SILENT]),
            **_PLANE,
        )
        image = ax.imshow(
            _masked(own, inside), vmin=low, vmax=high, cmap=cmap, **_PLANE
        )
        part = hole.mean() if inside is None else hole.sum() / max(inside.sum(), 1)
        title = _name(classes, n)
        _plane(ax, title + (f" ({part:.0%} {missing}, grey)" if part else ""))
        ax.label_outer()
    figure.colorbar(image, ax=axes, label=label, shrink=0.85)
    return figure


def _histograms(pairs, what: str, count: str, figure) -> Figure:
    number = max(len(pairs), 1)
    columns = min(number, 3)
    rows = -(-number // columns)
    figure = _new(figure, (max(4.6, 2.6 * columns + 0.4), 2.5 * rows))
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat[len(pairs) :]:
        ax.set_axis_off()
    for ax, (name, (own, there)) in zip(axes.flat, pairs.items(), strict=False):
        both = own if there is None else np.concatenate([own, there])
        bins = _bins(both)
        if there is None:
            ax.hist(own, bins=bins, color=COLORS[0])
        else:
            ax.hist(there, bins=bins, color=COLORS[1], label="device")
            line = {"histtype": "step", "color": COLORS[0], "lw": 1.5}
            ax.hist(own, bins=bins, label="software", **line)
            ax.legend()
        ax.set(title=name, xlabel=what, ylabel=count)
        if own.dtype.kind in "iu":
            ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(5, integer=True))
    return figure


def _voltage_lines(layer, neurons, sample, ax, end: float, classes) -> None:
    """Draws voltages of one sample, with spikes, threshold and samples."""
    if layer.samples is None:
        layer.voltage(0.0, sample, [0])  # Where there is none, it says why.
    if neurons is None:
        neurons = _typical(layer, sample)
    neurons = list(neurons)
    exact = layer.dt is None
    if exact:
        dtype = layer.connections[0].kernel.dtype
        own = _finite(layer.times[sample]) if layer.times is not None else np.zeros(0)
        heard = [_finite(c.spikes.time[sample]) for c in layer.connections]
        at = np.concatenate([np.linspace(0, end, 500), own, *heard]).astype(dtype)
        at = np.unique(at[(at >= 0) & (at <= end)])
        # One of few lengths, so that what computes them is seldom compiled again.
        filled = np.pad(at, (0, -len(at) % 512), mode="edge")
        before, after = (
            np.asarray(layer.voltage(filled, sample, neurons, side))[:, : len(at)]
            for side in ("left", "right")
        )
    shown: list[np.ndarray] = []
    for row, n in enumerate(neurons):
        color = COLORS[n % 7] if layer.neurons <= 10 else COLORS[row % 7]
        name = _name(classes, n) if classes else f"neuron {n}"
        if exact:
            mine = np.zeros(0, at.dtype)
            if layer.times is not None:
                mine = _finite(layer.times[sample, n]).astype(at.dtype)
                mine = mine[mine <= end]
            place = np.searchsorted(at, mine)
            x = np.insert(at, place + 1, mine)
            y = np.insert(before[row], place + 1, after[row][place])
            # A neuron that may not fire again has no threshold from there on.
            done = len(mine) == layer.max_spikes
            stop = np.flatnonzero(x == mine[-1])[-1] if done else len(x)
            ax.plot(1e3 * x[: stop + 1], y[: stop + 1], color=color, label=name)
            shown.append(y[: stop + 1])
            if done:
                style = {"color": color, "ls": ":", "lw": 1}
                ax.plot(1e3 * x[stop:], y[stop:], **style)
            mark = {"marker": "^", "ms": 5, "ls": "", "color": color}
            ax.plot(1e3 * mine, before[row][place], **mark)
        if layer.samples is not None:
            time, voltage = layer.samples
            dots = {"marker": ".", "ms": 3, "ls": "", "color": color}
            dots |= {} if exact else {"label": name}
            ax.plot(1e3 * np.asarray(time), voltage[sample, n], alpha=0.7, **dots)
    if layer.times is not None:
        v_th = np.broadcast_to(layer.neuron.v_th, layer.neurons)[neurons]
        # What comes after the last spike may be far above, and does not matter.
        both = np.concatenate([*shown, v_th])
        margin = 0.15 * (both.max() - both.min())
        ax.set_ylim(both.min() - margin, both.max() + margin)
        for level in np.unique(v_th):
            ax.axhline(level, color=_GREY, lw=1, ls=":", zorder=0)
        if len(np.unique(v_th)) == 1:
            where = {"xycoords": ("axes fraction", "data"), "xytext": (3, 1)}
            form = {"color": _GREY, "fontsize": 8, "textcoords": "offset points"}
            ax.annotate("threshold", (0, v_th[0]), **where, **form)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def _typical(layer: LayerActivity, sample: int) -> list[int]:
    """Neurons worth looking at: all of a few, or an early, a late, a silent one."""
    if layer.neurons <= 4 or (layer.first is None and layer.neurons <= 10):
        return list(range(layer.neurons))
    if layer.first is None:
        return list(range(4))
    first = layer.first[sample]
    order = np.argsort(first, kind="stable")[: np.isfinite(first).sum()]
    places = {0, len(order) // 2, len(order) - 1} if len(order) else set()
    silent = np.flatnonzero(~np.isfinite(first))[: 4 - len(places)]
    return sorted({*(int(order[k]) for k in places), *silent.tolist()})


def _highest(layer: LayerActivity, sample: int) -> tuple[float, int] | None:
    """Time of the highest voltage of integrators, and which neuron had it."""
    if layer.trace is not None:
        value, time = layer.trace.maximum()
        winner = int(np.argmax(value[sample]))
        return float(time[sample, winner]), winner
    time, voltage = layer.samples
    place = np.unravel_index(np.argmax(voltage[sample]), voltage.shape[1:])
    return float(time[place[1]]), int(place[0])


def _end(activity: Activity, sample: int) -> float:
    """End of a picture: a little after the last event of a sample."""
    ends = [_end_of(layer, sample) for layer in activity.layers]
    given = _finite(activity.inputs.time[sample])
    return float(max([*ends, 1.05 * given.max(initial=1e-3)]))


def _end_of(layer: LayerActivity, sample: int) -> float:
    times: list[Any] = [
        c.spikes.time[sample] for c in layer.connections if c.spikes is not None
    ]
    if layer.times is not None:
        times.append(np.ravel(layer.times[sample]))
    latest = max((_finite(x).max(initial=0) for x in times), default=0)
    if layer.times is None and layer.trace is not None:
        slow = np.max(layer.neuron.tau_mem) + np.max(layer.neuron.tau_syn)
        latest = min(latest + slow, float(layer.trace.until))
    if layer.samples is not None:
        latest = max(latest, float(layer.samples.time[-1]))
    return float(1.05 * latest) or 1e-3


def _rows(ax: Any, name: str, number: int, named: bool = False) -> None:
    """An axis of neurons, one a row."""
    unit = "" if named else ", neuron"
    ax.set(ylabel=f"{name}{unit}", ylim=(-0.6 - 0.02 * number, number * 1.02 - 0.4))
    if not named:
        ax.yaxis.set_major_locator(mpl.ticker.MaxNLocator(4, integer=True))


def _bins(values: np.ndarray) -> np.ndarray:
    """Edges of a histogram; also of nothing, and of one value."""
    if not values.size:
        return np.linspace(0, 1, 11)
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind in "iu" and high - low < 40:
        return np.arange(low - 1.5, high + 2.5)
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        margin = 0.05 * abs(low) or 1.0
        low, high = low - margin, high + margin
    return np.linspace(low, high, 41)


def _same(connection: Any) -> bool:
    return np.array_equal(connection.own, connection.kernel)


def _finite(values: Any) -> np.ndarray:
    values = np.ravel(values)
    return values[np.isfinite(values)]


def _masked(values: np.ndarray, inside: np.ndarray | None) -> np.ma.MaskedArray:
    hidden = ~np.isfinite(values)
    return np.ma.masked_array(values, hidden if inside is None else hidden | ~inside)


def _name(classes: Sequence[str] | None, n: int) -> str:
    return classes[n] if classes and 0 <= n < len(classes) else f"class {n}"


def _names(classes: Sequence[str] | None, number: int) -> list[str]:
    return [
        classes[n] if classes and n < len(classes) else str(n) for n in range(number)
    ]


def _new(figure: Any, size: tuple[float, float]) -> Any:
    return Figure(figsize=size, layout="constrained") if figure is None else figure


def _axis(ax: Any, size: tuple[float, float]) -> tuple[Any, Any]:
    if ax is None:
        ax = _new(None, size).subplots()
    return ax.figure, ax
