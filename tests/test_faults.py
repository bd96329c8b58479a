"""What ends a run, or damages it, and that nothing is lost or changed by it.

`-m slow` has the long form; the command in `docs/faults.md` writes the table there.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import json
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import faulty_training
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorflow_datasets as tfds
from faulty_training import ROOT, Kill, Run
from test_idx import idx, random_set
from test_training import (  # noqa: F401 - some are fixtures
    assert_identical,
    files,
    finished,
    make_config,
    rows,
    stand_in,
    tensorboard_values,
)

from jaxsnn import training
from jaxsnn.datasets import DatasetError, load
from jaxsnn.datasets.idx import FILES, FashionMnistIdx
from jaxsnn.training import checkpoint, writers
from jaxsnn.training.checkpoint import Checkpoints

TERM, KILL = signal.SIGTERM, signal.SIGKILL
AFFORDABLE = Checkpoints.affordable  # Before a fixture replaces it.


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Lets `Run` start processes quickly."""
    cache = tmp_path_factory.mktemp("cache")
    faulty_training.start_server(cache)
    return cache


# Killed


class AtRandom(NamedTuple):
    """A signal from outside, so long after something was printed."""

    signum: int
    text: str
    seconds: float


BEGINNING, TRAINING = "", "compiled in"

# Kind, and how it comes about.
SHORT = {
    "stand-in": [
        ("kill -9 while a checkpoint is written", Kill("saving", nth=3)),
        (
            "kill -9 just before a checkpoint is complete",
            Kill("os.rename", "orbax-checkpoint-tmp", 2),
        ),
        ("kill -9 between a line of the log and its checkpoint", Kill("logged")),
        ("SIGTERM in evaluation", Kill("evaluating", nth=1, signum=TERM)),
        ("kill -9 while an old checkpoint is deleted", Kill("os.remove", "_METADATA")),
        (
            "kill -9 between the lines of the two logs",
            Kill("event written", nth=4),  # The first is of the start.
        ),
        ("kill -9 at any moment", AtRandom(KILL, TRAINING, 0.1)),
    ],
    "chip": [
        ("kill -9 while the data set is prepared", Kill("preparing", nth=9000)),
        ("kill -9 while a checkpoint is written", Kill("saving", nth=6)),
    ],
}


