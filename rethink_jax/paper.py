"""Published numbers, each with where it stands and how it was read; and whose trials they match.

"printed": a number in a table or in the text. "digitised": read off the vector graphics of a
figure, to about 0.3% of the axis. "inferred": not stated, but implied by what is.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any, NamedTuple

ZHANG_2017 = (
    "Zhang, Bengio, Hardt, Recht, Vinyals: Understanding deep learning requires rethinking "
    "generalization (ICLR 2017)"
)

# The levels at which Figure 1(b) and 1(c) have points.
LABEL_PROBS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

FAILED_TO_CONVERGE = "failed to converge"  # Stands in Table 4 in place of a number.


@dataclasses.dataclass(frozen=True)
class Published:
    """One published number or curve.

    value: the number, the curve's values at `x`, or FAILED_TO_CONVERGE; accuracies from 0 to 1
    where: the table or figure   row: of the table   note: what has to be known to read it
    """

    value: Any
    where: str
    certainty: str
    x: tuple[float, ...] = ()
    row: str = ""
    paper: str = ZHANG_2017
    note: str = ""


# --- figures --------------------------------------------------------------------------------------


@functools.cache
def curves() -> dict[str, Any]:
    """The digitised curves, by figure."""
    text = (resources.files("rethink_jax") / "paper_curves.json").read_text()
    return json.loads(text)


def fig1a(setting: str) -> Published:
    """Mean training loss of the small Inception in each epoch on CIFAR-10.

    setting: "true labels", "random labels", "shuffled pixels", "random pixels" or "gaussian".
    """
    values = tuple(curves()["fig1a"][setting])
    return Published(values, "Figure 1(a)", "digitised", tuple(range(1, len(values) + 1)))


def fig1b(network: str) -> Published:
    """Time to fit, relative to true labels, by label corruption. UNSTATED: when that is."""
    return Published(tuple(curves()["fig1b"][network]), "Figure 1(b)", "digitised", LABEL_PROBS)


def fig1c(network: str) -> Published:
    """Test error by label corruption; inferred: against test labels corrupted at the same rate."""
    return Published(tuple(curves()["fig1c"][network]), "Figure 1(c)", "digitised", LABEL_PROBS)


def fig2a(setting: str, split: str) -> Published:
    """Accuracy of Inception V3 along training on ImageNet; x: thousand steps (of 50 workers).

    setting: "all regularizers" (data augmentation, dropout, weight decay), "weight decay" (alone)
      or "none"   split: "train" or "test"
    """
    curve = curves()["fig2a"][setting][split]
    return Published(tuple(curve["y"]), "Figure 2(a)", "digitised", tuple(curve["x"]))


def fig2b(network: str, split: str) -> Published:
    """Accuracy of the small Inception along training on CIFAR-10, no regularizers; x: steps.

    network: one of `FIG2_NETWORKS`   split: "train" or "test"
    """
    curve = curves()["fig2b"][network][split]
    return Published(tuple(curve["y"]), "Figure 2(b)", "digitised", tuple(curve["x"]))


# The networks that have a curve in Figure 1(b) and 1(c), and in Figure 2(b).
FIG1_NETWORKS = ("inception", "alexnet", "mlp 1x512")
FIG2_NETWORKS = ("inception", "inception without batch norm")


# --- tables ---------------------------------------------------------------------------------------


class Network(NamedTuple):
    """printed: the paper's name for it   num_params: as printed in Table 1, or None"""

    printed: str
    num_params: int | None


NETWORKS = {
    "inception": Network("Inception", 1_649_402),
    "inception without batch norm": Network("Inception w/o BatchNorm", 1_649_402),
    "alexnet": Network("Alexnet", 1_387_786),
    "mlp 3x512": Network("MLP 3x512", 1_735_178),
    "mlp 1x512": Network("MLP 1x512", 1_209_866),
    "inception v3": Network("Inception V3", None),
    "alexnet 2012": Network("Alexnet (Krizhevsky et al., 2012)", None),
}


class Cell(NamedTuple):
    """One row of a published table: which network, trained how.

    table: key of `TABLES`   network: key of `NETWORKS`   labels: "true" or "random"
    factors: one for each of the table's; "-" in a row that the paper quotes from elsewhere
    """

    table: str
    network: str
    labels: str
    factors: tuple[str, ...]


