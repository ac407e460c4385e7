"""PSNR, SSIM, NMSE and SNR: per image, averaged over images, and per volume.

All functions take batches (B, C, H, W), compute in float64 whatever the ambient precision, and return one number per
sample. **Complex images are compared by magnitude.** A volume is an image whose channels are its slices: with
(1, slices, H, W) and the volume's maximum as `data_range`, `psnr`, `nmse` and `ssim_uniform` are those of fastMRI's
`evaluate.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric

from elder.linalg import per_sample

__all__ = [
    "LEARNED",
    "ImageMean",
    "VolumeMetrics",
    "displayed",
    "gathered",
    "magnitude",
    "nmse",
    "psnr",
    "snr",
    "ssim_gaussian",
    "ssim_uniform",
]

T = TypeVar("T")

LEARNED = "learned"  # the method in tables that is the run's own


def magnitude(x: Tensor) -> Tensor:
    """|x| of a complex image; a real image as it is, sign included."""
    return x.abs() if x.is_complex() else x


def displayed(x: Tensor) -> Tensor:
    """A real image as a screen shows it, clamped to [0, 1], where images lie; a complex one as it is.

    Published PSNR of images in [0, 1] is that of clamped ones, and it makes a difference where much of an image is
    black: 0.5 dB in zero-filled MRI.
    """
    return x if x.is_complex() else x.clamp(0, 1)


def psnr(x: Tensor, target: Tensor, data_range: float | Tensor) -> Tensor:
    """Peak signal-to-noise ratio 10 log₁₀(L² / MSE) per sample, (B,), in dB; ∞ where x = target.

    Args:
        x: Reconstructions, (B, C, H, W), real or complex.
        target: Ground truth, shape of x.
        data_range: L, positive, one number or one per sample, (B,).

    Raises:
        ValueError: If shapes differ, or `data_range` has neither one number nor B.
    """
    x, target = _pair("psnr", x, target)
    mse = (x - target).square().flatten(1).mean(1)
    return 10 * torch.log10(_range("psnr", data_range, x).square() / mse)


def nmse(x: Tensor, target: Tensor) -> Tensor:
    """Normalised squared error ‖x − target‖² / ‖target‖² per sample, (B,)."""
    x, target = _pair("nmse", x, target)
    return (x - target).square().flatten(1).sum(1) / target.square().flatten(1).sum(1)


def snr(x: Tensor, target: Tensor) -> Tensor:
    """Signal-to-noise ratio 20 log₁₀(‖target‖ / ‖x − target‖) per sample, (B,), in dB."""
    return -10 * torch.log10(nmse(x, target))


def ssim_uniform(x: Tensor, target: Tensor, data_range: float | Tensor) -> Tensor:
    """Structural similarity with a 7 × 7 uniform window and sample covariances (49/48), per sample, (B,).

    The definition of fastMRI and the default of scikit-image. The mean is over channels and over the pixels whose
    window lies inside the image: a border of 3 is dropped. K₁ = 0.01, K₂ = 0.03. Arguments and errors as in `psnr`.
    """
    window = torch.full((7,), 1 / 7, dtype=torch.float64, device=x.device)
    return _ssim("ssim_uniform", x, target, data_range, window, 49 / 48)


def ssim_gaussian(x: Tensor, target: Tensor, data_range: float | Tensor) -> Tensor:
    """Structural similarity with an 11 × 11 Gaussian window of standard deviation 1.5, per sample, (B,).

    The definition of Wang, Bovik, Sheikh & Simoncelli, "Image quality assessment: from error visibility to structural
    similarity", 2004, eq. 13. The mean is over channels and over the pixels whose window lies inside the image: a
    border of 5 is dropped. K₁ = 0.01, K₂ = 0.03. Arguments and errors as in `psnr`.
    """
    t = torch.arange(-5, 6, dtype=torch.float64, device=x.device)
    return _ssim("ssim_gaussian", x, target, data_range, torch.softmax(-(t**2) / (2 * 1.5**2), 0), 1.0)


class ImageMean(Metric):
    """Mean over images of one number per image, the same for any batch size and number of processes.

    Sum and count are kept apart, so that processes with more images weigh more. NaN before the first image.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), "sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), "sum")

    def update(self, values: Tensor) -> None:
        """Add the numbers of a batch of images, (B,)."""
        self.total += values.double().sum()
        self.count += values.numel()

    def compute(self) -> Tensor:
        """The mean, (), float64."""
        return self.total / self.count


