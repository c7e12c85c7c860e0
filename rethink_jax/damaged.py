"""Whether the files of a workdir are whole: a damaged one is named, with what to do about it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from rethink_jax import promised
from rethink_jax.promised import COUNT, NUMBER, TEXT, Each, Maybe
from rethink_jax.schema import UserError, first_line

# Of dicts and lists in one another. What is written has 8 at most; Python's JSON takes hundreds.
_DEEPEST = 50
_DATA = {...: {"fingerprint": TEXT, "train": COUNT, "test": COUNT, "classes": Each(TEXT)}}
_HEADER = {"config": {}, "config_sha256": TEXT, "data": _DATA, "fixed_fields": {}}
# What a command added to the header, and what it ran on.
RUN = {name: Maybe(of) for name, of in _HEADER.items()} | {
    "cpu": {"model": TEXT, "cores": COUNT}, "devices": Each(TEXT), "seconds": Maybe(NUMBER),
}  # fmt: skip
_NUMBERS = {...: (NUMBER, None)}
_RESULT = {
    "trial_id": TEXT, "status": TEXT, "trial": {},
    **dict.fromkeys(("epochs", "steps_per_epoch", "num_params", "num_classes"), Maybe(COUNT)),
    "epochs_to_fit": Maybe((COUNT, None)), "final": Maybe(_NUMBERS), "best": Maybe(_NUMBERS),
}  # fmt: skip
FAILED = {"trial_id": TEXT, "status": TEXT, "stop_reason": TEXT, "trial": {}}
ANEW = "delete it and run the sweep again, which writes it anew"
AGAIN = "delete its folder and run the sweep again, which repeats this one trial"


def read_json(path: Path) -> Any:
    """What a file holds.

    Raises:
      OSError: it is not there or cannot be read.   ValueError: it is no JSON.
    """
    return parse(path.read_text(encoding="utf-8"))


def parse(text: str) -> Any:
    """What a text holds as JSON.

    Raises:
      ValueError: it is no JSON, or more nested than anything that is written.
    """
    try:
        found = json.loads(text)
    except RecursionError:
        found = None
    else:
        if not _is_deeper(found, _DEEPEST):
            return found
    raise ValueError("nested too deeply")


def _is_deeper(value: Any, depth: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    below = value.values() if isinstance(value, dict) else value
    return depth == 0 or any(_is_deeper(v, depth - 1) for v in below)


def refused(path: Path, error: Exception, fix: str) -> UserError:
    """What to say of a file that could not be read: it is damaged, or the disk refuses.

    Args:
      fix: what to do.
    """
    if isinstance(error, OSError):
        return UserError(f"cannot read {path} ({error.strerror or error}); {fix}")
    return UserError(f"{path} is damaged ({first_line(error)}); {fix}")


@contextlib.contextmanager
def reading(workdir: Path) -> Iterator[None]:
    """Inside, nothing but reading a workdir; UserError if its folders cannot be read."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot read {error.filename or workdir} ({error.strerror or error}); make the "
            "workdir readable, or take another --workdir"
        ) from error


def check_header(path: Path, header: dict[str, Any]) -> dict[str, Any]:
    """The header as it is; UserError if it lacks a part, or has something else there."""
    if what := promised.broken(header, _HEADER):
        raise UserError(f"{path} is damaged ({what}); restore it, or take another --workdir")
    return header


def check_result(path: Path, result: Any) -> dict[str, Any]:
    """The result of a trial as it is; UserError if it lacks a part, or has something else there."""
    if what := promised.broken(result, _RESULT):
        raise UserError(f"{path} is damaged ({what}); {AGAIN}")
    return result


def read_table(path: Path, columns: Collection[str], fix: str, **options: Any) -> Any:
    """A CSV file as a pandas frame.

    Args:
      columns: what it must have.   fix: what to do if it is damaged.   options: of `read_csv`.

    Raises:
      UserError: it cannot be read as a table, or lacks a column.
    """
    import pandas as pd

    try:
        table = pd.read_csv(path, **options)
    # No table at all, text in other encodings, numbers that are none: each is an error of its own.
    except (OSError, ValueError, MemoryError) as error:
        raise refused(path, error, fix) from error
    if missing := [c for c in columns if c not in table]:
        raise UserError(f"{path} is damaged, it has no column {missing[0]!r}; {fix}")
    return table
