"""Time-grid twins of the event-driven layers, trained by surrogate gradients."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax

from jaxsnn.dynamics import Flow, Neuron
from jaxsnn.grid import (
    LIFState,
    LIState,
    check_dt,
    li_step,
    lif_step,
    rasterize,
    spikes_from_raster,
)
from jaxsnn.layers.initializers import spread_normal
from jaxsnn.layers.network import Network
from jaxsnn.layers.parameters import (
    Value,
    check_callable,
    check_neuron,
    check_sources,
    check_t_ref,
    check_whole,
    constant,
    kernel_of,
    label,
    neuron_of,
    param,
)
from jaxsnn.spikes import Spikes, _traced
from jaxsnn.surrogate import Surrogate, superspike


class _Leaky(nn.Module):
    """What all layers of this file share; see there for the attributes."""

    features: int
    dt: float
    tau_mem: Value = Neuron.tau_mem
    tau_syn: Value = Neuron.tau_syn
    v_leak: Value = Neuron.v_leak
    kernel_init: nn.initializers.Initializer = spread_normal(0.0, 1.0)  # As in LI.
    param_dtype: Any = jnp.float32
    State: ClassVar[Any] = LIState

    def __post_init__(self) -> None:
        """Checks the attributes before any work."""
        super().__post_init__()
        kind = type(self).__name__
        check_whole(f"{kind}.features", self.features)
        check_dt(self.dt)
        example = "jaxsnn.layers.spread_normal(15.0, 3.6)"
        check_callable(f"{kind}.kernel_init", self.kernel_init, example)
        check_neuron(self)

    @property
    def neuron(self) -> Neuron:
        """Parameters of the layer's neurons."""
        return neuron_of(self)

    def _jumps(self, inputs: Array) -> Array:
        """What input spikes add to the currents; makes the kernel."""
        size = inputs.shape[-1]
        check_sources(self, size, "rasters")
        return _project(inputs, kernel_of(self, size))

    def _step(self) -> Callable[[Any, Array], tuple[Any, Array]]:
        """What takes a state and the jumps of the currents through one step."""
        neuron = self.neuron
        return functools.partial(li_step, neuron, Flow.over(neuron, self.dt))

    def _scan(self, jumps: Array) -> tuple[Any, Array]:
        """Takes neurons from rest through all steps of ``[*batch, steps, neurons]``."""
        shape = (*jumps.shape[:-2], self.features)
        start = self.State.at_rest(self.neuron, shape, jumps.dtype)
        end, found = lax.scan(self._step(), start, jnp.moveaxis(jumps, -2, 0))
        return end, jnp.moveaxis(found, 0, -2)

    def _check_raster(self, raster: Any) -> Array:
        if isinstance(raster, Spikes):
            raise TypeError(
                f"{label(self)} takes a raster, not Spikes; jaxsnn.grid.rasterize makes"
                " one from spikes, and GridNetwork does so by itself."
            )
        raster = jnp.asarray(raster)
        if raster.ndim < 2:
            raise ValueError(
                f"the raster for {label(self)} has shape {raster.shape}, expected"
                " [*batch, steps, inputs]."
            )
        if not _traced(raster) and not np.isfinite(np.asarray(raster)).all():
            raise ValueError(f"the raster for {label(self)} contains NaN or inf.")
        return raster


class _Spiking(_Leaky):
    """What the spiking layers of this file share."""

    kernel_init: nn.initializers.Initializer = spread_normal(15.0, 3.6)  # As in LIF.
    v_th: Value = Neuron.v_th
    v_reset: Value = Neuron.v_reset
    t_ref: Value = Neuron.t_ref
    max_spikes: int | None = 1
    recurrent: bool = False
    recurrent_init: nn.initializers.Initializer = spread_normal(0.0, 3.6)
    surrogate: Surrogate = superspike()
    State: ClassVar[Any] = LIFState

    def __post_init__(self) -> None:
        """Checks the attributes before any work."""
        super().__post_init__()
        if self.max_spikes is not None:
            check_whole(f"{type(self).__name__}.max_spikes", self.max_spikes)
        for name in ("surrogate", "recurrent_init"):
            example = "jaxsnn.surrogate.superspike()"
            check_callable(
                f"{type(self).__name__}.{name}", getattr(self, name), example
            )
        if callable(self.t_ref):
            raise ValueError(
                f"{type(self).__name__}.t_ref is {self.t_ref!r}, but on a grid it is a"
                " whole number of steps, which cannot be learned; give it a time."
            )

    def _recurrent_kernel(self) -> Array | None:
        if not self.recurrent:
            return None
        shape = (self.features, self.features)
        return param(self, "recurrent_kernel", self.recurrent_init, shape)

    def _step(self) -> Callable[[Any, Array], tuple[Any, Array]]:
        neuron, recurrent_kernel = self.neuron, self._recurrent_kernel()
        wait = np.rint(np.asarray(neuron.t_ref) / self.dt).astype(np.int32)
        advance = functools.partial(
            lif_step,
            neuron,
            Flow.over(neuron, self.dt),
            surrogate=self.surrogate,
            wait=wait,
            max_spikes=self.max_spikes,
        )

        def step(state: LIFState, jump: Array) -> tuple[LIFState, Array]:
            if recurrent_kernel is not None:
                jump = jump + _project(state.spikes, recurrent_kernel)
            return advance(state, jump.astype(state.v.dtype))

        return step


