"""Minimum-norm solutions against numpy's; solvers against each other; what is refused."""

import numpy as np
import pytest

from rethink_jax import memory
from rethink_jax.schema import UserError
from rethink_jax.theory import cholesky, conjugate_gradients, interpolation, kernels
from rethink_jax.theory.interpolation import Options
from rethink_jax.theory.kernels import DenseMatrix, KernelMatrix

RNG = np.random.default_rng(0)
ROWS, OTHERS = RNG.normal(size=(60, 6)), RNG.normal(size=(9, 6))
LABELS = RNG.integers(0, 3, 60)
TARGETS = np.eye(3)[LABELS]
GAUSSIAN = kernels.make("gaussian", 2.0)
# The tiles divide the rows unevenly.
WAYS = {
    "direct float64": {"solver": "direct", "precision": "float64", "tile": 17},
    "direct float32": {"solver": "direct", "precision": "float32", "tile": 17},
    "iterative": {"solver": "iterative", "rank": 25, "tile": 17},
    "eigen": {"solver": "eigen"},
}


def options(way, **changes):
    return Options(**({"tolerance": 1e-12} | WAYS[way] | changes))


def matrix_of(kernel, left=ROWS, right=ROWS):
    return kernels.evaluate(kernel, left, right)


# --- what is solved -------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_kernel_solutions(way, ridge):
    found = interpolation.interpolate(GAUSSIAN, ROWS, TARGETS, options(way, ridge=ridge))
    K = matrix_of(GAUSSIAN)
    alpha = np.linalg.solve(K + ridge * np.eye(60), TARGETS)
    # Rounding, times the condition number (1e4).
    np.testing.assert_allclose(found.solution.alpha_NxY, alpha, atol=1e-7 * np.abs(alpha).max())
    np.testing.assert_allclose(found.values(OTHERS), matrix_of(GAUSSIAN, OTHERS) @ alpha, atol=1e-7)
    assert found.solution.norm == pytest.approx(np.sqrt(np.trace(alpha.T @ K @ alpha)), rel=1e-7)
    assert found.solution.residual < 1e-10
    assert found.solution.method.startswith(way)
    if not ridge:
        np.testing.assert_allclose(found.values(ROWS), TARGETS, atol=1e-7)


@pytest.mark.parametrize("way", ["direct float64", "direct float32", "iterative", "eigen"])
def test_linear_kernel_gives_the_least_weights(way):
    wide = np.random.default_rng(1).normal(size=(20, 50))
    targets = np.random.default_rng(2).normal(size=(20, 2))
    found = interpolation.interpolate(kernels.make("linear"), wide, targets, options(way))
    weights = wide.T @ found.solution.alpha_NxY
    expected = np.linalg.pinv(wide) @ targets
    np.testing.assert_allclose(weights, expected, atol=1e-9)
    np.testing.assert_allclose(weights, np.linalg.lstsq(wide, targets, rcond=None)[0], atol=1e-9)
    assert found.solution.norm == pytest.approx(np.linalg.norm(expected), rel=1e-9)


def test_ridge_regression_tends_to_the_interpolant():
    least = interpolation.interpolate(GAUSSIAN, ROWS, TARGETS).values(OTHERS)
    K, cross = matrix_of(GAUSSIAN), matrix_of(GAUSSIAN, OTHERS)
    distances = []
    for ridge in (1e-1, 1e-3, 1e-5, 1e-7):
        ours = interpolation.interpolate(GAUSSIAN, ROWS, TARGETS, Options(ridge=ridge))
        closed = cross @ np.linalg.inv(K + ridge * np.eye(60)) @ TARGETS
        np.testing.assert_allclose(ours.values(OTHERS), closed, atol=1e-8)
        distances.append(np.abs(ours.values(OTHERS) - least).max())
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-3


