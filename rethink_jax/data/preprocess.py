"""What happens to the images of a batch inside the compiled step. For one trial."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates


def whiten(images_BxHxWxC: jax.Array) -> jax.Array:
    """Each image to mean 0 and variance 1: (x - mean) / max(std, 1/sqrt(number of values)).

    Mean and standard deviation are taken over all values of one image, all channels together.

    Args:
      images_BxHxWxC: float32, pixels/255.

    Source: Zhang et al. 2017, Appendix A (TensorFlow's per_image_whitening).
    """
    axes = (1, 2, 3)
    mean = images_BxHxWxC.mean(axes, keepdims=True)
    centred = images_BxHxWxC - mean
    std = jnp.sqrt(jnp.square(centred).mean(axes, keepdims=True))
    floor = 1 / math.sqrt(math.prod(images_BxHxWxC.shape[1:]))
    return centred / jnp.maximum(std, floor)


def symmetric(images_BxHxWxC: jax.Array) -> jax.Array:
    """From 0..1 to -1..1, as TensorFlow's Inception is fed."""
    return 2 * images_BxHxWxC - 1


def imagenet_statistics(images_BxHxWxC: jax.Array) -> jax.Array:
    """Each of three channels less ImageNet's mean, divided by its standard deviation."""
    mean, std = jnp.array([0.485, 0.456, 0.406]), jnp.array([0.229, 0.224, 0.225])
    return (images_BxHxWxC - mean[None, None, None]) / std[None, None, None]


def mnist_statistics(images_BxHxWxC: jax.Array) -> jax.Array:
    """Less MNIST's mean, divided by its standard deviation, both of images resized to 32x32.

    Source: the code of Neyshabur et al. 2017.
    """
    return (images_BxHxWxC - 0.131) / 0.289


# What is done to the values of an image last. All take and return float32[B, H, W, C].
NORMALIZE: dict[str, Callable[[jax.Array], jax.Array]] = {
    "per_image": whiten,
    "symmetric": symmetric,
    "imagenet": imagenet_statistics,
    "mnist": mnist_statistics,
    "none": lambda images: images,
}
# Channels of the images that a normalization is for, where it is not for all.
CHANNELS = {"imagenet": 3, "mnist": 1}


def central_crop(images_BxHxWxC: jax.Array, size: int | None) -> jax.Array:
    """The middle size x size pixels; the odd row or column is left out at the bottom and right."""
    if size is None:
        return images_BxHxWxC
    _, height, width, _ = images_BxHxWxC.shape
    top, left = (height - size) // 2, (width - size) // 2
    return images_BxHxWxC[:, top : top + size, left : left + size]


def rotate(images_BxHxWxC: jax.Array, degrees_B: jax.Array) -> jax.Array:
    """Images turned about their centre, bilinearly interpolated; 0 gives the image, bit by bit.

    What comes from outside the image is 0 (black). UNSTATED in Zhang et al. 2017; so is
    TensorFlow's rotation.

    Args:
      images_BxHxWxC: float32.
      degrees_B: float32, counter-clockwise.
    """
    _, height, width, _ = images_BxHxWxC.shape
    rows_HxW, columns_HxW = jnp.meshgrid(
        jnp.arange(height) - (height - 1) / 2, jnp.arange(width) - (width - 1) / 2, indexing="ij"
    )

    def one(image_HxWxC: jax.Array, degrees: jax.Array) -> jax.Array:
        cos, sin = jnp.cos(jnp.deg2rad(degrees)), jnp.sin(jnp.deg2rad(degrees))
        # Where each pixel of the result comes from: turned back, rows counting downwards.
        source = (
            cos * rows_HxW + sin * columns_HxW + (height - 1) / 2,
            cos * columns_HxW - sin * rows_HxW + (width - 1) / 2,
        )
        sample = lambda channel: map_coordinates(channel, source, order=1, mode="constant")  # noqa: E731
        return jax.vmap(sample, in_axes=-1, out_axes=-1)(image_HxWxC)

    return jax.vmap(one)(images_BxHxWxC, degrees_B)


def random_rotation(
    images_BxHxWxC: jax.Array, key: jax.Array, max_degrees: jax.Array | float
) -> jax.Array:
    """Each image turned by its own angle, uniform in [-max_degrees, max_degrees]."""
    unit_B = jax.random.uniform(key, (len(images_BxHxWxC),), minval=-1.0)
    return rotate(images_BxHxWxC, unit_B * max_degrees)


def augment(
    images_BxHxWxC: jax.Array,
    key: jax.Array,
    size: int | None,
    random_crop: jax.Array | bool,
    random_flip: jax.Array | bool,
) -> jax.Array:
    """Random crops and mirror images, each on or off.

    Off, the result is that of `central_crop`, bit by bit.

    Args:
      images_BxHxWxC: any dtype.
      key: is consumed.
      size: height and width of the crop, or None for none.
      random_crop: bool[]; every position of the crop is equally likely.
      random_flip: bool[]; each image is mirrored left to right with probability 1/2.
    """
    batch, height, width, channels = images_BxHxWxC.shape
    top_key, left_key, flip_key = jax.random.split(key, 3)
    flip_B = random_flip & jax.random.bernoulli(flip_key, shape=(batch,))
    if size is not None:
        corners = [
            jnp.where(random_crop, jax.random.randint(k, (batch,), 0, room + 1), room // 2)
            for k, room in ((top_key, height - size), (left_key, width - size))
        ]
        corner_Bx2 = jnp.stack(corners, axis=1)
        cut = lambda image, corner: jax.lax.dynamic_slice(  # noqa: E731
            image, (corner[0], corner[1], 0), (size, size, channels)
        )
        images_BxHxWxC = jax.vmap(cut)(images_BxHxWxC, corner_Bx2)
    return jnp.where(flip_B[:, None, None, None], images_BxHxWxC[:, :, ::-1], images_BxHxWxC)
