"""What the figures and the table show: trials put together by setting, over their seeds."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from rethink_jax import paper, records
from rethink_jax.trials import FIELDS


class Setting(NamedTuple):
    """The trials of one network under one corruption; they differ in their seeds.

    name: in words   label_prob: nominal   clean_pixels: images as they are
    trials: their rows of results   curves: {column of `train.CURVE`: values_TxE} by epoch, NaN
      where nothing was measured; a trial that has ended keeps its last value
    """

    name: str
    label_prob: float
    clean_pixels: bool
    trials: pd.DataFrame
    curves: dict[str, np.ndarray]


class Line(NamedTuple):
    """All settings of one network (or other choice that is not corruption): one line in a figure.

    name: what sets it apart from the other lines (see `_line_names`)
    network: the paper's name for it if the paper trained it so, without regularizers; or None
    chance: the test error of guessing
    """

    name: str
    network: str | None
    chance: float
    settings: list[Setting]

    @property
    def by_label_prob(self) -> list[Setting]:
        """The settings with clean pixels, by label corruption."""
        return sorted((s for s in self.settings if s.clean_pixels), key=lambda s: s.label_prob)


_NOT_A_LINE = ("seed", "corruption.seed", "data.replaced", "corruption.label_prob",
               "corruption.pixels", "corruption.pixel_fraction",
               "corruption.pixel_strength")  # fmt: skip


def field_columns(trials: pd.DataFrame) -> list[str]:
    """The columns that are fields of a trial."""
    return [c for c in trials.columns if "." in c or c in FIELDS]


def lines(trials: pd.DataFrame, results: records.Results) -> list[Line]:
    """Sorts finished trials into lines, settings and seeds."""
    fields = [c for c in field_columns(trials) if c not in _NOT_A_LINE]
    keys = trials[fields].map(repr)
    varied = [c for c in fields if keys[c].nunique() > 1]
    columns = [c for c in _CURVES if c in results.curves]
    curves = dict(list(results.curves.groupby("trial_id", sort=False)[columns]))
    groups = trials.groupby([keys[c] for c in varied] or (lambda _: 0), sort=False)
    groups = [rows for _, rows in groups]
    names = _line_names([rows.iloc[0] for rows in groups], varied)
    found = []
    for name, rows in zip(names, groups, strict=True):
        first = rows.iloc[0]
        settings = [
            _setting(str(setting), group, curves)
            for setting, group in rows.groupby(rows.apply(setting_name, axis=1), sort=False)
        ]
        chance = 1 - 1 / num_classes(first, results.run)
        found.append(Line(name, paper.network_of(first), chance, settings))
    return found


def num_classes(trial: Any, run: dict[str, Any]) -> int:
    """How many classes there are for a trial; run: the workdir's run.json."""
    some = trial.get("data.classes")
    return len(some if isinstance(some, list) else run["data"][trial["data.name"]]["classes"])


_CURVES = ("online_loss", "online_accuracy", "train_accuracy", "test_accuracy")


def _line_names(firsts: list[Any], varied: list[str]) -> list[str]:
    """What sets each of several lines apart: its network, and the fields that are its own.

    A field that differs between networks only (their learning rate) is not named, nor one that is
    off, nor (where it is off in no line) one with the value that more than half of the lines have.
    """
    networks = [paper.architecture(f) for f in firsts]
    if None in networks:
        networks = [f["model.name"] for f in firsts]
    own: list[list[str]] = [[] for _ in firsts]
    for column in varied:
        values = [repr(f[column]) for f in firsts]
        if len(set(zip(networks, values, strict=True))) == len(set(networks)):
            continue
        offs = [v for f, v in zip(firsts, values, strict=True) if not f[column]]
        switch = column.startswith(("preprocess.", "regularizer.", "optimizer.weight_decay"))
        usual = [v for v in values if values.count(v) * 2 > len(values)]
        unnamed = {"nan", *((offs if switch else []) or usual)[:1]}  # NaN: of another network
        for parts, first, value in zip(own, firsts, values, strict=True):
            if value not in unnamed:
                parts.append(_in_words(column, first[column]))
    several = len(set(networks)) > 1 or not all(own)
    return [
        ", ".join([network] * several + parts) for network, parts in zip(networks, own, strict=True)
    ]


