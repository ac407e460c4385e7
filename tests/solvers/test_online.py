"""Online solvers: batch solvers where they see everything, near to them as theory says where they do not."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from elder.linalg import norm
from elder.models.evaluation import Evaluation
from elder.models.reconstruction import Reconstruction
from elder.models.regularizers import Regularizer
from elder.operators import Identity, InverseProblem, Radon
from elder.solvers import (
    LBFGS,
    ConjugateGradient,
    GradientDescent,
    Implicit,
    OnlineGradientDescent,
    OnlineImplicit,
    Picard,
    Unrolled,
)
from tests.solvers.problems import draw
from tests.solvers.synchronization import Uploads

SIZE, N_VIEWS = (10, 10), 12


@pytest.fixture(scope="module")
def problem() -> InverseProblem:
    """Twelve views of two images, with noise; ‖A‖ is about 1."""
    A = Radon(torch.arange(N_VIEWS) * 15.0, SIZE, pixel_size=0.1)
    x = draw(2, 1, *SIZE, seed=1).cumsum(-1) / 5
    y = A(x)
    return InverseProblem(A, y + 0.1 * draw(*y.shape, seed=2), x=x)


class Convex(Regularizer):
    """R(x) = ½‖x‖² + Σ (√(1 + (k ∗ x)²) − 1), whose curvature is 1 at least."""

    def __init__(self) -> None:
        super().__init__()
        self.k = nn.Parameter(draw(1, 1, 3, 3, seed=5))

    def value(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        response = nn.functional.conv2d(x, self.k, padding=1)
        return (0.5 * x.square() + (1 + response.square()).sqrt() - 1).flatten(1).sum(1)


def model(solver, backward=None, strength: float = 0.2) -> Reconstruction:
    return Reconstruction(Convex(), solver, backward, strength=strength).double()


def step_size(problem: InverseProblem) -> float:
    """A third of the inverse Lipschitz constant of the data term."""
    return 0.3 / float(problem.A.norm(torch.zeros(1, 1, *SIZE, dtype=torch.float64)).max()) ** 2


def online(problem: InverseProblem, n_steps: int, n_views: int = 4, shorter: float = 1, **others) -> Tensor:
    """The solution after some steps."""
    size = shorter * step_size(problem)
    return model(OnlineGradientDescent(n_steps, 0, n_views=n_views, step_size=size, **others))(problem).x


def relative(a: Tensor, b: Tensor) -> float:
    return float((norm(a.detach() - b) / norm(b)).max())


@pytest.fixture(scope="module")
def exact(problem: InverseProblem) -> Tensor:
    solution = model(LBFGS(2000, 1e-12))(problem)
    assert solution.residual.max() < 1e-10
    return solution.x.detach()


def test_with_all_views_it_is_gradient_descent(problem: InverseProblem) -> None:
    gamma = step_size(problem)
    online = model(OnlineGradientDescent(7, 0, n_views=N_VIEWS, step_size=gamma))(problem)
    batch = model(Picard(7, 0, iteration=GradientDescent(gamma)))(problem)
    torch.testing.assert_close(online.x, batch.x)
    torch.testing.assert_close(online.residual, batch.residual)
    assert online.n_gradients[0] == batch.n_gradients[0] + 1  # the residual of the start


def test_more_views_than_there_are_are_refused_in_words(problem: InverseProblem) -> None:
    expected = (
        rf"Radon: expected an online .* n_views of at most the {N_VIEWS} blocks .*, got {N_VIEWS + 1}; lower n_views"
    )
    with pytest.raises(ValueError, match=expected):
        online(problem, 3, n_views=N_VIEWS + 1)
    rule = OnlineImplicit(n_views=N_VIEWS + 1, max_steps=3, step_size=step_size(problem))
    with pytest.raises(ValueError, match=expected):
        gradients(model(LBFGS(20, 1e-3), rule), problem)


@pytest.mark.parametrize("n_views", [1, 4, 6])
def test_residual_is_that_of_all_views(problem: InverseProblem, n_views: int) -> None:
    reconstruction = model(OnlineGradientDescent(20, 0.5, n_views=n_views, step_size=step_size(problem)))
    solution, objective = reconstruction(problem), reconstruction.objective(problem)
    start = problem.A.initialize(problem.y)
    torch.testing.assert_close(solution.residual, norm(objective.grad(solution.x)) / norm(objective.grad(start)))
    assert torch.equal(solution.converged, solution.residual <= 0.5)
    assert (solution.n_gradients == 20 + 3).all()  # all steps, both ends, and the one that is differentiated


def test_distance_to_the_solution_shrinks_with_the_step_as_theory_says(problem: InverseProblem, exact: Tensor) -> None:
    """Constant steps: E‖x − x*‖² of order γ, the mean of many iterates nearer. Over a factor of 16 in γ."""
    distances = []
    for shorter in (1.0, 1 / 4, 1 / 16):
        n_steps = int(300 / shorter)
        solver = OnlineGradientDescent(n_steps, 0, n_views=4, step_size=shorter * step_size(problem))
        found, late = model(solver).requires_grad_(False), []
        found.solver(
            found.objective(problem),
            exact,
            scale=torch.ones(2, dtype=torch.float64),
            watch=lambda samples, state, late=late: late.append(norm(state.iterate - exact).square()),
        )
        distances.append(float(torch.stack(late[len(late) // 2 :]).mean().sqrt()))
    slopes = [math.log(a / b) / math.log(4) for a, b in itertools.pairwise(distances)]
    assert all(0.4 < slope < 0.65 for slope in slopes), (distances, slopes)
    single, averaged = (relative(online(problem, 1500, average=n), exact) for n in (1, 1000))
    assert averaged < single / 4


def test_diminishing_steps_converge(problem: InverseProblem, exact: Tensor) -> None:
    distances = [relative(online(problem, n, decay=0.6), exact) for n in (100, 2000)]
    assert distances[1] < 0.05 and distances[1] < distances[0] / 2


def test_momentum_is_faster(problem: InverseProblem, exact: Tensor) -> None:
    plain, fast = (relative(online(problem, 40, N_VIEWS, 0.2, momentum=m), exact) for m in (0.0, 0.7))
    assert fast < plain / 3


def test_sets_follow_from_the_seed_alone(problem: InverseProblem) -> None:
    reconstruction, before = model(OnlineGradientDescent(5, 0, n_views=3, step_size=1.0)), torch.get_rng_state()
    first, second, third = (reconstruction(problem, seed=seed).x for seed in (1, 2, 1))
    assert torch.equal(first, third) and not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_step_looks_at_its_views_alone(problem: InverseProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward; all views are seen in the passes that tell the residuals, no more than n at a time."""
    seen, project, settings = [], Radon.forward, {"n_views": 3, "step_size": step_size(problem)}
    monkeypatch.setattr(Radon, "forward", lambda A, x: seen.append(A.n_blocks) or project(A, x))
    reconstruction = model(OnlineGradientDescent(7, 0, **settings), OnlineImplicit(max_steps=6, **settings))
    reconstruction(problem).x.sum().backward()
    assert seen == [3] * (4 + 7 + 4 + 5 + 4)  # start, steps, end; steps of the adjoint solve, and its residual


