"""What all tests share: the devices, and small trials that compile in a second."""

import os
import tempfile

# Before anything asks jax for a device. Four one-core devices, so that layouts can be compared.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=4 --xla_cpu_multi_thread_eigen=false"
)
os.environ["JAX_PLATFORMS"] = "cpu"
# As commands do: threads of the library behind singular values would be in each other's way.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

# Shared by the tests of this session, its worker processes and the commands that they start.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="rethink_jax_xla_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"

import jax
import numpy as np
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


@pytest.fixture(scope="session")
def write_image_folder():
    """Makes train/ and val/ with class folders of small images, and returns the folder."""
    image_lib = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    pytest.importorskip("grain", reason="grain is not installed")

    def write(folder, classes=3, train=16, test=5, size=12, several_sizes=False):
        rng = np.random.Generator(np.random.Philox(1))
        for split, count in (("train", train), ("val", test)):
            for c in range(classes):
                (folder / split / f"class {c}").mkdir(parents=True)
                for i in range(count):
                    shape = rng.integers(size, 2 * size, 2) if several_sizes else (size, size)
                    # Its class is in the colours, the image itself in the noise.
                    pixels = rng.integers(0, 96, (*shape, 3), dtype=np.uint8)
                    pixels[..., c % 3] += 128
                    suffix = "jpeg" if several_sizes and i % 2 else "png"
                    path = folder / split / f"class {c}" / f"{i:03}.{suffix}"
                    image_lib.fromarray(pixels).save(path)
        return folder

    return write


@pytest.fixture
def epochs_at_begin(monkeypatch):
    """Epochs that the trials in the lanes had behind them, each time that a group began."""
    from rethink_jax.engine import GroupRun

    original, seen = GroupRun.begin, []

    def begin(self, *args):
        original(self, *args)
        seen.append(sorted(self.epochs_of.values()))

    monkeypatch.setattr(GroupRun, "begin", begin)
    return seen
