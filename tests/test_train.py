"""One trial, against the same computation written out in plain numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rethink_jax import inputs, step, train, trials
from rethink_jax.data import sources
from rethink_jax.data.corruption import CLEAN, corrupt_pixels, pixel_stats

DIGITS = sources.digits()


def prepare(nested, evaluate_every=1):
    trial = trials.resolve(nested)
    dataset = inputs.trial_dataset(DIGITS, dict(trial.static))
    spec = inputs.make_spec([trial], dataset, evaluate_every)
    stats = pixel_stats(dataset.train_images)
    images = [
        train.Images(*(a[None] for a in corrupt_pixels(split, inputs.pixel_spec(trial), stats, t)))
        for split, t in ((dataset.train_images, False), (dataset.test_images, True))
    ]
    data = train.Data(*images, dataset.test_labels)
    labels = inputs.trial_labels(trial, dataset)
    own = train.Inputs(inputs.trial_hypers(trial), *labels, np.int32(0))
    return spec, *jax.tree.map(jnp.asarray, (data, own)), dataset


def run(nested, evaluate_every=1):
    spec, data, own, _ = prepare(nested, evaluate_every)
    advance = jax.jit(lambda s: train.advance(spec, data, own, s))
    state = train.init_trial(spec, own)
    while state.status == train.RUNNING:
        state = advance(state)
    return state


def column(state, name):
    return np.asarray(state.curve)[:, train.CURVE.index(name)]


def numpy_epochs(nested, epochs):
    """SGD with momentum on the network of one hidden layer, in float64, from the same start."""
    spec, _, own, dataset = prepare(nested)
    x = dataset.train_images.reshape(spec.num_train, -1) / 255
    x = x - x.mean(1, keepdims=True)
    x = x / np.maximum(x.std(1, keepdims=True), 1 / np.sqrt(x.shape[1]))
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), train.init_trial(spec, own).params)
    w1, b1, w2, b2 = (params[f"Dense_{i}"][k] for i in (0, 1) for k in ("kernel", "bias"))
    weights = [w1, b1, w2, b2]
    velocity = [np.zeros_like(w) for w in weights]
    optimizer = nested["optimizer"]
    losses = []
    for epoch in range(epochs):
        rate = optimizer["learning_rate"] * optimizer["lr_decay"] ** epoch
        steps = []
        for index in np.asarray(train.data_order(spec, own.hypers["seed"], epoch)):
            loss, grads = numpy_loss(weights, x[index], np.asarray(own.labels)[index])
            steps.append(loss)
            decay = optimizer["weight_decay"]
            for v, g, w in zip(velocity, grads, weights, strict=True):
                v *= optimizer["momentum"]
                v += g + decay * w
                w -= rate * v
        losses.append(np.mean(steps))
    full_loss, _ = numpy_loss(weights, x, np.asarray(own.labels))
    return weights, losses, full_loss


def numpy_loss(weights, x, y):
    w1, b1, w2, b2 = weights
    h = np.maximum(x @ w1 + b1, 0)
    z = h @ w2 + b2
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    rows = np.arange(len(y))
    loss = -np.log(p[rows, y]).mean()
    p[rows, y] -= 1
    p /= len(y)
    g_h = (p @ w2.T) * (h > 0)
    return loss, [x.T @ g_h, g_h.sum(0), h.T @ p, p.sum(0)]


def test_training_is_what_numpy_computes(small_trial):
    nested = small_trial(corruption__label_prob=0.5, stop__max_epochs=3)
    nested["optimizer"] = {
        "learning_rate": 0.1,
        "lr_decay": 0.5,
        "momentum": 0.9,
        "weight_decay": 0.01,
    }
    state = run(nested)
    weights, losses, full_loss = numpy_epochs(nested, 3)
    # float32 against float64 over 12 steps
    np.testing.assert_allclose(column(state, "online_loss")[:3], losses, rtol=1e-4)
    np.testing.assert_allclose(column(state, "train_loss")[2], full_loss, rtol=1e-4)
    ours = [state.params[f"Dense_{i}"][k] for i in (0, 1) for k in ("kernel", "bias")]
    for a, b in zip(ours, weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(column(state, "learning_rate"), [0.1, 0.05, 0.025], rtol=1e-6)
    norm = np.sqrt(sum((w**2).sum() for w in weights))
    assert column(state, "param_norm")[2] == pytest.approx(norm, rel=1e-4)


def test_evaluation_counts_every_image_once(small_trial):
    """The test set (355 images) and the training set fill no whole number of batches."""
    spec, data, own, dataset = prepare(small_trial(data__num_train=777))
    state = train.init_trial(spec, own)
    for images, own_labels, true in (
        (data.train, own.labels, dataset.train_labels),
        (data.test, own.test_labels, dataset.test_labels),
    ):
        (loss, accuracy, _top5), _ = train.evaluate(
            spec, images, own, state, (own_labels, jnp.asarray(true))
        )
        pixels = np.asarray(images.codes[0]).reshape(len(true), -1) / 255
        x = (pixels - pixels.mean(1, keepdims=True)) / pixels.std(1, keepdims=True)
        weights = [
            np.asarray(state.params[f"Dense_{i}"][k]) for i in (0, 1) for k in ("kernel", "bias")
        ]
        own_labels = np.asarray(own_labels)
        expected, _ = numpy_loss(weights, x, own_labels)
        assert loss == pytest.approx(expected, rel=1e-5)  # float32 sums
        hidden = np.maximum(x @ weights[0] + weights[1], 0)
        guesses = (hidden @ weights[2] + weights[3]).argmax(1)
        assert accuracy == pytest.approx((guesses == own_labels).mean(), abs=1e-6)


@pytest.mark.parametrize("measured_on", ["full", "online"])
@pytest.mark.parametrize("rule", ["accuracy", "loss"])
def test_stops_at_the_first_epoch_that_fits(small_trial, measured_on, rule):
    free = run(small_trial(stop__max_epochs=8))
    split = "train" if measured_on == "full" else "online"
    values = column(free, f"{split}_{rule}")
    best = np.maximum.accumulate(values) if rule == "accuracy" else np.minimum.accumulate(values)
    threshold = float(best[4]) if rule == "accuracy" else float(best[4]) * 1.0001
    hit = values >= threshold if rule == "accuracy" else values < threshold
    first = int(np.argmax(hit)) + 1
    nested = small_trial(stop__max_epochs=8, stop__measured_on=measured_on)
    nested["stop"][f"train_{rule}"] = threshold
    state = run(nested)
    assert (state.status, state.epoch, state.fit_epoch) == (train.FITTED, first, first)
    np.testing.assert_allclose(state.curve[:first], free.curve[:first], rtol=1e-5)
    assert np.isnan(state.curve[first:]).all()
    # The same thresholds, without ending there.
    nested["stop"]["when_fitted"] = False
    state = run(nested)
    assert (state.status, state.epoch, state.fit_epoch) == (train.FITTED, 8, first)


def test_unreached_thresholds_run_to_the_last_epoch(small_trial):
    state = run(small_trial(stop__train_loss=0.0, stop__max_epochs=3))
    assert (state.status, state.epoch, state.fit_epoch) == (train.FINISHED, 3, 0)


def test_non_finite_loss_ends_as_diverged(small_trial):
    state = run(small_trial(optimizer__learning_rate=1e30))
    assert state.status == train.DIVERGED
    assert state.epoch < 4


def test_a_trial_that_is_done_stays_as_it_is(small_trial):
    nested = small_trial(stop__max_epochs=1)
    spec, data, own, _ = prepare(nested)
    state = run(nested)
    jax.tree.map(np.testing.assert_array_equal, train.advance(spec, data, own, state), state)


def test_evaluation_cadence_leaves_gaps_but_never_the_last_epoch(small_trial):
    state = run(small_trial(stop__max_epochs=5), evaluate_every=2)
    assert list(np.isnan(column(state, "test_loss"))) == [True, False, True, False, False]
    assert not np.isnan(column(state, "train_loss")).any()  # The stop rule measures it anyway.
    online = run(small_trial(stop__max_epochs=5, stop__measured_on="online"), evaluate_every=2)
    assert list(np.isnan(column(online, "train_loss"))) == [True, False, True, False, False]


@pytest.mark.parametrize("part", step.OPTIONAL)
def test_a_part_that_is_off_is_the_program_without_it(small_trial, part):
    """What no trial of a group needs, the engine leaves out: the same, bit by bit."""
    nested = small_trial(preprocess__crop_size=6)
    spec, data, own, _ = prepare(nested)
    assert not spec.used
    with_it = dataclasses.replace(spec, used=frozenset((part,)))
    states = [
        jax.jit(lambda s, spec=spec: train.advance(spec, data, own, s))(train.init_trial(spec, own))
        for spec in (spec, with_it)
    ]
    jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("preprocess", "random_crop", True),
        ("preprocess", "random_flip", True),
        ("preprocess", "max_rotation", 25.0),
        ("regularizer", "dropout", 0.5),
        ("regularizer", "input_dropout", 0.2),
        ("regularizer", "label_smoothing", 0.1),
        ("optimizer", "weight_decay", 0.01),
    ],
)
def test_every_regularizer_changes_training(small_trial, section, name, value):
    nested = small_trial(preprocess__crop_size=6)
    plain = run(nested)
    nested.setdefault(section, {})[name] = value
    regularized = run(nested)
    # The smoothed loss and the decay act through the first step's gradient only.
    epoch = 1 if name in ("label_smoothing", "weight_decay") else 0
    assert column(plain, "online_loss")[epoch] != column(regularized, "online_loss")[epoch]


def test_shuffled_pixels_keep_the_values_of_each_image(small_trial):
    clean, shuffled = (
        prepare(small_trial(corruption__pixels=kind))[1].train for kind in ("none", "shuffled")
    )
    pick = np.arange(5)
    a, b = (np.asarray(train.take_images(x, 0, pick)) for x in (clean, shuffled))
    assert not np.array_equal(a, b)
    np.testing.assert_array_equal(np.sort(a.reshape(5, -1)), np.sort(b.reshape(5, -1)))


def test_images_are_taken_from_the_trials_own_set():
    images = DIGITS.train_images[:4]
    codes = np.stack([images, 255 - images])
    ones = np.ones((2, 4), np.float32)
    bank = train.Images(*map(jnp.asarray, (codes, ones * [[1], [2]], ones * [[0], [10]])))
    taken = train.take_images(bank, 1, np.array([3, 0]))
    expected = ((255.0 - images[[3, 0]]) * 2 + 10) / 255
    np.testing.assert_allclose(taken, expected, rtol=1e-6)  # float32


def test_seed_decides_start_and_order(small_trial):
    a, b, again = (run(small_trial(seed=s)) for s in (0, 1, 0))
    jax.tree.map(np.testing.assert_array_equal, a, again)
    assert not np.array_equal(a.curve, b.curve)


def test_clean_images_are_shared_between_seeds(small_trial):
    specs = {
        inputs.pixel_spec(trials.resolve(small_trial(seed=s, corruption__label_prob=p)))
        for s in (0, 1)
        for p in (0.0, 1.0)
    }
    assert specs == {CLEAN}


def test_label_smoothing_is_the_cross_entropy_to_a_mixed_target(small_trial):
    """One step of plain descent from the same weights, against the gradient of the definition."""
    nested = small_trial(optimizer={"learning_rate": 0.1, "momentum": 0.0, "lr_decay": 1.0})
    nested |= {"regularizer": {"label_smoothing": 0.3}, "batch_size": 64}
    nested["stop"]["max_epochs"] = 1
    spec, data, own, _ = prepare(nested)
    start = train.init_trial(spec, own)

    def objective(params):
        logits = spec.model.apply({"params": params}, images, False).logits_BxY
        target = 0.7 * jax.nn.one_hot(labels, 10) + 0.3 / 10
        return -(target * jax.nn.log_softmax(logits)).sum(-1).mean()

    (index,) = train.data_order(spec, own.hypers["seed"], jnp.int32(0))
    stored = train.take_images(data.train, own.image_set, index)
    images, labels = step.preprocess.whiten(stored), own.labels[index]
    grads = jax.grad(objective)(start.params)
    expected = jax.tree.map(lambda w, g: w - 0.1 * g, start.params, grads)
    found = train.advance(spec, data, own, start)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)  # noqa: E731
    jax.tree.map(close, found.params, expected)
    # What is recorded is the cross-entropy to the label itself.
    logits = spec.model.apply({"params": start.params}, images, False).logits_BxY
    plain = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean()
    assert column(found, "online_loss")[0] == pytest.approx(float(plain), rel=1e-5)


def test_top5_counts_the_labels_among_the_five_best(small_trial):
    spec, data, own, _ = prepare(small_trial())
    state = train.init_trial(spec, own)
    (_, top1, top5), _ = train.evaluate(
        spec, data.test, own, state, (own.test_labels, own.test_labels)
    )
    images = train.take_images(data.test, own.image_set, jnp.arange(spec.num_test))
    logits = spec.model.apply({"params": state.params}, step.preprocess.whiten(images), False)[0]
    best = np.argsort(-np.asarray(logits), axis=1)
    labels = np.asarray(own.test_labels)
    assert top1 == pytest.approx((best[:, 0] == labels).mean())
    assert top5 == pytest.approx((best[:, :5] == labels[:, None]).any(1).mean())
    assert top1 < top5 < 1
    broken = state._replace(params=jax.tree.map(lambda w: w * jnp.nan, state.params))
    ((_, _, top5),) = train.evaluate(spec, data.test, own, broken, (own.test_labels,))
    assert top5 == 0


def test_input_dropout_drops_the_given_part_and_keeps_the_mean(small_trial):
    nested = small_trial(data__num_train=200) | {"regularizer": {"input_dropout": 0.4}}
    nested["batch_size"] = 200
    spec, data, own, _ = prepare(nested)
    images = train.take_images(data.train, own.image_set, jnp.arange(200))
    args = own.hypers, jnp.int32(0), jnp.int32(0)
    thinned = np.asarray(step.training_images(spec, *args, images))
    whole = np.asarray(step.preprocess.whiten(images))
    dropped = (thinned == 0) & (whole != 0)
    # 12,800 values: five standard deviations of their fraction are 0.022.
    assert dropped.sum() / (whole != 0).sum() == pytest.approx(0.4, abs=0.022)
    kept = ~dropped
    np.testing.assert_allclose(thinned[kept], whole[kept] / 0.6, rtol=1e-5, atol=1e-6)
    other = np.asarray(step.training_images(spec, own.hypers, jnp.int32(0), jnp.int32(1), images))
    assert (other != thinned).any(), "new in every step"
