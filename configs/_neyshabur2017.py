"""How Neyshabur et al. (2017) trained, for the configs of that paper; no experiment itself.

The paper gives no settings. Those here are of its authors' code, which says that it follows the
paper: github.com/bneyshabur/generalization-bounds.
"""

from rethink_jax import network


def protocol(config):
    """SGD with momentum and a fixed rate, until the training cross-entropy is below 0.01."""
    trial = config.trial
    trial.batch_size = 64
    trial.optimizer.learning_rate = 0.01
    trial.optimizer.lr_decay = 1.0
    trial.optimizer.momentum = 0.9
    trial.stop.train_loss = 0.01
    trial.stop.measured_on = "full"  # UNSTATED in paper: whether in evaluation, as here
    trial.stop.max_epochs = 1000


def vgg_on_cifar10(config):
    """The VGG of the paper on CIFAR-10, whole images, without augmentation."""
    trial = config.trial
    protocol(config)
    trial.data.name = "cifar10"
    trial.preprocess.normalize = "imagenet"
    trial.model = network("vgg")
    # DEVIATION: the authors' code has dropout of 0.5, with which random labels are hardly fitted;
    # the paper's claims are about networks of zero training error.
    trial.regularizer.dropout = 0.0
    config.evaluate.every_epochs = 20  # The test set; the training set is measured each epoch.
    config.sweep.seed = (0, 1, 2)  # UNSTATED in paper: how many runs


def quick(config, num_train):
    """An epoch on a few handwritten digits: whether everything runs, in a minute on a CPU."""
    trial = config.trial
    trial.data.name = "digits"
    trial.data.num_train = num_train
    trial.preprocess.normalize = "per_image"
    trial.batch_size = 16
    trial.stop.max_epochs = 1
    config.evaluate.every_epochs = 1
    config.sweep.seed = (0,)
    config.engine.lanes = 1
    config.engine.devices = 1
