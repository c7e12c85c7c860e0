"""Path norms against known answers, paths counted one by one, and what theory says."""

import dataclasses
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from drawn_networks import SMALL, made, subject_of

from rethink_jax import models
from rethink_jax.layers import avg_pool, max_pool
from rethink_jax.measures import layers, margins, paths
from rethink_jax.measures.subject import Subject
from rethink_jax.schema import UserError


def path_sums(subject, ps=(1.0, 2.0)):
    """{(p, maxima, biases): sum over paths}, compiled."""
    choices = [*itertools.product(ps, ("max", "sum"), (False, True))]

    @jax.jit
    def measure(variables):
        given = dataclasses.replace(subject, variables=variables)
        return [jnp.exp(paths.log_path_sum(given, *choice)) for choice in choices]

    return dict(zip(choices, measure(subject.variables), strict=True))


@pytest.mark.parametrize("name", oracles.NAMES)
def test_known_answers(name):
    subject, references, _ = oracles.load(name)
    found = path_sums(subject, (1.0, 1.5, 2.0))
    for (p, maxima, biases), value in found.items():
        key = f"p{p:g}_{maxima}pool_{'bias' if biases else 'nobias'}"
        expected = references["path_sums"][key]
        np.testing.assert_allclose(value, expected["sum"], rtol=1e-11, err_msg=key)
        if not biases and maxima == "max":
            norm = jnp.exp(paths.MEASURES[f"log_path_l{key[1:]}"](subject))
            np.testing.assert_allclose(norm, expected["root"], rtol=1e-11)


# --- paths one by one -----------------------------------------------------------------------------


def counted(stages, p, biases):
    """Sum over paths of the product of |weight|^p, each path walked by itself.

    stages: (matrix[out, in], bias[out] or None) of each, first to last
    """

    def walk(place, unit):
        """Over the paths from a unit before stage `place` to the outputs."""
        if place == len(stages):
            return 1.0
        column = stages[place][0][:, unit]
        return sum(abs(w) ** p * walk(place + 1, to) for to, w in enumerate(column) if w != 0)

    total = sum(walk(0, unit) for unit in range(stages[0][0].shape[1]))
    for place, (_, bias) in enumerate(stages):
        if biases and bias is not None:
            total += sum(abs(b) ** p * walk(place + 1, unit) for unit, b in enumerate(bias))
    return total


def conv_stage(kernel, bias, size):
    """A 3x3 convolution with zeros around, as a matrix."""
    kernel, (height, width) = np.asarray(kernel), size
    matrix = np.zeros((height, width, kernel.shape[3], height, width, kernel.shape[2]))
    for i, j, a, b in np.ndindex(height, width, 3, 3):
        y, x = i + a - 1, j + b - 1
        if 0 <= y < height and 0 <= x < width:
            matrix[i, j, :, y, x, :] = kernel[a, b].T
    return matrix.reshape(height * width * kernel.shape[3], -1), np.tile(bias, height * width)


