"""The figures of capacity measures: what is drawn, and beside which of the paper's numbers."""

import csv

import numpy as np
import pytest
from test_report import made_workdir

from rethink_jax import paper_neyshabur2017 as paper
from rethink_jax import records, report, trials
from rethink_jax.report import capacity

SEEDS = (0, 1, 2)
FITTED = {
    "fit": 3, "loss": 1.0,
    "final": {"train_accuracy": 1.0, "test_accuracy": 0.9, "test_corrupted_accuracy": 0.9},
}  # fmt: skip
SLOW = FITTED | {"fit": None}
NORMS = tuple(capacity._NORMS.values())
ALPHAS = ("0.001", "0.01", "0.1")


def swept(folder, nested, results=None, values=lambda trial: {}, data="mnist"):
    """A workdir of made trials with made measures, {measure: value} of each."""
    made_workdir(folder, nested, results or [FITTED] * len(nested), name=data)
    resolved = [trials.resolve(t) for t in nested]
    with open(folder / "measures.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("trial_id", "measure", "value", "status", "reason"))
        for trial in resolved:
            for name, value in values(trial).items():
                writer.writerow((trial.trial_id, name, value, "ok", ""))
    found = records.load_results(folder)
    return capacity.sweep(found.trials, records.load_measures(folder))


def all_measures(trial):
    """Norms (logarithms) that grow with the seed by 1, sharpness, and a KL curve."""
    width = trial["model.hidden"][0] if trial["model.name"] == "mlp" else 1
    found = {name: 2 * np.log(width) + trial["seed"] for name in NORMS}
    found["sharpness_zeta"] = 0.1 * width
    for alpha in ALPHAS:
        found[f"pac_bayes_kl[{alpha}]"] = width / float(alpha)
        found[f"expected_sharpness[{alpha}]"] = float(alpha)
    return found


def by_width(folder, data="mnist", widths=(8, 32, 128), results=None, values=all_measures, **more):
    nested = [
        {"seed": seed, "data": {"name": data}, "model": {"name": "mlp", "hidden": (width,)}} | more
        for width in widths
        for seed in SEEDS
    ]
    return swept(folder, nested, results, values, data)


@pytest.fixture
def drawn(monkeypatch):
    kept = []
    monkeypatch.setattr(capacity, "png", lambda figure: kept.append(figure) or b"")

    def axes_of(draw, found):
        kept.clear()
        draw(found)
        return kept[0].axes

    return axes_of


def line(axis, label):
    return next(x for x in axis.lines if x.get_label() == label)


def test_errors_beside_figure_4(tmp_path, drawn):
    results = [
        FITTED | {"final": FITTED["final"] | {"test_accuracy": 0.9 + 0.01 * (i % 3)}}
        for i in range(9)
    ]
    (axis,) = drawn(capacity._errors, by_width(tmp_path / "a", results=results))
    ours = line(axis, "test, true labels")
    assert list(ours.get_xdata()) == [8, 32, 128]
    np.testing.assert_allclose(ours.get_ydata(), 0.09)
    theirs = line(axis, "test, Neyshabur et al. (2017), Figure 4")
    assert list(theirs.get_xdata()) == [2**k for k in range(3, 14)]
    assert theirs.get_ydata()[2] == pytest.approx(0.0317)
    # Of other data there is no published curve.
    (axis,) = drawn(capacity._errors, by_width(tmp_path / "b", "digits"))
    assert {x.get_label() for x in axis.lines} == {"training, true labels", "test, true labels"}


def test_norms_are_means_of_logarithms_to_base_10(tmp_path, drawn):
    axes = drawn(capacity._norms, by_width(tmp_path))
    assert len(axes) == 4
    for axis in axes:
        ours = line(axis, "true labels")
        expected = [(2 * np.log(w) + 1) / np.log(10) for w in (8, 32, 128)]
        np.testing.assert_allclose(ours.get_ydata(), expected)


def test_measures_are_over_their_largest_beside_the_papers(tmp_path, drawn):
    ours, papers = drawn(capacity._normalized, by_width(tmp_path))
    np.testing.assert_allclose(
        line(ours, "l2 norm").get_ydata(), [(w / 128) ** 2 for w in (8, 32, 128)], rtol=1e-6
    )
    np.testing.assert_allclose(line(ours, "sharpness").get_ydata(), [8 / 128, 32 / 128, 1])
    assert tuple(line(papers, "l1 path norm").get_ydata()) == paper.fig4("l1path").value


def test_networks_that_did_not_fit_are_left_out_of_measures_only(tmp_path, drawn):
    found = by_width(tmp_path, results=[SLOW] * 3 + [FITTED] * 6)
    assert list(found.lines["true labels"]) == [8, 32, 128]
    assert list(found.fitted.lines["true labels"]) == [32, 128]
    assert set(capacity.figures(found)) == {
        "capacity_errors", "capacity_norms", "capacity_measures", "capacity_sharpness",
        "capacity_kl",
    }  # fmt: skip


def test_kl_curves_are_means_over_seeds(tmp_path, drawn):
    (axis,) = drawn(capacity._kl_curves, by_width(tmp_path))
    curve = line(axis, "32, true labels")
    np.testing.assert_allclose(curve.get_xdata(), [32_000, 3_200, 320])
    np.testing.assert_allclose(curve.get_ydata(), [0.001, 0.01, 0.1])


def vgg(images, prob, stages=(4, 8), seeds=SEEDS):
    model = {"name": "vgg", "stages": stages, "convs": (1,) * len(stages)}
    return [
        {"seed": s, "data": {"name": "cifar10", "num_train": n}, "model": model,
         "corruption": {"label_prob": p}}
        for n in images for p in prob for s in seeds
    ]  # fmt: skip


def test_true_and_random_labels_by_images(tmp_path, drawn):
    nested = vgg((500, 1000), (0.0, 1.0))
    found = swept(tmp_path / "a", nested, values=all_measures, data="cifar10")
    assert found.axis.field == "data.num_train"
    assert {n: list(x) for n, x in found.lines.items()} == {
        "true labels": [500, 1000], "random labels": [500, 1000],
    }  # fmt: skip
    axes = drawn(capacity._norms, found)
    assert len(axes) == 8  # A narrow VGG: the paper's in panels of their own.
    assert len(axes[0].lines) == 2
    assert tuple(axes[4].lines[1].get_ydata()) == paper.fig1("l2", "random").value
    _, papers = drawn(capacity._kl_curves, found)
    assert len(papers.lines) == 9
    # The paper's network: its curves over ours.
    nested = vgg((5_000, 10_000), (0.0, 1.0), (64, 128, 256, 512))
    found = swept(tmp_path / "b", nested, values=all_measures, data="cifar10")
    axes = drawn(capacity._norms, found)
    assert len(axes) == 4 and len(axes[0].lines) == 4
    (axis,) = drawn(capacity._sharpness, found)
    assert len(axis.lines) == 4


def test_confusion_sets_are_drawn_from_0_to_1(tmp_path, drawn):
    def values(trial):
        size = trial["data.num_confusion"]
        return {n: np.log(10 + size) for n in NORMS} | {"sharpness_zeta": 5 - size / 1_000}

    nested = [
        {"seed": s, "data": {"name": "cifar10", "num_train": 10_000, "num_confusion": c},
         "model": {"name": "vgg"}}
        for c in (0, 1_000, 2_000) for s in SEEDS
    ]  # fmt: skip
    found = swept(tmp_path, nested, values=values, data="cifar10")
    ours, papers = drawn(capacity._normalized, found)
    np.testing.assert_allclose(line(ours, "l2 norm").get_ydata(), [0, 0.5, 1], atol=1e-9)
    np.testing.assert_allclose(line(ours, "sharpness").get_ydata(), [1, 0.5, 0], atol=1e-9)
    assert tuple(line(papers, "sharpness").get_ydata()) == paper.fig3("sharpness").value
    (axis,) = drawn(capacity._errors, found)
    assert tuple(line(axis, "test, Neyshabur et al. (2017), Figure 3").get_ydata()) == (
        0.187, 0.226, 0.249, 0.265, 0.297, 0.337,
    )  # fmt: skip


def test_no_figure_where_something_else_varies_or_nothing(tmp_path):
    mixed = vgg((500, 1000), (0.0,)) + vgg((500, 1000), (0.0,), (4, 4))
    assert swept(tmp_path / "a", mixed, data="cifar10") is None
    assert swept(tmp_path / "b", vgg((500,), (0.0,)), data="cifar10") is None
    assert by_width(tmp_path / "c", results=None, values=lambda t: {}).axis.field == "model.hidden"
    assert capacity.figures(None) == {}


def test_missing_numbers_leave_gaps_and_no_figure_where_all_are_missing(tmp_path, drawn):
    def values(trial):
        found = all_measures(trial)
        only = {name: found[name] for name in ("sharpness_zeta",)}
        return found if trial["model.hidden"] != (32,) else only

    found = by_width(tmp_path, values=values)
    axes = drawn(capacity._norms, found)
    assert list(line(axes[0], "true labels").get_xdata()) == [8, 128]
    nothing = by_width(tmp_path / "none", values=lambda t: {"margin_min": 1.0})
    assert set(capacity.figures(nothing)) == {"capacity_errors"}


def test_the_page_shows_them(tmp_path):
    by_width(tmp_path)
    text = report.build(tmp_path).page.read_text()
    for title in ("What fits, and what generalizes", "Norms over margins", "KL divergence"):
        assert title in text
