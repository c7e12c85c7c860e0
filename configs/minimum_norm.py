"""SGD on a linear model finds the interpolating weights closest to its start.

Zhang et al. (2017), Section 5: SGD from zero never leaves the span of the images, so, once it fits
them, it is at the solution of minimum norm, whatever the labels are. Here on standardized pixels of
three data sets, with true and random labels, with and without momentum, from zero and from random
starts, each of which ends at its own closest solution: the part outside the span never moves.

COMMAND  python -m launch.theory --config=configs/minimum_norm.py --workdir=runs/minimum_norm
         python -m launch.report --workdir=runs/minimum_norm
         needs MNIST and CIFAR-10 in .data/; without: --config.sweep.union={}
COST     about 5 minutes on a CPU
"""

from rethink_jax.theory import cases


def get_config(mode="full"):
    config = cases.default_config("minimum_norm", mode)
    config.sweep.union = {
        "digits": {"data": ("digits",), "num_train": (40,)},
        "images": {"data": ("mnist", "cifar10"), "num_train": (100,), "starts": (1,)},
    }

    if mode == "quick":
        config.trial.num_train, config.trial.batch_size, config.trial.starts = 20, 4, 1
        config.trial.max_steps = 2000
        config.sweep.union = {}
    return config
