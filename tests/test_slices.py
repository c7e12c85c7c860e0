"""Which trials a slice has, and what a user may write for it."""

import pytest

from rethink_jax import slices, trials
from rethink_jax.schema import UserError
from rethink_jax.slices import Slice

ARRAY = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "8"}
STEP = {"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "3"}


@pytest.mark.parametrize(
    ("text", "environ", "expected"),
    [
        ("0/1", {}, (0, 1)),
        ("3/4", {}, (3, 4)),
        (" 3 / 4 ", {}, (3, 4)),
        ("1/2", ARRAY, (1, 2)),
        ("auto", ARRAY, (6, 8)),
        ("auto", ARRAY | {"SLURM_ARRAY_TASK_STEP": "2"}, (3, 8)),
        ("auto", STEP, (2, 3)),
        ("auto", ARRAY | STEP, (6 * 3 + 2, 24)),
        ("auto", {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}, (0, 2)),
        ("auto", {"TPU_WORKER_ID": "1", "TPU_WORKER_HOSTNAMES": "a,b,c"}, (1, 3)),
        # The job of a batch script that starts one process outside of srun.
        ("auto", ARRAY | {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, (6, 8)),
    ],
)
def test_parse(text, environ, expected):
    assert slices.parse(text, environ) == expected


@pytest.mark.parametrize(
    ("text", "environ", "said"),
    [
        ("4/4", {}, "'4/4'; it needs i/n with 0 <= i < n"),
        ("1/0", {}, "'1/0'"),
        ("-1/4", {}, "'-1/4'"),
        ("1", {}, "'1'"),
        ("1/2/3", {}, "'1/2/3'"),
        ("a/b", {}, "'a/b'"),
        ("1.0/2", {}, "'1.0/2'"),
        ("", {}, "''"),
        ("auto", {}, "neither a SLURM array"),
        ("auto", {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, "neither a SLURM array"),
        ("auto", {"SLURM_ARRAY_TASK_ID": "1"}, r"\$SLURM_ARRAY_TASK_MIN, which is None"),
        ("auto", ARRAY | {"SLURM_ARRAY_TASK_ID": "9"}, "task 8 of an array of 8"),
        ("auto", ARRAY | {"SLURM_ARRAY_TASK_STEP": "4"}, "none of 1, 5, "),
        ("auto", STEP | {"SLURM_PROCID": "x"}, r"\$SLURM_PROCID, which is 'x'"),
    ],
)
def test_parse_errors(text, environ, said):
    with pytest.raises(UserError, match=said):
        slices.parse(text, environ)


@pytest.fixture(scope="module")
def groups():
    """Groups of 7, 1, 1, 2 and 5 trials."""
    found = []
    for width, seeds in enumerate((7, 1, 1, 2, 5), 1):
        nested = {"batch_size": 8, "model": {"hidden": (width,)}, "data": {"name": "digits"}}
        config = {"trial": nested, "sweep": {"seed": tuple(range(seeds))}}
        found += trials.group(trials.expand(config))
    return found


def ids(some):
    return [t.trial_id for group in some for t in group.trials]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 16, 20])
def test_slices_are_a_partition_and_balanced(groups, count):
    parts = [slices.own(groups, Slice(i, count)) for i in range(count)]
    assert sorted(i for part in parts for i in ids(part)) == sorted(ids(groups))
    sizes = [len(ids(part)) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    for group in groups:
        own = [len(g.trials) for part in parts for g in part if g.group_id == group.group_id]
        assert max(own) - min([*own, 0] if len(own) < count else own) <= 1
    assert all(part for part in parts[: len(ids(groups))])
    assert not any(parts[len(ids(groups)) :])


def test_a_slice_keeps_the_order(groups):
    order = {trial_id: place for place, trial_id in enumerate(ids(groups))}
    for i in range(3):
        places = [order[trial_id] for trial_id in ids(slices.own(groups, Slice(i, 3)))]
        assert places == sorted(places)


def test_names():
    assert (str(Slice(3, 4)), Slice(3, 4).name) == ("3/4", "3of4")
    assert slices.WHOLE.checkpoints("g") == "g"
    assert Slice(3, 4).checkpoints("g") == "g.3of4"
    for part in slices.WHOLE, Slice(3, 4):
        assert Slice.of_checkpoints(part.checkpoints("g"), "g") == part
    for other in ("g.backup", "g.1of", "g.copyofit", "ga", "ga.0of2", "h"):
        assert Slice.of_checkpoints(other, "g") is None
