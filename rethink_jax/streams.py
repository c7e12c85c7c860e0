"""Where randomness comes from: named streams of a trial's own seeds.

Every random number of a trial is drawn from `stream(seed, NAME, ...)` with fixed positions (epoch,
step, image), so it depends on the trial's fields and on nothing else.
"""

from __future__ import annotations

import jax

# Never renumber: results depend on these.
INIT, ORDER, AUGMENT, NETWORK, LABELS, TEST_LABELS, PIXELS, TEST_PIXELS, MEASURES = range(9)
REPLACED_LABEL = 9


def stream(seed: jax.Array | int, name: int, *positions: jax.Array | int) -> jax.Array:
    """A fresh key for one stream, and optionally for one position in it (an epoch, a step).

    Threefry, always: the rbg generators draw the whole batch from the first lane's key under vmap.
    """
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), name)
    for position in positions:
        key = jax.random.fold_in(key, position)
    return key
