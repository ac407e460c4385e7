"""Solvers of F(x) = 0 and rules to differentiate what they find. Pure: they know tensors and nothing of imaging."""

from elder.solvers.accelerated import FISTA, InertialProximalGradient
from elder.solvers.anderson import Anderson
from elder.solvers.backward import SHINE, BackwardRule, Implicit, JacobianFree, Unrolled, adjoint_error
from elder.solvers.base import AdjointReport, Problem, Solution, Solver, Watch
from elder.solvers.bfgs import LBFGS, PreconditionedLBFGS
from elder.solvers.broyden import Broyden
from elder.solvers.descent import BacktrackingProximalGradient
from elder.solvers.fixed_point import GradientDescent, Iteration, Picard, PlugAndPlay, ProximalGradient
from elder.solvers.krylov import GMRES, MINRES, ConjugateGradient, Symmetric
from elder.solvers.linear import LinearSolution, LinearSolver
from elder.solvers.nonmonotone import NonmonotoneAPG
from elder.solvers.online import OnlineGradientDescent, OnlineImplicit, OnlineProblem
from elder.solvers.stationary import LinearAnderson, Neumann

__all__ = [
    "FISTA",
    "GMRES",
    "LBFGS",
    "MINRES",
    "SHINE",
    "AdjointReport",
    "Anderson",
    "BacktrackingProximalGradient",
    "BackwardRule",
    "Broyden",
    "ConjugateGradient",
    "GradientDescent",
    "Implicit",
    "InertialProximalGradient",
    "Iteration",
    "JacobianFree",
    "LinearAnderson",
    "LinearSolution",
    "LinearSolver",
    "Neumann",
    "NonmonotoneAPG",
    "OnlineGradientDescent",
    "OnlineImplicit",
    "OnlineProblem",
    "Picard",
    "PlugAndPlay",
    "PreconditionedLBFGS",
    "Problem",
    "ProximalGradient",
    "Solution",
    "Solver",
    "Symmetric",
    "Unrolled",
    "Watch",
    "adjoint_error",
]
