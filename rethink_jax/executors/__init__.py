"""Runs the slices of a sweep as processes of their own: on this machine, or by Ray on many.

A worker is the user's own command with `--shard=i/n`: it claims its slice, runs what is missing of
it and ends with the exit codes of any sweep. So a worker that dies is begun again, and loses what
came after its last checkpoint; results, progress and claims are in the workdir and nowhere else.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from rethink_jax.cli import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_USER
from rethink_jax.schema import UserError

EXECUTORS = ("local", "processes", "ray")
_SECONDS_BETWEEN_LOOKS = 0.5
_DIES_WITH_PARENT = 1  # Of Linux's prctl.


class Worker(Protocol):
    """A slice that is being run."""

    def poll(self) -> int | None:
        """The exit code, negative if a signal ended it; None while it runs."""

    def interrupt(self) -> None:
        """Asks it to save and end."""


class Executor(Protocol):
    """Where workers run."""

    def start(self, shard: str) -> Worker: ...

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


@dataclasses.dataclass
class _Slice:
    worker: Worker | None = None
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
    slices = {shard: _Slice() for shard in shards}
    asked, mistake = False, None
    while any(s.code is None for s in slices.values()):
        for shard, own in slices.items():
            if own.code is not None:
                continue
            if own.worker is None:
                if asked:
                    own.code = EXIT_INTERRUPTED
                else:
                    own.worker, own.begun = executor.start(shard), own.begun + 1
                continue
            code = own.worker.poll()
            if code is None:
                continue
            own.worker = None
            if code == EXIT_USER:
                mistake = mistake or _mistake(command.log(shard))
            if code in (EXIT_OK, EXIT_FAILED, EXIT_USER) or asked:
                own.code = code
            elif own.begun <= retries:
                say(f"the worker of {shard} ended with code {code} and is begun again")
            else:
                say(
                    f"the worker of {shard} ended {own.begun} times without finishing; its last "
                    f"words are in {command.log(shard)}"
                )
                own.code = EXIT_FAILED
        if (signals or mistake) and not asked:
            asked = True
            for own in slices.values():
                if own.worker:
                    own.worker.interrupt()
        look()
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    if mistake:
        raise UserError(mistake)
    codes = {s.code for s in slices.values()}
    return next((c for c in (EXIT_INTERRUPTED, EXIT_FAILED) if c in codes), EXIT_OK)


def _mistake(log: Path) -> str:
    """What a worker said last of a mistake."""
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return said[-1] if said else f"a worker refused to run; its last words are in {log}"


class Process:
    """A worker that is a process of this machine, in a session of its own.

    It does not outlive the process that begins it.
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

        def prepare() -> None:
            if sys.platform == "linux":
                ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGKILL)
            if cores:
                os.sched_setaffinity(0, cores)

        with log.open("ab") as out:
            self._process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env=os.environ | env, cwd=folder, start_new_session=True, preexec_fn=prepare,
            )  # fmt: skip

    def poll(self) -> int | None:
        return self._process.poll()

    def wait(self) -> int:
        return self._process.wait()

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGTERM)
