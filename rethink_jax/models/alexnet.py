"""The small Alexnet of Zhang et al. (2017)."""

from __future__ import annotations

import flax.linen as nn
import jax

from rethink_jax.layers import Conv, Dropout, local_response_norm, max_pool
from rethink_jax.models import initializers
from rethink_jax.schema import model_field

# The deviations and biases of TensorFlow's CIFAR-10 tutorial, from which the network comes:
# (truncated normal's deviation, bias) of conv 1, conv 2, dense 384, dense 192, the classifier.
_TUTORIAL = ((0.05, 0.0), (0.05, 0.1), (0.04, 0.1), (0.04, 0.1), (1 / 192, 0.0))


class AlexNet(nn.Module):
    """Twice (5x5 convolution to 64 channels, ReLU, 3x3 max-pool by 2, LRN), then dense 384, 192.

    1,387,786 parameters on 28x28x3 images with 10 classes. Dropout follows each hidden dense layer.
    Source: Zhang et al. 2017, Appendix A and Table 1; channels and padding follow from the number
    of parameters, LRN's constants from TensorFlow's tutorial.
    """

    num_classes: int
    # The tutorial's second module has LRN before the pool; the paper's text has it after, in both.
    order: str = model_field(
        "paper",
        "paper: pool, LRN in both modules; tutorial: LRN, pool in the second",
        choices=("paper", "tutorial"),
    )
    # UNSTATED in paper: how weights and biases start.
    kernel_init: str = model_field(
        "tutorial",
        "distribution of the first weights; tutorial: TensorFlow's, with its own biases",
        choices=("tutorial", *initializers.KERNELS),
    )
    kernel_scale: float = model_field(1.0, "factor on the first weights", low=0)

    @nn.compact
    def __call__(
        self, images_BxHxWxC: jax.Array, train: bool, dropout_rate: jax.Array | float = 0.0
    ) -> jax.Array:
        x = images_BxHxWxC
        for module in range(2):
            x = nn.relu(Conv(64, (5, 5), **self._first(module))(x))
            if self.order == "tutorial" and module == 1:
                x = max_pool(local_response_norm(x), 3, 2)
            else:
                x = local_response_norm(max_pool(x, 3, 2))
        x_BxD = x.reshape(len(x), -1)
        for layer, width in enumerate((384, 192), start=2):
            x_BxD = nn.relu(nn.Dense(width, **self._first(layer))(x_BxD))
            x_BxD = Dropout()(x_BxD, dropout_rate, train)
        return nn.Dense(self.num_classes, **self._first(4))(x_BxD)

    def _first(self, layer: int) -> dict[str, nn.initializers.Initializer]:
        """How the weights and biases of a layer start."""
        if self.kernel_init != "tutorial":
            return {"kernel_init": initializers.scaled(self.kernel_init, self.kernel_scale)}
        deviation, bias = _TUTORIAL[layer]
        kernel = initializers.scaled("truncated_normal", self.kernel_scale * deviation)
        return {"kernel_init": kernel, "bias_init": nn.initializers.constant(bias)}
