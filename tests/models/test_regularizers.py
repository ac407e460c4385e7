"""Every regularizer is a functional with a symmetric Hessian, sample by sample, in every grad mode; each formula."""

import itertools
import math

import pytest
import torch

from elder.linalg import inner, to_channels
from elder.models.networks import DnCNN, DRUNet
from elder.models.objective import Objective
from elder.models.regularizers import (
    ICNN,
    TDV,
    Channelwise,
    Confined,
    Convex,
    DeadZone,
    DenseExperts,
    Experts,
    FieldsOfExperts,
    ImplicitResidual,
    LogCosh,
    Potential,
    Prior,
    Quadratic,
    Rectified,
    REDPotential,
    Regularizer,
    Residual,
    Ridge,
    ScalarPotential,
    Scaled,
    ScaledField,
    Spline,
    StudentT,
    Surrounded,
    TotalVariation,
    UntiedExperts,
    WeaklyConvex,
)
from elder.models.weights import restore_prior, write_prior
from elder.operators import Identity, LeastSquares
from tests.properties import concrete_subclasses, random_like
from tests.solvers.problems import draw
from tests.solvers.synchronization import Synchronizations, Uploads

FAMILIES = {
    "total-variation": lambda channels: TotalVariation(0.3),
    "ridge-convex": lambda channels: Ridge(channels, (3, 4), 3, Convex(2.0)),
    "ridge-weakly-convex": lambda channels: Ridge(channels, (3, 4), 3, WeaklyConvex(2.0, 4.0)),
    "experts": lambda channels: FieldsOfExperts(channels, 5, 3, LogCosh(2.0)),
    "experts-normalized": lambda channels: FieldsOfExperts(channels, 6, 5, StudentT(2.0), "random", normalized=True),
    "experts-spline": lambda channels: FieldsOfExperts(channels, 4, 3, Spline(2.0), "differences"),
    "experts-quadratic": lambda channels: FieldsOfExperts(channels, 4, 3, Quadratic()),
    "dense-rectified": lambda channels, size=(16, 16): DenseExperts(size, channels, 9, Rectified(2.0)),
    "dense-dead-zone": lambda channels, size=(16, 16): DenseExperts(size, channels, 9, DeadZone(2.0)),
    "residual": lambda channels: Residual(DnCNN(channels, 6, 2)),
    "residual-drunet": lambda channels: Residual(DRUNet(channels, (4, 6, 8), 1)),
    "residual-drunet-noise-map": lambda channels: Residual(DRUNet(channels, (3, 4, 5, 6), 2, noise_map=True)),
    "residual-noise-map": lambda channels: Residual(DnCNN(channels, 6, 2, noise_map=True)),
    "red": lambda channels: REDPotential(DRUNet(channels, (4, 6, 8), 1)),
    "red-noise-map": lambda channels: REDPotential(DnCNN(channels, 6, 2, noise_map=True)),
    "scalar": lambda channels: ScalarPotential(DnCNN(channels, 6, 2)),
    "scalar-noise-map": lambda channels: ScalarPotential(DRUNet(channels, (4, 6, 8), 1, noise_map=True)),
    "icnn": lambda channels: ICNN(channels, 4, 3, 3.0),
    "tdv": lambda channels: TDV(channels, 3, 2, 2, 2.0),
    "confined": lambda channels: Confined(REDPotential(DnCNN(channels, 6, 2)), 0.7),
    "channelwise": lambda channels: Channelwise(Scaled(REDPotential(DnCNN(1, 6, 2, noise_map=True)), reference=0.2)),
    "surrounded": lambda channels: Surrounded(Ridge(channels, (3, 4), 3, WeaklyConvex(2.0, 4.0)), 2),
    "scaled": lambda channels: Scaled(Residual(DnCNN(channels, 6, 2, noise_map=True)), 1.5, 0.7),
    "scaled-ridge": lambda channels: Scaled(Ridge(channels, (3, 4), 3, WeaklyConvex(2.0, 4.0)), 1.5, 0.7),
    "scaled-with-the-noise": lambda channels: Scaled(ICNN(channels, 3, 3, 2.0), 1.5, 0.7, reference=0.2),
}
IMAGES = {  # sizes that are and are not multiples of 8
    "gray-16x16": ((2, 1, 16, 16), torch.float64),
    "gray-13x18": ((2, 1, 13, 18), torch.float64),
    "colour-13x18": ((2, 3, 13, 18), torch.float64),
    "complex-13x18": ((2, 1, 13, 18), torch.complex128),
}
SIGMA = torch.tensor([0.1, 0.4], dtype=torch.float64)
every_family = pytest.mark.parametrize("family", FAMILIES)
every_learned_family = pytest.mark.parametrize("family", [f for f in FAMILIES if f != "total-variation"])
every_image = pytest.mark.parametrize("image", IMAGES)


