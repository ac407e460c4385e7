"""Layers with their pullbacks: a layer is a map u ↦ (y, v ↦ Jᵀv), and networks are composed of them.

Both maps are native operations, which can be differentiated: of the reversed tape only those parts are computed that
are asked for, be it a product with the Hessian or the gradient in the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from elder.linalg import per_sample

Pullback = Callable[[Tensor], Tensor]
Layer = Callable[[Tensor], tuple[Tensor, Pullback]]


def chain(*layers: Layer) -> Layer:
    """The layers one after the other."""

    def layer(u: Tensor) -> tuple[Tensor, Pullback]:
        pullbacks = []
        for each in layers:
            u, pull = each(u)
            pullbacks.append(pull)

        def pullback(v: Tensor) -> Tensor:
            for pull in reversed(pullbacks):
                v = pull(v)
            return v

        return u, pullback

    return layer


def skip(inner: Layer) -> Layer:
    """u ↦ u + f(u)."""

    def layer(u: Tensor) -> tuple[Tensor, Pullback]:
        y, pull = inner(u)
        return u + y, lambda v: v + pull(v)

    return layer


def convolution(module: nn.Module) -> Layer:
    """u ↦ w ∗ u + b of an `nn.Conv2d`, zeros beyond the border; its stride divides the sizes of u."""
    assert isinstance(module, nn.Conv2d) and not isinstance(module.padding, str)
    w, b, stride, padding = module.weight, module.bias, module.stride, module.padding

    def layer(u: Tensor) -> tuple[Tensor, Pullback]:
        y = nn.functional.conv2d(u, w, b, stride, padding)
        return y, lambda v: nn.functional.conv_transpose2d(v, w, None, stride, padding)

    return layer


def transposed_convolution(module: nn.Module) -> Layer:
    """The same of an `nn.ConvTranspose2d`, which is the transpose of a convolution."""
    assert isinstance(module, nn.ConvTranspose2d) and not isinstance(module.padding, str)
    w, b, stride, padding = module.weight, module.bias, module.stride, module.padding

    def layer(u: Tensor) -> tuple[Tensor, Pullback]:
        y = nn.functional.conv_transpose2d(u, w, b, stride, padding)
        return y, lambda v: nn.functional.conv2d(v, w, None, stride, padding)

    return layer


def elu(u: Tensor) -> tuple[Tensor, Pullback]:
    """y = max(u, 0) + min(eᵘ − 1, 0), written over u, with slope 1 + min(y, 0): only y is kept."""
    y = nn.functional.elu(u, inplace=True)
    return y, lambda v: _TimesSlope.apply(v, y)


class _TimesSlope(torch.autograd.Function):
    """(v, y) ↦ v · (1 + min(y, 0)); as PyTorch's own, with its second derivative in 2 passes over memory for 5."""

    @staticmethod
    def forward(v: Tensor, y: Tensor) -> Tensor:
        return _times_slope(v, y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, Tensor]:
        (g,) = cotangents
        v, y = ctx.saved_tensors
        # hardtanh_backward(h, y, a, b) = h where a < y < b, and 0 elsewhere; y > −2
        return _times_slope(g, y), torch.ops.aten.hardtanh_backward(g * v, y, -2, 0)


def _times_slope(v: Tensor, y: Tensor) -> Tensor:
    return torch.ops.aten.elu_backward(v, 1, 1, 1, True, y)


def constant_channel(sigma: Tensor) -> Layer:
    """A number σ, () or (B,), appended as a constant channel."""

    def layer(u: Tensor) -> tuple[Tensor, Pullback]:
        level = per_sample(sigma.to(u), u).expand(u.shape[0], 1, *u.shape[2:])
        return torch.cat((u, level), dim=1), lambda v: v[:, : u.shape[1]].contiguous()

    return layer


def channels_last(inner: Layer) -> Layer:
    """f in the memory layout in which convolutions are fastest; images have the usual one outside.

    A clone, since an image of one channel counts as having either layout and would keep the usual one.
    """

    def layer(u: Tensor) -> tuple[Tensor, Pullback]:
        y, pull = inner(u.clone(memory_format=torch.channels_last))
        return y.contiguous(), lambda v: pull(v.clone(memory_format=torch.channels_last)).contiguous()

    return layer


def padded(multiple: int, inner: Layer) -> Layer:
    """f on the image whose last row and column are repeated up to a multiple of some size, cropped afterwards."""

    def layer(u: Tensor) -> tuple[Tensor, Pullback]:
        height, width = u.shape[2:]
        sides = (0, -width % multiple, 0, -height % multiple)
        if not any(sides):
            return inner(u)
        y, pull = inner(nn.functional.pad(u, sides, mode="replicate"))

        def pullback(v: Tensor) -> Tensor:
            return _gather_last(_gather_last(pull(nn.functional.pad(v, sides)), 2, height), 3, width)

        return y[:, :, :height, :width].contiguous(), pullback

    return layer


def _gather_last(v: Tensor, dim: int, size: int) -> Tensor:
    """The transpose of repeating the last of `size` entries: it receives what its copies receive."""
    first, last = v.split((size - 1, v.shape[dim] - size + 1), dim)
    return torch.cat((first, last.sum(dim, keepdim=True)), dim)
