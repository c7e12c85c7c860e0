"""Sets up the devices of this process, before jax looks for them."""

from __future__ import annotations

import os


def available_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def setup() -> None:
    """Makes each CPU core a device of its own, running single-threaded kernels.

    Lanes split over one-core devices train 1.5 to 2 times as many trials per second as all cores
    working on one kernel (BUILD_NOTES.md). Only the CPU backend is touched, and what the user has
    put into XLA_FLAGS stays. Call it before anything asks jax for a device.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    for name, value in (
        ("--xla_force_host_platform_device_count", str(available_cores())),
        ("--xla_cpu_multi_thread_eigen", "false"),
    ):
        if name not in flags:
            flags += f" {name}={value}"
    os.environ["XLA_FLAGS"] = flags.strip()
    # Compiled programs are kept between runs. The folder can be moved or, set empty, turned off.
    default = os.path.join(os.path.expanduser("~"), ".cache", "rethink_jax", "xla")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", default)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


def cache_folder() -> str:
    """Where compiled programs and measurements of this machine are kept; empty if nowhere."""
    return os.environ.get("JAX_COMPILATION_CACHE_DIR", "")
