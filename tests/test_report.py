"""The report says what the results say, beside the paper's numbers where these are of the same."""

import html
import re

import numpy as np
import pytest
from matplotlib import pyplot as plt

from rethink_jax import paper, records, report, train, trials
from rethink_jax.report import by_labels, figures, series, tables
from rethink_jax.schema import UserError, nest

CIFAR_MLP = {
    "data": {"name": "cifar10"},
    "model": {"name": "mlp", "hidden": (512,)},
    "preprocess": {"crop_size": 28},
}


def made_workdir(path, nested_trials, results, name="cifar10"):
    """A workdir with made results: {fit: epochs to fit or None, loss, final: ...} of each trial.

    Further, optionally: status, num_params, steps_per_epoch, curve (its rows; else `loss` falls).
    """
    workdir = records.Workdir(path)
    workdir.create()
    resolved = [trials.resolve(t) for t in nested_trials]
    for trial, result in zip(resolved, results, strict=True):
        falling = [[result["loss"] / e] * len(train.CURVE) for e in range(1, 4)]
        curve = np.array(result.get("curve", falling))
        test = curve[:, train.CURVE.index("test_accuracy")]
        steps, fit = result.get("steps_per_epoch", 10), result["fit"]
        (path / "trials" / trial.trial_id).mkdir()
        workdir.write_curve(trial.trial_id, train.CURVE, curve)
        workdir.write_result(
            trial.trial_id,
            {
                "trial_id": trial.trial_id,
                "group_id": "g",
                "status": result.get("status", "fitted" if fit else "finished"),
                "stop_reason": "max_epochs",
                "trial": nest(dict(trial.fields)),
                "label_noise": 0.9 * trial["corruption.label_prob"],
                "test_label_noise": 0.9 * trial["corruption.label_prob"],
                "num_params": result.get("num_params", 5),
                "steps_per_epoch": steps,
                "epochs": len(curve),
                "epochs_to_fit": fit,
                "steps_to_fit": steps * fit if fit else None,
                "final": dict.fromkeys(train.CURVE, 0.5) | result["final"],
                "best": {"test_accuracy": float(np.nanmax(test)), "epoch": int(np.nanargmax(test))},
            },
        )
    workdir.history.create(
        {
            "config": {"trial": {"note": "<script>alert(1)</script>"}},
            "config_sha256": "0" * 64,
            "fixed_fields": {},
            "data": {
                name: {
                    "classes": [str(c) for c in range(10)],
                    "train": 50_000,
                    "test": 10_000,
                    "fingerprint": "0" * 64,
                }
            },
        }
    )
    facts = {"seconds": 7.0, "cpu": {"cores": 2, "model": "x"}, "devices": ["cpu:0 cpu"]}
    workdir.history.begin_run("0of1", facts)
    # As in a sweep: in the order of the config, not of the ids.
    workdir.write_table([records.planned_row(t, "g") for t in resolved], workdir.finished())
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
    assert rows["random labels"].epochs_to_fit == "30.0 (1 did not fit)"
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
    assert setting.curves["online_loss"].tolist() == [[2.0, 1.0, pytest.approx(2 / 3)]] * 2


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


# --- the paper's tables and figures, from made results of all of its networks --------------------


RATES = {"inception": 0.1, "inception without batch norm": 0.1}
MODELS = {
    "inception": {"name": "inception"},
    "inception without batch norm": {"name": "inception", "batch_norm": False},
    "alexnet": {"name": "alexnet"},
    "mlp 3x512": {"name": "mlp", "hidden": (512, 512, 512)},
    "mlp 1x512": {"name": "mlp", "hidden": (512,)},
}
SEEDS = (0, 1, 2)


