"""Claims: which process runs which slice of a workdir, and whether it is still there.

A claim is a file of its process alone: claims/<slice>.<number>.json. Who takes over a slice writes
the next number, which only one process can. A claim is dead if its process is gone, on this
machine; elsewhere, if nothing in it has changed while we watched for three of its heartbeats. No
clock is compared with another, so clocks that differ or go back do no harm.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from rethink_jax import damaged, promised
from rethink_jax.files import part_of, write_atomically, write_once
from rethink_jax.processes import machine, start_of
from rethink_jax.promised import COUNT, FINITE, POSITIVE, SIZE, TEXT, Each, Kind, Maybe
from rethink_jax.schema import UserError
from rethink_jax.slices import Slice

BEAT_SECONDS = 10.0  # Between two heartbeats of a claim.
_SHOWN_SECONDS = 2.0  # Between two reports of progress.
_BEATS = 3  # Of silence, after which a process that cannot be asked about is taken for dead.

_PROMISED = {
    "slice": TEXT, "host": TEXT, "boot": TEXT, "pid": SIZE, "start": (TEXT, None), "state": TEXT,
    "trials": Each(TEXT, least=0), "groups": Each(TEXT, least=0),
    # Nobody is to wait for hours for a heartbeat.
    "every": Maybe(Kind("up to 60 seconds", lambda v: POSITIVE.holds(v) and v <= 60)),
    "progress": Maybe({
        "steps_per_second": Maybe(FINITE), "steps_left": Maybe(FINITE), "doing": Maybe(TEXT),
        # Trials with the epochs done, and of how many.
        "running": Maybe(Each([TEXT, FINITE, COUNT], least=0)),
    }),
}  # fmt: skip

RUNNING = "running"  # The state of a claim; whatever else is there, it has ended.


class Found(NamedTuple):
    """A claim as it was read.

    facts: {} if they are none of a claim   text: as in the file
    """

    path: Path
    facts: dict[str, Any]
    text: str

    @property
    def life(self) -> str:
        """ended, alive, dead, or unknown: of another machine, which cannot be asked."""
        if self.facts and self.facts["state"] != RUNNING:
            return "ended"
        if not self.facts or machine() != {k: self.facts[k] for k in ("host", "boot")}:
            return "unknown"
        return "alive" if start_of(self.facts["pid"]) == self.facts["start"] else "dead"

    @property
    def is_silent(self) -> bool:
        """Whether the last heartbeat was long ago, by the clock that stamps the workdir's files.

        A guess, to be shown; nothing is decided by it.
        """
        probe = part_of(self.path)
        try:
            probe.touch()
            age = probe.stat().st_mtime - self.path.stat().st_mtime
            probe.unlink()
        except OSError:  # It may only be read; or the claim is gone.
            return False
        return age > _BEATS * self.facts.get("every", BEAT_SECONDS)

    @property
    def number(self) -> int:
        return int(self.path.name.split(".")[-2])


def read(path: Path) -> Found | None:
    """A claim, or None if it is gone.

    Raises:
      UserError: it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(
            f"cannot read {path} ({error.strerror or error}); delete it if no process runs here, "
            "no result depends on it"
        ) from error
    with contextlib.suppress(ValueError):
        facts = damaged.parse(text)
        if not promised.broken(facts, _PROMISED):
            return Found(path, facts, text)
    return Found(path, {}, text)


def read_all(workdir: Path) -> list[Found]:
    """All claims of a workdir; files of other names are none."""
    paths = sorted((workdir / "claims").glob("[!.]*.json"))
    found = map(read, (p for p in paths if re.fullmatch(r"[^.]+\.\d+\.json", p.name)))
    return [claim for claim in found if claim is not None]


def at_work(workdir: Path, besides: Path) -> set[str]:
    """The slices of other processes that are alive, or may be; besides: the claim of this one."""
    others = [f for f in read_all(workdir) if f.path != besides]
    return {f.facts.get("slice", "") for f in others if f.life in ("alive", "unknown")}


# --- taking one -----------------------------------------------------------------------------------


class Claim:
    """What this process has claimed. A context manager, in which its heart beats.

    state: to be set to how it has ended, before that
    """

    def __init__(self, path: Path, facts: dict[str, Any]):
        self.path, self._facts = path, facts
        self.state = "stopped"
        self._lost, self._stop = False, threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)

    @property
    def lost(self) -> bool:
        """Whether another process took over, which took this one for dead."""
        return self._lost

    def report(self, **progress: Any) -> None:
        """What the next heartbeat is to say of the progress."""
        self._facts = self._facts | {"progress": progress}

    def __enter__(self) -> Claim:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._facts = self._facts | {"state": self.state}
        self.beat()

    def beat(self) -> None:
        """Shows that this process lives, and looks whether the claim is still its own."""
        with contextlib.suppress(OSError):  # A full disk, for a while: the next one may succeed.
            name = self.path.name.split(".")[0]
            later = any(p.name > self.path.name for p in self.path.parent.glob(f"{name}.*.json"))
            self._lost = self._lost or later or not self.path.exists()
            if not self._lost:
                self._facts = self._facts | {"beat": self._facts["beat"] + 1}
                write_atomically(self.path, json.dumps(self._facts), durable=False)

    def _beat_on(self) -> None:
        # More often than promised, for those who look.
        while not self._stop.wait(min(_SHOWN_SECONDS, self._facts["every"])):
            self.beat()


