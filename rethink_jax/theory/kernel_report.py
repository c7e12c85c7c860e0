"""Minimum-norm kernel machines on images, beside the paper's (Zhang et al. 2017, Table 3)."""

from __future__ import annotations

import dataclasses
import resource
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rethink_jax import header, memory, paper_kernels, promised
from rethink_jax.data.dataset import Dataset
from rethink_jax.paper import Published
from rethink_jax.schema import Field, UserError
from rethink_jax.theory import cases, images, interpolation, kernels
from rethink_jax.theory import features as image_features
from rethink_jax.theory.interpolation import Options, Solution
from rethink_jax.theory.kernels import KernelMatrix

_PATCHES = "patches"
# What is tried on training images that are held out: so many at most to fit, and to validate.
_FITTED, _VALIDATED = 10_000, 5_000
_BANDWIDTHS = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)
_RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)

FIELDS = cases.IMAGES | cases.LABELS | {
    "features": Field(
        str, "raw", "of the images", choices=(*image_features.FEATURES, _PATCHES)
    ),
    "kernel": Field(
        str, "auto", "auto: gaussian, and linear for patches", choices=("auto", *kernels.KERNELS)
    ),
    "bandwidth": Field(
        float, None, "by the root of the median squared distance; None: by a validation split of "
        "the training images", low=0, optional=True,
    ),
    "degree": Field(int, 2, "of the polynomial kernel", low=1),
    "filters": Field(int, 1000, "random patches; the paper has 32,000", low=1),
    "targets": Field(
        str, "onehot", "labels as numbers: 0 and 1, or -1 and 1", choices=("onehot", "signs")
    ),
    "ridge": Field(
        float, 0.0, "on the diagonal, by its mean; 0: least norm; None: by a validation split",
        low=0, optional=True,
    ),
    "jitter": Field(float, 0.0, "on the diagonal of a matrix that is singular", low=0),
    "solver": Field(str, "auto", "how", choices=interpolation.SOLVERS),
    "precision": Field(
        str, "auto", "of the direct solver's factor", choices=interpolation.PRECISIONS
    ),
    "rank": Field(int, 2000, "columns of the iterative solver's preconditioner", low=1),
}  # fmt: skip

_PAPERS = ({"value": promised.NUMBER, "where": promised.NAME}, None)
FOUND = {
    "data": promised.DATA | {"labels": promised.NAME},
    "machine": {
        "features": promised.NAME, "kernel": promised.NAME,
        "filters": promised.Maybe(promised.COUNT),
        "bandwidth": promised.Maybe((promised.NUMBER, None)),
        "ridge by mean diagonal": promised.NUMBER,
        ...: (promised.NUMBER, promised.NAME, None, {...: promised.NUMBER}),
    },
    "ours": {
        "test error": promised.NUMBER, "norm of the solution": promised.NUMBER,
        "residual": promised.NUMBER, "solver": promised.NAME, "seconds": promised.NUMBER,
        "MiB at most, of the process so far": promised.NUMBER,
        ...: (promised.NUMBER, None),
    },
    "paper": {"test error": _PAPERS, "norm of the solution": _PAPERS, ...: _PAPERS},
}  # fmt: skip


def run(
    context: cases.Context,
    data: str,
    num_train: int | None,
    seed: int,
    labels: str,
    features: str,
    kernel: str,
    bandwidth: float | None,
    degree: int,
    filters: int,
    targets: str,
    ridge: float | None,
    jitter: float,
    solver: str,
    precision: str,
    rank: int,
) -> dict[str, Any]:
    """Fits a kernel machine to images and tests it.

    UNSTATED in paper: the bandwidth, and which numbers stand for labels (the norm depends on both).

    Raises:
      UserError: as `sources.load` and `interpolation.interpolate`.
    """
    options = Options(jitter=jitter, solver=solver, precision=precision, rank=rank, seed=seed)
    dataset = context.images(data, num_train, seed)
    begun = time.perf_counter()
    targets_NxY = _targets(dataset, labels, targets, seed)
    if features == _PATCHES:
        made = _patches(dataset, targets_NxY, kernel, filters, ridge, options, context.say)
    else:
        kind = _Kind("gaussian" if kernel == "auto" else kernel, bandwidth, degree, ridge)
        made = _rows(dataset, targets_NxY, features, kind, options, context.say)
    seconds = time.perf_counter() - begun
    stands = labels == "true"
    machine = paper_kernels.Machine(data, features, ridge != 0)
    return {
        "data": header.data_facts(dataset) | {"name": data, "labels": labels, "seed": seed},
        "machine": {"features": features, "targets": targets, **made.facts, "jitter": jitter},
        "ours": _numbers(made, dataset, seconds),
        "paper": {
            "test error": _stands(paper_kernels.TEST_ERRORS.get(machine) if stands else None),
            "norm of the solution": _stands(paper_kernels.NORMS.get(machine) if stands else None),
        },
    }  # fmt: skip


