"""A workdir keeps the user's own code, and a command says when it is not what it was."""

import json

import commands
import pytest

from rethink_jax import own_code
from rethink_jax.models import MODELS

OWN = """
import flax.linen as nn
from rethink_jax.models import MODELS


class Mine(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, images, train):
        return nn.Dense(self.num_classes)(nn.ACTIVATION(images.reshape(len(images), -1)))


MODELS["mine"] = Mine
"""
CONFIG = """
from rethink_jax import default_config


def get_config(mode="full"):
    config = default_config(mode)
    config.trial.data.num_train = 32
    config.trial.batch_size = 16
    config.trial.stop.max_epochs = 1
    config.trial.model = {"name": "mine"}
    return config
"""


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Runs the sweep with a network of the user's, whose activation is given."""
    monkeypatch.setitem(MODELS, "mine", None)  # To be as it was afterwards.
    (tmp_path / "config.py").write_text(CONFIG)

    def run(activation, workdir, *args):
        (tmp_path / "mine.py").write_text(OWN.replace("ACTIVATION", activation))
        outcome = commands.run(
            "sweep", f"--config={tmp_path}/config.py", f"--own={tmp_path}/mine.py",
            f"--workdir={tmp_path / workdir}", *args,
        )  # fmt: skip
        assert outcome.code == 0, outcome.err
        return outcome.out

    return run


def test_changes_are_said_and_all_versions_kept(sweep, tmp_path):
    assert "note:" not in sweep("relu", "w")
    assert "note:" not in sweep("relu", "w", "--config.sweep.seed=(0,1)")
    said = sweep("tanh", "w", "--config.sweep.seed=(0,1,2)")
    assert said.count("note: mine.py has changed since trials of ") == 1
    assert "3 trials in 1 group, 2 done, 1 to run" in said
    kept = {p.name: p.read_text() for p in (tmp_path / "w" / "own_code").glob("mine.*.py")}
    assert sorted(kept.values()) == [OWN.replace("ACTIVATION", a) for a in ("relu", "tanh")]
    # The note names the version with which the others were trained.
    (name,) = [name for name, text in kept.items() if "relu" in text]
    assert f"(as it was: {tmp_path}/w/own_code/{name})" in said
    # They stay mixed, whichever it is now.
    assert "note: mine.py has changed" in sweep("tanh", "w")
    assert "note: mine.py has changed" in sweep("relu", "w")


def test_of_trials_that_are_reused(sweep, tmp_path):
    sweep("relu", "first")
    assert "note:" not in sweep("relu", "same", f"--reuse={tmp_path / 'first'}")
    said = sweep("tanh", "changed", f"--reuse={tmp_path / 'first'}")
    assert f"note: mine.py has changed since trials of {tmp_path}/first" in said


def test_the_projects_files_and_libraries_are_not_the_users(sweep, tmp_path):
    sweep("relu", "w")
    (run,) = (json.loads(p.read_text()) for p in (tmp_path / "w" / "runs").iterdir())
    assert sorted(run["own_code"]) == ["config.py", "mine.py"]


def test_a_file_that_is_gone_is_passed_over(tmp_path, monkeypatch):
    there = tmp_path / "there.py"
    there.write_text("x = 1\n")
    monkeypatch.setattr(own_code, "_own_files", lambda: [there, tmp_path / "gone.py"])
    assert list(own_code.keep(tmp_path)) == ["there.py"]
