"""From a config to a full workdir: expands, plans, runs group by group, resumes."""

from __future__ import annotations

import contextlib
import shutil
import signal
import time
<<<<<<< HEAD
from collections.abc import Iterator
=======
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
>>>>>>> a8048582bedce15c0d1ade2a600bd659e69edda9
from pathlib import Path
from typing import Any

import numpy as np

from rethink_jax import config as config_lib
from rethink_jax import header, records, trials
from rethink_jax import inputs as trial_inputs
from rethink_jax.choices import BY_RULE, Choices
from rethink_jax.cli import EXIT_OK
from rethink_jax.data import sources
from rethink_jax.data.corruption import corrupt_pixels, pixel_stats
from rethink_jax.data.streamed import StreamedDataset
from rethink_jax.engine import GroupRun
from rethink_jax.inputs import AnyDataset
from rethink_jax.lanes import choose_layout
from rethink_jax.progress import Progress
from rethink_jax.runner import Runner
from rethink_jax.schema import UserError, plain
from rethink_jax.streaming import StreamRun
from rethink_jax.trials import Group

<<<<<<< HEAD
=======
_TABLE_SECONDS = 5.0  # Between refreshes of trials.csv.
_MOST_WRITES = 64  # Waiting for the writer before the devices wait, too.

>>>>>>> a8048582bedce15c0d1ade2a600bd659e69edda9

class Sweep:
    """A config, resolved and checked: its trials, groups, data and settings.

    all_trials: of the whole config   trials: those that `config.only` selects, in groups

    Raises:
      UserError: anything wrong with the config or its data; nothing has been written by then.
    """

    def __init__(self, config: Any):
        self.config = plain(config)
        if not isinstance(self.config.get("trial"), dict):
            raise UserError(
                "the config has no config.trial; start from rethink_jax.default_config()"
            )
        self.settings = config_lib.settings(self.config)
        self.all_trials = trials.expand(self.config)
        self.trials = trials.select(self.all_trials, self.settings["only"])
        self.groups = trials.group(self.trials)
        every = trials.group(self.all_trials)
        self._group_ids = {t.trial_id: g.group_id for g in every for t in g.trials}
        for group in self.groups:
            choose_layout(self.settings, len(group.trials))
        names = sorted({t["data.name"] for t in self.trials})
        folder, download = self.settings["data_files.dir"], self.settings["data_files.download"]
        self.datasets = {name: sources.load(name, folder, download) for name in names}
        # Made here for their checks; subsets of one data set are small beside it.
        self._of_group = {g.group_id: self._group_dataset(g) for g in self.groups}
        for group in self.groups:
            spec = trial_inputs.make_spec(group.trials, self.dataset_of(group), 1)
            trial_inputs.check_decay(group.trials, spec)

    def _group_dataset(self, group: Group) -> AnyDataset:
        return trial_inputs.trial_dataset(self.datasets[group.static["data.name"]], group.static)

    def dataset_of(self, group: Group) -> AnyDataset:
        """The images that a group's trials are trained on."""
        return self._of_group[group.group_id]

    def planned_rows(self) -> list[dict[str, Any]]:
        """A row for every trial, also those not selected, in order, as if none had been run."""
        return [records.planned_row(t, self._group_ids[t.trial_id]) for t in self.all_trials]

    def group_run(
        self, group: Group, on_finished: Any, lanes: int = 0, choices: Choices = BY_RULE
    ) -> GroupRun | StreamRun:
        """The group, ready to begin; with so many lanes, if not as the settings say."""
        dataset = self.dataset_of(group)
        settings = self.settings | ({"engine.lanes": lanes} if lanes else {})
        if isinstance(dataset, StreamedDataset):
            return StreamRun(group, dataset, settings, on_finished, choices=choices)
        return GroupRun(group, dataset, settings, on_finished, choices=choices)


def plan(sweep: Sweep, workdir: Path | None) -> str:
    """What a sweep would do: its groups with trials, lanes, parameters and memory, as text.

    Compiles two small programs per group, to know its memory, and runs none.
    """
    finished = records.Workdir(workdir).finished() if workdir else {}
    done = sum(t.trial_id in finished for t in sweep.trials)
    lines = [f"{_counted(sweep)}, {done} done, {len(sweep.trials) - done} to run"]
    differing = _differing_fields(sweep.groups)
    for group in sweep.groups:
        run = sweep.group_run(group, lambda _: None)
        needs = run.memory_plan()
        note = run.fit(needs)
        done = sum(t.trial_id in finished for t in group.trials)
        images = len({trial_inputs.pixel_spec(t) for t in group.trials})
        what = ", ".join(f"{k} {group.static[k]}" for k in differing if k in group.static)
        layout = run.layout
        lines.append(
            f"group {group.group_id}: {len(group.trials)} trials ({done} done), {run.num_params:,} "
            f"parameters each, {run.spec.steps_per_epoch} steps an epoch, {images} image versions; "
            f"{layout.lanes} lanes by {layout.batching} on {len(layout.devices)} "
            f"{layout.devices[0].platform} device(s), {needs.describe(layout.per_device)}"
            + "".join(f"; {text}" for text in (note, what) if text)
        )
    return "\n".join(lines)


