"""From a name to a data set: embedded sets, the cache, TFDS, downloads, subsets."""

import errno
import gzip
import hashlib
import itertools
import os
import shutil
import struct
import sys
import types
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from rethink_jax.data import sources
from rethink_jax.data.dataset import Dataset, subset
from rethink_jax.schema import UserError

SPLITS = ("train_images", "train_labels", "test_images", "test_labels")
IDX_FILES = tuple(f"{s}-ubyte.gz" for s in ("train-images-idx3", "train-labels-idx1"))
IDX_FILES += tuple(f.replace("train", "t10k") for f in IDX_FILES)
REAL_MNIST = Path(__file__).parents[3] / "shared" / "data" / "mnist"


def idx_arrays(seed=0):
    rng = np.random.default_rng(seed)
    images = [rng.integers(0, 256, (n, 4, 4), dtype=np.uint8) for n in (6, 3)]
    labels = [rng.integers(0, 10, n, dtype=np.uint8) for n in (6, 3)]
    return images[0], labels[0], images[1], labels[1]


def write_idx(path, values):
    head = bytes((0, 0, 8, values.ndim)) + b"".join(struct.pack(">I", n) for n in values.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(head + values.tobytes()))


def write_mnist(root, seed=0):
    for name, values in zip(IDX_FILES, idx_arrays(seed), strict=True):
        write_idx(root / "mnist" / name, values)


def assert_is(dataset, arrays):
    """The data set holds exactly these arrays (images without their channel axis)."""
    for split, values in zip(SPLITS, arrays, strict=True):
        got = getattr(dataset, split)
        np.testing.assert_array_equal(got[..., 0] if got.ndim == 4 else got, values)
        assert got.dtype == (np.uint8 if got.ndim == 4 else np.int32)


def assert_same(first, second):
    for split in SPLITS:
        np.testing.assert_array_equal(getattr(first, split), getattr(second, split), strict=True)


# --- embedded sets --------------------------------------------------------------------------------


def test_digits_shapes_and_values():
    digits = sources.load("digits")
    assert digits.train_images.shape == (1442, 8, 8, 1) and digits.train_labels.shape == (1442,)
    assert digits.test_images.shape == (355, 8, 8, 1) and digits.test_labels.shape == (355,)
    assert digits.num_classes == 10 and digits.image_shape == (8, 8, 1)
    assert digits.train_images.dtype == np.uint8 and digits.train_labels.dtype == np.int32
    levels = [round(level * 255 / 16) for level in range(17)]
    assert levels[0] == 0 and levels[-1] == 255
    for images in (digits.train_images, digits.test_images):
        np.testing.assert_array_equal(np.unique(images), levels)


def test_digits_uses_every_image_once():
    digits = sources.load("digits")
    with (resources.files("rethink_jax.data") / "digits.npz").open("rb") as file:
        stored = np.load(file)
        images, labels = stored["images"], stored["labels"]
    # Facts about scikit-learn's copy: its size, the sum of its values, its first image and labels.
    assert images.shape == (1797, 8, 8) and int(images.sum()) == 561718
    assert labels[:10].tolist() == list(range(10))
    assert images[0, :2].tolist() == [[0, 0, 5, 13, 9, 1, 0, 0], [0, 0, 13, 15, 10, 15, 5, 0]]
    got = np.concatenate([digits.train_images, digits.test_images])[..., 0]
    got_labels = np.concatenate([digits.train_labels, digits.test_labels])
    levels = np.array([round(level * 255 / 16) for level in range(17)])
    pairs = lambda xs, ys: sorted((x.tobytes(), int(y)) for x, y in zip(xs, ys, strict=True))  # noqa: E731
    assert pairs(got, got_labels) == pairs(levels[images].astype(np.uint8), labels)


