"""Lemma 1 of Zhang et al. (2017), on the line: sums of ReLUs through n given points.

Points t_1 < ... < t_n with values y_1 ... y_n. With a breakpoint b_j in [t_(j-1), t_j) for each,
c(t) = sum_j w_j max(t - b_j, 0) takes the values if A w = y, A_ij = max(t_i - b_j, 0): lower
triangular, with the diagonal t_i - b_i. Its solution needs no matrix. Let S_j = w_1 + ... + w_j be
the slope after b_j; then S_j (t_j - b_j) = y_j - y_(j-1) - S_(j-1) (b_j - t_(j-1)).

Where the breakpoints lie decides the digits. The paper's lie strictly between the points. Halfway,
S_j = 2 (y_j - y_(j-1)) / gap_j - S_(j-1): the slope of the smallest gap goes on, with changing
sign, through all later ones. At b_j = t_(j-1), the previous point, S_j = (y_j - y_(j-1)) / gap_j
depends on nothing else; that is what is built, and the first breakpoint is a step below t_1.

What is left is the rounding of the sum: of terms up to |w_j| (t_n - t_1), about 1/gap, that cancel.
A term is off by half a unit in its last place, which cannot be helped; but once a large one is in
the sum, so is every later sum. In the order of the points a large term is followed by the one that
cancels it, unless several partial sums are kept, as every fast product does. So the units are in
the order of the steeper of the two slopes that meet at their breakpoint: the terms of a steep piece
are neighbours, and the steepest come last. On 50,000 images that is off by 1.4e-6 where four
partial sums are kept, and the order of the points by 2e-5; if there is one, by 6e-7, as that is.

Deep networks cancel less. The points are split into pieces, and a piece sees them from its own
start: its units are ReLUs of max(t - start, 0) - M max(t - end, 0) less their breakpoint, with M so
large that at the first point beyond its end they are all 0, and stay it. So the terms of a piece
are small, and at other points they are not there at all: nothing cancels between pieces, and no
error adds up. A piece begins and ends halfway between two points, where nothing depends on digits.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np

from rethink_jax.schema import UserError


class Piece(NamedTuple):
    """Some units of a polyline, whose weighted sum is added to the output.

    knots: breakpoints, from the start of the piece   weights: of each unit; in a deep network one
      more than knots, since the start is the first breakpoint
    """

    knots: np.ndarray
    weights: np.ndarray


class Polyline(NamedTuple):
    """A function of one variable as a ReLU network.

    starts: of each piece; one ends where the next one starts, and the last one never. None: there
      is one hidden layer, on t itself
    pieces: one hidden layer each; a deep network has one hidden layer before them
    """

    starts: np.ndarray | None
    pieces: tuple[Piece, ...]

    @property
    def num_weights(self) -> int:
        """Starts, breakpoints and weights: two for each point, whatever the depth."""
        units = sum(len(piece.knots) + len(piece.weights) for piece in self.pieces)
        return units if self.starts is None else units + len(self.starts)

    @property
    def width(self) -> int:
        """Units of the widest hidden layer.

        With the units of a piece in a deep network are two for the sum so far, of either sign, and
        one or two for the coordinates of later pieces.
        """
        if self.starts is None:
            return len(self.pieces[0].weights)
        left = range(len(self.pieces) - 1, -1, -1)
        return max(
            len(piece.weights) + 2 * (n > 0) + min(after, 2)
            for n, (piece, after) in enumerate(zip(self.pieces, left, strict=True))
        )

    def __call__(self, t_B: np.ndarray) -> np.ndarray:
        """The plain forward pass, in the dtype of the breakpoints: [B] -> [B]."""
        t_Bx1 = t_B[:, None]
        if self.starts is None:
            (piece,) = self.pieces
            return np.maximum(t_Bx1 - piece.knots, 0) @ piece.weights
        total_B = np.zeros_like(t_B)
        from_start_Bx1 = np.maximum(t_Bx1 - self.starts[0], 0)
        for n, piece in enumerate(self.pieces):
            own_Bx1 = from_start_Bx1
            if n + 1 < len(self.pieces):
                from_start_Bx1 = np.maximum(t_Bx1 - self.starts[n + 1], 0)
                own_Bx1 = own_Bx1 - cut_off(t_B.dtype) * from_start_Bx1
            units = np.concatenate([own_Bx1, own_Bx1 - piece.knots], axis=1)
            total_B = total_B + np.maximum(units, 0) @ piece.weights
        return total_B


def cut_off(dtype: Any) -> np.floating:
    """M: more than the steps of the smallest gap in the longest piece, as far as a dtype has any.

    Fixed, and so no weight that depends on the points.
    """
    return np.dtype(dtype).type(2.0 ** (np.finfo(dtype).nmant + 2))


def build(t_N: np.ndarray, y_N: np.ndarray, depth: int = 2) -> Polyline:
    """The polyline through the points, in the dtype of t_N; it is 0 up to a step below t_1.

    Args:
      t_N: float, strictly ascending   y_N: float64
      depth: layers with weights, 2 to N + 2. Of more than 2 there are depth - 2 pieces, of numbers
        of points that differ by at most one.
    """
    start = t_N[0] - t_N.dtype.type(_step_before(t_N))
    if depth == 2:
        knots = np.append(start, t_N[:-1])
        weights, order = _weights(np.append(knots, t_N[-1]), np.append(0.0, y_N))
        return Polyline(None, (Piece(knots[order], weights[order]),))
    split_t, split_y = np.array_split(t_N, depth - 2), np.array_split(y_N, depth - 2)
    starts, pieces = [start], []
    for before, after in itertools.pairwise(split_t):
        starts.append(_end(starts[-1], before[-1], after[0]))
    for n, (t, y) in enumerate(zip(split_t, split_y, strict=True)):
        own = t - starts[n]
        weights, order = _weights(np.append(own[:1] * 0, own), np.append(0.0, y))
        # The first breakpoint is the start.
        order = order[order > 0]
        pieces.append(Piece(own[order - 1], np.append(weights[0], weights[order])))
    return Polyline(np.array(starts), tuple(pieces))


def _end(start: np.floating, before: np.floating, after: np.floating) -> np.floating:
    """Where a piece ends, between its last point and the next one: halfway, if there is a number.

    Raises:
      UserError: the points are too near one another for the length of the piece.
    """
    halfway = before + (after - before) / 2
    end = halfway if halfway < after else before
    if cut_off(start.dtype) * (after - end) < after - start:
        raise UserError(
            f"two points on the line, at {before:g}, are too near one another for a piece of a "
            "deep network to end between them; take another depth, or 2"
        )
    return end


def _weights(knots_and_end: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Changes of slope at each knot, in the dtype of the knots; and the order to add them in."""
    slopes = np.append(0.0, np.diff(values) / np.diff(knots_and_end.astype(np.float64)))
    steeper = np.maximum(np.abs(slopes[1:]), np.abs(slopes[:-1]))
    return np.diff(slopes).astype(knots_and_end.dtype), np.argsort(steeper, kind="stable")


