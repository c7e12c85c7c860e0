"""One benchmark from its options to its results: which ways, in which order, how often."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from rethink_jax.bench import extras as extras_lib
from rethink_jax.bench import goals, table, ways
from rethink_jax.bench.client import Worker, WorkerError, jax_worker
from rethink_jax.bench.networks import NETWORKS, Task
from rethink_jax.schema import UserError, suggest

# A way is not repeated further once it has taken so many times the seconds asked for, but is
# repeated at least so often: else a slow one would take most of a benchmark's time.
_PATIENCE, _LEAST_REPEATS = 1.5, 3
# Where a dispatch has fewer steps, the host's share of the time is not looked at.
_STEPS_OF_A_LONG_DISPATCH = 100


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line says.

    networks, ways, extras: names   lanes, batch: 0 for each one's own   repeats: of each way
    seconds: that one repeat should take   torch_python: an interpreter with PyTorch, or ""
    json: file for all results, or ""   profile: folder for traces of the engine, or ""

    Raises:
      UserError: an unknown name, or a number that is too small.
    """

    networks: tuple[str, ...] = tuple(NETWORKS)
    ways: tuple[str, ...] = ways.FAMILIES
    extras: tuple[str, ...] = tuple(extras_lib.EXTRAS)
    lanes: int = 0
    batch: int = 0
    repeats: int = 5
    seconds: float = 3.0
    torch_python: str = ""
    json: str = ""
    profile: str = ""

    def __post_init__(self) -> None:
        known = {"networks": NETWORKS, "ways": ways.FAMILIES, "extras": extras_lib.EXTRAS}
        for flag, names in known.items():
            for name in getattr(self, flag):
                if name not in names:
                    raise UserError(
                        f"--{flag}: {name!r} is none of {', '.join(names)}{suggest(name, names)}"
                    )
        lowest = {"lanes": 0, "batch": 0, "repeats": 1}
        for flag, low in lowest.items():
            if getattr(self, flag) < low:
                raise UserError(f"--{flag} is {getattr(self, flag)}; it is at least {low}")
        if not 0 < self.seconds < math.inf:
            raise UserError(
                f"--seconds is {self.seconds}; a repeat takes more than 0 seconds, for example 3"
            )


def run(
    options: Options, command: list[str], environment: dict[str, str], say: Callable[[str], None]
) -> dict[str, Any]:
    """Measures everything, says it as it comes, and returns what the JSON file holds.

    Args:
      command: as it was given.
      environment: of the workers, without what `devices.setup` puts into this process's own.

    Raises:
      UserError: the machine cannot be used at all, or the JSON file cannot be written.
    """
    results: dict[str, Any] = {"head": {}, "networks": {}, "extras": {}, "goals": []}
    _write(results, options.json)
    job = {"class": "facts", "command": command, "batch": options.batch}
    try:
        with jax_worker(job, environment) as worker:
            results["head"] = worker.ask("setup")
    except WorkerError as error:
        raise UserError(f"jax cannot be used here: {error}") from error
    say(table.head(results["head"]))
    for name in options.networks:
        results["networks"][name] = _Comparison(name, options, environment, results["head"]).run()
        say(table.network(name, results["networks"][name]))
        _write(results, options.json)
    for name in options.extras:
        results["extras"][name] = extras_lib.EXTRAS[name](results, options, environment)
        say(table.extra(name, results["extras"][name]))
    results["goals"] = goals.judge(results)
    say(table.goals(results["goals"]))
    _write(results, options.json)
    return results


def _write(results: dict[str, Any], path: str) -> None:
    if path:
        try:
            Path(path).write_text(json.dumps(results, indent=1) + "\n")
        except OSError as error:
            raise UserError(f"--json: cannot write {path}: {error.strerror}") from error


