"""Do capacity measures grow with the number of images as the need to memorize does?

Neyshabur et al. (2017), Figures 1 and 2: VGG networks on 5,000 to 50,000 images of CIFAR-10,
trained to zero error on true and on random labels. Norms over margins are larger, and grow faster,
where the labels are random; sharpness alone does not tell the two apart; expected sharpness against
the KL divergence does.

COMMAND  python -m launch.sweep --config=configs/capacity_true_vs_random.py --workdir=runs/labels
         python -m launch.measure --workdir=runs/labels --measures=paper
         python -m launch.report --workdir=runs/labels
         needs CIFAR-10 in .data/ (any public layout), or --config.data_files.download=True
COST     36 trials in 6 groups, for an accelerator; not run in full. On a CPU, a reduced form:
         --config.trial.model.stages="(8,16,32,64)" --config.trial.model.dense="(64,)"
         --config.sweep.data.num_train="(500,1000,2000,5000)"
"""

from configs import _neyshabur2017
from rethink_jax import default_config, network


def get_config(mode="full"):
    config = default_config(mode)
    _neyshabur2017.vgg_on_cifar10(config)
    config.sweep.data.num_train = (5_000, 10_000, 20_000, 30_000, 40_000, 50_000)
    config.sweep.corruption.label_prob = (0.0, 1.0)

    if mode == "quick":
        _neyshabur2017.quick(config, 32)
        config.trial.model = network("vgg", stages=(4, 8), convs=(1, 1), dense=(8,))
        config.sweep.data.num_train = (32, 64)
    return config