def made_result(network, prob, final, seed, epochs=60):
    """A plausible run: fitted after some epochs, the later the more labels are random."""
    rng = np.random.default_rng([seed, len(network), int(10 * prob)])
    first = {"inception": 10, "alexnet": 31}.get(network, 28)
    fit = first * (1 + prob * (1.6 if network.startswith("inception") else 0.7))
    fit = int(fit + rng.integers(-1, 2))
    epoch = np.arange(1, epochs + 1)
    progress = 1 / (1 + np.exp(-8 * (epoch - 0.6 * fit) / fit))
    curve = {name: np.full(epochs, np.nan) for name in train.CURVE}
    curve["online_loss"] = 2.3 * (1 - progress)
    curve["online_accuracy"] = curve["train_accuracy"] = 0.1 + 0.9 * progress
    noise = 0.03 * rng.standard_normal(epochs) / np.sqrt(epoch)
    curve["test_accuracy"] = final + noise - 0.3 * np.exp(-epoch / 4)
    curve["test_accuracy"][epoch % 2 == 1] = np.nan
    test = final + 0.003 * (seed - 1)
    return {
        "fit": fit,
        "loss": 2.3,
        "steps_per_epoch": 390,
        "num_params": paper.NETWORKS[network].num_params,
        "curve": np.stack(list(curve.values()), 1),
        "final": {
            "train_accuracy": 1.0,
            "online_accuracy": 0.99,
            "test_accuracy": test,
            "test_corrupted_accuracy": (1 - prob) * test + 0.1 * prob,
        },
    }


def nested_trial(network, seed=0, prob=0.0, **preprocess):
    """A trial of the paper's protocol, as a nested dict."""
    return {
        "seed": seed,
        "data": {"name": "cifar10"},
        "model": MODELS[network],
        "optimizer": {"learning_rate": RATES.get(network, 0.01)},
        "preprocess": {"crop_size": 28, **preprocess},
        "corruption": {"label_prob": prob},
        "stop": {"train_loss": 0.05, "when_fitted": False},
    }


def full_trials():
    """Figure 1 for three networks and all rows of Table 1, three seeds each; (trial, result)."""
    for cell, row in paper.TABLES["Table 1"].rows.items():
        for seed in SEEDS:
            prob = float(cell.labels == "random")
            nested = nested_trial(cell.network, seed, prob, random_crop=cell.factors[0] == "yes")
            if cell.factors[1] == "yes":
                nested["optimizer"]["weight_decay"] = 0.0005
            accuracy = row["test_accuracy"].value + 0.01
            yield nested, made_result(cell.network, prob, accuracy, seed)
    for network in paper.FIG1_NETWORKS:
        clean = 1 - paper.fig1c(network).value[0]
        for prob in paper.LABEL_PROBS[1:-1]:
            for seed in SEEDS:
                accuracy = clean * (1 - prob) + 0.1 * prob
                yield (
                    nested_trial(network, seed, prob),
                    made_result(network, prob, accuracy, seed),
                )


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """The workdir of `full_trials`, with its report; read only."""
    path = tmp_path_factory.mktemp("full")
    nested, results = zip(*full_trials(), strict=True)
    made_workdir(path, nested, results)
    workdir = records.Workdir(path)
    planned = [records.planned_row(trials.resolve(t), "g") for t in nested]
    workdir.write_table(planned, workdir.finished())
    return path, report.build(path)


def tables_of(workdir):
    results = records.load_results(workdir)
    return {t.name: t for t in tables.tables(results.trials, results)}


def test_table1_in_the_papers_layout_and_order(full):
    table = tables_of(full[0])["Table 1"]
    assert [r[:4] for r in table.rows[:6]] == [
        ["Inception", "1,649,402", "yes", "yes"],
        ["", "", "yes", "no"],
        ["", "", "no", "yes"],
        ["", "", "no", "no"],
        ["(fitting random labels)", "", "no", "no"],
        ["Inception w/o BatchNorm", "1,649,402", "no", "yes"],
    ]
    assert len(table.rows) == 19
    row = dict(zip(table.header[4:8], table.rows[2][4:8], strict=True))
    assert row == {"seeds": "3", "train %": "100.00 ± 0.00", "paper": "100.00",
                   "difference": "+0.00"}  # fmt: skip
    assert table.rows[2][8:11] == ["87.03 ± 0.30", "86.03", "+1.00"]
    assert table.rows[-1][6] == "99.34"
    assert table.header[11:] == ["best test %", "epochs to fit"]


def test_notes_say_what_is_printed_and_what_is_unstated(full):
    notes = " ".join(tables_of(full[0])["Table 1"].notes)
    assert "its numbers are printed" in notes
    assert "the paper states no coefficient: Inception 0.0005; Inception w/o BatchNorm" in notes
    assert "Other than the paper says" not in notes


