"""Classical complexity beside what networks do: bounds by Rademacher, VC dimension, stability.

Found by what the trials are: binary problems with several draws of random labels; trials that
differ in one replaced image.

Source: Zhang et al. 2017, Section 2.2, which argues from these.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.ticker import ScalarFormatter

from rethink_jax import records, trials
from rethink_jax.report.figures import COLOURS, STYLE, png
from rethink_jax.report.series import field_columns, mean_std, num_classes, numbers, setting_name
from rethink_jax.schema import UserError
from rethink_jax.theory import bounds, stability
from rethink_jax.theory.piecewise_linear import layer_sizes

_NONE = "–"
_DRAWN = ("seed", "corruption.seed", "corruption.label_prob")
_CONFIDENCE = f"{1 - bounds.DELTA:.0%}"


class Network(NamedTuple):
    """A network on some images of two classes.

    name: in words   num_images: n   num_params: weights and biases
    vc_dim: at most; None where no bound covers the network, for the reason `uncovered`
    complexity: over draws of random labels
    train_error, test_error: with true labels, means over seeds; NaN if there are no such trials
    """

    name: str
    num_images: int
    num_params: int
    vc_dim: int | None
    uncovered: str
    complexity: bounds.Complexity
    train_error: float
    test_error: float

    @property
    def by_rademacher(self) -> float:
        """What the bound of the class's complexity is at least."""
        return bounds.rademacher_bound(self.train_error, self.complexity.at_least, self.num_images)

    @property
    def by_vc(self) -> float:
        if self.vc_dim is None:
            return math.nan
        return bounds.vc_bound(self.train_error, self.vc_dim, self.num_images)


class Classical(NamedTuple):
    """A table; all cells as text.

    name: of its file   notes: what has to be known to read it   summary: one sentence
    networks: what the figure is of; none in the table of stability
    """

    name: str
    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str]
    summary: str
    networks: list[Network]


def tables(workdir: str | Path, done: pd.DataFrame, results: records.Results) -> list[Classical]:
    """The tables of what a workdir has trials for.

    done: the rows of results of the finished trials
    """
    found = networks(workdir, done, results)
    made = [_complexity_table(found)] if found else []
    if numbers(done, "data.replaced").notna().any() and (table := _stability_table(workdir)):
        made.append(table)
    return made


# --- complexity -----------------------------------------------------------------------------------


def networks(workdir: str | Path, done: pd.DataFrame, results: records.Results) -> list[Network]:
    """The networks with several draws of random labels on two classes, by number of images."""
    done = done[done.apply(lambda t: _is_binary(t, results.run), axis=1)]
    fields = [c for c in field_columns(done) if c not in _DRAWN]
    settings = [
        rows for _, rows in done.groupby([done[c].map(repr) for c in fields], sort=False)
        if len(set(_draws(rows)["corruption.seed"])) > 1
    ]  # fmt: skip
    if not settings:
        return []
    best = results.curves.groupby("trial_id")["train_accuracy"].max()
    results_by_id = records.Workdir(workdir).finished()
    names = _names([rows.iloc[0] for rows in settings], fields)
    found = [
        _network(name, rows, best, results_by_id[rows.iloc[0]["trial_id"]])
        for name, rows in zip(names, settings, strict=True)
    ]
    return sorted(found, key=lambda network: network.num_images)


def _is_binary(trial: Any, run: dict[str, Any]) -> bool:
    """Whether random labels are fair signs, on a number of images that the fields say."""
    return (
        num_classes(trial, run) == 2
        and trial["corruption.labels"] == "uniform"
        and trial["corruption.label_prob"] in (0, 1)
        and not math.isnan(_number(trial, "data.num_train"))
        and not trial.get("data.num_confusion")
        and math.isnan(_number(trial, "data.replaced"))
    )


def _number(trial: Any, field: str) -> float:
    value = trial.get(field)
    return math.nan if value is None else float(value)


def _draws(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["corruption.label_prob"] == 1]


def _network(name: str, rows: pd.DataFrame, best: pd.Series, result: dict[str, Any]) -> Network:
    accuracy = _draws(rows)["trial_id"].map(best)
    # Of several first weights with the labels of one draw, the best counts.
    correlation_K = (2 * accuracy - 1).groupby(_draws(rows)["corruption.seed"]).max().dropna()
    true = rows[(rows["corruption.label_prob"] == 0) & (rows["status"] != "diverged")]
    images = int(rows.iloc[0]["data.num_train"])
    vc_dim, uncovered = None, ""
    try:
        layers = layer_sizes(dict(trials.resolve(result["trial"]).fields), result["image_shape"])
        vc_dim = bounds.vc_dimension(layers)
    except (UserError, ValueError) as error:
        uncovered = str(error)
    return Network(
        name, images, int(rows.iloc[0]["num_params"]), vc_dim, uncovered,
        bounds.rademacher(list(correlation_K), images),
        1 - mean_std(numbers(true, "final_train_accuracy"))[0],
        1 - mean_std(numbers(true, "final_test_accuracy"))[0],
    )  # fmt: skip


