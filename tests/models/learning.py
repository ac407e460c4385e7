"""A few steps of denoising, to see whether a regularizer learns from where it starts."""

from collections.abc import Callable

import torch

from elder.models.regularizers import Regularizer


def denoising_losses(make: Callable[[], Regularizer], steps: int = 60) -> tuple[float, float, float]:
    """Mean squared errors of noisy images, and of D before and after training at the usual learning rate, 1e-3.

    The images are piecewise constant, of edges at random places; those that are measured on are not trained on.
    """
    torch.manual_seed(1)
    R, generator = make(), torch.Generator().manual_seed(2)
    optimizer = torch.optim.Adam(R.parameters(), lr=1e-3)

    def draw(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows, columns = (torch.randint(2, 14, (n, 1, 1, 1), generator=generator) for _ in range(2))
        levels = torch.rand(n, 2, 2, 1, 1, generator=generator)
        below, right = torch.arange(16)[:, None] >= rows, torch.arange(16) >= columns
        x = levels[:, 0, :1] * below + levels[:, 1, :1] * right
        return x, x + 0.1 * torch.randn(x.shape, generator=generator)

    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (y - R.grad(y) - x).square().mean()

    x, y = draw(32)
    with torch.no_grad():
        before = float(loss(x, y))
    for _ in range(steps):
        optimizer.zero_grad()
        loss(*draw(8)).backward()
        optimizer.step()
    with torch.no_grad():
        return float((y - x).square().mean()), before, float(loss(x, y))
