"""From the name of a data set to a `Dataset`, wherever its files lie.

Order: sets that are functions (`DATASETS`); local files in any public layout; a set prepared by
TFDS; a download, if the config allows it. Whatever was decoded from files is cached as one .npy in
<data folder>/cache. Sets that are streamed (`is_streamed`) stay on disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from rethink_jax.data import readers, streamed
from rethink_jax.data.dataset import Dataset, store_npy
from rethink_jax.data.streamed import StreamedDataset
from rethink_jax.schema import UserError, first_line, suggest

_DIGITS = tuple("0123456789")
_CIFAR_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
    "Ankle boot",
)  # fmt: skip


class FileSource(NamedTuple):
    """A data set that lies in files: where to look, what it is called in TFDS, what to download.

    urls: (address, checksum, folder below the data folder)
    published: `Dataset.fingerprint` of the published files, where it was computed
    """

    layouts: tuple[readers.Layout, ...]
    class_names: tuple[str, ...]
    urls: tuple[tuple[str, str, str], ...]
    published: str | None = None


def _idx_urls(base: str, folder: str, md5s: Sequence[str]) -> tuple[tuple[str, str, str], ...]:
    stems = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return tuple(
        (f"{base}{s}-ubyte.gz", f"md5:{m}", folder) for s, m in zip(stems, md5s, strict=True)
    )


FILE_SOURCES = {
    "cifar10": FileSource(
        readers.CIFAR10,
        _CIFAR_CLASSES,
        (
            (
                "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
                "",
            ),
        ),
        "c257da322a0d649bdb1b5d7e7f6510de712a96dc7ce9d782e28bf81f8b5df748",
    ),
    "mnist": FileSource(
        readers.idx("mnist", "MNIST", "MNIST/raw"),
        _DIGITS,
        _idx_urls(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "mnist",
            (
                "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                "d53e105ee54ea40749a09fcbcd1e9432",
                "9fb629c4189551a2d022fa330f9573f3",
                "ec29112dd5afa0611ce80d1b7f02629c",
            ),
        ),
        "e01a2336dfa29a82d2f956a620da1be7d0b6fdfcadd0a9b2725ffcb8e1274d74",
    ),
    "fashion_mnist": FileSource(
        readers.idx("fashion_mnist", "fashion-mnist", "FashionMNIST", "FashionMNIST/raw"),
        _FASHION_CLASSES,
        _idx_urls(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "fashion_mnist",
            (
                "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "25c81989df183df01b3e8a0aad5dffbe",
                "bef4ecab320f06d8554ea6380940ec79",
                "bb300cfdad3c16e7a12a480ee83cd310",
            ),
        ),
    ),
}


def digits() -> Dataset:
    """The embedded 1,797 real images of handwritten digits, 8x8 pixels with 17 grey levels.

    Every fifth image of each class is a test image: 1,442 for training and 355 for testing.
    Source: Optical Recognition of Handwritten Digits (UCI, E. Alpaydin and C. Kaynak, 1998,
    CC BY 4.0), as distributed by scikit-learn.
    """
    with (resources.files("rethink_jax.data") / "digits.npz").open("rb") as file:
        stored = np.load(file, allow_pickle=False)
        images, labels = stored["images"], stored["labels"].astype(np.int32)
    rank = np.empty(len(labels), np.int64)
    for c in range(10):
        rank[labels == c] = np.arange((labels == c).sum())
    test = rank % 5 == 4
    # 0..16 becomes 0..255, so that the set looks like any other to what follows.
    images = np.round(images * (255 / 16)).astype(np.uint8)[..., None]
    parts = images[~test], labels[~test], images[test], labels[test]
    return Dataset("digits", *parts, _DIGITS, "the package")


def synthetic() -> Dataset:
    """Made images, 32x32x3 in 10 classes, 2,048 for training and 512 for testing: for dry runs.

    Each class is a fixed random 4x4 colour pattern; each image is its class's pattern, enlarged,
    with Gaussian noise of its own.
    """
    rng = np.random.Generator(np.random.Philox(0))
    patterns = rng.uniform(64, 192, (10, 4, 4, 3)).repeat(8, axis=1).repeat(8, axis=2)
    parts = []
    for count in (2048, 512):
        labels = rng.integers(0, 10, count, dtype=np.int32)
        images = patterns[labels] + rng.normal(0, 48, (count, 32, 32, 3))
        parts += [np.clip(np.round(images), 0, 255).astype(np.uint8), labels]
    return Dataset(
        "synthetic", *parts, tuple(f"class {c}" for c in range(10)), "made by the package"
    )


# Data sets by name, as functions. A new one is one function and one entry.
DATASETS: dict[str, Callable[[], Dataset]] = {"digits": digits, "synthetic": synthetic}


# Streamed sets by name: what TFDS calls the set and its split for tests.
STREAMED = {"imagenet": ("imagenet2012", "validation")}
_FOLDER = "folder:"


def names() -> tuple[str, ...]:
    """The data sets that are known by name."""
    return (*DATASETS, *FILE_SOURCES, *STREAMED)


def check_name(name: str) -> None:
    """Raises UserError unless `load` knows the data set."""
    if name not in names() and not name.startswith(("tfds:", _FOLDER)):
        raise UserError(
            f"data.name is {name!r}; it must be one of {', '.join(names())}, or tfds:NAME, or "
            f"folder:PATH{suggest(name, names())}"
        )


def is_streamed(name: str) -> bool:
    """Whether the images stay on disk and are read while training."""
    return name in STREAMED or name.startswith(_FOLDER)


def differs_from_published(dataset: Dataset | StreamedDataset) -> bool:
    """Whether these are other images or labels than the set of that name is known for."""
    source = FILE_SOURCES.get(dataset.name)
    return bool(source and source.published and source.published != dataset.fingerprint)


def data_dir(given: str | None) -> Path:
    """The data folder: as given, else $RETHINK_DATA_DIR, else .data."""
    return Path(given or os.environ.get("RETHINK_DATA_DIR") or ".data").expanduser()


def load(name: str, folder: str | None = None, download: bool = False) -> Dataset | StreamedDataset:
    """Loads a data set.

    Args:
      name: one of `names()`, or tfds:NAME, or folder:PATH with a path below `folder` or absolute.
      folder: where the files lie; None: see `data_dir`.
      download: fetch missing files.

    Raises:
      UserError: unknown name, missing files (which, where, what to do), or damaged files.
    """
    check_name(name)
    root = data_dir(folder)
    if name in DATASETS:
        return _made(name)
    try:
        return _found(name, root, download)
    except OSError as error:  # Of a name that is no name, or a disk that fails.
        raise UserError(
            f"cannot read {name} in {root}: {error.strerror or error}; name another folder with "
            "--config.data_files.dir=FOLDER or $RETHINK_DATA_DIR"
        ) from error


def _made(name: str) -> Dataset:
    """A set that is a function, the package's or the user's own."""
    try:
        made = DATASETS[name]()
        if not isinstance(made, Dataset):
            raise TypeError(f"its function returns {type(made).__name__}, not a Dataset")
    except UserError:
        raise
    # A user's function can fail in any way.
    except Exception as error:
        raise UserError(
            f"the data set {name!r} cannot be made ({type(error).__name__}: {first_line(error)}); "
            "mend its function in sources.DATASETS, --debug shows where it fails"
        ) from error
    return made


def _found(name: str, root: Path, download: bool) -> Dataset | StreamedDataset:
    if name.startswith("tfds:"):
        return _from_tfds(name, name.removeprefix("tfds:"), root)
    if is_streamed(name):
        return _streamed(name, root)
    dataset = _from_files(name, root)
    if (
        dataset is None
        and (root / name).is_dir()
        and any((root / name).glob("*/dataset_info.json"))
    ):
        dataset = _from_tfds(name, name, root)
    if dataset is None and download:
        _download(FILE_SOURCES[name].urls, root)
        dataset = _from_files(name, root)
    if dataset is None:
        raise UserError(_missing(name, root))
    return dataset


def _streamed(name: str, root: Path) -> StreamedDataset:
    streamed.check_packages(name)
    folder = root / Path(name.removeprefix(_FOLDER)).expanduser()
    if name.startswith(_FOLDER) or streamed.is_folder_of_classes(folder):
        return streamed.from_folder(name, folder)
    return streamed.from_tfds(name, *STREAMED[name], root)


def _missing(name: str, root: Path) -> str:
    layouts = FILE_SOURCES[name].layouts
    wanted = " or ".join(
        f"{folder + '/' if folder else ''}{layout.files[0][0]}"
        for layout in layouts
        for folder in layout.folders[:1]
    )
    return (
        f"no {name} in {root.absolute()}: looked for {wanted} (and their other public layouts), "
        f"and for a set prepared by TFDS in {name}/; put one there, name another folder with "
        "--config.data_files.dir=FOLDER or $RETHINK_DATA_DIR, or fetch it with "
        "--config.data_files.download=True"
    )


def _from_files(name: str, root: Path) -> Dataset | None:
    source = FILE_SOURCES[name]
    for layout in source.layouts:
        files = layout.find(root)
        if files is not None:
            arrays = _cached(name, root, files, layout)
            return Dataset(name, *arrays, source.class_names, str(files[0].parent))
    return None


def _cached(name: str, root: Path, files: list[Path], layout: readers.Layout) -> readers.Arrays:
    """Decodes the files, or takes what was decoded from these very files before."""
    stats = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    stamp = hashlib.sha256(repr(stats).encode()).hexdigest()[:12]
    path = root / "cache" / f"{name}-{stamp}.npy"
    try:
        rows = np.load(path, allow_pickle=False)
        train, test = rows[rows["train"]], rows[~rows["train"]]
        columns = (train["image"], train["label"], test["image"], test["label"])
        return tuple(np.ascontiguousarray(c) for c in columns)  # type: ignore[return-value]
    # No cache yet, or one that is damaged, in whatever way: decode, and write it anew.
    except Exception as error:
        if not isinstance(error, FileNotFoundError):
            logging.info("the cache %s is not read: %s", path, error)
    arrays = layout.read(files)
    Dataset(name, *arrays, FILE_SOURCES[name].class_names, str(files[0].parent))  # Checks them.
    train_images, train_labels, test_images, test_labels = arrays
    if train_images.shape[1:] != test_images.shape[1:]:
        shapes = ["x".join(map(str, a.shape[1:])) for a in (train_images, test_images)]
        raise UserError(
            f"{files[0].parent}: training and test images have different sizes, {shapes[0]} and "
            f"{shapes[1]}; take the files of one set"
        )
    fields = [("image", np.uint8, train_images.shape[1:]), ("label", np.int32), ("train", np.bool_)]
    rows = np.empty(len(train_images) + len(test_images), fields)
    rows["image"] = np.concatenate([train_images, test_images])
    rows["label"] = np.concatenate([train_labels, test_labels])
    rows["train"] = np.arange(len(rows)) < len(train_images)
    store_npy(path, rows)
    _remove_older(path, name)
    return arrays


def _remove_older(path: Path, name: str) -> None:
    """Removes what was decoded from files of a set that have changed since."""
    for other in path.parent.glob(f"{name}-{'[0-9a-f]' * 12}.npy"):
        if other != path:
            with contextlib.suppress(OSError):
                other.unlink()


def _from_tfds(name: str, builder: str, root: Path) -> Dataset:
    """A set prepared by TFDS as ArrayRecord files; reading it needs no TensorFlow."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(
            f"{name} is to be read with TensorFlow Datasets, which does not import ({error}); "
            "install it with: pip install 'rethink_jax[tfds]'"
        ) from error
    folders = [root] if (root / builder.split(":")[0].split("/")[0]).is_dir() else [None]
    try:
        source = tfds.data_source(
            builder,
            data_dir=folders[0],
            download=False,
            builder_kwargs={"file_format": "array_record"},
        )
        class_names = tuple(tfds.builder(builder, data_dir=folders[0]).info.features["label"].names)
        parts = []
        for split in ("train", "test"):
            rows = source[split].__getitems__(range(len(source[split])))
            parts.append(np.stack([np.asarray(r["image"], np.uint8) for r in rows]))
            parts.append(np.asarray([r["label"] for r in rows], np.int32))
    # TFDS raises its own and others' errors; each means that the set cannot be read as it is.
    except Exception as error:
        raise UserError(
            f"{name}: TFDS has no prepared image data set {builder!r} with train and test splits "
            f"({first_line(error)}); prepare it once where TensorFlow is installed: "
            f"python -c \"import tensorflow_datasets as t; t.builder('{builder}', "
            "file_format='array_record').download_and_prepare()\""
        ) from error
    return Dataset(name, *parts, class_names, "TensorFlow Datasets")


def _download(urls: tuple[tuple[str, str, str], ...], root: Path) -> None:
    try:
        import pooch
    except ImportError as error:
        raise UserError(
            "downloads need pooch; install it with: pip install 'rethink_jax[download]'"
        ) from error
    for url, checksum, folder in urls:
        file = url.rsplit("/", 1)[-1]
        logging.info("fetching %s into %s", url, root / folder)
        try:
            pooch.retrieve(url, known_hash=checksum, fname=file, path=root / folder)
        # Networks fail in many ways; a wrong checksum is a ValueError.
        except Exception as error:
            raise UserError(
                f"could not fetch {url}: {first_line(error)}; fetch it by other means "
                f"and put it into {(root / folder).absolute()}"
            ) from error
