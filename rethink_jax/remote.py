"""Workdirs in other storage (gs://, s3://, ...): a folder of this machine that is kept equal to it.

Commands work on the folder. A thread uploads what is new, each file as a whole and a trial's
result.json after all else of it, and fetches what other machines have written. So what is true of a
shared folder is true here, some seconds later; what the storage lacks when this machine is lost is
run again, with the same numbers.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from absl import logging

from rethink_jax.files import part_of
from rethink_jax.schema import UserError, first_line

_SECONDS = 10.0  # Between two rounds.
# Where a file appears as a whole once it is written; elsewhere it is renamed.
_OBJECT_STORES = {"gs", "gcs", "s3", "s3a", "az", "abfs", "adl", "oci", "memory"}
# What is fetched by readers of networks only; and what is not fetched while a command runs.
_NETWORKS = re.compile(r"trials/[^/]+/network/|report/|logs/")
_CHECKPOINTS = re.compile(r"groups/")
# What other machines change. All else is written once, or by one machine.
_CHANGING = re.compile(r"claims/|trials\.csv$|measures\.csv$")
# What a sweep removes. Nothing else ever follows a removal: a folder that is cleaned up, or a
# listing that fails, is to cost no result on the other side.
_REMOVED = re.compile(r"claims/|groups/|trials/[^/]+/failed\.json$")


def is_url(workdir: str) -> bool:
    """Whether a workdir is named by a URL, as gs://bucket/folder."""
    return re.match(r"[a-z][a-z0-9+.-]*://", workdir) is not None


@contextlib.contextmanager
def folder_of(workdir: str, everything: bool = False) -> Iterator[Path]:
    """The folder of a workdir; what is written there is in the storage when the context is left.

    What is in this machine's folder and not in the storage is sent there: to begin anew, remove
    both.

    Args:
      workdir: a path, or a URL
      everything: the networks are fetched, too

    Raises:
      UserError: the storage is not known, or cannot be read or written.
    """
    if not is_url(workdir):
        yield Path(workdir).expanduser()
        return
    mirror = Mirror(workdir, _local(workdir))
    mirror.fetch(checkpoints=True, networks=everything)
    with mirror:
        yield mirror.folder


def fetched(workdir: str | Path, everything: bool = False) -> Path:
    """The folder of a workdir with what is in the storage now, to be read.

    Args, raises: as of `folder_of`.
    """
    if not is_url(str(workdir)):
        return Path(workdir).expanduser()
    mirror = Mirror(str(workdir), _local(str(workdir)))
    mirror.fetch(networks=everything)
    return mirror.folder


def _local(url: str) -> Path:
    """By the URL, so that a command finds what the one before it has left."""
    base = os.environ.get("RETHINK_MIRRORS") or Path.home() / ".cache/rethink_jax/workdirs"
    name = re.sub(r"[^A-Za-z0-9]+", "-", url).strip("-")[-40:]
    return Path(base) / f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"


