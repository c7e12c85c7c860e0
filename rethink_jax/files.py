"""Files that are there as a whole or not at all, for many processes that share a folder."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from pathlib import Path

from rethink_jax.processes import machine_id, start_of

# Of a name with bytes that are not UTF-8, in a table or a page; JSON has its own escapes.
_ERRORS = "backslashreplace"
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def part_of(path: Path, suffix: str = ".part") -> Path:
    """A name beside a file under which it is written first; no two calls give the same."""
    # Processes on two machines can have the same number.
    unique = f"{os.getpid()}-{machine_id()}-{secrets.token_hex(4)}"
    return path.with_name(f".{path.name}.{unique}{suffix}")


def write_atomically(path: Path, text: str, durable: bool = True) -> None:
    """Replaces a file as a whole: a reader sees the old or the new text, also after a crash.

    Args:
      durable: also after a power cut, which costs a wait for the disk.
    """
    part = part_of(path)
    try:
        _write(part, text, durable)
        part.replace(path)
    except BaseException:
        # A disk that is full needs the room.
        with contextlib.suppress(OSError):
            part.unlink()
        raise
    if durable:
        _sync_folder(path.parent)


def write_once(path: Path, text: str) -> bool:
    """Writes a file if there is none; of several processes at once, one does.

    Returns:
      whether it was this one.
    """
    part = part_of(path)
    _write(part, text, durable=True)
    try:
        os.link(part, path)
    except FileExistsError:
        # A network file system may have lost the answer to a link that it has made.
        return part.stat().st_nlink > 1
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # Without hard links a reader may see half of it for a moment.
        try:
            with path.open("x", encoding="utf-8", errors=_ERRORS) as file:
                file.write(text)
        except FileExistsError:
            return False
    finally:
        part.unlink(missing_ok=True)
    _sync_folder(path.parent)
    return True


def check_writable(folder: Path) -> None:
    """Raises OSError unless files can be made in a folder."""
    probe = part_of(folder / "writable")
    probe.touch()
    probe.unlink()


def remove_parts(folder: Path) -> None:
    """Removes what processes of this machine left half-written when they were killed."""
    for part in folder.glob(".*.part*"):
        found = re.search(rf"\.(\d+)-{machine_id()}-[0-9a-f]+\.part", part.name)
        if found and start_of(int(found[1])) is None:
            if part.is_dir():
                shutil.rmtree(part, ignore_errors=True)
            else:
                part.unlink(missing_ok=True)


def _write(path: Path, text: str, durable: bool) -> None:
    with path.open("w", encoding="utf-8", errors=_ERRORS) as file:
        file.write(text)
        if durable:
            file.flush()
            os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)  # After a power cut, the new name is there, too.
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
