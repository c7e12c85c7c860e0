"""Which measure predicts generalization: the networks of a sweep, ranked by each of their measures.

The gap is the test error less the training error, with test labels corrupted as the training labels
are: both are errors on images and labels of one kind.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from rethink_jax import records
from rethink_jax.measures import ranking
from rethink_jax.report.axes import SEEDS, axes_of
from rethink_jax.report.series import numbers

# Networks of different gaps, to rank a measure at all.
FEWEST = 6
DRAWS = 1000
# Where Jiang et al. (2019) end training, as a survey of their work says; the paper was not read.
_JIANG_LOSS = 0.01
_NONE = "–"


class Ranking(NamedTuple):
    """The table; all cells as text, the measures of the largest |tau| first.

    notes: what has to be known to read it   summary: one sentence: which measure is the best
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str]
    summary: str


class Networks(NamedTuple):
    """The measured networks [T] of a sweep.

    measures: a column of float64[T] each, NaN where there is none   gap_T, test_error_T: shares
    axes: {name: value of each network, as text}, of what differs except seeds   seeds_T: as text
    """

    measures: pd.DataFrame
    gap_T: np.ndarray
    test_error_T: np.ndarray
    axes: dict[str, list[str]]
    seeds_T: list[str]

    def some(self, rows: np.ndarray) -> Networks:
        """Those of a mask; axes on which they do not differ are left out."""
        axes = {name: list(itertools.compress(v, rows)) for name, v in self.axes.items()}
        return Networks(
            self.measures[rows],
            self.gap_T[rows],
            self.test_error_T[rows],
            {name: v for name, v in axes.items() if len(set(v)) > 1},
            list(itertools.compress(self.seeds_T, rows)),
        )

    @property
    def units_T(self) -> list[tuple[str, ...]]:
        """What a bootstrap draws: settings, all seeds of one together; if there is one, networks.

        The seeds of a setting are alike, and the question is about settings: those that were run
        stand for others.
        """
        settings = list(zip(*self.axes.values(), strict=True))
        return settings or [(str(row),) for row in range(len(self.gap_T))]

    @property
    def axes_with_seed(self) -> dict[str, list[str]]:
        return self.axes | ({"seed": self.seeds_T} if len(set(self.seeds_T)) > 1 else {})


class _Shown(NamedTuple):
    """What the table has columns of, and what decides them.

    along: the axes on which alone some two networks differ   fewest: effective pairs of an
    environment   test_images: that the gaps were measured on
    """

    header: list[str]
    along: list[str]
    fewest: float
    test_images: int


def table(
    done: pd.DataFrame, results: records.Results, measures: pd.DataFrame | None
) -> Ranking | None:
    """The table of a workdir, or None if no measure has `FEWEST` networks that differ in their gap.

    done: the rows of results of the finished trials   measures: see `records.load_measures`
    """
    if measures is None:
        return None
    networks, ranked = _networks(done, measures)
    if _too_few(networks):
        return None
    data = results.run["data"]
    shown = _shown(networks, min(data[name]["test"] for name in set(ranked["data.name"])))
    found = [_row(networks, name, shown) for name in networks.measures]
    found.sort(key=lambda row: -row.size)
    if found[0].size < 0:
        return None
    notes = _notes(networks, shown)
    notes.insert(2, _fitting(ranked))
    title = "Which measure predicts generalization"
    rows = [row.cells for row in found]
    return Ranking(title, shown.header, rows, notes, _sentence(found, len(ranked)))


def _too_few(networks: Networks) -> bool:
    return len(set(networks.gap_T)) < FEWEST


# --- what is ranked -------------------------------------------------------------------------------


