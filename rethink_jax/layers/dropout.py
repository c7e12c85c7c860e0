"""Dropout whose rate may be a traced value."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp


class Dropout(nn.Module):
    """Sets each value to 0 with probability `rate` and divides the others by 1 - rate.

    flax's own layer takes the rate as an attribute, which must be a number when the program is
    built; here it may differ between the trials that share a program.
    """

    @nn.compact
    def __call__(self, x: jax.Array, rate: jax.Array | float, train: bool) -> jax.Array:
        """x: any shape. rate: float32[] or a float, in [0, 1). Nothing is dropped unless `train`.

        A rate that is the plain number 0 costs nothing, and gives the bits of a traced 0.
        """
        if not train or (isinstance(rate, float) and rate == 0):
            return x
        kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - rate, x.shape)
        # A rate that is an array would make a bfloat16 x float32 for the rest of the network.
        return jnp.where(kept, x / jnp.float32(1 - rate), 0).astype(x.dtype)
