"""What the parts of one scheduler share."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from paceline.common.v1 import engine_pb2
from paceline.executor.v1 import executor_pb2
from paceline_core.batch.table import LiveTable
from paceline_core.batch.view import Capacity
from paceline_core.engine_model import EngineModelFitter
from paceline_core.tracker import SloTracker
from paceline_runtime.telemetry.spans import OpenSpans
from paceline_scheduler.attempt import Attempt
from paceline_scheduler.config import SchedulerConfig
from paceline_scheduler.outbox import CommandOutbox
from paceline_scheduler.session import SessionRegistry
from paceline_scheduler.tenants import Tenants
from paceline_scheduler.wire import capacity_from


def monotonic_ms() -> float:
    """The clock of all instants in a scheduler."""
    return time.monotonic() * 1000


def unix_ms() -> int:
    """Wall clock, for what outlives the process."""
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class Engine:
    """What is known of the engine."""

    identity: engine_pb2.EngineIdentity | None = None
    """Of the last life seen; None before the first attach."""
    capabilities: engine_pb2.EngineCapabilities = field(default_factory=engine_pb2.EngineCapabilities)
    capacity: Capacity = field(default_factory=lambda: capacity_from(engine_pb2.EngineCapabilities()))
    attached: bool = False
    """A stream is open."""
    lost: bool = False
    """Out of reach for so long that its attempts were given up."""
    kv: executor_pb2.KvUse = field(default_factory=executor_pb2.KvUse)
    last_step_ms: float = 0.0
    """Instant of the last step report; 0: none yet."""
    steps: int = 0
    """Steps reported so far."""


@dataclass(slots=True)
class SchedulerState:
    """One scheduler's state. Everything runs on one event loop, so nothing here is locked."""

    config: SchedulerConfig
    table: LiveTable[Attempt]
    tracker: SloTracker
    fitter: EngineModelFitter
    tenants: Tenants
    sessions: SessionRegistry
    outbox: CommandOutbox
    mark_dirty: Callable[[], None]
    """Something happened that a plan may depend on: plan at the end of this turn of the loop."""
    mark_output: Callable[[], None]
    """Something waits to be sent up or down: flush at the end of this turn of the loop."""
    now_ms: Callable[[], float] = monotonic_ms
    unix_ms: Callable[[], int] = unix_ms
    engine: Engine = field(default_factory=Engine)
    draining: bool = False
    tokens: int = 0
    """Output tokens made since the start."""
    spans: OpenSpans = field(default_factory=lambda: OpenSpans("paceline.attempt"))
    """One per attempt that is traced, from here to its end."""
    counts: Counter[str] = field(default_factory=Counter)
    """Odd things that happened, by name: never silent, and cheap to ask for."""
