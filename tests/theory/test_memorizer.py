"""Networks of 2n+d weights that fit anything: Theorem 1 and Corollary 1 of Zhang et al. (2017)."""

import itertools
import re
import tracemalloc

import jax
import numpy as np
import pytest

from rethink_jax.data import sources
from rethink_jax.schema import UserError
from rethink_jax.theory import directions, polylines
from rethink_jax.theory.memorizer import memorize

EPSILON = np.finfo(np.float64).eps

POINTS = {
    "grey levels": lambda rng, n, d: rng.integers(0, 256, (n, d), dtype=np.uint8),
    "real": lambda rng, n, d: rng.normal(size=(n, d)),
    "real, far from 0": lambda rng, n, d: rng.normal(size=(n, d)) * 1e-3 + 7,
    "float32": lambda rng, n, d: rng.random((n, d), np.float32),
    "sparse": lambda rng, n, d: rng.integers(0, 256, (n, d)) * (rng.random((n, d)) < 0.2),
}
VALUES = {
    "classes": lambda rng, n: rng.integers(0, 10, n),
    "signs": lambda rng, n: rng.choice([-1, 1], n),
    "real": lambda rng, n: rng.normal(size=n) * 100,
    "all the same": lambda rng, n: np.full(n, -3.5),
    "zero": lambda rng, n: np.zeros(n),
}


def distinct(kind, seed, n, d):
    """Up to n points, all different, in a random order."""
    rng = np.random.default_rng(seed)
    return rng.permutation(np.unique(POINTS[kind](rng, n, d), axis=0))


def weights_of(made):
    """a, b and w of a network with one hidden layer, as its flax parameters have them."""
    part = made.variables["params"]["part_0"]
    a, b, w = part["direction"]["kernel"], -part["breakpoints"]["bias"], part["weights"]["kernel"]
    return a[:, 0], b, w[:, 0]


def plain(made, images):
    """The paper's formula, and what rounding may add to it."""
    a, b, w = weights_of(made)
    t = images.reshape(len(images), -1).astype(np.float64) @ a
    hidden = np.maximum(t[:, None] - b[None], 0)
    # Of the sum, and of inner products, times the slopes.
    rounding = np.abs(hidden * w).sum(1).max()
    rounding += np.abs(w).max() * np.abs(images.astype(np.float64)).max() * np.abs(a).sum()
    return hidden @ w, 8 * EPSILON * rounding


def num_params(made):
    return sum(leaf.size for leaf in jax.tree.leaves(made.variables))


CASES = list(enumerate(itertools.product(POINTS, VALUES)))


@pytest.mark.parametrize(("seed", "kinds"), CASES, ids=[" / ".join(kinds) for _, kinds in CASES])
def test_any_values_at_any_points_with_2n_plus_d_weights(seed, kinds):
    rng = np.random.default_rng(seed)
    for n, d in [(1, 1), (2, 1), (1, 4), *rng.integers((3, 1), (120, 40), (6, 2)).tolist()]:
        images = distinct(kinds[0], seed, n, d)
        values = VALUES[kinds[1]](rng, len(images))
        made = memorize(images, values, seed=seed)
        assert made.num_weights == num_params(made) == 2 * len(images) + d
        assert made.width == made.num_points == len(images)
        found, tolerance = plain(made, images)
        assert tolerance < 1e-4
        np.testing.assert_allclose(found, values, rtol=0, atol=tolerance)
        np.testing.assert_allclose(made.values(images), values, rtol=0, atol=tolerance)


