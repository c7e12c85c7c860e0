"""Each network by itself: exact numbers of parameters, and its output against plain numpy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_networks import CLASSES, avg_pool, compare, drawn, lrn, max_pool, relu, shapes

from rethink_jax import models, trials
from rethink_jax.schema import UserError


def count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


# --- numbers of parameters ------------------------------------------------------------------------


def vgg_parameters(stages, dense, conv_extra, dense_extra, inputs=3, classes=10):
    """Kernels, `extra` numbers for each of a layer's channels, and the classifier."""
    channels = [inputs, *(c for c, convs in stages for _ in range(convs))]
    total = sum(9 * a * b + conv_extra * b for a, b in itertools.pairwise(channels))
    widths = [channels[-1], *dense]
    total += sum(a * b + dense_extra * b for a, b in itertools.pairwise(widths))
    return total + (widths[-1] + 1) * classes


NEYSHABUR = [(64, 2), (128, 2), (256, 2), (512, 2)]
CONFIGURATION_D = [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]
# Keras' trainable parameters; torchvision's numbers less its scales of the batch normalization, one
# for each of 17,216 channels, and of 896 in the auxiliary head, tell the same.
INCEPTION_V3 = 23_817_352
AUXILIARY = (768 * 128 + 128) + (5 * 5 * 128 * 768 + 768) + (768 + 1) * 1000
assert INCEPTION_V3 == 23_834_568 - 17_216
assert INCEPTION_V3 + AUXILIARY == 27_161_264 - 17_216 - 896 == 27_143_152


@pytest.mark.parametrize(
    ("name", "attributes", "image", "classes", "expected"),
    [
        ("alexnet", {"order": "paper"}, (28, 28, 3), 10, 1_387_786),
        ("alexnet", {"order": "tutorial"}, (28, 28, 3), 10, 1_387_786),
        ("inception", {"batch_norm": True}, (28, 28, 3), 10, 1_649_402),
        ("inception", {"batch_norm": False}, (28, 28, 3), 10, 1_649_402),
        ("inception_v3", {"auxiliary_head": False}, (299, 299, 3), 1000, INCEPTION_V3),
        ("inception_v3", {}, (299, 299, 3), 1000, INCEPTION_V3 + AUXILIARY),
        ("vgg", {}, (32, 32, 3), 10, 4_955_594),
        ("vgg", {}, (32, 32, 3), 10, vgg_parameters(NEYSHABUR, [512], 2, 2)),
        # The authors' code has 512 more: a bias before the dense layer's normalization.
        ("vgg", {"batch_norm": False}, (32, 32, 3), 10, vgg_parameters(NEYSHABUR, [512], 1, 2)),
        ("vgg", {"dense_batch_norm": False}, (28, 28, 3), 10, 4_955_594 - 512),
        ("vgg16_bn", {}, (32, 32, 3), 10, 15_249_354),
        ("vgg16_bn", {}, (28, 28, 3), 10, vgg_parameters(CONFIGURATION_D, [512] * 2, 2, 1)),
    ],
)
def test_networks_have_their_number_of_parameters(name, attributes, image, classes, expected):
    assert count(shapes(name, image, classes, **attributes)["params"]) == expected


# --- the networks ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch_norm", "train"), [(True, True), (True, False), (False, True)])
def test_inception_is_what_numpy_makes_of_its_weights(batch_norm, train):
    # Figure 3 of Zhang et al. (2017); 9 rows, so that strides meet odd and even sizes.
    def reference(net, x):
        unit = net.unit if batch_norm else lambda *a: relu(net.conv(*a))
        both = lambda x: np.concatenate([unit(x, 1), unit(x, 3)], -1)  # noqa: E731
        down = lambda x: np.concatenate([unit(x, 3, 3, 2), max_pool(x, 3, 2)], -1)  # noqa: E731
        x = unit(x, 3)
        for step in (both, both, down, both, both, both, both, down, both, both):
            x = step(x)
        return [net.dense(x.mean((1, 2)))]

    compare(
        "inception", reference, (9, 8, 3), train,
        batch_norm=batch_norm, epsilon=1e-3, decay=0.99,
    )  # fmt: skip


@pytest.mark.parametrize("order", ["paper", "tutorial"])
def test_alexnet_is_what_numpy_makes_of_its_weights(order):
    def reference(net, x):
        x = lrn(max_pool(relu(net.conv(x, 5)), 3, 2))
        x = relu(net.conv(x, 5))
        x = lrn(max_pool(x, 3, 2)) if order == "paper" else max_pool(lrn(x), 3, 2)
        x = relu(net.dense(x.reshape(len(x), -1)))
        return [net.dense(relu(net.dense(x)))]

    # Large values, so that the two orders differ by far more than rounding.
    settings = dict(image=(9, 8, 3), order=order, scale=30.0, atol=5e-3)
    compare("alexnet", reference, train=True, **settings)