def _names(firsts: Sequence[Any], fields: Sequence[str]) -> list[str]:
    """Networks in words; where one was trained in several ways, with what these differ in."""
    plain = [network_in_words(first) for first in firsts]
    found = []
    for name, first in zip(plain, firsts, strict=True):
        alike = [f for f, other in zip(firsts, plain, strict=True) if other == name]
        own = [
            f"{c.split('.')[-1]} {first[c]}" for c in fields
            if c != "data.num_train" and len({repr(f.get(c)) for f in alike}) > 1
        ]  # fmt: skip
        found.append(", ".join([name, *own]))
    return found


def network_in_words(trial: Any) -> str:
    """The network of a trial, by its fields."""
    if trial["model.name"] == "mlp":
        widths = "-".join(str(width) for width in trial["model.hidden"])
        return f"MLP {widths}" if widths else "linear"
    if trial["model.name"] == "sequential":
        layers = [text for text in trial["model.layers"] if text not in ("relu", "flatten")]
        has_units = any(text.startswith(("conv", "dense")) for text in layers)
        return ", ".join(layers if has_units else ["linear", *layers])
    return str(trial["model.name"])


def _complexity_table(found: list[Network]) -> Classical:
    header = [
        "network", "images", "parameters", "VC dimension, at most", "draws",
        "Rademacher complexity", f"{_CONFIDENCE} interval", "of the class, at least",
        "training error", "test error", "bound by Rademacher, at least", "bound by VC dimension",
    ]  # fmt: skip
    notes = [
        "Binary problems. Rademacher complexity: the mean over draws of random labels of the "
        "highest correlation with them along training, 2 * accuracy - 1; an estimate from below of "
        "the empirical complexity of all networks of the kind. Interval: Student's t, over draws. "
        f"Of the class, at least: with {_CONFIDENCE} confidence, by McDiarmid's inequality, "
        "however well training searches.",
        "Errors: with true labels, means over seeds. Bounds on the test error, each with "
        f"{_CONFIDENCE} confidence: training error + complexity + 3 sqrt(ln(2/delta) / 2n) (Mohri "
        "et al. 2018, Theorem 3.5, after Bartlett and Mendelson 2002), at least that, as the "
        "complexity is at least what is taken for it; and by VC dimension (Corollary 3.19), which "
        "is bounded by Bartlett et al. 2019, Theorem 7; of a linear network it is its number of "
        "weights. Vacuous: 1 or more.",
        "Zhang et al. (2017), Section 2.2, expect a complexity of about 1 for networks that fit "
        "random labels, and no useful bound from it.",
    ]
    notes += dict.fromkeys(f"{n.name}: {n.uncovered}." for n in found if n.uncovered)
    bounded = [n for n in found if math.isfinite(n.train_error)]
    vacuous = [n for n in bounded if bounds.is_vacuous(n.by_rademacher)]
    highest = max(found, key=lambda n: (n.complexity.mean, n.num_images))
    sentence = (
        f"Rademacher complexity reaches {highest.complexity.mean:.3f} ({highest.name}, "
        f"{highest.num_images:,} images); {len(vacuous)} of {len(bounded)} bounds from it on the "
        "test error are vacuous"
    )
    if vacuous:
        lowest = min(vacuous, key=lambda n: n.test_error)
        sentence += f", also where it is {lowest.test_error:.1%} ({lowest.name})"
    title = "Classical complexity, measured"
    rows = list(map(_complexity_row, found))
    return Classical("complexity", title, header, rows, notes, f"{sentence}.", found)


def _complexity_row(network: Network) -> list[str]:
    c = network.complexity
    interval = f"{c.low:.3f} to {c.high:.3f}" if c.draws > 1 else _NONE
    return [
        network.name,
        f"{network.num_images:,}",
        f"{network.num_params:,}",
        _NONE if network.vc_dim is None else f"{network.vc_dim:,}",
        str(c.draws),
        f"{c.mean:.3f}",
        interval,
        f"{c.at_least:.3f}",
        _error(network.train_error),
        _error(network.test_error),
        _bound(network.by_rademacher),
        _bound(network.by_vc),
    ]


