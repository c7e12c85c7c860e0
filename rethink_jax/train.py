"""One trial: how it starts, trains for an epoch, is evaluated, and decides that it is done.

Everything here is pure and written for one network. The engine runs many of them at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rethink_jax import models, streams
from rethink_jax.step import (
    Carry,
    Scores,
    Spec,
    learning_rate,
    make_optimizer,
    score_batch,
    train_step,
)
from rethink_jax.streams import stream

# Status of a trial. EMPTY is a lane without one.
EMPTY, RUNNING, FITTED, FINISHED, DIVERGED = range(5)
STATUS_NAMES = ("empty", "running", "fitted", "finished", "diverged")

# Columns of a curve, one row per epoch. Losses are mean cross-entropies in nats. "online" is over
# the epoch's batches as they were trained on; "train" over the training set after the epoch, both
# against the trial's own (corrupted) labels; "test" against the true labels of the test images
# (their pixels corrupted, if training's are), "test_corrupted" against test labels corrupted alike.
CURVE = (
    "learning_rate",
    "online_loss",
    "online_accuracy",
    "train_loss",
    "train_accuracy",
    "train_top5_accuracy",
    "test_loss",
    "test_accuracy",
    "test_top5_accuracy",
    "test_corrupted_loss",
    "test_corrupted_accuracy",
    "param_norm",
    "distance_from_init",
)

# Images per call of the network in evaluation. Fixed, since the rounding of a loss depends on it.
_EVAL_BATCH = 500


class Images(NamedTuple):
    """Every distinct version of a split's images that trials share; a trial points to one of them.

    pixel = codes*scale + offset (see `corruption.ImageSet`).
    codes: uint8[K, N, H, W, C]   scale, offset: float32[K, N]
    """

    codes: jax.Array
    scale: jax.Array
    offset: jax.Array


class Data(NamedTuple):
    """What trials share: images of both splits, true test labels int32[M]."""

    train: Images
    test: Images
    test_labels: jax.Array


class Inputs(NamedTuple):
    """What is a trial's own.

    hypers: {field name: scalar} for every traced hyper-parameter
    labels: int32[N], its training labels    test_labels: int32[M], corrupted at the same rate
    image_set: int32[], which of the shared versions of the images
    first: the network's variables before training, where it is padded (see `padding`); else empty,
      and they are drawn from the trial's seed
    """

    hypers: Mapping[str, jax.Array]
    labels: jax.Array
    test_labels: jax.Array
    image_set: jax.Array
    first: Any = ()


class TrialState(NamedTuple):
    """Where a trial stands after some epochs.

    params, model_state, opt_state: pytrees; model_state is what the network keeps beside weights
    epoch: int32[], epochs done   status: int32[]   fit_epoch: int32[], first fitted epoch, or 0
    curve: float32[E, len(CURVE)], NaN where nothing was measured
    """

    params: Any
    model_state: Any
    opt_state: Any
    epoch: jax.Array
    status: jax.Array
    fit_epoch: jax.Array
    curve: jax.Array


Row = dict[str, jax.Array]  # Part of a row of a curve, {column: value}


def init_variables(spec: Spec, seed: jax.Array) -> models.Variables:
    """The network as it is before training, from the trial's seed alone."""
    return spec.model.init(stream(seed, streams.INIT), jnp.zeros((1, *spec.input_shape)))


def first_variables(spec: Spec, inputs: Inputs) -> models.Variables:
    """The network as it is in the program before training; padded, if the trial's is."""
    return inputs.first or init_variables(spec, inputs.hypers["seed"])


def init_trial(spec: Spec, inputs: Inputs) -> TrialState:
    """A trial before its first epoch."""
    variables = first_variables(spec, inputs)
    optimizer = make_optimizer(spec, inputs.hypers, jnp.float32(0))
    return TrialState(
        params=variables["params"],
        model_state={k: v for k, v in variables.items() if k != "params"},
        opt_state=optimizer.init(variables["params"]),
        epoch=jnp.int32(0),
        status=jnp.int32(RUNNING),
        fit_epoch=jnp.int32(0),
        curve=jnp.full((spec.fields["stop.max_epochs"], len(CURVE)), jnp.nan),
    )


