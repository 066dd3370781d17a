"""What routers ask for, carried out on the table."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from paceline.common.v1 import attempt_pb2, estimate_pb2
from paceline.executor.v1 import executor_pb2
from paceline.scheduler.v1 import scheduler_pb2
from paceline_core.batch.policy import EstimateUse
from paceline_core.slo import SloClass
from paceline_runtime.errors import Reason
from paceline_runtime.telemetry import names
from paceline_scheduler.attempt import Attempt
from paceline_scheduler.ends import Ends
from paceline_scheduler.session import RouterSession
from paceline_scheduler.state import SchedulerState
from paceline_scheduler.wire import (
    PRIOR_CDF,
    cdf_from,
    output_bound_tokens,
    prompt_tokens_guess,
    rest_tokens_from,
    slo_from,
)


class Intake:
    """Carries out the commands of routers."""

    def __init__(self, state: SchedulerState, ends: Ends, estimates: EstimateUse) -> None:
        """`estimates`: which ones the policy is given."""
        self._state = state
        self._ends = ends
        self._estimates = estimates

    def commands(self, session: RouterSession, commands: scheduler_pb2.Commands) -> None:
        """One batch, in the order of its fields. Keys that are unknown or another router's are skipped and counted."""
        for submit in commands.submits:
            self._submit(session, submit)
        for key in commands.cancels:
            self._cancel(session, key)
        for credit in commands.credits:
            self._credit(session, credit)
        for republish in commands.republishes:
            if self._owned(session, republish.attempt_key) is not None:
                self._state.outbox.republish(republish.attempt_key, republish.from_index)
        for key in commands.releases:
            if self._owned(session, key) is not None:
                self._ends.release(key)
        for reestimate in commands.reestimates:
            self._reestimate(session, reestimate)
        for key in commands.move_outs:
            self._move_out(session, key)
        for forced in commands.forced:
            attempt = self._alive(session, forced.attempt_key)
            if attempt is not None:
                attempt.force(forced)
                self._state.outbox.forced(forced)
        for key in commands.moved:
            attempt = self._owned(session, key)
            if attempt is not None:
                self._ends.cancel(attempt, _moved(key))
        self._state.mark_output()

    def row(
        self,
        submit: scheduler_pb2.Submit,
        spec: attempt_pb2.AttemptSpec,
        router_id: str,
        arrival_ms: float,
        arrived_unix_ms: int,
    ) -> Attempt:
        """A new row from what a router said of the request."""
        state = self._state
        table = state.table
        slo = slo_from(submit.slo)
        attempt = Attempt(
            key=spec.attempt_key,
            request_id=spec.request_id,
            router_id=router_id,
            tenant=submit.tenant,
            slo=slo,
            arrived_unix_ms=arrived_unix_ms,
            router_context=submit.context,
            add=None,
        )
        row = table.add(attempt, self._cdf(submit.estimate), max(1, spec.max_tokens))
        state.tenants.joined(attempt)
        if slo.slo_class is SloClass.TASK:
            self._task(row, submit, arrival_ms + submit.elapsed_ms)
            if np.isfinite(table.task_due_ms[row]):
                # The task's budget runs from its first call; what counts here is what was left of it.
                slo = replace(slo, e2e_ms=float(table.task_due_ms[row] - arrival_ms))
        spec.traceparent = state.spans.begin(
            spec.attempt_key,
            spec.traceparent,
            {names.ATTR_REQUEST_ID: spec.request_id, names.ATTR_SLO_CLASS: slo.slo_class.name.lower()},
        )
        state.tracker.grow(table.rows)
        state.tracker.begin(row, slo, arrival_ms)
        table.arrival_ms[row] = arrival_ms
        table.prompt_tokens[row] = prompt_tokens_guess(spec)
        table.generated[row] = len(spec.forced_ids) // 4
        if spec.await_more_forced:
            attempt.lands_at_tokens = max(1, len(spec.forced_ids) // 4)
        table.token_limit[row] = submit.token_limit
        table.isolate_until[row] = submit.isolate_until_index
        table.priority[row] = int(np.clip(submit.priority, -(2**31) + 1, 2**31 - 1))
        if submit.max_wait_ms > 0:
            self._ends.expect_start(attempt, arrival_ms + submit.elapsed_ms + submit.max_wait_ms)
        return attempt

    def _submit(self, session: RouterSession, submit: scheduler_pb2.Submit) -> None:
        state = self._state
        key = submit.spec.attempt_key
        known = state.table.get(key)
        if known is not None:
            # A router that was not sure whether its submit arrived: tell it again what it missed.
            state.counts["submitted_again"] += 1
            if known.router_id == session.router_id:
                if known.accepted:
                    session.accepted(self.acceptance(known))
                if known.ended is not None:
                    session.ended(known.ended)
            return
        refusal = self._refusal(submit)
        if refusal is not None:
            session.ended(refusal)
            return
        now = state.now_ms()
        elapsed = max(0.0, submit.elapsed_ms)
        attempt = self.row(
            submit, submit.spec, session.router_id, now - elapsed, int(state.unix_ms() - elapsed)
        )
        context = scheduler_pb2.AttemptContext(
            submit=submit, router_id=session.router_id, arrived_unix_ms=attempt.arrived_unix_ms
        )
        context.submit.ClearField("spec")
        attempt.add = executor_pb2.AddAttempt(
            spec=submit.spec,
            context=context.SerializeToString(),
            output_bound_tokens=output_bound_tokens(submit),
        )
        attempt.note(elapsed, "queued", f"{submit.estimate.source or 'no'} estimate")
        if state.engine.attached:
            state.outbox.add(attempt.add)
            attempt.sent = True
        state.mark_dirty()

    def _refusal(self, submit: scheduler_pb2.Submit) -> attempt_pb2.AttemptEnded | None:
        state = self._state
        key = submit.spec.attempt_key
        if state.engine.lost:
            # Not a rejection: the request is fine, and another engine may take it at once.
            return _refused(key, attempt_pb2.FINISH_REASON_FAILED, Reason.ENGINE_LOST, "the engine is down")
        rejected = attempt_pb2.FINISH_REASON_REJECTED
        if state.draining:
            return _refused(key, rejected, Reason.DRAINING, "this engine takes no new requests")
        if state.table.live >= state.config.max_live:
            return _refused(key, rejected, Reason.QUEUE_FULL, "too many requests on this engine")
        return None

    def acceptance(self, attempt: Attempt) -> attempt_pb2.AttemptAccepted:
        """What an accepted attempt was accepted with."""
        return attempt_pb2.AttemptAccepted(
            attempt_key=attempt.key,
            prompt_ids=attempt.prompt_ids,
            cached_tokens=int(self._state.table.cached_tokens[attempt.row]),
        )

    def _cancel(self, session: RouterSession, key: int) -> None:
        attempt = self._state.table.get(key)
        if attempt is None:
            # Never came, or is forgotten: either way it does not run here, and the router waits for a word.
            session.ended(
                attempt_pb2.AttemptEnded(attempt_key=key, finish_reason=attempt_pb2.FINISH_REASON_CANCELLED)
            )
        elif attempt.router_id == session.router_id:
            self._ends.cancel(attempt)
        else:
            self._state.counts["not_the_owner"] += 1

    def _credit(self, session: RouterSession, credit: attempt_pb2.Credit) -> None:
        attempt = self._alive(session, credit.attempt_key)
        if attempt is None:
            return
        limit = self._state.table.token_limit
        # 0 takes the bound away; else it only grows, so that a credit that was overtaken does no harm.
        if credit.token_limit == 0 or 0 < limit[attempt.row] < credit.token_limit:
            limit[attempt.row] = credit.token_limit
            self._state.mark_dirty()

    def _reestimate(self, session: RouterSession, reestimate: scheduler_pb2.Reestimate) -> None:
        attempt = self._alive(session, reestimate.attempt_key)
        if attempt is None:
            return
        if reestimate.estimate.probabilities and self._estimates is EstimateUse.PREDICTED:
            self._state.table.estimate(attempt.row, cdf_from(reestimate.estimate))
        if attempt.slo.slo_class is SloClass.TASK:
            self._task(attempt.row, reestimate, self._state.now_ms())
        self._state.mark_dirty()

    def _cdf(self, estimate: estimate_pb2.LengthEstimate) -> NDArray[np.float64]:
        """[K] What the policy is to think of the length of an answer."""
        known = estimate.probabilities and self._estimates is EstimateUse.PREDICTED
        return cdf_from(estimate) if known else PRIOR_CDF

    def _task(self, row: int, said: scheduler_pb2.Submit | scheduler_pb2.Reestimate, since_ms: float) -> None:
        """What was said, at the instant `since_ms`, of the task of a call."""
        table = self._state.table
        if said.task_call_budget_ms > 0:
            table.call_due_ms[row] = since_ms + said.task_call_budget_ms
        if said.task_left_ms:
            table.task_due_ms[row] = since_ms + said.task_left_ms
        if said.HasField("task_forecast"):
            table.task_rest_tokens[row] = rest_tokens_from(said.task_forecast)

    def _move_out(self, session: RouterSession, key: int) -> None:
        if self._alive(session, key) is not None and self._state.engine.attached:
            self._state.outbox.ticket(key)
            return
        failure = attempt_pb2.Failure(reason=Reason.NOT_FOUND, message="the attempt does not live here")
        session.ticket(scheduler_pb2.MoveTicket(attempt_key=key, failure=failure))

    def _owned(self, session: RouterSession, key: int) -> Attempt | None:
        attempt = self._state.table.get(key)
        if attempt is None or attempt.router_id != session.router_id:
            self._state.counts["unknown_key" if attempt is None else "not_the_owner"] += 1
            return None
        return attempt

    def _alive(self, session: RouterSession, key: int) -> Attempt | None:
        attempt = self._owned(session, key)
        return None if attempt is None or attempt.ended is not None else attempt


def _moved(key: int) -> attempt_pb2.AttemptEnded:
    return attempt_pb2.AttemptEnded(attempt_key=key, finish_reason=attempt_pb2.FINISH_REASON_MOVED)


def _refused(
    key: int, finish: attempt_pb2.FinishReason.ValueType, reason: Reason, message: str
) -> attempt_pb2.AttemptEnded:
    failure = attempt_pb2.Failure(reason=reason, message=message, retryable=True)
    return attempt_pb2.AttemptEnded(attempt_key=key, finish_reason=finish, failure=failure)
