"""By how much a known model's answers are longer than a typical one's, in the logarithm.

    log length = f(question) + u(prompt) + o(model) + o(model, app) + noise

f is a ridge on text and numbers, the others are group means shrunk towards 0, fitted in turns. Prompts that several
models answered decide about o; where a model alone has answered a set, u and f take what there is, and o stays near 0.
Cut answers count with the length that is expected of them, given that they are longer.
"""

import copy
import dataclasses
import functools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr
from sklearn.linear_model import Ridge

from paceline_core.calibration.offset import ShippedOffsets, stretched
from paceline_lab.lengths.design import fit_design, raw_features
from paceline_lab.lengths.example import Example
from paceline_lab.lengths.splits import fold_of
from paceline_predictor.model import LengthQuestion

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Offsets = Mapping[str, Mapping[str, Any]]
"""{model: {"log": offset, "outcomes": n, "apps": {app: [offset, n]}}}; an app's offset is whole, not added to the
model's. What a model file carries and `paceline_core.calibration` reads."""

_ROUNDS: Final = 6
_RIDGE: Final = 3.0
_PROMPT_SHRINK: Final = 0.5
"""Outcomes that "this prompt is as its text says" is worth."""
_MODEL_SHRINK: Final = 5.0
_APP_SHRINK: Final = 20.0
_SERVED_SHRINK: Final = 10.0
_SERVED_FOLDS: Final = 3


def model_offsets(examples: Sequence[Example]) -> dict[str, dict[str, Any]]:
    """Offsets of the models, and of their apps, in these examples. They are 0 on average over models.

    Rows of answers in progress (`generated_tokens`) are left out. Empty without examples. Remembered for the last
    examples: several learners ask for the same.
    """
    return copy.deepcopy(_model_offsets(tuple(examples)))


@functools.lru_cache(maxsize=2)
def _model_offsets(examples: tuple[Example, ...]) -> dict[str, dict[str, Any]]:
    rows = [example for example in examples if not example.question.generated_tokens]
    if not rows:
        return {}
    weight = np.array([example.weight for example in rows])
    models, model = _codes([example.question.model for example in rows])
    pairs, pair = _codes([(example.question.model, example.question.app) for example in rows])
    _, prompt = _codes([example.prompt_id for example in rows])
    seen = np.log([example.output_tokens for example in rows])
    cut = np.array([example.censored for example in rows])

    columns = _columns(rows)
    of_model, of_pair = np.zeros(len(models)), np.zeros(len(pairs))
    of_prompt = np.zeros(prompt.max() + 1)
    base = np.full(len(rows), np.average(seen, weights=weight))
    log_length, spread = seen.copy(), 1.0
    for _ in range(_ROUNDS):
        expected = base + of_prompt[prompt] + of_model[model] + of_pair[pair]
        log_length[cut] = _expected_above(seen[cut], expected[cut], spread)
        of_prompt = _shrunk(
            log_length - base - of_model[model] - of_pair[pair], prompt, weight, _PROMPT_SHRINK
        )
        rest = log_length - base - of_prompt[prompt]
        of_model = _shrunk(rest - of_pair[pair], model, weight, _MODEL_SHRINK)
        of_model -= of_model.mean()
        of_pair = _shrunk(rest - of_model[model], pair, weight, _APP_SHRINK)
        ridge = Ridge(alpha=_RIDGE, solver="sparse_cg", tol=1e-3)
        ridge.fit(columns, log_length - of_model[model] - of_pair[pair], sample_weight=weight)
        base = ridge.predict(columns)
        rest = log_length - base - of_prompt[prompt] - of_model[model] - of_pair[pair]
        spread = math.sqrt(float(np.average(rest**2, weights=weight)) + 1e-3)

    found: dict[str, dict[str, Any]] = {
        name: {"log": round(float(of_model[i]), 4), "outcomes": int((model == i).sum()), "apps": {}}
        for i, name in enumerate(models)
    }
    for i, (name, app) in enumerate(pairs):
        whole = found[name]["log"] + float(of_pair[i])
        found[name]["apps"][app] = [round(whole, 4), int((pair == i).sum())]
    return found


def served_offsets(examples: Sequence[Example], offsets: Offsets) -> dict[str, dict[str, Any]]:
    """What answers are to be shifted by, from what training divides lengths by (`model_offsets`).

    A model of texts draws unseen prompts towards what is usual, and so misses each (model, app) to one side. By how
    much is measured on prompts that a ridge had not seen, and added: what online learning would come to, at once.
    Training must not divide by it: the text could then no longer say that such prompts have long answers.
    """
    return copy.deepcopy(_served_offsets(tuple(examples), json.dumps(offsets)))


