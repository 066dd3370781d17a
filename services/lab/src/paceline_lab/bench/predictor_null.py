"""A gRPC server that answers every question with the same bytes: what a client and a connection can do by themselves.

`python -m paceline_lab.bench.predictor_null` prints its port, and serves until it is ended.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import uvloop

from paceline.common.v1 import estimate_pb2
from paceline.predictor.v1 import predictor_pb2
from paceline_core.lengths import K

_SERVICE = "paceline.predictor.v1.PredictorService"
_START_S = 30.0


async def serve() -> None:
    """Until cancelled."""
    estimate = estimate_pb2.LengthEstimate(probabilities=[1 / K] * K, model_version="none", source="none")
    answer = predictor_pb2.PredictLengthResponse(estimates=[estimate]).SerializeToString()

    async def predict(request: bytes, context: object) -> bytes:
        return answer

    server = grpc.aio.server()
    methods: dict[str, Any] = {"PredictLength": grpc.unary_unary_rpc_method_handler(predict)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


@asynccontextmanager
async def null_server() -> AsyncIterator[str]:
    """The address of such a server in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "paceline_lab.bench.predictor_null", stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(_START_S):
            port = int(await process.stdout.readline())
        yield f"127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())
