"""What holds for every sweep and for any bytes in a file: axes, expand, group, and the readers."""

import gzip
import itertools
import math
import tempfile
from pathlib import Path

import fuzz_readers
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rethink_jax import axes, models, trials
from rethink_jax.data import pickled, readers
from rethink_jax.schema import UserError, flatten, nest
from rethink_jax.trials import FIELDS

# The same examples in every run; a machine that others use, too, has no time limit for one.
fixed = settings(
    derandomize=True, deadline=None, max_examples=60, suppress_health_check=list(HealthCheck)
)

# --- values ---------------------------------------------------------------------------------------

# Fields that are allowed in any combination, with some values each.
AXES = {
    "seed": st.integers(0, 2**31 - 1),
    "batch_size": st.integers(1, 512),
    "corruption.label_prob": st.floats(0, 1, width=32),
    "corruption.pixels": st.sampled_from(sorted(FIELDS["corruption.pixels"].choices)),
    "optimizer.learning_rate": st.floats(0, 10, width=32),
    "regularizer.label_smoothing": st.floats(0, 1, width=32),
    "preprocess.random_flip": st.booleans(),
    "stop.max_epochs": st.integers(1, 1000),
    "model.hidden": st.lists(st.integers(1, 64), max_size=3).map(tuple),
}


@st.composite
def sweeps(draw, names=tuple(AXES)):
    """{field: different values}, for up to 3 of the fields."""
    chosen = draw(st.lists(st.sampled_from(names), unique=True, max_size=3)) if names else []
    return {
        name: tuple(draw(st.lists(AXES[name], min_size=1, max_size=3, unique=True)))
        for name in chosen
    }


def config_of(axes_by_name, **more):
    return {"trial": {}, "sweep": nest(axes_by_name) | more}


@st.composite
def zipped_sweeps(draw):
    """A config with axes, axes that advance together, and how many trials it has."""
    plain = draw(sweeps())
    rest = sorted(set(AXES) - set(plain))
    together = draw(st.lists(st.sampled_from(rest), unique=True, min_size=1, max_size=2))
    count = draw(st.integers(1, 3))
    columns = {
        n: tuple(draw(st.lists(AXES[n], min_size=count, max_size=count, unique=True)))
        for n in together
        if n != "preprocess.random_flip"
    }
    product = math.prod(map(len, plain.values())) * (count if columns else 1)
    return config_of(plain, zipped={"a": nest(columns)}), product


# --- expand and group -----------------------------------------------------------------------------


@fixed
@given(sweeps())
def test_trials_are_the_product_of_the_axes_without_duplicates(sweep):
    found = trials.expand(config_of(sweep))
    assert len(found) == math.prod(map(len, sweep.values()))
    assert len({t.trial_id for t in found}) == len(found)
    combinations = {tuple(t[name] for name in sweep) for t in found}
    assert combinations == set(itertools.product(*sweep.values()))


@fixed
@given(zipped_sweeps())
def test_axes_that_advance_together_count_once(made):
    config, count = made
    assert len(trials.expand(config)) == count


@fixed
@given(sweeps(("seed",)), sweeps(("batch_size",)), sweeps(("optimizer.learning_rate",)))
def test_a_union_adds_and_outer_axes_multiply(one, other, outer):
    union = {"a": nest({**one, "stop.max_epochs": (3,)}), "b": nest({**other, "data.seed": (7,)})}
    found = trials.expand(config_of(outer, union=union))
    sizes = [math.prod(map(len, part.values())) for part in (one, other, outer)]
    assert len(found) == (sizes[0] + sizes[1]) * sizes[2]


@fixed
@given(sweeps(), st.randoms(use_true_random=False))
def test_order_of_names_changes_neither_trials_nor_ids_nor_their_order(sweep, random):
    names = list(sweep)
    random.shuffle(names)
    one, other = (config_of({n: sweep[n] for n in order}) for order in (sweep, names))
    found = trials.expand(one)
    assert found == trials.expand(other)
    assert found == trials.expand(one)
    for trial in found:
        shuffled = list(trial.fields)
        random.shuffle(shuffled)
        assert trials.resolve(nest(dict(shuffled))).trial_id == trial.trial_id
        assert trials.digest(shuffled) == trial.trial_id


