"""Operators whose measurements split into views, of which an iteration may use a few at a time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from elder.operators.base import LinearOperator

__all__ = ["BlockOperator"]


class BlockOperator(LinearOperator):
    """A = [A₁; …; A_m], one block for each view: angle of a scan, illumination, coil.

    Since ‖Ax − y‖² = Σᵢ ‖Aᵢx − yᵢ‖², a uniformly drawn subset I of the views gives an unbiased estimate of the gradient
    of the data term, (m/|I|) A_Iᵀ(A_I x − y_I), and its average over the parts of a partition into equal parts is the
    gradient itself (Liu et al., 2022).
    """

    @property
    @abstractmethod
    def n_blocks(self) -> int:
        """m, the number of views."""

    @abstractmethod
    def subset(self, blocks: Tensor) -> BlockOperator:
        """A_I, of the views at these positions, (|I|,), in this order."""

    @abstractmethod
    def subset_data(self, y: Tensor, blocks: Tensor) -> Tensor:
        """y_I, what `subset` measures of what A does."""

    def _expect_blocks(self, blocks: Tensor) -> Tensor:
        """The positions as (|I|,) int64.

        Raises:
            ValueError: If there are none, or one is outside of 0 … m − 1 or there twice.
        """
        found: Sequence[int] = blocks.tolist() if blocks.ndim == 1 and not blocks.is_floating_point() else ()
        if not found or min(found) < 0 or max(found) >= self.n_blocks or len(set(found)) < len(found):
            raise ValueError(
                f"{type(self).__name__}: expected a subset of the {self.n_blocks} views, each at most once, as whole "
                f"numbers (n,) from 0 to {self.n_blocks - 1}, got {blocks.dtype} {tuple(blocks.shape)}"
                f"{f' {found}' if len(found) < 20 else ''}; draw it by torch.randperm({self.n_blocks})[:n]"
            )
        return blocks.to(torch.int64)
