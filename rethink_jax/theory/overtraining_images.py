"""Overtraining on images: random ReLU features, noisy labels, and features by images across 1.

The network has one hidden layer of random weights that stay; the output weights start at zero. Full
gradient descent on them is compared with the minimum-norm solution, its end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rethink_jax.data.dataset import Dataset
from rethink_jax.theory import gradient_descent, images

_CHECKPOINTS = 40
# Of the largest eigenvalue's reciprocal; descent is stable below 2.
_STEP = 1.0


class Options(NamedTuple):
    """num_train: images   noise: probability that a label is redrawn   ratios: features by images
    steps: of gradient descent   seeds: of images, noise and features"""

    num_train: int
    noise: float
    ratios: Sequence[float]
    steps: int
    seeds: Sequence[int]


class _Split(NamedTuple):
    """Images of one seed as rows, noisy targets and true test labels."""

    rows: images.Rows
    targets_NxY: np.ndarray
    test_labels_M: np.ndarray


def relu_features(rows_NxD: np.ndarray, count: int, seed: int) -> np.ndarray:
    """max(0, x.u) of normal vectors u of variance 1/D: float64[N, F]. Fewer are a part of more."""
    dimensions = rows_NxD.shape[1]
    vectors_FxD = np.random.Generator(np.random.Philox(seed)).normal(size=(count, dimensions))
    return np.maximum(rows_NxD @ vectors_FxD.T / math.sqrt(dimensions), 0)


def run(whole: Dataset, options: Options, say: Callable[[str], None]) -> dict[str, Any]:
    """Test errors by features / images, each as values by seed.

    "best": along training, chosen by the test images: what stopping can gain at most.
    """
    splits = [_split(whole, options, seed) for seed in options.seeds]
    counts = [max(round(ratio * options.num_train), 1) for ratio in options.ratios]
    found: dict[str, Any] = {"features": counts, "errors": {}}
    for count in counts:
        say(f"{whole.name}: {count:,} features of {options.num_train:,} images")
        measured = [
            _measured(split, count, options.steps, seed)
            for split, seed in zip(splits, options.seeds, strict=True)
        ]
        for name in measured[0]:
            found["errors"].setdefault(name, []).append([of[name] for of in measured])
    return found


def _split(whole: Dataset, options: Options, seed: int) -> _Split:
    dataset = images.choose(whole, options.num_train, seed)
    targets_NxY = images.onehot_targets(dataset, options.noise, seed)
    rows = images.rows(dataset, "standardized", whole)
    return _Split(rows, targets_NxY, dataset.test_labels)


def _measured(split: _Split, count: int, steps: int, seed: int) -> dict[str, float]:
    train_NxF, test_MxF = (relu_features(rows, count, seed) for rows in split.rows)
    minimum_FxY = np.linalg.lstsq(train_NxF, split.targets_NxY)[0]
    largest = np.linalg.norm(train_NxF, ord=2) ** 2 / len(train_NxF)
    at_C = np.unique(np.concatenate([[0], np.geomspace(1, steps, _CHECKPOINTS).astype(int)]))
    start_FxY = np.zeros_like(minimum_FxY)
    weights_CxFxY = gradient_descent.descend(
        train_NxF, split.targets_NxY, start_FxY, at_C, _STEP / largest
    )
    onehot_MxY = np.eye(start_FxY.shape[1])[split.test_labels_M]

    def errors(weights_FxY: np.ndarray) -> tuple[float, float]:
        wrong = images.test_error(weights_FxY, test_MxF, split.test_labels_M)
        return wrong, float(np.sum((test_MxF @ weights_FxY - onehot_MxY) ** 2) / len(onehot_MxY))

    minimum, along = errors(minimum_FxY), np.array([errors(w) for w in weights_CxFxY])
    return {
        "minimum norm": minimum[0],
        "last step": float(along[-1, 0]),
        "best": float(along[:, 0].min()),
        "minimum norm, squared": minimum[1],
        "last step, squared": float(along[-1, 1]),
        "best, squared": float(along[:, 1].min()),
        "best step": int(at_C[along[:, 1].argmin()]),
    }
