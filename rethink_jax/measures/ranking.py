"""Which measure ranks networks as their generalization does: rank correlations over a sweep.

On the host, in numpy. Rows [T] are trained networks: a measure of each, and its generalization gap
(or test error). `counts_T` says how often each row is there (a bootstrap draw); a row makes no pair
with itself.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rethink_jax.schema import UserError

# Of what the agreement of pairs is a share.
TIES = (
    # All pairs, tied ones counting 0 ("tau-a"): the formula of Jiang et al. 2019.
    "all_pairs",
    # Pairs without ties, the geometric mean over both rankings ("tau-b"): scipy's.
    "corrected",
)


def _rows(measure_T: np.ndarray, gap_T: np.ndarray, counts_T: np.ndarray | None) -> np.ndarray:
    """float64[3, rows present]: measures, gaps, counts."""
    counts_T = np.ones(len(measure_T)) if counts_T is None else counts_T
    if not len(measure_T) == len(gap_T) == len(counts_T):
        raise UserError(
            f"there are {len(measure_T)} measures, {len(gap_T)} gaps and {len(counts_T)} counts; "
            "give one of each for each network"
        )
    rows_3xT = np.stack([np.asarray(a, np.float64) for a in (measure_T, gap_T, counts_T)])
    if bad := int((~np.isfinite(rows_3xT)).any(0).sum()):
        raise UserError(f"{bad} of {len(measure_T)} rows are not finite; leave them out")
    return rows_3xT[:, rows_3xT[2] > 0]


def kendall(
    measure_T: np.ndarray,
    gap_T: np.ndarray,
    ties: str = "all_pairs",
    counts_T: np.ndarray | None = None,
) -> float:
    """Kendall's tau, -1 to 1: the mean over pairs of networks of sign(dmeasure) sign(dgap).

    ties: of `TIES`. NaN if there is no pair (with "corrected": none without a tie).

    Source: Jiang et al. 2019, Section 3.
    """
    if ties not in TIES:
        raise UserError(f"ties is {ties!r}; it must be one of {', '.join(TIES)}")
    measure_T, gap_T, counts_T = _rows(measure_T, gap_T, counts_T)
    agreement = pairs = measure_pairs = gap_pairs = 0.0
    for measure, gap, count in zip(measure_T, gap_T, counts_T, strict=True):
        measure_signs_T, gap_signs_T = np.sign(measure - measure_T), np.sign(gap - gap_T)
        agreement += count * counts_T @ (measure_signs_T * gap_signs_T)
        measure_pairs += count * counts_T @ np.abs(measure_signs_T)
        gap_pairs += count * counts_T @ np.abs(gap_signs_T)
        pairs += count * (counts_T.sum() - count)
    if ties == "corrected":
        pairs = np.sqrt(measure_pairs * gap_pairs)
    return float(agreement / pairs) if pairs else float("nan")


def _ranks(values_T: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of theirs."""
    _, place_T, number = np.unique(values_T, return_inverse=True, return_counts=True)
    return (np.cumsum(number) - (number - 1) / 2)[place_T]


def spearman(measure_T: np.ndarray, gap_T: np.ndarray, counts_T: np.ndarray | None = None) -> float:
    """Spearman's rho: the correlation of the ranks, ties sharing the mean of theirs.

    NaN if all measures or all gaps are equal.
    """
    measure_T, gap_T, counts_T = _rows(measure_T, gap_T, counts_T)
    times_T = counts_T.astype(int)
    ranks = [_ranks(np.repeat(values, times_T)) for values in (measure_T, gap_T)]
    first_T, second_T = (r - r.mean() if r.size else r for r in ranks)
    size = np.sqrt((first_T @ first_T) * (second_T @ second_T))
    return float(first_T @ second_T / size) if size else float("nan")


Axes = Mapping[str, Sequence[Hashable]]


