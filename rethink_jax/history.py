"""What the commands that ran in a workdir left of themselves, without a file that two write.

run.json                          the experiment as the first command had it; written once
runs/<number>_<slice>_<pid>_<>.json  one command: when, what, by which code, versions, devices
choices/widths.<number>.json      which networks are padded to which; each adds to those before
choices/<group>.<device>.json     what a group runs with on one kind of device

What is chosen is written once: of several processes, the first one decides for all.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rethink_jax import damaged, promised
from rethink_jax.files import write_atomically, write_once
from rethink_jax.promised import SIZE, TEXT, Each, one_of
from rethink_jax.schema import UserError

FORMAT = 2  # Of the workdir. A reader refuses others.

# {id of a trial's static fields: those of the network it is padded to}
_WIDTHS = {...: {...: (SIZE, Each(SIZE, least=0))}}
_CONVOLUTION = {
    **dict.fromkeys(("height", "width", "channels", "features", "stride"), SIZE),
    **dict.fromkeys(("padding", "dtype", "lowering"), TEXT),
    "window": [SIZE, SIZE], ...: promised.NOTHING,
}  # fmt: skip
_CHOICES = {
    "group_id": TEXT, "device": TEXT,
    "choices": {
        "batching": one_of("auto", "map", "vmap"), "lanes_per_device": promised.SIZE_OR_0,
        "convolutions": Each(_CONVOLUTION, least=0),
    },
}  # fmt: skip


class Run:
    """The file of one command that is running.

    facts: what stands in it; write it after a change
    """

    def __init__(self, path: Path, facts: dict[str, Any]):
        self._path, self.facts = path, facts
        self.write()

    def write(self) -> None:
        write_atomically(self._path, _json(self.facts))


class History:
    """run.json, runs/ and choices/ of one workdir."""

    def __init__(self, path: Path):
        self._path = path

    @property
    def header_path(self) -> Path:
        return self._path / "run.json"

    def create(self, header: Mapping[str, Any]) -> bool:
        """Writes run.json if there is none; returns whether this process did.

        Args:
          header: config, config_sha256, fixed_fields, data.
        """
        return write_once(self.header_path, _json({"format": FORMAT, **header}))

    def first(self) -> dict[str, Any] | None:
        """run.json, or None in a new workdir.

        Raises:
          UserError: run.json cannot be read, or another version of the project wrote it.
        """
        try:
            header = damaged.read_json(self.header_path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise damaged.refused(self.header_path, error, "take another --workdir") from error
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise UserError(
                f"{self.header_path} was not written by this version of rethink_jax; "
                "take another --workdir"
            )
        return damaged.check_header(self.header_path, header)

    def header(self) -> dict[str, Any] | None:
        """All of it as one dict, or None in a new workdir.

        Returns:
          config, config_sha256: of the last command   fixed_fields: that no command has swept
          data: {name: facts}   widths: see `widths`   choices: {group_id: {device: choices}}
          runs: the commands, in the order of their beginning

        Raises:
          UserError: a file cannot be read, or another version of the project wrote run.json.
        """
        head = self.first()
        if head is None:
            return None
        began_with, fixed = {k: head[k] for k in ("config", "config_sha256")}, head["fixed_fields"]
        runs = []
        for path in sorted(
            (self._path / "runs").glob("*.json"), key=lambda p: (_number(p.name), p)
        ):
            run = _read(path, damaged.RUN)
            head |= {k: run.pop(k, began_with[k]) for k in began_with}
            head["data"] |= run.pop("data", {})
            swept = fixed.keys() - run.pop("fixed_fields", fixed).keys()
            fixed = {k: v for k, v in fixed.items() if k not in swept}
            runs.append(run)
        choices: dict[str, Any] = {}
        for path in sorted((self._path / "choices").glob("*.json")):
            if not path.name.startswith("widths."):
                found = _read(path, _CHOICES)
                choices.setdefault(found["group_id"], {})[found["device"]] = found["choices"]
        widths = self._widths()[0]
        return head | {"fixed_fields": fixed, "widths": widths, "choices": choices, "runs": runs}

    # --- commands ---------------------------------------------------------------------------------

    def begin_run(self, slice_name: str, facts: dict[str, Any]) -> Run:
        """Begins the file of a command.

        Args:
          facts: with what differs from run.json: config, config_sha256, fixed_fields, data.
        """
        folder = self._path / "runs"
        folder.mkdir(exist_ok=True)
        # By what is there and no clock, which may differ or go back; two at once may have one
        # number, and neither was before the other.
        number = 1 + max((_number(p.name) for p in folder.glob("*.json")), default=0)
        name = f"{number:06}_{slice_name}_{os.getpid()}_{secrets.token_hex(2)}.json"
        return Run(folder / name, facts)

    # --- what is chosen ---------------------------------------------------------------------------

    def settle_widths(self, choose: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
        """Adds to what networks are padded to.

        Args:
          choose: of what is chosen already, gives that and what is new. It is called again if
            another process was faster; the last call had what holds.
        """
        (self._path / "choices").mkdir(exist_ok=True)
        while True:
            kept, number = self._widths()
            added = {k: v for k, v in choose(kept).items() if k not in kept}
            path = self._path / "choices" / f"widths.{number:04}.json"
            if not added or write_once(path, _json(added)):
                return

    def _widths(self) -> tuple[dict[str, Any], int]:
        """{id of a trial's static fields: those of the network it is padded to}, and the number
        of the next file; one before may have been deleted."""
        paths = sorted((self._path / "choices").glob("widths.*.json"))
        number = 1 + max((_number(p.name.removeprefix("widths.")) for p in paths), default=-1)
        return {k: v for path in paths for k, v in _read(path, _WIDTHS).items()}, number

    def choices(self, group_id: str, device: str) -> dict[str, Any] | None:
        """What a group was chosen to run with on a kind of device, if anything was."""
        with contextlib.suppress(FileNotFoundError):
            return _read(self._choices_path(group_id, device), _CHOICES)["choices"]
        return None

    def settle_choices(self, group_id: str, device: str, found: dict[str, Any]) -> dict[str, Any]:
        """Writes what a group is to run with, unless that was done; returns what holds."""
        path = self._choices_path(group_id, device)
        path.parent.mkdir(exist_ok=True)
        text = _json({"group_id": group_id, "device": device, "choices": found})
        return found if write_once(path, text) else _read(path, _CHOICES)["choices"]

    def _choices_path(self, group_id: str, device: str) -> Path:
        name = re.sub(r"[^A-Za-z0-9]+", "-", device).strip("-").lower()
        return self._path / "choices" / f"{group_id}.{name}.json"


def _number(name: str) -> int:
    """Where a file stands among the others, by its name."""
    found = re.match(r"\d+", name)
    return int(found[0]) if found else 0


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True)


def _read(path: Path, promise: Any) -> Any:
    try:
        found = damaged.read_json(path)
        if what := promised.broken(found, promise):
            raise ValueError(what)
        return found
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise damaged.refused(path, error, "delete it, no result depends on it") from error
