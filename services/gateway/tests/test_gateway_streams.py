"""Streams under trouble: clients that leave or do not read, gaps, and a router that dies and comes back."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fake_router import PATIENCE_S, FakeRouter, Script

from paceline.common.v1 import attempt_pb2
from paceline_gateway.app import GatewayApp

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}
STREAM = CHAT | {"stream": True}
WORDS = [f"w{i} ".encode() for i in range(40)]
TEXT = b"".join(WORDS).decode()

StartGateway = Callable[..., Awaitable[GatewayApp]]


class Reader:
    """Reads one event stream: its text, comments and end."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.aiter_lines()
        self.response = response
        self.text = ""
        self.comments = 0
        self.error: dict[str, Any] | None = None
        self.finish_reason: str | None = None
        self.done = False

    async def until(self, condition: Callable[[], bool]) -> None:
        """Read until something is true of what was read."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._take(await anext(self._lines))

    async def to_end(self) -> None:
        await self.until(lambda: self.done)

    def _take(self, line: str) -> None:
        if line.startswith(":"):
            self.comments += 1
        elif line == "data: [DONE]":
            self.done = True
        elif line.startswith("data: "):
            event = json.loads(line.removeprefix("data: "))
            self.error = event.get("error", self.error)
            for choice in event.get("choices", ()):
                self.text += choice["delta"].get("content", "")
                self.finish_reason = choice["finish_reason"] or self.finish_reason


@asynccontextmanager
async def streaming(
    gateway: GatewayApp, body: dict[str, Any] = STREAM, **headers: str
) -> AsyncIterator[Reader]:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    async with (
        httpx.AsyncClient(base_url=gateway.url, timeout=PATIENCE_S) as http,
        http.stream("POST", "/v1/chat/completions", json=body, headers=names) as response,
    ):
        yield Reader(response)


async def empty(gateway: GatewayApp) -> None:
    """Wait until nothing is left of any request."""
    async with asyncio.timeout(PATIENCE_S):
        await gateway.session.wait_empty()


@pytest.mark.parametrize("hold_at", [0, 5])
async def test_client_that_leaves_a_stream_cancels(
    gateway: GatewayApp, router: FakeRouter, hold_at: int
) -> None:
    router.script = lambda spec: Script(list(WORDS), hold_at=hold_at)
    async with streaming(gateway) as reader:
        await reader.until(lambda: reader.text.count("w") == hold_at)
    await router.until(lambda: router.only().cancelled)
    await empty(gateway)


@pytest.mark.parametrize(
    "script", [Script(list(WORDS), hold_acceptance=True), Script(list(WORDS), hold_at=5)]
)
async def test_client_that_leaves_while_it_waits_cancels(
    gateway: GatewayApp, router: FakeRouter, script: Script
) -> None:
    router.script = lambda spec: script
    async with httpx.AsyncClient(base_url=gateway.url) as http:
        waiting = asyncio.create_task(http.post("/v1/chat/completions", json=CHAT))
        await router.until(lambda: bool(router.requests))
        waiting.cancel()
        await asyncio.wait([waiting])
    await router.until(lambda: router.only().cancelled)
    await empty(gateway)


async def test_detached_request_runs_to_its_end(start_gateway: StartGateway, router: FakeRouter) -> None:
    gateway = await start_gateway(window_tokens=4)
    script = Script(list(WORDS), hold_at=2)
    router.script = lambda spec: script
    async with streaming(gateway, x_paceline_on_disconnect="detach") as reader:
        await reader.until(lambda: "w1" in reader.text)
    # The gateway lifts the bound of a request that nobody reads.
    await router.until(lambda: router.only().limit == 0)
    await script.release()
    await router.until(lambda: router.only().sent == len(WORDS))
    await empty(gateway)
    assert not router.only().cancelled


async def test_credits_follow_what_the_client_takes(start_gateway: StartGateway, router: FakeRouter) -> None:
    gateway = await start_gateway(window_tokens=8)
    async with streaming(gateway) as reader:
        await reader.to_end()
    assert reader.text == TEXT
    assert router.only().limit >= len(WORDS)
    # Half a window at a time.
    assert gateway.session.counters.grants <= len(WORDS) / 4


async def unread_stream(
    gateway: GatewayApp, request_id: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Ask for a stream over a connection with little room, and read nothing."""
    host, port = gateway.address.split(":")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=sock, limit=1024)
    body = json.dumps(STREAM).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-request-id: {request_id}\r\nconnection: close\r\n"
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    return reader, writer


