"""From a workdir to figures, a table beside the paper's numbers, and one HTML page."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from rethink_jax import records, shown
from rethink_jax.report import output
from rethink_jax.schema import UserError
from rethink_jax.theory import cases


class Report(NamedTuple):
    """page: the HTML file   summary: a few sentences, one per line"""

    page: Path
    summary: list[str]


def build(workdir: str | Path) -> Report:
    """Writes <workdir>/report/: index.html, figures as PNG files, tables as Markdown.

    Raises:
      UserError: not a workdir, no finished trial in it, or the report extra is not installed.
    """
    try:
        from rethink_jax.report import (
            along,
            by_labels,
            capacity,
            captions,
            classical,
            copies,
            figures,
            page,
            ranking,
            series,
            summary,
            tables,
            theory,
        )
    except ImportError as error:
        raise UserError(
            f"the report needs {error.name}; install it with: pip install 'rethink_jax[report]'"
        ) from error
    folder = Path(workdir).expanduser()
    if records.Workdir(folder).header() is None and (folder / "theory").is_dir():
        found = cases.load(workdir)
        if not found:
            raise UserError(f"{folder / 'theory'} has no whole record; run launch.theory again")
        return Report(*theory.build(folder, found))
    results = records.load_results(folder)
    done = results.trials[results.trials["status"].isin(records.DONE)]
    if done.empty:
        raise UserError(
            f"no trial of {workdir} is finished yet; run the sweep, the report shows what is there"
        )
    measured = records.load_measures(folder)
    # What is below sees each training once. Bounds are over draws of labels, which are no copies.
    bounded = classical.tables(folder, done, results)
    seen = copies.distinct(done, () if measured is None else measured.index)
    done = seen.trials
    lines = series.lines(done, results)
    compared = tables.tables(done, results)
    ranked = ranking.table(done, results, measured)
    pictures = {
        "examples": figures.examples(records.load_examples(folder)),
        "fig1a": figures.loss_curves(lines),
        "fig1b": by_labels.epochs_to_fit(lines),
        "fig1c": by_labels.test_error(lines),
        "fig2": figures.accuracy_curves(lines),
        **capacity.figures(capacity.sweep(done, measured)),
        "classical": classical.figure(bounded),
        "along": along.curves(lines, records.load_measures_along(folder)),
    }
    pictures = {name: png for name, png in pictures.items() if png is not None}
    sentences = [t.summary for t in (*compared, *bounded, ranked) if t and t.summary]
    said = [shown.line(s) for s in summary.sentences(results, seen, lines, sentences)]
    more = captions.captions(lines)
    rows = series.table(lines)
    texts = {
        "index.html": page.render(results, said, pictures, more, compared, rows, ranked, bounded),
        **{
            f"{t.name.lower().replace(' ', '')}.md": tables.markdown(f"{t.name}: {t.title}", t)
            for t in compared
        },
        **({"ranking.md": tables.markdown(ranked.title, ranked)} if ranked else {}),
        **{f"{t.name}.md": tables.markdown(t.title, t) for t in bounded},
    }
    # An older report may have had more.
    gone = {*(f"{name}.png" for name in page.TITLES), "ranking.md"} - texts.keys()
    return Report(_write(folder, pictures, texts, gone), said)


def _write(
    workdir: Path, pictures: dict[str, bytes], texts: dict[str, str], gone: Collection[str]
) -> Path:
    """Writes the files of a report and removes those that are gone; returns the page."""
    with output.folder_of(workdir) as folder:
        for name in gone:
            (folder / name).unlink(missing_ok=True)
        for name, png in pictures.items():
            (folder / f"{name}.png").write_bytes(png)
        for name, text in texts.items():
            records.write_atomically(folder / name, text)
    return folder / "index.html"
