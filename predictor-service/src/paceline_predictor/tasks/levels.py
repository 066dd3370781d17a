"""What is learned of applications besides patterns, from tasks that ended: which raw quantile level to ask of the
matcher so that the wanted one is met, and how sharply it should match.

The probability integral transforms of what remained are counted in bins that decay, per application with the fleet as
prior and the identity as the fleet's. If a share H(u) of outcomes fell at or below raw level u, then the level asked
for p is the u with H(u) = p.

Each sharpness of SHARPNESS is scored on every task that ended, by the pinball loss of its quantiles in log tokens;
the one with the least decayed loss is used. The fleet's losses are the prior of an application, and 1 is the fleet's.
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
SHARPNESS: Final = (0.0, 1.0, 3.0)
"""How much distances count; 0: not at all."""
_USUAL: Final = SHARPNESS.index(1.0)
_PRIOR_LOSS: Final = 0.02
"""How much worse than the usual sharpness the others are taken to be before anything was learned."""
_PRIOR_TASKS: Final = 5.0

_APP_COLUMNS: Final = BINS + 2 + len(SHARPNESS) + 1
"""Place counts; how often P90 held, and out of how many; losses by sharpness, and of how many tasks."""

Floats = NDArray[np.float64]


class LevelMaps:
    """Learned maps of quantile levels. All counts decay with outcomes."""

    def __init__(self) -> None:
        self._fleet = np.zeros(_APP_COLUMNS)
        self._apps: OrderedDict[int, Floats] = OrderedDict()

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

    def sharpness(self, app: int) -> int:
        """Which of SHARPNESS to use."""
        prior = np.full(len(SHARPNESS), _PRIOR_LOSS)
        prior[_USUAL] = 0.0
        for counts in (self._fleet, self._apps.get(app)):
            if counts is not None and counts[-1] > 0:
                losses = counts[BINS + 2 : -1]
                # Against the usual one: what is hard for all says nothing.
                prior = (_PRIOR_TASKS * prior + losses - losses[_USUAL]) / (_PRIOR_TASKS + counts[-1])
        return int(prior.argmin())

    def learn(self, app: int, places: Floats, held_p90: Floats, losses: Floats, weight: float) -> None:
        """Outcomes of one task.

        Masses of their raw places [N, BINS], whether the P90 held [N], mean losses by sharpness, and what each place
        counts.
        """
        counts = self._apps.get(app)
        if counts is None:
            if len(self._apps) >= _MAX_APPS:
                self._apps.popitem(last=False)
            counts = np.zeros(_APP_COLUMNS)
        self._apps[app] = counts
        self._apps.move_to_end(app)
        row = np.concatenate(
            [places.sum(axis=0) * weight, [weight * held_p90.sum(), weight * len(held_p90)], losses, [1.0]]
        )
        for columns in (self._fleet, counts):
            columns *= _KEEP
            columns += row

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
            maps._fleet = _counts(state["fleet"])
            for app, counts in state["apps"][-_MAX_APPS:]:
                maps._apps[int(app)] = _counts(counts)
        except (KeyError, TypeError) as error:
            raise ValueError(f"no level maps: {error!r}") from None
        return maps

    def _shares(self, app: int) -> Floats:
        prior = np.full(BINS, 1.0 / BINS)
        found = self._fleet[:BINS]
        fleet = (found + _STRENGTH * prior) / (found.sum() + _STRENGTH)
        counts = self._apps.get(app)
        if counts is None:
            return np.asarray(fleet)
        own = counts[:BINS]
        return np.asarray((own + _STRENGTH * fleet) / (own.sum() + _STRENGTH))


def log_pinball(quantiles: Floats, truth: Floats) -> Floats:
    """Mean pinball loss in log(1 + tokens) of quantiles [N, BINS - 1] at RAW_LEVELS, float64[N]."""
    error = np.log1p(truth)[:, None] - np.log1p(np.maximum(quantiles, 0.0))
    return np.asarray(np.maximum(RAW_LEVELS * error, (RAW_LEVELS - 1.0) * error).mean(axis=1))


def places(quantiles: Floats, truth: Floats) -> Floats:
    """Where truths [N] lie among the quantiles [N, BINS - 1] at RAW_LEVELS: masses float64[N, BINS], rows sum to 1.

    A truth that equals several quantiles (nothing comes, and that was likely) is spread over their bins.
    """
    low = (quantiles < truth[:, None] - 1e-6).sum(axis=1)
    high = (quantiles <= truth[:, None] + 1e-6).sum(axis=1)
    bins = np.arange(BINS)
    inside = (bins >= low[:, None]) & (bins <= high[:, None])
    return np.asarray(inside / inside.sum(axis=1, keepdims=True))


def _counts(values: object) -> Floats:
    counts = np.array(values, dtype=np.float64)
    if counts.shape != (_APP_COLUMNS,) or not np.isfinite(counts).all() or (counts < 0).any():
        raise ValueError("the saved level maps hold numbers that no outcomes give")
    return counts
