"""Minimum-norm interpolation: K alpha = y, and what the solution is like.

Of all functions that take the given values on the training rows, x -> sum_i alpha_i k(x, x_i) has
the smallest norm in the kernel's space (RKHS); for the linear kernel these are the linear functions
and the norm is that of the weights. Source: Zhang et al. 2017, section 5, equation 3.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg

from rethink_jax import memory
from rethink_jax.schema import UserError, suggest
from rethink_jax.theory import cholesky, conjugate_gradients, kernels
from rethink_jax.theory.kernels import Kernel, KernelMatrix, Matrix

SOLVERS = ("auto", "direct", "iterative", "eigen")
PRECISIONS = ("auto", "float64", "float32")
# A float32 factor is of the matrix with so much of its mean diagonal added, and 10 times as much
# for as long as it is not positive. It is a preconditioner only: the solution is not shifted.
_FIRST_SHIFT = 1e-6
_POWER_STEPS = 20
_DIRECT_STEPS = 100  # Of conjugate gradients after a factorization: one or two are the rule.
_BEYOND_FACTOR = 2**29  # Bytes of tiles and vectors.

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Solution:
    """What solves (K + ridge I) alpha = y, and how well.

    alpha_NxY: float64   norm: sqrt(tr(alpha^T K alpha)), in the kernel's space, over all outputs
    largest_norm: the same of the one output where it is largest
    residual: the largest |y - (K + ridge I) alpha| / |y| of an output, in float64
    method: "direct float64", ...   iterations: of conjugate gradients
    shift: on the diagonal of the factor (not of the problem)
    largest, smallest: estimates of the eigenvalues of K + ridge I + shift I; None if not known
    num_bytes: what the solver was expected to need
    """

    alpha_NxY: np.ndarray
    norm: float
    largest_norm: float
    residual: float
    method: str
    iterations: int
    shift: float
    largest: float | None
    smallest: float | None
    num_bytes: int
    seconds: float

    @property
    def condition(self) -> float | None:
        """The condition number of the factored matrix: if shifted, a lower bound of K's."""
        return self.largest / self.smallest if self.largest and self.smallest else None


@dataclasses.dataclass(frozen=True)
class Options:
    """How to solve.

    ridge: added to the diagonal, as a regularizer   jitter: the same, named as a remedy
    tolerance: of the relative residual; conjugate gradients stop there
    rank: columns of the Nystrom preconditioner   max_iterations: of the iterative solver
    """

    ridge: float = 0.0
    jitter: float = 0.0
    solver: str = "auto"
    precision: str = "auto"
    tolerance: float = 1e-8
    rank: int = 2000
    max_iterations: int = 1000
    seed: int = 0
    tile: int = kernels.TILE

    def __post_init__(self) -> None:
        for what, value, allowed in (
            ("solver", self.solver, SOLVERS),
            ("precision", self.precision, PRECISIONS),
        ):
            if value not in allowed:
                raise UserError(
                    f"there is no {what} {value!r}{suggest(value, allowed)}; there are "
                    f"{', '.join(allowed)}"
                )
        for what, value in (("ridge", self.ridge), ("jitter", self.jitter)):
            if not 0 <= value < math.inf:
                raise UserError(f"the {what} is {value}; take 0 or more")

    @property
    def on_diagonal(self) -> float:
        return self.ridge + self.jitter


# --- from rows ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Interpolant:
    """A function x -> sum_i alpha_i k(x, x_i), of `kernel` and `rows_NxD`, with Y outputs."""

    kernel: Kernel
    rows_NxD: np.ndarray
    solution: Solution

    def values(self, rows_MxD: np.ndarray) -> np.ndarray:
        """float64[M, Y]"""
        return kernels.cross_multiply(self.kernel, rows_MxD, self.rows_NxD, self.solution.alpha_NxY)


def interpolate(
    kernel: Kernel,
    rows_NxD: np.ndarray,
    targets_NxY: np.ndarray,
    options: Options | None = None,
    say: Say = lambda line: None,
) -> Interpolant:
    """The function of least norm through the targets, or the ridge regression.

    Without a ridge, of rows that are the same only the first one is kept; the function is the same.

    Raises:
      UserError: the same row with different targets and no ridge; or as `solve`.
    """
    options = options or Options()
    if not options.on_diagonal and options.solver != "eigen":
        kept = distinct(rows_NxD, targets_NxY)
        rows_NxD, targets_NxY = rows_NxD[kept], targets_NxY[kept]
    solution = solve(KernelMatrix(kernel, rows_NxD), targets_NxY, options, say)
    return Interpolant(kernel, rows_NxD, solution)


