"""Several devices share a batch: the same numbers as one device.

JAX takes its number of devices from its start, so this file is also a program, which
one subprocess runs with four virtual CPU devices; the tests read what it prints.
"""

from __future__ import annotations

import functools
import json
import os
import re
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training_dummy

from jaxsnn import datasets, training
from jaxsnn.training import devices, experiment, hardware, loop, steps

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
KINDS = (
    "yinyang_recurrent",
    "yinyang_30_delays",
    "yinyang_mot",
    "yinyang_grid",
    "yinyang_chip",
    "yinyang_chip_mot",
)


def make_config(name="yinyang", **changes):
    config = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]()
    config.batch_size = 16
    config.model.hidden = (10,)
    config.update_from_flattened_dict(changes)
    return config


def curve(number):
    """Loss of each of 100 steps of neurons, and what the evaluation finds after."""
    setup = loop._set_up(config := make_config(**{"mesh.data": number}))
    epoch = loop._compile(setup, setup.state, config)
    state, _, found = epoch(setup.state, setup.train, setup.train_key)
    validated = loop._evaluator(config, setup)(state, setup.train)
    places = {len(x.sharding.device_set) for x in jax.tree.leaves(state)}
    return {
        "losses": found.loss.tolist(),
        "validation": [validated.loss.compute().item()],
        "devices": sorted(places),
        "compiled": epoch.as_text(),
    }


def refusal(**changes):
    with pytest.raises(training.TrainingError) as error:
        loop._set_up(make_config(**changes))
    return str(error.value)


def noise_of_parts():
    """What each of four devices draws for its part of a batch from one key."""
    state = training_dummy.make_state(
        apply_fn=lambda variables, x, rngs, mutable: (
            jax.random.uniform(rngs["hardware"], x.shape),
            {"counted": {"runs": jnp.ones(())}},
        ),
        loss_fn=None,
        predict_fn=None,
    )
    mesh = devices.create_mesh(make_config(**{"mesh.data": -1}))
    shared = devices.share_batches(state, mesh)
    drawn, updates = jax.jit(
        lambda x: shared.apply_fn(
            {}, x, mutable=[], rngs={"hardware": jax.random.key(0)}
        )
    )(jnp.zeros(8))
    return {"drawn": drawn.tolist(), "runs": updates["counted"]["runs"].tolist()}


def main():
    datasets.load = training_dummy.load
    training_dummy.SIZES["train"] = 1600
    found = {
        "one": curve(1),
        "four": curve(4),
        "noise": noise_of_parts(),
        "refused": {
            "batch": refusal(batch_size=50, **{"mesh.data": 4}),
            "small": refusal(batch_size=3, **{"mesh.data": -1}),
            "many": refusal(**{"mesh.data": 5}),
            "members": refusal(**{"mesh.data": 4, "ensemble": 6}),
            "nobody": refusal(ensemble=0),
            "none": refusal(**{"mesh.data": 0}),
        },
    }
    hardware.HARDWARE["bench"] = lambda config: training_dummy.Bench(scale=5.0)
    changes = {"hardware": "bench", "until": 60e-3, "mesh.data": 4}
    found["refused"]["bench"] = refusal(**changes)
    changes = {"hardware": "bench", "until": 60e-3, "ensemble": 2}
    found["refused"]["benches"] = refusal(**changes)

    # Compiling takes long; whether the parts fit together shows before.
    for name in KINDS:
        setup = loop._set_up(make_config(name, **{"mesh.data": 4}))
        run = functools.partial(steps.train_epoch, batch_size=16)
        state, *_ = jax.eval_shape(run, setup.state, setup.train, setup.train_key)
        jax.tree.map(lambda x, y: None, state, setup.state)
        run = functools.partial(steps.evaluate_split, batch_size=16)
        jax.eval_shape(run, setup.state, setup.train, setup.train_key)
    found["kinds"] = KINDS

    experiment.create_experiment = training_dummy.create_experiment
    training_dummy.SIZES["train"] = 64
    with tempfile.TemporaryDirectory() as work:
        found["runs"] = runs(Path(work))
    json.dump(found, sys.stdout)


