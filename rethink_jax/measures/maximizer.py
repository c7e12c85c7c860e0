"""A maximum over a box or a ball: walks of signed steps from many starts, then quasi-Newton.

Points are in the unit box or ball; how large it is in weights is the objective's matter. All counts
are fixed, so the search can be compiled and batched over networks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rethink_jax.schema import UserError


class Objective(NamedTuple):
    """What is maximized, as functions of a point [P].

    value: -> scalar   value_and_gradient: -> (scalar, gradient[P])
    """

    value: Callable[[jax.Array], jax.Array]
    value_and_gradient: Callable[[jax.Array], tuple[jax.Array, jax.Array]]


class Region(NamedTuple):
    """Where the maximum is searched: the steepest direction of unit size, and the projection."""

    direction: Callable[[jax.Array], jax.Array]
    project: Callable[[jax.Array], jax.Array]


def _over_norm(x_P: jax.Array, at_least: float) -> jax.Array:
    # The derivative of a norm is never taken here, so that of 0 needs no care; its quotient does.
    return x_P / jnp.maximum(jnp.linalg.norm(x_P), at_least)


BOX = Region(jnp.sign, lambda x_P: jnp.clip(x_P, -1, 1))
BALL = Region(lambda x_P: _over_norm(x_P, 1e-30), lambda x_P: _over_norm(x_P, 1.0))


@dataclasses.dataclass(frozen=True)
class Search:
    """How hard a maximum is searched for. UNSTATED in paper; these exceed all known maxima.

    steps: signed steps of each walk, of lengths that fall geometrically from first_step to
      last_step (the box is 2 wide)   momentum: of the gradient, scaled to mean absolute value 1
    targets: at most so many walks begin where they are told to, after one from the corner of the
      signed gradient; they have `target_steps` steps
    restarts: then, walks from the best point so far with a share `redrawn` of its coordinates moved
      to random bounds. In wide boxes fresh random starts end at 0.1 to 0.9 of what these find
    refinements: quasi-Newton iterations from the best point of all   memory: pairs that they keep
    """

    targets: int = 10
    target_steps: int = 10
    restarts: int = 4
    redrawn: float = 0.5
    steps: int = 20
    first_step: float = 0.5
    last_step: float = 0.05
    momentum: float = 0.0
    refinements: int = 10
    memory: int = 5

    def __post_init__(self) -> None:
        for name in ("targets", "restarts", "refinements"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)!r}; it must be at least 0")
        for name in ("steps", "target_steps", "memory", "first_step", "last_step"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)!r}; it must be above 0")
        if not 0 <= self.redrawn <= 1:
            raise UserError(f"redrawn is {self.redrawn!r}; a share is from 0 to 1")

    def evaluations(self, targets: int) -> int:
        """How often a box's objective is evaluated, counting a value with its gradient as one.

        targets: starts that there are. What it takes to find them is not counted.
        """
        told = min(targets, self.targets) * (self.target_steps + 1)
        refining = 1 + self.refinements * (1 + len(_LENGTHS)) if self.refinements else 0
        return 1 + (1 + self.restarts) * (self.steps + 1) + told + refining


class Targets(NamedTuple):
    """Starts of walks, each toward another local maximum.

    count: how many there are   start_of: number, 0 to count - 1 -> point [P]
    """

    count: int
    start_of: Callable[[jax.Array], jax.Array]


class Best(NamedTuple):
    """A point [P] and the objective there."""

    point_P: jax.Array
    value: jax.Array


def better(a: Best, b: Best) -> Best:
    """The one of larger value; a where b is not finite."""
    taken = jnp.isfinite(b.value) & (b.value > a.value)
    return jax.tree.map(lambda x, y: jnp.where(taken, y, x), a, b)


def ascend(objective: Objective, region: Region, start_P: jax.Array, search: Search) -> Best:
    """The best point met on a walk of steps of falling length along the momentum's direction."""

    def step(carry: tuple[jax.Array, jax.Array, Best], length: jax.Array) -> tuple[tuple, None]:
        point_P, momentum_P, best = carry
        value, gradient_P = objective.value_and_gradient(point_P)
        best = better(best, Best(point_P, value))
        size = jnp.maximum(jnp.mean(jnp.abs(gradient_P)), jnp.finfo(point_P.dtype).tiny)
        momentum_P = search.momentum * momentum_P + gradient_P / size
        point_P = region.project(point_P + length * region.direction(momentum_P))
        return (point_P, momentum_P, best), None

    lengths = jnp.geomspace(search.first_step, search.last_step, search.steps, dtype=start_P.dtype)
    nothing = Best(start_P, jnp.full((), -jnp.inf, start_P.dtype))
    carry, _ = jax.lax.scan(step, (start_P, jnp.zeros_like(start_P), nothing), lengths)
    last_P, _, best = carry
    return better(best, Best(last_P, objective.value(last_P)))


# Step lengths that a refinement tries: along the quasi-Newton and along the signed direction.
_LENGTHS = ((1.0, 0.0), (0.3, 0.0), (0.03, 0.0), (0.0, 2.0), (0.0, 0.2), (0.0, 0.02))


class _Memory(NamedTuple):
    """Differences of points and of minus the gradients, the newest last: both [M, P]."""

    points_MxP: jax.Array
    gradients_MxP: jax.Array

    def add(self, point_P: jax.Array, gradient_P: jax.Array) -> _Memory:
        return _Memory(
            jnp.concatenate([self.points_MxP[1:], point_P[None]]),
            jnp.concatenate([self.gradients_MxP[1:], gradient_P[None]]),
        )