def _settings(axes: Axes, rows: int) -> list[tuple[Hashable, ...]]:
    """The value of every axis, for each row."""
    for name, values in axes.items():
        if len(values) != rows:
            raise UserError(f"axis {name!r} has {len(values)} values and there are {rows} networks")
        if len(set(values)) < 2:
            raise UserError(f"axis {name!r} has one value only; leave it out")
    return list(zip(*axes.values(), strict=True))


class Granulated(NamedTuple):
    """Kendall's tau along each axis, {name: psi}, and the mean over the axes."""

    psi: dict[str, float]
    mean: float


def granulated_kendall(
    measure_T: np.ndarray,
    gap_T: np.ndarray,
    axes: Axes,
    along: Sequence[str] | None = None,
    ties: str = "all_pairs",
    counts_T: np.ndarray | None = None,
) -> Granulated:
    """psi_i: the mean, over the settings of all other axes, of tau along axis i alone.

    axes: {name: value for each network}, the seed among them if there are several
    along: the axes that psi is wanted of; None: all
    Where networks are missing, settings of which fewer than two are left are left out of the mean.

    Raises:
      UserError: two networks have the same values on all axes.

    Source: Jiang et al. 2019, Section 3.
    """
    settings = _settings(axes, len(measure_T))
    if len(set(settings)) < len(settings):
        raise UserError(
            f"several networks have the same {', '.join(axes)}; add the axis they differ in, as "
            "the seed"
        )
    names = list(axes)
    counts_T = np.ones(len(settings)) if counts_T is None else np.asarray(counts_T)
    measure_T, gap_T = np.asarray(measure_T), np.asarray(gap_T)
    psi = {}
    for name in names if along is None else along:
        if name not in axes:
            raise UserError(f"along has {name!r}; the axes are {', '.join(names)}")
        groups = defaultdict(list)
        for row, setting in enumerate(settings):
            place = names.index(name)
            groups[setting[:place] + setting[place + 1 :]].append(row)
        taus = [kendall(measure_T[g], gap_T[g], ties, counts_T[g]) for g in groups.values()]
        defined = [tau for tau in taus if not np.isnan(tau)]
        psi[name] = float(np.mean(defined)) if defined else float("nan")
    return Granulated(psi, float(np.mean(list(psi.values()))))


# How sure it must be that two gaps really differ, for their pair to count.
WEIGHTINGS = ("hoeffding", "none")


def pair_weights(gap_differences: np.ndarray, test_images: int) -> np.ndarray:
    """(p - 1/2)_+, p = max(0, 1 - 2 exp(-2 n (|dgap| / 2)^2))^2; elementwise, in [0, 1/2].

    p bounds the probability that the two gaps, measured on n test images, differ as they seem to.

    Source: Dziugaite et al. 2020, Section 5 (Hoeffding's inequality) and code.
    """
    within = 1 - 2 * np.exp(-2 * test_images * (np.abs(gap_differences) / 2) ** 2)
    return np.maximum(np.maximum(within, 0) ** 2 - 0.5, 0)


class SignError(NamedTuple):
    """How often a measure orders two networks against their gaps, by environment.

    environments_E: (axis, settings of the one side, settings of the other), for each kept
    errors_E: weighted share of wrong pairs, in [0, 1]   sizes_E: effective number of pairs
    worst, percentile_90, mean: of the errors   left_out: environments of too few pairs
    """

    environments_E: tuple[tuple[str, tuple, tuple], ...]
    errors_E: np.ndarray
    sizes_E: np.ndarray
    worst: float
    percentile_90: float
    mean: float
    left_out: int


