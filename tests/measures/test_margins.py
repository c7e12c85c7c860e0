"""Margins against known answers, and the rules that make one number of them."""

import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from rethink_jax import models
from rethink_jax.measures import margins
from rethink_jax.measures.subject import Subject
from rethink_jax.schema import UserError


def subject_of(logits_NxY, labels_N):
    """A network that gives its images as its logits."""

    def apply(variables, images, train):
        return models.Applied(images.reshape(len(images), -1), {}, ())

    images = jnp.asarray(logits_NxY, float)[:, None, None]
    return Subject(models.Model(None, apply), {"params": {}}, images, jnp.asarray(labels_N))


def with_margins(margins_N):
    margins_N = np.asarray(margins_N, float)
    logits_NxY = np.stack([margins_N, np.zeros_like(margins_N)], axis=1)
    return subject_of(logits_NxY, np.zeros(len(margins_N), int))


@pytest.mark.parametrize("name", oracles.NAMES)
def test_known_answers(name):
    subject, references, logits_NxY = oracles.load(name)
    np.testing.assert_allclose(subject.logits_NxY, logits_NxY, rtol=1e-11, atol=1e-12)
    same_name = {
        "margin_min": "min",
        "margin_mean": "mean",
        "margin_5_literal": "kth_literal_eps05",
        "margin_5_interpolated": "np_percentile_5",
        "margin_10_interpolated": "np_percentile_10",
        "margin_10_kth": "kthvalue_m_div_10",
    }
    for ours, theirs in same_name.items():
        found, expected = margins.MEASURES[ours](subject), references["margin"][theirs]
        np.testing.assert_allclose(found, expected, rtol=1e-10, err_msg=ours)


def test_margin_of_each_image():
    subject = subject_of([[3, 1, 2], [3, 1, 2], [5, 5, 0]], [0, 1, 1])
    np.testing.assert_array_equal(margins.margins(subject), [1, -2, 0])


def test_rules():
    # Of 40 points, ceil(5%) = 2 lie below the third; the second is the floor(5%)-th.
    subject = with_margins(np.random.default_rng(0).permutation(np.arange(1, 41)))
    assert margins.gamma(subject, 5, "literal") == 3
    assert margins.gamma(subject, 5, "kth") == 2
    assert margins.gamma(subject, 5, "interpolated") == 1 + 0.05 * 39
    # 41 points: ceil(2.05) = 3 of them below.
    assert margins.gamma(with_margins(range(1, 42)), 5, "literal") == 4


@pytest.mark.parametrize(("rule", "percent", "fewest"), [("literal", 5, 2), ("kth", 10, 10)])
def test_too_few_images(rule, percent, fewest):
    margins.gamma(with_margins(range(fewest)), percent, rule)
    with pytest.raises(UserError, match=f"at least {fewest} images, and there are {fewest - 1}"):
        margins.gamma(with_margins(range(fewest - 1)), percent, rule)


@pytest.mark.parametrize("margin", [0, -1])
def test_a_margin_that_is_not_positive_makes_bounds_infinite(margin):
    subject = with_margins([margin, margin])
    for log_value in (-jnp.inf, 2.0):
        assert margins.log_over_gamma(subject, log_value, 2) == jnp.inf
    found = margins.log_over_gamma(with_margins([0.5, 0.5]), 2.0, 2)
    np.testing.assert_allclose(found, 2 + 2 * np.log(2))
