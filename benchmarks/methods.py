"""Ways to do one training step: forward solve, loss, backward solve, gradient in all parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from benchmarks.problems import Case
from benchmarks.reference import parameter_gradient
from elder.models.evaluation import Evaluation
from elder.solvers import (
    FISTA,
    GMRES,
    LBFGS,
    MINRES,
    SHINE,
    Anderson,
    BackwardRule,
    Broyden,
    ConjugateGradient,
    GradientDescent,
    Implicit,
    JacobianFree,
    Neumann,
    NonmonotoneAPG,
    Picard,
    Solver,
    Symmetric,
    Unrolled,
)


class Step(NamedTuple):
    """What a training step found, and the evaluations it took, per image."""

    x: Tensor
    gradient: Tensor  # dℓ/d(parameters, log λ), one vector
    n_gradients: float  # of R, forward and for the backward pass
    n_values: float  # of R alone, which no solver of the library asks for
    n_products: float  # with a Hessian or the Jacobian of a map


#: A training step of a case with step length 1/L, given a forward and an adjoint setting.
Run = Callable[[Case, float, float, float], Step]


@dataclass(frozen=True)
class Method:
    """A training step with two dials, each from cheap to accurate.

    Args:
        name: As tables and plots call it.
        source: The package whose method it is.
        run: The step.
        forward: Values of the forward dial that are tried.
        adjoint: Values of the adjoint dial that are tried; one value where there is no such dial.
        default: The step of a user who sets nothing but, where there is one, the step length.
    """

    name: str
    source: str
    run: Run
    forward: tuple[float, ...]
    adjoint: tuple[float, ...]
    default: Callable[[Case, float], Step]


#: The same tolerances for every method that has tolerances.
FORWARD = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
ADJOINT = (1e-1, 1e-2, 1e-3)
NO_DIAL = (0.0,)
MAX_STEPS = 300  # more than any method that is worth it needs

SolverOf = Callable[[float, float], Solver]  # (forward setting, 1/L)
RuleOf = Callable[[float, float], BackwardRule]  # (adjoint setting, 1/L)


def library_step(solver: Solver, rule: BackwardRule, case: Case, evaluation: Evaluation | None = None) -> Step:
    """A training step as the library takes it."""
    reconstruction = case.reconstruction(solver, rule, evaluation)
    solution = reconstruction(case.problem)
    gradient = parameter_gradient(case.loss(solution.x), reconstruction)
    adjoint = None if solution.adjoint is None else solution.adjoint.solution
    products = 0.0 if adjoint is None else adjoint.n_products.double().mean().item()
    gradients = solution.n_gradients.double().mean().item()
    return Step(solution.x.detach(), gradient, gradients, 0.0, products)


def _method(
    name: str,
    solver: SolverOf,
    rule: RuleOf,
    forward: tuple[float, ...] = FORWARD,
    adjoint: tuple[float, ...] = ADJOINT,
    default: tuple[float, float] = (1e-4, 1e-3),
) -> Method:
    def run(case: Case, step_size: float, forward_setting: float, adjoint_setting: float) -> Step:
        return library_step(solver(forward_setting, step_size), rule(adjoint_setting, step_size), case)

    return Method(name, "elder", run, forward, adjoint, lambda case, step_size: run(case, step_size, *default))


def _lbfgs(tol: float, step_size: float) -> Solver:
    return LBFGS(max_steps=MAX_STEPS, tol=tol)


def _anderson(tol: float, step_size: float) -> Solver:
    return Anderson(max_steps=MAX_STEPS, tol=tol, iteration=GradientDescent(step_size))


def _fista(tol: float, step_size: float) -> Solver:
    return FISTA(max_steps=MAX_STEPS, tol=tol)


def _broyden(tol: float, step_size: float) -> Solver:
    return Broyden(max_steps=MAX_STEPS, tol=tol, step_size=step_size)


def _nonmonotone(tol: float, step_size: float) -> Solver:
    return NonmonotoneAPG(max_steps=MAX_STEPS, tol=tol)


def _symmetric(tol: float, step_size: float) -> BackwardRule:
    return Implicit(Symmetric(max_steps=MAX_STEPS, tol=tol))


def _steps(n: float, step_size: float) -> Solver:
    return Picard(max_steps=int(n), tol=0.0, iteration=GradientDescent(step_size))


#: Every solver with the backward rule that goes with it, and every rule with the default solver.
LIBRARY: tuple[Method, ...] = (
    _method("L-BFGS, CG→MINRES", _lbfgs, _symmetric),
    _method("L-BFGS, CG", _lbfgs, lambda tol, _: Implicit(ConjugateGradient(max_steps=MAX_STEPS, tol=tol))),
    _method("L-BFGS, MINRES", _lbfgs, lambda tol, _: Implicit(MINRES(max_steps=MAX_STEPS, tol=tol))),
    _method(
        "L-BFGS, Neumann", _lbfgs, lambda tol, step: Implicit(Neumann(max_steps=MAX_STEPS, tol=tol, step_size=step))
    ),
    _method("L-BFGS, SHINE", _lbfgs, lambda *_: SHINE(), adjoint=NO_DIAL, default=(1e-4, 0.0)),
    _method("L-BFGS, SHINE + CG→MINRES", _lbfgs, lambda tol, _: SHINE(Symmetric(max_steps=MAX_STEPS, tol=tol))),
    _method(
        "L-BFGS, Jacobian-free",
        _lbfgs,
        lambda _, step: JacobianFree(GradientDescent(step)),
        adjoint=NO_DIAL,
        default=(1e-4, 0.0),
    ),
    _method(
        "L-BFGS, phantom",
        _lbfgs,
        lambda _, step: JacobianFree(GradientDescent(step), n_steps=5, damping=0.5),
        adjoint=NO_DIAL,
        default=(1e-4, 0.0),
    ),
    _method("Anderson, GMRES", _anderson, lambda tol, _: Implicit(GMRES(max_steps=MAX_STEPS, tol=tol))),
    _method("Broyden, GMRES", _broyden, lambda tol, _: Implicit(GMRES(max_steps=MAX_STEPS, tol=tol))),
    _method("FISTA, CG→MINRES", _fista, _symmetric),
    _method("nonmonotone APG, CG→MINRES", _nonmonotone, _symmetric),
    _method("unrolled gradient steps", _steps, lambda *_: Unrolled(), (10, 20, 50), NO_DIAL, (20, 0.0)),
)