class Mirror:
    """A folder and its URL. A context manager, in which a thread keeps them equal."""

    def __init__(self, url: str, folder: Path):
        try:
            import fsspec

            self._storage, self._root = fsspec.core.url_to_fs(url.rstrip("/"))
        except (ImportError, ValueError) as error:
            raise UserError(
                f"--workdir={url}: {first_line(error)}; install what fsspec needs for it (gcsfs "
                "for gs://, s3fs for s3://), or name a folder"
            ) from error
        self.url, self.folder = url, folder
        self._atomic = url.split("://")[0] in _OBJECT_STORES
        # Of files that are the same here and there: both versions; there, None if not seen since.
        self._same: dict[str, tuple[_Version, Any]] = {}
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._rounds, name="mirror", daemon=True)

    # --- from the storage -------------------------------------------------------------------------

    def fetch(self, checkpoints: bool = False, networks: bool = False) -> None:
        """Fetches what is not here, and what other machines have changed or removed.

        Raises:
          UserError: the storage cannot be read.
        """
        kinds = ((_CHECKPOINTS, checkpoints), (_NETWORKS, networks))
        passed = [kind for kind, wanted in kinds if not wanted]
        try:
            with self._lock:
                self._storage.invalidate_cache()
                there = self._there()
                for name, version in there.items():
                    if not any(r.match(name) for r in passed):
                        self._fetch_if_needed(name, version)
                gone = [n for n, (_, seen) in self._same.items() if seen and n not in there]
                for name in filter(_REMOVED.match, gone):
                    (self.folder / name).unlink(missing_ok=True)
                    del self._same[name]
        except Exception as error:  # Every storage has errors of its own.
            raise UserError(f"cannot read {self.url}: {first_line(error)}") from error

    def _there(self) -> dict[str, Any]:
        """The files of the storage with their versions."""
        if not self._storage.exists(self._root):
            return {}
        prefix = len(self._root.rstrip("/")) + 1
        found = self._storage.find(self._root, detail=True)
        return {
            path[prefix:]: _version_there(facts)
            for path, facts in found.items()
            if not _is_part(path[prefix:])
        }

    def _fetch_if_needed(self, name: str, version: Any) -> None:
        here = self.folder / name
        known = self._same.get(name)
        if known is None and here.is_file() and not _CHANGING.search(name):
            if here.stat().st_size == version[0]:
                self._same[name] = _version(here), version
            return  # Else it was not sent yet, and is sent now.
        if known is not None:
            if not here.is_file() or _version(here) != known[0]:
                return  # It was removed or changed here since.
            unseen = known[1] is None and known[0][0] == version[0]
            if unseen or known[1] == version:
                self._same[name] = known[0], version
                return
        if self._fetch_one(f"{self._root}/{name}", here):
            self._same[name] = _version(here), version

    def _fetch_one(self, path: str, here: Path) -> bool:
        here.parent.mkdir(parents=True, exist_ok=True)
        part = part_of(here)
        try:
            self._storage.get_file(path, str(part))
            part.replace(here)
        except FileNotFoundError:  # It was removed meanwhile.
            part.unlink(missing_ok=True)
            return False
        return True

    # --- to the storage ---------------------------------------------------------------------------

    def send(self) -> None:
        """Uploads what is new or changed here, and removes there what was removed here."""
        with self._lock:
            names = sorted(_files(self.folder), key=_order)
            for name in names:
                with contextlib.suppress(FileNotFoundError):  # A checkpoint gives way to the next.
                    version = _version(self.folder / name)
                    if name not in self._same or self._same[name][0] != version:
                        self._send_one(name)
                        self._same[name] = version, self._seen(name)
            for name in filter(_REMOVED.match, self._same.keys() - set(names)):
                with contextlib.suppress(FileNotFoundError):
                    self._storage.rm_file(f"{self._root}/{name}")
                del self._same[name]

    def _seen(self, name: str) -> Any:
        """The version that was just sent, of a file that others may change."""
        if not _CHANGING.search(name):
            return None  # A request less; the next listing has it.
        return _version_there(self._storage.info(f"{self._root}/{name}"))

    def _send_one(self, name: str) -> None:
        path, data = f"{self._root}/{name}", (self.folder / name).read_bytes()
        if not self._atomic:
            self._storage.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            part = f"{path.rsplit('/', 1)[0]}/{part_of(Path(name)).name}"
            self._storage.pipe_file(part, data)
            self._storage.mv(part, path)
        else:
            self._storage.pipe_file(path, data)

    # --- all the time -----------------------------------------------------------------------------

    def __enter__(self) -> Mirror:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        try:
            self.send()
        except Exception as error:
            raise UserError(
                f"cannot write to {self.url}: {first_line(error)}; everything is in {self.folder}, "
                "and the same command sends it"
            ) from error

    def _rounds(self) -> None:
        while not self._stop.wait(_SECONDS):
            try:
                self.send()
                self.fetch()
            except Exception as error:  # The next round may succeed; the last one is told.
                logging.warning("%s is not reached: %s", self.url, first_line(error))


_Version = tuple[int, int]  # Size and time of the last change.


def _files(folder: Path) -> Iterable[str]:
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not _is_part(name)]
        for name in names:
            if not _is_part(name):
                yield os.path.relpath(os.path.join(root, name), folder)


def _is_part(name: str) -> bool:
    """Whether it belongs to something unfinished."""
    return any(p.startswith(".") or "orbax-checkpoint-tmp" in p for p in name.split("/"))


def _version_there(facts: dict[str, Any]) -> tuple[Any, ...]:
    """Size, and whatever a storage has that changes with a file."""
    marks = ("etag", "ETag", "md5Hash", "mtime", "updated", "LastModified", "created")
    return (facts["size"], *(str(facts[mark]) for mark in marks if mark in facts))


def _order(name: str) -> tuple[int, str]:
    """A result says that all else of its trial is there; run.json that there is a workdir."""
    return (name.endswith("/result.json") + 2 * name.endswith("trials.csv"), name)


def _version(path: Path) -> _Version:
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns
