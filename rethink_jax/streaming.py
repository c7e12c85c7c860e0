"""Many trials at once on images that do not fit on a device: the host reads them as they go.

All lanes are trained on the same batches, each read once for all of them, so all trials of a wave
start together. A lane whose trial is done stands still until the wave ends; then the next trials
start. A checkpoint can lie anywhere in an epoch: the order of the images is known beforehand.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from rethink_jax import chunks, memory, step, train
from rethink_jax.choices import BY_RULE, Choices
from rethink_jax.data import loader
from rethink_jax.data.streamed import StreamedDataset
from rethink_jax.devices import available_cores
from rethink_jax.lane_run import Finished, LaneRun, OnFailed
from rethink_jax.lanes import LanePrograms, Layout, snapshot
from rethink_jax.trials import Group, Trial

_CHUNK_BYTES = 2**26
# Enough to make a dispatch long against the host's work, where images are tiny.
_MAX_STEPS = 64


class Report(NamedTuple):
    """What the host reads of each lane: status int32[L], and whether evaluation is due, bool[L]."""

    status: Any
    due: Any


class StreamPrograms(LanePrograms):
    """The compiled programs of a group on one layout. All but `start` return (state_L, report_L).

    start: (inputs_L, fresh_L, state_L) -> state_L, with fresh lanes at their trial's beginning
    train: (images, ids, first, count, inputs_L, state_L)   end_epoch: (inputs_L, state_L)
    evaluate: (test_labels, images, ids, count, inputs_L, state_L)   end_evaluation: as end_epoch
    They are those of `chunks` and consume the state that they are given.
    """

    NAMES = "start", "train", "end_epoch", "evaluate", "end_evaluation"

    def __init__(self, spec: step.Spec, layout: Layout, size: int, one_input: train.Inputs):
        self._one_input = one_input
        self._one_state = jax.eval_shape(functools.partial(chunks.begin, spec), one_input)
        super().__init__(spec, layout, self._one_state)
        batch = spec.fields["batch_size"]
        self._images = jax.ShapeDtypeStruct((size, batch, *spec.image_shape), np.uint8)
        self._ids = jax.ShapeDtypeStruct((size, batch), np.int32)

    @functools.cached_property
    def start(self) -> Any:
        spec = self._spec

        def start(inputs: train.Inputs, fresh: jax.Array, state: chunks.StreamState) -> Any:
            return jax.lax.cond(fresh, lambda: chunks.begin(spec, inputs), lambda: state)

        return self.compiled(start, [], self._one_input, np.bool_(), self._one_state)

    @functools.cached_property
    def train(self) -> Any:
        number = np.int32()
        return self._reporting(chunks.train_chunk, self._images, self._ids, number, number)

    @functools.cached_property
    def end_epoch(self) -> Any:
        return self._reporting(chunks.end_epoch)

    @functools.cached_property
    def evaluate(self) -> Any:
        labels = jax.ShapeDtypeStruct((self._spec.num_test,), np.int32)
        shared = labels, self._images, self._ids, np.int32()
        return self._reporting(chunks.evaluate_chunk, *shared)

    @functools.cached_property
    def end_evaluation(self) -> Any:
        return self._reporting(chunks.end_evaluation)

    @property
    def memory_bytes(self) -> int:
        """What one device needs to train, with the chunks and the networks that wait there."""
        ahead = loader.AHEAD * self._images.size
        return memory.program_bytes(self.train) + ahead + self.waiting_bytes

    def _reporting(self, fn: Callable[..., chunks.StreamState], *shared: Any) -> Any:
        def call(*args: Any) -> Any:
            state = fn(self._spec, *args)
            return state, Report(state.trial.status, state.partial.due)

        return self.compiled(call, [*shared], self._one_input, self._one_state)


class Position(NamedTuple):
    """Where a wave stands: `step` batches into the training or the evaluation of an epoch.

    epoch: from 0   split: "train" or "test"
    """

    epoch: int = 0
    split: str = "train"
    step: int = 0


class StreamRun(LaneRun):
    """One group on its way through the lanes: `begin`, then `step` while `busy`; then `close`."""

    programs: StreamPrograms
    _dataset: StreamedDataset

    def __init__(
        self,
        group: Group,
        dataset: StreamedDataset,
        settings: dict[str, Any],
        on_finished: Callable[[Finished], None],
        choices: Choices = BY_RULE,
        on_failed: OnFailed | None = None,
    ):
        super().__init__(group, dataset, settings, on_finished, choices, on_failed)
        batch_bytes = self.spec.fields["batch_size"] * int(np.prod(self.spec.image_shape))
        fitting = min(_CHUNK_BYTES // batch_bytes, self.spec.steps_per_epoch, _MAX_STEPS)
        self._size = settings["engine.steps_per_dispatch"] or max(fitting, 1)
        self._threads = settings["loader.threads"] or available_cores()
        self._at = Position()
        self._ahead: Any = None  # The chunks of the present split, from the present step on.
        self._before: Report | None = None

    @property
    def one_state(self) -> chunks.StreamState:
        """Shapes and dtypes of one trial's state."""
        return jax.eval_shape(functools.partial(chunks.begin, self.spec), self._one_input)

    def begin(
        self,
        waiting: Iterable[Trial],
        restored: tuple[chunks.StreamState, dict[str, Any]] | None = None,
    ) -> None:
        """Compiles the programs and fills the lanes.

        Args:
          waiting: the trials to run, in order.
          restored: a checkpoint; of its trials, those in `waiting` go on where they stood, as far
            as there are lanes for them.
        """
        self.waiting = list(waiting)
        self.compile()
        self._test_labels = jax.device_put(self._dataset.test_labels, self.programs.shared)
        state_L = self._empty_lanes()
        if restored:
            saved, meta = restored
            self._take_up(state_L, saved, meta["lanes"], saved.trial.epoch)
            self._at = Position(**meta["position"])
            if self._at.split == "train" and self.busy:
                self._count_epochs()
        self._state = self.programs.put(state_L)
        self._inputs = self.programs.put(self._inputs_L)
        self._attend(Report(state_L.trial.status, state_L.partial.due))

    def step(self) -> None:
        """Trains, or evaluates, all lanes on the next chunk of images; attends to what is done."""
        if self._ahead is None:
            self._open()
        first = self._at.step
        count = np.int32(min(self._size, self._steps - first))
        images, ids = next(self._ahead)
        if self._at.split == "train":
            args = (images, ids, np.int32(first), count)
            self._state, report = self.programs.train(*args, self._inputs, self._state)
        else:
            args = (self._test_labels, images, ids, count)
            self._state, report = self.programs.evaluate(*args, self._inputs, self._state)
        # One dispatch ahead of the device and no further: each holds on to its images.
        self._before, previous = report, self._before
        jax.block_until_ready(previous)
        self._at = self._at._replace(step=first + int(count))
        if self._at.split == "train":
            self._count_epochs()
        if self._at.step == self._steps:
            self._end_pass()

    def checkpoint(self) -> tuple[chunks.StreamState, dict[str, Any]]:
        """The state of all lanes, their trials and where they stand, for `GroupCheckpoint.save`."""
        return snapshot(self._state), {
            "lanes": self._lane_ids(),
            "layout": self.chosen.describe(),
            "position": self._at._asdict(),
        }

    def close(self) -> None:
        """Ends the threads that read ahead."""
        if self._ahead is not None:
            self._ahead.close()
        self._ahead = None

    # --- inside -----------------------------------------------------------------------------------

    def _make_programs(self, layout: Layout) -> StreamPrograms:
        return StreamPrograms(self.spec, layout, self._size, self._one_input)

    def _open(self) -> None:
        """Begins to read the present pass, from the present step on."""
        if self._at.split == "train":
            order_SxB = chunks.train_order(self.spec, self._at.epoch)
        else:
            order_SxB = chunks.evaluation_order(self.spec)
        self._steps = len(order_SxB)
        self._ahead = loader.chunks(
            self._dataset, self._at.split, order_SxB[self._at.step :], self._size,
            self._threads, self.programs.shared,
        )  # fmt: skip

    def _count_epochs(self) -> None:
        done = self._at.epoch + self._at.step / self.spec.steps_per_epoch
        self.epochs_of |= {t: done for t in self.lanes if t is not None}

    def _end_pass(self) -> None:
        """Closes a pass over a split, and begins what comes next."""
        self.close()
        trained = self._at.split == "train"
        end = self.programs.end_epoch if trained else self.programs.end_evaluation
        self._state, report = end(self._inputs, self._state)
        report = jax.device_get(report)
        if trained and report.due.any():
            self._at = Position(self._at.epoch, "test")
        else:
            self._at = Position(self._at.epoch + 1)
            self._attend(report)

    def _attend(self, report: Report) -> None:
        """Hands over the trials that are done; with none left, begins the next wave."""
        for lane, trial in enumerate(self.lanes):
            if trial is None or report.due[lane] or report.status[lane] == train.RUNNING:
                continue
            self._finish(lane, self.programs.lane(self._state, lane).trial)
        if not self.busy and self.waiting:
            self._next_wave()

    def _next_wave(self) -> None:
        self._at = Position()
        fresh_L = np.zeros(self.layout.lanes, np.bool_)
        while (lane := self._free_lane()) is not None and self._fill(lane):
            fresh_L[lane] = True
        self._inputs = self.programs.put(self._inputs_L)
        self._state = self.programs.start(self._inputs, self.programs.put(fresh_L), self._state)
