"""The user's own code: networks, data sets, corruptions and measures from files of their own.

No hash of a trial covers it and no commit of the project holds it, so a workdir keeps a copy of
every version that a command has run with, and a command says when one is not what it was.
"""

from __future__ import annotations

import hashlib
import site
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rethink_jax.files import write_once

_PROJECT = Path(__file__).resolve().parents[1]
_LIBRARIES = [
    Path(folder).resolve()
    for folder in (*sysconfig.get_paths().values(), sys.base_prefix, site.getusersitepackages())
]


def keep(workdir: Path) -> dict[str, str]:
    """Copies the own files that are loaded now into own_code/; {file name: SHA-256 of its text}."""
    found = {}
    for file in _own_files():
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):  # Removed since it was loaded.
            continue
        found[file.name] = sha256 = hashlib.sha256(text.encode()).hexdigest()
        (workdir / "own_code").mkdir(exist_ok=True)
        write_once(workdir / "own_code" / _kept_name(file.name, sha256), text)
    return found


def changes(workdir: Path, runs: Iterable[Mapping[str, Any]], now: Mapping[str, str]) -> list[str]:
    """What to say of own files that are not what they were in earlier runs, a line for each."""
    lines = []
    for name, sha256 in now.items():
        before = [r["own_code"][name] for r in runs if name in r.get("own_code", {})]
        if others := [other for other in before if other != sha256]:
            kept = workdir / "own_code" / _kept_name(name, others[-1])
            lines.append(
                f"note: {name} has changed since trials of {workdir} were run with it (as it was: "
                f"{kept}); they stay as they are. If others come out now, take another --workdir"
            )
    return lines


def _own_files() -> list[Path]:
    """Python files that are loaded and belong neither to the project nor to a library."""
    loaded = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    found = {Path(f).resolve() for f in loaded if f and f.endswith(".py")}
    others = [*_LIBRARIES, *(_PROJECT / n for n in ("rethink_jax", "launch", "configs", "tests"))]
    return sorted(f for f in found if not any(f.is_relative_to(o) for o in others))


def _kept_name(name: str, sha256: str) -> str:
    return f"{name.removesuffix('.py')}.{sha256[:12]}.py"
