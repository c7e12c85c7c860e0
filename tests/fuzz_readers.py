"""Feeds damaged files to the readers of data sets: each is a data set or one UserError, no more.

python tests/fuzz_readers.py --seconds=60
python tests/fuzz_readers.py --cases=200 --seed=3

Every case takes the whole files of one layout and damages one or two of them. Anything but a
`Dataset` or a `UserError` of one line, more memory than a few times the files, a file outside of
the cache, or more than some seconds is a failure, and is printed with its seed.
"""

import argparse
import collections
import faulthandler
import gzip
import itertools
import random
import struct
import sys
import tempfile
import time
import traceback
import tracemalloc
from pathlib import Path
from typing import NamedTuple

import layouts

from rethink_jax.data import sources, streamed
from rethink_jax.data.dataset import Dataset
from rethink_jax.schema import UserError

MEMORY = 2**26  # Bytes at most for one case; the files have some 10,000, MOST_BYTES is lowered.
SECONDS = 20.0  # For one case, on a busy machine.
MOST_BYTES = 2**22

# --- whole files ----------------------------------------------------------------------------------


def _idx(ending):
    def write(folder):
        layouts.write_idx_set(folder / "mnist", ending=ending)

    return write


def _cifar(kind):
    def write(folder):
        place = folder / f"cifar-10-batches-{kind[:3].removesuffix('2')}"
        layouts.write_folder(place, layouts.cifar_members(kind))

    return write


def _tar(kind):
    def write(folder):
        name = "binary" if kind == "bin" else "python"
        layouts.write_tar(folder / f"cifar-10-{name}.tar.gz", layouts.cifar_members(kind))

    return write


def _images(folder):
    from PIL import Image

    for split in ("train", "val"):
        for name in ("a", "b"):
            (folder / "set" / split / name).mkdir(parents=True)
            for number, ending in enumerate(("png", "jpeg")):
                image = Image.effect_noise((12, 10), 60).convert("RGB")
                image.save(folder / "set" / split / name / f"{number}.{ending}")


# {name: (data set, how its files are written)}
LAYOUTS = {
    "idx": ("mnist", _idx("")),
    "idx.gz": ("mnist", _idx(".gz")),
    "cifar binary": ("cifar10", _cifar("bin")),
    "cifar python": ("cifar10", _cifar("py")),
    "cifar python 2": ("cifar10", _cifar("py2")),
    "cifar binary tar": ("cifar10", _tar("bin")),
    "cifar python tar": ("cifar10", _tar("py")),
    "folder": ("folder:set", _images),
}

# --- damage ---------------------------------------------------------------------------------------

_NUMBERS = [struct.pack(f, v) for f in ("<I", ">I") for v in (0, 1, 2**16, 2**31 - 1, 2**32 - 1)]
_NUMBERS += [struct.pack("<Q", v) for v in (2**33, 2**63 - 1, 2**64 - 1)]
_WORDS = [b"cos\nsystem\n", b"\x93", b"R", b"b", b".", b"\x96" + _NUMBERS[-2], b"r" + _NUMBERS[3],
          b"0" * 11 + b" ", b"path=../../x", b"\x80" * 12, b"%!PS\n", b"PK\3\4"]  # fmt: skip


def _flip(rng, data):
    for _ in range(rng.randint(1, 8)):
        if data:
            data[rng.randrange(len(data))] = rng.randrange(256)


def _flip_early(rng, data):
    """In the headers: most of a file are pixels, any of which are good."""
    for _ in range(rng.randint(1, 4)):
        if data:
            data[rng.randrange(min(len(data), 600))] = rng.randrange(256)


def _cut(rng, data):
    del data[rng.randint(0, len(data)) :]


def _insert(rng, data):
    at = rng.randint(0, len(data))
    data[at:at] = rng.choice([*_WORDS, *_NUMBERS, rng.randbytes(rng.randint(1, 40))])


def _number(rng, data):
    at, number = rng.randint(0, min(len(data), 600)), rng.choice(_NUMBERS)
    data[at : at + len(number)] = number


def _repeat(rng, data):
    start = rng.randint(0, len(data))
    data[start:start] = data[start : start + rng.randint(1, 3000)]


def _remove(rng, data):
    start = rng.randint(0, len(data))
    del data[start : start + rng.randint(1, 600)]


def _swap(rng, data):
    half = rng.randint(0, len(data))
    data[:] = data[half:] + data[:half]


def _noise(rng, data):
    data[:] = rng.randbytes(rng.randint(0, 3000))


