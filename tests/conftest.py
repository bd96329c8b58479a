"""What all tests share."""

import os

# Tests compile much and run little: compiling without optimization takes a third of
# the time. `.ci/run` also runs train.py as users do.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import logging

import jax
import pytest


@pytest.fixture
def x64():
    """Runs a test in float64, as exactness is tested."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def logger():
    """Starts each test with the library's logger untouched, whatever ran before."""
    library = logging.getLogger("jaxsnn")
    library.handlers, library.propagate = [], True
    library.setLevel(logging.NOTSET)
