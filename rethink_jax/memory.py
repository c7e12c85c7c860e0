"""Memory of the devices: what lanes need, what there is, and how an error says that it ran out.

A program needs fixed + per_lane * lanes bytes of a device: what the lanes share (the images; under
`map` also the work of the one lane that runs), and what each adds (its state, its labels; under
`vmap` also its activations and gradients). Both numbers come from the compiler's own report on two
programs with few lanes, so nothing has to be run, or even to fit, to know what many would need. The
line is straight from two lanes on; of one alone, the compiler drops the loop or the batch.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import jax

from rethink_jax.schema import UserError

# Of a device's memory. The rest is for what no report counts: fragments, a library's workspace.
_SHARE = 0.9
# Lanes per device of the two programs that are compiled for a plan.
_FEW, _MORE = 2, 4

# What to do where one lane is too many.
ADVICE = (
    "Take a smaller trial.batch_size, a smaller network, or fewer pixel corruptions in one sweep; "
    "on CPUs a smaller --config.engine.devices leaves more for each"
)

_OUT_OF_MEMORY = re.compile(r"RESOURCE_EXHAUSTED|ALLOC_FAILED|out[ _]of[ _]memory", re.IGNORECASE)


class OutOfMemory(UserError):
    """A group cannot run on these devices with any number of lanes."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What lanes need of one device, and what there is. All in bytes.

    fixed: whatever the number of lanes   per_lane: of each lane more
    limit: that the device has; None if its backend does not say
    """

    fixed: int
    per_lane: int
    limit: int | None

    def bytes_at(self, lanes: int) -> int:
        """What so many lanes need, on one device."""
        return self.fixed + self.per_lane * lanes

    @property
    def fitting(self) -> int | None:
        """The most lanes that fit on one device; None if nothing is known of its memory."""
        if self.limit is None:
            return None
        return max(int(_SHARE * self.limit) - self.fixed, 0) // max(self.per_lane, 1)

    def describe(self, lanes: int) -> str:
        """What so many lanes need, and how many there could be, in words."""
        needs = f"{mib(self.bytes_at(lanes))} on each"
        if self.limit is None:
            return needs
        return f"{needs} of {mib(self.limit)}, which hold {self.fitting:,} lanes"


def measure(bytes_at: Callable[[int], int], limit: int | None) -> Plan:
    """The plan through what the compiler reports of two small programs.

    Args:
      bytes_at: what a program of so many lanes needs of one device.
    """
    few, more = bytes_at(_FEW), bytes_at(_MORE)
    per_lane = (more - few) // (_MORE - _FEW)
    return Plan(few - _FEW * per_lane, per_lane, limit)


def fits(needed: int, limit: int | None) -> bool:
    """Whether a device has so many bytes to spare; yes if nothing is known of its memory."""
    return limit is None or needed <= _SHARE * limit


def program_bytes(program: Any) -> int:
    """What one device needs to run a compiled program, as the compiler reports it."""
    m = program.memory_analysis()
    # Of a donated argument, the output takes the place; `alias` is what would be counted twice.
    return (
        m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
        + m.temp_size_in_bytes + m.generated_code_size_in_bytes
    )  # fmt: skip


def limit_of(devices: Sequence[jax.Device]) -> int | None:
    """Bytes that each of some local devices may use; None where the backend does not say."""
    if devices[0].platform == "cpu":
        host = host_bytes()
        return None if host is None else host // len(devices)
    limits = [(d.memory_stats() or {}).get("bytes_limit") for d in devices]
    return None if None in limits else min(limits)


def host_bytes(root: Path = Path("/")) -> int | None:
    """Memory that this process can still take: the machine's, or its control groups' if less.

    Args:
      root: where /proc and /sys lie.

    Returns:
      bytes; None where the system does not say.
    """
    available = _entry(root / "proc/meminfo", "MemAvailable:")
    return None if available is None else min([available * 1024, *_left_in_groups(root)])


def _left_in_groups(root: Path) -> Iterator[int]:
    """What each control group of this process that has a limit leaves free, of both versions."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, limit, usage, cache = "", "max", "current", "inactive_file"
        elif "memory" in controllers.split(","):
            top, limit, usage, cache = (
                "memory", "limit_in_bytes", "usage_in_bytes", "total_inactive_file",
            )  # fmt: skip
        else:
            continue
        inside = PurePosixPath(path.lstrip("/"))
        for group in (inside, *inside.parents):
            folder = root / "sys/fs/cgroup" / top / group
            most, used = _entry(folder / f"memory.{limit}"), _entry(folder / f"memory.{usage}")
            if most is not None and used is not None:
                # Cached files count as used, and give way when memory is asked for.
                yield max(most - used + (_entry(folder / "memory.stat", cache) or 0), 0)


def _entry(path: Path, name: str = "") -> int | None:
    """A number in a file of the kernel, after a name if one is given; None if there is none."""
    try:
        found = re.search(rf"^{re.escape(name)}\s*(\d+)", path.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, says that a device or the host has no room."""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        if isinstance(error, jax.errors.JaxRuntimeError) and _OUT_OF_MEMORY.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def fewer_lanes(lanes: int, devices: int) -> int | None:
    """Three quarters of the lanes, equally many on each device; None if there is one on each."""
    per_device = lanes // devices
    return None if per_device == 1 else per_device * 3 // 4 * devices


def lack(lanes: int, needed: int, limit: int | None) -> str:
    """That so many lanes on one device do not fit, in words."""
    what = "one lane needs" if lanes == 1 else f"{lanes} lanes need"
    return f"{what} {mib(needed)} of each device, which has {mib(limit or 0)}"


def mib(count: int) -> str:
    """Bytes in MiB, as text."""
    return f"{count / 2**20:,.0f} MiB"
