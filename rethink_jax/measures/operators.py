"""Norms of a convolution as the linear map that it is, from images to images."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from rethink_jax.measures.layers import Layer
from rethink_jax.schema import UserError

# Products with the map and its transpose in one cycle of the Lanczos method, and how many cycles.
_CYCLE = 32
_MOST_CYCLES = 100
_HIGHEST = jax.lax.Precision.HIGHEST


def exact_norm(layer: Layer) -> jax.Array:
    """Largest singular value of a layer on images of its size, zero padding and stride included.

    To 1e-10 relative in float64 and about 1e-6 in float32. The bias does not count. Scalar.
    """
    if layer.place.kind == "dense" or layer.kernel.shape[:2] == (1, 1):
        # A 1x1 convolution acts on each place by itself; a stride only leaves places out.
        return largest_by_svd(layer.matrix)

    def forward(image: jax.Array) -> jax.Array:
        return layer.linear(image[None])

    return largest_singular_value(forward, layer.place.input_shape, layer.kernel.dtype)


def circular_norm(layer: Layer) -> jax.Array:
    """Largest singular value of a layer on images of its size whose borders are joined. Scalar.

    Of a convolution with stride s, input phases count as channels: s * s * C of them on a map s
    times smaller. Padding has no effect. A kernel larger than the map wraps around it.

    Raises:
      UserError: the stride does not divide the height and the width.

    Source: Sedghi, Gupta, Long 2019, arXiv:1805.10408, for stride 1; the phases are ours.
    """
    if layer.place.kind == "dense":
        return largest_by_svd(layer.matrix)
    (height, width, _), (down, right) = layer.place.input_shape, layer.place.strides
    if height % down or width % right:
        raise UserError(
            f"the layer {layer.place.name} has strides {down}, {right} on a map of "
            f"{height}x{width} places; its circular norm needs strides that divide it. Take the "
            "exact norm"
        )
    kh, kw, channels, features = layer.kernel.shape
    rows, columns = -(-kh // height), -(-kw // width)
    more = ((0, rows * height - kh), (0, columns * width - kw), (0, 0), (0, 0))
    whole = jnp.pad(layer.kernel, more)
    whole = whole.reshape(rows, height, columns, width, channels, features).sum((0, 2))
    phases = whole.reshape(height // down, down, width // right, right, channels, features)
    # The other half of the frequencies has the complex conjugates, of equal singular values.
    symbol = jnp.fft.rfftn(phases, axes=(0, 2))
    symbol = symbol.transpose(0, 2, 1, 3, 4, 5).reshape(-1, down * right * channels, features)
    if symbol.shape[1] < features:
        symbol = symbol.transpose(0, 2, 1)
    gram = jnp.einsum("nij,nik->njk", symbol.conj(), symbol, precision=_HIGHEST)
    # One after another: on the CPU, a batch of matrices on each of several devices at once can wait
    # for ever (jaxlib 0.10.2; a single matrix each does not).
    largest = jax.lax.map(lambda matrix: jnp.linalg.eigvalsh(matrix)[-1], gram)
    return jnp.sqrt(jnp.maximum(jnp.max(largest), 0))


def largest_by_svd(matrix: jax.Array) -> jax.Array:
    """Largest singular value of a matrix. Scalar."""
    return jnp.linalg.svd(matrix, compute_uv=False)[0]


def largest_singular_value(
    forward: Callable[[jax.Array], jax.Array], shape: tuple[int, ...], dtype: jnp.dtype
) -> jax.Array:
    """Largest singular value of the linear map `forward` of arrays of `shape`. Scalar.

    Lanczos with full reorthogonalization on the map and its transpose, begun again with the best
    vector until its residual is below 1e-10 (float64) of the eigenvalue. The error is below that.
    """
    epsilon = float(jnp.finfo(dtype).eps)
    # Rounding leaves a residual of some tens of epsilon.
    tolerance = max(1e-10, 50 * epsilon)

    def gram(vector: jax.Array) -> jax.Array:
        y, pull = jax.vjp(forward, vector.reshape(shape))
        return pull(y)[0].reshape(-1)

    def unfinished(state: tuple[jax.Array, ...]) -> jax.Array:
        _, value, residual, growth, cycles = state
        stuck = (cycles > 1) & (growth <= 4 * epsilon * value)
        return (cycles < _MOST_CYCLES) & (residual > tolerance * value) & ~stuck

    def again(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        vector, before, _, _, cycles = state
        vector, value, residual = _lanczos_cycle(gram, vector, epsilon)
        return vector, value, residual, value - before, cycles + 1

    start = jax.random.normal(jax.random.key(0), (math.prod(shape),), dtype)
    start = start / jnp.linalg.norm(start)
    nothing = jnp.zeros((), dtype)
    state = (start, nothing, jnp.full((), jnp.inf, dtype), nothing, jnp.zeros((), jnp.int32))
    vector, *_ = jax.lax.while_loop(unfinished, again, state)
    # Better than the root of the eigenvalue, which has lost half of the digits of a small one.
    return jnp.linalg.norm(forward(vector.reshape(shape)).reshape(-1))


def _lanczos_cycle(
    gram: Callable[[jax.Array], jax.Array], start: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(vector, eigenvalue, residual) of the best pair in the Krylov space of a unit vector."""
    count = min(_CYCLE, len(start))

    def step(
        place: jax.Array, state: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        basis, diagonal, beside, vector = state
        basis = basis.at[place].set(vector)
        product = gram(vector)
        rest = product
        diagonal = diagonal.at[place].set(jnp.dot(product, vector, precision=_HIGHEST))
        for _ in range(2):  # Once leaves what rounding put in.
            overlap = jnp.dot(basis, rest, precision=_HIGHEST)
            rest = rest - jnp.dot(overlap, basis, precision=_HIGHEST)
        length = jnp.linalg.norm(rest)
        # Where the space is used up, rounding is all that is left: go on with zeros.
        left = length > 16 * epsilon * jnp.linalg.norm(product)
        length = jnp.where(left, length, 0)
        vector = jnp.where(left, rest / jnp.where(left, length, 1), 0)
        return basis, diagonal, beside.at[place].set(length), vector

    zeros = jnp.zeros((count,), start.dtype)
    basis = jnp.zeros((count, len(start)), start.dtype)
    basis, diagonal, beside, _ = jax.lax.fori_loop(0, count, step, (basis, zeros, zeros, start))
    small = jnp.diag(diagonal) + jnp.diag(beside[:-1], 1) + jnp.diag(beside[:-1], -1)
    values, vectors = jnp.linalg.eigh(small)
    best = vectors[:, -1]
    vector = jnp.dot(best, basis, precision=_HIGHEST)
    # Of a map that is 0 the best vector may be one of the zeros.
    length = jnp.linalg.norm(vector)
    vector = vector / jnp.where(length > 0, length, 1)
    return vector, values[-1], beside[-1] * jnp.abs(best[-1])
