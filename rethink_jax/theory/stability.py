"""How much a loss changes where one training image is another: uniform stability, estimated.

From a workdir with trials that differ in `data.replaced` alone: S is the sample of the one without,
S^i has its example z_i replaced by a fresh one. A(S) is the network that training makes of S; seed,
first weights and order of images are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rethink_jax import inputs, measuring, records, trials
from rethink_jax.checkpoint import LoadedTrial, load_trial
from rethink_jax.data.corruption import ImageSet, pixel_stats
from rethink_jax.data.dataset import Dataset
from rethink_jax.measures.subject import Subject
from rethink_jax.schema import UserError


def zero_one(logits_ZxY: jax.Array, labels_Z: jax.Array) -> jax.Array:
    """1 where the label is not the largest output: float32[Z]."""
    return (logits_ZxY.argmax(-1) != labels_Z).astype(jnp.float32)


def missed_probability(logits_ZxY: jax.Array, labels_Z: jax.Array) -> jax.Array:
    """1 less the softmax probability of the label: a smooth loss from 0 to 1, float32[Z]."""
    return 1 - jnp.exp(-cross_entropy(logits_ZxY, labels_Z))


def cross_entropy(logits_ZxY: jax.Array, labels_Z: jax.Array) -> jax.Array:
    """In nats, float32[Z]."""
    return optax.softmax_cross_entropy_with_integer_labels(logits_ZxY, labels_Z)


class Loss(NamedTuple):
    """of: (logits_ZxY, labels_Z) -> losses_Z   largest: what it may be at most, or None"""

    of: Callable[[jax.Array, jax.Array], jax.Array]
    largest: float | None


LOSSES = {
    "0-1": Loss(zero_one, 1.0),
    "1 - probability": Loss(missed_probability, 1.0),
    "cross-entropy": Loss(cross_entropy, None),
}


class Change(NamedTuple):
    """Of one loss: what K replacements change, each of another example.

    train_loss, test_loss: means of A(S)   replaced: K
    mean: of |change| over replacements and test images (hypothesis stability)
    largest: |change| over replacements, and test, removed and inserted images: uniform stability is
      at least that
    removed: mean change on the example that is taken out; over samples and replacements its
      expectation is that of test less training loss
    inserted: mean change on the one that is put in
    """

    train_loss: float
    test_loss: float
    replaced: int
    mean: float
    largest: float
    removed: float
    inserted: float

    @property
    def gap(self) -> float:
        return self.test_loss - self.train_loss


def changes(
    base_Z: np.ndarray, train_loss: float, replaced_KxZ: np.ndarray, num_test: int
) -> Change:
    """What replacements change, from losses.

    Args:
      base_Z: of A(S) on M = num_test images, then the K removed, then the K inserted examples
      replaced_KxZ: of each A(S^i), on the same
    """
    count = len(replaced_KxZ)
    change_KxZ = replaced_KxZ.astype(np.float64) - base_Z
    own = np.arange(count)
    removed_K = change_KxZ[own, num_test + own]
    inserted_K = change_KxZ[own, num_test + count + own]
    test_KxM = np.abs(change_KxZ[:, :num_test])
    # Of each replacement its own two examples; those of the others are training images as any.
    largest = max(test_KxM.max(), np.abs(removed_K).max(), np.abs(inserted_K).max())
    return Change(
        train_loss, float(base_Z[:num_test].mean(dtype=np.float64)), count, float(test_KxM.mean()),
        float(largest), float(removed_K.mean()), float(inserted_K.mean()),
    )  # fmt: skip


class Setting(NamedTuple):
    """Trials that differ in the replaced image alone.

    fields: of the trial without one   num_images: n   changes: by the name of the loss
    """

    fields: dict[str, Any]
    num_images: int
    changes: dict[str, Change]


def measure(workdir: str | Path) -> Iterator[Setting]:
    """The settings of a workdir in which images were replaced and the networks kept.

    Raises:
      UserError: not a workdir, or its data are not there any more.
    """
    directory = records.Workdir(workdir)
    head, datasets = directory.header(), {}
    if head is None:
        raise UserError(f"{workdir} is not a workdir: it has no run.json")
    for base, others in pairs(directory):
        name = base["data.name"]
        if name not in datasets:
            datasets[name] = measuring.load_data(directory.path, head, name)
        dataset = inputs.trial_dataset(datasets[name], dict(base.static))
        yield _setting(directory.path, dataset, base, others)


def pairs(directory: records.Workdir) -> list[tuple[trials.Trial, list[trials.Trial]]]:
    """Each finished trial with no image replaced, and those with one that are else as it is.

    Of all, the network was kept; those without any replaced image beside them are left out.
    """
    groups: dict[Any, dict[int | None, trials.Trial]] = {}
    for trial_id, result in directory.finished().items():
        if (directory.trial_dir(trial_id) / "network").is_dir():
            trial = trials.resolve(result["trial"])
            rest = tuple(f for f in trial.fields if f[0] != "data.replaced")
            groups.setdefault(rest, {})[trial["data.replaced"]] = trial
    found = []
    for by_place in groups.values():
        base = by_place.pop(None, None)
        if base is not None and by_place:
            found.append((base, [by_place[place] for place in sorted(by_place)]))
    return found


def _setting(
    workdir: Path, dataset: Dataset, base: trials.Trial, others: list[trials.Trial]
) -> Setting:
    first = load_trial(workdir, base.trial_id)
    logits_of = _logits_of(first)
    train_images, train_N = _training(base, dataset, first)
    images, labels_Z = _examples(base, others, dataset, first)
    losses = {name: jax.jit(loss.of) for name, loss in LOSSES.items()}

    def losses_of(loaded: LoadedTrial) -> dict[str, np.ndarray]:
        logits_ZxY = logits_of(loaded.variables, images)
        return {name: np.asarray(of(logits_ZxY, labels_Z)) for name, of in losses.items()}

    logits_NxY = logits_of(first.variables, train_images)
    means = {name: float(of(logits_NxY, train_N).mean()) for name, of in losses.items()}
    own = losses_of(first)
    replaced = [losses_of(load_trial(workdir, t.trial_id)) for t in others]
    found = {
        name: changes(
            own[name], means[name], np.stack([r[name] for r in replaced]), len(dataset.test_labels)
        )
        for name in LOSSES
    }
    return Setting(dict(base.fields), len(train_N), found)


def _logits_of(first: LoadedTrial) -> Callable[[Any, jax.Array], jax.Array]:
    """(variables, images_ZxHxWxC) -> logits_ZxY, for all networks of a setting."""

    def logits_of(variables: Any, images: jax.Array) -> jax.Array:
        labels = jnp.zeros(len(images), jnp.int32)
        return Subject(first.model, variables, images, labels).logits_NxY

    program = jax.jit(logits_of)

    def call(variables: Any, images: jax.Array) -> jax.Array:
        with jax.default_matmul_precision(first.fields["matmul_precision"]):
            return program(variables, images)

    return call


def _training(
    trial: trials.Trial, dataset: Dataset, first: LoadedTrial
) -> tuple[jax.Array, np.ndarray]:
    """A trial's training images as the network takes them, and its labels."""
    stats = pixel_stats(dataset.train_images)
    made = inputs.image_version(trial).training_images(dataset, stats)
    return measuring.as_taken(made, first.fields), inputs.trial_labels(trial, dataset)[0]


def _examples(
    base: trials.Trial, others: list[trials.Trial], dataset: Dataset, first: LoadedTrial
) -> tuple[jax.Array, np.ndarray]:
    """Test images, then those removed, then those inserted; as the network takes them. And labels.

    All with labels corrupted as those of training are, of which they are further examples.
    """
    stats = pixel_stats(dataset.train_images)
    sets = [inputs.image_version(base).test_images(dataset, stats)]
    train_N, test_M = inputs.trial_labels(base, dataset)
    before = inputs.image_version(base).training_images(dataset, stats)
    places_K = [trial["data.replaced"] for trial in others]
    after, inserted_K = [], []
    for trial, place in zip(others, places_K, strict=True):
        made = inputs.image_version(trial).training_images(dataset, stats)
        after.append(_some(made, [place]))
        inserted_K.append(inputs.trial_labels(trial, dataset)[0][place])
    sets += [_some(before, places_K), *after]
    images = jnp.concatenate([measuring.as_taken(s, first.fields) for s in sets])
    return images, np.concatenate([test_M, train_N[places_K], np.array(inserted_K, np.int32)])


def _some(images: ImageSet, index: list[int]) -> ImageSet:
    return ImageSet(*(part[index] for part in images))