class _Cell(_Leaky, nn.RNNCellBase):
    """What the cells of this file share."""

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> Any:
        """The state at rest, for inputs of shape ``[*batch, inputs]``.

        Raises:
          ValueError: where that is a learned voltage, which is not known here.
        """
        voltages: dict[str, Any] = {}
        for name in ("v_leak", "v_th", "v_reset"):
            value = getattr(self, name, getattr(Neuron, name))
            if callable(value):
                raise ValueError(
                    f"{label(self)} learns {name}, and its state at rest depends on"
                    " that; give nn.RNN an initial_carry, or use Grid"
                    f"{type(self).__name__.removesuffix('Cell')}."
                )
            voltages[name] = constant(self, name, value, (self.features,))
        shape = (*input_shape[:-1], self.features)
        return self.State.at_rest(Neuron(**voltages), shape, self.param_dtype)

    @property
    def num_feature_axes(self) -> int:
        """Inputs have one axis besides batch and time."""
        return 1


class LIFCell(_Spiking, _Cell):
    """One step of leaky integrate-and-fire neurons, for `flax.linen.RNN`.

    The equations are those of `jaxsnn.layers.LIF`; see `jaxsnn.grid` for what is on the
    grid. `GridLIF` does the same for a whole raster, faster, and without the module in
    between: the parameters of an `nn.RNN` lie below its ``cell``.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> from flax import linen as nn
      >>> from jaxsnn.layers import LIFCell
      >>> raster = jnp.ones((2, 50, 3))  # [batch, steps, inputs]
      >>> layer = nn.RNN(LIFCell(4, dt=1e-3, max_spikes=None))
      >>> variables = layer.init(jax.random.key(0), raster)
      >>> layer.apply(variables, raster).shape
      (2, 50, 4)

    Attributes:
      features: number of neurons.
      dt: length of a step in seconds.
      tau_mem: membrane time constant in seconds. Like the next two, `v_th` and
        `v_reset`, a number, an array, or an initializer, as in `LIF`: then it is
        learned, as the same parameter as there.
      tau_syn: synaptic time constant in seconds.
      v_leak: resting voltage; above `v_th` the neurons fire without input.
      kernel_init: initializer of the kernel, of shape ``[inputs, features]``.
      param_dtype: dtype of kernel and state.
      v_th: threshold, in the unit of the weights.
      v_reset: voltage right after a spike, below `v_th`.
      t_ref: absolute refractory period in seconds, rounded to whole steps: that many
        steps after a spike the voltage stays at `v_reset`, while the current goes on.
      max_spikes: spikes per neuron and run. Having fired that often, a neuron stays
        silent; 1 as in `LIF`, None for no limit.
      recurrent: whether the spikes of a step are inputs of the next one, by a parameter
        ``recurrent_kernel`` of shape ``[features, features]``.
      recurrent_init: its initializer.
      surrogate: the threshold and its derivative, from `jaxsnn.surrogate`.
    """

    @nn.compact
    def __call__(self, carry: LIFState, inputs: Array) -> tuple[LIFState, Array]:
        """Takes the state through one step.

        Args:
          carry: the state before.
          inputs: spike counts of the step, ``[*batch, inputs]``.

        Returns:
          The state after, and the spikes found there, 0 or 1, ``[*batch, features]``.
        """
        return self._step()(carry, self._jumps(inputs))


