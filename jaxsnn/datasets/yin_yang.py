r"""YinYang: three classes in the plane that a linear classifier cannot separate.

A disc of radius :math:`R` (`r_big`) around :math:`(R, R)` is cut into yin (0), yang (1)
and two dots (2) of radius :math:`r` (`r_small`). With the distances :math:`d_r, d_l` of
:math:`(x, y)` to the dots' centres :math:`(3R/2, R)` and :math:`(R/2, R)`, the label is

- 2 (dot) if :math:`d_r < r` or :math:`d_l < r`, otherwise
- 1 (yang) if :math:`d_r \le r`, or :math:`r < d_l \le R/2`, or :math:`y > R` and
  :math:`d_r > R/2`, otherwise
- 0 (yin).

Reference: L. Kriener, J. Göltz, M. A. Petrovici, "The Yin-Yang dataset" (2021),
https://arxiv.org/abs/2102.08211.
"""

from collections.abc import Iterator
from math import hypot
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

CLASS_NAMES = ("yin", "yang", "dot")

# (size, seed) of each split of the published set.
SPLITS = {"train": (5000, 42), "validation": (1000, 41), "test": (1000, 40)}


def classify(x: float, y: float, r_small: float = 0.1, r_big: float = 0.5) -> int:
    """Returns the label of a point of the disc, by the rule of the module docstring."""
    d_right = hypot(x - 1.5 * r_big, y - r_big)
    d_left = hypot(x - 0.5 * r_big, y - r_big)
    if d_right < r_small or d_left < r_small:
        return 2
    yang = (
        d_right <= r_small
        or r_small < d_left <= 0.5 * r_big
        or (y > r_big and d_right > 0.5 * r_big)
    )
    return int(yang)


def generate(
    size: int, seed: int, r_small: float = 0.1, r_big: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Draws `size` samples, the classes equally likely.

    For each sample a goal class is drawn, then points of the square [0, 2 r_big)^2
    until one lies in the disc and in that class. Equal arguments give equal bits; the
    published splits are `generate(size, seed)` with the pairs of `SPLITS`.

    Args:
      size: Number of samples.
      seed: Seed of NumPy's legacy generator.
      r_small: Radius of the two dots.
      r_big: Radius of the disc.

    Returns:
      Features `(x, y, 1 - x, 1 - y)`, float64 `[size, 4]`, and labels, int64 `[size]`.

    Raises:
      ValueError: A class has no points, or there is nothing to draw.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}.")
    if not 0 < r_small < r_big / 2:
        raise ValueError(
            "r_small must lie above 0 and below r_big / 2, else a class is empty; got "
            f"r_small={r_small}, r_big={r_big}."
        )
    # The published set is defined by the stream of NumPy's legacy generator.
    rng = np.random.RandomState(seed)
    points = np.empty((size, 2))
    labels = np.empty(size, np.int64)
    for i in range(size):
        goal = rng.randint(3)
        while True:
            x, y = rng.rand(2) * 2 * r_big
            in_disc = hypot(x - r_big, y - r_big) <= r_big
            if in_disc and classify(x, y, r_small, r_big) == goal:
                break
        points[i], labels[i] = (x, y), goal
    return np.concatenate([points, 1 - points], axis=1), labels


class YinYang(tfds.core.GeneratorBasedBuilder):
    """The published YinYang set (r_small 0.1, r_big 0.5) as tfds data set `yin_yang`.

    5000 train, 1000 validation and 1000 test examples of `features`
    `(x, y, 1 - x, 1 - y)`, float64, and `label`, stored in the order of their
    generation. For other radii call `generate`.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, file_format: str = "array_record", **kwargs: Any):
        """Stores array_record by default, as tfds' own default needs TensorFlow."""
        super().__init__(file_format=file_format, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Three classes in the plane: yin, yang and the two dots.",
            homepage="https://arxiv.org/abs/2102.08211",
            citation=(
                "@misc{kriener2021yinyang, title={The Yin-Yang dataset}, "
                "author={Kriener, Laura and Göltz, Julian and Petrovici, Mihai A.}, "
                "year={2021}, eprint={2102.08211}, archivePrefix={arXiv}}"
            ),
            features=tfds.features.FeaturesDict(
                {
                    # Without an encoding tfds would round float64 to float32.
                    "features": tfds.features.Tensor(
                        shape=(4,), dtype=np.float64, encoding="bytes"
                    ),
                    "label": tfds.features.ClassLabel(names=CLASS_NAMES),
                }
            ),
            supervised_keys=("features", "label"),
            disable_shuffling=True,  # The order on disk is that of generation.
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        del dl_manager  # Nothing to download.
        return {split: self._generate_examples(*args) for split, args in SPLITS.items()}

    def _generate_examples(self, size: int, seed: int) -> Iterator:
        for i, (features, label) in enumerate(zip(*generate(size, seed), strict=True)):
            yield i, {"features": features, "label": label}
