"""From a config to trials: what is accepted, what identifies a trial, and how trials group."""

import copy
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import numpy as np
import pytest

from rethink_jax import models, trials
from rethink_jax.schema import UserError, flatten, nest
from rethink_jax.trials import FIELDS, TRACED

ROOT = Path(__file__).parents[1]

# Every optional field is set, so that each can be changed on its own.
BASE = {
    "seed": 3,
    "batch_size": 16,
    "data": {"name": "digits", "num_train": 64},
    "corruption": {"label_prob": 0.25, "seed": 5},
    "model": {"name": "mlp", "hidden": (8,)},
    "stop": {"max_epochs": 4},
}
# trial_id of BASE. It names the trial's folder in every workdir there is: a change of it, also by
# a new field or another default, makes all of them start again. Then say so in the release notes.
GOLDEN_ID = "e7d81e2fde12"


def error_of(call, *args):
    """The message of the UserError that a call raises: always one line."""
    with pytest.raises(UserError) as caught:
        call(*args)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


def with_field(name, value, base=BASE):
    return nest(flatten(base) | {name: value})


CROPPED = with_field("preprocess.crop_size", 6)  # Random crops need a size.


def another(name, monkeypatch):
    """A value other than that in BASE; where only one exists so far, a second one is made up."""
    field, now = FIELDS[name], trials.resolve(BASE)[name]
    if name == "data.name":
        return "synthetic"
    if name == "model.name":  # one with the fields of the network in BASE
        monkeypatch.setitem(models.MODELS, "made_up", models.MODELS["mlp"])
        return "made_up"
    if field.choices is not None:
        rest = [c for c in field.choices if c != now]
        if not rest:
            rest = ["made_up"]
            both = dataclasses.replace(field, choices=(*field.choices, "made_up"))
            monkeypatch.setitem(FIELDS, name, both)
        return rest[0]
    if field.kind is bool:
        return not now
    if field.kind is int:
        return 8 if now != 8 else 9
    if field.kind is str:
        return "Dense.*"
    if field.kind is tuple:
        return (1, 3)
    return 0.375 if now != 0.375 else 0.625


def config_of(sweep, trial=BASE):
    return {"trial": trial, "sweep": sweep}


def ids(config):
    return {t.trial_id for t in trials.expand(config)}


# --- resolve --------------------------------------------------------------------------------------


def test_resolve_fills_in_every_default():
    trial = trials.resolve({})
    assert {k for k, _ in trial.fields} == {*FIELDS} | {
        f"model.{k}" for k in models.fields_of("mlp")
    }
    for name, field in FIELDS.items():
        expected = trial["seed"] if name == "corruption.seed" else field.default
        assert trial[name] == expected, name
    for name, field in models.fields_of("mlp").items():
        assert trial[f"model.{name}"] == field.default, name


def test_resolve_keeps_what_is_given():
    trial = trials.resolve(BASE)
    for name, value in flatten(BASE).items():
        assert trial[name] == value


def test_resolve_sorts_the_fields():
    names = [k for k, _ in trials.resolve(BASE).fields]
    assert names == sorted(names)


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        ("optimizer.learning_rate", 1, 1.0),
        ("optimizer.learning_rate", np.float64(0.5), 0.5),
        ("corruption.label_prob", np.int64(1), 1.0),
        ("batch_size", np.int32(8), 8),
        ("model.hidden", [4, np.int64(5)], (4, 5)),
        ("model.hidden", (), ()),
        ("model.kernel_scale", 2, 2.0),
        ("stop.train_accuracy", 1, 1.0),
    ],
)
def test_resolve_makes_values_of_the_fields_type(name, given, kept):
    value = trials.resolve(with_field(name, given))[name]
    assert value == kept
    assert type(value) is type(kept)
    json.dumps(value)  # numpy's scalars are not literals
    if isinstance(value, tuple):
        assert [type(v) for v in value] == [type(v) for v in kept]


def test_equal_values_of_different_types_make_the_same_trial():
    one, other = (with_field("optimizer.learning_rate", v) for v in (1, 1.0))
    assert trials.resolve(one).trial_id == trials.resolve(other).trial_id


