"""The figures, each as the bytes of a PNG file."""

from __future__ import annotations

import io
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import PercentFormatter

from rethink_jax import paper
from rethink_jax.report.series import Line, Setting, mean_std

# Okabe and Ito's colours: told apart also by colour-blind readers.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B")
_PAPER = dict(color="#222222", linestyle=(0, (1, 1.6)), linewidth=1.6, marker="x", markersize=5)
_STYLE = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.dpi": 160,
}
_MAX_PANELS = 4


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    # The default metadata names the matplotlib version; without it equal results give equal files.
    figure.savefig(buffer, format="png", bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()


def examples(found: dict[str, np.ndarray] | None) -> bytes | None:
    """A few training images under each pixel corruption, one row each."""
    if not found:
        return None
    with plt.rc_context(_STYLE):
        columns = max(len(images) for images in found.values())
        figure, axes = plt.subplots(
            len(found), columns, figsize=(0.8 * columns, 0.86 * len(found)), squeeze=False
        )
        for row, (name, images) in zip(axes, found.items(), strict=True):
            for axis, image in zip(row, images, strict=False):
                axis.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
            for axis in row:
                axis.axis("off")
            row[0].text(
                -0.25, 0.5, name, transform=row[0].transAxes, ha="right", va="center", fontsize=11
            )
        return _png(figure)


def _is_main(setting: Setting) -> bool:
    """Shown as a loss curve: true and random labels, and corrupted images with true labels."""
    return setting.label_prob in (0, 1) if setting.clean_pixels else setting.label_prob == 0


def loss_curves(found: list[Line]) -> bytes | None:
    """Figure 1(a): the mean training loss of each epoch; bands from lowest to highest seed."""
    panels = [(x, [s for s in x.settings if _is_main(s)]) for x in found]
    panels = [(line, main) for line, main in panels if main][:_MAX_PANELS]
    if not panels:
        return None
    order = ("true labels", "shuffled", "gaussian", "random pixels", "random labels")
    names = sorted(
        {s.name for _, main in panels for s in main},
        key=lambda name: (next((i for i, o in enumerate(order) if name.startswith(o)), 9), name),
    )
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(
            1, len(panels), figsize=(6.4 * min(len(panels), 2), 4.2), squeeze=False, sharey=True
        )
        for axis, (line, main) in zip(axes[0], panels, strict=True):
            for setting in sorted(main, key=lambda s: names.index(s.name)):
                colour = _COLOURS[names.index(setting.name) % len(_COLOURS)]
                # Settings that behave alike lie on each other; dashes let the lower one show.
                style = "--" if setting.name.startswith(("shuffled", "random pixels")) else "-"
                losses_TxE = setting.losses_TxE
                epochs = np.arange(1, losses_TxE.shape[1] + 1)
                axis.plot(epochs, losses_TxE.mean(0), style, color=colour, label=setting.name, lw=2)
                axis.fill_between(
                    epochs, losses_TxE.min(0), losses_TxE.max(0), color=colour, alpha=0.2, lw=0
                )
            axis.set(xlabel="epoch", title=line.name if len(panels) > 1 else "")
            axis.set_ylim(bottom=0)
        axes[0][0].set_ylabel("mean training loss (nats)")
        axes[0][-1].legend()
        return _png(figure)


def epochs_to_fit(found: list[Line]) -> bytes | None:
    """Figure 1(b): epochs until the training set is fitted, by label corruption."""
    shown = [(line, s) for line in found if len(s := line.by_label_prob) > 1]
    if not any(np.isfinite(v) for _, s in shown for v in _band(s, _epochs)[1]):
        return None
    with plt.rc_context(_STYLE):
        figure, axis = plt.subplots(figsize=(6.4, 4.2))
        for i, (line, settings) in enumerate(shown):
            _draw_band(axis, settings, _epochs, _COLOURS[i % len(_COLOURS)], line.name, "-")
            _mark_unfitted(axis, settings, _COLOURS[i % len(_COLOURS)])
            if line.network in paper.FIG1_NETWORKS:
                published, base = paper.fig1b(line.network), _band(settings, _epochs)[1][0]
                label = f"paper, {published.where}: ratio, times our value at 0"
                axis.plot(published.x, np.multiply(published.value, base), label=label, **_PAPER)
        axis.set(xlabel="label corruption", ylabel="epochs to fit")
        axis.set_ylim(bottom=0)
        axis.legend()
        return _png(figure)


def test_error(found: list[Line]) -> bytes | None:
    """Figure 1(c): test error by label corruption, against corrupted and against true labels."""
    shown = [(line, s) for line in found if len(s := line.by_label_prob) > 1]
    if not shown:
        return None
    with plt.rc_context(_STYLE):
        figure, axis = plt.subplots(figsize=(6.4, 4.2))
        for i, (line, settings) in enumerate(shown):
            colour, name = _COLOURS[i % len(_COLOURS)], line.name if len(shown) > 1 else ""
            label = f"{name} test labels corrupted alike".strip()
            _draw_band(axis, settings, _corrupted_error, colour, label, "-")
            _draw_band(
                axis, settings, _clean_error, colour, f"{name} true test labels".strip(), "--"
            )
            if line.network in paper.FIG1_NETWORKS:
                published = paper.fig1c(line.network)
                label = f"paper, {published.where} ({line.network})"
                axis.plot(published.x, published.value, label=label, **_PAPER)
        axis.axhline(shown[0][0].chance, color="#888888", linewidth=1, linestyle=(0, (4, 3)))
        axis.text(0.0, shown[0][0].chance, "guessing", va="bottom", color="#666666", fontsize=10)
        axis.set(xlabel="label corruption", ylabel="test error")
        axis.set_ylim(0, 1)
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        axis.legend(loc="lower right")
        return _png(figure)


def _mark_unfitted(axis: Any, settings: list[Setting], colour: str) -> None:
    """A triangle at the last epoch of settings in which some seed did not fit."""
    unfitted = [s for s in settings if _epochs(s).isna().any()]
    if unfitted:
        last = [s.trials["stop.max_epochs"].max() for s in unfitted]
        axis.plot([s.label_prob for s in unfitted], last, "^", color=colour, mfc="none",
                  markersize=8, label="not all seeds fitted by this epoch")  # fmt: skip


def _epochs(setting: Setting) -> Any:
    return setting.trials["epochs_to_fit"]


def _corrupted_error(setting: Setting) -> Any:
    return 1 - setting.trials["final_test_corrupted_accuracy"]


def _clean_error(setting: Setting) -> Any:
    return 1 - setting.trials["final_test_accuracy"]


def _band(settings: list[Setting], value: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    statistics = np.array([mean_std(value(s)) for s in settings])
    return np.array([s.label_prob for s in settings]), statistics[:, 0], statistics[:, 1]


def _draw_band(
    axis: Any, settings: list[Setting], value: Any, colour: str, label: str, style: str
) -> None:
    probs, mean, std = _band(settings, value)
    axis.plot(probs, mean, style, color=colour, marker="o", markersize=4, label=label, linewidth=2)
    axis.fill_between(probs, mean - std, mean + std, color=colour, alpha=0.2, lw=0)
