"""What capacity measures do as one thing grows: Figures 1 to 4 of Neyshabur et al. (2017).

Errors, norms over margins, sharpness, and KL divergence against expected sharpness, by the number
of images, the size of a confusion set, hidden units, or the corruption of the labels. The paper's
curves lie over ours where we trained what it trained, and beside ours otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.ticker import PercentFormatter, ScalarFormatter

from rethink_jax import paper_neyshabur2017 as paper
from rethink_jax.report.axes import SEEDS
from rethink_jax.report.figures import COLOURS, PAPER, STYLE, png
from rethink_jax.report.series import (
    field_columns,
    labels_kind,
    labels_name,
    mean_std,
    numbers,
)

_POINTS = PAPER | dict(marker="x", markersize=5)
# The paper's measures and the columns of measures.csv; norms are logarithms there.
_NORMS = {
    "l2": "neyshabur_l2_plotted",
    "l1path": "neyshabur_l1_path_plotted",
    "l2path": "neyshabur_l2_path_plotted",
    "spectral": "neyshabur_spectral_plotted",
}
_WORDS = {"l2": "l2 norm", "l1path": "l1 path norm", "l2path": "l2 path norm",
          "spectral": "spectral norm", "sharpness": "sharpness"}  # fmt: skip
_SHARPNESS = "sharpness_zeta"
_FIG1 = "Figure 1"
_KL = re.compile(r"pac_bayes_kl\[(.+)\]")


class Axis(NamedTuple):
    """What grows.

    field: of a trial   words: for the axis   log: drawn on a logarithmic axis
    """

    field: str
    words: str
    log: bool


_LABELS = "corruption.label_prob"
# The first of these that varies is the axis.
AXES = (
    Axis("data.num_confusion", "images with random labels beside the others", False),
    Axis("model.hidden", "hidden units", True),
    Axis("data.num_train", "training images", True),
    Axis(_LABELS, "probability that a label is corrupted", False),
)


class Sweep(NamedTuple):
    """The finished trials by one axis, and their measures where there are some.

    lines: {name: rows by x}, each row a group of trials that differ in their seeds
    """

    axis: Axis
    lines: dict[str, dict[float, pd.DataFrame]]

    @property
    def first(self) -> Any:
        return next(iter(next(iter(self.lines.values())).values())).iloc[0]

    @property
    def fitted(self) -> Sweep:
        """Without networks too small to fit: measures are compared at zero training error."""
        lines = {
            name: {x: rows for x, rows in by_x.items() if (rows["status"] == "fitted").all()}
            for name, by_x in self.lines.items()
        }
        return Sweep(self.axis, lines) if min(map(len, lines.values())) > 1 else self

    def has(self, column: str) -> bool:
        return any(
            numbers(rows, column).notna().any() for x in self.lines.values() for rows in x.values()
        )

    def statistics(
        self, name: str, of: Callable[[pd.DataFrame], pd.Series]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x, mean and deviation over seeds of a line, where there is a number."""
        found = [(x, *mean_std(of(rows))) for x, rows in self.lines[name].items()]
        x, mean, std = np.array(found).T
        known = np.isfinite(mean)
        return x[known], mean[known], np.nan_to_num(std[known])


def sweep(trials: pd.DataFrame, measures: pd.DataFrame | None) -> Sweep | None:
    """Finished trials as a sweep along one of `AXES`; None if none, or something else, varies."""
    rows = trials[trials["status"] != "diverged"]
    fields = field_columns(rows)
    varied = {c for c in fields if rows[c].map(repr).nunique() > 1} - set(SEEDS)
    axis = next((a for a in AXES if a.field in varied), None)
    if axis is None or varied - {axis.field, _LABELS}:
        return None
    if axis.field == "model.hidden":
        if any(len(widths) != 1 for widths in rows["model.hidden"]):
            return None
        x = rows["model.hidden"].map(lambda widths: float(widths[0]))
    else:
        x = numbers(rows, axis.field)
        if x.isna().any():  # All images of the set, of whatever number.
            return None
    if measures is not None:
        rows = rows.join(measures, on="trial_id")
    by_labels = axis.field != _LABELS
    names = rows.apply(_labels_in_words if by_labels else lambda _: "", axis=1)
    lines = {
        str(name): {float(at): some for at, some in own.groupby(x[own.index])}
        for name, own in rows.groupby(names, sort=False)
    }
    return Sweep(axis, lines)


def _labels_in_words(trial: Any) -> str:
    return labels_name(labels_kind(trial), trial[_LABELS])


