"""A streaming completion over a bare socket: what is measured is the gateway, not an HTTP library."""

import asyncio
import json
import time
from dataclasses import dataclass


class SseError(RuntimeError):
    """The gateway answered with something else than a stream."""


@dataclass(frozen=True, slots=True)
class Streamed:
    """One answer. Times are milliseconds since the request was written."""

    ttft_ms: float
    total_ms: float
    output_tokens: int


async def stream_completion(
    address: str, model: str, prompt: str, max_tokens: int, *, timeout_s: float = 120.0
) -> Streamed:
    """`POST /v1/completions`, greedy, streamed, over a connection of its own that is open before the clock starts."""
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            body = json.dumps(
                {
                    "model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "stream": True,
                    "stream_options": {"include_usage": True},
                }
            ).encode()  # fmt: skip
            head = (
                f"POST /v1/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            )
            began = time.perf_counter()
            writer.write(head.encode() + body)
            return await _read(reader, began)
        finally:
            writer.close()


async def _read(reader: asyncio.StreamReader, began: float) -> Streamed:
    status = await reader.readline()
    first_ms = 0.0
    tokens = 0
    async for line in reader:
        if not line.startswith(b"data: "):
            continue
        now_ms = (time.perf_counter() - began) * 1000
        if not first_ms:
            if b" 200 " not in status:
                raise SseError(f"{status.decode().strip()}: {line[:200]!r}")
            first_ms = now_ms
        if b'"usage":{' in line or b'"usage": {' in line:
            tokens = int(json.loads(line[6:])["usage"]["completion_tokens"])
        if line.startswith(b"data: [DONE]"):
            return Streamed(first_ms, now_ms, tokens)
    raise SseError(f"{status.decode().strip()}: the stream ended early")
