"""Ridge regularizers: the formula, the potentials, the norm of the filters, and how convex they are."""

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
import torch

from elder.linalg import inner
from elder.models.regularizers import Convex, Ridge, WeaklyConvex, ridge
from tests.models.test_regularizers import monotonicity
from tests.solvers.problems import draw


@pytest.mark.parametrize("potential", [Convex(3.0), WeaklyConvex(3.0, 4.0)], ids=["convex", "weakly-convex"])
def test_ridge_is_its_formula(potential):
    """Σ_i s_i⁻² Σ ψ(s_i W_i x / ‖W‖) with the chain's kernels multiplied out by another library."""
    torch.manual_seed(1)
    R, x = Ridge(1, (2, 3), 3, potential).double(), draw(1, 1, 9, 8)
    with torch.no_grad():
        R.log_scale.copy_(torch.tensor([0.1, 0.5, -0.3]))
        first, second = (w.numpy() for w in R.filters)
        first = first - first.mean((2, 3), keepdims=True)
        responses = []
        for i in range(3):
            kernel = sum(scipy.signal.convolve2d(first[j, 0], second[i, j]) for j in range(2))
            responses.append(scipy.ndimage.correlate(x[0, 0].numpy(), kernel, mode="mirror"))
        scale = R.log_scale.exp().numpy()[:, None, None]
        t = scale * np.stack(responses) / R.norm().item()
        expected = (potential(torch.from_numpy(t)).numpy() / scale**2).sum()
        assert R.value(x).item() == pytest.approx(expected, rel=1e-12)


# Potentials


def phi(t: torch.Tensor) -> torch.Tensor:
    return (1 + t.square()).sqrt() - 1


@pytest.mark.parametrize("potential", [Convex(1.0), WeaklyConvex(1.0, 5.0)], ids=["convex", "weakly-convex"])
def test_potentials_are_even_and_bent_as_promised(potential):
    t = torch.linspace(-30, 30, 4001, dtype=torch.float64)
    value, slope = potential(t), torch.func.grad(lambda u: potential(u).sum())(t)
    curvature = torch.func.grad(lambda u: torch.func.grad(lambda w: potential(w).sum())(u).sum())(t)
    beta = 5.0
    expected = phi(t) if isinstance(potential, Convex) else phi(beta * t) / beta - phi(t)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(value, value.flip(0))
    assert potential(torch.zeros(1)).item() == 0 and (value >= 0).all()
    if isinstance(potential, Convex):
        assert curvature.min() > 0 and curvature.max() <= 1
    else:
        assert -1 <= curvature.min() < -0.3, "concave somewhere, as the name says"
        assert slope[-1].abs() < 0.01, "edges cost little more when they grow"
    total, closed = potential.sum_and_slope(t.reshape(1, 1, 4001, 1))
    torch.testing.assert_close(total[0, 0], value.sum(), rtol=1e-12, atol=0)
    torch.testing.assert_close(closed.flatten(), slope, rtol=1e-10, atol=1e-12)
    check = t[::400].reshape(1, 1, -1, 1).requires_grad_()
    assert torch.autograd.gradcheck(potential.sum_and_slope, check)
    assert torch.autograd.gradgradcheck(potential.sum_and_slope, check)


@pytest.mark.parametrize("potential", [Convex(1.0), WeaklyConvex(1.0, 5.0)], ids=["convex", "weakly-convex"])
def test_potentials_do_not_cancel_in_single_precision(potential):
    t = torch.tensor([1e-5, 1e-3, 1e-2])
    torch.testing.assert_close(potential(t).double(), potential(t.double()), rtol=1e-5, atol=0)
    total, slope = potential.sum_and_slope(t.reshape(3, 1, 1))
    exact_total, exact_slope = potential.sum_and_slope(t.double().reshape(3, 1, 1))
    torch.testing.assert_close(total.double(), exact_total, rtol=1e-5, atol=0)
    torch.testing.assert_close(slope.double(), exact_slope, rtol=1e-5, atol=0)


# Normalisation


def dense_filters(R: Ridge, shape: tuple[int, int, int], border: str) -> torch.Tensor:
    """The matrix of all filters before normalisation, for images of this shape that continue as `border` says."""
    basis = torch.eye(int(np.prod(shape)), dtype=torch.float64).reshape(-1, *shape)
    u = torch.nn.functional.pad(basis, (R.radius,) * 4, mode=border)
    first, *others = R.filters
    for weight in (first - first.mean((2, 3), keepdim=True), *others):
        u = torch.nn.functional.conv2d(u, weight)
    return u.flatten(1).T.detach()