class LICell(_Cell):
    """One step of leaky integrators without a threshold, for `flax.linen.RNN`.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> from flax import linen as nn
      >>> from jaxsnn.layers import LICell
      >>> readout = nn.RNN(LICell(3, dt=1e-3))
      >>> variables = readout.init(jax.random.key(0), jnp.ones((2, 50, 5)))
      >>> readout.apply(variables, jnp.ones((2, 50, 5))).shape
      (2, 50, 3)

    Attributes:
      features: number of neurons.
      dt: length of a step in seconds.
      tau_mem: membrane time constant in seconds. Like the next two, a number, an
        array, or an initializer, as in `LI`.
      tau_syn: synaptic time constant in seconds.
      v_leak: resting voltage.
      kernel_init: initializer of the kernel, of shape ``[inputs, features]``.
      param_dtype: dtype of kernel and state.
    """

    @nn.compact
    def __call__(self, carry: LIState, inputs: Array) -> tuple[LIState, Array]:
        """Takes the state through one step.

        Args:
          carry: the state before.
          inputs: spike counts of the step, ``[*batch, inputs]``.

        Returns:
          The state after, and its voltages, ``[*batch, features]``.
        """
        return self._step()(carry, self._jumps(inputs).astype(carry.v.dtype))


class GridLIF(_Spiking):
    """The time-grid twin of `LIF`: a raster of spikes to a raster of spikes.

    It has the same parameters, so those of one layer can be given to the other, and its
    spikes tend to those of `LIF` in proportion to `dt`. Its gradient is a surrogate,
    which also tells a silent neuron how to fire; the exact one of `LIF` is zero there.

    With ``mutable=["events"]`` it returns in that collection the `count` of spikes of
    each neuron. Runs start from rest; for runs in parts there is `LIFCell`.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> from jaxsnn.layers import GridLIF
      >>> raster = jnp.zeros((2, 50, 3)).at[:, 10].set(1)  # [batch, steps, inputs]
      >>> layer = GridLIF(4, dt=1e-3)
      >>> variables = layer.init(jax.random.key(0), raster)
      >>> variables["params"]["kernel"].shape
      (3, 4)
      >>> layer.apply(variables, raster).shape
      (2, 50, 4)

    Attributes: those of `LIFCell`, with the same defaults as `LIF`.
    """

    @nn.compact
    def __call__(self, raster: Array) -> Array:
        """Runs the layer over all steps.

        Args:
          raster: spike counts, ``[*batch, steps, inputs]``.

        Returns:
          The spikes, 0 or 1, ``[*batch, steps, features]``.

        Raises:
          TypeError: `Spikes` instead of a raster.
          ValueError: a raster of another number of sources than the kernel is for.
        """
        raster = self._check_raster(raster)
        check_t_ref(label(self), self.t_ref, raster.shape[-2] * self.dt)
        end, spikes = self._scan(self._jumps(raster))
        if self.is_mutable_collection("events") and not self.is_initializing():
            self.variable("events", "count", lambda: end.count).value = end.count
        self.sow("intermediates", "spikes", spikes)
        return spikes


class GridLI(_Leaky):
    """Leaky integrators on a time grid: a raster of spikes to voltages, exactly.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> from jaxsnn.layers import GridLI
      >>> raster = jnp.zeros((2, 50, 3)).at[:, 10].set(1)  # [batch, steps, inputs]
      >>> readout = GridLI(4, dt=1e-3)
      >>> variables = readout.init(jax.random.key(0), raster)
      >>> readout.apply(variables, raster).max(axis=-2).shape  # A score per neuron.
      (2, 4)

    Attributes: those of `LICell`, with the same defaults as `LI`.
    """

    @nn.compact
    def __call__(self, raster: Array) -> Array:
        """Runs the layer over all steps.

        Args:
          raster: spike counts, ``[*batch, steps, inputs]``.

        Returns:
          The voltages at the end of each step, that of row 0 at time `dt`,
          ``[*batch, steps, features]``.

        Raises:
          TypeError: `Spikes` instead of a raster.
          ValueError: a raster of another number of sources than the kernel is for.
        """
        return self._scan(self._jumps(self._check_raster(raster)))[1]


