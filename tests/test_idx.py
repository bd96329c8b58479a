"""MNIST-like sets from files: the format as published, damage, and what is missing."""

import gzip
import struct

import numpy as np
import pytest
import tensorflow_datasets as tfds

from jaxsnn.datasets import DatasetError, load
from jaxsnn.datasets.idx import FILES, FashionMnistIdx, read_idx


def idx(array):
    """The bytes of an IDX file, after the published description of the format."""
    head = b"\0\0\x08" + bytes([array.ndim])
    return head + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def random_set(seed=0, train=5003, test=4):
    rng = np.random.default_rng(seed)
    return {
        split: (
            rng.integers(0, 256, (size, 28, 28), np.uint8),
            rng.integers(0, 10, size, np.uint8),
        )
        for split, size in (("train", train), ("test", test))
    }


def write(data_dir, data, compress=True):
    folder = data_dir / "downloads" / "manual" / "fashion_mnist"
    folder.mkdir(parents=True)
    for split, names in FILES.items():
        for name, array in zip(names, data[split], strict=True):
            raw = idx(array)
            path = folder / (f"{name}.gz" if compress else name)
            path.write_bytes(gzip.compress(raw) if compress else raw)
    return folder


@pytest.mark.parametrize("compress", [True, False])
def test_the_files_become_three_splits_in_their_order(tmp_path, compress):
    data = random_set()
    write(tmp_path, data, compress)
    found = {
        split: load("fashion_mnist_idx", split, tmp_path)
        for split in ("train", "validation", "test")
    }
    pixels, labels = data["train"]
    assert len(found["train"]["label"]) == 3  # The last 5000 are for validation.
    for name, whole in (("features", pixels.reshape(-1, 784)), ("label", labels)):
        parts = [found[split][name] for split in ("train", "validation")]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert found["test"]["features"].dtype == np.uint8
    np.testing.assert_array_equal(found["test"]["label"], data["test"][1])
    np.testing.assert_array_equal(
        found["test"]["features"], data["test"][0].reshape(-1, 784)
    )


def test_downloads_are_checked_by_the_sums_of_tfds():
    assert FashionMnistIdx.url_infos == tfds.builder_cls("fashion_mnist").url_infos


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[:-9], "is damaged"),
        (lambda raw: gzip.compress(b"PK" + gzip.decompress(raw)), "is not an IDX file"),
        (
            lambda raw: gzip.compress(gzip.decompress(raw)[:-1]),
            r"announces \(4, 28, 28\) and holds 3135 values",
        ),
    ],
)
def test_damaged_files_are_named(tmp_path, damage, message):
    folder = write(tmp_path, random_set(train=4))
    path = folder / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"t10k-images-idx3-ubyte\.gz {message}"):
        read_idx(path)


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    data = random_set(train=4)
    write(tmp_path, data | {"test": (data["test"][0], data["train"][1][:3])})
    with pytest.raises(ValueError, match="the test files hold images of shape"):
        load("fashion_mnist_idx", "test", tmp_path)


def test_without_files_and_network_the_message_says_where_to_put_them(
    tmp_path, monkeypatch
):
    def offline(self, urls):
        raise ConnectionError("no network")

    monkeypatch.setattr(tfds.download.DownloadManager, "download", offline)
    monkeypatch.setattr(FashionMnistIdx, "folders", ())
    with pytest.raises(DatasetError, match=r"train-labels-idx1-ubyte\.gz.*manual"):
        load("fashion_mnist_idx", "test", tmp_path)
