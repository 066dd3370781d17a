"""What the experts' training needs to know of the length bins: edges in log space, a smooth basis, survival shares."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from paceline_core.lengths import EDGES, MAX_LENGTH, OPEN_EDGE, TAIL_MIX, K

Array = NDArray[np.floating]

UPPER: Final = np.concatenate([EDGES[:-1], [OPEN_EDGE]]).astype(np.float64)
LOWER: Final = np.concatenate([[0.0], EDGES[:-1]]).astype(np.float64)
TAIL: Final = np.log((UPPER + 1) / (LOWER + 1)) / np.log(OPEN_EDGE + 1)
"""The log-uniform tail, float64[K], of which every estimate holds a share of TAIL_MIX."""


def _edge_weights() -> NDArray[np.float64]:
    """Trapezoid weights of the inner edges on the axis of log length; the last edge, where every CDF is 1, has 0."""
    at = np.log(np.concatenate([[0.5], EDGES[:-1], [MAX_LENGTH]]))
    return np.append((at[2:] - at[:-2]) / 2, 0.0)


EDGE_WEIGHTS: Final = _edge_weights()
"""float64[K], nats: with them the ranked probability score is the CRPS of the log length, up to the bin width."""


def smooth_basis(size: int) -> NDArray[np.float64]:
    """The first cosines over log length without the constant, float64[size, K], each of mean square one.

    An expert moves the logits of all bins by `size` numbers only: neighbouring bins move together.
    """
    centre = np.log((LOWER + 1 + UPPER) / 2)
    at = (centre - centre[0]) / (centre[-1] - centre[0])
    waves = np.cos(np.pi * np.arange(1, size + 1)[:, None] * at[None, :])
    waves -= waves.mean(axis=1, keepdims=True)
    return np.asarray(waves / np.sqrt((waves**2).mean(axis=1, keepdims=True)))


def share_above(lengths: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of each bin that lies above a length, [N, K]; mass is even inside a bin. A length of 0: everything."""
    below_the_end = np.minimum(lengths, OPEN_EDGE - 1)[:, None]
    return np.asarray(np.clip((UPPER - below_the_end) / (UPPER - LOWER), 0.0, 1.0))


def with_tail(masses: Array) -> Array:
    """Masses with the share of the tail that serving mixes in, so that nothing has probability 0."""
    return np.asarray((1 - TAIL_MIX) * masses + (TAIL_MIX * TAIL).astype(masses.dtype))


def bin_indices(lengths: NDArray[np.float64]) -> NDArray[np.int64]:
    """The bin of each length, which need not be an integer (a length shifted by an offset), int64[N]."""
    return np.asarray(np.minimum(np.searchsorted(UPPER, lengths, side="left"), K - 1))
