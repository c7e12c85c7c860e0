"""The figure of measures along training: what is drawn of which trial, and when there is one."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from test_report import CIFAR_MLP, made_workdir

from rethink_jax import measures, records, report, trials
from rethink_jax.report import along, series

NESTED = [
    CIFAR_MLP | {"seed": s, "corruption": {"label_prob": p}} for p in (0.0, 1.0) for s in (0, 1)
]
FINAL = {"train_accuracy": 1.0, "test_accuracy": 0.5, "test_corrupted_accuracy": 0.5}


@pytest.fixture
def workdir(tmp_path):
    """Four trials of three epochs: two seeds with true labels, two with random ones."""
    return made_workdir(tmp_path, NESTED, [{"fit": 3, "loss": 1.0, "final": FINAL}] * 4)


def measure(workdir, rows_of_trial):
    for nested, rows in zip(NESTED, rows_of_trial, strict=True):
        records.Workdir(workdir).write_measures(trials.resolve(nested).trial_id, rows)


def drawn(workdir, monkeypatch):
    """{title of a panel: {label: (epochs, values)}} of the figure."""
    figures = []
    monkeypatch.setattr(along, "png", lambda figure: figures.append(figure) or b"")
    results = records.load_results(workdir)
    found = series.lines(results.trials, results)
    assert along.curves(found, records.load_measures_along(workdir)) == b""
    panels = {}
    for axis in figures[0].axes:
        lines = {x.get_label(): tuple(map(list, x.get_data())) for x in axis.get_lines()}
        if axis.get_title():
            panels[axis.get_title()] = lines
    plt.close(figures[0])
    return panels


def test_no_figure_without_measures(workdir):
    page = report.build(workdir).page.read_text()
    assert "How the networks change" not in page
    assert not (workdir / "report" / "along.png").exists()


def test_the_report_has_the_figure(workdir):
    measure(workdir, [{2: {"margin_min": 1.0}, 3: {"margin_min": 2.0}}] * 4)
    page = report.build(workdir).page.read_text()
    assert page.count("How the networks change") == 2  # its heading, and the picture's text
    assert (workdir / "report" / "along.png").stat().st_size > 1000


def test_lines_are_means_over_the_seeds_of_a_setting(workdir, monkeypatch):
    values = [(1.0, 5.0), (3.0, 9.0), (-1.0, 0.0), (-3.0, 2.0)]
    measure(workdir, [{2: {"margin_min": a}, 3: {"margin_min": b}} for a, b in values])
    assert drawn(workdir, monkeypatch) == {
        "margin_min": {
            "true labels": ([2, 3], [2.0, 7.0]),
            "random labels": ([2, 3], [-2.0, 1.0]),
        }
    }


def test_an_ended_trial_keeps_its_last_value():
    """And epochs after which a trial that goes on was not measured are left out."""
    nan = np.nan
    values = pd.DataFrame(
        {"a": [1.0, 2.0, 3.0, nan], "b": [5.0, nan, 6.0, 7.0]}, index=pd.Index([2, 3, 4, 6])
    )
    held = along.held(values, pd.Series({"a": 4, "b": 6}))
    assert list(held.index) == [2, 4, 6]
    assert list(held["a"]) == [1.0, 3.0, 3.0]
    assert list(held["b"]) == [5.0, 6.0, 7.0]


def test_what_is_infinite_is_a_gap():
    values = pd.DataFrame({"a": [np.inf, 2.0]}, index=pd.Index([1, 2]))
    held = along.held(values, pd.Series({"a": 2}))
    assert list(held.index) == [1, 2]
    assert np.isnan(held["a"][1])


def test_of_many_measures_some_of_each_family_are_drawn(workdir, monkeypatch):
    names = (*measures.FAMILIES["norms"], *measures.FAMILIES["margins"], "of_the_user")
    measure(workdir, [{2: dict.fromkeys(names, 1.0)}] * 4)
    shown = list(drawn(workdir, monkeypatch))
    assert len(shown) <= 8
    families = [f for f in ("margins", "norms") if set(measures.FAMILIES[f]) & set(shown)]
    assert families == ["margins", "norms"]
    assert "of_the_user" in shown
    few = {2: dict.fromkeys(("log_product_frobenius", "margin_min"), 1.0)}
    measure(workdir, [few] * 4)
    assert list(drawn(workdir, monkeypatch)) == ["margin_min", "log_product_frobenius"]
