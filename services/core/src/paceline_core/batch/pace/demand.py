"""The demand test: which requests can be served together, and which of too many are left out.

At each due time t, what is due until then has to fit into the time until t:

    sum of means + z * sqrt(sum of variances) <= t

in engine time: an output token costs its slot's part of a full step, a prompt token what it adds to the steps. The test
is necessary, not sufficient: work that passes may still fail for want of parallel slots (a request gets one token per
step), which is what the requests' own laxity is for.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from paceline_core.batch.view import BoolArray, FloatArray, IntArray

_ROUNDS: Final = 12


@dataclass(frozen=True, slots=True)
class Demand:
    """Work by due time: E pieces, each of one request."""

    due_ms: FloatArray
    """[E] From now."""
    cost_ms: FloatArray
    """[E] Engine time of the piece, its mean."""
    variance: FloatArray
    """[E] Of the cost, milliseconds squared."""
    owner: IntArray
    """[E] Whose piece it is, an index into the requests 0..M-1."""

    def sorted(self, kept: BoolArray) -> "Demand":
        """By due time, without the pieces that add nothing to what the requests `kept` [M] ask for."""
        counts = kept[self.owner] & ((self.cost_ms > 0.0) | (self.variance > 0.0))
        some = np.flatnonzero(counts)
        order = some[np.argsort(self.due_ms[some], kind="stable")]
        return Demand(self.due_ms[order], self.cost_ms[order], self.variance[order], self.owner[order])


def overload_ms(demand: Demand, kept: BoolArray, z: float) -> FloatArray:
    """[E] How much more than fits is due by each due time, for a sorted demand of the requests `kept` [M]."""
    mask = kept[demand.owner]
    mean = np.cumsum(demand.cost_ms * mask)
    load = mean + z * np.sqrt(np.cumsum(demand.variance * mask)) if z else mean
    return np.asarray(load - np.maximum(demand.due_ms, 0.0))


def fits(demand: Demand, kept: BoolArray, z: float = 0.0) -> bool:
    """True if nothing speaks against serving the requests `kept` [M] together."""
    return bool((overload_ms(demand.sorted(kept), kept, z) <= 1e-6).all())


def admit(demand: Demand, density: FloatArray, z: float) -> BoolArray:
    """[M] True for those to serve. Where too much is due, the requests of least density [M] that have a part in it are
    left out; those of density 0 always are."""
    kept = density > 0.0
    pieces = demand.sorted(kept)
    ascending = np.argsort(density, kind="stable")
    count = len(density)
    for _ in range(_ROUNDS):
        excess = overload_ms(pieces, kept, z)
        if not len(excess):
            break
        worst = int(np.argmax(excess))
        if excess[worst] <= 1e-6:
            break
        head = slice(0, worst + 1)
        part = np.bincount(pieces.owner[head], weights=pieces.cost_ms[head], minlength=count)
        part = (part * kept)[ascending]
        enough = int(np.searchsorted(np.cumsum(part), excess[worst]))
        leaves = ascending[: enough + 1]
        kept[leaves[part[: enough + 1] > 0.0]] = False
    return kept
