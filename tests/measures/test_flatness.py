"""Flatness: the noise of a given effect is found, and the numbers made of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_networks import compiled, subject_of, together
from jax.flatten_util import ravel_pytree

from rethink_jax import models
from rethink_jax.measures import flatness
from rethink_jax.measures.flatness import MAGNITUDE, PLAIN, Flatness, Found
from rethink_jax.schema import UserError


@pytest.fixture(scope="module")
def mlp():
    """A network that fits its labels, and as large weights at first."""
    with jax.enable_x64(True):
        model = models.build("mlp", 4, hidden=(6,))
        subject = subject_of(model, image=(2, 2, 2), images=200)
        start = subject_of(model, image=(2, 2, 2), seed=5).variables
        labels_N = jnp.argmax(subject.logits_NxY, 1).astype(jnp.int32)
        yield dataclasses.replace(
            subject, labels_N=labels_N, initial_variables=start, key=jax.random.key(3)
        )


def rows_of(subject, count=8):
    size = ravel_pytree(subject.params)[0].size
    return jnp.asarray(np.random.default_rng(0).normal(size=(count, size)))


def effect(subject, deviations_P, rows_KxP, change):
    """The mean change that noise of these deviations makes, in plain numpy but for the logits."""
    weights_P, unravel = ravel_pytree(subject.params)
    changes = []
    for row in rows_KxP:
        logits = [
            np.asarray(subject.logits_of(unravel(weights_P + moved)))
            for moved in (deviations_P * row, 0 * row)
        ]
        labels = np.asarray(subject.labels_N)
        if change == "accuracy":
            with_noise, without = (-np.mean(np.argmax(a, 1) == labels) for a in logits)
        else:
            with_noise, without = (
                np.mean(np.log(np.sum(np.exp(a), 1)) - a[np.arange(len(a)), labels]) for a in logits
            )
        changes.append(with_noise - without)
    return np.mean(changes)


CHOICES = {
    "plain": PLAIN,
    "magnitude": MAGNITUDE,
    "loss": Flatness(change="loss", target=0.5, tolerance=1e-3, steps=25),
    "mistake": Flatness(mistake=True),
    "magnitude_mistake": Flatness(magnitude=True, mistake=True, target=0.2),
}


@pytest.mark.parametrize("name", CHOICES)
def test_the_noise_found_has_the_effect_that_is_the_target(mlp, name):
    how, rows_KxP = CHOICES[name], rows_of(mlp)
    found = compiled(mlp, lambda s, rows: flatness.sigma_of(s, how, rows))(rows_KxP)
    assert found.reached
    weights_P = np.asarray(ravel_pytree(mlp.params)[0])
    deviations_P = np.full(weights_P.size, float(found.sigma))
    if how.magnitude:
        deviations_P = np.sqrt(found.sigma**2 * weights_P**2 + 1e-3**2)
    if how.mistake:
        deviations_P = deviations_P**2
    changed = effect(mlp, deviations_P, rows_KxP, how.change)
    np.testing.assert_allclose(found.change, changed, rtol=1e-10)
    assert abs(changed - how.target) < how.tolerance


def test_a_larger_effect_needs_more_noise(mlp):
    small, large = (
        compiled(mlp, lambda s, how=how: flatness.sigma_of(s, how).sigma)()
        for how in (PLAIN, Flatness(target=0.3))
    )
    assert small < large


def test_an_effect_that_noise_does_not_have(mlp):
    """Accuracy cannot drop by more than there is; the measures say so by NaN."""
    found = compiled(mlp, lambda s: flatness.sigma_of(s, Flatness(target=1.1)))()
    assert not found.reached
    assert found.sigma > 1.99
    # With all labels the same, wrong one there is nothing to lose.
    wrong = (mlp.labels_N + 1) % 4
    values = compiled(mlp, lambda s: {n: m(s) for n, m in flatness.MEASURES.items()})(
        labels_N=wrong
    )
    for name, value in values.items():
        assert np.isnan(value) == (not name.endswith("drop")), name
    assert values["sigma_accuracy_drop"] < 0.01


def test_an_effect_that_jumps_over_the_target(mlp):
    """Of one image and one draw, accuracy drops by 1 or not at all."""
    how, rows_KxP = Flatness(draws=1, steps=30), rows_of(mlp, 1)
    weights_P, unravel = ravel_pytree(mlp.params)
    far_NxY = mlp.logits_of(unravel(weights_P + how.highest * rows_KxP[0]))
    n = int(jnp.argmax(jnp.argmax(far_NxY, 1) != mlp.labels_N))
    image, label = mlp.images_NxHxWxC[n : n + 1], mlp.labels_N[n : n + 1]
    one = dataclasses.replace(mlp, images_NxHxWxC=image, labels_N=label)
    found = compiled(one, lambda s, rows: flatness.sigma_of(s, how, rows))(rows_KxP)
    assert found.reached
    assert found.change in (0, 1)
    sides = [
        effect(one, float(found.sigma) * step * np.ones(rows_KxP.shape[1]), rows_KxP, "accuracy")
        for step in (1 - 1e-6, 1 + 1e-6)
    ]
    assert sides == [0, 1]


def test_noise_under_which_the_network_overflows_is_too_much(mlp):
    how = Flatness(change="loss", highest=1e308, steps=1100, target=0.5, draws=2)
    found = compiled(mlp, lambda s: flatness.sigma_of(s, how))()
    assert found.reached
    assert 0 < found.sigma < 10


def test_numbers_of_the_list_of_jiang(mlp):
    """Equations 48, 49, 53, 56, 57 and 61 in plain numpy, of kernels alone."""
    found = compiled(mlp, lambda s: {n: m(s) for n, m in flatness.MEASURES.items()})()

    def kernels(variables):
        parts = [np.ravel(layer["kernel"]) for layer in variables["params"].values()]
        return np.concatenate(parts)

    w, w0 = kernels(mlp.variables), kernels(mlp.initial_variables)
    m, sigma, scale, e = len(mlp.labels_N), found["sigma"], found["sigma_magnitude"], 1e-3
    assert abs(found["sigma_accuracy_drop"] - 0.1) < 0.01
    assert abs(found["sigma_magnitude_accuracy_drop"] - 0.1) < 0.01

    def magnitude(reference):
        above = e**2 + (scale**2 + 1) * np.sum(reference**2) / w.size
        logs = np.log(above / (e**2 + scale**2 * (w - w0) ** 2))
        return np.sum(logs) / 4 + np.log(m / scale) + 10

    expected = {
        "jiang_48_pac_bayes_init": np.sum((w - w0) ** 2) / (4 * sigma**2) + np.log(m / sigma) + 10,
        "jiang_49_pac_bayes_orig": np.sum(w**2) / (4 * sigma**2) + np.log(m / sigma) + 10,
        "jiang_53_flatness": 1 / sigma**2,
        "jiang_56_pac_bayes_mag_init": magnitude(w - w0),
        "jiang_57_pac_bayes_mag_orig": magnitude(w),
        "jiang_61_mag_flatness": 1 / scale**2,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-10, err_msg=name)
    # All parameters, as an own choice: biases have noise, too.
    whole = flatness.pac_bayes(mlp, sigma, "origin", "all")
    squares = sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(mlp.params))
    np.testing.assert_allclose(whole, squares / (4 * sigma**2) + np.log(m / sigma) + 10, rtol=1e-10)


# --- keys, lanes, mistakes ------------------------------------------------------------------------


def measure_sigma(subject):
    return flatness.sigma_of(subject, Flatness(change="loss", tolerance=1e-9, steps=30)).sigma


def test_the_key_and_the_network_decide_and_nothing_else(mlp):
    measure, other = compiled(mlp, measure_sigma), jax.random.key(9)
    assert measure() == measure()
    assert measure() != measure(key=other)
    moved = {"params": jax.tree.map(lambda a: 1.1 * a, mlp.params)}
    lanes = [mlp, dataclasses.replace(mlp, key=other, variables=moved)]
    alone = [measure(key=s.key, variables=s.variables) for s in lanes]
    np.testing.assert_allclose(together(lanes, measure_sigma), alone, rtol=1e-7)


def test_the_draws_are_the_same_at_every_step(mlp):
    """So that the effect grows steadily with sigma: no step is misled by other noise."""
    how = Flatness(change="loss", target=0.3, tolerance=1e-10, steps=40)
    found = compiled(mlp, lambda s: flatness.sigma_of(s, how))()
    assert isinstance(found, Found)
    np.testing.assert_allclose(found.change, how.target, atol=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: Flatness(change="error"), "change is 'error'; it must be one of accuracy, loss"),
        (lambda s: Flatness(target=0.0), "target is 0.0; it must be above 0"),
        (lambda s: Flatness(draws=0), "draws is 0; it must be above 0"),
        (
            lambda s: flatness.sigma_of(dataclasses.replace(s, key=None)),
            "draws random numbers and the subject has no key",
        ),
        (
            lambda s: flatness.pac_bayes(dataclasses.replace(s, initial_variables=None), 0.1),
            "needs the initial weights",
        ),
    ],
)
def test_mistakes(mlp, call, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda: jax.tree.leaves(call(mlp)) and None)
