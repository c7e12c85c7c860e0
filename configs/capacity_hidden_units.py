"""More hidden units than needed to fit the training set do not make the test error grow.

Neyshabur et al. (2017), Figure 4: one hidden layer of 8 to 8192 units on MNIST. From 32 units on
the training error is 0; the test error goes on falling, from 3.2% with 32 units to 1.6% with 8192
(digitised, 8 to 8192: 7.0%, 6.0%, 3.2%, 2.3%, 1.9%, 1.7%, 1.7%, 1.7%, 1.6%, 1.6%, 1.6%). Neyshabur,
Tomioka, Srebro (2014) saw it first. Norms over margins fall up to 128 units, as the test error
does; beyond, the l2 norm and the l1 path norm rise.

COMMAND  python -m launch.sweep --config=configs/capacity_hidden_units.py --workdir=runs/hidden
         python -m launch.measure --workdir=runs/hidden --measures=paper
         python -m launch.report --workdir=runs/hidden
         needs MNIST in .data/ (any public layout), or --config.data_files.download=True
COST     33 trials; not run in full. Up to 512 units on a CPU:
         --config.sweep.model.hidden="((8,),(16,),(32,),(64,),(128,),(256,),(512,))"
"""

from configs import _neyshabur2017
from rethink_jax import default_config


def get_config(mode="full"):
    config = default_config(mode)
    _neyshabur2017.protocol(config)
    trial = config.trial

    trial.data.name = "mnist"
    trial.preprocess.normalize = "mnist"  # as in the authors' code
    trial.stop.max_epochs = 100  # UNSTATED in paper: for the networks too small to fit

    trial.model.name = "mlp"
    trial.model.kernel_init = "lecun_normal"  # UNSTATED in paper
    widths = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
    config.sweep.model = {"hidden": tuple((width,) for width in widths)}
    config.sweep.seed = (0, 1, 2)  # UNSTATED in paper: how many runs

    if mode == "quick":
        _neyshabur2017.quick(config, 128)
        config.sweep.model = {"hidden": ((8,), (32,))}
    return config
