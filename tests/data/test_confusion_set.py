"""Images with random labels beside a subset that keeps its labels (Neyshabur et al. 2017)."""

import numpy as np
import pytest

from rethink_jax import inputs, trials
from rethink_jax.data import sources
from rethink_jax.data.dataset import Dataset, subset, with_confusion_set
from rethink_jax.schema import UserError


@pytest.fixture(scope="module")
def made():
    """5,000 images that are their own number; 4 classes."""
    numbers = np.arange(5_000, dtype=np.uint32)
    images = numbers.view(np.uint8).reshape(-1, 1, 1, 4)
    labels = (numbers % 4).astype(np.int32)
    return Dataset("made", images, labels, images[:8], labels[:8], tuple("abcd"))


def numbers_of(images):
    return np.ascontiguousarray(images).view(np.uint32).ravel()


@pytest.mark.parametrize("balanced", [False, True])
def test_the_subset_is_the_same_whatever_is_added_to_it(made, balanced):
    alone = set(numbers_of(subset(made, 1_000, 3, balanced).train_images))
    before = set()
    for size in (1, 500, 4_000):
        both = with_confusion_set(made, 1_000, size, 3, balanced)
        found = numbers_of(both.train_images)
        assert len(found) == len(set(found)) == 1_000 + size
        assert both.confusion_N.sum() == size
        assert set(found[~both.confusion_N]) == alone
        added = set(found[both.confusion_N])
        assert before < added
        before = added


def trial_of(confusion, seed=0, **corruption):
    return trials.resolve(
        {
            "seed": seed,
            "data": {"name": "made", "num_train": 2_000, "num_confusion": confusion},
            "corruption": corruption,
        }
    )


def labels_of(made, trial):
    dataset = inputs.trial_dataset(made, dict(trial.fields))
    return dataset, *inputs.trial_labels(trial, dataset)


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setattr(sources, "check_name", lambda name: None)


def test_labels_are_random_in_the_confusion_set_only(made):
    dataset, train_N, test_M = labels_of(made, trial_of(3_000))
    confusion_N = dataset.confusion_N
    np.testing.assert_array_equal(train_N[~confusion_N], dataset.train_labels[~confusion_N])
    np.testing.assert_array_equal(test_M, made.test_labels)
    # Uniform over all classes: a quarter stays by chance; 4 deviations of a binomial count.
    same = (train_N == dataset.train_labels)[confusion_N]
    assert abs(same.mean() - 1 / 4) < 4 * np.sqrt(3 / 16 / 3_000)
    counts = np.bincount(train_N[confusion_N], minlength=4)
    assert np.abs(counts - 750).max() < 4 * np.sqrt(3_000 * 3 / 16)


def test_labels_follow_the_trials_seed(made):
    _, first, _ = labels_of(made, trial_of(3_000))
    dataset, other, _ = labels_of(made, trial_of(3_000, seed=1))
    _, again, _ = labels_of(made, trial_of(3_000))
    np.testing.assert_array_equal(first, again)
    assert (first != other)[dataset.confusion_N].mean() == pytest.approx(3 / 4, abs=0.04)


def test_the_other_labels_may_be_corrupted_too(made):
    dataset, train_N, _ = labels_of(made, trial_of(1_000, label_prob=0.4))
    changed = (train_N != dataset.train_labels)[~dataset.confusion_N]
    assert changed.mean() == pytest.approx(0.4 * 3 / 4, abs=0.04)


def test_mistakes(made):
    with pytest.raises(UserError, match=r"data\.num_train is 2000 and data\.num_confusion is 3001"):
        labels_of(made, trial_of(3_001))
    with pytest.raises(UserError, match="set the size of the subset"):
        trials.resolve({"data": {"num_confusion": 5}})
    streamed = {"name": "folder:x", "image_size": 64, "num_train": 8, "num_confusion": 5}
    with pytest.raises(UserError, match=r"data\.num_confusion is 5; .* read from disk"):
        trials.resolve({"data": streamed, "stop": {"measured_on": "online"}})