def test_the_weights_solve_the_triangular_system():
    images, values = distinct("real", 1, 40, 6), np.random.default_rng(1).normal(size=40)
    made = memorize(images, values)
    a, b, w = weights_of(made)
    t, b_ordered = np.sort(images @ a), np.sort(b)
    matrix = np.maximum(t[:, None] - b_ordered[None], 0)
    assert np.all(np.triu(matrix, 1) == 0)
    assert np.all(np.diag(matrix) > 0)
    solution = np.linalg.solve(matrix, values[np.argsort(images @ a)])
    np.testing.assert_allclose(w[np.argsort(b)], solution, rtol=1e-6, atol=1e-9 * abs(w).max())
    # The matrix's eigenvalues are on its diagonal.
    found = made.conditioning
    assert found.smallest_gap == pytest.approx(np.linalg.eigvals(matrix).real.min(), rel=1e-6)
    assert found.relative_gap == pytest.approx(found.smallest_gap / (t[-1] - t[0]), rel=1e-9)
    assert found.condition == pytest.approx(np.linalg.cond(matrix, np.inf), rel=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_condition_number_of_few_points(count):
    t = np.array([0.5, 2.0, 2.25])[:count]
    b = np.append(t[0] - polylines._step_before(t), t[:-1])
    matrix = np.maximum(t[:, None] - b[None], 0)
    assert polylines.conditioning(t).condition == pytest.approx(np.linalg.cond(matrix, np.inf))


# --- depth ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", range(2, 9))
@pytest.mark.parametrize("kind", ["grey levels", "real"])
def test_depth_k_has_width_n_by_k_and_no_more_weights(kind, depth):
    images = distinct(kind, depth, 97, 12)
    values = np.random.default_rng(depth).normal(size=len(images)) * 5
    made = memorize(images, values, depth=depth)
    assert made.num_weights == num_params(made) == 2 * len(images) + 12
    plain_layers = made.as_layers()
    assert len(plain_layers) == made.depth == depth
    x = images.astype(np.float64)
    for kernel, bias in plain_layers[:-1]:
        x = np.maximum(x @ kernel + bias, 0)
    kernel, bias = plain_layers[-1]
    np.testing.assert_allclose((x @ kernel + bias)[:, 0], values, rtol=0, atol=1e-9)
    np.testing.assert_allclose(made.values(images), values, rtol=0, atol=1e-9)
    assert made.width == max(len(bias) for _, bias in plain_layers[:-1])
    assert made.width <= -(-len(images) // max(1, depth - 2)) + 4
    with jax.enable_x64(True):
        found = made.model.apply(made.variables, images, False).logits_BxY
    np.testing.assert_allclose(found[:, 0], values, rtol=0, atol=1e-9)


def test_the_deepest_network_has_a_piece_for_each_point():
    images = distinct("real", 0, 9, 3)
    values = np.arange(9.0)
    made = memorize(images, values, depth=11)
    assert made.num_weights == num_params(made) == 21
    np.testing.assert_allclose(made.values(images), values, rtol=0, atol=1e-12)


def test_layers_elsewhere_agree_with_the_polyline():
    """Between and beyond the points, too, the forms of the network are one function."""
    images = distinct("real", 5, 30, 4)
    others = np.random.default_rng(6).normal(size=(50, 4)) * 3
    for depth in (2, 3, 7):
        made = memorize(images, np.arange(30.0), depth=depth)
        x = others
        for kernel, bias in made.as_layers()[:-1]:
            x = np.maximum(x @ kernel + bias, 0)
        kernel, bias = made.as_layers()[-1]
        np.testing.assert_allclose((x @ kernel + bias)[:, 0], made.values(others), rtol=1e-9)


def test_the_last_digits_of_a_point_do_not_decide_its_piece():
    rng = np.random.default_rng(0)
    t, y = np.sort(rng.normal(size=200)), rng.integers(0, 10, 200).astype(float)
    line = polylines.build(t, y, depth=42)
    for factor in (1 - 4 * EPSILON, 1, 1 + 4 * EPSILON):
        np.testing.assert_allclose(line(t * factor), y, rtol=0, atol=1e-6)


def test_a_piece_ends_between_neighbouring_numbers():
    one, other = 1 + EPSILON, 1 + 2 * EPSILON  # Halfway is rounded to the latter.
    t, y = np.array([0.5, one, other, 1.5]), np.array([1.0, 2.0, 3.0, 1.0])
    np.testing.assert_allclose(polylines.build(t, y, depth=6)(t), y, rtol=1e-12)


def test_a_piece_cannot_end_between_points_that_are_too_near():
    points = np.array([[-1.0], [1e-300], [2e-300], [1.0]])
    with pytest.raises(UserError, match="too near one another for a piece"):
        memorize(points, [0, 1, 1, 0], depth=4)
    made = memorize(points, [0, 1, 1, 0])
    np.testing.assert_allclose(made.values(points), [0, 1, 1, 0], rtol=0, atol=1e-9)


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_inner_products_of_whole_numbers_are_exact(dtype):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50, 3072), dtype=np.uint8)
    (a, _) = memorize(images, np.zeros(50), dtype=dtype).parts[0]
    assert a.dtype == dtype
    scale = 2.0**60
    exact = [sum(int(w * scale) * int(x) for w, x in zip(a.tolist(), row, strict=True))
             for row in images.tolist()]  # fmt: skip
    expected = np.array([float(t / 2**60) for t in exact])
    for _ in range(3):
        order = rng.permutation(3072)
        found = images[:, order].astype(dtype) @ a[order]
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(directions.project(images, a), expected)


