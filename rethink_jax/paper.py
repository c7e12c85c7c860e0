"""Published numbers, each with where it stands and how it was read.

"printed": a number in a table or in the text. "digitised": read off the vector graphics of a
figure, to about 0.3% of the axis. "inferred": not stated, but implied by what is.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

ZHANG_2017 = (
    "Zhang, Bengio, Hardt, Recht, Vinyals: Understanding deep learning requires rethinking "
    "generalization (ICLR 2017)"
)

# The levels at which Figure 1(b) and 1(c) have points.
LABEL_PROBS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclasses.dataclass(frozen=True)
class Published:
    """One published number or curve.

    value: the number, or the curve's values at `x`
    where: the table or figure   row: of the table
    """

    value: Any
    where: str
    certainty: str
    x: tuple[float, ...] = ()
    row: str = ""
    paper: str = ZHANG_2017


@functools.cache
def _curves() -> dict[str, dict[str, list[float]]]:
    text = (resources.files("rethink_jax") / "paper_curves.json").read_text()
    return json.loads(text)


def fig1a(setting: str) -> Published:
    """Mean training loss of the small Inception in each epoch on CIFAR-10.

    setting: "true labels", "random labels", "shuffled pixels", "random pixels" or "gaussian".
    """
    values = tuple(_curves()["fig1a"][setting])
    return Published(values, "Figure 1(a)", "digitised", tuple(range(1, len(values) + 1)))


def fig1b(network: str) -> Published:
    """Time to fit, relative to true labels, by label corruption. UNSTATED: when that is."""
    return Published(tuple(_curves()["fig1b"][network]), "Figure 1(b)", "digitised", LABEL_PROBS)


def fig1c(network: str) -> Published:
    """Test error by label corruption; inferred: against test labels corrupted at the same rate."""
    return Published(tuple(_curves()["fig1c"][network]), "Figure 1(c)", "digitised", LABEL_PROBS)


# The networks that have a curve in Figure 1(b) and 1(c).
FIG1_NETWORKS = ("inception", "alexnet", "mlp 1x512")


def _row(train: float, test: float, row: str) -> dict[str, Published]:
    return {
        "train_accuracy": Published(train / 100, "Table 1", "printed", row=row),
        "test_accuracy": Published(test / 100, "Table 1", "printed", row=row),
    }


# Of the networks without any regularizer: (network, labels).
TABLE1 = {
    ("mlp 3x512", "true"): _row(100.0, 52.39, "MLP 3x512"),
    ("mlp 3x512", "random"): _row(100.0, 10.48, "MLP 3x512 (fitting random labels)"),
    ("mlp 1x512", "true"): _row(100.0, 50.51, "MLP 1x512"),
    ("mlp 1x512", "random"): _row(99.34, 10.61, "MLP 1x512 (fitting random labels)"),
}

_NETWORKS = {("mlp", (512,)): "mlp 1x512", ("mlp", (512, 512, 512)): "mlp 3x512"}


def network_of(trial: Mapping[str, Any]) -> str | None:
    """The paper's name of a trial's network, if the paper trained it on the same images.

    That is all of CIFAR-10, cropped to the central 28x28 pixels and whitened, without regularizers.
    """
    same = (
        trial["data.name"] == "cifar10"
        and trial["data.num_train"] is None
        and trial["preprocess.crop_size"] == 28
        and trial["preprocess.normalize"] == "per_image"
        and not trial["preprocess.random_crop"]
        and not trial["preprocess.random_flip"]
        and trial["optimizer.weight_decay"] == 0
    )
    hidden = trial.get("model.hidden")
    key = trial["model.name"], tuple(hidden) if hidden is not None else None
    return _NETWORKS.get(key) if same else None
