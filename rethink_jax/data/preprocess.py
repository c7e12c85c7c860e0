"""What happens to a batch inside the compiled step: crop, flip, whitening. For one trial."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp


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


def central_crop(images_BxHxWxC: jax.Array, size: int | None) -> jax.Array:
    """The middle size x size pixels; the odd row or column is left out at the bottom and right."""
    if size is None:
        return images_BxHxWxC
    _, height, width, _ = images_BxHxWxC.shape
    top, left = (height - size) // 2, (width - size) // 2
    return images_BxHxWxC[:, top : top + size, left : left + size]


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
