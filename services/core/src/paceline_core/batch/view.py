"""What a batch policy sees: the live requests of one engine as arrays, and what the engine can do."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paceline_core.batch.estimates import LengthEstimates
from paceline_core.engine_model import EngineModel

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Capacity:
    """Limits of the engine, and what it can do besides."""

    max_batch: int
    """Most sequences decoded in one step."""
    max_resident: int
    """Most sequences with KV in the engine."""
    kv_tokens: int
    """KV capacity of all sequences, tokens."""
    max_context_tokens: int
    """Longest context of one sequence, tokens."""
    prefill_chunk_tokens: int
    """Prefill chunk that keeps answers identical, tokens."""
    run_set_change_cost_ms: float = 0.0
    """Extra time of a step after the run set changed, milliseconds."""
    keeps_kv_when_paused: bool = True
    """False: a pause drops the KV, which is computed again at the resume."""
    frame_only: bool = False
    """True: plans act at frame boundaries only, not at every step."""


@dataclass(frozen=True, slots=True)
class BatchView:
    """Live (not ended) requests of one engine; every array has N rows, one per request, in no particular order.

    Times are milliseconds: instants on the clock of `now_ms`, budgets from `arrival_ms` on. Compare columns with the
    `value` of an enum's member: NumPy takes the member itself for an object first, and then widens the column.
    """

    row_id: IntArray
    """[N] Where the caller keeps the row; distinct."""
    slo_class: NDArray[np.int8]
    """[N] Values of `SloClass`."""
    arrival_ms: FloatArray
    """[N] Arrival at the router, an instant; may be negative."""
    ttft_ms: FloatArray
    """[N] Budget of the first token; 0 unless latency class."""
    tbt_ms: FloatArray
    """[N] Budget of each further token; 0 unless latency class."""
    e2e_ms: FloatArray
    """[N] Budget of the last token; 0 unless deadline or task class."""
    call_due_ms: FloatArray
    """[N] Instant by which this call of a task is wanted; infinite when nobody said."""
    task_due_ms: FloatArray
    """[N] Instant by which the whole task is due; infinite unless task class, or when nobody said."""
    task_rest_tokens: FloatArray
    """[N] Output tokens that the task is expected to need along its critical path after this call; 0 unless known."""
    last_token_ms: FloatArray
    """[N] Instant of the newest output token here; 0: none yet."""
    late_tokens: IntArray
    """[N] Tokens of a latency request that came late: with one of them the request has missed."""
    tenant_lag_tokens: FloatArray
    """[N] How far the request's tenant is behind its fair share of the engine; negative: ahead of it."""
    drops: BoolArray
    """[N] True where the client wants an end as soon as the target is out of reach."""
    finishes: BoolArray
    """[N] True where the client wants an answer however late: never shed, whatever the policy says."""
    prompt_tokens: IntArray
    """[N] Prompt tokens; an estimate until the engine accepted."""
    kv_tokens: IntArray
    """[N] Prompt and output tokens whose KV is in the engine."""
    cached_tokens: IntArray
    """[N] Prompt tokens that were found in the engine's prefix cache."""
    generated: IntArray
    """[N] Output tokens so far, those of earlier attempts included."""
    max_tokens: IntArray
    """[N] Most output tokens."""
    token_limit: IntArray
    """[N] Output index bound by credit; 0: none."""
    state: NDArray[np.int8]
    """[N] Values of `paceline_core.batch.state.RunState`."""
    tenant: NDArray[np.int32]
    """[N] Small numbers that stand for tenants."""
    task: NDArray[np.int32]
    """[N] Small numbers that stand for tasks; -1: no task."""
    priority: NDArray[np.int32]
    """[N] Higher is more urgent; 0 is normal."""
    lengths: LengthEstimates
    """The caller's length estimates by row; `mean_left`, `upper_left` and `length_cdf` ask it for these rows."""
    capacity: Capacity
    model: EngineModel
    step: int = 0
    """Steps that the engine has made."""
    planned_step: int = -1
    """`step` at the previous plan; -1: there was none. A policy with frames tells by the two where a frame ends."""

    def __len__(self) -> int:
        return len(self.row_id)

    def length_cdf(self) -> FloatArray:
        """[N, K] Length CDF of each request. Gathered when asked for: most policies never read it."""
        return self.lengths.cdf[self.row_id].astype(np.float64)

    def mean_left(self) -> FloatArray:
        """[N] Expected output tokens still to come; at least 1."""
        return self.lengths.mean_left(self.row_id, self.generated)

    def upper_left(self) -> FloatArray:
        """[N] Output tokens still to come at `estimates.UPPER_LEVEL`; at least 1."""
        return self.lengths.upper_left(self.row_id, self.generated)

    def runnable(self) -> BoolArray:
        """[N] True where the next step may run the request: its credit is not used up."""
        return np.asarray((self.token_limit == 0) | (self.generated < self.token_limit))

    def runnable_rows(self) -> IntArray:
        """[R] Rows that the next step may run, ascending."""
        return np.flatnonzero(self.runnable()) if self.token_limit.any() else np.arange(len(self))

    def context_tokens(self, rows: IntArray | slice = slice(None)) -> IntArray:
        """[R] Tokens whose KV the request needs to decode its next token (the last token is not in the KV yet); of all
        N, or of `rows`."""
        return self.prompt_tokens[rows] + np.maximum(self.generated[rows] - 1, 0)

    def prefill_left(self, rows: IntArray | slice = slice(None)) -> IntArray:
        """[R] Tokens to prefill before the next output token; 0 while decoding. Of all N, or of `rows`."""
        return np.asarray(np.maximum(self.context_tokens(rows) - self.kv_tokens[rows], 0))
