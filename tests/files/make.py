"""Writes NIR files with other tools, and the spikes that these tools find themselves.

    python -m venv env && env/bin/pip install snntorch nirtorch norse nir
    env/bin/python tests/files/make.py

Tests read the files and do not run this. They were written with snnTorch 1.0.0, Norse
1.1.0, nirtorch 2.6 and nir 1.0.8. What comes out depends on this script alone.
"""

from pathlib import Path

import nir
import norse.torch
import norse.torch.utils.export_nir
import numpy as np
import snntorch
import snntorch.export_nir
import torch

FOLDER = Path(__file__).parent


def snntorch_layer(rng: np.random.Generator, dt: float, size: int, recurrent: bool):
    """Neurons with time constants of their own; the current survives a spike."""

    def decay(tau: np.ndarray) -> torch.Tensor:
        return torch.tensor(1 - dt / tau, dtype=torch.float32)  # As it is exported.

    shared = {
        "alpha": decay(rng.uniform(4e-3, 6e-3, size)),
        "beta": decay(rng.uniform(10e-3, 20e-3, size)),
        "threshold": torch.ones(size),
        "reset_mechanism": "zero",
        "reset_delay": recurrent,  # RSynaptic fails without.
        "init_hidden": True,
    }
    if not recurrent:
        return snntorch.Synaptic(**shared)
    layer = snntorch.RSynaptic(linear_features=size, all_to_all=True, **shared)
    weight = rng.normal(0.0, 0.006, (size, size))
    layer.recurrent.weight.data = torch.tensor(weight, dtype=torch.float32)
    layer.recurrent.bias.data.zero_()
    return layer


def linear(rng: np.random.Generator, rows: int, columns: int, mean: float):
    """A layer of positive weights."""
    made = torch.nn.Linear(columns, rows, bias=False)
    weight = rng.uniform(0.5 * mean, 1.5 * mean, (rows, columns))
    made.weight.data = torch.tensor(weight, dtype=torch.float32)
    return made


def write_snntorch(name: str, recurrent: bool) -> None:
    """A network in a row, 4-6-3, on the time step that snnTorch writes files for."""
    rng, dt, steps = np.random.default_rng(0), 1e-4, 600
    hidden = snntorch_layer(rng, dt, 6, recurrent)
    output = snntorch_layer(rng, dt, 3, False)
    first, second = linear(rng, 6, 4, 0.02), linear(rng, 3, 6, 0.012)
    net = torch.nn.Sequential(first, hidden, second, output)
    inputs = rng.random((steps, 4)) < 0.006
    found = {"1": [], "3": []}  # Their names in the file.
    for step in torch.tensor(inputs, dtype=torch.float32)[:, None]:
        spikes = hidden(first(step))
        found["1"].append(spikes[0])
        found["3"].append(output(second(spikes))[0])
    graph = snntorch.export_nir.export_to_nir(net, torch.zeros(4))
    save(name, graph, dt, inputs, found)


def write_norse() -> None:
    """A layer, 4-6, on a time step that is short enough to be nearly continuous."""
    rng, dt, steps = np.random.default_rng(1), 1e-5, 6000

    def rate(low: float, high: float) -> torch.Tensor:
        return torch.tensor(1 / rng.uniform(low, high, 6), dtype=torch.float32)

    neurons = norse.torch.LIFParameters(
        tau_syn_inv=rate(4e-3, 6e-3),
        tau_mem_inv=rate(10e-3, 20e-3),
        v_th=torch.ones(6),
        v_leak=torch.zeros(6),
        v_reset=torch.zeros(6),
    )
    first, cell = linear(rng, 6, 4, 2.0), norse.torch.LIFCell(neurons, dt=dt)
    inputs = rng.random((steps, 4)) < 0.0006
    found, state = [], None
    for step in torch.tensor(inputs, dtype=torch.float32)[:, None]:
        spikes, state = cell(first(step), state)
        found.append(spikes.to_dense()[0])
    net = norse.torch.SequentialState(first, cell)
    # Time constants come out in units of 1 / dt seconds, which is Norse's issue 411.
    graph = norse.torch.utils.export_nir.to_nir(net, torch.zeros(1, 4), dt=dt)
    save("norse", graph, dt, inputs, {"1": found})


def save(name: str, graph: nir.NIRGraph, dt: float, inputs: np.ndarray, found) -> None:
    """Writes the graph, and inputs and spikes as NIR's container of events."""
    nir.write(FOLDER / f"{name}.nir", graph)
    rasters = {n: torch.stack(x).detach().numpy() > 0 for n, x in found.items()}
    rasters["input"] = inputs
    nodes = {}
    for key, raster in rasters.items():
        step, neuron = np.nonzero(raster)
        shape = raster.shape[1], len(raster) * dt
        events = nir.EventData(neuron[None], (step * dt)[None], *shape)
        nodes[key] = nir.NIRNodeData({"spikes": events})
    nir.write_data(FOLDER / f"{name}.events.nir", nir.NIRGraphData(nodes))
    print(name, {n: raster.sum(axis=0) for n, raster in rasters.items()})  # noqa: T201


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.no_grad():
        write_snntorch("snntorch", recurrent=False)
        write_snntorch("snntorch_recurrent", recurrent=True)
        write_norse()
