"""Functionals and the field over a network: their formulas, and which networks they take."""

import pytest
import torch

from elder.linalg import inner, to_channels
from elder.models.networks import DnCNN, DRUNet
from elder.models.regularizers import ImplicitResidual, REDPotential, Regularizer, Residual, ScalarPotential
from tests.properties import random_like
from tests.solvers.problems import draw

FUNCTIONALS = [Residual, REDPotential, ScalarPotential]
every_functional = pytest.mark.parametrize("functional", FUNCTIONALS, ids=lambda cls: cls.__name__)


@every_functional
def test_gradient_is_its_formula(functional):
    """With a dense Jacobian J: ∇½‖r‖² = r − Jᵀr for r = x − N(x), ∇½⟨x, r⟩ = x − ½(N(x) + Jᵀx), ∇ΣN(x) = Jᵀ1."""
    torch.manual_seed(1)
    network, x = DnCNN(1, 6, 2).double(), draw(1, 1, 5, 6)
    N, J, u = network(x).flatten(), torch.func.jacrev(network)(x).reshape(30, 30), x.flatten()
    r = u - N
    value, gradient = {
        Residual: (0.5 * r @ r, r - J.T @ r),
        REDPotential: (0.5 * u @ r, u - 0.5 * (N + J.T @ u)),
        ScalarPotential: (N.sum(), J.sum(0)),
    }[functional]
    torch.testing.assert_close(functional(network).value(x)[0], value)
    torch.testing.assert_close(functional(network).grad(x).flatten(), gradient)


@every_functional
def test_network_of_relus_is_refused(functional):
    for network in (DnCNN(1, 2, 1, activation="relu"), DRUNet(1, (2,), 1, activation="relu")):
        with pytest.raises(ValueError, match=f"{functional.__name__}: expected a smooth network, .* got a .* of ReLUs"):
            functional(network)


@every_functional
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_lower_precision_is_that_of_the_network_alone(functional, dtype):
    torch.manual_seed(1)
    R, x = functional(DnCNN(2 if dtype.is_complex else 1, 6, 2)), draw(2, 1, 8, 8, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        value, gradient = R.value_and_grad(x)
        alone = R.value(x)
    assert value.dtype == alone.dtype == torch.float32 and gradient.dtype == dtype
    for low, full in zip((value, gradient), R.value_and_grad(x), strict=True):
        assert 0 < (low - full).norm() < 0.03 * full.norm()


# The field


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("activation", ["elu", "relu"])
@pytest.mark.parametrize("network", [DnCNN, DRUNet], ids=lambda cls: cls.__name__)
def test_implicit_residual_is_the_field_of_its_formula(network, activation, dtype):
    torch.manual_seed(1)
    sizes = (4, 2) if network is DnCNN else ((3, 4), 1)
    x, sigma = draw(2, 1, 7, 9, dtype=dtype), torch.tensor([0.1, 0.4], dtype=torch.float64)
    N = network(to_channels(x).shape[1], *sizes, noise_map=True, activation=activation).double()
    prior = ImplicitResidual(N)
    field = prior.grad(x, sigma)
    assert field.shape == x.shape and field.dtype == x.dtype
    torch.testing.assert_close(to_channels(field), to_channels(x) - N(to_channels(x), sigma))
    for i in range(2):
        alone = prior.grad(x[i : i + 1], sigma[i : i + 1])
        torch.testing.assert_close(alone[0], field[i], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("activation", ["elu", "relu"])
def test_implicit_residual_is_differentiable_in_image_and_parameters(activation):
    torch.manual_seed(1)
    prior, x, w = (
        ImplicitResidual(DnCNN(1, 4, 2, activation=activation)).double(),
        draw(1, 1, 6, 7),
        draw(1, 1, 6, 7, seed=3),
    )
    names, theta = zip(*prior.named_parameters(), strict=True)

    def scalar(x: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
        return inner(
            w,
            torch.func.functional_call(
                _Field(prior), {f"prior.{n}": t for n, t in zip(names, theta, strict=True)}, (x,)
            ),
        )[0]

    inputs = [x.requires_grad_(), *theta]
    derivative = torch.autograd.grad(inner(w, prior.grad(x))[0], inputs)
    directions = [random_like(t, seed=5 + i) for i, t in enumerate(inputs)]
    h = 1e-7
    with torch.no_grad():
        ends = [scalar(*(t + s * h * d for t, d in zip(inputs, directions, strict=True))) for s in (1, -1)]
    expected = (ends[0] - ends[1]) / (2 * h)
    found = sum((g * d).sum() for g, d in zip(derivative, directions, strict=True))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


class _Field(torch.nn.Module):
    def __init__(self, prior: ImplicitResidual) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.prior.grad(x)


def test_implicit_residual_has_no_value():
    prior = ImplicitResidual(DnCNN(1, 2, 1))
    assert not isinstance(prior, Regularizer) and not hasattr(prior, "value") and not hasattr(prior, "value_and_grad")


def test_implicit_residual_is_not_conservative():
    """Its Jacobian is not symmetric: what the functionals of the same network are made to mend."""
    torch.manual_seed(1)
    J = torch.func.jacrev(ImplicitResidual(DnCNN(1, 4, 2)).double().grad)(draw(1, 1, 5, 5)).reshape(25, 25)
    assert (J - J.T).norm() > 1e-2 * J.norm()
