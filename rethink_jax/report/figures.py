"""The figures, each as the bytes of a PNG file."""

from __future__ import annotations

import io
import math
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.layout_engine import PlaceHolderLayoutEngine
from matplotlib.ticker import LogFormatterSciNotation, MaxNLocator, PercentFormatter

from rethink_jax import paper
from rethink_jax.report.series import Levels, Line, Setting

# Okabe and Ito's colours: told apart also by colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B")
GREY = "#555555"
# The paper's curves: dotted, in the colour of ours of the same network.
PAPER = dict(linestyle=(0, (1, 1.3)), linewidth=1.7)
POINTS = PAPER | dict(marker="x", markersize=5)
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
UNFITTED = "not all seeds fitted by this epoch"
_MAX_PANELS = 4
MAX_ACCURACY_LINES = 4


class _PlainPowers(LogFormatterSciNotation):
    """Powers of ten as plain text: without formulas matplotlib prints the source of its own."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        if not super().__call__(x, pos):
            return ""  # No label at this tick.
        exponent = math.floor(math.log10(abs(x)) + 1e-9) if x else 0
        if abs(exponent) <= 3:
            return f"{x:g}"
        factor = f"{x / 10**exponent:g}"
        return f"{factor}×" * (factor != "1") + f"10{str(exponent).translate(_RAISED)}"


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _plain_powers(ticks: Any) -> None:
    for of, put in (
        (ticks.get_major_formatter(), ticks.set_major_formatter),
        (ticks.get_minor_formatter(), ticks.set_minor_formatter),
    ):
        if isinstance(of, LogFormatterSciNotation):
            put(_PlainPowers(10, labelOnlyBase=of.labelOnlyBase))


def png(figure: Any) -> bytes:
    for axis in figure.axes:
        _plain_powers(axis.xaxis)
        _plain_powers(axis.yaxis)
    if isinstance(figure.get_layout_engine(), PlaceHolderLayoutEngine):
        # Again, as the labels have other sizes now; from what it was, one pass is not enough.
        figure.tight_layout()
        figure.tight_layout()
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


def style_of(setting: Setting) -> str:
    """Settings that behave alike lie on each other; dashes let the lower one show."""
    return "--" if setting.name.startswith(("shuffled", "random pixels")) else "-"


def papers_order(line: Line | Levels) -> int:
    """Networks as the paper lists them; after them, others and those with regularizers."""
    names = list(paper.NETWORKS)
    return names.index(line.network) if line.network else len(names)


def loss_panels(found: list[Line]) -> list[Line]:
    """The lines whose losses are drawn: those with most to compare."""
    panels = [line for line in found if line.main]
    return sorted(panels, key=lambda x: (-len(x.main), papers_order(x)))[:_MAX_PANELS]


def loss_curves(found: list[Line]) -> bytes | None:
    """Figure 1(a): the mean training loss of each epoch; bands from lowest to highest seed."""
    panels = [(line, line.main) for line in loss_panels(found)]
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
                turn, place = divmod(names.index(setting.name), len(COLOURS))
                style = ":" if turn else style_of(setting)  # The colours are used up.
                _draw_losses(axis, setting, COLOURS[place], style, line.network)
            axis.set(xlabel="epoch", title=line.name if len(panels) > 1 else "")
            whole_epochs(axis)
        axes[0][0].set_ylim(bottom=0)  # Once all are drawn: it ends the fitting of the axis.
        axes[0][0].set_ylabel("mean training loss (nats)")
        key(figure, list(axes[0]))
        return png(figure)


def _draw_losses(axis: Any, setting: Setting, colour: str, style: str, network: str | None) -> None:
    losses_TxE = setting.curves["online_loss"]
    epochs = np.arange(1, losses_TxE.shape[1] + 1)
    marker = "o" if len(epochs) == 1 else None  # One point makes no line.
    axis.plot(
        epochs, losses_TxE.mean(0), style, color=colour, label=setting.name, lw=2, marker=marker
    )  # fmt: skip
    axis.fill_between(epochs, losses_TxE.min(0), losses_TxE.max(0), color=colour, alpha=0.2, lw=0)
    if network == "inception" and setting.name in _FIG1A:
        published = paper.fig1a(_FIG1A[setting.name])
        axis.plot(published.x, published.value, color=colour, **PAPER)
        axis.plot([], [], color=GREY, label=f"paper, {published.where}", **PAPER)


def whole_epochs(axis: Any) -> None:
    """Ticks at whole epochs only."""
    axis.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1))


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
    labels = sorted(unique, key=lambda label: (label.startswith("paper"), label == UNFITTED))
    handles = [unique[label] for label in labels]
    if len(axes) == 1 and len(labels) <= 6:
        axes[0].legend(handles, labels, **options)
    else:
        inches = 0.7 + 0.09 * max(map(len, labels))  # The widest entry, about.
        columns = min(len(labels), max(1, int(figure.get_figwidth() / inches)))
        figure.set_figheight(figure.get_figheight() + 0.25 * (len(labels) // columns))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def accuracy_lines(found: list[Line]) -> list[tuple[Line, Setting]]:
    """The lines of Figure 2, if there is something to compare: several, or training that went on
    after fitting. Each with its trials on true labels and clean images."""
    shown = [(line, s) for line in found for s in line.settings if _has_accuracies(s)]
    beyond = any(not on for _, s in shown for on in s.trials["stop.when_fitted"])
    if not (beyond or len(shown) > 1):
        return []
    return sorted(shown, key=lambda x: papers_order(x[0]))[:MAX_ACCURACY_LINES]


def accuracy_curves(found: list[Line]) -> bytes | None:
    """Figure 2: accuracy along training with true labels, and the highest so far."""
    if not (shown := accuracy_lines(found)):
        return None
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
        published = [_papers_accuracy(line, setting, "test") for line, setting in shown]
        # The paper's curves are in thousand steps.
        longest = max(_accuracy(s, "test")[0][-1] for _, s in shown)
        unit = 1000 if any(published) or longest >= 1000 else 1
        for (line, setting), own, colour in zip(shown, published, COLOURS, strict=False):
            papers = colour if published.count(own) == 1 else GREY
            _draw_accuracies(axes, line, setting, colour, papers, unit)
        for axis, split in zip(axes, ("training", "test"), strict=True):
            axis.set(xlabel="thousand steps" if unit > 1 else "steps", ylabel=f"{split} accuracy")
            axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes[1].plot([], [], color=GREY, lw=0.9, label="highest test accuracy so far")
        key(figure, list(axes))
        return png(figure)


def _converged(setting: Setting) -> Any:
    return (setting.trials["status"] != "diverged").to_numpy()


def _accuracy(setting: Setting, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and the mean accuracy over seeds where all were evaluated."""
    accuracy_TxE = setting.curves[f"{split}_accuracy"][_converged(setting)]
    if split == "train" and is_online(setting):
        accuracy_TxE = setting.curves["online_accuracy"][_converged(setting)]
    evaluated_E = np.isfinite(accuracy_TxE).all(0)
    epochs = 1 + np.flatnonzero(evaluated_E)
    return (
        epochs * setting.trials["steps_per_epoch"].iloc[0],
        accuracy_TxE[:, evaluated_E].mean(0),
    )


