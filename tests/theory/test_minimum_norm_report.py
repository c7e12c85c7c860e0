"""The experiment of SGD and the minimum norm: what it says, and what it refuses."""

import dataclasses
import json

import numpy as np
import pytest

from rethink_jax.data import dataset, sources
from rethink_jax.report import theory_minimum_norm
from rethink_jax.schema import UserError
from rethink_jax.theory import images, minimum_norm_report

OPTIONS = {"num_train": 20, "batch_size": 4, "starts": 1, "seed": 5}


@pytest.fixture(scope="module")
def found(find):
    return find("minimum_norm", **OPTIONS)


def test_every_run_reaches_its_limit(found):
    said = found["statements"]
    # Two kinds of labels, with and without momentum, from zero and from one random start.
    assert said["runs"] == said["runs that reached the tolerance"] == len(found["runs"]) == 8
    assert said["largest distance to the minimum norm, from zero"] < 1e-10
    assert said["largest distance to its own limit"] < 1e-10
    assert said["largest change of the component that may not move"] < 1e-12
    assert said["smallest distance to the minimum norm, from random starts"] > 0.1
    assert said["largest residual"] < 1e-9


def test_numbers_against_the_pseudo_inverse(found):
    whole = sources.digits()
    chosen = dataset.subset(whole, 20, 5, False)
    pixels = whole.train_images.reshape(len(whole.train_images), -1) / 255
    std = pixels.std(0)
    X, Z = (
        np.where(std > 0, (x.reshape(len(x), -1) / 255 - pixels.mean(0)) / np.maximum(std, 1e-9), 0)
        for x in (chosen.train_images, chosen.test_images)
    )
    weights = np.linalg.pinv(X) @ np.eye(10)[chosen.train_labels]
    ours = found["minimum norm"]["true"]
    assert ours["norm"] == pytest.approx(np.linalg.norm(weights))
    assert ours["test error"] == np.mean((Z @ weights).argmax(1) != chosen.test_labels)
    # Other labels, of a larger norm that generalizes like chance.
    random = found["minimum norm"]["random"]
    assert random["norm"] > ours["norm"]
    assert random["test error"] > 0.75 > 0.6 > ours["test error"]
    assert found["model"]["condition number"] == pytest.approx(np.linalg.cond(X) ** 2)


def test_runs(found):
    zero, other = (
        next(r for r in found["runs"] if r["start"] == start and r["labels"] == "true")
        for start in ("zero", "random 1")
    )
    for run in (zero, other):
        assert run["distance"][0] == pytest.approx(1)
        assert len(run["steps"]) == len(run["distance"]) == len(run["residual"])
        assert run["steps"][0] == 0 and (np.diff(run["steps"]) > 0).all()
        # Of mini-batches it is a prediction to first order in the learning rate.
        assert 1 - run["observed rate"] == pytest.approx(1 - run["predicted rate"], rel=0.2)
        assert run["test error at the end"] == run["test error of the limit"]
    assert zero["distance"] == zero["distance to the minimum norm"]
    # The closest interpolation, by Pythagoras.
    squares = found["minimum norm"]["true"]["norm"] ** 2
    squares += other["norm of its component that may not move"] ** 2
    assert other["norm of the limit"] == pytest.approx(np.sqrt(squares))


def test_table_and_figure(found):
    found = json.loads(json.dumps(found, allow_nan=False))
    text = minimum_norm_report.table(found)
    assert "20 images of digits, seed 5; standardized pixels, 64 dimensions, rank 20" in text
    assert "runs that reached the tolerance: 8" in text
    assert theory_minimum_norm.figure(found).startswith(b"\x89PNG")


def test_steps_that_are_too_large_diverge_and_are_said_to(find):
    found = find("minimum_norm", **OPTIONS | {"step": 30.0, "momentum": 0.0, "max_steps": 2000})
    json.dumps(found, allow_nan=False)
    assert found["statements"]["runs that diverged"] == 4
    assert minimum_norm_report.table(found).count("  diverged") == 4
    assert theory_minimum_norm.figure(found)


def test_too_few_steps_are_said_to_be(find, found):
    short = find("minimum_norm", **OPTIONS | {"max_steps": 100, "momentum": 0.0})
    assert short["statements"]["runs that reached the tolerance"] == 0
    assert short["statements"]["largest distance to its own limit"] > 1e-3


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"num_train": 1500}, "num_train is 1500; digits has 1442 training images"),
        ({"num_train": 100}, "the 100 rows of 64 pixels have rank 55.*smaller num_train"),
        ({"inputs": "standardised"}, "did you mean 'standardized'"),
        ({"batch_size": 21}, "batch_size is 21; take 1 to 20"),
        ({"momentum": 1.0}, "momentum is 1.0; take 0 or more, below 1"),
        ({"step": 0.0}, "step is 0.0"),
        ({"start_scale": 0.0}, "start_scale is 0.0"),
        ({"tolerance": 1.0}, "tolerance is 1.0"),
    ],
)
def test_refused(find, given, match):
    with pytest.raises(UserError, match=match):
        find("minimum_norm", **OPTIONS | given)


# --- rows of images -------------------------------------------------------------------------------


def test_rows():
    whole = sources.digits()
    few = images.choose(whole, 30, 0)
    rows = images.rows(few, "standardized", whole)
    everything = images.rows(whole, "standardized", whole).train_NxD
    std = everything.std(0)
    np.testing.assert_allclose(everything.mean(0), 0, atol=1e-12)
    assert (np.isclose(std, 1) | (std == 0)).all() and (std == 0).sum() == 3
    assert rows.train_NxD.dtype == np.float64
    raw = images.rows(few, "raw", whole)
    assert raw.test_MxD[2, 20] == few.test_images[2, 2, 4, 0] / 255


def test_random_labels():
    whole = sources.digits()
    true, noisy = (images.onehot_targets(whole, prob, 0) for prob in (0.0, 0.4))
    assert (true.argmax(1) == whole.train_labels).all()
    # A redrawn label is the true one in one case of ten.
    assert np.mean(noisy.argmax(1) != whole.train_labels) == pytest.approx(0.36, abs=0.04)
    assert (noisy.sum(1) == 1).all()


def test_a_pixel_that_never_varies_is_zero():
    whole = sources.digits()
    flat = dataclasses.replace(whole, train_images=whole.train_images * 0 + 7)
    assert not images.rows(flat, "standardized", flat).train_NxD.any()