def distinct(rows_NxD: np.ndarray, targets_NxY: np.ndarray) -> np.ndarray:
    """Indices of the first ones of equal rows.

    Raises:
      UserError: equal rows with different targets.
    """
    first: dict[bytes, int] = {}
    for i, row in enumerate(rows_NxD):
        j = first.setdefault(row.tobytes(), i)
        if j != i and np.any(targets_NxY[i] != targets_NxY[j]):
            raise UserError(
                f"rows {j} and {i} are the same with different targets, so nothing interpolates "
                "them. Give --config.trial.ridge, or --config.trial.solver=eigen for the least "
                "squares of least norm"
            )
    return np.array(list(first.values()))


# --- from a matrix --------------------------------------------------------------------------------


def solve(
    matrix: Matrix,
    targets_NxY: np.ndarray,
    options: Options | None = None,
    say: Say = lambda line: None,
) -> Solution:
    """Solves (K + ridge I) alpha = y for the columns of y.

    "direct": a Cholesky factor, of which half is stored, in float64 where that fits, else in
    float32; then conjugate gradients in float64 with the factor as preconditioner, on tiles of K
    made anew. "iterative": the same with a Nystrom preconditioner and no factor. "eigen": by all
    eigenvalues; the least squares of least norm where K is singular. "auto": the first of direct
    float64, direct float32 and iterative for which there is memory.

    Raises:
      UserError: K is singular in float64; or the solver needs more memory than there is.
    """
    options = options or Options()
    targets_NxY = np.ascontiguousarray(targets_NxY, np.float64)
    begun = time.perf_counter()
    method, needed = _plan(matrix.size, options)
    run = {"direct": _direct, "iterative": _iterative, "eigen": _eigen}[method.split()[0]]
    say(f"{method}: {matrix.size:,} rows, about {memory.mib(needed)}")
    made = run(matrix, targets_NxY, options, method, say)
    fitted_NxY = made.pop("product_NxY") - options.ridge * made["alpha_NxY"]
    # Rounding may take a norm of 0 below it.
    squares_Y = np.maximum(np.sum(made["alpha_NxY"] * fitted_NxY, axis=0), 0)
    norms = {"norm": math.sqrt(squares_Y.sum()), "largest_norm": math.sqrt(squares_Y.max())}
    seconds = time.perf_counter() - begun
    return Solution(method=method, num_bytes=needed, seconds=seconds, **norms, **made)


def needed_bytes(size: int, method: str, rank: int = 0) -> int:
    """Memory for a method ("direct float32", "iterative", "eigen") on n rows, without the rows."""
    return (
        _BEYOND_FACTOR
        + {
            "direct float64": cholesky.num_bytes(size, np.float64),
            "direct float32": cholesky.num_bytes(size, np.float32),
            "iterative": 3 * 8 * size * min(rank, size),
            # The matrix, its eigenvectors and the work of LAPACK's syevd.
            "eigen": 4 * 8 * size**2,
        }[method]
    )


def _plan(size: int, options: Options) -> tuple[str, int]:
    """The method, and the bytes that it needs."""
    precisions = ("float64", "float32") if options.precision == "auto" else (options.precision,)
    direct = [f"direct {precision}" for precision in precisions]
    methods = {"auto": [*direct, "iterative"], "direct": direct}.get(
        options.solver, [options.solver]
    )
    limit = memory.host_bytes()
    for method in methods:
        needed = needed_bytes(size, method, options.rank)
        if memory.fits(needed, limit):
            return method, needed
    smaller = {
        "direct": "--config.trial.precision=float32 (half as much), "
        "--config.trial.solver=iterative",
        "eigen": "--config.trial.solver=direct",
    }.get(options.solver, f"a rank below {options.rank:,}")
    raise UserError(
        f"{method} on {size:,} rows needs {memory.mib(needed)}; {memory.mib(limit)} are available. "
        f"Take {smaller} or a smaller --config.trial.num_train"
    )


def _direct(
    matrix: Matrix, targets_NxY: np.ndarray, options: Options, method: str, say: Say
) -> dict[str, Any]:
    dtype = np.dtype(method.split()[1]).type
    factor, shift = _factor(matrix, options, dtype, say)
    largest, smallest = _extreme_eigenvalues(factor, matrix.size, options.seed)
    found = conjugate_gradients.solve(
        _multiplier(matrix, options),
        targets_NxY,
        factor.solve,
        options.tolerance,
        _DIRECT_STEPS if dtype == np.float64 else options.max_iterations,
        _says_iterations(say),
    )
    return _of(found) | {"shift": shift, "largest": largest, "smallest": smallest}


