"""Preconditioned conjugate gradients for several right-hand sides at once, and a preconditioner."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.linalg

from rethink_jax.theory.kernels import Matrix, in_threads, spans

Linear = Callable[[np.ndarray], np.ndarray]


class Found(NamedTuple):
    """solution_NxY   product_NxY: the matrix times it, computed anew at the end

    residual: the largest |y - A x| / |y| of a column   iterations: of all columns at once
    """

    solution_NxY: np.ndarray
    product_NxY: np.ndarray
    residual: float
    iterations: int


def solve(
    multiply: Linear,
    targets_NxY: np.ndarray,
    precondition: Linear,
    tolerance: float,
    max_iterations: int,
    progress: Callable[[int, float], None] = lambda iterations, residual: None,
) -> Found:
    """Solves A x = y for each column of y from x = 0; A and the preconditioner are positive.

    Args:
      multiply: A times vectors float64[N, Y]   precondition: about A^-1 times vectors
      tolerance: of |y - A x| / |y| of each column. It is the recurrence's residual that is looked
        at; the one returned is computed anew.
      progress: called after each iteration with their number and the largest residual.
    """
    sizes_Y = np.linalg.norm(targets_NxY, axis=0)
    sizes_Y = np.where(sizes_Y > 0, sizes_Y, 1)
    x, r = np.zeros_like(targets_NxY), targets_NxY.copy()
    z = precondition(r)
    p, rz_Y, iterations = z, np.sum(r * z, axis=0), 0
    while iterations < max_iterations:
        if np.max(np.linalg.norm(r, axis=0) / sizes_Y) <= tolerance:
            break
        q = multiply(p)
        curvature_Y = np.sum(p * q, axis=0)
        # A column that is solved exactly, or down to rounding, stays as it is.
        step_Y = np.divide(rz_Y, curvature_Y, out=np.zeros_like(rz_Y), where=curvature_Y > 0)
        x = x + step_Y[None] * p
        r = r - step_Y[None] * q
        z = precondition(r)
        new_Y = np.sum(r * z, axis=0)
        p = z + np.divide(new_Y, rz_Y, out=np.zeros_like(rz_Y), where=rz_Y > 0)[None] * p
        rz_Y, iterations = new_Y, iterations + 1
        progress(iterations, float(np.max(np.linalg.norm(r, axis=0) / sizes_Y)))
    product_NxY = multiply(x)
    residuals_Y = np.linalg.norm(targets_NxY - product_NxY, axis=0) / sizes_Y
    return Found(x, product_NxY, float(residuals_Y.max()), iterations)


def nystrom(matrix: Matrix, rank: int, ridge: float, seed: int = 0) -> Linear:
    """A preconditioner for matrix + ridge I from some of its columns, drawn at random.

    The matrix is taken for its Nystrom approximation U diag(l) U^T with these columns, plus the
    smallest of the l on the rest of the space. It needs 2 * 8 * n * rank bytes.

    Source: Frangella, Tropp, Udell 2023, equation 1.3, on columns in place of a random projection.
    """
    rank = min(rank, matrix.size)
    rng = np.random.Generator(np.random.Philox(seed))
    chosen = np.sort(rng.permutation(matrix.size)[:rank])
    strips = in_threads(lambda span: matrix.part(span, chosen, np.float64), spans(matrix.size))
    columns_NxR = np.concatenate(list(strips))
    core_RxR = columns_NxR[chosen]
    # Makes the factor of a singular core exist; it is taken off the eigenvalues again.
    shift = 10 * np.finfo(np.float64).eps * matrix.size * np.trace(core_RxR) / rank
    core_RxR = core_RxR + shift * np.eye(rank)
    lower = scipy.linalg.cholesky(core_RxR, lower=True, check_finite=False)
    half_NxR = scipy.linalg.solve_triangular(lower, columns_NxR.T, lower=True, check_finite=False).T
    # The eigenvectors of half half^T from those of the small half^T half.
    squares_R, turn_RxR = scipy.linalg.eigh(half_NxR.T @ half_NxR, check_finite=False)
    kept_R = squares_R > squares_R[-1] * np.finfo(np.float64).eps * matrix.size
    basis_NxR = half_NxR @ (turn_RxR[:, kept_R] / np.sqrt(squares_R[kept_R])[None])
    values_R = np.maximum(squares_R[kept_R] - shift, np.finfo(np.float64).tiny)
    weights_R = (values_R.min() + ridge) / (values_R + ridge)

    def precondition(vectors_NxY: np.ndarray) -> np.ndarray:
        inside_RxY = basis_NxR.T @ vectors_NxY
        return vectors_NxY + basis_NxR @ ((weights_R[:, None] - 1) * inside_RxY)

    return precondition
