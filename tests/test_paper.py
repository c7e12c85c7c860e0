"""The published numbers are the paper's; a trial is put beside those of its own experiment only."""

import json
from pathlib import Path

import numpy as np
import pytest

from rethink_jax import paper, trials
from rethink_jax.paper import Cell

NETWORKS = {
    "inception": {"name": "inception"},
    "inception without batch norm": {"name": "inception", "batch_norm": False},
    "alexnet": {"name": "alexnet"},
    "mlp 3x512": {"name": "mlp", "hidden": (512, 512, 512)},
    "mlp 1x512": {"name": "mlp", "hidden": (512,)},
}


def trial_of(cell, **changes):
    """The fields of a trial that is what a cell of Table 1 or Table 4 says, with some changed."""
    nested = {
        "data": {"name": "cifar10"},
        "model": NETWORKS[cell.network],
        "preprocess": {"crop_size": 28},
        "corruption": {"label_prob": float(cell.labels == "random")},
    }
    on = {t for t, f in zip(paper.TABLES[cell.table].factors, cell.factors, strict=True)
          if f == "yes"} | set(cell.factors)  # fmt: skip
    if on & {"random crop", "random cropping"}:
        nested["preprocess"]["random_crop"] = True
    if "augmentation" in on:
        nested["preprocess"] |= {"random_flip": True, "max_rotation": 25.0}
    if "weight decay" in on:
        nested["optimizer"] = {"weight_decay": 0.0005}
    return dict(trials.resolve(nested).fields) | changes


CIFAR_CELLS = [c for name in ("Table 1", "Table 4") for c in paper.TABLES[name].rows]
PLAIN = Cell("Table 1", "inception", "true", ("no", "no"))


@pytest.mark.parametrize("cell", CIFAR_CELLS, ids=str)
def test_every_row_on_cifar10_is_found_from_a_trial(cell):
    assert paper.cell_of(trial_of(cell)) == cell
    assert paper.cell_of(trial_of(cell, seed=5, **{"optimizer.lr_decay": 0.5})) == cell


def test_tables_are_whole():
    """19 rows in Table 1, five of them of random labels; 7 and a quoted one in Table 2; 6 in 4."""
    rows = {name: list(table.rows) for name, table in paper.TABLES.items()}
    assert {name: len(r) for name, r in rows.items()} == {"Table 1": 19, "Table 2": 8, "Table 4": 6}
    assert sum(c.labels == "random" for c in rows["Table 1"]) == 5
    assert {c.network for c in rows["Table 1"] if c.labels == "random"} == set(NETWORKS)
    numbers = [n for t in paper.TABLES.values() for row in t.rows.values() for n in row.values()]
    assert {n.certainty for n in numbers} == {"printed"}
    assert len({n.row for n in numbers}) == 33, "each row in words of its own"
    assert all(n.value == paper.FAILED_TO_CONVERGE or 0 <= n.value <= 1 for n in numbers)


@pytest.mark.parametrize(
    ("cell", "measure", "value"),
    [
        (PLAIN, "test_accuracy", 0.8575),
        (Cell("Table 1", "inception", "true", ("yes", "no")), "test_accuracy", 0.8931),
        (Cell("Table 1", "inception", "random", ("no", "no")), "test_accuracy", 0.0978),
        (Cell("Table 1", "alexnet", "true", ("yes", "yes")), "train_accuracy", 0.999),
        (Cell("Table 1", "mlp 1x512", "random", ("no", "no")), "train_accuracy", 0.9934),
        (Cell("Table 2", "inception v3", "true", ("no", "no", "no")), "test_accuracy", 0.598),
        (Cell("Table 2", "inception v3", "true", ("no", "no", "no")), "best_test_accuracy", 0.6316),
        (Cell("Table 2", "inception v3", "random", ("no", "no", "no")), "test_accuracy", 0.0011),
        (Cell("Table 4", "mlp 1x512", "random", ("weight decay",)), "train_accuracy", 0.9921),
        (Cell("Table 4", "alexnet", "random", ("weight decay",)), "train_accuracy",
         "failed to converge"),
    ],
    ids=str,
)  # fmt: skip
def test_numbers(cell, measure, value):
    assert paper.published(cell)[measure].value == value