def _error(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else _NONE


def _bound(value: float) -> str:
    return _error(value) + " (vacuous)" * bounds.is_vacuous(value)


def figure(made: Sequence[Classical]) -> bytes | None:
    """Complexity, and errors with their bounds, by number of images."""
    found = [network for table in made for network in table.networks]
    if not found:
        return None
    with plt.rc_context(STYLE):
        panels = plt.subplots(1, 2, figsize=(11, 4.2))[1]
        names = list(dict.fromkeys(n.name for n in found))
        for place, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
            own = [n for n in found if n.name == name]
            x, mean = [n.num_images for n in own], [n.complexity.mean for n in own]
            away = [
                [m - n.complexity.low for m, n in zip(mean, own, strict=True)],
                [n.complexity.high - m for m, n in zip(mean, own, strict=True)],
            ]
            # Networks that fit every draw lie on each other: the first of them shows below.
            style = dict(color=colour, ms=4, lw=1.5 + 0.9 * (len(names) - 1 - place))
            panels[0].errorbar(x, mean, away, marker="o", capsize=3, elinewidth=1.5, label=name,
                               **style)  # fmt: skip
            panels[1].plot(x, [n.test_error for n in own], color=colour, marker="o", ms=4)
            panels[1].plot(x, [n.by_rademacher for n in own], "--", marker="v", **style)
        panels[1].axhline(1, color="#999999", lw=0.8)
        for panel, words in zip(panels, ("Rademacher complexity", "error, and bound"), strict=True):
            panel.set_xscale("log")
            panel.set_xticks(sorted({n.num_images for n in found}))
            panel.xaxis.set_major_formatter(ScalarFormatter())
            panel.minorticks_off()
            panel.set(xlabel="training images", ylabel=words)
            panel.set_ylim(bottom=0)
        panels[0].legend(fontsize=8)
        return png(panels[0].figure)


# --- stability ------------------------------------------------------------------------------------


def _stability_table(workdir: str | Path) -> Classical | None:
    header = [
        "network", "labels", "images", "replaced", "loss", "mean change", "largest change",
        "on the removed image", "on the inserted image", "test less training loss",
        "bound on the test loss, at least",
    ]  # fmt: skip
    title, notes = "Uniform stability, measured", list(_STABILITY_NOTES)
    try:
        found = list(stability.measure(workdir))
    except UserError as error:
        return Classical("stability", title, header, [], [f"Not measured: {error}"], "", [])
    if not found:
        return None
    fields = dict.fromkeys(f for s in found for f in s.fields if f not in _DRAWN)
    names = _names([s.fields for s in found], list(fields))
    rows, vacuous, bounded = [], 0, 0
    settings = sorted(
        zip(names, found, strict=True),
        key=lambda s: (s[0], s[1].num_images, s[1].fields["corruption.label_prob"]),
    )
    for name, setting in settings:
        for loss, change in setting.changes.items():
            largest = stability.LOSSES[loss].largest
            bound = math.nan
            if largest is not None:
                bound = bounds.stability_bound(
                    change.train_loss, change.largest, setting.num_images, largest
                )
                bounded, vacuous = bounded + 1, vacuous + bounds.is_vacuous(bound)
            rows.append(
                [
                    name, setting_name(setting.fields), f"{setting.num_images:,}",
                    str(change.replaced), loss, f"{change.mean:.4f}", f"{change.largest:.4f}",
                    f"{change.removed:+.4f}", f"{change.inserted:+.4f}", f"{change.gap:+.4f}",
                    _bound(bound),
                ]
            )  # fmt: skip
    summary = (
        f"One training image replaced: {vacuous} of {bounded} stability bounds on the test loss "
        "are vacuous."
    )
    return Classical("stability", title, header, rows, notes, summary, [])


_STABILITY_NOTES = (
    "Each network is trained again with one image and its label replaced by fresh ones; first "
    "weights and order of images stay. Mean change: of |loss|, over replacements and test images "
    "(labels corrupted as those of training). Largest change: also over the removed and the "
    "inserted image; uniform stability beta is at least that. On the removed image: loss after "
    "less loss before, mean over replacements; its expectation is that of test less training loss.",
    "Bound on the test loss, where losses are at most 1, with "
    f"{_CONFIDENCE} confidence: training loss + beta + (2 n beta + 1) sqrt(ln(1/delta) / 2n), with "
    "the largest change as beta (Mohri et al. 2018, Theorem 14.2, after Bousquet and Elisseeff "
    "2002); at least that, as beta is. Vacuous: 1 or more.",
    "Zhang et al. (2017), Section 2.2: uniform stability is a property of the algorithm alone, and "
    "does not take into account the data or the distribution of labels.",
)
