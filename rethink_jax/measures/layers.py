"""The linear layers of a network, with batch normalization folded into them.

One run of the network without numbers shows which layers it applies, in which order and to maps of
which size: so any network of flax layers can be measured, not only those of this package.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rethink_jax import models
from rethink_jax.layers import Conv, OnesDense
from rethink_jax.measures.subject import Subject, once
from rethink_jax.schema import UserError

_SUPPORTED = (
    "supported are flax's Dense, Conv and BatchNorm, and Conv and OnesDense of rethink_jax.layers"
)
_HIGHEST = jax.lax.Precision.HIGHEST


class Norm(NamedTuple):
    """A batch normalization: its path in the variables, and what it adds to the variance."""

    path: tuple[str, ...]
    epsilon: float


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a linear layer stands, without its weights.

    path: in the parameters
    input_shape, output_shape: of one image: (D,) for a dense layer, (H, W, C) for a convolution
    strides: (down, right)   pads: rows above and below, columns left and right; both None if dense
    norm: the batch normalization that takes its output, or None
    """

    path: tuple[str, ...]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    strides: tuple[int, int] | None = None
    pads: tuple[tuple[int, int], tuple[int, int]] | None = None
    norm: Norm | None = None

    @property
    def name(self) -> str:
        return "/".join(self.path)

    @property
    def kind(self) -> str:
        """ "dense" or "conv"; a dense layer on a map of places is a convolution."""
        return "dense" if self.strides is None else "conv"


