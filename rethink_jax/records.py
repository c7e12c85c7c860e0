"""What a workdir holds, and how it gets there without ever holding half of it.

examples.npz          a few training images under each pixel corruption
run.json              the config and the data, as the first command had them
runs/, choices/       every command that ran here; what was chosen for speed (`history`)
claims/               which process runs which slice, and how far it is (`claims`)
trials.csv            one row per trial: fields, status, final numbers (a view of what follows)
measures.csv          one row per trial and measure, once it is measured
trials/<id>/          result.json, curve.csv and network/ of one finished trial, and measures.csv
                      if it was measured along training; failed.json of one that cannot be run
groups/<id>/          checkpoints of a group that is still running; groups/<id>.<i>of<n>/ of a slice

A trial is finished once its result.json is there; it is written last, by an atomic rename. Every
trial has its own folder, and no file is written by two processes but trials.csv, whose every
version is made from what is on disk: so processes share a workdir without locks.
"""

from __future__ import annotations

import csv
import io
import json
import os
import traceback
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from rethink_jax import damaged, promised, remote, shown
from rethink_jax.files import check_writable, part_of, remove_parts, write_atomically
from rethink_jax.history import History
from rethink_jax.schema import UserError, nest
from rethink_jax.slices import WHOLE, Slice
from rethink_jax.table import Table, flat_row

DONE = ("fitted", "finished", "diverged")  # How a trial ends that has a result.
# Columns of the measures.csv of a trial.
MEASURED = ("epoch", "measure", "value")


def short_float(value: Any) -> float | None:
    """A float32 as the shortest decimal that gives it back; None for NaN and infinities."""
    return float(str(np.float32(value))) if np.isfinite(value) else None


def exact_text(value: Any) -> str:
    """A float32 as the shortest text that gives it back; also inf and nan."""
    return str(np.float32(value))


