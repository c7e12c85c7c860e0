"""What cannot be run is a row of its own, with the reason, and stops nothing else."""

import json

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from test_sweep import assert_same_results, interrupt_after, rows

from rethink_jax import inputs, records, sweep
from rethink_jax.data import corruption
from rethink_jax.models import MODELS
from rethink_jax.sweep import Options


def run(config, workdir, **options):
    return sweep.run(sweep.Sweep(config), workdir, ["test"], Options(**options))


def config_of(labels=("uniform",), pixels=("none",)):
    trial = {
        "batch_size": 16,
        "corruption": {"label_prob": 0.5},
        "data": {"name": "digits", "num_train": 64},
        "optimizer": {"learning_rate": 0.1},
        "model": {"name": "mlp", "hidden": (8,)},
        "stop": {"max_epochs": 3},
    }
    sweep = {"seed": (0, 1), "corruption": {"labels": labels, "pixels": pixels}}
    engine = {"devices": 1, "lanes": 2, "epochs_per_dispatch": 1}
    return {"trial": trial, "sweep": sweep, "engine": engine}


def oh_no(*_):
    raise TypeError("oh no\nmore")


def no_file(*_):
    return np.load("/nonexistent/labels.npy", allow_pickle=False)


# What users write by mistake, and what is said of it.
LABELS = {
    "raises": (oh_no, "TypeError: oh no"),
    "reads": (no_file, "FileNotFoundError: [Errno 2] No such file or directory: '/nonexistent/"),
    "none": (lambda *_: None, "the label corruption 'mine' gives NoneType; give an array"),
    "floats": (lambda key, labels, *_: labels * 0.5, "gives float32; give integers"),
    "few": (lambda key, labels, *_: labels[1:], "of shape (63,) for labels of shape (64,)"),
    "ten": (lambda key, labels, *_: labels + 1, "labels from 1 to 10; give numbers of classes"),
    "arguments": (lambda key, labels: labels, "takes 2 positional arguments but 4 were given"),
}
PIXELS = {
    "raises": (oh_no, "TypeError: oh no"),
    "nan": (lambda image, *_: image * jnp.nan, "NaN or infinite pixels, as in image 0"),
    "mean": (lambda image, *_: image.mean(), "shape () for an image of shape (8, 8, 1)"),
    "wide": (lambda image, *_: jnp.zeros((8, 1, 9)), "shape (8, 1, 9) for an image"),
    "text": (lambda *_: "image", "the pixel corruption 'mine' gives str; give an array"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Trials with built-in corruptions only."""
    path = tmp_path_factory.mktemp("whole") / "w"
    assert run(config_of(), path) == 0
    return path


@pytest.mark.parametrize(
    ("registry", "of", "wrong", "said"),
    [("LABELS", "labels", *row) for row in LABELS.values()]
    + [("PIXELS", "pixels", *row) for row in PIXELS.values()],
    ids=[f"labels-{name}" for name in LABELS] + [f"pixels-{name}" for name in PIXELS],
)
def test_a_corruption_that_is_wrong_fails_its_own_trials(
    tmp_path, whole, monkeypatch, capsys, registry, of, wrong, said
):
    """They share the lanes of one group with others, which do not notice."""
    # jit knows a corruption by its name: it is to be another one in each test.
    name = f"mine{abs(hash((of, said)))}"
    monkeypatch.setitem(getattr(corruption, registry), name, wrong)
    good = {"labels": "uniform", "pixels": "none"}[of]
    config = config_of(**{of: (name, good)})
    assert run(config, tmp_path / "w") == 3
    out = capsys.readouterr().out
    assert out.count(" failed: ") == 1  # Said of the first one, though there are two.
    assert "2 of 4 trials failed" in out
    failed = [r for r in rows(tmp_path / "w") if r["status"] == "failed"]
    assert [r[f"corruption.{of}"] for r in failed] == [name] * 2
    for row in failed:
        assert said in row["stop_reason"].replace(name, "mine")
    assert_same_results(tmp_path / "w", whole, failed=2)


@pytest.mark.parametrize("lanes", [4, 1])
def test_those_of_a_checkpoint_fail_alone_too(tmp_path, whole, monkeypatch, lanes):
    """What worked when it began may not when it goes on, in its lane or when it gets one."""
    monkeypatch.setitem(corruption.LABELS, "worked", lambda key, labels, *_: labels)
    config = config_of(labels=("worked", "uniform"))
    config["engine"]["lanes"] = 4
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        assert run(config, tmp_path / "w") == 75
    original = inputs.trial_labels

    def labels(trial, dataset):
        if trial["corruption.labels"] == "worked":
            raise TypeError("oh no")
        return original(trial, dataset)

    monkeypatch.setattr(inputs, "trial_labels", labels)
    config["engine"]["lanes"] = lanes
    assert run(config, tmp_path / "w") == 3
    assert_same_results(tmp_path / "w", whole, failed=2)


def test_those_of_streamed_images_fail_alone(tmp_path, write_image_folder, monkeypatch):
    monkeypatch.setitem(corruption.LABELS, "broken", oh_no)
    config = config_of(labels=("broken", "uniform"))
    folder = write_image_folder(tmp_path / "images")
    config["trial"]["data"] = {"name": f"folder:{folder}", "image_size": 8}
    config["trial"]["stop"] = {"max_epochs": 1, "measured_on": "online"}
    assert run(config, tmp_path / "w") == 3
    found = {(r["corruption.labels"], r["status"]) for r in rows(tmp_path / "w")}
    assert found == {("broken", "failed"), ("uniform", "finished")}


class Fragile(nn.Module):
    """A network of the user that raises while it is compiled, if it is the wider one.

    For a batch of its own only: a look at a few images beforehand does not show it.
    """

    num_classes: int
    width: int = 8
    broken = True

    @nn.compact
    def __call__(self, images, train):
        if self.broken and self.width == 12 and len(images) == 16:
            raise TypeError("oh no\nmore")
        return nn.Dense(self.num_classes)(nn.Dense(self.width)(images.reshape(len(images), -1)))


@pytest.fixture
def fragile(monkeypatch):
    """The config of two trials of each width; the broken ones come first."""
    monkeypatch.setitem(MODELS, "fragile", Fragile)
    config = config_of()
    config["trial"]["model"] = {"name": "fragile"}
    config["sweep"]["model"] = {"width": (12, 8)}
    return config


def test_a_failed_group_is_run_again_on_request(fragile, tmp_path, monkeypatch, capsys):
    workdir = tmp_path / "w"
    assert run(fragile, workdir) == 3
    said = capsys.readouterr().out
    assert "2 trials of group" in said and "failed: TypeError: oh no\n" in said
    assert "2 of 4 trials failed" in said
    failed = [r for r in rows(workdir) if r["status"] == "failed"]
    assert [(r["model.width"], r["stop_reason"]) for r in failed] == [
        ("12", "TypeError: oh no")
    ] * 2
    assert len(rows(workdir)) == 4 and len(records.Workdir(workdir).finished()) == 2
    (record, _) = (json.loads(p.read_text()) for p in workdir.glob("trials/*/failed.json"))
    assert "in __call__" in "".join(record["traceback"])
    # Left alone, and said so.
    assert run(fragile, workdir) == 3
    assert "2 of 4 trials of" in capsys.readouterr().out
    # It still fails; then it does not.
    assert run(fragile, workdir, retry_failed=True) == 3
    assert "2 done, 2 to run" in capsys.readouterr().out
    monkeypatch.setattr(Fragile, "broken", False)
    assert run(fragile, workdir) == 3
    assert run(fragile, workdir, retry_failed=True) == 0
    assert run(fragile, tmp_path / "at once") == 0
    assert_same_results(workdir, tmp_path / "at once")
    assert not list(workdir.glob("trials/*/failed.json"))


def test_failed_trials_do_not_hide_an_interruption(fragile, tmp_path, monkeypatch):
    interrupt_after(monkeypatch, 2)
    assert run(fragile, tmp_path / "w") == 75
