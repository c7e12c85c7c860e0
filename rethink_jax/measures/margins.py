"""Margins: by how much the network prefers the label to the best other class."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from rethink_jax.measures.subject import Subject, once
from rethink_jax.schema import UserError


@once
def margins(subject: Subject) -> jax.Array:
    """f(x)[y] - max_{y' != y} f(x)[y'] of each image: [N], below 0 where it is misclassified.

    Source: Neyshabur et al. 2017, Section 2.
    """
    logits_NxY = subject.logits_NxY
    own_NxY = jax.nn.one_hot(subject.labels_N, logits_NxY.shape[1], dtype=bool)
    own_N = jnp.sum(jnp.where(own_NxY, logits_NxY, 0), axis=1)
    return own_N - jnp.max(jnp.where(own_NxY, -jnp.inf, logits_NxY), axis=1)


def _literal(margins_N: jax.Array, percent: int) -> jax.Array:
    below = -(-percent * len(margins_N) // 100)
    return jnp.sort(margins_N)[below]


def _interpolated(margins_N: jax.Array, percent: int) -> jax.Array:
    return jnp.percentile(margins_N, percent)


def _kth(margins_N: jax.Array, percent: int) -> jax.Array:
    return jnp.sort(margins_N)[percent * len(margins_N) // 100 - 1]


# What "the margin" of a training set is, given how many percent of the images may be below it.
RULES: dict[str, Callable[[jax.Array, int], jax.Array]] = {
    # The lowest gamma such that ceil(eps m) points have margin below gamma: Neyshabur et al. 2017.
    "literal": _literal,
    # numpy's percentile: the code of Neyshabur et al., generalization-bounds.
    "interpolated": _interpolated,
    # The floor(eps m)-th smallest: torch's kthvalue(m // 10) in the code of Dziugaite et al. 2020.
    "kth": _kth,
}

# By percent, how many images there must be for the order statistic to exist.
_FEWEST: dict[str, Callable[[int], int]] = {
    "literal": lambda percent: -(-100 // (100 - percent)),
    "interpolated": lambda percent: 1,
    "kth": lambda percent: -(-100 // percent),
}


def gamma(subject: Subject, percent: int = 5, rule: str = "literal") -> jax.Array:
    """The margin of the whole set of images: that of the image `percent` from below. Scalar.

    Args:
      percent: 1 to 99; Neyshabur et al. 2017 take 5, Dziugaite et al. 2020 take 10
      rule: of `RULES`

    Raises:
      UserError: too few images for the rule.
    """
    fewest = _FEWEST[rule](percent)
    if len(subject.labels_N) < fewest:
        raise UserError(
            f"the margin at {percent}% by the rule {rule!r} needs at least {fewest} images, and "
            f"there are {len(subject.labels_N)}; measure on more images"
        )
    return RULES[rule](margins(subject), percent)


def log_over_gamma(
    subject: Subject,
    log_value: jax.Array,
    power: int,
    percent: int = 5,
    rule: str = "literal",
) -> jax.Array:
    """log of value / gamma^power; +inf where gamma is not positive, since bounds say nothing then.

    log_value: the natural logarithm of the value, a scalar   percent, rule: as for `gamma`
    """
    margin = gamma(subject, percent, rule)
    log_margin = jnp.log(jnp.where(margin > 0, margin, 1))
    return jnp.where(margin > 0, log_value - power * log_margin, jnp.inf)


MEASURES: dict[str, Callable[[Subject], jax.Array]] = {
    "margin_min": lambda subject: jnp.min(margins(subject)),
    "margin_mean": lambda subject: jnp.mean(margins(subject)),
    **{
        f"margin_{percent}_{rule}": functools.partial(gamma, percent=percent, rule=rule)
        for percent in (5, 10)
        for rule in RULES
    },
}
