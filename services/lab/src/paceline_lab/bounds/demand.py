"""What each job of a trace asks for, and between which times any of it can count."""

from dataclasses import dataclass

import numpy as np

from paceline_core.slo import SloClass
from paceline_lab.workloads.trace import Job


@dataclass(frozen=True, slots=True)
class Demand:
    """One job that some schedule could meet, at least in part."""

    begin_ms: float
    end_ms: float
    """Work outside of [begin, end] brings nothing."""
    prefill_tokens: float
    """Least prompt tokens that must be computed before anything counts."""
    decode_tokens: float
    """Output tokens, but for the first of each call, which comes of the prefill."""
    context_tokens: float
    """Least context of a decoded token."""
    excess_tokens: float
    """What the contexts of all decoded tokens sum to beyond that."""
    products: float
    """Pairs of prompt tokens that attend to each other, n * (context before + n/2) summed."""
    parallel: float
    """The most calls at once."""
    prompt_tokens: int
    """What counts for the prompt."""
    output_tokens: int
    """What counts for the output at most."""
    first_ms: float
    """Latency class: the prompt counts when the first token is out by then; 0 for the other classes."""
    tbt_ms: float
    """Latency class: time between due times of tokens."""
    last_index: int
    """Latency class: the last token that can count, from 0."""
    complete: bool
    """True when all of it may count, so that the request is attained."""

    @property
    def streams(self) -> bool:
        """True when tokens count one by one."""
        return self.first_ms > 0


def demand_of(
    job: Job, least_step_ms: float, token_prefill_ms: float, *, prefix_reuse: bool, stop_ms: float
) -> Demand | None:
    """The demand of a job on engines no faster than the two times; None when it cannot count at all.

    All of a job's waits, prefills and decode steps follow one another along the longest path of its calls; a job
    whose longest path is longer than its budget is out of reach of every policy.
    """
    slo = job.slo
    if slo.slo_class is SloClass.BEST_EFFORT:
        return None
    prefills = [
        max(call.prompt_tokens - (call.shared_prefix_tokens if prefix_reuse else 0), 1) for call in job.calls
    ]
    decodes = [call.output_tokens - 1 for call in job.calls]
    context = float(min(call.prompt_tokens for call in job.calls) + 1)
    # Token i >= 1 of an answer is decoded over a context of prompt + i.
    contexts = sum(
        decode * call.prompt_tokens + decode * (decode + 1) / 2
        for call, decode in zip(job.calls, decodes, strict=True)
    )
    products = sum(
        prefill * (call.prompt_tokens - prefill / 2)
        for call, prefill in zip(job.calls, prefills, strict=True)
    )
    begin_ms = job.arrival_ms + min(call.tool_ms for call in job.calls if not call.parents)
    if slo.slo_class is SloClass.LATENCY:
        return _stream(job, begin_ms, prefills[0], products, token_prefill_ms, least_step_ms, stop_ms)
    end_ms = min(job.arrival_ms + slo.e2e_ms, stop_ms)
    ends: list[float] = []
    for call, prefill, decode in zip(job.calls, prefills, decodes, strict=True):
        ready = max((ends[parent] for parent in call.parents), default=0.0) + call.tool_ms
        ends.append(ready + prefill * token_prefill_ms + decode * least_step_ms)
    if job.arrival_ms + max(ends) > end_ms + _SLACK_MS:
        return None
    stages = np.bincount([call.stage for call in job.calls])
    # A call may overlap with calls of other stages when its parents say so.
    chained = all(
        not call.parents or {job.calls[parent].stage for parent in call.parents} == {call.stage - 1}
        for call in job.calls
    ) and all(call.parents or call.stage == 0 for call in job.calls)
    complete = chained and all(
        len(call.parents) == (stages[call.stage - 1] if call.stage else 0) for call in job.calls
    )
    return Demand(
        begin_ms=begin_ms,
        end_ms=end_ms,
        prefill_tokens=float(sum(prefills)),
        decode_tokens=float(sum(decodes)),
        context_tokens=context,
        excess_tokens=max(contexts - context * sum(decodes), 0.0),
        products=products,
        parallel=float(stages.max() if complete else len(job.calls)),
        prompt_tokens=job.prompt_tokens,
        output_tokens=job.output_tokens,
        first_ms=0.0,
        tbt_ms=0.0,
        last_index=0,
        complete=True,
    )


_SLACK_MS = 1e-6


def _stream(
    job: Job,
    begin_ms: float,
    prefill: int,
    products: float,
    token_prefill_ms: float,
    least_step_ms: float,
    stop_ms: float,
) -> Demand | None:
    """A token counts by its own due time, also where earlier ones came too late.

    Tokens of which the earliest possible time is past their due time are left out.
    """
    slo, call = job.slo, job.calls[0]
    index = np.arange(call.output_tokens)
    earliest = begin_ms - job.arrival_ms + prefill * token_prefill_ms + index * least_step_ms
    due = slo.ttft_ms + index * slo.tbt_ms
    possible = (earliest <= due + _SLACK_MS) & (job.arrival_ms + earliest <= stop_ms)
    if not possible.any():
        return None
    last = int(np.flatnonzero(possible)[-1])
    count = int(possible.sum())
    decodes = count - int(possible[0])
    return Demand(
        begin_ms=begin_ms,
        end_ms=min(job.arrival_ms + due[last], stop_ms),
        prefill_tokens=float(prefill),
        decode_tokens=float(decodes),
        context_tokens=call.prompt_tokens + 1.0,
        excess_tokens=decodes * (decodes - 1) / 2,
        products=products,
        parallel=1.0,
        prompt_tokens=call.prompt_tokens if possible[0] else 0,
        output_tokens=count,
        first_ms=job.arrival_ms + slo.ttft_ms,
        tbt_ms=slo.tbt_ms,
        last_index=last,
        complete=count == call.output_tokens,
    )
