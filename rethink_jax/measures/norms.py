"""Norms of the layers of a network, and their products.

Norms are of the weights after batch normalization is folded in; biases do not count. A kernel of a
convolution is reshaped to [out channels, h * w * in channels] where a norm is of a matrix. Products
are kept as natural logarithms: those of deep networks overflow.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from rethink_jax.measures import layers, operators
from rethink_jax.measures.subject import Subject, once


def row_norm(matrix: jax.Array, p: float, q: float) -> jax.Array:
    """The (p, q) norm of a matrix [out, in]: the q norm of the p norms of its rows. Scalar.

    Source: Neyshabur, Tomioka, Srebro 2015, as in generalization-bounds. Bartlett et al. 2017 write
    its (2, 1) norm as that of the transpose.
    """
    # Divided by the largest value, so that powers do not overflow.
    largest = jnp.max(jnp.abs(matrix))
    scaled = jnp.abs(matrix) / jnp.where(largest > 0, largest, 1)
    return largest * _p_norm(_p_norm(scaled, p), q)


def _p_norm(values: jax.Array, p: float) -> jax.Array:
    """Of the last axis, of values that are not negative."""
    if p == jnp.inf:
        return jnp.max(values, axis=-1)
    return jnp.sum(values**p, axis=-1) ** (1 / p)


_OF_MATRIX: dict[str, Callable[[jax.Array], jax.Array]] = {
    "frobenius": functools.partial(row_norm, p=2, q=2),
    "l1_inf": functools.partial(row_norm, p=1, q=jnp.inf),
    "l2_1": functools.partial(row_norm, p=2, q=1),
    "l3_1.5": functools.partial(row_norm, p=3, q=1.5),
}
_OF_SINGULAR_VALUES: dict[str, Callable[[jax.Array], jax.Array]] = {
    # Of the reshaped kernel: neither the operator norm of the convolution nor a bound of it.
    "spectral_reshaped": functools.partial(_p_norm, p=jnp.inf),
    "nuclear": functools.partial(_p_norm, p=1),
    "schatten_1.5": functools.partial(_p_norm, p=1.5),
}
_OF_OPERATOR: dict[str, Callable[[layers.Layer], jax.Array]] = {
    "spectral_exact": operators.exact_norm,
    "spectral_circular": operators.circular_norm,
}
NORMS = (*_OF_MATRIX, *_OF_SINGULAR_VALUES, *_OF_OPERATOR)

# Which weights: trained, as they were before, or by how much training changed them.
WEIGHTS: dict[str, Callable[[Subject], tuple[layers.Layer, ...]]] = {
    "trained": layers.folded,
    "initial": layers.initial,
    "moved": layers.moved,
}


@once
def _singular_values(subject: Subject, weights: str) -> list[jax.Array]:
    """Of each layer's matrix, from the largest to the smallest."""
    matrices = [layer.matrix for layer in WEIGHTS[weights](subject)]
    return [jnp.linalg.svd(matrix, compute_uv=False) for matrix in matrices]


@once
def norms_D(subject: Subject, name: str, weights: str = "trained") -> jax.Array:
    """A norm of each linear layer, in order of application: [D].

    Args:
      name: of `NORMS`   weights: of `WEIGHTS`

    Raises:
      UserError: as `layers.places`, `layers.initial`, `operators.circular_norm`.
    """
    if name in _OF_SINGULAR_VALUES:
        values = map(_OF_SINGULAR_VALUES[name], _singular_values(subject, weights))
    elif name in _OF_MATRIX:
        values = (_OF_MATRIX[name](layer.matrix) for layer in WEIGHTS[weights](subject))
    else:
        values = map(_OF_OPERATOR[name], WEIGHTS[weights](subject))
    return jnp.stack(list(values))


def ratios_D(subject: Subject, above: str, below: str, weights: str = "trained") -> jax.Array:
    """The norm `above` of the given weights by the norm `below` of the trained ones: [D].

    0 for a layer whose trained weights are all 0.
    """
    below_D = norms_D(subject, below)
    nonzero_D = jnp.where(below_D > 0, below_D, 1)
    return jnp.where(below_D > 0, norms_D(subject, above, weights) / nonzero_D, 0)


def log_product(subject: Subject, name: str, weights: str = "trained") -> jax.Array:
    """Natural logarithm of the product of a norm (not squared) over all layers. Scalar."""
    return jnp.sum(jnp.log(norms_D(subject, name, weights)))


def distance(subject: Subject, name: str = "frobenius") -> jax.Array:
    """How far training moved the weights: root of the sum over layers of the squared norm. Scalar.

    With "frobenius" it is the Euclidean distance of all weights, biases left out.
    """
    return jnp.sqrt(jnp.sum(jnp.square(norms_D(subject, name, "moved"))))


MEASURES: dict[str, Callable[[Subject], jax.Array]] = {
    **{f"log_product_{name}": functools.partial(log_product, name=name) for name in NORMS},
    **{
        f"log_product_moved_{name}": functools.partial(log_product, name=name, weights="moved")
        for name in NORMS
    },
    **{f"distance_{name}": functools.partial(distance, name=name) for name in NORMS},
}
