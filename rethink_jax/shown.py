"""Texts from files and names as they may be printed: nothing in them moves a cursor or is lost."""

from __future__ import annotations

import re
from typing import Any

# Controls, among them what begins an escape sequence of a terminal; halves of characters, as which
# Python takes bytes of a name that are not UTF-8; and what turns the direction of a text.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def line(text: str) -> str:
    """A text in one line, with escapes for what cannot be shown."""
    return _UNSAFE.sub(_escape, " ".join(text.splitlines()))


def lines(text: str) -> str:
    """A text of several lines, with escapes for what cannot be shown."""
    return "\n".join(map(line, text.split("\n")))


def texts(value: Any) -> Any:
    """What was read from JSON, with each text and each name as `lines` shows it."""
    if isinstance(value, str):
        return lines(value)
    if isinstance(value, list):
        return [texts(v) for v in value]
    if isinstance(value, dict):
        return {lines(k): texts(v) for k, v in value.items()}
    return value


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