def _quasi_newton(memory: _Memory, gradient_P: jax.Array, free_P: jax.Array) -> jax.Array:
    """The direction of L-BFGS among the free coordinates (Nocedal & Wright 2006, Algorithm 7.4).

    Pairs of no positive curvature there are left out: the objective need not be concave. With none
    left it is the gradient, its largest component scaled to 1.
    """
    eps = jnp.finfo(gradient_P.dtype).eps
    s_MxP, y_MxP = (jnp.where(free_P[None], a, 0) for a in memory)
    products_M = jnp.sum(s_MxP * y_MxP, 1)
    sizes_M = jnp.linalg.norm(s_MxP, axis=1) * jnp.linalg.norm(y_MxP, axis=1)
    usable_M = products_M > 10 * eps * sizes_M
    rho_M = jnp.where(usable_M, 1 / jnp.where(usable_M, products_M, 1), 0)
    largest = jnp.maximum(jnp.max(jnp.abs(gradient_P)), jnp.finfo(gradient_P.dtype).tiny)
    scale = 1 / largest
    for y_P, usable, rho in zip(y_MxP, usable_M, rho_M, strict=True):
        scale = jnp.where(usable, 1 / jnp.where(usable, rho * jnp.vdot(y_P, y_P), 1), scale)
    direction_P, coefficients = gradient_P, []
    for s_P, y_P, rho in zip(s_MxP[::-1], y_MxP[::-1], rho_M[::-1], strict=True):
        coefficients.append(rho * jnp.vdot(s_P, direction_P))
        direction_P = direction_P - coefficients[-1] * y_P
    direction_P = scale * direction_P
    for s_P, y_P, rho, a in zip(s_MxP, y_MxP, rho_M, coefficients[::-1], strict=True):
        direction_P = direction_P + s_P * (a - rho * jnp.vdot(y_P, direction_P))
    return jnp.where(free_P, direction_P, 0)


def refine(objective: Objective, start: Best, search: Search) -> Best:
    """Projected quasi-Newton ascent in the unit box from a point; never worse than its start.

    As L-BFGS-B (Byrd et al. 1995), coordinates at a bound that the gradient pushes outward are
    held; in place of its line search, the best of a few lengths along two directions is taken.
    """
    lengths_Cx2 = jnp.asarray(_LENGTHS, start.point_P.dtype)

    def iterate(
        carry: tuple[Best, jax.Array, _Memory, jax.Array], _: None
    ) -> tuple[tuple[Best, jax.Array, _Memory, jax.Array], None]:
        now, gradient_P, memory, reach = carry
        held_P = (jnp.abs(now.point_P) >= 1) & (now.point_P * gradient_P > 0)
        inward_P = jnp.where(held_P, 0, gradient_P)
        newton_P = _quasi_newton(memory, inward_P, ~held_P)

        def at(lengths_2: jax.Array) -> jax.Array:
            along_P = lengths_2[0] * newton_P + lengths_2[1] * jnp.sign(inward_P)
            return BOX.project(now.point_P + reach * along_P)

        values_C = jax.lax.map(lambda lengths_2: objective.value(at(lengths_2)), lengths_Cx2)
        chosen = jnp.argmax(jnp.where(jnp.isfinite(values_C), values_C, -jnp.inf))
        found = better(now, Best(at(lengths_Cx2[chosen]), values_C[chosen]))
        gained = found.value > now.value
        _, next_P = objective.value_and_gradient(found.point_P)
        memory = memory.add(found.point_P - now.point_P, gradient_P - next_P)
        reach = jnp.where(gained, jnp.minimum(1, 4 * reach), 0.1 * reach)
        return (found, next_P, memory, reach), None

    _, gradient_P = objective.value_and_gradient(start.point_P)
    empty = jnp.zeros((search.memory, start.point_P.size), start.point_P.dtype)
    carry = (start, gradient_P, _Memory(empty, empty), jnp.ones((), start.point_P.dtype))
    (best, *_), _ = jax.lax.scan(iterate, carry, length=search.refinements)
    return best


def maximize_in_box(
    objective: Objective, centre_P: jax.Array, search: Search, key: jax.Array, targets: Targets
) -> Best:
    """The best point of the unit box [-1, 1]^P that the search finds; the centre is zeros [P]."""
    draw_key, choose_key = jax.random.split(key)

    def restart(best: Best, number: jax.Array) -> tuple[Best, None]:
        where_key, what_key = jax.random.split(jax.random.fold_in(draw_key, number))
        redrawn_P = jax.random.bernoulli(where_key, search.redrawn, centre_P.shape)
        bounds_P = jax.random.rademacher(what_key, centre_P.shape, centre_P.dtype)
        start_P = jnp.where(redrawn_P, bounds_P, best.point_P)
        return better(best, ascend(objective, BOX, start_P, search)), None

    def target(best: Best, number: jax.Array) -> tuple[Best, None]:
        start_P = targets.start_of(number)
        return better(best, ascend(objective, BOX, start_P, short)), None

    value, gradient_P = objective.value_and_gradient(centre_P)
    first = ascend(objective, BOX, jnp.sign(gradient_P), search)
    best = better(Best(centre_P, value), first)
    short = dataclasses.replace(search, steps=search.target_steps)
    chosen = jnp.arange(targets.count)
    if search.targets < targets.count:
        chosen = jax.random.choice(choose_key, chosen, (search.targets,), replace=False)
    if len(chosen):
        best, _ = jax.lax.scan(target, best, chosen)
    if search.restarts:
        best, _ = jax.lax.scan(restart, best, jnp.arange(search.restarts))
    return refine(objective, best, search) if search.refinements else best