DAMAGE = (_flip, _flip_early, _cut, _insert, _number, _repeat, _remove, _swap, _noise)


def damaged(rng, path, data):
    """The bytes of a file with one to three damages: often of what a gzip file holds."""
    inside = path.suffix == ".gz" and rng.random() < 0.8
    some = bytearray(gzip.decompress(data) if inside else data)
    kinds = rng.choices(DAMAGE, k=rng.choice((1, 1, 2, 3)))
    for damage in kinds:
        damage(rng, some)
    if inside and rng.random() < 0.1:
        some += bytes(2 * MOST_BYTES)
    return gzip.compress(bytes(some), 1, mtime=0) if inside else bytes(some)


# --- one case -------------------------------------------------------------------------------------


class Whole(NamedTuple):
    """The files of one layout: {path below the data folder: bytes}."""

    dataset: str
    files: dict[Path, bytes]


def whole_layouts():
    """{layout: Whole}."""
    found = {}
    for name, (dataset, write) in LAYOUTS.items():
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            files = {p.relative_to(folder): p.read_bytes() for p in Path(folder).rglob("*")
                      if p.is_file()}  # fmt: skip
        found[name] = Whole(dataset, dict(sorted(files.items())))
    return found


def read(dataset, folder):
    """What a user gets of a data folder: "read", or the message of the UserError."""
    try:
        found = sources.load(dataset, str(folder))
        if isinstance(found, streamed.StreamedDataset):
            found = found.sized(8)
            for split, count in (("train", 4), ("test", 4)):
                for index in range(min(count, len(getattr(found, f"{split}_labels")))):
                    assert found.read(split, index).shape == (8, 8, 3)
        else:
            assert isinstance(found, Dataset)
        return "read"
    except UserError as error:
        assert str(error) and "\n" not in str(error), error
        return str(error)


def run_case(seed, whole, folder):
    """Damages files of a layout, by the seed, and reads them; returns what came of it."""
    rng = random.Random(seed)
    for path, data in whole.files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    for path in rng.choices(list(whole.files), k=rng.randint(1, 2)):
        (folder / path).write_bytes(damaged(rng, path, whole.files[path]))
    outside = set(folder.parent.iterdir())
    begun = time.monotonic()
    tracemalloc.start()
    outcome = read(whole.dataset, folder)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < MEMORY, f"{most:,} bytes of memory"
    assert time.monotonic() - begun < SECONDS, "it takes too long"
    assert set(folder.parent.iterdir()) == outside, "it writes outside of the data folder"
    known = {p.parts[0] for p in whole.files} | {"cache"}
    assert {p.name for p in folder.iterdir()} <= known, "it writes into the data folder"
    return outcome


def run_cases(seeds, say=lambda _: None):
    """Runs cases until the seeds end: {layout: {"read", "refused" or "failed": how many}}."""
    from rethink_jax.data import readers

    before, readers.MOST_BYTES = readers.MOST_BYTES, MOST_BYTES
    whole = whole_layouts()
    counts = {name: collections.Counter() for name in whole}
    try:
        for seed in seeds:
            name = list(whole)[seed % len(whole)]
            faulthandler.dump_traceback_later(10 * SECONDS, exit=True)
            with tempfile.TemporaryDirectory() as parent:
                folder = Path(parent) / "data"
                folder.mkdir()
                try:
                    outcome = run_case(seed, whole[name], folder)
                    counts[name]["read" if outcome == "read" else "refused"] += 1
                except Exception:
                    tracemalloc.stop()
                    counts[name]["failed"] += 1
                    say(f"--cases=1 --seed={seed} ({name}):\n{traceback.format_exc()}")
    finally:
        faulthandler.cancel_dump_traceback_later()
        readers.MOST_BYTES = before
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--cases", type=int, help="how many, whatever the time")
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    given = parser.parse_args()
    end = time.monotonic() + given.seconds

    if given.cases is None:
        in_time = lambda _: time.monotonic() < end  # noqa: E731
        seeds = itertools.takewhile(in_time, itertools.count(given.seed))
    else:
        seeds = range(given.seed, given.seed + given.cases)
    counts = run_cases(seeds, lambda text: print(text, file=sys.stderr, flush=True))
    for name, own in counts.items():
        print(f"{name:18}{own['read']:8} read{own['refused']:8} refused{own['failed']:6} failed")
    total = sum(counts.values(), collections.Counter())
    print(f"{sum(total.values())} cases, {total['failed']} failed")
    return 1 if total["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
