"""Several processes train together, on the loopback address; one of them fails."""

from __future__ import annotations

import signal
import socket

import faulty_training
import jax
import numpy as np
import pytest
from faulty_training import Kill, Run
from test_training import (
    assert_identical,
    make_config,
    rows,
    stand_in,  # noqa: F401 - a fixture
    tensorboard_steps,
)

from jaxsnn import training
from jaxsnn.training import devices

CHANGES = {"num_epochs": 6, "log_every_epochs": 2, "learning_rate": 1e-2}


@pytest.fixture(scope="module", autouse=True)
def server(tmp_path_factory):
    faulty_training.start_server(tmp_path_factory.mktemp("cache"))


def start(workdir, *different, kills=(None, None)):
    """Starts a process for each of `kills`; to each its `different` argument."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    processes = []
    for number, kill in enumerate(kills):
        (logs := workdir.parent / f"{workdir.name}-{number}").mkdir(exist_ok=True)
        arguments = [f"--config.{name}={value}" for name, value in CHANGES.items()]
        arguments += [
            f"--config.distributed.coordinator={address}",
            f"--config.distributed.num_processes={len(kills)}",
            f"--config.distributed.process_id={number}",
            "--config.distributed.timeout=20",
            *different[number : number + 1],
        ]
        processes.append(
            Run(
                workdir,
                "stand-in",
                *arguments,
                kill=kill,
                logs=logs,
                JAX_COORDINATOR_BIND_ADDRESS=address,
            )
        )
    return processes


def wait(processes):
    """Exit codes, and what was printed."""
    codes = [process.wait(100) for process in processes]
    return codes, [process.output for process in processes]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two processes that nothing ended."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    codes, output = wait(start(workdir))
    assert codes == [0, 0], output
    return workdir, output


def final_state(workdir):
    return training.train_and_evaluate(make_config(**CHANGES), workdir)


def test_two_processes_train_as_one_does(finished, tmp_path):
    workdir, _ = finished
    one = training.train_and_evaluate(make_config(**CHANGES), tmp_path)
    two = final_state(workdir)  # Finished, and read by one process.
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
    pairs = list(zip(rows(tmp_path), rows(workdir), strict=True))
    assert [row["step"] for row, _ in pairs] == [8, 16, 24, 24]
    for expected, row in pairs:
        assert row == pytest.approx(expected, rel=1e-5)


def test_one_process_writes_for_all(finished):
    workdir, (first, second) = finished
    assert tensorboard_steps(workdir, "train/loss") == [8, 16, 24]
    assert len(list(workdir.glob("events.out.tfevents.*"))) == 1
    assert "2 of them share a batch" in first
    assert "done: test accuracy" in first
    assert "process 1 of 2" in second
    assert "epoch" not in second


def test_lost_process_ends_the_run_which_continues_bit_by_bit(
    finished, tmp_path, tried
):
    workdir = tmp_path / "run"
    killed = [None, Kill("saving", nth=3)]
    codes, (message, _) = wait(start(workdir, kills=killed))
    assert codes == [1, -signal.SIGKILL]
    assert "error: Process 0 of 2: what all of them do together failed, most" in message
    assert "Traceback" not in message
    assert len(message.split("error: Process 0")) == 2
    # A notice of preemption to one of them, in the midst of an epoch.
    told = [None, Kill("evaluating", signum=signal.SIGTERM)]
    codes, (message, _) = wait(start(workdir, kills=told))
    assert codes == [128 + signal.SIGTERM] * 2
    assert "continuing from step 8 (epoch 2)" in message
    assert "SIGTERM: stopped at step 16 (epoch 4)" in message
    codes, (message, _) = wait(start(workdir))
    assert codes == [0, 0], message
    assert "continuing from step 16 (epoch 4)" in message
    assert_identical(final_state(workdir), final_state(finished[0]))
    assert rows(workdir) == rows(finished[0])
    assert tensorboard_steps(workdir, "train/loss") == [8, 16, 24]
    message = "the other one ends with a message; continued, it ends bit-identical"
    tried("kill -9 of one of two processes", 1, message)
    message = "both save the same step and stop; continued, it ends bit-identical"
    tried("SIGTERM to one of two processes", 1, message)


def test_processes_with_different_configs_are_refused(tmp_path):
    codes, output = wait(start(tmp_path / "run", "--config.seed=0", "--config.seed=1"))
    assert codes == [1, 1]
    assert any(
        "error: The processes do not have the same config: [1] differ" in text
        for text in output
    ), output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_processes": None}, "num_processes is missing; only coordinator='auto'"),
        ({"process_id": None}, "process_id is missing; only coordinator='auto'"),
        ({"coordinator": "here"}, "'here': .* is not of the form host:port"),
        ({}, "before any JAX calls"),
        ({"coordinator": "auto"}, "before any JAX calls"),
    ],
)
def test_addresses_that_cannot_be_are_refused(changes, message):
    jax.devices()
    config = make_config()
    config.distributed.update(coordinator="127.0.0.1:1", num_processes=2, process_id=0)
    config.distributed.update(changes)
    with (
        pytest.raises(training.TrainingError, match=message),
        devices.connected(config),
    ):
        pass