def instance(family: str, image: str) -> tuple[Regularizer, torch.Tensor]:
    shape, dtype = IMAGES[image]
    torch.manual_seed(1)
    x = draw(*shape, dtype=dtype, seed=2)
    size = {"size": shape[-2:]} if family.startswith("dense") else {}
    return FAMILIES[family](to_channels(x).shape[1], **size).double(), x


def test_every_regularizer_and_potential_is_tested():
    tested = [family(1) for family in FAMILIES.values()]
    assert concrete_subclasses(Regularizer) == {type(R) for R in tested}
    fields = {ImplicitResidual, ScaledField, UntiedExperts}
    assert concrete_subclasses(Prior) - concrete_subclasses(Regularizer) == fields
    with_potential = (R for R in tested if isinstance(R, Ridge | Experts))
    assert concrete_subclasses(Potential) == {type(R.potential) for R in with_potential}


# What every regularizer has in common


@every_family
@every_image
def test_gradient_is_that_of_the_value(family, image):
    R, x = instance(family, image)
    gradient, h = R.grad(x, SIGMA), 1e-5
    assert gradient.shape == x.shape and gradient.dtype == x.dtype
    for seed in range(3):
        d = draw(*x.shape, dtype=x.dtype, seed=seed)
        difference = (R.value(x + h * d, SIGMA) - R.value(x - h * d, SIGMA)) / (2 * h)
        torch.testing.assert_close(inner(gradient, d), difference, rtol=1e-6, atol=1e-7)


@every_family
@every_image
def test_hessian_is_symmetric_and_that_of_the_gradient(family, image):
    R, x = instance(family, image)
    leaf = x.clone().requires_grad_()
    gradient = R.grad(leaf, SIGMA)
    u, v = draw(*x.shape, dtype=x.dtype, seed=3), draw(*x.shape, dtype=x.dtype, seed=4)
    Hu, Hv = (torch.autograd.grad(gradient, leaf, w, retain_graph=True)[0] for w in (u, v))
    assert Hu.norm() > 1e-3 * u.norm(), "a Hessian that vanishes is symmetric, too"
    torch.testing.assert_close(inner(u, Hv), inner(Hu, v), rtol=0, atol=1e-10 * float(Hu.norm() * v.norm()))
    h = 1e-7  # ELU″ jumps at 0: the fewer responses cross it, the better
    difference = (R.grad(x + h * u, SIGMA) - R.grad(x - h * u, SIGMA)) / (2 * h)
    torch.testing.assert_close(Hu, difference, rtol=1e-5, atol=1e-6)


@every_family
@every_image
def test_value_and_gradient_in_one_pass_are_the_derived_ones(family, image):
    R, x = instance(family, image)
    value, gradient = R.value_and_grad(x, SIGMA)
    torch.testing.assert_close(value, R.value(x, SIGMA), rtol=1e-12, atol=1e-12)
    derived = torch.func.grad(lambda u: R.value(u, SIGMA).sum())(x)
    torch.testing.assert_close(gradient, derived, rtol=1e-10, atol=1e-12)
    assert torch.equal(R.grad(x, SIGMA), gradient) and torch.equal(R.score(x, SIGMA), -gradient)


@every_learned_family
@every_image
def test_derivatives_of_the_gradient_are_those_of_the_derived_one(family, image):
    """Products with the Hessian and ∂/∂θ ⟨w, ∇R_θ(x)⟩, whichever way the gradient is computed."""
    R, x = instance(family, image)
    inputs, w = [x.clone().requires_grad_(), *R.parameters()], draw(*x.shape, dtype=x.dtype, seed=5)
    found = torch.autograd.grad(R.grad(inputs[0], SIGMA), inputs, w, materialize_grads=True)
    derived = Regularizer.value_and_grad(R, inputs[0], SIGMA)[1]
    expected = torch.autograd.grad(derived, inputs, w, materialize_grads=True)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@every_family
@every_image
def test_sample_does_not_depend_on_its_batch(family, image):
    R, x = instance(family, image)
    value, gradient = R.value_and_grad(x, SIGMA)
    assert value.shape == (2,)
    for i in range(2):
        alone = R.value_and_grad(x[i : i + 1], SIGMA[i : i + 1])
        torch.testing.assert_close(alone[0][0], value[i], rtol=1e-12, atol=0)
        torch.testing.assert_close(alone[1][0], gradient[i], rtol=1e-12, atol=1e-14)