def _in_words(column: str, value: Any) -> str:
    name = column.split(".")[-1]
    if isinstance(value, bool | np.bool_):
        return name.replace("_", " ") if value else f"no {name.replace('_', ' ')}"
    return f"{name} {value}"


def setting_name(trial: Any) -> str:
    """A corruption in words: "true labels", "labels 30% random", "gaussian pixels" ..."""
    prob = trial["corruption.label_prob"]
    if prob == 0:
        labels = "true labels"
    else:
        labels = "random labels" if prob == 1 else f"labels {prob:.0%} random"
    if paper.clean_pixels(trial):
        return labels
    pixels = f"{trial['corruption.pixels']} pixels"
    if trial["corruption.pixel_fraction"] < 1:
        pixels += f" in {trial['corruption.pixel_fraction']:.0%} of images"
    if trial["corruption.pixel_strength"] < 1:
        pixels += f" at strength {trial['corruption.pixel_strength']:g}"
    return pixels if prob == 0 else f"{pixels}, {labels}"


def _setting(name: str, rows: pd.DataFrame, curves: dict[str, pd.DataFrame]) -> Setting:
    own = [curves[i] for i in rows["trial_id"]]
    longest = max(len(c) for c in own)
    held = {
        column: np.stack([np.pad(c[column], (0, longest - len(c)), mode="edge") for c in own])
        for column in own[0].columns.intersection(_CURVES)
    }
    first = rows.iloc[0]
    prob = float(first["corruption.label_prob"])
    return Setting(name, prob, paper.clean_pixels(first), rows, held)


def numbers(rows: pd.DataFrame, column: str) -> pd.Series:
    """A column of results as floats; NaN where, or if, there is no value."""
    values = rows[column] if column in rows else pd.Series(np.nan, rows.index)
    return pd.to_numeric(values, errors="coerce").astype(float)


def mean_std(values: Any) -> tuple[float, float]:
    """Mean and standard deviation over seeds, of the values that there are."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan")
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0


def summary(
    results: records.Results, done: pd.DataFrame, found: list[Line], compared: list[str]
) -> list[str]:
    """What was found, in at most six sentences.

    compared: a sentence about each of the paper's tables
    """
    line = max(found, key=lambda x: len(x.settings))
    found_out = [*compared, *_by_label_prob(line, len(found) > 1), *_by_pixels(line)]
    return [_accuracy(results, done), *found_out[:4], _effort(results, done)]


def _accuracy(results: records.Results, done: pd.DataFrame) -> str:
    """How many trials fitted, how many there are."""
    planned = len(results.trials)
    accuracy = numbers(done, "final_train_accuracy")
    perfect, fitted = int((accuracy == 1).sum()), int((done["status"] == "fitted").sum())
    if perfect:
        text = f"{perfect} of {planned} trials reached 100% training accuracy"
    else:
        text = f"{fitted} of {planned} trials were fitted"
        if accuracy.notna().any():
            text += f"; training accuracy is {accuracy.min():.2%} to {accuracy.max():.2%}"
    unfinished, diverged = planned - len(done), int((done["status"] == "diverged").sum())
    text += f"; {unfinished} are not finished" if unfinished else ""
    return text + (f"; {diverged} diverged" if diverged else "") + "."


def _by_label_prob(line: Line, named: bool) -> list[str]:
    """Time to fit and test error at the lowest and the highest level of label corruption."""
    if len(line.by_label_prob) < 2:
        return []
    low, high = line.by_label_prob[0], line.by_label_prob[-1]
    sentences, of = [], f" of {line.name}" if named else ""
    fit = [mean_std(s.trials["epochs_to_fit"])[0] for s in (low, high)]
    if np.isfinite(fit).all():
        sentences.append(
            f"Fitting{of} takes {'longer the more labels are random: ' * (fit[1] > fit[0])}"
            f"{fit[0]:.1f} epochs with {low.name}, {fit[1]:.1f} with {high.name} "
            f"({fit[1] / fit[0]:.1f} times as long)."
        )
    error = [1 - mean_std(s.trials["final_test_corrupted_accuracy"])[0] for s in (low, high)]
    if np.isfinite(error).all():
        sentences.append(
            f"The test error{of} {'grows' if error[1] > error[0] else 'goes'} from {error[0]:.1%} "
            f"with {low.name} to {error[1]:.1%} with {high.name}; guessing gives {line.chance:.0%}."
        )
    return sentences


def _by_pixels(line: Line) -> list[str]:
    """Test error and time to fit with corrupted images."""
    parts = [
        f"{s.name} {1 - mean_std(s.trials['final_test_accuracy'])[0]:.1%} "
        f"(epochs to fit: {in_text(s.trials['epochs_to_fit'], '.1f')})"
        for s in _pixels(line)
        if s.label_prob == 0
    ]
    return ["Test error with corrupted images: " + ", ".join(parts[:4]) + "."] if parts else []


def _effort(results: records.Results, done: pd.DataFrame) -> str:
    """What the trials took."""
    runs = results.run["runs"]
    seconds = sum(r.get("seconds", 0) for r in runs)
    steps = int((done["epochs"] * done["steps_per_epoch"]).sum())
    machine = runs[-1]["cpu"] if runs else {"model": "?", "cores": 0}
    where = runs[-1]["devices"][0] if runs else "?"
    device = f"{machine['cores']} CPU cores" if where.split(":")[0] == "cpu" else where
    return f"{len(done)} trials, {steps:,} steps, {seconds:.0f} s on {device}."


class Row(NamedTuple):
    """One row of the table; each number as text, the paper's beside ours where it has one."""

    line: str
    setting: str
    seeds: int
    noise: str
    epochs_to_fit: str
    train_accuracy: str
    train_paper: str
    test_error_clean: str
    best_error_clean: str
    test_error_corrupted: str
    test_paper: str