def _networks(done: pd.DataFrame, measures: pd.DataFrame) -> tuple[Networks, pd.DataFrame]:
    """The networks that have a measure and a gap, and their rows of results."""
    train, test, corrupted = (
        1 - numbers(done, f"final_{split}_accuracy")
        for split in ("train", "test", "test_corrupted")
    )
    # Accuracies are of float32: a difference beyond its precision is a tie.
    gap = (corrupted - train).round(6)
    rows = gap.notna() & test.notna() & done["trial_id"].isin(measures.index)
    done = done[rows]
    seeds = done[[c for c in SEEDS if c in done]].map(str)
    found = Networks(
        measures.loc[done["trial_id"]].reset_index(drop=True),
        gap[rows].to_numpy(),
        test[rows].round(6).to_numpy(),
        axes_of(done),
        [" ".join(row) for row in seeds.to_numpy()],
    )
    return found, done


def _shown(networks: Networks, test_images: int) -> _Shown:
    header = ["measure", "networks", "τ, gap", "τ, test error", "Spearman's ρ, gap"]
    if not networks.axes:
        return _Shown(header, [], 0, test_images)
    axes, gap_T = networks.axes, networks.gap_T
    psi = ranking.granulated_kendall(gap_T, gap_T, networks.axes_with_seed, list(axes)).psi
    along = [name for name in axes if not np.isnan(psi[name])]
    header += [f"ψ {name}" for name in along] + ["ψ, mean"] * bool(along)
    header += ["sign-error, worst", "sign-error, mean", "worst between"]
    # As many effective pairs as Dziugaite et al. ask for, if some environment has them.
    enough = _sign_error(networks, gap_T, test_images, 12).environments_E
    return _Shown(header, along, 12 if enough else 0, test_images)


# --- the numbers of a measure ---------------------------------------------------------------------


class _Row(NamedTuple):
    """size: |tau|, or -1 if there are too few networks   sure: its interval excludes 0"""

    size: float
    sure: bool
    cells: list[str]


def _row(networks: Networks, name: str, shown: _Shown) -> _Row:
    own = networks.some(networks.measures[name].notna().to_numpy())
    measure_T, gap_T = own.measures[name].to_numpy(), own.gap_T
    cells = [name, str(len(gap_T))]
    if _too_few(own):
        return _Row(-1, False, cells + [_NONE] * (len(shown.header) - 2))
    tau = _interval(measure_T, gap_T, own.units_T)
    cells += [
        _interval_text(tau),
        _interval_text(_interval(measure_T, own.test_error_T, own.units_T)),
    ]
    cells += [_text(ranking.spearman(measure_T, gap_T))]
    if shown.along:
        here = [axis for axis in shown.along if axis in own.axes]
        psi = dict.fromkeys(shown.along, np.nan)
        if here:
            psi |= ranking.granulated_kendall(measure_T, gap_T, own.axes_with_seed, here).psi
        cells += [_text(value) for value in (*psi.values(), np.mean(list(psi.values())))]
    if networks.axes:
        # A measure that falls as the gap grows predicts it as well: by its negative.
        by_sign_T = -measure_T if tau.value < 0 else measure_T
        cells += _error_cells(own, by_sign_T, shown)
    return _Row(abs(tau.value), tau.low > 0 or tau.high < 0, cells)


def _error_cells(own: Networks, measure_T: np.ndarray, shown: _Shown) -> list[str]:
    """The worst and the mean sign-error, and the environment of the worst in words."""
    if not own.axes:
        return [_NONE] * 3
    found = _sign_error(own, measure_T, shown.test_images, shown.fewest)
    if not found.environments_E:
        return [_NONE] * 3
    axis, one, other = found.environments_E[int(np.argmax(found.errors_E))]
    place = list(own.axes).index(axis)
    same = [f"{n} {v}" for n, v in zip(own.axes, one, strict=True) if n != axis]
    where = f"{axis} {one[place]} against {other[place]}" + f" ({', '.join(same)})" * bool(same)
    return [f"{found.worst:.2f}", f"{found.mean:.2f}", where]


def _sign_error(
    networks: Networks, measure_T: np.ndarray, test_images: int, fewest: float
) -> ranking.SignError:
    """With counts, so that it is NaN where there is no environment."""
    ones = np.ones(len(measure_T))
    return ranking.sign_error(
        measure_T, networks.gap_T, networks.axes, test_images, fewest=fewest, counts_T=ones
    )