def _targets(dataset: Dataset, labels: str, targets: str, seed: int) -> np.ndarray:
    onehot_NxY = images.onehot_targets(dataset, {"true": 0.0, "random": 1.0}[labels], seed)
    return onehot_NxY if targets == "onehot" else 2 * onehot_NxY - 1


# --- the machines ---------------------------------------------------------------------------------


class _Made(NamedTuple):
    """A solution, what it says of the test images, and what it was made from, in words."""

    solution: Solution
    values_MxY: np.ndarray
    facts: dict[str, Any]


class _Kind(NamedTuple):
    """bandwidth: by the median rule's   ridge: by the mean diagonal   None: by validation"""

    kernel: str
    bandwidth: float | None
    degree: int
    ridge: float | None


def _rows(
    dataset: Dataset,
    targets_NxY: np.ndarray,
    features: str,
    kind: _Kind,
    options: Options,
    say: interpolation.Say,
) -> _Made:
    of = image_features.FEATURES[features]
    rows_NxD, test_MxD = of(dataset.train_images), of(dataset.test_images)
    median = kernels.median_distance(rows_NxD, options.seed)
    kernel_of = lambda times: kernels.make(kind.kernel, times * median, kind.degree)  # noqa: E731

    def error_of(times: float, ridge: float) -> float:
        split = _split(len(rows_NxD), options.seed)
        matrix = KernelMatrix(kernel_of(times), rows_NxD[split.fitted])
        with_ridge = _with_ridge(options, ridge, matrix)
        made = interpolation.interpolate(
            matrix.kernel, matrix.rows, targets_NxY[split.fitted], with_ridge, say
        )
        return _error(made.values(rows_NxD[split.held]), targets_NxY[split.held])

    times, ridge, errors = kind.bandwidth, kind.ridge, {}
    if kind.kernel not in kernels.WITH_BANDWIDTH:
        times = 1.0
    elif times is None:
        times, errors["bandwidth"] = _best(_BANDWIDTHS, lambda t: error_of(t, ridge or 0.0), say)
    if ridge is None:
        ridge, errors["ridge"] = _best(_RIDGES, lambda r: error_of(times, r), say)
    kernel = kernel_of(times)
    options = _with_ridge(options, ridge, KernelMatrix(kernel, rows_NxD))
    made = interpolation.interpolate(kernel, rows_NxD, targets_NxY, options, say)
    facts = {
        "kernel": kernel.name,
        "values of an image": rows_NxD.shape[1],
        "bandwidth": kernel.bandwidth,
        "bandwidth by root of median squared distance": times,
        "degree": kind.degree,
        **_facts_of_ridge(ridge, errors),
    }
    return _Made(made.solution, made.values(test_MxD), facts)


class _Split(NamedTuple):
    """Indices of training images."""

    fitted: np.ndarray
    held: np.ndarray


