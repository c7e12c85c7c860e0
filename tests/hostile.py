"""What a mistake can be about: configs, data files and workdirs that are wrong, each in one way."""

import gzip
import io
import json
import os
import pickle
import shutil
import struct
import tarfile

import commands
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

from rethink_jax.theory import cases

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


# --- workdirs -------------------------------------------------------------------------------------


def _text(name, text):
    return lambda folder: next(folder.glob(name)).write_text(text)


def _json(name, change):
    def write(folder):
        path = next(folder.glob(name))
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return write


def _without(key):
    return lambda value: {k: v for k, v in value.items() if k != key}


def _nested(depth):
    return {"a": _nested(depth - 1)} if depth else 1


def _file(name, value):
    """A file with a text, or with anything else as JSON."""
    text = value if isinstance(value, str) else json.dumps(value)
    return lambda folder: (folder / name).write_text(text)


def _widths(fields):
    """Pads the network of the trials of `two_seeds`."""

    def write(folder):
        (path,) = (folder / "choices").glob("widths.*.json")
        path.write_text(json.dumps(dict.fromkeys(json.loads(path.read_text()), fields)))

    return write


def _choice(**choices):
    whole = {"batching": "map", "lanes_per_device": 1, "convolutions": []}
    return {"group_id": "g", "device": "cpu", "choices": whole | choices}


