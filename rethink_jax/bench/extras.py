"""What is measured beside the networks: refilling lanes, starting, planning, memory."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from rethink_jax.bench import client
from rethink_jax.bench.networks import Task

_REFILL_REPEATS = 2
_REFILL_STEPS = 40  # Of an epoch; some 20 ms for the lanes of two cores.
_SMALL = """
from rethink_jax import default_config

def get_config(mode="full"):
    config = default_config(mode)
    config.trial.data.name = "digits"
    config.trial.model.hidden = (64,)
    config.trial.stop.max_epochs = 3
    config.sweep.seed = tuple(range(8))
    return config
"""
_LARGE = """
from rethink_jax import default_config

def get_config(mode="full"):
    config = default_config(mode)
    config.trial.data.name = "digits"
    config.trial.model.hidden = (256, 256)
    config.sweep.seed = tuple(range(1000))
    config.sweep.corruption.label_prob = tuple(level / 10 for level in range(10))
    return config
"""

Environment = dict[str, str]
Extra = Callable[[dict[str, Any], Any, Environment], dict[str, Any]]


def refill(results: dict[str, Any], options: Any, environment: Environment) -> dict[str, Any]:
    """The wall time of a mixed workload with and without refilling, and how busy the lanes are."""
    task = Task(**results["head"]["networks"]["digits"]["task"])._replace(steps=_REFILL_STEPS)
    job = {"class": "refill", "lanes": options.lanes, "task": task._asdict()}
    try:
        with client.jax_worker(job, environment) as worker:
            facts = worker.ask("setup")
            raw = [
                {"refill": worker.ask("run", refill=True), "none": worker.ask("run", refill=False)}
                for _ in range(_REFILL_REPEATS)
            ]
    except client.WorkerError as error:
        return {"error": str(error)}
    gain = median(r["none"]["seconds"] / r["refill"]["seconds"] for r in raw)
    found = {"gain": gain, "share_of_ideal": gain / facts["ideal"]}
    return facts | found | {"busy": median(r["refill"]["busy"] for r in raw), "raw": raw}


def start(results: dict[str, Any], options: Any, environment: Environment) -> dict[str, Any]:
    """Seconds of a whole small sweep, with nothing compiled before and with all of it."""
    del results, options
    with tempfile.TemporaryDirectory() as folder:
        environment = environment | {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache"}
        try:
            cold, warm = (
                sweep_seconds(_SMALL, folder, [f"--workdir={folder}/{name}"], environment)
                for name in ("cold", "warm")
            )
        except client.WorkerError as error:
            return {"error": str(error)}
    return {"cold_seconds": cold, "warm_seconds": warm, "ratio": cold / warm}


def plan(results: dict[str, Any], options: Any, environment: Environment) -> dict[str, Any]:
    """Seconds of --plan for 10,000 trials of one group."""
    del results, options
    with tempfile.TemporaryDirectory() as folder:
        environment = environment | {"JAX_COMPILATION_CACHE_DIR": ""}
        try:
            return {
                "trials": 10_000,
                "seconds": sweep_seconds(_LARGE, folder, ["--plan"], environment),
            }
        except client.WorkerError as error:
            return {"error": str(error)}


def sweep_seconds(config: str, folder: str, flags: list[str], environment: Environment) -> float:
    """Seconds of one `launch.sweep`.

    Raises:
      WorkerError: it failed.
    """
    path = Path(folder) / "config.py"
    path.write_text(config)
    command = [sys.executable, "-m", "launch.sweep", f"--config={path}", *flags]
    own = environment | {"PYTHONPATH": client.with_package(environment)}
    began = time.perf_counter()
    done = subprocess.run(command, env=own, capture_output=True, text=True)
    if done.returncode:
        raise client.WorkerError((done.stderr.strip().splitlines() or ["no message"])[-1])
    return time.perf_counter() - began


def memory(results: dict[str, Any], options: Any, environment: Environment) -> dict[str, Any]:
    """The engine's peak memory against the plan's, of every network that it was timed on."""
    del options, environment
    found = {}
    for name, network in results["networks"].items():
        for row in network["rows"]:
            if row["way"] == "engine" and "memory" in row:
                found[name] = row["memory"]
    return found if found else {"error": "the engine was timed on no network"}


EXTRAS: dict[str, Extra] = {"refill": refill, "start": start, "plan": plan, "memory": memory}
