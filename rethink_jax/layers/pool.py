"""Pooling: by slices on the CPU, by XLA's own operations elsewhere.

The gradient of XLA's own pooling is slow in a loop on the CPU: 7 to 27 times slower than this one
(BUILD_NOTES.md).
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from rethink_jax.layers.lowering import pad, pads_of, windows


def max_pool(x: jax.Array, window: int, stride: int, padding: str = "SAME") -> jax.Array:
    """The largest value of each window; beyond the border there is nothing. [B, H, W, C]

    Among equal values of a window, one gets the gradient.
    """
    if jax.default_backend() != "cpu":
        return nn.max_pool(x, (window, window), (stride, stride), padding)
    x = pad(x, pads_of(x.shape[1:3], (window, window), stride, padding), -jnp.inf)
    return _max_along(_max_along(x, window, stride, 1), window, stride, 2)


def avg_pool(x: jax.Array, window: int, stride: int, padding: str = "SAME") -> jax.Array:
    """The mean of what lies in the image of each window, as in TensorFlow. [B, H, W, C]"""
    if jax.default_backend() != "cpu":
        means = nn.avg_pool(x, (window, window), (stride, stride), padding, count_include_pad=False)
        return means.astype(x.dtype)  # flax divides by float32 counts.
    pads = pads_of(x.shape[1:3], (window, window), stride, padding)
    ones = jnp.ones((1, *x.shape[1:3], 1), x.dtype)
    values_in_window = sum(windows(pad(ones, pads), (window, window), stride))
    return sum(windows(pad(x, pads), (window, window), stride)) / values_in_window


def _taps(x: jax.Array, window: int, stride: int, axis: int) -> list[jax.Array]:
    """x at each place of a one-dimensional window, all of equal shape."""
    count = (x.shape[axis] - window) // stride + 1
    x = _in_strides(x, stride, axis)
    taps = []
    for place in range(window):
        start, phase = divmod(place, stride)
        rows = jax.lax.slice_in_dim(x, start, start + count, axis=axis)
        taps.append(jax.lax.index_in_dim(rows, phase, axis + 1, keepdims=False))
    return taps


def _in_strides(x: jax.Array, stride: int, axis: int) -> jax.Array:
    """An axis of n as two, of ceil(n/stride) and stride; slices are contiguous then."""
    count = -(-x.shape[axis] // stride)
    more = [(0, 0)] * x.ndim
    more[axis] = (0, count * stride - x.shape[axis])
    return jnp.pad(x, more).reshape(*x.shape[:axis], count, stride, *x.shape[axis + 1 :])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_along(x: jax.Array, window: int, stride: int, axis: int) -> jax.Array:
    """The largest value of each one-dimensional window."""
    return functools.reduce(jnp.maximum, _taps(x, window, stride, axis))


def _max_forward(
    x: jax.Array, window: int, stride: int, axis: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    y = _max_along(x, window, stride, axis)
    return y, (x, y)


def _max_pull(
    window: int, stride: int, axis: int, saved: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array]:
    x, y = saved
    size, count = x.shape[axis], y.shape[axis]
    blocks = -(-size // stride)
    shape = [*dy.shape]
    shape[axis] = blocks
    # By phase, since adding up contiguous pieces is fast and adding up every second row is not.
    phases = [jnp.zeros(shape, dy.dtype)] * stride
    taken = jnp.zeros(y.shape, jnp.bool_)
    for place, tap in enumerate(_taps(x, window, stride, axis)):
        start, phase = divmod(place, stride)
        first = (tap == y) & ~taken
        taken |= first
        around = [(0, 0)] * x.ndim
        around[axis] = (start, blocks - count - start)
        phases[phase] += jnp.pad(jnp.where(first, dy, 0), around)
    shape[axis] = blocks * stride
    dx = jnp.stack(phases, axis + 1).reshape(shape)
    return (jax.lax.slice_in_dim(dx, 0, size, axis=axis),)


_max_along.defvjp(_max_forward, _max_pull)
