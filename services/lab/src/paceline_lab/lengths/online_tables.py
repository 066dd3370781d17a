"""The online part of a split's answers: all learners over the same outcomes in the same order, side by side.

Candidates are refined as in service: offset, mixture with the running histogram, recalibration. Rivals get the same
learning of offsets, and nothing else that they are not; the histogram of model and app goes on counting.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from paceline_core.calibration.offset import NO_OFFSETS, ShippedOffsets
from paceline_core.calibration.online import CalibrationParams, OnlineLengths
from paceline_core.histogram import LengthHistograms
from paceline_core.lengths import FloatArray
from paceline_lab.lengths.example import Example
from paceline_lab.lengths.offsets import Offsets
from paceline_lab.lengths.online_evaluation import Key, Stream, bounds

COUNTING = "histogram of model and app"
_FIXED = 1e12
"""Outcomes that a prior must be worth so that nothing changes it."""


def served(offsets: Offsets, worlds: int) -> OnlineLengths:
    """What serves, before it learned anything."""
    return OnlineLengths(CalibrationParams(max_worlds=worlds), ShippedOffsets.parse(offsets))


def offsets_only(worlds: int) -> OnlineLengths:
    """Learns how far off a learner is for each model and app; no mixture, no recalibration."""
    return OnlineLengths(
        CalibrationParams(
            spread_concentration=(_FIXED, _FIXED, _FIXED),
            mixture_concentration=(_FIXED, _FIXED, _FIXED),
            base_share=1.0,
            pit_concentration=(_FIXED, _FIXED, _FIXED),
            steering_gain=0.0,
            max_worlds=worlds,
        ),
        NO_OFFSETS,
    )


def online_answers(
    base: Mapping[str, FloatArray],
    rivals: Mapping[str, FloatArray],
    offsets: Offsets,
    stream: Stream,
    train: Sequence[Example],
) -> dict[str, FloatArray]:
    """Answers float64[N, K] to the stream by learner, each before its own outcome was learned.

    `base`: masses of candidates before offsets; `rivals`: masses as the rivals answered; `stream`'s own base is not
    read. The histogram of model and app begins with the training examples counted.
    """
    found = _side_by_side(served(offsets, len(base)), base, stream)
    shifted = {name: masses for name, masses in rivals.items() if name != COUNTING}
    if shifted:
        found |= _side_by_side(offsets_only(len(shifted)), shifted, stream)
    if COUNTING in rivals:
        found[COUNTING] = _counted(stream, train)
    return found


def _side_by_side(
    learner: OnlineLengths, masses: Mapping[str, FloatArray], stream: Stream
) -> dict[str, FloatArray]:
    """Every set of masses in a world of its own."""
    names = list(masses)
    stacked = np.stack([masses[name] for name in names], axis=1).astype(np.float64)
    answers = np.empty_like(stacked)
    worlds = list(range(len(names)))
    none = np.zeros(len(names))
    outcomes = stream.outcomes
    for i in range(len(stream)):
        keys: list[Key] = [stream.keys[i]] * len(names)
        answers[i] = learner.refine(stacked[i], keys, none, worlds=worlds).probabilities
        learner.observe(
            stacked[i],
            keys,
            none,
            np.full(len(names), float(outcomes.lengths[i])),
            np.full(len(names), outcomes.censored[i]),
            np.full(len(names), outcomes.limits[i]),
            declared=bounds(answers[i]),
            worlds=worlds,
        )
    return {name: answers[:, n] for n, name in enumerate(names)}


def _counted(stream: Stream, train: Sequence[Example]) -> FloatArray:
    histograms = LengthHistograms()
    for example in train:
        _count(
            histograms,
            (example.question.model, example.question.app),
            example.output_tokens,
            example.censored,
            example.question.max_tokens,
        )
    answers = np.empty((len(stream), stream.base.shape[1]))
    outcomes = stream.outcomes
    for i, key in enumerate(stream.keys):
        answers[i] = histograms.probabilities(*key)
        _count(histograms, key, int(outcomes.lengths[i]), bool(outcomes.censored[i]), int(outcomes.limits[i]))
    return answers


def _count(histograms: LengthHistograms, key: Key, length: int, censored: bool, limit: int) -> None:
    histograms.observe(key[0], key[1], length, censored=censored, declared_p90=1.0, max_tokens=limit)
