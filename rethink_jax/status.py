"""How far the sweeps of a workdir are: read from its files, while others write them."""

from __future__ import annotations

import csv
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from rethink_jax import claims, damaged, shown
from rethink_jax.progress import duration
from rethink_jax.records import Outcomes, Workdir
from rethink_jax.schema import UserError

STATUSES = ("planned", "running", "fitted", "finished", "diverged", "failed")
_LEFT = ("dead", "silent", "interrupted", "stopped")  # Slices that nobody runs.
_SHOWN = 8  # Running and failed trials that are named in the text.
_WATCH_SECONDS = 5.0


class SliceStatus(NamedTuple):
    """What one process does, or did last.

    state: alive; dead; silent (of another machine, with no heartbeat for a while);
      finished, failed, interrupted or stopped: how its last command ended
    done, total: trials of the slice   seconds_left: an estimate, while it is alive
    doing: what it is preparing, if it is not training
    """

    slice: str
    state: str
    host: str
    pid: int
    done: int
    total: int
    steps_per_second: float | None
    seconds_left: float | None
    doing: str = ""


class Status(NamedTuple):
    """How far a workdir is.

    counts: {status: trials}   running: (trial_id, slice, epochs done, of most)
    failed: {trial_id: reason}
    """

    workdir: str
    counts: dict[str, int]
    slices: list[SliceStatus]
    running: list[tuple[str, str, float, int]]
    failed: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return self._asdict() | {
            "slices": [s._asdict() for s in self.slices],
            "running": [
                dict(zip(("trial_id", "slice", "epochs", "max_epochs"), r, strict=True))
                for r in self.running
            ],
        }


class View:
    """Reads the status of a workdir, again and again.

    Of 10,000 results only those are opened that trials.csv has not as finished.

    Raises:
      UserError: not a workdir.
    """

    def __init__(self, workdir: str | Path):
        self._workdir = Workdir(workdir)
        self.check_there()
        self._outcomes = Outcomes(self._workdir.path)

    def check_there(self) -> None:
        """Raises UserError unless there is the workdir of a sweep."""
        if self._workdir.history.first() is None:
            theory = (self._workdir.path / "theory").is_dir()
            raise UserError(
                f"{self._workdir.path} is not a workdir: it has no run.json"
                + ("; its cases of theory are shown by launch.report" if theory else "")
            )

    def read(self) -> Status:
        """The status now."""
        statuses, reasons = self._table()
        ended = {i for i, s in statuses.items() if s in ("fitted", "finished", "diverged")}
        with damaged.reading(self._workdir.path):
            self._outcomes.refresh(strict=False, known=ended)
        for trial_id, result in self._outcomes.finished.items():
            statuses[trial_id] = result["status"]
        for trial_id, status in statuses.items():
            if status == "failed" and trial_id not in self._outcomes.failed:
                statuses[trial_id] = "planned"  # It is being tried again.
        for trial_id, record in self._outcomes.failed.items():
            statuses[trial_id] = "failed"
            reasons[trial_id] = record["stop_reason"]
        slices, running = [], []
        for found in claims.read_all(self._workdir.path):
            one = _slice(found, statuses)
            slices.append(one)
            for trial_id, *epochs in found.facts.get("progress", {}).get("running", []):
                if one.state == "alive" and statuses.get(trial_id) in ("planned", None):
                    statuses[trial_id] = "running"
                    running.append((trial_id, one.slice, *epochs))
        counted = Counter(statuses.values())
        return Status(
            str(self._workdir.path),
            {name: counted[name] for name in STATUSES},
            slices,
            running,
            {i: reasons[i] for i, status in statuses.items() if status == "failed"},
        )

    def _table(self) -> tuple[dict[str, str], dict[str, str]]:
        """Of trials.csv: the statuses, and the reasons of those that failed."""
        try:
            with (self._workdir.path / "trials.csv").open(newline="", encoding="utf-8") as file:
                rows = csv.reader(file)
                names = next(rows, [])
                if not {"trial_id", "status", "stop_reason"} <= set(names):
                    return {}, {}
                at, status, reason = map(names.index, ("trial_id", "status", "stop_reason"))
                found = [(row[at], row[status], row[reason]) for row in rows]
        except FileNotFoundError:
            return {}, {}
        # No text, or a row that is too short.
        except (OSError, ValueError, csv.Error, IndexError) as error:
            raise damaged.refused(self._workdir.path / "trials.csv", error, damaged.ANEW) from error
        return {i: s for i, s, _ in found}, {i: r for i, s, r in found if s == "failed"}


def _slice(found: claims.Found, statuses: dict[str, str]) -> SliceStatus:
    facts = found.facts
    life = found.life
    if life == "ended":
        life = facts["state"]
    elif life == "unknown":
        life = "silent" if found.is_silent else "alive"
    progress, trials = facts.get("progress", {}), facts.get("trials", [])
    rate = progress.get("steps_per_second") if life == "alive" else None
    return SliceStatus(
        facts.get("slice", "?"),
        life,
        facts.get("host", "?"),
        facts.get("pid", 0),
        sum(statuses.get(i) in ("fitted", "finished", "diverged") for i in trials),
        len(trials),
        rate,
        round(progress["steps_left"] / rate, 1) if rate and "steps_left" in progress else None,
        progress.get("doing", "") if life == "alive" else "",
    )


def text(status: Status) -> str:
    """The status in words."""
    total = sum(status.counts.values())
    counts = ", ".join(f"{n} {name}" for name, n in status.counts.items() if n)
    lines = [f"{status.workdir}: {total} trials: {counts or 'none planned yet'}"]
    for s in status.slices:
        line = f"slice {s.slice}: {s.state}, {s.done}/{s.total} trials, process {s.pid} on {s.host}"
        if s.doing:
            line += f", {s.doing}"
        if s.steps_per_second:
            line += f", {s.steps_per_second:,.0f} trial-steps/s"
        if s.seconds_left is not None:
            line += f", ETA {duration(s.seconds_left)}"
        lines.append(line)
    if left := [s.slice for s in status.slices if s.state in _LEFT and s.done < s.total]:
        lines.append(f"slice {', '.join(left)}: the same command goes on from the last checkpoint")
    for trial_id, part, epochs, most in status.running[:_SHOWN]:
        lines.append(f"running {trial_id}: epoch {epochs:g} of at most {most} (slice {part})")
    if len(status.running) > _SHOWN:
        lines.append(f"and {len(status.running) - _SHOWN} more running")
    by_reason = Counter(status.failed.values())
    for reason, count in by_reason.most_common(_SHOWN):
        first = next(i for i, r in status.failed.items() if r == reason)
        lines.append(f"failed, {count} like {first}: {reason}")
    if status.failed:
        lines.append("--retry_failed runs them again; trials/ID/failed.json has the traceback")
    return "\n".join(map(shown.line, lines))


def watch(view: View) -> None:
    """Prints the status every few seconds, while any process is there."""
    while True:
        status = view.read()
        view.check_there()  # After it was read: what is gone reads as if nothing was planned.
        if sys.stdout.isatty():
            print("\033[H\033[2J", end="")  # To the top of an empty screen.
        print(text(status), flush=True)
        if not any(s.state == "alive" for s in status.slices):
            return
        time.sleep(_WATCH_SECONDS)
