"""The lanes: how one trial's function runs for many trials at once. With the runs that are built
on it (`lane_run`, `engine`, `streaming`), the only place with the lane axis.

A lane is one slot of a compiled program. Lanes are split over the local devices by a mesh and, on
each device, run by `vmap` (all together) or `map` (one after another).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rethink_jax import step
from rethink_jax.choices import BY_RULE, Choices
from rethink_jax.schema import UserError

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
