"""What is asked for by name, what is refused, and all measures that draw random numbers at once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_networks import subject_of

from rethink_jax import measures, models
from rethink_jax.schema import UserError

DRAWING = ("sharpness", "pac_bayes", "flatness", "curvature")


@pytest.fixture(scope="module")
def network():
    """Of the kind that is measured in a sweep: in float32, with batch norm."""
    with jax.enable_x64(False):
        layers = ("conv 3 3", "batch_norm", "relu", "global_avg_pool", "dense 5", "relu")
        model = models.build("sequential", 4, layers=layers)
        subject = subject_of(model, image=(4, 4, 2), images=15)
        fields = ("variables", "images_NxHxWxC")
        single = {
            name: jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), getattr(subject, name))
            for name in fields
        }
        subject = dataclasses.replace(subject, **single)
        labels_N = jnp.argmax(subject.logits_NxY, 1).astype(jnp.int32)
        yield dataclasses.replace(subject, labels_N=labels_N, initial_variables=single["variables"])


def compute(subject, names, **kwargs):
    return measures.compute(
        subject.model,
        subject.variables,
        subject.images_NxHxWxC,
        subject.labels_N,
        subject.initial_variables,
        names,
        **kwargs,
    )


def test_names_are_of_measures_families_and_groups():
    everything = measures.select(["all"])
    assert tuple(everything) == tuple(measures.FAMILIES)
    assert sum(map(len, everything.values())) == len(measures.MEASURES)
    cheap = measures.select(["one_pass"])
    assert set(measures.FAMILIES) - set(cheap) == set(DRAWING)
    assert measures.select(["curvature"]) == {"curvature": tuple(measures.FAMILIES["curvature"])}
    some = measures.select(["sigma", "margin_min", "hessian_trace", "sigma"])
    assert some == {
        "margins": ("margin_min",), "flatness": ("sigma",), "curvature": ("hessian_trace",)
    }  # fmt: skip


def test_no_name_stands_for_two_things():
    names = [*measures.GROUPS, *measures.FAMILIES, *measures.MEASURES]
    assert len(set(names)) == len(names)
    assert sum(map(len, measures.FAMILIES.values())) == len(measures.MEASURES)


def test_an_unknown_name():
    with pytest.raises(UserError, match="no measure 'hessian_tace'; did you mean 'hessian_trace'"):
        measures.select(["hessian_tace"])


@pytest.mark.parametrize("family", DRAWING)
def test_a_family_in_float32(network, family):
    """Every measure is a number, and the seed decides it."""
    found = compute(network, [family])
    assert set(found) == set(measures.FAMILIES[family])
    for name, value in found.items():
        assert np.isfinite(value), name
    one = next(iter(found))
    assert compute(network, [one]) == {one: pytest.approx(found[one], rel=1e-4)}


def test_the_seed_decides(network):
    names = ["sharpness_random_search", "hessian_trace"]
    first, again, other = (compute(network, names, seed=seed) for seed in (0, 0, 1))
    assert first == again
    for name in names:
        assert first[name] != other[name]


def test_what_draws_is_refused_without_a_key(network):
    names = tuple(measures.MEASURES)
    with_key = dataclasses.replace(network, key=jax.random.key(0))
    too_few_images = set(measures.checked(with_key, names).refused)
    assert too_few_images == {"margin_5_kth"}
    refused = measures.checked(network, names).refused
    assert "has no key" in refused["sigma"]
    drawing = {name for family in DRAWING for name in measures.FAMILIES[family]}
    nothing_drawn = {"sharpness_l2_increase", "gradient_noise", "fisher_trace_empirical"}
    assert set(refused) == (drawing - nothing_drawn) | too_few_images
    # Shapes are enough.
    shapes = jax.eval_shape(lambda: (network.variables, network.images_NxHxWxC, network.labels_N))
    fields = ("variables", "images_NxHxWxC", "labels_N")
    outline = dataclasses.replace(network, **dict(zip(fields, shapes, strict=True)))
    assert set(measures.checked(outline, names).refused) == set(refused)


def test_each_refusal_has_its_own_reason(network):
    subject = dataclasses.replace(network, initial_variables=None, key=jax.random.key(0))
    refused = measures.checked(subject, ["sigma", "jiang_48_pac_bayes_init", "margin_min"]).refused
    assert set(refused) == {"jiang_48_pac_bayes_init"}
    assert "needs the initial weights" in refused["jiang_48_pac_bayes_init"]
    with pytest.raises(UserError, match="jiang_48_pac_bayes_init: this measure needs the initial"):
        compute(subject, ["jiang_48_pac_bayes_init"])
    # As one of a family it is left out.
    assert "jiang_48_pac_bayes_init" not in compute(subject, ["flatness"])
