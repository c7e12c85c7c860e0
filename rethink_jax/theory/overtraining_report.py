"""The overtraining peak at as many weights as examples, and what removes it.

A linear student of a noisy teacher, by theory in the limit of large dimensions and by gradient
descent; then random ReLU features of images with noisy labels. Advani and Saxe (2017, arXiv
1710.03667, abstract) say where overtraining is worst, that small initial weights are needed where
examples are few, and that some directions of the weights stay frozen; how the best time to stop
grows is measured beside that. The formulas are derived in `overtraining`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rethink_jax import header
from rethink_jax.data.dataset import Dataset
from rethink_jax.schema import Field, UserError
from rethink_jax.theory import cases, overtraining, overtraining_images, overtraining_text
from rethink_jax.theory.overtraining import Setting

_CHECKPOINTS, _FINE = 60, 121
_TIME_ALPHAS = (0.5, 1.0, 2.0)
_TIME_SNRS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
# Where the smallest eigenvalue alone decides the best time.
_LARGE_SNRS = (1e6, 1e8)
_SMALL = 0.1  # Of the large start.

table, FOUND = overtraining_text.table, overtraining_text.FOUND


class _Simulation(NamedTuple):
    """Of every alpha. step: learning rate times the law's largest eigenvalue."""

    dimensions: int
    step: float
    steps: int
    seeds: Sequence[int]


_ALPHAS = (0.1, 0.2, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 5.0, 10.0)
_RATIOS = (0.1, 0.3, 0.6, 0.8, 0.9, 1.0, 1.1, 1.3, 2.0, 4.0, 8.0)

FIELDS = {
    "dimensions": Field(int, 100, "of the simulated student", low=1),
    "alphas": Field(tuple, _ALPHAS, "examples by dimensions, above 0", each=float),
    "snr": Field(float, 5.0, "variance of the teacher's output over that of the noise", low=0),
    "start": Field(
        float, 1.0, "deviation of a large start's weights, by the teacher's; a small one has a "
        "tenth", low=0,
    ),
    "step": Field(float, 0.5, "learning rate times the law's largest eigenvalue, below 1", low=0),
    "steps": Field(int, 2000, "of gradient descent", low=1),
    "seeds": Field(int, 10, "data sets at each alpha, from seed on", low=1),
    "seed": cases.IMAGES["seed"],
    "data": Field(
        str, "digits", "of the second part, with random ReLU features; None: there is none",
        optional=True,
    ),
    "num_train": Field(int, 200, "images of the second part", low=2),
    "label_noise": Field(float, 0.2, "probability that a label is redrawn", low=0, high=1),
    "ratios": Field(tuple, _RATIOS, "features by images, above 0", each=float),
    "image_steps": Field(int, 3000, "of gradient descent on features of images", low=1),
    "image_seeds": Field(int, 3, "sets of images and features", low=1),
}  # fmt: skip


def run(
    context: cases.Context,
    dimensions: int,
    alphas: Sequence[float],
    snr: float,
    start: float,
    step: float,
    steps: int,
    seeds: int,
    seed: int,
    data: str | None,
    num_train: int,
    label_noise: float,
    ratios: Sequence[float],
    image_steps: int,
    image_seeds: int,
) -> dict[str, Any]:
    """Test errors of descent to its end, stopped, from small and large starts, and of a ridge.

    Raises:
      UserError: as `sources.load`; a value out of its range.
    """
    _check(snr, step, alphas, ratios)
    whole = None if data is None else context.images(data, None, seed)
    simulation = _Simulation(dimensions, step, steps, range(seed, seed + seeds))
    found: dict[str, Any] = {
        "model": {
            "dimensions": dimensions, "snr": snr, "start": start, "small start": _SMALL * start,
            "step": step, "steps": steps, "seeds": seeds, "seed": seed,
        },
        "alpha": list(map(float, alphas)), "theory": {}, "simulated": {}, "curves": [],
        "theory, at more alphas": _fine(alphas, snr, start),
    }  # fmt: skip
    for alpha in alphas:
        context.say(f"alpha {alpha:g}: {seeds} data sets in {dimensions} dimensions")
        case = _case(Setting(float(alpha), snr), start, simulation)
        spaced = np.geomspace(1, steps, _CHECKPOINTS).astype(int)
        steps_C = np.unique(np.concatenate([[0, case.stop], spaced]))
        values, errors = zip(
            *(_simulated(case, steps_C, simulation, one) for one in simulation.seeds), strict=True
        )
        for name, value in _theory(case, steps).items():
            found["theory"].setdefault(name, []).append(_finite(value))
            for what, number in _spread([of[name] for of in values]).items():
                found["simulated"].setdefault(name, {}).setdefault(what, []).append(number)
        found["curves"].append(_curve(case, steps_C, np.array(errors)))
    context.say("best times by signal to noise")
    found["times"] = [_times(alpha, simulation) for alpha in _TIME_ALPHAS]
    if whole is not None:
        of_images = overtraining_images.Options(
            num_train, label_noise, ratios, image_steps, range(seed, seed + image_seeds)
        )
        found["images"] = _images(context.say, whole, of_images)
    return found | {"statements": _statements(found)}


