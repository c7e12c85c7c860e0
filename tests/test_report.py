"""The report says what the results say, beside the paper's numbers where these are of the same."""

import json
from pathlib import Path

import pytest

from rethink_jax import paper, records, report, train, trials
from rethink_jax.report import series
from rethink_jax.schema import UserError, nest

CIFAR_MLP = {
    "data": {"name": "cifar10"},
    "model": {"name": "mlp", "hidden": (512,)},
    "preprocess": {"crop_size": 28},
}


def made_workdir(path, nested_trials, results, name="cifar10"):
    """A workdir with made results: {epochs_to_fit, test accuracy ...} of each trial."""
    workdir = records.Workdir(path)
    workdir.create()
    resolved = [trials.resolve(t) for t in nested_trials]
    for trial, result in zip(resolved, results, strict=True):
        curve = [[result["loss"] / e] * len(train.CURVE) for e in range(1, 4)]
        (path / "trials" / trial.trial_id).mkdir()
        workdir.write_curve(trial.trial_id, train.CURVE, curve)
        final = dict.fromkeys(train.CURVE, 0.5) | result["final"]
        workdir.write_result(
            trial.trial_id,
            {
                "trial_id": trial.trial_id,
                "group_id": "g",
                "status": "fitted" if result["fit"] else "finished",
                "stop_reason": "max_epochs",
                "trial": nest(dict(trial.fields)),
                "label_noise": 0.9 * trial["corruption.label_prob"],
                "test_label_noise": 0.9 * trial["corruption.label_prob"],
                "num_params": 5,
                "steps_per_epoch": 10,
                "epochs": 3,
                "epochs_to_fit": result["fit"],
                "steps_to_fit": 10 * result["fit"] if result["fit"] else None,
                "final": final,
            },
        )
    workdir.write_header(
        {
            "format": records.FORMAT,
            "config": {"trial": {"note": "<script>alert(1)</script>"}},
            "config_sha256": "0" * 64,
            "fixed_fields": {},
            "data": {name: {"classes": [str(c) for c in range(10)]}},
            "runs": [{"seconds": 7.0, "cpu": {"cores": 2, "model": "x"}, "devices": ["cpu:0 cpu"]}],
        }
    )
    workdir.write_table([], workdir.finished())
    return path


@pytest.fixture
def cifar(tmp_path):
    probs, seeds = (0.0, 0.5, 1.0), (0, 1)
    nested = [
        CIFAR_MLP | {"seed": s, "corruption": {"label_prob": p}} for p in probs for s in seeds
    ]
    results = [
        {
            "fit": None if p == 1 and s == 1 else int(10 + 20 * p + 2 * s),
            "loss": 2.0 + p,
            "final": {
                "train_accuracy": 1.0,
                "test_accuracy": 0.5 - 0.4 * p + 0.01 * s,
                "test_corrupted_accuracy": 0.5 - 0.4 * p,
            },
        }
        for p in probs
        for s in seeds
    ]
    return made_workdir(tmp_path, nested, results)


def rows_of(workdir):
    results = records.load_results(workdir)
    lines = series.lines(results.trials, results)
    return lines, {r.setting: r for r in series.table(lines)}


def test_table_has_mean_and_deviation_over_seeds(cifar):
    _, rows = rows_of(cifar)
    assert list(rows) == ["true labels", "labels 50% random", "random labels"]
    row = rows["true labels"]
    assert row.seeds == 2
    assert row.epochs_to_fit == "11.0 ± 1.4"
    assert row.test_error_clean == "49.50% ± 0.71%"
    assert rows["random labels"].epochs_to_fit == "30.0 ± 0.0 (1 did not fit)"
    assert rows["labels 50% random"].noise == "45.0% ± 0.0%"


def test_papers_numbers_stand_beside_the_same_experiment_only(cifar):
    lines, rows = rows_of(cifar)
    assert lines[0].network == lines[0].name == "mlp 1x512"
    assert rows["true labels"].test_paper == "49.49% (Table 1)"
    assert rows["random labels"].train_paper.startswith("99.34%")
    assert rows["labels 50% random"].test_paper == "79.6% (Figure 1(c))"


