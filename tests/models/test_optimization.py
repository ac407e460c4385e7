"""Where training must end."""

import pytest
import torch

from elder.ablation.running.failures import Kind, classify
from elder.models.optimization import StrengthBounds, configured


@pytest.mark.parametrize("rate", [-1000.0, float("nan")])
def test_a_rate_does_not_climb(rate: float) -> None:
    with pytest.raises(ValueError, match=f"scalar_rate: expected a number >= 0, .*got {rate}"):
        configured(torch.optim.Adam, None, "epoch", [], [], rate)


@pytest.mark.parametrize("strength", [1e-7, 1e7, float("nan"), float("inf"), 0.0])
def test_a_strength_out_of_bounds_is_a_divergence(strength: float) -> None:
    StrengthBounds("AdversarialModule", 0.1).check(3.0, 5)
    with pytest.raises(
        FloatingPointError, match=r"^AdversarialModule: the strength diverged, from 1 to .* by step 5; fix"
    ) as error:
        StrengthBounds("AdversarialModule", 1.0).check(strength, 5)
    assert classify(1, f"error: {error.value}").kind == Kind.DIVERGENCE  # which is not tried again
