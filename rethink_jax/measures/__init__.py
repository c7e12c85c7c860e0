"""Capacity measures of trained networks: numbers computed from a network and the images it saw.

A new measure is a pure function of a `Subject` that gives one number, and one entry in the
`MEASURES` of its family's module.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rethink_jax import memory, models, streams
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
from rethink_jax.schema import UserError, first_line, suggest

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


def check_families() -> None:
    """Checks what a user may have added to `FAMILIES`.

    Raises:
      UserError: a family that is no dict, or a name that means two things.
    """
    family_of: dict[str, str] = {}
    for family, own in FAMILIES.items():
        if not isinstance(own, Mapping) or not all(isinstance(n, str) for n in (family, *own)):
            raise UserError(
                f"measures.FAMILIES[{family!r}] is {_described(own)}; a family of measures is a "
                "dict of functions by their names, as {'my_measure': my_measure}"
            )
        if family in GROUPS:
            raise UserError(
                f"the family of measures {family!r} has the name of a group ({', '.join(GROUPS)}); "
                "give it another"
            )
        for name in own:
            other = family_of.setdefault(name, family)
            if other != family:
                raise UserError(
                    f"the measure {name!r} is in two families, {other!r} and {family!r}; give one "
                    "of them another name"
                )
            if name in GROUPS or (name in FAMILIES and name != family):
                raise UserError(
                    f"the measure {name!r} of the family {family!r} has the name of a family or a "
                    "group; give it another"
                )


def select(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The measures of each family that are asked for.

    names: of measures, of families, or of groups of them (`GROUPS`)

    Raises:
      UserError: no such measure; or as `check_families`.
    """
    check_families()
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


class MeasureError(Exception):
    """A measure that raises an error, or gives something else than one number: one line.

    The error that it raised is the cause.
    """


_WANTED = "a measure is a function of a subject that gives one number, computed by jax.numpy"


def number(name: str, subject: Subject) -> jax.Array:
    """One measure of a subject: a real scalar.

    Raises:
      UserError: it refuses such a network.
      MeasureError: it is wrong.
    """
    try:
        found = MEASURES[name](subject)
        if not _is_number(found):
            raise MeasureError(f"{name} gives {_described(found)}; {_WANTED}")
        if isinstance(found, jax.Array):
            return found
        with np.errstate(over="ignore"):  # It becomes infinite, which its row says.
            return jnp.asarray(np.float64(found).astype(jnp.result_type(float)))
    except (UserError, MeasureError):
        raise
    # It can be a user's own, and fail in any way.
    except Exception as error:
        raise failure(name, error) from error


def failure(name: str, error: Exception) -> MeasureError:
    """What to say of a measure that raised an error."""
    if isinstance(error, MeasureError):
        return error
    if memory.is_out_of_memory(error):
        return MeasureError(f"{name}: out of memory for one network ({first_line(error)})")
    said = f"{type(error).__name__}: {first_line(error)}"
    return MeasureError(f"{name} fails{_place(error)} with {said}; {_WANTED}")


def _is_number(found: Any) -> bool:
    if isinstance(found, bool | int | float):
        return True
    if not isinstance(found, np.generic | np.ndarray | jax.Array) or found.ndim:
        return False
    return any(jnp.issubdtype(found.dtype, kind) for kind in (np.floating, np.integer, np.bool_))


def _described(found: Any) -> str:
    """What something is, in a few words."""
    if hasattr(found, "shape") and hasattr(found, "dtype"):
        return f"an array {found.dtype}{list(found.shape)}"
    if found is None or isinstance(found, str | complex):
        return repr(found) if len(repr(found)) < 40 else f"{repr(found)[:36]}...'"
    return f"something of type {type(found).__name__}"


def _place(error: Exception) -> str:
    """Where a user's code raised an error: ' in line 3 of mine.py'; '' if that is not known."""
    package = Path(models.__file__).parents[1]
    frames = [
        f for f in traceback.extract_tb(error.__traceback__)
        if not Path(f.filename).is_relative_to(package) and "site-packages" not in f.filename
    ]  # fmt: skip
    own = [f for f in frames if f.filename == frames[0].filename]
    return f" in line {own[-1].lineno} of {Path(own[-1].filename).name}" if own else ""


class Checked(NamedTuple):
    """Measures that cannot be computed: of such a network, {name: why}; or at all."""

    refused: dict[str, str]
    failed: dict[str, MeasureError]


def checked(subject: Subject, names: Sequence[str]) -> Checked:
    """Which of these measures cannot be computed, and why. Nothing is computed.

    subject: its arrays may be jax.ShapeDtypeStruct; without a key, what draws is refused.
    """
    wrong = Checked({}, {})

    def try_all(*arrays: Any) -> None:
        # One trace for all: what they share is traced once.
        one = _subject(subject.model, *arrays)
        for name in names:
            try:
                number(name, one)
            except UserError as error:
                wrong.refused[name] = str(error)
            except MeasureError as error:
                wrong.failed[name] = error

    jax.eval_shape(
        try_all,
        subject.images_NxHxWxC,
        subject.labels_N,
        subject.variables,
        subject.initial_variables,
        subject.key,
    )
    return wrong


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
      UserError: no such measure; one that is asked for by its own name cannot be computed; or one
        is wrong, whose error is the cause.
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
    refused, failed = checked(_subject(model, *arrays), wanted)
    for error in failed.values():
        raise UserError(str(error)) from error
    for name in names:
        if name in refused:
            raise UserError(f"{name}: {refused[name]}")
    possible = tuple(name for name in wanted if name not in refused)

    def all_of(*arrays: Any) -> dict[str, jax.Array]:
        one = _subject(model, *arrays)
        return {name: number(name, one) for name in possible}

    found = jax.jit(all_of)(*arrays)
    return {name: float(np.asarray(value)) for name, value in found.items()}