def _split(count: int, seed: int) -> _Split:
    order = np.random.Generator(np.random.Philox(seed)).permutation(count)
    held = order[: min(_VALIDATED, count // 3)]
    if not len(held):
        raise UserError(
            f"{count} training images are too few for a validation split; give a bandwidth and a "
            "ridge, as --config.trial.bandwidth=0.5 --config.trial.ridge=0"
        )
    return _Split(order[len(held) :][:_FITTED], held)


def _best(
    candidates: Sequence[float], error_of: Callable[[float], float], say: interpolation.Say
) -> tuple[float, dict[str, float]]:
    """The candidate with the smallest validation error, and {candidate: error}."""
    errors: dict[float, float] = {}
    for candidate in candidates:
        errors[candidate] = error_of(candidate)
        say(f"{candidate:g}: validation error {errors[candidate]:.2%}")
    return min(errors, key=errors.__getitem__), {f"{c:g}": e for c, e in errors.items()}


def _error(values_VxY: np.ndarray, targets_VxY: np.ndarray) -> float:
    return float(np.mean(values_VxY.argmax(axis=1) != targets_VxY.argmax(axis=1)))


def _with_ridge(options: Options, ridge: float, matrix: kernels.Matrix) -> Options:
    if not ridge:
        return options
    return dataclasses.replace(options, ridge=ridge * interpolation.mean_diagonal(matrix))


def _facts_of_ridge(ridge: float, errors: dict[str, dict[str, float]]) -> dict[str, Any]:
    tried = {f"validation error by {name}": found for name, found in errors.items()}
    return {"ridge by mean diagonal": ridge, **tried}


def _patches(
    dataset: Dataset,
    targets_NxY: np.ndarray,
    kernel: str,
    num_filters: int,
    ridge: float | None,
    options: Options,
    say: interpolation.Say,
) -> _Made:
    """A linear machine on features that are never all in memory: through their inner products."""
    if kernel not in ("auto", "linear"):
        raise UserError(f"the features {_PATCHES} are for the linear kernel, not {kernel}")
    side = min(dataset.image_shape[:2])
    if side < image_features.PATCH:
        raise UserError(
            f"patches of 6x6 pixels of images {side} pixels high or wide; take images of 6 or more"
        )
    train, test = dataset.train_images, dataset.test_images
    if ridge == 0 and not options.jitter:
        kept = interpolation.distinct(image_features.pixels(train), targets_NxY)
        train, targets_NxY = train[kept], targets_NxY[kept]
    needed, limit = 8 * len(train) * (len(train) + len(test)), memory.host_bytes()
    if not memory.fits(needed, limit):
        raise UserError(
            f"the inner products of {len(train):,} with {len(train) + len(test):,} images need "
            f"{memory.mib(needed)}; {memory.mib(limit or 0)} are available. Take a smaller "
            "--config.trial.num_train"
        )
    drawn = image_features.Patches(train, num_filters, options.seed)
    gram, cross_MxN = image_features.patch_matrices(drawn, train, test, say)
    errors = {}
    if ridge is None:
        ridge, errors["ridge"] = _validated_ridge(gram, targets_NxY, options, say)
    options = _with_ridge(options, ridge, gram)
    solution = interpolation.solve(gram, targets_NxY, options, say)
    facts = {
        "kernel": "linear",
        "filters": num_filters,
        "ZCA bias": image_features.ZCA_BIAS,
        **_facts_of_ridge(ridge, errors),
    }
    return _Made(solution, cross_MxN @ solution.alpha_NxY, facts)


def _validated_ridge(
    gram: kernels.DenseMatrix, targets_NxY: np.ndarray, options: Options, say: interpolation.Say
) -> tuple[float, dict[str, float]]:
    fitted, held = _split(gram.size, options.seed)
    inner = kernels.DenseMatrix(gram.values[np.ix_(fitted, fitted)])
    across_VxF = gram.values[np.ix_(held, fitted)]

    def error_of(ridge: float) -> float:
        with_ridge = _with_ridge(options, ridge, inner)
        solution = interpolation.solve(inner, targets_NxY[fitted], with_ridge, say)
        return _error(across_VxF @ solution.alpha_NxY, targets_NxY[held])

    return _best(_RIDGES, error_of, say)


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
        "MiB at most, of the process so far": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        / 2**10,
    }


def _most_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # In KiB on Linux.


def _stands(published: Published | None) -> dict[str, Any] | None:
    if published is None:
        return None
    return {"value": published.value, "where": published.where, "note": published.note}


def table(found: dict[str, Any]) -> str:
    """A row for each number: ours, and the paper's."""
    data, machine = found["data"], found["machine"]
    facts = ", ".join(
        f"{k} {_shown(k, v)}" for k, v in machine.items() if k != "features" and v not in ({}, None)
    )
    lines = [
        f"{data['train']:,} images of {data['name']}, {data['labels']} labels, seed "
        f"{data['seed']}; features "
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
    if isinstance(value, dict):
        return " ".join(f"{k}: {100 * v:.2f}%" for k, v in value.items())
    if isinstance(value, str):
        return value
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    return f"{100 * value:.2f}%" if row == "test error" else f"{value:.4g}"