def figures(found: Sweep | None) -> dict[str, bytes]:
    """{name: PNG} of what there is to show; at least three points on the axis, two for KL."""
    if found is None:
        return {}
    points = max(len(rows) for rows in found.lines.values())
    drawn = {
        # By corruption, the errors are in Figure 1(c) of Zhang et al. (2017).
        "capacity_errors": _errors if points >= 3 and found.axis.field != _LABELS else None,
        "capacity_norms": _norms,
        "capacity_measures": _normalized if points >= 3 else None,
        "capacity_sharpness": _sharpness,
        "capacity_kl": _kl_curves,
    }
    fitted = found.fitted
    pictures = {
        name: draw(found if draw is _errors else fitted)
        for name, draw in drawn.items()
        if draw is not None
    }
    return {name: picture for name, picture in pictures.items() if picture is not None}


def _dress(axis: Any, found: Sweep, ylabel: str) -> None:
    if found.axis.log:
        axis.set_xscale("log", base=2 if found.axis.field == "model.hidden" else 10)
        axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.set(xlabel=found.axis.words, ylabel=ylabel)


def _draw(axis: Any, statistics: Any, colour: str, label: str, **style: Any) -> None:
    x, mean, std = statistics
    axis.plot(x, mean, color=colour, label=label, **(dict(marker="o", markersize=4, lw=2) | style))
    axis.fill_between(x, mean - std, mean + std, color=colour, alpha=0.2, lw=0)


def _paper(axis: Any, published: Any, colour: str, name: str) -> None:
    label = f"{name}, Neyshabur et al. (2017), {published.where}"
    axis.plot(published.x, published.value, color=colour, label=label, **_POINTS)


def _errors(found: Sweep) -> bytes:
    """Training and test error; the paper's of Figures 3 and 4."""
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(6.4, 4.2))
        colours = iter(COLOURS * 2)
        for name in found.lines:
            for split in ("train", "test"):
                colour = next(colours)

                def error(rows: pd.DataFrame, split: str = split) -> pd.Series:
                    return 1 - numbers(rows, f"final_{split}_accuracy")

                label = f"{'training' if split == 'train' else 'test'}{', ' * bool(name)}{name}"
                _draw(axis, found.statistics(name, error), colour, label)
                confusion = found.axis.field == "data.num_confusion"
                if confusion and paper.is_of_fig1(found.first):
                    _paper(axis, paper.fig3_error(split), colour, split)
                if found.axis.field == "model.hidden" and paper.is_of_fig4(found.first):
                    _paper(axis, paper.fig4_error(split), colour, split)
        _dress(axis, found, "error")
        axis.set_ylim(bottom=0)
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        axis.legend(fontsize=9)
        return png(figure)


def _log10(column: str) -> Callable[[pd.DataFrame], pd.Series]:
    return lambda rows: numbers(rows, column) / np.log(10)


def _norms(found: Sweep) -> bytes | None:
    """log10 of four norms over the margin, one panel each; the paper's Figure 1."""
    if not all(found.has(column) for column in _NORMS.values()):
        return None
    by_images = found.axis.field == "data.num_train"
    same = by_images and paper.is_of_fig1(found.first)
    rows = 2 if by_images and not same else 1
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            rows, len(_NORMS), figsize=(3.6 * len(_NORMS), 3.4 * rows), squeeze=False
        )
        for (norm, column), axis, below in zip(_NORMS.items(), axes[0], axes[-1], strict=True):
            for name, colour in zip(found.lines, COLOURS, strict=False):
                _draw(axis, found.statistics(name, _log10(column)), colour, name)
                labels = name.removesuffix(" labels")
                if by_images and labels in ("true", "random"):
                    _paper(below, paper.fig1(norm, labels), colour, name)
            axis.set_title(_WORDS[norm], fontsize=11)
            first = axis is axes[0][0]
            _dress(axis, found, "log10 of norm / margin" if first else "")
            if rows == 2:
                _dress(below, found, f"Neyshabur et al. (2017), {_FIG1}" if first else "")
        for row in axes:
            if row[0].get_legend_handles_labels()[1] not in ([], [""]):
                row[0].legend(fontsize=8)
        figure.tight_layout()
        return png(figure)


