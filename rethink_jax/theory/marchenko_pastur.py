"""The Marchenko-Pastur law: eigenvalues of X^T X for a large X of independent entries.

X has P rows and N columns, of variance 1/N, and alpha = P / N stays as both grow. The law has the
density sqrt((b - x)(x - a)) / (2 pi x) between a = (1 - sqrt(alpha))^2 and b = (1 + sqrt(alpha))^2,
and, for alpha < 1, a point mass of 1 - alpha at 0. Source: Marchenko and Pastur 1967.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from rethink_jax.schema import UserError

POINTS = 4000


def edges(alpha: float) -> tuple[float, float]:
    """The smallest and the largest eigenvalue beside those that are 0."""
    _check(alpha)
    return (1 - math.sqrt(alpha)) ** 2, (1 + math.sqrt(alpha)) ** 2


def density(alpha: float, x: np.ndarray) -> np.ndarray:
    """The density at x > 0: it integrates to min(1, alpha)."""
    low, high = edges(alpha)
    inside = np.maximum((high - x) * (x - low), 0)
    return np.sqrt(inside) / (2 * math.pi * np.where(x > 0, x, np.inf))


class Law(NamedTuple):
    """The law for sums. eigenvalues_Q, weights_Q: of the density   zero: the mass at 0"""

    eigenvalues_Q: np.ndarray
    weights_Q: np.ndarray
    zero: float

    def mean(self, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """The mean over all eigenvalues but those that are 0: [..., Q] to [...]."""
        return function(self.eigenvalues_Q) @ self.weights_Q


def law(alpha: float, points: int = POINTS) -> Law:
    """A quadrature whose error falls exponentially with its points for smooth functions.

    With x = 1 + alpha + 2 sqrt(alpha) cos(theta), the density's square root at both edges becomes
    a sine and dx another: sin(theta)^2 / x, which is smooth also at alpha = 1, where the density is
    not bounded. Of a function that is periodic and even in theta, equal steps (midpoints, which
    stay off x = 0) give such a sum.
    """
    _check(alpha)
    half_width = 2 * math.sqrt(alpha)
    theta_Q = math.pi * (np.arange(points) + 0.5) / points
    # 1 + alpha + half_width cos(theta), without cancellation where it is near 0.
    low = (1 - math.sqrt(alpha)) ** 2
    eigenvalues_Q = low + 2 * half_width * np.cos(theta_Q / 2) ** 2
    weights_Q = (half_width * np.sin(theta_Q)) ** 2 / (2 * math.pi * eigenvalues_Q)
    return Law(eigenvalues_Q, weights_Q * math.pi / points, max(1 - alpha, 0.0))


def _check(alpha: float) -> None:
    if not 0 < alpha < math.inf:
        raise UserError(f"alpha, rows by columns, is {alpha}; take more than 0")
