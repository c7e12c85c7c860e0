"""SGD on a linear model: the way to the interpolating weights closest to its start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt

from rethink_jax.report.figures import COLOURS, STYLE, png

_PANELS = {
    "distance": "to the closest interpolating weights,\nover the start's distance",
    "distance to the minimum norm": "to the minimum-norm solution,\nover its norm",
    "residual": "residual, over the targets' norm",
    "component that may not move": "change of the component outside\nthe span of the rows",
}
# By the labels and whether there is momentum.
_LINES = {
    ("true", False): "-",
    ("true", True): "--",
    ("random", False): "-.",
    ("random", True): ":",
}


def figure(found: dict[str, Any]) -> bytes:
    """Four distances along training, one line for each run; a colour for each start.

    found: of `minimum_norm_report.run`; runs that diverged are left out
    """
    runs = [run for run in found["runs"] if not run["diverged"]]
    starts = list(dict.fromkeys(run["start"] for run in runs))
    with plt.rc_context(STYLE):
        picture, axes = plt.subplots(1, len(_PANELS), figsize=(4.1 * len(_PANELS), 3.6))
        for axis, (name, words) in zip(axes, _PANELS.items(), strict=True):
            for run in runs:
                colour = COLOURS[starts.index(run["start"]) % len(COLOURS)]
                _draw(axis, run, name, colour)
            axis.set(xscale="log", yscale="log", xlabel="step", title=words)
            axis.title.set_size(10)
        axes[0].set_xscale("linear")  # Where a constant rate is a straight line.
        _rate(axes[0], runs)
        _legend(axes[1], starts, runs)
        picture.tight_layout()
        return png(picture)


def _draw(axis: Any, run: dict[str, Any], name: str, colour: str) -> None:
    # From zero, the two distances are the same, and the component has no size at first.
    steps, values = np.array(run["steps"][1:]), np.array(run[name][1:], float)
    shown = values > 0
    axis.plot(
        steps[shown], values[shown], _LINES[run["labels"], run["momentum"] > 0], color=colour,
        lw=1.4, label=_label(run),
    )  # fmt: skip


def _label(run: dict[str, Any]) -> str:
    momentum = f", momentum {run['momentum']:g}" if run["momentum"] else ""
    return f"{run['labels']} labels{momentum}"


def _rate(axis: Any, runs: Sequence[dict[str, Any]]) -> None:
    """The predicted rate of the first run, through its last point that is not rounding."""
    if not runs:
        return
    steps, values = np.array(runs[0]["steps"], float), np.array(runs[0]["distance"], float)
    (large,) = np.nonzero(values > 1e-11)
    if not len(large):
        return
    anchor = large[-1]
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        line = values[anchor] * runs[0]["predicted rate"] ** (steps - steps[anchor])
    shown = (steps > 0) & (line < 1) & (line >= values[anchor])
    axis.plot(steps[shown], line[shown], color="#555555", lw=4, alpha=0.35, zorder=0)
    axis.text(
        0.04, 0.06, "grey: predicted rate", transform=axis.transAxes, fontsize=9, color="#555555"
    )


def _legend(axis: Any, starts: Sequence[str], runs: Sequence[dict[str, Any]]) -> None:
    kinds = {_label(run): _LINES[run["labels"], run["momentum"] > 0] for run in runs}
    for number, start in enumerate(starts):
        axis.plot([], [], color=COLOURS[number % len(COLOURS)], lw=2.5, label=f"start {start}")
    handles, names = axis.get_legend_handles_labels()
    shown = [handles[names.index(f"start {start}")] for start in starts]
    grey = [plt.Line2D([], [], color="#555555", linestyle=style) for style in kinds.values()]
    labels = [f"start {start}" for start in starts] + list(kinds)
    axis.legend(shown + grey, labels, fontsize=8, loc="lower left")
