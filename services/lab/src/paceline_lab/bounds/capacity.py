"""What an engine can do in a stretch of time, as linear inequalities that hold for every schedule.

In a stretch of T ms an engine makes S steps that decode D tokens over contexts that sum to C, and prefill N tokens. A
step that begins before the stretch counts by its share, so these are real numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from paceline_core.engines.profile import Profile
from paceline_core.engines.roofline import step_times


@dataclass(frozen=True, slots=True)
class EngineGroup:
    """Engines that are alike."""

    profile: Profile
    count: int
    max_batch: int
    prefill_chunk_tokens: int
    """The most prompt tokens of one sequence in one step."""


@dataclass(frozen=True, slots=True)
class TimeLine:
    """steps*S + decode*D + prefill*N + context*C <= T."""

    step_ms: float
    decode_ms: float
    prefill_ms: float
    context_ms: float


@dataclass(frozen=True, slots=True)
class GroupCapacity:
    """Inequalities of one engine of a group, and how fast one sequence alone can go at best."""

    count: int
    lines: tuple[TimeLine, ...]
    max_batch: int
    slots_per_prefill_token: float
    """Share of a batch slot for one step that a prompt token takes: D + slots * N <= max_batch * S."""
    least_step_ms: float
    """No step that decodes is shorter."""
    token_prefill_ms: float
    """No prompt token takes less."""
    product_ms: float
    """One prompt token's attention to one other."""

    @property
    def product_share(self) -> float:
        """A pair of prompt tokens as a share of a token of context, in the line where contexts cost most."""
        context_ms = max(line.context_ms for line in self.lines)
        return self.product_ms / context_ms if context_ms > 0 else 0.0


def capacity_of(group: EngineGroup) -> GroupCapacity:
    """A roofline step is at least as long as its memory line and as its compute line, so sums of steps are too.

    Left out, which only raises the bound: the KV that prefill reads, the price of a changed run set, and the size of
    the KV memory. A linear profile's decode call of B >= 2 costs
    a + b*B and of one a1: the line through one and `max_batch`, or below every B, bounds all of them.
    """
    profile, times = group.profile, step_times(group.profile)
    chunk = max(1, group.prefill_chunk_tokens)
    if times.linear is not None:
        single = profile.a1_ms if profile.a1_ms > 0 else profile.a_ms + profile.b_ms
        slopes = [
            (profile.a_ms + profile.b_ms * batch - single) / (batch - 1)
            for batch in range(2, group.max_batch + 1)
        ]
        slope = max(0.0, min([*slopes, single]))
        prefill_ms = profile.d_ms + profile.p0_ms / chunk
        line = TimeLine(single - slope, slope, prefill_ms, profile.c_ms)
        return GroupCapacity(group.count, (line,), group.max_batch, 0.0, single, prefill_ms, profile.e_ms)
    context_ms = times.attention_ms
    memory = TimeLine(times.base_ms + times.weights_ms, 0.0, 0.0, times.kv_ms + context_ms)
    compute = TimeLine(times.base_ms, times.token_ms, times.token_ms, context_ms)
    whole_step = times.base_ms + max(times.weights_ms, times.token_ms)
    # A prompt takes a step for each chunk, or its compute, whichever is longer.
    token_prefill_ms = max(times.token_ms, (times.base_ms + times.weights_ms) / chunk)
    return GroupCapacity(
        group.count,
        (memory, compute),
        group.max_batch,
        1.0 / chunk,
        whole_step,
        token_prefill_ms,
        times.attention_ms,
    )


def grouped(
    engines: Sequence[tuple[Profile, int, int]],
) -> tuple[EngineGroup, ...]:
    """Engines given as (profile, max_batch, prefill_chunk_tokens), with those alike put together."""
    counts: dict[tuple[Profile, int, int], int] = {}
    for engine in engines:
        counts[engine] = counts.get(engine, 0) + 1
    return tuple(EngineGroup(p, count, batch, chunk) for (p, batch, chunk), count in counts.items())
