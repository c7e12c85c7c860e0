"""What a person sees while a sweep runs."""

from __future__ import annotations

import time
from collections import deque
from typing import Any, NamedTuple

from rethink_jax import shown

_LOG_SECONDS = 10.0  # Between plain lines, where the output is no terminal.
_WINDOW_SECONDS = 20.0  # Over which the rate is taken.


class Snapshot(NamedTuple):
    """How far a sweep is.

    steps: trial-steps done by this process   steps_left: an estimate
    """

    lanes_busy: int
    lanes: int
    done: int
    total: int
    diverged: int
    steps: int
    steps_left: float


class Progress:
    """A live line in a terminal; a plain line every few seconds elsewhere. A context manager."""

    def __init__(self) -> None:
        self._history: deque[tuple[float, int]] = deque()
        self._last_line = time.monotonic()
        self._live = None

    def __enter__(self) -> Progress:
        from rich.console import Console
        from rich.live import Live

        console = Console()
        if console.is_terminal:
            self._live = Live(console=console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, now: Snapshot) -> None:
        """Shows the present state."""
        clock = time.monotonic()
        self._history.append((clock, now.steps))
        # Two points at least: a dispatch of many long epochs can outlast the window.
        while len(self._history) > 2 and clock - self._history[0][0] > _WINDOW_SECONDS:
            self._history.popleft()
        if self._live is not None:
            from rich.text import Text

            self._live.update(Text(self._line(now), overflow="ellipsis", no_wrap=True))
        elif clock - self._last_line >= _LOG_SECONDS:
            self._last_line = clock
            self.say(self._line(now))

    def preparing(self, what: str) -> None:
        """Shows what is being done before the next update; only in a terminal."""
        if self._live is not None:
            self._live.update(what)

    def say(self, line: str) -> None:
        """Prints a lasting line."""
        if self._live is not None:
            self._live.console.print(shown.line(line), highlight=False, markup=False)
        else:
            print(shown.line(line), flush=True)

    @property
    def rate(self) -> float:
        """Trial-steps per second, of the last seconds."""
        (start, first), (end, last) = self._history[0], self._history[-1]
        return (last - first) / (end - start) if end > start else 0.0

    def _line(self, now: Snapshot) -> str:
        rate = self.rate
        eta = duration(now.steps_left / rate) if rate else "?"
        width = 24
        full = width * now.done // max(now.total, 1)
        return (
            f"{'━' * full}{'╌' * (width - full)} {now.done}/{now.total} trials  "
            f"lanes {now.lanes_busy}/{now.lanes}  {rate:,.0f} trial-steps/s  ETA {eta}  "
            f"diverged {now.diverged}"
        )


class Counter:
    """How many of a number of things are done: a bar in a terminal, plain lines elsewhere.

    A context manager. total: to be set before the first is done   quiet: shows nothing
    """

    def __init__(self, what: str = "", quiet: bool = False) -> None:
        self._what, self._quiet = what, quiet
        self.total = self._done = 0
        self._begun = self._last_line = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Counter:
        from rich.console import Console
        from rich.progress import Progress as Bar

        self._begun = self._last_line = time.monotonic()
        if not self._quiet and Console().is_terminal:
            self._bar = Bar(transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self._what, total=None)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, count: int, part: str) -> None:
        """So many more are done, of a part that is named."""
        self._done += count
        now = time.monotonic()
        if self._bar is not None:
            words = f"{self._what}: {part}"
            self._bar.update(self._task, completed=self._done, total=self.total, description=words)
        elif not self._quiet and now - self._last_line >= _LOG_SECONDS:
            self._last_line = now
            left = (now - self._begun) / self._done * (self.total - self._done)
            self.say(f"{self._what}: {self._done}/{self.total}, {part}  ETA {duration(left)}")

    def say(self, line: str) -> None:
        """Prints a lasting line."""
        if self._bar is not None:
            self._bar.console.print(shown.line(line), highlight=False, markup=False)
        elif not self._quiet:
            print(shown.line(line), flush=True)


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
