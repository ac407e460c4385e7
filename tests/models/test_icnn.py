"""The input-convex network: convex whatever its parameters, its formula, its cost, and a start from which it learns."""

import itertools

import pytest
import torch

from elder.linalg import inner
from elder.models.regularizers import ICNN
from tests.models.learning import denoising_losses
from tests.models.test_networks import flops, product_with_hessian
from tests.solvers.problems import draw


def instance(channels: int = 1, seed: int = 1, size: float = 1.0) -> ICNN:
    """With parameters of either sign and of any size."""
    R = ICNN(channels, 4, 3, 3.0).double()
    for i, parameter in enumerate(R.parameters()):
        parameter.data = size * draw(*parameter.shape, seed=seed + i)
    return R


def test_number_of_parameters():
    """5×5 filters, 32 × 32 × 5×5 weights between the layers, a bias and two outputs for each feature."""
    assert sum(p.numel() for p in ICNN(1).parameters()) == 32 * 25 + 32**2 * 25 + 3 * 32 == 26_496


@pytest.mark.parametrize("size", [0.3, 1.0, 3.0])
def test_convex_for_any_parameters(size):
    """Monotone gradient, and a value at every point between two images below that of the chord."""
    for seed, distance in itertools.product(range(4), (1e-2, 0.3, 3.0)):
        R, x = instance(seed=seed, size=size), draw(1, 1, 7, 8, seed=10 + seed)
        y = x + distance * draw(1, 1, 7, 8, seed=20 + seed)
        assert inner(R.grad(x) - R.grad(y), x - y) >= 0
        for t in (0.1, 0.5, 0.8):
            chord = t * R.value(x) + (1 - t) * R.value(y)
            assert R.value(t * x + (1 - t) * y) <= chord * (1 + 1e-12)


def test_zero_on_constants_and_positive_elsewhere():
    R = instance(3)
    constant = draw(1, 3, 1, 1).expand(1, 3, 6, 7)
    assert R.value(constant).abs() < 1e-13 and R.grad(constant).abs().max() < 1e-13
    assert R.value(constant + 0.1 * draw(1, 3, 6, 7)) > 1e-3


@pytest.mark.parametrize("size", [(6, 7), (2, 1)], ids=str)
def test_value_is_its_formula(size):
    R, x = instance(2), draw(2, 2, *size)
    filters = R.filters - R.filters.mean((2, 3), keepdim=True)
    rows, columns = (torch.arange(-1, n + 1).clamp(0, n - 1) for n in size)
    z1 = torch.sqrt(1 + (3.0 * torch.nn.functional.conv2d(x[:, :, rows][:, :, :, columns], filters)) ** 2) - 1
    z2 = torch.log1p(torch.exp(torch.nn.functional.conv2d(z1, R.root_mixing**2, R.bias, padding=1)))
    total = torch.einsum("bchw,c->b", z1, R.root_first**2)
    total += torch.einsum("bchw,c->b", z2 - torch.log1p(torch.exp(R.bias))[:, None, None], R.root_second**2)
    torch.testing.assert_close(R.value(x), total / 3.0**2)


def test_gradient_and_hessian_product_cost_two_passes_each():
    R, x = instance().requires_grad_(False), draw(1, 1, 16, 16)
    once = flops(lambda: R.value(x))
    assert once > 0
    assert flops(lambda: R.value_and_grad(x)) == 2 * once
    assert flops(product_with_hessian(R, x)) == 2 * once


def test_weights_that_have_decayed_are_zero_not_denormal(monkeypatch):
    R, seen, convolve = ICNN(1, 4), [], torch.nn.functional.conv2d
    R.root_mixing.data.mul_(torch.logspace(-25, 0, 4)[:, None, None, None])
    monkeypatch.setattr(
        torch.nn.functional, "conv2d", lambda u, w, *more, **named: seen.append(w) or convolve(u, w, *more, **named)
    )
    R.double().value(torch.rand(1, 1, 8, 8, dtype=torch.float64))
    mixing = seen[1]
    assert mixing.shape == R.root_mixing.shape and (mixing == 0).any() and (mixing > 1e-3).any()
    assert (mixing[mixing > 0] > torch.finfo(torch.float32).tiny).all()


def test_learns_to_denoise_from_its_start():
    noisy, first, last = denoising_losses(lambda: ICNN(1, 8))
    assert first < 0.6 * noisy and last < 0.85 * first


def test_bad_arguments_are_refused_in_words():
    with pytest.raises(ValueError, match=r"ICNN: expected .* an odd kernel_size .*, got .* kernel_size=4"):
        ICNN(kernel_size=4)
    with pytest.raises(ValueError, match=r"ICNN: expected positive sizes, .* got .* scale=0"):
        ICNN(scale=0.0)
