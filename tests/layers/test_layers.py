"""The layers against XLA's own operations, or against plain numpy in float64."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rethink_jax import layers

EPS = float(np.finfo(np.float32).eps)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def value_and_gradients(function, *inputs):
    """The function's value, and what a fixed random gradient of it gives for each input."""

    def run(*inputs):
        value, pull = jax.vjp(function, *inputs)
        return value, pull(jax.random.normal(jax.random.key(9), value.shape))

    return jax.jit(run)(*inputs)


def assert_close(found, expected, terms):
    """Equal but for the rounding of float32 sums of so many terms of order 1."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=terms * EPS)


# --- convolution ----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_conv_is_flaxs_layer_with_its_parameters(backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    x = normal(0, 2, 6, 5, 3)
    for use_bias in True, False:
        ours = layers.Conv(4, (3, 5), 2, "VALID", use_bias, bias_init=nn.initializers.ones)
        flaxs = nn.Conv(4, (3, 5), 2, "VALID", use_bias=use_bias, bias_init=nn.initializers.ones)
        variables = flaxs.init(jax.random.key(2), x)
        own = ours.init(jax.random.key(2), x)
        assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, variables)
        assert ("bias" in own["params"]) == use_bias
        if use_bias:
            np.testing.assert_array_equal(own["params"]["bias"], np.ones(4))
        assert_close(ours.apply(variables, x), flaxs.apply(variables, x), terms=64)


# --- pooling --------------------------------------------------------------------------------------

POOLS = [
    (7, 5, 2, 2, "SAME"),
    (8, 8, 3, 2, "SAME"),
    (7, 6, 3, 2, "VALID"),
    (5, 4, 3, 1, "SAME"),
    (4, 4, 4, 4, "SAME"),
    (3, 2, 4, 4, "SAME"),  # A window larger than the image.
    (7, 7, 5, 3, "VALID"),
    (5, 5, 1, 2, "SAME"),
]


@pytest.mark.parametrize(("height", "width", "window", "stride", "padding"), POOLS)
def test_max_pool_is_xlas(height, width, window, stride, padding):
    # Negative, so that a border of zeros would be seen; no two values are equal.
    x = -1 - jnp.abs(normal(0, 2, height, width, 3))
    found = value_and_gradients(lambda x: layers.max_pool(x, window, stride, padding), x)
    expected = value_and_gradients(
        lambda x: nn.max_pool(x, (window, window), (stride, stride), padding), x
    )
    np.testing.assert_array_equal(found[0], expected[0])
    # Where several windows have the same largest value, their gradients are added up.
    assert_close(found[1], expected[1], terms=16)


def test_max_pool_divides_the_gradient_of_equal_values():
    grad = jax.grad(lambda x: layers.max_pool(x, 2, 2).sum())(jnp.ones((1, 4, 4, 1)))
    np.testing.assert_allclose(grad.reshape(2, 2, 2, 2).sum((1, 3)), 1, rtol=4 * EPS)


@pytest.mark.parametrize(("height", "width", "window", "stride", "padding"), POOLS)
def test_avg_pool_is_the_mean_of_what_lies_in_the_image(height, width, window, stride, padding):
    x = normal(0, 2, height, width, 3)
    found = value_and_gradients(lambda x: layers.avg_pool(x, window, stride, padding), x)
    expected = value_and_gradients(
        lambda x: nn.avg_pool(x, (window, window), (stride, stride), padding, False), x
    )
    assert_close(found, expected, terms=window**2)
    # The first window, by hand.
    rows = -(-height // stride) if padding == "SAME" else (height - window) // stride + 1
    before = max((rows - 1) * stride + window - height, 0) // 2 if padding == "SAME" else 0
    columns = -(-width // stride) if padding == "SAME" else (width - window) // stride + 1
    left = max((columns - 1) * stride + window - width, 0) // 2 if padding == "SAME" else 0
    inside = np.asarray(x, np.float64)[:, : window - before, : window - left]
    np.testing.assert_allclose(found[0][:, 0, 0], inside.mean((1, 2)), rtol=0, atol=window**2 * EPS)


@pytest.mark.parametrize("pool", [layers.max_pool, layers.avg_pool])
def test_pools_are_the_same_on_every_backend(pool, monkeypatch):
    x = normal(0, 2, 7, 6, 3)
    found = [pool(x, 3, 2, padding) for padding in ("SAME", "VALID")]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert_close(found, [pool(x, 3, 2, padding) for padding in ("SAME", "VALID")], terms=9)


# --- local response normalization -----------------------------------------------------------------


def lrn_in_float64(x, radius=4, bias=1.0, alpha=0.001 / 9, beta=0.75):
    x = np.asarray(x, np.float64)
    result = np.empty_like(x)
    for c in range(x.shape[-1]):
        neighbours = [x[..., d] ** 2 for d in range(x.shape[-1]) if abs(d - c) <= radius]
        result[..., c] = x[..., c] / (bias + alpha * sum(neighbours)) ** beta
    return result


# Values of order 100, since with the tutorial's alpha smaller ones hardly change.
@pytest.mark.parametrize("channels", [1, 3, 4, 9, 20])
@pytest.mark.parametrize("settings", [{}, dict(bias=2.0, alpha=0.01, beta=0.5)])
def test_lrn_is_a_loop_in_numpy(channels, settings):
    x = 100 * normal(0, 2, 3, 2, channels)
    found = jax.jit(lambda x: layers.local_response_norm(x, **settings))(x)
    expected = lrn_in_float64(x, **settings)
    # So that the power and the sum are seen at all.
    assert np.abs(expected / np.asarray(x)).min() < 0.9
    # A sum of positive terms, a power of it and a product: a few roundings each.
    np.testing.assert_allclose(found, expected, rtol=30 * EPS)


@pytest.mark.parametrize("radius", [0, 1, 2])
def test_lrn_reaches_to_its_radius(radius):
    x = 100 * normal(0, 2, 9)
    found = layers.local_response_norm(x, depth_radius=radius)
    np.testing.assert_allclose(found, lrn_in_float64(x, radius), rtol=30 * EPS)


@pytest.mark.parametrize("channels", [3, 20])
def test_lrns_gradient_is_that_of_the_formula(channels):
    x, weight = 100 * normal(0, 2, channels), normal(1, 2, channels)
    grad = jax.jit(jax.grad(lambda x: (weight * layers.local_response_norm(x)).sum()))(x)
    at, step = np.asarray(x, np.float64), 1e-3
    for index in np.ndindex(at.shape):
        moved = [at.copy(), at.copy()]
        moved[0][index] += step
        moved[1][index] -= step
        up, down = [(np.asarray(weight) * lrn_in_float64(m)).sum() for m in moved]
        # Central differences in float64 are right to step**2; the rest is float32's rounding.
        assert grad[index] == pytest.approx((up - down) / (2 * step), rel=1e-4, abs=1e-5)


# --- dropout --------------------------------------------------------------------------------------

SHAPE = (200, 500)
SIGMAS = 5


def drop(x, rate, train=True, seed=0):
    return layers.Dropout().apply({}, x, rate, train, rngs={"dropout": jax.random.key(seed)})


traced_drop = jax.jit(drop, static_argnames="train")


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_drops_the_fraction_and_keeps_the_mean(rate):
    x = 1 + jnp.abs(normal(0, *SHAPE))
    found = np.asarray(traced_drop(x, rate), np.float64)
    dropped = found == 0
    deviation = (rate * (1 - rate) / x.size) ** 0.5
    assert abs(dropped.mean() - rate) < SIGMAS * deviation
    np.testing.assert_allclose(found[~dropped], (np.asarray(x) / (1 - rate))[~dropped], rtol=1e-6)
    # The mean of n values that are x/(1-p) or 0 has the deviation sqrt(p/(1-p) mean(x^2) / n).
    spread = (rate / (1 - rate) * np.square(np.asarray(x, np.float64)).mean() / x.size) ** 0.5
    assert abs(found.mean() - np.asarray(x, np.float64).mean()) < SIGMAS * spread
    # Every value is drawn for itself: no row or column is dropped as a whole.
    for axis in 0, 1:
        spread = (rate * (1 - rate) / SHAPE[axis]) ** 0.5
        assert np.abs(dropped.mean(axis) - rate).max() < 6 * spread


def test_dropout_at_rate_0_is_the_identity_bit_by_bit():
    x = normal(0, *SHAPE)
    np.testing.assert_array_equal(traced_drop(x, 0.0), x, strict=True)  # traced
    np.testing.assert_array_equal(drop(x, 0.0), x, strict=True)  # a plain number
    without_a_key = layers.Dropout().apply({}, x, 0.0, True)
    np.testing.assert_array_equal(without_a_key, x, strict=True)


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_nothing_is_dropped_in_evaluation(rate):
    x = normal(0, *SHAPE)
    np.testing.assert_array_equal(traced_drop(x, rate, train=False), x, strict=True)
    # No random numbers are needed, either.
    np.testing.assert_array_equal(layers.Dropout().apply({}, x, rate, False), x, strict=True)


def test_dropout_depends_on_its_key_and_a_plain_rate_is_a_traced_one():
    x = normal(0, *SHAPE)
    np.testing.assert_array_equal(traced_drop(x, 0.3), traced_drop(x, 0.3))
    assert (traced_drop(x, 0.3) != traced_drop(x, 0.3, seed=1)).any()
    plain = jax.jit(lambda x: drop(x, 0.3))(x)
    np.testing.assert_array_equal(np.asarray(plain) == 0, np.asarray(traced_drop(x, 0.3)) == 0)


def test_the_gradient_of_dropout_is_its_factor_also_at_rate_0():
    x = jnp.zeros(SHAPE)  # The factor cannot be told from the value here.
    slope = jax.jit(jax.grad(lambda x, rate: drop(x, rate).sum()))
    np.testing.assert_array_equal(slope(x, 0.0), np.ones(SHAPE))
    kept = np.asarray(traced_drop(jnp.ones(SHAPE), 0.5)) != 0
    np.testing.assert_array_equal(slope(x, 0.5), np.where(kept, 2, 0))
    assert np.isfinite(jax.grad(lambda rate: drop(x + 1, rate).sum())(0.5))


def test_lanes_have_their_own_rates():
    x, rates = normal(0, *SHAPE), jnp.array([0.0, 0.2, 0.8])
    lanes = jax.jit(jax.vmap(lambda rate, seed: drop(x, rate, True, seed)))(rates, jnp.arange(3))
    np.testing.assert_array_equal(lanes[0], x)
    for lane, (rate, seed) in enumerate(zip(rates, range(3), strict=True)):
        np.testing.assert_array_equal(lanes[lane], traced_drop(x, rate, True, seed))
        fraction = (np.asarray(lanes[lane]) == 0).mean()
        assert abs(fraction - rate) <= SIGMAS * (rate * (1 - rate) / x.size) ** 0.5


# --- dtypes ---------------------------------------------------------------------------------------

LAYERS = {
    "max_pool": lambda x: layers.max_pool(x, 3, 2),
    "avg_pool": lambda x: layers.avg_pool(x, 3, 2),
    "lrn": layers.local_response_norm,
    "dropout": lambda x: layers.Dropout().apply(
        {}, x, jnp.float32(0.3), True, rngs={"dropout": jax.random.key(0)}
    ),
}


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("name", LAYERS)
def test_what_goes_in_as_bfloat16_comes_out_as_bfloat16(name, backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    x = normal(0, 2, 6, 5, 3)
    found = LAYERS[name](x.astype(jnp.bfloat16))
    assert found.dtype == jnp.bfloat16
    # Eight bits, and at most nine sums of them.
    np.testing.assert_allclose(found.astype(jnp.float32), LAYERS[name](x), rtol=0.01, atol=0.05)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("dtypes", [("bfloat16", "bfloat16"), ("float32", "bfloat16")], ids=str)
def test_convolution_of_a_mixture_is_in_the_wider_dtype(dtypes, backend, monkeypatch):
    """As in flax's own layers; XLA's convolution refuses it."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    x, layer = normal(0, 2, 6, 5, 3), layers.Conv(4, (3, 3))
    variables = layer.init(jax.random.key(2), x)
    half = jax.tree.map(lambda a: a.astype(dtypes[1]), variables)
    found = layer.apply(half, x.astype(dtypes[0]))
    assert found.dtype == jnp.promote_types(*dtypes)
    expected = layer.apply(variables, x)
    np.testing.assert_allclose(found.astype(jnp.float32), expected, rtol=0.01, atol=0.05)


