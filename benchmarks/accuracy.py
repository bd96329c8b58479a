"""The accuracy table: every row is a config, trained from ten seeds.

    python benchmarks/accuracy.py [--rows eventprop eventprop_mot] [--seeds 10]

A run is what `python train.py --config=configs/NAME.py --config.seed=N` does, in a
process and on a core of its own, so that it comes out the same whatever else runs. (All
seeds of a row at once, by `jax.vmap` over `train_epoch`, are the same to rounding; on a
CPU, an epoch of a seed then takes four times as long.)

Stop it whenever you like: the same command goes on with the runs that are not done, and
with those half done from their checkpoints. A run whose config has changed since is
trained anew.

Protocol: the official splits; hyperparameters were chosen on the validation split; the
test split is evaluated once in a run, after the last epoch, and no epoch is chosen.
The report goes into benchmarks/accuracy.md and accuracy.png.
"""

import argparse
import concurrent.futures
import importlib
import json
import os
import pathlib
import queue
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # configs/ is not part of the package.

import report  # noqa: E402

REPORT = ROOT / "benchmarks" / "accuracy.md"
LEVELS = (0.95, 0.98)  # Of the validation accuracy, for the speed to reach it.
# Fields that change no number, and the sections that describe one device each.
INDIFFERENT = (
    "checkpoint_every_epochs",
    "data_dir",
    "eval_split",
    "keep_checkpoints",
    "log_every_epochs",
    "plot_every_epochs",
)
DEVICES = {"chip": "simulated_chip", "nest": "nest", "bss2": "bss2"}


class Row(NamedTuple):
    """A row of the table.

    Attributes:
      title: what it is.
      config: name of a file in `configs/`.
      published: the figure to compare with, in percent, as published.
      source: where, a key of `SOURCES`.
      aim: test accuracy in percent that the row is to reach; None if only shown.
      changes: fields of the config that the row changes, by dotted name.
      of_run: from the number of a run to the fields that it changes.
    """

    title: str
    config: str
    published: str = ""
    source: str = ""
    aim: float | None = None
    changes: Mapping[str, Any] = {}
    of_run: Callable[[int], Mapping[str, Any]] = lambda run: {"seed": run}


SOURCES = {
    "F&D": "Göltz et al., [Fast & Deep](https://doi.org/10.1038/s42256-021-00388-x)"
    " (2021)",
    "EP": "Wunderlich & Pehle, [EventProp](https://doi.org/10.1038/s41598-021-91786-z)"
    " (2021); last epoch, 10 seeds",
    "EP-HW": "Pehle et al., [Event-based Backpropagation for Analog Neuromorphic"
    " Hardware](https://arxiv.org/abs/2302.07141) (2023)",
    "NICE": "Müller, jaxsnn, talk at NICE 2024; its library is described in"
    " [2401.16841](https://arxiv.org/abs/2401.16841). The examples that come with it"
    " draw training and test points from one seed",
    "DelGrad": "Göltz et al., [DelGrad](https://arxiv.org/abs/2404.19165) (2024); of"
    " the single networks that come with its code, which have no bias input",
}

