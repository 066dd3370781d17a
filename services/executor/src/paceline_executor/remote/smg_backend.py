"""`trtllm.TrtllmService` of SMG, as `trtllm-serve --grpc` serves it: token ids both ways, and aborts by name.

It knows neither priority nor load, and the server has no HTTP beside it, so nothing is told of queue and KV. Stop
strings are matched here. The stubs come from the package smg-grpc-proto, which is needed for nothing else.
"""

import asyncio
import importlib
import logging
import zlib
from collections import Counter
from collections.abc import AsyncIterator
from types import ModuleType
from typing import Any

import grpc

from paceline_executor.contract import AttemptSpec, EngineError
from paceline_executor.frames.backend import (
    Backend,
    BackendFacts,
    IterationRow,
    LegEnd,
    LegFailed,
    LegItem,
    LegRequest,
    Vocabulary,
)
from paceline_executor.remote.config import RemoteSection
from paceline_executor.remote.facts import remote_facts

_log = logging.getLogger(__name__)
_NO_ROWS: tuple[IterationRow, ...] = ()
_PACKAGE = "smg_grpc_proto"
_ABORT_TIMEOUT_S = 5.0
_BACKOFF_S = 0.25
_FINAL = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
    }
)
_ENDS = {"length": LegEnd.LENGTH, "cancelled": LegEnd.CANCELLED}


def stubs() -> tuple[ModuleType, ModuleType]:
    """(messages, service) of the package. Raises ValueError without it."""
    try:
        return (
            importlib.import_module(f"{_PACKAGE}.generated.trtllm_service_pb2"),
            importlib.import_module(f"{_PACKAGE}.generated.trtllm_service_pb2_grpc"),
        )
    except ImportError as error:
        raise ValueError(f"protocol smg-trtllm needs the package smg-grpc-proto: {error}") from error


class SmgBackend:
    """Implements `frames.backend.Backend` over one channel."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        messages: ModuleType,
        stub: Any,
        facts: BackendFacts,
        health_failures: int,
    ) -> None:
        self._channel = channel
        self._messages = messages
        self._stub = stub
        self._health_failures = health_failures
        self._failed_looks = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.facts = facts
        self.counters: Counter[str] = Counter()
        """What happened so far, by name."""

    def check(self, spec: AttemptSpec) -> None:
        """A logit bias would be a tensor of the whole vocabulary: refused."""
        if spec.sampling.logit_bias:
            raise EngineError("INVALID_SAMPLING", "this engine takes no logit_bias")

    def submit(self, request: LegRequest) -> "SmgLeg":
        """Nothing is sent before the leg is read; errors come in its stream, as gRPC statuses."""
        pb, wanted = self._messages, request.sampling
        sampling = pb.SamplingConfig(beam_width=1, num_return_sequences=1)
        if wanted.temperature > 0:
            sampling.temperature, sampling.top_p = wanted.temperature, wanted.top_p
            sampling.seed = wanted.seed
            if wanted.top_k:
                sampling.top_k = wanted.top_k
        if wanted.repetition_penalty != 1.0:
            sampling.repetition_penalty = wanted.repetition_penalty
        if wanted.presence_penalty or wanted.frequency_penalty:
            sampling.presence_penalty = wanted.presence_penalty
            sampling.frequency_penalty = wanted.frequency_penalty
            sampling.prompt_ignore_length = request.prompt_tokens
        message = pb.GenerateRequest(
            request_id=request.request_id,
            tokenized=pb.TokenizedInput(input_token_ids=request.ids),
            sampling_config=sampling,
            output_config=pb.OutputConfig(exclude_input_from_output=True),
            max_tokens=request.max_tokens,
            streaming=True,
            stop_token_ids=wanted.stop_token_ids,
            ignore_eos=wanted.ignore_eos,
            include_stop_token_in_output=True,
        )
        if request.cache_salt:
            message.cache_salt_id = zlib.crc32(request.cache_salt.encode()) + 1
        return SmgLeg(self, message)

    async def rows(self) -> AsyncIterator[IterationRow]:
        """None: the service does not tell."""
        for row in _NO_ROWS:
            yield row

    async def fault(self) -> str:
        """Several failed looks at its health in a row."""
        try:
            answer = await self._stub.HealthCheck(self._messages.HealthCheckRequest(), timeout=5.0)
            problem = "" if answer.status == "OK" else f"health: {answer.status[:200]}"
        except grpc.aio.AioRpcError as error:
            problem = f"health cannot be had: {error.code().name}"
        self._failed_looks = self._failed_looks + 1 if problem else 0
        return problem if self._failed_looks >= self._health_failures else ""

    async def close(self) -> None:
        """Close the channel."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._channel.close()

    def generate(self, message: Any) -> Any:
        """The call of a leg."""
        return self._stub.Generate(message)

    def abort_soon(self, request_id: str) -> None:
        """Ask for an abort; its end comes in the stream."""
        task = asyncio.get_running_loop().create_task(self._abort(request_id), name="smg-abort")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _abort(self, request_id: str) -> None:
        try:
            await self._stub.Abort(
                self._messages.AbortRequest(request_id=request_id), timeout=_ABORT_TIMEOUT_S
            )
        except grpc.aio.AioRpcError as error:
            # The agent's watchdog has the last word on an end that does not come.
            self.counters["aborts_failed"] += 1
            _log.warning("abort of %s: %s", request_id, error.code().name)


