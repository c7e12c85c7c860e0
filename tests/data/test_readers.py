"""Every public file layout, written by the test and read back value by value."""

import io
import pickle
import struct
import tarfile

import numpy as np
import pytest
from layouts import (
    PER_BATCH,
    TRAIN_BATCHES,
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

from rethink_jax.data import sources
from rethink_jax.schema import UserError

# --- layouts --------------------------------------------------------------------------------------

CIFAR_PLACES = {
    "binary folder": ("bin", "cifar-10-batches-bin"),
    "binary, no folder": ("bin", ""),
    "binary tar": ("bin", "cifar-10-binary.tar.gz"),
    "python folder": ("py", "cifar-10-batches-py"),
    "python, no folder": ("py", ""),
    "python tar": ("py", "cifar-10-python.tar.gz"),
    "python 2 folder": ("py2", "cifar-10-batches-py"),
    "python 2 tar": ("py2", "cifar-10-python.tar.gz"),
}


@pytest.mark.parametrize("place", CIFAR_PLACES)
def test_cifar10_layouts(tmp_path, place):
    kind, where = CIFAR_PLACES[place]
    members = cifar_members(kind)
    if where.endswith(".tar.gz"):
        inner = "cifar-10-batches-bin" if kind == "bin" else "cifar-10-batches-py"
        extra = {f"{inner}/batches.meta": b"not read", f"{inner}/readme.html": b"not read"}
        write_tar(tmp_path / where, {f"{inner}/{n}": d for n, d in members.items()} | extra)
    else:
        write_folder(tmp_path / where, members)
    dataset = sources.load("cifar10", str(tmp_path))
    batches = cifar_batches()
    train = [batches[name] for name in TRAIN_BATCHES]
    np.testing.assert_array_equal(dataset.train_images, np.concatenate([x for x, _ in train]))
    np.testing.assert_array_equal(dataset.train_labels, np.concatenate([y for _, y in train]))
    np.testing.assert_array_equal(dataset.test_images, batches["test_batch"][0])
    np.testing.assert_array_equal(dataset.test_labels, batches["test_batch"][1])
    assert dataset.train_images.dtype == dataset.test_images.dtype == np.uint8
    assert dataset.train_labels.dtype == dataset.test_labels.dtype == np.int32
    assert dataset.class_names[0] == "airplane" and dataset.class_names[9] == "truck"
    assert dataset.image_shape == (32, 32, 3)


def test_cifar10_order_in_the_archive_does_not_matter(tmp_path):
    members = dict(reversed(cifar_members("bin").items()))
    write_tar(tmp_path / "cifar-10-binary.tar.gz", members)
    dataset = sources.load("cifar10", str(tmp_path))
    np.testing.assert_array_equal(
        dataset.train_images[:PER_BATCH], cifar_batches()["data_batch_1"][0]
    )


IDX_FOLDERS = [("mnist", "mnist"), ("mnist", "MNIST"), ("mnist", "MNIST/raw")]
IDX_FOLDERS += [
    ("fashion_mnist", f)
    for f in ("fashion_mnist", "fashion-mnist", "FashionMNIST", "FashionMNIST/raw")
]


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("dotted", [False, True], ids=["dashed", "dotted"])
@pytest.mark.parametrize(("name", "folder"), IDX_FOLDERS)
def test_idx_layouts(tmp_path, name, folder, dotted, ending):
    write_idx_set(tmp_path / folder, dotted=dotted, ending=ending)
    dataset = sources.load(name, str(tmp_path))
    train_images, train_labels, test_images, test_labels = idx_arrays().values()
    np.testing.assert_array_equal(dataset.train_images, train_images[..., None])
    np.testing.assert_array_equal(dataset.train_labels, train_labels)
    np.testing.assert_array_equal(dataset.test_images, test_images[..., None])
    np.testing.assert_array_equal(dataset.test_labels, test_labels)
    assert dataset.train_images.dtype == np.uint8 and dataset.train_labels.dtype == np.int32
    assert dataset.class_names[1] == ("Trouser" if name == "fashion_mnist" else "1")
    assert dataset.name == name and dataset.origin == str(tmp_path / folder)


def test_idx_spellings_may_be_mixed(tmp_path):
    for i, (name, values) in enumerate(idx_arrays().items()):
        name = name.replace("-idx", ".idx") if i % 2 else name
        write_idx(tmp_path / "mnist" / (name + ("" if i < 2 else ".gz")), values)
    dataset = sources.load("mnist", str(tmp_path))
    np.testing.assert_array_equal(dataset.test_labels, idx_arrays()["t10k-labels-idx1-ubyte"])


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cifar10", "mnist", "fashion_mnist"])
def test_no_files_at_all(tmp_path, name):
    with pytest.raises(UserError) as caught:
        sources.load(name, str(tmp_path))
    message = str(caught.value)
    wanted = ["cifar-10-batches-bin/data_batch_1.bin", "cifar-10-python.tar.gz"]
    if name != "cifar10":
        wanted = [f"{name}/train-images-idx3-ubyte"]
    flags = ["--config.data_files.dir=", "--config.data_files.download=True", "RETHINK_DATA_DIR"]
    for part in [str(tmp_path), *wanted, *flags]:
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("kind", "folder", "missing"),
    [
        ("bin", "cifar-10-batches-bin", "data_batch_3.bin"),
        ("py", "cifar-10-batches-py", "test_batch"),
    ],
)
def test_a_missing_batch_is_named(tmp_path, kind, folder, missing):
    members = cifar_members(kind)
    del members[missing]
    write_folder(tmp_path / folder, members)
    with pytest.raises(UserError, match=rf"{folder} lacks {missing};"):
        sources.load("cifar10", str(tmp_path))


