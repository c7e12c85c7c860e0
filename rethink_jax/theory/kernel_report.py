"""Minimum-norm kernel machines on images, beside the paper's (Zhang et al. 2017, Table 3)."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rethink_jax import header, memory, paper_kernels, records
from rethink_jax.data import dataset as datasets
from rethink_jax.data import sources
from rethink_jax.data.dataset import Dataset
from rethink_jax.paper import Published
from rethink_jax.schema import UserError, suggest
from rethink_jax.theory import features as image_features
from rethink_jax.theory import interpolation, kernels
from rethink_jax.theory.interpolation import Options, Solution

_PATCHES = "patches"
_FEATURES = (*image_features.FEATURES, _PATCHES)
_TARGETS = ("onehot", "signs")
_SECONDS_BETWEEN_LINES = 10.0


def run(
    workdir: Path,
    command: list[str],
    data: str = "digits",
    data_dir: str | None = None,
    num_train: int | None = None,
    seed: int = 0,
    features: str = "raw",
    kernel: str | None = None,
    bandwidth: float = 0.5,
    degree: int = 2,
    filters: int = 1000,
    targets: str = "onehot",
    ridge: float = 0.0,
    jitter: float = 0.0,
    solver: str = "auto",
    precision: str = "auto",
    rank: int = 2000,
) -> str:
    """Fits a kernel machine and tests it; writes a JSON file and returns a table.

    Args:
      features: "raw", "gabor" or "patches"   filters: of "patches"; the paper has 32,000
      kernel: key of `KERNELS`; not given: gaussian, and linear for "patches"
      bandwidth: times the median rule's. UNSTATED in paper; ours (half the root of the median
        squared distance) does well on MNIST
      targets: "onehot": 0 and 1; "signs": -1 and 1. UNSTATED in paper; the norm depends on it
      ridge, jitter, solver, precision, rank: see `interpolation.Options`

    Raises:
      UserError: as `sources.load` and `interpolation.interpolate`; an unknown choice.
    """
    for what, value, allowed in (("features", features, _FEATURES), ("targets", targets, _TARGETS)):
        if value not in allowed:
            raise UserError(
                f"there are no {what} {value!r}{suggest(value, allowed)}; there are "
                f"{', '.join(allowed)}"
            )
    options = Options(
        ridge=ridge, jitter=jitter, solver=solver, precision=precision, rank=rank, seed=seed
    )
    dataset = _dataset(data, data_dir, num_train, seed)
    say, targets_NxY = _Lines(), _targets(dataset, targets)
    begun = time.perf_counter()
    if features == _PATCHES:
        made = _patches(dataset, targets_NxY, kernel, filters, options, say)
    else:
        made = _rows(dataset, targets_NxY, features, (kernel, bandwidth, degree), options, say)
    seconds = time.perf_counter() - begun
    machine = paper_kernels.Machine(data, features, ridge > 0)
    found = {
        "data": header.data_facts(dataset) | {"name": data, "seed": seed},
        "machine": {"features": features, "targets": targets, **made.facts, "ridge": ridge,
                    "jitter": jitter},
        "ours": _numbers(made, dataset, seconds),
        "paper": {
            "test error": _stands(paper_kernels.TEST_ERRORS.get(machine)),
            "norm of the solution": _stands(paper_kernels.NORMS.get(machine)),
        },
        "run": header.run_facts(command),
    }  # fmt: skip
    name = f"kernel_{data}_{len(targets_NxY)}_{features}_{made.facts['kernel']}_ridge{ridge:g}"
    path = workdir / f"{name.replace(':', '_').replace('/', '_')}_seed{seed}.json"
    records.write_atomically(path, json.dumps(found, indent=1, default=float))
    return f"{_table(found)}\n\nnumbers: {path.absolute()}"


class _Lines:
    """Progress, at most one line in 10 seconds."""

    def __init__(self) -> None:
        self._last = -_SECONDS_BETWEEN_LINES

    def __call__(self, line: str) -> None:
        if time.monotonic() - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            print(line, file=sys.stderr, flush=True)


def _dataset(data: str, data_dir: str | None, num_train: int | None, seed: int) -> Dataset:
    dataset = sources.load(data, data_dir)
    if not isinstance(dataset, Dataset):
        raise UserError(f"the images of {data} are streamed; a kernel needs them in memory")
    return dataset if num_train is None else datasets.subset(dataset, num_train, seed, False)


def _targets(dataset: Dataset, targets: str) -> np.ndarray:
    onehot_NxY = np.eye(dataset.num_classes)[dataset.train_labels]
    return onehot_NxY if targets == "onehot" else 2 * onehot_NxY - 1


# --- the machines ---------------------------------------------------------------------------------


class _Made(NamedTuple):
    """A solution, what it says of the test images, and what it was made from, in words."""

    solution: Solution
    values_MxY: np.ndarray
    facts: dict[str, Any]


def _rows(
    dataset: Dataset,
    targets_NxY: np.ndarray,
    features: str,
    kind: tuple[str | None, float, int],
    options: Options,
    say: interpolation.Say,
) -> _Made:
    of = image_features.FEATURES[features]
    rows_NxD, test_MxD = of(dataset.train_images), of(dataset.test_images)
    name, times, degree = kind
    median = kernels.median_distance(rows_NxD, options.seed)
    kernel = kernels.make(name or "gaussian", times * median, degree)
    made = interpolation.interpolate(kernel, rows_NxD, targets_NxY, options, say)
    facts = {
        "kernel": kernel.name,
        "values of an image": rows_NxD.shape[1],
        "bandwidth": kernel.bandwidth,
        "bandwidth by root of median squared distance": times,
        "degree": degree,
    }
    return _Made(made.solution, made.values(test_MxD), facts)


def _patches(
    dataset: Dataset,
    targets_NxY: np.ndarray,
    kernel: str | None,
    num_filters: int,
    options: Options,
    say: interpolation.Say,
) -> _Made:
    """A linear machine on features that are never all in memory: through their inner products."""
    if kernel not in (None, "linear"):
        raise UserError(f"the features {_PATCHES} are for the linear kernel, not {kernel}")
    side = min(dataset.image_shape[:2])
    if side < image_features.PATCH or num_filters < 1:
        raise UserError(
            f"{num_filters} patches of 6x6 pixels of images {side} pixels high or wide; take 1 or "
            "more, of images of 6 or more"
        )
    images, test = dataset.train_images, dataset.test_images
    if not options.on_diagonal:
        kept = interpolation.distinct(image_features.pixels(images), targets_NxY)
        images, targets_NxY = images[kept], targets_NxY[kept]
    needed, limit = 8 * len(images) * (len(images) + len(test)), memory.host_bytes()
    if not memory.fits(needed, limit):
        raise UserError(
            f"the inner products of {len(images):,} with {len(images) + len(test):,} images need "
            f"{memory.mib(needed)}; {memory.mib(limit or 0)} are available. Take a smaller "
            "--num_train"
        )
    drawn = image_features.Patches(images, num_filters, options.seed)
    gram, cross_MxN = image_features.patch_matrices(drawn, images, test, say)
    solution = interpolation.solve(gram, targets_NxY, options, say)
    facts = {"kernel": "linear", "filters": num_filters, "ZCA bias": image_features.ZCA_BIAS}
    return _Made(solution, cross_MxN @ solution.alpha_NxY, facts)


# --- the numbers ----------------------------------------------------------------------------------


def _numbers(made: _Made, dataset: Dataset, seconds: float) -> dict[str, Any]:
    solution = made.solution
    wrong_M = np.argmax(made.values_MxY, axis=1) != dataset.test_labels
    return {
        "test error": float(np.mean(wrong_M)),
        "norm of the solution": solution.norm,
        "largest norm of an output": solution.largest_norm,
        "residual": solution.residual,
        "condition number, about": solution.condition,
        "added to the preconditioner's diagonal": solution.shift,
        "solver": solution.method,
        "iterations": solution.iterations,
        "seconds of the solver": solution.seconds,
        "seconds": seconds,
        "MiB the solver planned": solution.num_bytes / 2**20,
        # In KiB on Linux.
        "MiB at most, of the process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
    }


def _stands(published: Published | None) -> dict[str, Any] | None:
    if published is None:
        return None
    return {"value": published.value, "where": published.where, "note": published.note}


def _table(found: dict[str, Any]) -> str:
    """A row for each number: ours, and the paper's."""
    data, machine = found["data"], found["machine"]
    facts = ", ".join(f"{k} {_shown(k, v)}" for k, v in machine.items() if k != "features")
    lines = [
        f"{data['train']:,} images of {data['name']}, seed {data['seed']}; features "
        f"{machine['features']}: {facts}",
        f"{'':42}{'ours':>16}{'paper':>12}",
    ]
    for row, value in found["ours"].items():
        stands = found["paper"].get(row)
        theirs = _shown(row, stands["value"]) + "  " + stands["where"] if stands else ""
        lines.append(f"{row:42}{_shown(row, value):>16}{'':6}{theirs}".rstrip())
    if any(found["paper"].values()):
        lines.append("The paper's is of all training images; its bandwidth is not stated.")
    return "\n".join(lines)


def _shown(row: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    return f"{100 * value:.2f}%" if row == "test error" else f"{value:.4g}"
