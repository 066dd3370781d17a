"""A router over real schedulers and executors with simulated engines, and clients of it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from paceline.common.v1 import attempt_pb2
from paceline.router.v1 import generation_pb2, router_pb2, router_pb2_grpc
from paceline_executor.app import ExecutorApp
from paceline_executor.config import ExecutorConfig, ExecutorServiceConfig
from paceline_executor.simulated.driver import LoopDriver
from paceline_router.app import RouterApp
from paceline_router.config import Config
from paceline_runtime.channel import ChannelConfig, channel
from paceline_runtime.errors import PacelineError
from paceline_runtime.status import from_rpc_error
from paceline_scheduler.app import SchedulerApp
from paceline_scheduler.config import SchedulerConfig

TIMEOUT_S = 60.0
"""Longest wait for what takes milliseconds: a machine that is busy with others gives little CPU time."""

LONG_S = 600.0
"""Graces and time-outs of the product: nothing runs out in a test but what it sets shorter, on any machine."""

ENDLESS_TOKENS = 100_000
"""Tokens of a request that is still running when a test cancels it or ends."""

_GRPC = {
    "keepalive_s": LONG_S,
    "keepalive_timeout_s": LONG_S,
    "reconnect_min_ms": 20,
    "reconnect_max_ms": 200,
}
_SERVER = {"drain_grace_s": 0.0, "unary_timeout_s": LONG_S, "grpc": _GRPC}
_CHANNEL = {"unary_timeout_s": LONG_S, "grpc": _GRPC}

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def spec(text: str = "hello", tokens: int = 16, **fields: Any) -> generation_pb2.GenerationSpec:
    """A request that answers exactly `tokens` tokens."""
    sampling = attempt_pb2.SamplingParams(seed=7, ignore_eos=True)
    given = {"text": text, "max_tokens": tokens, "streaming": True, "sampling": sampling} | fields
    if "token_ids" in fields or "messages" in fields:
        del given["text"]
    return generation_pb2.GenerationSpec(**given)


class Answer:
    """What one stream brought: checks that indices follow one another."""

    def __init__(self, from_index: int = 0) -> None:
        self.accepted: generation_pb2.Accepted | None = None
        self.finished: generation_pb2.Finished | None = None
        self.first = from_index
        self.ids: list[int] = []
        self.text = ""
        self.messages = 0

    def take(self, first: int, ids: list[int], text: str) -> None:
        assert first == self.first + len(self.ids), "a gap or an overlap reached the client"
        assert self.finished is None, "tokens after the end"
        self.ids += ids
        self.text += text
        self.messages += 1

    @property
    def count(self) -> int:
        return self.first + len(self.ids)

    @property
    def reason(self) -> int:
        assert self.finished is not None
        return self.finished.finish_reason


class SessionClient:
    """A client session: answers by stream id."""

    def __init__(self, stub: router_pb2_grpc.RouterServiceStub) -> None:
        self._call: Any = stub.Session()
        self._reader: asyncio.Task[None] | None = None
        self._changed = asyncio.Condition()
        self.answers: dict[int, Answer] = {}
        self.error: PacelineError | None = None
        self._next = 0

    async def open(self) -> "SessionClient":
        await self._call.write(router_pb2.SessionRequest(open=router_pb2.SessionOpen(client_id="test")))
        self._reader = asyncio.create_task(self._read())
        return self

    async def submit(self, given: generation_pb2.GenerationSpec, token_limit: int = 0) -> Answer:
        self._next += 1
        answer = self.answers[self._next] = Answer()
        message = router_pb2.SessionSubmit(stream_id=self._next, spec=given, token_limit=token_limit)
        await self.send(submit=message)
        return answer

    async def attach(self, request_id: str, from_index: int = 0, token_limit: int = 0) -> Answer:
        self._next += 1
        answer = self.answers[self._next] = Answer(from_index)
        message = router_pb2.SessionAttach(
            stream_id=self._next, request_id=request_id, from_index=from_index, token_limit=token_limit
        )
        await self.send(attach=message)
        return answer

    def stream_of(self, answer: Answer) -> int:
        return next(stream for stream, known in self.answers.items() if known is answer)

    async def cancel(self, answer: Answer) -> None:
        await self.send(cancel=router_pb2.SessionCancel(stream_id=self.stream_of(answer)))

    async def credit(self, answer: Answer, limit: int) -> None:
        credits = router_pb2.SessionCredits(stream_ids=[self.stream_of(answer)], token_limits=[limit])
        await self.send(credits=credits)

    async def send(self, **fields: Any) -> None:
        await self._call.write(router_pb2.SessionRequest(**fields))

    async def until(self, condition: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> None:
        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait_for(lambda: condition() or self.error is not None)

    async def ended(self, *answers: Answer) -> None:
        await self.until(lambda: all(a.finished is not None for a in answers))

    async def done_writing(self) -> None:
        await self._call.done_writing()

    async def closed(self) -> None:
        assert self._reader is not None
        async with asyncio.timeout(TIMEOUT_S):
            await asyncio.wait([self._reader])

    async def hang_up(self) -> None:
        self._call.cancel()
        await self.closed()

    async def _read(self) -> None:
        try:
            async for message in self._call:
                async with self._changed:
                    self._take(message)
                    self._changed.notify_all()
        except grpc.RpcError as error:
            self.error = from_rpc_error(error)
        except asyncio.CancelledError:
            pass
        async with self._changed:
            self._changed.notify_all()

    def _take(self, message: router_pb2.SessionResponse) -> None:
        for accepted in message.accepted:
            self.answers[accepted.stream_id].accepted = accepted.accepted
        tokens = message.tokens
        ids = np.frombuffer(tokens.payload.token_ids, "<i4").tolist()
        lengths = np.frombuffer(tokens.payload.text_lengths, "<u4").tolist()
        text, at, byte = tokens.payload.text, 0, 0
        for stream, first, count in zip(tokens.stream_ids, tokens.first_indices, tokens.counts, strict=True):
            size = sum(lengths[at : at + count])
            piece = text[byte : byte + size].decode()
            self.answers[stream].take(first, ids[at : at + count], piece)
            at, byte = at + count, byte + size
        for finished in message.finished:
            self.answers[finished.stream_id].finished = finished.finished


class Brake(LoopDriver):
    """The clock of a simulated engine, which a test can stop: the engine then stays in the middle of its step."""

    def __init__(self) -> None:
        super().__init__()
        self._held: list[Callable[[], None]] | None = None

    def call_at(self, due_s: float, callback: Callable[[], None]) -> None:
        super().call_at(due_s, lambda: self._call(callback))

    def hold(self) -> None:
        self._held = self._held or []

    def go_on(self) -> None:
        held, self._held = self._held or [], None
        for callback in held:
            callback()

    def _call(self, callback: Callable[[], None]) -> None:
        if self._held is None:
            callback()
        else:
            self._held.append(callback)


class Line:
    """Starts and ends executors, schedulers and routers with the test."""

    def __init__(self, stack: AsyncExitStack, folder: Path) -> None:
        self._stack = stack
        self.folder = folder
        self.executors: dict[str, ExecutorApp] = {}
        self.schedulers: dict[str, SchedulerApp] = {}
        self._brakes: dict[str, Brake] = {}
        self._running: set[int] = set()

    async def executor(self, engine_id: str, listen: str = "127.0.0.1:0", **fields: Any) -> ExecutorApp:
        simulated = {"time_scale": fields.pop("time_scale", 0.05)}
        simulates = fields.get("backend", "simulated") == "simulated"
        config = ExecutorConfig(
            **{
                "listen": listen,
                "engine_id": engine_id,
                "backend": "simulated",
                "model": "sim",
                "context_tokens": 2 * ENDLESS_TOKENS if simulates else 2048,
                "orphan_ttl_s": LONG_S,
                "attach_timeout_s": LONG_S,
                "stall_pause_s": LONG_S,
                "pull_timeout_s": LONG_S,
                "simulated": simulated,
                "server": _SERVER,
                "channel": _CHANNEL,
                **fields,
            }
        )
        app = ExecutorApp(ExecutorServiceConfig(executor=config))
        with pytest.MonkeyPatch.context() as patch:
            if simulates:
                brake = self._brakes[engine_id] = Brake()
                patch.setattr("paceline_executor.app.LoopDriver", lambda: brake)
            await self._enter(app)
        self.executors[engine_id] = app
        return app

    def hold(self, engine_id: str) -> None:
        """Stop a simulated engine in the middle of its step: what runs there runs on until `go_on`, and no further."""
        self._brakes[engine_id].hold()

    def go_on(self, engine_id: str) -> None:
        """Let an engine that was held go on."""
        self._brakes[engine_id].go_on()

    async def engine(self, engine_id: str, **fields: Any) -> SchedulerApp:
        """An executor and its scheduler."""
        executor = await self.executor(engine_id, **fields)
        return await self.scheduler(engine_id, executor.address)

    async def scheduler(self, engine_id: str, executor: str, **fields: Any) -> SchedulerApp:
        config = {
            "listen": "127.0.0.1:0",
            "executor": executor,
            "load_interval_ms": 20.0,
            "engine_lost_after_s": LONG_S,
            "attach_timeout_s": LONG_S,
            "router_grace_s": LONG_S,
            "ended_ttl_s": LONG_S,
            "redial_max_s": 0.2,
            "server": _SERVER,
            "channel": _CHANNEL,
        }
        app = SchedulerApp(SchedulerConfig(**{**config, **fields}))
        await self._enter(app)
        self.schedulers[engine_id] = app
        await until(lambda: app.loop.state.engine.attached)
        return app

    @staticmethod
    async def until(condition: Callable[[], bool]) -> None:
        """Wait until a condition that nobody announces is true."""
        await until(condition)

    async def router(
        self,
        *,
        store: bool = False,
        close_timeout_s: float = TIMEOUT_S,
        wait: bool = True,
        auth: dict[str, Any] | None = None,
        server: dict[str, Any] | None = None,
        rectify: dict[str, Any] | None = None,
        **fields: Any,
    ) -> "Router":
        """A router of all schedulers; `wait`: until it knows their engines. `close_timeout_s`: of its store."""
        config = {
            "listen": "127.0.0.1:0",
            "schedulers": tuple(app.address for app in self.schedulers.values()),
            "scheduler_grace_s": LONG_S,
            "detach_ttl_s": LONG_S,
            "heartbeat_lost_s": LONG_S,
            "leave_out_after_ms": LONG_S * 1000,
            "cancel_timeout_s": LONG_S,
            "max_wait_ms": LONG_S * 1000,
            "sync_timeout_s": LONG_S,
            "retain_s": LONG_S,
            "predictor_timeout_ms": LONG_S * 1000,
            "redial_max_ms": 200.0,
            "rectify": {"timeout_s": LONG_S, **(rectify or {})},
            "server": {**_SERVER, **(server or {})},
            "channel": _CHANNEL,
        }
        url = f"sqlite+aiosqlite:///{self.folder / 'router.db'}" if store else ""
        app = RouterApp(
            Config.model_validate(
                {
                    "router": {**config, **fields},
                    "store": {"url": url, "close_timeout_s": close_timeout_s, "lease_ttl_s": LONG_S},
                    "auth": auth or {},
                }
            )
        )
        await self._enter(app)
        router = Router(app, self._stack)
        if wait:
            await router.until(lambda: sum(e.up for e in app.fleet) >= len(self.schedulers))
        return router

    def connect(self, address: str) -> grpc.aio.Channel:
        """A channel to any part, closed with the test."""
        connection = channel(address, ChannelConfig.model_validate(_CHANNEL))
        self._stack.push_async_callback(connection.close)
        return connection

    async def session(self, address: str) -> SessionClient:
        """A client session with a router of another process."""
        client = await SessionClient(router_pb2_grpc.RouterServiceStub(self.connect(address))).open()
        self._stack.push_async_callback(client.hang_up)
        return client

    async def kill_executor(self, engine_id: str) -> None:
        """An executor dies without a word, and its scheduler takes the engine for lost as soon as it notices."""
        app = self.executors.pop(engine_id)
        self.schedulers[engine_id].link._lost_after_s = 0.0
        await app.server.grpc.stop(0)
        await self.stop(app)

    async def stop(self, app: Any) -> None:
        """End a part before the test ends."""
        if id(app) in self._running:
            self._running.discard(id(app))
            async with asyncio.timeout(TIMEOUT_S):
                await app.__aexit__(None, None, None)

    async def _enter(self, app: Any) -> None:
        await app.__aenter__()
        self._running.add(id(app))
        self._stack.push_async_callback(self.stop, app)


class Router:
    """A running router with a client channel; `token`: what the client sends of itself."""

    def __init__(self, app: RouterApp, stack: AsyncExitStack, token: str | None = None) -> None:
        self.app = app
        connection = channel(app.address, ChannelConfig.model_validate({**_CHANNEL, "token": token}))
        stack.push_async_callback(connection.close)
        self.stub = router_pb2_grpc.RouterServiceStub(connection)
        self.fleet_stub = router_pb2_grpc.FleetServiceStub(connection)
        self._stack = stack

    def caller(self, token: str) -> "Router":
        """The same router, seen by the owner of a token."""
        return Router(self.app, self._stack, token)

    def set(self, **fields: Any) -> None:
        """Change settings of the running router, such as a grace that is to run out now and not earlier."""
        for name, value in fields.items():
            assert hasattr(self.app._config.router, name)
            object.__setattr__(self.app._config.router, name, value)

    async def session(self) -> SessionClient:
        client = await SessionClient(self.stub).open()
        self._stack.push_async_callback(client.hang_up)
        return client

    async def generate(self, given: generation_pb2.GenerationSpec) -> Answer:
        """One request to its end. Raises PacelineError when it is refused."""
        answer = Answer()
        await self.read(self.stub.Generate(router_pb2.GenerateRequest(spec=given)), answer)
        return answer

    @staticmethod
    def tape() -> Answer:
        """An empty answer, to read a stream into."""
        return Answer()

    async def attach(self, request_id: str, from_index: int = 0) -> Answer:
        answer = Answer(from_index)
        request = router_pb2.AttachRequest(request_id=request_id, from_index=from_index)
        await self.read(self.stub.Attach(request), answer)
        return answer

    async def read(self, call: Any, answer: Answer, until: Callable[[], bool] = lambda: False) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                async for event in call:
                    kind = event.WhichOneof("event")
                    if kind == "tokens":
                        tokens = event.tokens
                        assert len(tokens.text.encode()) == sum(tokens.text_lengths)
                        answer.take(tokens.first_index, list(tokens.token_ids), tokens.text)
                    else:
                        setattr(answer, kind, getattr(event, kind))
                    if until():
                        return
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None

    async def refused(self, given: generation_pb2.GenerationSpec) -> PacelineError:
        with pytest.raises(PacelineError) as caught:
            await self.generate(given)
        return caught.value

    async def record(self, request_id: str) -> router_pb2.RequestRecord:
        request = router_pb2.GetRequestRequest(request_id=request_id)
        return (await self.stub.GetRequest(request)).request

    async def cancel(self, request_id: str) -> int:
        return (await self.stub.Cancel(router_pb2.CancelRequest(request_id=request_id))).state

    async def engines(self) -> dict[str, router_pb2.EngineRecord]:
        listed = await self.stub.ListEngines(router_pb2.ListEnginesRequest())
        return {record.engine_id: record for record in listed.engines}

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition that nobody announces is true."""
        await until(condition)


