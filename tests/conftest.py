"""What all tests share: the devices, and small trials that compile in a second."""

import os
import tempfile

# Before anything asks jax for a device. Four one-core devices, so that layouts can be compared.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=4 --xla_cpu_multi_thread_eigen=false"
)
os.environ["JAX_PLATFORMS"] = "cpu"

# Shared by the tests of this session and by the commands that they start.
_cache = tempfile.TemporaryDirectory(prefix="rethink_jax_xla_")
os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"

import jax
import pytest

# Almost all of the suite's time is compilation; the programs here are too small to gain from it.
jax.config.update("jax_disable_most_optimizations", True)
# A silent broadcast of [N] against [N, 1] is the commonest way to a wrong number.
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def small_trial():
    """The nested fields of a trial that trains in milliseconds; change what a test is about."""

    def make(**changes):
        trial = {
            "seed": 0,
            "batch_size": 16,
            "data": {"name": "digits", "num_train": 64},
            "corruption": {},
            "preprocess": {},
            "model": {"name": "mlp", "hidden": (8,)},
            "optimizer": {"learning_rate": 0.1, "lr_decay": 1.0},
            "stop": {"max_epochs": 4},
        }
        for name, value in changes.items():
            *sections, leaf = name.split("__")
            node = trial
            for section in sections:
                node = node[section]
            node[leaf] = value
        return trial

    return make
