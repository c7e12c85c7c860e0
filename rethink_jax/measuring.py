"""From a workdir to its measures.csv: every measure of every network that was kept."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rethink_jax import config as config_lib
from rethink_jax import inputs, lanes, measures, memory, records, streams, trials
from rethink_jax.checkpoint import load_trial
from rethink_jax.data import preprocess, sources
from rethink_jax.data.corruption import ImageSet, pixel_stats
from rethink_jax.data.dataset import Dataset
from rethink_jax.files import check_writable
from rethink_jax.measures.subject import Subject
from rethink_jax.progress import Counter
from rethink_jax.schema import UserError, first_line, suggest

COLUMNS = ("trial_id", "measure", "value", "status", "reason")
# Status of a row. The last two are of a trial as a whole: what is there is looked at each time.
OK, NOT_FINITE, REFUSED = "ok", "not_finite", "refused"
NO_NETWORK, NOT_FINISHED = "no_network", "not_finished"
ALL = "all"  # The measure of such a row.

# Images of several versions lie on the devices once for each network that is measured.
_MAX_IMAGE_BYTES = 2**31


class Work(NamedTuple):
    """Networks that are measured by one program.

    trials: {trial_id: trial}   one_version: all on the same images
    """

    trials: dict[str, trials.Trial]
    one_version: bool
    dataset: Dataset


class Measuring:
    """The measures of a workdir: those that it has, and those that are asked for.

    seconds: of families that share a program, {their names: (seconds, networks)}, with compiling

    Raises:
      UserError: not a workdir, no such measure or trial, or its data are not there any more.
    """

    def __init__(
        self,
        workdir: str | Path,
        names: Sequence[str] = (ALL,),
        trial_ids: Sequence[str] = (),
        counter: Counter | None = None,
    ):
        self._workdir, self._counter = records.Workdir(workdir), counter or Counter(quiet=True)
        head = self._workdir.header()
        if head is None:
            raise UserError(f"{workdir} is not a workdir: it has no run.json")
        if not any(names):
            raise UserError("--measures names no measure; for those of one pass: one_pass")
        self._head, self._settings = head, config_lib.settings(head["config"])
        self._families = _programs(measures.select(names))
        self._finished = self._workdir.finished()
        known = {t.trial_id: None for t in trials.expand(head["config"])} | self._finished
        for trial_id in trial_ids:
            if trial_id not in known:
                raise UserError(
                    f"{workdir} has no trial {trial_id!r}{suggest(trial_id, known)}; all trials "
                    f"and their status are in {self._workdir.path}/trials.csv"
                )
        self._asked = list(trial_ids or known)
        self._rows = _read(self.path)
        self._programs: dict[Any, Any] = {}
        self.seconds: dict[str, tuple[float, int]] = {}

    @property
    def path(self) -> Path:
        return self._workdir.path / "measures.csv"

    def run(self) -> None:
        """Computes what is missing; each batch of networks is on disk once it is done."""
        with self._writing():  # Before anything is computed that could not be kept.
            check_writable(self.path.parent)
        self._rows = {k: row for k, row in self._rows.items() if k[1] != ALL}
        kept = []
        for trial_id in self._asked:
            if trial_id not in self._finished:
                reason = "the trial is not finished; run the sweep to its end"
                self._note(trial_id, ALL, None, NOT_FINISHED, reason)
            elif not (self._workdir.trial_dir(trial_id) / "network").is_dir():
                status = self._finished[trial_id]["status"]
                self._note(trial_id, ALL, None, NO_NETWORK, f"no network was kept ({status})")
            else:
                kept.append(trial_id)
        works = list(self._works(kept))
        with self._counter as counter:
            counter.total = sum(
                len(self._missing(w, names)) for w in works for names in self._families.values()
            )
            for work in works:
                for family, names in self._families.items():
                    self._measure(work, family, names)
        self._write()

    def seconds_each(self) -> Iterator[tuple[str, float, float]]:
        """(measure, seconds to compile, seconds for one network) of each, computed on its own.

        Measures of a family share work, and together take less than the sum. Timed on one batch of
        networks of each kind; the first kind that has the measure counts. Nothing is written.
        """
        kept = [
            t for t in self._asked
            if t in self._finished and (self._workdir.trial_dir(t) / "network").is_dir()
        ]  # fmt: skip
        done = set()
        for work in self._works(kept):
            batch = _Batch(self._workdir.path, work, list(work.trials), self._settings)
            arguments = batch.arguments(batch.first_ids)
            for name in (name for names in self._families.values() for name in names):
                if name in done or measures.refusals(batch.example, (name,)):
                    continue
                done.add(name)
                program = self._program(batch, (name,))
                times = []
                for _ in range(2):
                    begun = time.perf_counter()
                    jax.block_until_ready(program(*arguments))
                    times.append(time.perf_counter() - begun)
                yield name, times[0] - times[1], times[1] / batch.layout.lanes

    # --- inside -----------------------------------------------------------------------------------

    def _works(self, trial_ids: Sequence[str]) -> Iterator[Work]:
        """The trials by group; those of images of their own apart from those of shared ones."""
        groups: dict[Any, dict[str, trials.Trial]] = {}
        for trial_id in trial_ids:
            trial = trials.resolve(self._finished[trial_id]["trial"])
            groups.setdefault(trial.static, {})[trial_id] = trial
        datasets: dict[str, Any] = {}
        for static, own in groups.items():
            fields = dict(static)
            name = fields["data.name"]
            if name not in datasets:
                datasets[name] = load_data(self._workdir.path, self._head, name)
            dataset = inputs.trial_dataset(datasets[name], fields)
            if not isinstance(dataset, Dataset):
                for trial_id in own:
                    self._note(trial_id, ALL, None, REFUSED, f"{name} is streamed from disk")
                continue
            versions: dict[Any, dict[str, trials.Trial]] = {}
            for trial_id, trial in own.items():
                versions.setdefault(inputs.image_version(trial), {})[trial_id] = trial
            lanes_of_all = lanes.choose_layout(self._settings, len(own)).lanes
            alone = [v for v in versions.values() if len(v) >= lanes_of_all or len(versions) == 1]
            yield from (Work(version, True, dataset) for version in alone)
            rest = {t: trial for v in versions.values() if v not in alone for t, trial in v.items()}
            if rest:
                yield Work(rest, False, dataset)

    def _missing(self, work: Work, names: Sequence[str]) -> list[str]:
        """The trials that lack one of these measures."""
        return [t for t in work.trials if any((t, name) not in self._rows for name in names)]

    def _measure(self, work: Work, family: str, names: tuple[str, ...]) -> None:
        """Some families' measures of the networks that lack one."""
        missing = self._missing(work, names)
        if not missing:
            return
        names = tuple(n for n in names if any((t, n) not in self._rows for t in missing))
        batch = _Batch(self._workdir.path, work, missing, self._settings)
        refused = measures.refusals(batch.example, names)
        for name, reason in refused.items():
            for trial_id in missing:
                self._note(trial_id, name, None, REFUSED, reason)
        possible = tuple(name for name in names if name not in refused)
        if not possible:
            self._counter.advance(len(missing), family)
        while possible:
            try:
                self._compute(family, possible, batch)
                break
            except Exception as error:
                layout = batch.layout
                fewer = memory.fewer_lanes(layout.lanes, len(layout.devices))
                if not memory.is_out_of_memory(error) or fewer is None:
                    raise
                settings = self._settings | {"engine.lanes": fewer}
                left = self._missing(work, possible)
                batch = _Batch(self._workdir.path, work, left, settings)
                self._counter.say(f"{family}: out of memory; goes on with {fewer} lanes")
        self._write()

    def _compute(self, family: str, names: tuple[str, ...], batch: _Batch) -> None:
        program = self._program(batch, names)
        begun = time.perf_counter()
        for ids, arguments in batch.all_arguments():
            found = jax.device_get(program(*arguments))
            for lane, trial_id in enumerate(ids):
                for name in names:
                    self._note(trial_id, name, float(found[name][lane]))
            self._write()
            self._counter.advance(len(ids), family)
            seconds, networks = self.seconds.get(family, (0.0, 0))
            begun, took = time.perf_counter(), time.perf_counter() - begun
            self.seconds[family] = seconds + took, networks + len(ids)

    def _program(self, batch: _Batch, names: tuple[str, ...]) -> Any:
        """(images, labels_L, variables_L, initial_variables_L, seed_L) -> {measure: value_L}

        The same one for all networks of a kind, also on other images: it is compiled once.
        """
        first, layout, shared = batch.first, batch.layout, batch.work.one_version
        deciding = ("preprocess.", "matmul_precision", "compute_dtype", "model.")
        kind = tuple(sorted((k, v) for k, v in first.fields.items() if k.startswith(deciding)))
        key = kind, first.result["num_classes"], names, layout, shared
        if key not in self._programs:

            def of_one(images: Any, y: Any, variables: Any, initial: Any, seed: Any) -> Any:
                x, random = as_taken(images, first.fields), streams.stream(seed, streams.MEASURES)
                subject = Subject(first.model, variables, x, y, initial, random)
                return {name: measures.MEASURES[name](subject) for name in names}

            program = jax.jit(lanes.over_lanes(of_one, layout, shared=int(shared)))

            def call(*arguments: Any) -> Any:
                with jax.default_matmul_precision(first.fields["matmul_precision"]):
                    return program(*arguments)

            self._programs[key] = call
        return self._programs[key]

    def _note(
        self, trial_id: str, name: str, value: float | None, status: str = OK, reason: str = ""
    ) -> None:
        if value is not None and not np.isfinite(value):
            status, reason = NOT_FINITE, "a margin that is not positive, or too large a number"
        self._rows[trial_id, name] = {
            "trial_id": trial_id, "measure": name, "value": "" if value is None else repr(value),
            "status": status, "reason": reason,
        }  # fmt: skip

    def _write(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows.values())
        with self._writing():
            records.write_atomically(self.path, text.getvalue())

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror or error}; make room there, or copy "
                "the workdir to where it can be written"
            ) from error


