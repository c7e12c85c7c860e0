"""Features against loops; the experiment with kernels, and what it refuses."""

import dataclasses

import numpy as np
import pytest

from rethink_jax import memory, paper_kernels
from rethink_jax.data import dataset, sources
from rethink_jax.schema import UserError
from rethink_jax.theory import features, kernels

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 12, 11, 2), dtype=np.uint8)

# --- features -------------------------------------------------------------------------------------


def test_pixels():
    found = features.pixels(IMAGES)
    np.testing.assert_allclose(found[2], IMAGES[2].reshape(-1) / 255, rtol=1e-6)


def test_wavelets():
    filters = features.wavelets()
    assert filters.shape == (13, 13, 32)
    np.testing.assert_allclose(filters.sum((0, 1)), 0, atol=1e-5)
    np.testing.assert_allclose((filters**2).sum((0, 1)), 1, rtol=1e-5)
    # The first 16 are even under a half turn, the others odd.
    turned = filters[::-1, ::-1]
    np.testing.assert_allclose(turned[..., :16], filters[..., :16], atol=1e-6)
    np.testing.assert_allclose(turned[..., 16:], -filters[..., 16:], atol=1e-6)
    # The first varies along x, with a period of 4; its quarter turn along y.
    np.testing.assert_allclose(filters[..., 4], filters[..., 0].T, atol=1e-6)
    assert filters[6, 6, 0] > 0 > filters[6, 8, 0]


def test_gabor():
    found = features.gabor(IMAGES).reshape(5, 2, 3, 2, 64)  # Image, channel, square, phase.
    padded = np.pad(IMAGES / 255, ((0, 0), (6, 6), (6, 6), (0, 0)))
    filters = features.wavelets()
    for image, channel, row, column, k in ((0, 0, 0, 0, 0), (4, 1, 2, 1, 21), (3, 1, 1, 0, 9)):
        z = np.array([
            [np.sum(padded[image, y : y + 13, x : x + 13, channel] * filters[..., k])
             for x in range(4 * column, 4 * column + 4)]
            for y in range(4 * row, 4 * row + 4)
        ])  # fmt: skip
        ours = found[image, channel, row, column]
        assert ours[k] == pytest.approx(np.maximum(z, 0).mean(), abs=1e-5)
        assert ours[32 + k] == pytest.approx(np.maximum(-z, 0).mean(), abs=1e-5)


@pytest.fixture(scope="module")
def patches():
    return features.Patches(IMAGES, 3, seed=1)


def test_patch_features(patches):
    (found,) = patches.blocks(IMAGES)
    # 7x6 positions: one square of 6x6 fits, of which the others are not taken.
    assert found.shape == (5, 6)
    image, expected = IMAGES[2].astype(np.float64), np.zeros(6)
    for y in range(6):
        for x in range(6):
            patch = image[y : y + 6, x : x + 6].reshape(-1)
            patch = (patch - patch.mean()) / np.sqrt(patch.var() + 10)
            z = patch @ patches.filters_DxF - patches.offsets_F
            expected += np.concatenate([np.maximum(z - 1, 0), np.maximum(-z - 1, 0)]) / 36
    np.testing.assert_allclose(found[2], expected, rtol=1e-4, atol=1e-5)


def test_whitened_responses_have_unit_variance(patches):
    rng = np.random.default_rng(3)
    sample = features._normalized(features._random_patches(IMAGES, 50_000, rng))
    responses = sample @ patches.filters_DxF - patches.offsets_F
    # Filters of norm 1 on white patches; the sample has 5 * 42 different ones.
    np.testing.assert_allclose(responses.mean(0), 0, atol=0.05)
    np.testing.assert_allclose(responses.std(0), 1, atol=0.05)