class SmgLeg:
    """One generate stream: chunks are new ids, the completion repeats them all."""

    engine_id = 0

    def __init__(self, backend: SmgBackend, message: Any) -> None:
        self._backend = backend
        self._message = message
        self._call: Any = None
        self._aborted = False

    def aborted(self) -> bool:
        """True if its end was asked for."""
        return self._aborted

    def abort(self) -> None:
        """By name, and by a cancelled call if the server does not end the stream itself."""
        if not self._aborted:
            self._aborted = True
            self._backend.abort_soon(self._message.request_id)
            if self._call is not None:
                self._call.cancel()

    async def __aiter__(self) -> AsyncIterator[LegItem]:
        if self._aborted:
            yield LegItem((), LegEnd.CANCELLED)
            return
        read = 0
        self._call = self._backend.generate(self._message)
        try:
            async for response in self._call:
                if response.WhichOneof("response") == "chunk":
                    read += len(response.chunk.token_ids)
                    yield LegItem(list(response.chunk.token_ids))
                    continue
                complete = response.complete
                ids = list(complete.output_token_ids)[read:]
                stop = (
                    complete.matched_token_id
                    if complete.WhichOneof("matched_stop") == "matched_token_id"
                    else None
                )
                everything = list(complete.output_token_ids)
                known = stop is not None and not (everything and everything[-1] == stop)
                yield LegItem(ids, _ENDS.get(complete.finish_reason, LegEnd.STOP), stop if known else None)
                return
        except grpc.aio.AioRpcError as error:
            if self.aborted() and error.code() is grpc.StatusCode.CANCELLED:
                yield LegItem((), LegEnd.CANCELLED)
                return
            final = error.code() in _FINAL
            if not final:
                await asyncio.sleep(_BACKOFF_S)
            raise LegFailed(f"{error.code().name}: {error.details()}", final=final) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self.aborted() and task is not None and not task.cancelling():
                # Cancelling one's own call shows as a cancellation of whoever reads it.
                yield LegItem((), LegEnd.CANCELLED)
                return
            raise
        finally:
            self._call.cancel()
        raise LegFailed("the stream ended without a completion")


async def connect_smg(section: RemoteSection, words: Vocabulary) -> tuple[Backend, str]:
    """A back end on the service, and the name of its model. Raises ValueError if it cannot be asked."""
    messages, services = stubs()
    channel = grpc.aio.insecure_channel(section.url)
    stub = services.TrtllmServiceStub(channel)
    try:
        info = await stub.GetModelInfo(messages.GetModelInfoRequest(), timeout=section.connect_timeout_s)
    except grpc.aio.AioRpcError as error:
        await channel.close()
        raise ValueError(f"{section.url} does not tell its model: {error.code().name}") from error
    if info.vocab_size and info.vocab_size < words.vocab_size:
        await channel.close()
        raise ValueError(
            f"the model there has {info.vocab_size} tokens, the vocabulary here {words.vocab_size}"
        )
    name = section.model or info.model_id
    facts = remote_facts(section, words, name, priority=False)
    return SmgBackend(channel, messages, stub, facts, section.health_failures), name