def load_data(workdir: Path, head: dict[str, Any], name: str) -> Any:
    """The data set that a workdir was run on; head: its run.json.

    Raises:
      UserError: its files are not there any more, or are others.
    """
    folder = config_lib.settings(head["config"])["data_files.dir"]
    dataset = sources.load(name, folder, False)
    if dataset.fingerprint != head["data"][name]["fingerprint"]:
        raise UserError(
            f"the images of {name} are not those that {workdir} was run with; restore the data "
            "files"
        )
    return dataset


class _Batch:
    """Networks of one kind, and what a program needs of them, some lanes at a time.

    first: one of the networks   example: it with the shapes of its images, for refusals
    """

    def __init__(self, workdir: Path, work: Work, ids: Sequence[str], settings: dict[str, Any]):
        self.work, self._workdir, self._ids = work, workdir, list(ids)
        if not work.one_version:
            fitting = max(1, _MAX_IMAGE_BYTES // work.dataset.train_images.nbytes)
            asked = settings["engine.lanes"]
            settings = settings | {"engine.lanes": min(asked or fitting, fitting)}
        if jax.default_backend() == "cpu":
            # Batched decompositions can hang there (`measures.operators.circular_norm`).
            settings = settings | {"engine.batching": "map"}
        self.layout = lanes.choose_layout(settings, len(self._ids))
        self.first = load_trial(workdir, self._ids[0])
        self._stats = pixel_stats(work.dataset.train_images)

    @property
    def example(self) -> Subject:
        images = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), self._images(self._ids[0])
        )
        return Subject(
            self.first.model,
            self.first.variables,
            jax.eval_shape(lambda x: as_taken(x, self.first.fields), images),
            self._labels(self._ids[0]),
            self.first.initial_variables,
            jax.random.key(0),
        )

    @property
    def first_ids(self) -> list[str]:
        return self._ids[: self.layout.lanes]

    def all_arguments(self) -> Iterator[tuple[list[str], tuple[Any, ...]]]:
        """(trial ids, what the program takes) of a number of networks, until all were there."""
        for start in range(0, len(self._ids), self.layout.lanes):
            ids = self._ids[start : start + self.layout.lanes]
            yield ids, self.arguments(ids)

    def arguments(self, ids: Sequence[str]) -> tuple[Any, ...]:
        # The last batch is filled up, so that one program serves all.
        filled = [*ids, *[ids[0]] * (self.layout.lanes - len(ids))]
        loaded = [load_trial(self._workdir, t) for t in filled]
        own = [
            (self._labels(t), n.variables, n.initial_variables, n.fields["seed"])
            for t, n in zip(filled, loaded, strict=True)
        ]
        if self.work.one_version:
            images = self._shared_images
        else:
            images = jax.tree.map(_stacked, *map(self._images, filled))
        return images, *jax.tree.map(_stacked, *own)

    @functools.cached_property
    def _shared_images(self) -> ImageSet:
        return jax.device_put(self._images(self._ids[0]), lanes.shared_sharding(self.layout))

    def _images(self, trial_id: str) -> ImageSet:
        version = inputs.image_version(self.work.trials[trial_id])
        with inputs.on_host():
            return version.training_images(self.work.dataset, self._stats)

    def _labels(self, trial_id: str) -> np.ndarray:
        return inputs.trial_labels(self.work.trials[trial_id], self.work.dataset)[0]


