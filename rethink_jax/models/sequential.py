"""A network written down in the config, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax

from rethink_jax.layers import Conv, Dropout, avg_pool, local_response_norm, max_pool
from rethink_jax.models import initializers
from rethink_jax.schema import UserError, model_field, suggest


class _Kind(NamedTuple):
    """One kind of layer.

    usage: how it is written   numbers: the least and the largest number of numbers after its name
    on: what it works on: a "map" of rows, columns and channels, a "row" of values, or "any"
    """

    usage: str
    numbers: tuple[int, int] = (0, 0)
    on: str = "any"


_KINDS = {
    "conv": _Kind("conv CHANNELS WINDOW [STRIDE] [valid]", (2, 3), "map"),
    "dense": _Kind("dense WIDTH", (1, 1), "row"),
    "batch_norm": _Kind("batch_norm"),
    "relu": _Kind("relu"),
    "max_pool": _Kind("max_pool WINDOW [STRIDE]", (1, 2), "map"),
    "avg_pool": _Kind("avg_pool WINDOW [STRIDE]", (1, 2), "map"),
    "global_avg_pool": _Kind("global_avg_pool", on="map"),
    "flatten": _Kind("flatten", on="map"),
    "dropout": _Kind("dropout [RATE]", (0, 1)),
    "lrn": _Kind("lrn", on="map"),
}


class _Layer(NamedTuple):
    """A layer as it was written: "conv 64 5 valid" is ("conv", (64, 5), "VALID")."""

    kind: str
    numbers: tuple[float, ...]
    padding: str


def _parse(layers: Sequence[str]) -> list[_Layer]:
    """The layers, read.

    Raises:
      UserError: a layer is none of the grammar's, or cannot stand where it does.
    """
    parsed = []
    on = "map"
    for place, text in enumerate(layers):
        where = f"model.layers[{place}] is {text!r}"
        layer = _parse_one(text, where)
        needs = _KINDS[layer.kind].on
        if needs == "row" and on == "map":
            raise UserError(
                f"{where}, but what comes to it is still a map of rows and columns; add 'flatten' "
                "or 'global_avg_pool' before it"
            )
        if needs == "map" and on == "row":
            raise UserError(
                f"{where}, but what comes to it is no longer a map of rows and columns; put it "
                "before the 'flatten' or 'global_avg_pool', or take it out"
            )
        if layer.kind in ("flatten", "global_avg_pool"):
            on = "row"
        parsed.append(layer)
    return parsed


def _parse_one(text: str, where: str) -> _Layer:
    words = text.split()
    name = words[0] if words else ""
    if name not in _KINDS:
        allowed = ", ".join(kind.usage for kind in _KINDS.values())
        raise UserError(f"{where}; a layer is one of: {allowed}{suggest(name, _KINDS)}")
    padding = "SAME"
    if name == "conv" and words[-1] == "valid":
        padding, words = "VALID", words[:-1]
    least, most = _KINDS[name].numbers
    numbers = [_number(word, rate=name == "dropout") for word in words[1:]]
    if None in numbers or not least <= len(numbers) <= most:
        what = (
            "RATE is a number from 0 to less than 1" if name == "dropout" else "numbers are whole"
        )
        example = {"conv": "conv 64 3", "dense": "dense 128", "dropout": "dropout 0.5"}
        fix = example.get(name, f"{name} 2" if most else name)
        raise UserError(
            f"{where}; it is written {_KINDS[name].usage!r}"
            f"{f', where {what}' if most else ''}. Write for example {fix!r}"
        )
    return _Layer(name, tuple(numbers), padding)


def _number(word: str, rate: bool) -> float | None:
    """The number that a word stands for, or None if it is not one that is allowed."""
    if not rate:
        return int(word) if word.isdecimal() and int(word) > 0 else None
    try:
        value = float(word)
    except ValueError:
        return None
    return value if 0 <= value < 1 else None


class Sequential(nn.Module):
    """The layers of the config, one after the other; flatten; a dense layer to the classes.

    conv CHANNELS WINDOW [STRIDE] [valid]    padded to keep its size, unless valid
    dense WIDTH                              after flatten or global_avg_pool
    batch_norm                               with scale and offset
    relu
    max_pool WINDOW [STRIDE]                 the stride is the window if not given; padded to whole
    avg_pool WINDOW [STRIDE]                 windows, of which only what lies in the image counts
    global_avg_pool
    flatten
    dropout [RATE]                           without a rate: the trial's, regularizer.dropout
    lrn                                      local response normalization

    A conv or dense layer has a bias unless batch_norm is what follows it.
    """

    num_classes: int
    layers: tuple[str, ...] = model_field(
        ("conv 64 5", "relu", "max_pool 3 2", "flatten", "dense 384", "relu", "dropout"),
        "the layers in words: " + ", ".join(kind.usage for kind in _KINDS.values()),
        each=str,
    )
    batch_norm_decay: float = model_field(0.99, "of the running averages", low=0, high=1)
    kernel_init: str = model_field(
        "he_normal", "distribution of the first weights", choices=initializers.KERNELS
    )
    kernel_scale: float = model_field(1.0, "factor on the first weights", low=0)
    bias_init: float = model_field(0.0, "first value of the hidden layers' biases")

    def check(self) -> None:
        """Raises UserError if a layer is none of the grammar's, or cannot stand where it does."""
        _parse(self.layers)

    @property
    def has_dropout(self) -> bool:
        """Whether some layer drops at the rate of the trial."""
        return any(layer.kind == "dropout" and not layer.numbers for layer in _parse(self.layers))

    @nn.compact
    def __call__(
        self, images_BxHxWxC: jax.Array, train: bool, dropout_rate: jax.Array | float = 0.0
    ) -> jax.Array:
        layers = _parse(self.layers)
        x = images_BxHxWxC
        for place, layer in enumerate(layers):
            after = layers[place + 1].kind if place + 1 < len(layers) else ""
            if layer.kind in ("conv", "dense"):
                x = self._weighted(layer, x, place, use_bias=after != "batch_norm")
            else:
                x = self._unweighted(layer, x, train, dropout_rate)
        kernel = initializers.scaled(self.kernel_init, self.kernel_scale)
        return nn.Dense(self.num_classes, kernel_init=kernel)(x.reshape(len(x), -1))

    def _weighted(self, layer: _Layer, x: jax.Array, place: int, use_bias: bool) -> jax.Array:
        first = {
            "use_bias": use_bias,
            "kernel_init": initializers.scaled(self.kernel_init, self.kernel_scale),
            "bias_init": nn.initializers.constant(self.bias_init),
        }
        if layer.kind == "dense":
            return nn.Dense(layer.numbers[0], **first)(x)
        channels, window, *stride = layer.numbers
        # How large the map is, is known only here.
        if layer.padding == "VALID" and min(x.shape[1:3]) < window:
            raise UserError(
                f"model.layers[{place}] is {self.layers[place]!r}, but the map that comes to it "
                f"has {x.shape[1]}x{x.shape[2]} places; take a smaller window, or leave 'valid' out"
            )
        return Conv(channels, (window, window), *stride, padding=layer.padding, **first)(x)

    def _unweighted(
        self, layer: _Layer, x: jax.Array, train: bool, dropout_rate: jax.Array | float
    ) -> jax.Array:
        match layer.kind:
            case "batch_norm":
                norm = nn.BatchNorm(use_running_average=not train, momentum=self.batch_norm_decay)
                return norm(x)
            case "relu":
                return nn.relu(x)
            case "max_pool" | "avg_pool":
                window, stride = layer.numbers[0], layer.numbers[-1]
                return {"max_pool": max_pool, "avg_pool": avg_pool}[layer.kind](x, window, stride)
            case "global_avg_pool":
                return x.mean((1, 2))
            case "flatten":
                return x.reshape(len(x), math.prod(x.shape[1:]))
            case "dropout":
                return Dropout()(x, *(layer.numbers or (dropout_rate,)), train)
        return local_response_norm(x)
