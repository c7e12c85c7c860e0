"""Measures that a user adds, with mistakes in them: each fails alone, and says why in one line."""

import csv

import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rethink_jax import cli, measures, measuring, models, records, sweep
from rethink_jax.checkpoint import load_trial
from rethink_jax.data import corruption, sources
from rethink_jax.schema import UserError


def no_such_attribute(subject):
    return subject.weights


def at_run_time(subject):
    def fail(_):
        raise RuntimeError("only when it is run")

    shape = jax.ShapeDtypeStruct((), jnp.float32)
    return jax.pure_callback(fail, shape, subject.loss, vmap_method="sequential")


WANTED = "a measure is a function of a subject that gives one number, computed by jax.numpy"
# {name: (the measure, what its row says)}; all but one are seen before anything is computed.
WRONG = {
    "array": (lambda s: s.logits_NxY.mean(0), f"gives an array float32[10]; {WANTED}"),
    "one_in_an_array": (lambda s: s.loss[None], "gives an array float32[1]"),
    "none": (lambda s: None, f"gives None; {WANTED}"),
    "text": (lambda s: "large", "gives 'large'"),
    "two": (lambda s: (s.loss, s.loss), "gives something of type tuple"),
    "complex": (lambda s: 1j * s.loss, "gives an array complex64[]"),
    "in_numpy": (lambda s: np.linalg.norm(s.logits_NxY), "TracerArrayConversionError"),
    "branch": (lambda s: 1 if s.loss > 0 else 0, "TracerBoolConversionError"),
    "error": (lambda s: 1 / 0, "with ZeroDivisionError: division by zero"),
    "silent": (lambda s: [][s.labels_N.ndim], "test_own_measures.py with IndexError"),
    "attribute": (no_such_attribute, "'Subject' object has no attribute 'weights'"),
    "no_function": (3, "'int' object is not callable"),
    "too_large": (lambda s: 10**400, "OverflowError"),
}
RIGHT = {
    "good": lambda s: s.loss,
    "integer": lambda s: 7,
    "flag": lambda s: (s.labels_N >= 0).all(),
    "numpy": lambda s: np.float64(0.5),
}
NOT_FINITE = {
    "nan": (lambda s: s.loss * jnp.nan, "not a number (NaN)"),
    "inf": (lambda s: jnp.inf, "the value is infinite"),
    "overflow": (lambda s: -(10.0**300), "too large for float32"),
}


def small_config(**measure):
    trial = {"batch_size": 16, "data": {"name": "digits", "num_train": 32},
             "model": {"name": "mlp", "hidden": (4,)}, "stop": {"max_epochs": 1}}  # fmt: skip
    engine = {"devices": 1, "lanes": 2}
    return {"trial": trial, "sweep": {"seed": (0, 1)}, "engine": engine, "measure": measure}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "w"
    assert sweep.run(sweep.Sweep(small_config()), path, ["test"]) == 0
    return path


@pytest.fixture
def add(monkeypatch, workdir):
    """Adds a family of measures for one test, which begins with nothing measured."""
    (workdir / "measures.csv").unlink(missing_ok=True)
    return lambda own, family="mine": monkeypatch.setitem(measures.FAMILIES, family, own)


def rows(workdir):
    with open(workdir / "measures.csv", newline="") as file:
        return {(r["trial_id"], r["measure"]): r for r in csv.DictReader(file)}


def measured(workdir, *names):
    work = measuring.Measuring(workdir, names)
    work.run()
    return work