class Table(NamedTuple):
    """A published table.

    factors: titles of the columns that say how a network was trained
    rows: {cell: {measure: number}}, in the paper's order
    """

    title: str
    factors: tuple[str, ...]
    rows: dict[Cell, dict[str, Published]]


# The columns of each table that say how a network was trained.
_FACTORS = {
    "Table 1": ("random crop", "weight decay"),
    "Table 2": ("data aug", "dropout", "weight decay"),
    "Table 4": ("regularizer",),
}


def _in_words(cell: Cell) -> str:
    """A row in words: "Inception, random crop", "MLP 1x512, random labels" ..."""
    factors = zip(_FACTORS[cell.table], cell.factors, strict=True)
    on = [title if factor == "yes" else factor for title, factor in factors]
    on = [factor for factor in on if factor not in ("no", "-")]
    random = ["random labels"] if cell.labels == "random" else []
    return ", ".join([NETWORKS[cell.network].printed, *random, *on])


def _numbers(cell: Cell, **values: Any) -> dict[str, Published]:
    """The printed numbers of one row; percentages, as they are printed."""
    row = _in_words(cell)
    return {
        k: Published(
            v if isinstance(v, str) else round(v / 100, 6),
            cell.table,
            "printed",
            row=row,
            note=_NOTES.get((cell, k), ""),
        )
        for k, v in values.items()
        if v is not None
    }


_NOTES = {
    (Cell("Table 2", "inception v3", "true", ("no", "no", "yes")), "train_accuracy"): (
        "90.60 is printed. Inferred: a misprint of 99.60, since the top-5 accuracy is 100.0 and "
        "the curve of Figure 2(a) ends at 0.996 (digitised)."
    )
}


def _table1() -> dict[Cell, dict[str, Published]]:
    # network, labels, random crop, weight decay, training and test accuracy
    printed = (
        ("inception", "true", "yes", "yes", 100.0, 89.05),
        ("inception", "true", "yes", "no", 100.0, 89.31),
        ("inception", "true", "no", "yes", 100.0, 86.03),
        ("inception", "true", "no", "no", 100.0, 85.75),
        ("inception", "random", "no", "no", 100.0, 9.78),
        ("inception without batch norm", "true", "no", "yes", 100.0, 83.00),
        ("inception without batch norm", "true", "no", "no", 100.0, 82.00),
        ("inception without batch norm", "random", "no", "no", 100.0, 10.12),
        ("alexnet", "true", "yes", "yes", 99.90, 81.22),
        ("alexnet", "true", "yes", "no", 99.82, 79.66),
        ("alexnet", "true", "no", "yes", 100.0, 77.36),
        ("alexnet", "true", "no", "no", 100.0, 76.07),
        ("alexnet", "random", "no", "no", 99.82, 9.86),
        ("mlp 3x512", "true", "no", "yes", 100.0, 53.35),
        ("mlp 3x512", "true", "no", "no", 100.0, 52.39),
        ("mlp 3x512", "random", "no", "no", 100.0, 10.48),
        ("mlp 1x512", "true", "no", "yes", 99.80, 50.39),
        ("mlp 1x512", "true", "no", "no", 100.0, 50.51),
        ("mlp 1x512", "random", "no", "no", 99.34, 10.61),
    )
    rows = {}
    for network, labels, crop, decay, train, test in printed:
        cell = Cell("Table 1", network, labels, (crop, decay))
        rows[cell] = _numbers(cell, train_accuracy=train, test_accuracy=test)
    return rows


_TABLE2_MEASURES = ("train_accuracy", "train_top5_accuracy", "test_accuracy", "test_top5_accuracy",
                    "best_test_accuracy", "best_test_top5_accuracy")  # fmt: skip