async def test_slow_reader_pauses_only_itself(start_gateway: StartGateway, router: FakeRouter) -> None:
    gateway = await start_gateway(window_tokens=8)
    big = [b"x" * 50_000 for _ in range(200)]
    scripts = {"slow": Script(big), "quick": Script(list(WORDS))}
    router.script = lambda spec: scripts[spec.request_id]
    reader, writer = await unread_stream(gateway, "slow")
    # The sockets take a megabyte or two; after that nothing moves until the client reads.
    await router.until(lambda: "slow" in router.requests and router.requests["slow"].blocked.is_set())
    async with streaming(gateway, x_request_id="quick") as quick:
        await quick.to_end()
    assert quick.text == TEXT
    slow = router.requests["slow"]
    assert slow.sent <= slow.limit < len(big)
    async with asyncio.timeout(PATIENCE_S):
        answer = await reader.read()
    assert answer.count(b"x" * 1000) == 200 * 50
    assert b"[DONE]" in answer
    writer.close()
    await empty(gateway)


async def test_client_that_stops_reading_is_cancelled_and_dropped(
    start_gateway: StartGateway, router: FakeRouter
) -> None:
    gateway = await start_gateway(window_tokens=8, client_stall_s=0.3)
    router.script = lambda spec: Script([b"x" * 100_000 for _ in range(1000)])
    _, writer = await unread_stream(gateway, "stuck")
    await router.until(lambda: bool(router.requests) and router.only().cancelled)
    await empty(gateway)
    # The connection ends too, though the client never read what was buffered for it.
    async with asyncio.timeout(PATIENCE_S):
        while gateway.connections:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    writer.close()


async def test_keepalives_while_nothing_comes(start_gateway: StartGateway, router: FakeRouter) -> None:
    gateway = await start_gateway(keepalive_s=0.02)
    script = Script(list(WORDS), hold_at=3)
    router.script = lambda spec: script
    async with streaming(gateway) as reader:
        await reader.until(lambda: reader.comments >= 3)
        await script.release()
        await reader.to_end()
    assert reader.text == TEXT


async def test_router_killed_in_the_middle_of_streams(
    start_gateway: StartGateway, router: FakeRouter
) -> None:
    gateway = await start_gateway(keepalive_s=0.05)
    scripts = {str(i): Script(list(WORDS), hold_at=5 + i) for i in range(6)}
    router.script = lambda spec: scripts[spec.request_id]

    async def client(name: str) -> Reader:
        async with streaming(gateway, x_request_id=name) as reader:
            await reader.until(lambda: reader.text.count("w") == 5 + int(name))
            held.release()
            comments = reader.comments
            await reader.until(lambda: reader.comments > comments or reader.done)
            await reader.to_end()
            return reader

    async def restart() -> None:
        for _ in scripts:
            await held.acquire()
        await router.kill()
        await router.start()
        await router.until(lambda: all(request.attaches for request in router.requests.values()))
        for script in scripts.values():
            await script.release()

    held = asyncio.Semaphore(0)
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
        clients = [tasks.create_task(client(name)) for name in scripts]
        tasks.create_task(restart())
    for task in clients:
        reader = task.result()
        assert reader.text == TEXT
        assert (reader.finish_reason, reader.error) == ("stop", None)
    assert router.sessions == 2
    # Each went on from the first index it had not seen.
    assert {name: r.attaches for name, r in router.requests.items()} == {str(i): [5 + i] for i in range(6)}
    await empty(gateway)


async def test_router_killed_before_it_accepted(gateway: GatewayApp, router: FakeRouter) -> None:
    first = Script(list(WORDS), hold_acceptance=True)
    router.script = lambda spec: first
    async with httpx.AsyncClient(base_url=gateway.url, timeout=PATIENCE_S) as http:
        waiting = asyncio.create_task(http.post("/v1/chat/completions", json=CHAT))
        await router.until(lambda: bool(router.requests))
        await router.kill()
        await router.start()
        # Handed in again under the same id, which the router knows: so it is attached.
        await router.until(lambda: bool(router.only().attaches))
        await first.release()
        reply = await waiting
    assert reply.json()["choices"][0]["message"]["content"] == TEXT
    assert router.submits == 2