def test_negative_zero_is_zero():
    # They are equal in Python, so that trials which hold them are; then their ids must be.
    minus, plus = (trials.resolve(with_field("corruption.label_prob", v)) for v in (-0.0, 0.0))
    assert minus == plus
    assert minus.trial_id == plus.trial_id


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("name", [k for k, f in FIELDS.items() if f.kind in (int, float)])
def test_resolve_refuses_a_bool_for_a_number(name, value):
    assert error_of(trials.resolve, with_field(name, value)).startswith(f"{name} is {value}")


def test_resolve_refuses_a_bool_in_a_tuple():
    assert "model.hidden" in error_of(trials.resolve, with_field("model.hidden", (8, True)))


@pytest.mark.parametrize("name", [k for k, f in FIELDS.items() if f.kind is bool])
@pytest.mark.parametrize("value", [1, 0, "True"])
def test_resolve_refuses_a_number_for_a_bool(name, value):
    assert "True or False" in error_of(trials.resolve, with_field(name, value))


@pytest.mark.parametrize("name", FIELDS)
def test_none_is_allowed_only_where_the_field_is_optional(name):
    if FIELDS[name].optional:
        trials.resolve(with_field(name, None))
    else:
        assert f"{name} is None" in error_of(trials.resolve, with_field(name, None))


NUMBERS = {k: f for k, f in FIELDS.items() if f.kind in (int, float)}
BOUNDED = {k: f for k, f in NUMBERS.items() if f.low is not None or f.high is not None}


@pytest.mark.parametrize("name", BOUNDED)
def test_bounds_are_allowed_and_what_is_beyond_them_is_not(name):
    field = BOUNDED[name]
    for bound, step in (field.low, -1), (field.high, 1):
        if bound is None:
            continue
        trials.resolve(with_field(name, field.kind(bound)))
        message = error_of(trials.resolve, with_field(name, field.kind(bound) + step))
        assert message.startswith(f"{name} is {field.kind(bound) + step}")
        assert field.allowed() in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", [k for k, f in FIELDS.items() if f.kind is float])
def test_resolve_refuses_what_is_not_finite(name, value):
    assert name in error_of(trials.resolve, with_field(name, value))


@pytest.mark.parametrize("name", [k for k, f in FIELDS.items() if f.kind in (int, float)])
def test_resolve_refuses_a_string_for_a_number(name):
    assert f"{name} is '1'" in error_of(trials.resolve, with_field(name, "1"))


def test_resolve_refuses_what_no_float_can_hold():
    assert "learning_rate" in error_of(
        trials.resolve, with_field("optimizer.learning_rate", 10**400)
    )


def test_resolve_refuses_a_fraction_for_an_integer():
    assert "batch_size is 1.5" in error_of(trials.resolve, with_field("batch_size", 1.5))


@pytest.mark.parametrize("value", [8, "8", (8.0,), ("8",), (0,)])
def test_resolve_refuses_a_tuple_of_wrong_elements(value):
    message = error_of(trials.resolve, with_field("model.hidden", value))
    assert f"model.hidden is {value!r}" in message
    assert "a tuple, each element an integer of at least 1" in message


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("optimizer.learning_rat", "optimizer.learning_rate"),
        ("learning_rate", "optimizer.learning_rate"),
        ("bach_size", "batch_size"),
        ("optimzer.momentum", "optimizer.momentum"),
    ],
)
def test_unknown_field_names_the_nearest(name, near):
    message = error_of(trials.resolve, with_field(name, 1))
    assert f"unknown field {name!r}" in message
    assert f"did you mean {near!r}?" in message


def test_unknown_field_with_nothing_near_suggests_nothing():
    message = error_of(trials.resolve, with_field("zzzzqqq", 1))
    assert "did you mean" not in message
    assert "optimizer" in message  # The sections are named all the same.


def test_unknown_model_field_lists_the_models_own():
    message = error_of(trials.resolve, with_field("model.hiden", (1,)))
    for name in models.fields_of("mlp"):
        assert f"model.{name}" in message
    assert "did you mean 'model.hidden'?" in message
    assert "optimizer" not in message


