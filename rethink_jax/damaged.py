"""Whether the files of a workdir are whole: a damaged one is named, with what to do about it."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from rethink_jax.schema import UserError, first_line

# Of dicts and lists in one another. What is written has 8 at most; Python's JSON takes hundreds.
_DEEPEST = 50
_OF_A_HEADER = ("config", "config_sha256", "data", "fixed_fields")
_OF_A_RESULT = ("trial_id", "status", "trial")
AGAIN = "delete its folder and run the sweep again, which repeats this one trial"


def read_json(path: Path) -> Any:
    """What a file holds.

    Raises:
      OSError: it is not there or cannot be read.   ValueError: it is no JSON.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
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


def check_header(path: Path, header: dict[str, Any]) -> dict[str, Any]:
    """The header as it is; UserError if it lacks a part."""
    if missing := [k for k in _OF_A_HEADER if k not in header]:
        raise UserError(
            f"{path} is damaged: it lacks {', '.join(missing)}; restore it, or take another "
            "--workdir"
        )
    return header


def check_result(path: Path, result: Any) -> dict[str, Any]:
    """The result of a trial as it is; UserError if it lacks a part."""
    given = result if isinstance(result, dict) else {}
    missing = [k for k in _OF_A_RESULT if k not in given]
    if missing or not isinstance(given["trial"], dict):
        lacks = f"it lacks {', '.join(missing)}" if missing else "its trial is no dict"
        raise UserError(f"{path} is damaged ({lacks}); {AGAIN}")
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
        raise UserError(f"{path} is damaged ({first_line(error)}); {fix}") from error
    if missing := [c for c in columns if c not in table]:
        raise UserError(f"{path} is damaged, it has no column {missing[0]!r}; {fix}")
    return table
