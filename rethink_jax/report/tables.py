"""The paper's tables with our numbers beside the printed ones, as HTML cells and as Markdown."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from rethink_jax import paper, records, shown
from rethink_jax.report.axes import SEEDS
from rethink_jax.report.classical import Classical
from rethink_jax.report.ranking import Ranking
from rethink_jax.report.series import field_columns, in_text, mean_std, numbers

NOT_RUN = "not run"
_NONE = "–"
_TITLES = {
    "train_accuracy": "train %",
    "train_top5_accuracy": "top-5 train %",
    "test_accuracy": "test %",
    "test_top5_accuracy": "top-5 test %",
}


class PaperTable(NamedTuple):
    """One of the paper's tables, in its own order of rows; all cells as text.

    header: "paper" is the title of every column of printed numbers
    notes: what has to be known to read it
    summary: one sentence: how many of its rows are run, and how far the worst is off
    """

    name: str
    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str]
    summary: str


class _Run(NamedTuple):
    """What was run for one cell of a table, or for one variant of it.

    variant: what sets it apart from the cell's other variants   trials: their rows of results
    """

    cell: paper.Cell
    variant: str
    trials: pd.DataFrame


def tables(done: pd.DataFrame, results: records.Results) -> list[PaperTable]:
    """Every table of the paper that some finished trial belongs to.

    done: the rows of results of the finished trials
    """
    classes = {name: len(d["classes"]) for name, d in results.run["data"].items()}
    done = done.assign(best_test_top5_accuracy=_best_top5(done, results.curves))
    cells = [paper.cell_of(row, classes.get(row["data.name"])) for _, row in done.iterrows()]
    runs: dict[paper.Cell, list[_Run]] = {}
    for cell in dict.fromkeys(c for c in cells if c):
        runs[cell] = _variants(cell, done[[c == cell for c in cells]])
    return [
        _table(name, {c: runs[c] for c in table.rows if c in runs})
        for name, table in paper.TABLES.items()
        if any(c.table == name for c in runs)
    ]


def _best_top5(done: pd.DataFrame, curves: pd.DataFrame) -> pd.Series:
    """The highest top-5 test accuracy along training of each trial."""
    if "test_top5_accuracy" not in curves:
        return pd.Series(np.nan, done.index)
    return done["trial_id"].map(curves.groupby("trial_id")["test_top5_accuracy"].max())


def _variants(cell: paper.Cell, trials: pd.DataFrame) -> list[_Run]:
    """The trials of a cell, split where they differ in more than their seeds."""
    fields = [c for c in field_columns(trials) if c not in SEEDS]
    keys = trials[fields].map(repr)
    varied = [c for c in fields if keys[c].nunique() > 1]
    groups = trials.groupby([keys[c] for c in varied] or (lambda _: 0), sort=False)
    return [
        _Run(cell, ", ".join(f"{c.split('.')[-1]} {g.iloc[0][c]}" for c in varied), g)
        for _, g in groups
    ]


def _table(name: str, runs: dict[paper.Cell, list[_Run]]) -> PaperTable:
    table = paper.TABLES[name]
    measures = [m for m in _TITLES if any(m in row for row in table.rows.values())]
    # The labels are a column in Table 2, a row's title in Table 1, and all random in Table 4.
    labels = ["labels"] if name == "Table 2" else []
    params = ["# params"] if name == "Table 1" else []
    best = [m for m in measures if m.startswith("test")]
    header = ["model", *params, *labels, *table.factors, "seeds"]
    for measure in measures:
        header += [_TITLES[measure], "paper", "difference"]
    header += [f"best {_TITLES[m]}" for m in best] + ["epochs to fit"]
    rows, named = [], ""
    for cell in table.rows:
        for run in runs.get(cell, [_Run(cell, "", pd.DataFrame())]):
            lead = _lead(run, runs, first=cell.network != named)
            named = cell.network
            rows.append([*lead, *_numbers(run, measures), *_last(run, best)])
    return PaperTable(
        name, table.title, header, rows, _notes(table, runs), _sentence(name, runs, measures)
    )


def _lead(run: _Run, runs: dict[paper.Cell, list[_Run]], first: bool) -> list[str]:
    """The cells that say what a row is; a network is named in the first of its rows."""
    cell, printed = run.cell, paper.NETWORKS[run.cell.network].printed
    name = printed if first or cell.table == "Table 4" else ""
    if cell.table == "Table 1" and cell.labels == "random":
        name = "(fitting random labels)"
    if run.variant:
        name = f"{name} [{run.variant}]".strip()
    params = [_params(cell.network, runs) if first else ""] if cell.table == "Table 1" else []
    labels = [cell.labels] if cell.table == "Table 2" else []
    return [name, *params, *labels, *cell.factors]


def _params(network: str, runs: dict[paper.Cell, list[_Run]]) -> str:
    """The printed number of a network's parameters, and ours where it is another."""
    trials = [r.trials for cell, rs in runs.items() for r in rs if cell.network == network]
    own = {int(n) for t in trials for n in numbers(t, "num_params")}
    printed = paper.NETWORKS[network].num_params
    others = ", ".join(f"{n:,}" for n in sorted(own - {printed}))
    return f"{printed:,}" + (f" (ours: {others})" if others else "")


def _numbers(run: _Run, measures: list[str]) -> list[str]:
    """Seeds; then of each measure: ours, the printed number, the difference in points."""
    cells = [_seeds(run)]
    for measure in measures:
        number = paper.published(run.cell).get(measure)
        text, mean = _ours(run, measure)
        cells += [text, _printed(run.cell, measure), _points(mean, number)]
    return cells


