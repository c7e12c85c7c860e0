"""Overtraining of a linear student by gradient descent: theory and simulation.

The teacher is y = x.v + e in N dimensions, the student f = x.w. Inputs have independent normal
entries of variance 1/N, weights v of the teacher variance 1, noise e variance 1 / snr, and the
student starts at normal weights of deviation `start`. There are P = alpha N examples, and
dw/dt = X^T (y - X w). Errors are squared, of noisy labels: E = |w - v|^2 / N + 1/snr.

In the eigenvectors of X^T X, with the noise n_i of variance 1/snr, a mode is left(t) = exp(-x t) of
its way from the end:

  w_i - v_i = left (w_i(0) - v_i) + (1 - left) n_i / sqrt(x),   and for x = 0   w_i(0) - v_i

so its mean square is left^2 (1 + start^2) + (1 - left)^2 / (snr x), and the sum over modes becomes
a mean over the Marchenko-Pastur law. The question is that of Advani and Saxe (2017, arXiv
1710.03667); the setting as written here and all formulas are derived, not quoted from them.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar

from rethink_jax.schema import UserError
from rethink_jax.theory import gradient_descent, marchenko_pastur

# Searched for the best time. At alpha = 1 the law's quadrature is good to 1e-4 at the last.
_LOG_TIMES = (-8.0, math.log(1e6))


@dataclasses.dataclass(frozen=True)
class Setting:
    """alpha: examples by dimensions   snr: infinite without noise   start: deviation of weights"""

    alpha: float
    snr: float
    start: float = 0.0

    def __post_init__(self) -> None:
        for what, value, good in (
            ("alpha", self.alpha, 0 < self.alpha < math.inf),
            ("snr", self.snr, self.snr > 0),
            ("start", self.start, 0 <= self.start < math.inf),
        ):
            if not good:
                least = "0 or more" if what == "start" else "more than 0"
                raise UserError(f"{what} is {value}; take {least}")

    @property
    def noise(self) -> float:
        """The variance of the labels' noise."""
        return 1 / self.snr

    @property
    def distance(self) -> float:
        """The mean square of a weight's distance from the teacher's at the start."""
        return 1 + self.start**2


# --- theory ---------------------------------------------------------------------------------------


def _log_left(times: np.ndarray | float, learning_rate: float, x_Q: np.ndarray) -> np.ndarray:
    """The logarithm of what is left of a mode's way: [..., Q]."""
    times = np.asarray(times, np.float64)[..., None]
    if not learning_rate:
        return -times * x_Q
    if learning_rate * x_Q.max() >= 1:
        raise UserError(
            f"the learning rate is {learning_rate}; take less than 1 over the largest eigenvalue, "
            f"{x_Q.max():.3g}"
        )
    return times / learning_rate * np.log1p(-learning_rate * x_Q)


def test_error(
    setting: Setting, times: np.ndarray | float, learning_rate: float = 0.0
) -> np.ndarray:
    """At times of the flow, or of gradient descent after times / learning_rate steps: [...].

    learning_rate: below 1 over the largest eigenvalue; a mode is then (1 - learning_rate x)^steps
    """
    frozen = marchenko_pastur.law(setting.alpha).zero * setting.distance
    return setting.noise + frozen + _moving(setting, times, learning_rate)


def _moving(setting: Setting, times: np.ndarray | float, learning_rate: float) -> np.ndarray:
    """The part of the test error that changes."""

    def squares(x_Q: np.ndarray) -> np.ndarray:
        log_left = _log_left(times, learning_rate, x_Q)
        fitted_noise = setting.noise * np.expm1(log_left) ** 2 / x_Q
        return setting.distance * np.exp(2 * log_left) + fitted_noise

    return marchenko_pastur.law(setting.alpha).mean(squares)


def train_error(
    setting: Setting, times: np.ndarray | float, learning_rate: float = 0.0
) -> np.ndarray:
    """The mean square of y - f over the examples, at the times of `test_error`.

    A mode has the residual left (sqrt(x) (v_i - w_i(0)) + n_i); what is left of P - N dimensions of
    the labels for alpha > 1 is noise that no weights fit.
    """
    law = marchenko_pastur.law(setting.alpha)

    def squares(x_Q: np.ndarray) -> np.ndarray:
        left = np.exp(2 * _log_left(times, learning_rate, x_Q))
        return left * (x_Q * setting.distance + setting.noise)

    beyond = max(1 - 1 / setting.alpha, 0.0)
    return law.mean(squares) / setting.alpha + beyond * setting.noise