def test_against_scikit_learn():
    learn = pytest.importorskip("sklearn.kernel_ridge", reason="scikit-learn is not installed")
    for ridge in (1e-1, 1e-6):
        model = learn.KernelRidge(alpha=ridge, kernel="rbf", gamma=1 / 8).fit(ROWS, TARGETS)
        ours = interpolation.interpolate(GAUSSIAN, ROWS, TARGETS, Options(ridge=ridge))
        np.testing.assert_allclose(ours.values(OTHERS), model.predict(OTHERS), atol=1e-7)


def test_eigen_is_the_pseudo_inverse_where_nothing_interpolates():
    # 60 rows of 6 values: the linear kernel has rank 6.
    linear = kernels.make("linear")
    found = interpolation.interpolate(linear, ROWS, TARGETS, options("eigen"))
    weights = np.linalg.lstsq(ROWS, TARGETS, rcond=None)[0]
    np.testing.assert_allclose(ROWS.T @ found.solution.alpha_NxY, weights, atol=1e-10)
    assert found.solution.norm == pytest.approx(np.linalg.norm(weights))
    assert found.solution.residual > 0.1


# --- the parts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile", [7, 20, 60, 100])
def test_cholesky_factor(tile):
    K = matrix_of(GAUSSIAN)
    shares = []
    made = cholesky.factor(DenseMatrix(K), 0.5, tile=tile, progress=shares.append)
    expected = np.linalg.cholesky(K + 0.5 * np.eye(60))
    for span, strip in zip(made.spans, made.strips, strict=True):
        lower = np.tril(strip, span.start)
        np.testing.assert_allclose(lower, expected[span, : span.stop], atol=1e-12)
    np.testing.assert_allclose(made.multiply(TARGETS), (K + 0.5 * np.eye(60)) @ TARGETS)
    solved = np.linalg.solve(K + 0.5 * np.eye(60), TARGETS)
    np.testing.assert_allclose(made.solve(TARGETS), solved, atol=1e-12)
    assert sum(strip.nbytes for strip in made.strips) == cholesky.num_bytes(60, np.float64, tile)
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)


def test_condition_number():
    found = interpolation.interpolate(GAUSSIAN, ROWS, TARGETS, options("direct float64")).solution
    eigenvalues = np.linalg.eigvalsh(matrix_of(GAUSSIAN))
    # Power iteration of 20 steps comes from inside.
    assert eigenvalues[-1] * 0.99 <= found.largest <= eigenvalues[-1] * (1 + 1e-9)
    assert eigenvalues[0] * (1 - 1e-6) <= found.smallest <= eigenvalues[0] * 1.2
    assert found.condition == found.largest / found.smallest


def test_the_preconditioner_saves_iterations():
    smooth = kernels.make("gaussian", 4.0)
    counts = {}
    for rank in (1, 40):
        made = interpolation.interpolate(
            smooth, ROWS, TARGETS, options("iterative", ridge=1e-3, rank=rank, tolerance=1e-8)
        )
        counts[rank] = made.solution.iterations
    assert counts[40] < counts[1] / 2


def test_nystrom_of_all_columns_is_the_inverse():
    matrix = KernelMatrix(GAUSSIAN, ROWS)
    inverse = conjugate_gradients.nystrom(matrix, 60, 0.1)
    expected = np.linalg.solve(matrix_of(GAUSSIAN) + 0.1 * np.eye(60), TARGETS)
    found = inverse(TARGETS)
    np.testing.assert_allclose(found / np.linalg.norm(found), expected / np.linalg.norm(expected),
                               atol=1e-6)  # fmt: skip


def test_stopped_iterations_say_so():
    found = interpolation.interpolate(
        GAUSSIAN, ROWS, TARGETS, options("iterative", rank=1, max_iterations=3)
    ).solution
    exact = matrix_of(GAUSSIAN) @ found.alpha_NxY
    assert found.iterations == 3
    assert found.residual > 1e-3
    residuals = np.linalg.norm(TARGETS - exact, axis=0) / np.linalg.norm(TARGETS, axis=0)
    assert found.residual == pytest.approx(residuals.max(), rel=1e-6)


