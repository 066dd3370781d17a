"""How well any predictor could do: the same model asked the same prompt again."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from paceline_core.lengths import OPEN_EDGE, FloatArray, cdf_from_probabilities, quantile
from paceline_lab.lengths.example import Example

LEAST_GROUPS = 20
NOTE = (
    "Mean absolute error of the log length, against what is left when a prompt is answered again: each answer against "
    "the median of the other answers to its prompt by the same model (or, where a model answered once, by the other "
    "models: then other models' habits are in it)."
)


def noise_floor(examples: Sequence[Example], masses: FloatArray) -> dict[str, Any]:
    """{note, sources: {name: floor, error, global_error, scored, repeated}} of whole answers; masses float64[N, K]."""
    whole = [i for i, example in enumerate(examples) if not example.censored]
    logs = np.log([example.output_tokens for example in examples])
    cdf = cdf_from_probabilities(masses)
    median = np.log(quantile(cdf, 0.5, np.zeros(len(cdf)), np.full(len(cdf), OPEN_EDGE)))
    middle = float(np.median(logs[whole])) if whole else 0.0
    sources: dict[str, Any] = {}
    for source in sorted({examples[i].source for i in whole}):
        rows = [i for i in whole if examples[i].source == source]
        for same_model in (True, False):
            others = _others(examples, rows, logs, same_model)
            if len(others) >= LEAST_GROUPS:
                break
        if len(others) < LEAST_GROUPS:
            continue
        scored = np.array(sorted(others))
        sources[source] = {
            "floor": float(np.mean([abs(logs[i] - others[i]) for i in scored])),
            "error": float(np.mean(np.abs(logs[scored] - median[scored]))),
            "global_error": float(np.mean(np.abs(logs[scored] - middle))),
            "scored": len(scored),
            "repeated": "by the same model" if same_model else "by other models",
        }
    return {"note": NOTE, "sources": sources}


def _others(
    examples: Sequence[Example], rows: Sequence[int], logs: FloatArray, same_model: bool
) -> dict[int, float]:
    """By row: median log length of the other answers to the same question."""
    groups: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for i in rows:
        question = examples[i].question
        model = question.model if same_model else ""
        groups[
            examples[i].prompt_id, question.prompt_head + question.prompt_tail if same_model else "", model
        ].append(i)
    return {
        i: float(np.median([logs[j] for j in group if j != i]))
        for group in groups.values()
        if len(group) > 1
        for i in group
    }