ROWS = {
    "fast_and_deep": Row(
        "Fast & Deep (analytic)",
        "yinyang_analytic",
        "95.9 ± 0.7 (F&D), 98.1 ± 0.3 (NICE)",
        "F&D, NICE",
        98.8,
    ),
    "eventprop_200": Row(
        "EventProp, 200 neurons", "yinyang_200", "98.1 ± 0.2", "EP", 98.8
    ),
    "eventprop": Row("EventProp", "yinyang", "98.2 ± 0.2", "NICE", 98.8),
    "eventprop_mot": Row("EventProp", "yinyang_mot", "97.9 ± 0.6", "EP-HW", 98.3),
    "grid_mot": Row("Surrogate gradients", "yinyang_grid", "96.4 ± 0.2", "NICE", 97.0),
    "eventprop_30": Row("EventProp, 30 neurons", "yinyang_30", "96.7", "DelGrad", 97.8),
    "delays_30": Row(
        "the same, learned synaptic delays",
        "yinyang_30_delays",
        "98.2",
        "DelGrad",
        98.8,
    ),
    "delays_5": Row(
        "5 neurons, learned synaptic delays",
        "yinyang_5_delays",
        "95.4",
        "DelGrad",
        96.0,
    ),
    "recurrent": Row("Recurrent, 100 neurons", "yinyang_recurrent", "", "", 98.5),
    "chip_ideal": Row(
        "EventProp on the simulated chip, ideal",
        "yinyang_chip",
        "98.0 ± 0.3 (mock)",
        "NICE",
        98.3,
        changes={"chip.profile": "ideal"},
    ),
    "chip": Row(
        "the same, calibrated, 5 chips",
        "yinyang_chip",
        "94.8 ± 0.2 (chip)",
        "NICE",
        96.5,
        of_run=lambda run: {"seed": run, "chip.chip_seed": run % 5},
    ),
    "chip_mot": Row(
        "the same, voltages sampled, 5 chips",
        "yinyang_chip_mot",
        "96.1 ± 0.9 (chip)",
        "EP-HW",
        96.5,
        of_run=lambda run: {"seed": run, "chip.chip_seed": run % 5},
    ),
}

PAGE = """\
# Accuracy on YinYang

Written by `python benchmarks/accuracy.py`, which trains what is missing. One run is
`python train.py --config=configs/NAME.py --config.seed=N --workdir=DIRECTORY`, N from
0, where `configs/NAME.py` is the file in the row.

{table}

Mean ± standard deviation of the test accuracy after the last epoch (number of seeds).
The splits are the official ones, 5000 / 1000 / 1000. Hyperparameters were chosen on the
validation split; the test split was evaluated once in each run, and no epoch chosen.

- *Hidden*: neurons of the hidden layers. Every neuron spikes once at most.
- *TTFS*: the output that spikes first decides; *MOT*: that of the highest voltage.
- *Spikes*: of hidden and output neurons, in one inference.
- *Wall time*: median over the runs, from a cold start: with import, compilation,
  checkpoints and a validation after each epoch. *To 95 %*, *to 98 %*: until that
  validation accuracy was reached for the first time, if more than half of the runs did.
- Machine: {machines} for each run.
- {lost}
{figure}
Published figures:

{sources}
{ablation}"""
CAPTION = "Validation error over epochs; decisions of the first run of each row"
ABLATION_TEXT = """
## What makes the difference

Each line changes one thing of `configs/yinyang.py`; validation accuracy after the last
epoch.

{table}
"""

# Each changes one thing of configs/yinyang.py.
ABLATION = {
    "default": Row("none", "yinyang"),
    "mse": Row(
        "squared distance to target times, 18 and 22 ms (`ttfs_mse`)",
        "yinyang",
        changes={"loss.name": "ttfs_mse", "loss.tau": 10e-3},
    ),
    "tau_3": Row("`loss.tau` 0.3 ms", "yinyang", changes={"loss.tau": 0.3e-3}),
    "tau_10": Row("`loss.tau` 1 ms", "yinyang", changes={"loss.tau": 1e-3}),
    "tau_20": Row("`loss.tau` 2 ms", "yinyang", changes={"loss.tau": 2e-3}),
    "early": Row("no penalty on late spikes", "yinyang", changes={"loss.early": 0.0}),
    "bump": Row("no lift of silent neurons", "yinyang", changes={"loss.bump": 0.0}),
    "window": Row("inputs up to 10 ms", "yinyang", changes={"encoding.t_late": 10e-3}),
    "bias": Row("bias spike at 0", "yinyang", changes={"encoding.bias": 0.0}),
    "spread": Row(
        "weights twice as spread",
        "yinyang",
        changes={"model.hidden_init": (15.0, 7.2), "model.output_init": (60.0, 17.6)},
    ),
    "clip": Row("gradient not clipped", "yinyang", changes={"clip_norm": 1e9}),
    "rate_low": Row("learning rate halved", "yinyang", changes={"learning_rate": 5e-3}),
    "rate_high": Row(
        "learning rate doubled", "yinyang", changes={"learning_rate": 2e-2}
    ),
    "epochs": Row("300 epochs", "yinyang", changes={"num_epochs": 300}),
}