@pytest.mark.parametrize(
    ("name", "value", "near"),
    [
        ("model.name", "mpl", "mlp"),
        ("data.name", "digit", "digits"),
        ("optimizer.name", "sdg", "sgd"),
        ("corruption.pixels", "shufled", "shuffled"),
        ("stop.measured_on", "on-line", "online"),
        ("model.kernel_init", "he_norm", "he_normal"),
    ],
)
def test_a_wrong_choice_lists_the_choices_and_the_nearest(name, value, near):
    message = error_of(trials.resolve, with_field(name, value))
    assert f"{name} is {value!r}" in message
    assert f"did you mean {near!r}?" in message
    field = FIELDS.get(name) or models.fields_of("mlp")[name.removeprefix("model.")]
    for choice in field.choices or ():
        assert choice in message


def test_balanced_needs_the_size_of_the_subset():
    data = {"balanced": True}
    assert "data.num_train" in error_of(trials.resolve, {"data": data})
    assert trials.resolve({"data": data | {"num_train": 10}})["data.balanced"] is True


def test_corruption_seed_is_the_trials_seed_unless_given():
    assert trials.resolve({"seed": 4})["corruption.seed"] == 4
    assert trials.resolve({"seed": 4, "corruption": {"seed": None}})["corruption.seed"] == 4
    # 0 is a seed like any other.
    assert trials.resolve({"seed": 4, "corruption": {"seed": 0}})["corruption.seed"] == 0


# --- what identifies a trial ----------------------------------------------------------------------


def test_trial_id_is_the_one_that_workdirs_hold():
    assert trials.resolve(BASE).trial_id == GOLDEN_ID


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_trial_id_is_the_same_in_another_process(hash_seed):
    code = f"from rethink_jax import trials; print(trials.resolve({BASE!r}).trial_id)"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert found.stdout.strip() == trials.resolve(BASE).trial_id


def test_trial_id_does_not_depend_on_the_order_of_keys():
    def reverse(tree):
        return {k: reverse(v) if isinstance(v, dict) else v for k, v in reversed([*tree.items()])}

    assert [*reverse(BASE)] != [*BASE]
    assert trials.resolve(reverse(BASE)) == trials.resolve(BASE)
    assert trials.resolve(reverse(BASE)).trial_id == trials.resolve(BASE).trial_id


def test_a_digest_does_not_depend_on_the_order_of_fields():
    assert trials.digest((("a", 1), ("b", (2,)))) == trials.digest((("b", (2,)), ("a", 1)))


@pytest.mark.parametrize("name", FIELDS)
def test_trial_id_changes_with_every_field(name, monkeypatch):
    base = trials.resolve(CROPPED)
    changed = trials.resolve(with_field(name, another(name, monkeypatch), CROPPED))
    assert changed != base
    assert changed.trial_id != base.trial_id


@pytest.mark.parametrize(
    ("name", "value"),
    [("hidden", (8, 8)), ("kernel_init", "he_normal"), ("kernel_scale", 2), ("bias_init", 0.1)],
)
def test_trial_id_changes_with_the_models_fields(name, value):
    assert name in models.fields_of("mlp")
    changed = trials.resolve(with_field(f"model.{name}", value))
    assert changed.trial_id != trials.resolve(BASE).trial_id


def test_trial_id_does_not_change_with_settings():
    config = config_of({"seed": (0, 1)})
    settings = {"engine": {"lanes": 3}, "checkpoint": {"keep": "none"}}
    assert ids(config | settings) == ids(config)


def test_a_trial_is_frozen_and_hashable():
    trial = trials.resolve(BASE)
    with pytest.raises(dataclasses.FrozenInstanceError):
        trial.fields = ()
    assert hash(trial) == hash(trials.resolve(copy.deepcopy(BASE)))
    assert len({trial, trials.resolve(BASE), trials.resolve(with_field("seed", 9))}) == 2


# --- group ----------------------------------------------------------------------------------------


def mixed():
    sweep = {
        "seed": (0, 1, 2),
        "batch_size": (8, 16),
        "model": {"hidden": ((4,), (4, 4))},
        "corruption": {"label_prob": (0.0, 1.0)},
    }
    return trials.expand(config_of(sweep))


def test_groups_are_a_partition():
    every, groups = mixed(), trials.group(mixed())
    members = [t for g in groups for t in g.trials]
    assert len(members) == len(every) == 24
    assert set(members) == set(every)


