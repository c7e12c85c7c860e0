"""Local response normalization, as TensorFlow's `tf.nn.lrn`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def local_response_norm(
    x: jax.Array,
    depth_radius: int = 4,
    bias: float = 1.0,
    alpha: float = 0.001 / 9,
    beta: float = 0.75,
) -> jax.Array:
    """Each value divided by (bias + alpha * sum of squares of neighbouring channels) ** beta.

    Args:
      x: [..., C]; the sums are no narrower than float32. Neighbours of channel c are
        c-depth_radius to c+depth_radius, itself included; beyond the first and last channel there
        is nothing.
      alpha: of the sum, not of the mean.

    Source: Krizhevsky et al. 2012, Section 3.3; the defaults are those of TensorFlow's CIFAR-10
    tutorial. UNSTATED in Zhang et al. 2017, which names the layer only.
    """
    channels = np.arange(x.shape[-1])
    # A product with a band matrix adds up the neighbours: one fast call, forward and backward.
    wide = jnp.promote_types(x.dtype, jnp.float32)
    band_CxC = (np.abs(channels[:, None] - channels) <= depth_radius).astype(wide)
    squares = jnp.square(x.astype(wide))
    sums = jnp.dot(squares, band_CxC, precision=jax.lax.Precision.HIGHEST)
    return (x * (bias + alpha * sums) ** -beta).astype(x.dtype)
