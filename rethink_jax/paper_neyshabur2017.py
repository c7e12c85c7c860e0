"""Published numbers of Neyshabur et al. (2017); see `paper` for those of Zhang et al. (2017)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rethink_jax.paper import Published, curves

NEYSHABUR_2017 = (
    "Neyshabur, Bhojanapalli, McAllester, Srebro: Exploring generalization in deep learning "
    "(NIPS 2017)"
)


def fig4_error(split: str) -> Published:
    """Error of a network with one hidden layer on MNIST; x: hidden units, 8 to 8192.

    split: "train" or "test"
    """
    curve = curves()["neyshabur2017_fig4"][split]
    return Published(
        tuple(curve["y"]), "Figure 4", "digitised", tuple(curve["x"]), paper=NEYSHABUR_2017
    )


def is_of_fig4(trial: Mapping[str, Any]) -> bool:
    """Whether a trial's data and network are those of Figure 4: all of MNIST, one hidden layer."""
    whole = trial["data.num_train"]
    return (
        trial["data.name"] == "mnist"
        and (whole is None or whole != whole)  # None is NaN in a pandas row.
        and trial["model.name"] == "mlp"
        and len(trial["model.hidden"]) == 1
        and trial["corruption.label_prob"] == 0
        and trial["corruption.pixels"] == "none"
    )
