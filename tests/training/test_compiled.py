"""Every family compiles into one graph, which is the eager evaluation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from elder.models.evaluation import Evaluation, Evaluator
from elder.models.networks import DRUNet, Network
from elder.models.regularizers import (
    ICNN,
    TDV,
    ImplicitResidual,
    Prior,
    REDPotential,
    Regularizer,
    Residual,
    ScalarPotential,
    Scaled,
)


def network() -> Network:
    return DRUNet(1, (2, 3), 1, noise_map=True)


FAMILIES: dict[str, Callable[[], Prior]] = {
    "residual": lambda: Residual(network()),
    "RED potential": lambda: REDPotential(network()),
    "scalar potential": lambda: Scaled(ScalarPotential(network())),
    "implicit": lambda: ImplicitResidual(network()),
    "input-convex": lambda: ICNN(1, 3, 3),
    "total deep variation": lambda: TDV(1, 3, 1, 2),
}


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # Dynamo's own doing
@pytest.mark.parametrize("name", FAMILIES)
def test_the_compiled_family_is_the_eager_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through Dynamo and the ahead-of-time graph; Inductor's code generation is torch's own to test."""
    compile, graphs = torch.compile, []

    def without_inductor(function: Callable, mode: str, **options: bool) -> Callable:
        graphs.append(mode)
        return compile(function, backend="aot_eager", **options)

    monkeypatch.setattr(torch, "compile", without_inductor)
    prior = FAMILIES[name]().double()
    evaluate = Evaluator(prior, Evaluation(compile="default"))
    x, sigma = torch.rand(2, 1, 9, 8, dtype=torch.float64), torch.full((2,), 0.1, dtype=torch.float64)
    with torch.no_grad():
        found = evaluate(x, sigma, None)
        expected = prior.value_and_grad(x, sigma) if isinstance(prior, Regularizer) else prior.grad(x, sigma)
    assert graphs == ["default"]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
