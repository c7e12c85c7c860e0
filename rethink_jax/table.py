"""trials.csv: one row per trial, a view of what is in the folders of the trials."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rethink_jax.files import write_atomically
from rethink_jax.schema import flatten

# Columns beside the trial's fields, in order.
_BEFORE = ("trial_id", "group_id", "status", "stop_reason")
_AFTER = ("label_noise", "test_label_noise", "num_params", "steps_per_epoch", "epochs",
          "epochs_to_fit", "steps_to_fit")  # fmt: skip
_HIDDEN = ("image_shape", "num_classes", "final", "best", "trial", "traceback")


def flat_row(result: dict[str, Any]) -> dict[str, Any]:
    """A row by the names of columns, those of the trial's fields behind "trial."."""
    row = {k: v for k, v in result.items() if k not in _HIDDEN}
    row |= {f"trial.{k}": v for k, v in flatten(result["trial"]).items()}
    parts = {
        f"{part}_{k}": v for part in ("final", "best") for k, v in result.get(part, {}).items()
    }
    return row | parts


class Table:
    """The rows of trials.csv: planned ones first, in their order, then others by id.

    A row is made into text when it is put, not each time that the file is written.
    """

    def __init__(self, planned: Iterable[dict[str, Any]] = ()):
        self._planned = {row["trial_id"]: row for row in planned}
        self._rows: dict[str, dict[str, Any]] = {}
        self._lines: dict[str, str] = {}
        self._columns: dict[str, None] = {}
        for row in self._planned.values():
            self.put(row)

    def put(self, row: dict[str, Any]) -> None:
        """Sets the row of a trial: planned, failed, or its result."""
        flat = flat_row(row)
        self._rows[row["trial_id"]] = flat
        if new := [name for name in flat if name not in self._columns]:
            self._columns |= dict.fromkeys(new)
            self._lines.clear()  # Made again, with the new columns, when they are written.
        self._lines.pop(row["trial_id"], None)

    def withdraw(self, trial_id: str) -> None:
        """The trial is planned again, or as if it had never been."""
        if trial_id in self._planned:
            self.put(self._planned[trial_id])
        else:
            self._rows.pop(trial_id, None)
            self._lines.pop(trial_id, None)

    def write(self, path: Path) -> None:
        """Replaces the file."""
        names = list(self._columns)
        fields = sorted(n for n in names if n.startswith("trial."))
        known = {*_BEFORE, *_AFTER, *fields}
        header = [*_BEFORE, *fields, *_AFTER, *sorted(n for n in names if n not in known)]
        order = [*self._planned, *sorted(self._rows.keys() - self._planned.keys())]
        for trial_id in order:
            if trial_id not in self._lines:
                row = self._rows[trial_id]
                self._lines[trial_id] = _line([row.get(name, "") for name in header])
        first = _line([name.removeprefix("trial.") for name in header])
        write_atomically(path, first + "".join(self._lines[i] for i in order))


def _line(values: list[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()