def test_digits_split_is_the_same_share_of_every_class():
    digits = sources.load("digits")
    test = np.bincount(digits.test_labels, minlength=10)
    total = test + np.bincount(digits.train_labels, minlength=10)
    # The class counts of scikit-learn's copy.
    assert total.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    np.testing.assert_array_equal(test, total // 5)


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_embedded_sets_are_deterministic(name):
    assert_same(sources.load(name), sources.load(name))


def test_embedded_sets_need_no_folder(tmp_path):
    sources.load("digits", str(tmp_path / "nowhere"))
    assert not list(tmp_path.iterdir())


def test_synthetic():
    made = sources.load("synthetic")
    assert made.train_images.shape == (2048, 32, 32, 3) and made.test_images.shape[0] == 512
    assert made.train_images.dtype == np.uint8 and made.num_classes == 10
    assert set(made.train_labels) == set(made.test_labels) == set(range(10))
    # It can be learnt: the nearest class mean of the training images tells the test images apart.
    flat = lambda images: images.reshape(len(images), -1).astype(np.float64)  # noqa: E731
    means = np.stack([flat(made.train_images[made.train_labels == c]).mean(0) for c in range(10)])
    distances = ((flat(made.test_images)[:, None] - means[None]) ** 2).sum(-1)
    np.testing.assert_array_equal(distances.argmin(1), made.test_labels)


# --- names and folders ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "near"), [("minst", "mnist"), ("cifar", "cifar10"), ("digit", "digits")]
)
def test_unknown_name_suggests_a_near_one(name, near):
    with pytest.raises(UserError, match=f"'{name}'; it must be one of .*did you mean '{near}'"):
        sources.check_name(name)
    with pytest.raises(UserError, match=f"did you mean '{near}'"):
        sources.load(name)


def test_unknown_name_with_nothing_near():
    with pytest.raises(UserError) as caught:
        sources.check_name("zzz")
    assert "did you mean" not in str(caught.value)
    assert all(name in str(caught.value) for name in (*sources.names(), "tfds:NAME"))


@pytest.mark.parametrize("name", [*sources.names(), "tfds:svhn_cropped"])
def test_known_names(name):
    sources.check_name(name)


def test_data_dir_precedence(monkeypatch, tmp_path):
    monkeypatch.delenv("RETHINK_DATA_DIR", raising=False)
    assert sources.data_dir(None) == Path(".data")
    monkeypatch.setenv("RETHINK_DATA_DIR", str(tmp_path / "env"))
    assert sources.data_dir(None) == tmp_path / "env"
    assert sources.data_dir(str(tmp_path / "given")) == tmp_path / "given"
    monkeypatch.setenv("RETHINK_DATA_DIR", "")
    assert sources.data_dir(None) == Path(".data")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sources.data_dir("~/x") == tmp_path / "x"


def test_files_are_found_through_the_environment(monkeypatch, tmp_path):
    write_mnist(tmp_path)
    monkeypatch.setenv("RETHINK_DATA_DIR", str(tmp_path))
    assert_is(sources.load("mnist"), idx_arrays())


# --- the cache ------------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch):
    """The list of the decodings of MNIST files: one entry for each."""
    done = []
    source = sources.FILE_SOURCES["mnist"]

    def counted(layout):
        return layout._replace(read=lambda files: (done.append(files), layout.read(files))[1])

    layouts = tuple(counted(layout) for layout in source.layouts)
    monkeypatch.setitem(sources.FILE_SOURCES, "mnist", source._replace(layouts=layouts))
    return done


def cache_files(root):
    return sorted((root / "cache").iterdir())


def test_second_load_reads_the_cache(tmp_path, reads):
    write_mnist(tmp_path)
    first = sources.load("mnist", str(tmp_path))
    assert len(reads) == 1
    second = sources.load("mnist", str(tmp_path))
    assert len(reads) == 1
    assert_is(second, idx_arrays())
    assert_same(first, second)
    assert first.fingerprint == second.fingerprint and first.origin == second.origin
    assert all(getattr(second, split).flags.c_contiguous for split in SPLITS)
    # One file, and nothing half-written beside it.
    assert [f.suffix for f in cache_files(tmp_path)] == [".npy"]
    assert cache_files(tmp_path)[0].name.startswith("mnist-")