class Workdir:
    """The folder of one experiment."""

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()

    @property
    def header_path(self) -> Path:
        return self.history.header_path

    @property
    def history(self) -> History:
        """run.json, and what later commands added."""
        return History(self.path)

    def create(self) -> None:
        """Makes the folder.

        Raises:
          UserError: it cannot be made or written, or holds something else.
        """
        try:
            str(self.path.absolute()).encode()
        except UnicodeEncodeError:  # As which Python takes bytes of a name that are not UTF-8.
            raise UserError(
                f"cannot write to the workdir {self.path}: its path has bytes that are not UTF-8, "
                "which no checkpoint can; name another with --workdir"
            ) from None
        try:
            (self.path / "trials").mkdir(parents=True, exist_ok=True)
            (self.path / "groups").mkdir(exist_ok=True)
            check_writable(self.path)
        except OSError as error:
            raise UserError(
                f"cannot write to the workdir {self.path}: {error.strerror or error}; "
                "name another with --workdir"
            ) from error

    def header(self) -> dict[str, Any] | None:
        """run.json with all that later commands added (`History.header`); None in a new workdir.

        Raises:
          UserError: it cannot be read, or another version of the project wrote it.
        """
        return self.history.header()

    def write_examples(self, examples: dict[str, np.ndarray]) -> None:
        """Writes examples.npz, for `load_examples`."""
        part = part_of(self.path / "examples.npz", ".part.npz")
        np.savez_compressed(part, **{shown.line(name): a for name, a in examples.items()})
        part.replace(self.path / "examples.npz")

    # --- trials -----------------------------------------------------------------------------------

    def trial_dir(self, trial_id: str) -> Path:
        return self.path / "trials" / trial_id

    def group_dir(self, group_id: str, part: Slice = WHOLE) -> Path:
        """Where the checkpoints of a group, or of a slice of it, are."""
        return self.path / "groups" / part.checkpoints(group_id)

    def group_dirs(self, group_id: str) -> dict[Slice, Path]:
        """All folders with checkpoints of a group, by the slice that wrote them."""
        folders = (self.path / "groups").glob(f"{group_id}*")
        found = {Slice.of_checkpoints(folder.name, group_id): folder for folder in folders}
        return {part: folder for part, folder in found.items() if part}

    def outcomes(self) -> Outcomes:
        """The trials that have ended, as they are on disk now.

        Raises:
          UserError: a result is damaged, or the folder of results cannot be read.
        """
        found = Outcomes(self.path)
        with damaged.reading(self.path):
            found.refresh()
        return found

    def finished(self) -> dict[str, dict[str, Any]]:
        """The results that are complete, {trial_id: result}, by id."""
        return dict(sorted(self.outcomes().finished.items()))

    def tidy(self) -> None:
        """Removes unfinished files of processes that were killed."""
        for name in ("", "runs", "choices", "claims", "trials"):
            remove_parts(self.path / name)

    def write_curve(self, trial_id: str, columns: Sequence[str], curve_ExC: np.ndarray) -> None:
        """Writes curve.csv: one row per epoch, from 1; empty where nothing was measured."""
        rows = io.StringIO()
        writer = csv.writer(rows, lineterminator="\n")
        writer.writerow(["epoch", *columns])
        for epoch, row in enumerate(curve_ExC, 1):
            writer.writerow([epoch, *(short_float(v) for v in row)])
        write_atomically(self.trial_dir(trial_id) / "curve.csv", rows.getvalue())

    def write_measures(self, trial_id: str, rows: dict[int, dict[str, Any]]) -> None:
        """Writes measures.csv of {epoch: {measure: value}}: one row per epoch and measure."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(MEASURED)
        for epoch, values in sorted(rows.items()):
            writer.writerows([epoch, name, exact_text(v)] for name, v in values.items())
        write_atomically(self.trial_dir(trial_id) / "measures.csv", text.getvalue())

    def write_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Marks the trial as finished: call it last."""
        text = json.dumps(result, indent=1, allow_nan=False)
        write_atomically(self.trial_dir(trial_id) / "result.json", text)
        (self.trial_dir(trial_id) / "failed.json").unlink(missing_ok=True)

    def clear_trial(self, trial_id: str) -> None:
        """Makes the folder of a trial that is about to be written, without unfinished files."""
        self.trial_dir(trial_id).mkdir(exist_ok=True)
        remove_parts(self.trial_dir(trial_id))

    def write_failed(self, trial: Any, group_id: str, reason: str, error: Exception) -> None:
        """Marks a trial as one that cannot be run, with the reason in one line."""
        self.clear_trial(trial.trial_id)
        record = {
            "trial_id": trial.trial_id,
            "group_id": group_id,
            "status": "failed",
            "stop_reason": reason,
            "trial": nest(dict(trial.fields)),
            "traceback": traceback.format_exception(error),
        }
        path = self.trial_dir(trial.trial_id) / "failed.json"
        write_atomically(path, json.dumps(record, indent=1))

    def plan_again(self, trial_id: str) -> None:
        """Takes back that a trial cannot be run."""
        (self.trial_dir(trial_id) / "failed.json").unlink(missing_ok=True)

    def write_table(
        self, planned: Iterable[dict[str, Any]], finished: dict[str, dict[str, Any]]
    ) -> None:
        """Writes trials.csv: every planned and every finished trial once, planned ones first."""
        table = Table(planned)
        for row in finished.values():
            table.put(row)
        table.write(self.path / "trials.csv")