def test_what_is_inferred_is_not_given_as_printed():
    cell = Cell("Table 2", "inception v3", "true", ("no", "no", "yes"))
    number = paper.published(cell)["train_accuracy"]
    assert number.value == 0.906
    assert "Inferred: a misprint of 99.60" in number.note
    assert sum(bool(n.note) for r in paper.TABLES["Table 2"].rows.values() for n in r.values()) == 1


# What a trial may have otherwise and still be the same row: how it was trained, and what the paper
# leaves open. Every other field belongs to a row, or to none.
# (A confusion set, and balanced classes, go with a subset, which is no row.)
FREE = ("seed", "batch_size", "matmul_precision", "compute_dtype", "data.balanced",
        "data.num_confusion", "data.seed", "data.image_size", "corruption.pixel_fraction",
        "corruption.pixel_strength", "corruption.seed")  # fmt: skip
OTHERWISE = {
    "data.name": "mnist",
    "data.num_train": 1000,
    "data.classes": "0,1",
    "data.replaced": 3,
    "corruption.label_prob": 0.5,
    "corruption.pixels": "gaussian",
    "preprocess.crop_size": 24,
    "preprocess.random_flip": True,
    "preprocess.max_rotation": 25.0,
    "preprocess.normalize": "symmetric",
    "regularizer.dropout": 0.5,
    "regularizer.input_dropout": 0.2,
    "regularizer.label_smoothing": 0.1,
}


@pytest.mark.parametrize("cell", [PLAIN, CIFAR_CELLS[4], CIFAR_CELLS[18]], ids=str)
@pytest.mark.parametrize("name", OTHERWISE)
def test_other_experiments_are_no_cell(name, cell):
    assert paper.cell_of(trial_of(cell, **{name: OTHERWISE[name]})) is None


def test_every_field_is_free_or_decides():
    on_rows = {"preprocess.random_crop", "optimizer.weight_decay", "model.name"}
    known = {*FREE, *OTHERWISE, *on_rows, "corruption.labels"}
    free = ("optimizer.", "stop.")
    new = {f for f in trials.FIELDS if f not in known and not f.startswith(free)}
    assert not new, "does paper.cell_of have to look at it? Then also here, in OTHERWISE"


def test_combinations_that_no_table_has_are_no_cell():
    crop = {"preprocess.random_crop": True}
    mlp, random = trial_of(CIFAR_CELLS[18]), trial_of(CIFAR_CELLS[4])
    assert paper.cell_of(mlp | crop) is None  # No MLP was trained on random crops.
    assert paper.cell_of(random | crop).table == "Table 4"
    assert paper.cell_of(random | crop | {"optimizer.weight_decay": 0.1}) is None
    turned = random | {"preprocess.random_flip": True}
    assert paper.cell_of(turned | {"preprocess.max_rotation": 25.0}).factors == ("augmentation",)
    assert paper.cell_of(turned | {"preprocess.max_rotation": 10.0}) is None
    assert paper.cell_of(trial_of(PLAIN, **{"model.name": "mlp", "model.hidden": [64]})) is None
    assert paper.cell_of(random | {"corruption.labels": "other"}) is None
    assert paper.cell_of(trial_of(PLAIN, **{"corruption.labels": "other"})) == PLAIN


def test_images_corrupted_at_strength_zero_are_clean():
    assert paper.cell_of(trial_of(PLAIN, **{"corruption.pixels": "random"})) is None
    zero = {"corruption.pixels": "random", "corruption.pixel_strength": 0.0}
    assert paper.cell_of(trial_of(PLAIN, **zero)) == PLAIN


def test_rows_of_results_may_hold_nan_for_none():
    nan = float("nan")
    missing = {"data.num_train": nan, "data.image_size": nan, "model.hidden": nan}
    assert paper.cell_of(trial_of(PLAIN, **missing)) == PLAIN
    mlp = trial_of(CIFAR_CELLS[18], **{"model.hidden": [512], "model.batch_norm": nan})
    assert paper.cell_of(mlp) == CIFAR_CELLS[18]


def imagenet(cell):
    """A trial of a row of Table 2."""
    augmentation, dropout, decay = (f == "yes" for f in cell.factors)
    return trial_of(PLAIN) | {
        "data.name": "folder:/imagenet",
        "model.name": "inception_v3",
        "preprocess.crop_size": 299,
        "corruption.label_prob": float(cell.labels == "random"),
        "preprocess.random_crop": augmentation,
        "preprocess.random_flip": augmentation,
        "regularizer.dropout": 0.2 * dropout,
        "optimizer.weight_decay": 4e-5 * decay,
    }


