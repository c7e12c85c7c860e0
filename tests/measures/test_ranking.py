"""Rank correlations against scipy's, loops over pairs, and numbers worked out by hand."""

import itertools

import numpy as np
import pytest
import scipy.stats

from rethink_jax.measures import ranking
from rethink_jax.schema import UserError

SIZE = 30


def drawn(seed, values=None):
    """Measures and gaps that agree somewhat; of few different values there are ties."""
    rng = np.random.Generator(np.random.Philox(seed))
    measure_T = rng.standard_normal(SIZE)
    gap_T = measure_T + rng.standard_normal(SIZE)
    if values:
        measure_T, gap_T = np.round(measure_T * values), np.round(gap_T * values)
    return measure_T, gap_T


def tau_by_pairs(measure_T, gap_T):
    signs = [
        np.sign(measure_T[i] - measure_T[j]) * np.sign(gap_T[i] - gap_T[j])
        for i, j in itertools.combinations(range(len(measure_T)), 2)
    ]
    return np.mean(signs)


CORRELATIONS = {
    "all_pairs": ranking.kendall,
    "corrected": lambda m, g, **k: ranking.kendall(m, g, "corrected", **k),
    "spearman": ranking.spearman,
}


# --- Kendall and Spearman ------------------------------------------------------------------------


