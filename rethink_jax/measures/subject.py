"""What is measured: one trained network with the images and labels that it is measured on."""

from __future__ import annotations

import dataclasses
import functools
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
        count = len(self.images_NxHxWxC)
        at_once = max(n for n in range(1, min(count, _IMAGES_AT_ONCE) + 1) if count % n == 0)
        blocks = self.images_NxHxWxC.reshape(-1, at_once, *self.images_NxHxWxC.shape[1:])
        variables = {**self.variables, "params": params}
        logits = jax.lax.map(lambda x: self.model.apply(variables, x, False).logits_BxY, blocks)
        return logits.reshape(count, -1)

    def loss_of(self, params: Any) -> jax.Array:
        """Mean cross-entropy over all images with other weights; batch statistics stay."""
        logits_NxY = self.logits_of(params)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits_NxY, self.labels_N)
        return jnp.mean(losses)


def once(function: Callable[..., _Result]) -> Callable[..., _Result]:
    """A function of a subject, and of literals, that is computed once for each subject.

    Measures share what is expensive (singular values, operator norms): the compiler does not merge
    loops. As with all properties of a subject, its arrays belong to the trace that made it.
    """

    @functools.wraps(function)
    def remembered(subject: Subject, *choices: Any) -> _Result:
        done = subject.__dict__.setdefault("_done", {})
        if (function, choices) not in done:
            done[function, choices] = function(subject, *choices)
        return done[function, choices]

    return remembered
