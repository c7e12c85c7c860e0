"""Which unstated choices give the paper's times to fit? MLP 1x512 on all of CIFAR-10.

Zhang et al. (2017), Figure 1(b), imply that their MLP fitted true labels in 28 epochs and random
ones in 55 (inferred from the digitised ratios), at a learning rate of 0.01 that falls by 0.95 per
epoch. They do not state the initialisation, the batch size of the MLPs, nor what counts as fitted;
here it is a mean online loss below 0.05. The sweep varies distribution and scale of the first
weights, of the last layer by itself, the biases, the batch size, and the learning-rate decay.

COMMAND  python -m launch.sweep --config=configs/unstated_choices.py --workdir=runs/unstated_choices
         python -m launch.report --workdir=runs/unstated_choices
         needs CIFAR-10 in .data/ (any public layout), or --config.data_files.download=True
COST     44 trials, about an hour on 2 CPU cores; results in BUILD_NOTES.md, "Time to fit"
"""

from rethink_jax import default_config


def get_config(mode="full"):
    config = default_config(mode)
    trial = config.trial

    # Data, as in Appendix A
    trial.data.name = "cifar10"
    trial.preprocess.crop_size = 28
    trial.batch_size = 128

    # Model
    trial.model.name = "mlp"
    trial.model.hidden = (512,)

    # Optimizer
    trial.optimizer.learning_rate = 0.01
    trial.optimizer.momentum = 0.9

    # Until fitted, or twice as long as the paper's slowest MLP.
    trial.stop.measured_on = "online"
    trial.stop.train_loss = 0.05
    trial.stop.max_epochs = 100
    config.evaluate.every_epochs = 20

    config.sweep.seed = (0,)
    config.sweep.corruption.label_prob = (0.0, 1.0)
    # Each distribution of the first weights with the stated decay and with the one that fits best.
    decays = {"lr_decay": (0.95, 0.98)}
    config.sweep.union = {
        "decay": {"optimizer": {"lr_decay": (0.96, 0.97, 0.98, 0.99, 1.0)}},
        "he": {"model": {"kernel_init": ("he_normal",)}, "optimizer": decays},
        "small": {"model": {"kernel_scale": (0.25,)}, "optimizer": decays},
        "large": {"model": {"kernel_scale": (3.0,)}, "optimizer": decays},
        "small last layer": {"model": {"last_kernel_scale": (0.1,)}, "optimizer": decays},
        "biases": {"model": {"bias_init": (0.1,)}, "optimizer": decays},
        # The initialisation of TensorFlow's CIFAR-10 tutorial.
        "tensorflow": {
            "model": {
                "kernel_init": ("truncated_normal",),
                "kernel_scale": (0.04,),
                "last_kernel_scale": (0.13,),
                "bias_init": (0.1,),
            },
            "optimizer": decays,
        },
        # The batch size is read off the points of Figure 1(a), which is of Inception.
        "batch": {"batch_size": (16, 32, 64), "optimizer": {"lr_decay": (0.95,)}},
        "batch and decay": {
            "zipped": {"both": {"batch_size": (32, 64), "optimizer": {"lr_decay": (0.96, 0.97)}}}
        },
    }

    if mode == "quick":
        trial.data.name = "synthetic"
        trial.data.num_train = 256
        trial.stop.max_epochs = 1
        config.sweep.union = {"batch": {"batch_size": (16, 32)}}
    return config