class Layer(NamedTuple):
    """A linear layer, its batch normalization folded in.

    kernel: [in, out] if dense, [h, w, in channels, out channels] if conv
    bias: [out] or None
    """

    place: Place
    kernel: jax.Array
    bias: jax.Array | None

    @property
    def matrix(self) -> jax.Array:
        """[out, in], of a convolution [out channels, h * w * in channels]."""
        return self.kernel.reshape(-1, self.kernel.shape[-1]).T

    def linear(self, x: jax.Array) -> jax.Array:
        """The layer without its bias: x[B, *input_shape] -> [B, *output_shape]."""
        if self.place.kind == "dense":
            return jnp.dot(x, self.kernel, precision=_HIGHEST)
        return jax.lax.conv_general_dilated(
            x,
            self.kernel,
            self.place.strides,
            self.place.pads,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=_HIGHEST,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """x[B, *input_shape] -> [B, *output_shape]"""
        y = self.linear(x)
        return y if self.bias is None else y + self.bias.reshape((1,) * (y.ndim - 1) + (-1,))


@once
def places(subject: Subject) -> tuple[Place, ...]:
    """The linear layers of the network, in the order in which they are applied.

    Layers that evaluation does not use (an auxiliary head) are not among them.

    Raises:
      UserError: a layer with weights is of no supported kind or is applied twice; a batch
        normalization does not come directly after a linear layer.
    """
    finder = _Finder()
    run = functools.partial(_intercepted, subject, finder)
    jax.eval_shape(run, subject.variables, _one_image(subject))
    finder.refuse_other_weights(subject.params)
    if normalized := [place for place in finder.places if place.norm]:
        _refuse_other_uses(subject, normalized)
    return tuple(finder.places)


@once
def folded(subject: Subject) -> tuple[Layer, ...]:
    """The linear layers of the trained network, batch normalization folded in exactly.

    With running statistics, kernel and bias become kernel * s and (bias - mean) * s + offset, where
    s = scale / sqrt(variance + epsilon). The network computes the same without normalization.

    Raises:
      UserError: as `places`.
    """
    return tuple(_fold(place, subject.variables) for place in places(subject))


@once
def initial(subject: Subject) -> tuple[Layer, ...]:
    """The same layers before training, folded with the batch statistics of that time.

    Raises:
      UserError: the initial weights are not known; or as `places`.
    """
    if subject.initial_variables is None:
        raise UserError(
            "this measure needs the initial weights, which are not given; give initial_variables, "
            "or leave the measure out"
        )
    return tuple(_fold(place, subject.initial_variables) for place in places(subject))


@once
def moved(subject: Subject) -> tuple[Layer, ...]:
    """By how much training changed each kernel: trained less initial, both folded; no biases."""
    pairs = zip(folded(subject), initial(subject), strict=True)
    return tuple(Layer(now.place, now.kernel - then.kernel, None) for now, then in pairs)


def logits_with(
    subject: Subject, layers: tuple[Layer, ...], images_BxHxWxC: jax.Array
) -> jax.Array:
    """Logits[B, Y] of the network with these layers in place of its own, and no normalization.

    With `folded(subject)` they are those of the network itself.
    """
    by_path = {layer.place.path: layer for layer in layers}
    norms = {layer.place.norm.path for layer in layers if layer.place.norm}

    def replace(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        path = context.module.path
        if context.method_name == "__call__" and path in by_path:
            return by_path[path](_input_of(args, kwargs))
        if context.method_name == "__call__" and path in norms:
            return _input_of(args, kwargs)
        return call(*args, **kwargs)

    return _intercepted(subject, replace, subject.variables, images_BxHxWxC)


# --- reading the layers ---------------------------------------------------------------------------


def _one_image(subject: Subject) -> jax.ShapeDtypeStruct:
    images = subject.images_NxHxWxC
    return jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype)


def _intercepted(
    subject: Subject, interceptor: Any, variables: models.Variables, images_BxHxWxC: jax.Array
) -> jax.Array:
    """Logits[B, Y] of the network, each call of a module going through the interceptor."""
    with nn.intercept_methods(interceptor):
        return subject.model.apply(variables, images_BxHxWxC, False).logits_BxY


class _Finder:
    """Interceptor of a network's calls that writes down its linear layers."""

    def __init__(self) -> None:
        self.places: list[Place] = []
        self._outputs: list[jax.Array] = []
        self._modules: dict[tuple[str, ...], nn.Module] = {}

    def __call__(self, call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        self._modules[module.path] = module
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        if type(module) is nn.BatchNorm:
            self._norm(module, *args, **kwargs)
        elif type(module).__module__ == nn.BatchNorm.__module__:
            raise _unknown(module)  # Another normalization, which may have no weights.
        y = call(*args, **kwargs)
        if type(module) in _READERS:
            self._linear(module, _input_of(args, kwargs), y)
        return y

    def _linear(self, module: nn.Module, x: jax.Array, y: jax.Array) -> None:
        if any(place.path == module.path for place in self.places):
            raise UserError(
                f"the layer {_name(module)} is applied more than once; a measure of weights needs "
                "each layer applied once"
            )
        self.places.append(_READERS[type(module)](module, x, y))
        self._outputs.append(y)

    def _norm(
        self, module: nn.BatchNorm, x: jax.Array, use_running_average: bool | None = None, **_: Any
    ) -> None:
        # The very array that a linear layer gave, not one of equal shape.
        before = [n for n, output in enumerate(self._outputs) if output is x]
        if not before or self.places[before[0]].norm is not None:
            raise UserError(
                f"the batch normalization {_name(module)} does not come directly after a dense or "
                "convolution layer of its own, so that it cannot be folded into one; measures of "
                "weights need that"
            )
        if module.axis not in (-1, x.ndim - 1):
            raise UserError(
                f"the batch normalization {_name(module)} is along axis {module.axis!r}; measures "
                "of weights need the last one, the channels"
            )
        if not (module.use_running_average or use_running_average):
            raise UserError(
                f"the batch normalization {_name(module)} takes the statistics of the batch in "
                "evaluation, too; measures of weights need use_running_average=True there"
            )
        norm = Norm(module.path, module.epsilon)
        self.places[before[0]] = dataclasses.replace(self.places[before[0]], norm=norm)

    def refuse_other_weights(self, params: Mapping[str, Any]) -> None:
        """Raises UserError if a module that was used has weights that are in no place."""
        known = {place.path for place in self.places}
        known |= {place.norm.path for place in self.places if place.norm}
        for keys, _ in jax.tree_util.tree_leaves_with_path(params):
            owner = tuple(key.key for key in keys)[:-1]
            if owner in self._modules and owner not in known:
                raise _unknown(self._modules[owner])


def _refuse_other_uses(subject: Subject, normalized: list[Place]) -> None:
    """Raises UserError if an output that is normalized is used elsewhere, too.

    Such outputs, and what their normalizations give, are made inputs of the network's program: it
    must not use the former.
    """
    by_path = {place.path: n for n, place in enumerate(normalized)}
    by_norm = {place.norm.path: n for n, place in enumerate(normalized)}

    def run(before: list[jax.Array], after: list[jax.Array], *given: Any) -> jax.Array:
        def stand_in(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            path = context.module.path
            if context.method_name == "__call__" and path in by_path:
                return before[by_path[path]]
            if context.method_name == "__call__" and path in by_norm:
                return after[by_norm[path]]
            return call(*args, **kwargs)

        return _intercepted(subject, stand_in, *given)

    image = _one_image(subject)
    outputs = [jax.ShapeDtypeStruct((1, *p.output_shape), image.dtype) for p in normalized]
    program = jax.make_jaxpr(run)(outputs, outputs, subject.variables, image).jaxpr
    used = {id(v) for equation in program.eqns for v in equation.invars}
    used |= {id(v) for v in program.outvars}
    for place, before in zip(normalized, program.invars, strict=False):
        if id(before) in used:
            raise UserError(
                f"the output of the layer {place.name} goes into the batch normalization "
                f"{'/'.join(place.norm.path)} and elsewhere, too, so that the normalization cannot "
                "be folded into the layer; measures of weights need that"
            )


def _input_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return args[0] if args else kwargs.get("inputs", kwargs.get("x"))


def _name(module: nn.Module) -> str:
    return "/".join(module.path) or type(module).__name__


def _unknown(module: nn.Module) -> UserError:
    return UserError(
        f"the layer {_name(module)} is a {type(module).__name__}, which measures of weights do not "
        f"know; {_SUPPORTED}"
    )


def _dense(module: nn.Dense, x: jax.Array, y: jax.Array) -> Place:
    shapes = module.path, x.shape[1:], y.shape[1:]
    if x.ndim == 2:
        return Place(*shapes)
    if x.ndim == 4:
        return Place(*shapes, strides=(1, 1), pads=((0, 0), (0, 0)))
    raise UserError(
        f"the dense layer {_name(module)} is applied to an array of {x.ndim} dimensions; measures "
        "of weights know [images, values] and [images, rows, columns, channels]"
    )


def _conv(module: Conv, x: jax.Array, y: jax.Array) -> Place:
    strides = (module.stride, module.stride)
    pads = jax.lax.padtype_to_pads(x.shape[1:3], module.window, strides, module.padding)
    return _conv_place(module, x, y, strides, pads)


def _flax_conv(module: nn.Conv, x: jax.Array, y: jax.Array) -> Place:
    size = module.kernel_size
    plain = [module.input_dilation, module.kernel_dilation, module.feature_group_count]
    if (
        x.ndim != 4
        or isinstance(size, int)
        or any(value not in (None, 1, (1, 1), [1, 1]) for value in plain)
        or module.mask is not None
    ):
        raise UserError(
            f"the convolution {_name(module)} is not one over rows and columns without groups, "
            "dilation and mask; measures of weights know only such"
        )
    strides = _pair(module.strides or 1)
    padding = module.padding
    if padding in ("SAME", "VALID"):
        pads = jax.lax.padtype_to_pads(x.shape[1:3], size, strides, padding)
    elif isinstance(padding, str):
        raise UserError(
            f"the convolution {_name(module)} has padding {padding!r}; measures of weights know "
            "'SAME', 'VALID' and numbers of rows and columns"
        )
    else:
        pads = [_pair(p) for p in _pair(padding)]
    return _conv_place(module, x, y, strides, pads)


def _pair(value: Any) -> tuple[Any, Any]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _conv_place(module: nn.Module, x: Any, y: Any, strides: Any, pads: Any) -> Place:
    (top, bottom), (left, right) = pads
    pads = ((int(top), int(bottom)), (int(left), int(right)))
    return Place(module.path, x.shape[1:], y.shape[1:], tuple(strides), pads)


_READERS: dict[type, Callable[..., Place]] = {
    nn.Dense: _dense,
    OnesDense: _dense,
    Conv: _conv,
    nn.Conv: _flax_conv,
}


# --- folding --------------------------------------------------------------------------------------


def _fold(place: Place, variables: models.Variables) -> Layer:
    params = _at(place.path, variables["params"])
    kernel, bias = params.get("kernel"), params.get("bias")
    if kernel is None:  # Fixed, and so none of the parameters.
        kernel = jnp.ones((*place.input_shape, *place.output_shape), bias.dtype)
    if place.kind == "conv" and kernel.ndim == 2:
        kernel = kernel[None, None]
    if place.norm is None:
        return Layer(place, kernel, bias)
    statistics = _at(place.norm.path, variables["batch_stats"])
    # A normalization with neither scale nor offset has no parameters.
    affine = _at(place.norm.path, variables["params"], missing={})
    scale = jax.lax.rsqrt(statistics["var"] + place.norm.epsilon) * affine.get("scale", 1)
    centred = -statistics["mean"] if bias is None else bias - statistics["mean"]
    kernel = kernel * scale.reshape((1,) * (kernel.ndim - 1) + (-1,))
    return Layer(place, kernel, centred * scale + affine.get("bias", 0))


def _at(path: tuple[str, ...], tree: Mapping[str, Any], missing: Any = None) -> Any:
    if missing is None:
        return functools.reduce(lambda node, key: node[key], path, tree)
    return functools.reduce(lambda node, key: node.get(key, missing), path, tree)


def widths_D(subject: Subject, counted: str = "channels") -> list[int]:
    """h_i of each layer: its output "channels", or its output "units" (channels times places)."""
    shapes = [place.output_shape for place in places(subject)]
    return [{"channels": shape[-1], "units": math.prod(shape)}[counted] for shape in shapes]
