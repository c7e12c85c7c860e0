"""From a config to a full workdir: expands, plans, runs group by group, resumes."""

from __future__ import annotations

import contextlib
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rethink_jax import config as config_lib
from rethink_jax import header, measuring_along, records, trials, widths
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
from rethink_jax.trials import Group, Trial


class Sweep:
    """A config, resolved and checked: its trials, groups, data and settings.

    all_trials: of the whole config   trials: those that `config.only` selects, in groups
    along: what is measured along training, {static fields of a trial: plan}
    widths: which networks are padded to which (see `widths`); none before `pad`

    Raises:
      UserError: anything wrong with the config or its data; nothing has been written by then.
    """

    def __init__(self, config: Any):
        self.config = plain(config)
        self.settings = config_lib.settings(self.config)
        self.all_trials = trials.expand(self.config)
        self.trials = trials.select(self.all_trials, self.settings["only"])
        self.widths: widths.Choice = {}
        self.groups = trials.group(self.trials)
        for group in self.groups:
            choose_layout(self.settings, len(group.trials))
        names = sorted({t["data.name"] for t in self.trials})
        folder, download = self.settings["data_files.dir"], self.settings["data_files.download"]
        self.datasets = {name: sources.load(name, folder, download) for name in names}
        # Made here for their checks; subsets of one data set are small beside it.
        self._datasets: dict[Any, AnyDataset] = {}
        for group in self.groups:
            full, fields = self.datasets[group.static["data.name"]], group.static
            self._datasets[_beside_model(group.trials[0])] = trial_inputs.trial_dataset(
                full, fields
            )
        self.along: dict[Any, measuring_along.Plan] = {}
        for group in self.groups:
            spec = trial_inputs.make_spec(group.trials, self.dataset_of(group), 1)
            trial_inputs.check_decay(group.trials, spec)
            trial_inputs.check_replaced(group.trials, self.dataset_of(group))
            own, dataset = group.trials[0].static, self.dataset_of(group)
            self.along[own] = measuring_along.plan(self.settings, spec, dataset)

    def pad(self, kept: widths.Choice) -> None:
        """Puts networks of several widths into one group, as was chosen in the workdir or is now.

        Args:
          kept: what was chosen in the workdir.
        """
        # Of all trials whose images are here, not only the selected ones: their choice is the same.
        some = [t for t in self.all_trials if _beside_model(t) in self._datasets]
        of_trial = lambda t: self._datasets[_beside_model(t)]  # noqa: E731
        self.widths = chosen = widths.choose(some, of_trial, self.settings, kept)
        self.groups = trials.group(self.trials, lambda t: widths.padded_to(t, chosen))

    def dataset_of(self, group: Group) -> AnyDataset:
        """The images that a group's trials are trained on."""
        return self._datasets[_beside_model(group.trials[0])]

    def planned_rows(self) -> list[dict[str, Any]]:
        """A row for every trial, also those not selected, in order, as if none had been run."""
        every = trials.group(self.all_trials, lambda t: widths.padded_to(t, self.widths))
        group_ids = {t.trial_id: g.group_id for g in every for t in g.trials}
        return [records.planned_row(t, group_ids[t.trial_id]) for t in self.all_trials]

    def group_run(
        self, group: Group, on_finished: Any, lanes: int = 0, choices: Choices = BY_RULE
    ) -> GroupRun | StreamRun:
        """The group, ready to begin; with so many lanes, if not as the settings say."""
        dataset = self.dataset_of(group)
        settings = self.settings | ({"engine.lanes": lanes} if lanes else {})
        own = {t.static for t in group.trials}
        settings["measure.names"] = {static: self.along[static].names for static in own}
        if isinstance(dataset, StreamedDataset):
            return StreamRun(group, dataset, settings, on_finished, choices=choices)
        return GroupRun(group, dataset, settings, on_finished, choices=choices)


def _beside_model(trial: Trial) -> tuple[tuple[str, Any], ...]:
    """The static fields of a trial beside its network: what decides its images."""
    return tuple((name, value) for name, value in trial.static if not name.startswith("model."))


def plan(sweep: Sweep, workdir: Path | None) -> str:
    """What a sweep would do: its groups with trials, lanes, parameters and memory, as text.

    Compiles two small programs per group, to know its memory, and runs none.
    """
    finished = records.Workdir(workdir).finished() if workdir else {}
    head = (records.Workdir(workdir).header() if workdir else None) or {}
    sweep.pad(head.get("widths", {}))
    done = sum(t.trial_id in finished for t in sweep.trials)
    lines = [f"{_counted(sweep)}, {done} done, {len(sweep.trials) - done} to run"]
    differing = _differing_fields(sweep.groups)
    for group in sweep.groups:
        run = sweep.group_run(group, lambda _: None)
        needs = run.memory_plan()
        note = run.fit(needs)
        done = sum(t.trial_id in finished for t in group.trials)
        images = len({trial_inputs.image_version(t) for t in group.trials})
        what = ", ".join(f"{k} {group.static[k]}" for k in differing if k in group.static)
        layout = run.layout
        lines.append(
            f"group {group.group_id}: {len(group.trials)} trials ({done} done), {run.num_params:,} "
            f"parameters each{_padding(group)}, {run.spec.steps_per_epoch} steps an epoch, "
            f"{images} image versions; "
            f"{layout.lanes} lanes by {layout.batching} on {len(layout.devices)} "
            f"{layout.devices[0].platform} device(s), {needs.describe(layout.per_device)}"
            + "".join(f"; {text}" for text in (note, what) if text)
        )
    return "\n".join(lines)


def _padding(group: Group) -> str:
    """Which networks a group pads to which, in words."""
    parts = [
        f"{name} {', '.join(map(str, sorted({t[name] for t in group.trials})))} padded to {to}"
        for name, to in group.padded_to
    ]
    return f" ({'; '.join(parts)})" if parts else ""


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
    sweep.pad(head["widths"])
    head["widths"] = sweep.widths
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
        for line in measuring_along.notes(sweep.groups, sweep.along):
            progress.say(line)
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
