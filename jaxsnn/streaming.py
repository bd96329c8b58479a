"""Inference on spikes as they arrive, up to the first spike of the last layer.

A network of event-driven layers is causal: what happens before a time follows from what
arrived before it. So a network that runs from one arrival to the next, with its state
carried along, knows its first output spike as soon as the time of that spike is over,
whatever arrives later. That spike is the decision of a time-to-first-spike readout.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from jaxsnn.capacity import require_no_overflow
from jaxsnn.layers import LIF, Network
from jaxsnn.spikes import NO_INDEX, NO_TIME, Spikes


class Decision(NamedTuple):
    """The first spike of the last layer.

    Attributes:
      label: the neuron that fired, the first of those at the same time.
      time: when, in seconds.
      events: how many spikes had arrived before.
    """

    label: int
    time: float
    events: int


class Stream:
    """Runs a network on arriving spikes until it has decided.

    Each call of `push` says what arrived and up to what time that is all. The network
    advances to that time, from the state in which the call before left it. Label and
    time are those of a run on all spikes at once, to rounding: nothing is approximate,
    and how arrivals are divided into calls does not matter.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> from jaxsnn import Spikes
      >>> from jaxsnn.layers import LIF, Network
      >>> from jaxsnn.streaming import Stream
      >>> network = Network([LIF(8, name="hidden"), LIF(3, name="output")])
      >>> spikes = Spikes.from_times(jnp.array([[1e-3], [2e-3], [30e-3]]))
      >>> variables = network.init(jax.random.key(0), spikes)
      >>> stream = Stream(network, variables, size=3)
      >>> stream.push([1e-3, 2e-3], [0, 1], until=2.5e-3)  # Nothing yet.
      >>> decision = stream.push([], [], until=20e-3)
      >>> decision.events, decision.time < 20e-3
      (2, True)
      >>> stream.reset()
      >>> stream.run(spikes, until=50e-3).events  # One arrival after the other.
      2

    Args:
      network: a `Network` of `LIF` layers that can be continued: without delays,
        recurrent connections or refractory periods.
      variables: its variables.
      size: number of sources.
      slots: most spikes in a call of `push`. Fewer cost the same.

    Raises:
      TypeError: another module.
      ValueError: a layer that cannot be continued; it is named.
    """

    def __init__(
        self,
        network: Network,
        variables: Mapping[str, Any],
        *,
        size: int,
        slots: int = 16,
    ):
        if not isinstance(network, Network):
            raise TypeError(
                f"Stream takes a Network, not {type(network).__name__}; write"
                " Network([layer]) for a single layer."
            )
        for layer in network.layers:
            if not (isinstance(layer, LIF) and layer._continues):
                raise ValueError(
                    f"{type(layer).__name__} {layer.name or ''} cannot be continued:"
                    " Stream takes LIF layers without delays, recurrent connections or"
                    " refractory periods."
                )
        if network.backend is not None or any(la.backend for la in network.layers):
            raise ValueError(
                "devices start every run from rest; give Stream the network without"
                " its backend."
            )
        self._variables = {"params": variables["params"]}
        self._size, self._slots = size, slots
        self._apply = jax.jit(functools.partial(network.apply, mutable=["events"]))
        self.reset()

    def reset(self) -> None:
        """Back to rest at time 0, for the next sample."""
        self._state: dict[str, Any] = {}
        self._now, self._events = 0.0, 0
        self._decision: Decision | None = None

    @property
    def decision(self) -> Decision | None:
        """The decision, once there is one."""
        return self._decision

    def push(
        self, time: npt.ArrayLike, source: npt.ArrayLike, *, until: float
    ) -> Decision | None:
        """Adds what arrived and runs up to a time.

        Args:
          time: of the spikes that arrived since the last call, in seconds, in any
            order, ``[n]``; none is before the end of the last call.
          source: of each, ``[n]``.
          until: end of what is known, in seconds: all spikes before it were given.
            ``inf`` says that none will come any more.

        Returns:
          The decision, or None as long as there is none. After a decision, calls change
          nothing and return it again.

        Raises:
          ValueError: more spikes than `slots`, or spikes or an end out of their order.
          SlotsExceededError: a layer had more spikes in this call than its own `slots`.
        """
        if self._decision is not None:
            return self._decision
        # As precise as the network: two times that it cannot tell apart are the same.
        precise = jnp.zeros(()).dtype.type
        times, sources = np.asarray(time, precise), np.asarray(source, int)
        until = float(precise(until))
        self._check(times, sources, until)
        room = self._slots - times.size
        spikes = Spikes.from_events(
            jnp.asarray(np.pad(times, (0, room), constant_values=NO_TIME)[None]),
            jnp.asarray(np.pad(sources, (0, room), constant_values=NO_INDEX)[None]),
            self._size,
        )
        outputs, state = self._apply({**self._variables, **self._state}, spikes, until)
        require_no_overflow(state["events"], self._state.get("events"))
        self._state = state
        first, label = float(outputs.time[0, 0]), int(outputs.index[0, 0])
        before = int(np.sum(times <= first))
        self._events += before
        self._now = until
        if math.isfinite(first):
            self._decision = Decision(label, first, self._events)
        return self._decision

    def run(self, spikes: Spikes, until: float = NO_TIME) -> Decision | None:
        """Pushes the spikes of one sample, one arrival after the other.

        Args:
          spikes: of one sample, ``[slots]`` or ``[1, slots]``. What comes after the
            decision is not looked at.
          until: end of the run in seconds.

        Returns:
          The decision, or None if the last layer is silent.
        """
        time, index = (np.asarray(x).reshape(-1) for x in (spikes.time, spikes.index))
        if time.size != np.shape(spikes.time)[-1]:
            raise ValueError(
                f"spikes have the batch shape {np.shape(spikes.time)[:-1]}, expected"
                " one sample; a stream makes one decision."
            )
        arrivals = np.unique(time[time < until])
        if not arrivals.size:
            return self.push([], [], until=until)
        for now, following in itertools.pairwise([*arrivals, until]):
            here = time == now
            if self.push(time[here], index[here], until=float(following)):
                break
        return self._decision

    def _check(self, time: np.ndarray, source: np.ndarray, until: float) -> None:
        if time.shape != source.shape or time.ndim != 1:
            raise ValueError(
                f"times have shape {time.shape} and sources {source.shape}, expected"
                " both to be [n]."
            )
        if time.size > self._slots:
            raise ValueError(
                f"{time.size} spikes in one call, but slots is {self._slots}; give them"
                " in smaller steps of `until`, or make more slots."
            )
        if math.isinf(self._now) or not until > self._now:
            raise ValueError(
                f"until is {until}, but the stream is at {self._now} already; reset it"
                " for another sample."
            )
        if time.size and not (self._now <= time.min() and time.max() < until):
            raise ValueError(
                f"spikes from {time.min()} to {time.max()} are not within this call,"
                f" from {self._now} to {until}."
            )
