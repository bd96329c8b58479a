r"""A certificate that the gradients of a model are right, for whoever runs it.

Five sources that share little are compared in float64: the model's own gradient
methods, `eventprop`, `analytic`, central differences, and a symmetry of the equations.
If nothing in a model depends on absolute time, delaying every input delays every
output spike and leaves alone what is no time, such as the maximum of a voltage, so that
in every sample

.. math::
    \sum_j \frac{\partial L}{\partial t_j^\mathrm{in}}
        = \sum_s \frac{\partial L}{\partial t_s^\mathrm{out}} .

Spike times jump where a spike appears or disappears. A difference quotient across a
jump is no derivative, so jumps are looked for and told apart from wrong gradients.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn  # noqa: TID251  # For annotations; models are Linen's.
from jax import Array, lax

from jaxsnn.analytic import analytic
from jaxsnn.capacity import Layer, observe, table
from jaxsnn.eventprop import eventprop
from jaxsnn.readout import Trace
from jaxsnn.spikes import NO_TIME, Spikes

# Relative to the size of what is changed: from where truncation dominates to where
# rounding does.
_STEPS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
_STENCIL = (-2.0, -1.0, 1.0, 2.0)


class Tolerances(NamedTuple):
    """Largest relative differences that are accepted.

    Attributes:
      methods: between gradient methods, in float64.
      differences: between the gradient and central differences, in float64.
      delay: of the two sides of the delay identity, in float64.
      dtype: between the gradient in the model's own dtype and in float64.
    """

    methods: float = 1e-9
    differences: float = 1e-6
    delay: float = 1e-9
    dtype: float = 1e-4


_DEFAULT = Tolerances()


@dataclasses.dataclass(frozen=True)
class LayerCheck:
    """What is said about one layer.

    Attributes:
      name: path of the layer in its model; of a population of a `Graph`, with its name.
      spikes: number of spikes found, over all samples.
      silent: fraction of neurons, over samples, that did not fire.
      dropped: number of spikes that found no slot, over all samples.
      slots: `LIF.slots`; None if every spike finds one.
      needed: slots that would have sufficed.
      slope: of the voltage at the spike that came closest to grazing the threshold, in
        units of ``(v_th - v_reset) / tau_mem``; ``inf`` without spikes. Rounding is
        amplified by its inverse square.
      method: name of the layer's own gradient method.
      own: relative change of the gradient if this layer alone uses its own method and
        all others `analytic`. This is what tells which layer is wrong. Populations in a
        loop of a `Graph` have their gradient together, and share this.
      eventprop: the same for `eventprop`.
    """

    name: str
    spikes: int
    silent: float
    dropped: int
    slots: int | None
    needed: int
    slope: float
    method: str
    own: float
    eventprop: float


@dataclasses.dataclass(frozen=True)
class LeafCheck:
    """What is said about the gradient by one array of parameters, or by input times.

    Differences are relative to the largest entry of the gradient, those with central
    differences to the norm of the gradient. NaN stands for what could not be decided.

    Attributes:
      name: path of the array among the parameters, or ``input times``.
      norm: Euclidean norm of the gradient.
      own: model's own methods against `analytic`, in float64.
      eventprop: `eventprop` in all layers against `analytic`, in float64.
      differences: own gradient against central differences, in the worst direction.
      resolution: how far central differences of two step sizes agree; they can tell no
        more than that.
      step: step size that was chosen, by that agreement, relative to the array.
      jumps: step sizes, over all directions, at which a spike appeared, disappeared or
        jumped.
      dtype: gradient in the model's own dtype against float64.
      rounding: change of the float64 gradient if all numbers are rounded differently to
        the model's own dtype; no method could promise less.
    """

    name: str
    norm: float
    own: float
    eventprop: float
    differences: float
    resolution: float
    step: float
    jumps: int
    dtype: float
    rounding: float


@dataclasses.dataclass(frozen=True)
class GradientReport:
    """What `check_gradients` found; prints as a table.

    Attributes:
      layers: one entry per layer, in the order in which they run.
      leaves: one entry per array of parameters, then one for the input times.
      delay: relative difference of the two sides of the delay identity in the worst
        sample; NaN if the outputs depend on absolute time.
      tolerances: what was accepted.
      failures: what is wrong, in words. Empty if nothing is.
      undecided: what could not be checked, and why, in words.
    """

    layers: tuple[LayerCheck, ...]
    leaves: tuple[LeafCheck, ...]
    delay: float
    tolerances: Tolerances
    failures: tuple[str, ...]
    undecided: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed. What could not be checked is in `undecided`."""
        return not self.failures

    @property
    def overflow(self) -> dict[str, int]:
        """Spikes that found no slot, by layer; they have no part in any gradient."""
        return {x.name: x.dropped for x in self.layers if x.dropped}

    def __str__(self) -> str:
        spikes = sum(layer.spikes for layer in self.layers)
        lines = [f"Gradients: {'ok' if self.ok else 'NOT OK'}, with {spikes} spikes"]
        lines += [f"  wrong: {failure}" for failure in self.failures]
        lines += [f"  undecided: {reason}" for reason in self.undecided]
        lines += [
            f"  overflow: {x.dropped} spikes of layer '{x.name}' found no slot and take"
            f" no part in the gradient; slots={x.needed} would have sufficed."
            for x in self.layers
            if x.dropped
        ]
        layers = [["layer", "spikes", "silent", "dropped", "least slope", "method"]]
        layers[0] += ["own", "eventprop"]
        layers += [
            [
                x.name,
                str(x.spikes),
                f"{x.silent:.1%}",
                str(x.dropped),
                f"{x.slope:.1e}",
                x.method,
                _number(x.own),
                _number(x.eventprop),
            ]
            for x in self.layers
        ]
        leaves = [["gradient by", "norm", "own", "eventprop", "differences", "at step"]]
        leaves[0] += ["jumps", "own dtype", "rounding"]
        leaves += [
            [
                x.name,
                f"{x.norm:.1e}",
                _number(x.own),
                _number(x.eventprop),
                _number(x.differences),
                _number(x.step),
                str(x.jumps),
                _number(x.dtype),
                _number(x.rounding),
            ]
            for x in self.leaves
        ]
        accept = self.tolerances
        methods, differences = _number(accept.methods), _number(accept.differences)
        leaves.append(["tolerance", "", methods, methods, differences, "", ""])
        leaves[-1] += [_number(accept.dtype), ""]
        delay = f"delay identity: {_number(self.delay)}"
        delay += f" (tolerance {_number(accept.delay)})"
        return "\n".join([*lines, "", table(layers), "", table(leaves), "", delay])


