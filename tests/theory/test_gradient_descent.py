"""Gradient descent on a linear model against loops and the pseudo-inverse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rethink_jax import inputs, streams, train, trials
from rethink_jax.data import sources
from rethink_jax.data.corruption import corrupt_pixels, pixel_stats
from rethink_jax.schema import UserError
from rethink_jax.theory import gradient_descent

RNG = np.random.default_rng(0)
N, D, Y, B = 12, 30, 2, 5
ROWS, TARGETS = RNG.normal(size=(N, D)), RNG.normal(size=(N, Y))
START = RNG.normal(size=(D, Y))
GEOMETRY = gradient_descent.geometry(ROWS)
RATE = 1.9 / gradient_descent.largest_curvature(ROWS, B)
MINIMUM_NORM = np.linalg.pinv(ROWS) @ TARGETS


def descend(start, epochs, **options):
    options = {"learning_rate": RATE, "batch_size": B, "seed": 3} | options
    return gradient_descent.descend(ROWS, TARGETS, start, epochs, **options)


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_steps(momentum):
    found = descend(START, [0, 1, 1, 3], momentum=momentum, learning_rate=RATE / 5)
    weights, velocity = START.copy(), np.zeros_like(START)
    after = [weights]
    for epoch in range(3):
        key = streams.stream(3, streams.ORDER, epoch)
        order = np.asarray(jax.random.permutation(key, N))
        for batch in order[:10].reshape(2, B):
            gradient = ROWS[batch].T @ (ROWS[batch] @ weights - TARGETS[batch]) / B
            velocity = momentum * velocity + gradient
            weights = weights - RATE / 5 * velocity
        after.append(weights)
    expected = [after[0], after[1], after[1], after[3]]
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-13)


def test_all_rows_are_one_step():
    found = descend(START, [1, 2], batch_size=None, learning_rate=0.1)
    once = START - 0.1 * ROWS.T @ (ROWS @ START - TARGETS) / N
    np.testing.assert_allclose(found[0], once, rtol=1e-12)
    np.testing.assert_allclose(
        found[1], once - 0.1 * ROWS.T @ (ROWS @ once - TARGETS) / N, rtol=1e-11
    )


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_from_zero_it_finds_the_minimum_norm(momentum):
    rate = RATE * (1 - momentum)
    (found,) = descend(np.zeros((D, Y)), [4000], momentum=momentum, learning_rate=rate)
    np.testing.assert_allclose(found, MINIMUM_NORM, rtol=0, atol=1e-10)
    assert np.linalg.norm(ROWS @ found - TARGETS) < 1e-10


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_from_elsewhere_it_finds_what_is_closest(momentum):
    epochs = [0, 1, 10, 100, 4000]
    rate = RATE * (1 - momentum)
    found = descend(START, epochs, momentum=momentum, learning_rate=rate)
    expected = gradient_descent.limit(GEOMETRY, ROWS, TARGETS, START)
    np.testing.assert_allclose(found[-1], expected, atol=1e-10)
    # It is not the minimum norm: that component of the start is still there, whole.
    frozen = GEOMETRY.frozen_DxK.T @ found
    np.testing.assert_allclose(frozen, np.broadcast_to(frozen[0], frozen.shape), atol=1e-12)
    apart = np.linalg.norm(found[-1] - MINIMUM_NORM)
    assert apart == pytest.approx(np.linalg.norm(frozen[0]), rel=1e-9)
    assert apart > 1


def test_limit():
    expected = gradient_descent.limit(GEOMETRY, ROWS, TARGETS, START)
    np.testing.assert_allclose(ROWS @ expected, TARGETS, atol=1e-12)
    # The closest: the way to it is in the span of the rows.
    way = expected - START
    np.testing.assert_allclose(ROWS.T @ np.linalg.lstsq(ROWS.T, way)[0], way, atol=1e-12)
    from_zero = gradient_descent.limit(GEOMETRY, ROWS, TARGETS, np.zeros((D, Y)))
    np.testing.assert_allclose(from_zero, MINIMUM_NORM, atol=1e-12)


def test_geometry():
    np.testing.assert_allclose(GEOMETRY.pseudo_inverse_DxN, np.linalg.pinv(ROWS), atol=1e-12)
    assert GEOMETRY.frozen_DxK.shape == (D, D - N)
    np.testing.assert_allclose(ROWS @ GEOMETRY.frozen_DxK, 0, atol=1e-12)
    np.testing.assert_allclose(GEOMETRY.frozen_DxK.T @ GEOMETRY.frozen_DxK, np.eye(18), atol=1e-12)
    values = np.linalg.eigvalsh(ROWS @ ROWS.T / N)[::-1]
    np.testing.assert_allclose(GEOMETRY.eigenvalues_R, values, rtol=1e-10)
    assert GEOMETRY.condition == pytest.approx(np.linalg.cond(ROWS) ** 2)


def test_geometry_of_dependent_rows():
    rows = np.concatenate([ROWS, ROWS[:2] + ROWS[2:4]])
    found = gradient_descent.geometry(rows)
    assert len(found.eigenvalues_R) == N
    np.testing.assert_allclose(found.pseudo_inverse_DxN, np.linalg.pinv(rows), atol=1e-12)
    with pytest.raises(UserError, match="rows are all 0"):
        gradient_descent.geometry(np.zeros((2, 3)))


@pytest.mark.parametrize("size", [1, 3, N])
def test_curvature_bounds_every_batch(size):
    bound = gradient_descent.largest_curvature(ROWS, size)
    batches = [RNG.choice(N, size, replace=False) for _ in range(200)]
    largest = max(np.linalg.norm(ROWS[b], ord=2) ** 2 / size for b in batches)
    assert largest <= bound < 3 * largest
    if size == 1:
        assert bound == pytest.approx(np.max(np.sum(ROWS**2, axis=1)))


def test_the_bound_is_reached_by_rows_that_are_the_same():
    rows = np.tile(ROWS[:1], (4, 1))
    assert gradient_descent.largest_curvature(rows, 2) == pytest.approx(ROWS[0] @ ROWS[0])


def test_no_step_below_the_bound_goes_away_from_the_limit():
    found = descend(START, range(40), batch_size=1, learning_rate=1.9 / max((ROWS**2).sum(1)))
    limit = gradient_descent.limit(GEOMETRY, ROWS, TARGETS, START)
    distances = np.linalg.norm(found - limit, axis=(1, 2))
    assert (np.diff(distances) < 0).all()


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.95])
def test_rate(momentum):
    """Of all rows at once, it is what is left of the slowest mode after one more step."""
    rate = 0.5 / GEOMETRY.eigenvalues_R[0]
    found = descend(
        np.zeros((D, Y)), [400, 500], batch_size=None, learning_rate=rate, momentum=momentum
    )
    slowest = gradient_descent.rate(rate, momentum, GEOMETRY.eigenvalues_R[-1])
    distances = np.linalg.norm(found - MINIMUM_NORM, axis=(1, 2))
    if momentum < 0.9:
        assert distances[1] / distances[0] == pytest.approx(slowest**100, rel=1e-2)
    else:  # Complex roots: oscillations within the rate of the root's size.
        assert slowest == pytest.approx(np.sqrt(momentum))
        assert distances[1] / distances[0] == pytest.approx(slowest**100, rel=2)


def test_refused():
    for size in (0, N + 1):
        with pytest.raises(UserError, match=f"batch_size is {size}; take 1 to 12"):
            descend(START, [1], batch_size=size)


def test_networks_of_the_sweep_stay_in_the_span(small_trial):
    """Any loss of linear outputs: cross-entropy in float32 does not leave the span either."""
    trial = trials.resolve(
        small_trial(
            model__hidden=(), data__num_train=40, batch_size=10, stop__max_epochs=20,
            optimizer__momentum=0.9,
        )
    )  # fmt: skip
    dataset = inputs.trial_dataset(sources.digits(), dict(trial.static))
    spec = inputs.make_spec([trial], dataset, 20)
    stats = pixel_stats(dataset.train_images)
    made = [
        train.Images(*(
            a[None]
            for a in corrupt_pixels(split, inputs.pixel_spec(trial), stats, is_test)
        ))
        for split, is_test in ((dataset.train_images, False), (dataset.test_images, True))
    ]  # fmt: skip
    data = jax.tree.map(jnp.asarray, train.Data(*made, dataset.test_labels))
    labels = inputs.trial_labels(trial, dataset)
    own = jax.tree.map(jnp.asarray, train.Inputs(inputs.trial_hypers(trial), *labels, np.int32(0)))
    state = train.init_trial(spec, own)
    before = np.asarray(state.params["Dense_0"]["kernel"], np.float64)
    advance = jax.jit(lambda s: train.advance(spec, data, own, s))
    while state.status == train.RUNNING:
        state = advance(state)
    moved = np.asarray(state.params["Dense_0"]["kernel"], np.float64) - before
    rows = dataset.train_images.reshape(40, -1) / 255
    rows = rows - rows.mean(1, keepdims=True)
    frozen = gradient_descent.geometry(rows / rows.std(1, keepdims=True)).frozen_DxK
    assert frozen.shape[1] == 24
    assert np.linalg.norm(moved) > 0.5
    assert np.linalg.norm(frozen.T @ moved) < 1e-5 * np.linalg.norm(moved)
