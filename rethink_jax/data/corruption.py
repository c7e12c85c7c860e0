"""The randomization tests of Zhang et al. (2017), Section 2: corrupted labels and pixels.

A new corruption is one function here and one entry in `LABELS` or `PIXELS`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rethink_jax.schema import UserError
from rethink_jax.streams import PIXELS as PIXEL_STREAM
from rethink_jax.streams import TEST_PIXELS as TEST_PIXEL_STREAM
from rethink_jax.streams import stream

# --- labels ---------------------------------------------------------------------------------------


def uniform(key: jax.Array, labels_N: jax.Array, prob: jax.Array, num_classes: int) -> jax.Array:
    """Redraws each label with probability `prob`, uniformly over ALL classes.

    The redrawn label may be the true one, so about prob*(1 - 1/num_classes) of the labels change.
    Under one key a label redrawn at one probability is redrawn, to the same class, at all higher.

    Args:
      key: is consumed.
      labels_N: int32[N].
      prob: float32[], 0 to 1.

    Source: Zhang et al. 2017, Section 2 ("corrupted as a uniform random class").
    """
    which_key, class_key = jax.random.split(key)
    redrawn_N = jax.random.uniform(which_key, labels_N.shape) < prob
    classes_N = jax.random.randint(class_key, labels_N.shape, 0, num_classes, labels_N.dtype)
    return jnp.where(redrawn_N, classes_N, labels_N)


LabelCorruption = Callable[[jax.Array, jax.Array, jax.Array, int], jax.Array]
LABELS: dict[str, LabelCorruption] = {"uniform": uniform}


@functools.partial(jax.jit, static_argnames=("kind", "name", "num_classes"))
def corrupt_labels(
    labels_N: jax.Array, kind: str, prob: float, seed: int, name: int, num_classes: int
) -> jax.Array:
    """A trial's labels: int32[N]. `name` is the stream: LABELS or, for test, TEST_LABELS.

    Raises:
      UserError: what the corruption gives are no labels, as far as their shape and type tell.
    """
    found_N = LABELS[kind](stream(seed, name), labels_N, jnp.float32(prob), num_classes)
    if (found_N := _array(found_N, f"label corruption {kind!r}")).shape != labels_N.shape:
        raise UserError(
            f"the label corruption {kind!r} gives an array of shape {found_N.shape} for labels of "
            f"shape {labels_N.shape}; give one label for each"
        )
    if not jnp.issubdtype(found_N.dtype, jnp.integer):
        raise UserError(
            f"the label corruption {kind!r} gives {found_N.dtype}; give integers, the numbers of "
            "classes"
        )
    return found_N.astype(jnp.int32)


def check_labels(labels_N: np.ndarray, kind: str, num_classes: int) -> np.ndarray:
    """The labels that a corruption gave; UserError if there is no such class."""
    if len(labels_N) and not 0 <= labels_N.min() <= labels_N.max() < num_classes:
        raise UserError(
            f"the label corruption {kind!r} gives labels from {labels_N.min()} to "
            f"{labels_N.max()}; give numbers of classes, from 0 to {num_classes - 1}"
        )
    return labels_N


def _array(given: object, what: str) -> jax.Array:
    """What a function of the user returned, if it is an array; else UserError."""
    try:
        return jnp.asarray(given)
    except (TypeError, ValueError) as error:
        raise UserError(f"the {what} gives {type(given).__name__}; give an array") from error


# --- pixels ---------------------------------------------------------------------------------------


class PixelStats(NamedTuple):
    """Mean and deviation of each channel over a training set: float32[C], in grey levels."""

    mean_C: jax.Array
    std_C: jax.Array


def shuffled(
    image_HxWxC: jax.Array, set_key: jax.Array, key: jax.Array, _: PixelStats
) -> jax.Array:
    """One random permutation of the pixels, the same for all images, training and test.

    UNSTATED in paper: whether channels move together; here a pixel keeps its colour.
    """
    del key
    return _permute(image_HxWxC, set_key)


def random(image_HxWxC: jax.Array, set_key: jax.Array, key: jax.Array, _: PixelStats) -> jax.Array:
    """A random permutation of the pixels for each image on its own."""
    del set_key
    return _permute(image_HxWxC, key)


def gaussian(
    image_HxWxC: jax.Array, set_key: jax.Array, key: jax.Array, stats: PixelStats
) -> jax.Array:
    """Every pixel drawn from a Gaussian with the data set's mean and variance.

    UNSTATED in paper: whether these are taken per channel (as here) or over all values.
    """
    del set_key
    mean_1x1xC, std_1x1xC = stats.mean_C[None, None], stats.std_C[None, None]
    return mean_1x1xC + std_1x1xC * jax.random.normal(key, image_HxWxC.shape)


def _permute(image_HxWxC: jax.Array, key: jax.Array) -> jax.Array:
    pixels_PxC = image_HxWxC.reshape(-1, image_HxWxC.shape[-1])
    # The order of random 32-bit numbers. Two of them rarely tie; the sort then keeps their order.
    order_P = jnp.argsort(jax.random.bits(key, (len(pixels_PxC),)))
    return pixels_PxC[order_P].reshape(image_HxWxC.shape)


# One image -> float32[H, W, C] in grey levels, from the set's key and the image's own key.
PixelCorruption = Callable[[jax.Array, jax.Array, jax.Array, PixelStats], jax.Array]
PIXELS: dict[str, PixelCorruption | None] = {
    "none": None,
    "shuffled": shuffled,
    "random": random,
    "gaussian": gaussian,
}


class ImageSet(NamedTuple):
    """Images as bytes: pixel = codes*scale + offset, in grey levels (0 to 255 for real images).

    Real images are their own codes (scale 1, offset 0). Images with values outside 0..255 or
    between the levels, as Gaussian ones, get the scale that covers their own range in 256 steps, so
    that nothing is clipped and a batch is read as bytes whatever the corruption.

    codes: uint8[N, H, W, C]   scale, offset: float32[N]
    """

    codes: np.ndarray
    scale: np.ndarray
    offset: np.ndarray

    def pixels(self) -> np.ndarray:
        """The images: float32[N, H, W, C]."""
        shape = (-1, 1, 1, 1)
        return self.codes * self.scale.reshape(shape) + self.offset.reshape(shape)


class PixelCorruptionSpec(NamedTuple):
    """What makes two trials' images equal: the sets are made once for each of these."""

    kind: str
    fraction: float
    strength: float
    seed: int

    @property
    def is_identity(self) -> bool:
        return self.kind == "none" or self.fraction == 0 or self.strength == 0