def long_form(seed, count):
    """The same at moments drawn at random."""
    rng = np.random.default_rng(seed)

    def either():
        return KILL if rng.random() < 0.5 else TERM

    def name(signum):
        return "SIGTERM" if signum == TERM else "kill -9"

    def draw(kind):
        signum, nth = either(), int(rng.integers(1, 5))
        match kind:
            case 0:
                at = AtRandom(signum, BEGINNING, float(rng.uniform(0, 2)))
                return f"{name(signum)} at any moment", at
            case 1:
                at = AtRandom(signum, TRAINING, float(rng.uniform(0, 0.4)))
                return f"{name(signum)} at any moment", at
            case 2:
                kill = Kill("saving", nth=nth, signum=signum)
                return f"{name(signum)} while a checkpoint is written", kill
            case 3:
                kill = Kill("os.rename", "orbax-checkpoint-tmp", nth)
                return "kill -9 just before a checkpoint is complete", kill
            case 4:
                kill = Kill("os.remove", "_METADATA", nth)
                return "kill -9 while an old checkpoint is deleted", kill
            case 5:
                kill = Kill("evaluating", nth=1 + nth // 3, signum=signum)
                return f"{name(signum)} in evaluation", kill
            case 6:
                kill = Kill("event written", nth=2 + nth // 3)
                return "kill -9 between the lines of the two logs", kill
            case 7:
                kill = Kill("restored")
                return "kill -9 while a run is continued", kill
            case 8:
                kill = Kill("logged", nth=1 + nth // 3, signum=signum)
                return (
                    f"{name(signum)} between a line of the log and its checkpoint",
                    kill,
                )
            case 9:
                kill = Kill("os.rename", "metrics.jsonl.tmp")
                return "kill -9 while a run is continued", kill
            case _:
                event = ("open", "os.mkdir", "os.rename", "os.scandir")
                kill = Kill(str(rng.choice(event)), "checkpoints", 7 * nth)
                return "kill -9 at any access to a checkpoint", kill

    # Each kind as often as any other.
    return [draw(kind % 11) for kind in rng.permutation(count)]


@pytest.fixture(scope="module")
def reference(server, tmp_path_factory):
    """Uninterrupted runs: the arguments, and the workdir."""

    @functools.cache
    def of(config):
        directory = tmp_path_factory.mktemp(config)
        arguments = [f"--config.data_dir={directory / 'data'}"]
        run = Run(directory / "run", config, *arguments)
        assert run.wait() == 0, run.output
        return directory / "run"

    return of


def unclocked(values):
    """Without what the wall clock says."""
    clocks = ("samples_per_s", "run_seconds")
    return {k: v for k, v in values.items() if not k.endswith(clocks)}


def final_state(workdir):
    """The arrays of the newest checkpoint, as Orbax alone reads them."""
    steps = [int(path.name) for path in (workdir / "checkpoints").iterdir()]
    with ocp.StandardCheckpointer() as reader:
        return max(steps), reader.restore(
            workdir / "checkpoints" / str(max(steps)) / "state"
        )


def assert_same_run(workdir, expected):
    """Same state, same logs, no step missing and none twice."""
    step, state = final_state(workdir)
    expected_step, expected_state = final_state(expected)
    assert step == expected_step
    assert_identical(state, expected_state)
    assert jax.tree.structure(state) == jax.tree.structure(expected_state)

    logged = rows(workdir)
    per_epoch = step // 30
    epochs = [4, 8, 12, 16, 20, 24, 28, 30, 30]  # The last one is the test.
    assert [row["epoch"] for row in logged] == epochs
    assert [row["step"] for row in logged] == [epoch * per_epoch for epoch in epochs]
    assert list(map(unclocked, logged)) == list(map(unclocked, rows(expected)))

    shown, expected_values = map(tensorboard_values, (workdir, expected))
    assert [step for step, _ in shown["train/loss"]] == [
        epoch * per_epoch for epoch in epochs[:-1]
    ]
    assert unclocked(shown) == unclocked(expected_values)


def survive(workdir, config, expected, faults, data_dir):
    """Lets one fault after the other end a run, then lets it finish.

    Returns:
      The kinds of those that happened: a run may be over before.
    """
    happened = []
    arguments = [f"--config.data_dir={data_dir}"]
    for kind, fault in faults:
        if isinstance(fault, Kill):
            run = Run(workdir, config, *arguments, kill=fault)
            code = run.wait()
        else:
            run = Run(workdir, config, *arguments)
            code = run.kill(*fault)
        assert "Traceback" not in run.output
        assert "Error" not in run.output
        if code == 0:
            continue
        # Before there is a handler SIGTERM just ends a process.
        codes = {KILL: {-KILL}, TERM: {128 + TERM, -TERM}}
        assert code in codes[fault.signum], (fault, run.output)
        happened.append(kind)
    run = Run(workdir, config, *arguments)
    assert run.wait() == 0, run.output
    assert "Traceback" not in run.output
    assert_same_run(workdir, expected)
    return happened


@pytest.mark.parametrize("config", list(SHORT))
def test_killed_run_ends_as_if_it_had_not_been(reference, tmp_path, config, tried):
    expected = reference(config)
    # Killed while it is prepared, the data set is the run's own.
    happened = survive(
        tmp_path / "run", config, expected, SHORT[config], tmp_path / "data"
    )
    assert happened == [kind for kind, _ in SHORT[config]]
    for kind in happened:
        tried(kind, 1, "ends bit-identical", of=config)


LONG = {"stand-in": 3, "device": 2, "software": 2, "chip": 3}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "seed"),
    [(config, seed) for config, n in LONG.items() for seed in range(n)],
)
def test_killed_run_ends_as_if_it_had_not_been_long(
    reference, tmp_path, config, seed, tried
):
    expected = reference(config)
    faults = long_form([seed, *config.encode()], 11)
    if config in ("software", "chip"):
        nth = int(np.random.default_rng(seed).integers(1, 15_000))
        kill = Kill("preparing", nth=nth)
        faults.insert(0, ("kill -9 while the data set is prepared", kill))
    happened = survive(tmp_path / "run", config, expected, faults, tmp_path / "data")
    assert len(happened) >= 5, "too many runs were over before their kill"
    for kind in happened:
        tried(kind, 1, "ends bit-identical", of=config)


# Damaged


def truncate(step):
    for path in (step / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(step):
    shutil.rmtree(step)
    step.mkdir()


def flip_array(step, places=(1 / 4,)):
    """Flips bits where Orbax does not notice: in the values of an array over 1 KiB."""
    for path in (step / "state").glob("ocdbt.process_*/d/*"):
        content = bytearray(path.read_bytes())
        if len(content) > 1024:
            for place in places:
                content[int(len(content) * place)] ^= 1
            path.write_bytes(content)


def flip_config(step):
    path = step / "config" / "metadata"
    changed = path.read_bytes().replace(b'"seed": 0', b'"seed": 1')
    assert changed != path.read_bytes()
    path.write_bytes(changed)


def unseal(step):
    (step / "_CHECKPOINT_METADATA").unlink()
    shutil.rmtree(step / "progress")


# Threads of Orbax may complain of a checkpoint after it was given up.
ORBAX_COMPLAINS = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@ORBAX_COMPLAINS
@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (truncate, "newest checkpoint: files cut in half"),
        (empty, "newest checkpoint: empty directory"),
        (unseal, "newest checkpoint: files missing"),
        (flip_array, "newest checkpoint: a bit of an array flipped"),
        (flip_config, "newest checkpoint: a bit of the config flipped"),
    ],
)
def test_newest_whole_checkpoint_is_used(
    finished,  # noqa: F811
    tmp_path,
    caplog,
    damage,
    kind,
    tried,
):
    workdir, expected = finished
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    damage(tmp_path / "checkpoints" / "20")
    result = training.evaluate(make_config(), tmp_path)
    assert (tmp_path / "checkpoints" / "20").exists(), "evaluation moved a file"
    state = training.train_and_evaluate(make_config(), tmp_path)
    assert f"{tmp_path / 'checkpoints' / '20'} is damaged" in caplog.text
    assert_identical(state, expected)
    assert rows(tmp_path) == rows(workdir)
    assert result["loss"] != rows(workdir)[-1]["test/loss"]
    (aside,) = (tmp_path / "damaged").iterdir()
    assert aside.name.startswith("20-")
    tried(kind, 1, "named in a warning, the one before it used; ends bit-identical")


