"""The memorizer as a network that can be measured; what it refuses; its experiment."""

import math

import jax
import numpy as np
import pytest

from rethink_jax import measures
from rethink_jax.measures import layers
from rethink_jax.measures.subject import Subject
from rethink_jax.schema import UserError
from rethink_jax.theory.memorizer import memorize


def task(n=40, classes=5):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, 4, 3, 2), dtype=np.uint8)
    return images, rng.integers(0, classes, n)


# --- measures -------------------------------------------------------------------------------------


def test_measures_of_a_memorizer():
    images, labels = task()
    made = memorize(images, labels, levels=range(5))
    names = ("margins", "jiang_20_params", "log_product_frobenius", "log_product_spectral_exact",
             "log_path_l1_maxpool_nobias", "log_path_l2_maxpool_nobias")  # fmt: skip
    with jax.enable_x64(True):
        found = measures.compute(made.model, made.variables, images, labels, names=names)
    # How far each value is from the middle between two labels.
    assert found["margin_min"] == pytest.approx(0.5, abs=1e-8)
    assert found["margin_mean"] == pytest.approx(0.5, abs=1e-8)
    assert found["jiang_20_params"] == 2 * 40 + 24
    # The first layer of the network of two layers is n copies of a.
    part = made.variables["params"]["part_0"]
    a, w = part["direction"]["kernel"][:, 0], part["weights"]["kernel"][:, 0]
    first, second = np.tile(a, (40, 1)), w[None]
    product = np.linalg.norm(first) * np.linalg.norm(second)
    assert found["log_product_frobenius"] == pytest.approx(math.log(product))
    product = np.linalg.norm(first, 2) * np.linalg.norm(second, 2)
    assert found["log_product_spectral_exact"] == pytest.approx(math.log(product))
    # Paths end in the logits, which read the value y times.
    for p in (1, 2):
        ends = np.sum(np.arange(5.0) ** p)
        sums = np.sum(np.abs(second) ** p @ np.abs(first) ** p) * ends
        expected = math.log(sums) / p
        assert found[f"log_path_l{p}_maxpool_nobias"] == pytest.approx(expected)


@pytest.mark.parametrize("depth", [2, 5])
def test_layers_of_a_memorizer(depth):
    images, labels = task(21)
    made = memorize(images, labels, levels=range(5), depth=depth)
    with jax.enable_x64(True):
        given = jax.tree.map(jax.numpy.asarray, made.variables)
        subject = Subject(made.model, given, jax.numpy.asarray(images), jax.numpy.asarray(labels))
        found = layers.folded(subject)
        again = layers.logits_with(subject, found, subject.images_NxHxWxC)
        np.testing.assert_array_equal(again, subject.logits_NxY)
    names = [layer.place.name.removeprefix("part_0/") for layer in found]
    if depth == 2:
        assert names == ["direction", "breakpoints", "weights"]
        np.testing.assert_array_equal(found[1].kernel, np.ones((1, 21)))
    else:
        assert names[:5] == ["direction", "starts", "breakpoints_0", "weights_0", "breakpoints_1"]
        assert names[-2:] == ["breakpoints_2", "weights_2"]
    np.testing.assert_array_equal(np.argmax(again, axis=1), labels)


def test_norms_and_paths_of_a_deep_memorizer():
    images, labels = task(12)
    made = memorize(images, labels, levels=range(5), depth=4)
    names = ("margin_min", "log_product_frobenius", "log_path_l2_maxpool_bias")
    with jax.enable_x64(True):
        found = measures.compute(made.model, made.variables, images, labels, names=names)
    assert found["margin_min"] == pytest.approx(0.5, abs=1e-9)
    assert np.isfinite(list(found.values())).all()


def test_margin_is_by_how_much_the_nearest_value_is_nearer():
    images, labels = task()
    made = memorize(images, labels * 2 - 1, levels=(-1, 1, 3, 5, 7))
    with jax.enable_x64(True):
        logits = np.asarray(made.model.apply(made.variables, images, False).logits_BxY)
    differences = np.take_along_axis(logits, labels[:, None], 1) - logits
    squares = (made.levels_Y[labels][:, None] - made.levels_Y) ** 2 / 2
    np.testing.assert_allclose(differences, squares, rtol=0, atol=1e-6)


def test_float64_weights_are_not_rounded_in_silence():
    images, labels = task()
    made = memorize(images, labels, levels=range(5))
    with pytest.raises(UserError, match=r"jax\.enable_x64"):
        made.model.apply(made.variables, images, False)


# --- what is given --------------------------------------------------------------------------------


