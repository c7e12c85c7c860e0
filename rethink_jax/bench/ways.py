"""The ways to train that are compared, and the process that each is measured in."""

from __future__ import annotations

from typing import Any, NamedTuple

from rethink_jax.bench import client
from rethink_jax.bench.networks import LEARNING_RATE, MOMENTUM, NETWORKS, Task
from rethink_jax.devices import available_cores

# Lanes of the naive way where --lanes does not say: those of the goal.
_NAIVE_LANES = 4


class Way(NamedTuple):
    """One row of a comparison.

    family: its name on the command line   job: what its worker is told
    doc: what it is, for the table   convolutional: only for networks with convolutions
    """

    family: str
    job: dict[str, Any]
    doc: str
    convolutional: bool = False

    @property
    def uses_torch(self) -> bool:
        return self.family.startswith("torch")


_ENGINE = {"class": "engine", "tune": False}
_LOOP = {"class": "loop"}
WAYS: dict[str, Way] = {
    "engine": Way("engine", _ENGINE, "the engine at its chosen settings"),
    "engine_vmap": Way("engine_vmap", _ENGINE | {"batching": "vmap"}, "the engine, by vmap"),
    "engine_map": Way("engine_map", _ENGINE | {"batching": "map"}, "the engine, by map"),
    "naive_vmap": Way(
        "naive_vmap", {"class": "naive", "lax": True},
        "a Python loop of jit(vmap(step)), XLA's convolutions",
    ),
    "one_scan": Way(
        "one_scan", {"class": "scan"}, "one trial, the engine's scan and layers, plain jit"
    ),
    "one_loop": Way(
        "one_loop", _LOOP, "one trial, a Python loop of jitted steps, the engine's layers"
    ),
    "one_loop_lax": Way(
        "one_loop", _LOOP | {"lax": True},
        "one trial, a Python loop of jitted steps, XLA's convolutions", convolutional=True,
    ),
    "torch": Way("torch", {"channels_last": False}, "one trial, PyTorch eager"),
    "torch_channels_last": Way(
        "torch", {"channels_last": True}, "one trial, PyTorch eager, channels last",
        convolutional=True,
    ),
    "torch_compile": Way(
        "torch_compile", {"channels_last": True, "compile": True},
        "one trial, torch.compile, channels last where there are any",
    ),
}  # fmt: skip
FAMILIES = tuple(dict.fromkeys(way.family for way in WAYS.values()))


def ways_for(network: str, families: tuple[str, ...]) -> list[str]:
    """The rows of a network's table."""
    convolutions = NETWORKS[network].convolutional
    return [k for k, w in WAYS.items() if w.family in families and convolutions >= w.convolutional]


def start(
    name: str, task: Task, lanes: int, platform: str, torch_python: str, environment: dict[str, str]
) -> client.Worker:
    """Starts the worker of a way.

    Raises:
      WorkerError: it cannot be started.
    """
    way = WAYS[name]
    if way.uses_torch:
        if not torch_python:
            raise client.WorkerError("not run: --torch_python names no interpreter with PyTorch")
        return client.torch_worker(torch_python, torch_job(name, task, platform), environment)
    job = way.job
    if name == "engine" and platform != "cpu":
        # On a CPU what it measures is what the rules say, and costs a minute for each network.
        job = job | {"tune": True}
    lanes = lanes or (_NAIVE_LANES if name == "naive_vmap" else 0)
    return client.jax_worker(job | {"task": task._asdict(), "lanes": lanes}, environment)


def torch_job(name: str, task: Task, platform: str) -> dict[str, Any]:
    """What the script that knows nothing of this package is told."""
    known = NETWORKS[task.network]
    return WAYS[name].job | {
        "model": known.model, "image_shape": known.image_shape, "crop": known.crop,
        "batch": task.batch, "steps": task.steps, "learning_rate": LEARNING_RATE,
        "momentum": MOMENTUM, "device": "cpu" if platform == "cpu" else "cuda",
        "threads": available_cores(),
    }  # fmt: skip
