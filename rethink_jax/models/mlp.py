"""The fully connected networks of Zhang et al. (2017), of any widths."""

from __future__ import annotations

import flax.linen as nn
import jax

from rethink_jax.layers import Dropout
from rethink_jax.models import initializers
from rethink_jax.schema import model_field


class MLP(nn.Module):
    """Flatten; (dense, ReLU, dropout) for each hidden width; a dense layer to the classes.

    2352-512-10 has 1,209,866 parameters, 2352-512-512-512-10 has 1,735,178.
    Source: Zhang et al. 2017, Appendix A and Table 1.
    """

    # With more units the results are the same if their weights are 0 (see `models.widths`): such a
    # unit has activation 0, passes nothing on and has no gradient.
    widths = ("hidden",)

    num_classes: int
    hidden: tuple[int, ...] = model_field((512,), "width of each hidden layer", each=int, low=1)
    # UNSTATED in paper: how weights and biases start.
    kernel_init: str = model_field(
        "lecun_normal", "distribution of the first weights", choices=initializers.KERNELS
    )
    kernel_scale: float = model_field(1.0, "factor on the first weights", low=0)
    last_kernel_scale: float = model_field(1.0, "further factor, on those of the last layer", low=0)
    bias_init: float = model_field(0.0, "first value of the hidden layers' biases")

    @nn.compact
    def __call__(
        self, images_BxHxWxC: jax.Array, train: bool, dropout_rate: jax.Array | float = 0.0
    ) -> jax.Array:
        kernel = initializers.scaled(self.kernel_init, self.kernel_scale)
        x_BxD = images_BxHxWxC.reshape(len(images_BxHxWxC), -1)
        for width in self.hidden:
            bias = nn.initializers.constant(self.bias_init)
            x_BxD = nn.relu(nn.Dense(width, kernel_init=kernel, bias_init=bias)(x_BxD))
            x_BxD = Dropout()(x_BxD, dropout_rate, train)
        scale = self.kernel_scale * self.last_kernel_scale
        last = initializers.scaled(self.kernel_init, scale)
        return nn.Dense(self.num_classes, kernel_init=last)(x_BxD)
