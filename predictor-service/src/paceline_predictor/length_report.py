"""What is to be said about the length model: coverage, bias and drift of late, over all and per model and app."""

import math
from collections.abc import Sequence

import numpy as np

from paceline_core.calibration.drift import DriftReport
from paceline_core.calibration.online import OnlineLengths
from paceline_core.lengths import K
from paceline_predictor.length_graph import LengthGraph
from paceline_predictor.model import KeyReport, ModelReport

NAME = "length"
MAX_KEYS = 64
"""Rows of models and apps."""
_LOOKED_AT = 128
"""Pairs observed last, of which the most observed ones are reported: a report must not hold up the event loop."""
_FALLBACK_OUTCOMES = 50
"""Fewer outcomes of a model and an app are no reason to warn that histograms carry its answers."""


def model_report(
    online: OnlineLengths, graph: LengthGraph | None, file_warning: str, histogram_version: str
) -> ModelReport:
    """Of the model in use; `file_warning`: why no file is in use though one should be."""
    pairs = _most_observed(online)
    fallbacks = _fallbacks(online, pairs) if graph is not None else [False] * len(pairs)
    rows = [
        _row(online.report(model, app), model, app, fallback)
        for (model, app), fallback in zip(pairs, fallbacks, strict=True)
    ]
    models = list(dict.fromkeys(model for model, _ in pairs))
    whole = [_row(online.report(model), model, "", False, whole_model=True) for model in models]
    fleet = online.report()
    p50, p90, p95 = map(_known, fleet.coverage)
    carried = sum(row.fallback and row.observed >= _FALLBACK_OUTCOMES for row in rows)
    warnings = [
        file_warning,
        fleet.alarm,
        f"histograms carry {carried} of {len(rows)} models and apps, for which the model misses"
        if carried
        else "",
    ]
    return ModelReport(
        name=NAME,
        version=histogram_version if graph is None else graph.version,
        kind="histogram" if graph is None else graph.kind,
        observed=online.observed,
        coverage_p50=p50,
        coverage_p90=p90,
        coverage_p95=p95,
        bias_log=_known(fleet.bias),
        drift=pit_distance(fleet.pit),
        warning="; ".join(filter(None, warnings)),
        file_bytes=0 if graph is None else graph.file_bytes,
        keys=(*whole[: MAX_KEYS // 4], *rows[: MAX_KEYS - min(len(whole), MAX_KEYS // 4)]),
    )


def pit_distance(shares: Sequence[float]) -> float:
    """Largest distance between the cumulated shares of equal bins and a uniform distribution; 0: not known."""
    steps = np.cumsum(shares) - np.arange(1, len(shares) + 1) / len(shares)
    return float(np.abs(steps).max()) if np.isfinite(steps).all() else 0.0


def _most_observed(online: OnlineLengths) -> list[tuple[str, str]]:
    pairs = online.keys[-_LOOKED_AT:]
    return sorted(pairs, key=lambda pair: -online.observed_of(*pair))[:MAX_KEYS]


def _fallbacks(online: OnlineLengths, pairs: Sequence[tuple[str, str]]) -> list[bool]:
    """For which pairs the histogram has more say than the model."""
    if not pairs:
        return []
    flat = np.full((len(pairs), K), 1 / K)
    found: list[bool] = online.refine(flat, pairs, np.zeros(len(pairs))).from_histogram.tolist()
    return found


def _row(
    report: DriftReport, model: str, app: str, fallback: bool, *, whole_model: bool = False
) -> KeyReport:
    p50, p90, p95 = map(_known, report.coverage)
    return KeyReport(
        model=model,
        app=app,
        observed=report.observed,
        coverage_p50=p50,
        coverage_p90=p90,
        coverage_p95=p95,
        bias_log=_known(report.bias),
        drift=pit_distance(report.pit),
        fallback=fallback,
        warning=report.alarm,
        whole_model=whole_model,
    )


def _known(value: float) -> float:
    """0 for what is not known."""
    return value if math.isfinite(value) else 0.0
