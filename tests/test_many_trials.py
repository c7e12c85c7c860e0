"""Ten thousand trials: planned and stored within ten seconds, looked at within three."""

import csv
import json
import time

import pytest
from test_shards import run

from rethink_jax import records, status, sweep
from rethink_jax.schema import nest

TRIALS = 10_000
LEVELS = tuple(0.1 * 2**-i for i in range(10))


@pytest.fixture(scope="module")
def config():
    trial = {
        "batch_size": 16,
        "data": {"name": "digits", "num_train": 64},
        "model": {"name": "mlp", "hidden": (8,)},
        "stop": {"max_epochs": 1},
    }
    axes = {"seed": tuple(range(TRIALS // 10)), "optimizer": {"learning_rate": LEVELS}}
    return {"trial": trial, "sweep": axes, "engine": {"pad_widths": "off"}}


def seconds_of(call):
    """Of the processor: what others do meanwhile is not counted."""
    begun = time.process_time()
    result = call()
    return time.process_time() - begun, result


def test_ten_thousand_trials(config, tmp_path):
    # One trial is run, so that there is a result that is like a real one.
    one = config | {"sweep": {"seed": (0,), "optimizer": {"learning_rate": LEVELS[:1]}}}
    assert run(one, tmp_path / "w") == 0
    workdir = records.Workdir(tmp_path / "w")

    def stored():
        planned = sweep.Sweep(config)
        planned.pad({})
        records.TableView(workdir, planned.planned_rows(), workdir.outcomes()).write()
        return planned

    seconds, planned = seconds_of(stored)
    assert seconds < 10
    assert len(planned.groups) == 1 and len(planned.trials) == TRIALS
    with (tmp_path / "w" / "trials.csv").open() as file:
        assert sum(1 for _ in csv.DictReader(file)) == TRIALS

    (done,) = workdir.finished().values()
    for trial in planned.trials[: TRIALS // 2]:
        workdir.clear_trial(trial.trial_id)
        own = {"trial_id": trial.trial_id, "trial": nest(dict(trial.fields))}
        path = workdir.trial_dir(trial.trial_id) / "result.json"
        path.write_text(json.dumps(done | own))
    view = status.View(tmp_path / "w")
    # At first from all results; then as while a sweep runs, when the table has most of them.
    seconds, now = seconds_of(view.read)
    assert seconds < 3
    ended = TRIALS // 2 + (done["trial_id"] not in {t.trial_id for t in planned.trials[:5000]})
    assert sum(now.counts.values()) == TRIALS
    assert now.counts["planned"] == TRIALS - ended
    seconds, again = seconds_of(view.read)
    assert seconds < 1 and again.counts == now.counts
    assert "10000 trials: " in status.text(now)
