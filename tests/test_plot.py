"""Pictures: what is drawn are the numbers, in units, in colours all can tell apart."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from oracles import voltages

import jaxsnn
from jaxsnn import Spikes
from jaxsnn.hardware import SimulatedChip
from jaxsnn.layers import LI, LIF, Network
from jaxsnn.training import figures

mpl = pytest.importorskip("matplotlib")
plot = pytest.importorskip("jaxsnn.plot")

CLASSES = ("left", "right")
TIME = np.array([[[1e-3], [4e-3]], [[2e-3], [np.inf]]], np.float32)
HIDDEN = np.array([[5.0, 6.0, 0.0], [9.0, 2.0, 3.0]], np.float32)
OUTPUT = np.array([[9.0, 4.0], [9.0, 14.0], [0.0, 0.0]], np.float32)


def network(backend=None):
    layers = [LIF(3, max_spikes=2, name="hidden"), LIF(2, max_spikes=2, name="output")]
    return Network(layers, backend=backend)


VARIABLES = {"params": {"hidden": {"kernel": HIDDEN}, "output": {"kernel": OUTPUT}}}


@pytest.fixture(scope="module")
def activity():
    return jaxsnn.summary(network(), VARIABLES, Spikes.from_times(jnp.asarray(TIME)))


@pytest.fixture(scope="module")
def on_chip():
    spikes = Spikes.from_times(jnp.asarray(TIME))
    chip = SimulatedChip(scale=4.4)  # The weights are between its integers.
    return jaxsnn.summary(network(chip), VARIABLES, spikes, until=30e-3)


@pytest.fixture(autouse=True)
def every_picture_can_be_stored_and_leaves_no_style():
    before = dict(mpl.rcParams)
    yield
    assert dict(mpl.rcParams) == before


def points(ax, marker):
    lines = [line for line in ax.lines if line.get_marker() == marker]
    found = [line.get_xydata() for line in lines]
    return {(round(float(x), 4), int(y)) for x, y in np.concatenate(found)}


def test_the_points_of_a_raster_are_the_spikes(activity):
    figure = plot.raster(activity, 1, classes=CLASSES, label=0)
    output, hidden, inputs = figure.axes

    def spikes(times):
        return {
            (round(1e3 * float(t), 4), n)
            for n, own in enumerate(np.asarray(times))
            for t in own[np.isfinite(own)]
        }

    assert len(spikes(activity["hidden"].times[1])) >= 2
    assert points(hidden, "|") == spikes(activity["hidden"].times[1])
    assert points(output, "|") == spikes(activity["output"].times[1])
    assert points(output, "o") == spikes(activity["output"].times[1][:, :1])
    assert np.isfinite(activity["output"].times[1][:, 1]).any(), "or rings are no test"
    assert points(inputs, "|") == {(2.0, 0)}
    assert [t.get_text() for t in output.get_yticklabels()] == list(CLASSES)
    first = np.asarray(activity["output"].times)[1, :, 0]
    winner, time = CLASSES[first.argmin()], 1e3 * first.min()
    expected = f"sample 1, of class left: {winner} after {time:.2f} ms"
    assert output.get_title() == expected
    assert plot.png(figure).startswith(b"\x89PNG")


def test_traces_are_those_of_an_integration(activity):
    layer = activity["hidden"]
    figure = plot.voltages(layer, [1], 0, until=20e-3)
    (ax,) = figure.axes
    assert ax.get_xlabel() == "time, ms"
    own = np.asarray(layer.times[0, 1], float)
    assert np.isfinite(own).all(), "it fires twice, as often as it may"
    while_it_may, after = (line.get_xydata() for line in ax.lines[:2])
    drawn = np.concatenate([while_it_may, after[1:]])
    neuron = {"tau_mem": 10e-3, "tau_syn": 5e-3, "v_leak": 0.0, "v_reset": 0.0}
    arrivals = list(zip([1e-3, 4e-3], HIDDEN[:, 1], strict=True))
    ordinary = np.abs(drawn[:, :1] / 1e3 - own).min(1) > 1e-6
    at = drawn[ordinary, 0] / 1e3
    expected = voltages({**neuron, "t_ref": 0.0}, arrivals, own, at)
    np.testing.assert_allclose(drawn[ordinary, 1], expected, atol=2e-5)
    # Both sides of each spike, the threshold first.
    np.testing.assert_allclose(drawn[~ordinary, 1], [1, 0, 1, 0], atol=2e-5)
    np.testing.assert_allclose(drawn[~ordinary, 0], 1e3 * np.repeat(own, 2), rtol=1e-6)
    assert [x for x, _ in sorted(points(ax, "^"))] == list(np.round(1e3 * own, 4))
    assert while_it_may[-1, 0] == after[0, 0] == pytest.approx(1e3 * own[-1])


def test_integrators_are_drawn_with_their_highest_voltage():
    model = Network([LI(2, name="output")])
    params = {"params": {"output": {"kernel": HIDDEN[:, :2]}}}
    spikes = Spikes.from_times(jnp.asarray(TIME))
    activity = jaxsnn.summary(model, params, spikes)
    figure = plot.raster(activity, 0, classes=CLASSES)
    maximum = activity.outputs.maximum()
    winner = int(np.argmax(maximum.value[0]))
    time = 1e3 * float(maximum.time[0, winner])
    title = f"sample 0: {CLASSES[winner]} after {time:.2f} ms"
    assert figure.axes[0].get_title() == title
    at, v = figure.axes[0].lines[winner].get_data()
    dt = np.maximum(at[:, None] / 1e3 - TIME[0, :, 0], 0)
    k = np.exp(-dt / 10e-3) - np.exp(-dt / 5e-3)
    np.testing.assert_allclose(v, k @ HIDDEN[:, winner], atol=1e-5)


def test_a_map_shows_each_decision_where_it_is():
    features, inside = figures.plane(20)
    x, y = features[:, :2].T.reshape(2, 20, 20)
    np.testing.assert_allclose(features[:, 2:], 1 - features[:, :2])
    assert inside.mean() == pytest.approx(np.pi / 4, abs=0.02)
    labels = np.where(x > 0.8, 1, np.where(y > 0.8, -1, 0))
    figure = plot.decision_map(labels, inside=inside, classes=CLASSES)
    ax, (image,) = figure.axes[0], figure.axes[0].images
    shown = image.get_array()
    np.testing.assert_array_equal(shown.mask, ~inside)
    np.testing.assert_array_equal(shown.data[inside], labels[inside])
    left, right, bottom, top = image.get_extent()
    assert (left, right, bottom, top, image.origin) == (0, 1, 0, 1, "lower")
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["left", "right", "no decision"]
    colors = [mpl.colors.to_hex(image.cmap(image.norm(n))).upper() for n in (-1, 0, 1)]
    assert colors == [plot.SILENT, *plot.COLORS[:2]]


def test_maps_of_first_spikes_are_in_milliseconds():
    rng = np.random.default_rng(0)
    times = rng.uniform(5e-3, 20e-3, (6, 6, 2))
    times[0, :3, 1] = np.inf
    figure = plot.first_spike_maps(times, classes=CLASSES)
    left, right, bar = figure.axes
    np.testing.assert_allclose(left.images[1].get_array(), 1e3 * times[..., 0])
    shown = right.images[1].get_array()
    np.testing.assert_array_equal(shown.mask, np.isinf(times[..., 1]))
    np.testing.assert_array_equal(right.images[0].get_array().mask, ~shown.mask)
    assert right.get_title() == "right (8% silent, grey)"
    assert left.images[1].get_clim() == right.images[1].get_clim()
    assert bar.get_ylabel() == "first spike, ms"
    figure = plot.maximum_maps(times[..., :1])
    assert figure.axes[-1].get_ylabel() == "maximum, unit of the weights"


def test_curves_are_those_of_the_rows():
    rows = [
        {
            "epoch": n,
            "train/loss": 1 / n,
            "train/accuracy": 1 - 0.5 / n,
            "validation/loss": None if n == 2 else 2 / n,
            "validation/accuracy": 0.9,
            "learning_rate": 0.1,
            "events/hidden_silent": 0.25,
        }
        for n in (1, 2, 3)
    ]
    figure = plot.training_curves([*rows, {"test/loss": 0.4, "test/accuracy": 0.8}])
    loss, error, silent, rate = figure.axes
    lines = {line.get_label(): line.get_ydata() for line in loss.lines}
    np.testing.assert_allclose(lines["train"], [1, 1 / 2, 1 / 3])
    np.testing.assert_allclose(lines["validation"], [2, np.nan, 2 / 3])
    assert lines["test"] == [0.4]
    np.testing.assert_allclose(error.lines[0].get_ydata(), [50, 25, 50 / 3])
    np.testing.assert_allclose(error.lines[2].get_ydata(), [20])
    np.testing.assert_allclose(silent.lines[0].get_ydata(), 25)
    assert [ax.get_ylabel() for ax in figure.axes] == [
        "loss",
        "error, %",
        "neurons that never fired, %",
        "learning rate",
    ]
    assert rate.get_xlabel() == "epoch"
    with pytest.raises(ValueError, match="rows hold no epoch"):
        plot.training_curves([{"test/loss": 0.4}])


def test_histograms_count_all_of_software_and_device(activity, on_chip):
    figure = plot.weights(activity)
    for ax, kernel in zip(figure.axes, (HIDDEN, OUTPUT), strict=True):
        assert sum(bar.get_height() for bar in ax.patches) == kernel.size
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("weight", "synapses")
    figure = plot.weights(on_chip)
    bars = figure.axes[0].patches[:-1]  # The last is the outline of the software.
    assert sum(bar.get_height() for bar in bars) == HIDDEN.size
    names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert names == ["device", "software"]
    figure = plot.spike_times(activity, on_chip)
    fired = np.isfinite(on_chip["hidden"].times).sum()
    bars = figure.axes[0].patches[:-1]
    assert sum(bar.get_height() for bar in bars) == fired
    assert figure.axes[0].get_xlabel() == "spike time, ms"
    figure = plot.spike_counts(activity)
    total = np.isfinite(activity["hidden"].times).sum((1, 2))
    assert figure.axes[0].get_title() == f"hidden, 3 neurons: {total.mean():.1f}"


def test_mismatch_is_what_the_layers_reported(activity, on_chip):
    figure = plot.mismatch(on_chip)
    late = 1e3 * np.asarray(on_chip["hidden"].mismatch.time)
    known = late[np.isfinite(late)]
    top, _, bottom, _ = figure.axes
    assert top.get_title() == f"hidden: {known.mean():+.3f} ± {known.std():.3f} ms"
    assert sum(bar.get_height() for bar in top.patches) == known.size
    data = bottom.lines[0].get_xydata()
    n = np.flatnonzero(np.isfinite(late).any(0))
    np.testing.assert_array_equal(data[:, 0], n)
    np.testing.assert_allclose(data[:, 1], np.nanmean(late[:, n], 0), rtol=1e-5)
    with pytest.raises(ValueError, match="no layer ran on a device"):
        plot.mismatch(activity)


def test_a_confusion_matrix_and_latencies(activity):
    figure, ax = mpl.figure.Figure(), None
    ax = figure.subplots()
    matrix = np.array([[7, 1, 2], [0, 5, 0]])
    assert plot.confusion(matrix, classes=CLASSES, ax=ax) is figure
    assert [text.get_text() for text in ax.texts] == ["7", "1", "2", "0", "5", "0"]
    assert [x.get_text() for x in ax.get_xticklabels()] == ["left", "right", "none"]
    times = np.array([1e-3, 2e-3, 3e-3, np.inf])
    (ax,) = plot.latency(times, np.array([True, False, True, False])).axes
    assert ax.get_title() == "median 2.00 ms, 1 without a decision"
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["right, 2", "wrong, 1"]
    (ax,) = plot.latency(np.full(3, np.inf)).axes
    assert ax.get_title() == "no output spike in any sample"


def seen_by(kind, color):
    """A colour in CIE Lab, as seen with a kind of colour blindness.

    The matrices are those of Machado, Oliveira & Fernandes (2009), for linear RGB.
    """
    rgb = np.array(mpl.colors.to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.reshape(list(map(float, kind.split())), (3, 3)) @ linear, 0, 1)
    xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(np.array(xyz) @ linear / [0.9505, 1, 1.089] + 1e-9)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


KINDS = {
    "normal": "1 0 0 0 1 0 0 0 1",
    "protanopia": "0.1523 1.0526 -0.2049 0.1145 0.7863 0.0992 -0.0039 -0.0481 1.0520",
    "deuteranopia": "0.3673 0.8606 -0.2280 0.2801 0.6725 0.0474 -0.0118 0.0429 0.9689",
    "tritanopia": "1.2555 -0.0767 -0.1788 -0.0784 0.9308 0.1476 0.0047 0.6914 0.3039",
}


@pytest.mark.parametrize("kind", KINDS)
def test_colours_can_be_told_apart(kind):
    """Differences above 10 in Lab, some times what is just noticeable (2.3)."""
    shown = [seen_by(KINDS[kind], c) for c in (*plot.COLORS[:4], plot.SILENT)]
    for n, one in enumerate(shown):
        for other in shown[:n]:
            assert np.linalg.norm(one - other) > 10


def test_matplotlib_is_imported_here_only_and_its_absence_is_explained():
    code = """
import sys
import jaxsnn, jaxsnn.activity, jaxsnn.training
assert "matplotlib" not in sys.modules
import jaxsnn.plot
assert "matplotlib.pyplot" not in sys.modules
for name in [n for n in sys.modules if n.startswith(("matplotlib", "jaxsnn.plot"))]:
    del sys.modules[name]
sys.modules["matplotlib"] = None
del jaxsnn.plot
try:
    import jaxsnn.plot
except ImportError as error:
    assert "pip install matplotlib" in str(error), error
else:
    raise AssertionError
from jaxsnn.training import TrainingError, figures
from configs import yinyang
config = yinyang.get_config()
config.plot_every_epochs = 1
try:
    figures.check(config)
except TrainingError as error:
    assert "pip install matplotlib" in str(error), error
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", code], check=True)
