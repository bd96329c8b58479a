"""How the time of a training step grows with the size of the problem.

    python benchmarks/scaling.py

One size after the other is varied around a network of 100 inputs, 250 hidden and 10
output neurons, one spike each, in batches of 16; `speed.py` measures. An exponent is
the slope of a straight line through the logarithms of time and size: 1 says that twice
the size takes twice the time. The table goes into benchmarks/README.md, the figure into
benchmarks/scaling.png.
"""

import argparse
import json
import math
import pathlib
import sys

import report
import speed

FIGURE = pathlib.Path(__file__).resolve().parent / "scaling.png"
BASE = {"inputs": 100, "hidden": 250, "outputs": 10, "batch": 16}
# Options of speed.py for each point. More spikes need more input to be fired.
AXES = {
    "hidden neurons": {n: {"hidden": n} for n in (250, 500, 1000, 2000, 4000)},
    "input events": {
        100 * n: {"events_per_input": n, "batch": 4} for n in (1, 3, 10, 30, 100)
    },
    "batch": {n: {"batch": n} for n in (1, 4, 16, 64, 256)},
    "spikes per neuron": {
        n: {"spikes_per_neuron": n, "drive": 15.0 * n} for n in (1, 2, 4, 8, 16)
    },
}
QUICK = {"inputs": 4, "hidden": 8, "outputs": 2, "batch": 4, "steps": 2, "rounds": 1}
QUICK_AXES = {
    "hidden neurons": {n: {"hidden": n} for n in (8, 16)},
    "input events": {4 * n: {"events_per_input": n} for n in (1, 2)},
}


def main() -> None:
    """Parses the command line, measures, reports."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print, write nothing")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try it")
    options = parser.parse_args()
    base, axes = (QUICK, QUICK_AXES) if options.quick else (BASE, AXES)
    curves = {
        axis: measure_axis(points, {"rounds": options.rounds} | base)
        for axis, points in axes.items()
    }
    result = {
        "device": report.processor(),
        "curves": curves,
        "exponents": {axis: exponent(curve) for axis, curve in curves.items()},
    }
    if options.json:
        print(json.dumps(result))
        return
    text = table(result)
    print(text)
    if options.quick:
        return
    report.write("scaling.py", text)
    plot(result)


def measure_axis(points: dict[int, dict], base: dict) -> dict[int, float]:
    """Seconds per sample of a training step, for each size."""
    curve = {}
    for size, changes in points.items():
        options = speed.arguments().parse_args(["--train-only"])
        for name, value in (base | changes).items():
            setattr(options, name, value)
        result = speed.measure(options)
        fired, allowed = result["hidden_spikes_per_neuron"], options.spikes_per_neuron
        if fired < 0.9 * allowed:
            print(f"{fired} of {allowed} spikes per neuron at {size}", file=sys.stderr)
        curve[size] = 1 / result["train_samples_per_s"]
    return curve


def exponent(curve: dict[int, float]) -> float:
    """Slope of the least-squares line through log time over log size."""
    x, y = ([math.log(v) for v in values] for values in (curve, curve.values()))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - mean_x) ** 2 for a in x)


def table(result: dict) -> str:
    """The curves as Markdown."""
    lines = [
        "| size | values | training, µs per sample | exponent |",
        "|---|---|---|---|",
    ]
    for axis, curve in result["curves"].items():
        sizes = ", ".join(f"{size:,}" for size in curve)
        times = ", ".join(f"{1e6 * seconds:,.0f}" for seconds in curve.values())
        lines.append(
            f"| {axis} | {sizes} | {times} | {result['exponents'][axis]:.2f} |"
        )
    return "\n".join([*lines, "", result["device"]])


def plot(result: dict, path: pathlib.Path = FIGURE) -> None:
    """Draws each curve with its fitted line, both axes logarithmic."""
    try:
        import matplotlib
    except ImportError:
        sys.exit("No figure without matplotlib: pip install matplotlib")
    matplotlib.use("agg")
    from matplotlib import pyplot

    curves = result["curves"]
    figure, axes = pyplot.subplots(
        1, len(curves), figsize=(3 * len(curves), 3), layout="constrained"
    )
    for ax, (axis, curve) in zip(axes, curves.items(), strict=True):
        slope = result["exponents"][axis]
        sizes, times = list(curve), list(curve.values())
        centre = [math.exp(sum(map(math.log, v)) / len(v)) for v in (sizes, times)]
        line = [centre[1] * (size / centre[0]) ** slope for size in sizes]
        ax.loglog(sizes, [1e6 * t for t in times], "o", color="C0")
        ax.loglog(sizes, [1e6 * t for t in line], "-", color="0.6", zorder=0)
        ax.set(xlabel=axis, title=f"exponent {slope:.2f}")
        ax.set_xticks(sizes, [f"{size:,}" for size in sizes])
        ax.xaxis.minorticks_off()
        ax.yaxis.set_major_formatter("{x:,.0f}")
        ax.yaxis.set_minor_formatter("")
    axes[0].set_ylabel("training, µs per sample")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
