"""What a trial was trained and evaluated on, for an analysis of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from rethink_jax import inputs, measuring, records, remote, trials
from rethink_jax.data.corruption import pixel_stats
from rethink_jax.data.dataset import Dataset
from rethink_jax.schema import UserError


class TrialData(NamedTuple):
    """The images as the trial's network takes them in evaluation, with their labels.

    train_images: float32[N, h, w, C], corrupted, cropped and normalized
    test_images: float32[M, h, w, C], likewise
    train_labels: int32[N], corrupted: what the network was trained on
    true_labels: int32[N], before they were corrupted   test_labels: int32[M], true ones
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    true_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def load_data(workdir: str | Path, trial_id: str) -> TrialData:
    """Makes the images and labels of a finished trial once more, equal bit by bit.

    Raises:
      UserError: there is no such trial; its data set is not the one that the workdir was begun
        with, or is streamed from disk.
    """
    directory = records.Workdir(remote.fetched(workdir))
    head, result = directory.header(), directory.finished().get(trial_id)
    if head is None or result is None:
        raise UserError(f"no finished trial {trial_id!r} in {workdir}; its trials.csv lists them")
    trial = trials.resolve(result["trial"])
    whole = measuring.load_data(directory.path, head, trial["data.name"])
    dataset = inputs.trial_dataset(whole, dict(trial.static))
    if not isinstance(dataset, Dataset):
        raise UserError(
            f"the images of {dataset.name} are streamed from disk; only those that lie in memory "
            "can be loaded"
        )
    version, stats = inputs.image_version(trial), pixel_stats(dataset.train_images)
    taken = [
        np.asarray(measuring.as_taken(make(dataset, stats), dict(trial.static)))
        for make in (version.training_images, version.test_images)
    ]
    true_N, true_M = inputs.true_labels(trial, dataset)
    return TrialData(
        taken[0], inputs.trial_labels(trial, dataset)[0], np.asarray(true_N), taken[1], true_M
    )
