"""Networks, behind two functions: `init` and `apply`.

A new network is one flax module whose attributes (made with `schema.model_field`) are its config
fields, and one entry in `MODELS`. Its call takes (images_BxHxWxC, train), or (images_BxHxWxC,
train, dropout_rate) if it has dropout. If it may be made wider with zeros, its class attribute
`widths` says by which fields (see `widths` below). If some values of its attributes do not go
together, it has a method `check()` that raises `UserError`.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from rethink_jax.models.alexnet import AlexNet
from rethink_jax.models.inception import Inception
from rethink_jax.models.inception_v3 import InceptionV3
from rethink_jax.models.mlp import MLP
from rethink_jax.models.sequential import Sequential
from rethink_jax.models.vgg import VGG, VGG16BN
from rethink_jax.schema import Field, UserError

Variables = Mapping[str, Any]  # {"params": ..., and what else the network keeps: "batch_stats"}

MODELS: dict[str, type[nn.Module]] = {
    "mlp": MLP,
    "alexnet": AlexNet,
    "inception": Inception,
    "inception_v3": InceptionV3,
    "vgg": VGG,
    "vgg16_bn": VGG16BN,
    "sequential": Sequential,
}


class Applied(NamedTuple):
    """What a network gives for a batch.

    logits_BxY: float32   state: the variables less params, as they are after the batch
    auxiliary: further outputs float32[B, Y] that training fits to the labels, too; each was sown
      into the collection "auxiliary" (see `models.inception_v3`), and there are none in evaluation
    """

    logits_BxY: jax.Array
    state: Variables
    auxiliary: tuple[jax.Array, ...]


class Model(NamedTuple):
    """One network as two pure functions.

    init: (key, image_1xHxWxC) -> variables
    apply: (variables, images_BxHxWxC, train, key, dropout_rate) -> Applied; in evaluation (train
      False) nothing is random, the key is None and the rate has no effect
    """

    init: Callable[[jax.Array, jax.Array], Variables]
    apply: Callable[..., Applied]


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


def check(name: str, **attributes: Any) -> None:
    """Raises UserError if the attributes of a network do not fit together.

    A network for which that can happen has a method `check` that raises it.
    """
    module = MODELS[name](num_classes=2, **attributes)
    if hasattr(module, "check"):
        module.check()


def widths(name: str) -> tuple[str, ...]:
    """The fields of a network by which it may be made wider without a change of its results.

    Each is a number of units, or a tuple of such numbers. With more of them, and all weights and
    biases of the further ones 0, in a dense ReLU network these stay 0 when it is trained, and
    all else is as without them. That does not hold where what is computed depends on the
    shape of a layer: the masks of dropout (a trial with dropout is never padded), batch norm over
    the units, an initializer (drawn for the own shape, then padded).

    Raises:
      UserError: the network names a field that it does not have, or that holds no numbers.
    """
    named, fields = getattr(MODELS[name], "widths", ()), fields_of(name)
    for width in named:
        if width not in fields or int not in (fields[width].kind, fields[width].each):
            raise UserError(
                f"the network {name!r} names {width!r} in `widths`; it needs a field that is a "
                f"whole number, or a tuple of them ({', '.join(fields)}). Take the name out"
            )
    return tuple(named)


def has_dropout(name: str, **attributes: Any) -> bool:
    """Whether the network reads the dropout rate of its trial."""
    module = MODELS[name]
    if "dropout_rate" not in inspect.signature(module.__call__).parameters:
        return False
    # A network whose layers are its config says by itself whether one of them is dropout.
    return bool(getattr(module(num_classes=2, **attributes), "has_dropout", True))


def build(name: str, num_classes: int, **attributes: Any) -> Model:
    """The network `name` with the given attributes."""
    module = MODELS[name](num_classes=num_classes, **attributes)
    drops = has_dropout(name, **attributes)

    def init(key: jax.Array, image_1xHxWxC: jax.Array) -> Variables:
        return module.init({"params": key}, image_1xHxWxC, train=False)

    def apply(
        variables: Variables,
        images_BxHxWxC: jax.Array,
        train: bool,
        key: jax.Array | None = None,
        dropout_rate: jax.Array | float = 0.0,
    ) -> Applied:
        kept = [k for k in variables if k != "params"]
        logits_BxY, updated = module.apply(
            variables,
            images_BxHxWxC,
            train=train,
            rngs=None if key is None else {"dropout": key},
            mutable=[*kept, "auxiliary"] if train else [],
            **({"dropout_rate": dropout_rate} if drops else {}),
        )
        auxiliary = tuple(jax.tree.leaves(updated.get("auxiliary", {})))
        return Applied(logits_BxY, {k: updated.get(k, variables[k]) for k in kept}, auxiliary)

    return Model(init, apply)
