"""The small Inception of Zhang et al. (2017)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from rethink_jax.layers import Conv, Dropout, max_pool
from rethink_jax.models import initializers
from rethink_jax.schema import model_field

# After a first 3x3 convolution to 96 channels: (1x1 channels, 3x3 channels) of an inception
# module, or the 3x3 channels of a downsampling module.
_MODULES = (
    (32, 32), (32, 48), 80,
    (112, 48), (96, 64), (80, 80), (48, 96), 96,
    (176, 160), (176, 160),
)  # fmt: skip


class Inception(nn.Module):
    """Convolution modules (convolution, batch norm, ReLU), in pairs side by side; mean; dense.

    1,649,402 parameters on 3 input channels with 10 classes, also without batch normalization: its
    scale is left out, and the convolutions have a bias only where it is off. Dropout comes before
    the classifier.
    Source: Zhang et al. 2017, Figure 3 and Table 1; that scale and biases are left out follows from
    the number of parameters (and is the default of TF-slim).
    """

    num_classes: int
    batch_norm: bool = model_field(True, "batch normalization after every convolution")
    # UNSTATED in paper: TF-slim's default is 0.999, that of TensorFlow's Inception 0.9997.
    batch_norm_decay: float = model_field(0.99, "of the running averages", low=0, high=1)
    # UNSTATED in paper: how the weights start.
    kernel_init: str = model_field(
        "he_normal", "distribution of the first weights", choices=initializers.KERNELS
    )
    kernel_scale: float = model_field(1.0, "factor on the first weights", low=0)

    @nn.compact
    def __call__(
        self, images_BxHxWxC: jax.Array, train: bool, dropout_rate: jax.Array | float = 0.0
    ) -> jax.Array:
        kernel = initializers.scaled(self.kernel_init, self.kernel_scale)

        def module(x: jax.Array, channels: int, window: int, stride: int = 1) -> jax.Array:
            conv = Conv(
                channels, (window, window), stride, use_bias=not self.batch_norm, kernel_init=kernel
            )
            x = conv(x)
            if self.batch_norm:
                x = nn.BatchNorm(
                    use_running_average=not train,
                    momentum=self.batch_norm_decay,
                    epsilon=1e-3,
                    use_scale=False,
                )(x)
            return nn.relu(x)

        x = module(images_BxHxWxC, 96, 3)
        for channels in _MODULES:
            if isinstance(channels, int):
                branches = module(x, channels, 3, stride=2), max_pool(x, 3, 2)
            else:
                branches = module(x, channels[0], 1), module(x, channels[1], 3)
            x = jnp.concatenate(branches, axis=-1)
        # 7x7 places on 28x28 images.
        x_BxC = Dropout()(x.mean((1, 2)), dropout_rate, train)
        return nn.Dense(self.num_classes, kernel_init=kernel)(x_BxC)
