"""Every network, behind `init` and `apply`: shapes, gradients, independence, initial weights."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_networks
import pytest

from rethink_jax import models
from rethink_jax.models import initializers
from rethink_jax.schema import Field, UserError

EPS = float(np.finfo(np.float32).eps)
IMAGE = (8, 8, 3)
CLASSES = 5
# Attributes that make a network small enough to test; a network not named here is as it comes.
SMALL = {
    "mlp": {"hidden": (16, 12)},
    # The tutorial's first weights give logits of order 0.001, too small to tell apart here.
    "alexnet": {"kernel_init": "he_normal"},
    "inception_v3": {"width_multiplier": 0.02},
    "vgg": {"stages": (6, 8), "convs": (1, 2), "dense": (16,)},
    "vgg16_bn": {"stages": (6, 8, 9), "convs": (1, 1, 2), "dense": (16, 12)},
    "sequential": {
        "layers": (
            *("conv 6 3", "batch_norm", "relu", "max_pool 3 2", "lrn", "conv 8 2 1 valid", "relu"),
            *("dropout", "avg_pool 2 1", "flatten", "dense 12", "relu", "dropout 0.25"),
        )
    },
}
# The smallest image that a network takes, where it is not of one pixel.
SMALLEST = {"inception_v3": (107, 107, 3)}
IMAGES = {name: SMALLEST.get(name, IMAGE) for name in models.MODELS}


@pytest.fixture(autouse=True)
def _many_convolutions_as_xlas_own(request, monkeypatch):
    """94 convolutions as slices take half a minute to compile; tests/layers compares the two."""
    if "inception_v3" in request.node.name:
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


def images(count, seed=0, shape=IMAGE):
    return jax.random.normal(jax.random.key(seed), (count, *shape))


@functools.cache
def make(name, image=IMAGE, **attributes):
    """A network with the variables of seed 0."""
    model = models.build(name, CLASSES, **(SMALL.get(name, {}) | attributes))
    return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *image)))


@functools.cache
def build(name):
    """A small network of the matrix, and the shapes of its variables."""
    model = models.build(name, CLASSES, **SMALL.get(name, {}))
    image = jax.ShapeDtypeStruct((1, *IMAGES[name]), jnp.float32)
    return model, jax.eval_shape(model.init, jax.random.key(0), image)


def drawn(name, seed=0):
    """Variables of a network, from numpy: to compile an init of 96 kernels takes 8 s."""
    return numpy_networks.drawn(build(name)[1], seed)


@functools.cache
def compiled(name, train):
    """(variables, images) -> Applied, compiled once for all tests."""
    model, _ = build(name)
    return jax.jit(lambda variables, x: model.apply(variables, x, train, jax.random.key(1)))


@functools.cache
def initial(name):
    """key -> the first weights, compiled: some of them, {path: leaf}, where there are many."""
    model, shapes = build(name)
    every = 1 + len(jax.tree.leaves(shapes)) // 40

    def init(key):
        variables = model.init(key, jnp.zeros((1, *IMAGES[name])))
        leaves = jax.tree_util.tree_leaves_with_path(variables)[::every]
        return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}

    return jax.jit(init)


def logits(model, variables, x, train=False):
    return model.apply(variables, x, train, jax.random.key(1)).logits_BxY


def count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


# --- every network --------------------------------------------------------------------------------


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", models.MODELS)
def test_logits_have_one_row_per_image_and_are_finite(name, train):
    variables, apply = drawn(name), compiled(name, train)
    for batch in 1, 6:
        x = jax.ShapeDtypeStruct((batch, *IMAGES[name]), jnp.float32)
        found, state, auxiliary = jax.eval_shape(apply, variables, x)
        for rows in found, *auxiliary:
            assert (rows.shape, rows.dtype) == ((batch, CLASSES), jnp.float32)
        # What the network keeps comes back in the form in which it goes in.
        kept = {k: v for k, v in variables.items() if k != "params"}
        assert jax.tree.structure(state) == jax.tree.structure(kept)
        same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, kept)
        assert all(jax.tree.leaves(same))
    found, state, auxiliary = apply(variables, images(4, shape=IMAGES[name]))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((found, state, auxiliary)))
    # It changes in training, and in training only.
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state, kept)
    assert any(jax.tree.leaves(moved)) == (train and bool(kept))
    assert train or not auxiliary


@pytest.mark.parametrize("name", models.MODELS)
def test_parameters_are_float32_and_finite(name):
    _, shapes = build(name)
    assert jax.tree.leaves(shapes["params"])
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    for path, leaf in initial(name)(jax.random.key(0)).items():
        assert np.isfinite(leaf).all(), path


@pytest.mark.parametrize("name", models.MODELS)
def test_initial_weights_come_from_the_key(name):
    first, again, other = (initial(name)(jax.random.key(seed)) for seed in (0, 0, 1))
    for path, leaf in first.items():
        np.testing.assert_array_equal(leaf, again[path])
        # Each kernel by itself.
        assert ("kernel" in path) == (not np.array_equal(leaf, other[path])), path
    assert any("kernel" in path for path in first)


@pytest.mark.parametrize("name", models.MODELS)
def test_the_gradient_reaches_every_parameter(name):
    model, variables = build(name)[0], drawn(name)
    x, y = images(32, shape=IMAGES[name]), jnp.arange(32) % CLASSES
    state = {k: v for k, v in variables.items() if k != "params"}

    def loss(params):
        applied = model.apply({"params": params, **state}, x, True, jax.random.key(1))
        rows = jax.nn.log_softmax(sum(applied.auxiliary, start=applied.logits_BxY))
        return -jnp.take_along_axis(rows, y[:, None], axis=1).mean()

    grads = jax.jit(jax.grad(loss))(variables["params"])
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(grad).all(), path
        # A bias before a normalisation may get rounding errors only: more than those.
        assert np.abs(grad).max() > 1e-4, path


@pytest.mark.parametrize("row", [0, 3])
@pytest.mark.parametrize("name", models.MODELS)
def test_in_evaluation_an_image_does_not_depend_on_the_others(name, row):
    variables = drawn(name)
    apply = lambda x: compiled(name, False)(variables, x).logits_BxY  # noqa: E731
    x = images(4, shape=IMAGES[name])
    others = images(4, seed=1, shape=IMAGES[name]).at[row].set(x[row])
    # Bit by bit: the same program, the same place in the batch.
    np.testing.assert_array_equal(apply(x)[row], apply(others)[row])
    rest = [i for i in range(4) if i != row]
    assert (np.asarray(apply(x))[rest] != np.asarray(apply(others))[rest]).any(axis=1).all()


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", models.MODELS)
def test_vmap_over_two_sets_of_parameters_is_one_by_one(name, train):
    model, _ = build(name)
    each = [drawn(name, seed) for seed in (3, 4)]
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    x = jnp.stack([images(4, seed=seed, shape=IMAGES[name]) for seed in (5, 6)])
    together = jax.jit(jax.vmap(lambda v, x: logits(model, v, x, train)))(both, x)
    for i in range(2):
        alone = compiled(name, train)(each[i], x[i]).logits_BxY
        # A batched matrix product may add its terms in another order; 1e-5 is some 80 roundings
        # of values of order 1. Inception V3 divides 47 times by deviations, the last of 4 values.
        error = 1e-3 if name == "inception_v3" else 1e-5
        np.testing.assert_allclose(together[i], alone, rtol=error, atol=error)
    assert np.abs(together[0] - together[1]).max() > 0.1


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 3), (9, 7, 2)])
@pytest.mark.parametrize("name", models.MODELS)
def test_networks_take_images_of_any_size(name, shape):
    if name in SMALLEST:
        shape = (*(a + b for a, b in zip(shape[:2], SMALLEST[name][:2], strict=True)), shape[2])
    model = models.build(name, CLASSES, **SMALL.get(name, {}))
    found = jax.eval_shape(
        lambda k, x: logits(model, model.init(k, x[:1]), x),
        jax.random.key(0),
        jax.ShapeDtypeStruct((3, *shape), jnp.float32),
    )
    assert found.shape == (3, CLASSES)


@pytest.mark.parametrize("name", models.MODELS)
def test_every_attribute_is_a_documented_and_checked_field(name):
    fields = models.fields_of(name)
    module = models.MODELS[name]
    own = {f.name for f in dataclasses.fields(module)} - {"parent", "name", "num_classes"}
    assert set(fields) == own
    for key, field in fields.items():
        assert isinstance(field, Field)
        assert field.doc
        assert not field.doc.startswith("attribute of"), f"{key} is not made with model_field"
        assert field.role == "static"
        assert field.check(key, field.default) == field.default
        with pytest.raises(UserError) as caught:
            field.check(f"model.{key}", object())
        assert "\n" not in str(caught.value)
        assert f"model.{key}" in str(caught.value)


# --- the MLP --------------------------------------------------------------------------------------


def shapes(hidden, image, classes=10):
    model = models.build("mlp", classes, hidden=hidden)
    spec = jax.ShapeDtypeStruct((1, *image), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), spec)["params"]


@pytest.mark.parametrize(
    ("hidden", "parameters"), [((512,), 1_209_866), ((512, 512, 512), 1_735_178)]
)
def test_mlp_has_the_papers_number_of_parameters(hidden, parameters):
    # Table 1 of Zhang et al. (2017), on 28x28x3 = 2352 inputs.
    found = shapes(hidden, (28, 28, 3))
    assert count(found) == parameters
    widths = (2352, *hidden, 10)
    assert count(found) == sum((a + 1) * b for a, b in itertools.pairwise(widths))


def test_mlp_without_hidden_layers_is_linear():
    model, variables = make("mlp", hidden=())
    assert count(variables["params"]) == (8 * 8 * 3 + 1) * CLASSES
    x, y = images(4), images(4, seed=1)
    zero = logits(model, variables, jnp.zeros_like(x))
    mixed = logits(model, variables, 2 * x - 3 * y) - zero
    parts = 2 * (logits(model, variables, x) - zero) - 3 * (logits(model, variables, y) - zero)
    # Sums of 192 products of order 1, each in its own rounding: 192 * eps = 2e-5 at the most.
    np.testing.assert_allclose(mixed, parts, rtol=0, atol=192 * EPS)


def test_mlp_is_what_numpy_makes_of_its_weights():
    model, variables = make("mlp", hidden=(16, 12), bias_init=0.3)
    x = images(7)
    values = np.asarray(x, np.float64).reshape(7, -1)
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"])
    layers = [params[k] for k in sorted(params)]  # Dense_0, Dense_1, ...
    assert [p["kernel"].shape for p in layers] == [(192, 16), (16, 12), (12, CLASSES)]
    for i, layer in enumerate(layers):
        values = values @ layer["kernel"] + layer["bias"]
        if i < len(layers) - 1:
            assert (values < 0).any()  # Else a missing ReLU would go unnoticed.
            values = np.maximum(values, 0)
    # Float32 sums of at most 192 terms of order 1, against float64.
    np.testing.assert_allclose(logits(model, variables, x), values, rtol=0, atol=192 * EPS)


def test_bias_init_sets_the_hidden_biases_only():
    _, variables = make("mlp", hidden=(16, 12), bias_init=0.25)
    biases = [np.asarray(variables["params"][k]["bias"]) for k in sorted(variables["params"])]
    assert [set(b.tolist()) for b in biases] == [{0.25}, {0.25}, {0.0}]


# --- initializers ---------------------------------------------------------------------------------

FAN_IN, FAN_OUT = 1000, 500
# Of a standard normal without what lies beyond two deviations: sqrt(1 - 4 pdf(2) / (2 cdf(2) - 1)).
TRUNCATED = 0.8796256610342398
DEVIATION = {
    "lecun_normal": (1 / FAN_IN) ** 0.5,
    "he_normal": (2 / FAN_IN) ** 0.5,
    "glorot_uniform": (2 / (FAN_IN + FAN_OUT)) ** 0.5,
    "truncated_normal": TRUNCATED,
}
# The measured deviation of n = 500,000 numbers has a relative error of at most 1/sqrt(2n) = 0.1%;
# five of those.
FIVE_SIGMA = 5 / (2 * FAN_IN * FAN_OUT) ** 0.5


def kernel(name, scale=1.0):
    init = initializers.scaled(name, scale)
    return np.asarray(init(jax.random.key(0), (FAN_IN, FAN_OUT), jnp.float32), np.float64)


def test_every_initializer_has_its_formula_here():
    assert set(DEVIATION) == set(initializers.KERNELS)


@pytest.mark.parametrize("scale", [1.0, 0.1, 3.0])
@pytest.mark.parametrize("name", initializers.KERNELS)
def test_kernels_have_the_deviation_of_their_formula(name, scale):
    found = kernel(name, scale)
    assert found.std() == pytest.approx(scale * DEVIATION[name], rel=FIVE_SIGMA)
    # The mean of n numbers is within 5/sqrt(n) deviations of zero.
    assert abs(found.mean()) < 5 * scale * DEVIATION[name] / found.size**0.5


@pytest.mark.parametrize("name", initializers.KERNELS)
def test_scale_is_a_factor(name):
    # One rounding in float32.
    np.testing.assert_allclose(kernel(name, 3.0), 3 * kernel(name), rtol=2 * EPS)
    assert not kernel(name, 0.0).any()


@pytest.mark.parametrize("name", initializers.KERNELS)
def test_mlp_uses_the_named_initializer_in_every_layer(name):
    model = models.build("mlp", 200, hidden=(300,), kernel_init=name, kernel_scale=0.5)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 20, 20, 1)))["params"]
    for layer, (fan_in, fan_out) in {"Dense_0": (400, 300), "Dense_1": (300, 200)}.items():
        expected = {
            "lecun_normal": (1 / fan_in) ** 0.5,
            "he_normal": (2 / fan_in) ** 0.5,
            "glorot_uniform": (2 / (fan_in + fan_out)) ** 0.5,
            "truncated_normal": TRUNCATED,
        }[name]
        found = np.asarray(params[layer]["kernel"], np.float64)
        assert found.shape == (fan_in, fan_out)
        # Five relative errors of a measured deviation, as above, of the fewer numbers here.
        five_sigma = 5 / (2 * found.size) ** 0.5
        assert found.std() == pytest.approx(0.5 * expected, rel=five_sigma)
