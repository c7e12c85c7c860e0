"""Networks, behind two functions: `init` and `apply`.

A new network is one flax module whose attributes (made with `schema.model_field`) are its config
fields, and one entry in `MODELS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from rethink_jax.models.mlp import MLP
from rethink_jax.schema import Field, UserError

Variables = Mapping[str, Any]  # {"params": ..., and what else the network keeps: "batch_stats"}

MODELS: dict[str, type[nn.Module]] = {"mlp": MLP}


class Model(NamedTuple):
    """One network as two pure functions.

    init: (key, image_1xHxWxC) -> variables
    apply: (variables, images_BxHxWxC, train, key) -> (logits_BxY float32, variables less params);
      in evaluation (train False) nothing is random and the key is None
    """

    init: Callable[[jax.Array, jax.Array], Variables]
    apply: Callable[[Variables, jax.Array, bool, jax.Array | None], tuple[jax.Array, Variables]]


def fields_of(name: str) -> dict[str, Field]:
    """The config fields of a network, {attribute: Field}."""
    fields = {}
    for f in dataclasses.fields(MODELS[name]):
        if f.name in ("parent", "name", "num_classes"):
            continue
        if f.default is dataclasses.MISSING and "field" not in f.metadata:
            raise UserError(f"attribute {f.name!r} of the network {name!r} needs a default value")
        plain = Field(type(f.default), f.default, f"attribute of {name}")
        fields[f.name] = f.metadata.get("field", plain)
    return fields


def build(name: str, num_classes: int, **attributes: Any) -> Model:
    """The network `name` with the given attributes."""
    module = MODELS[name](num_classes=num_classes, **attributes)

    def init(key: jax.Array, image_1xHxWxC: jax.Array) -> Variables:
        return module.init({"params": key}, image_1xHxWxC, train=False)

    def apply(
        variables: Variables, images_BxHxWxC: jax.Array, train: bool, key: jax.Array | None
    ) -> tuple[jax.Array, Variables]:
        mutable = [k for k in variables if k != "params"] if train else []
        rngs = None if key is None else {"dropout": key}
        logits_BxY, updated = module.apply(
            variables, images_BxHxWxC, train=train, rngs=rngs, mutable=mutable
        )
        return logits_BxY, {k: updated.get(k, variables[k]) for k in variables if k != "params"}

    return Model(init, apply)
