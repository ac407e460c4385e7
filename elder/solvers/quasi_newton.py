"""Limited-memory estimates of (∂F/∂x)⁻¹, one for each sample, in which no loop runs over the memory.

Vectors live in one tensor (B, 2(m + 1), N), of which a step rewrites one slot for each sample, the spare one; complex
images count as real vectors of twice the size. Nothing here is differentiated: estimates are constants, and linear
maps. Learning a pair uses the old estimate up, unless gradients are recorded.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Tensor

from elder.linalg import full_precision, inner, norm


class InverseHessian(NamedTuple):
    """H ≈ (∇²f)⁻¹ of limited-memory BFGS from pairs s = Δx, y = Δ∇f and H₀ = γP, in compact form.

    With Z = PY, H = γP + [S γZ] [R⁻ᵀ(D + γYᵀZ)R⁻¹, −R⁻ᵀ; −R⁻¹, 0] [S γZ]ᵀ, where R is the upper triangle of SᵀY and D
    its diagonal (Byrd, Nocedal and Schnabel, 1994, theorem 2.2); γ = ⟨s, y⟩/⟨y, Py⟩ of the latest pair. P is known by
    what it makes of the vectors: whoever uses H brings Pu along with u. P = I where it is left out.
    """

    vectors: Tensor  # (B, 2(m + 1), N): s, then Py; pair number i in slot i mod m + 1
    count: Tensor  # pairs ever learnt, (B,), int64
    sy: Tensor  # R, (B, m, m), oldest pair first; the identity where there is no pair yet
    yy: Tensor  # YᵀPY, (B, m, m)
    scale: Tensor  # γ, (B,)

    @classmethod
    def empty(cls, x: Tensor, memory: int) -> Self:
        """The identity."""
        v = flat(x.detach())
        small = v.new_zeros(len(v), memory, memory)
        count = torch.zeros(len(v), dtype=torch.int64, device=v.device)
        vectors = v.new_zeros(len(v), 2 * (memory + 1), v.shape[1])
        identity = torch.eye(memory, dtype=v.dtype, device=v.device)
        return cls(vectors, count, small + identity, small, v.new_ones(len(v)))

    @full_precision
    def __call__(self, u: Tensor, Pu: Tensor | None = None) -> Tensor:
        """Hu, shape of u."""
        v = flat(u)
        s, y = self._in_order(v[:, None] @ self.vectors.mT).unbind(1)
        scale, D = self.scale[:, None], self.sy.diagonal(dim1=1, dim2=2)
        a = torch.linalg.solve_triangular(self.sy, s[..., None], upper=True)[..., 0]
        b = D * a + scale * ((self.yy @ a[..., None])[..., 0] - y)
        b = torch.linalg.solve_triangular(self.sy.mT, b[..., None], upper=False)[..., 0]
        start = v if Pu is None else flat(Pu)
        return unflat(scale * start + self._combine(b, -scale * a), u)

    @full_precision
    def learn(self, s: Tensor, y: Tensor, which: Tensor, precision: float, Py: Tensor | None = None) -> Self:
        """Add the pair (s, y) for the samples `which`, (B,), and leave others, and pairs of no curvature, alone."""
        s, y = flat(s.detach()), flat(y.detach())
        z = y if Py is None else flat(Py.detach())
        curvature = inner(s, y)
        which = which & (curvature > precision * norm(s) * norm(y))
        vectors = _store(self.vectors, self.count, s, z, which)
        new = self._replace(vectors=vectors, count=self.count + which)
        column_s, column_y = new._in_order(y[:, None] @ vectors.mT).unbind(1)
        sy = torch.nn.functional.pad(self.sy[:, 1:, 1:], (0, 0, 0, 1))
        sy = torch.cat((sy, column_s[..., None]), 2)
        yy = torch.cat((self.yy[:, 1:, 1:], column_y[:, None, :-1]), 1)
        yy = torch.cat((yy, column_y[..., None]), 2)
        return new._replace(
            sy=torch.where(which[:, None, None], sy, self.sy),
            yy=torch.where(which[:, None, None], yy, self.yy),
            scale=torch.where(which, curvature / torch.where(which, inner(y, z), 1), self.scale),
        )

    def forget(self, which: Tensor) -> Self:
        """The identity for the samples `which`, (B,)."""
        identity = torch.eye(self.sy.shape[1], dtype=self.sy.dtype, device=self.sy.device)
        return self._replace(
            count=torch.where(which, 0, self.count),
            sy=torch.where(which[:, None, None], identity, self.sy),
            yy=torch.where(which[:, None, None], 0, self.yy),
            scale=torch.where(which, 1, self.scale),
        )

    def _in_order(self, products: Tensor) -> Tensor:
        """(B, 1, 2(m + 1)) by slot to (B, 2, m), oldest pair first and 0 where there is no pair."""
        memory = self.sy.shape[1]
        position = torch.arange(memory, device=products.device)
        slots = (self.count[:, None] + 1 + position) % (memory + 1)
        products = products.reshape(-1, 2, memory + 1).gather(2, slots[:, None].expand(-1, 2, -1))
        return torch.where((position >= memory - self.count[:, None])[:, None], products, 0)

    def _combine(self, s: Tensor, y: Tensor) -> Tensor:
        """S s + Y y for coefficients (B, m), oldest pair first; those of no pair are 0."""
        coefficients = torch.nn.functional.pad(torch.stack((s, y), 1), (0, 1))  # that of the spare slot
        coefficients = coefficients.gather(2, _position(self.count, self.vectors)[:, None].expand(-1, 2, -1))
        return (coefficients.flatten(1)[:, None] @ self.vectors)[:, 0]


class InverseJacobian(NamedTuple):
    """H ≈ (∂F/∂x)⁻¹ = γI + Σ_i u_i v_iᵀ of Broyden's first ("good") method from pairs s = Δx, y = ΔF.

    Each pair adds u = (s − Hy)/⟨s, Hy⟩ and v = Hᵀs, so that Hy = s (Broyden, 1965, with the formula of Sherman and
    Morrison). Where the memory is full the oldest term leaves H before the new one is computed.
    """

    vectors: Tensor  # (B, 2(m + 1), N): u, then v; term number i in slot i mod m + 1
    count: Tensor  # terms ever learnt, (B,), int64
    scale: Tensor  # γ, (B,)

    @classmethod
    def empty(cls, x: Tensor, memory: int, scale: float) -> Self:
        """γI."""
        v = flat(x.detach())
        count = torch.zeros(len(v), dtype=torch.int64, device=v.device)
        return cls(v.new_zeros(len(v), 2 * (memory + 1), v.shape[1]), count, v.new_full((len(v),), scale))

    @full_precision
    def __call__(self, r: Tensor) -> Tensor:
        """Hr, shape of r."""
        return unflat(self._apply(flat(r), self._present()), r)

    @full_precision
    def transposed(self, r: Tensor) -> Tensor:
        """Hᵀr, shape of r."""
        return unflat(self._apply_transposed(flat(r), self._present()), r)

    @full_precision
    def learn(self, s: Tensor, y: Tensor, which: Tensor, precision: float) -> Self:
        """Add the pair (s, y) for the samples `which`, (B,), and leave others, and pairs of no use, alone."""
        s, y, kept = flat(s.detach()), flat(y.detach()), self._present(1)
        Hy = self._apply(y, kept)
        pivot = inner(s, Hy)
        which = which & (pivot.abs() > precision * norm(s) * norm(Hy))
        u = (s - Hy) / torch.where(which, pivot, 1)[:, None]
        vectors = _store(self.vectors, self.count, u, self._apply_transposed(s, kept), which)
        return self._replace(vectors=vectors, count=self.count + which)

    def forget(self, which: Tensor) -> Self:
        """γI for the samples `which`, (B,)."""
        return self._replace(count=torch.where(which, 0, self.count))

    def _present(self, oldest: int = 0) -> Tensor:
        """The slots in use, (B, m + 1), save those at the first few of the m places."""
        position = _position(self.count, self.vectors)
        memory = position.shape[1] - 1
        return (position < memory) & (position >= (memory - self.count[:, None]).clamp_min(oldest))

    def _apply(self, r: Tensor, slots: Tensor) -> Tensor:
        u, v = self.vectors.chunk(2, dim=1)
        return self.scale[:, None] * r + _project(r, v, u, slots)

    def _apply_transposed(self, r: Tensor, slots: Tensor) -> Tensor:
        u, v = self.vectors.chunk(2, dim=1)
        return self.scale[:, None] * r + _project(r, u, v, slots)


def flat(u: Tensor) -> Tensor:
    """A batch as real vectors, (B, N)."""
    return (torch.view_as_real(u.resolve_conj()) if u.is_complex() else u).flatten(1)


def unflat(v: Tensor, like: Tensor) -> Tensor:
    """Inverse of `flat`, with the shape and type of `like`."""
    return torch.view_as_complex(v.reshape(*like.shape, 2)) if like.is_complex() else v.reshape(like.shape)


def _project(r: Tensor, left: Tensor, right: Tensor, slots: Tensor) -> Tensor:
    """Σ_i right_i ⟨left_i, r⟩ over some slots, (B, m + 1) bool."""
    coefficients = torch.where(slots[:, None], r[:, None] @ left.mT, 0)
    return (coefficients @ right)[:, 0]


def _position(count: Tensor, vectors: Tensor) -> Tensor:
    """The place of each slot in the order of age, (B, m + 1): 0 is that of the oldest of m, m that of the spare one."""
    size = vectors.shape[1] // 2
    return (torch.arange(size, device=count.device) - count[:, None] - 1) % size


def _store(vectors: Tensor, count: Tensor, first: Tensor, second: Tensor, which: Tensor) -> Tensor:
    """Two new vectors of each sample, (B, N), in its spare slot of either half; 0 except for the samples `which`.

    Written in place unless gradients are recorded: the copy would cost more than all the rest of a step.
    """
    size = vectors.shape[1] // 2
    rows, slot = torch.arange(len(count), device=count.device), count % size
    if torch.is_grad_enabled():
        vectors = vectors.clone()
    for shift, new in ((0, first), (size, second)):
        vectors.index_put_((rows, slot + shift), torch.where(which[:, None], new, 0))
    return vectors
