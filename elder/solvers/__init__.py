"""Solvers of F(x) = 0 and rules to differentiate what they find. Pure: they know tensors and nothing of imaging."""

from elder.solvers.anderson import Anderson
from elder.solvers.backward import BackwardRule, Implicit, JacobianFree, Unrolled
from elder.solvers.base import LinearSolution, LinearSolver, Problem, Solution, Solver
from elder.solvers.descent import LBFGS, BacktrackingProximalGradient
from elder.solvers.fixed_point import GradientDescent, Iteration, Picard, ProximalGradient
from elder.solvers.krylov import GMRES, MINRES, ConjugateGradient

__all__ = [
    "GMRES",
    "LBFGS",
    "MINRES",
    "Anderson",
    "BacktrackingProximalGradient",
    "BackwardRule",
    "ConjugateGradient",
    "GradientDescent",
    "Implicit",
    "Iteration",
    "JacobianFree",
    "LinearSolution",
    "LinearSolver",
    "Picard",
    "Problem",
    "ProximalGradient",
    "Solution",
    "Solver",
    "Unrolled",
]
