"""Metrics against scikit-image, fastMRI and torchmetrics, and their exactness under distributed evaluation."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from elder.metrics import ImageMean, VolumeMetrics, displayed, nmse, psnr, snr, ssim_gaussian, ssim_uniform

GOLDEN = json.loads((Path(__file__).parent / "golden" / "fastmri_metrics.json").read_text())["cases"]


def volume(seed: int, shape: tuple[int, ...], dtype: str = "float64") -> tuple[Tensor, Tensor]:
    """(reconstruction, ground truth) drawn as the golden file says."""
    r = np.random.RandomState(seed)
    target = (r.rand(*shape) ** 2 * 1e-3).astype(dtype)
    return torch.from_numpy((target + 1e-5 * r.randn(*shape)).astype(dtype)), torch.from_numpy(target)


def images() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two grey images (2, 1, 32, 24) and a colour image (1, 3, 20, 22), each (reconstruction, ground truth)."""
    r = np.random.RandomState(5)
    grey, noise, colour, colour_noise = (
        r.rand(2, 1, 32, 24),
        r.randn(2, 1, 32, 24),
        r.rand(1, 3, 20, 22),
        r.randn(1, 3, 20, 22),
    )
    x, target, x_colour, target_colour = map(
        torch.from_numpy, (grey + 0.1 * noise, grey, colour + 0.1 * colour_noise, colour)
    )
    return x, target, x_colour, target_colour


def close(actual: Tensor, expected: float | list[float], tol: float = 1e-6) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=tol)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda c: f"{c['shape']}-{c['dtype']}")
def test_a_volume_is_an_image_of_slices(case: dict) -> None:
    x, target = (v[None] for v in volume(case["seed"], case["shape"], case["dtype"]))
    close(psnr(x, target, target.max()), [case["PSNR"]])
    close(nmse(x, target), [case["NMSE"]])
    close(ssim_uniform(x, target, target.max()), [case["SSIM"]])
    close(ssim_uniform(x, target, 2e-3), [case["SSIM_maxval_2e_3"]])


def test_agrees_with_scikit_image() -> None:
    """scikit-image 0.26.0: Gaussian with gaussian_weights=True, sigma=1.5, use_sample_covariance=False."""
    x, target, x_colour, target_colour = images()
    close(ssim_gaussian(x, target, 1.0), [0.9432384120665361, 0.9425943600580777], 1e-12)
    close(ssim_uniform(x, target, 1.0), [0.9443933551270592, 0.9403733419460936], 1e-12)
    close(psnr(x, target, 1.0), [19.946366865266622, 19.874919928213124], 1e-12)
    close(ssim_gaussian(x_colour, target_colour, 2.0), [0.9423677954042272], 1e-12)
    close(ssim_uniform(x_colour, target_colour, 2.0), [0.9413655404748774], 1e-12)
    close(psnr(x_colour, target_colour, 2.0), [25.895305395983247], 1e-12)


def test_agrees_with_torchmetrics() -> None:
    x, target, *_ = images()
    _, full = structural_similarity_index_measure(x, target, sigma=1.5, data_range=1.3, return_full_image=True)
    inside = full[..., 5:-5, 5:-5].mean((1, 2, 3))  # torchmetrics' own mean counts the reflected border too
    torch.testing.assert_close(ssim_gaussian(x, target, 1.3), inside, rtol=0, atol=1e-12)
    per_image = peak_signal_noise_ratio(x, target, data_range=1.3, reduction="none", dim=(1, 2, 3))
    torch.testing.assert_close(psnr(x, target, 1.3), per_image, rtol=0, atol=1e-5)  # its logarithms are float32


def test_closed_forms() -> None:
    target = torch.full((2, 1, 16, 16), 2.0)
    x = target + torch.tensor([0.1, 0.4]).reshape(2, 1, 1, 1)
    close(psnr(x, target, torch.tensor([1.0, 4.0])), [20.0, 20.0], 1e-5)
    close(nmse(x, target), [0.0025, 0.04])
    close(snr(x, target), [-10 * math.log10(0.0025), -10 * math.log10(0.04)], 1e-5)
    # without variance, SSIM is the ratio of the means alone
    c1 = 0.01**2
    close(ssim_uniform(x, target, 1.0), [(2 * 2 * m + c1) / (4 + m * m + c1) for m in (2.1, 2.4)])
    assert psnr(target, target, 1.0).isposinf().all()
    assert (ssim_gaussian(target, target, 1.0) == 1).all()


@pytest.mark.parametrize("ssim", [ssim_uniform, ssim_gaussian])
def test_data_range_is_per_sample(ssim) -> None:
    x, target, *_ = images()
    both = ssim(x, target, torch.tensor([0.5, 2.0]))
    alone = torch.cat([ssim(x[i : i + 1], target[i : i + 1], L) for i, L in enumerate((0.5, 2.0))])
    torch.testing.assert_close(both, alone, rtol=0, atol=1e-14)
    torch.testing.assert_close(
        both,
        ssim(
            x / torch.tensor([0.5, 2.0]).reshape(2, 1, 1, 1), target / torch.tensor([0.5, 2.0]).reshape(2, 1, 1, 1), 1.0
        ),
    )


def test_complex_images_are_compared_by_magnitude() -> None:
    x, target, *_ = images()
    target = target.abs() + 0.5
    x = target + 0.05 * x
    phase = torch.polar(torch.ones_like(x), torch.linspace(0, 6, x.numel(), dtype=x.dtype).reshape(x.shape))
    for metric in (psnr, ssim_uniform, ssim_gaussian):
        torch.testing.assert_close(metric(x * phase, target * phase.conj(), 1.5), metric(x, target, 1.5))
    torch.testing.assert_close(snr(x * phase, target), snr(x, target))