def check_gradients(
    model: nn.Module,
    variables: Mapping[str, Any],
    spikes: Spikes,
    *,
    read: Callable[[Any], Array] | None = None,
    directions: int = 2,
    seed: int = 0,
    tolerances: Tolerances = _DEFAULT,
    **options: Any,
) -> GradientReport:
    """Checks the gradients of a model against everything there is to check them with.

    For a randomly weighted sum of what `read` makes of the outputs, compares in
    float64: the model's own gradient methods, layer by layer and together, with
    `eventprop` and `analytic`; the gradient with central differences along random
    directions, for each array of parameters and for the input times; and the two sides
    of the delay identity. Then, the gradient in the model's own dtype with that in
    float64. The simulation finds the spikes, whatever the model's backend. Nothing of
    the model is changed.

    A report that is ok says that the gradient is that of the spikes that did occur, at
    these variables and inputs. It does not say that the loss has no jumps: a spike that
    appears or disappears has no derivative, and where one does so within the smallest
    step (1e-8 of the size of the array), the report says that and decides nothing. The
    own dtype fails if it is off by more than its tolerance and by more than 100 times
    what rounding its inputs does, which is much where a neuron grazes its threshold.

    Costs one compilation of the model's gradient by all methods and about
    ``24 * directions`` runs per array: meant for a small batch, not for every step.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> from jaxsnn import check_gradients
      >>> from jaxsnn.coding import encode_latency
      >>> from jaxsnn.layers import LIF, Network
      >>> features = jax.random.uniform(jax.random.key(0), (4, 5))
      >>> inputs = encode_latency(features, t_late=10e-3, bias=0.0)
      >>> model = Network([LIF(10, name="hidden"), LIF(3, name="output")])
      >>> variables = model.init(jax.random.key(1), inputs)
      >>> report = check_gradients(model, variables, inputs)
      >>> report.ok
      True
      >>> [leaf.name for leaf in report.leaves]
      ['hidden/kernel', 'output/kernel', 'input times']

    Args:
      model: a `Network`, a `LIF`, a `Graph`, or any module from `Spikes` whose spiking
        layers are these or subclasses of them.
      variables: of the model; gradients are by ``variables["params"]``.
      spikes: inputs, any batch shape.
      read: from the model's outputs to one array, in which ``+inf`` stands for none,
        such as ``lambda trace: trace.maximum().value``. By default all spike times of
        `Spikes`, or of a dict of them; of a `Trace` the maxima, and voltages at times
        that go with its inputs; an array as it is.
      directions: random directions per array for central differences.
      seed: of the loss and of the directions.
      tolerances: what to accept.
      **options: passed on to ``model.apply``, such as ``until=40e-3`` or ``rngs``.

    Raises:
      ValueError: a model without any `LIF` or `Graph`, or variables without parameters.
      TypeError: outputs that are neither `Spikes`, a `Trace` nor an array, and no
        `read` that makes an array of them.
    """
    if directions < 1:
        raise ValueError(f"directions is {directions}, expected 1 or more.")
    if not jax.tree.leaves(variables.get("params", {})):
        raise ValueError(
            'variables has no "params"; pass what model.init returned, such as'
            ' {"params": {"kernel": ...}}.'
        )
    rng, read = np.random.default_rng(seed), read or _read
    own_dtype = np.dtype(spikes.time.dtype)
    with jax.enable_x64(True):
        wide = _cast((variables, spikes, options))
        exact = _Problem(model, wide[0], wide[1], wide[2], read, rng)
        by = exact.gradients()
        delay, delay_reason = _delay(exact, by["own"], tolerances.delay)
        differences = [
            _difference(exact, by["own"], n, rng, directions, tolerances.differences)
            for n in range(exact.n)
        ]
        rounding = _rounding(exact, by["own"], own_dtype, rng)
    rounded = _Problem(model, variables, spikes, options, read, rng, like=exact)
    dtype, dtype_reason = _own_dtype(exact, rounded, by["own"])

    layers = tuple(_layer_check(exact, by, layer) for layer in exact.layers.values())
    leaves = tuple(
        LeafCheck(
            name=name,
            norm=float(np.linalg.norm(by["own"].grads[n])),
            own=_relative(by["own"].grads[n], by["analytic"].grads[n]),
            eventprop=_relative(by["eventprop"].grads[n], by["analytic"].grads[n]),
            differences=differences[n].error,
            resolution=differences[n].resolution,
            step=differences[n].step,
            jumps=differences[n].jumps,
            dtype=dtype[n],
            rounding=rounding[n],
        )
        for n, name in enumerate(exact.names)
    )
    undecided = [d.reason for d in differences if d.reason]
    undecided += [reason for reason in (delay_reason, dtype_reason) if reason]
    if not any(np.any(grad) for grad in by["analytic"].grads):
        undecided.insert(0, "every gradient is zero: no spike acts on the outputs.")
    return GradientReport(
        layers=layers,
        leaves=leaves,
        delay=delay,
        tolerances=tolerances,
        failures=tuple(_failures(layers, leaves, delay, tolerances, own_dtype)),
        undecided=tuple(undecided),
    )


