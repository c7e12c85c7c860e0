"""What is fastest on this machine, found by trying it for a moment.

Three choices: how each convolution is lowered, `map` or `vmap` over the lanes of a device, and how
many lanes. They change results by rounding at most; a sweep writes its choices into its workdir
and keeps to them when it goes on there. Measurements are kept in the cache folder, so that each is
made once per machine, version and shape.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import logging

from rethink_jax import header, step, train
from rethink_jax import inputs as trial_inputs
from rethink_jax.choices import Choices
from rethink_jax.devices import cache_folder
from rethink_jax.lanes import Layout, over_lanes
from rethink_jax.layers import lowering
from rethink_jax.layers.lowering import ConvShape
from rethink_jax.records import write_atomically
from rethink_jax.schema import first_line
from rethink_jax.trials import Trial

Call = Callable[[], Any]

_REPEATS = 3
# One repeat takes at least so many seconds.
_SECONDS = 0.05
# A group that is expected to take less is not worth the minute that measuring it takes.
_WORTH_SECONDS = 300.0
# What a device does, roughly, in floating-point operations a second: only for that expectation.
_ROUGH_SPEED = {"cpu": 5e10, "gpu": 1e13, "tpu": 1e13}
# Lanes per device that are tried at most.
_MOST_LANES = 512
# What is not the default must be so much faster; more lanes, too.
_GAIN = 1.1

# XLA's own convolution is no candidate inside a loop on the CPU.
CANDIDATES = {
    "cpu": ("patches", "input_patches", "output_patches", "both_patches"),
    "gpu": ("lax", "lax_per_lane", "lax_padded", "patches", "output_patches"),
    "tpu": ("lax", "lax_per_lane", "lax_padded", "patches", "output_patches"),
}


def forward_flops(spec: step.Spec) -> float:
    """Floating-point operations of one forward pass of a batch, as the compiler counts them."""
    variables, images = _arguments(spec)
    lowered = jax.jit(lambda v, x: spec.model.apply(v, x, False).logits_BxY).lower(
        variables, images
    )
    return float((lowered.cost_analysis() or {}).get("flops", 0.0))


def convolution_shapes(spec: step.Spec) -> list[ConvShape]:
    """The distinct convolutions of the network that have several lowerings."""
    found: dict[ConvShape, None] = {}

    def note(shape: ConvShape) -> str:
        found[shape] = None
        return "lax"

    variables, images = _arguments(spec)
    noting = dataclasses.replace(spec, lowering_of=note)
    jax.eval_shape(lambda v, x: noting.model.apply(v, x, False).logits_BxY, variables, images)
    return list(found)


def _arguments(spec: step.Spec) -> tuple[Any, jax.ShapeDtypeStruct]:
    variables = jax.eval_shape(lambda: train.init_variables(spec, 0))
    images = jax.ShapeDtypeStruct((spec.fields["batch_size"], *spec.input_shape), jnp.float32)
    return variables, images


# --- timing ---------------------------------------------------------------------------------------


def _seconds(programs: dict[str, Call]) -> dict[str, float]:
    """The least time of a call of each program; they take turns, to meet the same noise."""
    calls = {}
    for name, call in programs.items():
        jax.block_until_ready(call())
        begun = time.perf_counter()
        jax.block_until_ready(call())
        calls[name] = max(1, round(_SECONDS / max(time.perf_counter() - begun, 1e-6)))
    best = dict.fromkeys(programs, math.inf)
    for _ in range(_REPEATS):
        for name, call in programs.items():
            begun = time.perf_counter()
            for _ in range(calls[name]):
                result = call()
            jax.block_until_ready(result)
            best[name] = min(best[name], (time.perf_counter() - begun) / calls[name])
    return best


def convolution_program(shape: ConvShape, name: str, batch: int, layout: Layout) -> Call:
    """Some steps of one convolution with both gradients, in all lanes."""
    convolve = functools.partial(lowering.convolve, stride=shape.stride, padding=shape.padding)

    def one_step(carry: tuple[jax.Array, jax.Array], _: None) -> tuple[Any, None]:
        y, pull = jax.vjp(convolve, *carry)
        return tuple(a - 1e-6 * g for a, g in zip(carry, pull(y), strict=True)), None

    def run(x: jax.Array, kernel: jax.Array) -> Any:
        with lowering.chosen_by(lambda _: name):
            return jax.lax.scan(one_step, (x, kernel), None, length=2)[0]

    lead = (layout.lanes,)
    x = jnp.ones((*lead, batch, shape.height, shape.width, shape.channels), shape.dtype)
    kernel = jnp.full((*lead, *shape.window, shape.channels, shape.features), 1e-3, shape.dtype)
    program = jax.jit(over_lanes(run, layout)).lower(x, kernel).compile()
    return lambda: program(x, kernel)


def training_program(spec: step.Spec, trial: Trial, layout: Layout, steps: int) -> Call:
    """So many steps of training in all lanes, on images that are all black."""
    count = steps * spec.fields["batch_size"]
    spec = dataclasses.replace(spec, num_train=count)
    codes, ones = jnp.zeros((1, count, *spec.image_shape), jnp.uint8), jnp.ones((1, count))
    labels = jnp.zeros(count, jnp.int32)
    images = train.Images(codes, ones, 0 * ones)
    own = train.Inputs(trial_inputs.trial_hypers(trial), labels, labels, jnp.int32(0))

    def epoch(data: train.Data, inputs: train.Inputs) -> jax.Array:
        state = train.train_epoch(spec, data, inputs, train.init_trial(spec, inputs))[0]
        return optax.tree.norm(state.params)

    own_L = jax.tree.map(lambda a: jnp.stack([jnp.asarray(a)] * layout.lanes), own)
    with jax.default_matmul_precision(spec.fields["matmul_precision"]):
        lifted = jax.jit(over_lanes(epoch, layout, shared=1))
        program = lifted.lower(train.Data(images, images, labels), own_L).compile()
    data = train.Data(images, images, labels)
    return lambda: program(data, own_L)


def _steps_to_time(spec: step.Spec) -> int:
    """Training steps that are worth timing: of small networks more."""
    return min(max(round(_SECONDS * 1e11 / max(3 * forward_flops(spec), 1.0)), 2), 32)


# --- measurements that are kept -------------------------------------------------------------------


class Kept:
    """Measurements in the cache folder, one small file for each choice; without one, in memory."""

    def __init__(self) -> None:
        folder = cache_folder()
        self._folder = Path(folder) / "tuning" if folder else None
        self._memory: dict[str, dict[str, float]] = {}

    def seconds(
        self, what: dict[str, Any], names: Iterable[str], prepare: Callable[[str], Call]
    ) -> dict[str, float]:
        """Seconds for each name, as they were measured before for this choice, or are now.

        Args:
          what: describes the choice. The machine and the version of jax are added.
          prepare: of a name, what is to be timed; where the device refuses, it takes for ever.
        """
        device = jax.local_devices()[0]
        what = what | {"device": device.device_kind, "jax": jax.__version__, "names": [*names]}
        what["cpu"] = header.cpu_model()
        text = json.dumps(what, sort_keys=True, default=str)
        key = hashlib.sha256(text.encode()).hexdigest()[:24]
        path = self._folder / f"{key}.json" if self._folder else None
        if key not in self._memory and path is not None:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                found = json.loads(path.read_text())["seconds"]
                self._memory[key] = {name: float(found[name]) for name in names}
        if key not in self._memory:
            self._memory[key] = _measured(names, prepare)
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, json.dumps(what | {"seconds": self._memory[key]}))
        return self._memory[key]


def _measured(names: Iterable[str], prepare: Callable[[str], Call]) -> dict[str, float]:
    """Seconds for each name."""
    programs = {}
    for name in names:
        # Out of memory, or not implemented for this device: no reason to stop.
        try:
            program = prepare(name)
            jax.block_until_ready(program())
        except jax.errors.JaxRuntimeError as error:
            logging.info("%s cannot be measured here: %s", name, first_line(error))
        else:
            programs[name] = program
    return dict.fromkeys(names, math.inf) | _seconds(programs)


def _fastest(seconds: Mapping[str, float], default: str) -> str:
    """The default, unless another one is faster by more than the noise of a short measurement."""
    best = min(seconds, key=seconds.__getitem__)
    return best if seconds[best] * _GAIN < seconds[default] else default


# --- the choices ----------------------------------------------------------------------------------


def choose(
    spec: step.Spec,
    trials: Sequence[Trial],
    layout: Layout,
    settings: Mapping[str, Any],
    kept: Kept,
) -> Choices:
    """The fastest way to run these trials of a group.

    Args:
      layout: by rule.
      settings: what is not "auto" or 0 there is not asked about.
    """
    trial = trials[0]
    lowerings: dict[ConvShape, str] = {}
    if settings["engine.convolution"] == "auto":
        lowerings = choose_lowerings(spec, layout, kept)
        spec = dataclasses.replace(spec, lowering_of=Choices(lowerings=lowerings).lowering_of)
    if settings["engine.batching"] == "auto" and layout.per_device > 1:
        layout = dataclasses.replace(layout, batching=choose_batching(spec, trial, layout, kept))
    per_device = 0
    # Under map more lanes are no faster; there are a few, so that a dispatch is worth its while.
    if settings["engine.lanes"] == 0 and layout.batching == "vmap":
        most = min(-(-len(trials) // len(layout.devices)), _MOST_LANES)
        per_device = choose_lanes(spec, trial, layout, most, kept)
    return Choices(layout.batching, per_device, lowerings)


def is_worth(spec: step.Spec, layout: Layout, trial_steps: float) -> bool:
    """Whether so much training is left that measuring pays."""
    speed = _ROUGH_SPEED.get(layout.devices[0].platform, 1e13) * len(layout.devices)
    return 3 * forward_flops(spec) * trial_steps / speed > _WORTH_SECONDS


def choose_lowerings(spec: step.Spec, layout: Layout, kept: Kept) -> dict[ConvShape, str]:
    """The fastest lowering of each convolution of the network, on this layout."""
    if layout.batching == "map":  # One lane after another: one is as good as many.
        layout = dataclasses.replace(layout, lanes=len(layout.devices))
    batch = spec.fields["batch_size"]
    names = CANDIDATES.get(layout.devices[0].platform, CANDIDATES["gpu"])
    chosen = {}
    for shape in convolution_shapes(spec):
        what = {"convolution": shape._asdict(), "batch": batch, "layout": _described(layout)}
        prepare = functools.partial(convolution_program, shape, batch=batch, layout=layout)
        with jax.default_matmul_precision(spec.fields["matmul_precision"]):
            seconds = kept.seconds(what, names, prepare)
        chosen[shape] = _fastest(seconds, lowering.by_rule(shape))
    return chosen


def choose_batching(spec: step.Spec, trial: Trial, layout: Layout, kept: Kept) -> str:
    """The faster one of `map` and `vmap` over the lanes of a device."""
    steps = _steps_to_time(spec)

    def prepare(batching: str) -> Call:
        tried = dataclasses.replace(layout, batching=batching)
        return training_program(spec, trial, tried, steps)

    what = {"training": _program(spec), "layout": _described(layout) | {"batching": None}}
    return _fastest(kept.seconds(what, ("map", "vmap"), prepare), layout.batching)


def choose_lanes(spec: step.Spec, trial: Trial, layout: Layout, most: int, kept: Kept) -> int:
    """Lanes per device, `most` at most: doubled while that trains noticeably more per second."""
    steps = _steps_to_time(spec)
    best, rate, per_device = 1, 0.0, 1
    while per_device <= most:
        tried = dataclasses.replace(layout, lanes=per_device * len(layout.devices))
        what = {"training": _program(spec), "layout": _described(tried), "choice": "lanes"}
        prepare = lambda _, tried=tried: training_program(spec, trial, tried, steps)  # noqa: E731
        found = tried.lanes / kept.seconds(what, ("all",), prepare)["all"]
        if found <= _GAIN * rate:
            break
        best, rate, per_device = per_device, found, 2 * per_device
    return best


def _program(spec: step.Spec) -> dict[str, Any]:
    """What decides how fast a trial of this kind is trained."""
    by_shape = sorted((str(shape), spec.lowering_of(shape)) for shape in convolution_shapes(spec))
    return {
        "fields": dict(spec.fields), "used": sorted(spec.used), "classes": spec.num_classes,
        "image": spec.image_shape, "lowerings": by_shape,
    }  # fmt: skip


def _described(layout: Layout) -> dict[str, Any]:
    return {
        "devices": len(layout.devices), "lanes": layout.lanes, "batching": layout.batching
    }  # fmt: skip
