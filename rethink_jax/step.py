"""One step of one trial: a batch through the network, forward for its scores, back for its weights.

Everything here is pure and written for one network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rethink_jax import models, optimizers, streams
from rethink_jax.data import preprocess
from rethink_jax.layers import lowering
from rethink_jax.streams import stream

# Parts of a training step that are built into a program only if some trial needs them.
OPTIONAL = CROP_AND_FLIP, ROTATION, DROPOUT, INPUT_DROPOUT = (
    "crop_and_flip",
    "rotation",
    "dropout",
    "input_dropout",
)
# Weight of an auxiliary head's loss: that of TensorFlow's Inception.
_AUXILIARY_WEIGHT = 0.4


@dataclasses.dataclass(frozen=True)
class Spec:
    """What is static: shared by all trials of a group and built into the compiled program.

    fields: the static fields of the trials   used: what some trial of the group needs of OPTIONAL
    evaluate_every: epochs between evaluations
    lowering_of: how a convolution is computed (see `layers.lowering`)
    """

    fields: Mapping[str, Any]
    num_train: int
    num_test: int
    image_shape: tuple[int, int, int]
    num_classes: int
    used: frozenset[str]
    evaluate_every: int
    lowering_of: lowering.Choice = lowering.by_rule

    @property
    def steps_per_epoch(self) -> int:
        return self.num_train // self.fields["batch_size"]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width and channels as the network sees them."""
        crop = self.fields["preprocess.crop_size"]
        return self.image_shape if crop is None else (crop, crop, self.image_shape[-1])

    @property
    def model(self) -> models.Model:
        """The network, computing in `compute_dtype`."""
        prefix = "model."
        own = {k.removeprefix(prefix): v for k, v in self.fields.items() if k.startswith(prefix)}
        model = models.build(num_classes=self.num_classes, **own)
        apply = model.apply
        if self.fields["compute_dtype"] != "float32":
            apply = _in_dtype(apply, self.fields["compute_dtype"])

        def lowered(*args: Any, **named: Any) -> models.Applied:
            with lowering.chosen_by(self.lowering_of):
                return apply(*args, **named)

        return model._replace(apply=lowered)


def _in_dtype(apply: Callable[..., models.Applied], dtype: str) -> Callable[..., models.Applied]:
    """A network's `apply` on weights and images of another dtype; all it returns is as before.

    The gradient of a cast is a cast back, so weights get gradients of their own dtype. What else
    the network keeps goes in uncast: flax's BatchNorm computes its statistics in float32.
    """

    def cast(tree: Any) -> Any:
        return jax.tree.map(
            lambda a: jnp.asarray(a, dtype if a.dtype == jnp.float32 else None), tree
        )

    def call(variables: models.Variables, images_BxHxWxC: Any, *args: Any, **named: Any) -> Any:
        params = cast(variables["params"])
        logits_BxY, state, auxiliary = apply(
            {**variables, "params": params}, cast(images_BxHxWxC), *args, **named
        )
        state = jax.tree.map(
            lambda new, old: jnp.asarray(new, old.dtype), state, {k: variables[k] for k in state}
        )
        up = lambda a: a.astype(jnp.float32)  # noqa: E731
        return models.Applied(up(logits_BxY), state, tuple(map(up, auxiliary)))

    return call


def learning_rate(hypers: Mapping[str, jax.Array], epoch: jax.Array) -> jax.Array:
    """The learning rate during an epoch, counted from 0: learning_rate * lr_decay**epoch."""
    return hypers["optimizer.learning_rate"] * hypers["optimizer.lr_decay"] ** epoch


def make_optimizer(
    spec: Spec, hypers: Mapping[str, jax.Array], rate: jax.Array
) -> optax.GradientTransformation:
    """The trial's update rule at one learning rate."""
    make = optimizers.OPTIMIZERS[spec.fields["optimizer.name"]]
    return make(hypers, rate, spec.fields["optimizer.decay_params"])


Carry = tuple[Any, Any, Any]  # params, model_state, opt_state: what a step changes


