"""Theorems of the papers as programs: constructions that can be run and measured.

An experiment is a module with a function `run(workdir, command, **options) -> text`, and one entry
in `EXPERIMENTS`. It writes its numbers into the workdir as JSON, and its text shows them.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rethink_jax.schema import UserError, suggest

# By name, the module; imported when it is run.
EXPERIMENTS = {
    "memorizer": "rethink_jax.theory.memorizer_report",
    "kernel": "rethink_jax.theory.kernel_report",
}


def run(name: str, workdir: str | Path, command: Sequence[str], options: dict[str, Any]) -> str:
    """Runs an experiment; returns what it found, as text.

    options: those that are given; the others have the experiment's own defaults

    Raises:
      UserError: no such experiment, or it has no such option; or as the experiment does.
    """
    if name not in EXPERIMENTS:
        raise UserError(
            f"there is no experiment {name!r}{suggest(name, EXPERIMENTS)}; there are "
            f"{', '.join(EXPERIMENTS)}"
        )
    experiment = importlib.import_module(EXPERIMENTS[name])
    known = list(inspect.signature(experiment.run).parameters)[2:]
    for option in options:
        if option not in known:
            raise UserError(
                f"the experiment {name} has no option {option!r}; it has {', '.join(known)}"
            )
    folder = Path(workdir).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return experiment.run(folder, list(command), **options)
    except OSError as error:
        raise UserError(
            f"cannot write to the workdir {folder}: {error.strerror or error}; name another with "
            "--workdir"
        ) from error
