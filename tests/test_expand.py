"""From the axes of a config to its trials: every combination once, and clear refusals."""

import copy

import pytest
from ml_collections import config_dict
from test_trials import BASE, config_of, error_of, ids, with_field

from rethink_jax import axes, default_config, models, trials
from rethink_jax.schema import UserError
from rethink_jax.trials import FIELDS

# --- expand ---------------------------------------------------------------------------------------


def test_no_axis_makes_one_trial():
    for config in {"trial": BASE}, config_of({}), config_of(None):
        assert trials.expand(config) == [trials.resolve(BASE)]


def test_axes_multiply():
    found = trials.expand(config_of({"seed": (0, 1, 2), "corruption": {"label_prob": (0.0, 1.0)}}))
    points = [(t["seed"], t["corruption.label_prob"]) for t in found]
    assert sorted(points) == [(s, p) for s in (0, 1, 2) for p in (0.0, 1.0)]
    # All the rest is as in config.trial.
    for t in found:
        nested = with_field("seed", t["seed"])
        nested = with_field("corruption.label_prob", t["corruption.label_prob"], nested)
        assert t == trials.resolve(nested)


def test_the_set_of_trials_does_not_depend_on_the_order_of_axes_or_values():
    one = {"seed": (0, 1, 2), "optimizer": {"momentum": (0.0, 0.5), "learning_rate": (0.1, 0.2)}}
    other = {"optimizer": {"learning_rate": (0.2, 0.1), "momentum": (0.5, 0.0)}, "seed": (2, 0, 1)}
    assert len(ids(config_of(one))) == 12
    assert ids(config_of(one)) == ids(config_of(other))


def test_zipped_axes_advance_together():
    zipped = {"together": {"seed": (1, 2, 3), "optimizer": {"momentum": (0.1, 0.2, 0.3)}}}
    found = trials.expand(config_of({"zipped": zipped, "batch_size": (8, 16)}))
    points = {(t["seed"], t["optimizer.momentum"], t["batch_size"]) for t in found}
    assert points == {(s, s / 10, b) for s in (1, 2, 3) for b in (8, 16)}
    assert len(found) == 6


def test_zipped_axes_of_unequal_length_are_refused():
    zipped = {"together": {"seed": (1, 2, 3), "batch_size": (8, 16)}}
    message = error_of(trials.expand, config_of({"zipped": zipped}))
    for word in "config.sweep.zipped.together", "seed: 3", "batch_size: 2":
        assert word in message


def test_union_adds_sweeps_and_multiplies_with_outer_axes():
    sweep = {
        "seed": (0, 1),
        "union": {
            "labels": {"corruption": {"label_prob": (0.5, 1.0)}},
            "pixels": {"corruption": {"pixels": ("shuffled", "random", "gaussian")}},
        },
    }
    found = trials.expand(config_of(sweep))
    points = {(t["seed"], t["corruption.label_prob"], t["corruption.pixels"]) for t in found}
    base = BASE["corruption"]["label_prob"]
    assert points == {(s, p, "none") for s in (0, 1) for p in (0.5, 1.0)} | {
        (s, base, kind) for s in (0, 1) for kind in ("shuffled", "random", "gaussian")
    }
    assert len(found) == 10


def test_unions_nest():
    inner = {"a": {"batch_size": (4, 8)}, "b": {"optimizer": {"momentum": (0.0,)}}}
    sweep = {"union": {"x": {"seed": (0, 1), "union": inner}, "y": {"seed": (2,)}}}
    found = trials.expand(config_of(sweep))
    points = {(t["seed"], t["batch_size"], t["optimizer.momentum"]) for t in found}
    assert points == {(s, *point) for s in (0, 1) for point in ((4, 0.9), (8, 0.9), (16, 0.0))} | {
        (2, 16, 0.9)
    }
    assert len(found) == 7


def test_a_member_of_a_union_without_axes_is_the_trial_itself():
    found = trials.expand(config_of({"union": {"base": {}, "more": {"seed": (8, 9)}}}))
    assert sorted(t["seed"] for t in found) == [3, 8, 9]


def test_an_axis_of_whole_models_takes_names_and_dicts():
    sweep = {"model": ("mlp", {"name": "mlp", "hidden": (4, 4)}, {"kernel_scale": 2.0})}
    found = trials.expand(config_of(sweep))
    # A whole model replaces the model of config.trial: hidden (8,) of BASE is gone.
    points = [(t["model.hidden"], t["model.kernel_scale"]) for t in found]
    assert sorted(points) == [((4, 4), 1.0), ((512,), 1.0), ((512,), 2.0)]


def test_an_axis_of_one_field_of_the_model():
    found = trials.expand(config_of({"model": {"hidden": ((4,), (4, 4))}}))
    assert [t["model.hidden"] for t in found] == [(4,), (4, 4)]


