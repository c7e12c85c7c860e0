"""The Hessian against the explicit one, and gradients of single images against each other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from drawn_networks import compiled, subject_of, together
from jax.flatten_util import ravel_pytree

from rethink_jax import models
from rethink_jax.measures import curvature, landscape
from rethink_jax.measures.curvature import Lanczos
from rethink_jax.schema import UserError


def explicit(subject):
    """The Hessian [P, P], written out."""
    weights_P, unravel = ravel_pytree(subject.params)
    return np.asarray(jax.jit(jax.hessian(lambda w_P: subject.loss_of(unravel(w_P))))(weights_P))


@pytest.fixture(scope="module")
def small():
    """The oracles' network whose Hessian is known: (subject, its Hessian, eigenvalues, answers)."""
    with jax.enable_x64(True):
        subject, _, _ = oracles.load("mlp_nobias")
        subject = dataclasses.replace(subject, key=jax.random.key(0))
        hessian = explicit(subject)
        answers = oracles.answers("mlp_nobias")["exact_hessian"]
        yield subject, hessian, np.linalg.eigvalsh(hessian), answers


def test_known_answers(small):
    subject, hessian, eigenvalues, answers = small
    assert len(hessian) == answers["n"]
    np.testing.assert_allclose(np.trace(hessian), answers["trace"], rtol=1e-8)
    found = compiled(
        subject, lambda s: curvature.hessian_extremes(s, Lanczos(answers["n"], 5, 3))
    )()
    np.testing.assert_allclose(found.top_T[0], answers["top"], rtol=1e-8)
    np.testing.assert_allclose(found.bottom_T[0], answers["bottom"], rtol=1e-8)
    np.testing.assert_allclose(found.top_T, eigenvalues[::-1][:5], rtol=1e-8)
    np.testing.assert_allclose(found.bottom_T, eigenvalues[:3], rtol=1e-8)


def test_products_are_those_of_the_explicit_hessian(small):
    subject, hessian, _, _ = small
    product = compiled(subject, lambda s, vector_P: curvature.hessian_product(s)(vector_P))
    for vector_P in np.random.default_rng(0).normal(size=(3, len(hessian))):
        np.testing.assert_allclose(product(vector_P), hessian @ vector_P, rtol=1e-9, atol=1e-12)


def test_the_errors_bound_the_distance_to_an_eigenvalue(small):
    subject, _, eigenvalues, _ = small
    for lanczos, at_most in (Lanczos(5, 3, 2), 1.0), (Lanczos(20, 3, 2), 2e-3):
        found = compiled(subject, lambda s, how=lanczos: curvature.hessian_extremes(s, how))()
        values = np.concatenate([found.top_T, found.bottom_T])
        errors = np.concatenate([found.top_errors_T, found.bottom_errors_T])
        distances = np.min(np.abs(eigenvalues - values[:, None]), axis=1)
        assert np.all(distances <= errors + 1e-10)
        assert 0 < np.max(errors) < at_most
        assert (np.max(distances) > 1e-3) == (lanczos.steps == 5), "they are not all 0"
        assert np.all(np.diff(found.top_T) < 0) and np.all(np.diff(found.bottom_T) > 0)


def test_a_hessian_of_small_rank():
    """Of few images: Lanczos finds all that is not 0, and goes on."""
    subject = subject_of(models.build("mlp", 3, hidden=(4,)), image=(2, 2, 1), images=2)
    subject = dataclasses.replace(subject, key=jax.random.key(0))
    eigenvalues = np.linalg.eigvalsh(explicit(subject))
    assert np.sum(np.abs(eigenvalues) > 1e-9) < 20 < len(eigenvalues)
    found = compiled(subject, lambda s: curvature.hessian_extremes(s, Lanczos(30, 2, 2)))()
    np.testing.assert_allclose(found.top_T, eigenvalues[::-1][:2], rtol=1e-7)
    np.testing.assert_allclose(found.bottom_T, eigenvalues[:2], rtol=1e-7, atol=1e-9)


def test_the_trace(small):
    subject, hessian, _, answers = small
    found = compiled(subject, lambda s: curvature.hessian_trace(s, 400))()
    assert abs(found.mean - answers["trace"]) < 4 * found.standard_error
    # Of random signs, the deviation of one draw is known.
    off = hessian - np.diag(np.diag(hessian))
    deviation = np.sqrt(2 * np.sum(off**2))
    np.testing.assert_allclose(found.standard_error * 20, deviation, rtol=0.2)


def test_the_spectral_density(small):
    subject, hessian, eigenvalues, answers = small
    size = len(hessian)
    found = compiled(subject, lambda s: curvature.hessian_spectrum(s, 50, size, 800))()
    np.testing.assert_allclose(np.sum(found.weights_VxS, axis=1), 1, rtol=1e-10)
    step = found.places_G[1] - found.places_G[0]
    np.testing.assert_allclose(np.sum(found.density_G) * step, 1, atol=0.01)
    # Its mean is trace / P: of each vector, that of its quadratic form.
    means_V = np.sum(found.weights_VxS * found.nodes_VxS, axis=1)
    mean = np.sum(found.places_G * found.density_G) * step
    np.testing.assert_allclose(mean, np.mean(means_V), rtol=0.02)
    error = np.std(means_V, ddof=1) / len(means_V) ** 0.5
    assert abs(np.mean(means_V) - answers["trace"] / size) < 4 * error
    # And its second moment that of the eigenvalues, its ends theirs.
    squares_V = np.sum(found.weights_VxS * found.nodes_VxS**2, axis=1)
    error = np.std(squares_V, ddof=1) / len(means_V) ** 0.5
    assert abs(np.mean(squares_V) - np.mean(eigenvalues**2)) < 4 * error
    np.testing.assert_allclose(np.max(found.nodes_VxS), eigenvalues[-1], rtol=1e-8)
    assert found.places_G[0] < eigenvalues[0] and eigenvalues[-1] < found.places_G[-1]