@pytest.mark.parametrize(
    ("last_pool", "batch_norm", "dense_batch_norm", "train"),
    [("avg", True, True, True), ("avg", True, True, False), ("max", False, False, True)],
)
def test_vgg_is_what_numpy_makes_of_its_weights(last_pool, batch_norm, dense_batch_norm, train):
    def reference(net, x):
        conv = (lambda x: net.unit(x, 3)) if batch_norm else (lambda x: relu(net.conv(x, 3)))
        x = max_pool(conv(x), 2, 2)
        x = {"avg": avg_pool, "max": max_pool}[last_pool](conv(conv(x)), 4, 4)
        x = net.dense(x.reshape(len(x), -1))
        return [net.dense(relu(net.norm(x) if dense_batch_norm else x))]

    compare(
        "vgg", reference, (9, 8, 3), train, decay=0.9,
        stages=(6, 8), convs=(1, 2), dense=(16,),
        last_pool=last_pool, batch_norm=batch_norm, dense_batch_norm=dense_batch_norm,
    )  # fmt: skip


def test_inception_v3_is_what_numpy_makes_of_its_weights(monkeypatch):
    # As slices its 94 convolutions take half a minute to compile.
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    join = lambda *branches: np.concatenate(branches, -1)  # noqa: E731

    def reference(net, x):
        unit = net.unit

        def a(x):
            five = unit(x, 1), unit(unit(x, 1), 5), unit(unit(unit(x, 1), 3), 3)
            return join(*five, unit(avg_pool(x, 3, 1), 1))

        def b(x):
            one = unit(x, 1)
            seven = unit(unit(unit(x, 1), 1, 7), 7, 1)
            double = unit(unit(unit(unit(unit(x, 1), 7, 1), 1, 7), 7, 1), 1, 7)
            return join(one, seven, double, unit(avg_pool(x, 3, 1), 1))

        def c(x):
            one, three = unit(x, 1), unit(x, 1)
            three = join(unit(three, 1, 3), unit(three, 3, 1))
            double = unit(unit(x, 1), 3)
            double = join(unit(double, 1, 3), unit(double, 3, 1))
            return join(one, three, double, unit(avg_pool(x, 3, 1), 1))

        half = dict(stride=2, padding="VALID")
        x = unit(unit(unit(x, 3, **half), 3, padding="VALID"), 3)
        x = unit(unit(max_pool(x, 3, 2, "VALID"), 1), 3, padding="VALID")
        x = a(a(a(max_pool(x, 3, 2, "VALID"))))
        three, double = unit(x, 3, **half), unit(unit(unit(x, 1), 3), 3, **half)
        x = b(b(b(b(join(three, double, max_pool(x, 3, 2, "VALID"))))))
        side = unit(avg_pool(x, 5, 3, "VALID"), 1, name="auxiliary_projection")
        side = unit(side, *side.shape[1:3], padding="VALID", name="auxiliary_whole")
        side = net.dense(side.reshape(len(x), -1), name="auxiliary_dense")
        three = unit(unit(x, 1), 3, **half)
        seven = unit(unit(unit(unit(x, 1), 1, 7), 7, 1), 3, **half)
        x = c(c(join(three, seven, max_pool(x, 3, 2, "VALID"))))
        return [net.dense(x.mean((1, 2))), side]

    # 107 rows and 140 columns: the auxiliary head's 768 channels see a map of 1x2. Rounding grows
    # with each of 47 divisions by a deviation.
    compare(
        "inception_v3", reference, (107, 140, 3), train=True,
        width_multiplier=0.02, epsilon=1e-3, decay=0.9997, atol=5e-3,
    )  # fmt: skip


def test_inception_v3s_auxiliary_head_can_be_left_out():
    settings = dict(image=(107, 107, 3), width_multiplier=0.02)
    with_head, without = (
        shapes("inception_v3", auxiliary_head=head, **settings)["params"] for head in (True, False)
    )
    own = {k for k in with_head if k.startswith("auxiliary_")}
    assert len(own) == 5  # Two convolutions, their normalizations, a dense layer.
    # All else is the same, under the same names.
    assert {k: v for k, v in with_head.items() if k not in own} == without


@pytest.mark.parametrize(("head", "smallest"), [(True, 107), (False, 75)])
def test_inception_v3_says_how_large_images_must_be(head, smallest):
    settings = dict(auxiliary_head=head, width_multiplier=0.02)
    for size in (smallest - 1, 300), (300, smallest - 1):
        with pytest.raises(UserError) as caught:
            shapes("inception_v3", (*size, 3), **settings)
        assert f"at least {smallest}x{smallest}" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert shapes("inception_v3", (smallest, smallest, 3), **settings)


# --- networks written in the config ---------------------------------------------------------------

MODULE = ("relu", "max_pool 3 2", "lrn")
ALEXNET = (
    *("conv 64 5", *MODULE, "conv 64 5", *MODULE, "flatten"),
    *("dense 384", "relu", "dropout", "dense 192", "relu", "dropout"),
)


