"""A stand-in for pynn_brainscales.brainscales2, in NumPy.

The names, arguments and rules are those that the vendor publishes (fd4f926), the
neurons are solved exactly, and faults can be ordered. Times are in us inside.
"""

import dataclasses
import enum
import inspect
import threading
import types

import numpy as np

TICK = 8e-3  # us


class ConnectionError(ValueError):
    """As pyNN.errors.ConnectionError."""


class RunCommand(enum.Enum):
    PREPARE = enum.auto()
    APPEND = enum.auto()
    EXECUTE = enum.auto()


class AllToAllConnector:
    def __init__(
        self,
        allow_self_connections=True,
        safe=True,
        callback=None,
        *,
        location_selector=None,
        source_location_selector=None,
    ):
        assert allow_self_connections


class StaticSynapse:
    def __init__(self, **parameters):
        unknown = parameters.keys() - {"weight", "delay"}
        if unknown:
            raise KeyError(f"unknown parameters {unknown}")
        if parameters.get("delay"):
            raise ValueError("Setting the delay unequal 0 is not supported.")
        self.weight = parameters.get("weight", 0.0)


class SpikeSourceArray:
    def __init__(self, **parameters):
        assert not parameters


class HXNeuron:
    """Parameters from the chip's configuration; silent without one."""

    def __init__(self, **parameters):
        self.parameters = parameters


class CalibHXNeuronCuba:
    defaults = types.MappingProxyType(
        {
            "v_rest": 80.0,
            "v_reset": 70.0,
            "v_thresh": 125.0,
            "tau_m": 10.0,
            "tau_syn_E": 10.0,
            "tau_syn_I": 10.0,
            "cm": 63,
            "tau_refrac": 2.0,
            "i_synin_gm_E": 500,
            "i_synin_gm_I": 500,
            "synapse_dac_bias": 600,
        }
    )
    ranges = types.MappingProxyType(
        {
            "v_rest": (50, 160),
            "v_reset": (50, 160),
            "v_thresh": (50, 220),
            "tau_m": (0.1, 2000),
            "tau_syn_E": (0.1, 100),
            "tau_syn_I": (0.1, 100),
            "tau_refrac": (0.04, 32),
        }
    )

    def __init__(
        self,
        plasticity_rule=None,
        *,
        v_rest=None,
        v_reset=None,
        v_thresh=None,
        tau_m=None,
        tau_syn_E=None,
        tau_syn_I=None,
        cm=None,
        tau_refrac=None,
        i_synin_gm_E=None,
        i_synin_gm_I=None,
        synapse_dac_bias=None,
        **parameters,
    ):
        given = {k: v for k, v in locals().items() if k in self.defaults}
        given = {k: v for k, v in given.items() if v is not None}
        assert not parameters, parameters
        for name, (low, high) in self.ranges.items():
            value = np.asarray(given.get(name, self.defaults[name]))
            # calix: a rounding error above is an error too.
            assert ((value >= low) & (value <= high * (1 + 1e-12))).all(), (name, value)
        for name in ("v_rest", "v_reset", "v_thresh"):
            if name in given:  # The vendor's int() cuts.
                assert (np.asarray(given[name]) % 1 == 0).all()
        self.parameters = {**self.defaults, **given}


class Quantity(np.ndarray):
    """Times with a unit, as far as they are used."""

    def rescale(self, unit):
        assert unit == "ms"
        return self

    @property
    def magnitude(self):
        return np.asarray(self)


class SpikeTrain(Quantity):
    pass


def spike_train(ms, **annotations):
    train = np.asarray(ms, float).view(SpikeTrain)
    train.annotations = annotations
    return train


@dataclasses.dataclass
class Segment:
    spiketrains: list


@dataclasses.dataclass
class Block:
    segments: list


