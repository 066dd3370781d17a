"""A router over real schedulers and executors with simulated engines, and clients of it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from paceline.common.v1 import attempt_pb2
from paceline.router.v1 import generation_pb2, router_pb2, router_pb2_grpc
from paceline_executor.app import ExecutorApp
from paceline_executor.config import ExecutorConfig, ExecutorServiceConfig
from paceline_router.app import RouterApp
from paceline_router.config import Config
from paceline_runtime.channel import ChannelConfig, channel
from paceline_runtime.errors import PacelineError
from paceline_runtime.status import from_rpc_error
from paceline_scheduler.app import SchedulerApp
from paceline_scheduler.config import SchedulerConfig

TIMEOUT_S = 60.0
"""Longest wait for what takes milliseconds: a machine that is busy with others gives little CPU time."""


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


class Line:
    """Starts and ends executors, schedulers and routers with the test."""

    def __init__(self, stack: AsyncExitStack, folder: Path) -> None:
        self._stack = stack
        self.folder = folder
        self.executors: dict[str, ExecutorApp] = {}
        self.schedulers: dict[str, SchedulerApp] = {}
        self._running: set[int] = set()

    async def executor(self, engine_id: str, listen: str = "127.0.0.1:0", **fields: Any) -> ExecutorApp:
        simulated = {"time_scale": fields.pop("time_scale", 0.05)}
        config = ExecutorConfig(
            **{
                "listen": listen,
                "engine_id": engine_id,
                "backend": "simulated",
                "model": "sim",
                "simulated": simulated,
                "server": {"drain_grace_s": 0.0},
                **fields,
            }
        )
        app = ExecutorApp(ExecutorServiceConfig(executor=config))
        await self._enter(app)
        self.executors[engine_id] = app
        return app

    async def engine(self, engine_id: str, **fields: Any) -> SchedulerApp:
        """An executor and its scheduler."""
        executor = await self.executor(engine_id, **fields)
        return await self.scheduler(engine_id, executor.address)

    async def scheduler(self, engine_id: str, executor: str, **fields: Any) -> SchedulerApp:
        config = {
            "listen": "127.0.0.1:0",
            "executor": executor,
            "load_interval_ms": 20.0,
            "engine_lost_after_s": 0.2,
            "server": {"drain_grace_s": 0.0},
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
        self, *, store: bool = False, wait: bool = True, auth: dict[str, Any] | None = None, **fields: Any
    ) -> "Router":
        config = {
            "listen": "127.0.0.1:0",
            "schedulers": tuple(app.address for app in self.schedulers.values()),
            "scheduler_grace_s": 1.0,
            "detach_ttl_s": 2.0,
            "server": {"drain_grace_s": 0.0},
        }
        url = f"sqlite+aiosqlite:///{self.folder / 'router.db'}" if store else ""
        app = RouterApp(
            Config.model_validate(
                {
                    "router": {**config, **fields},
                    "store": {"url": url, "close_timeout_s": 0.5},
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
        connection = channel(address, ChannelConfig())
        self._stack.push_async_callback(connection.close)
        return connection

    async def kill_executor(self, engine_id: str) -> None:
        """An executor dies without a word."""
        app = self.executors.pop(engine_id)
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
        connection = channel(app.address, ChannelConfig.model_validate({"token": token}))
        stack.push_async_callback(connection.close)
        self.stub = router_pb2_grpc.RouterServiceStub(connection)
        self.fleet_stub = router_pb2_grpc.FleetServiceStub(connection)
        self._stack = stack

    def caller(self, token: str) -> "Router":
        """The same router, seen by the owner of a token."""
        return Router(self.app, self._stack, token)

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
