"""Kernel functions and their matrices, computed in tiles when they are asked for."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from rethink_jax.devices import available_cores
from rethink_jax.schema import UserError, suggest

TILE = 1024  # Rows and columns of a tile.
_SAMPLE = 1000  # Rows whose distances the median rule looks at.

Task, Done = TypeVar("Task"), TypeVar("Done")


class Kernel(NamedTuple):
    """A kernel k(x, y); D: values of a row.

    name: key of `KERNELS`
    bandwidth: the length s, in units of the rows; unused by "linear" and the arc-cosine kernels
    degree: of "polynomial"

    Source: the arc-cosine kernels, Cho and Saul 2009, equations 3 to 6. UNSTATED in Zhang et al.
    2017: the bandwidth of its Gaussian kernel, and whether its exponent has the 2.
    """

    name: str
    bandwidth: float = 1.0
    degree: int = 2

    def __call__(self, left_AxD: jax.Array, right_BxD: jax.Array) -> jax.Array:
        """The values of all pairs: [A, B], in the arguments' dtype."""
        inner_AxB = jnp.matmul(left_AxD, right_BxD.T, precision="highest")
        squares_Ax1 = jnp.sum(left_AxD**2, axis=1)[:, None]
        squares_1xB = jnp.sum(right_BxD**2, axis=1)[None]
        return KERNELS[self.name](self, inner_AxB, squares_Ax1, squares_1xB)


def _linear(_: Kernel, inner_AxB: jax.Array, *squares: jax.Array) -> jax.Array:
    return inner_AxB


def _gaussian(kernel: Kernel, inner_AxB: jax.Array, *squares: jax.Array) -> jax.Array:
    """exp(-|x - y|^2 / (2 s^2))."""
    distances_AxB = jnp.maximum(squares[0] + squares[1] - 2 * inner_AxB, 0)
    return jnp.exp(distances_AxB / (-2 * kernel.bandwidth**2))


def _polynomial(kernel: Kernel, inner_AxB: jax.Array, *squares: jax.Array) -> jax.Array:
    """(1 + x.y / s^2)^degree."""
    return (1 + inner_AxB / kernel.bandwidth**2) ** kernel.degree


