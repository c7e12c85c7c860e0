"""The engine as a sweep runs it, and how a benchmark looks into it."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rethink_jax import config, trials, tuning
from rethink_jax import inputs as trial_inputs
from rethink_jax.bench.networks import Task, make_dataset, make_trial
from rethink_jax.choices import BY_RULE, Choices
from rethink_jax.data.dataset import Dataset
from rethink_jax.engine import GroupRun, choose_layout

# Trials waiting in a sweep that is large enough for every lane.
_MANY = 10**6
_MANY_PER_DEVICE = 1024


def make_settings(batching: str, lanes: int) -> dict[str, Any]:
    """The default settings with one epoch a dispatch and no evaluation before the last epoch.

    Dispatches of one length, since the engine's own tuning would take the pause in which another
    way is measured for a slow device.
    """
    changes = {"engine.batching": batching, "engine.epochs_per_dispatch": 1}
    changes |= {"engine.lanes": lanes, "evaluate.every_epochs": 10**6}
    return config.settings({}) | changes


def chosen_lanes(lanes: int) -> int:
    """The lanes asked for, or, for 0, those that the engine takes for a large sweep."""
    return choose_layout(make_settings("auto", lanes), _MANY).lanes


def _measured_choices(trial: trials.Trial, dataset: Dataset, settings: dict[str, Any]) -> Choices:
    """What a large sweep would measure before it begins, and run with."""
    layout = choose_layout(settings, _MANY)
    spec = trial_inputs.make_spec([trial], dataset, evaluate_every=10**6)
    many = [trial] * (_MANY_PER_DEVICE * len(layout.devices))
    return tuning.choose(spec, many, layout, settings, tuning.Kept())


class BareRun(GroupRun):
    """A run whose program can also be dispatched without the host's work between dispatches."""

    def dispatch(self, times: int) -> None:
        for _ in range(times):
            self._state, _ = self.programs.advance(
                self._images.data, np.int32(1), self._inputs, self._state
            )

    def wait(self) -> None:
        """Until the devices have done all that was dispatched."""
        jax.block_until_ready(self._state)


class EngineWay:
    """As many trials as there are lanes, by the engine, for as long as it is asked to."""

    def __init__(self, job: dict[str, Any]):
        task = Task(**job["task"])
        settings = make_settings(job.get("batching", "auto"), job["lanes"])
        dataset, choices = make_dataset(task), BY_RULE
        if job["tune"]:
            choices = _measured_choices(make_trial(task, 0), dataset, settings)
        # Forced to another batching it keeps its lanes: that is what the two differ in, no more.
        by_rule = settings | {"engine.batching": "auto"}
        lanes = choose_layout(by_rule, _MANY, choices).lanes
        (group,) = trials.group([make_trial(task, seed) for seed in range(lanes)])
        self._trials, settings = group.trials, settings | {"engine.lanes": lanes}
        self._run = BareRun(group, dataset, settings, lambda _: None, choices=choices)

    def setup(self) -> dict[str, Any]:
        """Compiles and fills the lanes; what the table says of the way."""
        run, began = self._run, time.perf_counter()
        run.begin(self._trials)
        run.wait()
        seconds, layout = time.perf_counter() - began, run.layout
        self._resident_before = _resident_anew()
        in_turn = layout.per_device if layout.batching == "map" else 1
        return {
            "compile_seconds": seconds, "lanes": layout.lanes, "batching": layout.batching,
            "devices": len(layout.devices), "dtype": "float32",
            "steps_per_dispatch": run.spec.steps_per_epoch * in_turn,
        }  # fmt: skip

    def run(self, epochs: int) -> dict[str, float]:
        """Trains all lanes for some epochs, one a dispatch, as a sweep does."""
        began = time.perf_counter()
        for _ in range(epochs):
            self._run.step()
        self._run.wait()
        seconds = time.perf_counter() - began
        if self._run.busy < self._run.layout.lanes:
            raise RuntimeError("trials ended while they were timed; take fewer --seconds")
        return {"seconds": seconds, "steps": epochs * self._steps_per_epoch}

    def device_busy(self, epochs: int) -> dict[str, float]:
        """The same, by the compiled program alone: no host work between the dispatches."""
        began = time.perf_counter()
        self._run.dispatch(epochs)
        self._run.wait()
        return {"seconds": time.perf_counter() - began, "steps": epochs * self._steps_per_epoch}

    def memory(self) -> dict[str, Any]:
        """The peak that was planned and the one that came, in bytes: of one device; on the CPU of
        the temporary arrays of all, by what the process grew beyond programs, images and state.
        """
        run = self._run
        if stats := run.layout.devices[0].memory_stats():
            planned, peak = run.programs.memory_bytes, stats["peak_bytes_in_use"]
            return {"planned": planned, "peak": peak, "how": "one device"}
        planned = run.programs.advance.memory_analysis().temp_size_in_bytes
        before, peak = self._resident_before, _resident("VmHWM")
        grown = None if before is None or peak is None else peak - before
        how = "temporary arrays that training touched, by the growth of the process"
        return {"planned": planned * len(run.layout.devices), "peak": grown, "how": how}

    def profile(self, folder: str) -> dict[str, Any]:
        """Writes a trace of two dispatches."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        with jax.profiler.trace(folder):
            self.run(2)
        return {"folder": folder}

    @property
    def _steps_per_epoch(self) -> int:
        return self._run.spec.steps_per_epoch * self._run.layout.lanes


def _resident(name: str) -> int | None:
    """Resident memory of this process in bytes, now (VmRSS) or at most (VmHWM); None: unknown."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(x.split()[1]) * 1024 for x in lines if x.startswith(f"{name}:")), None)


def _resident_anew() -> int | None:
    """Resident memory now, less what the compiler left free; a new VmHWM begins. Linux only."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return None
    return _resident("VmRSS")