def _step_before(t_N: np.ndarray) -> float:
    """A power of two, about the mean gap: the first breakpoint keeps few digits."""
    reach = float(t_N[-1] - t_N[0]) or max(abs(float(t_N[0])), 1.0)
    return 2.0 ** np.floor(np.log2(reach / max(len(t_N) - 1, 32)))


class Conditioning(NamedTuple):
    """Of the matrix A of a polyline with one hidden layer.

    smallest_gap: its smallest eigenvalue, min_i (t_i - b_i)
    relative_gap: that by the range of the points
    condition: its condition number in the infinity norm
    """

    smallest_gap: float
    relative_gap: float
    condition: float


def conditioning(t_N: np.ndarray) -> Conditioning:
    """In O(n), for ascending points: A = C diag(gaps) C, C the lower triangular matrix of ones.

    So the rows of A grow downwards, and the inverse of A, of first differences, has three values a
    row: 1/g_i, -1/g_i - 1/g_(i-1) and 1/g_(i-1).
    """
    knots = np.append(t_N[0] - t_N.dtype.type(_step_before(t_N)), t_N).astype(np.float64)
    gaps = np.diff(knots)
    inverse = 1 / gaps
    rows = 2 * inverse
    rows[0] = inverse[0]
    rows[1:] += 2 * inverse[:-1]
    rows[1:2] -= inverse[0]
    norm = np.sum(knots[-1] - knots[:-1])
    reach = knots[-1] - knots[1] or gaps[0]
    return Conditioning(gaps.min(), gaps.min() / reach, float(norm * rows.max()))
