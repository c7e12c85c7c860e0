"""Which widths of a network share one compiled program, padded with zeros to the widest of them.

A program is compiled for the shapes of its arrays, so a sweep over widths needs one for each. But a
unit whose weights and biases are all 0 changes nothing (`models.widths` says of which networks, and
`optimizers.KEEP_ZEROS` under which update rules): it stays so, and the other units are trained
as without it. What differs is the order of float sums: a product over 64 instead of 8 units may
round differently in the last bit. So the choice is made once, and written into the workdir
(`choices/widths.*.json`), which keeps to it.

The trials keep their own networks: first weights are drawn in the own shape and then padded, and
what is stored is cropped to it (`padding`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rethink_jax import models, optimizers
from rethink_jax.inputs import AnyDataset, make_spec
from rethink_jax.lanes import choose_layout
from rethink_jax.schema import UserError
from rethink_jax.trials import Assignment, Trial
from rethink_jax.tuning import forward_flops

# As in a workdir: {id of a trial's own static fields: fields of the network that it is padded to}.
Choice = Mapping[str, Mapping[str, Any]]


class _Speed(NamedTuple):
    """What decides how long a group takes, roughly, in seconds.

    compiling: of its programs   drawing: of the program for the first weights of a padded width
    step: of a training step of the smallest network, on one device
    flops: per second and device, of what a larger network takes beyond that
    """

    compiling: float
    drawing: float
    step: float
    flops: float


# Of the CPU: MLPs on 2 cores of an AMD EPYC, jax 0.10.2. A small sweep takes 3 s more with an empty
# cache (5.5 s of one core). Steps of 8 to 512 units: 24 to 138 us, digits in batches of 32, and 346
# to 1,710 us, MNIST in batches of 64, which are 80 to 150 GFLOP/s from 8 units on.
_SPEEDS = {
    "cpu": _Speed(3.0, 0.5, 2.5e-5, 1e11),
    # Not measured. A step is some tens of kernels, each of some microseconds.
    "gpu": _Speed(5.0, 0.5, 2e-4, 1e13),
    "tpu": _Speed(5.0, 0.5, 2e-4, 1e13),
}
# Of a forward pass of the training images: the gradients take two more, evaluation about one.
_PASSES = 4


def can_pad(trial: Trial) -> bool:
    """Whether a trial's network gives the same results, but for rounding, with units of zeros.

    Dropout draws its masks by the shape of a layer. bfloat16 is left out for its rounding: sums
    in another order differ by 1/256 there.
    """
    return (
        bool(models.widths(trial["model.name"]))
        and trial["optimizer.name"] in optimizers.KEEP_ZEROS
        and trial["compute_dtype"] == "float32"
        and not trial["regularizer.dropout"]
    )


def padded_to(trial: Trial, choice: Choice) -> Assignment:
    """The fields of the network that a trial's is padded to, by what was chosen; {} for none."""
    found = choice.get(trial.static_id, {}) if can_pad(trial) else {}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}


class Width(NamedTuple):
    """The trials of one width that may be padded: one of them, and how many.

    flops: of one forward pass of a batch
    """

    trial: Trial
    count: int
    flops: float


def choose(
    trials: Iterable[Trial],
    dataset_of: Callable[[Trial], AnyDataset],
    settings: Mapping[str, Any],
    kept: Choice,
) -> Choice:
    """What each network is padded to, of those that may be padded at all.

    Args:
      trials: all of the config, also those that are finished: the choice does not depend on them.
      kept: what was chosen before in this workdir. It holds; only what is new is chosen now.
    """
    choice = dict(kept)
    for trial in filter(can_pad, trials := list(trials)):
        _check(trial, kept.get(trial.static_id, {}))
    for widths in _families(t for t in trials if can_pad(t) and t.static_id not in kept):
        some = [Width(own[0], len(own), 0.0) for own in widths]
        if settings["engine.pad_widths"] != "off" and len(some) > 1:
            classes = _classes(some, dataset_of, settings)
        else:
            classes = [[w] for w in some]
        for together in classes:
            fields = models.widths(together[-1].trial["model.name"])
            widest = {f"model.{k}": together[-1].trial[f"model.{k}"] for k in fields}
            for width in together:
                choice[width.trial.static_id] = widest if len(together) > 1 else {}
    return choice


