"""The overtraining peak: errors by examples and weights, along training, and what removes it."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter, PercentFormatter

from rethink_jax.report.figures import COLOURS, STYLE, png

# By name in what was found: words, and the style of the line.
_BY_ALPHA = {
    "minimum norm": ("minimum norm", "-"),
    "large start, end": ("end, large start", "--"),
    "large start, stopped": ("stopped, large start", "--"),
    "stopped": ("stopped", "-"),
    "ridge": ("best ridge", ":"),
}
_OF_IMAGES = {
    "minimum norm": "minimum norm",
    "last step": "last step",
    "best": "best step",
}
_CURVES = (0.5, 1.0, 2.0)
_HIGHEST = 20.0  # Errors near alpha = 1, as a multiple of the lowest, are cut off here.


def figure(found: dict[str, Any]) -> bytes:
    """Lines are theory, points are simulated. A fourth panel where images were trained on.

    found: of `overtraining_report.run`
    """
    panels = [_by_alpha, _along, _times, *([_images] if "images" in found else [])]
    with plt.rc_context(STYLE):
        picture, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 4.0))
        for draw, axis in zip(panels, axes, strict=True):
            draw(axis, found)
            axis.title.set_size(10)
            axis.legend(fontsize=8)
        picture.tight_layout()
        return png(picture)


def _by_alpha(axis: Any, found: dict[str, Any]) -> None:
    fine = found["theory, at more alphas"]
    for (name, (words, style)), colour in zip(_BY_ALPHA.items(), COLOURS, strict=False):
        axis.plot(fine["alpha"], _numbers(fine[name]), style, color=colour, lw=1.6, label=words)
        _points(axis, found["alpha"], found["simulated"][name], colour)
    lowest = min(fine["ridge"])
    axis.set(
        xscale="log", yscale="log", ylim=(0.8 * lowest, _HIGHEST * lowest),
        xlabel="examples / weights", ylabel="squared test error",
        title=f"linear student, signal to noise {found['model']['snr']:g}\n"
        "lines: theory; points: simulated",
    )  # fmt: skip
    _plain_numbers(axis)


def _numbers(values: list[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], float)


def _points(axis: Any, x: list[float], spread: dict[str, Any], colour: str) -> None:
    """Medians, and from the lowest to the highest seed."""
    middle = np.array(spread["median"])
    ends = np.maximum([middle - spread["lowest"], spread["highest"] - middle], 0)
    axis.errorbar(
        x, middle, ends, color=colour, fmt="o", markersize=4, elinewidth=0.8, alpha=0.9
    )  # fmt: skip


def _plain_numbers(axis: Any) -> None:
    for ticks in (axis.xaxis, axis.yaxis):
        ticks.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ticks.set_major_formatter(FormatStrFormatter("%g"))
        ticks.set_minor_formatter(NullFormatter())


def _along(axis: Any, found: dict[str, Any]) -> None:
    alphas = np.array([curve["alpha"] for curve in found["curves"]])
    shown = dict.fromkeys(int(np.argmin(np.abs(np.log(alphas / alpha)))) for alpha in _CURVES)
    for i, colour in zip(shown, COLOURS, strict=False):
        curve = found["curves"][i]
        times = np.array(curve["steps"][1:]) * curve["learning rate"]
        label = f"{curve['alpha']:g} examples / weights"
        axis.plot(times, curve["test, theory"][1:], color=colour, lw=1.6, label=label)
        axis.plot(times[::3], curve["test"][1::3], "o", color=colour, markersize=3.5)
        axis.plot(times, curve["training, theory"][1:], "--", color=colour, lw=1.2)
        axis.plot(times[::3], curve["training"][1::3], "x", color=colour, markersize=3.5)
    axis.set(
        xscale="log", ylim=(0, None), xlabel="time: steps x learning rate",
        title="squared error along training, mean\nover seeds; dashed: of training",
    )  # fmt: skip


def _times(axis: Any, found: dict[str, Any]) -> None:
    for of, colour in zip(found["times"], COLOURS, strict=False):
        label = f"{of['alpha']:g} examples / weights"
        axis.plot(of["snr"], of["theory"], color=colour, lw=1.6, label=label)
        axis.plot(of["snr"], of["simulated"], "o", color=colour, markersize=4)
    logarithmic = [t for of in found["times"] if of["alpha"] != 1 for t in of["theory"]]
    axis.set(
        xscale="log", ylim=(0, 1.5 * max(logarithmic)), xlabel="signal to noise",
        ylabel="time", title="best time to stop",
    )  # fmt: skip


def _images(axis: Any, found: dict[str, Any]) -> None:
    made = found["images"]
    for (name, words), colour in zip(_OF_IMAGES.items(), COLOURS, strict=False):
        spread = made["errors"][name]
        axis.plot(made["ratio"], spread["median"], color=colour, lw=1.2, label=words)
        _points(axis, made["ratio"], spread, colour)
    axis.set(
        xscale="log", ylim=(0, 1), xlabel="random ReLU features / images", ylabel="test error",
        title=f"{made['images']} images of {made['data']['name']},\n"
        f"{made['label noise']:.0%} of labels redrawn",
    )  # fmt: skip
    axis.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
