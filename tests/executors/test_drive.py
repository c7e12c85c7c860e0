"""What is done with workers that end well, die, refuse, or are asked to stop."""

from pathlib import Path

import pytest

from rethink_jax import executors
from rethink_jax.bench import scaling
from rethink_jax.executors import Command, processes
from rethink_jax.schema import UserError


class FakeWorker:
    """Ends with a code after so many looks; asked to stop, with 75."""

    def __init__(self, code, looks):
        self.code, self.looks = code, looks
        self.asked = False

    def poll(self):
        self.looks -= 1
        return self.code if self.looks < 0 else None

    def interrupt(self):
        self.asked, self.code, self.looks = True, 75, 1


class FakeExecutor:
    """codes: of each slice, how its workers end one after another   looks: that each one takes"""

    def __init__(self, codes, places=2, looks=2):
        self.codes, self.places, self.looks = codes, places, looks
        self.started, self.workers = [], []

    def start(self, shard, place):
        running = [w for w in self.workers if w.looks >= 0]
        assert len(running) < self.places
        self.started.append((shard, place))
        code = self.codes[shard][len([s for s, _ in self.started if s == shard]) - 1]
        looks = self.looks.get(shard, 2) if isinstance(self.looks, dict) else self.looks
        self.workers.append(FakeWorker(code, looks))
        return self.workers[-1]

    def close(self):
        pass


@pytest.fixture
def drive(monkeypatch, tmp_path):
    monkeypatch.setattr(executors, "_SECONDS_BETWEEN_LOOKS", 0)
    said = []

    def run(executor, signals=(), retries=2, look=lambda: None):
        command = Command(["launch/sweep.py", "--workdir=w"], tmp_path)
        shards = list(executor.codes)
        return executors.drive(
            executor, command, shards, retries, said.append, look, list(signals)
        ), said  # fmt: skip

    return run


def test_every_slice_is_run_once_and_never_more_at_once_than_there_are_places(drive):
    executor = FakeExecutor({f"{i}/5": [0] for i in range(5)})
    assert drive(executor) == (0, [])
    assert [shard for shard, _ in executor.started] == [f"{i}/5" for i in range(5)]
    assert {place for _, place in executor.started} == {0, 1}


def test_a_worker_that_dies_is_begun_again(drive):
    executor = FakeExecutor({"0/2": [-9, 75, 0], "1/2": [0]})
    code, said = drive(executor)
    assert code == 0
    assert said == [
        "the worker of slice 0/2 ended with code -9 and is begun again",
        "the worker of slice 0/2 ended with code 75 and is begun again",
    ]


def test_one_that_always_dies_does_not_hold_up_the_others(drive, tmp_path):
    executor = FakeExecutor({"0/2": [-9] * 9, "1/2": [0]})
    code, said = drive(executor)
    assert code == 3
    assert [shard for shard, _ in executor.started].count("0/2") == 3
    assert "ended 3 times without finishing" in said[-1] and str(tmp_path) in said[-1]


def test_failed_trials_are_not_tried_again(drive):
    executor = FakeExecutor({"0/2": [3], "1/2": [0]})
    assert drive(executor) == (3, [])


def test_a_mistake_stops_all_and_is_said_once(drive, tmp_path):
    (tmp_path / "0of2.log").write_text("note\nerror: the crop is larger than the image\n")
    executor = FakeExecutor({"0/2": [2], "1/2": [0], "2/2": [0]}, looks={"1/2": 99})
    with pytest.raises(UserError, match=r"^the crop is larger than the image$"):
        drive(executor)
    assert executor.workers[1].asked
    assert len(executor.started) == 2  # The third one is not begun any more.


def test_a_signal_asks_all_to_save(drive):
    executor = FakeExecutor({"0/3": [0], "1/3": [0], "2/3": [0]}, looks=3)
    assert drive(executor, signals=[15])[0] == 75
    assert all(worker.asked for worker in executor.workers)


def test_the_command_of_a_worker_is_the_users_own():
    argv = ["sweep.py", "--config=c.py", "--executor=ray", "--shard=0/1"]
    command = Command(argv, Path("logs"))
    own = command.of("3/8")
    assert own[1:3] == ["-m", "launch.sweep"]
    # Of a flag that is given twice, the last one counts.
    assert own[3:] == [*argv[1:], "--executor=local", "--shard=3/8"]
    assert command.log("3/8") == Path("logs/3of8.log")


def test_gpus_are_shared_out(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2,5")
    assert processes.num_devices() == 3
    executor = processes.Processes(Command(["x"], Path("logs")), 2)
    assert executor._gpus == [["0", "5"], ["2"]]
    with pytest.raises(UserError, match="--workers=4, and there are 3 GPUs; take at most 3"):
        processes.Processes(Command(["x"], Path("logs")), 4)


@pytest.mark.parametrize("field", ["workers", "slices", "retries", "ray_cpus", "ray_gpus"])
def test_negative_numbers(field):
    with pytest.raises(UserError, match=f"--{field} is -1"):
        executors.How(**{field: -1})


def test_a_worker_has_a_device_for_each_of_its_own_cores(monkeypatch):
    """Not for each core of the process that begins it."""
    count = "--xla_force_host_platform_device_count"
    monkeypatch.setenv("XLA_FLAGS", f"--a=1 {count}=16 --b=2")
    assert executors.devices_of(3)["XLA_FLAGS"].split() == ["--a=1", "--b=2", f"{count}=3"]


def test_scaling_is_by_the_first_count_and_without_the_first_run(monkeypatch):
    """The first run of each executor compiles; every worker has a core of its own."""
    monkeypatch.setattr(processes, "visible_gpus", list)
    monkeypatch.setattr(processes, "available_cores", lambda: [4, 5, 6, 7])
    calls, lines = [], []

    def timed(name, count, places, gpus, workdir, environment):
        calls.append((name, count, tuple(places)))
        seconds = 100.0 if len(calls) in (1, 4) else 12.0 / count
        return {"executor": name, "workers": count, "seconds": seconds, "command_seconds": seconds}

    monkeypatch.setattr(scaling, "_timed", timed)
    rows = scaling.run(["processes", "ray"], [1, 3], {}, lines.append)
    assert calls[:3] == [
        ("processes", 1, (4,)), ("processes", 1, (4,)), ("processes", 3, (4, 5, 6))
    ]  # fmt: skip
    assert [(r["executor"], r["workers"], r["speedup"]) for r in rows] == [
        ("processes", 1, 1), ("processes", 3, 3), ("ray", 1, 1), ("ray", 3, 3)
    ]  # fmt: skip
    assert len(lines) == 1 + len(rows)
    for wrong in ([5], [0]):
        with pytest.raises(UserError, match="there are 4 cores; take 1 to 4"):
            scaling.run(["processes"], wrong, {}, lines.append)
