"""Total deep variation: its published size, its formula, its cost, and a start from which it learns."""

import pytest
import torch

from elder.models.regularizers import ICNN, TDV
from tests.models.learning import denoising_losses
from tests.models.test_networks import flops, product_with_hessian
from tests.solvers.problems import draw


def instance(channels: int = 1, scales: int = 3) -> TDV:
    torch.manual_seed(1)
    return TDV(channels, 3, 2, scales, 2.0).double()


def test_number_of_parameters_is_the_published_one():
    """3 blocks of 5 residual blocks, 2 × 32 × 32 × 3×3 each, and 4 changes of scale; filters and output."""
    assert sum(p.numel() for p in TDV(1).parameters()) == 3 * (5 * 2 + 4) * 9 * 32**2 + 9 * 32 + 32 == 387_392


@pytest.mark.parametrize("size", [(8, 12), (7, 9), (3, 1)], ids=str)
@pytest.mark.parametrize("scales", [1, 3])
def test_value_is_its_formula(size, scales):
    """Block after block as the paper draws them, on lists of features."""
    R, x = instance(2, scales), draw(2, 2, *size)
    conv = torch.nn.functional.conv2d

    def residual(u, block):
        t = conv(u, block[0].weight, padding=1)
        return u + conv(0.5 * torch.log(1 + t * t), block[1].weight, padding=1)

    binomial = torch.outer(*[torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64)] * 2)[None, None] / 64

    def every_channel(f, u):
        return torch.cat([f(one) for one in u.split(1, dim=1)], dim=1)

    def halved(u):
        return every_channel(lambda one: conv(torch.nn.functional.pad(one, (1, 1, 1, 1)), binomial)[:, :, ::2, ::2], u)

    def doubled(u):
        shape = (*u.shape[:2], 2 * u.shape[2], 2 * u.shape[3])
        _, transpose = torch.func.vjp(halved, torch.zeros(shape, dtype=u.dtype))
        return 4 * transpose(u)[0]

    multiple = 2 ** (scales - 1)
    rows, columns = (torch.arange(-(-n // multiple) * multiple).clamp_max(n - 1) for n in size)
    whole = x[:, :, rows][:, :, :, columns]
    filters = R.filters - R.filters.mean((2, 3), keepdim=True)
    features = [conv(torch.nn.functional.pad(whole, (1, 1, 1, 1), mode="replicate"), 2.0 * filters)]
    features += [0.0] * (scales - 1)
    for block in R.blocks:
        for i in range(scales - 1):
            features[i] = residual(features[i], block.descending[i])
            features[i + 1] = features[i + 1] + conv(halved(features[i]), block.down[i].weight, padding=1)
        features[-1] = residual(features[-1], block.bottom)
        for i in reversed(range(scales - 1)):
            above = doubled(conv(features[i + 1], block.up[i].weight, padding=1))
            features[i] = residual(features[i] + above, block.ascending[i])
    energy = torch.einsum("bchw,c->bhw", features[0], R.weight)[:, : size[0], : size[1]] / 2.0**2
    torch.testing.assert_close(R.value(x), energy.sum((1, 2)), rtol=1e-11, atol=1e-12)


def test_gradient_and_hessian_product_cost_at_most_two_passes_each():
    """The product a little less: what is linear and next to the output has no part in it."""
    R, x = instance().requires_grad_(False), draw(1, 1, 16, 16)
    once = flops(lambda: R.value(x))
    assert once > 0
    assert flops(lambda: R.value_and_grad(x)) == 2 * once
    assert 1.8 * once < flops(product_with_hessian(R, x)) <= 2 * once


def test_learns_to_denoise_from_its_start():
    noisy, first, last = denoising_losses(lambda: TDV(1, 6, 1, 2))
    assert first < 2 * noisy and last < 0.5 * noisy


@pytest.mark.parametrize("family", ["icnn", "tdv"])
def test_lower_precision_stays_inside(family):
    torch.manual_seed(1)
    R = ICNN(2, 4, 3, 3.0) if family == "icnn" else TDV(2, 3, 2, 3, 2.0)
    x = draw(2, 1, 9, 10, dtype=torch.complex64)
    with torch.autocast("cpu", torch.bfloat16):
        value, gradient = R.value_and_grad(x)
    assert value.dtype == torch.float32 and gradient.dtype == torch.complex64
    assert 0 < (gradient - R.grad(x)).norm() < 0.05 * R.grad(x).norm()


def test_bad_arguments_are_refused_in_words():
    with pytest.raises(ValueError, match=r"TDV: expected positive sizes and scale, got channels=1, features=0"):
        TDV(features=0)
