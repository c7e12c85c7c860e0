"""Early stopping gains nothing on CIFAR-10, and batch normalization only a little.

Zhang et al. (2017), Figure 2(b): the small Inception with and without batch normalization, no other
regularizer. Test accuracy rises to 86.5% and stays there (best 86.7%); without batch normalization
it is unsteady at first and ends at 84.9%, best 85.3% (digitised; Table 1 has 85.75% and 82.00%).

COMMAND  python -m launch.sweep --config=configs/fig2_cifar.py --workdir=runs/fig2_cifar
         python -m launch.report --workdir=runs/fig2_cifar
         needs CIFAR-10 in .data/ (any public layout), or --config.data_files.download=True
COST     6 trials x 51 epochs; not run in full: it needs a GPU
"""

from configs._zhang2017 import INCEPTION, INCEPTION_WITHOUT_BATCH_NORM, protocol, quick
from rethink_jax import default_config


def get_config(mode="full"):
    config = default_config(mode)
    protocol(config)

    config.trial.stop.when_fitted = False
    config.trial.stop.max_epochs = 51  # 20,000 steps

    config.sweep.seed = (0, 1, 2)  # UNSTATED in paper: how many runs
    config.sweep.union = {
        "with": INCEPTION,
        "without": INCEPTION_WITHOUT_BATCH_NORM,
    }

    if mode == "quick":
        quick(config)
    return config