def table(found: list[Line]) -> list[Row]:
    """Mean and standard deviation over seeds of every setting."""
    return [_row(line, s) for line in found for s in [*line.by_label_prob, *_pixels(line)]]


def _pixels(line: Line) -> list[Setting]:
    return [s for s in line.settings if not s.clean_pixels]


def _row(line: Line, setting: Setting) -> Row:
    rows = setting.trials
    unfitted = int(rows["epochs_to_fit"].isna().sum())
    fit = in_text(rows["epochs_to_fit"], ".1f") + (f" ({unfitted} did not fit)" if unfitted else "")
    published = paper.published(paper.cell_of(rows.iloc[0]))
    figure = ""
    in_figure = line.network in paper.FIG1_NETWORKS and setting.label_prob in paper.LABEL_PROBS
    if in_figure and setting.clean_pixels:
        curve = paper.fig1c(line.network)
        figure = f"{curve.value[curve.x.index(setting.label_prob)]:.1%} ({curve.where})"
    train, test = published.get("train_accuracy"), published.get("test_accuracy")
    best = numbers(rows, "best_test_accuracy")
    return Row(
        line=line.name,
        setting=setting.name,
        seeds=len(rows),
        noise=in_text(rows["label_noise"], ".1%"),
        epochs_to_fit=fit,
        train_accuracy=in_text(rows["final_train_accuracy"], ".2%"),
        train_paper=_published_text(train),
        test_error_clean=in_text(1 - numbers(rows, "final_test_accuracy"), ".2%"),
        best_error_clean=in_text(1 - best, ".2%") if best.notna().any() else "",
        test_error_corrupted=in_text(1 - numbers(rows, "final_test_corrupted_accuracy"), ".2%"),
        test_paper=f"{1 - test.value:.2%} ({test.where})" if test else figure,
    )


def _published_text(number: paper.Published | None) -> str:
    if number is None:
        return ""
    value = number.value
    return f"{value if isinstance(value, str) else format(value, '.2%')} ({number.where})"


def in_text(values: Any, form: str) -> str:
    """Mean ± standard deviation over seeds, each in a format; "–" if there is no value."""
    mean, std = mean_std(values)
    if not np.isfinite(mean):
        return "–"
    several = np.isfinite(np.asarray(values, float)).sum() > 1
    return f"{mean:{form}}" + (f" ± {std:{form}}" if several else "")
