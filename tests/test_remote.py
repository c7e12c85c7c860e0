"""Workdirs in other storage: what a machine that is lost has sent is there for the next one."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest

import rethink_jax
from rethink_jax import remote
from rethink_jax.schema import UserError

REPO = Path(__file__).parents[1]


@pytest.fixture
def store():
    """A bucket in memory; everything in it is a whole file, as in gs:// and s3://."""
    storage = fsspec.filesystem("memory")
    storage.rm("/bucket", recursive=True) if storage.exists("/bucket") else None
    return storage


def mirror(folder):
    return remote.Mirror("memory://bucket/w", folder)


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def files(folder):
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_two_machines_come_to_the_same_files(tmp_path, store):
    one, two = mirror(tmp_path / "one"), mirror(tmp_path / "two")
    write(one.folder, "run.json", "{}")
    write(one.folder, "trials/a/result.json", "a")
    write(two.folder, "trials/b/result.json", "b")
    one.send()
    two.send()
    one.fetch()
    two.fetch()
    assert files(one.folder) == files(two.folder) == {
        "run.json": "{}", "trials/a/result.json": "a", "trials/b/result.json": "b"
    }  # fmt: skip


def test_what_others_change_or_remove_is_followed(tmp_path, store):
    one, two = mirror(tmp_path / "one"), mirror(tmp_path / "two")
    write(one.folder, "claims/0of2.json", "beat 1")
    write(one.folder, "claims/1of2.json", "beat 1")
    one.send()
    two.fetch()
    write(one.folder, "claims/0of2.json", "beat 2")
    (one.folder / "claims/1of2.json").unlink()
    one.send()
    two.send()  # Has nothing of its own to say of them.
    two.fetch()
    assert files(two.folder) == {"claims/0of2.json": "beat 2"}
    write(two.folder, "claims/0of2.json", "taken over")
    two.send()
    one.fetch()
    assert files(one.folder) == {"claims/0of2.json": "taken over"}


def test_a_folder_that_is_cleaned_up_costs_nothing_that_is_stored(tmp_path, store):
    one = mirror(tmp_path / "one")
    kept = ("run.json", "trials/a/result.json", "trials/a/network/d", "trials.csv")
    removed = ("claims/0of1.json", "groups/g/1/state", "trials/b/failed.json")
    for name in (*kept, *removed):
        write(one.folder, name, "x")
    one.send()
    shutil.rmtree(one.folder)
    one.send()
    assert {p.removeprefix("/bucket/w/") for p in store.find("/bucket/w")} == set(kept)


def test_a_listing_that_lacks_files_costs_nothing_that_is_here(tmp_path, store):
    one = mirror(tmp_path / "one")
    for name in ("run.json", "trials/a/result.json", "claims/0of1.json"):
        write(one.folder, name, "x")
    one.send()
    one.fetch()
    store.rm("/bucket", recursive=True)
    one.fetch()
    assert set(files(one.folder)) == {"run.json", "trials/a/result.json"}


def test_nothing_unfinished_is_sent_and_a_result_comes_last(tmp_path, store, monkeypatch):
    one, sent = mirror(tmp_path), []
    real = one._send_one
    monkeypatch.setattr(one, "_send_one", lambda name: (sent.append(name), real(name)))
    for name in (
        "trials/a/result.json",
        "trials/a/network/d/0",
        "trials/a/curve.csv",
        ".run.json.7-x-1.part",
        "trials/a/network.orbax-checkpoint-tmp/d",
        "trials.csv",
    ):
        write(tmp_path, name, "x")  # fmt: skip
    one.send()
    assert sent[-2:] == ["trials/a/result.json", "trials.csv"]
    assert set(sent[:-2]) == {"trials/a/network/d/0", "trials/a/curve.csv"}
    one.send()
    assert len(sent) == 4  # Nothing is sent twice.


def test_networks_and_checkpoints_are_fetched_when_they_are_needed(tmp_path, store):
    one = mirror(tmp_path / "one")
    for name in ("trials/a/result.json", "trials/a/network/d", "groups/g/1/state"):
        write(one.folder, name, "x")
    one.send()
    names = []
    for n, given in enumerate(({}, {"checkpoints": True}, {"networks": True})):
        other = mirror(tmp_path / str(n))
        other.fetch(**given)
        names.append(set(files(other.folder)) - {"trials/a/result.json"})
    assert names == [set(), {"groups/g/1/state"}, {"trials/a/network/d"}]