def _cut_network(folder):
    for path in next(folder.glob("trials/*")).glob("network/**/*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)


def _other_network(folder):
    """The network of a trial of another config."""
    network = next(folder.glob("trials/*")) / "network"
    shutil.rmtree(network)
    other = next((folder.parent / "wider").glob("trials/*")) / "network"
    shutil.copytree(other, network)


# From the workdir of a finished sweep.
WORKDIRS = {
    "finished": lambda _: None,
    "header_text": _text("run.json", "{"),
    "header_bytes": lambda f: (f / "run.json").write_bytes(b"\xff\xfe"),
    "header_list": _text("run.json", "[]"),
    "header_nested": _text("run.json", "[" * 10**5),
    "header_version": _json("run.json", lambda h: h | {"format": 999}),
    "header_other_project": _text("run.json", '{"name": "my run", "steps": 10}'),
    "header_cut": _json("run.json", _without("fixed_fields")),
    "header_no_config": _json("run.json", _without("config")),
    "header_folder": lambda f: ((f / "run.json").unlink(), (f / "run.json").mkdir()),
    "other_images": _json(
        "run.json",
        lambda h: h | {"data": {"digits": h["data"]["digits"] | {"fingerprint": "0"}}},
    ),
    "result_text": _text("trials/*/result.json", "{"),
    "result_list": _text("trials/*/result.json", "[]"),
    "result_cut": _json("trials/*/result.json", _without("trial")),
    "result_nan": _text("trials/*/result.json", "NaN"),
    "curve_missing": lambda f: next(f.glob("trials/*/curve.csv")).unlink(),
    "curve_bytes": lambda f: next(f.glob("trials/*/curve.csv")).write_bytes(b"\xff\0\n1"),
    "curve_text": _text("trials/*/curve.csv", "a,b\n1,2\n"),
    "curve_empty": _text("trials/*/curve.csv", ""),
    "table_empty": _text("trials.csv", ""),
    "table_text": _text("trials.csv", "a,b\n1\n1,2,3\n"),
    "table_of_others": _text("trials.csv", "a,b\n1,2\n"),
    "measures_text": lambda f: (f / "measures.csv").write_text("a,b\n1,2\n"),
    "measures_bytes": lambda f: (f / "measures.csv").write_bytes(b"\xff\xfe\0"),
    "network_cut": _cut_network,
    "network_other": _other_network,
    "report_is_a_file": lambda f: (f / "report").write_text("mine"),
    "examples_cut": lambda f: os.truncate(f / "examples.npz", 100),
    "unfinished": lambda f: shutil.rmtree(f / "trials"),
    "header_data": _json("run.json", lambda h: h | {"data": {"digits": 3}}),
    "header_fixed": _json("run.json", lambda h: h | {"fixed_fields": [1]}),
    "result_final": _json("trials/*/result.json", lambda r: r | {"final": {"test_accuracy": "x"}}),
    "result_deep": _json("trials/*/result.json", lambda r: r | {"best": _nested(200)}),
    "run_text": _text("runs/*.json", "{"),
    "run_list": _text("runs/*.json", "[]"),
    "run_no_cpu": _json("runs/*.json", _without("cpu")),
    "run_devices": _json("runs/*.json", lambda r: r | {"devices": []}),
    "run_seconds": _json("runs/*.json", lambda r: r | {"seconds": "7"}),
    "run_data": _json("runs/*.json", lambda r: r | {"data": [1]}),
    "run_deep": _json("runs/*.json", lambda r: r | {"git": _nested(200)}),
    "run_is_a_folder": lambda f: (f / "runs" / "a.json").mkdir(),
    "widths_text": _file("choices/widths.0000.json", "{"),
    "widths_numbers": _file("choices/widths.0000.json", {"a": 3}),
    "widths_words": _file("choices/widths.0000.json", {"a": {"model.hidden": ["x"]}}),
    "widths_narrow": _widths({"model.hidden": [2]}),
    "widths_of_another": _widths({"model.width": 64}),
    "widths_of_more_layers": _widths({"model.hidden": [8, 8]}),
    "widths_a_number": _widths({"model.hidden": 8}),
    "choice_text": _file("choices/g.cpu.json", "{"),
    "choice_empty": _file("choices/g.cpu.json", {}),
    "choice_lanes": _file("choices/g.cpu.json", _choice(lanes_per_device=-1)),
    "choice_batching": _file("choices/g.cpu.json", _choice(batching="fast")),
    "choice_shape": _file("choices/g.cpu.json", _choice(convolutions=[{"lowering": "lax"}])),
    "table_bytes": lambda f: (f / "trials.csv").write_bytes(b"trial_id,status\xff\0\n"),
    "table_short": _text("trials.csv", "trial_id,status,stop_reason\n1\n"),
    "only_header": lambda f: [
        shutil.rmtree(p) if p.is_dir() else p.unlink() for p in f.iterdir() if p.name != "run.json"
    ],
    "claim_is_a_folder": lambda f: (f / "claims" / "0of1.000009.json").mkdir(),
}

# From the workdir of a case of theory.
THEORY = {
    "theory_finished": lambda _: None,
    "theory_cut": _json("theory/*.json", _without("found")),
    "theory_other": _json("theory/*.json", lambda r: r | {"found": {"a": 1}}),
    "theory_text": _text("theory/*.json", "<html>"),
    "theory_mixed": _json("theory/*.json", lambda r: r | {"experiment": "kernel"}),
    "theory_renamed": lambda f: next(f.glob("theory/*.json")).rename(
        f / "theory" / "kernel_0.json"
    ),
    "theory_evil": lambda f: (f / "theory" / "a\x1b[31m\nb.json").write_text("{"),
    "theory_is_a_file": lambda f: (shutil.rmtree(f / "theory"), (f / "theory").write_text("")),
}


def write_workdirs(folder, configs):
    """Runs two small sweeps and a case of theory, and copies what they wrote for each mistake."""
    for name, command, *args in (
        ("finished", "sweep", f"--config={configs}/two_seeds.py"),
        ("wider", "sweep", f"--config={configs}/two_seeds.py", "--config.trial.model.hidden=(7,)"),
        ("theory_finished", "theory", f"--config={configs}/theory_small.py"),
    ):
        outcome = commands.run(command, *args, f"--workdir={folder / name}")
        assert outcome.code == 0, outcome.err
    for good, changes in (("finished", WORKDIRS), ("theory_finished", THEORY)):
        for name, change in changes.items():
            if name != good:
                shutil.copytree(folder / good, folder / name)
            change(folder / name)
    assert cases.load(folder / "theory_finished")