CLEAN = PixelCorruptionSpec("none", 1.0, 1.0, 0)


def pixel_stats(images_NxHxWxC: np.ndarray) -> PixelStats:
    """Statistics of a training set, uint8[N, H, W, C]."""
    return PixelStats(
        images_NxHxWxC.mean((0, 1, 2), dtype=np.float64).astype(np.float32),
        images_NxHxWxC.std((0, 1, 2), dtype=np.float64).astype(np.float32),
    )


_BATCH = 1000  # Images a call; only memory depends on it.


def corrupt_pixels(
    images_NxHxWxC: np.ndarray,
    spec: PixelCorruptionSpec,
    stats: PixelStats,
    test: bool = False,
    first: int = 0,
) -> ImageSet:
    """The images of a trial; a chosen fraction of them corrupted, at a strength, by a kind.

    Image i depends on the spec and on i alone. With one seed, an image corrupted at one fraction is
    corrupted at all higher ones. Strength s mixes: (1-s)*image + s*corrupted.

    Args:
      images_NxHxWxC: uint8, 0 to 255.
      stats: of the training set, also for test images.
      test: draw from the test stream (the permutation of "shuffled" is that of training).
      first: the number of the first image; the others follow.

    Raises:
      UserError: what the corruption gives is no image.
    """
    count = len(images_NxHxWxC)
    if spec.is_identity:
        ones = np.ones(count, np.float32)
        return ImageSet(images_NxHxWxC, ones, np.zeros(count, np.float32))
    parts = []
    for start in range(0, count, _BATCH):
        # Every call has the same shape, so that one program serves all.
        index_B = np.minimum(np.arange(start, start + _BATCH), count - 1)
        part = _corrupt_batch(
            images_NxHxWxC[index_B], first + index_B, spec.fraction, spec.strength, spec.seed,
            stats, kind=spec.kind, test=test,
        )  # fmt: skip
        parts.append([np.asarray(a)[: count - start] for a in part])
    made = ImageSet(*(np.concatenate(p) for p in zip(*parts, strict=True)))
    if not (finite_N := np.isfinite(made.scale) & np.isfinite(made.offset)).all():
        raise UserError(
            f"the pixel corruption {spec.kind!r} gives NaN or infinite pixels, as in image "
            f"{first + finite_N.argmin()}; give finite grey levels"
        )
    return made


@functools.partial(jax.jit, static_argnames=("kind", "test"))
def _corrupt_batch(
    images_BxHxWxC: jax.Array,
    index_B: jax.Array,
    fraction: jax.Array,
    strength: jax.Array,
    seed: jax.Array,
    stats: PixelStats,
    kind: str,
    test: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    set_key = stream(seed, PIXEL_STREAM)
    images_key = stream(seed, TEST_PIXEL_STREAM if test else PIXEL_STREAM, 1)
    corrupt = PIXELS[kind]

    def one(image_HxWxC: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        choice_key, key = jax.random.split(jax.random.fold_in(images_key, index))
        image = image_HxWxC.astype(jnp.float32)
        corrupted = _array(corrupt(image, set_key, key, stats), f"pixel corruption {kind!r}")
        if corrupted.shape != image.shape:
            raise UserError(
                f"the pixel corruption {kind!r} gives an array of shape {corrupted.shape} for an "
                f"image of shape {image.shape}; give an image of that shape"
            )
        mixed = (1 - strength) * image + strength * corrupted
        return _encode(jnp.where(jax.random.uniform(choice_key) < fraction, mixed, image))

    return jax.vmap(one)(images_BxHxWxC, index_B)


def _encode(image_HxWxC: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One image as bytes with a scale and an offset; exact for whole grey levels in 0..255."""
    low, high = image_HxWxC.min(), image_HxWxC.max()
    exact = (low >= 0) & (high <= 255) & jnp.all(image_HxWxC == jnp.round(image_HxWxC))
    # A constant image needs a scale that is not zero.
    spread = jnp.where(high > low, high - low, 1.0)
    scale, offset = jnp.where(exact, 1.0, spread / 255), jnp.where(exact, 0.0, low)
    return jnp.round((image_HxWxC - offset) / scale).astype(jnp.uint8), scale, offset
