"""Measures along training: of every running network, every so many epochs and when it ends.

The engine asks when they are due and computes them by a program of its own on the lanes as they
stand, so that the program that trains is the same with and without.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rethink_jax import measures, records, streams, train
from rethink_jax.data.streamed import StreamedDataset
from rethink_jax.inputs import AnyDataset
from rethink_jax.layers import lowering
from rethink_jax.measures.subject import Subject
from rethink_jax.padding import cropped
from rethink_jax.schema import UserError
from rethink_jax.step import Spec, evaluation_images
from rethink_jax.streams import stream
from rethink_jax.trials import Group, Trial

Values = dict[str, Any]  # {measure: a float32, which may still be on its device}


class Network(NamedTuple):
    """The network of trials of a group: names of what is measured of it.

    spec: with its own shape, also where it is padded
    """

    spec: Spec
    names: tuple[str, ...]


class Due(NamedTuple):
    """What is asked of a trial in a lane.

    epoch: int32[], after which it is measured; 0: not   network: int32[], which of the group's
    """

    epoch: Any
    network: Any


def measure(
    networks: Sequence[Network],
    data: train.Data,
    inputs: train.Inputs,
    due: Due,
    state: train.TrialState,
) -> Values:
    """Measures of one trial as it stands, on its own training images and labels: float32 each.

    If it does not stand where it is due, or has diverged, nothing is computed, and all are 0; as
    are those that its network does not have.
    """
    nothing = {name: jnp.float32(0) for network in networks for name in network.names}

    def computed(network: Network) -> Values:
        subject = _subject(network.spec, data, inputs, state)
        own = {name: jnp.float32(measures.number(name, subject)) for name in network.names}
        return nothing | own

    branches = [lambda n=n: computed(n) for n in networks]
    stands = (due.epoch > 0) & (state.epoch == due.epoch) & (state.status != train.DIVERGED)
    return jax.lax.cond(stands, lambda: jax.lax.switch(due.network, branches), lambda: nothing)


def _subject(
    spec: Spec, data: train.Data, inputs: train.Inputs, state: train.TrialState
) -> Subject:
    seed = inputs.hypers["seed"]
    own = jax.eval_shape(lambda: train.init_variables(spec, 0))
    images = train.take_images(data.train, inputs.image_set, jnp.arange(spec.num_train))
    return Subject(
        model=_model(spec),
        variables=cropped({"params": state.params, **state.model_state}, own),
        images_NxHxWxC=evaluation_images(spec, images),
        labels_N=inputs.labels,
        initial_variables=cropped(train.first_variables(spec, inputs), own),
        key=stream(seed, streams.MEASURES, state.epoch),
    )


def _model(spec: Spec) -> Any:
    # As a stored network is read: what can be measured does not depend on what is fastest here.
    return dataclasses.replace(spec, lowering_of=lowering.by_rule).model


class Plan(NamedTuple):
    """What is measured of a network: names of measures; and which cannot be, {name: reason}."""

    names: tuple[str, ...]
    refused: dict[str, str]


def plan(settings: Mapping[str, Any], spec: Spec, dataset: AnyDataset) -> Plan:
    """What the settings ask to be measured of a network along training. Computes nothing.

    Raises:
      UserError: no such measure; one that is asked for by its own name and cannot be computed of
        this network; a measure that is wrong; images that are streamed from disk.
    """
    asked = _asked(settings["measure.names"])
    wanted = _selected(asked)
    if not settings["measure.every_epochs"]:
        return Plan((), {})
    given = f"measure.every_epochs is {settings['measure.every_epochs']}"
    if not wanted:
        raise UserError(
            f"{given}, and measure.names is empty; name measures or families of them, such as "
            f"{', '.join(list(measures.FAMILIES)[:2])}, or set --config.measure.every_epochs=0"
        )
    if isinstance(dataset, StreamedDataset):
        raise UserError(
            f"{given}, and the images of {dataset.name} are streamed from disk: only images in "
            "memory are measured on along training. Set --config.measure.every_epochs=0"
        )
    variables = jax.eval_shape(lambda: train.init_variables(spec, 0))
    images = jax.ShapeDtypeStruct((spec.num_train, *spec.input_shape), jnp.float32)
    labels = jax.ShapeDtypeStruct((spec.num_train,), jnp.int32)
    key = stream(0, streams.MEASURES, 0)
    subject = Subject(_model(spec), variables, images, labels, variables, key)
    refused, failed = measures.checked(subject, wanted)
    for error in failed.values():
        raise UserError(
            f"measure.names: {error} (network {spec.fields['model.name']}, data {dataset.name}). "
            "Mend it, or leave it out of --config.measure.names"
        ) from error
    for name in asked:
        if name in refused:
            raise UserError(
                f"measure.names: {name}: {refused[name]} (network {spec.fields['model.name']}, "
                f"data {dataset.name}). Leave it out of --config.measure.names"
            )
    return Plan(tuple(name for name in wanted if name not in refused), refused)


def _asked(names: Sequence[str]) -> tuple[str, ...]:
    # From the command line, margins,norms is a tuple of one text.
    return tuple(name.strip() for text in names for name in text.split(",") if name.strip())


def _selected(asked: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for own in measures.select(asked).values() for name in own)


def notes(groups: Sequence[Group], plans: Mapping[Any, Plan]) -> list[str]:
    """What to say of the measures that are left out, one line each.

    plans: {static fields of a trial: plan}
    """
    found: dict[tuple[str, str], dict[str, None]] = {}
    for group in groups:
        for static in {t.static for t in group.trials}:
            for refused in plans[static].refused.items():
                found.setdefault(refused, {})[group.group_id] = None
    return [
        f"note: {name} is not measured along training of group {', '.join(ids)}: {reason}"
        for (name, reason), ids in found.items()
    ]


class Along:
    """When the trials of a group are due to be measured, and what was found of those under way.

    They are after every so many epochs, and after the last one of each trial.
    networks: of the group's trials; () if nothing is measured

    Args:
      spec: of the group
      settings: measure.names are of all networks, or {static fields of a trial: names}
    """

    def __init__(self, group: Group, spec: Spec, settings: Mapping[str, Any]):
        every, names = settings["measure.every_epochs"], settings["measure.names"]
        statics = list(dict.fromkeys(t.static for t in group.trials)) if every else []
        own = names if isinstance(names, Mapping) else dict.fromkeys(statics, names)
        self._index = {static: i for i, static in enumerate(statics)}
        self.networks = tuple(
            Network(dataclasses.replace(spec, fields=dict(s)), _selected(_asked(own[s])))
            for s in statics
        )
        if not any(network.names for network in self.networks):
            self.networks, every = (), 0
        self._every, self._last = every, group.static["stop.max_epochs"]
        self._rows: dict[Trial, dict[int, Values]] = {}

    def until_due(self, epochs: int, begun: Mapping[Trial, int]) -> int:
        """So many epochs, or fewer, so that no trial passes by an epoch after which it is due.

        begun: epochs of each trial so far; if it was fitted meanwhile, more than it has done
        """
        if not self._every:
            return epochs
        left = [self._every - done % self._every for done in begun.values() if done < self._last]
        return min([epochs, *left])

    def due_L(
        self, lanes: Sequence[Trial | None], begun: Mapping[Trial, int], epochs: int
    ) -> np.ndarray:
        """After which epoch the trial of each lane is due, if it is so many epochs from now.

        Returns:
          int32[L]; 0: not due. With epochs=0, where it stands, unless it was measured there.
        """
        then = {t: min(done + epochs, self._last) for t, done in begun.items()}
        due = {
            trial: epoch
            for trial, epoch in then.items()
            if self._every
            and (epoch % self._every == 0 or epoch == self._last)
            # Where it stood before, it was due before.
            and (epoch > begun[trial] or epochs == 0)
        }
        return self.unmeasured_L(lanes, due)

    def unmeasured_L(self, lanes: Sequence[Trial | None], stand: Mapping[Trial, int]) -> np.ndarray:
        """At which epoch each lane is to be measured of those given, unless it was: int32[L]."""
        due_L = np.zeros(len(lanes), np.int32)
        for lane, trial in enumerate(lanes):
            if self._every and trial in stand and stand[trial] not in self._rows.get(trial, {}):
                due_L[lane] = stand[trial]
        return due_L

    def ask(self, lanes: Sequence[Trial | None], due_L: np.ndarray) -> Due:
        """What the program is asked, by lane: int32[L] each."""
        which = [0 if t is None else self._index[t.static] for t in lanes]
        return Due(due_L, np.array(which, np.int32))

    def note(self, trial: Trial, epoch: int, values: Values) -> None:
        """Keeps the measures of a trial after an epoch, those that its network has."""
        own = self.networks[self._index[trial.static]].names
        self._rows.setdefault(trial, {})[epoch] = {k: v for k, v in values.items() if k in own}

    def pop(self, trial: Trial) -> dict[int, Values]:
        """All that was measured of a trial, {epoch: values}; it is forgotten here."""
        return self._rows.pop(trial, {})

    def to_json(self, lanes: Sequence[Trial | None]) -> dict[str, Any]:
        """For a checkpoint: {trial_id: {epoch: {measure: the float32 as text}}}."""
        return {
            trial.trial_id: {
                str(epoch): {name: records.exact_text(value) for name, value in values.items()}
                for epoch, values in self._rows[trial].items()
            }
            for trial in lanes
            if trial is not None and trial in self._rows
        }

    def restore(self, lanes: Sequence[Trial | None], stored: Mapping[str, Any]) -> None:
        """Takes up what a checkpoint holds of the trials that are in lanes."""
        for trial in lanes:
            if trial is not None and trial.trial_id in stored:
                self._rows[trial] = {
                    int(epoch): {name: np.float32(text) for name, text in values.items()}
                    for epoch, values in stored[trial.trial_id].items()
                }