def _factor(
    matrix: Matrix, options: Options, dtype: Any, say: Say
) -> tuple[cholesky.Factor, float]:
    """The factor of the matrix with the ridge and, in float32, a shift; and the shift."""
    shift, scale = 0.0, mean_diagonal(matrix)
    if dtype == np.float32:
        shift = max(_FIRST_SHIFT * scale - options.on_diagonal, 0.0)
    while True:
        try:
            factor = cholesky.factor(
                matrix, options.on_diagonal + shift, dtype, options.tile,
                lambda share: say(f"factored {share:.0%}"),
            )  # fmt: skip
            return factor, shift
        except cholesky.NotPositive as error:
            if dtype == np.float64:
                raise UserError(
                    f"{error}: the rows do not determine a solution. Give "
                    "--config.trial.ridge, --config.trial.jitter (as 1e-10 of the mean "
                    f"diagonal, {scale:.3g}), or --config.trial.solver=eigen"
                ) from error
            shift = 10 * max(shift, _FIRST_SHIFT * scale)
            say(f"{error}; again with {shift:.3g} on the diagonal of the preconditioner")


def mean_diagonal(matrix: Matrix) -> float:
    """The mean of the diagonal of a matrix."""
    parts = (matrix.part(span, span, np.float64) for span in kernels.spans(matrix.size, 256))
    return sum(np.trace(part) for part in parts) / matrix.size


def _extreme_eigenvalues(factor: cholesky.Factor, size: int, seed: int) -> tuple[float, float]:
    """Of the factored matrix, by power iteration: from below the largest, from above the other."""
    start = np.random.Generator(np.random.Philox(seed)).normal(size=(size, 1))
    found = []
    for apply in (factor.multiply, factor.solve):
        x = start
        for _ in range(_POWER_STEPS):
            x = apply(x / np.linalg.norm(x))
        found.append(float(np.linalg.norm(x)))
    return found[0], 1 / found[1]


def _iterative(
    matrix: Matrix, targets_NxY: np.ndarray, options: Options, method: str, say: Say
) -> dict[str, Any]:
    precondition = conjugate_gradients.nystrom(
        matrix, options.rank, options.on_diagonal, options.seed
    )
    say(f"preconditioner of {min(options.rank, matrix.size):,} columns")
    found = conjugate_gradients.solve(
        _multiplier(matrix, options),
        targets_NxY,
        precondition,
        options.tolerance,
        options.max_iterations,
        _says_iterations(say),
    )
    return _of(found) | {"shift": 0.0, "largest": None, "smallest": None}


def _eigen(
    matrix: Matrix, targets_NxY: np.ndarray, options: Options, method: str, say: Say
) -> dict[str, Any]:
    """By the pseudo-inverse: eigenvalues below n * 2^-52 of the largest one count as 0."""
    everything = slice(0, matrix.size)
    values_NxN = matrix.part(everything, everything, np.float64)
    eigenvalues_N, vectors_NxN = scipy.linalg.eigh(values_NxN, check_finite=False)
    cutoff = eigenvalues_N[-1] * matrix.size * np.finfo(np.float64).eps
    kept = eigenvalues_N > cutoff
    eigenvalues_N, vectors = eigenvalues_N[kept] + options.on_diagonal, vectors_NxN[:, kept]
    alpha_NxY = vectors @ ((vectors.T @ targets_NxY) / eigenvalues_N[:, None])
    product_NxY = _multiplier(matrix, options)(alpha_NxY)
    sizes_Y = np.maximum(np.linalg.norm(targets_NxY, axis=0), np.finfo(np.float64).tiny)
    return {
        "alpha_NxY": alpha_NxY,
        "product_NxY": product_NxY,
        "residual": float(np.max(np.linalg.norm(targets_NxY - product_NxY, axis=0) / sizes_Y)),
        "iterations": 0,
        "shift": 0.0,
        "largest": float(eigenvalues_N[-1]),
        "smallest": float(eigenvalues_N[0]),
    }


def _multiplier(matrix: Matrix, options: Options) -> conjugate_gradients.Linear:
    return lambda x: kernels.multiply(matrix, x, options.tile) + options.on_diagonal * x


def _of(found: conjugate_gradients.Found) -> dict[str, Any]:
    return {
        "alpha_NxY": found.solution_NxY,
        "product_NxY": found.product_NxY,
        "residual": found.residual,
        "iterations": found.iterations,
    }


def _says_iterations(say: Say) -> Callable[[int, float], None]:
    return lambda count, residual: say(f"iteration {count}: residual {residual:.2e}")
