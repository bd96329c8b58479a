"""The page about a run: complete, offline, escaped, and true."""

import base64
import html.parser
import itertools
import json
import re
import shutil
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training_dummy
from tensorboardX.proto.event_pb2 import Event

from configs import yinyang, yinyang_grid, yinyang_mot
from jaxsnn import datasets
from jaxsnn.training import (
    TrainingError,
    create_train_state,
    figures,
    report,
    train_and_evaluate,
    write_report,
)
from jaxsnn.training.checkpoint import Checkpoint, flatten
from jaxsnn.training.experiment import create_experiment

pytest.importorskip("matplotlib")

VOID = {"meta", "img"}


class Page(html.parser.HTMLParser):
    """What is on a page; fails where a tag is not closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.pictures, self.links = [], [], {}, []
        self.text, self.ids = [], set()
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.ids.add(attributes.get("id"))
        if tag == "img":
            kind, _, data = attributes["src"].partition(",")
            assert kind == "data:image/png;base64"
            self.pictures[attributes["alt"]] = base64.b64decode(data, validate=True)
        elif "src" in attributes or "href" in attributes:
            self.links.append(attributes.get("src") or attributes["href"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "title"):
            self.text.append(data)

    def cells(self):
        """Name to value, of all tables of two columns."""
        text = [t.strip() for t in self.text if t.strip()]
        return dict(itertools.pairwise(text))


def config_of(module=yinyang, **changes):
    config = module.get_config("smoke")
    config.num_epochs = 1
    config.model.hidden = (6,)
    config.batch_size = 10
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module", autouse=True)
def small():
    """Few examples, and coarse maps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load", training_dummy.load)
        patch.setattr(figures.plane, "__defaults__", (10,))
        patch.setattr(figures, "MAP_SIZE", 10)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run, with pictures for TensorBoard, in a directory of an odd name."""
    directory = tmp_path_factory.mktemp("run") / "a <b>&amp; 'run'"
    config = config_of(plot_every_epochs=1)
    state = train_and_evaluate(config, directory)
    return directory, config, state


def test_the_page_is_complete_and_asks_nobody(run):
    directory, config, state = run
    path = write_report(config, directory)
    assert path == directory / "report.html"
    text = path.read_text()
    page = Page(text)
    assert "http" not in re.sub(r'http-equiv="Content', "", text)
    assert "script" not in page.tags
    assert {link.removeprefix("#") for link in page.links} <= page.ids
    for picture in page.pictures.values():
        assert picture.startswith(b"\x89PNG")
    assert len(page.pictures) == 11
    assert "a <b>&amp; 'run'" in page.text, "shown as it is, so it was escaped"

    test = training_dummy.load("", "test")
    decided = figures.Pictures(config, state).decide(np.float32(test["features"]))
    correct = (decided.labels == test["label"]).mean()
    rows = [json.loads(r) for r in (directory / "metrics.jsonl").open()]
    assert rows[-1]["test/accuracy"] == pytest.approx(correct)
    cells = page.cells()
    assert cells[f"{100 * correct:.2f} %"] == "accuracy"
    first = decided.readings.min(-1)
    median = 1e3 * np.median(first[np.isfinite(first)])
    assert cells[f"{median:.2f} ms"] == "median latency to decision"
    spikes = [v for k, v in rows[-1].items() if k.endswith("_spikes")]
    assert cells[f"{sum(spikes):.1f}"] == "spikes per inference"
    assert cells["hidden/kernel"] == "5 x 6"
    for name, value in flatten(json.loads(config.to_json())).items():
        assert cells[name] == json.dumps(value)


def test_outputs_have_the_names_of_the_classes():
    config = config_of()
    assert tuple(figures.class_names(config)) == ("yin", "yang", "dot")
    config.model.outputs = 2  # Of another task: numbers.
    assert list(figures.class_names(config)) == ["0", "1"]
    config.dataset = "fashion_mnist_idx"
    config.model.outputs = 10
    assert figures.class_names(config)[9] == "ankle boot"


def test_pictures_are_sent_to_tensorboard(run):
    directory, _, _ = run
    (path,) = directory.glob("events*")
    content, start, images = path.read_bytes(), 0, {}
    while start + 12 <= len(content):
        (size,) = struct.unpack("<Q", content[start : start + 8])
        event = Event.FromString(content[start + 12 : start + 12 + size])
        for value in event.summary.value:
            if value.HasField("image"):
                assert event.step == 7
                images[value.tag] = value.image
        start += 12 + size + 4
    assert set(images) == {"raster", "weights", "decisions"}
    assert images["raster"].width == 750
    assert images["raster"].encoded_image_string.startswith(b"\x89PNG")


def test_the_same_run_on_a_chip_shows_how_it_differs(run, tmp_path):
    directory, _, _ = run
    shutil.copytree(directory, tmp_path / "run")
    changes = {"hardware": "simulated_chip", "until": 40e-3}
    (tmp_path / "run" / "metrics.jsonl").unlink()
    text = write_report(config_of(**changes), tmp_path / "run").read_text()
    page = Page(text)
    assert any("less those of the model" in name for name in page.pictures)
    assert not any("over epochs" in name for name in page.pictures)
    words = " ".join(page.text)
    assert "metrics.jsonl is not there" in words
    assert "The config differs from that of the run: " in words
    assert "hardware '' -> 'simulated_chip'" in words
    assert "mismatch/hidden_time_std" in page.cells()
    # Another report replaces it and leaves nothing behind.
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert not [name for name in names if name.endswith(".tmp")]


def contents(config, dataset=None):
    """The page of an untrained network, without a run."""
    parts = create_experiment(config)
    test = training_dummy.load("", "test")
    tx, _ = parts.optimizer(1)
    features = np.float32(test["features"])
    key = jax.random.key(0)
    state = create_train_state(parts, tx, key, jnp.asarray(features[:1]), config.until)
    if dataset is not None:
        config.dataset = dataset
    fields = flatten(json.loads(config.to_json()))
    found = Checkpoint(state, {"epoch": 0}, fields)
    scalars = {"accuracy": 0.5, "loss": 1.0}
    pictures = figures.Pictures(config, state)
    examples = {"features": features, "label": np.int32(test["label"])}
    page = report._Contents(config, report.Path("nowhere"), pictures)
    return Page("\n".join(page.sections(found, scalars, 0, examples)))


def test_a_time_grid_says_what_it_cannot_show():
    page = contents(config_of(yinyang_grid, **{"model.dt": 2e-3, "model.steps": 12}))
    words = " ".join(page.text)
    assert "No voltages of hidden: a time grid has none between its steps." in words
    assert "No latency to a decision" in words
    assert "Nothing about quantisation" in words
    assert "Voltages of output at the ends of the steps." in page.pictures
    assert "Voltages of hidden, exact between events." not in page.pictures


def test_integrators_loops_and_examples_that_are_no_points():
    changes = {"model.recurrent": True, "model.recurrent_delay": 5e-3}
    page = contents(config_of(yinyang_mot, **changes), "mnist_idx")
    words = " ".join(page.text)
    assert "No decision map: examples of mnist_idx are no points of a plane." in words
    for layer in ("hidden", "output"):
        assert f"Voltages of {layer}, exact between events." in page.pictures
    assert "What is decided where." not in page.pictures


def test_what_is_missing_or_damaged_is_said(run, tmp_path):
    directory, config, _ = run
    message = r"it has no checkpoints, no config\.json, no metrics\.jsonl\. Train first"
    with pytest.raises(TrainingError, match=message):
        write_report(config, tmp_path)
    shutil.copytree(directory, tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    (tmp_path / "run" / "report.html").unlink(missing_ok=True)
    with pytest.raises(TrainingError, match="are damaged"):
        write_report(config, tmp_path / "run")
    assert not (tmp_path / "run" / "report.html").exists()
    for wrong, message in ((0, "must be 1 or more, or None, and is 0"),):
        with pytest.raises(TrainingError, match=message):
            train_and_evaluate(config_of(plot_every_epochs=wrong), tmp_path / "other")
