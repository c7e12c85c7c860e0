"""The search for a maximum, on functions whose maxima are known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rethink_jax.measures import maximizer
from rethink_jax.measures.maximizer import BALL, BOX, Best, Objective, Search, Targets
from rethink_jax.schema import UserError

NOWHERE = Targets(0, lambda number: None)
SIZE = 12
WALKS = Search(restarts=0, refinements=0)


def objective_of(function):
    return Objective(function, jax.value_and_grad(function))


def searching(function, search, targets=NOWHERE):
    """The search as a program of a key."""
    return jax.jit(
        lambda key: maximizer.maximize_in_box(
            objective_of(function), jnp.zeros(SIZE), search, key, targets
        )
    )


def maximum(function, search=WALKS, targets=NOWHERE):
    return searching(function, search, targets)(jax.random.key(0))


def curved(seed=0, size=SIZE):
    """A concave function whose maximum over the box is on its border, and the matrix and centre."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(size, size))
    matrix = root @ root.T / size + 0.1 * np.eye(size)
    centre = rng.normal(size=size)
    return lambda x: -(x - centre) @ jnp.asarray(matrix) @ (x - centre) / 2, matrix, centre


def test_maximum_of_a_concave_function_in_the_box():
    function, matrix, centre = curved()
    found = maximum(function, dataclasses.replace(WALKS, refinements=40))
    # Coordinate by coordinate, each to the best in its range: it converges to the maximum.
    best = np.zeros(SIZE)
    for _ in range(2000):
        for i in range(SIZE):
            pull = matrix[i] @ (centre - best) + matrix[i, i] * best[i]
            best[i] = np.clip(pull / matrix[i, i], -1, 1)
    assert np.sum(np.abs(best) == 1) >= 3, "the border takes part"
    np.testing.assert_allclose(found.value, function(best), rtol=1e-8)
    np.testing.assert_allclose(found.point_P, best, atol=1e-4)
    assert jnp.max(jnp.abs(found.point_P)) <= 1


def test_a_linear_function_is_largest_in_a_corner():
    slope = jnp.asarray(np.random.default_rng(0).normal(size=SIZE))
    found = maximum(lambda x: slope @ x)
    np.testing.assert_array_equal(found.point_P, jnp.sign(slope))


def two_hills(x):
    """One where the gradient at 0 leads, and a higher one in the opposite corner."""
    distances = jnp.sum(jnp.square(x - 1)) / x.size, jnp.sum(jnp.square(x + 1)) / x.size
    return jnp.exp(-3 * distances[0]) + 2 * jnp.exp(-8 * distances[1]) + 0.2 * jnp.mean(x)


def test_targets_lead_to_hills_that_the_gradient_does_not_show():
    hill = maximum(two_hills)
    assert jnp.min(hill.point_P) > 0.9
    corners = Targets(3, lambda number: jnp.full(SIZE, number - 1.0))
    higher = maximum(two_hills, targets=corners)
    assert jnp.max(higher.point_P) < -0.9
    assert higher.value > 1.5 * hill.value
    # As many of them as the search allows, drawn at random.
    one = searching(two_hills, dataclasses.replace(WALKS, targets=1), corners)
    values = [one(jax.random.key(seed)).value for seed in range(8)]
    assert {bool(value > 1.5 * hill.value) for value in values} == {False, True}


def test_restarts_leave_a_local_maximum():
    """Each coordinate has two; the gradient leads to the lower one."""

    def pairs(x):
        return jnp.sum(jnp.where(x > 0, 1.0, 2.0) * jnp.square(x)) + 1e-3 * jnp.sum(x)

    stuck = maximum(pairs)
    assert stuck.value < SIZE * 1.1
    freed = maximum(pairs, dataclasses.replace(WALKS, restarts=12))
    assert freed.value > SIZE * 1.7


