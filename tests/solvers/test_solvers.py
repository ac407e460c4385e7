"""Every solver finds the minimiser, says truthfully how well, and treats every sample by itself."""

import pytest
import torch

from elder.linalg import norm
from elder.solvers import (
    LBFGS,
    Anderson,
    BacktrackingProximalGradient,
    GradientDescent,
    Picard,
    ProximalGradient,
    Solver,
)
from elder.solvers.fixed_point import Iteration
from tests.properties import concrete_subclasses
from tests.solvers.problems import Smooth

SOLVERS = {
    "picard": Picard(3000, 1e-11, GradientDescent(0.4)),
    "picard-proximal": Picard(3000, 1e-11, ProximalGradient(0.9)),
    "anderson": Anderson(500, 1e-11, GradientDescent(0.4)),
    "anderson-proximal": Anderson(500, 1e-11, ProximalGradient(1.0)),
    "backtracking": BacktrackingProximalGradient(3000, 1e-11, step_size=8.0),
    "lbfgs": LBFGS(500, 1e-11),
}
DTYPES = (torch.float64, torch.complex128)
every_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())


def test_every_solver_and_iteration_is_tested():
    assert concrete_subclasses(Solver) == {type(s) for s in SOLVERS.values()}
    used = {type(s.iteration) for s in SOLVERS.values() if hasattr(s, "iteration")}
    assert concrete_subclasses(Iteration) == used


@every_solver
@pytest.mark.parametrize("dtype", DTYPES)
def test_finds_the_minimiser(solver, dtype):
    problem = Smooth.make(dtype=dtype)
    reference = LBFGS(500, 1e-12)(problem, problem.x0).x
    # the reference is a minimiser by the autograd of f, written independently of the hand-written gradient
    x = reference.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(problem.value(x).sum(), x)
    assert norm(gradient).max() < 1e-9

    solution = solver(problem, problem.x0)
    assert solution.converged.all()
    assert norm(solution.x - reference).max() < 1e-8


@every_solver
def test_reported_residual_is_the_true_one(solver):
    problem = Smooth.make()
    solution = type(solver)(**{**vars(solver), "tol": 1e-3})(problem, problem.x0)
    true = norm(problem.grad(solution.x)) / norm(problem.grad(problem.x0))
    assert torch.allclose(solution.residual, true, rtol=1e-10)
    assert (solution.residual <= 1e-3).all() and solution.converged.all()


@every_solver
def test_sample_does_not_depend_on_its_batch(solver):
    problem = Smooth.make(4)
    together = solver(problem, problem.x0)
    for i in range(4):
        alone = solver(problem.select(torch.tensor([i])), problem.x0[:1])
        assert torch.allclose(alone.x[0], together.x[i], rtol=0, atol=1e-12)
        assert alone.n_gradients[0] == together.n_gradients[i]


@every_solver
def test_converged_samples_cost_nothing_more(solver):
    problem = Smooth.make(4)
    solution = solver(problem, problem.x0)
    assert len(set(solution.n_gradients.tolist())) > 1, "the samples should differ in difficulty"
    assert sum(problem.evaluated) == solution.n_gradients.sum()


@every_solver
def test_stops_at_max_steps_and_says_so(solver):
    problem = Smooth.make()
    solution = type(solver)(**{**vars(solver), "max_steps": 2})(problem, problem.x0)
    assert not solution.converged.any()
    assert (solution.residual > 0).all()


@every_solver
def test_start_at_the_solution_costs_one_gradient(solver):
    problem = Smooth.make()
    zero = type(problem)(problem.K, 0 * problem.y, problem.theta, problem.mu, [])
    solution = solver(zero, zero.x0)
    assert solution.converged.all()
    assert (solution.n_gradients == 1).all()


@pytest.mark.parametrize("solver", [SOLVERS["backtracking"], SOLVERS["lbfgs"]], ids=["backtracking", "lbfgs"])
@pytest.mark.parametrize("mu", [0.1, -0.3], ids=["convex", "nonconvex"])
def test_descent_never_increases_the_objective(solver, mu):
    problem = Smooth.make(mu=mu)
    values = [problem.value(problem.x0)]
    for max_steps in range(1, 25):
        x = type(solver)(**{**vars(solver), "max_steps": max_steps})(problem, problem.x0).x
        values.append(problem.value(x))
    values = torch.stack(values)
    assert (values.diff(dim=0) <= 1e-12 * values[:-1].abs()).all()
    assert (values[-1] < values[0]).all()


@pytest.mark.parametrize("iterator", [Picard, Anderson])
def test_divergence_is_an_error_that_names_the_step(iterator):
    problem = Smooth.make(mu=-30.0 if iterator is Anderson else 0.1)
    broken = type(problem)(problem.K * 1e200, problem.y, problem.theta, problem.mu, [])
    with pytest.raises(FloatingPointError, match=r"no longer finite at step \d+.*step_size"):
        iterator(200, 1e-9, GradientDescent(1e10))(broken, broken.x0 + 1)


@pytest.mark.parametrize("solver", [LBFGS, BacktrackingProximalGradient])
def test_single_precision_reaches_its_tolerance(solver):
    problem = Smooth.make()
    single = type(problem)(problem.K.float(), problem.y.float(), problem.theta.float(), problem.mu.float(), [])
    solution = solver(2000, 1e-5)(single, single.x0)
    assert solution.converged.all(), solution.residual


def test_bad_parameters_are_refused_in_words():
    with pytest.raises(ValueError, match="LBFGS: expected max_steps >= 1"):
        LBFGS(max_steps=0)
    with pytest.raises(ValueError, match="LBFGS: expected memory >= 1"):
        LBFGS(memory=0)
    with pytest.raises(ValueError, match="shrink"):
        BacktrackingProximalGradient(shrink=1.5)
    with pytest.raises(ValueError, match="step_size > 0"):
        GradientDescent(-1.0)
