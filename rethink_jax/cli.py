"""How commands start and end: flags, one-line errors, exit codes.

0 all done; 2 the user's mistake; 75 interrupted, run the same command again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags

from rethink_jax import devices
from rethink_jax.schema import UserError, suggest

EXIT_OK, EXIT_USER, EXIT_INTERRUPTED = 0, 2, 75

flags.DEFINE_bool("debug", False, "show the traceback of a user error")


def run(main: Callable[[], int], **flags_needed: str) -> NoReturn:
    """Parses the command line and runs `main`, which returns the exit code.

    Args:
      flags_needed: {flag name: what to say if it is not given}.
    """
    devices.setup()
    app.define_help_flags()
    try:
        _parse_flags()
        for name, why in flags_needed.items():
            if not flags.FLAGS[name].value:
                raise UserError(f"--{name} is missing: {why}")
        code = main()
    except UserError as error:
        if "--debug" in sys.argv:
            raise
        print(f"error: {error}", file=sys.stderr)
        code = EXIT_USER
    sys.exit(code)


def _parse_flags() -> None:
    """Parses sys.argv; for --config, ml_collections reads the file and its overrides meanwhile.

    Raises:
      UserError: whatever is wrong with a flag, the config file or an override of it.
    """
    try:
        rest = flags.FLAGS(sys.argv)
    except flags.Error as error:
        raise UserError(_last_line(str(error))) from error
    except AttributeError as error:
        # ml_collections names the last part of an override that the config does not have.
        raise UserError(_unknown_override(str(error).strip("\"'"))) from error
    # A config file is Python and can fail in any way.
    except Exception as error:
        raise UserError(f"the config cannot be read: {_last_line(str(error))}") from error
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}; flags are written --name=value")


def _last_line(message: str) -> str:
    """The last line, which of a quoted traceback is the error; what it was about comes before."""
    first, *others = [line.strip() for line in message.splitlines() if line.strip()]
    return (
        f"{first.removesuffix('Traceback (most recent call last):')} {others[-1]}"
        if others
        else first
    )


def _unknown_override(field: str) -> str:
    from rethink_jax.config import SETTINGS
    from rethink_jax.trials import FIELDS

    known = [*SETTINGS, *(f"{s}.{name}" for s in ("trial", "sweep") for name in FIELDS)]
    given = [
        a.split("=")[0].removeprefix("--config.") for a in sys.argv if a.startswith("--config.")
    ]
    name = next((g for g in given if g.split(".")[-1] == field), None)
    if name is None:
        return f"the config cannot be read: no attribute {field!r}"
    return f"--config.{name}: the config has no such field{suggest(name, known)}"
