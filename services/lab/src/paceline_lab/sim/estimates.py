"""The length estimates that policies see in a simulation, and how far they are from the truth.

A source is written as `predictor`, `predictor:R2`, `noisy:SIGMA`, `noisy:SIGMA:BIAS`, `class`, `constant`, `shuffled`
or `true`.

`predictor` is what a good predictor gives, calibrated by construction. With F the distribution of lengths of the
application (learned from another seed) and z = Phi^-1(F(length)), the predictor saw x = sqrt(R2) z + sqrt(1 - R2) e
with a standard normal e, and answers P(L <= l | x): the application's distribution sharpened, so that it explains R2 of
the variance within the application (of the length's normal score). Each 50 output tokens it sees a little more: the
precision of what it saw grows by a tenth, at most to the double.
"""

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from paceline_core import lengths
from paceline_core.batch.policy import EstimateUse
from paceline_core.batch.view import IntArray
from paceline_core.lengths import FloatArray
from paceline_lab.sim import normal
from paceline_lab.sim.knowledge import Knowledge
from paceline_lab.workloads.trace import Workload

DEFAULT_R2: Final = 0.35
"""Within an application; a ridge on TF-IDF reaches 0.22 on chat and 0.45 on prompts of models it knows."""
REFINE_EVERY_TOKENS: Final = 50
_REFINEMENTS: Final = 10
_GAIN: Final = 0.1
_LEAST_SIGMA: Final = 0.02


class Source(StrEnum):
    """Where estimates come from."""

    PREDICTOR = "predictor"
    NOISY = "noisy"
    CLASS = "class"
    CONSTANT = "constant"
    """The same for all: the distribution of all calls."""
    SHUFFLED = "shuffled"
    """The predictor's, of some other call of the run."""
    TRUE = "true"