def test_a_folder_that_was_left_behind_is_taken_up(tmp_path, store):
    """The process was killed before it had sent everything."""
    write(tmp_path, "trials/a/result.json", "a")
    mirror(tmp_path).send()
    write(tmp_path, "trials/b/result.json", "b")
    again = mirror(tmp_path)
    again.fetch()
    again.send()
    assert store.cat("/bucket/w/trials/b/result.json") == b"b"


@pytest.mark.parametrize("url", ["nosuch://bucket/x", "s3x://bucket"])
def test_unknown_storage(url):
    with pytest.raises(UserError, match="install what fsspec needs"):
        remote.Mirror(url, Path("x"))


def test_storage_that_fails(tmp_path, store, monkeypatch):
    one = mirror(tmp_path)
    write(tmp_path, "run.json", "{}")
    monkeypatch.setattr(one, "_storage", None)
    with pytest.raises(UserError, match="cannot read memory://bucket/w"):
        one.fetch()
    with pytest.raises(UserError, match=r"cannot write to .*; everything is in "), one:
        pass


def test_paths_are_left_alone(tmp_path):
    with remote.folder_of(str(tmp_path)) as folder:
        assert folder == tmp_path
    assert (
        not remote.is_url("C:/runs") and not remote.is_url("runs/gs:") and remote.is_url("gs://b")
    )


# --- sweeps ---------------------------------------------------------------------------------------


def start(url, mirrors):
    """A sweep on a machine that has no other files than those in `mirrors`."""
    env = os.environ | {
        "RETHINK_MIRRORS": str(mirrors), "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
    }  # fmt: skip
    command = [
        sys.executable, "-c",
        "import runpy, sys; from rethink_jax import claims, remote; claims.BEAT_SECONDS = 0.1; "
        "remote._SECONDS = 0.2; runpy.run_module('launch.sweep', run_name='__main__')",
        "--config=configs/quickstart.py:quick", "--config.trial.stop.max_epochs=30",
        "--config.sweep.seed=(0,)", "--config.engine.lanes=2", "--config.engine.tuning=off",
        "--config.checkpoint.every_seconds=0.5", f"--workdir={url}",
    ]  # fmt: skip
    return subprocess.Popen(
        command, cwd=REPO, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def results(folder):
    found = {}
    for path in folder.glob("trials/*/result.json"):
        result = json.loads(path.read_text())
        found[path.parent.name] = (result["epochs"], result["final"])
    return found


def test_a_lost_machine_costs_no_result(tmp_path):
    url = f"file://{tmp_path}/bucket/w"
    process = start(url, tmp_path / "one")
    begun = time.monotonic()
    while len(results(tmp_path / "bucket/w")) < 3:
        assert time.monotonic() - begun < 200 and process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = results(tmp_path / "bucket/w")
    shutil.rmtree(tmp_path / "one")  # With all that it had.
    process = start(url, tmp_path / "two")
    said = process.communicate(timeout=250)[0]
    assert process.returncode == 0, said
    done = int(re.search(r"14 trials in 1 group, (\d+) done", said)[1])
    assert done >= len(before)
    stored = tmp_path / "bucket/w"
    assert before.items() <= results(stored).items()
    whole = start(tmp_path / "whole", tmp_path / "none")
    assert whole.wait(200) == 0, whole.stdout.read()
    assert results(stored) == results(tmp_path / "whole")
    # What is stored is a workdir like any other.
    trials = rethink_jax.load_results(stored).trials
    assert len(trials) == 14 and trials["trial_id"].is_unique
    rethink_jax.load_trial(stored, trials["trial_id"][0])
    assert not [p for p in (stored / "groups").rglob("*") if p.is_file()]
    check_python_reads(url, stored, tmp_path)


def check_python_reads(url, stored, tmp_path):
    """From Python the workdir is read by its URL, on a machine that has nothing of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETHINK_MIRRORS", str(tmp_path / "three"))
        trials = rethink_jax.load_results(url).trials
        assert set(trials["trial_id"]) == results(stored).keys()
        trial_id = trials["trial_id"][0]
        assert rethink_jax.load_data(url, trial_id).train_labels.size
        assert rethink_jax.load_trial(url, trial_id).variables["params"]
    with pytest.raises(UserError, match="no folder"):
        rethink_jax.load_trial(tmp_path / "nothing", trial_id)
