"""The benchmarks run, and the C++ loop that they compare with computes the same."""

import argparse
import functools
import pathlib
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsnn import Spikes
from jaxsnn.layers import LIF, Network
from jaxsnn.losses import ttfs_cross_entropy

BENCHMARKS = pathlib.Path(__file__).resolve().parents[1] / "benchmarks"
sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS / "peers")]

import native  # noqa: E402
import peers  # noqa: E402
import report  # noqa: E402
import scaling  # noqa: E402
import speed  # noqa: E402

SPEED_FIELDS = {
    "train_samples_per_s",
    "infer_samples_per_s",
    "compile_s",
    "peak_rss_mb",
    "device",
    "jax",
    "hidden_spikes_per_neuron",
}


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Path of the compiled C++ loop."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++ to compile the C++ loop")
    return native.build(str(tmp_path_factory.mktemp("native")))


def gradient(problem, dtype):
    """Gradient of the problem's mean loss by EventProp; and the outputs' times."""
    layers = [
        LIF(problem[name].shape[1], tau_mem=10e-3, tau_syn=5e-3, name=name)
        for name in ("hidden", "output")
    ]
    network = Network(layers)
    batch = problem["batch"]
    inputs = Spikes.from_times(jnp.array(problem["times"][:batch, :, None], dtype))
    labels = jnp.array(problem["labels"][:batch])

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def loss(params):
        out = network.apply({"params": params}, inputs).first()
        value = ttfs_cross_entropy(
            out, labels, tau=problem["tau"], t_silent=problem["t_silent"]
        )
        return value.mean(), out

    names = ("hidden", "output")
    params = {n: {"kernel": jnp.array(problem[n], dtype)} for n in names}
    grads, out = loss(params)
    return [np.asarray(grads[n]["kernel"]) for n in names], out


def test_the_cpp_loop_and_eventprop_have_one_gradient(program, tmp_path):
    problem = peers.make_problem(hidden=40, examples=8)
    problem["hidden"] -= 1.5  # So that neurons and outputs are silent, too.
    problem["output"] -= 0.7
    problem["output"][:, 2] -= 0.8
    problem["batch"] = 8
    problem = {
        name: value.astype(np.float64) if name == "times" else value
        for name, value in problem.items()
    }
    for precision, dtype, rtol in (
        ("double", jnp.float64, 1e-9),
        ("float", jnp.float32, 2e-3),
    ):
        printed, found = native.run(
            program, problem, str(tmp_path), precision=precision, rounds=0
        )
        assert 0 < printed["hidden_spikes"] < 39
        with jax.enable_x64(precision == "double"):
            expected, out = gradient(problem, dtype)
        assert 0 < jnp.isfinite(out).mean() < 1
        for one, other in zip(found, expected, strict=True):
            assert np.count_nonzero(other) > 30
            np.testing.assert_allclose(
                one, other, rtol=rtol, atol=rtol * np.abs(other).max()
            )
    # Central differences, inside the program.
    checked, _ = native.run(program, problem, str(tmp_path), rounds=0, check=True)
    assert checked["gradient_error"] < 1e-6


def test_a_runner_tells_facts_and_then_speeds(program, tmp_path, monkeypatch):
    monkeypatch.setenv("NATIVE_PROGRAM", program)
    given, found = str(tmp_path / "problem.npz"), str(tmp_path / "gradient.npz")
    np.savez(given, **peers.make_problem(hidden=8, examples=64))
    options = argparse.Namespace(core=0, seconds=0.001, timeout=60)
    running = peers.Running(peers.Peer("C++", "native"), given, found, options)
    for _ in range(2):
        measured = running.measure()
        assert measured["train_samples_per_s"] > 0
        assert measured["infer_samples_per_s"] > 0
    running.close()
    assert peers.distance(found, found) == 0


def test_a_runner_that_dies_is_an_error_that_says_how(tmp_path):
    def start(says):
        # Its input is closed first, so that asking it fails for certain.
        script = f"import os, sys\nos.close(0)\n{says}\n"
        script += "print('SomeError: over', flush=True)\nsys.exit(7)\n"
        (tmp_path / "dying.py").write_text(script)
        options = argparse.Namespace(core=0, seconds=1, timeout=60)
        return peers.Running(peers.Peer("", str(tmp_path / "dying")), "", "", options)

    why = r"dying: exit code 7: SomeError: over$"
    with pytest.raises(peers.Failed, match=why):
        start("print('Warning: before', file=sys.stderr)")
    running = start("print('{}', flush=True)")
    with pytest.raises(peers.Failed, match=why):
        running.measure()
    running.close()
    assert running.process.stdin.closed


