"""Capacity measures of trained networks: numbers computed from a network and the images it saw.

A new measure is a pure function of a `Subject` that gives one number, and one entry in the
`MEASURES` of its family's module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rethink_jax import models, streams
from rethink_jax.measures import (
    complexity,
    curvature,
    flatness,
    jiang,
    margins,
    norms,
    pac_bayes,
    paths,
    sharpness,
)
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
    "sharpness": sharpness.MEASURES,
    "pac_bayes": pac_bayes.MEASURES,
    "flatness": flatness.MEASURES,
    "curvature": curvature.MEASURES,
}


class _Every(Mapping[str, Measure]):
    """The measures of all families, also of those that a user has added."""

    def __getitem__(self, name: str) -> Measure:
        for family in FAMILIES.values():
            if name in family:
                return family[name]
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (name for family in FAMILIES.values() for name in family)

    def __len__(self) -> int:
        return sum(map(len, FAMILIES.values()))


MEASURES = _Every()
# Names of several families and measures. What is not in "one_pass" draws random numbers and goes
# over the images hundreds to thousands of times; "paper" is what the report's figures show.
_ONE_PASS = ("margins", "norms", "paths", "complexity", "jiang")
_CURVES = ("pac_bayes_kl[", "expected_sharpness[", "pac_bayes_kl_at_0.05")
GROUPS: dict[str, tuple[str, ...]] = {
    "all": tuple(FAMILIES),  # With those that are added.
    "one_pass": _ONE_PASS,
    "paper": (
        *_ONE_PASS,
        "sharpness_zeta",
        *(name for name in pac_bayes.MEASURES if name.startswith(_CURVES)),
    ),
}


def select(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The measures of each family that are asked for.

    names: of measures, of families, or of groups of them (`GROUPS`)

    Raises:
      UserError: no such measure.
    """
    asked: dict[str, None] = {}
    known = [*GROUPS, *FAMILIES, *MEASURES]
    for name in names:
        if name not in known:
            raise UserError(
                f"there is no measure {name!r}{suggest(name, known)}; there are the families "
                f"{', '.join(FAMILIES)}, and the groups {', '.join(GROUPS)}; see --list"
            )
        for part in FAMILIES if name == "all" else GROUPS.get(name, (name,)):
            asked |= dict.fromkeys(FAMILIES.get(part, (part,)))
    chosen = {f: tuple(n for n in own if n in asked) for f, own in FAMILIES.items()}
    return {family: own for family, own in chosen.items() if own}


def refusals(subject: Subject, names: Sequence[str]) -> dict[str, str]:
    """Which of these measures cannot be computed of such a network, and why. Nothing is computed.

    subject: its arrays may be jax.ShapeDtypeStruct; without a key, what draws is refused.
    """
    refused = {}

    def try_all(*arrays: Any) -> None:
        # One trace for all: what they share is traced once.
        one = _subject(subject.model, *arrays)
        for name in names:
            try:
                MEASURES[name](one)
            except UserError as error:
                refused[name] = str(error)

    jax.eval_shape(
        try_all,
        subject.images_NxHxWxC,
        subject.labels_N,
        subject.variables,
        subject.initial_variables,
        subject.key,
    )
    return refused


def _subject(
    model: models.Model, images: Any, labels: Any, variables: Any, initial: Any, key: Any
) -> Subject:
    return Subject(model, variables, images, labels, initial, key)


def compute(
    model: models.Model,
    variables: models.Variables,
    images: Any,
    labels: Any,
    initial_variables: models.Variables | None = None,
    names: Iterable[str] = ("one_pass",),
    seed: int = 0,
) -> dict[str, float]:
    """Measures of one network.

    Args:
      images: float[N, H, W, C] as the network takes them (cropped, normalized)   labels: int[N]
      initial_variables: as before training; what needs them is left out of a family without them.
      names: of measures, families or groups (`GROUPS`).
      seed: of the random numbers that measures draw.

    Returns:
      {measure: value}; a value may be infinite, as a norm by a margin that is not positive is.

    Raises:
      UserError: no such measure, or one that is asked for by its own name cannot be computed.
    """
    names = tuple(names)
    arrays = (
        jnp.asarray(images),
        jnp.asarray(labels, jnp.int32),
        variables,
        initial_variables,
        streams.stream(seed, streams.MEASURES),
    )
    wanted = [name for own in select(names).values() for name in own]
    refused = refusals(_subject(model, *arrays), wanted)
    for name in names:
        if name in refused:
            raise UserError(f"{name}: {refused[name]}")
    possible = tuple(name for name in wanted if name not in refused)

    def all_of(*arrays: Any) -> dict[str, jax.Array]:
        one = _subject(model, *arrays)
        return {name: MEASURES[name](one) for name in possible}

    found = jax.jit(all_of)(*arrays)
    return {name: float(np.asarray(value)) for name, value in found.items()}
