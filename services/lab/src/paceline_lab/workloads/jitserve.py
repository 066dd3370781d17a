"""The mix of the JITServe paper: chat under a latency target, research calls under a deadline, tasks, one of each."""

import numpy as np

from paceline_lab.workloads import published as lengths
from paceline_lab.workloads.arrivals import renewal_ms
from paceline_lab.workloads.chat import chat_tasks
from paceline_lab.workloads.objectives import Targets
from paceline_lab.workloads.request import WorkloadRequest
from paceline_lab.workloads.research import research_tasks
from paceline_lab.workloads.trace import Call, Job, Workload

PARTS = {"latency": 1.0, "deadline": 1.0, "task": 1.0}
_TENANTS = 4
_RESEARCH_TASKS = 0.5
"""Share of deep research among tasks; chat tasks are the rest. Not published."""


def jitserve_mix(request: WorkloadRequest, targets: Targets) -> Workload:
    """Requests of the three classes, drawn independently; tenants share alike."""
    rng = np.random.default_rng(request.seed)
    targets = targets.scaled(request.slo_scale)
    arrivals = renewal_ms(request.rate_per_s, request.duration_s, request.cv, rng)
    weights = request.weights(PARTS)
    parts = list(weights)
    shares = np.array([weights[part] for part in parts])
    count = len(arrivals)
    kinds = rng.choice(len(parts), size=count, p=shares / shares.sum())
    research = rng.random(count) < _RESEARCH_TASKS
    tenants = rng.integers(_TENANTS, size=count)
    makers = {
        "latency": iter(_calls(rng, count, lengths.CHAT_PROMPT, lengths.CHAT_OUTPUT)),
        "deadline": iter(_calls(rng, count, lengths.RESEARCH_PROMPT, lengths.RESEARCH_OUTPUT)),
    }
    is_task = kinds == parts.index("task")
    graphs = {
        True: iter(research_graphs(rng, int((is_task & research).sum()))),
        False: iter(chat_graphs(rng, int((is_task & ~research).sum()))),
    }
    jobs = []
    for place, arrival in enumerate(arrivals):
        part = parts[kinds[place]]
        tenant = f"t{tenants[place]}"
        if part == "task":
            app = "research-task" if research[place] else "chat-task"
            calls = next(graphs[bool(research[place])])
            slo = targets.task(f"task-{place}", 1 + calls[-1].stage)
        else:
            app = "chat" if part == "latency" else "research"
            calls = next(makers[part])
            slo = targets.latency() if part == "latency" else targets.deadline()
        jobs.append(Job(place, app, tenant, slo, float(arrival), calls))
    return Workload.of(request.name, request.seed, jobs, request.duration_s * 1e3, request.rate_per_s)


def research_graphs(rng: np.random.Generator, count: int) -> list[tuple[Call, ...]]:
    """Deep-research tasks with the published totals."""
    return research_tasks(rng, count, lengths.RESEARCH_TASK_PROMPT.curve, lengths.RESEARCH_TASK_OUTPUT.curve)


def chat_graphs(rng: np.random.Generator, count: int) -> list[tuple[Call, ...]]:
    """Chat tasks with the published totals."""
    return chat_tasks(
        rng,
        count,
        lengths.CHAT_PROMPT.curve,
        lengths.CHAT_OUTPUT.curve,
        lengths.CHAT_TASK_PROMPT.curve,
    )


def _calls(
    rng: np.random.Generator, count: int, prompt: lengths.Published, output: lengths.Published
) -> list[tuple[Call, ...]]:
    prompts, outputs = prompt.curve.sample(rng, count), output.curve.sample(rng, count)
    return [(single_call(int(p), int(o)),) for p, o in zip(prompts, outputs, strict=True)]


def single_call(prompt_tokens: int, output_tokens: int, shared_prefix_tokens: int = 0) -> Call:
    """The call of a job that has one."""
    return Call(0, (), prompt_tokens, output_tokens, 0.0, shared_prefix_tokens)
