"""Path norms of any network of linear layers, ReLU, pools, sums and concatenations.

The sum over all paths from an input to an output of the product of |weight|^p along it is what the
network gives for an image of ones if each weight w is |w|^p. So the program of the network is run
with another meaning for each of its operations: what multiplies an activation is raised to p (also
the 1/k^2 of a mean, which makes means right for every p), ReLU does nothing to what is never
negative, and a largest value is kept or made a sum. An operation that has no such meaning is
refused.

Activations are kept as values of at most about 1 and the logarithm of a factor, of which every
array has its own. So nothing overflows, however deep the network is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from rethink_jax.measures import layers
from rethink_jax.measures.subject import Subject, once
from rethink_jax.schema import UserError


@once
def log_path_sum(
    subject: Subject, p: float = 2.0, maxima: str = "max", biases: bool = False
) -> jax.Array:
    """Natural logarithm of the sum over all paths of the product of |weight|^p. Scalar.

    The path norm is the p-th root of the sum. Batch normalization is folded in first. All values of
    the image, all outputs, and the places of a map count, so that zero padding has an effect.

    Args:
      p: greater than 0
      maxima: "max": a max-pool passes on the largest of its sums (generalization-bounds); "sum":
        all that go through it (each path counts, as in Gonon et al. 2024)
      biases: whether a bias b begins further paths, of |b|^p (generalization-bounds)

    Raises:
      UserError: the network has an operation that path norms are not defined for (local response
        normalization, tanh ...); or as `layers.places`.

    Source: Neyshabur et al. 2017, Equations 2 and 3, which have no biases and say nothing of pools.
    """
    found = layers.folded(subject)
    weights = [(layer.kernel, layer.bias) for layer in found]
    image = jnp.ones((1, *subject.images_NxHxWxC.shape[1:]), found[0].kernel.dtype)

    def network(weights: Any, image_1xHxWxC: jax.Array) -> jax.Array:
        given = zip(found, weights, strict=True)
        replaced = tuple(layers.Layer(layer.place, *own) for layer, own in given)
        return layers.logits_with(subject, replaced, image_1xHxWxC)

    program = jax.make_jaxpr(network)(weights, image)
    inputs = [*jax.tree.leaves(weights), _Scaled(image, jnp.zeros((), image.dtype))]
    (output,) = _Pass(p, maxima, biases).run(program.jaxpr, program.consts, inputs)
    return jnp.log(jnp.sum(output.values)) + output.log_factor


class _Scaled(NamedTuple):
    """An activation: values times exp(log_factor). Values are not negative; the factor is one."""

    values: jax.Array
    log_factor: jax.Array


def _scaled(values: jax.Array, log_factor: jax.Array | float = 0.0) -> _Scaled:
    """With values of at most 1."""
    largest = jnp.max(values)
    largest = jnp.where(largest > 0, largest, 1)
    return _Scaled(values / largest, log_factor + jnp.log(largest))


def _aligned(activations: list[_Scaled]) -> tuple[list[jax.Array], jax.Array]:
    """Their values under one factor, the largest of theirs."""
    log_factor = functools.reduce(jnp.maximum, (a.log_factor for a in activations))
    return [a.values * jnp.exp(a.log_factor - log_factor) for a in activations], log_factor


# Each gives what it is given in other places, or sums of it.
_STRUCTURAL = {
    *("broadcast_in_dim", "concatenate", "convert_element_type", "copy", "copy_p"),
    *("dynamic_slice", "expand_dims", "gather", "reduce_sum", "reduce_window_sum", "reshape"),
    *("rev", "slice", "split", "squeeze", "transpose", "sharding_constraint"),
}
# By name, the parameter that holds the program that is called.
_CALLS = {
    "jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "remat2": "jaxpr",
    "checkpoint": "jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr",
    "custom_vmap_call": "call",
}  # fmt: skip


class _Pass(NamedTuple):
    """A run of a program with activations as `_Scaled`, and all else as plain arrays."""

    p: float
    maxima: str
    biases: bool

    def run(self, program: core.Jaxpr, consts: list[Any], inputs: list[Any]) -> list[Any]:
        held: dict[Any, Any] = dict(zip(program.constvars, consts, strict=True))
        held |= dict(zip(program.invars, inputs, strict=True))

        def value(v: Any) -> Any:
            return np.asarray(v.val, v.aval.dtype) if isinstance(v, core.Literal) else held[v]

        for equation in program.eqns:
            outputs = self._apply(equation, [value(v) for v in equation.invars])
            held |= dict(zip(equation.outvars, outputs, strict=True))
        return [value(v) for v in program.outvars]

    def _apply(self, equation: core.JaxprEqn, inputs: list[Any]) -> list[Any]:
        name = equation.primitive.name
        if name in _CALLS:
            called = equation.params[_CALLS[name]]
            if isinstance(called, core.ClosedJaxpr):
                return self.run(called.jaxpr, called.consts, inputs)
            return self.run(called, [], inputs)
        if not any(isinstance(x, _Scaled) for x in inputs):
            return _plain(equation, inputs)
        if name in _STRUCTURAL:
            return self._structural(equation, inputs)
        rule = _RULES.get(name)
        result = rule(self, equation, *inputs) if rule else None
        if result is None:
            raise UserError(
                f"there is no path norm of a network with the operation {name!r} on its "
                "activations; it is defined for dense and convolution layers, ReLU, pools, means, "
                "sums and concatenations (and not for local response normalization)"
            )
        return [result]

    def _structural(self, equation: core.JaxprEqn, inputs: list[Any]) -> list[Any]:
        # An array beside activations in a concatenation is a constant; elsewhere it is an index.
        if equation.primitive.name == "concatenate":
            inputs = [x if isinstance(x, _Scaled) else self._bias(x) for x in inputs]
        activations = [x for x in inputs if isinstance(x, _Scaled)]
        aligned, log_factor = _aligned(activations)
        values = iter(aligned)
        given = [next(values) if isinstance(x, _Scaled) else x for x in inputs]
        return [_Scaled(y, log_factor) for y in _plain(equation, given)]

    def _power(self, weights: Any) -> _Scaled:
        """|weights|^p."""
        unit = _scaled(jnp.abs(jnp.asarray(weights)))
        values = unit.values if self.p == 1 else unit.values**self.p
        return _Scaled(values, self.p * unit.log_factor)

    def _bias(self, constants: Any) -> _Scaled:
        """What is added to activations: further paths, or nothing."""
        if self.biases:
            return self._power(constants)
        return _scaled(jnp.zeros_like(constants))

    def _product(self, equation: core.JaxprEqn, *inputs: Any) -> _Scaled | None:
        """mul, dot_general, conv_general_dilated of activations and weights."""
        if all(isinstance(x, _Scaled) for x in inputs):
            return None
        scaled = [x if isinstance(x, _Scaled) else self._power(x) for x in inputs]
        (values,) = _plain(equation, [x.values for x in scaled])
        return _scaled(values, sum(x.log_factor for x in scaled))

    def _quotient(self, equation: core.JaxprEqn, x: Any, divisor: Any) -> _Scaled | None:
        if isinstance(divisor, _Scaled):
            return None
        factor = self._power(1 / jnp.asarray(divisor, x.values.dtype))
        return _scaled(x.values * factor.values, x.log_factor + factor.log_factor)

    def _sum(self, equation: core.JaxprEqn, *inputs: Any) -> _Scaled:
        """add or sub: minus is a weight of -1."""
        scaled = [x if isinstance(x, _Scaled) else self._bias(x) for x in inputs]
        (a, b), log_factor = _aligned(scaled)
        return _scaled(a + b, log_factor)

    def _same(self, equation: core.JaxprEqn, x: _Scaled) -> _Scaled:
        """neg, abs."""
        return x

    def _larger(self, equation: core.JaxprEqn, a: Any, b: Any) -> _Scaled | None:
        if isinstance(a, _Scaled) and isinstance(b, _Scaled):
            values, log_factor = _aligned([a, b])
            combine = {"max": jnp.maximum, "sum": jnp.add}[self.maxima]
            return _scaled(combine(*values), log_factor)
        activation, other = (a, b) if isinstance(a, _Scaled) else (b, a)
        return activation if _is_constant(other, 0) else None  # ReLU, or nothing we know.

    def _largest(self, equation: core.JaxprEqn, x: _Scaled) -> _Scaled:
        """reduce_max: over some axes."""
        combine = {"max": jnp.max, "sum": jnp.sum}[self.maxima]
        return _scaled(combine(x.values, axis=equation.params["axes"]), x.log_factor)

    def _largest_in_windows(self, equation: core.JaxprEqn, x: _Scaled) -> _Scaled:
        if self.maxima == "max":
            (values,) = _plain(equation, [x.values])
            return _scaled(values, x.log_factor)
        how = equation.params
        values = jax.lax.reduce_window(
            x.values,
            np.zeros((), x.values.dtype),
            jax.lax.add,
            how["window_dimensions"],
            how["window_strides"],
            how["padding"],
            how["base_dilation"],
            how["window_dilation"],
        )
        return _scaled(values, x.log_factor)

    def _pad(self, equation: core.JaxprEqn, x: Any, border: Any) -> _Scaled | None:
        """With 0, or with the -inf of a max-pool, which is as good as 0 where nothing is below."""
        if not isinstance(x, _Scaled) or not _is_constant(border, 0, -np.inf):
            return None
        (values,) = _plain(equation, [x.values, np.zeros((), x.values.dtype)])
        return _Scaled(values, x.log_factor)


_RULES: dict[str, Callable[..., _Scaled | None]] = {
    "mul": _Pass._product,
    "dot_general": _Pass._product,
    "conv_general_dilated": _Pass._product,
    "div": _Pass._quotient,
    "add": _Pass._sum,
    "add_any": _Pass._sum,
    "sub": _Pass._sum,
    "neg": _Pass._same,
    "abs": _Pass._same,
    "max": _Pass._larger,
    "reduce_max": _Pass._largest,
    "reduce_window_max": _Pass._largest_in_windows,
    "pad": _Pass._pad,
}


def _plain(equation: core.JaxprEqn, inputs: list[Any]) -> list[Any]:
    """An operation as it is. What depends on no array is computed now, so that it can be read."""
    primitive = equation.primitive
    if any(isinstance(x, jax.core.Tracer) for x in inputs):
        outputs = primitive.bind(*inputs, **equation.params)
    else:
        with jax.ensure_compile_time_eval():
            outputs = primitive.bind(*inputs, **equation.params)
    return list(outputs) if primitive.multiple_results else [outputs]


def _is_constant(value: Any, *allowed: float) -> bool:
    """Whether a value is known now and all of it is one of `allowed`."""
    return not isinstance(value, jax.core.Tracer) and bool(np.all(np.isin(value, allowed)))


def _log_path_norm(subject: Subject, p: float, maxima: str, biases: bool) -> jax.Array:
    return log_path_sum(subject, p, maxima, biases) / p


MEASURES: dict[str, Callable[[Subject], jax.Array]] = {
    f"log_path_l{p:g}_{maxima}pool_{'bias' if biases else 'nobias'}": functools.partial(
        _log_path_norm, p=p, maxima=maxima, biases=biases
    )
    for p in (1.0, 1.5, 2.0)
    for maxima in ("max", "sum")
    for biases in (False, True)
}
