"""What a sweep found, in a few sentences at the top of the page."""

from __future__ import annotations

import numpy as np

from rethink_jax import records
from rethink_jax.report.copies import Distinct
from rethink_jax.report.series import (
    UNIFORM,
    Levels,
    Line,
    Setting,
    in_text,
    mean_std,
    numbers,
    unfitted,
    with_pixels,
)


def sentences(
    results: records.Results, seen: Distinct, found: list[Line], compared: list[str]
) -> list[str]:
    """What was found, in at most six sentences.

    seen: the finished trials   compared: a sentence about each of the paper's tables
    """
    line, named = max(found, key=lambda x: len(x.settings)), len(found) > 1
    levels = max(line.levels, key=lambda x: len(x.settings))
    found_out = [*compared, *_by_label_prob(levels, named), *_by_pixels(line, named)]
    return [_accuracy(results, seen), *found_out[:4], _effort(results)]


def _accuracy(results: records.Results, seen: Distinct) -> str:
    """How many trials fitted, how many there are."""
    done, planned = seen.trials, len(results.trials) - seen.copies
    accuracy = numbers(done, "final_train_accuracy")
    perfect, fitted = int((accuracy == 1).sum()), int((done["status"] == "fitted").sum())
    if perfect:
        text = f"{perfect} of {planned} trials reached 100% training accuracy"
    else:
        text = f"{fitted} of {planned} trials were fitted"
        if accuracy.notna().any():
            text += f"; training accuracy is {accuracy.min():.2%} to {accuracy.max():.2%}"
    unfinished, diverged = planned - len(done), int((done["status"] == "diverged").sum())
    text += f"; {unfinished} are not finished" if unfinished else ""
    text += f"; {diverged} diverged" if diverged else ""
    return f"{text}. {seen.sentence}".strip()


def _by_label_prob(levels: Levels, named: bool) -> list[str]:
    """Time to fit and test error at the lowest and the highest level of label corruption."""
    if len(levels.settings) < 2:
        return []
    low, high = levels.settings[0], levels.settings[-1]
    sentences, of = [], f" of {levels.name}" if named else ""
    fit = [mean_std(s.trials["epochs_to_fit"])[0] for s in (low, high)]
    if np.isfinite(fit).all():
        missing = [f"{n} with {s.name}" for s in (low, high) if (n := unfitted(s))]
        sentences.append(
            f"Fitting{of} takes {'longer the more labels are random: ' * _longer(fit, high)}"
            f"{fit[0]:.1f} epochs with {low.name}, {fit[1]:.1f} with {high.name} "
            f"({fit[1] / fit[0]:.1f} times as long)"
            f"{'; without trials that did not fit: ' * bool(missing)}{', '.join(missing)}."
        )
    elif np.isfinite(fit[0]):
        epochs = high.trials["stop.max_epochs"].max()
        sentences.append(
            f"Fitting{of} takes {fit[0]:.1f} epochs with {low.name}; no trial with {high.name} "
            f"fitted in {epochs} epochs."
        )
    error = [1 - mean_std(s.trials["final_test_corrupted_accuracy"])[0] for s in (low, high)]
    if np.isfinite(error).all():
        sentences.append(
            f"The test error{of} {'grows' if error[1] > error[0] else 'goes'} from {error[0]:.1%} "
            f"with {low.name} to {error[1]:.1%} with {high.name}; guessing gives "
            f"{levels.chance:.0%}."
        )
    return sentences


def _longer(fit: list[float], high: Setting) -> bool:
    return fit[1] > fit[0] and high.labels == UNIFORM


_MAX_PIXELS = 4


def _by_pixels(line: Line, named: bool) -> list[str]:
    """Test error and time to fit with corrupted images."""
    parts = [
        f"{s.name} {1 - mean_std(s.trials['final_test_accuracy'])[0]:.1%} ({_fit(s)})"
        for s in with_pixels(line)
        if not s.labels
    ]
    if not parts:
        return []
    of, more = f" of {line.name}" * named, len(parts) - _MAX_PIXELS
    further = f" and {more} more in the table" * (more > 0)
    return [f"Test error{of} with corrupted images: {', '.join(parts[:_MAX_PIXELS])}{further}."]


def _fit(setting: Setting) -> str:
    if unfitted(setting) == len(setting.trials):
        return "none fitted"
    return f"epochs to fit: {in_text(setting.trials['epochs_to_fit'], '.1f')}"


def _effort(results: records.Results) -> str:
    """What the trials took, copies among them; a command that was killed left no time."""
    done, runs = results.trials[results.trials["status"].isin(records.DONE)], results.run["runs"]
    seconds = [r["seconds"] for r in runs if "seconds" in r]
    steps = int((done["epochs"] * done["steps_per_epoch"]).sum())
    machine = runs[-1]["cpu"] if runs else {"model": "?", "cores": 0}
    where = runs[-1]["devices"][0] if runs else "?"
    cores = f"{machine['cores']} CPU core{'s' * (machine['cores'] != 1)}"
    device = cores if where.split(":")[0] == "cpu" else where
    lost = len(runs) - len(seconds)
    time = f"{'at least ' * bool(lost)}{sum(seconds):.0f} s" if seconds else "in an unknown time"
    text = f"{len(done)} trials, {steps:,} steps, {time} on {device}"
    if lost:
        text += f"; {lost} of {len(runs)} commands left no time (killed, or still running)"
    elif len(runs) > 1:
        text += f", {len(runs)} commands together"
    return text + "."
