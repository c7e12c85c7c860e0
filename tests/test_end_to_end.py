"""The commands of the README, as a newcomer types them."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import rethink_jax
from rethink_jax import report, sweep
from rethink_jax.theory import cases

REPO = Path(__file__).parents[1]
FILES = sorted(p for p in (REPO / "configs").glob("*.py") if not p.stem.startswith("_"))
OF_THEORY = [p.stem for p in FILES if "rethink_jax.theory" in p.read_text()]
CONFIGS = [p.stem for p in FILES if p.stem not in OF_THEORY]


def command(*args):
    # As a user has it: all optimizations, devices by the command's own setup.
    env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS",)}
    done = subprocess.run(
        [sys.executable, "-m", *args],
        cwd=REPO,
        env=env,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("quickstart") / "w"
    command("launch.sweep", "--config=configs/quickstart.py", f"--workdir={workdir}")
    return workdir, command("launch.report", f"--workdir={workdir}")


def test_quickstart_shows_what_it_promises(quickstart):
    """Everything is fitted; the more random, the later; and nothing is learned of random labels."""
    workdir, _ = quickstart
    results = rethink_jax.load_results(workdir)
    frame = results.trials
    assert len(frame) == frame["trial_id"].nunique() == 42
    assert (frame["status"] == "fitted").all()
    assert (frame["final_train_accuracy"] == 1.0).all()
    labels = frame[frame["corruption.pixels"] == "none"]
    means = labels.groupby("corruption.label_prob").mean(numeric_only=True)
    assert list(means.index) == [p / 10 for p in range(11)]
    epochs, error = means["epochs_to_fit"], 1 - means["final_test_corrupted_accuracy"]
    assert epochs[1.0] > 5 * epochs[0.0]
    assert np.corrcoef(epochs.rank(), means.index)[0, 1] > 0.95
    assert error[0.0] < 0.05
    assert abs(error[1.0] - 0.9) < 0.05  # 3 x 355 guesses have a deviation of 0.009
    assert (np.diff(error) > 0).all()
    # About 0.9 of the nominal rate is realised: a redrawn label may be the true one.
    np.testing.assert_allclose(means["label_noise"], 0.9 * means.index, atol=0.02)
    random = frame[frame["corruption.pixels"].isin(("random", "gaussian"))]
    assert (1 - random["final_test_accuracy"] > 0.8).all()


def test_quickstart_report(quickstart):
    workdir, printed = quickstart
    *summary, last = printed.strip().splitlines()
    assert len(summary) == 5
    assert summary[0] == "42 of 42 trials reached 100% training accuracy."
    page = Path(last.removeprefix("report: "))
    assert page == workdir / "report" / "index.html"
    html = page.read_text()
    assert html.count("data:image/png;base64,") == 4
    assert not re.search(r"""(src|href)=['"]?(http|//)""", html), "loads nothing from elsewhere"
    assert {p.name for p in page.parent.glob("*.png")} == {
        "examples.png",
        "fig1a.png",
        "fig1b.png",
        "fig1c.png",
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_trains_in_quick_mode(name, tmp_path):
    config = importlib.import_module(f"configs.{name}").get_config("quick")
    workdir = tmp_path / "w"
    assert sweep.run(sweep.Sweep(config), workdir, ["test"]) == 0
    trials = rethink_jax.load_results(workdir).trials
    assert trials["status"].isin(("fitted", "finished")).all()
    assert (trials["epochs"] >= 1).all()


@pytest.mark.parametrize("name", OF_THEORY)
def test_every_config_of_theory_runs_in_quick_mode(name, tmp_path):
    config = importlib.import_module(f"configs.{name}").get_config("quick")
    texts = list(cases.run(config, tmp_path, ["test"]))
    found = cases.load(tmp_path)
    assert len(texts) == len(found) == len(cases.expand(config)) > 0
    assert report.build(tmp_path).page.is_file()
    # The full one is only expanded: it needs data and time.
    full = importlib.import_module(f"configs.{name}").get_config()
    assert len({case.name for case in cases.expand(full)}) >= len(found)