def test_static_fields_are_equal_in_a_group_and_differ_between_groups():
    groups = trials.group(mixed())
    assert len(groups) == 4
    statics = [{t.static for t in g.trials} for g in groups]
    assert all(len(s) == 1 for s in statics)
    assert len(set.union(*statics)) == len(groups)
    assert len({g.group_id for g in groups}) == len(groups)
    for g in groups:
        assert not g.static.keys() & set(TRACED)
        assert g.static.keys() | set(TRACED) == {k for k, _ in g.trials[0].fields}


@pytest.mark.parametrize("name", FIELDS)
def test_static_fields_split_groups_and_traced_ones_do_not(name, monkeypatch):
    changed = trials.resolve(with_field(name, another(name, monkeypatch), CROPPED))
    groups = trials.group([trials.resolve(CROPPED), changed])
    assert len(groups) == (1 if FIELDS[name].role != "static" else 2)


@pytest.mark.parametrize("name", models.fields_of("mlp"))
def test_the_models_fields_split_groups(name):
    value = {"hidden": (9,), "kernel_init": "he_normal", "kernel_scale": 3.0, "bias_init": 1.0}
    value["last_kernel_scale"] = 0.5
    changed = trials.resolve(with_field(f"model.{name}", value[name]))
    assert len(trials.group([trials.resolve(BASE), changed])) == 2


def test_what_is_traced():
    # A field that leaves this list compiles a program per value; that must not happen unnoticed.
    assert {k for k in FIELDS if k not in TRACED} == {
        "batch_size",
        "matmul_precision",
        "compute_dtype",
        "data.name",
        "data.image_size",
        "data.classes",
        "data.num_train",
        "data.num_confusion",
        "data.balanced",
        "data.seed",
        "preprocess.crop_size",
        "preprocess.normalize",
        "model.name",
        "optimizer.name",
        "optimizer.decay_params",
        "stop.max_epochs",
        "stop.measured_on",
    }


def test_groups_come_in_order_of_first_appearance():
    every = mixed()
    found = [g.trials[0].static for g in trials.group(every)]
    assert found == list(dict.fromkeys(t.static for t in every))


def test_the_trials_expected_to_run_longest_come_first():
    sweep = {
        "corruption": {"label_prob": (0.0, 1.0, 0.5)},
        "optimizer": {"learning_rate": (0.1, 0.01)},
    }
    (group,) = trials.group(trials.expand(config_of(sweep)))
    points = [(t["corruption.label_prob"], t["optimizer.learning_rate"]) for t in group.trials]
    assert points == [(1.0, 0.01), (1.0, 0.1), (0.5, 0.01), (0.5, 0.1), (0.0, 0.01), (0.0, 0.1)]


def test_corrupted_pixels_are_expected_to_take_longer_than_clean_ones():
    sweep = {"corruption": {"pixels": ("none", "random")}}
    base = with_field("corruption.label_prob", 0.0)
    (group,) = trials.group(trials.expand(config_of(sweep, base)))
    assert [t["corruption.pixels"] for t in group.trials] == ["random", "none"]


def test_a_random_crop_needs_a_size(small_trial):
    with pytest.raises(UserError, match=r"preprocess\.random_crop is True without .*crop_size"):
        trials.resolve(small_trial(preprocess__random_crop=True))


# --- what a network cannot do ---------------------------------------------------------------------


def test_dropout_in_a_network_without_dropout_is_refused(monkeypatch):
    class Plain(nn.Module):
        num_classes: int

        def __call__(self, images, train):
            return images

    monkeypatch.setitem(models.MODELS, "plain", Plain)
    given = {"model": {"name": "plain"}, "regularizer": {"dropout": 0.5}}
    message = error_of(trials.resolve, given)
    assert "regularizer.dropout" in message
    assert "'plain'" in message
    given["regularizer"] = {"dropout": 0.0}
    assert trials.resolve(given)["model.name"] == "plain"


def test_a_pattern_that_is_no_regular_expression_is_refused():
    message = error_of(trials.resolve, {"optimizer": {"decay_params": "(kernel"}})
    assert "(kernel" in message
    assert "kernel" in message
