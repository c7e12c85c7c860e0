"""How commands start and end: flags, one-line errors, exit codes.

0 all done; 2 the user's mistake, one line says which; 3 some trials failed, or a measure of the
user's own, the others are done; 75 interrupted, run the same command again.
"""

from __future__ import annotations

import ast
import importlib.util
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import SourceFileLoader
from typing import Any, NoReturn

from absl import app, flags
from absl import logging as absl_logging

from rethink_jax import axes, devices, shown, signals
from rethink_jax.schema import UserError, plain, suggest

EXIT_OK, EXIT_USER, EXIT_FAILED, EXIT_INTERRUPTED = 0, 2, 3, signals.EXIT_INTERRUPTED

flags.DEFINE_bool("debug", False, "show the traceback of a user error")
flags.DEFINE_string(
    "own", None, "a Python file of yours to run first, which adds networks, data sets, measures ..."
)


def run(
    main: Callable[[], int],
    known_fields: Callable[[], list[str]] | None = None,
    **flags_needed: str,
) -> NoReturn:
    """Parses the command line and runs `main`, which returns the exit code.

    Args:
      known_fields: the names that --config.NAME may have; not given: those of a sweep.
      flags_needed: {flag name: what to say if it is not given}.
    """
    with signals.ending_at_once():
        code = _flushed(_run(main, known_fields or _fields_of_a_sweep, flags_needed))
    sys.exit(code)


def _run(
    main: Callable[[], int], known_fields: Callable[[], list[str]], flags_needed: dict[str, str]
) -> int:
    devices.setup()
    if isinstance(sys.stdout, io.TextIOWrapper):  # A name may have what the terminal has not.
        sys.stdout.reconfigure(errors="backslashreplace")
    app.define_help_flags()
    for name in ("own", "debug"):  # They are in --help of every command.
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])
    debug = any(re.fullmatch(r"--?debug(=(true|1))?", a, re.IGNORECASE) for a in sys.argv)
    if not debug:
        _quiet_orbax()
    try:
        _parse_flags(known_fields)
        for name, why in flags_needed.items():
            if not flags.FLAGS[name].value:
                raise UserError(f"--{name} is missing: {why}")
        if flags.FLAGS.own:
            _run_own(flags.FLAGS.own)
        # A config file, too, may have added some.
        if measures := sys.modules.get("rethink_jax.measures"):
            measures.check_families()
        return main()
    except UserError as error:
        if debug:
            raise
        # A name that a user gave may have a newline in it, or what moves a terminal's cursor.
        print(f"error: {shown.line(str(error))}", file=sys.stderr)
        return EXIT_USER
    except BrokenPipeError:  # Whoever read what is printed has ended, as `head` does.
        return EXIT_INTERRUPTED
    except OSError as error:  # Of a disk or a terminal, of which nothing better was said.
        if debug:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {shown.line(f'{where}{error.strerror or error}')}", file=sys.stderr)
        return EXIT_USER
    except KeyboardInterrupt:  # A sweep that is a part of something else has been interrupted.
        print(signals.STOPPED, file=sys.stderr)
        return EXIT_INTERRUPTED


def _flushed(code: int) -> int:
    """The exit code, once all that was printed is out; another one, if it cannot be."""
    try:
        sys.stdout.flush()
    except OSError as error:  # The interpreter would try it once more, with a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return code or EXIT_INTERRUPTED
        if not code:
            print(f"error: {error.strerror or error}", file=sys.stderr)
        return code or EXIT_USER
    return code


def _quiet_orbax() -> None:
    """Keeps back what orbax prints beside the errors that it raises, which are said in one line.

    On a full disk that would be hundreds of lines, from several of its threads.
    """
    absl_logging.get_absl_logger().addFilter(_is_not_of_orbax)
    sys.unraisablehook = _show_unless_late


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    return f"{os.sep}orbax{os.sep}" not in record.pathname


def _show_unless_late(unraisable: Any) -> None:
    # From threads of its storage, which still work for an event loop that has ended by then.
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _parse_flags(known_fields: Callable[[], list[str]]) -> None:
    """Parses sys.argv; for --config, ml_collections reads the file and its overrides meanwhile.

    Raises:
      UserError: whatever is wrong with a flag, the config file or an override of it.
    """
    given = sys.argv
    # Where ml_collections looks for overrides, whatever it is given.
    sys.argv, model_axes = _apart(given)
    try:
        rest = flags.FLAGS(sys.argv)
        if "config" in flags.FLAGS and flags.FLAGS["config"].present:
            # A file that cannot be opened is an object that raises the error when first used.
            config = flags.FLAGS["config"].value
            if not hasattr(config, "to_dict") and not isinstance(config, dict):
                raise UserError(f"get_config of the config returns {config!r}, not a ConfigDict")
            _set_model_axes(config, model_axes)
    except UserError:
        raise
    except flags.Error as error:
        raise UserError(_one_line(error)) from error
    # A config file is Python and can fail in any way; an unknown override fails in several.
    except Exception as error:
        wrong = _unknown_override(sys.argv, error, known_fields())
        raise UserError(wrong or f"the config cannot be read: {_one_line(error)}") from error
    finally:
        sys.argv = given  # What was run, as it is recorded.
    if "config" in flags.FLAGS and flags.FLAGS["config"].present:
        _refuse_hidden(sys.argv, plain(flags.FLAGS["config"].value))
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}; flags are written --name=value")


