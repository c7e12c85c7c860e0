"""The Marchenko-Pastur law against its moments, the density and matrices."""

import numpy as np
import pytest
from scipy.integrate import quad

from rethink_jax.schema import UserError
from rethink_jax.theory import marchenko_pastur

ALPHAS = [0.1, 0.5, 0.99, 1.0, 1.01, 3.0, 10.0]


@pytest.mark.parametrize("alpha", ALPHAS)
def test_moments(alpha):
    """Of X^T X with P N entries of variance 1/N: mean P/N, mean of squares (P + P^2/N)/N."""
    law = marchenko_pastur.law(alpha)
    assert law.weights_Q.sum() + law.zero == pytest.approx(1, rel=1e-12)
    assert law.zero == max(1 - alpha, 0)
    assert law.mean(lambda x: x) == pytest.approx(alpha, rel=1e-12)
    assert law.mean(lambda x: x**2) == pytest.approx(alpha + alpha**2, rel=1e-12)
    if alpha != 1:
        inverse = alpha / (1 - alpha) if alpha < 1 else 1 / (alpha - 1)
        assert law.mean(lambda x: 1 / x) == pytest.approx(inverse, rel=1e-9)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_quadrature_against_the_density(alpha):
    low, high = marchenko_pastur.edges(alpha)
    law = marchenko_pastur.law(alpha, 200)

    def both(function):
        def over(x):
            return float(marchenko_pastur.density(alpha, np.array(x)) * function(x))

        # At alpha = 1 the density has a pole: by its root, x = r^2.
        found, _ = quad(lambda r: 2 * r * over(r**2), np.sqrt(low), np.sqrt(high), limit=200)
        return law.mean(function), found

    for function in (np.ones_like, lambda x: np.exp(-3 * x), lambda x: x / (0.1 + x)):
        ours, expected = both(function)
        assert ours == pytest.approx(expected, rel=1e-7)
    assert law.eigenvalues_Q.min() > low and law.eigenvalues_Q.max() < high


def test_density_outside_and_inside():
    low, high = marchenko_pastur.edges(0.5)
    assert (low, high) == pytest.approx((0.0857864, 2.9142136))
    found = marchenko_pastur.density(0.5, np.array([0, low / 2, 1.0, high + 1]))
    expected = np.sqrt((high - 1) * (1 - low)) / (2 * np.pi)
    np.testing.assert_allclose(found, [0, 0, expected, 0])


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_eigenvalues_of_a_matrix(alpha):
    size = 400
    rows = np.random.default_rng(0).normal(size=(int(alpha * size), size)) / np.sqrt(size)
    eigenvalues = np.linalg.eigvalsh(rows.T @ rows)
    law = marchenko_pastur.law(alpha)
    low, high = marchenko_pastur.edges(alpha)
    positive = eigenvalues[eigenvalues > 1e-9]
    assert np.mean(eigenvalues <= 1e-9) == pytest.approx(law.zero)
    # Edges fluctuate by N^(-2/3), which is 2% here.
    assert positive[0] == pytest.approx(low, abs=0.05)
    assert positive[-1] == pytest.approx(high, abs=0.15)
    for bound in np.linspace(low, high, 7)[1:-1]:
        below = law.weights_Q[law.eigenvalues_Q < bound].sum()
        assert np.sum(positive < bound) / size == pytest.approx(below, abs=0.01)


@pytest.mark.parametrize("alpha", [0.0, -1.0, np.inf, np.nan])
def test_refused(alpha):
    with pytest.raises(UserError, match="rows by columns"):
        marchenko_pastur.law(alpha)
