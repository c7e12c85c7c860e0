"""What all runs of a group share: which trial is in which lane, with its own data."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from rethink_jax import inputs as trial_inputs
from rethink_jax import memory, train
from rethink_jax.choices import BY_RULE, Choices
from rethink_jax.lanes import LanePrograms, Layout, choose_layout, copy_lane
from rethink_jax.padding import OwnNetworks
from rethink_jax.trials import Group, Trial

OnFailed = Callable[[Trial, Exception], None]


class Finished(NamedTuple):
    """A trial that is done; the arrays of its state may still be on their way from the device.

    label_noise: fraction of labels that differ from the true ones, of training and of test set
    measured: along training, {epoch: {measure: value}}
    own: of a group whose networks are padded; else None
    """

    trial: Trial
    state: train.TrialState
    label_noise: tuple[float, float]
    measured: dict[int, dict[str, Any]]
    own: OwnNetworks | None = None

    def fetch(self) -> train.TrialState:
        """The state on the host, with the trial's own network."""
        state = jax.device_get(self.state)
        return self.own.crop(self.trial, state) if self.own else state


class LaneRun:
    """What all runs of a group share: which trial is in which lane, and its inputs.

    on_finished: called with each `Finished`; it must not wait for the device
    on_failed: called with a trial whose data cannot be made, and the error; None: it is raised
    epochs_of: epochs done, of every trial that has been in a lane; also parts of one
    chosen: the layout that it begins with; idle lanes may be given up later
    """

    programs: LanePrograms

    def __init__(
        self,
        group: Group,
        dataset: trial_inputs.AnyDataset,
        settings: dict[str, Any],
        on_finished: Callable[[Finished], None],
        choices: Choices = BY_RULE,
        on_failed: OnFailed | None = None,
    ):
        self.layout = self.chosen = choose_layout(settings, len(group.trials), choices)
        spec = trial_inputs.make_spec(group.trials, dataset, settings["evaluate.every_epochs"])
        name = settings["engine.convolution"]
        lowering_of = choices.lowering_of if name == "auto" else lambda _: name
        self.spec = dataclasses.replace(spec, fields=group.static, lowering_of=lowering_of)
        self._own = OwnNetworks(self.spec) if group.padded_to else None
        self._dataset, self._settings = dataset, settings
        self._on_finished, self._on_failed = on_finished, on_failed
        self._one_input = self._blank_input(group.trials[0])
        self._made: dict[Layout, LanePrograms] = {}
        self._noise: dict[Trial, tuple[float, float]] = {}
        self.epochs_of: dict[Trial, float] = {}
        self.waiting: list[Trial] = []
        self.lanes: list[Trial | None] = []

    @property
    def busy(self) -> int:
        """Lanes with a trial."""
        return sum(t is not None for t in self.lanes)

    @property
    def num_params(self) -> int:
        """Parameters of one network, with those that it is padded with."""
        one = jax.eval_shape(lambda i: train.init_trial(self.spec, i), self._one_input)
        return sum(int(np.prod(p.shape)) for p in jax.tree.leaves(one.params))

    def compile(self) -> LanePrograms:
        """The programs for the present layout, all of them compiled."""
        if self._own:
            self._own.compile(self.waiting)
        self.programs = self.programs_at(self.layout)
        self.programs.compile()
        return self.programs

    def programs_at(self, layout: Layout) -> LanePrograms:
        """The programs for a layout, each made once."""
        if layout not in self._made:
            self._made[layout] = self._make_programs(layout)
        return self._made[layout]

    def memory_plan(self) -> memory.Plan:
        """What lanes need of a device and what there is, from two compiled programs."""

        def bytes_at(per_device: int) -> int:
            return self.programs_at(self._layout_of(per_device)).memory_bytes

        return memory.measure(bytes_at, memory.limit_of(self.chosen.devices))

    def fit(self, plan: memory.Plan | None = None) -> str | None:
        """Takes as many lanes as there is memory for, if these are fewer than chosen.

        A number of lanes that the user has set stays.

        Args:
          plan: if it is known; else the programs are compiled that are needed to tell.

        Returns:
          what to say of it, or None if the chosen lanes fit.

        Raises:
          OutOfMemory: not even one lane on each device fits.
        """
        lanes = self.chosen.per_device
        limit = plan.limit if plan else memory.limit_of(self.chosen.devices)
        if limit is None:
            return None
        needed = plan.bytes_at(lanes) if plan else self.programs_at(self.chosen).memory_bytes
        if memory.fits(needed, limit):
            return None
        lack = memory.lack(lanes, needed, limit)
        if self._settings["engine.lanes"]:
            return f"warning: {lack}; taken since engine.lanes says so"
        most = 1
        if lanes > 1:
            fitting = (plan or self.memory_plan()).fitting or 0
            most = max(min(fitting, lanes - 1), 1)
        layout = self._layout_of(most)
        if most == 1:  # Of one lane alone, the line that the plan draws says too much.
            needed = self.programs_at(layout).memory_bytes
            if not memory.fits(needed, limit):
                lack = memory.lack(1, needed, limit)
                trying = f"--config.engine.lanes={layout.lanes} tries it nevertheless"
                raise memory.OutOfMemory(f"{lack}. {memory.ADVICE}; {trying}")
        self.layout = self.chosen = layout
        return f"{lack}; taking {most}"

    def close(self) -> None:
        """Ends what works beside the run, if anything does."""

    # --- inside -----------------------------------------------------------------------------------

    def _make_programs(self, layout: Layout) -> LanePrograms:
        raise NotImplementedError

    def _layout_of(self, per_device: int) -> Layout:
        return dataclasses.replace(self.chosen, lanes=per_device * len(self.chosen.devices))

    def _lane_ids(self) -> list[str | None]:
        return [None if t is None else t.trial_id for t in self.lanes]

    def _blank_input(self, trial: Trial) -> train.Inputs:
        """What a trial brings, with labels that are none: nothing of the user's is called."""
        labels = (np.zeros(n, np.int32) for n in (self.spec.num_train, self.spec.num_test))
        return self._input_of(trial, labels, 0)

    def _input_of(self, trial: Trial, labels: Iterable[np.ndarray], place: int) -> train.Inputs:
        first = self._own.first(trial) if self._own else ()
        return train.Inputs(trial_inputs.trial_hypers(trial), *labels, np.int32(place), first)

    def _empty_lanes(self) -> Any:
        """Lanes without trials, and their state on the host."""
        self.lanes = [None] * self.layout.lanes
        stack = lambda a: np.stack([np.asarray(a)] * self.layout.lanes)  # noqa: E731
        self._inputs_L = jax.tree.map(stack, self._one_input)
        return self.programs.empty_state()

    def _fill(self, lane: int) -> bool:
        """Puts the first waiting trial that can begin into a lane; returns whether there is one."""
        for trial in list(self.waiting):
            with self._failing_alone(trial):
                if (place := self._place(trial)) is not None:
                    self._assign(lane, trial, place)
                    return True
        return False

    @contextlib.contextmanager
    def _failing_alone(self, trial: Trial) -> Iterator[None]:
        """Within, an error is that of a waiting trial and stops no other one.

        Its data are made there, maybe by the user's own corruption.
        """
        try:
            yield
        except Exception as error:
            if self._on_failed is None or memory.is_out_of_memory(error):
                raise
            self.waiting.remove(trial)
            self._on_failed(trial, error)

    def _assign(self, lane: int, trial: Trial, place: int) -> None:
        """Puts a waiting trial into a lane."""
        labels = trial_inputs.trial_labels(trial, self._dataset)
        true = trial_inputs.true_labels(trial, self._dataset)
        own = self._input_of(trial, labels, place)
        jax.tree.map(lambda a_L, a: a_L.__setitem__(lane, a), self._inputs_L, own)
        pairs = zip(labels, true, strict=True)
        self._noise[trial] = tuple(float(np.mean(a != b)) for a, b in pairs)  # type: ignore[assignment]
        self.waiting.remove(trial)
        self.lanes[lane] = trial
        self.epochs_of.setdefault(trial, 0)

    def _place(self, trial: Trial) -> int | None:
        """Where among the shared images a trial's are, or None if it has to wait for them."""
        del trial
        return 0

    def _take_up(
        self, state_L: Any, saved_L: Any, trial_ids: list[str | None], epoch_L: np.ndarray
    ) -> None:
        """Puts the trials of a checkpoint back into lanes: their own ones, where these exist."""
        waiting = {t.trial_id: t for t in self.waiting}
        for row, trial_id in enumerate(trial_ids):
            trial = waiting.get(trial_id)
            own = row if row < len(self.lanes) and self.lanes[row] is None else self._free_lane()
            if trial is None or own is None:
                continue
            with self._failing_alone(trial):
                if (place := self._place(trial)) is not None:
                    self._assign(own, trial, place)
                    copy_lane(state_L, own, saved_L, row)
                    self.epochs_of[trial] = int(epoch_L[row])

    def _finish(self, lane: int, state: train.TrialState, measured: Any = None) -> None:
        """Hands over the trial of a lane, which is free then."""
        trial = self.lanes[lane]
        assert trial is not None
        measured = measured or {}
        self._on_finished(Finished(trial, state, self._noise[trial], measured, self._own))
        self.lanes[lane] = None

    def _busy_on(self, device: int) -> int:
        per = self.layout.per_device
        return sum(t is not None for t in self.lanes[device * per : (device + 1) * per])

    def _free_lane(self) -> int | None:
        """A free lane on the device that has the fewest trials."""
        free = [i for i, t in enumerate(self.lanes) if t is None]
        return min(free, key=lambda i: self._busy_on(self.layout.device_of(i)), default=None)
