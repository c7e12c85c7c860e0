"""SIGINT and SIGTERM: as a wish to save and end, or as an end that loses nothing stored."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

EXIT_INTERRUPTED = 75
STOPPED = "stopped; what is stored is kept, and the same command goes on"

_BOTH = (signal.SIGINT, signal.SIGTERM)
_ENDING = threading.Lock()  # By whom the process is being ended.


def end(*_: Any) -> None:
    """Ends the process at once, with one line: a handler of signals.

    Not by an exception, which is lost where jax is collecting garbage, and is a traceback while
    imports run; nor by an end in order, which crashes while another thread computes. Files are
    written as a whole or not at all.
    """
    if not _ENDING.acquire(blocking=False):
        return
    with contextlib.suppress(OSError):
        if os.isatty(1):
            os.write(1, b"\033[?25h\n")  # A bar of progress had hidden the cursor.
        os.write(2, f"{STOPPED}\n".encode())
    os._exit(EXIT_INTERRUPTED)


def end_from_now() -> None:
    """Makes both signals end the process; they wait for compiled code that is being run."""
    for number in _BOTH:
        signal.signal(number, end)


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """While open, both signals end the process, also while compiled code runs for minutes."""
    old = {s: signal.getsignal(s) for s in _BOTH}
    # A handler waits until the main thread is back in Python; a thread that reads this does not.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    threading.Thread(target=_end_if_told, args=(reader,), name="signals", daemon=True).start()
    end_from_now()
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for s, handler in old.items():
            signal.signal(s, handler)
        os.close(writer)


def _end_if_told(reader: int) -> None:
    """Reads the numbers of signals until the other end is closed."""
    while number := os.read(reader, 1):
        if number[0] in _BOTH:
            end()
    os.close(reader)


@contextlib.contextmanager
def collected() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying; a second one kills as usual."""
    received: list[int] = []
    old = {s: signal.getsignal(s) for s in _BOTH}
    wakeup = signal.set_wakeup_fd(-1)

    def restore() -> None:
        for s, handler in old.items():
            signal.signal(s, handler)
        signal.set_wakeup_fd(wakeup)

    def handle(number: int, _: Any) -> None:
        received.append(number)
        restore()

    for s in old:
        signal.signal(s, handle)
    try:
        yield received
    finally:
        restore()
