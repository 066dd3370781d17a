"""The fleet: its engines, and the table that placement policies read."""

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from paceline.common.v1 import attempt_pb2, engine_pb2
from paceline.scheduler.v1 import scheduler_pb2
from paceline_core.headroom import HORIZONS_MS
from paceline_core.placement.fleet_table import EngineLimits, FleetTable
from paceline_core.placement.view import FleetView, Floats, RequestView
from paceline_router.attempt import Attempt
from paceline_router.engine import Engine
from paceline_router.step_costs import StepCostPool

if TYPE_CHECKING:
    from paceline_router.scheduler_link import SchedulerLink

__all__ = ["Engine", "Fleet"]

_REPORTED: Final = (
    "queued",
    "running",
    "queued_prefill_tokens",
    "expected_output_tokens",
    "kv_used_tokens",
    "kv_capacity_tokens",
    "max_batch",
    "tokens_per_s",
)
_COMPLETED: Final = (attempt_pb2.FINISH_REASON_STOP, attempt_pb2.FINISH_REASON_LENGTH)


class Fleet:
    """Engines by id. What is reported of them and placed on them goes into the table, row by row."""

    def __init__(self, leave_out_after_ms: float) -> None:
        self.table = FleetTable(leave_out_after_ms)
        self._by_id: dict[str, Engine] = {}
        self._order: list[Engine] = []
        self._costs = StepCostPool()
        self._models: list[str] = []
        self.on_new_life: Callable[[Engine], None] = lambda engine: None

    def __iter__(self) -> Iterator[Engine]:
        return iter(self._order)

    def __len__(self) -> int:
        return len(self._order)

    def get(self, engine_id: str) -> Engine | None:
        """The engine, or None."""
        return self._by_id.get(engine_id)

    def at(self, row: int) -> Engine:
        """The engine at an index of the view."""
        return self._order[row]

    def models(self) -> list[str]:
        """Models that some engine serves or served, sorted. Not to be written."""
        return self._models

    def model_with(self, adapter: str) -> str:
        """The model that some engine serves with this LoRA adapter; empty: none does."""
        return next((e.model for e in self._order if adapter in e.capabilities.adapters), "")

    def adapts(self, model: str, adapter: str) -> bool:
        """True if some engine serves the model with this LoRA adapter."""
        return any(e.model == model and adapter in e.capabilities.adapters for e in self._order)

    def without(self, adapter: str) -> frozenset[str]:
        """Ids of the engines that do not have this LoRA adapter."""
        return frozenset(e.engine_id for e in self._order if adapter not in e.capabilities.adapters)

    def join(self, engine_id: str, link: "SchedulerLink") -> Engine:
        """The engine of this id, new or known; `link` is its scheduler now."""
        engine = self._by_id.get(engine_id)
        if engine is None:
            engine = Engine(engine_id, self.table.join(engine_id), link)
            self._by_id[engine_id] = engine
            self._order.append(engine)
        engine.link = link
        return engine

    def came_up(
        self,
        engine: Engine,
        identity: engine_pb2.EngineIdentity,
        capabilities: engine_pb2.EngineCapabilities,
        now_ms: float,
    ) -> None:
        """The engine is there, in this incarnation."""
        engine.up = True
        if engine.incarnation not in (0, identity.incarnation):
            self.on_new_life(engine)
        engine.incarnation = identity.incarnation
        engine.started_unix_ms = identity.started_unix_ms
        engine.capabilities.CopyFrom(capabilities)
        self._models = sorted({known.model for known in self._order if known.model})
        limits = EngineLimits(
            max_batch=capabilities.max_batch,
            kv_capacity_tokens=capabilities.kv_capacity_tokens,
            max_context_tokens=capabilities.max_context_tokens,
            speed_factor=capabilities.speed_factor or 1.0,
        )
        self.table.came_up(engine.row, engine.incarnation, engine.model, limits, now_ms)
        engine.load_at_ms = now_ms
        self.refresh(engine)
        self._take_model(engine, engine.load.model)

    def went_down(self, engine: Engine) -> None:
        """Its session or its incarnation is gone."""
        engine.up = False
        self.table.went_down(engine.row)
        self.refresh(engine)

    def take_load(self, engine: Engine, load: scheduler_pb2.Load, now_ms: float) -> None:
        """A load report arrived."""
        engine.load = load
        engine.load_at_ms = now_ms
        engine.scheduler_draining = load.draining
        if load.HasField("model"):
            self._take_model(engine, load.model)
        attempts = engine.attempts.values()
        written = [attempt.request.output.count for attempt in attempts]
        self.table.progressed(engine.row, engine.attempts, written, now_ms)
        numbers = {name: float(getattr(load, name)) for name in _REPORTED}
        numbers["paused"] = float(load.paused + load.evicted)
        curves = load.headroom
        told = len(curves.horizon_ms) == len(HORIZONS_MS) and (
            curves.free_decode_tokens,
            curves.free_prefill_tokens,
            curves.free_kv_tokens,
        )
        self.table.report(engine.row, numbers, now_ms, told or None)
        self.refresh(engine)

    def placed(self, engine: Engine, attempt: Attempt, request: RequestView) -> None:
        """An attempt is sent there that no report knows yet."""
        self.holds(engine, attempt)
        moves = attempt.request.moves
        self.table.placed(engine.row, attempt.key, request, attempt.placed_ms, moves)

    def holds(self, engine: Engine, attempt: Attempt) -> None:
        """The attempt lives there."""
        engine.attempts[attempt.key] = attempt
        engine.idle.clear()

    def suspect(self, attempt: Attempt) -> None:
        """The attempt is at risk: how far it is by now is told, and the next look takes it in."""
        if self.table.residents is not None:
            self.table.residents.progressed(attempt.key, attempt.request.output.count)
            self.table.residents.due(attempt.key)

    def revised(self, attempt: Attempt, cdf: Floats) -> None:
        """A newer length distribution of the request."""
        if self.table.residents is not None:
            self.table.residents.reestimated(attempt.key, cdf)

    def seen(self, engine: Engine, key: int) -> None:
        """The engine answered for the attempt: the next report covers it."""
        self.table.seen(key)

    def gone(self, engine: Engine, key: int) -> None:
        """The attempt is over."""
        attempt = engine.attempts.pop(key, None)
        if not engine.attempts:
            engine.idle.set()
        completed = attempt is not None and attempt.finish_reason in _COMPLETED
        tokens = attempt.request.output.count if attempt is not None and completed else 0
        self.table.ended(key, time.monotonic() * 1000, tokens)

    def refresh(self, engine: Engine) -> None:
        """Take over a change of `up` or `draining`."""
        draining = engine.draining or engine.scheduler_draining
        self.table.flags(engine.row, up=engine.up, draining=draining)

    def idle(self, model: str) -> bool:
        """True if no engine of the model has work of this router, or work that waits."""
        return not any(
            e.attempts or e.load.queued or e.load.running for e in self._order if e.up and e.model == model
        )

    def view(self, now_ms: float) -> FleetView:
        """The fleet now. The arrays are the table's own: valid until its next change, not to be written."""
        return self.table.view(now_ms)

    def _take_model(self, engine: Engine, model: engine_pb2.EngineModel) -> None:
        """Coefficients as fitted, with what an engine of few samples borrows from its peers."""
        self.table.costs(engine.row, dict(self._costs.take(engine.engine_id, engine.capabilities, model)))