def test_targets_of_zeros():
    targets = TARGETS * np.array([1.0, 0.0, 1.0])
    for way in WAYS:
        found = interpolation.interpolate(GAUSSIAN, ROWS, targets, options(way)).solution
        np.testing.assert_array_equal(found.alpha_NxY[:, 1], 0)
        assert np.all(np.isfinite(found.alpha_NxY))


# --- singular matrices ----------------------------------------------------------------------------


def twice(targets_differ):
    rows, labels = np.vstack([ROWS, ROWS[[3]]]), np.append(LABELS, LABELS[3])
    labels[-1] = (labels[-1] + targets_differ) % 3
    return rows, np.eye(3)[labels]


def test_equal_rows_with_equal_targets_count_once():
    once = interpolation.interpolate(GAUSSIAN, ROWS, TARGETS)
    for way in ("direct float64", "eigen"):
        found = interpolation.interpolate(GAUSSIAN, *twice(False), options(way))
        np.testing.assert_allclose(found.values(OTHERS), once.values(OTHERS), atol=1e-8)
        assert found.solution.norm == pytest.approx(once.solution.norm)


def test_equal_rows_with_different_targets():
    rows, targets = twice(True)
    with pytest.raises(UserError, match="rows 3 and 60 are the same with different targets"):
        interpolation.interpolate(GAUSSIAN, rows, targets)
    # With a ridge it is a regression; the least squares of least norm take the mean target.
    interpolation.interpolate(GAUSSIAN, rows, targets, Options(ridge=0.1))
    found = interpolation.interpolate(GAUSSIAN, rows, targets, options("eigen"))
    means = TARGETS.copy()
    means[3] = (targets[3] + targets[60]) / 2
    expected = interpolation.interpolate(GAUSSIAN, ROWS, means).values(OTHERS)
    np.testing.assert_allclose(found.values(OTHERS), expected, atol=1e-7)


def test_a_singular_matrix_is_refused_unless_a_jitter_is_named():
    linear = kernels.make("linear")
    direct = options("direct float64")
    with pytest.raises(UserError, match=r"not positive definite in float64.*trial.solver=eigen"):
        interpolation.interpolate(linear, ROWS, TARGETS, direct)
    found = interpolation.interpolate(linear, ROWS, TARGETS, options("direct float64", jitter=1e-6))
    weights = np.linalg.lstsq(ROWS, TARGETS, rcond=None)[0]
    np.testing.assert_allclose(ROWS.T @ found.solution.alpha_NxY, weights, atol=1e-6)


# --- memory ---------------------------------------------------------------------------------------


def test_memory(monkeypatch):
    needed = {way: interpolation.needed_bytes(20_000, way, 100) for way in WAYS}
    assert needed["iterative"] < needed["direct float32"] < needed["direct float64"]

    def planned(limit, **changes):
        monkeypatch.setattr(memory, "host_bytes", lambda: limit)
        return interpolation._plan(20_000, Options(rank=100, **changes))[0]

    assert planned(None) == "direct float64"
    for way in ("direct float64", "direct float32", "iterative"):
        assert planned(int(needed[way] / 0.89)) == way
    with pytest.raises(UserError, match=r"direct float64 on 20,000 rows needs .* MiB; .* MiB are "
                       "available. Take --config.trial.precision=float32"):  # fmt: skip
        planned(2**30, solver="direct", precision="float64")
    with pytest.raises(UserError, match="eigen on 20,000 rows needs 12,719 MiB"):
        planned(2**30, solver="eigen")
    with pytest.raises(UserError, match="Take a rank below 100"):
        planned(2**28)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"solver": "cholesky"}, "no solver 'cholesky'"),
        ({"precision": "float16"}, "no precision 'float16'.*'float64'|did you mean"),
        ({"ridge": -1.0}, "ridge is -1.0; take 0 or more"),
        ({"jitter": float("nan")}, "jitter is nan"),
    ],
)
def test_refused_options(given, match):
    with pytest.raises(UserError, match=match):
        Options(**given)
