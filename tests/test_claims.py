"""A slice is run by one process; another one waits for its end, or for its death."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import commands
import pytest

from rethink_jax import claims, processes, records
from rethink_jax.schema import UserError
from rethink_jax.slices import WHOLE, Slice

TRIALS = ["a", "b", "c", "d"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.05)


@pytest.fixture
def other_machine(monkeypatch):
    """From now on this process is on a machine that cannot ask about those before."""
    return lambda: monkeypatch.setattr(claims, "machine", lambda: {"host": "other", "boot": "1"})


def take(workdir, part=WHOLE, trials=TRIALS, groups=("g",), said=None, **more):
    say = (lambda _: None) if said is None else said.append
    return claims.take(workdir, part, trials, groups, say, **more)


def names(workdir):
    return sorted(p.name for p in (workdir / "claims").iterdir())


def facts(workdir):
    (found,) = claims.read_all(workdir)
    return found.facts


NONSENSE = {
    "text": "<html>",
    "nothing": "",
    "bytes": b"\xff\xfe\0",
    "list": [],
    "deep": "[" * 10**5,
    "pid": {"pid": "12"},
    "negative_pid": {"pid": -1},
    "state": {"state": 3},
    "progress": {"progress": [1]},
    "rate": {"progress": {"steps_per_second": "fast"}},
    "running": {"progress": {"running": [["a"]]}},
    "infinite_steps": {"progress": {"steps_per_second": 1.0, "steps_left": float("inf")}},
    "trials": {"trials": "abc"},
    "trials_of_numbers": {"trials": [[1]]},
    "groups": {"groups": {"g": 1}},
    "every_text": {"every": "10"},
    "every_negative": {"every": -10},
    "every_huge": {"every": 1e9},
    "every_nan": {"every": float("nan")},
    "host": {"host": None},
}


def write_nonsense(workdir, name):
    """A claim of a process that is gone, on another machine, with something else in it."""
    (workdir / "claims").mkdir()
    whole = {
        "slice": "0/1", "host": "h", "boot": "b", "pid": 1, "start": "1", "every": 0.05, "beat": 1,
        "state": "running", "trials": TRIALS, "groups": ["g"], "progress": {},
    }  # fmt: skip
    said = NONSENSE[name]
    said = json.dumps(whole | said) if isinstance(said, dict) else said
    said = json.dumps(said) if isinstance(said, list) else said
    path = workdir / "claims" / "0of1.000001.json"
    path.write_bytes(said.encode() if isinstance(said, str) else said)


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_is_watched_for_a_moment_and_gives_way(name, tmp_path):
    write_nonsense(tmp_path, name)
    begun, said = time.monotonic(), []
    with take(tmp_path, said=said):
        assert time.monotonic() - begun < 10
        assert names(tmp_path) == ["0of1.000002.json"]
    assert len(said) == 1 and "process ? on ? was running slice ?" in said[0]


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_is_no_trouble_for_the_status(name, tmp_path):
    write_nonsense(tmp_path, name)
    head = {"config": {}, "config_sha256": "", "data": {}, "fixed_fields": {}}
    records.Workdir(tmp_path).history.create(head)
    for flags in ((), ("--json",)):
        outcome = commands.run("status", f"--workdir={tmp_path}", *flags)
        assert (outcome.code, outcome.err) == (0, "")


def test_files_that_are_no_claims_are_left_alone(tmp_path):
    (tmp_path / "claims").mkdir()
    for name in ("notes.json", "0of1.json", "0of1.x.json", "a.b.000001.json"):
        (tmp_path / "claims" / name).write_text("{}")
    with take(tmp_path) as claim:
        assert claim.path.name == "0of1.000001.json"
        assert len(names(tmp_path)) == 5


def test_refused_while_the_first_lives(tmp_path):
    with take(tmp_path):
        with pytest.raises(UserError) as error:
            take(tmp_path)
        said = str(error.value)
        host = claims.machine()["host"]
        assert f"slice 0/1 of {tmp_path} is being run by process {os.getpid()} on {host}" in said
        assert "\n" not in said
    with take(tmp_path):
        assert names(tmp_path) == ["0of1.000002.json"]


@pytest.mark.parametrize(
    ("part", "trials", "groups", "more"),
    [
        (Slice(1, 4), ["b"], ["g"], {}),
        (Slice(0, 2), ["a", "x"], ["h"], {}),
        # Other trials, but the same folder for checkpoints.
        (WHOLE, ["x"], ["g", "h"], {"selection": "abc"}),
    ],
)
def test_what_overlaps_is_refused(tmp_path, part, trials, groups, more):
    with take(tmp_path), pytest.raises(UserError, match="is being run by process"):
        take(tmp_path, part, trials, groups, **more)
    assert len(names(tmp_path)) == 1


@pytest.mark.parametrize(
    ("part", "trials", "groups", "more"),
    [(Slice(1, 2), ["x"], ["g"], {}), (WHOLE, ["x"], ["h"], {"selection": "abc"})],
)
def test_what_does_not_overlap_is_not(tmp_path, part, trials, groups, more):
    with take(tmp_path), take(tmp_path, part, trials, groups, **more):
        assert len(names(tmp_path)) == 2


CHILD = """
import sys, time
from pathlib import Path
from rethink_jax import claims, processes
from rethink_jax.slices import WHOLE
with claims.take(Path(sys.argv[1]), WHOLE, ["a"], ["g"], print):
    print("taken", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def child(tmp_path):
    """Another process that has the claim."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, tmp_path], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "taken\n"
    yield process
    process.kill()
    process.wait()


def test_a_killed_process_is_taken_over_at_once(tmp_path, child):
    with pytest.raises(UserError, match=f"process {child.pid} on"):
        take(tmp_path)
    child.send_signal(signal.SIGSTOP)  # Stopped is not dead: it may go on at any time.
    with pytest.raises(UserError, match=f"process {child.pid} on"):
        take(tmp_path)
    child.kill()
    while claims.start_of(child.pid):  # Until the kernel has done it; nobody has waited for it.
        time.sleep(0.001)
    said = []
    with take(tmp_path, said=said):
        assert names(tmp_path) == ["0of1.000002.json"]
    assert not said


def test_a_process_with_the_same_number_is_another_one(tmp_path):
    claim = take(tmp_path)
    stored = facts(tmp_path) | {"start": "1"}
    claim.path.write_text(json.dumps(stored))
    with take(tmp_path) as again:
        assert again.path != claim.path and not again.lost


def test_another_machine_is_watched(tmp_path, other_machine):
    """Alive while its heart beats; whatever the clocks say."""
    with take(tmp_path) as claim:
        other_machine()
        os.utime(claim.path, (0, 0))
        said = []
        with pytest.raises(UserError, match="is being run by process"):
            take(tmp_path, said=said)
        assert "watching for 0 s whether it still is" in said[0]


def test_a_silent_process_of_another_machine_is_taken_over(tmp_path, other_machine):
    claim = take(tmp_path)  # Its heart does not beat.
    os.utime(claim.path, (2**33, 2**33))  # From the future.
    other_machine()
    begun = time.monotonic()
    with take(tmp_path):
        assert time.monotonic() - begun >= 3 * 0.05
        assert names(tmp_path) == ["0of1.000002.json"]
    # The first one was only slow: it sees that it has lost, and leaves what is there alone.
    claim.beat()
    assert claim.lost
    assert names(tmp_path) == ["0of1.000002.json"]


def test_one_that_ended_elsewhere_is_not_watched(tmp_path, other_machine):
    with take(tmp_path) as claim:
        claim.state = "finished"
    other_machine()
    said = []
    with take(tmp_path, said=said):
        assert not said


def test_half_a_claim_is_watched(tmp_path):
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / "0of1.000001.json").write_text('{"slice": "0')
    said = []
    with take(tmp_path, said=said):
        assert len(said) == 1


@pytest.mark.parametrize("parts", [(WHOLE,) * 6, (WHOLE, Slice(0, 2), Slice(0, 4)) * 2])
def test_of_many_at_once_one_wins_at_most(tmp_path, parts):
    """With one name exactly one; overlapping under several names, none may."""
    take(tmp_path)
    stored = facts(tmp_path) | {"start": "1"}
    (tmp_path / "claims" / names(tmp_path)[0]).write_text(json.dumps(stored))
    won, refused, ready = [], [], threading.Barrier(len(parts))

    def attempt(part):
        ready.wait()
        try:
            won.append(take(tmp_path, part))
        except UserError as error:
            refused.append(error)

    threads = [threading.Thread(target=attempt, args=(part,)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) + len(refused) == len(parts)
    assert len(won) <= 1
    if len(set(parts)) == 1:
        assert len(won) == 1


def test_heartbeats_carry_the_progress(tmp_path):
    with take(tmp_path) as claim:
        claim.report(done=3, total=4)
        deadline = time.monotonic() + 10
        while "done" not in (now := facts(tmp_path))["progress"] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert now["progress"] == {"done": 3, "total": 4}
        assert now["state"] == "running" and now["beat"] > 0
        claim.state = "interrupted"
    assert facts(tmp_path)["state"] == "interrupted"


def test_a_workdir_that_is_gone_is_lost(tmp_path):
    claim = take(tmp_path)
    claim.path.unlink()
    claim.beat()
    assert claim.lost and names(tmp_path) == []


def test_where_there_is_no_proc(monkeypatch):
    """On other systems, ps says when a process began."""
    here = processes.start_of(os.getpid())
    assert here
    monkeypatch.setattr(processes.Path, "exists", lambda self: False)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    try:
        assert processes.start_of(os.getpid()) not in (None, here)
    except FileNotFoundError:
        pytest.skip("there is no ps")
    assert processes.start_of(ended.pid) is None
