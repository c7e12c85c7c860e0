"""Runs commands inside this process, as `python -m launch.NAME` would, but in milliseconds."""

import contextlib
import io
import os
import runpy
import sys
import traceback
from typing import NamedTuple
from unittest import mock

from absl import app, flags

from rethink_jax import cli  # noqa: F401  (it defines --debug)


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


def run(name, *args):
    """How `python -m launch.NAME ARGS` ends: exit code, stdout and stderr.

    An exception that leaves the command is code 1 and its traceback, as for the interpreter.
    """
    out, err = io.StringIO(), io.StringIO()
    app.define_help_flags()
    flags.FLAGS.unparse_flags()
    known = set(flags.FLAGS)
    # Where ml_collections puts the config file; the next one would find the last one's names there.
    sys.modules.pop("config_config", None)
    argv = [f"launch/{name}.py", *map(str, args)]
    with (
        mock.patch.object(sys, "argv", argv),
        mock.patch.dict(os.environ),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            runpy.run_module(f"launch.{name}", run_name="__main__", alter_sys=False)
            code = 0
        except SystemExit as error:
            code = error.code
        except BaseException:
            traceback.print_exc()
            code = 1
        finally:
            # Each command defines its own flags, some by the same names; and those of a config.
            for flag in set(flags.FLAGS) - known:
                delattr(flags.FLAGS, flag)
            flags.FLAGS.unparse_flags()
            for flag in known:
                flags.FLAGS[flag].unparse()
    return Outcome(code, out.getvalue(), err.getvalue())
