"""Kernel functions against loops; tiles against whole matrices."""

import math

import numpy as np
import pytest

from rethink_jax.schema import UserError
from rethink_jax.theory import kernels
from rethink_jax.theory.kernels import DenseMatrix, KernelMatrix

ROWS, OTHERS = (np.random.default_rng(n).normal(size=(n, 5)) for n in (13, 7))
KINDS = [("linear", {}), ("gaussian", {"bandwidth": 1.7}),
         ("polynomial", {"bandwidth": 0.8, "degree": 3}),
         ("arc_cosine_0", {}), ("arc_cosine_1", {})]  # fmt: skip


def value(name, x, y, bandwidth=1.0, degree=2):
    """One value, from the definition."""
    angle = math.acos(np.clip(x @ y / np.linalg.norm(x) / np.linalg.norm(y), -1, 1))
    sizes = np.linalg.norm(x) * np.linalg.norm(y)
    return {
        "linear": x @ y,
        "gaussian": math.exp(-(np.linalg.norm(x - y) ** 2) / (2 * bandwidth**2)),
        "polynomial": (1 + x @ y / bandwidth**2) ** degree,
        "arc_cosine_0": 1 - angle / math.pi,
        "arc_cosine_1": sizes * (math.sin(angle) + (math.pi - angle) * math.cos(angle)) / math.pi,
    }[name]


@pytest.mark.parametrize(("name", "parameters"), KINDS)
def test_kernels_by_their_definition(name, parameters):
    kernel = kernels.make(name, **parameters)
    expected = np.array([[value(name, x, y, **parameters) for y in OTHERS] for x in ROWS])
    found = kernels.evaluate(kernel, ROWS, OTHERS)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)
    single = kernels.evaluate(kernel, ROWS, OTHERS, np.float32)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("order", [0, 1])
def test_arc_cosine_kernels_are_means_over_random_units(order):
    x, y = ROWS[:2]
    units = np.random.default_rng(1).normal(size=(400_000, 5))
    a, b = units @ x, units @ y
    products = 2 * (a > 0) * (b > 0) * (a * b) ** order
    error = 5 * products.std() / math.sqrt(len(products))
    assert value(f"arc_cosine_{order}", x, y) == pytest.approx(products.mean(), abs=error)


def test_rows_of_zeros():
    rows = np.vstack([np.zeros(5), ROWS[:2]])
    for name, parameters in KINDS:
        found = kernels.evaluate(kernels.make(name, **parameters), rows, rows)
        assert np.all(np.isfinite(found)), name


def test_every_kernel_is_tested():
    assert {name for name, _ in KINDS} == set(kernels.KERNELS)


def test_median_distance():
    distances = [np.sum((ROWS[i] - ROWS[j]) ** 2) for i in range(13) for j in range(i)]
    assert kernels.median_distance(ROWS) == pytest.approx(math.sqrt(np.median(distances)))
    # Of many rows a sample, the seed's.
    many = np.random.default_rng(2).normal(size=(1200, 3))
    assert kernels.median_distance(many, 0) == kernels.median_distance(many, 0)
    assert kernels.median_distance(many, 0) != kernels.median_distance(many, 1)
    assert kernels.median_distance(many) == pytest.approx(math.sqrt(2 * 2.37), rel=0.05)


@pytest.mark.parametrize("tile", [3, 5, 13, 50])
def test_products_by_tiles(tile):
    kernel = kernels.make("gaussian", 2.0)
    vectors = np.random.default_rng(3).normal(size=(13, 2))
    whole = kernels.evaluate(kernel, ROWS, ROWS)
    for matrix in (KernelMatrix(kernel, ROWS), DenseMatrix(whole)):
        found = kernels.multiply(matrix, vectors, tile)
        np.testing.assert_allclose(found, whole @ vectors, rtol=1e-12, atol=1e-14)
    found = kernels.cross_multiply(kernel, OTHERS, ROWS, vectors)
    expected = kernels.evaluate(kernel, OTHERS, ROWS) @ vectors
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"name": "gausian"}, "did you mean 'gaussian'"),
        ({"name": "gaussian", "bandwidth": 0.0}, "bandwidth is 0.0"),
        ({"name": "gaussian", "bandwidth": math.nan}, "bandwidth is nan"),
        ({"name": "polynomial", "degree": 0}, "degree is 0"),
    ],
)
def test_refused(given, match):
    with pytest.raises(UserError, match=match):
        kernels.make(**given)