def test_a_file_changed_in_time_only_is_decoded_anew(tmp_path, reads):
    write_mnist(tmp_path)
    sources.load("mnist", str(tmp_path))
    path = tmp_path / "mnist" / IDX_FILES[1]
    info = path.stat()
    labels = (idx_arrays()[1] + 1) % 10
    write_idx(path, labels)
    # Nine bytes of labels are too few to compress: other labels, the same size.
    assert path.stat().st_size == info.st_size
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns + 1_000_000))
    assert_is(sources.load("mnist", str(tmp_path)), (idx_arrays()[0], labels, *idx_arrays()[2:]))
    assert len(reads) == 2


def test_a_file_changed_in_size_only_is_decoded_anew(tmp_path, reads):
    write_mnist(tmp_path, seed=0)
    before = {name: (tmp_path / "mnist" / name).stat() for name in IDX_FILES}
    sources.load("mnist", str(tmp_path))
    path = tmp_path / "mnist" / IDX_FILES[0]
    images = np.zeros((6, 4, 4), np.uint8)
    write_idx(path, images)
    assert path.stat().st_size != before[path.name].st_size
    os.utime(path, ns=(before[path.name].st_atime_ns, before[path.name].st_mtime_ns))
    assert_is(sources.load("mnist", str(tmp_path)), (images, *idx_arrays()[1:]))
    assert len(reads) == 2


def test_only_what_was_decoded_last_is_kept(tmp_path, reads):
    """And it is found by any way to the folder."""
    write_mnist(tmp_path)
    sources.load("mnist", str(tmp_path))
    (first,) = cache_files(tmp_path)
    others = [first.with_name(f"{n}-{'0' * 12}.npy") for n in ("fashion_mnist", "mnist-own")]
    for other in others:
        other.write_bytes(b"")
    labels = (idx_arrays()[1] + 1) % 10
    write_idx(tmp_path / "mnist" / IDX_FILES[1], labels)
    sources.load("mnist", str(tmp_path))
    assert len(reads) == 2 and not first.exists()
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    sources.load("mnist", str(tmp_path / "link"))
    assert len(reads) == 2
    assert len(cache_files(tmp_path)) == 3 and all(other.exists() for other in others)


def flip_header(data):
    """An unterminated bracket in the header: numpy's parser fails in a way of its own."""
    return data.replace(b"'shape': (", b"'shape': ((", 1)


DAMAGE = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "last byte": lambda data: data[:-1],
    "head only": lambda data: data[:20],
    "header": flip_header,
    "text": lambda data: b"<html>not found</html>",
    "zip": lambda data: b"PK\x03\x04" + data,
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_cache_is_ignored_and_replaced(tmp_path, reads, how):
    write_mnist(tmp_path)
    sources.load("mnist", str(tmp_path))
    (cache,) = cache_files(tmp_path)
    whole = cache.read_bytes()
    damaged = DAMAGE[how](whole)
    assert damaged != whole
    cache.write_bytes(damaged)
    assert_is(sources.load("mnist", str(tmp_path)), idx_arrays())
    assert len(reads) == 2
    assert cache.read_bytes() == whole


def test_a_cache_that_is_some_other_array_is_ignored(tmp_path, reads):
    write_mnist(tmp_path)
    sources.load("mnist", str(tmp_path))
    (cache,) = cache_files(tmp_path)
    np.save(cache, np.zeros(3))
    assert_is(sources.load("mnist", str(tmp_path)), idx_arrays())
    assert len(reads) == 2


def refuse(error):
    def raising(*args, **kwargs):
        raise OSError(error, os.strerror(error))

    return raising


def test_folder_where_nothing_can_be_made(monkeypatch, tmp_path):
    write_mnist(tmp_path)
    monkeypatch.setattr(Path, "mkdir", refuse(errno.EACCES))
    assert_is(sources.load("mnist", str(tmp_path)), idx_arrays())
    assert not (tmp_path / "cache").exists()


