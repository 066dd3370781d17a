"""How far the rooflines of the shipped profiles are from measured and modelled times."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline_core.engines.profile import Profile, linear_of
from paceline_core.engines.roofline import step_times
from paceline_core.engines.shipped import load_profile, profile_names
from paceline_lab.engines.measured import (
    SHAPES,
    BatchLatency,
    ModelledStep,
    batch_latencies,
    modelled_steps,
    shaped,
)

EXTRAPOLATED_ABOVE = 64
"""Batches over this are marked: what was measured ends here."""
OVERHEADS_MS = tuple(float(value) for value in np.arange(0.5, 3.01, 0.1))
"""The overhead is fitted in this range for each GPU, engine and model; F and W never are."""


def check_engines(data: Path) -> dict[str, Any]:
    """Errors of every profile that something is known of, as a JSON document. `data` holds `gpu-perf` or is it.

    Raises FileNotFoundError when the measurements are not there.
    """
    folder = data / "gpu-perf" if (data / "gpu-perf").is_dir() else data
    latencies, steps = batch_latencies(folder), modelled_steps(folder)
    return {
        "profiles": {name: _summary(load_profile(name)) for name in profile_names()},
        "measured_batch_latencies": {
            "source": "LLM-Inference-Bench (argonne-lcf), vLLM and TensorRT-LLM, 7B and 8B, batch 1 to 64",
            "points": len(latencies),
            "by_gpu": _latency_errors(latencies),
        },
        "modelled_steps": {
            "source": "NVIDIA aiconfigurator TensorRT-LLM grid, Llama 3.1 8B: modelled, not measured",
            "points": len(steps),
            "by_gpu": _step_errors(steps),
        },
        "not_checked": sorted(
            set(profile_names())
            - {p.profile for p in latencies}
            - {s.profile for s in steps}
            - {"cpu-smollm2"}
        ),
    }


def latency_ms(profile: Profile, point: BatchLatency, overhead_ms: float | None = None) -> float:
    """Whole-batch latency by the roofline: all prompts in one step, then a step for each other token.

    `overhead_ms` None: what the profile says.
    """
    roofline = profile.roofline
    if roofline is None:
        raise ValueError(f"profile {profile.name} has no roofline")
    shape = SHAPES[point.model]
    roofline = shaped(roofline, shape, roofline.overhead_ms if overhead_ms is None else overhead_ms)
    kv_bytes = int(shape.kv_bytes_per_token)
    linear: dict[str, Any] = dict(linear_of(roofline, kv_bytes))
    times = step_times(replace(profile, roofline=roofline, kv_bytes_per_token=kv_bytes, **linear))
    prompts = point.batch * point.tokens
    prefill = times.step_ms(0, 0, prompts, point.batch * point.tokens**2 / 2)
    return prefill + times.decode_run_ms(point.batch, point.batch * (point.tokens + 1), point.tokens - 1)


def _latency_errors(points: Sequence[BatchLatency]) -> dict[str, Any]:
    by_gpu: dict[str, dict[tuple[str, str], list[BatchLatency]]] = defaultdict(lambda: defaultdict(list))
    for point in points:
        by_gpu[point.profile][point.engine, point.model].append(point)
    report: dict[str, Any] = {}
    for name, runs in sorted(by_gpu.items()):
        profile = load_profile(name)
        rows, fitted_errors, shipped_errors, fits = [], [], [], []
        for (engine, model), mine in sorted(runs.items()):
            overhead_ms, fitted = _best_overhead(profile, mine)
            shipped = _errors(profile, mine, None)
            inside = np.array([point.kv_fits for point in mine])
            rows.append(
                {
                    "engine": engine,
                    "model": model,
                    "points": len(mine),
                    "overhead_ms": round(overhead_ms, 1),
                    "median_error": _median(fitted),
                    "median_error_kv_fits": _median(fitted[inside]),
                    "median_error_shipped_overhead": _median(shipped),
                    "extrapolated": sum(point.batch > EXTRAPOLATED_ABOVE for point in mine),
                }
            )
            fitted_errors.append(fitted)
            shipped_errors.append(shipped)
            fits.append(inside)
        fitted, shipped, inside = (np.concatenate(column) for column in (fitted_errors, shipped_errors, fits))
        report[name] = {
            "points": len(fitted),
            "kv_fits": int(inside.sum()),
            "median_error": _median(fitted),
            "median_error_kv_fits": _median(fitted[inside]),
            "p90_error_kv_fits": round(float(np.quantile(fitted[inside], 0.9)), 4) if inside.any() else None,
            "median_error_shipped_overhead": _median(shipped),
            "runs": rows,
        }
    return report


def _best_overhead(profile: Profile, points: Sequence[BatchLatency]) -> tuple[float, NDArray[np.float64]]:
    """The overhead of least median error, and the errors with it."""
    tried = [(overhead, _errors(profile, points, overhead)) for overhead in OVERHEADS_MS]
    return min(tried, key=lambda pair: float(np.median(pair[1])))


def _errors(
    profile: Profile, points: Sequence[BatchLatency], overhead_ms: float | None
) -> NDArray[np.float64]:
    """Relative errors without sign."""
    predicted = np.array([latency_ms(profile, point, overhead_ms) for point in points])
    return np.asarray(np.abs(predicted / np.array([point.seconds * 1e3 for point in points]) - 1))


def _step_errors(steps: Sequence[ModelledStep]) -> dict[str, Any]:
    groups: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    times = {name: step_times(load_profile(name)) for name in {step.profile for step in steps}}
    for step in steps:
        predicted = times[step.profile].step_ms(
            step.decode_batch, step.decode_context, step.prefill_tokens, step.prefill_tokens**2 / 2
        )
        beyond = step.decode_batch > EXTRAPOLATED_ABOVE
        groups[step.profile][f"{step.kind}, extrapolated" if beyond else step.kind].append(
            predicted / step.ms - 1
        )
    return {
        name: {
            kind: {
                "points": len(errors),
                "median_error": _median(np.abs(errors)),
                "median_bias": round(float(np.median(errors)), 4),
            }
            for kind, errors in sorted(kinds.items())
        }
        for name, kinds in sorted(groups.items())
    }


def _summary(profile: Profile) -> dict[str, Any]:
    roofline = profile.roofline
    summary: dict[str, Any] = {"device": profile.device, "source": profile.source}
    if roofline is None:
        summary["kind"] = "measured, linear"
        return summary
    return {
        **summary,
        "kind": "roofline",
        "tflops": roofline.flops_per_s / 1e12,
        "tb_per_s": roofline.bytes_per_s / 1e12,
        "overhead_ms": roofline.overhead_ms,
    }


def _median(errors: NDArray[np.float64]) -> float | None:
    return round(float(np.median(errors)), 4) if len(errors) else None