@pytest.mark.parametrize(("channels", "widths"), [(1, (3, 4)), (1, (2,)), (3, (4, 5)), (2, (6,))])
def test_ridge_norm_is_exact_for_one_channel_on_its_grid_and_a_bound_for_more(channels, widths):
    """On a periodic image of the grid's size W is diagonal in frequency, and a dense SVD is the truth."""
    torch.manual_seed(1)
    R = Ridge(channels, widths, 3).double()
    size = 4 * R.radius + 1
    true = torch.linalg.matrix_norm(dense_filters(R, (channels, size, size), "circular"), ord=2)
    estimate = R.norm().detach()
    if channels == 1:
        torch.testing.assert_close(estimate, true)
    else:
        assert true < estimate <= channels**0.5 * true


def test_mirrored_border_raises_the_norm_by_a_factor_of_less_than_two():
    """The mirrored image is part of a periodic one of at most four times its energy; one of a few pixels is the worst.

    Random filters of the default size stay within an eighth of their estimated norm.
    """
    for seed in range(2):
        torch.manual_seed(seed)
        R = Ridge().double()
        true = torch.linalg.matrix_norm(dense_filters(R, (1, 20, 20), "reflect"), ord=2)
        assert 0.9 < true / R.norm() < 1.125
        small = Ridge(1, (1,), 3).double()
        periodic = torch.linalg.matrix_norm(dense_filters(small, (1, 4, 4), "circular"), ord=2)
        mirrored = torch.linalg.matrix_norm(dense_filters(small, (1, 3, 3), "reflect"), ord=2)
        assert periodic < mirrored < 2 * periodic  # mirroring three pixels gives a period of four


def test_weakly_convex_ridge_is_not_convex_but_nearly():
    """−‖W‖² ≤ ⟨∇R(x) − ∇R(y), x − y⟩ / ‖x − y‖², negative along the lowest eigenvector of the Hessian."""
    torch.manual_seed(1)
    R, x = Ridge(1, (3, 4), 3, WeaklyConvex(5.0, 4.0)).double(), draw(1, 1, 12, 12)
    norm = torch.linalg.matrix_norm(dense_filters(R, (1, 12, 12), "reflect") / R.norm().detach(), ord=2)
    assert min(monotonicity(R, scale).min() for scale in (0.1, 0.3, 1.0, 10.0)) >= -norm.square()
    hessian = torch.autograd.functional.hessian(lambda u: R.value(u).sum(), x)
    lowest, direction = (part[..., 0] for part in torch.linalg.eigh(hessian.reshape(144, 144)))
    y = x + 1e-4 * direction.reshape(x.shape)
    found = inner(R.grad(x) - R.grad(y), x - y) / inner(x - y, x - y)
    assert -norm.square() <= lowest < -0.1 and found.item() == pytest.approx(lowest.item(), rel=1e-2)


def test_brightness_costs_no_precision():
    """Filters do not see it, but transforms in single precision would round the rest by it."""
    torch.manual_seed(0)
    R, x = Ridge(2, (4, 8), 5), (255 * torch.rand(2, 2, 40, 36)).round() / 256
    exact = R.double().value_and_grad(x.double())[1]
    R = R.float()

    def error(brightness):
        return ((R.value_and_grad(x + brightness)[1].double() - exact).norm() / exact.norm()).item()

    assert error(torch.tensor([64.0, -64.0])[:, None, None]) < 2 * error(0.0) < 1e-5


def test_filters_one_at_a_time_or_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """R, ∇R, and the derivatives of ∇R in the image and in all parameters."""
    torch.manual_seed(0)
    R, (x, v) = Ridge(2, (4, 7), 3).double(), draw(2, 2, 2, 12, 11)
    x.requires_grad_()

    def results() -> list[torch.Tensor]:
        value, grad = R.value_and_grad(x)
        return [value, grad, *torch.autograd.grad(inner(grad, v).sum(), [x, *R.parameters()])]

    assert ridge._filters_at_once((16, 16), x.device) >= 7
    together = results()
    monkeypatch.setattr(ridge, "_CACHED", 3 * 16**2)  # groups of three, three and one
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert ridge._filters_at_once((16, 16), x.device) == 3
    for one, other in zip(results(), together, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_images_no_larger_than_their_mirrored_border_are_refused_in_words():
    assert Ridge().radius == 6 and Ridge().grad(torch.zeros(1, 1, 7, 9)).shape == (1, 1, 7, 9)
    with pytest.raises(ValueError, match=r"Ridge: expected images of more than 6 x 6 pixels, .* got 9 x 6; use"):
        Ridge().grad(torch.zeros(1, 1, 9, 6))