def _counted(sweep: Sweep) -> str:
    groups = len(sweep.groups)
    return f"{len(sweep.trials)} trials in {groups} group{'s' if groups > 1 else ''}"


def _differing_fields(groups: list[Group]) -> list[str]:
    names = sorted({name for g in groups for name in g.static})
    return [n for n in names if len({repr(g.static.get(n)) for g in groups}) > 1]


def run(sweep: Sweep, workdir_path: Path, command: list[str]) -> int:
    """Runs what is not finished yet.

    Returns:
      the exit code: 0, or 75 if a signal interrupted it.

    Raises:
      UserError: the workdir cannot be written, or belongs to another experiment.
    """
    workdir = records.Workdir(workdir_path)
    workdir.create()
    try:
        return _run(sweep, workdir, command)
    except OSError as error:
        raise UserError(
            f"cannot write to the workdir {workdir.path}: {error.strerror or error}; what is "
            "finished is safe there, and the same command goes on once it can be written"
        ) from error


def _run(sweep: Sweep, workdir: records.Workdir, command: list[str]) -> int:
    head = header.opened(sweep.config, sweep.datasets, workdir)
    finished = workdir.finished()
    todo = [t for t in sweep.trials if t.trial_id not in finished]
    for group in sweep.groups:
        if all(t.trial_id in finished for t in group.trials):
            # A kill between the last result and the end leaves its checkpoint behind.
            shutil.rmtree(workdir.group_dir(group.group_id), ignore_errors=True)
    if not todo:
        workdir.write_table(sweep.planned_rows(), finished)
        print(f"all {len(sweep.trials)} trials of {workdir.path} are done; nothing to run")
        return EXIT_OK
    facts = header.run_facts(command)
    head["runs"].append(facts)
    workdir.write_header(head)
    begun = time.monotonic()
    with Progress() as progress, _signals() as signals:
        progress.say(f"{_counted(sweep)}, {len(sweep.trials) - len(todo)} done, {len(todo)} to run")
        for name, dataset in sweep.datasets.items():
            if sources.differs_from_published(dataset):
                progress.say(f"note: {dataset.origin} does not hold the published {name} images")
        if not records.load_examples(workdir.path):
            workdir.write_examples(_examples(sweep))
        runner = Runner(sweep, workdir, finished, progress, signals, head)
        with runner.writing():
            for group in sweep.groups:
                if not signals:
                    runner.run_group(group)
        seconds = time.monotonic() - begun
        facts |= {"ended": header.now(), "seconds": round(seconds, 3), "interrupted": bool(signals)}
        facts["trials_finished"] = len(finished) - (len(sweep.trials) - len(todo))
        workdir.write_header(head)
        return runner.close(seconds)


_EXAMPLES = 8


