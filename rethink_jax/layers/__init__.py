"""The layers that flax lacks, or that XLA compiles badly inside the loops of this program."""

from rethink_jax.layers.conv import Conv
from rethink_jax.layers.dropout import Dropout
from rethink_jax.layers.lrn import local_response_norm
from rethink_jax.layers.ones_dense import OnesDense
from rethink_jax.layers.pool import avg_pool, max_pool

__all__ = ["Conv", "Dropout", "OnesDense", "avg_pool", "local_response_norm", "max_pool"]