def advance(spec: Spec, data: Data, inputs: Inputs, state: TrialState) -> TrialState:
    """One epoch of a running trial: train, evaluate, decide. Any other trial stays as it is."""
    return jax.lax.cond(
        state.status == RUNNING, lambda s: _epoch(spec, data, inputs, s), lambda s: s, state
    )


def _epoch(spec: Spec, data: Data, inputs: Inputs, state: TrialState) -> TrialState:
    row = {"learning_rate": learning_rate(inputs.hypers, state.epoch)}
    state, row["online_loss"], row["online_accuracy"] = train_epoch(spec, data, inputs, state)
    full = spec.fields["stop.measured_on"] == "full"
    if full:
        row |= evaluate_train(spec, data, inputs, state)
    state, row, due = judge(spec, inputs, state, row)

    def measure(_: None) -> Row:
        return _evaluate_rest(spec, data, inputs, state, with_train=not full)

    skipped = jax.tree.map(lambda a: jnp.full(a.shape, jnp.nan), jax.eval_shape(measure, None))
    row |= jax.lax.cond(due, measure, lambda _: skipped, None)
    return record(state, row)


def judge(
    spec: Spec, inputs: Inputs, state: TrialState, row: Row
) -> tuple[TrialState, Row, jax.Array]:
    """Decides, after an epoch, whether the trial is fitted, done, and to be evaluated.

    Args:
      state: already trained for the epoch, its epochs counted.
      row: what is known of the epoch; at least the columns that the stop rule is measured on.

    Returns:
      the state with its status, the row with the norm of the weights, whether to evaluate.
    """
    row = row | {"param_norm": optax.tree.norm(state.params)}
    finite = jnp.isfinite(row["online_loss"]) & jnp.isfinite(row["param_norm"])
    on = "train" if spec.fields["stop.measured_on"] == "full" else "online"
    fits = finite & _fits(inputs.hypers, row, on)
    fit_epoch = jnp.where(fits & (state.fit_epoch == 0), state.epoch, state.fit_epoch)
    last = state.epoch >= spec.fields["stop.max_epochs"]
    done = (fits & inputs.hypers["stop.when_fitted"]) | last | ~finite
    ended = jnp.where(finite, jnp.where(fit_epoch > 0, FITTED, FINISHED), DIVERGED)
    status = jnp.where(done, ended, RUNNING).astype(jnp.int32)
    due = (state.epoch % spec.evaluate_every == 0) | done
    return state._replace(status=status, fit_epoch=fit_epoch), row, due


def record(state: TrialState, row: Row) -> TrialState:
    """Writes columns of the newest epoch into the curve; the others stay as they are."""
    columns = jnp.array([i for i, name in enumerate(CURVE) if name in row])
    values = jnp.stack([row[name] for name in CURVE if name in row])
    return state._replace(curve=state.curve.at[state.epoch - 1, columns].set(values))


def _fits(hypers: Mapping[str, jax.Array], row: Mapping[str, jax.Array], on: str) -> jax.Array:
    """Whether a stop threshold is reached; `on` names the columns that it is measured by."""
    below = row[f"{on}_loss"] < hypers["stop.train_loss"]
    return below | (row[f"{on}_accuracy"] >= hypers["stop.train_accuracy"])


def _evaluate_rest(
    spec: Spec, data: Data, inputs: Inputs, state: TrialState, with_train: bool
) -> Row:
    row: Row = {}
    if with_train:
        row |= evaluate_train(spec, data, inputs, state)
    labels = (data.test_labels, inputs.test_labels)
    scores = evaluate(spec, data.test, inputs, state, labels)
    return row | after_test(spec, inputs, state, scores)


def after_test(spec: Spec, inputs: Inputs, state: TrialState, scores: Sequence[Scores]) -> Row:
    """The columns of an evaluation, from the scores by true and by corrupted test labels."""
    clean, corrupted = scores
    row = named_scores("test", clean) | named_scores("test_corrupted", corrupted)
    del row["test_corrupted_top5_accuracy"]
    first = first_variables(spec, inputs)["params"]
    row["distance_from_init"] = optax.tree.norm(jax.tree.map(jnp.subtract, state.params, first))
    return row


