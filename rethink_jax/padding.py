"""One trial's own network as a part of a wider one, the rest of which is zeros (see `widths`)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from rethink_jax import inputs as trial_inputs
from rethink_jax import models, step, train
from rethink_jax.trials import Trial

# The first weights of a width are drawn by a program of its own, which runs once per trial. On the
# CPU, XLA compiles it in a third of the time so, and to the same bits (two dense layers, truncated
# normal: 0.5 instead of 1.2 s of one core; level 0 rounds differently).
_COMPILE_FAST = {"xla_backend_optimization_level": 1}


class OwnNetworks:
    """The networks of the trials of a group that runs them padded.

    spec: of the group, with the network that has room for each of them
    """

    def __init__(self, spec: step.Spec):
        self._spec = spec
        self._padded = jax.eval_shape(functools.partial(train.init_variables, spec), 0)
        self._draw: dict[Any, Any] = {}
        self._struct: dict[Any, Any] = {}

    def compile(self, trials: Iterable[Trial]) -> None:
        """Compiles what `first` runs for these trials, so that it compiles nothing."""
        for trial in trials:
            if trial.static not in self._draw:
                own = functools.partial(train.init_variables, self._own_spec(trial))
                with trial_inputs.on_host():
                    lowered = jax.jit(own).lower(np.int32())
                    self._draw[trial.static] = lowered.compile(_COMPILE_FAST)

    def first(self, trial: Trial) -> models.Variables:
        """A network before training, drawn as in its own shape, then padded; on the host."""
        self.compile([trial])
        with trial_inputs.on_host():
            drawn = jax.device_get(self._draw[trial.static](np.int32(trial["seed"])))
        return jax.tree.map(_padded, drawn, self._padded)

    def crop(self, trial: Trial, state: train.TrialState) -> train.TrialState:
        """What is a trial's own of its padded state; arrays on the host."""
        if trial.static not in self._struct:
            own, hypers = self._own_spec(trial), trial_inputs.trial_hypers(trial)
            alone = train.Inputs(hypers, *[np.int32()] * 3)
            start = functools.partial(train.init_trial, own)
            self._struct[trial.static] = jax.eval_shape(start, alone)
        return cropped(state, self._struct[trial.static])

    def _own_spec(self, trial: Trial) -> step.Spec:
        return dataclasses.replace(self._spec, fields=dict(trial.static))


def cropped(tree: Any, like: Any) -> Any:
    """A tree of padded arrays, each with the shape that it has in another one."""
    return jax.tree.map(
        lambda a, s: a if a.shape == s.shape else a[tuple(map(slice, s.shape))], tree, like
    )


def _padded(array: np.ndarray, like: jax.ShapeDtypeStruct) -> np.ndarray:
    return np.pad(array, [(0, m - n) for n, m in zip(array.shape, like.shape, strict=True)])