class _Comparison:
    """All ways on one network, one repeat of each in turn, so that a noisy minute hits them all."""

    def __init__(
        self, name: str, options: Options, environment: dict[str, str], head: dict[str, Any]
    ):
        self._options, self._environment, self._head = options, environment, head
        self._facts = head["networks"][name]
        self._task = Task(**self._facts["task"])
        self._profile = str(Path(options.profile) / name) if options.profile else ""
        self._rows: dict[str, dict[str, Any]] = {
            way: {"way": way, "raw": []} for way in ways.ways_for(name, options.ways)
        }

    def run(self) -> dict[str, Any]:
        """The network's facts and a row for each way."""
        with contextlib.ExitStack() as stack:
            ready = {way: w for way in self._rows if (w := self._started(way, stack))}
            for _ in range(self._options.repeats):
                for way, worker in ready.items():
                    if not self._is_enough(way):
                        with self._reporting(way):
                            self._repeat(self._rows[way], worker)
            if "engine" in ready and "error" not in self._rows["engine"]:
                with self._reporting("engine"):
                    self._look_into(self._rows["engine"], ready["engine"])
        self._same_as_engine()
        return self._facts | {"rows": [self._summed_up(r) for r in self._rows.values()]}

    def _started(self, way: str, stack: contextlib.ExitStack) -> Worker | None:
        """The worker of a way, warm, and in the row how many epochs a repeat has."""
        row, options = self._rows[way], self._options
        chosen = self._rows.get("engine", {}).get("batching")
        if way == f"engine_{chosen}":
            return None  # Its row is the engine's own.
        with self._reporting(way):
            platform = self._head["platform"]
            worker = stack.enter_context(
                ways.start(
                    way, self._task, options.lanes, platform, options.torch_python,
                    self._environment,
                )
            )  # fmt: skip
            row |= worker.ask("setup")
            ours = self._facts["parameters"]
            if row.get("parameters", ours) != ours:
                raise WorkerError(f"has {row['parameters']:,} parameters, ours has {ours:,}")
            row["epochs"] = epochs_for(worker, options.seconds)
            return worker
        return None

    def _is_enough(self, way: str) -> bool:
        row, options = self._rows[way], self._options
        spent = sum(r["seconds"] for r in row["raw"])
        patient = spent < _PATIENCE * options.repeats * options.seconds
        return "error" in row or (len(row["raw"]) >= _LEAST_REPEATS and not patient)

    def _repeat(self, row: dict[str, Any], worker: Worker) -> None:
        raw = worker.ask("run", epochs=row["epochs"])
        if row.get("steps_per_dispatch", 0) >= _STEPS_OF_A_LONG_DISPATCH and row["way"] == "engine":
            raw["busy_seconds"] = worker.ask("device_busy", epochs=row["epochs"])["seconds"]
        row["raw"].append(raw)

    def _look_into(self, row: dict[str, Any], worker: Worker) -> None:
        row["memory"] = worker.ask("memory")
        if self._profile:
            row["profile"] = worker.ask("profile", folder=self._profile)["folder"]

    @contextlib.contextmanager
    def _reporting(self, way: str) -> Any:
        """Writes into its row why a way failed; the others go on."""
        try:
            yield
        except WorkerError as error:
            self._rows[way]["error"] = str(error)

    def _same_as_engine(self) -> None:
        engine = self._rows.get("engine", {})
        for way, row in self._rows.items():
            if way == f"engine_{engine.get('batching')}":
                note = {"way": way, "note": "what the engine chose; not measured twice"}
                row |= {k: v for k, v in engine.items() if k not in ("memory", "profile")} | note

    def _summed_up(self, row: dict[str, Any]) -> dict[str, Any]:
        if "error" in row or not row["raw"]:
            return row
        rates = [r["steps"] / r["seconds"] for r in row["raw"]]
        row["rate"] = {"median": median(rates), "lowest": min(rates), "highest": max(rates)}
        row["gflops"] = row["rate"]["median"] * self._facts["flops"] / 1e9
        if busy := [r["seconds"] / r["busy_seconds"] for r in row["raw"] if "busy_seconds" in r]:
            row["wall_to_busy"] = median(busy)
        return row


def epochs_for(worker: Worker, seconds: float) -> int:
    """Warms a worker up, and finds how many epochs take it about so long; at least one."""
    # The first epoch of all is slower than the others, yet if it is long it says enough.
    if worker.ask("run", epochs=1)["seconds"] > 2 * seconds:
        return 1
    epochs = 1
    while True:
        took = worker.ask("run", epochs=epochs)["seconds"]
        wanted = max(1, math.ceil(epochs * seconds / max(took, 1e-6)))
        # What took too little time says little about how long more of it takes.
        if took > seconds / 8 or wanted <= epochs:
            return wanted
        epochs = min(wanted, 8 * epochs)