def test_filters_are_whitened_patches(patches):
    windows = np.lib.stride_tricks.sliding_window_view(IMAGES, (6, 6), axis=(1, 2))
    every = np.moveaxis(windows, 3, -1).reshape(-1, 72).astype(np.float64)
    every = features._normalized(every)
    # In 72 dimensions each filter points at some whitened patch, the one that it was made from.
    values, vectors = np.linalg.eigh(np.cov(every.T))
    white = (every - every.mean(0)) @ (vectors / np.sqrt(values + 1e-3)) @ vectors.T
    responses = every @ patches.filters_DxF - patches.offsets_F
    cosines = responses / np.linalg.norm(white, axis=1)[:, None]
    np.testing.assert_allclose(cosines.max(0), 1, atol=0.02)


def test_inner_products_of_patches(patches):
    (rows,) = patches.blocks(IMAGES)
    rows = rows.astype(np.float64)
    gram, cross = features.patch_matrices(patches, IMAGES[:3], IMAGES[3:])
    np.testing.assert_allclose(gram.values, rows[:3] @ rows[:3].T, rtol=1e-5)
    np.testing.assert_allclose(cross, rows[3:] @ rows[:3].T, rtol=1e-5)


# --- the experiment -------------------------------------------------------------------------------


@pytest.fixture
def digits(monkeypatch):
    """A few digits, whatever data set is asked for."""
    whole = dataset.subset(sources.digits(), 150, 0, True)
    small = dataclasses.replace(
        whole, test_images=whole.test_images[:80], test_labels=whole.test_labels[:80]
    )
    monkeypatch.setattr(sources, "load", lambda name, folder=None, download=False: small)
    return small


def test_experiment(run_case, digits):
    record, text = run_case("kernel", data="mnist", bandwidth=0.7)
    found = record["found"]
    X, Z = (
        images.reshape(len(images), -1) / 255.0
        for images in (digits.train_images, digits.test_images)
    )
    kernel = kernels.make("gaussian", found["machine"]["bandwidth"])
    K, targets = kernels.evaluate(kernel, X, X), np.eye(10)[digits.train_labels]
    alpha = np.linalg.solve(K, targets)
    wrong = (kernels.evaluate(kernel, Z, X) @ alpha).argmax(1) != digits.test_labels
    ours = found["ours"]
    assert found["machine"]["bandwidth"] == pytest.approx(0.7 * kernels.median_distance(X))
    assert ours["test error"] == wrong.mean()
    assert ours["norm of the solution"] == pytest.approx(np.sqrt(np.sum(targets * alpha)), rel=1e-5)
    each = np.sqrt(np.sum(targets * alpha, axis=0))
    assert ours["largest norm of an output"] == pytest.approx(each.max(), rel=1e-5)
    assert ours["residual"] < 1e-8
    # Beside the paper's, which say where they stand.
    assert found["paper"]["test error"]["value"] == 0.012
    assert found["paper"]["norm of the solution"]["value"] == 220
    assert "1.20%  Table 3" in text
    assert "220  Section 5" in text
    assert record["run"]["command"] == ["command"]


def test_the_bandwidth_is_the_best_on_images_held_out(run_case, digits):
    record, text = run_case("kernel", data="mnist")
    machine = record["found"]["machine"]
    errors = machine["validation error by bandwidth"]
    assert list(errors) == ["0.25", "0.35", "0.5", "0.7", "1", "1.4", "2"]
    chosen = machine["bandwidth by root of median squared distance"]
    assert errors[f"{chosen:g}"] == min(errors.values())
    # Again by hand: a third is held out, the rest is fitted, and no test image is looked at.
    X = digits.train_images.reshape(150, -1) / 255.0
    order = np.random.Generator(np.random.Philox(0)).permutation(150)
    held, fitted = order[:50], order[50:]
    kernel = kernels.make("gaussian", 0.35 * kernels.median_distance(X))
    alpha = np.linalg.solve(
        kernels.evaluate(kernel, X[fitted], X[fitted]), np.eye(10)[digits.train_labels[fitted]]
    )
    said = (kernels.evaluate(kernel, X[held], X[fitted]) @ alpha).argmax(1)
    assert errors["0.35"] == np.mean(said != digits.train_labels[held])
    assert "0.35: " in text