def gradients(reconstruction: Reconstruction, problem: InverseProblem) -> tuple[Tensor, Reconstruction]:
    assert problem.x is not None
    solution = reconstruction(problem)
    (solution.x - problem.x).square().sum().backward()
    return torch.cat([p.grad.flatten() for p in reconstruction.parameters() if p.grad is not None]), solution


def test_gradients_with_all_views_are_the_implicit_ones(problem: InverseProblem) -> None:
    forward = LBFGS(2000, 1e-12)
    expected, _ = gradients(model(forward, Implicit(ConjugateGradient(500, 1e-12))), problem)
    found, solution = gradients(
        model(forward, OnlineImplicit(n_views=N_VIEWS, max_steps=3000, step_size=step_size(problem))), problem
    )
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)
    assert solution.adjoint.solution.residual.max() < 1e-9 and solution.adjoint.solution.converged.all()
    assert (solution.adjoint.solution.n_products == 3000).all()


def test_online_gradients_are_near_the_implicit_ones(problem: InverseProblem) -> None:
    """With a third of the views, forward and backward: nearer in longer runs, off if one set is shared."""

    def cosine(found: Tensor) -> float:
        return float(torch.nn.functional.cosine_similarity(found, expected, dim=0))

    expected, _ = gradients(model(LBFGS(2000, 1e-12), Implicit(ConjugateGradient(500, 1e-12))), problem)
    cosines = {}
    for n_steps, shared in ((100, False), (1000, False), (1000, True)):
        settings = {"n_views": 4, "step_size": step_size(problem), "average": n_steps // 2}
        forward = OnlineGradientDescent(n_steps, 0, **settings)
        backward = OnlineImplicit(max_steps=n_steps + 1, shared=shared, **settings)
        cosines[n_steps, shared] = cosine(gradients(model(forward, backward), problem)[0])
    assert cosines[100, False] > 0.9 and cosines[1000, False] > 0.99
    assert cosines[1000, True] < cosines[1000, False]


def test_no_adjoint_step_waits_for_a_number_of_the_host(problem: InverseProblem) -> None:
    """Seen outside of a backward pass, into which no mode reaches."""
    rule, objective = OnlineImplicit(4, step_size=step_size(problem), max_steps=5), model(LBFGS()).objective(problem)
    with torch.no_grad(), Uploads() as uploads:
        rule._solve(objective, problem.x, lambda u: u, problem.x)
    assert uploads.count == 0


def test_unrolling_differentiates_through_the_sets_that_were_drawn(problem: InverseProblem) -> None:
    reconstruction = model(OnlineGradientDescent(4, 0, n_views=3, step_size=step_size(problem)), Unrolled()).eval()
    loss = lambda: reconstruction(problem).x.square().sum()  # noqa: E731
    (slope,) = torch.autograd.grad(loss(), reconstruction.log_strength)
    with torch.no_grad():
        values = []
        for h in (1e-5, -1e-5):
            reconstruction.log_strength += h
            values.append(loss())
            reconstruction.log_strength -= h
    torch.testing.assert_close(slope, (values[0] - values[1]) / 2e-5, rtol=1e-6, atol=0)


def test_no_sample_depends_on_its_batch_mates(problem: InverseProblem) -> None:
    reconstruction = model(OnlineGradientDescent(9, 0, n_views=3, step_size=step_size(problem))).eval()
    whole = reconstruction(problem).x
    for i in range(2):
        one = torch.tensor([i])
        alone = InverseProblem(problem.A.select(one), problem.y[one])
        torch.testing.assert_close(reconstruction(alone).x, whole[one])


def test_without_views_it_is_gradient_descent_too() -> None:
    x = draw(2, 1, 4, 4)
    online = model(OnlineGradientDescent(5, 0, n_views=1, step_size=0.1))(InverseProblem(Identity(), x)).x
    torch.testing.assert_close(online, model(Picard(5, 0, GradientDescent(0.1)))(InverseProblem(Identity(), x)).x)


def test_a_start_that_is_good_already_takes_all_steps(problem: InverseProblem) -> None:
    """The threshold is for what is returned: neither an estimate nor a start from the last visit ends the iteration."""
    reconstruction = model(OnlineGradientDescent(30, 0.9, n_views=4, step_size=step_size(problem)))
    first = reconstruction(problem)
    assert first.converged.all() and first.scale is not None
    again = reconstruction(problem, (first.x.detach(), first.scale))
    assert torch.equal(again.n_gradients, first.n_gradients) and (again.x != first.x).any()


def test_lower_precision_early_in_the_solve_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match=r"no dtype of the evaluation with OnlineGradientDescent, .* bfloat16"):
        Reconstruction(Convex(), OnlineGradientDescent(5), evaluation=Evaluation(dtype="bfloat16"))


@pytest.mark.parametrize(
    "make",
    [
        lambda: OnlineGradientDescent(step_size=0),
        lambda: OnlineGradientDescent(decay=2),
        lambda: OnlineImplicit(average=0),
        lambda: OnlineGradientDescent(5, n_views=0),
        lambda: OnlineGradientDescent(5, momentum=1.0),
        lambda: OnlineGradientDescent(5, average=6),
        lambda: OnlineImplicit(max_steps=1),
        lambda: OnlineImplicit(n_views=0),
        lambda: OnlineImplicit(max_steps=5, average=5),
    ],
)
def test_bad_arguments_are_refused_in_words(make) -> None:
    with pytest.raises(ValueError, match=r"Online\w+: expected .* got"):
        make()
