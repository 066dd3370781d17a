"""What the line costs on top of the engine: time to first token at one request, throughput at a full batch.

Three ways to the same model, one engine with one thread each, taken in turn (A B C A B C ...): the engine in process,
the router over gRPC, the gateway over HTTP. Prompts are raw text, so that all three tokenize the same.
"""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from paceline.router.v1 import generation_pb2, router_pb2, router_pb2_grpc
from paceline_lab.bench.raw_sse import stream_completion
from paceline_lab.bench.statistics import paired_difference, paired_ratio, summary

_WORDS = (
    "river", "lamp", "stone", "garden", "paper", "winter", "bridge", "copper", "window", "engine", "harbour", "violin",
    "meadow", "ladder", "signal", "orchard",
)  # fmt: skip


class EngineAlone(Protocol):
    """The engine in a process of its own, driven without the line."""

    async def run(self, prompts: Sequence[str], max_tokens: int) -> dict[str, Any]:
        """See `engine_alone`."""


@dataclass(frozen=True, slots=True)
class LinePlan:
    """How much to measure."""

    ttft_rounds: int = 40
    throughput_rounds: int = 4
    batch: int = 16
    output_tokens: int = 64


@dataclass(slots=True)
class LineSamples:
    """Samples by round."""

    alone_ttft_ms: list[float] = field(default_factory=list)
    grpc_ttft_ms: list[float] = field(default_factory=list)
    http_ttft_ms: list[float] = field(default_factory=list)
    alone_tokens_per_s: list[float] = field(default_factory=list)
    grpc_tokens_per_s: list[float] = field(default_factory=list)
    http_tokens_per_s: list[float] = field(default_factory=list)


async def measure_line(
    plan: LinePlan,
    alone: EngineAlone,
    stub: router_pb2_grpc.RouterServiceStub,
    gateway: str,
    model: str,
    say: Callable[[str], None],
) -> LineSamples:
    """Take all samples, in turn; one round of each first, unrecorded."""
    samples = LineSamples()
    for number in range(-3, plan.ttft_rounds):
        # Short of one prefill chunk, and another text each time: no prefix cache can help one side.
        prompt = _prompt(number)
        alone_ms = (await alone.run([prompt], 4))["ttft_ms"][0]
        grpc_ms, _ = await _generate(stub, prompt, 4)
        http = await stream_completion(gateway, model, prompt, 4)
        if number >= 0:
            samples.alone_ttft_ms.append(alone_ms)
            samples.grpc_ttft_ms.append(grpc_ms)
            samples.http_ttft_ms.append(http.ttft_ms)
    say(f"TTFT: {plan.ttft_rounds} rounds done")
    for number in range(-1, plan.throughput_rounds):
        prompts = [_prompt(1000 + number * plan.batch + index) for index in range(plan.batch)]
        answer = await alone.run(prompts, plan.output_tokens)
        alone_rate = sum(answer["tokens"]) / answer["seconds"]
        grpc_rate = await _grpc_rate(stub, prompts, plan.output_tokens)
        http_rate = await _http_rate(gateway, model, prompts, plan.output_tokens)
        if number >= 0:
            samples.alone_tokens_per_s.append(alone_rate)
            samples.grpc_tokens_per_s.append(grpc_rate)
            samples.http_tokens_per_s.append(http_rate)
            say(
                f"batch {plan.batch}: in process {alone_rate:.1f}, gRPC {grpc_rate:.1f}, HTTP {http_rate:.1f} tokens/s"
            )
    return samples


