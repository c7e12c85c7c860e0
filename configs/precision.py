"""Does computing in bfloat16 change a result by more than another seed does?

No number of a paper. Each network is trained on true and on random labels in both compute dtypes,
from the same 5 seeds, until it classifies every training image as labelled. Weights, running
statistics, optimizer state and loss are float32 in both. A difference between the means counts if
it is large against the standard deviation over seeds.

COMMAND  python -m launch.sweep --config=configs/precision.py --workdir=runs/precision
         python -m launch.report --workdir=runs/precision
         needs CIFAR-10 in .data/ (any public layout), or --config.data_files.download=True
         on a CPU: --config.only="model.name=mlp"
COST     80 trials; the 40 of the MLPs take minutes on 2 CPU cores (times and results in
         BUILD_NOTES.md), the convolutional networks were not run
"""

from configs._zhang2017 import ALEXNET, INCEPTION, MLP_1X512, axes, quick
from rethink_jax import default_config


def get_config(mode="full"):
    config = default_config(mode)
    trial = config.trial

    trial.batch_size = 50
    trial.optimizer.momentum = 0.9
    trial.optimizer.lr_decay = 1.0

    # Until every training image is classified as its label says
    trial.stop.train_accuracy = 1.0
    trial.stop.max_epochs = 200
    config.evaluate.every_epochs = 200  # The test set: at the end only.

    config.sweep.seed = (0, 1, 2, 3, 4)
    config.sweep.corruption.label_prob = (0.0, 1.0)
    config.sweep.compute_dtype = ("float32", "bfloat16")
    # 5,000 images of CIFAR-10, the same ones for all seeds
    subset = {
        "data": {"name": ("cifar10",), "num_train": (5000,)},
        "preprocess": {"crop_size": (28,)},
    }
    # The running averages must follow within an epoch of 100 steps.
    follow = {"model": ({"name": "inception", "batch_norm_decay": 0.9},)}
    config.sweep.union = {
        "digits": axes(MLP_1X512, {"optimizer": {"learning_rate": (0.05,)}}),
        "mlp": axes(MLP_1X512, subset),
        "alexnet": axes(ALEXNET, subset),
        "inception": axes(INCEPTION, subset, follow),
    }

    if mode == "quick":
        quick(config)
        config.sweep.union = {"mlp": MLP_1X512}
    return config
