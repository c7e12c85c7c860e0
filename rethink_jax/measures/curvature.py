"""Curvature of the training loss at the trained weights, and the noise of its gradients.

The Hessian is that of the mean cross-entropy over all images in all parameters, batch statistics
frozen. It is never built: only its products with vectors are computed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from rethink_jax.measures import landscape
from rethink_jax.measures.pac_bayes import Mean, mean_of
from rethink_jax.measures.subject import Subject, once
from rethink_jax.schema import UserError

Product = Callable[[jax.Array], jax.Array]


def hessian_product(subject: Subject) -> Product:
    """vector[P] -> Hessian times vector [P], in the order of ravel_pytree.

    Source: Pearlmutter 1994.
    """
    loss = landscape.flat(subject)
    here_P = jnp.zeros_like(loss.weights_P)

    def product(vector_P: jax.Array) -> jax.Array:
        return jax.jvp(lambda d: loss.value_and_gradient(d)[1], (here_P,), (vector_P,))[1]

    return product


class _Tridiagonal(NamedTuple):
    """Eigenvalues [S] of the Lanczos matrix, and its eigenvectors' first and last components.

    errors_S: how far from an eigenvalue of the whole matrix each is at most
    weights_S: squared first components, which sum to 1
    """

    eigenvalues_S: jax.Array
    errors_S: jax.Array
    weights_S: jax.Array


def _without(vector_P: jax.Array, basis_SxP: jax.Array) -> jax.Array:
    """Orthogonal to the rows of a basis; twice, since once leaves what rounding makes."""
    for _ in range(2):
        vector_P = vector_P - basis_SxP.T @ (basis_SxP @ vector_P)
    return vector_P


def _lanczos(product: Product, key: jax.Array, like_P: jax.Array, steps: int) -> _Tridiagonal:
    """Lanczos with full reorthogonalization, from a random vector; steps are at most P.

    Where the vectors found so far span an invariant space (a network has many eigenvalues 0), it
    goes on with a fresh random one.
    """
    size, dtype = like_P.size, like_P.dtype
    steps = min(steps, size)
    tiny = jnp.finfo(dtype).tiny

    def fresh(number: jax.Array, basis_SxP: jax.Array) -> jax.Array:
        drawn_P = jax.random.normal(jax.random.fold_in(key, number), (size,), dtype)
        rest_P = _without(drawn_P, basis_SxP)
        return rest_P / jnp.maximum(jnp.linalg.norm(rest_P), tiny)

    def step(
        carry: tuple[jax.Array, jax.Array, jax.Array], number: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
        basis_SxP, vector_P, largest = carry
        basis_SxP = basis_SxP.at[number].set(vector_P)
        image_P = product(vector_P)
        diagonal = jnp.vdot(vector_P, image_P)
        rest_P = _without(image_P, basis_SxP)
        beside = jnp.linalg.norm(rest_P)
        largest = jnp.maximum(largest, jnp.linalg.norm(image_P))
        ended = beside <= jnp.finfo(dtype).eps * jnp.sqrt(jnp.asarray(size, dtype)) * largest
        following_P = rest_P / jnp.maximum(beside, tiny)
        following_P = jnp.where(ended, fresh(number + 1, basis_SxP), following_P)
        return (basis_SxP, following_P, largest), (diagonal, jnp.where(ended, 0, beside))

    empty = jnp.zeros((steps, size), dtype)
    carry = (empty, fresh(jnp.asarray(0), empty), jnp.zeros((), dtype))
    _, (diagonal_S, beside_S) = jax.lax.scan(step, carry, jnp.arange(steps))
    off_diagonal = jnp.diag(beside_S[:-1], 1)
    matrix_SxS = jnp.diag(diagonal_S) + off_diagonal + off_diagonal.T
    eigenvalues_S, vectors_SxS = jnp.linalg.eigh(matrix_SxS)
    errors_S = jnp.abs(beside_S[-1] * vectors_SxS[-1])
    return _Tridiagonal(eigenvalues_S, errors_S, jnp.square(vectors_SxS[0]))


@dataclasses.dataclass(frozen=True)
class Lanczos:
    """steps: products with the Hessian, at most the number of weights are made; the vectors of all
    are in memory   top, bottom: eigenvalues wanted of each end, together at most `steps`
    """

    steps: int = 40
    top: int = 5
    bottom: int = 1

    def __post_init__(self) -> None:
        if min(self.top, self.bottom) < 1 or self.top + self.bottom > self.steps:
            raise UserError(
                f"top is {self.top}, bottom is {self.bottom} and steps is {self.steps}; both must "
                "be at least 1 and steps at least their sum"
            )


DEFAULT_LANCZOS = Lanczos()


class Extremes(NamedTuple):
    """Eigenvalues at both ends, with what bounds the distance of each to one of the Hessian.

    top_T: the largest first   bottom_T: the smallest first
    """

    top_T: jax.Array
    top_errors_T: jax.Array
    bottom_T: jax.Array
    bottom_errors_T: jax.Array


def hessian_extremes(subject: Subject, lanczos: Lanczos = DEFAULT_LANCZOS) -> Extremes:
    """The largest and the smallest eigenvalues of the Hessian, by value and not by magnitude.

    An eigenvalue of several dimensions is found once.

    Raises:
      UserError: more eigenvalues are wanted than there are weights.

    Source: Lanczos 1950; Krueger et al. 2017 take the largest as the sharpness.
    """
    weights_P = landscape.flat(subject).weights_P
    if lanczos.top + lanczos.bottom > weights_P.size:
        raise UserError(
            f"{lanczos.top} + {lanczos.bottom} eigenvalues of {weights_P.size} weights; "
            "ask for fewer"
        )
    key = landscape.key_for(subject, landscape.LANCZOS)
    found = _lanczos(hessian_product(subject), key, weights_P, lanczos.steps)
    values_S, errors_S = found.eigenvalues_S, found.errors_S
    top, bottom = slice(-1, -1 - lanczos.top, -1), slice(lanczos.bottom)
    return Extremes(values_S[top], errors_S[top], values_S[bottom], errors_S[bottom])


def hessian_trace(subject: Subject, draws: int = 100) -> Mean:
    """The sum of the Hessian's eigenvalues, by products with vectors of random signs.

    draws: at least 2; all are made, whatever the first ones give

    Source: Hutchinson 1990.
    """
    if draws < 2:
        raise UserError(f"draws is {draws}; a standard error needs at least 2")
    product = hessian_product(subject)
    weights_P = landscape.flat(subject).weights_P
    trace_key = landscape.key_for(subject, landscape.TRACE)

    def draw(number: jax.Array) -> jax.Array:
        key = jax.random.fold_in(trace_key, number)
        signs_P = jax.random.rademacher(key, weights_P.shape, weights_P.dtype)
        return jnp.vdot(signs_P, product(signs_P))

    return mean_of(jax.lax.map(draw, jnp.arange(draws)))


class Spectrum(NamedTuple):
    """The density of the Hessian's eigenvalues; it integrates to 1 over all eigenvalues.

    places_G, density_G: a grid and the density there   nodes_VxS, weights_VxS: what it is made of,
    for each random vector: masses at eigenvalues of the Lanczos matrix, which sum to 1
    """

    places_G: jax.Array
    density_G: jax.Array
    nodes_VxS: jax.Array
    weights_VxS: jax.Array


def hessian_spectrum(
    subject: Subject, vectors: int = 10, steps: int = 40, grid: int = 200, width: float = 0.01
) -> Spectrum:
    """The spectral density, by stochastic Lanczos quadrature.

    width: deviation of the Gaussian that stands for each mass, as a part of the spectrum's range.
      The grid goes 3 of them beyond the outermost eigenvalues

    Source: Lin, Saad, Yang 2016; Ghorbani, Krishnan, Xiao 2019, Algorithm 1.
    """
    if min(vectors, steps, grid) < 1 or not width > 0:
        raise UserError(
            f"vectors is {vectors}, steps {steps}, grid {grid} and width {width}; all must be "
            "above 0"
        )
    product = hessian_product(subject)
    weights_P = landscape.flat(subject).weights_P
    spectrum_key = landscape.key_for(subject, landscape.SPECTRUM)

    def of_vector(number: jax.Array) -> _Tridiagonal:
        key = jax.random.fold_in(spectrum_key, number)
        return _lanczos(product, key, weights_P, steps)

    found = jax.lax.map(of_vector, jnp.arange(vectors))
    nodes_VxS, masses_VxS = found.eigenvalues_S, found.weights_S
    low, high = jnp.min(nodes_VxS), jnp.max(nodes_VxS)
    deviation = width * jnp.maximum(high - low, jnp.finfo(weights_P.dtype).tiny)
    places_G = jnp.linspace(low - 3 * deviation, high + 3 * deviation, grid)

    def at(place: jax.Array) -> jax.Array:
        heights_VxS = jax.scipy.stats.norm.pdf(place, nodes_VxS, deviation)
        return jnp.sum(masses_VxS * heights_VxS) / vectors

    return Spectrum(places_G, jax.lax.map(at, places_G), nodes_VxS, masses_VxS)


class GradientNoise(NamedTuple):
    """Gradients g_i of the loss of single images at the trained weights.

    second_moment: mean of ||g_i||^2: the trace of the Fisher matrix, or, with the data's own
      labels, of what is called the empirical one
    variance: mean of ||g_i - mean g||^2, the trace of the gradients' covariance (over N, not N - 1)
    mean_squared: ||mean g||^2 of the same labels
    """

    second_moment: jax.Array
    variance: jax.Array
    mean_squared: jax.Array


# The labels at which gradients are taken.
LABELS = ("data", "drawn")


def gradient_noise(subject: Subject, labels: str = "data", at_once: int = 8) -> GradientNoise:
    """How long the gradients of single images are, and how far apart.

    labels: "data", or "drawn" once for each image from what the network gives for it
    at_once: images whose gradients are in memory together

    Source: "data", variance: Jiang et al. 2019, gradient noise. "drawn", second moment: the trace
    of the Fisher information.
    """
    if labels not in LABELS:
        raise UserError(f"labels is {labels!r}; it must be one of {', '.join(LABELS)}")
    if at_once < 1:
        raise UserError(f"at_once is {at_once}; it must be at least 1")
    labels_N = subject.labels_N
    if labels == "drawn":
        labels_key = landscape.key_for(subject, landscape.LABELS)
        labels_N = jax.random.categorical(labels_key, subject.logits_NxY).astype(labels_N.dtype)
    seen = dataclasses.replace(subject, labels_N=labels_N)
    mean_P = ravel_pytree(landscape.value_and_gradient(seen, subject.params)[1])[0]

    def of_image(image: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        image_HxWxC, label = image

        def loss(params: object) -> jax.Array:
            return landscape.losses_of(seen, params, image_HxWxC[None], label[None])[0]

        gradient_P = ravel_pytree(jax.grad(loss)(subject.params))[0]
        return jnp.sum(jnp.square(gradient_P)), jnp.sum(jnp.square(gradient_P - mean_P))

    images = (subject.images_NxHxWxC, labels_N)
    squares_N, distances_N = jax.lax.map(of_image, images, batch_size=at_once)
    squared = jnp.sum(jnp.square(mean_P))
    return GradientNoise(jnp.mean(squares_N), jnp.mean(distances_N), squared)


_extremes, _trace, _noise = once(hessian_extremes), once(hessian_trace), once(gradient_noise)


def _top(place: int) -> Callable[[Subject], jax.Array]:
    return lambda subject: _extremes(subject).top_T[place]


MEASURES: dict[str, Callable[[Subject], jax.Array]] = {
    "hessian_top": _top(0),
    **{f"hessian_top[{n}]": _top(n - 1) for n in range(2, DEFAULT_LANCZOS.top + 1)},
    "hessian_top_error": lambda subject: _extremes(subject).top_errors_T[0],
    "hessian_bottom": lambda subject: _extremes(subject).bottom_T[0],
    "hessian_trace": lambda subject: _trace(subject).mean,
    "hessian_trace_error": lambda subject: _trace(subject).standard_error,
    "gradient_noise": lambda subject: _noise(subject).variance,
    "fisher_trace_empirical": lambda subject: _noise(subject).second_moment,
    "fisher_trace": lambda subject: _noise(subject, "drawn").second_moment,
}
