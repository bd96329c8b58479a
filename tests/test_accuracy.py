"""The accuracy table: its runs, what it takes from them, and ensembles of seeds."""

import functools
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import yinyang
from jaxsnn.training import create_train_state, figures
from jaxsnn.training.experiment import create_experiment
from jaxsnn.training.steps import evaluate_split, train_epoch

BENCHMARKS = pathlib.Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import accuracy  # noqa: E402


def test_every_row_has_a_config_and_a_source():
    for row in [*accuracy.ROWS.values(), *accuracy.ABLATION.values()]:
        config = accuracy.config_of(row, 3)
        assert config.num_epochs <= 300
        for source in filter(None, row.source.split(", ")):
            assert source in accuracy.SOURCES
    assert accuracy.config_of(accuracy.ROWS["eventprop"], 3, 2).num_epochs == 2


def test_an_ensemble_of_seeds_is_its_members():
    config = yinyang.get_config()
    config.model.hidden = (8,)
    parts = create_experiment(config)
    tx, _ = parts.optimizer(4)
    rng = np.random.default_rng(0)
    data = {
        "features": jnp.array(rng.random((40, 4), np.float32)),
        "label": jnp.array(rng.integers(3, size=40)),
    }

    def train(key):
        init_key, train_key, eval_key = jax.random.split(key, 3)
        state = create_train_state(parts, tx, init_key, data["features"][:1])
        state, metrics, steps = train_epoch(state, data, train_key, batch_size=10)
        found = evaluate_split(state, data, eval_key, batch_size=10)
        return state.params, metrics.loss.compute(), steps.loss, found.loss.compute()

    keys = jax.vmap(jax.random.key)(jnp.arange(3))
    together = jax.jit(jax.vmap(train))(keys)
    single = jax.jit(train)
    for number, key in enumerate(keys):
        member = jax.tree.map(lambda x, n=number: x[n], together)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
        jax.tree.map(close, member, single(key))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A directory with two runs of two epochs, and the command that made them."""
    directory = tmp_path_factory.mktemp("accuracy")
    command = [sys.executable, str(BENCHMARKS / "accuracy.py"), "--rows"]
    command += ["eventprop_30", "--seeds", "2", "--epochs", "2", "--processes", "2"]
    command += ["--directory", str(directory / "runs")]
    command += ["--report", str(directory / "table.md")]
    subprocess.run(command, check=True)
    return directory, command


def read(directory, run):
    path = directory / "runs" / "eventprop_30" / str(run) / "result.json"
    return path, json.loads(path.read_text())


def test_the_table_is_what_the_runs_found(trained):
    directory, _ = trained
    results = [read(directory, run)[1] for run in range(2)]
    tests = []
    for run, result in enumerate(results):
        lines = (read(directory, run)[0].parent / "metrics.jsonl").read_text()
        rows = [json.loads(line) for line in lines.splitlines()]
        assert result["validation"] == [row["validation/accuracy"] for row in rows[:2]]
        assert result["accuracy"] == rows[-1]["test/accuracy"]
        spikes = [rows[-1][f"test/events/{x}_spikes"] for x in ("hidden", "output")]
        assert result["spikes"] == sum(spikes) > 3
        assert result["lost"] == 0
        found = list(accuracy._validations(read(directory, run)[0].parent))
        times, values = zip(*found, strict=True)
        np.testing.assert_allclose(values, result["validation"], rtol=1e-6)
        assert 0 < times[1] - times[0] < result["seconds"]
        assert result["seconds_to"] == {"0.95": None, "0.98": None}
        tests.append(100 * result["accuracy"])
    assert results[0]["accuracy"] != results[1]["accuracy"]
    assert "map" not in results[1]
    assert set(results[0]["map"]) <= set("-012")
    assert len(results[0]["map"]) == figures.MAP_SIZE**2
    table = (directory / "table.md").read_text()
    mean, half = sum(tests) / 2, abs(tests[0] - tests[1]) / 2
    assert f"**{mean:.2f}** ± {2**0.5 * half:.2f} (2)" in table
    assert "0 spikes were lost or late" in table
    pytest.importorskip("matplotlib")
    assert f"![{accuracy.CAPTION}](table.png)" in table
    assert (directory / "table.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_done_is_not_done_again(trained):
    directory, command = trained
    (one, _), (other, result) = read(directory, 0), read(directory, 1)
    before = one.stat().st_mtime_ns
    other.unlink()  # As if stopped after the last epoch.
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert one.stat().st_mtime_ns == before
    assert "1/1" in done.stdout
    again = read(directory, 1)[1]
    assert again.pop("seconds", None) is None  # Not that of the training.
    assert again == {k: v for k, v in result.items() if not k.startswith("seconds")}


def test_a_run_of_another_config_is_no_result(tmp_path):
    config = yinyang.get_config()
    assert accuracy.result_of(config, tmp_path) is None
    (tmp_path / "config.json").write_text(config.to_json())
    (tmp_path / "result.json").write_text('{"accuracy": 1.0}')
    assert accuracy.result_of(config, tmp_path) == {"accuracy": 1.0}
    config.data_dir = "elsewhere"
    config.model.unlock()
    config.model.future = None  # A field that came later, and is off.
    config.chip.time_scale = 1.0  # There is no chip.
    assert accuracy.result_of(config, tmp_path) == {"accuracy": 1.0}
    for change in (
        {"seed": 1},
        {"loss.bump": 0.0},
        {"model.future": 3},
        {"hardware": "simulated_chip"},
    ):
        other = config.copy_and_resolve_references()
        other.update_from_flattened_dict(change)
        assert accuracy.result_of(other, tmp_path) is None
        assert not accuracy.is_of(other, tmp_path)


def test_a_run_that_fails_is_named(tmp_path, capsys):
    # The configs are fine; a directory in which nothing can be written is not.
    blocked = tmp_path / "runs" / "eventprop" / "0"
    blocked.mkdir(parents=True)
    (blocked / "metrics.jsonl").mkdir()
    options = ["--rows", "eventprop", "--seeds", "1", "--epochs", "1"]
    with pytest.raises(SystemExit, match=r"1 runs failed: eventprop 0, see .*log\.txt"):
        accuracy.main([*options, "--directory", str(tmp_path / "runs")])
    assert "eventprop 0: failed: " in capsys.readouterr().out


def test_a_median_over_runs_that_never_got_there():
    assert accuracy._seconds([3.0, None, 1.0]) == "3 s"
    assert accuracy._seconds([3.0, None, None]) == ""
    assert accuracy._seconds([None]) == ""