def _check(snr: float, step: float, alphas: Sequence[float], ratios: Sequence[float]) -> None:
    for what, value, good, allowed in (
        ("snr", snr, snr > 0, "more than 0"),
        ("step", step, 0 < step < 1, "more than 0, below 1"),
        ("alphas", tuple(alphas), len(alphas) and min(alphas) > 0, "one or more above 0"),
        ("ratios", tuple(ratios), len(ratios) and min(ratios) > 0, "one or more above 0"),
    ):
        if not good:
            raise UserError(f"trial.{what} is {value}; take {allowed}")


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    """Over seeds. The minimum norm's error has no mean where examples are as many as weights."""
    spread = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return {
        "mean": float(np.mean(values)), "standard error": _finite(spread),
        "median": float(np.median(values)), "lowest": float(min(values)),
        "highest": float(max(values)),
    }  # fmt: skip


# --- one alpha ------------------------------------------------------------------------------------


class _Case(NamedTuple):
    """From zero and other starts; rate: the learning rate   stop, large_stop: the best steps"""

    zero: Setting
    large: Setting
    small: Setting
    rate: float
    stop: int
    large_stop: int


def _case(setting: Setting, start: float, simulation: _Simulation) -> _Case:
    rate = overtraining.learning_rate(setting.alpha, simulation.step)
    large, small = (dataclasses.replace(setting, start=s * start) for s in (1.0, _SMALL))
    stop, large_stop = (
        min(max(round(overtraining.best_time(of, rate) / rate), 1), simulation.steps)
        for of in (setting, large)
    )
    return _Case(setting, large, small, rate, stop, large_stop)


def _theory(case: _Case, steps: int) -> dict[str, float]:
    zero, large, small, rate, stop, large_stop = case
    ends = [overtraining.final_test_error(of) for of in (zero, large, small)]
    frozen = max(1 - zero.alpha, 0.0)
    return {
        "minimum norm": ends[0],
        "last step": float(overtraining.test_error(zero, steps * rate, rate)),
        "stopped": float(overtraining.test_error(zero, stop * rate, rate)),
        "ridge": overtraining.ridge_test_error(zero, overtraining.best_ridge(zero)),
        "large start, end": ends[1],
        "large start, stopped": float(overtraining.test_error(large, large_stop * rate, rate)),
        "small start, end": ends[2],
        "large start, cost": frozen * large.start**2,
        "small start, cost": frozen * small.start**2,
    }


def _simulated(
    case: _Case, steps_C: np.ndarray, simulation: _Simulation, seed: int
) -> tuple[dict[str, float], np.ndarray]:
    """Of one data set: the values of `_theory`, and test and training errors [2, C] from zero."""
    drawn = overtraining.draw(case.zero, simulation.dimensions, seed)
    from_large, from_small = (drawn._replace(setting=of) for of in (case.large, case.small))
    weights_CxNx1 = overtraining.descend(drawn, steps_C, case.rate)
    stopped_1xNx1 = overtraining.descend(from_large, np.array([case.large_stop]), case.rate)
    tests_C = drawn.test_error(weights_CxNx1)
    ends = [
        float(of.test_error(overtraining.closest(of))) for of in (drawn, from_large, from_small)
    ]
    ridge_Nx1 = overtraining.ridge_weights(drawn, overtraining.best_ridge(case.zero))
    values = {
        "minimum norm": ends[0],
        "last step": float(tests_C[-1]),
        "stopped": float(tests_C[steps_C == case.stop][0]),
        "ridge": float(drawn.test_error(ridge_Nx1)),
        "large start, end": ends[1],
        "large start, stopped": float(drawn.test_error(stopped_1xNx1)[0]),
        "small start, end": ends[2],
        "large start, cost": ends[1] - ends[0],
        "small start, cost": ends[2] - ends[0],
    }
    return values, np.array([tests_C, drawn.train_error(weights_CxNx1)])


def _curve(case: _Case, steps_C: np.ndarray, errors_Sx2xC: np.ndarray) -> dict[str, Any]:
    """Errors along training from zero: the means over seeds beside the theory."""
    times_C, rate = steps_C * case.rate, case.rate
    test_C, training_C = np.mean(errors_Sx2xC, axis=0)
    return {
        "alpha": case.zero.alpha, "steps": steps_C.tolist(), "learning rate": rate,
        "test": test_C.tolist(), "training": training_C.tolist(),
        "test, theory": overtraining.test_error(case.zero, times_C, rate).tolist(),
        "training, theory": overtraining.train_error(case.zero, times_C, rate).tolist(),
    }  # fmt: skip


def _fine(alphas: Sequence[float], snr: float, start: float) -> dict[str, Any]:
    """Theory, for a continuous flow, at many alphas."""
    made: dict[str, Any] = {"alpha": np.geomspace(min(alphas), max(alphas), _FINE).tolist()}
    for alpha in made["alpha"]:
        zero, large = Setting(alpha, snr), Setting(alpha, snr, start)
        for name, value in (
            ("minimum norm", overtraining.final_test_error(zero)),
            ("stopped", overtraining.test_error(zero, overtraining.best_time(zero))),
            ("ridge", overtraining.ridge_test_error(zero, overtraining.best_ridge(zero))),
            ("large start, end", overtraining.final_test_error(large)),
            ("large start, stopped", overtraining.test_error(large, overtraining.best_time(large))),
        ):
            made.setdefault(name, []).append(_finite(float(value)))
    return made


# --- the best time --------------------------------------------------------------------------------


def _times(alpha: float, simulation: _Simulation) -> dict[str, Any]:
    """Best times by theory and, of the mean error over seeds, by simulation; by snr."""
    rate = overtraining.learning_rate(alpha, simulation.step)
    theory = [overtraining.best_time(Setting(alpha, snr)) for snr in _TIME_SNRS]
    simulated = []
    for snr, expected in zip(_TIME_SNRS, theory, strict=True):
        last = max(math.ceil(4 * expected / rate), 2)
        # Some twice, so that all are as many: one compilation.
        steps_C = np.geomspace(1, last, 200).astype(int)
        errors = []
        for seed in simulation.seeds:
            drawn = overtraining.draw(Setting(alpha, snr), simulation.dimensions, seed)
            errors.append(drawn.test_error(overtraining.descend(drawn, steps_C, rate)))
        simulated.append(float(steps_C[np.mean(errors, axis=0).argmin()] * rate))
    large = [overtraining.best_time(Setting(alpha, snr)) for snr in _LARGE_SNRS]
    low = (1 - math.sqrt(alpha)) ** 2
    return {
        "alpha": alpha, "snr": list(_TIME_SNRS), "theory": theory, "simulated": simulated,
        # By theory at large snr: d time / d log(snr), and 1 over the smallest eigenvalue.
        "slope": None if alpha == 1 else float(np.diff(large)[0] / np.diff(np.log(_LARGE_SNRS))[0]),
        "slope in the limit": 1 / low if low else None,
        "exponent": float(np.polyfit(np.log(_TIME_SNRS[-4:]), np.log(theory[-4:]), 1)[0]),
        "exponent, simulated": float(
            np.polyfit(np.log(_TIME_SNRS[-4:]), np.log(simulated[-4:]), 1)[0]
        ),
    }  # fmt: skip


# --- images ---------------------------------------------------------------------------------------


def _images(
    say: Callable[[str], None], whole: Dataset, options: overtraining_images.Options
) -> dict[str, Any]:
    made = overtraining_images.run(whole, options, say)
    by_ratio: dict[str, dict[str, list[float | None]]] = {}
    for name, rows in made["errors"].items():
        for values in rows:
            for what, value in _spread(values).items():
                by_ratio.setdefault(name, {}).setdefault(what, []).append(value)
    return {
        "data": header.data_facts(whole) | {"name": whole.name},
        "images": options.num_train, "label noise": options.noise, "seeds": len(options.seeds),
        "steps": options.steps, "ratio": list(map(float, options.ratios)),
        "features": made["features"], "errors": by_ratio,
    }  # fmt: skip


# --- what it says ---------------------------------------------------------------------------------


def _statements(found: dict[str, Any]) -> dict[str, Any]:
    alphas, theory, simulated = found["alpha"], found["theory"], found["simulated"]
    minimum = simulated["minimum norm"]["median"]
    peak = int(np.argmax(minimum))
    infinite = [math.inf if value is None else value for value in theory["minimum norm"]]
    stopped = simulated["stopped"]["mean"]
    said: dict[str, Any] = {
        "peak of the minimum norm, alpha": alphas[peak],
        "peak in theory, alpha": alphas[int(np.argmax(infinite))],
        "minimum norm at the peak, median": minimum[peak],
        "stopped at the peak": stopped[peak],
        "stopped at the peak, theory": theory["stopped"][peak],
        "ridge at the peak": simulated["ridge"]["mean"][peak],
        "ridge at the peak, theory": theory["ridge"][peak],
        "largest rise of the stopped error with alpha": _rise(alphas, stopped),
        "largest rise of the stopped error with alpha, theory": _rise(alphas, theory["stopped"]),
        "largest rise of the ridge's error with alpha, theory": _rise(alphas, theory["ridge"]),
        **_start_costs(found),
    }
    for times in found["times"]:
        alpha = times["alpha"]
        if times["slope"] is None:
            said[f"exponent of the best time in snr, alpha {alpha:g}"] = times["exponent"]
        else:
            said[f"best time by log snr, alpha {alpha:g}"] = times["slope"]
            said[f"1 / smallest eigenvalue, alpha {alpha:g}"] = times["slope in the limit"]
    if "images" in found:
        said |= _image_statements(found["images"])
    return said


def _rise(alphas: Sequence[float], errors: Sequence[float]) -> float | None:
    """The largest increase from one alpha to the next larger one; below 0: there is no peak."""
    if len(alphas) < 2:
        return None
    return float(np.max(np.diff(np.array(errors)[np.argsort(alphas)])))


def _start_costs(found: dict[str, Any]) -> dict[str, Any]:
    """How much worse the end is from a large and from a small start, by alpha below 1."""
    below = [i for i, alpha in enumerate(found["alpha"]) if alpha < 1]
    costs: dict[str, Any] = {"alphas below 1": [found["alpha"][i] for i in below]}
    for name in ("large", "small"):
        simulated = found["simulated"][f"{name} start, cost"]
        costs[f"cost of a {name} start"] = [simulated["mean"][i] for i in below]
        costs[f"cost of a {name} start, standard error"] = [
            simulated["standard error"][i] for i in below
        ]
        costs[f"cost of a {name} start, theory"] = [
            found["theory"][f"{name} start, cost"][i] for i in below
        ]
    return costs


def _image_statements(made: dict[str, Any]) -> dict[str, Any]:
    errors = made["errors"]
    peak = int(np.argmax(errors["minimum norm"]["mean"]))
    return {
        "images: peak of the minimum norm, features by images": made["ratio"][peak],
        "images: minimum norm at the peak": errors["minimum norm"]["mean"][peak],
        "images: last step at the peak": errors["last step"]["mean"][peak],
        "images: best step at the peak": errors["best"]["mean"][peak],
        "images: largest rise of the best error with features": _rise(
            made["ratio"], errors["best"]["mean"]
        ),
    }