class Population:
    def __init__(
        self,
        size,
        cellclass,
        cellparams=None,
        structure=None,
        initial_values=None,
        label=None,
    ):
        self.chip._log("Population", size=size, cell=cellclass)
        self.size, self.cell, self.recorded, self.cache = size, cellclass, False, []
        self.spike_times = [np.zeros(0)] * size
        self.offset = sum(p.size for p in self.chip.populations)
        self.chip.populations.append(self)

    def record(
        self,
        variables,
        to_file=None,
        sampling_interval=None,
        *,
        locations=None,
        device="madc",
    ):
        assert variables == ["spikes"]
        self.recorded = True

    def set(self, **parameters):
        self.chip._log("Population.set", **parameters)
        (times,) = parameters.values()
        assert set(parameters) == {"spike_times"}
        assert isinstance(self.cell, SpikeSourceArray)
        assert isinstance(times, list)
        assert len(times) == self.size
        for train in times:
            assert np.all(np.diff(train) >= 0)
        self.spike_times = [np.array(train, float) for train in times]

    def get_data(
        self,
        variables="all",
        gather=True,
        clear=False,
        annotations=None,
        locations=None,
    ):
        assert variables == "spikes"
        assert self.recorded
        segments = [*self.cache]
        if self.chip.running:
            segments.append(self._segment())
        if clear:
            self.cache = []
        return Block(segments)

    def _segment(self):
        trains = self.chip.found[self.offset : self.offset + self.size]
        # Recorded in ms, neurons in the order of their ids.
        return Segment(
            [
                spike_train(times * 1e-3, source_index=n, source_id=self.offset + n)
                for n, times in enumerate(trains)
            ]
        )


class Projection:
    def __init__(
        self,
        presynaptic_neurons,
        postsynaptic_neurons,
        connector,
        synapse_type=None,
        source=None,
        receptor_type=None,
        space=None,
        label=None,
    ):
        assert isinstance(connector, AllToAllConnector)
        assert isinstance(synapse_type, StaticSynapse)
        assert receptor_type in ("excitatory", "inhibitory")
        self.chip._log("Projection", receptor=receptor_type)
        self.pre, self.post = presynaptic_neurons, postsynaptic_neurons
        self.receptor = receptor_type
        self.weight = np.zeros((self.pre.size, self.post.size), int)
        self.chip.projections.append(self)

    def set(self, **parameters):
        self.chip._log("Projection.set", receptor=self.receptor, **parameters)
        (weight,) = parameters.values()
        assert set(parameters) == {"weight"}
        assert weight.shape == self.weight.shape
        assert np.issubdtype(weight.dtype, np.integer), "whole numbers, or they are cut"
        if (self.receptor == "excitatory" and (weight < 0).any()) or (
            self.receptor == "inhibitory" and (weight > 0).any()
        ):
            raise ConnectionError(
                "Weights must be positive for conductance-based and/or excitatory"
                " synapses and negative for inhibitory synapses"
            )
        assert np.abs(weight).max(initial=0) <= 63, "would be routed again"
        self.weight = weight.copy()


