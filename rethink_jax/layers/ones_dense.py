"""A dense layer that has biases only."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class OnesDense(nn.Module):
    """A dense layer from one value, whose weights are fixed at 1: y[b, j] = x[b, 0] + bias[j].

    features: number of outputs, which is the number of parameters
    """

    features: int
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_Bx1: jax.Array) -> jax.Array:
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        return x_Bx1 + bias[None]
