"""As `yinyang_chip.py`, on a real BrainScaleS-2 chip.

    python train.py --config=configs/yinyang_bss2.py

It needs the vendor's software and access to a chip; see `jaxsnn.hardware.BrainScaleS2`,
which was written against the interface of that software and exercised against a
stand-in, and has not yet been run on a chip. `BrainScaleS2.measure` finds `scale` and
`latency` of a chip.

What was trained in software or on the simulated chip goes on here, and the other way:
`--config.init_from=runs/yinyang_chip` begins a run with those parameters,
`--workdir=runs/yinyang_chip --mode=eval` evaluates them. After a fault of the device
the same command goes on from the last whole epoch.
"""

import ml_collections
from ml_collections import config_dict

from configs import yinyang_chip


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Returns the experiment; `arg` is the variant, `smoke` or nothing."""
    config = yinyang_chip.get_config(arg)
    config.hardware = "bss2"
    config.bss2.time_scale = 1e-3  # Seconds on the chip per second of the model.
    config.bss2.scale = 57.0  # Integers per unit of weight.
    config.bss2.latency = 0.16e-6  # s on the chip, of each hop.
    config.bss2.calibration = config_dict.placeholder(str)  # File; None: calibrates.
    config.bss2.timeout = 60.0  # s of the clock that a batch may take.
    config.bss2.retries = 2  # After a fault of the link.
    return config
