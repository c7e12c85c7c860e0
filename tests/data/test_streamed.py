"""Image sets that stay on disk: what is read, under which number, with which label."""

import io
import shutil
import sys
import threading
import time
import types

import jax
import numpy as np
import pytest

from rethink_jax import inputs, streams, trials
from rethink_jax.data import corruption, loader, sources, streamed
from rethink_jax.data.dataset import subset
from rethink_jax.schema import UserError

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
pytest.importorskip("grain", reason="grain is not installed")


def encoded(pixels, kind="PNG", mode=None, **options):
    image = Image.fromarray(np.asarray(pixels, np.uint8))
    data = io.BytesIO()
    (image.convert(mode) if mode else image).save(data, kind, **options)
    return data.getvalue()


def error_of(call, *args):
    """The message of the UserError that a call raises: always one line."""
    with pytest.raises(UserError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path, write_image_folder):
    return write_image_folder(tmp_path / "set")


def load(folder, size=12):
    return sources.load(f"folder:{folder.name}", str(folder.parent)).sized(size)


# --- decode ---------------------------------------------------------------------------------------


def test_image_of_its_own_size_is_read_as_it_is():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    np.testing.assert_array_equal(streamed.decode(encoded(pixels), 9), pixels)


def test_central_square_is_kept():
    """Left and right of it, or above and below, the image is white."""
    wide = np.full((10, 30, 3), 255, np.uint8)
    wide[:, 10:20] = 7
    for pixels in (wide, wide.transpose(1, 0, 2)):
        np.testing.assert_array_equal(streamed.decode(encoded(pixels), 10), np.full((10, 10, 3), 7))