def runs(work):
    """Two seeds alone, four on four devices, and one that changes devices."""

    def run(name, **changes):
        config = make_config(checkpoint_every_epochs=1, **changes)
        state = training.train_and_evaluate(config, work / name)
        rows = (work / name / "metrics.jsonl").read_text().splitlines()
        params = [np.asarray(x).tolist() for x in jax.tree.leaves(state.params)]
        return {"params": params, "row": json.loads(rows[-1])}

    found = {seed: run(seed, num_epochs=3, seed=int(seed)) for seed in ("3", "6")}
    run("moved", num_epochs=1, seed=3, **{"mesh.data": 4})
    found["moved"] = run("moved", num_epochs=3, seed=3)
    for num_epochs in (1, 3):
        changes = {"ensemble": 4, "seed": 3, "mesh.data": 4, "num_epochs": num_epochs}
        found["together"] = run("together", **changes)
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    flags = os.environ.get("XLA_FLAGS", "")
    done = subprocess.run(
        [sys.executable, __file__],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            # The same small program is compiled again and again.
            "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count=4",
        },
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_four_devices_train_as_one_does(found):
    one, four = found["one"], found["four"]
    assert len(one["losses"]) == 100
    np.testing.assert_allclose(four["losses"], one["losses"], rtol=1e-5)
    np.testing.assert_allclose(four["validation"], one["validation"], rtol=1e-5)
    assert (one["devices"], four["devices"]) == ([1], [4])


def test_devices_wait_for_each_other_once_per_step(found):
    # Not within the loops over events, where they would wait for each event: those are
    # `while` in the body of the one over steps.
    assert "all-reduce(" not in found["one"]["compiled"]
    text = found["four"]["compiled"]
    assert "all-reduce(" in text
    for operation in ("all-gather(", "all-to-all(", "collective-permute("):
        assert operation not in text
    waits = [line for line in text.splitlines() if " all-reduce(" in line]
    assert not [line for line in waits if "while/body/closed_call/while" in line]


def test_each_device_draws_noise_of_its_own(found):
    drawn = np.array(found["noise"]["drawn"]).reshape(4, 2)
    assert len(np.unique(drawn)) == 8
    assert found["noise"]["runs"] == 1  # What belongs to no sample is there once.


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (
            "batch",
            "batch_size is 50, which 4 devices cannot share equally; the nearest"
            " that they can is 48 or 52.",
        ),
        ("small", "batch_size is 3, which 4 devices .* can is 4."),
        ("many", "mesh.data is 5, but this process has 4 cpu devices: choose 1 to 4"),
        ("none", "mesh.data is 0, but this process has 4 cpu devices"),
        ("bench", "Bench is one device, which runs one whole batch after"),
        ("benches", "Bench is one device, which runs one whole batch after"),
        ("members", "config.ensemble is 6, which 4 devices .* can is 4 or 8."),
        ("nobody", "config.ensemble must be 1 or more, and is 0."),
    ],
)
def test_what_cannot_be_shared_is_refused(found, case, message):
    assert re.search(message, found["refused"][case]), found["refused"]


def test_all_kinds_of_models_can_be_shared(found):
    assert tuple(found["kinds"]) == KINDS


def test_run_continues_on_another_number_of_devices(found, tried):
    one, moved = found["runs"]["3"], found["runs"]["moved"]
    for x, y in zip(one["params"], moved["params"], strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)
    tried("continued on another number of devices", 1, "equal to rounding")


def test_seeds_train_together_as_each_does_alone(found):
    together = found["runs"]["together"]
    for seed in (3, 6):
        alone = found["runs"][str(seed)]
        pairs = zip(together["params"], alone["params"], strict=True)
        for members, params in pairs:
            np.testing.assert_allclose(members[seed - 3], params, rtol=1e-4, atol=1e-6)
        assert together["row"][f"test/accuracy/seed_{seed}"] == pytest.approx(
            alone["row"]["test/accuracy"]
        )
    row = together["row"]
    each = [row[f"test/accuracy/seed_{seed}"] for seed in (3, 4, 5, 6)]
    assert row["test/accuracy"] == pytest.approx(np.mean(each))
    assert len(set(each)) > 1


def test_scaling_on_paper_is_that_of_its_formula(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import scaling_devices as scaling

    assert scaling.line({10: 23.0, 20: 43.0, 40: 83.0}) == pytest.approx((3.0, 2.0))
    place = {"reductions": 5, "reduce_gradient": 5.0, "reduce_number": 0.5}
    assert scaling.communication(place) == 7.0
    network = {"fixed": 3.0, "sample": 2.0, "batch": 50}
    # 3 + 100 alone; 3 + 100 / 10 + 7 on ten, half of which is the examples'.
    assert scaling.pays_up_to(network, 7.0) == 10.0
    assert scaling.speedup(network, 10, 7.0) == pytest.approx(103 / 20)
    assert scaling.speedup({**network, "fixed": 0.0}, 4, 0.0) == 4.0


if __name__ == "__main__":
    main()
