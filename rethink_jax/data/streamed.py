"""Labelled image sets that stay on disk, as ImageNet: their images are read one by one.

The labels of all images are known from the start, so that they can be corrupted as a whole, once,
and an image keeps its label however often and in whatever order it is read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from absl import logging

from rethink_jax.data.dataset import store_npy
from rethink_jax.schema import UserError, first_line

_SUFFIXES = (".jpeg", ".jpg", ".png")
_TEST_FOLDERS = ("val", "test", "validation")
_LAYOUT = "train/CLASS/*.{jpeg,jpg,png} and val/CLASS/* (or test/CLASS/*)"
_MORE_THAN_8_BITS = "I"  # How the names of such modes of Pillow begin.


class Encoded(Protocol):
    """The images of a split as they lie on disk."""

    def __len__(self) -> int: ...

    def where(self, index: int) -> str:
        """The place of one image, in words."""
        ...

    def __getitem__(self, index: int) -> bytes:
        """One image as JPEG or PNG."""
        ...


@dataclasses.dataclass(frozen=True)
class StreamedDataset:
    """Training and test images on disk, with their true labels in memory.

    train_labels: int32[N], each in [0, number of classes)    test_labels: int32[M]
    train_index: int64[N], which images of `train` belong to the set, all or a subset
    class_names: one name per class
    fingerprint: SHA-256 over the images' places, sizes and labels
    origin: where the images lie, in words
    image_size: height and width that `read` gives them; None: not decided yet
    """

    name: str
    train: Encoded
    train_labels: np.ndarray
    test: Encoded
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    fingerprint: str
    origin: str
    train_index: np.ndarray
    image_size: int | None = None

    def __post_init__(self) -> None:
        for split, labels in (("training", self.train_labels), ("test", self.test_labels)):
            if not len(labels) or labels.min() < 0 or labels.max() >= self.num_classes:
                raise UserError(
                    f"{self.name} ({self.origin}) has no {split} images, or a {split} label "
                    f"outside 0 to {self.num_classes - 1}; every image needs the label of a class"
                )

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int | None, int | None, int]:
        return (self.image_size, self.image_size, 3)

    def sized(self, image_size: int) -> StreamedDataset:
        """The same images, read at a height and width."""
        return dataclasses.replace(self, image_size=image_size)

    def select(self, chosen: np.ndarray) -> StreamedDataset:
        """The set with some of its training images, by index; the test set stays whole."""
        return dataclasses.replace(
            self, train_labels=self.train_labels[chosen], train_index=self.train_index[chosen]
        )

    def examples(self, count: int) -> np.ndarray:
        """The first training images: uint8[count, H, W, 3]."""
        count = min(count, len(self.train_labels))
        return np.stack([self.read("train", i) for i in range(count)])

    def read(self, split: str, index: int) -> np.ndarray:
        """One image: uint8[H, W, 3], as `decode` gives it.

        Args:
          split: "train" or "test".   index: 0 to N-1 (M-1), in the order of the labels.

        Raises:
          UserError: the image cannot be read; the message names it.
        """
        images = self.train if split == "train" else self.test
        place = int(self.train_index[index]) if split == "train" else index
        assert self.image_size is not None, "sized() comes before read()"
        try:
            return decode(images[place], self.image_size)
        # Pillow raises many kinds of error on broken files, some of other libraries.
        except Exception as error:
            raise UserError(
                f"{images.where(place)} cannot be read as an image ({first_line(error)}); "
                "put a whole 8-bit JPEG or PNG in its place, or take it away"
            ) from error


def decode(data: bytes, size: int) -> np.ndarray:
    """A JPEG or PNG of any size as uint8[size, size, 3]: its central square, resized.

    Grey levels become equal colours; transparency is dropped; an EXIF orientation is ignored.
    Bilinear with antialiasing (Pillow): a function of the bytes and the size alone. UNSTATED in
    Zhang et al. 2017, who name "the preprocessing of the TensorFlow package": it also distorts.

    Raises:
      Exception: of Pillow's, if the bytes are no whole image; ValueError: more than 8 bits, or
        another format.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        # The other formats of Pillow are many decoders more, one of which starts another program.
        opened = Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))
    except UnidentifiedImageError:
        raise ValueError("it is neither a JPEG nor a PNG") from None
    with opened as image:
        if image.mode.startswith(_MORE_THAN_8_BITS):
            raise ValueError("its values do not have 8 bits")  # They would be cut off at 255.
        rgb = image.convert("RGB")
    side = min(rgb.size)
    left, top = ((length - side) // 2 for length in rgb.size)
    box = (left, top, left + side, top + side)
    return np.asarray(rgb.resize((size, size), Image.Resampling.BILINEAR, box=box))


def check_fields(values: Mapping[str, Any]) -> None:
    """Raises UserError if a trial's fields ask for what cannot be done with images on disk."""
    streams = f"the images of {values['data.name']} are read from disk while training"
    if values["data.image_size"] is None:
        raise UserError(
            f"data.image_size is None; {streams}. Set the height and width to give them, for "
            "example data.image_size = 320 and preprocess.crop_size = 299"
        )
    if values["stop.measured_on"] != "online":
        raise UserError(
            f"stop.measured_on is {values['stop.measured_on']!r}; {streams}, and not all of them "
            "once more after each epoch. Set stop.measured_on = 'online'"
        )
    if values["data.num_confusion"]:
        raise UserError(
            f"data.num_confusion is {values['data.num_confusion']}; {streams}. Leave it at 0, or "
            "take a data set that lies in memory"
        )
    for field in ("data.classes", "data.replaced"):
        if values[field] is not None:
            raise UserError(
                f"{field} is {values[field]!r}; {streams}. Leave it out, or take a data set that "
                "lies in memory"
            )
    if values["corruption.pixels"] != "none":
        raise UserError(
            f"corruption.pixels is {values['corruption.pixels']!r}; {streams}, as they are. "
            "Leave it at 'none', or take a data set that lies in memory"
        )


def check_packages(name: str) -> None:
    """Raises UserError unless the packages that streaming needs are there."""
    missing = [p for p in ("grain", "PIL") if importlib.util.find_spec(p) is None]
    if missing:
        raise UserError(
            f"{name} is read from disk with grain and Pillow, of which {' and '.join(missing)} "
            "is missing; install them with: pip install 'rethink_jax[imagenet]'"
        )


# --- folders --------------------------------------------------------------------------------------


class Files:
    """Images in files below a folder."""

    def __init__(self, folder: Path, names: list[str]):
        self._folder, self._names = folder, names

    def __len__(self) -> int:
        return len(self._names)

    def where(self, index: int) -> str:
        return str(self._folder / self._names[index])

    def __getitem__(self, index: int) -> bytes:
        return (self._folder / self._names[index]).read_bytes()


def is_folder_of_classes(folder: Path) -> bool:
    """Whether there is a folder with a folder train/ in it."""
    return (folder / "train").is_dir()


def from_folder(name: str, folder: Path) -> StreamedDataset:
    """A set of image files in class folders: train/CLASS/* and val/CLASS/* (or test/CLASS/*).

    Classes are numbered in the order of their names, images in the order of class and file name.
    Files with other endings, and hidden ones, are passed over.

    Raises:
      UserError: a folder is missing or empty, or val/ has a class that train/ has not.
    """
    if not folder.is_dir():
        raise UserError(
            f"data.name is {name!r}, and there is no folder {folder.absolute()}; it holds "
            f"{_LAYOUT}. Name a folder below the data folder (--config.data_files.dir) or an "
            "absolute one"
        )
    test = next((t for t in _TEST_FOLDERS if (folder / t).is_dir()), None)
    if not is_folder_of_classes(folder) or test is None:
        missing = "val/ (or test/)" if is_folder_of_classes(folder) else "train/"
        raise UserError(f"{folder.absolute()} lacks {missing}; it must hold {_LAYOUT}")
    sha = hashlib.sha256()
    classes = _class_folders(folder / "train")
    parts: list[Any] = []
    for split in ("train", test):
        found = _class_folders(folder / split)
        if unknown := [c for c in found if c not in set(classes)]:
            raise UserError(
                f"{folder.absolute() / split} has a class {unknown[0]!r} that "
                f"{folder.absolute() / 'train'} has not; the classes are those of train/"
            )
        names, labels = _images(folder / split, found, classes, sha)
        parts += [Files(folder.absolute() / split, names), labels]
    index = np.arange(len(parts[1]))
    origin = str(folder.absolute())
    return StreamedDataset(name, *parts, tuple(classes), sha.hexdigest(), origin, index)


def _class_folders(folder: Path) -> list[str]:
    names = sorted(e.name for e in _entries(folder) if e.is_dir())
    if not names:
        raise UserError(
            f"{folder.absolute()} has no class folders; each image must lie in the folder of its "
            f"class: {_LAYOUT}"
        )
    return names


def _images(
    folder: Path, found: list[str], classes: list[str], sha: Any
) -> tuple[list[str], np.ndarray]:
    """Names below the folder and labels int32 of all images; what they are goes into `sha`."""
    names: list[str] = []
    labels: list[int] = []
    number = {c: i for i, c in enumerate(classes)}
    for name in found:
        files = sorted(
            (e.name, e.stat().st_size)
            for e in _entries(folder / name)
            if e.name.lower().endswith(_SUFFIXES) and e.is_file()
        )
        if not files:
            raise UserError(
                f"the class folder {folder.absolute() / name} has no images "
                f"({', '.join(_SUFFIXES)}); put some there, or take the folder away"
            )
        for file, size in files:
            text = f"{folder.name}/{name}/{file}\0{size}\0{number[name]}\n"
            sha.update(text.encode("utf-8", "surrogateescape"))  # Names may be of any bytes.
            names.append(f"{name}/{file}")
        labels += [number[name]] * len(files)
    return names, np.array(labels, np.int32)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [e for e in entries if not e.name.startswith(".")]
    except OSError as error:
        raise UserError(f"cannot read {folder.absolute()}: {error.strerror or error}") from error


# --- TFDS -----------------------------------------------------------------------------------------


class Records:
    """Images in the ArrayRecord files of a TFDS split, still encoded."""

    def __init__(self, rows: Any, where: str):
        self._rows, self._where = rows, where

    def __len__(self) -> int:
        return len(self._rows)

    def where(self, index: int) -> str:
        return f"image {index} of {self._where}"

    def __getitem__(self, index: int) -> bytes:
        return self._rows[index]["image"]


def from_tfds(name: str, builder: str, test_split: str, root: Path) -> StreamedDataset:
    """A set prepared by TFDS as ArrayRecord files; reading it needs no TensorFlow.

    The labels lie in the records beside the images, so finding them reads the set once; they are
    then cached in <root>/cache.

    Args:
      root: the data folder, in which TFDS's own folders are looked for before its default one.

    Raises:
      UserError: TFDS is not installed, or has not prepared the set.
    """
    try:
        import tensorflow_datasets as tfds

        where = root if (root / builder.split(":")[0].split("/")[0]).is_dir() else None
        # Left as they are stored: `decode` treats them like the images of a folder.
        source = tfds.data_source(
            builder,
            data_dir=where,
            download=False,
            builder_kwargs={"file_format": "array_record"},
            decoders={"image": tfds.decode.SkipDecoding()},
        )
        info = tfds.builder(builder, data_dir=where).info
        class_names = tuple(info.features["label"].names)
        splits = [source[split] for split in ("train", test_split)]
        sizes = [(s, len(source[s]), info.splits[s].num_bytes) for s in ("train", test_split)]
    # TFDS raises its own and others' errors; each means that the set cannot be read as it is.
    except Exception as error:
        raise UserError(
            f"no {name} in {root.absolute()}: neither a folder {name}/ with {_LAYOUT}, nor a set "
            f"{builder!r} prepared by TFDS as ArrayRecord ({first_line(error)}); put one there, "
            "name another folder with --config.data_files.dir=FOLDER or $RETHINK_DATA_DIR, or for "
            "TFDS: "
            "pip install 'rethink_jax[tfds]'"
        ) from error
    stamp = hashlib.sha256(repr((info.full_name, class_names, sizes)).encode())
    labels = [
        _cached_labels(rows, root / "cache" / f"{name}-{split}-{stamp.hexdigest()[:12]}.npy")
        for rows, split in zip(splits, ("train", "test"), strict=True)
    ]
    for labels_N in labels:
        stamp.update(labels_N.tobytes())
    train, test = (
        Records(rows, f"the {split} split of {builder}")
        for rows, split in zip(splits, ("train", test_split), strict=True)
    )
    return StreamedDataset(
        name, train, labels[0], test, labels[1], class_names, stamp.hexdigest(),
        "TensorFlow Datasets", np.arange(len(labels[0])),
    )  # fmt: skip


def _cached_labels(rows: Any, path: Path) -> np.ndarray:
    """The labels of a split: int32[N], read from its records or from what was read before."""
    # A damaged cache raises many kinds of error, and is written anew.
    with contextlib.suppress(Exception):
        labels_N = np.load(path, allow_pickle=False)
        if labels_N.shape == (len(rows),) and labels_N.dtype == np.int32:
            return labels_N
    logging.info("reading the labels of %d records, once", len(rows))
    labels_N = np.array([rows[i]["label"] for i in range(len(rows))], np.int32)
    store_npy(path, labels_N)
    return labels_N
