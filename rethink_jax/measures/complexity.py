"""Capacity measures made of norms and margins, as the papers and their authors' code have them.

All of them are natural logarithms of the quantity in the paper, which overflows for deep networks;
the few that are plain sums are said to be so. Where the margin is not positive they are +inf, since
the bounds say nothing then. The subject's images are the training set: m is their number.

Neyshabur et al. 2017 write their measures for fully connected networks without biases. UNSTATED in
paper, for convolutions: which spectral norm (default: that of the reshaped kernel, as in the code
of its authors), and whether h_i counts channels (default) or units. For a network with branches the
depth d is its number of layers, which no path has.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from rethink_jax.measures import layers
from rethink_jax.measures.margins import log_over_gamma
from rethink_jax.measures.norms import log_product, ratios_D
from rethink_jax.measures.paths import log_path_sum
from rethink_jax.measures.subject import Subject
from rethink_jax.schema import UserError

# --- Neyshabur, Bhojanapalli, McAllester, Srebro 2017 ---------------------------------------------


def neyshabur_l2(subject: Subject, factors: bool = True) -> jax.Array:
    """log of prod_i 4 ||W_i||_F^2 / gamma^2; without `factors` no 4, as plotted. Scalar.

    Source: Neyshabur et al. 2017, Equation 1, and Section 3 for what is plotted.
    """
    depth_factor = len(layers.places(subject)) * math.log(4) * factors
    return log_over_gamma(subject, 2 * log_product(subject, "frobenius") + depth_factor, 2)


def neyshabur_spectral(
    subject: Subject,
    factors: bool = True,
    norm: str = "spectral_reshaped",
    widths: str = "channels",
) -> jax.Array:
    """log of prod_i h_i ||W_i||_2^2 / gamma^2; without `factors` no h_i, as plotted. Scalar.

    Args:
      norm: "spectral_reshaped", "spectral_exact" or "spectral_circular"
      widths: what h_i counts, "channels" or "units" (see `layers.widths_D`)

    Source: Neyshabur et al. 2017, Equation 4.
    """
    width_factor = _log_widths(subject, widths) if factors else 0.0
    return log_over_gamma(subject, 2 * log_product(subject, norm) + width_factor, 2)


def neyshabur_l1_path(subject: Subject, factors: bool = True, maxima: str = "max") -> jax.Array:
    """log of (sum over paths of prod_i |2 w|)^2 / gamma^2; without `factors` no 2. Scalar.

    Args:
      maxima: "max" or "sum" (see `paths.log_path_sum`)

    Source: Neyshabur et al. 2017, Equation 2.
    """
    depth_factor = len(layers.places(subject)) * math.log(2) * factors
    return log_over_gamma(subject, 2 * (log_path_sum(subject, 1.0, maxima) + depth_factor), 2)


def neyshabur_l2_path(
    subject: Subject, factors: bool = True, maxima: str = "max", widths: str = "channels"
) -> jax.Array:
    """log of sum over paths of prod_i 4 h_i w^2 / gamma^2; without `factors` no 4 h_i. Scalar.

    Source: Neyshabur et al. 2017, Equation 3.
    """
    depth_factor = len(layers.places(subject)) * math.log(4) + _log_widths(subject, widths)
    return log_over_gamma(subject, log_path_sum(subject, 2.0, maxima) + depth_factor * factors, 2)


def _log_widths(subject: Subject, counted: str) -> float:
    return sum(math.log(width) for width in layers.widths_D(subject, counted))


_NEYSHABUR = {
    "neyshabur_l2": neyshabur_l2,
    "neyshabur_l1_path": neyshabur_l1_path,
    "neyshabur_l2_path": neyshabur_l2_path,
    "neyshabur_l2_path_units": functools.partial(neyshabur_l2_path, widths="units"),
    "neyshabur_l1_path_sumpool": functools.partial(neyshabur_l1_path, maxima="sum"),
    "neyshabur_l2_path_sumpool": functools.partial(neyshabur_l2_path, maxima="sum"),
    "neyshabur_spectral": neyshabur_spectral,
    "neyshabur_spectral_exact": functools.partial(neyshabur_spectral, norm="spectral_exact"),
    "neyshabur_spectral_exact_units": functools.partial(
        neyshabur_spectral, norm="spectral_exact", widths="units"
    ),
    "neyshabur_spectral_circular": functools.partial(neyshabur_spectral, norm="spectral_circular"),
}

# --- Bartlett, Foster, Telgarsky 2017 -------------------------------------------------------------


def spectral_complexity(
    subject: Subject, norm: str = "spectral_reshaped", reference: str = "initial"
) -> jax.Array:
    """log of prod_i ||W_i|| (sum_i (||W_i - M_i||_{2,1} / ||W_i||)^(2/3))^(3/2). Scalar.

    Args:
      norm: the spectral norm, as in `neyshabur_spectral`
      reference: M_i: the "initial" weights (as generalization-bounds has it), or "zero"

    Source: Bartlett et al. 2017, Equation 1.2, with Lipschitz constants of 1.
    """
    weights = {"initial": "moved", "zero": "trained"}[reference]
    shares_D = ratios_D(subject, "l2_1", norm, weights) ** (2 / 3)
    return log_product(subject, norm) + 1.5 * jnp.log(jnp.sum(shares_D))


def spectral_margin(subject: Subject, norm: str = "spectral_reshaped") -> jax.Array:
    """log of gamma / prod_i ||W_i||, the margin per Lipschitz constant. Scalar.

    -inf where the margin is not positive.
    """
    return -log_over_gamma(subject, log_product(subject, norm), 1)


def bartlett_margin(
    subject: Subject, norm: str = "spectral_reshaped", reference: str = "initial"
) -> jax.Array:
    """log of gamma / (R ||X||_F / m), R the spectral complexity. Scalar.

    -inf where the margin is not positive.

    Source: the normalized margin of Bartlett et al. 2017, Section 1 (the factor as remembered, not
    read again); gamma is the order statistic of Neyshabur et al. 2017.
    """
    # Divided by the largest value, so that squares do not overflow.
    images = subject.images_NxHxWxC
    largest = jnp.max(jnp.abs(images))
    largest = jnp.where(largest > 0, largest, 1)
    log_size = jnp.log(largest) + 0.5 * jnp.log(jnp.sum(jnp.square(images / largest)))
    complexity = spectral_complexity(subject, norm, reference)
    return -log_over_gamma(subject, complexity + log_size - math.log(len(subject.labels_N)), 1)


_BARTLETT = {
    "spectral_complexity": spectral_complexity,
    "spectral_complexity_exact": functools.partial(spectral_complexity, norm="spectral_exact"),
    "spectral_margin": spectral_margin,
    "spectral_margin_exact": functools.partial(spectral_margin, norm="spectral_exact"),
    "bartlett_margin": bartlett_margin,
    "bartlett_margin_exact": functools.partial(bartlett_margin, norm="spectral_exact"),
}

# --- the code of Neyshabur et al., github.com/bneyshabur/generalization-bounds --------------------


def _over_authors_margin(subject: Subject, log_value: jax.Array) -> jax.Array:
    """Divided once by numpy's 5th percentile of the margins."""
    return log_over_gamma(subject, log_value, 1, 5, "interpolated")


