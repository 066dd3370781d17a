"""What a placement policy sees: the fleet as arrays, and one request in numbers.

Every array of a `FleetView` has one entry per engine, in the order of `engine_ids`. Policies read them and
never write.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from paceline_core import lengths
from paceline_core.slo import Slo, SloClass

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class StepCosts:
    """Coefficients of the step-time model per engine, milliseconds, float64[E] each (algorithms C).

    decode = a + b*B + c*sum(context), with a1 for B = 1 (0: a + b); prefill of n tokens after `context`
    tokens = p0 + d*n + e*n*(context + n/2).
    """

    a_ms: Floats
    b_ms: Floats
    c_ms: Floats
    a1_ms: Floats
    p0_ms: Floats
    d_ms: Floats
    e_ms: Floats

    def decode_ms(self, batch: Floats, context_tokens: Floats) -> Floats:
        """Time of one decode step of `batch` sequences whose contexts sum to `context_tokens`, float64[E]."""
        alone = np.where(self.a1_ms > 0, self.a1_ms, self.a_ms + self.b_ms)
        return np.where(batch <= 1, alone, self.a_ms + self.b_ms * batch) + self.c_ms * context_tokens

    def prefill_ms(self, tokens: Floats, context_tokens: Floats | float = 0.0) -> Floats:
        """Time to prefill `tokens` after `context_tokens`, float64[E]; 0 for no tokens."""
        cost = self.p0_ms + self.d_ms * tokens + self.e_ms * tokens * (context_tokens + tokens / 2)
        return np.where(tokens > 0, cost, 0.0)


@dataclass(frozen=True, slots=True)
class Headroom:
    """What is free until each horizon (the scheduler's curve): horizons float64[H], the rest float64[E, H].

    Engines that sent no curve have rows of NaN.
    """

    horizon_ms: Floats
    free_decode_tokens: Floats
    free_prefill_tokens: Floats
    free_kv_tokens: Floats


@dataclass(frozen=True, slots=True)
class FleetView:
    """The fleet at one moment.

    `pending_*` is the in-flight ledger: what this router placed that the engine's last load report cannot
    know yet. `load_age_ms` is the age of that report. `stale` engines are past the age at which a report may
    be used at all.
    """

    engine_ids: tuple[str, ...]
    incarnations: tuple[int, ...]
    models: tuple[str, ...]
    up: Bools
    draining: Bools
    stale: Bools
    load_age_ms: Floats
    queued: Floats
    running: Floats
    paused: Floats
    pending_requests: Floats
    pending_prefill_tokens: Floats
    pending_output_tokens: Floats
    queued_prefill_tokens: Floats
    expected_output_tokens: Floats
    kv_used_tokens: Floats
    kv_capacity_tokens: Floats
    max_batch: Floats
    max_context_tokens: Floats
    speed_factor: Floats
    tokens_per_s: Floats
    costs: StepCosts
    headroom: Headroom | None = None

    def __len__(self) -> int:
        return len(self.engine_ids)

    @property
    def live_requests(self) -> Floats:
        """Requests that share the engine, placed and not yet reported ones included."""
        return self.queued + self.running + self.paused + self.pending_requests


@dataclass(frozen=True)
class RequestView:
    """One request in numbers.

    `prompt_tokens` is an estimate until an engine has tokenized the prompt. `replayed_tokens` are output
    tokens already published that a new attempt must take in again. `length_cdf` is float64[K] at the bin
    edges of `paceline_core.lengths`. `elapsed_ms` is the time since arrival. `excluded` holds incarnations
    that must not be used.
    """

    model: str
    prompt_tokens: int
    max_tokens: int
    length_cdf: Floats
    slo: Slo = field(default_factory=lambda: Slo(SloClass.BEST_EFFORT))
    elapsed_ms: float = 0.0
    replayed_tokens: int = 0
    excluded: frozenset[int] = frozenset()
    excluded_ids: frozenset[str] = frozenset()
    prefix_hashes: tuple[int, ...] = ()
    tenant: str = ""

    @cached_property
    def mean_tokens(self) -> float:
        """Expected output tokens in all, given those already out."""
        return float(lengths.mean(self.length_cdf[None, :], self._generated, self._limit)[0])

    @cached_property
    def p50_tokens(self) -> float:
        """Median of the output tokens in all, given those already out."""
        return float(lengths.quantile(self.length_cdf[None, :], 0.5, self._generated, self._limit)[0])

    @cached_property
    def p90_tokens(self) -> float:
        """P90 of the output tokens in all, given those already out."""
        return float(lengths.quantile(self.length_cdf[None, :], 0.9, self._generated, self._limit)[0])

    @property
    def _generated(self) -> Floats:
        return np.array([float(self.replayed_tokens)])

    @property
    def _limit(self) -> Floats:
        return np.array([float(self.max_tokens)])
