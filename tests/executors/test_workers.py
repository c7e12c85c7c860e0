"""Workers that are killed: the results are those of a sweep in one process."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import rethink_jax

REPO = Path(__file__).parents[2]
# Lanes as in a process that has one core; enough epochs to be killed in.
GIVEN = [
    "--config=configs/quickstart.py:quick", "--config.trial.stop.max_epochs=20",
    "--config.sweep.seed=(0,)", "--config.engine.lanes=2", "--config.engine.tuning=off",
    "--config.checkpoint.every_seconds=3",
]  # fmt: skip


def start(workdir, *more, **environment):
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"} | environment
    command = [sys.executable, "-m", "launch.sweep", *GIVEN, f"--workdir={workdir}", *more]
    return subprocess.Popen(
        command, cwd=REPO, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def results(workdir):
    """{trial_id: what was trained}"""
    found = {}
    for path in Path(workdir).glob("trials/*/result.json"):
        result = json.loads(path.read_text())
        found[path.parent.name] = (result["epochs"], result["final"], result["status"])
    return found


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def needs(executor):
    if executor == "ray" and importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed")
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("two workers need two cores")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The sweep in one process."""
    workdir = tmp_path_factory.mktemp("alone")
    process = start(workdir)
    assert process.wait(200) == 0, process.stdout.read()
    return results(workdir)


def worker_of(workdir, part):
    """The process that has claimed a slice and finished a trial or more, once there is one."""
    begun = time.monotonic()
    while time.monotonic() - begun < 200:
        for path in sorted(Path(workdir).glob(f"claims/{part}.*.json")):
            if len(list(Path(workdir).glob("trials/*/result.json"))) >= 2:
                return json.loads(path.read_text())["pid"]
        time.sleep(0.05)
    raise AssertionError("no worker has begun")


def parent_of(pid):
    """The process that began another one."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


def check_the_same(process, workdir, alone):
    """It comes to its end, with every trial once and the results of one process; what it said."""
    said = process.communicate(timeout=250)[0]
    assert process.returncode == 0, said
    assert results(workdir) == alone
    trials = rethink_jax.load_results(workdir).trials
    assert trials["trial_id"].is_unique and len(trials) == len(alone)
    return said


@pytest.mark.parametrize("executor", ["processes", "ray"])
def test_a_killed_worker_changes_nothing(tmp_path, alone, executor):
    needs(executor)
    process = start(tmp_path, f"--executor={executor}", "--workers=2")
    os.kill(worker_of(tmp_path, "1of2"), signal.SIGKILL)
    said = check_the_same(process, tmp_path, alone)
    assert "the worker of slice 1/2 ended with code -9 and is begun again" in said


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_a_killed_process_of_ray_changes_nothing(tmp_path, alone):
    """Ray's own process, above the worker: as when a node dies, Ray begins the task again."""
    needs("ray")
    process = start(tmp_path, "--executor=ray", "--workers=2")
    worker = worker_of(tmp_path, "1of2")
    os.kill(parent_of(worker), signal.SIGKILL)
    check_the_same(process, tmp_path, alone)
    taken = {json.loads(p.read_text())["pid"] for p in tmp_path.glob("claims/1of2.*.json")}
    assert taken and worker not in taken


def test_workers_save_and_end_with_the_command(tmp_path, alone):
    process = start(tmp_path, "--executor=processes", "--workers=1")
    pid = worker_of(tmp_path, "0of1")
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=100)[0]
    assert process.returncode == 75, said
    assert "interrupted; the same command goes on" in said
    assert not Path(f"/proc/{pid}").exists()
    # In one process, from where the worker was.
    process = start(tmp_path)
    assert process.wait(200) == 0, process.stdout.read()
    assert results(tmp_path) == alone


@pytest.mark.skipif(sys.platform != "linux", reason="processes are tied to others on Linux only")
def test_workers_do_not_outlive_a_command_that_is_killed(tmp_path):
    process = start(tmp_path, "--executor=processes", "--workers=1")
    pid = worker_of(tmp_path, "0of1")
    process.kill()
    process.wait()
    begun = time.monotonic()
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() - begun < 20
        time.sleep(0.05)


def test_a_mistake_is_said_in_one_line(tmp_path):
    process = start(tmp_path, "--executor=processes", "--workers=99")
    said = process.communicate(timeout=100)[0]
    assert process.returncode == 2
    assert said.startswith("error: --workers=99, and there are ") and said.count("\n") == 1
    process = start(tmp_path, "--executor=processes", "--workers=1", "--shard=0/2")
    said = process.communicate(timeout=100)[0]
    assert process.returncode == 2 and "two ways to split a sweep" in said


def distributed(workdir, index, address):
    return start(
        workdir, "--distributed", JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2",
        JAX_PROCESS_ID=str(index),
    )  # fmt: skip


def test_processes_of_jax_distributed_run_their_parts_on_their_own_devices(tmp_path, alone):
    address = f"127.0.0.1:{free_port()}"
    for i, process in enumerate([distributed(tmp_path, i, address) for i in range(2)]):
        said = process.communicate(timeout=250)[0]
        assert process.returncode == 0, said
        assert f"slice {i}/2 of 14 trials: 7 trials" in said
    assert results(tmp_path) == alone
    for trial_id in alone:  # Every network was written by the process that trained it.
        assert rethink_jax.load_trial(tmp_path, trial_id).variables["params"]


@pytest.mark.parametrize("killed", [0, 1])
def test_processes_of_jax_distributed_wait_for_nobody(tmp_path, alone, killed):
    """Whether the others live or not, also the one to which they came: its part alone is left."""
    address = f"127.0.0.1:{free_port()}"
    both = [distributed(tmp_path, i, address) for i in range(2)]
    os.kill(worker_of(tmp_path, f"{killed}of2"), signal.SIGKILL)
    process, begun = both[1 - killed], time.monotonic()
    said = process.communicate(timeout=250)[0]
    assert process.returncode == 0, said
    assert "7 trials done" in said
    assert time.monotonic() - begun < 90, "it waited for the other one to come back"
    assert both[killed].wait() == -signal.SIGKILL
    check_the_same(start(tmp_path, f"--shard={killed}/2"), tmp_path, alone)


def test_no_processes_to_join(tmp_path):
    process = start(tmp_path, "--distributed")
    said = process.communicate(timeout=100)[0]
    assert process.returncode == 2
    assert said.startswith("error: --distributed: ") and "JAX_COORDINATOR_ADDRESS" in said


def test_no_cluster_of_ray(tmp_path):
    pytest.importorskip("ray")
    process = start(tmp_path, "--executor=ray", f"--ray_address=127.0.0.1:{free_port()}")
    said = process.communicate(timeout=200)[0]
    assert process.returncode == 2
    (line,) = [text for text in said.splitlines() if text.startswith("error: ")]
    assert "--ray_address=127.0.0.1" in line and "ray start --head" in line


def test_a_port_that_is_in_use(tmp_path):
    with socket.create_server(("", 0)) as one:
        address = f"127.0.0.1:{one.getsockname()[1]}"
        process = start(
            tmp_path, "--distributed", JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID="0",
        )  # fmt: skip
        said = process.communicate(timeout=100)[0]
    assert process.returncode == 2
    assert said.startswith(f"error: --distributed: JAX_COORDINATOR_ADDRESS is {address}")
    assert "name another port" in said and said.count("\n") == 1