def test_missing_idx_files_are_named(tmp_path):
    arrays = idx_arrays()
    for name in ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte"):
        write_idx(tmp_path / "mnist" / name, arrays[name])
    lacks = "mnist lacks train-labels-idx1-ubyte, t10k-labels-idx1-ubyte;"
    with pytest.raises(UserError, match=lacks):
        sources.load("mnist", str(tmp_path))


@pytest.mark.parametrize("keep", [0, 3072, 3073 * PER_BATCH - 1])
def test_truncated_bin(tmp_path, keep):
    members = cifar_members("bin")
    members["data_batch_2.bin"] = members["data_batch_2.bin"][:keep]
    write_folder(tmp_path / "cifar-10-batches-bin", members)
    with pytest.raises(UserError, match=rf"data_batch_2\.bin is damaged: {keep} bytes"):
        sources.load("cifar10", str(tmp_path))


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_truncated_pickle(tmp_path, keep):
    members = cifar_members("py")
    whole = members["data_batch_4"]
    members["data_batch_4"] = whole[: int(keep * len(whole))]
    write_folder(tmp_path / "cifar-10-batches-py", members)
    with pytest.raises(UserError, match="data_batch_4 is damaged: not a CIFAR-10 python batch"):
        sources.load("cifar10", str(tmp_path))


@pytest.mark.parametrize("keep", [5, 20, -1])
def test_truncated_gz(tmp_path, keep):
    write_idx_set(tmp_path / "mnist", ending=".gz")
    path = tmp_path / "mnist" / "train-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"train-labels-idx1-ubyte\.gz is damaged: not a whole gz"):
        sources.load("mnist", str(tmp_path))


def test_gz_that_is_not_gz(tmp_path):
    write_idx_set(tmp_path / "mnist", ending=".gz")
    (tmp_path / "mnist" / "t10k-images-idx3-ubyte.gz").write_bytes(b"<html>not found</html>")
    with pytest.raises(UserError, match=r"t10k-images-idx3-ubyte\.gz is damaged: not a whole gz"):
        sources.load("mnist", str(tmp_path))


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.3, 0.7, 0.999])
@pytest.mark.parametrize("kind", ["bin", "py"])
def test_truncated_tar(tmp_path, kind, keep):
    path = tmp_path / f"cifar-10-{'binary' if kind == 'bin' else 'python'}.tar.gz"
    write_tar(path, cifar_members(kind))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(UserError, match=r"tar\.gz is damaged: not a whole (gzip|tar)"):
        sources.load("cifar10", str(tmp_path))


def test_tar_with_flipped_bytes(tmp_path):
    path = tmp_path / "cifar-10-binary.tar.gz"
    write_tar(path, cifar_members("bin"))
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(64)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"cifar-10-binary\.tar\.gz is damaged"):
        sources.load("cifar10", str(tmp_path))


@pytest.mark.parametrize("kind", ["bin", "py"])
def test_tar_lacking_a_member(tmp_path, kind):
    members = cifar_members(kind)
    missing = next(n for n in members if n.startswith("data_batch_5"))
    del members[missing]
    path = tmp_path / f"cifar-10-{'binary' if kind == 'bin' else 'python'}.tar.gz"
    write_tar(path, members)
    with pytest.raises(UserError, match=rf"{path.name} is damaged: it lacks {missing};"):
        sources.load("cifar10", str(tmp_path))


