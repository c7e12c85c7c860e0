"""One trial on a streamed set: a chunk of steps at a time, over images that the host has read.

Everything here is pure and written for one network, like `train`. The images, and their order, are
the same for all trials of a group, since reading them costs more than anything else: the order of
an epoch is a function of (data.seed, epoch). The trial's own seed decides the rest: first weights,
augmentation, dropout; and its corruption.seed the labels, by the images' numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rethink_jax import train
from rethink_jax.inputs import on_host
from rethink_jax.step import Scores, Spec, learning_rate, score_batch, train_step


class Partial(NamedTuple):
    """What an epoch under way has added up, in the order of its batches, whatever the chunks.

    loss, hits: float32[], int32[] over the training batches   due: bool[], evaluation is due
    scores: sums over the test batches, by true and by corrupted labels
    """

    loss: jax.Array
    hits: jax.Array
    due: jax.Array
    scores: list[Scores]


class StreamState(NamedTuple):
    """A trial within an epoch."""

    trial: train.TrialState
    partial: Partial


def _nothing(due: jax.Array | bool = False) -> Partial:
    return Partial(jnp.float32(0), jnp.int32(0), jnp.asarray(due), train.no_scores(2))


def train_order(spec: Spec, epoch: int) -> np.ndarray:
    """The images of each training batch of an epoch: int32[S, B], the same for all trials."""
    with on_host():
        return np.asarray(train.data_order(spec, spec.fields["data.seed"], epoch))


def evaluation_order(spec: Spec) -> np.ndarray:
    """The images of each test batch: int32[S, B], one after another; past the last, no images."""
    batch = spec.fields["batch_size"]
    steps = -(-spec.num_test // batch)
    return np.arange(steps * batch, dtype=np.int32).reshape(steps, batch)


def begin(spec: Spec, inputs: train.Inputs) -> StreamState:
    """A trial before its first epoch."""
    return StreamState(train.init_trial(spec, inputs), _nothing())


def train_chunk(
    spec: Spec,
    images_SxBxHxWxC: jax.Array,
    ids_SxB: jax.Array,
    first: jax.Array,
    count: jax.Array,
    inputs: train.Inputs,
    state: StreamState,
) -> StreamState:
    """Some training steps of a running trial. Any other trial stays as it is.

    Args:
      images_SxBxHxWxC: uint8, as stored   ids_SxB: int32, which images these are
      first: int32[], the number in the epoch of the first step
      count: int32[], how many of the S steps are to be done
    """

    def step(i: jax.Array, state: StreamState) -> StreamState:
        trial, partial = state
        images_BxHxWxC = images_SxBxHxWxC[i].astype(jnp.float32) / 255
        carry = (trial.params, trial.model_state, trial.opt_state)
        carry, (loss, hits) = train_step(
            spec, inputs.hypers, carry, trial.epoch, first + i, images_BxHxWxC,
            inputs.labels[ids_SxB[i]],
        )  # fmt: skip
        params, model_state, opt_state = carry
        trial = trial._replace(params=params, model_state=model_state, opt_state=opt_state)
        return StreamState(
            trial, partial._replace(loss=partial.loss + loss, hits=partial.hits + hits)
        )

    running = state.trial.status == train.RUNNING
    return jax.lax.cond(running, lambda s: jax.lax.fori_loop(0, count, step, s), lambda s: s, state)


def end_epoch(spec: Spec, inputs: train.Inputs, state: StreamState) -> StreamState:
    """Closes the training of an epoch: its row of the curve, and whether the trial is done."""

    def close(state: StreamState) -> StreamState:
        trial, partial = state
        steps = spec.steps_per_epoch
        row = {
            "learning_rate": learning_rate(inputs.hypers, trial.epoch),
            "online_loss": partial.loss / steps,
            "online_accuracy": partial.hits / (steps * spec.fields["batch_size"]),
        }
        trial = trial._replace(epoch=trial.epoch + 1)
        trial, row, due = train.judge(spec, inputs, trial, row)
        return StreamState(train.record(trial, row), _nothing(due))

    running = state.trial.status == train.RUNNING
    return jax.lax.cond(running, close, lambda s: s, state)


def evaluate_chunk(
    spec: Spec,
    test_labels_M: jax.Array,
    images_SxBxHxWxC: jax.Array,
    ids_SxB: jax.Array,
    count: jax.Array,
    inputs: train.Inputs,
    state: StreamState,
) -> StreamState:
    """Some batches of the test images, if the trial is to be evaluated; arguments as above."""
    variables = {"params": state.trial.params, **state.trial.model_state}

    def add(i: jax.Array, scores: list[Scores]) -> list[Scores]:
        images_BxHxWxC = images_SxBxHxWxC[i].astype(jnp.float32) / 255
        valid_B = ids_SxB[i] < spec.num_test
        index_B = jnp.minimum(ids_SxB[i], spec.num_test - 1)
        labels = (test_labels_M[index_B], inputs.test_labels[index_B])
        sums = score_batch(spec, variables, images_BxHxWxC, labels, valid_B)
        return jax.tree.map(jnp.add, scores, sums)

    scores = jax.lax.cond(
        state.partial.due,
        lambda s: jax.lax.fori_loop(0, count, add, s),
        lambda s: s,
        state.partial.scores,
    )
    return state._replace(partial=state.partial._replace(scores=scores))


def end_evaluation(spec: Spec, inputs: train.Inputs, state: StreamState) -> StreamState:
    """Closes an evaluation: its columns of the curve, if it was due."""

    def close(state: StreamState) -> StreamState:
        trial, partial = state
        scores = jax.tree.map(lambda total: total / spec.num_test, partial.scores)
        return StreamState(
            train.record(trial, train.after_test(spec, inputs, trial, scores)), _nothing()
        )

    return jax.lax.cond(state.partial.due, close, lambda s: s, state)
