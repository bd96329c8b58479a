"""From a config to the device that finds the spikes."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import ml_collections

from jaxsnn.backend import Backend
from jaxsnn.hardware import SimulatedChip
from jaxsnn.training.errors import TrainingError

T = TypeVar("T")

HARDWARE: dict[str, Callable[[ml_collections.ConfigDict], Backend | None]] = {
    "": lambda config: None,
    "simulated_chip": lambda config: SimulatedChip(**config.chip),
}


def create_backend(config: ml_collections.ConfigDict) -> Backend | None:
    """The device of a config; None for the exact simulation."""
    return choose("hardware", config.hardware, HARDWARE)(config)


def choose(field: str, name: str, options: Mapping[str, T]) -> T:
    """The option of that name; the message of an unknown one has all names."""
    if name not in options:
        known = ", ".join(repr(option) for option in options)
        raise TrainingError(f"config.{field} is {name!r}, expected one of {known}.")
    return options[name]
