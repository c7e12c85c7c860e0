"""Do capacity measures explain why some networks of zero training error generalize worse?

Neyshabur et al. (2017), Figure 3: VGG networks on 10,000 images of CIFAR-10 and, beside them, 0 to
5,000 images with random labels, all fitted. The more there are of the latter, the larger the test
error: 18.7% to 33.7% (digitised). Norms over margins follow it, sharpness alone does not.

COMMAND  python -m launch.sweep --config=configs/capacity_confusion_set.py --workdir=runs/confusion
         python -m launch.measure --workdir=runs/confusion --measures=paper
         python -m launch.report --workdir=runs/confusion
         needs CIFAR-10 in .data/ (any public layout), or --config.data_files.download=True
COST     18 trials in 6 groups, for an accelerator; not run in full. On a CPU, a reduced form:
         --config.trial.model.stages="(8,16,32,64)" --config.trial.model.dense="(64,)"
         --config.trial.data.num_train=2000 --config.sweep.data.num_confusion="(0,250,500,1000)"
"""

from configs import _neyshabur2017
from rethink_jax import default_config, network


def get_config(mode="full"):
    config = default_config(mode)
    _neyshabur2017.vgg_on_cifar10(config)
    config.trial.data.num_train = 10_000
    config.sweep.data.num_confusion = (0, 1_000, 2_000, 3_000, 4_000, 5_000)

    if mode == "quick":
        _neyshabur2017.quick(config, 32)
        config.trial.model = network("vgg", stages=(4, 8), convs=(1, 1), dense=(8,))
        config.sweep.data.num_confusion = (0, 16)
    return config
