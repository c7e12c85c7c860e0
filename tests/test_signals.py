"""Ctrl-C and SIGTERM: one line and exit code 75, whenever they come, and nothing stored is lost."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import commands
import pytest

from rethink_jax import cli, signals, sweep

ROOT = Path(__file__).parents[1]
BOTH = (signal.SIGINT, signal.SIGTERM)
LINE = f"{signals.STOPPED}\n"


def process(command, *args, path=None):
    """How a new process ends: exit code, stdout and stderr."""
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    if path:
        env["PYTHONPATH"] = str(path)
    ended = subprocess.run(
        [sys.executable, "-m", f"launch.{command}", *map(str, args)],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    return commands.Outcome(ended.returncode, ended.stdout, ended.stderr)


@pytest.mark.parametrize("number", BOTH)
@pytest.mark.parametrize("command", ["sweep", "measure", "report", "theory"])
def test_while_imports_run(command, number, tmp_path):
    """The first module that is not the package's own sends the signal, and never ends."""
    (tmp_path / "absl").mkdir()
    (tmp_path / "absl" / "__init__.py").write_text(
        f"import os, time\nos.kill(os.getpid(), {int(number)})\ntime.sleep(1000)"
    )
    assert process(command, path=tmp_path) == (cli.EXIT_INTERRUPTED, "", LINE)


@pytest.mark.parametrize(
    ("command", "number"), [("report", signal.SIGINT), ("theory", signal.SIGTERM)]
)
def test_where_an_exception_would_be_lost(command, number, tmp_path):
    """As in jax's callbacks of the garbage collection: what is raised there is not heard of."""
    (tmp_path / "own.py").write_text(
        "import gc, os, time\n"
        f"def callback(*_):\n    os.kill(os.getpid(), {int(number)})\n    time.sleep(0.5)\n"
        "gc.callbacks.append(callback)\ngc.collect()\ntime.sleep(1000)"
    )
    outcome = process(command, f"--own={tmp_path}/own.py", "--workdir=x")
    assert outcome == (cli.EXIT_INTERRUPTED, "", LINE)


# In compiled code, and in another thread: the main thread waits for it, and for nothing else.
OWN = """
import os, signal, time
import jax, jax.numpy as jnp
from rethink_jax import measures

def told(subject):
    def wait(_):
        os.kill(os.getpid(), signal.{name})
        time.sleep(1000)
    return jax.pure_callback(wait, jax.ShapeDtypeStruct((), jnp.float32), subject.loss,
                             vmap_method="sequential")

measures.FAMILIES["mine"] = {{"told": told}}
"""


@pytest.mark.parametrize("number", BOTH)
def test_measuring_keeps_what_is_measured(number, tmp_path):
    trial = {"batch_size": 16, "data": {"name": "digits", "num_train": 32},
             "model": {"name": "mlp", "hidden": (4,)}, "stop": {"max_epochs": 1}}  # fmt: skip
    config = {"trial": trial, "sweep": {"seed": (0, 1)}, "engine": {"devices": 1, "lanes": 1}}
    assert sweep.run(sweep.Sweep(config), tmp_path / "w", ["test"]) == 0
    (tmp_path / "own.py").write_text(OWN.format(name=number.name))
    args = (f"--workdir={tmp_path}/w", "--measures=margin_min,mine")
    outcome = process("measure", f"--own={tmp_path}/own.py", *args)
    assert outcome == (cli.EXIT_INTERRUPTED, "", LINE)
    with open(tmp_path / "w" / "measures.csv", newline="") as file:
        found = [(r["measure"], r["status"]) for r in csv.DictReader(file)]
    assert found == [("margin_min", "ok")] * 2
    # It goes on there.
    (tmp_path / "own.py").write_text(
        "from rethink_jax import measures\nmeasures.FAMILIES['mine'] = {'told': lambda s: s.loss}"
    )
    with pytest.MonkeyPatch.context() as patch:
        from rethink_jax import measures

        patch.setitem(measures.FAMILIES, "mine", {})  # Taken out again.
        outcome = commands.run("measure", f"--own={tmp_path}/own.py", *args)
    assert outcome.code == cli.EXIT_OK and "margins" not in outcome.out


@pytest.fixture
def ended(monkeypatch):
    """What would have ended the process: a list that is told of it."""
    calls = []
    monkeypatch.setattr(signals, "end", lambda *args: calls.append(args))
    return calls


def test_the_second_one_ends_what_is_saving(ended):
    before = {s: signal.getsignal(s) for s in BOTH}
    with signals.ending_at_once(), signals.collected() as received:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)  # For the thread, which is not to hear of it.
        assert (received, ended) == ([signal.SIGTERM], [])
        os.kill(os.getpid(), signal.SIGINT)
        # Twice: by the main thread, and by the one that does not wait for it.
        deadline = time.monotonic() + 30
        while len(ended) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert received == [signal.SIGTERM] and len(ended) == 2
    assert {s: signal.getsignal(s) for s in BOTH} == before
    # The thread that reads them does not stay, and nothing is written to a closed pipe.
    assert signal.set_wakeup_fd(-1) == -1


def test_a_command_leaves_the_process_as_it_was(tmp_path):
    before = {s: signal.getsignal(s) for s in BOTH}
    assert commands.run("report", f"--workdir={tmp_path}").code == cli.EXIT_USER
    assert {s: signal.getsignal(s) for s in BOTH} == before
    assert signal.set_wakeup_fd(-1) == -1
