"""Images as the rows of a linear model."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rethink_jax import streams
from rethink_jax.data import corruption
from rethink_jax.data import dataset as datasets
from rethink_jax.data.dataset import Dataset
from rethink_jax.schema import UserError
from rethink_jax.theory import kernels

_STRIP = 1000
INPUTS = ("standardized", "raw")


class Rows(NamedTuple):
    """train_NxD, test_MxD: float64; all training images of the set may have made the scale."""

    train_NxD: np.ndarray
    test_MxD: np.ndarray


def choose(dataset: Dataset, num_train: int, seed: int) -> Dataset:
    """A random subset of the training images.

    Raises:
      UserError: fewer than 2, or more than there are.
    """
    total = len(dataset.train_labels)
    if not 2 <= num_train <= total:
        raise UserError(
            f"num_train is {num_train}; {dataset.name} has {total} training images. Take 2 to "
            f"{total}"
        )
    return datasets.subset(dataset, num_train, seed, balanced=False)


def rows(dataset: Dataset, inputs: str, whole: Dataset) -> Rows:
    """Pixels, from 0 to 1 ("raw"), or each over all images of mean 0 and deviation 1.

    whole: whose training images give the means and deviations. By those of a small subset its rows
      would sum to 0, and N rows with a sum of 0 do not interpolate. A pixel that is the same in all
      of them becomes 0.
    """
    train_NxD, test_MxD = (
        images.reshape(len(images), -1) / 255.0
        for images in (dataset.train_images, dataset.test_images)
    )
    if inputs == "raw":
        return Rows(train_NxD, test_MxD)
    mean_D, std_D = _mean_std(whole.train_images.reshape(len(whole.train_images), -1))
    varies_D = std_D > 0
    scale_D = np.where(varies_D, std_D, 1)
    return Rows(*(varies_D * (x - mean_D) / scale_D for x in (train_NxD, test_MxD)))


def _mean_std(pixels_NxD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each column of uint8, over 255, by sums of integers: without a copy in float64."""
    total = len(pixels_NxD)
    sums_D = squares_D = np.zeros(pixels_NxD.shape[1], np.int64)
    for span in kernels.spans(total, _STRIP):
        part = pixels_NxD[span].astype(np.int64)
        sums_D, squares_D = sums_D + part.sum(0), squares_D + (part**2).sum(0)
    # N sum(x^2) - sum(x)^2, exact below 2^63: up to 10 million images.
    return sums_D / (255 * total), np.sqrt(total * squares_D - sums_D**2) / (255 * total)


def onehot_targets(dataset: Dataset, random_prob: float, seed: int) -> np.ndarray:
    """float64[N, Y], 0 and 1; with this probability a label is redrawn among all classes."""
    labels_N = corruption.corrupt_labels(
        dataset.train_labels, "uniform", random_prob, seed, streams.LABELS, dataset.num_classes
    )
    return np.eye(dataset.num_classes)[np.asarray(labels_N)]


def test_error(weights_DxY: np.ndarray, test_MxD: np.ndarray, labels_M: np.ndarray) -> float:
    """The share of rows whose largest output is not that of their class."""
    return float(np.mean(np.argmax(test_MxD @ weights_DxY, axis=1) != labels_M))
