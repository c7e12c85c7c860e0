"""Which measure ranks networks as their generalization does: rank correlations over a sweep.

On the host, in numpy. Rows [T] are trained networks: a measure of each, and its generalization gap
(or test error). `counts_T` says how often each row is there, [T] for one bootstrap draw or [D, T]
for D at once; a row makes no pair with itself.
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


class _Rows(NamedTuple):
    """What a rank correlation is of, checked; counts_T as one draw, or all draws.

    one: whether counts were given of one draw, [T], or not at all
    """

    measure_T: np.ndarray
    gap_T: np.ndarray
    counts_DxT: np.ndarray
    one: bool


def _rows(measure_T: np.ndarray, gap_T: np.ndarray, counts_T: np.ndarray | None) -> _Rows:
    measure_T, gap_T = (np.asarray(a, np.float64) for a in (measure_T, gap_T))
    counts_T = np.ones(len(measure_T)) if counts_T is None else np.asarray(counts_T, np.float64)
    if not len(measure_T) == len(gap_T) == counts_T.shape[-1]:
        raise UserError(
            f"there are {len(measure_T)} measures, {len(gap_T)} gaps and {counts_T.shape[-1]} "
            "counts; give one of each for each network"
        )
    if bad := int((~np.isfinite(measure_T) | ~np.isfinite(gap_T)).sum()):
        raise UserError(f"{bad} of {len(measure_T)} rows are not finite; leave them out")
    return _Rows(measure_T, gap_T, np.atleast_2d(counts_T), counts_T.ndim == 1)


def _quotient(above_D: np.ndarray, below_D: np.ndarray, one: bool) -> np.ndarray:
    """NaN where the denominator is 0."""
    values_D = np.full(len(above_D), np.nan)
    np.divide(above_D, below_D, out=values_D, where=below_D > 0)
    return values_D[0] if one else values_D


def _signs(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """sign(one - other), also where the difference is too large for a float."""
    return np.greater(one, other).astype(np.float64) - np.less(one, other)


# Pairs whose signs are in memory at once, 8 bytes each.
_PAIRS = 2**22


def kendall(
    measure_T: np.ndarray,
    gap_T: np.ndarray,
    ties: str = "all_pairs",
    counts_T: np.ndarray | None = None,
) -> np.ndarray:
    """Kendall's tau, -1 to 1: the mean over pairs of networks of sign(dmeasure) sign(dgap).

    ties: of `TIES`. NaN if there is no pair (with "corrected": none without a tie).

    Returns: float64[], or float64[D] for counts_T [D, T]

    Source: Jiang et al. 2019.
    """
    if ties not in TIES:
        raise UserError(f"ties is {ties!r}; it must be one of {', '.join(TIES)}")
    measure_T, gap_T, counts_DxT, one = _rows(measure_T, gap_T, counts_T)
    agreement_D, measure_pairs_D, gap_pairs_D = np.zeros((3, len(counts_DxT)))
    block = max(1, _PAIRS // max(1, len(measure_T)))
    for start in range(0, len(measure_T), block):
        rows = slice(start, start + block)
        measure_signs_RxT = _signs(measure_T[rows, None], measure_T)
        gap_signs_RxT = _signs(gap_T[rows, None], gap_T)

        def total_D(of_RxT: np.ndarray, rows: slice = rows) -> np.ndarray:
            return ((counts_DxT @ of_RxT.T) * counts_DxT[:, rows]).sum(1)

        agreement_D += total_D(measure_signs_RxT * gap_signs_RxT)
        if ties == "corrected":
            measure_pairs_D += total_D(np.abs(measure_signs_RxT))
            gap_pairs_D += total_D(np.abs(gap_signs_RxT))
    if ties == "corrected":
        pairs_D = np.sqrt(measure_pairs_D * gap_pairs_D)
    else:
        pairs_D = counts_DxT.sum(1) ** 2 - (counts_DxT**2).sum(1)
    return _quotient(agreement_D, pairs_D, one)


def _centred_ranks(values_T: np.ndarray, counts_DxT: np.ndarray) -> np.ndarray:
    """[D, T] ranks less their mean; equal values share the mean of theirs."""
    order_T = np.argsort(values_T, kind="stable")
    _, first_U, number_U = np.unique(values_T[order_T], return_index=True, return_counts=True)
    counts_DxU = np.add.reduceat(counts_DxT[:, order_T], first_U, axis=1)
    ranks_DxU = counts_DxU.cumsum(1) - (counts_DxU - 1) / 2
    ranks_DxT = np.empty(counts_DxT.shape)
    ranks_DxT[:, order_T] = np.repeat(ranks_DxU, number_U, axis=1)
    return ranks_DxT - (counts_DxT.sum(1, keepdims=True) + 1) / 2


def spearman(
    measure_T: np.ndarray, gap_T: np.ndarray, counts_T: np.ndarray | None = None
) -> np.ndarray:
    """Spearman's rho: the correlation of the ranks, ties sharing the mean of theirs.

    NaN if all measures or all gaps are equal.

    Returns: float64[], or float64[D] for counts_T [D, T]
    """
    measure_T, gap_T, counts_DxT, one = _rows(measure_T, gap_T, counts_T)
    if not len(measure_T):
        return _quotient(np.zeros(len(counts_DxT)), np.zeros(len(counts_DxT)), one)
    first_DxT, second_DxT = (_centred_ranks(v, counts_DxT) for v in (measure_T, gap_T))
    sizes = [(counts_DxT * ranks_DxT**2).sum(1) for ranks_DxT in (first_DxT, second_DxT)]
    return _quotient(
        (counts_DxT * first_DxT * second_DxT).sum(1), np.sqrt(sizes[0] * sizes[1]), one
    )


Axes = Mapping[str, Sequence[Hashable]]


def _settings(axes: Axes, rows: int) -> list[tuple[Hashable, ...]]:
    """The value of every axis, for each row."""
    if not axes:
        raise UserError("there are no axes; name at least one thing that the networks differ in")
    for name, values in axes.items():
        if len(values) != rows:
            raise UserError(f"axis {name!r} has {len(values)} values and there are {rows} networks")
        if len(set(values)) < 2:
            raise UserError(f"axis {name!r} has one value only; leave it out")
    return list(zip(*axes.values(), strict=True))


class Granulated(NamedTuple):
    """Kendall's tau along each axis, {name: psi}, and the mean over the axes.

    float64[] each, or float64[D] for counts_T [D, T]
    """

    psi: dict[str, np.ndarray]
    mean: np.ndarray


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
    Where networks are missing, settings of which fewer than two are left are left out of the mean;
    if none is left, psi of that axis and the mean over the axes are NaN.

    Raises:
      UserError: two networks have the same values on all axes, or no such axis.

    Source: Jiang et al. 2019.
    """
    settings = _settings(axes, len(measure_T))
    if len(set(settings)) < len(settings):
        raise UserError(
            f"several networks have the same {', '.join(axes)}; add the axis they differ in, as "
            "the seed"
        )
    measure_T, gap_T, counts_DxT, one = _rows(measure_T, gap_T, counts_T)
    names = list(axes)
    psi = {}
    for name in names if along is None else along:
        if name not in axes:
            raise UserError(f"along has {name!r}; the axes are {', '.join(names)}")
        place, groups = names.index(name), defaultdict(list)
        for row, setting in enumerate(settings):
            groups[setting[:place] + setting[place + 1 :]].append(row)
        taus_GxD = np.stack(
            [kendall(measure_T[g], gap_T[g], ties, counts_DxT[:, g]) for g in groups.values()]
        )
        defined_GxD = ~np.isnan(taus_GxD)
        psi[name] = _quotient(np.nansum(taus_GxD, 0), defined_GxD.sum(0), one)
    return Granulated(psi, np.mean(list(psi.values()), 0))


