"""SGD on a linear model of images ends at the interpolating weights closest to its start.

Zhang et al. 2017, Section 5: from zero, SGD stays in the span of the rows and so finds the solution
of minimum norm; for random labels as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rethink_jax import header, promised
from rethink_jax.schema import Field, UserError
from rethink_jax.theory import cases, gradient_descent, images
from rethink_jax.theory.gradient_descent import Geometry

# Of checkpoints in each half: spaced by logarithms, and evenly (for the rate at the end).
_LOGARITHMIC, _EVEN = 40, 20
# Distances below this are rounding errors; no rate is read from them.
_FLOOR = 1e-11


class _Problem(NamedTuple):
    """What the runs share."""

    rows: images.Rows
    test_labels_M: np.ndarray
    geometry: Geometry
    batch_size: int
    seed: int


FIELDS = cases.IMAGES | {
    "num_train": Field(
        int, 40, "a random subset, small enough that its rows are linearly independent", low=2
    ),
    "inputs": Field(
        str, "standardized", "pixels from 0 to 1, or each of mean 0 and deviation 1",
        choices=images.INPUTS,
    ),
    "batch_size": Field(int, 10, "rows of a step", low=1),
    "momentum": Field(float, 0.9, "of the runs with momentum, below 1; 0: there are none", low=0),
    "step": Field(
        float, 0.95, "by the largest learning rate at which no batch can increase the distance to "
        "the limit; with momentum times 1 - momentum", low=0,
    ),
    "starts": Field(int, 3, "random ones, beside zero", low=0),
    "start_scale": Field(
        float, 1.0, "deviation of their weights, times the root of the dimensions", low=0
    ),
    "tolerance": Field(
        float, 1e-10, "of the distance to the limit, by the start's; decides how long runs are",
        low=0,
    ),
    "max_steps": Field(int, 300_000, "of a run, at most", low=1),
}  # fmt: skip

# None: a run has diverged by then.
_ALONG = promised.Each((promised.FINITE, None), "checkpoints")
_LABELS = ("true", "random")
FOUND = {
    "data": promised.DATA,
    "model": {
        "inputs": promised.NAME, "dimensions": promised.COUNT, "rank": promised.COUNT,
        "condition number": promised.NUMBER, "smallest eigenvalue": promised.NUMBER,
        "largest eigenvalue": promised.NUMBER, "step": promised.NUMBER,
        "largest eigenvalue of a batch, at most": promised.NUMBER, "batch size": promised.COUNT,
    },
    "minimum norm": {...: {"norm": promised.NUMBER, "test error": promised.NUMBER}},
    "runs": promised.Each({
        "labels": promised.one_of(*_LABELS), "momentum": promised.FINITE, "start": promised.NAME,
        "steps": promised.Each(promised.COUNT, "checkpoints"), "diverged": promised.FLAG,
        **dict.fromkeys(
            ("distance", "distance to the minimum norm", "residual",
             "component that may not move"), _ALONG,
        ),
        "predicted rate": promised.FINITE, "observed rate": (promised.NUMBER, None),
        "norm of the limit": promised.NUMBER, "test error of the limit": promised.NUMBER,
    }),
    "statements": {
        "largest distance to the minimum norm, from zero": (promised.NUMBER, None),
        "largest distance to its own limit": (promised.NUMBER, None),
        "largest change of the component that may not move": (promised.NUMBER, None),
        ...: (promised.NUMBER, None),
    },
}  # fmt: skip


def run(
    context: cases.Context,
    data: str,
    num_train: int,
    seed: int,
    inputs: str,
    batch_size: int,
    momentum: float,
    step: float,
    starts: int,
    start_scale: float,
    tolerance: float,
    max_steps: int,
) -> dict[str, Any]:
    """Trains from zero and from random starts, on true and random labels, and measures the way.

    The largest learning rate is 2 over `gradient_descent.largest_curvature`.

    Raises:
      UserError: as `sources.load` and `images.choose`; rows that do not interpolate; a value out of
        its range.
    """
    _check(momentum, step, start_scale, tolerance)
    whole = context.images(data, None, seed)
    dataset = images.choose(whole, num_train, seed)
    if not 1 <= batch_size <= num_train:
        raise UserError(f"batch_size is {batch_size}; take 1 to {num_train}, the training images")
    rows = images.rows(dataset, inputs, whole)
    geometry = gradient_descent.geometry(rows.train_NxD)
    if len(geometry.eigenvalues_R) < num_train:
        raise UserError(
            f"the {num_train} rows of {rows.train_NxD.shape[1]} pixels have rank "
            f"{len(geometry.eigenvalues_R)}, so they do not take any given values. Take a smaller "
            "num_train"
        )
    curvature = gradient_descent.largest_curvature(rows.train_NxD, batch_size)
    starting = _Starts(1 + starts, start_scale)
    problem = _Problem(rows, dataset.test_labels, geometry, batch_size, seed)
    found: dict[str, Any] = {
        "data": header.data_facts(dataset) | {"name": data, "seed": seed},
        "model": {
            "inputs": inputs, "dimensions": rows.train_NxD.shape[1], "rank": num_train,
            "condition number": geometry.condition,
            "largest eigenvalue": float(geometry.eigenvalues_R[0]),
            "largest eigenvalue of a batch, at most": curvature,
            "smallest eigenvalue": float(geometry.eigenvalues_R[-1]),
            "batch size": batch_size, "step": step, "start scale": start_scale,
            "tolerance": tolerance,
        },
        "minimum norm": {}, "runs": [],
    }  # fmt: skip
    for labels, prob in zip(_LABELS, (0.0, 1.0), strict=True):
        targets_NxY = images.onehot_targets(dataset, prob, seed)
        nearest_DxY = geometry.pseudo_inverse_DxN @ targets_NxY
        found["minimum norm"][labels] = {
            "norm": float(np.linalg.norm(nearest_DxY)),
            "test error": _error(problem, nearest_DxY),
        }
        for with_momentum in sorted({0.0, momentum}):
            pace = _pace(problem, step * 2 / curvature, with_momentum, tolerance, max_steps)
            context.say(f"{labels} labels, momentum {with_momentum:g}: {1 + starts} runs")
            found["runs"] += [
                {"labels": labels, **run} for run in _runs(problem, targets_NxY, starting, pace)
            ]
    return found | {"statements": _statements(found)}


def _check(momentum: float, step: float, start_scale: float, tolerance: float) -> None:
    for what, value, good, allowed in (
        ("momentum", momentum, momentum < 1, "0 or more, below 1"),
        ("step", step, step > 0, "more than 0; below 1 it cannot diverge"),
        ("start_scale", start_scale, start_scale > 0, "more than 0"),
        ("tolerance", tolerance, 0 < tolerance < 1, "more than 0, below 1"),
    ):
        if not good:
            raise UserError(f"trial.{what} is {value}; take {allowed}")


class _Starts(NamedTuple):
    """The first start is zero; deviations are `scale` over the root of the dimensions."""

    count: int
    scale: float

    def draw(self, number: int, shape: tuple[int, ...], seed: int) -> np.ndarray:
        generator = np.random.Generator(np.random.Philox(key=[seed, number]))
        return (number > 0) * generator.normal(size=shape) * self.scale / math.sqrt(shape[0])


class _Pace(NamedTuple):
    """How runs go, and the epochs at which they are measured."""

    learning_rate: float
    momentum: float
    predicted_rate: float
    epochs_C: np.ndarray


def _pace(
    problem: _Problem, learning_rate: float, momentum: float, tolerance: float, max_steps: int
) -> _Pace:
    """learning_rate: without momentum"""
    learning_rate *= 1 - momentum
    rate = gradient_descent.rate(learning_rate, momentum, float(problem.geometry.eigenvalues_R[-1]))
    steps_per_epoch = len(problem.rows.train_NxD) // problem.batch_size
    return _Pace(
        learning_rate, momentum, rate, _checkpoints(rate, steps_per_epoch, tolerance, max_steps)
    )


def _checkpoints(rate: float, steps_per_epoch: int, tolerance: float, max_steps: int) -> np.ndarray:
    """Epochs, the last of which the predicted rate needs to reach the tolerance."""
    # A quarter more: the rate holds for the slowest mode once the others are gone.
    steps = min(1.25 * math.log(tolerance) / math.log(rate), max_steps)
    last = max(math.ceil(steps / steps_per_epoch), 2)
    spaced = np.geomspace(1, last, _LOGARITHMIC), np.linspace(last / 2, last, _EVEN)
    return np.unique(np.concatenate([[0], *spaced]).astype(np.int64))


def _error(problem: _Problem, weights_DxY: np.ndarray) -> float:
    return images.test_error(weights_DxY, problem.rows.test_MxD, problem.test_labels_M)


def _runs(
    problem: _Problem, targets_NxY: np.ndarray, starts: _Starts, pace: _Pace
) -> list[dict[str, Any]]:
    """One run from each start."""
    shape = problem.rows.train_NxD.shape[1], targets_NxY.shape[1]
    return [
        {
            "momentum": pace.momentum,
            "start": f"random {number}" if number else "zero",
            "learning rate": pace.learning_rate,
            "predicted rate": pace.predicted_rate,
            **_measured(problem, targets_NxY, starts.draw(number, shape, problem.seed), pace),
        }
        for number in range(starts.count)
    ]


def _measured(
    problem: _Problem, targets_NxY: np.ndarray, start_DxY: np.ndarray, pace: _Pace
) -> dict[str, Any]:
    """One run: numbers at each checkpoint, and of its limit.

    "distance" is to the start's own limit, over that of the start. "component that may not move" is
    the change of the weights outside the span of the rows, over the size of that component or, from
    zero, over the limit's size.
    """
    rows_NxD, geometry = problem.rows.train_NxD, problem.geometry
    limit_DxY = gradient_descent.limit(geometry, rows_NxD, targets_NxY, start_DxY)
    weights_CxDxY = gradient_descent.descend(
        rows_NxD, targets_NxY, start_DxY, pace.epochs_C, pace.learning_rate, pace.momentum,
        problem.batch_size, problem.seed,
    )  # fmt: skip
    nearest_DxY = geometry.pseudo_inverse_DxN @ targets_NxY
    frozen_DxK = geometry.frozen_DxK
    frozen_size = np.linalg.norm(frozen_DxK.T @ start_DxY)
    with np.errstate(over="ignore", invalid="ignore"):  # A run may diverge.
        distance_C = _sizes(weights_CxDxY - limit_DxY) / np.linalg.norm(limit_DxY - start_DxY)
        curves = {
            "distance": distance_C,
            "distance to the minimum norm": _sizes(weights_CxDxY - nearest_DxY)
            / np.linalg.norm(nearest_DxY),
            "residual": _sizes(targets_NxY - rows_NxD @ weights_CxDxY)
            / np.linalg.norm(targets_NxY),
            "component that may not move": _sizes(frozen_DxK.T @ (weights_CxDxY - start_DxY))
            / (frozen_size or np.linalg.norm(limit_DxY)),
        }
    steps_C = pace.epochs_C * (len(rows_NxD) // problem.batch_size)
    return {
        "steps": steps_C.tolist(),
        **{name: [_finite(x) for x in values] for name, values in curves.items()},
        "observed rate": _observed_rate(steps_C, distance_C),
        "diverged": not bool(np.isfinite(distance_C[-1]) and distance_C[-1] < 1),
        "norm of the limit": float(np.linalg.norm(limit_DxY)),
        "norm of its component that may not move": float(frozen_size),
        "test error of the limit": _error(problem, limit_DxY),
        "test error at the end": _error(problem, weights_CxDxY[-1]),
    }


def _sizes(weights_CxDxY: np.ndarray) -> np.ndarray:
    return np.linalg.norm(weights_CxDxY, axis=(1, 2))


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _observed_rate(steps_C: np.ndarray, distance_C: np.ndarray) -> float | None:
    """By a line through the logarithms of the second half; None if all of it is rounding."""
    used_C = (steps_C >= steps_C[-1] / 2) & np.isfinite(distance_C) & (distance_C > _FLOOR)
    if used_C.sum() < 3:
        return None
    return float(np.exp(np.polyfit(steps_C[used_C], np.log(distance_C[used_C]), 1)[0]))


def _statements(found: dict[str, Any]) -> dict[str, Any]:
    """What the runs say of the theorem, in numbers."""
    runs = [r for r in found["runs"] if not r["diverged"]]
    tolerance = found["model"]["tolerance"]

    def largest(name: str, start: Callable[[str], bool] = lambda start: True) -> float | None:
        return max((r[name][-1] for r in runs if start(r["start"])), default=None)

    return {
        "runs": len(found["runs"]),
        "runs that diverged": len(found["runs"]) - len(runs),
        "runs that reached the tolerance": sum(r["distance"][-1] <= tolerance for r in runs),
        "largest distance to the minimum norm, from zero": largest(
            "distance to the minimum norm", lambda start: start == "zero"
        ),
        "largest distance to its own limit": largest("distance"),
        "smallest distance to the minimum norm, from random starts": min(
            (r["distance to the minimum norm"][-1] for r in runs if r["start"] != "zero"),
            default=None,
        ),
        "largest residual": largest("residual"),
        "largest change of the component that may not move": max(
            (max(r["component that may not move"]) for r in runs), default=None
        ),
    }


def table(found: dict[str, Any]) -> str:
    """The runs and, below them, what they say of the theorem."""
    model, data = found["model"], found["data"]
    lines = [
        f"{data['train']:,} images of {data['name']}, seed {data['seed']}; {model['inputs']} "
        f"pixels, {model['dimensions']:,} dimensions, rank {model['rank']}",
        f"X^T X / N has eigenvalues from {model['smallest eigenvalue']:.3g} to "
        f"{model['largest eigenvalue']:.3g}: condition number {model['condition number']:.4g}. "
        f"Learning rate without momentum: {model['step']:g} times 2 / "
        f"{model['largest eigenvalue of a batch, at most']:.3g}, a bound on the largest eigenvalue "
        f"of any batch of {model['batch size']}",
        "",
        f"{'labels':8}{'momentum':>9}  {'start':10}{'steps':>8}{'distance':>11}{'to minimum':>12}"
        f"{'residual':>10}{'frozen':>10}{'norm':>8}{'error':>8}   1 - rate, predicted, observed",
    ]
    lines += map(_run_line, found["runs"])
    lines += [
        f"{labels + ' labels, minimum norm by the pseudo-inverse':67}"
        f"{'':11}{of['norm']:>8.4g}{100 * of['test error']:>7.1f}%"
        for labels, of in found["minimum norm"].items()
    ]
    lines += [
        "",
        "distance: to the interpolating weights closest to the start, over the start's own. "
        "frozen: change of the component outside the span of the rows, over its size.",
        "norm, error: of the limit, on test images.",
        "",
        *_sentences(found),
    ]
    return "\n".join(lines)


def _run_line(r: dict[str, Any]) -> str:
    head = f"{r['labels']:8}{r['momentum']:>9g}  {r['start']:10}{r['steps'][-1]:>8,}"
    if r["diverged"]:
        return f"{head}{'diverged':>11}"
    observed = "-" if r["observed rate"] is None else f"{1 - r['observed rate']:.3g}"
    return (
        f"{head}{r['distance'][-1]:>11.1e}{r['distance to the minimum norm'][-1]:>12.1e}"
        f"{r['residual'][-1]:>10.1e}{r['component that may not move'][-1]:>10.1e}"
        f"{r['norm of the limit']:>8.4g}{100 * r['test error of the limit']:>7.1f}%"
        f"   {1 - r['predicted rate']:.3g}, {observed}"
    )


def _sentences(found: dict[str, Any]) -> Sequence[str]:
    shown = {
        name: "-" if value is None else f"{value:.3g}"
        for name, value in found["statements"].items()
    }
    return [f"{name}: {value}" for name, value in shown.items()]
