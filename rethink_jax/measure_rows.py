"""The rows of a workdir's measures.csv: the number of a network and measure, or why it has none."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from rethink_jax.files import check_writable, remove_parts, write_atomically
from rethink_jax.schema import UserError, first_line

COLUMNS = ("trial_id", "measure", "value", "status", "reason")
# Status of a row. One that failed is computed again when it is asked for again; the last two are of
# a trial as a whole: what is there is looked at each time.
OK, NOT_FINITE, REFUSED, FAILED = "ok", "not_finite", "refused", "failed"
NO_NETWORK, NOT_FINISHED = "no_network", "not_finished"
ALL = "all"  # The measure of a row of a trial as a whole.

_INFINITE = (
    "the value is infinite, as one that is divided by a margin that is not positive, or that is "
    "too large for float32"
)
_NAN = "the value is not a number (NaN), as 0/0 or inf - inf are"


class Rows:
    """The rows in a file, kept in memory until `write`.

    Raises:
      UserError: the file is not a table of measures.
    """

    def __init__(self, path: Path):
        self.path = path
        self._rows = _read(path)

    def forget_trials(self) -> None:
        """Drops the rows of trials as a whole."""
        self._rows = {key: row for key, row in self._rows.items() if key[1] != ALL}

    def lack(self, trial_id: str, name: str) -> bool:
        """Whether a measure of a trial is to be computed: what is refused or not finite is not."""
        row = self._rows.get((trial_id, name))
        return row is None or row["status"] == FAILED

    def lacking(self, trial_ids: Sequence[str], names: Sequence[str]) -> list[str]:
        """The trials that lack one of these measures."""
        return [t for t in trial_ids if any(self.lack(t, name) for name in names)]

    def note(
        self, trial_id: str, name: str, value: float | None, status: str = OK, reason: str = ""
    ) -> None:
        """Sets a row. A value that is not finite has its own status and reason."""
        if value is not None and not np.isfinite(value):
            status, reason = NOT_FINITE, _NAN if np.isnan(value) else _INFINITE
        self._rows[trial_id, name] = {
            "trial_id": trial_id, "measure": name, "value": "" if value is None else repr(value),
            "status": status, "reason": reason,
        }  # fmt: skip

    def write(self) -> None:
        """Replaces the file as a whole.

        Raises:
          UserError: it cannot be written.
        """
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows.values())
        with self._writing():
            write_atomically(self.path, text.getvalue())

    def check_writable(self) -> None:
        """Checks, before anything is computed that could not be kept, that it can be written.

        Raises:
          UserError: it cannot.
        """
        with self._writing():
            remove_parts(self.path.parent)
            check_writable(self.path.parent)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror or error}; make room there, or copy "
                "the workdir to where it can be written"
            ) from error


def _read(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    if not path.is_file():
        return {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            if tuple(rows.fieldnames or ()) != COLUMNS:
                raise ValueError(f"its columns are not {', '.join(COLUMNS)}")
            return {(row["trial_id"], row["measure"]): row for row in rows}
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(
            f"{path} is not a table of measures ({first_line(error)}); move it away and run "
            "launch.measure again"
        ) from error