def test_products_of_a_network_with_convolutions_and_batch_norm():
    """Against differences of gradients; the batch statistics stay as they are."""
    layers = ("conv 4 3", "batch_norm", "relu", "conv 3 1", "relu", "global_avg_pool")
    subject = subject_of(models.build("sequential", 4, layers=layers), image=(5, 5, 2), images=6)
    loss = landscape.flat(subject)
    vector_P = jnp.asarray(np.random.default_rng(0).normal(size=loss.weights_P.size))
    at_both, product = (
        compiled(subject, measure)
        for measure in (
            lambda s, v: [landscape.flat(s).value_and_gradient(e * v)[1] for e in (1e-6, -1e-6)],
            lambda s, v: curvature.hessian_product(s)(v),
        )
    )
    above, below = at_both(vector_P)
    found = product(vector_P)
    np.testing.assert_allclose(found, (above - below) / 2e-6, rtol=1e-4, atol=1e-6)
    assert jnp.linalg.norm(found) > 0.1


# --- gradients of single images -------------------------------------------------------------------


@pytest.fixture(scope="module")
def mlp():
    with jax.enable_x64(True):
        subject = subject_of(models.build("mlp", 4, hidden=(5,)), image=(2, 2, 2), images=21)
        yield dataclasses.replace(subject, key=jax.random.key(3))


def gradients_NxP(subject, labels_N):
    """Of the loss of each image: the Jacobian of all losses."""
    weights_P, unravel = ravel_pytree(subject.params)

    def losses_N(weights_P):
        logs_NxY = jax.nn.log_softmax(subject.logits_of(unravel(weights_P)))
        return -logs_NxY[jnp.arange(len(labels_N)), jnp.asarray(labels_N)]

    return np.asarray(jax.jit(jax.jacrev(losses_N))(weights_P))


@pytest.mark.parametrize("at_once", [1, 8, 100])
def test_gradient_noise_is_that_of_explicit_gradients(mlp, at_once):
    rows = gradients_NxP(mlp, mlp.labels_N)
    found = compiled(mlp, lambda s: curvature.gradient_noise(s, at_once=at_once))()
    mean = rows.mean(0)
    np.testing.assert_allclose(found.second_moment, np.mean(np.sum(rows**2, 1)), rtol=1e-10)
    np.testing.assert_allclose(found.variance, np.mean(np.sum((rows - mean) ** 2, 1)), rtol=1e-10)
    np.testing.assert_allclose(found.mean_squared, np.sum(mean**2), rtol=1e-10)


def test_the_trace_of_the_fisher_information(mlp):
    """Labels drawn from the network: the mean over keys is the sum over labels by their chance."""
    chances_NxY = np.asarray(jax.nn.softmax(mlp.logits_NxY))
    exact = sum(
        np.mean(chances_NxY[:, y] * np.sum(gradients_NxP(mlp, [y] * 21) ** 2, 1)) for y in range(4)
    )

    def one(subject):
        return curvature.gradient_noise(subject, "drawn").second_moment

    keys = jax.random.split(jax.random.key(0), 100)
    values = together([dataclasses.replace(mlp, key=key) for key in keys], one)
    error = np.std(values, ddof=1) / 10
    assert 0 < error < 0.2 * exact
    assert abs(np.mean(values) - exact) < 4 * error


# --- keys, lanes, mistakes ------------------------------------------------------------------------

WITH_KEYS = {
    "top": lambda s: curvature.hessian_extremes(s, Lanczos(4, 1, 1)).top_T[0],
    "trace": lambda s: curvature.hessian_trace(s, 3).mean,
    "spectrum": lambda s: jnp.max(curvature.hessian_spectrum(s, 2, 5, 10).density_G),
    "fisher_trace": lambda s: curvature.gradient_noise(s, "drawn").second_moment,
}


@pytest.mark.parametrize("name", WITH_KEYS)
def test_the_key_and_the_network_decide_and_nothing_else(mlp, name):
    measure, other = compiled(mlp, WITH_KEYS[name]), jax.random.key(9)
    assert measure() == measure()
    assert measure() != measure(key=other)
    moved = {"params": jax.tree.map(lambda a: 1.1 * a, mlp.params)}
    lanes = [mlp, dataclasses.replace(mlp, key=other, variables=moved)]
    alone = [measure(key=s.key, variables=s.variables) for s in lanes]
    np.testing.assert_allclose(together(lanes, WITH_KEYS[name]), alone, rtol=1e-8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: Lanczos(3, 3, 1), "top is 3, bottom is 1 and steps is 3"),
        (lambda s: Lanczos(bottom=0), "both must be at least 1"),
        (
            lambda s: curvature.hessian_extremes(s, Lanczos(1000, 900, 50)),
            r"900 \+ 50 eigenvalues of \d+ weights; ask for fewer",
        ),
        (lambda s: curvature.hessian_trace(s, 1), "draws is 1; a standard error needs at least 2"),
        (lambda s: curvature.hessian_spectrum(s, 0), "vectors is 0"),
        (
            lambda s: curvature.gradient_noise(s, "true"),
            "labels is 'true'; it must be one of data, drawn",
        ),
        (lambda s: curvature.gradient_noise(s, at_once=0), "at_once is 0; it must be at least 1"),
        (
            lambda s: curvature.hessian_trace(dataclasses.replace(s, key=None)),
            "draws random numbers and the subject has no key",
        ),
    ],
)
def test_mistakes(mlp, call, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda: jax.tree.leaves(call(mlp)) and None)