@pytest.mark.parametrize(
    "change",
    [
        {"data": {"name": "cifar10", "num_train": 1000}},
        {"data": {"name": "mnist"}},
        {"model": {"name": "mlp", "hidden": (100,)}},
        {"preprocess": {"crop_size": 28, "random_crop": True}},
        {"optimizer": {"weight_decay": 0.1}},
    ],
    ids=str,
)
def test_other_experiments_are_not_the_papers(change):
    assert paper.network_of(dict(trials.resolve(CIFAR_MLP).fields)) == "mlp 1x512"
    assert paper.network_of(dict(trials.resolve(CIFAR_MLP | change).fields)) is None


def test_summary_and_page(cifar):
    result = report.build(cifar)
    text = "\n".join(result.summary)
    assert "6 of 6 trials reached 100% training accuracy" in text
    assert "11.0 epochs with true labels, 30.0 with random labels (2.7 times as long)" in text
    assert "from 50.0% with true labels to 90.0% with random labels; guessing gives 90%" in text
    assert "60 s" not in text and "7 s on 2 CPU cores" in text
    html = result.page.read_text()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "Figure 1(c)" in html


def test_loss_curves_hold_the_last_value(cifar):
    lines, _ = rows_of(cifar)
    setting = lines[0].by_label_prob[0]
    assert setting.losses_TxE.tolist() == [[2.0, 1.0, pytest.approx(2 / 3)]] * 2


def test_equal_results_give_an_equal_page(cifar):
    first = report.build(cifar).page.read_bytes()
    assert report.build(cifar).page.read_bytes() == first


def test_networks_are_lines_of_their_own(tmp_path):
    one = {"fit": 3, "loss": 1.0, "final": {"train_accuracy": 1.0}}
    nested = [CIFAR_MLP | {"model": {"name": "mlp", "hidden": h}} for h in ((8,), (9, 9))]
    nested += [CIFAR_MLP | {"corruption": {"pixels": "random", "pixel_fraction": 0.5}}]
    made_workdir(tmp_path, nested, [one] * 3)
    planned = [records.planned_row(trials.resolve(t), "g") for t in nested]
    records.Workdir(tmp_path).write_table(planned, records.Workdir(tmp_path).finished())
    lines, rows = rows_of(tmp_path)
    assert [x.name for x in lines] == ["hidden [8]", "hidden [9, 9]", "hidden [512]"]
    assert set(rows) == {"true labels", "random pixels in 50% of images"}


def test_unfinished_and_foreign_workdirs(tmp_path):
    with pytest.raises(UserError, match="is not a workdir"):
        report.build(tmp_path)
    made_workdir(tmp_path, [], [])
    records.Workdir(tmp_path).write_table([records.planned_row(trials.resolve(CIFAR_MLP), "g")], {})
    with pytest.raises(UserError, match=r"no trial of .* is finished yet"):
        report.build(tmp_path)


def test_paper_curves_are_whole():
    raw = json.loads((Path(paper.__file__).parent / "paper_curves.json").read_text())
    for network in raw["fig1b"]:
        ratios, errors = paper.fig1b(network), paper.fig1c(network)
        assert len(ratios.value) == len(errors.value) == len(paper.LABEL_PROBS)
        assert ratios.value[0] == pytest.approx(1, abs=1e-3)
        assert errors.value[-1] == pytest.approx(0.9, abs=0.01)
    for setting in raw["fig1a"]:
        assert len(paper.fig1a(setting).value) == len(paper.fig1a(setting).x)


def test_published_numbers_agree_with_each_other():
    """Table 1 and Figure 1(c) give the same error of the MLP at both ends, to 0.5%."""
    figure = paper.fig1c("mlp 1x512")
    for labels, level in (("true", 0.0), ("random", 1.0)):
        table = 1 - paper.TABLE1["mlp 1x512", labels]["test_accuracy"].value
        assert figure.value[figure.x.index(level)] == pytest.approx(table, abs=0.006)
