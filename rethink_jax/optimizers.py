"""Update rules as optax chains, built from one trial's (traced) hyper-parameters."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

Hypers = Mapping[str, jax.Array]


def decayed(params: Any, pattern: str) -> Any:
    """Which parameters weight decay is on: a tree of bools in the form of `params`.

    pattern: a regular expression for the whole path of a parameter, as in Dense_0/kernel.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: bool(re.fullmatch(pattern, path_name(path))), params
    )


def path_name(path: Any) -> str:
    """A parameter's place in the tree as text: Dense_0/kernel."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def sgd(
    hypers: Hypers, learning_rate: jax.Array, decay_params: str
) -> optax.GradientTransformation:
    """Stochastic gradient descent with heavy-ball momentum and coupled weight decay.

    v <- momentum*v + (grad + weight_decay*w);  w <- w - learning_rate*v

    Source: Zhang et al. 2017, Appendix A (momentum 0.9); the decay term is the gradient of
    weight_decay/2*|w|^2 over the parameters that `decay_params` matches (see `decayed`).
    UNSTATED in paper: its coefficient, which parameters.
    """
    return optax.chain(
        optax.add_decayed_weights(
            hypers["optimizer.weight_decay"], mask=lambda params: decayed(params, decay_params)
        ),
        optax.trace(decay=hypers["optimizer.momentum"]),
        optax.scale_by_learning_rate(learning_rate),
    )


OPTIMIZERS: dict[str, Callable[[Hypers, jax.Array, str], optax.GradientTransformation]] = {
    "sgd": sgd
}

# Those that leave a weight at 0 whose gradient is always 0, and move the others as if it were not
# there: under these, networks may be padded with zeros (see `widths`).
KEEP_ZEROS = {"sgd"}
