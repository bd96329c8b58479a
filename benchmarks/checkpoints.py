"""What checkpoints cost: the default config, saving after every epoch and never.

    python benchmarks/checkpoints.py [--epochs 150] [--rounds 5] [--json]

The runs take turns. Compared is the processor time of all threads, which on a machine
with other work says more than the wall clock, from the end of the first epoch to the
test result; both kinds of runs save once at the end. A save takes longer than an epoch
of this config, and the loop puts off those that would take more than its share of the
time; with `--all` it does not.
"""

import argparse
import json
import logging
import pathlib
import statistics
import sys
import tempfile
import time
from unittest import mock

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # configs/ is not part of the package.

from report import processor  # noqa: E402

from configs import yinyang  # noqa: E402
from jaxsnn import training  # noqa: E402
from jaxsnn.training.checkpoint import Checkpoints  # noqa: E402
from jaxsnn.training.writers import MetricWriter  # noqa: E402


def main(argv: list[str] | None = None) -> None:
    """Parses the command line, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=150, help="of a run")
    parser.add_argument("--rounds", type=int, default=5, help="of both kinds of runs")
    parser.add_argument("--all", action="store_true", help="put off no save")
    parser.add_argument("--json", action="store_true", help="for scripts")
    options = parser.parse_args(argv)
    logging.getLogger("jaxsnn").setLevel(logging.WARNING)
    rounds = [
        {name: measure(options, every) for name, every in (("every", 1), ("never", 0))}
        for _ in range(options.rounds)
    ]
    result = {
        "processor": processor(),
        "epochs": options.epochs,
        "rounds": rounds,
        **{
            clock: statistics.median(
                r["every"][clock] / r["never"][clock] - 1 for r in rounds
            )
            for clock in ("cpu", "wall")
        },
        "saved": statistics.median(r["every"]["saved"] for r in rounds),
    }
    if options.json:
        print(json.dumps(result))
    else:
        print(
            f"{result['saved']:.0f} checkpoints in {options.epochs} epochs: "
            f"{result['cpu']:+.1%} of processor time, {result['wall']:+.1%} of wall "
            f"time; medians of {options.rounds} rounds, {result['processor']}"
        )
        for r in rounds:
            print(json.dumps(r))


def measure(options: argparse.Namespace, every: int) -> dict[str, float]:
    """Trains once; `every` epochs is when to save, 0 is never but at the end."""
    config = yinyang.get_config()
    config.num_epochs = options.epochs
    config.checkpoint_every_epochs = every or options.epochs
    rows, saved = [], []
    write, save = MetricWriter.write_scalars, Checkpoints.save

    def noted(self: MetricWriter, step: int, row: dict) -> None:
        rows.append((time.process_time(), time.perf_counter()))
        write(self, step, row)

    def counted(self: Checkpoints, *args: object) -> None:
        saved.append(args)
        save(self, *args)

    patches = [(MetricWriter, "write_scalars", noted), (Checkpoints, "save", counted)]
    if options.all:
        patches.append((Checkpoints, "affordable", lambda self: True))
    with tempfile.TemporaryDirectory() as workdir:
        started = [mock.patch.object(*patch) for patch in patches]
        for patch in started:
            patch.start()
        try:
            training.train_and_evaluate(config, workdir)
        finally:
            for patch in started:
                patch.stop()
    cpu, wall = (b - a for a, b in zip(rows[0], rows[-1], strict=True))
    return {"cpu": round(cpu, 3), "wall": round(wall, 3), "saved": len(saved)}


if __name__ == "__main__":
    main()
