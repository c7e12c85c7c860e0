"""The tables of complexity and stability: what they say of a workdir, and when there are none."""

import json
import re

import numpy as np
import pytest
from test_report import made_workdir

from rethink_jax import records, report, sweep, train, trials
from rethink_jax.report import classical
from rethink_jax.schema import UserError
from rethink_jax.theory import bounds, stability

DRAWS = (0, 1, 2)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Linear networks on 12 and 64 images of two digits (64 pixels); two replacements."""
    path = tmp_path_factory.mktemp("classical") / "w"
    config = {
        "trial": {
            "batch_size": 4, "data": {"name": "digits", "classes": (1, 7)},
            "model": {"name": "mlp", "hidden": ()},
            "optimizer": {"learning_rate": 0.03, "lr_decay": 1.0},
            "stop": {"max_epochs": 60, "train_accuracy": 1.0},
        },
        "sweep": {
            "data": {"num_train": (12, 64)},
            "union": {
                "draws": {"corruption": {"label_prob": (1.0,), "seed": DRAWS}},
                "true": {"seed": (0, 1)},
                "replaced": {"data": {"replaced": (2,)}},
            },
        },
        "evaluate": {"every_epochs": 60},
        "engine": {"devices": 1, "lanes": 1},
    }  # fmt: skip
    assert sweep.run(sweep.Sweep(config), path, ["test"]) == 0
    return path


@pytest.fixture(scope="module")
def results(workdir):
    return records.load_results(workdir)


@pytest.fixture(scope="module")
def found(workdir, results):
    return classical.networks(workdir, results.trials, results)


def test_a_linear_network_shatters_fewer_images_than_it_has_pixels(found):
    """12 points in general position in 64 dimensions: every labelling is linear, complexity 1."""
    few, many = found
    assert (few.name, few.num_images, few.num_params) == ("linear", 12, 130)
    assert few.complexity[:4] == (3, 1.0, 1.0, 1.0)
    assert few.complexity.at_least == pytest.approx(1 - np.sqrt(2 * np.log(20) / 36))
    assert many.num_images == 64


def test_complexity_is_of_the_best_epoch_of_each_draw(found, results):
    rows = results.trials[
        (results.trials["corruption.label_prob"] == 1) & (results.trials["data.num_train"] == 64)
    ]
    best = results.curves.groupby("trial_id")["train_accuracy"].max()
    expected = bounds.rademacher([2 * best[i] - 1 for i in rows["trial_id"]], 64)
    assert found[1].complexity == pytest.approx(expected)
    assert found[1].vc_dim == 65


def test_errors_are_with_true_labels(found, results):
    true = results.trials[
        (results.trials["corruption.label_prob"] == 0)
        & (results.trials["data.num_train"] == 12)
        & results.trials["data.replaced"].isna()
    ]
    assert len(true) == 2
    assert found[0].train_error == pytest.approx(1 - true["final_train_accuracy"].mean())
    assert found[0].test_error == pytest.approx(1 - true["final_test_accuracy"].mean())


def test_the_report_has_tables_and_a_figure(workdir, found):
    made = report.build(workdir)
    page = made.page.read_text()
    for heading in ("Classical complexity, measured", "Uniform stability, measured"):
        assert page.count(f"<h2>{heading}</h2>") == 1
    text = (workdir / "report" / "complexity.md").read_text()
    (row,) = [line for line in text.splitlines() if line.startswith("| linear | 12 |")]
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[:7] == ["linear", "12", "130", "65", "3", "1.000", "1.000 to 1.000"]
    by_rademacher = found[0].train_error + found[0].complexity.at_least
    by_rademacher += 3 * np.sqrt(np.log(40) / 24)
    assert cells[10] == f"{by_rademacher:.3f} (vacuous)"
    assert (workdir / "report" / "classical.png").stat().st_size > 10_000
    text = (workdir / "report" / "stability.md").read_text()
    assert len(re.findall(r"^\| linear \| true labels \| (12|64) \| 1 \|", text, re.M)) == 6
    assert any("Rademacher complexity reaches 1.000" in line for line in made.summary)


def test_without_the_images_the_report_says_so(workdir, results, monkeypatch):
    def refuse(*_):
        raise UserError("no such files")

    monkeypatch.setattr(stability.measuring, "load_data", refuse)
    table = classical.tables(workdir, results.trials, results)[1]
    assert table.rows == [] and table.notes == ["Not measured: no such files"]


def test_other_sweeps_have_no_such_tables(tmp_path):
    nested = [
        {
            "data": {"name": "cifar10", "num_train": 100},
            "corruption": {"label_prob": 1.0, "seed": s},
        }
        for s in (0, 1)
    ]
    made_workdir(tmp_path, nested, [{"fit": 3, "loss": 1.0, "final": {}}] * 2)
    results = records.load_results(tmp_path)
    assert classical.tables(tmp_path, results.trials, results) == []
    assert classical.figure([]) is None


def test_names_of_networks_that_have_other_fields():
    """Of an MLP, a "sequential" network has no width, and the other way round."""
    pooled = {"name": "sequential", "layers": ("avg_pool 4", "flatten")}
    nested = [
        {"model": {"name": "mlp", "hidden": (8,)}, "corruption": {"label_prob": 1.0}},
        {"model": pooled},
        {"model": pooled, "optimizer": {"weight_decay": 1.0}},
    ]
    fields = [dict(trials.resolve(n).fields) for n in nested]
    every = [
        f for f in dict.fromkeys(k for own in fields for k in own) if f not in classical._DRAWN
    ]
    assert classical._names(fields, every) == [
        "MLP 8", "linear, avg_pool 4, weight_decay 0.0", "linear, avg_pool 4, weight_decay 1.0",
    ]  # fmt: skip


def test_names_of_networks(tmp_path):
    """What the same network differs in is said; a network that no bound covers says why."""
    curve = np.full((2, len(train.CURVE)), 0.75)
    nested = [
        {
            "data": {"name": "cifar10", "classes": (0, 1), "num_train": 100},
            "corruption": {"label_prob": 1.0, "seed": seed},
            "preprocess": {"crop_size": 28},
            "model": model,
            "optimizer": {"weight_decay": decay},
        }
        for model in ({"name": "mlp", "hidden": (8, 4)}, {"name": "alexnet"})
        for decay in (0.0, 0.5)
        for seed in (0, 1)
    ]
    made_workdir(tmp_path, nested, [{"fit": 3, "loss": 1.0, "final": {}, "curve": curve}] * 8)
    for path in tmp_path.glob("trials/*/result.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"image_shape": [32, 32, 3]}))
    results = records.load_results(tmp_path)
    (table,) = classical.tables(tmp_path, results.trials, results)
    assert [row[0] for row in table.rows] == [
        "MLP 8-4, weight_decay 0.0", "MLP 8-4, weight_decay 0.5",
        "alexnet, weight_decay 0.0", "alexnet, weight_decay 0.5",
    ]  # fmt: skip
    assert {row[5] for row in table.rows} == {"0.500"}
    assert {row[8] for row in table.rows} == {"–"}  # No trials with true labels.
    assert [row[3] == "–" for row in table.rows] == [False, False, True, True]
    assert any("'alexnet' has others" in note for note in table.notes)
