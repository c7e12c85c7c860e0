"""From a config to a full workdir: expands, plans, runs group by group or a slice, resumes."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rethink_jax import (
    claims,
    header,
    measuring_along,
    models,
    own_code,
    records,
    reuse,
    shown,
    signals,
    slices,
    trials,
    widths,
)
from rethink_jax import config as config_lib
from rethink_jax import inputs as trial_inputs
from rethink_jax.choices import BY_RULE, Choices
from rethink_jax.cli import EXIT_FAILED, EXIT_OK
from rethink_jax.data import sources
from rethink_jax.data.corruption import corrupt_pixels, pixel_stats
from rethink_jax.data.streamed import StreamedDataset
from rethink_jax.engine import GroupRun
from rethink_jax.inputs import AnyDataset
from rethink_jax.lane_run import OnFailed
from rethink_jax.lanes import choose_layout
from rethink_jax.progress import Progress
from rethink_jax.runner import Runner
from rethink_jax.schema import UserError, plain
from rethink_jax.slices import WHOLE, Slice
from rethink_jax.streaming import StreamRun
from rethink_jax.trials import Group, Trial


class Sweep:
    """A config, resolved and checked: its trials, groups, data and settings.

    all_trials: of the whole config   selected: those that `config.only` selects
    part: the slice that this process is to run   trials: what it has of them, in `groups`, which
      are parts of `whole_groups`
    along: what is measured along training, {static fields of a trial: plan}
    widths: which networks are padded to which (see `widths`); before `pad` none are, and `trials`
      are not sliced yet

    Raises:
      UserError: anything wrong with the config or its data; nothing has been written by then.
    """

    def __init__(self, config: Any, part: Slice = WHOLE):
        self.config = plain(config)
        self.settings = config_lib.settings(self.config)
        self.all_trials = trials.expand(self.config)
        self.selected = self.trials = trials.select(self.all_trials, self.settings["only"])
        self.part = part
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
            name = spec.fields["model.name"]
            models.check_output(name, spec.model, spec.input_shape, spec.num_classes)
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
        self.whole_groups = trials.group(self.selected, lambda t: widths.padded_to(t, chosen))
        self.groups = slices.own(self.whole_groups, self.part)
        own = {t.trial_id for group in self.groups for t in group.trials}
        self.trials = [t for t in self.selected if t.trial_id in own]

    def size_of(self, group: Group) -> int:
        """How many trials all slices of a group have together."""
        return next(len(g.trials) for g in self.whole_groups if g.group_id == group.group_id)

    def dataset_of(self, group: Group) -> AnyDataset:
        """The images that a group's trials are trained on."""
        return self._datasets[_beside_model(group.trials[0])]

    def planned_rows(self) -> list[dict[str, Any]]:
        """A row for every trial, also those not selected, in order, as if none had been run."""
        every = trials.group(self.all_trials, lambda t: widths.padded_to(t, self.widths))
        group_ids = {t.trial_id: g.group_id for g in every for t in g.trials}
        return [records.planned_row(t, group_ids[t.trial_id]) for t in self.all_trials]

    def group_run(
        self,
        group: Group,
        on_finished: Any,
        on_failed: OnFailed | None = None,
        lanes: int = 0,
        choices: Choices = BY_RULE,
    ) -> GroupRun | StreamRun:
        """The group, ready to begin; with so many lanes, if not as the settings say.

        Args:
          on_finished, on_failed: as of `LaneRun`.
        """
        dataset = self.dataset_of(group)
        settings = self.settings | ({"engine.lanes": lanes} if lanes else {})
        own = {t.static for t in group.trials}
        settings["measure.names"] = {static: self.along[static].names for static in own}
        told = {"on_finished": on_finished, "on_failed": on_failed}
        if isinstance(dataset, StreamedDataset):
            return StreamRun(group, dataset, settings, choices=choices, **told)
        return GroupRun(group, dataset, settings, choices=choices, **told)


def _beside_model(trial: Trial) -> tuple[tuple[str, Any], ...]:
    """The static fields of a trial beside its network: what decides its images."""
    return tuple((name, value) for name, value in trial.static if not name.startswith("model."))


