"""The lanes: many trials at once in one compiled program. The only module with the lane axis.

A lane is one slot of the program. Lanes are split over the local devices by a mesh and, on each
device, run by `vmap` (all together) or `map` (one after another). A lane whose trial has finished
takes the next waiting trial without recompiling; when none waits, the rest are repacked.

The host works one dispatch behind: it reads which lanes finished in one dispatch while the device
runs the next, in which those lanes stand still.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rethink_jax import inputs as trial_inputs
from rethink_jax import step, train
from rethink_jax.data.dataset import Dataset
from rethink_jax.schema import UserError
from rethink_jax.trials import Group, Trial

_LANES = PartitionSpec("lanes")
_SHARED = PartitionSpec()
_LANES_PER_DEVICE = {"map": 4, "vmap": 32}
# Seconds that one dispatch should take: long against the host's work, short for a person waiting.
_DISPATCH_SECONDS = 0.25
_MAX_EPOCHS_PER_DISPATCH = 64


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the lanes lie on the machine. It decides speed and never a result.

    devices: the local devices   lanes: of all devices together, a multiple of their number
    batching: "vmap" or "map" over the lanes of one device
    """

    devices: tuple[jax.Device, ...]
    lanes: int
    batching: str

    @property
    def per_device(self) -> int:
        return self.lanes // len(self.devices)

    @property
    def mesh(self) -> Mesh:
        # Not jax.make_mesh: its axes are Explicit, under which a vmapped convolution is refused.
        return Mesh(np.array(self.devices), ("lanes",))

    def device_of(self, lane: int) -> int:
        return lane // self.per_device


def choose_layout(settings: dict[str, Any], num_trials: int) -> Layout:
    """The layout of a group, from the settings and from what was measured per backend.

    On the CPU, `map` over one-core devices wins at every size tried (BUILD_NOTES.md), and more
    lanes than a few per device only make a dispatch longer. Elsewhere `vmap` fills the device.

    Raises:
      UserError: more devices asked for than there are.
    """
    devices = tuple(jax.local_devices())
    if settings["engine.devices"] > len(devices):
        raise UserError(
            f"engine.devices is {settings['engine.devices']}; there are {len(devices)}. "
            "Set --config.engine.devices to at most that, or to 0 for all"
        )
    batching = settings["engine.batching"]
    if batching == "auto":
        batching = "map" if devices[0].platform == "cpu" else "vmap"
    devices = devices[: min(settings["engine.devices"] or len(devices), num_trials)]
    wanted = settings["engine.lanes"] or len(devices) * _LANES_PER_DEVICE[batching]
    per_device = -(-min(wanted, num_trials) // len(devices))
    return Layout(devices, per_device * len(devices), batching)


def over_lanes(fn: Callable[..., Any], layout: Layout, shared: int = 0) -> Callable[..., Any]:
    """A function of one trial as a function of all lanes.

    Args:
      fn: of `shared` arguments that all lanes have in common, then of arguments of one trial.
      layout: the lanes. Each device runs its own, without a word to the others.
      shared: how many leading arguments of `fn` have no lane axis.

    Returns:
      a function whose further arguments, and whose result, lead with the lane axis L.
    """

    def on_device(*args: Any) -> Any:
        common, own = args[:shared], args[shared:]
        if layout.batching == "vmap":
            return jax.vmap(lambda *a: fn(*common, *a))(*own)
        return jax.lax.map(lambda a: fn(*common, *a), own)

    # One spec per argument: those in common lie on every device, the others are split.
    def call(*args: Any) -> Any:
        specs = (_SHARED,) * shared + (_LANES,) * (len(args) - shared)
        # Not jit with shardings: the partitioner would move a vmapped convolution's operands about.
        return jax.shard_map(
            on_device, mesh=layout.mesh, in_specs=specs, out_specs=_LANES, check_vma=False
        )(*args)

    return call


class Report(NamedTuple):
    """What the host reads of each lane after a dispatch: status and epochs done, int32[L]."""

    status: Any
    epoch: Any


class Programs:
    """The compiled programs of a group on one layout.

    start: (inputs_L, fresh_L, state_L) -> state_L, with fresh lanes at their trial's beginning
    advance: (data, epochs, inputs_L, state_L) -> (state_L, report_L), up to `epochs` further
    Both are compiled ahead for these very shapes, so no refill can compile anything. Both consume
    the state that they are given.
    """

    def __init__(self, spec: step.Spec, layout: Layout, data: Any, one_input: train.Inputs):
        self.layout = layout
        self._lane_sharding = NamedSharding(layout.mesh, _LANES)
        shared = NamedSharding(layout.mesh, _SHARED)

        def start(inputs: train.Inputs, fresh: jax.Array, state: train.TrialState) -> Any:
            return jax.lax.cond(fresh, lambda: train.init_trial(spec, inputs), lambda: state)

        def advance(data: train.Data, epochs: jax.Array, inputs: train.Inputs, state: Any) -> Any:
            body = lambda _, s: train.advance(spec, data, inputs, s)  # noqa: E731
            state = jax.lax.fori_loop(0, epochs, body, state)
            # The state itself is consumed by the next call before the host has read this one.
            return state, Report(state.status, state.epoch)

        def struct(tree: Any, sharding: NamedSharding, lead: tuple[int, ...] = ()) -> Any:
            return jax.tree.map(
                lambda a: jax.ShapeDtypeStruct((*lead, *a.shape), a.dtype, sharding=sharding), tree
            )

        def compiled(fn: Any, shared_args: Any, *own_args: Any) -> Any:
            own = [struct(a, self._lane_sharding, (layout.lanes,)) for a in own_args]
            args = [*struct(shared_args, shared), *own]
            program = jax.jit(
                over_lanes(fn, layout, len(shared_args)), donate_argnums=len(args) - 1
            )
            with jax.default_matmul_precision(spec.fields["matmul_precision"]):
                return program.lower(*args).compile()

        one_state = jax.eval_shape(lambda i: train.init_trial(spec, i), one_input)
        self.state_struct = struct(one_state, self._lane_sharding, (layout.lanes,))
        self.start = compiled(start, [], one_input, np.bool_(), one_state)
        self.advance = compiled(advance, [data, np.int32()], one_input, one_state)

    def put(self, tree_L: Any) -> Any:
        """Host arrays with a leading lane axis, copied onto the lanes' devices."""
        # On the CPU a device array may share memory with the numpy array it was put from.
        return jax.device_put(jax.tree.map(np.copy, tree_L), self._lane_sharding)

    def empty_state(self) -> train.TrialState:
        """Lanes without trials, on the host."""
        return jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), self.state_struct)

    def lane(self, tree_L: Any, lane: int) -> Any:
        """One lane of a tree, still on its device. Only that device works for it."""
        device = self.layout.devices[self.layout.device_of(lane)]

        def on_device(array_L: jax.Array) -> jax.Array:
            return next(s.data for s in array_L.addressable_shards if s.device == device)

        return _take(jax.tree.map(on_device, tree_L), lane % self.layout.per_device)

    @property
    def memory_bytes(self) -> int:
        """What one device needs to run `advance`, as the compiler reports it."""
        m = self.advance.memory_analysis()
        return (
            m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
            + m.temp_size_in_bytes
        )  # fmt: skip


