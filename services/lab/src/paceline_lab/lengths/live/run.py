"""Real prompts to a running stack, a few at a time: what was declared for each, and what came."""

import asyncio
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np

from paceline.common.v1 import attempt_pb2
from paceline.predictor.v1 import predictor_pb2, predictor_pb2_grpc
from paceline.router.v1 import generation_pb2, router_pb2, router_pb2_grpc
from paceline_lab.lengths.live.score import Answered, coverage
from paceline_lab.prompts.library import load_library
from paceline_lab.prompts.model import Prompt
from paceline_runtime.channel import channel

_PREDICTOR_TIMEOUT_S = 5.0
_TRIES = 30
_PAUSE_S = 1.0
"""Tries again after a refusal for want of an engine, and the pause before each."""
_ENDED_WELL = {
    attempt_pb2.FINISH_REASON_STOP,
    attempt_pb2.FINISH_REASON_STOP_STRING,
    attempt_pb2.FINISH_REASON_LENGTH,
}


class LiveLengthsError(RuntimeError):
    """The stack refused or lost a request: the figures would mean nothing."""


@dataclass(frozen=True, slots=True)
class LiveLengthsPlan:
    """What to send. Prompts are those of this package, which no model is trained on."""

    requests: int = 600
    warmup_requests: int = 100
    """Of a cold start; reported apart."""
    concurrency: int = 8
    max_tokens: int = 256
    """Of every answer; 0: each prompt's own limit."""
    temperatures: tuple[float, ...] = (0.0, 0.7, 1.0)
    seed: int = 1


@dataclass(frozen=True, slots=True)
class _Job:
    prompt: Prompt
    max_tokens: int
    temperature: float
    seed: int


async def run_live_lengths(
    plan: LiveLengthsPlan, router: str, predictor: str, on_progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """Send all requests and score them. `predictor` empty: its own figures are left out. Raises LiveLengthsError."""
    rows: list[Answered | None] = [None] * plan.requests
    jobs = enumerate(_jobs(plan))
    done = 0

    async with channel(router) as connection:
        stub = router_pb2_grpc.RouterServiceStub(connection)

        async def work() -> None:
            nonlocal done
            for number, job in jobs:
                rows[number] = await _answered(stub, job)
                done += 1
                on_progress(done, plan.requests)

        async with asyncio.TaskGroup() as group:
            for _ in range(plan.concurrency):
                group.create_task(work())
    answered = [row for row in rows if row is not None]
    cold, rest = answered[: plan.warmup_requests], answered[plan.warmup_requests :]
    return {
        "requests": plan.requests,
        "warmup_requests": plan.warmup_requests,
        "warmup": coverage(cold).as_dict(),
        "scored": coverage(rest).as_dict(),
        "by_app": {
            app: coverage([row for row in rest if row.app == app]).as_dict()
            for app in sorted({row.app for row in rest})
        },
        "predictor": await _own_figures(predictor) if predictor else None,
    }


def _jobs(plan: LiveLengthsPlan) -> Iterator[_Job]:
    """Prompts in shuffled rounds; a repeated one has another seed, and perhaps another temperature."""
    rng = np.random.default_rng(plan.seed)
    prompts = load_library().prompts
    order: list[int] = []
    for _ in range(plan.requests):
        if not order:
            order = rng.permutation(len(prompts)).tolist()
        prompt = prompts[order.pop()]
        temperature = plan.temperatures[int(rng.integers(len(plan.temperatures)))]
        yield _Job(prompt, plan.max_tokens or prompt.max_tokens, temperature, int(rng.integers(1 << 32)))


async def _answered(stub: router_pb2_grpc.RouterServiceStub, job: _Job) -> Answered:
    spec = generation_pb2.GenerationSpec(
        app=job.prompt.family.value,
        max_tokens=job.max_tokens,
        streaming=True,
        sampling=attempt_pb2.SamplingParams(temperature=job.temperature, seed=job.seed),
    )
    spec.messages.messages.extend(
        generation_pb2.Message(role=turn.role, content=turn.content) for turn in job.prompt.messages
    )
    spec.slo.best_effort.SetInParent()
    finished = None
    try:
        for patience in range(_TRIES, -1, -1):
            spec.request_id = f"lengths-{uuid.uuid4().hex}"
            try:
                async for event in stub.Generate(router_pb2.GenerateRequest(spec=spec)):
                    if event.WhichOneof("event") == "finished":
                        finished = event.finished
                break
            except grpc.aio.AioRpcError as error:
                # Nothing was promised yet: on a busy machine all engines may look stale for a moment.
                if error.code() is not grpc.StatusCode.UNAVAILABLE or not patience:
                    raise
                await asyncio.sleep(_PAUSE_S)
        explained = await stub.ExplainRequest(router_pb2.ExplainRequestRequest(request_id=spec.request_id))
    except grpc.aio.AioRpcError as error:
        raise LiveLengthsError(f"{error.code().name}: {error.details()}") from None
    if finished is None or finished.finish_reason not in _ENDED_WELL:
        why = "its stream ended early" if finished is None else finished.failure.message
        raise LiveLengthsError(f"a request did not run to its end: {why}")
    if not explained.placements:
        raise LiveLengthsError("the router does not say what it declared")
    declared = explained.placements[0]
    return Answered(
        app=job.prompt.family.value,
        max_tokens=job.max_tokens,
        p50=declared.length_p50,
        p90=declared.length_p90,
        p_cut=declared.length_cut_probability,
        source=declared.estimate_source,
        output_tokens=finished.output_tokens,
        cut=finished.finish_reason == attempt_pb2.FINISH_REASON_LENGTH,
    )


async def _own_figures(predictor: str) -> list[dict[str, Any]]:
    """What the predictor says of itself: what `paceline status` shows."""
    async with channel(predictor) as connection:
        stub = predictor_pb2_grpc.PredictorServiceStub(connection)
        try:
            info = await stub.GetModelInfo(predictor_pb2.GetModelInfoRequest(), timeout=_PREDICTOR_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise LiveLengthsError(f"the predictor does not answer: {error.code().name}") from None
    return [
        {
            "kind": model.kind,
            "version": model.version,
            "observed": model.observed,
            "coverage_p90": round(model.coverage_p90, 4),
            "warning": model.warning,
        }
        for model in info.models
    ]
