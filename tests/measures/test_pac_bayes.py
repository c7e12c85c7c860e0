"""Expected sharpness, the divergence and the bound: known answers, formulas, what theory says."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from drawn_networks import compiled, subject_of, together
from jax.flatten_util import ravel_pytree

from rethink_jax import measures, models
from rethink_jax.measures import pac_bayes
from rethink_jax.measures.pac_bayes import Noise
from rethink_jax.schema import UserError

SCALES = ("0.005", "0.01", "0.05", "0.1", "0.3")
# On all images: as the known answers are.
WHOLE = Noise("constant", draws=200, batch_size=None)


@pytest.fixture(scope="module", params=oracles.NAMES)
def known(request):
    """(known answers, curves of the known noise: constant, and in proportion to the weights)"""
    with jax.enable_x64(True):
        subject, _, _ = oracles.load(request.param, conv=oracles.quick_conv)
        rows_KxP = oracles.noise_rows(request.param, subject)
        scales = tuple(float(scale) for scale in SCALES)

        def curves(subject, rows_KxP):
            kinds = Noise("constant"), Noise("weight")
            return [pac_bayes.kl_curve(subject, scales, n, rows_KxP=rows_KxP) for n in kinds]

        answers = oracles.answers(request.param)["expected_sharpness"]
        yield answers, compiled(subject, curves)(rows_KxP)


def test_expected_sharpness_of_known_noise(known):
    answers, (constant, weight) = known
    for place, scale in enumerate(SCALES):
        expected = answers[scale]
        np.testing.assert_allclose(
            constant.sharpness_A[place], expected["fixed_noise_mean"], rtol=1e-8
        )
        np.testing.assert_allclose(
            weight.sharpness_A[place], expected["magnitude_scaled_fixed_mean"], rtol=1e-8
        )
        draws = expected["fixed_noise_draws"]
        error = np.std(draws, ddof=1) / len(draws) ** 0.5
        np.testing.assert_allclose(constant.standard_errors_A[place], error, rtol=1e-8)


def test_known_divergence(known):
    answers, (constant, _) = known
    expected = [answers["pac_bayes_neyshabur2017"][scale]["kl"] for scale in SCALES]
    np.testing.assert_allclose(constant.kl_A, expected, rtol=1e-10)


def test_known_draws_and_bound():
    subject, _, _ = oracles.load("mlp_bias")
    answers = oracles.answers("mlp_bias")["expected_sharpness"]
    found = compiled(
        subject,
        lambda s, rows, scale: pac_bayes.bound(s, scale, answers["delta"], WHOLE, rows_KxP=rows),
    )
    for scale in SCALES:
        expected = answers["pac_bayes_neyshabur2017"][scale]
        bound = found(oracles.noise_rows("mlp_bias", subject), float(scale))
        draws = answers[scale]["fixed_noise_draws"]
        np.testing.assert_allclose(bound.sharpness.values_K, draws, rtol=1e-8, atol=1e-13)
        np.testing.assert_allclose(bound.kl, expected["kl"], rtol=1e-10)
        np.testing.assert_allclose(bound.excess, expected["bound_excess"], rtol=1e-8)
        np.testing.assert_allclose(bound.bound, subject.loss + bound.excess, rtol=1e-12)


def test_noise_of_our_own_gives_the_known_mean():
    subject, _, _ = oracles.load("mlp_nobias")
    found = compiled(subject, lambda s, scale: pac_bayes.expected_sharpness(s, scale, WHOLE))
    for scale in SCALES:
        expected = oracles.answers("mlp_nobias")["expected_sharpness"][scale]
        mean, error, _ = found(float(scale), key=jax.random.key(0))
        assert abs(mean - expected["mc_mean"]) < 4 * math.hypot(error, expected["mc_se"])
        # The error is that of a mean of so many draws.
        one_draw = expected["mc_se"] * expected["mc_n"] ** 0.5
        assert 0.7 < error * WHOLE.draws**0.5 / one_draw < 1.4


# --- a small network ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mlp():
    with jax.enable_x64(True):
        model = models.build("mlp", 4, hidden=(6,))
        subject = subject_of(model, image=(2, 2, 2), images=24)
        start = subject_of(model, image=(2, 2, 2), seed=5).variables
        labels_N = jnp.argmax(subject.logits_NxY, 1).astype(jnp.int32)
        yield dataclasses.replace(
            subject, labels_N=labels_N, initial_variables=start, key=jax.random.key(3)
        )


def test_noise_of_the_figures(mlp):
    """sigma_i = alpha (10 |w_i| + 1), for the noise and for the divergence."""
    weights_P, unravel = ravel_pytree(mlp.params)
    rows_KxP = np.random.default_rng(0).normal(size=(3, weights_P.size))
    sigmas_P = 0.02 * (10 * np.abs(weights_P) + 1)
    found = compiled(mlp, lambda s, rows: pac_bayes.expected_sharpness(s, 0.02, rows_KxP=rows))
    expected = [mlp.loss_of(unravel(weights_P + sigmas_P * row)) - mlp.loss for row in rows_KxP]
    np.testing.assert_allclose(found(jnp.asarray(rows_KxP)).values_K, expected, rtol=1e-9)
    divergence = np.sum(np.square(weights_P / sigmas_P)) / 2
    np.testing.assert_allclose(pac_bayes.kl(mlp, 0.02), divergence, rtol=1e-12)


def test_batches(mlp):
    """Each draw sees its own batch, and the mean is that over all images."""
    small = Noise(draws=600, batch_size=6)
    found = compiled(mlp, lambda s, scale: pac_bayes.expected_sharpness(s, scale, small))
    whole = dataclasses.replace(small, batch_size=None)
    expected = compiled(mlp, lambda s, scale: pac_bayes.expected_sharpness(s, scale, whole))
    for scale in 0.02, 0.1:
        (mean, error, _), (mean_2, error_2, _) = found(scale), expected(scale)
        assert abs(mean - mean_2) < 4 * math.hypot(error, error_2)
        assert error > error_2
    # The loss without noise is that of the same batch: nothing is left as the noise vanishes.
    assert np.max(np.abs(found(1e-9).values_K)) < 1e-6
    # Not one batch for all draws: of noise in one direction, what a batch gives differs.
    assert len(np.unique(np.round(found(1e-3).values_K, 12))) == small.draws


def test_the_center_of_the_prior(mlp):
    params, start = mlp.params, mlp.initial_variables["params"]
    moved = jax.tree.map(lambda a, b: np.asarray(a - b), params, start)
    squares = sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(moved))
    found = pac_bayes.kl(mlp, 0.1, "constant", "initial")
    np.testing.assert_allclose(found, squares / (2 * 0.1**2), rtol=1e-12)
    still = dataclasses.replace(mlp, initial_variables=mlp.variables)
    for deviations in pac_bayes.DEVIATIONS:
        assert pac_bayes.kl(still, 0.1, deviations, "initial") == 0
    # Of noise proportional to the weights it is that of their number, and a weight of 0 adds none.
    zero = jax.tree.map(jnp.zeros_like, params)
    one = dataclasses.replace(mlp, variables={"params": zero})
    assert pac_bayes.kl(one, 0.1, "weight") == 0
    size = ravel_pytree(params)[0].size
    np.testing.assert_allclose(pac_bayes.kl(mlp, 0.1, "weight"), size / (2 * 0.1**2), rtol=1e-12)
    kernels = pac_bayes.weights_from(mlp, "initial", "kernels")
    np.testing.assert_allclose(
        jnp.sum(jnp.square(kernels)),
        sum(np.sum(np.square(layer["kernel"])) for layer in moved.values()),
        rtol=1e-12,
    )


def test_rescaling_units_changes_expected_sharpness_unless_noise_is_of_the_weights_size(mlp):
    c = jnp.asarray(np.random.default_rng(0).uniform(0.2, 5, 6))
    first, last = (mlp.params[name] for name in sorted(mlp.params))
    params = {
        min(mlp.params): {"kernel": first["kernel"] * c[None], "bias": first["bias"] * c},
        max(mlp.params): {"kernel": last["kernel"] / c[:, None], "bias": last["bias"]},
    }
    for deviations in pac_bayes.DEVIATIONS:
        noise = Noise(deviations, draws=20, batch_size=None)
        found = compiled(mlp, lambda s, n=noise: pac_bayes.expected_sharpness(s, 0.05, n).mean)
        before, after = found(), found(variables={"params": params})
        if deviations == "weight":
            np.testing.assert_allclose(after, before, rtol=1e-9)
        else:
            assert abs(after / before - 1) > 0.1


# --- curves ---------------------------------------------------------------------------------------

FEW = Noise(draws=30, batch_size=8)


def test_a_curve_is_the_numbers_of_each_scale(mlp):
    scales = (0.01, 0.05, 0.2)
    curve = compiled(mlp, lambda s: pac_bayes.kl_curve(s, scales, FEW))()
    one = compiled(mlp, lambda s, scale: pac_bayes.expected_sharpness(s, scale, FEW))
    for place, scale in enumerate(scales):
        mean, error, _ = one(scale)
        assert curve.scales_A[place] == scale
        np.testing.assert_allclose(curve.sharpness_A[place], mean, rtol=1e-9)
        np.testing.assert_allclose(curve.standard_errors_A[place], error, rtol=1e-9)
        np.testing.assert_allclose(curve.kl_A[place], pac_bayes.kl(mlp, scale), rtol=1e-12)


def curve_of(kl, sharpness, scales=(1.0, 10.0, 100.0)):
    return pac_bayes.Curve(*(jnp.asarray(a) for a in (scales, kl, sharpness)), jnp.zeros(3))


def test_where_a_curve_reaches_a_level():
    curve = curve_of([1e8, 1e6, 1e4], [0.0, 0.04, 0.08])
    found = pac_bayes.kl_at(curve, 0.05)
    assert found.reached
    np.testing.assert_allclose(found.kl, 10**5.5, rtol=1e-12)
    np.testing.assert_allclose(found.scale, 10**1.25, rtol=1e-12)
    np.testing.assert_allclose(pac_bayes.kl_at(curve, 0.04).kl, 1e6, rtol=1e-12)
    # Where it first does.
    twice = curve_of([1e8, 1e6, 1e4], [0.0, 0.06, 0.01])
    np.testing.assert_allclose(pac_bayes.kl_at(twice, 0.03).kl, 1e7, rtol=1e-12)


@pytest.mark.parametrize("sharpness", [[0.06, 0.07, 0.08], [0.0, 0.01, 0.04]])
def test_a_curve_that_does_not_reach_a_level(sharpness):
    found = pac_bayes.kl_at(curve_of([1e8, 1e6, 1e4], sharpness), 0.05)
    assert not found.reached
    assert np.isnan(found.kl) and np.isnan(found.scale)


def test_the_measures_are_the_points_of_two_curves(mlp, monkeypatch):
    """All of them come from one computation of each curve, and the quick one."""
    calls = []
    curve, increases = pac_bayes.kl_curve, pac_bayes._increases_KxA

    def counted(subject, scales, noise, rows):
        calls.append(noise)
        return increases(subject, scales, noise, rows)

    monkeypatch.setattr(pac_bayes, "_increases_KxA", counted)
    found = compiled(mlp, lambda s: {n: m(s) for n, m in pac_bayes.MEASURES.items()})()
    assert sorted(calls, key=str) == sorted(
        (pac_bayes.DEFAULT_NOISE, pac_bayes.QUICK_NOISE, pac_bayes.CONSTANT_NOISE), key=str
    )
    figures, constant = compiled(
        mlp,
        lambda s: (curve(s), curve(s, pac_bayes.SIGMAS, pac_bayes.CONSTANT_NOISE)),
    )()
    for prefix, points in ("", figures), ("constant_", constant):
        for scale, kl, mean, error in zip(*points, strict=True):
            np.testing.assert_allclose(found[f"pac_bayes_{prefix}kl[{scale:g}]"], kl)
            np.testing.assert_allclose(found[f"expected_{prefix}sharpness[{scale:g}]"], mean)
            key = f"expected_{prefix}sharpness_error[{scale:g}]"
            np.testing.assert_allclose(found[key], error)
    crossing = pac_bayes.kl_at(figures)
    assert crossing.reached
    np.testing.assert_allclose(found["pac_bayes_kl_at_0.05"], crossing.kl)
    np.testing.assert_allclose(found["pac_bayes_alpha_at_0.05"], crossing.scale)
    assert found["pac_bayes_kl_at_0.05_quick"] != crossing.kl
    np.testing.assert_allclose(found["pac_bayes_kl_at_0.05_quick"], crossing.kl, rtol=0.5)
    # The bound: of the best sigma, at delta over their number.
    samples, count = len(mlp.labels_N), len(pac_bayes.SIGMAS)
    logs = constant.kl_A + np.log(2 * samples * count / 0.05)
    bounds = mlp.loss + constant.sharpness_A + 4 * np.sqrt(logs / samples)
    np.testing.assert_allclose(found["pac_bayes_bound"], np.min(bounds), rtol=1e-9)
    np.testing.assert_allclose(found["pac_bayes_bound_sigma"], pac_bayes.SIGMAS[np.argmin(bounds)])


def test_names_of_the_points():
    names = set(measures.FAMILIES["pac_bayes"])
    assert {"pac_bayes_kl[0.0003]", "expected_sharpness[0.1]"} <= names
    assert {"expected_sharpness_error[0.7]", "expected_constant_sharpness[0.005]"} <= names


# --- keys, lanes, mistakes ------------------------------------------------------------------------


def measure_few(subject):
    return pac_bayes.kl_curve(subject, (0.01, 0.1), FEW).sharpness_A


def test_the_key_and_the_network_decide_and_nothing_else(mlp):
    measure, other = compiled(mlp, measure_few), jax.random.key(9)
    np.testing.assert_array_equal(measure(), measure())
    assert np.all(measure() != measure(key=other))
    moved = {"params": jax.tree.map(lambda a: 1.1 * a, mlp.params)}
    lanes = [mlp, dataclasses.replace(mlp, key=other, variables=moved)]
    alone = [measure(key=s.key, variables=s.variables) for s in lanes]
    np.testing.assert_allclose(together(lanes, measure_few), alone, rtol=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: Noise("gaussian"), "deviations is 'gaussian'; it must be one of constant, ten_"),
        (lambda s: Noise(draws=1), "draws is 1; a standard error needs at least 2"),
        (lambda s: Noise(at_once=0), "at_once is 0; it must be at least 1"),
        (lambda s: pac_bayes.kl(s, 0.1, about="zero"), "about is 'zero'; it must be one of origin"),
        (
            lambda s: pac_bayes.weights_from(s, "origin", "biases"),
            "counted is 'biases'; it must be one of all, kernels",
        ),
        (lambda s: pac_bayes.kl_curve(s, (0.2, 0.1)), "they must ascend and be above 0"),
        (lambda s: pac_bayes.kl_curve(s, ()), "they must ascend and be above 0"),
        (lambda s: pac_bayes.kl_curve(s, (0.0, 0.1)), "they must ascend and be above 0"),
        (lambda s: pac_bayes.bound(s, 0.1, 1.0, FEW), "delta is 1.0; it must be between 0 and 1"),
        (
            lambda s: pac_bayes.expected_sharpness(s, 0.1, Noise(batch_size=0)),
            "batch_size is 0; it must be at least 1",
        ),
        (
            lambda s: measure_few(dataclasses.replace(s, key=None)),
            "draws random numbers and the subject has no key",
        ),
        (
            lambda s: pac_bayes.kl(
                dataclasses.replace(s, initial_variables=None), 0.1, about="initial"
            ),
            "needs the initial weights",
        ),
    ],
)
def test_mistakes(mlp, call, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda: jax.tree.leaves(call(mlp)) and None)