@every_family
@pytest.mark.parametrize("image", ["gray-13x18", "complex-13x18"])
def test_argument_and_grad_mode_are_left_alone(family, image):
    R, x = instance(family, image)
    before = x.clone()
    results = [R.value_and_grad(x, SIGMA)]
    learned = any(p.requires_grad for p in R.parameters())
    assert results[0][1].requires_grad == learned and torch.is_grad_enabled()
    with torch.no_grad():
        results.append(R.value_and_grad(x, SIGMA))
        assert not results[1][1].requires_grad and not torch.is_grad_enabled()
    with torch.inference_mode():
        results.append(R.value_and_grad(x, SIGMA))
        assert torch.is_inference_mode_enabled()
    assert not x.requires_grad and x.grad is None and torch.equal(x, before)
    for value, gradient in results[1:]:
        torch.testing.assert_close(value.clone(), results[0][0].detach(), rtol=1e-14, atol=0)
        torch.testing.assert_close(gradient.clone(), results[0][1].detach(), rtol=1e-14, atol=1e-15)


@every_family
def test_autocast_lowers_what_it_is_said_to(family):
    """The value as well as its gradient; what it leaves alone keeps the smaller rounding error."""
    R, x = instance(family, "gray-13x18")
    R, x, sigma = R.float(), x.float(), SIGMA.float()
    full = [R.value(x, sigma), *R.value_and_grad(x, sigma)]
    with torch.autocast("cpu", torch.bfloat16):
        low = [R.value(x, sigma), *R.value_and_grad(x, sigma)]
        f = Objective(Identity(), x, LeastSquares(), R, torch.ones(()))
        assert f.precision == torch.finfo(torch.bfloat16 if R.lowered else torch.float32).eps
    assert all(torch.equal(u, v) != R.lowered for u, v in zip(full, low, strict=True))


@every_family
def test_an_evaluation_does_not_wait_for_a_device(family):
    """The meta device has no numbers to give to the host."""
    R, sigma = FAMILIES[family](1).to("meta"), SIGMA.float().to("meta")
    with Synchronizations() as waits, Uploads() as uploads:
        R.value_and_grad(torch.empty(2, 1, 16, 16, device="meta"), sigma)
    assert waits.found == [] and uploads.count == 0


@every_learned_family
@pytest.mark.parametrize("image", ["gray-13x18", "complex-13x18"])
def test_gradient_in_the_parameters(family, image):
    """∂/∂θ ⟨w, ∇R_θ(x)⟩, which is what training needs, against differences along one direction of θ."""
    R, x = instance(family, image)
    theta = dict(R.named_parameters())
    w = draw(*x.shape, dtype=x.dtype, seed=5)

    def scalar(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        gradient = torch.func.functional_call(_Gradient(R), {f"R.{k}": v for k, v in parameters.items()}, (x, SIGMA))
        return inner(w, gradient).sum()

    gradients = torch.autograd.grad(inner(w, R.grad(x, SIGMA)).sum(), list(theta.values()))
    direction = {name: random_like(p, seed=6 + i) for i, (name, p) in enumerate(theta.items())}
    h = 1e-6
    with torch.no_grad():
        plus, minus = ({k: p + s * h * direction[k] for k, p in theta.items()} for s in (1, -1))
        difference = (scalar(plus) - scalar(minus)) / (2 * h)
    derivative = torch.stack([(g * d).sum() for g, d in zip(gradients, direction.values(), strict=True)]).sum()
    torch.testing.assert_close(derivative, difference, rtol=1e-6, atol=1e-7)


class _Gradient(torch.nn.Module):
    def __init__(self, R: Regularizer) -> None:
        super().__init__()
        self.R = R

    def forward(self, x, sigma):
        return self.R.grad(x, sigma)


@every_family
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo's own
def test_compiled_gradient_is_the_same_and_differentiable(family):
    R, x = instance(family, "gray-13x18")
    torch.compiler.reset()
    compiled = torch.compile(R.value_and_grad, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, SIGMA), R.value_and_grad(x, SIGMA), rtol=1e-12, atol=1e-13)
    compiled = torch.compile(R.grad, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, SIGMA), R.grad(x, SIGMA), rtol=1e-12, atol=1e-13)
    inputs = [x.clone().requires_grad_(), *R.parameters()]
    w = draw(*x.shape, seed=5)
    found, expected = (
        torch.autograd.grad(f(inputs[0], SIGMA), inputs, w, allow_unused=True, materialize_grads=True)
        for f in (compiled, R.grad)
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("total-variation", "channelwise", "surrounded")])
def test_wrong_number_of_channels_is_refused_in_words(family):
    R = FAMILIES[family](1).double()
    with pytest.raises(ValueError, match=r"expected images of 1 real channels, got 3 from a real image \(2, 3, 8, 8\)"):
        R.value(draw(2, 3, 8, 8), SIGMA)
    with pytest.raises(ValueError, match=r"got 2 from a complex image .*set `channels: 2`"):
        R.grad(draw(2, 1, 8, 8, dtype=torch.complex128), SIGMA)


# Convexity


