"""Some classes of a data set, and one training image that gives way to another."""

import numpy as np
import pytest

from rethink_jax import inputs, sweep, trials
from rethink_jax.data import sources
from rethink_jax.data.corruption import pixel_stats
from rethink_jax.data.dataset import Dataset
from rethink_jax.schema import UserError


@pytest.fixture(scope="module")
def made():
    """400 images that are their own number; 4 classes."""
    numbers = np.arange(400, dtype=np.uint32)
    images = numbers.view(np.uint8).reshape(-1, 2, 2, 1)
    labels = (numbers % 4).astype(np.int32)
    return Dataset("made", images, labels, images[:9], labels[:9], tuple("abcd"))


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setattr(sources, "check_name", lambda name: None)


def numbers_of(images):
    return np.ascontiguousarray(images).reshape(-1).view(np.uint32)


def seen(made, replaced=None, num_train=100, data=None, **corruption):
    """What a trial is trained on: its images, their labels, test images and labels, true labels."""
    data = {"name": "made", "num_train": num_train, "replaced": replaced} | (data or {})
    trial = trials.resolve({"data": data, "corruption": corruption, "batch_size": 8})
    dataset = inputs.trial_dataset(made, dict(trial.static))
    stats, version = pixel_stats(dataset.train_images), inputs.image_version(trial)
    images = [m(dataset, stats) for m in (version.training_images, version.test_images)]
    labels = inputs.trial_labels(trial, dataset)
    return images[0], labels[0], images[1], labels[1], inputs.true_labels(trial, dataset)[0]


def test_classes_are_numbered_in_their_order(made):
    some = made.of_classes((3, 1))
    assert some.class_names == ("d", "b") and some.num_classes == 2
    for images, labels, whole in (
        (some.train_images, some.train_labels, 400),
        (some.test_images, some.test_labels, 9),
    ):
        numbers = numbers_of(images)
        np.testing.assert_array_equal(numbers, [n for n in range(whole) if n % 4 in (1, 3)])
        np.testing.assert_array_equal(labels, np.where(numbers % 4 == 3, 0, 1))


def test_a_subset_is_of_the_classes(made):
    images, labels, _, test_labels, _ = seen(made, data={"classes": (2, 0)}, num_train=50)
    numbers = numbers_of(images.codes)
    assert len(set(numbers)) == 50 and set(numbers % 4) == {0, 2}
    np.testing.assert_array_equal(labels, np.where(numbers % 4 == 2, 0, 1))
    assert len(test_labels) == 5


def test_random_labels_of_two_classes_are_fair_signs(made):
    data = {"classes": (2, 0)}
    draws = [seen(made, num_train=200, data=data, label_prob=1.0, seed=s)[1] for s in range(50)]
    signs = 2 * np.stack(draws) - 1
    assert set(signs.ravel()) == {-1, 1}
    # Sums of independent signs: deviations of 1/sqrt(count); 4 of them.
    assert abs(signs.mean()) < 4 / np.sqrt(signs.size)
    assert np.abs(signs.mean(0)).max() < 4.5 / np.sqrt(50)
    products = signs @ signs.T / 200
    assert np.abs(products[~np.eye(50, dtype=bool)]).max() < 4.5 / np.sqrt(200)


@pytest.mark.parametrize("pixels", ["none", "gaussian"])
@pytest.mark.parametrize("prob", [0.0, 0.5])
def test_one_image_and_its_label_are_replaced_and_nothing_else(made, pixels, prob):
    given = dict(pixels=pixels, label_prob=prob, seed=4)
    before, after = seen(made, **given), seen(made, 7, **given)
    # Nor does it repeat another image, or its noise.
    assert not (before[0].codes == after[0].codes[7]).all((1, 2, 3)).any()
    others = np.arange(100) != 7
    for old, new in zip(before[0], after[0], strict=True):
        np.testing.assert_array_equal(old[others], new[others])
    np.testing.assert_array_equal(before[1][others], after[1][others])
    for old, new in zip(before[2], after[2], strict=True):
        np.testing.assert_array_equal(old, new)
    np.testing.assert_array_equal(before[3], after[3])


def test_the_new_image_comes_from_outside_of_the_subset_with_its_label(made):
    subset = set(numbers_of(seen(made)[0].codes))
    found = []
    for place in range(100):
        images, labels, *_, true = seen(made, place)
        number = numbers_of(images.codes)[place]
        assert number not in subset
        assert labels[place] == true[place] == number % 4
        found.append(number)
    assert len(set(found)) == 100  # Of each place another, while there are enough.


def test_after_the_last_that_was_left_out_comes_the_first(made):
    new = [numbers_of(seen(made, p, num_train=397)[0].codes)[p] for p in range(6)]
    assert len(set(new)) == 3
    assert new[:3] == new[3:]


def test_the_label_of_a_new_image_is_drawn_anew(made):
    """With random labels it is independent of the one before, and of those of other places."""
    given = dict(num_train=150, data={"classes": (0, 1)}, label_prob=1.0, seed=2)
    old = seen(made, **given)[1][:60]
    new = np.array([seen(made, place, **given)[1][place] for place in range(60)])
    for same in ((old == new).mean(), new.mean()):
        assert abs(same - 0.5) < 4 * 0.5 / np.sqrt(60)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"classes": (1,)}, "data.classes is (1,); it needs two or more different classes"),
        ({"classes": (1, 1)}, "data.classes is (1, 1); it needs two or more"),
        ({"classes": (1, -2)}, "data.classes is (1, -2)"),
        ({"replaced": 3}, "data.replaced is 3 without data.num_train"),
        ({"replaced": 64, "num_train": 64}, "the subset has 64 images, counted from 0"),
        ({"replaced": 3, "num_train": 64, "num_confusion": 2}, "no confusion set"),
        ({"replaced": 3, "num_train": 64, "name": "folder:x", "image_size": 8}, "read from disk"),
        ({"classes": (0, 1), "name": "folder:x", "image_size": 8}, "read from disk"),
    ],
)
def test_what_cannot_be_is_refused(data, words):
    with pytest.raises(UserError) as caught:
        trials.resolve({"data": data, "stop": {"measured_on": "online"}})
    assert words in str(caught.value)


def test_what_the_data_set_does_not_have_is_refused_before_the_sweep():
    config = {"trial": {"data": {"name": "digits", "classes": (3, 11)}}, "sweep": {}}
    with pytest.raises(UserError, match=r"data\.classes has 11; the classes of digits are 0 to 9"):
        sweep.Sweep(config)
    whole = len(sources.digits().train_labels)
    config["trial"]["data"] = {"name": "digits", "num_train": whole, "replaced": 0}
    with pytest.raises(UserError, match=f"data.num_train = {whole} is every training image"):
        sweep.Sweep(config)
