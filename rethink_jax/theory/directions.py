"""From images to points on a line: which direction, and what its inner products are worth.

The network sees an image x only as t = <a, x>. Where two neighbours have values y and y', an error
e of t makes an error of e |y - y'| / (their gap), and of 50,000 points on a line the smallest gap
is about 1e-10 of their range: a sum of 3,072 products, rounded in another order, is off by as much
as 1e-4 of such a gap. So

* where the images are whole numbers, as grey levels are, the direction is rounded to a grid on
  which every partial sum is exact. Then t is the same in any order of summation, by any library, on
  any device, and gaps are exact, too. It costs nothing: float64 leaves 33 bits for each weight.
* the direction is the best of several by the number of distinct points, then by the smallest gap.
  All of them lean towards the direction along which the images vary most (else most of the range
  is tails): among 50,000 images of CIFAR-10 that has 20 times fewer ties in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from rethink_jax.schema import UserError

CANDIDATES = 32
# Of the direction of largest variance, beside a standard normal in every coordinate.
_LEANING = 4.0
_SAMPLE = 1000
_POWER_STEPS = 10
_ROWS_AT_ONCE = 1000
# A little less than the mantissa holds: the first breakpoint lies a step below the smallest point.
_USED = 31 / 32
# Weights of fewer bits would make ties of their own.
_FEWEST_STEPS = 16


def blocks(rows_NxD: np.ndarray, dtype: Any) -> Iterator[tuple[slice, np.ndarray]]:
    """The images in parts, as numbers of the dtype: memory does not grow with their number."""
    for start in range(0, len(rows_NxD), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        yield part, rows_NxD[part].astype(dtype)


def project(rows_NxD: np.ndarray, weights_Dx: np.ndarray) -> np.ndarray:
    """Inner products in the weights' dtype: [N] of one direction [D], [N, K] of several [D, K]."""
    products = np.empty((len(rows_NxD), *weights_Dx.shape[1:]), weights_Dx.dtype)
    for part, block in blocks(rows_NxD, weights_Dx.dtype):
        products[part] = block @ weights_Dx
    return products


def grid_spread(rows_NxD: np.ndarray) -> float | None:
    """Largest less smallest value, 0 included, if all values are whole numbers; else None."""
    if rows_NxD.dtype == bool:
        return 1.0
    low, high = 0.0, 0.0
    for _, block in blocks(rows_NxD, np.float64):
        if rows_NxD.dtype.kind not in "iu" and not np.array_equal(block, np.rint(block)):
            return None
        low, high = min(low, block.min()), max(high, block.max())
    return high - low


def on_grid(weights_DxK: np.ndarray, spread: float | None, dtype: Any) -> np.ndarray:
    """The directions, rounded so that their sums over whole numbers are exact in the dtype.

    spread: of the images, `grid_spread`. As they are, if it is None or leaves too few bits.
    """
    steps = 2.0 ** (np.finfo(dtype).nmant + 1) * _USED
    if not spread or steps < _FEWEST_STEPS * spread * len(weights_DxK):
        return weights_DxK.astype(dtype)
    # Towards zero, so that the sum of |weight| times spread stays within the mantissa.
    whole = np.trunc(weights_DxK * (steps / (spread * np.abs(weights_DxK).sum(0))))
    # A power of two changes no digit.
    return (whole * 2.0 ** -np.ceil(np.log2(np.abs(whole).max(0)))).astype(dtype)


def candidates(
    rows_NxD: np.ndarray, spread: float | None, rng: np.random.Generator, dtype: Any
) -> np.ndarray:
    """Directions to choose from, in the dtype: [D, CANDIDATES]."""
    count, values = rows_NxD.shape
    sample = rows_NxD[np.linspace(0, count - 1, min(count, _SAMPLE)).astype(int)].astype(np.float64)
    # Divided by the largest value, so that squares do not overflow.
    sample /= max(np.abs(sample).max(), np.finfo(np.float64).tiny)
    sample -= sample.mean(0)
    leading = rng.normal(size=values)
    for _ in range(_POWER_STEPS):
        leading = sample.T @ (sample @ leading)
        norm = np.linalg.norm(leading)
        if norm == 0:  # All the same, or nearly so.
            break
        leading /= norm
    drawn = rng.normal(size=(values, CANDIDATES))
    return on_grid(drawn + _LEANING * np.sqrt(values) * leading[:, None], spread, dtype)


def most_distinct(products_NxK: np.ndarray) -> int:
    """Which direction has most distinct points; of those, the largest smallest gap.

    The gap counts relative to the range of the points.
    """
    products_NxK = np.sort(products_NxK, axis=0)
    gaps = np.diff(products_NxK, axis=0)
    reach = np.maximum(products_NxK[-1] - products_NxK[0], np.finfo(gaps.dtype).tiny)
    smallest = np.min(gaps, axis=0, initial=np.inf, where=gaps > 0) / reach
    return int(np.lexsort((smallest, (gaps > 0).sum(0)))[-1])


def alone(t_N: np.ndarray) -> np.ndarray:
    """Which points tie with no other: bool[N]."""
    _, inverse, counts = np.unique(t_N, return_inverse=True, return_counts=True)
    return counts[inverse] == 1


def distinct(rows_NxD: np.ndarray, values_N: np.ndarray) -> np.ndarray:
    """The indices of the images less repetitions: the first of each kind, in order.

    Raises:
      UserError: equal images have different values.
    """
    seen: dict[int, list[int]] = {}
    kept = []
    for index, row in enumerate(rows_NxD):
        # Adding 0 makes -0.0 the 0.0 that it equals.
        alike = seen.setdefault(hash((row + row.dtype.type(0)).tobytes()), [])
        same = next((other for other in alike if np.array_equal(rows_NxD[other], row)), None)
        if same is None:
            alike.append(index)
            kept.append(index)
        elif values_N[same] != values_N[index]:
            raise UserError(
                f"images {same} and {index} are equal, but their values are "
                f"{values_N[same]:g} and {values_N[index]:g}; a function has one value for an "
                "image. Leave one of them out, or give both the same value"
            )
    return np.array(kept)
