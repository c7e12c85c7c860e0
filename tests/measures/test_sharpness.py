"""Sharpness against known answers, against L-BFGS-B, and what theory says of it."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
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


# --- what theory says -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mlp():
    """A network of two hidden layers, and a function that gives it a loss below that of chance."""
    with jax.enable_x64(True):
        subject = subject_of(models.build("mlp", 4, hidden=(6, 5)), image=(2, 2, 2), images=20)
        labels_N = jnp.argmax(subject.logits_NxY, 1).astype(jnp.int32)
        yield dataclasses.replace(subject, labels_N=labels_N, key=jax.random.key(3))


def rescaled(subject, seed=0):
    """The same function: into each unit times c, out of it by c. Also c of each weight [P]."""
    rng = np.random.default_rng(seed)
    factors, into = {}, None
    for name in sorted(subject.params):
        kernel = subject.params[name]["kernel"]
        last = name == max(subject.params)
        out = np.ones(kernel.shape[1]) if last else rng.uniform(0.3, 3, kernel.shape[1])
        before = np.ones(kernel.shape[0]) if into is None else into
        factors[name] = {"kernel": jnp.asarray(out / before[:, None]), "bias": jnp.asarray(out)}
        into = out
    params = jax.tree.map(jnp.multiply, subject.params, factors)
    other = dataclasses.replace(subject, variables={"params": params})
    np.testing.assert_allclose(other.logits_NxY, subject.logits_NxY, rtol=1e-12)
    return other, ravel_pytree(factors)[0]


def first_order(subject, rule, alpha):
    """What the maximum over a small box tends to: the widths times the sizes of the gradient."""
    loss = landscape.flat(subject)
    _, gradient_P = loss.value_and_gradient(jnp.zeros_like(loss.weights_P))
    return alpha * jnp.sum(sharpness.BOXES[rule](loss.weights_P) * jnp.abs(gradient_P)), gradient_P


@pytest.mark.parametrize("rule", sharpness.BOXES)
def test_rescaling_units_changes_sharpness_unless_the_box_is_of_the_weights_size(mlp, rule):
    other, factors_P = rescaled(mlp)
    small = Box(1e-7, rule, search=Search(restarts=0, targets=0, refinements=0))
    measure = compiled(
        mlp, lambda s: (sharpness.box_sharpness(s, small), sharpness.random_search(s, small, 10))
    )
    (box, drawn), (box_2, drawn_2) = measure(), measure(variables=other.variables)
    expected, gradient_P = first_order(mlp, rule, small.alpha)
    np.testing.assert_allclose(box.increase, expected, rtol=1e-4)
    # The gradient of a weight that is c times as large is 1/c of it.
    weights_P = landscape.flat(other).weights_P
    sizes_P = sharpness.BOXES[rule](weights_P) * jnp.abs(gradient_P / factors_P)
    np.testing.assert_allclose(box_2.increase, small.alpha * jnp.sum(sizes_P), rtol=1e-4)
    if rule == "weight":
        np.testing.assert_allclose(box_2.increase, box.increase, rtol=1e-4)
        # The points drawn are the same functions.
        np.testing.assert_allclose(drawn_2.increase, drawn.increase, rtol=1e-6)
    else:
        assert abs(box_2.increase / box.increase - 1) > 0.05
    # The l2 norm changes, too, by the factors.
    squares = jnp.sum(jnp.square(landscape.flat(mlp).weights_P * factors_P))
    np.testing.assert_allclose(jnp.sum(jnp.square(weights_P)), squares, rtol=1e-12)
    assert abs(squares / jnp.sum(jnp.square(landscape.flat(mlp).weights_P)) - 1) > 0.1


def test_the_ball_is_the_one_of_sharpness_aware_minimization(mlp):
    loss = landscape.flat(mlp)
    _, gradient_P = loss.value_and_gradient(jnp.zeros_like(loss.weights_P))
    along_P = gradient_P / jnp.linalg.norm(gradient_P)
    one_step = Ball(0.05, steps=1)
    found = compiled(mlp, lambda s: sharpness.ball_sharpness(s, one_step))()
    np.testing.assert_allclose(found.displacement_P, 0.05 * along_P, rtol=1e-8)
    np.testing.assert_allclose(found.increase, loss.value(0.05 * along_P) - mlp.loss, rtol=1e-10)
    more = compiled(mlp, lambda s: sharpness.ball_sharpness(s, Ball(0.5)))()
    assert jnp.linalg.norm(more.displacement_P) <= 0.5 * (1 + 1e-12)
    assert more.increase > loss.value(0.5 * along_P) - mlp.loss
    directions = np.random.default_rng(0).normal(size=(50, along_P.size))
    sphere = 0.5 * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    assert more.increase > max(loss.value(jnp.asarray(point)) - mlp.loss for point in sphere)


@pytest.mark.parametrize("columns", sharpness.COLUMNS)
def test_the_subspace(mlp, columns):
    """The point found is of the subspace and in its box, and better than points drawn from it."""
    alpha, dimensions = 0.01, 7
    found = compiled(
        mlp, lambda s: sharpness.subspace_sharpness(s, Box(alpha), dimensions, columns)
    )()
    weights_P = np.asarray(landscape.flat(mlp).weights_P)
    key = landscape.key_for(mlp, landscape.SUBSPACE)
    basis = np.asarray(jax.random.normal(key, (weights_P.size, dimensions), jnp.float64))
    if columns == "unit":
        basis = basis / np.linalg.norm(basis, axis=0)
    inverse = np.linalg.pinv(basis)
    widths = alpha * (np.abs(inverse @ weights_P) + 1)
    place = inverse @ found.displacement_P
    np.testing.assert_allclose(basis @ place, found.displacement_P, rtol=1e-8, atol=1e-12)
    assert np.max(np.abs(place) / widths) <= 1 + 1e-9
    rng = np.random.default_rng(0)
    loss = jax.jit(landscape.flat(mlp).value)
    corners = widths * rng.choice([-1.0, 1.0], (60, dimensions))
    assert found.increase >= max(loss(jnp.asarray(basis @ z)) for z in corners) - mlp.loss > 0


def test_a_batch_is_searched_and_all_images_are_reported(mlp):
    full, part = (
        compiled(mlp, lambda s, n=n: sharpness.box_sharpness(s, Box(0.02, batch_size=n)))()
        for n in (None, 5)
    )
    assert 0 < part.increase < full.increase
    weights_P, unravel = ravel_pytree(mlp.params)
    there = mlp.loss_of(unravel(weights_P + part.displacement_P))
    np.testing.assert_allclose(part.increase, there - mlp.loss, rtol=1e-10)
    # It is the worst point found for the batch, and not for all images.
    batch = landscape.batch_of(mlp, landscape.key_for(mlp, landscape.BATCHES), 5)
    assert len(batch.labels_N) == len(np.unique(batch.images_NxHxWxC, axis=0)) == 5
    on_batch = [
        batch.loss_of(unravel(weights_P + d.displacement_P)) - batch.loss for d in (part, full)
    ]
    assert on_batch[0] > on_batch[1]


def test_a_network_that_has_diverged_has_no_sharpness(mlp):
    broken = jax.tree.map(lambda a: jnp.full_like(a, jnp.nan), mlp.variables)
    found = compiled(mlp, lambda s: sharpness.random_search(s, draws=3))(variables=broken)
    assert np.isnan(found.increase)


# --- keys and lanes -------------------------------------------------------------------------------

QUICK = Box(0.02, search=Search(restarts=2, target_steps=3, steps=5, refinements=3))
WITH_KEYS = {
    "box": lambda s: sharpness.box_sharpness(s, QUICK).increase,
    "subspace": lambda s: sharpness.subspace_sharpness(s, QUICK, 5).increase,
    "random_search": lambda s: sharpness.random_search(s, QUICK, 5).increase,
    "ball": lambda s: sharpness.ball_sharpness(s, Ball(0.3, batch_size=5)).increase,
}


@pytest.mark.parametrize("name", WITH_KEYS)
def test_the_key_and_the_network_decide_and_nothing_else(mlp, name):
    measure = compiled(mlp, WITH_KEYS[name])
    other = jax.random.key(9)
    assert measure() == measure()
    if name != "box":  # The search ends at the same point from all starts; the others do not.
        assert measure() != measure(key=other)
    lanes = [mlp, dataclasses.replace(rescaled(mlp)[0], key=other)]
    alone = [measure(key=s.key, variables=s.variables) for s in lanes]
    np.testing.assert_allclose(together(lanes, WITH_KEYS[name]), alone, rtol=1e-8)


def test_without_a_key():
    subject = subject_of(models.build("mlp", 4, hidden=(3,)))
    with pytest.raises(UserError, match="draws random numbers and the subject has no key"):
        sharpness.box_sharpness(subject)
    # Nothing is drawn for a ball and all images.
    assert compiled(subject, lambda s: sharpness.ball_sharpness(s).increase)() > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: Box(rule="box"), "rule is 'box'; it must be one of weight_plus_one, weight"),
        (lambda s: Box(0.0), "alpha is 0.0; a box needs one above 0"),
        (lambda s: Ball(-1.0), "radius is -1.0; a ball needs one above 0"),
        (
            lambda s: sharpness.subspace_sharpness(s, columns="random"),
            "columns is 'random'; it must be one of normal, unit",
        ),
        (
            lambda s: sharpness.subspace_sharpness(s, dimensions=10_000),
            r"10000 dimensions of \d+ weights; take from 1 to",
        ),
        (
            lambda s: sharpness.box_sharpness(s, Box(batch_size=0)),
            "batch_size is 0; it must be at least 1",
        ),
    ],
)
def test_mistakes(mlp, call, message):
    with pytest.raises(UserError, match=message):
        call(mlp)