class StandIn:
    """The package: `StandIn().setup()` is `pynn.setup()`.

    Attributes:
      latency: of a hop, us.
      step: voltage per unit of weight, in steps of the ADC; 70 of them are a unit of
        the model, so that the scale is 70 / step.
      spread: relative spread of the neurons' thresholds.
      faults: of the next runs that are asked for spikes, None for none.
      calls: names and arguments of all calls.
    """

    RunCommand = RunCommand
    AllToAllConnector = AllToAllConnector
    synapses = types.SimpleNamespace(StaticSynapse=StaticSynapse)
    cells = types.SimpleNamespace(
        SpikeSourceArray=SpikeSourceArray,
        HXNeuron=HXNeuron,
        CalibHXNeuronCuba=CalibHXNeuronCuba,
    )

    def __init__(self, latency=0.0, scale=57.0, spread=0.0, seed=0):
        self.latency, self.step, self.spread = latency, 70 / scale, spread
        self.seed, self.faults, self.calls = seed, [], []
        self.ready, self.running, self.connects = False, False, True
        self.hung = threading.Event()  # Set it to let a run that hangs go on.
        self.threads = set()
        # Classes that know their session, as the vendor's modules do.
        self.Population = type("Population", (Population,), {"chip": self})
        self.Projection = type("Projection", (Projection,), {"chip": self})
        self.helper = types.SimpleNamespace(chip_from_file=self._chip_from_file)

    def _log(self, name, **arguments):
        assert self.ready or name in ("setup", "chip_from_file"), f"{name} before setup"
        self.threads.add(threading.get_ident())
        self.calls.append((name, arguments))

    def count(self, name):
        return sum(call == name for call, _ in self.calls)

    def _chip_from_file(self, path):
        self._log("chip_from_file", path=path)
        with open(path, "rb") as file:
            assert file.read()
        # The nightly calibration "spiking2".
        return {"v_rest": 80, "v_reset": 80, "v_thresh": 150, "tau_m": 6.0} | {
            "tau_syn_E": 6.0,
            "tau_syn_I": 6.0,
            "tau_refrac": 2.0,
        }

    def setup(self, timestep=3.4e-05, min_delay="auto", **extra_params):
        known = {"initial_config", "neuronPermutation", "calibration_cache"}
        assert extra_params.keys() <= known, extra_params
        self._log("setup", **extra_params)
        self.ready, self.running, self.t = True, False, 0.0
        self.populations, self.projections, self.found = [], [], []
        self.config = extra_params.get("initial_config")

    def end(self):
        self._log("end")
        self.ready = False

    def reset(self, annotations=None):
        self._log("reset")
        for population in self.populations:
            if population.recorded and self.running:
                population.cache.append(population._segment())
        self.running = False

    def run(self, runtime, command=RunCommand.EXECUTE):
        self._log("run", runtime=runtime)
        assert command is RunCommand.EXECUTE
        if not self.connects:
            raise RuntimeError("No executor backend found to connect to.")
        if self.running:
            raise RuntimeError("Call `pynn.reset()` before calling `pynn.run()` again.")
        self.running = True
        sources = self.populations[0].spike_times
        asked = any(len(train) for train in sources)
        fault = self.faults.pop(0) if self.faults and asked else None
        if fault == "link":
            raise RuntimeError("Unknown HostARQ packet ID received: 17")
        if fault == "bug":
            raise TypeError("unsupported operand")
        if fault == "hang":
            self.hung.wait()
        end = int(runtime * 125_000) * TICK
        self.found = [
            np.round(t / TICK) * TICK for t in self._solve(self._injected(sources), end)
        ]
        if fault == "lost":  # Never reaches the host.
            self.found = [t[:0] for t in self.found]
        if fault == "late":
            self.found = [t + 31.0 for t in self.found]
        if fault == "early":
            self.found = [t - 20.0 for t in self.found]

    @staticmethod
    def _injected(sources):
        """Inputs in us as they are sent: ms, cut to whole ticks."""
        return [
            np.array([int(t) for t in train * 1000.0 * 125], float) * TICK
            for train in sources
        ]

    def _neurons(self):
        """Parameters of all neurons, by name, ``[neurons]``."""
        rows = []
        for p in self.populations[1:]:
            own = self.config if isinstance(p.cell, HXNeuron) else p.cell.parameters
            assert own is not None, "an HXNeuron needs an initial_config to fire"
            names = CalibHXNeuronCuba.ranges
            rows.append({n: np.broadcast_to(own[n], p.size) for n in names})
        return {
            n: np.concatenate([row[n] for row in rows]).astype(float) for n in rows[0]
        }

    def _solve(self, injected, end):
        """Spike times of all cells, sources first, from event to event."""
        given = self._neurons()
        rest, reset = given["v_rest"], given["v_reset"]
        noise = np.random.default_rng(self.seed).normal(size=len(rest))
        theta = rest + (given["v_thresh"] - rest) * (1 + self.spread * noise)
        tau_m, tau_s = given["tau_m"], given["tau_syn_E"]
        np.testing.assert_array_equal(tau_s, given["tau_syn_I"])
        cells = self.populations[-1].offset + self.populations[-1].size
        sources = self.populations[0].size
        weights = np.zeros((cells, len(rest)))
        for p in self.projections:
            rows = slice(p.pre.offset, p.pre.offset + p.pre.size)
            columns = slice(
                p.post.offset - sources, p.post.offset - sources + p.post.size
            )
            weights[rows, columns] += p.weight * self.step

        def response(dt):
            rate = np.where(tau_m == tau_s, 1.0, 1 / tau_s - 1 / tau_m)
            gain = tau_s / np.where(tau_m == tau_s, 1.0, tau_m - tau_s)
            unequal = -gain * np.exp(-dt / tau_m) * np.expm1(-dt * rate)
            return np.where(tau_m == tau_s, dt / tau_m * np.exp(-dt / tau_m), unequal)

        def after(dt):
            """Voltages and currents; a held neuron starts when it is released."""
            held = np.clip(release - now, 0, dt)
            i_then = i * np.exp(-held / tau_s)
            free = dt - held
            decayed = (v - rest) * np.exp(-free / tau_m)
            return rest + decayed + i_then * response(free), i * np.exp(-dt / tau_s)

        v, i, now = rest.copy(), np.zeros(len(rest)), 0.0
        release = np.zeros(len(rest))
        found = [[] for _ in range(cells)]
        events = [
            (t + self.latency, j) for j, train in enumerate(injected) for t in train
        ]
        while True:
            events.sort()
            stop = min(events[0][0], end) if events else end
            reach = min(
                stop - now, 20 * (tau_m + tau_s).max() + max(0, *(release - now))
            )
            grid = np.linspace(0, reach, 401)[:, None]
            hit = np.nonzero((after(grid)[0] > theta).any(1))[0]
            if hit.size:
                low, high = grid[max(hit[0] - 1, 0), 0], grid[hit[0], 0]
                for _ in range(50):
                    middle = 0.5 * (low + high)
                    over = (after(middle)[0] > theta).any()
                    low, high = (low, middle) if over else (middle, high)
                fired = np.nonzero(after(high)[0] > theta)[0]
                (v, i), now = after(high), now + high
                for n in fired:
                    found[sources + n].append(now)
                    v[n], release[n] = reset[n], now + given["tau_refrac"][n]
                    events.append((now + self.latency, sources + n))
            elif stop >= end:
                return [np.array(train) for train in found]
            else:
                (v, i), now = after(stop - now), stop
                i = i + weights[events.pop(0)[1]]


