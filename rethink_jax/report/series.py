"""What the figures and the table show: trials put together by setting, over their seeds."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from rethink_jax import paper, records
from rethink_jax.trials import FIELDS


class Setting(NamedTuple):
    """The trials of one network under one corruption; they differ in their seeds.

    name: in words   labels: how they are corrupted; "" if they are not
    label_prob: nominal   clean_pixels: images as they are
    trials: their rows of results   curves: {column of `train.CURVE`: values_TxE} by epoch, NaN
      where nothing was measured; a trial that has ended keeps its last value
    """

    name: str
    labels: str
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

    @property
    def levels(self) -> list[Levels]:
        """`by_label_prob` of each kind of label corruption; true labels begin all of them."""
        clean = self.by_label_prob
        kinds = list(dict.fromkeys(s.labels for s in clean if s.labels)) or [UNIFORM]
        return [
            Levels(
                ", ".join([self.name] * bool(self.name) + [f"labels {kind}"] * (len(kinds) > 1)),
                self.network if kind == UNIFORM else None,
                self.chance,
                [s for s in clean if s.labels in ("", kind)],
            )
            for kind in kinds
        ]

    @property
    def main(self) -> list[Setting]:
        """What is shown along training: true labels, clean images or not, and the highest level
        of each label corruption."""
        highest = {of.settings[-1].name for of in self.levels if of.settings}
        return [s for s in self.settings if not s.labels or s.name in highest]


class Levels(NamedTuple):
    """The settings of a line under one kind of label corruption, clean pixels, by probability.

    name: the line's, and the kind's if there are several   network, chance: as of `Line`
    """

    name: str
    network: str | None
    chance: float
    settings: list[Setting]


UNIFORM = "uniform"
_NOT_A_LINE = ("seed", "corruption.seed", "data.replaced", "corruption.labels",
               "corruption.label_prob", "corruption.pixels", "corruption.pixel_fraction",
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


def labels_kind(trial: Any) -> str:
    """How a trial's labels are corrupted; "" if they are true."""
    # A corruption of the user's own may change labels at probability 0, too.
    changed = trial["corruption.label_prob"] > 0 or trial.get("test_label_noise", 0) > 0
    return trial["corruption.labels"] if changed else ""


def labels_name(kind: str, prob: float) -> str:
    """Labels in words: "true labels", "labels 30% random"; another kind than uniform by its name.

    kind: as of `labels_kind`
    """
    if not kind:
        return "true labels"
    if kind != UNIFORM:
        return f"labels {_percent(prob)} {kind}"
    return "random labels" if prob == 1 else f"labels {_percent(prob)} random"


def setting_name(trial: Any) -> str:
    """A corruption in words: "true labels", "labels 30% random", "gaussian pixels" ..."""
    kind = labels_kind(trial)
    labels = labels_name(kind, trial["corruption.label_prob"])
    if paper.clean_pixels(trial):
        return labels
    pixels = f"{trial['corruption.pixels']} pixels"
    if trial["corruption.pixel_fraction"] < 1:
        pixels += f" in {_percent(trial['corruption.pixel_fraction'])} of images"
    if trial["corruption.pixel_strength"] < 1:
        pixels += f" at strength {trial['corruption.pixel_strength']:.10g}"
    return f"{pixels}, {labels}" if kind else pixels


def _percent(share: float) -> str:
    """With all its digits: two levels have two names."""
    return f"{100 * share:.10g}%"


def _setting(name: str, rows: pd.DataFrame, curves: dict[str, pd.DataFrame]) -> Setting:
    own = [curves[i] for i in rows["trial_id"]]
    longest = max(len(c) for c in own)
    held = {
        column: np.stack([np.pad(c[column], (0, longest - len(c)), mode="edge") for c in own])
        for column in own[0].columns.intersection(_CURVES)
    }
    first = rows.iloc[0]
    prob = float(first["corruption.label_prob"])
    return Setting(name, labels_kind(first), prob, paper.clean_pixels(first), rows, held)


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


def unfitted(setting: Setting) -> int:
    """How many of the trials did not fit."""
    return int(numbers(setting.trials, "epochs_to_fit").isna().sum())


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
    return [_row(line, s) for line in found for s in [*line.by_label_prob, *with_pixels(line)]]


def with_pixels(line: Line) -> list[Setting]:
    return [s for s in line.settings if not s.clean_pixels]


def _row(line: Line, setting: Setting) -> Row:
    rows = setting.trials
    unfitted = int(rows["epochs_to_fit"].isna().sum())
    fit = in_text(rows["epochs_to_fit"], ".1f") + (f" ({unfitted} did not fit)" if unfitted else "")
    published = paper.published(paper.cell_of(rows.iloc[0]))
    figure = ""
    in_figure = line.network in paper.FIG1_NETWORKS and setting.label_prob in paper.LABEL_PROBS
    if in_figure and setting.clean_pixels and setting.labels in ("", UNIFORM):
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
