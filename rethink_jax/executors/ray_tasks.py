"""Workers as tasks of Ray: on this machine or on a cluster, with its scheduling and its retries."""

from __future__ import annotations

import logging
import os
import re
import socket
from pathlib import Path
from typing import Any

from rethink_jax.executors import Command, Process, devices_of
from rethink_jax.schema import UserError, first_line


class RayTasks:
    """Slices as Ray tasks, as many at once as the cluster has room for.

    All nodes need the same environment, the folder of the command, the data and the workdir, as on
    a shared file system.

    Args:
      address: of a running cluster, "auto" for the one that this machine is a node of; None: a
        cluster on this machine, that ends with the command
      cpus, gpus: of each task   retries: of each task, when its node or its worker dies

    Raises:
      UserError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(
        self, command: Command, address: str | None, cpus: float, gpus: float, retries: int
    ):
        try:
            import ray
        except ImportError as error:
            raise UserError(
                "--executor=ray needs ray; install it with: pip install 'rethink_jax[ray]'"
            ) from error
        self._ray, self._command = ray, command
        _check_address(address)
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(
                f"--ray_address={address}: {first_line(error)}; start a cluster with: ray start "
                "--head, or leave the address out"
            ) from error
        there = ray.cluster_resources()
        self.places = int(there.get("GPU", 0) // gpus if gpus else there.get("CPU", 0) // cpus)
        if not self.places:
            ray.shutdown()
            raise UserError(
                f"the cluster has {there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs, "
                f"and a task needs {cpus:g} and {gpus:g}; set --ray_cpus and --ray_gpus"
            )
        # A fresh process for each task, so that devices are free again when it ends.
        options: dict[str, Any] = {"max_calls": 1, "max_retries": retries, "num_cpus": cpus}
        if gpus:
            options["num_gpus"] = gpus
        self._task = ray.remote(**options)(_run)
        self._cores = 0 if gpus else max(int(cpus), 1)

    def start(self, shard: str, place: int) -> _Task:
        del place  # Ray knows what is free.
        log = str(self._command.log(shard).absolute())
        given = (self._command.of(shard), log, os.getcwd(), self._cores)
        return _Task(self._ray, self._task.remote(*given))

    def close(self) -> None:
        self._ray.shutdown()


def _check_address(address: str | None) -> None:
    """Raises UserError if nobody listens there; Ray itself would wait for minutes."""
    found = re.fullmatch(r"([^:/]+):(\d+)", address or "")
    if not found:
        return
    try:
        socket.create_connection((found[1], int(found[2])), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--ray_address={address}: {error}; start a cluster with: ray start --head, or leave "
            "the address out"
        ) from error


class _Task:
    def __init__(self, ray: Any, reference: Any):
        self._ray, self._reference = ray, reference

    def poll(self) -> int | None:
        done, _ = self._ray.wait([self._reference], timeout=0)
        if not done:
            return None
        try:
            return self._ray.get(self._reference)
        except self._ray.exceptions.RayError:
            return -1  # Its worker or its node has died more often than Ray tries.

    def interrupt(self) -> None:
        self._ray.cancel(self._reference)


def _run(command: list[str], log: str, folder: str, cores: int) -> int:
    """In Ray's worker: runs a slice to its end; cancelled, asks it to save and waits for that.

    cores: devices that it makes of the CPU; 0: as it would
    """
    # Ray counts them, and leaves it to the task to take no more.
    process = Process(command, Path(log), devices_of(cores) if cores else {}, folder=folder)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.interrupt()
        return process.wait()
