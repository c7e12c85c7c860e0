"""Trials that differ only in what decides nothing: one of them is evidence, the others are copies.

The label corruption, where no label is corrupted; what happens to pixels, where it happens to none;
the seed of both, where there is neither; what decays, where nothing does.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import pandas as pd

from rethink_jax import inputs
from rethink_jax.report.series import field_columns

_PIXELS = ("corruption.pixels", "corruption.pixel_fraction", "corruption.pixel_strength")


class Distinct(NamedTuple):
    """trials: rows of results, one of each training   copies: how many others there are
    fields: what these differ in from the row that stands for them"""

    trials: pd.DataFrame
    copies: int
    fields: list[str]

    @property
    def sentence(self) -> str:
        """What was left out; empty if nothing."""
        if not self.copies:
            return ""
        trials = "1 more trial is a copy" if self.copies == 1 else f"{self.copies} more are copies"
        return (
            f"{trials} of these: all that differs is {', '.join(self.fields)}, without an effect "
            "there. Each training is drawn and counted once."
        )


def idle_fields(trial: Any) -> list[str]:
    """The fields that decide nothing in a trial's training; trial: a row of results."""
    # A corruption of the user's own may change labels at probability 0, too.
    labels = trial["corruption.label_prob"] == 0 and not trial.get("test_label_noise", 0) > 0
    pixels = inputs.pixel_spec(trial).is_identity
    idle = ["corruption.labels"] * labels + [*_PIXELS] * pixels
    if labels and pixels and not trial.get("data.num_confusion"):
        idle.append("corruption.seed")
    if trial.get("optimizer.weight_decay") == 0:
        idle.append("optimizer.decay_params")
    return idle


def distinct(done: pd.DataFrame, preferred: Collection[str] = ()) -> Distinct:
    """One of the finished trials for each training, in their order: the first, or a preferred one.

    done: rows of results   preferred: ids of trials, as of those that are measured
    """
    fields, trials = field_columns(done), done.to_dict("records")
    stand: dict[tuple[str, ...], int] = {}  # The place of the row that stands for each training.
    keys = [_key(trial, fields) for trial in trials]
    for place in sorted(range(len(trials)), key=lambda i: trials[i]["trial_id"] not in preferred):
        stand.setdefault(keys[place], place)
    kept = [stand[key] for key in keys]
    differ = {
        field
        for trial, place in zip(trials, kept, strict=True)
        for field in fields
        if repr(trial[field]) != repr(trials[place][field])
    }
    rows = done.iloc[sorted(stand.values())]
    return Distinct(rows, len(done) - len(rows), [f for f in fields if f in differ])


def _key(trial: dict[str, Any], fields: list[str]) -> tuple[str, ...]:
    """Equal for trials of equal training."""
    idle = idle_fields(trial)
    return tuple("" if field in idle else repr(trial[field]) for field in fields)
