"""Published numbers of kernel machines: Table 3 of Zhang et al. (2017) and the text around it.

UNSTATED: the bandwidth of the Gaussian kernel, the Gabor wavelets, how labels became numbers, and
which norm is meant. The tables are of kernels without regularization, on all training images.
"""

from __future__ import annotations

from typing import NamedTuple

from rethink_jax.paper import Published


class Machine(NamedTuple):
    """data: as in a config   features: as in `theory.features`   l2: whether regularized"""

    data: str
    features: str
    l2: bool = False


_GAUSSIAN = "Gaussian kernel on pixels (said in CACM 2021)"
_CONVNET = "random convolutional network with 32,000 filters"

TEST_ERRORS = {
    Machine("mnist", "raw"): Published(0.012, "Table 3", "printed", row="none", note=_GAUSSIAN),
    Machine("mnist", "gabor"): Published(0.006, "Table 3", "printed", row="gabor filters"),
    Machine("cifar10", "raw"): Published(0.46, "Table 3", "printed", row="none", note=_GAUSSIAN),
    Machine("cifar10", "patches"): Published(
        0.17, "Table 3", "printed", row="random conv-net", note=_CONVNET
    ),
    Machine("cifar10", "patches", l2=True): Published(
        0.15, "Section 5", "printed", note=f"{_CONVNET}, with an l2 regularizer"
    ),
}

# "Approximately": of the minimum-norm solution.
NORMS = {
    Machine("mnist", "raw"): Published(220.0, "Section 5", "printed"),
    Machine("mnist", "gabor"): Published(390.0, "Section 5", "printed"),
}