async def until(condition: Callable[[], bool]) -> None:
    """Look again and again: for conditions inside the parts, which nobody announces."""
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.fixture
async def line(tmp_path: Path) -> AsyncIterator[Line]:
    """An empty line."""
    async with AsyncExitStack() as stack:
        yield Line(stack, tmp_path)


@pytest.fixture(name="spec")
def spec_fixture() -> Callable[..., generation_pb2.GenerationSpec]:
    """Makes requests."""
    return spec


@pytest.fixture
def endless(
    spec: Callable[..., generation_pb2.GenerationSpec],
) -> Callable[..., generation_pb2.GenerationSpec]:
    """Makes requests that do not end by themselves."""
    return partial(spec, tokens=ENDLESS_TOKENS)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time-outs that no setting reaches, long; and what only waits for company, soon."""
    monkeypatch.setattr("paceline_router.admission._STORE_LOOKUP_S", LONG_S)
    monkeypatch.setattr("paceline_router.readers._STORE_LOOKUP_S", LONG_S)
    monkeypatch.setattr("paceline_router.predictor_link._REVISION_TIMEOUT_S", LONG_S)
    monkeypatch.setattr("paceline_router.predictor_link._OBSERVE_TIMEOUT_S", LONG_S)
    monkeypatch.setattr("paceline_router.predictor_link.OBSERVE_INTERVAL_S", 0.05)