def test_resizing_is_antialiased():
    """A fine chequerboard becomes grey, not black or white."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255)[..., None].repeat(3, -1)
    small = streamed.decode(encoded(board), 8)
    assert abs(small[2:-2, 2:-2].astype(int) - 127).max() <= 2


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", "L"), ("PNG", "LA"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "1"), ("JPEG", "L"),
     ("JPEG", "RGB"), ("JPEG", "CMYK")],
)  # fmt: skip
def test_every_mode_becomes_rgb(kind, mode):
    left_dark = np.zeros((16, 24, 3), np.uint8)
    left_dark[:, 12:] = 255
    image = streamed.decode(encoded(left_dark, kind, mode), 8)
    assert (image.shape, image.dtype) == ((8, 8, 3), np.uint8)
    assert image[:, :3].max() <= 10
    assert image[:, -3:].min() >= 245


def test_more_than_eight_bits_are_refused():
    data = io.BytesIO()
    Image.new("I;16", (8, 8), 4000).save(data, "PNG")
    with pytest.raises(ValueError, match="8 bits"):
        streamed.decode(data.getvalue(), 8)


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "EPS"])
def test_other_formats_are_refused_and_start_no_program(kind, tmp_path, monkeypatch):
    """Pillow hands PostScript to the program gs, if it may."""
    ran, gs = tmp_path / "ran", tmp_path / "gs"
    gs.write_text(f"#!/bin/sh\ntouch {ran}\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, kind)
    with pytest.raises(ValueError, match="neither a JPEG nor a PNG"):
        streamed.decode(data.getvalue(), 8)
    assert not ran.exists()


# --- folders --------------------------------------------------------------------------------------


def test_folder_names_are_the_classes(folder):
    dataset = load(folder)
    assert dataset.class_names == ("class 0", "class 1", "class 2")
    np.testing.assert_array_equal(dataset.train_labels, np.repeat([0, 1, 2], 16))
    np.testing.assert_array_equal(dataset.test_labels, np.repeat([0, 1, 2], 5))
    assert dataset.train_labels.dtype == np.int32
    assert dataset.image_shape == (12, 12, 3)
    for split, labels in (("train", dataset.train_labels), ("test", dataset.test_labels)):
        for i, label in enumerate(labels):
            means = dataset.read(split, i).mean((0, 1))
            assert means.argmax() == label


def test_images_are_numbered_by_name_and_others_are_passed_over(folder):
    before = load(folder)
    (folder / "train" / "class 1" / "notes.txt").write_text("no image")
    (folder / "train" / "class 1" / ".hidden.png").write_bytes(b"")
    (folder / "train" / ".DS_Store").write_bytes(b"")
    pixels = np.full((12, 12, 3), 3)
    (folder / "train" / "class 1" / "007a.JPEG").write_bytes(encoded(pixels, "JPEG"))
    after = load(folder)
    assert len(after.train_labels) == len(before.train_labels) + 1
    np.testing.assert_array_equal(after.read("train", 16 + 8), pixels)
    np.testing.assert_array_equal(after.read("train", 16 + 9), before.read("train", 16 + 8))


@pytest.mark.parametrize("name", ["test", "validation"])
def test_test_images_may_lie_under_other_names(folder, name):
    (folder / "val").rename(folder / name)
    assert len(load(folder).test_labels) == 15


def test_fingerprint_is_of_names_sizes_and_labels(folder, tmp_path):
    before = load(folder).fingerprint
    moved = shutil.copytree(folder, tmp_path / "elsewhere" / "other")
    assert load(moved).fingerprint == before
    (moved / "train" / "class 0" / "000.png").rename(moved / "train" / "class 1" / "0000.png")
    assert load(moved).fingerprint != before
    with (folder / "val" / "class 0" / "000.png").open("ab") as file:
        file.write(b"more")
    assert load(folder).fingerprint != before


def test_paths_are_relative_to_the_data_folder_or_absolute(folder):
    relative = sources.load("folder:set", str(folder.parent))
    absolute = sources.load(f"folder:{folder}", "/nowhere")
    assert relative.fingerprint == absolute.fingerprint


def test_missing_folder(tmp_path):
    message = error_of(sources.load, "folder:nope", str(tmp_path))
    assert f"no folder {tmp_path / 'nope'}" in message
    assert "train/CLASS" in message


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda f: shutil.rmtree(f / "train"), r"set lacks train/"),
        (lambda f: shutil.rmtree(f / "val"), r"set lacks val/ \(or test/\)"),
        (lambda f: (f / "val" / "class 9").mkdir(), r"val has a class 'class 9' that .*train has"),
        (lambda f: (f / "train" / "class 9").mkdir(), r"class folder .*class 9 has no images"),
        (lambda f: shutil.rmtree(f / "val" / "class 1") or (f / "val" / "class 1").mkdir(),
         r"class folder .*val/class 1 has no images"),
        (lambda f: [shutil.rmtree(p) for p in (f / "train").iterdir()], "no class folders"),
    ],
)  # fmt: skip
def test_mistakes_in_a_folder(folder, change, wanted):
    change(folder)
    with pytest.raises(UserError, match=wanted) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["truncated", "text", "gone"])
def test_damaged_image_is_named(folder, damage):
    dataset, path = load(folder), folder / "train" / "class 0" / "003.png"
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-60] if damage == "truncated" else b"<html>")
    assert str(path) in error_of(dataset.read, "train", 3)
    dataset.read("train", 2)


def test_packages_missing(folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'rethink_jax[imagenet]'" in error_of(load, folder)


def test_subset_is_by_index(folder):
    whole = load(folder)
    some = subset(whole, 9, seed=4, balanced=True)
    np.testing.assert_array_equal(np.bincount(some.train_labels), [3, 3, 3])
    assert len(some.test_labels) == 15
    for i, place in enumerate(some.train_index):
        np.testing.assert_array_equal(some.read("train", i), whole.read("train", int(place)))
        assert some.train_labels[i] == whole.train_labels[place]
    np.testing.assert_array_equal(some.select(np.array([2])).train_index, some.train_index[[2]])


# --- labels ---------------------------------------------------------------------------------------


def test_random_labels_are_those_of_corrupt_labels(folder):
    dataset = load(folder)
    trial = trials.resolve(fields(corruption={"label_prob": 0.7, "seed": 5}))
    labels, test_labels = inputs.trial_labels(trial, dataset)
    args = ("uniform", 0.7, 5)
    whole = corruption.corrupt_labels(dataset.train_labels, *args, streams.LABELS, 3)
    np.testing.assert_array_equal(labels, whole)
    whole = corruption.corrupt_labels(dataset.test_labels, *args, streams.TEST_LABELS, 3)
    np.testing.assert_array_equal(test_labels, whole)
    assert (labels != dataset.train_labels).any()


def fields(**sections):
    data = {"name": "folder:set", "image_size": 12} | sections.pop("data", {})
    stop = {"measured_on": "online"} | sections.pop("stop", {})
    return {"batch_size": 8, "data": data, "stop": stop, **sections}


@pytest.mark.parametrize(
    ("sections", "wanted"),
    [
        ({"data": {"image_size": None}}, "data.image_size is None"),
        ({"stop": {"measured_on": "full"}}, "Set stop.measured_on = 'online'"),
        ({"corruption": {"pixels": "gaussian"}}, "corruption.pixels is 'gaussian'"),
    ],
)
def test_what_cannot_be_streamed(sections, wanted):
    assert wanted in error_of(trials.resolve, fields(**sections))


def test_images_in_memory_are_not_resized():
    trial = trials.resolve({"data": {"name": "digits", "image_size": 12}})
    wanted = "data.image_size is 12; the images of digits have their own size"
    assert wanted in error_of(inputs.trial_dataset, sources.digits(), dict(trial.static))


def test_crop_larger_than_the_images(folder):
    static = dict(trials.resolve(fields(preprocess={"crop_size": 13})).static)
    assert "images of folder:set are 12x12" in error_of(inputs.trial_dataset, load(folder), static)


# --- the loader -----------------------------------------------------------------------------------


def read_all(dataset, split, ids_SxB, size, threads=3):
    stream = loader.chunks(dataset, split, ids_SxB, size, threads, jax.devices()[0])
    got = [jax.device_get(chunk) for chunk in stream]
    stream.close()
    return got


@pytest.mark.parametrize("size", [1, 2, 4, 6, 9])
def test_images_arrive_in_order_with_their_numbers(folder, size):
    dataset = load(folder)
    ids_SxB = np.random.default_rng(2).permutation(48).astype(np.int32).reshape(6, 8)
    got = read_all(dataset, "train", ids_SxB, size)
    assert len(got) == -(-6 // size)
    for images, ids in got:
        assert images.shape == (size, 8, 12, 12, 3)
        for image, index in zip(images.reshape(-1, 12, 12, 3), ids.ravel(), strict=True):
            np.testing.assert_array_equal(image, dataset.read("train", int(index)))
    np.testing.assert_array_equal(np.concatenate([ids for _, ids in got])[:6], ids_SxB)


def test_past_the_last_image_there_is_black(folder):
    dataset = load(folder)
    ((images, ids),) = read_all(dataset, "test", np.array([[14, 15]], np.int32), 1)
    np.testing.assert_array_equal(ids, [[14, 15]])
    np.testing.assert_array_equal(images[0, 0], dataset.read("test", 14))
    assert not images[0, 1].any()


def test_damaged_image_in_the_loader(folder):
    dataset = load(folder)
    (folder / "train" / "class 0" / "005.png").write_bytes(b"")
    stream = loader.chunks(
        dataset, "train", np.arange(16, dtype=np.int32).reshape(8, 2), 1, 2, jax.devices()[0]
    )
    assert [int(next(stream)[1][0, 0]) for _ in range(2)] == [0, 2]
    assert str(folder / "train" / "class 0" / "005.png") in error_of(next, stream)
    stream.close()


def test_no_threads_are_left(folder):
    before = set(threading.enumerate())
    ids_SxB = np.arange(48, dtype=np.int32).reshape(24, 2)
    stream = loader.chunks(load(folder), "train", ids_SxB, 2, 3, jax.devices()[0])
    next(stream)
    assert set(threading.enumerate()) - before
    stream.close()
    deadline = time.monotonic() + 20  # A thread first finishes the batch that it is busy with.
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before


# --- imagenet -------------------------------------------------------------------------------------


def test_imagenet_in_a_folder(folder):
    folder.rename(folder.parent / "imagenet")
    dataset = sources.load("imagenet", str(folder.parent))
    assert (dataset.name, len(dataset.train_labels)) == ("imagenet", 48)


@pytest.fixture
def fake_tfds(monkeypatch):
    """A TFDS with imagenet2012 prepared: ten training and four validation images."""

    class Rows(list):
        reads = 0

        def __getitem__(self, i):
            Rows.reads += 1
            return list.__getitem__(self, i)

    def rows(count):
        return Rows({"image": encoded(np.full((9, 9, 3), i)), "label": i % 2} for i in range(count))

    splits = {"train": rows(10), "validation": rows(4)}
    info = types.SimpleNamespace(
        features={"label": types.SimpleNamespace(names=["a", "b"])},
        splits={k: types.SimpleNamespace(num_bytes=7) for k in splits},
        full_name="imagenet2012/5.1.0",
    )

    def data_source(name, *, data_dir, download, builder_kwargs, decoders):
        assert (name, download) == ("imagenet2012", False)
        assert builder_kwargs == {"file_format": "array_record"}
        assert decoders == {"image": "as stored"}
        return splits

    module = types.SimpleNamespace(
        rows=Rows,
        data_source=data_source,
        builder=lambda name, data_dir: types.SimpleNamespace(info=info),
        decode=types.SimpleNamespace(SkipDecoding=lambda: "as stored"),
    )
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)
    return module


def test_imagenet_by_tfds(fake_tfds, tmp_path):
    dataset = sources.load("imagenet", str(tmp_path)).sized(9)
    np.testing.assert_array_equal(dataset.train_labels, np.arange(10) % 2)
    np.testing.assert_array_equal(dataset.test_labels, np.arange(4) % 2)
    assert dataset.class_names == ("a", "b")
    np.testing.assert_array_equal(dataset.read("train", 7), np.full((9, 9, 3), 7))
    # Again: the labels are cached, so no record is read.
    fake_tfds.rows.reads = 0
    again = sources.load("imagenet", str(tmp_path))
    assert fake_tfds.rows.reads == 0
    np.testing.assert_array_equal(again.train_labels, dataset.train_labels)
    assert again.fingerprint == dataset.fingerprint


def test_imagenet_is_nowhere(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    message = error_of(sources.load, "imagenet", str(tmp_path))
    assert f"no imagenet in {tmp_path}" in message
    assert "imagenet2012" in message
    assert "rethink_jax[tfds]" in message


def test_real_array_record_files(tmp_path, monkeypatch):
    """A set that TFDS itself prepares here, without TensorFlow."""
    tfds = pytest.importorskip("tensorflow_datasets", reason="TFDS is not installed")

    class Imagenet2012(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("5.1.0")

        def _info(self):
            features = {"image": tfds.features.Image(encoding_format="png"),
                        "label": tfds.features.ClassLabel(names=["a", "b"])}  # fmt: skip
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, _):
            return {"train": self._make(10), "validation": self._make(4)}

        def _generate_examples(self, count):
            yield from self._make(count)

        @staticmethod
        def _make(count):
            for i in range(count):
                # As a file: TFDS would encode an array with TensorFlow.
                yield i, {"image": io.BytesIO(encoded(np.full((9, 12, 3), i))), "label": i % 2}

    builder = Imagenet2012(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    dataset = sources.load("imagenet", str(tmp_path)).sized(9)
    assert sorted(np.bincount(dataset.train_labels)) == [5, 5]
    for i, label in enumerate(dataset.train_labels):
        image = dataset.read("train", i)
        assert image.min() == image.max()
        assert image.max() % 2 == label
    ids_SxB = np.arange(10, dtype=np.int32)[::-1].reshape(5, 2)
    for images, ids in read_all(dataset, "train", ids_SxB, 1):
        for image, index in zip(images[0], ids[0], strict=True):
            np.testing.assert_array_equal(image, dataset.read("train", int(index)))
