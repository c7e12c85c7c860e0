"""Networks that generalize well also fit random labels, with and without explicit regularizers.

Zhang et al. (2017), Table 1, all 19 rows: five networks on CIFAR-10 with and without random crops
and weight decay, and on random labels. Training accuracy is (nearly) 100% in every row; test
accuracy 89.05% to 82.00% (Inception), 81.22% to 76.07% (Alexnet), 50.39% to 53.35% (MLPs), and
about 10% in the rows with random labels.

COMMAND  python -m launch.sweep --config=configs/table1.py --workdir=runs/table1
         python -m launch.report --workdir=runs/table1
         some rows only: --config.only="model.name=mlp" (the others can follow in the same workdir)
         needs CIFAR-10 in .data/ (any public layout), or --config.data_files.download=True
COST     57 trials in 5 groups. The 18 of the MLPs: see BUILD_NOTES.md. The convolutional networks:
         not run in full; they need a GPU
"""

from configs._zhang2017 import (
    ALEXNET,
    ALEXNET_WEIGHT_DECAY,
    INCEPTION,
    INCEPTION_WITHOUT_BATCH_NORM,
    MLP_1X512,
    MLP_3X512,
    WEIGHT_DECAY,
    axes,
    protocol,
    quick,
)
from rethink_jax import default_config


def _rows(network, random_crop, weight_decay):
    """The rows of one network: true labels under each regularizer, then random labels."""
    true = {
        "preprocess": {"random_crop": random_crop},
        "optimizer": {"weight_decay": weight_decay},
    }
    random = {"corruption": {"label_prob": (1.0,)}}
    return axes(network, {"union": {"true labels": true, "random labels": random}})


def get_config(mode="full"):
    config = default_config(mode)
    protocol(config)

    config.trial.stop.when_fitted = False
    config.trial.stop.max_epochs = 70  # UNSTATED in paper
    config.evaluate.every_epochs = 10

    config.sweep.seed = (0, 1, 2)  # UNSTATED in paper: how many runs
    decay, alexnet_decay = (WEIGHT_DECAY, 0.0), (ALEXNET_WEIGHT_DECAY, 0.0)
    config.sweep.union = {
        "inception": _rows(INCEPTION, (True, False), decay),
        "inception without batch norm": _rows(INCEPTION_WITHOUT_BATCH_NORM, (False,), decay),
        "alexnet": _rows(ALEXNET, (True, False), alexnet_decay),
        "mlp 3x512": _rows(MLP_3X512, (False,), decay),
        "mlp 1x512": _rows(MLP_1X512, (False,), decay),
    }

    if mode == "quick":
        quick(config)
    return config
