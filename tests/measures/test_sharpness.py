"""Sharpness against known answers, against L-BFGS-B, and what theory says of it."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
import scipy.optimize
from drawn_networks import compiled, subject_of, together
from jax.flatten_util import ravel_pytree

from rethink_jax import models
from rethink_jax.measures import landscape, sharpness
from rethink_jax.measures.maximizer import Search
from rethink_jax.measures.sharpness import Ball, Box
from rethink_jax.schema import UserError

ALPHAS = (5e-4, 5e-3)
CONVOLUTIONAL = ("vgg_nobn",)


class Known(NamedTuple):
    """A network with known answers, and what is found for it: {alpha: Sharpness}."""

    name: str
    subject: sharpness.Subject
    answers: dict
    box: dict
    random: dict


@pytest.fixture(scope="module", params=oracles.NAMES)
def known(request):
    with jax.enable_x64(True):
        subject, _, _ = oracles.load(request.param, conv=oracles.quick_conv)
        subject = dataclasses.replace(subject, key=jax.random.key(0))
        found = compiled(
            subject,
            lambda s, alpha: (
                sharpness.box_sharpness(s, Box(alpha)),
                sharpness.random_search(s, Box(alpha)),
            ),
        )
        both = {alpha: found(alpha) for alpha in ALPHAS}
        given = oracles.answers(request.param)["keskar_sharpness"]
        yield Known(
            request.param,
            subject,
            {alpha: given[f"{alpha:g}"] for alpha in ALPHAS},
            {alpha: box for alpha, (box, _) in both.items()},
            {alpha: drawn for alpha, (_, drawn) in both.items()},
        )


def test_the_search_reaches_what_is_known(known):
    for alpha, answer in known.answers.items():
        assert known.box[alpha].increase >= 0.99 * answer["best_increase"], alpha


def test_random_search_is_far_below(known):
    for alpha, answer in known.answers.items():
        drawn, theirs = known.random[alpha].increase, answer["random_search_100"]
        assert 0 < drawn < known.box[alpha].increase
        # The best of 100 uniform points depends on the points, but not by much.
        assert 0.5 < drawn / theirs < 2
        if known.name in CONVOLUTIONAL:
            assert known.box[alpha].increase > 5 * max(drawn, theirs)


def test_what_is_reported_is_the_increase_at_the_point_found(known):
    loss, subject = float(known.subject.loss), known.subject
    weights_P, unravel = ravel_pytree(subject.params)
    for alpha, answer in known.answers.items():
        found = known.box[alpha]
        np.testing.assert_allclose(loss, answer["loss0"], rtol=1e-10)
        there = subject.loss_of(unravel(weights_P + found.displacement_P))
        np.testing.assert_allclose(found.increase, there - loss, rtol=1e-9)
        np.testing.assert_allclose(found.zeta, found.increase / (1 + loss), rtol=1e-12)
        np.testing.assert_allclose(found.keskar, 100 * found.zeta, rtol=1e-12)
        outside = np.abs(found.displacement_P) / (alpha * (np.abs(weights_P) + 1)) - 1
        assert np.max(outside) <= 1e-12


# --- other networks -------------------------------------------------------------------------------

NETWORKS = {
    "two_layer": ("flatten", "dense 12", "relu"),
    "batch_norm": (
        *("conv 5 3", "batch_norm", "relu", "max_pool 2", "conv 6 3", "relu", "batch_norm"),
        *("global_avg_pool", "dense 6", "batch_norm", "relu"),
    ),
    "network_in_network": (
        *("conv 6 3 2", "batch_norm", "relu", "conv 6 1", "batch_norm", "relu"),
        *("conv 5 1", "batch_norm", "relu", "global_avg_pool"),
    ),
}


def drawn(layers, images=40, seed=0):
    """A network of random weights that fits its labels."""
    model = models.build("sequential", 5, layers=layers)
    subject = subject_of(model, image=(6, 6, 3), images=images, seed=seed)
    labels_N = jnp.argmax(subject.logits_NxY, 1).astype(jnp.int32)
    return dataclasses.replace(subject, labels_N=labels_N, key=jax.random.key(seed))


def by_lbfgsb(subject, alpha, starts):
    """The largest increase in the box from several starts, by scipy."""
    loss = landscape.flat(subject)
    value_and_gradient = compiled(subject, lambda s, d_P: landscape.flat(s).value_and_gradient(d_P))
    widths_P = np.asarray(alpha * (np.abs(loss.weights_P) + 1))
    without, gradient_P = value_and_gradient(jnp.zeros_like(loss.weights_P))
    # In units of the first-order increase: scipy takes its first step and stops by absolute sizes.
    unit = float(np.sum(np.abs(gradient_P) * widths_P))

    def minus(point_P):
        value, gradient_P = value_and_gradient(jnp.asarray(widths_P * point_P))
        return -float(value - without) / unit, -np.asarray(gradient_P) * widths_P / unit

    found = [
        scipy.optimize.minimize(
            minus, start, jac=True, method="L-BFGS-B", bounds=[(-1, 1)] * widths_P.size
        )
        for start in (np.sign(gradient_P), *starts(widths_P.size))
    ]
    return -min(end.fun for end in found) * unit


@pytest.mark.parametrize("name", NETWORKS)
def test_the_search_is_not_below_lbfgsb(name):
    subject = drawn(NETWORKS[name])
    rng = np.random.default_rng(0)
    found = compiled(subject, lambda s, alpha: sharpness.box_sharpness(s, Box(alpha)).increase)
    for alpha in ALPHAS:
        best = by_lbfgsb(subject, alpha, lambda size: rng.choice([-0.5, 0.5], (3, size)))
        assert found(alpha) >= 0.99 * best > 0


def trained():
    """A small network that has learned its images by heart: its loss is near 0."""
    model = models.build("mlp", 10, hidden=(12,))
    subject = subject_of(model, image=(4, 4, 1), images=50)
    labels_N = jnp.asarray(np.random.default_rng(1).integers(0, 10, 50), jnp.int32)
    subject = dataclasses.replace(subject, labels_N=labels_N, key=jax.random.key(0))
    optimizer = optax.adam(0.03)

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(subject.loss_of)(params), state)
        return (optax.apply_updates(params, updates), state), None

    start = (subject.params, optimizer.init(subject.params))
    (params, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, length=600))(start)
    return dataclasses.replace(subject, variables={"params": params})


def test_walks_toward_every_class_find_what_the_gradient_does_not_show():
    subject = trained()
    assert subject.loss < 0.01
    increases = []
    for search in Search(restarts=0), Search(restarts=0, targets=0):
        measure = compiled(
            subject, lambda s, b=Box(5e-2, search=search): sharpness.box_sharpness(s, b).increase
        )
        increases.append(float(measure()))
    print(increases)
    assert increases[0] > 1.05 * increases[1]
    assert increases[0] >= 0.99 * by_lbfgsb(
        subject, 5e-2, lambda size: np.random.default_rng(0).choice([-1.0, 1.0], (12, size))
    )
