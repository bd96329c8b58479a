"""One HTML page about a run, complete in itself: pictures, tables, config."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import html
import json
import logging
import os
import string
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from jaxsnn.activity import Activity, tabulate
from jaxsnn.training import checkpoint, devices, figures, hardware, loop, writers
from jaxsnn.training.errors import TrainingError

SHOWN = 200  # Examples of which everything is kept, for pictures.
_RESOLUTION = 150  # Pixels per inch of a picture; a browser has 96.

logger = logging.getLogger(__name__)

_PAGE = string.Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 1120px; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid #ccc; }
p { margin: .4rem 0; max-width: 52rem; }
nav { margin-top: .8rem; }
nav a { margin-right: 1rem; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem 1.5rem; align-items: flex-start; }
figure { margin: 0; max-width: 100%; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption { font-size: .85rem; color: #444; }
.numbers { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1rem 0; }
.numbers div { background: #f2f4f7; border-radius: 6px; padding: .5rem .9rem; }
.numbers b { display: block; font-size: 1.25rem; }
.notes { background: #fff6e0; border-left: 4px solid #e69f00; padding: .4rem .9rem; }
table { border-collapse: collapse; font-size: .88rem; margin: .4rem 0; }
th, td { padding: .15rem .7rem .15rem 0; text-align: left; vertical-align: top;
  overflow-wrap: anywhere; }
th { border-bottom: 1px solid #999; }
td:not(:first-child) { font-variant-numeric: tabular-nums; }
pre { overflow-x: auto; background: #f2f4f7; padding: .6rem; font-size: .82rem; }
.scroll { overflow-x: auto; }
</style>
</head>
<body>
$body
</body>
</html>
""")


def write_report(
    config: ml_collections.ConfigDict, workdir: str | os.PathLike[str]
) -> Path:
    """Writes `report.html` about the newest checkpoint of a run.

    The page has everything in it and asks no network for anything. What cannot be
    shown of a run is named on it, with the reason.

    Args:
      config: of the run, as for an evaluation; `config.eval_split` is what is shown.
      workdir: directory of the run.

    Returns:
      The page.

    Raises:
      TrainingError: there is no whole checkpoint, it is of another run, or matplotlib
        is missing.
      DeviceError: the device failed.
    """
    figures.plotting()
    directory = Path(workdir).absolute()
    with devices.connected(config):
        page = _page(config, directory)
        path = directory / "report.html"
        if devices.is_first():
            with writers.writing_to(directory):
                writers.write_atomically(path, page)
    logger.info("report: %s (%.1f MB)", path, len(page) / 1e6)
    return path


def _page(config: ml_collections.ConfigDict, directory: Path) -> str:
    parts = ("checkpoints", "config.json", "metrics.jsonl")
    missing = [name for name in parts if not (directory / name).exists()]
    if "checkpoints" in missing:
        raise TrainingError(
            f"There is no run to report on in {directory}: it has no"
            f" {', no '.join(missing)}. Train first, or name the directory of a run"
            " with --workdir."
        )
    setup, found = loop.restored(config, directory)
    scalars = loop.evaluated(config, setup, found.state)
    seed, state = next(setup.ensemble.members(found.state))
    split = loop._load(config, config.eval_split, setup.ensemble)
    examples = {name: np.asarray(split[name]) for name in ("features", "label")}
    pictures = figures.Pictures(config, state)
    with hardware.released(pictures.device), hardware.faults():
        contents = _Contents(config, directory, pictures)
        body = "\n".join(contents.sections(found, scalars, seed, examples))
    title = html.escape(f"{directory.name}: {config.dataset}")
    return _PAGE.substitute(title=title, body=body)


