"""What a placement policy sees: the fleet as arrays, and one request in numbers.

Every array of a `FleetView` has one entry per engine, in the order of `engine_ids`. Policies read them and never write.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from paceline_core import lengths
from paceline_core.placement import lengths_of_one
from paceline_core.placement.roster import Roster
from paceline_core.slo import Slo, SloClass

if TYPE_CHECKING:
    from paceline_core.placement.joining import Joining
    from paceline_core.placement.prices import Prices
    from paceline_core.placement.residents import Residents

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

REFERENCE_PROMPT_TOKENS: Final = 512.0
REFERENCE_OUTPUT_TOKENS: Final = 256.0
"""The request by which engines are compared: speeds are those of one such request on the idle engine."""


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
        single = (batch <= 1) & (self.a1_ms > 0)
        many = self.a_ms + self.b_ms * batch
        if single.any():
            many = np.where(single, self.a1_ms, many)
        return np.asarray(many + self.c_ms * context_tokens)

    def prefill_ms(self, tokens: Floats, context_tokens: Floats | float = 0.0) -> Floats:
        """Time to prefill `tokens` after `context_tokens`, float64[E]; 0 for no tokens."""
        cost = self.p0_ms + tokens * (self.d_ms + self.e_ms * (context_tokens + tokens / 2))
        return np.asarray(cost * (tokens > 0))

    def of(self, engines: NDArray[np.int64]) -> "StepCosts":
        """The same for some of the engines."""
        return StepCosts(*(getattr(self, name)[engines] for name in StepCosts.__slots__))

    def copy(self) -> "StepCosts":
        """The same numbers in arrays of their own."""
        return StepCosts(*(getattr(self, name).copy() for name in StepCosts.__slots__))


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
class BlackBox:
    """Smoothed times as seen from outside (GoodServe), float64[E] each; NaN: nothing was seen yet."""

    queue_ms: Floats
    """q: from placement to the start of the prefill."""
    prefill_token_ms: Floats
    """p: per prompt token that was not cached."""
    decode_token_ms: Floats
    """d: per output token."""


@dataclass(frozen=True)
class FleetView:
    """The fleet at one moment.

    `pending_*` is the in-flight ledger: what this router placed that the engine's last load report cannot
    know yet. `load_age_ms` is the age of that report. `stale` engines are past the age at which a report may
    be used at all. What is derived is computed once for a view.
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
    black_box: BlackBox | None = None
    minute_tokens: Floats | None = None
    """Tokens of calls that ended in the current minute (prompt and output)."""
    pool_output_tokens: float = 256.0
    """Mean output of recent answers over all engines."""
    residents: "Residents | None" = None
    """The caller's own live requests; None: the caller does not say."""
    prices: "Prices | None" = None
    """Shadow prices of the engines' time (`prices.reprice`)."""
    observed_slowdown: Floats | None = None
    """Decode steps as they are over decode steps by the model: what prefills of others in between cost."""
    kept_joining: "Joining | None" = None
    """What one more request would find, as the caller keeps it; None: made anew."""
    kept_roster: Roster | None = None
    """The caller's own roster of the three columns of names, with what is derived from them; None: made anew."""

    def __len__(self) -> int:
        return len(self.engine_ids)

    @cached_property
    def roster(self) -> Roster:
        """The columns of names, and what is derived from them."""
        return self.kept_roster or Roster(self.engine_ids, self.incarnations, self.models)

    @cached_property
    def usable(self) -> Bools:
        """Up, not draining, and known well enough."""
        return np.asarray(self.up & ~(self.draining | self.stale))

    @cached_property
    def live_requests(self) -> Floats:
        """Requests that share the engine, placed and not yet reported ones included."""
        return np.asarray(self.queued + self.running + self.paused + self.pending_requests)

    @cached_property
    def slots(self) -> Floats:
        """Sequences of a full batch, at least 1."""
        return np.maximum(self.max_batch, 1.0)

    @cached_property
    def joining(self) -> "Joining":
        """What one more request would find on each engine."""
        if self.kept_joining is not None:
            return self.kept_joining
        from paceline_core.placement.joining import Joining, joining

        costs = self.costs
        return Joining(
            *joining(
                self.live_requests,
                self.running + self.paused,
                self.kv_used_tokens,
                self.max_batch,
                self.queued_prefill_tokens + self.pending_prefill_tokens,
                self.expected_output_tokens + self.pending_output_tokens,
                self.slowdown,
                costs.a_ms,
                costs.b_ms,
                costs.c_ms,
                costs.a1_ms,
                costs.d_ms,
                np.minimum,
                np.maximum,
            )
        )

    @cached_property
    def slowdown(self) -> Floats:
        """float64[E]: `observed_slowdown`; 1 where nothing was observed."""
        return np.ones(len(self)) if self.observed_slowdown is None else self.observed_slowdown

    @cached_property
    def reference_ms(self) -> Floats:
        """Time of the reference request on the idle engine: small is strong. The speeds of every policy."""
        costs = self.costs
        alone = np.where(costs.a1_ms > 0, costs.a1_ms, costs.a_ms + costs.b_ms)
        context = REFERENCE_PROMPT_TOKENS + REFERENCE_OUTPUT_TOKENS / 2
        prefill = costs.prefill_ms(np.full(len(self), REFERENCE_PROMPT_TOKENS))
        return np.asarray(prefill + REFERENCE_OUTPUT_TOKENS * (alone + costs.c_ms * context))

    @cached_property
    def speed(self) -> Floats:
        """Weights of speed-weighted policies: the mean of the fleet is 1."""
        speed = 1.0 / np.maximum(self.reference_ms, 1e-6)
        return np.asarray(speed / speed.mean()) if len(self) else speed


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
    length_cdf: lengths.FloatArray
    slo: Slo = field(default_factory=lambda: Slo(SloClass.BEST_EFFORT))
    elapsed_ms: float = 0.0
    replayed_tokens: int = 0
    excluded: frozenset[int] = frozenset()
    excluded_ids: frozenset[str] = frozenset()
    prefix_hashes: tuple[int, ...] = ()
    tenant: str = ""
    request_id: str = ""
    """Where policies take their randomness from."""
    budget_ms: float = float("inf")
    """What this call of a task may take, since its arrival; infinite: the objective itself says."""
    cached_tokens: Floats | None = None
    """float64[E]: leading prompt tokens that each engine has in its prefix cache; None: unknown, or none."""
    session_row: int = -1
    """Engine of the same session's last call; -1: none."""

    @cached_property
    def left_ms(self) -> float:
        """Time until the last token is due; infinite for latency and best effort."""
        if self.slo.slo_class in (SloClass.DEADLINE, SloClass.TASK):
            return min(self.slo.e2e_ms, self.budget_ms) - self.elapsed_ms
        return self.budget_ms - self.elapsed_ms

    @cached_property
    def first_left_ms(self) -> float:
        """Time until the first token to come is due; infinite unless latency class."""
        if self.slo.slo_class is SloClass.LATENCY:
            return self.slo.token_due_ms(self.replayed_tokens) - self.elapsed_ms
        return float("inf")

    @cached_property
    def mean_tokens(self) -> float:
        """Expected output tokens in all, given those already out."""
        return lengths_of_one.mean(self.length_cdf, self.replayed_tokens, self.max_tokens)

    @cached_property
    def remaining_tokens(self) -> float:
        """Expected output tokens still to come, at least 1."""
        return max(self.mean_tokens - self.replayed_tokens, 1.0)

    @cached_property
    def p50_tokens(self) -> float:
        """Median of the output tokens in all, given those already out."""
        return float(lengths.quantile(self.length_cdf[None, :], 0.5, self._generated, self._limit)[0])

    @cached_property
    def p90_tokens(self) -> float:
        """P90 of the output tokens in all, given those already out."""
        return float(lengths.quantile(self.length_cdf[None, :], 0.9, self._generated, self._limit)[0])

    @cached_property
    def input_tokens(self) -> float:
        """Tokens to take in before the next output token, were nothing cached."""
        return float(self.prompt_tokens + self.replayed_tokens)

    def uncached_tokens(self, engines: int) -> Floats:
        """float64[E]: tokens to prefill on each of `engines` engines, at least 1 (the last one is never cached)."""
        if self.cached_tokens is None:
            return np.full(engines, self.input_tokens)
        return np.asarray(np.maximum(self.input_tokens - self.cached_tokens, 1.0))

    @property
    def _generated(self) -> lengths.FloatArray:
        return np.array([float(self.replayed_tokens)])

    @property
    def _limit(self) -> lengths.FloatArray:
        return np.array([float(self.max_tokens)])
