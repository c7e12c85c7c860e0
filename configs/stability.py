"""Uniform stability, measured: networks trained again with one image replaced by another.

Zhang et al. (2017), Section 2.2: uniform stability (Bousquet and Elisseeff 2002) measures how
sensitive an algorithm is to the replacement of a single example; it is solely a property of the
algorithm, and does not take into account the data or the distribution of the labels. Here each lane
is one replacement, with true and with random labels; first weights and order of images stay. The
report has the changes of the losses on test images, and the bounds that the largest change gives:
of a network of 128 hidden units, and of a linear one on 8x8 averages without and with strong weight
decay, with which it is stable, and classifies nearly as well.

COMMAND  python -m launch.sweep --config=configs/stability.py --workdir=runs/stability
         python -m launch.report --workdir=runs/stability
         needs CIFAR-10 in .data/ (any public layout), or --config.data_files.download=True
COST     136 trials, 2 minutes of CPU time
"""

from rethink_jax import default_config, network


def get_config(mode="full"):
    config = default_config(mode)
    trial = config.trial

    # Data: 1,000 images of two classes
    trial.data.name = "cifar10"
    trial.data.classes = (0, 1)  # airplane, automobile
    trial.data.num_train = 1000
    trial.batch_size = 50

    # Optimizer
    trial.optimizer.learning_rate = 0.01
    trial.optimizer.momentum = 0.9
    trial.optimizer.lr_decay = 0.95  # per epoch

    # As many epochs whether fitted or not: when to stop would be a further thing that changes.
    trial.stop.max_epochs = 60
    config.evaluate.every_epochs = 60

    # Networks
    pooled = network("sequential", layers=("avg_pool 4", "flatten"))
    config.sweep.zipped = {
        "networks": {
            "model": (network("mlp", hidden=(128,)), pooled, pooled, pooled),
            "optimizer": {"weight_decay": (0.0, 0.0, 1.0, 10.0)},
        }
    }
    config.sweep.corruption.label_prob = (0.0, 1.0)
    config.sweep.data.replaced = (None, *range(16))

    if mode == "quick":
        trial.data.name = "digits"
        trial.data.num_train = 32
        trial.batch_size = 16
        trial.stop.max_epochs = 1
        config.evaluate.every_epochs = 1
        del config.sweep.zipped
        trial.model.hidden = (8,)
        config.sweep.data.replaced = (None, 0)
        config.engine.lanes = 1
        config.engine.devices = 1
    return config
