"""Theorem 1 of Zhang et al. (2017) as a program: networks of 2n+d weights that fit any labels.

c(x) = sum_j w_j max(<a, x> - b_j, 0), with a in R^d and b, w in R^n, takes any given values on n
points in d dimensions. How a is chosen, and why inner products of whole numbers are exact, stands
in `directions`; how b and w are, and what rounding does to the sum, in `polylines`. Corollary 1, of
depth k and width O(n/k), has as many weights here: 2n+d, of every depth.

In float64 the error that is left on n points is about 1e-16 times the sum of |w_j| (t_n - b_j),
which grows as n^2 log n: 2e-6 for 50,000 images of CIFAR-10 with labels 0 to 9, where 0.5 would be
too much. With depth it falls, to 1e-7 at depth 8 and 5e-9 at depth 64.

In float32 a network with one hidden layer of that size is off by hundreds, and 160 of the points
tie. Both can be mended: pieces of a deep network keep the sums short, and further directions tell
apart what ties in one. All 50,000 labels are right from depth 150 on. See `memorize`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from rethink_jax import models
from rethink_jax.schema import UserError
from rethink_jax.theory import directions, memorizer_layers, polylines
from rethink_jax.theory.memorizer_layers import MemorizerNetwork, Part
from rethink_jax.theory.polylines import Conditioning

# Outputs of hidden units that the forward pass holds at once: those of some images.
_UNITS_AT_ONCE = 2**18


@dataclasses.dataclass(frozen=True)
class Memorizer:
    """A network with given values on given points.

    parts: their sum is the network   levels_Y: the values of the classes, or None
    image_shape: of one image, as it was given   num_points: n, distinct images
    dtype: of the weights, and of the arithmetic that they are made for
    conditioning: of the triangular system of the first part, as of one hidden layer
    """

    parts: tuple[Part, ...]
    levels_Y: np.ndarray | None
    image_shape: tuple[int, ...]
    num_points: int
    depth: int
    dtype: np.dtype
    conditioning: Conditioning

    @property
    def num_weights(self) -> int:
        """2n+d with one direction."""
        return sum(len(part.direction_D) + part.polyline.num_weights for part in self.parts)

    @property
    def width(self) -> int:
        """Units of the widest hidden layer, those that pass values on included (`as_layers`)."""
        return sum(part.polyline.width for part in self.parts)

    def values(self, images: Any, dtype: Any = None) -> np.ndarray:
        """c(x) of each image, by the plain forward pass: [B].

        images: [B, ...], as those that were memorized   dtype: of the arithmetic, if not its own
        """
        rows_BxD = np.asarray(images).reshape(len(images), -1)
        dtype = np.dtype(dtype or self.dtype)
        values_B = np.zeros(len(rows_BxD), dtype)
        for part in self.parts:
            polyline = jax.tree.map(lambda leaf: leaf.astype(dtype), part.polyline)
            t_B = directions.project(rows_BxD, part.direction_D.astype(dtype))
            widest = max(len(piece.weights) for piece in polyline.pieces)
            step = max(1, _UNITS_AT_ONCE // widest)
            for start in range(0, len(t_B), step):
                values_B[start : start + step] += polyline(t_B[start : start + step])
        return values_B

    def classes(self, images: Any) -> np.ndarray:
        """The class with the nearest value: int[B].

        Raises:
          UserError: the network is of a function, not of classes.
        """
        if self.levels_Y is None:
            raise UserError("a memorizer without levels has no classes; give `memorize` the levels")
        return np.argmin(np.abs(self.values(images)[:, None] - self.levels_Y), axis=1)

    def as_layers(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The network as (kernel[in, out], bias[out]) of fully connected layers, ReLU between.

        There are `depth` of them. Most of their weights are 0, 1 or -1, or equal to one another.

        Raises:
          UserError: the network has several directions.
        """
        if len(self.parts) > 1:
            raise UserError(
                f"the network has {len(self.parts)} directions, each with layers of its own; "
                "as_layers needs one direction"
            )
        return memorizer_layers.dense(self.parts[0])

    # --- as a flax network ------------------------------------------------------------------------

    @functools.cached_property
    def module(self) -> MemorizerNetwork:
        """Its parameters are the `num_weights` weights."""
        polylines_ = [part.polyline for part in self.parts]
        return MemorizerNetwork(
            sizes=tuple(tuple(len(piece.weights) for piece in p.pieces) for p in polylines_),
            deep=self.depth > 2,
            levels=None if self.levels_Y is None else tuple(self.levels_Y.tolist()),
            dtype=self.dtype,
        )

    @property
    def model(self) -> models.Model:
        """For `measures.compute` and all else that takes a network with its variables.

        Its logits are y c(x) - y^2 / 2 for the values y of the classes: what differs between
        classes in -(c(x) - y)^2 / 2. So the class is that of the nearest value, and the margin of
        two neighbours is how far c(x) is on the right side of the middle between them, times the
        distance of their values. Without levels, the one output is c(x).
        """

        def apply(
            variables: models.Variables, images_BxHxWxC: jax.Array, train: bool, *_: Any
        ) -> models.Applied:
            del train
            self._check_precision()
            return models.Applied(self.module.apply(variables, images_BxHxWxC), {}, ())

        return models.Model(self.module.init, apply)

    @property
    def variables(self) -> models.Variables:
        """The weights, as `model` takes them."""
        parts = enumerate(self.parts)
        return {"params": {f"part_{n}": memorizer_layers.params(part) for n, part in parts}}

    def _check_precision(self) -> None:
        if jax.dtypes.canonicalize_dtype(self.dtype) != self.dtype:
            raise UserError(
                "the memorizer's weights are float64, which jax would round to float32; run it "
                "within jax.enable_x64(True)"
            )


