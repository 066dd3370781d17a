"""One attempt inside a simulated engine. As in any engine, work is known ids whose KV is not there yet."""

from paceline_executor.contract import AttemptEnded, AttemptSpec, AttemptState, EndReason, Ids, ReplayMode
from paceline_executor.simulated.answer import Answer, Script, force, new_answer


class Attempt:
    """Mutable state of one attempt, changed under the engine's lock."""

    __slots__ = (
        "answer", "awaiting", "ended", "ended_at_s", "imported_tokens", "key", "kv_tokens", "poisoned",
        "prefill_target", "prompt_ids", "prompt_tokens", "published", "resident", "spec", "state", "token_limit",
    )  # fmt: skip

    def __init__(self, spec: AttemptSpec, prompt_ids: Ids, script: Script, *, poisoned: bool) -> None:
        self.spec = spec
        self.key = spec.attempt_key
        self.prompt_ids = prompt_ids
        self.prompt_tokens = len(prompt_ids)
        self.answer: Answer = new_answer(script)
        if len(spec.forced_ids):
            self.answer = force(self.answer, spec.forced_ids)
        self.published = self.answer.count
        """Output index from which on tokens go out."""
        self.awaiting = spec.await_more_forced
        self.poisoned = poisoned
        self.token_limit = 0
        self.state = AttemptState.QUEUED
        self.resident = False
        self.kv_tokens = 0
        self.imported_tokens = 0
        self.prefill_target = self.prompt_tokens + (self.published if spec.replay is ReplayMode.FAST else 0)
        """Positions computed by prefill; those after it by decode steps."""
        self.ended: AttemptEnded | None = None
        self.ended_at_s = 0.0

    @property
    def known_tokens(self) -> int:
        """Prompt and output ids known so far."""
        return self.prompt_tokens + self.answer.count

    @property
    def prefilling(self) -> bool:
        """True while the next unit of work is a prefill call."""
        return self.kv_tokens < self.prefill_target

    @property
    def has_credit(self) -> bool:
        """True if a further token may be made."""
        return not self.awaiting and (self.token_limit == 0 or self.answer.count < self.token_limit)

    def runnable(self, chunk_tokens: int) -> bool:
        """True if work is due and allowed: what would make a new token needs credit and no awaited ids."""
        if self.ended is not None:
            return False
        if self.prefilling:
            next_end = min((self.kv_tokens // chunk_tokens + 1) * chunk_tokens, self.prefill_target)
        else:
            next_end = self.kv_tokens + 1
        return next_end < self.known_tokens or self.has_credit

    def prefill_end(self, budget_tokens: int, chunk_tokens: int) -> int:
        """Position up to which one prefill call may go: whole chunks within the budget, one at least."""
        target = self.prefill_target
        if target == self.known_tokens and not self.has_credit:
            target = (target - 1) // chunk_tokens * chunk_tokens
        end = self.kv_tokens + max(budget_tokens, 1)
        if end >= target:
            return target
        return min(max(end // chunk_tokens, self.kv_tokens // chunk_tokens + 1) * chunk_tokens, target)

    def drop_kv(self) -> None:
        """Evict: the ids stay. One prefill computes all known positions again; the answer stays."""
        self.resident = False
        self.kv_tokens = 0
        self.prefill_target = self.known_tokens
        self.state = AttemptState.EVICTED

    def end(
        self,
        reason: EndReason,
        now_s: float,
        *,
        error_reason: str = "",
        message: str = "",
        retryable: bool = False,
    ) -> AttemptEnded:
        """Close the attempt; from here on it is a tombstone."""
        self.ended = AttemptEnded(
            attempt_key=self.key,
            reason=reason,
            output_tokens=self.answer.count,
            prompt_tokens=self.prompt_tokens,
            error_reason=error_reason,
            message=message,
            retryable=retryable,
            stop_string=self.answer.stop_string,
        )
        self.ended_at_s = now_s
        self.state = AttemptState.ENDED
        self.resident = False
        self.kv_tokens = 0
        return self.ended
