"""From a workdir to its measures.csv: every measure of every network that was kept."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rethink_jax import config as config_lib
from rethink_jax import inputs, lanes, measures, records, trials
from rethink_jax.checkpoint import LoadedTrial, load_trial
from rethink_jax.data import preprocess, sources
from rethink_jax.data.corruption import PixelCorruptionSpec, corrupt_pixels, pixel_stats
from rethink_jax.data.dataset import Dataset
from rethink_jax.measures.subject import Subject
from rethink_jax.schema import UserError

COLUMNS = ("trial_id", "measure", "value", "status", "reason")
# Status of a row.
OK, NOT_FINITE, REFUSED, NO_NETWORK = "ok", "not_finite", "refused", "no_network"


class Work(NamedTuple):
    """Networks that are measured by one program, on the same images.

    trials: {trial_id: trial}   pixels: how their images are corrupted
    """

    trials: dict[str, trials.Trial]
    pixels: PixelCorruptionSpec
    dataset: Dataset


class Measuring:
    """The measures of a workdir: those that it has, and those that are asked for.

    seconds: of each family, {family: (seconds, networks)}

    Raises:
      UserError: not a workdir, no such measure or trial, or its data are not there any more.
    """

    def __init__(
        self,
        workdir: str | Path,
        names: Sequence[str] = ("all",),
        trial_ids: Sequence[str] = (),
        say: Callable[[str], None] = print,
    ):
        self._workdir, self._say = records.Workdir(workdir), say
        head = self._workdir.header()
        if head is None:
            raise UserError(f"{workdir} is not a workdir: it has no run.json")
        self._head, self._settings = head, config_lib.settings(head["config"])
        self._families = measures.select(names)
        self._finished = self._workdir.finished()
        for trial_id in trial_ids:
            if trial_id not in self._finished:
                raise UserError(
                    f"there is no finished trial {trial_id!r} in {workdir}; run the sweep to its "
                    f"end first. Trials and their status are in {self._workdir.path}/trials.csv"
                )
        self._asked = list(trial_ids or self._finished)
        self._rows = _read(self.path)
        self._programs: dict[Any, Any] = {}
        self.seconds: dict[str, tuple[float, int]] = {}

    @property
    def path(self) -> Path:
        return self._workdir.path / "measures.csv"

    def run(self) -> None:
        """Computes what is missing; each batch of networks is on disk once it is done."""
        kept = [t for t in self._asked if (self._workdir.trial_dir(t) / "network").is_dir()]
        for trial_id in self._asked:
            if trial_id not in kept:
                status = self._finished[trial_id]["status"]
                reason = f"no network was kept (status {status})"
                self._note(trial_id, "all", None, NO_NETWORK, reason)
        for work in self._works(kept):
            for family, names in self._families.items():
                self._measure(work, family, names)
        self._write()

    # --- inside -----------------------------------------------------------------------------------

    def _works(self, trial_ids: Sequence[str]) -> Iterator[Work]:
        """The trials by group, and within it by the version of their images."""
        found: dict[Any, dict[str, trials.Trial]] = {}
        for trial_id in trial_ids:
            trial = trials.resolve(self._finished[trial_id]["trial"])
            key = trial.static, inputs.pixel_spec(trial)
            found.setdefault(key, {})[trial_id] = trial
        datasets: dict[str, Any] = {}
        for (static, pixels), own in found.items():
            fields = dict(static)
            name = fields["data.name"]
            if name not in datasets:
                datasets[name] = self._load(name)
            dataset = inputs.trial_dataset(datasets[name], fields)
            if not isinstance(dataset, Dataset):
                for trial_id in own:
                    self._note(trial_id, "all", None, REFUSED, f"{name} is streamed from disk")
                continue
            yield Work(own, pixels, dataset)

    def _load(self, name: str) -> Any:
        dataset = sources.load(name, self._settings["data_files.dir"], False)
        if dataset.fingerprint != self._head["data"][name]["fingerprint"]:
            raise UserError(
                f"the images of {name} are not those that {self._workdir.path} was run with; "
                "restore the data files"
            )
        return dataset

    def _measure(self, work: Work, family: str, names: tuple[str, ...]) -> None:
        """One family's measures of the networks that lack one."""
        missing = {
            trial_id: trial
            for trial_id, trial in work.trials.items()
            if any((trial_id, name) not in self._rows for name in names)
        }
        if not missing:
            return
        first = load_trial(self._workdir.path, next(iter(missing)))
        images = _network_images(work, first.fields)
        labels = {t: inputs.trial_labels(trial, work.dataset)[0] for t, trial in missing.items()}
        example = Subject(
            first.model, first.variables, images, labels[next(iter(missing))],
            first.initial_variables,
        )  # fmt: skip
        refused = measures.refusals(example, names)
        for name, reason in refused.items():
            for trial_id in missing:
                self._note(trial_id, name, None, REFUSED, reason)
        possible = tuple(name for name in names if name not in refused)
        if possible:
            self._compute(family, possible, first, images, labels)
        self._write()

    def _compute(
        self,
        family: str,
        names: tuple[str, ...],
        first: LoadedTrial,
        images: np.ndarray,
        labels: dict[str, np.ndarray],
    ) -> None:
        layout = lanes.choose_layout(self._settings, len(labels))
        program = self._program(first, names, layout)
        shared = jax.device_put(images, lanes.shared_sharding(layout))
        ids, begun = list(labels), time.perf_counter()
        with jax.default_matmul_precision(first.fields["matmul_precision"]):
            for start in range(0, len(ids), layout.lanes):
                batch = ids[start : start + layout.lanes]
                # The last batch is filled up, so that one program serves all.
                filled = batch + batch[:1] * (layout.lanes - len(batch))
                loaded = [load_trial(self._workdir.path, t) for t in filled]
                own = [
                    (labels[t], n.variables, n.initial_variables)
                    for t, n in zip(filled, loaded, strict=True)
                ]
                found = jax.device_get(program(shared, *jax.tree.map(_stacked, *own)))
                for lane, trial_id in enumerate(batch):
                    for name in names:
                        self._note(trial_id, name, float(found[name][lane]))
                self._write()
                self._say(f"{family}: {min(start + layout.lanes, len(ids))}/{len(ids)} networks")
        seconds, networks = self.seconds.get(family, (0.0, 0))
        took = time.perf_counter() - begun
        self.seconds[family] = seconds + took, networks + len(ids)

    def _program(self, first: LoadedTrial, names: tuple[str, ...], layout: lanes.Layout) -> Any:
        """(images, labels_L, variables_L, initial_variables_L) -> {measure: value_L}

        The same one for all networks of a kind, also on other images: it is compiled once.
        """
        kind = tuple(sorted((k, v) for k, v in first.fields.items() if k.startswith("model.")))
        key = kind, first.result["num_classes"], names, layout
        if key not in self._programs:

            def of_one(x: Any, y: Any, variables: Any, initial: Any) -> dict[str, jax.Array]:
                subject = Subject(first.model, variables, x, y, initial)
                return {name: measures.MEASURES[name](subject) for name in names}

            self._programs[key] = jax.jit(lanes.over_lanes(of_one, layout, shared=1))
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
        records.write_atomically(self.path, text.getvalue())


def _stacked(*leaves: Any) -> jax.Array:
    return jnp.stack([jnp.asarray(leaf) for leaf in leaves])


def _read(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    """The rows that are there. What is refused or not finite is not computed again, either."""
    if not path.is_file():
        return {}
    with open(path, newline="") as file:
        rows = csv.DictReader(file)
        if tuple(rows.fieldnames or ()) != COLUMNS:
            raise UserError(f"{path} is not a table of measures; move it away")
        return {(row["trial_id"], row["measure"]): row for row in rows}


def _network_images(work: Work, fields: dict[str, Any]) -> np.ndarray:
    """The training images as the network takes them in evaluation: float32[N, H, W, C]."""
    stats = pixel_stats(work.dataset.train_images)
    with inputs.on_host():
        made = corrupt_pixels(work.dataset.train_images, work.pixels, stats)
        pixels = jnp.asarray(made.pixels(), jnp.float32) / 255
        cropped = preprocess.central_crop(pixels, fields["preprocess.crop_size"])
        return np.asarray(preprocess.NORMALIZE[fields["preprocess.normalize"]](cropped))
