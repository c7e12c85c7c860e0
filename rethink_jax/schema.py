"""What one config field may hold, and the one kind of error a user ever sees."""

from __future__ import annotations

import dataclasses
import difflib
import numbers
from collections.abc import Collection, Iterable
from typing import Any

_FLOAT32_MAX = 3.4028234e38
_LONGEST = 300  # Characters of a value that a message shows.


class UserError(ValueError):
    """A mistake in what the user gave: one line that says what, what is allowed, and the fix.

    Commands print it without a traceback and exit with code 2.
    """


def suggest(name: str, allowed: Iterable[str]) -> str:
    """'; did you mean ...?' for the nearest allowed name, or '' where nothing is near."""
    near = difflib.get_close_matches(str(name), list(allowed), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def first_line(error: Exception) -> str:
    """What an error says first; its name, if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def brief(value: Any) -> str:
    """What a value is, as Python writes it, for an error's one line; no more than its beginning."""
    try:
        text = repr(value)
    except ValueError:  # A whole number of more digits than Python would write.
        text = "a number of thousands of digits"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


@dataclasses.dataclass(frozen=True)
class Field:
    """One config field: its type, what it may hold and what that decides.

    role: "static"  the value shapes the compiled program: other values make another group
          "hyper"   traced: a per-trial scalar inside the program, read as `hypers[name]`
          "data"    traced: it enters through the trial's own arrays (its labels, its images)
    optional: None is allowed. For a hyper, `off` is the number that stands for None in the program.
    each: the type of the elements, for tuples. low, high: inclusive bounds (of each element, too).
    choices: the allowed strings: often the dict of a module itself, so that an entry that a user
      adds to it later is allowed, too.
    """

    kind: type
    default: Any
    doc: str
    role: str = "static"
    low: float | None = None
    high: float | None = None
    choices: Collection[str] | None = None
    optional: bool = False
    off: float | None = None
    each: type | None = None

    def check(self, name: str, value: Any) -> Any:
        """Returns `value` as this field's type.

        Raises:
          UserError: wrong type, out of range, or not one of the choices.
        """
        if value is None:
            if self.optional:
                return None
            raise UserError(f"{name} is None; it needs {self.allowed()}. {self._fix(name)}")
        if self.kind is tuple:
            if not isinstance(value, tuple | list):
                raise self._error(name, value)
            return tuple(self._scalar(name, v, self.each, value) for v in value)
        return self._scalar(name, value, self.kind, value)

    def _scalar(self, name: str, value: Any, kind: type | None, given: Any) -> Any:
        # A bool is an int in Python, and True would silently become 1 layer or 1.0 learning rate.
        if isinstance(value, bool) and kind is not bool:
            raise self._error(name, given)
        if (kind is float and isinstance(value, numbers.Real)) or (
            kind is int and isinstance(value, numbers.Integral)
        ):
            try:
                value = kind(value) + 0  # -0.0 becomes 0.0: equal trials have equal ids.
            except OverflowError:
                raise self._error(name, given) from None
        elif kind is not None and type(value) is not kind:
            raise self._error(name, given)
        if kind in (int, float):
            # The program computes in float32, where a larger number is infinite.
            if not abs(value) <= _FLOAT32_MAX:  # NaN is not, either.
                raise self._error(name, given)
            if (self.low is not None and value < self.low) or (
                self.high is not None and value > self.high
            ):
                raise self._error(name, given)
        if self.choices is not None and value not in self.choices:
            raise UserError(
                f"{name} is {brief(value)}; it must be one of {', '.join(self.choices)}"
                f"{suggest(value, self.choices)}"
            )
        return value

    def _error(self, name: str, value: Any) -> UserError:
        return UserError(f"{name} is {brief(value)}; it needs {self.allowed()}. {self._fix(name)}")

    def _fix(self, name: str) -> str:
        example = self.default if self.default is not None else self.low
        return f"Set for example {name} = {example!r} ({self.doc})"

    def allowed(self) -> str:
        """What the field may hold, in words."""
        names = {int: "an integer", float: "a number", bool: "True or False", str: "a string"}
        kind = names.get(self.each if self.kind is tuple else self.kind, "a value")
        text = f"a tuple, each element {kind}" if self.kind is tuple else kind
        if self.low is not None and self.high is not None:
            text += f" from {self.low} to {self.high}"
        elif self.low is not None:
            text += f" of at least {self.low}"
        elif self.high is not None:
            text += f" of at most {self.high}"
        if self.choices is not None:
            text = "one of " + ", ".join(self.choices)
        return text + (" or None" if self.optional else "")


def model_field(default: Any, doc: str, kind: type | None = None, **kwargs: Any) -> Any:
    """A dataclass field of a flax module that is also a config field `model.<name>`.

    Args:
      kind, kwargs: as of `Field`; the kind of the default, if it has one. With optional=True the
        default may be None.
    """
    field = Field(kind or type(default), default, doc, **kwargs)
    return dataclasses.field(default=default, metadata={"field": field})


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} -> {'a.b': 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def nest(flat: dict[str, Any]) -> dict[str, Any]:
    """{'a.b': 1} -> {'a': {'b': 1}}: the inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *sections, leaf = name.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    return tree


def plain(config: Any) -> dict[str, Any]:
    """A ConfigDict or a nested dict as a plain nested dict.

    Raises:
      UserError: it is neither.
    """
    config = config.to_dict() if hasattr(config, "to_dict") else config
    if not isinstance(config, dict):
        raise UserError(f"a config is a ConfigDict or a dict, not {config!r}")
    return dict(config)