def train_step(
    spec: Spec,
    hypers: Mapping[str, jax.Array],
    carry: Carry,
    epoch: jax.Array,
    step: jax.Array,
    images_BxHxWxC: jax.Array,
    labels_B: jax.Array,
) -> tuple[Carry, tuple[jax.Array, jax.Array]]:
    """One step of gradient descent.

    Args:
      epoch, step: where training stands; they decide the step's random numbers.
      images_BxHxWxC: float32 as stored, before crop and normalization, in units of 255 grey levels.

    Returns:
      the state after it; and the batch's mean cross-entropy and hits before it.
    """
    params, model_state, opt_state = carry
    images_BxHxWxC = training_images(spec, hypers, epoch, step, images_BxHxWxC)
    key = stream(hypers["seed"], streams.NETWORK, epoch, step)
    rate = hypers["regularizer.dropout"] if DROPOUT in spec.used else 0.0

    def loss_fn(params: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array, Any]]:
        variables = {"params": params, **model_state}
        logits_BxY, state, auxiliary = spec.model.apply(variables, images_BxHxWxC, True, key, rate)
        losses_B = optax.softmax_cross_entropy_with_integer_labels(logits_BxY, labels_B)
        hits = jnp.sum(logits_BxY.argmax(-1) == labels_B)
        objective = _smoothed(losses_B, logits_BxY, hypers)
        for other_BxY in auxiliary:
            other_B = optax.softmax_cross_entropy_with_integer_labels(other_BxY, labels_B)
            objective += _AUXILIARY_WEIGHT * _smoothed(other_B, other_BxY, hypers)
        return objective, (losses_B.mean(), hits, state)

    grads, (loss, hits, model_state) = jax.grad(loss_fn, has_aux=True)(params)
    optimizer = make_optimizer(spec, hypers, learning_rate(hypers, epoch))
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), model_state, opt_state), (loss, hits)


def _smoothed(
    losses_B: jax.Array, logits_BxY: jax.Array, hypers: Mapping[str, jax.Array]
) -> jax.Array:
    """The mean cross-entropy with the target spread, in part, evenly over all classes."""
    smoothing = hypers["regularizer.label_smoothing"]
    even_B = jax.nn.logsumexp(logits_BxY, axis=-1) - logits_BxY.mean(-1)
    return (losses_B + smoothing * (even_B - losses_B)).mean()


def training_images(
    spec: Spec,
    hypers: Mapping[str, jax.Array],
    epoch: jax.Array,
    step: jax.Array,
    images_BxHxWxC: jax.Array,
) -> jax.Array:
    """A batch as the network is trained on it: turned, cropped, mirrored, normalized, thinned."""
    key = stream(hypers["seed"], streams.AUGMENT, epoch, step)
    crop = spec.fields["preprocess.crop_size"]
    if ROTATION in spec.used:
        images_BxHxWxC = preprocess.random_rotation(
            images_BxHxWxC, jax.random.fold_in(key, 1), hypers["preprocess.max_rotation"]
        )
    if CROP_AND_FLIP in spec.used:
        on = hypers["preprocess.random_crop"], hypers["preprocess.random_flip"]
        images_BxHxWxC = preprocess.augment(images_BxHxWxC, key, crop, *on)
    else:
        images_BxHxWxC = preprocess.central_crop(images_BxHxWxC, crop)
    images_BxHxWxC = _normalized(spec, images_BxHxWxC)
    if INPUT_DROPOUT in spec.used:
        kept = 1 - hypers["regularizer.input_dropout"]
        mask = jax.random.bernoulli(jax.random.fold_in(key, 2), kept, images_BxHxWxC.shape)
        images_BxHxWxC = jnp.where(mask, images_BxHxWxC / kept, 0)
    return images_BxHxWxC


def evaluation_images(spec: Spec, images_BxHxWxC: jax.Array) -> jax.Array:
    """A batch as the network takes it in evaluation: its central crop, normalized.

    images_BxHxWxC: float32 as stored, in units of 255 grey levels
    """
    crop = spec.fields["preprocess.crop_size"]
    return _normalized(spec, preprocess.central_crop(images_BxHxWxC, crop))


def _normalized(spec: Spec, images_BxHxWxC: jax.Array) -> jax.Array:
    return preprocess.NORMALIZE[spec.fields["preprocess.normalize"]](images_BxHxWxC)


class Scores(NamedTuple):
    """Of a network on labelled images: mean cross-entropy, accuracy, and accuracy of the five best.

    While they are being added up, sums.
    """

    loss: jax.Array
    accuracy: jax.Array
    top5_accuracy: jax.Array


def score_batch(
    spec: Spec,
    variables: models.Variables,
    images_BxHxWxC: jax.Array,
    labels: tuple[jax.Array, ...],
    valid_B: jax.Array,
) -> list[Scores]:
    """Sums over the valid images of a batch, for each of several labellings int32[B] of it.

    Args:
      images_BxHxWxC: float32 as stored, before crop and normalization, in units of 255 grey levels.
    """
    images_BxHxWxC = evaluation_images(spec, images_BxHxWxC)
    logits_BxY = spec.model.apply(variables, images_BxHxWxC, False).logits_BxY
    sums = []
    for labels_B in labels:
        losses_B = optax.softmax_cross_entropy_with_integer_labels(logits_BxY, labels_B)
        hits_B = logits_BxY.argmax(-1) == labels_B
        own_Bx1 = jnp.take_along_axis(logits_BxY, labels_B[:, None], axis=-1)
        # Not (logits > own): with logits that are not numbers no label is among the best.
        top5_B = (~(logits_BxY <= own_Bx1)).sum(-1) < 5
        loss = jnp.where(valid_B, losses_B, 0).sum()
        sums.append(Scores(loss, (hits_B & valid_B).sum(), (top5_B & valid_B).sum()))
    return sums