class _Result(NamedTuple):
    """Value and gradients of one run, as NumPy arrays."""

    value: float
    grads: list[np.ndarray]
    outputs: np.ndarray  # What was read of them.
    kept: dict[str, list[np.ndarray]]
    counts: dict[str, list[np.ndarray]]
    slope: dict[str, list[np.ndarray]]


class _Difference(NamedTuple):
    error: float
    resolution: float
    step: float
    jumps: int
    reason: str


class _Problem:
    """A model as a function from a list of arrays to a scalar loss.

    The arrays are those of the parameters, and last the input times, in the order in
    which `Spikes` holds them for whoever differentiates.
    """

    def __init__(
        self,
        model: nn.Module,
        variables: Mapping[str, Any],
        spikes: Spikes,
        options: Mapping[str, Any],
        read: Callable[[Any], Array],
        rng: np.random.Generator,
        like: "_Problem | None" = None,
    ) -> None:
        self.model, self.spikes, self.options, self.read = model, spikes, options, read
        self.variables = variables
        leaves, treedef = jax.tree_util.tree_flatten_with_path(variables["params"])
        self.treedef: Any = treedef
        self.names = [
            jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves
        ]
        self.names.append("input times")
        times = spikes.time if spikes.by_source is None else spikes.by_source
        self.arrays = [jnp.asarray(leaf) for _, leaf in leaves] + [times]
        self.n = len(self.arrays)
        self.layers: dict[str, Layer] = {}
        shape, _ = jax.eval_shape(lambda x: self.run(x, None), self.arrays)
        if like is None:
            neurons = [x.neuron(self.variables) for x in self.layers.values()]
            self.scale = max(float(np.max(x.tau_mem)) for x in neurons)
            self.fast = min(
                float(min(np.min(x.tau_mem), np.min(x.tau_syn))) for x in neurons
            )
            self.weight = rng.choice([-1, 1], shape.shape) * rng.uniform(
                0.5, 1.5, shape.shape
            )
            self.methods = [eventprop, analytic]
            for layer in self.layers.values():
                if layer.gradient not in self.methods:
                    self.methods.append(layer.gradient)
        else:
            self.scale, self.weight = like.scale, like.weight
        self._value_and_grad = jax.jit(jax.value_and_grad(self.loss, has_aux=True))
        self._quotients = jax.jit(self.quotients)

    def run(self, arrays: list[Array], choice: Mapping[str, Array] | None) -> tuple:
        """What is read of the outputs, and what the layers did."""
        *leaves, times = arrays
        variables = {**self.variables, "params": self.treedef.unflatten(leaves)}
        if self.spikes.by_source is None:
            spikes = Spikes.from_events(times, self.spikes.index, self.spikes.size)
        else:
            spikes = Spikes.from_times(times)

        def gradient(layer: Layer) -> Callable[..., Array]:
            if choice is None:
                return layer.gradient
            which = choice[layer.loop]

            def chosen(neuron, *args):
                branches = [
                    lambda *args, method=method: method(neuron, *args)
                    for method in self.methods
                ]
                return lax.switch(which, branches, *args)

            return chosen

        outputs, seen = observe(
            self.model,
            variables,
            spikes,
            self.options,
            self.layers,
            simulated=True,
            gradient=gradient,
        )
        values = self.read(outputs)
        if not isinstance(values, Array):
            raise TypeError(
                f"{type(self.model).__name__} returned {type(outputs).__name__}, read"
                f" as {type(values).__name__}, expected Spikes, a Trace or an array;"
                " pass read, a function of the outputs that returns one array."
            )
        facts = {}
        for name, layer in self.layers.items():
            calls = seen[name]
            facts[name] = {
                "kept": [call.kept.times(layer.max_spikes) for call in calls],
                "count": [call.spikes.count() for call in calls],
                "slope": [call.slope for call in calls],
            }
        return values, facts

    def loss(
        self, arrays: list[Array], choice: Mapping[str, Array] | None
    ) -> tuple[Array, tuple]:
        """A weighted sum of what is read of the outputs; what is missing adds 0."""
        values, seen = self.run(arrays, choice)
        weight = jnp.asarray(self.weight, values.dtype)
        value = jnp.sum(weight * jnp.where(values == NO_TIME, 0, values))
        return value, lax.stop_gradient((values, seen))

    def gradient(
        self, choice: Mapping[str, int] | None, arrays: list[Array] | None = None
    ) -> _Result:
        """Loss and gradients, with a method chosen for each loop or its own."""
        arrays = self.arrays if arrays is None else arrays
        result = self._value_and_grad(arrays, choice)
        (value, (outputs, seen)), grads = jax.tree.map(np.asarray, result)
        kept, count, slope = (
            {name: found[key] for name, found in seen.items()}
            for key in ("kept", "count", "slope")
        )
        return _Result(float(value), grads, outputs, kept, count, slope)

    @property
    def own(self) -> dict[str, int]:
        """Which of the methods is each loop's own; a layer is one."""
        layers = self.layers.values()
        return {x.loop: self.methods.index(x.gradient) for x in layers}

    def gradients(self) -> dict[str, _Result]:
        """Results by method; for single loops, all others by `analytic`."""
        own = self.own
        by_eventprop = dict.fromkeys(own, 0)
        by_analytic = dict.fromkeys(own, 1)
        choices = {"own": own, "eventprop": by_eventprop, "analytic": by_analytic}
        for name in own:
            choices[f"own in {name}"] = by_analytic | {name: own[name]}
            choices[f"eventprop in {name}"] = by_analytic | {name: 0}
        done: dict[tuple, _Result] = {}
        for choice in choices.values():
            key = tuple(choice.values())
            if key not in done:
                done[key] = self.gradient(choice)
        return {name: done[tuple(choice.values())] for name, choice in choices.items()}

    def quotients(
        self, arrays: list[Array], direction: list[Array], kept: Mapping
    ) -> tuple[Array, Array, Array, dict]:
        """Difference quotients along a direction, for every step size.

        Returns:
          The quotients, whether some spike jumped, and for each layer the numbers of
          spikes that appeared and disappeared, all ``[steps]``.
        """

        def move(h: Array) -> tuple:
            moved = [a + h * d for a, d in zip(arrays, direction, strict=True)]
            value, (_, seen) = self.loss(moved, None)
            return value, {name: found["kept"] for name, found in seen.items()}

        def at(h: Array) -> tuple:
            f, times = lax.map(move, h * jnp.asarray(_STENCIL))
            quotient = (8 * (f[2] - f[1]) - (f[3] - f[0])) / (12 * h)
            change = {n: _changes(times[n], kept[n]) for n in kept}
            # A smooth time moves to one side as far as to the other. The scale is that
            # of all spikes, since some single one may happen to stand still.
            bend = jnp.max(jnp.stack([c[0] for c in change.values()]))
            shift = jnp.max(jnp.stack([c[1] for c in change.values()]))
            jumped = bend > 0.5 * shift + 1e-9 * self.scale
            counts = {n: c[2:] for n, c in change.items()}
            return quotient, jumped, counts

        return lax.map(at, jnp.asarray(_STEPS))

    def movable(self) -> np.ndarray:
        """Which input times a difference may move: spikes not at the start of a run."""
        times = np.asarray(self.arrays[-1])
        start = -np.inf
        if any(x.neuron(self.variables).fires_unprompted for x in self.layers.values()):
            start = 0.0
        for path, leaf in jax.tree_util.tree_leaves_with_path(
            self.variables.get("events", {})
        ):
            if jax.tree_util.keystr(path[-1:], simple=True) == "time":
                start = max(start, float(np.max(leaf)))
        return np.isfinite(times) & (times > start + 1e-2 * self.fast)


