"""Who should be in the engine, who should leave it, and with how much: functions of the order and of what is there."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from paceline_executor.contract import Sampling
from paceline_executor.frames.attempt import Attempt, LegState

_GOLDEN = 0x9E3779B97F4A7C15
_SEED_MASK = 0x7FFFFFFFFFFFFFFF


def first_runnable(order: Sequence[Attempt], room: int) -> list[Attempt]:
    """The first `room` attempts of the order that may make a token."""
    chosen: list[Attempt] = []
    for attempt in order:
        if len(chosen) == room:
            break
        if attempt.runnable():
            chosen.append(attempt)
    return chosen


def leaving(legs: Mapping[int, LegState], wanted: Collection[int]) -> list[LegState]:
    """Legs of attempts that are not among the wanted keys, and were not asked to end yet."""
    return [
        state
        for state in legs.values()
        if state.aborted_s is None and state.attempt.key not in wanted and not state.attempt.finished
    ]


def displaced(
    order: Sequence[Attempt], wanted: Sequence[Attempt], legs: Mapping[int, LegState], max_resident: int
) -> list[LegState]:
    """Legs that have to go for wanted attempts to find a place: the last of the order, and only behind those."""
    entering = [attempt for attempt in wanted if attempt.key not in legs]
    lacking = len(legs) + len(entering) - max_resident
    if lacking <= 0:
        return []
    rank = {attempt.key: place for place, attempt in enumerate(order)}
    behind = len(rank)
    movable = [state for state in legs.values() if state.aborted_s is None and not state.attempt.pinned]
    lacking -= sum(state.aborted_s is not None for state in legs.values())
    movable.sort(key=lambda state: rank.get(state.attempt.key, behind), reverse=True)
    return [
        state
        for state, attempt in zip(movable[: max(lacking, 0)], reversed(entering), strict=False)
        if rank.get(state.attempt.key, behind) > rank[attempt.key]
    ]


@dataclass(frozen=True)
class Reserve:
    """What a leg asks for, and so what the engine reserves memory for. All in tokens."""

    unknown: int
    """Without a bound, and past it."""
    longest: int
    """At most, whatever the bound."""
    block: int
    """KV comes in blocks of this many: a bound that is nearer saves nothing, and costs resumes."""
    by_credit: bool
    """The credit bounds the request itself, so that nothing overshoots."""

    def tokens(self, attempt: Attempt) -> int:
        """Up to the bound of its expected length, so that most answers end within one leg; then piece by piece."""
        remaining = attempt.max_outputs - attempt.count
        if attempt.pinned:
            return remaining
        expected = attempt.spec.output_bound_tokens - attempt.count
        remaining = min(remaining, max(expected, self.block) if expected > 0 else self.unknown, self.longest)
        if attempt.token_limit and self.by_credit:
            remaining = min(remaining, attempt.token_limit - attempt.count)
        return remaining


def ends_early(attempt: Attempt, tokens: int) -> bool:
    """True if a leg of so many tokens is likely to be over before the answer is: its KV is worth keeping."""
    end = attempt.max_outputs
    if attempt.spec.output_bound_tokens > attempt.count:
        end = min(end, attempt.spec.output_bound_tokens)
    return attempt.count + tokens < end


def sampling_of_leg(attempt: Attempt) -> Sampling:
    """The attempt's sampling; a leg that is not the first draws from a seed of its own, or it would repeat itself."""
    sampling = attempt.spec.sampling
    if attempt.count == 0 or sampling.temperature == 0:
        return sampling
    return replace(sampling, seed=(sampling.seed * _GOLDEN + attempt.count) & _SEED_MASK)
