"""Classical bounds on the test error, and what they are made of: Rademacher, VC, stability.

All logarithms are natural unless they say otherwise. Bounds are of one's own sample of n examples
drawn independently, and hold with probability 1 - delta. The error of guessing nothing is 1: a
bound of 1 or more says nothing (`is_vacuous`).

Sources: Bartlett and Mendelson 2002 (Rademacher); Bousquet and Elisseeff 2002 (stability);
Bartlett, Harvey, Liaw, Mehrabian 2019, Theorem 7 (VC dimension); constants as in Mohri,
Rostamizadeh, Talwalkar, Foundations of Machine Learning, 2nd edition 2018. Why they hold is said
where they stand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

DELTA = 0.05


def is_vacuous(bound: float) -> bool:
    """Whether a bound on an error says nothing."""
    return bound >= 1


# --- Rademacher complexity ------------------------------------------------------------------------


class Complexity(NamedTuple):
    """An estimate of the empirical Rademacher complexity of classifiers with values -1 and 1.

    draws: of random signs   mean: of the correlations that training reached
    low, high: Student's t interval of what they are a mean of; NaN for one draw. It is about
      training, and supposes that the mean is about normal
    at_least: a lower confidence limit of the class's complexity, which supposes nothing
    """

    draws: int
    mean: float
    low: float
    high: float
    at_least: float


def rademacher(correlation_K: Sequence[float], num_images: int, delta: float = DELTA) -> Complexity:
    """The complexity E_s sup_h (1/n) sum_i s_i h(x_i) of a class, from trained networks.

    For each draw of signs, training finds some h: its correlation is at most the supremum, and
    the mean estimates the complexity from below. The supremum itself changes by at most 2/n with
    one sign, and its mean over K draws of n signs each by at most 2/(nK); by McDiarmid's inequality
    that mean is above its expectation by sqrt(2 ln(1/delta) / (nK)) with probability at most delta.
    Hence `at_least`, whether or not training finds the supremum.

    Args:
      correlation_K: the best of each draw, -1 to 1.
    """
    values_K = np.asarray(correlation_K, np.float64)
    draws, mean = len(values_K), float(values_K.mean())
    half = math.nan
    if draws > 1:
        from scipy import stats

        error = values_K.std(ddof=1) / math.sqrt(draws)
        half = float(stats.t.ppf(1 - delta / 2, draws - 1) * error)
    away = math.sqrt(2 * math.log(1 / delta) / (num_images * draws))
    low, high = (min(max(mean + d, -1.0), 1.0) if draws > 1 else d for d in (-half, half))
    return Complexity(draws, mean, low, high, max(mean - away, 0.0))


def rademacher_bound(
    train_error: float, complexity: float, num_images: int, delta: float = DELTA
) -> float:
    """A bound on the test error of every classifier h of the class.

    With values -1 and 1, the 0-1 loss is (1 - y h(x)) / 2, so the losses have half the complexity
    of the class; symmetrization doubles it again. Replacing one example changes the largest
    deviation by 1/n, and the complexity of the losses, too, which counts twice: McDiarmid's
    inequality for each at delta/2 gives (1 + 2) sqrt(ln(2/delta) / (2n)).

    Source: Mohri et al. 2018, Theorem 3.5.
    """
    return train_error + complexity + 3 * math.sqrt(math.log(2 / delta) / (2 * num_images))


# --- VC dimension ---------------------------------------------------------------------------------


class LayerSize(NamedTuple):
    """A layer with weights: its units (channels times places), its weights and biases."""

    units: int
    params: int


def vc_dimension(layers: Sequence[LayerSize]) -> int:
    """An upper bound on the VC dimension of sign(f) for a network f of one output with ReLU units.

    One layer is a half-space: exactly its number of parameters. With more, by Theorem 7 for p = 1
    (two pieces) and degree d = 1:

      VCdim <= L + Lbar W log2(4 e R log2(2 e R)),
      Lbar W = sum_i W_i, with W_i the parameters of layers 1 to i, R = sum_i i k_i, k_i units.

    Why: on n examples, with the patterns of the layers before fixed, the k_i n inputs of layer i
    are polynomials of degree i in W_i parameters, and have at most 2 (2 e n k_i i / W_i)^W_i sign
    patterns. The product over layers is at least 2^n if n points are shattered. Parameters
    that several units share, as in a convolution, count once: they are variables of polynomials.

    Raises:
      ValueError: several layers with two units or fewer, for which the theorem says nothing.

    Source: Bartlett, Harvey, Liaw, Mehrabian 2019 (JMLR 20, 63), Theorem 7.
    """
    if len(layers) == 1:
        return layers[0].params
    if sum(layer.units for layer in layers) <= 2:
        raise ValueError("the bound needs a network of more than two units")
    exponent = sum(np.cumsum([layer.params for layer in layers]).tolist())
    weighted = sum(i * layer.units for i, layer in enumerate(layers, 1))
    inner = 4 * math.e * weighted * math.log2(2 * math.e * weighted)
    return math.floor(len(layers) + exponent * math.log2(inner))


def log_growth(vc_dim: int, num_images: int) -> float:
    """A bound on the logarithm of the number of labellings of n images by a class.

    n ln 2 if the class may shatter them, else d ln(e n / d).

    Source: Sauer's lemma; Mohri et al. 2018, Corollary 3.18.
    """
    if num_images <= vc_dim:
        return num_images * math.log(2)
    return vc_dim * math.log(math.e * num_images / vc_dim)


def vc_bound(train_error: float, vc_dim: int, num_images: int, delta: float = DELTA) -> float:
    """A bound on the test error of every classifier of a class of some VC dimension.

    The complexity of a class with N labellings of a sample is at most sqrt(2 ln(N) / n) (Massart),
    and at most 1. As that holds for every sample, one deviation of McDiarmid at delta is enough.

    Source: Mohri et al. 2018, Corollary 3.19.
    """
    complexity = min(math.sqrt(2 * log_growth(vc_dim, num_images) / num_images), 1.0)
    return train_error + complexity + math.sqrt(math.log(1 / delta) / (2 * num_images))


# --- stability ------------------------------------------------------------------------------------


def stability_bound(
    train_loss: float, beta: float, num_images: int, largest_loss: float, delta: float = DELTA
) -> float:
    """A bound on the test loss of an algorithm, whose losses change by at most beta.

    Where one of the n examples is replaced, the loss on any example changes by at most beta, and so
    the difference of test and training loss by 2 beta + M/n; its mean is at most beta, as the
    example that is put in is like any other. McDiarmid's inequality gives the rest:

      test loss <= training loss + beta + (2 n beta + M) sqrt(ln(1/delta) / (2n)).

    Bousquet and Elisseeff leave the example out. If that changes losses by at most b, a replacement
    does by at most beta = 2 b, and their bound, 2 b + (4 n b + M) sqrt(...), is this one.

    Args:
      largest_loss: M; losses are from 0 to M.

    Source: Bousquet and Elisseeff 2002, Theorem 12; Mohri et al. 2018, Theorem 14.2.
    """
    deviation = math.sqrt(math.log(1 / delta) / (2 * num_images))
    return train_loss + beta + (2 * num_images * beta + largest_loss) * deviation
