"""Fields of experts and their untied counterpart: potentials, filters, and the theorem that links their gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from decimal import Decimal, localcontext

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from elder.models.reconstruction import Reconstruction
from elder.models.regularizers import (
    Convex,
    DeadZone,
    DenseExperts,
    FieldsOfExperts,
    LogCosh,
    Potential,
    Quadratic,
    Rectified,
    Ridge,
    Spline,
    StudentT,
    UntiedExperts,
    WeaklyConvex,
)
from elder.models.regularizers.experts import Experts, check_learnable, largest_gain
from elder.operators import InverseProblem, Mask
from elder.solvers import GMRES, Anderson, GradientDescent, Implicit, Picard, Symmetric, Unrolled
from tests.solvers.problems import draw

EVEN = [Convex(3.0), WeaklyConvex(3.0, 4.0), LogCosh(3.0), StudentT(3.0), Spline(3.0, 7, 2.0), Quadratic()]
POTENTIALS = [*EVEN, Rectified(), DeadZone(threshold=0.5)]


def problem(lost: float = -0.3) -> InverseProblem:
    """Some of the pixels of two images, or all of them."""
    A = Mask((draw(1, 1, 8, 9, seed=3) > lost).double())
    x = draw(2, 1, 8, 9, seed=1).cumsum(-1) / 3
    return InverseProblem(A, A(x) + 0.05 * draw(2, 1, 8, 9, seed=2), x)


def experts(potential: Potential | None = None, **others) -> FieldsOfExperts:
    torch.manual_seed(0)
    model = FieldsOfExperts(1, 6, 3, potential or LogCosh(3.0), **others).double()
    with torch.no_grad():
        model.log_weights += draw(6, seed=4) / 5
        model.filters += draw(*model.filters.shape, seed=5) / 5
    return model


def dense(potential: Potential | None = None) -> DenseExperts:
    torch.manual_seed(0)
    model = DenseExperts((8, 9), 1, 100, potential or LogCosh(3.0)).double()
    with torch.no_grad():
        model.bias += draw(100, seed=4) / 5
    return model


FAMILIES = pytest.mark.parametrize("make", [experts, dense], ids=["convolutions", "dense"])


# Potentials


@pytest.mark.parametrize("potential", POTENTIALS, ids=lambda p: type(p).__name__)
def test_slope_is_the_derivative_and_the_sum_is_the_sum(potential: Potential) -> None:
    potential = potential.double()
    t = torch.linspace(-4, 4, 121, dtype=torch.float64).reshape(1, 1, 11, 11).requires_grad_()
    values = potential(t)
    (derivative,) = torch.autograd.grad(values.sum(), t)
    total, slope = potential.sum_and_slope(t)
    for found in (slope, potential.slope(t)):
        torch.testing.assert_close(found, derivative)
    torch.testing.assert_close(total, values.sum((-2, -1)))
    assert potential(torch.zeros(1)).abs() == 0 and (values >= 0).all()
    if potential in EVEN:
        torch.testing.assert_close(potential(-t), values)
        assert (values[t.abs() > 0] > 0).all()


@pytest.mark.parametrize("potential", POTENTIALS, ids=lambda p: type(p).__name__)
def test_curvature_is_the_difference_quotient_of_the_slope(potential: Potential) -> None:
    """At 0, too, where the responses of flat regions are; but for rectifiers, whose ψ″ jumps there."""
    potential, h = potential.double(), 1e-6
    t = torch.tensor([-1.3, -0.2, 0.0, 0.2, 1.3], dtype=torch.float64)
    t = t[(t != 0) | (not isinstance(potential, Rectified))].reshape(1, 1, 1, -1).requires_grad_()
    expected = (potential.slope(t + h) - potential.slope(t - h)) / (2 * h)
    (derived,) = torch.autograd.grad(potential(t).sum(), t, create_graph=True)
    for slope in (potential.slope(t), potential.sum_and_slope(t)[1], derived):
        torch.testing.assert_close(torch.autograd.grad(slope.sum(), t)[0], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("potential", EVEN, ids=lambda p: type(p).__name__)
def test_hessian_products_are_difference_quotients_where_half_of_the_image_is_flat(potential: Potential) -> None:
    R, h, x, u = experts(potential), 1e-6, problem().x.clone(), draw(2, 1, 8, 9, seed=6)
    x[..., :5] = 0
    product = torch.autograd.grad(R.grad(x.requires_grad_()), x, u)[0]
    expected = (R.grad(x + h * u) - R.grad(x - h * u)) / (2 * h)
    torch.testing.assert_close(product, expected, rtol=1e-6, atol=1e-7)


def test_log_cosh_is_exact_where_cosh_is_not() -> None:
    t = torch.tensor([1e-9, 1e-3, 1.0, 800.0], dtype=torch.float64)
    expected = torch.tensor([0.5e-18, 0.5e-6 - 1e-12 / 12, 0.433780830483027, 800 - 0.693147180559945])
    torch.testing.assert_close(LogCosh().double()(t), expected.double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 4e-7), (torch.float64, 1e-15)])
def test_log_cosh_is_that_of_many_digits(dtype: torch.dtype, rtol: float) -> None:
    t = torch.logspace(-6, 2.5, 300, dtype=dtype)
    with localcontext(prec=40):
        exact = [float(((number.exp() + (-number).exp()) / 2).ln()) for number in map(Decimal, t.tolist())]
    expected = torch.tensor(exact, dtype=torch.float64).to(dtype)
    torch.testing.assert_close(LogCosh()(t), expected, rtol=rtol, atol=0)


def test_log_cosh_is_finite_in_half_precision() -> None:
    t = torch.tensor([-3e4, -7.0, 3.0, 7.0, 300.0])
    torch.testing.assert_close(LogCosh()(t.half()).float(), LogCosh()(t), rtol=2e-3, atol=0)


def test_a_spline_is_smooth_across_knots_and_straight_beyond_the_last() -> None:
    spline = Spline(n_knots=5, reach=2.5).double()
    with torch.no_grad():
        spline.slopes.copy_(torch.tensor([0.4, 0.9, 0.2, 0.5, -0.1]))
    knots = 0.5 * torch.arange(1, 6).double()
    torch.testing.assert_close(spline.slope(knots), spline.slopes.detach())
    for function in (spline, spline.slope):
        torch.testing.assert_close(function(knots - 1e-9), function(knots + 1e-9), rtol=0, atol=1e-8)
    far = torch.tensor([3.0, 10.0], dtype=torch.float64)
    torch.testing.assert_close(spline.slope(far), torch.full_like(far, -0.1))
    trapezes = 0.5 * torch.tensor([0.2, 0.65, 0.55, 0.35, 0.2], dtype=torch.float64)
    torch.testing.assert_close(spline(knots), trapezes.cumsum(0))
    begun, t = Spline(n_knots=50).double(), torch.linspace(-4, 4, 33, dtype=torch.float64)
    torch.testing.assert_close(begun(t), Convex()(t), rtol=0, atol=2e-3)
    with pytest.raises(ValueError, match="expected n_knots >= 1 and reach > 0"):
        Spline(n_knots=0)


# Filters


def test_differences_are_those_of_total_variation() -> None:
    """Two filters, φ, up to the row and the column that mirroring adds."""
    R = FieldsOfExperts(1, 2, 3, Convex(10.0), "differences").double()
    x = draw(1, 1, 7, 6)
    rows, columns = x.diff(dim=-1) / 2**0.5, x.diff(dim=-2) / 2**0.5
    inside = sum(((1 + (10 * d).square()).sqrt() - 1).sum() for d in (rows, columns)) / 100
    edge = sum(
        ((1 + (10 * d).square()).sqrt() - 1).sum() / 100
        for d in ((x[..., -2] - x[..., -1]) / 2**0.5, (x[..., -2, :] - x[..., -1, :]) / 2**0.5)
    )
    torch.testing.assert_close(R.value(x), (inside + edge)[None])


@pytest.mark.parametrize("channels", [1, 3])
def test_cosines_are_orthonormal_and_see_no_constant(channels: int) -> None:
    bank = FieldsOfExperts(channels, channels * 24, 5, LogCosh(1.0)).filters.detach().flatten(1)
    torch.testing.assert_close(bank @ bank.T, torch.eye(channels * 24), atol=1e-5, rtol=0)
    assert bank.sum(1).abs().max() < 1e-5
    assert FieldsOfExperts(2, 7, 5, initial="random").filters.mean((1, 2, 3)).abs().max() < 1e-6


def test_normalized_filters_keep_their_norm() -> None:
    model = experts(normalized=True)
    before = float(largest_gain(model.bank(model.filters).detach()))
    with torch.no_grad():
        model.filters *= 7
    assert (
        float(largest_gain(model.bank(model.filters).detach()))
        == pytest.approx(before)
        == pytest.approx(float(model.gain))
    )
    spectrum = torch.fft.fft2(model.bank(model.filters)[:, 0].detach(), s=(90, 90)).flatten(1)
    assert float(torch.linalg.vector_norm(spectrum, dim=0).max()) == pytest.approx(before, rel=0.05)


@pytest.mark.parametrize("R", [FieldsOfExperts(2, 4, 5), DenseExperts((9, 8), 2, 4)], ids=lambda R: type(R).__name__)
def test_synthesis_is_the_transpose(R: Experts) -> None:
    R, u = R.double(), draw(3, 2, 9, 8, seed=2)
    bank, nothing = draw(*R.filters.shape, seed=1), torch.zeros_like(u)
    responses = R.analyse(u, bank) - R.analyse(nothing, bank)
    v = draw(*responses.shape, seed=3)
    torch.testing.assert_close((responses * v).sum(), (u * R.synthesise(v, bank, u)).sum())


def test_a_gradient_costs_two_convolutions() -> None:
    R, x = experts(), problem().x
    flops = []
    for function in (R.value, R.value_and_grad):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            function(x)
        flops.append(counter.get_total_flops())
    assert flops[1] == 2 * flops[0] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": 4}, "an odd kernel_size, got 1, 24 and 4"),
        ({"n_filters": 25}, "expected at most 24 filters of the kind DCT with 5 x 5 taps and 1 channels, got 25"),
        ({"n_filters": 6, "initial": "differences"}, "expected at most 5 filters of the kind differences"),
        ({"kernel_size": 1, "n_filters": 2, "initial": "differences"}, "expected kernel_size >= 3 for differences"),
        (
            {"kernel_size": 1, "n_filters": 2},
            "expected at most 0 filters of the kind DCT with 1 x 1 taps and 1 channels",
        ),
        ({"kernel_size": 1, "n_filters": 2, "initial": "random"}, "expected random filters of two taps or more"),
    ],
)
def test_bad_filters_are_refused_in_words(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FieldsOfExperts(**arguments)


def test_filters_that_have_vanished_are_told_of() -> None:
    R = FieldsOfExperts(normalized=True)
    with torch.no_grad():
        R.filters.zero_()
    with pytest.raises(FloatingPointError, match="training diverged, all filters have become zero; lower the"):
        R.value(torch.rand(1, 1, 8, 8))
    R = FieldsOfExperts()
    with torch.no_grad():
        R.filters.zero_()
    value, grad = R.value_and_grad(torch.rand(1, 1, 8, 8))  # an R that says nothing, which no solve minds
    assert not value.any() and not grad.any()
    ridge = Ridge(1, [2, 4], 3)
    with torch.no_grad():
        ridge.filters[0].zero_()
    with pytest.raises(FloatingPointError, match="Ridge: training diverged, all filters have become zero; lower the"):
        ridge.value_and_grad(torch.rand(1, 1, 8, 8))


def test_nothing_is_learned_from_filters_that_have_vanished() -> None:
    """But from those of analysis, where those of synthesis are others."""
    R, seen = experts(), problem()
    untied = UntiedExperts(experts())
    with torch.no_grad():
        R.filters.zero_()
        untied.experts.filters.zero_()
        assert Reconstruction(R, Picard(20, 1e-3), strength=0.1).double()(seen).converged.all()
    with pytest.raises(FloatingPointError, match=r"all filters are zero, .* and nothing is learned"):
        Reconstruction(R, Picard(20, 1e-3), strength=0.1).double()(seen)
    rule = Implicit(GMRES(100, 1e-8))
    model = Reconstruction(untied, Picard(20, 1e-3), rule, strength=0.1).double()
    assert gradients(model, -9)["prior.experts.filters"].any()
    with torch.no_grad():
        untied.synthesis.zero_()
    with pytest.raises(FloatingPointError, match=r"all filters are zero, .* and nothing is learned"):
        model(seen)


def test_offsets_teach_filters_of_dense_experts_that_have_vanished() -> None:
    R = DenseExperts((4, 5), 1, 6, LogCosh())
    with torch.no_grad():
        R.filters.zero_()
    with pytest.raises(FloatingPointError, match=r"DenseExperts: all filters are zero, .* as where training diverged"):
        check_learnable(R)
    assert not torch.autograd.grad(R.grad(torch.rand(1, 1, 4, 5)).sum(), R.filters)[0].any()
    with torch.no_grad():
        R.bias[2] = 0.1
    check_learnable(R)
    assert torch.autograd.grad(R.grad(torch.rand(1, 1, 4, 5)).sum(), R.filters)[0].any()


@pytest.mark.parametrize("name", ["log_scales", "log_weights"])
def test_nothing_is_learned_where_scales_or_weights_have_vanished(name: str) -> None:
    R = FieldsOfExperts(1, 3, 3)
    with torch.no_grad():
        getattr(R, name)[:2] = -200.0
        check_learnable(R)
        getattr(R, name)[2] = -200.0
    with pytest.raises(FloatingPointError, match="FieldsOfExperts: all filters are zero, or their scales or weights"):
        check_learnable(R)
    learned = [p for p in R.parameters() if p.requires_grad]
    assert not any(g.any() for g in torch.autograd.grad(R.grad(torch.rand(1, 1, 8, 8)).sum(), learned))


def test_dense_experts_take_images_of_one_size() -> None:
    with pytest.raises(ValueError, match=r"DenseExperts: expected images of 4 x 5 pixels, got 5 x 4; set `size`"):
        DenseExperts((4, 5)).value(torch.zeros(1, 1, 5, 4))
    with pytest.raises(ValueError, match=r"expected numbers >= 1, got size=\(4, 5\), channels=1, n_experts=0"):
        DenseExperts((4, 5), n_experts=0)


def test_small_images_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="expected images of more than 2 x 2 pixels"):
        FieldsOfExperts().value(torch.zeros(1, 1, 2, 9))


# Bilevel learning and equilibrium models

LEARNED = [LogCosh(3.0), WeaklyConvex(3.0, 2.0), Spline(3.0, 7, 2.0)]


def learned(R: Experts) -> set[str]:
    """The parameters that a family has, those of its potential among them."""
    own = {"filters", "log_scales", "log_weights"} | ({"bias"} if isinstance(R, DenseExperts) else set())
    of_potential = {LogCosh: set(), WeaklyConvex: {"potential.log_excess"}, Spline: {"potential.slopes"}}
    return own | of_potential[type(R.potential)]


def gradients(model: Reconstruction, lost: float = -0.3) -> dict[str, Tensor]:
    loss = (model(problem(lost)).x - problem(lost).x).square().mean()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@FAMILIES
@pytest.mark.parametrize("potential", LEARNED, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("solver", ["Anderson", "Picard"])
def test_with_tied_filters_bilevel_and_equilibrium_gradients_agree(
    solver: str, potential: Potential, make: Callable[..., Experts]
) -> None:
    """In all parameters: the lower level's minimiser is the field's fixed point, and dW is that of W and C together."""
    R = make(copy.deepcopy(potential))
    iteration = GradientDescent(step_size=0.5)
    lower = Anderson(500, 1e-12, iteration=iteration) if solver == "Anderson" else Picard(20000, 1e-12, iteration)
    strength, lost = (0.4, -0.3) if isinstance(potential, LogCosh) else (0.1, -9)  # one minimum, of others that soon
    tied = Reconstruction(copy.deepcopy(R), lower, Implicit(Symmetric(300, 1e-12)), strength=strength)
    untied = Reconstruction(UntiedExperts(copy.deepcopy(R)), lower, Implicit(GMRES(300, 1e-12)), strength=strength)
    bilevel, field = gradients(tied.double(), lost), gradients(untied.double(), lost)
    synthesis = field.pop("prior.synthesis")
    assert (synthesis - field["prior.experts.filters"]).norm() > 0.01 * bilevel["prior.filters"].norm()
    field["prior.experts.filters"] = field["prior.experts.filters"] + synthesis
    field = {name.replace("prior.experts", "prior"): gradient for name, gradient in field.items()}
    assert field.keys() == bilevel.keys() == {"log_strength", *(f"prior.{name}" for name in learned(R))}
    for name, gradient in field.items():
        assert gradient.any()
        torch.testing.assert_close(gradient, bilevel[name], rtol=1e-8, atol=1e-12)


@FAMILIES
def test_with_untied_filters_implicit_gradients_are_those_of_converged_unrolling(make: Callable[[], Experts]) -> None:
    prior = UntiedExperts(make())
    with torch.no_grad():
        prior.synthesis += 0.2 * draw(*prior.synthesis.shape, seed=9)
    steps = Picard(600, 0.0, GradientDescent(step_size=0.2))
    rules = Implicit(GMRES(300, 1e-12)), Unrolled()
    implicit, unrolled = (Reconstruction(copy.deepcopy(prior), steps, rule, strength=0.2).double() for rule in rules)
    assert implicit(problem(-9)).residual.max() < 1e-10
    found, expected = gradients(implicit, -9), gradients(unrolled, -9)
    assert found.keys() == expected.keys() and {"prior.synthesis", "prior.experts.filters"} < found.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-6, atol=1e-10)


@FAMILIES
@pytest.mark.parametrize("potential", LEARNED, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("tied", [True, False])
def test_hypergradients_are_difference_quotients(
    tied: bool, potential: Potential, make: Callable[..., Experts]
) -> None:
    experts = make(copy.deepcopy(potential))
    prior = experts if tied else UntiedExperts(experts)
    if isinstance(prior, UntiedExperts):
        with torch.no_grad():
            prior.synthesis += 0.2 * draw(*prior.synthesis.shape, seed=9)
    lower = Anderson(500, 1e-13, iteration=GradientDescent(step_size=0.4))
    model = Reconstruction(prior, lower, Implicit(GMRES(300, 1e-12)), strength=0.2).double()
    found = gradients(model, -9)
    assert len(found) == 1 + len(learned(experts)) + (not tied)
    direction = {name: draw(1, *gradient.shape, seed=len(name))[0] for name, gradient in found.items()}
    losses, h = [], 1e-5
    with torch.no_grad():
        for sign in (1, -2):  # to θ + hd, and from there to θ − hd
            for name, p in model.named_parameters():
                p += sign * h * direction.get(name, torch.zeros_like(p))
            losses.append(float((model(problem(-9)).x - problem(-9).x).square().mean()))
    slope = sum(float((gradient * direction[name]).sum()) for name, gradient in found.items())
    assert abs(slope) > 1e-3 and (losses[0] - losses[1]) / (2 * h) == pytest.approx(slope, rel=1e-6)


def test_an_untied_field_begins_as_the_gradient_and_has_none_afterwards() -> None:
    R, x = experts(normalized=True), problem().x
    field = UntiedExperts(R)
    torch.testing.assert_close(field.grad(x), R.grad(x))
    with torch.no_grad():
        field.synthesis += draw(*field.synthesis.shape, seed=9)
    leaf = x.clone().requires_grad_()
    value = field.grad(leaf)
    u, v = draw(*x.shape, seed=6), draw(*x.shape, seed=7)
    uJ, vJ = (torch.autograd.grad(value, leaf, w, retain_graph=True)[0] for w in (u, v))
    assert abs(float((uJ * v).sum() - (vJ * u).sum())) > 1e-3 * float(uJ.norm() * v.norm())
