"""Which raw quantile level to ask of the matcher so that the wanted one is met, learned from tasks that ended.

The probability integral transforms of what remained are counted in bins that decay, per application with the fleet as
prior and the identity as the fleet's. If a share H(u) of outcomes fell at or below raw level u, then the level asked for p is
the u with H(u) = p.
"""

import json
from collections import OrderedDict
from typing import Final

import numpy as np
from numpy.typing import NDArray

BINS: Final = 20
RAW_LEVELS: Final = np.arange(1, BINS) / BINS
"""Raw levels at which outcomes are placed."""
_KEEP: Final = 0.998
_STRENGTH: Final = 40.0
"""How many outcomes the level above is worth."""
_MAX_APPS: Final = 256
_MIN_SCORED: Final = 20.0

Floats = NDArray[np.float64]


class LevelMaps:
    """Learned maps of quantile levels. All counts decay with outcomes."""

    def __init__(self) -> None:
        self._fleet = np.zeros(BINS)
        self._apps: OrderedDict[int, Floats] = OrderedDict()
        """By `app_code`: BINS counts, then how often P90 held, and out of how many."""

    def raw(self, app: int, wanted: Floats) -> Floats:
        """Raw levels for wanted ones, float64[Q]."""
        below = np.concatenate([[0.0], np.cumsum(self._shares(app))])
        below[-1] = 1.0
        # The prior is uniform, so the map has no flat piece.
        return np.clip(np.interp(wanted, below, np.arange(BINS + 1) / BINS), 1e-3, 1 - 1e-3)

    def coverage_p90(self, app: int) -> float:
        """How often the P90 held for an application; 0: not known yet."""
        counts = self._apps.get(app)
        if counts is None or counts[BINS + 1] < _MIN_SCORED:
            return 0.0
        return float(counts[BINS] / counts[BINS + 1])

    def learn(self, app: int, places: Floats, held_p90: Floats, weight: float) -> None:
        """Outcomes of one task: [N, BINS] masses of their raw places, whether the P90 held, and what each counts."""
        counts = self._apps.get(app)
        if counts is None:
            if len(self._apps) >= _MAX_APPS:
                self._apps.popitem(last=False)
            counts = np.zeros(BINS + 2)
        self._apps[app] = counts
        self._apps.move_to_end(app)
        mass = places.sum(axis=0) * weight
        self._fleet *= _KEEP
        self._fleet += mass
        counts *= _KEEP
        counts[:BINS] += mass
        counts[BINS:] += weight * held_p90.sum(), weight * len(held_p90)

    def to_json(self) -> str:
        """All counts."""
        apps = [[app, counts.tolist()] for app, counts in self._apps.items()]
        return json.dumps({"fleet": self._fleet.tolist(), "apps": apps})

    @classmethod
    def from_json(cls, text: str | bytes) -> "LevelMaps":
        """The reverse. Raises ValueError."""
        maps = cls()
        try:
            state = json.loads(text)
            maps._fleet = _counts(state["fleet"], BINS)
            for app, counts in state["apps"][-_MAX_APPS:]:
                maps._apps[int(app)] = _counts(counts, BINS + 2)
        except (KeyError, TypeError) as error:
            raise ValueError(f"no level maps: {error!r}") from None
        return maps

    def _shares(self, app: int) -> Floats:
        prior = np.full(BINS, 1.0 / BINS)
        fleet = (self._fleet + _STRENGTH * prior) / (self._fleet.sum() + _STRENGTH)
        counts = self._apps.get(app)
        if counts is None:
            return np.asarray(fleet)
        own = counts[:BINS]
        return np.asarray((own + _STRENGTH * fleet) / (own.sum() + _STRENGTH))


def places(quantiles: Floats, truth: Floats) -> Floats:
    """Where truths [N] lie among the quantiles [N, BINS - 1] at RAW_LEVELS: masses float64[N, BINS], rows sum to 1.

    A truth that equals several quantiles (nothing comes, and that was likely) is spread over their bins.
    """
    low = (quantiles < truth[:, None] - 1e-6).sum(axis=1)
    high = (quantiles <= truth[:, None] + 1e-6).sum(axis=1)
    bins = np.arange(BINS)
    inside = (bins >= low[:, None]) & (bins <= high[:, None])
    return np.asarray(inside / inside.sum(axis=1, keepdims=True))


def _counts(values: object, size: int) -> Floats:
    counts = np.array(values, dtype=np.float64)
    if counts.shape != (size,) or not np.isfinite(counts).all() or (counts < 0).any():
        raise ValueError("the saved level maps hold numbers that no outcomes give")
    return counts