def test_signed_whole_numbers_are_exact_in_float32():
    rng = np.random.default_rng(0)
    images = rng.integers(-300, 300, (40, 60))
    (a, _) = memorize(images, np.zeros(40), dtype=np.float32).parts[0]
    expected = images.astype(np.float64) @ a.astype(np.float64)
    np.testing.assert_array_equal(images.astype(np.float32) @ a, expected)


def test_directions_with_most_distinct_points_and_then_the_widest_gaps():
    columns = [[0, 1, 1, 2], [0, 1, 2, 4], [0, 8, 40, 30], [0, 1, 3, 2]]
    assert directions.most_distinct(np.array(columns, np.float64).T) == 3
    assert directions.most_distinct(np.array(columns[:3], np.float64).T) == 1


def test_directions_lean_towards_where_the_images_vary():
    """As photographs do: they are bright or dark as a whole. It leaves fewer ties."""
    rng = np.random.default_rng(0)
    images = rng.normal(128, 40, (3000, 1)) + rng.normal(0, 5, (3000, 300))
    images = np.clip(np.rint(images), 0, 255).astype(np.uint8)
    spread = directions.grid_spread(images)
    leaning = directions.candidates(images, spread, rng, np.float32)
    drawn = directions.on_grid(rng.normal(size=leaning.shape), spread, np.float32)
    ties = [
        3000 - np.mean([len(np.unique(t)) for t in directions.project(images, a).T])
        for a in (leaning, drawn)
    ]
    assert ties[0] * 2 < ties[1]


@pytest.fixture(scope="module")
def photographs():
    """2,000 real images with random labels; made ones where there are none."""
    try:
        dataset = sources.load("cifar10")
    except UserError:
        dataset = sources.synthetic()
    return dataset, dataset.train_images[:2000], np.random.default_rng(0).integers(0, 10, 2000)


@pytest.fixture(scope="module")
def made_of_photographs(photographs):
    _, images, labels = photographs
    return memorize(images, labels, levels=range(10))


def test_random_labels_of_real_images(photographs, made_of_photographs):
    dataset, images, labels = photographs
    made = made_of_photographs
    assert made.num_weights == 2 * 2000 + 3072
    np.testing.assert_allclose(made.values(images), labels, rtol=0, atol=1e-7)
    np.testing.assert_array_equal(made.classes(images), labels)
    error = np.mean(made.classes(dataset.test_images[:500]) != dataset.test_labels[:500])
    assert 0.8 < error < 0.97


