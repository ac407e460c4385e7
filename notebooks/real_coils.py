# %% [markdown]
# # Real coils
#
# Three sets of measurements of eight coils each, reconstructed with the sensitivities that ESPIRiT finds in their
# calibration lines and total variation, $\min_x \tfrac12\|MFSx - y\|^2 + \lambda\,\mathrm{TV}(x)$:
#
# * `bart_pics_brain`, 12.7 % of k-space, beside the reference that was made from all of it;
# * `cartesian_ksp`, 12.4 % of k-space, without reference;
# * `brain_alias_8ch`, of which every other column is kept here beside 23 about DC; its field of view is so small that
#   the head wraps, where one set of sensitivities cannot explain the data.
#
# `DATA=data/mri/multicoil python notebooks/real_coils.py` writes `runs/real_coils/real_coils.png` (`RUN_DIR`).
# docs/data.md says where the files come from.

# %%
import os
from pathlib import Path

import numpy as np
import scipy.io
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from elder.datamodules.espirit import espirit
from elder.models.reconstruction import Reconstruction
from elder.models.regularizers import TotalVariation
from elder.operators import InverseProblem, multi_coil
from elder.solvers import LBFGS

DATA = Path(os.environ.get("DATA", "data/mri/multicoil"))
OUT = Path(os.environ.get("RUN_DIR", "runs/real_coils"))
OUT.mkdir(parents=True, exist_ok=True)


def reconstruct(kspace: Tensor, strength: float) -> tuple[Tensor, Tensor, Tensor]:
    """The image without and with total variation, and the sensitivities; k-space (coils, H, W), 0 where not sampled."""
    maps = espirit(kspace)
    A = multi_coil((kspace != 0).any(0)[None, None], maps[None])
    y = kspace[None] / A.adjoint(kspace[None]).abs().max()
    solver = LBFGS(max_steps=500, tol=1e-4)
    with torch.no_grad():
        solution = Reconstruction(TotalVariation(1e-3), solver, strength=strength)(InverseProblem(A, y))
    return A.adjoint(y)[0, 0], solution.x[0, 0], maps


def difference(x: Tensor, reference: Tensor) -> float:
    """‖c|x| − |x*|‖ / ‖x*‖ for the best c: what is measured has neither a scale nor, coil by coil, a phase."""
    x, reference = x.abs(), reference.abs()
    return float(torch.linalg.vector_norm((x * reference).sum() / x.square().sum() * x - reference) / reference.norm())


# %%
with np.load(DATA / "bart_pics_brain.npz") as file:
    bart, reference = (torch.from_numpy(file[key]) for key in ("kspace", "reference"))
cartesian = torch.from_numpy(np.load(DATA / "cartesian_ksp.npy"))
wrapped = torch.from_numpy(scipy.io.loadmat(DATA / "brain_alias_8ch.mat")["DATA"]).movedim(-1, 0).to(torch.complex64)
columns = torch.arange(wrapped.shape[-1])
kept = (columns % 2 == 0) | ((columns - wrapped.shape[-1] // 2).abs() < 12)
full = torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(wrapped, dim=(-2, -1)), norm="ortho"), dim=(-2, -1))
sets: dict[str, tuple[Tensor, float, Tensor | None]] = {
    "bart_pics_brain": (bart, 1e-3, reference),
    "cartesian_ksp": (cartesian, 1e-3, None),
    "brain_alias_8ch": (wrapped * kept, 3e-4, full.abs().square().sum(0).sqrt()),
}
found = {name: reconstruct(kspace, strength) for name, (kspace, strength, _) in sets.items()}
differences = {
    name: [difference(x, truth) for x in found[name][:2]] for name, (_, _, truth) in sets.items() if truth is not None
}
for name, (before, after) in differences.items():
    print(f"{name}: {before:.1%} from the reference as measured, {after:.1%} with total variation")

# %% [markdown]
# How much of that is noise, how much the sampling? The reference itself, sampled at the same places without noise:

# %%
mask, maps = (bart != 0).any(0), found["bart_pics_brain"][2]
sampled = multi_coil(mask[None, None], maps[None])(reference[None, None].to(torch.complex64))
noise_free = difference(reconstruct(sampled[0], 1e-4)[1], reference)
print(f"bart_pics_brain, its reference sampled without noise: {noise_free:.1%}")

# %%
figure = Figure(figsize=(10, 9), layout="constrained")
FigureCanvasAgg(figure)
for row, (name, (_, _, truth)) in zip(figure.subplots(3, 4), sets.items(), strict=True):
    measured, x, maps = found[name]
    pictures = {"as measured": measured, "total variation": x, "reference": truth, "first sensitivity": maps[0]}
    for axes, (title, picture) in zip(row, pictures.items(), strict=True):
        axes.set(xticks=[], yticks=[])
        if picture is None:
            axes.set_axis_off()
            continue
        axes.imshow(picture.abs().numpy(), cmap="gray", vmax=float(picture.abs().quantile(0.995)))
        axes.set(title=title, ylabel=name if title == "as measured" else "")
figure.savefig(OUT / "real_coils.png", dpi=110)
