"""Plug-in use of a denoiser and unrolled training, as choices of prior, solver and backward rule."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from elder.models.networks import Network
from elder.models.reconstruction import Reconstruction
from elder.models.regularizers import ImplicitResidual, Prior, REDPotential, Residual
from elder.operators import InverseProblem, LeastSquares, Mask
from elder.solvers import (
    LBFGS,
    BacktrackingProximalGradient,
    GradientDescent,
    JacobianFree,
    Picard,
    ProximalGradient,
    Solver,
    Unrolled,
)
from tests.runs import ROOT, run, write_config

N, STRENGTH = 6, 0.4
DOCUMENT = (ROOT / "docs" / "training.md").read_text()


class Smoothing(Network):
    """The linear denoiser Wx of a symmetric W with eigenvalues in [0, 1)."""

    channels = 1

    def __init__(self) -> None:
        super().__init__()
        Q = torch.linalg.qr(torch.rand(N * N, N * N, generator=torch.Generator().manual_seed(0)).double()).Q
        self.matrix = torch.nn.Parameter(Q @ torch.diag(torch.linspace(0.1, 0.9, N * N).double()) @ Q.T)

    def evaluate(self, x: Tensor, sigma: Tensor | None = None):
        W = self.matrix
        return (x.flatten(1) @ W.T).view_as(x), lambda v: (v.flatten(1) @ W).view_as(v)


def problem() -> InverseProblem:
    random = torch.Generator().manual_seed(1)
    A = Mask(torch.rand(1, 1, N, N, generator=random) < 0.6)
    return InverseProblem(A, A(torch.rand(2, 1, N, N, generator=random, dtype=torch.float64)))


def closed_form(matrix: Tensor) -> Tensor:
    """(AᴴA + λM)⁻¹Aᴴy, where λMx is the field of the prior."""
    measured = problem()
    gram = torch.diag(measured.A.gram(torch.ones(1, 1, N, N).double()).flatten())
    strength = torch.tensor(STRENGTH).log().exp()  # as it is kept
    right = measured.A.adjoint(measured.y).flatten(1)
    return torch.linalg.solve(gram + strength * matrix, right.T).T.view_as(measured.y)


PLUG_IN: dict[str, tuple[type[Prior], Solver, int]] = {
    "plug and play": (ImplicitResidual, Picard(3000, 1e-10, ProximalGradient(1.0)), 1),
    "regularization by denoising": (ImplicitResidual, Picard(3000, 1e-10, GradientDescent(0.7)), 1),
    "its potential": (REDPotential, LBFGS(3000, 1e-10), 1),
    "gradient step": (Residual, BacktrackingProximalGradient(9000, 1e-10), 2),
}


@pytest.mark.parametrize("name", PLUG_IN)
def test_a_linear_denoiser_is_plugged_in(name: str) -> None:
    family, solver, power = PLUG_IN[name]
    network = Smoothing()
    with torch.no_grad():
        found = Reconstruction(family(network), solver, strength=STRENGTH)(problem())
        residual = torch.eye(N * N).double() - network.matrix
        expected = closed_form(torch.linalg.matrix_power(residual, power))
    assert found.converged.all()
    torch.testing.assert_close(found.x, expected, rtol=1e-6, atol=1e-7)


def test_a_step_of_plug_and_play_denoises_and_then_projects() -> None:
    """λ = γ = 1: x¹ = prox_g(N(x⁰))."""
    network, measured = Smoothing(), problem()
    model = Reconstruction(ImplicitResidual(network), Picard(1, 0.0, ProximalGradient(1.0)), strength=1.0)
    with torch.no_grad():
        x0 = measured.A.initialize(measured.y)
        expected = LeastSquares().prox(network(x0), measured.A, measured.y, torch.tensor(1.0).double())
        torch.testing.assert_close(model(measured).x, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("n_steps", [1, 4])
def test_unrolled_training_differentiates_every_step(n_steps: int) -> None:
    network, measured = Smoothing(), problem()
    solver = Picard(n_steps, 0.0, ProximalGradient(0.8))
    model = Reconstruction(Residual(network), solver, Unrolled(), strength=STRENGTH)
    solution = model(measured)
    found = torch.autograd.grad(solution.x.square().sum(), list(model.parameters()))
    assert (solution.n_gradients == n_steps + 1).all()

    x = measured.A.initialize(measured.y)
    for _ in range(n_steps):
        r = x - network(x)
        field = r - (r.flatten(1) @ network.matrix).view_as(r)
        z = x - 0.8 * model.strength * field
        x = LeastSquares().prox(z, measured.A, measured.y, torch.tensor(0.8).double())
    expected = torch.autograd.grad(x.square().sum(), list(model.parameters()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)  # the strength is in single precision
    short = Reconstruction(Residual(network), solver, JacobianFree(ProximalGradient(0.8)), strength=STRENGTH)
    biased = torch.autograd.grad(short(measured).x.square().sum(), list(short.parameters()))
    assert (biased[0] - expected[0]).norm() > 1e-2 * expected[0].norm()


@pytest.mark.parametrize("block", range(DOCUMENT.count("```yaml")))
def test_every_configuration_of_the_document_is_one(
    tmp_path: Path, block: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "document.yaml"
    path.write_text(re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)[block])
    with pytest.raises(SystemExit) as end:
        run("fit", write_config(tmp_path), f"--config={path}", "--print_config")
    assert end.value.code == 0, capsys.readouterr().err
