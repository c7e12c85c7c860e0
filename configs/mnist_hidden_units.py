"""More hidden units than needed to fit the training set do not make the test error grow.

Neyshabur et al. (2017), Figure 4: one hidden layer of 8 to 8192 units on MNIST. From 32 units on
the training error is 0; the test error goes on falling, from 3.2% with 32 units to 1.6% with 8192
(digitised, 8 to 8192: 7.0%, 6.0%, 3.2%, 2.3%, 1.9%, 1.7%, 1.7%, 1.7%, 1.6%, 1.6%, 1.6%). Neyshabur,
Tomioka, Srebro (2014) saw it first.

COMMAND  python -m launch.sweep --config=configs/mnist_hidden_units.py --workdir=runs/mnist_hidden
         python -m launch.report --workdir=runs/mnist_hidden
         needs MNIST in .data/ (any public layout), or --config.data_files.download=True
COST     33 trials in 11 groups; not run in full
"""

from rethink_jax import default_config


def get_config(mode="full"):
    config = default_config(mode)
    trial = config.trial

    trial.data.name = "mnist"
    trial.preprocess.normalize = "mnist"  # as in the authors' code

    # SGD as in the authors' code; the paper itself gives no settings.
    trial.batch_size = 64
    trial.optimizer.learning_rate = 0.01
    trial.optimizer.lr_decay = 1.0
    trial.optimizer.momentum = 0.9

    # The authors' code ends at a training cross-entropy of 0.01, or after 1000 epochs.
    trial.stop.train_loss = 0.01
    trial.stop.max_epochs = 100  # UNSTATED in paper: for the networks too small to fit

    trial.model.name = "mlp"
    trial.model.kernel_init = "lecun_normal"  # UNSTATED in paper
    config.sweep.model = tuple(
        {"name": "mlp", "hidden": (width,)}
        for width in (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
    )
    config.sweep.seed = (0, 1, 2)  # UNSTATED in paper: how many runs

    if mode == "quick":
        trial.data.name = "digits"
        trial.data.num_train = 128
        trial.stop.max_epochs = 1
        config.sweep.model = ({"name": "mlp", "hidden": (8,)}, {"name": "mlp", "hidden": (32,)})
        config.sweep.seed = (0,)
    return config