def authors_norm(subject: Subject, name: str) -> jax.Array:
    """log of the product of a norm over all layers, not squared, by the margin once. Scalar.

    The margin is numpy's 5th percentile. name: of `norms.NORMS`
    """
    return _over_authors_margin(subject, log_product(subject, name))


def authors_path(subject: Subject, p: float) -> jax.Array:
    """log of the path norm (rooted, biases included, max-pool kept) by the margin once. Scalar."""
    return _over_authors_margin(subject, log_path_sum(subject, p, "max", True) / p)


def authors_product_bound(subject: Subject, name: str, root: int = 2) -> jax.Array:
    """log of sqrt(d + ln(input values)) * norm / m^(1/root), norm as `authors_norm`. Scalar."""
    depth, values = len(layers.places(subject)), math.prod(subject.images_NxHxWxC.shape[1:])
    alpha = 0.5 * math.log(depth + math.log(values))
    return alpha + authors_norm(subject, name) - math.log(len(subject.labels_N)) / root


def authors_spec_l21_bound(subject: Subject) -> jax.Array:
    """log of ln(m) ln(parameters) * Bartlett's complexity / (gamma sqrt(m)). Scalar.

    Parameters are weights and biases after folding.

    Raises:
      UserError: a single image, whose ln(m) is 0.
    """
    samples = len(subject.labels_N)
    if samples < 2:
        raise UserError(
            "this bound needs at least 2 images, and there is 1; measure on more images"
        )
    biases = sum(0 if layer.bias is None else layer.bias.size for layer in layers.folded(subject))
    parameters = sum(layer.kernel.size for layer in layers.folded(subject)) + biases
    beta = math.log(math.log(samples) * math.log(parameters))
    bound = beta + spectral_complexity(subject) - 0.5 * math.log(samples)
    return _over_authors_margin(subject, bound)


def authors_spec_fro_bound(subject: Subject) -> jax.Array:
    """log of d * spectral norm * sqrt(sum_i h_i ||W_i - W0_i||_F^2 / ||W_i||^2) / sqrt(m). Scalar.

    h_i counts output channels; the spectral norm is `authors_norm`.
    """
    widths_D = jnp.asarray(layers.widths_D(subject), subject.images_NxHxWxC.dtype)
    squares_D = jnp.square(ratios_D(subject, "frobenius", "spectral_reshaped", "moved"))
    ratio = 0.5 * jnp.log(jnp.sum(widths_D * squares_D))
    depth, samples = len(layers.places(subject)), len(subject.labels_N)
    spectral = authors_norm(subject, "spectral_reshaped")
    return math.log(depth) + spectral + ratio - 0.5 * math.log(samples)


_AUTHORS = {
    **{
        f"authors_{name}": functools.partial(authors_norm, name=name)
        for name in (
            "l1_inf",
            "frobenius",
            "l3_1.5",
            "spectral_reshaped",
            "schatten_1.5",
            "nuclear",
        )
    },
    **{f"authors_path_l{p:g}": functools.partial(authors_path, p=p) for p in (1.0, 1.5, 2.0)},
    "authors_bound_l1_inf": functools.partial(authors_product_bound, name="l1_inf"),
    "authors_bound_frobenius": functools.partial(authors_product_bound, name="frobenius"),
    "authors_bound_l3_1.5": functools.partial(authors_product_bound, name="l3_1.5", root=3),
    "authors_bound_spec_l2_1": authors_spec_l21_bound,
    "authors_bound_spec_frobenius": authors_spec_fro_bound,
}

MEASURES: dict[str, Callable[[Subject], jax.Array]] = {**_NEYSHABUR, **_BARTLETT, **_AUTHORS}
MEASURES |= {
    f"{name}_plotted": functools.partial(MEASURES[name], factors=False)
    for name in _NEYSHABUR
    if not name.endswith("_units")
}
