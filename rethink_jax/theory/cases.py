"""From a config to the records of an experiment of the theory: expands, runs what is missing.

A case is one resolved set of an experiment's fields, as a trial is of a sweep's. Its record is
WORKDIR/theory/EXPERIMENT_ID.json, written as a whole when it is done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rethink_jax import axes, damaged, header, promised, records, shown, trials
from rethink_jax.data import dataset as datasets
from rethink_jax.data import sources
from rethink_jax.data.dataset import Dataset
from rethink_jax.schema import Field, UserError, first_line, flatten, plain, suggest
from rethink_jax.theory import EXPERIMENTS

FORMAT = 1  # Of the records. A reader passes over others.
_AGAIN = "delete it and run launch.theory again, which repeats this one case"
_SECONDS_BETWEEN_LINES = 10.0

# Fields of every experiment on images.
IMAGES = {
    "data": Field(str, "digits", "the data set, as in a sweep's data.name"),
    "num_train": Field(int, None, "size of a random subset", low=1, optional=True),
    "seed": Field(int, 0, "of all that is drawn", low=0, high=2**31 - 1),
}
LABELS = {
    "labels": Field(
        str, "true", "of the training images; random: each redrawn uniformly",
        choices=("true", "random"),
    )
}  # fmt: skip

_SETTINGS = {
    "data_files.dir": Field(
        str, None, "data sets' folder; None: $RETHINK_DATA_DIR, or .data", optional=True
    ),
    "data_files.download": Field(bool, False, "fetch missing data sets (needs the download extra)"),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One run of an experiment. fields: all that decides what it finds, by name."""

    experiment: str
    fields: tuple[tuple[str, Any], ...]

    @property
    def name(self) -> str:
        return f"{self.experiment}_{trials.digest(self.fields)}"


@dataclasses.dataclass(frozen=True)
class Context:
    """What an experiment is given beside its fields.

    folder: its own, for what it keeps; not there yet   say: takes lines on how far it is
    """

    folder: Path
    settings: dict[str, Any]
    command: list[str]
    say: Callable[[str], None]

    def images(self, data: str, num_train: int | None, seed: int) -> Dataset:
        """The data set, or a random subset of its training images.

        Raises:
          UserError: as `sources.load`.
        """
        folder, download = (self.settings[f"data_files.{name}"] for name in ("dir", "download"))
        dataset = sources.load(data, folder, download)
        assert isinstance(dataset, Dataset)  # `expand` takes no others.
        return dataset if num_train is None else datasets.subset(dataset, num_train, seed, False)


# --- configs --------------------------------------------------------------------------------------


def default_config(experiment: str, mode: str = "full") -> Any:
    """A ConfigDict with every field of an experiment, every axis (empty) and every setting.

    Raises:
      UserError: no such experiment; a mode that is neither full nor quick.
    """
    from ml_collections import config_dict

    if mode not in ("full", "quick"):
        raise UserError(f"the mode of a config is full or quick, not {mode!r}")

    def value(field: Field) -> Any:
        return config_dict.placeholder(field.kind) if field.default is None else field.default

    fields = _module(experiment).FIELDS
    config = config_dict.ConfigDict({"experiment": experiment, "data_files": {}})
    for name, field in _SETTINGS.items():
        section, leaf = name.split(".")
        config[section][leaf] = value(field)
    config.trial = config_dict.ConfigDict({k: value(f) for k, f in fields.items()})
    config.sweep = config_dict.ConfigDict({k: () for k in fields})
    return config


def known_fields() -> list[str]:
    """What --config.NAME may be, of any experiment."""
    fields = {name for experiment in EXPERIMENTS for name in _module(experiment).FIELDS}
    return [*_SETTINGS, *(f"{part}.{name}" for part in ("trial", "sweep") for name in fields)]


def describe() -> str:
    """Every field of every experiment: name, default, what it may hold, what it is."""
    lines = []
    for experiment in EXPERIMENTS:
        lines.append(f"config.trial, for the experiment {experiment!r}:")
        for name, field in _module(experiment).FIELDS.items():
            lines.append(f"  trial.{name} = {field.default!r}  {field.doc} ({field.allowed()})")
    return "\n".join(lines)


def expand(config: Any) -> list[Case]:
    """All cases of a config: the product of its axes (see `axes`) over `config.trial`.

    Raises:
      UserError: unknown fields or axes, bad values, or the same case twice.
    """
    config = plain(config)
    experiment = config.get("experiment")
    fields = _module(experiment).FIELDS
    cases: list[Case] = []
    for assignment in axes.assignments(config.get("sweep") or {}, fields):
        given = flatten(_fields_given(config)) | assignment
        for name in given:
            if name not in fields:
                raise UserError(
                    f"the experiment {experiment} has no field {name!r}{suggest(name, fields)}; "
                    f"it has {', '.join(fields)}"
                )
        values = {k: f.check(f"trial.{k}", given.get(k, f.default)) for k, f in fields.items()}
        _check_data(values.get("data"))
        case = Case(experiment, tuple(sorted(values.items())))
        if case in cases:
            raise UserError(
                f"config.sweep makes the same trial twice, as {assignment}; take the repeated "
                "value out of one of the axes"
            )
        cases.append(case)
    return cases


