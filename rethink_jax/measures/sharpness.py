"""Sharpness: by how much the training loss can grow near the trained weights.

zeta_alpha(w) = (max_{|nu_i| <= alpha(|w_i| + 1)} L(w + nu) - L(w)) / (1 + L(w))

Batch statistics are frozen. The maximum is that of the loss over the whole training set, not a mean
of maxima over batches (which is larger, and what training with sharpness-aware minimization sees).

Source: Keskar et al. 2017, Metric 2.1 (times 100 there); Neyshabur et al. 2017, Section 2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rethink_jax.measures import landscape, maximizer
from rethink_jax.measures.maximizer import Best, Objective, Search, Targets
from rethink_jax.measures.subject import Subject, once
from rethink_jax.schema import UserError

# Half the width of the box in each coordinate, over alpha.
BOXES: dict[str, Callable[[jax.Array], jax.Array]] = {
    # Keskar et al. 2017 and Neyshabur et al. 2017.
    "weight_plus_one": lambda x_P: jnp.abs(x_P) + 1,
    # Invariant to scaling a layer's weights: Kwon et al. 2021.
    "weight": jnp.abs,
    "constant": jnp.ones_like,
}

# What the columns of a random subspace are.
COLUMNS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "normal": lambda basis_PxZ: basis_PxZ,
    "unit": lambda basis_PxZ: basis_PxZ / jnp.linalg.norm(basis_PxZ, axis=0, keepdims=True),
}


def _check(name: str, value: str, allowed: dict[str, Callable[..., jax.Array]]) -> None:
    if value not in allowed:
        raise UserError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")


@dataclasses.dataclass(frozen=True)
class Box:
    """The box and the search for the maximum in it.

    alpha: > 0, may be traced; 5e-4 in Neyshabur et al. 2017, 1e-3 and 5e-4 in Keskar et al. 2017
    rule: of `BOXES`
    batch_size: the search sees so many images, drawn without replacement; the increase that is
      reported is that over all images at the point found. None: the search sees all
    """

    alpha: float | jax.Array = 5e-4
    rule: str = "weight_plus_one"
    batch_size: int | None = None
    search: Search = dataclasses.field(default_factory=Search)

    def __post_init__(self) -> None:
        _check("rule", self.rule, BOXES)
        if isinstance(self.alpha, int | float) and not self.alpha > 0:
            raise UserError(f"alpha is {self.alpha!r}; a box needs one above 0, for example 5e-4")


DEFAULT_BOX = Box()


class Sharpness(NamedTuple):
    """By how much the loss grows at the worst point found.

    increase: in nats, at least 0   zeta: increase / (1 + loss)   keskar: 100 zeta
    evaluations: how often the search evaluated the loss (with or without its gradient)
    displacement_P: where, from the trained weights, in the order of ravel_pytree
    """

    increase: jax.Array
    zeta: jax.Array
    keskar: jax.Array
    evaluations: int
    displacement_P: jax.Array


def _result(subject: Subject, displacement_P: jax.Array, evaluations: int) -> Sharpness:
    """The increase over all images at a displacement, or at none if that is no increase."""
    increase = landscape.flat(subject).value(displacement_P) - subject.loss
    # What is not a number stays so.
    is_one = ~(increase <= 0)
    increase = jnp.where(is_one, increase, 0)
    zeta = increase / (1 + subject.loss)
    displacement_P = jnp.where(is_one, displacement_P, 0)
    return Sharpness(increase, zeta, 100 * zeta, evaluations, displacement_P)


def _searched(subject: Subject, batch_size: int | None) -> Subject:
    """What a search sees: all images, or a batch of them."""
    if batch_size is None or batch_size >= len(subject.labels_N):
        return subject  # It needs no key.
    return landscape.batch_of(subject, landscape.key_for(subject, landscape.BATCHES), batch_size)


class _Chart(NamedTuple):
    """How points of a unit box or ball are displacements of the weights: a linear map.

    to_weights: point -> displacement_P   back: its transpose, gradient_P -> gradient of the point
    """

    to_weights: Callable[[jax.Array], jax.Array]
    back: Callable[[jax.Array], jax.Array]

    def objective(self, subject: Subject) -> Objective:
        loss = landscape.flat(subject)

        def both(point: jax.Array) -> tuple[jax.Array, jax.Array]:
            value, gradient_P = loss.value_and_gradient(self.to_weights(point))
            return value, self.back(gradient_P)

        return Objective(lambda point: loss.value(self.to_weights(point)), both)


def _maximized(subject: Subject, box: Box, chart: _Chart, centre: jax.Array) -> Sharpness:
    """The maximum over a box. Walks start toward every class, too: all images taken for it.

    That is what the local maxima of a wide box are like; which one is the highest is not seen from
    the gradient at the trained weights, where the loss is small.
    """
    seen = _searched(subject, box.batch_size)

    def toward(label: jax.Array) -> jax.Array:
        all_are = jnp.full_like(seen.labels_N, label)
        wrong = chart.objective(dataclasses.replace(seen, labels_N=all_are))
        return -jnp.sign(wrong.value_and_gradient(centre)[1])

    classes = jax.eval_shape(lambda: seen.logits_of(seen.params)).shape[-1]
    starts_key = landscape.key_for(subject, landscape.STARTS)
    targets = Targets(classes, toward)
    best = maximizer.maximize_in_box(chart.objective(seen), centre, box.search, starts_key, targets)
    evaluations = box.search.evaluations(classes) + min(classes, box.search.targets)
    return _result(subject, chart.to_weights(best.point_P), evaluations)


def box_sharpness(subject: Subject, box: Box = DEFAULT_BOX) -> Sharpness:
    """The maximum over |nu_i| <= alpha(|w_i| + 1), over all weights.

    Source: Neyshabur et al. 2017, Section 2; Keskar et al. 2017, Metric 2.1 with A = I. The paper's
    10 iterations of L-BFGS-B from one start find less: `Search`.
    """
    weights_P = landscape.flat(subject).weights_P
    widths_P = box.alpha * BOXES[box.rule](weights_P)
    chart = _Chart(lambda point_P: widths_P * point_P, lambda gradient_P: widths_P * gradient_P)
    return _maximized(subject, box, chart, jnp.zeros_like(widths_P))


def subspace_sharpness(
    subject: Subject,
    box: Box = DEFAULT_BOX,
    dimensions: int = 100,
    columns: str = "normal",
) -> Sharpness:
    """The maximum over w + A z, |z_i| <= alpha(|(A^+ w)_i| + 1), A random [P, dimensions].

    dimensions: 1 to P   columns: of `COLUMNS`. UNSTATED in paper: how A is drawn.
    The matrix is held in memory, `dimensions` times the weights.

    Raises:
      UserError: more dimensions than weights.

    Source: Keskar et al. 2017, Metric 2.1 and Table 4 (100 dimensions).
    """
    _check("columns", columns, COLUMNS)
    weights_P = landscape.flat(subject).weights_P
    count = weights_P.size
    if not 1 <= dimensions <= count:
        raise UserError(
            f"a subspace of {dimensions} dimensions of {count} weights; take from 1 to {count}"
        )
    basis_key = landscape.key_for(subject, landscape.SUBSPACE)
    normal_PxZ = jax.random.normal(basis_key, (count, dimensions), weights_P.dtype)
    basis_PxZ = COLUMNS[columns](normal_PxZ)
    # A^+ w by the normal equations: columns drawn at random are far from dependent.
    gram_ZxZ = basis_PxZ.T @ basis_PxZ
    seen_Z = jnp.linalg.solve(gram_ZxZ, basis_PxZ.T @ weights_P)
    widths_Z = box.alpha * BOXES[box.rule](seen_Z)
    chart = _Chart(
        lambda point_Z: basis_PxZ @ (widths_Z * point_Z),
        lambda gradient_P: widths_Z * (basis_PxZ.T @ gradient_P),
    )
    return _maximized(subject, box, chart, jnp.zeros_like(widths_Z))


def random_search(
    subject: Subject,
    box: Box = DEFAULT_BOX,
    draws: int = 100,
) -> Sharpness:
    """The best of points drawn uniformly from the box: what other code takes for the maximum.

    It is far too low: in many dimensions a uniform point is near the centre in every direction that
    matters. Of `box` only alpha and the rule matter; all images are seen.
    """
    loss = landscape.flat(subject)
    widths_P = box.alpha * BOXES[box.rule](loss.weights_P)
    search_key = landscape.key_for(subject, landscape.SEARCH)

    def draw(best: Best, number: jax.Array) -> tuple[Best, None]:
        key = jax.random.fold_in(search_key, number)
        point_P = jax.random.uniform(key, widths_P.shape, widths_P.dtype, -1, 1)
        found = Best(point_P, loss.value(widths_P * point_P))
        return maximizer.better(best, found), None

    centre = Best(jnp.zeros_like(widths_P), subject.loss)
    best, _ = jax.lax.scan(draw, centre, jnp.arange(draws))
    return _result(subject, widths_P * best.point_P, draws)


@dataclasses.dataclass(frozen=True)
class Ball:
    """An l2 ball around the weights, and the steps of the ascent in it.

    radius: > 0, of all weights together; 0.05 in Foret et al. 2021
    batch_size: as of `Box`   steps, first_step, last_step, momentum: as of `Search`, the steps in
      radii. One step of length 1 is that of sharpness-aware minimization: `steps=1, first_step=1`
    """

    radius: float = 0.05
    batch_size: int | None = None
    steps: int = 20
    first_step: float = 1.0
    last_step: float = 0.05
    momentum: float = 0.5

    def __post_init__(self) -> None:
        if not self.radius > 0:
            raise UserError(f"radius is {self.radius!r}; a ball needs one above 0, as 0.05")


DEFAULT_BALL = Ball()


def ball_sharpness(subject: Subject, ball: Ball = DEFAULT_BALL) -> Sharpness:
    """The maximum over ||nu||_2 <= radius, by projected ascent along normalized gradients.

    Its first step is rho g / ||g||, the perturbation of sharpness-aware minimization.

    Source: Foret et al. 2021, equations 1 and 2.
    """
    chart = _Chart(lambda point_P: ball.radius * point_P, lambda grad_P: ball.radius * grad_P)
    search = Search(
        steps=ball.steps,
        first_step=ball.first_step,
        last_step=ball.last_step,
        momentum=ball.momentum,
    )
    objective = chart.objective(_searched(subject, ball.batch_size))
    centre_P = jnp.zeros_like(landscape.flat(subject).weights_P)
    best = maximizer.ascend(objective, maximizer.BALL, centre_P, search)
    return _result(subject, chart.to_weights(best.point_P), ball.steps + 1)


# The increase, zeta and Keskar's metric are of one search.
_in_box = once(box_sharpness)

MEASURES: dict[str, Callable[[Subject], jax.Array]] = {
    "sharpness_increase": lambda subject: _in_box(subject).increase,
    "sharpness_zeta": lambda subject: _in_box(subject).zeta,
    "sharpness_keskar": lambda subject: _in_box(subject).keskar,
    "sharpness_subspace_keskar": lambda subject: subspace_sharpness(subject).keskar,
    "sharpness_random_search": lambda subject: random_search(subject).zeta,
    "sharpness_l2_increase": lambda subject: ball_sharpness(subject).increase,
}
