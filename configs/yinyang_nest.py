"""As `yinyang.py`, with the forward pass in NEST, an independent simulator.

NEST comes with `pip install nest-simulator`. It runs about 100 samples in a second, so
this is for a few epochs of a network that was trained in software:

    python train.py --config=configs/yinyang.py
    python train.py --config=configs/yinyang_nest.py --config.init_from=runs/yinyang

or for its evaluation, on the same parameters:

    python train.py --config=configs/yinyang_nest.py --workdir=runs/yinyang --mode=eval

`mismatch/...` is then the rounding of float32.
"""

import ml_collections

from configs import yinyang


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Returns the experiment; `arg` is the variant, `smoke` or nothing."""
    config = yinyang.get_config(arg)
    config.num_epochs = min(config.num_epochs, 3)
    config.until = 60e-3  # s
    config.hardware = "nest"
    config.nest.resolution = 1e-4  # s, the shortest delay.
    config.nest.timeout = 60.0  # s of the clock that a batch may take.
    return config