class GridNetwork(nn.Module):
    """Time-grid layers in a row, from spikes to spikes or to voltages.

    `grid_twin` makes one from a `Network`. With ``mutable=["events"]`` the first layer
    also reports how many input spikes of each sample are `outside` of the grid; they
    have no effect.

    Attributes:
      layers: `GridLIF` layers, all with the same ``dt``; the last may be a `GridLI`.
      steps: number of steps, so that the grid ends at ``steps * dt``.
    """

    layers: Sequence[GridLIF | GridLI]
    steps: int
    # As in Network: layers keep their names, unnamed ones are layers_0, layers_1, ...
    preserve_adopted_names: ClassVar[bool] = True

    def __call__(self, inputs: Spikes) -> Spikes | Array:
        """Runs all layers over the grid.

        Args:
          inputs: spikes, ``[*batch, slots]``.

        Returns:
          The spikes of the last layer, at the starts of their steps, differentiable as
          `jaxsnn.grid.spikes_from_raster` says; of a `GridLI` its voltages,
          ``[*batch, steps, features]``.
        """
        if not self.layers:
            raise ValueError("GridNetwork has no layers.")
        first, last = self.layers[0], self.layers[-1]
        if len({layer.dt for layer in self.layers}) > 1:
            raise ValueError(
                f"the layers have steps of {[layer.dt for layer in self.layers]}"
                " seconds; they must be equal."
            )
        for layer in self.layers[:-1]:
            if not isinstance(layer, GridLIF):
                raise ValueError(
                    f"layer '{layer.name}' does not spike; only the last layer may be a"
                    " GridLI."
                )
        raster, outside = rasterize(inputs, first.dt, self.steps)
        for layer in self.layers:
            raster = layer(raster)
        if first.is_mutable_collection("events") and not self.is_initializing():
            first.put_variable("events", "outside", outside)
        if not isinstance(last, GridLIF):
            return raster
        most = self.steps if last.max_spikes is None else last.max_spikes
        return spikes_from_raster(raster, first.dt, most)[0]


# What decides how an event-driven layer is computed, not what it computes.
_NOT_DYNAMICS = {"parent", "slots", "gradient", "backend"}


def grid_twin(
    network: Network, dt: float, steps: int, surrogate: Surrogate | None = None
) -> GridNetwork:
    """Puts a network of event-driven layers on a time grid; it has the same parameters.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> from jaxsnn.coding import encode_latency
      >>> from jaxsnn.layers import LIF, Network, grid_twin
      >>> network = Network([LIF(8, name="hidden"), LIF(3, name="output")])
      >>> inputs = encode_latency(jnp.array([[0.2, 0.7]]), t_late=10e-3, bias=0.0)
      >>> variables = network.init(jax.random.key(0), inputs)
      >>> exact = network.apply(variables, inputs).first()
      >>> twin = grid_twin(network, dt=0.1e-3, steps=300)
      >>> on_grid = twin.apply(variables, inputs).first()
      >>> bool(jnp.all(jnp.abs(on_grid - exact) < 0.3e-3))  # Inputs and two layers.
      True

    Args:
      network: a `Network`, or anything else with `layers`. Layers with a threshold
        become `GridLIF`, those without `GridLI`. Their `slots`, `gradient` and
        `backend` play no part.
      dt: length of a step in seconds.
      steps: number of steps. Input spikes from ``steps * dt`` on have no effect.
      surrogate: the threshold and its derivative; that of `GridLIF` if left out.

    Raises:
      TypeError: a model without layers, such as a `Graph`.
      ValueError: a layer with a property that the grid does not have.
    """
    if not hasattr(network, "layers"):
        raise TypeError(
            f"grid_twin takes a Network, or anything else with layers, not"
            f" {type(network).__name__}."
        )
    chosen = {} if surrogate is None else {"surrogate": surrogate}
    return GridNetwork([_twin(layer, dt, chosen) for layer in network.layers], steps)


def _twin(layer: nn.Module, dt: float, chosen: dict[str, Any]) -> GridLIF | GridLI:
    spiking = hasattr(layer, "v_th")
    kind: Any = GridLIF if spiking else GridLI
    known = {field.name for field in dataclasses.fields(kind)}
    attributes = {"dt": dt, **(chosen if spiking else {})}
    for field in dataclasses.fields(layer):
        value = getattr(layer, field.name)
        if field.name in _NOT_DYNAMICS:
            continue
        if field.name in known:
            attributes[field.name] = value
        elif field.default is dataclasses.MISSING:
            raise ValueError(f"{label(layer)} has no twin on a time grid.")
        elif not np.array_equal(value, default := field.default):
            raise ValueError(  # It would be lost without a word.
                f"{type(layer).__name__}.{field.name} is {value!r}, which a time grid"
                f" does not have; leave it at {default!r}."
            )
    return kind(**attributes)


def _project(spikes: Array, kernel: Array) -> Array:
    # In full precision on every device: a twin with rounded weights is none.
    return jnp.matmul(spikes, kernel, precision=lax.Precision.HIGHEST)