def test_folder_where_nothing_can_be_written(monkeypatch, tmp_path):
    write_mnist(tmp_path)
    monkeypatch.setattr(np, "save", refuse(errno.EACCES))
    assert_is(sources.load("mnist", str(tmp_path)), idx_arrays())
    assert not cache_files(tmp_path)


def test_read_only_file_system_with_a_cache_folder(monkeypatch, tmp_path):
    """There, Linux answers the removal of a file that does not exist with EROFS, too."""
    write_mnist(tmp_path)
    (tmp_path / "cache").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(np, "save", refuse(errno.EROFS))
        patch.setattr(Path, "unlink", refuse(errno.EROFS))
        dataset = sources.load("mnist", str(tmp_path))
    assert_is(dataset, idx_arrays())


def test_cache_folder_that_is_a_file(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "cache").write_text("mine")
    assert_is(sources.load("mnist", str(tmp_path)), idx_arrays())
    assert (tmp_path / "cache").read_text() == "mine"


def test_a_full_disk_leaves_no_part_behind(monkeypatch, tmp_path):
    write_mnist(tmp_path)

    def half(path, rows):
        Path(path).write_bytes(rows.tobytes()[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "save", half)
    assert_is(sources.load("mnist", str(tmp_path)), idx_arrays())
    assert not cache_files(tmp_path)


# --- TFDS -----------------------------------------------------------------------------------------


class Rows(list):
    """One split as TFDS's random access sources give it."""

    def __getitem__(self, index):
        raise AssertionError("rows are read many at a time")

    def __getitems__(self, indices):
        rows = list(self)
        return [rows[i] for i in indices]


@pytest.fixture
def fake_tfds(monkeypatch):
    """A TFDS with one prepared set; `calls` are the arguments it was called with."""
    train, train_labels, test, test_labels = idx_arrays()
    splits = {
        name: Rows({"image": x[..., None], "label": int(y)} for x, y in zip(xs, ys, strict=True))
        for name, xs, ys in (("train", train, train_labels), ("test", test, test_labels))
    }
    label = types.SimpleNamespace(names=[f"name {c}" for c in range(10)])
    info = types.SimpleNamespace(features={"label": label})
    module = types.SimpleNamespace(calls=[], splits=splits)

    def data_source(name, *, data_dir, download, builder_kwargs):
        module.calls.append(("data_source", name, data_dir))
        assert download is False
        assert builder_kwargs == {"file_format": "array_record"}
        return module.splits

    def builder(name, *, data_dir):
        module.calls.append(("builder", name, data_dir))
        return types.SimpleNamespace(info=info)

    module.data_source, module.builder = data_source, builder
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)
    return module


def test_tfds_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match=r"tfds:kmnist .*pip install 'rethink_jax\[tfds\]'"):
        sources.load("tfds:kmnist", str(tmp_path))


@pytest.mark.parametrize("builder", ["kmnist", "kmnist:3.0.1", "kmnist/plain"])
def test_tfds_reads_a_prepared_set(fake_tfds, tmp_path, builder):
    dataset = sources.load(f"tfds:{builder}", str(tmp_path))
    assert_is(dataset, idx_arrays())
    assert dataset.class_names == tuple(f"name {c}" for c in range(10))
    assert dataset.name == f"tfds:{builder}"
    # Nothing of that name in the data folder: TFDS looks in its own.
    assert fake_tfds.calls == [("data_source", builder, None), ("builder", builder, None)]
    fake_tfds.calls.clear()
    (tmp_path / "kmnist").mkdir()
    sources.load(f"tfds:{builder}", str(tmp_path))
    assert fake_tfds.calls == [("data_source", builder, tmp_path), ("builder", builder, tmp_path)]


def test_tfds_folder_in_the_data_folder_serves_the_plain_name(fake_tfds, tmp_path):
    version = tmp_path / "mnist" / "3.0.1"
    version.mkdir(parents=True)
    (version / "dataset_info.json").write_text("{}")
    dataset = sources.load("mnist", str(tmp_path))
    assert_is(dataset, idx_arrays())
    assert dataset.name == "mnist"
    assert {data_dir for _, _, data_dir in fake_tfds.calls} == {tmp_path}


