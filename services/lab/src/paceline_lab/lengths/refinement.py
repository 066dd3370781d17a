"""What is known better while tokens come out: bounds after 25, 50 and 75 % of an answer.

Three ways to read the same request: the estimate of its arrival alone; that estimate given that it is not over yet; and
the model asked again every 50 tokens with the text so far, given the same.

A quantile of the whole length given L > g never falls as g grows, so the P90 bound over the true length can shrink only
by what the text so far tells; the width of what is still open shrinks either way.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline_core.lengths import OPEN_EDGE, FloatArray, cdf_from_probabilities, quantile
from paceline_lab.lengths.dataset import Example
from paceline_lab.lengths.online_evaluation import LEVELS, IntArray, coverage
from paceline_predictor.model import LengthQuestion

STEP_TOKENS = 50
SHARES_OUT = (0.0, 0.25, 0.5, 0.75)
MIN_TOKENS = 2 * STEP_TOKENS
_OUTPUT_TAIL_CHARS = 1024

Ask = Callable[[Sequence[LengthQuestion]], FloatArray]
Float32 = NDArray[np.float32]


def refined_rows(examples: Sequence[Example]) -> IntArray:
    """Which examples the curves are made of: whole answers of known text, not short."""
    return np.array(
        [i for i, e in enumerate(examples) if not e.censored and e.output and e.output_tokens >= MIN_TOKENS],
        dtype=np.int64,
    )


def asked_again(ask: Ask, examples: Sequence[Example]) -> dict[float, Float32]:
    """By share of tokens out: what is answered at the last multiple of 50 tokens by then, float32[rows, K].

    NaN where that is the arrival.
    """
    chosen = [examples[i] for i in refined_rows(examples)]
    found: dict[float, Float32] = {}
    for share in SHARES_OUT[1:]:
        at = [int(share * example.output_tokens) // STEP_TOKENS * STEP_TOKENS for example in chosen]
        again = [i for i, tokens in enumerate(at) if tokens]
        if not again:
            continue
        answers = ask([question_after(chosen[i], at[i]) for i in again])
        masses = np.full((len(chosen), answers.shape[1]), np.nan, dtype=np.float32)
        masses[again] = answers
        found[share] = masses
    return found


def question_after(example: Example, tokens: int) -> LengthQuestion:
    """The question after so many tokens; the text so far is the answer's, cut in proportion of tokens."""
    so_far = example.output[: len(example.output) * tokens // example.output_tokens]
    return dataclasses.replace(
        example.question, generated_tokens=tokens, output_tail=so_far[-_OUTPUT_TAIL_CHARS:]
    )


def refinement(arrival: FloatArray, later: Mapping[float, FloatArray], lengths: FloatArray) -> dict[str, Any]:
    """Curves {share_out, coverage, p90_over_true, ...} of the three ways.

    `arrival` float64[N, K], `later` as `asked_again` gives it, true `lengths` float64[N] of `refined_rows`.
    """
    curves: dict[str, list[dict[str, Any]]] = {
        "arrival only": [],
        "given that it goes on": [],
        "asked again every 50": [],
    }
    for share in SHARES_OUT:
        out = np.floor(share * lengths)
        again = later.get(share, np.full_like(arrival, np.nan))
        latest = np.where(np.isfinite(again), again, arrival)
        for mode, masses, known in (
            ("arrival only", arrival, np.zeros_like(out)),
            ("given that it goes on", arrival, out),
            ("asked again every 50", latest, out),
        ):
            curves[mode].append({"share_out": share, **_point(masses, known, lengths)})
    return {"outcomes": len(lengths), "min_tokens": MIN_TOKENS, "curves": curves}


def _point(masses: FloatArray, out: FloatArray, lengths: FloatArray) -> dict[str, Any]:
    cdf = cdf_from_probabilities(masses)
    limit = np.full(len(cdf), OPEN_EDGE)
    limits = np.stack([quantile(cdf, level, out, limit) for level in LEVELS], axis=1)
    ratio = limits[:, 1] / lengths
    low = quantile(cdf, 0.1, out, limit)
    return {
        "coverage": coverage((lengths[:, None] <= limits).astype(np.float64)),
        "p90_over_true": float(np.median(ratio)),
        "p90_over_true_mean": float(np.mean(ratio)),
        "log_width_80": float(np.mean(np.log(limits[:, 1] / low))),
        "p50_log_error": float(np.mean(np.abs(np.log(limits[:, 0] / lengths)))),
    }
