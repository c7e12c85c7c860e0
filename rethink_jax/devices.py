"""Sets up the devices of this process, before jax looks for them."""

from __future__ import annotations

import os


def available_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def setup() -> None:
    """Makes each CPU core a device of its own, and keeps compiled programs between runs.

    Lanes split over one-core devices train 1.5 to 2 times as many trials per second as all cores
    working on one kernel (BUILD_NOTES.md); kernels are single-threaded then. Of the backends only
    the CPU's is touched, and what the user has set stays. Call it before jax is imported.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    for name, value in (
        ("--xla_force_host_platform_device_count", str(available_cores())),
        ("--xla_cpu_multi_thread_eigen", "false"),
    ):
        if name not in flags:
            flags += f" {name}={value}"
    os.environ["XLA_FLAGS"] = flags.strip()
    # Singular values are computed by scipy's library, whose threads on all cores would be in the
    # way of the other devices, and of each other (BUILD_NOTES.md). It looks when it is loaded.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Compiled programs are kept between runs; on a GPU, by jax's default, also what it autotunes.
    # The folder can be moved or, set empty, turned off.
    cache = os.path.join(os.path.expanduser("~"), ".cache", "rethink_jax", "xla")
    if not os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache):
        # Else jax 0.10.2 would have a GPU's autotuning kept in the folder where the command runs.
        os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")
    # What copies lanes and images compiles faster than in the second that is jax's default.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


def cache_folder() -> str:
    """Where compiled programs and measurements of this machine are kept; empty if nowhere."""
    return os.environ.get("JAX_COMPILATION_CACHE_DIR", "")
