# %% [markdown]
# # Bilevel learning and deep equilibrium, side by side
#
# A variational model is learned by bilevel optimisation:
#
# $$\min_\theta \ell(\hat x_\theta) \quad\text{with}\quad \hat x_\theta = \arg\min_x f_\theta(x),\qquad
# f_\theta(x) = \tfrac12\|Ax - y\|^2 + \lambda \sum_k \alpha_k \sum \psi(w_k * x).$$
#
# Its minimiser is the fixed point of gradient descent, $T(x) = x - \gamma(A^H(Ax - y) + \lambda W^T(\alpha \odot
# \psi'(Wx)))$, so that it is also an equilibrium model whose layer $T$ has *tied* weights: $W$ analyses, and its
# transpose synthesises. An equilibrium model need not have them tied; with filters $C$ of its own in place of $W$ in
# the transpose its field $A^H(Ax - y) + \lambda C^T(\alpha \odot \psi'(Wx))$ is in general the gradient of nothing
# (Riccio, Ehrhardt and Benning, 2022).
#
# `python notebooks/bilevel_vs_deq.py` runs all of it in a minute or two and writes pictures into
# `runs/bilevel_vs_deq` (`RUN_DIR`, `STEPS`); in VS Code, PyCharm or Jupyter with jupytext it is a notebook.

# %%
import copy
import itertools
import os
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from elder.datamodules.bundled import package_file
from elder.metrics import psnr
from elder.models.reconstruction import Reconstruction
from elder.models.regularizers import FieldsOfExperts, LogCosh, Prior, UntiedExperts
from elder.models.stability import certify
from elder.operators import Deblurring, DiagonalKernel, Gaussian, InverseProblem, Scene
from elder.solvers import GMRES, MINRES, Anderson, GradientDescent, Implicit, Picard, Solver

OUT = Path(os.environ.get("RUN_DIR", "runs/bilevel_vs_deq"))
STEPS = int(os.environ.get("STEPS", 150))
N_SENSITIVITY, N_ASCENT = (15, 8) if STEPS > 50 else (3, 2)
OUT.mkdir(parents=True, exist_ok=True)
torch.manual_seed(0)
photograph, held_out = (
    torch.tensor(np.asarray(Image.open(package_file("skimage", f"data/{name}.png")).convert("L")) / 255.0).float()
    for name in ("coins", "camera")
)
acquisition = Deblurring(DiagonalKernel(5), Gaussian(0.025))


def problems(picture: Tensor, n: int, size: int, seed: int) -> InverseProblem:
    """n blurred and noisy patches."""
    generator = torch.Generator().manual_seed(seed)
    corners = [
        [int(torch.randint(extent - size, (), generator=generator)) for extent in picture.shape] for _ in range(n)
    ]
    x = torch.stack([picture[None, i : i + size, j : j + size] for i, j in corners])
    return acquisition(Scene(x), [torch.Generator().manual_seed(1000 * seed + k) for k in range(n)])


def model(prior: Prior, solver: Solver, tol: float, strength: float = 0.015) -> Reconstruction:
    """The prior with the linear solver that its Jacobian asks for: symmetric where the field is a gradient."""
    linear = GMRES(300, tol) if isinstance(prior, UntiedExperts) else MINRES(300, tol)
    return Reconstruction(prior, solver, Implicit(linear), strength=strength)


# %% [markdown]
# ## The theorem, in numbers
#
# With $C = W$ both are one function of the same numbers, so that the hypergradient in $W$ is the sum of those in the
# two places where it occurs. In float64, with either way to the fixed point:

# %%
agreement: dict[str, float] = {}
small = problems(photograph, 2, 16, seed=1)
small = InverseProblem(copy.deepcopy(small.A).double(), small.y.double(), small.x.double(), small.sigma)  # type: ignore[union-attr]
R = FieldsOfExperts(1, 6, 3, LogCosh(10.0))
for name, solver in (
    ("Anderson", Anderson(500, 1e-13, iteration=GradientDescent(0.5))),
    ("plain iteration", Picard(20000, 1e-13, GradientDescent(0.5))),
):
    bilevel, equilibrium = (
        model(prior, solver, 1e-13).double() for prior in (copy.deepcopy(R), UntiedExperts(copy.deepcopy(R)))
    )
    for one in (bilevel, equilibrium):
        (one(small).x - small.x).square().mean().backward()
    tied = bilevel.prior.filters.grad
    untied = equilibrium.prior.experts.filters.grad + equilibrium.prior.synthesis.grad
    agreement[name] = float((tied - untied).norm() / tied.norm())
    print(f"{name}: ‖bilevel − equilibrium‖ / ‖bilevel‖ = {agreement[name]:.1e}")

# %% [markdown]
# ## Learned from the same start, on the same patches
#
# Deconvolution of 5 pixels of diagonal motion, $\sigma = 0.025$.