def plan(sweep: Sweep, workdir: Path | None) -> Iterator[str]:
    """What a sweep would do: lines with its groups, their trials, lanes, parameters and memory.

    Compiles two small programs per group, to know its memory, and runs none.
    """
    finished = records.Workdir(workdir).finished() if workdir else {}
    head = (records.Workdir(workdir).header() if workdir else None) or {}
    sweep.pad(head.get("widths", {}))
    done = sum(t.trial_id in finished for t in sweep.trials)
    yield f"{_counted(sweep)}, {done} done, {len(sweep.trials) - done} to run"
    differing = _differing_fields(sweep.groups)
    for group in sweep.groups:
        run = sweep.group_run(group, lambda _: None)
        needs = run.memory_plan()
        note = run.fit(needs)
        done = sum(t.trial_id in finished for t in group.trials)
        images = len({trial_inputs.image_version(t) for t in group.trials})
        what = ", ".join(f"{k} {group.static[k]}" for k in differing if k in group.static)
        layout = run.layout
        yield (
            f"group {group.group_id}: {len(group.trials)} trials ({done} done), {run.num_params:,} "
            f"parameters each{_padding(group)}, {run.spec.steps_per_epoch} steps an epoch, "
            f"{images} image versions; "
            f"{layout.lanes} lanes by {layout.batching} on {len(layout.devices)} "
            f"{layout.devices[0].platform} device(s), {needs.describe(layout.per_device)}"
            + "".join(f"; {text}" for text in (note, what) if text)
        )


def _padding(group: Group) -> str:
    """Which networks a group pads to which, in words."""
    parts = [
        f"{name} {', '.join(map(str, sorted({t[name] for t in group.trials})))} padded to {to}"
        for name, to in group.padded_to
    ]
    return f" ({'; '.join(parts)})" if parts else ""


def _counted(sweep: Sweep) -> str:
    groups = len(sweep.groups)
    counted = f"{len(sweep.trials)} trials in {groups} group{'s' if groups > 1 else ''}"
    if sweep.part == WHOLE:
        return counted
    return f"slice {sweep.part} of {len(sweep.selected)} trials: {counted}"


def _differing_fields(groups: list[Group]) -> list[str]:
    names = sorted({name for g in groups for name in g.static})
    return [n for n in names if len({repr(g.static.get(n)) for g in groups}) > 1]


@dataclasses.dataclass(frozen=True)
class Options:
    """What a command may be asked for beside the config.

    retry_failed: run again what could not be run before
    reuse: workdirs from which finished trials are taken over
    """

    retry_failed: bool = False
    reuse: Sequence[str | Path] = ()


def run(
    sweep: Sweep, workdir_path: Path, command: list[str], options: Options | None = None
) -> int:
    """Runs what is not finished yet.

    Returns:
      the exit code: 0; 3 if some trials failed; 75 if a signal interrupted it.

    Raises:
      UserError: the workdir cannot be written, or belongs to another experiment, or another process
        runs trials of this slice.
    """
    workdir, options = records.Workdir(workdir_path), options or Options()
    others = reuse.opened(options.reuse, workdir)
    workdir.create()
    try:
        adds = header.opened(sweep.config, sweep.datasets, workdir)
        outcomes = workdir.outcomes()  # What is damaged is said before anything is written.
        # The first process chooses for all; what is new to the workdir is chosen now.
        workdir.history.settle_widths(lambda kept: (sweep.pad(kept), sweep.widths)[1])
        with _claimed(sweep, workdir) as claim:
            _take_up(sweep, workdir, outcomes, options.retry_failed, others)
            facts = adds | header.run_facts(command) | {"own_code": own_code.keep(workdir.path)}
            if outcomes.finished:
                _say_changes([workdir, *others], facts["own_code"])
            code = _run(sweep, workdir, outcomes, facts, claim)
            _remove_checkpoints(sweep, workdir, outcomes, claim)
            return code
    except BrokenPipeError:  # Nobody reads what is printed any more.
        raise
    except OSError as error:
        raise UserError(
            f"cannot write to the workdir {workdir.path}: {error.strerror or error}; what is "
            "finished is safe there, and the same command goes on once it can be written"
        ) from error


def _say_changes(workdirs: Sequence[records.Workdir], now: dict[str, str]) -> None:
    """Says which of the user's own files have changed since trials were run with them."""
    for workdir in workdirs:
        runs = (workdir.header() or {}).get("runs", [])
        for line in own_code.changes(workdir.path, runs, now):
            print(line, flush=True)


