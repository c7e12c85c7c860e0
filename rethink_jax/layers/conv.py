"""Convolution and pooling by slices, for the CPU; by XLA's own operations elsewhere.

XLA compiles a convolution well on the CPU only outside of loops: inside the scan over steps it
reaches 1 to 7 GFLOP/s, and its gradient under vmap is computed as many times over as there are
lanes. As a matrix product of patches it runs at the speed of the matrix product (BUILD_NOTES.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

Initializer = nn.initializers.Initializer


def _slices(x: jax.Array, window: tuple[int, int], stride: int, fill: float, padding: str) -> list:
    """x[B, H, W, C] at each place of the window: [B, H', W', C] for each, row by row."""
    (kh, kw), (_, height, width, _) = window, x.shape
    if padding == "SAME":
        out = [-(-n // stride) for n in (height, width)]
        total = [
            max((o - 1) * stride + k - n, 0)
            for o, k, n in zip(out, window, (height, width), strict=True)
        ]
        pads = [(t // 2, t - t // 2) for t in total]
        x = jnp.pad(x, [(0, 0), *pads, (0, 0)], constant_values=fill)
    else:
        out = [(n - k) // stride + 1 for n, k in ((height, kh), (width, kw))]
    return [
        x[:, i : i + (out[0] - 1) * stride + 1 : stride, j : j + (out[1] - 1) * stride + 1 : stride]
        for i in range(kh)
        for j in range(kw)
    ]


def convolve(
    x: jax.Array, kernel: jax.Array, stride: int = 1, padding: str = "SAME", patches: bool = False
) -> jax.Array:
    """The convolution (cross-correlation) of images with a kernel.

    Args:
      x: [B, H, W, C]    kernel: [h, w, C, features], of the same dtype
      padding: "SAME" (TensorFlow's: the odd row or column at the bottom and right) or "VALID"
      patches: as one matrix product with the patches of the images, which then lie in memory

    Returns:
      [B, H', W', features] of that dtype
    """
    kh, kw, channels, features = kernel.shape
    if (kh, kw) == (1, 1):
        return jnp.dot(x[:, ::stride, ::stride], kernel[0, 0])
    if not patches:
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    columns = jnp.concatenate(_slices(x, (kh, kw), stride, 0.0, padding), axis=-1)
    return jnp.dot(columns, kernel.reshape(kh * kw * channels, features))


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
        on_cpu = jax.default_backend() == "cpu"
        x, kernel = promote_dtype(x, kernel)  # As flax's own layers do; XLA refuses a mixture.
        x = convolve(x, kernel, self.stride, self.padding, patches=on_cpu)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,))
            x = x + bias[None, None, None]
        return x


def max_pool(x: jax.Array, window: int, stride: int, padding: str = "SAME") -> jax.Array:
    """The largest value of each window; beyond the border there is nothing. [B, H, W, C]"""
    if jax.default_backend() != "cpu":
        return nn.max_pool(x, (window, window), (stride, stride), padding)
    # The gradient of XLA's own pooling is slow in a loop on the CPU, too. Among equal values this
    # one divides the gradient up, where XLA gives it to the first.
    return _largest(_slices(x, (window, window), stride, -jnp.inf, padding))


def avg_pool(x: jax.Array, window: int, stride: int, padding: str = "SAME") -> jax.Array:
    """The mean of what lies in the image of each window, as in TensorFlow. [B, H, W, C]"""
    if jax.default_backend() != "cpu":
        means = nn.avg_pool(x, (window, window), (stride, stride), padding, count_include_pad=False)
        return means.astype(x.dtype)  # flax divides by float32 counts.
    windows = (window, window), stride, 0.0, padding
    values_in_window = sum(_slices(jnp.ones((1, *x.shape[1:3], 1), x.dtype), *windows))
    return sum(_slices(x, *windows)) / values_in_window


def _largest(values: Sequence[jax.Array]) -> jax.Array:
    largest = values[0]
    for value in values[1:]:
        largest = jnp.maximum(largest, value)
    return largest