def damage_at_random(rng, step):
    """Damages one file of a checkpoint in one way."""
    paths = sorted(path for path in step.rglob("*") if path.is_file())
    path = paths[rng.integers(len(paths))]
    content = bytearray(path.read_bytes())
    match rng.integers(4):
        case 0 if content:
            content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        case 1 if content:
            del content[rng.integers(len(content)) :]
        case 2 if content:
            place = rng.integers(len(content))
            content[place : place + 64] = rng.bytes(64)
        case _:
            path.unlink()
            return path
    path.write_bytes(content)
    return path


@ORBAX_COMPLAINS
@pytest.mark.parametrize(
    "tries", [4, pytest.param(60, marks=pytest.mark.slow, id="60")]
)
def test_no_damage_goes_unseen(finished, tmp_path, caplog, tries, tried):  # noqa: F811
    workdir, newest = finished
    shutil.copytree(workdir / "checkpoints" / "16", tmp_path / "checkpoints" / "16")

    def read():
        checkpoints = Checkpoints(tmp_path, read_only=True)
        found = checkpoints.restore(newest, make_config(), num_examples=70)
        checkpoints.close()
        return found.state

    before = read()
    rng = np.random.default_rng(tries)
    harmless = 0
    for _ in range(tries):
        step = tmp_path / "checkpoints" / "20"
        shutil.copytree(workdir / "checkpoints" / "20", step)
        damage_at_random(rng, step)
        caplog.clear()
        state = read()
        # Either nothing of what counts was hit, or the one before is used.
        seen = f"{step} is damaged" in caplog.text
        assert_identical(state, before if seen else newest)
        harmless += not seen
        shutil.rmtree(step)
    kind = "newest checkpoint: a random file flipped, cut, overwritten or deleted"
    result = "either seen, and the one before it used, or nothing read has changed"
    tried(kind, tries - harmless, result, of="seen")
    tried(kind, harmless, result, of="not")


