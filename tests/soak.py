"""Kills a sweep at random instants, again and again, and compares what comes out in the end.

PYTHONPATH=. python tests/soak.py --kills=100
PYTHONPATH=. python tests/soak.py --kills=100 --change     # of processes and lanes, after each kill

A sweep is run once without interruption. Then the same command is begun and killed with kill -9
after a random time; after every kill all files are read, and when it has come to its end, every
number, curve and weight is compared with the uninterrupted one, bit for bit, and it begins anew.
"""

import argparse
import csv
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

import rethink_jax

ROOT = Path(__file__).parents[1]
COMMAND = [
    sys.executable, "-m", "launch.sweep", "--config=configs/quickstart.py",
    "--config.sweep.seed=(0,)", "--config.trial.stop.max_epochs=40",
    "--config.engine.tuning=off", "--config.checkpoint.every_seconds=0.5",
]  # fmt: skip


def start(workdir, lanes=4, parts=1):
    """A process for each part."""
    command = [*COMMAND, f"--workdir={workdir}", f"--config.engine.lanes={lanes}"]
    return [
        subprocess.Popen(
            [*command, f"--shard={i}/{parts}"],
            cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for i in range(parts)
    ]  # fmt: skip


def finish(processes, deadline=None):
    """Waits until all have ended, well; False if that was not before the deadline."""
    for process in processes:
        try:
            left = None if deadline is None else max(deadline - time.monotonic(), 0)
            assert process.wait(left) == 0, process.stderr.read()
        except subprocess.TimeoutExpired:
            return False
    return True


def check(workdir):
    """What must hold at any instant; returns how many trials are finished."""
    results = [json.loads(path.read_text()) for path in workdir.glob("trials/*/result.json")]
    for result in results:
        folder = workdir / "trials" / result["trial_id"]
        with (folder / "curve.csv").open() as file:
            assert len(list(csv.reader(file))) == result["epochs"] + 1
        if result["status"] != "diverged":
            assert (folder / "network").is_dir()
    table = workdir / "trials.csv"
    if table.is_file():
        with table.open() as file:
            ids = [row["trial_id"] for row in csv.DictReader(file)]
        assert len(ids) == len(set(ids)) == 14, ids
    return len(results)


def compare(workdir, whole):
    """Every number, curve and weight."""
    names = {path.parent.name for path in whole.glob("trials/*/result.json")}
    assert names == {path.parent.name for path in workdir.glob("trials/*/result.json")}
    for name in sorted(names):
        ours, theirs = (folder / "trials" / name for folder in (workdir, whole))
        for file in ("result.json", "curve.csv"):
            assert (ours / file).read_text() == (theirs / file).read_text(), (name, file)
        left, right = (rethink_jax.load_trial(f, name).variables for f in (workdir, whole))
        for part in left["params"]:
            for leaf in left["params"][part]:
                np.testing.assert_array_equal(
                    left["params"][part][leaf], right["params"][part][leaf]
                )


def phase(workdir):
    """What a killed command had come to, as far as its files tell."""
    claims = sorted(workdir.glob("claims/*.json"))
    if not claims:
        return "starting"
    checkpoints = any(p.is_dir() for p in workdir.glob("groups/*/*"))
    return "training, with a checkpoint" if checkpoints else "before the first checkpoint"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--change", action="store_true")
    given = parser.parse_args()
    rng = random.Random(given.seed)
    folder = Path(tempfile.mkdtemp(prefix="soak"))
    whole, workdir = folder / "whole", folder / "killed"
    finish(start(whole))  # Fills the compilation cache, too.
    shutil.rmtree(whole)
    begun = time.monotonic()
    finish(start(whole))
    length = time.monotonic() - begun
    print(f"without interruption: {check(whole)} trials in {length:.1f} s", flush=True)
    kills, ends, phases, begun = 0, 0, Counter(), time.monotonic()
    while kills < given.kills:
        lanes, parts = (rng.choice((2, 3, 4)), rng.choice((1, 2))) if given.change else (4, 1)
        processes = start(workdir, lanes, parts)
        if not finish(processes, time.monotonic() + rng.uniform(0, length * parts)):
            for process in processes:
                process.send_signal(signal.SIGKILL)
                process.wait()
            kills += 1
            phases[phase(workdir)] += 1
            done = check(workdir) if workdir.is_dir() else 0
            print(f"kill {kills}: {done} trials finished", flush=True)
            continue
        compare(workdir, whole)
        shutil.rmtree(workdir)
        ends += 1
    finish(start(workdir))
    compare(workdir, whole)
    told = ", ".join(f"{count} {name}" for name, count in phases.items())
    print(
        f"{kills} kills in {time.monotonic() - begun:.0f} s ({told}); {ends + 1} sweeps came to "
        "their end, each with the numbers, curves and weights of the uninterrupted one"
    )
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
