"""The command end to end: everything planned ends up in the workdir exactly once."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import rethink_jax
from rethink_jax import checkpoint, engine, records, runner, sweep, train
from rethink_jax.schema import UserError

REPO = Path(__file__).parents[1]
LEVELS = (0.0, 0.5, 1.0)


@pytest.fixture
def config(small_trial):
    """Six trials of one group and one of another, a few hundred steps in all."""
    return {
        "trial": small_trial(),
        "sweep": {
            "union": {
                "levels": {"seed": (0, 1), "corruption": {"label_prob": LEVELS}},
                "wider": {"model": {"hidden": ((12,),)}},
            }
        },
        "engine": {"devices": 1, "lanes": 2, "epochs_per_dispatch": 1, "pad_widths": "off"},
    }


def run(config, workdir, **kwargs):
    return sweep.run(sweep.Sweep(config), Path(workdir), ["test"], **kwargs)


def rows(workdir):
    with open(Path(workdir) / "trials.csv", newline="") as file:
        return list(csv.DictReader(file))


def assert_same_results(workdir, other, failed=0):
    """Equal results, curves and networks, bit by bit; every trial exactly once.

    failed: how many more rows there are in the first.
    """
    ours, theirs = records.Workdir(workdir).finished(), records.Workdir(other).finished()
    assert ours == theirs
    for trial_id in ours:
        curves = [
            (Path(w) / "trials" / trial_id / "curve.csv").read_text() for w in (workdir, other)
        ]
        assert curves[0] == curves[1]
        networks = [checkpoint.load_trial(w, trial_id).variables for w in (workdir, other)]
        for a, b in zip(*map(_leaves, networks), strict=True):
            np.testing.assert_array_equal(a, b)
    ids = [r["trial_id"] for r in rows(workdir)]
    assert len(ids) == len(set(ids)) == len(ours) + failed


def _leaves(tree):
    return (
        [leaf for name in sorted(tree) for leaf in _leaves(tree[name])]
        if isinstance(tree, dict)
        else [tree]
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return tmp_path_factory.mktemp("finished") / "workdir"


@pytest.fixture
def whole(config, finished):
    """A workdir of an uninterrupted sweep."""
    if not finished.exists():
        assert run(config, finished) == 0
    return finished


def test_workdir_holds_everything(config, whole):
    table = rows(whole)
    assert len(table) == 7
    assert {r["status"] for r in table} <= {"fitted", "finished"}
    for row in table:
        result = json.loads((whole / "trials" / row["trial_id"] / "result.json").read_text())
        assert result["epochs"] == int(row["epochs"]) == 4
        assert float(row["final_train_loss"]) == result["final"]["train_loss"]
        nominal, realised = float(row["corruption.label_prob"]), float(row["label_noise"])
        assert (realised == 0) if nominal == 0 else (0 < realised <= nominal + 0.2)
    head = records.Workdir(whole).header()
    assert head["config"]["trial"]["batch_size"] == config["trial"]["batch_size"]
    assert len(head["config_sha256"]) == 64
    (facts,) = head["runs"]
    assert facts["command"] == ["test"]
    assert facts["interrupted"] is False
    assert {"git", "versions", "devices", "xla_flags", "seconds", "started"} <= set(facts)
    assert head["data"]["digits"]["train"] == 1442
    assert not list((whole / "groups").iterdir()), "finished groups leave no checkpoints"
    assert not list(whole.rglob("*.part"))


@pytest.mark.parametrize("what", ["checkpoint", "table"])
def test_devices_do_not_wait_for_the_disk(what, config, tmp_path, monkeypatch):
    """While a checkpoint or trials.csv is being written, the next dispatch is sent off."""
    config["checkpoint"] = {"every_seconds": 0.0}
    monkeypatch.setattr(runner, "_TABLE_SECONDS", 0.0)
    stepping, stepped, waited = threading.Event(), threading.Event(), []
    step = engine.GroupRun.step
    monkeypatch.setattr(
        engine.GroupRun, "step", lambda run: (stepping.set(), step(run), stepped.set())
    )

    def slowly(write):
        def call(self, *args):
            if stepping.is_set() and not waited:  # The first one once the lanes are under way.
                stepped.clear()
                waited.append(stepped.wait(20))
            return write(self, *args)

        return call

    owner, name = {
        "checkpoint": (checkpoint.GroupCheckpoint, "save"),
        "table": (records.TableView, "write"),
    }[what]
    monkeypatch.setattr(owner, name, slowly(getattr(owner, name)))
    assert run(config, tmp_path / "w") == 0
    assert waited == [True]


def test_load_results(whole):
    results = rethink_jax.load_results(whole)
    assert len(results.trials) == 7
    assert list(results.curves.columns) == ["trial_id", "epoch", *train.CURVE]
    assert len(results.curves) == 7 * 4
    last = results.curves.groupby("trial_id")["train_loss"].last()
    final = results.trials.set_index("trial_id")["final_train_loss"]
    np.testing.assert_array_equal(last[final.index], final)


def test_load_trial_gives_the_network_as_it_was_trained(config, whole):
    """Applied to the training images it has the accuracy of its row, against its own labels."""
    import jax.numpy as jnp

    from rethink_jax import inputs, trials
    from rethink_jax.data import preprocess, sources

    trial = next(t for t in trials.expand(config) if t["corruption.label_prob"] == 0.5)
    loaded = rethink_jax.load_trial(whole, trial.trial_id)
    dataset = inputs.trial_dataset(sources.digits(), dict(trial.static))
    labels, _ = inputs.trial_labels(trial, dataset)
    images = preprocess.whiten(jnp.asarray(dataset.train_images, jnp.float32) / 255)
    logits = loaded.model.apply(loaded.variables, images, False)[0]
    accuracy = (np.asarray(logits).argmax(-1) == labels).mean()
    assert accuracy == pytest.approx(loaded.result["final"]["train_accuracy"], abs=1e-6)
    first, last = _leaves(loaded.initial_variables), _leaves(loaded.variables)
    moved = np.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(first, last, strict=True)))
    # float32 sums of a few hundred squares
    assert moved == pytest.approx(loaded.result["final"]["distance_from_init"], rel=1e-5)
    assert moved > 0


def test_load_trial_errors(whole, tmp_path):
    with pytest.raises(UserError, match=r"no finished trial 'nope'.*trials\.csv"):
        rethink_jax.load_trial(whole, "nope")
    with pytest.raises(UserError, match="is not a workdir"):
        rethink_jax.load_results(tmp_path)


def test_same_command_again_does_nothing_and_says_so(config, whole, capsys):
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("result.json")}
    assert run(config, whole) == 0
    assert "all 7 trials" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("result.json")} == before
    assert len(records.Workdir(whole).header()["runs"]) == 1


def test_more_seeds_run_only_what_is_new(config, tmp_path, whole, capsys):
    assert run(config, tmp_path / "w") == 0
    config["sweep"]["union"]["levels"]["seed"] = (0, 1, 2)
    assert run(config, tmp_path / "w") == 0
    assert "7 done, 3 to run" in capsys.readouterr().out
    assert len(rows(tmp_path / "w")) == 10


def test_other_fixed_fields_are_refused_by_name(config, whole):
    config["trial"]["optimizer"]["learning_rate"] = 0.2
    config["trial"]["batch_size"] = 32
    before = (whole / "run.json").read_text()
    with pytest.raises(UserError) as error:
        run(config, whole)
    assert "batch_size: 16 there, 32 now" in str(error.value)
    assert "optimizer.learning_rate: 0.1 there, 0.2 now" in str(error.value)
    assert (whole / "run.json").read_text() == before


def test_settings_may_change_between_runs(config, tmp_path, whole):
    """Another engine, another cadence: the same workdir, the same results."""
    config["engine"] |= {"devices": 2, "lanes": 4, "epochs_per_dispatch": 2}
    config["checkpoint"] = {"every_seconds": 0.0}
    assert run(config, tmp_path / "w") == 0
    assert_same_results(tmp_path / "w", whole)


def test_evaluation_cadence_changes_no_result(config, tmp_path, whole):
    config["evaluate"] = {"every_epochs": 3}
    assert run(config, tmp_path / "w") == 0
    for trial_id, result in records.Workdir(whole).finished().items():
        other = records.Workdir(tmp_path / "w").finished()[trial_id]
        # The same numbers from another program: float32 rounding.
        assert other["final"] == pytest.approx(result["final"], rel=1e-4, abs=1e-6)
    test_losses = rethink_jax.load_results(tmp_path / "w").curves.groupby("epoch")["test_loss"]
    assert list(test_losses.count()) == [0, 0, 7, 7]


def test_keep_none_keeps_no_networks(config, tmp_path):
    config["sweep"] = {}
    config["checkpoint"] = {"keep": "none"}
    assert run(config, tmp_path / "w") == 0
    (row,) = rows(tmp_path / "w")
    with pytest.raises(UserError, match=r"kept no network.*checkpoint.keep=final"):
        rethink_jax.load_trial(tmp_path / "w", row["trial_id"])


def test_diverged_trial_is_recorded_and_the_rest_goes_on(config, tmp_path):
    config["sweep"] = {"optimizer": {"learning_rate": (0.1, 1e30)}}
    assert run(config, tmp_path / "w") == 0
    found = {r["optimizer.learning_rate"]: r for r in rows(tmp_path / "w")}
    assert (found["1e+30"]["status"], found["1e+30"]["stop_reason"]) == ("diverged", "non_finite")
    assert found["0.1"]["status"] == "finished"
    assert found["1e+30"]["final_train_loss"] == ""


def test_broken_checkpoint_falls_back(config, tmp_path, whole, monkeypatch):
    """A damaged newest checkpoint is passed over; with none readable, trials begin again."""
    interrupt_after(monkeypatch, 3)
    assert run(config, tmp_path / "w") == 75
    monkeypatch.undo()
    (group,) = (tmp_path / "w" / "groups").iterdir()
    damaged = [p for p in group.rglob("*") if p.is_file() and p.stat().st_size > 0]
    for path in damaged:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert run(config, tmp_path / "w") == 0
    assert_same_results(tmp_path / "w", whole)


def interrupt_after(monkeypatch, steps):
    """Sends this process SIGINT, as Ctrl-C does, after a number of dispatches."""
    from rethink_jax.engine import GroupRun

    original, count = GroupRun.step, [0]

    def step(self):
        count[0] += 1
        if count[0] == steps:
            os.kill(os.getpid(), signal.SIGINT)
        original(self)

    monkeypatch.setattr(GroupRun, "step", step)


@pytest.mark.parametrize("steps", [1, 4, 9, 14])
def test_interrupted_and_resumed_is_uninterrupted(
    config, tmp_path, whole, monkeypatch, capsys, steps
):
    interrupt_after(monkeypatch, steps)
    assert run(config, tmp_path / "w") == 75
    assert "the same command goes on from here" in capsys.readouterr().out
    monkeypatch.undo()
    assert run(config, tmp_path / "w") == 0
    assert_same_results(tmp_path / "w", whole)
    runs = records.Workdir(tmp_path / "w").header()["runs"]
    assert [r["interrupted"] for r in runs] == [True, False]


def test_resume_goes_on_where_the_checkpoint_was(config, tmp_path, monkeypatch, epochs_at_begin):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        assert run(config, tmp_path / "w") == 75
    assert run(config, tmp_path / "w") == 0
    first, resumed, _ = epochs_at_begin  # the last is the other group
    assert first == [0, 0]
    assert resumed == [3, 3]  # three dispatches of one epoch each


def test_damaged_newest_checkpoint_gives_way_to_the_one_before(
    config, tmp_path, whole, monkeypatch, epochs_at_begin
):
    config["checkpoint"] = {"every_seconds": 0.0}
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        assert run(config, tmp_path / "w") == 75
    (group,) = (tmp_path / "w" / "groups").iterdir()
    newest = max((p for p in group.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    assert len([p for p in group.iterdir() if p.name.isdigit()]) == 2
    for path in newest.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-3])
    assert run(config, tmp_path / "w") == 0
    assert epochs_at_begin[1][0] > 0
    assert_same_results(tmp_path / "w", whole)


CHILD = """
import json, sys
from pathlib import Path
from rethink_jax import sweep
sys.exit(sweep.run(sweep.Sweep(json.loads(sys.argv[1])), Path(sys.argv[2]), ["test"]))
"""


def test_kill_9_at_several_instants(config, tmp_path, whole):
    """Killed without warning while it trains, writes and checkpoints; then run to the end."""
    config["checkpoint"] = {"every_seconds": 0.0}
    as_json = json.loads(json.dumps(config))
    command = [sys.executable, "-c", CHILD, json.dumps(as_json), str(tmp_path / "w")]
    # The suite's own switches, so that the child computes the same bits as `whole`.
    env = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    killed = 0
    for results_before_kill in (0, 1, 3, 5):
        child = subprocess.Popen(command, cwd=REPO, env=env, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while child.poll() is None and time.monotonic() < deadline:
            done = len(list((tmp_path / "w").glob("trials/*/result.json")))
            begun = any((tmp_path / "w").glob("groups/*/*"))
            if done >= results_before_kill and begun:
                time.sleep(0.01 * results_before_kill)
                child.kill()
            time.sleep(0.005)
        killed += child.wait() == -signal.SIGKILL
        ids = [r["trial_id"] for r in rows(tmp_path / "w")]
        assert len(ids) == len(set(ids)) == 7
    assert killed >= 2
    subprocess.run(command, cwd=REPO, env=env, check=True, stdout=subprocess.DEVNULL)
    assert_same_results(tmp_path / "w", whole)


def test_plan_runs_nothing(config, whole, tmp_path):
    text = "\n".join(sweep.plan(sweep.Sweep(config), None))
    assert "7 trials in 2 groups, 0 done, 7 to run" in text
    assert "610 parameters each" in text  # 64*8 + 8 + 8*10 + 10
    assert "2 lanes by map on 1 cpu device" in text
    assert "MiB" in text
    assert "model.hidden (12,)" in text
    assert "7 done, 0 to run" in next(sweep.plan(sweep.Sweep(config), whole))


def test_changed_data_is_refused(config, tmp_path, monkeypatch):
    import dataclasses

    from rethink_jax.data import sources

    assert run(config, tmp_path / "w") == 0
    digits = sources.digits()
    other = dataclasses.replace(digits, test_images=digits.test_images[::-1].copy())
    monkeypatch.setitem(sources.DATASETS, "digits", lambda: other)
    with pytest.raises(UserError, match="images of digits are not those"):
        run(config, tmp_path / "w")


def test_damaged_workdir_files(config, tmp_path):
    config["sweep"] = {}
    assert run(config, tmp_path / "w") == 0
    (result,) = (tmp_path / "w" / "trials").glob("*/result.json")
    text = result.read_text()
    result.write_text(text[:100])
    with pytest.raises(UserError, match=r"result\.json is damaged"):
        run(config, tmp_path / "w")
    result.write_text(text)
    (tmp_path / "w" / "run.json").write_text("{}")
    with pytest.raises(UserError, match="was not written by this version"):
        run(config, tmp_path / "w")


def test_disk_full_loses_nothing(config, tmp_path, whole, monkeypatch):
    """A write that fails ends the command with one line; afterwards it goes on."""
    original, count = records.Workdir.write_result, [0]

    def full(self, *args):
        count[0] += 1
        if count[0] == 3:
            raise OSError(28, "No space left on device")
        original(self, *args)

    monkeypatch.setattr(records.Workdir, "write_result", full)
    with pytest.raises(UserError, match=r"No space left.*same command goes on"):
        run(config, tmp_path / "w")
    monkeypatch.undo()
    assert 2 <= len(records.Workdir(tmp_path / "w").finished()) < 7
    assert run(config, tmp_path / "w") == 0
    assert_same_results(tmp_path / "w", whole)
