"""What the figures and the table show: trials put together by setting, over their seeds."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from rethink_jax import paper, records


class Setting(NamedTuple):
    """The trials of one network under one corruption; they differ in their seeds.

    name: in words   label_prob: nominal   clean_pixels: images as they are
    trials: their rows of results   curves_TxE: mean online loss by epoch, the last value held
    """

    name: str
    label_prob: float
    clean_pixels: bool
    trials: pd.DataFrame
    losses_TxE: np.ndarray


class Line(NamedTuple):
    """All settings of one network (or other choice that is not corruption): one line in a figure.

    name: what sets it apart from the other lines   network: the paper's name for it, or None
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


_NOT_A_LINE = ("seed", "corruption.seed", "corruption.label_prob", "corruption.pixels",
               "corruption.pixel_fraction", "corruption.pixel_strength")  # fmt: skip


def field_columns(trials: pd.DataFrame) -> list[str]:
    """The columns that are fields of a trial."""
    return [
        c for c in trials.columns if "." in c or c in ("seed", "batch_size", "matmul_precision")
    ]


def lines(trials: pd.DataFrame, results: records.Results) -> list[Line]:
    """Sorts finished trials into lines, settings and seeds."""
    curves = results.curves
    fields = [c for c in field_columns(trials) if c not in _NOT_A_LINE]
    keys = trials[fields].map(repr)
    varied = [c for c in fields if keys[c].nunique() > 1]
    losses = {k: g["online_loss"].to_numpy() for k, g in curves.groupby("trial_id", sort=False)}
    found = []
    for _, rows in trials.groupby([keys[c] for c in varied] or (lambda _: 0), sort=False):
        first = rows.iloc[0]
        settings = [
            _setting(str(name), group, losses)
            for name, group in rows.groupby(rows.apply(setting_name, axis=1), sort=False)
        ]
        network = paper.network_of(first)
        name = ", ".join(f"{c.split('.')[-1]} {first[c]}" for c in varied)
        name = name or network or first["model.name"]
        classes = results.run["data"][first["data.name"]]["classes"]
        found.append(Line(name, network, 1 - 1 / len(classes), settings))
    return found


def setting_name(trial: Any) -> str:
    """A corruption in words: "true labels", "labels 30% random", "gaussian pixels" ..."""
    prob = trial["corruption.label_prob"]
    if prob == 0:
        labels = "true labels"
    else:
        labels = "random labels" if prob == 1 else f"labels {prob:.0%} random"
    if _clean(trial):
        return labels
    pixels = f"{trial['corruption.pixels']} pixels"
    if trial["corruption.pixel_fraction"] < 1:
        pixels += f" in {trial['corruption.pixel_fraction']:.0%} of images"
    if trial["corruption.pixel_strength"] < 1:
        pixels += f" at strength {trial['corruption.pixel_strength']:g}"
    return pixels if prob == 0 else f"{pixels}, {labels}"


def _clean(trial: Any) -> bool:
    strength = trial["corruption.pixel_fraction"] * trial["corruption.pixel_strength"]
    return trial["corruption.pixels"] == "none" or strength == 0


def _setting(name: str, rows: pd.DataFrame, losses: dict[str, np.ndarray]) -> Setting:
    own = [losses[i] for i in rows["trial_id"]]
    longest = max(len(c) for c in own)
    held = np.stack([np.pad(c, (0, longest - len(c)), mode="edge") for c in own])
    first = rows.iloc[0]
    return Setting(name, float(first["corruption.label_prob"]), _clean(first), rows, held)