def line_result(plan: LinePlan, samples: LineSamples) -> dict[str, Any]:
    """The figures. Added times and ratios are medians over rounds of what was measured within one round."""
    added = paired_difference(samples.alone_ttft_ms, samples.http_ttft_ms)
    grpc_added = paired_difference(samples.alone_ttft_ms, samples.grpc_ttft_ms)
    gateway_added = paired_difference(samples.grpc_ttft_ms, samples.http_ttft_ms)
    ratio = paired_ratio(samples.alone_tokens_per_s, samples.http_tokens_per_s)
    grpc_ratio = paired_ratio(samples.alone_tokens_per_s, samples.grpc_tokens_per_s)
    return {
        "ttft_added_ms_p50": round(added.p50, 3),
        "throughput_ratio": round(ratio.p50, 4),
        "ttft_added_ms": asdict(added),
        "ttft_added_by_grpc_line_ms": asdict(grpc_added),
        "ttft_added_by_gateway_ms": asdict(gateway_added),
        "throughput_ratio_http": asdict(ratio),
        "throughput_ratio_grpc": asdict(grpc_ratio),
        "ttft_ms": {
            "in_process": asdict(summary(samples.alone_ttft_ms)),
            "router_grpc": asdict(summary(samples.grpc_ttft_ms)),
            "gateway_http": asdict(summary(samples.http_ttft_ms)),
        },
        "tokens_per_s": {
            "in_process": asdict(summary(samples.alone_tokens_per_s)),
            "router_grpc": asdict(summary(samples.grpc_tokens_per_s)),
            "gateway_http": asdict(summary(samples.http_tokens_per_s)),
        },
        "plan": asdict(plan),
    }


def _prompt(number: int) -> str:
    """A short prompt of its own for each number; all of nearly the same length in tokens."""
    first, second = _WORDS[number % 16], _WORDS[number // 16 % 16]
    return f"The story of a {first}, a {second} and {1000 + number % 9000}"


async def _generate(
    stub: router_pb2_grpc.RouterServiceStub, prompt: str, max_tokens: int
) -> tuple[float, int]:
    """TTFT in milliseconds and output tokens of one call to the router."""
    spec = generation_pb2.GenerationSpec(text=prompt, max_tokens=max_tokens, streaming=True)
    began = time.perf_counter()
    first_ms, tokens = 0.0, 0
    async for event in stub.Generate(router_pb2.GenerateRequest(spec=spec), timeout=120.0):
        if event.HasField("tokens"):
            first_ms = first_ms or (time.perf_counter() - began) * 1000
            tokens += len(event.tokens.token_ids)
        elif event.HasField("finished") and event.finished.HasField("failure"):
            raise RuntimeError(f"{event.finished.failure.reason}: {event.finished.failure.message}")
    return first_ms, tokens


async def _grpc_rate(
    stub: router_pb2_grpc.RouterServiceStub, prompts: Sequence[str], max_tokens: int
) -> float:
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(_generate(stub, prompt, max_tokens)) for prompt in prompts]
    return sum(call.result()[1] for call in calls) / (time.perf_counter() - began)


async def _http_rate(gateway: str, model: str, prompts: Sequence[str], max_tokens: int) -> float:
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        calls = [
            group.create_task(stream_completion(gateway, model, prompt, max_tokens)) for prompt in prompts
        ]
    return sum(call.result().output_tokens for call in calls) / (time.perf_counter() - began)


class EngineAloneProcess:
    """`engine_alone` as a child process; `async with` starts and ends it."""

    def __init__(self, command: Sequence[str], environment: dict[str, str]) -> None:
        self._command = command
        self._environment = environment
        self._process: asyncio.subprocess.Process

    async def __aenter__(self) -> "EngineAloneProcess":
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=self._environment,
        )
        await self._answer()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(10):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def run(self, prompts: Sequence[str], max_tokens: int) -> dict[str, Any]:
        """One job; see `engine_alone`."""
        assert self._process.stdin is not None
        self._process.stdin.write(
            json.dumps({"prompts": list(prompts), "max_tokens": max_tokens}).encode() + b"\n"
        )
        return await self._answer()

    async def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        async with asyncio.timeout(120):
            line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("the engine's own process ended; its messages are above")
        answer: dict[str, Any] = json.loads(line)
        return answer