def _table2() -> dict[Cell, dict[str, Published]]:
    # labels, data augmentation, dropout, weight decay; top-1 and top-5 training accuracy; top-1 and
    # top-5 test accuracy; the same, best along training (in parentheses in the paper)
    net, old = "inception v3", "alexnet 2012"
    printed = (
        (net, "true", "yes", "yes", "yes", 92.18, 99.21, 77.84, 93.92, None, None),
        (net, "true", "yes", "no", "no", 92.33, 99.17, 72.95, 90.43, None, None),
        (net, "true", "no", "no", "yes", 90.60, 100.0, 67.18, 86.44, 72.57, 91.31),
        (net, "true", "no", "no", "no", 99.53, 100.0, 59.80, 80.38, 63.16, 84.49),
        (old, "true", "-", "-", "-", None, None, None, 83.6, None, None),
        (net, "random", "no", "yes", "yes", 91.18, 97.95, 0.09, 0.49, None, None),
        (net, "random", "no", "no", "yes", 87.81, 96.15, 0.12, 0.50, None, None),
        (net, "random", "no", "no", "no", 95.20, 99.14, 0.11, 0.56, None, None),
    )
    rows = {}
    for network, labels, augmentation, dropout, decay, *values in printed:
        cell = Cell("Table 2", network, labels, (augmentation, dropout, decay))
        rows[cell] = _numbers(cell, **dict(zip(_TABLE2_MEASURES, values, strict=True)))
    return rows


def _table4() -> dict[Cell, dict[str, Published]]:
    printed = (
        ("inception", "weight decay", 100.0),
        ("alexnet", "weight decay", FAILED_TO_CONVERGE),
        ("mlp 3x512", "weight decay", 100.0),
        ("mlp 1x512", "weight decay", 99.21),
        ("inception", "random cropping", 99.93),
        ("inception", "augmentation", 99.28),
    )
    cells = {Cell("Table 4", n, "random", (regularizer,)): v for n, regularizer, v in printed}
    return {cell: _numbers(cell, train_accuracy=value) for cell, value in cells.items()}


TABLES = {
    "Table 1": Table("CIFAR-10", _FACTORS["Table 1"], _table1()),
    "Table 2": Table("ImageNet", _FACTORS["Table 2"], _table2()),
    "Table 4": Table("CIFAR-10 with random labels", _FACTORS["Table 4"], _table4()),
}


def published(cell: Cell | None) -> dict[str, Published]:
    """The numbers of a row, {measure: number}; none for None."""
    return TABLES[cell.table].rows[cell] if cell else {}


# --- which of these a trial is --------------------------------------------------------------------

# A trial is any mapping from field names to values: dict(trial.fields), or a row of results, in
# which pandas may have turned a None to NaN and has NaN for the fields of other networks.
Fields = Mapping[str, Any]

_REGULARIZERS = {
    "preprocess.random_crop": "crop",
    "preprocess.random_flip": "flip",
    "preprocess.max_rotation": "rotation",
    "regularizer.dropout": "dropout",
    "regularizer.input_dropout": "input dropout",
    "regularizer.label_smoothing": "label smoothing",
    "optimizer.weight_decay": "weight decay",
}
_AUGMENTATION = {"crop", "flip"}
_TABLE4_REGULARIZERS = {frozenset({"weight decay"}): "weight decay",
                        frozenset({"crop"}): "random cropping",
                        frozenset({"flip", "rotation"}): "augmentation"}  # fmt: skip
_TABLE4_ROTATION = 25  # degrees


def _get(trial: Fields, name: str) -> Any:
    """The value of a field; None where there is none."""
    value = trial.get(name)
    return None if isinstance(value, float) and value != value else value


def architecture(trial: Fields) -> str | None:
    """Which of `NETWORKS` a trial's network is, whatever its images."""
    name, hidden = _get(trial, "model.name"), _get(trial, "model.hidden")
    if name == "inception":
        return name if _get(trial, "model.batch_norm") else FIG2_NETWORKS[1]
    if name == "mlp" and hidden is not None:
        return {(512,): "mlp 1x512", (512, 512, 512): "mlp 3x512"}.get(tuple(hidden))
    return {"alexnet": "alexnet", "inception_v3": "inception v3"}.get(name)


def clean_pixels(trial: Fields) -> bool:
    """Whether the images are as they are."""
    strength = trial["corruption.pixel_fraction"] * trial["corruption.pixel_strength"]
    return trial["corruption.pixels"] == "none" or strength == 0


def network_of(trial: Fields) -> str | None:
    """The paper's name of a trial's network, if the paper trained it on the same images.

    That is all of CIFAR-10, cropped to 28x28 pixels and whitened, without regularizers.
    """
    same = _on_papers_cifar10(trial) and not _regularizers(trial)
    return architecture(trial) if same else None


