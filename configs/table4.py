"""Explicit regularizers do not keep networks from fitting random labels.

Zhang et al. (2017), Table 4: training accuracy on random labels of CIFAR-10 with weight decay 100%
(Inception), 100% (MLP 3x512), 99.21% (MLP 1x512), no convergence (Alexnet); Inception with random
crops 99.93%, with random mirroring and rotation 99.28%, where crops and rotations are new in every
epoch, the labels are not, and the number is the mean accuracy of the batches.

COMMAND  python -m launch.sweep --config=configs/table4.py --workdir=runs/table4
         python -m launch.report --workdir=runs/table4
         some rows only: --config.only="model.name=mlp" (the others can follow in the same workdir)
         needs CIFAR-10 in .data/ (any public layout), or --config.data_files.download=True
COST     18 trials in 4 groups; not run in full. The convolutional networks need a GPU
"""

from configs._zhang2017 import (
    ALEXNET,
    ALEXNET_WEIGHT_DECAY,
    INCEPTION,
    MLP_1X512,
    MLP_3X512,
    WEIGHT_DECAY,
    axes,
    protocol,
    quick,
)
from rethink_jax import default_config


def get_config(mode="full"):
    config = default_config(mode)
    protocol(config)
    config.trial.corruption.label_prob = 1.0

    config.trial.stop.when_fitted = False
    # UNSTATED in paper, which says "more epochs" for the rows with new images in every epoch.
    config.trial.stop.max_epochs = 150
    config.evaluate.every_epochs = 10

    config.sweep.seed = (0, 1, 2)  # UNSTATED in paper: how many runs
    decay = {"optimizer": {"weight_decay": (WEIGHT_DECAY,)}}
    # The paper changes "the default weight decay factor from 0.95 to 0.999" for these two; the
    # factor of the learning rate must be meant.
    slow = {"optimizer": {"lr_decay": (0.999,)}}
    crop = {"preprocess": {"random_crop": (True,)}}
    turn = {"preprocess": {"random_flip": (True,), "max_rotation": (25.0,)}}
    config.sweep.union = {
        "inception": axes(
            INCEPTION,
            {"union": {"decay": decay, "crop": axes(crop, slow), "turn": axes(turn, slow)}},
        ),
        "alexnet": axes(ALEXNET, {"optimizer": {"weight_decay": (ALEXNET_WEIGHT_DECAY,)}}),
        "mlp 3x512": axes(MLP_3X512, decay),
        "mlp 1x512": axes(MLP_1X512, decay),
    }

    if mode == "quick":
        quick(config)
    return config
