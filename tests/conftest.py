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
    """Leaves the library's logger as it was, whatever a program does to it."""
    library = logging.getLogger("jaxsnn")
    before = library.handlers, library.level, library.propagate
    yield
    library.handlers, level, library.propagate = before
    library.setLevel(level)