@fixed
@given(sweeps())
def test_each_trial_is_in_one_group_whose_static_fields_are_its_own(sweep):
    found = trials.expand(config_of(sweep))
    groups = trials.group(found)
    assert sorted(t.trial_id for g in groups for t in g.trials) == sorted(t.trial_id for t in found)
    assert len({g.group_id for g in groups}) == len(groups)
    for group in groups:
        assert {t.static for t in group.trials} == {tuple(sorted(group.static.items()))}
    assert len({g.trials[0].static for g in groups}) == len(groups)
    assert trials.group(found) == groups


@fixed
@given(sweeps())
def test_resolving_what_was_resolved_changes_nothing(sweep):
    for trial in trials.expand(config_of(sweep)):
        nested = nest(dict(trial.fields))
        assert flatten(nested) == dict(trial.fields)
        assert trials.resolve(nested) == trial


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=5)
    | st.sampled_from(sorted(FIELDS)) | st.sampled_from(sorted(models.MODELS)),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner)
    | st.dictionaries(st.sampled_from(["seed", "a", "zipped", "union", "data", "model", "name"]),
                      inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(fixed, max_examples=300)
@given(ANYTHING, ANYTHING)
def test_any_config_gives_trials_or_one_line(trial, sweep):
    try:
        found = trials.expand({"trial": trial, "sweep": sweep})
    except UserError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert found


@settings(fixed, max_examples=300)
@given(st.sampled_from(sorted(FIELDS)), ANYTHING)
def test_any_value_of_a_field_is_kept_or_refused(name, value):
    field = FIELDS[name]
    try:
        kept = field.check(name, value)
    except UserError as error:
        assert name in str(error) and "\n" not in str(error)
    else:
        assert kept is None or type(kept) is field.kind
        assert field.check(name, kept) == kept


@fixed
@given(sweeps(), st.integers(1, 5))
def test_axes_do_not_depend_on_empty_ones(sweep, empties):
    empty = {name: () for name in sorted(set(AXES) - set(sweep))[:empties]}
    some, more = (list(axes.assignments(nest(s), AXES)) for s in (sweep, {**sweep, **empty}))
    assert some == more


# --- readers --------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def little_memory(monkeypatch):
    monkeypatch.setattr(readers, "MOST_BYTES", 2**20)


PLACES = {
    "idx": ("mnist", "mnist/train-images-idx3-ubyte", bytes),
    "idx.gz": ("mnist", "mnist/train-images-idx3-ubyte.gz", gzip.compress),
    "not gz": ("mnist", "mnist/train-images-idx3-ubyte.gz", bytes),
    "binary": ("cifar10", "cifar-10-batches-bin/data_batch_1.bin", bytes),
    "python": ("cifar10", "cifar-10-batches-py/data_batch_1", bytes),
    "tar": ("cifar10", "cifar-10-python.tar.gz", gzip.compress),
    "image": ("folder:set", "set/train/a/0.png", bytes),
}
BYTES = st.binary(max_size=600) | st.sampled_from([bytes((0, 0, 8, 3)), b"\x80\x02}", b"\x89PNG"]
                                                  ).flatmap(lambda head: st.binary(max_size=100)
                                                            .map(head.__add__))  # fmt: skip


@pytest.fixture(scope="module")
def whole():
    found = {}
    for own in fuzz_readers.whole_layouts().values():
        for path in own.files:
            found[str(path)] = own
    return found


@pytest.mark.parametrize("place", PLACES)
@settings(fixed, max_examples=40)
@given(data=BYTES)
def test_any_bytes_are_a_data_set_or_one_line(place, data, whole):
    dataset, path, pack = PLACES[place]
    with tempfile.TemporaryDirectory() as folder:
        for name, content in whole[path].files.items():
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / name).write_bytes(content)
        (Path(folder) / path).write_bytes(pack(data))
        assert fuzz_readers.read(dataset, Path(folder))


@settings(fixed, max_examples=400)
@given(st.binary(max_size=200).map(b"\x80\x02".__add__) | st.binary(max_size=50))
def test_any_bytes_are_a_pickle_of_plain_values_or_none(data):
    try:
        found = pickled.load(data)
    except ValueError:
        return
    assert not callable(found)


def test_damaged_files_of_every_layout_are_read_or_refused():
    """Some cases of the fuzz run."""
    failures = []
    counts = fuzz_readers.run_cases(range(160), failures.append)
    assert not failures, failures[0]
    assert all(own["refused"] for own in counts.values())
    assert sum(own["read"] for own in counts.values())
