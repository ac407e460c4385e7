"""The penalty on the Jacobian against dense matrices."""

from __future__ import annotations

import math

import pytest
import torch

from elder.models.penalties import JacobianPenalty, jacobian_norm
from elder.models.reconstruction import Reconstruction
from elder.models.regularizers import FieldsOfExperts, LogCosh, Prior, Ridge, Spline, UntiedExperts, WeaklyConvex
from elder.operators import InverseProblem, Mask
from elder.solvers import Picard
from tests.solvers.problems import draw


def prior(kind: str) -> Prior:
    torch.manual_seed(0)
    if kind == "ridge":
        return Ridge(1, widths=[2, 4], kernel_size=3, potential=WeaklyConvex(3.0, 4.0)).double()
    experts = FieldsOfExperts(1, 4, 3, LogCosh(3.0)).double()
    untied = UntiedExperts(experts).double()
    with torch.no_grad():
        untied.synthesis += 0.2 * draw(*untied.synthesis.shape, seed=5)
    return experts if kind == "experts" else untied


@pytest.mark.parametrize("kind", ["experts", "ridge", "untied"])
def test_penalty_and_its_gradient_are_those_of_the_dense_jacobian(kind: str) -> None:
    R = prior(kind)
    reconstruct = Reconstruction(R, Picard(), strength=0.3).double()
    x = draw(2, 1, 6, 5, seed=1).cumsum(-1) / 3
    problem = InverseProblem(Mask(torch.ones(1, 1, 6, 5, dtype=torch.float64)), x)
    parameters = [p for p in reconstruct.parameters() if p.requires_grad]

    def dense() -> torch.Tensor:
        def field(u: torch.Tensor) -> torch.Tensor:
            return reconstruct.strength * R.grad(u.reshape(1, 1, 6, 5)).flatten()

        norms = []
        for sample in x:
            J = torch.autograd.functional.jacobian(field, sample.flatten(), create_graph=True)
            assert isinstance(J, torch.Tensor)
            norms.append(torch.linalg.matrix_norm(J, 2))
        return torch.stack(norms)

    expected = dense()
    found = jacobian_norm(reconstruct.objective(problem), x, 400)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    penalty = JacobianPenalty(0.5, 400)(reconstruct.objective(problem), x)
    torch.testing.assert_close(penalty, 0.5 * expected.mean(), rtol=1e-6, atol=0)
    gradients = [torch.autograd.grad(v, parameters, allow_unused=True) for v in (penalty, 0.5 * expected.mean())]
    assert any(g is not None and g.norm() > 1e-3 for g in gradients[1])
    for one, other in zip(*gradients, strict=True):
        if other is None:
            assert one is None or not one.any()
        else:
            assert one is not None
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_bad_arguments_are_refused() -> None:
    for weight in (-1, math.nan):
        with pytest.raises(
            ValueError, match=rf"JacobianPenalty: expected 0 <= weight < ∞, n_.* every >= 1, got {weight}"
        ):
            JacobianPenalty(weight)


def test_solutions_count_as_constants() -> None:
    reconstruct, x = Reconstruction(prior("experts"), Picard(), strength=0.3).double(), draw(2, 1, 6, 5, seed=1)
    objective = reconstruct.objective(InverseProblem(Mask(torch.ones(1, 1, 6, 5, dtype=torch.float64)), x))
    leaf = x.clone().requires_grad_()
    penalty = JacobianPenalty()
    penalty(objective, 1.0 * leaf).backward()
    assert leaf.grad is None and penalty.n_products == 22


def test_a_norm_that_jumps_is_warned_of() -> None:
    R = FieldsOfExperts(1, 4, 3, Spline(3.0)).double()
    x = draw(2, 1, 6, 5, seed=1)
    problem = InverseProblem(Mask(torch.ones(1, 1, 6, 5, dtype=torch.float64)), x)
    with pytest.warns(UserWarning, match="JacobianPenalty: the second derivative of Spline jumps, so that the norm"):
        JacobianPenalty()(Reconstruction(R, Picard()).double().objective(problem), x)