FEWEST_EVALUATED = 3  # Epochs that make a curve of accuracies.


def is_online(setting: Setting) -> bool:
    """Whether a setting's training set was never evaluated as a whole, as a streamed one."""
    return not np.isfinite(setting.curves["train_accuracy"][_converged(setting)]).any()


def _has_accuracies(setting: Setting) -> bool:
    is_plain = not setting.labels and setting.clean_pixels and _converged(setting).any()
    return is_plain and len(_accuracy(setting, "test")[0]) >= FEWEST_EVALUATED


def _draw_accuracies(
    axes: Any, line: Line, setting: Setting, colour: str, papers: str, unit: int
) -> None:
    """unit: steps of the axis"""
    for axis, split in zip(axes, ("train", "test"), strict=True):
        steps, accuracy_E = _accuracy(setting, split)
        steps = steps / unit
        axis.plot(steps, accuracy_E, color=colour, lw=2, label=line.name)
        if split == "test":
            axis.plot(steps, np.maximum.accumulate(accuracy_E), color=colour, lw=0.9)
        if published := _papers_accuracy(line, setting, split):
            # Figure 2(a) is in thousand steps as it is; they are steps of 50 workers.
            x = np.divide(published.x, 1000 if line.network in paper.FIG2_NETWORKS else 1)
            axis.plot(x, published.value, color=papers, **PAPER)
            axis.plot([], [], color=GREY, label=f"paper, {published.where}", **PAPER)


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