def test_plain_files_come_before_tfds(fake_tfds, tmp_path):
    write_mnist(tmp_path, seed=5)
    (tmp_path / "mnist" / "3.0.1").mkdir()
    (tmp_path / "mnist" / "3.0.1" / "dataset_info.json").write_text("{}")
    assert_is(sources.load("mnist", str(tmp_path)), idx_arrays(5))
    assert not fake_tfds.calls


def test_tfds_set_without_a_test_split(fake_tfds, tmp_path):
    del fake_tfds.splits["test"]
    with pytest.raises(UserError, match=r"no prepared image data set 'kmnist'.*download_and_pre"):
        sources.load("tfds:kmnist", str(tmp_path))


def test_tfds_set_with_images_of_several_sizes(fake_tfds, tmp_path):
    fake_tfds.splits["train"].append({"image": np.zeros((9, 9, 1), np.uint8), "label": 0})
    with pytest.raises(UserError, match="no prepared image data set 'kmnist'"):
        sources.load("tfds:kmnist", str(tmp_path))


@pytest.mark.parametrize("error", [ValueError("not there\nmore"), AssertionError(), OSError("\n")])
def test_tfds_failing(fake_tfds, tmp_path, error):
    """Some of its errors have no text at all."""

    def data_source(*args, **kwargs):
        raise error

    fake_tfds.data_source = data_source
    with pytest.raises(UserError, match="no prepared image data set 'kmnist'") as caught:
        sources.load("tfds:kmnist", str(tmp_path))
    assert "\n" not in str(caught.value)


# --- downloads ------------------------------------------------------------------------------------


@pytest.fixture
def fake_pooch(monkeypatch):
    """A pooch that 'downloads' small idx files; `calls` are (url, hash, folder)."""
    module = types.SimpleNamespace(calls=[])

    def retrieve(url, known_hash, fname, path):
        module.calls.append((url, known_hash, Path(path)))
        write_idx(Path(path) / fname, dict(zip(IDX_FILES, idx_arrays(), strict=True))[fname])

    module.retrieve = retrieve
    monkeypatch.setitem(sys.modules, "pooch", module)
    return module


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_download(fake_pooch, tmp_path, name):
    dataset = sources.load(name, str(tmp_path), download=True)
    assert_is(dataset, idx_arrays())
    assert [url.rsplit("/", 1)[-1] for url, _, _ in fake_pooch.calls] == list(IDX_FILES)
    assert all(folder == tmp_path / name for _, _, folder in fake_pooch.calls)
    # A second time there is nothing to fetch.
    fake_pooch.calls.clear()
    assert_same(dataset, sources.load(name, str(tmp_path), download=True))
    assert not fake_pooch.calls


def test_nothing_is_downloaded_unasked(fake_pooch, tmp_path):
    with pytest.raises(UserError, match="no mnist in"):
        sources.load("mnist", str(tmp_path))
    assert not fake_pooch.calls


def test_download_of_cifar10_goes_where_it_is_looked_for(fake_pooch, tmp_path):
    fake_pooch.retrieve = lambda url, known_hash, fname, path: (Path(path) / fname).write_bytes(b"")
    with pytest.raises(UserError, match=r"cifar-10-binary\.tar\.gz is damaged"):
        sources.load("cifar10", str(tmp_path), download=True)
    assert (tmp_path / "cifar-10-binary.tar.gz").is_file()


def test_every_download_has_a_checksum():
    urls = [url for source in sources.FILE_SOURCES.values() for url in source.urls]
    hashes = [known.split(":") for _, known, _ in urls]
    size = {"md5": 16, "sha256": 32}
    assert all(len(bytes.fromhex(h)) == size[kind] for kind, h in hashes)
    assert len({h for _, h in hashes}) == len(urls) == 9