def test_each_fails_alone_and_says_why(workdir, add):
    add(
        {name: measure for name, (measure, _) in (WRONG | NOT_FINITE).items()}
        | RIGHT
        | {"at_run_time": at_run_time}
    )
    work = measured(workdir, "mine", "margin_min")
    said = {name: text for name, (_, text) in WRONG.items()}
    said["at_run_time"] = "RuntimeError: only when it is run"
    assert set(work.failed) == set(said)
    found = rows(workdir)
    assert len(found) == 2 * (len(said) + len(RIGHT) + len(NOT_FINITE) + 1)
    for (_, name), row in found.items():
        if name in said:
            assert (row["status"], row["value"]) == ("failed", "")
            assert row["reason"].startswith(f"{name} ") and said[name] in row["reason"]
            assert WANTED in row["reason"] and "\n" not in row["reason"]
        elif name in NOT_FINITE:
            assert row["status"] == "not_finite" and NOT_FINITE[name][1] in row["reason"]
        else:
            assert (row["status"], row["reason"]) == ("ok", "")
    values = {name: float(row["value"]) for (_, name), row in found.items() if row["value"]}
    assert (values["integer"], values["flag"], values["numpy"]) == (7, 1, 0.5)
    assert set(records.load_measures(workdir)) == {*RIGHT, "margin_min"}


def test_what_failed_is_computed_again_and_all_else_is_not(workdir, add):
    add({"mine": no_such_attribute, "good": RIGHT["good"]})
    measured(workdir, "mine")
    add({"mine": lambda s: s.loss + 1, "good": no_such_attribute})
    work = measured(workdir, "mine")
    # The other one has a number from before, whatever has become of it.
    assert not work.failed and work.seconds["mine"][1] == 2
    assert {row["status"] for row in rows(workdir).values()} == {"ok"}


def test_the_place_is_that_in_the_users_file(add, workdir):
    add({"mine": no_such_attribute})
    (error,) = measured(workdir, "mine").failed.values()
    line = no_such_attribute.__code__.co_firstlineno + 1
    assert f"in line {line} of test_own_measures.py with AttributeError" in str(error)
    assert isinstance(error.__cause__, AttributeError)


def test_seconds_of_each_pass_over_what_is_wrong(workdir, add):
    add({"array": WRONG["array"][0], "at_run_time": at_run_time, "good": RIGHT["good"]})
    work = measuring.Measuring(workdir, ("mine",))
    assert [name for name, *_ in work.seconds_each()] == ["good"]
    assert set(work.failed) == {"array", "at_run_time"}


def test_in_python_it_is_an_error_that_has_the_users_own_as_its_cause(workdir, add):
    add({"mine": no_such_attribute, "good": RIGHT["good"]})
    loaded = sweep.Sweep(small_config())
    network = load_trial(workdir, loaded.trials[0].trial_id)
    arguments = network.model, network.variables, np.ones((3, 8, 8, 1), "f"), [0, 1, 2]
    with pytest.raises(UserError, match="mine fails in line") as error:
        measures.compute(*arguments, names=("mine",))
    assert isinstance(error.value.__cause__.__cause__, AttributeError)
    assert set(measures.compute(*arguments, names=("good",))) == {"good"}


# --- the command ----------------------------------------------------------------------------------

OWN = """
from rethink_jax import measures
from rethink_jax.schema import UserError

def refusing(subject):
    raise UserError("not of this network")

measures.FAMILIES["mine"] = {"refusing": refusing, "wrong": lambda s: s.logits_NxY,
                             "good": lambda s: s.loss}
"""


@pytest.mark.parametrize(
    ("names", "code", "statuses"),
    [
        ("mine", cli.EXIT_FAILED, {"refused", "failed", "ok"}),
        ("refusing,good", cli.EXIT_OK, {"refused", "ok"}),
    ],
)
def test_exit_codes(names, code, statuses, workdir, tmp_path, add):
    add({})
    (tmp_path / "mine.py").write_text(OWN)
    outcome = commands.run(
        "measure", f"--own={tmp_path}/mine.py", f"--workdir={workdir}", f"--measures={names}"
    )
    assert outcome.code == code
    assert {row["status"] for row in rows(workdir).values()} == statuses
    lines = outcome.err.splitlines()
    assert len(lines) == (code == cli.EXIT_FAILED)
    assert all(line.startswith("failed: wrong gives an array float32[32, 10]") for line in lines)


