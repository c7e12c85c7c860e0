"""From a checked sweep to workers that run it, with the progress of all of them in one line."""

from __future__ import annotations

import time
from pathlib import Path

from rethink_jax import executors, records, shown, signals, status
from rethink_jax.cli import EXIT_INTERRUPTED, EXIT_OK
from rethink_jax.executors import Command, Executor, How
from rethink_jax.progress import Counter
from rethink_jax.schema import UserError
from rethink_jax.slices import WHOLE
from rethink_jax.sweep import Sweep

_SECONDS_BETWEEN_LOOKS = 2.0
_ENDED = ("fitted", "finished", "diverged", "failed")


def run(sweep: Sweep, workdir: Path, executor: Executor, command: Command, how: How) -> int:
    """Runs a sweep by workers until every slice has ended; returns the exit code.

    Raises:
      UserError: the user's mistake, found here or by a worker; or the executor cannot run.
    """
    if sweep.part != WHOLE:
        raise UserError(
            f"--shard={sweep.part} and --executor={how.executor} are two ways to split a sweep; "
            "leave one out"
        )
    directory = records.Workdir(workdir)
    directory.create()
    workers = min(how.workers or executor.places, executor.places)
    count = min(how.slices or workers, len(sweep.trials))
    shards = [f"{i}/{count}" for i in range(count)]
    with Counter("trials") as counter, signals.collected() as received:
        counter.total = len(sweep.trials)
        counter.say(
            f"{len(sweep.trials)} trials in {count} slices, by {how.executor}; "
            f"python -m launch.status --workdir={workdir} has more"
        )
        look = _Look(sweep, directory, counter)
        code = executors.drive(executor, command, shards, how.retries, counter.say, look, received)
    counts = status.View(workdir).read().counts
    said = ", ".join(f"{n} {name}" for name, n in counts.items() if n)
    ending = {EXIT_OK: "", EXIT_INTERRUPTED: "interrupted; the same command goes on; "}
    end = ending.get(code, "not all could be run; ")
    print(shown.line(f"{end}{said}; results in {workdir}"))
    return code


class _Look:
    """Shows how far the workers are, read from the workdir."""

    def __init__(self, sweep: Sweep, directory: records.Workdir, counter: Counter):
        self._ids = {t.trial_id for t in sweep.trials}
        self._directory, self._counter = directory, counter
        self._view: status.View | None = None
        self._last, self._done = 0.0, 0

    def __call__(self) -> None:
        if time.monotonic() - self._last < _SECONDS_BETWEEN_LOOKS:
            return
        self._last = time.monotonic()
        if self._view is None:
            if self._directory.history.first() is None:
                return  # No worker has begun.
            self._view = status.View(self._directory.path)
        now = self._view.read()
        done = sum(now.counts[name] for name in _ENDED)
        alive = [s for s in now.slices if s.state == "alive"]
        rate = sum(s.steps_per_second or 0 for s in alive)
        if done > self._done:
            self._counter.advance(
                done - self._done, f"{len(alive)} workers, {rate:,.0f} trial-steps/s"
            )
            self._done = done
