"""The page of a workdir of theory: tables of the constructions beside the papers' numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rethink_jax import records
from rethink_jax.report import (
    output,
    page,
    tables,
    theory_minimum_norm,
    theory_overtraining,
)
from rethink_jax.report.tables import PaperTable
from rethink_jax.theory import cases

Record = dict[str, Any]

# --- memorizer ------------------------------------------------------------------------------------

# Title: row of the record, and its format.
_MEMORIZER = {
    "depth": ("depth", "d"),
    "width": ("width", ",d"),
    "weights": ("weights", ",d"),
    "beyond 2n+d": ("weights - (2n+d)", "d"),
    "labels reproduced": ("labels reproduced", ".2%"),
    "largest error": ("largest error", ".1e"),
    "in float32": ("the same weights in float32, reproduced", ".1%"),
    "condition number": ("condition number of A", ".1e"),
    "l2 norm of w": ("l2 norm of w", ".3g"),
    "margin by norms": ("margin / (product of spectral norms * |x|)", ".1e"),
    "seconds": ("seconds of construction", ".2g"),
    "test error": ("test error", ".1%"),
}


def memorizers(found: list[Record]) -> PaperTable:
    """A row for each network: those built, and those that SGD trained beside them."""
    rows = []
    for record in found:
        data = record["found"]["data"]
        task = f"{data['train']:,} images of {data['name']}, {data['labels']} labels"
        for name, network in (("memorizer", "Theorem 1"), ("sgd", "SGD")):
            numbers = record["found"].get(name)
            if numbers is None:
                continue
            deep = "Corollary 1" if name == "memorizer" and numbers["depth"] > 2 else network
            kind = f"{deep}, float32" if _in_float32(record, name) else deep
            values = [_shown(numbers.get(row), form) for row, form in _MEMORIZER.values()]
            rows.append([task, kind, *values])
    built = [r["found"]["memorizer"] for r in found]
    exact = sum(own["labels reproduced"] == 1 for own in built)
    most = max(found, key=lambda r: r["found"]["data"]["train"])["found"]
    return PaperTable(
        "theorem1",
        "Networks that take any labels on n images of d values",
        ["images", "network", *_MEMORIZER],
        rows,
        [
            "Theorem 1: two layers, 2n+d weights; Corollary 1: deeper and narrower. Every number "
            "is of a plain forward pass. Zhang et al. 2017, Theorem 1 and Corollary 1.",
            "Margin by norms: the smallest margin by the product of the layers' spectral norms and "
            "the root mean square of an image's norm.",
        ],
        f"{exact} of {len(built)} networks that were built reproduce every label; with "
        f"{most['memorizer']['weights']:,} weights on {most['data']['train']:,} images of "
        f"{most['data']['name']}, test error {most['memorizer']['test error']:.1%}",
    )


def _in_float32(record: Record, name: str) -> bool:
    return name == "memorizer" and record["trial"]["precision"] == "float32"


# --- kernels --------------------------------------------------------------------------------------


def kernels(found: list[Record]) -> PaperTable:
    """Table 3 of the paper: a row for each kernel machine."""
    rows = []
    for record in found:
        own, data, machine = (record["found"][part] for part in ("ours", "data", "machine"))
        papers = record["found"]["paper"]
        rows.append([
            f"{data['name']}, {data['train']:,}",
            data["labels"],
            machine["features"] + (f" ({machine['filters']:,})" if "filters" in machine else ""),
            f"{machine['kernel']} {_shown(machine.get('bandwidth'), '.3g')}".removesuffix(" –"),
            _shown(machine["ridge by mean diagonal"] or None, "g"),
            _shown(own["test error"], ".2%"),
            _shown((papers["test error"] or {}).get("value"), ".1%"),
            _shown(own["norm of the solution"], ".4g"),
            _shown((papers["norm of the solution"] or {}).get("value"), "g"),
            _shown(own["residual"], ".0e"),
            own["solver"],
            _shown(own["seconds"], ",.0f"),
            _shown(own["MiB at most, of the process so far"], ",.0f"),
        ])  # fmt: skip
    beside = [r for r in found if r["found"]["paper"]["test error"]]
    return PaperTable(
        "table3",
        "Kernel machines through the training set (Table 3 of Zhang et al. 2017)",
        ["images", "labels", "features", "kernel", "ridge", "test error", "paper", "norm", "paper",
         "residual", "solver", "seconds", "MiB"],
        rows,
        ["The paper's numbers are of all training images, without a ridge in Table 3; its "
         "bandwidth, and which numbers stand for labels, are not stated. Ours: the bandwidth by a "
         "validation split of the training images, 0 and 1 for labels."],
        f"{len(found)} kernel machines, {len(beside)} of them beside the paper's",
    )  # fmt: skip


def _shown(value: Any, form: str) -> str:
    return "–" if value is None else format(value, form)


# --- the page -------------------------------------------------------------------------------------


def _minimum_norm(record: Record) -> str:
    said, model = record["found"]["statements"], record["found"]["model"]
    moved = said["largest change of the component that may not move"]
    return (
        f"{_of(record)}: SGD from zero ends at the minimum-norm solution (distance at most "
        f"{_shown(said['largest distance to the minimum norm, from zero'], '.0e')} of its norm), "
        f"from other starts at the solution closest to each (at most "
        f"{_shown(said['largest distance to its own limit'], '.0e')}); what is outside the span of "
        f"the images moves by {_shown(moved, '.0e')}; "
        f"{model['dimensions']:,} weights for each class"
    )


def _overtraining(record: Record) -> str:
    said = record["found"]["statements"]
    return (
        f"the minimum-norm solution's test error is worst at "
        f"{said['peak of the minimum norm, alpha']:g} examples for each parameter (theory: "
        f"{said['peak in theory, alpha']:g}): {said['minimum norm at the peak, median']:.3g} of "
        f"what knowing nothing gives; stopped at the best time {said['stopped at the peak']:.2f}"
    )


def _of(record: Record) -> str:
    trial = record["trial"]
    if not trial.get("data"):
        return ""
    return f"{trial['num_train']:,} images of {trial['data']}"


class _Figure(NamedTuple):
    """say: a sentence for the top of the page"""

    title: str
    caption: str
    draw: Callable[[dict[str, Any]], bytes]
    say: Callable[[Record], str]


# One figure for each record.
_FIGURES = {
    "minimum_norm": _Figure(
        "SGD on a linear model finds the closest interpolating weights",
        "Distances along training. From zero the closest weights are those of minimum norm; what "
        "is outside the span of the images never moves (Zhang et al. 2017, Section 5).",
        theory_minimum_norm.figure,
        _minimum_norm,
    ),
    "overtraining": _Figure(
        "Overtraining is worst at as many parameters as examples",
        "A linear student of a noisy teacher: theory in the limit of large dimensions beside "
        "gradient descent (the setup of Advani and Saxe 2017); right: random ReLU features of "
        "images.",
        theory_overtraining.figure,
        _overtraining,
    ),
}

_TABLES: dict[str, Callable[[list[Record]], PaperTable]] = {
    "memorizer": memorizers,
    "kernel": kernels,
}


def build(workdir: Path, found: list[Record]) -> tuple[Path, list[str]]:
    """Writes <workdir>/report/index.html, and the tables as Markdown; its path, and its summary."""
    parts, summary, texts = [], [], {}
    for experiment, tabulate in _TABLES.items():
        if not (own := [r for r in found if r["experiment"] == experiment]):
            continue
        made = tabulate(_sorted(own))
        parts.append(page.table(made.title, made))
        summary.append(made.summary)
        texts[f"{made.name}.md"] = tables.markdown(made.title, made)
    drawn, pictures = [], {}
    for experiment, (title, caption, draw, say) in _FIGURES.items():
        for record in _sorted([r for r in found if r["experiment"] == experiment]):
            png, name = draw(record["found"]), record["name"]
            pictures[f"{name}.png"] = png
            drawn.append(page.figure(title, f"{caption} {_of(record)}", png))
            summary.append(say(record))
    parts.append(f"<div class='grid'>{''.join(drawn)}</div>" if drawn else "")
    everything = "\n\n".join(f"{cases.table(r)}" for r in found)
    runs = json.dumps([r["run"] | {"trial": r["trial"]} for r in found], indent=1)
    parts += [
        page.details("All numbers", everything),
        page.details("Commands, versions, devices", runs),
    ]
    texts["index.html"] = page.document("Theory, as programs", summary, "".join(parts))
    with output.folder_of(workdir) as folder:
        for name, png in pictures.items():
            (folder / name).write_bytes(png)
        for name, text in texts.items():
            records.write_atomically(folder / name, text)
    return folder / "index.html", summary


def _sorted(found: list[Record]) -> list[Record]:
    """By images and what sets the cases apart, the largest sets first."""

    def key(record: Record) -> tuple[Any, ...]:
        trial = record["trial"]
        rest = [repr(trial.get(k)) for k in ("labels", "features", "ridge")]
        return (trial["data"] or "", -(trial["num_train"] or math.inf), *rest, trial.get("depth"))

    return sorted(found, key=key)
