# %% [markdown]
# # A training run
#
# Draws what a run has logged: quality, strength, and what the forward and backward solves cost and reached.
# Run it as a script, or as a notebook (cells in the percent format) in VS Code, PyCharm or Jupyter with jupytext:
# `RUN_DIR=runs/demo python notebooks/training_run.py` writes `runs/demo/training.png`.

# %%
import os
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from elder.reporting.metrics_log import read_metrics

run = Path(os.environ.get("RUN_DIR", "runs/demo"))
records = read_metrics(run / "metrics.jsonl")


# %%
def series(name: str) -> tuple[list[float], list[float]]:
    """Steps and values of one metric."""
    pairs = [(record["step"], record[name]) for record in records if name in record]
    return [step for step, _ in pairs], [value for _, value in pairs]


# %%
panels = {
    "PSNR (dB)": ["train/psnr", "val/psnr"],
    "strength": ["train/strength"],
    "cost (gradients, products per image)": ["forward/gradients", "backward/products"],
    "largest relative residual": ["forward/residual", "backward/residual"],
}
figure = Figure(figsize=(10, 6), layout="constrained")
FigureCanvasAgg(figure)
for axes, (title, names) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
    for name in names:
        axes.plot(*series(name), label=name, marker="o" if name.startswith("val") else None, markersize=3)
    axes.set(title=title, xlabel="step", yscale="log" if "residual" in title else "linear")
    axes.legend()
figure.savefig(run / "training.png", dpi=120)
