"""What a workdir holds, and how it gets there without ever holding half of it.

examples.npz          a few training images under each pixel corruption
run.json              the resolved config and every command that ran here, with versions and devices
trials.csv            one row per trial: fields, status, final numbers (a view of what follows)
measures.csv          one row per trial and measure, once it is measured
trials/<id>/          result.json, curve.csv and network/ of one finished trial, and measures.csv
                      if it was measured along training
groups/<id>/          checkpoints of a group that is still running

A trial is finished once its result.json is there; it is written last, by an atomic rename. Every
trial has its own folder, so processes can share a workdir without locks.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from rethink_jax import damaged
from rethink_jax.schema import UserError, flatten, nest

FORMAT = 1  # Of the workdir. A reader refuses others.

# Columns of trials.csv beside the trial's fields, in order.
_BEFORE = ("trial_id", "group_id", "status", "stop_reason")
_AFTER = ("label_noise", "test_label_noise", "num_params", "steps_per_epoch", "epochs",
          "epochs_to_fit", "steps_to_fit")  # fmt: skip
DONE = ("fitted", "finished", "diverged")  # How a trial ends that has a result.
# Columns of the measures.csv of a trial.
MEASURED = ("epoch", "measure", "value")


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file as a whole: a reader sees the old or the new text, also after a crash."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)  # After a power cut, the new name is there, too.
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


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
        return self.path / "run.json"

    def create(self) -> None:
        """Makes the folder.

        Raises:
          UserError: it cannot be made or written, or holds something else.
        """
        try:
            (self.path / "trials").mkdir(parents=True, exist_ok=True)
            (self.path / "groups").mkdir(exist_ok=True)
            write_atomically(self.path / ".writable", "")
            (self.path / ".writable").unlink()
        except OSError as error:
            raise UserError(
                f"cannot write to the workdir {self.path}: {error.strerror or error}; "
                "name another with --workdir"
            ) from error

    def header(self) -> dict[str, Any] | None:
        """run.json, or None in a new workdir.

        Raises:
          UserError: run.json cannot be read, or another version of the project wrote it.
        """
        try:
            header = damaged.read_json(self.header_path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UserError(
                f"cannot read {self.header_path} ({error}); take another --workdir"
            ) from error
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise UserError(
                f"{self.header_path} was not written by this version of rethink_jax; "
                "take another --workdir"
            )
        return damaged.check_header(self.header_path, header)

    def write_header(self, header: dict[str, Any]) -> None:
        write_atomically(self.header_path, json.dumps(header, indent=1, sort_keys=True))

    def write_examples(self, examples: dict[str, np.ndarray]) -> None:
        """Writes examples.npz, for `load_examples`."""
        part = self.path / f".examples.{os.getpid()}.npz"
        np.savez_compressed(part, **examples)
        part.replace(self.path / "examples.npz")

    # --- trials -----------------------------------------------------------------------------------

    def trial_dir(self, trial_id: str) -> Path:
        return self.path / "trials" / trial_id

    def group_dir(self, group_id: str) -> Path:
        return self.path / "groups" / group_id

    def finished(self) -> dict[str, dict[str, Any]]:
        """The results that are complete, {trial_id: result}."""
        results = {}
        for path in sorted((self.path / "trials").glob("*/result.json")):
            try:
                result = damaged.read_json(path)
            except (OSError, ValueError) as error:
                raise UserError(f"{path} is damaged ({error}); {damaged.AGAIN}") from error
            results[path.parent.name] = damaged.check_result(path, result)
        return results

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

    def write_table(
        self, planned: Iterable[dict[str, Any]], finished: dict[str, dict[str, Any]]
    ) -> None:
        """Writes trials.csv: every planned and every finished trial once, planned ones first."""
        rows = {r["trial_id"]: r for r in planned} | finished
        flat = [_flat_row(row) for row in rows.values()]
        names = list(dict.fromkeys(name for row in flat for name in row))
        fields = sorted(n for n in names if n.startswith("trial."))
        rest = [n for n in names if n not in (*_BEFORE, *_AFTER) and not n.startswith("trial.")]
        header = [*_BEFORE, *fields, *_AFTER, *sorted(rest)]
        text = io.StringIO()
        writer = csv.DictWriter(text, header, restval="", lineterminator="\n")
        writer.writerow({name: name.removeprefix("trial.") for name in header})
        writer.writerows(flat)
        write_atomically(self.path / "trials.csv", text.getvalue())


def _flat_row(result: dict[str, Any]) -> dict[str, Any]:
    hidden = ("image_shape", "num_classes", "final", "best", "trial")
    row = {k: v for k, v in result.items() if k not in hidden}
    row |= {f"trial.{k}": v for k, v in flatten(result["trial"]).items()}
    parts = {
        f"{part}_{k}": v for part in ("final", "best") for k, v in result.get(part, {}).items()
    }
    return row | parts


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
    run: run.json
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
        fix = "delete it and run the sweep again, which writes it anew"
        known = damaged.read_table(table, ("trial_id", "status"), fix, dtype={"trial_id": str})
        rows = known.to_dict("records")
    by_id = {row["trial_id"]: row for row in rows}
    for row in rows:  # A trial whose result was taken away is to be run again.
        if row["status"] in DONE:
            row["status"] = "planned"
    for trial_id, result in finished.items():
        row = {k.removeprefix("trial."): v for k, v in _flat_row(result).items()}
        by_id[trial_id] = row
    curves = []
    for trial_id in finished:
        path = directory.trial_dir(trial_id) / "curve.csv"
        curve = damaged.read_table(path, ("epoch", "online_loss"), damaged.AGAIN)
        curve.insert(0, "trial_id", trial_id)
        curves.append(curve)
    return Results(
        pd.DataFrame(list(by_id.values())), pd.concat(curves) if curves else pd.DataFrame(), run
    )


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
            own = damaged.read_table(path, MEASURED, damaged.AGAIN, dtype={"value": np.float32})
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
    directory = Workdir(workdir)
    run = directory.header()
    if run is None:
        raise UserError(f"{workdir} is not a workdir: it has no run.json")
    return pd, directory, run