def _claimed(sweep: Sweep, workdir: records.Workdir) -> claims.Claim:
    """The sweep's slice of the workdir, which no other process runs then."""
    ids = [t.trial_id for t in sweep.trials]
    groups = [g.group_id for g in sweep.groups]
    only = sweep.settings["only"]
    selection = trials.digest((("only", only),))[:6] if only else ""
    say = lambda line: print(shown.line(line), flush=True)  # noqa: E731
    return claims.take(workdir.path, sweep.part, ids, groups, say, selection)


def _take_up(
    sweep: Sweep,
    workdir: records.Workdir,
    outcomes: records.Outcomes,
    retry_failed: bool,
    others: Sequence[records.Workdir],
) -> None:
    """Does all that precedes a run; outcomes: of the workdir, kept up with that."""
    workdir.tidy()
    outcomes.refresh()
    for line in reuse.copy(sweep, workdir, outcomes, others):
        print(shown.line(line), flush=True)
    if retry_failed:
        for trial in sweep.trials:
            workdir.plan_again(trial.trial_id)
        outcomes.refresh()


def _remove_checkpoints(
    sweep: Sweep, workdir: records.Workdir, outcomes: records.Outcomes, claim: claims.Claim
) -> None:
    """Removes those of groups that are done, which a kill or other slices than now have left."""
    there = claims.at_work(workdir.path, claim.path)
    for group in sweep.whole_groups:
        if all(t.trial_id in outcomes.finished for t in group.trials):
            for part, folder in workdir.group_dirs(group.group_id).items():
                if str(part) not in there:
                    shutil.rmtree(folder, ignore_errors=True)


def _run(
    sweep: Sweep,
    workdir: records.Workdir,
    outcomes: records.Outcomes,
    facts: dict[str, Any],
    claim: claims.Claim,
) -> int:
    failed = sum(t.trial_id in outcomes.failed for t in sweep.trials)
    ended = outcomes.finished.keys() | outcomes.failed.keys()
    todo = [t for t in sweep.trials if t.trial_id not in ended]
    before = len(sweep.trials) - len(todo) - failed
    if not todo:
        records.TableView(workdir, sweep.planned_rows(), outcomes).write()
        print(shown.line(_nothing_to_run(sweep, workdir, failed)))
        claim.state = "failed" if failed else "finished"
        return EXIT_FAILED if failed else EXIT_OK
    begun = time.monotonic()
    with Progress() as progress, signals.collected() as received:
        left = f", {failed} failed before (--retry_failed runs them again)" if failed else ""
        progress.say(f"{_counted(sweep)}, {before} done{left}, {len(todo)} to run")
        for line in measuring_along.notes(sweep.groups, sweep.along):
            progress.say(line)
        for name, dataset in sweep.datasets.items():
            if sources.differs_from_published(dataset):
                progress.say(f"note: {dataset.origin} does not hold the published {name} images")
        if not records.load_examples(workdir.path):
            workdir.write_examples(_examples(sweep))
        own_run = workdir.history.begin_run(sweep.part.name, facts)
        runner = Runner(sweep, workdir, outcomes, progress, received, own_run, claim)
        with runner.writing():
            for group in sweep.groups:
                runner.run_group(group)
        seconds = time.monotonic() - begun
        facts |= {
            "ended": header.now(),
            "seconds": round(seconds, 3),
            "interrupted": bool(received),
        }
        facts["trials_finished"] = runner.done - before
        own_run.write()
        return runner.close(seconds)


def _nothing_to_run(sweep: Sweep, workdir: records.Workdir, failed: int) -> str:
    total = len(sweep.trials)
    which = workdir.path if sweep.part == WHOLE else f"slice {sweep.part} of {workdir.path}"
    if not failed:
        return f"all {total} trials of {which} are done; nothing to run"
    return (
        f"{total - failed} of {total} trials of {which} are done, {failed} failed before; "
        f"--retry_failed runs them again, {workdir.path}/trials.csv has the reasons"
    )


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
            with contextlib.suppress(Exception):  # Of the user's code: the trials will say it.
                made = corrupt_pixels(clean, spec, pixel_stats(dataset.train_images))
                found[name] = np.clip(np.round(made.pixels()), 0, 255).astype(np.uint8)
    return found
