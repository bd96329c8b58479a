"""YinYang with one hidden layer, 5-120-3, time to first spike, EventProp.

Command: `python train.py --config=configs/yinyang.py`; `:smoke` trains for 2 epochs.
"""

from __future__ import annotations

import ml_collections
from ml_collections import config_dict


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Returns the experiment; `arg` is the variant, `smoke` or nothing."""
    if arg not in (None, "", "smoke"):
        raise ValueError(f"configs/yinyang.py has no variant {arg!r}, only 'smoke'.")
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.num_epochs = 2 if arg == "smoke" else 300
    config.batch_size = 50
    config.learning_rate = 5e-3
    config.clip_norm = 1.0

    config.dataset = "yin_yang"
    config.data_dir = ""  # Where tfds keeps it; empty: TFDS_DATA_DIR or its default.

    config.model = ml_collections.ConfigDict()
    config.model.hidden = (120,)
    config.model.outputs = 3
    config.model.tau_mem = 10e-3  # s
    config.model.tau_syn = 5e-3  # s
    config.model.v_th = 1.0
    config.model.max_spikes = 1
    config.model.slots = config_dict.placeholder(int)  # One for each possible spike.
    config.model.gradient = "eventprop"
    config.model.hidden_init = (
        15.0,
        3.6,
    )  # Sum of a neuron's weights: mean, deviation.
    config.model.output_init = (15.0, 3.6)
    config.model.dtype = "float32"

    config.hardware = ""  # Empty: the exact simulation.
    config.chip = ml_collections.ConfigDict()  # Of "simulated_chip".
    config.chip.time_scale = 1e-3
    config.chip.jitter = 60e-9  # s
    config.chip.seed = 0

    config.encoding = ml_collections.ConfigDict()
    config.encoding.t_early = 0.0  # s
    config.encoding.t_late = 20e-3  # s
    config.encoding.bias = 0.0  # s, time of the bias spike

    config.loss = ml_collections.ConfigDict()
    config.loss.name = "ttfs_cross_entropy"
    config.loss.tau = 1e-3  # s
    config.loss.t_silent = 40e-3  # s
    config.loss.early = 1e-2
    config.loss.bump = 1e-2

    config.log_every_epochs = 1
    config.checkpoint_every_epochs = 10
    config.keep_checkpoints = 3
    config.eval_split = "test"
    return config
