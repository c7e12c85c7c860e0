"""What does not depend on a way: the machine, and what the networks cost."""

from __future__ import annotations

import os
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rethink_jax import header
from rethink_jax.bench.networks import NETWORKS, cost, make_task

# Highest rate of dense bfloat16 matrix products, in TFLOP/s, by a part of jax's device_kind. The
# first that fits is taken. Source: the manufacturers' data sheets, without sparsity.
_PEAK_TFLOPS = {
    "H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "L4": 121,
    "TPU v4": 275, "TPU v5 lite": 197, "TPU v5": 459, "TPU v6": 918,
}  # fmt: skip


class Facts:
    """Answers once, for the head of the tables."""

    def __init__(self, job: dict[str, Any]):
        self._command, self._batch = job["command"], job["batch"]

    def setup(self) -> dict[str, Any]:
        """Where this is run, and the task and cost of every network there."""
        device = jax.local_devices()[0]
        networks = {}
        for name in NETWORKS:
            task = make_task(name, device.platform, self._batch)
            networks[name] = {"task": task._asdict(), **cost(task)._asdict()}
        accelerator = device.platform != "cpu"
        return header.run_facts(self._command) | {
            "platform": device.platform,
            "load": os.getloadavg()[0],
            "device_kind": device.device_kind,
            "peak_tflops": peak_tflops(device.device_kind),
            "copy_bytes_per_second": _copy_bytes_per_second() if accelerator else None,
            "networks": networks,
        }


def peak_tflops(device_kind: str) -> float | None:
    """The highest rate of bfloat16 products of a kind of device; None if it is not known."""
    return next((peak for part, peak in _PEAK_TFLOPS.items() if part in device_kind), None)


def _copy_bytes_per_second(megabytes: int = 1024, repeats: int = 7) -> float:
    """Bytes read and written per second by a copy of a large array; the median of some."""
    array = jnp.zeros(megabytes * 2**20 // 4, jnp.float32)
    copy = jax.jit(lambda a: a + 1)  # A plain copy might be optimized away.
    jax.block_until_ready(copy(array))
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready([copy(array) for _ in range(4)][-1])
        seconds.append((time.perf_counter() - began) / 4)
    return 2 * array.nbytes / float(np.median(seconds))
