"""The benchmarks measure what they say: counts, clock, references, and peers that find the same gradient."""

from __future__ import annotations

import gc
import json
import math
import time
import warnings

import pytest
import torch
from rich.console import Console

from benchmarks import report
from benchmarks.costs import flops, peak_bytes, region, seconds, unit
from benchmarks.methods import LIBRARY, Method
from benchmarks.peers import PEERS, AutomaticObjective, _fixed_point, plain_value
from benchmarks.problems import ACQUISITIONS, REGULARIZERS, STRENGTHS, Case, images, regularizer
from benchmarks.reference import compute_reference, distance, stops_elsewhere
from benchmarks.report import _summary
from benchmarks.solving import measure_solving, solvers
from benchmarks.training import attempt, good, measure_training, sweep
from elder.models.networks import DnCNN
from elder.models.regularizers import Residual, Ridge
from elder.operators import Denoising, Gaussian
from elder.solvers import MINRES, ConjugateGradient

METHODS = (*LIBRARY, *PEERS)


@pytest.fixture(scope="module", autouse=True)
def quick_collection():
    """Every measurement collects garbage first: leave what is imported out of it."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module", params=["ridge", "residual"])
def case(request) -> Case:
    torch.manual_seed(0)
    prior = Ridge(1, [2, 4], 3) if request.param == "ridge" else Residual(DnCNN(1, 4, 2))
    return Case(request.param, Denoising(Gaussian(0.1)), images("test", 12)[:2], prior, strength=0.5)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.reference.CACHE", tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def exact(case):
    return compute_reference(case)


def test_reference_is_a_stationary_point_with_the_gradient_of_finite_differences(case, exact):
    assert exact.accurate
    double = case.double()
    assert torch.linalg.vector_norm(double.objective().grad(exact.x)) < 1e-7
    h = 1e-2  # λ is a single-precision number
    losses = []
    for factor in (1 + h, 1 - h):
        moved = Case(case.name, case.acquisition, double.images, double.prior, case.strength * factor)
        losses.append(double.loss(compute_reference(moved).x))
    expected = (losses[0] - losses[1]) / (math.log1p(h) - math.log1p(-h))
    position = [name for name, _ in case.reconstruction().named_parameters()].index("log_strength")
    sizes = [p.numel() for p in case.reconstruction().parameters()]
    assert torch.isclose(exact.gradient[sum(sizes[:position])], expected, rtol=1e-3)


def test_reference_knows_the_spectrum(case, exact):
    x = exact.x.clone().requires_grad_()
    grad = case.double().objective().grad(x)
    columns = [
        torch.autograd.grad(grad, x, e.expand_as(x), retain_graph=True)[0] for e in torch.eye(144).view(-1, 12, 12)
    ]
    values = torch.linalg.eigvalsh(torch.stack(columns).reshape(144, 2, 144).movedim(1, 0))
    assert exact.curvature == pytest.approx(values.min().item(), rel=1e-3)
    assert exact.lipschitz >= values.max().item() * (1 - 1e-6)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.source}: {m.name}")
def test_every_method_finds_the_reference_gradient_at_its_tightest_setting(case, exact, method: Method):
    step = method.run(case, 1 / exact.lipschitz, method.forward[-1], method.adjoint[-1])
    biased = any(word in method.name for word in ("Jacobian-free", "phantom", "SHINE")) and "+" not in method.name
    error = distance(step.gradient, exact.gradient)
    assert error < (1 if biased else 0.02)
    assert not biased or error > 1e-3
    assert distance(step.x, exact.x) < 1e-2
    assert not stops_elsewhere(case, step.x, exact)
    assert step.n_gradients >= 1


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.source}: {m.name}")
def test_every_method_has_a_default(case, exact, method: Method):
    trial = attempt(lambda: method.default(case, 1 / exact.lipschitz), case, exact, unit(case), unit(case).gradient)
    assert trial is not None and trial.equivalents > trial.n_gradients / 2 > 0


def test_another_point_is_recognised(case, exact):
    assert not stops_elsewhere(case, exact.x, exact)
    far = exact._replace(x=exact.x + 0.1)
    assert stops_elsewhere(case, exact.x, far)


def test_peers_see_the_same_objective(case):
    double = case.double()
    own, other = double.objective(), AutomaticObjective(double.problem, double.prior, double.objective().strength)
    x = double.images + 0.1 * torch.randn_like(double.images)
    for a, b in zip(own.value_and_grad(x), other.value_and_grad(x), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)
    assert torch.allclose(other.value(x), own.value(x))
    assert torch.allclose(plain_value(double.prior, x), double.prior.value(x))
    assert (other.count.gradients, other.count.values, other.count.products) == (2, 2, 0)
    v = torch.randn_like(x)
    point = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(own.grad(point), point, v)
    assert torch.allclose(other.hessian_product(x, v), expected)
    assert (other.count.gradients, other.count.products) == (2, 2)
    part = other.select(torch.tensor([1]))
    assert torch.allclose(part.grad(x[1:]), other.grad(x)[1:])
    assert other.count.gradients == 5  # shared with the parts


def test_sweep_finds_the_cheapest_accurate_setting_without_the_whole_grid(case, exact):
    method, cost = LIBRARY[0], unit(case)
    step_size = 1 / exact.lipschitz
    walked = sweep(method, case, exact, cost)
    grid = [
        attempt(lambda s=(f, a): method.run(case, step_size, *s), case, exact, cost, cost.gradient, f, a)
        for f in method.forward
        for a in method.adjoint
    ]
    assert len(walked) < len(method.forward) + len(method.adjoint)
    cheapest = [min(t.equivalents for t in trials if t is not None and good(t)) for trials in (walked, grid)]
    assert cheapest[0] == pytest.approx(cheapest[1])


def test_flops_of_transforms_and_convolutions():
    x = torch.randn(2, 1, 8, 8)
    assert flops(lambda: torch.fft.fft2(x.to(torch.complex64))) == 5 * 128 * 6
    assert flops(lambda: torch.fft.rfft2(x)) == 5 * 128 * 6 // 2
    assert flops(lambda: torch.fft.irfft2(torch.fft.rfft2(x))) == 5 * 128 * 6
    assert flops(lambda: torch.nn.functional.conv2d(x, torch.randn(3, 1, 3, 3), padding=1)) == 2 * 2 * 3 * 64 * 9


def spin(duration: float) -> None:
    start = time.process_time()
    while time.process_time() - start < duration:
        pass


def test_clock_sees_solvers_outside_and_products_inside():
    def matvec(u):
        with region(inside=True):
            spin(0.02)
        return u * torch.tensor([[1.0, 2.0]])

    def run():
        with region(inside=True):
            MINRES(2, 0.0)(matvec, torch.ones(1, 2))

    measured = seconds(run)
    assert measured.cpu >= 0.04 and 0 <= measured.outside < 0.5 * measured.cpu
    within = seconds(lambda: [spin(0.03), ConjugateGradient(2)(lambda u: u, torch.zeros(1, 2))])
    assert within.outside > 0.9 * within.cpu


def test_clock_restores_what_it_wraps(case):
    before = torch.autograd.grad, torch.autograd.backward, Ridge.value_and_grad, MINRES.__call__
    measured = seconds(lambda: case.objective().grad(case.x0))
    assert before == (torch.autograd.grad, torch.autograd.backward, Ridge.value_and_grad, MINRES.__call__)
    assert 0 < measured.outside < measured.cpu


def test_peak_bytes_counts_tensors_alive_together():
    assert peak_bytes(lambda: torch.ones(1000) + torch.ones(1000)) == 12000
    assert peak_bytes(lambda: [torch.ones(1000).sum() for _ in range(5)]) < 5000


def test_strengths_cover_every_case():
    assert STRENGTHS.keys() == ACQUISITIONS.keys()
    assert all(set(of.keys()) == set(REGULARIZERS) for of in STRENGTHS.values())


@pytest.mark.parametrize("name", REGULARIZERS)
def test_shipped_regularizers_load(name):
    prior = regularizer(name)
    assert prior.value(torch.rand(1, 1, 32, 32)).shape == (1,)


def test_results_become_tables_plots_and_a_document(case, cache, monkeypatch, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fonts of matplotlib
        methods = (LIBRARY[0], next(m for m in LIBRARY if "Jacobian-free" in m.name), PEERS[-1])
        training = [measure_training(case, methods, repeats=1)]
        assert len(list(cache.glob("*.pt"))) == 1
        results = {
            "machine": {"cpu": "a", "threads": 1, "torch": "b", "date": "c", "seed": 0, "commit": "d"},
            "training": training,
            "reconstruction": [measure_solving(case, repeats=1)],
            "bed": [{"gain": 1.35, "curvature": 0.1, "lipschitz": 1.0, "methods": []}],
        }
        results = json.loads(json.dumps(results))
        assert len(results["reconstruction"][0]["solvers"]) == len(solvers(1.0))
        assert all(row["converged"] for row in results["reconstruction"][0]["solvers"])
        assert all(row["curve"][-1] <= 1.1e-4 for row in results["reconstruction"][0]["solvers"])
        console = Console(record=True, width=250)
        report.show(results, console)
        assert "L-BFGS, CG→MINRES" in console.export_text()
        document = tmp_path / "performance.md"
        marks = "\n".join(
            f"<!-- begin {n} -->\n<!-- end {n} -->" for n in ("machine", "training", "bed", "reconstruction")
        )
        document.write_text(marks)
        monkeypatch.setattr(report, "DOCUMENT", document)
        monkeypatch.setattr(report, "PICTURES", tmp_path / "pictures")
        report.document(results)
        once = document.read_text()
        report.document(results)
        assert document.read_text() == once and "Jacobian-free" in once
        assert {p.name for p in (tmp_path / "pictures").iterdir()} == {"training.png", "reconstruction.png"}
        document.write_text("no marks")
        with pytest.raises(ValueError, match="begin machine"):
            report.document(results)


def test_cost_is_that_of_the_counted_operations(case, exact):
    method, cost = LIBRARY[0], unit(case)
    run = lambda: method.default(case, 1 / exact.lipschitz)  # noqa: E731
    trial = attempt(run, case, exact, cost, cost.gradient)
    assert trial is not None and trial.equivalents == flops(run) / cost.gradient


def test_summary_compares_the_cheapest_by_either_cost():
    def method(source, name, equivalents, cpu_seconds):
        return {"source": source, "method": name, "best": {"equivalents": equivalents, "cpu_seconds": cpu_seconds}}

    methods = [method("elder", "L-BFGS, CG→MINRES", 10, 3.0), method("elder", "FISTA", 8, 4.0)]
    methods += [
        method("a", "slow", 40, 5.0),
        method("b", "fast", 50, 4.5),
        {"source": "c", "method": "x", "best": None},
    ]
    (row,) = _summary([{"case": "one", "methods": methods}]).rows
    assert row[1:5] == ["8.0 (FISTA)", "40.0 (slow)", "5.00", "4.00"]
    assert row[5:] == ["3.00 (L-BFGS, CG→MINRES)", "4.50 (fast)", "1.50", "1.50"]


def test_fixed_point_stops_at_the_mean_change_it_is_told():
    x, steps = _fixed_point(lambda u: u / 2, torch.ones(2, 1, 2, 2), 100, 0.6)
    assert steps == 1 and x.eq(0.5).all()
    assert _fixed_point(lambda u: u / 2, torch.ones(2, 1, 2, 2), 7, 0.4)[1] == 7