def main(argv: list[str] | None = None) -> None:
    """Trains what is missing, then writes the report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", type=int, default=10, help="runs per row")
    parser.add_argument(
        "--ablation", type=int, default=0, metavar="SEEDS", help="runs per ablation"
    )
    parser.add_argument(
        "--epochs", type=int, help="fewer, to try it; then only --report is written"
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=len(_cores()),
        help="runs at a time; 1 leaves all cores to each (default: one per core)",
    )
    parser.add_argument(
        "--directory", type=pathlib.Path, default=ROOT / "runs" / "accuracy"
    )
    parser.add_argument("--report", type=pathlib.Path)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.worker:
        name, run, began = options.worker
        directory = _own(options.directory, name, int(run))
        train(config_of(_row(name), int(run), options.epochs), directory, float(began))
        return
    # By run first: a table that was stopped has all rows.
    wanted = [(name, run) for run in range(options.seeds) for name in options.rows]
    wanted += [
        (f"ablation/{name}", run)
        for name in ABLATION
        for run in range(options.ablation)
    ]
    failed = train_all(
        [
            (name, run)
            for name, run in wanted
            if result_of(
                config_of(_row(name), run, options.epochs),
                _own(options.directory, name, run),
            )
            is None
        ],
        options,
    )
    results = {
        name: _results(name, options)
        for name in [*ROWS, *(f"ablation/{name}" for name in ABLATION)]
    }
    text = table(results)
    print(text)
    path = options.report or (None if options.epochs else REPORT)
    if path is not None:
        figure = path.with_suffix(".png")
        drawn = plot(results, figure)
        # Last: it refers to the figure.
        _write_atomically(path, page(text, results, figure.name if drawn else None))
    if failed:
        sys.exit(f"{len(failed)} runs failed: " + ", ".join(failed))


def config_of(row: Row, run: int, epochs: int | None = None) -> Any:
    """The config of one run of a row."""
    config = importlib.import_module(f"configs.{row.config}").get_config()
    config.update_from_flattened_dict({**row.changes, **row.of_run(run)})
    if epochs is not None:
        config.num_epochs = epochs
    return config


def result_of(config: Any, directory: pathlib.Path) -> dict[str, Any] | None:
    """The result of a run if it is done, and was with this config."""
    if not is_of(config, directory):
        return None
    try:
        return json.loads((directory / "result.json").read_text())
    except FileNotFoundError:
        return None


def is_of(config: Any, directory: pathlib.Path) -> bool:
    """Whether what a directory holds, if anything, is of this config."""
    try:
        there = json.loads((directory / "config.json").read_text())
    except FileNotFoundError:
        return True
    return _decisive(there) == _decisive(json.loads(config.to_json()))


def _decisive(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields that decide the numbers, but those that are off.

    So a run outlives new fields that leave things as they were.
    """
    found: dict[str, Any] = {}
    for name, value in config.items():
        unused = name in DEVICES and DEVICES[name] != config["hardware"]
        if unused or name in INDIFFERENT:
            continue
        if isinstance(value, dict):
            found |= _decisive(value, f"{prefix}{name}.")
        elif value:
            found[prefix + name] = value
    return found


