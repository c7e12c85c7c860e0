"""Mistakes in a user's own networks and data sets: one line before anything is run."""

import commands
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from rethink_jax import config, models, sweep
from rethink_jax.data import sources
from rethink_jax.data.dataset import Dataset
from rethink_jax.models import MODELS
from rethink_jax.schema import UserError, model_field


def network(call, **attributes):
    """A network whose call is (self, images, train) -> what `call` returns, made by flax."""
    body = {"__call__": nn.compact(call), "__annotations__": {"num_classes": int}}
    for name, (kind, default) in attributes.items():
        body["__annotations__"][name] = kind
        body[name] = default
    return type("Mine", (nn.Module,), body)


def dense(self, images, train):
    return nn.Dense(self.num_classes)(images.reshape(len(images), -1))


def config_of(**data_or_model):
    given = {"model": {"name": "mlp", "hidden": (4,)}, "data": {"name": "digits"}} | data_or_model
    trial = {"batch_size": 16, "optimizer": {"learning_rate": 0.1}, "stop": {"max_epochs": 1}}
    return {"trial": trial | given}


def refused(given):
    with pytest.raises(UserError) as error:
        sweep.Sweep(given)
    assert "\n" not in str(error.value)
    return str(error.value)


NETWORKS = {
    "nothing": (network(lambda self, images, train: None), "gives NoneType for 2 images"),
    "classes": (
        network(lambda self, images, train: nn.Dense(7)(images.reshape(len(images), -1))),
        "gives float32[2, 7] for 2 images; give logits, a float for each image and each of "
        "num_classes=10",
    ),
    "not_flat": (
        network(lambda self, images, train: nn.Dense(self.num_classes)(images)),
        "gives float32[2, 8, 8, 10]",
    ),
    "whole_numbers": (
        network(lambda self, images, train: dense(self, images, train).astype(jnp.int32)),
        "gives int32[2, 10]",
    ),
    "only_in_training": (
        network(lambda self, images, train: dense(self, images, train)[: 1 if train else None]),
        "gives float32[1, 10]",
    ),
    "without_train": (
        network(lambda self, images: images),
        "unexpected keyword argument 'train'; it is called as (images, train=True or False)",
    ),
    "shapes": (
        network(lambda self, images, train: dense(self, images, train) + jnp.zeros((3, 5))),
        "cannot be run on float32[2, 8, 8, 1]: TypeError: ",
    ),
    "stream": (
        network(
            lambda self, images, train: (self.make_rng("noise"), dense(self, images, train))[1]
        ),
        "InvalidRngError: ",
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_that_gives_no_logits(monkeypatch, name):
    made, words = NETWORKS[name]
    monkeypatch.setitem(MODELS, "mine", made)
    said = refused(config_of(model={"name": "mine"}))
    assert said.startswith("the network 'mine' ") and words in said


ATTRIBUTES = {
    "callable": ({"act": (object, nn.relu)}, "'act' of the network 'mine' has "),
    "none": ({"width": (object, None)}, "'width' of the network 'mine' has NoneType as default"),
}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_an_attribute_that_no_config_holds(monkeypatch, name):
    attributes, words = ATTRIBUTES[name]
    monkeypatch.setitem(MODELS, "mine", network(dense, **attributes))
    said = refused(config_of(model={"name": "mine"}))
    assert words in said and "schema.model_field" in said


def test_an_attribute_that_may_be_none(monkeypatch):
    class Mine(nn.Module):
        num_classes: int
        width: int | None = model_field(None, "of a further layer", kind=int, optional=True, low=1)

        @nn.compact
        def __call__(self, images, train):
            x = images.reshape(len(images), -1)
            return nn.Dense(self.num_classes)(nn.Dense(self.width)(x) if self.width else x)

    monkeypatch.setitem(MODELS, "mine", Mine)
    given = config_of(model={"name": "mine"}) | {"sweep": {"model": {"width": (None, 3)}}}
    assert [g.static["model.width"] for g in sweep.Sweep(given).groups] == [None, 3]
    assert "model.width is 0; it needs an integer of at least 1 or None" in refused(
        config_of(model={"name": "mine", "width": 0})
    )


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (network(dense)(num_classes=10), "is Mine; put a class there"),
        (dense, "is function; put a class there"),
        (type("Mine", (nn.Module,), {}), "has no attribute num_classes"),
    ],
)
def test_what_is_no_class_of_networks(monkeypatch, made, words):
    monkeypatch.setitem(MODELS, "mine", made)
    assert words in refused(config_of(model={"name": "mine"}))


