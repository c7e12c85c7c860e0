"""Runs the groups of a sweep one after another, and writes what they finish."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import jax
import numpy as np

from rethink_jax import claims, memory, records, train, tuning
from rethink_jax.checkpoint import GroupCheckpoint, latest, save_network
from rethink_jax.choices import BY_RULE, Choices
from rethink_jax.claims import Claim
from rethink_jax.cli import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK
from rethink_jax.history import Run
from rethink_jax.lane_run import Finished, LaneRun, OnFailed
from rethink_jax.progress import Progress, Snapshot
from rethink_jax.result import result_of
from rethink_jax.schema import UserError, first_line
from rethink_jax.slices import Slice
from rethink_jax.step import Spec
from rethink_jax.trials import Group, Trial

_TABLE_SECONDS = 5.0  # Between refreshes of trials.csv.


class Plan(Protocol):
    """What there is to run: a `sweep.Sweep`.

    trials: all that are to be run   part: the slice that they are
    size_of: how many trials all slices of a group have together
    group_run: (group, on_finished, on_failed, lanes, choices) -> its run
    """

    settings: dict[str, Any]
    trials: list[Trial]
    part: Slice

    def size_of(self, group: Group) -> int: ...

    def planned_rows(self) -> list[dict[str, Any]]: ...

    def group_run(
        self,
        group: Group,
        on_finished: Any,
        on_failed: OnFailed | None = None,
        lanes: int = 0,
        choices: Choices = BY_RULE,
    ) -> Any: ...


class _Regularly:
    """Something written every so many seconds, and never begun before the last one is done."""

    def __init__(self, seconds: float):
        self._seconds, self._begun = seconds, time.monotonic()
        self._write: Future[None] | None = None

    @property
    def due(self) -> bool:
        written = self._write is None or self._write.done()
        return written and time.monotonic() - self._begun > self._seconds

    def begun(self, write: Future[None]) -> None:
        self._write, self._begun = write, time.monotonic()

    def wait(self) -> None:
        """Until nothing is being written, whether that goes well or not."""
        futures.wait([self._write] if self._write else [])


class _WriteFailed(OSError):
    """What is finished cannot be written: no fault of the trials."""


class Runner:
    """Runs the groups of one sweep one after another, and writes what they finish."""

    def __init__(
        self,
        sweep: Plan,
        workdir: records.Workdir,
        outcomes: records.Outcomes,
        progress: Progress,
        signals: list[int],
        own_run: Run,
        claim: Claim,
    ):
        self._sweep, self._workdir, self._outcomes = sweep, workdir, outcomes
        self._finished = outcomes.finished
        self._progress, self._signals, self._run, self._claim = progress, signals, own_run, claim
        self._layouts = own_run.facts.setdefault("groups", {})
        self._own = {t.trial_id for t in sweep.trials}
        self._writes: list[Future[None]] = []
        self._steps = 0
        # By this command, beside what the workdir is known to have; and why, as far as it was said.
        self._failed: set[str] = set()
        self._reasons: set[str] = set()
        self._view = records.TableView(workdir, sweep.planned_rows(), outcomes)
        self._table = _Regularly(_TABLE_SECONDS)
        claim.report(done=self.done, total=len(sweep.trials))

    @property
    def done(self) -> int:
        """Trials of the sweep that are finished."""
        return sum(t.trial_id in self._finished for t in self._sweep.trials)

    @property
    def _stopped(self) -> bool:
        return bool(self._signals) or self._claim.lost

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """While open, all that is written is written by a thread of its own, in order."""
        with ThreadPoolExecutor(1, "writer") as self._writer:
            self._view.write()
            yield
            self._await_writes(0)
            self._view.write()

    def run_group(self, group: Group) -> None:
        """Runs a group to its end or to a signal; out of memory, again with fewer lanes.

        What cannot be run is recorded as failed, and no reason to stop.

        Raises:
          UserError: the user's data are damaged: not for lack of memory.
        """
        lanes = 0  # As the settings say.
        while lanes is not None and not self._stopped:
            try:
                return self._attempt(group, lanes)
            except memory.OutOfMemory as error:
                return self._fail_group(group, error)
            except (OSError, UserError):
                raise
            # The network, a corruption and much else can be the user's own code.
            except Exception as error:
                if not memory.is_out_of_memory(error) or group.group_id not in self._layouts:
                    return self._fail_group(group, error)
                said = first_line(error)
            # With the error its frames are gone, and with these the arrays of what has failed.
            self._drop_writes()
            failed = self._layouts[group.group_id]
            lanes = memory.fewer_lanes(failed["lanes"], failed["devices"])
            self._progress.say(
                f"out of memory with {failed['lanes']} lanes ({said}); group {group.group_id} "
                + (f"goes on with {lanes}" if lanes else "is left")
            )
        if lanes is None:
            lack = f"out of memory with one lane on each of {failed['devices']} device(s)"
            self._fail_group(group, memory.OutOfMemory(f"{lack}. {memory.ADVICE}"))

    def _fail_group(self, group: Group, error: Exception) -> None:
        """Records that what is left of a group cannot be run."""
        self._drop_writes()
        left = self._todo(group)
        reason = self._record_failed(left, group, error)
        self._progress.say(f"{len(left)} trials of group {group.group_id} failed: {reason}")

    def _fail_trial(self, trial: Trial, group: Group, error: Exception) -> None:
        """Records that a trial cannot be run, and says it of the first one with this reason."""
        reason = self._record_failed([trial], group, error)
        if reason not in self._reasons:
            self._reasons.add(reason)
            self._progress.say(f"trial {trial.trial_id} failed: {reason}")

    def _record_failed(self, trials: list[Trial], group: Group, error: Exception) -> str:
        """Writes it into the trials' folders; returns the reason in one line."""
        name = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        reason = name + first_line(error)
        for trial in trials:
            self._workdir.write_failed(trial, group.group_id, reason, error)
            self._failed.add(trial.trial_id)
        return reason

    def _todo(self, group: Group) -> list[Trial]:
        ended = self._finished.keys() | self._outcomes.failed.keys() | self._failed
        return [t for t in group.trials if t.trial_id not in ended]

    def _attempt(self, group: Group, lanes: int) -> None:
        """Runs a group to its end or to a signal, from its checkpoint if there is one."""
        todo = self._todo(group)
        if not todo:
            return
        choices = self._choices(group)
        on_finished = lambda f: self._submit(self._write, spec, group, f)  # noqa: E731
        # Not `run` itself, which would refer to itself: its arrays are to go when it goes.
        on_failed = lambda t, error: self._fail_trial(t, group, error)  # noqa: E731
        run = self._sweep.group_run(group, on_finished, on_failed, lanes, choices)
        spec = run.spec
        folder = self._workdir.group_dir(group.group_id, self._sweep.part)
        checkpoint, done = GroupCheckpoint(folder), False
        with contextlib.closing(run), contextlib.ExitStack() as stack:
            saving = _Regularly(self._sweep.settings["checkpoint.every_seconds"])
            stack.callback(lambda: checkpoint.close(delete=done))
            stack.callback(saving.wait)
            self._begin(run, group, todo, checkpoint, fit=not lanes)
            epochs_before = sum(run.epochs_of.values())
            steps_before = self._steps
            while run.busy and not self._stopped:
                run.step()
                # Networks under way hold memory of the devices; the two others are a checkpoint and
                # trials.csv, for which no dispatch is to wait.
                self._await_writes(run.chosen.lanes + 2)
                epochs = sum(run.epochs_of.values()) - epochs_before
                self._steps = steps_before + round(spec.steps_per_epoch * epochs)
                self._show(run)
                if self._table.due:
                    self._table.begun(self._submit(self._view.write))
                if saving.due:
                    saving.begun(self._submit(checkpoint.save, *run.checkpoint()))
            if run.busy and not self._claim.lost:
                saving.begun(self._submit(checkpoint.save, *run.checkpoint()))
            self._await_writes(0)
            done = not run.busy

    def _choices(self, group: Group) -> Choices:
        """What the group runs with: as it began in this workdir, or as is measured now."""
        device, history = jax.local_devices()[0].device_kind, self._workdir.history
        if (stored := history.choices(group.group_id, device)) is not None:
            return Choices.from_json(stored)
        # By rule, to see how much there is to do.
        run = self._sweep.group_run(group, lambda _: None)
        mode = self._sweep.settings["engine.tuning"]
        # Of all slices, which are to come to the same conclusion.
        trial_steps = (
            self._sweep.size_of(group)
            * run.spec.fields["stop.max_epochs"]
            * run.spec.steps_per_epoch
        )
        worth = mode == "on" or tuning.is_worth(run.spec, run.chosen, trial_steps)
        if mode == "off" or not worth:
            return BY_RULE
        self._preparing(f"measuring what is fastest for group {group.group_id}")
        settings = self._sweep.settings
        choices = tuning.choose(run.spec, group.trials, run.chosen, settings, tuning.Kept())
        held = history.settle_choices(group.group_id, device, choices.to_json())
        return Choices.from_json(held)

    def _begin(
        self, run: LaneRun, group: Group, todo: list[Trial], checkpoint: GroupCheckpoint, fit: bool
    ) -> None:
        """Fills the lanes, after taking fewer if that is asked for and there is no memory."""
        restored = self._restored(run, group, todo, checkpoint)
        self._preparing(f"compiling the program of group {group.group_id}")
        self._layouts[group.group_id] = run.chosen.describe()
        if fit and (note := run.fit()):
            self._progress.say(f"group {group.group_id}: {note}")
            self._layouts[group.group_id] = run.chosen.describe()
        self._run.write()
        run.begin(todo, restored)

    def _preparing(self, what: str) -> None:
        """Says what there is to wait for, here and to those who look from elsewhere."""
        self._progress.preparing(what)
        self._claim.report(done=self.done, total=len(self._sweep.trials), doing=what)

    def _restored(
        self, run: LaneRun, group: Group, todo: list[Trial], checkpoint: GroupCheckpoint
    ) -> tuple[Any, dict[str, Any]] | None:
        """The checkpoint to go on from, with trials that other slices than now had under way."""
        there = claims.at_work(self._workdir.path, self._claim.path) | {str(self._sweep.part)}
        ids, others = {t.trial_id for t in todo}, []
        for part, folder in self._workdir.group_dirs(group.group_id).items():
            if str(part) not in there:
                other = GroupCheckpoint(folder, read_only=True)
                with contextlib.closing(other):
                    others.append(other.restore(run.one_state, ids))
        return latest(checkpoint.restore(run.one_state), [o for o in others if o], ids)

    def close(self, seconds: float) -> int:
        """Says how it ended; returns the exit code.

        Raises:
          UserError: another process took over.
        """
        done, total = self.done, len(self._sweep.trials)
        failed = sum(t.trial_id in self._outcomes.failed for t in self._sweep.trials)
        if self._claim.lost:
            raise UserError(
                f"slice {self._sweep.part} of {self._workdir.path} is not this process's any more: "
                "another one took over, which saw no sign of life of it, or its file in claims/ "
                "was removed; what was finished before is stored"
            )
        self._claim.report(done=done, total=total)
        if self._signals and done + failed < total:
            self._claim.state = "interrupted"
            self._progress.say(
                f"interrupted with {done} of {total} trials done; everything is "
                "saved, the same command goes on from here"
            )
            return EXIT_INTERRUPTED
        counts = {}
        for t in self._sweep.trials:
            if result := self._finished.get(t.trial_id):
                counts[result["status"]] = counts.get(result["status"], 0) + 1
        what = ", ".join(f"{n} {status}" for status, n in sorted(counts.items())) or "none"
        rate = self._steps / seconds
        self._progress.say(
            f"{done} trials done ({what}) in {seconds:.1f} s, {rate:,.0f} trial-steps/s with "
            f"everything; results in {self._workdir.path}"
        )
        self._claim.state = "failed" if failed else "finished"
        if failed:
            self._progress.say(
                f"{failed} of {total} trials failed; {self._workdir.path}/trials.csv has the "
                "reasons, --retry_failed runs them again"
            )
        return EXIT_FAILED if failed else EXIT_OK

    def _show(self, run: LaneRun) -> None:
        done = [r for i, r in list(self._finished.items()) if i in self._own]
        epochs = [r["epochs"] for r in done]
        expected = np.mean(epochs) if epochs else run.spec.fields["stop.max_epochs"]
        failed = len(self._own & (set(self._outcomes.failed) | self._failed))
        left = len(self._sweep.trials) - len(done) - failed
        running = {t: run.epochs_of[t] for t in run.lanes if t is not None}
        now = Snapshot(
            lanes_busy=run.busy,
            lanes=run.layout.lanes,
            done=len(done),
            total=len(self._sweep.trials),
            diverged=sum(r["status"] == "diverged" for r in done),
            steps=self._steps,
            steps_left=max(left * expected - sum(running.values()), 0) * run.spec.steps_per_epoch,
        )
        self._progress.update(now)
        epochs_each = run.spec.fields["stop.max_epochs"]
        self._claim.report(
            done=now.done, total=now.total, steps_per_second=round(self._progress.rate, 3),
            steps_left=round(now.steps_left),
            running=[[t.trial_id, round(epochs, 2), epochs_each] for t, epochs in running.items()],
        )  # fmt: skip

    # --- what the writer does ---------------------------------------------------------------------

    def _submit(self, write: Callable[..., None], *args: Any) -> Future[None]:
        self._writes.append(self._writer.submit(write, *args))
        return self._writes[-1]

    def _await_writes(self, most: int) -> None:
        """Waits until at most so many writes are under way; raises what a write raised."""
        while self._writes and (len(self._writes) > most or self._writes[0].done()):
            try:
                self._writes.pop(0).result()
            except Exception as error:
                if isinstance(error, OSError) or memory.is_out_of_memory(error):
                    raise
                raise _WriteFailed(first_line(error)) from error

    def _drop_writes(self) -> None:
        """Waits for what is being written; trials whose write runs out of memory are not done."""
        while self._writes:
            try:
                self._await_writes(0)
            except Exception as error:
                if not memory.is_out_of_memory(error):
                    raise

    def _write(self, spec: Spec, group: Group, finished: Finished) -> None:
        trial, state = finished.trial, finished.fetch()
        self._workdir.clear_trial(trial.trial_id)
        epochs = int(state.epoch)
        curve = state.curve[:epochs]
        result = result_of(spec, group, finished, state)
        keep = self._sweep.settings["checkpoint.keep"] == "final"
        if keep and result["status"] != "diverged":
            variables = {"params": state.params, **state.model_state}
            save_network(self._workdir.trial_dir(trial.trial_id) / "network", variables)
        self._workdir.write_curve(trial.trial_id, train.CURVE, curve)
        if finished.measured:
            self._workdir.write_measures(trial.trial_id, jax.device_get(finished.measured))
        self._workdir.write_result(trial.trial_id, result)
        self._finished[trial.trial_id] = result