def train(config: Any, directory: pathlib.Path, began: float) -> dict[str, Any]:
    """Trains, or goes on, and stores the result.

    Args:
      config: the experiment.
      directory: of the run.
      began: Unix time at which this process was asked for, for the times from a cold
        start.
    """
    from jaxsnn import training
    from jaxsnn.training.writers import read_metrics

    training.log_to_console()
    if not is_of(config, directory):
        for path in directory.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "log.txt":
                path.unlink()
    state = training.train_and_evaluate(config, directory)
    seconds = time.time() - began
    rows = read_metrics(directory)
    epochs = [row for row in rows if "validation/accuracy" in row]
    (test,) = (row for row in rows if "test/accuracy" in row)

    def count(*names: str) -> int:
        """Adds up what the layers counted, in training and evaluation."""
        return sum(
            value
            for row in rows
            for name, value in row.items()
            if "events/" in name and name.rsplit("_", 1)[-1] in names
        )

    result = {
        "accuracy": test["test/accuracy"],
        "validation": [row["validation/accuracy"] for row in epochs],
        "spikes": sum(v for k, v in test.items() if k.endswith("_spikes")),
        "lost": count("overflow", "late", "lost", "extra"),
        "unexplained": count("unexplained"),
        "processor": report.processor(),
        "cores": len(_cores()),
    }
    times = [at for at, _ in _validations(directory) if at >= began]
    if len(times) == len(epochs):  # Otherwise the run was stopped in between.
        result["seconds"] = seconds
        result["seconds_to"] = {
            str(level): next(
                (at - began for at, value in _validations(directory) if value >= level),
                None,
            )
            for level in LEVELS
        }
    if config.dataset == "yin_yang" and config.seed == 0:
        result["map"] = _decisions(state)
    _write_atomically(directory / "result.json", json.dumps(result))
    return result


def train_all(wanted: list[tuple[str, int]], options: argparse.Namespace) -> list[str]:
    """Trains in processes of their own; returns those that failed, by name."""
    available, cores, alive = _cores(), queue.SimpleQueue(), set()
    for number in range(options.processes):
        alone = options.processes == 1
        cores.put(available if alone else [available[number % len(available)]])
    began, done, failed = time.perf_counter(), 0, []
    stopped = False

    def one(name: str, run: int) -> int:
        if stopped:
            return 0
        directory = _own(options.directory, name, run)
        directory.mkdir(parents=True, exist_ok=True)
        here = cores.get()
        command = [sys.executable, __file__, "--worker", name, str(run)]
        command += [str(time.time()), "--directory", str(options.directory)]
        if options.epochs is not None:
            command += ["--epochs", str(options.epochs)]
        with (directory / "log.txt").open("w") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"ACCURACY_CORES": ",".join(map(str, here))},
            )
            alive.add(process)
            code = process.wait()
        alive.discard(process)
        cores.put(here)
        return code

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    pool = concurrent.futures.ThreadPoolExecutor(options.processes)
    try:
        runs = {pool.submit(one, *each): each for each in wanted}
        for future in concurrent.futures.as_completed(runs):
            name, run = runs[future]
            directory = _own(options.directory, name, run)
            done += 1
            if future.result():
                failed.append(f"{name} {run}, see {directory / 'log.txt'}")
                outcome = "failed: " + _last_line(directory / "log.txt")
            else:
                found = json.loads((directory / "result.json").read_text())
                outcome = f"{100 * found['validation'][-1]:.1f} % validation"
            minutes = (time.perf_counter() - began) / 60
            print(
                f"{done}/{len(wanted)}  {minutes:.1f} min  {name} {run}: {outcome}",
                flush=True,
            )
    except KeyboardInterrupt:
        stopped = True
        for process in list(alive):
            process.terminate()  # It saves its state.
        pool.shutdown(cancel_futures=True)
        sys.exit("stopped; the same command continues")
    finally:
        signal.signal(signal.SIGTERM, before)
    return failed


