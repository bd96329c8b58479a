"""What a name in a config stands for."""

from collections.abc import Mapping
from typing import TypeVar

from jaxsnn.training.errors import TrainingError

T = TypeVar("T")


def choose(field: str, name: str, options: Mapping[str, T]) -> T:
    """The option of that name; the message of an unknown one has all names.

    Raises:
      TrainingError: there is no such option.
    """
    if name not in options:
        known = ", ".join(repr(option) for option in options)
        raise TrainingError(f"config.{field} is {name!r}, expected one of {known}.")
    return options[name]
