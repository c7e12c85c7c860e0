"""Inception V3, the ImageNet network of Zhang et al. (2017)."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rethink_jax.layers import Conv, Dropout, avg_pool, max_pool
from rethink_jax.models import initializers
from rethink_jax.schema import UserError, model_field


class _Unit(NamedTuple):
    """A convolution, its batch normalization, and ReLU, as the tables below name them."""

    channels: int
    height: int = 1
    width: int = 1
    stride: int = 1
    padding: str = "SAME"


# A tuple is one thing after the other, a list is things side by side, their channels put together.
_Part = _Unit | str | tuple["_Part", ...] | list["_Part"]

# The sides are those of an image of 299x299.
_TO_35: _Part = (
    _Unit(32, 3, 3, 2, "VALID"), _Unit(32, 3, 3, 1, "VALID"), _Unit(64, 3, 3), "max_pool",
    _Unit(80), _Unit(192, 3, 3, 1, "VALID"), "max_pool",
)  # fmt: skip


def _mixed_35(pool_channels: int) -> _Part:
    return [
        _Unit(64),
        (_Unit(48), _Unit(64, 5, 5)),
        (_Unit(64), _Unit(96, 3, 3), _Unit(96, 3, 3)),
        ("avg_pool", _Unit(pool_channels)),
    ]


_TO_17: _Part = [
    _Unit(384, 3, 3, 2, "VALID"),
    (_Unit(64), _Unit(96, 3, 3), _Unit(96, 3, 3, 2, "VALID")),
    "max_pool",
]


def _mixed_17(n: int) -> _Part:
    return [
        _Unit(192),
        (_Unit(n), _Unit(n, 1, 7), _Unit(192, 7, 1)),
        (_Unit(n), _Unit(n, 7, 1), _Unit(n, 1, 7), _Unit(n, 7, 1), _Unit(192, 1, 7)),
        ("avg_pool", _Unit(192)),
    ]


_TO_8: _Part = [
    (_Unit(192), _Unit(320, 3, 3, 2, "VALID")),
    (_Unit(192), _Unit(192, 1, 7), _Unit(192, 7, 1), _Unit(192, 3, 3, 2, "VALID")),
    "max_pool",
]
_MIXED_8: _Part = [
    _Unit(320),
    (_Unit(384), [_Unit(384, 1, 3), _Unit(384, 3, 1)]),
    (_Unit(448), _Unit(384, 3, 3), [_Unit(384, 1, 3), _Unit(384, 3, 1)]),
    ("avg_pool", _Unit(192)),
]
_BEFORE_AUXILIARY_HEAD: _Part = (
    _TO_35, _mixed_35(32), _mixed_35(64), _mixed_35(64),
    _TO_17, _mixed_17(128), _mixed_17(160), _mixed_17(160), _mixed_17(192),
)  # fmt: skip
_AFTER_IT: _Part = (_TO_8, _MIXED_8, _MIXED_8)
# The least height and width of an image, for the auxiliary head's 5x5 pool and without it.
_SMALLEST = {True: 107, False: 75}


class InceptionV3(nn.Module):
    """The published network: 94 convolutions, each with batch norm and ReLU; mean; dropout; dense.

    Trainable parameters, with 3 input channels and 1000 classes: 23,817,352 without the auxiliary
    head, as Keras counts them (torchvision's 23,834,568 include 17,216 scales of the batch
    normalization, which TensorFlow leaves out). The auxiliary head has, at 299x299 pixels,
    98,432 + 2,458,368 + 769,000 = 3,325,800 more, in all 27,143,152 (torchvision: 27,161,264 with
    18,112 scales). Its 768 channels see the whole of its map, so that it has fewer on smaller
    images.

    In training the auxiliary head's logits are sown into the collection "auxiliary".

    Raises:
      UserError: height or width under 107 pixels, or under 75 without the auxiliary head.

    Source: Szegedy et al. 2015, arXiv:1512.00567, as in the inception_model.py of
    github.com/tensorflow/models, from which the values of the fields are, too. That has 1001
    classes, one of them for the background. Zhang et al. 2017 name the network and the package.
    """

    num_classes: int
    # UNSTATED in Zhang et al. 2017: whether the auxiliary head was used; it is in the package.
    auxiliary_head: bool = model_field(True, "a second classifier, in training, half way up")
    batch_norm_decay: float = model_field(0.9997, "of the running averages", low=0, high=1)
    kernel_init: str = model_field(
        "tensorflow",
        "distribution of the first weights; tensorflow: as its package has them",
        choices=("tensorflow", *initializers.KERNELS),
    )
    kernel_scale: float = model_field(1.0, "factor on the first weights", low=0)
    # Ours, to try things out on a small network.
    width_multiplier: float = model_field(1.0, "factor on the channels of all layers", low=0)

    @nn.compact
    def __call__(
        self, images_BxHxWxC: jax.Array, train: bool, dropout_rate: jax.Array | float = 0.0
    ) -> jax.Array:
        self._check_size(*images_BxHxWxC.shape[1:3])
        x = self._run(_BEFORE_AUXILIARY_HEAD, images_BxHxWxC, train)
        if self.auxiliary_head and (train or self.is_initializing()):
            auxiliary_BxY = self._auxiliary_logits(x, train)
            if train:
                self.sow("auxiliary", "logits", auxiliary_BxY)
        x = self._run(_AFTER_IT, x, train)
        x_BxC = Dropout()(x.mean((1, 2)), dropout_rate, train)
        return nn.Dense(self.num_classes, kernel_init=self._kernel(0.01))(x_BxC)

    def _run(self, part: _Part, x: jax.Array, train: bool) -> jax.Array:
        """What a part of the tables makes of x."""
        match part:
            case _Unit():
                return self._unit(part, x, train)
            case "max_pool":
                return max_pool(x, 3, 2, "VALID")
            case "avg_pool":
                return avg_pool(x, 3, 1)
            case list():
                return jnp.concatenate([self._run(p, x, train) for p in part], axis=-1)
        for step in part:
            x = self._run(step, x, train)
        return x

    def _auxiliary_logits(self, x: jax.Array, train: bool) -> jax.Array:
        x = self._unit(_Unit(128), avg_pool(x, 5, 3, "VALID"), train, "auxiliary_projection")
        whole = _Unit(768, *x.shape[1:3], padding="VALID")
        x = self._unit(whole, x, train, "auxiliary_whole", deviation=0.01)
        dense = nn.Dense(self.num_classes, kernel_init=self._kernel(0.001), name="auxiliary_dense")
        return dense(x.reshape(len(x), -1))

    def _unit(
        self, unit: _Unit, x: jax.Array, train: bool, name: str = "", deviation: float = 0.1
    ) -> jax.Array:
        """The layers of the auxiliary head have names, so that those after it keep theirs."""
        x = Conv(
            max(1, round(self.width_multiplier * unit.channels)),
            (unit.height, unit.width),
            unit.stride,
            unit.padding,
            use_bias=False,
            kernel_init=self._kernel(deviation),
            name=f"{name}_conv" if name else None,
        )(x)
        x = nn.BatchNorm(
            use_running_average=not train,
            momentum=self.batch_norm_decay,
            epsilon=1e-3,
            use_scale=False,
            name=f"{name}_norm" if name else None,
        )(x)
        return nn.relu(x)

    def _kernel(self, deviation: float) -> nn.initializers.Initializer:
        if self.kernel_init != "tensorflow":
            return initializers.scaled(self.kernel_init, self.kernel_scale)
        return initializers.scaled("truncated_normal", self.kernel_scale * deviation)

    def _check_size(self, height: int, width: int) -> None:
        smallest = _SMALLEST[self.auxiliary_head]
        if min(height, width) < smallest:
            without = (
                f", or {_SMALLEST[False]} with model.auxiliary_head=False"
                if self.auxiliary_head
                else ""
            )
            raise UserError(
                f"the network inception_v3 is given images of {height}x{width} pixels; it needs "
                f"at least {smallest}x{smallest}{without}. Take larger images (data.image_size, "
                "preprocess.crop_size), or the network 'inception'"
            )