def test_equal_images_with_equal_values_count_once():
    images, labels = task()
    order = np.append(np.arange(40), [3, 3, 17])
    made = memorize(images[order], labels[order])
    assert made.num_points == 40
    assert made.num_weights == 2 * 40 + 24
    np.testing.assert_allclose(made.values(images), labels, rtol=0, atol=1e-8)


def test_equal_images_with_different_values_are_named():
    images, labels = task()
    images[29] = images[7]
    labels[29] = labels[7] + 1
    with pytest.raises(UserError, match=rf"7 and 29 are equal.*{labels[7]} and {labels[29]}"):
        memorize(images, labels)
    zeros = np.array([[0.0, 1.0], [5.0, 6.0], [-0.0, 1.0]])
    with pytest.raises(UserError, match="images 0 and 2 are equal"):
        memorize(zeros, [1, 2, 3])


def test_points_that_differ_in_the_last_digit_only():
    points = np.array([[1.0], [np.nextafter(1.0, 2)], [1.5]])
    made = memorize(points, [0, 1, 0])
    np.testing.assert_allclose(made.values(points), [0, 1, 0], rtol=0, atol=0.1)
    near = np.array([[1.0, 1e-300], [1.0, 2e-300], [4.0, 0.0]])
    with pytest.raises(UserError, match=r"images 0 and 1; raise max_directions"):
        memorize(near, [0, 1, 2], max_directions=3)
    # Equal values need no telling apart.
    np.testing.assert_allclose(memorize(near, [1, 1, 2]).values(near), [1, 1, 2], atol=1e-9)


GOOD = np.arange(12.0).reshape(4, 3)
MISTAKES = {
    "NaN": ({"images": np.where(GOOD == 7, np.nan, GOOD)}, "images: .*number 2 holds NaN"),
    "infinite value": ({"values": [0, 1, np.inf, 2]}, "values: .*number 2 holds NaN or an inf"),
    "no values": ({"values": []}, r"values are of shape \(0,\), and there are 4 images"),
    "two-dimensional values": ({"values": np.zeros((4, 1))}, r"values are of shape \(4, 1\)"),
    "points without dimension": ({"images": np.arange(4.0)}, r"on a line as \[N, 1\]"),
    "no images": ({"images": np.zeros((0, 3))}, r"images are of shape \(0, 3\)"),
    "words": ({"values": list("abcd")}, "values are of <U1; they must be real numbers"),
    "complex": ({"images": GOOD * 1j}, "images are of complex128"),
    "levels without one": ({"levels": (0, 1, 2)}, "value 3 is 3, which is none of the levels"),
    "one level": ({"levels": (0,)}, "at least two different numbers"),
    "equal levels": ({"levels": (0, 1, 2, 3, 3)}, "at least two different numbers"),
    "depth 1": ({"depth": 1}, "depth is 1; on 4 distinct points it can be 2 to 6"),
    "too deep": ({"depth": 7}, "depth is 7"),
    "no directions": ({"max_directions": 0}, "must be at least 1"),
    "float16": ({"dtype": np.float16}, "dtype is float16"),
    "overflow": ({"values": [0, 1e308, -1e308, 0]}, "the weights overflow float64"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name):
    given, message = MISTAKES[name]
    with pytest.raises(UserError, match=message) as raised:
        memorize(**{"images": GOOD, "values": [0, 1, 2, 3]} | given)
    assert "\n" not in str(raised.value)


def test_a_function_has_no_classes():
    with pytest.raises(UserError, match="no classes"):
        memorize(GOOD, [0, 1, 2, 3]).classes(GOOD)


# --- the experiment -------------------------------------------------------------------------------


def test_experiment_beside_sgd(run_case):
    record, text = run_case("memorizer", num_train=48, sgd=64)
    found = record["found"]
    own, sgd = found["memorizer"], found["sgd"]
    assert own["weights"] == 2 * 48 + 64 and own["weights - (2n+d)"] == 0
    assert own["labels reproduced"] == sgd["labels reproduced"] == 1
    assert own["largest error"] < 1e-7
    assert 0.7 < own["test error"] <= 1 and 0.7 < sgd["test error"] <= 1
    relative = "margin / (product of spectral norms * |x|)"
    assert own[relative] < sgd[relative] / 50
    assert sgd["weights"] == 65 * 64 + 65 * 10
    for row in own.keys() | sgd.keys():
        assert row in text
    assert record["run"]["command"] == ["command"]
    assert found["data"]["labels"] == "random"


def test_experiment_in_float32_and_deep(run_case):
    fields = {"num_train": 100, "labels": "true", "depth": 30, "precision": "float32"}
    record, text = run_case("memorizer", **fields)
    own = record["found"]["memorizer"]
    assert own["labels reproduced"] == 1 and own["depth"] == 30 and "margin_min" not in own
    assert "true labels" in text
