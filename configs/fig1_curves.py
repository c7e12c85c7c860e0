"""Inception fits true labels, random labels, and shuffled, random or Gaussian images.

Zhang et al. (2017), Figure 1(a): the small Inception on CIFAR-10. The mean training loss falls
below 0.05 at epoch 10 with true labels, 15 with shuffled pixels, 21 with Gaussian images, 23 with
random pixels, 36 with random labels (digitised).

COMMAND  python -m launch.sweep --config=configs/fig1_curves.py --workdir=runs/fig1_curves
         python -m launch.report --workdir=runs/fig1_curves
         needs CIFAR-10 in .data/ (any public layout), or --config.data_files.download=True
COST     15 trials x 64 epochs; not run in full: it needs a GPU
"""

from configs._zhang2017 import INCEPTION, axes, protocol, quick
from rethink_jax import default_config


def get_config(mode="full"):
    config = default_config(mode)
    protocol(config)

    config.trial.stop.when_fitted = False
    config.trial.stop.max_epochs = 64  # 25,000 steps
    config.evaluate.every_epochs = 4

    config.sweep.seed = (0, 1, 2)  # UNSTATED in paper: how many runs
    settings = {
        "labels": {"corruption": {"label_prob": (0.0, 1.0)}},
        "pixels": {"corruption": {"pixels": ("shuffled", "random", "gaussian")}},
    }
    config.sweep.union = {"inception": axes(INCEPTION, {"union": settings})}

    if mode == "quick":
        quick(config)
    return config
