"""Attributes of layers that are a number, an array, or a parameter to be learned.

A number or an array is a constant. A callable is an initializer, such as
``nn.initializers.constant(10e-3)``, which makes a parameter of the layer; bounds are
kept by the form in which it is stored, never by clipping.
"""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from jaxsnn.dynamics import Neuron, Parameter
from jaxsnn.spikes import Spikes, _traced

Value = float | Array | np.ndarray | tuple[float, ...] | nn.initializers.Initializer


def param(
    module: nn.Module, name: str, init: Callable, shape: tuple[int, ...]
) -> Array:
    """The module's parameter; where it is only looked at, one that exists already."""
    if module.has_variable("params", name):
        return module.get_variable("params", name)
    return module.param(name, init, shape, getattr(module, "param_dtype", jnp.float32))


def positive(
    module: nn.Module, name: str, value: Value, shape: tuple[int, ...], above: Any = 0.0
) -> Parameter:
    r"""A value above `above`: :math:`a + e^{p}` for the parameter :math:`p`, if learned.

    The parameter is called ``log_<name>``; its steps are relative ones.
    """
    if not callable(value):
        return constant(module, name, value, shape)

    def init(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        first = value(key, shape, dtype) - above
        if not _traced(first) and not (np.asarray(first) > 0).all():
            raise ValueError(
                f"the initializer of {module.name or type(module).__name__}.{name}"
                f" returns {np.min(np.asarray(first + above))}, which is not above"
                f" {above}; its logarithm is what is learned."
            )
        return jnp.log(first)

    return above + jnp.exp(param(module, f"log_{name}", init, shape))


def free(
    module: nn.Module, name: str, value: Value, shape: tuple[int, ...]
) -> Parameter:
    """A value without bounds."""
    if not callable(value):
        return constant(module, name, value, shape)
    return param(module, name, value, shape)


def constant(
    module: nn.Module, name: str, value: Any, shape: tuple[int, ...]
) -> Parameter:
    """A number as it is; an array of the right shape."""
    if isinstance(value, int | float | np.number):
        return float(value)
    array = np.asarray(value, float) if isinstance(value, tuple | list) else value
    if not hasattr(array, "shape") or np.broadcast_shapes(array.shape, shape) != shape:
        raise ValueError(
            f"{type(module).__name__}.{name} is {value!r}, expected a number, an"
            f" initializer, or an array that fits {shape}."
        )
    return jnp.asarray(array, getattr(module, "param_dtype", jnp.float32))


def neuron_of(module: nn.Module) -> Neuron:
    """The neurons of a layer, from its attributes and, where learned, parameters.

    Learned are ``log_tau_mem``, ``log_tau_syn``, ``v_leak``, ``v_reset``, and
    ``log_v_th``, the logarithm of ``v_th - v_reset``. If `v_th` is a constant, then a
    learned `v_reset` is ``log_v_reset``, the logarithm of that difference.
    """
    shape = (module.features,)
    at: dict[str, Any] = {
        name: positive(module, name, getattr(module, name), shape)
        for name in ("tau_mem", "tau_syn")
    }
    at["v_leak"] = free(module, "v_leak", module.v_leak, shape)
    if not hasattr(module, "v_th"):
        return Neuron(**at)
    v_th, v_reset = module.v_th, module.v_reset
    if callable(v_reset) and not callable(v_th):
        top = constant(module, "v_th", v_th, shape)

        def below(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
            return top - v_reset(key, shape, dtype)

        gap = positive(module, "v_reset", below, shape)
        return Neuron(**at, v_th=top, v_reset=top - gap)
    bottom = free(module, "v_reset", v_reset, shape)
    return Neuron(
        **at, v_th=positive(module, "v_th", v_th, shape, bottom), v_reset=bottom
    )


def check_neuron(module: nn.Module) -> None:
    """Raises for constants out of range, as `Neuron` does, before any work."""
    fields = {
        name: getattr(module, name)
        for name in ("tau_mem", "tau_syn", "v_th", "v_leak", "v_reset")
        if hasattr(module, name)
    }
    numbers = {
        name: np.asarray(value, float) if isinstance(value, tuple | list) else value
        for name, value in fields.items()
        if not callable(value) and not _traced(value)
    }
    if ("v_th" in numbers) != ("v_reset" in numbers):
        numbers.pop("v_th", None)
        numbers.pop("v_reset", None)
    Neuron(**numbers)


def label(module: nn.Module) -> str:
    """What errors call a layer."""
    kind = type(module).__name__
    return f"{kind} '{module.name}'" if module.name else kind


def check_inputs(module: nn.Module, inputs: Spikes) -> None:
    """Raises if the inputs are no spikes, or not those of as many sources."""
    if not isinstance(inputs, Spikes):
        raise TypeError(
            f"{label(module)} takes jaxsnn.Spikes, not {type(inputs).__name__};"
            " jaxsnn.coding.encode_latency makes them from numbers."
        )
    if module.has_variable("params", "kernel"):
        expected = jnp.shape(module.get_variable("params", "kernel"))
        if expected != (inputs.size, module.features):
            raise ValueError(
                f"{label(module)} has a kernel of shape {expected}: expected"
                f" spikes of {expected[0]} sources and features={expected[1]}, got"
                f" spikes of {inputs.size} sources and features={module.features}."
            )


def kernel_of(
    module: nn.Module, inputs: Spikes, name: str = "kernel", init: Any = None
) -> Array:
    """The weights of a layer's inputs, checked."""
    shape = (inputs.size, module.features)
    kernel = param(module, name, init or module.kernel_init, shape)
    if not _traced(kernel) and not np.isfinite(np.asarray(kernel)).all():
        raise ValueError(
            f"the {name} of {label(module)} has entries that are NaN or inf."
        )
    return kernel


def check_until(until: Any) -> None:
    """Raises if `until` is not one time."""
    if jnp.ndim(until) != 0 or (not _traced(until) and math.isnan(until)):
        raise ValueError(f"until is {until!r}, expected one time for the batch.")

