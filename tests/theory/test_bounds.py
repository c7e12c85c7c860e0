"""Bounds against numbers worked out by hand; complexity where it is known; VC against a count."""

import math

import numpy as np
import pytest
import scipy.stats

from rethink_jax import streams, trials
from rethink_jax.data.corruption import corrupt_labels
from rethink_jax.schema import UserError
from rethink_jax.theory import bounds
from rethink_jax.theory.bounds import LayerSize
from rethink_jax.theory.piecewise_linear import layer_sizes

# --- Rademacher -----------------------------------------------------------------------------------


def test_an_estimate_is_the_mean_with_students_interval():
    values = np.array([0.2, 0.35, 0.3, 0.41])
    found = bounds.rademacher(values, 100)
    expected = scipy.stats.t.interval(0.95, 3, values.mean(), scipy.stats.sem(values))
    assert found.mean == pytest.approx(0.315)
    assert (found.low, found.high) == pytest.approx(expected)
    # sqrt(2 ln 20 / 400)
    assert found.at_least == pytest.approx(0.315 - 0.1223873)


def test_an_interval_stays_among_correlations():
    found = bounds.rademacher([1.0, 0.9, 1.0], 10)
    assert found.high == 1.0 and found.low < 0.9
    alone = bounds.rademacher([0.5], 1000)
    assert math.isnan(alone.low) and math.isnan(alone.high) and alone.draws == 1


def test_the_complexity_of_two_constants():
    """The class {-1, 1}: the best correlation is |mean of the signs|, its expectation binomial."""
    n, draws = 25, 400
    labels = np.zeros(n, np.int32)
    signs = np.stack(
        [
            2 * np.asarray(corrupt_labels(labels, "uniform", 1.0, s, streams.LABELS, 2)) - 1
            for s in range(draws)
        ]
    )
    found = bounds.rademacher(np.abs(signs.mean(1)), n)
    heads = np.arange(n + 1)
    exact = (scipy.stats.binom.pmf(heads, n, 0.5) * np.abs(2 * heads / n - 1)).sum()
    assert found.low < exact < found.high
    assert found.high - found.low < 0.03
    assert found.at_least < exact


def test_a_class_is_at_least_as_complex_as_the_limit_says():
    """Of many estimates from few draws, the limit is above the truth for fewer than 5%."""
    n, rng = 12, np.random.default_rng(0)
    heads = np.arange(n + 1)
    exact = (scipy.stats.binom.pmf(heads, n, 0.5) * np.abs(2 * heads / n - 1)).sum()
    signs = rng.choice([-1, 1], (500, 3, n))
    above = [bounds.rademacher(np.abs(s.mean(1)), n).at_least > exact for s in signs]
    assert np.mean(above) < 0.05


def test_bounds_by_hand():
    # 3 sqrt(ln 40 / 200) = 0.407431
    assert bounds.rademacher_bound(0.1, 0.5, 100) == pytest.approx(1.007431, abs=1e-6)
    # sqrt(20 ln(100 e) / 1000) = 0.334818, sqrt(ln 20 / 2000) = 0.038702
    assert bounds.vc_bound(0.1, 10, 1000) == pytest.approx(0.473520, abs=1e-6)
    # 0.01 + (2 + 1) sqrt(ln 20 / 200)
    assert bounds.stability_bound(0.2, 0.01, 100, 1.0) == pytest.approx(0.577162, abs=1e-6)
    # With a loss of up to 2, and delta = 1/e.
    assert bounds.stability_bound(0.0, 0.0, 50, 2.0, math.exp(-1)) == pytest.approx(0.2)


def test_what_says_nothing():
    assert bounds.is_vacuous(1.0) and not bounds.is_vacuous(0.999)
    assert bounds.is_vacuous(bounds.vc_bound(0.0, 1000, 1000))  # All labellings may be there.
    assert bounds.log_growth(7, 5) == pytest.approx(5 * math.log(2))


def test_the_growth_function_bounds_a_count():
    """Intervals on a line have VC dimension 2, and 1 + n(n+1)/2 labellings of n points."""
    for n in range(2, 40):
        assert math.log(1 + n * (n + 1) / 2) <= bounds.log_growth(2, n) + 1e-12


# --- VC dimension ---------------------------------------------------------------------------------


def shattered(layers):
    """The most points that the product of the layers' numbers of sign patterns allows."""
    cumulative = np.cumsum([layer.params for layer in layers])

    def logarithm(points):  # Of the number of labellings, to base 2.
        return sum(
            1 + w * math.log2(max(2 * math.e * points * layer.units * i / w, 1))
            for i, (layer, w) in enumerate(zip(layers, cumulative, strict=True), 1)
        )

    low, high = 1, 2
    while logarithm(high) >= high:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if logarithm(middle) >= middle else (low, middle)
    return low


@pytest.mark.parametrize("seed", range(6))
def test_the_bound_is_what_the_count_of_sign_patterns_gives(seed):
    rng = np.random.default_rng(seed)
    layers = [
        LayerSize(int(rng.integers(3, 200)), int(rng.integers(10, 5000)))
        for _ in range(rng.integers(1, 5))
    ]
    layers.append(LayerSize(1, int(rng.integers(5, 200))))
    exact, bound = shattered(layers), bounds.vc_dimension(layers)
    assert exact <= bound
    assert bound < 3 * exact + 50  # The closed form loses something, and not more.


def test_the_bound_by_hand():
    # A network 3-4-1: W = 16 + 5, Lbar W = 16 + 21 = 37, R = 4 + 2.
    r = 2 * math.e * 6
    expected = 2 + 37 * math.log2(2 * r * math.log2(r))
    assert bounds.vc_dimension([LayerSize(4, 16), LayerSize(1, 5)]) == math.floor(expected) == 311


def test_a_half_space_is_exact_and_too_small_a_network_is_refused():
    assert bounds.vc_dimension([LayerSize(1, 65)]) == 65
    with pytest.raises(ValueError, match="more than two units"):
        bounds.vc_dimension([LayerSize(1, 65), LayerSize(1, 2)])


def sizes(image=(8, 8, 3), **model):
    trial = trials.resolve({"model": model})
    return layer_sizes(dict(trial.fields), image)


def test_layers_of_networks():
    assert sizes(name="mlp", hidden=()) == [(1, 193)]
    assert sizes(name="mlp", hidden=(5, 4)) == [(5, 965), (4, 24), (1, 5)]
    layers = "conv 6 3 2", "relu", "avg_pool 2", "dropout", "flatten", "dense 7", "relu"
    # 4x4 places of 6 channels, pooled to 2x2; each place has the same weights.
    assert sizes(name="sequential", layers=layers) == [(96, 168), (7, 175), (1, 8)]
    assert sizes(name="sequential", layers=("avg_pool 4", "flatten")) == [(1, 13)]


def test_the_crop_counts():
    trial = trials.resolve({"model": {"hidden": ()}, "preprocess": {"crop_size": 4}})
    assert layer_sizes(dict(trial.fields), (8, 8, 1)) == [(1, 17)]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"name": "alexnet"}, "'alexnet' has others"),
        ({"name": "sequential", "layers": ("conv 4 3", "max_pool 2", "flatten")}, "'max_pool 2'"),
        ({"name": "sequential", "layers": ("conv 4 3", "batch_norm", "flatten")}, "'batch_norm'"),
    ],
)
def test_networks_that_the_bound_does_not_cover(model, words):
    with pytest.raises(UserError) as caught:
        sizes(**model)
    assert words in str(caught.value)
