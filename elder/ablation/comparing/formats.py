"""Numbers and texts as tables show them."""

from __future__ import annotations

import math

from elder.ablation.comparing.statistics import Estimate, Paired, Summary

__all__ = [
    "COSTS",
    "HEADINGS",
    "UNKNOWN",
    "escape_latex",
    "escape_markdown",
    "show",
    "show_cost",
    "show_difference",
    "show_interval",
    "show_mean",
    "show_p",
]

HEADINGS = {
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "snr": "SNR (dB)",
    "residual": "residual",
    "n_gradients": "gradients",
    "seconds": "seconds",
}
COSTS = {  # of `Cost`: heading, precision
    "gradients": ("gradients / image", ".1f"),
    "seconds": ("seconds / image", ".3g"),
    "training_seconds": ("training seconds", ".0f"),
    "training_gradients": ("training gradients", ".0f"),
    "memory": ("memory (GiB)", ".2f"),
}
_PRECISION = {"psnr": ".2f", "ssim": ".4f", "snr": ".2f", "residual": ".1e", "n_gradients": ".1f", "seconds": ".3f"}
UNKNOWN = "–"
_LATEX = {
    "\\": r"\textbackslash{}",
    **{character: "\\" + character for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "|": r"\textbar{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "Δ": r"$\Delta$",
    "−": "$-$",
    "–": "--",
    "∞": r"$\infty$",
    "<": r"$<$",
    ">": r"$>$",
    "[": "{[}",  # after \\ a bracket would be an argument
    "]": "{]}",
    "λ": r"$\lambda$",
    "σ": r"$\sigma$",
    "θ": r"$\theta$",
    "—": "---",
    "·": r"$\cdot$",
}


def show(metric: str, value: float, sign: str = "") -> str:
    """A value of a metric with the digits that make sense."""
    if math.isnan(value):
        return UNKNOWN
    return "∞" if math.isinf(value) else format(value, sign + _PRECISION[metric]).replace("-", "−")


def show_mean(metric: str, summary: Summary) -> str:
    """As "34.12 ± 0.05"; without s.d. if there is but one seed."""
    mean = show(metric, summary.mean)
    return mean if math.isnan(summary.sd) else f"{mean} ± {show(metric, summary.sd)}"


def show_interval(metric: str, paired: Paired | None) -> str:
    """As "+0.21 [+0.05, +0.37]"."""
    return UNKNOWN if paired is None else show_difference(metric, paired.difference)


def show_difference(metric: str, d: Estimate) -> str:
    """As "+0.21 [+0.05, +0.37]"; without an interval if there is but one image."""
    mean = show(metric, d.mean, "+")
    return mean if math.isnan(d.lo) else f"{mean} [{show(metric, d.lo, '+')}, {show(metric, d.hi, '+')}]"


def show_p(p: float) -> str:
    """As "0.032" or "<0.001"."""
    if math.isnan(p):
        return UNKNOWN
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def show_cost(name: str, value: float) -> str:
    """A cost with the digits that make sense."""
    return UNKNOWN if math.isnan(value) else format(value, COSTS[name][1])


def escape_markdown(text: str) -> str:
    """Text as it is, in one line."""
    for character in "\\`*_[]<>|":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())


def escape_latex(text: str) -> str:
    """Text as it is, in one line."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))
