"""The search for the worst point in the box against L-BFGS-B, on networks of several kinds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from drawn_networks import compiled, subject_of

from rethink_jax import models
from rethink_jax.measures import landscape, sharpness
from rethink_jax.measures.maximizer import Search
from rethink_jax.measures.sharpness import Box

ALPHAS = (5e-4, 5e-3)
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
    boxes = Box(5e-2, search=Search(restarts=0)), Box(5e-2, search=Search(restarts=0, targets=0))
    with_targets, without = (
        compiled(subject, lambda s, box=box: sharpness.box_sharpness(s, box).increase)()
        for box in boxes
    )
    assert with_targets > 1.05 * without
