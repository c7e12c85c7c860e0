"""What is measured: one trained network with the images and labels that it is measured on."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax

from rethink_jax import models

# Images per call of the network. A part of what a number is: rounding depends on it.
_IMAGES_AT_ONCE = 500

_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True)
class Subject:
    """One network and what it is measured on. All measures are functions of this, and pure.

    model: (init, apply)   variables: {"params": ..., "batch_stats": ...}, trained
    images_NxHxWxC: float, as the network takes them (cropped, normalized)   labels_N: int32
    initial_variables: as they were before training, or None
    key: for measures that draw random numbers
    """

    model: models.Model
    variables: models.Variables
    images_NxHxWxC: jax.Array
    labels_N: jax.Array
    initial_variables: models.Variables | None = None
    key: jax.Array | None = None

    @property
    def params(self) -> Any:
        return self.variables["params"]

    @functools.cached_property
    def logits_NxY(self) -> jax.Array:
        """Of all images, in evaluation (running batch statistics, no dropout)."""
        return self.logits_of(self.params)

    @functools.cached_property
    def loss(self) -> jax.Array:
        """Mean cross-entropy in nats."""
        return self.loss_of(self.params)

    def logits_of(self, params: Any) -> jax.Array:
        """Logits[N, Y] of all images with other weights."""
        variables = {**self.variables, "params": params}
        blocks = in_blocks(self.images_NxHxWxC)
        logits = jax.lax.map(lambda x: self.model.apply(variables, x, False).logits_BxY, blocks)
        return logits.reshape(-1, logits.shape[-1])[: len(self.images_NxHxWxC)]

    def loss_of(self, params: Any) -> jax.Array:
        """Mean cross-entropy over all images with other weights; batch statistics stay."""
        logits_NxY = self.logits_of(params)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits_NxY, self.labels_N)
        return jnp.mean(losses)


def in_blocks(values_N: jax.Array) -> jax.Array:
    """Values [N, ...] as [blocks, images per block, ...]; the last block ends in zeros.

    As few blocks as can be, and as equal; memory then does not grow with N.
    """
    count = len(values_N)
    blocks = -(-count // _IMAGES_AT_ONCE)
    at_once = -(-count // blocks)
    more = [(0, blocks * at_once - count)] + [(0, 0)] * (values_N.ndim - 1)
    return jnp.pad(values_N, more).reshape(blocks, at_once, *values_N.shape[1:])


def once(function: Callable[..., _Result]) -> Callable[..., _Result]:
    """A function of a subject, and of literals, that is computed once for each subject.

    Measures share what is expensive (singular values, operator norms): the compiler does not merge
    loops. As with all properties of a subject, its arrays belong to the trace that made it.
    """

    signature = inspect.signature(function)

    @functools.wraps(function)
    def remembered(subject: Subject, *choices: Any, **named: Any) -> _Result:
        given = signature.bind(subject, *choices, **named)
        # A default that is written out is the same choice.
        given.apply_defaults()
        done = subject.__dict__.setdefault("_done", {})
        key = (function, *given.args[1:])
        if key not in done:
            done[key] = function(*given.args)
        return done[key]

    return remembered
