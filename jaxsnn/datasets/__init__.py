"""Data sets as tfds builders, loaded into NumPy without TensorFlow and without JAX."""

from jaxsnn.datasets.idx import FashionMnistIdx as FashionMnistIdx
from jaxsnn.datasets.idx import MnistIdx as MnistIdx
from jaxsnn.datasets.load import DatasetError as DatasetError
from jaxsnn.datasets.load import class_names as class_names
from jaxsnn.datasets.load import load as load
from jaxsnn.datasets.yin_yang import YinYang as YinYang
