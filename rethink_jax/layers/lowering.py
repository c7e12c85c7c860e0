"""How a convolution is computed: several programs for one function, and which is taken where.

XLA's own convolution is fast outside of loops, and, for some shapes, as one grouped convolution
over lanes. Inside a loop on the CPU it reaches 1 to 7 GFLOP/s, and its gradient under vmap is
computed as many times over as there are lanes. As matrix products it runs at the speed of the
matrix product, if the patches that it multiplies stay in the processor's cache (BUILD_NOTES.md).

Source of the two kinds of products: im2col (Chellapilla et al. 2006) and kn2row (Vasudevan et al.
2017).
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

Pads = tuple[tuple[int, int], tuple[int, int]]  # Rows above and below, columns left and right.

# Patches of so many bytes are made at a time: about a core's second-level cache.
_BLOCK_BYTES = 2**20
# ... or, if that is more, so many times the kernel's size.
_KERNELS = 4


class ConvShape(NamedTuple):
    """What decides which lowering is fastest, beside the machine. The batch is left out of it.

    height, width: of the input   window: (h, w) of the kernel   dtype: name of the input's dtype
    """

    height: int
    width: int
    channels: int
    features: int
    window: tuple[int, int]
    stride: int
    padding: str
    dtype: str


def pads_of(size: tuple[int, int], window: tuple[int, int], stride: int, padding: str) -> Pads:
    """What TensorFlow's padding "SAME" (odd row or column at the end) or "VALID" adds around."""
    if padding == "VALID":
        return (0, 0), (0, 0)
    total = [max((-(-n // stride) - 1) * stride + k - n, 0) for n, k in zip(size, window)]  # noqa: B905
    rows, columns = ((t // 2, t - t // 2) for t in total)
    return rows, columns


def pad(x: jax.Array, pads: Pads, value: float = 0.0) -> jax.Array:
    """Images x[B, H, W, C] with a border."""
    return jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=value)


def windows(x: jax.Array, window: tuple[int, int], stride: int = 1) -> list[jax.Array]:
    """Images x[B, H, W, C] at each place of a window: [B, H', W', C] for each, row by row."""
    (kh, kw), (_, height, width, _) = window, x.shape
    rows, columns = (height - kh) // stride + 1, (width - kw) // stride + 1
    last_row, last_column = (rows - 1) * stride + 1, (columns - 1) * stride + 1
    return [
        x[:, i : i + last_row : stride, j : j + last_column : stride]
        for i in range(kh)
        for j in range(kw)
    ]


def patches(x: jax.Array, window: tuple[int, int], stride: int = 1) -> jax.Array:
    """What lies in each window of images x[B, H, W, C]: [B, H', W', h*w*C]."""
    return jnp.concatenate(windows(x, window, stride), axis=-1)


# --- XLA's own convolution ------------------------------------------------------------------------


def _lax(x: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _lax_padded(x: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> jax.Array:
    """With channels of zeros up to a multiple of 8, which matrix units want."""
    more = -x.shape[-1] % 8
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, more)))
    return _lax(x, jnp.pad(kernel, ((0, 0), (0, 0), (0, more), (0, 0))), stride, pads)


def _per_lane(fn: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A function that vmap calls once per lane instead of batching it."""
    fn = jax.custom_batching.custom_vmap(fn)

    @fn.def_vmap
    def rule(lanes: int, batched: list[bool], *args: jax.Array) -> tuple[jax.Array, bool]:
        def of(lane: int) -> jax.Array:
            return fn(*(a[lane] if own else a for a, own in zip(args, batched, strict=True)))

        return jnp.stack([of(lane) for lane in range(lanes)]), True

    return fn


@functools.cache
def _lax_per_lane_of(stride: int, pads: Pads) -> Callable[..., jax.Array]:
    # Each part has its own rule for vmap, since such a function has no reverse-mode gradient.
    plain = functools.partial(_lax, stride=stride, pads=pads)
    forward = _per_lane(plain)
    input_gradient = _per_lane(lambda x, w, dy: jax.vjp(lambda x: plain(x, w), x)[1](dy)[0])
    kernel_gradient = _per_lane(lambda x, w, dy: jax.vjp(lambda w: plain(x, w), w)[1](dy)[0])

    @jax.custom_vjp
    def convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return forward(x, kernel)

    convolution.defvjp(
        lambda x, w: (forward(x, w), (x, w)),
        lambda xw, dy: (input_gradient(*xw, dy), kernel_gradient(*xw, dy)),
    )
    return convolution


def _lax_per_lane(x: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> jax.Array:
    return _lax_per_lane_of(stride, pads)(x, kernel)


# --- matrix products ------------------------------------------------------------------------------


def _patches(x: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> jax.Array:
    """One matrix product with all patches, which lie in memory until the gradient has used them."""
    kh, kw, channels, features = kernel.shape
    columns = patches(pad(x, pads), (kh, kw), stride)
    return jnp.dot(columns, kernel.reshape(kh * kw * channels, features))


def _from_patches(x: jax.Array, kernel: jax.Array, pads: Pads) -> jax.Array:
    """Patches of x, then a product."""
    kh, kw, channels, features = kernel.shape
    flat = kernel.reshape(kh * kw * channels, features)
    return _dot(patches(pad(x, pads), (kh, kw)), flat)


def _by_shifts(x: jax.Array, kernel: jax.Array, pads: Pads) -> jax.Array:
    """A product with all places of the kernel side by side, then their sum, each shifted."""
    kh, kw, channels, features = kernel.shape
    flat = kernel.transpose(2, 0, 1, 3).reshape(channels, kh * kw * features)
    products = _dot(pad(x, pads), flat)
    rows, columns = products.shape[1] - kh + 1, products.shape[2] - kw + 1
    return sum(
        products[:, i : i + rows, j : j + columns, n * features : (n + 1) * features]
        for n, (i, j) in enumerate((i, j) for i in range(kh) for j in range(kw))
    )


def _sums(dtype: jnp.dtype) -> jnp.dtype:
    """In what products of such numbers are added up: no narrower than float32."""
    return jnp.promote_types(dtype, jnp.float32)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.dot(a, b, preferred_element_type=_sums(a.dtype))


def _product_over_places(a: jax.Array, b: jax.Array) -> jax.Array:
    """a[B, H, W, J], b[B, H, W, K] -> [J, K], summed over images and places."""
    flat = (a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1]))
    over_both = (((0,), (0,)), ((), ()))
    return jax.lax.dot_general(*flat, over_both, preferred_element_type=_sums(a.dtype))


def _turned(kernel: jax.Array) -> jax.Array:
    """The kernel of the gradient of the input: [h, w, features, channels]."""
    return kernel[::-1, ::-1].transpose(0, 1, 3, 2)


def _turned_pads(pads: Pads, window: tuple[int, int]) -> Pads:
    rows, columns = ((k - 1 - p[0], k - 1 - p[1]) for k, p in zip(window, pads, strict=True))
    return rows, columns


def _pull_by_input(
    x: jax.Array, kernel: jax.Array, pads: Pads, dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Gradients with the patches of the input."""
    window = kernel.shape[:2]
    dkernel = _product_over_places(patches(pad(x, pads), window), dy)
    dx = _by_shifts(dy, _turned(kernel), _turned_pads(pads, window))
    return dx, dkernel.reshape(kernel.shape)


def _pull_by_output(
    x: jax.Array, kernel: jax.Array, pads: Pads, dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Gradients with the patches of the output's gradient, which serve both."""
    kh, kw, channels, features = kernel.shape
    columns = patches(pad(dy, _turned_pads(pads, (kh, kw))), (kh, kw))
    dx = _dot(columns, _turned(kernel).reshape(kh * kw * features, channels))
    dkernel = _product_over_places(x, columns).reshape(channels, kh, kw, features)
    return dx, dkernel[:, ::-1, ::-1].transpose(1, 2, 0, 3)


class _Blocks(NamedTuple):
    """A convolution of stride 1 and its gradients, for some images at a time.

    forward: (x, kernel, pads) -> y    pull: (x, kernel, pads, dy) -> gradients of x and kernel
    widest: (channels, features) -> channels of what patches or shifts are made of
    """

    forward: Callable[..., jax.Array]
    pull: Callable[..., tuple[jax.Array, jax.Array]]
    widest: Callable[[int, int], int]

    def images(self, x: jax.Array, kernel: jax.Array) -> int:
        """How many images at a time: a divisor of the batch."""
        kh, kw, channels, features = kernel.shape
        width = kh * kw * self.widest(channels, features)
        one = x.shape[1] * x.shape[2] * width * x.dtype.itemsize
        # Each block reads the kernel and adds to its gradient: it should be no smaller than these.
        most = max(1, max(_BLOCK_BYTES, _KERNELS * kernel.size * kernel.dtype.itemsize) // one)
        return max(n for n in range(1, len(x) + 1) if len(x) % n == 0 and n <= most)

    @functools.cache  # noqa: B019 (three of them live as long as the module)
    def convolution(self, pads: Pads) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """With its own gradient, which makes the patches again instead of keeping them."""

        def apply(x: jax.Array, kernel: jax.Array) -> jax.Array:
            blocks = x.reshape(-1, self.images(x, kernel), *x.shape[1:])
            y = jax.lax.map(lambda x: self.forward(x, kernel, pads).astype(x.dtype), blocks)
            return y.reshape(len(x), *y.shape[2:])

        def pull(saved: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
            x, kernel = saved
            images = self.images(x, kernel)

            def add(total: jax.Array, block: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
                x, dy = block
                dx, dkernel = self.pull(x, kernel, pads, dy)
                return total + dkernel, dx.astype(x.dtype)

            zeros = jnp.zeros(kernel.shape, _sums(kernel.dtype))
            blocks = tuple(a.reshape(-1, images, *a.shape[1:]) for a in (x, dy))
            dkernel, dx = jax.lax.scan(add, zeros, blocks)
            return dx.reshape(x.shape), dkernel.astype(kernel.dtype)

        convolution = jax.custom_vjp(apply)
        convolution.defvjp(lambda x, w: (apply(x, w), (x, w)), pull)
        return convolution

    def __call__(self, x: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> jax.Array:
        if stride == 1:
            return self.convolution(pads)(x, kernel)
        # With a stride: the sum of convolutions of stride 1, each of every stride-th row and column
        # with every stride-th row and column of the kernel.
        x, no_pads = pad(x, pads), ((0, 0), (0, 0))
        (kh, kw), (_, height, width, _) = kernel.shape[:2], x.shape
        out = (height - kh) // stride + 1, (width - kw) // stride + 1
        total = None
        for i in range(min(stride, kh)):
            for j in range(min(stride, kw)):
                part = kernel[i::stride, j::stride]
                plane = x[:, i::stride, j::stride]
                plane = plane[:, : out[0] + part.shape[0] - 1, : out[1] + part.shape[1] - 1]
                y = self.convolution(no_pads)(plane, part)
                total = y if total is None else total + y
        return total


# --- the choice -----------------------------------------------------------------------------------

# (x[B, H, W, C], kernel[h, w, C, features], stride, pads) -> [B, H', W', features]
LOWERINGS: dict[str, Callable[[jax.Array, jax.Array, int, Pads], jax.Array]] = {
    # XLA's convolution; under vmap one grouped convolution over the lanes.
    "lax": _lax,
    # One XLA convolution for each lane.
    "lax_per_lane": _lax_per_lane,
    # XLA's convolution with channels padded to a multiple of 8.
    "lax_padded": _lax_padded,
    # One matrix product with all patches of the input.
    "patches": _patches,
    # The rest: some images at a time. For many features: patches of the input, also for gradients.
    "input_patches": _Blocks(_from_patches, _pull_by_input, lambda c, f: c),
    # For few features: shifted products, and patches of the output's gradient.
    "output_patches": _Blocks(_by_shifts, _pull_by_output, lambda c, f: f),
    # Patches of whatever is given: of the input forward, of the output's gradient back.
    "both_patches": _Blocks(_from_patches, _pull_by_output, max),
}


def by_rule(shape: ConvShape) -> str:
    """The lowering where nothing was measured: what was best on the machines tried."""
    if jax.default_backend() != "cpu":
        return "lax"
    if shape.stride > 1 or 2 * shape.channels < shape.features:
        return "input_patches"
    return "output_patches" if shape.channels >= 2 * shape.features else "both_patches"


Choice = Callable[[ConvShape], str]  # Gives the name of a lowering.
_choice: contextvars.ContextVar[Choice] = contextvars.ContextVar("lowering", default=by_rule)


@contextlib.contextmanager
def chosen_by(choice: Choice) -> Iterator[None]:
    """While open, convolutions that are traced are lowered by this choice."""
    token = _choice.set(choice)
    try:
        yield
    finally:
        _choice.reset(token)


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: str = "SAME") -> jax.Array:
    """The convolution (cross-correlation) of images with a kernel, by the lowering chosen for it.

    Args:
      x: [B, H, W, C]    kernel: [h, w, C, features], of the same dtype
      padding: "SAME" (TensorFlow's: the odd row or column at the bottom and right) or "VALID"

    Returns:
      [B, H', W', features]
    """
    kh, kw, channels, features = kernel.shape
    if (kh, kw) == (1, 1):
        return jnp.dot(x[:, ::stride, ::stride], kernel[0, 0])
    size, window = x.shape[1:3], (kh, kw)
    shape = ConvShape(*size, channels, features, window, stride, padding, x.dtype.name)
    lowering = LOWERINGS[_choice.get()(shape)]
    return lowering(x, kernel, stride, pads_of(size, window, stride, padding))