def test_summary_of_several_networks(full):
    summary = full[1].summary
    assert len(summary) <= 6
    assert summary[1].startswith(
        "19 of 19 rows of Table 1 run; the largest difference in test accuracy is +1.00 points ("
    )
    assert "Fitting of inception takes longer the more labels are random" in summary[2]


def cells_of_html(page, name):
    section = re.search(f"<section><h2>{name} .*?</section>", page, re.S).group()
    rows = re.findall("<tr.*?</tr>", section)
    return [[html.unescape(c) for c in re.findall("<t[hd].*?>(.*?)</t[hd]>", r)] for r in rows]


def cells_of_markdown(text):
    rows = [re.split(r" ?(?<!\\)\| ?", r)[1:-1] for r in text.splitlines() if r.startswith("|")]
    del rows[1]  # the dashes
    return [[re.sub(r"\\(.)", r"\1", c) for c in r] for r in rows]


def test_page_and_markdown_say_the_same(full):
    page, table = full[1].page, tables_of(full[0])["Table 1"]
    markdown = (page.parent / "table1.md").read_text()
    expected = [table.header, *table.rows]
    assert cells_of_markdown(markdown) == expected
    assert cells_of_html(page.read_text(), "Table 1") == expected
    for note in table.notes:
        assert html.escape(note) in page.read_text()
        assert note.split(":")[0] in markdown
    assert not (page.parent / "table2.md").exists()


def test_rows_without_trials_are_not_run(cifar):
    (table,) = tables_of(cifar).values()
    ran = [row for row in table.rows if "not run" not in row]
    assert [r[2:5] for r in ran] == [["no", "no", "2"]] * 2
    assert [r[0] for r in table.rows[-3:]] == ["MLP 1x512", "", "(fitting random labels)"]
    assert table.rows[-3][1] == "1,209,866 (ours: 5)"
    assert sum(row.count("not run") for row in table.rows) == 2 * 17
    assert table.rows[0][4:8] == ["", "not run", "100.00", ""]
    assert table.summary.startswith("2 of 19 rows of Table 1 run; the largest difference in test")


def one(final=(), **changes):
    return {"fit": 3, "loss": 1.0, "final": {"train_accuracy": 0.9} | dict(final)} | changes


def test_table4_online_accuracy_diverged_and_failed_to_converge(tmp_path):
    plain = [nested_trial(n, s, 1.0) for n in ("alexnet", "mlp 3x512") for s in SEEDS]
    decayed = [t | {"optimizer": t["optimizer"] | {"weight_decay": 0.004}} for t in plain]
    nested = [*decayed, nested_trial("inception", 0, 1.0, random_crop=True)]
    results = [one(status="diverged", fit=None)] * 4 + [one({"train_accuracy": 1.0})] * 2
    made_workdir(tmp_path, nested, [*results, one({"online_accuracy": 0.9893})])
    table = tables_of(tmp_path)["Table 4"]
    assert table.header[:3] == ["model", "regularizer", "seeds"]
    assert [r[2:6] for r in table.rows] == [
        ["", "not run", "100.00", ""],
        ["3 (3 diverged)", "diverged", "failed to converge", ""],
        ["3 (1 diverged)", "100.00 ± 0.00", "100.00", "+0.00"],
        ["", "not run", "99.21", ""],
        ["1", "98.93 (online)", "99.93", "-1.00"],
        ["", "not run", "99.28", ""],
    ]
    assert any(n.startswith("(online)") for n in table.notes)
    assert any("Inception: lr_decay 0.95 (paper: 0.999)" in n for n in table.notes)


