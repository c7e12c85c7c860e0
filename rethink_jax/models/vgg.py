"""The VGG networks: that of Neyshabur et al. (2017), and configuration D for small images."""

from __future__ import annotations

import flax.linen as nn
import jax

from rethink_jax.layers import Conv, Dropout, avg_pool, max_pool
from rethink_jax.models import initializers
from rethink_jax.schema import UserError, model_field


class VGG(nn.Module):
    """Stages of 3x3 convolutions, each with a pool at its end; dense layers.

    A layer is followed by batch normalization (scale and offset) if the fields say so, then ReLU;
    it has a bias only where there is no normalization. Dropout follows each pool and each hidden
    dense layer. Pools pad to whole windows, of which only what lies in the image counts.

    4,955,594 parameters on 32x32x3 images with 10 classes: 4,683,456 in the 8 convolution kernels
    and 3,840 in their normalizations, 262,144 + 1,024 in the hidden dense layer and its
    normalization, 5,130 in the classifier. As in the authors' code (no normalization of the
    convolutions) 4,953,674; the 512 further biases there, before a normalization, have no effect.

    Source: Neyshabur et al. 2017, arXiv:1706.08947: the stages, and for the rest its authors' code,
    github.com/bneyshabur/generalization-bounds. The supplement of the paper is remembered, not
    checked, to have batch normalization before every ReLU and a mean at the end, where the code
    has neither: hence the fields.
    """

    num_classes: int
    stages: tuple[int, ...] = model_field(
        (64, 128, 256, 512), "channels of each stage", each=int, low=1
    )
    convs: tuple[int, ...] = model_field(
        (2, 2, 2, 2), "convolutions of each stage", each=int, low=1
    )
    last_pool: str = model_field("avg", "kind of the last stage's pool", choices=("avg", "max"))
    last_window: int = model_field(4, "window and stride of the last stage's pool", low=1)
    dense: tuple[int, ...] = model_field(
        (512,), "width of each hidden dense layer", each=int, low=1
    )
    batch_norm: bool = model_field(True, "batch normalization after every convolution")
    dense_batch_norm: bool = model_field(True, "batch normalization after every hidden dense layer")
    pool_dropout: bool = model_field(True, "dropout after every pool, too")
    # UNSTATED in paper; the authors' code has PyTorch's default.
    batch_norm_decay: float = model_field(0.9, "of the running averages", low=0, high=1)
    # UNSTATED in paper: how the weights start; the authors' code has PyTorch's default.
    kernel_init: str = model_field(
        "he_normal", "distribution of the first weights", choices=initializers.KERNELS
    )
    kernel_scale: float = model_field(1.0, "factor on the first weights", low=0)

    def check(self) -> None:
        """Raises UserError unless `stages` and `convs` are of one length."""
        if len(self.stages) != len(self.convs):
            raise UserError(
                f"model.stages has {len(self.stages)} values {self.stages} and model.convs "
                f"{len(self.convs)} {self.convs}; set one number of convolutions for each stage"
            )

    @nn.compact
    def __call__(
        self, images_BxHxWxC: jax.Array, train: bool, dropout_rate: jax.Array | float = 0.0
    ) -> jax.Array:
        kernel = initializers.scaled(self.kernel_init, self.kernel_scale)

        def rectified(x: jax.Array, normalized: bool) -> jax.Array:
            if normalized:
                x = nn.BatchNorm(use_running_average=not train, momentum=self.batch_norm_decay)(x)
            return nn.relu(x)

        x = images_BxHxWxC
        for stage, (channels, convs) in enumerate(zip(self.stages, self.convs, strict=True), 1):
            for _ in range(convs):
                x = Conv(channels, (3, 3), use_bias=not self.batch_norm, kernel_init=kernel)(x)
                x = rectified(x, self.batch_norm)
            if stage < len(self.stages):
                x = max_pool(x, 2, 2)
            else:
                pool = {"avg": avg_pool, "max": max_pool}[self.last_pool]
                x = pool(x, self.last_window, self.last_window)
            if self.pool_dropout:
                x = Dropout()(x, dropout_rate, train)
        x_BxD = x.reshape(len(x), -1)
        for width in self.dense:
            x_BxD = nn.Dense(width, use_bias=not self.dense_batch_norm, kernel_init=kernel)(x_BxD)
            x_BxD = Dropout()(rectified(x_BxD, self.dense_batch_norm), dropout_rate, train)
        return nn.Dense(self.num_classes, kernel_init=kernel)(x_BxD)


class VGG16BN(VGG):
    """VGG-16 (configuration D) with batch normalization, its dense layers made for small images.

    15,249,354 parameters on 32x32x3 images with 10 classes, and as many on 28x28x3 ones, where the
    map has 28, 14, 7, 4, 2 and 1 rows: 14,710,464 in the 13 convolution kernels and 8,448 in their
    normalizations, 525,312 in two hidden dense layers, 5,130 in the classifier.

    Source: Simonyan & Zisserman 2015, arXiv:1409.1556, Table 1, column D: the convolutions and
    pools, and dropout after the hidden dense layers. Batch normalization and 512 in place of 4096
    dense units are ours, as is common on CIFAR-10.
    """

    stages: tuple[int, ...] = model_field(
        (64, 128, 256, 512, 512), "channels of each stage", each=int, low=1
    )
    convs: tuple[int, ...] = model_field(
        (2, 2, 3, 3, 3), "convolutions of each stage", each=int, low=1
    )
    last_pool: str = model_field("max", "kind of the last stage's pool", choices=("avg", "max"))
    last_window: int = model_field(2, "window and stride of the last stage's pool", low=1)
    dense: tuple[int, ...] = model_field(
        (512, 512), "width of each hidden dense layer", each=int, low=1
    )
    dense_batch_norm: bool = model_field(
        False, "batch normalization after every hidden dense layer"
    )
    pool_dropout: bool = model_field(False, "dropout after every pool, too")