def _read(outputs: Any) -> Array:
    """What is checked if the user does not choose."""
    if isinstance(outputs, Spikes):
        by_source = outputs.by_source
        n = outputs.time.shape[-1] if by_source is None else by_source.shape[-1]
        return outputs.times(n)
    several = outputs.values() if isinstance(outputs, dict) else ()
    if several and all(isinstance(x, Spikes) for x in several):
        each = [_read(x).reshape(*x.time.shape[:-1], -1) for x in several]
        return jnp.concatenate(each, axis=-1)
    if not isinstance(outputs, Trace):
        return outputs
    # Voltages at fixed times would change with a delay, so these go with the inputs.
    times = outputs.inputs.time
    exists = times < NO_TIME
    count = jnp.maximum(jnp.sum(exists, axis=-1, keepdims=True), 1)
    mean = jnp.sum(jnp.where(exists, times, 0), axis=-1, keepdims=True) / count
    slow = jnp.max(outputs.neuron.tau_mem)
    later = slow * jnp.asarray([0.0, 0.5, 1.0, 2.0], mean.dtype)
    highest = outputs.maximum().value[..., None]
    return jnp.concatenate([highest, outputs.voltage(mean + later)], axis=-1)


def _changes(moved: list[Array], kept: list[Array]) -> tuple[Array, ...]:
    """What a stencil does to a layer's spike times, ``[4, *batch, neurons, n]``.

    Returns:
      The largest second difference of a time, the largest first one, and how many
      spikes appeared and disappeared at the worst point.
    """
    bend, shift = jnp.zeros(()), jnp.zeros(())
    appeared, disappeared = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    for times, here in zip(moved, kept, strict=True):
        there, was = times < NO_TIME, here < NO_TIME
        axes = tuple(range(1, times.ndim))
        new = jnp.sum(there & ~was, axes, dtype=jnp.int32)
        lost = jnp.sum(~there & was, axes, dtype=jnp.int32)
        appeared = jnp.maximum(appeared, jnp.max(new))
        disappeared = jnp.maximum(disappeared, jnp.max(lost))
        by = jnp.where(there & was, times - jnp.where(was, here, 0), 0)
        for left, right in ((0, 3), (1, 2)):
            bend = jnp.maximum(bend, jnp.max(jnp.abs(by[right] + by[left]), initial=0))
            shift = jnp.maximum(
                shift, jnp.max(jnp.abs(by[right] - by[left]), initial=0)
            )
    return bend, shift, appeared, disappeared


