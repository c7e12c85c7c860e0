"""How a sweep gets faster with the number of workers, by executor."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rethink_jax.bench import client, extras
from rethink_jax.executors import EXECUTORS, processes
from rethink_jax.schema import UserError, suggest

_CONFIG = """
from rethink_jax import default_config

def get_config(mode="full"):
    config = default_config(mode)
    config.trial.data.name = "digits"
    config.trial.batch_size = 32
    config.trial.model.hidden = (512,)
    config.trial.stop.max_epochs = {epochs}
    config.trial.stop.when_fitted = False
    config.engine.tuning = "off"
    config.sweep.seed = tuple(range({trials}))
    return config
"""
_TRIALS, _EPOCHS = 32, 100


def run(
    names: Sequence[str],
    workers: Sequence[int],
    environment: dict[str, str],
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Times one sweep for each executor and number of workers, each with a core or GPU of its own.

    Args:
      workers: numbers of them; none: 1, 2, 4, ... up to the GPUs or cores

    Raises:
      UserError: no such executor, or not as many cores or GPUs.
    """
    gpus = processes.visible_gpus()
    if not (places := gpus or processes.available_cores()):
        raise UserError("--executors needs GPUs, or a system that ties processes to cores")
    known = [name for name in EXECUTORS if name != "local"]
    for name in names:
        if name not in known:
            raise UserError(
                f"there is no executor {name!r} of workers{suggest(name, known)}; there are "
                f"{', '.join(known)}"
            )
    counts = list(workers) or [2**i for i in range(len(places).bit_length())]
    if wrong := [count for count in counts if not 1 <= count <= len(places)]:
        raise UserError(
            f"{wrong[0]} workers, and there are {len(places)} {'GPUs' if gpus else 'cores'}; take "
            f"1 to {len(places)}"
        )
    say(
        f"{_TRIALS} trials of digits, one hidden layer of 512, {_EPOCHS} epochs; a "
        f"{'GPU' if gpus else 'core'} for each worker; seconds of the slowest worker from its "
        "first to its last trial, and of the whole command\n"
        f"{'executor':12}{'workers':>8}{'seconds':>10}{'command':>10}{'times one':>11}"
    )
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            first = None
            for count in [counts[0], *counts]:  # The first run fills the compilation cache.
                workdir = Path(folder) / f"{name}{len(rows)}{count}{first}"
                row = _timed(name, count, places[:count], bool(gpus), workdir, environment)
                if first is None:
                    first = 0.0
                    continue
                first = first or row["seconds"]
                rows.append(row | {"speedup": first / row["seconds"]})
                say(
                    f"{name:12}{count:>8}{row['seconds']:>10.1f}{row['command_seconds']:>10.1f}"
                    f"{rows[-1]['speedup']:>11.2f}"
                )
    return rows


def _timed(
    name: str,
    count: int,
    places: Sequence[Any],
    gpus: bool,
    workdir: Path,
    environment: dict[str, str],
) -> dict[str, Any]:
    flags = [f"--workdir={workdir}", f"--executor={name}", f"--workers={count}"]
    flags += [f"--ray_gpus={int(gpus)}"] if name == "ray" else []
    if gpus:
        environment = environment | {"CUDA_VISIBLE_DEVICES": ",".join(places)}
    config = _CONFIG.format(trials=_TRIALS, epochs=_EPOCHS)
    before = os.sched_getaffinity(0)
    if not gpus:
        os.sched_setaffinity(0, places)
    try:
        seconds = extras.sweep_seconds(config, str(workdir.parent), flags, environment)
    except client.WorkerError as error:
        raise UserError(f"{count} workers by {name}: {error}") from error
    finally:
        os.sched_setaffinity(0, before)
    runs = [json.loads(path.read_text()) for path in workdir.glob("runs/*.json")]
    return {
        "executor": name, "workers": count, "command_seconds": seconds,
        "seconds": max(run["seconds"] for run in runs),
    }  # fmt: skip
