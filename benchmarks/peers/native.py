"""The C++ loop in benchmarks/native, compiled here; NumPy is all that it needs.

`build` and `run` are for others too: the tests compare its gradient with ours. The
environment variable ``NATIVE_PROGRAM`` names a loop that is compiled already.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

SOURCE = pathlib.Path(__file__).parents[1] / "native" / "train.cpp"
FLAGS = ["-O3", "-march=native", "-ffast-math"]


def build(folder: str) -> str:
    """Compiles the loop into a folder; returns the path of the program."""
    program = os.path.join(folder, "train")
    subprocess.run(["g++", *FLAGS, str(SOURCE), "-o", program], check=True)
    return program


def run(program: str, problem: dict, folder: str, **options) -> tuple[dict, tuple]:
    """Runs the program; returns what it printed, and the gradient of both kernels."""
    given, found = os.path.join(folder, "problem"), os.path.join(folder, "gradient")
    names = ("hidden", "output", "times", "labels")
    values = [np.asarray(problem[name], np.float64).ravel() for name in names]
    np.concatenate(values).tofile(given)
    (inputs, hidden), outputs = problem["hidden"].shape, problem["output"].shape[1]
    options = {
        "inputs": inputs,
        "hidden": hidden,
        "outputs": outputs,
        "problem": given,
        "gradient": found,
        **{name: problem[name] for name in ("batch", "tau_mem", "tau", "t_silent")},
        **options,
    }
    command = [program]
    for name, value in options.items():
        command += [
            "--" + name.replace("_", "-"),
            *([] if value is True else [str(value)]),
        ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    gradient = np.fromfile(found)
    sizes = (inputs, hidden), (hidden, outputs)
    return json.loads(done.stdout), (
        gradient[: inputs * hidden].reshape(sizes[0]),
        gradient[inputs * hidden :].reshape(sizes[1]),
    )


def main() -> None:
    """Serves as the other runners do; see harness.py."""
    with np.load(sys.argv[1]) as file:
        problem = {name: file[name] for name in file.files}
    with tempfile.TemporaryDirectory() as folder:
        program = os.environ.get("NATIVE_PROGRAM") or build(folder)
        seconds = os.environ.get("BENCHMARK_SECONDS", "0.5")

        def once(rounds: int) -> tuple[dict, tuple]:
            return run(program, problem, folder, seconds=seconds, rounds=rounds)

        facts, gradient = once(0)
        if len(sys.argv) > 2:
            np.savez(sys.argv[2], hidden=gradient[0], output=gradient[1])
        facts = {"hidden_spikes": facts["hidden_spikes"], "runner": "native"}
        print(json.dumps(facts), flush=True)
        for _ in sys.stdin:
            print(json.dumps(once(1)[0]), flush=True)


if __name__ == "__main__":
    main()
