"""The command that measures a workdir: a row for every network and measure, each computed once."""

import csv
import json

import jax
import numpy as np
import pytest

from rethink_jax import inputs, lanes, measures, measuring, sweep, trials
from rethink_jax.checkpoint import load_trial
from rethink_jax.data import preprocess, sources
from rethink_jax.data.corruption import corrupt_pixels, pixel_stats
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
    assert measured(workdir).seconds["margins, norms"][1] == 1
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

    monkeypatch.setitem(measures.FAMILIES["margins"], "margin_min", refuse)
    monkeypatch.setitem(
        measures.FAMILIES["margins"], "margin_mean", lambda s: s.logits_NxY.sum() / 0
    )
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


def test_a_trial_that_is_not_finished_is_a_row_until_it_is(tmp_path):
    trial = {"batch_size": 16, "data": {"name": "digits", "num_train": 32},
             "model": {"name": "mlp", "hidden": (4,)}, "stop": {"max_epochs": 1}}  # fmt: skip
    config = {"trial": trial, "sweep": {"seed": (0, 1)}, "engine": {"devices": 1, "lanes": 1}}
    assert sweep.run(sweep.Sweep(config | {"only": "seed=0"}), tmp_path, ["test"]) == 0
    first, second = (t.trial_id for t in trials.expand(config))
    measured(tmp_path, ("margins",), trial_ids=(second,))
    (row,) = rows(tmp_path)
    assert (row["trial_id"], row["status"]) == (second, "not_finished")
    assert row["value"] == "" and "run the sweep to its end" in row["reason"]

    measured(tmp_path, ("margins",))
    by_trial = {r["trial_id"]: r["status"] for r in rows(tmp_path)}
    assert by_trial == {first: "ok", second: "not_finished"}

    assert sweep.run(sweep.Sweep(config), tmp_path, ["test"]) == 0
    measured(tmp_path, ("margins",))
    assert {r["status"] for r in rows(tmp_path)} == {"ok"}
    assert len(rows(tmp_path)) == 2 * len(measures.FAMILIES["margins"])


def test_networks_of_several_image_versions_are_measured_on_their_own(tmp_path, monkeypatch):
    """Two of clean images on shared ones, three others together, each on its own images."""
    trial = {"batch_size": 16, "data": {"name": "digits", "num_train": 32},
             "model": {"name": "mlp", "hidden": (4,)}, "stop": {"max_epochs": 1}}  # fmt: skip
    union = {
        "clean": {"corruption": {"label_prob": (0.0, 1.0)}},
        "gaussian": {"corruption": {"pixels": ("gaussian",)}, "seed": (0, 1)},
        "shuffled": {"corruption": {"pixels": ("shuffled",)}},
    }
    config = {"trial": trial, "sweep": {"union": union}, "engine": {"devices": 1, "lanes": 2}}
    assert sweep.run(sweep.Sweep(config), tmp_path, ["test"]) == 0
    measured(tmp_path, ("margin_mean", "log_product_frobenius"))
    found = {(r["trial_id"], r["measure"]): float(r["value"]) for r in rows(tmp_path)}
    for trial in trials.expand(config):
        dataset = inputs.trial_dataset(sources.load("digits", None, False), dict(trial.static))
        stats = pixel_stats(dataset.train_images)
        made = corrupt_pixels(dataset.train_images, inputs.pixel_spec(trial), stats)
        images = preprocess.NORMALIZE[trial["preprocess.normalize"]](made.pixels() / 255)
        loaded = load_trial(tmp_path, trial.trial_id)
        labels = inputs.trial_labels(trial, dataset)[0]
        alone = measures.compute(
            loaded.model, loaded.variables, images, labels, names=("margin_mean",)
        )
        number = found[trial.trial_id, "margin_mean"]
        assert number == pytest.approx(alone["margin_mean"], rel=1e-4, abs=1e-5)


def test_random_numbers_are_those_of_the_trials_seed(workdir):
    """A measure that draws gives what `measures.compute` gives with the trial's seed."""
    name = "hessian_trace"
    trial_id = next(i for i, r in results(workdir).items() if r["status"] != "diverged")
    measured(workdir, (name,), trial_ids=(trial_id,))
    (row,) = [r for r in rows(workdir) if r["measure"] == name]
    trial = trials.resolve(results(workdir)[trial_id]["trial"])
    dataset = inputs.trial_dataset(sources.load("digits", None, False), dict(trial.static))
    images = preprocess.NORMALIZE["per_image"](dataset.train_images / np.float32(255))
    loaded, labels = load_trial(workdir, trial_id), inputs.trial_labels(trial, dataset)[0]
    same, other = (
        measures.compute(
            loaded.model, loaded.variables, images, labels, names=(name,), seed=trial["seed"] + more
        )[name]
        for more in (0, 1)
    )
    assert float(row["value"]) == pytest.approx(same, rel=1e-4)
    assert abs(float(row["value"]) - other) > 1e-3 * abs(other)


def test_seconds_of_each_measure(workdir):
    work = measuring.Measuring(workdir, ("margins",))
    found = list(work.seconds_each())
    assert [name for name, *_ in found] == list(measures.FAMILIES["margins"])
    assert all(seconds > 0 for *_, seconds in found)


def test_less_memory_than_asked_for_means_fewer_lanes(workdir, monkeypatch):
    (workdir / "measures.csv").unlink(missing_ok=True)
    measured(workdir)
    expected = sorted((workdir / "measures.csv").read_text().splitlines())
    (workdir / "measures.csv").unlink()
    asked = []

    def program(self, batch, names, real=measuring.Measuring._program):
        asked.append(batch.layout.lanes)
        if batch.layout.lanes > 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return real(self, batch, names)

    monkeypatch.setattr(measuring.Measuring, "_program", program)
    measured(workdir)
    assert 2 in asked and 1 in asked
    assert sorted((workdir / "measures.csv").read_text().splitlines()) == expected


def test_a_name_means_one_thing():
    names = [*measures.GROUPS, *measures.FAMILIES, *measures.MEASURES]
    assert len(names) == len(set(names))
    assert measures.select(("paper",))["sharpness"] == ("sharpness_zeta",)
    assert measures.select(("all",)) == {f: tuple(own) for f, own in measures.FAMILIES.items()}
    assert set(measures.select(("one_pass", "hessian_top"))) == {
        *measures.GROUPS["one_pass"], "curvature",
    }  # fmt: skip
