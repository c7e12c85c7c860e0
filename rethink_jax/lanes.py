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
from rethink_jax import memory, step, train
from rethink_jax.choices import BY_RULE, Choices
from rethink_jax.padding import OwnNetworks
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

    def describe(self) -> dict[str, Any]:
        """As it is written into files."""
        return {
            "devices": len(self.devices), "platform": self.devices[0].platform,
            "lanes": self.lanes, "batching": self.batching,
        }  # fmt: skip


def choose_layout(settings: dict[str, Any], num_trials: int, choices: Choices = BY_RULE) -> Layout:
    """The layout of a group: from the settings; else as was chosen for it; else by rule.

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
    rule = "map" if devices[0].platform == "cpu" else "vmap"
    said = settings["engine.batching"], choices.batching, rule
    batching = next(batching for batching in said if batching != "auto")
    # The lanes were chosen for one batching.
    per_device = choices.per_device if batching == choices.batching else 0
    devices = devices[: min(settings["engine.devices"] or len(devices), num_trials)]
    wanted = settings["engine.lanes"]
    wanted = wanted or len(devices) * (per_device or _LANES_PER_DEVICE[batching])
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

    Each program is compiled when it is first asked for.

    NAMES: of the programs   state_struct: shapes and dtypes of the state of all lanes
    shared: the sharding of what all lanes have in common
    """

    NAMES: tuple[str, ...]
    memory_bytes: int  # What one device needs, as the compiler reports it.

    def __init__(self, spec: step.Spec, layout: Layout, one_state: Any):
        self.layout = layout
        self._spec = spec
        self._lane_sharding = NamedSharding(layout.mesh, _LANES)
        self.shared = shared_sharding(layout)
        self.state_struct = _struct(one_state, self._lane_sharding, (layout.lanes,))

    def compile(self) -> None:
        """Compiles all programs, so that nothing is compiled once lanes run."""
        for name in self.NAMES:
            getattr(self, name)

    def compiled(
        self,
        fn: Callable[..., Any],
        shared_args: Any,
        *own_args: Any,
        batching: str | None = None,
        consume: bool = True,
    ) -> Any:
        """A function of one trial, compiled ahead for these very shapes and for all lanes.

        Args:
          fn: of the shared arguments, then of those of one trial.
          shared_args, own_args: what the arguments look like, those of one trial without L.
          batching: over the lanes of a device; None: as the layout says.
          consume: the last argument goes into the result, and is gone.
        """
        own = [_struct(a, self._lane_sharding, (self.layout.lanes,)) for a in own_args]
        args = [*_struct(shared_args, self.shared), *own]
        layout = dataclasses.replace(self.layout, batching=batching or self.layout.batching)
        lifted = over_lanes(fn, layout, len(shared_args))
        program = jax.jit(lifted, donate_argnums=(len(args) - 1,) if consume else ())
        with jax.default_matmul_precision(self._spec.fields["matmul_precision"]):
            return program.lower(*args).compile()

    def put(self, tree_L: Any) -> Any:
        """Host arrays with a leading lane axis, copied onto the lanes' devices."""
        # On the CPU a device array may share memory with the numpy array it was put from.
        return jax.device_put(jax.tree.map(np.copy, tree_L), self._lane_sharding)

    def empty_state(self) -> Any:
        """Lanes without trials, on the host."""
        return jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), self.state_struct)

    @property
    def waiting_bytes(self) -> int:
        """Of what waits on a device to be written: the networks of all lanes, and a checkpoint."""
        arrays = jax.tree.leaves(self.state_struct)
        return 2 * sum(a.size * a.dtype.itemsize for a in arrays) // len(self.layout.devices)

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


def copy_lane(to_L: Any, to: int, from_L: Any, row: int) -> None:
    """Copies one lane of a tree of host arrays into a lane of another."""
    jax.tree.map(lambda a_L, b_L: a_L.__setitem__(to, b_L[row]), to_L, from_L)


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
    ):
        self.layout = self.chosen = choose_layout(settings, len(group.trials), choices)
        spec = trial_inputs.make_spec(group.trials, dataset, settings["evaluate.every_epochs"])
        name = settings["engine.convolution"]
        lowering_of = choices.lowering_of if name == "auto" else lambda _: name
        self.spec = dataclasses.replace(spec, fields=group.static, lowering_of=lowering_of)
        self._own = OwnNetworks(self.spec) if group.padded_to else None
        self._dataset, self._settings, self._on_finished = dataset, settings, on_finished
        self._one_input = self._make_input(group.trials[0], 0)
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

    def _make_input(self, trial: Trial, place: int) -> train.Inputs:
        labels = trial_inputs.trial_labels(trial, self._dataset)
        first = self._own.first(trial) if self._own else ()
        return train.Inputs(trial_inputs.trial_hypers(trial), *labels, np.int32(place), first)

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
        true = trial_inputs.true_labels(trial, self._dataset)
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
