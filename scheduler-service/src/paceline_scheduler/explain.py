"""Answers to "what is here, and why": the plan, the table, one request."""

import numpy as np

from paceline.common.v1 import attempt_pb2
from paceline.scheduler.v1 import scheduler_pb2
from paceline_core import lengths
from paceline_core.batch.laxity import attainable_ms, laxity_ms, p_meet, step_now_ms
from paceline_core.batch.plan import PlanReason
from paceline_core.batch.view import BatchView, FloatArray, IntArray
from paceline_runtime.errors import PacelineError, Reason
from paceline_scheduler.attempt import Attempt
from paceline_scheduler.metrics import PREEMPTED, RESUMED, counted
from paceline_scheduler.planner import Planner
from paceline_scheduler.shedding import SHED_PREFIX
from paceline_scheduler.state import SchedulerState
from paceline_scheduler.wire import finite, slo_to


class Explainer:
    """Reads table and plan; changes nothing."""

    def __init__(self, state: SchedulerState, planner: Planner) -> None:
        self._state = state
        self._planner = planner

    def plan(self) -> scheduler_pb2.GetPlanResponse:
        """The plan in force."""
        record = self._planner.record
        response = scheduler_pb2.GetPlanResponse(
            plan_id=record.plan.plan_id,
            policy=self._planner.policy_name,
            max_batch=record.plan.max_batch,
            prefill_budget_tokens=record.plan.prefill_budget_tokens,
            valid_for_steps=record.plan.valid_for_steps,
            plan_ms=record.plan_ms,
            shed=counted(self._state.counts, SHED_PREFIX),
            preempted=counted(self._state.counts, PREEMPTED),
            resumed=counted(self._state.counts, RESUMED),
        )
        for key, score, reason in zip(
            record.plan.attempt_keys, record.scores(), record.reasons(), strict=True
        ):
            response.entries.add(
                attempt_key=key, request_id=self._request_id(key), score=finite(score), reason=reason.value
            )
        for key in record.plan.evict:
            response.entries.add(attempt_key=key, request_id=self._request_id(key), evict=True)
        return response

    def requests(self, limit: int) -> scheduler_pb2.ListRequestsResponse:
        """The oldest `limit` rows, ended and unreleased ones included."""
        attempts = list(self._state.table)
        response = scheduler_pb2.ListRequestsResponse(total=len(attempts))
        arrivals = self._state.table.arrival_ms
        attempts.sort(key=lambda a: float(arrivals[a.row]))
        attempts = attempts[:limit]
        rows = np.fromiter((a.row for a in attempts), dtype=np.int64, count=len(attempts))
        remaining, laxity = self._numbers(rows)
        for i, attempt in enumerate(attempts):
            response.requests.append(self._row(attempt, float(remaining[i]), float(laxity[i])))
        return response

    def explain(self, request_id: str) -> scheduler_pb2.ExplainRequestResponse:
        """The newest attempt of a request. Raises PacelineError (NOT_FOUND)."""
        attempt = next((a for a in reversed(list(self._state.table)) if a.request_id == request_id), None)
        if attempt is None:
            raise PacelineError(Reason.NOT_FOUND, f"request {request_id!r} is not on this engine")
        state = self._state
        rows = np.asarray([attempt.row])
        state.tenants.tell(rows)  # accounts move on between plans
        remaining, laxity = self._numbers(rows)
        record = self._planner.record
        keys = list(record.plan.attempt_keys)
        position = keys.index(attempt.key) if attempt.key in keys else -1
        response = scheduler_pb2.ExplainRequestResponse(
            request=self._row(attempt, float(remaining[0]), float(laxity[0])),
            policy=self._planner.policy_name,
            position=position,
            score=finite(record.scores()[position]) if position >= 0 else 0.0,
            reason=record.reasons()[position].value if position >= 0 else self._why_not(attempt),
        )
        view = state.table.view(state.engine.capacity, state.fitter.model, rows)
        now = state.now_ms()
        generated, most = view.generated.astype(np.float64), view.max_tokens.astype(np.float64)
        cdf = view.length_cdf()
        everything = state.table.view(state.engine.capacity, state.fitter.model)
        for name, value in (
            ("length_p50", float(lengths.quantile(cdf, 0.5, generated, most)[0])),
            ("length_p90", float(lengths.quantile(cdf, 0.9, generated, most)[0])),
            ("length_mean", float((generated + remaining)[0])),
            ("step_ms", step_now_ms(everything)),
            ("p_meet", float(p_meet(view, now)[0][0])),
            ("attainable_ms", float(attainable_ms(everything, now)[everything.row_id == attempt.row].sum())),
            ("tenant_lag_tokens", float(view.tenant_lag_tokens[0])),
            *self._of_task(view, now),
        ):
            response.estimates[name] = finite(value)
        for at_ms, event, detail in attempt.timeline:
            response.timeline.add(at_ms=at_ms, event=event, detail=detail)
        return response

    def _of_task(self, view: BatchView, now_ms: float) -> list[tuple[str, float]]:
        """What is known of the task of a call, a view of one row."""
        if view.task[0] < 0:
            return []
        return [
            ("task_left_ms", float(view.task_due_ms[0]) - now_ms),
            ("task_call_left_ms", float(view.call_due_ms[0]) - now_ms),
            ("task_rest_tokens", float(view.task_rest_tokens[0])),
        ]

    def _why_not(self, attempt: Attempt) -> str:
        table = self._state.table
        row = attempt.row
        if attempt.ended is not None:
            return "ended"
        if 0 < table.token_limit[row] <= table.generated[row]:
            return PlanReason.CREDIT.value
        if self._planner.isolating:
            return PlanReason.BEHIND_ISOLATED.value
        cut = self._planner.record.cut(attempt.row)
        return (PlanReason.NO_KV_ROOM if cut else PlanReason.BEYOND_LIST).value

    def _numbers(self, rows: IntArray) -> tuple[FloatArray, FloatArray]:
        """[R] Remaining mean tokens and [R] laxity of rows."""
        state = self._state
        view = state.table.view(state.engine.capacity, state.fitter.model, rows)
        remaining = np.where(state.table.alive[rows], state.table.remaining_mean(rows), 0.0)
        return remaining, laxity_ms(view, state.now_ms(), remaining)

    def _row(self, attempt: Attempt, remaining: float, laxity: float) -> scheduler_pb2.LiveRequest:
        table = self._state.table
        row = attempt.row
        return scheduler_pb2.LiveRequest(
            attempt_key=attempt.key,
            request_id=attempt.request_id,
            router_id=attempt.router_id,
            tenant=attempt.tenant,
            state=attempt_pb2.RequestState.ValueType(int(table.state[row])),
            slo=slo_to(attempt.slo),
            age_ms=self._state.now_ms() - float(table.arrival_ms[row]),
            prompt_tokens=int(table.prompt_tokens[row]),
            kv_tokens=int(table.kv_tokens[row]),
            output_tokens=int(table.generated[row]),
            remaining_mean_tokens=remaining,
            laxity_ms=finite(laxity),
        )

    def _request_id(self, key: int) -> str:
        attempt = self._state.table.get(key)
        return "" if attempt is None else attempt.request_id
