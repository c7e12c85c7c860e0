"""Update rules, against loops written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rethink_jax import inputs, trials
from rethink_jax.optimizers import OPTIMIZERS, decayed

SHAPES = {"kernel": (5, 3), "bias": (3,)}
STEPS = 6


def hypers_of(**optimizer):
    """All traced hyper-parameters of a trial, as the training gets them."""
    return inputs.trial_hypers(trials.resolve({"optimizer": optimizer}))


def tree(seed):
    rng = np.random.default_rng(seed)
    return {k: rng.normal(size=s).astype(np.float32) for k, s in SHAPES.items()}


def trained(name, hypers, rates, jit=True):
    """The weights after each step on fixed gradients, the learning rate changing as it goes."""

    def step(params, state, grads, hypers, rate):
        updates, state = OPTIMIZERS[name](hypers, rate, ".*").update(grads, state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step) if jit else step
    params = jax.tree.map(jnp.asarray, tree(0))
    state = OPTIMIZERS[name](hypers, jnp.float32(0), ".*").init(params)
    path = []
    for i, rate in enumerate(rates):
        params, state = step(params, state, tree(i + 1), hypers, jnp.float32(rate))
        path.append(params)
    return path


def sgd_by_hand(momentum, weight_decay, rates):
    """v <- m v + (g + wd w); w <- w - lr v, in float64."""
    weights = {k: w.astype(np.float64) for k, w in tree(0).items()}
    velocity = {k: np.zeros_like(w) for k, w in weights.items()}
    path = []
    for i, rate in enumerate(rates):
        for k, grad in tree(i + 1).items():
            velocity[k] = momentum * velocity[k] + (grad + weight_decay * weights[k])
            weights[k] = weights[k] - rate * velocity[k]
        path.append(dict(weights))
    return path


@pytest.mark.parametrize("jit", [True, False])
@pytest.mark.parametrize(
    ("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.0), (0.0, 0.3), (0.9, 0.3), (1.0, 0.01)]
)
def test_sgd_is_the_loop_written_by_hand(momentum, weight_decay, jit):
    rates = [0.1 * 0.7**i for i in range(STEPS)]
    hypers = hypers_of(momentum=momentum, weight_decay=weight_decay)
    found = trained("sgd", hypers, rates, jit)
    for now, expected in zip(found, sgd_by_hand(momentum, weight_decay, rates), strict=True):
        for k in SHAPES:
            # Six steps of five float32 operations on values of order 1 (the hyper-parameters are
            # rounded, too): 40 roundings of 1.2e-7.
            np.testing.assert_allclose(now[k], expected[k], rtol=0, atol=5e-6)


def test_sgd_by_hand_tells_momentum_and_decay_apart():
    # The tolerance above is far below what any of the terms does.
    rates = [0.1] * STEPS
    last = [sgd_by_hand(m, wd, rates)[-1]["kernel"] for m, wd in ((0, 0), (0.9, 0), (0, 0.3))]
    for i in range(3):
        assert np.abs(last[i] - last[i - 1]).max() > 1e-2


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_learning_rate_of_zero_changes_nothing(name):
    start = tree(0)
    for params in trained(name, hypers_of(weight_decay=0.1), [0.0] * 3):
        for k in SHAPES:
            np.testing.assert_array_equal(params[k], start[k])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_small_step_goes_downhill(name):
    before, grads = tree(0), tree(1)
    (after,) = trained(name, hypers_of(momentum=0.9), [1e-3])
    assert sum(float((grads[k] * (after[k] - before[k])).sum()) for k in SHAPES) < 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_keeps_its_shapes_and_types(name):
    # The lanes carry it through a loop on the device, which allows no change.
    params = jax.tree.map(jnp.asarray, tree(0))
    hypers = hypers_of(weight_decay=0.1)
    first = OPTIMIZERS[name](hypers, jnp.float32(0), ".*").init(params)
    state = first
    for i in range(3):
        optimizer = OPTIMIZERS[name](hypers, jnp.float32(0.1), ".*")
        updates, state = optimizer.update(tree(i + 1), state, params)
        params = optax.apply_updates(params, updates)
        assert jax.tree.structure(state) == jax.tree.structure(first)
        for old, new in zip(jax.tree.leaves(first), jax.tree.leaves(state), strict=True):
            assert (jnp.shape(old), jnp.result_type(old)) == (jnp.shape(new), jnp.result_type(new))
            # A weak type would compile the program a second time.
            assert jax.typeof(jnp.asarray(new)) == jax.typeof(jnp.asarray(old))
        for k in SHAPES:
            assert params[k].shape == SHAPES[k]
            assert params[k].dtype == jnp.float32


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_other_hyper_parameters_do_not_compile_again(name):
    traces = []

    @jax.jit
    def step(params, grads, hypers, rate):
        traces.append(None)
        optimizer = OPTIMIZERS[name](hypers, rate, ".*")
        return optimizer.update(grads, optimizer.init(params), params)

    for i in range(3):
        hypers = hypers_of(momentum=0.3 * i, weight_decay=0.1 * i, learning_rate=0.1 * i)
        step(tree(0), tree(1), hypers, jnp.float32(0.1 * i))
    assert len(traces) == 1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_vmap_over_hyper_parameters_is_one_by_one(name):
    each = [hypers_of(momentum=0.0, weight_decay=0.0), hypers_of(momentum=0.9, weight_decay=0.3)]
    both = jax.tree.map(lambda *v: jnp.stack(v), *each)

    def run(hypers, rate):
        params = jax.tree.map(jnp.asarray, tree(0))
        state = OPTIMIZERS[name](hypers, rate, ".*").init(params)
        for i in range(3):
            updates, state = OPTIMIZERS[name](hypers, rate, ".*").update(tree(i + 1), state, params)
            params = optax.apply_updates(params, updates)
        return params

    rates = jnp.float32([0.1, 0.2])
    together = jax.vmap(run)(both, rates)
    for i, hypers in enumerate(each):
        for k, alone in run(hypers, rates[i]).items():
            # The same operations on each number; fused ones may round once less.
            np.testing.assert_allclose(together[k][i], alone, rtol=0, atol=1e-6)
    assert np.abs(together["kernel"][0] - together["kernel"][1]).max() > 1e-2


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (".*", {"a/kernel", "a/bias", "b/kernel"}),
        (".*kernel", {"a/kernel", "b/kernel"}),
        ("a/.*", {"a/kernel", "a/bias"}),
        ("[bc]/kernel", {"b/kernel"}),
        ("kernel", set()),  # Of the whole path, not of a part of it.
    ],
)
def test_decay_is_on_the_parameters_whose_path_matches(pattern, expected):
    params = {"a": {"kernel": 1.0, "bias": 2.0}, "b": {"kernel": 3.0}}
    found = decayed(params, pattern)
    assert {f"{i}/{k}" for i, layer in found.items() for k, on in layer.items() if on} == expected


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_only_matching_parameters_decay(name):
    params = jax.tree.map(jnp.asarray, tree(0))
    optimizer = OPTIMIZERS[name](hypers_of(weight_decay=0.5), jnp.float32(0.1), "kernel")
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    # Without a gradient, decay is all there is: lr * weight_decay * w.
    np.testing.assert_allclose(updates["kernel"], -0.05 * params["kernel"], rtol=1e-6)
    assert not updates["bias"].any()
