"""What one trial brings to the compiled program: its hyper-parameters, its labels, its images."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence, Set
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rethink_jax import step, streams, train
from rethink_jax.data import preprocess
from rethink_jax.data.corruption import (
    CLEAN,
    ImageSet,
    PixelCorruptionSpec,
    PixelStats,
    check_labels,
    corrupt_labels,
    corrupt_pixels,
    pixel_stats,
)
from rethink_jax.data.dataset import Dataset, subset, with_confusion_set
from rethink_jax.data.streamed import StreamedDataset
from rethink_jax.optimizers import decayed, path_name
from rethink_jax.schema import UserError
from rethink_jax.trials import FIELDS, HYPERS, Trial

_DTYPES = {int: np.int32, float: np.float32, bool: np.bool_}


AnyDataset = Dataset | StreamedDataset


def trial_dataset(full: AnyDataset, fields: Any) -> AnyDataset:
    """The images that trials with these static fields are trained on.

    Raises:
      UserError: the fields ask for more than the data set has (images, a larger crop, a batch), or
        for another size of images that lie in memory.
    """
    dataset, size = full, fields["data.image_size"]
    if isinstance(dataset, StreamedDataset):
        dataset = dataset.sized(size)
    elif size is not None:
        raise UserError(
            f"data.image_size is {size}; the images of {full.name} have their own size, only those "
            "of imagenet and folder:PATH are resized. Leave it out"
        )
    if fields["data.classes"] is not None:
        assert isinstance(dataset, Dataset)  # `trials.resolve` refuses the others.
        dataset = dataset.of_classes(fields["data.classes"])
    if fields["data.num_train"] is not None:
        size, confusion = fields["data.num_train"], fields["data.num_confusion"]
        args = fields["data.seed"], fields["data.balanced"]
        if confusion:
            assert isinstance(dataset, Dataset)  # `trials.resolve` refuses the others.
            dataset = with_confusion_set(dataset, size, confusion, *args)
        else:
            dataset = subset(dataset, size, *args)
    total, batch = len(dataset.train_labels), fields["batch_size"]
    if batch > total:
        raise UserError(
            f"batch_size is {batch}; there are {total} training images. "
            "Set --config.trial.batch_size to at most that"
        )
    crop, (height, width, channels) = fields["preprocess.crop_size"], dataset.image_shape
    wanted = preprocess.CHANNELS.get(fields["preprocess.normalize"], channels)
    if channels != wanted:
        raise UserError(
            f"preprocess.normalize is {fields['preprocess.normalize']!r}, which is for images of "
            f"{wanted} channels; those of {dataset.name} have {channels}. Set it to 'per_image'"
        )
    if crop is not None and crop > min(height, width):
        raise UserError(
            f"preprocess.crop_size is {crop}; images of {dataset.name} are {height}x{width}. "
            "Set --config.trial.preprocess.crop_size to at most that, or leave it out"
        )
    return dataset


def make_spec(trials: Sequence[Trial], dataset: AnyDataset, evaluate_every: int) -> step.Spec:
    """What is static about a group's trials on their data set."""
    return step.Spec(
        fields=dict(trials[0].static),
        num_train=len(dataset.train_labels),
        num_test=len(dataset.test_labels),
        image_shape=dataset.image_shape,
        num_classes=dataset.num_classes,
        used=used_by(trials),
        evaluate_every=evaluate_every,
    )


def check_decay(trials: Sequence[Trial], spec: step.Spec) -> None:
    """Raises UserError if weight decay is on and its pattern matches no parameter."""
    pattern = spec.fields["optimizer.decay_params"]
    if pattern == ".*" or not any(t["optimizer.weight_decay"] for t in trials):
        return
    params = jax.eval_shape(lambda: train.init_variables(spec, 0))["params"]
    if not any(jax.tree.leaves(decayed(params, pattern))):
        names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        some = ", ".join(names[:6]) + (" ..." if len(names) > 6 else "")
        raise UserError(
            f"optimizer.decay_params {pattern!r} matches no parameter of the network; it has "
            f"{some}. Write for example '.*kernel'"
        )


