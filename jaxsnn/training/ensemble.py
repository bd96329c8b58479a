"""Several seeds trained at once, each as if it was alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxsnn.hardware import HostBackend
from jaxsnn.training import devices
from jaxsnn.training.errors import TrainingError
from jaxsnn.training.steps import TrainState


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """The members of a run: one, or several that are spread over the devices.

    What several members have has a leading axis of them, but for a state's `step`,
    which they share. One member has no such axis: it is a run like any other.

    Attributes:
      seeds: of the members.
      mesh: the devices.
    """

    seeds: range
    mesh: Mesh

    @property
    def several(self) -> bool:
        """Whether there is an axis of members."""
        return len(self.seeds) > 1

    @property
    def sharding(self) -> NamedSharding:
        """Where what belongs to the members is."""
        axis = PartitionSpec(devices.DATA) if self.several else PartitionSpec()
        return NamedSharding(self.mesh, axis)

    def create(
        self, begin: Callable[[Any], tuple[TrainState, Any]]
    ) -> tuple[TrainState, Any]:
        """Makes each member from its seed, and places it.

        Args:
          begin: a seed to the state of a member, and whatever else it has.
        """
        if not self.several:
            state, others = begin(self.seeds.start)
            return devices.place((state, others), self.sharding)
        state, others = jax.vmap(begin)(jnp.arange(self.seeds.start, self.seeds.stop))
        step = devices.place(jnp.asarray(state.step)[0], devices.replicated(self.mesh))
        state, others = devices.place((state, others), self.sharding)
        return state.replace(step=step), others

    def each(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function of `(state, data, key)` for all members, as one.

        Args:
          function: of one member; it may return a state among other things.
        """
        if not self.several:
            return function
        own, same = PartitionSpec(devices.DATA), PartitionSpec()
        spread = jax.shard_map(
            jax.vmap(function, in_axes=(0, None, 0)),
            mesh=self.mesh,
            in_specs=(own, same, own),
            out_specs=own,
            check_vma=False,  # As in devices.share_batches.
        )

        def is_state(x: Any) -> bool:
            return isinstance(x, TrainState)

        def run(state: TrainState, data: Any, key: jax.Array) -> Any:
            steps = jnp.broadcast_to(state.step, len(self.seeds))
            return jax.tree.map(
                lambda x: x.replace(step=x.step[0]) if is_state(x) else x,
                spread(state.replace(step=steps), data, key),
                is_leaf=is_state,
            )

        return run

    def members(self, tree: Any) -> Iterator[tuple[int, Any]]:
        """Each seed, with what belongs to it."""
        if not self.several:
            yield self.seeds.start, tree
            return
        for number, seed in enumerate(self.seeds):
            yield seed, jax.tree.map(lambda x, n=number: x[n] if x.ndim else x, tree)


def create_ensemble(config: ml_collections.ConfigDict) -> Ensemble:
    """The members that a config asks for, and the devices that they, or batches, share.

    Raises:
      TrainingError: their number is impossible on these devices.
    """
    mesh, count = devices.create_mesh(config), config.ensemble
    if count < 1:
        raise TrainingError(f"config.ensemble must be 1 or more, and is {count}.")
    if count == 1:
        devices.check_shares("batch_size", config.batch_size, mesh)
    else:
        if jax.process_count() > 1:
            raise TrainingError(
                f"config.ensemble is {count}, in {jax.process_count()} processes. "
                "Seeds need nothing of each other: start a run of its own on each "
                "machine, with other seeds in another --workdir."
            )
        devices.check_shares("ensemble", count, mesh)
    return Ensemble(range(config.seed, config.seed + count), mesh)


def share(state: TrainState, ensemble: Ensemble, backend: Any) -> TrainState:
    """The state of a member whose model runs where the ensemble says.

    Raises:
      TrainingError: a device outside of JAX would have to run in several places.
    """
    alone = ensemble.mesh.size == 1 and not ensemble.several
    if isinstance(backend, HostBackend) and not alone:
        raise TrainingError(
            f"{type(backend).__name__} is one device, which runs one whole batch after "
            "the other. Train with it in one process, with config.mesh.data=1, "
            "config.ensemble=1, and config.distributed.coordinator empty."
        )
    if ensemble.several:
        return state  # Whole batches, of a part of the members.
    return devices.share_batches(state, ensemble.mesh)
