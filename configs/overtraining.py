"""Training too long is worst where there are as many parameters as examples.

The linear student of a noisy teacher of Advani and Saxe (2017): the test error of the minimum-norm
solution and of gradient descent against examples by parameters, by theory (the Marchenko-Pastur
law) and by simulation; what early stopping, a ridge and small first weights change; and the same
for random ReLU features of images with noisy labels.

COMMAND  python -m launch.theory --config=configs/overtraining.py --workdir=runs/overtraining
         python -m launch.report --workdir=runs/overtraining
COST     about a minute on a CPU; --config.trial.data=mnist for other images
"""

from rethink_jax.theory import cases


def get_config(mode="full"):
    config = cases.default_config("overtraining", mode)
    config.trial.label_noise = 0.2  # of the images' labels are redrawn

    if mode == "quick":
        trial = config.trial
        trial.dimensions, trial.steps, trial.seeds = 20, 100, 2
        trial.alphas, trial.ratios = (0.5, 1.0, 2.0), (0.5, 1.0, 2.0)
        trial.num_train, trial.image_steps, trial.image_seeds = 40, 50, 1
    return config