def test_pooch_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(UserError, match=r"pip install 'rethink_jax\[download\]'"):
        sources.load("mnist", str(tmp_path), download=True)


@pytest.mark.parametrize("error", [ValueError("MD5 hash differs\nmore"), TimeoutError()])
def test_download_failing(fake_pooch, tmp_path, error):
    """Some errors of networks have no text at all."""

    def retrieve(*args, **kwargs):
        raise error

    fake_pooch.retrieve = retrieve
    with pytest.raises(UserError, match=r"could not fetch https://.*train-images-idx3") as caught:
        sources.load("mnist", str(tmp_path), download=True)
    assert str(tmp_path / "mnist") in str(caught.value) and "\n" not in str(caught.value)
    assert str(error).split("\n")[0] in str(caught.value)


# --- real data ------------------------------------------------------------------------------------


@pytest.mark.skipif(not REAL_MNIST.is_dir(), reason=f"no real MNIST files in {REAL_MNIST}")
def test_real_mnist(tmp_path):
    (tmp_path / "mnist").mkdir()
    for file in REAL_MNIST.glob("*.gz"):
        (tmp_path / "mnist" / file.name).symlink_to(file)
    mnist = sources.load("mnist", str(tmp_path))
    assert mnist.train_images.shape == (60000, 28, 28, 1)
    assert mnist.test_images.shape == (10000, 28, 28, 1)
    # The published class counts and first labels.
    assert np.bincount(mnist.train_labels).tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
    ]  # fmt: skip
    assert np.bincount(mnist.test_labels).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip
    assert mnist.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert mnist.test_labels[:5].tolist() == [7, 2, 1, 0, 4]
    # The mean that everybody normalises with, 0.1307, to its four decimals.
    assert round(mnist.train_images.mean() / 255, 4) == 0.1307
    again = sources.load("mnist", str(tmp_path))
    assert again.fingerprint == mnist.fingerprint
    assert not sources.differs_from_published(mnist)
    shutil.rmtree(tmp_path / "cache")  # 55 MB.


@pytest.mark.skipif(not REAL_MNIST.is_dir(), reason=f"no real MNIST files in {REAL_MNIST}")
def test_checksums_of_the_mnist_downloads_are_those_of_the_real_files():
    for url, known, _ in sources.FILE_SOURCES["mnist"].urls:
        data = (REAL_MNIST / url.rsplit("/", 1)[-1]).read_bytes()
        assert known == f"md5:{hashlib.md5(data).hexdigest()}"


def test_other_files_differ_from_the_published_ones(tmp_path):
    write_mnist(tmp_path)
    assert sources.differs_from_published(sources.load("mnist", str(tmp_path)))
    # Nothing is published of the sets that the package makes itself.
    assert not sources.differs_from_published(sources.load("digits"))


# --- Dataset and subset ---------------------------------------------------------------------------


