"""What all tests share."""

import jax
import pytest


@pytest.fixture
def x64():
    """Runs a test in float64, as exactness is tested; unforgiving about dtypes."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield
