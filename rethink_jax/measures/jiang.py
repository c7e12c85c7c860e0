"""The norm and margin measures of Jiang et al. 2019, numbers 20 to 44 of their list.

As computed by Dziugaite et al. 2020 (github.com/nitarshan/robust-generalization-measures), from
whose code the definitions are read: batch normalization folded in, biases left out of norms, the
spectral norm that of the reshaped kernel, squared norms, the 10th percentile of the margins as the
floor(m / 10)-th smallest. That code takes the absolute value of the margin; here a margin that is
not positive gives +inf. Its variants "FFT" are `norm="spectral_circular"`; it takes the size of the
network's image for every layer, here it is that of the layer's own input.

Values of the names that begin with log are natural logarithms; the others are as they are.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from rethink_jax.measures import layers
from rethink_jax.measures.margins import log_over_gamma
from rethink_jax.measures.norms import log_product, norms_D, ratios_D
from rethink_jax.measures.paths import log_path_sum
from rethink_jax.measures.subject import Subject

_RESHAPED = "spectral_reshaped"


def per_sample(value: jax.Array, samples: int, log: bool) -> jax.Array:
    """sqrt(value / m), or its logarithm of a value that is one: how Dziugaite et al. compare.

    Needed where the number of images differs between the networks compared.
    """
    return 0.5 * (value - math.log(samples)) if log else jnp.sqrt(value / samples)


def _over_margin(subject: Subject, log_value: jax.Array | float) -> jax.Array:
    return log_over_gamma(subject, log_value, 2, 10, "kth")


def _parameters(subject: Subject) -> jax.Array:
    kernels = [layer.kernel for layer in layers.folded(subject)]
    return jnp.asarray(sum(kernel.size for kernel in kernels), kernels[0].dtype)


def _log_product(subject: Subject, norm: str, margin: bool) -> jax.Array:
    value = 2 * log_product(subject, norm)
    return _over_margin(subject, value) if margin else value


def _log_sum(subject: Subject, norm: str, margin: bool) -> jax.Array:
    """log of d times the geometric mean of the squared norms."""
    depth = len(layers.places(subject))
    return math.log(depth) + _log_product(subject, norm, margin) / depth


def _fro_over_spec(subject: Subject, norm: str = _RESHAPED, weights: str = "trained") -> jax.Array:
    return jnp.sum(jnp.square(ratios_D(subject, "frobenius", norm, weights)))


def _log_spec_main(subject: Subject, weights: str, norm: str = _RESHAPED) -> jax.Array:
    ratio = _fro_over_spec(subject, norm, weights)
    return _over_margin(subject, 2 * log_product(subject, norm) + jnp.log(ratio))


def _sum_of_squares(subject: Subject, norm: str, weights: str) -> jax.Array:
    return jnp.sum(jnp.square(norms_D(subject, norm, weights)))


def _log_path(subject: Subject, margin: bool) -> jax.Array:
    total = log_path_sum(subject, 2.0, "max", True)
    return _over_margin(subject, total) if margin else total


def _of_spectral(norm: str) -> dict[str, Callable[[Subject], jax.Array]]:
    """The measures that depend on which spectral norm is taken."""
    partial = functools.partial
    return {
        "29_log_spec_init_main": partial(_log_spec_main, weights="moved", norm=norm),
        "30_log_spec_orig_main": partial(_log_spec_main, weights="trained", norm=norm),
        "31_log_prod_of_spec_over_margin": partial(_log_product, norm=norm, margin=True),
        "32_log_prod_of_spec": partial(_log_product, norm=norm, margin=False),
        "33_fro_over_spec": partial(_fro_over_spec, norm=norm),
        "34_log_sum_of_spec_over_margin": partial(_log_sum, norm=norm, margin=True),
        "35_log_sum_of_spec": partial(_log_sum, norm=norm, margin=False),
        "41_dist_spec_init": partial(_sum_of_squares, norm=norm, weights="moved"),
    }


_partial = functools.partial
_OF_ANY: dict[str, Callable[[Subject], jax.Array]] = {
    "20_params": _parameters,
    "22_log_inverse_margin": lambda subject: _over_margin(subject, 0.0),
    "36_log_prod_of_fro_over_margin": _partial(_log_product, norm="frobenius", margin=True),
    "37_log_prod_of_fro": _partial(_log_product, norm="frobenius", margin=False),
    "38_log_sum_of_fro_over_margin": _partial(_log_sum, norm="frobenius", margin=True),
    "39_log_sum_of_fro": _partial(_log_sum, norm="frobenius", margin=False),
    "40_fro_dist": _partial(_sum_of_squares, norm="frobenius", weights="moved"),
    "42_param_norm": _partial(_sum_of_squares, norm="frobenius", weights="trained"),
    "43_log_path_norm_over_margin": _partial(_log_path, margin=True),
    "44_log_path_norm": _partial(_log_path, margin=False),
}

MEASURES: dict[str, Callable[[Subject], jax.Array]] = {
    **{f"jiang_{name}": measure for name, measure in (_OF_ANY | _of_spectral(_RESHAPED)).items()},
    **{
        f"jiang_{name}_circular": measure
        for name, measure in _of_spectral("spectral_circular").items()
    },
}
