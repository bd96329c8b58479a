"""Trains or evaluates an experiment, reports on it, or exports the model.

    python train.py --config=configs/yinyang.py[:variant] [--config.key=value ...]

The same command continues a run that was stopped.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

_DEFAULT_CONFIG = Path(__file__).parent / "configs" / "yinyang.py"

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    # Not here: ml_collections would apply the overrides meant for another config to it.
    default=None,
    help_string="The experiment: a Python file with get_config(), and a variant after "
    "a colon. Overrides such as --config.batch_size=50 come after it. "
    "Default: configs/yinyang.py.",
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Directory for checkpoints and metrics. Default: runs/<name of the config>.",
)
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "eval", "report", "export"],
    "Train, evaluate the newest checkpoint on config.eval_split, write a page about "
    "it, report.html in the workdir, or write inference.zip there, which runs without "
    "Flax.",
)


def main(argv: list[str]) -> None:
    """Runs the chosen mode; exits with 1 on an error, 128 + n on signal n."""
    if argv[1:]:
        raise app.UsageError(f"Unexpected argument {argv[1]!r}.")
    config = _CONFIG.value
    try:
        config.lock()  # The first use: a missing file is reported only now.
    except OSError as error:
        sys.exit(f"error: {error}")
    # Only now: a mistyped flag and --help need no JAX.
    from jaxsnn import hardware, training

    console = training.log_to_console()
    # Orbax logs a hundred lines for each save, and pages for an error that it then
    # raises as well; --verbosity=0 shows them.
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
        logging.get_absl_logger().addFilter(lambda r: "/orbax/" not in r.pathname)
    run = {
        "train": training.train_and_evaluate,
        "eval": training.evaluate,
        "report": training.write_report,
        "export": training.export_run,
    }[_MODE.value]
    try:
        run(config, _WORKDIR.value or _default_workdir())
    except training.Interrupted as interruption:
        sys.exit(128 + interruption.signum)
    except (training.TrainingError, hardware.DeviceError) as error:
        console.close()
        notes = getattr(error, "__notes__", ())  # What became of the run.
        message = f"error: {error}"
        training.leave(". ".join([message.rstrip("."), *notes]) if notes else message)


def _default_workdir() -> str:
    filename = config_flags.get_config_filename(flags.FLAGS["config"])
    path, _, variant = filename.partition(".py:")
    name = Path(path).name.removesuffix(".py")
    return f"runs/{name}-{variant}" if variant else f"runs/{name}"


def _parse_flags(argv: list[str]) -> list[str]:
    if not any(re.match("--?config(=|$)", argument) for argument in argv):
        argv = [argv[0], f"--config={_DEFAULT_CONFIG}", *argv[1:]]
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError) as error:
        message = error.args[0]
        if isinstance(message, KeyError):  # ml_collections wraps one in the other.
            message = message.args[0]
        sys.exit(f"error: unknown field in --config: {' '.join(message.splitlines())}")


if __name__ == "__main__":
    app.run(main, flags_parser=_parse_flags)
