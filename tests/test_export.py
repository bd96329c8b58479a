"""Models outside of training: as a file, as a folder, and on spikes as they arrive."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsnn
from configs import yinyang
from jaxsnn import Spikes, datasets
from jaxsnn.capacity import SlotsExceededError
from jaxsnn.coding import encode_latency
from jaxsnn.export import export, load
from jaxsnn.hardware import Replay
from jaxsnn.layers import LI, LIF, Network
from jaxsnn.streaming import Stream
from jaxsnn.training import TrainingError, create_train_state, export_run
from jaxsnn.training.checkpoint import Checkpoints
from jaxsnn.training.experiment import create_experiment

pytest.importorskip("flatbuffers")


def encode(values):
    return encode_latency(values, t_late=10e-3, bias=0.0)


NETWORK = Network(
    [LIF(6, tau_mem=12e-3, max_spikes=2, name="hidden"), LIF(3, name="output")]
)


@pytest.fixture(scope="module")
def variables():
    spikes = jax.eval_shape(encode, jnp.zeros((2, 4)))
    return NETWORK.lazy_init(jax.random.key(0), spikes)


def test_an_exported_layer_runs_without_flax_and_agrees_to_the_last_bit(
    tmp_path, variables
):
    layer, weights = NETWORK.layers[0], {"params": variables["params"]["hidden"]}

    def infer(values):
        outputs = layer.apply(weights, encode(values))
        return {"first": outputs.first(), "spikes": outputs}

    # Both ways in which lanes are laid out: more neurons than samples, and fewer.
    batches = [np.random.default_rng(n).random((n, 4), np.float32) for n in (2, 20)]
    export(tmp_path / "model.zip", infer, batches[0])
    np.savez(tmp_path / "in.npz", *batches)
    code = """
import sys
for name in ("flax", "orbax", "tensorflow_datasets"):
    sys.modules[name] = None  # What imports it fails.
import numpy as np
from jaxsnn.export import load
run = load(sys.argv[1] + "/model.zip")
assert {"cpu", "cuda"} <= set(run.about["platforms"])
found = {}
for name, batch in np.load(sys.argv[1] + "/in.npz").items():
    results = run(batch)
    found[name + "_first"] = results["first"]
    found[name + "_time"] = results["spikes"].time
    found[name + "_index"] = results["spikes"].index