def _difference(
    problem: _Problem,
    own: _Result,
    n: int,
    rng: np.random.Generator,
    directions: int,
    tolerance: float,
) -> _Difference:
    """Compares the gradient by one array with central differences."""
    array = np.asarray(problem.arrays[n])
    if n == problem.n - 1:
        mask, size = problem.movable(), problem.fast
    else:
        mask, size = np.ones(array.shape, bool), float(np.sqrt(np.mean(array**2)))
    size = size or 1.0
    name = problem.names[n]
    best = _Difference(math.nan, math.nan, math.nan, 0, "")
    if not mask.any():
        return best._replace(reason=f"{name}: there is none that could be moved.")
    grad = np.where(mask, own.grads[n], 0) * size
    norm = float(np.linalg.norm(grad))
    jumps, worst, changes = 0, -math.inf, {}
    for _ in range(directions):
        along = np.where(mask, rng.normal(size=array.shape), 0)
        direction = [jnp.zeros_like(a) for a in problem.arrays]
        direction[n] = jnp.asarray(along * size)
        result = problem._quotients(problem.arrays, direction, own.kept)
        quotients, jumped, counts = jax.tree.map(np.asarray, result)
        for layer, (appeared, disappeared) in counts.items():
            jumped = jumped | (appeared > 0) | (disappeared > 0)
            if appeared[-1] or disappeared[-1]:
                changes[layer] = (int(appeared[-1]), int(disappeared[-1]))
        jumps += int(jumped.sum())
        # Neighbouring step sizes that agree best, whatever the gradient may be.
        gap = np.abs(np.diff(quotients))
        gap[jumped[1:] | jumped[:-1] | ~np.isfinite(gap)] = np.inf
        k = int(np.argmin(gap))
        if not np.isfinite(gap[k]):
            continue
        quotient = quotients[k + 1]
        scale = max(norm, abs(quotient)) or 1.0
        found = best._replace(
            error=float(abs(quotient - np.sum(grad * along)) / scale),
            resolution=float(gap[k] / scale),
            step=_STEPS[k + 1],
        )
        excess = found.error / max(tolerance, 10 * found.resolution)
        if not excess <= worst:
            best, worst = found, excess
    reason = ""
    if math.isnan(best.step) and not jumps:
        reason = f"{name}: central differences are not finite."
    elif math.isnan(best.step):
        where = "; ".join(
            f"at the smallest step, {new} appeared and {lost} disappeared in layer"
            f" '{layer}'"
            for layer, (new, lost) in changes.items()
        )
        reason = (
            f"{name}: spike appeared/disappeared in every central difference"
            f" ({where or 'spike times jump'}), so there is none to compare with."
        )
    elif 10 * best.resolution > tolerance:
        reason = (
            f"{name}: central differences agree among themselves to"
            f" {_number(best.resolution)} only, and cannot tell more than that."
        )
    return best._replace(jumps=jumps, reason=reason)


