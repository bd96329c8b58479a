"""YinYang with one hidden layer, 5-120-3, time to first spike, EventProp.

Command: `python train.py --config=configs/yinyang.py`; `:smoke` trains for 2 epochs.

Test accuracy after the last epoch, seeds 0 to 9 (`--config.seed=N`), on one core of a
Xeon (more cores round differently): 99.15 +- 0.28 %, 15 s for the whole command. See
benchmarks/accuracy.md for this and all other experiments.

A cross entropy of spike times alone lets all outputs drift late until they cease, and a
silent output has no gradient; `loss.early` and `loss.bump` are there to prevent that.
"""

import ml_collections
from ml_collections import config_dict


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Returns the experiment; `arg` is the variant, `smoke` or nothing."""
    if arg not in (None, "", "smoke"):
        raise ValueError(f"configs/yinyang.py has no variant {arg!r}, only 'smoke'.")
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.ensemble = 1  # Seeds that train together: `seed`, `seed + 1`, ...
    config.num_epochs = 2 if arg == "smoke" else 150
    config.batch_size = 50
    config.learning_rate = 1e-2  # Decays to 0 along a cosine.
    # Of the weights of a layer with itself; None: the same.
    config.recurrent_learning_rate = config_dict.placeholder(float)
    config.clip_norm = 0.5  # Of the gradient: grazing spikes have huge ones.
    config.nonfinite = "stop"  # Of NaN or Inf in a step; or "skip" it, and count.

    config.dataset = "yin_yang"
    config.data_dir = ""  # Where tfds keeps it; empty: TFDS_DATA_DIR or its default.

    config.model = ml_collections.ConfigDict()
    config.model.hidden = (120,)  # Neurons of each hidden layer.
    config.model.outputs = 3
    config.model.tau_mem = 20e-3  # s
    config.model.tau_syn = 10e-3  # s
    config.model.v_th = 1.0
    config.model.max_spikes = 1  # Of each hidden neuron.
    config.model.slots = config_dict.placeholder(int)  # Of a hidden layer; None: all.
    config.model.gradient = "eventprop"  # Or "analytic".
    config.model.readout = "lif"  # First spikes. Or "li": maxima of voltages.
    config.model.hidden_init = (
        15.0,
        3.6,
    )  # Mean, deviation of a neuron's total weight.
    config.model.output_init = (60.0, 8.8)
    # s, bound of learned delays of the synapses between layers; None: without delay.
    config.model.max_delay = config_dict.placeholder(float)
    config.model.recurrent = False  # Whether a hidden layer is connected with itself,
    config.model.recurrent_init = (0.0, 3.6)  # and with which weights, as above.
    config.model.recurrent_delay = 0.0  # s
    config.model.dt = config_dict.placeholder(float)  # s, of a time grid; None: events.
    config.model.steps = config_dict.placeholder(int)  # None: up to loss.t_silent.
    config.model.surrogate = "superspike"  # For `gradient`, on a grid.
    config.model.beta = 10.0  # Sharpness of the surrogate.
    config.model.dtype = "float32"

    # Empty: the exact simulation. Or "simulated_chip", "nest", "bss2".
    config.hardware = ""
    config.init_from = ""  # Workdir of a run whose parameters a new one starts with.
    # s, when a run ends; None: never. Devices need to know.
    config.until = config_dict.placeholder(float)
    config.max_weight = config_dict.placeholder(float)  # In training; None: no bound.
    # Any field of jaxsnn.hardware.SimulatedChip can be added to these.
    config.chip = ml_collections.ConfigDict()
    config.chip.profile = "calibrated"
    config.chip.chip_seed = 0  # Which chip: of its errors, which stay.
    config.chip.time_scale = 1e-3  # Seconds on the chip per second of the model.
    config.chip.scale = config_dict.placeholder(float)  # None: fitted to the weights.
    config.nest = ml_collections.ConfigDict()  # Of jaxsnn.hardware.Nest.
    config.bss2 = ml_collections.ConfigDict()  # Of jaxsnn.hardware.BrainScaleS2.

    config.encoding = ml_collections.ConfigDict()
    config.encoding.t_early = 1.5e-3  # s
    config.encoding.t_late = 20e-3  # s
    config.encoding.bias = 9e-3  # s, time of the bias spike
    config.encoding.copies = 1  # Sources per value.
    # Values from here on are silent; None: none are.
    config.encoding.cutoff = config_dict.placeholder(float)

    config.noise = ml_collections.ConfigDict()  # On the inputs, in training.
    config.noise.jitter = 0.0  # s, standard deviation of spike times.
    config.noise.loss = 0.0  # Fraction of the spikes that are left out.

    config.loss = ml_collections.ConfigDict()
    config.loss.name = "ttfs_cross_entropy"  # Or "ttfs_mse"; see yinyang_mot.py.
    config.loss.tau = 0.5e-3  # s, a lead of which makes e times as probable.
    config.loss.t_correct = 18e-3  # s, target of the right output; ttfs_mse only.
    config.loss.t_wrong = 22e-3  # s, target of the others; ttfs_mse only.
    config.loss.t_silent = 60e-3  # s, stands for a silent output.
    config.loss.early = 3e-3  # Weight of the penalty on late spikes.
    config.loss.bump = 3e-2  # Weight of the lift of silent neurons; see losses.

    config.mesh = ml_collections.ConfigDict()
    config.mesh.data = 1  # Devices of each process that share the work; -1: all.
    # Processes that train together; see docs/distributed.md.
    config.distributed = ml_collections.ConfigDict()
    # host:port of process 0; or "auto": on SLURM and in the cloud. Empty: one process.
    config.distributed.coordinator = ""
    config.distributed.num_processes = config_dict.placeholder(int)
    config.distributed.process_id = config_dict.placeholder(int)
    config.distributed.timeout = 60  # s without a sign of life: a process is lost.

    config.log_every_epochs = 1
    # Pictures for TensorBoard, which take some seconds each time; None: none.
    config.plot_every_epochs = config_dict.placeholder(int)
    config.checkpoint_every_epochs = 10  # Or later: saving may take 3 % of the time.
    config.keep_checkpoints = 3
    config.eval_split = "test"
    return config
