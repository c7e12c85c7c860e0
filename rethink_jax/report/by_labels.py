"""Figure 1(b) and (c): what changes as more labels are corrupted, each as the bytes of a PNG."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import PercentFormatter

from rethink_jax import paper
from rethink_jax.report.figures import (
    COLOURS,
    GREY,
    POINTS,
    STYLE,
    UNFITTED,
    key,
    papers_order,
    png,
)
from rethink_jax.report.series import Levels, Line, Setting, mean_std, numbers, unfitted

_MAX_LINES = len(COLOURS)
_MARKERS = "osDvPXp"  # A triangle that points up stands for what did not fit.


class _Pen(NamedTuple):
    """How one of several lines is drawn, so that each shows where they lie on each other.

    rank: 0 for the one on top; those beneath are wider, and their markers larger and hollow
    """

    colour: str
    marker: str
    rank: int

    @property
    def line(self) -> dict[str, Any]:
        return dict(color=self.colour, linewidth=1.6 + 0.45 * self.rank, zorder=3 - 0.1 * self.rank)

    @property
    def points(self) -> dict[str, Any]:
        size = 4 + 2.0 * self.rank
        return dict(marker=self.marker, markersize=size, mfc="none", mew=1.5)


def _pens(number: int) -> list[_Pen]:
    own = zip(COLOURS[:number], _MARKERS, strict=False)
    return [_Pen(*look, rank=number - 1 - i) for i, look in enumerate(own)]


def _papers_colour(line: Levels, shown: list[Levels], colour: str) -> str:
    """That of our line, unless several lines are of this network."""
    alike = sum(other.network == line.network for other in shown)
    return colour if alike == 1 else GREY


def shown_levels(found: list[Line]) -> list[Levels]:
    """The lines to draw by label corruption: those with most levels, if there are too many."""
    shown = [levels for line in found for levels in line.levels if len(levels.settings) > 1]
    if any(len(x.settings) > 2 for x in shown):
        shown = [x for x in shown if len(x.settings) > 2]
    return sorted(shown, key=lambda x: (-len(x.settings), papers_order(x)))[:_MAX_LINES]


def epochs_to_fit(found: list[Line]) -> bytes | None:
    """Figure 1(b): epochs until the training set is fitted, by label corruption.

    Beside it the same relative to true labels, as in the paper, if it has one of the networks.
    """
    shown = shown_levels(found)
    if not any(np.isfinite(v) for x in shown for v in _band(x.settings, _epochs)[1]):
        return None
    published = any(line.network in paper.FIG1_NETWORKS for line in shown)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, 1 + published, figsize=(11 if published else 6.4, 4.2), squeeze=False,
            layout="constrained",
        )  # fmt: skip
        for line, pen in zip(shown, _pens(len(shown)), strict=True):
            _draw_band(axes[0][0], line.settings, _epochs, pen, line.name)
            _mark_unfitted(axes[0][0], line.settings, pen)
            if published:
                _draw_ratio(axes[0][1], line, pen, _papers_colour(line, shown, pen.colour))
        axes[0][0].set(xlabel=_X_AXIS, ylabel="epochs to fit")
        axes[0][0].set_ylim(bottom=0)
        if published:
            axes[0][1].set(xlabel=_X_AXIS, ylabel="relative to true labels")
        key(figure, list(axes[0]))
        return png(figure)


_X_AXIS = "label corruption (probability)"


def _draw_ratio(axis: Any, line: Levels, pen: _Pen, papers: str) -> None:
    """Epochs to fit, relative to those with true labels, if these are known; and the paper's."""
    base = _band(line.settings, _epochs)[1][0]
    if line.settings[0].label_prob == 0 and np.isfinite(base):
        _draw_band(axis, line.settings, lambda s: _epochs(s) / base, pen, line.name)
    if line.network in paper.FIG1_NETWORKS:
        published = paper.fig1b(line.network)
        axis.plot(published.x, published.value, color=papers, **POINTS)
        axis.plot([], [], color=GREY, label=f"paper, {published.where}", **POINTS)


def test_error(found: list[Line]) -> bytes | None:
    """Figure 1(c): test error by label corruption, against corrupted and against true labels."""
    shown = shown_levels(found)
    if not shown:
        return None
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
        for line, pen in zip(shown, _pens(len(shown)), strict=True):
            label = line.name if len(shown) > 1 else None
            _draw_band(axis, line.settings, _corrupted_error, pen, label)
            _draw_band(axis, line.settings, _clean_error, pen, None, "--")
            if line.network in paper.FIG1_NETWORKS:
                published = paper.fig1c(line.network)
                papers = _papers_colour(line, shown, pen.colour)
                axis.plot(published.x, published.value, color=papers, **POINTS)
        for chance in {line.chance for line in shown}:
            axis.axhline(chance, color="#888888", linewidth=1, linestyle=(0, (4, 3)))
            axis.annotate(
                "guessing", (0.0, chance), (0, 3), textcoords="offset points", color="#666666",
                fontsize=10,
            )  # fmt: skip
        colour = GREY if len(shown) > 1 else COLOURS[0]
        axis.plot([], [], "-", color=colour, lw=2, label="test labels corrupted alike")
        axis.plot([], [], "--", color=colour, lw=2, label="true test labels")
        if any(line.network in paper.FIG1_NETWORKS for line in shown):
            axis.plot([], [], color=colour, label="paper, Figure 1(c)", **POINTS)
        axis.set(xlabel=_X_AXIS, ylabel="test error")
        axis.set_ylim(0, 1)
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        key(figure, [axis], loc="lower right")
        return png(figure)


def _mark_unfitted(axis: Any, settings: list[Setting], pen: _Pen) -> None:
    """A triangle at the last epoch of settings in which some seed did not fit."""
    some = [s for s in settings if unfitted(s)]
    if some:
        last = [s.trials["stop.max_epochs"].max() for s in some]
        probs = [s.label_prob for s in some]
        marks = pen.points | dict(marker="^", markersize=6 + 3.5 * pen.rank)
        axis.plot(probs, last, **pen.line | marks | dict(linestyle="", clip_on=False))
        axis.plot([], [], "^", color=GREY, mfc="none", markersize=8, label=UNFITTED)


def _epochs(setting: Setting) -> Any:
    return numbers(setting.trials, "epochs_to_fit")


def _corrupted_error(setting: Setting) -> Any:
    return 1 - numbers(setting.trials, "final_test_corrupted_accuracy")


def _clean_error(setting: Setting) -> Any:
    return 1 - numbers(setting.trials, "final_test_accuracy")


def _band(settings: list[Setting], value: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    statistics = np.array([mean_std(value(s)) for s in settings])
    return np.array([s.label_prob for s in settings]), statistics[:, 0], statistics[:, 1]


def _draw_band(
    axis: Any, settings: list[Setting], value: Any, pen: _Pen, label: str | None, style: str = "-"
) -> None:
    probs, mean, std = _band(settings, value)
    axis.plot(probs, mean, style, label=label, **pen.line, **pen.points)
    axis.fill_between(probs, mean - std, mean + std, color=pen.colour, alpha=0.2, lw=0)
