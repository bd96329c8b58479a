"""Fashion-MNIST, 784-400-10, one spike per pixel and neuron, EventProp.

Command: `python train.py --config=configs/fashion_mnist.py`

Test accuracy after the last of 30 epochs, seed 0: 85.6 % (training set: 96 %). Speed:
2,200 samples/s, 25 s per epoch, on a core. Noise on the inputs closes the gap between
the two: with `--config.noise.jitter=1e-3 --config.noise.loss=0.05`, 87 % of the
training set and 86 % of the validation set after 9 epochs; a whole run with it was not
measured.

The bright pixels come first, black ones not at all. The images are downloaded by tfds,
or taken from files; see `jaxsnn.datasets.FashionMnistIdx`. For MNIST:
`--config.dataset=mnist_idx`.
"""

import ml_collections

from configs import yinyang


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Returns the experiment; `arg` is the variant, `smoke` or nothing."""
    config = yinyang.get_config(arg)
    config.dataset = "fashion_mnist_idx"
    config.num_epochs = min(config.num_epochs, 30)
    config.learning_rate = 2e-3
    config.model.hidden = (400,)
    config.model.outputs = 10
    config.model.hidden_init = (15.0, 8.0)
    config.model.output_init = (30.0, 20.0)
    config.encoding.t_early = 0.0  # s
    config.encoding.t_late = 20e-3  # s
    config.encoding.bias = 0.0  # s
    config.encoding.cutoff = 1.0
    config.loss.tau = 1e-3  # s
    config.loss.early = 0.0  # Among ten outputs, nothing makes all of them late.
    config.loss.bump = 3e-3
    config.checkpoint_every_epochs = 1
    return config