def test_real_images_are_displayed_from_black_to_white_and_complex_ones_as_they_are() -> None:
    x = torch.tensor([-0.25, 0.0, 0.5, 1.0, 1.5])
    assert displayed(x).tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]
    z = torch.complex(x, -x)
    assert displayed(z) is z


def test_autocast_changes_nothing() -> None:
    x, target = (v.float() for v in images()[:2])
    expected = [psnr(x, target, 1.0), ssim_uniform(x, target, 1.0), ssim_gaussian(x, target, 1.0)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = [psnr(x, target, 1.0), ssim_uniform(x, target, 1.0), ssim_gaussian(x, target, 1.0)]
    assert all(torch.equal(a, b) for a, b in zip(expected, lowered, strict=True))


def test_errors_say_what_was_expected() -> None:
    x = torch.zeros(2, 1, 8, 8)
    with pytest.raises(ValueError, match=r"psnr: expected x and target of one shape .* got \(2, 1, 8, 8\) and \(2, 8"):
        psnr(x, x[:, 0], 1.0)
    with pytest.raises(ValueError, match=r"psnr: expected data_range to be one number or one per sample \(2,\), got"):
        psnr(x, x, torch.ones(3))
    with pytest.raises(ValueError, match=r"ssim_gaussian: expected images of at least 11 x 11 pixels"):
        ssim_gaussian(x, x, 1.0)


def test_image_mean_weighs_images_not_batches() -> None:
    metric = ImageMean()
    metric.update(torch.tensor([1.0, 2.0, 6.0]))
    metric.update(torch.tensor([11.0]))
    assert metric.compute().item() == 5.0
    for _ in range(3):  # in float32 the small numbers would vanish beside the large one
        metric.update(torch.tensor([1e9]))
        metric.update(torch.tensor([1.0]))
    assert metric.compute().item() == (20 + 3 * (1e9 + 1)) / 10
    metric.reset()
    metric.update(torch.tensor([3.0]))
    assert metric.compute().item() == 3.0


def slices() -> list[tuple[str, Tensor, Tensor]]:
    """Named slices (1, H, W) of two volumes of different size: 3 x 25 x 16 (rows to be cropped) and 2 x 12 x 12."""
    found = []
    for name, seed, shape in (("a.h5", 1, (3, 25, 16)), ("b.h5", 2, (2, 12, 12))):
        for i, (x, target) in enumerate(zip(*volume(seed, shape), strict=True)):
            found.append((f"{name}/{i}", x[None], target[None]))
    return found


#: Mean of fastMRI's definitions by scikit-image 0.26.0 over the two volumes above, the first cropped to 16 x 16.
EXPECTED = {"psnr": 39.81853679061104, "ssim": 0.9994362316575658, "nmse": 0.000531996394432265}


def add(metric: VolumeMetrics, items: list[tuple[str, Tensor, Tensor]]) -> None:
    for name, x, target in items:
        metric.update([name], x[None], target[None])


def test_volume_metrics_in_any_order_and_with_repeats() -> None:
    metric = VolumeMetrics()
    items = slices()
    add(metric, [items[i] for i in (4, 1, 0, 3, 1, 2, 4)])
    for key, value in metric.compute().items():
        close(value, EXPECTED[key], 1e-10)
    metric.reset()
    add(metric, items[3:])
    x, target = volume(2, (2, 12, 12))
    close(metric.compute()["psnr"], psnr(x[None], target[None], target.max()).item(), 1e-10)


@pytest.mark.parametrize("case", [c for c in GOLDEN if c["shape"][1] == c["shape"][2]], ids=lambda c: str(c["shape"]))
def test_volume_metrics_are_those_of_fastmri(case: dict) -> None:
    x, target = volume(case["seed"], case["shape"], case["dtype"])
    metric = VolumeMetrics()
    metric.update([f"file/{i}" for i in range(len(x))], x[:, None], torch.complex(0 * target, target)[:, None])
    results = metric.compute()
    for key in ("PSNR", "SSIM", "NMSE"):
        close(results[key.lower()], case[key])


def test_volume_metrics_crop_a_larger_reconstruction() -> None:
    name, x, target = slices()[3]
    exact, padded = VolumeMetrics(), VolumeMetrics()
    exact.update([name], x[None], target[None])
    padded.update([name], torch.nn.functional.pad(x[None], (2, 3, 1, 1), value=9.0), target[None])
    assert padded.compute() == exact.compute()
    with pytest.raises(ValueError, match="at least 12 x 12 pixels"):
        exact.update([name], x[None, :, :10], target[None])
    with pytest.raises(ValueError, match=r"expected names 'volume/slice', got 'test001\.png'"):
        exact.update(["test001.png"], x[None], target[None])


def evaluate(rank: int, folder: str) -> None:
    """One of two processes: five images and the larger share of the slices for the first, two images for the second."""
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    mean, volumes = ImageMean(), VolumeMetrics()
    mean.update(torch.tensor(([1.0, 2.0, 3.0, 4.0, 5.0], [20.0, 35.0])[rank]))
    items = slices()
    add(volumes, [items[i] for i in ((3, 0, 2, 4), (1, 4))[rank]])  # slice 4 of the list is seen by both
    results = {k: v.item() for k, v in volumes.compute().items()} | {"mean": mean.compute().item()}
    Path(folder, f"{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


def test_two_uneven_processes_agree_with_one(tmp_path: Path) -> None:
    multiprocessing.spawn(evaluate, (str(tmp_path),), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    single = VolumeMetrics()
    add(single, slices())
    assert first == second
    assert first.pop("mean") == 10.0
    assert first == {k: v.item() for k, v in single.compute().items()}
