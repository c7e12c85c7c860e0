"""The results of a benchmark as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rethink_jax.bench.ways import WAYS

Results = dict[str, Any]


def head(facts: Results) -> str:
    """Where and with what the figures were measured."""
    git = facts["git"] or {}
    commit = git.get("commit", "unknown")[:12] + (", changed since" if git.get("dirty") else "")
    versions = ", ".join(f"{k} {v}" for k, v in facts["versions"].items() if v)
    cpu = (
        f"{facts['cpu']['model']}, {facts['cpu']['cores']} cores; "
        f"{facts['load']:.1f} processes were running"
    )
    lines = {
        "device": f"{facts['device_kind']} ({facts['platform']})", "CPU": cpu,
        "versions": versions, "XLA flags of the engine": facts["xla_flags"],
        "commit": commit, "date": facts["started"],
    }  # fmt: skip
    if facts["copy_bytes_per_second"]:
        lines["copy bandwidth"] = f"{facts['copy_bytes_per_second'] / 1e12:.2f} TB/s"
    return "\n".join(f"{name}: {value}" for name, value in lines.items())


_COLUMNS = (
    "way", "trial-steps/s (lowest, highest)", "engine/it", "GFLOP/s", "compile s", "lanes", "dtype",
    "notes",
)  # fmt: skip


def network(name: str, found: Results) -> str:
    """One network's rows."""
    task = found["task"]
    title = (
        f"\n{name}: {found['parameters']:,} parameters, batch {task['batch']}, "
        f"{found['flops'] / 1e9:.3g} GFLOP a step, matrix products of ours in {task['precision']}"
    )
    engine = next((r["rate"]["median"] for r in found["rows"] if _is_timed(r, "engine")), None)
    rows = [_row(row, engine) for row in found["rows"]]
    doc = [f"  {row['way']}: {WAYS[row['way']].doc}" for row in found["rows"]]
    return "\n".join([title, *_aligned([_COLUMNS, *rows]), *doc])


def _is_timed(row: Results, way: str) -> bool:
    return row["way"] == way and "rate" in row


def _row(row: Results, engine: float | None) -> tuple[str, ...]:
    if "rate" not in row:
        return (row["way"], *["-"] * (len(_COLUMNS) - 2), row.get("error", "not measured"))
    rate = row["rate"]
    spread = f"{_short(rate['lowest'])}, {_short(rate['highest'])}"
    notes = [f"n={len(row['raw'])}"]
    if "batching" in row:
        notes.append(f"{row['batching']} on {row['devices']} device(s)")
        notes.append(f"{row['steps_per_dispatch']} steps a dispatch")
    if "wall_to_busy" in row:
        notes.append(f"wall/device-busy {row['wall_to_busy']:.3f}")
    if "torch" in row:
        notes.append(f"torch {row['torch']}, {row['threads']} threads")
    notes += [row[k] for k in ("note", "error") if k in row]
    return (
        row["way"], f"{_short(rate['median'])} ({spread})",
        f"{engine / rate['median']:.2f}" if engine else "-", f"{row['gflops']:,.1f}",
        f"{row['compile_seconds']:.1f}", str(row["lanes"]), row["dtype"], "; ".join(notes),
    )  # fmt: skip


def extra(name: str, found: Results) -> str:
    """One of the extras in a line or a few."""
    if "error" in found:
        return f"\n{name}: {found['error']}"
    return f"\n{name}: " + _EXTRAS[name](found)


def _refill(found: Results) -> str:
    return (
        f"{found['trials']} trials of {min(found['lengths'])} to {max(found['lengths'])} epochs on "
        f"{found['lanes']} lanes: {found['gain']:.2f} times as fast as without refill, ideal "
        f"{found['ideal']:.2f}; lanes busy {found['busy']:.1%}"
    )


def _start(found: Results) -> str:
    cold, warm = found["cold_seconds"], found["warm_seconds"]
    return (
        f"a whole sweep of 8 small trials in {cold:.1f} s with an empty compilation cache, "
        f"{warm:.1f} s with a filled one: ratio {found['ratio']:.2f}"
    )


def _plan(found: Results) -> str:
    return f"--plan of {found['trials']:,} trials in {found['seconds']:.1f} s"


def _memory(found: Results) -> str:
    rows = [("network", "planned MiB", "peak MiB", "peak/planned", "of")]
    for name, memory in found.items():
        planned, peak = memory["planned"] / 2**20, memory["peak"]
        shown = (
            ("-", "-")
            if peak is None
            else (f"{peak / 2**20:,.1f}", f"{peak / 2**20 / planned:.2f}")
        )
        rows.append((name, f"{planned:,.1f}", *shown, memory["how"]))
    return "\n".join(["the engine's peak against its plan", *_aligned(rows)])


_EXTRAS = {"refill": _refill, "start": _start, "plan": _plan, "memory": _memory}


def goals(judged: list[Results]) -> str:
    """The goals' table."""
    rows = [("where", "figure", "measured", "at least", "stretch", "verdict")]
    for goal in judged:
        value, sign = goal["measured"], "<= " if goal["at_most"] else ""
        rows.append((
            goal["machine"], goal["figure"], "-" if value is None else f"{value:.3g}",
            f"{sign}{goal['least']:g}", "-" if goal["stretch"] is None else f"{goal['stretch']:g}",
            goal["verdict"],
        ))  # fmt: skip
    return "\n".join(["\ngoals", *_aligned(rows)])


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]


def _short(number: float) -> str:
    """Three digits or more, none of them needless."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
