"""As `yinyang_chip.py`, 25-120-3, read out by sampled voltages of the outputs.

Command: `python train.py --config=configs/yinyang_chip_mot.py`. Other chips are
`--config.chip.chip_seed=N`.

Test accuracy after the last epoch, seeds 0 to 9 on 5 chips: 98.07 +- 0.68 %.

The chip's converter samples the voltages of the outputs every 1.7 us, with 8 bits and
noise, and the highest sample decides. The gradient is that of the model's voltage at
its time.
"""

import ml_collections

from configs import yinyang_chip


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Returns the experiment; `arg` is the variant, `smoke` or nothing."""
    config = yinyang_chip.get_config(arg)
    config.model.hidden = (120,)
    config.model.readout = "li"
    config.model.output_init = (0.0, 4.0)
    config.chip.cadc = 1.7e-6  # s on the chip, between two samples.
    config.loss.name = "mot_cross_entropy"
    config.loss.scale = 8.0  # Inverse of the lead that makes e times as probable.
    config.loss.lift = 0.0  # The highest sample of noise is above rest.
    config.loss.early = 0.0  # Of spikes only; there are none to be late.
    return config
