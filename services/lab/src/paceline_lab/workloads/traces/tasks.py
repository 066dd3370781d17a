"""Public task graphs, replayed as jobs of the task class."""

from dataclasses import replace
from itertools import pairwise

import numpy as np

from paceline_core.tasks.graph import TaskGraph
from paceline_lab.tasks.loaders import claude_code, deep_research
from paceline_lab.workloads.arrivals import renewal_ms
from paceline_lab.workloads.lengths import QuantileCurve
from paceline_lab.workloads.objectives import PAPER
from paceline_lab.workloads.published import TOOL_GAP_S
from paceline_lab.workloads.request import WorkloadRequest
from paceline_lab.workloads.research import chain_of_stages
from paceline_lab.workloads.trace import Call, Job, Workload
from paceline_lab.workloads.traces.folder import trace_file

MAX_PROMPT_TOKENS = 131_072
_RESEARCH = "jitserve-deepresearch (UIUC-MLSys/JITServe, deepresearch_training.json as JSON lines)"
_CODING = "claude-code-traces (callanjfox/kv-cache-tester, sessions as JSON lines)"


def deep_research_dags(request: WorkloadRequest) -> Workload:
    """JITServe's own DAGs in random order; searches take no time of their own."""
    path = trace_file(
        request.data,
        request.name,
        _RESEARCH,
        "jitserve-deepresearch",
        "deepresearch_training_subset.jsonl.gz",
    )
    graphs = [record.graph for record in deep_research.read(path.parent)]
    return _tasks(request, "research-task", graphs, None)


def claude_code_tasks(request: WorkloadRequest) -> Workload:
    """Turns of coding sessions; a tool runs between calls, for a time drawn from the gaps of all sessions.

    Prompts are cut to the context of an 8B model; each begins with the one before it.
    """
    path = trace_file(request.data, request.name, _CODING, "claude-code-traces", "sessions.jsonl.xz")
    graphs = [record.graph for record in claude_code.read(path.parent)]
    return _tasks(request, "coding-task", graphs, TOOL_GAP_S)


def _tasks(
    request: WorkloadRequest, app: str, graphs: list[TaskGraph], gap_s: QuantileCurve | None
) -> Workload:
    request.weights({app: 1.0})
    rng = np.random.default_rng(request.seed)
    targets = PAPER.scaled(request.slo_scale)
    times = renewal_ms(request.rate_per_s, request.duration_s, request.cv, rng)
    jobs = []
    for number, (time, place) in enumerate(
        zip(times, rng.integers(len(graphs), size=len(times)), strict=True)
    ):
        calls = _calls(graphs[place], gap_s, rng)
        stages = 1 + calls[-1].stage
        tools_ms = 0.0 if gap_s is None else (stages - 1) * gap_s.mean * 1e3
        slo = targets.task(f"task-{number}", stages, tools_ms)
        jobs.append(Job(number, app, app, slo, float(time), calls))
    return Workload.of(request.name, request.seed, jobs, request.duration_s * 1e3, request.rate_per_s)


def _calls(graph: TaskGraph, gap_s: QuantileCurve | None, rng: np.random.Generator) -> tuple[Call, ...]:
    """Every call waits for all of the stage before; prompts and outputs are at least 1 token."""
    ordered = sorted(graph.calls, key=lambda call: call.stage)
    _, stages = np.unique([call.stage for call in ordered], return_inverse=True)
    gaps_ms = np.zeros(len(ordered)) if gap_s is None else gap_s.at(rng.random(len(ordered))) * 1e3
    gaps_ms[stages == 0] = 0.0
    prompts = np.array([min(max(call.input_tokens, 1), MAX_PROMPT_TOKENS) for call in ordered])
    outputs = np.array([max(call.output_tokens, 1) for call in ordered])
    calls = chain_of_stages(stages, prompts, outputs, gaps_ms)
    if gap_s is None:
        return calls
    grown = (
        replace(call, shared_prefix_tokens=min(before.prompt_tokens, call.prompt_tokens))
        for before, call in pairwise(calls)
    )
    return (calls[0], *grown)