@pytest.mark.parametrize(
    ("families", "words"),
    [
        ({"mine": {"margin_min": abs}}, ("'margin_min'", "'margins'", "'mine'", "another name")),
        ({"mine": {"margins": abs}}, ("'margins'", "'mine'", "name of a family")),
        ({"mine": {"paper": abs}}, ("'paper'", "'mine'", "name of a family or a group")),
        ({"all": {"own": abs}}, ("'all'", "name of a group")),
        ({"mine": abs}, ("FAMILIES['mine']", "builtin_function", "{'my_measure': my_measure}")),
        ({"mine": [abs]}, ("FAMILIES['mine']", "list", "dict")),
        ({"mine": {3: abs}}, ("FAMILIES['mine']", "by their names")),
    ],
)
def test_families_that_are_wrong_are_refused_by_every_command(families, words, add, tmp_path):
    for family, own in families.items():
        add(own, family)
    (tmp_path / "mine.py").write_text("")
    for command in ("measure", "report"):
        outcome = commands.run(command, f"--own={tmp_path}/mine.py", f"--workdir={tmp_path}")
        assert outcome.code == cli.EXIT_USER, outcome.err
        (line,) = outcome.err.splitlines()
        assert all(word in line for word in words), line


def test_a_family_may_have_the_name_of_its_measure(add):
    add({"mine": abs})
    assert measures.select(("mine",)) == {"mine": ("mine",)}


# --- along training -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("by_family", [True, False])
def test_along_training_it_is_a_mistake_of_the_config(name, by_family, add):
    measure, said = WRONG[name]
    if name == "too_large":
        said = "too_large"
    add({name: measure, "good": RIGHT["good"]})
    names = ("mine",) if by_family else (name,)
    with pytest.raises(UserError, match=rf"^measure.names: {name} ") as error:
        sweep.Sweep(small_config(every_epochs=1, names=names))
    assert said in str(error.value) and "--config.measure.names" in str(error.value)
    assert "\n" not in str(error.value)


def test_along_training_nothing_is_written(add, tmp_path):
    add({})
    (tmp_path / "mine.py").write_text(OWN)
    outcome = commands.run(
        "sweep", "--config=configs/quickstart.py:quick", f"--own={tmp_path}/mine.py",
        f"--workdir={tmp_path}/w", "--config.measure.every_epochs=1", "--config.measure.names=mine",
    )  # fmt: skip
    assert outcome.code == cli.EXIT_USER and outcome.out == ""
    assert outcome.err.startswith("error: measure.names: wrong gives an array")
    assert len(outcome.err.splitlines()) == 1
    assert not (tmp_path / "w").exists()


def test_along_training_every_kind_of_number_is_one(add, tmp_path):
    finite = {name: measure for name, (measure, _) in NOT_FINITE.items()}
    add(RIGHT | finite)
    config = small_config(every_epochs=1, names=("mine",))
    assert sweep.run(sweep.Sweep(config), tmp_path, ["test"]) == 0
    found = records.load_measures_along(tmp_path)
    assert set(found["measure"]) == {*RIGHT, *finite} and len(found) == 2 * len(RIGHT | finite)


# --- what a workdir names and is not there --------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "field", "like"),
    [
        (models.MODELS, "model", "mlp"),
        (corruption.PIXELS, "pixels", "shuffled"),
        (sources.DATASETS, "data", "digits"),
    ],
)
def test_what_is_not_known_is_added_by_own(known, field, like, tmp_path, monkeypatch):
    monkeypatch.setitem(known, "mine", known[like])
    config = small_config()
    config["sweep"] = {}
    if field == "pixels":
        config["trial"]["corruption"] = {"pixels": "mine"}
    else:
        config["trial"][field]["name"] = "mine"
    assert sweep.run(sweep.Sweep(config), tmp_path, ["test"]) == 0
    monkeypatch.delitem(known, "mine")
    outcome = commands.run("measure", f"--workdir={tmp_path}")
    assert outcome.code == cli.EXIT_USER
    (line,) = outcome.err.splitlines()
    assert "'mine'" in line and "--own=FILE" in line