def _apart(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The arguments, and apart from them --config.sweep.model[.FIELD]=TEXT, {FIELD or "": TEXT}.

    ml_collections overrides only what a config has, and none has the fields of all networks.
    """
    pattern = re.compile(r"--?config\.sweep\.model(?:\.(\w+))?=(.*)", re.DOTALL)
    found = {argument: pattern.fullmatch(argument) for argument in argv}
    axes_over_models = {m[1] or "": m[2] for m in found.values() if m}
    return [argument for argument in argv if not found[argument]], axes_over_models


def _set_model_axes(config: Any, axes_over_models: dict[str, str]) -> None:
    """Puts axes over networks and their fields into a config."""
    for field, text in axes_over_models.items():
        sweep = config.setdefault("sweep", {}) if isinstance(config, dict) else config.sweep
        there = sweep.get("model") or {}
        if field and isinstance(there, tuple | list):
            raise UserError(
                f"--config.sweep.model.{field}: config.sweep.model of this config names whole "
                "networks; take them away with --config.sweep.model=() or write the axis there"
            )
        value = {**plain(there), field: _axis(text)} if field else _axis(text)
        if isinstance(config, dict):
            sweep["model"] = value
        else:
            with config.unlocked(), sweep.ignore_type():
                sweep.model = value


def _axis(text: str) -> Any:
    """What a user writes for an axis: a tuple of values, or words with commas."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return tuple(word.strip(" '\"") for word in text.strip("() ").split(",") if word.strip())


def _refuse_hidden(argv: Sequence[str], config: dict[str, Any]) -> None:
    """Raises UserError for --config.trial.NAME where the sweep sets the field in every trial."""
    sweep = config.get("sweep")
    hidden = axes.in_all(sweep) if isinstance(sweep, dict) else set()
    for argument in argv:
        found = re.fullmatch(r"--?config\.trial\.([^=]*)(=.*)?", argument, re.DOTALL)
        if found and (found[1] in hidden or ("model" in hidden and found[1][:6] == "model.")):
            raise UserError(
                f"--config.trial.{found[1]} decides nothing: config.sweep sets this field in every "
                f"trial; set --config.sweep.{found[1]}, or take the axis away with "
                f"--config.sweep.{found[1]}=()"
            )


def _run_own(file: str) -> None:
    """Imports a file of the user's."""
    try:
        loader = SourceFileLoader("own", file)
        spec = importlib.util.spec_from_loader("own", loader)
        assert spec is not None
        sys.modules["own"] = module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    # It is Python and can fail in any way.
    except Exception as error:
        raise UserError(f"--own={file} cannot be run: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    """What an error says in one line: what it was about, and the end of a quoted traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if "has no attribute 'get_config'" in str(error):
        return "it has no function get_config, which returns the config"
    if len(lines) < 2:
        name = "" if isinstance(error, flags.Error) else f"{type(error).__name__}: "
        return name + (lines[0] if lines else "no message")
    # What a config file says by itself needs no introduction.
    if own := re.search(r"rethink_jax\.schema\.UserError: (.*)", lines[-1]):
        return own[1]
    first = lines[0].removesuffix("Traceback (most recent call last):").rstrip()
    return " ".join(part for part in (first, lines[-1]) if part)


def _fields_of_a_sweep() -> list[str]:
    from rethink_jax import models
    from rethink_jax.config import SETTINGS
    from rethink_jax.trials import FIELDS

    known = [*SETTINGS, *(f"{s}.{name}" for s in ("trial", "sweep") for name in FIELDS)]
    return known + [f"trial.model.{f}" for model in models.MODELS for f in models.fields_of(model)]


def _unknown_override(argv: Sequence[str], error: Exception, known: list[str]) -> str | None:
    """What to say of the first --config.NAME that no config has; None if there is none."""
    from rethink_jax import models

    for argument in argv:
        name = re.fullmatch(r"--?config\.([^=]*)(=.*)?", argument, re.DOTALL)
        if not name or name[1].startswith(("sweep.union.", "sweep.zipped.")):
            continue
        if not any(k == name[1] or k.startswith(f"{name[1]}.") for k in known):
            return f"--config.{name[1]}: the config has no such field{suggest(name[1], known)}"
        field = name[1].removeprefix("trial.model.")
        if field != name[1] and repr(field) in str(error):
            having = [m for m in models.MODELS if field in models.fields_of(m)]
            return (
                f"--config.{name[1]}: the config's network has no field {field!r} (of "
                f"{', '.join(having)}); to take another network, write in the config "
                f"trial.model = rethink_jax.network({having[0]!r})"
            )
        if isinstance(error, AttributeError | KeyError) and repr(name[1].split(".")[-1]) in str(
            error
        ):
            return f"--config.{name[1]}: this config has no such field (--fields lists them)"
    return None
