"""Speed and exactness of this project beside other libraries, on the same network.

    python benchmarks/peers.py --python python3.12

Every library gets an environment of its own, from the package index, and a runner,
`benchmarks/peers/NAME.py`. All are given the same problem: 5-120-3 neurons, one spike
each, weights, inputs, labels and the cross entropy of first-spike times; batches of 64,
Adam, float32, one core. They are compiled once and then measured in turn, round after
round and every other round backwards, so that whatever else slows the machine slows
all; a ratio is the median of the rounds' ratios. The table goes into
benchmarks/README.md. What cannot be installed or run is a row that says why.
"""

import argparse
import contextlib
import hashlib
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from typing import NamedTuple

import numpy as np
import report

HERE = pathlib.Path(__file__).resolve().parent


class Peer(NamedTuple):
    """One row of the table.

    Attributes:
      title: what the table calls it.
      runner: script in benchmarks/peers, without its suffix.
      packages: what to install; with nothing to install, this environment is used.
      python: lowest version of Python that the packages take.
      settings: environment variables of the runner.
    """

    title: str
    runner: str
    packages: tuple[str, ...] = ()
    python: tuple[int, int] = (3, 11)
    settings: tuple[tuple[str, str], ...] = ()


OURS = Peer("**this project**", "ours")
EXACT = Peer("this project, float64", "ours", settings=(("JAX_ENABLE_X64", "1"),))
PEERS = (
    OURS,
    Peer("native C++ loop", "native"),
    Peer("jaxsnn 0.3.0 of PyPI, EventProp", "jaxsnn_peer", ("jaxsnn==0.3.0",)),
    Peer(
        "the same, 50 and 53 slots as in its examples",
        "jaxsnn_peer",
        ("jaxsnn==0.3.0",),
        settings=(("SLOTS", "50,53"),),
    ),
    Peer("sparxml 0.1.1", "sparxml_peer", ("sparxml==0.1.1",), (3, 12)),
    Peer(
        "eventax 0.1.0, Euler steps of tau_mem / 100",
        "eventax_peer",
        ("eventax==0.1.0", "optax"),
    ),
    Peer("spyx 1.0.0, 100 steps, surrogate gradient", "spyx_peer", ("spyx==1.0.0",)),
)


class Failed(Exception):
    """A library that cannot be installed or run; the message says why."""


def main() -> None:
    """Parses the command line, measures, writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cache = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))
    parser.add_argument(
        "--cache",
        default=os.path.join(cache, "jaxsnn-benchmarks"),
        help="folder of the libraries' environments",
    )
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        help="another interpreter, for libraries that need a newer one",
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="per measurement")
    parser.add_argument("--timeout", type=float, default=600, help="s per answer")
    parser.add_argument("--core", type=int, default=0, help="where runners are pinned")
    parser.add_argument("--only", nargs="*", help="runners, such as ours native")
    parser.add_argument("--json", action="store_true", help="print, do not write")
    options = parser.parse_args()
    peers = [p for p in PEERS if not options.only or p.runner in options.only]
    rows = compare(peers, options)
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    text = table(rows, options)
    print(text)
    report.write("peers.py", text)


def compare(peers, options: argparse.Namespace) -> list[dict]:
    """Measures peers in turn; returns a row each, `failed` in those that could not."""
    rows: list[dict] = [{"title": p.title, "runner": p.runner} for p in peers]
    with tempfile.TemporaryDirectory() as folder:
        problem = os.path.join(folder, "problem.npz")
        np.savez(problem, **make_problem())
        exact = os.path.join(folder, "exact.npz")
        running = {}
        try:
            reference = Running(EXACT, problem, exact, options)
            reference.close()
            for n, (peer, row) in enumerate(zip(peers, rows, strict=True)):
                print(f"preparing {peer.title}", file=sys.stderr)
                found = os.path.join(folder, f"{n}.npz")
                try:
                    running[n] = Running(peer, problem, found, options)
                except Failed as failure:
                    row["failed"] = str(failure)
                    continue
                row |= running[n].facts | {"rounds": []}
                if "no_gradient" not in row:
                    row["gradient_error"] = distance(found, exact)
                if "dropped" not in row:
                    of = reference.facts["hidden_spikes"]
                    row["dropped"] = round(of - row["hidden_spikes"], 2)
            for turn in range(options.rounds):
                print(f"round {turn + 1} of {options.rounds}", file=sys.stderr)
                for n in sorted(running, reverse=turn % 2 == 1):
                    try:
                        rows[n]["rounds"].append(running[n].measure())
                    except Failed as failure:
                        rows[n]["failed"] = str(failure)
                        running.pop(n).close()
        finally:
            for each in running.values():
                each.close()
    return rows


def make_problem(hidden: int = 120, examples: int = 4096) -> dict[str, np.ndarray]:
    """Weights, inputs, labels and constants, as in speed.py; times in seconds."""
    random = np.random.default_rng(0)

    def kernel(rows: int, columns: int, total: float, spread: float) -> np.ndarray:
        noise = random.standard_normal((rows, columns))
        return (total / rows + spread / rows**0.5 * noise).astype(np.float32)

    return {
        "hidden": kernel(5, hidden, 15.0, 3.6),
        "output": kernel(hidden, 3, 60.0, 8.8),
        "times": random.uniform(0, 10e-3, (examples, 5)).astype(np.float32),
        "labels": random.integers(0, 3, examples).astype(np.int32),
        **{"batch": 64, "tau_mem": 10e-3, "tau_syn": 5e-3, "v_th": 1.0},
        **{"tau": 1e-3, "t_silent": 50e-3},
    }


class Running:
    """A runner's process, from its facts to its last measurement."""

    def __init__(self, peer: Peer, problem: str, gradient: str, options) -> None:
        """Installs the library, starts the runner and waits for its facts."""
        python = environment(peer, options)
        script = str(HERE / "peers" / f"{peer.runner}.py")
        command = [python, script, problem, gradient]
        if shutil.which("taskset"):
            command = ["taskset", "-c", str(options.core), *command]
        settings = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "BENCHMARK_SECONDS": str(options.seconds),
            **dict(peer.settings),
        }
        if not peer.packages:  # So that a clone need not be installed.
            paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
            settings["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        else:
            settings.pop("PYTHONPATH", None)  # It may hold a package of their name.
        self.runner, self.timeout = peer.runner, options.timeout
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # See close().
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=settings,
        )
        try:
            self.facts = self._answer()
        except Failed:
            self.close()
            raise

    def measure(self) -> dict[str, float]:
        """Asks for one measurement."""
        # That a runner is gone, and why, is told where its answer is missing.
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(BrokenPipeError):  # From a line that it did not read.
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.errors.close()

    def _answer(self) -> dict:
        """The next JSON object that the runner prints; without one, says why."""
        alarm = threading.Timer(self.timeout, self.process.kill)
        alarm.start()
        printed = ""
        try:
            for line in self.process.stdout:
                if line.startswith("{"):  # Libraries may print, too.
                    return json.loads(line)
                printed += line
            code = self.process.wait()
        finally:
            timed_out = not alarm.is_alive()
            alarm.cancel()
        if timed_out:
            raise Failed(f"{self.runner}: no answer in {self.timeout:g} s")
        self.errors.seek(0)
        why = last_error(printed + self.errors.read())
        raise Failed(f"{self.runner}: exit code {code}: {why}")


