"""Empirical Rademacher complexity, measured: networks correlate with random signs, to 1.

Zhang et al. (2017), Section 2.2: as networks fit random labels perfectly, the Rademacher complexity
of their class on these images is expected to be about 1, which gives no useful bound; "a similar
reasoning applies to VC-dimension". Here each lane is one draw of random labels of a binary problem
(airplanes and automobiles of CIFAR-10); beside them, the same networks with the true labels. The
report has the complexity with its interval, the bounds on the test error that it and the VC
dimension give, and the test error. A linear network on 8x8 averages is small enough for a bound.

COMMAND  python -m launch.sweep --config=configs/rademacher.py --workdir=runs/rademacher
         python -m launch.report --workdir=runs/rademacher
         needs CIFAR-10 in .data/ (any public layout), or --config.data_files.download=True
COST     84 trials, 6 minutes of CPU time
"""

from rethink_jax import default_config, network


def get_config(mode="full"):
    config = default_config(mode)
    trial = config.trial

    # Data: two classes, of which there are 10,000 training images
    trial.data.name = "cifar10"
    trial.data.classes = (0, 1)  # airplane, automobile
    trial.batch_size = 50

    # Optimizer
    trial.optimizer.momentum = 0.9
    trial.optimizer.lr_decay = 0.98  # per epoch

    # Until every image is classified as labelled; the best epoch counts
    trial.stop.train_accuracy = 1.0
    trial.stop.max_epochs = 150
    config.evaluate.every_epochs = 150  # The test set; the training set is measured each epoch.

    # Networks, from few weights to many, each with its rate
    pooled = network("sequential", layers=("avg_pool 4", "flatten"))
    conv = network(
        "sequential",
        layers=("conv 16 5 4", "relu", "conv 32 3 2", "relu", "flatten", "dense 64", "relu"),
    )
    config.sweep.zipped = {
        "networks": {
            "model": (pooled, network("mlp", hidden=()), network("mlp", hidden=(128,)), conv),
            "optimizer": {"learning_rate": (0.03, 0.01, 0.01, 0.01)},
        }
    }
    config.sweep.data.num_train = (250, 1000, 4000)
    config.sweep.union = {
        "draws": {"corruption": {"label_prob": (1.0,), "seed": (0, 1, 2, 3, 4)}},
        "true labels": {"corruption": {"label_prob": (0.0,)}, "seed": (0, 1)},
    }

    if mode == "quick":
        trial.data.name = "digits"
        trial.batch_size = 16
        trial.stop.max_epochs = 1
        config.evaluate.every_epochs = 1
        del config.sweep.zipped
        config.sweep.model = {"hidden": ((), (8,))}
        config.sweep.data.num_train = (32, 64)
        config.sweep.union.draws.corruption.seed = (0, 1)
        config.sweep.union["true labels"].seed = (0,)
        config.engine.lanes = 1
        config.engine.devices = 1
    return config
