"""The memorizer as a network: its weights, as a flax module, and as plain dense layers."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rethink_jax.layers import OnesDense
from rethink_jax.theory.polylines import Polyline, cut_off

# Else a GPU would round what the whole construction keeps exact.
_HIGHEST = jax.lax.Precision.HIGHEST


class Part(NamedTuple):
    """A polyline along a direction. A network of Theorem 1 has one part.

    direction_D: a
    """

    direction_D: np.ndarray
    polyline: Polyline


def params(part: Part) -> dict[str, dict[str, np.ndarray]]:
    """The weights of a part, as the module takes them."""
    starts, pieces = part.polyline
    found = {"direction": {"kernel": part.direction_D[:, None]}}
    if starts is None:
        (piece,) = pieces
        return found | {
            "breakpoints": {"bias": -piece.knots},
            "weights": {"kernel": piece.weights[:, None]},
        }
    found["starts"] = {"bias": -starts}
    for n, piece in enumerate(pieces):
        if len(piece.knots):
            found[f"breakpoints_{n}"] = {"bias": -piece.knots}
        found[f"weights_{n}"] = {"kernel": piece.weights[:, None]}
    return found


class MemorizerNetwork(nn.Module):
    """The sum of polylines along directions, as in `theory.polylines`; parameters are its weights.

    sizes: of each part, the number of units of each piece   deep: whether pieces are clipped
    levels: the values of the classes, for logits, or None: one output
    dtype: of everything
    """

    sizes: tuple[tuple[int, ...], ...]
    deep: bool
    levels: tuple[float, ...] | None
    dtype: Any

    @nn.compact
    def __call__(self, images_BxHxWxC: jax.Array, train: bool = False) -> jax.Array:
        x_BxD = images_BxHxWxC.reshape(len(images_BxHxWxC), -1).astype(self.dtype)
        value_Bx1 = jnp.zeros((len(x_BxD), 1), self.dtype)
        for n, sizes in enumerate(self.sizes):
            kind = _DeepPart if self.deep else _Part
            value_Bx1 = value_Bx1 + kind(sizes, self.dtype, name=f"part_{n}")(x_BxD)
        if self.levels is None:
            return value_Bx1
        # No weights of the network: it reads the value.
        levels_1xY = jnp.asarray(self.levels, self.dtype)[None]
        return value_Bx1 * levels_1xY - levels_1xY**2 / 2


class _Part(nn.Module):
    """One hidden layer."""

    sizes: tuple[int, ...]
    dtype: Any

    @nn.compact
    def __call__(self, x_BxD: jax.Array) -> jax.Array:
        t_Bx1 = _dense("direction", self.dtype)(x_BxD)
        (size,) = self.sizes
        hidden = nn.relu(OnesDense(size, self.dtype, name="breakpoints")(t_Bx1))
        return _dense("weights", self.dtype)(hidden)


class _DeepPart(nn.Module):
    """One hidden layer for each piece, and one before them.

    What units with fixed weights would pass on from layer to layer is written as it is.
    """

    sizes: tuple[int, ...]
    dtype: Any

    @nn.compact
    def __call__(self, x_BxD: jax.Array) -> jax.Array:
        t_Bx1 = _dense("direction", self.dtype)(x_BxD)
        starts = OnesDense(len(self.sizes), self.dtype, name="starts")
        left_BxP = nn.relu(starts(t_Bx1))
        total_Bx1 = jnp.zeros_like(t_Bx1)
        for n, size in enumerate(self.sizes):
            own_Bx1 = left_BxP[:, n : n + 1]
            if n + 1 < len(self.sizes):
                own_Bx1 = own_Bx1 - cut_off(self.dtype) * left_BxP[:, n + 1 : n + 2]
            units = [nn.relu(own_Bx1)]
            if size > 1:
                knots = OnesDense(size - 1, self.dtype, name=f"breakpoints_{n}")
                units.append(nn.relu(knots(own_Bx1)))
            piece = _dense(f"weights_{n}", self.dtype)(jnp.concatenate(units, axis=1))
            total_Bx1 = total_Bx1 + piece
        return total_Bx1


def _dense(name: str, dtype: Any) -> nn.Dense:
    return nn.Dense(1, use_bias=False, param_dtype=dtype, precision=_HIGHEST, name=name)


# --- as fully connected layers --------------------------------------------------------------------


def dense(part: Part) -> list[tuple[np.ndarray, np.ndarray]]:
    """(kernel[in, out], bias[out]) of each layer of the network, ReLU between."""
    a_D, (starts, pieces) = part.direction_D, part.polyline
    if starts is None:
        (piece,) = pieces
        hidden = np.repeat(a_D[:, None], len(piece.knots), axis=1), -piece.knots
        return [hidden, (piece.weights[:, None], np.zeros(1, a_D.dtype))]
    layers = [(np.repeat(a_D[:, None], len(starts[:2]), axis=1), -starts[:2])]
    # Of the layer before: the units of t - start and t - end of the piece, clipped below at 0, and
    # what adds up to the output so far, {unit: weight}.
    from_start, from_end, total = 0, 1, dict[int, float]()
    for n, piece in enumerate(pieces):
        is_last = n + 1 == len(pieces)
        own = {from_start: 1.0} if is_last else {from_start: 1.0, from_end: -cut_off(a_D.dtype)}
        units = [(own, -knot) for knot in (0.0, *piece.knots)]
        after = dict(enumerate(piece.weights.tolist()))
        if total:
            after |= {len(units): 1.0, len(units) + 1: -1.0}
            units += [(total, 0.0), ({unit: -weight for unit, weight in total.items()}, 0.0)]
        lengths = [0.0, *(starts[n + 2 : n + 3] - starts[n + 1])] if not is_last else []
        layers.append(_layer(layers[-1], units + [({from_end: 1.0}, -x) for x in lengths]))
        from_start, from_end, total = len(units), len(units) + 1, after
    return [*layers, _layer(layers[-1], [(total, 0.0)])]


def _layer(
    before: tuple[np.ndarray, np.ndarray], units: list[tuple[dict[int, float], float]]
) -> tuple[np.ndarray, np.ndarray]:
    """A layer from its units, each ({unit of the layer before: weight}, bias)."""
    biases_before = before[1]
    kernel = np.zeros((len(biases_before), len(units)), biases_before.dtype)
    for n, (weights, _) in enumerate(units):
        kernel[list(weights), n] = list(weights.values())
    return kernel, np.array([bias for _, bias in units], biases_before.dtype)
