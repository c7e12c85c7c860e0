"""Capacity measures of trained networks: numbers computed from a network and the images it saw.

A new measure is a pure function of a `Subject` that gives one number, and one entry in the
`MEASURES` of its family's module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rethink_jax import models
from rethink_jax.measures import complexity, jiang, margins, norms, paths
from rethink_jax.measures.subject import Subject
from rethink_jax.schema import UserError, suggest

Measure = Callable[[Subject], jax.Array]

# Measures of one family share most of their work, and are computed by one program.
FAMILIES: dict[str, dict[str, Measure]] = {
    "margins": margins.MEASURES,
    "norms": norms.MEASURES,
    "paths": paths.MEASURES,
    "complexity": complexity.MEASURES,
    "jiang": jiang.MEASURES,
}
MEASURES: dict[str, Measure] = {k: v for family in FAMILIES.values() for k, v in family.items()}


def select(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The measures of each family that are asked for; "all", and the name of a family, are several.

    Raises:
      UserError: no such measure.
    """
    asked: dict[str, None] = {}
    known = ["all", *FAMILIES, *MEASURES]
    for name in names:
        if name not in known:
            raise UserError(
                f"there is no measure {name!r}{suggest(name, known)}; there are the families "
                f"{', '.join(FAMILIES)}, and all; --list shows every measure"
            )
        asked |= dict.fromkeys(MEASURES if name == "all" else FAMILIES.get(name, (name,)))
    chosen = {f: tuple(n for n in own if n in asked) for f, own in FAMILIES.items()}
    return {family: own for family, own in chosen.items() if own}


def refusals(subject: Subject, names: Sequence[str]) -> dict[str, str]:
    """Which of these measures cannot be computed of such a network, and why. Nothing is computed.

    subject: its arrays may be jax.ShapeDtypeStruct.
    """
    refused = {}
    arrays = subject.variables, subject.initial_variables, subject.images_NxHxWxC, subject.labels_N
    for name in names:
        try:
            jax.eval_shape(
                lambda v, v0, x, y, name=name: MEASURES[name](
                    Subject(subject.model, v, x, y, v0, subject.key)
                ),
                *arrays,
            )
        except UserError as error:
            refused[name] = str(error)
    return refused


def compute(
    model: models.Model,
    variables: models.Variables,
    images: Any,
    labels: Any,
    initial_variables: models.Variables | None = None,
    names: Iterable[str] = ("all",),
) -> dict[str, float]:
    """Measures of one network.

    Args:
      images: float[N, H, W, C] as the network takes them (cropped, normalized)   labels: int[N]
      initial_variables: as before training; what needs them is left out of a family without them.
      names: of measures or families.

    Returns:
      {measure: value}; a value may be infinite, as a norm by a margin that is not positive is.

    Raises:
      UserError: no such measure, or one that is asked for by its own name cannot be computed.
    """
    names = tuple(names)
    images, labels = jnp.asarray(images), jnp.asarray(labels, jnp.int32)
    subject = Subject(model, variables, images, labels, initial_variables)
    wanted = [name for own in select(names).values() for name in own]
    refused = refusals(subject, wanted)
    for name in names:
        if name in refused:
            raise UserError(f"{name}: {refused[name]}")
    possible = tuple(name for name in wanted if name not in refused)

    def all_of(v: Any, v0: Any, x: jax.Array, y: jax.Array) -> dict[str, jax.Array]:
        one = Subject(model, v, x, y, v0)
        return {name: MEASURES[name](one) for name in possible}

    found = jax.jit(all_of)(variables, initial_variables, images, labels)
    return {name: float(np.asarray(value)) for name, value in found.items()}
