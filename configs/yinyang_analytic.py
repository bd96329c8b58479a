"""As `yinyang.py`, with the gradient by differentiating the crossings (Fast & Deep).

Command: `python train.py --config=configs/yinyang_analytic.py`

Test accuracy after the last epoch, seeds 0 to 9 on one core: 99.21 +- 0.27 %, 16 s for
the whole command.
"""

import ml_collections

from configs import yinyang


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Returns the experiment; `arg` is the variant, `smoke` or nothing."""
    config = yinyang.get_config(arg)
    config.model.gradient = "analytic"
    return config