def test_networks_of_the_project_give_logits():
    """They are not checked before each sweep, but here."""
    for name in MODELS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(MODELS, "copy", type("Copy", (MODELS[name],), {"__module__": "mine"}))
            size = 112 if name == "inception_v3" else 32
            made = models.build("copy", 10, **_defaults(name))
            models.check_output("copy", made, (size, size, 3), 10)


def _defaults(name):
    known = {k: f.default for k, f in models.fields_of(name).items()}
    return known | ({"layers": ("flatten", "dense 4")} if name == "sequential" else {})


IMAGES, LABELS = np.zeros((6, 4, 4, 1), np.uint8), np.arange(6, dtype=np.int32) % 2
DATASETS = {
    "float_labels": ((IMAGES, LABELS * 1.0), "train labels are float64[6]; a data set holds int32"),
    "one_hot": ((IMAGES, np.eye(2)[LABELS]), "train labels are float64[6, 2]"),
    "list": ((IMAGES, list(LABELS)), "train labels are a list, not a numpy array"),
    "jax": ((jnp.asarray(IMAGES), LABELS), "train images are a ArrayImpl, not a numpy array"),
    "float_images": ((IMAGES / 255, LABELS), "train images are float64[6, 4, 4, 1]"),
    "too_many": ((IMAGES, np.arange(6) % 3), "a train label is 2, outside 0 to 1\n"),
    "few": ((IMAGES, LABELS[1:]), "6 train images with 5 labels; there must be one label"),
}


@pytest.mark.parametrize("name", DATASETS)
def test_a_data_set_that_is_none(monkeypatch, name):
    train, words = DATASETS[name]
    make = lambda: Dataset("mine", *train, IMAGES, LABELS, ("a", "b"))  # noqa: E731
    monkeypatch.setitem(sources.DATASETS, "mine", make)
    assert words in refused(config_of(data={"name": "mine"})) + "\n"


# --- axes over fields of networks, from the command line ------------------------------------------


def planned(*args):
    return commands.run("sweep", "--config=configs/quickstart.py:quick", "--plan", *args)


@pytest.mark.parametrize(
    ("axis", "trials", "groups"),
    [
        ("model.hidden=(8,),(16,)", 84, 1),
        ("model.kernel_init=he_normal,lecun_normal", 84, 2),
        ("model.kernel_scale=0.5,1", 84, 2),
        ("model.name=('mlp',)", 42, 1),
        ("model=mlp,alexnet", 84, 2),
        ("model=()", 42, 1),
    ],
)
def test_an_axis_over_a_network(axis, trials, groups):
    outcome = planned(f"--config.sweep.{axis}", "--config.engine.lanes=1")
    assert outcome.code == 0, outcome.err
    plural = "s" if groups > 1 else ""
    assert outcome.out.startswith(f"{trials} trials in {groups} group{plural}, 0 done")


@pytest.mark.parametrize(
    ("axis", "words"),
    [
        ("model.hidden=8", "config.sweep.model.hidden is 8; an axis is a tuple of values"),
        ("model.hidden=(8,)", "model.hidden is 8; it needs a tuple"),
        ("model.hiden=(8,),(9,)", "did you mean 'model.hidden'?"),
        ("model.name=mlp,mpl", "model.name is 'mpl'; it must be one of"),
        (
            "model=mlp,",
            "--config.sweep.model.hidden: config.sweep.model of this config names",
        ),
    ],
)
def test_mistakes_in_an_axis_over_a_network(axis, words):
    more = ("--config.sweep.model.hidden=(8,),(9,)",) if axis == "model=mlp," else ()
    outcome = planned(f"--config.sweep.{axis}", *more)
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert words in outcome.err


def test_the_default_config_has_no_axis_over_networks():
    assert "model" not in config.default_config().sweep
