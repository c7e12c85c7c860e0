"""Flatness: the noise in the weights at which training accuracy drops, and PAC-Bayes with it.

Numbers 48, 49, 53, 56, 57 and 61 of Jiang et al. 2019, as Dziugaite et al. 2020 compute them
(github.com/nitarshan/robust-generalization-measures), but for the noise: that code hands sigma^2 to
a function that takes a standard deviation, while its bounds use sigma as the deviation. Here the
noise has deviation sigma; `Flatness.mistake` has theirs. They fold batch normalization into the
weights before; here the noise is on the weights as they are trained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from rethink_jax.measures import landscape
from rethink_jax.measures.pac_bayes import weights_from
from rethink_jax.measures.subject import Subject, once
from rethink_jax.schema import UserError

# What noise has to change by how much.
CHANGES = ("accuracy", "loss")


@dataclasses.dataclass(frozen=True)
class Flatness:
    """A search for the noise of a given effect. The numbers are those of the code named above.

    magnitude: the deviation of weight i is sqrt(sigma^2 w_i^2 + epsilon^2) in place of sigma
    change: "accuracy" (its drop, a fraction) or "loss" (its growth, nats)   target: of the change
    tolerance: the search ends when the mean change is so near the target
    highest: the search begins between 0 and this sigma   steps: halvings   draws: for each of them.
      The draws are the same at every step, so that the change grows steadily with sigma; in the
      code they are new each time
    mistake: the noise has the square of the deviation where the deviation belongs
    """

    magnitude: bool = False
    change: str = "accuracy"
    target: float = 0.1
    tolerance: float = 0.01
    highest: float = 2.0
    steps: int = 15
    draws: int = 10
    epsilon: float = 1e-3
    mistake: bool = False

    def __post_init__(self) -> None:
        if self.change not in CHANGES:
            raise UserError(f"change is {self.change!r}; it must be one of {', '.join(CHANGES)}")
        for name in ("target", "tolerance", "highest", "steps", "draws"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)!r}; it must be above 0")


PLAIN = Flatness()
MAGNITUDE = Flatness(magnitude=True)


class Found(NamedTuple):
    """The noise found and the mean change that it makes.

    reached: the change is within the tolerance, or jumps over the target at this sigma
    """

    sigma: jax.Array
    change: jax.Array
    reached: jax.Array


def deviations_P(weights_P: jax.Array, sigma: jax.Array | float, how: Flatness) -> jax.Array:
    """The deviation of the noise on each weight."""
    if how.magnitude:
        variances_P = jnp.square(sigma * weights_P) + how.epsilon**2
    else:
        variances_P = jnp.full_like(weights_P, jnp.square(sigma))
    return variances_P if how.mistake else jnp.sqrt(variances_P)


def sigma_of(subject: Subject, how: Flatness = PLAIN, rows_KxP: jax.Array | None = None) -> Found:
    """The noise whose mean effect on the training set is the target, by bisection.

    It is not found if even the highest sigma has less effect: then `reached` is False, and sigma
    is near the highest, as in the code.

    rows_KxP: the standard normal rows to take, in the order of ravel_pytree; None: drawn with the
      subject's key

    Source: Jiang et al. 2019, Appendix; Dziugaite et al. 2020, code.
    """
    weights_P, unravel = ravel_pytree(subject.params)
    if rows_KxP is None:
        key, shape = landscape.key_for(subject, landscape.SIGMA), (how.draws, weights_P.size)
    else:
        key, shape = None, rows_KxP.shape

    def effect(logits_NxY: jax.Array) -> jax.Array:
        if how.change == "accuracy":
            return -jnp.mean(jnp.argmax(logits_NxY, 1) == subject.labels_N, dtype=weights_P.dtype)
        losses_N = optax.softmax_cross_entropy_with_integer_labels(logits_NxY, subject.labels_N)
        return jnp.mean(losses_N)

    without = effect(subject.logits_NxY)

    def change(sigma: jax.Array) -> jax.Array:
        def of_draw(number: jax.Array) -> jax.Array:
            if key is None:
                row_P = rows_KxP[number]
            else:  # Made again each time: all rows together may be larger than the network's data.
                row_key = jax.random.fold_in(key, number)
                row_P = jax.random.normal(row_key, weights_P.shape, weights_P.dtype)
            moved = unravel(weights_P + deviations_P(weights_P, sigma, how) * row_P)
            return effect(subject.logits_of(moved)) - without

        return jnp.mean(jax.lax.map(of_draw, jnp.arange(shape[0])))

    def halve(bounds: tuple[Any, ...], _: None) -> tuple[tuple[Any, ...], None]:
        low, high, found = bounds
        sigma = (low + high) / 2
        now = change(sigma)
        reached = jnp.abs(now - how.target) < how.tolerance
        # Not a number: the noise is so large that the network overflows.
        too_much = ~(now <= how.target)
        low, high = jnp.where(too_much, low, sigma), jnp.where(too_much, sigma, high)
        found = jax.tree.map(
            lambda old, new: jnp.where(found.reached, old, new), found, Found(sigma, now, reached)
        )
        return (low, high, found), None

    zero = jnp.zeros((), weights_P.dtype)
    start = (zero, zero + how.highest, Found(zero, zero, jnp.zeros((), bool)))
    (_, high, found), _ = jax.lax.scan(halve, start, length=how.steps)
    return found._replace(reached=found.reached | (high < how.highest))


def pac_bayes(
    subject: Subject, sigma: jax.Array, about: str = "initial", counted: str = "kernels"
) -> jax.Array:
    """||w - w0||^2 / (4 sigma^2) + log(m / sigma) + 10, or with ||w||^2 about the "origin".

    counted: "kernels", weights only as in the code; "all", what the KL of the noise counts

    Source: Jiang et al. 2019, equations 48 and 49, as coded by Dziugaite et al. 2020.
    """
    squares = jnp.sum(jnp.square(weights_from(subject, about, counted)))
    return squares / (4 * jnp.square(sigma)) + jnp.log(len(subject.labels_N) / sigma) + 10


def pac_bayes_magnitude(
    subject: Subject,
    sigma: jax.Array,
    about: str = "initial",
    counted: str = "kernels",
    epsilon: float = MAGNITUDE.epsilon,
) -> jax.Array:
    """1/4 sum_i log((e^2 + (s^2 + 1) ||r||^2 / P) / (e^2 + s^2 (w_i - w0_i)^2)) + log(m / s) + 10.

    s: sigma, of the magnitude-aware noise   e: epsilon   P: number of weights counted
    r: w - w0 about "initial", w about the "origin". The denominator is of w - w0 in both, as coded.

    Source: Jiang et al. 2019, equations 56 and 57, as coded by Dziugaite et al. 2020.
    """
    reference_P = weights_from(subject, about, counted)
    mean_square = jnp.mean(jnp.square(reference_P))
    above = epsilon**2 + (jnp.square(sigma) + 1) * mean_square
    below_P = epsilon**2 + jnp.square(sigma * weights_from(subject, "initial", counted))
    total = jnp.sum(jnp.log(above / below_P)) / 4
    return total + jnp.log(len(subject.labels_N) / sigma) + 10


_found = once(sigma_of)


def _sigma(subject: Subject, how: Flatness) -> jax.Array:
    """The noise, NaN where it is not found: the measures would mean nothing."""
    found = _found(subject, how)
    return jnp.where(found.reached, found.sigma, jnp.nan)


MEASURES: dict[str, Callable[[Subject], jax.Array]] = {
    "sigma": lambda s: _sigma(s, PLAIN),
    "sigma_accuracy_drop": lambda s: _found(s, PLAIN).change,
    "sigma_magnitude": lambda s: _sigma(s, MAGNITUDE),
    "sigma_magnitude_accuracy_drop": lambda s: _found(s, MAGNITUDE).change,
    "jiang_48_pac_bayes_init": lambda s: pac_bayes(s, _sigma(s, PLAIN), "initial"),
    "jiang_49_pac_bayes_orig": lambda s: pac_bayes(s, _sigma(s, PLAIN), "origin"),
    "jiang_53_flatness": lambda s: 1 / jnp.square(_sigma(s, PLAIN)),
    "jiang_56_pac_bayes_mag_init": lambda s: pac_bayes_magnitude(
        s, _sigma(s, MAGNITUDE), "initial"
    ),
    "jiang_57_pac_bayes_mag_orig": lambda s: pac_bayes_magnitude(s, _sigma(s, MAGNITUDE), "origin"),
    "jiang_61_mag_flatness": lambda s: 1 / jnp.square(_sigma(s, MAGNITUDE)),
}
