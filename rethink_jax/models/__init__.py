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
import jax.numpy as jnp

from rethink_jax.models.alexnet import AlexNet
from rethink_jax.models.inception import Inception
from rethink_jax.models.inception_v3 import InceptionV3
from rethink_jax.models.mlp import MLP
from rethink_jax.models.sequential import Sequential
from rethink_jax.models.vgg import VGG, VGG16BN
from rethink_jax.schema import Field, UserError, first_line

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
    """The config fields of a network, {attribute: Field}.

    Raises:
      UserError: it is no class of networks, or has an attribute that no config can hold.
    """
    own = {f.name: f for f in dataclasses.fields(_class_of(name))}
    if "num_classes" not in own:
        raise UserError(f"the network {name!r} has no attribute num_classes: int; add it")
    skipped = ("parent", "name", "num_classes")
    return {n: _field(name, f) for n, f in own.items() if n not in skipped}


def _class_of(name: str) -> type[nn.Module]:
    found = MODELS[name]
    if isinstance(found, type) and issubclass(found, nn.Module):
        return found
    raise UserError(
        f"models.MODELS[{name!r}] is {type(found).__name__}; put a class there, a flax.linen.Module"
    )


def _field(name: str, attribute: dataclasses.Field[Any]) -> Field:
    """The config field of an attribute: as `model_field` made it, else by its default value."""
    if "field" in attribute.metadata:
        return attribute.metadata["field"]
    kind = type(attribute.default)
    if attribute.default is None or kind not in (bool, int, float, str, tuple):
        given = "no" if attribute.default is dataclasses.MISSING else f"{kind.__name__} as"
        raise UserError(
            f"attribute {attribute.name!r} of the network {name!r} has {given} default value; a "
            "config holds bool, int, float, str and tuple. Give it one of these (or make it with "
            "schema.model_field, which allows None, too)"
        )
    return Field(kind, attribute.default, f"attribute of {name}")


def check(name: str, **attributes: Any) -> None:
    """Raises UserError if the attributes of a network do not fit together.

    A network for which that can happen has a method `check` that raises it.
    """
    module = MODELS[name](num_classes=2, **attributes)
    if hasattr(module, "check"):
        module.check()


def check_output(name: str, model: Model, image_shape: tuple[int, ...], num_classes: int) -> None:
    """Raises UserError if a network of the user's cannot be run, or gives no logits.

    Nothing is computed: shapes and dtypes tell.
    """
    if MODELS[name].__module__.startswith("rethink_jax."):
        return
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    key = jax.random.key(0)

    def run(image: jax.Array, images: jax.Array) -> list[jax.Array]:
        variables = model.init(key, image)
        return [model.apply(variables, images, t, key if t else None)[0] for t in (False, True)]

    try:
        found = jax.eval_shape(run, image, images)
    except UserError:
        raise
    # It is the user's code and can fail in any way.
    except Exception as error:
        raise UserError(
            f"the network {name!r} cannot be run on float32{list(images.shape)}: "
            f"{type(error).__name__}: {first_line(error)}; it is called as (images, train=True or "
            "False) and returns logits"
        ) from error
    for logits in found:
        shape, dtype = getattr(logits, "shape", None), getattr(logits, "dtype", None)
        if shape != (2, num_classes) or not jnp.issubdtype(dtype, jnp.floating):
            gave = f"{dtype}{list(shape)}" if shape is not None else type(logits).__name__
            raise UserError(
                f"the network {name!r} gives {gave} for 2 images; give logits, a float for each "
                f"image and each of num_classes={num_classes} classes"
            )


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
