"""Layers and networks in plain numpy and float64, for tests to compare with."""

import jax
import jax.numpy as jnp
import numpy as np

from rethink_jax import models

CLASSES = 5


def shapes(name, image, classes=CLASSES, **attributes):
    """The shapes of a network's variables."""
    model = models.build(name, classes, **attributes)
    image = jax.ShapeDtypeStruct((1, *image), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), image)


def windows(x, height, width, stride, padding, fill):
    """The windows of images: [B, H', W', C, height, width]."""
    pads = []
    for size, window in (x.shape[1], height), (x.shape[2], width):
        total = max((-(-size // stride) - 1) * stride + window - size, 0)
        pads.append((total // 2, total - total // 2) if padding == "SAME" else (0, 0))
    x = np.pad(x, [(0, 0), *pads, (0, 0)], constant_values=fill)
    found = np.lib.stride_tricks.sliding_window_view(x, (height, width), axis=(1, 2))
    return found[:, ::stride, ::stride]


def max_pool(x, window, stride, padding="SAME"):
    return windows(x, window, window, stride, padding, -np.inf).max((-1, -2))


def avg_pool(x, window, stride, padding="SAME"):
    return np.nanmean(windows(x, window, window, stride, padding, np.nan), (-1, -2))


def lrn(x):
    squares = np.pad(x**2, [(0, 0)] * 3 + [(4, 4)])
    total = sum(squares[..., i : i + x.shape[-1]] for i in range(9))
    return x / (1 + 0.001 / 9 * total) ** 0.75


relu = lambda x: np.maximum(x, 0)  # noqa: E731


class Reference:
    """Takes a network's variables one after the other, and keeps the new running averages."""

    def __init__(self, variables, train, decay=0.99, epsilon=1e-5):
        as_float64 = lambda tree: jax.tree.map(lambda a: np.asarray(a, np.float64), tree)  # noqa: E731
        self.params = as_float64(variables["params"])
        self.stats = as_float64(variables.get("batch_stats", {}))
        self.train, self.decay, self.epsilon = train, decay, epsilon
        self.taken = {"Conv": 0, "BatchNorm": 0, "Dense": 0}
        self.state = {}

    def _next(self, kind, name):
        if name is None:
            name = f"{kind}_{self.taken[kind]}"
            self.taken[kind] += 1
        return name

    def conv(self, x, height, width=None, stride=1, padding="SAME", name=None):
        layer = self.params[self._next("Conv", name)]
        assert layer["kernel"].shape[:2] == (height, width or height)
        patches = windows(x, height, width or height, stride, padding, 0.0)
        y = np.einsum("bijchw,hwco->bijo", patches, layer["kernel"], optimize=True)
        return y + layer.get("bias", 0)

    def norm(self, x, name=None):
        name = self._next("BatchNorm", name)
        layer, stats = self.params[name], self.stats[name]
        mean, var = stats["mean"], stats["var"]
        if self.train:
            axes = tuple(range(x.ndim - 1))
            mean, var = x.mean(axes), x.var(axes)
            new = {"mean": mean, "var": var}
            self.state[name] = {
                k: self.decay * stats[k] + (1 - self.decay) * new[k] for k in ("mean", "var")
            }
        return (x - mean) / np.sqrt(var + self.epsilon) * layer.get("scale", 1) + layer["bias"]

    def unit(self, x, *args, name=None, **kwargs):
        """Convolution, batch normalization, ReLU."""
        names = (None, None) if name is None else (f"{name}_conv", f"{name}_norm")
        return relu(self.norm(self.conv(x, *args, name=names[0], **kwargs), names[1]))

    def dense(self, x, name=None):
        layer = self.params[self._next("Dense", name)]
        return x @ layer["kernel"] + layer.get("bias", 0)


def drawn(tree, seed=0):
    """Random numbers for every variable: none is 0 or 1, so that none goes unnoticed."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        last = path[-1].key
        if last == "kernel":
            return rng.normal(0, (2 / np.prod(leaf.shape[:-1])) ** 0.5, leaf.shape)
        return rng.uniform(
            *{"var": (0.5, 2), "scale": (0.5, 1.5)}.get(last, (-0.3, 0.3)), leaf.shape
        )

    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(draw(path, leaf), jnp.float32), tree
    )


def compare(name, reference, image, train, batch=6, atol=2e-4, scale=1.0, **settings):
    """A network and `reference(Reference, images)` on random weights and images.

    Float32 against float64 through all layers; logits are of order 1.
    """
    decay = {k: settings.pop(k) for k in ("decay", "epsilon") if k in settings}
    variables = drawn(shapes(name, image, **settings))
    x = np.random.default_rng(1).normal(0, scale, (batch, *image)).astype(np.float32)
    model = models.build(name, CLASSES, **settings)
    apply = jax.jit(lambda v, x, rate: model.apply(v, x, train, jax.random.key(0), rate))
    found = apply(variables, x, 0.0)
    numpys = Reference(variables, train, **decay)
    logits, *auxiliary = reference(numpys, x.astype(np.float64))
    np.testing.assert_allclose(found.logits_BxY, logits, rtol=0, atol=atol)
    assert np.abs(np.diff(logits, axis=0)).max() > 100 * atol
    assert len(found.auxiliary) == len(auxiliary)
    for ours, theirs in zip(found.auxiliary, auxiliary, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)
    expected = numpys.state if train else numpys.stats
    state = found.state.get("batch_stats", {})
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), state, expected
    )
    # The same program at another rate: dropout is there, in training, and only then.
    assert (apply(variables, x, 0.5).logits_BxY != found.logits_BxY).any() == train
    # All parameters were used.
    for kind, number in numpys.taken.items():
        assert number == sum(k.startswith(f"{kind}_") for k in variables["params"])