def test_tar_member_that_is_a_link_is_no_batch(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(cifar_members("bin")["data_batch_1.bin"])
    members = cifar_members("bin")
    del members["data_batch_1.bin"]
    folder = tmp_path / "data"
    folder.mkdir()
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as tar:
        link = tarfile.TarInfo("data_batch_1.bin")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        tar.addfile(link)
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with pytest.raises(UserError, match=r"it lacks data_batch_1\.bin"):
        sources.load("cifar10", str(folder))


@pytest.mark.parametrize("kind", ["bin", "py"])
def test_tar_with_escaping_paths_writes_nothing_outside(tmp_path, kind):
    folder = tmp_path / "outer" / "inner" / "data"
    folder.mkdir(parents=True)
    name = f"cifar-10-{'binary' if kind == 'bin' else 'python'}.tar.gz"
    absolute = str(tmp_path / "absolute")
    members = {f"../../{n}": d for n, d in cifar_members(kind).items()}
    write_tar(folder / name, members | {f"{absolute}/evil": b"x"})
    before = sorted(tmp_path.rglob("*"))
    dataset = sources.load("cifar10", str(folder))
    new = set(tmp_path.rglob("*")) - set(before)
    assert all(path.is_relative_to(folder / "cache") for path in new)
    np.testing.assert_array_equal(dataset.test_images, cifar_batches()["test_batch"][0])


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path, protocol):
    ran = tmp_path / "ran"
    members = cifar_members("py")
    evil = {b"data": Touch(ran), b"labels": [0]}
    members["data_batch_1"] = pickle.dumps(evil, protocol=protocol)
    write_folder(tmp_path / "cifar-10-batches-py", members)
    with pytest.raises(UserError, match=r"data_batch_1 is damaged: .*system, which is not array"):
        sources.load("cifar10", str(tmp_path))
    assert not ran.exists()
    # The pickle does what it is said to do: read without care, it runs.
    pickle.loads(members["data_batch_1"])
    assert ran.exists()


@pytest.mark.parametrize(
    "code", [b"cbuiltins\neval\n(S'1'\ntR.", b"cos\nsystem\n(S'true'\ntR.", b"cnumpy\nload\n."]
)
def test_other_names_in_a_pickle_are_refused(tmp_path, code):
    members = cifar_members("py") | {"test_batch": code}
    write_folder(tmp_path / "cifar-10-batches-py", members)
    with pytest.raises(UserError, match=r"test_batch is damaged: .* which is not array data"):
        sources.load("cifar10", str(tmp_path))


@pytest.mark.parametrize(
    "batch",
    [{b"data": np.zeros((1, 3072), np.uint8)}, [1, 2], {b"data": b"abc", b"labels": [1]}],
    ids=["no labels", "no dict", "no array"],
)
def test_pickles_that_are_no_batch(tmp_path, batch):
    members = cifar_members("py") | {"data_batch_1": pickle.dumps(batch, protocol=2)}
    write_folder(tmp_path / "cifar-10-batches-py", members)
    with pytest.raises(UserError, match="data_batch_1 is damaged: not a CIFAR-10 python batch"):
        sources.load("cifar10", str(tmp_path))


@pytest.mark.parametrize(
    "magic", [(0, 0, 8, 1), (0, 0, 9, 3), (1, 0, 8, 3)], ids=["rank", "type", "start"]
)
def test_idx_with_wrong_magic(tmp_path, magic):
    write_idx_set(tmp_path / "mnist")
    path = tmp_path / "mnist" / "train-images-idx3-ubyte"
    write_idx(path, idx_arrays()[path.name], magic)
    with pytest.raises(UserError, match=f"{path.name} is damaged: not an idx file of 3-dim"):
        sources.load("mnist", str(tmp_path))


@pytest.mark.parametrize("keep", [0, 3, 4, 15])
def test_idx_with_a_broken_header(tmp_path, keep):
    write_idx_set(tmp_path / "mnist")
    path = tmp_path / "mnist" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=f"{path.name} is damaged: not an idx file of 3-dim"):
        sources.load("mnist", str(tmp_path))


