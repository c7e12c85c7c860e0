"""Every lowering of a convolution against XLA's own operation, alone and for several lanes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rethink_jax import inputs, lanes, train, trials
from rethink_jax.data.dataset import Dataset
from rethink_jax.layers import lowering

EPS = float(np.finfo(np.float32).eps)
LANES = 3

CASES = [
    (6, 6, (3, 3), 1, "SAME"),
    (6, 5, (3, 3), 2, "SAME"),
    (7, 8, (3, 3), 2, "VALID"),
    (5, 7, (5, 5), 1, "VALID"),
    (4, 4, (2, 2), 1, "SAME"),  # The odd row and column are at the bottom and right.
    (5, 5, (4, 4), 3, "SAME"),
    (6, 6, (1, 7), 1, "SAME"),
    (6, 5, (3, 1), 2, "SAME"),
    (5, 6, (1, 1), 1, "SAME"),
    (5, 6, (1, 1), 2, "SAME"),
    (3, 3, (2, 2), 3, "SAME"),  # Strides beyond the window.
    (1, 1, (3, 3), 1, "SAME"),
]


def normal(seed, *shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def value_and_gradients(function, x, kernel):
    """The function's value, and what a fixed random gradient of it gives for each input."""
    value, pull = jax.vjp(function, x, kernel)
    return value, pull(jax.random.normal(jax.random.key(9), value.shape, value.dtype))


def by_every_lowering(stride, padding):
    """(x, kernel) -> {name: value and gradients}"""

    def run(x, kernel):
        found = {}
        for name in lowering.LOWERINGS:
            with lowering.chosen_by(lambda _, name=name: name):
                one = functools.partial(lowering.convolve, stride=stride, padding=padding)
                found[name] = value_and_gradients(one, x, kernel)
        return found

    return run


