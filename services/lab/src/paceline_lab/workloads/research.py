"""Deep-research tasks: query, rounds of web research and reflection, answer; totals as published, split over calls.

Totals of a task are drawn from the published distributions, the shape along with them (long tasks have more calls),
and then shared out: short prompts for the query and the searches, prompts that grow from round to round for
reflections and the answer; long outputs for searches and the answer, short ones for the rest. The shares are chosen so
that single calls too have the published statistics. Roles and shapes are those of the 53 public DAGs of
UIUC-MLSys/JITServe (Apache-2.0).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paceline_lab.workloads.lengths import Array, QuantileCurve, coupled_levels, whole
from paceline_lab.workloads.trace import Call


@dataclass(frozen=True, slots=True)
class ResearchParams:
    """How totals are shared out."""

    totals_correlation: float = 0.93
    """Of prompt and output totals (normal scores); 0.93 in the public DAGs."""
    shape_noise: float = 0.36
    """0: the longest tasks have the most calls; larger: shape and length come apart."""
    prompt_spread: float = 0.36
    """Standard deviation of the log of a long prompt's share."""
    output_spread: float = 0.16
    """The same for a long output's share."""
    growth: float = 1.18
    """Power of the number of searches so far, to which the prompt of a reflection or an answer grows."""
    answer_weight: float = 1.55
    """Output of the answer, as a multiple of a search's."""
    query_prompt: float = 409.0
    search_prompt: float = 355.0
    small_output: float = 42.0


SHAPES: tuple[tuple[tuple[int, ...], float], ...] = (
    ((1, 1, 1, 1), 0.21),
    ((1, 3, 1, 1), 0.06),
    ((1, 1, 1, 1, 1, 1), 0.25),
    ((1, 2, 1, 1, 1, 1), 0.21),
    ((1, 1, 1, 3, 1, 1), 0.08),
    ((1, 2, 1, 2, 1, 1), 0.06),
    ((1, 2, 1, 3, 1, 1), 0.06),
    ((1, 3, 1, 3, 1, 1), 0.07),
)
"""Calls of each stage and how often, by number of calls. The public subset has 5.8 calls a task; published totals and
calls together say 6.4 to 6.6, so larger shapes are weighed up."""


def research_tasks(
    rng: np.random.Generator,
    count: int,
    prompt_total: QuantileCurve,
    output_total: QuantileCurve,
    params: ResearchParams | None = None,
) -> list[tuple[Call, ...]]:
    """Graphs of `count` tasks. Tools (search engines) take no time of their own: none is published."""
    p = params or ResearchParams()
    prompt_level, output_level = coupled_levels(rng, count, p.totals_correlation)
    prompts, outputs = prompt_total.at(prompt_level), output_total.at(output_level)
    # Rank of a blurred output level: uniform again, whatever the blur.
    blurred = output_level + p.shape_noise * rng.standard_normal(count)
    order = (np.argsort(np.argsort(blurred)) + 0.5) / count
    shapes = np.searchsorted(np.cumsum([weight for _, weight in SHAPES]), order * 0.999999)
    return [
        _task(rng, SHAPES[shape][0], prompt, output, p)
        for shape, prompt, output in zip(shapes, prompts, outputs, strict=True)
    ]


def _task(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    prompt_total: float,
    output_total: float,
    p: ResearchParams,
) -> tuple[Call, ...]:
    stages = np.repeat(np.arange(len(shape)), shape)
    last = len(shape) - 1
    search = (stages % 2 == 1) & (stages < last)
    query = stages == 0
    answer = stages == last
    reading = ~search & ~query
    searched = np.array([int(search[stages < stage].sum()) for stage in stages])
    short = np.where(query, p.query_prompt, p.search_prompt) * np.exp(0.08 * rng.standard_normal(len(stages)))
    grown = searched**p.growth * np.exp(p.prompt_spread * rng.standard_normal(len(stages)))
    prompts = _shared(prompt_total, np.where(reading, 0.0, short), np.where(reading, grown, 0.0))
    small = p.small_output * np.exp(0.4 * rng.standard_normal(len(stages)))
    large = np.where(answer, p.answer_weight, 1.0) * np.exp(
        p.output_spread * rng.standard_normal(len(stages))
    )
    writes = search | answer
    outputs = _shared(output_total, np.where(writes, 0.0, small), np.where(writes, large, 0.0))
    return chain_of_stages(stages, prompts, outputs)


def _shared(total: float, fixed: Array, weights: Array) -> NDArray[np.int64]:
    """`total` split into fixed parts (shrunk where they would take over half) and parts by weight."""
    fixed = fixed * min(1.0, 0.5 * total / fixed.sum())
    return whole(fixed + weights / weights.sum() * (total - fixed.sum()))


def chain_of_stages(
    stages: NDArray[np.int64],
    prompts: NDArray[np.int64],
    outputs: NDArray[np.int64],
    tool_ms: Array | None = None,
) -> tuple[Call, ...]:
    """Calls of which each waits for all of the stage before; `stages` ascending from 0 without gaps."""
    columns = [column.tolist() for column in (stages, prompts, outputs)]
    waits = [0.0] * len(stages) if tool_ms is None else tool_ms.tolist()
    calls: list[Call] = []
    before: tuple[int, ...] = ()
    here: tuple[int, ...] = ()
    for place, (stage, prompt_tokens, output_tokens, wait_ms) in enumerate(zip(*columns, waits, strict=True)):
        if calls and stage != calls[-1].stage:
            before, here = here, ()
        here += (place,)
        calls.append(Call(stage, before, prompt_tokens, output_tokens, wait_ms))
    return tuple(calls)
