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
_BLOCK = 64
_CLASSES = 1024
_CLASSES_PER_NAT = np.float32(32.0)
_COLDEST = 1e-4
"""Temperatures below draw the largest logit: scaled by less, logits overflow."""


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
    return sampling.temperature < _COLDEST and not _changes_logits(sampling)


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
    if sampling.temperature < _COLDEST:
        return int(logits.argmax())
    scaled = logits * np.float32(1.0 / sampling.temperature)
    candidates, weights = _candidates(scaled, sampling)
    drawn = _pick(weights, uniform(sampling.seed, row.index))
    return drawn if candidates is None else int(candidates[drawn])


def _pick(weights: NDArray[np.float32], number: float) -> int:
    """Position drawn in proportion to `weights` by a number in [0, 1); blocks first, for a vocabulary's length."""
    whole = len(weights) - len(weights) % _BLOCK
    sums = np.append(weights[:whole].reshape(-1, _BLOCK).sum(axis=1), weights[whole:].sum())
    cumulative = np.cumsum(sums, dtype=np.float64)
    target = number * cumulative[-1]
    block = min(int(np.searchsorted(cumulative, target, side="right")), len(sums) - 1)
    inside = weights[block * _BLOCK : (block + 1) * _BLOCK]
    before = cumulative[block - 1] if block else 0.0
    place = int(np.searchsorted(before + np.cumsum(inside, dtype=np.float64), target, side="right"))
    # Rounding may leave the target past the block's end, or on a tail of zero weights.
    return block * _BLOCK + min(place, int(np.flatnonzero(inside)[-1]) if inside.any() else 0)


def _candidates(
    scaled: NDArray[np.float32], sampling: Sampling
) -> tuple[NDArray[np.int64] | None, NDArray[np.float32]]:
    """Ids that may be drawn (None: all) and their unnormalised weights; top-k first, then top-p over what is left."""
    ids: NDArray[np.int64] | None = None
    if 0 < sampling.top_k < len(scaled):
        ids = _largest(scaled, sampling.top_k)
        scaled = scaled[ids]
    below = scaled - scaled.max()
    weights = np.exp(below)
    if sampling.top_p < 1.0:
        kept = _nucleus(below, weights, sampling.top_p)
        ids = kept if ids is None else ids[kept]
        weights = weights[kept]
    return ids, weights


def _nucleus(below: NDArray[np.float32], weights: NDArray[np.float32], top_p: float) -> NDArray[np.int64]:
    """Positions of the fewest largest weights that hold `top_p` of the sum; lower positions first among equals.

    `below` are the logs of `weights`, the largest being 0. Sorting a whole vocabulary takes milliseconds, so only the
    class of weights that the border falls into is sorted.
    """
    mass = float(weights.sum(dtype=np.float64))
    # All weights below this together hold less than 1 - top_p: they are outside whatever the border is.
    positions = np.flatnonzero(weights >= np.float32((1.0 - top_p) * mass / len(weights)))
    weights = weights[positions]
    depth = np.minimum(below[positions] * -_CLASSES_PER_NAT, _CLASSES - 1).astype(np.int32)
    cumulative = np.cumsum(np.bincount(depth, weights=weights, minlength=_CLASSES))
    wanted = top_p * mass
    border = int(np.searchsorted(cumulative, wanted, side="left"))
    inside = np.flatnonzero(depth < border)
    edge = np.flatnonzero(depth == border)
    edge = edge[np.argsort(-weights[edge], kind="stable")]
    already = float(cumulative[border - 1]) if border else 0.0
    count = (
        int(np.searchsorted(already + np.cumsum(weights[edge], dtype=np.float64), wanted, side="left")) + 1
    )
    kept: NDArray[np.int64] = positions[np.concatenate([inside, edge[:count]])]
    return kept


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
