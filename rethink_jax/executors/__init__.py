"""Runs the slices of a sweep as processes of their own: on this machine, or by Ray on many.

A worker is the user's own command with `--shard=i/n`: it claims its slice, runs what is missing of
it and ends with the exit codes of any sweep. So a worker that dies is begun again, and loses what
came after its last checkpoint; results, progress and claims are in the workdir and nowhere else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from rethink_jax.cli import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_USER
from rethink_jax.schema import UserError

EXECUTORS = ("local", "processes", "ray")
_SECONDS_BETWEEN_LOOKS = 0.5


class Worker(Protocol):
    """A slice that is being run."""

    def poll(self) -> int | None:
        """The exit code, negative if a signal ended it; None while it runs."""

    def interrupt(self) -> None:
        """Asks it to save and end."""


class Executor(Protocol):
    """Where workers run. places: at most so many at once."""

    places: int

    def start(self, shard: str, place: int) -> Worker: ...

    def close(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class Command:
    """What every worker runs. argv: the user's own   log_dir: of what workers print"""

    argv: Sequence[str]
    log_dir: Path

    def of(self, shard: str) -> list[str]:
        # Of a flag that is given twice, the last one counts.
        own = [*self.argv[1:], "--executor=local", f"--shard={shard}"]
        return [sys.executable, "-m", "launch.sweep", *own]

    def log(self, shard: str) -> Path:
        return self.log_dir / f"{shard.replace('/', 'of')}.log"


@dataclasses.dataclass(frozen=True)
class How:
    """Where the slices of a sweep run.

    executor: of `EXECUTORS`   workers: at once; 0: one for each GPU, or as many as Ray has room for
    slices: 0: one for each worker   retries: of a slice whose worker dies
    ray_address, ray_cpus, ray_gpus: see `ray_tasks.RayTasks`
    """

    executor: str = "processes"
    workers: int = 0
    slices: int = 0
    retries: int = 3
    ray_address: str | None = None
    ray_cpus: float = 1.0
    ray_gpus: float = 0.0

    def __post_init__(self) -> None:
        for name in ("workers", "slices", "retries", "ray_cpus", "ray_gpus"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name} is {getattr(self, name)}; take 0 or more")


def run(how: How, config: Any, shard: str, workdir: Path, argv: Sequence[str]) -> int:
    """Runs a sweep by workers: from the command line to the exit code.

    Call it before jax is imported: Ray begins processes by forks, which jax's threads do not stand.

    Args:
      shard: as given; a sweep is not to be split twice.

    Raises:
      UserError: the user's mistake, found here or by a worker; or the executor cannot run here.
    """
    command = Command(argv, workdir / "logs")
    with contextlib.closing(_create(how, command)) as executor:
        import jax

        jax.config.update("jax_platforms", "cpu")  # The GPUs are the workers'.
        from rethink_jax import slices, sweep
        from rethink_jax.executors import launching

        made = sweep.Sweep(config, slices.parse(shard, os.environ))
        return launching.run(made, workdir, executor, command, how)


def _create(how: How, command: Command) -> Executor:
    if how.executor == "ray":
        from rethink_jax.executors.ray_tasks import RayTasks

        return RayTasks(command, how.ray_address, how.ray_cpus, how.ray_gpus, how.retries)
    from rethink_jax.executors import processes

    return processes.Processes(command, how.workers or processes.num_devices())


@dataclasses.dataclass
class _Slice:
    """code: how it has ended   begun: how often a worker was begun for it"""

    shard: str
    worker: Worker | None = None
    place: int = 0
    begun: int = 0
    code: int | None = None


def drive(
    executor: Executor,
    command: Command,
    shards: Sequence[str],
    retries: int,
    say: Callable[[str], None],
    look: Callable[[], None],
    signals: list[int],
) -> int:
    """Runs all slices, begins those again that die, and ends when all have ended.

    Args:
      retries: how often a slice is begun again
      say: takes lines for the user   look: called several times a second
      signals: as they come; after the first one, workers are asked to save and end

    Returns:
      the exit code: that of the user's mistake before that of an interruption before that of
      trials that failed.

    Raises:
      UserError: a worker said that the user made a mistake; the others have ended, too.
    """
    slices = [_Slice(shard) for shard in shards]
    free = list(range(min(executor.places, len(slices))))
    stopping, mistake = False, None
    while any(s.code is None for s in slices):
        for own in slices:
            if own.code is not None:
                continue
            if own.worker is None:
                if stopping or mistake:
                    own.code = EXIT_INTERRUPTED
                elif free:
                    own.place, own.begun = free.pop(0), own.begun + 1
                    own.worker = executor.start(own.shard, own.place)
            elif (code := own.worker.poll()) is not None:
                own.worker = None
                free.append(own.place)
                if code == EXIT_USER:
                    mistake = mistake or _mistake(command.log(own.shard))
                own.code = _ended(own, code, stopping, retries, command, say)
        if (signals or mistake) and not stopping:
            stopping = True
            for own in slices:
                if own.worker:
                    own.worker.interrupt()
        look()
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    if mistake:
        raise UserError(mistake)
    codes = {s.code for s in slices}
    return next((c for c in (EXIT_INTERRUPTED, EXIT_FAILED) if c in codes), EXIT_OK)


def _ended(
    own: _Slice,
    code: int,
    stopping: bool,
    retries: int,
    command: Command,
    say: Callable[[str], None],
) -> int | None:
    """How a slice has ended whose worker has; None: it is to be begun again."""
    if code in (EXIT_OK, EXIT_FAILED, EXIT_USER):
        return code
    if stopping:
        return EXIT_INTERRUPTED
    if own.begun <= retries:
        say(f"the worker of slice {own.shard} ended with code {code} and is begun again")
        return None
    say(
        f"the worker of slice {own.shard} ended {own.begun} times without finishing, the last time "
        f"with code {code}; what it said is in {command.log(own.shard)}"
    )
    return EXIT_FAILED


def _mistake(log: Path) -> str:
    """What a worker said last of a mistake."""
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return said[-1] if said else f"a worker refused to run; its last words are in {log}"


def devices_of(cores: int) -> dict[str, str]:
    """The environment of a worker that makes each of so many cores a device of its own.

    What this process has set is for all of its own cores.
    """
    count = "--xla_force_host_platform_device_count"
    others = re.sub(rf"{count}=\d+", "", os.environ.get("XLA_FLAGS", ""))
    return {"XLA_FLAGS": f"{others} {count}={cores}".strip()}


class Process:
    """A worker that is a process of this machine, in a session of its own.

    It does not outlive the process that begins it. command: an interpreter, -m, a module, ...
    cores: that it may use; none: all
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        env: dict[str, str],
        cores: Sequence[int] = (),
        folder: str | None = None,
    ):
        log.parent.mkdir(parents=True, exist_ok=True)
        places = ",".join(map(str, cores))
        tied = [command[0], "-m", "rethink_jax.executors.worker", str(os.getpid()), places]
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [*tied, *command[1:]], stdout=out, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, env=os.environ | env, cwd=folder, start_new_session=True,
            )  # fmt: skip

    def poll(self) -> int | None:
        return self._process.poll()

    def wait(self) -> int:
        return self._process.wait()

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGTERM)