def data_order(spec: Spec, seed: jax.Array, epoch: jax.Array) -> jax.Array:
    """The images of each step of an epoch: int32[S, B]; what is left over is not used."""
    key = stream(seed, streams.ORDER, epoch)
    # Sorting one random number per image. Two 32-bit numbers rarely tie; their order then is fixed.
    order_N = jnp.argsort(jax.random.bits(key, (spec.num_train,)))
    steps, batch = spec.steps_per_epoch, spec.fields["batch_size"]
    return order_N[: steps * batch].reshape(steps, batch)


def take_images(images: Images, image_set: jax.Array, index_B: jax.Array) -> jax.Array:
    """Images of one set by index, as float32[B, H, W, C], in units of 255 grey levels."""
    codes_BxHxWxC = images.codes[image_set, index_B].astype(jnp.float32)
    scale_B, offset_B = images.scale[image_set, index_B], images.offset[image_set, index_B]
    return (codes_BxHxWxC * _per_image(scale_B) + _per_image(offset_B)) / 255


def _per_image(values_B: jax.Array) -> jax.Array:
    return values_B[:, None, None, None]


def train_epoch(
    spec: Spec, data: Data, inputs: Inputs, state: TrialState
) -> tuple[TrialState, jax.Array, jax.Array]:
    """One pass over the training images in random order.

    Returns:
      the state after it, and the mean loss and accuracy over its batches, each before its step.
    """
    order_SxB = data_order(spec, inputs.hypers["seed"], state.epoch)

    def step(carry: Carry, xs: tuple[jax.Array, jax.Array]) -> tuple[Carry, Any]:
        step_index, index_B = xs
        images_BxHxWxC = take_images(data.train, inputs.image_set, index_B)
        labels_B = inputs.labels[index_B]
        return train_step(
            spec, inputs.hypers, carry, state.epoch, step_index, images_BxHxWxC, labels_B
        )

    carry = (state.params, state.model_state, state.opt_state)
    carry, (loss_S, hits_S) = jax.lax.scan(step, carry, (jnp.arange(len(order_SxB)), order_SxB))
    params, model_state, opt_state = carry
    state = state._replace(
        params=params, model_state=model_state, opt_state=opt_state, epoch=state.epoch + 1
    )
    return state, loss_S.mean(), hits_S.sum() / order_SxB.size


def evaluate_train(spec: Spec, data: Data, inputs: Inputs, state: TrialState) -> Row:
    """Scores on the whole training set, central crops, the trial's own labels, as columns."""
    scores = evaluate(spec, data.train, inputs, state, (inputs.labels,))[0]
    return named_scores("train", scores)


def named_scores(split: str, scores: Scores) -> Row:
    """Scores as columns of a curve."""
    return {f"{split}_{name}": value for name, value in scores._asdict().items()}


def no_scores(labellings: int) -> list[Scores]:
    """Sums of scores before the first batch."""
    return [Scores(jnp.float32(0), jnp.int32(0), jnp.int32(0))] * labellings


def evaluate(
    spec: Spec, images: Images, inputs: Inputs, state: TrialState, labels: tuple[jax.Array, ...]
) -> list[Scores]:
    """Scores over a split, for each of several labellings int32[M] of it."""
    count = images.codes.shape[1]
    batch = min(_EVAL_BATCH, count)
    starts = jnp.arange(-(-count // batch)) * batch
    variables = {"params": state.params, **state.model_state}

    def add(totals: Any, start: jax.Array) -> tuple[Any, None]:
        index_B = start + jnp.arange(batch)
        valid_B, index_B = index_B < count, jnp.minimum(index_B, count - 1)
        images_BxHxWxC = take_images(images, inputs.image_set, index_B)
        own = tuple(labels_M[index_B] for labels_M in labels)
        sums = score_batch(spec, variables, images_BxHxWxC, own, valid_B)
        return jax.tree.map(jnp.add, totals, sums), None

    totals, _ = jax.lax.scan(add, no_scores(len(labels)), starts)
    return jax.tree.map(lambda total: total / count, totals)
