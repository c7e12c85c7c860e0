"""Features of images for kernel machines: pixels, Gabor wavelets, random convolutional patches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from rethink_jax.theory.kernels import DenseMatrix, in_threads, spans

_BATCH = 250

# --- pixels and wavelets --------------------------------------------------------------------------

# UNSTATED in paper: everything about its Gabor wavelets. Ours: periods and half-widths in pixels,
# orientations over half a turn, four phases (each filter, its quadrature, and their negatives), cut
# off at 0 and averaged over squares.
_PERIODS, _WIDTHS, _ORIENTATIONS, _SIZE, _POOL = (4.0, 8.0), (2.0, 4.0), 8, 13, 4


def pixels(images_NxHxWxC: np.ndarray) -> np.ndarray:
    """All values of an image, from 0 to 1: float32[N, H W C]."""
    return images_NxHxWxC.reshape(len(images_NxHxWxC), -1).astype(np.float32) / 255


def gabor(images_NxHxWxC: np.ndarray) -> np.ndarray:
    """Responses to wavelets, cut off at 0 and averaged over squares of 4 pixels: float32[N, D].

    2 scales, 8 orientations and 4 phases on each channel; a wavelet sums to 0 and has an l2 norm
    of 1.
    """
    strips = (
        np.asarray(_gabor_batch(images_NxHxWxC[span]))
        for span in spans(len(images_NxHxWxC), _BATCH)
    )
    return np.concatenate(list(strips))


def wavelets() -> np.ndarray:
    """The filters: float32[13, 13, 32]; even, then odd ones."""
    y, x = np.mgrid[:_SIZE, :_SIZE] - _SIZE // 2
    filters = []
    for phase in (0, math.pi / 2):
        for period, width in zip(_PERIODS, _WIDTHS, strict=True):
            for turn in range(_ORIENTATIONS):
                angle = math.pi * turn / _ORIENTATIONS
                along = x * math.cos(angle) + y * math.sin(angle)
                envelope = np.exp(-(x**2 + y**2) / (2 * width**2))
                wave = envelope * np.cos(2 * math.pi * along / period + phase)
                wave -= envelope * wave.sum() / envelope.sum()
                filters.append(wave / np.linalg.norm(wave))
    return np.stack(filters, axis=-1).astype(np.float32)


@jax.jit
def _gabor_batch(images_BxHxWxC: jax.Array) -> jax.Array:
    b, h, w, c = images_BxHxWxC.shape
    planes = jnp.moveaxis(images_BxHxWxC, 3, 1).reshape(b * c, h, w, 1).astype(jnp.float32) / 255
    responses = jax.lax.conv_general_dilated(
        planes, jnp.asarray(wavelets())[:, :, None], (1, 1), "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest",
    )  # fmt: skip
    phases = jax.nn.relu(jnp.concatenate([responses, -responses], axis=-1))
    return _average(phases, _POOL, _POOL).reshape(b, -1)


def _average(maps_BxHxWxF: jax.Array, window: int, stride: int) -> jax.Array:
    """Means over squares of each map; a rest at the border is left out."""
    # As matrix products, not as sums over windows as large as these.
    _, h, w, _ = maps_BxHxWxF.shape
    down, across = (_means(size, window, stride) for size in (h, w))
    rows = jnp.einsum("bhwf,yh->bywf", maps_BxHxWxF, down, precision="highest")
    return jnp.einsum("bywf,xw->byxf", rows, across, precision="highest")


def _means(size: int, window: int, stride: int) -> np.ndarray:
    """What takes means over windows of `size` numbers in a row: float32[windows, size]."""
    begins = np.arange(0, size - window + 1, stride)[:, None]
    places = np.arange(size)[None]
    inside = (places >= begins) & (places < begins + window)
    return inside.astype(np.float32) / window


FEATURES = {"raw": pixels, "gabor": gabor}

# --- random patches -------------------------------------------------------------------------------

# Printed: a Coates & Ng (2012) network with random filters. From code of the same group (not the
# paper's word): patches of 6x6, the two-sided ReLU at 1, averages over 15x15 positions with stride
# 6, ZCA bias 1e-3. UNSTATED: the normalization of patches (ours: mean 0, standard deviation 1) and
# of filters (ours: l2 norm 1), and how many patches the whitening is estimated from.
PATCH, _THRESHOLD, _WINDOW, _STRIDE, ZCA_BIAS = 6, 1.0, 15, 6, 1e-3
_WHITENED_FROM = 100_000
_FILTERS_AT_ONCE = 250
_PATCH_BATCH = 10  # What one of them needs stays small enough to be reused by the allocator.


class Patches:
    """A layer of whitened patches of training images, drawn at random, as filters.

    filters_DxF: what a normalized patch is multiplied by, whitening included; D = 36 C
    offsets_F: its mean's part, taken off
    """

    def __init__(self, images_NxHxWxC: np.ndarray, num_filters: int, seed: int = 0) -> None:
        rng = np.random.Generator(np.random.Philox(seed))
        sample = _normalized(_random_patches(images_NxHxWxC, _WHITENED_FROM, rng))
        mean_D = sample.mean(axis=0)
        values_D, vectors_DxD = np.linalg.eigh(np.cov(sample.T))
        whitening_DxD = (vectors_DxD / np.sqrt(np.maximum(values_D, 0) + ZCA_BIAS)) @ vectors_DxD.T
        chosen = _normalized(_random_patches(images_NxHxWxC, num_filters, rng))
        filters_FxD = (chosen - mean_D) @ whitening_DxD
        norms_F = np.linalg.norm(filters_FxD, axis=1)
        filters_FxD /= np.maximum(norms_F, np.finfo(np.float32).tiny)[:, None]
        self.filters_DxF = (whitening_DxD @ filters_FxD.T).astype(np.float32)
        self.offsets_F = (mean_D @ whitening_DxD @ filters_FxD.T).astype(np.float32)

    def blocks(self, images_NxHxWxC: np.ndarray) -> Iterator[np.ndarray]:
        """The features of all images, so many filters at a time: float32[N, features]."""
        for span in spans(self.filters_DxF.shape[1], _FILTERS_AT_ONCE):
            filters, offsets = self.filters_DxF[:, span], self.offsets_F[span]

            def batch(
                images: slice, filters: np.ndarray = filters, offsets: np.ndarray = offsets
            ) -> np.ndarray:
                return np.asarray(_patch_batch(images_NxHxWxC[images], filters, offsets))

            yield np.concatenate(list(in_threads(batch, spans(len(images_NxHxWxC), _PATCH_BATCH))))


def _random_patches(images: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """float64[count, 36 C], drawn with replacement."""
    n, h, w, _ = images.shape
    which = rng.integers(0, n, count)
    top, left = rng.integers(0, h - PATCH + 1, count), rng.integers(0, w - PATCH + 1, count)
    i = np.arange(PATCH)
    rows, columns = top[:, None, None] + i[:, None], left[:, None, None] + i[None]
    return images[which[:, None, None], rows, columns].reshape(count, -1).astype(np.float64)


def _normalized(patches: np.ndarray) -> np.ndarray:
    """Mean 0 and standard deviation 1 for each patch of grey levels from 0 to 255."""
    centered = patches - patches.mean(axis=-1, keepdims=True)
    # Coates and Ng's: noise in patches that are almost flat stays small.
    return centered / np.sqrt(centered.var(axis=-1, keepdims=True) + 10)


@jax.jit
def _patch_batch(
    images_BxHxWxC: jax.Array, filters_DxF: jax.Array, offsets_F: jax.Array
) -> jax.Array:
    b, h, w, _ = images_BxHxWxC.shape
    high, wide = h - PATCH + 1, w - PATCH + 1
    images = images_BxHxWxC.astype(jnp.float32)
    shifted = [images[:, i : i + high, j : j + wide] for i in range(PATCH) for j in range(PATCH)]
    # [B, high, wide, 36, C]: the order of a patch's values in the filters.
    patches = jnp.stack(shifted, axis=3).reshape(b, high, wide, -1)
    centered = patches - patches.mean(axis=-1, keepdims=True)
    patches = centered / jnp.sqrt(jnp.var(centered, axis=-1, keepdims=True) + 10)
    z = jnp.matmul(patches, filters_DxF, precision="highest") - offsets_F[None, None, None]
    maps = jnp.concatenate([jax.nn.relu(z - _THRESHOLD), jax.nn.relu(-z - _THRESHOLD)], axis=-1)
    return _average(maps, min(_WINDOW, high, wide), _STRIDE).reshape(b, -1)


def patch_matrices(
    patches: Patches,
    train_NxHxWxC: np.ndarray,
    test_MxHxWxC: np.ndarray,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[DenseMatrix, np.ndarray]:
    """Inner products of the features: of the training images, and of test with training images.

    The features of all filters are never in memory at once. Both matrices are float64.
    """
    n, m = len(train_NxHxWxC), len(test_MxHxWxC)
    gram_NxN, cross_MxN = np.zeros((n, n)), np.zeros((m, n))
    both = np.concatenate([train_NxHxWxC, test_MxHxWxC])
    total, done = patches.filters_DxF.shape[1], 0
    for block in patches.blocks(both):
        train, test = block[:n].astype(np.float64), block[n:].astype(np.float64)

        def add(span: slice, train: np.ndarray = train, test: np.ndarray = test) -> None:
            gram_NxN[span] += train[span] @ train.T
            cross_MxN[:, span] += test @ train[span].T

        list(in_threads(add, spans(n)))
        done = min(done + _FILTERS_AT_ONCE, total)
        say(f"{done:,} of {total:,} filters")
    return DenseMatrix(gram_NxN), cross_MxN