class VolumeMetrics(Metric):
    """Means over volumes of PSNR, SSIM and NMSE as fastMRI's `evaluate.py` defines them.

    With L the maximum of the volume's ground truth: PSNR is that of the volume's L and mean squared error, SSIM the
    mean over slices of `ssim_uniform` with data range L, NMSE that of the whole volume. Reconstruction and ground
    truth are first cropped about the centre to W × W, W the width of the ground truth (to H × W if it has fewer rows,
    which `evaluate.py` rejects).

    Slices may come in any order, from any process, and more than once: a slice counts once, by its name. L is known
    only at the end, so each process keeps its slices in host memory until `reset` (0.8 MB for 320 × 320), and
    processes exchange numbers, never images. `compute` is collective: every process calls it.
    """

    full_state_update = False
    names: list[Tensor]
    pairs: list[Tensor]

    def __init__(self) -> None:
        super().__init__(sync_on_compute=False)
        self.add_state("names", [], None)
        self.add_state("pairs", [], None)

    def update(self, names: Sequence[str], x: Tensor, target: Tensor) -> None:
        """Add a batch of slices.

        Args:
            names: "volume/slice" of each sample, such as "file1000000.h5/12".
            x: Reconstructions, (B, C, H', W'), real or complex, at least as large as the crop.
            target: Ground truth, (B, C, H, W), real or complex.

        Raises:
            ValueError: If a name has no "/", or a reconstruction is smaller than the crop.
        """
        height, width = target.shape[-2:]
        size = (min(height, width), width)
        pairs = torch.stack([_centre(magnitude(x), size), _centre(magnitude(target), size)], dim=1)
        for name, pair in zip(names, pairs.cpu(), strict=True):
            if "/" not in name:
                raise ValueError(
                    f"VolumeMetrics: expected names 'volume/slice', got {name!r}; use ImageMean for images"
                )
            self.names.append(torch.tensor(list(name.encode()), dtype=torch.uint8))
            self.pairs.append(pair)

    def compute(self) -> dict[str, Tensor]:
        """Values of "psnr" in dB, "ssim" and "nmse", each (), float64; NaN if there was no slice."""
        slices = dict(zip((bytes(n.tolist()).decode() for n in self.names), self.pairs, strict=True))
        peaks: dict[str, float] = {}
        for part in gathered([(_volume(name), pair[1].max().item()) for name, pair in slices.items()]):
            for volume, peak in part:
                peaks[volume] = max(peak, peaks.get(volume, peak))
        numbers: dict[str, list[float]] = {}
        for part in gathered({n: self._numbers(pair, peaks[_volume(n)]) for n, pair in slices.items()}):
            numbers.update(part)
        volumes: dict[str, list[list[float]]] = defaultdict(list)
        for name in sorted(numbers):  # one order of summation for any number of processes
            volumes[_volume(name)].append(numbers[name])
        results = []
        for volume, rows in volumes.items():
            mse, energy, ssim = torch.tensor(rows, dtype=torch.float64).mean(0)
            results.append(torch.stack([10 * torch.log10(peaks[volume] ** 2 / mse), ssim, mse / energy]))
        means = torch.stack(results).mean(0) if results else torch.full((3,), torch.nan, dtype=torch.float64)
        return dict(zip(("psnr", "ssim", "nmse"), means.to(self.device), strict=True))

    def _numbers(self, pair: Tensor, peak: float) -> list[float]:
        """Mean squared error, mean squared ground truth and SSIM of one slice."""
        x, target = pair[:, None].to(self.device).double()
        ssim = ssim_uniform(x, target, peak)
        return [(x - target).square().mean().item(), target.square().mean().item(), ssim.item()]


def _ssim(
    name: str, x: Tensor, target: Tensor, data_range: float | Tensor, window: Tensor, correction: float
) -> Tensor:
    """Mean of (2μₓμₜ + C₁)(2σₓₜ + C₂) / (μₓ² + μₜ² + C₁)(σₓ² + σₜ² + C₂), moments under window ⊗ window."""
    x, target = _pair(name, x, target)
    if min(x.shape[-2:]) < len(window):
        raise ValueError(
            f"{name}: expected images of at least {len(window)} x {len(window)} pixels, the size of the window, "
            f"got {x.shape[-2]} x {x.shape[-1]}"
        )
    peak = per_sample(_range(name, data_range, x), x)
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    moments = torch.stack([x, target, x * x, target * target, x * target])
    rows, columns = (torch.eye(n).to(window).unfold(0, len(window), 1) @ window for n in x.shape[-2:])
    mu_x, mu_t, xx, tt, xt = rows @ moments @ columns.T  # as products with band matrices, faster than convolutions
    var_x, var_t, cov = (correction * v for v in (xx - mu_x**2, tt - mu_t**2, xt - mu_x * mu_t))
    ratio = (2 * mu_x * mu_t + c1) * (2 * cov + c2) / ((mu_x**2 + mu_t**2 + c1) * (var_x + var_t + c2))
    return ratio.flatten(1).mean(1)


def _pair(name: str, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Magnitudes in float64, which autocast leaves alone."""
    if x.shape != target.shape or x.ndim != 4:
        raise ValueError(
            f"{name}: expected x and target of one shape (B, C, H, W), got {tuple(x.shape)} and {tuple(target.shape)}"
        )
    return magnitude(x).double(), magnitude(target).double()


def _range(name: str, data_range: float | Tensor, x: Tensor) -> Tensor:
    peak = torch.as_tensor(data_range, dtype=torch.float64, device=x.device)
    if peak.ndim > 0 and peak.shape != x.shape[:1]:
        raise ValueError(
            f"{name}: expected data_range to be one number or one per sample ({x.shape[0]},), got {tuple(peak.shape)}"
        )
    return peak


def _centre(x: Tensor, size: tuple[int, int]) -> Tensor:
    top, left = ((n - m) // 2 for n, m in zip(x.shape[-2:], size, strict=True))
    if min(top, left) < 0:
        raise ValueError(
            f"VolumeMetrics: expected reconstructions of at least {size[0]} x {size[1]} pixels, the centre of the "
            f"ground truth, got {x.shape[-2]} x {x.shape[-1]}"
        )
    return x[..., top : top + size[0], left : left + size[1]]


def _volume(name: str) -> str:
    return name.rpartition("/")[0]


def gathered(part: T) -> list[T]:
    """The parts of all processes, in the order of their ranks."""
    if not (dist.is_available() and dist.is_initialized()):
        return [part]
    parts: list[T] = [part] * dist.get_world_size()
    dist.all_gather_object(parts, part)
    return parts
