# %% [markdown]
# # Trained models
#
# A photograph of which most pixels are lost, reconstructed by every model of the zoo that has learned to: the problem
# $\min_x \tfrac12\|m \odot x - y\|^2 + \lambda R(x)$ is the same, $R$ is another each time.
#
# `python notebooks/trained_models.py` takes a photograph that ships inside scikit-image,
# `IMAGE=data/set3c/butterfly.png` another; `LOST=0.8` is the share of lost pixels, `SIZE=256` the side of the central
# square that is taken. It writes `runs/trained_models/trained_models.png` (`RUN_DIR`).

# %%
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import elder
from elder.datamodules.bundled import package_file
from elder.metrics import displayed, psnr
from elder.models.reconstruction import Reconstruction
from elder.models.regularizers import TotalVariation
from elder.operators import InverseProblem, PixelMask
from elder.reporting.pictures import Zoom, comparison
from elder.solvers import LBFGS

PICTURE = os.environ.get("IMAGE") or package_file("skimage", "data/astronaut.png")
LOST, SIZE = float(os.environ.get("LOST", "0.8")), int(os.environ.get("SIZE", "256"))
OUT = Path(os.environ.get("RUN_DIR", "runs/trained_models"))

MODELS = {
    "Implicit field": "color_implicit_dncnn_small_inpainting",
    "Gradient step": "color_residual_dncnn_small_inpainting",
    "RED potential": "color_red_dncnn_small_inpainting",
    "Scalar potential": "color_scalar_dncnn_small_inpainting",
    "Convex ridge": "color_crr_small_inpainting",
    "Weakly convex ridge": "color_wcrr_small_inpainting",
    "Input-convex network": "color_icnn_small_inpainting",
    "Total deep variation": "color_tdv_small_inpainting",
}

# %% [markdown]
# ## The problem

# %%
with Image.open(PICTURE) as file:
    pixels = np.asarray(file.convert("RGB"), dtype=np.float32) / 255
SIZE = min(SIZE, *pixels.shape[:2])
rows, columns = ((n - SIZE) // 2 for n in pixels.shape[:2])
x = torch.from_numpy(pixels).movedim(2, 0)[None, :, rows : rows + SIZE, columns : columns + SIZE]
A = PixelMask(torch.rand(1, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) >= LOST)
y = A(x)

# %% [markdown]
# ## Its solutions
#
# A functional stops where $\|\nabla f(x)\|$ has fallen by $10^4$. The field, which is no gradient, need not have a
# fixed point that an iteration finds: then `solution.converged` says so. Total variation stands beside them with
# a $\lambda$ that is not tuned.

# %%
solutions = {}
with torch.no_grad():
    total_variation = Reconstruction(TotalVariation(1e-3), LBFGS(max_steps=2000, tol=1e-4), strength=1e-3)
    solutions["Total variation"] = total_variation(InverseProblem(A, y))
    for label, name in MODELS.items():
        solutions[label] = elder.load(name).solve(y, A)

quality = {label: float(psnr(displayed(solution.x), x, 1.0)) for label, solution in solutions.items()}
for label, solution in solutions.items():
    print(
        f"{label:20}  {quality[label]:.2f} dB  {int(solution.n_gradients):4d} gradients  "
        f"residual {float(solution.residual):.0e}{'' if solution.converged else ', not solved'}"
    )

# %% [markdown]
# ## Pictures
#
# Beside them the start of all solves, which is interpolated from the pixels that are left.

# %%
start = A.initialize(y)
images = {"Interpolated": start} | {label: solution.x for label, solution in solutions.items()}
comparison(
    OUT / "trained_models.png",
    x[0],
    {label: displayed(image)[0] for label, image in images.items()},
    {"Interpolated": float(psnr(displayed(start), x, 1.0))} | quality,
    zoom=Zoom(SIZE // 3, SIZE // 3, SIZE // 5),
    width=2400,
)