def test_table2_of_a_streamed_training_set(tmp_path):
    """Training accuracy never measured; in parentheses the best; the quoted row; the misprint."""
    made_workdir(tmp_path, [nested_trial("inception")], [one()])
    results = records.load_results(tmp_path)
    done = results.trials.assign(**{"model.name": "inception_v3", "optimizer.weight_decay": 4e-5,
                                    "data.name": "folder:x"})  # fmt: skip
    for column in ("final_train_accuracy", "final_train_top5_accuracy"):
        done[column] = None
    done["final_test_accuracy"], done["best_test_accuracy"] = 0.66, 0.7257
    done["final_online_accuracy"] = 0.9
    curves = results.curves.assign(test_top5_accuracy=[0.8, np.nan, 0.7])
    run = {"data": {"folder:x": {"classes": list(range(1000))}}}
    (table,) = tables.tables(done, results._replace(curves=curves, run=run))
    assert table.name == "Table 2" and len(table.rows) == 8
    row = table.rows[2]
    assert row[:6] == ["", "true", "no", "no", "yes", "1"]
    assert row[6:9] == ["90.00 (online)", "90.60 †", "-0.60"]
    assert row[9:12] == ["–", "100.00", ""]
    assert row[12:15] == ["66.00", "67.18 (72.57)", "-1.18"]
    assert row[-3:] == ["72.57", "80.00", "3.0"]
    assert table.rows[4][0].startswith("Alexnet (Krizhevsky")
    assert table.rows[4][-6:-3] == ["", "83.60", ""]
    assert any(n.startswith("† 90.60 is printed") for n in table.notes)
    assert "1 of 7 rows of Table 2 run" in table.summary


def test_variants_of_a_row_stand_apart(tmp_path):
    rates = (0.01, 0.02)
    nested = [
        nested_trial("mlp 1x512", s)
        | {"optimizer": {"learning_rate": r, "decay_params": "a|<b>_*", "weight_decay": r}}
        for r in rates
        for s in (0, 1)
    ]
    made_workdir(tmp_path, nested, [one()] * 4)
    table = tables_of(tmp_path)["Table 1"]
    own = [r for r in table.rows if "[" in r[0]]
    assert [r[0] for r in own] == [
        "MLP 1x512 [learning_rate 0.01, weight_decay 0.01]",
        "[learning_rate 0.02, weight_decay 0.02]",
    ]
    assert len(table.rows) == 20 and own[0][4] == own[1][4] == "2"
    assert "(MLP 1x512, weight decay [learning_rate 0.0" in table.summary
    assert "learning_rate 0.02 (paper: 0.01)" in table.notes[-1]


def test_what_a_user_wrote_is_escaped(tmp_path):
    nested = [
        nested_trial("mlp 1x512") | {"optimizer": {"decay_params": p, "weight_decay": 0.1}}
        for p in ("<b>|_x_*", ".*")
    ]
    made_workdir(tmp_path, nested, [one()] * 2)
    page = report.build(tmp_path).page
    assert "decay_params &lt;b&gt;|_x_*" in page.read_text() and "<b>" not in page.read_text()
    markdown = (page.parent / "table1.md").read_text()
    assert r"decay\_params \<b\>\|\_x\_\*" in markdown
    assert cells_of_markdown(markdown) == cells_of_html(page.read_text(), "Table 1")


def test_line_names_say_only_what_sets_lines_apart(full, tmp_path):
    results = records.load_results(full[0])
    names = {x.name: x.network for x in series.lines(results.trials, results)}
    assert len(names) == 14
    assert names["inception"] == "inception"
    assert names["mlp 1x512"] == "mlp 1x512"
    assert names["inception, weight_decay 0.0005, random crop"] is None
    nested = [nested_trial("mlp 1x512") | {"optimizer": {"lr_decay": d}} for d in (0.9, 0.95)]
    made_workdir(tmp_path, nested, [one()] * 2)
    results = records.load_results(tmp_path)
    names = [x.name for x in series.lines(results.trials, results)]
    assert sorted(names) == ["lr_decay 0.9", "lr_decay 0.95"]


def test_figures_of_several_networks(full):
    text = html.unescape(full[1].page.read_text())
    assert text.count("Dotted: the paper's curves") == 4
    assert "Drawn: 4 of 14 lines, those with most to compare. Not drawn: " in text
    assert "Drawn: 3 of 14 lines, those with most levels. Not drawn: " in text
    assert "of these the first 4 are drawn, the paper's networks first." in text
    names = {p.name for p in full[1].page.parent.glob("*.png")}
    assert names == {"fig1a.png", "fig1b.png", "fig1c.png", "fig2.png"}


def drawn(figure_of, lines, monkeypatch):
    """The figure's axes, before it is turned to bytes."""
    kept = []
    for module in (figures, by_labels):
        monkeypatch.setattr(module, "png", lambda figure: kept.append(figure) or b"")
    figure_of(lines)
    monkeypatch.undo()
    plt.close(kept[0])
    return kept[0].axes


