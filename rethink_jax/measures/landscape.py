"""The training loss around a network: gradients in bounded memory, batches, keys, flat weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from rethink_jax.measures.subject import Subject, in_blocks
from rethink_jax.schema import UserError

# Random numbers of a subject's key, by what they are for. Never renumber: results depend on these.
STARTS, BATCHES, SUBSPACE, SEARCH, NOISE, SIGMA, LANCZOS, TRACE, SPECTRUM, LABELS = range(10)


def key_for(subject: Subject, stream: int) -> jax.Array:
    """The subject's key for one of the streams above.

    Raises:
      UserError: the subject has no key.
    """
    if subject.key is None:
        raise UserError(
            "this measure draws random numbers and the subject has no key; set for example "
            "key = jax.random.key(0)"
        )
    return jax.random.fold_in(subject.key, stream)


def batch_of(subject: Subject, key: jax.Array, size: int | None) -> Subject:
    """The subject on `size` of its images, drawn without replacement; on all if size is None.

    Raises:
      UserError: size is below 1.
    """
    if size is not None and size < 1:
        raise UserError(f"batch_size is {size}; it must be at least 1, or None for all images")
    count = len(subject.labels_N)
    if size is None or size >= count:
        return subject
    chosen_B = jax.random.choice(key, count, (size,), replace=False)
    return dataclasses.replace(
        subject,
        images_NxHxWxC=subject.images_NxHxWxC[chosen_B],
        labels_N=subject.labels_N[chosen_B],
    )


def losses_of(
    subject: Subject, params: Any, images_BxHxWxC: jax.Array, labels_B: jax.Array
) -> jax.Array:
    """Cross-entropy [B] in nats of images at some weights, in evaluation."""
    variables = {**subject.variables, "params": params}
    logits_BxY = subject.model.apply(variables, images_BxHxWxC, False).logits_BxY
    return optax.softmax_cross_entropy_with_integer_labels(logits_BxY, labels_B)


def value_and_gradient(subject: Subject, params: Any) -> tuple[jax.Array, Any]:
    """Mean cross-entropy over all images and its gradient, at other weights.

    As jax.value_and_grad(subject.loss_of), but only some images' activations are in memory.
    """
    count = len(subject.labels_N)

    def total(params: Any, images: jax.Array, labels: jax.Array, real: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(real, losses_of(subject, params, images, labels), 0))

    def add(sums: Any, block: tuple[jax.Array, ...]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, jax.value_and_grad(total)(params, *block)), None

    real_N = jnp.ones(count, bool)
    data = tuple(in_blocks(x) for x in (subject.images_NxHxWxC, subject.labels_N, real_N))
    shapes = jax.eval_shape(jax.value_and_grad(total), params, *(x[0] for x in data))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    sums, _ = jax.lax.scan(add, zeros, data)
    return jax.tree.map(lambda x: x / count, sums)


class Flat(NamedTuple):
    """The loss of a subject as a function of the displacement of all weights, one vector [P].

    weights_P: the trained weights, in the order of jax.flatten_util.ravel_pytree
    params_at, value, value_and_gradient: functions of displacement_P
    """

    weights_P: jax.Array
    params_at: Callable[[jax.Array], Any]
    value: Callable[[jax.Array], jax.Array]
    value_and_gradient: Callable[[jax.Array], tuple[jax.Array, jax.Array]]


def flat(subject: Subject) -> Flat:
    """The loss around the trained weights; batch statistics stay as they are."""
    weights_P, unravel = ravel_pytree(subject.params)

    def params_at(displacement_P: jax.Array) -> Any:
        return unravel(weights_P + displacement_P)

    def both(displacement_P: jax.Array) -> tuple[jax.Array, jax.Array]:
        loss, gradient = value_and_gradient(subject, params_at(displacement_P))
        return loss, ravel_pytree(gradient)[0]

    return Flat(weights_P, params_at, lambda d: subject.loss_of(params_at(d)), both)
