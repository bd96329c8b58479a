"""Which devices share a batch, and which processes share a run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxsnn.training.errors import Interrupted, NonFiniteError, TrainingError
from jaxsnn.training.steps import TrainState

DATA = "data"  # Name of the mesh's axis.

# What a model reports of each sample; its other collections are one for all.
_OF_SAMPLES = ("events", "mismatch")

# What all processes come to at the same step.
_AGREED = (Interrupted, NonFiniteError)

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def connected(config: ml_collections.ConfigDict) -> Iterator[None]:
    """Joins the processes of a run by `jax.distributed`, if there are several.

    Processes other than the first log warnings only. An error of one process alone
    ends the others: it leaves without waiting for them, and what they do next together
    fails. An operation that fails in this way is reported as a `TrainingError`.

    Args:
      config: the experiment; `config.distributed` says where the others are.

    Raises:
      TrainingError: the processes do not find each other, have different configs, or
        one of them was lost.
    """
    if not config.distributed.coordinator:
        yield
        return
    # JAX waits for all of them up to 300 s, and then ends the process by itself.
    logger.info("waiting for the other processes ...")
    _initialize(config.distributed)
    count, index = jax.process_count(), jax.process_index()
    logger.info("process %d of %d", index, count)
    library = logging.getLogger("jaxsnn")
    level = library.level
    if not is_first():
        library.setLevel(logging.WARNING)
    try:
        fields = json.loads(config.to_json())
        fields["distributed"]["process_id"] = None
        check_equal("config", fields)
        yield
    except _AGREED:
        jax.distributed.shutdown()
        raise
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise TrainingError(
            f"Process {index} of {count}: what all of them do together failed, most "
            "likely because another process ended; its own output says why "
            f"({type(error).__name__}: {reason[:200]}). Start all of them again: they "
            "continue from the newest checkpoint"
        ) from error
    else:
        jax.distributed.shutdown()  # Waits for the others.
    finally:
        library.setLevel(level)


def _initialize(distributed: ml_collections.ConfigDict) -> None:
    address, seconds = distributed.coordinator, distributed.timeout
    limits = {
        "heartbeat_timeout_seconds": seconds,
        "shutdown_timeout_seconds": seconds,
    }
    try:
        if address == "auto":
            jax.distributed.initialize(
                num_processes=distributed.num_processes,
                process_id=distributed.process_id,
                **limits,
            )
            return
        for name in ("num_processes", "process_id"):
            if distributed[name] is None:
                raise ValueError(
                    f"config.distributed.{name} is missing; only coordinator='auto' "
                    "finds it by itself"
                )
        if not address.rpartition(":")[2].isdigit() or ":" not in address:
            raise ValueError("the coordinator's address is not of the form host:port")
        jax.distributed.initialize(
            address,
            distributed.num_processes,
            distributed.process_id,
            **limits,
            # All was said. On SLURM, JAX would find out the rest otherwise.
            cluster_detection_method="deactivate",
        )
    except (RuntimeError, ValueError, TypeError) as error:
        raise TrainingError(
            f"config.distributed.coordinator={address!r}: {error}. It is that of "
            "process 0, with a port that is free there, and the same for all."
        ) from error


def is_alone(error: BaseException | None) -> bool:
    """Whether an error is one that the other processes do not have as well."""
    alone = error is not None and not isinstance(error, _AGREED)
    return alone and jax.distributed.is_initialized()


def leave(message: str) -> NoReturn:
    """Ends the process as `sys.exit(message)` does.

    A process of several that stops alone is gone at once: at its regular exit JAX would
    wait for the others, who would wait for it.
    """
    if jax.distributed.is_initialized():
        print(message, file=sys.stderr, flush=True)  # noqa: T201 - the last of all.
        os._exit(1)
    sys.exit(message)


def is_first() -> bool:
    """Whether this process writes metrics, logs and configs."""
    return jax.process_index() == 0


def wait_for_all() -> None:
    """Returns when all processes have called it."""
    multihost_utils.sync_global_devices("jaxsnn")


def largest(value: int) -> int:
    """The largest of the values that the processes have."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.process_allgather(np.int32(value)).max())


