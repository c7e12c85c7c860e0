"""Trials that another workdir has finished: they are taken over instead of run again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from rethink_jax.files import part_of
from rethink_jax.records import Outcomes, Workdir
from rethink_jax.schema import UserError
from rethink_jax.trials import Trial


class Plan(Protocol):
    """What is to be run: a `sweep.Sweep`."""

    trials: list[Trial]


def opened(others: Sequence[str | Path], workdir: Workdir) -> list[Workdir]:
    """The other workdirs.

    Raises:
      UserError: one of them is no workdir, or the same one.
    """
    found = [Workdir(path) for path in others]
    for path, other in zip(others, found, strict=True):
        if other.path.resolve() == workdir.path.resolve():
            raise UserError(f"--reuse={path} is the workdir itself; name another one")
        if other.header() is None:
            raise UserError(f"--reuse={path} is not a workdir: it has no run.json")
    return found


def copy(sweep: Plan, workdir: Workdir, outcomes: Outcomes, others: Sequence[Workdir]) -> list[str]:
    """Copies the trials of a sweep that other workdirs have finished, on the same images.

    Args:
      outcomes: of `workdir`; what is copied is there afterwards.

    Returns:
      a line about each of the other workdirs.
    """
    lines = []
    for other in others:
        head, theirs = workdir.header(), other.header()
        assert head is not None and theirs is not None
        count, differ = 0, set[str]()
        for trial in sweep.trials:
            if trial.trial_id in outcomes.finished:
                continue
            if not (other.trial_dir(trial.trial_id) / "result.json").is_file():
                continue
            name = trial["data.name"]
            if _fingerprint(theirs, name) != _fingerprint(head, name):
                differ.add(name)
                continue
            _copy_trial(other, workdir, trial.trial_id)
            count += 1
        outcomes.refresh()
        note = f"; others are of other images of {', '.join(sorted(differ))}" if differ else ""
        lines.append(f"{count} trials taken over from {other.path}{note}")
    return lines


def _fingerprint(header: dict[str, Any], name: str) -> str | None:
    return header["data"].get(name, {}).get("fingerprint")


def _copy_trial(source: Workdir, target: Workdir, trial_id: str) -> None:
    """Copies the folder of one trial; its result.json is there last."""
    folder, there = target.trial_dir(trial_id), source.trial_dir(trial_id)
    part = part_of(folder)
    leave = shutil.ignore_patterns("result.json", "failed.json", ".*")
    shutil.copytree(there, part, ignore=leave, copy_function=_link)
    if folder.exists():  # Of a trial whose result was not written any more, or that has failed.
        shutil.rmtree(folder)
    part.replace(folder)
    result = part_of(folder / "result.json")
    _link(there / "result.json", result)
    result.replace(folder / "result.json")


def _link(source: str | Path, target: str | Path) -> None:
    """A hard link where that is possible: no file of a finished trial is ever changed in place."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
