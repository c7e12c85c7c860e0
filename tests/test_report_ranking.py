"""The table of measures says which of them follow the generalization gap, and where they do not."""

import csv
import html
import itertools
import re
import time

import numpy as np
import pandas as pd
import pytest
from test_report import cells_of_markdown, made_workdir

from rethink_jax import records, report, trials
from rethink_jax.measures import ranking as ranks
from rethink_jax.report import axes, ranking
from rethink_jax.schema import UserError
from rethink_jax.table import flat_row

WIDTHS, RATES, SEEDS = ((8,), (16,), (32,)), (0.01, 0.1), (0, 1, 2)
SETTINGS = list(itertools.product(WIDTHS, RATES))


def swept(settings=SETTINGS, seeds=SEEDS, train=1.0):
    """Nested trials and results; the gap grows with the width and, less, with the rate."""
    rng = np.random.Generator(np.random.Philox(0))
    nested, results = [], []
    for (width, rate), seed in itertools.product(settings, seeds):
        nested.append(
            {
                "seed": seed,
                "data": {"name": "cifar10"},
                "model": {"name": "mlp", "hidden": width},
                "optimizer": {"learning_rate": rate, "weight_decay": 10 * rate},
            }
        )
        error = 0.1 * np.log2(width[0] / 4) + rate / 2 + 0.02 * rng.random()
        final = {
            "train_accuracy": train,
            "test_corrupted_accuracy": round(train - error, 4),
            # By true labels, the order is the other way round.
            "test_accuracy": round(0.4 + error, 4),
        }
        results.append({"fit": 3, "loss": 1.0, "final": final})
    return nested, results