@ORBAX_COMPLAINS
@pytest.mark.parametrize("run", [training.train_and_evaluate, training.evaluate])
def test_nothing_is_overwritten_when_all_are_damaged(
    finished,  # noqa: F811
    tmp_path,
    run,
    tried,
):
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    for step in (tmp_path / "checkpoints").iterdir():
        truncate(step)
    before = files(tmp_path)
    with pytest.raises(training.TrainingError, match=r"damaged \(steps 12, 16, 20\)"):
        run(make_config(), tmp_path)
    assert files(tmp_path) == before
    tried("all checkpoints damaged", 1, "an error that names them; no file changed")


@ORBAX_COMPLAINS
def test_damaged_parameters_are_not_taken(finished, tmp_path, caplog, tried):  # noqa: F811
    shutil.copytree(finished[0], tmp_path / "damaged")
    # Everywhere: of which array a place is differs from run to run, and one of the
    # optimizer's does not matter here.
    places = np.arange(1, 64) / 64
    flip_array(tmp_path / "damaged" / "checkpoints" / "20", places)
    state = training.train_and_evaluate(
        make_config(init_from=str(tmp_path / "damaged"), learning_rate=0.0), tmp_path
    )
    assert "checkpoints/20 is damaged" in caplog.text
    shutil.rmtree(tmp_path / "damaged" / "checkpoints" / "20")
    whole = Checkpoints(tmp_path / "damaged", read_only=True)
    expected = whole.restore(state, make_config(), num_examples=70).state
    whole.close()
    assert_identical(state.params, expected.params)
    tried(
        "`init_from` a run with a damaged checkpoint",
        1,
        "named in a warning, the one before it used",
    )


def test_temporary_directory_of_a_killed_save_is_removed(finished, tmp_path):  # noqa: F811
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    left = tmp_path / "checkpoints" / "22.orbax-checkpoint-tmp"
    left.mkdir()
    training.train_and_evaluate(make_config(num_epochs=6), tmp_path)
    assert not left.exists()
    assert (tmp_path / "checkpoints" / "24").exists()


# Another run


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 7}, "seed: 0 in the checkpoint, 7 now"),
        ({"model.hidden": (6,)}, r"model.hidden: \[100\] in the checkpoint, \[6\] now"),
        ({"batch_size": 8}, "batch_size: 16 in the checkpoint, 8 now"),
        ({"learning_rate": 1.0}, "learning_rate: 0.005 in the checkpoint, 1.0 now"),
        ({"dataset": "x"}, "dataset: 'yin_yang' in the checkpoint, 'x' now"),
    ],
)
@pytest.mark.parametrize("run", [training.train_and_evaluate, training.evaluate])
def test_other_run_is_refused(finished, run, changes, message, tried):  # noqa: F811
    workdir, _ = finished
    before = files(workdir)
    with pytest.raises(training.TrainingError, match=message):
        run(make_config(**changes), workdir)
    assert files(workdir) == before
    tried(
        "directory of another model or run",
        1,
        "refused, the differences named; no file changed",
    )


# The disk


