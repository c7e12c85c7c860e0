"""The axes of a sweep, as they stand in a config, and what they multiply to."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from typing import Any

from rethink_jax.schema import UserError, flatten, suggest

Assignment = dict[str, Any]  # Field values by dotted name.


def assignments(
    sweep: dict[str, Any], known: Collection[str], where: str = "sweep"
) -> Iterator[Assignment]:
    """Every combination of field values that a sweep asks for.

    sweep.<field> = (value, ...)                an axis; every combination of axes is one
    sweep.zipped.<any name>.<field> = (...)     axes that advance together
    sweep.union.<any name> = {a sweep}          the union of several sweeps
    An empty tuple is no axis.

    Args:
      known: the fields that may be an axis; with "model", all that begin with "model.", too.

    Raises:
      UserError: an unknown axis, axes of unequal length, or two axes over one field.
    """
    sweep = dict(_section(sweep, where))
    zipped = _section(sweep.pop("zipped", {}), f"{where}.zipped")
    union = _section(sweep.pop("union", {}), f"{where}.union")
    factors = [[{k: v} for v in values] for k, values in _axes(sweep, known, where).items()]
    for name, axes in zipped.items():
        inside = f"{where}.zipped.{name}"
        columns = _axes(_section(axes, inside), known, inside)
        if len({len(values) for values in columns.values()}) > 1:
            lengths = ", ".join(f"{k}: {len(v)}" for k, v in columns.items())
            raise UserError(f"config.{inside} needs axes of one length, has {lengths}")
        factors.append([dict(zip(columns, row)) for row in zip(*columns.values())])  # noqa: B905
    if union:
        factors.append(
            [a for k, sub in union.items() for a in assignments(sub, known, f"{where}.union.{k}")]
        )
    for combination in itertools.product(*[f for f in factors if f]):
        merged: Assignment = {}
        for part in combination:
            if twice := merged.keys() & part.keys():
                raise UserError(f"config.{where} sets {sorted(twice)[0]!r} by two axes; keep one")
            merged |= part
        yield merged


def in_all(sweep: dict[str, Any]) -> set[str]:
    """The fields that every combination sets, so that their value in the base decides nothing.

    Of a sweep that is wrong, none: what is wrong is said where it is expanded.
    """
    try:
        names = [set(a) for a in assignments(sweep, _Everything())]
    except UserError:
        return set()
    return set.intersection(*names) if names else set()


class _Everything(Collection[str]):
    """Any name may be an axis."""

    def __contains__(self, name: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def _section(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(
            f"config.{where} is {value!r}; it holds axes by name, as in "
            f"config.{where} = {{'seed': (0, 1)}}"
        )
    return value


def _axes(sweep: dict[str, Any], known: Collection[str], where: str) -> dict[str, tuple[Any, ...]]:
    axes = {}
    for name, values in sorted(flatten(sweep).items()):
        if name not in known and not ("model" in known and name.startswith("model.")):
            raise UserError(
                f"unknown axis {name!r} in config.{where}{suggest(name, known)}; an axis is a "
                "field of config.trial"
            )
        if not isinstance(values, tuple | list):
            raise UserError(
                f"config.{where}.{name} is {values!r}; an axis is a tuple of values, "
                f"as in config.{where}.{name} = ({values!r},)"
            )
        if values:
            axes[name] = tuple(values)
    return axes
