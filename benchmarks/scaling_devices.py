"""What it costs to share a batch among devices, and up to how many it pays.

    python benchmarks/scaling_devices.py

For each network it measures, in processes of its own:

- the computation of a step on one device, for the whole batch and for the part that
  each of n devices gets; a line through these is `fixed + sample * examples`;
- on n devices, the all-reduce of as many numbers as the gradient has, and of one;
- on n devices, the whole step, as `train.py` takes it, and how many all-reduces it has.

The devices are virtual ones of the CPU, in one process or in several on the loopback
address. They share its cores: what n devices of their own would need is computed from
the first two, `docs/distributed.md` says how. The result goes to
benchmarks/scaling_devices.json, the tables into docs/distributed.md.
"""

import argparse
import functools
import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import report

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "scaling_devices.json"
PAGE = ROOT / "docs" / "distributed.md"
# Config, hidden neurons, batch, features, and how many percent of these are black and
# send no spike.
NETWORKS = {
    "5-120-3": ("yinyang", 120, 48, 4, 0),
    "784-400-10": ("fashion_mnist", 400, 48, 784, 50),
}
QUICK = {"5-8-3": ("yinyang", 8, 8, 4, 0)}
# Processes, and devices in each.
PLACES = ((1, 2), (1, 4), (2, 1), (4, 1))