@functools.lru_cache(maxsize=2)
def _served_offsets(examples: tuple[Example, ...], offsets_json: str) -> dict[str, dict[str, Any]]:
    offsets: Offsets = json.loads(offsets_json)
    rows = [example for example in examples if not example.question.generated_tokens]
    if not rows:
        return {}
    weight = np.array([example.weight for example in rows])
    models, model = _codes([example.question.model for example in rows])
    pairs, pair = _codes([(example.question.model, example.question.app) for example in rows])
    fold = np.array([fold_of(example.prompt_id, _SERVED_FOLDS, seed=2) for example in rows])
    seen = np.log([example.output_tokens for example in rows])
    cut = np.array([example.censored for example in rows])
    target = seen - offsets_of(offsets, [example.question for example in rows])
    columns = _columns(rows)
    expected = np.full(len(rows), np.average(target, weights=weight))
    for k in range(_SERVED_FOLDS):
        rest, held = fold != k, fold == k
        if rest.any() and held.any():
            ridge = Ridge(alpha=_RIDGE, solver="sparse_cg", tol=1e-3)
            ridge.fit(columns[rest], target[rest], sample_weight=weight[rest])
            expected[held] = ridge.predict(columns[held])
    spread = math.sqrt(float(np.average((target - expected) ** 2, weights=weight)) + 1e-3)
    target[cut] = _expected_above(target[cut], expected[cut], spread)
    of_model = _shrunk(target - expected, model, weight, _SERVED_SHRINK)
    of_pair = _shrunk(target - expected - of_model[model], pair, weight, _SERVED_SHRINK)

    found: dict[str, dict[str, Any]] = {}
    for i, name in enumerate(models):
        given = offsets.get(name, {"log": 0.0})
        found[name] = {
            "log": round(given["log"] + float(of_model[i]), 4),
            "outcomes": int((model == i).sum()),
            "apps": {},
        }
    for i, (name, app) in enumerate(pairs):
        given = offsets.get(name, {"log": 0.0, "apps": {}})
        log, _ = given["apps"].get(app, (given["log"], 0))
        whole = log + float(of_model[models.index(name)] + of_pair[i])
        found[name]["apps"][app] = [round(whole, 4), int((pair == i).sum())]
    return found


def offsets_of(offsets: Offsets, questions: Sequence[LengthQuestion]) -> FloatArray:
    """Offset of each question's (model, app), float64[N]; of its model where the app is new, 0 where both are."""
    shipped = ShippedOffsets.parse(offsets)
    return np.array([shipped.of(question.model, question.app)[0] for question in questions])


def standardised(examples: Sequence[Example], offsets: Offsets) -> list[Example]:
    """The examples as a typical model would have answered: lengths times exp(-offset), at least 1."""
    by = np.exp(-offsets_of(offsets, [example.question for example in examples]))
    return [
        dataclasses.replace(example, output_tokens=max(1, round(example.output_tokens * factor)))
        for example, factor in zip(examples, by.tolist(), strict=True)
    ]


def shifted(probabilities: FloatArray, offset: FloatArray) -> FloatArray:
    """Bin masses [N, K] of lengths times exp(offset [N])."""
    n = len(probabilities)
    return stretched(probabilities, np.zeros(n), offset, np.ones(n))


def _columns(rows: Sequence[Example]) -> Any:
    raw = raw_features([example.question for example in rows])
    return fit_design(raw).rows(raw)


def _codes(names: Sequence[Any]) -> tuple[list[Any], IntArray]:
    distinct = sorted(set(names))
    number = {name: i for i, name in enumerate(distinct)}
    return distinct, np.array([number[name] for name in names], dtype=np.int64)


def _shrunk(values: FloatArray, group: IntArray, weight: FloatArray, shrink: float) -> FloatArray:
    """Mean of each group, as if `shrink` rows of average weight with the value 0 were in it."""
    total = np.bincount(group, weights=weight * values)
    return np.asarray(total / (np.bincount(group, weights=weight) + shrink * weight.mean()))


def _expected_above(bound: FloatArray, mean: FloatArray, spread: float) -> FloatArray:
    """E[y | y > bound] of a normal y."""
    z = (bound - mean) / spread
    hazard = np.exp(-0.5 * z**2 - 0.5 * math.log(2 * math.pi) - log_ndtr(-z))
    return np.asarray(mean + spread * hazard)