# %%
lower = Anderson(300, 1e-3, iteration=GradientDescent(0.5))
start = FieldsOfExperts(1, 24, 5, LogCosh())
models = {
    "tied": model(copy.deepcopy(start), lower, 1e-2),
    "untied": model(UntiedExperts(copy.deepcopy(start)), lower, 1e-2),
}
curves: dict[str, list[float]] = {name: [] for name in models}
costs: dict[str, list[float]] = {name: [] for name in models}
for name, one in models.items():
    optimizer = torch.optim.Adam(one.parameters(), lr=1e-2)
    for step in range(STEPS):
        batch = problems(photograph, 4, 32, seed=10 + step)
        optimizer.zero_grad()
        solution = one(batch)
        loss = (solution.x - batch.x).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(one.parameters(), 1e-2)
        optimizer.step()
        curves[name].append(float(loss.detach()))
        costs[name].append(float(solution.n_gradients.mean() + solution.adjoint.solution.n_products.mean()))

# %% [markdown]
# ## What losing the functional costs
#
# On patches of a photograph that was not learned from. *Asymmetry* is $\|(M - M^T)v\| / \|(M + M^T)v\|$ for the
# Jacobian $M$ of the field at the solution, 0 for a gradient; *sensitivity* is $\|\partial\hat x/\partial y\|$, by
# Lanczos; *amplification* that of a perturbation of the given size, the worst that was found.

# %%
test = problems(held_out, 4, 48, seed=3)
measured: dict[str, dict[str, float]] = {}
for name, one in models.items():
    tight = Reconstruction(
        one.prior, Anderson(1000, 1e-5, iteration=GradientDescent(0.5)), strength=float(one.strength.detach())
    )
    with torch.no_grad():
        solution = tight(test)
    large, small_change = (
        certify(tight, test, size, n_lanczos=30, n_sensitivity=n, n_ascent=m)
        for size, n, m in ((0.05, N_SENSITIVITY, N_ASCENT), (0.002, 1, N_ASCENT))
    )
    measured[name] = {
        "PSNR (dB)": float(psnr(solution.x, test.x, 1.0).mean()),
        "gradients": float(solution.n_gradients.mean()),
        "products and gradients of a training step": sum(costs[name]) / len(costs[name]),
        "asymmetry": float(large.asymmetry.max()),
        "least curvature": float(large.curvature.min()),
        "sensitivity": float(large.sensitivity.max()),
        "amplification of 5 %": float(large.amplification.max()),
        "amplification of 0.2 %": float(small_change.amplification.max()),
    }
for key in measured["tied"]:
    print(f"{key:<42}" + "".join(f"{name} {values[key]:9.3g}   " for name, values in measured.items()))

# %% [markdown]
# The functional of the tied model falls along its iteration. The untied one has none; the nearest there is, with $W$
# in both places, need not fall.


# %%
def energies(one: Reconstruction) -> list[float]:
    """f of the iterates of gradient descent from the same start, f with the analysis filters in both places."""
    experts = one.prior.experts if isinstance(one.prior, UntiedExperts) else one.prior
    f = Reconstruction(experts, strength=float(one.strength.detach())).objective(test)
    x, field, seen = test.A.initialize(test.y), one.objective(test), []
    with torch.no_grad():
        for _ in range(400):
            seen.append(float(f.value(x).sum()))
            x = x - 0.5 * field.grad(x)
    return seen


falling = {name: energies(one) for name, one in models.items()}
rises = {name: sum(b > a * (1 + 1e-6) for a, b in itertools.pairwise(values)) for name, values in falling.items()}
print(f"steps in which f rose: {rises}")

# %%
figure = Figure(figsize=(12, 7), layout="constrained")
FigureCanvasAgg(figure)
(curve, energy, potential), filters = figure.subplots(2, 3)
for name in models:
    window = max(1, STEPS // 20)
    smooth = np.convolve(curves[name], np.ones(window) / window, "valid")
    curve.plot(range(window - 1, STEPS), smooth, label=name)
    values = np.array(falling[name])
    energy.plot(values - values.min(), label=name)
curve.set(title="mean squared error of training", xlabel="step", yscale="log")
energy.set(title="f of the iterates, above its least value", xlabel="iteration", yscale="log")
trained = models["tied"].prior
t = torch.linspace(-0.15, 0.15, 301)
with torch.no_grad():
    order = (trained.log_weights + 2 * trained.log_scales).argsort(descending=True)
    for k in order[:5]:
        scale, weight = trained.log_scales[k].exp(), trained.log_weights[k].exp()
        potential.plot(t, weight * trained.potential(scale * t), label=f"filter {int(k)}")
potential.set(title="learned potentials of unit filters", xlabel="response")
for axes in (curve, energy, potential):
    axes.legend()


def mosaic(bank: Tensor) -> np.ndarray:
    """24 filters in four rows, each scaled by its largest tap."""
    bank = bank.detach()[:, 0]
    bank = torch.nn.functional.pad(bank / bank.abs().amax((1, 2), keepdim=True), (0, 1, 0, 1))
    rows, columns = 4, 6
    return bank.reshape(rows, columns, *bank.shape[1:]).permute(0, 2, 1, 3).reshape(rows * 6, columns * 6).numpy()


for axes, (title, bank) in zip(
    filters,
    {
        "tied: W": trained.filters,
        "untied: W": models["untied"].prior.experts.filters,
        "untied: C": models["untied"].prior.synthesis,
    }.items(),
    strict=True,
):
    axes.imshow(mosaic(bank), cmap="RdBu", vmin=-1, vmax=1)
    axes.set(title=title, xticks=[], yticks=[])
figure.savefig(OUT / "bilevel_vs_deq.png", dpi=110)
