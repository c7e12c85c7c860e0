"""One step in each compute dtype: what is cast, and what stays float32."""

import functools
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_models
from test_train import prepare, run

from rethink_jax import models, step, train

CONV = {
    "name": "sequential",
    "layers": (
        *("conv 5 3", "batch_norm", "relu", "lrn", "max_pool 2", "avg_pool 2"),
        *("dropout", "flatten", "dense 9", "relu"),
    ),
}
BASE = {"batch_size": 16, "data": {"name": "digits", "num_train": 64}, "stop": {"max_epochs": 4}}
DTYPES = ("float32", "bfloat16")


DROPPING = {"dropout": 0.2}


def one_step(nested):
    """The first training step as a function of (carry, images, labels), and what it is given."""
    spec, data, own, _ = prepare(nested)
    state = jax.jit(lambda: train.init_trial(spec, own))()
    images = jax.jit(lambda: train.take_images(data.train, 0, jnp.arange(16)))()
    carry = state.params, state.model_state, state.opt_state

    def call(carry, images, labels):
        return step.train_step(spec, own.hypers, carry, 0, 0, images, labels)

    return call, (carry, images, own.labels[:16])


@pytest.fixture(scope="module")
def stepped():
    """dtype -> what a step of CONV is given and gives, computed once."""

    @functools.cache
    def run(dtype):
        nested = BASE | {"model": CONV, "regularizer": DROPPING, "compute_dtype": dtype}
        call, args = one_step(nested)
        return args, jax.jit(call)(*args)

    return run


def dtypes(tree):
    return {str(a.dtype) for a in jax.tree.leaves(tree)}


# --- float32 --------------------------------------------------------------------------------------


def test_in_float32_the_step_is_that_of_the_bare_network(stepped, monkeypatch):
    """The same program to the letter, hence the same bits: no cast is built into it."""
    nested = BASE | {"model": CONV, "regularizer": DROPPING}
    call, args = one_step(nested)
    program = jax.jit(call).lower(*args).as_text()

    def bare(spec):
        own = {k.split(".", 1)[1]: v for k, v in spec.fields.items() if k.startswith("model.")}
        return models.build(num_classes=spec.num_classes, **own)

    monkeypatch.setattr(step.Spec, "model", property(bare))
    call, args = one_step(nested)
    assert jax.jit(call).lower(*args).as_text() == program
    assert "bf16" not in program
    _, found = stepped("float32")
    jax.tree.map(np.testing.assert_array_equal, jax.jit(call)(*args), found)


# --- bfloat16 -------------------------------------------------------------------------------------


def test_in_bfloat16_all_that_is_kept_is_float32(stepped):
    (before, *_), (after, (loss, _)) = stepped("bfloat16")
    assert dtypes(before) == dtypes((after, loss)) == {"float32"}
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), before, after)


def test_in_bfloat16_statistics_are_computed_in_float32(small_trial):
    layers = {"name": "sequential", "layers": ("batch_norm",), "batch_norm_decay": 0.0}
    spec, *_ = prepare(small_trial(model=layers, compute_dtype="bfloat16"))
    images = 3 + np.asarray(jax.random.normal(jax.random.key(0), (16, *spec.input_shape)))
    variables = spec.model.init(jax.random.key(1), images)
    found = spec.model.apply(variables, images, True).state["batch_stats"]["BatchNorm_0"]
    seen = images.astype(jnp.bfloat16).astype(np.float64)
    # Sums of 1024 float32 numbers, and a difference of squares ten times as large as itself. A
    # bfloat16 is off by up to 4e-3.
    np.testing.assert_allclose(found["mean"], seen.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(found["var"], seen.var((0, 1, 2)), rtol=1e-4)


def test_in_bfloat16_the_step_is_near_that_in_float32_but_not_it(stepped):
    (loss, grads), (loss16, grads16) = (
        (loss, jax.tree.leaves(opt_state))
        for (_, _, opt_state), (loss, _) in map(itemgetter(1), map(stepped, DTYPES))
    )
    assert loss != loss16
    # bfloat16 has eight bits: 0.4% a rounding, over some ten layers there and back.
    assert loss16 == pytest.approx(float(loss), rel=0.05)
    for a, b in zip(grads, grads16, strict=True):
        # In eight bits more values of a pooling window are equal, and another one has the gradient.
        assert np.linalg.norm(a - b) < 0.25 * np.linalg.norm(a) + 1e-6


def test_in_bfloat16_every_product_of_the_network_is_of_bfloat16(small_trial):
    nested = small_trial(compute_dtype="bfloat16", model={"name": "mlp", "hidden": (8, 8)})
    call, args = one_step(nested)
    lines = jax.jit(call).lower(*args).as_text().splitlines()
    products = [line for line in lines if "dot_general" in line]
    assert len(products) == 3 + 3 + 2  # Forward; back to the weights, and to the layer before.
    assert all("xf32>" not in line for line in products)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", models.MODELS)
def test_no_layer_of_a_network_goes_back_to_float32(name, train, monkeypatch):
    """A layer that makes a float32 of a bfloat16 would do so for all that follow, silently."""
    # As on a GPU; tests/layers has the other way. Convolutions as slices take long to trace.
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    model, variables = test_models.build(name)
    half = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.bfloat16), variables["params"])
    images = jax.ShapeDtypeStruct((2, *test_models.IMAGES[name]), jnp.bfloat16)
    rate = jax.ShapeDtypeStruct((), jnp.float32)
    found = jax.eval_shape(
        lambda v, x, rate: model.apply(v, x, train, jax.random.key(0), rate),
        {**variables, "params": half}, images, rate,
    )  # fmt: skip
    assert found.logits_BxY.dtype == jnp.bfloat16
    assert dtypes(found.auxiliary) <= {"bfloat16"}
    assert dtypes(found.state) <= {"float32"}


def test_evaluation_computes_in_bfloat16_too(small_trial):
    losses = []
    for dtype in DTYPES:
        spec, data, own, _ = prepare(small_trial(compute_dtype=dtype))
        state = train.init_trial(spec, own)
        score = jax.jit(lambda s, a=(spec, data, own): train.evaluate_train(*a, s))(state)
        losses.append(float(score["train_loss"]))
        assert score["train_loss"].dtype == jnp.float32
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_a_trial_in_bfloat16_learns(small_trial):
    state = run(small_trial(compute_dtype="bfloat16", stop__max_epochs=40))
    assert state.curve[-1, train.CURVE.index("train_accuracy")] > 0.95


def test_auxiliary_logits_and_other_state_keep_their_dtype():
    """A network that keeps a step count and a bfloat16 of its own gets both back as they were."""

    def bare(variables, images, train):
        assert dtypes(variables["own"]) == {"int32", "float32"}, "cast on the way in"
        state = {"own": {"count": variables["own"]["count"] + 1, "last": images.sum()}}
        return models.Applied(images @ variables["params"]["w"], state, (images[:, :2],))

    state = {"own": {"count": jnp.int32(3), "last": jnp.float32(0)}}
    params = {"w": jnp.ones((3, 2)), "table": jnp.arange(3)}
    found = step._in_dtype(bare, "bfloat16")(
        {"params": params, **state}, np.ones((4, 3), "f"), True
    )
    assert dtypes((found.logits_BxY, found.auxiliary)) == {"float32"}
    assert found.state["own"]["count"].dtype == jnp.int32
    assert found.state["own"]["last"].dtype == jnp.float32
    assert found.state["own"]["count"] == 4
