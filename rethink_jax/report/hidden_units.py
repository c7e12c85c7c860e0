"""Figure 4 of Neyshabur et al. (2017): the error by the number of hidden units."""

from __future__ import annotations

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import PercentFormatter, ScalarFormatter

from rethink_jax import paper_neyshabur2017
from rethink_jax.report.figures import COLOURS, PAPER, STYLE, png
from rethink_jax.report.series import Line, Setting, mean_std, numbers

_SPLITS = {"train": "training", "test": "test"}


def _by_width(found: list[Line]) -> list[tuple[int, Setting]]:
    """Networks of one hidden layer on true labels, by its width."""
    widths = {}
    for line in found:
        for setting in line.settings:
            trial = setting.trials.iloc[0]
            one = trial["model.name"] == "mlp" and len(trial["model.hidden"]) == 1
            if one and setting.label_prob == 0 and setting.clean_pixels:
                widths.setdefault(trial["model.hidden"][0], []).append(setting)
    if any(len(settings) > 1 for settings in widths.values()):
        return []  # Something else varies, too, and a width is not one point.
    return sorted((width, settings[0]) for width, settings in widths.items())


def errors(found: list[Line]) -> bytes | None:
    """Training and test error by width, of three widths or more; the paper's, on MNIST."""
    shown = _by_width(found)
    if len(shown) < 3:
        return None
    widths = [width for width, _ in shown]
    same = all(paper_neyshabur2017.is_of_fig4(s.trials.iloc[0]) for _, s in shown)
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(6.4, 4.2))
        for (split, name), colour in zip(_SPLITS.items(), COLOURS, strict=False):
            statistics = [
                mean_std(1 - numbers(s.trials, f"final_{split}_accuracy")) for _, s in shown
            ]
            mean, std = np.array(statistics).T
            axis.plot(widths, mean, color=colour, marker="o", markersize=4, lw=2, label=name)
            axis.fill_between(widths, mean - std, mean + std, color=colour, alpha=0.2, lw=0)
            if same:
                published = paper_neyshabur2017.fig4_error(split)
                label = f"{name}, Neyshabur et al. (2017), {published.where}"
                points = PAPER | dict(marker="x", markersize=5)
                axis.plot(published.x, published.value, color=colour, label=label, **points)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.set(xlabel="hidden units", ylabel="error")
        axis.set_ylim(bottom=0)
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        axis.legend()
        return png(figure)
