"""SIGINT and SIGTERM as a wish to save and end, not as an end."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def collected() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying; a second one kills as usual."""
    received: list[int] = []
    old = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, _: Any) -> None:
        received.append(number)
        for s, handler in old.items():
            signal.signal(s, handler)

    for s in old:
        signal.signal(s, handle)
    try:
        yield received
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)
