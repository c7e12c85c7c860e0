"""The command that measures a workdir: a row for every network and measure, each computed once."""

import csv
import json

import numpy as np
import pytest

from rethink_jax import inputs, lanes, measures, measuring, sweep, trials
from rethink_jax.checkpoint import load_trial
from rethink_jax.data import preprocess, sources
from rethink_jax.schema import UserError

NAMES = ("margin_min", "margin_mean", "log_product_frobenius")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Three trials of one network and one of another, of which one has diverged."""
    path = tmp_path_factory.mktemp("measured") / "w"
    trial = {
        "batch_size": 16, "data": {"name": "digits", "num_train": 64},
        "model": {"name": "mlp", "hidden": (8,)},
        "optimizer": {"learning_rate": 0.1, "lr_decay": 1.0}, "stop": {"max_epochs": 2},
    }  # fmt: skip
    union = {
        "labels": {"corruption": {"label_prob": (0.0, 1.0)}},
        "wild": {"optimizer": {"learning_rate": (1e30,)}},
        "wide": {"model": {"hidden": ((12,),)}},
    }
    config = {"trial": trial, "sweep": {"union": union}, "engine": {"devices": 1, "lanes": 2}}
    assert sweep.run(sweep.Sweep(config), path, ["test"]) == 0
    return path


def rows(workdir):
    with open(workdir / "measures.csv", newline="") as file:
        return list(csv.DictReader(file))


def measured(workdir, names=NAMES, **kwargs):
    work = measuring.Measuring(workdir, names, **kwargs)
    work.run()
    return work


def results(workdir):
    found = [json.loads(p.read_text()) for p in workdir.glob("trials/*/result.json")]
    return {r["trial_id"]: r for r in found}


def test_every_network_has_a_row_of_every_measure_and_the_number_of_one_alone(workdir):
    measured(workdir)
    found = {(r["trial_id"], r["measure"]): r for r in rows(workdir)}
    assert len(found) == len(rows(workdir))
    for trial_id, result in results(workdir).items():
        if result["status"] == "diverged":
            assert found[trial_id, "all"]["status"] == "no_network"
            continue
        trial = trials.resolve(result["trial"])
        dataset = inputs.trial_dataset(sources.load("digits", None, False), dict(trial.static))
        images = preprocess.NORMALIZE[trial["preprocess.normalize"]](
            dataset.train_images / np.float32(255)
        )
        loaded = load_trial(workdir, trial_id)
        labels = inputs.trial_labels(trial, dataset)[0]
        alone = measures.compute(
            loaded.model, loaded.variables, images, labels, loaded.initial_variables, NAMES
        )
        for name in NAMES:
            row = found[trial_id, name]
            assert row["status"] == "ok"
            assert float(row["value"]) == pytest.approx(alone[name], rel=1e-4, abs=1e-5)


def test_what_is_there_is_not_computed_again(workdir, monkeypatch):
    measured(workdir)
    before = (workdir / "measures.csv").read_text()
    assert measured(workdir).seconds == {}
    assert (workdir / "measures.csv").read_text() == before
    # What is missing is, and nothing else: as after a kill.
    lines = before.splitlines(keepends=True)
    gone = next(i for i, line in enumerate(lines) if "margin_mean" in line)
    (workdir / "measures.csv").write_text("".join(lines[:gone] + lines[gone + 1 :]))
    assert measured(workdir).seconds["margins"][1] == 1
    assert sorted((workdir / "measures.csv").read_text().splitlines()) == sorted(
        before.splitlines()
    )


def test_lanes_change_no_number(workdir, monkeypatch):
    measured(workdir)
    expected = {(r["trial_id"], r["measure"]): r["value"] for r in rows(workdir)}
    (workdir / "measures.csv").unlink()
    choose = lanes.choose_layout
    monkeypatch.setattr(
        lanes,
        "choose_layout",
        lambda s, n: choose(s | {"engine.devices": 2, "engine.batching": "vmap"}, n),
    )
    measured(workdir)
    for row in rows(workdir):
        if row["value"]:
            value = expected[row["trial_id"], row["measure"]]
            assert float(row["value"]) == pytest.approx(float(value), rel=1e-4, abs=1e-5)


def test_what_cannot_be_computed_is_a_row_with_its_reason(workdir, monkeypatch):
    def refuse(subject):
        raise UserError("no such thing for this network")

    monkeypatch.setitem(measures.MEASURES, "margin_min", refuse)
    monkeypatch.setitem(measures.MEASURES, "margin_mean", lambda s: s.logits_NxY.sum() / 0)
    (workdir / "measures.csv").unlink(missing_ok=True)
    measured(workdir, ("margins",))
    by_name = {r["measure"]: r for r in rows(workdir)}
    assert by_name["margin_min"]["status"] == "refused"
    assert by_name["margin_min"]["reason"] == "no such thing for this network"
    assert by_name["margin_mean"]["status"] == "not_finite"
    assert by_name["margin_5_literal"]["status"] == "ok"
    (workdir / "measures.csv").unlink()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"names": ("margin_mim",)}, "did you mean 'margin_min'"),
        ({"trial_ids": ("abc",)}, "has no trial 'abc'"),
    ],
)
def test_mistakes_are_one_line(workdir, kwargs, message):
    with pytest.raises(UserError, match=message):
        measuring.Measuring(workdir, **kwargs)


def test_a_folder_that_is_no_workdir(tmp_path):
    with pytest.raises(UserError, match="is not a workdir"):
        measuring.Measuring(tmp_path)