def _interval(measure_T: np.ndarray, gap_T: np.ndarray, units_T: Sequence) -> ranking.Interval:
    return ranking.bootstrap(
        lambda counts_DxT: ranking.kendall(measure_T, gap_T, counts_T=counts_DxT), units_T, DRAWS
    )


# --- text -----------------------------------------------------------------------------------------


def _text(value: float) -> str:
    return f"{round(float(value), 2) + 0.0:+.2f}" if np.isfinite(value) else _NONE  # never "-0.00"


def _interval_text(interval: ranking.Interval) -> str:
    value, low, high = map(_text, interval[:3])
    return value if value == _NONE else f"{value} [{low}, {high}]"


def _sentence(found: Sequence[_Row], networks: int) -> str:
    """Which measure is the best of those that differ from none; found: the largest |tau| first."""
    ranked, sure = [row for row in found if row.size >= 0], [row for row in found if row.sure]
    of = f"Of {len(ranked)} measure{'s' * (len(ranked) > 1)}, "
    if not sure:
        return (
            f"{of}none is distinguishable from one that says nothing of the generalization gap: "
            f"the 95% interval of Kendall's tau includes 0 for each ({networks} networks at most)."
        )
    best, alike = sure[0], sum(math.isclose(r.size, sure[0].size) for r in sure[1:])
    name, tau = best.cells[0], best.cells[2]
    others = f" ({alike} other{'s' * (alike > 1)} as well)" if alike else ""
    least = "" if ranked[0].sure else ", of those whose 95% interval excludes 0"
    return (
        f"{of}{name} ranks the generalization gap best{others}{least}: Kendall's tau {tau} "
        f"over {best.cells[1]}{f' of {networks}' * (best.cells[1] != str(networks))} networks."
    )


def _fitting(ranked: pd.DataFrame) -> str:
    """How far the networks were trained, beside what the authors of the method do."""
    accuracy, loss = (numbers(ranked, f"final_train_{n}") for n in ("accuracy", "loss"))
    short, count = int((accuracy < 1).sum()), len(ranked)
    lowest = (
        f" (the lowest: {accuracy.min():.1%}); they are ranked with the others" if short else ""
    )
    below = f"{int((loss <= _JIANG_LOSS).sum())} of these {count} are there"
    return (
        f"{short} of {count} networks have not reached 100% training accuracy{lowest}. Jiang et "
        f"al. (2019) train all of theirs to a cross-entropy of {_JIANG_LOSS} (from a survey, not "
        f"read in the paper); {below if loss.notna().any() else 'here it was not measured'}."
    )


def _notes(networks: Networks, shown: _Shown) -> list[str]:
    units = len(set(networks.units_T))
    drawn = f"{units} settings, the seeds of one together" if networks.axes else f"{units} networks"
    notes = [
        f"{len(networks.gap_T)} networks are measured; each measure is ranked over those that have "
        f"a number of it; – where fewer than {FEWEST} of these differ in their gap. Gap: test "
        "error less training error, as shares of images, with test labels corrupted as the "
        "training labels are. Test error: by true labels.",
        "τ: Kendall's, tied pairs counting 0 (Jiang et al. 2019), the largest |τ| first; negative: "
        f"the larger the measure, the smaller the gap. In brackets: 95% of {DRAWS} bootstrap "
        f"draws of {drawn}; for each measure alone, so the best of many looks better than it is.",
    ]
    if shown.along:
        notes.append(
            "ψ: τ among networks that differ on one axis only, mean over the settings of the others"
            " (Jiang et al. 2019). Fields that always change together are one axis."
        )
    if networks.axes:
        which = (
            f"Environments of at least {shown.fewest} effective pairs count."
            if shown.fewest
            else "No environment has 12 effective pairs, as the authors ask for; all count."
        )
        notes.append(
            "Sign-error (Dziugaite et al. 2020): the share of pairs that the measure (where τ is "
            "negative: its negative) orders wrongly, between two settings that differ on one axis; "
            "a pair weighs the more, the surer its gaps differ, measured on "
            f"{shown.test_images:,} test images. {which}"
        )
    return notes