def memorize(
    images: Any,
    values: Any,
    *,
    levels: Sequence[float] | None = None,
    depth: int = 2,
    dtype: Any = np.float64,
    max_directions: int = 1,
    seed: int = 0,
) -> Memorizer:
    """A network of 2n+d weights that takes given values on n distinct points in d dimensions.

    Takes O(n d + n log n) time, and O(n) memory beyond the images.

    Depth 2 is Theorem 1: one hidden layer of n units, whose weights are the d of a, the n of b and
    the n of w; a, of which every unit has a copy, counts once. Depth k above 2 is Corollary 1:
    k - 2 pieces of the points, one hidden layer each, of width at most ceil(n / (k-2)) + 4. It has
    no more weights: the starts of pieces and their breakpoints are n numbers, as b. Units that pass
    a value on have fixed weights of 1 and -1.

    Args:
      images: numbers [N, ...]; whole numbers, as grey levels, make inner products exact. Equal
        images with equal values count once.
      values: real [N]: labels 0 to Y-1, or -1 and 1, or any
      levels: the values of the classes in order, to get logits; None: the output is c(x)
      depth: layers with weights, 2 to n + 2
      dtype: float64 or float32, of the weights and of the arithmetic they are made for. In float32
        labels need pieces of at most some hundred points, that is n / (depth-2), and images of
        whole numbers.
      max_directions: how many directions a may be used. With more than 1, points that tie along
        one are told apart along the next: 160 of 50,000 images in float32. Each adds its d weights
        and two for each of those points and their neighbours.
      seed: of the directions that are tried

    Raises:
      UserError: wrong shapes, NaN or infinite numbers, equal images with different values, points
        that are too near one another for the dtype, depth out of range.

    Source: Zhang et al. 2017, Theorem 1, Lemma 1 and Corollary 1 (Appendix C). DEVIATION: a
    breakpoint may equal the point before it; in Corollary 1 the units of a piece are cut off by
    what they take in, where the paper has a multiplexer, and O(n+d) weights.
    """
    rows_NxD, values_N, image_shape = _checked(images, values)
    levels_Y = None if levels is None else _checked_levels(levels, values_N)
    dtype = np.dtype(dtype)
    if dtype not in (np.float32, np.float64):
        raise UserError(f"dtype is {dtype}; a memorizer is made in float64 or float32")
    kept = directions.distinct(rows_NxD, values_N)
    if max_directions < 1:
        raise UserError(f"max_directions is {max_directions}; it must be at least 1")
    if not 2 <= depth <= len(kept) + 2:
        raise UserError(
            f"depth is {depth}; on {len(kept)} distinct points it can be 2 to {len(kept) + 2}"
        )
    lines = _Lines(rows_NxD, kept, dtype, seed)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        parts, conditioning = _parts(lines, values_N[kept], depth, max_directions)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(parts)):
        raise UserError(
            f"the weights overflow {dtype}: two points are too near for how much their values "
            "differ; scale the values down, or take float64"
        )
    return Memorizer(parts, levels_Y, image_shape, len(kept), depth, dtype, conditioning)


# --- what is given --------------------------------------------------------------------------------


