"""The default config, the settings, and every config file that comes with the project."""

import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import config_dict

from rethink_jax import config, default_config, models, trials
from rethink_jax.config import SETTINGS
from rethink_jax.schema import Field, UserError, flatten, nest
from rethink_jax.trials import FIELDS

ROOT = Path(__file__).parents[1]
EVERY = sorted(p for p in (ROOT / "configs").glob("*.py") if not p.name.startswith("_"))
FILES = [p for p in EVERY if "rethink_jax.theory" not in p.read_text()]  # Of sweeps.


def error_of(call, *args, **kwargs):
    """The message of the UserError that a call raises: always one line."""
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


def literals(value, name="config"):
    """Walks a nested dict; fails on anything that is not a literal."""
    if isinstance(value, dict):
        for k, v in value.items():
            assert type(k) is str, name
            literals(v, f"{name}.{k}")
    elif isinstance(value, tuple):
        for v in value:
            literals(v, name)
    else:
        assert value is None or type(value) in (str, int, float, bool), f"{name} is {value!r}"


# --- the default config ---------------------------------------------------------------------------


def test_the_default_config_is_one_default_trial():
    assert trials.expand(default_config()) == [trials.resolve({})]


def test_the_default_config_has_the_default_settings():
    assert config.settings(default_config()) == {k: f.default for k, f in SETTINGS.items()}
    assert config.settings({}) == config.settings(default_config())


def test_the_default_config_has_every_field_and_every_setting():
    tree = default_config().to_dict()
    assert set(FIELDS) <= set(flatten(tree.pop("trial")))
    del tree["sweep"]
    assert set(flatten(tree)) == set(SETTINGS)


def test_the_default_config_has_every_axis_and_only_those():
    axes = flatten(default_config().to_dict()["sweep"])
    assert set(axes) == {k for k in FIELDS if not k.startswith("model.")}
    assert set(axes.values()) == {()}


def test_every_axis_of_the_default_config_can_be_set():
    for name in flatten(default_config().to_dict()["sweep"]):
        some = default_config()
        value = trials.resolve({})[name]
        some.update_from_flattened_dict({f"sweep.{name}": (value,)})
        if value is not None:
            assert len(trials.expand(some)) == 1, name


def test_two_default_configs_share_nothing():
    one, other = default_config(), default_config()
    one.trial.batch_size = 7
    one.sweep.seed = (1, 2)
    one.trial.model.hidden = (3,)
    assert other == default_config()
    assert other.trial.batch_size == FIELDS["batch_size"].default


def test_the_default_config_is_of_literals():
    literals(default_config().to_dict())


# --- settings -------------------------------------------------------------------------------------


def test_settings_keep_what_is_given_and_fill_in_the_rest():
    given = {"engine": {"lanes": 3}, "checkpoint": {"every_seconds": 5}}
    found = config.settings(given | {"trial": {"any": 1}, "sweep": {"any": 1}})
    assert found["engine.lanes"] == 3
    assert found["checkpoint.every_seconds"] == 5.0
    assert type(found["checkpoint.every_seconds"]) is float
    rest = {"engine.lanes", "checkpoint.every_seconds"}
    assert {k: v for k, v in found.items() if k not in rest} == {
        k: f.default for k, f in SETTINGS.items() if k not in rest
    }


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("engine.batching", "vmapp", ("must be one of auto, vmap, map", "did you mean 'vmap'?")),
        ("engine.batching", 1, ("engine.batching is 1",)),
        ("engine.lanes", -1, ("engine.lanes is -1", "at least 0")),
        ("engine.lanes", 1.5, ("engine.lanes is 1.5", "an integer")),
        ("engine.lanes", True, ("engine.lanes is True", "an integer")),
        ("engine.devices", None, ("engine.devices is None", "an integer")),
        ("evaluate.every_epochs", 0, ("evaluate.every_epochs is 0", "at least 1")),
        ("checkpoint.keep", "all", ("must be one of final, none",)),
        ("checkpoint.every_seconds", "60", ("checkpoint.every_seconds is '60'", "a number")),
        ("checkpoint.every_seconds", float("nan"), ("checkpoint.every_seconds is nan",)),
        ("data_files.dir", 3, ("data_files.dir is 3", "a string or None")),
        ("data_files.download", 1, ("data_files.download is 1", "True or False")),
    ],
)
def test_bad_settings_are_refused(name, value, words):
    message = error_of(config.settings, nest({name: value}))
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("name", "near"), [("engine.lane", "engine.lanes"), ("checkpoint.kep", "checkpoint.keep")]
)
def test_unknown_settings_name_the_nearest(name, near):
    message = error_of(config.settings, nest({name: 1}))
    assert f"unknown setting {name!r}" in message
    assert f"did you mean {near!r}?" in message


