r"""Attributes of layers that are a number, an array, or a parameter to be learned.

A number or an array is a constant. A callable is an initializer, such as
``nn.initializers.constant(10e-3)``, which makes a parameter of the layer. Bounds are
kept by the form in which it is stored, never by clipping the value: a time constant is
:math:`e^p`, a threshold :math:`v_\mathrm{reset} + e^p`, and what is `Bounded` a sigmoid
of the parameter :math:`p`. An optimizer's step, however large, cannot leave the range.
"""

import dataclasses
import math
import numbers
import sys
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax

from jaxsnn.dynamics import Neuron, Parameter
from jaxsnn.spikes import Spikes, _traced

Value = float | Array | np.ndarray | tuple[float, ...] | nn.initializers.Initializer

_LARGEST_LOG = 30.0  # Its exponential is beyond all use, but its square is finite.
_MARGIN = 1e-3  # Of the range of a `Bounded` value, where it starts from its edges.


@dataclasses.dataclass(frozen=True)
class Bounded:
    r"""A learned value that stays in a range and, if asked to, on a grid.

    .. math:: x = l + (h - l)\,\sigma(p)

    for the parameter :math:`p`, stored as ``logit_<name>``. It goes where an
    initializer goes: the delays that a device can realise are, for example,
    ``LIF(8, delay=Bounded(0.0, 5e-3, step=0.1e-3))``.

    With a `step`, the value is the nearest of :math:`l, l + \Delta, \dots, h`, and its
    gradient is that of :math:`x` without rounding (straight-through). That is the one
    place where a gradient is not the derivative of what was computed, which is zero
    almost everywhere; the gradients of all else, at the rounded value, stay exact.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> from jaxsnn import Spikes
      >>> from jaxsnn.layers import Bounded, Delay
      >>> layer = Delay(Bounded(0.0, 5e-3, step=1e-3, init=2.2e-3))
      >>> inputs = Spikes.from_times(jnp.array([[1e-3]]))
      >>> outputs, variables = layer.init_with_output(jax.random.key(0), inputs)
      >>> print(f"{outputs.time[0] * 1e3:.1f} ms")
      3.0 ms

    Attributes:
      low: least value.
      high: largest value.
      step: distance of the values on the grid; None for all values in the range.
      init: first value, a number or an initializer; by default uniform in the range.
        At an edge the gradient is zero, so that what would start there, or closer than
        a thousandth of the range, starts at that distance.

    Raises:
      ValueError: an empty range, or one that is no whole number of steps.
    """

    low: float
    high: float
    step: float | None = None
    init: float | nn.initializers.Initializer | None = None

    def __post_init__(self) -> None:
        """Checks the range."""
        if not (math.isfinite(self.low) and self.low < self.high < math.inf):
            raise ValueError(
                f"low is {self.low} and high is {self.high}, expected two finite"
                " numbers, low below high."
            )
        if self.step is not None:
            steps = (self.high - self.low) / self.step if self.step > 0 else 0
            if round(steps) < 1 or abs(steps - round(steps)) > 1e-6 * steps:
                raise ValueError(
                    f"step is {self.step}, expected a whole number of steps from low,"
                    f" {self.low}, to high, {self.high}."
                )
        init = self.init
        if isinstance(init, numbers.Real) and not self.low <= init <= self.high:
            raise ValueError(
                f"init is {init}, expected a value from {self.low} to {self.high}."
            )

    def __call__(self, key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        """First values, as an initializer."""
        if self.init is None:
            return jax.random.uniform(key, shape, dtype, self.low, self.high)
        if callable(self.init):
            return self.init(key, shape, dtype)
        return jnp.full(shape, self.init, dtype)

    def parameter(self, value: Array) -> Array:
        """The parameter of a value."""
        fraction = (value - self.low) / (self.high - self.low)
        return jax.scipy.special.logit(jnp.clip(fraction, _MARGIN, 1 - _MARGIN))

    def value(self, parameter: Array) -> Array:
        """The value of a parameter."""
        value = self.low + (self.high - self.low) * jax.nn.sigmoid(parameter)
        if self.step is None:
            return value
        nearest = self.low + self.step * jnp.round((value - self.low) / self.step)
        # In this order the sum is the rounded value to the last bit.
        return lax.stop_gradient(nearest) + (value - lax.stop_gradient(value))


@dataclasses.dataclass(frozen=True)
class _Shared:
    value: nn.initializers.Initializer | Bounded
    SHAPE: ClassVar[str]

    def __post_init__(self) -> None:
        """Checks that it is learned."""
        if not callable(self.value) or isinstance(self.value, _Shared):
            raise ValueError(
                f"{type(self).__name__} takes an initializer or a Bounded, not"
                f" {self.value!r}; a constant is an array of shape {self.SHAPE}."
            )

    def __call__(self, key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        """First values, as an initializer."""
        return self.value(key, shape, dtype)

    def among(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Shape of the parameter for synapses ``[sources, targets]``."""
        raise NotImplementedError


class PerSource(_Shared):
    """A learned delay of each source, to all of its targets: an axonal one.

    It goes where an initializer goes, and makes a parameter ``[sources, 1]`` where that
    would make one for each synapse.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> from jaxsnn import Spikes
      >>> from jaxsnn.layers import LIF, Bounded, PerSource
      >>> delay = PerSource(Bounded(1e-3, 5e-3))
      >>> layer = LIF(4, recurrent=True, recurrent_delay=delay)
      >>> inputs = Spikes.from_times(jnp.array([[[1e-3], [2e-3]]]))
      >>> params = layer.init(jax.random.key(0), inputs)["params"]
      >>> params["logit_recurrent_delay"].shape
      (4, 1)

    Attributes:
      value: an initializer, or a `Bounded`.
    """

    SHAPE = "[sources, 1]"

    def among(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Shape of the parameter for synapses ``[sources, targets]``."""
        return shape[0], 1


class PerTarget(_Shared):
    """A learned delay of each target, from all of its sources: a dendritic one.

    As `PerSource`, with a parameter ``[1, targets]``.

    Attributes:
      value: an initializer, or a `Bounded`.
    """

    SHAPE = "[1, targets]"

    def among(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Shape of the parameter for synapses ``[sources, targets]``."""
        return 1, shape[1]


def param(
    module: nn.Module, name: str, init: Callable, shape: tuple[int, ...]
) -> Array:
    """The module's parameter; where it is only looked at, one that exists already."""
    found: Any
    if module.has_variable("params", name):
        found = nn.meta.unbox(module.get_variable("params", name))
        if jnp.shape(found) != shape:
            raise ValueError(
                f"{label(module)} has a parameter {name} of shape {jnp.shape(found)},"
                f" expected {shape}."
            )
    else:
        dtype = getattr(module, "param_dtype", jnp.float32)
        found = module.param(name, init, shape, dtype)
    if not _traced(found) and not np.isfinite(np.asarray(found)).all():
        raise ValueError(
            f"the {name} of {label(module)} has entries that are NaN or inf."
        )
    return found


def free(
    module: nn.Module, name: str, value: Value, shape: tuple[int, ...]
) -> Parameter:
    """A value with no bounds but its own, if it is `Bounded`."""
    value, shape = _apart(module, name, value, shape)
    if not callable(value):
        return constant(module, name, value, shape)

    def init(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        low, high = -math.inf, math.inf
        if isinstance(value, Bounded):
            low, high = value.low, value.high
        first = value(key, shape, dtype)
        within = (low <= first) & (first <= high) & jnp.isfinite(first)
        expected = f"values from {low} to {high}"
        _check_first(module, name, first, within, expected)
        return value.parameter(first) if isinstance(value, Bounded) else first

    if isinstance(value, Bounded):
        return value.value(param(module, f"logit_{name}", init, shape))
    return param(module, name, init, shape)


def beyond(
    module: nn.Module,
    name: str,
    value: Value,
    shape: tuple[int, ...],
    edge: Parameter,
    side: int = 1,
) -> Parameter:
    r"""A value above `edge`, or below it if `side` is -1: :math:`x = a \pm e^p`.

    The parameter :math:`p` is called ``log_<name>``; its steps are relative ones. What
    is `Bounded` keeps to its own bounds instead.
    """
    value, shape = _apart(module, name, value, shape)
    if not callable(value) or isinstance(value, Bounded):
        return free(module, name, value, shape)

    def init(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        first = value(key, shape, dtype)
        gap = side * (first - edge)
        expected = f"values {'above' if side > 0 else 'below'} {edge}"
        _check_first(module, name, first, (gap > 0) & (gap < math.inf), expected)
        return jnp.log(gap)

    logarithm = param(module, f"log_{name}", init, shape)
    # A step that leaves these bounds has lost the neuron, but is not to return NaN.
    gap = jnp.exp(jnp.clip(logarithm, -_LARGEST_LOG, _LARGEST_LOG))
    beside = edge + side * gap
    nearest = jnp.nextafter(lax.stop_gradient(beside), side * math.inf)
    return jnp.where(beside == edge, nearest, beside)  # A gap lost in rounding.


def positive(
    module: nn.Module, name: str, value: Value, shape: tuple[int, ...]
) -> Parameter:
    """A value above 0."""
    return beyond(module, name, value, shape, 0.0)


def _apart(
    module: nn.Module, name: str, value: Value, shape: tuple[int, ...]
) -> tuple[Value, tuple[int, ...]]:
    """What is learned, and the shape of what is learned."""
    if not isinstance(value, _Shared):
        return value, shape
    if len(shape) != 2:
        raise ValueError(
            f"{label(module)}.{name} is {value!r}, but it is no property of synapses;"
            " give the initializer itself."
        )
    return value.value, value.among((shape[0], shape[1]))


def _check_first(
    module: nn.Module, name: str, first: Array, right: Array, expected: str
) -> None:
    """Raises if an initializer returned what cannot be learned from."""
    if not _traced(first, right) and not np.asarray(right).all():
        wrong = np.asarray(first)[~np.asarray(right)].flat[0]
        raise ValueError(
            f"the initializer of {label(module)}.{name} returns {wrong}, expected"
            f" {expected}."
        )


def constant(
    module: nn.Module, name: str, value: Any, shape: tuple[int, ...]
) -> Parameter:
    """A number as it is; an array of the right shape, in NumPy if it is known.

    What NumPy has, devices can check, in a compiled function as well.
    """
    if isinstance(value, int | float | np.number):
        return float(value)
    array = np.asarray(value, float) if isinstance(value, tuple | list) else value
    found = getattr(array, "shape", (None,))
    pairs = zip(reversed(found), reversed(shape), strict=False)
    if len(found) > len(shape) or any(m not in (1, n) for m, n in pairs):
        raise ValueError(
            f"{label(module)}.{name} is {value!r}, expected a number, an initializer,"
            f" or an array that fits {shape}."
        )
    library = jnp if _traced(array) else np
    return library.asarray(array, getattr(module, "param_dtype", jnp.float32))


def neuron_of(module: Any) -> Neuron:
    """The neurons of a layer, from its attributes and, where learned, parameters.

    Learned are ``log_tau_mem``, ``log_tau_syn``, ``log_t_ref``, ``v_leak``,
    ``v_reset``, and ``log_v_th``, the logarithm of ``v_th - v_reset``. If `v_th` is a
    constant, then a learned `v_reset` is ``log_v_reset``, the logarithm of that
    difference. What is `Bounded` is ``logit_<name>``, and counts as a constant in that.
    """
    shape = (module.features,)
    at: dict[str, Any] = {
        name: positive(module, name, getattr(module, name), shape)
        for name in ("tau_mem", "tau_syn")
    }
    at["v_leak"] = free(module, "v_leak", module.v_leak, shape)
    if not hasattr(module, "v_th"):
        return Neuron(**at)
    at["t_ref"] = positive(module, "t_ref", module.t_ref, shape)
    v_th, v_reset = module.v_th, module.v_reset
    if _unbounded(v_reset) and not _unbounded(v_th):
        at["v_th"] = free(module, "v_th", v_th, shape)
        at["v_reset"] = beyond(module, "v_reset", v_reset, shape, at["v_th"], -1)
    else:
        at["v_reset"] = free(module, "v_reset", v_reset, shape)
        at["v_th"] = beyond(module, "v_th", v_th, shape, at["v_reset"])
    return Neuron(**at)


def check_neuron(module: Any) -> None:
    """Raises for constants and bounds out of range, as `Neuron`, before any work."""
    worst: dict[str, Any] = {}
    for name in ("tau_mem", "tau_syn", "v_th", "v_leak", "v_reset", "t_ref"):
        value = getattr(module, name, None)
        if value is None or _unbounded(value) or _traced(value):
            continue
        if isinstance(value, Bounded):
            value = value.high if name == "v_reset" else value.low
        sequence = isinstance(value, tuple | list)
        worst[name] = np.asarray(value, float) if sequence else value
    if ("v_th" in worst) != ("v_reset" in worst):
        worst.pop("v_th", None)
        worst.pop("v_reset", None)
    Neuron(**worst)


def check_delay(name: str, delay: Value | None) -> None:
    """Raises for constant delays that are not a time, and bounds below 0."""
    if isinstance(delay, _Shared):
        delay = delay.value
    if isinstance(delay, Bounded):
        first: Any = delay.low
    elif delay is None or callable(delay) or _traced(delay):
        return
    else:
        first = delay
    value = np.asarray(first, float)
    if not (np.isfinite(value).all() and (value >= 0).all()):
        raise ValueError(
            f"{name} is {delay!r}, expected times in seconds, 0 or more: a spike"
            " cannot arrive before it was sent."
        )


def shortest_delay(delays: Iterable[Value]) -> float | None:
    """Shortest of a recurrent layer's delays if it can run window by window, else None.

    That takes positive delays that do not depend on the target: numbers, arrays
    ``[sources, 1]``, or `PerSource`.
    """
    shortest = math.inf
    for delay in delays:
        if isinstance(delay, PerSource):
            # Above 0 by its form, but nobody knows by how much.
            least = getattr(delay.value, "low", sys.float_info.min)
        elif callable(delay) or _traced(delay):
            return None
        else:
            value = np.asarray(delay, float)
            if not (value.ndim == 0 or (value.ndim == 2 and value.shape[1] == 1)):
                return None
            least = float(value.min())
        shortest = min(shortest, least)
    return shortest if shortest > 0 else None


def check_whole(name: str, value: Any) -> None:
    """Raises for what is not a whole number of at least 1."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not (whole and int(value) >= 1):
        raise ValueError(f"{name} is {value!r}, expected a whole number, 1 or more.")


def check_callable(name: str, value: Any, example: str) -> None:
    """Raises for what is not a function."""
    if not callable(value):
        raise ValueError(
            f"{name} is {value!r}, expected the function itself, such as {example}."
        )


def _unbounded(value: Any) -> bool:
    """Whether a value is learned and has no bounds of its own."""
    return callable(value) and not isinstance(value, Bounded)


def label(module: nn.Module) -> str:
    """What errors call a layer."""
    kind = type(module).__name__.removeprefix("_")
    return f"{kind} '{module.name}'" if module.name else kind


def check_inputs(module: nn.Module, inputs: Spikes) -> None:
    """Raises if the inputs are no spikes, or not those of as many sources."""
    if not isinstance(inputs, Spikes):
        raise TypeError(
            f"{label(module)} takes jaxsnn.Spikes, not {type(inputs).__name__};"
            " jaxsnn.coding.encode_latency makes them from numbers."
        )
    check_sources(module, inputs.size, "spikes")


def check_sources(module: nn.Module, size: int, what: str) -> None:
    """Raises if a layer has a kernel already, and it is for other inputs."""
    if not module.has_variable("params", "kernel"):
        return
    expected = jnp.shape(nn.meta.unbox(module.get_variable("params", "kernel")))
    if expected != (size, module.features):
        raise ValueError(
            f"{label(module)} has a kernel of shape {expected}: expected {what} of"
            f" {expected[0]} sources and features={expected[1]}, got {what} of {size}"
            f" sources and features={module.features}."
        )


def kernel_of(module: nn.Module, size: int) -> Array:
    """The weights of a layer's inputs, checked."""
    return param(module, "kernel", module.kernel_init, (size, module.features))


def check_until(until: Any) -> None:
    """Raises if `until` is not one time."""
    if jnp.ndim(until) != 0 or (not _traced(until) and math.isnan(until)):
        raise ValueError(f"until is {until!r}, expected one time for the batch.")


def check_t_ref(whose: str, t_ref: Any, until: Any) -> None:
    """Raises for a refractory period that cannot end before the window does."""
    if not _traced(until, t_ref) and np.any(np.asarray(t_ref) > max(until, 0)):
        raise ValueError(
            f"t_ref of {whose} is {t_ref}, longer than the window that ends at"
            f" {until}; times are in seconds."
        )
