"""The fixed networks with known measures, as flax networks in float64."""

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from rethink_jax import layers, models
from rethink_jax.measures.subject import Subject

FOLDER = Path(__file__).parents[3] / "shared" / "oracles"
NAMES = ("mlp_nobias", "mlp_bias", "vgg_nobn")


def flax_conv(layer, name):
    """A convolution of the oracles' list of layers, by flax."""
    return nn.Conv(
        layer["out"],
        (layer["k"], layer["k"]),
        strides=layer["s"],
        padding=layer["p"],
        use_bias=layer.get("bias", True),
        name=name,
    )


def quick_conv(layer, name):
    """The same one, many times faster on a CPU in float64."""
    assert layer["s"] == 1 and layer["k"] == 2 * layer["p"] + 1
    window = (layer["k"], layer["k"])
    return layers.Conv(layer["out"], window, use_bias=layer.get("bias", True), name=name)


class Written(nn.Module):
    """A network from the oracles' list of layers, of flax's own layers or others."""

    spec: tuple
    conv: Callable = flax_conv

    @nn.compact
    def __call__(self, x, train):
        for place, layer in enumerate(self.spec):
            layer = dict(layer)
            bias = layer.get("bias", True)
            match layer["type"]:
                case "linear":
                    x = nn.Dense(layer["out"], use_bias=bias, name=str(place))(x)
                case "conv":
                    x = self.conv(layer, str(place))(x)
                case "relu":
                    x = nn.relu(x)
                case "maxpool":
                    x = nn.max_pool(x, (layer["k"],) * 2, (layer["k"],) * 2)
                case "flatten":
                    x = x.reshape(len(x), -1)
        return x


def model_of(module):
    """A flax module with __call__(images, train) as the package's networks are."""

    def init(key, image_1xHxWxC):
        return module.init(key, image_1xHxWxC, False)

    def apply(variables, images_BxHxWxC, train, key=None, dropout_rate=0.0):
        return models.Applied(module.apply(variables, images_BxHxWxC, train), {}, ())

    return models.Model(init, apply)


def _params(spec, arrays, which, image_shape):
    channels, height, width = image_shape
    params = {}
    for place, layer in enumerate(spec):
        if layer["type"] not in ("linear", "conv"):
            continue
        weight = arrays[f"{which}.{place}.weight"]
        if layer["type"] == "conv":
            kernel = weight.transpose(2, 3, 1, 0)
        elif not params:  # The first of a network that flattens the image channel by channel.
            kernel = weight.reshape(-1, channels, height, width).transpose(2, 3, 1, 0)
            kernel = kernel.reshape(-1, len(weight))
        else:
            kernel = weight.T
        params[str(place)] = {"kernel": jnp.asarray(kernel)}
        if f"{which}.{place}.bias" in arrays:
            params[str(place)]["bias"] = jnp.asarray(arrays[f"{which}.{place}.bias"])
    return {"params": params}


@functools.cache
def answers(name):
    """What measures_float64.json has for a network."""
    if not FOLDER.is_dir():
        pytest.skip(f"no known answers in {FOLDER.name}/")
    return json.loads((FOLDER / "measures_float64.json").read_text())["fixtures"][name]


def load(name, dtype=jnp.float64, conv=flax_conv):
    """(subject, references, logits) of a network; 64-bit numbers must be on for float64."""
    meta, references = answers(name)["meta"], answers(name)["references"]
    with np.load(FOLDER / f"{name}.npz") as file:
        arrays = {key: np.asarray(file[key]) for key in file.files}
    arrays = {k: v.astype(dtype) if v.dtype.kind == "f" else v for k, v in arrays.items()}
    spec = tuple(tuple(layer.items()) for layer in meta["spec"])
    subject = Subject(
        model_of(Written(spec, conv)),
        _params(meta["spec"], arrays, "final", meta["in_shape"]),
        jnp.asarray(arrays["x"].transpose(0, 2, 3, 1)),
        jnp.asarray(arrays["y"].astype(np.int32)),
        _params(meta["spec"], arrays, "init", meta["in_shape"]),
    )
    return subject, references, arrays["logits"]


def noise_rows(name, subject):
    """The oracles' rows of noise in the order of the network's flat weights: float64[K, P]."""
    meta = answers(name)["meta"]
    with np.load(FOLDER / f"{name}.npz") as file:
        shapes = {key: file[f"final.{key}"].shape for key in meta["param_order"]}
        rows_KxP = file["noise"]
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])

    def ordered(row_P):
        parts = zip(shapes.items(), np.split(row_P, ends[:-1]), strict=True)
        arrays = {f"noise.{key}": part.reshape(shape) for (key, shape), part in parts}
        return ravel_pytree(_params(meta["spec"], arrays, "noise", meta["in_shape"]))[0]

    assert rows_KxP.shape[1] == ends[-1] == ravel_pytree(subject.params)[0].size
    return jnp.stack([ordered(row_P) for row_P in rows_KxP])
