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
from rethink_jax.report.series import Line, Setting, mean_std, numbers

# Okabe and Ito's colours: told apart also by colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B")
_GREY = "#555555"
# The paper's curves: dotted, in the colour of ours of the same network.
PAPER = dict(linestyle=(0, (1, 1.3)), linewidth=1.7)
_POINTS = PAPER | dict(marker="x", markersize=5)
STYLE = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "text.parse_math": False,  # A name with dollars in it is no formula.
    "figure.dpi": 160,
}
_MAX_PANELS = 4
_MAX_LINES = len(COLOURS)
_MAX_ACCURACY_LINES = 4


def png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    # The default metadata names the matplotlib version; without it equal results give equal files.
    figure.savefig(buffer, format="png", bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()


def examples(found: dict[str, np.ndarray] | None) -> bytes | None:
    """A few training images under each pixel corruption, one row each."""
    if not found:
        return None
    with plt.rc_context(STYLE):
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
        return png(figure)


def is_main(setting: Setting) -> bool:
    """Shown as a loss curve: true and random labels, and corrupted images with true labels."""
    return setting.label_prob in (0, 1) if setting.clean_pixels else setting.label_prob == 0


def style_of(setting: Setting) -> str:
    """Settings that behave alike lie on each other; dashes let the lower one show."""
    return "--" if setting.name.startswith(("shuffled", "random pixels")) else "-"


def papers_order(line: Line) -> int:
    """Networks as the paper lists them; after them, others and those with regularizers."""
    names = list(paper.NETWORKS)
    return names.index(line.network) if line.network else len(names)


def loss_curves(found: list[Line]) -> bytes | None:
    """Figure 1(a): the mean training loss of each epoch; bands from lowest to highest seed."""
    panels = [(x, [s for s in x.settings if is_main(s)]) for x in found]
    # The lines with most to compare.
    panels = sorted(panels, key=lambda panel: (-len(panel[1]), papers_order(panel[0])))
    panels = [(line, main) for line, main in panels if main][:_MAX_PANELS]
    if not panels:
        return None
    order = ("true labels", "shuffled", "gaussian", "random pixels", "random labels")
    names = sorted(
        {s.name for _, main in panels for s in main},
        key=lambda name: (next((i for i, o in enumerate(order) if name.startswith(o)), 9), name),
    )
    with plt.rc_context(STYLE):
        width = 6.4 if len(panels) == 1 else 2 + 3.1 * len(panels)
        figure, axes = plt.subplots(
            1, len(panels), figsize=(width, 4.2), squeeze=False, sharey=True, layout="constrained"
        )
        for axis, (line, main) in zip(axes[0], panels, strict=True):
            for setting in sorted(main, key=lambda s: names.index(s.name)):
                colour = COLOURS[names.index(setting.name) % len(COLOURS)]
                _draw_losses(axis, setting, colour, line.network)
            axis.set(xlabel="epoch", title=line.name if len(panels) > 1 else "")
            axis.set_ylim(bottom=0)
        axes[0][0].set_ylabel("mean training loss (nats)")
        key(figure, list(axes[0]))
        return png(figure)


def _draw_losses(axis: Any, setting: Setting, colour: str, network: str | None) -> None:
    losses_TxE = setting.curves["online_loss"]
    epochs = np.arange(1, losses_TxE.shape[1] + 1)
    axis.plot(epochs, losses_TxE.mean(0), style_of(setting), color=colour, label=setting.name, lw=2)
    axis.fill_between(epochs, losses_TxE.min(0), losses_TxE.max(0), color=colour, alpha=0.2, lw=0)
    if network == "inception" and setting.name in _FIG1A:
        published = paper.fig1a(_FIG1A[setting.name])
        axis.plot(published.x, published.value, color=colour, **PAPER)
        axis.plot([], [], color=_GREY, label=f"paper, {published.where}", **PAPER)


# The settings of Figure 1(a), by our names.
_FIG1A = {
    "true labels": "true labels",
    "random labels": "random labels",
    "shuffled pixels": "shuffled pixels",
    "random pixels": "random pixels",
    "gaussian pixels": "gaussian",
}


def key(figure: Any, axes: list[Any], **options: Any) -> None:
    """One legend for all panels, each entry once: in a single panel, or else beneath them."""
    entries = [entry for a in axes for entry in zip(*a.get_legend_handles_labels(), strict=True)]
    unique = {label: handle for handle, label in entries}
    # What stands for all colours comes last.
    labels = sorted(unique, key=lambda label: label.startswith("paper"))
    handles = [unique[label] for label in labels]
    if len(axes) == 1 and len(labels) <= 6:
        axes[0].legend(handles, labels, **options)
    else:
        inches = 0.7 + 0.09 * max(map(len, labels))  # The widest entry, about.
        columns = min(len(labels), max(1, int(figure.get_figwidth() / inches)))
        figure.set_figheight(figure.get_figheight() + 0.25 * (len(labels) // columns))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def _papers_colour(line: Line, shown: list[tuple[Line, Any]], colour: str) -> str:
    """That of our line, unless several lines are of this network."""
    alike = sum(other.network == line.network for other, _ in shown)
    return colour if alike == 1 else _GREY


def _with_levels(found: list[Line]) -> list[tuple[Line, list[Setting]]]:
    """The lines to draw by label corruption: those with most levels, if there are too many."""
    shown = [(line, s) for line in found if len(s := line.by_label_prob) > 1]
    if any(len(s) > 2 for _, s in shown):
        shown = [(line, s) for line, s in shown if len(s) > 2]
    shown = sorted(shown, key=lambda x: (-len(x[1]), papers_order(x[0])))
    return shown[:_MAX_LINES]


def epochs_to_fit(found: list[Line]) -> bytes | None:
    """Figure 1(b): epochs until the training set is fitted, by label corruption.

    Beside it the same relative to true labels, as in the paper, if it has one of the networks.
    """
    shown = _with_levels(found)
    if not any(np.isfinite(v) for _, s in shown for v in _band(s, _epochs)[1]):
        return None
    published = any(line.network in paper.FIG1_NETWORKS for line, _ in shown)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, 1 + published, figsize=(11 if published else 6.4, 4.2), squeeze=False,
            layout="constrained",
        )  # fmt: skip
        for (line, settings), colour in zip(shown, COLOURS, strict=False):
            _draw_band(axes[0][0], settings, _epochs, colour, line.name, "-")
            _mark_unfitted(axes[0][0], settings, colour)
            if published:
                papers = _papers_colour(line, shown, colour)
                _draw_ratio(axes[0][1], line, settings, colour, papers)
        axes[0][0].set(xlabel="label corruption", ylabel="epochs to fit")
        axes[0][0].set_ylim(bottom=0)
        if published:
            axes[0][1].set(xlabel="label corruption", ylabel="relative to true labels")
        key(figure, list(axes[0]))
        return png(figure)


def _draw_ratio(axis: Any, line: Line, settings: list[Setting], colour: str, papers: str) -> None:
    """Epochs to fit, relative to those with true labels, if these are known; and the paper's."""
    base = _band(settings, _epochs)[1][0]
    if settings[0].label_prob == 0 and np.isfinite(base):
        _draw_band(axis, settings, lambda s: _epochs(s) / base, colour, line.name, "-")
    if line.network in paper.FIG1_NETWORKS:
        published = paper.fig1b(line.network)
        axis.plot(published.x, published.value, color=papers, **_POINTS)
        axis.plot([], [], color=_GREY, label=f"paper, {published.where}", **_POINTS)


def test_error(found: list[Line]) -> bytes | None:
    """Figure 1(c): test error by label corruption, against corrupted and against true labels."""
    shown = _with_levels(found)
    if not shown:
        return None
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
        for (line, settings), colour in zip(shown, COLOURS, strict=False):
            label = line.name if len(shown) > 1 else None
            _draw_band(axis, settings, _corrupted_error, colour, label, "-")
            _draw_band(axis, settings, _clean_error, colour, None, "--")
            if line.network in paper.FIG1_NETWORKS:
                published, papers = paper.fig1c(line.network), _papers_colour(line, shown, colour)
                axis.plot(published.x, published.value, color=papers, **_POINTS)
        chance = shown[0][0].chance
        axis.axhline(chance, color="#888888", linewidth=1, linestyle=(0, (4, 3)))
        axis.text(0.0, chance, "guessing", va="bottom", color="#666666", fontsize=10)
        colour = _GREY if len(shown) > 1 else COLOURS[0]
        axis.plot([], [], "-", color=colour, lw=2, label="test labels corrupted alike")
        axis.plot([], [], "--", color=colour, lw=2, label="true test labels")
        if any(line.network in paper.FIG1_NETWORKS for line, _ in shown):
            axis.plot([], [], color=colour, label="paper, Figure 1(c)", **_POINTS)
        axis.set(xlabel="label corruption", ylabel="test error")
        axis.set_ylim(0, 1)
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        key(figure, [axis], loc="lower right")
        return png(figure)


def accuracy_curves(found: list[Line]) -> bytes | None:
    """Figure 2: accuracy along training with true labels, and the highest so far.

    Drawn if there is something to compare: several lines, or training that went on after fitting.
    """
    shown = [(line, s) for line in found for s in line.settings if _has_accuracies(s)]
    beyond = any(not on for _, s in shown for on in s.trials["stop.when_fitted"])
    if not shown or not (beyond or len(shown) > 1):
        return None
    shown = sorted(shown, key=lambda x: papers_order(x[0]))[:_MAX_ACCURACY_LINES]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
        published = [_papers_accuracy(line, setting, "test") for line, setting in shown]
        for (line, setting), own, colour in zip(shown, published, COLOURS, strict=False):
            papers = colour if published.count(own) == 1 else _GREY
            _draw_accuracies(axes, line, setting, colour, papers)
        for axis, split in zip(axes, ("training", "test"), strict=True):
            axis.set(xlabel="thousand steps", ylabel=f"{split} accuracy")
            axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes[1].plot([], [], color=_GREY, lw=0.9, label="highest test accuracy so far")
        key(figure, list(axes))
        return png(figure)


def _converged(setting: Setting) -> Any:
    return (setting.trials["status"] != "diverged").to_numpy()


def _accuracy(setting: Setting, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps in thousands, and the mean accuracy over seeds where all were evaluated."""
    accuracy_TxE = setting.curves[f"{split}_accuracy"][_converged(setting)]
    if split == "train" and not np.isfinite(accuracy_TxE).any():  # a streamed training set
        accuracy_TxE = setting.curves["online_accuracy"][_converged(setting)]
    evaluated_E = np.isfinite(accuracy_TxE).all(0)
    epochs = 1 + np.flatnonzero(evaluated_E)
    return (
        epochs * setting.trials["steps_per_epoch"].iloc[0] / 1000,
        accuracy_TxE[:, evaluated_E].mean(0),
    )


def _has_accuracies(setting: Setting) -> bool:
    is_plain = setting.label_prob == 0 and setting.clean_pixels and _converged(setting).any()
    return is_plain and len(_accuracy(setting, "test")[0]) > 2


def _draw_accuracies(axes: Any, line: Line, setting: Setting, colour: str, papers: str) -> None:
    for axis, split in zip(axes, ("train", "test"), strict=True):
        steps, accuracy_E = _accuracy(setting, split)
        axis.plot(steps, accuracy_E, color=colour, lw=2, label=line.name)
        if split == "test":
            axis.plot(steps, np.maximum.accumulate(accuracy_E), color=colour, lw=0.9)
        if published := _papers_accuracy(line, setting, split):
            # Figure 2(a) is in thousand steps as it is; they are steps of 50 workers.
            x = np.divide(published.x, 1000 if line.network in paper.FIG2_NETWORKS else 1)
            axis.plot(x, published.value, color=papers, **PAPER)
            axis.plot([], [], color=_GREY, label=f"paper, {published.where}", **PAPER)


# The rows of Table 2 that Figure 2(a) shows: (data augmentation, dropout, weight decay).
_FIG2A = {
    ("yes", "yes", "yes"): "all regularizers",
    ("no", "no", "yes"): "weight decay",
    ("no", "no", "no"): "none",
}


def _papers_accuracy(line: Line, setting: Setting, split: str) -> paper.Published | None:
    """The paper's curve for a line of Figure 2, where it has one."""
    if line.network in paper.FIG2_NETWORKS:
        return paper.fig2b(line.network, split)
    cell = paper.cell_of(setting.trials.iloc[0], round(1 / (1 - line.chance)))
    if cell is None or cell.table != "Table 2" or cell.factors not in _FIG2A:
        return None
    return paper.fig2a(_FIG2A[cell.factors], split)


def _mark_unfitted(axis: Any, settings: list[Setting], colour: str) -> None:
    """A triangle at the last epoch of settings in which some seed did not fit."""
    unfitted = [s for s in settings if _epochs(s).isna().any()]
    if unfitted:
        last = [s.trials["stop.max_epochs"].max() for s in unfitted]
        axis.plot(
            [s.label_prob for s in unfitted], last, "^", color=colour, mfc="none", markersize=8
        )
        axis.plot([], [], "^", color=_GREY, mfc="none", markersize=8,
                  label="not all seeds fitted by this epoch")  # fmt: skip


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
    axis: Any, settings: list[Setting], value: Any, colour: str, label: str | None, style: str
) -> None:
    probs, mean, std = _band(settings, value)
    axis.plot(probs, mean, style, color=colour, marker="o", markersize=4, label=label, linewidth=2)
    axis.fill_between(probs, mean - std, mean + std, color=colour, alpha=0.2, lw=0)
