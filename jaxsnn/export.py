"""A function as one file, which runs without Flax and without the model's code.

What is written is the program that JAX compiles, with all parameters in it, for any
size of the batch and for several platforms: `jax.export`, in a zip file, beside a
description of what goes in and what comes out. It holds no pickled objects. Newer
versions of JAX run it, for as long as `jax.export` says.

To write and to read needs the package ``flatbuffers``. To import this module imports
JAX and NumPy, no Flax.
"""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from jaxsnn.spikes import Spikes

_VERSION = 1
_ABOUT, _PROGRAM = "about.json", "program.bin"


def export(
    path: str | os.PathLike[str],
    function: Callable[[Any], Any],
    inputs: Any,
    *,
    platforms: Sequence[str] = ("cpu", "cuda"),
) -> None:
    """Writes a function of one batch as a file that `load` turns into a callable.

    Args, results and everything in between are those of the function under `jax.jit`.
    The first axis of each array is the batch, whose size stays open.

    Example::

      >>> import tempfile
      >>> import jax, jax.numpy as jnp, numpy as np
      >>> from jaxsnn.coding import encode_latency
      >>> from jaxsnn.export import export, load
      >>> from jaxsnn.layers import LIF
      >>> values = jnp.array([[0.1, 0.9], [0.8, 0.3]])
      >>> layer = LIF(3)
      >>> variables = layer.init(jax.random.key(0), encode_latency(values, t_late=0.01))
      >>> def times(values):
      ...     return layer.apply(variables, encode_latency(values, t_late=0.01)).first()
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     export(f"{folder}/times.zip", times, values)
      ...     run = load(f"{folder}/times.zip")
      >>> run(np.array([[0.5, 0.5]])).shape
      (1, 3)

    Args:
      path: the file to write.
      function: from `inputs` to results; arrays, `Spikes`, and tuples, lists and
        dictionaries of these.
      inputs: an example, of any batch size, of which shapes and dtypes matter.
      platforms: where the file is to run: ``"cpu"``, ``"cuda"``, ``"rocm"``, ``"tpu"``.

    Raises:
      ValueError: a function that calls back to Python, as devices driven from there do,
        or inputs without a batch axis.
      TypeError: inputs or results of other types.
    """
    _require_flatbuffers()
    form, leaves = _taken_apart("inputs", inputs)
    (batch,) = jax.export.symbolic_shape("batch")
    for leaf in leaves:
        if not leaf.ndim:
            raise ValueError("an array of the inputs has no axis, expected a batch.")
    shapes = [
        jax.ShapeDtypeStruct((batch, *leaf.shape[1:]), leaf.dtype) for leaf in leaves
    ]
    found: list[Any] = []

    @jax.jit
    def flat(*leaves: Any) -> list[Any]:
        form_of_results, results = _taken_apart(
            "results", function(_put_together(form, list(leaves)))
        )
        found[:] = [form_of_results]
        return results

    try:
        program = jax.export.export(flat, platforms=platforms)(*shapes)
        serialized = program.serialize()
    except NotImplementedError as error:
        raise ValueError(
            f"the function cannot be written: {error}. If it calls back to Python, as"
            " devices do that are driven from there, export it without its backend."
        ) from error
    about = {
        "format": _VERSION,
        "jax": jax.__version__,
        "platforms": list(program.platforms),
        "inputs": form,
        "results": found[0],
    }
    # Written beside it first, so that a file of that name is never half of one.
    part = Path(f"{os.fspath(path)}.part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(_ABOUT, json.dumps(about, indent=1))
        archive.writestr(_PROGRAM, bytes(serialized))
    os.replace(part, path)


def load(path: str | os.PathLike[str]) -> Program:
    """Reads what `export` wrote.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a file that is not one of these, damaged, or of another version.
    """
    _require_flatbuffers()
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                about = json.loads(archive.read(_ABOUT))
                # Raises if its checksum is another.
                serialized = archive.read(_PROGRAM)
        # A flipped bit makes zipfile raise nearly anything: BadZipFile, zlib.error,
        # EOFError, OSError, RuntimeError (it looks encrypted), NotImplementedError.
        except Exception as error:
            raise ValueError(
                f"{os.fspath(path)} is no file of jaxsnn.export, or damaged: {error}"
            ) from error
    if about["format"] != _VERSION:
        raise ValueError(
            f"{os.fspath(path)} has format {about['format']}; this code reads format"
            f" {_VERSION}."
        )
    return Program(about, jax.export.deserialize(bytearray(serialized)))


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A function that was read from a file; call it with a batch.

    It compiles for each new size of the batch, once.

    Attributes:
      about: what the file says: the version of JAX that wrote it, the platforms it is
        for, the form of inputs and results.
      exported: the function as JAX has it.
    """

    about: Mapping[str, Any]
    exported: jax.export.Exported

    def __post_init__(self) -> None:
        """Prepares to compile."""
        object.__setattr__(self, "_call", jax.jit(self.exported.call))

    def __call__(self, inputs: Any) -> Any:
        """Runs a batch of any size.

        Args:
          inputs: as they were for `export`; NumPy arrays will do.

        Raises:
          ValueError: inputs of another form or shape; a platform that the file is not
            for.
        """
        form, leaves = _taken_apart("inputs", inputs)
        if _kinds(form) != _kinds(self.about["inputs"]):
            raise ValueError(
                f"inputs are {_kinds(form)}, expected {_kinds(self.about['inputs'])}."
            )
        platform = jax.default_backend().replace("gpu", "cuda")
        if platform not in self.exported.platforms:
            raise ValueError(
                f"the file is for {', '.join(self.exported.platforms)}, not for"
                f" {platform}."
            )
        ready = []
        for leaf, expected in zip(leaves, self.exported.in_avals, strict=True):
            shape = tuple(str(n) for n in expected.shape)
            own = tuple(str(n) for n in leaf.shape)
            if len(own) != len(shape) or own[1:] != shape[1:]:
                raise ValueError(
                    f"an array of the inputs has shape ({', '.join(own)}), expected"
                    f" ({', '.join(shape)})."
                )
            if not np.can_cast(leaf.dtype, expected.dtype, "same_kind"):
                raise ValueError(
                    f"an array of the inputs is {leaf.dtype}, expected"
                    f" {expected.dtype}."
                )
            ready.append(jnp.asarray(leaf, expected.dtype))
        results = self._call(*ready)  # type: ignore[attr-defined]
        return _put_together(self.about["results"], list(results))


def _taken_apart(what: str, tree: Any) -> tuple[Any, list[Any]]:
    """The form of nested inputs or results, as JSON, and their arrays in order."""
    if isinstance(tree, Spikes):
        return {"spikes": tree.size}, [tree.time, tree.index]
    if isinstance(tree, Mapping):
        parts = {str(key): _taken_apart(what, tree[key]) for key in sorted(tree)}
        form = {"dict": {key: form for key, (form, _) in parts.items()}}
        return form, [leaf for _, leaves in parts.values() for leaf in leaves]
    if isinstance(tree, tuple | list):
        several = [_taken_apart(what, part) for part in tree]
        forms = [form for form, _ in several]
        return {"tuple": forms}, [leaf for _, leaves in several for leaf in leaves]
    if isinstance(tree, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
        return "array", [tree]
    raise TypeError(
        f"{what} have a {type(tree).__name__}, expected arrays, Spikes, or tuples and"
        " dictionaries of these."
    )


def _put_together(form: Any, leaves: list[Any]) -> Any:
    """The inverse of `_taken_apart`; takes what it needs from the front of the list."""
    if form == "array":
        return leaves.pop(0)
    if "dict" in form:
        return {key: _put_together(part, leaves) for key, part in form["dict"].items()}
    if "tuple" in form:
        return tuple(_put_together(part, leaves) for part in form["tuple"])
    return Spikes._known_good(leaves.pop(0), leaves.pop(0), form["spikes"])


def _kinds(form: Any) -> str:
    """A form in words."""
    if form == "array":
        return "an array"
    if "dict" in form:
        parts = [f"{key}: {_kinds(part)}" for key, part in form["dict"].items()]
        return "{" + ", ".join(parts) + "}"
    if "tuple" in form:
        return "(" + ", ".join(_kinds(part) for part in form["tuple"]) + ")"
    return f"Spikes of {form['spikes']} sources"


def _require_flatbuffers() -> None:
    try:
        import flatbuffers  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "exported functions need the package flatbuffers: pip install flatbuffers."
        ) from error
