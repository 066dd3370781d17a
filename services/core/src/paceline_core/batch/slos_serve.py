"""Admission by dynamic programming over prefill deadlines, after SLOs-Serve (arXiv 2504.08784).

The engine's time until each prefill deadline goes to the decode steps of those who are in, at their pace, and what is
left to prompts. Chosen is a largest set of waiting requests whose prompts all fit in before their deadlines:

    spare[i, n] = most prefill time unspent at the i-th deadline, with n of the first i requests admitted

Who is admitted stays until it ends or is lost. Who is not is served from spare capacity, and so is best effort. A
step's prompt tokens are as many as leave the tightest stream its pace.

Ours: a deadline's prompt is due so early that its answer, at the upper bound of its length, still fits at the pace of a
full batch; all requests that decode keep one pace, the tightest; KV is taken at the mean need of those who wait.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paceline_core.batch.frames import full_step_ms
from paceline_core.batch.hopeless import triage
from paceline_core.batch.laxity import prefill_ms
from paceline_core.batch.plan import UNLIMITED_TOKENS, UNTIL_EVENT, BatchPlan, PlanReason
from paceline_core.batch.policy import EstimateUse
from paceline_core.batch.ranking import first_by, list_length
from paceline_core.batch.sarathi import decodes
from paceline_core.batch.view import BatchView, BoolArray, FloatArray, IntArray
from paceline_core.slo import SloClass


@dataclass(frozen=True, slots=True)
class SlosServe:
    """The policy `slos-serve`."""

    name: ClassVar[str] = "slos-serve"
    estimates: ClassVar[EstimateUse] = EstimateUse.PREDICTED

    candidates: int = 64
    """Waiting requests, by prefill deadline, that one admission looks at."""

    def plan(self, view: BatchView, now_ms: float) -> BatchPlan:
        rows = view.runnable_rows()
        room = list_length(view)
        sorted_out = triage(view, now_ms)
        spare = (sorted_out.lost | (view.slo_class == SloClass.BEST_EFFORT.value))[rows]
        begun = (view.generated[rows] > 0) | (view.kv_tokens[rows] > 0)
        kept, waiting, behind = rows[begun & ~spare], rows[~begun & ~spare], rows[spare]
        v_ms = full_step_ms(view)
        prompt_ms = prefill_ms(view)
        due = _prefill_due_ms(view, v_ms)
        kept = first_by(view, kept, view.arrival_ms, room)
        waiting = first_by(view, waiting, due, room - len(kept))
        behind = first_by(view, behind, view.arrival_ms, room - len(kept) - len(waiting))
        free = view.capacity.max_batch - len(kept)
        admitted, holds = waiting[:0], UNTIL_EVENT
        if 0 < free < len(waiting):  # else there is nothing to choose
            holds = 1
            timed = waiting[now_ms + prompt_ms[waiting] <= due[waiting]]
            timed = timed[np.argsort(due[timed], kind="stable")][: self.candidates]
            slots = min(free, _kv_slots(view, timed))
            unspent = self._unspent_share(view, kept, timed, slots, v_ms)
            admitted = timed[admit(due[timed] - now_ms, prompt_ms[timed], unspent)]
        others = np.concatenate([waiting[~np.isin(waiting, admitted)], behind])
        order = np.concatenate([kept, admitted, others])
        prefill = self._prefill_tokens(view, order[: view.capacity.max_batch])
        return BatchPlan(
            order=order,
            scores=due[order],
            reasons=[PlanReason.ADMITTED] * (len(kept) + len(admitted)) + [PlanReason.SPARE] * len(others),
            prefill_budget_tokens=prefill,
            valid_for_steps=min(holds, sorted_out.steps(view, order[: view.capacity.max_batch], prefill)),
        )

    def _unspent_share(
        self, view: BatchView, kept: IntArray, timed: IntArray, slots: int, v_ms: float
    ) -> FloatArray:
        """[slots + 1] Share of the time that decode steps leave to prompts, with 0, 1, ... admitted: one step per token
        of the tightest pace."""
        tbt = view.tbt_ms[np.concatenate([kept, timed])]
        pace_ms = float(tbt[tbt > 0].min(initial=np.inf))
        pace_ms = max(2.0 * v_ms, 1e-3) if not np.isfinite(pace_ms) else pace_ms
        context = float(view.prompt_tokens.mean())
        batch = len(kept) + np.arange(slots + 1)
        step_ms = np.asarray([view.model.decode_ms(float(n), float(n) * context) for n in batch])
        return np.asarray(np.clip(1.0 - step_ms / pace_ms, 0.0, 1.0))

    def _prefill_tokens(self, view: BatchView, head: IntArray) -> int:
        """Prompt tokens of a step that keeps the tightest pace of the streams in it: whole chunks, one at least."""
        chunk = max(1, view.capacity.prefill_chunk_tokens)
        tbt = view.tbt_ms[head]
        pace_ms = float(tbt[tbt > 0].min(initial=np.inf))
        token_ms = view.model.prefill_token_ms(chunk)
        if not np.isfinite(pace_ms) or token_ms <= 0:
            return UNLIMITED_TOKENS
        decoding = head[decodes(view, head)]
        step_ms = view.model.decode_ms(len(decoding), float(view.prompt_tokens[decoding].sum()))
        return max(chunk, int((pace_ms - step_ms) / token_ms) // chunk * chunk)


def admit(due_ms: FloatArray, prompt_ms: FloatArray, unspent_share: FloatArray) -> BoolArray:
    """[C] A largest set of requests whose prompts fit in: `due_ms` [C] from now, ascending; `prompt_ms` [C];
    `unspent_share` [S + 1] of the time is left to prompts once 0..S of them are in, so at most S are."""
    count, slots = len(due_ms), len(unspent_share) - 1
    spare = np.full(slots + 1, -np.inf)
    spare[0] = 0.0
    taken = np.zeros((count, slots + 1), dtype=bool)
    before = 0.0
    for i in range(count):
        spare += (due_ms[i] - before) * unspent_share
        before = due_ms[i]
        with_it = spare[:-1] - prompt_ms[i]
        better = (with_it >= 0.0) & (with_it > spare[1:])
        spare[1:][better] = with_it[better]
        taken[i, 1:] = better
    chosen = np.zeros(count, dtype=bool)
    n = int(np.flatnonzero(spare >= 0.0)[-1])
    for i in range(count - 1, -1, -1):
        if taken[i, n]:
            chosen[i] = True
            n -= 1
    return chosen


def _prefill_due_ms(view: BatchView, v_ms: float) -> FloatArray:
    """[N] Instant by which the prompt must be in; infinite for best effort."""
    due = np.minimum(
        view.arrival_ms + view.ttft_ms + view.e2e_ms, view.call_due_ms
    )  # one of the budgets is 0
    due -= view.upper_left() * v_ms * (view.e2e_ms > 0)
    due[view.slo_class == SloClass.BEST_EFFORT.value] = np.inf
    return np.asarray(due)


def _kv_slots(view: BatchView, timed: IntArray) -> int:
    """Requests like those of `timed` for which KV is free."""
    if not len(timed):
        return 0
    need = float((view.prompt_tokens[timed] + view.upper_left()[timed]).mean())
    return max(0, int((view.capacity.kv_tokens - int(view.kv_tokens.sum())) / max(need, 1.0)))
