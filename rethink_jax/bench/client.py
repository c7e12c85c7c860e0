"""A worker process, as its parent sees it: questions and answers as lines of JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parents[1]
# Longest that a worker may take for an answer; compiling is the longest of what is asked.
_SECONDS = 900.0


class WorkerError(Exception):
    """A worker died or could not do what it was asked, in one line."""


class Worker:
    """One process that measures one way. It waits on its standard input while others measure."""

    def __init__(self, command: list[str], environment: dict[str, str], job: dict[str, Any]):
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        try:
            # A session of its own, so that nothing which it has started outlives it.
            self._process = subprocess.Popen(
                [*command, json.dumps(job)], env=environment, text=True, start_new_session=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
            )  # fmt: skip
        except OSError as error:
            self._errors.close()
            raise WorkerError(f"{command[0]}: {error.strerror}") from error

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()
        self._errors.close()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """What the worker answers.

        Raises:
          WorkerError: it died, did not answer in time, or answered with an error.
        """
        assert self._process.stdin and self._process.stdout
        timer = threading.Timer(_SECONDS, self._process.kill)
        timer.start()
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if not line:
            raise WorkerError(self._last_words())
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def _last_words(self) -> str:
        """Why a worker that is gone is gone."""
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return f"killed: out of memory, or no answer in {_SECONDS:.0f} s"
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        return lines[-1] if lines else f"ended with exit code {code}"


def jax_worker(job: dict[str, Any], environment: dict[str, str]) -> Worker:
    """A worker with this package, under an environment of its own."""
    own = {
        # As much memory as it needs, so that workers fit on one GPU together.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        # Without a cache, so that what is reported of compiling does not depend on earlier runs.
        "JAX_COMPILATION_CACHE_DIR": "",
        "PYTHONPATH": with_package(environment),
    }
    return Worker([sys.executable, "-m", "rethink_jax.bench.worker"], environment | own, job)


def torch_worker(python: str, job: dict[str, Any], environment: dict[str, str]) -> Worker:
    """A worker in another interpreter, which has PyTorch and knows nothing of this package."""
    script = str(_PACKAGE / "bench" / "torch_worker.py")
    # Compiled in its own process, none left behind.
    return Worker([python, script], environment | {"TORCHINDUCTOR_COMPILE_THREADS": "1"}, job)


def with_package(environment: dict[str, str]) -> str:
    """PYTHONPATH under which this very package is found."""
    return os.pathsep.join(filter(None, (str(_PACKAGE.parent), environment.get("PYTHONPATH"))))