@dataclass(frozen=True, slots=True)
class LengthSpec:
    """A parsed source."""

    source: Source = Source.PREDICTOR
    r2: float = DEFAULT_R2
    sigma: float = 0.0
    bias: float = 1.0

    @classmethod
    def parse(cls, text: str) -> "LengthSpec":
        """Raises ValueError with what may be written."""
        name, *numbers = text.split(":")
        try:
            source, values = Source(name), [float(number) for number in numbers]
            if (
                source is Source.NOISY
                and len(values) in (1, 2)
                and values[0] >= 0
                and min(values[1:], default=1) > 0
            ):
                return cls(source, sigma=values[0], bias=values[1] if len(values) > 1 else 1.0)
            if source is Source.PREDICTOR and len(values) == 1 and 0 <= values[0] < 1:
                return cls(source, r2=values[0])
            if not values and source is not Source.NOISY:
                return cls(source)
        except ValueError:
            pass
        raise ValueError(
            f"{text!r}: write predictor, predictor:R2, noisy:SIGMA, noisy:SIGMA:BIAS, class, constant, shuffled or true"
        )


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the predictor saw of each call, to answer again with more."""

    app: IntArray
    """[N] Number of the application."""
    scores: FloatArray
    """[A, K] Normal scores of the bin edges by application."""
    signal: FloatArray
    """[N, 1 + refinements] Precision times observation, summed."""
    precision: FloatArray
    """[1 + refinements]"""

    def cdf(self, keys: IntArray, stages: IntArray) -> FloatArray:
        """[R, K]"""
        total = 1.0 + self.precision[stages]
        mean = self.signal[keys, stages] / total
        x = (self.scores[self.app[keys]] - mean[:, None]) * np.sqrt(total)[:, None]
        answer = normal.cdf(x)
        answer = (1 - lengths.TAIL_MIX) * answer + lengths.TAIL_MIX * _TAIL_CDF
        answer[:, -1] = 1.0
        return answer


@dataclass(frozen=True, slots=True)
class Estimates:
    """Length CDFs of the N calls of a workload, by key (the place of the call over all jobs)."""

    initial: NDArray[np.float32]
    """[N, K]"""
    limit: IntArray
    """[N] `max_tokens` as the policy sees it."""
    refine_every: int = 0
    """Output tokens between refinements; 0: there are none."""
    refinements: int = 0
    seen: _Seen | None = field(default=None, repr=False)

    def refined(self, keys: IntArray, stages: IntArray) -> FloatArray:
        """[R, K] CDFs of calls after as many refinements."""
        assert self.seen is not None
        return self.seen.cdf(keys, stages)


def estimates_for(
    workload: Workload, knowledge: Knowledge, spec: LengthSpec, use: EstimateUse, seed: int
) -> Estimates:
    """The estimates that a policy of this use is given."""
    apps = sorted({job.app for job in workload.jobs})
    number = {app: place for place, app in enumerate(apps)}
    calls = [(job, call) for job in workload.jobs for call in job.calls]
    truth = np.fromiter((call.output_tokens for _, call in calls), dtype=np.int64, count=len(calls))
    limit = np.fromiter(
        (knowledge.limit(job.app, call.output_tokens) for job, call in calls),
        dtype=np.int64,
        count=len(calls),
    )
    if not calls:
        return Estimates(np.zeros((0, lengths.K), dtype=np.float32), limit)
    if use is EstimateUse.TRUE or spec.source is Source.TRUE:
        return Estimates(_all_beyond(len(truth)), truth)
    if use is EstimateUse.PRIOR or spec.source is Source.CLASS:
        table = {kind: lengths.cdf_from_probabilities(p)[0] for kind, p in knowledge.by_class.items()}
        overall = lengths.cdf_from_probabilities(knowledge.overall)[0]
        rows = [table.get(job.slo.slo_class, overall) for job, _ in calls]
        return Estimates(np.asarray(rows, dtype=np.float32).reshape(len(truth), lengths.K), limit)
    if spec.source is Source.CONSTANT:
        overall = lengths.cdf_from_probabilities(knowledge.overall)[0].astype(np.float32)
        return Estimates(np.broadcast_to(overall, (len(truth), lengths.K)), limit)
    rng = np.random.default_rng([seed, 0x1E57])
    if spec.source is Source.NOISY:
        return Estimates(_noisy(truth, spec, rng), limit)
    app = np.fromiter((number[job.app] for job, _ in calls), dtype=np.int64, count=len(calls))
    seen = _observe(truth, app, np.stack([knowledge.app_masses(name) for name in apps]), spec.r2, rng)
    first = seen.cdf(np.arange(len(truth)), np.zeros(len(truth), dtype=np.int64)).astype(np.float32)
    if spec.source is Source.SHUFFLED:
        return Estimates(first[rng.permutation(len(truth))], limit)
    return Estimates(first, limit, REFINE_EVERY_TOKENS, _REFINEMENTS, seen)


def _observe(
    truth: IntArray, app: IntArray, masses: FloatArray, r2: float, rng: np.random.Generator
) -> _Seen:
    cdf = np.cumsum(masses, axis=1)
    cdf[:, -1] = 1.0
    mine = cdf[app]
    below = lengths.cdf_at(mine, truth.astype(np.float64) - 1.0)
    at = lengths.cdf_at(mine, truth.astype(np.float64))
    score = normal.quantile(below + rng.random(len(truth)) * (at - below))
    first = r2 / (1 - r2)
    gains = np.full(_REFINEMENTS + 1, _GAIN * first)
    gains[0] = first
    noise = rng.standard_normal((len(truth), _REFINEMENTS + 1))
    signal = np.cumsum(gains * score[:, None] + np.sqrt(gains) * noise, axis=1)
    edges = normal.quantile(cdf)
    edges[cdf <= 0] = -math.inf
    edges[:, -1] = math.inf
    return _Seen(app, edges, signal, np.cumsum(gains))


def _noisy(truth: IntArray, spec: LengthSpec, rng: np.random.Generator) -> NDArray[np.float32]:
    """Log-normal around truth x noise x bias, as wide as the noise is."""
    centre = np.log(truth) + spec.sigma * rng.standard_normal(len(truth)) + math.log(spec.bias)
    sigma = max(spec.sigma, _LEAST_SIGMA)
    cdf = normal.cdf((np.log(lengths.UPPER)[None, :] - centre[:, None]) / sigma)
    cdf[:, -1] = 1.0
    return cdf.astype(np.float32)


def _all_beyond(count: int) -> NDArray[np.float32]:
    """Everything in the last bin: the limit, which is the true length then, decides alone."""
    row = np.zeros(lengths.K, dtype=np.float32)
    row[-1] = 1.0
    return np.broadcast_to(row, (count, lengths.K))


_TAIL_CDF: Final = np.cumsum(lengths.TAIL)