@pytest.mark.parametrize("change", [-1, 1], ids=["short", "long"])
def test_idx_with_wrong_size(tmp_path, change):
    write_idx_set(tmp_path / "mnist")
    path = tmp_path / "mnist" / "train-images-idx3-ubyte"
    data = path.read_bytes()
    path.write_bytes(data[:-1] if change < 0 else data + b"\0")
    size = f"{len(data) + change} bytes do not hold 5 x 4 x 6 values"
    with pytest.raises(UserError, match=f"{path.name} is damaged: {size}"):
        sources.load("mnist", str(tmp_path))


def test_idx_with_an_absurd_size(tmp_path):
    """2**31 * 2**31 * 4 is 2**64, which is 0 in 64-bit arithmetic: as many bytes as follow."""
    write_idx_set(tmp_path / "mnist")
    path = tmp_path / "mnist" / "train-images-idx3-ubyte"
    path.write_bytes(bytes((0, 0, 8, 3)) + struct.pack(">III", 2**31, 2**31, 4))
    with pytest.raises(UserError, match=f"{path.name} is damaged: 16 bytes do not hold"):
        sources.load("mnist", str(tmp_path))


@pytest.mark.parametrize("split", ["train", "t10k"])
def test_idx_label_out_of_range(tmp_path, split):
    arrays = idx_arrays()
    arrays[f"{split}-labels-idx1-ubyte"][2] = 10
    write_idx_set(tmp_path / "mnist", arrays)
    word = "train" if split == "train" else "test"
    # Twice: the second time from the cache, if the first left one.
    for _ in range(2):
        with pytest.raises(UserError, match=f"a {word} label is 10, outside 0 to 9"):
            sources.load("mnist", str(tmp_path))


@pytest.mark.parametrize("kind", ["bin", "py"])
def test_cifar_label_out_of_range(tmp_path, kind):
    write = {"bin": binary_batch, "py": python_batch}[kind]
    members = cifar_members(kind)
    images, labels = cifar_batches()["data_batch_1"]
    name = next(n for n in members if n.startswith("data_batch_1"))
    members[name] = write(images, [*labels[:-1], 200])
    write_folder(tmp_path / ("cifar-10-batches-" + kind), members)
    with pytest.raises(UserError, match="a train label is 200, outside 0 to 9"):
        sources.load("cifar10", str(tmp_path))


def test_negative_label_in_a_pickle(tmp_path):
    members = cifar_members("py")
    images, labels = cifar_batches()["data_batch_1"]
    members["data_batch_1"] = python_batch(images, [*labels[:-1], -1])
    write_folder(tmp_path / "cifar-10-batches-py", members)
    with pytest.raises(UserError, match="a train label is -1, outside 0 to 9"):
        sources.load("cifar10", str(tmp_path))


@pytest.mark.parametrize("labels", [0, 1, 4, 6])
def test_fewer_or_more_labels_than_images(tmp_path, labels):
    arrays = idx_arrays(train=5)
    arrays["train-labels-idx1-ubyte"] = np.zeros(labels, np.uint8)
    write_idx_set(tmp_path / "mnist", arrays)
    with pytest.raises(UserError, match=f"5 train images with {labels} labels"):
        sources.load("mnist", str(tmp_path))


@pytest.mark.parametrize("counts", [(4, 4), (1, 0)], ids=["shifted", "one label"])
def test_a_set_that_was_refused_is_refused_again(tmp_path, counts):
    """What the first load refuses must not come back from the cache as if it were good."""
    arrays = idx_arrays(train=5, test=3)
    arrays["train-labels-idx1-ubyte"] = np.zeros(counts[0], np.uint8)
    arrays["t10k-labels-idx1-ubyte"] = np.zeros(counts[1], np.uint8)
    write_idx_set(tmp_path / "mnist", arrays)
    for _ in range(2):
        with pytest.raises(UserError, match=f"5 train images with {counts[0]} labels"):
            sources.load("mnist", str(tmp_path))


def test_no_images(tmp_path):
    write_idx_set(tmp_path / "mnist", idx_arrays(test=0))
    with pytest.raises(UserError, match="0 test images with 0 labels"):
        sources.load("mnist", str(tmp_path))


def test_training_and_test_images_of_different_sizes(tmp_path):
    arrays = idx_arrays()
    arrays["t10k-images-idx3-ubyte"] = arrays["t10k-images-idx3-ubyte"][:, :, :5]
    write_idx_set(tmp_path / "mnist", arrays)
    with pytest.raises(UserError, match="training and test images have different sizes"):
        sources.load("mnist", str(tmp_path))