def _delay(problem: _Problem, own: _Result, tolerance: float) -> tuple[float, str]:
    """Compares the sums of the gradients by input and by output times."""
    shift = 1e-2 * problem.scale
    *leaves, times = problem.arrays
    with_delay = problem.gradient(problem.own, [*leaves, times + shift])
    before, after = own.outputs, with_delay.outputs
    same = np.isfinite(before) == np.isfinite(after)
    before, after = (
        np.where(same & np.isfinite(before), x, 0) for x in (before, after)
    )
    # Times move with the inputs, other values not at all.
    moves = np.abs(after - before) > 0.5 * shift
    gap = np.abs(after - before - shift * moves)
    if not same.all() or (gap > tolerance * (shift + np.abs(before))).any():
        return math.nan, (
            "delay identity: the outputs depend on absolute time, as with a spike at a"
            " fixed time, a leak over the threshold or a given state."
        )
    given, found = np.where(moves, problem.weight, 0), own.grads[-1]
    batch = problem.spikes.time.ndim - 1
    if given.shape[:batch] != problem.spikes.time.shape[:-1]:
        batch = 0
    axes_in, axes_out = (tuple(range(batch, x.ndim)) for x in (found, given))
    scale = np.abs(found).sum(axes_in) + np.abs(given).sum(axes_out)
    error = np.abs(found.sum(axes_in) - given.sum(axes_out))
    error = error / np.where(scale > 0, scale, 1)
    return float(np.max(error, initial=0)), ""