class Outcomes:
    """The trials of a workdir that have ended, as far as they were read: whoever ran them.

    finished: {trial_id: result}   failed: {trial_id: record}, of those that are not finished
    """

    def __init__(self, workdir: Path):
        self._trials = workdir / "trials"
        self.finished: dict[str, dict[str, Any]] = {}
        self.failed: dict[str, dict[str, Any]] = {}

    def refresh(self, strict: bool = True, known: Collection[str] = ()) -> set[str]:
        """Reads what is new on disk; results do not change once they are there.

        Args:
          strict: else a damaged file is passed over.
          known: trials that are finished, and whose results are not to be read.

        Returns:
          the trials of which something is new.

        Raises:
          UserError: a result is damaged.
        """
        changed = set()
        try:
            # A trial has a folder once there is something to be written of it.
            names = {name for name in os.listdir(self._trials) if name[0] != "."}
        except FileNotFoundError:  # A workdir that is only planned.
            return changed
        for name in names - self.finished.keys() - set(known):
            if (result := self._read(name, "result.json", strict)) is not None:
                self.finished[name] = result
                self.failed.pop(name, None)
                changed.add(name)
                continue
            record = self._read(name, "failed.json", strict=False)
            if record != self.failed.get(name):
                changed.add(name)
                if record is None:
                    del self.failed[name]
                else:
                    self.failed[name] = record
        return changed

    def _read(self, trial_id: str, name: str, strict: bool) -> dict[str, Any] | None:
        path = self._trials / trial_id / name
        try:
            record = damaged.read_json(path)
            if name == "result.json":
                return damaged.check_result(path, record)
            return None if promised.broken(record, damaged.FAILED) else record
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:  # A UserError is one, too.
            if not strict:
                return None
            if isinstance(error, UserError):
                raise
            raise damaged.refused(path, error, damaged.AGAIN) from error


class TableView:
    """trials.csv of a workdir, kept up with what is on disk."""

    def __init__(self, workdir: Workdir, planned: Iterable[dict[str, Any]], outcomes: Outcomes):
        self._path, self._outcomes = workdir.path / "trials.csv", outcomes
        self._table, self._shown = Table(planned), set[str]()
        self._put([*outcomes.finished, *outcomes.failed])

    def write(self) -> None:
        """Writes the file as the folders are now.

        A process that was slower may replace it by an older version. It looks again afterwards, as
        this one does, so that the last version has all that was finished before it.
        """
        changed = self._outcomes.refresh(strict=False)
        # Bounded, since others may finish trials all the time; they write it then, too.
        for _ in range(10):
            # What this process has finished itself is there without having been read.
            self._put(changed | (self._outcomes.finished.keys() - self._shown))
            self._table.write(self._path)
            changed = self._outcomes.refresh(strict=False)
            if not changed:
                return

    def _put(self, trial_ids: Iterable[str]) -> None:
        for trial_id in trial_ids:
            if (result := self._outcomes.finished.get(trial_id)) is not None:
                self._table.put(result)
                self._shown.add(trial_id)
            elif trial_id in self._outcomes.failed:
                self._table.put(self._outcomes.failed[trial_id])
            else:
                self._table.withdraw(trial_id)


def planned_row(trial: Any, group_id: str) -> dict[str, Any]:
    """The row of a trial that has no result yet."""
    return {
        "trial_id": trial.trial_id,
        "group_id": group_id,
        "status": "planned",
        "trial": nest(dict(trial.fields)),
    }


def load_examples(workdir: str | Path) -> dict[str, np.ndarray] | None:
    """A few training images under each pixel corruption: {name: uint8[8, H, W, C]}, or None.

    A damaged file counts as none: the sweep writes it anew.
    """
    path = Path(workdir) / "examples.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            images = {name: stored[name] for name in stored.files}
    # A damaged archive raises many kinds of error.
    except Exception as error:
        if not isinstance(error, FileNotFoundError):
            logging.warning("%s is damaged and passed over: %s", path, error)
        return None
    return images if all(i.dtype == np.uint8 and i.ndim == 4 for i in images.values()) else None


class Results(NamedTuple):
    """What a workdir holds, as pandas frames.

    trials: one row per trial, every field a column   curves: one row per trial and epoch
    run: what `Workdir.header` gives
    """

    trials: Any
    curves: Any
    run: dict[str, Any]


