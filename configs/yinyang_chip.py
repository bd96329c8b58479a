"""YinYang on the simulated BrainScaleS-2 chip, 25-100-3, EventProp in the loop.

Command: `python train.py --config=configs/yinyang_chip.py`. Other chips are
`--config.chip.chip_seed=N`, better and worse ones `--config.chip.profile=NAME`; see
`jaxsnn.hardware.SimulatedChip`.

As on the real chip, every value comes from five inputs, since a single synapse is weak,
the time constants are 12 and 6 us (ms in the model), and weights are integers up to 63,
57 of which are a weight of 1.

To train in software, with weights that the chip can hold, and evaluate on the chip:

    python train.py --config=configs/yinyang_chip.py --config.hardware= --workdir=DIR
    python train.py --config=configs/yinyang_chip.py --workdir=DIR --mode=eval

To begin a run on the chip with these parameters, and with an optimizer of its own:

    python train.py --config=configs/yinyang_chip.py --config.init_from=DIR \
        --config.num_epochs=30 --config.learning_rate=2e-3 --config.loss.bump=0.5

The last flag wakes outputs that spiked late in software and do not on the chip.

Without `--config.hardware=` the first of these commands goes on with its own run on the
chip, if `--config.num_epochs` is raised. On a real chip: `yinyang_bss2.py`.

Test accuracy after the last epoch, chips and seeds 0 to 4 (`benchmarks/chips.py`):
98.44 +- 0.36 % after 60 epochs on the chip. Trained in software 99.12 +- 0.04 %; these
networks on the chips 85.9 +- 6.0 %, and after 30 more epochs there 98.58 +- 0.41 %.
"""

import ml_collections

from configs import yinyang


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Returns the experiment; `arg` is the variant, `smoke` or nothing."""
    config = yinyang.get_config(arg)
    config.num_epochs = min(config.num_epochs, 60)
    config.model.hidden = (100,)
    config.model.tau_mem = 12e-3  # s; 12 us on the chip.
    config.model.tau_syn = 6e-3  # s
    config.model.output_init = (50.0, 8.0)
    config.until = 30e-3  # s; neurons of the chip can be kept silent for 32 us.

    config.hardware = "simulated_chip"
    config.chip.scale = 57.0  # Integers per unit of weight ...
    config.max_weight = 63 / 57  # ... of which 63 is the largest.

    config.encoding.t_early = 0.9e-3  # s
    config.encoding.t_late = 12e-3  # s
    config.encoding.bias = 5.4e-3  # s
    config.encoding.copies = 5
    config.loss.tau = 0.3e-3  # s
    config.loss.t_silent = 30e-3  # s
    return config
