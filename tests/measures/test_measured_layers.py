"""Which layers a network has, and that folding batch normalization changes nothing."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from drawn_networks import SMALL, made, subject_of

from rethink_jax import models
from rethink_jax.layers import Conv
from rethink_jax.measures import layers
from rethink_jax.measures.subject import Subject
from rethink_jax.schema import UserError


def norm(**attributes):
    return nn.BatchNorm(**{"use_running_average": True} | attributes)


def assert_folding_keeps_the_logits(subject):
    @jax.jit
    def both(variables, images):
        given = Subject(subject.model, variables, images, subject.labels_N)
        own = subject.model.apply(variables, images, False).logits_BxY
        return own, layers.logits_with(given, layers.folded(given), images)

    expected, found = both(subject.variables, subject.images_NxHxWxC)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("name", [name for name in models.MODELS if name != "inception_v3"])
def test_folded_layers_give_the_logits_of_every_network(name):
    assert_folding_keeps_the_logits(subject_of(models.build(name, 4, **SMALL.get(name, {}))))


def test_folded_layers_of_a_network_of_ones_own():
    def call(x):
        x = nn.Conv(4, (3, 2), strides=2, padding=1)(x)
        x = nn.relu(norm(epsilon=0.3, use_scale=False, use_bias=False)(x))
        x = nn.Conv(5, (2, 2), strides=(1, 2), padding=((0, 1), (2, 0)), use_bias=False)(x)
        x = nn.relu(norm(use_bias=False)(x))
        x = nn.Sequential([nn.Dense(3), norm(use_scale=False), nn.relu])(x)
        return nn.Dense(4)(x.reshape(len(x), -1))

    subject = made(call)
    found = layers.places(subject)
    assert [place.name for place in found] == ["Conv_0", "Conv_1", "Dense_0", "Dense_1"]
    assert [place.kind for place in found] == ["conv", "conv", "conv", "dense"]
    assert_folding_keeps_the_logits(subject)


def test_places_of_a_network():
    layers_in_words = ("conv 6 3 2", "batch_norm", "relu", "conv 4 2 1 valid", "flatten", "dense 5")
    subject = subject_of(models.build("sequential", 4, layers=layers_in_words))
    norm_ = layers.Norm(("BatchNorm_0",), 1e-5)
    assert layers.places(subject) == (
        layers.Place(("Conv_0",), (8, 8, 3), (4, 4, 6), (2, 2), ((0, 1), (0, 1)), norm_),
        layers.Place(("Conv_1",), (4, 4, 6), (3, 3, 4), (1, 1), ((0, 0), (0, 0))),
        layers.Place(("Dense_0",), (36,), (5,)),
        layers.Place(("Dense_1",), (5,), (4,)),
    )
    assert layers.widths_D(subject) == [6, 4, 5, 4]
    assert layers.widths_D(subject, "units") == [96, 36, 5, 4]
    assert [layer.matrix.shape for layer in layers.folded(subject)] == [
        *((6, 27), (4, 24), (5, 36), (4, 5))
    ]


def test_an_auxiliary_head_is_not_among_the_layers():
    def call(x):
        x = x.reshape(len(x), -1)
        head = nn.Dense(2, name="head")
        if head.is_initializing():
            head(x)
        return nn.Dense(4)(x)

    assert [place.name for place in layers.places(made(call))] == ["Dense_0"]


def twice(x):
    layer = nn.Dense(3)
    return layer(layer(x))


def used_elsewhere(x):
    x = nn.Dense(4)(x)
    return nn.relu(norm()(x)) + x


def used_by_a_function(x):
    x = Conv(4, (3, 3))(x)
    return nn.relu(norm()(x)) * nn.relu(x)


def its_own_weight(x):
    return nn.Dense(4)(Scaled()(x))


class Scaled(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x * self.param("factor", nn.initializers.ones, ())


REFUSED = {
    "BatchNorm_0 does not come directly": lambda x: norm()(nn.relu(nn.Dense(4)(x))),
    "second does not come directly": lambda x: norm(name="second")(norm()(nn.Dense(4)(x))),
    "goes into the batch normalization BatchNorm_0 and elsewhere": used_elsewhere,
    "Conv_0 goes into the batch normalization": used_by_a_function,
    "takes the statistics of the batch": lambda x: norm(use_running_average=False)(nn.Dense(4)(x)),
    "BatchNorm_0 is along axis 1": lambda x: norm(axis=1)(nn.Dense(4)(x)),
    "LayerNorm_0 is a LayerNorm": lambda x: nn.LayerNorm(use_scale=False, use_bias=False)(x),
    "Dense_0 is applied more than once": twice,
    "DenseGeneral_0 is a DenseGeneral, .*; supported are": lambda x: nn.DenseGeneral(4)(x),
    "Scaled_0 is a Scaled": its_own_weight,
    "Conv_0 is not one over rows and columns": lambda x: nn.Conv(6, (3, 3), kernel_dilation=2)(x),
    "Conv_0 is not one over": lambda x: nn.Conv(6, (3, 3), feature_group_count=3)(x),
    "Conv_0 has padding 'CIRCULAR'": lambda x: nn.Conv(6, (3, 3), padding="CIRCULAR")(x),
    "Dense_0 is applied to an array of 3": lambda x: nn.Dense(4)(x.reshape(len(x), 8, -1)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_measured_is_refused_by_name(message):
    with pytest.raises(UserError, match=message):
        layers.places(made(REFUSED[message]))


def test_initial_weights_are_asked_for():
    with pytest.raises(UserError, match="give initial_variables"):
        layers.initial(made(lambda x: nn.Dense(4)(x)))
