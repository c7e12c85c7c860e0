"""What a mistake can be about: configs and data files that are wrong, each in one way."""

import gzip
import io
import pickle
import shutil
import struct
import tarfile

import numpy as np
from layouts import (
    Touch,
    binary_batch,
    cifar_batches,
    cifar_members,
    idx_arrays,
    python_batch,
    write_folder,
    write_idx,
    write_idx_set,
    write_tar,
)

UNICODE = "данные 数据 \N{GRINNING FACE}"

# --- configs --------------------------------------------------------------------------------------

_SMALL = """
from rethink_jax import default_config

def get_config(mode="full"):
    config = default_config(mode)
    trial = config.trial
    trial.model.hidden = (4,)
    trial.batch_size = 2
"""


def _small(*lines):
    return _SMALL + "".join(f"    {line}\n" for line in lines) + "    return config\n"


def _returns(value):
    return f"def get_config():\n    return {value}\n"


_OWN_SET = """
import numpy as np
from rethink_jax.data import sources
from rethink_jax.data.dataset import Dataset

def own():
    {body}

sources.DATASETS["own"] = own
"""


def _own_set(body):
    return _OWN_SET.format(body=body) + _small("trial.data.name = 'own'")


CONFIGS = {
    "small": _small(),
    "two_seeds": _small(
        "trial.data.num_train = 32", "trial.batch_size = 16", "trial.stop.max_epochs = 2",
        "config.sweep.seed = (0, 1)", "config.checkpoint.every_seconds = 0.0",
    ),
    "mnist": _small("trial.data.name = 'mnist'"),
    "cifar10": _small("trial.data.name = 'cifar10'"),
    "images": _small(
        "trial.data.image_size = 8", "trial.stop.measured_on = 'online'",
    ),
    "syntax": "def get_config(:\n    pass\n",
    "key_error": "def get_config():\n    raise KeyError('oh no')\n",
    "value_error": "def get_config():\n    return int('oh no')\n",
    "os_error": "def get_config():\n    return open('/nonexistent')\n",
    "assertion": "def get_config():\n    assert 1 == 2\n",
    "no_import": "import nothing_of_this_name\n" + _small(),
    "field_type": _small("trial.batch_size = 'many'"),
    "new_field": _small("trial.optimizer.learning_rat = 0.1"),
    "no_function": "x = 1\n",
    "no_trial": _returns({"sweep": {}}),
    "sweep_tuple": _returns({"trial": {}, "sweep": (1, 2)}),
    "union_tuple": _returns({"trial": {}, "sweep": {"union": (1, 2)}}),
    "zipped_tuple": _returns({"trial": {}, "sweep": {"zipped": {"seed": (1, 2)}}}),
    "unequal": _returns(
        {"trial": {}, "sweep": {"zipped": {"a": {"seed": (1, 2), "data": {"seed": (1,)}}}}}
    ),
    "twice": _returns({"trial": {}, "sweep": {"seed": (1, 2, 1)}}),
    "two_axes": _returns(
        {"trial": {}, "sweep": {"seed": (1, 2), "union": {"a": {"seed": (3,)}}}}
    ),
    "trial_number": _returns({"trial": 3}),
    "a_number": _returns(3),
    "section_number": _returns({"trial": {"optimizer": 3}}),
    "none": _returns({"trial": {"batch_size": None}}),
    "bool": _returns({"trial": {"seed": True}}),
    "bool_in_tuple": _returns({"trial": {"model": {"name": "mlp", "hidden": (8, True)}}}),
    "nan": "nan = float('nan')\n" + _returns("{'trial': {'optimizer': {'learning_rate': nan}}}"),
    "list_for_text": _returns({"trial": {"data": {"name": ["digits"]}}}),
    "set_for_axis": _returns({"trial": {}, "sweep": {"seed": {0, 1}}}),
    "keys_are_numbers": _returns({"trial": {1: 2}}),
    "settings_number": _returns({"trial": {}, "engine": 3}),
    "zero_byte": _small("trial.data.name = 'mnist'", "config.data_files.dir = 'a\\0b'"),
    "own_nan": _own_set(
        "x = np.full((4, 8, 8, 1), np.nan); y = np.zeros(4, int); "
        "return Dataset('own', x, y, x, y, ('a', 'b'))"
    ),
    "own_label": _own_set(
        "x = np.zeros((4, 8, 8, 1), np.uint8); y = np.full(4, 2); "
        "return Dataset('own', x, y, x, y, ('a', 'b'))"
    ),
    "own_object_npy": _own_set("return np.load('{tmp}/objects.npy', allow_pickle=False)"),
    "own_cut_npz": _own_set("return np.load('{tmp}/cut.npz')['x']"),
    "own_none": _own_set("return None"),
    "theory_small": "from rethink_jax.theory import cases\n\ndef get_config(mode='full'):\n"
    "    config = cases.default_config('memorizer', mode)\n"
    "    config.trial.num_train = 20\n    return config\n",
    "theory_unknown": _returns({"experiment": "memoriser"}),
    "theory_trial": _returns({"experiment": "memorizer", "trial": 3}),
}  # fmt: skip


