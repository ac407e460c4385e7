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
# `python notebooks/bilevel_vs_deq.py` runs all of it in some minutes and writes pictures into `runs/bilevel_vs_deq`
# (`RUN_DIR`, `STEPS`, `SEEDS`); in VS Code, PyCharm or Jupyter with jupytext it is a notebook.

# %%
import copy
import csv
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
STEPS, SEEDS = int(os.environ.get("STEPS", 150)), int(os.environ.get("SEEDS", 3))
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
# Deconvolution of 5 pixels of diagonal motion, $\sigma = 0.025$; with each seed, other patches.

# %%
lower = Anderson(300, 1e-3, iteration=GradientDescent(0.5))
start = FieldsOfExperts(1, 24, 5, LogCosh())
models = {
    "tied": [model(copy.deepcopy(start), lower, 1e-2) for _ in range(SEEDS)],
    "untied": [model(UntiedExperts(copy.deepcopy(start)), lower, 1e-2) for _ in range(SEEDS)],
}
curves: dict[str, list[list[float]]] = {name: [] for name in models}
costs: dict[str, list[list[float]]] = {name: [] for name in models}
for name, seed in itertools.product(models, range(SEEDS)):
    one, curve, cost = models[name][seed], [], []
    optimizer = torch.optim.Adam(one.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for step in range(STEPS):
        batch = problems(photograph, 4, 32, seed=10 + 1000 * seed + step)
        optimizer.zero_grad()
        solution = one(batch)
        loss = (solution.x - batch.x).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(one.parameters(), 1e-2)
        optimizer.step()
        schedule.step()
        curve.append(float(loss.detach()))
        cost.append(float(solution.n_gradients.mean() + solution.adjoint.solution.n_products.mean()))
    curves[name].append(curve)
    costs[name].append(cost)

# %% [markdown]
# ## What losing the functional costs
#
# On patches of a photograph that was not learned from. *Asymmetry* is $\|(M - M^T)v\| / \|(M + M^T)v\|$ for the
# Jacobian $M$ of the field at the solution, 0 for a gradient; *sensitivity* is $\|\partial\hat x/\partial y\|$, by
# Lanczos; *amplification* that of a perturbation of the given size, the worst that was found. Of each seed's models.

# %%
test = problems(held_out, 4, 48, seed=3)
measured: dict[str, list[dict[str, float]]] = {name: [] for name in models}
for name, seed in itertools.product(models, range(SEEDS)):
    one = models[name][seed]
    tight = Reconstruction(
        one.prior, Anderson(1000, 1e-5, iteration=GradientDescent(0.5)), strength=float(one.strength.detach())
    )
    with torch.no_grad():
        solution = tight(test)
    large, small_change = (
        certify(tight, test, size, n_lanczos=30, n_sensitivity=n, n_ascent=m)
        for size, n, m in ((0.05, N_SENSITIVITY, N_ASCENT), (0.002, 1, N_ASCENT))
    )
    numbers = {
        "PSNR (dB)": float(psnr(solution.x, test.x, 1.0).mean()),
        "gradients": float(solution.n_gradients.mean()),
        "products and gradients of a training step": sum(costs[name][seed]) / STEPS,
        "asymmetry": float(large.asymmetry.max()),
        "least curvature": float(large.curvature.min()),
        "largest curvature": float(large.lipschitz.max()),
        "sensitivity": float(large.sensitivity.max()),
        "amplification of 5 %": float(large.amplification.max()),
        "amplification of 0.2 %": float(small_change.amplification.max()),
    }
    measured[name].append(numbers)
for key in measured["tied"][0]:
    cells = (f"{name} " + ", ".join(f"{found[key]:.3g}" for found in measured[name]) for name in models)
    print(f"{key:<44}" + "".join(f"{cell:<40}" for cell in cells))

# %% [markdown]
# The functional of the tied model falls along its iteration, here with a step of $1/L$ for the largest curvature $L$.
# The untied one has none; the nearest there is, with $W$ in both places, need not fall.


# %%
def energies(one: Reconstruction, step_size: float) -> list[float]:
    """f of the iterates of gradient descent from the same start, f with the analysis filters in both places."""
    one, exact = copy.deepcopy(one).double(), test._replace(A=copy.deepcopy(test.A).double(), y=test.y.double())
    experts = one.prior.experts if isinstance(one.prior, UntiedExperts) else one.prior
    f = Reconstruction(experts, strength=float(one.strength.detach())).objective(exact)
    x, field, seen = exact.A.initialize(exact.y), one.objective(exact), []
    with torch.no_grad():
        for _ in range(400):
            seen.append(float(f.value(x).sum()))
            x = x - step_size * field.grad(x)
    return seen


falling = {
    name: [
        energies(one, 1 / found["largest curvature"]) for one, found in zip(models[name], measured[name], strict=True)
    ]
    for name in models
}
rises = {
    name: [sum(b > a * (1 + 1e-12) for a, b in itertools.pairwise(values)) for values in falling[name]]
    for name in models
}
print(f"steps in which f rose: {rises}")

# %%
figure = Figure(figsize=(12, 7), layout="constrained")
FigureCanvasAgg(figure)
(curve, energy, potential), filters = figure.subplots(2, 3)
for name in models:
    window = max(1, STEPS // 20)
    smooth = np.convolve(np.mean(curves[name], axis=0), np.ones(window) / window, "valid")
    curve.plot(range(window - 1, STEPS), smooth, label=name)
    values = np.array(falling[name][0])
    energy.plot(values - values.min(), label=name)
curve.set(title="mean squared error of training, over seeds", xlabel="step", yscale="log")
energy.set(title="f of the iterates, above its least value", xlabel="iteration", yscale="log")
trained, untied = models["tied"][0].prior, models["untied"][0].prior
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
        "untied: W": untied.experts.filters,
        "untied: C": untied.synthesis,
    }.items(),
    strict=True,
):
    axes.imshow(mosaic(bank), cmap="RdBu", vmin=-1, vmax=1)
    axes.set(title=title, xticks=[], yticks=[])
figure.savefig(OUT / "bilevel_vs_deq.png", dpi=110)

# %% [markdown]
# ## By problem and noise
#
# The table of the study `configs/ablations/bilevel.yaml`, as `main.py ablate report … --quick` writes it.

# %%
with (Path(os.environ.get("RESULTS", "docs/results")) / "bilevel.csv").open(newline="") as file:
    study = list(csv.DictReader(file))
by_problem: dict[str, dict[str, dict[str, float]]] = {row["problem"]: {"tied": {}, "untied": {}} for row in study}
for row in sorted(study, key=lambda row: float(row["noise"])):
    by_problem[row["problem"]][row["filters"]][row["noise"]] = float(row["psnr_mean"])
figure = Figure(figsize=(14, 3.4), layout="constrained")
FigureCanvasAgg(figure)
for axes, (problem, lines) in zip(figure.subplots(1, len(by_problem), sharey=True), by_problem.items(), strict=True):
    for (name, line), style in zip(lines.items(), ("o-", "s--"), strict=True):
        axes.plot(*zip(*line.items(), strict=True), style, label=name, markersize=4)
    axes.set(title=problem, xlabel="noise, in units of [−1, 1]")
    axes.grid(alpha=0.3)
    axes.legend()
figure.axes[0].set(ylabel="PSNR (dB)")
figure.savefig(OUT / "bilevel_by_noise.png", dpi=110)
