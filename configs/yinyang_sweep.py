"""As `yinyang.py`, over a grid of settings; the number of a point comes after a colon.

Command: `python train.py --config=configs/yinyang_sweep.py:0`, up to the last point.
How to run all of them, and which is the best, is in docs/training.md.
"""

import itertools

import ml_collections

from configs import yinyang

GRID = {
    "learning_rate": (5e-3, 1e-2, 2e-2),
    "loss.tau": (0.25e-3, 0.5e-3, 1e-3),
}
POINTS = [
    dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())
]


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Returns the experiment; `arg` is the number of a point."""
    if arg not in map(str, range(len(POINTS))):
        raise ValueError(
            f"configs/yinyang_sweep.py has no point {arg!r}; write a number from 0 to"
            f" {len(POINTS) - 1} after a colon."
        )
    config = yinyang.get_config()
    config.update_from_flattened_dict(POINTS[int(arg)])
    return config