def in_a_namespace(*command):
    """Runs a program that may mount disks of its own, where the system allows that."""
    enter = ["unshare", "--user", "--map-root-user", "--mount"]
    try:
        subprocess.run([*enter, "true"], check=True, capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("needs user namespaces, of Linux")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [*enter, sys.executable, *command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_full_and_read_only_disks(reference, server, tmp_path, tried):
    done = in_a_namespace(str(ROOT / "tests/small_disk.py"), str(tmp_path), str(server))
    assert done.returncode == 0, done.stderr
    full, start, read_only, evaluation, space = json.loads(done.stdout)
    for _, _, output, names in (full, start, read_only, evaluation, space):
        assert "Traceback" not in output
        assert not any("tmp" in name for name in names), "a part of a save was left"

    _, code, output, saved = full
    assert code == 1
    assert "error: Cannot save a checkpoint in" in output
    assert "No space left on device" in output
    assert len(saved) == 3
    for name, code, output, names in (start, read_only):
        assert code == 1, name
        assert "error: Cannot write to" in output
        assert names == saved
    assert "No space left" in start[2]
    assert "Read-only file system" in read_only[2]
    _, code, output, names = evaluation
    assert (code, names) == (0, saved)
    assert "accuracy" in output.splitlines()[-1]

    _, code, output, _ = space
    assert code == 0
    assert f"continuing from step {max(map(int, saved))}" in output
    assert_same_run(tmp_path / "run", reference("stand-in"))
    tried(
        "disk full during a save",
        1,
        "stops with a message, the checkpoints before are whole and nothing else is "
        "left; with space again it ends bit-identical",
    )
    tried("disk full at the start", 1, "stops with a message, nothing changed")
    tried("read-only directory", 1, "training stops with a message, evaluation works")


def test_save_that_fails(reference, tmp_path, tried):
    """As on a full disk, for systems that have no namespaces."""
    pytest.importorskip("resource", reason="needs POSIX limits")
    run = Run(tmp_path / "run", "stand-in", LARGEST_FILE="8000")
    assert run.wait() == 1
    assert "error: Cannot save a checkpoint in" in run.output
    assert "File too large" in run.output
    assert survive(tmp_path / "run", "stand-in", reference("stand-in"), [], "") == []
    tried("file larger than the system allows", 1, "stops with a message; as above")


def test_workdir_that_cannot_be_made_is_named(tmp_path, tried):
    (tmp_path / "file").touch()
    with pytest.raises(
        training.TrainingError, match=f"write to {tmp_path}/file/run: Not"
    ):
        training.train_and_evaluate(make_config(), tmp_path / "file" / "run")
    tried("directory that cannot be made", 1, "stops with a message")


def test_full_disk_is_named(tmp_path, tried):
    writer = writers.MetricWriter(tmp_path, 0)
    writer._file.close()
    writer._file = Path("/dev/full").open("w")  # noqa: SIM115 - closed by the writer.
    with pytest.raises(training.TrainingError, match=f"{tmp_path}: No space left"):
        writer.write_scalars(1, {"train/loss": 1.0})
    writer.close()
    tried("disk full while metrics are written", 1, "stops with a message")


@pytest.mark.parametrize("late", [False, True], ids=["at once", "in its threads"])
def test_failed_save_is_named(tmp_path, monkeypatch, late):
    def fail(self, *args, **kwargs):
        raise ValueError("RESOURCE_EXHAUSTED: no space left\nand much more")

    name = "check_for_errors" if late else "save"
    monkeypatch.setattr(checkpoint.ocp.CheckpointManager, name, fail)
    # Which looks for errors, whether or not it is time for a save.
    monkeypatch.setattr(Checkpoints, "affordable", AFFORDABLE)
    with pytest.raises(
        training.TrainingError, match=f"in {tmp_path}/checkpoints: .* no space left. "
    ):
        training.train_and_evaluate(make_config(), tmp_path)


def test_saving_keeps_to_its_share(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(checkpoint.time, "perf_counter", lambda: now[0])
    checkpoints = Checkpoints(tmp_path)
    assert AFFORDABLE(checkpoints), "the first one"
    checkpoints._began, checkpoints._cost = 100.0, math.inf
    now[0] = 1e9
    assert not AFFORDABLE(checkpoints), "one is under way"
    now[0] = 102.0
    checkpoints._ended()  # It took 2 s, which is 3 % of 66.7 s.
    now[0] = 166.6
    assert not AFFORDABLE(checkpoints)
    now[0] = 166.7
    assert AFFORDABLE(checkpoints)
    checkpoints.close()


# Nothing that is read can run code, and nothing secret is written


class Payload:
    """A pickle that makes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


UNPICKLING = Kill("pickle.find_class")  # Which any pickle that runs code has to do.


def test_nothing_is_unpickled(reference, tmp_path, tried):
    shutil.copytree(reference("stand-in"), tmp_path / "run")
    ran = tmp_path / "ran"
    pickle.loads(pickle.dumps(Payload(ran)))
    assert ran.exists(), "the payload does nothing"
    ran.unlink()
    newest = tmp_path / "run" / "checkpoints" / "120"
    planted = [path for path in newest.rglob("*") if path.is_file()]
    assert len(planted) > 10
    for path in planted:
        path.write_bytes(pickle.dumps(Payload(ran)))
    for name in ("state.pkl", "checkpoint", "default.pickle"):
        (newest / name).write_bytes(pickle.dumps(Payload(ran)))
    (tmp_path / "run" / "config.json").write_bytes(pickle.dumps(Payload(ran)))
    for arguments in (["--mode=eval"], ["--config.num_epochs=31"]):
        run = Run(tmp_path / "run", "stand-in", *arguments, kill=UNPICKLING)
        assert run.wait() == 0, run.output
        assert f"checkpoint {newest} is damaged" in run.output
        assert not ran.exists()
    tried("pickles planted in a checkpoint", 1, "not executed; as damage")


def test_pickles_of_numpy_are_refused_everywhere():
    # By default since 1.16.3; ruff looks after other readers of pickles.
    sources = [ROOT / "train.py", *(ROOT / "jaxsnn").rglob("*.py")]
    assert len(sources) > 20
    assert not [p for p in sources if "allow_pickle=True" in p.read_text()]


SECRETS = {
    "EBRAINS_TOKEN": "hunter2-a",
    "HXCOMM_CREDENTIALS": "hunter2-b",
    "QUIGGELDY_USER_PASSWORD": "hunter2-c",
    "SLURM_JWT": "hunter2-d",
    "AWS_SECRET_ACCESS_KEY": "hunter2-e",
    "WANDB_API_KEY": "hunter2-f",
}


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("config", "fails"), [("stand-in", {}), ("device", {"FAULT": "5"})]
)
def test_no_secret_is_written_or_printed(tmp_path, config, fails, tried):
    run = Run(tmp_path / "run", config, **SECRETS, **fails)
    assert run.wait() == bool(fails), run.output
    written = files(tmp_path)  # With what was printed, in a file beside the directory.
    assert {Path("run.log"), Path("run/config.json")} <= written.keys()
    assert ("run 5" in run.output) == bool(fails)
    for path, content in written.items():
        assert b"hunter2" not in content, path
    tried("tokens in the environment", 1, "in no file and not in the output")


def test_download_that_was_tampered_with_is_refused(tmp_path, monkeypatch, tried):
    served, data = tmp_path / "served", random_set()
    served.mkdir()
    handler = functools.partial(Quiet, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        known = {}
        for split, names in FILES.items():
            for name, array in zip(names, data[split], strict=True):
                content = gzip.compress(idx(array), 1)
                (served / f"{name}.gz").write_bytes(content)
                url = f"http://127.0.0.1:{server.server_port}/{name}.gz"
                known[url] = tfds.download.checksums.UrlInfo(
                    len(content), hashlib.sha256(content).hexdigest(), f"{name}.gz"
                )
        monkeypatch.setattr(tfds.builder_cls("fashion_mnist"), "url_infos", known)
        monkeypatch.setattr(FashionMnistIdx, "folders", ())
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert len(load("fashion_mnist_idx", "test", tmp_path / "whole")["label"]) == 4
        # Still whole, by its own format: one label is another.
        labels = data["test"][1] ^ np.uint8([1, 0, 0, 0])
        (served / f"{FILES['test'][1]}.gz").write_bytes(gzip.compress(idx(labels), 1))
        with pytest.raises(DatasetError, match="cannot download"):
            load("fashion_mnist_idx", "test", tmp_path / "changed")
        server.shutdown()
    tried("download with another content", 1, "refused by its checksum")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass
