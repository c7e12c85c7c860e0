"""Theorem 1 on images: that the memorizer fits them, what it costs, and that it learns nothing.

Beside it, if asked for, a network of one hidden layer that SGD trains on the same images and labels
until it fits them all.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rethink_jax import (
    default_config,
    header,
    inputs,
    load_trial,
    measures,
    promised,
    records,
    sweep,
    trials,
)
from rethink_jax.cli import EXIT_FAILED, EXIT_OK
from rethink_jax.data import preprocess
from rethink_jax.data.dataset import Dataset
from rethink_jax.schema import Field, UserError
from rethink_jax.theory import cases
from rethink_jax.theory.memorizer import Memorizer, memorize

_NORMS = ("log_product_frobenius", "log_product_spectral_exact")
_PATHS = ("log_path_l1_maxpool_nobias", "log_path_l2_maxpool_nobias")
# Of a deeper network there are thousands of operations to compile.
_DEEPEST_MEASURED = 20
# Directions that may tell apart what ties in float32.
_DIRECTIONS = 8
_MOST_EPOCHS = 2000

FIELDS = cases.IMAGES | {
    "labels": Field(
        str, "random", "of the training images; random: each redrawn uniformly",
        choices=("random", "true"),
    ),
    "depth": Field(int, 2, "layers with weights; 2 is Theorem 1", low=2),
    "precision": Field(str, "float64", "of its arithmetic", choices=("float64", "float32")),
    "sgd": Field(int, 0, "hidden units of a network that SGD fits beside it; 0: none", low=0),
}  # fmt: skip

_NETWORK = {
    "depth": promised.COUNT, "width": promised.COUNT, "weights": promised.COUNT,
    "weights - (2n+d)": promised.Maybe(promised.COUNT), "labels reproduced": promised.NUMBER,
    "test error": promised.NUMBER, ...: (promised.NUMBER, None),
}  # fmt: skip
FOUND = {
    "data": promised.DATA | {"labels": promised.NAME},
    "memorizer": _NETWORK,
    "sgd": promised.Maybe(_NETWORK),
}


def run(
    context: cases.Context,
    data: str,
    num_train: int | None,
    seed: int,
    labels: str,
    depth: int,
    precision: str,
    sgd: int,
) -> dict[str, Any]:
    """Builds the memorizer, checks and measures it.

    Raises:
      UserError: as `sources.load` and `memorize`.
    """
    config = _config(context.settings, data, num_train, labels, seed, sgd)
    plan = sweep.Sweep(config)
    (group,) = plan.groups
    dataset, trial = plan.dataset_of(group), group.trials[0]
    assert isinstance(dataset, Dataset)  # `cases.expand` takes no others.
    labels_N = inputs.trial_labels(trial, dataset)[0]
    found = {
        "data": header.data_facts(dataset) | {"name": data, "labels": labels, "seed": seed},
        "memorizer": _memorizer(dataset, labels_N, depth, precision, seed),
    }
    if sgd:
        code = sweep.run(plan, context.folder, context.command)
        if code == EXIT_FAILED:
            table = context.folder / "trials.csv"
            raise UserError(f"the network beside it could not be trained; {table} has the reason")
        if code != EXIT_OK:
            raise KeyboardInterrupt
        found["sgd"] = _sgd(context.folder, trial, dataset, labels_N)
    return found


def _config(
    settings: dict[str, Any], data: str, num_train: int | None, labels: str, seed: int, hidden: int
) -> Any:
    """Of the SGD network; also without one, it says which images and labels are meant."""
    config = default_config()
    config.data_files.dir = settings["data_files.dir"]
    config.data_files.download = settings["data_files.download"]
    config.evaluate.every_epochs = 10
    trial = config.trial
    trial.seed = seed
    trial.data.name, trial.data.num_train, trial.data.seed = data, num_train, seed
    trial.corruption.label_prob = {"random": 1.0, "true": 0.0}[labels]
    trial.batch_size = min(32, num_train or 32)
    trial.model.hidden = (hidden or 1,)
    # With 0.01 it stayed below 100% on random labels (BUILD_NOTES.md).
    trial.optimizer.learning_rate, trial.optimizer.lr_decay = 0.003, 1.0
    trial.stop.train_accuracy, trial.stop.max_epochs = 1.0, _MOST_EPOCHS
    return config


# --- the two networks -----------------------------------------------------------------------------


def _memorizer(
    dataset: Dataset, labels_N: np.ndarray, depth: int, precision: str, seed: int
) -> dict[str, Any]:
    images = dataset.train_images
    begun = time.perf_counter()
    made = memorize(
        images,
        labels_N,
        levels=range(dataset.num_classes),
        depth=depth,
        dtype=precision,
        max_directions=_DIRECTIONS if precision == "float32" else 1,
        seed=seed,
    )
    built = time.perf_counter()
    errors_N = np.abs(made.values(images).astype(np.float64) - labels_N)
    seconds = {"construction": built - begun, "forward pass": time.perf_counter() - built}
    weights = [np.concatenate([p.weights for p in part.polyline.pieces]) for part in made.parts]
    knots = [np.concatenate([p.knots for p in part.polyline.pieces]) for part in made.parts]
    row = {
        "distinct images (n)": made.num_points,
        "values of an image (d)": math.prod(dataset.image_shape),
        "depth": depth,
        "width": made.width,
        "directions": len(made.parts),
        "weights": made.num_weights,
        "weights - (2n+d)": made.num_weights - 2 * made.num_points - len(images[0].ravel()),
        **{f"seconds of {what}": value for what, value in seconds.items()},
        "largest error": errors_N.max(),
        "labels reproduced": np.mean(errors_N < 0.5),
        "0.5 by largest error": 0.5 / max(errors_N.max(), np.finfo(np.float64).tiny),
    }
    if precision == "float64":
        rounded_N = np.abs(made.values(images, np.float32).astype(np.float64) - labels_N)
        row["the same weights in float32, largest error"] = rounded_N.max()
        row["the same weights in float32, reproduced"] = np.mean(rounded_N < 0.5)
    return row | {
        "smallest gap (smallest eigenvalue of A)": made.conditioning.smallest_gap,
        "smallest gap by range": made.conditioning.relative_gap,
        "condition number of A": made.conditioning.condition,
        "l2 norm of a": _norm([part.direction_D for part in made.parts]),
        "l2 norm of b": _norm(knots),
        "l2 norm of w": _norm(weights),
        "largest |w|": max(np.abs(w).max() for w in weights),
        "test error": np.mean(made.classes(dataset.test_images) != dataset.test_labels),
        **_measured_memorizer(made, images, labels_N),
    }


def _norm(arrays: list[np.ndarray]) -> float:
    return float(np.linalg.norm(np.concatenate(arrays).astype(np.float64)))


def _measured_memorizer(
    made: Memorizer, images: np.ndarray, labels_N: np.ndarray
) -> dict[str, float]:
    if made.depth > _DEEPEST_MEASURED:
        return {}
    # The pieces of a deep one are no layers in a row, of which a product of norms would be.
    names = ("margin_min", *(_NORMS if made.depth == 2 else ()), *_PATHS)
    with jax.enable_x64(made.dtype == np.float64):
        found = measures.compute(made.model, made.variables, images, labels_N, names=names)
    return _rows(found, images)


def _rows(found: dict[str, float], images: np.ndarray) -> dict[str, float]:
    """Measures, and what does not depend on the units of the images."""
    if "log_product_spectral_exact" in found:
        root_mean_square = math.sqrt(
            np.mean([np.sum(np.square(image, dtype=np.float64)) for image in images])
        )
        scale = math.exp(found["log_product_spectral_exact"]) * root_mean_square
        found = found | {"margin / (product of spectral norms * |x|)": found["margin_min"] / scale}
    return found


def _sgd(
    workdir: Path, trial: trials.Trial, dataset: Dataset, labels_N: np.ndarray
) -> dict[str, Any]:
    loaded = load_trial(workdir, trial.trial_id)
    normalize = preprocess.NORMALIZE[trial["preprocess.normalize"]]
    taken, test = (
        np.asarray(normalize(jnp.asarray(images, jnp.float32) / 255))
        for images in (dataset.train_images, dataset.test_images)
    )
    names = ("margin_min", *_NORMS, *_PATHS)
    found = measures.compute(loaded.model, loaded.variables, taken, labels_N, names=names)
    predicted = [
        np.argmax(
            np.asarray(loaded.model.apply(loaded.variables, images, False).logits_BxY), axis=1
        )
        for images in (taken, test)
    ]
    run = records.Workdir(workdir).header()["runs"][-1]
    return {
        "distinct images (n)": len(labels_N),
        "values of an image (d)": math.prod(dataset.image_shape),
        "depth": len(trial["model.hidden"]) + 1,
        "width": max(trial["model.hidden"]),
        "weights": loaded.result["num_params"],
        "seconds of construction": run.get("seconds"),
        "epochs of SGD": loaded.result["epochs"],
        "labels reproduced": np.mean(predicted[0] == labels_N),
        "test error": np.mean(predicted[1] != dataset.test_labels),
        **_rows(found, taken),
    }


# --- the table ------------------------------------------------------------------------------------


def table(found: dict[str, Any]) -> str:
    """A row for each number, a column for each network."""
    columns = [name for name in ("memorizer", "sgd") if name in found]
    rows = list(dict.fromkeys(row for name in columns for row in found[name]))
    data = found["data"]
    lines = [
        f"{data['train']:,} images of {data['name']}, {data['labels']} labels, seed {data['seed']}",
        f"{'':48}" + "".join(f"{name:>14}" for name in columns),
    ]
    for row in rows:
        values = (_shown(row, found[name].get(row)) for name in columns)
        lines.append(f"{row:48}" + "".join(f"{value:>14}" for value in values))
    return "\n".join(line.rstrip() for line in lines)


def _shown(row: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    if "reproduced" in row or "test error" in row:
        return f"{100 * value:.2f}%"
    return f"{value:.4g}"
