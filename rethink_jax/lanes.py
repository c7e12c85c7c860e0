"""The lanes: how one trial's function runs for many trials at once. With the runs that are built
on it (`engine`, `streaming`), the only place with the lane axis.

A lane is one slot of a compiled program. Lanes are split over the local devices by a mesh and, on
each device, run by `vmap` (all together) or `map` (one after another).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rethink_jax import inputs as trial_inputs
from rethink_jax import step, train
from rethink_jax.schema import UserError
from rethink_jax.trials import Group, Trial

_LANES = PartitionSpec("lanes")
_SHARED = PartitionSpec()
_LANES_PER_DEVICE = {"map": 4, "vmap": 32}


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


class LanePrograms:
    """Compiled programs of a group on one layout, and how arrays get to its lanes and back.

    state_struct: shapes and dtypes of the state of all lanes
    shared: the sharding of what all lanes have in common
    """

    def __init__(self, spec: step.Spec, layout: Layout, one_state: Any):
        self.layout = layout
        self._spec = spec
        self._lane_sharding = NamedSharding(layout.mesh, _LANES)
        self.shared = shared_sharding(layout)
        self.state_struct = _struct(one_state, self._lane_sharding, (layout.lanes,))

    def compiled(self, fn: Callable[..., Any], shared_args: Any, *own_args: Any) -> Any:
        """A function of one trial, compiled ahead for these very shapes and for all lanes.

        Args:
          fn: of the shared arguments, then of those of one trial; it consumes the last one.
          shared_args, own_args: what the arguments look like, those of one trial without L.
        """
        own = [_struct(a, self._lane_sharding, (self.layout.lanes,)) for a in own_args]
        args = [*_struct(shared_args, self.shared), *own]
        lifted = over_lanes(fn, self.layout, len(shared_args))
        program = jax.jit(lifted, donate_argnums=len(args) - 1)
        with jax.default_matmul_precision(self._spec.fields["matmul_precision"]):
            return program.lower(*args).compile()

    def put(self, tree_L: Any) -> Any:
        """Host arrays with a leading lane axis, copied onto the lanes' devices."""
        # On the CPU a device array may share memory with the numpy array it was put from.
        return jax.device_put(jax.tree.map(np.copy, tree_L), self._lane_sharding)

    def empty_state(self) -> Any:
        """Lanes without trials, on the host."""
        return jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), self.state_struct)

    def lane(self, tree_L: Any, lane: int) -> Any:
        """One lane of a tree, still on its device. Only that device works for it."""
        device = self.layout.devices[self.layout.device_of(lane)]

        def on_device(array_L: jax.Array) -> jax.Array:
            return next(s.data for s in array_L.addressable_shards if s.device == device)

        return _take(jax.tree.map(on_device, tree_L), lane % self.layout.per_device)


def shared_sharding(layout: Layout) -> NamedSharding:
    """Of arrays that lie whole on every device of the layout."""
    return NamedSharding(layout.mesh, _SHARED)


def _struct(tree: Any, sharding: NamedSharding, lead: tuple[int, ...] = ()) -> Any:
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((*lead, *a.shape), a.dtype, sharding=sharding), tree
    )


@jax.jit
def _take(tree: Any, index: jax.Array) -> Any:
    return jax.tree.map(lambda a: a[index], tree)


@jax.jit
def snapshot(state_L: Any) -> Any:
    """A copy on the devices, which stays when the state is consumed by the next dispatch."""
    return jax.tree.map(jnp.copy, state_L)


def program_bytes(program: Any) -> int:
    """What one device needs to run a compiled program, as the compiler reports it."""
    m = program.memory_analysis()
    return (
        m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
        + m.temp_size_in_bytes
    )  # fmt: skip


def copy_lane(to_L: Any, to: int, from_L: Any, row: int) -> None:
    """Copies one lane of a tree of host arrays into a lane of another."""
    jax.tree.map(lambda a_L, b_L: a_L.__setitem__(to, b_L[row]), to_L, from_L)


class Finished(NamedTuple):
    """A trial that is done; the arrays of its state may still be on their way from the device.

    label_noise: fraction of labels that differ from the true ones, of training and of test set
    """

    trial: Trial
    state: train.TrialState
    label_noise: tuple[float, float]


class LaneRun:
    """What all runs of a group share: which trial is in which lane, and its inputs.

    on_finished: called with each `Finished`; it must not wait for the device
    epochs_of: epochs done, of every trial that has been in a lane; also parts of one
    """

    programs: LanePrograms

    def __init__(
        self,
        group: Group,
        dataset: trial_inputs.AnyDataset,
        settings: dict[str, Any],
        on_finished: Callable[[Finished], None],
    ):
        self.layout = self._chosen = choose_layout(settings, len(group.trials))
        self.spec = trial_inputs.make_spec(group.trials, dataset, settings["evaluate.every_epochs"])
        self._dataset, self._settings, self._on_finished = dataset, settings, on_finished
        self._one_input = self._make_input(group.trials[0], 0)
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
        """Parameters of one network."""
        one = jax.eval_shape(lambda i: train.init_trial(self.spec, i), self._one_input)
        return sum(int(np.prod(p.shape)) for p in jax.tree.leaves(one.params))

    def close(self) -> None:
        """Ends what works beside the run, if anything does."""

    # --- inside -----------------------------------------------------------------------------------

    @staticmethod
    def _describe(layout: Layout) -> dict[str, Any]:
        return {
            "devices": len(layout.devices), "platform": layout.devices[0].platform,
            "lanes": layout.lanes, "batching": layout.batching,
        }  # fmt: skip

    def _lane_ids(self) -> list[str | None]:
        return [None if t is None else t.trial_id for t in self.lanes]

    def _make_input(self, trial: Trial, place: int) -> train.Inputs:
        labels = trial_inputs.trial_labels(trial, self._dataset)
        return train.Inputs(trial_inputs.trial_hypers(trial), *labels, np.int32(place))

    def _empty_lanes(self) -> Any:
        """Lanes without trials, and their state on the host."""
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
            if trial is None or own is None or (place := self._place(trial)) is None:
                continue
            self.waiting.remove(trial)
            self._assign(own, trial, place)
            copy_lane(state_L, own, saved_L, row)
            self.epochs_of[trial] = int(epoch_L[row])

    def _finish(self, lane: int, state: train.TrialState) -> None:
        """Hands over the trial of a lane, which is free then."""
        trial = self.lanes[lane]
        assert trial is not None
        self._on_finished(Finished(trial, state, self._noise[trial]))
        self.lanes[lane] = None

    def _busy_on(self, device: int) -> int:
        per = self.layout.per_device
        return sum(t is not None for t in self.lanes[device * per : (device + 1) * per])

    def _free_lane(self) -> int | None:
        """A free lane on the device that has the fewest trials."""
        free = [i for i, t in enumerate(self.lanes) if t is None]
        return min(free, key=lambda i: self._busy_on(self.layout.device_of(i)), default=None)
