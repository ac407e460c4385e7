"""What the scripts of a report draw: the numbers of a study as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from elder.ablation.comparing.formats import COSTS, HEADINGS
from elder.ablation.comparing.gallery import Gallery, color_scale
from elder.ablation.comparing.results import Comparison
from elder.ablation.comparing.statistics import Estimate
from elder.ablation.comparing.tables import known_costs

__all__ = ["page_data", "to_script"]

_DIGITS = {"psnr": 2, "ssim": 4, "snr": 2, "residual": 5, "n_gradients": 1, "seconds": 3}


def page_data(comparison: Comparison, gallery: Gallery) -> dict[str, Any]:
    """What the scripts draw."""
    costs = known_costs(comparison)
    variants = [
        {
            "label": variant.label,
            "missing": variant.missing,
            "summaries": {
                m: [comparison.summaries[m][i].mean, comparison.summaries[m][i].sd] for m in comparison.metrics
            },
            "paired": {
                m: _interval(paired.difference) | {"verdict": paired.verdict}
                for m in comparison.metrics
                if (paired := comparison.paired[m][i]) is not None
            },
            "costs": {name: variant.cost(name) for name in costs},
        }
        for i, variant in enumerate(comparison.variants)
    ]
    references = [
        {"label": r.method, "values": dict(r.values), "costs": {"gradients": r.gradients, "seconds": r.seconds}}
        for r in comparison.references
    ]
    effects = {
        m: [
            {"axis": e.axis, "value": e.value, "reference": e.reference, "pairs": e.n_pairs} | _interval(e.difference)
            for e in comparison.effects[m]
        ]
        for m in comparison.metrics
    }
    curves = _curves(comparison)
    panels = [
        {
            "name": panel.name,
            "width": panel.width,
            "height": panel.height,
            "truth": panel.truth,
            "scale": panel.scale,
            "pictures": [
                {"method": picture.method, "image": picture.image, "error": picture.error, **picture.metrics}
                for picture in panel.pictures
            ],
        }
        for panel in gallery.panels
    ]
    has = {
        "forest": any(any(p is not None for p in comparison.paired[m]) for m in comparison.metrics),
        "effects": any(effects.values()) and len(comparison.baseline) > 1,
        "cost": bool(costs),
        "curves": bool(curves),
        "gallery": bool(panels),
    }
    return {
        "metrics": [
            {"key": m, "name": HEADINGS[m], "direction": way, "digits": _DIGITS[m]}
            for m, way in comparison.metrics.items()
        ],
        "variants": variants,
        "references": references,
        "effects": effects,
        "costs": [{"key": name, "name": COSTS[name][0]} for name in costs],
        "curves": curves,
        "gallery": {"panels": panels, "colors": color_scale() if panels else []},
        "has": has,
    }


def _interval(d: Estimate) -> dict[str, Any]:
    return {"mean": d.mean, "lo": d.lo, "hi": d.hi, "images_only": not d.is_over_seeds}


def _curves(comparison: Comparison) -> dict[str, list[dict[str, Any]]]:
    """Metric → mean and s.d. over seeds of each variant, at the steps of its longest run."""
    curves: dict[str, list[dict[str, Any]]] = {}
    for i, variant in enumerate(comparison.variants):
        for name, runs in comparison.curves(variant).items():
            steps = max((steps for steps, _ in runs), key=lambda steps: (steps[-1], len(steps)))
            rows = [np.interp(steps, own, values, left=math.nan, right=math.nan) for own, values in runs]
            n = np.isfinite(rows).sum(axis=0)
            mean = np.nansum(rows, axis=0) / n
            sd = np.sqrt(np.nansum((rows - mean) ** 2, axis=0) / np.maximum(n - 1, 1))
            entry = {"variant": i, "steps": steps, "mean": _rounded(mean), "sd": _rounded(sd)}
            curves.setdefault(name, []).append(entry)
    return dict(sorted(curves.items()))


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def to_script(content: Mapping[str, Any]) -> str:
    """JSON that cannot end the script element it stands in; numbers that JSON has not are null."""
    return json.dumps(_finite(content), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
