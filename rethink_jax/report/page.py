"""The HTML page: one file, nothing loaded from elsewhere, everything from the run escaped."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape

from rethink_jax import paper, shown
from rethink_jax.records import Results
from rethink_jax.report.classical import Classical
from rethink_jax.report.ranking import Ranking
from rethink_jax.report.series import Row
from rethink_jax.report.tables import NOT_RUN, PaperTable

TITLES = {
    "examples": ("What the networks saw", "Training images as they are, and corrupted."),
    "fig1a": (
        "How the training loss falls",
        "Mean training loss in each epoch. Lines: mean over seeds; bands: lowest to highest seed. "
        "A trial that has ended keeps its last value.",
    ),
    "fig1b": (
        "How long fitting takes",
        "Epochs until the stop threshold is reached. Bands: standard deviation over seeds.",
    ),
    "fig1c": (
        "What is left of generalization",
        "Test error. Solid: test labels corrupted at the same rate as the training labels (how the "
        "paper's Figure 1(c) is most plausibly read); dashed: true test labels.",
    ),
    "fig2": (
        "What early stopping could gain",
        "Accuracy along training with true labels, mean over seeds. Thin: the highest test "
        "accuracy so far.",
    ),
    "capacity_errors": (
        "What fits, and what generalizes",
        "Training and test error. Bands: standard deviation over seeds.",
    ),
    "capacity_norms": (
        "Norms over margins",
        "Products of norms and sums over paths, over the margin that 5% of the images are below, "
        "squared; without factors of depth and width. Bands: standard deviation over seeds.",
    ),
    "capacity_measures": (
        "Measures on one scale",
        "Means over seeds; norms over margins as in the figure of norms. Right: the paper's.",
    ),
    "capacity_sharpness": (
        "Sharpness",
        "The largest increase of the training loss where each weight w moves by up to 0.0005 of "
        "|w| + 1, by one plus the loss. Bands: standard deviation over seeds.",
    ),
    "capacity_kl": (
        "Expected sharpness against KL divergence",
        "Gaussian noise on each weight w of deviation alpha (10 |w| + 1), a point for each alpha; "
        "means over seeds. Further to the right: a more complex network. The line is at 0.05.",
    ),
    "classical": (
        "Complexity, and what it says of the test error",
        "Left: correlation with random signs that training reaches, mean and 95% interval over "
        "draws. Right: the bound on the test error that follows from it (dashed), at least; and "
        "the test error with true labels (solid). A bound of 1 or more says nothing.",
    ),
    "along": (
        "How the networks change",
        "Measures along training, each network's on its own training images. Lines: mean over "
        "seeds; bands: lowest to highest seed. A trial that has ended keeps its last value. Of "
        "many measures and settings some are drawn; trials/*/measures.csv has all.",
    ),
}
_DOTTED = "Dotted: the paper's curves, digitised, where it trained the same network."
_OF_ZHANG = ("fig1a", "fig1b", "fig1c", "fig2")
_CSS = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 1360px; padding: 2.2rem 1.4rem 4rem; background: #fbfbfa;
       color: #1d1d1f; font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .6rem; }
h2 { font-size: 1.15rem; margin: 0 0 .1rem; }
ul.summary { list-style: none; padding: 0; margin: 0 0 1.6rem; font-size: 1.06rem; }
ul.summary li { padding: .18rem 0 .18rem 1.1rem; border-left: 3px solid #0072B2; margin: .35rem 0; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(380px, 1fr)); gap: 1.1rem; }
figure { margin: 0; padding: 1rem 1.1rem; background: #fff; border: 1px solid #e7e7e4;
         border-radius: 10px; }
figure.wide { grid-column: 1 / -1; text-align: center; }
figure.wide h2, figure.wide figcaption { text-align: left; }
figure.wide img { max-height: 360px; width: auto; }
figure.tall img { max-height: none; }
img { max-width: 100%; display: inline-block; margin-top: .5rem; }
figcaption { color: #5c5c60; font-size: .9rem; }
table { border-collapse: collapse; width: 100%; font-size: .86rem; background: #fff;
        margin: 1.6rem 0; }
th, td { padding: .36rem .55rem; border-bottom: 1px solid #ececea; text-align: left; }
th { font-weight: 600; color: #444; white-space: nowrap; }
td { font-variant-numeric: tabular-nums; white-space: nowrap; }
td.paper, th.paper { color: #7a4b00; }
td.empty { color: #a0a09c; }
tr.first td { border-top: 1px solid #b9b9b4; }
section { margin: 0 0 1.4rem; } section table { margin: .5rem 0; } section p { margin: .15rem 0;
          color: #5c5c60; }
.scroll { overflow-x: auto; }
details { margin-top: .8rem; } pre { overflow-x: auto; background: #f3f3f0; padding: .8rem;
          font-size: .8rem; }
@media (max-width: 520px) { .grid { grid-template-columns: 1fr; } }
"""