def _check(trial: Trial, fields: Mapping[str, Any]) -> None:
    """Raises UserError unless a network can be padded to these fields."""
    own = {f"model.{name}": trial[f"model.{name}"] for name in models.widths(trial["model.name"])}
    if fields and not (
        fields.keys() == own.keys()
        and all(isinstance(own[k], tuple) == isinstance(fields[k], tuple | list) for k in own)
        and all(len(_numbers(fields[k])) == len(_numbers(own[k])) for k in own)
        and _at_least(fields, own)
    ):
        raise UserError(
            f"choices/widths.*.json of the workdir are damaged (they pad a network of {own} to "
            f"{fields}); delete them, no result depends on them"
        )


def _classes(
    widths: list[Width], dataset_of: Callable[[Trial], AnyDataset], settings: Mapping[str, Any]
) -> list[list[Width]]:
    """The widths of one family, split into those that share a program."""
    dataset = dataset_of(widths[0].trial)
    specs = [make_spec([w.trial], dataset, 1) for w in widths]
    widths = [w._replace(flops=forward_flops(s)) for w, s in zip(widths, specs, strict=True)]
    if settings["engine.pad_widths"] == "on":
        return partition(widths, lambda _: 1.0)
    steps = specs[0].steps_per_epoch * widths[0].trial["stop.max_epochs"]
    return partition(widths, lambda together: seconds(together, steps, settings))


def _families(trials: Iterable[Trial]) -> list[list[list[Trial]]]:
    """Trials that differ in static fields by the numbers of units alone; in each, by width."""
    families: dict[Any, dict[Any, list[Trial]]] = {}
    for trial in trials:
        rest = dict(trial.static)
        for name in models.widths(trial["model.name"]):
            rest[f"model.{name}"] = len(_numbers(rest[f"model.{name}"]))
        widths = families.setdefault(tuple(rest.items()), {})
        widths.setdefault(trial.static, []).append(trial)
    return [list(widths.values()) for widths in families.values()]


def _numbers(width: Any) -> tuple[int, ...]:
    return tuple(width) if isinstance(width, tuple | list) else (width,)


def _at_least(large: Mapping[str, Any], small: Mapping[str, Any]) -> bool:
    """Whether each width is at least the other one of that name; in tuples, each number."""
    pairs = [(_numbers(large[k]), _numbers(small[k])) for k in small]
    return all(m >= n for ms, ns in pairs for m, n in zip(ms, ns, strict=True))


def _holds(large: Trial, small: Trial) -> bool:
    """Whether a network has at least as many units as another one in every place."""
    fields = [f"model.{name}" for name in models.widths(large["model.name"])]
    return _at_least({k: large[k] for k in fields}, {k: small[k] for k in fields})


def seconds(together: Sequence[Width], steps: int, settings: Mapping[str, Any]) -> float:
    """What it takes to compile and run widths padded to the last one, roughly.

    Args:
      steps: of one trial, if it goes on to its last epoch.
    """
    count, flops = sum(w.count for w in together), together[-1].flops
    layout = choose_layout(dict(settings), count)
    speed = _SPEEDS.get(layout.devices[0].platform, _SPEEDS["gpu"])
    drawing = speed.drawing * len(together) if len(together) > 1 else 0.0
    # Lanes that a device runs at once. A lane or a device that is idle makes no round shorter.
    at_once = layout.per_device if layout.batching == "vmap" else 1
    rounds = math.ceil(count / (len(layout.devices) * at_once))
    step = speed.step + at_once * _PASSES * flops / speed.flops
    return speed.compiling + drawing + rounds * steps * step


def partition(
    widths: Sequence[Width], cost: Callable[[Sequence[Width]], float]
) -> list[list[Width]]:
    """The cheapest way to run widths of one family; each class runs as its last, its widest one.

    Of the widths in the order of their work, neighbours share a class, and only where the widest
    one holds all others: (64, 32) and (32, 64) never do.

    Args:
      cost: of running some widths in one program, the widest one last.
    """
    order = sorted(widths, key=lambda w: (w.flops, str(w.trial.static)))
    # best[j]: the least cost of the first j widths, and where the last class of these begins.
    best = [(0.0, 0)]
    for j, widest in enumerate(order, 1):
        ways = []
        for i in range(j - 1, -1, -1):
            if not _holds(widest.trial, order[i].trial):
                break
            ways.append((best[i][0] + cost(order[i:j]), i))
        best.append(min(ways))
    classes = []
    end = len(order)
    while end:
        begin = best[end][1]
        classes.insert(0, order[begin:end])
        end = begin
    return classes
