"""What a sweep does when memory runs out: fewer lanes, every trial once, the same numbers."""

import csv
import re
import weakref
from collections import Counter
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rethink_jax import checkpoint, engine, lanes, memory, records, runner, sweep
from rethink_jax.trials import group

MOST = 2  # Lanes that there is memory for.


@pytest.fixture
def config(small_trial):
    """Six trials of one group."""
    return {
        "trial": small_trial(),
        "sweep": {"seed": (0, 1), "corruption": {"label_prob": (0.0, 0.5, 1.0)}},
        "engine": {"devices": 1, "lanes": 4, "epochs_per_dispatch": 1},
    }


def run(config, workdir):
    return sweep.run(sweep.Sweep(config), workdir, ["test"])


def layouts(workdir):
    """What was written of the groups of the last command."""
    found = records.Workdir(workdir).header()["runs"][-1]["groups"]
    return {group_id: facts["lanes"] for group_id, facts in found.items()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return tmp_path_factory.mktemp("finished") / "workdir"


@pytest.fixture
def with_few_lanes(config, finished):
    """A workdir of the same trials, run with two lanes from the beginning."""
    if not finished.exists():
        assert run(config | {"engine": config["engine"] | {"lanes": MOST}}, finished) == 0
    return finished


def failed(workdir):
    """Why trials failed, and how many."""
    with open(workdir / "trials.csv", newline="") as file:
        return Counter(r["stop_reason"] for r in csv.DictReader(file) if r["status"] == "failed")


def out_of_memory():
    """Raises what jax raises: more is asked for than any machine has."""
    jnp.zeros(2**45).block_until_ready()


class Failing:
    """A program that runs out of memory, in place of its result, from some call on."""

    def __init__(self, program, good_calls):
        self._program, self._left = program, good_calls

    def __call__(self, *args):
        result = self._program(*args)  # It has consumed the state in any case.
        self._left -= 1
        return result if self._left >= 0 else self.fail(result)

    def fail(self, result):
        out_of_memory()

    def __getattr__(self, name):
        return getattr(self._program, name)


class Unreadable:
    def __array__(self, *args, **kwargs):
        out_of_memory()


class Unreported(Failing):
    """The call returns; only reading what it reports shows that it has failed."""

    def fail(self, result):
        return result[0], engine.Report(Unreadable(), Unreadable())


class Poisoned(Failing):
    """The call returns, while the device is busy; whatever uses its result fails."""

    def fail(self, result):
        return _poison(result, jnp.zeros(2**45))


@jax.jit
def _poison(tree, missing):
    return jax.tree.map(lambda a: a + missing[0].astype(a.dtype), tree)


@pytest.fixture
def scarce(monkeypatch):
    """Lets programs of more than so many lanes fail: one of them, or their compilation."""

    def make(where, good_calls=0, program=Failing, most=MOST):
        compiled = lanes.LanePrograms.compiled

        def scarcely_compiled(self, fn, *args):
            enough = self.layout.lanes <= most
            if where == "compile" and not enough:
                out_of_memory()
            made = compiled(self, fn, *args)
            return made if enough or fn.__name__ != where else program(made, good_calls)

        monkeypatch.setattr(lanes.LanePrograms, "compiled", scarcely_compiled)

    return make


@pytest.fixture
def written(monkeypatch):
    """The trials whose results were written, in order."""
    seen, original = [], records.Workdir.write_result

    def write_result(self, trial_id, result):
        seen.append(trial_id)
        original(self, trial_id, result)

    monkeypatch.setattr(records.Workdir, "write_result", write_result)
    return seen


def assert_same_results(workdir, other, written):
    ours, theirs = records.Workdir(workdir).finished(), records.Workdir(other).finished()
    assert ours == theirs
    assert sorted(written) == sorted(ours), "each is written once"
    for trial_id in ours:
        networks = [checkpoint.load_trial(w, trial_id).variables for w in (workdir, other)]
        jax.tree.map(np.testing.assert_array_equal, *networks)
    with open(workdir / "trials.csv", newline="") as file:
        assert sorted(r["trial_id"] for r in csv.DictReader(file)) == sorted(ours)
    assert not list((workdir / "groups").iterdir())


# Of calls, some are good: an epoch is a dispatch, a trial has four, and the sixth is of the trials
# that came after. Three lanes then have no further trouble, since no more than two trials are left.
@pytest.mark.parametrize(
    ("failure", "lanes_at_the_end"),
    [
        (("compile",), 2),
        (("start", 1), 3),
        (("advance", 0), 2),
        (("advance", 6), 3),
        (("advance", 2, Unreported), 2),
        (("advance", 3, Poisoned), 2),
    ],
    ids=lambda value: " ".join(str(getattr(v, "__name__", v)) for v in np.atleast_1d(value)),
)
def test_fewer_lanes_give_the_same_results(
    config, with_few_lanes, tmp_path, scarce, written, capsys, failure, lanes_at_the_end
):
    scarce(*failure)
    assert run(config, tmp_path / "w") == 0
    said = capsys.readouterr().out
    for count in range(4, lanes_at_the_end, -1):
        # jax calls it RESOURCE_EXHAUSTED or, where other work waited for the result, INTERNAL.
        line = rf"out of memory with {count} lanes \(.*: Out of memory .*goes on with {count - 1}\n"
        assert re.search(line, said)
    assert said.count("out of memory") == 4 - lanes_at_the_end
    assert_same_results(tmp_path / "w", with_few_lanes, written)
    assert list(layouts(tmp_path / "w").values()) == [lanes_at_the_end]


def test_checkpoint_is_where_it_goes_on(
    config, with_few_lanes, tmp_path, scarce, written, monkeypatch
):
    """Trials that find a lane stay at their epoch: first three of four, then two of three."""
    begun, begin, submit = [], engine.GroupRun.begin, runner.Runner._submit

    def at_once(self, *args):
        """No dispatch overtakes the writer: the checkpoint is then of the last epoch."""
        write = submit(self, *args)
        futures.wait([write])
        return write

    def noting(self, *args):
        begin(self, *args)
        begun.append(sorted(self.epochs_of.values()))

    monkeypatch.setattr(engine.GroupRun, "begin", noting)
    monkeypatch.setattr(runner.Runner, "_submit", at_once)
    scarce("advance", good_calls=3)
    assert run(config | {"checkpoint": {"every_seconds": 0.0}}, tmp_path / "w") == 0
    # The fourth of the first ones waits for a lane, and goes on at 3, too: then it has done 4.
    assert begun == [[0, 0, 0, 0], [3, 3, 3], [1, 4]]
    assert_same_results(tmp_path / "w", with_few_lanes, written)


def test_a_finished_network_that_cannot_be_read_is_trained_again(
    config, with_few_lanes, tmp_path, written, monkeypatch
):
    """The writer's thread meets the error; what others of the same dispatch wrote stays."""
    write, calls = runner.Runner._write, []

    def failing(self, *args):
        calls.append(args)
        if len(calls) == 2:
            out_of_memory()
        write(self, *args)

    monkeypatch.setattr(runner.Runner, "_write", failing)
    assert run(config, tmp_path / "w") == 0
    assert_same_results(tmp_path / "w", with_few_lanes, written)
    assert list(layouts(tmp_path / "w").values()) == [3]


def test_arrays_of_what_failed_are_gone_before_the_next_attempt(
    config, tmp_path, scarce, monkeypatch
):
    """Else fewer lanes would find no more memory than the many had."""
    runs, still_there, begin = [], [], engine.GroupRun.begin

    def noting(self, *args):
        still_there.append([r() for r in runs if r() is not None])
        runs.append(weakref.ref(self))
        begin(self, *args)

    monkeypatch.setattr(engine.GroupRun, "begin", noting)
    scarce("advance", good_calls=4)
    assert run(config, tmp_path / "w") == 0
    assert still_there == [[], [], []]


def test_other_groups_are_run_before_the_command_fails(config, tmp_path, scarce, monkeypatch):
    """One of two groups fails down to one lane; the other one is trained and recorded."""
    config["sweep"] = {"model": {"hidden": ((12,), (8,))}, "seed": (0, 1)}
    config["engine"]["pad_widths"] = "off"
    failing, works = (g.group_id for g in group(sweep.Sweep(config).trials))
    attempt = runner.Runner._attempt

    def failing_attempt(self, some, count):
        with monkeypatch.context() as patch:
            if some.group_id == failing:
                patch.setattr(lanes.LanePrograms, "compiled", lambda *_: out_of_memory())
            attempt(self, some, count)

    monkeypatch.setattr(runner.Runner, "_attempt", failing_attempt)
    assert run(config, tmp_path / "w") == 3
    (reason,) = failed(tmp_path / "w")
    assert reason.startswith("out of memory with one lane on each of 1 device")
    assert "\n" not in reason
    done = records.Workdir(tmp_path / "w").finished().values()
    assert [r["group_id"] for r in done] == [works] * 2
    assert layouts(tmp_path / "w") == {failing: 1, works: 2}


def test_a_group_that_cannot_fit_does_not_stop_the_others(config, tmp_path, monkeypatch):
    config["sweep"] = {"model": {"hidden": ((12,), (8,))}, "seed": (0, 1)}
    config["engine"]["pad_widths"] = "off"
    _, works = (g.group_id for g in group(sweep.Sweep(config).trials))

    def fit(self):
        if self.spec.fields["model.hidden"] == (12,):
            raise memory.OutOfMemory("one lane needs too much")

    monkeypatch.setattr(engine.GroupRun, "fit", fit)
    assert run(config, tmp_path / "w") == 3
    assert failed(tmp_path / "w") == {"one lane needs too much": 2}
    done = records.Workdir(tmp_path / "w").finished().values()
    assert [r["group_id"] for r in done] == [works] * 2


def test_other_errors_are_not_tried_again(config, tmp_path, monkeypatch):
    def broken(self):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(engine.GroupRun, "step", broken)
    assert run(config, tmp_path / "w") == 3
    assert failed(tmp_path / "w") == {"JaxRuntimeError: INTERNAL: something else": 6}


def test_fewer_lanes_by_the_plan_are_said_and_recorded(config, tmp_path, monkeypatch, capsys):
    config["engine"]["lanes"] = 0
    limit = [2**40]
    monkeypatch.setattr(memory, "limit_of", lambda devices: limit[0])
    one = sweep.Sweep(config)
    plan = one.group_run(one.groups[0], None).memory_plan()
    limit[0] = int(plan.bytes_at(3) / 0.9) + 1
    assert run(config, tmp_path / "w") == 0
    assert "4 lanes need 0 MiB of each device" in capsys.readouterr().out
    (facts,) = records.Workdir(tmp_path / "w").header()["runs"][-1]["groups"].values()
    assert facts == {"batching": "map", "devices": 1, "lanes": 3, "platform": "cpu"}
