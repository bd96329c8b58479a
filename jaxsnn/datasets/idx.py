"""MNIST and Fashion-MNIST, from files in the IDX format or from the network.

References: Y. LeCun et al., "Gradient-based learning applied to document recognition",
Proc. IEEE 86 (1998); H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST" (2017),
https://arxiv.org/abs/1708.07747.
"""

import gzip
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
VALIDATION = 5000  # Of the training examples, the last ones.


def read_idx(path: Path) -> np.ndarray:
    """Reads an IDX file of bytes, compressed with gzip if its name ends in .gz.

    The format is two zero bytes, the type (8 for bytes), the number of axes, the length
    of each as four bytes, most significant first, and the values.

    Raises:
      ValueError: the file is not IDX, not of bytes, or not whole.
    """
    raw = path.read_bytes()
    if path.suffix == ".gz":
        try:
            raw = gzip.decompress(raw)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} is damaged ({error}); fetch it again.") from error
    if raw[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not an IDX file of bytes: it begins {raw[:4]!r}.")
    start = 4 + 4 * raw[3]
    shape = tuple(np.frombuffer(raw[4:start], ">u4").tolist())
    if len(raw) - start != math.prod(shape):
        raise ValueError(
            f"{path} announces {shape} and holds {len(raw) - start} values; fetch it"
            " again."
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


class _Idx(tfds.core.GeneratorBasedBuilder):
    """What the data sets of this file share."""

    VERSION = tfds.core.Version("1.0.0")
    skip_registration = True
    original: ClassVar[str]  # The tfds data set whose files and checksums these are.
    folders: ClassVar[tuple[str, ...]] = ()  # Where systems install the files.
    names: ClassVar[tuple[str, ...]]
    homepage: ClassVar[str]

    def __init__(self, *, file_format: str = "array_record", **kwargs: Any):
        """Stores array_record by default, as tfds' own default needs TensorFlow."""
        super().__init__(file_format=file_format, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            homepage=self.homepage,
            features=tfds.features.FeaturesDict(
                {
                    "features": tfds.features.Tensor(shape=(784,), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(names=self.names),
                }
            ),
            supervised_keys=("features", "label"),
            disable_shuffling=True,  # The order on disk is that of the files.
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        data = {}
        for split, names in FILES.items():
            pixels, labels = (read_idx(path) for path in self._find(names, dl_manager))
            if len(pixels) != len(labels) or pixels[0].size != 784:
                raise ValueError(
                    f"the {split} files hold images of shape {pixels.shape} and"
                    f" {len(labels)} labels, expected as many images of 28 x 28."
                )
            data[split] = pixels.reshape(-1, 784), labels
        pixels, labels = data["train"]
        cut = len(labels) - VALIDATION
        return {
            "train": self._generate_examples(pixels[:cut], labels[:cut]),
            "validation": self._generate_examples(pixels[cut:], labels[cut:]),
            "test": self._generate_examples(*data["test"]),
        }

    def _generate_examples(self, pixels: np.ndarray, labels: np.ndarray) -> Iterator:
        for i, (features, label) in enumerate(zip(pixels, labels, strict=True)):
            yield i, {"features": features, "label": int(label)}

    def _find(self, names: tuple[str, ...], dl_manager: Any) -> list[Path]:
        """The files of a split: those that are there, or else from the network."""
        own = self.data_path.parents[1] / "downloads" / "manual" / self.original
        for folder in (Path(own), *map(Path, self.folders)):
            for suffix in (".gz", ""):
                paths = [folder / f"{name}{suffix}" for name in names]
                if all(path.exists() for path in paths):
                    return paths
        known = tfds.builder_cls(self.original).url_infos
        urls = {Path(url).stem: url for url in known}
        try:
            return [Path(p) for p in dl_manager.download([urls[n] for n in names])]
        except Exception as error:  # Of many types, those of the network's library.
            raise OSError(
                f"cannot download {self.original} ({type(error).__name__}); put its"
                f" files, {', '.join(f'{n}.gz' for n in names)}, into {own}"
                + "".join(f" or {folder}" for folder in self.folders)
            ) from error

    @tfds.core.utils.classproperty
    @classmethod
    def url_infos(cls) -> Any:
        """What tfds checks downloads by."""
        return tfds.builder_cls(cls.original).url_infos


class MnistIdx(_Idx):
    """MNIST as 784 bytes, brightness in 0 to 255, and a label, `mnist_idx`.

    55000 train, 5000 validation (the last of the published training set) and 10000 test
    examples, in their published order. The four files are taken from
    ``downloads/manual/mnist`` in the data directory if they are there, else downloaded.
    """

    skip_registration = False
    original = "mnist"
    names = tuple("0123456789")
    homepage = "http://yann.lecun.com/exdb/mnist/"


class FashionMnistIdx(_Idx):
    """Fashion-MNIST as 784 bytes, brightness in 0 to 255, and a label.

    The data set `fashion_mnist_idx`: 55000 train, 5000 validation (the last of the
    published training set) and 10000 test examples, in their published order. The four
    files are taken from ``downloads/manual/fashion_mnist`` in the data directory, or
    from where Debian's package `dataset-fashion-mnist` puts them, else downloaded.
    """

    skip_registration = False
    original = "fashion_mnist"
    folders = ("/usr/share/datasets/fashion-mnist",)
    names = (
        "t-shirt",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    )
    homepage = "https://github.com/zalandoresearch/fashion-mnist"