def _checked(images: Any, values: Any) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Images as rows [N, D], values as float64[N], and the shape of one image."""
    images, values = np.asarray(images), np.asarray(values)
    for name, array in (("images", images), ("values", values)):
        if array.dtype.kind not in "biuf":
            raise UserError(f"{name} are of {array.dtype}; they must be real numbers")
    if images.ndim < 2 or not images.size:
        raise UserError(
            f"images are of shape {images.shape}; they must be [N, ...] with at least one image "
            "of at least one value. Give points on a line as [N, 1]"
        )
    if values.shape != (len(images),):
        raise UserError(
            f"values are of shape {values.shape}, and there are {len(images)} images; give one "
            f"value for each, [{len(images)}]"
        )
    rows_NxD, values_N = images.reshape(len(images), -1), values.astype(np.float64)
    for name, blocks in (
        ("images", (block for _, block in directions.blocks(rows_NxD, np.float64))),
        ("values", (values_N,)),
    ):
        start = 0
        for block in blocks:
            (wrong,) = np.nonzero(~np.isfinite(block.reshape(len(block), -1)).all(axis=1))
            if len(wrong):
                raise UserError(
                    f"{name}: that of number {start + wrong[0]} holds NaN or an infinite number; "
                    "a network can take finite ones only. Leave it out"
                )
            start += len(block)
    return rows_NxD, values_N, images.shape[1:]


def _checked_levels(levels: Sequence[float], values_N: np.ndarray) -> np.ndarray:
    levels_Y = np.asarray(levels, np.float64)
    if levels_Y.ndim != 1 or len(set(levels_Y.tolist())) < max(2, levels_Y.size):
        raise UserError(f"levels are {levels!r}; they must be at least two different numbers")
    if not np.isin(values_N, levels_Y).all():
        wrong = int(np.flatnonzero(~np.isin(values_N, levels_Y))[0])
        raise UserError(
            f"value {wrong} is {values_N[wrong]:g}, which is none of the levels {levels!r}; give "
            "the value of every class"
        )
    return levels_Y


# --- the parts ------------------------------------------------------------------------------------


class _Lines:
    """The distinct images as points on a line, one line after another."""

    def __init__(self, rows_NxD: np.ndarray, kept: np.ndarray, dtype: np.dtype, seed: int):
        self._rows, self._dtype, self.kept = rows_NxD, dtype, kept
        self._rng = np.random.Generator(np.random.Philox(seed))
        self._spread = directions.grid_spread(rows_NxD)

    def next(self, score: Callable[[np.ndarray], int]) -> tuple[np.ndarray, np.ndarray]:
        """A direction [D], and the points along it [n].

        score: which is best, of the points along several: [n, K] -> below K
        """
        drawn = directions.candidates(self._rows, self._spread, self._rng, self._dtype)
        chosen_D = drawn[:, score(directions.project(self._rows, drawn)[self.kept])]
        return chosen_D, directions.project(self._rows, chosen_D)[self.kept]


def _parts(
    lines: _Lines, values_n: np.ndarray, depth: int, max_directions: int
) -> tuple[tuple[Part, ...], Conditioning]:
    """The polyline through the values, and those through what is left where points tie."""
    direction_D, t_n = lines.next(directions.most_distinct)
    points, first, inverse = np.unique(t_n, return_index=True, return_inverse=True)
    line = polylines.build(points, values_n[first], min(depth, len(points) + 2))
    parts = [Part(direction_D, line)]
    left_n = values_n - values_n[first][inverse]
    for _ in range(max_directions - 1):
        wrong_n = left_n != 0
        if not wrong_n.any():
            break

        def set_right(points_nxK: np.ndarray, wrong_n: np.ndarray = wrong_n) -> int:
            return int(np.argmax([directions.alone(t)[wrong_n].sum() for t in points_nxK.T]))

        direction_D, t_n = lines.next(set_right)
        mended_n = wrong_n & directions.alone(t_n)
        if mended_n.any():
            parts.append(_mending(direction_D, t_n, np.where(mended_n, left_n, 0), depth))
            left_n = np.where(mended_n, 0, left_n)
    if left_n.any():
        one = np.flatnonzero(left_n)[0]
        other = np.flatnonzero((t_n == t_n[one]) & (np.arange(len(t_n)) != one))[0]
        raise UserError(
            f"{np.count_nonzero(left_n)} of {len(left_n)} points cannot be told apart from others "
            f"in {t_n.dtype} along {max_directions} direction(s), among them images "
            f"{lines.kept[other]} and {lines.kept[one]}; raise max_directions, or take float64"
        )
    return tuple(parts), polylines.conditioning(points)


def _mending(direction_D: np.ndarray, t_n: np.ndarray, values_n: np.ndarray, depth: int) -> Part:
    """A part with the given values, 0 at most points, few of them where points tie.

    It goes through the points that are not 0 and the ones next to them, and is 0 at all others: two
    zeros at the end keep it there.
    """
    points, first = np.unique(t_n, return_index=True)
    (places,) = np.nonzero(values_n[first])
    near = np.unique(np.add.outer(places, [-1, 0, 1, 2]).clip(0, len(points) - 1))
    line = polylines.build(points[near], values_n[first][near], min(depth, len(near) + 2))
    return Part(direction_D, line)
