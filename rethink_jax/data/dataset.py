"""A labelled image data set in memory."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, Self, TypeVar

import numpy as np
from absl import logging

from rethink_jax.schema import UserError


class LeftOut(NamedTuple):
    """Training images that are in no subset of a size, with their labels.

    images: uint8[N, H, W, C]   labels: int32[N]   index_K: int[K], those left out, in random order
    """

    images: np.ndarray
    labels: np.ndarray
    index_K: np.ndarray

    def example(self, number: int) -> tuple[np.ndarray, int]:
        """One of them, uint8[H, W, C], and its label; after the last comes the first again."""
        index = self.index_K[number % len(self.index_K)]
        return self.images[index], int(self.labels[index])


def _is_array(given: object, dtype: type, ndim: int) -> bool:
    right = isinstance(given, np.ndarray) and np.issubdtype(given.dtype, dtype)
    return right and given.ndim == ndim


def _described(given: object) -> str:
    if isinstance(given, np.ndarray):
        return f"{given.dtype}{list(given.shape)}"
    return f"a {type(given).__name__}, not a numpy array"


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Training and test images with their true labels.

    train_images: uint8[N, H, W, C]    train_labels: int32[N], each in [0, number of classes)
    test_images: uint8[M, H, W, C]     test_labels: int32[M]
    class_names: one name per class
    origin: where the arrays were read from, in words
    confusion_N: bool[N], the training images whose labels are always random; None: no such ones
    left_out: of a subset, the images that are not in it; None: it is no subset
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    origin: str = ""
    confusion_N: np.ndarray | None = None
    left_out: LeftOut | None = None

    def __post_init__(self) -> None:
        for split in ("train", "test"):
            images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
            if not _is_array(images, np.uint8, 4):
                raise UserError(
                    f"{self.name}: {split} images are {_described(images)}; a data set holds "
                    "uint8[N, height, width, channels]"
                )
            if not _is_array(labels, np.integer, 1):
                raise UserError(
                    f"{self.name}: {split} labels are {_described(labels)}; a data set holds "
                    "int32[N], the numbers of classes"
                )
            if 0 in images.shape[1:]:
                raise UserError(
                    f"{self.name}: {split} images are {'x'.join(map(str, images.shape[1:]))}"
                    f"{self._source}; an image has at least one pixel"
                )
            if len(images) != len(labels) or not len(images):
                raise UserError(
                    f"{self.name}: {len(images)} {split} images with {len(labels)} labels"
                    f"{self._source}; there must be one label per image, and at least one"
                )
            if labels.min() < 0 or labels.max() >= self.num_classes:
                wrong = labels.min() if labels.min() < 0 else labels.max()
                raise UserError(
                    f"{self.name}: a {split} label is {wrong}, outside 0 to "
                    f"{self.num_classes - 1}{self._source}"
                )

    @property
    def _source(self) -> str:
        return f" (from {self.origin})" if self.origin else ""

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.train_images.shape[1:]

    def select(self, chosen: np.ndarray) -> Dataset:
        """The set with some of its training images, by index; the test set stays whole."""
        return dataclasses.replace(
            self, train_images=self.train_images[chosen], train_labels=self.train_labels[chosen]
        )

    def of_classes(self, classes: Sequence[int]) -> Dataset:
        """The images of some classes, training and test, numbered in the order given.

        Raises:
          UserError: there is no such class.
        """
        if unknown := [c for c in classes if c >= self.num_classes]:
            raise UserError(
                f"data.classes has {unknown[0]}; the classes of {self.name} are 0 to "
                f"{self.num_classes - 1}: {', '.join(self.class_names)}"
            )
        number_Y = np.full(self.num_classes, -1, np.int32)
        number_Y[list(classes)] = np.arange(len(classes))
        parts = {}
        for split in ("train", "test"):
            images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
            kept = number_Y[labels] >= 0
            parts |= {f"{split}_images": images[kept], f"{split}_labels": number_Y[labels[kept]]}
        names = tuple(self.class_names[c] for c in classes)
        return dataclasses.replace(self, **parts, class_names=names)

    def examples(self, count: int) -> np.ndarray:
        """The first training images: uint8[count, H, W, C]."""
        return self.train_images[:count]

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over shapes and contents of the four arrays."""
        sha = hashlib.sha256()
        for a in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            sha.update(f"{a.shape}".encode())
            sha.update(np.ascontiguousarray(a).data)
        return sha.hexdigest()