def environment(peer: Peer, options: argparse.Namespace) -> str:
    """Path of an interpreter with the peer's packages; makes it where it is missing."""
    if not peer.packages:
        return sys.executable
    name = hashlib.sha256(repr(peer.packages).encode()).hexdigest()[:8]
    folder = os.path.join(options.cache, f"{peer.runner}-{name}")
    python = os.path.join(folder, "bin", "python")
    complete = os.path.join(folder, "complete")
    if os.path.exists(complete):
        return python
    base = interpreter(peer.python, options.python)
    for command in (
        [base, "-m", "venv", "--clear", folder],
        [python, "-m", "pip", "install", "--quiet", *peer.packages],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Failed("not installed: " + last_error(done.stderr))
    pathlib.Path(complete).touch()
    return python


def interpreter(lowest: tuple[int, int], more: list[str]) -> str:
    """The first interpreter that is new enough."""
    newer = [f"python3.{minor}" for minor in range(lowest[1], lowest[1] + 3)]
    for candidate in [sys.executable, *more, *newer]:
        path = shutil.which(os.path.expanduser(candidate))
        if path is None:
            continue
        code = f"import sys; sys.exit(sys.version_info < {lowest})"
        if subprocess.run([path, "-c", code], capture_output=True).returncode == 0:
            return path
    raise Failed(f"needs Python {lowest[0]}.{lowest[1]}; see --python")


def last_error(text: str) -> str:
    """The line of an output that is most likely to say what went wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if "Error" in line or "ERROR" in line]
    return (telling or lines or ["it ended without a word"])[-1][:200]


def distance(found: str, exact: str) -> float:
    """Relative L2 distance of two gradients, hidden and output kernel together."""
    with np.load(found) as one, np.load(exact) as other:
        names = ("hidden", "output")
        a, b = (
            np.concatenate([file[name].astype(np.float64).ravel() for name in names])
            for file in (one, other)
        )
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def table(rows: list[dict], options: argparse.Namespace) -> str:
    """The table as Markdown, with what it was measured on and how."""
    ours = next((row for row in rows if row["runner"] == OURS.runner), None)
    lines = [
        "| | training, samples/s | ours / it | inference, samples/s | ours / it"
        " | gradient error | hidden spikes lost |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "failed" in row:
            lines.append(f"| {row['title']} | {row['failed']} | | | | | |")
            continue
        cells = [row["title"]]
        for quantity in ("train_samples_per_s", "infer_samples_per_s"):
            values = [measured[quantity] for measured in row["rounds"]]
            low, high = min(values), max(values)
            median = statistics.median(values)
            cells.append(f"{median:,.0f} ({low:,.0f} to {high:,.0f})")
            cells.append(ratio(ours, row, quantity))
        error = row.get("gradient_error")
        cells.append(row["no_gradient"] if error is None else f"{error:.1e}")
        lost = row["dropped"]
        if not isinstance(lost, str):
            share = lost / (lost + row["hidden_spikes"])
            lost = f"{lost:.1f} ({share:.0%})" if lost else "none"
        cells.append(lost)
        lines.append("| " + " | ".join(cells) + " |")
    versions = sorted({row["jax"] for row in rows if "jax" in row})
    how = (
        f"{report.processor()}, one core, Python {platform.python_version()}, JAX"
        f" {' and '.join(versions)}; median (lowest to highest) of {options.rounds}"
        f" rounds of {options.seconds:g} s. Ratios are medians over rounds."
    )
    return "\n".join([*lines, "", how])


def ratio(ours: dict | None, row: dict, quantity: str) -> str:
    """Median over the rounds of our speed over the row's."""
    if ours is None or "failed" in ours or row is ours:
        return ""
    pairs = zip(ours["rounds"], row["rounds"], strict=True)
    value = statistics.median(a[quantity] / b[quantity] for a, b in pairs)
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    main()
