"""The ways without the engine: one trial at a time, and the naive `jit(vmap(step))`.

Each runs whole epochs of the same trial as the engine does, with the same functions of one trial,
on one device as jax finds it. Images lie on the device as uint8; the state is donated.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np

from rethink_jax import inputs as trial_inputs
from rethink_jax import step, train
from rethink_jax.bench.networks import Task, make_dataset, make_trial
from rethink_jax.data.corruption import CLEAN

# At least so many steps a dispatch of the scan, or else as long as a repeat is.
_STEPS_PER_DISPATCH = 100


def force_lax_convolutions() -> None:
    """Makes the layers take XLA's own convolution and pooling on the CPU, too.

    THE ONE PLACE for it: the layers ask this function for the backend while a program is traced,
    so it works in a process of its own only.
    """
    jax.default_backend = lambda: "any other than the CPU"


class _Way:
    """One network's trial, or `lanes` of them, without the engine."""

    many = False

    def __init__(self, job: dict[str, Any]):
        task = Task(**job["task"])
        dataset = make_dataset(task)
        self.lanes = job["lanes"] if self.many else 1
        trials = [make_trial(task, seed) for seed in range(self.lanes)]
        self.spec = trial_inputs.make_spec(trials, dataset, evaluate_every=10**6)
        clean = trial_inputs.Version(CLEAN)
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        store = trial_inputs.ImageStore(dataset, {clean}, 2**32, sharding)
        store.place_of(clean, set())
        self.data = store.data
        own = [
            train.Inputs(
                trial_inputs.trial_hypers(t), *trial_inputs.trial_labels(t, dataset), np.int32(0)
            )
            for t in trials
        ]
        stacked = jax.tree.map(lambda *a: np.stack(a), *own)
        self.inputs = jax.device_put(stacked if self.many else own[0], sharding)

    def setup(self) -> dict[str, Any]:
        """Compiles; what the table says of the way."""
        began = time.perf_counter()
        with jax.default_matmul_precision(self.spec.fields["matmul_precision"]):
            self._compile()
        return {
            "compile_seconds": time.perf_counter() - began, "lanes": self.lanes, "dtype": "float32",
        }  # fmt: skip

    def run(self, epochs: int) -> dict[str, float]:
        """Trains for some epochs: trial-steps done, and the seconds that it took."""
        began = time.perf_counter()
        self._run(epochs)
        jax.block_until_ready(self._state)
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "steps": epochs * self.spec.steps_per_epoch * self.lanes}

    _state: Any

    def _compile(self) -> None:
        raise NotImplementedError

    def _run(self, epochs: int) -> None:
        raise NotImplementedError


class ScanWay(_Way):
    """One trial by the engine's own function of it, many steps a dispatch."""

    def _compile(self) -> None:
        def advance(data: train.Data, epochs: Any, inputs: train.Inputs, state: Any) -> Any:
            body = lambda _, s: train.advance(self.spec, data, inputs, s)  # noqa: E731
            return jax.lax.fori_loop(0, epochs, body, state)

        self._state = jax.jit(lambda i: train.init_trial(self.spec, i))(self.inputs)
        args = self.data, np.int32(1), self.inputs, self._state
        self._advance = jax.jit(advance, donate_argnums=3).lower(*args).compile()

    def _run(self, epochs: int) -> None:
        at_once = -(-_STEPS_PER_DISPATCH // self.spec.steps_per_epoch)
        while epochs > 0:
            part = np.int32(min(epochs, at_once))
            self._state = self._advance(self.data, part, self.inputs, self._state)
            epochs -= at_once


class LoopWay(_Way):
    """A Python loop of compiled steps."""

    def _compile(self) -> None:
        init = self._lifted(self._init, (0,))
        order = self._lifted(self._order, (0, None))
        one_step = self._lifted(self._step, (0, 0, None, None, None, 0))
        self._state = jax.jit(init)(self.inputs)
        self._epoch = 0
        now = np.int32(0)
        self._next_order = jax.jit(order).lower(self.inputs, now).compile()
        args = self.inputs, self._next_order(self.inputs, now), now, now, self.data, self._state
        self._next_state = jax.jit(one_step, donate_argnums=5).lower(*args).compile()

    def _lifted(self, fn: Any, axes: tuple[int | None, ...]) -> Any:
        """A function of one trial as one of all; `axes` says which arguments are a trial's own."""
        return jax.vmap(fn, in_axes=axes) if self.many else fn

    def _run(self, epochs: int) -> None:
        for _ in range(epochs):
            now, self._epoch = np.int32(self._epoch), self._epoch + 1
            order = self._next_order(self.inputs, now)
            for i in range(self.spec.steps_per_epoch):
                self._state, _ = self._next_state(
                    self.inputs, order, now, np.int32(i), self.data, self._state
                )

    # --- functions of one trial -------------------------------------------------------------------

    def _init(self, inputs: train.Inputs) -> step.Carry:
        state = train.init_trial(self.spec, inputs)
        return state.params, state.model_state, state.opt_state

    def _order(self, inputs: train.Inputs, epoch: jax.Array) -> jax.Array:
        return train.data_order(self.spec, inputs.hypers["seed"], epoch)

    def _step(
        self, inputs: train.Inputs, order_SxB: jax.Array, epoch: jax.Array, i: jax.Array,
        data: train.Data, carry: step.Carry,
    ) -> Any:  # fmt: skip
        index_B = order_SxB[i]
        images_BxHxWxC = train.take_images(data.train, inputs.image_set, index_B)
        labels_B = inputs.labels[index_B]
        return step.train_step(self.spec, inputs.hypers, carry, epoch, i, images_BxHxWxC, labels_B)


class NaiveWay(LoopWay):
    """The loop over `jit(vmap(step))`: many trials at once without an engine."""

    many = True
