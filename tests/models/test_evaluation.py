"""Compiled and lowered evaluation change what a solve costs, not what it finds."""

import copy
import pickle

import pytest
import torch

from elder.linalg import norm
from elder.models.evaluation import Evaluation, Evaluator, ieee_convolutions
from elder.models.networks import DnCNN
from elder.models.reconstruction import Reconstruction
from elder.models.regularizers import Prior, Residual, Ridge
from elder.operators import Identity, InverseProblem
from elder.solvers import GMRES, LBFGS, Anderson, Implicit

PRIORS = {"ridge": lambda: Ridge(1, (2, 4), 3), "residual": lambda: Residual(DnCNN(1, 4, 2))}


def reconstruction(prior: str, evaluation: Evaluation | None = None) -> Reconstruction:
    torch.manual_seed(0)
    return Reconstruction(PRIORS[prior](), LBFGS(200, 1e-4), strength=0.3, evaluation=evaluation)


def problem(n: int = 3) -> InverseProblem:
    """Samples of very different difficulty."""
    y = torch.rand(n, 1, 12, 12, generator=torch.Generator().manual_seed(1))
    return InverseProblem(Identity(), y * torch.logspace(-1, 0.5, n)[:, None, None, None])


class RecordDtype(torch.utils._python_dispatch.TorchDispatchMode):
    """Which floating types convolutions run in."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.dtype] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "conv" in str(func):
            self.seen.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("prior", PRIORS)
def test_lowered_network_costs_no_accuracy(prior):
    plain, lowered = reconstruction(prior), reconstruction(prior, Evaluation(dtype="bfloat16"))
    with RecordDtype() as record:
        solution = lowered(problem())
    reference = plain(problem())
    assert solution.converged.all() and (solution.residual <= 1e-4).all()
    assert solution.x.dtype == torch.float32
    assert (norm(solution.x - reference.x) <= 1e-3 * norm(reference.x)).all()
    if prior == "residual":
        first = record.seen.index(torch.float32)
        assert (
            first > 0 and set(record.seen[:first]) == {torch.bfloat16} and set(record.seen[first:]) == {torch.float32}
        )
    for model in (plain, lowered):
        model.zero_grad()
        model(problem()).x.square().sum().backward()
    for a, b in zip(plain.parameters(), lowered.parameters(), strict=True):
        assert (a.grad - b.grad).norm() <= 1e-2 * b.grad.norm() + 1e-6


def test_gradients_of_both_precisions_are_counted():
    lowered = reconstruction("residual", Evaluation(dtype="bfloat16"))
    calls = []
    lowered.prior.network.register_forward_hook(lambda *_: calls.append(1))
    evaluate = lowered.prior.network.evaluate
    lowered.prior.network.evaluate = lambda *args: calls.append(1) or evaluate(*args)
    with torch.no_grad():
        assert lowered(problem(1)).n_gradients.item() == len(calls)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # Dynamo's own doing
@pytest.mark.parametrize("prior", PRIORS)
def test_compiled_evaluation_is_the_eager_one(prior, monkeypatch):
    """Through Dynamo and the ahead-of-time graph; Inductor's code generation is torch's own to test."""
    sizes: list[int] = []
    compile = torch.compile

    def recording(function, **options):
        compiled = compile(function, backend="aot_eager", fullgraph=options["fullgraph"], dynamic=options["dynamic"])

        def call(x, sigma):
            sizes.append(len(x))
            return compiled(x, sigma)

        return call

    monkeypatch.setattr(torch, "compile", recording)
    compiled = reconstruction(prior, Evaluation(compile="default"))
    solution, reference = compiled(problem(5)), reconstruction(prior)(problem(5))
    assert set(sizes) <= {5, 4, 2, 1} and len(set(sizes)) > 1, sizes
    assert (norm(solution.x - reference.x) <= 1e-4 * norm(reference.x)).all()
    solution.x.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in compiled.parameters())


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
def test_many_shapes_can_be_compiled(monkeypatch):
    compile = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, **options: compile(f, backend="eager", fullgraph=True, dynamic=False)
    )
    model = reconstruction("ridge", Evaluation(compile="default"))
    for size in range(8, 20):
        with torch.no_grad():
            assert model(InverseProblem(Identity(), torch.rand(1, 1, size, size))).x.shape[-1] == size


def test_another_prior_or_evaluation_takes_effect():
    model, P = reconstruction("ridge", Evaluation()), problem()
    model(P)
    model.prior = reconstruction("residual").prior
    expected = Reconstruction(model.prior, model.solver, strength=0.3)(P)
    assert torch.equal(model(P).x, expected.x)
    known = model.objective(P).evaluator
    model.evaluation = Evaluation(dtype="bfloat16")
    assert model.objective(P).evaluator is not known


def test_both_stages_share_the_largest_number_of_steps():
    model = reconstruction("residual", Evaluation(dtype="bfloat16"))
    model.solver = LBFGS(6, 0.0)
    with torch.no_grad():
        assert (model(problem()).n_gradients <= 8).all()


def test_a_compiled_model_can_be_copied_and_stored():
    model = reconstruction("ridge", Evaluation(compile="default"))
    model.objective(problem())  # creates what compiles, compiles nothing yet
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            other.prior.log_scale.add_(1.0)
        assert other.objective(problem()).evaluator is not model.objective(problem()).evaluator


class Field(Prior):
    def grad(self, x, sigma=None):
        return torch.tanh(x)


def test_a_field_without_a_value_is_lowered_too():
    model = Reconstruction(Field(), Anderson(200, 1e-4), Implicit(GMRES()), evaluation=Evaluation(dtype="bfloat16"))
    assert model(problem()).converged.all()


def test_convolutions_are_ieee_inside_and_as_before_outside():
    cudnn = torch.backends.cudnn

    def precisions() -> tuple[bool, str, str]:
        return cudnn.allow_tf32, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision

    before = precisions()
    seen = []

    class Watched(Ridge):
        def value_and_grad(self, x, sigma=None):
            seen.append(precisions())
            return super().value_and_grad(x, sigma)

    Evaluator(Watched(1, (2, 4), 3), Evaluation())(torch.rand(1, 1, 8, 8), None, None)
    with pytest.raises(RuntimeError, match="on purpose"), ieee_convolutions():
        raise RuntimeError("on purpose")
    assert Reconstruction(Watched(1, (2, 4), 3), Anderson(3))(problem()).x.isfinite().all()
    *solving, differentiating = seen
    assert len(solving) > 4 and set(solving) == {(False, "ieee", "ieee")} and differentiating == before
    assert precisions() == before == (True, "tf32", "tf32")


def test_bad_arguments_are_refused_in_words():
    with pytest.raises(ValueError, match="Evaluation: expected switch > 0, got 0"):
        Evaluation(switch=0.0)
    with pytest.raises(ValueError, match=r"expected compile to be one of .*reduce-overhead.* got 'fast'"):
        Evaluation(compile="fast")
    with pytest.raises(ValueError, match=r"expected dtype to be one of .*bfloat16.* got 'int8'"):
        Evaluation(dtype="int8")
