"""Where numbers come from: the facts about a run that stand in its run.json."""

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

from rethink_jax.data.dataset import Dataset
from rethink_jax.data.streamed import StreamedDataset
from rethink_jax.devices import available_cores

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "ml-collections", "numpy",
             "pillow")  # fmt: skip


def sha256(config: dict[str, Any]) -> str:
    """SHA-256 of the canonical JSON of a config."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


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


def data_facts(dataset: Dataset | StreamedDataset) -> dict[str, Any]:
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