def test_a_field_of_the_model_refines_a_whole_model_wherever_the_two_axes_stand():
    whole, field = (
        {"model": ({"name": "mlp", "kernel_scale": 2.0},)},
        {"model": {"hidden": ((4,),)}},
    )
    for sweep in (
        field | {"zipped": {"z": whole}},
        whole | {"zipped": {"z": field}},
        field | {"union": {"u": whole}},
    ):
        (trial,) = trials.expand(config_of(sweep))
        assert (trial["model.hidden"], trial["model.kernel_scale"]) == ((4,), 2.0), sweep


def test_an_axis_over_a_field_that_the_model_does_not_have():
    message = error_of(trials.expand, config_of({"model": {"hiden": ((4,),)}}))
    assert "did you mean 'model.hidden'?" in message


def test_an_empty_tuple_is_no_axis():
    sweep = {"seed": (), "batch_size": (4, 8), "zipped": {"z": {"corruption": {"seed": ()}}}}
    assert ids(config_of(sweep)) == ids(config_of({"batch_size": (4, 8)}))


def test_an_empty_tuple_among_zipped_axes_is_no_axis():
    zipped = {"z": {"seed": (0, 1), "batch_size": ()}}
    assert ids(config_of({"zipped": zipped})) == ids(config_of({"seed": (0, 1)}))


def test_a_list_is_an_axis_too():
    assert ids(config_of({"seed": [0, 1]})) == ids(config_of({"seed": (0, 1)}))


@pytest.mark.parametrize("value", [3, "digits", 0.5, None])
def test_an_axis_that_is_no_tuple_is_refused(value):
    message = error_of(trials.expand, config_of({"seed": value}))
    assert f"config.sweep.seed is {value!r}" in message
    assert f"config.sweep.seed = ({value!r},)" in message  # What to write instead.


@pytest.mark.parametrize(
    ("sweep", "where"),
    [
        ({"optimizer": {"momentun": (0.1,)}}, "config.sweep;"),
        ({"zipped": {"z": {"optimizer": {"momentun": (0.1,)}}}}, "config.sweep.zipped.z;"),
        ({"union": {"u": {"optimizer": {"momentun": (0.1,)}}}}, "config.sweep.union.u;"),
    ],
)
def test_unknown_axis_names_the_nearest(sweep, where):
    message = error_of(trials.expand, config_of(sweep))
    assert f"unknown axis 'optimizer.momentun' in {where}" in message
    assert "did you mean 'optimizer.momentum'?" in message


@pytest.mark.parametrize(
    "sweep",
    [
        {"seed": (0, 1, 0)},
        {"optimizer": {"momentum": (0, 0.0)}},
        {"union": {"a": {"seed": (0, 1)}, "b": {"seed": (1, 2)}}},
        {"union": {"a": {}, "b": {"seed": (BASE["seed"],)}}},
        {"model": ("mlp", {"name": "mlp"})},
    ],
)
def test_the_same_trial_twice_is_refused(sweep):
    assert "the same trial twice" in error_of(trials.expand, config_of(sweep))


@pytest.mark.parametrize(
    "sweep",
    [
        {"seed": (0, 1), "zipped": {"z": {"seed": (2, 3)}}},
        {"seed": (0, 1), "union": {"u": {"seed": (2, 3)}}},
        {"zipped": {"y": {"seed": (0, 1)}, "z": {"seed": (2, 3)}}},
    ],
)
def test_a_field_that_two_axes_set_is_refused(sweep):
    message = error_of(trials.expand, config_of(sweep))
    assert "sets 'seed' by two axes" in message


def test_a_bad_value_of_an_axis_is_refused():
    assert "batch_size is 0" in error_of(trials.expand, config_of({"batch_size": (8, 0)}))


SWEEP = {
    "seed": (0, 1),
    "zipped": {"z": {"batch_size": (8, 16), "optimizer": {"momentum": (0.1, 0.2)}}},
    "union": {"u": {"model": ("mlp", {"name": "mlp", "hidden": (4,)})}},
}


@pytest.mark.parametrize("kind", [dict, config_dict.ConfigDict])
def test_expand_does_not_change_its_config(kind):
    config = kind(config_of(copy.deepcopy(SWEEP), copy.deepcopy(BASE)))
    before = copy.deepcopy(config)
    first = trials.expand(config)
    assert config == before
    assert trials.expand(config) == first
    assert len(first) == 8


def test_a_config_dict_and_a_dict_give_the_same_trials():
    config = config_of(SWEEP)
    assert trials.expand(config_dict.ConfigDict(config)) == trials.expand(config)


