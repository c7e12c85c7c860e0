"""Readers of the public file layouts: CIFAR-10 (binary and python) and idx, packed or plain.

Archives are read in memory, never unpacked to disk, and pickles are not unpickled (`pickled`). A
file takes a few times its size in memory, whatever its headers say, and at most some gigabytes.
"""

from __future__ import annotations

import gzip
import io
import math
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rethink_jax.data import pickled
from rethink_jax.schema import UserError, first_line

# Of a file, unpacked. The largest published one, CIFAR-10 in an archive, has 184 million.
MOST_BYTES = 2**31
_MOST_MEMBERS = 10_000  # Of an archive; the published ones have 8.

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # train x, y, test x, y


class Layout(NamedTuple):
    """One way a data set may lie in a folder.

    folders: names of the folders it may lie in, relative to the data folder ('' is itself)
    files: the names that must all be there; for each, the first variant found is taken
    read: from the found files to arrays
    """

    folders: tuple[str, ...]
    files: tuple[tuple[str, ...], ...]
    read: Callable[[Sequence[Path]], Arrays]

    def find(self, root: Path) -> list[Path] | None:
        """The files of this layout, or None if none of them is there.

        Raises:
          UserError: some are there and some are missing.
        """
        for name in self.folders:
            folder = root / name
            found = [
                next((folder / v for v in f if (folder / v).is_file()), None) for f in self.files
            ]
            if all(found):
                return [f for f in found if f is not None]
            if any(found):
                missing = [f[0] for f, path in zip(self.files, found, strict=True) if path is None]
                raise UserError(
                    f"{folder} lacks {', '.join(missing)}; put the missing files there, or take "
                    "the others away so that another source is used"
                )
        return None


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path} is damaged: {why}; delete it and fetch it again")


