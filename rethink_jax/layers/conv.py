"""The convolution layer."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from rethink_jax.layers.lowering import convolve

Initializer = nn.initializers.Initializer


class Conv(nn.Module):
    """A two-dimensional convolution, with parameters named as flax's own layer names them."""

    features: int
    window: tuple[int, int]
    stride: int = 1
    padding: str = "SAME"
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H', W', features]"""
        shape = (*self.window, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        x, kernel = promote_dtype(x, kernel)  # As flax's own layers do; XLA refuses a mixture.
        x = convolve(x, kernel, self.stride, self.padding)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,))
            # Its gradient is a sum over all places, which bfloat16 would round at each of them.
            wide = jnp.promote_types(x.dtype, jnp.float32)
            x = (x.astype(wide) + bias[None, None, None].astype(wide)).astype(x.dtype)
        return x
