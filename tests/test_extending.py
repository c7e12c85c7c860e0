"""A user's own network, data set and corruptions, added from a config file as the README says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import rethink_jax
from rethink_jax import records
from rethink_jax.schema import UserError

REPO = Path(__file__).parents[1]

CONFIG = """
import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from rethink_jax import default_config
from rethink_jax.data import corruption, sources
from rethink_jax.data.dataset import Dataset
from rethink_jax.models import MODELS
from rethink_jax.schema import model_field


class TinyConv(nn.Module):
    num_classes: int
    features: int = model_field(3, "channels", low=1)
    pool: bool = True  # a plain attribute is a config field, too

    @nn.compact
    def __call__(self, images, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(images)
        x = nn.relu(nn.Conv(self.features, (3, 3))(x))
        x = x.mean((1, 2)) if self.pool else x.reshape(len(x), -1)
        return nn.Dense(self.num_classes)(nn.Dropout(0.5, deterministic=not train)(x))


def stripes():
    rng = np.random.default_rng(0)
    labels = np.arange(60, dtype=np.int32) % 3
    images = rng.integers(0, 60, (60, 5, 7, 2), dtype=np.uint8)
    images[np.arange(60), labels] += 150
    return Dataset("stripes", images[:40], labels[:40], images[40:], labels[40:], tuple("abc"))


MODELS["tiny_conv"] = TinyConv
sources.DATASETS["stripes"] = stripes
corruption.PIXELS["negative"] = lambda image, set_key, key, stats: 255 - image
corruption.LABELS["next_class"] = lambda key, labels, prob, classes: jnp.where(
    prob > 0, (labels + 1) % classes, labels
)


def get_config(mode="full"):
    config = default_config(mode)
    config.trial.data.name = "stripes"
    config.trial.batch_size = 8
    config.trial.model = {"name": "tiny_conv"}
    config.trial.corruption.labels = "next_class"
    config.trial.stop.max_epochs = 3
    config.sweep.model = ("tiny_conv", {"name": "tiny_conv", "features": 2, "pool": False})
    config.sweep.corruption.pixels = ("none", "negative")
    config.sweep.corruption.label_prob = (0.0, 1.0)
    return config
"""


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("extending")
    (folder / "mine.py").write_text(CONFIG)
    command = ["launch.sweep", f"--config={folder / 'mine.py'}", f"--workdir={folder / 'w'}"]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=REPO, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder / "w"


def test_everything_of_the_users_own_is_trained(workdir):
    trials = rethink_jax.load_results(workdir).trials
    assert len(trials) == 8
    assert (trials["status"] == "finished").all()
    assert set(trials["model.features"]) == {2, 3}
    conv_3 = 2 * 2 + (9 * 2 * 3 + 3) + (3 * 3 + 3)  # batch norm, convolution, dense
    conv_2 = 2 * 2 + (9 * 2 * 2 + 2) + (5 * 7 * 2 * 3 + 3)
    assert set(trials["num_params"]) == {conv_3, conv_2}
    np.testing.assert_array_equal(trials["label_noise"], trials["corruption.label_prob"])


def test_loading_a_network_that_is_not_known_says_what_to_do(workdir):
    trial_id = rethink_jax.load_results(workdir).trials["trial_id"][0]
    with pytest.raises(UserError, match=r"'tiny_conv', which is not known.*models\.MODELS"):
        rethink_jax.load_trial(workdir, trial_id)


def test_loading_it_after_the_import(workdir, monkeypatch):
    from rethink_jax import models

    names = {}
    exec(CONFIG, names)  # as importing the user's module does
    try:
        trial_id = rethink_jax.load_results(workdir).trials["trial_id"][0]
        loaded = rethink_jax.load_trial(workdir, trial_id)
    finally:
        names["MODELS"].pop("tiny_conv")
        names["sources"].DATASETS.pop("stripes")
        names["corruption"].PIXELS.pop("negative")
        names["corruption"].LABELS.pop("next_class")
    assert "tiny_conv" not in models.MODELS
    assert set(loaded.variables) == {"params", "batch_stats"}
    moved = loaded.variables["batch_stats"]["BatchNorm_0"]["mean"]
    assert not np.array_equal(moved, loaded.initial_variables["batch_stats"]["BatchNorm_0"]["mean"])
    logits = loaded.model.apply(loaded.variables, np.ones((4, 5, 7, 2), "f"), False)[0]
    assert logits.shape == (4, 3)


def test_the_example_of_the_readme(tmp_path):
    """The file and the commands as they stand there."""
    section = (REPO / "README.md").read_text().split("## Extend it")[1].split("\n## ")[0]
    file, commands = re.findall(r"```(?:python)?\n(.*?)```", section, re.DOTALL)
    (tmp_path / "mine.py").write_text(file)
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"PYTHONPATH": str(REPO)}
    for command in commands.strip().splitlines():
        words = [sys.executable, *command.split()[1:]]
        done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    trials = rethink_jax.load_results(tmp_path / "runs/mine").trials
    assert len(trials) == 8 and (trials["status"] != "failed").all()
    noisy = trials[trials["corruption.label_prob"] == 0.5]
    assert noisy["label_noise"].between(0.3, 0.7).all()
    measured = records.load_measures(tmp_path / "runs/mine")
    assert (measured["largest_weight"] > 0).all() and "margin_min" in measured
    weights = [
        measured.loc[own["trial_id"], "largest_weight"]
        for _, own in trials.groupby("optimizer.name")
    ]
    assert set(weights[0]).isdisjoint(weights[1])
    assert len(measured) == 8


def test_a_file_of_ones_own_that_fails(tmp_path):
    (tmp_path / "mine.py").write_text("1 / 0")
    command = [sys.executable, "-m", "launch.report", f"--own={tmp_path}/mine.py", "--workdir=x"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 2
    assert (
        done.stderr == f"error: --own={tmp_path}/mine.py cannot be run: ZeroDivisionError: "
        "division by zero\n"
    )