def differences(vendor):
    """What is used here and is not there, or in another way, in the vendor's package.

    The vendor may take more arguments; those that the stand-in takes must exist.
    """
    own = StandIn()
    pairs = {
        "setup": (own.setup, vendor.setup),
        "end": (own.end, vendor.end),
        "run": (own.run, vendor.run),
        "reset": (own.reset, vendor.reset),
        "chip_from_file": (own.helper.chip_from_file, vendor.helper.chip_from_file),
        "AllToAllConnector": (AllToAllConnector, vendor.AllToAllConnector),
        "StaticSynapse": (StaticSynapse, vendor.synapses.StaticSynapse),
        "SpikeSourceArray": (SpikeSourceArray, vendor.cells.SpikeSourceArray),
        "HXNeuron": (HXNeuron, vendor.cells.HXNeuron),
        "CalibHXNeuronCuba": (CalibHXNeuronCuba, vendor.cells.CalibHXNeuronCuba),
        "Population": (Population, vendor.Population),
        "Population.set": (Population.set, vendor.Population.set),
        "Population.record": (Population.record, vendor.Population.record),
        "Population.get_data": (Population.get_data, vendor.Population.get_data),
        "Projection": (Projection, vendor.Projection),
        "Projection.set": (Projection.set, vendor.Projection.set),
    }
    found = []
    for name, (here, there) in pairs.items():
        known = inspect.signature(there).parameters
        for p in inspect.signature(here).parameters.values():
            if p.kind is p.VAR_KEYWORD:
                missing = all(q.kind is not p.kind for q in known.values())
            else:
                missing = p.name not in known or known[p.name].kind is not p.kind
            if missing:
                found.append(f"{name}({p})")
    return found