def _examples(sweep: Sweep) -> dict[str, np.ndarray]:
    """A few training images of the first group's data, as they are and under each corruption."""
    dataset = sweep.dataset_of(sweep.groups[0])
    clean = dataset.examples(_EXAMPLES)
    found = {f"{dataset.name} as it is": clean}
    for trial in sweep.groups[0].trials:
        spec = trial_inputs.pixel_spec(trial)
        part = f" {spec.fraction:g}" if spec.fraction < 1 else ""
        name = f"{spec.kind}{part}" + (f", strength {spec.strength:g}" if spec.strength < 1 else "")
        if not spec.is_identity and name not in found and len(found) < _EXAMPLES:
            made = corrupt_pixels(clean, spec, pixel_stats(dataset.train_images))
            found[name] = np.clip(np.round(made.pixels()), 0, 255).astype(np.uint8)
    return found


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying; a second one kills as usual."""
    received: list[int] = []
    old = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, _: Any) -> None:
        received.append(number)
        for s, handler in old.items():
            signal.signal(s, handler)

    for s in old:
        signal.signal(s, handle)
    try:
        yield received
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)
<<<<<<< HEAD
=======


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


class _Runner:
    """Runs the groups of one sweep one after another, and writes what they finish."""

    def __init__(
        self,
        sweep: Sweep,
        workdir: records.Workdir,
        finished: dict[str, dict[str, Any]],
        progress: Progress,
        signals: list[int],
    ):
        self._sweep, self._workdir, self._finished = sweep, workdir, finished
        self._progress, self._signals = progress, signals
        self._own = {t.trial_id for t in sweep.trials}
        self._writes: list[Future[None]] = []
        self._steps = 0
        self._planned = sweep.planned_rows()
        self._table = _Regularly(_TABLE_SECONDS)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """While open, all that is written is written by a thread of its own, in order."""
        with ThreadPoolExecutor(1, "writer") as self._writer:
            self._write_table()
            yield
            self._await_writes(0)
            self._write_table()

    def run_group(self, group: Group) -> None:
        """Runs a group to its end or to a signal, from its checkpoint if there is one."""
        todo = [t for t in group.trials if t.trial_id not in self._finished]
        if not todo:
            return
        run = self._sweep.group_run(group, lambda f: self._submit(self._write, run, group, f))
        checkpoint = GroupCheckpoint(self._workdir.group_dir(group.group_id))
        restored = checkpoint.restore(run.one_state)
        self._progress.preparing(f"compiling the program of group {group.group_id}")
        with contextlib.closing(run):
            run.begin(todo, restored)
            epochs_before = sum(run.epochs_of.values())
            steps_before = self._steps
            saving = _Regularly(self._sweep.settings["checkpoint.every_seconds"])
            while run.busy and not self._signals:
                run.step()
                self._await_writes(_MOST_WRITES)
                epochs = sum(run.epochs_of.values()) - epochs_before
                self._steps = steps_before + round(run.spec.steps_per_epoch * epochs)
                self._show(run)
                if self._table.due:
                    self._table.begun(self._submit(self._write_table))
                if saving.due:
                    saving.begun(self._submit(checkpoint.save, *run.checkpoint()))
            if run.busy:
                self._submit(checkpoint.save, *run.checkpoint())
        self._await_writes(0)
        checkpoint.close(delete=not run.busy)

    def close(self, seconds: float) -> int:
        """Says how it ended; returns the exit code."""
        done = sum(t.trial_id in self._finished for t in self._sweep.trials)
        if self._signals and done < len(self._sweep.trials):
            self._progress.say(
                f"interrupted with {done} of {len(self._sweep.trials)} trials done; everything is "
                "saved, the same command goes on from here"
            )
            return EXIT_INTERRUPTED
        counts = {}
        for t in self._sweep.trials:
            status = self._finished[t.trial_id]["status"]
            counts[status] = counts.get(status, 0) + 1
        what = ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))
        rate = self._steps / seconds
        self._progress.say(
            f"{done} trials done ({what}) in {seconds:.1f} s, {rate:,.0f} trial-steps/s with "
            f"everything; results in {self._workdir.path}"
        )
        return EXIT_OK

    def _show(self, run: LaneRun) -> None:
        done = [r for i, r in list(self._finished.items()) if i in self._own]
        epochs = [r["epochs"] for r in done]
        expected = np.mean(epochs) if epochs else run.spec.fields["stop.max_epochs"]
        left = len(self._sweep.trials) - len(done)
        begun = sum(run.epochs_of[t] for t in run.lanes if t is not None)
        self._progress.update(
            Snapshot(
                lanes_busy=run.busy,
                lanes=run.layout.lanes,
                done=len(done),
                total=len(self._sweep.trials),
                diverged=sum(r["status"] == "diverged" for r in done),
                steps=self._steps,
                steps_left=max(left * expected - begun, 0) * run.spec.steps_per_epoch,
            )
        )

    def _write_table(self) -> None:
        self._workdir.write_table(self._planned, dict(self._finished))

    # --- what the writer does ---------------------------------------------------------------------

    def _submit(self, write: Callable[..., None], *args: Any) -> Future[None]:
        self._writes.append(self._writer.submit(write, *args))
        return self._writes[-1]

    def _await_writes(self, most: int) -> None:
        """Waits until at most so many writes are under way; raises what a write raised."""
        while self._writes and (len(self._writes) > most or self._writes[0].done()):
            self._writes.pop(0).result()

    def _write(self, run: LaneRun, group: Group, finished: Finished) -> None:
        trial, state = finished.trial, jax.device_get(finished.state)
        self._workdir.trial_dir(trial.trial_id).mkdir(exist_ok=True)
        epochs = int(state.epoch)
        curve = state.curve[:epochs]
        result = result_of(run.spec, group, finished, state)
        keep = self._sweep.settings["checkpoint.keep"] == "final"
        if keep and result["status"] != "diverged":
            variables = {"params": state.params, **state.model_state}
            save_network(self._workdir.trial_dir(trial.trial_id) / "network", variables)
        self._workdir.write_curve(trial.trial_id, train.CURVE, curve)
        self._workdir.write_result(trial.trial_id, result)
        self._finished[trial.trial_id] = result
>>>>>>> a8048582bedce15c0d1ade2a600bd659e69edda9
