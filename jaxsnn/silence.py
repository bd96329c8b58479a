"""Why neurons are silent: what each layer heard, and how near it came to firing.

A neuron in a window that begins at rest fires if and only if its voltage without a
threshold exceeds the threshold. That voltage is linear in the weights and its maximum
is known exactly, so the distance to firing is a number, and so is the cure.
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn  # noqa: TID251  # For annotations; models are Linen's.
from jax import Array

from jaxsnn.backend import Population
from jaxsnn.capacity import table
from jaxsnn.cures import distance
from jaxsnn.dynamics import Neuron
from jaxsnn.layers import LIF, Graph
from jaxsnn.readout import Trace
from jaxsnn.spikes import NO_TIME, Spikes, _traced, concatenate
from jaxsnn.watch import (
    SPIKING,
    described,
    every_spike,
    loops,
    name_of,
    nothing_to_look_at,
    returned,
    sown,
    watch,
    with_a_slot,
)

_COLLECTION = "silence"

#: Why a neuron may never fire, and what that means, in the order of examination.
REASONS = {
    "no slot": "the threshold is reached, but no spike found a slot: raise LIF.slots",
    "device": "the threshold is reached by the model, but the device showed no spike",
    "window": "the threshold would be reached after the end of the window: raise until",
    "no input": "no input spike arrives in the window: look at what comes before",
    "inhibited": "without negative weights they would fire, or no weight lifts them",
    "weak": "the weights that see spikes are too small",
}


@dataclasses.dataclass(frozen=True)
class LayerSilence:
    """How far the neurons of one layer are from firing, over a batch.

    Attributes:
      name: path of the layer in its model; of a population of a `Graph`, with its name.
      samples: number of samples, or of windows if the layer runs several times.
      inputs: input spikes per sample and window, not those of the layer itself.
      silent: fraction of neurons, over samples, that did not fire.
      saturated: fraction of neurons, over samples, that reached `max_spikes` and were
        silent from there on.
      reach: highest voltage without a threshold, over samples, as a part of the way
        from rest to the threshold (so in units of ``v_th`` if ``v_leak`` is 0). A
        neuron fires in some sample if it is above 1. ``[neurons]``.
      reasons: for each neuron, "" if it fires in some sample, else why not: a key of
        `REASONS`.
    """

    name: str
    samples: int
    inputs: float
    silent: float
    saturated: float
    reach: np.ndarray
    reasons: tuple[str, ...]

    @property
    def never(self) -> np.ndarray:
        """Whether each neuron fires in no sample, ``[neurons]``."""
        return np.array([reason != "" for reason in self.reasons])

    @property
    def factor(self) -> np.ndarray:
        """What each neuron's weights must be multiplied by to meet the threshold.

        That is one over `reach`, as the voltage is linear in the weights: a little more
        makes the neuron fire in the sample in which it is nearest to firing. It is
        below 1 for neurons that fire, and ``inf`` where no factor helps.
        """
        with np.errstate(divide="ignore"):
            return 1 / self.reach

    def __str__(self) -> str:
        size = len(self.reasons)
        counts = collections.Counter(reason for reason in self.reasons if reason)
        if not counts:
            return f"{self.name}: every neuron fires in some sample."
        lines = [f"{self.name}: {counts.total()} of {size} neurons never fire."]
        lines += [
            f"  {counts[reason]} ({reason}): {meaning}."
            for reason, meaning in REASONS.items()
            if counts[reason]
        ]
        factor = self.factor[self.never]
        factor = factor[np.isfinite(factor) & (factor >= 1)]
        if factor.size:
            lines.append(
                f"  Their weights times {np.median(factor):.3g} would take half of"
                f" {factor.size} to the threshold, times {factor.max():.3g} all."
            )
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class SilenceReport:
    """What `why_silent` found; prints as a table and a reason per layer.

    Attributes:
      layers: one entry per layer, in the order in which they run.
    """

    layers: tuple[LayerSilence, ...]

    def __getitem__(self, name: str) -> LayerSilence:
        """The layer of that name."""
        return {layer.name: layer for layer in self.layers}[name]

    def __str__(self) -> str:
        head = ["layer", "samples", "inputs", "silent", "never fire"]
        head += ["reach: least", "median", "most", "at max_spikes"]
        rows = [
            [
                layer.name,
                str(layer.samples),
                f"{layer.inputs:.1f}",
                f"{layer.silent:.1%}",
                f"{np.sum(layer.never)} of {len(layer.reasons)}",
                f"{np.min(layer.reach):.2f}",
                f"{np.median(layer.reach):.2f}",
                f"{np.max(layer.reach):.2f}",
                f"{layer.saturated:.1%}",
            ]
            for layer in self.layers
        ]
        return "\n".join([table([head, *rows]), *map(str, self.layers)])


def why_silent(
    model: nn.Module, variables: Mapping[str, Any], spikes: Spikes, **options: Any
) -> SilenceReport:
    """Says of each layer how many neurons never fire on a batch, and why.

    For every neuron the exact maximum of the voltage that it would have without a
    threshold is compared to the threshold: in the window, beyond its end, and without
    negative weights. Layers are looked at in the run as it is, so below a silent layer
    all is silent for want of input: cure the first one first, and ask again. Spikes
    count when they arrive, after delays, and those of a recurrent layer as its inputs.

    The reasons are those of a neuron on the whole batch, in the order of `REASONS`: the
    first that holds in any sample. A neuron that fires too rarely is none of them; see
    `LayerSilence.reach` and ``silent``. What a device does is judged by the model.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> from jaxsnn import why_silent
      >>> from jaxsnn.coding import encode_latency
      >>> from jaxsnn.layers import LIF, Network, spread_normal
      >>> hidden = LIF(40, kernel_init=spread_normal(2.0, 0.4), name="hidden")
      >>> model = Network([hidden, LIF(3, name="output")])
      >>> features = jax.random.uniform(jax.random.key(0), (8, 6))
      >>> spikes = encode_latency(features, t_late=5e-3)
      >>> variables = model.init(jax.random.key(1), spikes)
      >>> report = why_silent(model, variables, spikes)
      >>> set(report["hidden"].reasons), set(report["output"].reasons)
      ({'weak'}, {'no input'})
      >>> print(report["output"])
      output: 3 of 3 neurons never fire.
        3 (no input): no input spike arrives in the window: look at what comes before.

    Args:
      model: a `Network`, a `LIF`, a `Graph`, or any module from `Spikes` with such
        layers.
      variables: of the model, without a state to continue from.
      spikes: inputs, ``[*batch, slots]``.
      **options: passed on to ``model.apply``, such as ``until=40e-3`` or ``rngs``.

    Raises:
      ValueError: a state to continue from, no `LIF` or `Graph` in the model, one whose
        neurons rest at their threshold or above, or an empty batch.
      TypeError: traced values.
    """
    if _traced(*jax.tree.leaves((variables, spikes))):
        raise TypeError("why_silent needs values; call it outside of jax.jit.")
    if variables.get("events"):
        raise ValueError(
            "why_silent looks at runs that begin at rest; leave out the collection"
            " 'events'."
        )
    if spikes.time.size == 0:
        raise ValueError(
            f"spikes has shape {spikes.time.shape}; why_silent needs samples and slots."
        )
    layers: dict[str, tuple[tuple[str, ...], str]] = {}

    def look(module: Any, run: Callable, args: tuple, kwargs: dict) -> Any:
        found = every_spike(module, run, args, kwargs)
        kept = with_a_slot(module, found)
        calls = _calls(module, found, kept, *args, **kwargs)
        module.sow(_COLLECTION, "calls", calls)
        for population in itertools.chain(*loops(module)):
            name = name_of(module, population)
            layers.setdefault(name, (module.path, population))
        return returned(module, kept)

    mutable = (_COLLECTION,)
    _, seen = watch(model, variables, spikes, options, look, SPIKING, mutable)
    if not layers:
        raise nothing_to_look_at(model)
    found = []
    for name, (path, population) in layers.items():
        calls = sown(seen, _COLLECTION, path)["calls"]
        found.append(_silence(name, [call[population] for call in calls]))
    return SilenceReport(tuple(found))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Call:
    """One run of a population: what it heard, with which weights, and what it said.

    To a silent neuron the spikes of its own population are inputs as all others are.
    """

    neuron: Neuron
    kernel: Array
    inputs: tuple[Spikes, ...]  # As they were sent, by others.
    arriving: Spikes  # At the neurons, after delays, by all.
    until: Array
    found: Spikes
    max_spikes: int = dataclasses.field(metadata={"static": True})
    on_device: bool = dataclasses.field(metadata={"static": True})


def _calls(
    module: LIF | Graph,
    found: Mapping[str, Spikes],
    kept: Mapping[str, Spikes],
    inputs: Spikes,
    until: Any = NO_TIME,
    observation: Any = None,
) -> dict[str, _Call]:
    """Of each population; takes the arguments as ``__call__`` of the layers does."""
    sources = [x.reshape_batch(-1) for x in (inputs, *found.values())]
    network = described(module, inputs.size)
    calls = {}
    for own, (name, population) in enumerate(zip(found, network, strict=True), 1):
        others = [p.source for p in population.projections if p.source != own]
        arriving, kernel = _heard(population, sources)
        calls[name] = _Call(
            neuron=population.neuron,
            kernel=kernel,
            inputs=tuple(sources[k] for k in others),
            arriving=arriving,
            until=jnp.asarray(until, jnp.result_type(kernel, inputs.time)),
            found=kept[name].reshape_batch(-1),
            max_spikes=population.max_spikes,
            on_device=module.backend is not None or observation is not None,
        )
    return calls


def _heard(population: Population, sources: Sequence[Spikes]) -> tuple[Spikes, Array]:
    """All that comes to the neurons of a population.

    Args:
      population: what acts on it.
      sources: their spikes as they are sent, ``[batch, slots]``.

    Returns:
      The spikes as they arrive, ``[batch, slots]``, or, where that depends on the
      target, ``[neurons, batch, slots]``, and their weights, ``[sources, neurons]``.
    """
    kernels = [p.kernel for p in population.projections]
    delays = [
        jnp.atleast_2d(jnp.asarray(p.delay, p.kernel.dtype))
        for p in population.projections
    ]
    targets = (population.size,) if any(d.shape[1] > 1 for d in delays) else ()
    arriving = []
    for p, delay in zip(population.projections, delays, strict=True):
        sent = sources[p.source]
        each = jnp.broadcast_to(delay, (sent.size, *(targets or (1,)))).T
        arriving.append(sent.delayed(each.reshape(*targets, sent.size)))
    return concatenate(*arriving), jnp.concatenate(kernels)


def _silence(name: str, calls: Sequence[_Call]) -> LayerSilence:
    distance(calls[0].neuron)
    parts = [jax.tree.map(np.asarray, _look_closer(call)) for call in calls]
    seen = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    reach, endless, excited = (
        seen[key].max(axis=0) for key in ("reach", "endless", "excited")
    )
    missing = "device" if calls[0].on_device else "no slot"

    def reason(n: int) -> str:
        if seen["count"][:, n].any():
            return ""
        if reach[n] > 1:
            return missing
        if endless[n] > 1:
            return "window"
        if not seen["heard"].any():
            return "no input"
        return "inhibited" if excited[n] > 1 or reach[n] <= 0 else "weak"

    return LayerSilence(
        name=name,
        samples=len(seen["count"]),
        inputs=float(seen["heard"].mean()),
        silent=float((seen["count"] == 0).mean()),
        saturated=float((seen["count"] >= calls[0].max_spikes).mean()),
        reach=reach,
        reasons=tuple(map(reason, range(len(reach)))),
    )


@jax.jit
def _look_closer(call: _Call) -> dict[str, Array]:
    """What tells the reasons apart, ``[batch, neurons]``, and inputs ``[batch]``."""
    neuron = call.neuron

    def reach(kernel: Array, until: Array | float) -> Array:
        def highest(neuron: Neuron, kernel: Array, arriving: Spikes) -> Array:
            return Trace(neuron, kernel, arriving, until).maximum().value

        def of_one(neuron: Neuron, weights: Array, arriving: Spikes) -> Array:
            return highest(neuron, weights[:, None], arriving)[:, 0]

        if call.arriving.time.ndim == 2:
            highest_of_all = highest(neuron, kernel, call.arriving)
        else:  # Each neuron hears the spikes at times of its own.
            shape = (kernel.shape[1],)
            each = jax.tree.map(lambda x: jnp.broadcast_to(x, shape), neuron)
            of_all = jax.vmap(of_one, out_axes=1)
            highest_of_all = of_all(each, kernel.T, call.arriving)
        return (highest_of_all - neuron.v_leak) / (neuron.v_th - neuron.v_leak)

    return {
        "count": call.found.count(),
        "heard": sum(
            [jnp.sum(x.time < call.until, axis=-1) for x in call.inputs],
            jnp.zeros((), int),
        ),
        "reach": reach(call.kernel, call.until),
        "endless": reach(call.kernel, NO_TIME),
        "excited": reach(jnp.maximum(call.kernel, 0), call.until),
    }