@jax.jit
def _take(tree: Any, index: jax.Array) -> Any:
    return jax.tree.map(lambda a: a[index], tree)


class Finished(NamedTuple):
    """A trial that is done; the arrays of its state may still be on their way from the device.

    label_noise: fraction of labels that differ from the true ones, of training and of test set
    """

    trial: Trial
    state: train.TrialState
    label_noise: tuple[float, float]


class GroupRun:
    """One group on its way through the lanes: `begin`, then `step` while `busy`.

    on_finished: called with each `Finished`; it must not wait for the device
    image_bytes: memory for distinct versions of the images, per device
    """

    def __init__(
        self,
        group: Group,
        dataset: Dataset,
        settings: dict[str, Any],
        on_finished: Callable[[Finished], None],
        image_bytes: int = 2**32,
    ):
        self.layout = choose_layout(settings, len(group.trials))
        self.spec = trial_inputs.make_spec(group.trials, dataset, settings["evaluate.every_epochs"])
        self._dataset, self._settings, self._on_finished = dataset, settings, on_finished
        self._chosen = self.layout
        specs = {trial_inputs.pixel_spec(t) for t in group.trials}
        shared = NamedSharding(self.layout.mesh, _SHARED)
        self._images = trial_inputs.ImageStore(dataset, specs, image_bytes, shared)
        self._one_input = self._make_input(group.trials[0], 0)
        self._pending: tuple[Report, int, tuple[Trial | None, ...]] | None = None
        self._epochs_per_dispatch = settings["engine.epochs_per_dispatch"] or 1
        self._noise: dict[Trial, tuple[float, float]] = {}
        self._last_collected = time.monotonic()
        self.epochs_of: dict[Trial, int] = {}  # epochs done, of every trial that has been in a lane
        self.waiting: list[Trial] = []
        self.lanes: list[Trial | None] = []

    @property
    def busy(self) -> int:
        """Lanes with a trial."""
        return sum(t is not None for t in self.lanes)

    @property
    def one_state(self) -> train.TrialState:
        """Shapes and dtypes of one trial's state."""
        return jax.eval_shape(lambda i: train.init_trial(self.spec, i), self._one_input)

    def compile(self) -> Programs:
        """The programs for the present layout."""
        self.programs = Programs(self.spec, self.layout, self._images.struct, self._one_input)
        return self.programs

    def begin(
        self,
        waiting: Iterable[Trial],
        restored: tuple[train.TrialState, dict[str, Any]] | None = None,
    ) -> None:
        """Compiles the programs and fills the lanes.

        Args:
          waiting: the trials to run, in order.
          restored: a checkpoint; of its trials, those in `waiting` go on where they stood.
        """
        self.waiting = list(waiting)
        if restored and self._holds_all(restored[1]):
            # The same machine, and nothing waits: take up the very lanes, as they were compacted.
            self.layout = dataclasses.replace(self._chosen, lanes=len(restored[1]["lanes"]))
        self.compile()
        state_L = self._empty_lanes()
        if restored:
            self._take_up(state_L, *restored)
        self._state = self.programs.put(state_L)
        self._inputs = self.programs.put(self._inputs_L)
        self._refill()

    def step(self) -> None:
        """Dispatches some epochs of all lanes; then attends to what the one before finished."""
        epochs = self._epochs_per_dispatch
        self._state, report = self.programs.advance(
            self._images.data, np.int32(epochs), self._inputs, self._state
        )
        previous, self._pending = self._pending, (report, epochs, tuple(self.lanes))
        if previous is not None:
            self._collect(*previous)

    def checkpoint(self) -> tuple[train.TrialState, dict[str, Any]]:
        """The state of all lanes and which trials they hold, for `GroupCheckpoint.save`."""
        ids = [None if t is None else t.trial_id for t in self.lanes]
        return self._state, {"lanes": ids, "layout": self._describe(self._chosen)}

    # --- inside -----------------------------------------------------------------------------------

    def _holds_all(self, meta: dict[str, Any]) -> bool:
        known = meta["layout"] == self._describe(self._chosen)
        return known and {t.trial_id for t in self.waiting} <= set(meta["lanes"])

    @staticmethod
    def _describe(layout: Layout) -> dict[str, Any]:
        return {
            "devices": len(layout.devices), "platform": layout.devices[0].platform,
            "lanes": layout.lanes, "batching": layout.batching,
        }  # fmt: skip

    def _make_input(self, trial: Trial, place: int) -> train.Inputs:
        labels = trial_inputs.trial_labels(trial, self._dataset)
        return train.Inputs(trial_inputs.trial_hypers(trial), *labels, np.int32(place))

    def _empty_lanes(self) -> train.TrialState:
        self.lanes = [None] * self.layout.lanes
        stack = lambda a: np.stack([np.asarray(a)] * self.layout.lanes)  # noqa: E731
        self._inputs_L = jax.tree.map(stack, self._one_input)
        return self.programs.empty_state()

    def _assign(self, lane: int, trial: Trial, place: int) -> None:
        own = self._make_input(trial, place)
        self.lanes[lane] = trial
        jax.tree.map(lambda a_L, a: a_L.__setitem__(lane, a), self._inputs_L, own)
        true = self._dataset.train_labels, self._dataset.test_labels
        pairs = zip((own.labels, own.test_labels), true, strict=True)
        self._noise[trial] = tuple(float(np.mean(a != b)) for a, b in pairs)  # type: ignore[assignment]
        self.epochs_of.setdefault(trial, 0)

    def _next_trial(self) -> tuple[Trial, int] | None:
        """The first waiting trial whose images are there or can be made, and where they are."""
        in_use = {
            int(self._inputs_L.image_set[i]) for i, t in enumerate(self.lanes) if t is not None
        }
        for trial in self.waiting:
            place = self._images.place_of(trial_inputs.pixel_spec(trial), in_use)
            if place is not None:
                self.waiting.remove(trial)
                return trial, place
        return None

    def _busy_on(self, device: int) -> int:
        per = self.layout.per_device
        return sum(t is not None for t in self.lanes[device * per : (device + 1) * per])

    def _free_lane(self) -> int | None:
        """A free lane on the device that has the fewest trials."""
        free = [i for i, t in enumerate(self.lanes) if t is None]
        return min(free, key=lambda i: self._busy_on(self.layout.device_of(i)), default=None)

    def _take_up(
        self, state_L: train.TrialState, saved: train.TrialState, meta: dict[str, Any]
    ) -> None:
        """Puts the trials of a checkpoint back into lanes: their own ones, where these exist."""
        waiting = {t.trial_id: t for t in self.waiting}
        for row, trial_id in enumerate(meta["lanes"]):
            trial = waiting.get(trial_id)
            own = row if row < len(self.lanes) and self.lanes[row] is None else self._free_lane()
            if trial is None or own is None:
                continue
            in_use = {int(self._inputs_L.image_set[i]) for i, t in enumerate(self.lanes) if t}
            place = self._images.place_of(trial_inputs.pixel_spec(trial), in_use)
            if place is None:
                continue
            self.waiting.remove(trial)
            self._assign(own, trial, place)
            copy = lambda a_L, b_L, to=own, row=row: a_L.__setitem__(to, b_L[row])  # noqa: E731
            jax.tree.map(copy, state_L, saved)
            self.epochs_of[trial] = int(saved.epoch[row])

    def _refill(self) -> None:
        fresh_L = np.zeros(self.layout.lanes, np.bool_)
        while (lane := self._free_lane()) is not None and (found := self._next_trial()):
            self._assign(lane, *found)
            fresh_L[lane] = True
        if fresh_L.any():
            self._inputs = self.programs.put(self._inputs_L)
            self._state = self.programs.start(self._inputs, self.programs.put(fresh_L), self._state)

    def _collect(self, report: Report, epochs: int, lanes: tuple[Trial | None, ...]) -> None:
        status_L, epoch_L = jax.device_get((report.status, report.epoch))
        self._tune_dispatch(epochs)
        for row, trial in enumerate(lanes):
            if trial is None or trial not in self.lanes:
                continue  # Idle, or already collected when this was dispatched.
            self.epochs_of[trial] = int(epoch_L[row])
            if status_L[row] != train.RUNNING:
                lane = self.lanes.index(trial)
                # It stands still in the dispatch that runs now, so the state then is its last.
                state = self.programs.lane(self._state, lane)
                self._on_finished(Finished(trial, state, self._noise[trial]))
                self.lanes[lane] = None
        if self.waiting:
            self._refill()
        else:
            self._repack()

    def _tune_dispatch(self, epochs: int) -> None:
        """Lengthens or shortens the next dispatch towards a quarter of a second."""
        now = time.monotonic()
        seconds, self._last_collected = now - self._last_collected, now
        if not self._settings["engine.epochs_per_dispatch"]:
            wanted = int(_DISPATCH_SECONDS * epochs / max(seconds, 1e-6))
            self._epochs_per_dispatch = min(max(wanted, 1), 2 * epochs, _MAX_EPOCHS_PER_DISPATCH)

    def _repack(self) -> None:
        """With no trial waiting, gives the remaining ones a tighter place.

        Under `vmap` an idle lane costs as much as a busy one: the lanes are halved when half are
        idle. Under `map` it costs nothing, but the devices should have equally many trials.
        """
        devices = len(self.layout.devices)
        needed = -(-self.busy // devices)
        layout = self.layout
        if layout.batching == "vmap":
            while needed and 2 * needed <= layout.per_device and layout.per_device > 1:
                layout = dataclasses.replace(layout, lanes=layout.per_device // 2 * devices)
        uneven = max(self._busy_on(d) for d in range(devices)) > needed
        if not self.busy or (layout == self.layout and not uneven):
            return
        if layout.batching == "vmap" and layout == self.layout:
            return
        old_state, old_inputs = jax.device_get(self._state), self._inputs_L
        old = [(i, t) for i, t in enumerate(self.lanes) if t is not None]
        if layout != self.layout:
            self.layout = layout
            self.compile()
        state_L = self._empty_lanes()
        for row, trial in old:
            lane = self._free_lane()
            assert lane is not None
            self.lanes[lane] = trial
            copy = lambda a_L, b_L, to=lane, row=row: a_L.__setitem__(to, b_L[row])  # noqa: E731
            jax.tree.map(copy, (state_L, self._inputs_L), (old_state, old_inputs))
        self._state = self.programs.put(state_L)
        self._inputs = self.programs.put(self._inputs_L)
