"""From a workdir to figures, a table beside the paper's numbers, and one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from rethink_jax import records
from rethink_jax.schema import UserError


class Report(NamedTuple):
    """page: the HTML file   summary: a few sentences, one per line"""

    page: Path
    summary: list[str]


def build(workdir: str | Path) -> Report:
    """Writes <workdir>/report/: index.html, figures as PNG files, the paper's tables as Markdown.

    Raises:
      UserError: not a workdir, no finished trial in it, or the report extra is not installed.
    """
    try:
        from rethink_jax.report import along, figures, hidden_units, page, series, tables
    except ImportError as error:
        raise UserError(
            f"the report needs {error.name}; install it with: pip install 'rethink_jax[report]'"
        ) from error
    results = records.load_results(workdir)
    done = results.trials[results.trials["status"].isin(("fitted", "finished", "diverged"))]
    if done.empty:
        raise UserError(
            f"no trial of {workdir} is finished yet; run the sweep, the report shows what is there"
        )
    lines = series.lines(done, results)
    folder = Path(workdir) / "report"
    folder.mkdir(exist_ok=True)
    compared = tables.tables(done, results)
    pictures = {
        "examples": figures.examples(records.load_examples(workdir)),
        "fig1a": figures.loss_curves(lines),
        "fig1b": figures.epochs_to_fit(lines),
        "fig1c": figures.test_error(lines),
        "fig2": figures.accuracy_curves(lines),
        "hidden_units": hidden_units.errors(lines),
        "along": along.curves(lines, records.load_measures_along(workdir)),
    }
    pictures = {name: png for name, png in pictures.items() if png is not None}
    for name, png in pictures.items():
        (folder / f"{name}.png").write_bytes(png)
    for table in compared:
        file = f"{table.name.lower().replace(' ', '')}.md"
        records.write_atomically(folder / file, tables.markdown(table))
    summary = series.summary(results, done, lines, [t.summary for t in compared])
    html = page.render(results, summary, pictures, compared, series.table(lines))
    records.write_atomically(folder / "index.html", html)
    return Report(folder / "index.html", summary)
