"""As `yinyang.py`, read out by the maxima of voltages of leaky integrators.

Command: `python train.py --config=configs/yinyang_mot.py`

Test accuracy after the last epoch, seeds 0 to 9: 98.85 +- 0.58 %. `loss.scale` was
chosen on the validation split (1: 98.1, 3: 98.8, 8: 99.1 % after 80 epochs). Without
`loss.lift` one of the ten stays at 83 %, with an output that does not rise from rest.
"""

import ml_collections

from configs import yinyang


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Returns the experiment; `arg` is the variant, `smoke` or nothing."""
    config = yinyang.get_config(arg)
    config.model.readout = "li"
    config.model.output_init = (0.0, 8.8)
    config.loss.name = "mot_cross_entropy"
    config.loss.scale = 8.0  # Inverse of the lead that makes e times as probable.
    # Weight of the lift of outputs that do not rise where they should; see losses.
    config.loss.lift = 3e-3
    config.loss.early = 0.0  # Of spikes only; there are none to be late.
    return config
