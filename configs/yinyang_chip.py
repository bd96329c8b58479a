"""As `yinyang.py`, with the forward pass on the simulated chip.

Command: `python train.py --config=configs/yinyang_chip.py`
"""

import ml_collections

from configs import yinyang


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Returns the experiment; `arg` is the variant, `smoke` or nothing."""
    config = yinyang.get_config(arg)
    config.hardware = "simulated_chip"
    return config
