"""The published YinYang set, bit by bit, and a cache that is safe or says why not.

The SHA-256 sums and class counts are those of the published set; labels are worked out
by hand from the distances to the dots.
"""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

import jaxsnn.datasets
from jaxsnn.datasets import DatasetError, load
from jaxsnn.datasets.yin_yang import SPLITS, classify, generate

RECORDS = "yin_yang-test.array_record-00000-of-00001"
INFO = "dataset_info.json"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A directory in which yin_yang is prepared; not to be changed."""
    data_dir = tmp_path_factory.mktemp("tfds")
    load("yin_yang", "train", data_dir)
    return data_dir


def sha256(array, dtype):
    return hashlib.sha256(array.astype(dtype).tobytes()).hexdigest()


def start(code, *args):
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, "-c", code, *args], text=True, **pipes)


# The data.


@pytest.mark.parametrize(
    ("split", "points", "labels", "counts"),
    [
        (
            "train",
            "b87ce72934ee640c760e80be415b3b55a79947f732e5d661d3f320561fb4aa00",
            "534d12acda4f9dbc7208a99d3646115a4aa7d74ca31d6d23f822079a568559b7",
            [1681, 1702, 1617],
        ),
        (
            "validation",
            "6a395d99dd913aa95f23bbc78341b8dab9c0c0af775d67f1e97c8b42be6b4e1c",
            "5a4c2f605814a620f514c1091f10441ce562cd81e902ce701b3cf94ae7576f7d",
            [316, 336, 348],
        ),
        (
            "test",
            "b03ad5fc113ab4bc6ad16289a616899ebf10c7e8478d596b8503d2ffb5b3d4de",
            "daa0f8f4e3b37b1ddec2afee22f09afb768f0e575f3f568e7469f1ebc6af73c1",
            [350, 316, 334],
        ),
    ],
)
def test_splits_are_the_published_ones(cache, split, points, labels, counts):
    data = load("yin_yang", split, cache)
    assert set(data) == {"features", "label"}
    assert data["features"].dtype == np.float64
    assert data["label"].dtype == np.int64
    assert sha256(data["features"][:, :2], "<f8") == points
    assert sha256(data["label"], "<i8") == labels
    assert np.bincount(data["label"]).tolist() == counts
    xy = data["features"][:, :2]
    np.testing.assert_array_equal(data["features"], np.hstack([xy, 1 - xy]))


def test_tfds_alone_reads_the_same_without_tensorflow(tmp_path):
    # No file_format given: the builder's own default must not need TensorFlow.
    builder = tfds.builder("yin_yang", data_dir=tmp_path)
    builder.download_and_prepare()
    features, labels = generate(*SPLITS["test"])
    source = tfds.data_source("yin_yang", split="test", data_dir=tmp_path)
    np.testing.assert_array_equal([e["features"] for e in source], features)
    np.testing.assert_array_equal([e["label"] for e in source], labels)
    assert builder.info.features["label"].names == ["yin", "yang", "dot"]


@pytest.mark.parametrize(
    ("x", "y", "label"),
    [
        (0.75, 0.5, 2),  # Centre of the right dot,
        (0.25, 0.5, 2),  # of the left one.
        (0.83, 0.5, 2),  # d_right 0.08.
        (0.50, 0.95, 1),  # Above both lobes: d_right 0.51,
        (0.50, 0.05, 0),  # below.
        (0.75, 0.70, 0),  # Lobe of the right dot, d_right 0.2: yin on both sides,
        (0.75, 0.30, 0),
        (0.75, 0.80, 1),  # until d_right 0.3.
        (0.25, 0.30, 1),  # Lobe of the left dot, d_left 0.2: yang on both sides,
        (0.25, 0.70, 1),
        (0.25, 0.20, 0),  # until d_left 0.3.
    ],
)
def test_labels_are_those_worked_out_by_hand(x, y, label):
    assert classify(x, y) == label


@pytest.mark.parametrize(
    ("x", "label"),
    [
        (0.875, 1),  # d_right is r_small: yang, no longer dot.
        (0.375, 0),  # d_left is r_small: neither dot nor yang.
        (0.500, 1),  # d_left is r_big / 2: still yang.
    ],
)
def test_edges_belong_where_the_rule_puts_them(x, label):
    # All distances are exact in binary.
    assert classify(x, 0.5, r_small=0.125, r_big=0.5) == label


def test_half_a_turn_swaps_yin_and_yang():
    swapped = np.array([1, 0, 2])
    features, labels = generate(500, seed=0, r_small=0.3, r_big=1.5)
    turned = [classify(3 - x, 3 - y, 0.3, 1.5) for x, y in features[:, :2]]
    np.testing.assert_array_equal(turned, swapped[labels])
    distance = np.linalg.norm(features[:, :2] - 1.5, axis=1)
    assert 1.4 < distance.max() <= 1.5


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"r_small": 0.0}, "r_small=0.0, r_big=0.5"),  # No dots: would draw for ever.
        ({"r_small": 0.25}, "r_small=0.25, r_big=0.5"),
        ({"r_big": float("nan")}, "r_small=0.1, r_big=nan"),
    ],
)
def test_generate_refuses_what_it_cannot_draw(kwargs, message):
    with pytest.raises(ValueError, match=message):
        generate(**{"size": 1, "seed": 0, **kwargs})


# The cache.


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("yin_yan", "train", "no tfds data set 'yin_yan'.*'yin_yang'"),
        ("yin_yang", "trian", "no split 'trian'.*train, validation, test"),
    ],
)
def test_unknown_names_are_refused(cache, name, split, message):
    with pytest.raises(ValueError, match=message):
        load(name, split, cache)


def test_processes_may_prepare_at_once(tmp_path):
    killed = tmp_path / "yin_yang" / "incomplete.ABC123_1.0.0"
    killed.mkdir(parents=True)
    (killed / "part").touch()
    code = """if True:
        import sys
        from jaxsnn.datasets import load
        print("ready", flush=True)
        input()
        print(load("yin_yang", "train", sys.argv[1])["label"].sum())
    """
    processes = [start(code, str(tmp_path)) for _ in range(3)]
    for process in processes:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    # 1702 of label 1 and 1617 of label 2.
    assert [p.communicate(timeout=60) for p in processes] == [("4936\n", "")] * 3
    assert [p.name for p in (tmp_path / "yin_yang").iterdir()] == ["1.0.0"]


def truncate(path):
    path.write_bytes(path.read_bytes()[:100_000])


def empty(path):
    path.write_bytes(b"")


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[70_000] ^= 1  # Inside a record: the first 64 kB are a header.
    path.write_bytes(data)


def shorten_a_split(path):
    path.write_text(path.read_text().replace('"1000"', '"999"'))


@pytest.mark.parametrize(
    ("damage", "file"),
    [
        (truncate, RECORDS),
        (empty, RECORDS),
        (flip_a_bit, RECORDS),
        (Path.unlink, RECORDS),
        (empty, INFO),
        (shorten_a_split, INFO),
        (Path.unlink, INFO),
    ],
)
def test_a_damaged_cache_says_what_to_delete(cache, tmp_path, damage, file):
    shutil.copytree(cache, tmp_path, dirs_exist_ok=True)
    damage(tmp_path / "yin_yang" / "1.0.0" / file)
    with pytest.raises(DatasetError, match="Delete this directory") as error:
        load("yin_yang", "test", tmp_path)
    assert f"data in {tmp_path / 'yin_yang'} cannot" in str(error.value)
    shutil.rmtree(tmp_path / "yin_yang")
    assert len(load("yin_yang", "test", tmp_path)["label"]) == 1000


def test_reading_a_prepared_set_writes_nothing(cache, tmp_path):
    shutil.copytree(cache / "yin_yang", tmp_path / "yin_yang")
    before = {p: p.stat().st_mtime_ns for p in [tmp_path, *tmp_path.rglob("*")]}
    load("yin_yang", "test", tmp_path)
    after = {p: p.stat().st_mtime_ns for p in [tmp_path, *tmp_path.rglob("*")]}
    assert before == after


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    # A file in the way: permissions would not stop a test that runs as root.
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match="Make the directory writable") as error:
        load("yin_yang", "test", tmp_path / "file" / "sub")
    assert f"yin_yang in {tmp_path / 'file' / 'sub'} (NotADirectory" in str(error.value)


def test_a_full_disk_is_an_error_that_leaves_nothing_behind(tmp_path):
    pytest.importorskip("resource", reason="needs POSIX limits")
    # A limit on the size of files fails writes as a full disk does.
    code = """if True:
        import resource, sys
        from jaxsnn.datasets import DatasetError, load
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            load("yin_yang", "test", sys.argv[1])
        except DatasetError as error:
            print(error)
    """
    out, err = start(code, str(tmp_path)).communicate(timeout=60)
    assert f"Cannot prepare yin_yang in {tmp_path}" in out, err
    assert "free some space" in out
    assert not list((tmp_path / "yin_yang").iterdir())


def test_the_environment_is_read_at_the_call(tmp_path, monkeypatch):
    # tfds itself reads it once, when it is imported.
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    load("yin_yang", "test")
    assert (tmp_path / "yin_yang" / "1.0.0" / INFO).exists()


def test_loading_is_quiet_and_needs_neither_jax_nor_tensorflow(tmp_path):
    # The parent package may import JAX; an empty one in its place does not.
    code = """if True:
        import sys, types
        parent = sys.modules["jaxsnn"] = types.ModuleType("jaxsnn")
        parent.__path__, parent.__file__ = [sys.argv[1]], sys.argv[1] + "/__init__.py"
        from absl import logging
        from jaxsnn.datasets import load
        logging.set_verbosity(logging.INFO)
        load("yin_yang", "test", sys.argv[2])
        unwanted = {"jax", "jaxlib", "flax", "tensorflow"}
        print(sorted(unwanted & set(sys.modules)))
        logging.info("still heard")
    """
    package = Path(jaxsnn.datasets.__file__).parents[1]
    out, err = start(code, str(package), str(tmp_path)).communicate(timeout=60)
    assert out == "[]\n", err
    assert len(err.splitlines()) == 1
    assert "still heard" in err
