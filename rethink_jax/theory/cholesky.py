"""Cholesky factorization of a large matrix whose tiles are made when they are needed.

Only the lower half of the factor is ever in memory: n^2 / 2 numbers, and the matrix itself never.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg

from rethink_jax.theory.kernels import TILE, Matrix, in_threads, spans


class NotPositive(ArithmeticError):
    """A matrix that is not positive definite, as far as the arithmetic can tell."""


def num_bytes(size: int, dtype: Any, tile: int = TILE) -> int:
    """What the factor of an n x n matrix needs."""
    return sum(span.stop * (span.stop - span.start) for span in spans(size, tile)) * (
        np.dtype(dtype).itemsize
    )


class Factor:
    """L of L L^T = matrix + shift I, as strips of rows, each up to its diagonal."""

    def __init__(self, strips: list[np.ndarray], tile: int) -> None:
        self.strips = strips
        self.spans = spans(len(strips[-1][0]), tile)

    def solve(self, vectors_NxY: np.ndarray) -> np.ndarray:
        """(L L^T)^-1 times vectors, in the factor's precision: [N, Y] in that of the vectors."""
        x = vectors_NxY.astype(self.strips[0].dtype)
        for span, strip in zip(self.spans, self.strips, strict=True):
            before = slice(0, span.start)
            x[span] -= strip[:, before] @ x[before]
            x[span] = _solve_triangular(strip[:, span], x[span])
        for span, strip in zip(reversed(self.spans), reversed(self.strips), strict=True):
            before = slice(0, span.start)
            x[span] = _solve_triangular(strip[:, span], x[span], transposed=True)
            x[before] -= strip[:, before].T @ x[span]
        return x.astype(vectors_NxY.dtype)

    def multiply(self, vectors_NxY: np.ndarray) -> np.ndarray:
        """L L^T times vectors, in the factor's precision: [N, Y] in that of the vectors."""
        x = vectors_NxY.astype(self.strips[0].dtype)
        half = np.zeros_like(x)
        for span, strip in zip(self.spans, self.strips, strict=True):
            half[: span.stop] += strip.T @ x[span]
        product = [strip @ half[: len(strip[0])] for strip in self.strips]
        return np.concatenate(product).astype(vectors_NxY.dtype)


def _solve_triangular(lower: np.ndarray, vectors: np.ndarray, transposed: bool = False) -> Any:
    return scipy.linalg.solve_triangular(
        lower, vectors, lower=True, trans=int(transposed), check_finite=False
    )


def factor(
    matrix: Matrix,
    shift: float = 0.0,
    dtype: Any = np.float64,
    tile: int = TILE,
    progress: Callable[[float], None] = lambda share: None,
) -> Factor:
    """Factors matrix + shift I in `dtype`, all cores at once, whatever the threads of BLAS.

    Args:
      progress: called with the share of the arithmetic that is done, from 0 to 1.

    Raises:
      NotPositive: some pivot is not above 0.
    """
    pieces = spans(matrix.size, tile)
    strips = [np.empty((s.stop - s.start, s.stop), dtype) for s in pieces]
    for j, columns in enumerate(pieces):
        before, top = slice(0, columns.start), strips[j]

        def update(i: int, j: int = j, columns: slice = columns, before: slice = before) -> None:
            block = strips[i][:, before] @ strips[j][:, before].T
            np.subtract(matrix.part(pieces[i], columns, dtype), block, out=block)
            if i == j:
                block[np.diag_indices(len(block))] += dtype(shift)
            strips[i][:, columns] = block

        def divide(i: int, columns: slice = columns, top: np.ndarray = top) -> None:
            block = strips[i][:, columns]
            strips[i][:, columns] = _solve_triangular(top[:, columns], block.T).T

        list(in_threads(update, range(j, len(pieces))))
        try:
            top[:, columns] = scipy.linalg.cholesky(top[:, columns], lower=True, check_finite=False)
        except scipy.linalg.LinAlgError as error:
            raise NotPositive(
                f"the matrix of {matrix.size:,} rows is not positive definite in "
                f"{np.dtype(dtype).name}, from row {columns.start:,} to {columns.stop:,} on"
            ) from error
        list(in_threads(divide, range(j + 1, len(pieces))))
        done = columns.stop / matrix.size
        # After a share f of the columns, 3 f^2 - 2 f^3 of the multiplications are done.
        progress(done**2 * (3 - 2 * done))
    return Factor(strips, tile)