np.savez(sys.argv[1] + "/out.npz", **found)
"""
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)
    found = np.load(tmp_path / "out.npz")
    for number, batch in enumerate(batches):
        own = jax.jit(infer)(batch)
        assert np.isfinite(own["first"]).mean() > 0.5
        for name, value in [
            ("first", own["first"]),
            ("time", own["spikes"].time),
            ("index", own["spikes"].index),
        ]:
            np.testing.assert_array_equal(found[f"arr_{number}_{name}"], value)


def test_inputs_and_results_keep_their_form(tmp_path):
    def swap(inputs):
        spikes, (a, b) = inputs["spikes"], inputs["pair"]
        return b + 1, {"later": Spikes.from_events(spikes.time + a, spikes.index, 2)}

    spikes = Spikes.from_times(jnp.array([[[1e-3], [jnp.inf]]]))
    inputs = {"spikes": spikes, "pair": [np.float32([[1e-3]]), np.int32([[1, 2]])]}
    export(tmp_path / "f.zip", swap, inputs, platforms=["cpu"])
    run = load(tmp_path / "f.zip")
    number, others = run(inputs)
    np.testing.assert_array_equal(number, [[2, 3]])
    assert others["later"].size == 2
    np.testing.assert_allclose(others["later"].time, [[2e-3, np.inf]], rtol=1e-6)
    np.testing.assert_array_equal(others["later"].index, [[0, -1]])
    with pytest.raises(ValueError, match=r"Spikes of 3 sources.*expected.*of 2"):
        run({**inputs, "spikes": Spikes.from_times(jnp.ones((1, 3, 1)))})
    with pytest.raises(ValueError, match=r"shape \(1, 3\), expected \(batch, 2\)"):
        run({**inputs, "pair": (inputs["pair"][0], np.int32([[1, 2, 3]]))})
    with pytest.raises(ValueError, match="float64, expected int32"):
        run({**inputs, "pair": (inputs["pair"][0], np.float64([[1, 2]]))})


def test_what_cannot_be_exported_is_said(tmp_path):
    def host(values):
        return jax.pure_callback(np.sin, values, values)

    values, path = jnp.ones((2, 3)), tmp_path / "f.zip"
    with pytest.raises(ValueError, match="calls back to Python"):
        export(path, host, values)
    with pytest.raises(ValueError, match="no axis"):
        export(path, jnp.sin, jnp.float32(1.0))
    with pytest.raises(TypeError, match="inputs have a str"):
        export(path, jnp.sin, "values")
    with pytest.raises(TypeError, match="results have a NoneType"):
        export(path, lambda values: None, values)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_damaged_is_not_read(tmp_path):
    path = tmp_path / "f.zip"
    export(path, jnp.sin, jnp.ones((2, 3)), platforms=["cuda"])
    run = load(path)
    with pytest.raises(ValueError, match="for cuda, not for cpu"):
        run(jnp.ones((1, 3)))
    content = path.read_bytes()
    program = run.exported.mlir_module_serialized
    refused = 0
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        try:
            found = load(path)
        except ValueError:
            refused += 1
        else:  # A date, or bits that fill a byte up.
            assert found.about == run.about
            assert found.exported.mlir_module_serialized == program
    assert refused > 0.8 * len(content)
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"f\.zip is no file of jaxsnn.export"):
        load(path)
    path.write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"no file of jaxsnn\.export"):
        load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("about.json", json.dumps({"format": 99}))
        archive.writestr("program.bin", b"")
    with pytest.raises(ValueError, match="format 99"):
        load(path)


def run_of(workdir, **changes):
    """A workdir with a checkpoint of an untrained network, as training writes it."""
    config = yinyang.get_config("smoke")
    config.model.hidden = (6,)
    config.update(changes)
    parts = create_experiment(config)
    tx, _ = parts.optimizer(1)
    state = create_train_state(parts, tx, jax.random.key(1), jnp.zeros((1, 4)))
    if config.ensemble > 1:
        params = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), state.params)
        state = state.replace(params=params)
    checkpoints = Checkpoints(Path(workdir))
    checkpoints.save(state, {"step": 0, "epoch": 1}, config)
    checkpoints.wait()
    checkpoints.close()
    return parts, state.params


FEATURES = np.random.default_rng(0).random((5, 4), np.float32)


def test_a_run_becomes_a_callable_a_folder_and_a_file(tmp_path, monkeypatch):
    parts, params = run_of(tmp_path / "run")
    model = jaxsnn.load(tmp_path / "run")
    assert model.num_features == 4
    label, times = model(FEATURES)
    outputs = parts.model.apply({"params": params}, parts.encode(FEATURES))
    np.testing.assert_allclose(times, outputs.first(), rtol=1e-6)
    np.testing.assert_array_equal(label, np.argmin(times, axis=1))
    np.testing.assert_array_equal(model(parts.encode(FEATURES)).reading, times)
    with pytest.raises(ValueError, match=r"\(5, 3\), expected \[batch, 4\]"):
        model(FEATURES[:, :3])

    jaxsnn.save(tmp_path / "model", model)
    again = jaxsnn.load(tmp_path / "model")
    assert again.config.to_json() == model.config.to_json()
    jax.tree.map(np.testing.assert_array_equal, dict(again.params), params)

    split = {"features": np.zeros((3, 4)), "label": np.zeros(3)}
    monkeypatch.setattr(datasets, "load", lambda *_, **__: split)
    run = jaxsnn.load(export_run(model.config, tmp_path / "run"))
    found = run(FEATURES)
    np.testing.assert_array_equal(found["reading"], times)
    np.testing.assert_array_equal(found["label"], label)

    damaged = bytearray((tmp_path / "model/params.npz").read_bytes())
    damaged[200] ^= 1
    (tmp_path / "model/params.npz").write_bytes(damaged)
    with pytest.raises(TrainingError, match=r"model in .* is damaged"):
        jaxsnn.load(tmp_path / "model")


def test_members_devices_and_what_is_missing(tmp_path):
    _, params = run_of(tmp_path, ensemble=2, seed=5, hardware="simulated_chip")
    with pytest.raises(TrainingError, match="seeds 5 to 6"):
        jaxsnn.load(tmp_path)
    model = jaxsnn.load(tmp_path, seed=6, hardware="")
    kernel = params["output"]["kernel"]
    np.testing.assert_array_equal(model.params["output"]["kernel"], kernel[1])
    assert model.network.backend is None
    assert jaxsnn.load(tmp_path, seed=5).network.backend is not None
    with pytest.raises(TrainingError, match="neither checkpoints"):
        jaxsnn.load(tmp_path / "nowhere")
    (tmp_path / "empty/checkpoints").mkdir(parents=True)
    with pytest.raises(TrainingError, match="no checkpoint in"):
        jaxsnn.load(tmp_path / "empty")


@pytest.fixture(scope="module")
def compiled(variables):
    return Stream(NETWORK, variables, size=5, slots=5)


@pytest.fixture
def stream(compiled):
    compiled.reset()
    return compiled


def samples(variables):
    """Samples whose last input comes after the decision, and the decisions."""
    values = np.random.default_rng(3).random((4, 4), np.float32)
    times = np.array(encode(values).by_source)
    times[:, 0] = 35e-3
    spikes = Spikes.from_times(jnp.asarray(times))
    outputs = jax.jit(NETWORK.apply)(variables, spikes)
    first = np.asarray(outputs.time[:, 0])
    assert (first < 35e-3).all()
    return times[..., 0], outputs.index[:, 0], first


def test_a_stream_decides_as_a_run_on_all_spikes(stream, variables):
    times, labels, first = samples(variables)
    for row, label, time in zip(times, labels, first, strict=True):
        stream.reset()
        spikes = Spikes.from_times(jnp.asarray(row)[:, None])
        found = stream.run(spikes)
        assert found.label == label
        np.testing.assert_allclose(found.time, time, rtol=1e-5)
        assert found.events == (row <= time).sum()

        stream.reset()  # All at once.
        whole = stream.push(row, range(5), until=np.inf)
        assert (whole.label, whole.events) == (found.label, found.events)
        np.testing.assert_allclose(whole.time, time, rtol=1e-5)

        stream.reset()  # In steps of a clock, in which several spikes arrive, or none.
        decided = None
        for k in range(100):
            here = np.flatnonzero((row >= k * 0.7e-3) & (row < (k + 1) * 0.7e-3))
            decided = stream.push(row[here], here, until=(k + 1) * 0.7e-3)
            if decided:
                break
        assert decided.label == label
        assert decided.events == found.events
        np.testing.assert_allclose(decided.time, time, rtol=1e-5)
        assert k * 0.7e-3 <= decided.time < (k + 1) * 0.7e-3
        assert stream.decision == decided == stream.push([1.0], [0], until=2.0)


def test_a_decision_does_not_look_at_what_comes_later(stream):
    row = np.float32([35e-3, 1e-3, 5e-3, 2e-3, 0.0])
    time = stream.run(Spikes.from_times(jnp.asarray(row)[:, None])).time
    assert time < 5e-3
    found = []
    for later in (0.01e-3, 2e-3, np.inf):  # After the decision, of all sources.
        stream.reset()
        changed = np.stack([row, np.full(5, time + later)], axis=1)
        found.append(stream.run(Spikes.from_times(jnp.asarray(changed, jnp.float32))))
    assert len({(decision.label, decision.events) for decision in found}) == 1
    np.testing.assert_allclose([decision.time for decision in found], time, rtol=1e-6)


def test_a_stream_without_a_decision_and_its_errors(stream, variables):
    assert stream.run(Spikes.from_times(jnp.full((5, 1), jnp.inf)), 0.1) is None
    with pytest.raises(ValueError, match=r"until is 0.05\d*, but the stream is at 0.1"):
        stream.push([], [], until=0.05)
    stream.reset()
    with pytest.raises(ValueError, match="6 spikes in one call, but slots is 5"):
        stream.push([1e-3] * 6, [0, 1, 2, 3, 4, 0], until=2e-3)
    with pytest.raises(ValueError, match="not within this call"):
        stream.push([2e-3], [0], until=2e-3)
    # Also where float32 cannot tell the times apart.
    with pytest.raises(ValueError, match="not within this call"):
        stream.push([2e-3 - 1e-12], [0], until=2e-3)
    with pytest.raises(ValueError, match=r"\(1,\) and sources \(2,\)"):
        stream.push([1e-3], [0, 1], until=2e-3)
    with pytest.raises(ValueError, match="batch shape"):
        stream.run(Spikes.from_times(jnp.ones((2, 5, 1))))
    with pytest.raises(TypeError, match="not LIF"):
        Stream(LIF(3), variables, size=5)
    with pytest.raises(ValueError, match="LI out cannot be continued"):
        Stream(Network([LI(3, name="out")]), variables, size=5)
    with pytest.raises(ValueError, match="LIF out cannot be continued"):
        Stream(Network([LIF(3, t_ref=1e-3, name="out")]), variables, size=5)
    with pytest.raises(ValueError, match="backend"):
        Stream(NETWORK.clone(backend=Replay([])), variables, size=5)
    few = Network([LIF(6, slots=1, name="hidden")])
    stream = Stream(few, variables, size=5)
    with pytest.raises(SlotsExceededError, match="hidden"):
        stream.push([1e-3] * 5, range(5), until=0.1)