# How sure it must be that two gaps really differ, for their pair to count.
WEIGHTINGS = ("hoeffding", "none")


def pair_weights(gap_differences: np.ndarray, test_images: int) -> np.ndarray:
    """(p - 1/2)_+, p = max(0, 1 - 2 exp(-2 n (|dgap| / 2)^2))^2; elementwise, in [0, 1/2].

    p bounds the probability that the two gaps, measured on n test images, differ as they seem to.

    Source: Dziugaite et al. 2020 (Hoeffding's inequality), by their code.
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


class _Pairs(NamedTuple):
    """Networks that one axis sets apart.

    environments: as in `SignError`   first_P, second_P: rows   environment_P: each pair's
    """

    environments: list[tuple[str, tuple, tuple]]
    first_P: np.ndarray
    second_P: np.ndarray
    environment_P: np.ndarray


def _pairs(axes: Axes, rows: int) -> _Pairs:
    by_setting = defaultdict(list)
    for row, setting in enumerate(_settings(axes, rows)):
        by_setting[setting].append(row)
    environments, parts = [], [np.zeros((3, 0), int)]
    for place, name in enumerate(axes):
        alike = defaultdict(list)
        for setting in by_setting:
            alike[setting[:place] + setting[place + 1 :]].append(setting)
        for settings in alike.values():
            for one, other in itertools.combinations(settings, 2):
                pairs = list(itertools.product(by_setting[one], by_setting[other]))
                parts.append(np.array([(*pair, len(environments)) for pair in pairs]).T)
                environments.append((name, one, other))
    return _Pairs(environments, *np.concatenate(parts, axis=1))


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
    the one with all of the other. A tie counts one half. Each is listed once; the percentile is
    that of the code, which has each in both directions.

    axes: {name: value for each network}, without the seed   weighting: of `WEIGHTINGS`
    fewest: environments of a smaller effective number of pairs, (sum w)^2 / sum w^2, are left out,
      and those of no weight
    counts_T: one draw

    Raises:
      UserError: no environment is left. With counts_T the summary is NaN then.

    Source: Dziugaite et al. 2020, by their code.
    """
    if weighting not in WEIGHTINGS:
        raise UserError(f"weighting is {weighting!r}; it must be one of {', '.join(WEIGHTINGS)}")
    pairs = _pairs(axes, len(measure_T))
    measure_T, gap_T, counts_1xT, _ = _rows(measure_T, gap_T, counts_T)
    first_P, second_P = pairs.first_P, pairs.second_P
    sure_P = np.ones(len(first_P))
    if weighting == "hoeffding":
        sure_P = pair_weights(gap_T[first_P] - gap_T[second_P], test_images)
    times_P = counts_1xT[0, first_P] * counts_1xT[0, second_P]
    agreement_P = _signs(measure_T[first_P], measure_T[second_P]) * _signs(
        gap_T[first_P], gap_T[second_P]
    )

    def total_E(of_P: np.ndarray) -> np.ndarray:
        return np.bincount(pairs.environment_P, times_P * of_P, len(pairs.environments))

    weight_E, squares_E = total_E(sure_P), total_E(sure_P**2)
    sizes_E = np.divide(weight_E**2, squares_E, out=np.zeros(len(weight_E)), where=weight_E > 0)
    # The size of equal weights is a whole number but for rounding.
    kept_E = (weight_E > 0) & ((sizes_E >= fewest) | np.isclose(sizes_E, fewest))
    if not kept_E.any() and counts_T is None:
        raise UserError(
            f"none of {len(kept_E)} environments has an effective number of {fewest:g} pairs; "
            "train more seeds, or set fewest lower"
        )
    errors_E = total_E(sure_P * (1 - agreement_P) / 2)[kept_E] / weight_E[kept_E]
    of = np.repeat(errors_E, 2) if len(errors_E) else np.full(1, np.nan)
    summary = of.max(), np.percentile(of, 90), of.mean()
    environments_E = tuple(itertools.compress(pairs.environments, kept_E))
    left_out = int((~kept_E).sum())
    return SignError(environments_E, errors_E, sizes_E[kept_E], *map(float, summary), left_out)