@pytest.mark.parametrize(
    ("name", "attributes", "layers"),
    [
        ("mlp", {"hidden": (16, 12)}, ("flatten", "dense 16", "relu", "dense 12", "relu")),
        ("mlp", {"hidden": ()}, ()),
        ("alexnet", {}, ALEXNET),
    ],
)
def test_a_network_in_words_is_that_network(name, attributes, layers):
    variables = drawn(shapes(name, (8, 8, 3), **attributes))
    assert shapes("sequential", (8, 8, 3), layers=layers) == shapes(name, (8, 8, 3), **attributes)
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
    ours, theirs = (
        jax.jit(models.build(n, CLASSES, **a).apply, static_argnums=2)(variables, x, False)
        for n, a in (("sequential", {"layers": layers}), (name, attributes))
    )
    np.testing.assert_allclose(ours.logits_BxY, theirs.logits_BxY, rtol=1e-5, atol=1e-5)


def test_layers_in_words_are_what_numpy_makes_of_them():
    def reference(net, x):
        x = relu(net.norm(net.conv(x, 3, stride=2, padding="VALID")))
        x = avg_pool(max_pool(net.conv(x, 2), 2, 2), 3, 1)
        x = relu(net.norm(net.dense(relu(net.conv(x, 1)).mean((1, 2)))))
        return [net.dense(x)]

    layers = (
        *("conv 6 3 2 valid", "batch_norm", "relu", "conv 7 2", "max_pool 2", "avg_pool 3 1"),
        *("conv 8 1", "relu", "global_avg_pool", "dense 9", "batch_norm", "relu", "dropout"),
    )
    compare("sequential", reference, (13, 12, 2), train=True, decay=0.99, layers=layers)
    params = shapes("sequential", (13, 12, 2), layers=layers)["params"]
    # A bias is left out where a normalization follows.
    with_bias = {k for k, v in params.items() if "bias" in v and not k.startswith("BatchNorm")}
    assert with_bias == {"Conv_1", "Conv_2", "Dense_1"}


def test_a_rate_in_words_is_fixed_and_is_not_the_trials():
    model = models.build("sequential", CLASSES, layers=("dropout 0.5",))
    assert not models.has_dropout("sequential", layers=("dropout 0.5",))
    assert models.has_dropout("sequential", layers=("dropout 0.5", "relu", "dropout"))
    variables = drawn(shapes("sequential", (8, 8, 1), layers=("dropout 0.5",)))
    x = jnp.ones((4, 8, 8, 1))
    rates = [model.apply(variables, x, True, jax.random.key(0), r).logits_BxY for r in (0.0, 0.9)]
    np.testing.assert_array_equal(*rates)
    assert (model.apply(variables, x, False).logits_BxY != rates[0]).any()


@pytest.mark.parametrize(
    ("layers", "place", "expected"),
    [
        (("relu", "conf 8 3"), 1, "did you mean 'conv'?"),
        (("",), 0, "a layer is one of: conv CHANNELS WINDOW"),
        (("conv 8",), 0, "'conv CHANNELS WINDOW [STRIDE] [valid]'"),
        (("conv 8 3 1 1",), 0, "Write for example 'conv 64 3'"),
        (("conv 8 3 same",), 0, "'conv CHANNELS WINDOW [STRIDE] [valid]'"),
        (("conv 8 0",), 0, "numbers are whole"),
        (("conv -8 3",), 0, "numbers are whole"),
        (("flatten", "dense 1.5"), 1, "Write for example 'dense 128'"),
        (("flatten", "dense"), 1, "'dense WIDTH'"),
        (("max_pool",), 0, "Write for example 'max_pool 2'"),
        (("relu 3",), 0, "Write for example 'relu'"),
        (("dropout 1",), 0, "RATE is a number from 0 to less than 1"),
        (("dropout nan",), 0, "RATE is a number from 0 to less than 1"),
        (("conv 8 3", "dense 8"), 1, "add 'flatten' or 'global_avg_pool' before it"),
        (("flatten", "relu", "conv 8 3"), 2, "no longer a map"),
        (("global_avg_pool", "flatten"), 1, "no longer a map"),
        (("flatten", "lrn"), 1, "no longer a map"),
    ],
)
def test_mistakes_in_layers_are_found_when_the_trial_is_made(layers, place, expected):
    with pytest.raises(UserError) as caught:
        trials.resolve({"model": {"name": "sequential", "layers": layers}})
    message = str(caught.value)
    assert message.startswith(f"model.layers[{place}] is {layers[place]!r}")
    assert expected in message
    assert "\n" not in message


def test_a_window_larger_than_its_map_is_a_users_error():
    layers = ("max_pool 4", "conv 8 3 valid")
    assert trials.resolve({"model": {"name": "sequential", "layers": layers}})
    with pytest.raises(UserError, match=r"model.layers\[1\] .* has 2x2 places"):
        shapes("sequential", (8, 8, 1), layers=layers)


def test_vggs_stages_must_fit_together():
    with pytest.raises(UserError, match=r"model.stages has 2 values .* model.convs 3 "):
        trials.resolve({"model": {"name": "vgg", "stages": (8, 8), "convs": (1, 2, 1)}})
