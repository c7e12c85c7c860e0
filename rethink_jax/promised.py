"""What a file of a workdir promises to hold, and what of it does not keep to that.

A promise is what may stand at one place of a record, as JSON has it: a `Kind`; None, for null; a
tuple of promises, one of which is kept; `Each`, for a list; a list of promises, for one of that
length; or a dict of promises by name. In a dict, `Maybe` is for what need not be there, and `...`
for all names that the dict does not have; without it they may hold anything: nothing reads them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from rethink_jax.schema import brief

# Of a name in characters: as of a data set in a folder; more would not fit into a figure.
_LONGEST = 5000


class Kind(NamedTuple):
    """A kind of value. words: with an article"""

    words: str
    holds: Callable[[Any], bool]


class Each(NamedTuple):
    """A list, of at least so many elements; lists of one length in a dict, and below it, agree."""

    of: Any
    length: str = ""
    least: int = 1


class Maybe(NamedTuple):
    """Of a name that a dict may lack."""

    of: Any


def _is_number(value: Any) -> bool:
    # Whole numbers of JSON have no bound; what is shown or drawn must be a float as well.
    return isinstance(value, float) or (_is_whole(value) and abs(value) < 10**300)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value) and abs(value) <= 1e100


TEXT = Kind("a text", lambda v: isinstance(v, str))
# To be drawn, or in a table.
NAME = Kind(
    f"a text of at most {_LONGEST} characters", lambda v: TEXT.holds(v) and len(v) <= _LONGEST
)
FLAG = Kind("true or false", lambda v: isinstance(v, bool))
COUNT = Kind("a whole number", lambda v: _is_whole(v) and abs(v) < 2**63)
SIZE = Kind("a whole number above 0", lambda v: COUNT.holds(v) and v > 0)
SIZE_OR_0 = Kind("a whole number from 0", lambda v: COUNT.holds(v) and v >= 0)
# To be written; also infinite or NaN, where arithmetic overflows.
NUMBER = Kind("a number", _is_number)
# To be drawn.
FINITE = Kind("a finite number", _is_finite)
POSITIVE = Kind("a number above 0", lambda v: _is_finite(v) and v > 1e-100)
ANYTHING = Kind("anything", lambda _: True)
NOTHING = Kind("nothing", lambda _: False)


def one_of(*values: str) -> Kind:
    """One of some texts."""
    return Kind(" or ".join(map(repr, values)), lambda v: isinstance(v, str) and v in values)


# What stands of the images in every record that has them.
DATA = {"name": NAME, "train": COUNT, "seed": COUNT}


def broken(record: Any, promise: Any) -> str | None:
    """Where a record does not keep to a promise, in words; None if it does."""
    return _broken(record, promise, "", {})


def _broken(value: Any, promise: Any, place: str, lengths: dict[str, int]) -> str | None:
    if isinstance(promise, Kind):
        return None if promise.holds(value) else _instead(value, place, promise.words)
    if promise is None:
        return None if value is None else _instead(value, place, "null")
    if isinstance(promise, Each):
        return _broken_list(value, promise, place, lengths)
    if isinstance(promise, list):
        if not isinstance(value, list) or len(value) != len(promise):
            return _instead(value, place, f"a list of {len(promise)}")
        promise, value = dict(enumerate(promise)), dict(enumerate(value))
    if isinstance(promise, dict):
        return _broken_dict(value, promise, place, lengths)
    # Of several promises, the first is what is said.
    found = [_broken(value, one, place, lengths) for one in promise]
    return None if None in found else found[0]


def _broken_list(value: Any, promise: Each, place: str, lengths: dict[str, int]) -> str | None:
    if not isinstance(value, list) or len(value) < promise.least:
        many = "a list" if promise.least < 1 else f"a list of {promise.least} or more"
        return _instead(value, place, many)
    if promise.length and lengths.setdefault(promise.length, len(value)) != len(value):
        return f"{place} has {len(value)} elements, not {lengths[promise.length]}"
    for number, element in enumerate(value):
        if what := _broken(element, promise.of, f"{place}[{number}]", dict(lengths)):
            return what
    return None


def _broken_dict(
    value: Any, promise: dict[Any, Any], place: str, lengths: dict[str, int]
) -> str | None:
    if not isinstance(value, dict):
        return _instead(value, place, "a dict")
    for name, of in promise.items():
        if name is ... or (name not in value and isinstance(of, Maybe)):
            continue
        if name not in value:
            return f"{place or 'the record'} lacks {name!r}"
        own = of.of if isinstance(of, Maybe) else of
        if what := _broken(value[name], own, f"{place}.{name}".strip("."), lengths):
            return what
    for name in value.keys() - promise.keys() if ... in promise else ():
        of_name = _broken(name, NAME, f"a name in {place or 'the record'}", {})
        if what := of_name or _broken(value[name], promise[...], f"{place}.{name}", lengths):
            return what
    return None


def _instead(value: Any, place: str, words: str) -> str:
    return f"{place or 'the record'} is {brief(value)}, not {words}"
