"""Randomness as data: numbers that a seed and the request's id determine, equally good for any two requests."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from paceline_core.placement.view import Bools, Floats

_MASK: Final = (1 << 64) - 1
_GOLDEN: Final = 0x9E3779B97F4A7C15


def uniform(seed: int, request_id: str, call: int, count: int) -> Floats:
    """float64[count] in (0, 1). `call`: how often the policy was asked before; requests without an id differ by it."""
    origin = seed * 0xD1342543DE82EF95 + call
    for byte in request_id.encode():
        origin = ((origin ^ byte) * 0x100000001B3) & _MASK
    start = np.uint64(_mixed(origin & _MASK))
    x: NDArray[np.uint64] = start + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return np.asarray(((x >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53)


def sample(uniforms: Floats, may: Bools, count: int, weights: Floats | None = None) -> Bools:
    """bool[E]: `count` of the engines that may, without repetition; by weight where given (exponential race)."""
    race = -np.log(uniforms) if weights is None else -np.log(uniforms) / np.maximum(weights, 1e-12)
    race = np.where(may, race, np.inf)
    count = min(count, len(race))
    drawn = np.zeros(len(race), dtype=np.bool_)
    if count:
        drawn[np.argpartition(race, count - 1)[:count]] = True
    return np.asarray(drawn & may)


def _mixed(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
