"""`trtllm.TrtllmService` on the stubs of smg-grpc-proto, with an emulated engine behind it: what `trtllm-serve --grpc`
would answer, as far as its proto says.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from paceline_executor.remote.smg_backend import stubs
from paceline_executor.trtllm import emulator
from paceline_executor.trtllm.emulator.result import GenerationResult


class FakeTrtllmService:
    """Generate, Abort, HealthCheck, GetModelInfo."""

    def __init__(self) -> None:
        self.pb, _ = stubs()
        kv = emulator.KvCacheConfig(use_kv_cache_manager_v2=False)
        self.llm = emulator.FakeLLM(max_seq_len=512, kv_cache_config=kv, emulated_time_scale=0.001)
        self.running: dict[str, GenerationResult] = {}

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        sampling = request.sampling_config
        try:
            result = self.llm.generate_async(
                list(request.tokenized.input_token_ids),
                emulator.SamplingParams(
                    end_id=0,
                    max_tokens=request.max_tokens,
                    ignore_eos=request.ignore_eos,
                    temperature=sampling.temperature or None,
                    seed=sampling.seed,
                    stop_token_ids=list(request.stop_token_ids) or None,
                    include_stop_str_in_output=request.include_stop_token_in_output,
                ),
                streaming=True,
            )
        except ValueError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        self.running[request.request_id] = result
        read = 0
        try:
            async for item in result:
                output = item.outputs[0]
                ids, read = output.token_ids[read:], len(output.token_ids)
                if ids:
                    chunk = self.pb.GenerateStreamChunk(token_ids=ids, completion_tokens=read)
                    yield self.pb.GenerateResponse(request_id=request.request_id, chunk=chunk)
            complete = self.pb.GenerateComplete(
                output_token_ids=output.token_ids, finish_reason=output.finish_reason or ""
            )
            if isinstance(output.stop_reason, int):
                complete.matched_token_id = output.stop_reason
            yield self.pb.GenerateResponse(request_id=request.request_id, complete=complete)
        finally:
            del self.running[request.request_id]
            if not result.finished:
                result.abort()

    async def Abort(self, request: Any, context: Any) -> Any:
        result = self.running.get(request.request_id)
        if result is not None:
            result.abort()
        return self.pb.AbortResponse(success=result is not None)

    async def HealthCheck(self, request: Any, context: Any) -> Any:
        return self.pb.HealthCheckResponse(status="OK" if self.llm._check_health() else "dead")

    async def GetModelInfo(self, request: Any, context: Any) -> Any:
        return self.pb.GetModelInfoResponse(model_id="emulated", vocab_size=1 << 20, max_seq_len=512)

    def __getattr__(self, name: str) -> Any:
        if name in ("Embed", "GetServerInfo", "GetTokenizer", "SubscribeKvEvents"):
            return None
        raise AttributeError(name)


@asynccontextmanager
async def smg_server() -> AsyncIterator[str]:
    """A running one; yields its address."""
    _, services = stubs()
    server = grpc.aio.server()
    services.add_TrtllmServiceServicer_to_server(FakeTrtllmService(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(0)
