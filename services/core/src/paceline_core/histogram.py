"""Output lengths learned from outcomes: histograms per (model, app), backing off to model, fleet, prior.

Each level keeps decayed counts over the bins of `lengths` and takes the level above as its prior (a Dirichlet process
with right-censored data: Susarla and Van Ryzin, JASA 71, 1976). With d_k events and n_k at risk in bin k, parent masses
q_k and concentration c:

    hazard_k = (d_k + c * q_k) / (n_k + c * (q_k + q_{k+1} + ...)),    p_k = hazard_k * (1 - sum of p before k)

Without censoring this is (d_k + c * q_k) / (n + c); a censored outcome's mass goes to the right, along what longer
answers and the parent say. Everything is a function of the sequence of outcomes: no clock, no randomness.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from paceline_core.histogram_table import (
    CENSORED,
    EVENTS,
    EXPOSURE,
    HistogramTable,
    TableSnapshot,
)
from paceline_core.key_rows import Key
from paceline_core.lengths import (
    EDGES,
    OPEN_EDGE,
    UPPER,
    FloatArray,
    cdf_from_probabilities,
    quantile,
)
from paceline_core.saved_state import StateError, Unpacker, pack

P90 = 0.9
_MAGIC = b"PLH1"


@dataclass(frozen=True, slots=True)
class HistogramParams:
    """How the histograms learn."""

    half_life_outcomes: float = 500.0
    """Outcomes of a key after which an older one counts half."""
    concentration_outcomes: float = 8.0
    """How many outcomes the level above is worth."""
    prior_median_tokens: float = 180.0
    """Median of the log-normal prior at the root."""
    prior_sigma: float = 1.3
    """Its standard deviation of the logarithm."""
    coverage_half_life_outcomes: float = 150.0
    """Outcomes after which an older one counts half in the coverage of P90."""
    coverage_min_outcomes: float = 20.0
    """Decayed outcomes below which the coverage is said to be not known."""
    max_models: int = 256
    """Models kept; the one that was observed longest ago leaves."""
    max_keys: int = 4096
    """(model, app) pairs kept; the one that was observed longest ago leaves."""


def prior(params: HistogramParams) -> FloatArray:
    """Bin masses of the log-normal prior, float64[K]."""
    z = np.log(UPPER / params.prior_median_tokens) / (params.prior_sigma * math.sqrt(2))
    cdf = np.array([(1 + math.erf(x)) / 2 for x in z])
    cdf[-1] = 1.0
    return np.asarray(np.diff(cdf, prepend=0.0))


def posterior(counts: FloatArray, parent: FloatArray, concentration: float) -> FloatArray:
    """Bin masses float64[N, K] from counts float64[N, 3, K] (events, censored, exposure) and parents float64[N, K]."""
    events, censored = counts[:, EVENTS], counts[:, CENSORED]
    from_here = _tail_sum(events)
    # A censored outcome was at risk in all bins before its own, and for a part of its own.
    at_risk = from_here + _tail_sum(censored) - censored + counts[:, EXPOSURE]
    pseudo = concentration * parent
    hazard = (events + pseudo) / np.maximum(at_risk + _tail_sum(pseudo), 1e-300)
    hazard = np.minimum(hazard, 1.0)
    hazard[:, -1] = 1.0
    survival = np.cumprod(1.0 - hazard, axis=1)
    return np.asarray(hazard * np.concatenate([np.ones((len(counts), 1)), survival[:, :-1]], axis=1))


class LengthHistograms:
    """Learns from outcomes, answers with bin masses. Not thread-safe: one owner, one thread."""

    def __init__(self, params: HistogramParams | None = None) -> None:
        self.params = params or HistogramParams()
        self._prior = prior(self.params)
        self._fleet = _table(1, self.params)
        self._models = _table(self.params.max_models, self.params)
        self._apps = _table(self.params.max_keys, self.params)

    @property
    def observed(self) -> int:
        """Outcomes learned from in all."""
        return self._fleet.observed(_FLEET)

    @property
    def keys(self) -> int:
        """(model, app) pairs that are kept."""
        return len(self._apps)

    def observed_of(self, model: str, app: str | None = None) -> int:
        """Outcomes learned from of a model, or of a model and an app; 0 once it was dropped."""
        return self._models.observed(_model(model)) if app is None else self._apps.observed((model, app))

    def coverage_p90(self, model: str | None = None, app: str | None = None) -> float:
        """Share of the last outcomes that were within their declared P90: of a pair, a model or all; 0: not known.

        Bounds clipped at max_tokens are not scored. A known coverage is never reported as 0.
        """
        if model is None:
            return self._fleet.coverage(_FLEET)
        return self._models.coverage(_model(model)) if app is None else self._apps.coverage((model, app))

    def observe(
        self,
        model: str,
        app: str,
        output_tokens: int,
        *,
        censored: bool = False,
        declared_p90: float | None = None,
        max_tokens: int = 0,
    ) -> None:
        """Learn one outcome: `output_tokens`, or more than that when censored.

        `declared_p90`: what was promised at its arrival, clipped at `max_tokens` (0: no limit); None: what would have
        been promised now. Raises ValueError on a censored outcome without a token, which says nothing.
        """
        if output_tokens < 1 and censored:
            raise ValueError("a censored outcome without tokens says nothing")
        length = max(1, output_tokens)
        limit = float(max_tokens) if max_tokens > 0 else OPEN_EDGE
        p90 = self._p90(model, app, limit) if declared_p90 is None else min(declared_p90, limit)
        within = _within(length, censored, p90, limit)
        for table, key in ((self._fleet, _FLEET), (self._models, _model(model)), (self._apps, (model, app))):
            table.learn(key, length, censored, within)

    def probabilities(self, model: str, app: str) -> FloatArray:
        """Bin masses of the length of an answer, float64[K]."""
        return np.asarray(self.probabilities_of([(model, app)])[0])

    def probabilities_of(self, keys: Sequence[tuple[str, str]]) -> FloatArray:
        """Bin masses for each (model, app), float64[N, K]. What is not known backs off to the level above."""
        c = self.params.concentration_outcomes
        root = self._prior[None, :]
        fleet = posterior(self._fleet.counts([_FLEET]), root, c)
        models = list(dict.fromkeys(model for model, _ in keys))
        row_of = {model: row for row, model in enumerate(models)}
        by_model = posterior(
            self._models.counts([_model(m) for m in models]), np.repeat(fleet, len(models), 0), c
        )
        pairs = list(dict.fromkeys(keys))
        pair_row = {pair: row for row, pair in enumerate(pairs)}
        by_pair = posterior(self._apps.counts(pairs), by_model[[row_of[model] for model, _ in pairs]], c)
        return np.asarray(by_pair[[pair_row[key] for key in keys]])

    def snapshot(self) -> Callable[[], bytes]:
        """The state of this moment; the call that turns it into bytes may be made in another thread."""
        tables = [table.snapshot() for table in (self._fleet, self._models, self._apps)]
        return lambda: _encoded(tables)

    def to_bytes(self) -> bytes:
        """The whole state; `from_bytes` gives back an equal learner. Little-endian, with a checksum."""
        return self.snapshot()()

    @classmethod
    def from_bytes(cls, state: bytes, params: HistogramParams | None = None) -> "LengthHistograms":
        """A learner in a saved state. More keys than `params` allows: the longest unobserved are left out.

        Raises StateError.
        """
        read = Unpacker(_MAGIC, state, "length histograms")
        learner = cls(params)
        keys = read.header.get("tables")
        if read.header.get("edges") != EDGES.tolist() or not isinstance(keys, list) or len(keys) != 3:
            raise StateError("the saved state has other bins or tables")
        for table, saved in zip((learner._fleet, learner._models, learner._apps), keys, strict=True):
            table.load(saved, read)
        return learner

    def _p90(self, model: str, app: str, limit: float) -> float:
        cdf = cdf_from_probabilities(self.probabilities(model, app))
        return float(quantile(cdf, P90, np.zeros(1), np.array([limit]))[0])


_FLEET: Key = ("", "")


def _model(model: str) -> Key:
    return (model, "")


def _within(length: int, censored: bool, p90: float, limit: float) -> bool | None:
    """Whether the outcome was within P90; None when its censoring hides that, or when the limit clips P90: what is
    within such a bound says nothing about the bound."""
    if p90 >= limit:
        return None
    if not censored:
        return length <= p90
    return False if length >= p90 else None


def _table(capacity: int, params: HistogramParams) -> HistogramTable:
    return HistogramTable(
        capacity,
        params.half_life_outcomes,
        params.coverage_half_life_outcomes,
        params.coverage_min_outcomes,
    )


def _tail_sum(values: FloatArray) -> FloatArray:
    """Sums from each bin to the last, along the last axis."""
    return np.asarray(np.cumsum(values[..., ::-1], axis=-1)[..., ::-1])


def _encoded(tables: Sequence[TableSnapshot]) -> bytes:
    header = {"edges": EDGES.tolist(), "tables": [table.keys for table in tables]}
    return pack(_MAGIC, header, [array for table in tables for array in (table.counts, table.scores)])
