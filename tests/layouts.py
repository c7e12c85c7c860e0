"""Writers of the public file layouts, from their descriptions and not from the readers' code."""

import gzip
import io
import os
import pickle
import struct
import tarfile

import numpy as np

TRAIN_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
BATCHES = (*TRAIN_BATCHES, "test_batch")
PER_BATCH = 3


def cifar_batches():
    """{batch: (images uint8[3, 32, 32, 3], labels)}, all different."""
    rng = np.random.default_rng(0)
    return {
        name: (
            rng.integers(0, 256, (PER_BATCH, 32, 32, 3), dtype=np.uint8),
            rng.integers(0, 10, PER_BATCH).tolist(),
        )
        for name in BATCHES
    }


def planes(image):
    """An image as CIFAR stores it: all of red row by row, then green, then blue."""
    return bytes(
        int(image[y, x, channel]) for channel in range(3) for y in range(32) for x in range(32)
    )


def binary_batch(images, labels):
    return b"".join(
        bytes([label]) + planes(image) for image, label in zip(images, labels, strict=True)
    )


def python_batch(images, labels):
    """As python 3 with numpy 2 pickles it."""
    rows = np.frombuffer(b"".join(map(planes, images)), np.uint8).reshape(len(images), 3072)
    return pickle.dumps(
        {b"batch_label": b"batch", b"labels": labels, b"data": rows, b"filenames": [b"a.png"]},
        protocol=2,
    )


def python2_batch(images, labels):
    """As the published files were pickled: by python 2, whose plain strings are bytes."""

    def text(value):
        return b"U" + bytes([len(value)]) + value

    def number(value):
        return b"J" + struct.pack("<i", value)

    data = b"".join(map(planes, images))
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text(b"b") + b"tR"
        b"(K\x01(" + number(len(images)) + number(3072) + b"t"
        b"cnumpy\ndtype\n(" + text(b"u1") + b"K\x00K\x01tR(K\x03" + text(b"|") + b"NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89T" + struct.pack("<i", len(data)) + data + b"tb"
    )
    listed = b"](" + b"".join(map(number, labels)) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + listed + b"u."


def cifar_members(kind):
    """{file name: contents} of the six batches."""
    write = {"bin": binary_batch, "py": python_batch, "py2": python2_batch}[kind]
    ending = ".bin" if kind == "bin" else ""
    return {f"{name}{ending}": write(*batch) for name, batch in cifar_batches().items()}


def write_folder(folder, members):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in members.items():
        (folder / name).write_bytes(data)


def write_tar(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def write_idx(path, values, magic=None):
    values = np.asarray(values, np.uint8)
    data = bytes(magic or (0, 0, 8, values.ndim))
    data += b"".join(struct.pack(">I", n) for n in values.shape) + values.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def idx_arrays(train=5, test=3, size=(4, 6)):
    """Not square, so that rows and columns cannot be mixed up unseen."""
    rng = np.random.default_rng(1)
    return {
        "train-images-idx3-ubyte": rng.integers(0, 256, (train, *size), dtype=np.uint8),
        "train-labels-idx1-ubyte": rng.integers(0, 10, train, dtype=np.uint8),
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (test, *size), dtype=np.uint8),
        "t10k-labels-idx1-ubyte": rng.integers(0, 10, test, dtype=np.uint8),
    }


def write_idx_set(folder, arrays=None, dotted=False, ending=""):
    for name, values in (arrays or idx_arrays()).items():
        name = name.replace("-idx", ".idx") if dotted else name
        write_idx(folder / f"{name}{ending}", values)


class Touch:
    """Pickles to a call of os.system, which makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)