def check_equal(what: str, value: Any) -> None:
    """Compares a value among the processes; all of them call it, and wait for it.

    Args:
      what: name of the value, for the message.
      value: plain values, or bytes.

    Raises:
      TrainingError: it is not the same in all of them.
    """
    if jax.process_count() == 1:
        return
    content = value if isinstance(value, bytes) else json.dumps(value, sort_keys=True)
    content = content if isinstance(content, bytes) else content.encode()
    digest = np.frombuffer(hashlib.sha256(content).digest(), np.uint32)
    found = multihost_utils.process_allgather(digest)
    others = np.flatnonzero((found != found[0]).any(axis=1))
    if others.size:
        raise TrainingError(
            f"The processes do not have the same {what}: {others.tolist()} differ from "
            "process 0. Start all of them by the same command but for process_id, in "
            "the same workdir, which they share."
        )


def create_mesh(config: ml_collections.ConfigDict) -> Mesh:
    """The devices that share the work: `config.mesh.data` of each process.

    Raises:
      TrainingError: there are not so many.
    """
    local, wanted = jax.local_device_count(), config.mesh.data
    each = local if wanted == -1 else wanted
    if not 1 <= each <= local:
        raise TrainingError(
            f"config.mesh.data is {wanted}, but this process has {local} "
            f"{jax.default_backend()} device{'s' * (local > 1)}: choose 1 to {local}, "
            "or -1 for all."
        )
    devices: dict[int, list[jax.Device]] = {}
    for device in jax.devices():
        devices.setdefault(device.process_index, []).append(device)
    chosen = [d for own in devices.values() for d in own[:each]]
    return Mesh(np.array(chosen), (DATA,), axis_types=(AxisType.Auto,))


def check_shares(field: str, value: int, mesh: Mesh) -> None:
    """Refuses what the devices cannot share equally.

    Raises:
      TrainingError: with the nearest values that they can.
    """
    if rest := value % mesh.size:
        below, above = value - rest, value - rest + mesh.size
        nearest = f"{below} or {above}" if below else f"{above}"
        raise TrainingError(
            f"config.{field} is {value}, which {mesh.size} devices cannot share "
            f"equally; the nearest that they can is {nearest}."
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """How what all devices have is placed: parameters, examples, keys, metrics."""
    return NamedSharding(mesh, PartitionSpec())


def place(tree: Any, sharding: NamedSharding) -> Any:
    """Puts what every process has on all devices."""

    def put(x: Any) -> jax.Array:
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            data = put(jax.random.key_data(x))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
        if sharding.is_fully_addressable:
            return jax.device_put(x, sharding)
        x = np.asarray(x)  # device_put would compare it among the processes.
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, tree)


def share_batches(state: TrainState, mesh: Mesh) -> TrainState:
    """The state whose model runs each batch on all devices, a part on each.

    The model runs on a device as if its part was all there is, so that nothing waits
    for the others within a batch; losses, and the gradient, are of the whole batch. The
    sum over devices rounds differently from that of one. Noise of a device model is
    drawn anew on each device.

    Args:
      state: the state.
      mesh: the devices; one alone leaves the state as it is.
    """
    if mesh.size == 1:
        return state
    batch, same = PartitionSpec(DATA), PartitionSpec()

    def apply(
        variables: Any, features: jax.Array, *, mutable: Any, rngs: Any = None
    ) -> tuple[Any, Mapping[str, Any]]:
        def run(variables: Any, features: jax.Array, rngs: Any) -> Any:
            here = jax.lax.axis_index(DATA)
            rngs = jax.tree.map(lambda key: jax.random.fold_in(key, here), rngs)
            outputs, updates = state.apply_fn(
                variables, state.encode_fn(features), mutable=mutable, rngs=rngs
            )
            samples = {k: v for k, v in updates.items() if k in _OF_SAMPLES}
            others = {k: v for k, v in updates.items() if k not in _OF_SAMPLES}
            return state.read_fn(outputs), samples, others

        readings, samples, others = jax.shard_map(
            run,
            mesh=mesh,
            in_specs=(same, batch, same),
            out_specs=(batch, batch, same),
            check_vma=False,  # Loops of a model do not say what differs among devices.
        )(variables, features, rngs)
        return readings, {**samples, **others}

    return state.replace(
        apply_fn=apply, encode_fn=lambda features: features, read_fn=lambda read: read
    )