def write_configs(folder):
    for name, text in CONFIGS.items():
        (folder / f"{name}.py").write_text(text.replace("{tmp}", str(folder)))
    np.save(folder / "objects.npy", np.array([Touch(folder / "canary")]), allow_pickle=True)
    data = io.BytesIO()
    np.savez(data, x=np.zeros(1000))
    (folder / "cut.npz").write_bytes(data.getvalue()[:-300])


# --- data files -----------------------------------------------------------------------------------


def _damaged(name, change, ending=""):
    """MNIST's files with one of them changed."""

    def write(folder):
        write_idx_set(folder / "mnist", ending=ending)
        path = folder / "mnist" / f"{name}{ending}"
        path.write_bytes(change(path.read_bytes()))

    return write


def _values(**changed):
    """MNIST's files with other values in some; the names without their endings."""

    def write(folder):
        arrays = idx_arrays()
        for name in arrays:
            arrays[name] = changed.get(name.split("-idx")[0].replace("-", "_"), arrays[name])
        write_idx_set(folder / "mnist", arrays)

    return write


def _missing(folder):
    write_idx_set(folder / "mnist")
    (folder / "mnist" / "t10k-labels-idx1-ubyte").unlink()


def _replaced(make):
    """MNIST's files with the first one replaced by what `make` puts at its path."""

    def write(folder):
        write_idx_set(folder / "mnist")
        path = folder / "mnist" / "train-images-idx3-ubyte"
        path.unlink()
        make(path)

    return write


def _cifar(kind, changed=None, packed=None):
    """CIFAR-10's files in a folder or an archive; changed: {member: its bytes, or None for none}"""

    def write(folder):
        members = cifar_members(kind)
        for name, change in (changed or {}).items():
            members[name] = change(folder, members[name])
        members = {n: d for n, d in members.items() if d is not None}
        if packed is None:
            write_folder(folder / f"cifar-10-batches-{kind}", members)
        else:
            folder.mkdir()
            write_tar(folder / packed, members)

    return write


def canary(folder):
    """The file that code in the data of a folder would make."""
    return folder.parents[1] / "canary"


def _code(folder, _):
    return pickle.dumps({b"data": Touch(canary(folder)), b"labels": [0]}, protocol=2)


def _pickled(data, labels=(1, 2, 3)):
    return lambda *_: pickle.dumps({b"data": data, b"labels": list(labels)}, protocol=2)


def _with_label(kind, label):
    def change(*_):
        images, labels = cifar_batches()["data_batch_1"]
        write = {"bin": binary_batch, "py": python_batch}[kind]
        return write(images, [*labels[:-1], label])

    return change


def _tar_cut(folder):
    _cifar("py", packed="cifar-10-python.tar.gz")(folder)
    path = folder / "cifar-10-python.tar.gz"
    path.write_bytes(path.read_bytes()[:2000])


def _tar_of_text(folder):
    folder.mkdir()
    (folder / "cifar-10-binary.tar.gz").write_bytes(gzip.compress(b"<html>not found</html>" * 99))


def _tar_that_escapes(folder):
    """A batch is a link out of the archive, and other members lie outside of any folder."""
    folder.mkdir()
    secret = folder.parent / "secret"
    secret.write_bytes(cifar_members("bin")["data_batch_1.bin"])
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as tar:
        link = tarfile.TarInfo("data_batch_1.bin")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        tar.addfile(link)
        for name in (f"../../{canary(folder).name}", str(canary(folder))):
            tar.addfile(tarfile.TarInfo(name))