def load_results(workdir: str | Path) -> Results:
    """Reads a workdir, also while it is being written.

    Raises:
      UserError: not a workdir, or pandas is missing.
    """
    pd, directory, run = _opened(workdir, "load_results")
    finished = directory.finished()
    # In the order of trials.csv, which is the config's; what finished since it was written, last.
    table = directory.path / "trials.csv"
    rows: list[Any] = []
    if table.is_file():
        needed = ("trial_id", "status")
        known = damaged.read_table(table, needed, damaged.ANEW, dtype={"trial_id": str})
        rows = known.to_dict("records")
    by_id = {row["trial_id"]: row for row in rows}
    for row in rows:  # A trial whose result was taken away is to be run again.
        if row["status"] in DONE:
            row["status"] = "planned"
    for trial_id, result in finished.items():
        row = {k.removeprefix("trial."): v for k, v in flat_row(result).items()}
        by_id[trial_id] = row
    curves = []
    for trial_id in finished:
        path = directory.trial_dir(trial_id) / "curve.csv"
        curve = damaged.read_table(path, ("epoch", "online_loss"), damaged.AGAIN)
        curve.insert(0, "trial_id", trial_id)
        curves.append(curve)
    needed = ["trial_id", "status"]  # Also of a workdir in which nothing was planned yet.
    frame = pd.DataFrame(list(by_id.values()), columns=None if by_id else needed)
    return Results(frame, pd.concat(curves) if curves else pd.DataFrame(), run)


def load_measures(workdir: str | Path) -> Any:
    """The numbers in measures.csv as a pandas frame, or None where nothing was measured.

    A row per trial_id, a column per measure in the order of the file; NaN where there is no number.

    Raises:
      UserError: the file is not a table of measures.
    """
    import pandas as pd

    path = Workdir(workdir).path / "measures.csv"
    if not path.is_file():
        return None
    needed = ("measure", "status", "trial_id", "value")
    fix = "move it away and run launch.measure again"
    rows = damaged.read_table(path, needed, fix, dtype=str, keep_default_na=False)
    rows = rows[rows["status"] == "ok"].drop_duplicates(["trial_id", "measure"], keep="last")
    rows = rows.assign(value=pd.to_numeric(rows["value"], errors="coerce"))
    table = rows.pivot(index="trial_id", columns="measure", values="value")
    return table.where(np.isfinite(table))[list(dict.fromkeys(rows["measure"]))]


def load_measures_along(workdir: str | Path) -> Any:
    """What was measured along training, of all finished trials: a pandas frame.

    Returns:
      one row per trial, epoch (from 1) and measure: trial_id, epoch, measure, value (which may be
      infinite or NaN); no rows if `measure.every_epochs` was 0.

    Raises:
      UserError: not a workdir, or pandas is missing.
    """
    pd, directory, _ = _opened(workdir, "load_measures_along")
    found = [pd.DataFrame(columns=["trial_id", *MEASURED])]
    for trial_id in directory.finished():
        path = directory.trial_dir(trial_id) / "measures.csv"
        if path.is_file():
            own = damaged.read_table(
                path, MEASURED, damaged.AGAIN, dtype={"value": np.float32},
                keep_default_na=False, na_values={"value": ["nan"]},  # A measure may be named NA.
            )  # fmt: skip
            own.insert(0, "trial_id", trial_id)
            found.append(own)
    return pd.concat(found[1:] or found, ignore_index=True)


def _opened(workdir: str | Path, what: str) -> tuple[Any, Workdir, dict[str, Any]]:
    """pandas, the workdir and its header."""
    try:
        import pandas as pd
    except ImportError as error:
        raise UserError(
            f"{what} needs pandas; install it with: pip install 'rethink_jax[report]'"
        ) from error
    directory = Workdir(remote.fetched(workdir))
    run = directory.header()
    if run is None:
        raise UserError(f"{workdir} is not a workdir: it has no run.json")
    return pd, directory, run
