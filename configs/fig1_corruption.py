"""The more labels are random, the longer fitting takes and the less is left of generalization.

Zhang et al. (2017), Figure 1(b) and (c), for three networks on CIFAR-10, each label redrawn with
probability 0, 0.1 ... 1: relative to true labels, random ones take 3.6 times as long to fit with
Inception, 1.55 with Alexnet, 1.96 with the MLP 1x512; the test error grows from 12.9%, 30.1%, 49.5%
to 90% (all digitised).

COMMAND  python -m launch.sweep --config=configs/fig1_corruption.py --workdir=runs/fig1_corruption
         python -m launch.report --workdir=runs/fig1_corruption
         one network only: --config.only="model.name=mlp" (the others may follow in that workdir)
         needs CIFAR-10 in .data/ (any public layout), or --config.data_files.download=True
COST     99 trials. The 33 of the MLP: see BUILD_NOTES.md. The convolutional networks: not run in
         full; they need a GPU
"""

from configs._zhang2017 import ALEXNET, INCEPTION, LABEL_PROBS, MLP_1X512, protocol, quick
from rethink_jax import default_config


def get_config(mode="full"):
    config = default_config(mode)
    protocol(config)

    # Until fitted, or twice as long as the slowest network of the paper.
    config.trial.stop.when_fitted = True
    config.trial.stop.max_epochs = 100
    config.evaluate.every_epochs = 100  # at the end only

    config.sweep.seed = (0, 1, 2)  # UNSTATED in paper: how many runs
    config.sweep.corruption.label_prob = LABEL_PROBS
    config.sweep.union = {"inception": INCEPTION, "alexnet": ALEXNET, "mlp 1x512": MLP_1X512}

    if mode == "quick":
        quick(config)
        config.sweep.corruption.label_prob = (0.0, 1.0)
    return config