def test_speed_counts_events_and_keeps_its_fields():
    options = speed.arguments().parse_args(
        [
            *("--inputs=3", "--events-per-input=2", "--hidden=4", "--outputs=2"),
            *("--batch=2", "--steps=2", "--rounds=1"),
        ]
    )
    result = speed.measure(options)
    assert result.keys() >= SPEED_FIELDS | vars(options).keys() - {
        "json",
        "rounds",
        "train_only",
    }
    assert result["train_samples_per_s"] > 0
    # Every pair of an event and a neuron that sees it: 3 x 2 x 4 + 4 x 2.
    assert speed.work(options) == 32


def test_exponents_are_slopes_and_the_figure_is_drawn(tmp_path, monkeypatch):
    curve = {n: 3e-6 * n**1.7 for n in (2, 30, 500)}
    assert scaling.exponent(curve) == pytest.approx(1.7)
    result = {"device": "here", "curves": {"a": curve, "b": curve}}
    result["exponents"] = {axis: scaling.exponent(curve) for axis in "ab"}
    assert "| a | 2, 30, 500 |" in scaling.table(result)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(SystemExit, match="pip install matplotlib"):
            scaling.plot(result, tmp_path / "none.png")
    pytest.importorskip("matplotlib")
    scaling.plot(result, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_scaling_measures_every_size(monkeypatch):
    asked = []

    def measure(options):
        asked.append((options.hidden, options.batch, options.train_only))
        return {
            "train_samples_per_s": 100 / options.hidden,
            "hidden_spikes_per_neuron": 1,
        }

    monkeypatch.setattr(speed, "measure", measure)
    curve = scaling.measure_axis({n: {"hidden": n} for n in (10, 20)}, {"batch": 7})
    assert asked == [(10, 7, True), (20, 7, True)]
    assert curve == {10: pytest.approx(0.1), 20: pytest.approx(0.2)}
    for axes, base in (
        (scaling.AXES, scaling.BASE),
        (scaling.QUICK_AXES, scaling.QUICK),
    ):
        names = set(base).union(
            *(c for points in axes.values() for c in points.values())
        )
        assert names <= vars(speed.arguments().parse_args([])).keys()


def test_what_cannot_run_is_a_row_that_says_why(tmp_path):
    options = argparse.Namespace(
        cache=str(tmp_path), python=["no-such-python"], core=0, seconds=1, timeout=60
    )
    future = peers.Peer("future", "ours", ("nothing",), (3, 99))
    with pytest.raises(peers.Failed, match=r"needs Python 3\.99"):
        peers.environment(future, options)
    with pytest.raises(peers.Failed, match="No such file"):
        peers.Running(peers.Peer("missing", "no_such_runner"), "", "", options)
    measured = {"train_samples_per_s": 20.0, "infer_samples_per_s": 60.0}
    rows = [
        {
            "title": "a",
            "runner": "ours",
            "rounds": [{k: 3 * v for k, v in measured.items()}],
        },
        {"title": "b", "runner": "b", "rounds": [measured]},
        {"title": "c", "runner": "c", "failed": "needs Python 3.99"},
    ]
    for row in rows[:2]:
        row |= {"gradient_error": 1e-6, "dropped": 0.0, "hidden_spikes": 9.0}
    rows[1]["dropped"] = 3.0
    lines = peers.table(rows, argparse.Namespace(rounds=1, seconds=1.0)).splitlines()
    assert (
        lines[3]
        == "| b | 20 (20 to 20) | 3 | 60 (60 to 60) | 3 | 1.0e-06 | 3.0 (25%) |"
    )
    assert "| c | needs Python 3.99 |" in lines[4]


def test_tables_replace_what_was_between_their_markers(tmp_path):
    path = tmp_path / "README.md"
    marks = "<!-- x.py writes from here -->", "<!-- x.py, to here -->"
    path.write_text(f"before\n{marks[0]}\nold\n{marks[1]}\nafter\n")
    report.write("x.py", "new", path)
    assert path.read_text() == f"before\n{marks[0]}\n\nnew\n\n{marks[1]}\nafter\n"
    readme = report.README.read_text()
    for script in ("peers.py", "scaling.py"):
        assert readme.count(f"<!-- {script} writes from here -->") == 1
        assert readme.count(f"<!-- {script}, to here -->") == 1
