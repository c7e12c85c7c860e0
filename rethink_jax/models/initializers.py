"""Initial weights by name."""

from __future__ import annotations

import flax.linen as nn
import jax

KERNELS = {
    "lecun_normal": nn.initializers.lecun_normal(),
    "he_normal": nn.initializers.he_normal(),
    "glorot_uniform": nn.initializers.glorot_uniform(),
    "truncated_normal": nn.initializers.truncated_normal(stddev=1.0),
}


def scaled(name: str, scale: float) -> nn.initializers.Initializer:
    """The initializer `name` times `scale`.

    For truncated_normal, `scale` is the deviation before the cut at two deviations, as TensorFlow
    counts it; 0.88 of it is left.
    """

    def init(key: jax.Array, shape: tuple[int, ...], *args: object) -> jax.Array:
        return scale * KERNELS[name](key, shape, *args)

    return init
