"""Where numbers come from: the facts about a command that stand in its workdir."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from rethink_jax import records, trials
from rethink_jax.devices import available_cores
from rethink_jax.inputs import AnyDataset
from rethink_jax.schema import UserError

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "ml-collections", "numpy",
             "pillow")  # fmt: skip


def sha256(config: dict[str, Any]) -> str:
    """SHA-256 of the canonical JSON of a config."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def opened(
    config: dict[str, Any], datasets: dict[str, AnyDataset], workdir: records.Workdir
) -> dict[str, Any]:
    """Writes the header of a new workdir, or checks that this one's fits.

    Returns:
      what this command adds to the header, for `History.begin_run`.

    Raises:
      UserError: the workdir belongs to another experiment, or to other images.
    """
    fixed = trials.fixed_fields(config)
    data = {name: data_facts(d) for name, d in datasets.items()}
    own = {"config": config, "config_sha256": sha256(config), "fixed_fields": fixed}
    history = workdir.history
    # Of several processes at once, one writes it; it then fits like any other.
    if history.first() is None:
        history.create(own | {"data": data})
    first, old = history.first(), history.header()
    assert first is not None and old is not None
    before = old["fixed_fields"]
    as_stored = {k: list(v) if isinstance(v, tuple) else v for k, v in fixed.items()}
    if wrong := [k for k in sorted(before) if k in fixed and before[k] != as_stored[k]]:
        changes = "; ".join(f"{k}: {before[k]!r} there, {fixed[k]!r} now" for k in wrong)
        raise UserError(
            f"the workdir {workdir.path} holds another experiment ({changes}); "
            "name another --workdir, or sweep over the field"
        )
    for name in old["data"].keys() & data.keys():
        if old["data"][name]["fingerprint"] != data[name]["fingerprint"]:
            raise UserError(
                f"the images of {name} are not those that {workdir.path} was begun with; "
                "restore the data files, or name another --workdir"
            )
    new = {name: facts for name, facts in data.items() if name not in old["data"]}
    differs = own if first["config_sha256"] != own["config_sha256"] else {}
    return differs | ({"data": new} if new else {})


def run_facts(command: list[str]) -> dict[str, Any]:
    """Of one command: when, what, by which code, versions and devices."""
    return {
        "started": now(),
        "command": command,
        "git": _git(),
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in _PACKAGES},
        "devices": [f"{d.platform}:{d.id} {d.device_kind}" for d in jax.local_devices()],
        "cpu": {"model": cpu_model(), "cores": available_cores()},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def data_facts(dataset: AnyDataset) -> dict[str, Any]:
    """Which images a sweep was run on."""
    return {
        "train": len(dataset.train_labels),
        "test": len(dataset.test_labels),
        "image_shape": list(dataset.image_shape),
        "classes": list(dataset.class_names),
        "fingerprint": dataset.fingerprint,
    }


def now() -> str:
    """The time, in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """The commit of the code that runs, or None where it is not in a git checkout."""

    def git(*args: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(
            ["git", *args], cwd=here, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        # Installed into an environment inside somebody's checkout, it is not that checkout's code.
        git("ls-files", "--error-unmatch", __file__)
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def cpu_model() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
