"""A network with 2n+d weights takes any given labels on n images, and learns nothing from them.

Zhang et al. (2017), Theorem 1: a two-layer ReLU network can represent any function on a sample of n
points in d dimensions with 2n+d weights. Here it is built for all training images of CIFAR-10
(n = 50,000, d = 3,072: 103,072 weights), with random and with true labels, and the plain forward
pass is checked, in float64, and in float32 with 200 layers and a second direction; and, on 2,000
images, for depths 3 to 50 (Corollary 1) and beside a network that SGD trains until it fits the same
labels.

COMMAND  python -m launch.theory --config=configs/theorem1.py --workdir=runs/theorem1
         python -m launch.report --workdir=runs/theorem1
         needs CIFAR-10 in .data/ (any public layout), or --config.data_files.download=True
COST     about 3 minutes on 2 CPU cores
"""

from rethink_jax.theory import cases


def get_config(mode="full"):
    config = cases.default_config("memorizer", mode)
    config.trial.data = "cifar10"
    config.sweep.labels = ("random", "true")
    config.sweep.union = {
        "all images": {"data": ("cifar10",)},
        "float32": {"precision": ("float32",), "depth": (200,)},
        "deeper": {"num_train": (2000,), "depth": (3, 10, 50)},
        "beside SGD": {"num_train": (2000,), "sgd": (512,)},
    }

    if mode == "quick":
        config.trial.data = "digits"
        config.sweep.labels = ("random",)
        config.sweep.union = {
            "all images": {"num_train": (100,)},
            "beside SGD": {"num_train": (50,), "sgd": (32,)},
        }
    return config
