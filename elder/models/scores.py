"""What tests measure of a method: its errors against the ground truth, time, and rows of results.csv."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from elder.datamodules.base import Batch
from elder.metrics import displayed, psnr, snr, ssim_uniform

T = TypeVar("T")


def ground_truth(batch: Batch) -> Tensor:
    """x of a batch, or a `ValueError` where its measurements came without one."""
    if batch.problem.x is None:
        raise ValueError(
            f"ReconstructionModule: expected a ground truth, found none for {batch.names[0]}; "
            "undersampled files can be reconstructed with `predict`, not scored"
        )
    return batch.problem.x


def timed(run: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """What it returns, and the seconds until the device has done all of it."""
    _synchronize(device)
    start = time.perf_counter()
    found = run()
    _synchronize(device)
    return found, time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def scores(
    method: str,
    names: Sequence[str],
    x: Tensor,
    truth: Tensor,
    residual: Tensor,
    n_gradients: Tensor,
    seconds: float,
) -> list[dict[str, Any]]:
    """What one method made of a batch, an entry per image.

    Args:
        method: Its name.
        names: Of the images.
        x: What it made of them, (B, C, H, W).
        truth: Ground truth in [0, 1], shape of x.
        residual: ‖F(x)‖/‖F(x⁰)‖, (B,); NaN where no equation is solved.
        n_gradients: Evaluations of ∇R, (B,).
        seconds: For the whole batch.
    """
    shown = displayed(x)
    columns = zip(
        names,
        psnr(shown, truth, 1.0).tolist(),
        ssim_uniform(shown, truth, 1.0).tolist(),
        residual.tolist(),
        n_gradients.tolist(),
        snr(shown, truth).tolist(),
        strict=True,
    )
    return [
        {
            "method": method,
            "image": name,
            "psnr": decibel,
            "ssim": similarity,
            "residual": relative,
            "n_gradients": int(n),
            "seconds": seconds / len(names),
            "snr": ratio,
        }
        for name, decibel, similarity, relative, n, ratio in columns
    ]