def test_expand_of_the_default_config_is_the_default_trial():
    assert trials.expand(default_config()) == [trials.resolve({})]


# --- fixed_fields ---------------------------------------------------------------------------------


def test_fixed_fields_are_those_that_no_axis_sets():
    sweep = {
        "seed": (0, 1),
        "stop": {"max_epochs": ()},
        "zipped": {"z": {"batch_size": (8, 16)}},
        "union": {"u": {"optimizer": {"momentum": (0.1,)}}, "v": {"corruption": {"seed": (1, 2)}}},
    }
    fixed = trials.fixed_fields(config_of(sweep))
    swept = {"seed", "batch_size", "optimizer.momentum", "corruption.seed"}
    assert not fixed.keys() & swept
    assert fixed.keys() >= FIELDS.keys() - swept
    assert fixed["corruption.label_prob"] == 0.25  # given
    assert fixed["optimizer.learning_rate"] == FIELDS["optimizer.learning_rate"].default
    assert fixed["model.hidden"] == (8,)


def test_fixed_fields_include_the_models_defaults():
    fixed = trials.fixed_fields({"trial": {}})
    assert fixed["model.hidden"] == models.fields_of("mlp")["hidden"].default


def test_an_axis_of_whole_models_fixes_nothing_of_the_model():
    fixed = trials.fixed_fields(config_of({"model": ("mlp",)}))
    assert not [k for k in fixed if k.startswith("model.")]


def test_fixed_fields_of_a_config_dict_are_those_of_the_dict():
    config = config_of(SWEEP)
    assert trials.fixed_fields(config_dict.ConfigDict(config)) == trials.fixed_fields(config)


# --- a selection of the trials --------------------------------------------------------------------

TWO_NETWORKS = config_of(
    {
        "seed": (0, 1),
        "corruption": {"label_prob": (0.0, 0.5)},
        "model": ({"name": "mlp", "hidden": (4, 8)}, {"name": "alexnet"}),
    }
)


@pytest.mark.parametrize(
    ("only", "count"),
    [
        ("", 8),
        ("model.name=mlp", 4),
        ("model.name = mlp; seed=1", 2),
        ("corruption.label_prob=0", 4),
        ("corruption.label_prob=.5;seed=0;model.name=alexnet", 1),
        ("model.hidden=(4, 8)", 4),
        ("model.hidden=4,8", 4),
        ("preprocess.random_flip=False", 8),
        ("model.order=paper", 4),
        ("preprocess.normalize=per_image", 8),
    ],
)
def test_select_takes_the_trials_with_these_values(only, count):
    every = trials.expand(TWO_NETWORKS)
    chosen = trials.select(every, only)
    assert len(chosen) == count
    assert [t for t in every if t in chosen] == chosen, "in their order"


@pytest.mark.parametrize("text", ["('conv 4 3', 'relu')", '"conv 4 3","relu"', "conv 4 3, relu"])
def test_select_takes_words_in_a_tuple(text):
    given = {"model": {"name": "sequential", "layers": ("conv 4 3", "relu", "flatten")}}
    every = trials.expand({"trial": given, "sweep": {}})
    with pytest.raises(UserError):
        trials.select(every, f"model.layers={text}")
    assert trials.select(every, f"model.layers={text.rstrip(')')},flatten") == every


@pytest.mark.parametrize(
    ("only", "words"),
    [
        ("model.name=mpl", ["no trial", "mlp", "alexnet"]),
        ("seed=7", ["no trial", "0, 1"]),
        ("seed=0;seed=1", ["no trial"]),
        ("seed", ["'seed'", "model.name=mlp"]),
        ("modle.name=mlp", ["modle.name", "'model.name'"]),
        ("seed=one", ["no trial", "0, 1"]),
    ],
)
def test_select_says_what_is_wrong(only, words):
    message = error_of(trials.select, trials.expand(TWO_NETWORKS), only)
    assert all(word in message for word in words), message


# --- what overrides cannot change ---


@pytest.mark.parametrize(
    ("sweep", "hidden"),
    [
        ({}, set()),
        ({"seed": (0, 1), "batch_size": ()}, {"seed"}),
        ({"optimizer": {"momentum": (0.1,)}}, {"optimizer.momentum"}),
        ({"zipped": {"a": {"seed": (0,), "batch_size": (1,)}}}, {"seed", "batch_size"}),
        ({"union": {"a": {"seed": (0,)}, "b": {"batch_size": (1,)}}}, set()),
        ({"union": {"a": {"seed": (0,), "batch_size": (1,)}, "b": {"seed": (1,)}}}, {"seed"}),
        ({"seed": 3}, set()),
    ],
)
def test_what_an_axis_hides(sweep, hidden):
    """A value in the base config that no trial has."""
    assert axes.in_all(sweep) == hidden
