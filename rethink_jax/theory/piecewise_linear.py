"""The layers of a network of ReLU units, as bounds on its VC dimension count them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from rethink_jax import step, train
from rethink_jax.measures.layers import Place, places
from rethink_jax.measures.subject import Subject
from rethink_jax.schema import UserError
from rethink_jax.theory.bounds import LayerSize

# Layers of a "sequential" network that are linear, or ReLU; dropout does nothing in evaluation.
_COVERED = ("conv", "dense", "relu", "avg_pool", "global_avg_pool", "flatten", "dropout")


def layer_sizes(fields: Mapping[str, Any], image_shape: Sequence[int]) -> list[LayerSize]:
    """The layers with weights of a network with two classes, in order.

    Its class is the sign of the difference of the two outputs: the last layer counts as that
    difference, one unit with half of the parameters. Averages are linear, a part of what follows.

    Args:
      fields: of a trial   image_shape: (height, width, channels), before the crop

    Raises:
      UserError: the network has layers that are not linear or ReLU, so that the bound does not
        hold for it, or not as it stands.
    """
    _refuse_others(fields)
    spec = step.Spec(
        fields=fields, num_train=0, num_test=0, image_shape=tuple(image_shape), num_classes=2,
        used=frozenset(), evaluate_every=1,
    )  # fmt: skip
    variables = jax.eval_shape(lambda: train.init_variables(spec, 0))
    images = jax.ShapeDtypeStruct((1, *spec.input_shape), "float32")
    labels = jax.ShapeDtypeStruct((1,), "int32")
    found = places(Subject(spec.model, variables, images, labels))
    sizes = [LayerSize(math.prod(p.output_shape), _params(p, variables["params"])) for p in found]
    return [*sizes[:-1], LayerSize(1, sizes[-1].params // 2)]


def _refuse_others(fields: Mapping[str, Any]) -> None:
    name = fields["model.name"]
    if name == "sequential":
        other = [text for text in fields["model.layers"] if text.split()[0] not in _COVERED]
        if other:
            raise UserError(
                f"the bound on the VC dimension is of networks whose layers are linear or ReLU; "
                f"this one has {other[0]!r}"
            )
    elif name != "mlp":
        raise UserError(
            "the bound on the VC dimension is of networks whose layers are linear or ReLU, here "
            f"mlp and sequential; {name!r} has others, or may have"
        )


def _params(place: Place, params: Any) -> int:
    for key in place.path:
        params = params[key]
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