def _cosines(inner_AxB: jax.Array, squares: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    lengths_AxB = jnp.sqrt(squares[0] * squares[1])
    # The angle to a row of zeros is taken to be a right one.
    cosines_AxB = inner_AxB / jnp.where(lengths_AxB > 0, lengths_AxB, 1)
    return jnp.clip(cosines_AxB, -1, 1), lengths_AxB


def _arc_cosine_0(_: Kernel, inner_AxB: jax.Array, *squares: jax.Array) -> jax.Array:
    """1 - angle / pi: a layer of infinitely many step units. To 1e-8 where the angle is near 0."""
    return 1 - jnp.arccos(_cosines(inner_AxB, squares)[0]) / math.pi


def _arc_cosine_1(_: Kernel, inner_AxB: jax.Array, *squares: jax.Array) -> jax.Array:
    """|x| |y| (sin + (pi - angle) cos) / pi: a layer of infinitely many ReLUs."""
    cosines_AxB, lengths_AxB = _cosines(inner_AxB, squares)
    angles_AxB = jnp.arccos(cosines_AxB)
    sines_AxB = jnp.sqrt(1 - cosines_AxB**2)
    return lengths_AxB * (sines_AxB + (math.pi - angles_AxB) * cosines_AxB) / math.pi


KERNELS: dict[str, Callable[..., jax.Array]] = {
    "gaussian": _gaussian,
    "linear": _linear,
    "polynomial": _polynomial,
    "arc_cosine_0": _arc_cosine_0,
    "arc_cosine_1": _arc_cosine_1,
}
WITH_BANDWIDTH = ("gaussian", "polynomial")


def make(name: str, bandwidth: float = 1.0, degree: int = 2) -> Kernel:
    """A kernel whose parameters make sense.

    Raises:
      UserError: no such kernel, a bandwidth that is not positive, a degree below 1.
    """
    if name not in KERNELS:
        raise UserError(
            f"there is no kernel {name!r}{suggest(name, KERNELS)}; there are {', '.join(KERNELS)}"
        )
    if not (0 < bandwidth < math.inf):
        raise UserError(
            f"the kernel's bandwidth is {bandwidth}; it is a length above 0. All rows may be the "
            "same, if it is the median rule's"
        )
    if degree < 1:
        raise UserError(f"the kernel's degree is {degree}; take 1 or more")
    return Kernel(name, float(bandwidth), degree)


def median_distance(rows_NxD: np.ndarray, seed: int = 0) -> float:
    """The root of the median squared distance between different rows of a random sample.

    The sample is of 1000 rows, or all; of each pair of them, the distance is counted once.
    """
    rng = np.random.Generator(np.random.Philox(seed))
    sample = rng.permutation(len(rows_NxD))[:_SAMPLE]
    rows = rows_NxD[np.sort(sample)].astype(np.float64)
    squares = np.sum(rows**2, axis=1)
    distances = squares[:, None] + squares[None] - 2 * rows @ rows.T
    pairs = distances[np.triu_indices(len(rows), 1)]
    return math.sqrt(max(np.median(pairs), 0)) if len(pairs) else 0.0


# --- matrices -------------------------------------------------------------------------------------


class Matrix(Protocol):
    """A symmetric matrix of which any part can be asked for."""

    size: int

    def part(self, rows: Any, columns: Any, dtype: Any) -> np.ndarray:
        """The values at some rows and columns (slices or indices) to be read only."""


_turns = itertools.count()


@functools.partial(jax.jit, static_argnums=0)
def _tile(kernel: Kernel, left_AxD: jax.Array, right_BxD: jax.Array) -> jax.Array:
    return kernel(left_AxD, right_BxD)


class KernelMatrix:
    """All pairs of rows; its parts are computed when they are asked for, in the dtype asked for."""

    def __init__(self, kernel: Kernel, rows_NxD: np.ndarray) -> None:
        self.kernel, self.rows = kernel, rows_NxD
        self.size = len(rows_NxD)

    def part(self, rows: Any, columns: Any, dtype: Any) -> np.ndarray:
        return evaluate(self.kernel, self.rows[rows], self.rows[columns], dtype)


class DenseMatrix:
    """A matrix in memory."""

    def __init__(self, values_NxN: np.ndarray) -> None:
        self.values, self.size = values_NxN, len(values_NxN)

    def part(self, rows: Any, columns: Any, dtype: Any) -> np.ndarray:
        return self.values[rows][:, columns].astype(dtype)


def evaluate(
    kernel: Kernel, left_AxD: np.ndarray, right_BxD: np.ndarray, dtype: Any = np.float64
) -> np.ndarray:
    """The kernel of all pairs, computed in `dtype`: [A, B]."""
    # On CPUs a device is one core: tiles take turns. The setting of 64 bits is the thread's own.
    devices = jax.local_devices()
    device = devices[next(_turns) % len(devices)]
    with jax.enable_x64(True), jax.default_device(device):
        left, right = (jnp.asarray(a, dtype) for a in (left_AxD, right_BxD))
        return np.asarray(_tile(kernel, left, right))


def spans(size: int, tile: int = TILE) -> list[slice]:
    """0 to `size` in pieces of `tile`, the last one shorter."""
    return [slice(begin, min(begin + tile, size)) for begin in range(0, size, tile)]


def in_threads(work: Callable[[Task], Done], tasks: Iterable[Task]) -> Iterator[Done]:
    """Does tasks on all cores at once, and gives what each returns in their order."""
    with ThreadPoolExecutor(available_cores()) as threads:
        yield from threads.map(work, tasks)


def multiply(matrix: Matrix, vectors_NxY: np.ndarray, tile: int = TILE) -> np.ndarray:
    """The matrix times vectors in float64, each tile computed once: [N, Y]."""
    pieces = spans(matrix.size, tile)

    def strip(index: int) -> np.ndarray:
        rows, product_NxY = pieces[index], np.zeros_like(vectors_NxY)
        for columns in pieces[: index + 1]:
            part = matrix.part(rows, columns, np.float64)
            product_NxY[rows] += part @ vectors_NxY[columns]
            if columns != rows:
                product_NxY[columns] += part.T @ vectors_NxY[rows]
        return product_NxY

    # The longest strips first, so that no core is left with one at the end.
    total_NxY = np.zeros_like(vectors_NxY)
    for product_NxY in in_threads(strip, reversed(range(len(pieces)))):
        total_NxY += product_NxY
    return total_NxY


def cross_multiply(
    kernel: Kernel, left_AxD: np.ndarray, rows_NxD: np.ndarray, vectors_NxY: np.ndarray
) -> np.ndarray:
    """The kernel between other rows and those of the matrix, times vectors: float64[A, Y]."""

    def strip(span: slice) -> np.ndarray:
        return sum(
            evaluate(kernel, left_AxD[span], rows_NxD[columns]) @ vectors_NxY[columns]
            for columns in spans(len(rows_NxD))
        )

    return np.concatenate(list(in_threads(strip, spans(len(left_AxD)))))
