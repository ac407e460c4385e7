"""Losses against their formulas."""

import math

import pytest
import torch
from torchmetrics import MeanAbsoluteError, Metric
from torchmetrics.classification import BinaryAccuracy
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from elder.metrics import psnr
from elder.models.losses import LogMSELoss, MetricLoss
from tests.solvers.problems import draw


def test_log_mse_is_the_mean_psnr_in_other_units():
    x, target = draw(3, 2, 8, 9, seed=1), draw(3, 2, 8, 9, seed=2)
    loss = LogMSELoss(epsilon=0.0)(x, target)
    assert loss.item() == pytest.approx(-math.log(10) / 10 * psnr(x, target, 1.0).mean().item())


def test_each_sample_weighs_the_same_whatever_its_error():
    target, error = draw(2, 1, 8, 8, seed=1), draw(2, 1, 8, 8, seed=2)
    x = (target + error * torch.tensor([1e-2, 1.0]).view(2, 1, 1, 1)).requires_grad_()
    (gradient,) = torch.autograd.grad(LogMSELoss(epsilon=0.0)(x, target), x)
    shares = (gradient * (x - target)).flatten(1).sum(1)  # d ℓ / d log(error) of each sample
    torch.testing.assert_close(shares, torch.ones_like(shares))


def test_a_perfect_sample_has_a_finite_loss_and_gradient():
    target = draw(1, 1, 8, 8)
    x = target.clone().requires_grad_()
    loss = LogMSELoss()(x, target)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(1e-6)) and x.grad is not None and not x.grad.any()


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"LogMSELoss: expected epsilon >= 0, got -1"):
        LogMSELoss(-1)
    with pytest.raises(ValueError, match=r"expected equal shapes, got \(1, 1, 4, 4\) and \(1, 4, 4\)"):
        LogMSELoss()(torch.zeros(1, 1, 4, 4), torch.zeros(1, 4, 4))


@pytest.mark.parametrize(
    "metric",
    [StructuralSimilarityIndexMeasure(data_range=1.0), PeakSignalNoiseRatio(1.0), MeanAbsoluteError()],
    ids=repr,
)
def test_a_step_against_the_gradient_of_a_metric_betters_it(metric: Metric):
    loss, target = MetricLoss(metric), torch.rand(2, 1, 24, 24)
    x = (target + 0.1 * torch.randn(2, 1, 24, 24)).requires_grad_()
    before = loss(x, target)
    assert torch.equal(loss(x, target), before) and metric._update_count == 0  # nothing is accumulated
    (gradient,) = torch.autograd.grad(before, x)
    after = loss(x - 1e-2 * gradient / gradient.norm(), target)
    assert after < before
    better = metric(x - 1e-2 * gradient / gradient.norm(), target) - metric(x, target)
    assert better > 0 if metric.higher_is_better else better < 0


def test_a_metric_loss_has_the_value_of_the_metric():
    x, target = torch.rand(2, 1, 24, 24), torch.rand(2, 1, 24, 24)
    loss = MetricLoss(StructuralSimilarityIndexMeasure(data_range=1.0))
    torch.testing.assert_close(-loss(x, target), structural_similarity_index_measure(x, target, data_range=1.0))


def test_metrics_that_cannot_be_descended_are_refused():
    with pytest.raises(
        ValueError, match=r"MetricLoss: expected a differentiable metric .*got BinaryAccuracy with is_d"
    ):
        MetricLoss(BinaryAccuracy())
    one_each = MetricLoss(StructuralSimilarityIndexMeasure(data_range=1.0, reduction="none"))
    with pytest.raises(ValueError, match=r"MetricLoss: expected one number of a batch, got \(2,\) of StructuralSim"):
        one_each(torch.rand(2, 1, 24, 24), torch.rand(2, 1, 24, 24))
