"""What refilling lanes gains: trials of very different length, with and without it."""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np

from rethink_jax import train, trials
from rethink_jax.bench.engine_ways import BareRun, chosen_lanes, make_settings
from rethink_jax.bench.networks import Task, make_dataset, make_trial
from rethink_jax.engine import Finished, Layout, Programs

_TRIALS_PER_LANE = 8
_SHORTEST, _LONGEST = 4, 60  # Epochs; one is a dispatch.
_OPTIMIZER = {"learning_rate": 0.02}


class _CompiledRun(BareRun):
    """A run that takes its programs from earlier ones: no time is spent on compiling.

    known: programs of the same group, by layout
    """

    known: dict[Layout, Programs]

    def compile(self) -> Programs:
        """The programs for the present layout."""
        if self.layout not in self.known:
            self.known[self.layout] = super().compile()
        self.programs = self.known[self.layout]
        return self.programs

    @property
    def offered(self) -> int:
        """Lanes that could run in the time of a dispatch.

        Under `map` an idle lane takes no time: there, what the fullest device runs, on each.
        """
        if self.layout.batching == "vmap":
            return self.layout.lanes
        devices = len(self.layout.devices)
        return devices * max(self._busy_on(device) for device in range(devices))


class Refill:
    """A workload whose lengths are known: trials that stop below a loss, all with one curve.

    One trial is trained to the end. A trial with its seed has the same curve, and a threshold
    between the lowest loss so far and that of epoch e makes it stop after epoch e.
    """

    def __init__(self, job: dict[str, Any]):
        self._task = Task(**job["task"])
        self._dataset = make_dataset(self._task)
        self._lanes = chosen_lanes(job["lanes"])
        self._compiled: dict[Layout, Programs] = {}

    def setup(self) -> dict[str, Any]:
        """Trains the one trial in every lane, with all that the workload needs compiled."""
        finished, _ = self._run_all([self._trial(i, None) for i in range(self._lanes)])
        self._loss_E = finished[0].state.curve[:, train.CURVE.index("online_loss")]
        rng = np.random.Generator(np.random.Philox(1))
        count = _TRIALS_PER_LANE * self._lanes
        wanted = np.exp(rng.uniform(np.log(_SHORTEST), np.log(_LONGEST), count)).round()
        possible = np.array([e for e in range(1, _LONGEST + 1) if self._threshold(e) is not None])
        nearest = np.abs(possible[:, None] - wanted).argmin(axis=0)
        self._lengths = [int(e) for e in possible[nearest]]
        batches = np.array(self._lengths).reshape(-1, self._lanes)
        self._longest = [int(e) for e in np.repeat(batches.max(axis=1), self._lanes)]
        return {
            "trials": count, "lanes": self._lanes, "lengths": self._lengths,
            "ideal": sum(self._longest) / sum(self._lengths),
        }  # fmt: skip

    def run(self, refill: bool) -> dict[str, float]:
        """Seconds for the workload, and the part of all lane-steps in which a trial ran.

        Without refill every lane runs until the longest trial of its batch of L is finished, in
        the same program: the trials are given the length of the longest.
        """
        return self._measure(self._lengths if refill else self._longest)

    def _measure(self, lengths: list[int]) -> dict[str, float]:
        all_trials = [self._trial(i, self._threshold(e)) for i, e in enumerate(lengths)]
        finished, measured = self._run_all(all_trials)
        came = {f.trial: int(f.state.epoch) for f in finished}
        assert [came[t] for t in all_trials] == lengths, "the trials do not have their lengths"
        return measured

    def _trial(self, number: int, threshold: float | None) -> trials.Trial:
        # The corruption's seed changes nothing, as nothing is corrupted; it tells trials apart.
        return make_trial(
            self._task, seed=0, optimizer=_OPTIMIZER, corruption={"seed": number},
            stop={"max_epochs": _LONGEST, "train_loss": threshold},
        )  # fmt: skip

    def _threshold(self, epochs: int) -> float | None:
        """The loss below which a trial stops after so many epochs; None if there is none."""
        loss = self._loss_E[epochs - 1]
        before = self._loss_E[: epochs - 1].min(initial=2 * self._loss_E[0])
        return float((loss + before) / 2) if loss < before else None

    def _run_all(self, all_trials: list[trials.Trial]) -> tuple[list[Finished], dict[str, float]]:
        (group,) = trials.group(all_trials)
        finished: list[Finished] = []
        settings = make_settings("auto", self._lanes)
        run = _CompiledRun(group, self._dataset, settings, finished.append)
        run.known = self._compiled
        run.begin(all_trials)
        run.wait()
        began, offered = time.perf_counter(), 0
        while run.busy:
            offered += run.offered
            run.step()
        run.wait()
        seconds = time.perf_counter() - began
        finished = [f._replace(state=jax.device_get(f.state)) for f in finished]
        used = sum(int(f.state.epoch) for f in finished)
        return finished, {"seconds": seconds, "busy": used / offered}
