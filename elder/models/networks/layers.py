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
Size = int | tuple[int, ...]


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
    return convolution_with(module.weight, module.bias, module.stride, module.padding)


def transposed_convolution(module: nn.Module) -> Layer:
    """The same of an `nn.ConvTranspose2d`, which is the transpose of a convolution."""
    assert isinstance(module, nn.ConvTranspose2d) and not isinstance(module.padding, str)
    return transposed_convolution_with(module.weight, module.bias, module.stride, module.padding)


def convolution_with(w: Tensor, b: Tensor | None = None, stride: Size = 1, padding: Size = 0, groups: int = 1) -> Layer:
    """u ↦ w ∗ u + b, for weights that are computed from parameters."""

    def layer(u: Tensor) -> tuple[Tensor, Pullback]:
        y = nn.functional.conv2d(u, w, b, stride, padding, groups=groups)
        return y, lambda v: nn.functional.conv_transpose2d(v, w, None, stride, padding, groups=groups)

    return layer


def transposed_convolution_with(
    w: Tensor, b: Tensor | None = None, stride: Size = 1, padding: Size = 0, groups: int = 1
) -> Layer:
    """The transpose of the convolution with w, plus b."""

    def layer(u: Tensor) -> tuple[Tensor, Pullback]:
        y = nn.functional.conv_transpose2d(u, w, b, stride, padding, groups=groups)
        return y, lambda v: nn.functional.conv2d(v, w, None, stride, padding, groups=groups)

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


def softplus(u: Tensor) -> tuple[Tensor, Pullback]:
    """y = log(1 + eᵘ): convex, and nowhere decreasing."""
    return nn.functional.softplus(u), lambda v: v * torch.sigmoid(u)


def smooth_magnitude(u: Tensor) -> tuple[Tensor, Pullback]:
    """y = √(1 + u²) − 1, without the cancellation near 0: convex."""
    c = (1 + u.square()).rsqrt()
    slope = u * c
    return u * slope / (1 + c), lambda v: v * slope


def log_magnitude(u: Tensor) -> tuple[Tensor, Pullback]:
    """y = ½ log(1 + u²): the negative logarithm of Student's t-distribution, whose slope falls back to zero."""
    return 0.5 * u.square().log1p(), lambda v: v * u / (1 + u.square())


def relu(u: Tensor) -> tuple[Tensor, Pullback]:
    """y = max(u, 0), written over u. For fields that nobody differentiates twice: its second derivative is zero."""
    y = nn.functional.relu(u, inplace=True)
    return y, lambda v: v * (y > 0)


def activation(name: str) -> Layer:
    """The one that configurations call "elu" or "relu"."""
    known: dict[str, Layer] = {"elu": elu, "relu": relu}
    if name not in known:
        raise ValueError(f"activation: expected {' or '.join(known)}, got {name!r}")
    return known[name]


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
        y, pull = chain(replicated(sides), inner)(u)
        return y[:, :, :height, :width].contiguous(), lambda v: pull(nn.functional.pad(v, sides))

    return layer


def replicated(sides: tuple[int, int, int, int]) -> Layer:
    """The image with its border pixels repeated: columns to the left and right, rows above and below."""
    left, right, above, below = sides

    def layer(u: Tensor) -> tuple[Tensor, Pullback]:
        def pullback(v: Tensor) -> Tensor:
            return _gather(_gather(v, 2, above, below), 3, left, right)

        return nn.functional.pad(u, sides, mode="replicate"), pullback

    return layer


def _gather(v: Tensor, dim: int, before: int, after: int) -> Tensor:
    """The transpose of repeating the first and the last entry: each receives what its copies receive."""
    if after:
        first, last = v.split((v.shape[dim] - after - 1, after + 1), dim)
        v = torch.cat((first, last.sum(dim, keepdim=True)), dim)
    if before:
        first, last = v.split((before + 1, v.shape[dim] - before - 1), dim)
        v = torch.cat((first.sum(dim, keepdim=True), last), dim)
    return v
