"""What happens to a request whose attempt was lost: pure."""

from dataclasses import dataclass

from paceline_runtime.errors import Reason


@dataclass(frozen=True, slots=True)
class Loss:
    """A lost attempt. `in_flight`: the engine was working on it when it went. `next_index`: output tokens
    safe here."""

    in_flight: bool
    next_index: int
    attempts: int
    crashes: int
    isolate_until: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """Replay, or the reason to fail. A suspect's next attempt runs alone until `isolate_until`; 0: no
    suspect."""

    replay: bool
    crashes: int
    isolate_until: int = 0
    reason: Reason = Reason.ENGINE_LOST
    message: str = ""
    retryable: bool = False


def judge(loss: Loss, *, max_attempts: int, isolate_tokens: int) -> Verdict:
    """Suspects run apart, a second crash ends them, attempts are bounded (docs/contract.md, Losses).

    Who got past the point of the first crash alone is cleared of it: else two poisoned requests, one after
    the other, would take everybody with them.
    """
    cleared = 0 < loss.isolate_until <= loss.next_index
    crashes = (0 if cleared else loss.crashes) + loss.in_flight
    if crashes >= 2:
        message = "its engine crashed while working on it, twice; it is not tried again"
        return Verdict(False, crashes, reason=Reason.ENGINE_LOST, message=message)
    if loss.attempts >= max_attempts:
        message = f"its engine was lost, and {loss.attempts} attempts were made, which is the limit"
        return Verdict(
            False, crashes, reason=Reason.ATTEMPTS_EXHAUSTED, message=message, retryable=crashes == 0
        )
    until = loss.next_index + isolate_tokens if loss.in_flight else loss.isolate_until
    return Verdict(True, crashes, until if until > loss.next_index else 0)