def table(results: Mapping[str, list[dict[str, Any]]]) -> str:
    """The rows that have runs, as Markdown."""
    lines = [
        "| | hidden | loss | forward pass, gradient | test accuracy, % | aim |"
        " published, % | spikes | wall time | to 95 % | to 98 % |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in ROWS.items():
        runs = results.get(name)
        if not runs:
            continue
        config = config_of(row, 0)
        found = [100 * run["accuracy"] for run in runs]
        cells = [
            f"{row.title} (`{row.config}.py`)",
            "-".join(map(str, config.model.hidden)),
            "TTFS" if config.model.readout == "lif" else "MOT",
            _substrate(config),
            f"**{statistics.mean(found):.2f}**{_spread(found)} ({len(found)})",
            "" if row.aim is None else f"{row.aim:.1f}",
            f"{row.published} [{row.source}]" if row.published else "",
            f"{statistics.mean(run['spikes'] for run in runs):.0f}",
            _seconds([run.get("seconds") for run in runs]),
            *(
                _seconds([run.get("seconds_to", {}).get(str(x)) for run in runs])
                for x in LEVELS
            ),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ablation_table(results: Mapping[str, list[dict[str, Any]]]) -> str:
    """What single changes do to the validation accuracy, as Markdown."""
    lines = ["| change | validation accuracy, % |", "|---|---|"]
    for name, row in ABLATION.items():
        found = [100 * run["validation"][-1] for run in results[f"ablation/{name}"]]
        if found:
            mean = f"{statistics.mean(found):.2f}{_spread(found)} ({len(found)})"
            lines.append(f"| {row.title} | {mean} |")
    return "\n".join(lines)


def page(
    text: str, results: Mapping[str, list[dict[str, Any]]], figure: str | None
) -> str:
    """The whole report; `figure` is the name of its file, if there is one."""
    every = [run for runs in results.values() for run in runs]
    lost, unexplained = (
        sum(run[name] for run in every) for name in ("lost", "unexplained")
    )
    machines = sorted({(run["processor"], run["cores"]) for run in every})
    sources = "\n".join(f"- [{key}] {what}." for key, what in SOURCES.items())
    ablation = ""
    if any(results.get(f"ablation/{name}") for name in ABLATION):
        ablation = ABLATION_TEXT.format(table=ablation_table(results))
    return PAGE.format(
        table=text,
        machines="; ".join(
            f"{name}, {cores} {'core' if cores == 1 else 'cores'}"
            for name, cores in machines
        ),
        lost=f"All runs together, {lost} spikes were lost or late, and {unexplained:,}"
        " on the chips could not be explained by the model and had no gradient.",
        figure=f"\n![{CAPTION}]({figure})\n" if figure else "",
        sources=sources,
        ablation=ablation,
    )


def plot(results: Mapping[str, list[dict[str, Any]]], path: pathlib.Path) -> bool:
    """Draws validation error over epochs, and what the first runs decide where.

    Returns:
      Whether there is something to draw, and matplotlib to do it.
    """
    try:
        from jaxsnn import plot as draw
    except ImportError as error:
        print(f"No figure: {error}", file=sys.stderr)
        return False
    import numpy as np
    from matplotlib.figure import Figure

    from jaxsnn.training import figures

    shown = {name: results[name] for name in ROWS if results.get(name)}
    if not shown:
        return False
    width = max(3, -(-len(shown) // 2))
    figure = Figure(figsize=(2 * width, 7.5), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[3, 4])
    ax = top.subplots()
    for number, (name, runs) in enumerate(shown.items()):
        curves = 100 - 100 * np.array([run["validation"] for run in runs])
        epochs = np.arange(1, curves.shape[1] + 1)
        style = {"color": f"C{number % 10}", "ls": "-" if number < 10 else "--"}
        ax.plot(epochs, np.maximum(curves.mean(0), 0.05), lw=1, label=name, **style)
    ax.set(xlabel="epoch", ylabel="validation error, %", xscale="log", yscale="log")
    ax.set_yticks([0.5, 1, 2, 5, 10, 20, 50], ["0.5", "1", "2", "5", "10", "20", "50"])
    ax.yaxis.minorticks_off()
    ax.grid(alpha=0.3)
    ax.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    axes = bottom.subplots(2, width, squeeze=False).ravel()
    _, inside = figures.plane()
    for ax, (name, runs) in zip(axes, shown.items(), strict=False):
        maps = [run["map"] for run in runs if "map" in run]
        if maps:  # "-" is silence.
            decided = np.array(["-012".index(c) - 1 for c in maps[0]])
            draw.decision_map(decided.reshape(inside.shape), inside=inside, ax=ax)
            ax.get_legend().remove()
        ax.set_title(name, fontsize=8)
    for ax in axes:
        ax.axis("off")
    figure.savefig(path, dpi=120)
    return True


def _decisions(state: Any) -> str:
    """The label that a trained network gives each point, ``-`` where it is silent."""
    import jax

    from jaxsnn.training import figures

    points, key = figures.plane()[0], jax.random.key(0)
    found = figures.decide(state, points, key, figures.MAP_SIZE).labels
    return "".join("-" if label < 0 else str(label) for label in found)


def _validations(directory: pathlib.Path) -> Iterator[tuple[float, float]]:
    """Unix time and validation accuracy of each epoch, from the TensorBoard files."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(directory.glob("events*")):
        content, start = path.read_bytes(), 0
        while start + 12 <= len(content):
            # A record is its length, a checksum of that, itself, and its checksum.
            size = int.from_bytes(content[start : start + 8], "little")
            event = Event.FromString(content[start + 12 : start + 12 + size])
            for value in event.summary.value:
                if value.tag == "validation/accuracy":
                    yield event.wall_time, value.simple_value
            start += 12 + size + 4


def _substrate(config: Any) -> str:
    if config.model.dt is not None:
        return f"time grid of {1e3 * config.model.dt:g} ms, surrogate"
    where = "exact"
    if config.hardware:
        profile = config.get(config.hardware.removeprefix("simulated_"), {})
        kind = f", {profile.profile}" if "profile" in profile else ""
        where = config.hardware.replace("_", " ") + kind
    gradient = {"eventprop": "EventProp"}.get(config.model.gradient)
    return f"{where}, {gradient or config.model.gradient}"


def _row(name: str) -> Row:
    prefix, _, rest = name.rpartition("/")
    return ABLATION[rest] if prefix else ROWS[rest]


def _own(directory: pathlib.Path, name: str, run: int) -> pathlib.Path:
    return directory / name / str(run)


def _results(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Results of a row in the order of its runs, all that there are."""
    numbers = sorted(
        int(path.name)
        for path in (options.directory / name).glob("*")
        if path.name.isdigit()
    )
    found = (
        result_of(
            config_of(_row(name), run, options.epochs),
            _own(options.directory, name, run),
        )
        for run in numbers
    )
    return [result for result in found if result is not None]


def _cores() -> list[int]:
    try:
        return sorted(os.sched_getaffinity(0))
    except AttributeError:  # Not on Linux: nothing is pinned.
        return list(range(os.cpu_count() or 1))


def _spread(values: list[float]) -> str:
    return f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""


def _seconds(values: list[float | None]) -> str:
    """The median; empty if more than half never got there."""
    known = sorted(x for x in values if x is not None)
    if 2 * len(known) <= len(values):
        return ""
    padded = known + [float("inf")] * (len(values) - len(known))
    return f"{statistics.median_low(padded):.0f} s"


def _last_line(path: pathlib.Path) -> str:
    return next(reversed(path.read_text().strip().splitlines()), "no output")


def _write_atomically(path: pathlib.Path, content: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(content, encoding="utf-8")
    temporary.replace(path)


if __name__ == "__main__":
    # Before JAX starts its threads.
    if "ACCURACY_CORES" in os.environ and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, map(int, os.environ["ACCURACY_CORES"].split(",")))
    main()
