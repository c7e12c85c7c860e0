"""What is recorded of a finished trial: its result.json, and its row in trials.csv."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from rethink_jax import records, train
from rethink_jax.lane_run import Finished
from rethink_jax.schema import nest
from rethink_jax.step import Spec
from rethink_jax.trials import Group, Trial


def result_of(
    spec: Spec, group: Group, finished: Finished, state: train.TrialState
) -> dict[str, Any]:
    """The row of results of one trial."""
    trial: Trial = finished.trial
    epochs, fit_epoch = int(state.epoch), int(state.fit_epoch)
    last = dict(zip(train.CURVE, state.curve[epochs - 1], strict=True))
    status = train.STATUS_NAMES[int(state.status)]
    label_noise, test_label_noise = finished.label_noise
    return {
        "trial_id": trial.trial_id,
        "group_id": group.group_id,
        "status": status,
        "stop_reason": _stop_reason(trial, status, last),
        "trial": nest(dict(trial.fields)),
        "label_noise": round(label_noise, 9),
        "test_label_noise": round(test_label_noise, 9),
        "num_params": sum(int(np.size(p)) for p in jax.tree.leaves(state.params)),
        "steps_per_epoch": spec.steps_per_epoch,
        "epochs": epochs,
        "epochs_to_fit": fit_epoch or None,
        "steps_to_fit": fit_epoch * spec.steps_per_epoch or None,
        "image_shape": list(spec.image_shape),
        "num_classes": spec.num_classes,
        "final": {k: records.short_float(v) for k, v in last.items()},
        "best": _best(state.curve[:epochs]),
    }


def _best(curve_ExC: np.ndarray) -> dict[str, Any]:
    """The highest test accuracy along training, and its first epoch: what early stopping gains."""
    accuracy_E = curve_ExC[:, train.CURVE.index("test_accuracy")]
    if np.isnan(accuracy_E).all():
        return {"test_accuracy": None, "epoch": None}
    epoch = int(np.nanargmax(accuracy_E))
    return {"test_accuracy": records.short_float(accuracy_E[epoch]), "epoch": epoch + 1}


def _stop_reason(trial: Trial, status: str, last: dict[str, Any]) -> str:
    if status == "diverged":
        return "non_finite"
    if status == "finished" or not trial["stop.when_fitted"]:
        return "max_epochs"
    split = "train" if trial["stop.measured_on"] == "full" else "online"
    threshold = trial["stop.train_accuracy"]
    if threshold is not None and last[f"{split}_accuracy"] >= np.float32(threshold):
        return "train_accuracy"
    return "train_loss"