def mean_std(values: Any) -> tuple[float, float]:
    """Mean and standard deviation over seeds, of the values that there are."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan")
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0


def summary(results: records.Results, done: pd.DataFrame, found: list[Line]) -> list[str]:
    """What was found, in at most five sentences."""
    planned = len(results.trials)
    accuracy = done["final_train_accuracy"]
    perfect, fitted = int((accuracy == 1).sum()), int((done["status"] == "fitted").sum())
    reached = (
        f"{perfect} of {planned} trials reached 100% training accuracy"
        if perfect
        else f"{fitted} of {planned} trials were fitted; training accuracy is {accuracy.min():.2%} "
        f"to {accuracy.max():.2%}"
    )
    sentences = [
        reached
        + (f"; {planned - len(done)} are not finished" if planned > len(done) else "")
        + (f"; {n} diverged" if (n := int((done["status"] == "diverged").sum())) else "")
        + "."
    ]
    line = max(found, key=lambda x: len(x.settings))
    ends = line.by_label_prob
    if len(ends) > 1:
        low, high = ends[0], ends[-1]
        fit = [mean_std(s.trials["epochs_to_fit"])[0] for s in (low, high)]
        if np.isfinite(fit).all():
            sentences.append(
                f"Fitting takes longer the more labels are random: {fit[0]:.1f} epochs with "
                f"{low.name}, {fit[1]:.1f} with {high.name} ({fit[1] / fit[0]:.1f} times as long)."
            )
        error = [1 - mean_std(s.trials["final_test_corrupted_accuracy"])[0] for s in (low, high)]
        sentences.append(
            f"The test error grows from {error[0]:.1%} with {low.name} to {error[1]:.1%} with "
            f"{high.name}; guessing gives {line.chance:.0%}."
        )
    if pixels := [s for s in line.settings if not s.clean_pixels and s.label_prob == 0]:
        parts = [
            f"{s.name} {1 - mean_std(s.trials['final_test_accuracy'])[0]:.1%} "
            f"(epochs to fit: {_text(s.trials['epochs_to_fit'], '.1f')})"
            for s in pixels[:4]
        ]
        sentences.append("Test error with corrupted images: " + ", ".join(parts) + ".")
    runs = results.run["runs"]
    seconds = sum(r.get("seconds", 0) for r in runs)
    steps = int((done["epochs"] * done["steps_per_epoch"]).sum())
    machine = runs[-1]["cpu"] if runs else {"model": "?", "cores": 0}
    where = (runs[-1]["devices"][0] if runs else "?").split(":")[0]
    device = f"{machine['cores']} CPU cores" if where == "cpu" else runs[-1]["devices"][0]
    sentences.append(f"{len(done)} trials, {steps:,} steps, {seconds:.0f} s on {device}.")
    return sentences


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
    fit = _text(rows["epochs_to_fit"], ".1f") + (f" ({unfitted} did not fit)" if unfitted else "")
    labels = {"true labels": "true", "random labels": "random"}.get(setting.name)
    published = paper.TABLE1.get((line.network, labels), {})
    figure = ""
    in_figure = line.network in paper.FIG1_NETWORKS and setting.label_prob in paper.LABEL_PROBS
    if in_figure and setting.clean_pixels:
        curve = paper.fig1c(line.network)
        figure = f"{curve.value[curve.x.index(setting.label_prob)]:.1%} ({curve.where})"
    test = published.get("test_accuracy")
    train = published.get("train_accuracy")
    return Row(
        line=line.name,
        setting=setting.name,
        seeds=len(rows),
        noise=_text(rows["label_noise"], ".1%"),
        epochs_to_fit=fit,
        train_accuracy=_text(rows["final_train_accuracy"], ".2%"),
        train_paper=f"{train.value:.2%} ({train.where})" if train else "",
        test_error_clean=_text(1 - rows["final_test_accuracy"], ".2%"),
        test_error_corrupted=_text(1 - rows["final_test_corrupted_accuracy"], ".2%"),
        test_paper=f"{1 - test.value:.2%} ({test.where})" if test else figure,
    )


def _text(values: Any, form: str) -> str:
    mean, std = mean_std(values)
    if not np.isfinite(mean):
        return "–"
    return f"{mean:{form}}" + (f" ± {std:{form}}" if len(values) > 1 else "")
