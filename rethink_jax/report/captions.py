"""What the captions of a sweep's figures say of it: which lines are drawn, which not, and why."""

from __future__ import annotations

from collections.abc import Iterable

from rethink_jax.report import by_labels, figures
from rethink_jax.report.series import Line, unfitted

_MAX_NAMES = 4


def captions(found: list[Line]) -> dict[str, str]:
    """{name of a figure: sentences}"""
    return {
        "fig1a": _losses(found),
        "fig1b": _fitting(found),
        "fig1c": _levels(found),
        "fig2": _accuracies(found),
    }


def _listed(names: Iterable[str]) -> str:
    """At most so many of the names, each once."""
    every = list(dict.fromkeys(names))
    more = len(every) - _MAX_NAMES
    return "; ".join(every[:_MAX_NAMES]) + (f"; and {more} more" if more > 0 else "")


def _left_out(left: list[str], why: str, all_names: list[str]) -> list[str]:
    """A sentence on the lines that a figure leaves out, if there are any."""
    if not left:
        return []
    drawn = len(all_names) - len(left)
    return [f"Drawn: {drawn} of {len(all_names)} lines, {why}. Not drawn: {_listed(left)}."]


def _losses(found: list[Line]) -> str:
    panels = figures.loss_panels(found)
    drawn = [s.name for line in panels for s in line.main]
    # A level may be the highest of one network and not of another.
    left = [s.name for line in panels for s in line.settings if s not in line.main]
    says = [f"Drawn: {'; '.join(dict.fromkeys(drawn))}."]
    if left:
        says.append(
            "Of each label corruption the highest level is drawn, and corrupted images with true "
            f"labels. Not drawn: {_listed(left)}."
        )
    if any(s.curves["online_loss"].shape[1] == 1 for line in panels for s in line.main):
        says.append("A point: all seeds ended after one epoch.")
    others = [line.name for line in found if line not in panels]
    return " ".join(
        says + _left_out(others, "those with most to compare", [line.name for line in found])
    )


def _levels(found: list[Line]) -> str:
    """Which lines by label corruption are drawn, and what lines from a point to a point are."""
    every = [levels for line in found for levels in line.levels]
    shown = [levels.name for levels in by_labels.shown_levels(found)]
    left = [levels.name for levels in every if levels.name not in shown]
    says = _left_out(left, "those with most levels", [levels.name for levels in every])
    if len(shown) > 1:
        says.append("Wider lines and larger markers lie beneath others, so that all are seen.")
    return " ".join(says)


def _fitting(found: list[Line]) -> str:
    settings = [s for levels in by_labels.shown_levels(found) for s in levels.settings]
    says = [_levels(found)]
    if any(unfitted(s) for s in settings):
        says.append("Points are means over the seeds that fitted; a triangle: not all did.")
    if any(unfitted(s) == len(s.trials) for s in settings):
        says.append("Where no seed fitted there is no point, and no line leads there.")
    return " ".join(filter(None, says))


def _accuracies(found: list[Line]) -> str:
    lines = figures.accuracy_lines(found)
    shown, says = [line.name for line, _ in lines], []
    if left := [line.name for line in found if line.name not in shown]:
        says.append(
            f"Drawn: {_listed(shown)}. Not drawn: {_listed(left)}; a line needs trials with true "
            f"labels on clean images whose test accuracy was taken in {figures.FEWEST_EVALUATED} "
            f"epochs or more, and of these the first {figures.MAX_ACCURACY_LINES} are drawn, the "
            "paper's networks first."
        )
    if online := [line.name for line, setting in lines if figures.is_online(setting)]:
        says.append(
            f"Training accuracy of {_listed(online)}: over each epoch's batches as they were "
            "trained on."
        )
    return " ".join(says)
