"""What single precision hides: of ∇f where there is hardly any noise, and of f near its minimum."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from elder.models.networks import DnCNN
from elder.models.reconstruction import Reconstruction
from elder.models.regularizers import Convex, ImplicitResidual, Ridge
from elder.models.tracing import Increases, trace
from elder.operators import (
    CircularBlur,
    GaussianKernel,
    InverseProblem,
    LinearOperator,
    Mask,
    RealSampling,
    SuperResolution,
    multi_coil,
)
from elder.operators.sampling import RadialMask
from elder.solvers import (
    GMRES,
    Anderson,
    BacktrackingProximalGradient,
    Implicit,
    PlugAndPlay,
    PreconditionedLBFGS,
)
from elder.solvers.descent import within_rounding
from tests.models.test_regularizers import FAMILIES

SIZE = 64


PROBLEMS = ("sampling", "inpainting", "coils")


def problem(name: str) -> InverseProblem:
    """Two smooth images (2, 1, 64, 64) of values about 1: their norm is 10⁴ times that of λ∇R."""
    axis, phase = torch.linspace(0, 1, SIZE), torch.tensor([0.0, 1.0])[:, None, None, None]
    x = 1 + 0.3 * torch.sin(9 * axis[:, None] + phase) * torch.cos(14 * axis)
    mask = RadialMask(0.3)((SIZE, SIZE))[None, None]
    if name == "coils":
        x, maps = x.to(torch.complex64), torch.full((1, 2, SIZE, SIZE), 0.5**0.5 + 0j)
        A: LinearOperator = multi_coil(mask[..., SIZE // 2, None, :], maps)
    else:
        A = RealSampling(mask) if name == "sampling" else Mask(mask)
    return InverseProblem(A, A(x), x)


def doubled(p: InverseProblem) -> InverseProblem:
    return InverseProblem(deepcopy(p.A).double(), p.y.to(torch.promote_types(p.y.dtype, torch.float64)))


def reconstruction(name: str) -> Reconstruction:
    torch.manual_seed(0)
    prior = Ridge(2 if name == "coils" else 1, (3, 4), 3, Convex(3.0))
    solver = PreconditionedLBFGS(max_steps=300, tol=1e-4)
    return Reconstruction(prior, solver, Implicit(GMRES(200, 1e-5), curvature=1.0), strength=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", PROBLEMS)
def test_a_residual_that_single_precision_hides_is_reached_all_the_same(name):
    made, p = reconstruction(name), problem(name)
    alone, solution = made.solver(made.objective(p), p.A.initialize(p.y)), made(p)
    exact = made.double()(doubled(p))
    assert not alone.converged.any()
    assert solution.converged.all()
    assert (solution.n_gradients < 1.3 * exact.n_gradients).all()
    assert (solution.x - exact.x).norm() < 0.2 * (alone.x - exact.x).norm()
    dtypes = {solution.x.dtype, solution.residual.dtype, solution.n_gradients.dtype, solution.scale.dtype}
    assert dtypes == {p.A.initialize(p.y).dtype, torch.float32}


@torch.no_grad()
def test_the_resolvent_of_super_resolution_is_exact_in_double_precision():
    """Proximal steps stall where (I + γAᴴA)⁻¹ inverts another A than that of ∇g, by a rounding error."""
    x = problem("inpainting").x
    A = SuperResolution(GaussianKernel(25, 1.6)().float(), (SIZE, SIZE), 2)
    p = InverseProblem(A, A(x), x)
    assert doubled(p).A.blur.otf.dtype == torch.complex128
    made = reconstruction("inpainting")
    made.solver = BacktrackingProximalGradient(300, 1e-5, step_size=3000.0)
    solution, exact = made(p), deepcopy(made).double()(doubled(p))
    assert solution.converged.all()
    assert (solution.n_gradients <= 1.1 * exact.n_gradients).all()


def test_its_gradients_are_those_of_double_precision():
    made, p = reconstruction("sampling"), problem("sampling")
    made.solver = PreconditionedLBFGS(max_steps=300, tol=1e-5)
    found = torch.autograd.grad(made(p).x.square().sum(), tuple(made.parameters()))
    expected = torch.autograd.grad(made.double()(doubled(p)).x.square().sum(), tuple(made.parameters()))
    assert all(u.dtype == torch.float32 for u in found)
    for u, v in zip(found, expected, strict=True):
        assert (u - v).norm() < 2e-2 * v.norm()


def test_what_single_precision_shows_is_left_to_it():
    p, made = problem("sampling"), reconstruction("sampling")
    f, x0 = made.objective(p), p.A.initialize(p.y)
    assert f.resolving(x0, 1e-4)[1].dtype == torch.float64
    assert f.resolving(x0, 1e-2)[0] is f
    assert f.resolving(x0, 0.0)[0] is f
    blur = CircularBlur(torch.ones(1, 1, 3, 3) / 9, (SIZE, SIZE))  # ∇g(Aᴴy) is large
    f = made.objective(InverseProblem(blur, p.x))
    assert f.resolving(blur.initialize(p.x), 1e-4)[0] is f


@torch.no_grad()
def test_a_field_and_a_trace_see_the_same():
    p = problem("inpainting")
    torch.manual_seed(0)
    field = ImplicitResidual(DnCNN(1, 4, 2, noise_map=True))
    made = Reconstruction(field, Anderson(100, 1e-4, PlugAndPlay()), strength=1e-4, sigma=0.1)
    assert made(p).x.dtype == torch.float32
    made = reconstruction("inpainting")
    increases = Increases(made.objective(p))
    traces, solution = trace(made, p), made(p, watch=increases)
    assert increases.count.tolist() == [0, 0]
    assert [t.total_gradients for t in traces] == solution.n_gradients.tolist()
    assert all(t.converged and t.increases == 0 for t in traces)


@torch.no_grad()
@pytest.mark.parametrize("family", [name for name in FAMILIES if "drunet" not in name])
@pytest.mark.parametrize("solver", [PreconditionedLBFGS, BacktrackingProximalGradient])
def test_f_of_every_family_rises_by_no_more_than_rounding(family, solver):
    """By f in double precision at the iterates of single precision, and a limit that no solver knows of."""
    torch.manual_seed(1)
    size = 16
    axis = torch.linspace(0, 1, size)
    x = (axis[:, None] > 0.4 + 0.3 * torch.sin(6 * axis)).float()[None, None]
    A = CircularBlur(torch.ones(1, 1, 3, 3) / 9, (size, size))
    p = InverseProblem(A, A(x) + 0.1 * torch.randn(x.shape), x, torch.full((1,), 0.1))
    made = Reconstruction(FAMILIES[family](1), solver(max_steps=60, tol=1e-7), strength=0.2, sigma=0.1)
    exact = deepcopy(made).double().objective(doubled(p)._replace(sigma=None))
    values: list[float] = []
    made(p, watch=lambda _, state: values.append(float(exact.value(state.x.double()))) if len(state.x) else None)
    path = torch.tensor(values, dtype=torch.float64)
    rises = path.diff() / path[:-1].abs()
    assert len(path) > 5 and rises.max() < 2e-6 and path[-1] < 0.99 * path[0]


def test_rounding_ends_at_ten_errors_for_a_solver_and_at_sixteen_for_the_count():
    p = problem("inpainting")
    f, one = reconstruction("inpainting").objective(p), torch.ones(2)
    for errors, rounding in ((9, True), (11, False)):
        assert within_rounding(f, one + errors * f.precision, one).all() == rounding
    for errors, count in ((15, 0), (17, 1)):
        increases = Increases(f)
        for value in (1.0, 1 + errors * f.precision):
            increases(torch.arange(2), PreconditionedLBFGS().start(f, p.x)._replace(value=torch.full((2,), value)))
        assert increases.count.tolist() == [count, count]


@pytest.mark.parametrize("place", ["solver", "backward rule"])
def test_a_tolerance_that_rounding_hides_is_refused_in_words(place):
    made, p = reconstruction("inpainting"), problem("inpainting")
    if place == "solver":
        made.solver = replace(made.solver, tol=1e-8)
    else:
        made.backward = Implicit(GMRES(200, 1e-8))
    with pytest.raises(ValueError, match=f"expected tol >= 1.5e-08 of the {place} in float32.*64-true"):
        made(p)
    made.double()(doubled(p))
