"""What goes wrong around a sweep while it runs: nothing finished is lost, and one line says it."""

import contextlib
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_sweep import assert_same_results, interrupt_after

from rethink_jax import header, records, sweep
from rethink_jax.slices import Slice

REPO = Path(__file__).parents[1]
GIVEN = [
    "--config=configs/quickstart.py:quick", "--config.trial.stop.max_epochs=20",
    "--config.sweep.seed=(0,)", "--config.engine.lanes=2", "--config.engine.tuning=off",
    "--config.checkpoint.every_seconds=1",
]  # fmt: skip


# Root, too, may only write what permissions allow, once it has given up two capabilities (of the
# bounding set, for the command that this process becomes): CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH.
OBEDIENT = """
import ctypes, os, sys
for capability in (1, 2):
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def start(workdir, obedient=False):
    """obedient: to permissions, whoever runs it"""
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    first = ["-c", OBEDIENT] if obedient else []
    return subprocess.Popen(
        [sys.executable, *first, "-m", "launch.sweep", *GIVEN, f"--workdir={workdir}"],
        cwd=REPO, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def await_results(process, workdir):
    """Until two trials are finished, and at least that many are not."""
    while process.poll() is None and len(list(workdir.glob("trials/*/result.json"))) < 2:
        time.sleep(0.02)
    assert process.poll() is None, process.stderr.read()


def assert_refused(process, *words):
    """It ends with exit code 2 and one line that has these words."""
    err = process.communicate(timeout=200)[1]
    assert process.returncode == 2, err
    assert err.startswith("error: cannot write to the workdir ") and err.count("\n") == 1, err
    for word in words:
        assert word in err


def assert_goes_on(workdir, whole):
    """The same command comes to the results that it has when nothing is in its way."""
    finished = len(list(workdir.glob("trials/*/result.json")))
    assert 2 <= finished < 14
    process = start(workdir)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert f"{finished} done, {14 - finished} to run" in out
    assert_same_results(workdir, whole)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "w"
    process = start(workdir)
    assert process.wait(200) == 0, process.stderr.read()
    return workdir


def test_the_disk_is_full(tmp_path, whole):
    """A file system of its own, that something else fills."""
    room = tmp_path / "room"
    room.mkdir()
    mount = 'mount -t tmpfs -o size=20m tmpfs "$0"'
    if subprocess.run(["sh", "-c", mount, room], capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        process = start(room / "w")
        await_results(process, room / "w")
        with contextlib.suppress(OSError), (room / "filling").open("wb", 0) as file:
            while file.write(bytes(4096)):
                pass
        assert_refused(process, "No space left on device", "the same command goes on")
        (room / "filling").unlink()
        assert_goes_on(room / "w", whole)
    finally:
        subprocess.run(["umount", room], check=True)


def test_files_are_not_to_be_so_large(tmp_path, whole):
    """As with a full disk, the system refuses it in the middle of a file."""
    process = start(tmp_path / "w")
    await_results(process, tmp_path / "w")
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (30_000, 30_000))
    assert_refused(process, "File too large")
    assert_goes_on(tmp_path / "w", whole)


def set_writable(folder, writable):
    for path in [folder, *folder.rglob("*")]:
        with contextlib.suppress(FileNotFoundError):  # It was replaced meanwhile.
            if path.is_dir():
                path.chmod(0o755 if writable else 0o555)


@pytest.mark.skipif(sys.platform != "linux", reason="root's rights can be given up on Linux only")
def test_the_workdir_becomes_read_only(tmp_path, whole):
    process = start(tmp_path / "w", obedient=True)
    await_results(process, tmp_path / "w")
    set_writable(tmp_path / "w", False)
    assert_refused(process, "Permission denied", "what is finished is safe")
    assert_refused(start(tmp_path / "w", obedient=True), "Permission denied", "--workdir")
    set_writable(tmp_path / "w", True)
    assert_goes_on(tmp_path / "w", whole)


def test_the_workdir_vanishes(tmp_path, whole):
    process = start(tmp_path / "w")
    await_results(process, tmp_path / "w")
    (tmp_path / "w").rename(tmp_path / "elsewhere")
    assert_refused(process, "No such file or directory")
    assert not (tmp_path / "w" / "run.json").exists()
    assert_goes_on(tmp_path / "elsewhere", whole)


def test_the_clock_goes_back(tmp_path, monkeypatch):
    """By a day, every time that somebody asks."""
    trial = {
        "batch_size": 16,
        "data": {"name": "digits", "num_train": 64},
        "model": {"name": "mlp", "hidden": (8,)},
        "stop": {"max_epochs": 4},
    }
    engine = {"devices": 1, "lanes": 2, "epochs_per_dispatch": 1}
    config = {"trial": trial, "sweep": {"seed": (0, 1, 2)}, "engine": engine}
    config["checkpoint"] = {"every_seconds": 0.0}
    run = lambda workdir, *part: sweep.run(sweep.Sweep(config, Slice(*part)), workdir, ["test"])  # noqa: E731
    assert run(tmp_path / "whole", 0, 1) == 0
    now, days = time.time(), [0]

    def earlier():
        days[0] += 1
        return now - 86400 * days[0]

    monkeypatch.setattr(time, "time", earlier)
    monkeypatch.setattr(time, "time_ns", lambda: int(earlier() * 1e9))
    monkeypatch.setattr(header, "now", lambda: time.strftime("%F", time.gmtime(earlier())))
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        assert run(tmp_path / "w", 0, 2) == 75
    for path in (tmp_path / "w").rglob("*"):
        os.utime(path, (now + 1e6, now + 1e6))  # Written in the future, as it seems.
    assert run(tmp_path / "w", 0, 2) == 0
    assert run(tmp_path / "w", 1, 2) == 0
    assert_same_results(tmp_path / "w", tmp_path / "whole")
    assert days[0] > 10
    # In the order in which they were run, whatever they say of the time.
    runs = records.Workdir(tmp_path / "w").header()["runs"]
    assert [(r["interrupted"], r["trials_finished"]) for r in runs] == [
        (True, 0), (False, 2), (False, 1),
    ]  # fmt: skip
    assert [r["started"] for r in runs] == sorted((r["started"] for r in runs), reverse=True)
