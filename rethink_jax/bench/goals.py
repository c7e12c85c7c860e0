"""The goals for throughput, as data, and whether a benchmark meets them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from rethink_jax.bench.ways import WAYS

Results = dict[str, Any]
# Bytes that a trial-step of the MLP 1x512 moves at least, as the goal counts them.
_MLP_BYTES = 38e6
_CONVOLUTIONAL = ("alexnet", "inception", "vgg")
_TORCH_EAGER = ("torch", "torch_channels_last")
_ONE_AT_A_TIME = tuple(k for k, w in WAYS.items() if w.family in ("one_scan", "one_loop"))


class Goal(NamedTuple):
    """One figure that is wanted.

    where: the platform that it is for, cpu, gpu or "" for any   machine: for which it was set
    figure: in words   measure: the figure from the results, or None where it was not measured
    least: wanted   stretch: hoped for, or None   at_most: the figure should be below, not above
    """

    where: str
    machine: str
    figure: str
    measure: Callable[[Results], float | None]
    least: float
    stretch: float | None = None
    at_most: bool = False


def _rate(network: Results, way: str) -> float | None:
    rows = {row["way"]: row for row in network["rows"]}
    return rows[way]["rate"]["median"] if "rate" in rows.get(way, {}) else None


def ratio(results: Results, over: tuple[str, ...], networks: tuple[str, ...] = ()) -> float | None:
    """The engine's rate over that of the best of some ways; the lowest over all networks named.

    No networks named are all that were timed. None unless every network named was.
    """
    found = results["networks"]
    lowest = None
    for name in networks or found:
        engine = _rate(found[name], "engine") if name in found else None
        others = [r for way in over if name in found and (r := _rate(found[name], way))]
        if engine is None or not others:
            if networks:
                return None
            continue
        value = engine / max(others)
        lowest = value if lowest is None else min(lowest, value)
    return lowest


def extra(results: Results, name: str, key: str) -> float | None:
    """A figure of one of the extras."""
    return results["extras"].get(name, {}).get(key)


def wall_to_busy(results: Results) -> float | None:
    """The engine's wall time over the devices' own, the highest over all networks."""
    rows = [row for network in results["networks"].values() for row in network["rows"]]
    return max((r["wall_to_busy"] for r in rows if "wall_to_busy" in r), default=None)


def share_of_bandwidth(results: Results) -> float | None:
    """The least bytes of the MLP 1x512, a second, over the bandwidth of a copy."""
    bandwidth = results["head"].get("copy_bytes_per_second")
    network = results["networks"].get("mlp1x512")
    rate = _rate(network, "engine") if network else None
    return rate * _MLP_BYTES / bandwidth if rate and bandwidth else None


def share_of_peak(results: Results) -> float | None:
    """The Inception's operations a second over the device's highest rate in bfloat16."""
    peak, network = results["head"].get("peak_tflops"), results["networks"].get("inception")
    rate = _rate(network, "engine") if network else None
    return rate * network["flops"] / (peak * 1e12) if network and rate and peak else None


_over = functools.partial
GOALS: tuple[Goal, ...] = (
    Goal("cpu", "2 cores", "digits MLP: engine / PyTorch eager",
         _over(ratio, over=("torch",), networks=("digits",)), 4, 6),
    Goal("cpu", "CPU", "MLP 1x512: engine / PyTorch eager",
         _over(ratio, over=("torch",), networks=("mlp1x512",)), 1.3, 1.6),
    Goal("cpu", "CPU", "AlexNet and Inception: engine / better PyTorch eager",
         _over(ratio, over=_TORCH_EAGER, networks=("alexnet", "inception")), 0.5, 0.8),
    Goal("cpu", "CPU", "any convolutional network: engine / naive vmap of lax convolutions",
         _over(ratio, over=("naive_vmap",), networks=_CONVOLUTIONAL), 3),
    Goal("", "anywhere", "engine / best of the one-at-a-time ways",
         _over(ratio, over=_ONE_AT_A_TIME), 0.95),
    Goal("", "anywhere", "refill: wall(none) / wall(refill), share of ideal",
         _over(extra, name="refill", key="share_of_ideal"), 0.85, 0.95),
    Goal("", "anywhere", "busy lane-steps / all lane-steps",
         _over(extra, name="refill", key="busy"), 0.90, 0.97),
    Goal("", "anywhere", "engine's wall time / device-busy time, 100 steps or more a dispatch",
         wall_to_busy, 1.05, at_most=True),
    Goal("gpu", "H200", "MLP 1x512: engine / one at a time (same scan)",
         _over(ratio, over=("one_scan",), networks=("mlp1x512",)), 5, 8),
    Goal("gpu", "H200", "MLP 1x512: least bytes x trial-steps/s / copy bandwidth",
         share_of_bandwidth, 0.5, 0.7),
    Goal("gpu", "H200", "Inception: engine / one at a time",
         _over(ratio, over=_ONE_AT_A_TIME, networks=("inception",)), 1.3, 1.8),
    Goal("gpu", "H200", "Inception: share of bfloat16 peak", share_of_peak, 0.15, 0.25),
    Goal("gpu", "H200", "any network: engine / PyTorch bfloat16 compiled",
         _over(ratio, over=("torch_compile",)), 2, 4),
)  # fmt: skip


def judge(results: Results) -> list[dict[str, Any]]:
    """Every goal with its figure (None: not measured) and what is to be said of it."""
    platform = results["head"]["platform"]
    return [
        {
            "machine": goal.machine, "figure": goal.figure, "least": goal.least,
            "stretch": goal.stretch, "at_most": goal.at_most,
            "measured": (value := goal.measure(results) if goal.where in ("", platform) else None),
            "verdict": verdict(goal, value),
        }
        for goal in GOALS
    ]  # fmt: skip


def verdict(goal: Goal, value: float | None) -> str:
    """met, not met, stretch met or not measured."""
    if value is None:
        return "not measured"
    sign = -1 if goal.at_most else 1
    if goal.stretch is not None and sign * value >= sign * goal.stretch:
        return "stretch met"
    return "met" if sign * value >= sign * goal.least else "not met"