def final_test_error(setting: Setting) -> float:
    """After infinite time: of the solution that is closest to the start, infinite at alpha = 1.

    The mean of 1/x is alpha / (1 - alpha) below alpha = 1 and 1 / (alpha - 1) above.
    """
    alpha, noise = setting.alpha, setting.noise
    frozen = max(1 - alpha, 0.0) * setting.distance
    if alpha == 1:
        return math.inf if noise else frozen
    return frozen + noise * (1 + (alpha / (1 - alpha) if alpha < 1 else 1 / (alpha - 1)))


def best_ridge(setting: Setting) -> float:
    """Of |y - X w|^2 + ridge |w|^2 the best for every mode at once: 1 / snr."""
    return setting.noise


def ridge_test_error(setting: Setting, ridge: float) -> float:
    """Of the ridge regression, which has no start.

    A mode has the mean square (noise x + ridge^2) / (x + ridge)^2.
    """
    law = marchenko_pastur.law(setting.alpha)
    off = law.mean(lambda x_Q: (setting.noise * x_Q + ridge**2) / (x_Q + ridge) ** 2)
    # Where x = 0 the ridge sets the weight to 0, whose distance from the teacher's is 1.
    return setting.noise + law.zero + float(off)


def best_time(setting: Setting, learning_rate: float = 0.0) -> float:
    """When the test error is least, up to 1e6; infinite without noise.

    One mode has its own at log(1 + x (1 + start^2) snr) / x.
    """
    if not setting.noise:
        return math.inf
    grid = np.linspace(*_LOG_TIMES, 80)
    # Without what does not change, beside which the least may be lost in rounding.
    errors = _moving(setting, np.exp(grid), learning_rate)
    around = int(np.clip(np.argmin(errors), 1, len(grid) - 2))
    found = minimize_scalar(
        lambda log: float(_moving(setting, math.exp(log), learning_rate)),
        bounds=(grid[around - 1], grid[around + 1]),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return math.exp(found.x)


# --- simulation -----------------------------------------------------------------------------------


class Drawn(NamedTuple):
    """One data set, in float64. direction_Nx1: of the start, its entries of deviation 1"""

    setting: Setting
    rows_PxN: np.ndarray
    labels_Px1: np.ndarray
    teacher_Nx1: np.ndarray
    direction_Nx1: np.ndarray

    @property
    def start_Nx1(self) -> np.ndarray:
        return self.setting.start * self.direction_Nx1

    def test_error(self, weights_xNx1: np.ndarray) -> np.ndarray:
        """Over all inputs, not a sample: [..., N, 1] to [...]."""
        off = np.mean((weights_xNx1 - self.teacher_Nx1) ** 2, axis=(-2, -1))
        return off + self.setting.noise

    def train_error(self, weights_xNx1: np.ndarray) -> np.ndarray:
        return np.mean((self.labels_Px1 - self.rows_PxN @ weights_xNx1) ** 2, axis=(-2, -1))


def draw(setting: Setting, dimensions: int, seed: int) -> Drawn:
    """round(alpha N) examples. Under one seed only sizes change: inputs with alpha, noise with snr.

    Raises:
      UserError: no example.
    """
    count = round(setting.alpha * dimensions)
    if count < 1:
        raise UserError(
            f"alpha {setting.alpha} of {dimensions} dimensions is no example; take more dimensions"
        )
    generators = [np.random.Generator(np.random.Philox(key=[seed, i])) for i in range(4)]
    rows, noise, teacher, direction = (
        generator.normal(size=size)
        for generator, size in zip(
            generators,
            ((count, dimensions), (count, 1), (dimensions, 1), (dimensions, 1)),
            strict=True,
        )
    )
    rows /= math.sqrt(dimensions)
    labels = rows @ teacher + math.sqrt(setting.noise) * noise
    return Drawn(setting, rows, labels, teacher, direction)


def learning_rate(alpha: float, step: float) -> float:
    """`step` over the law's largest eigenvalue."""
    return step / marchenko_pastur.edges(alpha)[1]


def descend(drawn: Drawn, steps_C: np.ndarray, rate: float) -> np.ndarray:
    """The weights after so many steps of w <- w + rate X^T (y - X w): float64[C, N, 1]."""
    # `gradient_descent` has means over the rows for sums.
    return gradient_descent.descend(
        drawn.rows_PxN, drawn.labels_Px1, drawn.start_Nx1, steps_C, rate * len(drawn.rows_PxN)
    )


def closest(drawn: Drawn) -> np.ndarray:
    """Where gradient descent ends: the best fit that is closest to the start, by least squares."""
    start = drawn.start_Nx1
    return start + np.linalg.lstsq(drawn.rows_PxN, drawn.labels_Px1 - drawn.rows_PxN @ start)[0]


def ridge_weights(drawn: Drawn, ridge: float) -> np.ndarray:
    """float64[N, 1]"""
    rows = drawn.rows_PxN
    return np.linalg.solve(rows.T @ rows + ridge * np.eye(rows.shape[1]), rows.T @ drawn.labels_Px1)
