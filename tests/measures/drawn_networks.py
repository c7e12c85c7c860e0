"""Networks of every kind with weights drawn at random, in float64, and programs of them."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpy_networks
from oracles import model_of

from rethink_jax.measures.subject import Subject

IMAGE = (8, 8, 3)
SMALL = {
    "mlp": {"hidden": (7, 6)},
    "alexnet": {"kernel_init": "he_normal"},
    "vgg": {"stages": (3, 4), "convs": (1, 2), "dense": (5,)},
    "vgg16_bn": {"stages": (3, 4), "convs": (1, 2), "dense": (5, 6)},
    "sequential": {
        "layers": (
            *("conv 6 3", "batch_norm", "relu", "max_pool 3 2", "conv 4 2 1 valid", "relu"),
            *("dropout", "avg_pool 2 1", "flatten", "dense 5", "batch_norm", "relu"),
        )
    },
}


def subject_of(model, image=IMAGE, images=3, seed=0):
    """With weights and batch statistics drawn at random, in float64."""
    example = jax.ShapeDtypeStruct((1, *image), jnp.float64)
    shapes = jax.eval_shape(model.init, jax.random.key(0), example)
    variables = numpy_networks.drawn(shapes, seed)
    variables = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), variables)
    rng = np.random.default_rng(seed)
    drawn = jnp.asarray(rng.normal(size=(images, *image)))
    return Subject(model, variables, drawn, jnp.asarray(rng.integers(0, 4, images), jnp.int32))


def made(call, images=3):
    """A subject of a network that a function (module, x) -> x describes."""

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return call(x).reshape(len(x), -1)

    return subject_of(model_of(Network()), images=images)


def compiled(subject, measure):
    """A function of a subject and of scalars as a program: (*scalars, **changed fields) -> result.

    The subject's arrays are arguments: as constants they would be folded, slowly.
    """
    names = ("variables", "images_NxHxWxC", "labels_N", "initial_variables", "key")

    @jax.jit
    def program(arrays, *scalars):
        return measure(dataclasses.replace(subject, **arrays), *scalars)

    arrays = {name: getattr(subject, name) for name in names}
    return lambda *scalars, **changed: program({**arrays, **changed}, *scalars)


def together(subjects, measure):
    """The results of a function of a subject for several of the same network, at once."""

    def of(arrays):
        return measure(dataclasses.replace(subjects[0], **arrays))

    arrays = [{"variables": s.variables, "key": s.key} for s in subjects]
    return jax.jit(jax.vmap(of))(jax.tree.map(lambda *leaves: jnp.stack(leaves), *arrays))