def xlas(stride, padding):
    def run(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    return run


def assert_close(found, expected, terms):
    """Equal but for the rounding of float32 sums of so many terms of order 1."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=terms * EPS)


# 200 bytes hold a part of one image's patches: one image at a time. 2000: two of the four.
@pytest.mark.parametrize(
    ("case", "block"), [(c, (200, 2000, 2**20)[i % 3]) for i, c in enumerate(CASES)]
)
def test_every_lowering_is_xlas_convolution(case, block, monkeypatch):
    monkeypatch.setattr(lowering, "_BLOCK_BYTES", block)
    height, width, window, stride, padding = case
    x, kernel = normal(0, 4, height, width, 3), normal(1, *window, 3, 4)
    expected = jax.jit(lambda *a: value_and_gradients(xlas(stride, padding), *a))(x, kernel)
    for found in jax.jit(by_every_lowering(stride, padding))(x, kernel).values():
        # At most 4*8*8 places (the kernel's gradient) or 5*5*4 products (the image's) in a sum.
        assert_close(found, expected, terms=256)


@pytest.mark.parametrize("case", CASES[:3])
@pytest.mark.parametrize("shared_images", [False, True])
def test_every_lowering_under_vmap_is_one_lane_at_a_time(case, shared_images):
    height, width, window, stride, padding = case
    x = normal(0, LANES, 2, height, width, 3)
    kernel = normal(1, LANES, *window, 3, 4)
    if shared_images:
        x = x[0]
    run = by_every_lowering(stride, padding)
    found_L = jax.jit(jax.vmap(run, in_axes=(None if shared_images else 0, 0)))(x, kernel)
    alone = jax.jit(lambda *a: value_and_gradients(xlas(stride, padding), *a))
    for lane in range(LANES):
        expected = alone(x if shared_images else x[lane], kernel[lane])
        for found in found_L.values():
            assert_close(jax.tree.map(lambda a, lane=lane: a[lane], found), expected, terms=128)


def test_every_lowering_adds_up_bfloat16_in_float32():
    """What is rounded is the result, once; sums of rounded terms would be off by much more."""
    x, kernel = (
        normal(0, 2, 5, 5, 40, dtype=jnp.bfloat16),
        normal(1, 3, 3, 40, 8, dtype=jnp.bfloat16),
    )
    exact = value_and_gradients(xlas(1, "SAME"), x.astype(jnp.float32), kernel.astype(jnp.float32))[
        0
    ]
    for value, gradients in jax.jit(by_every_lowering(1, "SAME"))(x, kernel).values():
        assert {a.dtype for a in (value, *gradients)} == {jnp.dtype(jnp.bfloat16)}
        # Half a unit in the last place of 8 bits.
        np.testing.assert_allclose(np.float32(value), exact, rtol=2.0**-8, atol=1e-3)


@pytest.mark.parametrize(
    ("channels", "features", "expected"),
    [(3, 64, "input_patches"), (96, 32, "output_patches"), (64, 64, "both_patches")],
)
def test_rule_takes_the_narrower_side(channels, features, expected, monkeypatch):
    shape = lowering.ConvShape(28, 28, channels, features, (3, 3), 1, "SAME", "float32")
    assert lowering.by_rule(shape) == expected
    assert lowering.by_rule(shape._replace(stride=2)) == "input_patches"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert lowering.by_rule(shape) == "lax"


def test_choice_is_asked_for_every_convolution_but_1x1_and_ends_with_its_context():
    asked = []
    with lowering.chosen_by(lambda shape: asked.append(shape) or "patches"):
        for window in (3, 3), (1, 1):
            kernel = normal(1, *window, 3, 4)
            jax.eval_shape(
                lambda x, k: lowering.convolve(x, k, 2, "VALID"), normal(0, 2, 7, 6, 3), kernel
            )
    assert asked == [lowering.ConvShape(7, 6, 3, 4, (3, 3), 2, "VALID", "float32")]
    jax.eval_shape(lowering.convolve, normal(0, 2, 7, 6, 3), normal(1, 3, 3, 3, 4))
    assert len(asked) == 1


def engine_program(model, batching, lowering_of=lowering.by_rule):
    """The engine's program for trials of a network, as it is handed to XLA."""
    codes = np.zeros((4, 28, 28, 3), np.uint8)
    labels = np.zeros(4, np.int32)
    dataset = Dataset("zeros", codes, labels, codes, labels, ("a", "b"), "made up")
    trial = {"batch_size": 2, "model": model, "preprocess": {"crop_size": None}}
    group = trials.group(trials.expand({"trial": trial}))[0]
    spec = inputs.make_spec(group.trials, dataset, 1)
    spec = dataclasses.replace(spec, lowering_of=lowering_of)
    own = train.Inputs(inputs.trial_hypers(group.trials[0]), labels, labels, np.int32(0))
    images = train.Images(codes[None], np.ones((1, 4), np.float32), np.zeros((1, 4), np.float32))
    data = train.Data(images, images, labels)
    layout = lanes.Layout(tuple(jax.local_devices()[:1]), 2, batching)
    advance = lanes.over_lanes(functools.partial(train.advance, spec), layout, shared=1)
    one_lane = own, jax.eval_shape(functools.partial(train.init_trial, spec), own)
    own_L, state_L = jax.tree.map(lambda a: jax.ShapeDtypeStruct((2, *a.shape), a.dtype), one_lane)
    return jax.jit(advance).lower(data, own_L, state_L)


@pytest.mark.parametrize("batching", ["map", "vmap"])
@pytest.mark.parametrize("model", ["alexnet", "inception", "vgg"])
def test_no_convolution_is_left_to_xla_on_the_cpu(model, batching):
    """Inside its loops, or under vmap, XLA's own would be many times slower."""
    assert "convolution" not in engine_program({"name": model}, batching).as_text()


@pytest.mark.parametrize("batching", ["map", "vmap"])
def test_none_is_put_into_the_compiled_program(batching):
    layers = "conv 8 5", "relu", "conv 4 3 2", "batch_norm", "conv 6 1", "max_pool 3 2", "flatten"
    lowered = engine_program({"name": "sequential", "layers": layers}, batching)
    assert " convolution(" not in lowered.compile().as_text()


def test_the_tests_above_would_see_one():
    model = {"name": "sequential", "layers": ("conv 8 3", "flatten")}
    lowered = engine_program(model, "map", lambda _: "lax")
    assert "convolution" in lowered.as_text() and " convolution(" in lowered.compile().as_text()