def _rounding(
    problem: _Problem, own: _Result, dtype: np.dtype, rng: np.random.Generator
) -> list[float]:
    """Change of the gradients if all inputs are rounded to `dtype` differently."""
    eps = float(np.finfo(dtype).eps) / 2
    worst = [0.0] * problem.n
    for _ in range(3):
        arrays = [a * (1 + eps * rng.choice([-1, 1], a.shape)) for a in problem.arrays]
        moved = problem.gradient(problem.own, arrays)
        if _same_spikes(moved.kept, own.kept):
            worst = [
                max(w, _relative(a, b))
                for w, a, b in zip(worst, moved.grads, own.grads, strict=True)
            ]
    return worst


def _own_dtype(
    exact: _Problem, rounded: _Problem, own: _Result
) -> tuple[list[float], str]:
    """Compares the gradient in the model's own dtype with that in float64."""
    found = rounded.gradient(None)
    for name in exact.layers:
        if not _same_spikes({name: found.kept[name]}, {name: own.kept[name]}):
            return [math.nan] * exact.n, (
                f"own dtype: rounding to {found.outputs.dtype} makes a spike of layer"
                f" '{name}' appear/disappear."
            )
    pairs = zip(found.grads, own.grads, strict=True)
    return [_relative(a.astype(np.float64), b) for a, b in pairs], ""