def cell_of(trial: Fields, num_classes: int | None = None) -> Cell | None:
    """The row of a table that a trial belongs to, if any.

    Network, images, labels and regularizers are the row's; optimizer and stop rule may differ (see
    `departures`). UNSTATED in paper: the coefficient of weight decay; any is the paper's here.

    num_classes: of the trial's data set; Table 2 is of 1000
    """
    network, on = architecture(trial), _regularizers(trial)
    prob = trial["corruption.label_prob"]
    uniform = prob == 0 or trial["corruption.labels"] == "uniform"
    if network is None or prob not in (0, 1) or not uniform or not clean_pixels(trial):
        return None
    labels = "true" if prob == 0 else "random"
    if network == "inception v3":
        cell = _table2_cell(labels, on)
        all_images = _get(trial, "data.num_train") is None and num_classes == 1000
        return cell if all_images and cell in TABLES["Table 2"].rows else None
    if not _on_papers_cifar10(trial):
        return None
    if on <= {"crop", "weight decay"}:
        cell = Cell("Table 1", network, labels, (_yes("crop", on), _yes("weight decay", on)))
        if cell in TABLES["Table 1"].rows:
            return cell
    turned = _get(trial, "preprocess.max_rotation") or _TABLE4_ROTATION
    cell = Cell("Table 4", network, labels, (_TABLE4_REGULARIZERS.get(on, ""),))
    return cell if turned == _TABLE4_ROTATION and cell in TABLES["Table 4"].rows else None


def _table2_cell(labels: str, on: frozenset[str]) -> Cell | None:
    # UNSTATED in paper: label smoothing, which TensorFlow's Inception has; it is no column.
    augmented, others = on & _AUGMENTATION, {"dropout", "weight decay", "label smoothing"}
    if augmented not in (set(), _AUGMENTATION) or not on - augmented <= others:
        return None
    factors = "yes" if augmented else "no", _yes("dropout", on), _yes("weight decay", on)
    return Cell("Table 2", "inception v3", labels, factors)


def _yes(regularizer: str, on: frozenset[str]) -> str:
    return "yes" if regularizer in on else "no"


def _regularizers(trial: Fields) -> frozenset[str]:
    return frozenset(short for name, short in _REGULARIZERS.items() if _get(trial, name))


def _on_papers_cifar10(trial: Fields) -> bool:
    """Whether a trial sees all of CIFAR-10 as the paper's networks did (Appendix A)."""
    return (
        trial["data.name"] == "cifar10"
        and all(_get(trial, f"data.{f}") is None for f in ("num_train", "classes", "replaced"))
        and _get(trial, "preprocess.crop_size") == 28
        and _get(trial, "preprocess.normalize") == "per_image"
    )


def departures(trial: Fields, cell: Cell) -> tuple[str, ...]:
    """In what a trial differs from what the paper says of the training, in words.

    Source: Zhang et al. 2017, Appendix A.
    """
    if cell.table == "Table 2":
        size = _get(trial, "preprocess.crop_size") or _get(trial, "data.image_size")
        smoothing = _get(trial, "regularizer.label_smoothing")
        found = [f"label_smoothing {smoothing} (paper: not stated)"] if smoothing else []
        found += [f"images of {size:g} pixels (paper: 299)"] if size not in (None, 299) else []
        return tuple(found)
    stated = {
        "optimizer.name": "sgd",
        "optimizer.learning_rate": 0.1 if cell.network.startswith("inception") else 0.01,
        "optimizer.lr_decay": 0.95,
        "optimizer.momentum": 0.9,
        "model.order": "paper",
    }
    if cell.factors in (("random cropping",), ("augmentation",)):
        # Printed: "changing the default weight decay factor from 0.95 to 0.999". Inferred: that
        # this is the factor on the learning rate.
        stated["optimizer.lr_decay"] = 0.999
    own = {k: _get(trial, k) for k in stated}
    return tuple(
        f"{k.removeprefix('optimizer.').removeprefix('model.')} {own[k]} (paper: {value})"
        for k, value in stated.items()
        if own[k] is not None and own[k] != value
    )