def summed(terms_BxN, lanes):
    """Added one after another into so many partial sums, as products of vectors do."""
    count = -(-terms_BxN.shape[1] // lanes) * lanes
    padded = np.pad(terms_BxN, ((0, 0), (0, count - terms_BxN.shape[1])))
    parts = np.add.accumulate(padded.reshape(len(terms_BxN), -1, lanes), axis=1)[:, -1]
    return np.add.accumulate(parts, axis=1)[:, -1]


@pytest.fixture(scope="module")
def line():
    """30,000 points on a line with labels, and some of them to look at."""
    rng = np.random.default_rng(0)
    t, y = np.sort(rng.normal(size=30_000)), rng.integers(0, 10, 30_000).astype(float)
    return t, y, rng.choice(30_000, 100, replace=False)


def errors_of(line, knots, weights, lanes):
    t, y, some = line
    terms = np.maximum(t[some, None] - knots[None], 0) * weights[None]
    return np.sqrt(np.mean((summed(terms, lanes) - y[some]) ** 2))


def test_why_units_are_in_the_order_of_slopes(line):
    """In any way to sum, the error is near that of the best of them."""
    (piece,) = polylines.build(*line[:2]).pieces
    by_points = np.argsort(piece.knots)
    for lanes, gain in ((1, 0.5), (4, 4), (8, 4)):
        own = errors_of(line, piece.knots, piece.weights, lanes)
        assert own * gain < errors_of(line, piece.knots[by_points], piece.weights[by_points], lanes)


def test_why_breakpoints_are_at_the_points(line):
    t, y, _ = line
    (piece,) = polylines.build(t, y).pieces
    knots, weights, slope = np.append(piece.knots.min(), (t[1:] + t[:-1]) / 2), [], 0.0
    for j, knot in enumerate(knots):
        reached = y[j - 1] + slope * (knot - t[j - 1]) if j else 0.0
        weights.append((y[j] - reached) / (t[j] - knot) - slope)
        slope += weights[-1]
    halfway = errors_of(line, knots, np.array(weights), 4)
    assert errors_of(line, piece.knots, piece.weights, 4) * 100 < halfway


def test_memory_is_linear_in_the_number_of_points():
    images = np.random.default_rng(0).integers(0, 256, (20_000, 8), dtype=np.uint8)
    values = np.arange(20_000) % 10
    tracemalloc.start()
    made = memorize(images, values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert made.num_points > 19_000
    assert peak < 60e6  # A matrix of all points by all points has 3.2e9 bytes.


def test_the_same_seed_gives_the_same_network():
    images, values = distinct("real", 0, 20, 5), np.arange(20)
    one, same, other = (memorize(images, values, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.parts[0].direction_D, same.parts[0].direction_D)
    assert np.any(one.parts[0].direction_D != other.parts[0].direction_D)


# --- float32 --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many():
    """So many that float32 cannot tell all of them apart along one direction."""
    rng = np.random.default_rng(0)
    return distinct("grey levels", 0, 20_000, 48), rng.integers(0, 10, 20_000)


def test_one_hidden_layer_loses_the_labels_in_float32(many):
    images, labels = many
    made = memorize(images, labels)
    assert np.abs(made.values(images) - labels).max() < 1e-5
    wrong = np.abs(made.values(images[:2000], np.float32) - labels[:2000]) >= 0.5
    assert wrong.mean() > 0.5


def test_a_deep_network_with_more_directions_keeps_them_in_float32(many):
    images, labels = many
    made = memorize(images, labels, levels=range(10), depth=150, dtype=np.float32, max_directions=4)
    assert made.values(images).dtype == np.float32
    assert np.abs(made.values(images) - labels).max() < 0.25
    assert len(made.parts) > 1
    # Two for each point along the first direction, of which few tie, and some for those.
    assert made.num_weights == num_params(made)
    assert made.num_weights < 2 * len(images) + len(made.parts) * 48 + 2000
    with pytest.raises(UserError, match=f"{len(made.parts)} directions"):
        made.as_layers()


def test_flax_agrees_in_float32():
    images = distinct("grey levels", 0, 60, 16)
    values = np.arange(60) % 7
    made = memorize(images, values, depth=12, dtype=np.float32)
    found = made.model.apply(made.variables, images, False).logits_BxY
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:, 0], values, rtol=0, atol=1e-3)


def test_ties_that_no_direction_may_mend_are_named(many):
    images, labels = many
    with pytest.raises(UserError, match=r"cannot be told apart.*float32.*max_directions") as raised:
        memorize(images, labels, dtype=np.float32)
    named = re.search(r"images (\d+) and (\d+);", str(raised.value))
    one, other = (int(number) for number in named.groups())
    a = memorize(images, np.zeros(len(images)), dtype=np.float32).parts[0].direction_D
    t = directions.project(images[[one, other]], a)
    assert t[0] == t[1] and labels[one] != labels[other]
