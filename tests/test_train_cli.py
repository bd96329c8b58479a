"""`train.py` as a program: flags, exit codes, messages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import test_training

ROOT = Path(__file__).parent.parent


def start(*arguments, cwd, program="train.py", **environment):
    return subprocess.run(
        [sys.executable, str(ROOT / program), *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config.learning_rat=1"],
            "error: unknown field in --config: 'learning_rat' "
            'Did you mean "learning_rate"',
        ),
        (["--config.modell.v_th=1"], 'Did you mean "model"'),
        (["--config.model.tau=1"], "unknown field in --config: 'tau'"),
        (["--config.seed=x"], "flag --config.seed=x: invalid literal for int()"),
        (["--config=none.py"], "No such file or directory: 'none.py'"),
        (["yinyang.py"], "Unexpected argument 'yinyang.py'"),
    ],
)
def test_bad_flag_is_explained(tmp_path, arguments, message):
    done = start(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_workdir_is_derived_from_the_config(tmp_path):
    config = f"--config={ROOT}/configs/yinyang.py:smoke"
    done = start(config, "--mode=eval", cwd=tmp_path)
    assert done.returncode == 1
    assert f"error: There is no checkpoint in {tmp_path}/runs/yinyang-smoke." in (
        done.stderr
    )
    assert "Traceback" not in done.stderr


def test_yinyang_is_trained_in_software_then_on_the_simulated_chip(tmp_path):
    command = [
        f"--config={ROOT}/configs/yinyang_chip.py:smoke",
        f"--config.data_dir={tmp_path}/data",
        "--config.model.hidden=(20,)",
    ]
    output = []
    for arguments in [
        ["--config.hardware=", "--workdir=software"],
        ["--mode=eval", "--workdir=software", "--config.chip.chip_seed=1"],
        ["--config.init_from=software", "--config.num_epochs=1"],
    ]:
        done = start(*command, *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        output.append(done.stdout)
    software = test_training.rows(tmp_path / "software")
    assert [row["epoch"] for row in software] == [1, 2, 2]
    assert software[1]["validation/accuracy"] > 0.6  # One class alone: 0.35.
    assert not any("mismatch" in name for name in software[1])

    assert "trained on hardware '', evaluated on 'simulated_chip'" in output[1]
    for name in ("events/hidden_unexplained", "mismatch/hidden_time_std"):
        assert name in output[1]

    assert "starting from the parameters of step 200 (epoch 2)" in output[2]
    first, last = test_training.rows(tmp_path / "runs" / "yinyang_chip-smoke")
    # Of the first epoch, in which a network that knew nothing would be below.
    assert first["train/accuracy"] > software[0]["train/accuracy"]
    assert first["validation/mismatch/hidden_time_std"] > 1e-5
    assert "test/mismatch/output_time_mean" in last


def test_fault_of_a_device_is_one_line(tmp_path):
    command = [
        f"--config={ROOT}/configs/yinyang.py",
        "--config.hardware=bench",
        "--config.num_epochs=2",
        "--config.batch_size=16",
        "--config.log_every_epochs=2",
        "--config.until=60e-3",
    ]
    program = {"cwd": tmp_path, "program": "tests/training_dummy.py"}
    done = start(*command, **program, FAULT="5")
    assert done.returncode == 1
    assert done.stderr == (
        "error: bench, run 5: OSError: burnt out. The state after epoch 1 is saved; the"
        " same command continues.\n"
    )
    done = start(*command, **program)
    assert (done.returncode, done.stderr) == (0, "")
    assert "continuing from step 4 (epoch 1)" in done.stdout
    assert "done: test accuracy" in done.stdout