def test_refinement_reaches_the_maximum_from_anywhere_and_stays_there():
    function, _, _ = curved(seed=3)
    rng = np.random.default_rng(0)

    @jax.jit
    def refined(point):
        start = Best(point, function(point))
        return maximizer.refine(objective_of(function), start, Search(refinements=60))

    starts = [jnp.asarray(rng.uniform(-1, 1, SIZE)) for _ in range(4)]
    found = [refined(start) for start in starts]
    best = max(end.value for end in found)
    for start, end in zip(starts, found, strict=True):
        assert function(start) < end.value
        assert jnp.max(jnp.abs(end.point_P)) <= 1
        np.testing.assert_allclose(end.value, best, rtol=1e-6)
        assert refined(end.point_P).value >= end.value


def test_values_that_are_not_finite_are_never_taken():
    def broken(x):
        return jnp.where(jnp.sum(x) > 3, jnp.nan, jnp.where(x[0] > 0.5, jnp.inf, jnp.sum(x)))

    found = maximum(broken, Search(restarts=1, refinements=2))
    assert jnp.isfinite(found.value)
    assert found.value == jnp.sum(found.point_P) <= 3
    one, nan = Best(jnp.zeros(1), jnp.ones(())), Best(jnp.ones(1), jnp.asarray(jnp.nan))
    assert maximizer.better(one, nan).value == 1
    assert maximizer.better(one, nan).point_P == 0


def test_a_walk_in_the_ball_stays_in_it_and_finds_the_farthest_point():
    slope = jnp.asarray(np.random.default_rng(0).normal(size=SIZE))
    search = Search(first_step=1.0, momentum=0.5)
    found = maximizer.ascend(
        objective_of(lambda x: slope @ x - x @ x / 10), BALL, jnp.zeros(SIZE), search
    )
    np.testing.assert_allclose(found.point_P, slope / jnp.linalg.norm(slope), atol=1e-12)
    # Where there is no slope it stays, and nothing is divided by 0.
    flat = maximizer.ascend(objective_of(lambda x: 0 * x[0]), BALL, jnp.zeros(SIZE), search)
    np.testing.assert_array_equal(flat.point_P, 0)


def test_evaluations_are_counted_as_they_are_made():
    calls = []
    search = Search(targets=2, target_steps=3, restarts=2, steps=4, refinements=3)

    def counted(function):
        def call(x):
            jax.debug.callback(lambda: calls.append(1))
            return function(x)

        return call

    plain = objective_of(lambda x: -jnp.sum(x * x))
    both = Objective(counted(plain.value), counted(plain.value_and_gradient))
    targets = Targets(5, lambda number: jnp.full(SIZE, 0.1 * number))
    maximizer.maximize_in_box(both, jnp.zeros(SIZE), search, jax.random.key(0), targets)
    jax.effects_barrier()
    assert len(calls) == search.evaluations(5)


def test_several_searches_at_once():
    def found(centre, key):
        function = objective_of(lambda x: -jnp.sum(jnp.square(x - centre)) + x[0] * x[1])
        return maximizer.maximize_in_box(function, jnp.zeros(SIZE), Search(), key, NOWHERE)

    centres = jnp.asarray(np.random.default_rng(0).normal(size=(3, SIZE)))
    keys = jax.random.split(jax.random.key(0), 3)
    at_once = jax.jit(jax.vmap(found))(centres, keys)
    for centre, key, value in zip(centres, keys, at_once.value, strict=True):
        np.testing.assert_allclose(jax.jit(found)(centre, key).value, value, rtol=1e-10)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ({"restarts": -1}, "restarts is -1; it must be at least 0"),
        ({"targets": -1}, "targets is -1; it must be at least 0"),
        ({"steps": 0}, "steps is 0; it must be above 0"),
        ({"first_step": 0.0}, "first_step is 0.0; it must be above 0"),
        ({"redrawn": 1.5}, "redrawn is 1.5; a share is from 0 to 1"),
    ],
)
def test_mistakes(mistake, message):
    with pytest.raises(UserError, match=message):
        Search(**mistake)


def test_the_box_is_a_projection():
    x = jnp.asarray([-2.0, -1.0, 0.3, 5.0])
    np.testing.assert_array_equal(BOX.project(x), [-1, -1, 0.3, 1])
    np.testing.assert_allclose(jnp.linalg.norm(BALL.project(x)), 1)
    np.testing.assert_array_equal(BALL.project(x / 10), x / 10)
