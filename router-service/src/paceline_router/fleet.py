"""The fleet: its engines, and the arrays that placement policies read."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import numpy as np

from paceline.common.v1 import engine_pb2
from paceline.scheduler.v1 import scheduler_pb2
from paceline_core.placement.view import FleetView, Floats, StepCosts
from paceline_router.attempt import Attempt
from paceline_router.engine import Engine, Pending
from paceline_router.step_costs import COST_COLUMNS, StepCostPool

if TYPE_CHECKING:
    from paceline_router.scheduler_link import SchedulerLink

__all__ = ["Engine", "Fleet"]

_LOAD_COLUMNS: Final = (
    "queued",
    "running",
    "paused",
    "queued_prefill_tokens",
    "expected_output_tokens",
    "kv_used_tokens",
    "kv_capacity_tokens",
    "max_batch",
    "tokens_per_s",
)
_COLUMNS: Final = (
    *_LOAD_COLUMNS,
    *COST_COLUMNS,
    "load_at_ms",
    "pending_requests",
    "pending_prefill_tokens",
    "pending_output_tokens",
    "max_context_tokens",
    "speed_factor",
    "up",
    "draining",
)
_PLACE: Final = {name: i for i, name in enumerate(_COLUMNS)}


class Fleet:
    """Engines by id. Reports fold into arrays as they come, so that a view costs the same whatever was
    reported."""

    def __init__(self, leave_out_after_ms: float) -> None:
        self._leave_out_after_ms = leave_out_after_ms
        self._by_id: dict[str, Engine] = {}
        self._order: list[Engine] = []
        self._data: Floats = np.zeros((len(_COLUMNS), 8))
        self._costs = StepCostPool()
        self._names: tuple[str, ...] = ()
        self._models: tuple[str, ...] = ()
        self._incarnations: tuple[int, ...] = ()

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
        """Models that some engine serves or served, sorted."""
        return sorted({engine.model for engine in self._order if engine.model})

    def join(self, engine_id: str, link: "SchedulerLink") -> Engine:
        """The engine of this id, new or known; `link` is its scheduler now."""
        engine = self._by_id.get(engine_id)
        if engine is None:
            engine = Engine(engine_id, len(self._order), link)
            if engine.row == self._data.shape[1]:
                self._data = np.concatenate([self._data, np.zeros_like(self._data)], axis=1)
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
        engine.incarnation = identity.incarnation
        engine.started_unix_ms = identity.started_unix_ms
        engine.capabilities.CopyFrom(capabilities)
        self._names = tuple(e.engine_id for e in self._order)
        self._models = tuple(e.model for e in self._order)
        self._incarnations = tuple(e.incarnation for e in self._order)
        self._set(engine, "max_context_tokens", capabilities.max_context_tokens)
        self._set(engine, "speed_factor", capabilities.speed_factor or 1.0)
        self._set(engine, "max_batch", capabilities.max_batch)
        self._set(engine, "kv_capacity_tokens", capabilities.kv_capacity_tokens)
        self._set(engine, "load_at_ms", now_ms)
        engine.load_at_ms = now_ms
        self.refresh(engine)
        self._take_model(engine, engine.load.model)

    def went_down(self, engine: Engine) -> None:
        """Its session or its incarnation is gone."""
        engine.up = False
        engine.in_flight.clear()
        for name in (
            "queued",
            "running",
            "paused",
            "queued_prefill_tokens",
            "expected_output_tokens",
            "kv_used_tokens",
        ):
            self._set(engine, name, 0.0)
        self._sum_in_flight(engine)
        self.refresh(engine)

    def take_load(self, engine: Engine, load: scheduler_pb2.Load, now_ms: float) -> None:
        """A load report arrived."""
        engine.load = load
        engine.load_at_ms = now_ms
        engine.scheduler_draining = load.draining
        for name in _LOAD_COLUMNS:
            self._set(engine, name, getattr(load, name))
        self._set(engine, "paused", load.paused + load.evicted)
        self._set(engine, "load_at_ms", now_ms)
        if load.HasField("model"):
            self._take_model(engine, load.model)
        if engine.in_flight:
            engine.in_flight = {key: p for key, p in engine.in_flight.items() if not p.seen}
        self._sum_in_flight(engine)
        self.refresh(engine)

    def placed(self, engine: Engine, attempt: Attempt, prefill_tokens: float, output_tokens: float) -> None:
        """An attempt is sent there that no report knows yet."""
        self.holds(engine, attempt)
        engine.in_flight[attempt.key] = Pending(prefill_tokens, output_tokens)
        self._sum_in_flight(engine)

    def holds(self, engine: Engine, attempt: Attempt) -> None:
        """The attempt lives there."""
        engine.attempts[attempt.key] = attempt
        engine.idle.clear()

    def seen(self, engine: Engine, key: int) -> None:
        """The engine answered for the attempt: the next report covers it."""
        pending = engine.in_flight.get(key)
        if pending is not None:
            pending.seen = True

    def gone(self, engine: Engine, key: int) -> None:
        """The attempt is over."""
        engine.attempts.pop(key, None)
        if not engine.attempts:
            engine.idle.set()
        if engine.in_flight.pop(key, None) is not None:
            self._sum_in_flight(engine)

    def refresh(self, engine: Engine) -> None:
        """Take over a change of `up` or `draining`."""
        self._set(engine, "up", float(engine.up))
        self._set(engine, "draining", float(engine.draining or engine.scheduler_draining))

    def idle(self, model: str) -> bool:
        """True if no engine of the model has work of this router, or work that waits."""
        return not any(
            e.attempts or e.load.queued or e.load.running for e in self._order if e.up and e.model == model
        )

    def view(self, now_ms: float) -> FleetView:
        """The fleet now. The arrays are the fleet's own: valid until the next change, not to be written."""
        count = len(self._names)
        data = self._data[:, :count]

        def column(name: str) -> Floats:
            row: Floats = data[_PLACE[name]]
            return row

        age_ms = np.maximum(now_ms - column("load_at_ms"), 0.0)
        return FleetView(
            engine_ids=self._names,
            incarnations=self._incarnations,
            models=self._models,
            up=column("up") > 0,
            draining=column("draining") > 0,
            stale=age_ms > self._leave_out_after_ms,
            load_age_ms=age_ms,
            costs=StepCosts(*(column(name) for name in COST_COLUMNS)),
            queued=column("queued"),
            running=column("running"),
            paused=column("paused"),
            pending_requests=column("pending_requests"),
            pending_prefill_tokens=column("pending_prefill_tokens"),
            pending_output_tokens=column("pending_output_tokens"),
            queued_prefill_tokens=column("queued_prefill_tokens"),
            expected_output_tokens=column("expected_output_tokens"),
            kv_used_tokens=column("kv_used_tokens"),
            kv_capacity_tokens=column("kv_capacity_tokens"),
            max_batch=column("max_batch"),
            max_context_tokens=column("max_context_tokens"),
            speed_factor=column("speed_factor"),
            tokens_per_s=column("tokens_per_s"),
        )

    def _take_model(self, engine: Engine, model: engine_pb2.EngineModel) -> None:
        """Coefficients as fitted, with what an engine of few samples borrows from its peers."""
        for name, value in self._costs.take(engine.engine_id, engine.capabilities, model):
            self._set(engine, name, value)

    def _sum_in_flight(self, engine: Engine) -> None:
        pending = engine.in_flight.values()
        self._set(engine, "pending_requests", float(len(pending)))
        self._set(engine, "pending_prefill_tokens", sum(p.prefill_tokens for p in pending))
        self._set(engine, "pending_output_tokens", sum(p.output_tokens for p in pending))

    def _set(self, engine: Engine, name: str, value: float) -> None:
        self._data[_PLACE[name], engine.row] = value