def sign_error(
    measure_T: np.ndarray,
    gap_T: np.ndarray,
    axes: Axes,
    test_images: int = 10_000,
    weighting: str = "hoeffding",
    fewest: float = 12.0,
    counts_T: np.ndarray | None = None,
) -> SignError:
    """The share of wrongly ordered pairs where one hyper-parameter changes, and its robust summary.

    An environment is two settings that differ on one axis; its pairs are those of all networks of
    the one with all of the other. A tie counts one half. (The code has each environment in both
    directions, which changes no summary.)

    axes: {name: value for each network}, without the seed   weighting: of `WEIGHTINGS`
    fewest: environments of a smaller effective number of pairs, (sum w)^2 / sum w^2, are left out

    Raises:
      UserError: no environment is left. In a bootstrap draw the summary is NaN then.

    Source: Dziugaite et al. 2020, Sections 4 and 5, and code.
    """
    if weighting not in WEIGHTINGS:
        raise UserError(f"weighting is {weighting!r}; it must be one of {', '.join(WEIGHTINGS)}")
    groups = defaultdict(list)
    for row, setting in enumerate(_settings(axes, len(measure_T))):
        groups[setting].append(row)
    present_3xT = _rows(measure_T, gap_T, None)
    counts_T = np.ones(len(measure_T)) if counts_T is None else np.asarray(counts_T)
    kept, left_out = [], 0
    for one, other in itertools.combinations(groups, 2):
        differing = [n for n, a, b in zip(axes, one, other, strict=True) if a != b]
        if len(differing) != 1:
            continue
        first, second = groups[one], groups[other]
        differences = present_3xT[:2, first, None] - present_3xT[:2, None, second]
        weights = np.outer(counts_T[first], counts_T[second])
        sure = pair_weights(differences[1], test_images) if weighting == "hoeffding" else 1.0
        total, squares = np.sum(weights * sure), np.sum(weights * sure**2)
        size = total**2 / squares if squares else 0.0
        if size < fewest:
            left_out += 1
            continue
        wrong = (1 - np.sign(differences[0]) * np.sign(differences[1])) / 2
        kept.append(((differing[0], one, other), np.sum(weights * sure * wrong) / total, size))
    if not kept and np.all(counts_T == 1):
        raise UserError(
            f"none of {left_out} environments has an effective number of {fewest:g} pairs; train "
            "more seeds, or set fewest lower"
        )
    environments_E, errors, sizes = zip(*kept, strict=True) if kept else ((), (), ())
    errors_E = np.array(errors)
    of = errors_E if kept else np.full(1, np.nan)
    summary = of.max(), np.percentile(of, 90), of.mean()
    return SignError(environments_E, errors_E, np.array(sizes), *map(float, summary), left_out)


class Interval(NamedTuple):
    """A statistic of all rows, and where it lies in most bootstrap draws.

    undefined: draws of which the statistic was NaN; they are left out
    """

    value: float
    low: float
    high: float
    undefined: int


def bootstrap(
    statistic: Callable[[np.ndarray], float],
    units_T: Sequence[Hashable],
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The percentile interval of a statistic when units are drawn with replacement.

    statistic: counts_T -> number, for example
      lambda counts_T: kendall(measure_T, gap_T, counts_T=counts_T)
    units_T: the unit of each row; rows of one unit are drawn together: the trial's number, or the
      seed, or the setting, whatever another sweep would draw anew
    level: the share of draws inside, in (0, 1)

    Raises:
      UserError: fewer than two units, or the statistic is undefined for every draw.

    Source: Efron 1979.
    """
    names = sorted(set(units_T), key=list(units_T).index)
    if len(names) < 2:
        raise UserError(f"there is one unit only, {names}; a bootstrap needs at least two")
    unit_T = np.array([names.index(unit) for unit in units_T])
    rng = np.random.Generator(np.random.Philox(seed))
    values = []
    for _ in range(draws):
        chosen = rng.integers(len(names), size=len(names))
        values.append(statistic(np.bincount(chosen, minlength=len(names))[unit_T]))
    defined = [value for value in values if not np.isnan(value)]
    if not defined:
        raise UserError(
            f"the statistic is undefined for all of {draws} draws of {len(names)} units"
        )
    low, high = np.percentile(defined, [50 * (1 - level), 50 * (1 + level)])
    whole = statistic(np.ones(len(unit_T), int))
    return Interval(float(whole), float(low), float(high), draws - len(defined))
