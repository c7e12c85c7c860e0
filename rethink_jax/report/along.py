"""Measures along training, by epoch."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt

from rethink_jax import measures
from rethink_jax.report.figures import (
    COLOURS,
    STYLE,
    key,
    papers_order,
    png,
    style_of,
    whole_epochs,
)
from rethink_jax.report.series import Line, Setting

_COLUMNS, _MAX_PANELS, _MAX_MARKED = 4, 8, 12


def curves(found: list[Line], measured: pd.DataFrame) -> bytes | None:
    """Each measure by epoch: mean over the seeds of a setting; bands from lowest to highest seed.

    measured: as `records.load_measures_along` gives it; without rows there is no figure
    """
    if measured.empty:
        return None
    lines = sorted(found, key=papers_order)
    shown = [(line, s) for line in lines for s in line.main][: len(COLOURS)]
    tables = {
        name: rows.pivot(index="epoch", columns="trial_id", values="value")
        for name, rows in measured.groupby("measure", sort=False)
    }
    names = _some_of_each_family(tables)
    with plt.rc_context(STYLE):
        columns = min(len(names), _COLUMNS)
        rows = -(-len(names) // columns)
        figure, axes = plt.subplots(
            rows, columns, figsize=(max(3.4 * columns, 6.4), 3.1 * rows), squeeze=False,
            layout="constrained",
        )  # fmt: skip
        for axis, name in zip(axes.flat, names, strict=False):
            for (line, setting), colour in zip(shown, COLOURS, strict=False):
                label = setting.name if len(lines) == 1 else f"{line.name}, {setting.name}"
                _draw(axis, tables[name], setting, colour, label)
            axis.set_title(name, fontsize=10)
            whole_epochs(axis)
        for axis in axes.flat[len(names) :]:
            axis.axis("off")
        for axis in axes[-1]:
            axis.set_xlabel("epoch")
        key(figure, list(axes.flat))
        return png(figure)


def _some_of_each_family(names: Collection[str]) -> list[str]:
    """All of them in the order of their families, or, of too many, every so many of each."""
    families = [[name for name in own if name in names] for own in measures.FAMILIES.values()]
    known = [name for own in families for name in own]
    families = [own for own in [*families, [n for n in names if n not in known]] if own]
    if len(names) <= _MAX_PANELS:
        return [name for own in families for name in own]
    room = max(_MAX_PANELS // len(families), 1)
    return [name for own in families for name in own[:: -(-len(own) // room)]][:_MAX_PANELS]


def _draw(axis: Any, table_ExT: pd.DataFrame, setting: Setting, colour: str, label: str) -> None:
    own = table_ExT.columns.intersection(setting.trials["trial_id"])
    values_ExT = held(table_ExT[own], setting.trials.set_index("trial_id")["epochs"])
    if values_ExT.empty:
        return
    epochs = values_ExT.index.to_numpy()
    low, high = values_ExT.min(axis=1), values_ExT.max(axis=1)
    mean = values_ExT.mean(axis=1, skipna=False)
    marker = "o" if len(epochs) <= _MAX_MARKED else None
    axis.plot(
        epochs, mean, style_of(setting), color=colour, label=label, lw=2, marker=marker,
        markersize=3,
    )  # fmt: skip
    axis.fill_between(epochs, low, high, color=colour, alpha=0.2, lw=0)


def held(values_ExT: pd.DataFrame, ends_T: pd.Series) -> pd.DataFrame:
    """The epochs after which all trials have a value: their own, or, once ended, their last one.

    Args:
      values_ExT: by epoch and trial, NaN where a trial was not measured   ends_T: last epochs
    """
    epochs = values_ExT.index.to_numpy()
    ended_ExT = epochs[:, None] > ends_T[values_ExT.columns].to_numpy()[None]
    held_ExT = values_ExT.where(~ended_ExT, values_ExT.ffill())
    # An infinite value is no reason to leave out the epoch; it is not drawn.
    return held_ExT.dropna().replace([np.inf, -np.inf], np.nan)