def pool_stage(size, channels, window, stride, weight):
    """Each window's values, with what is left of it at the border, times weight(how many)."""
    rows, columns = -(-size[0] // stride), -(-size[1] // stride)
    matrix = np.zeros((rows, columns, channels, *size, channels))
    for i, j in np.ndindex(rows, columns):
        # As TensorFlow pads: the odd row at the end.
        starts = [
            n * stride - max((m - 1) * stride + window - full, 0) // 2
            for n, m, full in ((i, rows, size[0]), (j, columns, size[1]))
        ]
        inside = [range(max(s, 0), min(s + window, n)) for s, n in zip(starts, size, strict=True)]
        for y, x in itertools.product(*inside):
            matrix[i, j, :, y, x, :] = weight(len(inside[0]) * len(inside[1])) * np.eye(channels)
    return matrix.reshape(rows * columns * channels, -1), None


def test_dense_paths_one_by_one():
    def call(x):
        x = nn.relu(nn.Dense(3)(x.reshape(len(x), -1)[:, :5]))
        return nn.Dense(2)(nn.relu(nn.Dense(4, use_bias=False)(x)))

    subject = made(call)
    stages = [
        (np.asarray(layer.matrix), None if layer.bias is None else np.asarray(layer.bias))
        for layer in layers.folded(subject)
    ]
    for (p, _, biases), found in path_sums(subject, (0.7, 1.0, 2.0)).items():
        # All paths but those of the inputs that are cut away.
        np.testing.assert_allclose(found, counted(stages, p, biases), rtol=1e-12)


POOLS = {
    "average": lambda x: avg_pool(x, 3, 2),
    "flax average": lambda x: nn.avg_pool(x, (3, 3), (2, 2), "SAME", count_include_pad=False),
    "mean": lambda x: x.mean((1, 2), keepdims=True),
    "max": lambda x: max_pool(x, 3, 2),
    "flax max": lambda x: nn.max_pool(x, (3, 3), (2, 2), "SAME"),
    "largest": lambda x: x.max((1, 2), keepdims=True),
}


@pytest.mark.parametrize("name", POOLS)
def test_convolution_paths_one_by_one(name):
    def call(x):
        x = POOLS[name](nn.relu(nn.Conv(2, (3, 3))(x[:, :4, :3, :2])))
        return nn.Dense(2)(x.reshape(len(x), -1))

    subject = made(call)
    conv, dense = layers.folded(subject)
    whole = name in ("mean", "largest")
    averages = name in ("average", "flax average", "mean")
    weight = (lambda count: 1 / count) if averages else (lambda count: 1)
    window = (4, 4) if whole else (3, 2)
    pool = pool_stage((4, 3), 2, *window, weight)
    stages = [conv_stage(conv.kernel, conv.bias, (4, 3)), pool, (dense.matrix, dense.bias)]
    stages = [(np.asarray(m), None if b is None else np.asarray(b)) for m, b in stages]
    for (p, maxima, biases), found in path_sums(subject, (1.0, 1.5, 2.0)).items():
        if maxima == "sum" or averages:
            np.testing.assert_allclose(found, counted(stages, p, biases), rtol=1e-12)


def test_paths_through_branches_one_by_one():
    def call(x):
        x = nn.Dense(3, name="a")(x.reshape(len(x), -1)[:, :3]) + x.reshape(len(x), -1)[:, :3]
        x = jnp.concatenate([nn.relu(nn.Dense(2, name="b")(x)), -x], axis=-1)
        return 3 * nn.Dense(2, name="c")(x) - 1

    subject = made(call)
    a, b, c = (np.asarray(layer.matrix) for layer in layers.folded(subject))
    bias_a, bias_b, bias_c = (np.asarray(layer.bias) for layer in layers.folded(subject))
    for (p, _, biases), found in path_sums(subject).items():
        powers = [np.abs(w) ** p for w in (a, b, c)]
        bias_powers = [biases * np.abs(w) ** p for w in (bias_a, bias_b, bias_c)]
        x = powers[0].sum(1) + 1 + bias_powers[0]
        x = np.concatenate([powers[1] @ x + bias_powers[1], x])
        expected = np.sum(3**p * (powers[2] @ x + bias_powers[2]) + biases)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize(
    "name", [name for name in models.MODELS if name not in ("alexnet", "inception_v3")]
)
def test_l1_paths_of_every_network_are_what_it_gives_for_ones(name):
    """With |w| for w, and no batch norm: for p = 1 the network itself computes the sum."""
    subject = subject_of(models.build(name, 4, **SMALL.get(name, {})))

    @jax.jit
    def both(variables):
        given = dataclasses.replace(subject, variables=variables)
        absolute = tuple(
            layer._replace(kernel=jnp.abs(layer.kernel), bias=jnp.abs(layer.bias))
            for layer in layers.folded(given)
        )
        ones = jnp.ones_like(given.images_NxHxWxC[:1])
        expected = jnp.log(jnp.sum(layers.logits_with(given, absolute, ones)))
        return paths.log_path_sum(given, 1.0, "max", True), expected

    found, expected = both(subject.variables)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


# --- what theory says -----------------------------------------------------------------------------


def test_rescaling_a_unit_changes_no_path_norm_and_no_margin():
    """Into a unit times c, out of it by c: the same function, and the same paths."""

    def call(x):
        x = max_pool(nn.relu(nn.Conv(3, (3, 3), name="a")(x)), 2, 2)
        x = nn.relu(nn.Conv(4, (3, 3), name="b")(x)).mean((1, 2))
        return nn.Dense(4, name="c")(x)

    subject = made(call, images=20)
    params = jax.tree.map(np.asarray, subject.params)
    c_3, c_4 = np.array([2.0, 0.1, 7.0]), np.array([3.0, 0.2, 1.0, 30.0])
    kernel_b = params["b"]["kernel"] * c_4 / c_3[:, None]
    rescaled = {
        "a": {"kernel": params["a"]["kernel"] * c_3, "bias": params["a"]["bias"] * c_3},
        "b": {"kernel": kernel_b, "bias": params["b"]["bias"] * c_4},
        "c": {"kernel": params["c"]["kernel"] / c_4[:, None], "bias": params["c"]["bias"]},
    }
    other = dataclasses.replace(subject, variables=jax.tree.map(jnp.asarray, {"params": rescaled}))
    before, after = path_sums(subject), path_sums(other)
    for choice, value in before.items():
        np.testing.assert_allclose(after[choice], value, rtol=1e-12)
    np.testing.assert_allclose(margins.margins(other), margins.margins(subject), rtol=1e-10)


def test_deep_wide_networks_do_not_overflow():
    """60 layers of 8 units with weights of 1e4: 8^61 paths, each 1e4^p to the number of layers."""

    def call(x):
        x = x.reshape(len(x), -1)[:, :8]
        for _ in range(60):
            # A branch that ends early, so that factors differ where they meet.
            x = jnp.concatenate([nn.relu(nn.Dense(4)(x)), nn.relu(nn.Dense(4)(x))], axis=-1)
        return x

    subject = made(call)
    large = jax.tree.map(lambda a: jnp.full_like(a, 1e4, jnp.float32), subject.variables)
    images = subject.images_NxHxWxC.astype(jnp.float32)
    subject = Subject(subject.model, large, images, subject.labels_N)
    found = jax.jit(lambda v: paths.log_path_sum(dataclasses.replace(subject, variables=v), 2.0))
    expected = 61 * np.log(8) + 2 * 60 * np.log(1e4)
    np.testing.assert_allclose(found(large), expected, rtol=1e-6)


def test_path_norms_of_several_networks_at_once():
    found = [subject_of(models.build("vgg", 4, **SMALL["vgg"]), seed=seed) for seed in range(2)]

    def measure(variables):
        return paths.log_path_sum(dataclasses.replace(found[0], variables=variables), 1.5)

    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(s.variables for s in found))
    alone = [jax.jit(measure)(s.variables) for s in found]
    np.testing.assert_allclose(jax.jit(jax.vmap(measure))(together), alone, rtol=1e-12)


REFUSED = {
    "square": jnp.square,
    "integer_pow": lambda x: x**3,
    "tanh": nn.tanh,
    "logistic": nn.sigmoid,
    "mul": lambda x: x * x,
    "max": lambda x: jnp.maximum(x, 0.5),
    "min": nn.relu6,
    "exp": jnp.exp,
    "pad": lambda x: jnp.pad(x, 1, constant_values=2.0),
}


@pytest.mark.parametrize("operation", REFUSED)
def test_operations_without_a_path_norm_are_refused_by_name(operation):
    subject = made(lambda x: nn.Dense(3)(REFUSED[operation](nn.Dense(3)(x).reshape(len(x), -1))))
    with pytest.raises(UserError, match=f"the operation '{operation}'"):
        jax.eval_shape(lambda: paths.log_path_sum(subject))


def test_local_response_normalization_is_refused():
    subject = subject_of(models.build("alexnet", 4))
    with pytest.raises(UserError, match="not for local response normalization"):
        jax.eval_shape(lambda: paths.log_path_sum(subject))