def test_gradient_of_a_convolutions_bias_is_summed_in_float32():
    layer, x, dy = layers.Conv(3, (1, 1)), normal(0, 32, 8, 8, 2), normal(1, 32, 8, 8, 3) + 1
    variables = layer.init(jax.random.key(2), x)

    def bias_gradient(dtype):
        cast = lambda tree: jax.tree.map(lambda a: a.astype(dtype), tree)  # noqa: E731
        _, pull = jax.vjp(lambda v: layer.apply(v, cast(x)), cast(variables))
        return pull(cast(dy))[0]["params"]["bias"].astype(jnp.float32)

    # A rounding to eight bits of each term and of the sum; rounded 2048 times, half of it is lost.
    expected = bias_gradient(jnp.float32)
    np.testing.assert_allclose(bias_gradient(jnp.bfloat16), expected, rtol=0.006)


def test_convolution_in_float64_adds_its_bias_in_float64():
    """The measures compute in it; a detour by float32 would not show in the dtype."""
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3), "float64")
        layer = layers.Conv(2, (1, 1), bias_init=nn.initializers.constant(0.1))
        own = layer.init(jax.random.key(1), x)["params"]
        own = jax.tree.map(lambda a: a.astype("float64"), own)
        expected = np.asarray(x) @ np.asarray(own["kernel"][0, 0]) + np.asarray(own["bias"])
        np.testing.assert_allclose(layer.apply({"params": own}, x), expected, rtol=0, atol=1e-13)
