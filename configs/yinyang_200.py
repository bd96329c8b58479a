"""As `yinyang.py`, with 200 hidden neurons.

Command: `python train.py --config=configs/yinyang_200.py`
"""

import ml_collections

from configs import yinyang


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Returns the experiment; `arg` is the variant, `smoke` or nothing."""
    config = yinyang.get_config(arg)
    config.model.hidden = (200,)
    return config
