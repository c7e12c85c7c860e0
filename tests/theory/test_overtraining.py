"""Overtraining: the theory's limits, and theory against gradient descent on drawn data."""

import math

import numpy as np
import pytest

from rethink_jax.schema import UserError
from rethink_jax.theory import overtraining
from rethink_jax.theory.overtraining import Setting

NOISY = [Setting(alpha, 4.0, start) for alpha in (0.3, 1.0, 2.5) for start in (0.0, 0.8)]


# --- theory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", NOISY)
def test_before_training(setting):
    # |w - v|^2 is the sum of two variances, and x.(w - v) has that variance on any examples.
    expected = 1 + setting.start**2 + 1 / 4
    assert overtraining.test_error(setting, 0.0) == pytest.approx(expected)
    assert overtraining.train_error(setting, 0.0) == pytest.approx(expected)


@pytest.mark.parametrize("setting", [s for s in NOISY if s.alpha != 1])
def test_at_the_end(setting):
    late = overtraining.test_error(setting, 1e5)
    assert late == pytest.approx(overtraining.final_test_error(setting), rel=1e-9)
    fitted = max(1 - 1 / setting.alpha, 0) / 4
    assert overtraining.train_error(setting, 1e5) == pytest.approx(fitted, abs=1e-12)


def test_final_error():
    assert overtraining.final_test_error(Setting(0.5, 4.0)) == pytest.approx(0.25 + 0.5 + 0.25)
    assert overtraining.final_test_error(Setting(2.0, 4.0)) == pytest.approx(0.25 * 2)
    assert overtraining.final_test_error(Setting(1.0, 4.0)) == math.inf
    # Many examples: only the noise is left. No noise: only the frozen weights.
    assert overtraining.final_test_error(Setting(1e6, 4.0)) == pytest.approx(0.25, rel=1e-5)
    assert overtraining.final_test_error(Setting(0.4, math.inf, 0.5)) == pytest.approx(0.6 * 1.25)
    assert overtraining.final_test_error(Setting(1.0, math.inf)) == 0
    assert overtraining.final_test_error(Setting(3.0, math.inf, 0.5)) == 0


def test_the_error_rises_to_the_peak_and_falls():
    alphas = np.linspace(0.85, 1.25, 9)
    errors = [overtraining.final_test_error(Setting(float(a), 4.0)) for a in alphas.round(10)]
    assert alphas[np.argmax(errors)] == pytest.approx(1) and max(errors) == math.inf
    # More examples hurt.
    assert errors[3] > errors[2] > errors[1] > errors[0]


@pytest.mark.parametrize("start", [0.0, 0.7])
def test_without_noise_training_never_hurts(start):
    errors = overtraining.test_error(Setting(0.8, math.inf, start), np.geomspace(1e-3, 1e4, 50))
    assert (np.diff(errors) < 1e-12).all()
    assert overtraining.best_time(Setting(0.8, math.inf, start)) == math.inf


@pytest.mark.parametrize("setting", NOISY)
def test_best_time(setting):
    best = overtraining.best_time(setting)
    least = overtraining.test_error(setting, best)
    for factor in (0.5, 0.97, 1.03, 2.0):
        assert overtraining.test_error(setting, best * factor) > least


def test_best_time_of_one_eigenvalue():
    """Of many examples all eigenvalues are near alpha: the best time of a mode."""
    alpha, snr, start = 1e4, 3.0, 0.5
    expected = math.log(1 + alpha * (1 + start**2) * snr) / alpha
    assert overtraining.best_time(Setting(alpha, snr, start)) == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_best_time_grows_with_the_logarithm_of_snr(alpha):
    times = [overtraining.best_time(Setting(alpha, snr)) for snr in (1e6, 1e8, 1e10)]
    smallest = (1 - math.sqrt(alpha)) ** 2
    slopes = np.diff(times) / math.log(100)
    np.testing.assert_allclose(slopes, 1 / smallest, rtol=0.02)


def test_best_time_at_the_peak_grows_with_snr_itself():
    """There is no smallest eigenvalue: density 1 / (pi sqrt(x)) near 0."""
    times = [overtraining.best_time(Setting(1.0, snr)) for snr in (1e2, 1e3, 1e4)]
    np.testing.assert_allclose(np.diff(np.log(times)), math.log(10), rtol=0.01)


def test_best_ridge():
    for alpha in (0.3, 1.0, 2.5):
        setting = Setting(alpha, 4.0)
        assert overtraining.best_ridge(setting) == 0.25
        least = overtraining.ridge_test_error(setting, 0.25)
        assert overtraining.ridge_test_error(setting, 0.2) > least
        assert overtraining.ridge_test_error(setting, 0.3) > least
        # One number for all modes is the best for each: no time of stopping is.
        stopped = overtraining.test_error(setting, overtraining.best_time(setting))
        assert least < stopped < overtraining.final_test_error(setting)
        if alpha != 1:
            none = overtraining.ridge_test_error(setting, 1e-9)
            assert none == pytest.approx(overtraining.final_test_error(setting), rel=1e-5)