def _layer_check(
    problem: _Problem, by: Mapping[str, _Result], layer: Layer
) -> LayerCheck:
    own, reference = by["own"], by["analytic"].grads
    count = np.concatenate(
        [c.reshape(-1, c.shape[-1]) for c in own.counts[layer.name]], axis=0
    )
    total = count.sum(-1)
    dropped = 0 if layer.slots is None else np.maximum(total - layer.slots, 0).sum()

    def alone(method: str) -> float:
        grads = by[f"{method} in {layer.loop}"].grads
        return max(map(_relative, grads, reference))

    return LayerCheck(
        name=layer.name,
        spikes=int(total.sum()),
        silent=float((count == 0).mean()),
        dropped=int(dropped),
        slots=layer.slots,
        needed=int(total.max(initial=0)),
        slope=float(min(np.min(slope) for slope in own.slope[layer.name])),
        method=_method_name(layer.gradient),
        own=alone("own"),
        eventprop=alone("eventprop"),
    )


def _failures(
    layers: tuple[LayerCheck, ...],
    leaves: tuple[LeafCheck, ...],
    delay: float,
    accept: Tolerances,
    dtype: np.dtype,
) -> list[str]:
    """Says in words what is wrong, and where."""
    found = []
    for x in layers:
        errors = [(x.method, x.own)]
        errors += [("eventprop", x.eventprop)] if x.eventprop != x.own else []
        found += [
            f"the gradient of layer '{x.name}' by {method} is {_number(error)} off"
            " that by analytic"
            for method, error in errors
            if error > accept.methods
        ]
    for leaf in leaves:
        if leaf.own > accept.methods or leaf.eventprop > accept.methods:
            found.append(
                f"the gradient by {leaf.name} differs by"
                f" {_number(max(leaf.own, leaf.eventprop))} between methods"
            )
        # Central differences can tell no more than they agree among themselves.
        if leaf.differences > max(accept.differences, 10 * leaf.resolution):
            found.append(
                f"the gradient by {leaf.name} is {_number(leaf.differences)} off"
                " central differences"
            )
        if leaf.dtype > max(accept.dtype, 100 * leaf.rounding):
            found.append(
                f"the gradient by {leaf.name} in {dtype} is {_number(leaf.dtype)} off"
                " float64"
            )
    if delay > accept.delay:
        found.append(f"the delay identity is off by {_number(delay)}")
    return found


def _same_spikes(one: Mapping, other: Mapping) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(np.isfinite(a), np.isfinite(b)) for a, b in pairs)


def _relative(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference relative to the largest entry; ``inf`` if not a number."""
    scale = float(np.max(np.abs(b), initial=0))
    error = float(np.max(np.abs(a - b), initial=0))
    if error == 0:
        return 0.0
    relative = error / scale if scale > 0 else math.inf
    return relative if math.isfinite(relative) else math.inf


def _cast(tree: Any) -> Any:
    """Gives all floating arrays float64; inside ``jax.enable_x64``."""

    def cast(leaf: Any) -> Any:
        floating = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
        return jnp.asarray(np.asarray(leaf), jnp.float64) if floating else leaf

    return jax.tree.map(cast, tree)


def _method_name(method: Callable[..., Array]) -> str:
    while hasattr(method, "func"):  # functools.partial has no name of its own.
        method = method.func
    return getattr(method, "__name__", type(method).__name__)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1e}"
