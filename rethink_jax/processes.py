"""Processes of this machine: which one this is, and whether another one is still there."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import socket
import subprocess
from pathlib import Path


def machine() -> dict[str, str]:
    """What tells a machine, its present boot, and a container with its own processes apart."""
    boot = []
    with contextlib.suppress(OSError):
        boot.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        boot.append(os.readlink("/proc/self/ns/pid"))
    return {"host": socket.gethostname(), "boot": " ".join(boot)}


@functools.cache
def machine_id() -> str:
    """`machine` in eight hex digits, for names of files."""
    return hashlib.sha256(repr(machine()).encode()).hexdigest()[:8]


def start_of(pid: int) -> str | None:
    """When a process began, in the machine's own count; None if there is none, or it has ended.

    A later process with the same number began at another time.
    """
    if Path("/proc/self/stat").exists():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in "ZX" else fields[19]
    command = ["ps", "-o", "stat=", "-o", "lstart=", "-p", str(pid)]
    stat, _, start = subprocess.run(command, capture_output=True, text=True).stdout.partition(" ")
    return start.strip() if stat and not stat.startswith("Z") else None