@pytest.mark.parametrize("values", [None, 1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_correlations_are_those_of_scipy(seed, values):
    measure_T, gap_T = drawn(seed, values)
    corrected = scipy.stats.kendalltau(measure_T, gap_T).statistic
    np.testing.assert_allclose(ranking.kendall(measure_T, gap_T, "corrected"), corrected)
    np.testing.assert_allclose(
        ranking.spearman(measure_T, gap_T), scipy.stats.spearmanr(measure_T, gap_T).statistic
    )
    tau = ranking.kendall(measure_T, gap_T)
    np.testing.assert_allclose(tau, tau_by_pairs(measure_T, gap_T))
    # Without ties the two are one.
    assert np.isclose(tau, corrected) == (values is None)


def test_signs_in_several_blocks(monkeypatch):
    measure_T, gap_T = drawn(0, 1)
    counts_DxT = np.random.Generator(np.random.Philox(1)).integers(3, size=(4, SIZE))
    for ties in ranking.TIES:
        whole = ranking.kendall(measure_T, gap_T, ties, counts_DxT)
        monkeypatch.setattr(ranking, "_PAIRS", 7 * SIZE)
        np.testing.assert_array_equal(ranking.kendall(measure_T, gap_T, ties, counts_DxT), whole)
        monkeypatch.undo()


@pytest.mark.parametrize("name", CORRELATIONS)
def test_extremes(name):
    of, ordered = CORRELATIONS[name], np.arange(5.0)
    assert of(ordered, np.exp(ordered)) == pytest.approx(1, abs=1e-15)
    assert of(ordered, -ordered) == pytest.approx(-1, abs=1e-15)
    assert of([3, 4], [6, 5]) == pytest.approx(-1, abs=1e-15)
    with np.errstate(all="raise"):  # Differences that are no floats any more.
        assert of([-1.7e308, 0, 1.7e308], [1, 2, 3]) == pytest.approx(1, abs=1e-15)
    # Nothing to order: a share of all pairs is 0, the others have no pair.
    assert np.array_equal(
        of(ordered, np.ones(5)), 0.0 if name == "all_pairs" else np.nan, equal_nan=True
    )
    for rows in (0, 1):
        assert np.isnan(of(ordered[:rows], ordered[:rows]))


@pytest.mark.parametrize("name", CORRELATIONS)
def test_counts_are_repeated_rows(name):
    measure_T, gap_T = drawn(3, 2)
    counts_DxT = np.random.Generator(np.random.Philox(4)).integers(4, size=(6, SIZE))
    found_D = CORRELATIONS[name](measure_T, gap_T, counts_T=counts_DxT)
    assert found_D.shape == (6,)
    for counts_T, found in zip(counts_DxT, found_D, strict=True):
        repeated = [np.repeat(v, counts_T) for v in (measure_T, gap_T)]
        expected = CORRELATIONS[name](*repeated)
        if name == "all_pairs":
            # A copy makes no pair with its row.
            pairs = counts_T.sum() * (counts_T.sum() - 1)
            expected *= pairs / (pairs - np.sum(counts_T * (counts_T - 1)))
        np.testing.assert_allclose(found, expected)
        np.testing.assert_allclose(
            CORRELATIONS[name](measure_T, gap_T, counts_T=counts_T), expected
        )


@pytest.mark.parametrize("name", CORRELATIONS)
def test_a_draw_of_one_row_has_no_correlation(name):
    counts_DxT = np.array([[3, 0, 0], [1, 1, 1]])
    found_D = CORRELATIONS[name]([1, 2, 3], [1, 2, 3], counts_T=counts_DxT)
    np.testing.assert_allclose(found_D, [np.nan, 1])


# --- granulated ----------------------------------------------------------------------------------

# Width by rate; the measure orders each row of it, and of the columns one of three pairs.
WIDTHS = (8, 8, 8, 16, 16, 16)
RATES = (0.1, 0.2, 0.3, 0.1, 0.2, 0.3)
GAPS = np.array([1, 2, 3, 4, 5, 6.0])
MEASURES = np.array([4, 5, 7, 1, 2, 8.0])


def test_granulated_by_hand():
    axes = {"width": WIDTHS, "rate": RATES}
    found = ranking.granulated_kendall(MEASURES, GAPS, axes)
    # Along width: 4 > 1, 5 > 2, 7 < 8, so (-1 - 1 + 1) / 3; along rate 1 for both widths.
    assert found.psi == {"width": pytest.approx(-1 / 3), "rate": 1}
    assert found.mean == pytest.approx(1 / 3)
    only = ranking.granulated_kendall(MEASURES, GAPS, axes, along=["width"])
    assert only.psi == {"width": pytest.approx(-1 / 3)} and only.mean == only.psi["width"]


def test_granulated_where_networks_are_missing():
    kept = [0, 1, 2, 3, 5]  # Width 16 at rate 0.2 is not there.
    axes = {"width": [WIDTHS[i] for i in kept], "rate": [RATES[i] for i in kept]}
    measure_T = MEASURES[kept].copy()
    measure_T[-1] = 0
    found = ranking.granulated_kendall(measure_T, GAPS[kept], axes)
    # Along width 4 > 1 and 7 > 0 are left; along rate all of width 8, and 1 > 0.
    assert found.psi == {"width": -1, "rate": (1 - 1) / 2}
    # Alone on its axis, it is tau.
    found = ranking.granulated_kendall(MEASURES, GAPS, {"network": range(6)})
    assert found.psi["network"] == found.mean == ranking.kendall(MEASURES, GAPS)
    # Nothing differs in its width alone.
    axes = {"width": (8, 8, 16, 16), "rate": (0.1, 0.2, 0.3, 0.4)}
    found = ranking.granulated_kendall(MEASURES[:4], GAPS[:4], axes)
    assert np.isnan(found.psi["width"]) and np.isnan(found.mean)
    assert found.psi["rate"] == 0


def test_granulated_with_ties_and_counts():
    axes = {"width": WIDTHS, "rate": RATES}
    tied_T = np.array([4, 4, 7, 4, 5, 8.0])
    for ties, along_width in (("all_pairs", 2 / 3), ("corrected", 1)):
        found = ranking.granulated_kendall(tied_T, GAPS, axes, ties=ties)
        assert found.psi["width"] == pytest.approx(along_width)
    # Without the first network no pair is left at rate 0.1; with the last alone, none at all.
    counts_DxT = np.array([[0, 2, 1, 1, 1, 1], [0, 0, 0, 0, 0, 5], [1, 1, 1, 1, 1, 1]])
    found = ranking.granulated_kendall(MEASURES, GAPS, axes, counts_T=counts_DxT)
    np.testing.assert_allclose(found.psi["width"], [0, np.nan, -1 / 3])
    np.testing.assert_allclose(found.psi["rate"], [1, np.nan, 1])
    np.testing.assert_allclose(found.mean, [0.5, np.nan, 1 / 3])


def test_granulated_sees_what_the_whole_hides():
    """Jiang et al.'s reason for it: a measure that only follows one axis."""
    axes = {"width": WIDTHS, "rate": RATES}
    follows_width = np.array([1, 1, 1, 2, 2, 2]) - 0.01 * np.array([1, 2, 3, 1, 2, 3])
    assert ranking.kendall(follows_width, GAPS) == pytest.approx((9 - 6) / 15)
    assert ranking.granulated_kendall(follows_width, GAPS, axes).psi == {"width": 1, "rate": -1}


# --- sign-error ----------------------------------------------------------------------------------


def test_pair_weights():
    assert ranking.pair_weights(np.array([0.0, 0.001]), 10_000).tolist() == [0, 0]
    # n = 1000, dgap = 0.1: 1 - 2 exp(-2 * 1000 * 0.0025) = 1 - 2 exp(-5).
    expected = (1 - 2 * np.exp(-5)) ** 2 - 0.5
    np.testing.assert_allclose(ranking.pair_weights(np.array([0.1, -0.1]), 1000), [expected] * 2)
    np.testing.assert_allclose(ranking.pair_weights(1.0, 10_000), 0.5)
    # The half is where p is: 2 exp(-n dgap^2 / 2) = 1 - sqrt(1/2).
    half = np.sqrt(2 / 1000 * np.log(2 / (1 - np.sqrt(0.5))))
    assert ranking.pair_weights(half * 0.999, 1000) == 0 < ranking.pair_weights(half * 1.001, 1000)


def grid(seed):
    """Two widths, three rates, two depths, four seeds of each, less some networks."""
    rng = np.random.Generator(np.random.Philox(seed))
    rows = [r for r in itertools.product((8, 16), (0.1, 0.2, 0.3), (1, 2), range(4))]
    rows = [r for r in rows if rng.random() < 0.8 and r[:3] != (16, 0.2, 1)]
    axes = dict(zip(("width", "rate", "depth"), list(zip(*rows, strict=True))[:3], strict=True))
    gap_T = np.array([0.1 * r[0] / 8 + r[1] for r in rows]) + rng.normal(size=len(rows)) / 20
    measure_T = np.round(gap_T + rng.normal(size=len(rows)) / 10, 1)  # with ties
    return measure_T, gap_T, axes


def sign_errors_by_loops(measure_T, gap_T, axes, test_images, weighting, fewest):
    """{two settings: (error, effective number of pairs)} of those that are kept."""
    settings = list(zip(*axes.values(), strict=True))
    sums = {}
    for i, j in itertools.combinations(range(len(settings)), 2):
        if sum(a != b for a, b in zip(settings[i], settings[j], strict=True)) != 1:
            continue
        weight = 1.0
        if weighting == "hoeffding":
            share = 1 - 2 * np.exp(-2 * test_images * (abs(gap_T[i] - gap_T[j]) / 2) ** 2)
            weight = max(0, share) ** 2 - 0.5
            weight = weight if weight > 0 else 0
        agreement = np.sign(measure_T[i] - measure_T[j]) * np.sign(gap_T[i] - gap_T[j])
        environment = sums.setdefault(frozenset((settings[i], settings[j])), np.zeros(3))
        environment += [weight, weight**2, weight * (1 - agreement) / 2]
    return {
        e: (wrong / total, total**2 / squares)
        for e, (total, squares, wrong) in sums.items()
        if total and total**2 / squares >= fewest
    }, len(sums)


@pytest.mark.parametrize("weighting", ranking.WEIGHTINGS)
@pytest.mark.parametrize("fewest", [0, 7])
@pytest.mark.parametrize("seed", range(3))
def test_sign_error_by_loops(seed, weighting, fewest):
    measure_T, gap_T, axes = grid(seed)
    expected, of = sign_errors_by_loops(measure_T, gap_T, axes, 500, weighting, fewest)
    found = ranking.sign_error(measure_T, gap_T, axes, 500, weighting, fewest)
    assert 2 < len(expected) < of or fewest == 0
    assert found.left_out == of - len(expected)
    assert len(found.environments_E) == len(found.errors_E) == len(expected)
    for (axis, one, other), error, size in zip(
        found.environments_E, found.errors_E, found.sizes_E, strict=True
    ):
        np.testing.assert_allclose((error, size), expected[frozenset((one, other))])
        assert [n for n, a, b in zip(axes, one, other, strict=True) if a != b] == [axis]
    both_ways = [error for error, _ in expected.values()] * 2
    np.testing.assert_allclose(
        (found.worst, found.percentile_90, found.mean),
        (np.max(both_ways), np.percentile(both_ways, 90), np.mean(both_ways)),
    )


def test_worst_environment_by_hand():
    """Right where the rate changes; where the width does, wrong at one rate, half at the other."""
    axes = {"width": (8, 8, 16, 16), "rate": (0.1, 0.2, 0.1, 0.2)}
    gap_T, measure_T = [0.1, 0.2, 0.3, 0.4], [2, 5, 1, 5]
    found = ranking.sign_error(measure_T, gap_T, axes, weighting="none", fewest=1)
    by_place = dict(zip(found.environments_E, found.errors_E.tolist(), strict=True))
    assert by_place == {
        ("width", (8, 0.1), (16, 0.1)): 1,
        ("width", (8, 0.2), (16, 0.2)): 0.5,
        ("rate", (8, 0.1), (8, 0.2)): 0,
        ("rate", (16, 0.1), (16, 0.2)): 0,
    }
    assert (found.worst, found.mean, found.left_out) == (1, 1.5 / 4, 0)
    # Of 0, 0, 0, 0, .5, .5, 1, 1, as their code has it; of 0, 0, .5, 1 it would be 0.85.
    assert found.percentile_90 == 1


def test_sure_pairs_weigh_more():
    """Two seeds; the unsure pair is left out, so that only the sure one counts."""
    axes, gap_T = {"width": (8, 16, 16)}, [0.1, 0.101, 0.3]
    measure_T = [2, 1, 3]
    sure = ranking.sign_error(measure_T, gap_T, axes, fewest=1)
    assert (sure.worst, sure.sizes_E.tolist()) == (0, [1])
    every = ranking.sign_error(measure_T, gap_T, axes, weighting="none", fewest=1)
    assert (every.worst, every.sizes_E.tolist()) == (0.5, [2])


@pytest.mark.parametrize("weighting", ranking.WEIGHTINGS)
def test_sign_error_counts_are_repeated_networks(weighting):
    measure_T, gap_T, axes = grid(5)
    counts_T = np.random.Generator(np.random.Philox(6)).integers(3, size=len(gap_T))
    found = ranking.sign_error(measure_T, gap_T, axes, 500, weighting, 6, counts_T)
    repeated = ranking.sign_error(
        np.repeat(measure_T, counts_T),
        np.repeat(gap_T, counts_T),
        {name: np.repeat(values, counts_T).tolist() for name, values in axes.items()},
        500, weighting, 6,
    )  # fmt: skip
    by_place = dict(zip(map(str, found.environments_E), found.errors_E, strict=True))
    expected = dict(zip(map(str, repeated.environments_E), repeated.errors_E, strict=True))
    assert len(expected) > 3 and by_place == pytest.approx(expected)
    assert sorted(found.sizes_E) == pytest.approx(sorted(repeated.sizes_E))


def test_as_many_pairs_as_asked_for_are_enough():
    """Weights that are equal but for rounding: 12 pairs of them are 12."""
    axes = {"width": [8] * 3 + [16] * 4}
    gap_T = np.array([0.1] * 3 + [0.133] * 4)
    (size,) = ranking.sign_error(gap_T, gap_T, axes).sizes_E
    assert 11.99 < size < 12
    with pytest.raises(UserError, match=r"none of 1 environments has .* number of 12\.1 pairs"):
        ranking.sign_error(gap_T, gap_T, axes, fewest=12.1)


def test_no_environment():
    axes = {"width": (8, 16, 32), "rate": (0.1, 0.2, 0.3)}
    with pytest.raises(UserError, match="none of 0 environments"):
        ranking.sign_error([1, 2, 3], [1, 2, 3], axes)
    found = ranking.sign_error([1, 2, 3], [1, 2, 3], axes, counts_T=np.ones(3))
    assert np.isnan([found.worst, found.percentile_90, found.mean]).all()
    # Gaps that do not surely differ make an environment of no weight, which has no error.
    found = ranking.sign_error([1, 2], [0.1, 0.1], {"w": (8, 16)}, fewest=0, counts_T=np.ones(2))
    assert np.isnan(found.worst) and found.left_out == 1


# --- bootstrap -----------------------------------------------------------------------------------


def test_interval_covers_the_truth():
    """Of two normals of correlation r, tau is 2/pi arcsin r; 100 sweeps of 40 networks."""
    rng, correlation = np.random.Generator(np.random.Philox(7)), 0.6
    truth, inside, widths = 2 / np.pi * np.arcsin(correlation), 0, []
    for _ in range(100):
        measure_T = rng.standard_normal(40)
        gap_T = correlation * measure_T + np.sqrt(1 - correlation**2) * rng.standard_normal(40)

        def statistic(counts_DxT, measure_T=measure_T, gap_T=gap_T):
            return ranking.kendall(measure_T, gap_T, counts_T=counts_DxT)

        found = ranking.bootstrap(statistic, range(40), draws=200)
        assert found.value == ranking.kendall(measure_T, gap_T)
        inside += found.low <= truth <= found.high
        widths.append(found.high - found.low)
    # 95 +- 2.2 are expected; percentile intervals are a little too short.
    assert 87 <= inside <= 99
    assert 0.2 < np.mean(widths) < 0.4


def test_units_are_drawn_together():
    units = ["a", "b", "a", "c", "b", "a"]
    seen = []
    ranking.bootstrap(lambda counts_DxT: seen.append(counts_DxT) or counts_DxT[:, 0], units)
    draws_DxT, whole_1xT = seen
    assert whole_1xT.tolist() == [[1] * 6] and draws_DxT.shape == (1000, 6)
    for same in ([0, 2, 5], [1, 4]):
        assert (draws_DxT[:, same] == draws_DxT[:, same[:1]]).all()
    by_unit_DxU = draws_DxT[:, [0, 1, 3]]
    assert (by_unit_DxU.sum(1) == 3).all()
    # A unit is there once on average, with variance U p (1 - p) = 2/3.
    np.testing.assert_allclose(by_unit_DxU.mean(0), 1, atol=0.1)
    np.testing.assert_allclose(by_unit_DxU.var(0), 2 / 3, atol=0.1)
    assert (np.corrcoef(by_unit_DxU.T)[np.triu_indices(3, 1)] < -0.3).all()  # -1/2 each


def test_interval_is_the_percentiles_of_the_draws():
    kept = []

    def statistic(counts_DxT):
        kept.append(np.where(counts_DxT[:, 0] == 2, np.nan, counts_DxT @ np.arange(5.0)))
        return kept[-1]

    found = ranking.bootstrap(statistic, range(5), level=0.8, seed=3)
    defined = kept[0][~np.isnan(kept[0])]
    assert (found.low, found.high) == tuple(np.percentile(defined, [10, 90]))
    assert found.value == 10 and found.undefined == 1000 - len(defined) > 0
    assert ranking.bootstrap(statistic, range(5), level=0.8, seed=3) == found
    assert ranking.bootstrap(statistic, range(5), level=0.8, seed=4) != found


def test_one_draw_at_a_time():
    measure_T, gap_T, axes = grid(1)
    found = ranking.bootstrap(
        lambda counts_DxT: [
            ranking.sign_error(measure_T, gap_T, axes, 500, "none", 9, counts_T).mean
            for counts_T in counts_DxT
        ],
        range(len(gap_T)),
        draws=50,
    )
    assert found.low < found.value < found.high


# --- mistakes ------------------------------------------------------------------------------------

THREE = [1, 2, 3]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ranking.kendall(THREE, THREE, "tau-b"), "must be one of all_pairs, corrected"),
        (lambda: ranking.kendall(THREE, [1, 2]), "3 measures, 2 gaps and 3 counts"),
        (lambda: ranking.spearman(THREE, THREE, np.ones(2)), "3 measures, 3 gaps and 2 counts"),
        (lambda: ranking.kendall([1, np.nan, np.inf], THREE), "2 of 3 rows are not finite"),
        (lambda: ranking.spearman(THREE, [1, np.nan, 2]), "1 of 3 rows are not finite"),
        (
            lambda: ranking.granulated_kendall(THREE, THREE, {"w": (8, 8, 16)}),
            "several networks have the same w",
        ),
        (
            lambda: ranking.granulated_kendall(THREE, THREE, {"w": THREE}, along=["x"]),
            "along has 'x'; the axes are w",
        ),
        (
            lambda: ranking.granulated_kendall(THREE, [1, 2], {"w": THREE}),
            "3 measures, 2 gaps",
        ),
        (lambda: ranking.granulated_kendall(THREE, THREE, {}), "there are no axes"),
        (lambda: ranking.sign_error(THREE, THREE, {}), "there are no axes"),
        (
            lambda: ranking.sign_error(THREE, THREE, {"w": (8, 8, 8)}),
            "axis 'w' has one value only",
        ),
        (
            lambda: ranking.sign_error(THREE, THREE, {"w": (8, 16)}),
            "axis 'w' has 2 values and there are 3 networks",
        ),
        (
            lambda: ranking.sign_error(THREE, THREE, {"w": THREE}, weighting="x"),
            "must be one of hoeffding, none",
        ),
        (
            lambda: ranking.sign_error(THREE, THREE, {"w": THREE}, counts_T=np.ones(2)),
            "3 measures, 3 gaps and 2 counts",
        ),
        (lambda: ranking.bootstrap(lambda c: c[:, 0], "aaa"), "one unit only, \\['a'\\]"),
        (
            lambda: ranking.bootstrap(lambda c: c[:, 0] * np.nan, "ab", draws=7),
            "undefined for all of 7 draws of 2 units",
        ),
        (lambda: ranking.bootstrap(lambda c: 1.0, "ab"), "one number each"),
        (lambda: ranking.bootstrap(lambda c: c[:, 0], "ab", level=95), "between 0 and 1"),
        (lambda: ranking.bootstrap(lambda c: c[:, 0], "ab", draws=0), "at least 1 draw"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(call, message):
    with pytest.raises(UserError, match=message):
        call()