class Selectable(Protocol):
    """What `subset` needs of a data set, in memory or not."""

    name: str
    train_labels: np.ndarray

    @property
    def num_classes(self) -> int: ...

    def select(self, chosen: np.ndarray) -> Self: ...


Set = TypeVar("Set", bound=Selectable)


def subset(dataset: Set, num_train: int, seed: int, balanced: bool) -> Set:
    """The data set with a random subset of its training images; the test set stays whole.

    The subsets of one seed are nested: a smaller one is part of a larger one.

    Args:
      num_train: images to keep. If balanced, classes differ by at most one image.
      seed: which subset.

    Raises:
      UserError: more images asked for than there are (in a class, if balanced).
    """
    order = _subset_order(dataset, num_train, seed, balanced)
    chosen = dataset.select(np.sort(order[:num_train]))
    if isinstance(dataset, Dataset):
        rest = LeftOut(dataset.train_images, dataset.train_labels, order[num_train:])
        return dataclasses.replace(chosen, left_out=rest)
    return chosen


def _subset_order(dataset: Selectable, num_train: int, seed: int, balanced: bool) -> np.ndarray:
    """All training images, by index; the first `num_train` are the subset."""
    labels, total = dataset.train_labels, len(dataset.train_labels)
    if num_train > total:
        raise UserError(
            f"data.num_train is {num_train}; {dataset.name} has {total} training images. "
            "Set --config.trial.data.num_train to at most that"
        )
    order = np.random.Generator(np.random.Philox(seed)).permutation(total)
    if balanced:
        # Rank of every image within its class; taking by rank first fills the classes evenly.
        rank = np.empty(total, np.int64)
        for c in range(dataset.num_classes):
            members = order[labels[order] == c]
            rank[members] = np.arange(len(members))
        order = order[np.argsort(rank[order], kind="stable")]
        counts = np.bincount(labels[order[:num_train]], minlength=dataset.num_classes)
        if counts.max() - counts.min() > 1:
            raise UserError(
                f"data.num_train = {num_train} cannot be balanced: {dataset.name} has only "
                f"{np.bincount(labels, minlength=dataset.num_classes).min()} images of its "
                "smallest class"
            )
    return order


def with_confusion_set(
    dataset: Dataset, num_train: int, num_confusion: int, seed: int, balanced: bool
) -> Dataset:
    """`subset`, and a confusion set: further training images, whose labels are to be random.

    The subset does not depend on the confusion set; the confusion sets of one subset are nested.

    Raises:
      UserError: more images asked for than there are.

    Source: Neyshabur et al. 2017, Section 4, Figure 3.
    """
    total = len(dataset.train_labels)
    if num_train + num_confusion > total:
        raise UserError(
            f"data.num_train is {num_train} and data.num_confusion is {num_confusion}; "
            f"{dataset.name} has {total} training images. Set them to at most that together"
        )
    order = _subset_order(dataset, num_train, seed, balanced)
    chosen = np.sort(order[: num_train + num_confusion])
    confusion_N = np.isin(chosen, order[num_train:])
    return dataclasses.replace(dataset.select(chosen), confusion_N=confusion_N)


def store_npy(path: Path, array: np.ndarray) -> None:
    """Writes a cache file whole or not at all; if it cannot be written, says so and goes on."""
    part = path.with_name(f".{path.stem}-{os.getpid()}.part.npy")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(part, array)
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        logging.warning("no cache at %s: %s", path, error)
