"""Published numbers of Neyshabur et al. (2017); see `paper` for those of Zhang et al. (2017).

All are digitised from the figures. Measures are divided by the margin (its square, by the caption)
and without factors of depth and width; their names: l2, l1path, l2path, spectral, sharpness.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rethink_jax.paper import Published, curves

NEYSHABUR_2017 = (
    "Neyshabur, Bhojanapalli, McAllester, Srebro: Exploring generalization in deep learning "
    "(NIPS 2017)"
)

NORMS = ("l2", "l1path", "l2path", "spectral")
# The expected sharpness at which the paper compares the KL divergence.
REFERENCE_SHARPNESS = 0.05


def _published(x: Any, y: Any, where: str) -> Published:
    return Published(tuple(y), where, "digitised", tuple(x), paper=NEYSHABUR_2017)


def _of(figure: str, *path: str) -> Published:
    """A curve of one figure, by what it shows; x is shared by all curves of the figure."""
    curve = found = curves()["neyshabur2017"][figure]
    for name in path:
        found = found[name]
    return _published(curve["x"], found, f"Figure {figure[3]}")


def fig1(norm: str, labels: str) -> Published:
    """log10 of a norm over the margin of VGG on CIFAR-10; x: images, 5,000 to 50,000.

    norm: of `NORMS`   labels: "true" or "random"
    """
    return _of("fig1", norm, labels)


def fig2_sharpness(labels: str) -> Published:
    """Sharpness (the maximum in the box of alpha 5e-4) of the networks of Figure 1; x: images."""
    return _of("fig2_sharpness", labels)


def fig2_kl(labels: str, images: int) -> Published:
    """Expected sharpness by KL divergence (x), of networks of Figure 1; images: 5, 10, 30, 50 K."""
    curve = curves()["neyshabur2017"]["fig2_kl"][labels][str(images)]
    return _published(curve["x"], curve["y"], "Figure 2")


def fig3_error(split: str) -> Published:
    """Error of VGG by the size of the confusion set (x). split: "train" or "test"."""
    return _of("fig3_error", split)


def fig3(measure: str) -> Published:
    """A measure by the size of the confusion set (x), from 0 at its smallest to 1."""
    return _of("fig3", measure)


def fig3_kl() -> Published:
    """KL divergence at an expected sharpness of 0.05 by the size of the confusion set (x)."""
    return _of("fig3_kl", "y")


def fig4_error(split: str) -> Published:
    """Error of a network with one hidden layer on MNIST; x: hidden units, 8 to 8192.

    split: "train" or "test"
    """
    return _of("fig4_error", split)


def fig4(measure: str) -> Published:
    """A measure over its largest value by hidden units (x), 32 to 8192."""
    return _of("fig4", measure)


def fig4_kl() -> Published:
    """KL divergence at an expected sharpness of 0.05 by hidden units (x)."""
    return _of("fig4_kl", "y")


def is_of_fig1(trial: Mapping[str, Any]) -> bool:
    """Whether data and network are those of Figures 1 to 3: the whole VGG on CIFAR-10."""
    return (
        trial["data.name"] == "cifar10"
        and not isinstance(trial.get("data.classes"), list)
        and trial["model.name"] == "vgg"
        and tuple(trial["model.stages"]) == (64, 128, 256, 512)
        and trial["corruption.pixels"] == "none"
    )


def is_of_fig4(trial: Mapping[str, Any]) -> bool:
    """Whether a trial's data and network are those of Figure 4: all of MNIST, one hidden layer."""
    whole = trial["data.num_train"]
    return (
        trial["data.name"] == "mnist"
        and not isinstance(trial.get("data.classes"), list)
        and (whole is None or whole != whole)  # None is NaN in a pandas row.
        and trial["model.name"] == "mlp"
        and len(trial["model.hidden"]) == 1
        and trial["corruption.label_prob"] == 0
        and trial["corruption.pixels"] == "none"
    )
