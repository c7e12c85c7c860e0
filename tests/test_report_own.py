"""The report of own corruptions, of copies among trials, and of commands that were killed."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from test_report import CIFAR_MLP, drawn, made_workdir
from test_report_ranking import gaps_of, in_memory, swept

from rethink_jax import records, report, train
from rethink_jax.data import corruption
from rethink_jax.report import (
    by_labels,
    captions,
    copies,
    figures,
    ranking,
    series,
    summary,
)

MODELS = ({"name": "mlp", "hidden": (8,)}, {"name": "alexnet"})
SEEDS = (0, 1)
FINAL = {"train_accuracy": 1.0, "test_accuracy": 0.9, "test_corrupted_accuracy": 0.9}


def one(fit=3, **changes):
    """A result: a curve of three epochs that falls."""
    return {"fit": fit, "loss": 1.0, "final": FINAL} | changes


@pytest.fixture(autouse=True)
def pairs(monkeypatch):
    """An own label corruption, and own pixels."""
    monkeypatch.setitem(
        corruption.LABELS,
        "pairs",
        lambda key, labels, prob, classes: jnp.where(
            jax.random.uniform(key, labels.shape) < prob, labels ^ 1, labels
        ),
    )
    monkeypatch.setitem(corruption.PIXELS, "invert", lambda image, *_: 255 - image)


def nested(model=None, seed=0, **fields):
    return CIFAR_MLP | {"model": model or MODELS[0], "seed": seed, "corruption": fields}


def grid():
    """Two networks, two kinds of label corruption at three levels, two seeds."""
    return [
        nested(m, s, labels=kind, label_prob=p)
        for m in MODELS for kind in ("uniform", "pairs") for p in (0.0, 0.25, 0.5) for s in SEEDS
    ]  # fmt: skip


def lines_of(path, trials, results):
    made_workdir(path, trials, results)
    found = records.load_results(path)
    return series.lines(copies.distinct(found.trials).trials, found), found


# --- names ----------------------------------------------------------------------------------------


def test_only_uniform_labels_are_called_random():
    def name(kind, prob, **more):
        trial = {"corruption.labels": kind, "corruption.label_prob": prob,
                 "corruption.pixels": "none", "corruption.pixel_fraction": 1.0,
                 "corruption.pixel_strength": 1.0} | more  # fmt: skip
        return series.setting_name(trial)

    assert [name("uniform", p) for p in (0, 0.5, 1)] == [
        "true labels", "labels 50% random", "random labels",
    ]  # fmt: skip
    assert [name("pairs", p) for p in (0, 0.5, 1)] == [
        "true labels", "labels 50% pairs", "labels 100% pairs",
    ]  # fmt: skip
    assert name("pairs", 0, test_label_noise=0.1) == "labels 0% pairs"
    # Two levels are never of one name.
    assert [name("uniform", p) for p in (0.001, 0.004, 0.125, 0.3)] == [
        "labels 0.1% random", "labels 0.4% random", "labels 12.5% random", "labels 30% random",
    ]  # fmt: skip
    salt = {"corruption.pixels": "salt", "corruption.pixel_fraction": 0.005}
    assert name("pairs", 0.5, **salt) == "salt pixels in 0.5% of images, labels 50% pairs"


def test_a_network_is_a_line_and_a_kind_of_corruption_its_levels(tmp_path):
    trials = grid()
    lines, _ = lines_of(tmp_path, trials, [one()] * len(trials))
    assert [x.name for x in lines] == ["mlp", "alexnet"]
    rows = series.table(lines)
    own = [r.setting for r in rows if r.line == "mlp"]
    assert own == ["true labels", "labels 25% random", "labels 25% pairs", "labels 50% random",
                   "labels 50% pairs"]  # fmt: skip
    assert {r.seeds for r in rows} == {2}
    levels = lines[0].levels
    assert [x.name for x in levels] == ["mlp, labels uniform", "mlp, labels pairs"]
    assert levels[0].settings[0] is levels[1].settings[0]
    assert [s.name for s in lines[0].main] == ["true labels", "labels 50% random",
                                               "labels 50% pairs"]  # fmt: skip


def test_papers_numbers_stand_beside_uniform_labels_only(tmp_path):
    trials = [
        CIFAR_MLP | {"corruption": {"labels": kind, "label_prob": p}}
        for kind, p in (("uniform", 0.0), ("uniform", 0.5), ("pairs", 0.5))
    ]
    lines, _ = lines_of(tmp_path, trials, [one()] * 3)
    assert [x.network for x in lines[0].levels] == ["mlp 1x512", None]
    found = {r.setting: r.test_paper for r in series.table(lines)}
    assert found["labels 50% random"] == "79.6% (Figure 1(c))" and not found["labels 50% pairs"]


def test_sentences_name_the_network(tmp_path):
    trials = [*grid(), nested(pixels="invert"), nested(pixels="gaussian")]
    results = [one(None if t["corruption"].get("label_prob") else 3) for t in trials[:-1]]
    lines, found = lines_of(tmp_path, trials, [*results, one(None)])
    text = summary.sentences(found, copies.distinct(found.trials), lines, [])
    assert text[1] == (
        "Fitting of mlp, labels uniform takes 3.0 epochs with true labels; no trial with labels "
        "50% random fitted in 60 epochs."
    )
    assert text[3] == (
        "Test error of mlp with corrupted images: invert pixels 10.0% (epochs to fit: 3.0), "
        "gaussian pixels 10.0% (none fitted)."
    )


# --- copies ---------------------------------------------------------------------------------------


def ids(frame):
    return list(frame["trial_id"])


def test_copies_are_counted_once(tmp_path):
    trials = [
        nested(labels="uniform"),
        nested(labels="pairs"),
        nested(labels="pairs", label_prob=0.5),
        nested(labels="uniform", label_prob=0.5),
        nested(pixels="invert", pixel_fraction=0.0),
        nested(pixels="gaussian", pixel_strength=0.0, pixel_fraction=0.5),
        nested(pixels="gaussian", pixel_strength=0.5),
        nested(seed=1),
        nested()
        | {"corruption": {"seed": 5}},  # The corruption's seed, where nothing is corrupted.
    ]
    made_workdir(tmp_path, trials, [one()] * len(trials))
    done = records.load_results(tmp_path).trials
    seen = copies.distinct(done)
    assert ids(seen.trials) == [ids(done)[i] for i in (0, 2, 3, 6, 7)]
    assert seen.copies == 4
    assert seen.fields == ["corruption.labels", "corruption.pixel_fraction",
                           "corruption.pixel_strength", "corruption.pixels",
                           "corruption.seed"]  # fmt: skip
    # The one that was measured stands for the others.
    preferred = copies.distinct(done, {ids(done)[4]})
    assert ids(preferred.trials) == [ids(done)[i] for i in (2, 3, 4, 6, 7)]


def test_what_differs_in_effect_is_no_copy(tmp_path):
    subset = {"name": "cifar10", "num_train": 100, "num_confusion": 10}
    trials = [
        nested(label_prob=0.5),
        nested() | {"corruption": {"label_prob": 0.5, "seed": 7}},
        nested() | {"data": subset},
        nested()
        | {"data": subset, "corruption": {"seed": 7}},  # The confusion set has labels of that seed.
        nested() | {"optimizer": {"weight_decay": 0.1, "decay_params": "a"}},
        nested() | {"optimizer": {"weight_decay": 0.1}},
    ]
    made_workdir(tmp_path, trials, [one()] * len(trials))
    done = records.load_results(tmp_path).trials
    seen = copies.distinct(done)
    assert seen.copies == 0 and seen.sentence == "" and ids(seen.trials) == ids(done)
    # An own corruption that changes labels even at probability 0.
    pair = pd.concat([done[:1]] * 2).assign(
        **{"corruption.label_prob": 0.0, "corruption.labels": ["uniform", "pairs"]}
    )
    assert copies.distinct(pair.assign(test_label_noise=0.0)).copies == 1
    assert copies.distinct(pair.assign(test_label_noise=[0.0, 0.5])).copies == 0


def test_the_report_says_that_there_are_copies(tmp_path):
    trials = grid()
    made_workdir(tmp_path, trials, [one()] * len(trials))
    said = report.build(tmp_path).summary
    assert said[0] == (
        "20 of 20 trials reached 100% training accuracy. 4 more are copies of these: all that "
        "differs is corruption.labels, without an effect there. Each training is drawn and "
        "counted once."
    )
    assert said[-1].startswith("24 trials, ")


def test_copies_are_ranked_once(tmp_path):
    """Ten networks of which two are each there twice: the table is that of eight."""
    trials, results = swept(seeds=(0, 1))
    again = [t | {"corruption": {"labels": "pairs"}} for t in trials[:2]]
    done, frames, _ = in_memory(trials + again, results + results[:2], {})
    gap_T = gaps_of(results + results[:2])
    measured = pd.DataFrame({"gap": gap_T, "minus": -gap_T}, done["trial_id"])
    seen = copies.distinct(done)
    assert seen.copies == 2
    table = ranking.table(seen.trials, frames, measured)
    alone = ranking.table(*in_memory(trials, results, {"gap": gap_T[:-2], "minus": -gap_T[:-2]}))
    assert table == alone and "Of 2 measures" in table.summary
    assert ranking.table(done, frames, measured) != alone


# --- ranking --------------------------------------------------------------------------------------


def test_no_measure_is_called_best_if_none_is_told_from_chance():
    trials, results = swept()
    noise = np.random.Generator(np.random.Philox(1)).random(len(trials))
    table = ranking.table(*in_memory(trials, results, {"noise": noise, "one": 0 * noise}))
    assert "best" not in table.summary
    assert table.summary.startswith("Of 2 measures, none is distinguishable from one that says ")
    # The largest tau, over few networks, is not sure; another one is.
    gap_T = gaps_of(results)
    few_T = np.where(np.arange(18) % 3 == 0, gap_T, np.nan)
    few_T[[6, 9]], few_T[0] = few_T[[9, 6]], few_T[9]
    rough_T = gap_T + 0.25 * np.random.Generator(np.random.Philox(3)).random(18)
    table = ranking.table(*in_memory(trials, results, {"few": few_T, "rough": rough_T}))
    assert [row[0] for row in table.rows] == ["few", "rough"]
    assert table.summary == (
        "Of 2 measures, rough ranks the generalization gap best, of those whose 95% interval "
        f"excludes 0: Kendall's tau {table.rows[1][2]} over 18 networks."
    )


def test_the_ranking_says_how_many_networks_are_not_fitted():
    trials, results = swept()
    for i, result in enumerate(results):
        result["final"] |= {"train_loss": 0.005 if i < 3 else 0.5}
    results[0]["final"]["train_accuracy"] = 0.625
    note = ranking.table(*in_memory(trials, results, {"gap": gaps_of(results)})).notes[2]
    assert note.startswith("1 of 18 networks have not reached 100% training accuracy (the lowest: ")
    assert "62.5%); they are ranked with the others" in note
    assert "cross-entropy of 0.01 (from a survey, not read in the paper); 3 of these 18" in note


# --- figures --------------------------------------------------------------------------------------


def test_captions_say_what_is_drawn(tmp_path):
    trials = [*grid(), nested(pixels="invert", label_prob=0.5)]
    results = [one(None if t["corruption"].get("label_prob") else 3) for t in trials]
    lines, _ = lines_of(tmp_path, trials, results)
    said = captions.captions(lines)
    assert said["fig1a"].startswith("Drawn: true labels; labels 50% random; labels 50% pairs. ")
    assert (
        "Not drawn: labels 25% random; labels 25% pairs; invert pixels, labels 50%"
        in (said["fig1a"])
    )
    assert "a triangle: not all did. Where no seed fitted there is no point" in said["fig1b"]
    assert "triangle" not in said["fig1c"] and "Wider lines" in said["fig1c"]
    page = report.build(tmp_path).page.read_text()
    assert all(said[name] in page for name in ("fig1a", "fig1b", "fig1c"))


def curve_of(epochs):
    return np.linspace(1.0, 0.5, epochs * len(train.CURVE)).reshape(epochs, -1)


def test_a_curve_of_one_epoch_is_a_point(tmp_path, monkeypatch):
    trials = [nested(), nested(label_prob=1.0)]
    lines, _ = lines_of(tmp_path, trials, [one(curve=curve_of(1)), one()])
    (axis,) = drawn(figures.loss_curves, lines, monkeypatch)
    markers = {x.get_label(): x.get_marker() for x in axis.lines}
    assert markers == {"true labels": "o", "random labels": "None"}
    assert all(tick == int(tick) for tick in axis.get_xticks())
    assert "A point: all seeds ended after one epoch." in captions.captions(lines)["fig1a"]


def test_no_loss_is_cut_off(tmp_path, monkeypatch):
    trials = [nested(m) for m in MODELS]
    lines, _ = lines_of(tmp_path, trials, [one(), one(curve=9 * curve_of(3))])
    axes = drawn(figures.loss_curves, lines, monkeypatch)
    assert axes[0].get_ylim()[0] == 0 and axes[0].get_ylim()[1] > 9


def test_lines_that_lie_on_each_other_are_all_seen(tmp_path, monkeypatch):
    trials = grid()
    results = [one(None if t["corruption"]["label_prob"] else 3) for t in trials]
    lines, _ = lines_of(tmp_path, trials, results)
    axis, _ = drawn(by_labels.epochs_to_fit, lines, monkeypatch)
    names = {levels.name for line in lines for levels in line.levels}
    own = [x for x in axis.lines if x.get_label() in names]
    assert len(own) == 4
    for seen in (x.get_marker() for x in own), (x.get_color() for x in own):
        assert len(set(seen)) == 4
    sizes = [x.get_markersize() for x in own]
    assert sizes == sorted(set(sizes), reverse=True)
    assert {x.get_markerfacecolor() for x in own} == {"none"}
    assert [x.get_zorder() for x in own] == sorted(x.get_zorder() for x in own)
    marks = [x for x in axis.lines if x.get_marker() == "^" and len(x.get_xdata())]
    assert [list(x.get_xdata()) for x in marks] == [[0.25, 0.5]] * 4
    assert len({x.get_markersize() for x in marks}) == 4
    legend = [t.get_text() for t in axis.figure.legends[0].get_texts()]
    assert set(legend[:4]) == names
    assert legend[4] == figures.UNFITTED and legend[5:] == ["paper, Figure 1(b)"]


@pytest.mark.parametrize(("steps", "label"), [(9, "steps"), (900, "thousand steps")])
def test_steps_are_in_thousands_only_if_there_are_thousands(tmp_path, monkeypatch, steps, label):
    trials = [nested(m) for m in (*MODELS, {"name": "mlp", "hidden": (9,)})]
    short = one(curve=curve_of(2), steps_per_epoch=steps)
    lines, _ = lines_of(tmp_path, trials, [one(steps_per_epoch=steps)] * 2 + [short])
    axes = drawn(figures.accuracy_curves, lines, monkeypatch)
    assert {axis.get_xlabel() for axis in axes} == {label}
    unit = 1000 if steps == 900 else 1
    assert list(axes[0].lines[0].get_xdata()) == [e * steps / unit for e in (1, 2, 3)]
    said = captions.captions(lines)["fig2"]
    assert said.startswith("Drawn: alexnet; mlp, hidden [8]. Not drawn: mlp, hidden [9]; a line ")


def test_online_accuracies_are_called_so(tmp_path):
    columns = {name: np.linspace(0.1, 0.9, 3) for name in train.CURVE}
    streamed = np.stack(list((columns | {"train_accuracy": np.full(3, np.nan)}).values()), 1)
    trials = [nested(m) for m in MODELS]
    lines, _ = lines_of(tmp_path, trials, [one(curve=streamed), one()])
    said = captions.captions(lines)["fig2"]
    assert said == "Training accuracy of mlp: over each epoch's batches as they were trained on."


# --- what it took ---------------------------------------------------------------------------------


def test_a_command_that_was_killed_has_no_time(tmp_path):
    made_workdir(tmp_path, [nested()], [one()])
    history = records.Workdir(tmp_path).history
    facts = {"cpu": {"cores": 1, "model": "x"}, "devices": ["cpu:0 cpu"]}

    def effort():
        return summary._effort(records.load_results(tmp_path))

    assert effort() == "1 trials, 30 steps, 7 s on 2 CPU cores."
    history.begin_run("0of1", facts | {"seconds": 3.0})
    assert effort() == "1 trials, 30 steps, 10 s on 1 CPU core, 2 commands together."
    history.begin_run("0of1", facts)
    assert effort() == (
        "1 trials, 30 steps, at least 10 s on 1 CPU core; 1 of 3 commands left no time (killed, "
        "or still running)."
    )


def test_a_figure_that_is_no_more_is_removed(tmp_path):
    made_workdir(tmp_path, [nested()], [one()])
    folder = tmp_path / "report"
    folder.mkdir()
    for name in ("fig2.png", "ranking.md", "my_notes.md"):
        (folder / name).write_text("")
    report.build(tmp_path)
    names = {p.name for p in folder.iterdir()}
    assert "my_notes.md" in names and not names & {"fig2.png", "ranking.md"}


def test_powers_of_ten_are_no_formulas():
    """Names with dollars are no formulas, so matplotlib's own would be shown as their source."""
    with plt.rc_context(figures.STYLE):
        figure, axes = plt.subplots(1, 2)
        for axis, low in zip(axes, (1e-5, 0.5), strict=True):
            axis.plot([low, 2e5], [low, 2])
            axis.set(xscale="log", yscale="log")
        assert figures.png(figure).startswith(b"\x89PNG")
    texts = [t.get_text() for a in axes for t in (*a.get_xticklabels(which="both"),
                                                  *a.get_yticklabels(which="both"))]  # fmt: skip
    assert not any("$" in text for text in texts)
    assert {"10⁻⁵", "0.01", "1", "100", "10⁴", "0.6", "2"} <= set(texts)