def _file_bytes(path: Path) -> bytes:
    """The contents of a plain or gzip-compressed file."""
    try:
        with path.open("rb") as plain:
            packed = path.suffix == ".gz"
            with gzip.GzipFile(fileobj=plain) if packed else plain as file:
                data = file.read(MOST_BYTES + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _damaged(path, f"not a whole gzip file ({error})") from error
    except (OSError, MemoryError) as error:
        raise _unreadable(path, error) from error
    # A small file can unpack to one that fills the memory.
    if len(data) > MOST_BYTES:
        raise _damaged(path, f"more than {MOST_BYTES:,} bytes, far more than any published set")
    return data


def _unreadable(path: Path, error: Exception) -> UserError:
    why = getattr(error, "strerror", None) or first_line(error)
    return UserError(
        f"cannot read {path}: {why}; make it readable, or name another folder with "
        "--config.data_files.dir=FOLDER or $RETHINK_DATA_DIR"
    )


def _archive_members(path: Path, names: Sequence[str]) -> list[bytes]:
    """The named members of a gzip-compressed tar archive, wherever in it they lie."""
    found: dict[str, bytes] = {}
    archive = io.BytesIO(_file_bytes(path))
    try:
        with tarfile.open(fileobj=archive, mode="r:") as tar:
            for number, member in enumerate(tar):
                # tarfile follows a negative size back, to the same member again.
                if member.size < 0 or number > _MOST_MEMBERS:
                    raise tarfile.ReadError("its headers make no sense")
                name = member.name.rsplit("/", 1)[-1]
                # The holes of a sparse file take no place in the archive, but in memory.
                if name in names and member.isfile() and not member.issparse():
                    found[name] = tar.extractfile(member).read()  # type: ignore[union-attr]
    # Headers that make no sense raise many kinds of error.
    except Exception as error:
        raise _damaged(path, f"not a whole tar archive ({first_line(error)})") from error
    if missing := [n for n in names if n not in found]:
        raise _damaged(path, f"it lacks {', '.join(missing)}")
    return [found[n] for n in names]


# --- CIFAR-10 -------------------------------------------------------------------------------------

_CIFAR_BIN = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
_CIFAR_PY = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")


def _planes_to_nhwc(planes: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _cifar_binary(data: bytes, path: Path) -> tuple[np.ndarray, np.ndarray]:
    if not data or len(data) % 3073:
        raise _damaged(path, f"{len(data)} bytes is no whole number of 3073-byte records")
    records = np.frombuffer(data, np.uint8).reshape(-1, 3073)
    return _planes_to_nhwc(records[:, 1:]), records[:, 0].astype(np.int32)


def _cifar_python(data: bytes, path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        batch = pickled.load(data)
        planes, labels = batch[b"data"], batch[b"labels"]
        if not isinstance(planes, np.ndarray) or planes.dtype != np.uint8:
            raise ValueError("its data are no array of unsigned bytes")
        if not isinstance(labels, np.ndarray) and not all(type(v) is int for v in labels):
            raise ValueError("its labels are no integers")
        labels = np.asarray(labels, np.int64)
        if labels.ndim != 1 or abs(labels).max(initial=0) > np.iinfo(np.int32).max:
            raise ValueError("its labels are no list of small integers")
        return _planes_to_nhwc(planes), labels.astype(np.int32)
    # Whatever a broken pickle raises on the way, the file is what is wrong.
    except Exception as error:
        raise _damaged(path, f"not a CIFAR-10 python batch ({first_line(error)})") from error


def _cifar(
    parse: Callable[[bytes, Path], tuple[np.ndarray, np.ndarray]],
    names: tuple[str, ...],
    packed: bool,
) -> Callable[[Sequence[Path]], Arrays]:
    def read(files: Sequence[Path]) -> Arrays:
        if packed:
            files, data = list(files) * len(names), _archive_members(files[0], names)
        else:
            data = [_file_bytes(f) for f in files]
        *train, test = [parse(d, f) for d, f in zip(data, files, strict=True)]
        images, labels = zip(*train, strict=True)
        return np.concatenate(images), np.concatenate(labels), *test

    return read


def _each(*names: str) -> tuple[tuple[str, ...], ...]:
    return tuple((n,) for n in names)


CIFAR10 = (
    Layout(
        ("cifar-10-batches-bin", ""), _each(*_CIFAR_BIN), _cifar(_cifar_binary, _CIFAR_BIN, False)
    ),
    Layout(("cifar-10-batches-py", ""), _each(*_CIFAR_PY), _cifar(_cifar_python, _CIFAR_PY, False)),
    Layout(("",), _each("cifar-10-binary.tar.gz"), _cifar(_cifar_binary, _CIFAR_BIN, True)),
    Layout(("",), _each("cifar-10-python.tar.gz"), _cifar(_cifar_python, _CIFAR_PY, True)),
)

# --- idx ------------------------------------------------------------------------------------------


def _idx(path: Path, ndim: int) -> np.ndarray:
    """An idx file of unsigned bytes: magic 0, 0, 8, ndim, then big-endian sizes, then the data."""
    data = _file_bytes(path)
    if data[:4] != bytes((0, 0, 8, ndim)) or len(data) < 4 + 4 * ndim:
        raise _damaged(path, f"not an idx file of {ndim}-dimensional unsigned bytes")
    shape = tuple(int(s) for s in np.frombuffer(data, ">u4", ndim, 4))
    if len(data) - 4 - 4 * ndim != math.prod(shape):
        raise _damaged(path, f"{len(data)} bytes do not hold {' x '.join(map(str, shape))} values")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * ndim).reshape(shape)


def _read_idx(files: Sequence[Path]) -> Arrays:
    train, train_labels, test, test_labels = (
        _idx(f, n) for f, n in zip(files, (3, 1) * 2, strict=True)
    )
    return (
        train[..., None],
        train_labels.astype(np.int32),
        test[..., None],
        test_labels.astype(np.int32),
    )


def _idx_names(stem: str) -> tuple[str, ...]:
    dotted = ".idx".join(stem.rsplit("-idx", 1))
    return (stem, f"{stem}.gz", dotted, f"{dotted}.gz")


def idx(*folders: str) -> tuple[Layout, ...]:
    """The layout of MNIST-like sets: four idx files, each plain or gzipped, in one folder."""
    stems = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
    files = (*stems, *(s.replace("train", "t10k") for s in stems))
    return (Layout(folders, tuple(_idx_names(f) for f in files), _read_idx),)
