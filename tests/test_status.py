"""What a second terminal shows of a workdir."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import commands
import pytest

from rethink_jax import claims, records, status, trials
from rethink_jax.schema import UserError
from rethink_jax.slices import Slice

REPO = Path(__file__).parents[1]


def result(trial, name):
    return records.planned_row(trial, "g") | {"status": name, "epochs": 3}


@pytest.fixture
def some():
    config = {"trial": {"data": {"name": "digits"}}, "sweep": {"seed": tuple(range(8))}}
    return trials.expand(config)


@pytest.fixture
def workdir(some, tmp_path):
    """Trials 0 to 2 have ended in the table, 3 and 4 since then; the rest is planned."""
    found = records.Workdir(tmp_path)
    found.create()
    header = {"config": {}, "config_sha256": "0", "fixed_fields": {}, "data": {}}
    found.history.create(header)
    view = records.TableView(found, [records.planned_row(t, "g") for t in some], found.outcomes())
    for trial, name in zip(some, ("fitted", "finished", "diverged"), strict=False):
        finish(found, trial, name)
    view.write()
    finish(found, some[3], "fitted")
    found.write_failed(some[4], "g", "ValueError: oh no", ValueError("oh no"))
    return found


def finish(workdir, trial, name):
    workdir.clear_trial(trial.trial_id)
    workdir.write_result(trial.trial_id, result(trial, name))


def take(workdir, part, some):
    return claims.take(workdir.path, part, [t.trial_id for t in some], ["g"], print)


def read(workdir):
    return status.View(workdir.path).read()


def test_every_status(workdir, some):
    with take(workdir, Slice(0, 2), some[::2]) as claim:
        running = [[some[6].trial_id, 2.5, 60], [some[2].trial_id, 1, 60]]
        claim.report(done=1, total=4, steps_per_second=50.0, steps_left=500, running=running)
        claim.beat()
        found = read(workdir)
    assert found.counts == {
        "planned": 2, "running": 1, "fitted": 2, "finished": 1, "diverged": 1, "failed": 1,
    }  # fmt: skip
    # The third is finished by now: what runs was written before.
    assert found.running == [(some[6].trial_id, "0/2", 2.5, 60)]
    assert found.failed == {some[4].trial_id: "ValueError: oh no"}
    (one,) = found.slices
    assert (one.slice, one.state, one.done, one.total) == ("0/2", "alive", 2, 4)
    assert (one.steps_per_second, one.seconds_left) == (50.0, 10.0)
    text = status.text(found)
    for part in (
        "8 trials: 2 planned, 1 running, 2 fitted, 1 finished, 1 diverged, 1 failed",
        "slice 0/2: alive, 2/4 trials, process",
        "50 trial-steps/s, ETA 0:10",
        f"running {some[6].trial_id}: epoch 2.5 of at most 60 (slice 0/2)",
        f"failed, 1 like {some[4].trial_id}: ValueError: oh no",
    ):
        assert part in text
    assert json.loads(json.dumps(found.to_json()))["running"][0]["epochs"] == 2.5


def test_how_slices_ended(workdir, some, monkeypatch):
    claim = take(workdir, Slice(0, 3), some[6:8])
    claim.report(running=[[some[7].trial_id, 1, 60]])
    claim.beat()
    claim.path.write_text(json.dumps(json.loads(claim.path.read_text()) | {"start": "1"}))
    with take(workdir, Slice(1, 3), some[2:4]) as second:
        second.state = "interrupted"
    take(workdir, Slice(2, 3), some[5:6])
    assert [s.state for s in read(workdir).slices] == ["dead", "interrupted", "alive"]
    assert read(workdir).running == []
    # Seen from another machine there are only heartbeats.
    monkeypatch.setattr(claims, "machine", lambda: {"host": "other", "boot": ""})
    assert [s.state for s in read(workdir).slices] == ["alive", "interrupted", "alive"]
    monkeypatch.setattr(claims, "_BEATS", -1)
    assert [s.state for s in read(workdir).slices] == ["silent", "interrupted", "silent"]


def test_a_trial_that_is_tried_again_is_planned(workdir, some):
    view = status.View(workdir.path)
    table = records.TableView(workdir, [], workdir.outcomes())
    table.write()
    assert view.read().counts["failed"] == 1
    workdir.plan_again(some[4].trial_id)
    assert view.read().counts["failed"] == 0


def test_only_new_results_are_read(workdir, some, monkeypatch):
    opened, original = [], records.Outcomes._read
    monkeypatch.setattr(
        records.Outcomes,
        "_read",
        lambda self, trial_id, *a, **k: (
            opened.append(trial_id),
            original(self, trial_id, *a, **k),
        )[1],
    )
    read(workdir)
    assert set(opened) == {some[3].trial_id, some[4].trial_id}


def test_rows_once_each_whoever_wrote_the_table(workdir, some):
    """A process that does not know what another one has finished does not lose it."""
    slow = records.TableView(
        workdir, [records.planned_row(t, "g") for t in some], workdir.outcomes()
    )
    finish(workdir, some[5], "fitted")
    slow.write()
    lines = (workdir.path / "trials.csv").read_text().splitlines()
    assert len(lines) == 9 and len({line.split(",")[0] for line in lines}) == 9
    assert [line.split(",")[2] for line in lines[1:]] == [
        "fitted", "finished", "diverged", "fitted", "failed", "fitted", "planned", "planned",
    ]  # fmt: skip


def test_what_is_finished_while_the_table_is_written_is_not_lost(workdir, some, monkeypatch):
    """Of two processes, the slower one may write last: it looks again."""
    view = records.TableView(
        workdir, [records.planned_row(t, "g") for t in some], workdir.outcomes()
    )
    write, others = records.Table.write, [lambda: finish(workdir, some[7], "fitted")]

    def slowly(self, path):
        if others:
            others.pop()()
        write(self, path)

    monkeypatch.setattr(records.Table, "write", slowly)
    view.write()
    last = (workdir.path / "trials.csv").read_text().splitlines()[-1]
    assert last.split(",")[2] == "fitted"


def test_errors(tmp_path):
    with pytest.raises(UserError, match="is not a workdir"):
        status.View(tmp_path)


def test_the_command_needs_no_jax(workdir):
    """It would take longer to import than all the rest."""
    code = "import sys\nimport launch.status\nassert 'jax' not in sys.modules\n"
    subprocess.run([sys.executable, "-c", code], cwd=REPO, check=True)
    command = [sys.executable, "-m", "launch.status", f"--workdir={workdir.path}", "--watch"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "8 trials" in done.stdout, done.stderr


def test_a_workdir_that_is_removed_meanwhile_is_no_empty_one(workdir, some, monkeypatch):
    def remove(_):
        shutil.rmtree(workdir.path)

    monkeypatch.setattr(status.time, "sleep", remove)
    with take(workdir, Slice(0, 2), some):
        outcome = commands.run("status", f"--workdir={workdir.path}", "--watch")
    assert outcome.code == 2 and "0 trials" not in outcome.out
    assert outcome.err == f"error: {workdir.path} is not a workdir: it has no run.json\n"


@pytest.mark.parametrize("command", ["status", "report", "measure"])
def test_results_that_may_not_be_read_are_named(workdir, command, monkeypatch):
    real = os.listdir

    def listdir(path):
        if path == workdir.path / "trials":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path)

    monkeypatch.setattr(os, "listdir", listdir)
    outcome = commands.run(command, f"--workdir={workdir.path}")
    assert outcome.code == 2
    said = f"error: cannot read {workdir.path}/trials (Permission denied); make the workdir"
    assert outcome.err.startswith(said) and len(outcome.err.splitlines()) == 1


def test_an_output_that_takes_nothing_is_no_traceback(workdir):
    command = [sys.executable, "-m", "launch.status", f"--workdir={workdir.path}"]
    reader, closed = os.pipe()
    os.close(reader)
    with open(closed, "wb") as nobody, open("/dev/full", "wb") as full:
        for out, code, said in (
            (nobody, 75, b""),
            (full, 2, b"error: No space left on device\n"),
        ):
            found = subprocess.run(command, cwd=REPO, stdout=out, stderr=subprocess.PIPE)
            assert (found.returncode, found.stderr) == (code, said)
