"""Starting a solve from the solution that the same sample had at its last visit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from elder.solvers import Solution


class WarmStart:
    """Remembers x̂ of every training sample, in main memory, together with what its residual is relative to.

    A good start for data sets whose samples come back alike: the same image, operator and noise, or at least the same
    image. Random crops and flips make another image of it, which is a start like any other, only not a good one.
    Every process remembers what it has seen itself, and a resumed run starts with an empty memory.
    """

    def __init__(self) -> None:
        self._solutions: dict[int, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self._solutions)

    def start(self, samples: Sequence[int], x0: Tensor) -> tuple[Tensor, Tensor]:
        """Where to start, shape of x0, and the scale of the residual there, (B,); x0 and NaN for unknown samples.

        The scale is ‖F(x⁰)‖ of the first visit: a warm start meets the same tolerance as a cold one, it is not asked to
        improve on itself by the same factor.
        """
        x, scale = x0.clone(), torch.full((len(x0),), torch.nan, dtype=x0.real.dtype, device=x0.device)
        for row, sample in enumerate(samples):
            known = self._solutions.get(sample)
            if known is not None and known[0].shape == x0.shape[1:] and known[0].dtype == x0.dtype:
                x[row], scale[row] = known[0].to(x0.device), known[1].to(x0.device)
        return x, scale

    def keep(self, samples: Sequence[int], solution: Solution) -> None:
        """Remember the solutions of these samples; one that diverged starts anew at its next visit."""
        x, scale = solution.x.detach().cpu(), solution.scale
        assert scale is not None
        for row, (sample, diverged) in enumerate(zip(samples, solution.diverged.tolist(), strict=True)):
            if diverged:
                self._solutions.pop(sample, None)
                continue
            known = scale[row].cpu()
            self._solutions[sample] = (x[row].clone(), torch.where(known > 0, known, torch.nan))
