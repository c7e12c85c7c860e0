"""Many trials at once in one compiled program, on images that lie on the devices.

A lane (`lanes`) whose trial has finished takes the next waiting trial without recompiling; when
none waits, the rest are repacked.

The host works one dispatch behind: it reads which lanes finished in one dispatch while the device
runs the next, in which those lanes stand still.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rethink_jax import inputs as trial_inputs
from rethink_jax import measuring_along, memory, step, train
from rethink_jax.choices import BY_RULE, Choices
from rethink_jax.data.dataset import Dataset
from rethink_jax.lane_run import Finished, LaneRun, OnFailed
from rethink_jax.lanes import (
    LanePrograms,
    Layout,
    choose_layout,
    copy_lane,
    over_lanes,
    shared_sharding,
    snapshot,
)
from rethink_jax.measuring_along import Along, Due
from rethink_jax.trials import Group, Trial

__all__ = ("Finished", "GroupRun", "Layout", "Programs", "choose_layout", "over_lanes")

# Seconds that one dispatch should take: long against the host's work, short for a person waiting.
_DISPATCH_SECONDS = 0.25
_MAX_EPOCHS_PER_DISPATCH = 64


class Report(NamedTuple):
    """What the host reads of each lane after a dispatch: status and epochs done, int32[L]."""

    status: Any
    epoch: Any


class Dispatch(NamedTuple):
    """One that the host has not read yet.

    report: as it ends   epochs: its length   lanes: the trials in them
    due_L: after which epoch each is measured then, or 0   measured: {measure: value_L}, or None
    """

    report: Report
    epochs: int
    lanes: tuple[Trial | None, ...]
    due_L: np.ndarray
    measured: dict[str, Any] | None


class Programs(LanePrograms):
    """The compiled programs of a group on one layout.

    start: (inputs_L, fresh_L, state_L) -> state_L, with fresh lanes at their trial's beginning
    advance: (data, epochs, inputs_L, state_L) -> (state_L, report_L), up to `epochs` further
    measure: (data, inputs_L, due_L, state_L) -> {measure: value_L}; if anything is measured
    All are compiled ahead for these very shapes, so no refill can compile anything. The first two
    consume the state that they are given.
    """

    NAMES = "start", "advance"

    def __init__(
        self,
        spec: step.Spec,
        layout: Layout,
        data: Any,
        one_input: train.Inputs,
        measured: Sequence[measuring_along.Network] = (),
    ):
        self._data, self._one_input, self._measured = data, one_input, measured
        if measured:
            self.NAMES = (*self.NAMES, "measure")
        self._one_state = jax.eval_shape(lambda i: train.init_trial(spec, i), one_input)
        super().__init__(spec, layout, self._one_state)

    @functools.cached_property
    def start(self) -> Any:
        spec = self._spec

        def start(inputs: train.Inputs, fresh: jax.Array, state: train.TrialState) -> Any:
            return jax.lax.cond(fresh, lambda: train.init_trial(spec, inputs), lambda: state)

        return self.compiled(start, [], self._one_input, np.bool_(), self._one_state)

    @functools.cached_property
    def advance(self) -> Any:
        spec = self._spec

        def advance(data: train.Data, epochs: jax.Array, inputs: train.Inputs, state: Any) -> Any:
            body = lambda _, s: train.advance(spec, data, inputs, s)  # noqa: E731
            state = jax.lax.fori_loop(0, epochs, body, state)
            # The state itself is consumed by the next call before the host has read this one.
            return state, Report(state.status, state.epoch)

        shared = [self._data, np.int32()]
        return self.compiled(advance, shared, self._one_input, self._one_state)

    @functools.cached_property
    def measure(self) -> Any:
        networks = self._measured

        def measure(data: train.Data, inputs: train.Inputs, due: Due, state: Any) -> Any:
            return measuring_along.measure(networks, data, inputs, due, state)

        # One network after another: each needs memory for all of its images, and only those that
        # are due take time.
        own = self._one_input, Due(np.int32(), np.int32()), self._one_state
        return self.compiled(measure, [self._data], *own, batching="map", consume=False)

    @property
    def memory_bytes(self) -> int:
        """What one device needs, with the images, and the networks that wait to be written."""
        programs = [self.advance, *([self.measure] if self._measured else [])]
        return max(map(memory.program_bytes, programs)) + self.waiting_bytes


class GroupRun(LaneRun):
    """One group on its way through the lanes: `begin`, then `step` while `busy`.

    image_bytes: memory for distinct versions of the images, per device; at most half of what it has
    """

    programs: Programs

    def __init__(
        self,
        group: Group,
        dataset: Dataset,
        settings: dict[str, Any],
        on_finished: Callable[[Finished], None],
        image_bytes: int = 2**32,
        choices: Choices = BY_RULE,
        on_failed: OnFailed | None = None,
    ):
        super().__init__(group, dataset, settings, on_finished, choices, on_failed)
        versions = {trial_inputs.image_version(t) for t in group.trials}
        shared, limit = shared_sharding(self.layout), memory.limit_of(self.layout.devices)
        most = image_bytes if limit is None else min(image_bytes, limit // 2)
        self._images = trial_inputs.ImageStore(dataset, versions, most, shared)
        self._along = Along(group, self.spec, settings)
        self._pending: Dispatch | None = None
        # Of a checkpoint, its state and the row: trials under way that wait for a lane.
        self._kept: dict[Trial, tuple[train.TrialState, int]] = {}
        self._epochs_per_dispatch = settings["engine.epochs_per_dispatch"] or 1
        self._last_collected = time.monotonic()

    @property
    def one_state(self) -> train.TrialState:
        """Shapes and dtypes of one trial's state."""
        return jax.eval_shape(lambda i: train.init_trial(self.spec, i), self._one_input)

    def begin(
        self,
        waiting: Iterable[Trial],
        restored: tuple[train.TrialState, dict[str, Any]] | None = None,
    ) -> None:
        """Compiles the programs and fills the lanes.

        Args:
          waiting: the trials to run, in order.
          restored: a checkpoint; of its trials, those in `waiting` go on where they stood, also
            if they are more than there are lanes.
        """
        self.waiting = list(waiting)
        if restored and self._holds_all(restored[1]):
            # The same machine, and nothing waits: take up the very lanes, as they were compacted.
            self.layout = dataclasses.replace(self.chosen, lanes=len(restored[1]["lanes"]))
        self.compile()
        state_L = self._empty_lanes()
        if restored:
            saved, meta = restored
            self._take_up(state_L, saved, meta["lanes"], saved.epoch)
            self._keep(saved, meta["lanes"])
            self._along.restore([*self.lanes, *self._kept], meta.get("measured", {}))
        self._state = self.programs.put(state_L)
        self._inputs = self.programs.put(self._inputs_L)
        self._refill()
        if self._along.due_L(self.lanes, self._begun(), 0).any():
            # The checkpoint was made before what was measured at its epoch could be read.
            self._dispatch(0)

    def step(self) -> None:
        """Dispatches some epochs of all lanes; then attends to what the one before finished."""
        previous = self._pending
        self._dispatch(self._along.until_due(self._epochs_per_dispatch, self._begun()))
        if previous is not None:
            self._collect(previous)

    def checkpoint(self) -> tuple[train.TrialState, dict[str, Any]]:
        """The state of all trials under way and which they are, for `GroupCheckpoint.save`."""
        state, ids = snapshot(self._state), self._lane_ids()
        if self._kept:
            kept = [jax.tree.map(lambda a, i=i: a[i : i + 1], s) for s, i in self._kept.values()]
            state = jax.tree.map(lambda *parts: np.concatenate(parts), jax.device_get(state), *kept)
        return state, {
            "lanes": [*ids, *(t.trial_id for t in self._kept)],
            "layout": self.chosen.describe(),
            "measured": self._along.to_json([*self.lanes, *self._kept]),
        }

    # --- inside -----------------------------------------------------------------------------------

    def _make_programs(self, layout: Layout) -> Programs:
        struct, measured = self._images.struct, self._along.networks
        return Programs(self.spec, layout, struct, self._one_input, measured)

    def _holds_all(self, meta: dict[str, Any]) -> bool:
        ids, devices = meta["lanes"], len(self.chosen.devices)
        fits = len(ids) <= self.chosen.lanes and len(ids) % devices == 0
        known = meta["layout"] == self.chosen.describe()
        return known and fits and {t.trial_id for t in self.waiting} <= set(ids)

    def _keep(self, saved: train.TrialState, trial_ids: list[str | None]) -> None:
        """Keeps what a checkpoint holds of trials that still wait for a lane; they come first."""
        waiting = {t.trial_id: t for t in self.waiting}
        rows = [(waiting[i], row) for row, i in enumerate(trial_ids) if i in waiting]
        self._kept = {trial: (saved, row) for trial, row in rows}
        self.waiting.sort(key=lambda t: t not in self._kept)

    def _goes_on(self, trial: Trial | None) -> bool:
        """Whether a trial's state was kept, and can be taken up while other lanes are running."""
        if trial is None or trial not in self._kept:
            return False
        saved, row = self._kept[trial]
        # What was due to be measured there and was not is not there any more.
        if self._along.due_L([trial], {trial: int(saved.epoch[row])}, 0).any():
            del self._kept[trial]
            return False
        return True

    def _put_back(self, lanes: Sequence[int]) -> None:
        """Trials that were kept go on in these lanes, into which they were assigned."""
        state_L = jax.tree.map(np.array, jax.device_get(self._state))
        for lane in lanes:
            trial = self.lanes[lane]
            assert trial is not None
            saved, row = self._kept.pop(trial)
            copy_lane(state_L, lane, saved, row)
            self.epochs_of[trial] = int(saved.epoch[row])
        self._state = self.programs.put(state_L)

    def _place(self, trial: Trial) -> int | None:
        in_use = {int(self._inputs_L.image_set[i]) for i, t in enumerate(self.lanes) if t}
        return self._images.place_of(trial_inputs.image_version(trial), in_use)

    def _refill(self) -> None:
        filled = []
        while (lane := self._free_lane()) is not None and self._fill(lane):
            filled.append(lane)
        if not filled:
            return
        self._inputs = self.programs.put(self._inputs_L)
        back = [lane for lane in filled if self._goes_on(self.lanes[lane])]
        fresh_L = np.zeros(self.layout.lanes, np.bool_)
        fresh_L[[lane for lane in filled if lane not in back]] = True
        if fresh_L.any():
            self._state = self.programs.start(self._inputs, self.programs.put(fresh_L), self._state)
        if back:
            self._put_back(back)
        if self._kept:  # Of some, the data could not be made.
            self._kept = {t: own for t, own in self._kept.items() if t in self.waiting}

    def _begun(self) -> dict[Trial, int]:
        """By trial in a lane: epochs done once all is that was dispatched, if it is not fitted."""
        sent = self._pending
        ahead = dict.fromkeys(sent.lanes, sent.epochs) if sent else {}
        return {t: int(self.epochs_of[t]) + ahead.get(t, 0) for t in self.lanes if t is not None}

    def _dispatch(self, epochs: int) -> None:
        self._state, report = self.programs.advance(
            self._images.data, np.int32(epochs), self._inputs, self._state
        )
        due_L = self._along.due_L(self.lanes, self._begun(), epochs)
        measured = self._measure(due_L)
        self._pending = Dispatch(report, epochs, tuple(self.lanes), due_L, measured)

    def _measure(self, due_L: np.ndarray) -> dict[str, jax.Array] | None:
        if not due_L.any():
            return None
        due_L = self.programs.put(self._along.ask(self.lanes, due_L))
        return self.programs.measure(self._images.data, self._inputs, due_L, self._state)

    def _collect(self, sent: Dispatch) -> None:
        status_L, epoch_L, measured = jax.device_get((*sent.report, sent.measured))
        self._tune_dispatch(sent.epochs)
        ended: dict[Trial, int] = {}
        for row, trial in enumerate(sent.lanes):
            if trial is None or trial not in self.lanes:
                continue  # Idle, or already collected when this was dispatched.
            self.epochs_of[trial] = int(epoch_L[row])
            if 0 < sent.due_L[row] == epoch_L[row] and status_L[row] != train.DIVERGED:
                self._along.note(trial, int(epoch_L[row]), {n: v[row] for n, v in measured.items()})
            if status_L[row] != train.RUNNING:
                ended[trial] = int(status_L[row])
        self._end(ended)
        if self.waiting:
            self._refill()
        else:
            self._repack()

    def _end(self, ended: dict[Trial, int]) -> None:
        """Hands over trials that have ended, each with its status."""
        last = {t: int(self.epochs_of[t]) for t, s in ended.items() if s != train.DIVERGED}
        late_L = self._along.unmeasured_L(self.lanes, last)
        # They stand still in the dispatch that runs now, so the state then is their last.
        measured = self._measure(late_L)
        for trial in ended:
            lane = self.lanes.index(trial)
            if late_L[lane]:
                self._along.note(trial, last[trial], self.programs.lane(measured, lane))
            self._finish(lane, self.programs.lane(self._state, lane), self._along.pop(trial))

    def _tune_dispatch(self, epochs: int) -> None:
        """Lengthens or shortens the next dispatch towards a quarter of a second."""
        now = time.monotonic()
        seconds, self._last_collected = now - self._last_collected, now
        if not self._settings["engine.epochs_per_dispatch"]:
            wanted = int(_DISPATCH_SECONDS * epochs / max(seconds, 1e-6))
            self._epochs_per_dispatch = min(
                max(wanted, 1), max(2 * epochs, 1), _MAX_EPOCHS_PER_DISPATCH
            )

    def _repack(self) -> None:
        """With no trial waiting, gives the remaining ones a tighter place.

        Under `vmap` an idle lane costs as much as a busy one: the lanes are halved when half are
        idle. Under `map` it costs nothing, but the devices should have equally many trials.
        """
        devices = len(self.layout.devices)
        needed = -(-self.busy // devices)
        layout = self.layout
        if layout.batching == "vmap":
            while needed and 2 * needed <= layout.per_device and layout.per_device > 1:
                layout = dataclasses.replace(layout, lanes=layout.per_device // 2 * devices)
        uneven = max(self._busy_on(d) for d in range(devices)) > needed
        if not self.busy or (layout == self.layout and not uneven):
            return
        if layout.batching == "vmap" and layout == self.layout:
            return
        old_state, old_inputs = jax.device_get(self._state), self._inputs_L
        old = [(i, t) for i, t in enumerate(self.lanes) if t is not None]
        if layout != self.layout:
            self.layout = layout
            self.compile()
        state_L = self._empty_lanes()
        for row, trial in old:
            lane = self._free_lane()
            assert lane is not None
            self.lanes[lane] = trial
            copy_lane((state_L, self._inputs_L), lane, (old_state, old_inputs), row)
        self._state = self.programs.put(state_L)
        self._inputs = self.programs.put(self._inputs_L)
