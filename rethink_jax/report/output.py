"""Where a report is written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from rethink_jax.schema import UserError


@contextlib.contextmanager
def folder_of(workdir: Path) -> Iterator[Path]:
    """The folder of the report, made if need be; inside, nothing but writing to it.

    Raises:
      UserError: it cannot be made or written.
    """
    folder = workdir / "report"
    try:
        folder.mkdir(exist_ok=True)
        yield folder
    except OSError as error:
        raise UserError(
            f"cannot write the report to {folder}: {error.strerror or error}; make room there, or "
            "copy the workdir to where it can be written"
        ) from error