def _images(change):
    """Class folders of images, changed."""

    def write(folder):
        from PIL import Image

        for split in ("train", "val"):
            for name in ("a", "b"):
                (folder / split / name).mkdir(parents=True)
                for number in range(2):
                    path = folder / split / name / f"{number}.png"
                    Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
        change(folder)

    return write


_HUGE = bytes((0, 0, 8, 3)) + struct.pack(">III", 2**31, 2**31, 4)
DATA = {
    "mnist_missing": _missing,
    "mnist_cut": _damaged("train-images-idx3-ubyte", lambda b: b[:-1]),
    "mnist_cut_gz": _damaged("t10k-labels-idx1-ubyte", lambda b: b[:-9], ".gz"),
    "mnist_text_gz": _damaged("train-images-idx3-ubyte", lambda _: b"<html>", ".gz"),
    "mnist_flipped_gz": _damaged("train-labels-idx1-ubyte", lambda b: b[:-8] + bytes(8), ".gz"),
    "mnist_magic": _damaged("train-images-idx3-ubyte", lambda b: b"\1" + b[1:]),
    "mnist_huge": _damaged("train-images-idx3-ubyte", lambda _: _HUGE),
    "mnist_bomb": _damaged(
        "train-images-idx3-ubyte", lambda _: gzip.compress(bytes(2**23), 9), ".gz"
    ),
    "mnist_label": _values(train_labels=np.array([0, 1, 10, 2, 3], np.uint8)),
    "mnist_labels": _values(train_labels=np.zeros(4, np.uint8)),
    "mnist_empty": _values(
        t10k_images=np.zeros((0, 4, 6), np.uint8), t10k_labels=np.zeros(0, np.uint8)
    ),
    "mnist_sizes": _values(t10k_images=np.zeros((3, 6, 4), np.uint8)),
    "mnist_no_pixels": _values(
        train_images=np.zeros((5, 0, 6), np.uint8), t10k_images=np.zeros((3, 0, 6), np.uint8)
    ),
    "mnist_folder": _replaced(lambda path: path.mkdir()),
    # A file that is there and cannot be read, also by root.
    "mnist_unreadable": _replaced(lambda path: path.symlink_to("/proc/self/mem")),
    "bin_cut": _cifar("bin", {"data_batch_2.bin": lambda _, b: b[:-1]}),
    "bin_empty": _cifar("bin", {"data_batch_2.bin": lambda *_: b""}),
    "bin_label": _cifar("bin", {"data_batch_1.bin": _with_label("bin", 200)}),
    "py_missing": _cifar("py", {"test_batch": lambda *_: None}),
    "py_cut": _cifar("py", {"data_batch_4": lambda _, b: b[:-50]}),
    "py_code": _cifar("py", {"data_batch_1": _code}),
    "py_label": _cifar("py", {"data_batch_1": _with_label("py", -1)}),
    "py_floats": _cifar("py", {"test_batch": _pickled(np.full((3, 3072), np.nan))}),
    "py_words": _cifar("py", {"test_batch": _pickled(np.zeros((3, 3072), np.uint8), "abc")}),
    "tar_code": _cifar("py", {"data_batch_1": _code}, packed="cifar-10-python.tar.gz"),
    "tar_missing": _cifar(
        "bin", {"data_batch_5.bin": lambda *_: None}, packed="cifar-10-binary.tar.gz"
    ),
    "tar_cut": _tar_cut,
    "tar_of_text": _tar_of_text,
    "tar_escapes": _tar_that_escapes,
    "images_no_val": _images(lambda f: shutil.rmtree(f / "val")),
    "images_no_train": _images(lambda f: shutil.rmtree(f / "train")),
    "images_class": _images(lambda f: (f / "val" / "b").rename(f / "val" / "c")),
    "images_empty": _images(lambda f: [p.unlink() for p in (f / "train" / "a").iterdir()]),
    "images_flat": _images(lambda f: [shutil.rmtree(f / "train" / c) for c in "ab"]),
    "images_text": _images(lambda f: (f / "train" / "a" / "0.png").write_text("<html>")),
    "images_cut": _images(
        lambda f: (f / "train" / "a" / "0.png").write_bytes(
            (f / "train" / "a" / "0.png").read_bytes()[:-30]
        )
    ),
}


def write_data(folder):
    for name, write in DATA.items():
        write(folder / name)
    write_idx(folder / UNICODE / "mnist" / "train-images-idx3-ubyte", np.zeros((2, 4, 4)))
