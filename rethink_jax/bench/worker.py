"""A worker process that trains with jax: `python -m rethink_jax.bench.worker JOB`.

It reads one question a line, {"do": ...}, from its standard input, and answers each with a line.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from typing import Any, TextIO

from rethink_jax.schema import first_line


def serve(way: Any, questions: Iterable[str], answers: TextIO) -> None:
    """Answers until there are no more questions; one that fails is answered with its error.

    way: its public methods are the questions, and return what can be written as JSON.
    """
    for line in questions:
        question = json.loads(line)
        do = question.pop("do")
        try:
            answer = getattr(way, do)(**question)
        except Exception as error:  # Out of memory comes as one of several types.
            answer = {"error": f"{type(error).__name__}: {first_line(error)}"}
        print(json.dumps(answer), file=answers, flush=True)


def _make(job: dict[str, Any]) -> Any:
    """The object that answers; only what trains as the engine does gets the engine's devices."""
    kind = job["class"]
    if kind in ("engine", "facts", "refill"):
        from rethink_jax import devices

        devices.setup()
    from rethink_jax.bench import engine_ways, facts, one_ways, refill

    if job.get("lax"):
        one_ways.force_lax_convolutions()
    classes = {
        "facts": facts.Facts,
        "engine": engine_ways.EngineWay,
        "refill": refill.Refill,
        "scan": one_ways.ScanWay,
        "loop": one_ways.LoopWay,
        "naive": one_ways.NaiveWay,
    }
    return classes[kind](job)


def main() -> None:
    # Whatever else prints to standard output must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(_make(json.loads(sys.argv[1])), sys.stdin, answers)


if __name__ == "__main__":
    main()
