"""Workers as processes of this machine, each with a part of its GPUs or cores."""

from __future__ import annotations

import os
import subprocess

from rethink_jax.executors import Command, Process, devices_of
from rethink_jax.schema import UserError


class Processes:
    """num_workers: at most so many slices are run at once

    Raises:
      UserError: more workers than GPUs or cores.
    """

    def __init__(self, command: Command, num_workers: int):
        self._command = command
        gpus = visible_gpus()
        cores = available_cores()
        what, there = ("GPUs", gpus) if gpus else ("cores", cores)
        if there and num_workers > len(there):
            raise UserError(
                f"--workers={num_workers}, and there are {len(there)} {what}; take at most "
                f"{len(there)}"
            )
        self.places = num_workers
        # Worker i has every num_workers-th of them, from the i-th on.
        self._gpus = [gpus[i::num_workers] for i in range(num_workers)]
        self._cores = [cores[i::num_workers] for i in range(num_workers)]

    def start(self, shard: str, place: int) -> Process:
        gpus, cores = self._gpus[place], self._cores[place]
        env = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}
        env |= devices_of(len(cores)) if cores else {}
        return Process(self._command.of(shard), self._command.log(shard), env, cores)

    def close(self) -> None:
        pass


def available_cores() -> list[int]:
    """The cores that this process may use; none where a process cannot be tied to some."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def num_devices() -> int:
    """GPUs of this machine; 1 where there is none, as all cores are devices of one process."""
    return max(len(visible_gpus()), 1)


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by their names for CUDA."""
    # Not by jax, which would take memory on each of them.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    if os.environ.get("JAX_PLATFORMS", "cuda").split(",")[0] not in ("cuda", "gpu"):
        return []
    try:
        found = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    return found.stdout.split()