def test_a_field_of_a_trial_outside_of_it_is_refused():
    assert "config.trial" in error_of(config.settings, {"batch_size": 3})


def test_no_setting_has_the_name_of_a_field():
    assert not {k.split(".")[0] for k in SETTINGS} & {"trial", "sweep"}
    for table in SETTINGS, FIELDS:
        for name, field in table.items():
            assert isinstance(field, Field)
            assert field.doc, name
            if field.default is not None:
                assert field.check(name, field.default) == field.default
            # A sweep may leave a field out, so its default must be allowed.
            assert field.default is not None or field.optional, name


def test_plain_dicts_need_no_ml_collections():
    code = """
import sys
sys.modules["ml_collections"] = None  # Importing it raises ImportError.
from rethink_jax import config, sweep
found = sweep.Sweep({"trial": {"batch_size": 8}, "sweep": {"seed": (0, 1)}, "engine": {"lanes": 2}})
print(len(found.trials), found.settings["engine.lanes"])
"""
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert found.stdout == "2 2\n", found.stderr


# --- config files ---------------------------------------------------------------------------------


def load(path):
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_config_files():
    assert {"quickstart", "table1"} <= {p.stem for p in FILES}


@pytest.fixture(params=["full", "quick"])
def mode(request):
    return request.param


@pytest.fixture(params=FILES, ids=lambda p: p.stem)
def path(request):
    return request.param


def test_a_config_file_expands(path, mode):
    found = trials.expand(load(path).get_config(mode))
    assert found
    assert len({t.trial_id for t in found}) == len(found)
    assert trials.group(found)


def test_a_config_file_has_allowed_settings(path, mode):
    config.settings(load(path).get_config(mode))


def test_a_config_file_is_of_literals(path, mode):
    some = load(path).get_config(mode)
    assert isinstance(some, config_dict.ConfigDict)
    literals(some.to_dict())


def test_a_config_file_can_be_locked_and_overridden(path, mode):
    # As ml_collections does with --config.trial.batch_size=4.
    some = load(path).get_config(mode).lock()
    some.update_from_flattened_dict({"trial.batch_size": 4, "engine.lanes": 1})
    if "batch_size" in trials.fixed_fields(some):  # no axis sets it
        assert {t["batch_size"] for t in trials.expand(some)} == {4}


def test_the_mode_is_full_unless_given(path):
    module = load(path)
    assert list(inspect.signature(module.get_config).parameters) == ["mode"]
    assert module.get_config() == module.get_config("full")


def test_quick_is_shorter_and_needs_no_files(path):
    full, quick = (trials.expand(load(path).get_config(m)) for m in ("full", "quick"))
    assert max(t["stop.max_epochs"] for t in quick) < max(t["stop.max_epochs"] for t in full)
    assert {t["data.name"] for t in quick} <= {"digits", "synthetic"}
    assert len(quick) <= len(full)


def test_loading_a_config_file_twice_gives_the_same(path, mode):
    module = load(path)
    first = module.get_config(mode)
    assert module.get_config(mode) == first
    assert trials.expand(load(path).get_config(mode)) == trials.expand(first)


def test_a_config_file_says_by_which_command_to_run_it(path):
    doc = load(path).__doc__
    assert "COMMAND" in doc
    assert f"python -m launch.sweep --config=configs/{path.name} --workdir=" in doc
    # The first line is what the experiment is.
    assert doc.splitlines()[0].strip()


def test_describe_names_every_field_and_setting_once():
    lines = [line.split(" = ")[0].strip() for line in config.describe().splitlines()]
    for name in (*(f"trial.{k}" for k in trials.FIELDS), *config.SETTINGS):
        assert lines.count(name) == 1
    assert "trial.model.hidden" in lines
    traced = [
        line.split(" = ")[0].strip() for line in config.describe().splitlines() if "  * " in line
    ]
    assert traced == [f"trial.{k}" for k in trials.TRACED]


# --- networks -------------------------------------------------------------------------------------


def test_a_network_has_all_of_its_fields():
    found = config.network("inception", batch_norm=False)
    assert found.keys() == {"name", *models.fields_of("inception")}
    assert found["batch_norm"] is False
    trials.resolve({"model": found})


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("incepton", {}, ("'incepton'", "did you mean 'inception'?")),
        ("alexnet", {"ordr": "paper"}, ("'ordr'", "did you mean 'order'?")),
    ],
)
def test_a_network_that_is_none_is_refused(name, fields, words):
    message = error_of(config.network, name, **fields)
    assert all(word in message for word in words), message
