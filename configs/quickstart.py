"""Networks fit random labels, and random pixels: the central result, in miniature.

A one-hidden-layer network is trained until it fits the 1,442 embedded images of handwritten digits
perfectly: with true labels, with more and more of them redrawn at random, and with shuffled, random
or Gaussian pixels. Zhang et al. (2017), Figure 1, show the same on CIFAR-10: every training set is
fitted, the more corrupted ones later, while the test error grows to that of guessing (90%).

COMMAND  python -m launch.sweep --config=configs/quickstart.py --workdir=runs/quickstart
         python -m launch.report --workdir=runs/quickstart
"""

from rethink_jax import default_config


def get_config(mode="full"):
    config = default_config(mode)
    trial = config.trial

    # Data
    trial.data.name = "digits"
    trial.batch_size = 32

    # Model
    trial.model.name = "mlp"
    trial.model.hidden = (512,)

    # Optimizer
    trial.optimizer.learning_rate = 0.05
    trial.optimizer.lr_decay = 1.0  # per epoch: constant
    trial.optimizer.momentum = 0.9

    # Until every training image is classified as its (corrupted) label says
    trial.stop.train_accuracy = 1.0
    trial.stop.max_epochs = 200

    # Sweep: 11 corruption levels and 3 kinds of pixels, 3 seeds each
    config.sweep.seed = (0, 1, 2)
    config.sweep.union = {
        "labels": {
            "corruption": {"label_prob": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)}
        },
        "pixels": {"corruption": {"pixels": ("shuffled", "random", "gaussian")}},
    }

    if mode == "quick":
        trial.data.num_train = 128
        trial.stop.max_epochs = 1
    return config
