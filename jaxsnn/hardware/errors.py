"""What can go wrong on a device, as types that reach the user."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Iterator


class DeviceError(RuntimeError):
    """A device failed; the message says which, in which run, and where.

    Attributes:
      device: its name.
      run: number of the run since the backend was made, from 0: one per batch.
      layer: name of the layer, if one is to blame.
    """

    def __init__(
        self, message: str, *, device: str, run: int, layer: str | None = None
    ):
        where = f"{device}, run {run}" + (f", layer '{layer}'" if layer else "")
        super().__init__(f"{where}: {message}")
        self.device, self.run, self.layer = device, run, layer


class DeviceTimeout(DeviceError):
    """The device did not answer in time."""


class LinkError(Exception):
    """Raised by a device for a fault that may pass: the run is tried again."""


# The latest: JAX hands on the text of an error alone.
_raised: collections.deque[DeviceError] = collections.deque(maxlen=4)


def remember(error: DeviceError) -> DeviceError:
    """Keeps an error for `typed_errors`."""
    _raised.append(error)
    return error


@contextlib.contextmanager
def typed_errors() -> Iterator[None]:
    """Raises a `DeviceError` as what it is.

    A device runs in a callback, out of which JAX lets only the text of an error, of one
    of several types, where its results are first waited for. In this context the error
    that the device raised comes out instead; wait in it.

    Example::

      >>> import jax
      >>> from jaxsnn.hardware import typed_errors
      >>> with typed_errors():
      ...     jax.block_until_ready(jax.numpy.zeros(3))  # Or a run on a device.
      Array([0., 0., 0.], dtype=float32)
    """
    try:
        yield
    except DeviceError:
        raise
    except Exception as error:
        text = str(error)
        for found in reversed(_raised):
            if str(found) in text:
                raise found from found.__cause__
        raise