class Interval(NamedTuple):
    """A statistic of all rows, and where it lies in most bootstrap draws.

    undefined: draws of which the statistic was NaN; they are left out
    """

    value: float
    low: float
    high: float
    undefined: int


def bootstrap(
    statistic: Callable[[np.ndarray], Sequence[float] | np.ndarray],
    units_T: Sequence[Hashable],
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The percentile interval of a statistic when units are drawn with replacement.

    statistic: float64 counts_DxT, how often each row is in each draw -> [D] numbers, for example
      lambda counts_DxT: kendall(measure_T, gap_T, counts_T=counts_DxT)
      lambda counts_DxT: [sign_error(..., counts_T=counts_T).mean for counts_T in counts_DxT]
    units_T: the unit of each row; rows of one unit are drawn together: the trial's number, or the
      seed, or the setting, whatever another sweep would draw anew
    level: the share of draws inside, in (0, 1)

    Raises:
      UserError: fewer than two units, or the statistic is undefined for every draw.

    Source: Efron 1979.
    """
    if draws < 1 or not 0 < level < 1:
        raise UserError(
            f"draws is {draws} and level {level}; give at least 1 draw and a level between 0 and 1"
        )
    places = {unit: place for place, unit in enumerate(dict.fromkeys(units_T))}
    if len(places) < 2:
        raise UserError(f"there is one unit only, {list(places)}; a bootstrap needs at least two")
    unit_T = np.array([places[unit] for unit in units_T])
    rng = np.random.Generator(np.random.Philox(seed))
    drawn_DxU = rng.multinomial(len(places), np.full(len(places), 1 / len(places)), size=draws)
    values_D = np.asarray(statistic(drawn_DxU.astype(np.float64)[:, unit_T]), float)
    if values_D.shape != (draws,):
        raise UserError(
            f"the statistic gives {values_D.shape} for {draws} draws; it must give one number each"
        )
    defined = values_D[~np.isnan(values_D)]
    if not len(defined):
        raise UserError(
            f"the statistic is undefined for all of {draws} draws of {len(places)} units"
        )
    low, high = np.percentile(defined, [50 * (1 - level), 50 * (1 + level)])
    (whole,) = statistic(np.ones((1, len(unit_T))))
    return Interval(float(whole), float(low), float(high), draws - len(defined))
