"""Every solver finds the minimiser, says truthfully how well, and treats every sample by itself."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from elder.linalg import inner, norm
from elder.solvers import (
    FISTA,
    LBFGS,
    Anderson,
    BacktrackingProximalGradient,
    Broyden,
    GradientDescent,
    InertialProximalGradient,
    NonmonotoneAPG,
    OnlineGradientDescent,
    Picard,
    PlugAndPlay,
    PreconditionedLBFGS,
    Problem,
    ProximalGradient,
    Solver,
)
from elder.solvers.fixed_point import Iteration
from tests.properties import concrete_subclasses
from tests.solvers.problems import Bumpy, Quadratic, Smooth, draw
from tests.solvers.synchronization import Synchronizations

SOLVERS = {
    "picard": Picard(3000, 1e-11, GradientDescent(0.4)),
    "picard-proximal": Picard(3000, 1e-11, ProximalGradient(0.9)),
    "plug-and-play": Picard(3000, 1e-11, PlugAndPlay(0.9)),
    "anderson": Anderson(500, 1e-11, GradientDescent(0.4)),
    "anderson-proximal": Anderson(500, 1e-11, ProximalGradient(1.0)),
    "backtracking": BacktrackingProximalGradient(3000, 1e-11, step_size=8.0),
    "lbfgs": LBFGS(500, 1e-11),
    "preconditioned": PreconditionedLBFGS(500, 1e-11, curvature=0.5),
    "fista": FISTA(2000, 1e-11, step_size=8.0),
    "inertial": InertialProximalGradient(2000, 1e-11, step_size=4.0),
    "nonmonotone": NonmonotoneAPG(3000, 1e-11),
    "broyden": Broyden(500, 1e-11, step_size=0.4),
}
DESCENDING = {"backtracking", "lbfgs", "preconditioned", "fista"}
EXPLICIT = {name: solver for name, solver in SOLVERS.items() if solver.needs_value}
DTYPES = (torch.float64, torch.complex128)
every_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())


def test_every_solver_and_iteration_is_tested():
    elsewhere = {OnlineGradientDescent}  # whose problems have measurements of several views: test_online.py
    assert concrete_subclasses(Solver) == {type(s) for s in SOLVERS.values()} | elsewhere
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
    solution = replace(solver, tol=1e-3)(problem, problem.x0)
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
    solution = replace(solver, max_steps=2)(problem, problem.x0)
    assert not solution.converged.any()
    assert (solution.residual > 0).all()


@every_solver
def test_start_at_the_solution_costs_one_gradient(solver):
    problem = Smooth.make()
    zero = type(problem)(problem.K, 0 * problem.y, problem.theta, problem.mu, [])
    solution = solver(zero, zero.x0)
    assert solution.converged.all()
    assert (solution.n_gradients == 1).all()


@pytest.mark.parametrize("name", sorted(DESCENDING))
@pytest.mark.parametrize("mu", [0.1, -0.3], ids=["convex", "nonconvex"])
def test_descent_never_increases_the_objective(name, mu):
    problem, solver = Smooth.make(mu=mu), SOLVERS[name]
    values = [problem.value(problem.x0)]
    for max_steps in range(1, 25):
        x = replace(solver, max_steps=max_steps)(problem, problem.x0).x
        values.append(problem.value(x))
    values = torch.stack(values)
    assert (values.diff(dim=0) <= 1e-12 * values[:-1].abs()).all()
    assert (values[-1] < values[0]).all()


@pytest.mark.parametrize("name", sorted(DESCENDING))
def test_descent_accepts_no_step_over_a_hill_to_higher_ground(name):
    """A downhill slope at its end does not make up for a higher f."""
    n = 300
    problem = Bumpy(torch.full((n, 1), 0.7, dtype=torch.float64), draw(n, 1))
    values = [[] for _ in range(n)]

    def watch(samples, state):
        value, _ = problem.select(samples).value_and_grad(state.x)
        for sample, f in zip(samples.tolist(), value.tolist(), strict=True):
            values[sample].append(f)

    replace(SOLVERS[name], max_steps=60)(problem, 4 * draw(n, 1, seed=1), watch=watch)
    paths = [torch.tensor(path) for path in values]
    assert sum(path[0] - path[-1] for path in paths) > n  # they descend
    assert max((path.diff() - 1e-13 * path[:-1].abs()).max() for path in paths if len(path) > 1) <= 0


def test_backtracking_decreases_sufficiently_by_steps_that_never_grow():
    """Steps of 64 are too long, those that are accepted shorter than 8: (decrease/γ)‖Δx‖² tells γ from 1/γ."""
    problem, states = Smooth.make(theta=4.0), []
    solver = BacktrackingProximalGradient(60, 1e-6, step_size=64.0, decrease=0.45)
    solver(problem, problem.x0, watch=lambda samples, state: states.append((samples.tolist(), state)))
    paths = [[] for _ in problem.x0]
    for samples, state in states:
        for row, i in enumerate(samples):
            paths[i].append((state.x[row], state.value[row], state.step_size[row]))
    accepted = 0
    for path in paths:
        for (x, value, size), (after, lower, later) in itertools.pairwise(path):
            moved = (after - x).square().sum()
            assert later == (size if moved else size / 2)
            assert lower <= value - 0.45 / size * moved + 1e-12
            accepted += bool(moved)
        assert path[-1][2] < 8
    assert accepted > 20


@pytest.mark.parametrize("iterator", [Picard, Anderson])
def test_divergence_is_an_error_that_names_the_step(iterator):
    problem = Smooth.make(mu=-30.0 if iterator is Anderson else 0.1)
    broken = type(problem)(problem.K * 1e200, problem.y, problem.theta, problem.mu, [])
    with pytest.raises(FloatingPointError, match=r"no longer finite at step \d+.*step_size"):
        iterator(200, 1e-9, GradientDescent(1e10))(broken, broken.x0 + 1)


@pytest.mark.parametrize("solver", [type(s) for s in EXPLICIT.values()], ids=lambda s: s.__name__)
def test_single_precision_reaches_its_tolerance(solver):
    problem = Smooth.make()
    single = type(problem)(problem.K.float(), problem.y.float(), problem.theta.float(), problem.mu.float(), [])
    solution = solver(2000, 1e-5)(single, single.x0)
    assert solution.converged.all(), solution.residual


# The loop


@every_solver
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("recorded", [False, True])
def test_step_is_one_evaluation_and_does_not_wait_for_the_device(solver, dtype, recorded):
    problem = Smooth.make(dtype=dtype)
    problem.theta.requires_grad_(recorded)
    with torch.set_grad_enabled(recorded):
        state = solver.start(problem, problem.x0)
        with Synchronizations() as waits:
            for _ in range(15):
                state = solver.step(problem, state)
    assert waits.found == []
    assert problem.evaluated == 16 * [3]
    assert (state.n_gradients == 16).all()


def test_synchronizations_are_seen():
    x, mask = torch.ones(3), torch.ones(3) > 0
    for wait in (
        lambda: x[mask],
        lambda: x.sum().item(),
        lambda: bool(mask.all()),
        lambda: mask.nonzero(),
        lambda: torch.index_put(x, (mask,), x),
        lambda: torch.linalg.solve(torch.eye(3), x),
        lambda: torch.equal(x, x),
    ):
        with Synchronizations() as waits:
            wait()
        assert waits.count > 0
    with Synchronizations() as waits:
        torch.where(mask, x, 0)[torch.tensor([0, 2])]
    assert waits.count == 0


@every_solver
def test_step_leaves_its_state_alone_where_gradients_are_recorded(solver):
    problem = Smooth.make()
    state = solver.start(problem, problem.x0)
    for _ in range(12):
        copies = [entry.clone() for entry in state]
        following, again = solver.step(problem, state), solver.step(problem, state)
        assert all(torch.equal(a, b) for a, b in zip(copies, state, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(following, again, strict=True))
        state = following


@every_solver
@pytest.mark.parametrize("check_every", [1, 4])
def test_looking_less_often_changes_only_when_a_sample_leaves(solver, check_every):
    solver = replace(solver, tol=1e-6, check_every=check_every)
    problem = Smooth.make(4)
    with Synchronizations() as waits:
        together = solver(problem, problem.x0)
    assert together.converged.all()
    assert ((together.n_gradients - 1) % check_every == 0).all()
    assert sum(problem.evaluated) == together.n_gradients.sum()
    # three looks at numbers, and two at most for each of four samples that leave
    assert waits.count <= 3 * (len(problem.evaluated) // check_every + 1) + 2 * 4
    for i in range(4):
        alone = solver(problem.select(torch.tensor([i])), problem.x0[:1])
        assert torch.allclose(alone.x[0], together.x[i], rtol=0, atol=1e-12)
        assert alone.n_gradients[0] == together.n_gradients[i]


def test_max_steps_is_a_limit_however_often_the_solver_looks():
    problem = Smooth.make()
    solution = Picard(7, 0.0, GradientDescent(0.4), check_every=3)(problem, problem.x0)
    assert (solution.n_gradients == 8).all()
    assert torch.equal(solution.x, Picard(7, 0.0, GradientDescent(0.4))(problem, problem.x0).x)


@every_solver
@pytest.mark.parametrize("n", [5, 6])
def test_few_batch_sizes_change_no_sample(solver, n):
    problem = Smooth.make(n)
    expected = solver(problem, problem.x0)
    few = replace(problem, few_batch_sizes=True, evaluated=[])
    solution = solver(few, few.x0)
    assert set(few.evaluated) <= {n, 4, 2, 1}
    assert few.evaluated == sorted(few.evaluated, reverse=True) and len(set(few.evaluated)) > 1
    assert torch.equal(solution.n_gradients, expected.n_gradients)
    assert torch.equal(solution.converged, expected.converged)
    torch.testing.assert_close(solution.x, expected.x, rtol=0, atol=1e-12)
    torch.testing.assert_close(solution.residual, expected.residual, rtol=1e-3, atol=1e-13)


@pytest.mark.parametrize("few_batch_sizes", [False, True])
def test_a_watcher_sees_samples_that_take_part_and_no_others(few_batch_sizes):
    problem, counts = replace(Smooth.make(6), few_batch_sizes=few_batch_sizes), [[] for _ in range(6)]

    def watch(samples, state):
        for i, n in zip(samples.tolist(), state.n_gradients.tolist(), strict=True):
            counts[i].append(n)

    solution = LBFGS(60, 1e-8)(problem, problem.x0, watch=watch)
    assert counts == [list(range(1, int(n) + 1)) for n in solution.n_gradients]
    assert len(set(solution.n_gradients.tolist())) > 1


def test_a_finished_sample_that_fills_up_the_batch_may_diverge():
    problem = replace(Smooth.make(4), few_batch_sizes=True)
    problem.K[0] *= 1e6
    scale = torch.tensor([1e300, 1.0, 1.0, 1.0], dtype=torch.float64)
    for max_steps in (40, 3000):
        solution = Picard(max_steps, 1e-11, GradientDescent(0.4))(problem, problem.x0, scale=scale)
        assert problem.evaluated[:40] == 40 * [4]
        assert solution.x.isfinite().all()
        assert torch.equal(solution.x[0], problem.x0[0]) and solution.n_gradients[0] == 1
    assert solution.converged.all()


@every_solver
def test_scale_replaces_the_first_residual(solver):
    """A start that is nearly a solution is judged like the start from far away that it replaces."""
    problem = Smooth.make()
    cold = replace(solver, tol=1e-5)(problem, problem.x0)
    scale = norm(problem.grad(problem.x0))
    start = cold.x + 1e-4 * draw(3, 8, seed=6)
    warm = replace(solver, tol=1e-5)(problem, start, scale=scale)
    assert warm.converged.all() and (warm.n_gradients < cold.n_gradients).all()
    torch.testing.assert_close(warm.residual, norm(problem.grad(warm.x)) / scale)
    again = replace(solver, tol=1e-5)(problem, cold.x, scale=scale)
    assert (again.n_gradients == 1).all() and again.converged.all()


# Numbers


class Noisy:
    """A problem whose f and ∇f are computed in bfloat16; f is large, so that no descent is visible in it for long."""

    few_batch_sizes = False
    symmetric = True
    precision = torch.finfo(torch.bfloat16).eps

    def __init__(self, problem: Smooth) -> None:
        self.problem = problem

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value, grad = self.problem.value_and_grad(x)
        noise = (1e5 * x.sum(1)).sin() / 2
        return (value + 100) * (1 + self.precision * noise), grad.bfloat16().to(grad)

    def proximal_gradient(self, x: Tensor, grad: Tensor, step_size: Tensor) -> Tensor:
        return self.problem.proximal_gradient(x, grad, step_size)

    def precondition(self, u: Tensor, curvature: float) -> Tensor:
        return self.problem.precondition(u, curvature)

    def select(self, samples: Tensor) -> Noisy:
        return Noisy(self.problem.select(samples))


@pytest.mark.parametrize("name", sorted(EXPLICIT))
def test_values_of_low_precision_do_not_end_the_search(name):
    problem = Smooth.make(mu=1.0)
    solution = replace(EXPLICIT[name], tol=2e-3, max_steps=40)(Noisy(problem), problem.x0 + 3)
    assert solution.converged.all(), solution.residual


@pytest.mark.parametrize("name", ["anderson", "lbfgs", "broyden"])
def test_autocast_leaves_the_solver_in_full_precision(name):
    problem = Quadratic.make(100.0, dtype=torch.float32)
    solver = replace(SOLVERS[name], max_steps=30, tol=1e-4)
    expected = solver(problem, problem.x0, keep_inverse=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = solver(problem, problem.x0, keep_inverse=True)
        assert torch.equal(found.x, expected.x)
        if found.inverse is not None:
            assert torch.equal(found.inverse(problem.b), expected.inverse(problem.b))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("image", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("objective", [1e-8, 1.0, 1e8])
def test_anderson_does_not_depend_on_scales(dtype, image, objective):
    """f'(x') = c f(x'/d) has the iterates x' = dx if the step size is γd²/c; exactly, for powers of two."""
    c, d = (2.0 ** round(math.log2(number)) for number in (objective, image))
    if dtype == torch.float32 and (c, d) != (1, 1) and not 1e-10 < d**2 / c < 1e10:
        pytest.skip("squares leave the range of float32")
    problem = Quadratic.make(100.0, dtype=dtype)
    scaled = replace(problem, diagonal=problem.diagonal * c / d**2, b=problem.b * c / d)
    solution = Anderson(25, 0.0, GradientDescent(1.5))(problem, problem.x0)
    other = Anderson(25, 0.0, GradientDescent(1.5 * d**2 / c))(scaled, scaled.x0)
    assert torch.equal(other.x, d * solution.x)
    assert (solution.residual < 0.05).all()


# What the sources say


class Wavy:
    """f(x) = ½‖x‖² + 3 Σ (1 − cos 4x_i), of many minima."""

    few_batch_sizes, symmetric, precision = False, True, torch.finfo(torch.float64).eps

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return (0.5 * x**2 + 3 * (1 - (4 * x).cos())).sum(1), x + 12 * (4 * x).sin()

    def select(self, samples: Tensor) -> Wavy:
        return self


def nonmonotone(problem: Problem, x: Tensor, n_steps: int) -> tuple[Tensor, int, int]:
    """Algorithm 2 of Li and Lin with the line search of their supplement, one sample, in the order of the paper.

    x_k, the number of evaluations, points that coincide with earlier ones not counted twice, and how often v was used.
    """
    eta, delta, shrink, tie = 0.8, 1e-4, 0.5, 1e-14

    def f(u: Tensor) -> float:
        return problem.value_and_grad(u)[0].item()

    def grad(u: Tensor) -> Tensor:
        return problem.value_and_grad(u)[1]

    z, old_x, old_y, t, old_t, q, c, alpha = x, x, x, 1.0, 0.0, 1.0, f(x), 1.0
    n_evaluations, n_monitors = 1, 0
    for k in range(n_steps):
        y = x + old_t / t * (z - x) + (old_t - 1) / t * (x - old_x)
        n_evaluations += 0 if torch.equal(y, x) else 1
        if k:
            alpha = _step_size(y - old_y, grad(y) - grad(old_y), alpha)
        while True:
            z, n_evaluations = y - alpha * grad(y), n_evaluations + 1
            needed = delta * norm(z - y).item() ** 2
            if f(z) <= max(f(y), c) - needed + tie * abs(c):
                break
            alpha *= shrink
        new = z
        if f(z) > c - needed + tie * abs(c):
            n_monitors += 1
            alpha = _step_size(x - old_y, grad(x) - grad(old_y), alpha)
            while True:
                v, n_evaluations = x - alpha * grad(x), n_evaluations + 1
                if f(v) <= c - delta * norm(v - x).item() ** 2 + tie * abs(c):
                    break
                alpha *= shrink
            new = v if f(v) <= f(z) else z
        old_t, t = t, (math.sqrt(4 * t**2 + 1) + 1) / 2
        q, c = eta * q + 1, (eta * q * c + f(new)) / (eta * q + 1)
        old_y, old_x, x = y, x, new
    return x, n_evaluations, n_monitors


def _step_size(s: Tensor, r: Tensor, otherwise: float) -> float:
    curvature = inner(s, r).item()
    return curvature / inner(r, r).item() if curvature > 0 else otherwise


def test_nonmonotone_accelerated_gradient_is_the_published_one():
    n_monitors = 0
    starts = [(Smooth.make(4).select(torch.tensor([i])), torch.ones(1, 8).double()) for i in range(4)]
    for problem, x0 in starts + [(Wavy(), 5 * draw(1, 2, seed=seed)) for seed in range(20)]:
        for n_steps in (1, 2, 3, 5, 8):
            x, n_evaluations, n = nonmonotone(problem, x0, n_steps)
            solution = NonmonotoneAPG(n_evaluations - 1, 0.0)(problem, x0)
            torch.testing.assert_close(solution.x, x, rtol=1e-8, atol=1e-10)
            assert solution.n_gradients.item() == n_evaluations
        n_monitors += n
    assert n_monitors > 5


# Cost


@pytest.mark.parametrize("condition", [1e2, 1e3])
def test_acceleration_saves_evaluations(condition):
    problem = Quadratic.make(condition)

    def cost(solver: type[Solver], **parameters: float) -> float:
        solution = solver(20000, 1e-4, **parameters)(problem, problem.x0)
        assert solution.converged.all()
        return solution.n_gradients.max().item()

    plain = cost(Picard)
    assert cost(LBFGS) < plain / 12
    assert max(cost(FISTA), cost(InertialProximalGradient), cost(Anderson), cost(Broyden)) < plain / 6
    assert cost(NonmonotoneAPG) < 0.8 * plain  # each of its steps is two evaluations


@pytest.mark.parametrize("dtype", DTYPES)
def test_lbfgs_that_remembers_all_directions_is_superlinear(dtype):
    """On a quadratic in few dimensions, to rounding within a few times as many steps."""
    problem = Quadratic.make(1e3, n=6, dtype=dtype)
    solution = LBFGS(100, 1e-12, memory=20)(problem, problem.x0)
    assert solution.converged.all() and (solution.n_gradients <= 36).all(), solution.n_gradients
    assert not LBFGS(100, 1e-12, memory=1)(problem, problem.x0).converged.any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_metric_of_the_data_term_solves_where_the_curvature_is_known(dtype):
    """For R = ½‖x‖² it is the Hessian, up to the factor that the first step finds; the second is Newton's."""
    problem = Smooth.make(dtype=dtype, theta=0.0, mu=0.01)
    solution = PreconditionedLBFGS(20, 1e-11, curvature=0.01)(problem, problem.x0)
    assert solution.converged.all() and (solution.n_gradients == 3).all()
    other = PreconditionedLBFGS(20, 1e-11, curvature=1.0)(problem, problem.x0)
    assert (other.n_gradients > 3).all() and (LBFGS(20, 1e-11)(problem, problem.x0).n_gradients > 3).all()


def test_first_step_finds_its_length_by_the_slopes():
    """A rejected trial tells the curvature: a second one is enough for a quadratic of any scale down to 1/1000."""
    for scale in (3.0, 30.0, 300.0):
        problem = Quadratic(torch.full((1, 5), scale).double(), draw(1, 5))
        solution = LBFGS(10, 1e-10)(problem, problem.x0)
        assert solution.converged.all() and solution.n_gradients.item() <= 3


def test_bad_parameters_are_refused_in_words():
    with pytest.raises(ValueError, match="LBFGS: expected max_steps >= 1"):
        LBFGS(max_steps=0)
    with pytest.raises(ValueError, match="LBFGS: expected memory >= 1"):
        LBFGS(memory=0)
    with pytest.raises(ValueError, match="PreconditionedLBFGS: expected memory >= 1"):
        PreconditionedLBFGS(memory=0)
    with pytest.raises(ValueError, match=r"PreconditionedLBFGS: expected curvature > 0, got -1\.0"):
        PreconditionedLBFGS(curvature=-1.0)
    with pytest.raises(ValueError, match="shrink"):
        BacktrackingProximalGradient(shrink=1.5)
    with pytest.raises(ValueError, match="step_size > 0"):
        GradientDescent(-1.0)
    with pytest.raises(ValueError, match="Picard: expected check_every >= 1, got 0"):
        Picard(check_every=0)
    for memory in (0, -1):
        with pytest.raises(ValueError, match=f"Anderson: expected memory >= 1, got {memory}; Picard has none"):
            Anderson(memory=memory)
    for solver in (FISTA, InertialProximalGradient, NonmonotoneAPG):
        with pytest.raises(ValueError, match=f"{solver.__name__}: expected step_size > 0, 0 < shrink < 1"):
            solver(shrink=1.0)
    with pytest.raises(ValueError, match=r"InertialProximalGradient: expected 0 <= momentum < 1, got 1\.0"):
        InertialProximalGradient(momentum=1.0)
    with pytest.raises(ValueError, match="Broyden: expected step_size > 0, memory >= 1 and growth >= 1"):
        Broyden(growth=0.5)