def test_papers_curves_are_drawn_in_the_colour_of_ours(full, monkeypatch):
    results = records.load_results(full[0])
    lines = series.lines(results.trials, results)
    ratio = drawn(by_labels.epochs_to_fit, lines, monkeypatch)[1]
    for network in paper.FIG1_NETWORKS:
        own = next(x for x in ratio.lines if x.get_label() == network)
        papers = [x for x in ratio.lines if list(x.get_ydata()) == list(paper.fig1b(network).value)]
        assert [x.get_color() for x in papers] == [own.get_color()]
        assert own.get_ydata()[0] == 1.0
    test = drawn(figures.accuracy_curves, lines, monkeypatch)[1]
    papers = [x for x in test.lines if len(x.get_xdata()) == 51]
    assert len(papers) == 2 and papers[0].get_xdata()[0] == 0.391
    main = [x for x in test.lines if x.get_label() in paper.NETWORKS]
    assert [x.get_label() for x in main][:2] == ["inception", "inception without batch norm"]
    assert len(main) == 4
    assert list(main[0].get_xdata()[:2]) == [0.78, 1.56]  # Epochs 2 and 4 were evaluated.
    losses = drawn(figures.loss_curves, lines, monkeypatch)
    assert losses[0].get_title() == "inception"
    assert sum(len(x.get_xdata()) == 69 for a in losses for x in a.lines) == 2


def test_papers_curve_is_grey_where_several_lines_are_of_its_network(tmp_path, monkeypatch):
    nested = [
        nested_trial("mlp 1x512", prob=p) | {"optimizer": {"lr_decay": d}}
        for d in (0.9, 0.95)
        for p in (0.0, 1.0)
    ]
    made_workdir(tmp_path, nested, [one()] * 4)
    results = records.load_results(tmp_path)
    lines = series.lines(results.trials, results)
    for figure_of, panel in ((by_labels.epochs_to_fit, 1), (by_labels.test_error, 0)):
        axis = drawn(figure_of, lines, monkeypatch)[panel]
        papers = {x.get_color() for x in axis.lines if len(x.get_xdata()) == 11}
        assert papers == {figures.GREY}


def test_accuracies_are_drawn_where_there_is_something_to_compare(tmp_path, monkeypatch):
    stops = nested_trial("mlp 1x512")
    stops["stop"] = {"train_loss": 0.05}
    made_workdir(tmp_path, [stops], [one(curve=made_result("mlp 1x512", 0, 0.5, 0)["curve"])])
    results = records.load_results(tmp_path)
    assert figures.accuracy_curves(series.lines(results.trials, results)) is None
    trained_on = results.trials.assign(**{"stop.when_fitted": False})
    assert drawn(figures.accuracy_curves, series.lines(trained_on, results), monkeypatch)


def test_figure_2a_stands_beside_inception_v3_on_imagenet(tmp_path, monkeypatch):
    """Two of the three settings of the figure, each in our colour; augmentation alone has none."""
    nested = [nested_trial("mlp 1x512") | {"optimizer": {"weight_decay": w}} for w in (4e-5, 0.0)]
    nested.append(nested_trial("mlp 1x512", random_crop=True, random_flip=True))
    curve = made_result("mlp 1x512", 0, 0.5, 0)["curve"]
    made_workdir(tmp_path, nested, [one(curve=curve)] * 3)
    results = records.load_results(tmp_path)
    done = results.trials.assign(**{"model.name": "inception_v3", "data.name": "folder:x"})
    run = results.run | {"data": {"folder:x": {"classes": list(range(1000))}}}
    lines = series.lines(done, results._replace(run=run))
    axis = drawn(figures.accuracy_curves, lines, monkeypatch)[1]
    own = [line.get_color() for line in axis.lines if line.get_label() in {x.name for x in lines}]
    for setting, colour in (("weight decay", own[0]), ("none", own[1])):
        published = paper.fig2a(setting, "test")
        (papers,) = [x for x in axis.lines if list(x.get_ydata()) == list(published.value)]
        assert papers.get_color() == colour
        assert list(papers.get_xdata()) == list(published.x)
    augmented = list(paper.fig2a("all regularizers", "test").value)
    assert augmented not in [list(x.get_ydata()) for x in axis.lines]