def _seeds(run: _Run) -> str:
    if run.trials.empty:
        return ""
    diverged = int((run.trials["status"] == "diverged").sum())
    return f"{len(run.trials)}" + (f" ({diverged} diverged)" if diverged else "")


def _converged(run: _Run) -> pd.DataFrame:
    return run.trials[run.trials["status"] != "diverged"]


def _ours(run: _Run, measure: str) -> tuple[str, float]:
    """Our number in text, and its mean over seeds (NaN if there is none)."""
    if "-" in run.cell.factors:
        return "", float("nan")
    if run.trials.empty:
        return NOT_RUN, float("nan")
    if _converged(run).empty:
        return "diverged", float("nan")
    values, mark = numbers(_converged(run), f"final_{measure}"), ""
    # Table 4 prints the online accuracy where the images are new in each epoch; a streamed training
    # set is never evaluated as a whole.
    augmented = run.cell.table == "Table 4" and run.cell.factors != ("weight decay",)
    if measure == "train_accuracy" and (augmented or values.isna().all()):
        values, mark = numbers(_converged(run), "final_online_accuracy"), " (online)"
    mean = mean_std(values)[0]
    return in_text(100 * values, ".2f") + (mark if np.isfinite(mean) else ""), mean


def _printed(cell: paper.Cell, measure: str) -> str:
    """The printed number; in parentheses, as in the paper, the best along training."""
    numbers_of_row = paper.published(cell)
    number, best = numbers_of_row.get(measure), numbers_of_row.get(f"best_{measure}")
    if number is None:
        return ""
    text = number.value if isinstance(number.value, str) else f"{100 * number.value:.2f}"
    return text + (f" ({100 * best.value:.2f})" if best else "") + (" †" if number.note else "")


def _points(mean: float, number: paper.Published | None) -> str:
    """Ours less the paper's, in percentage points."""
    if number is None or isinstance(number.value, str) or not np.isfinite(mean):
        return ""
    return f"{round(100 * (mean - number.value), 2) + 0.0:+.2f}"  # + 0.0: never "-0.00"


def _last(run: _Run, best: list[str]) -> list[str]:
    """The best test accuracies along training, and the epochs to fit."""
    if run.trials.empty:
        return [""] * (len(best) + 1)
    trials = _converged(run)
    accuracies = [in_text(100 * numbers(trials, f"best_{m}"), ".2f") for m in best]
    epochs = numbers(run.trials, "epochs_to_fit")
    unfitted = int(epochs.isna().sum())
    fit = in_text(epochs, ".1f") + (f" ({unfitted} did not fit)" if unfitted else "")
    return [*accuracies, _NONE if unfitted == len(epochs) else fit]


def _sentence(name: str, runs: dict[paper.Cell, list[_Run]], measures: list[str]) -> str:
    measure = "test_accuracy" if "test_accuracy" in measures else "train_accuracy"
    found = []
    for run in (r for variants in runs.values() for r in variants):
        number, mean = paper.published(run.cell).get(measure), _ours(run, measure)[1]
        if text := _points(mean, number):
            found.append(
                (
                    abs(mean - number.value),
                    text,
                    number.row + f" [{run.variant}]" * bool(run.variant),
                )
            )
    of = sum("-" not in cell.factors for cell in paper.TABLES[name].rows)
    sentence = f"{len(runs)} of {of} rows of {name} run"
    if found:
        _, text, row = max(found)
        what = measure.replace("_", " ").replace("train ", "training ")
        sentence += f"; the largest difference in {what} is {text} points ({row})"
    return sentence + "."


def _notes(table: paper.Table, runs: dict[paper.Cell, list[_Run]]) -> list[str]:
    """What has to be known to read a table: certainty, protocol, what is unstated."""
    certainties = {n.certainty for row in table.rows.values() for n in row.values()}
    notes = [
        f"Paper: {paper.ZHANG_2017}; its numbers are {' and '.join(sorted(certainties))}. Ours: "
        "mean ± standard deviation over seeds that did not diverge. Difference: ours less the "
        "paper's, in percentage points. Best: highest along training, which early stopping could "
        "gain at most."
    ]
    notes += [f"† {n.note}" for row in table.rows.values() for n in row.values() if n.note]
    found = [r for variants in runs.values() for r in variants]
    if any(_ours(r, "train_accuracy")[0].endswith("(online)") for r in found):
        notes.append("(online): accuracy over the last epoch's batches as they were trained on.")
    named = [(paper.NETWORKS[r.cell.network].printed, r.trials.iloc[0], r.cell) for r in found]
    decays = [f"{n} {t['optimizer.weight_decay']:g}" for n, t, _ in named
              if t["optimizer.weight_decay"] > 0]  # fmt: skip
    if decays:
        notes.append(f"Weight decay, of which the paper states no coefficient: {_listed(decays)}.")
    departures = [f"{n}: {', '.join(d)}" for n, t, c in named if (d := paper.departures(t, c))]
    if departures:
        notes.append(f"Other than the paper says: {_listed(departures)}.")
    return notes


def _listed(texts: list[str]) -> str:
    return "; ".join(dict.fromkeys(texts))


def markdown(heading: str, table: PaperTable | Ranking | Classical) -> str:
    """A table as Markdown, with its notes."""
    lines = [f"**{heading}**", "", _row(table.header)]
    lines += [_row(["---"] * len(table.header)), *map(_row, table.rows), ""]
    return shown.lines("\n".join([*lines, *(f"{_escaped(n)}\n" for n in table.notes)]))


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(map(_escaped, cells))} |"


def _escaped(text: Any) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", text)