def main() -> None:
    """Parses the command line, measures, reports."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=8.0, help="for each number")
    parser.add_argument("--json", action="store_true", help="print, write nothing")
    parser.add_argument("--quick", action="store_true", help="tiny, to try it")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(json.loads(options.worker))
        return
    networks, places = (QUICK, PLACES[:1]) if options.quick else (NETWORKS, PLACES)
    result = {
        "processor": report.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "networks": {
            name: measure(network, places, options.seconds)
            for name, network in networks.items()
        },
    }
    if options.json:
        print(json.dumps(result))
        return
    print(tables(result))
    if not options.quick:
        RESULT.write_text(json.dumps(result, indent=2) + "\n")
        report.write("scaling_devices.py", tables(result), PAGE)


def measure(network: tuple, places: tuple, seconds: float) -> dict:
    """Measures one network in all places."""
    task = {"network": network, "seconds": seconds}
    batch = network[2]
    parts = sorted({batch, *(batch // (p * d) for p, d in places)}, reverse=True)
    alone = start({**task, "processes": 1, "devices": 1, "batches": parts})
    shared = [
        start({**task, "processes": p, "devices": d, "batches": [batch]})
        for p, d in places
    ]
    compute = {int(size): found["step"] for size, found in alone["batches"].items()}
    fixed, sample = line(compute)
    return {
        "batch": batch,
        "parameters": alone["parameters"],
        "compute": compute,
        "fixed": fixed,
        "sample": sample,
        "places": [
            {
                "processes": p,
                "devices": d,
                "reduce_gradient": found["reduce_gradient"],
                "reduce_number": found["reduce_number"],
                **found["batches"][str(batch)],
            }
            for (p, d), found in zip(places, shared, strict=True)
        ],
    }


def start(task: dict) -> dict:
    """Runs `work` in as many processes as the task says; the first one's result."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    flags = f"--xla_force_host_platform_device_count={task['devices']}"
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COORDINATOR_BIND_ADDRESS": address,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}",
    }
    workers = []
    for number in range(task["processes"]):
        given = json.dumps({**task, "address": address, "number": number})
        command = [sys.executable, __file__, "--worker", given]
        workers.append(
            subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, text=True
            )
        )
    try:
        output = [worker.communicate(timeout=900)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    if any(worker.returncode for worker in workers):
        sys.exit("a process failed; its message is above")
    return json.loads(output[0].splitlines()[-1])


def work(task: dict) -> None:
    """What one process does: measures, and prints one JSON object."""
    import jax
    import numpy as np
    from jax.sharding import PartitionSpec

    from jaxsnn.training import create_train_state, devices, experiment, steps

    name, hidden, batch, features, black = task["network"]
    config = get_config(name)
    config.model.hidden = (hidden,)
    config.batch_size = batch
    if task["processes"] > 1:
        config.distributed.coordinator = task["address"]
        config.distributed.num_processes = task["processes"]
        config.distributed.process_id = task["number"]
    config.mesh.data = task["devices"]

    def seconds_per(count: int, run, *arguments) -> float:
        """Seconds, the least of many calls; `run` does something `count` times."""
        jax.block_until_ready(run(*arguments))

        def once() -> float:
            begin = time.perf_counter()
            jax.block_until_ready(run(*arguments))
            return time.perf_counter() - begin

        calls = round(task["seconds"] / once())
        calls = devices.largest(min(max(calls, 3), 1000))  # As many in all processes.
        # What else the machine does only ever adds.
        return min(once() for _ in range(calls)) / count

    with devices.connected(config):
        mesh = devices.create_mesh(config)
        same = devices.replicated(mesh)
        rng = np.random.default_rng(0)
        examples = 8 * batch
        pixels = rng.integers(0, 256, (examples, features), np.uint8)
        pixels[rng.random(pixels.shape) < black / 100] = 0
        labels = rng.integers(0, config.model.outputs, examples, np.int32)
        data = devices.place({"features": pixels, "label": labels}, same)
        parts = experiment.create_experiment(config)
        optimizer, _ = parts.optimizer(8)
        state = create_train_state(parts, optimizer, jax.random.key(0), pixels[:1])
        count = sum(x.size for x in jax.tree.leaves(state.params))
        state = devices.place(devices.share_batches(state, mesh), same)
        key = devices.place(jax.random.key(1), same)

        def reduce(numbers: int) -> float:
            times = 50

            def many(x):
                def once(x, _):
                    return jax.lax.psum(x, devices.DATA) / mesh.size, None

                return jax.lax.scan(once, x, length=times)[0]

            spec = PartitionSpec(devices.DATA)
            run = jax.shard_map(
                many, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
            )
            x = devices.place(
                np.zeros(numbers * mesh.size, np.float32),
                devices.NamedSharding(mesh, spec),
            )
            return seconds_per(times, jax.jit(run), x)

        found = {"parameters": count, "batches": {}}
        if mesh.size > 1:
            found["reduce_gradient"] = reduce(count)
            found["reduce_number"] = reduce(1)
        for size in task["batches"]:
            run = functools.partial(steps.train_epoch, batch_size=size)
            epoch = jax.jit(run, out_shardings=same).lower(state, data, key).compile()
            found["batches"][size] = {
                "step": seconds_per(examples // size, epoch, state, data, key),
                "reductions": epoch.as_text().count(" all-reduce("),
            }
    print(json.dumps(found))


def get_config(name: str):
    """The config of that name."""
    import runpy

    return runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"]()


def line(points: dict[int, float]) -> tuple[float, float]:
    """Intercept and slope of the least-squares line, both 0 or more.

    Each point counts by its relative distance.
    """
    weights = [1 / y**2 for y in points.values()]
    total = sum(weights)
    mean_x = sum(w * x for w, x in zip(weights, points, strict=True)) / total
    mean_y = sum(w * y for w, y in zip(weights, points.values(), strict=True)) / total
    pairs = list(zip(weights, points.items(), strict=True))
    covariance = sum(w * (x - mean_x) * (y - mean_y) for w, (x, y) in pairs)
    slope = covariance / sum(w * (x - mean_x) ** 2 for w, (x, _) in pairs)
    return max(mean_y - slope * mean_x, 0.0), max(slope, 0.0)


def communication(place: dict) -> float:
    """Seconds per step: one all-reduce of the gradient, the others of few numbers."""
    others = (place["reductions"] - 1) * place["reduce_number"]
    return place["reduce_gradient"] + others


def speedup(network: dict, devices: int, communicated: float) -> float:
    """Of one step on devices with cores of their own, over one device."""
    whole = network["sample"] * network["batch"]
    alone = network["fixed"] + whole
    return alone / (network["fixed"] + whole / devices + communicated)


def pays_up_to(network: dict, communicated: float) -> float:
    """Number of devices of which each is useful half of the time."""
    whole = network["sample"] * network["batch"]
    return whole / (network["fixed"] + communicated)


def tables(result: dict) -> str:
    """The measurements as Markdown."""
    lines = [
        "| network, batch | parameters | a step on one device, ms, by examples | fixed"
        " part, ms | per example, µs |",
        "|---|---|---|---|---|",
    ]
    for name, network in result["networks"].items():
        steps = ", ".join(f"{b}: {1e3 * s:.2f}" for b, s in network["compute"].items())
        lines.append(
            f"| {name}, {network['batch']} | {network['parameters']:,} | {steps} | "
            f"{1e3 * network['fixed']:.2f} | {1e6 * network['sample']:.1f} |"
        )
    lines += [
        "",
        "| network | devices | all-reduce of the gradient, ms | of one number, ms |"
        " all-reduces in a step | communication, ms per step | step measured here, ms |"
        " speed-up with a core for each | pays up to |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, network in result["networks"].items():
        for place in network["places"]:
            count = place["processes"] * place["devices"]
            kind = "processes" if place["processes"] > 1 else "in one process"
            cost = communication(place)
            lines.append(
                f"| {name} | {count} {kind} | {1e3 * place['reduce_gradient']:.3f} | "
                f"{1e3 * place['reduce_number']:.3f} | {place['reductions']} | "
                f"{1e3 * cost:.2f} | {1e3 * place['step']:.2f} | "
                f"{speedup(network, count, cost):.2f} | "
                f"{pays_up_to(network, cost):.1f} devices |"
            )
    machine = f"{result['processor']}, {result['cores']} cores shared by all devices."
    return "\n".join([*lines, "", machine])


if __name__ == "__main__":
    main()