def _check_data(name: str | None) -> None:
    """Raises UserError unless it is a data set that lies in memory, or none."""
    in_memory = [known for known in sources.names() if not sources.is_streamed(known)]
    if name is None or name in in_memory or name.startswith("tfds:"):
        return
    why = ", whose images are read from disk while training" if sources.is_streamed(name) else ""
    raise UserError(
        f"trial.data is {name!r}{why}; theory takes images that lie in memory: one of "
        f"{', '.join(in_memory)}, or tfds:NAME{suggest(name, in_memory)}"
    )


def _fields_given(config: dict[str, Any]) -> dict[str, Any]:
    given = config.get("trial") or {}
    if not isinstance(given, dict):
        raise UserError(
            f"config.trial is {given!r}; it holds fields by name, as in "
            "config.trial.num_train = 100"
        )
    return given


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    given = flatten({k: v for k, v in config.items() if k not in ("experiment", "trial", "sweep")})
    for name in given:
        if name not in _SETTINGS:
            raise UserError(f"unknown setting {name!r} in the config{suggest(name, _SETTINGS)}")
    return {k: f.check(k, given.get(k, f.default)) for k, f in _SETTINGS.items()}


def _module(experiment: Any) -> Any:
    if experiment is None:
        raise UserError("the config names no experiment: configs of sweeps are for launch.sweep")
    if experiment not in EXPERIMENTS:
        raise UserError(
            f"there is no experiment {experiment!r}{suggest(experiment, EXPERIMENTS)}; there are "
            f"{', '.join(EXPERIMENTS)}. Start from theory.cases.default_config(name)"
        )
    return importlib.import_module(EXPERIMENTS[experiment])


# --- running --------------------------------------------------------------------------------------


def run(config: Any, workdir: str | Path, command: list[str]) -> Iterator[str]:
    """Runs the cases that have no record yet; gives the table of each, as text.

    Raises:
      UserError: the config is wrong, the workdir cannot be written, a record is damaged, or as the
        experiment does.
    """
    cases, settings = expand(config), _settings(plain(config))
    folder = Path(workdir).expanduser() / "theory"
    with _writing(folder):  # Before anything is computed that could not be kept.
        _check_can_be_made(folder)
    for case in cases:
        _read(folder / f"{case.name}.json")
    for number, case in enumerate(cases, 1):
        path = folder / f"{case.name}.json"
        record = _read(path)
        done = "done before; " if record else ""
        if not record:
            context = Context(folder / case.name, settings, command, _Lines())
            record = {
                "format": FORMAT,
                "experiment": case.experiment,
                "trial": dict(case.fields),
                "found": _module(case.experiment).run(context, **dict(case.fields)),
                "run": header.run_facts(command),
            }
            with _writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
                records.write_atomically(path, json.dumps(record, indent=1, default=_literal))
        text = table(record)
        yield shown.lines(f"{text}\n({number} of {len(cases)}; {done}numbers: {path})\n")


def load(workdir: str | Path) -> list[dict[str, Any]]:
    """The records in a workdir, in the order of their files' names.

    Returns:
      experiment, trial (its fields), found and run (facts of the command) of each; texts as they
      may be shown. name: what its files are called

    Raises:
      UserError: a record is damaged.
    """
    paths = sorted((Path(workdir).expanduser() / "theory").glob("*.json"))
    return [record for path in paths if (record := _read(path))]


def table(record: dict[str, Any]) -> str:
    """What a record says, as text."""
    return _module(record["experiment"]).table(record["found"])


def _read(path: Path) -> dict[str, Any] | None:
    """A record as `load` gives it; None if there is none, or one of another version.

    Raises:
      UserError: it is damaged.
    """
    try:
        record = damaged.read_json(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise damaged.refused(path, error, _AGAIN) from error
    if isinstance(record, dict) and record.get("format", FORMAT) != FORMAT:
        return None
    if what := _broken(record, path.stem):
        raise UserError(f"{path} is damaged ({what}); {_AGAIN}")
    return shown.texts(record) | {"name": path.stem}


def _broken(record: Any, name: str) -> str | None:
    """What is wrong with a record, in words; None if it is a whole one of its case."""
    anything = {...: promised.ANYTHING}
    parts = {"experiment": promised.one_of(*EXPERIMENTS), "trial": anything, "run": anything}
    if what := promised.broken(record, parts):
        return what
    module = _module(record["experiment"])
    try:
        fields = {k: f.check(k, record["trial"].get(k)) for k, f in module.FIELDS.items()}
    except UserError as error:
        return first_line(error)
    if Case(record["experiment"], tuple(sorted(fields.items()))).name != name:
        return "its fields are those of another case"
    return promised.broken(record, {"found": module.FOUND})


def _check_can_be_made(folder: Path) -> None:
    """Raises OSError if the folder cannot be made, or written; makes nothing."""
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        number = errno.EACCES if there.is_dir() else errno.ENOTDIR
        raise OSError(number, os.strerror(number))


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write to the workdir {folder.parent}: {error.strerror or error}; name another "
            "with --workdir"
        ) from error


def _literal(value: Any) -> Any:
    """A NumPy number or array for JSON."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{value!r} is no number of NumPy")


class _Lines:
    """Progress, at most one line in 10 seconds."""

    def __init__(self) -> None:
        self._last = -_SECONDS_BETWEEN_LINES

    def __call__(self, line: str) -> None:
        if time.monotonic() - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            print(shown.line(line), file=sys.stderr, flush=True)