def check_replaced(trials: Sequence[Trial], dataset: AnyDataset) -> None:
    """Raises UserError if an image is to be replaced and there is none to take."""
    number = next((t["data.replaced"] for t in trials if t["data.replaced"] is not None), None)
    if number is not None and not len(dataset.left_out.index_K):
        raise UserError(
            f"data.replaced is {number}, but data.num_train = {len(dataset.train_labels)} is every "
            f"training image of {dataset.name} and leaves none to take instead. Set it to less"
        )


def used_by(trials: Sequence[Trial]) -> frozenset[str]:
    """The parts of a training step that some trial needs, of `step.OPTIONAL`.

    Off, each gives the same bits as a program without it, so leaving it out changes no result.
    """
    needs = {
        step.CROP_AND_FLIP: ("preprocess.random_crop", "preprocess.random_flip"),
        step.ROTATION: ("preprocess.max_rotation",),
        step.DROPOUT: ("regularizer.dropout",),
        step.INPUT_DROPOUT: ("regularizer.input_dropout",),
    }
    return frozenset(
        part for part, fields in needs.items() if any(t[f] for t in trials for f in fields)
    )


def trial_hypers(trial: Trial) -> dict[str, np.ndarray]:
    """The traced hyper-parameters as scalars; None as the number that stands for it."""
    return {
        name: _DTYPES[FIELDS[name].kind](FIELDS[name].off if trial[name] is None else trial[name])
        for name in HYPERS
    }


def trial_labels(trial: Trial, dataset: AnyDataset) -> tuple[np.ndarray, np.ndarray]:
    """A trial's training labels int32[N] and equally corrupted test labels int32[M].

    All labels of a confusion set are drawn uniformly; there is none among the test images. The
    label of a replaced image is drawn anew, as its image is another.
    """
    splits = (dataset.train_labels, streams.LABELS), (dataset.test_labels, streams.TEST_LABELS)
    kind, prob = trial["corruption.labels"], trial["corruption.label_prob"]
    seed, classes = trial["corruption.seed"], dataset.num_classes
    with on_host():

        def drawn(labels_N: np.ndarray, name: int) -> np.ndarray:
            return np.asarray(corrupt_labels(labels_N, kind, prob, seed, name, classes))

        train_N, test_M = (check_labels(drawn(*split), kind, classes) for split in splits)
        if isinstance(dataset, Dataset) and dataset.confusion_N is not None:
            random_N = corrupt_labels(
                dataset.train_labels, "uniform", 1.0, seed, streams.LABELS, classes
            )
            train_N = np.where(dataset.confusion_N, random_N, train_N)
        if (number := trial["data.replaced"]) is not None:
            # One is taken of draws for all places, so that those of two places are independent.
            label_N = np.full_like(train_N, dataset.left_out.example(number)[1])
            train_N = _with(train_N, number, drawn(label_N, streams.REPLACED_LABEL)[number])
    return train_N, test_M


def true_labels(trial: Trial, dataset: AnyDataset) -> tuple[np.ndarray, np.ndarray]:
    """What a trial's training and test labels were before they were corrupted: int32[N], [M]."""
    train_N, number = dataset.train_labels, trial["data.replaced"]
    if number is not None:
        train_N = _with(train_N, number, dataset.left_out.example(number)[1])
    return train_N, dataset.test_labels


def _with(values_N: np.ndarray, place: int, value: Any) -> np.ndarray:
    """The values, with another one at one place."""
    values_N = np.array(values_N)
    values_N[place] = value
    return values_N


def on_host() -> Any:
    """Small programs run on the host's CPU: an accelerator would first finish what it is busy with.

    It also makes the corrupted data the same whatever the accelerator.
    """
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS leaves the CPU out.
        return contextlib.nullcontext()