async def test_router_that_lost_everything_before_output(gateway: GatewayApp, router: FakeRouter) -> None:
    router.forgets_on_restart = True
    first = Script(list(WORDS), hold_acceptance=True)
    router.script = lambda spec: first
    async with httpx.AsyncClient(base_url=gateway.url, timeout=PATIENCE_S) as http:
        waiting = asyncio.create_task(http.post("/v1/chat/completions", json=CHAT))
        await router.until(lambda: bool(router.requests))
        await router.kill()
        router.script = lambda spec: Script(list(WORDS))
        await router.start()
        reply = await waiting
    assert reply.json()["choices"][0]["message"]["content"] == TEXT


async def test_router_that_lost_a_request_with_output(
    start_gateway: StartGateway, router: FakeRouter
) -> None:
    gateway = await start_gateway(adoption_grace_s=0.3)
    router.forgets_on_restart = True
    router.script = lambda spec: Script(list(WORDS), hold_at=5)
    async with streaming(gateway) as reader:
        await reader.until(lambda: "w4" in reader.text)
        await router.kill()
        await router.start()
        await reader.to_end()
    assert reader.error is not None
    assert reader.error["code"] == "not_found"
    assert reader.text == b"".join(WORDS[:5]).decode()
    await empty(gateway)


async def test_another_clients_request_of_the_same_id_is_not_shown(
    gateway: GatewayApp, router: FakeRouter
) -> None:
    """The id is taken, but the router dies before it says so."""
    router.script = lambda spec: Script(list(WORDS), hold_acceptance=True)
    async with httpx.AsyncClient(base_url=gateway.url, timeout=PATIENCE_S) as http:
        waiting = asyncio.create_task(
            http.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": "taken"})
        )
        await router.until(lambda: bool(router.requests))
        router.only().arrived_unix_ms -= 60_000
        await router.kill()
        await router.start()
        reply = await waiting
    assert reply.status_code == 409
    assert router.only().attaches == []


async def test_router_away_for_too_long(start_gateway: StartGateway, router: FakeRouter) -> None:
    gateway = await start_gateway(router_outage_limit_s=0.3, router_wait_s=0.1)
    router.script = lambda spec: Script(list(WORDS), hold_at=5)
    async with streaming(gateway) as reader:
        await reader.until(lambda: "w4" in reader.text)
        await router.kill()
        await reader.to_end()
        assert reader.error is not None
        assert reader.error["code"] == "unavailable"
        async with httpx.AsyncClient(base_url=gateway.url, timeout=PATIENCE_S) as http:
            late = await http.post("/v1/chat/completions", json=CHAT)
            assert late.status_code == 503
            assert int(late.headers["retry-after"]) >= 1
            assert (await http.get("/readyz")).status_code == 503
            assert (await http.get("/healthz")).status_code == 200
    await empty(gateway)


@pytest.mark.parametrize(
    "script",
    [
        Script(list(WORDS), skip_once=7),
        Script(list(WORDS), skip_once=0),
        Script(list(WORDS), skip_once=39),
        Script(list(WORDS), repeat_from=10),
    ],
    ids=["gap", "first missing", "last missing", "repeated"],
)
async def test_each_token_once(gateway: GatewayApp, router: FakeRouter, script: Script) -> None:
    gap = script.skip_once
    router.script = lambda spec: script
    async with streaming(gateway) as reader:
        await reader.to_end()
    assert reader.text == TEXT
    assert reader.error is None
    assert router.only().attaches == ([] if gap is None else [gap])
    assert (gateway.session.counters.overlaps > 0) == (gap is None)


async def test_many_clients_at_once_with_random_ends(gateway: GatewayApp, router: FakeRouter) -> None:
    async def client(i: int) -> None:
        async with streaming(gateway) as reader:
            if i % 3 == 0:
                await reader.until(lambda: reader.text.count("w") > i % 7)
            else:
                await reader.to_end()
                assert reader.text == TEXT

    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
        for i in range(40):
            tasks.create_task(client(i))
    await empty(gateway)
    assert gateway.session.live == gateway.admission.live == 0


async def test_failure_before_output_is_a_status(gateway: GatewayApp, router: FakeRouter) -> None:
    failure = attempt_pb2.Failure(reason="ENGINE_LOST", message="gone", retryable=True)
    router.script = lambda spec: Script([], failure=failure)
    async with httpx.AsyncClient(base_url=gateway.url, timeout=PATIENCE_S) as http:
        reply = await http.post("/v1/chat/completions", json=CHAT)
    assert reply.status_code == 503
    assert reply.json()["error"]["code"] == "engine_lost"
