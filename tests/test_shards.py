"""Several processes on one workdir, trials that cannot be run, and those of other workdirs."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from test_sweep import assert_same_results, interrupt_after, rows

from rethink_jax import claims, engine, records, sweep
from rethink_jax.schema import UserError
from rethink_jax.slices import Slice
from rethink_jax.sweep import Options

REPO = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def config():
    """Ten trials: eight of one group, in which four image versions occur, and two of another."""
    trial = {
        "batch_size": 16,
        "data": {"name": "digits", "num_train": 64},
        "model": {"name": "mlp", "hidden": (8,)},
        "optimizer": {"learning_rate": 0.1},
        "stop": {"max_epochs": 4},
    }
    union = {
        "labels": {"corruption": {"label_prob": (0.0, 1.0)}},
        "pixels": {"corruption": {"pixels": ("random", "shuffled")}},
        "wider": {"model": {"hidden": ((12,),)}},
    }
    engine = {"devices": 1, "lanes": 2, "epochs_per_dispatch": 1, "pad_widths": "off"}
    return {"trial": trial, "sweep": {"seed": (0, 1), "union": union}, "engine": engine}


def run(config, workdir, part=(0, 1), **options):
    return sweep.run(sweep.Sweep(config, Slice(*part)), workdir, ["test"], Options(**options))


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """The workdir of one process."""
    path = tmp_path_factory.mktemp("whole") / "w"
    assert run(config, path) == 0
    return path


def test_slices_one_after_another_are_the_whole(config, whole, tmp_path, capsys):
    for i in range(3):
        assert run(config, tmp_path / "w", (i, 3)) == 0
        assert len(rows(tmp_path / "w")) == 10
    assert_same_results(tmp_path / "w", whole)
    assert not list((tmp_path / "w" / "groups").iterdir())
    assert "slice 2/3 of 10 trials: 3 trials in 2 groups, 0 done" in capsys.readouterr().out
    # Each again, all in one, and one that has nothing.
    for part in (1, 3), (0, 1), (11, 12):
        assert run(config, tmp_path / "w", part) == 0
    said = capsys.readouterr().out
    assert f"all 3 trials of slice 1/3 of {tmp_path / 'w'} are done; nothing to run" in said
    assert f"all 10 trials of {tmp_path / 'w'} are done" in said
    assert "all 0 trials of slice 11/12" in said
    head = records.Workdir(tmp_path / "w").header()
    assert [r["trials_finished"] for r in head["runs"]] == [4, 3, 3]
    names = [p.name.split("_")[1] for p in sorted((tmp_path / "w" / "runs").iterdir())]
    assert names == ["0of3", "1of3", "2of3"]


CHILD = """
import json, sys
from pathlib import Path
from rethink_jax import slices, sweep
part = slices.parse(sys.argv[3], {})
sys.exit(sweep.run(sweep.Sweep(json.loads(sys.argv[1]), part), Path(sys.argv[2]), ["test"]))
"""


def start(config, workdir, part):
    command = [sys.executable, "-c", CHILD, json.dumps(config), str(workdir), part]
    # The suite's own switches, so that they compute the same bits as `whole`.
    env = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return subprocess.Popen(
        command, cwd=REPO, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_two_processes_at_once_and_one_is_killed(config, whole, tmp_path):
    """Equal to one process, bit by bit; whoever is killed is taken over at once."""
    some = json.loads(json.dumps(config)) | {"checkpoint": {"every_seconds": 0.0}}
    workdir = tmp_path / "w"
    both = [start(some, workdir, part) for part in ("0/2", "1/2")]
    deadline = time.monotonic() + 200
    while both[1].poll() is None and time.monotonic() < deadline:
        # Killed as soon as it has something to lose.
        if any(workdir.glob("groups/*.1of2/*")):
            # While it lives, its slice and what overlaps with it are refused.
            for part in (1, 2), (0, 1):
                with pytest.raises(UserError, match="is being run by process"):
                    run(config, workdir, part)
            both[1].kill()
            break
        time.sleep(0.005)
    assert both[1].wait() == -9, both[1].stderr.read()
    assert run(some, workdir, (1, 2)) == 0
    assert both[0].wait(200) == 0, both[0].stderr.read()
    assert_same_results(workdir, whole)
    assert not list((workdir / "groups").iterdir())
    assert not list(workdir.rglob("*.part"))
    states = {f.facts["slice"]: f.facts["state"] for f in claims.read_all(workdir)}
    assert states == {"0/2": "finished", "1/2": "finished"}


def test_a_process_that_was_taken_over_stops(config, tmp_path, monkeypatch):
    """It was silent for a while; what is there since then is not its own."""
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.01)
    step, count = engine.GroupRun.step, [0]

    def slow(self):
        count[0] += 1
        if count[0] == 2:
            for found in claims.read_all(tmp_path / "w"):
                found.path.unlink()
            time.sleep(0.3)
        step(self)

    monkeypatch.setattr(engine.GroupRun, "step", slow)
    with pytest.raises(UserError, match=r"slice 0/1 of .* is not this process's any more"):
        run(config, tmp_path / "w")
    assert count[0] < 6
    assert not list((tmp_path / "w" / "claims").iterdir())
    assert not [p for g in (tmp_path / "w" / "groups").iterdir() for p in g.iterdir()]


def test_other_slices_than_before_take_all_up(
    config, whole, tmp_path, monkeypatch, epochs_at_begin
):
    """Interrupted as one process, as two, as three: nothing is run twice, nothing left out."""
    workdir, under_way = tmp_path / "w", []
    for part in (0, 1), (1, 2), (0, 3):
        before = len(epochs_at_begin)
        with monkeypatch.context() as patch:
            interrupt_after(patch, 3)
            assert run(config, workdir, part) == 75
        under_way.append(epochs_at_begin[before])
    # Each took up what it has of those before it, as far as there were lanes.
    assert under_way[0] == [0, 0] and all(any(epochs) for epochs in under_way[1:])
    assert 0 < len(records.Workdir(workdir).finished()) < 10
    assert len(list((workdir / "groups").iterdir())) == 3
    for i in range(2):
        assert run(config, workdir, (i, 2)) == 0
    assert_same_results(workdir, whole)
    assert not any((tmp_path / "w" / "groups").iterdir())


def test_the_first_process_chooses_the_widths_for_all(config, tmp_path):
    """Another one that would not pad keeps to it; a new width adds to what was chosen."""
    some = config | {"engine": config["engine"] | {"pad_widths": "on"}}
    assert run(some, tmp_path / "w", (0, 2)) == 0
    chosen = records.Workdir(tmp_path / "w").header()["widths"]
    assert list(chosen.values()) == [{"model.hidden": [12]}] * 2
    assert run(config, tmp_path / "w", (1, 2)) == 0
    head = records.Workdir(tmp_path / "w").header()
    assert head["widths"] == chosen
    assert [list(r["groups"]) for r in head["runs"]] == [list(head["runs"][0]["groups"])] * 2


# --- trials of other workdirs ---------------------------------------------------------------------


def test_reuse_of_other_workdirs(config, whole, tmp_path, capsys):
    """What is there is not run again, and is there as if it had been."""
    some = json.loads(json.dumps(config))
    some["sweep"]["seed"] = [0, 1, 2]
    begun = []
    with pytest.MonkeyPatch.context() as patch:
        begin = engine.GroupRun.begin
        patch.setattr(
            engine.GroupRun, "begin", lambda s, todo, r: (begun.extend(todo), begin(s, todo, r))
        )
        assert run(some, tmp_path / "w", reuse=[whole]) == 0
    assert f"10 trials taken over from {whole}\n" in (said := capsys.readouterr().out)
    assert "10 done, 5 to run" in said
    assert {t["seed"] for t in begun} == {2} and len(begun) == 5
    assert len(rows(tmp_path / "w")) == 15
    theirs = records.Workdir(whole).finished()
    assert records.Workdir(tmp_path / "w").finished().items() >= theirs.items()
    copied, original = (w / "trials" / next(iter(theirs)) for w in (tmp_path / "w", whole))
    files = sorted(p.relative_to(original) for p in original.rglob("*") if p.is_file())
    assert sorted(p.relative_to(copied) for p in copied.rglob("*") if p.is_file()) == files
    for file in files:
        assert (copied / file).read_bytes() == (original / file).read_bytes()
    # All of it: nothing is left to run. And a link is not needed.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(18, "cross-device")))
        with pytest.raises(UserError, match="cannot write"):
            run(some, tmp_path / "u", reuse=[tmp_path / "w"])
    assert run(some, tmp_path / "v", reuse=[whole, tmp_path / "w"]) == 0
    assert "5 trials taken over from" in capsys.readouterr().out


def test_reuse_looks_at_the_images(config, whole, tmp_path, capsys):
    head = json.loads((whole / "run.json").read_text())
    head["data"]["digits"]["fingerprint"] = "other"
    other = tmp_path / "other"
    (other / "trials").mkdir(parents=True)
    (other / "run.json").write_text(json.dumps(head))
    for folder in (whole / "trials").iterdir():
        (other / "trials" / folder.name).symlink_to(folder)
    assert run(config, tmp_path / "w", reuse=[other]) == 0
    said = capsys.readouterr().out
    assert "0 trials taken over" in said and "other images of digits" in said
    assert "0 done, 10 to run" in said


@pytest.mark.parametrize(("other", "said"), [("nope", "is not a workdir"), ("w", "itself")])
def test_reuse_errors(config, tmp_path, other, said):
    with pytest.raises(UserError, match=said):
        run(config, tmp_path / "w", reuse=[tmp_path / other])
    assert not (tmp_path / "w").exists()


def test_leaves(whole):
    """Networks are compared above; here that there is something to compare."""
    from rethink_jax import checkpoint

    loaded = [checkpoint.load_trial(whole, r["trial_id"]) for r in rows(whole)[:2]]
    first, second = (jax.tree.leaves(one.variables) for one in loaded)
    assert any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True))