def _normalized(found: Sweep) -> bytes | None:
    """All measures on one scale, beside the paper's Figure 3 or 4.

    By hidden units each is divided by its largest value, else drawn from 0 (smallest) to 1, as the
    paper does.
    """
    if not all(found.has(column) for column in _NORMS.values()):
        return None
    name = next(iter(found.lines))
    by_units = found.axis.field == "model.hidden"
    published = {"model.hidden": paper.fig4, "data.num_confusion": paper.fig3}.get(found.axis.field)
    if published is None:
        return None
    with plt.rc_context(STYLE):
        figure, (ours, papers) = plt.subplots(1, 2, figsize=(11, 4.2))
        for measure, colour in zip(_WORDS, COLOURS, strict=False):
            column = _NORMS.get(measure, _SHARPNESS)
            if found.has(column):
                values = _means(found, name, column, logarithms=measure in _NORMS)
                low = 0 if by_units else values.min()
                values = (values - low) / (values.max() - low or 1)
                ours.plot(
                    values.index, values, color=colour, marker="o", markersize=4, lw=2,
                    label=_WORDS[measure],
                )  # fmt: skip
            curve = published(measure)
            papers.plot(curve.x, curve.value, color=colour, label=_WORDS[measure], **_POINTS)
        _dress(ours, found, "measure, over its largest" if by_units else "measure, from 0 to 1")
        _dress(papers, found, "")
        papers.set_title(f"Neyshabur et al. (2017), {curve.where}", fontsize=11)
        ours.legend(fontsize=9)
        return png(figure)


def _means(found: Sweep, name: str, column: str, logarithms: bool) -> pd.Series:
    """The mean over seeds at each x; of logarithms, its exponential, over the largest."""
    x, mean, _ = found.statistics(name, lambda rows: numbers(rows, column))
    # Exponentials of differences: the norms themselves may be larger than a float.
    return pd.Series(np.exp(mean - mean.max()) if logarithms else mean, x)


def _sharpness(found: Sweep) -> bytes | None:
    """The largest increase of the loss in a small box; the paper's Figure 2, left."""
    if not found.has(_SHARPNESS):
        return None
    by_images = found.axis.field == "data.num_train" and found.first["data.name"] == "cifar10"
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(6.4, 4.2))
        for name, colour in zip(found.lines, COLOURS, strict=False):
            _draw(
                axis, found.statistics(name, lambda rows: numbers(rows, _SHARPNESS)), colour, name
            )
            labels = name.removesuffix(" labels")
            if by_images and labels in ("true", "random"):
                _paper(axis, paper.fig2_sharpness(labels), colour, name)
        _dress(axis, found, "sharpness")
        if "" not in found.lines or by_images:
            axis.legend(fontsize=9)
        return png(figure)


_MAX_CURVES = 6


def _kl_curves(found: Sweep) -> bytes | None:
    """Expected sharpness by KL divergence as the noise shrinks, a curve for each x."""
    columns = next(iter(next(iter(found.lines.values())).values())).columns
    alphas = [match[1] for match in map(_KL.fullmatch, map(str, columns)) if match]
    if not alphas or not found.has(f"pac_bayes_kl[{alphas[0]}]"):
        return None
    shown = sorted({x for rows in found.lines.values() for x in rows})
    if len(shown) > _MAX_CURVES:
        shown = [shown[i] for i in np.linspace(0, len(shown) - 1, _MAX_CURVES).round().astype(int)]
    published = found.axis.field == "data.num_train"
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(
            1, 1 + published, figsize=(6.4 + 5 * published, 4.4), squeeze=False
        )
        axis = panels[0][0]
        for (name, rows), style in zip(found.lines.items(), ("-", "--", ":", "-."), strict=False):
            for x, colour in zip(shown, COLOURS, strict=False):
                if x in rows:
                    kl, sharpness = (
                        np.array([numbers(rows[x], f"{c}[{a}]").mean() for a in alphas])
                        for c in ("pac_bayes_kl", "expected_sharpness")
                    )
                    label = f"{x:g}{', ' * bool(name)}{name}"
                    axis.plot(kl, sharpness, style, color=colour, lw=1.8, label=label)
        axis.set_title(found.axis.words, fontsize=11)
        if published:
            _papers_kl(panels[0][1])
        for panel in panels[0]:
            panel.axhline(paper.REFERENCE_SHARPNESS, color="#999999", lw=0.8)
            panel.set_xscale("log")
            panel.set(xlabel="KL divergence", ylim=(0, 0.3))
            panel.legend(fontsize=8)
        axis.set_ylabel("expected sharpness")
        return png(figure)


def _papers_kl(panel: Any) -> None:
    for labels, style in (("true", "-"), ("random", "--")):
        for images, colour in zip((5_000, 10_000, 30_000, 50_000), COLOURS, strict=False):
            curve = paper.fig2_kl(labels, images)
            panel.plot(
                curve.x,
                curve.value,
                style,
                color=colour,
                lw=1.4,
                label=f"{images}, {labels} labels",
            )
    panel.set_title("Neyshabur et al. (2017), Figure 2", fontsize=11)