@pytest.mark.parametrize("cell", paper.TABLES["Table 2"].rows, ids=str)
def test_every_row_on_imagenet_is_found_from_a_trial(cell):
    if cell.network == "alexnet 2012":
        pytest.skip("quoted by the paper from elsewhere")
    trial = imagenet(cell)
    assert paper.cell_of(trial, 1000) == cell
    assert paper.cell_of(trial, 10) is paper.cell_of(trial) is None
    assert paper.cell_of(trial | {"data.num_train": 5000}, 1000) is None
    half = {"preprocess.random_crop": not trial["preprocess.random_crop"]}
    assert paper.cell_of(trial | half, 1000) is None
    assert paper.cell_of(trial | {"regularizer.input_dropout": 0.1}, 1000) is None
    smooth = trial | {"regularizer.label_smoothing": 0.1}
    assert paper.cell_of(smooth, 1000) == cell
    assert paper.departures(smooth, cell) == ("label_smoothing 0.1 (paper: not stated)",)
    assert paper.departures(trial, cell) == ()
    assert paper.departures(trial | {"preprocess.crop_size": 64}, cell) == (
        "images of 64 pixels (paper: 299)",
    )


def test_departures_from_what_the_paper_states():
    stated = {"optimizer.learning_rate": 0.1}
    assert paper.departures(trial_of(PLAIN, **stated), PLAIN) == ()
    assert paper.departures(trial_of(PLAIN), PLAIN) == ("learning_rate 0.01 (paper: 0.1)",)
    assert paper.departures(trial_of(CIFAR_CELLS[18]), CIFAR_CELLS[18]) == ()
    crop = Cell("Table 4", "inception", "random", ("random cropping",))
    assert paper.departures(trial_of(crop, **stated), crop) == ("lr_decay 0.95 (paper: 0.999)",)


def test_curves_are_whole():
    raw = json.loads((Path(paper.__file__).parent / "paper_curves.json").read_text())
    for network in raw["fig1b"]:
        ratios, errors = paper.fig1b(network), paper.fig1c(network)
        assert len(ratios.value) == len(errors.value) == len(paper.LABEL_PROBS)
        assert ratios.value[0] == pytest.approx(1, abs=1e-3)
        assert errors.value[-1] == pytest.approx(0.9, abs=0.01)
    for setting in raw["fig1a"]:
        assert len(paper.fig1a(setting).value) == len(paper.fig1a(setting).x)
    for curve in [paper.fig2a(s, p) for s in raw["fig2a"] for p in ("train", "test")] + [
        paper.fig2b(n, p) for n in paper.FIG2_NETWORKS for p in ("train", "test")
    ]:
        assert len(curve.x) == len(curve.value) > 50
        assert (np.diff(curve.x) >= 0).all()
        assert 0 <= min(curve.value) <= max(curve.value) <= 1


def test_published_numbers_agree_with_each_other():
    """Tables and digitised figures give the same of the same run, where they do at all."""
    figure = paper.fig1c("mlp 1x512")
    for labels, level in (("true", 0.0), ("random", 1.0)):
        row = paper.published(Cell("Table 1", "mlp 1x512", labels, ("no", "no")))
        error = 1 - row["test_accuracy"].value
        assert figure.value[figure.x.index(level)] == pytest.approx(error, abs=0.006)
    for setting, factors in (
        ("all regularizers", ("yes", "yes", "yes")),
        ("weight decay", ("no", "no", "yes")),
        ("none", ("no", "no", "no")),
    ):
        row = paper.published(Cell("Table 2", "inception v3", "true", factors))
        curve = paper.fig2a(setting, "test").value
        assert curve[-1] == pytest.approx(row["test_accuracy"].value, abs=0.002)
        if "best_test_accuracy" in row:
            assert max(curve) == pytest.approx(row["best_test_accuracy"].value, abs=0.002)
    test = {n: paper.fig2b(n, "test") for n in paper.FIG2_NETWORKS}
    assert test["inception"].value[-1] == pytest.approx(0.865, abs=0.002)
    assert max(test["inception without batch norm"].value) == pytest.approx(0.853, abs=0.001)
    assert test["inception"].x[0] == 391 == 50_000 // 128 + 1  # one point per epoch of 390 steps