@pytest.mark.parametrize("snr", [0.5, 5.0, 50.0])
def test_stopped_or_with_a_ridge_there_is_no_peak(snr):
    settings = [Setting(float(alpha), snr) for alpha in np.geomspace(0.2, 5, 25)]
    stopped = [overtraining.test_error(s, overtraining.best_time(s)) for s in settings]
    ridge = [overtraining.ridge_test_error(s, 1 / snr) for s in settings]
    assert (np.diff(stopped) < 0).all() and (np.diff(ridge) < 0).all()
    assert (np.diff([overtraining.final_test_error(s) for s in settings]) > 0).any()


def test_small_steps_are_the_flow():
    setting, times = NOISY[1], np.array([0.3, 3.0, 30.0])
    for error in (overtraining.test_error, overtraining.train_error):
        np.testing.assert_allclose(error(setting, times, 1e-6), error(setting, times), rtol=1e-5)
    with pytest.raises(UserError, match=r"learning rate is 1.*, 2\.4$"):
        overtraining.test_error(setting, times, 1.0)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"alpha": 0.0, "snr": 1.0}, "alpha is 0.0; take more than 0"),
        ({"alpha": 1.0, "snr": 0.0}, "snr is 0.0"),
        ({"alpha": 1.0, "snr": 1.0, "start": -1.0}, "start is -1.0; take 0 or more"),
    ],
)
def test_refused(given, match):
    with pytest.raises(UserError, match=match):
        Setting(**given)


# --- simulation -----------------------------------------------------------------------------------

DIMENSIONS, SEEDS, STEP = 100, range(16), 0.5
STEPS = np.array([0, 1, 4, 20, 100, 400])


@pytest.mark.parametrize("setting", NOISY, ids=lambda s: f"{s.alpha}-{s.start}")
def test_theory_is_the_mean_of_simulations(setting):
    rate = overtraining.learning_rate(setting.alpha, STEP)
    tests, trains, ridges = [], [], []
    for seed in SEEDS:
        drawn = overtraining.draw(setting, DIMENSIONS, seed)
        weights = overtraining.descend(drawn, STEPS, rate)
        tests.append(drawn.test_error(weights))
        trains.append(drawn.train_error(weights))
        ridges.append(drawn.test_error(overtraining.ridge_weights(drawn, 0.25)))
    for simulated, theory in (
        (tests, overtraining.test_error(setting, STEPS * rate, rate)),
        (trains, overtraining.train_error(setting, STEPS * rate, rate)),
        (np.array(ridges)[:, None], [overtraining.ridge_test_error(setting, 0.25)]),
    ):
        errors = np.std(simulated, axis=0, ddof=1) / math.sqrt(len(SEEDS))
        # 4 standard errors, and the order of 1 / N by which a finite size is off.
        off = np.abs(np.mean(simulated, axis=0) - theory)
        assert (off < 4 * errors + 0.01).all(), off / errors


def test_descent_against_its_eigenvectors():
    setting = Setting(0.6, 4.0, 0.5)
    drawn, rate = overtraining.draw(setting, 30, 1), overtraining.learning_rate(0.6, STEP)
    found = overtraining.descend(drawn, STEPS, rate)
    eigenvalues, vectors = np.linalg.eigh(drawn.rows_PxN.T @ drawn.rows_PxN)
    left = (1 - rate * eigenvalues) ** STEPS[:, None]
    end, start = (vectors.T @ w for w in (overtraining.closest(drawn), drawn.start_Nx1))
    expected = vectors @ (end + left[..., None] * (start - end))
    np.testing.assert_allclose(found, expected, atol=1e-10)


def test_drawn_data():
    drawn = overtraining.draw(Setting(2.0, 4.0, 0.5), 300, 3)
    assert drawn.rows_PxN.shape == (600, 300)
    assert np.var(drawn.rows_PxN) == pytest.approx(1 / 300, rel=0.02)
    noise = drawn.labels_Px1 - drawn.rows_PxN @ drawn.teacher_Nx1
    assert np.var(noise) == pytest.approx(0.25, rel=0.2)
    assert np.std(drawn.start_Nx1) == pytest.approx(0.5, rel=0.15)
    # The test error is that of inputs that were not drawn.
    others = np.random.default_rng(0).normal(size=(20_000, 300)) / math.sqrt(300)
    weights = overtraining.closest(drawn)
    measured = np.mean((others @ (weights - drawn.teacher_Nx1)) ** 2) + 0.25
    assert drawn.test_error(weights) == pytest.approx(measured, rel=0.03)
    with pytest.raises(UserError, match=r"alpha 0\.001 of 10 dimensions is no example"):
        overtraining.draw(Setting(0.001, 1.0), 10, 0)


def test_the_frozen_part_of_a_large_start_stays():
    """Below alpha = 1 it costs (1 - alpha) start^2, and nothing above."""
    for alpha in (0.4, 2.0):
        costs = []
        for seed in range(60):
            drawn = overtraining.draw(Setting(alpha, 4.0, 1.0), 60, seed)
            from_zero = drawn._replace(setting=Setting(alpha, 4.0))
            costs.append(
                drawn.test_error(overtraining.closest(drawn))
                - drawn.test_error(overtraining.closest(from_zero))
            )
        error = np.std(costs) / math.sqrt(len(costs))
        assert np.mean(costs) == pytest.approx(max(1 - alpha, 0), abs=4 * error + 1e-9)
        assert error < 0.05
