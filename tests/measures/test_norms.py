"""Norms of layers against known answers, and operator norms against matrices written out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from rethink_jax.measures import layers, norms, operators
from rethink_jax.schema import UserError

SAME_NAME = {
    "frobenius": ("fro",),
    "spectral_reshaped": ("spec_reshaped",),
    "nuclear": ("nuclear",),
    "l1_inf": ("l1inf",),
    "l2_1": ("l21",),
    "l3_1.5": ("l3_15",),
    # Of a dense layer they are its spectral norm.
    "spectral_exact": ("spec_exact_zero_padded", "spec_reshaped"),
    "spectral_circular": ("spec_fft_circular_stride1", "spec_reshaped"),
}


@pytest.fixture(scope="module", params=oracles.NAMES)
def known(request):
    with jax.enable_x64(True):
        subject, references, _ = oracles.load(request.param)

        @jax.jit
        def measure(variables, initial):
            changed = {"variables": variables, "initial_variables": initial}
            given = dataclasses.replace(subject, **changed)
            trained = {name: norms.norms_D(given, name) for name in SAME_NAME}
            names = ("frobenius", "spectral_reshaped", "l2_1")
            moved = {name: norms.norms_D(given, name, "moved") for name in names}
            return trained, moved

        yield (
            subject,
            references["layers"],
            *measure(subject.variables, subject.initial_variables),
        )


def test_known_answers(known):
    _, references, trained, _ = known
    for name, keys in SAME_NAME.items():
        expected = [next(layer[k] for k in keys if k in layer) for layer in references]
        np.testing.assert_allclose(trained[name], expected, rtol=1e-11, err_msg=name)


def test_known_distances(known):
    _, references, _, moved = known
    for name, key in ("frobenius", "fro"), ("spectral_reshaped", "spec"), ("l2_1", "l21"):
        expected = [layer[f"dist_{key}"] for layer in references]
        np.testing.assert_allclose(moved[name], expected, rtol=1e-11, err_msg=name)


def test_known_widths(known):
    subject, references, _, _ = known
    assert layers.widths_D(subject) == [layer["h_rows"] for layer in references]
    assert layers.widths_D(subject, "units") == [layer["h_units"] for layer in references]


def test_products_and_distances_are_of_the_layers_norms():
    subject, references, _ = oracles.load("mlp_nobias")
    spectral = [layer["spec_reshaped"] for layer in references["layers"]]
    product = norms.MEASURES["log_product_spectral_exact"](subject)
    np.testing.assert_allclose(product, np.log(np.prod(spectral)), rtol=1e-12)
    moved = [layer["dist_fro"] for layer in references["layers"]]
    distance = norms.MEASURES["distance_frobenius"](subject)
    np.testing.assert_allclose(distance, np.linalg.norm(moved), rtol=1e-12)
    product = norms.MEASURES["log_product_moved_frobenius"](subject)
    np.testing.assert_allclose(product, np.log(np.prod(moved)), rtol=1e-12)


def test_row_norms_do_not_overflow():
    matrix = jnp.full((2, 4), 1e30, jnp.float32)
    assert norms.row_norm(matrix, 3, 1.5) < jnp.inf
    np.testing.assert_allclose(norms.row_norm(matrix, 2, 2), 1e30 * 8**0.5, rtol=1e-6)
    assert norms.row_norm(jnp.zeros((2, 4)), 3, 1.5) == 0


# --- convolutions as operators --------------------------------------------------------------------


def conv(size, channels, features, window, strides=(1, 1), pads=((1, 1), (1, 1)), seed=0):
    kernel = np.random.default_rng(seed).normal(size=(*window, channels, features))
    out = [
        (n + sum(p) - k) // s + 1 for n, p, k, s in zip(size, pads, window, strides, strict=True)
    ]
    place = layers.Place(("conv",), (*size, channels), (*out, features), strides, pads)
    return layers.Layer(place, kernel, None)


def compiled(norm, layer):
    """A norm of a layer, its kernel traced as it is when many networks are measured."""
    return jax.jit(lambda kernel: norm(layer._replace(kernel=kernel)))(layer.kernel)


def written_out(layer, circular=False):
    """The matrix of a convolution, entry by entry: from an input value to an output value."""
    kernel, place = np.asarray(layer.kernel), layer.place
    (kh, kw, channels, features), (height, width, _) = kernel.shape, place.input_shape
    (down, right), ((top, _), (left, _)) = place.strides, place.pads
    rows, columns = place.output_shape[:2]
    if circular:
        rows, columns = height // down, width // right
    matrix = np.zeros((rows, columns, features, height, width, channels))
    for i, j, a, b in np.ndindex(rows, columns, kh, kw):
        y, x = i * down + a - top, j * right + b - left
        if circular:
            y, x = y % height, x % width
        if 0 <= y < height and 0 <= x < width:
            matrix[i, j, :, y, x, :] += kernel[a, b].T
    return matrix.reshape(rows * columns * features, -1)


EXACT = {
    "same": conv((5, 6), 2, 3, (3, 3)),
    "valid": conv((5, 6), 2, 3, (3, 2), pads=((0, 0), (0, 0))),
    "stride": conv((6, 6), 2, 3, (3, 3), (2, 2), ((0, 1), (0, 1))),
    "two strides": conv((6, 7), 3, 2, (2, 3), (1, 2), ((0, 1), (1, 1))),
    "larger than the map": conv((3, 2), 2, 2, (5, 5), pads=((2, 2), (2, 2))),
    "one place": conv((1, 1), 2, 2, (3, 3)),
    "1x1 with stride": conv((4, 4), 3, 5, (1, 1), (2, 2), ((0, 0), (0, 0))),
    # A long map: its largest singular values lie within a few thousandths.
    "close together": conv((60, 1), 1, 1, (3, 1), pads=((1, 1), (0, 0)), seed=3),
}


@pytest.mark.parametrize("case", EXACT)
def test_exact_norm_is_that_of_the_matrix_written_out(case):
    layer = EXACT[case]
    x = np.random.default_rng(1).normal(size=layer.place.input_shape)
    np.testing.assert_allclose(layer.linear(x[None]).ravel(), written_out(layer) @ x.ravel())
    expected = np.linalg.norm(written_out(layer), 2)
    np.testing.assert_allclose(compiled(operators.exact_norm, layer), expected, rtol=1e-10)
    single = layer._replace(kernel=layer.kernel.astype(np.float32))
    np.testing.assert_allclose(compiled(operators.exact_norm, single), expected, rtol=1e-5)


CIRCULAR = {
    "same": conv((5, 6), 2, 3, (3, 3)),
    "even": conv((4, 6), 3, 2, (2, 4), pads=((0, 1), (1, 2))),
    "stride": conv((6, 4), 2, 3, (3, 3), (2, 2)),
    "two strides": conv((6, 5), 2, 9, (3, 2), (3, 1)),
    "larger than the map": conv((3, 2), 2, 2, (5, 5), pads=((2, 2), (2, 2))),
}


@pytest.mark.parametrize("case", CIRCULAR)
def test_circular_norm_is_that_of_the_matrix_written_out(case):
    layer = CIRCULAR[case]
    expected = np.linalg.norm(written_out(layer, circular=True), 2)
    np.testing.assert_allclose(compiled(operators.circular_norm, layer), expected, rtol=1e-10)


def test_circular_norm_needs_a_stride_that_divides_the_map():
    with pytest.raises(UserError, match="layer conv has strides 2, 2 on a map of 5x6 places"):
        operators.circular_norm(conv((5, 6), 2, 3, (3, 3), (2, 2)))


def test_exact_norm_of_kernels_without_a_best_direction():
    layer = conv((4, 4), 2, 2, (3, 3))
    nothing = np.zeros_like(layer.kernel)
    identity = nothing.copy()
    identity[1, 1] = 2 * np.eye(2)
    norm = jax.jit(lambda kernel: operators.exact_norm(layer._replace(kernel=kernel)))
    np.testing.assert_allclose(norm(identity), 2, rtol=1e-12)
    assert norm(nothing) == 0


def test_exact_norms_of_several_networks_at_once():
    found = [conv((5, 5), 2, 3, (3, 3), seed=seed) for seed in range(3)]
    kernels = jnp.stack([10.0**n * layer.kernel for n, layer in enumerate(found)])
    norm = jax.jit(jax.vmap(lambda kernel: operators.exact_norm(found[0]._replace(kernel=kernel))))
    expected = [10**n * np.linalg.norm(written_out(layer), 2) for n, layer in enumerate(found)]
    np.testing.assert_allclose(norm(kernels), expected, rtol=1e-10)
