"""One engine of the fleet, over all its incarnations."""

import asyncio
from typing import TYPE_CHECKING

from paceline.common.v1 import engine_pb2
from paceline.scheduler.v1 import scheduler_pb2
from paceline_router.attempt import Attempt

if TYPE_CHECKING:
    from paceline_router.scheduler_link import SchedulerLink


class Engine:
    """What the router knows of an engine.

    `up`: its scheduler's session is open and names an incarnation; `down_ms`: since when it is not. `draining`:
    taken out of placement by an operator, and from `move_at_ms` on its requests are moved; `scheduler_draining`:
    by its scheduler. `attempts` are the router's own on the present incarnation, by key; `idle` is set while there are
    none. `row` is its place in the fleet's table.
    """

    def __init__(self, engine_id: str, row: int, link: "SchedulerLink") -> None:
        self.engine_id = engine_id
        self.row = row
        self.link = link
        self.incarnation = 0
        self.started_unix_ms = 0
        self.capabilities = engine_pb2.EngineCapabilities()
        self.executor_endpoint = ""
        self.up = False
        self.down_ms: float | None = None
        self.draining = False
        self.move_at_ms: float | None = None
        self.scheduler_draining = False
        self.load = scheduler_pb2.Load()
        self.load_at_ms = 0.0
        self.attempts: dict[int, Attempt] = {}
        self.lost_attempts = 0
        self.idle = asyncio.Event()
        self.idle.set()

    @property
    def model(self) -> str:
        """Name of the model it serves; empty until it was up once."""
        return self.capabilities.model
