"""What the router and the schedulers say about themselves, in one picture."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field, replace

import grpc

from paceline.common.v1 import slo_pb2
from paceline.router.v1 import router_pb2, router_pb2_grpc
from paceline.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from paceline_runtime.channel import ChannelConfig, channel

_CALL_S = 2.0


@dataclass(frozen=True, slots=True)
class EngineView:
    """One engine as the router sees it."""

    engine_id: str
    state: str
    model: str
    backend: str
    queued: int
    running: int
    paused: int
    kv_used_tokens: int
    kv_capacity_tokens: int
    tokens_per_s: float
    speed_factor: float
    load_age_ms: float
    scheduler: str
    plan: "PlanView | None" = None
    """What its scheduler says of its plan; None when it does not answer."""


@dataclass(frozen=True, slots=True)
class PlanView:
    """The plan in force on an engine, and what was given up, preempted and resumed since its scheduler started."""

    policy: str
    plan_ms: float
    listed: int
    reasons: dict[str, int]
    """Entries of the plan by the policy's reason."""
    shed: dict[str, int]
    preempted: dict[str, int]
    resumed: dict[str, int]


@dataclass(frozen=True, slots=True)
class ClassView:
    """Attainment of one class over the trackers' window."""

    slo_class: str
    ended: int
    attained: int

    @property
    def share(self) -> float:
        """Attained share; not a number without ended requests."""
        return self.attained / self.ended if self.ended else float("nan")


@dataclass(frozen=True, slots=True)
class FleetView:
    """The fleet now; `problem` says why it could not be read."""

    engines: tuple[EngineView, ...] = ()
    attainment: tuple[ClassView, ...] = ()
    problem: str = field(default="")


class FleetReader:
    """Asks a router, and the schedulers it names, over channels that are kept open."""

    def __init__(self, router: str, config: ChannelConfig | None = None) -> None:
        """`config`: how to dial the router; its token is for nobody else."""
        self._router = router
        self._config = config
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def __aenter__(self) -> "FleetReader":
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in self._channels.values():
            await connection.close()

    async def read(self) -> FleetView:
        """The fleet now. Never raises for a service that is away: `problem` is set."""
        stub = router_pb2_grpc.RouterServiceStub(self._channel(self._router))
        try:
            answer = await stub.ListEngines(router_pb2.ListEnginesRequest(), timeout=_CALL_S)
        except grpc.aio.AioRpcError as error:
            return FleetView(problem=f"router {self._router}: {error.code().name} {error.details()}")
        engines = tuple(
            sorted((_engine(record) for record in answer.engines), key=lambda engine: engine.engine_id)
        )
        said = await asyncio.gather(*(self._ask(engine.scheduler) for engine in engines))
        loads = [load for load, _ in said]
        engines = tuple(replace(engine, plan=plan) for engine, (_, plan) in zip(engines, said, strict=True))
        ended: Counter[int] = Counter()
        attained: Counter[int] = Counter()
        for load in loads:
            for row in load.attainment if load is not None else ():
                ended[row.slo_class] += row.ended
                attained[row.slo_class] += row.attained
        classes = tuple(
            ClassView(class_name(number), ended[number], attained[number]) for number in sorted(ended)
        )
        return FleetView(engines, classes)

    async def _ask(self, scheduler: str) -> tuple[scheduler_pb2.Load | None, PlanView | None]:
        stub = scheduler_pb2_grpc.SchedulerServiceStub(self._channel(scheduler))
        try:
            load: scheduler_pb2.GetLoadResponse = await stub.GetLoad(
                scheduler_pb2.GetLoadRequest(), timeout=_CALL_S
            )
            plan: scheduler_pb2.GetPlanResponse = await stub.GetPlan(
                scheduler_pb2.GetPlanRequest(), timeout=_CALL_S
            )
        except grpc.aio.AioRpcError:
            return None, None  # the router's picture already shows the engine as down
        return load.load, _plan(plan)

    def _channel(self, address: str) -> grpc.aio.Channel:
        if address not in self._channels:
            self._channels[address] = channel(address, self._config if address == self._router else None)
        return self._channels[address]


def class_name(number: int) -> str:
    """`latency`, `deadline`, `task` or `best effort`."""
    name: str = slo_pb2.SloClass.Name(slo_pb2.SloClass.ValueType(number))
    return name.removeprefix("SLO_CLASS_").replace("_", " ").lower()


def _plan(plan: scheduler_pb2.GetPlanResponse) -> PlanView:
    listed = [entry.reason for entry in plan.entries if not entry.evict]
    return PlanView(
        policy=plan.policy,
        plan_ms=plan.plan_ms,
        listed=len(listed),
        reasons=dict(Counter(listed)),
        shed=dict(plan.shed),
        preempted=dict(plan.preempted),
        resumed=dict(plan.resumed),
    )


def _engine(record: router_pb2.EngineRecord) -> EngineView:
    capabilities = record.capabilities
    return EngineView(
        engine_id=record.engine_id or "?",
        state=router_pb2.EngineState.Name(record.state).removeprefix("ENGINE_STATE_").lower(),
        model=capabilities.model,
        backend=capabilities.backend,
        queued=record.queued,
        running=record.running,
        paused=record.paused,
        kv_used_tokens=record.kv_used_tokens,
        kv_capacity_tokens=capabilities.kv_capacity_tokens,
        tokens_per_s=record.tokens_per_s,
        speed_factor=capabilities.speed_factor,
        load_age_ms=record.load_age_ms,
        scheduler=record.scheduler_endpoint,
    )
