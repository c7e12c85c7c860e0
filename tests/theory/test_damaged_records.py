"""Whatever is damaged in a record, a report is made of the rest or one line names the file."""

import copy
import json
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1]))
import commands

from rethink_jax.report import figures
from rethink_jax.schema import UserError
from rethink_jax.theory import EXPERIMENTS, cases

fixed = settings(
    derandomize=True, deadline=None, suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],  # A smaller example would say no more.
)  # fmt: skip
# The smallest case of each experiment.
SMALL = {
    "memorizer": {"num_train": 20},
    "kernel": {"num_train": 40, "bandwidth": 0.5},
    "minimum_norm": {"num_train": 10, "batch_size": 5, "starts": 1, "max_steps": 50},
    "overtraining": {
        "dimensions": 5, "alphas": (0.5, 1.0), "steps": 20, "seeds": 2, "num_train": 20,
        "ratios": (0.5, 1.0), "image_steps": 10, "image_seeds": 2,
    },
}  # fmt: skip
EVIL = "<b>\x1b[2J\u202e\ud800\n$\\frac{$ \N{SNOWMAN}"
HUGE = 10**400
BAD = (
    None, True, -1, 0, 1.5, HUGE, 1e308, -1e308, float("nan"), float("-inf"), "x", "", EVIL,
    "x" * 10**5, [], [None], [1.0], ["x"], [[]], {}, {"x": 1}, {EVIL: EVIL}, {"mean": {}},
)  # fmt: skip


class Whole(dict):
    def __repr__(self):  # Of what hypothesis prints of a failure, the largest part.
        return "whole"


@pytest.fixture(scope="module", autouse=True)
def small_figures():
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(figures.STYLE, "figure.dpi", 20)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """{experiment: (path of its record, the record)}, each in a workdir of its own."""
    found = Whole()
    for experiment, trial in SMALL.items():
        workdir = tmp_path_factory.mktemp(experiment)
        list(cases.run({"experiment": experiment, "trial": trial}, workdir, ["theory"]))
        (path,) = (workdir / "theory").glob("*.json")
        found[experiment] = path, json.loads(path.read_text())
    return found


def places(value, at=()):
    """The path to each dict, list and leaf of a record; of a list, to the first and the last."""
    yield at
    if isinstance(value, dict):
        for name in value:
            yield from places(value[name], (*at, name))
    elif isinstance(value, list) and value:
        for number in {0, len(value) - 1}:
            yield from places(value[number], (*at, number))


def damage(record, at, change):
    """A copy in which `change` was done at a place, given what has it and the name or index."""
    record = copy.deepcopy(record)
    inner = record
    for name in at[:-1]:
        inner = inner[name]
    change(inner, at[-1])
    return record


def put(value):
    return lambda inner, name: inner.__setitem__(name, value)


def remove(inner, name):
    del inner[name]


def repeat(inner, name):
    inner.insert(name, inner[name]) if isinstance(inner, list) else inner.update(x=inner[name])


CHANGES = {"remove": remove, "repeat": repeat} | {f"{v!r:.20}": put(v) for v in BAD}


def test_every_experiment_is_here_and_keeps_its_promise(whole):
    assert set(whole) == set(EXPERIMENTS)
    for experiment, (path, _) in whole.items():
        (record,) = cases.load(path.parents[1])
        assert record["experiment"] == experiment and record["name"] == path.stem


def drawn(data, whole, experiment):
    """The path of a record in which one place was damaged, and the record."""
    path, record = whole[experiment]
    part = data.draw(st.sampled_from(sorted(record)))
    inside = [(part, *at) for at in places(record[part])]
    change = CHANGES[data.draw(st.sampled_from(sorted(CHANGES)))]
    changed = damage(record, data.draw(st.sampled_from(inside)), change)
    path.write_text(json.dumps(changed))
    return path, changed


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@settings(fixed, max_examples=150)
@given(st.data())
def test_one_damage_is_in_the_table_or_named(experiment, whole, data):
    path, _ = drawn(data, whole, experiment)
    try:
        found = cases.load(path.parents[1])
    except UserError as error:
        assert str(error).startswith(f"{path} is damaged (")
    else:
        for record in found:
            assert not set(cases.table(record)) & set("\x1b\ud800\u202e")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@settings(fixed, max_examples=15)
@given(st.data())
def test_one_damage_is_in_the_report_or_named(experiment, whole, data):
    path, changed = drawn(data, whole, experiment)
    outcome = commands.run("report", f"--workdir={path.parents[1]}")
    if outcome.code == 0:
        assert not set(outcome.out) & set("\x1b\ud800\u202e")
        return
    assert outcome.code == 2 and len(outcome.err.splitlines()) == 1, outcome.err
    if changed.get("format") == cases.FORMAT:
        assert f"error: {path} is damaged (" in outcome.err
        assert outcome.err.endswith("; delete it and run launch.theory again, which repeats this "
                                    "one case\n")  # fmt: skip
