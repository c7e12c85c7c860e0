"""What `load_data` gives is what a network was trained on: it has the recorded accuracy."""

import numpy as np
import pytest

import rethink_jax
from rethink_jax import records, sweep
from rethink_jax.data import sources
from rethink_jax.schema import UserError


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    trial = {
        "batch_size": 16,
        "data": {"name": "digits", "num_train": 96},
        "model": {"name": "mlp", "hidden": (32,)},
        "optimizer": {"learning_rate": 0.1},
        "preprocess": {"crop_size": 7},
        "stop": {"max_epochs": 10, "when_fitted": False},
    }
    axes = {"corruption": {"label_prob": (0.0, 0.5), "pixels": ("none", "shuffled", "gaussian")}}
    path = tmp_path_factory.mktemp("data") / "w"
    assert sweep.run(sweep.Sweep({"trial": trial, "sweep": axes}), path, ["test"]) == 0
    return path


def accuracy(loaded, images, labels):
    logits = loaded.model.apply(loaded.variables, images, train=False).logits_BxY
    return float(np.mean(np.argmax(logits, 1) == labels))


def test_networks_have_their_recorded_accuracies(workdir):
    for trial_id, result in records.Workdir(workdir).finished().items():
        data = rethink_jax.load_data(workdir, trial_id)
        loaded = rethink_jax.load_trial(workdir, trial_id)
        assert data.train_images.shape == (96, 7, 7, 1) and data.train_images.dtype == np.float32
        for name, images, labels in (
            ("train", data.train_images, data.train_labels),
            ("test", data.test_images, data.test_labels),
        ):
            recorded = result["final"][f"{name}_accuracy"]
            # An argmax may fall otherwise where two logits are nearly equal.
            assert accuracy(loaded, images, labels) == pytest.approx(recorded, abs=0.011)
        changed = np.mean(data.train_labels != data.true_labels)
        assert changed == pytest.approx(result["label_noise"])
    assert result["final"]["train_accuracy"] > 0.3


def test_what_cannot_be_loaded(workdir, monkeypatch, write_image_folder, tmp_path):
    with pytest.raises(UserError, match="no finished trial 'a'"):
        rethink_jax.load_data(workdir, "a")
    with pytest.raises(UserError, match="no finished trial 'a'"):
        rethink_jax.load_data(tmp_path, "a")
    trial_id = next(iter(records.Workdir(workdir).finished()))
    monkeypatch.setattr(sources, "load", lambda *_: sources.DATASETS["synthetic"]())
    with pytest.raises(UserError, match="images of digits"):
        rethink_jax.load_data(workdir, trial_id)


def test_names_are_there_to_be_completed():
    assert {"load_data", "load_trial", "load_results", "network"} <= set(dir(rethink_jax))