def test_patches_experiment(run_case, digits):
    record, text = run_case("kernel", data="cifar10", features="patches", filters=20, ridge=0.01)
    found = record["found"]
    assert found["machine"]["kernel"] == "linear"
    assert found["paper"]["test error"]["value"] == 0.15
    assert found["ours"]["test error"] < 0.5
    assert "15.00%  Section 5" in text


def test_the_ridge_of_patches_is_the_best_on_images_held_out(run_case, digits):
    record, _ = run_case("kernel", data="cifar10", features="patches", filters=20, ridge=None)
    machine = record["found"]["machine"]
    errors = machine["validation error by ridge"]
    assert list(errors) == ["1e-06", "1e-05", "0.0001", "0.001", "0.01", "0.1", "1"]
    assert errors[f"{machine['ridge by mean diagonal']:g}"] == min(errors.values())
    patches = features.Patches(digits.train_images, 20, seed=0)
    gram = features.patch_matrices(patches, digits.train_images, digits.test_images)[0].values
    order = np.random.Generator(np.random.Philox(0)).permutation(150)
    held, fitted = order[:50], order[50:]
    inner = gram[np.ix_(fitted, fitted)]
    inner = inner + 0.01 * inner.trace() / 100 * np.eye(100)
    alpha = np.linalg.solve(inner, np.eye(10)[digits.train_labels[fitted]])
    said = (gram[np.ix_(held, fitted)] @ alpha).argmax(1)
    assert errors["0.01"] == np.mean(said != digits.train_labels[held])


def test_random_labels_are_interpolated_and_say_nothing(run_case, digits):
    record, text = run_case("kernel", data="mnist", labels="random", bandwidth=0.5)
    found = record["found"]
    assert found["ours"]["residual"] < 1e-8
    assert found["ours"]["test error"] > 0.75
    assert set(found["paper"].values()) == {None}
    assert "random labels" in text


def test_the_paper_has_no_numbers_of_other_machines(run_case, digits):
    record, _ = run_case("kernel", solver="eigen", targets="signs", bandwidth=0.5)
    assert set(record["found"]["paper"].values()) == {None}
    assert record["found"]["ours"]["solver"] == "eigen"


def test_published():
    values = {(m.data, m.features, m.l2): p.value for m, p in paper_kernels.TEST_ERRORS.items()}
    assert values == {
        ("mnist", "raw", False): 0.012,
        ("mnist", "gabor", False): 0.006,
        ("cifar10", "raw", False): 0.46,
        ("cifar10", "patches", False): 0.17,
        ("cifar10", "patches", True): 0.15,
    }


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"features": "gabbor"}, "features is 'gabbor'.*; did you mean 'gabor'"),
        ({"targets": "ones"}, "targets is 'ones'; it must be one of onehot, signs"),
        ({"solver": "qr"}, "solver is 'qr'"),
        ({"kernel": "rbf"}, "kernel is 'rbf'"),
        ({"bandwidth": 0.0}, "bandwidth is 0.0"),
        ({"num_train": 2}, "2 training images are too few for a validation split"),
        ({"features": "patches", "kernel": "gaussian"}, "patches are for the linear kernel"),
        ({"features": "patches", "filters": 0}, "filters is 0"),
        ({"hidden": 3}, "kernel has no field 'hidden'"),
    ],
)
def test_refused(run_case, digits, given, match):
    with pytest.raises(UserError, match=match):
        run_case("kernel", **given)


def test_patches_ask_for_memory_first(run_case, digits, monkeypatch):
    monkeypatch.setattr(memory, "host_bytes", lambda: 2**18)
    monkeypatch.setattr(features.Patches, "__init__", None)
    with pytest.raises(UserError, match="inner products of 150 with 230 images need"):
        run_case("kernel", features="patches", filters=20)