def pixel_spec(trial: Trial) -> PixelCorruptionSpec:
    """How a trial's images are corrupted; the clean ones are the same for every seed."""
    spec = PixelCorruptionSpec(
        trial["corruption.pixels"],
        trial["corruption.pixel_fraction"],
        trial["corruption.pixel_strength"],
        trial["corruption.seed"],
    )
    return CLEAN if spec.is_identity else spec


class Version(NamedTuple):
    """What decides a trial's images.

    pixels: how they are corrupted   replaced: the place of a replaced image, or None
    """

    pixels: PixelCorruptionSpec
    replaced: int | None = None

    def training_images(self, dataset: Dataset, stats: PixelStats) -> ImageSet:
        """The images[N]; a new one is corrupted on its own, as one more would be."""
        made = corrupt_pixels(dataset.train_images, self.pixels, stats)
        if (place := self.replaced) is None:
            return made
        image = dataset.left_out.example(place)[0][None]
        new = corrupt_pixels(image, self.pixels, stats, first=len(dataset.train_images) + place)
        return ImageSet(*(_with(old, place, one[0]) for old, one in zip(made, new, strict=True)))

    def test_images(self, dataset: Dataset, stats: PixelStats) -> ImageSet:
        """The images[M]."""
        return corrupt_pixels(dataset.test_images, self.pixels, stats, test=True)


def image_version(trial: Trial) -> Version:
    """Trials that are equal in this share their images."""
    return Version(pixel_spec(trial), trial["data.replaced"])


class ImageStore:
    """The versions of a data set's images that are on the devices now, each made once.

    There are as many places as distinct versions, or as memory allows; then a version that no
    running trial uses gives way to one that is needed.
    """

    def __init__(self, dataset: Dataset, versions: Set[Version], max_bytes: int, sharding: Any):
        self._dataset, self._sharding = dataset, sharding
        self._stats = pixel_stats(dataset.train_images)
        size = dataset.train_images.nbytes + dataset.test_images.nbytes
        places = max(1, min(len(versions), max_bytes // size))
        self._places: list[Version | None] = [None] * places
        self._data: train.Data | None = None

    @property
    def struct(self) -> train.Data:
        """Shapes and dtypes of `data`."""
        places = len(self._places)

        def images(array: np.ndarray) -> train.Images:
            codes = jax.ShapeDtypeStruct((places, *array.shape), np.uint8)
            per_image = jax.ShapeDtypeStruct((places, len(array)), np.float32)
            return train.Images(codes, per_image, per_image)

        labels = jax.ShapeDtypeStruct(self._dataset.test_labels.shape, np.int32)
        return train.Data(
            images(self._dataset.train_images), images(self._dataset.test_images), labels
        )

    @property
    def data(self) -> train.Data:
        """What the program takes. Ask again after `place_of`."""
        if self._data is None:
            zeros = lambda s: jnp.zeros(s.shape, s.dtype, device=self._sharding)  # noqa: E731
            labels = jax.device_put(self._dataset.test_labels, self._sharding)
            self._data = jax.tree.map(zeros, self.struct)._replace(test_labels=labels)
        return self._data

    def place_of(self, version: Version, in_use: Set[int]) -> int | None:
        """Where the images are, making them if need be; None if all places are in use."""
        if version in self._places:
            return self._places.index(version)
        free = [i for i in range(len(self._places)) if i not in in_use]
        if not free:
            return None
        place = next((i for i in free if self._places[i] is None), free[0])
        with on_host():
            made = [
                train.Images(*make(self._dataset, self._stats))
                for make in (version.training_images, version.test_images)
            ]
        images = _write((self.data.train, self.data.test), place, made)
        self._data = train.Data(*images, self.data.test_labels)
        self._places[place] = version
        return place


@functools.partial(jax.jit, donate_argnums=0)
def _write(images: Any, place: int, made: list[train.Images]) -> Any:
    return jax.tree.map(lambda a, b: a.at[place].set(b), images, tuple(made))