def take(
    workdir: Path,
    part: Slice,
    trial_ids: Collection[str],
    group_ids: Collection[str],
    say: Callable[[str], None],
    selection: str = "",
) -> Claim:
    """Claims trials for this process, after waiting for what may be dead.

    Args:
      group_ids: of the trials, whose checkpoints it writes.
      say: told when it has to wait.
      selection: names a part of the trials, if the slice has not all of them.

    Raises:
      UserError: another process is there that runs some of them.
    """
    folder = workdir / "claims"
    folder.mkdir(exist_ok=True)
    mine = _Wanted(workdir, part, frozenset(trial_ids), frozenset(group_ids))
    name = part.name + (f"-{selection}" if selection else "")
    # Before they are looked at: who takes over meanwhile has the number that is wanted here.
    numbers = [f.number for f in read_all(workdir) if f.path.name.startswith(f"{name}.")]
    dead = _dead_ones(mine, say)
    path = folder / f"{name}.{max(numbers, default=0) + 1:06}.json"
    facts = {
        "slice": str(part), **machine(), "pid": os.getpid(), "start": start_of(os.getpid()),
        "every": BEAT_SECONDS, "beat": 0, "state": RUNNING,
        "trials": sorted(trial_ids), "groups": sorted(group_ids), "progress": {},
    }  # fmt: skip
    if not write_once(path, json.dumps(facts)):
        raise mine.refused(read(path))
    # Two that overlap under different names may both have seen nothing: then both give way.
    for other in read_all(workdir):
        known = dead.get(other.path) == other.text or other.path == path
        if not known and mine.overlaps(other) and other.life in ("alive", "unknown"):
            path.unlink()
            raise mine.refused(other)
    for other in dead:
        other.unlink(missing_ok=True)
    return Claim(path, facts)


class _Wanted(NamedTuple):
    """What a process is about to claim."""

    workdir: Path
    part: Slice
    trial_ids: frozenset[str]
    group_ids: frozenset[str]

    def overlaps(self, other: Found) -> bool:
        """Whether they have trials in common, or the folder of a checkpoint."""
        if not other.facts:
            return True
        same_folders = other.facts["slice"] == str(self.part)
        return not self.trial_ids.isdisjoint(other.facts["trials"]) or (
            same_folders and not self.group_ids.isdisjoint(other.facts["groups"])
        )

    def refused(self, other: Found | None) -> UserError:
        """What to say of a process that is there before."""
        facts = {"slice": self.part, "pid": "?", "host": "?"} | (other.facts if other else {})
        which = f"slice {self.part} of {self.workdir}"
        shares = "" if facts["slice"] == str(self.part) else f" shares trials with {facts['slice']}"
        return UserError(
            f"{which}{shares + ', which' if shares else ''} is being run by process {facts['pid']} "
            f"on {facts['host']}; wait for it or stop it first (python -m launch.status "
            f"--workdir={self.workdir} shows it)"
        )


def _dead_ones(mine: _Wanted, say: Callable[[str], None]) -> dict[Path, str]:
    """The claims that overlap, all of them ended or dead, and what stands in them.

    Raises:
      UserError: one of them is alive.
    """
    found = {f.path: f for f in read_all(mine.workdir) if mine.overlaps(f)}
    unknown = [f for f in found.values() if f.life == "unknown"]
    for other in found.values():
        if other.life == "alive":
            raise mine.refused(other)
    if unknown:
        facts = unknown[0].facts
        seconds = _BEATS * max(f.facts.get("every", BEAT_SECONDS) for f in unknown)
        say(
            f"process {facts.get('pid', '?')} on {facts.get('host', '?')} was running slice "
            f"{facts.get('slice', '?')}; watching for {seconds:.0f} s whether it still is"
        )
        begun = time.monotonic()
        while time.monotonic() - begun < seconds:
            time.sleep(seconds / 100)
            for other in unknown:
                now = read(other.path)
                if now is None:
                    found.pop(other.path, None)
                elif now.text != other.text:
                    found[other.path] = now
                    if now.life != "ended":
                        raise mine.refused(now)
    return {path: f.text for path, f in found.items()}