def monotonicity(R: Regularizer, scale: float, shape: tuple[int, ...] = (1, 1, 12, 12)) -> torch.Tensor:
    """⟨∇R(x) − ∇R(y), x − y⟩ / ‖x − y‖² for many pairs of images, far apart and close together."""
    found = []
    for seed, distance in itertools.product(range(20), (1e-3, 0.1, 1.0, 10.0)):
        x = scale * draw(*shape, seed=seed)
        y = x + distance * scale * draw(*shape, seed=100 + seed)
        found.append(inner(R.grad(x) - R.grad(y), x - y) / inner(x - y, x - y))
    return torch.cat(found).detach()


@pytest.mark.parametrize(
    "R",
    [TotalVariation(0.1), Ridge(1, (3, 4), 3, Convex(5.0)).double(), ICNN(1, 4, 3, 5.0).double()],
    ids=["tv", "ridge", "icnn"],
)
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_convex_regularizers_have_a_monotone_gradient(R, scale):
    assert monotonicity(R, scale).min() >= -1e-12


# Formulas


def test_total_variation_is_the_sum_over_pixels():
    x, epsilon = draw(1, 2, 5, 7), 0.2
    total = 0.0
    for i, j in itertools.product(range(5), range(7)):
        square = 0.0
        for c in range(2):
            square += (x[0, c, i + 1, j] - x[0, c, i, j]) ** 2 if i < 4 else 0.0
            square += (x[0, c, i, j + 1] - x[0, c, i, j]) ** 2 if j < 6 else 0.0
        total += (square + epsilon**2) ** 0.5 - epsilon
    torch.testing.assert_close(TotalVariation(epsilon).value(x)[0], total)
    as_complex = torch.complex(x[:, :1], x[:, 1:])
    torch.testing.assert_close(TotalVariation(epsilon).value(as_complex)[0], total)


@pytest.mark.parametrize("family", ["total-variation", "ridge-convex", "ridge-weakly-convex", "icnn", "tdv"])
def test_constants_cost_nothing(family):
    R, x = instance(family, "colour-13x18")
    shift = torch.tensor([0.3, -2.0, 5.0], dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(R.value(x + shift), R.value(x))
    assert R.value(0 * x + shift).abs().max() < 1e-14


def test_bad_arguments_are_refused_in_words():
    with pytest.raises(ValueError, match=r"TotalVariation: expected epsilon > 0 .*, got 0"):
        TotalVariation(0.0)
    with pytest.raises(ValueError, match="Ridge: expected an odd kernel_size, got 4"):
        Ridge(kernel_size=4)
    with pytest.raises(ValueError, match=r"Convex: expected 0 < scale < ∞, got -1"):
        Convex(-1.0)
    with pytest.raises(ValueError, match="WeaklyConvex: expected 1 < beta < ∞, got 1"):
        WeaklyConvex(beta=1.0)
    with pytest.raises(ValueError, match="WeaklyConvex: expected 0 < scale < ∞, got nan"):
        WeaklyConvex(float("nan"))


def test_channelwise_is_the_sum_over_channels_at_the_noise_level_of_each_image():
    R = Residual(DnCNN(1, 6, 2, noise_map=True)).double()
    x = draw(2, 3, 9, 8, dtype=torch.complex128)
    parts = [part[:, c : c + 1] for part in (x.real, x.imag) for c in range(3)]
    torch.testing.assert_close(Channelwise(R).value(x, SIGMA), sum(R.value(part, SIGMA) for part in parts))
    grads = [R.grad(part, SIGMA) for part in parts]
    expected = torch.complex(torch.cat(grads[:3], dim=1), torch.cat(grads[3:], dim=1))
    torch.testing.assert_close(Channelwise(R).grad(x, SIGMA), expected)


def test_what_is_within_a_wrapper_gives_it_its_weights(tmp_path):
    trained = REDPotential(DnCNN(1, 2, 1))
    write_prior(tmp_path / "prior.safetensors", trained, {"noise": [0.1, 0.2]})
    wrapped = Confined(Channelwise(REDPotential(DnCNN(1, 2, 1))))
    assert restore_prior(wrapped, tmp_path / "prior.safetensors") == (0.1, 0.2)
    torch.testing.assert_close(list(wrapped.parameters()), list(trained.parameters()), rtol=0, atol=0)


def test_surrounded_sees_constants_by_their_step_to_the_medium():
    x = torch.full((1, 1, 9, 7), 0.8, dtype=torch.float64)
    assert TotalVariation(1e-6).value(x).item() == 0
    steps = 2 * 9 + 2 * 7 + math.sqrt(2) - 2  # one pixel steps down to the right and below at once
    assert Surrounded(TotalVariation(1e-6)).value(x).item() == pytest.approx(0.8 * steps, rel=1e-4)
    with pytest.raises(ValueError, match="Surrounded: expected margin >= 1 pixel, got 0"):
        Surrounded(TotalVariation(), margin=0)
