"""From a config to the device that finds the spikes."""

import contextlib
import importlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from jaxsnn.backend import Backend
from jaxsnn.hardware import SimulatedChip, typed_errors
from jaxsnn.training.errors import TrainingError
from jaxsnn.training.options import choose

logger = logging.getLogger(__name__)


def _simulated_chip(config: ml_collections.ConfigDict) -> Backend:
    changes = dict(config.chip)
    return SimulatedChip.profile(changes.pop("profile"), **changes)


def _host(module: str, name: str, section: str) -> Callable[..., Backend]:
    """A device with a software of its own, which only those who use it need to have."""

    def create(config: ml_collections.ConfigDict) -> Backend:
        device = getattr(importlib.import_module(f"jaxsnn.hardware.{module}"), name)
        return device(**config[section])

    return create


HARDWARE: dict[str, Callable[[ml_collections.ConfigDict], Backend | None]] = {
    "": lambda config: None,
    "simulated_chip": _simulated_chip,
    "nest": _host("nest", "Nest", "nest"),
    "bss2": _host("brainscales2", "BrainScaleS2", "bss2"),
}


def create_backend(config: ml_collections.ConfigDict) -> Backend | None:
    """The device of a config; None for the exact simulation.

    Raises:
      TrainingError: there is none of that name, or it has no such fields or values.
    """
    create = choose("hardware", config.hardware, HARDWARE)
    try:
        return create(config)
    except (TypeError, ValueError) as error:
        raise TrainingError(f"config.hardware={config.hardware!r}: {error}") from error


@contextlib.contextmanager
def released(device: Any) -> Iterator[None]:
    """Lets go of a device that has to be let go, whatever happens before."""
    try:
        yield
    finally:
        if hasattr(device, "close"):
            try:
                device.close()
            except Exception as error:  # It must not hide what happened before.
                logger.warning("warning: cannot let go of the device (%s)", error)


@contextlib.contextmanager
def faults() -> Iterator[None]:
    """As `typed_errors`, without the pages that JAX prints of the error as well."""
    noisy = logging.getLogger("jax._src.callback")
    level = noisy.level
    noisy.setLevel(logging.CRITICAL + 1)
    try:
        with typed_errors():
            yield
    finally:
        noisy.setLevel(level)


def keep_within(limit: float) -> optax.GradientTransformation:
    r"""Keeps kernels within what a device can hold; comes last in a chain.

    .. math:: \Delta w \to \mathrm{clip}(w + \Delta w, -l, l) - w

    Without it the weights that a device cuts to size drift on, and take long to return.
    Up to rounding, the kernels stay in the range.

    Args:
      limit: largest weight.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def clip(path: Any, change: jax.Array, value: jax.Array) -> jax.Array:
            if "kernel" not in jax.tree_util.keystr(path[-1:]):
                return change
            return jnp.clip(value + change, -limit, limit) - value

        return jax.tree_util.tree_map_with_path(clip, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
