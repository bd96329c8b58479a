"""What a chip's errors cost a network, and what training in the loop gets back.

    python benchmarks/chips.py [--chips 5] [--profile calibrated] [--json]

A network of `configs/yinyang_chip.py` is trained in software, with the weights that the
chip can hold, and evaluated on simulated chips whose errors differ. Then it is trained
on each: from those parameters (`config.init_from`), and from the beginning. Chip n has
`chip_seed` n, and the networks for it start from `seed` n.

Everything is test accuracy after the last epoch, of runs that `train.py` would do; they
lie below `--workdir`, and a run that is there is continued, or not repeated. The
hyperparameters were chosen on the validation split.
"""

import argparse
import json
import logging
import pathlib
import statistics
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # configs/ is not part of the package.

from report import processor  # noqa: E402

from configs import yinyang_chip  # noqa: E402
from jaxsnn import training  # noqa: E402
from jaxsnn.training.writers import read_metrics  # noqa: E402

# For a run that begins with parameters of another. Outputs that spike late in software
# may not do so at all on a chip, and then have no gradient: the bump wakes them.
FINE_TUNING = {"learning_rate": 2e-3, "loss.bump": 0.5, "num_epochs": 30}

ROWS = {
    "software": "trained and tested in software",
    "software_on_chip": "the same parameters, on the chip",
    "fine_tuned": "trained on from these on the chip",
    "in_the_loop": "trained on the chip from the beginning",
}


def main(argv: list[str] | None = None) -> None:
    """Parses the command line, trains what is missing, prints."""
    options = arguments().parse_args(argv)
    if options.json:
        logging.getLogger("jaxsnn").setLevel(logging.WARNING)
    else:
        training.log_to_console()
    result = measure(options)
    print(json.dumps(result) if options.json else table(result))


def arguments() -> argparse.ArgumentParser:
    """What can be measured; `measure` takes the parsed options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--chips", type=int, default=5, help="how many")
    parser.add_argument("--profile", default="calibrated", help="of SimulatedChip")
    parser.add_argument("--hidden", type=int, default=100, help="neurons")
    parser.add_argument("--epochs", type=int, help="of every run; for a quick try")
    parser.add_argument("--data-dir", default="", help="of the data set")
    parser.add_argument("--workdir", default="runs/chips", help="directory of all runs")
    parser.add_argument("--json", action="store_true", help="one JSON object, no more")
    return parser


def measure(options: argparse.Namespace) -> dict:
    """Accuracies of each row, one of each chip; see the module."""
    found: dict[str, list[float]] = {row: [] for row in ROWS}
    for chip in range(options.chips):
        one = on_chip(options, chip)
        for row, accuracy in one.items():
            found[row].append(accuracy)
    return {
        "profile": options.profile,
        "hidden": options.hidden,
        "processor": processor(),
        "test_accuracy": found,
        "mean": {row: statistics.mean(values) for row, values in found.items()},
        "std": {
            row: statistics.stdev(values) if len(values) > 1 else 0.0
            for row, values in found.items()
        },
    }


def on_chip(options: argparse.Namespace, chip: int) -> dict[str, float]:
    """Test accuracy of each row on one chip."""
    base = pathlib.Path(options.workdir).absolute() / f"{options.hidden}"
    there = base / options.profile
    software = base / f"software-{chip}"

    def config(changes):
        config = yinyang_chip.get_config()
        config.data_dir = options.data_dir
        config.seed = chip
        config.model.hidden = (options.hidden,)
        config.log_every_epochs = 10
        config.chip.update(profile=options.profile, chip_seed=chip)
        config.update_from_flattened_dict(changes)
        if options.epochs:
            config.num_epochs = options.epochs
        return config

    def trained(workdir, changes):
        training.train_and_evaluate(config(changes), workdir)
        rows = read_metrics(workdir)
        return [r["test/accuracy"] for r in rows if "test/accuracy" in r][-1]

    return {
        "software": trained(software, {"hardware": ""}),
        "software_on_chip": training.evaluate(config({}), software)["accuracy"],
        "fine_tuned": trained(
            there / f"fine-tuned-{chip}", {"init_from": str(software), **FINE_TUNING}
        ),
        "in_the_loop": trained(there / f"in-the-loop-{chip}", {}),
    }


def table(result: dict) -> str:
    """The result as Markdown."""
    chips = range(len(result["test_accuracy"]["software"]))
    lines = [
        f"| 25-{result['hidden']}-3, profile `{result['profile']}` | "
        + " | ".join(f"chip {n}" for n in chips)
        + " | mean |",
        "|---" * (len(chips) + 2) + "|",
    ]
    for row, title in ROWS.items():
        each = [f"{100 * x:.1f}" for x in result["test_accuracy"][row]]
        mean, std = 100 * result["mean"][row], 100 * result["std"][row]
        lines.append(f"| {title} | {' | '.join(each)} | {mean:.2f} ± {std:.2f} % |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
