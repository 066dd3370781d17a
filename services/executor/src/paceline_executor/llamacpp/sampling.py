"""Draws the next token of each row of logits.

Greedy rows cost one argmax over the batch. A drawn token depends on the logits, the ids so far and (seed, token
index), on nothing that a replay or a move could lose: penalties are derived from the ids, and the random number comes
from a counter.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paceline_executor.contract import Ids, Sampling

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST_CANDIDATES = 512


@dataclass(frozen=True)
class SampleRow:
    """What one row of logits is sampled with."""

    sampling: Sampling
    index: int
    """Output index of the token to draw."""
    prompt_ids: Ids
    output_ids: Sequence[int]


def is_plain_greedy(sampling: Sampling) -> bool:
    """True if the largest logit is the answer."""
    return sampling.temperature <= 0.0 and not _changes_logits(sampling)


def sample(logits: NDArray[np.float32], rows: Sequence[SampleRow]) -> list[int]:
    """Token ids for `logits` [R, vocabulary], one per row. The logits are left untouched."""
    best: list[int] = logits.argmax(axis=1).tolist()
    for number, row in enumerate(rows):
        if not is_plain_greedy(row.sampling):
            best[number] = _sample_one(logits[number], row)
    return best


def uniform(seed: int, index: int) -> float:
    """The random number in [0, 1) of a token: a SplitMix64 hash of (seed, index), 53 bits of it."""
    return (_mix(_mix(seed & _MASK) ^ ((index + 1) * _GOLDEN & _MASK)) >> 11) * 2.0**-53


def _mix(value: int) -> int:
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _changes_logits(sampling: Sampling) -> bool:
    return bool(
        sampling.logit_bias
        or sampling.presence_penalty
        or sampling.frequency_penalty
        or sampling.repetition_penalty != 1.0
    )


def _sample_one(logits: NDArray[np.float32], row: SampleRow) -> int:
    sampling = row.sampling
    if _changes_logits(sampling):
        logits = _adjusted(logits, row)
    if sampling.temperature <= 0.0:
        return int(logits.argmax())
    scaled = logits * np.float32(1.0 / sampling.temperature)
    ordered, weights = _candidates(scaled, sampling)
    cumulative = np.cumsum(weights, dtype=np.float64)
    drawn = np.searchsorted(cumulative, uniform(sampling.seed, row.index) * cumulative[-1], side="right")
    return int(ordered[min(int(drawn), len(ordered) - 1)])


def _candidates(
    scaled: NDArray[np.float32], sampling: Sampling
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Ids that may be drawn and their unnormalised weights; top-k first, then top-p over what is left."""
    size = len(scaled)
    weights = np.exp(scaled - scaled.max())
    keep = min(sampling.top_k or size, size)
    if keep == size and sampling.top_p >= 1.0:
        return np.arange(size), weights
    if keep < size:
        ordered = _largest(scaled, keep)
        weights = weights[ordered]
        mass = float(weights.sum(dtype=np.float64))
    else:
        # Top-p alone: look at a few hundred of the largest first, since sorting a whole vocabulary takes milliseconds.
        mass = float(weights.sum(dtype=np.float64))
        ordered = _largest(scaled, min(_FIRST_CANDIDATES, size))
        if float(weights[ordered].sum(dtype=np.float64)) < sampling.top_p * mass:
            ordered = _largest(scaled, size)
        weights = weights[ordered]
    if sampling.top_p < 1.0:
        cumulative = np.cumsum(weights, dtype=np.float64)
        count = int(np.searchsorted(cumulative, sampling.top_p * mass, side="left")) + 1
        ordered, weights = ordered[:count], weights[:count]
    return ordered, weights


def _largest(scaled: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Ids of the `count` largest logits, largest first, lower id first among equals."""
    if count < len(scaled):
        # Everything at or above the count-th largest, so that equals at the edge are cut by id, not by chance.
        threshold = np.partition(scaled, len(scaled) - count)[len(scaled) - count]
        chosen = np.flatnonzero(scaled >= threshold)
    else:
        chosen = np.arange(len(scaled))
    return chosen[np.argsort(-scaled[chosen], kind="stable")][:count]


def _adjusted(logits: NDArray[np.float32], row: SampleRow) -> NDArray[np.float32]:
    """A copy with bias and penalties: repetition over prompt and output, presence and frequency over output."""
    sampling = row.sampling
    adjusted = logits.copy()
    outputs = np.asarray(row.output_ids, dtype=np.int64)
    if sampling.repetition_penalty != 1.0:
        seen = np.unique(np.concatenate([row.prompt_ids.astype(np.int64), outputs]))
        values = adjusted[seen]
        penalty = np.float32(sampling.repetition_penalty)
        adjusted[seen] = np.where(values > 0, values / penalty, values * penalty)
    if len(outputs) and (sampling.presence_penalty or sampling.frequency_penalty):
        made, counts = np.unique(outputs, return_counts=True)
        adjusted[made] -= (sampling.presence_penalty + sampling.frequency_penalty * counts).astype(np.float32)
    for token, amount in sampling.logit_bias:
        adjusted[token] += np.float32(amount)
    return adjusted
