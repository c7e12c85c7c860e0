"""The experiment of overtraining: its statements, what it shows, and what it refuses."""

import json

import numpy as np
import pytest

from rethink_jax.data import sources
from rethink_jax.report import theory_overtraining
from rethink_jax.schema import UserError
from rethink_jax.theory import overtraining_images, overtraining_report

OPTIONS = {
    "dimensions": 40, "alphas": (0.5, 0.8, 1.0, 1.25, 2.0), "steps": 300, "seeds": 6,
    "num_train": 60, "label_noise": 0.3, "ratios": (0.3, 1.0, 4.0), "image_steps": 300,
    "image_seeds": 2,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def few_lines():
    with pytest.MonkeyPatch.context() as patch:
        # At alpha = 1 the steps to the best time are as many as the signal to noise is large.
        patch.setattr(overtraining_report, "_TIME_SNRS", (1.0, 3.0, 10.0, 30.0))
        patch.setattr(overtraining_report, "_FINE", 9)
        yield


@pytest.fixture(scope="module")
def found(find):
    return find("overtraining", **OPTIONS)


def test_the_peak_is_where_weights_are_as_many_as_examples(found):
    said = found["statements"]
    assert said["peak of the minimum norm, alpha"] == said["peak in theory, alpha"] == 1
    assert said["minimum norm at the peak, median"] > 5
    for stopped in ("stopped", "ridge"):
        ours, theory = said[f"{stopped} at the peak"], said[f"{stopped} at the peak, theory"]
        assert ours == pytest.approx(theory, rel=0.3)
        assert ours < 0.8
    assert said["largest rise of the stopped error with alpha, theory"] < 0
    assert said["largest rise of the ridge's error with alpha, theory"] < 0


def test_costs_of_a_start(found):
    said = found["statements"]
    assert said["alphas below 1"] == [0.5, 0.8]
    np.testing.assert_allclose(said["cost of a large start, theory"], [0.5, 0.2])
    np.testing.assert_allclose(said["cost of a small start, theory"], [0.005, 0.002])
    for size in ("large", "small"):
        ours, error, theory = (
            np.array(said[f"cost of a {size} start{what}"])
            for what in ("", ", standard error", ", theory")
        )
        assert (np.abs(ours - theory) < 4 * error).all()


def test_best_times(found):
    said = found["statements"]
    assert said["exponent of the best time in snr, alpha 1"] == pytest.approx(1, abs=0.1)
    for alpha in ("0.5", "2"):
        slope = said[f"best time by log snr, alpha {alpha}"]
        assert slope == pytest.approx(said[f"1 / smallest eigenvalue, alpha {alpha}"], rel=0.02)
    for times in found["times"]:
        assert (np.diff(times["theory"]) > 0).all()
        assert (np.diff(times["simulated"]) > 0).all()
        # The smallest eigenvalues of few dimensions are off by much.
        ratios = np.array(times["simulated"]) / times["theory"]
        assert (np.abs(np.log(ratios)) < np.log(2)).all()


def test_images_have_the_peak_and_stopping_removes_it(found):
    made, said = found["images"], found["statements"]
    assert made["features"] == [18, 60, 240]
    assert said["images: peak of the minimum norm, features by images"] == 1
    minimum, best = (np.array(made["errors"][k]["mean"]) for k in ("minimum norm", "best"))
    assert minimum[1] > minimum[0] + 0.1 and minimum[1] > minimum[2] + 0.1
    assert best[1] < minimum[1] - 0.3
    assert best[2] <= best[1] <= best[0]
    squared = made["errors"]["minimum norm, squared"]["mean"]
    assert squared[1] > 10 * max(squared[0], squared[2])


def test_table_and_figure(found):
    found = json.loads(json.dumps(found, allow_nan=False))
    text = overtraining_report.table(found)
    assert "A linear student in 40 dimensions, signal to noise 5, 6 data sets" in text
    assert "peak of the minimum norm, alpha: 1.000" in text
    assert ", inf" in text
    assert theory_overtraining.figure(found).startswith(b"\x89PNG")


def test_without_images(find):
    options = OPTIONS | {"data": None, "alphas": (2.0,), "seeds": 1, "steps": 5}
    found = find("overtraining", **options)
    json.dumps(found, allow_nan=False)
    assert "images" not in found and "images" not in overtraining_report.table(found)
    assert theory_overtraining.figure(found)


def test_relu_features():
    rows = np.random.default_rng(0).normal(size=(50, 400))
    made = overtraining_images.relu_features(rows, 3000, 1)
    # A normal vector of variance 1/D gives x.u the variance |x|^2 / D, half of it above 0.
    assert made.min() == 0
    np.testing.assert_allclose(np.mean(made**2, axis=1), np.sum(rows**2, axis=1) / 800, rtol=0.15)
    np.testing.assert_array_equal(overtraining_images.relu_features(rows, 20, 1), made[:, :20])
    few = overtraining_images.relu_features(sources.digits().test_images[:, :, 0, 0], 2, 1)
    assert few.shape == (355, 2)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"snr": 0.0}, "snr is 0.0; take more than 0"),
        ({"step": 1.0}, "step is 1.0; take more than 0, below 1"),
        ({"alphas": ()}, r"alphas is \(\); take one or more above 0"),
        ({"label_noise": 1.5}, "label_noise is 1.5; it needs a number from 0 to 1"),
        ({"ratios": (0.0, 1.0)}, "ratios is"),
        ({"seeds": 0}, "seeds is 0; it needs an integer of at least 1"),
        ({"start": -1.0}, "start is -1.0"),
        ({"data": "digit"}, "did you mean 'digits'"),
    ],
)
def test_refused(find, given, match):
    with pytest.raises(UserError, match=match):
        find("overtraining", **OPTIONS | {"steps": 2, "seeds": 1} | given)
