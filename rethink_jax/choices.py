"""What a group runs with, where several ways give the same results at different speed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from rethink_jax.layers import lowering
from rethink_jax.layers.lowering import ConvShape


@dataclasses.dataclass(frozen=True)
class Choices:
    """What was found to be fastest for a group (see `tuning`); without it, rules say (`BY_RULE`).

    batching: over the lanes of a device: "vmap", "map", or "auto" for the rule
    per_device: lanes of a device, or 0 for the rule
    lowerings: {shape: name of its lowering}; the other convolutions go by `lowering.by_rule`
    """

    batching: str = "auto"
    per_device: int = 0
    lowerings: Mapping[ConvShape, str] = dataclasses.field(default_factory=dict)

    def lowering_of(self, shape: ConvShape) -> str:
        """The lowering of a convolution."""
        return self.lowerings.get(shape) or lowering.by_rule(shape)

    def to_json(self) -> dict[str, Any]:
        """As it stands in a workdir."""
        return {
            "batching": self.batching,
            "lanes_per_device": self.per_device,
            "convolutions": [
                {**shape._asdict(), "lowering": name} for shape, name in self.lowerings.items()
            ],
        }

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> Choices:
        """What `to_json` wrote. A lowering that does not exist any more is left out."""
        lowerings = {}
        for entry in stored["convolutions"]:
            fields = {**entry, "window": tuple(entry["window"])}
            if (name := fields.pop("lowering")) in lowering.LOWERINGS:
                lowerings[ConvShape(**fields)] = name
        return Choices(stored["batching"], stored["lanes_per_device"], lowerings)


BY_RULE = Choices()
