"""How attempts end: told to the owner once, kept until released, forgotten at last."""

import heapq

from paceline.common.v1 import attempt_pb2
from paceline_runtime.errors import Reason
from paceline_runtime.telemetry import names
from paceline_scheduler.attempt import Attempt
from paceline_scheduler.state import SchedulerState
from paceline_scheduler.wire import completed, end_state

_CANCELLED = attempt_pb2.FINISH_REASON_CANCELLED
_WAITS_KEPT = 1024
"""Waits that may outlast their attempts before they are swept."""


class Ends:
    """Ends, cancels, releases and expires attempts of the table."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state
        self._ended_ms: dict[int, float] = {}
        self._waits: list[tuple[float, int]] = []

    def finish(self, attempt: Attempt, ended: attempt_pb2.AttemptEnded) -> None:
        """The attempt is over. Its owner hears of it behind the tokens; a repeated end is told again as it was."""
        state = self._state
        session = state.sessions.get(attempt.router_id)
        if attempt.ended is not None:
            if attempt.lost:
                state.outbox.release(attempt.key)
            elif session is not None:
                session.ended(attempt.ended)
            state.mark_output()
            return
        if ended.finish_reason == _CANCELLED and attempt.end_as is not None:
            told = attempt_pb2.AttemptEnded()
            told.CopyFrom(attempt.end_as)
            told.output_tokens, told.prompt_tokens = ended.output_tokens, ended.prompt_tokens
            ended = told
        elif ended.finish_reason == _CANCELLED and not attempt.cancelling and attempt.sent:
            # The engine shuts down in good order. Nobody up there asked for it: the request goes on elsewhere.
            ended = _given_up(ended)
        now = state.now_ms()
        reason = ended.finish_reason
        attempt.ended = ended
        attempt.held_end = None
        elsewhere = reason in (_CANCELLED, attempt_pb2.FINISH_REASON_MOVED) or ended.failure.retryable
        outcome = state.tracker.end(attempt.row, now, completed=completed(reason), counted=not elsewhere)
        name = attempt_pb2.FinishReason.Name(reason).removeprefix("FINISH_REASON_").lower()
        detail = f"{name} {ended.failure.reason}".strip() + (", attained" if outcome.attained else "")
        attempt.note(now - state.table.arrival_ms[attempt.row], "ended", detail)
        state.spans.end(
            attempt.key,
            {names.GEN_AI_FINISH_REASONS: [name], names.GEN_AI_OUTPUT_TOKENS: ended.output_tokens},
            error=ended.failure.message,
        )
        if not state.table.prompt_tokens[attempt.row] and ended.prompt_tokens:
            state.table.prompt_tokens[attempt.row] = ended.prompt_tokens
        state.table.end(attempt, end_state(reason))
        self._ended_ms[attempt.key] = now
        if session is not None:
            session.ended(ended)
        if attempt.orphan:
            self.release(attempt.key)
        self._bound(now)
        state.mark_dirty()

    def finish_here(
        self,
        attempt: Attempt,
        reason: attempt_pb2.FinishReason.ValueType,
        *,
        failure: attempt_pb2.Failure | None = None,
        in_flight: bool = False,
    ) -> None:
        """End an attempt that the engine need not, or cannot, confirm."""
        table = self._state.table
        ended = attempt_pb2.AttemptEnded(
            attempt_key=attempt.key,
            finish_reason=reason,
            failure=failure,
            output_tokens=int(table.generated[attempt.row]),
            prompt_tokens=int(table.prompt_tokens[attempt.row]) if attempt.accepted else 0,
            in_flight=in_flight,
        )
        self.finish(attempt, ended)

    def cancel(self, attempt: Attempt, end_as: attempt_pb2.AttemptEnded | None = None) -> None:
        """Ask the engine to end it; `end_as` is what the owner is told then. An end that came first stands."""
        if attempt.ended is not None:
            self.finish(attempt, attempt.ended)
            return
        attempt.end_as = attempt.end_as or end_as
        if not attempt.sent:
            self.finish_here(attempt, _CANCELLED)
            return
        if not attempt.cancelling:
            attempt.cancelling = True
            now = self._state.now_ms()
            attempt.note(now - self._state.table.arrival_ms[attempt.row], "cancel")
            self._state.outbox.cancel(attempt.key)
            self._state.mark_dirty()

    def release(self, key: int) -> None:
        """Forget an ended attempt, here and in the engine. One that is alive stays, and is counted."""
        state = self._state
        attempt = state.table.get(key)
        if attempt is None:
            return
        if attempt.ended is None:
            state.counts["released_alive"] += 1
            return
        state.table.remove(key)
        self._ended_ms.pop(key, None)
        if attempt.sent and state.engine.attached:
            state.outbox.release(key)
            state.mark_output()

    def expect_start(self, attempt: Attempt, latest_ms: float) -> None:
        """The attempt expires unless it has run by `latest_ms`."""
        heapq.heappush(self._waits, (latest_ms, attempt.key))
        if len(self._waits) > _WAITS_KEPT + 2 * self._state.table.live:
            self._waits = [wait for wait in self._waits if self._waiting(wait[1]) is not None]
            heapq.heapify(self._waits)

    def expire(self, now_ms: float) -> None:
        """End what waited too long for its first run, and forget ended attempts that nobody came for."""
        while self._waits and self._waits[0][0] <= now_ms:
            _, key = heapq.heappop(self._waits)
            attempt = self._waiting(key)
            if attempt is not None:
                message = "the longest wait before the first run is over"
                failure = attempt_pb2.Failure(
                    reason=Reason.QUEUE_TTL_EXPIRED, message=message, retryable=True
                )
                self.give_up(attempt, failure)
        self._bound(now_ms)

    def give_up(self, attempt: Attempt, failure: attempt_pb2.Failure) -> bool:
        """End an attempt as EXPIRED, in the engine too. False when it is being ended already: who was first stands."""
        if attempt.cancelling or attempt.ended is not None:
            return False
        end_as = attempt_pb2.AttemptEnded(
            attempt_key=attempt.key, finish_reason=attempt_pb2.FINISH_REASON_EXPIRED, failure=failure
        )
        if attempt.sent:
            self.cancel(attempt, end_as)
        else:
            self.finish(attempt, end_as)
        return True

    def _waiting(self, key: int) -> Attempt | None:
        """The attempt if it lives and has not run yet."""
        attempt = self._state.table.get(key)
        if attempt is None or attempt.ended is not None or self._state.table.started[attempt.row]:
            return None
        return attempt

    def _bound(self, now_ms: float) -> None:
        """Forget the oldest ended attempts past the bound or their time."""
        config = self._state.config
        oldest_ms = now_ms - config.ended_ttl_s * 1000
        while self._ended_ms:
            key, ended_ms = next(iter(self._ended_ms.items()))
            if ended_ms > oldest_ms and len(self._ended_ms) <= config.max_ended:
                return
            self._state.counts["ended_forgotten"] += 1
            self._ended_ms.pop(key)
            self.release(key)


def _given_up(ended: attempt_pb2.AttemptEnded) -> attempt_pb2.AttemptEnded:
    failure = attempt_pb2.Failure(
        reason=Reason.ENGINE_LOST, message="the engine gave the attempt up to shut down", retryable=True
    )
    return attempt_pb2.AttemptEnded(
        attempt_key=ended.attempt_key,
        finish_reason=attempt_pb2.FINISH_REASON_FAILED,
        failure=failure,
        output_tokens=ended.output_tokens,
        prompt_tokens=ended.prompt_tokens,
    )
