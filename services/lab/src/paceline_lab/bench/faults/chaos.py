"""Breaks parts of the line, one fault after the other, and waits each time until everything is back."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import grpc

from paceline.common.v1 import attempt_pb2
from paceline.router.v1 import router_pb2, router_pb2_grpc
from paceline_lab.bench.faults.plan import Fault, FaultBenchError, FaultPlan
from paceline_runtime.channel import channel

_POLL_S = 0.1
_CALL_S = 5.0
_STORE_RESTART_S = 0.5


class Parts(Protocol):
    """The processes of the line. Names: router, predictor, scheduler-<engine>, executor-<engine>."""

    @property
    def router(self) -> str:
        """Address of the router."""

    @property
    def engines(self) -> Sequence[str]:
        """Names of the engines."""

    def pid(self, name: str) -> int | None:
        """Process id while it lives."""

    def kill(self, name: str) -> None:
        """SIGKILL; somebody starts it again."""

    def freeze(self, name: str) -> None:
        """SIGSTOP."""

    def thaw(self, name: str) -> None:
        """SIGCONT."""

    def ready(self) -> bool:
        """True while all processes run and listen."""


class Database(Protocol):
    """The database of the ledger."""

    @property
    def name(self) -> str:
        """Kind of database."""

    @property
    def own(self) -> bool:
        """It may be taken down."""

    async def go_down(self) -> None:
        """Take no more work."""

    async def come_back(self) -> None:
        """Take work again."""

    async def live_rows(self) -> int:
        """Requests of the ledger that have not ended."""


@dataclass(slots=True)
class FaultRecord:
    """One fault: what, when, and what was going on."""

    at_s: float
    durability: str
    fault: str
    at_request: int
    hit: dict[str, int] = field(default_factory=dict)
    """Processes with the pid they had."""
    live: int = 0
    """Requests under way."""
    streaming: int = 0
    """Of them, those that were in the middle of their tokens."""
    back_s: float = 0.0
    """Until everything served again."""
    lives: dict[str, int] = field(default_factory=dict)
    """Incarnations of the engines that were lost."""

    def as_dict(self) -> dict[str, Any]:
        """For the report."""
        return asdict(self)


class Chaos:
    """Does the faults. `cut` breaks client sessions."""

    def __init__(
        self, plan: FaultPlan, parts: Parts, database: Database, cut: Callable[[random.Random], None]
    ) -> None:
        self._plan = plan
        self._parts = parts
        self._database = database
        self._cut = cut
        self._rng = random.Random(f"{plan.seed} chaos")
        self._began_s = time.monotonic()
        self.records: list[FaultRecord] = []

    async def inject(
        self,
        fault: Fault,
        mode: str,
        at_request: int,
        live: int,
        streaming: int,
        injected: Callable[[], None],
    ) -> FaultRecord:
        """One fault; returns when everything is back. `injected` is called as soon as it has happened."""
        victims = await self._victims(fault)
        began_s = time.monotonic()
        record = FaultRecord(
            began_s - self._began_s, mode, fault.value, at_request, live=live, streaming=streaming
        )
        record.hit = {name: self._parts.pid(name) or 0 for name in victims}
        frozen = fault in (Fault.FREEZE_EXECUTOR, Fault.FREEZE_SCHEDULER)
        if any(name.startswith("executor-") for name in victims) and not frozen:
            lives = await self._incarnations()
            record.lives = {
                name: lives[name.removeprefix("executor-")] for name in victims if name != "router"
            }
        self.records.append(record)
        if frozen:
            await self._freeze(victims, injected)
        elif fault in (Fault.STORE_RESTART, Fault.STORE_OUTAGE):
            away_s = self._plan.outage_s if fault is Fault.STORE_OUTAGE else _STORE_RESTART_S
            await self._take_store_down(away_s, injected)
        else:
            for name in victims:
                self._parts.kill(name)
            if fault is Fault.CUT:
                self._cut(self._rng)
            injected()
        await self.settled(None if frozen else record)
        record.back_s = time.monotonic() - began_s
        return record

    async def settled(self, killed: FaultRecord | None = None) -> None:
        """Wait until the router can use every engine; those that were killed in their next lives.

        Raises FaultBenchError.
        """
        try:
            async with asyncio.timeout(self._plan.patience_s):
                while not await self._all_serve(killed):  # noqa: ASYNC110 - other processes: nothing to wait on
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            last = self.records[-1].as_dict() if self.records else "none"
            raise FaultBenchError(
                f"not everything was back after {self._plan.patience_s:g} s; last fault: {last}"
            ) from None

    async def _all_serve(self, killed: FaultRecord | None) -> bool:
        if not self._parts.ready():
            return False
        hit, lives = (killed.hit, killed.lives) if killed is not None else ({}, {})
        if any(self._parts.pid(name) in (None, pid) for name, pid in hit.items()):
            return False
        up = await self._incarnations()
        if any(up.get(name.removeprefix("executor-")) == life for name, life in lives.items()):
            return False
        return up.keys() >= set(self._parts.engines)

    async def _incarnations(self) -> dict[str, int]:
        """Engines that the router can use, with their lives; none while it does not answer."""
        try:
            async with channel(self._parts.router) as connection:
                stub = router_pb2_grpc.RouterServiceStub(connection)
                fleet = await stub.ListEngines(router_pb2.ListEnginesRequest(), timeout=_CALL_S)
        except grpc.aio.AioRpcError:
            return {}
        usable = router_pb2.ENGINE_STATE_UP
        return {engine.engine_id: engine.incarnation for engine in fleet.engines if engine.state == usable}

    async def _freeze(self, victims: Sequence[str], injected: Callable[[], None]) -> None:
        for name in victims:
            self._parts.freeze(name)
        try:
            injected()
            await asyncio.sleep(self._plan.freeze_s)
        finally:
            for name in victims:
                self._parts.thaw(name)

    async def _take_store_down(self, away_s: float, injected: Callable[[], None]) -> None:
        await self._database.go_down()
        try:
            injected()
            await asyncio.sleep(away_s)
        finally:
            await self._database.come_back()

    async def _victims(self, fault: Fault) -> list[str]:
        """Whom it hits. An executor is spared while a request on it has lost an engine before.

        By contract a request that was in flight in two crashes fails, so that one poisoned prompt cannot take the
        fleet: such ends would be no defects.
        """
        match fault:
            case Fault.ROUTER:
                return ["router"]
            case Fault.PREDICTOR:
                return ["predictor"]
            case Fault.SCHEDULER | Fault.FREEZE_SCHEDULER:
                return [f"scheduler-{self._rng.choice((await self._busy())[1])}"]
            case Fault.EXECUTOR | Fault.FREEZE_EXECUTOR:
                return [f"executor-{await self._engine_to_lose()}"]
            case Fault.ROUTER_AND_EXECUTOR:
                return ["router", f"executor-{await self._engine_to_lose()}"]
            case _:
                return []

    async def _engine_to_lose(self) -> str:
        try:
            async with asyncio.timeout(self._plan.patience_s):
                while not (candidates := (await self._busy())[0]):  # noqa: ASYNC110 - as above
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise FaultBenchError(
                "every engine holds a request that has lost one before, for too long"
            ) from None
        return self._rng.choice(candidates)

    async def _busy(self) -> tuple[list[str], list[str]]:
        """Engines that may be lost, and all: each time those with work, if there are any."""
        async with channel(self._parts.router) as connection:
            stub = router_pb2_grpc.RouterServiceStub(connection)
            query = router_pb2.ListRequestsRequest(live_only=True, limit=1000)
            live = (await stub.ListRequests(query, timeout=_CALL_S)).requests
        spared: set[str] = set()
        busy: set[str] = set()
        replaying = False
        for request in live:
            running = [
                a for a in request.attempts if a.finish_reason == attempt_pb2.FINISH_REASON_UNSPECIFIED
            ]
            busy.update(attempt.engine_id for attempt in running)
            spared.update(attempt.engine_id for attempt in running if attempt.number > 1)
            replaying |= bool(request.attempts) and not running
        engines = list(self._parts.engines)
        losable = [] if replaying else [engine for engine in engines if engine not in spared]
        return _rather(losable, busy), _rather(engines, busy)


def _rather(engines: list[str], busy: set[str]) -> list[str]:
    return [engine for engine in engines if engine in busy] or engines
