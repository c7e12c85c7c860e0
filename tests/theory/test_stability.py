"""Changes by a replaced image: of made losses by hand, of stored networks against numpy."""

import numpy as np
import pytest

from rethink_jax import inputs, records, sweep, trials
from rethink_jax.checkpoint import load_trial
from rethink_jax.data import sources
from rethink_jax.schema import UserError
from rethink_jax.theory import stability

PLACES = (0, 5)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Linear networks on two digits, with true and random labels, and two images replaced."""
    path = tmp_path_factory.mktemp("stability") / "w"
    config = {
        "trial": {
            "batch_size": 8, "data": {"name": "digits", "classes": (3, 8), "num_train": 16},
            "model": {"name": "mlp", "hidden": ()},
            "optimizer": {"learning_rate": 0.05}, "stop": {"max_epochs": 3},
        },
        "sweep": {
            "data": {"replaced": (None, *PLACES)}, "corruption": {"label_prob": (0.0, 1.0)},
        },
        "engine": {"devices": 1, "lanes": 1},
    }  # fmt: skip
    assert sweep.run(sweep.Sweep(config), path, ["test"]) == 0
    return path


def test_changes_by_hand():
    base = np.array([0.0, 0.5, 0.1, 0.2, 0.9, 0.7])  # 2 test, 2 removed, 2 inserted
    replaced = np.array([[0.1, 0.5, 0.6, 9.0, 0.3, 9.0], [0.0, 0.1, 9.0, 0.2, 9.0, 0.6]])
    found = stability.changes(base, 0.05, replaced, 2)
    assert found.replaced == 2
    assert found.test_loss == pytest.approx(0.25) and found.gap == pytest.approx(0.2)
    assert found.mean == pytest.approx((0.1 + 0 + 0 + 0.4) / 4)
    # Of the first its own removed image, 0.6 - 0.1; not those of the other replacement.
    assert found.removed == pytest.approx((0.5 + 0) / 2)
    assert found.inserted == pytest.approx((-0.6 - 0.1) / 2)
    assert found.largest == pytest.approx(0.6)


def in_numpy(workdir, label_prob, place):
    """Weights of a stored linear network; images as it takes them, and their labels."""
    for trial_id, result in records.Workdir(workdir).finished().items():
        trial = trials.resolve(result["trial"])
        if (trial["corruption.label_prob"], trial["data.replaced"]) == (label_prob, place):
            dataset = inputs.trial_dataset(sources.digits(), dict(trial.static))
            images = np.array(dataset.train_images)
            if place is not None:
                images[place] = dataset.left_out.example(place)[0]
            layer = load_trial(workdir, trial_id).variables["params"]["Dense_0"]
            labels = inputs.trial_labels(trial, dataset)
            return layer, (images, labels[0]), (dataset.test_images, labels[1])
    raise AssertionError


def losses(layer, images, labels):
    x = images.reshape(len(images), -1).astype(np.float64)
    x = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    logits = x @ np.float64(layer["kernel"]) + np.float64(layer["bias"])
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    own = probabilities[np.arange(len(labels)), labels]
    return {
        "0-1": (logits.argmax(1) != labels).astype(float),
        "1 - probability": 1 - own,
        "cross-entropy": -np.log(own),
    }


def test_changes_of_stored_networks(workdir):
    found = {s.fields["corruption.label_prob"]: s for s in stability.measure(workdir)}
    assert set(found) == {0.0, 1.0}
    for prob, setting in found.items():
        assert setting.num_images == 16
        assert setting.fields["data.replaced"] is None
        base, train, test = in_numpy(workdir, prob, None)
        expected = {name: [] for name in stability.LOSSES}
        for place in PLACES:
            other, after, _ = in_numpy(workdir, prob, place)
            removed, inserted = ([a[place : place + 1] for a in s] for s in (train, after))
            for name, changes in expected.items():
                changes.append(
                    [losses(other, *s)[name] - losses(base, *s)[name] for s in
                     (test, removed, inserted)]
                )  # fmt: skip
        for name, changes in expected.items():
            change = setting.changes[name]
            on_test = np.abs([c[0] for c in changes])
            assert change.replaced == 2
            assert change.train_loss == pytest.approx(losses(base, *train)[name].mean(), abs=1e-5)
            assert change.test_loss == pytest.approx(losses(base, *test)[name].mean(), abs=1e-5)
            assert change.mean == pytest.approx(on_test.mean(), abs=1e-5)
            assert change.removed == pytest.approx(np.mean([c[1] for c in changes]), abs=1e-5)
            assert change.inserted == pytest.approx(np.mean([c[2] for c in changes]), abs=1e-5)
            largest = max(np.abs(part).max() for c in changes for part in c)
            assert change.largest == pytest.approx(largest, abs=1e-5)
    assert found[1.0].changes["cross-entropy"].mean > 0


def test_trials_without_their_pair_are_left_out(workdir, tmp_path):
    directory = records.Workdir(workdir)
    assert [len(others) for _, others in stability.pairs(directory)] == [2, 2]
    with pytest.raises(UserError, match="not a workdir"):
        list(stability.measure(tmp_path))
