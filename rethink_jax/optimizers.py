"""Update rules as optax chains, built from one trial's (traced) hyper-parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import optax

Hypers = Mapping[str, jax.Array]


def sgd(hypers: Hypers, learning_rate: jax.Array) -> optax.GradientTransformation:
    """Stochastic gradient descent with heavy-ball momentum and coupled weight decay.

    v <- momentum*v + (grad + weight_decay*w);  w <- w - learning_rate*v

    Source: Zhang et al. 2017, Appendix A (momentum 0.9); the decay term is the gradient of
    weight_decay/2*|w|^2 over all parameters. UNSTATED in paper: its coefficient, which parameters.
    """
    return optax.chain(
        optax.add_decayed_weights(hypers["optimizer.weight_decay"]),
        optax.trace(decay=hypers["optimizer.momentum"]),
        optax.scale_by_learning_rate(learning_rate),
    )


OPTIMIZERS: dict[str, Callable[[Hypers, jax.Array], optax.GradientTransformation]] = {"sgd": sgd}