def made(counts=(13, 7, 21, 9)):
    """A training set in which the pixel of image i is i, so that images can be told apart."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.int32)
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
    names = tuple(f"class {c}" for c in range(len(counts)))
    return Dataset("made", images, labels, images[:4], labels[:4], names)


def chosen(part):
    return part.train_images[:, 0, 0, 0].tolist()


def test_fingerprint_is_of_shapes_and_contents():
    data = made()
    expected = hashlib.sha256()
    for split in SPLITS:
        array = getattr(data, split)
        expected.update(str(array.shape).encode() + array.tobytes())
    assert data.fingerprint == expected.hexdigest()


def test_fingerprint_differs_with_every_array():
    arrays = [getattr(made(), split) for split in SPLITS]
    names = made().class_names
    seen = {Dataset("made", *arrays, names).fingerprint}
    for i, array in enumerate(arrays):
        changed = array.copy()
        changed.flat[-1] = (changed.flat[-1] + 1) % len(names)
        seen.add(Dataset("made", *arrays[:i], changed, *arrays[i + 1 :], names).fingerprint)
    # The same bytes in another shape.
    images, labels = np.zeros((4, 2, 3, 1), np.uint8), np.zeros(4, np.int32)
    seen.add(Dataset("made", images, labels, images, labels, names).fingerprint)
    turned = images.reshape(4, 3, 2, 1)
    seen.add(Dataset("made", turned, labels, turned, labels, names).fingerprint)
    assert len(seen) == 7


def test_fingerprint_does_not_depend_on_memory_layout_or_name():
    data = made()
    arrays = [np.repeat(getattr(data, split), 2, axis=0)[::2] for split in SPLITS]
    assert not arrays[0].flags.c_contiguous
    other = Dataset("other", *arrays, data.class_names, "elsewhere")
    assert other.fingerprint == data.fingerprint


@pytest.mark.parametrize("bad", [np.zeros((4, 2, 2), np.uint8), np.zeros((4, 2, 2, 1), np.float32)])
def test_dataset_refuses_other_images(bad):
    labels = np.zeros(4, np.int32)
    with pytest.raises(UserError, match=r"made: train images are .*; a data set holds uint8\[N"):
        Dataset("made", bad, labels, bad, labels, ("a", "b"))


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("size", [1, 6, 28])
def test_subset_keeps_images_labels_and_the_test_set(size, balanced):
    data = made()
    part = subset(data, size, 3, balanced)
    assert part.train_images.shape == (size, 1, 1, 1) and part.train_labels.shape == (size,)
    assert len(set(chosen(part))) == size
    np.testing.assert_array_equal(part.train_labels, data.train_labels[chosen(part)])
    np.testing.assert_array_equal(part.test_images, data.test_images)
    np.testing.assert_array_equal(part.test_labels, data.test_labels)
    assert part.class_names == data.class_names and part.fingerprint != data.fingerprint
    assert_same(part, subset(data, size, 3, balanced))


@pytest.mark.parametrize("balanced", [False, True])
def test_subsets_of_one_seed_are_nested(balanced):
    parts = [set(chosen(subset(made(), size, 4, balanced))) for size in range(1, 29)]
    assert all(small < large for small, large in itertools.pairwise(parts))


@pytest.mark.parametrize("balanced", [False, True])
def test_subsets_of_other_seeds_differ(balanced):
    # Of C(50, 20) ~ 5e13 subsets (balanced: C(13,5)*C(7,5)*C(21,5)*C(9,5) ~ 7e10), none twice.
    assert len({tuple(chosen(subset(made(), 20, seed, balanced))) for seed in range(20)}) == 20


def test_the_whole_set_is_a_subset():
    assert chosen(subset(made(), 50, 0, False)) == list(range(50))


# The smallest class has 7 images: it gives all of them, the three others one more each.
@pytest.mark.parametrize("size", range(1, 4 * 7 + 3 + 1))
def test_balanced_classes_differ_by_at_most_one(size):
    counts = np.bincount(subset(made(), size, 1, True).train_labels, minlength=4)
    assert counts.sum() == size
    assert counts.max() - counts.min() <= 1


def test_unbalanced_subset_follows_the_data():
    """So that the test above cannot pass whatever `balanced` does."""
    counts = np.bincount(subset(made(), 40, 1, False).train_labels, minlength=4)
    assert counts.max() - counts.min() > 1


def test_larger_subset_than_the_set():
    with pytest.raises(UserError, match=r"data\.num_train is 51; made has 50 training images"):
        subset(made(), 51, 0, False)


@pytest.mark.parametrize("size", [32, 50])
def test_balanced_subset_larger_than_the_smallest_class_allows(size):
    message = f"data.num_train = {size} cannot be balanced: made has only 7 images"
    with pytest.raises(UserError, match=message):
        subset(made(), size, 0, True)


def test_a_class_without_training_images_is_the_smallest():
    data = made()
    names = (*data.class_names, "empty")
    data = Dataset("made", *(getattr(data, split) for split in SPLITS), names)
    with pytest.raises(UserError, match="cannot be balanced: made has only 0 images"):
        subset(data, 20, 0, True)