@dataclasses.dataclass
class _Contents:
    """What is on the page, section by section."""

    config: ml_collections.ConfigDict
    directory: Path
    pictures: figures.Pictures

    def __post_init__(self) -> None:
        self.notes: list[str] = []
        self.plot = figures.plotting()

    def sections(
        self,
        found: checkpoint.Checkpoint,
        scalars: Mapping[str, Any],
        seed: int,
        examples: Mapping[str, np.ndarray],
    ) -> Iterator[str]:
        config, pictures = self.config, self.pictures
        decided = pictures.decide(examples["features"])
        some = {name: x[:SHOWN] for name, x in examples.items()}
        activity = pictures.activity(some["features"])
        parts = [
            ("Training", self._training()),
            ("Decisions", self._decisions(decided, examples["label"])),
            ("One example", self._example(activity, int(some["label"][0]))),
            ("Layers", self._layers(activity, some["features"])),
            ("Weights and spike times", self._numbers(activity, some["features"])),
        ]
        if config.ensemble > 1:
            self.notes.append(
                f"The run is of {config.ensemble} seeds. Pictures and layers are of"
                f" the first, {seed}; the table of measurements has all."
            )
        changed = checkpoint.changes(found.config, config)
        if changed:
            text = "; ".join(changed)
            self.notes.append(f"The config differs from that of the run: {text}.")
        parts.append(("Measurements", _measurements(scalars, config.eval_split)))
        parts.append(("Parameters", _parameters(pictures.variables["params"])))
        fields = checkpoint.flatten(json.loads(config.to_json()))
        rows = [[name, json.dumps(value)] for name, value in fields.items()]
        half = -(-len(rows) // 2)
        tables = [_table(["field", "value"], r) for r in (rows[:half], rows[half:])]
        parts.append(("Config", f'<div class="pictures">{"".join(tables)}</div>'))

        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
        where = config.hardware or "exact simulation"
        if config.model.dt is not None:
            where = f"time grid of {1e3 * config.model.dt:g} ms"
        yield f"<h1>{html.escape(self.directory.name)}</h1>"
        yield _paragraph(
            f"{config.dataset}, split {config.eval_split} ({len(examples['label'])}"
            f" examples), on: {where}. Step {found.state.step}, epoch"
            f" {found.progress['epoch']}. Written {now}."
        )
        yield _headlines(scalars, decided, config, len(examples["label"]))
        if self.notes:
            notes = "".join(map(_paragraph, self.notes))
            yield f'<div class="notes">{notes}</div>'
        links = "".join(
            f'<a href="#{_anchor(t)}">{html.escape(t)}</a>' for t, _ in parts
        )
        yield f"<nav>{links}</nav>"
        for title, content in parts:
            yield f'<h2 id="{_anchor(title)}">{html.escape(title)}</h2>\n{content}'

    def _training(self) -> str:
        rows = writers.read_metrics(self.directory)
        if not any(row.get("train/loss") is not None for row in rows):
            path = self.directory / "metrics.jsonl"
            what = "holds no epoch" if path.exists() else "is not there"
            self.notes.append(f"No curves of training: {path} {what}.")
            return _paragraph("No curves.")
        caption = "Loss and error over epochs, with the test split after the last one."
        return _pictures([(self.plot.training_curves(rows), caption)])

    def _decisions(self, decided: figures.Decided, label: np.ndarray) -> str:
        plot, classes = self.plot, self.pictures.classes
        number, silent = len(classes), decided.labels < 0
        matrix = np.zeros((number, number + bool(silent.any())), int)
        np.add.at(matrix, (label, np.where(silent, number, decided.labels)), 1)
        shown = [(plot.confusion(matrix, classes=classes), "Decisions by class.")]
        spiking = self.config.model.readout == "lif"
        if spiking:
            figure = plot.latency(decided.readings.min(-1), decided.labels == label)
            shown.append((figure, "When the first output neuron fires and decides."))
        else:
            self.notes.append(
                "No latency to a decision: the readout is the maximum of voltages,"
                " known at the end of the window only."
            )
        if self.pictures.has_plane:
            features, inside = figures.plane()
            on_plane = self.pictures.decide(features)
            labels = on_plane.labels.reshape(inside.shape)
            form: dict[str, Any] = {"classes": classes, "inside": inside}
            shown.append((plot.decision_map(labels, **form), "What is decided where."))
            readings = on_plane.readings.reshape(*inside.shape, -1)
            draw = plot.first_spike_maps if spiking else plot.maximum_maps
            what = "First spike" if spiking else "Highest voltage"
            shown.append((draw(readings, **form), f"{what} of each output."))
        else:
            self.notes.append(
                f"No decision map: examples of {self.config.dataset} are no points of a"
                " plane."
            )
        return _pictures(shown)

    def _example(self, activity: Activity, label: int) -> str:
        plot, classes = self.plot, self.pictures.classes
        figure = plot.raster(activity, classes=classes, label=label)
        shown = [(figure, "Spikes of the first example; rings are first spikes.")]
        layers = [x for x in activity.layers if x.neuron is not None]
        hidden = [x.name for x in layers if x.dt is not None and x.samples is None]
        if hidden:
            self.notes.append(
                f"No voltages of {', '.join(hidden)}: a time grid has none between its"
                " steps."
            )
        for layer in layers:
            if layer.name in hidden:
                continue
            names = classes if layer is layers[-1] else None
            caption = f"Voltages of {layer.name}, exact between events."
            if layer.dt is not None:
                caption = f"Voltages of {layer.name} at the ends of the steps."
            elif layer.mismatch is not None:
                caption += " By the model, with the spikes and weights of the device."
            elif layer.samples is not None:
                caption += " By the model; dots are samples of the device."
            shown.append((plot.voltages(layer, classes=names), caption))
        return _pictures(shown)

    def _layers(self, activity: Activity, features: np.ndarray) -> str:
        pictures, samples = self.pictures, activity.inputs.time.shape[0]
        spikes = pictures.experiment.encode(jax.numpy.asarray(features[:1]))
        table = tabulate(pictures.model, pictures.variables, spikes, **pictures.window)
        caption = "Spikes of an inference, by layer; the mean is in the title."
        return "\n".join(
            [
                _paragraph("Times in ms; what is learned has a star."),
                f"<pre>{html.escape(table)}</pre>",
                _paragraph(f"On the first {samples} examples of the split:"),
                f"<pre>{html.escape(str(activity).partition(chr(10))[2])}</pre>",
                _pictures([(self.plot.spike_counts(activity), caption)]),
            ]
        )

    def _numbers(self, activity: Activity, features: np.ndarray) -> str:
        plot = self.plot
        if self.pictures.device is None:
            self.notes.append(
                "Nothing about quantisation and mismatch: no device. The histograms are"
                " of the software."
            )
            shown = [(plot.weights(activity), "Weights.")]
            return _pictures([*shown, (plot.spike_times(activity), "Spike times.")])
        software = self.pictures.activity(features, simulated=True)
        return _pictures(
            [
                (plot.weights(activity), "Weights, as learned and as on the device."),
                (plot.spike_times(software, activity), "Spike times."),
                (
                    plot.mismatch(activity),
                    "First spikes on the device less those of the model, of all samples"
                    " and of each neuron.",
                ),
            ]
        )


def _headlines(
    scalars: Mapping[str, Any],
    decided: figures.Decided,
    config: ml_collections.ConfigDict,
    number: int,
) -> str:
    """The numbers that are looked for first."""
    found = [("accuracy", f"{100 * scalars['accuracy']:.2f} %")]
    found.append(("loss", f"{scalars['loss']:.4g}"))
    spikes = [v for k, v in scalars.items() if _is(k, "spikes")]
    if spikes:
        found.append(("spikes per inference", f"{sum(spikes):.1f}"))
    if config.model.readout == "lif":
        first = decided.readings.min(-1)
        known = 1e3 * first[np.isfinite(first)]
        middle = f"{np.median(known):.2f} ms" if known.size else "none"
        found.append(("median latency to decision", middle))
        found.append(("no decision", f"{number - known.size} of {number}"))
    for key, value in scalars.items():
        if _is(key, "silent"):
            layer = key.removeprefix("events/").removesuffix("_silent")
            found.append((f"of {layer} never fire", f"{100 * value:.1f} %"))
    lost = [v for k, v in scalars.items() if _is(k, "overflow") or _is(k, "lost")]
    if lost:
        found.append(("spikes lost", f"{sum(lost):g}"))
    cells = "".join(
        f"<div><b>{html.escape(value)}</b>{html.escape(name)}</div>"
        for name, value in found
    )
    return f'<div class="numbers">{cells}</div>'


def _is(key: str, counter: str) -> bool:
    return key.startswith("events/") and key.endswith(f"_{counter}")


def _measurements(scalars: Mapping[str, Any], split: str) -> str:
    rows = [[name, f"{value:.6g}"] for name, value in sorted(scalars.items())]
    text = f"All that the evaluation of the whole split {split} reports."
    return _paragraph(text) + _table(["name", "value"], rows)


def _parameters(params: Any) -> str:
    rows, total = [], 0
    for path, value in jax.tree_util.tree_leaves_with_path(params):
        value, name = (
            np.asarray(value),
            jax.tree_util.keystr(path, simple=True, separator="/"),
        )
        total += value.size
        shape = " x ".join(map(str, value.shape)) or "scalar"
        size = f"{value.size:,}"
        spread = [f"{f(value):.4g}" for f in (np.mean, np.std, np.min, np.max)]
        rows.append([name, shape, str(value.dtype), size, *spread])
    head = ["name", "shape", "dtype", "size", "mean", "deviation", "least", "largest"]
    return _table(head, rows) + _paragraph(f"{total:,} parameters.")


def _pictures(shown: Iterable[tuple[Any, str]]) -> str:
    parts = []
    for figure, caption in shown:
        width = round(96 * figure.get_size_inches()[0])
        data = base64.b64encode(_png(figure)).decode()
        text = html.escape(caption)
        parts.append(
            f'<figure><img width="{width}" alt="{text}"'
            f' src="data:image/png;base64,{data}"><figcaption>{text}</figcaption>'
            "</figure>"
        )
    return f'<div class="pictures">{"".join(parts)}</div>'


def _png(figure: Any) -> bytes:
    return figures.plotting().png(figure, _RESOLUTION)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    def row(cells: Iterable[str], kind: str) -> str:
        inside = "".join(f"<{kind}>{html.escape(str(c))}</{kind}>" for c in cells)
        return f"<tr>{inside}</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    return f'<div class="scroll"><table>{row(head, "th")}{body}</table></div>'


def _paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")
