"""Gradient descent on a linear model with the squared loss, and where it must end.

The loss of a batch of B rows is |X_b w - y_b|^2 / (2 B), its gradient X_b^T (X_b w - y_b) / B. So
every gradient is a sum of rows of the data, and the component of w outside their span never moves;
where the rows can take any values, the limit is the interpolating w that is closest to the start,
and from zero the one of least norm: pinv(X) y. Source: Zhang et al. 2017, Section 5.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rethink_jax import streams
from rethink_jax.schema import UserError
from rethink_jax.streams import stream

# --- where it must end ----------------------------------------------------------------------------


class Geometry(NamedTuple):
    """Rows by their singular values, in float64.

    pseudo_inverse_DxN: of the rows   frozen_DxK: an orthonormal basis of what no row has a part in
    eigenvalues_R: of X^T X / N, those that are not 0, from the largest
    """

    pseudo_inverse_DxN: np.ndarray
    frozen_DxK: np.ndarray
    eigenvalues_R: np.ndarray

    @property
    def condition(self) -> float:
        """The condition number of X^T X on the span of the rows: that of X, squared."""
        return float(self.eigenvalues_R[0] / self.eigenvalues_R[-1])


def geometry(rows_NxD: np.ndarray) -> Geometry:
    """Singular values below max(N, D) * 2^-52 of the largest one count as 0.

    Raises:
      UserError: the rows are all 0.
    """
    left_NxN, singular, right_DxD = np.linalg.svd(rows_NxD, full_matrices=True)
    cutoff = singular[0] * max(rows_NxD.shape) * np.finfo(np.float64).eps
    rank = int(np.sum(singular > cutoff))
    if not rank:
        raise UserError("the rows are all 0; there is nothing to fit")
    kept = singular[:rank]
    pseudo_inverse_DxN = (right_DxD[:rank].T / kept) @ left_NxN[:, :rank].T
    return Geometry(pseudo_inverse_DxN, right_DxD[rank:].T, kept**2 / len(rows_NxD))


def limit(
    found: Geometry, rows_NxD: np.ndarray, targets_NxY: np.ndarray, start_DxY: np.ndarray
) -> np.ndarray:
    """Of all w that fit the targets best, the one that is closest to the start: float64[D, Y]."""
    return start_DxY + found.pseudo_inverse_DxN @ (targets_NxY - rows_NxD @ start_DxY)


# --- how fast -------------------------------------------------------------------------------------


def largest_curvature(rows_NxD: np.ndarray, batch_size: int) -> float:
    """A bound on the largest eigenvalue of X_b^T X_b / B over all batches of B different rows.

    It is that of the B x B matrix of inner products over B, so at most the largest row of sums of
    absolute values, and over all batches: the B largest of a row of all inner products, one of
    them the row's own.
    """
    inner_NxN = np.abs(rows_NxD @ rows_NxD.T)
    own_N = np.diag(inner_NxN).copy()
    np.fill_diagonal(inner_NxN, 0)
    others_NxB = -np.partition(-inner_NxN, batch_size - 1, axis=1)[:, : batch_size - 1]
    return float(np.max(own_N + others_NxB.sum(axis=1)) / batch_size)


def rate(learning_rate: float, momentum: float, curvature: float) -> float:
    """What is left, after a step, of a mode of this eigenvalue, for steps small beside 1 over it.

    Without momentum 1 - eta lambda; with it the larger root of z^2 - (1 + m - eta lambda) z + m,
    or its absolute value. In mini-batches it is the rate of the mean, to first order in eta.
    """
    half = (1 + momentum - learning_rate * curvature) / 2
    squared = half**2 - momentum
    return abs(half) + math.sqrt(squared) if squared > 0 else math.sqrt(momentum)


# --- the descent ----------------------------------------------------------------------------------


def descend(
    rows_NxD: np.ndarray,
    targets_NxY: np.ndarray,
    start_DxY: np.ndarray,
    epochs: Sequence[int],
    learning_rate: float,
    momentum: float = 0.0,
    batch_size: int | None = None,
    seed: int = 0,
) -> np.ndarray:
    """The weights after so many epochs: float64[C, D, Y].

    Args:
      epochs: C numbers that do not fall; an epoch takes each row once, in an order of its own, and
        leaves out what does not fill a batch
      momentum: of w <- w - eta v, v <- m v + gradient
      batch_size: None: all rows, then an epoch is one step of plain gradient descent

    Raises:
      UserError: a batch is empty or larger than the data.
    """
    batch_size = len(rows_NxD) if batch_size is None else batch_size
    if not 1 <= batch_size <= len(rows_NxD):
        raise UserError(
            f"batch_size is {batch_size}; take 1 to {len(rows_NxD)}, the rows there are"
        )
    with jax.enable_x64(True):
        arrays = (jnp.asarray(x, jnp.float64) for x in (rows_NxD, targets_NxY, start_DxY))
        weights_CxDxY = _descend(
            *arrays,
            jnp.asarray(epochs, jnp.int64),
            jnp.float64(learning_rate),
            jnp.float64(momentum),
            seed,
            batch_size,
        )
        return np.asarray(weights_CxDxY)


@functools.partial(jax.jit, static_argnames=("batch_size",))
def _descend(
    rows_NxD: jax.Array,
    targets_NxY: jax.Array,
    start_DxY: jax.Array,
    epochs_C: jax.Array,
    learning_rate: jax.Array,
    momentum: jax.Array,
    seed: jax.Array,
    batch_size: int,
) -> jax.Array:
    total = len(rows_NxD)
    steps = total // batch_size

    def step(carry: tuple, chosen_B: jax.Array | None) -> tuple[tuple, None]:
        weights, velocity = carry
        rows = rows_NxD if chosen_B is None else rows_NxD[chosen_B]
        targets = targets_NxY if chosen_B is None else targets_NxY[chosen_B]
        gradient = rows.T @ (rows @ weights - targets) / batch_size
        velocity = momentum * velocity + gradient
        return (weights - learning_rate * velocity, velocity), None

    def epoch(number: jax.Array, carry: tuple) -> tuple:
        if batch_size == total:
            return step(carry, None)[0]
        order_N = jax.random.permutation(stream(seed, streams.ORDER, number), total)
        return jax.lax.scan(step, carry, order_N[: steps * batch_size].reshape(steps, -1))[0]

    def part(carry: tuple, bounds: jax.Array) -> tuple[tuple, jax.Array]:
        carry = jax.lax.fori_loop(bounds[0], bounds[1], epoch, carry)
        return carry, carry[0]

    begins_C = jnp.concatenate([jnp.zeros_like(epochs_C[:1]), epochs_C[:-1]])
    start = (start_DxY, jnp.zeros_like(start_DxY))
    return jax.lax.scan(part, start, jnp.stack([begins_C, epochs_C], axis=1))[1]
