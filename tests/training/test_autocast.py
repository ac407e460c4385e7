"""Autocast lowers the network, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from elder.models.networks import DnCNN
from elder.models.reconstruction import Reconstruction
from elder.models.regularizers import (
    ImplicitResidual,
    Prior,
    REDPotential,
    Residual,
    Ridge,
    Scaled,
    TotalVariation,
)
from elder.operators import Identity, InverseProblem, LinearOperator
from elder.reporting.metrics_log import read_metrics
from elder.solvers import (
    LBFGS,
    BacktrackingProximalGradient,
    BackwardRule,
    GradientDescent,
    Implicit,
    JacobianFree,
    Picard,
    Solver,
    Unrolled,
)
from tests.runs import refuse, run, write_config

RULES = {"Implicit": Implicit(), "JacobianFree": JacobianFree(), "Unrolled": Unrolled()}
MODULES = {
    "DenoisingModule": {"regularizer": {"class_path": "Residual", "init_args": {"network": "DnCNN"}}},
    "ReconstructionModule": {
        "reconstruction": {
            "prior": {"class_path": "Residual", "init_args": {"network": "DnCNN"}},
            "solver": {"class_path": "BacktrackingProximalGradient", "init_args": {"tol": 1e-2}},
        }
    },
}


class Product(LinearOperator):
    """A matrix product, which autocast would compute in half precision; so would be the start Aᴴy."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix.mT

    def adjoint(self, y: Tensor) -> Tensor:
        return y @ self.matrix

    def select(self, samples: Tensor) -> LinearOperator:
        return self


def problem() -> InverseProblem:
    random = torch.Generator().manual_seed(0)
    A = Product(torch.rand(1, 1, 8, 8, generator=random) / 8 + torch.eye(8))
    return InverseProblem(A, A(torch.rand(2, 1, 8, 8, generator=random)))


def hypergradient(model: Reconstruction, lowered: bool) -> tuple[Tensor, Tensor]:
    """x̂, and the gradient of ‖x̂‖² in every parameter: none may be left out."""
    model.zero_grad()
    measured = problem()
    with torch.autocast("cpu", torch.bfloat16, enabled=lowered):
        x = model(measured).x
        loss = x.square().sum()
    loss.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(grads) == len(list(model.parameters()))
    return x.detach(), torch.cat([grad.flatten() for grad in grads])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("family", [Residual, REDPotential, ImplicitResidual])
def test_gradients_under_autocast_are_those_of_full_precision(family: type[Prior], rule: str) -> None:
    """The solve without a graph and the step with one share autocast's copies of the weights: none may lose its own."""
    slow = Picard(60, 2e-3, GradientDescent(0.2))
    solver: Solver = slow if family is ImplicitResidual else BacktrackingProximalGradient(60, 2e-3)
    model = Reconstruction(family(DnCNN(1, 6, 2)), solver, RULES[rule], strength=0.3)
    (x, g), (x_low, g_low) = hypergradient(model, False), hypergradient(model, True)
    assert x_low.dtype == torch.float32
    assert 0 < (x_low - x).norm() < 5e-3 * x.norm()
    assert torch.nn.functional.cosine_similarity(g_low, g, 0) > 0.999
    assert (g_low - g).norm() < 0.05 * g.norm()


class Nothing(Prior):
    """The field 0, so that all that is left of a reconstruction is physics."""

    def grad(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        return torch.zeros_like(x)


@pytest.mark.parametrize("max_steps", [1, 5])
def test_physics_and_iterates_stay_in_full_precision(max_steps: int) -> None:
    model = Reconstruction(Nothing(), Picard(max_steps, 0.0), Unrolled())
    measured = problem()
    expected = model(measured)
    with torch.autocast("cpu", torch.bfloat16):
        assert measured.A(measured.y).dtype == torch.bfloat16  # it does reach this operator
        found = model(measured)
    assert torch.equal(found.x, expected.x) and torch.equal(found.residual, expected.residual)


@pytest.mark.parametrize(
    ("solver", "rule", "dtype", "place"),
    [
        (LBFGS(tol=9e-4), Unrolled(), torch.bfloat16, "solver"),
        (LBFGS(tol=1e-3), Implicit(tol=5e-4), torch.bfloat16, "backward rule"),
        (LBFGS(tol=1e-4), Unrolled(), torch.float16, "solver"),
    ],
)
def test_tolerances_below_the_rounding_of_autocast_are_refused(
    solver: Solver, rule: BackwardRule, dtype: torch.dtype, place: str
) -> None:
    model = Reconstruction(Residual(DnCNN(1, 4, 1)), solver, rule)
    y = InverseProblem(Identity(), torch.rand(1, 1, 8, 8))
    with torch.autocast("cpu", dtype), pytest.raises(ValueError, match=f"of the {place} under autocast"):
        model(y)
    model(y)  # in full precision they are reachable
    for solver in (LBFGS(3, 0.0), LBFGS(30, torch.finfo(dtype).eps / 8)):
        with torch.autocast("cpu", dtype):
            Reconstruction(model.prior, solver, Unrolled())(y)


@pytest.mark.parametrize("prior", [Ridge(1, (2, 4), 3), TotalVariation(), Scaled(Ridge(1, (2, 4), 3))])
def test_a_prior_that_autocast_leaves_alone_meets_any_tolerance(prior: Prior) -> None:
    model, measured = Reconstruction(prior, LBFGS(tol=2e-6), Implicit(tol=2e-6)), problem()
    expected = model(measured)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(measured)
    assert found.converged.all() and torch.equal(found.x, expected.x)


@pytest.mark.filterwarnings("ignore:.*solves fell short")
@pytest.mark.parametrize("module", MODULES)
def test_a_run_in_mixed_precision(tmp_path: Path, module: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(
        tmp_path,
        trainer__limit_val_batches=1,
        trainer__max_epochs=1,
        model={"class_path": module, "init_args": MODULES[module]},
        data__init_args__acquisition={
            "class_path": "Denoising",
            "init_args": {"noise": {"class_path": "Gaussian", "init_args": {"sigma": 0.1}}},
        },
    )
    network = "regularizer" if module == "DenoisingModule" else "reconstruction.prior"
    small = [f"--model.{network}.network.features=4", f"--model.{network}.network.depth=2"]
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        run("fit", config, *small, f"--trainer.precision={precision}", f"--run_dir={tmp_path / precision}")
        lines = read_metrics(tmp_path / precision / "metrics.jsonl")
        losses[precision] = [line["train/loss"] for line in lines if "train/loss" in line]
    assert losses["bf16-mixed"] != losses["32-true"]
    assert losses["bf16-mixed"] == pytest.approx(losses["32-true"], rel=1e-2)
    if module == "ReconstructionModule":
        tight = ["--model.reconstruction.solver.tol=1e-4", "--trainer.precision=bf16-mixed", "--trainer.fast_dev_run=1"]
        assert "expected tol >= 9.8e-04 of the solver under autocast" in refuse(
            capsys, "fit", "--config", str(config), *small, *tight
        )
