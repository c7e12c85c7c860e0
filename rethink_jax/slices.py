"""Slices: which trials of a sweep one process runs, where several share a workdir.

Slice i of n takes every n-th trial, from the i-th on, in the order in which they are started:
group by group, those expected to run longest first. So no slice has two trials more than another,
in all or of one group, and who runs what follows from the config alone.
"""

from __future__ import annotations

import dataclasses
import os
import re
import socket
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from rethink_jax.schema import UserError, first_line

if TYPE_CHECKING:  # Names of files are needed where jax is not.
    from rethink_jax.trials import Group

_NEEDS = "it needs i/n with 0 <= i < n, as in --shard=3/4 for the last of four, or auto"


class Slice(NamedTuple):
    """Part `index` (from 0) of `count` parts of a sweep."""

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def name(self) -> str:
        """As it stands in names of files."""
        return f"{self.index}of{self.count}"

    def checkpoints(self, group_id: str) -> str:
        """The name of the folder for checkpoints of its part of a group."""
        return group_id if self.count == 1 else f"{group_id}.{self.name}"

    @staticmethod
    def of_checkpoints(folder: str, group_id: str) -> Slice | None:
        """Whose checkpoints of a group are in a folder of that name; None: nobody's."""
        found = re.fullmatch(rf"{re.escape(group_id)}(?:\.(\d+)of(\d+))?", folder)
        if found is None:
            return None
        return Slice(int(found[1]), int(found[2])) if found[1] else WHOLE


WHOLE = Slice()


def parse(text: str, environ: Mapping[str, str]) -> Slice:
    """The slice that a user names: "i/n", or "auto" for what the cluster says of this process.

    Raises:
      UserError: it is none, or no cluster that is known here says anything.
    """
    if text == "auto":
        return _from_environment(environ)
    found = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
    if not found:
        raise UserError(f"--shard is {text!r}; {_NEEDS}")
    return _checked(int(found[1]), int(found[2]), f"--shard is {text!r}")


def _checked(index: int, count: int, given: str) -> Slice:
    if not 0 <= index < count:
        raise UserError(f"{given}; {_NEEDS}")
    return Slice(index, count)


def _from_environment(environ: Mapping[str, str]) -> Slice:
    """Tasks of a SLURM array, each maybe of several processes; else an MPI job; else a TPU pod."""
    found: Slice | None = None
    if "SLURM_ARRAY_TASK_ID" in environ:
        names = [f"SLURM_ARRAY_TASK_{n}" for n in ("ID", "MIN", "STEP", "COUNT")]
        task, first, step, count = _numbers(environ | {names[2]: environ.get(names[2], "1")}, names)
        index, rest = divmod(task - first, max(step, 1))
        if rest:
            raise UserError(
                f"--shard=auto: task {task} is none of {first}, {first + step}, ...; number the "
                "array evenly, as in --array=0-7, or write --shard=i/n"
            )
        found = _checked(index, count, f"--shard=auto is task {index} of an array of {count}")
    # The number of tasks of a step is there inside srun alone: a batch script outside of it is one
    # process, however many tasks the job has.
    for rank, size in (
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ):
        if rank in environ and size in environ:
            index, count = _numbers(environ, (rank, size))
            outer = found or WHOLE
            given = f"--shard=auto is process {index} of {count}"
            return _checked(outer.index * count + index, outer.count * count, given)
    if found is None and "TPU_WORKER_ID" in environ and "TPU_WORKER_HOSTNAMES" in environ:
        (index,) = _numbers(environ, ("TPU_WORKER_ID",))
        count = len(environ["TPU_WORKER_HOSTNAMES"].split(","))
        found = _checked(index, count, f"--shard=auto is host {index} of {count}")
    if found is None:
        raise UserError(
            "--shard=auto finds neither a SLURM array or step, nor an MPI job, nor a TPU pod in "
            "the environment; write --shard=i/n"
        )
    return found


def _numbers(environ: Mapping[str, str], names: Sequence[str]) -> list[int]:
    for name in names:
        if not re.fullmatch(r"\d+", environ.get(name, "")):
            raise UserError(
                f"--shard=auto needs a number in ${name}, which is {environ.get(name)!r}; "
                "write --shard=i/n"
            )
    return [int(environ[name]) for name in names]


def of_process() -> Slice:
    """Asks jax.distributed which of how many processes this is; its part of a sweep.

    They meet to count themselves and part again: else jax would end those that are still at work
    minutes after another one has finished or died.

    jax knows SLURM, MPI, TPU pods and Kubernetes; elsewhere JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID say which processes there are.

    Raises:
      UserError: it finds none, or they do not meet.
    """
    import jax

    _check_port(os.environ)
    known = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    try:
        numbers = {k: int(os.environ[k]) for k in known if k in os.environ}
        jax.distributed.initialize(
            **{k.removeprefix("JAX_").lower(): v for k, v in numbers.items()}
        )
        part = Slice(jax.process_index(), jax.process_count())
        jax.distributed.shutdown()
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"--distributed: {first_line(error)}; set JAX_COORDINATOR_ADDRESS=HOST:PORT, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID, or write --shard=i/n instead"
        ) from error
    # Orbax, which asks jax by these names, would have the first one
    # write for all, and all wait for all at each checkpoint.
    jax.process_index, jax.process_count = lambda *_: 0, lambda *_: 1
    return part


def _check_port(environ: Mapping[str, str]) -> None:
    """Raises UserError if the first process cannot listen where it should; jax would crash."""
    address = environ.get("JAX_COORDINATOR_ADDRESS", "")
    port = address.rpartition(":")[2]
    if environ.get("JAX_PROCESS_ID") != "0" or not port.isdigit():
        return
    try:
        socket.create_server(("", int(port))).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--distributed: JAX_COORDINATOR_ADDRESS is {address}, and this process cannot listen "
            f"there ({error}); name another port"
        ) from error


def own(groups: Sequence[Group], part: Slice) -> list[Group]:
    """What a slice has of each group; groups of which it has nothing are left out."""
    found, before = [], 0
    for group in groups:
        first = (part.index - before) % part.count
        if trials := group.trials[first :: part.count]:
            found.append(dataclasses.replace(group, trials=trials))
        before += len(group.trials)
    return found