def render(
    results: Results,
    summary: list[str],
    pictures: dict[str, bytes],
    more: dict[str, str],
    compared: list[PaperTable],
    rows: list[Row],
    ranked: Ranking | None = None,
    classical: Sequence[Classical] = (),
) -> str:
    """The page as text.

    Args:
      pictures: {name in `TITLES`: PNG bytes}.
      more: {name of a picture: what its caption says of this sweep}.
      compared: the paper's tables.
      ranked: the table of measures.
      classical: complexity and stability.
    """
    dotted = _OF_ZHANG if compared else ()
    figures = "".join(
        _figure(name, pictures[name], more.get(name, ""), _DOTTED * (name in dotted))
        for name in TITLES
        if name in pictures
    )
    measures = "".join(table(t.title, t) for t in [*classical, *([ranked] if ranked else [])])
    body = (
        f"{''.join(map(_paper_table, compared))}<div class='grid'>{figures}</div>"
        f"{measures}{_table(rows)}{_details(results)}"
    )
    return document(_title(results), summary, body)


def document(title: str, summary: list[str], body: str) -> str:
    """A whole page: a title and sentences, as text, above a body in HTML."""
    items = "".join(f"<li>{escape(s)}</li>" for s in summary)
    return shown.lines(
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{_CSS}</style></head><body>"
        f"<h1>{escape(title)}</h1><ul class='summary'>{items}</ul>{body}</body></html>\n"
    )


def _title(results: Results) -> str:
    names = ", ".join(sorted({str(n) for n in results.trials["data.name"]}))
    return f"Fitting true and corrupted data: {names}"


def _figure(name: str, png: bytes, *more: str) -> str:
    title, caption = TITLES[name]
    return figure(title, " ".join(filter(None, (caption, *more))), png, name)


def figure(title: str, caption: str, png: bytes, name: str = "") -> str:
    """A figure with its title and caption, the picture inside."""
    data = base64.b64encode(png).decode()
    # A PNG file has its width and height at fixed places.
    width, height = (int.from_bytes(png[i : i + 4], "big") for i in (16, 20))
    kind = " class='wide'" if name == "examples" or width > 2 * height else ""
    kind = " class='wide tall'" if name == "along" else kind
    return (
        f"<figure{kind}><h2>{escape(title)}</h2><figcaption>{escape(caption)}</figcaption>"
        f"<img alt='{escape(title)}' src='data:image/png;base64,{data}'></figure>"
    )


def _paper_table(found: PaperTable) -> str:
    return table(f"{found.name} of the paper: {found.title}", found)


def table(heading: str, found: PaperTable | Ranking | Classical) -> str:
    """A table with its notes; a rule above each row that begins with a name of its own."""
    kinds = ["paper" if title == "paper" else "" for title in found.header]
    ruled = "paper" in kinds
    body = "".join(
        f"<tr{' class=first' if ruled and row[0] and not row[0].startswith('(') else ''}>"
        + "".join(_cell(text, kind) for text, kind in zip(row, kinds, strict=True))
        + "</tr>"
        for row in found.rows
    )
    return _section(heading, _framed(_head(found.header, kinds), body), found.notes)


def _section(heading: str, framed: str, notes: list[str]) -> str:
    notes_html = "".join(f"<p><small>{escape(n)}</small></p>" for n in notes)
    return f"<section><h2>{escape(heading)}</h2>{framed}{notes_html}</section>"


def _cell(text: str, kind: str) -> str:
    kind = "empty" if text in (NOT_RUN, "–") else kind
    return f"<td{f' class={kind}' if kind else ''}>{escape(text)}</td>"


def _head(titles: list[str], kinds: list[str]) -> str:
    return "".join(
        f"<th{f' class={kind}' if kind else ''}>{escape(title)}</th>"
        for title, kind in zip(titles, kinds, strict=True)
    )


def _framed(head: str, body: str) -> str:
    return (
        f"<div class='scroll'><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _table(rows: list[Row]) -> str:
    """The table of all settings; columns in which no row has anything are left out."""
    titles = {
        "line": "network",
        "setting": "data",
        "seeds": "seeds",
        "noise": "labels changed",
        "epochs_to_fit": "epochs to fit",
        "train_accuracy": "train accuracy",
        "train_paper": "paper's",
        "test_error_clean": "test error, true labels",
        "best_error_clean": "best along training",
        "test_error_corrupted": "test error, corrupted alike",
        "test_paper": "paper's",
    }
    shown = [name for name in titles if any(getattr(r, name) for r in rows)]
    kinds = ["paper" if name.endswith("paper") else "" for name in shown]
    body = "".join(
        "<tr>"
        + "".join(_cell(str(getattr(r, n)), kind) for n, kind in zip(shown, kinds, strict=True))
        + "</tr>"
        for r in rows
    )
    paper_note = f"<p><small>Paper: {escape(paper.ZHANG_2017)}.</small></p>"
    note = paper_note if "test_paper" in shown else ""
    return _framed(_head([titles[n] for n in shown], kinds), body) + note


def _details(results: Results) -> str:
    """Where the numbers come from."""
    config = json.dumps(results.run["config"], indent=1, sort_keys=True)
    return details(
        "Commands, versions, devices", json.dumps(results.run["runs"], indent=1)
    ) + details(f"Config (SHA-256 {results.run['config_sha256'][:12]})", config)


def details(title: str, text: str) -> str:
    """Text under a title that unfolds it."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"