def write_measures(path, columns, more=()):
    """measures.csv from {measure: values in the order of the trials}; None: not finite."""
    ids = records.load_results(path).trials["trial_id"]
    with open(path / "measures.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["trial_id", "measure", "value", "status", "reason"])
        for name, values in columns.items():
            for trial_id, value in zip(ids, values, strict=True):
                bad = value is None
                row = ["" if bad else repr(float(value)), "not_finite" if bad else "ok", ""]
                writer.writerow([trial_id, name, *row])
        writer.writerows(more)


def frame_of(nested):
    """Trials as `records.load_results` gives them, without results."""
    rows = [records.planned_row(trials.resolve(t), "g") for t in nested]
    flat = pd.DataFrame([flat_row(row) for row in rows])
    return flat.rename(columns=lambda name: name.removeprefix("trial."))


def in_memory(nested, results, measures, test_images=10_000):
    """The arguments of `ranking.table`, from {measure: values, NaN where there is none}."""
    final = pd.DataFrame([r["final"] for r in results]).add_prefix("final_")
    done = pd.concat([frame_of(nested), final], axis=1)
    run = {"data": {"cifar10": {"test": test_images}}}
    return done, records.Results(done, None, run), pd.DataFrame(measures, done["trial_id"])


def gaps_of(results):
    return np.array(
        [r["final"]["train_accuracy"] - r["final"]["test_corrupted_accuracy"] for r in results]
    )


def table_of(path):
    results = records.load_results(path)
    done = results.trials[results.trials["status"] != "planned"]
    return ranking.table(done, results, records.load_measures(path))


def cells_of(table):
    """{measure: {column: text}}"""
    return {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("ranked")
    nested, results = swept()
    made_workdir(path, nested, results)
    gap_T = gaps_of(results)
    noise_T = np.random.Generator(np.random.Philox(1)).random(len(gap_T))
    by_rate_T = [10 * t["optimizer"]["learning_rate"] - 0.01 * t["model"]["hidden"][0]
                 + 1e-4 * t["seed"] for t in nested]  # fmt: skip
    half = [None if i % 3 == 1 else g for i, g in enumerate(gap_T)]
    few = [g if i < 5 else None for i, g in enumerate(gap_T)]
    write_measures(
        path,
        {
            "noise": noise_T, "constant": np.ones(len(gap_T)), "by_rate": by_rate_T, "few": few,
            "negative": -gap_T, "gap": np.exp(gap_T), "half": half,
            "narrow": [*gap_T[:6], *[None] * 12],
        },
    )  # fmt: skip
    return path, gap_T, np.array(by_rate_T), noise_T


@pytest.fixture(scope="module")
def table(workdir):
    return table_of(workdir[0])


def test_the_gap_itself_predicts_best_and_its_negative_as_well(table):
    cells = cells_of(table)
    assert table.header == [
        "measure", "networks", "τ, gap", "τ, test error", "Spearman's ρ, gap", "ψ hidden",
        "ψ learning_rate, weight_decay", "ψ, mean", "sign-error, worst", "sign-error, mean",
        "worst between",
    ]  # fmt: skip
    gap, negative = cells["gap"], cells["negative"]
    assert list(gap.values())[1:-1] == [
        "18", "+1.00 [+1.00, +1.00]", "-1.00 [-1.00, -1.00]", "+1.00", "+1.00", "+1.00", "+1.00",
        "0.00", "0.00",
    ]  # fmt: skip
    assert list(negative.values())[1:-1] == [
        "18", "-1.00 [-1.00, -1.00]", "+1.00 [+1.00, +1.00]", "-1.00", "-1.00", "-1.00", "-1.00",
        "0.00", "0.00",
    ]  # fmt: skip
    assert table.summary == (
        "Of 7 measures, negative ranks the generalization gap best (3 others as well): Kendall's "
        "tau -1.00 [-1.00, -1.00] over 18 networks."
    )


def test_rows_are_sorted_by_the_size_of_tau(table):
    names = [row[0] for row in table.rows]
    assert names[:4] == ["negative", "gap", "half", "narrow"]  # Equals: as in the file.
    assert names[-2:] == ["constant", "few"]
    sizes = [abs(float(row[2].split()[0])) for row in table.rows[:-1]]
    assert sizes == sorted(sizes, reverse=True) and 0 < sizes[-2] < 1


def test_noise_does_not_predict(table, workdir):
    cell = cells_of(table)["noise"]["τ, gap"]
    value, low, high = map(float, re.findall(r"[+-][\d.]+", cell))
    assert value == round(float(ranks.kendall(workdir[3], workdir[1])), 2)
    assert low < 0 < high and low < value < high


def test_a_measure_that_is_constant_orders_nothing(table):
    cells = cells_of(table)["constant"]
    assert cells["τ, gap"] == "+0.00 [+0.00, +0.00]"
    assert cells["Spearman's ρ, gap"] == "–"
    assert (cells["sign-error, worst"], cells["sign-error, mean"]) == ("0.50", "0.50")


def test_what_follows_one_axis_only(table, workdir):
    """It rises with the rate and falls with the width; the gap rises with both."""
    _, gap_T, by_rate_T, _ = workdir
    cells = cells_of(table)["by_rate"]
    assert cells["ψ hidden"] == "-1.00"
    assert cells["ψ learning_rate, weight_decay"] == "+1.00"
    assert cells["ψ, mean"] == "+0.00"
    assert float(cells["τ, gap"].split()[0]) == round(float(ranks.kendall(by_rate_T, gap_T)), 2)
    # As tau is negative, the negative of the measure is judged: wrong where the rate changes.
    assert cells["τ, gap"].startswith("-")
    assert cells["sign-error, worst"] == "1.00"
    between = r"learning_rate, weight_decay 0.01, 0.1 against 0.1, 1.0 \(hidden \[\d+\]\)"
    assert re.fullmatch(between, cells["worst between"])
    # Six environments of the width and three of the rate, whose gaps surely differ.
    assert cells["sign-error, mean"] == "0.33"


def test_networks_without_a_number_are_left_out(table, workdir):
    cells = cells_of(table)
    assert cells["half"]["networks"] == "12"
    assert cells["half"]["τ, gap"] == "+1.00 [+1.00, +1.00]"
    # Of one width only.
    assert list(cells["narrow"].values())[1:] == [
        "6", "+1.00 [+1.00, +1.00]", "-1.00 [-1.00, -1.00]", "+1.00", "–", "+1.00", "–", "0.00",
        "0.00", "learning_rate, weight_decay 0.01, 0.1 against 0.1, 1.0",
    ]  # fmt: skip
    assert list(cells["few"].values()) == ["few", "5", *["–"] * 9]
    assert table.notes[0].startswith("18 networks are measured; each measure is ranked over those")


def test_seeds_of_a_setting_are_drawn_together(table, workdir):
    """The interval is that of a bootstrap of six settings, wider than that of 18 networks."""
    _, gap_T, by_rate_T, _ = workdir
    units = {"settings": np.repeat(range(6), 3).tolist(), "networks": range(18)}
    found = {
        name: ranks.bootstrap(
            lambda counts_DxT: ranks.kendall(by_rate_T, gap_T, counts_T=counts_DxT), units_T
        )
        for name, units_T in units.items()
    }
    settings, networks = found.values()
    assert settings.high - settings.low > networks.high - networks.low
    cell = cells_of(table)["by_rate"]["τ, gap"]
    assert cell == "{:+.2f} [{:+.2f}, {:+.2f}]".format(*settings[:3])
    assert "1000 bootstrap draws of 6 settings, the seeds of one together" in table.notes[1]


def test_environments_and_notes(table):
    # Three seeds make nine pairs.
    assert "No environment has 12 effective pairs, as the authors ask for; all" in table.notes[-1]
    assert "measured on 10,000 test images" in table.notes[-1]
    assert "Gap: test error less training error" in table.notes[0]
    assert "test labels corrupted as the training labels are" in table.notes[0]
    nested, results = swept(seeds=range(4))
    table = ranking.table(*in_memory(nested, results, {"gap": gaps_of(results)}))
    assert "Environments of at least 12 effective pairs" in table.notes[-1]


def test_page_and_markdown(workdir, table):
    built = report.build(workdir[0])
    assert table.summary in built.summary
    page = built.page.read_text()
    section = re.search("<section><h2>Which measure predicts.*?</section>", page, re.S).group()
    rows = re.findall("<tr.*?</tr>", section)
    cells = [[html.unescape(c) for c in re.findall("<t[hd].*?>(.*?)</t[hd]>", r)] for r in rows]
    markdown = (built.page.parent / "ranking.md").read_text()
    assert cells == cells_of_markdown(markdown) == [table.header, *table.rows]
    for note in table.notes:
        assert html.escape(note) in section
    assert markdown.count("\n\n") >= len(table.notes)


# --- what is swept --------------------------------------------------------------------------------


def test_what_goes_with_the_network_is_no_axis():
    models = [
        ({"name": "mlp", "hidden": (8,)}, 0.01), ({"name": "mlp", "hidden": (16,)}, 0.01),
        ({"name": "alexnet"}, 0.1),
    ]  # fmt: skip
    nested = [
        {"model": m, "optimizer": {"learning_rate": r}, "corruption": {"label_prob": p}, "seed": s}
        for m, r in models
        for p in (0.0, 1.0)
        for s in (0, 1)
    ]
    found = axes.axes_of(frame_of(nested))
    assert list(found) == ["label_prob", "model, hidden"]
    assert found["label_prob"][:4] == ["0.0", "0.0", "1.0", "1.0"]
    assert found["model, hidden"][::4] == ["mlp, (8,)", "mlp, (16,)", "alexnet"]
    # A rate that goes with one of several networks is an axis, but what they differ in is not.
    finer = [t | {"optimizer": {"learning_rate": r}} for t, r in
             zip(nested[4:], (0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.4, 0.4), strict=True)]  # fmt: skip
    assert list(axes.axes_of(frame_of(finer))) == ["learning_rate"]
    # What several networks have is an axis beside them.
    drawn = [{"model": {"name": m, "kernel_init": k, "hidden": (8,)} if m == "mlp" else
              {"name": m, "kernel_init": k}} for m in ("mlp", "alexnet")
             for k in ("he_normal", "lecun_normal")]  # fmt: skip
    assert list(axes.axes_of(frame_of(drawn))) == ["model", "kernel_init"]
    # Of one network each, its name says it all, but not what else goes with it.
    found = axes.axes_of(frame_of(nested[4:]))
    assert list(found) == ["label_prob", "model, learning_rate"]
    assert found["model, learning_rate"][::4] == ["mlp, 0.01", "alexnet, 0.1"]


def test_equal_names_are_told_apart():
    nested = [{"model": {"name": m}, "data": {"name": d}} for m in ("alexnet", "vgg")
              for d in ("cifar10", "digits")]  # fmt: skip
    assert list(axes.axes_of(frame_of(nested))) == ["data", "model"]
    assert axes.axes_of(frame_of(nested[:1])) == {}
    frame = pd.DataFrame({"a.x": [0, 0, 1, 1], "b.x": [0, 1, 0, 1], "seed": range(4)})
    assert axes.axes_of(frame) == {"a.x": list("0011"), "b.x": list("0101")}


def test_only_seeds_differ():
    """No axis, so no psi and no sign-error; each network is drawn for itself."""
    nested, results = swept(SETTINGS[:1], range(8))
    table = ranking.table(*in_memory(nested, results, {"gap": gaps_of(results)}))
    assert table.header[-1] == "Spearman's ρ, gap"
    assert table.rows == [["gap", "8", "+1.00 [+1.00, +1.00]", "-1.00 [-1.00, -1.00]", "+1.00"]]
    assert "draws of 8 networks" in table.notes[1] and len(table.notes) == 3
    # The same of one measure beside others.
    nested, results = swept(SETTINGS[:2], range(8))
    one = np.where(np.arange(16) < 8, gaps_of(results), np.nan)
    both = {"gap": -gaps_of(results), "one": one}
    table = ranking.table(*in_memory(nested, results, both))
    assert table.rows[1][2] == "+1.00 [+1.00, +1.00]" and table.rows[1][5:] == ["–"] * 5
    assert "–" not in table.rows[0]


def test_gaps_that_may_be_equal_make_no_environment():
    nested, results = swept()
    (row,) = ranking.table(*in_memory(nested, results, {"gap": gaps_of(results)}, 10)).rows
    assert row[5:] == ["+1.00", "+1.00", "+1.00", "–", "–", "–"]


def test_an_axis_that_nothing_differs_on_alone_has_no_column():
    """Two networks that differ in width or rate differ in two things; some in the decay alone."""
    places = [(0, 0, 0), (0, 0, 2), (1, 1, 0), (1, 1, 2), (1, 0, 1), (0, 1, 1)]
    _, results = swept(seeds=(0,))
    nested = [
        {
            "data": {"name": "cifar10"},
            "model": {"name": "mlp", "hidden": (8 + width,)},
            "optimizer": {"learning_rate": 0.1 + rate, "weight_decay": decay / 10},
        }
        for width, rate, decay in places
    ]
    table = ranking.table(*in_memory(nested, results, {"gap": gaps_of(results)}))
    assert [title for title in table.header if "ψ" in title] == ["ψ weight_decay", "ψ, mean"]
    assert table.rows[0][5:7] == ["+1.00", "+1.00"]
    assert table.rows[0][-1].startswith("weight_decay 0.0 against 0.2 (hidden (8,), ")
    given = in_memory(nested[::2] * 2, results, {"gap": gaps_of(results)})
    networks, _ = ranking._networks(given[0][:3], given[2][:3])
    assert not any("ψ" in title for title in ranking._shown(networks, 10_000).header)


def test_gaps_are_of_corrupted_labels_and_of_the_precision_of_float32():
    nested, results = swept()
    measures = {"gap": gaps_of(results)}
    noise_T = 1e-8 * np.random.Generator(np.random.Philox(2)).random(len(results))
    for result, noise in zip(results, noise_T, strict=True):
        result["final"]["test_corrupted_accuracy"] = 0.4 + noise
    assert ranking.table(*in_memory(nested, results, measures)) is None  # All gaps are one.


def test_numbers_in_text():
    numbers = (0.126, -0.004, -0.0, 1, float("nan"))
    assert [ranking._text(n) for n in numbers] == ["+0.13", "+0.00", "+0.00", "+1.00", "–"]


# --- no table -------------------------------------------------------------------------------------


def test_too_few_networks(tmp_path):
    nested, results = swept()
    gap_T, place_T = gaps_of(results), np.arange(len(results))

    def table(**known):
        measures = {name: np.where(mask, gap_T, np.nan) for name, mask in known.items()}
        done, frames, measured = in_memory(nested, results, measures)
        return ranking.table(done, frames, measured.dropna(how="all"))

    assert table(gap=place_T < 5) is None
    assert table(gap=place_T < 6) is not None
    # Eight networks are measured, but no measure has six.
    assert table(a=place_T < 5, b=(place_T >= 5) & (place_T < 8)) is None
    made_workdir(tmp_path, nested[:6], results[:6])
    assert table_of(tmp_path) is None  # Nothing was measured.
    write_measures(tmp_path, {}, [[i, "all", "", "no_network", "gone"] for i in "ab"])
    assert not (report.build(tmp_path).page.parent / "ranking.md").exists()


def test_trials_without_an_error_or_a_measure():
    nested, results = swept()
    measures = {"gap": gaps_of(results)}
    results[0]["final"]["train_accuracy"] = None
    results[1]["final"]["test_accuracy"] = None
    results[2]["final"]["test_corrupted_accuracy"] = None
    done, frames, measured = in_memory(nested, results, measures)
    measured = pd.concat([measured[:-1], measured[:1].set_axis(["of another sweep"])])
    table = ranking.table(done, frames, measured)
    assert table.rows[0][1] == "14" and table.notes[0].startswith("14 networks are measured")


def test_measures_are_read_by_the_names_of_the_columns(tmp_path):
    """A trial id of digits stays one; what was measured again counts once; infinity does not."""
    (tmp_path / "measures.csv").write_text(
        "seconds,status,value,measure,trial_id\n"
        "1,ok,1.5,b,000000000001\n1,ok,inf,b,12e456789012\n1,refused,3,a,000000000001\n"
        "1,ok,2.5,b,000000000001\n1,ok,4,a,12e456789012\n,no_network,,all,abc\n"
    )
    found = records.load_measures(tmp_path)
    assert list(found.columns) == ["b", "a"]
    assert list(found.index) == ["000000000001", "12e456789012"]
    np.testing.assert_array_equal(found, [[2.5, np.nan], [np.nan, 4]])
    (tmp_path / "measures.csv").write_text("trial_id,value\n1,2\n")
    with pytest.raises(UserError, match=r"measures\.csv is damaged, it has no column 'measure'"):
        records.load_measures(tmp_path)


def test_measures_of_two_hundred_networks_are_quick():
    """60 of them in 10 s is the aim; 15 here, on a core that may be shared."""
    settings = [((8 * w,), 0.01 * r) for w in range(1, 11) for r in range(1, 6)]
    nested, results = swept(settings, range(4))
    measures = np.random.Generator(np.random.Philox(3)).random((15, 200))
    given = in_memory(nested, results, {f"m{i}": m for i, m in enumerate(measures)})
    begun = time.process_time()
    table = ranking.table(*given)
    assert len(table.rows) == 15 and {row[1] for row in table.rows} == {"200"}
    assert time.process_time() - begun < 5