def _programs(families: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """What is computed together: families of one pass share logits and singular values."""
    shared = [f for f in families if f in measures.GROUPS["one_pass"]]
    together = {", ".join(shared): tuple(n for f in shared for n in families[f])} if shared else {}
    return together | {f: own for f, own in families.items() if f not in shared}


def _stacked(*leaves: Any) -> jax.Array:
    return jnp.stack([jnp.asarray(leaf) for leaf in leaves])


def _read(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    """The rows that are there. What is refused or not finite is not computed again, either."""
    if not path.is_file():
        return {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            if tuple(rows.fieldnames or ()) != COLUMNS:
                raise ValueError(f"its columns are not {', '.join(COLUMNS)}")
            return {(row["trial_id"], row["measure"]): row for row in rows}
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(
            f"{path} is not a table of measures ({first_line(error)}); move it away and run "
            "launch.measure again"
        ) from error


def as_taken(images: ImageSet, fields: dict[str, Any]) -> jax.Array:
    """Images as the network takes them in evaluation: float32[N, H, W, C]."""
    pixels = jnp.asarray(ImageSet.pixels(images), jnp.float32) / 255
    cropped = preprocess.central_crop(pixels, fields["preprocess.crop_size"])
    return preprocess.NORMALIZE[fields["preprocess.normalize"]](cropped)
